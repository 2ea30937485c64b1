//! HTTP/2 for CONNECT tunnels: what HBONE needs of RFC 9113 and nothing else, as a machine that turns bytes into
//! events and calls into bytes.
//!
//! Owned by one session on one worker thread. Pure: no descriptor, no clock, no randomness; time arrives as an
//! argument and drives the rate guards only. DATA payload is never copied or buffered here: events name ranges
//! of the caller's input, and the caller sends payload itself behind `Connection::data_header`.
//!
//! Invariants:
//! * Flow control is exact in both directions; a peer that sends beyond a window ends the connection.
//! * What a peer can make this connection hold is bounded by `limits.rs`; `Connection::memory_bytes` reports it.
//! * No allocation per DATA frame, constant work per frame (a SETTINGS or GOAWAY frame visits every stream).
//!
//! Specification: RFC 9113 (HTTP/2), RFC 7541 (HPACK), `CONNECT` of RFC 9113 section 8.5. Absent on purpose:
//! push, priorities, upgrade from HTTP/1.1, extended CONNECT, request bodies that are not tunnels.

pub mod connection;
pub mod error;
mod flow;
pub mod frame;
mod guard;
pub mod hpack;
mod stream;

use std::ops::Range;

use crate::limits;
use crate::wire::hbone;

pub use connection::Connection;
pub use error::{ConnectionError, ErrorCode, OpenError, Reason};

/// The number of a stream on its connection. Never reused, so a late call cannot hit another stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u32);

impl StreamId {
    pub fn get(self) -> u32 {
        self.0
    }
}

/// The key of a stream until `Connection::set_key` names another one (server; a client gives it to `open`).
pub const KEY_NONE: u32 = u32::MAX;

/// What we grant the peer. Values outside what RFC 9113 allows are brought to the nearest allowed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// SETTINGS_INITIAL_WINDOW_SIZE: bytes of one stream which its application has not taken yet.
    pub stream_window_bytes: u32,
    /// Bytes the peer may have in flight on all streams together; at least 65,535 (section 6.9.2 has no way to
    /// shrink it).
    pub connection_window_bytes: u32,
    /// SETTINGS_MAX_FRAME_SIZE.
    pub frame_bytes_max: u32,
    /// SETTINGS_MAX_CONCURRENT_STREAMS: streams that the peer may have open (server).
    pub streams_max: u32,
    /// SETTINGS_MAX_HEADER_LIST_SIZE, as RFC 9113 section 6.5.2 counts.
    pub header_list_bytes_max: u32,
    /// Bytes that streams with slow readers may hold before they take from the connection window. Up to this
    /// much the connection window is given back at receipt, so that blocked readers do not stall the other
    /// streams; beyond it the window shrinks. All streams together never hold more than
    /// `connection_window_bytes + unread_bytes_max`.
    pub unread_bytes_max: u32,
}

impl Settings {
    pub fn client() -> Self {
        Self {
            stream_window_bytes: limits::HTTP2_STREAM_WINDOW_BYTES,
            connection_window_bytes: limits::HTTP2_CONNECTION_WINDOW_BYTES,
            frame_bytes_max: limits::HTTP2_FRAME_BYTES,
            streams_max: 0,
            header_list_bytes_max: limits::HTTP2_HEADER_LIST_CLIENT_BYTES,
            unread_bytes_max: limits::HTTP2_UNREAD_BYTES,
        }
    }

    pub fn server() -> Self {
        Self {
            streams_max: limits::HTTP2_STREAMS,
            header_list_bytes_max: limits::HTTP2_HEADER_LIST_SERVER_BYTES,
            ..Self::client()
        }
    }
}

/// What the peer did. `key` is what the owner attached to the stream by `open` or `set_key`.
#[derive(Debug)]
pub enum Event {
    /// Server: a request arrived. Any method; the answer is `Connection::respond` or `Connection::reset`.
    Connect {
        stream: StreamId,
        request: Box<hbone::IncomingRequest>,
        end: bool,
    },
    /// Client: the final answer to a request arrived (informational ones are skipped, RFC 9113 section 8.1).
    Response {
        stream: StreamId,
        key: u32,
        response: Box<hbone::IncomingResponse>,
        end: bool,
    },
    /// Payload is `input[range]`, never empty. It counts as unread until `Connection::consumed`.
    Data {
        stream: StreamId,
        key: u32,
        range: Range<usize>,
        end: bool,
    },
    /// The peer ended its direction without payload.
    End { stream: StreamId, key: u32 },
    /// The stream is gone, by RST_STREAM of the peer, by GOAWAY or because the peer broke a rule on it. The
    /// engine has forgotten it already.
    Reset {
        stream: StreamId,
        key: u32,
        code: ErrorCode,
    },
    /// `send_capacity` of this stream went from 0 to more because of the stream's window.
    Writable { stream: StreamId, key: u32 },
    /// The connection window went from 0 to more: look at the streams that have something to send.
    ConnectionWritable,
    /// The peer opens no further work for us. Streams above `last_stream` were reported as `Reset` with
    /// `RefusedStream` before this event; the others go on.
    GoAway { last_stream: u32, code: ErrorCode },
    /// The answer to `Connection::ping`.
    Pong { payload: [u8; 8] },
    /// SETTINGS arrived: `frame_bytes_max` and `can_open` may have changed.
    SettingsReceived,
}
