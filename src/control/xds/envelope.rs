//! The walk over a response of the control plane while it arrives: each resource is given out as soon as it is whole.
//!
//! Control thread, pure. A first response may have a hundred thousand resources and 40 MB. `Scan` is fed with its
//! bytes in whatever pieces they come, gives resources out as slices of those pieces (only one that is cut is put
//! together), and keeps nothing of them. Invariants: what is given out, and in which order, does not depend on where
//! the bytes are cut; a length that does not fit the message is refused before anything is kept for it; what is inside
//! a resource is not looked at.

use bytes::Bytes;
use prost::encoding::decode_varint;

use crate::limits;

// Numbers of the fields, in proto/discovery.proto.
const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED: u32 = 6;

/// A key and a length, or a key and a number.
const HEAD_BYTES_MAX: usize = 20;
const VARINT_BYTES_MAX: usize = 10;

/// The bytes are no response at all: nothing of it can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed response of the control plane: {0}")]
pub struct Malformed(pub String);

/// What a response says beside its resources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    pub type_url: String,
    pub nonce: String,
    pub removed: Vec<String>,
}

/// The walk.
#[derive(Debug)]
pub struct Scan {
    found: Envelope,
    fields: usize,
    /// Of the message, not looked at yet, whether it has come or not.
    rest_bytes: usize,
    /// What came of them, after `head`.
    arrived: Bytes,
    /// The beginning of a field, if its key and length are cut.
    head: Vec<u8>,
    /// The field whose value is cut.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    number: u32,
    parts: Vec<Bytes>,
    rest_bytes: usize,
}

impl Scan {
    /// Of a message of this length.
    pub fn new(message_bytes: usize) -> Self {
        Self {
            found: Envelope::default(),
            fields: 0,
            rest_bytes: message_bytes,
            arrived: Bytes::new(),
            head: Vec::new(),
            open: None,
        }
    }

    /// The next bytes of the message, after `next_resource` gave out all of those before.
    pub fn feed(&mut self, bytes: Bytes) {
        debug_assert!(self.arrived.is_empty(), "the bytes before were not looked at");
        self.arrived = bytes;
    }

    /// The next resource that is whole, still encoded; none when more has to arrive first, or the message is over.
    pub fn next_resource(&mut self) -> Result<Option<Bytes>, Malformed> {
        loop {
            if self.open.is_none() && !self.begin()? {
                return Ok(None);
            }
            let Some((number, value)) = self.collect() else {
                return Ok(None);
            };
            match number {
                RESOURCES => return Ok(Some(value)),
                REMOVED => self.found.removed.push(text(&value, "removed_resources")?),
                TYPE_URL => self.found.type_url = text(&value, "type_url")?,
                NONCE => self.found.nonce = text(&value, "nonce")?,
                _ => {}
            }
        }
    }

    /// After the last byte.
    pub fn finish(self) -> Result<Envelope, Malformed> {
        match self.rest_bytes {
            0 => Ok(self.found),
            rest => Err(Malformed(format!("its last {rest} bytes are missing"))),
        }
    }

