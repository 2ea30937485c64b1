//! The nine bytes in front of every frame, and how control frames are written.
//!
//! Plain values and functions. Specification: RFC 9113 sections 4.1 and 6.

use std::fmt;

use super::ErrorCode;

pub const HEADER_BYTES: usize = 9;

/// RFC 9113 section 3.4.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const FLAG_END_STREAM: u8 = 0x1;
pub const FLAG_ACK: u8 = 0x1;
pub const FLAG_END_HEADERS: u8 = 0x4;
pub const FLAG_PADDED: u8 = 0x8;
pub const FLAG_PRIORITY: u8 = 0x20;

/// RFC 9113 section 6.5.2.
pub const SETTING_HEADER_TABLE_SIZE: u16 = 0x1;
pub const SETTING_ENABLE_PUSH: u16 = 0x2;
pub const SETTING_MAX_CONCURRENT_STREAMS: u16 = 0x3;
pub const SETTING_INITIAL_WINDOW_SIZE: u16 = 0x4;
pub const SETTING_MAX_FRAME_SIZE: u16 = 0x5;
pub const SETTING_MAX_HEADER_LIST_SIZE: u16 = 0x6;

/// Both windows start with this many bytes (RFC 9113 section 6.9.2).
pub const WINDOW_BYTES_DEFAULT: u32 = 65_535;
/// RFC 9113 section 6.9.1.
pub const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;
/// The range of SETTINGS_MAX_FRAME_SIZE; its start is also the default.
pub const FRAME_BYTES_MIN: u32 = 1 << 14;
pub const FRAME_BYTES_MAX: u32 = (1 << 24) - 1;
pub const STREAM_MAX: u32 = (1 << 31) - 1;

/// RFC 9113 section 6; numbers without a name are extensions, which are ignored (section 5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    Unknown(u8),
}

impl Kind {
    fn get(self) -> u8 {
        match self {
            Self::Data => 0x0,
            Self::Headers => 0x1,
            Self::Priority => 0x2,
            Self::RstStream => 0x3,
            Self::Settings => 0x4,
            Self::PushPromise => 0x5,
            Self::Ping => 0x6,
            Self::GoAway => 0x7,
            Self::WindowUpdate => 0x8,
            Self::Continuation => 0x9,
            Self::Unknown(kind) => kind,
        }
    }
}

impl From<u8> for Kind {
    fn from(kind: u8) -> Self {
        match kind {
            0x0 => Self::Data,
            0x1 => Self::Headers,
            0x2 => Self::Priority,
            0x3 => Self::RstStream,
            0x4 => Self::Settings,
            0x5 => Self::PushPromise,
            0x6 => Self::Ping,
            0x7 => Self::GoAway,
            0x8 => Self::WindowUpdate,
            0x9 => Self::Continuation,
            kind => Self::Unknown(kind),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "DATA",
            Self::Headers => "HEADERS",
            Self::Priority => "PRIORITY",
            Self::RstStream => "RST_STREAM",
            Self::Settings => "SETTINGS",
            Self::PushPromise => "PUSH_PROMISE",
            Self::Ping => "PING",
            Self::GoAway => "GOAWAY",
            Self::WindowUpdate => "WINDOW_UPDATE",
            Self::Continuation => "CONTINUATION",
            Self::Unknown(kind) => return write!(f, "type {kind:#x}"),
        })
    }
}

/// RFC 9113 section 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the payload.
    pub bytes: u32,
    pub kind: Kind,
    pub flags: u8,
    pub stream: u32,
}

impl FrameHeader {
    pub fn decode(b: &[u8; HEADER_BYTES]) -> Self {
        Self {
            bytes: u32::from_be_bytes([0, b[0], b[1], b[2]]),
            kind: Kind::from(b[3]),
            flags: b[4],
            // The reserved bit "MUST be ignored when receiving".
            stream: u32::from_be_bytes([b[5], b[6], b[7], b[8]]) & STREAM_MAX,
        }
    }

    pub fn encode(self) -> [u8; HEADER_BYTES] {
        debug_assert!(self.bytes <= FRAME_BYTES_MAX && self.stream <= STREAM_MAX);
        let [_, l0, l1, l2] = self.bytes.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind.get(), self.flags, s0, s1, s2, s3]
    }

    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

fn write(out: &mut Vec<u8>, kind: Kind, flags: u8, stream: u32, payload: &[u8]) {
    let bytes = payload.len() as u32;
    out.extend_from_slice(
        &FrameHeader {
            bytes,
            kind,
            flags,
            stream,
        }
        .encode(),
    );
    out.extend_from_slice(payload);
}

