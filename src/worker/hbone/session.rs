//! One HBONE session: a TLS connection carrying CONNECT streams. A slot of its worker, plain data.
//!
//! Receiving: ciphertext is opened straight into the worker's chunk, and payload goes on to applications as
//! slices of it. Sending: frames are sealed straight into the session's send buffer; small ones of a turn share
//! a record, and everything of a turn goes out with one send at its end, never by a timer.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use crate::bridge::load::LoadShare;
use crate::limits;
use crate::runtime::oneshot;
use crate::runtime::slab::{Key, Slab};
use crate::runtime::timer::TimerId;
use crate::sys::buffer::{RecvBuffer, Slice};
use crate::sys::driver::SocketId;
use crate::tls::channel::{Channel, Opened};
use crate::tls::output::Output;
use crate::tls::verify::PeerIdentity;
use crate::tls::{Revocable, Revoked, TlsError};
use crate::wire::hbone::{IncomingRequest, IncomingResponse};
use crate::wire::http2::{Connection, ConnectionError, ErrorCode, Event, StreamId};
use crate::worker::backlog::Backlog;
use crate::worker::buffers::Buffers;
use crate::worker::hbone::carrier::Carrier;
use crate::worker::hbone::pool::PoolKey;
use crate::worker::hbone::source::Unsent;
use crate::worker::outcome::{Outcome, ends_a_copy};
use crate::worker::pods::{CountedSession, PodState};
use crate::worker::tenants::Tenant;
use crate::worker::tunnel::Tunnel;

/// Plaintext of one TLS record at most (RFC 8446 section 5.1).
const RECORD_BYTES_MAX: usize = 16_384;
/// A record with its header, inner content type, padding and tag at most (RFC 8446 section 5.2).
const RECORD_WIRE_BYTES_MAX: usize = 5 + 16_384 + 256;
const RECORD_HEADER_BYTES: usize = 5;
const FRAME_HEADER_BYTES: usize = 9;

/// Which side of the CONNECT this proxy is.
pub enum Role {
    /// Dialled by this worker's pool.
    Client { key: Rc<PoolKey> },
    /// Accepted on a pod's port 15008.
    Server,
}

/// What a session's bytes go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Socket(SocketId),
    /// A stream of another session, whose peer passes it on.
    Carrier(Key<Carrier>),
}

/// Who waits for window or room of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    Tunnel(Key<Tunnel>),
    Carrier(Key<Carrier>),
}

/// In which of the lists somebody is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Listed {
    pub window: bool,
    pub room: bool,
}

pub struct Session {
    pub role: Role,
    pub transport: Transport,
    pub channel: Channel,
    pub http2: Connection,
    pub users: Slab<StreamUser>,
    pub pod: Rc<PodState>,
    pub peer: PeerIdentity,
    pub peer_address: SocketAddr,
    pub local_address: SocketAddr,
    /// What later lists of revoked certificates are asked about, if there are any at all.
    pub revocable: Option<Box<Revocable>>,
    /// Those that wait for window. (Who waits for its own stream's window is woken by it, too.)
    pub blocked_window: Vec<Blocked>,
    /// Those that wait for room in the send buffer, first come first served.
    pub blocked_room: VecDeque<Blocked>,
    /// Bytes that applications may deliver at any moment because their receives are armed, beyond
    /// `limits::READ_BYTES_MIN` each.
    pub armed_bytes: usize,
    pub last_received: Instant,
    pub last_used: Instant,
    pub ping_sent: Option<Instant>,
    pub timer: Option<TimerId>,
    pub dirty: bool,
    /// Takes no further streams; ends when the last one has.
    pub retired: bool,
    pub stage: Stage,
    /// Nothing more can be sealed or sent.
    pub channel_broken: bool,
    /// The connection takes nothing any more, for this reason. What the peer said before that is still read.
    pub broken: Option<Ending>,
    /// Streams so far: CONNECT requests taken (server) or sent (client).
    pub served: u64,
    /// Its places in the load table and among its pod's sessions (server; a client session belongs to the
    /// connections that use it).
    _places: Option<(LoadShare, CountedSession)>,
    /// The first part of a record whose rest has not arrived.
    partial: Vec<u8>,
    output: Option<Output>,
    /// Where the record that small frames are being collected in starts.
    record_start: Option<usize>,
    /// Who causes what arrives on it.
    pub tenant: Rc<Tenant>,
    /// Receives that wait for their tenant's next turn; the driver receives nothing meanwhile.
    pub receives_waiting: usize,
    /// The kernel, or the carrier, holds a send buffer of this session.
    pub sending: bool,
    /// With so many bytes in it.
    sending_bytes: usize,
    /// What it holds for a peer that does not read, with the other sessions of its source.
    unsent: Unsent,
}