    /// Reads key and length of the next field; false when there is none yet.
    fn begin(&mut self) -> Result<bool, Malformed> {
        if self.arrived.is_empty() {
            return Ok(false);
        }
        let before = self.head.len();
        let head = if before == 0 {
            Head::read(&self.arrived)?
        } else {
            let more = self.arrived.len().min(HEAD_BYTES_MAX - before);
            self.head.extend_from_slice(&self.arrived[..more]);
            Head::read(&self.head)?
        };
        let Some(head) = head else {
            if before == 0 {
                self.head.extend_from_slice(&self.arrived);
            }
            self.arrived = Bytes::new();
            return match self.rest_bytes > self.head.len() {
                true => Ok(false),
                false => Err(Malformed("its last field is cut off".to_owned())),
            };
        };
        let _ = self.arrived.split_to(head.bytes - before);
        self.head.clear();
        self.rest_bytes -= head.bytes;
        self.fields += 1;
        if self.fields > limits::XDS_RESPONSE_FIELDS_MAX {
            let limit = limits::XDS_RESPONSE_FIELDS_MAX;
            return Err(Malformed(format!("it has more than {limit} fields")));
        }
        let number = head.number;
        match head.value_bytes {
            Value::Counted(length) if length > self.rest_bytes as u64 => {
                let rest = self.rest_bytes;
                return Err(Malformed(format!(
                    "field {number} has {length} bytes, of which only {rest} came"
                )));
            }
            Value::Fixed(length) if length > self.rest_bytes => {
                return Err(Malformed(format!("field {number} is cut off")));
            }
            Value::Fixed(_) if matches!(number, RESOURCES | REMOVED | TYPE_URL | NONCE) => {
                return Err(Malformed(format!("field {number} has another type")));
            }
            Value::Counted(_) | Value::Fixed(_) => {}
        }
        self.open = Some(Open {
            number,
            parts: Vec::new(),
            rest_bytes: match head.value_bytes {
                Value::Counted(length) => length as usize,
                Value::Fixed(length) => length,
            },
        });
        Ok(true)
    }

    /// The open field, if it is whole.
    fn collect(&mut self) -> Option<(u32, Bytes)> {
        let open = self.open.as_mut()?;
        let part = self.arrived.split_to(open.rest_bytes.min(self.arrived.len()));
        self.rest_bytes -= part.len();
        open.rest_bytes -= part.len();
        let is_kept = matches!(open.number, RESOURCES | REMOVED | TYPE_URL | NONCE);
        if open.rest_bytes > 0 {
            if is_kept && !part.is_empty() {
                open.parts.push(part);
            }
            return None;
        }
        let Open {
            number, mut parts, ..
        } = self.open.take()?;
        if parts.is_empty() {
            return Some((number, part));
        }
        parts.push(part);
        Some((number, parts.concat().into()))
    }
}

/// What stands before a field's value.
struct Head {
    number: u32,
    value_bytes: Value,
    /// Its own.
    bytes: usize,
}

enum Value {
    Counted(u64),
    /// Numbers that are read already have none left.
    Fixed(usize),
}

impl Head {
    /// None if it is not whole.
    fn read(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let Some((key, key_bytes)) = varint(bytes)? else {
            return Ok(None);
        };
        let number = u32::try_from(key >> 3)
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| Malformed(format!("{key} is no key of a field")))?;
        let mut bytes_read = key_bytes;
        let value_bytes = match key & 7 {
            kind @ (0 | 2) => {
                let Some((value, value_bytes)) = varint(&bytes[key_bytes..])? else {
                    return Ok(None);
                };
                bytes_read += value_bytes;
                if kind == 2 {
                    Value::Counted(value)
                } else {
                    Value::Fixed(0)
                }
            }
            1 => Value::Fixed(8),
            5 => Value::Fixed(4),
            3 | 4 => {
                return Err(Malformed(format!(
                    "field {number} is a group, which no schema has"
                )));
            }
            unknown => {
                return Err(Malformed(format!(
                    "field {number} has the unknown type {unknown}"
                )));
            }
        };
        Ok(Some(Self {
            number,
            value_bytes,
            bytes: bytes_read,
        }))
    }
}

/// A number and its length; none if it is not whole.
fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    let is_whole = bytes.iter().take(VARINT_BYTES_MAX).any(|byte| *byte < 0x80);
    if !is_whole && bytes.len() < VARINT_BYTES_MAX {
        return Ok(None);
    }
    let mut rest = bytes;
    let value = decode_varint(&mut rest).map_err(|error| Malformed(error.to_string()))?;
    Ok(Some((value, bytes.len() - rest.len())))
}

fn text(value: &[u8], field: &str) -> Result<String, Malformed> {
    let text = std::str::from_utf8(value).map_err(|_| Malformed(format!("{field} is not UTF-8")))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
