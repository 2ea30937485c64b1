//! The relay between an application's socket and a CONNECT stream: a slot, moved by completions.
//!
//! The way of a byte: received from the application into a lent buffer, sealed from there into the session's
//! send buffer; or opened by the session into a chunk, and sent from there to the application. Window goes back
//! to the peer only after the application's socket took the bytes, so an application that does not read stops
//! its own stream and nothing else.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use super::backlog::{Backlog, Reader};
use super::core::{Core, TimerEvent};
use super::hbone::session::{Blocked, Ending, Gone, Held, Listed, Session, UserState};
use super::outcome::{Outcome, ends_a_copy};
use super::owner::{Owned, Side};
use super::pods::PodState;
use super::room::Place;
use super::telemetry::Account;
use super::tenants::Tenant;
use crate::bridge::load::LoadShare;
use crate::bridge::log::Direction;
use crate::limits;
use crate::planted::{Bug, is_planted};
use crate::runtime::slab::Key;
use crate::runtime::timer::TimerId;
use crate::sys::buffer::{Payload, RecvBuffer, Slice};
use crate::sys::driver::{Close, Driver, Event, ReceiveMode, Received, SendStatus, SocketId};
use crate::wire::http2::{ErrorCode, StreamId};

pub struct Tunnel {
    pub app: SocketId,
    pub session: Key<Session>,
    pub stream: StreamId,
    pub user: u32,
    reading: Reading,
    /// How much the next receive asks for: grows while the application fills it.
    read_bytes: usize,
    /// For the application, in order.
    pub(super) queue: Backlog,
    writing: Writing,
    pub account: Box<Account>,
    /// Whose connection it is; on either side it outlives the session that it came with.
    pub pod: Rc<PodState>,
    /// Outbound: the next hop. Inbound: where the pod's application takes it.
    pub actual: SocketAddr,
    _share: LoadShare,
    place: Place,
    pub dirty: bool,
    /// In the session's list of those that wait for window, for room.
    pub listed: Listed,
    parting: Option<Box<Parting>>,
}

/// One side is gone, and the other has yet to get what it said before.
struct Parting {
    gone: GoneSide,
    outcome: Outcome,
    /// Where the other has to be told of a reset: an application may write for ever before it reads.
    deadline: Option<TimerId>,
}

enum GoneSide {
    /// So many bytes are left of it.
    Stream { bytes: usize },
    /// It takes nothing any more; its receive ends behind what it said.
    Application,
}

/// Application to stream.
enum Reading {
    /// A receive of this many bytes is armed.
    Armed {
        bytes: usize,
    },
    /// Waits for window or for room in the session's send buffer; `rest` was received but not sent yet.
    Blocked {
        rest: Option<RecvBuffer>,
    },
    Ended,
}

/// Whether bytes follow those that were received last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Likely,
    /// They were fewer than asked for.
    Unlikely,
}

/// Stream to application.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// `sending`: bytes that the driver is sending. `end`: nothing follows what is queued.
    Open {
        sending: usize,
        end: bool,
    },
    Ended,
}

/// A tunnel about to be attached: both ends exist.
pub struct TunnelParts {
    pub app: SocketId,
    pub session: Key<Session>,
    pub stream: StreamId,
    pub user: u32,
    pub account: Box<Account>,
    pub pod: Rc<PodState>,
    pub actual: SocketAddr,
    pub share: LoadShare,
    pub place: Place,
}

