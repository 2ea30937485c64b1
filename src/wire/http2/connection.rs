//! One HTTP/2 connection: the calls of its owner. What arrives is handled in `connection/receive.rs` (bytes to
//! frames), `connection/frames.rs` (frames to events), `connection/settings.rs` and `connection/headers.rs`.
//!
//! Owned by one session on one worker thread; nothing here blocks, sleeps or fails on a late call: a stream that
//! is gone takes every call as a no-op. Specification: RFC 9113, cited where a rule is kept.

mod frames;
mod headers;
mod receive;
mod settings;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::flow::{ReceiveWindow, SendWindow};
use super::frame::{self, FLAG_END_STREAM, FrameHeader, HEADER_BYTES, Kind};
use super::guard::{self, Guard};
use super::hpack;
use super::stream::{Answer, Phase, Stream, Streams};
use super::{ConnectionError, ErrorCode, Event, OpenError, Settings, StreamId};
use crate::limits;
use crate::planted::{Bug, is_planted};
use crate::wire::hbone;

use receive::Parser;

/// The engine. See the header of `wire::http2`.
pub struct Connection {
    role: Role,
    ours: Settings,
    peer: PeerSettings,
    /// Whether the peer has acknowledged our SETTINGS (RFC 9113 section 6.5.3).
    ours_acknowledged: bool,
    streams: Streams,
    send: SendWindow,
    receive: ReceiveWindow,
    /// The number of our next stream (client).
    number_next: u32,
    /// The highest stream that the peer opened, refused ones included (server).
    number_peer: u32,
    goaway: Goaway,
    parser: Parser,
    decoder: hpack::Decoder,
    /// Tell the peer's decoder that our encoder uses no table (RFC 7541 section 4.2).
    table_update_due: bool,
    /// The peer's decoder has been told.
    table_update_sent: bool,
    pings_unanswered: u32,
    guard: Guard,
    /// Events of frames that cause more than one.
    events: VecDeque<Event>,
    output: Vec<u8>,
    failed: Option<ConnectionError>,
}

/// Bytes of the connection's windows, in either direction.
#[cfg(feature = "sim")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    pub may_send: i64,
    pub granted: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// RFC 9113 section 6.5.2, as far as it binds us. MAX_HEADER_LIST_SIZE is advice that we do not need: a peer that
/// finds a request too large answers so.
#[derive(Debug, Clone, Copy)]
struct PeerSettings {
    stream_window_bytes: u32,
    frame_bytes_max: u32,
    streams_max: u32,
    received: bool,
}

/// Last stream numbers of GOAWAY frames (RFC 9113 section 6.8).
#[derive(Debug, Clone, Copy, Default)]
struct Goaway {
    sent: Option<u32>,
    received: Option<u32>,
    /// A server's first GOAWAY and the PING behind it are under way.
    announced: bool,
}

/// The PING whose answer shows that a client has seen our first GOAWAY.
const PING_AFTER_GOAWAY: [u8; 8] = *b"goodbye?";

impl Connection {
    /// `output` holds the preface, SETTINGS and the connection's window.
    pub fn client(settings: Settings) -> Self {
        let mut connection = Self::new(Role::Client, settings);
        connection.output.extend_from_slice(frame::PREFACE);
        connection.greet();
        connection
    }

    /// `output` holds SETTINGS and the connection's window, to be sent without waiting for the client.
    pub fn server(settings: Settings) -> Self {
        let mut connection = Self::new(Role::Server, settings);
        connection.greet();
        connection
    }

    fn new(role: Role, settings: Settings) -> Self {
        let ours = Settings {
            stream_window_bytes: settings.stream_window_bytes.min(frame::WINDOW_BYTES_MAX),
            connection_window_bytes: settings
                .connection_window_bytes
                .clamp(frame::WINDOW_BYTES_DEFAULT, frame::WINDOW_BYTES_MAX),
            frame_bytes_max: settings
                .frame_bytes_max
                .clamp(frame::FRAME_BYTES_MIN, frame::FRAME_BYTES_MAX),
            ..settings
        };
        Self {
            role,
            ours,
            peer: PeerSettings {
                stream_window_bytes: frame::WINDOW_BYTES_DEFAULT,
                frame_bytes_max: frame::FRAME_BYTES_MIN,
                streams_max: limits::HTTP2_STREAMS_ASSUMED,
                received: false,
            },
            ours_acknowledged: false,
            streams: Streams::default(),
            send: SendWindow::new(frame::WINDOW_BYTES_DEFAULT),
            receive: ReceiveWindow::connection(ours.connection_window_bytes, ours.unread_bytes_max),
            number_next: 1,
            number_peer: 0,
            goaway: Goaway::default(),
            parser: Parser::new(role),
            decoder: hpack::Decoder::new(limits::HTTP2_HEADER_TABLE_BYTES),
            table_update_due: false,
            table_update_sent: false,
            pings_unanswered: 0,
            guard: Guard::default(),
            events: VecDeque::new(),
            output: Vec::new(),
            failed: None,
        }
    }