/// How near its end a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Open,
    /// Sends its last bytes; `lingers`: closes only after the peer then.
    Goodbye {
        lingers: bool,
    },
    /// Everything was sent and our direction is shut down. What still comes is read and dropped: closing a socket
    /// on it would make the kernel send RST and throw away what the peer has not got yet.
    Lingering,
}

/// Who gets what arrives on a stream.
pub struct StreamUser {
    pub stream: StreamId,
    pub state: UserState,
}

pub enum UserState {
    /// A task waits for the peer's answer to CONNECT.
    Asked {
        answer: oneshot::Sender<Answer>,
        held: Held,
    },
    /// A task prepares the other end.
    Preparing {
        held: Held,
    },
    Relaying(Key<Tunnel>),
    /// Another session's bytes are on it.
    Carrying(Key<Carrier>),
}

/// What arrived before there was somebody to give it to. Bounded by the stream's window.
#[derive(Default)]
pub struct Held {
    pub backlog: Backlog,
    pub end: bool,
    pub gone: Option<Gone>,
    /// Told when the stream is gone: the task stops what it does for it.
    pub wanted: Option<oneshot::Sender<Gone>>,
}

impl Held {
    /// The stream is gone; its task finds out, and removes the user then.
    pub fn give_up(&mut self, gone: Gone) {
        if let Some(wanted) = self.wanted.take() {
            // A task that is past that asks when it attaches the stream.
            let _ = wanted.send(gone.clone());
        }
        self.gone = Some(gone);
    }
}

/// Why a stream is gone.
#[derive(Debug, Clone)]
pub enum Gone {
    Reset(ErrorCode),
    /// With its session.
    Ended(Ending),
}

impl Gone {
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Reset(code) => Outcome::StreamReset(*code),
            Self::Ended(why) => why.outcome(),
        }
    }
}

/// The peer's answer to CONNECT.
pub enum Answer {
    Response(Box<IncomingResponse>),
    Reset(ErrorCode),
    /// The whole session ended.
    SessionClosed(Ending),
}

/// Why a session ended, for those whose streams it carried.
#[derive(Debug, Clone)]
pub enum Ending {
    /// In words.
    Said(String),
    /// The peer ended it, or the way to the peer broke.
    Lost(String),
    PodRemoved,
    Drained,
    Revoked(Revoked),
}

impl Ending {
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Said(why) => Outcome::SessionClosed(why.clone()),
            Self::Lost(why) => Outcome::SessionLost(why.clone()),
            Self::PodRemoved => Outcome::PodRemoved,
            Self::Drained => Outcome::Drained,
            Self::Revoked(revoked) => Outcome::Revoked(revoked.clone()),
        }
    }

    pub fn by_peer() -> Self {
        Self::Lost("the peer closed the connection".to_owned())
    }

    /// Its transport failed when it should `receive` or `send`.
    pub fn of_transport(what: &str, error: &io::Error) -> Self {
        let why = format!("{what}: {error}");
        match ends_a_copy(error) {
            true => Self::Lost(why),
            false => Self::Said(why),
        }
    }

    /// The same for the sessions that its streams carried.
    pub fn of_gateway(&self) -> Self {
        let why = |why| format!("the session to the network gateway ended: {why}");
        match self {
            Self::Said(said) => Self::Said(why(said)),
            Self::Lost(said) => Self::Lost(why(said)),
            Self::PodRemoved => Self::PodRemoved,
            Self::Drained => Self::Drained,
            Self::Revoked(revoked) => Self::Revoked(revoked.clone()),
        }
    }
}

