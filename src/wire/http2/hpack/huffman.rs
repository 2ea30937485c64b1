//! The Huffman code of HPACK (RFC 7541 section 5.2, appendix B), decoded by tables made at compile time.
//!
//! The code of appendix B is canonical: codes of one length are consecutive in the order of their symbols, and
//! follow on those of the shorter lengths. So the 257 lengths determine it, and everything below is derived from
//! them by `Tables::new`. Codes of at most 8 bits, which are nearly all that occur in headers, take one look-up;
//! longer ones compare against one bound per length. Rejected: a byte-wise state machine, 64 KiB of tables for a
//! block of some 200 bytes per connection.

use super::HpackError;

/// Length in bits of the code of each octet, and of EOS at 256.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const SYMBOLS: usize = 257;
const EOS: u16 = 256;
const BITS_MAX: usize = 30;
/// Codes up to this length are decoded by one look-up.
const SHORT_BITS: usize = 8;

static TABLES: Tables = Tables::new();

/// Appends the octets that `coded` stands for to `out`. At most 8/5 of `coded` in length.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    out.reserve(coded.len() * 8 / 5);
    let mut bits = Bits::new(coded);
    loop {
        bits.refill();
        let (symbol, len) = TABLES.lookup(bits.window);
        if len > bits.valid {
            break;
        }
        // RFC 7541 5.2: EOS inside a string is an error. Every other symbol is an octet.
        out.push(u8::try_from(symbol).map_err(|_| HpackError::HuffmanEos)?);
        bits.window <<= len;
        bits.valid -= len;
    }
    // RFC 7541 5.2: what is left is padding: under 8 bits, and the start of EOS, which is ones.
    if bits.valid < 8 && bits.window.leading_ones() as usize >= bits.valid {
        Ok(())
    } else {
        Err(HpackError::HuffmanPadding)
    }
}

struct Bits<'a> {
    /// Bits not used yet, the next one topmost; zeros behind the valid ones.
    window: u64,
    valid: usize,
    input: &'a [u8],
}

impl<'a> Bits<'a> {
    fn new(input: &'a [u8]) -> Self {
        Self {
            window: 0,
            valid: 0,
            input,
        }
    }

    /// Makes at least 32 bits valid, more than any code is long, or all that are left.
    fn refill(&mut self) {
        if self.valid >= 32 {
            return;
        }
        if let Some((four, rest)) = self.input.split_first_chunk() {
            self.window |= u64::from(u32::from_be_bytes(*four)) << (32 - self.valid);
            self.valid += 32;
            self.input = rest;
            return;
        }
        while let Some((&octet, rest)) = self.input.split_first().filter(|_| self.valid < 32) {
            self.window |= u64::from(octet) << (56 - self.valid);
            self.valid += 8;
            self.input = rest;
        }
    }
}

struct Tables {
    /// Symbols in the order of their codes.
    ordered: [u16; SYMBOLS],
    /// By length: how many symbols have shorter codes.
    ordered_start: [u16; BITS_MAX + 1],
    /// By length: its first code, right aligned.
    first: [u32; BITS_MAX + 1],
    /// By length: 32 bits, left aligned, are below this if and only if they start with a code of at most that
    /// length.
    end: [u64; BITS_MAX + 1],
    /// By the next eight bits: symbol and length of the code they start with, length 0 if that is longer.
    short: [(u8, u8); 1 << SHORT_BITS],
}

impl Tables {
    const fn new() -> Self {
        let mut tables = Self {
            ordered: [0; SYMBOLS],
            ordered_start: [0; BITS_MAX + 1],
            first: [0; BITS_MAX + 1],
            end: [0; BITS_MAX + 1],
            short: [(0, 0); 1 << SHORT_BITS],
        };
        let mut code: u32 = 0;
        let mut position = 0;
        let mut len = 1;
        while len <= BITS_MAX {
            code <<= 1;
            tables.first[len] = code;
            tables.ordered_start[len] = position as u16;
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if LENGTHS[symbol] as usize == len {
                    tables.ordered[position] = symbol as u16;
                    tables.fill_short(symbol, code, len);
                    position += 1;
                    code += 1;
                }
                symbol += 1;
            }
            tables.end[len] = (code as u64) << (32 - len);
            len += 1;
        }
        assert!(
            tables.end[BITS_MAX] == 1 << 32,
            "the code is complete: any bits start with a symbol"
        );
        tables
    }

    const fn fill_short(&mut self, symbol: usize, code: u32, len: usize) {
        if len > SHORT_BITS {
            return;
        }
        let from = (code as usize) << (SHORT_BITS - len);
        let mut i = from;
        while i < from + (1 << (SHORT_BITS - len)) {
            self.short[i] = (symbol as u8, len as u8);
            i += 1;
        }
    }

    /// Symbol and length of the code that `window` starts with.
    fn lookup(&self, window: u64) -> (u16, usize) {
        let (symbol, len) = self.short[(window >> (64 - SHORT_BITS)) as usize];
        if len > 0 {
            return (u16::from(symbol), usize::from(len));
        }
        let next = window >> 32;
        let mut len = SHORT_BITS + 1;
        while next >= self.end[len] {
            len += 1;
        }
        let offset = (next >> (32 - len)) as usize - self.first[len] as usize;
        (self.ordered[usize::from(self.ordered_start[len]) + offset], len)
    }
}