impl<D: Driver + 'static> Core<D> {
    /// Starts relaying. What was held for the stream meanwhile goes first. When the stream is gone already, the
    /// application's socket is closed and the connection recorded.
    pub fn attach_tunnel(&mut self, parts: TunnelParts) {
        let TunnelParts {
            app,
            session: session_key,
            stream,
            user,
            account,
            pod,
            actual,
            share,
            mut place,
        } = parts;
        // The other end is the session's.
        place.needs_one_file();
        let key = self.tunnels.insert(Tunnel {
            app,
            session: session_key,
            stream,
            user,
            reading: Reading::Blocked { rest: None },
            read_bytes: limits::READ_BYTES_MIN,
            queue: Backlog::default(),
            writing: Writing::Open {
                sending: 0,
                end: false,
            },
            account,
            pod,
            actual,
            _share: share,
            place,
            dirty: false,
            listed: Listed::default(),
            parting: None,
        });
        self.driver.set_owner(app, Owned::Tunnel(key).to_owner());
        self.buffers.prepare(self.sessions.len(), self.tunnels.len());
        let Some(session) = self.sessions.get_mut(session_key) else {
            self.abort_tunnel(key, Outcome::SessionClosed("the session ended".to_owned()));
            return;
        };
        let Some(found) = session.user_mut(user, stream) else {
            self.abort_tunnel(key, Outcome::StreamReset(ErrorCode::Cancel));
            return;
        };
        let held = match std::mem::replace(&mut found.state, UserState::Relaying(key)) {
            UserState::Preparing { held } | UserState::Asked { held, .. } => held,
            UserState::Relaying(_) | UserState::Carrying(_) => Held::default(),
        };
        if let Some(tunnel) = self.tunnels.get_mut(key) {
            tunnel.queue = held.backlog;
        }
        self.mark_tunnel(key);
        if held.end {
            self.tunnel_end(key);
        }
        match held.gone {
            Some(Gone::Reset(code)) => self.tunnel_reset(key, code),
            Some(Gone::Ended(why)) => self.tunnel_orphaned(key, &why),
            None => self.read_app(key),
        }
    }

    // ---- application to stream -------------------------------------------------------------------------

    /// Arms the next receive, or joins those that wait.
    fn read_app(&mut self, key: Key<Tunnel>) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(tunnel.session) else {
            return;
        };
        let capacity = session.http2.send_capacity(tunnel.stream);
        if capacity == 0 || !session.has_room_within(self.tenants.output_bytes_max()) {
            tunnel.reading = Reading::Blocked { rest: None };
            self.list_blocked(key);
            return;
        }
        let wanted = tunnel.read_bytes.min(self.tenants.read_bytes_max());
        let bytes = session.read_bytes(wanted).min(capacity);
        session.armed_bytes += beyond_minimum(bytes);
        tunnel.reading = Reading::Armed { bytes };
        self.driver
            .receive(tunnel.app, ReceiveMode::Once { bytes_max: bytes });
    }

    pub fn tunnel_event(&mut self, key: Key<Tunnel>, event: Event) {
        match event {
            Event::Received { data, .. } => self.app_received(key, data),
            Event::Sent {
                taken,
                error,
                payload,
                ..
            } => self.app_sent(key, taken, error, payload),
            Event::Accepted { .. } | Event::AcceptFailed { .. } | Event::Connected { .. } | Event::Woken => {}
        }
    }

    fn app_received(&mut self, key: Key<Tunnel>, data: Received) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        let Reading::Armed { bytes } = tunnel.reading else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(tunnel.session) {
            session.armed_bytes -= beyond_minimum(bytes);
        }
        tunnel.reading = Reading::Blocked { rest: None };
        match data {
            Received::Data(buffer) => {
                self.tenants.note_received(tunnel.tenant(), buffer.len());
                tunnel.adapt_read(bytes, buffer.len());
                let more = match buffer.len() < bytes {
                    true => More::Unlikely,
                    false => More::Likely,
                };
                self.send_app_bytes(key, buffer, more);
            }
            Received::End => self.end_app_reading(key),
            Received::Failed(error) => {
                let outcome = Outcome::of_copy(tunnel.application(), error);
                self.reset_stream(key, outcome);
            }
        }
    }

    /// Seals received bytes into the session; what the window does not allow waits.
    fn send_app_bytes(&mut self, key: Key<Tunnel>, mut buffer: RecvBuffer, more: More) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(tunnel.session) else {
            return;
        };
        let taken = session.send_data(tunnel.stream, &mut buffer, &mut self.buffers);
        tunnel.account.from_application(taken);
        let session_key = tunnel.session;
        if !buffer.is_empty() {
            // Few bytes must not keep a whole receive block from others.
            let rest = if buffer.is_pooled() && buffer.len() < buffer.pinned_bytes() / 4 {
                RecvBuffer::copied(buffer.bytes())
            } else {
                buffer
            };
            tunnel.reading = Reading::Blocked { rest: Some(rest) };
            self.list_blocked(key);
            self.mark_session(session_key);
            return;
        }
        drop(buffer);
        // An application that says all and ends is passed on in one record.
        if more == More::Unlikely && self.driver.take_end(tunnel.app) {
            self.end_app_reading(key);
        } else {
            self.mark_session(session_key);
            self.read_app(key);
        }
    }

    /// Puts a blocked tunnel where it will be found when what it lacks is there.
    fn list_blocked(&mut self, key: Key<Tunnel>) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(tunnel.session) else {
            return;
        };
        session.list(Blocked::Tunnel(key), tunnel.stream, &mut tunnel.listed);
    }

    /// The application ended its direction: so does the stream. The other direction goes on.
    fn end_app_reading(&mut self, key: Key<Tunnel>) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        tunnel.reading = Reading::Ended;
        let (session_key, is_parting) = (tunnel.session, tunnel.parting.is_some());
        if let Some(session) = self.sessions.get_mut(session_key) {
            session.send_end(tunnel.stream, &mut self.buffers);
        }
        if is_parting {
            // It said everything, and takes nothing.
            return self.reset_stream(key, Outcome::Complete);
        }
        self.mark_session(session_key);
        self.finish_tunnel_if_done(key);
    }

    /// Goes on with a tunnel that waited for window or room.
    pub fn unblock_tunnel(&mut self, key: Key<Tunnel>) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        let Reading::Blocked { rest } = &mut tunnel.reading else {
            return;
        };
        match rest.take() {
            Some(buffer) => self.send_app_bytes(key, buffer, More::Likely),
            None => self.read_app(key),
        }
    }

    // ---- stream to application -------------------------------------------------------------------------

    pub fn tunnel_data(&mut self, key: Key<Tunnel>, slice: Slice, end: bool) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        if tunnel.parting.is_some() {
            return;
        }
        let reader = tunnel.reader();
        tunnel.queue.push(slice, reader, &mut self.buffers);
        if end {
            tunnel.end_writing();
        }
        self.mark_tunnel(key);
    }

    pub fn tunnel_end(&mut self, key: Key<Tunnel>) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        tunnel.end_writing();
        self.mark_tunnel(key);
    }

    /// The peer reset the stream: so is the application's connection, behind what was said before, as an application that
    /// answers early and goes away is still understood. Where everything had been said it is no reset, as when RST
    /// follows FIN: what was received stays readable, and only what the application still writes fails. RFC 9113 section
    /// 8.1 demands it for NO_ERROR, which a server sends behind an answer that it gave early; a client whose application
    /// is gone sends CANCEL behind its last request.
    pub fn tunnel_reset(&mut self, key: Key<Tunnel>, code: ErrorCode) {
        let outcome = match code {
            ErrorCode::NoError | ErrorCode::Cancel | ErrorCode::StreamClosed => Outcome::Complete,
            _ => Outcome::StreamReset(code),
        };
        let Err(outcome) = self.leave_remains(key, outcome) else {
            return;
        };
        let Some(tunnel) = self.tunnels.get(key) else {
            return;
        };
        // A reset would throw away what the socket took and the application has not read.
        let how = match tunnel.writing {
            Writing::Ended => Close::Orderly,
            Writing::Open { .. } if is_planted(Bug::ResetTurnedIntoEnd) => Close::Orderly,
            Writing::Open { .. } => Close::Reset,
        };
        self.remove_tunnel(key, how, outcome);
    }

    /// Sends what is queued for the application. One vectored send for everything of a turn.
    pub fn flush_tunnel(&mut self, key: Key<Tunnel>) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        tunnel.dirty = false;
        let Writing::Open { sending: 0, end } = tunnel.writing else {
            return;
        };
        if tunnel.queue.is_empty() && !end {
            if tunnel.parting.is_some() {
                self.remove_tunnel(key, Close::Reset, Outcome::Complete);
            }
            return;
        }
        if !self.tenants.may_send(tunnel.tenant()) {
            self.send_later(key);
            return;
        }
        if tunnel.queue.is_empty() {
            self.tenants.note_end(tunnel.tenant());
            self.end_app_writing(key);
            return;
        }
        let slices = tunnel
            .queue
            .take_within(self.tenants.send_bytes_max(), &mut self.buffers);
        let payload = Payload::Slices(slices);
        let sending = payload.len();
        self.tenants.note_sent(tunnel.tenant(), sending);
        let status = match end && tunnel.queue.is_empty() {
            // `end_app_writing` follows as soon as the socket took it.
            true => self.driver.send_last(tunnel.app, payload),
            false => self.driver.send(tunnel.app, payload),
        };
        match status {
            SendStatus::Done(payload) => {
                if self.app_took(key, sending, payload) {
                    self.mark_tunnel(key);
                }
            }
            SendStatus::Queued => tunnel.writing = Writing::Open { sending, end },
            SendStatus::Failed { error, taken, .. } => self.app_send_failed(key, taken, error),
        }
    }

    fn app_sent(&mut self, key: Key<Tunnel>, taken: usize, error: Option<io::Error>, payload: Payload) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        if let Writing::Open { end, .. } = tunnel.writing {
            tunnel.writing = Writing::Open { sending: 0, end };
        }
        match error {
            None => {
                if self.app_took(key, taken, payload) {
                    self.mark_tunnel(key);
                }
            }
            Some(error) => self.app_send_failed(key, taken, error),
        }
    }

    /// The application's socket took bytes: window goes back to the peer. Whether there is more to do.
    fn app_took(&mut self, key: Key<Tunnel>, taken: usize, payload: Payload) -> bool {
        if let Payload::Slices(slices) = payload {
            self.buffers.recycle_list(slices);
        }
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return false;
        };
        tunnel.account.to_application(taken);
        let session_key = tunnel.session;
        let ends = tunnel.parting.is_some() || matches!(tunnel.writing, Writing::Open { end: true, .. });
        let more = ends || !tunnel.queue.is_empty();
        if let Some(session) = self.sessions.get_mut(session_key) {
            session.http2.consumed(tunnel.stream, taken);
        }
        self.mark_session(session_key);
        more
    }

    /// Its tenant had its part of this turn.
    fn send_later(&mut self, key: Key<Tunnel>) {
        if let Some(tunnel) = self.tunnels.get_mut(key) {
            tunnel.dirty = true;
            self.tenants.note_left(tunnel.queue.bytes());
            self.later_tunnels.push_back(key);
        }
    }

    /// At the beginning of a turn: some of those whose applications did not get everything in an earlier one.
    pub fn resume_tunnels(&mut self) {
        let resumed = match self.tenants.is_crowded() {
            true => self.later_tunnels.len().min(limits::RESUMED_TURN_MAX),
            false => self.later_tunnels.len(),
        };
        self.dirty_tunnels.extend(self.later_tunnels.drain(..resumed));
    }

    fn app_send_failed(&mut self, key: Key<Tunnel>, taken: usize, error: io::Error) {
        if let Some(tunnel) = self.tunnels.get_mut(key) {
            tunnel.account.to_application(taken);
            let is_gone = ends_a_copy(&error);
            let outcome = Outcome::of_copy(tunnel.application().other(), error);
            let has_ended = matches!(tunnel.reading, Reading::Ended);
            if has_ended || !is_gone {
                return self.reset_stream(key, outcome);
            }
            // It may have said something before, and nobody has read that yet. Its receive ends behind it.
            let event = TimerEvent::TunnelParting(key);
            let deadline = self.timers.start(self.now + limits::LAST_WORDS_TIME, event);
            tunnel.parting = Some(Box::new(Parting {
                gone: GoneSide::Application,
                outcome,
                deadline: Some(deadline),
            }));
            tunnel.writing = Writing::Ended;
            tunnel.queue.discard(&mut self.buffers);
        }
    }

    /// Everything that the peer sent was delivered: the application sees the end of the stream.
    fn end_app_writing(&mut self, key: Key<Tunnel>) {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return;
        };
        tunnel.writing = Writing::Ended;
        if !matches!(tunnel.reading, Reading::Ended) && !is_planted(Bug::HalfCloseLost) {
            // Fails only when the application has gone; the reading direction notices that by itself.
            let _ = self.driver.shutdown_send(tunnel.app);
        }
        // Where the application has ended as well, closing says the same.
        self.finish_tunnel_if_done(key);
    }

    // ---- ending ----------------------------------------------------------------------------------------

    fn finish_tunnel_if_done(&mut self, key: Key<Tunnel>) {
        let Some(tunnel) = self.tunnels.get(key) else {
            return;
        };
        if matches!(tunnel.reading, Reading::Ended) && tunnel.writing == Writing::Ended {
            self.remove_tunnel(key, Close::Orderly, Outcome::Complete);
        }
    }

    /// The application's side broke: the peer sees a reset.
    fn reset_stream(&mut self, key: Key<Tunnel>, outcome: Outcome) {
        let Some(tunnel) = self.tunnels.get(key) else {
            return;
        };
        let (session_key, stream) = (tunnel.session, tunnel.stream);
        if let Some(session) = self.sessions.get_mut(session_key) {
            session.http2.reset(stream, ErrorCode::Cancel);
        }
        self.mark_session(session_key);
        self.remove_tunnel(key, Close::Reset, outcome);
    }

    /// The stream is gone with its session.
    pub fn tunnel_orphaned(&mut self, key: Key<Tunnel>, why: &Ending) {
        match why {
            // Not even what had arrived before is delivered.
            Ending::Revoked(_) => self.cut_tunnel(key, why.outcome()),
            Ending::Said(_) | Ending::Lost(_) | Ending::PodRemoved | Ending::Drained => {
                self.abort_tunnel(key, why.outcome());
            }
        }
    }

    /// The stream's side is gone: the application sees a reset behind what the peer said, or none when that was all.
    fn abort_tunnel(&mut self, key: Key<Tunnel>, outcome: Outcome) {
        if let Err(outcome) = self.leave_remains(key, outcome) {
            self.remove_tunnel(key, Close::Reset, outcome);
        }
    }

    /// Lets a tunnel outlive its stream, or its session, until the application has read the rest at its own pace.
    /// Only when there is a rest, or the peer's end to be told behind it, and within a budget, of which no pod has more
    /// than its part: the stream's window bounds it no more.
    fn leave_remains(&mut self, key: Key<Tunnel>, outcome: Outcome) -> Result<(), Outcome> {
        let Some(tunnel) = self.tunnels.get_mut(key) else {
            return Err(outcome);
        };
        let nothing_sent = Writing::Open {
            sending: 0,
            end: false,
        };
        let nothing_left = tunnel.queue.is_empty() && tunnel.writing == nothing_sent;
        if tunnel.writing == Writing::Ended || nothing_left || self.drain_over {
            return Err(outcome);
        }
        let Some(session) = self.sessions.get_mut(tunnel.session) else {
            return Err(outcome);
        };
        let bytes = tunnel.buffered_bytes();
        // What is torn, however much of it arrives, leaves half of the room to what is complete.
        let peer_has_ended = tunnel.peer_has_ended();
        let kept = match peer_has_ended {
            true => 0,
            false => limits::REMAINS_BYTES_MAX / 2,
        };
        let free = limits::REMAINS_BYTES_MAX.saturating_sub(self.remains_bytes + kept);
        let of_pod = tunnel.pod.remains_bytes.get() + bytes;
        if tunnel.pod.gone.get() || bytes > free || of_pod > limits::part_max(limits::REMAINS_BYTES_MAX, free)
        {
            return Err(outcome);
        }
        self.remains_bytes += bytes;
        tunnel.pod.remains_bytes.set(of_pod);
        let reading = std::mem::replace(&mut tunnel.reading, Reading::Ended);
        let outcome = match reading {
            Reading::Ended if peer_has_ended => Outcome::Complete,
            Reading::Ended | Reading::Armed { .. } | Reading::Blocked { .. } => outcome,
        };
        if let Reading::Armed { bytes } = reading {
            session.armed_bytes -= beyond_minimum(bytes);
            self.driver.stop_receive(tunnel.app);
        }
        // At the peer's end the application waits for nothing but what it reads.
        let deadline = (!peer_has_ended).then(|| {
            let event = TimerEvent::TunnelParting(key);
            self.timers.start(self.now + limits::LAST_WORDS_TIME, event)
        });
        tunnel.parting = Some(Box::new(Parting {
            gone: GoneSide::Stream { bytes },
            outcome,
            deadline,
        }));
        session.remove_user(tunnel.user, tunnel.stream);
        let session = tunnel.session;
        self.mark_session(session);
        self.mark_tunnel(key);
        Ok(())
    }

    /// Cuts what streams of this pod left behind.
    pub fn cut_remains(&mut self, pod: &Rc<PodState>) {
        for key in self.tunnels.keys() {
            let left = |tunnel: &Tunnel| tunnel.outlives_its_stream() && Rc::ptr_eq(&tunnel.pod, pod);
            if self.tunnels.get(key).is_some_and(left) {
                self.remove_tunnel(key, Close::Reset, Outcome::PodRemoved);
            }
        }
    }

    /// Ends both sides of a tunnel at once, whatever it holds.
    pub fn cut_tunnel(&mut self, key: Key<Tunnel>, outcome: Outcome) {
        self.reset_stream(key, outcome);
    }

    /// What one side said before it was gone takes too long.
    pub fn part_tunnel(&mut self, key: Key<Tunnel>) {
        self.reset_stream(key, Outcome::Complete);
    }

    fn remove_tunnel(&mut self, key: Key<Tunnel>, how: Close, outcome: Outcome) {
        let Some(tunnel) = self.tunnels.remove(key) else {
            return;
        };
        self.driver.close(tunnel.app, how);
        if let Some(session) = self.sessions.get_mut(tunnel.session) {
            if let Reading::Armed { bytes } = tunnel.reading {
                session.armed_bytes -= beyond_minimum(bytes);
            }
            session.unlist(Blocked::Tunnel(key), tunnel.listed);
            session.remove_user(tunnel.user, tunnel.stream);
            session.last_used = self.now;
        }
        self.mark_session(tunnel.session);
        let outcome = match (tunnel.parting, outcome) {
            (Some(parting), ended) => {
                if let Some(deadline) = parting.deadline {
                    self.timers.cancel(deadline);
                }
                if let GoneSide::Stream { bytes } = parting.gone {
                    self.remains_bytes -= bytes;
                    let of_pod = &tunnel.pod.remains_bytes;
                    of_pod.set(of_pod.get() - bytes);
                }
                match ended {
                    Outcome::Complete => parting.outcome,
                    other => other,
                }
            }
            (None, outcome) => outcome,
        };
        self.telemetry.close(*tunnel.account, self.now, &outcome);
    }
}

