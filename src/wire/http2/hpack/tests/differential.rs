//! Against a second implementation, `fluke-hpack`, and against chance.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::encoder::encode_integer;
use super::super::*;

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

const TABLE_MAX: usize = 4096;
const UNBOUNDED: usize = 1 << 30;

fn ours(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, HpackError> {
    let mut fields = Fields::new();
    decoder
        .decode(block, UNBOUNDED, &mut |name, value| {
            fields.push((name.to_vec(), value.to_vec()))
        })
        .map(|()| fields)
}

fn theirs() -> fluke_hpack::Decoder<'static> {
    let mut decoder = fluke_hpack::Decoder::new();
    decoder.set_max_allowed_table_size(TABLE_MAX);
    decoder
}

/// Names that recur, so that tables are hit, and some that do not.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec![
            ":method",
            ":authority",
            ":status",
            "baggage",
            "forwarded",
            "cookie"
        ])
        .prop_map(|name| name.as_bytes().to_vec()),
        "[a-z0-9-]{1,20}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..300),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec!["", "GET", "200", "CONNECT", "10.0.0.1:8080"])
            .prop_map(|value| value.as_bytes().to_vec()),
        "[ -~]{0,60}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..1500),
    ]
}

fn lists() -> impl Strategy<Value = Vec<Fields>> {
    vec(vec((name(), value()), 0..12), 1..8)
}

/// One representation of a block, before it is known what the tables hold.
#[derive(Debug, Clone)]
enum Piece {
    Indexed(u16),
    Literal {
        kind: Kind,
        name: Name,
        value: Vec<u8>,
        huffman: bool,
    },
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Inserted,
    Plain,
    Never,
}

#[derive(Debug, Clone)]
enum Name {
    Indexed(u16),
    Text(Vec<u8>),
}

fn piece() -> impl Strategy<Value = Piece> {
    let kind = prop::sample::select(vec![Kind::Inserted, Kind::Inserted, Kind::Plain, Kind::Never]);
    let name = prop_oneof![any::<u16>().prop_map(Name::Indexed), name().prop_map(Name::Text)];
    prop_oneof![
        any::<u16>().prop_map(Piece::Indexed),
        (kind, name, value(), any::<bool>()).prop_map(|(kind, name, value, huffman)| Piece::Literal {
            kind,
            name,
            value,
            huffman
        }),
    ]
}

fn write_text(out: &mut Vec<u8>, text: &[u8], huffman: bool) {
    if huffman {
        let mut coded = Vec::new();
        huffman::encode(text, &mut coded);
        encode_integer(out, 0x80, 7, coded.len());
        out.extend_from_slice(&coded);
    } else {
        encode_integer(out, 0x00, 7, text.len());
        out.extend_from_slice(text);
    }
}

