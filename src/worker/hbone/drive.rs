//! Moves sessions: what arrives goes to tunnels and tasks, what they produced is sent at the end of the turn,
//! timers keep sessions honest. All of it runs in the worker's turn, never in a task.

use std::io;
use std::time::Duration;

use super::serve::Request;
use super::session::{
    Answer, Blocked, Ending, Gone, Held, Listed, Role, Session, SessionError, SessionEvent, Stage,
    StreamUser, Transport, UserState,
};
use crate::limits;
use crate::runtime::slab::Key;
use crate::sys::buffer::Payload;
use crate::sys::driver::{Close, Driver, Event, Received, SendStatus};
use crate::tls::TlsError;
use crate::tls::output::Output;
use crate::wire::http2::{ErrorCode, StreamId};
use crate::worker::backlog::Reader;
use crate::worker::core::{Core, TimerEvent};
use crate::worker::outcome::{Outcome, ends_a_copy};

impl<D: Driver + 'static> Core<D> {
    pub fn session_event(&mut self, key: Key<Session>, event: Event) {
        match event {
            Event::Received { data, .. } => match data {
                Received::Data(buffer) => {
                    if let Some(session) = self.sessions.get(key) {
                        self.tenants.note_received(&session.tenant, buffer.len());
                    }
                    self.session_received(key, buffer.bytes());
                }
                Received::End => self.session_received_all(key, &Ending::by_peer()),
                Received::Failed(error) => {
                    self.session_received_all(key, &Ending::of_transport("receive", &error));
                }
            },
            Event::Sent { error, payload, .. } => self.session_sent(key, error, payload),
            Event::Accepted { .. } | Event::AcceptFailed { .. } | Event::Connected { .. } | Event::Woken => {}
        }
    }

    /// Takes in received ciphertext; also what a handshake left over. Called again from within for a session inside.
    pub fn session_received(&mut self, key: Key<Session>, bytes: &[u8]) {
        let mut events = self.take_session_events();
        let result = match self.sessions.get_mut(key) {
            Some(session) if !session.is_closing() => {
                session.receive(bytes, &mut self.buffers, self.now, &mut events)
            }
            Some(_) | None => Ok(()),
        };
        for event in events.drain(..) {
            self.session_meant(key, event);
        }
        self.put_session_events(events);
        match result {
            Ok(()) => {
                self.mark_session(key);
                self.count_unsent(key);
            }
            Err(error) => self.fail_session(key, &error),
        }
    }

    /// Nothing more comes, which has `why` for a reason unless a send has found one before.
    fn session_received_all(&mut self, key: Key<Session>, why: &Ending) {
        let session = self.sessions.get_mut(key);
        match session.and_then(|session| session.broken.take()) {
            Some(why) => self.drop_session(key, &why),
            None => self.close_session(key, why),
        }
    }

    fn session_meant(&mut self, key: Key<Session>, event: SessionEvent) {
        match event {
            SessionEvent::Data {
                stream,
                user,
                slice,
                end,
            } => {
                let session = self.sessions.get_mut(key);
                let Some(found) = session.and_then(|session| session.user_mut(user, stream)) else {
                    return;
                };
                match &mut found.state {
                    UserState::Relaying(tunnel) => {
                        let tunnel = *tunnel;
                        self.tunnel_data(tunnel, slice, end);
                    }
                    UserState::Carrying(carrier) => {
                        let carrier = *carrier;
                        self.carrier_data(carrier, slice);
                        if end {
                            self.carrier_end(carrier);
                        }
                    }
                    UserState::Asked { held, .. } | UserState::Preparing { held } => {
                        held.end |= end;
                        held.backlog
                            .push(slice, Reader::Blocked { sending: 0 }, &mut self.buffers);
                    }
                }
            }
            SessionEvent::End { stream, user } => {
                let Some(found) = self.user(key, user, stream) else {
                    return;
                };
                match &mut found.state {
                    UserState::Relaying(tunnel) => {
                        let tunnel = *tunnel;
                        self.tunnel_end(tunnel);
                    }
                    UserState::Carrying(carrier) => {
                        let carrier = *carrier;
                        self.carrier_end(carrier);
                    }
                    UserState::Asked { held, .. } | UserState::Preparing { held } => held.end = true,
                }
            }
            SessionEvent::Reset { stream, user, code } => self.stream_reset(key, user, stream, code),
            SessionEvent::Writable { stream, user } => {
                let blocked = match self.user(key, user, stream).map(|user| &user.state) {
                    Some(UserState::Relaying(tunnel)) => Blocked::Tunnel(*tunnel),
                    Some(UserState::Carrying(carrier)) => Blocked::Carrier(*carrier),
                    Some(UserState::Asked { .. } | UserState::Preparing { .. }) | None => return,
                };
                self.unblock(blocked);
            }
            SessionEvent::AllWritable => self.unblock_window(key),
            SessionEvent::Response {
                stream,
                user,
                response,
                end,
            } => {
                let Some(found) = self.user(key, user, stream) else {
                    return;
                };
                let waiting = UserState::Preparing {
                    held: Held::default(),
                };
                match std::mem::replace(&mut found.state, waiting) {
                    UserState::Asked { answer, mut held } => {
                        held.end |= end;
                        found.state = UserState::Preparing { held };
                        // Nobody waits any more: the task's end resets the stream.
                        let _ = answer.send(Answer::Response(response));
                    }
                    other => found.state = other,
                }
            }
            SessionEvent::Request {
                stream,
                user,
                request,
            } => {
                let Some(session) = self.sessions.get_mut(key) else {
                    return;
                };
                session.last_used = self.now;
                session.served += 1;
                self.tenants.note(&session.tenant, limits::SETUP_COST);
                self.requests.push(Request {
                    session: key,
                    stream,
                    user,
                    request,
                    lane: session.tenant.lane(),
                });
            }
            SessionEvent::GoAway { code } => {
                self.retire_session(key);
                if code != ErrorCode::NoError {
                    tracing::info!(target: "hbone", peer = %self.peer_of(key), ?code, "the peer ends the session");
                }
            }
            SessionEvent::SettingsReceived => {}
            SessionEvent::Closed => self.close_session(key, &Ending::by_peer()),
        }
    }

    fn user(&mut self, key: Key<Session>, user: u32, stream: StreamId) -> Option<&mut StreamUser> {
        self.sessions.get_mut(key)?.user_mut(user, stream)
    }

    fn stream_reset(&mut self, key: Key<Session>, user: u32, stream: StreamId, code: ErrorCode) {
        let Some(found) = self.user(key, user, stream) else {
            return;
        };
        match &mut found.state {
            UserState::Relaying(tunnel) => {
                let tunnel = *tunnel;
                self.tunnel_reset(tunnel, code);
            }
            UserState::Carrying(carrier) => {
                let carrier = *carrier;
                let why = format!("the network gateway reset the stream that carries it: {code:?}");
                self.carrier_lost(carrier, &Ending::Said(why));
            }
            UserState::Preparing { held } => held.give_up(Gone::Reset(code)),
            UserState::Asked { .. } => {
                let removed = self
                    .sessions
                    .get_mut(key)
                    .and_then(|session| session.remove_user(user, stream));
                if let Some(StreamUser {
                    state: UserState::Asked { answer, .. },
                    ..
                }) = removed
                {
                    let _ = answer.send(Answer::Reset(code));
                }
            }
        }
    }

    fn unblock(&mut self, blocked: Blocked) {
        match blocked {
            Blocked::Tunnel(tunnel) => self.unblock_tunnel(tunnel),
            Blocked::Carrier(carrier) => self.unblock_carrier(carrier),
        }
    }

    fn listed(&mut self, blocked: Blocked) -> Option<&mut Listed> {
        match blocked {
            Blocked::Tunnel(tunnel) => Some(&mut self.tunnels.get_mut(tunnel)?.listed),
            Blocked::Carrier(carrier) => Some(&mut self.carriers.get_mut(carrier)?.listed),
        }
    }

    /// Goes on with those that waited for window.
    fn unblock_window(&mut self, key: Key<Session>) {
        let spare = self.take_unblocked();
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        let mut waiting = std::mem::replace(&mut session.blocked_window, spare);
        for blocked in waiting.drain(..) {
            if let Some(listed) = self.listed(blocked) {
                listed.window = false;
            }
            self.unblock(blocked);
        }
        self.put_unblocked(waiting);
    }

    /// Goes on with those that waited for room in the send buffer, as long as there is some.
    fn unblock_room(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.get(key) else {
            return;
        };
        for _ in 0..session.blocked_room.len() {
            let Some(session) = self.sessions.get_mut(key) else {
                return;
            };
            if !session.has_room_within(self.tenants.output_bytes_max()) {
                return;
            }
            let Some(blocked) = session.blocked_room.pop_front() else {
                return;
            };
            if let Some(listed) = self.listed(blocked) {
                listed.room = false;
            }
            self.unblock(blocked);
        }
    }

    // ---- sending ---------------------------------------------------------------------------------------

    pub fn flush_session(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.dirty = false;
        let Some(output) = session.take_output(&mut self.buffers) else {
            self.end_session_if_done(key);
            return;
        };
        session.count_unsent();
        if session.broken.is_some() {
            self.buffers.recycle_output(output);
            self.unblock_room(key);
            self.end_session_if_done(key);
            return;
        }
        let (bytes, end) = output.into_parts();
        let status = match session.transport {
            Transport::Socket(socket) => self.driver.send(socket, Payload::Bytes { bytes, from: 0, end }),
            Transport::Carrier(carrier) => self.carrier_send(carrier, bytes, end),
        };
        match status {
            SendStatus::Queued => {
                if let Some(session) = self.sessions.get_mut(key) {
                    session.set_sending(Some(end));
                }
                self.count_unsent(key);
            }
            SendStatus::Done(payload) => {
                self.recycle(payload);
                self.unblock_room(key);
                self.end_session_if_done(key);
            }
            SendStatus::Failed { error, payload, .. } => {
                self.recycle(payload);
                self.session_broke(key, &error);
            }
        }
    }

    pub(super) fn session_sent(&mut self, key: Key<Session>, error: Option<io::Error>, payload: Payload) {
        self.recycle(payload);
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.set_sending(None);
        session.count_unsent();
        match error {
            None => {
                self.unblock_room(key);
                self.mark_session(key);
            }
            Some(error) => self.session_broke(key, &error),
        }
    }

    /// A send failed. Where the connection is over, what the peer said before may not have been read yet: the receive
    /// ends behind it.
    fn session_broke(&mut self, key: Key<Session>, error: &io::Error) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        let why = Ending::of_transport("send", error);
        let may_have_said = match session.transport {
            Transport::Socket(_) => ends_a_copy(error) && !session.is_closing(),
            Transport::Carrier(_) => false,
        };
        if !may_have_said {
            return self.drop_session(key, &why);
        }
        session.broken = Some(why);
        session.channel_broken = true;
        self.retire_session(key);
        self.end_session_by(key, limits::SESSION_GOODBYE);
    }

    pub(super) fn recycle(&mut self, payload: Payload) {
        if let Payload::Bytes { bytes, .. } = payload {
            self.buffers.recycle_output(Output::reuse(bytes));
        }
    }

    // ---- the end ---------------------------------------------------------------------------------------

    /// The peer broke a rule: it is told which class of rule, the log is told exactly, and the session ends.
    fn fail_session(&mut self, key: Key<Session>, error: &SessionError) {
        let peer = self.peer_of(key);
        tracing::warn!(target: "hbone", %peer, %error, "session closed");
        let code = match error {
            SessionError::Tls(error) => {
                self.channel_failed(key, error);
                ErrorCode::NoError
            }
            SessionError::Http2(error) => error.code,
        };
        self.end_session(key, code, &Ending::Said(error.to_string()), false);
    }

    /// Nothing more can be said on it.
    fn channel_failed(&mut self, key: Key<Session>, error: &TlsError) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.channel_broken = true;
        if let Role::Client { key: pool_key } = &session.role {
            let pool_key = pool_key.clone();
            self.doubt_certificate(&pool_key.identity, &Outcome::Tls(error.clone()));
        }
    }

    /// No further streams on this session: it ends when the last one has.
    pub fn retire_session(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.retired = true;
        if let Role::Client { key: pool_key } = &session.role {
            self.pool.forget(&pool_key.clone(), key);
        }
        self.mark_session(key);
        // What a gateway that goes away carries has to take another way, too.
        for inside in self.carried_by(key) {
            self.retire_session(inside);
        }
    }

    /// Ends every stream of the session, says goodbye, and closes when that has been sent. One that lingers stops
    /// that.
    pub fn close_session(&mut self, key: Key<Session>, why: &Ending) {
        self.end_session(key, ErrorCode::NoError, why, false);
    }

    pub(super) fn end_session(&mut self, key: Key<Session>, code: ErrorCode, why: &Ending, lingers: bool) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        let was_open = session.stage == Stage::Open;
        if was_open || !lingers {
            session.stage = Stage::Goodbye { lingers };
        }
        if let (false, Transport::Socket(socket)) = (lingers, session.transport) {
            self.driver.stop_receive(socket);
        }
        if !was_open {
            self.mark_session(key);
            return;
        }
        self.end_users(key, why);
        self.retire_session(key);
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        if !session.channel_broken {
            session.http2.close(code, "");
            session.end_channel(&mut self.buffers);
        }
        let limit = match lingers {
            true => limits::SESSION_LINGER,
            false => limits::SESSION_GOODBYE,
        };
        self.end_session_by(key, limit);
        self.mark_session(key);
    }

    /// Its timer ends it then.
    fn end_session_by(&mut self, key: Key<Session>, limit: Duration) {
        let timer = self.timers.start(self.now + limit, TimerEvent::Session(key));
        let session = self.sessions.get_mut(key);
        if let Some(earlier) = session.and_then(|session| session.timer.replace(timer)) {
            self.timers.cancel(earlier);
        }
    }

    /// The connection is broken: nothing more can be said on it.
    pub(super) fn drop_session(&mut self, key: Key<Session>, why: &Ending) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.stage = Stage::Goodbye { lingers: false };
        session.channel_broken = true;
        self.end_users(key, why);
        self.retire_session(key);
        self.remove_session(key);
    }

    fn end_users(&mut self, key: Key<Session>, why: &Ending) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        for user in session.users.keys() {
            let Some(session) = self.sessions.get_mut(key) else {
                return;
            };
            let Some(found) = session.users.get_mut(user) else {
                continue;
            };
            match &mut found.state {
                UserState::Relaying(tunnel) => {
                    let tunnel = *tunnel;
                    self.tunnel_orphaned(tunnel, why);
                }
                UserState::Carrying(carrier) => {
                    let (carrier, why) = (*carrier, why.of_gateway());
                    self.carrier_lost(carrier, &why);
                }
                UserState::Preparing { held } => held.give_up(Gone::Ended(why.clone())),
                UserState::Asked { .. } => {
                    if let Some(StreamUser {
                        state: UserState::Asked { answer, .. },
                        ..
                    }) = session.users.remove(user)
                    {
                        let _ = answer.send(Answer::SessionClosed(why.clone()));
                    }
                }
            }
        }
    }

    fn end_session_if_done(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        if session.sending {
            return;
        }
        match session.stage {
            Stage::Goodbye { lingers: false } => self.remove_session(key),
            Stage::Goodbye { lingers: true } => self.linger(key),
            Stage::Lingering => {}
            Stage::Open => {
                // What was dialled while a drain went on serves those who waited for it, and no others come.
                let is_last = session.retired || (self.draining && session.served > 0);
                let is_idle = session.http2.is_idle() && !session.http2.is_announcing();
                if is_last && session.users.is_empty() && is_idle {
                    // The last bytes of its streams may be on their way, and the peer sends window for them.
                    let why = Ending::Said("retired".to_owned());
                    self.end_session(key, ErrorCode::NoError, &why, true);
                }
            }
        }
    }

    fn linger(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.stage = Stage::Lingering;
        match session.transport {
            Transport::Socket(socket) => {
                if self.driver.shutdown_send(socket).is_err() {
                    self.remove_session(key);
                }
            }
            Transport::Carrier(carrier) => self.end_carrier(carrier),
        }
    }

    fn remove_session(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.remove(key) else {
            return;
        };
        if let Some(timer) = session.timer {
            self.timers.cancel(timer);
        }
        match session.transport {
            Transport::Socket(socket) => self.driver.close(socket, Close::Orderly),
            Transport::Carrier(carrier) => self.close_carrier(carrier),
        }
    }

    pub(super) fn peer_of(&self, key: Key<Session>) -> String {
        match self.sessions.get(key) {
            Some(session) => {
                let behind = match session.transport {
                    Transport::Socket(_) => "",
                    Transport::Carrier(_) => "behind ",
                };
                format!("{behind}{} ({})", session.peer_address, session.peer.first())
            }
            None => String::new(),
        }
    }

    // ---- time ------------------------------------------------------------------------------------------

    /// Starts the clock of a new session.
    pub fn start_session_timer(&mut self, key: Key<Session>) {
        let deadline = self.now + limits::PING_INTERVAL;
        if let Some(session) = self.sessions.get_mut(key) {
            session.timer = Some(self.timers.start(deadline, TimerEvent::Session(key)));
        }
    }

    pub fn session_timer(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.timer = None;
        if let Some(why) = session.broken.take() {
            self.drop_session(key, &why);
            return;
        }
        if session.is_closing() {
            self.remove_session(key);
            return;
        }
        let silent = self.now.saturating_duration_since(session.last_received);
        let unused = self.now.saturating_duration_since(session.last_used);
        if session.users.is_empty() && unused >= self.idle_limit(key) {
            self.end_unused(key, unused);
            return;
        }
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        match session.ping_sent {
            Some(sent) if self.now.saturating_duration_since(sent) >= limits::PING_TIMEOUT => {
                self.end_silent(key, silent);
                return;
            }
            Some(_) => {}
            // Traffic proves life as well as a PING does.
            None if silent >= limits::PING_INTERVAL => {
                session.http2.ping(*b"uztunnel");
                session.ping_sent = Some(self.now);
                self.mark_session(key);
            }
            None => {}
        }
        self.start_session_timer(key);
    }

    /// Nobody needs it any more, or a stranger never did.
    fn end_unused(&mut self, key: Key<Session>, unused: Duration) {
        let (peer, seconds) = (self.peer_of(key), unused.as_secs());
        match self.sessions.get(key) {
            Some(Session {
                role: Role::Server,
                served: 0,
                ..
            }) => tracing::info!(
                target: "hbone", %peer,
                "session closed: the peer opened no stream within {seconds} s after its handshake"
            ),
            Some(_) | None => {
                tracing::debug!(target: "hbone", %peer, "session closed: no stream for {seconds} s");
            }
        }
        let why = Ending::Said(format!("no stream for {seconds} s"));
        // On a carrier there is no other way to end than to wait for the peer's end: a reset would overtake the goodbye.
        let lingers = match self.sessions.get(key).map(|session| session.transport) {
            Some(Transport::Carrier(_)) => true,
            Some(Transport::Socket(_)) | None => false,
        };
        self.end_session(key, ErrorCode::NoError, &why, lingers);
    }

    /// The peer, or the way to it, is gone without a word: nothing that we could say would arrive.
    fn end_silent(&mut self, key: Key<Session>, silent: Duration) {
        let peer = self.peer_of(key);
        let (silent, timeout) = (silent.as_secs(), limits::PING_TIMEOUT.as_secs());
        let streams = self.sessions.get(key).map_or(0, |session| session.users.len());
        tracing::warn!(
            target: "hbone", %peer, streams,
            "session closed: nothing came for {silent} s and no answer to a PING within {timeout} s; \
             the peer or the way to it is gone, and the session's streams are reset"
        );
        let why = Ending::Said(format!("no answer to a PING within {timeout} s"));
        self.drop_session(key, &why);
    }

    fn idle_limit(&self, key: Key<Session>) -> Duration {
        match self.sessions.get(key) {
            Some(Session {
                role: Role::Client { .. },
                ..
            }) => self.settings.session_idle_timeout,
            // A client keeps an unused session for its own release time; a silent stranger gets less.
            Some(session) if session.served == 0 => limits::SILENT_SESSION,
            Some(_) | None => self.settings.session_idle_timeout * 3,
        }
    }
}