/// How much the next receive asks for: four times as much after one that filled what it was given (the driver
/// starts with small blocks), half after one that used less than an eighth. Short exchanges stay small, bulk gets
/// whole blocks within three receives.
pub fn adapted_read(current: usize, asked: usize, got: usize) -> usize {
    if got >= asked.min(limits::RECEIVE_SMALL_BYTES) {
        (current * 4).min(limits::RECEIVE_BYTES_MAX)
    } else if got < current / 8 {
        (current / 2).max(limits::READ_BYTES_MIN)
    } else {
        current
    }
}

/// The part of a receive that counts against `limits::ARMED_BYTES_MAX`: idle streams, which all have a receive of
/// the smallest size armed, must not make the receives of busy ones small.
fn beyond_minimum(bytes: usize) -> usize {
    bytes.saturating_sub(limits::READ_BYTES_MIN)
}

impl Tunnel {
    /// Who causes its work.
    pub fn tenant(&self) -> &Rc<Tenant> {
        self.place.tenant()
    }

    /// Which end of the connection the application is.
    fn application(&self) -> Side {
        match self.account.direction {
            Direction::Outbound => Side::Client,
            Direction::Inbound => Side::Server,
        }
    }

    fn adapt_read(&mut self, asked: usize, got: usize) {
        self.read_bytes = adapted_read(self.read_bytes, asked, got);
    }

