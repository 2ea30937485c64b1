//! The fields of a protobuf message where they lie: numbers, and slices of the message.
//!
//! Pure. For the messages of which there are a hundred thousand: what prost generates owns every text, which costs more
//! than all the rest of decoding. Its rules hold here, too: unknown fields are skipped, also groups, and of one that
//! comes twice the last counts.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Why bytes are no message of their schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    #[error(transparent)]
    Malformed(#[from] prost::DecodeError),
    #[error("field {number} has {length} bytes, of which only {rest} are there")]
    Short { number: u32, length: u64, rest: usize },
    #[error("{field} has another type on the wire")]
    Type { field: &'static str },
    #[error("{field} is not UTF-8")]
    Text { field: &'static str },
}

/// The value of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a type that no field has which is read by this module.
    Other,
}

/// Number and value of each.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), FieldsError> {
        let rest = &mut self.0;
        let (number, wire_type) = decode_key(rest)?;
        let value = match wire_type {
            WireType::LengthDelimited => {
                let length = decode_varint(rest)?;
                let rest_bytes = rest.len();
                let whole = usize::try_from(length)
                    .ok()
                    .and_then(|at| rest.split_at_checked(at));
                let Some((value, after)) = whole else {
                    return Err(FieldsError::Short {
                        number,
                        length,
                        rest: rest_bytes,
                    });
                };
                *rest = after;
                Value::Bytes(value)
            }
            WireType::Varint => Value::Number(decode_varint(rest)?),
            WireType::StartGroup | WireType::EndGroup | WireType::ThirtyTwoBit | WireType::SixtyFourBit => {
                skip_field(wire_type, number, rest, DecodeContext::default())?;
                Value::Other
            }
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), FieldsError>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Value<'a> {
    pub fn bytes(self, field: &'static str) -> Result<&'a [u8], FieldsError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Other => Err(FieldsError::Type { field }),
        }
    }

    pub fn text(self, field: &'static str) -> Result<&'a str, FieldsError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| FieldsError::Text { field })
    }

    pub fn number(self, field: &'static str) -> Result<u64, FieldsError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) | Self::Other => Err(FieldsError::Type { field }),
        }
    }
}
