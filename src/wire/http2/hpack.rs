//! HPACK (RFC 7541): a full decoder and an encoder without state.
//!
//! One `Decoder` belongs to one HTTP/2 connection and sees every header block of it, in order: after an error
//! other than `ListTooLarge` its table may differ from the peer's, and the connection must end (RFC 9113 4.3).
//! Fields are handed out as borrowed slices; texts that have to be built (Huffman, names out of the dynamic
//! table) are built in two vectors that are reused, so that a field costs no allocation.

mod dynamic_table;
mod encoder;
mod huffman;
mod static_table;

#[cfg(test)]
mod tests;

use crate::limits::{HPACK_EXPANSION_FACTOR, HPACK_INTEGER_MAX, HPACK_SCRATCH_BYTES_KEPT};
use dynamic_table::{DynamicTable, ENTRY_OVERHEAD};

pub use encoder::{encode_indexed, encode_literal};

/// Why a header block was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    #[error("the header block ends inside a field")]
    Truncated,
    #[error("an integer in the header block is above {HPACK_INTEGER_MAX}")]
    IntegerTooLarge,
    #[error("index {index} of the header block is in neither table (1 to {last} are)")]
    BadIndex { index: usize, last: usize },
    #[error("a Huffman string holds the end-of-string symbol")]
    HuffmanEos,
    #[error("a Huffman string does not end in under 8 bits of ones")]
    HuffmanPadding,
    #[error("the header table is resized to {size} bytes (at most {max} were granted)")]
    SizeUpdateTooLarge { size: usize, max: usize },
    #[error("the header table is resized after the first field of a block")]
    SizeUpdateMisplaced,
    /// The block was decoded to its end, the table is in sync: only this message is lost.
    #[error("the header list is larger than {max} bytes")]
    ListTooLarge { max: usize },
    /// Like `ListTooLarge`, but so much larger that decoding to the end was not worth its price.
    #[error("the header block expands to more than {max} bytes")]
    ExpansionTooLarge { max: usize },
}

impl HpackError {
    /// Whether the connection can go on, with only this message refused.
    pub fn spares_connection(self) -> bool {
        match self {
            Self::ListTooLarge { .. } => true,
            Self::Truncated
            | Self::IntegerTooLarge
            | Self::BadIndex { .. }
            | Self::HuffmanEos
            | Self::HuffmanPadding
            | Self::SizeUpdateTooLarge { .. }
            | Self::SizeUpdateMisplaced
            | Self::ExpansionTooLarge { .. } => false,
        }
    }
}

/// The receiving half of one connection.
pub struct Decoder {
    table: DynamicTable,
    name_scratch: Vec<u8>,
    value_scratch: Vec<u8>,
}

impl Decoder {
    /// `table_bytes_max` is the SETTINGS_HEADER_TABLE_SIZE that the peer goes by (4,096 unless we sent another).
    pub fn new(table_bytes_max: usize) -> Self {
        Self {
            table: DynamicTable::new(table_bytes_max),
            name_scratch: Vec::new(),
            value_scratch: Vec::new(),
        }
    }

    /// Decodes a whole header block and calls `field` with each name and value, in order.
    ///
    /// The size of the list is the sum of name, value and 32 of each field (RFC 9113 6.5.2). Once it is above
    /// `list_bytes_max`, `field` is not called any more, and the rest only keeps the table in sync.
    pub fn decode(
        &mut self,
        block: &[u8],
        list_bytes_max: usize,
        field: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let result = self.decode_block(block, list_bytes_max, field);
        self.name_scratch.clear();
        self.name_scratch.shrink_to(HPACK_SCRATCH_BYTES_KEPT);
        self.value_scratch.clear();
        self.value_scratch.shrink_to(HPACK_SCRATCH_BYTES_KEPT);
        result
    }