    fn outlives_its_stream(&self) -> bool {
        let gone = self.parting.as_ref().map(|parting| &parting.gone);
        matches!(gone, Some(GoneSide::Stream { .. }))
    }

    fn reader(&self) -> Reader {
        match self.writing {
            Writing::Open { sending: 0, .. } | Writing::Ended => Reader::Ready,
            Writing::Open { sending, .. } => Reader::Blocked { sending },
        }
    }

    fn end_writing(&mut self) {
        if let Writing::Open { sending, .. } = self.writing {
            self.writing = Writing::Open { sending, end: true };
        }
    }

    /// Whether the peer said that nothing follows what it sent.
    pub fn peer_has_ended(&self) -> bool {
        matches!(self.writing, Writing::Ended | Writing::Open { end: true, .. })
    }

    /// Whether the application said all that it has to say.
    #[cfg(test)]
    pub fn has_read_all(&self) -> bool {
        matches!(self.reading, Reading::Ended)
    }

    /// Bytes of buffers that this tunnel owns. Zero when it is idle.
    pub fn buffered_bytes(&self) -> usize {
        let rest = match &self.reading {
            Reading::Blocked { rest } => rest.as_ref().map_or(0, RecvBuffer::pinned_bytes),
            Reading::Armed { .. } | Reading::Ended => 0,
        };
        let sending = match self.writing {
            Writing::Open { sending, .. } => sending,
            Writing::Ended => 0,
        };
        self.queue.bytes() + sending + rest
    }
}