/// What a receive meant, in order.
pub enum SessionEvent {
    Request {
        stream: StreamId,
        user: u32,
        request: Box<IncomingRequest>,
    },
    Response {
        stream: StreamId,
        user: u32,
        response: Box<IncomingResponse>,
        end: bool,
    },
    Data {
        stream: StreamId,
        user: u32,
        slice: Slice,
        end: bool,
    },
    End {
        stream: StreamId,
        user: u32,
    },
    Reset {
        stream: StreamId,
        user: u32,
        code: ErrorCode,
    },
    /// This stream may send again.
    Writable {
        stream: StreamId,
        user: u32,
    },
    /// All streams may send again.
    AllWritable,
    GoAway {
        code: ErrorCode,
    },
    SettingsReceived,
    Closed,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("tls error: {0}")]
    Tls(#[from] TlsError),
    #[error("h2 failed: {0}")]
    Http2(#[from] ConnectionError),
}

/// What a new session is made of.
pub struct SessionParts {
    pub role: Role,
    pub transport: Transport,
    pub channel: Channel,
    pub http2: Connection,
    pub pod: Rc<PodState>,
    pub peer: PeerIdentity,
    pub peer_address: SocketAddr,
    pub local_address: SocketAddr,
    pub revocable: Option<Box<Revocable>>,
    pub places: Option<(LoadShare, CountedSession)>,
    pub tenant: Rc<Tenant>,
    pub unsent: Unsent,
    pub now: Instant,
}

impl Session {
    pub fn new(parts: SessionParts) -> Self {
        Self {
            role: parts.role,
            transport: parts.transport,
            channel: parts.channel,
            http2: parts.http2,
            users: Slab::default(),
            pod: parts.pod,
            peer: parts.peer,
            peer_address: parts.peer_address,
            local_address: parts.local_address,
            revocable: parts.revocable,
            blocked_window: Vec::new(),
            blocked_room: VecDeque::new(),
            armed_bytes: 0,
            last_received: parts.now,
            last_used: parts.now,
            ping_sent: None,
            timer: None,
            dirty: false,
            retired: false,
            stage: Stage::Open,
            channel_broken: false,
            broken: None,
            served: 0,
            _places: parts.places,
            tenant: parts.tenant,
            receives_waiting: 0,
            partial: Vec::new(),
            output: None,
            record_start: None,
            sending: false,
            sending_bytes: 0,
            unsent: parts.unsent,
        }
    }

    /// Whether it has said goodbye: what arrives means nothing any more.
    pub fn is_closing(&self) -> bool {
        self.stage != Stage::Open
    }

    /// Whether it still waits for something of its peer.
    pub fn receives(&self) -> bool {
        self.stage != Stage::Goodbye { lingers: false }
    }

    /// The user of a stream, unless the stream has another by now.
    pub fn user_mut(&mut self, user: u32, stream: StreamId) -> Option<&mut StreamUser> {
        self.users
            .by_index_mut(user)
            .filter(|found| found.stream == stream)
    }

    pub fn add_user(&mut self, stream: StreamId, state: UserState) -> u32 {
        let key = self.users.insert(StreamUser { stream, state });
        self.http2.set_key(stream, key.index());
        key.index()
    }

    pub fn remove_user(&mut self, user: u32, stream: StreamId) -> Option<StreamUser> {
        self.user_mut(user, stream)?;
        self.users.remove_index(user)
    }

    // ---- receiving -------------------------------------------------------------------------------------

    /// Opens what arrived and appends what it means to `events`.
    pub fn receive(
        &mut self,
        mut input: &[u8],
        buffers: &mut Buffers,
        now: Instant,
        events: &mut Vec<SessionEvent>,
    ) -> Result<(), SessionError> {
        self.last_received = now;
        self.ping_sent = None;
        while !self.partial.is_empty() {
            let Some(whole) = self.complete_partial(&mut input) else {
                return Ok(());
            };
            let partial = std::mem::take(&mut self.partial);
            let result = self.open_record(&partial[..whole], buffers, now, events);
            self.partial = partial;
            self.partial.clear();
            result?;
        }
        while !input.is_empty() {
            let consumed = self.open_record(input, buffers, now, events)?;
            if consumed == 0 {
                if self.partial.capacity() == 0 {
                    self.partial = buffers.partial(RECORD_WIRE_BYTES_MAX);
                }
                self.partial.extend_from_slice(input);
                break;
            }
            input = &input[consumed..];
        }
        if self.partial.is_empty() {
            // An idle session owns no buffer.
            buffers.recycle_partial(std::mem::take(&mut self.partial));
        }
        Ok(())
    }

    /// Moves bytes from `input` until the partial record is whole; its length, or `None` when bytes are missing.
    fn complete_partial(&mut self, input: &mut &[u8]) -> Option<usize> {
        let mut need = RECORD_HEADER_BYTES;
        loop {
            let missing = need.saturating_sub(self.partial.len());
            let (now, later) = input.split_at(missing.min(input.len()));
            self.partial.extend_from_slice(now);
            *input = later;
            if self.partial.len() < need {
                return None;
            }
            let whole =
                RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([self.partial[3], self.partial[4]]));
            // A record that is too long is refused by the channel as soon as its header is seen.
            if need == whole || whole > RECORD_WIRE_BYTES_MAX {
                return Some(self.partial.len());
            }
            need = whole;
        }
    }

    /// Opens one record from the front of `input`. Returns how much of it was used; 0 when it is incomplete.
    fn open_record(
        &mut self,
        input: &[u8],
        buffers: &mut Buffers,
        now: Instant,
        events: &mut Vec<SessionEvent>,
    ) -> Result<usize, SessionError> {
        let chunk = buffers.chunk(RECORD_WIRE_BYTES_MAX);
        match self.channel.open(input, chunk.spare())? {
            Opened::Incomplete { .. } => Ok(0),
            Opened::Control { consumed } => Ok(consumed),
            Opened::Closed { consumed } => {
                events.push(SessionEvent::Closed);
                Ok(consumed)
            }
            Opened::Data { consumed, written } => {
                let from = chunk.filled();
                chunk.fill(written);
                self.parse(from, written, buffers, now, events)?;
                Ok(consumed)
            }
        }
    }

    /// Feeds `written` bytes of plaintext, at `from` in the current chunk, to the HTTP/2 engine.
    fn parse(
        &mut self,
        from: usize,
        written: usize,
        buffers: &mut Buffers,
        now: Instant,
        events: &mut Vec<SessionEvent>,
    ) -> Result<(), SessionError> {
        let chunk = buffers.chunk(0);
        let plaintext = &chunk.bytes()[from..from + written];
        let mut at = 0;
        while let Some(event) = self.http2.receive(plaintext, &mut at, now)? {
            events.push(match event {
                Event::Data {
                    stream,
                    key,
                    range,
                    end,
                } => {
                    let slice = chunk.slice(from + range.start..from + range.end);
                    SessionEvent::Data {
                        stream,
                        user: key,
                        slice,
                        end,
                    }
                }
                Event::Connect { stream, request, end } => {
                    // At once: what follows in the same receive must find the stream's user.
                    let held = Held {
                        end,
                        ..Held::default()
                    };
                    let user = self.add_user(stream, UserState::Preparing { held });
                    SessionEvent::Request {
                        stream,
                        user,
                        request,
                    }
                }
                Event::Response {
                    stream,
                    key,
                    response,
                    end,
                } => SessionEvent::Response {
                    stream,
                    user: key,
                    response,
                    end,
                },
                Event::End { stream, key } => SessionEvent::End { stream, user: key },
                Event::Reset { stream, key, code } => SessionEvent::Reset {
                    stream,
                    user: key,
                    code,
                },
                Event::Writable { stream, key } => SessionEvent::Writable { stream, user: key },
                Event::ConnectionWritable => SessionEvent::AllWritable,
                Event::GoAway { code, .. } => SessionEvent::GoAway { code },
                Event::SettingsReceived => SessionEvent::SettingsReceived,
                Event::Pong { .. } => continue,
            });
        }
        Ok(())
    }

    // ---- sending ---------------------------------------------------------------------------------------

    /// Whether an application's bytes may be sealed: the send buffer is bounded, and those of its source are together.
    pub fn has_room(&self) -> bool {
        self.has_room_within(limits::OUTPUT_SOFT_BYTES)
    }

    /// The same of a smaller bound.
    pub fn has_room_within(&self, bytes_max: usize) -> bool {
        let filled = self.output.as_ref().map_or(0, Output::len);
        match self.unsent.is_short() {
            true => filled == 0 && !self.sending,
            false => filled < bytes_max,
        }
    }

    /// What the next receive of one of its applications may ask for, of `wanted`.
    pub fn read_bytes(&self, wanted: usize) -> usize {
        let fair = match self.unsent.is_short() {
            true => limits::READ_BYTES_MIN,
            false => limits::ARMED_BYTES_MAX.saturating_sub(self.armed_bytes) + limits::READ_BYTES_MIN,
        };
        wanted.min(fair)
    }

    /// The driver, or the carrier, has `bytes` of it now; none when it was done.
    pub fn set_sending(&mut self, bytes: Option<usize>) {
        self.sending = bytes.is_some();
        self.sending_bytes = bytes.unwrap_or(0);
    }

    /// Tells its source what it holds for its peer.
    pub fn count_unsent(&mut self) {
        let filled = self.output.as_ref().map_or(0, Output::len);
        let control = self.http2.output().len();
        self.unsent.set(self.sending_bytes + filled + control);
    }

    pub fn unsent(&self) -> &Unsent {
        &self.unsent
    }

    /// Sends as much of `buffer` as the windows allow, and takes it off its front. Returns the bytes taken.
    pub fn send_data(&mut self, stream: StreamId, buffer: &mut RecvBuffer, buffers: &mut Buffers) -> usize {
        self.collect_control(buffers);
        let mut taken = 0;
        while !buffer.is_empty() {
            let frame_bytes = buffer
                .len()
                .min(self.http2.send_capacity(stream))
                .min(self.http2.frame_bytes_max());
            if frame_bytes == 0 {
                break;
            }
            let header = self.http2.data_header(stream, frame_bytes, false);
            if frame_bytes < limits::SMALL_FRAME_BYTES {
                self.collect(&[&header, &buffer.bytes()[..frame_bytes]], buffers);
                buffer.consume(frame_bytes);
            } else {
                self.seal_frame(&header, frame_bytes, buffer, buffers);
            }
            taken += frame_bytes;
        }
        taken
    }

    /// Puts who is blocked where it will be found when what its stream lacks is there.
    pub fn list(&mut self, blocked: Blocked, stream: StreamId, listed: &mut Listed) {
        if self.http2.send_capacity(stream) == 0 {
            if !std::mem::replace(&mut listed.window, true) {
                self.blocked_window.push(blocked);
            }
        } else if !std::mem::replace(&mut listed.room, true) {
            self.blocked_room.push_back(blocked);
        }
    }

    /// Takes who has gone off the lists: streams that are cut off while they wait would pile up there.
    pub fn unlist(&mut self, blocked: Blocked, listed: Listed) {
        if listed.window {
            self.blocked_window.retain(|waiting| *waiting != blocked);
        }
        if listed.room {
            self.blocked_room.retain(|waiting| *waiting != blocked);
        }
    }

    /// Sends as much of `bytes` as the windows and the send buffer have room for, and tells how much. At the price of a
    /// copy: for bytes that do not lie in a lent buffer.
    pub fn send_copied(&mut self, stream: StreamId, bytes: &[u8], buffers: &mut Buffers) -> usize {
        self.collect_control(buffers);
        let mut taken = 0;
        while taken < bytes.len() && self.has_room() {
            let frame_bytes = (bytes.len() - taken)
                .min(self.http2.send_capacity(stream))
                .min(self.http2.frame_bytes_max())
                .min(RECORD_BYTES_MAX - FRAME_HEADER_BYTES);
            if frame_bytes == 0 {
                break;
            }
            let header = self.http2.data_header(stream, frame_bytes, false);
            self.collect(&[&header, &bytes[taken..taken + frame_bytes]], buffers);
            taken += frame_bytes;
        }
        taken
    }

    /// Seals a frame out of place: the header is put in front of the payload where it was received, and the
    /// cipher writes into the send buffer. No other copy is made.
    fn seal_frame(
        &mut self,
        header: &[u8; FRAME_HEADER_BYTES],
        frame_bytes: usize,
        buffer: &mut RecvBuffer,
        buffers: &mut Buffers,
    ) {
        self.close_record(buffers);
        let output = self
            .output
            .get_or_insert_with(|| buffers.output(self.unsent.is_short()));
        let first = frame_bytes.min(RECORD_BYTES_MAX - FRAME_HEADER_BYTES);
        self.channel.seal(output, buffer.framed(header, first));
        buffer.consume(first);
        let mut left = frame_bytes - first;
        while left > 0 {
            let piece = left.min(RECORD_BYTES_MAX);
            self.channel.seal(output, &buffer.bytes()[..piece]);
            buffer.consume(piece);
            left -= piece;
        }
    }

    /// Ends our direction of a stream.
    pub fn send_end(&mut self, stream: StreamId, buffers: &mut Buffers) {
        self.collect_control(buffers);
        if let Some(header) = self.http2.end_header(stream) {
            self.collect(&[&header], buffers);
        }
    }

    /// Adds the engine's control frames: they must precede DATA of the streams that they open.
    fn collect_control(&mut self, buffers: &mut Buffers) {
        if self.http2.output().is_empty() {
            return;
        }
        let control = std::mem::take(self.http2.output());
        self.collect(&[&control], buffers);
        let mut control = control;
        control.clear();
        control.shrink_to(limits::HTTP2_OUTPUT_BYTES_KEPT);
        *self.http2.output() = control;
    }

    /// Appends to the open record, starting further ones as they fill up.
    fn collect(&mut self, pieces: &[&[u8]], buffers: &mut Buffers) {
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let output = self
                    .output
                    .get_or_insert_with(|| buffers.output(self.unsent.is_short()));
                let start = *self
                    .record_start
                    .get_or_insert_with(|| self.channel.begin(output));
                let used = output.len() - start - RECORD_HEADER_BYTES;
                let (now, later) = rest.split_at(rest.len().min(RECORD_BYTES_MAX - used));
                output.append(now);
                rest = later;
                if used + now.len() == RECORD_BYTES_MAX {
                    self.close_record(buffers);
                }
            }
        }
    }

    /// Seals the record that small frames were collected in.
    fn close_record(&mut self, buffers: &mut Buffers) {
        if let Some(start) = self.record_start.take() {
            let output = self
                .output
                .get_or_insert_with(|| buffers.output(self.unsent.is_short()));
            self.channel.finish(output, start);
        }
    }

    /// Everything that is to be sent now, sealed; `None` when there is nothing, or a send is under way.
    pub fn take_output(&mut self, buffers: &mut Buffers) -> Option<Output> {
        if self.sending {
            return None;
        }
        self.collect_control(buffers);
        self.close_record(buffers);
        if self.channel.wants_control() {
            let output = self
                .output
                .get_or_insert_with(|| buffers.output(self.unsent.is_short()));
            self.channel.flush_control(output);
        }
        self.output.take().filter(|output| !output.is_empty())
    }

    /// Adds the TLS end of this direction behind everything else.
    pub fn end_channel(&mut self, buffers: &mut Buffers) {
        self.collect_control(buffers);
        self.close_record(buffers);
        let output = self
            .output
            .get_or_insert_with(|| buffers.output(self.unsent.is_short()));
        self.channel.close_notify(output);
    }

    /// Bytes of buffers that this session owns. Zero when it is idle.
    pub fn buffered_bytes(&self) -> usize {
        self.partial.capacity() + self.output.as_ref().map_or(0, Output::capacity)
    }
}
