//! Header blocks of one connection, and the messages they carry. Each block is one octet of length and as many
//! octets.

use uztunnel::wire::hbone::{RequestFields, ResponseFields};
use uztunnel::wire::http2::hpack::{Decoder, encode_literal};

const TABLE_BYTES_MAX: usize = 4096;
const LIST_BYTES_MAX: usize = 4096;

pub fn run(mut input: &[u8]) {
    let mut decoder = Decoder::new(TABLE_BYTES_MAX);
    while let Some((&len, rest)) = input.split_first() {
        let (block, rest) = rest.split_at(usize::from(len).min(rest.len()));
        input = rest;
        let (mut request, mut response) = (RequestFields::new(), ResponseFields::new());
        let mut fields = Vec::new();
        let mut list_bytes = 0;
        let result = decoder.decode(block, LIST_BYTES_MAX, &mut |name, value| {
            list_bytes += name.len() + value.len() + 32;
            request.push(name, value);
            response.push(name, value);
            fields.push((name.to_ascii_lowercase(), value.to_vec()));
        });
        assert!(list_bytes <= LIST_BYTES_MAX);
        assert!(decoder.memory_bytes() < 8 * TABLE_BYTES_MAX);
        match result {
            Ok(()) => {
                let (request, response) = (request.finish(), response.finish());
                assert!(request.is_err() || response.is_err(), "no message is both");
                assert_written_is_read(&fields);
            }
            Err(error) if error.spares_connection() => {}
            Err(_) => return,
        }
    }
}

fn assert_written_is_read(fields: &[(Vec<u8>, Vec<u8>)]) {
    let mut block = Vec::new();
    for (name, value) in fields {
        encode_literal(&mut block, name, value);
    }
    let mut read = Vec::new();
    Decoder::new(TABLE_BYTES_MAX)
        .decode(&block, LIST_BYTES_MAX, &mut |name, value| {
            read.push((name.to_vec(), value.to_vec()))
        })
        .expect("our own block");
    assert_eq!(read, fields);
}
