//! The engine against RFC 9113, rule by rule. `Bench` plays the peer with frames made by hand.

mod flow;
mod guards;
mod messages;
mod random;
mod states;
mod syntax;

use std::time::{Duration, Instant};

use super::super::frame::{
    FLAG_ACK, FLAG_END_HEADERS, FLAG_END_STREAM, FLAG_PADDED, FrameHeader, HEADER_BYTES, Kind, PREFACE,
};
use super::super::{Connection, ErrorCode, Event, KEY_NONE, OpenError, Reason, Settings, StreamId};
use super::super::{frame, hpack};
use crate::limits;
use crate::wire::hbone::{ConnectRequest, ConnectResponse, Method};

const REQUEST: ConnectRequest<'static> = ConnectRequest {
    authority: "10.0.0.1:80",
    baggage: None,
    forwarded: None,
    traceparent: None,
    forwarded_network: None,
};
const OK: ConnectResponse<'static> = ConnectResponse {
    status: 200,
    baggage: None,
};

/// An `Event` that can be compared, with the payload instead of its place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Connect(u32, String, bool),
    Response(u32, u16, bool),
    Data(u32, Vec<u8>, bool),
    End(u32),
    Reset(u32, ErrorCode),
    Writable(u32),
    ConnectionWritable,
    GoAway(u32, ErrorCode),
    Pong([u8; 8]),
    Settings,
}

fn seen(event: Event, input: &[u8]) -> Seen {
    match event {
        Event::Connect { stream, request, end } => Seen::Connect(stream.get(), request.authority, end),
        Event::Response {
            stream,
            response,
            end,
            ..
        } => Seen::Response(stream.get(), response.status, end),
        Event::Data {
            stream, range, end, ..
        } => Seen::Data(stream.get(), input[range].to_vec(), end),
        Event::End { stream, .. } => Seen::End(stream.get()),
        Event::Reset { stream, code, .. } => Seen::Reset(stream.get(), code),
        Event::Writable { stream, .. } => Seen::Writable(stream.get()),
        Event::ConnectionWritable => Seen::ConnectionWritable,
        Event::GoAway { last_stream, code } => Seen::GoAway(last_stream, code),
        Event::Pong { payload } => Seen::Pong(payload),
        Event::SettingsReceived => Seen::Settings,
    }
}

struct Bench {
    connection: Connection,
    now: Instant,
}

impl Bench {
    /// A server whose peer has sent its preface and empty SETTINGS and acknowledged ours.
    fn server(settings: Settings) -> Self {
        let mut bench = Self {
            connection: Connection::server(settings),
            now: Instant::now(),
        };
        assert_eq!(bench.feed(PREFACE), []);
        bench.greet();
        bench
    }

    fn client(settings: Settings) -> Self {
        let mut bench = Self {
            connection: Connection::client(settings),
            now: Instant::now(),
        };
        assert!(bench.connection.output().starts_with(PREFACE));
        bench.connection.output().drain(..PREFACE.len());
        bench.greet();
        bench
    }

    fn greet(&mut self) {
        assert_eq!(self.feed(&settings(&[])), [Seen::Settings]);
        assert_eq!(self.feed(&raw(Kind::Settings, FLAG_ACK, 0, &[])), []);
        self.sent();
    }

    fn try_feed(&mut self, input: &[u8]) -> Result<Vec<Seen>, Reason> {
        let mut at = 0;
        let mut all = Vec::new();
        loop {
            match self.connection.receive(input, &mut at, self.now) {
                Ok(Some(event)) => all.push(seen(event, input)),
                Ok(None) => {
                    assert_eq!(at, input.len(), "all input is used");
                    return Ok(all);
                }
                Err(error) => {
                    assert_eq!(error.code, error.reason.code());
                    return Err(error.reason);
                }
            }
        }
    }

    fn feed(&mut self, input: &[u8]) -> Vec<Seen> {
        self.try_feed(input).expect("input that breaks no rule")
    }