const _: () = assert!(LENGTHS[EOS as usize] as usize == BITS_MAX);

/// Only for tests: what we send is not worth coding, see `encoder`.
#[cfg(test)]
pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let mut window: u64 = 0;
    let mut bits = 0;
    for &octet in text {
        let (code, len) = code_of(usize::from(octet));
        window = window << len | u64::from(code);
        bits += len;
        while bits >= 8 {
            bits -= 8;
            out.push((window >> bits) as u8);
        }
    }
    if bits > 0 {
        out.push((window << (8 - bits)) as u8 | (0xff >> bits));
    }
}

/// Code and length of a symbol.
#[cfg(test)]
fn code_of(symbol: usize) -> (u32, usize) {
    let len = usize::from(LENGTHS[symbol]);
    let position = TABLES.ordered.iter().position(|&s| usize::from(s) == symbol);
    let offset = position.expect("every symbol has a code") - usize::from(TABLES.ordered_start[len]);
    (TABLES.first[len] + offset as u32, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, HpackError> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| out)
    }

    #[test]
    fn codes_are_those_of_appendix_b() {
        // One of every length, as printed in RFC 7541 appendix B.
        for (symbol, code) in [
            (b'0' as usize, 0x0),
            (b' ' as usize, 0x14),
            (b':' as usize, 0x5c),
            (b'&' as usize, 0xf8),
            (b'!' as usize, 0x3f8),
            (b'+' as usize, 0x7fb),
            (b'#' as usize, 0xffa),
            (0, 0x1ff8),
            (b'^' as usize, 0x3ffc),
            (b'<' as usize, 0x7ffc),
            (b'\\' as usize, 0x7fff0),
            (128, 0xfffe6),
            (153, 0x1fffdc),
            (129, 0x3fffd2),
            (1, 0x7fffd8),
            (9, 0xffffea),
            (199, 0x1ffffec),
            (192, 0x3ffffe0),
            (203, 0x7ffffde),
            (2, 0xfffffe2),
            (10, 0x3ffffffc),
            (256, 0x3fffffff),
        ] {
            assert_eq!(code_of(symbol).0, code, "symbol {symbol}");
        }
    }

    #[test]
    fn every_octet_survives_a_round_trip_at_every_bit_offset() {
        for octet in 0..=255u8 {
            for before in 0..8 {
                let mut text = vec![b'0'; before];
                text.extend([octet, b'a', octet]);
                let mut coded = Vec::new();
                encode(&text, &mut coded);
                assert_eq!(decoded(&coded).as_deref(), Ok(&text[..]), "octet {octet}");
            }
        }
    }

    #[test]
    fn padding_that_is_not_the_start_of_eos_is_refused() {
        // '0' is 00000; three bits of padding remain.
        assert_eq!(decoded(&[0b0000_0111]).as_deref(), Ok(&b"0"[..]));
        for padding in 0..7 {
            assert_eq!(decoded(&[padding]), Err(HpackError::HuffmanPadding), "{padding}");
        }
    }

    #[test]
    fn padding_of_a_whole_octet_is_refused() {
        for coded in [&[0xff][..], &[0x07, 0xff], &[0xff, 0xff], &[0xff, 0xff, 0xff]] {
            assert_eq!(decoded(coded), Err(HpackError::HuffmanPadding), "{coded:?}");
        }
    }

    #[test]
    fn eos_inside_a_string_is_refused() {
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(HpackError::HuffmanEos));
        assert_eq!(
            decoded(&[0xff, 0xff, 0xff, 0xfc, 0x07]),
            Err(HpackError::HuffmanEos)
        );
    }

    #[test]
    fn nothing_decodes_to_nothing() {
        assert_eq!(decoded(&[]).as_deref(), Ok(&b""[..]));
    }
}