impl Piece {
    /// `entries` is how many entries the dynamic table has now; indices are taken modulo what exists.
    fn write(&self, out: &mut Vec<u8>, entries: usize) {
        let existing = |index: u16| 1 + usize::from(index) % (STATIC_LEN + entries);
        match self {
            Self::Indexed(index) => encode_integer(out, 0x80, 7, existing(*index)),
            Self::Literal {
                kind,
                name,
                value,
                huffman,
            } => {
                let (flags, prefix_bits) = match kind {
                    Kind::Inserted => (0x40, 6),
                    Kind::Plain => (0x00, 4),
                    Kind::Never => (0x10, 4),
                };
                match name {
                    Name::Indexed(index) => encode_integer(out, flags, prefix_bits, existing(*index)),
                    Name::Text(text) => {
                        out.push(flags);
                        write_text(out, text, *huffman);
                    }
                }
                write_text(out, value, *huffman);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lists_encoded_by_the_other_implementation_are_decoded_by_ours(lists in lists()) {
        let mut encoder = fluke_hpack::Encoder::new();
        let mut decoder = Decoder::new(TABLE_MAX);
        for list in lists {
            let block = encoder.encode(list.iter().map(|(name, value)| (&name[..], &value[..])));
            prop_assert_eq!(ours(&mut decoder, &block), Ok(list));
        }
    }

    #[test]
    fn lists_encoded_by_ours_are_decoded_by_the_other_implementation(lists in lists()) {
        let mut theirs = theirs();
        let mut decoder = Decoder::new(TABLE_MAX);
        for mut list in lists {
            list.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
            let mut block = Vec::new();
            for (name, value) in &list {
                encode_literal(&mut block, name, value);
            }
            prop_assert_eq!(theirs.decode(&block), Ok(list.clone()));
            prop_assert_eq!(ours(&mut decoder, &block), Ok(list));
        }
    }

    /// Every representation, with Huffman, insertions, evictions and resized tables.
    #[test]
    fn both_implementations_decode_the_same_from_any_representation(
        blocks in vec((vec(0..=TABLE_MAX, 0..3), vec(piece(), 1..10)), 1..6)
    ) {
        let mut theirs = theirs();
        let mut decoder = Decoder::new(TABLE_MAX);
        // Decodes each piece alone, only to know how many entries there are.
        let mut model = Decoder::new(TABLE_MAX);
        for (sizes, pieces) in blocks {
            let mut block = Vec::new();
            for size in sizes {
                encode_integer(&mut block, 0x20, 5, size);
            }
            ours(&mut model, &block).expect("size updates alone");
            for piece in pieces {
                let start = block.len();
                piece.write(&mut block, model.table.len());
                ours(&mut model, &block[start..]).expect("one valid piece");
            }
            let fields = ours(&mut decoder, &block);
            prop_assert!(fields.is_ok());
            prop_assert_eq!(fields.ok(), theirs.decode(&block).ok());
            prop_assert_eq!(decoder.table.len(), model.table.len());
        }
    }

    #[test]
    fn both_implementations_judge_arbitrary_bytes_alike(blocks in vec(vec(any::<u8>(), 0..60), 1..5)) {
        let mut theirs = theirs();
        let mut decoder = Decoder::new(TABLE_MAX);
        for block in blocks {
            let fields = match ours(&mut decoder, &block) {
                Ok(fields) => fields,
                // RFC 7541 4.2, which the other one does not check; and it panics on a size update that is cut.
                Err(HpackError::SizeUpdateMisplaced | HpackError::Truncated | HpackError::IntegerTooLarge) => break,
                Err(error) => {
                    prop_assert!(theirs.decode(&block).is_err(), "{}", error);
                    break;
                }
            };
            match theirs.decode(&block) {
                Ok(expected) => prop_assert_eq!(fields, expected),
                // A block of nothing but size updates, which no rule forbids.
                Err(fluke_hpack::decoder::DecoderError::SizeUpdateAtEnd) => {
                    prop_assert_eq!(fields, Fields::new());
                    break;
                }
                Err(error) => prop_assert!(false, "theirs: {error:?}"),
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_yield_more_than_the_bound(
        blocks in vec(vec(any::<u8>(), 0..200), 1..5),
        list_bytes_max in 0..2000usize,
    ) {
        let mut decoder = Decoder::new(TABLE_MAX);
        for block in blocks {
            let mut delivered = 0;
            let result = decoder.decode(&block, list_bytes_max, &mut |name, value| {
                delivered += name.len() + value.len() + 32;
            });
            prop_assert!(delivered <= list_bytes_max);
            prop_assert!(decoder.memory_bytes() < 8 * TABLE_MAX);
            if result.is_err_and(|error| !error.spares_connection()) {
                break;
            }
        }
    }

    #[test]
    fn a_list_too_large_leaves_the_same_table_as_a_list_allowed(
        pieces in vec(piece(), 1..10),
        list_bytes_max in 500..3000usize,
    ) {
        let mut bounded = Decoder::new(TABLE_MAX);
        let mut unbounded = Decoder::new(TABLE_MAX);
        let mut block = Vec::new();
        let mut model = Decoder::new(TABLE_MAX);
        for piece in pieces {
            let start = block.len();
            piece.write(&mut block, model.table.len());
            ours(&mut model, &block[start..]).expect("one valid piece");
        }
        ours(&mut unbounded, &block).expect("valid");
        let result = bounded.decode(&block, list_bytes_max, &mut |_, _| ());
        if result.is_ok() || result.is_err_and(HpackError::spares_connection) {
            prop_assert_eq!(bounded.table.len(), unbounded.table.len());
            for index in 0..unbounded.table.len() {
                prop_assert_eq!(bounded.table.get(index), unbounded.table.get(index));
            }
        }
    }
}