    /// RFC 9113 section 3.4: SETTINGS are the first frame of both sides.
    fn greet(&mut self) {
        let mut entries = vec![
            (frame::SETTING_INITIAL_WINDOW_SIZE, self.ours.stream_window_bytes),
            (frame::SETTING_MAX_FRAME_SIZE, self.ours.frame_bytes_max),
            (
                frame::SETTING_MAX_HEADER_LIST_SIZE,
                self.ours.header_list_bytes_max,
            ),
        ];
        match self.role {
            Role::Client => entries.push((frame::SETTING_ENABLE_PUSH, 0)),
            Role::Server => entries.push((frame::SETTING_MAX_CONCURRENT_STREAMS, self.ours.streams_max)),
        }
        frame::write_settings(&mut self.output, &entries);
        if let Some(bytes) = self.receive.raise() {
            frame::write_window_update(&mut self.output, 0, bytes);
        }
    }

    /// Control frames to be sent, in order, before any DATA header made after them. The caller takes them out.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Opens a stream with a CONNECT request. Events of the stream carry `key`.
    pub fn open(&mut self, key: u32, request: &hbone::ConnectRequest<'_>) -> Result<StreamId, OpenError> {
        self.check_open()?;
        let number = self.number_next;
        if !is_planted(Bug::StreamIdReused) || number != 5 {
            self.number_next += 2;
        }
        self.insert(number, key);
        self.write_headers(number, false, |out| request.encode(out));
        Ok(StreamId(number))
    }

    pub fn can_open(&self) -> bool {
        self.check_open().is_ok()
    }

    fn check_open(&self) -> Result<(), OpenError> {
        if self.failed.is_some() {
            return Err(OpenError::Failed);
        }
        // RFC 9113 section 6.8; who said goodbye does not come back either.
        if self.goaway.received.is_some() || self.goaway.sent.is_some() {
            return Err(OpenError::GoingAway);
        }
        // Section 5.1.1: "a client that is unable to establish a new stream identifier can establish a new
        // connection".
        if self.role == Role::Server || self.number_next > frame::STREAM_MAX {
            return Err(OpenError::NumbersUsed);
        }
        // Section 5.1.2.
        if self.streams.open() >= self.peer.streams_max as usize {
            return Err(OpenError::StreamsMax(self.peer.streams_max));
        }
        Ok(())
    }

    /// Answers a request. With `end` our direction is over; a client that goes on sending is stopped by `reset`
    /// with `NoError` (RFC 9113 section 8.1).
    pub fn respond(&mut self, stream: StreamId, response: &hbone::ConnectResponse<'_>, end: bool) {
        let Some(entry) = self.streams.get_mut(stream.0) else {
            return;
        };
        if self.role == Role::Client || entry.answer == Answer::Given || !entry.phase.may_send() {
            return;
        }
        entry.answer = Answer::Given;
        self.write_headers(stream.0, end, |out| response.encode(out));
        if end {
            self.streams.end_local(stream.0);
        }
    }

    /// Events of this stream carry `key` from now on.
    pub fn set_key(&mut self, stream: StreamId, key: u32) {
        if let Some(entry) = self.streams.get_mut(stream.0) {
            entry.key = key;
        }
    }

    /// True while END_STREAM has not been sent and the stream lives.
    pub fn may_send(&self, stream: StreamId) -> bool {
        self.streams
            .get(stream.0)
            .is_some_and(|entry| entry.phase.may_send())
    }

    /// Payload bytes that may be sent on the stream now.
    pub fn send_capacity(&self, stream: StreamId) -> usize {
        match self.streams.get(stream.0) {
            Some(entry) if entry.phase.may_send() => entry.send.available().min(self.send.available()),
            Some(_) | None => 0,
        }
    }

