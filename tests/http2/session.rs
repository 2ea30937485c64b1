//! A session around our engine: reads and writes in pieces of random size, echoes as a server, sends and collects
//! as a client.

use std::collections::{BTreeMap, VecDeque};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use uztunnel::clock;
use uztunnel::wire::hbone::{ConnectRequest, ConnectResponse, Method};
use uztunnel::wire::http2::{Connection, ErrorCode, Event, Settings, StreamId};

/// Bytes that tell streams and places in them apart.
pub fn pattern(key: u32, size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(u64::from(key));
    std::iter::repeat_with(|| random.u8(..)).take(size).collect()
}

/// Where input, output and payload are cut.
pub struct Cuts {
    random: fastrand::Rng,
    piece_bytes: usize,
    frame_bytes: usize,
}

impl Cuts {
    pub fn new(seed: u64, piece_bytes: usize) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            piece_bytes,
            frame_bytes: usize::MAX,
        }
    }

    /// DATA frames that we send have at most this payload.
    pub fn with_frames_of(self, frame_bytes: usize) -> Self {
        Self { frame_bytes, ..self }
    }

    fn piece(&mut self) -> usize {
        self.random.usize(1..=self.piece_bytes)
    }

    /// Half of the frames are as large as they may be.
    fn frame(&mut self, possible: usize) -> usize {
        let max = possible.min(self.frame_bytes);
        if self.random.bool() {
            max
        } else {
            self.random.usize(1..=max)
        }
    }
}

#[derive(Default)]
struct Tunnel {
    stream: Option<StreamId>,
    answered: bool,
    send: VecDeque<u8>,
    end: bool,
    ended: bool,
    received: Vec<u8>,
    peer_ended: bool,
}

pub struct Session {
    pub connection: Connection,
    read: ReadHalf<DuplexStream>,
    write: WriteHalf<DuplexStream>,
    cuts: Cuts,
    out: Vec<u8>,
    echo: bool,
    waiting: VecDeque<u32>,
    tunnels: BTreeMap<u32, Tunnel>,
    last: u32,
    resets: Vec<ErrorCode>,
    pongs: Vec<[u8; 8]>,
    settings_received: bool,
}

impl Session {
    pub fn client(io: DuplexStream, settings: Settings, cuts: Cuts) -> Self {
        Self::new(io, Connection::client(settings), cuts, false)
    }

    pub fn server(io: DuplexStream, settings: Settings, cuts: Cuts) -> Self {
        Self::new(io, Connection::server(settings), cuts, true)
    }

    fn new(io: DuplexStream, connection: Connection, cuts: Cuts, echo: bool) -> Self {
        let (read, write) = tokio::io::split(io);
        Self {
            connection,
            read,
            write,
            cuts,
            out: Vec::new(),
            echo,
            waiting: VecDeque::new(),
            tunnels: BTreeMap::new(),
            last: 0,
            resets: Vec::new(),
            pongs: Vec::new(),
            settings_received: false,
        }
    }

    /// Opens a tunnel as soon as the peer takes one, and sends these bytes and the end.
    pub fn send_when_possible(&mut self, key: u32, bytes: Vec<u8>) {
        self.send_open_end(key, bytes);
        self.finish(key);
    }

    pub fn send_open_end(&mut self, key: u32, bytes: Vec<u8>) {
        self.tunnels.insert(
            key,
            Tunnel {
                send: bytes.into(),
                ..Tunnel::default()
            },
        );
        self.waiting.push_back(key);
    }

    pub fn finish(&mut self, key: u32) {
        self.tunnels.get_mut(&key).expect("tunnel").end = true;
    }

    pub fn finished(&self) -> usize {
        self.tunnels
            .values()
            .filter(|tunnel| tunnel.ended && tunnel.peer_ended)
            .count()
    }

    pub fn received(&self, key: u32) -> &[u8] {
        &self.tunnels[&key].received
    }

    pub fn last_received(&self) -> &[u8] {
        self.tunnels
            .get(&self.last)
            .map_or(&[], |tunnel| &tunnel.received)
    }

    pub fn reset_last(&mut self, code: ErrorCode) {
        let tunnel = self.tunnels.remove(&self.last).expect("tunnel");
        self.connection.reset(tunnel.stream.expect("opened"), code);
    }

    pub fn resets(&self) -> &[ErrorCode] {
        &self.resets
    }

    pub fn pongs(&self) -> &[[u8; 8]] {
        &self.pongs
    }

    pub fn responses(&self) -> usize {
        self.tunnels.values().filter(|tunnel| tunnel.answered).count()
    }

    pub fn unsent(&self) -> usize {
        self.out.len()
            + self
                .tunnels
                .values()
                .map(|tunnel| tunnel.send.len())
                .sum::<usize>()
    }

