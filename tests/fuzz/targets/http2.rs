//! Frames of a peer. The first octet says who it is (even: a client, odd: a server with three requests of ours);
//! the rest is what it sends, after the preface.
//!
//! Three sessions get the same bytes: one in a piece, one octet by octet, which must see the same, and one whose
//! applications read, answer and reset.

use std::time::Instant;

use uztunnel::wire::hbone::{ConnectRequest, ConnectResponse};
use uztunnel::wire::http2::frame::PREFACE;
use uztunnel::wire::http2::{Connection, Event, Settings};

const MEMORY_BYTES_MAX: usize = 3 << 20;
const OK: ConnectResponse<'static> = ConnectResponse {
    status: 200,
    baggage: None,
};

pub fn run(input: &[u8]) {
    let Some((&role, bytes)) = input.split_first() else {
        return;
    };
    let now = Instant::now();
    let whole = Session::new(role).feed(&[bytes], now, Application::Idle);
    let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
    let cut = Session::new(role).feed(&pieces, now, Application::Idle);
    assert_eq!(
        whole.seen, cut.seen,
        "events do not depend on how the input is cut"
    );
    assert_eq!(
        whole.output, cut.output,
        "answers do not depend on how the input is cut"
    );
    Session::new(role).feed(&[bytes], now, Application::Busy);
}

#[derive(Clone, Copy, PartialEq)]
enum Application {
    /// Answers requests and does nothing else.
    Idle,
    /// Reads, ends and resets.
    Busy,
}

struct Session {
    connection: Connection,
    settings: Settings,
    seen: Vec<String>,
    output: Vec<u8>,
    now: Instant,
}

impl Session {
    fn new(role: u8) -> Self {
        let now = Instant::now();
        let client = role % 2 == 1;
        // Small enough that short inputs reach the bounds.
        let base = if client {
            Settings::client()
        } else {
            Settings::server()
        };
        let settings = Settings {
            stream_window_bytes: 100,
            streams_max: 4,
            header_list_bytes_max: 500,
            ..base
        };
        if !client {
            let mut session = Self::of(Connection::server(settings), settings, now);
            session
                .connection
                .receive(PREFACE, &mut 0, now)
                .expect("the preface");
            return session;
        }
        let mut session = Self::of(Connection::client(settings), settings, now);
        for key in 0..3 {
            let request = ConnectRequest {
                authority: "10.0.0.1:80",
                ..ConnectRequest::default()
            };
            session.connection.open(key, &request).expect("a stream is left");
        }
        session
    }

    fn of(connection: Connection, settings: Settings, now: Instant) -> Self {
        Self {
            connection,
            settings,
            seen: Vec::new(),
            output: Vec::new(),
            now,
        }
    }

    fn feed(mut self, pieces: &[&[u8]], now: Instant, application: Application) -> Self {
        self.now = now;
        for piece in pieces {
            let mut at = 0;
            loop {
                match self.connection.receive(piece, &mut at, now) {
                    Ok(Some(event)) => self.on_event(event, piece, application),
                    Ok(None) => break,
                    Err(error) => {
                        self.seen.push(error.to_string());
                        self.connection.close(error.code, &error.to_string());
                        self.output.append(self.connection.output());
                        return self;
                    }
                }
                self.check();
            }
            assert_eq!(at, piece.len(), "all input is used");
            self.check();
        }
        self.output.append(self.connection.output());
        self
    }

    fn check(&self) {
        assert!(self.connection.memory_bytes() <= MEMORY_BYTES_MAX);
        assert!(self.connection.streams_open() <= 4);
        let held_max = self.settings.connection_window_bytes + self.settings.unread_bytes_max;
        assert!(self.connection.unread_bytes_all() <= u64::from(held_max));
    }

    fn on_event(&mut self, event: Event, input: &[u8], application: Application) {
        let busy = application == Application::Busy;
        match event {
            Event::Connect { stream, request, end } => {
                self.seen.push(format!("connect {stream:?} {request:?} {end}"));
                self.connection.set_key(stream, stream.get());
                self.connection
                    .respond(stream, &OK, busy && stream.get() % 3 == 0);
            }
            Event::Data {
                stream,
                key,
                range,
                end,
            } => {
                let payload = &input[range];
                assert!(!payload.is_empty());
                for byte in payload {
                    self.seen.push(format!("{byte} on {stream:?} {key}"));
                }
                if end {
                    self.seen.push(format!("end {stream:?} {key}"));
                }
                if busy {
                    self.connection.consumed(stream, payload.len().div_ceil(2));
                    match payload[0] % 4 {
                        0 => self
                            .connection
                            .reset(stream, uztunnel::wire::http2::ErrorCode::Cancel),
                        1 if self.connection.may_send(stream) => {
                            let len = self
                                .connection
                                .send_capacity(stream)
                                .min(self.connection.frame_bytes_max());
                            self.connection.data_header(stream, len, true);
                        }
                        _ => {}
                    }
                }
            }
            Event::End { stream, key } => self.seen.push(format!("end {stream:?} {key}")),
            other => self.seen.push(format!("{other:?}")),
        }
    }
}