    /// The largest payload of one DATA frame.
    pub fn frame_bytes_max(&self) -> usize {
        self.peer.frame_bytes_max as usize
    }

    /// The header of a DATA frame; the caller sends it and then `len` bytes of payload, with no other bytes of
    /// this connection between them. `len` is at most `send_capacity` and `frame_bytes_max`, and 0 only with
    /// `end`. Panics otherwise, and when `may_send` is false: the connection would be broken at the peer.
    pub fn data_header(&mut self, stream: StreamId, len: usize, end: bool) -> [u8; HEADER_BYTES] {
        assert!(
            len <= self.frame_bytes_max(),
            "invariant: a frame fits what the peer takes"
        );
        assert!(
            len > 0 || end,
            "invariant: an empty DATA frame only ends a stream"
        );
        let entry = self
            .streams
            .get_mut(stream.0)
            .expect("invariant: DATA goes to a live stream");
        assert!(entry.phase.may_send(), "invariant: nothing follows END_STREAM");
        entry.send.take(len);
        self.send.take(len);
        self.guard.data_sent(len);
        if end {
            self.streams.end_local(stream.0);
        }
        let flags = if end { FLAG_END_STREAM } else { 0 };
        FrameHeader {
            bytes: len as u32,
            kind: Kind::Data,
            flags,
            stream: stream.0,
        }
        .encode()
    }

    /// The header of the empty DATA frame that ends our direction; `None` when the stream is gone or ended, as
    /// after a reset by the peer whose event has not been handled yet.
    pub fn end_header(&mut self, stream: StreamId) -> Option<[u8; HEADER_BYTES]> {
        self.may_send(stream).then(|| self.data_header(stream, 0, true))
    }

    /// The application took `bytes` of this stream: they go back to the windows, in WINDOW_UPDATEs of at least
    /// half a window.
    pub fn consumed(&mut self, stream: StreamId, bytes: usize) {
        let Some(entry) = self.streams.get_mut(stream.0) else {
            return;
        };
        let unread = entry.receive.unread();
        let bytes = (bytes as u64).min(unread);
        let tiny = guard::tiny_released(entry.tiny_held, bytes, unread);
        entry.tiny_held -= tiny;
        self.guard.release_tiny(tiny);
        entry.receive.consume(bytes);
        self.receive.consume(bytes);
        self.credit_stream(stream.0);
        self.credit_connection();
        self.streams.forget_if_drained(stream.0);
    }