    /// Memory held between blocks.
    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes() + self.name_scratch.capacity() + self.value_scratch.capacity()
    }

    fn decode_block(
        &mut self,
        block: &[u8],
        list_bytes_max: usize,
        field: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let expansion_max = list_bytes_max.saturating_mul(HPACK_EXPANSION_FACTOR);
        let mut reader = Reader { rest: block };
        let mut list_bytes: usize = 0;
        let mut deliver = |name: &[u8], value: &[u8]| {
            list_bytes += name.len() + value.len() + ENTRY_OVERHEAD;
            if list_bytes <= list_bytes_max {
                field(name, value);
            }
            if list_bytes > expansion_max {
                return Err(HpackError::ExpansionTooLarge { max: expansion_max });
            }
            Ok(())
        };
        let mut fields_begun = false;
        while let Some(first) = reader.peek() {
            match Representation::of(first) {
                Representation::Indexed => {
                    let (name, value) = self.indexed(reader.integer(7)?)?;
                    deliver(name, value)?;
                }
                Representation::SizeUpdate => {
                    let size = reader.integer(5)?;
                    // RFC 7541 4.2: a size update stands at the beginning of a block.
                    if fields_begun {
                        return Err(HpackError::SizeUpdateMisplaced);
                    }
                    self.resize(size)?;
                    continue;
                }
                Representation::Literal { prefix_bits, insert } => {
                    let index = reader.integer(prefix_bits)?;
                    let name = match index {
                        0 => reader.string(&mut self.name_scratch)?,
                        1..=STATIC_LEN => static_table::ENTRIES[index - 1].0.as_bytes(),
                        // Copied: RFC 7541 4.4, the insertion may evict the entry that lends the name.
                        _ => {
                            let (name, _) = dynamic(&self.table, index)?;
                            self.name_scratch.clear();
                            self.name_scratch.extend_from_slice(name);
                            &self.name_scratch
                        }
                    };
                    let value = reader.string(&mut self.value_scratch)?;
                    deliver(name, value)?;
                    if insert {
                        self.table.insert(name, value);
                    }
                }
            }
            fields_begun = true;
        }
        if list_bytes > list_bytes_max {
            return Err(HpackError::ListTooLarge { max: list_bytes_max });
        }
        Ok(())
    }

    fn indexed(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        match index {
            1..=STATIC_LEN => {
                let (name, value) = static_table::ENTRIES[index - 1];
                Ok((name.as_bytes(), value.as_bytes()))
            }
            // RFC 7541 6.1: index 0 is an error as well.
            _ => dynamic(&self.table, index),
        }
    }

    fn resize(&mut self, size: usize) -> Result<(), HpackError> {
        let max = self.table.size_limit();
        // RFC 7541 6.3.
        if size > max {
            return Err(HpackError::SizeUpdateTooLarge { size, max });
        }
        self.table.resize(size);
        Ok(())
    }
}

const STATIC_LEN: usize = static_table::ENTRIES.len();

fn dynamic(table: &DynamicTable, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
    let bad = HpackError::BadIndex {
        index,
        last: STATIC_LEN + table.len(),
    };
    let position = index.checked_sub(STATIC_LEN + 1).ok_or(bad)?;
    table.get(position).ok_or(bad)
}

/// What the first octet of a representation announces (RFC 7541 section 6).
enum Representation {
    Indexed,
    SizeUpdate,
    Literal { prefix_bits: u32, insert: bool },
}

impl Representation {
    fn of(first: u8) -> Self {
        match first.leading_zeros() {
            0 => Self::Indexed,
            1 => Self::Literal {
                prefix_bits: 6,
                insert: true,
            },
            2 => Self::SizeUpdate,
            // 0001 is never indexed, 0000 without indexing; they differ only for who forwards the field.
            _ => Self::Literal {
                prefix_bits: 4,
                insert: false,
            },
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn octet(&mut self) -> Result<u8, HpackError> {
        let (&octet, rest) = self.rest.split_first().ok_or(HpackError::Truncated)?;
        self.rest = rest;
        Ok(octet)
    }

    /// RFC 7541 5.1. At most five octets, so that neither the value overflows nor zeros pad without end.
    fn integer(&mut self, prefix_bits: u32) -> Result<usize, HpackError> {
        let prefix_max = (1 << prefix_bits) - 1;
        let mut value = usize::from(self.octet()?) & prefix_max;
        if value < prefix_max {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let octet = self.octet()?;
            value += usize::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                return if value > HPACK_INTEGER_MAX {
                    Err(HpackError::IntegerTooLarge)
                } else {
                    Ok(value)
                };
            }
        }
        Err(HpackError::IntegerTooLarge)
    }

    /// RFC 7541 5.2. The text is part of the block, or was built in `scratch`.
    fn string<'b>(&mut self, scratch: &'b mut Vec<u8>) -> Result<&'b [u8], HpackError>
    where
        'a: 'b,
    {
        let huffman = self.peek().is_some_and(|first| first & 0x80 != 0);
        let len = self.integer(7)?;
        let (text, rest) = self.rest.split_at_checked(len).ok_or(HpackError::Truncated)?;
        self.rest = rest;
        if !huffman {
            return Ok(text);
        }
        scratch.clear();
        huffman::decode(text, scratch)?;
        Ok(scratch)
    }
}