pub fn write_settings(out: &mut Vec<u8>, entries: &[(u16, u32)]) {
    let bytes = (entries.len() * 6) as u32;
    out.extend_from_slice(
        &FrameHeader {
            bytes,
            kind: Kind::Settings,
            flags: 0,
            stream: 0,
        }
        .encode(),
    );
    for (id, value) in entries {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub fn write_settings_ack(out: &mut Vec<u8>) {
    write(out, Kind::Settings, FLAG_ACK, 0, &[]);
}

pub fn write_reset(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    write(out, Kind::RstStream, 0, stream, &code.get().to_be_bytes());
}

pub fn write_window_update(out: &mut Vec<u8>, stream: u32, bytes: u32) {
    debug_assert!((1..=WINDOW_BYTES_MAX).contains(&bytes));
    write(out, Kind::WindowUpdate, 0, stream, &bytes.to_be_bytes());
}

pub fn write_ping(out: &mut Vec<u8>, ack: bool, payload: &[u8; 8]) {
    write(out, Kind::Ping, if ack { FLAG_ACK } else { 0 }, 0, payload);
}

pub fn write_goaway(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode, debug: &[u8]) {
    let bytes = (8 + debug.len()) as u32;
    out.extend_from_slice(
        &FrameHeader {
            bytes,
            kind: Kind::GoAway,
            flags: 0,
            stream: 0,
        }
        .encode(),
    );
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.get().to_be_bytes());
    out.extend_from_slice(debug);
}

/// HEADERS, and CONTINUATION when the block that `encode` appends is larger than a frame of the peer may be.
pub fn write_headers(
    out: &mut Vec<u8>,
    stream: u32,
    end: bool,
    frame_bytes_max: usize,
    encode: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    encode(out);
    let block = start + HEADER_BYTES;
    let first = (out.len() - block).min(frame_bytes_max);
    let rest = out.split_off(block + first);
    let end_stream = if end { FLAG_END_STREAM } else { 0 };
    let end_headers = if rest.is_empty() { FLAG_END_HEADERS } else { 0 };
    let header = FrameHeader {
        bytes: first as u32,
        kind: Kind::Headers,
        flags: end_stream | end_headers,
        stream,
    };
    out[start..block].copy_from_slice(&header.encode());
    let mut pieces = rest.chunks(frame_bytes_max).peekable();
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() {
            FLAG_END_HEADERS
        } else {
            0
        };
        write(out, Kind::Continuation, flags, stream, piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_encoding_and_decoding() {
        for header in [
            FrameHeader {
                bytes: 0,
                kind: Kind::Settings,
                flags: FLAG_ACK,
                stream: 0,
            },
            FrameHeader {
                bytes: FRAME_BYTES_MAX,
                kind: Kind::Data,
                flags: FLAG_PADDED,
                stream: STREAM_MAX,
            },
            FrameHeader {
                bytes: 0x010203,
                kind: Kind::Unknown(0xfe),
                flags: 0xff,
                stream: 0x0405_0607,
            },
        ] {
            assert_eq!(FrameHeader::decode(&header.encode()), header);
        }
    }

    #[test]
    fn the_reserved_bit_of_a_stream_number_is_ignored() {
        assert_eq!(FrameHeader::decode(&[0, 0, 0, 0, 0, 0x80, 0, 0, 1]).stream, 1);
    }

    #[test]
    fn every_kind_and_code_keeps_its_number() {
        for kind in 0..=u8::MAX {
            assert_eq!(Kind::from(kind).get(), kind);
        }
        for code in 0..=32 {
            assert_eq!(ErrorCode::from(code).get(), code);
        }
    }

    #[test]
    fn a_block_larger_than_a_frame_continues_in_continuation_frames() {
        let block: Vec<u8> = (0..40_000u32).map(|n| n as u8).collect();
        let mut out = vec![7];
        write_headers(&mut out, 5, true, 16_384, |out| out.extend_from_slice(&block));
        let mut at = 1;
        let mut seen = Vec::new();
        let mut joined = Vec::new();
        while at < out.len() {
            let header = FrameHeader::decode(out[at..at + 9].try_into().expect("invariant: nine bytes"));
            let end = at + 9 + header.bytes as usize;
            joined.extend_from_slice(&out[at + 9..end]);
            assert_eq!(header.stream, 5);
            seen.push((header.kind, header.flags, header.bytes));
            at = end;
        }
        assert_eq!(joined, block);
        assert_eq!(
            seen,
            [
                (Kind::Headers, FLAG_END_STREAM, 16_384),
                (Kind::Continuation, 0, 16_384),
                (Kind::Continuation, FLAG_END_HEADERS, 7_232)
            ]
        );
    }
}