    /// Moves bytes until `done`; panics when the peer closes before.
    pub async fn run_until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let mut closed = false;
        while !done(self) {
            assert!(!closed, "the peer closed the connection");
            closed = !self.turn().await;
        }
    }

    pub async fn run_until_closed(&mut self) {
        while self.turn().await {}
    }

    pub async fn flush(&mut self) {
        self.produce();
        self.write.write_all(&self.out).await.expect("write");
        self.out.clear();
    }

    pub async fn close(mut self) {
        self.connection.goaway(ErrorCode::NoError, "done");
        self.flush().await;
        self.write.shutdown().await.expect("shutdown");
        // Until the peer has closed too, so that it never writes into nothing.
        let mut rest = Vec::new();
        self.read.read_to_end(&mut rest).await.expect("read");
    }

    /// One read or one write of a random size. False when the peer has closed.
    async fn turn(&mut self) -> bool {
        self.produce();
        let mut input = vec![0; self.cuts.piece()];
        let piece = self.cuts.piece().min(self.out.len());
        tokio::select! {
            biased;
            written = self.write.write(&self.out[..piece]), if piece > 0 => match written {
                Ok(written) => drop(self.out.drain(..written)),
                Err(_) => return false,
            },
            read = self.read.read(&mut input) => match read {
                Ok(0) | Err(_) => return false,
                Ok(read) => self.take(&input[..read]),
            },
        }
        true
    }

    fn take(&mut self, input: &[u8]) {
        let mut at = 0;
        while let Some(event) = self
            .connection
            .receive(input, &mut at, clock::now())
            .expect("an honest peer")
        {
            self.on_event(event, input);
        }
        assert_eq!(at, input.len());
    }

    fn on_event(&mut self, event: Event, input: &[u8]) {
        match event {
            Event::Connect { stream, request, end } => {
                assert_eq!((request.method, end), (Method::Connect, false));
                assert_eq!(request.authority, "10.0.0.1:80");
                let key = stream.get();
                self.connection.set_key(stream, key);
                self.connection.respond(
                    stream,
                    &ConnectResponse {
                        status: 200,
                        baggage: None,
                    },
                    false,
                );
                self.tunnels.insert(
                    key,
                    Tunnel {
                        stream: Some(stream),
                        ..Tunnel::default()
                    },
                );
                self.last = key;
            }
            Event::Response {
                key, response, end, ..
            } => {
                assert_eq!((response.status, end), (200, false));
                self.tunnel(key).answered = true;
            }
            Event::Data {
                stream,
                key,
                range,
                end,
            } => {
                let payload = &input[range];
                assert!(!payload.is_empty());
                let echo = self.echo;
                let tunnel = self.tunnel(key);
                assert!(!tunnel.peer_ended);
                tunnel.received.extend_from_slice(payload);
                tunnel.peer_ended = end;
                if echo {
                    tunnel.send.extend(payload);
                    tunnel.end = end;
                }
                // The application takes it in two bites.
                let first = self.cuts.random.usize(0..=payload.len());
                self.connection.consumed(stream, first);
                self.connection.consumed(stream, payload.len() - first);
            }
            Event::End { key, .. } => {
                let echo = self.echo;
                let tunnel = self.tunnel(key);
                assert!(!tunnel.peer_ended);
                tunnel.peer_ended = true;
                tunnel.end |= echo;
            }
            Event::Reset { key, code, .. } => {
                self.resets.push(code);
                self.tunnels.remove(&key);
            }
            Event::Pong { payload } => self.pongs.push(payload),
            // Every turn looks at every stream.
            Event::Writable { stream, .. } => assert!(self.connection.send_capacity(stream) > 0),
            Event::SettingsReceived => self.settings_received = true,
            Event::ConnectionWritable | Event::GoAway { .. } => {}
        }
    }

    fn tunnel(&mut self, key: u32) -> &mut Tunnel {
        self.tunnels.get_mut(&key).expect("the key of a tunnel")
    }

    /// Opens what can be opened and fills `out`.
    fn produce(&mut self) {
        // Before the SETTINGS the engine allows what peers usually do, which is not what some tests do.
        while self.settings_received
            && self.connection.can_open()
            && let Some(key) = self.waiting.pop_front()
        {
            let request = ConnectRequest {
                authority: "10.0.0.1:80",
                baggage: Some("k8s.cluster.name=Kubernetes"),
                forwarded: None,
                traceparent: None,
                forwarded_network: None,
            };
            let stream = self.connection.open(key, &request).expect("can_open said so");
            self.tunnel(key).stream = Some(stream);
            self.last = key;
        }
        self.out.append(self.connection.output());
        let Self {
            connection,
            cuts,
            out,
            tunnels,
            ..
        } = self;
        for tunnel in tunnels.values_mut() {
            let Some(stream) = tunnel.stream else { continue };
            while out.len() < 1 << 16 && connection.may_send(stream) {
                let possible = tunnel
                    .send
                    .len()
                    .min(connection.send_capacity(stream))
                    .min(connection.frame_bytes_max());
                if possible == 0 {
                    if tunnel.end && tunnel.send.is_empty() {
                        out.extend_from_slice(&connection.data_header(stream, 0, true));
                        tunnel.ended = true;
                    }
                    break;
                }
                let len = cuts.frame(possible);
                let last = tunnel.end && len == tunnel.send.len() && cuts.random.bool();
                out.extend_from_slice(&connection.data_header(stream, len, last));
                out.extend(tunnel.send.drain(..len));
                tunnel.ended = last;
            }
        }
    }
}
