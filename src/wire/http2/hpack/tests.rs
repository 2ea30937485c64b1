//! The examples of RFC 7541 appendix C, and every malformed input with its error.

mod differential;

use super::encoder::encode_integer;
use super::*;

type Fields = Vec<(String, String)>;

const LIST_MAX: usize = 64 * 1024;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("hex");
    digits.chunks(2).map(pair).collect()
}

fn decode_bounded(decoder: &mut Decoder, block: &[u8], max: usize) -> (Fields, Result<(), HpackError>) {
    let mut fields = Fields::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let result = decoder.decode(block, max, &mut |name, value| {
        fields.push((text(name), text(value)))
    });
    (fields, result)
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, HpackError> {
    let (fields, result) = decode_bounded(decoder, block, LIST_MAX);
    result.map(|()| fields)
}

fn decode_fresh(block: &[u8]) -> Result<Fields, HpackError> {
    decode(&mut Decoder::new(4096), block)
}

fn fields(list: &[(&str, &str)]) -> Fields {
    list.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// The table as appendix C prints it, newest first, and its size.
fn table(decoder: &Decoder) -> (Fields, usize) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let entries: Fields = (0..decoder.table.len())
        .map(|i| decoder.table.get(i).expect("below len"))
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    let size = entries
        .iter()
        .map(|(name, value)| name.len() + value.len() + 32)
        .sum();
    (entries, size)
}

/// A sequence of blocks on one connection: block, its fields, the table afterwards and its size.
type Step<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], usize);

fn assert_steps(table_max: usize, steps: &[Step<'_>]) {
    let mut decoder = Decoder::new(table_max);
    for (block, expected, expected_table, expected_size) in steps {
        assert_eq!(
            decode(&mut decoder, &bytes(block)),
            Ok(fields(expected)),
            "{block}"
        );
        assert_eq!(
            table(&decoder),
            (fields(expected_table), *expected_size),
            "{block}"
        );
    }
}

#[test]
fn integers_are_those_of_appendix_c_1() {
    for (value, prefix_bits, hex) in [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a")] {
        let mut out = Vec::new();
        encode_integer(&mut out, 0, prefix_bits, value);
        assert_eq!(out, bytes(hex));
        let mut reader = Reader { rest: &out };
        assert_eq!(reader.integer(prefix_bits), Ok(value));
        assert!(reader.rest.is_empty());
    }
}

#[test]
fn single_representations_are_those_of_appendix_c_2() {
    let custom = [("custom-key", "custom-header")];
    assert_steps(
        4096,
        &[(
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            &custom,
            &custom,
            55,
        )],
    );
    assert_steps(
        4096,
        &[(
            "040c 2f73 616d 706c 652f 7061 7468",
            &[(":path", "/sample/path")],
            &[],
            0,
        )],
    );
    assert_steps(
        4096,
        &[(
            "1008 7061 7373 776f 7264 0673 6563 7265 74",
            &[("password", "secret")],
            &[],
            0,
        )],
    );
    assert_steps(4096, &[("82", &[(":method", "GET")], &[], 0)]);
}

fn request_steps<'a>(blocks: [&'a str; 3]) -> [Step<'a>; 3] {
    const AUTHORITY: (&str, &str) = (":authority", "www.example.com");
    const CACHE: (&str, &str) = ("cache-control", "no-cache");
    const CUSTOM: (&str, &str) = ("custom-key", "custom-value");
    const GET: (&str, &str) = (":method", "GET");
    [
        (
            blocks[0],
            &[GET, (":scheme", "http"), (":path", "/"), AUTHORITY],
            &[AUTHORITY],
            57,
        ),
        (
            blocks[1],
            &[GET, (":scheme", "http"), (":path", "/"), AUTHORITY, CACHE],
            &[CACHE, AUTHORITY],
            110,
        ),
        (
            blocks[2],
            &[
                GET,
                (":scheme", "https"),
                (":path", "/index.html"),
                AUTHORITY,
                CUSTOM,
            ],
            &[CUSTOM, CACHE, AUTHORITY],
            164,
        ),
    ]
}

#[test]
fn requests_without_huffman_are_those_of_appendix_c_3() {
    assert_steps(
        4096,
        &request_steps([
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ]),
    );
}

#[test]
fn requests_with_huffman_are_those_of_appendix_c_4() {
    assert_steps(
        4096,
        &request_steps([
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ]),
    );
}