    fn refuse(&mut self, input: &[u8]) -> Reason {
        let reason = self.try_feed(input).expect_err("input that ends the connection");
        assert_eq!(self.try_feed(b"").expect_err("it stays failed"), reason);
        reason
    }

    /// The frames in `output`, which is emptied.
    fn sent(&mut self) -> Vec<(Kind, u8, u32, Vec<u8>)> {
        let bytes = std::mem::take(self.connection.output());
        let mut frames = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let header = bytes[at..at + HEADER_BYTES]
                .try_into()
                .expect("invariant: nine bytes");
            let header = FrameHeader::decode(header);
            let end = at + HEADER_BYTES + header.bytes as usize;
            frames.push((
                header.kind,
                header.flags,
                header.stream,
                bytes[at + HEADER_BYTES..end].to_vec(),
            ));
            at = end;
        }
        frames
    }

    /// Window updates in `output` as (stream, bytes); nothing else may be there.
    fn credits(&mut self) -> Vec<(u32, u32)> {
        let word = |payload: Vec<u8>| u32::from_be_bytes(payload.try_into().expect("four bytes"));
        self.sent()
            .into_iter()
            .map(|(kind, _, stream, payload)| {
                assert_eq!(kind, Kind::WindowUpdate);
                (stream, word(payload))
            })
            .collect()
    }

    /// RST_STREAM frames in `output`, as (stream, code); nothing else may be there.
    fn resets(&mut self) -> Vec<(u32, ErrorCode)> {
        let word = |payload: Vec<u8>| u32::from_be_bytes(payload.try_into().expect("four bytes"));
        self.sent()
            .into_iter()
            .map(|(kind, _, stream, payload)| {
                assert_eq!(kind, Kind::RstStream);
                (stream, ErrorCode::from(word(payload)))
            })
            .collect()
    }

    /// A request that was answered with 200 (server).
    fn accept(&mut self, number: u32) -> StreamId {
        assert_eq!(
            self.feed(&request(number)),
            [Seen::Connect(number, "10.0.0.1:80".into(), false)]
        );
        self.connection.respond(StreamId(number), &OK, false);
        self.sent();
        StreamId(number)
    }

    /// A stream that the peer answered with 200 (client).
    fn open(&mut self) -> StreamId {
        let stream = self.connection.open(7, &REQUEST).expect("a stream is left");
        assert_eq!(
            self.feed(&response(stream.get(), 200)),
            [Seen::Response(stream.get(), 200, false)]
        );
        self.sent();
        stream
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
    }
}

fn raw(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        bytes: payload.len() as u32,
        kind,
        flags,
        stream,
    };
    [header.encode().as_slice(), payload].concat()
}

fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_settings(&mut out, entries);
    out
}

fn request_block() -> Vec<u8> {
    let mut block = Vec::new();
    REQUEST.encode(&mut block);
    block
}

fn request(stream: u32) -> Vec<u8> {
    raw(Kind::Headers, FLAG_END_HEADERS, stream, &request_block())
}

fn response(stream: u32, status: u16) -> Vec<u8> {
    let mut block = Vec::new();
    ConnectResponse {
        status,
        baggage: None,
    }
    .encode(&mut block);
    raw(Kind::Headers, FLAG_END_HEADERS, stream, &block)
}

fn data(stream: u32, payload: &[u8]) -> Vec<u8> {
    raw(Kind::Data, 0, stream, payload)
}

fn last_data(stream: u32, payload: &[u8]) -> Vec<u8> {
    raw(Kind::Data, FLAG_END_STREAM, stream, payload)
}

fn padded(payload: &[u8], padding: u8) -> Vec<u8> {
    [&[padding], payload, &vec![0; padding as usize]].concat()
}

fn reset(stream: u32, code: ErrorCode) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_reset(&mut out, stream, code);
    out
}

fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    raw(Kind::WindowUpdate, 0, stream, &bytes.to_be_bytes())
}

fn goaway(last: u32, code: ErrorCode) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_goaway(&mut out, last, code, b"bye");
    out
}
