//! The sending half of HPACK, without state: static entries and literals without indexing (RFC 7541 6.1, 6.2.2).
//!
//! No dynamic table: a CONNECT's values differ from connection to connection, so that entries would be written
//! and hardly ever used, and an encoder without state needs no care about SETTINGS_HEADER_TABLE_SIZE. No Huffman: it
//! would make a CONNECT a fourth shorter, in a packet that is sent anyhow, for some 0.7 us on either side.

use super::static_table;

/// A field that is in the static table as it is, by its index of RFC 7541 appendix A.
pub fn encode_indexed(out: &mut Vec<u8>, static_index: u8) {
    assert!((1..=static_table::ENTRIES.len()).contains(&usize::from(static_index)));
    out.push(0x80 | static_index);
}

/// A field by its texts; the name comes from the static table when it is there.
pub fn encode_literal(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    debug_assert!(
        !name.iter().any(u8::is_ascii_uppercase),
        "RFC 9113 8.2: names are lower case"
    );
    match static_table::name_index(name) {
        Some(index) => encode_integer(out, 0x00, 4, usize::from(index)),
        None => {
            out.push(0x00);
            encode_string(out, name);
        }
    }
    encode_string(out, value);
}

/// RFC 7541 5.2, as it is.
fn encode_string(out: &mut Vec<u8>, text: &[u8]) {
    encode_integer(out, 0x00, 7, text.len());
    out.extend_from_slice(text);
}

/// RFC 7541 5.1: `value` in the low `prefix_bits` of an octet whose other bits are `flags`, and further octets as
/// needed.
pub(super) fn encode_integer(out: &mut Vec<u8>, flags: u8, prefix_bits: u32, value: usize) {
    let prefix_max = (1usize << prefix_bits) - 1;
    if value < prefix_max {
        out.push(flags | value as u8);
        return;
    }
    out.push(flags | prefix_max as u8);
    let mut rest = value - prefix_max;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}