    /// Gives the stream up. What it holds unread goes back to the connection window at once; what still arrives
    /// on it is dropped and credited.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        if let Some(entry) = self.forget(stream.0)
            && entry.phase != Phase::Draining
        {
            frame::write_reset(&mut self.output, stream.0, code);
        }
    }

    /// Asks the peer for a sign of life: `Event::Pong` with the same payload. Nothing is sent while
    /// `HTTP2_PINGS_UNANSWERED` are under way.
    pub fn ping(&mut self, payload: [u8; 8]) {
        if self.pings_unanswered < limits::HTTP2_PINGS_UNANSWERED {
            self.pings_unanswered += 1;
            frame::write_ping(&mut self.output, false, &payload);
        }
    }

    /// Says that no further streams should be opened. What a client sent before it heard of it is still served: until
    /// it has answered a PING; `close` follows by itself then. RFC 9113 section 6.8: "This ensures that a connection
    /// can be cleanly shut down without losing requests." A client, which is sent no requests, closes at once.
    pub fn goaway(&mut self, code: ErrorCode, reason: &str) {
        if self.role == Role::Client || self.is_announcing() || self.goaway.sent.is_some() {
            self.close(code, reason);
            return;
        }
        self.goaway.announced = true;
        frame::write_goaway(&mut self.output, frame::STREAM_MAX, code, short_text(reason));
        frame::write_ping(&mut self.output, false, &PING_AFTER_GOAWAY);
        self.pings_unanswered += 1;
    }

    /// Whether streams of the client are still served although it was told to open none.
    pub fn is_announcing(&self) -> bool {
        self.goaway.announced
    }

    /// Says that no further stream of the peer is served; later ones are dropped without an answer, which the
    /// peer may retry elsewhere (RFC 9113 section 6.8). Live streams go on. May be called again, with another
    /// code.
    pub fn close(&mut self, code: ErrorCode, reason: &str) {
        self.goaway.announced = false;
        // "Endpoints MUST NOT increase the value they send in the last stream identifier."
        let last = self
            .goaway
            .sent
            .map_or(self.number_peer, |sent| sent.min(self.number_peer));
        let last = match is_planted(Bug::GoAwayLosesLastStream) {
            true => last.saturating_sub(2),
            false => last,
        };
        self.goaway.sent = Some(last);
        frame::write_goaway(&mut self.output, last, code, short_text(reason));
    }

    /// Streams with an open direction.
    pub fn streams_open(&self) -> usize {
        self.streams.open()
    }

    /// True when no stream is open and none holds unread bytes.
    pub fn is_idle(&self) -> bool {
        self.streams.len() == 0
    }

    /// Bytes of this stream that were delivered, or are announced by a frame under way, and not consumed.
    pub fn unread_bytes(&self, stream: StreamId) -> u64 {
        self.streams
            .get(stream.0)
            .map_or(0, |entry| entry.receive.unread())
    }

    /// The same for all streams together: at most `connection_window_bytes + unread_bytes_max`.
    pub fn unread_bytes_all(&self) -> u64 {
        self.receive.unread()
    }

    /// What the windows of the connection are now: for tests that look at both of its ends.
    #[cfg(feature = "sim")]
    pub fn credit(&self) -> Credit {
        Credit {
            may_send: self.send.signed(),
            granted: self.receive.granted(),
        }
    }

    /// Streams that the peer lets us have open; `HTTP2_STREAMS_ASSUMED` before its SETTINGS.
    pub fn streams_max(&self) -> u32 {
        self.peer.streams_max
    }

    /// True when either side has sent GOAWAY.
    pub fn is_going_away(&self) -> bool {
        self.goaway.announced || self.goaway.sent.is_some() || self.goaway.received.is_some()
    }

    /// What the peer makes us hold here. Payload is with the caller: see `unread_bytes_all`.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.output.capacity()
            + self.parser.memory_bytes()
            + self.decoder.memory_bytes()
            + self.streams.memory_bytes()
            + self.events.capacity() * size_of::<Event>()
    }

    fn insert(&mut self, number: u32, key: u32) {
        // Before the acknowledgement the peer may go by the window that RFC 9113 section 6.9.2 starts with.
        let granted = if self.ours_acknowledged {
            self.ours.stream_window_bytes
        } else {
            self.ours.stream_window_bytes.max(frame::WINDOW_BYTES_DEFAULT)
        };
        let stream = Stream {
            key,
            phase: Phase::Open,
            answer: Answer::Awaited,
            send: SendWindow::new(self.peer.stream_window_bytes),
            receive: ReceiveWindow::stream(self.ours.stream_window_bytes, granted),
            tiny_held: 0,
        };
        self.streams.insert(number, stream);
    }

    /// Takes a stream out of the table and gives its unread bytes back to the connection window.
    fn forget(&mut self, number: u32) -> Option<Stream> {
        let stream = self.streams.remove(number)?;
        self.guard.release_tiny(stream.tiny_held);
        if !is_planted(Bug::WindowKeptAfterReset) {
            self.receive.consume(stream.receive.unread());
        }
        self.credit_connection();
        Some(stream)
    }

    fn credit_stream(&mut self, number: u32) {
        if let Some(stream) = self.streams.get_mut(number)
            && stream.phase.may_receive()
            && let Some(bytes) = stream.receive.update()
        {
            frame::write_window_update(&mut self.output, number, bytes);
        }
    }

    fn credit_connection(&mut self) {
        if let Some(bytes) = self.receive.update() {
            frame::write_window_update(&mut self.output, 0, bytes);
        }
    }

    fn write_headers(&mut self, number: u32, end: bool, encode: impl FnOnce(&mut Vec<u8>)) {
        let table_update = std::mem::take(&mut self.table_update_due);
        self.table_update_sent |= table_update;
        frame::write_headers(
            &mut self.output,
            number,
            end,
            self.peer.frame_bytes_max as usize,
            |out| {
                if table_update {
                    // RFC 7541 section 6.3: the dynamic table has 0 bytes.
                    out.push(0x20);
                }
                encode(out);
            },
        );
    }
}

/// What a GOAWAY carries of a text.
fn short_text(reason: &str) -> &[u8] {
    &reason.as_bytes()[..reason.len().min(limits::HTTP2_GOAWAY_TEXT_BYTES)]
}
