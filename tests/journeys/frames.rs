//! HTTP/2 frames by hand (RFC 9113), right or wrong as a test likes.

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// What a client says first: preface and empty SETTINGS.
pub fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Header block of a CONNECT: two literals whose names have an index in the static table (RFC 7541 appendix A).
pub fn connect_block(authority: &str) -> Vec<u8> {
    let mut block = vec![0x02, 7];
    block.extend_from_slice(b"CONNECT");
    block.extend([0x01, authority.len() as u8]);
    block.extend_from_slice(authority.as_bytes());
    block
}

/// A whole CONNECT request.
pub fn connect(stream: u32, authority: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &connect_block(authority))
}

/// The same with one header more, as a literal that is not indexed (RFC 7541 section 6.2.2).
pub fn connect_with(stream: u32, authority: &str, [name, value]: [&str; 2]) -> Vec<u8> {
    let mut block = connect_block(authority);
    block.push(0x00);
    for text in [name, value] {
        block.push(text.len() as u8);
        block.extend_from_slice(text.as_bytes());
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// A request that is no CONNECT: three entries of the static table, and whom it is for.
pub fn get(stream: u32, authority: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84, 0x01, authority.len() as u8];
    block.extend_from_slice(authority.as_bytes());
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
}

/// The first byte of the header block that answers `stream`, once it is there: an index into the static table
/// for the common statuses.
pub fn answer(received: &[u8], stream: u32) -> Option<u8> {
    answer_block(received, stream)?.first().copied()
}

/// The header block that answers `stream`, once it is there.
pub fn answer_block(received: &[u8], stream: u32) -> Option<&[u8]> {
    let mut rest = received;
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        let of = u32::from_be_bytes([rest[5], rest[6], rest[7], rest[8]]);
        let payload = rest.get(9..9 + length)?;
        if rest[3] == HEADERS && of == stream {
            return Some(payload);
        }
        rest = &rest[9 + length..];
    }
    None
}

/// What the peer lets us send on the connection, once it has said so (RFC 9113 section 6.9).
pub fn connection_window(received: &[u8]) -> Option<u32> {
    const AT_FIRST: u32 = 65_535;
    let mut rest = received;
    loop {
        let head = rest.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = rest.get(9..9 + length)?;
        if head[3] == WINDOW_UPDATE && head[5..9] == [0; 4] {
            let increment = u32::from_be_bytes(payload.try_into().expect("four bytes"));
            return Some(AT_FIRST + increment);
        }
        rest = &rest[9 + length..];
    }
}

/// `:status: 200` and `:status: 400` as indices of the static table.
pub const STATUS_200: u8 = 0x88;
pub const STATUS_400: u8 = 0x8c;

#[test]
fn an_answer_is_found_behind_other_frames() {
    let mut bytes = frame(SETTINGS, 0, 0, &[0; 6]);
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &[STATUS_200]));
    bytes.extend(frame(HEADERS, END_HEADERS, 3, &[STATUS_400]));
    assert_eq!(
        (answer(&bytes, 1), answer(&bytes, 3)),
        (Some(STATUS_200), Some(STATUS_400))
    );
    assert_eq!(answer(&bytes[..20], 1), None);
}