/// Appendices C.5 and C.6: a table of 256 bytes, in which entries are evicted.
fn response_steps<'a>(blocks: [&'a str; 3]) -> [Step<'a>; 3] {
    const S302: (&str, &str) = (":status", "302");
    const S307: (&str, &str) = (":status", "307");
    const PRIVATE: (&str, &str) = ("cache-control", "private");
    const DATE_21: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
    const DATE_22: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
    const LOCATION: (&str, &str) = ("location", "https://www.example.com");
    const GZIP: (&str, &str) = ("content-encoding", "gzip");
    const COOKIE: (&str, &str) = (
        "set-cookie",
        "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    );
    [
        (
            blocks[0],
            &[S302, PRIVATE, DATE_21, LOCATION],
            &[LOCATION, DATE_21, PRIVATE, S302],
            222,
        ),
        (
            blocks[1],
            &[S307, PRIVATE, DATE_21, LOCATION],
            &[S307, LOCATION, DATE_21, PRIVATE],
            222,
        ),
        (
            blocks[2],
            &[(":status", "200"), PRIVATE, DATE_22, LOCATION, GZIP, COOKIE],
            &[COOKIE, GZIP, DATE_22],
            215,
        ),
    ]
}

#[test]
fn responses_without_huffman_are_those_of_appendix_c_5() {
    assert_steps(
        256,
        &response_steps([
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 \
             2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 \
             6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d \
             54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 \
             5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e \
             3d31",
        ]),
    );
}

#[test]
fn responses_with_huffman_are_those_of_appendix_c_6() {
    assert_steps(
        256,
        &response_steps([
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 \
             2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab \
             77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f \
             9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ]),
    );
}

#[test]
fn a_block_cut_anywhere_inside_a_field_is_refused() {
    let block = bytes("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572");
    for len in 1..block.len() {
        assert_eq!(decode_fresh(&block[..len]), Err(HpackError::Truncated), "{len}");
    }
    for hex in ["ff", "ff80", "3f", "7f", "1f", "0f80", "4101", "41ff", "0082ff"] {
        assert_eq!(decode_fresh(&bytes(hex)), Err(HpackError::Truncated), "{hex}");
    }
    assert_eq!(decode_fresh(&[]), Ok(Vec::new()));
}

#[test]
fn integers_beyond_the_bound_are_refused_however_long_they_are() {
    for hex in [
        "ff8080808000",             // zeros as padding
        "ffffffffff0f",             // above 32 bits
        "ffffffffffffffffffffff7f", // above 64 bits
        "ffffffff7f",               // 2^28 + 126: fits, but above the bound
        "7fffffff7f",
        "0fffffff7f",
        "007fffffff7f",
        "3fffffff7f",
    ] {
        assert_eq!(
            decode_fresh(&bytes(hex)),
            Err(HpackError::IntegerTooLarge),
            "{hex}"
        );
    }
}

#[test]
fn an_index_in_neither_table_is_refused_and_named() {
    for (hex, index) in [
        ("80", 0),
        ("be", 62),
        ("ff00", 127),
        ("7e00", 62),
        ("0f2f00", 62),
        ("1f2f00", 62),
    ] {
        let expected = HpackError::BadIndex { index, last: 61 };
        assert_eq!(decode_fresh(&bytes(hex)), Err(expected), "{hex}");
    }
    let one_entry = "4001610162";
    assert_eq!(
        decode_fresh(&bytes(&format!("{one_entry}be"))).map(|fields| fields.len()),
        Ok(2)
    );
    let expected = HpackError::BadIndex { index: 63, last: 62 };
    assert_eq!(decode_fresh(&bytes(&format!("{one_entry}bf"))), Err(expected));
    assert_eq!(
        expected.to_string(),
        "index 63 of the header block is in neither table (1 to 62 are)"
    );
}

#[test]
fn a_bad_huffman_string_is_refused_as_name_and_as_value() {
    for (hex, error) in [
        ("0081ff00", HpackError::HuffmanPadding),
        ("01820000", HpackError::HuffmanPadding),
        ("0184ffffffff", HpackError::HuffmanEos),
        ("0084ffffffff00", HpackError::HuffmanEos),
    ] {
        assert_eq!(decode_fresh(&bytes(hex)), Err(error), "{hex}");
    }
}

#[test]
fn the_table_is_resized_only_within_the_grant_and_before_the_first_field() {
    assert_eq!(
        decode_fresh(&bytes("3fe11f 82")).map(|fields| fields.len()),
        Ok(1)
    );
    let too_large = HpackError::SizeUpdateTooLarge {
        size: 4097,
        max: 4096,
    };
    assert_eq!(decode_fresh(&bytes("3fe21f 82")), Err(too_large));
    assert_eq!(
        decode_fresh(&bytes("82 3fe11f")),
        Err(HpackError::SizeUpdateMisplaced)
    );
    assert_eq!(
        decode_fresh(&bytes("4001610162 20")),
        Err(HpackError::SizeUpdateMisplaced)
    );
}

#[test]
fn a_resized_table_forgets_what_does_not_fit() {
    let mut decoder = Decoder::new(4096);
    assert!(decode(&mut decoder, &bytes("4001610162 4001630164")).is_ok());
    assert_eq!(table(&decoder).1, 68);
    // 34 bytes: one entry. Then two updates in a row, as an encoder does whose bound went down and up again.
    assert_eq!(decode(&mut decoder, &bytes("3f03 be")), Ok(fields(&[("c", "d")])));
    assert_eq!(table(&decoder), (fields(&[("c", "d")]), 34));
    assert_eq!(decode(&mut decoder, &bytes("20 3fe11f")), Ok(Vec::new()));
    assert_eq!(table(&decoder), (Vec::new(), 0));
    assert!(decode(&mut decoder, &bytes("4001610162")).is_ok());
    assert_eq!(table(&decoder).1, 34);
}

#[test]
fn a_name_may_come_from_the_entry_that_its_own_insertion_evicts() {
    // RFC 7541 4.4. A table for one entry of 34 bytes.
    let mut decoder = Decoder::new(34);
    assert!(decode(&mut decoder, &bytes("4001610162")).is_ok());
    assert_eq!(decode(&mut decoder, &bytes("7e0163")), Ok(fields(&[("a", "c")])));
    assert_eq!(table(&decoder), (fields(&[("a", "c")]), 34));
}

#[test]
fn a_list_above_the_bound_costs_the_message_but_leaves_the_table_in_sync() {
    let mut decoder = Decoder::new(4096);
    // a: b (34), :method: GET (42), then an insertion that is not delivered any more.
    let block = bytes("4001610162 82 4001630164");
    let (delivered, result) = decode_bounded(&mut decoder, &block, 80);
    assert_eq!(result, Err(HpackError::ListTooLarge { max: 80 }));
    assert!(result.is_err_and(HpackError::spares_connection));
    assert_eq!(delivered, fields(&[("a", "b"), (":method", "GET")]));
    assert_eq!(
        decode(&mut decoder, &bytes("be bf")),
        Ok(fields(&[("c", "d"), ("a", "b")]))
    );
    // Exactly the bound is allowed.
    assert_eq!(decode_bounded(&mut Decoder::new(4096), &block, 110).1, Ok(()));
    assert!(decode_bounded(&mut Decoder::new(4096), &block, 109).1.is_err());
}

#[test]
fn a_block_that_expands_far_beyond_the_bound_is_given_up() {
    let mut decoder = Decoder::new(4096);
    let mut block = bytes("4001617f a11e");
    block.extend([b'x'; 4000]);
    // One octet each for 4,033 bytes of list.
    block.extend([0xbe; 60_000]);
    let mut delivered = 0;
    let result = decoder.decode(&block, LIST_MAX, &mut |name, value| {
        delivered += name.len() + value.len() + 32
    });
    assert_eq!(result, Err(HpackError::ExpansionTooLarge { max: 4 * LIST_MAX }));
    assert!(!result.is_err_and(HpackError::spares_connection));
    assert!(delivered <= LIST_MAX);
}

#[test]
fn little_memory_stays_after_a_large_block_and_none_before_the_first() {
    let mut decoder = Decoder::new(4096);
    assert_eq!(decoder.memory_bytes(), 0);
    let mut block = Vec::new();
    encode_literal(&mut block, &[b'n'; 20_000], &[b'v'; 20_000]);
    assert!(decode(&mut decoder, &block).is_ok());
    assert!(
        decoder.memory_bytes() <= 2 * HPACK_SCRATCH_BYTES_KEPT,
        "{}",
        decoder.memory_bytes()
    );
}

#[test]
fn what_we_encode_is_static_or_a_literal_without_state() {
    let mut out = Vec::new();
    encode_indexed(&mut out, 8);
    encode_literal(&mut out, b":authority", b"www.example.com");
    encode_literal(&mut out, b"via", b"");
    encode_literal(&mut out, b"x", b"y");
    assert_eq!(
        out,
        bytes("88 010f 7777 772e 6578 616d 706c 652e 636f 6d 0f2d00 0001780179")
    );
    let expected = [
        (":status", "200"),
        (":authority", "www.example.com"),
        ("via", ""),
        ("x", "y"),
    ];
    let mut decoder = Decoder::new(4096);
    assert_eq!(decode(&mut decoder, &out), Ok(fields(&expected)));
    assert_eq!(decoder.table.len(), 0);
}
