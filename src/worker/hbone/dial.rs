//! The client's side of HBONE: dialling a session and opening streams on it.

use std::net::SocketAddr;
use std::rc::Rc;

use super::inside::Errand;
use super::pool::{self, PoolKey};
use super::revocation::compare_established;
use super::session::{Answer, Ending, Held, Role, Session, SessionParts, Transport, UserState};
use crate::bridge::load::LoadShare;
use crate::bridge::log::Direction;
use crate::limits;
use crate::runtime::oneshot;
use crate::runtime::slab::Key;
use crate::sys::buffer::RecvBuffer;
use crate::sys::driver::{Driver, ReceiveMode, Received, SocketSpec};
use crate::tls::handshake::{Established, Handshake, Progress};
use crate::tls::output::Output;
use crate::wire::hbone::{ConnectRequest, IncomingResponse};
use crate::wire::http2::{Connection, ErrorCode, Settings, StreamId};
use crate::worker::certificates::certificate;
use crate::worker::core::Core;
use crate::worker::outcome::{HttpStatus, Outcome};
use crate::worker::owner::Owned;
use crate::worker::pods::{CountedSession, PodState};
use crate::worker::shell::{Elapsed, Medium, Shell, Socket};

/// A stream whose other end a task is preparing. Dropping it resets the stream.
pub struct OpenStream<D: Driver + 'static> {
    shell: Shell<D>,
    pub session: Key<Session>,
    pub stream: StreamId,
    pub user: u32,
    attached: bool,
}

impl<D: Driver + 'static> OpenStream<D> {
    pub fn new(shell: &Shell<D>, session: Key<Session>, stream: StreamId, user: u32) -> Self {
        Self {
            shell: shell.clone(),
            session,
            stream,
            user,
            attached: false,
        }
    }

    /// The stream belongs to a tunnel from now on.
    pub fn attached(mut self) {
        self.attached = true;
    }

    /// The stream was ended by its answer: nothing more is to be sent, and what still comes is dropped.
    pub fn answered(mut self) {
        self.attached = true;
        self.shell.with(|core| {
            if let Some(session) = core.sessions.get_mut(self.session) {
                // RFC 9113 section 8.1: the rest of the request is not wanted.
                session.http2.reset(self.stream, ErrorCode::NoError);
                session.remove_user(self.user, self.stream);
            }
            core.mark_session(self.session);
        });
    }
}

impl<D: Driver + 'static> Drop for OpenStream<D> {
    fn drop(&mut self) {
        if self.attached {
            return;
        }
        self.shell.with(|core| {
            if let Some(session) = core.sessions.get_mut(self.session) {
                session.http2.reset(self.stream, ErrorCode::Cancel);
                session.remove_user(self.user, self.stream);
            }
            core.mark_session(self.session);
        });
    }
}

/// Dials the destination of `key` from inside the pod's namespace, up to a session in the worker's table.
pub async fn dial<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    key: &Rc<PoolKey>,
) -> Result<Key<Session>, Outcome> {
    let certificate = certificate(shell, &key.identity).await?;
    let (options, records_max) =
        shell.with(|core| (core.settings.socket_options, core.settings.tls_records_max));
    let spec = SocketSpec {
        namespace: Some(pod.pod.namespace.clone()),
        options,
        bind_transparent: None,
    };
    let socket = Socket::open(shell, &spec, key.destination.ip()).map_err(Outcome::ConnectFailed)?;
    socket
        .connect(key.destination, limits::CONNECT_TIMEOUT)
        .await
        .map_err(|error| {
            if error.kind() == std::io::ErrorKind::TimedOut {
                Outcome::HboneConnectTimeout(error)
            } else {
                Outcome::ConnectFailed(error)
            }
        })?;
    let rules = shell.with(|core| core.handshake_rules());
    let handshake =
        Handshake::client(&certificate, key.accepted.clone(), rules)?.with_records_max(records_max);
    let established = shake(shell, &socket, key.destination, handshake, Direction::Outbound)
        .await
        .inspect_err(|outcome| shell.with(|core| core.doubt_certificate(&key.identity, outcome)))?;
    let http2 = shell.with(|core| Connection::client(core.http2_settings(Settings::client())));
    let role = Role::Client { key: key.clone() };
    let session = start_session(
        shell,
        socket,
        established,
        http2,
        role,
        pod,
        key.destination,
        None,
    );
    shell.with(|core| core.retire_if_renewed(session, &key.identity, &certificate));
    Ok(session)
}

/// Runs a handshake to its end. The peer gets our alert when we refuse it. To be followed by `start_session`
/// without an await in between.
pub async fn shake<D: Driver + 'static>(
    shell: &Shell<D>,
    medium: &impl Medium,
    peer: SocketAddr,
    mut handshake: Handshake,
    direction: Direction,
) -> Result<Established, Outcome> {
    let work = async move {
        let mut received: Option<RecvBuffer> = None;
        loop {
            let mut output = Output::default();
            let bytes = received.as_ref().map_or(&[][..], |buffer| buffer.bytes());
            let progress = handshake.advance(bytes, &mut output);
            let (bytes, end) = output.into_parts();
            // A peer that is gone takes no alert; why it was refused is what counts.
            let sent = medium.send(bytes, end).await.map_err(Outcome::Io);
            let progress = progress?;
            sent?;
            match progress {
                Progress::Done => return Ok(handshake.finish()?),
                Progress::More => {}
            }
            drop(received.take());
            received = match medium.receive(limits::READ_BYTES_MIN).await {
                Received::Data(buffer) => Some(buffer),
                Received::End => return Err(Outcome::Io(std::io::ErrorKind::UnexpectedEof.into())),
                Received::Failed(error) => return Err(Outcome::Io(error)),
            };
        }
    };
    let established = match shell.within(limits::HANDSHAKE_TIMEOUT, work).await {
        Ok(result) => result,
        Err(Elapsed) => Err(Outcome::Deadline {
            peer,
            what: "finish the TLS handshake",
            limit: limits::HANDSHAKE_TIMEOUT,
        }),
    };
    shell.with(|core| {
        let compared = established.and_then(|mut established| {
            compare_established(core, &mut established)?;
            Ok(established)
        });
        compared.inspect_err(|outcome| core.count_refusal(outcome, direction))
    })
}

/// Puts an established connection into the worker's table; from here on it is moved by completions.
#[expect(
    clippy::too_many_arguments,
    reason = "each is one part of the session; a struct would only rename them"
)]
pub fn start_session<D: Driver + 'static>(
    shell: &Shell<D>,
    socket: Socket<D>,
    established: Established,
    http2: Connection,
    role: Role,
    pod: &Rc<PodState>,
    peer_address: SocketAddr,
    places: Option<(LoadShare, CountedSession)>,
) -> Key<Session> {
    let id = socket.release();
    let is_server = matches!(role, Role::Server);
    let source = match &role {
        Role::Server => peer_address.ip(),
        Role::Client { key } => key.source,
    };
    shell.with(|core| {
        let local_address = core.local_address(id).unwrap_or(peer_address);
        let tenant = match is_server {
            true => core.tenants.of_source(peer_address.ip()),
            false => pod.tenant.clone(),
        };
        let session = Session::new(SessionParts {
            role,
            transport: Transport::Socket(id),
            channel: established.channel,
            http2,
            pod: pod.clone(),
            peer: established.peer,
            peer_address,
            local_address,
            revocable: established.revocable,
            places,
            tenant,
            unsent: core.sources.unsent(source),
            now: core.now,
        });
        let key = core.sessions.insert(session);
        core.driver.set_owner(id, Owned::Session(key).to_owner());
        core.driver.receive(id, ReceiveMode::Stream);
        core.begin_session(key, &established.leftover);
        // One that was dialled is for connections that were accepted before the drain; it ends with them.
        if core.draining && is_server {
            if let Some(session) = core.sessions.get_mut(key) {
                session.http2.goaway(ErrorCode::NoError, "");
            }
            core.retire_session(key);
        }
        key
    })
}

/// Opens a stream to `request.authority` and waits for the peer's 200. `errand`: what is said to the gateway on the way
/// to a session inside of another.
pub async fn connect<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    key: &Rc<PoolKey>,
    request: &ConnectRequest<'_>,
    errand: Option<&Rc<Errand>>,
) -> Result<(OpenStream<D>, Box<IncomingResponse>), Rc<Outcome>> {
    let (mut again, mut stale) = (0, false);
    loop {
        let session = pool::session(shell, pod, key, errand).await?;
        let Some((stream, answer)) = shell
            .with(|core| core.ask(session, request))
            .map(|(stream, user, answer)| (OpenStream::new(shell, session, stream, user), answer))
        else {
            continue;
        };
        let answer = shell
            .within(limits::CONNECT_ANSWER_TIMEOUT, answer)
            .await
            .map_err(|Elapsed| {
                Rc::new(Outcome::Deadline {
                    peer: key.destination,
                    what: "answer CONNECT",
                    limit: limits::CONNECT_ANSWER_TIMEOUT,
                })
            })?;
        if let Some(Answer::Response(_)) = answer {
            shell.with(|core| core.pool_is_well(key));
        }
        match answer {
            Some(Answer::Response(response)) if response.status == 200 => return Ok((stream, response)),
            // Another workload may do better: the gateway chooses anew for a session of its own.
            Some(Answer::Response(response)) if response.status == 503 && key.through.is_some() => {
                let was_shared = shell.with(|core| core.leave_choice(session));
                if !was_shared || stale {
                    return Err(Rc::new(Outcome::Status(HttpStatus(503))));
                }
                stale = true;
            }
            Some(Answer::Response(response)) => {
                return Err(Rc::new(Outcome::Status(HttpStatus(response.status))));
            }
            // RFC 9113 section 8.7: a refused stream was not processed, trying again is safe.
            Some(Answer::Reset(ErrorCode::RefusedStream)) if again < limits::REFUSED_RETRIES_MAX => {
                again += 1
            }
            // The peer may have ended a session that was not used for long just as this asked for a stream on it.
            // Nothing of the client's was said, so that asking another session is safe.
            Some(Answer::SessionClosed(Ending::Said(_) | Ending::Lost(_)))
                if again < limits::REFUSED_RETRIES_MAX && !shell.with(|core| core.draining) =>
            {
                again += 1
            }
            Some(Answer::Reset(code)) => return Err(Rc::new(Outcome::StreamReset(code))),
            Some(Answer::SessionClosed(why)) => return Err(Rc::new(why.outcome())),
            None => return Err(Rc::new(Outcome::Drained)),
        }
    }
}

impl<D: Driver + 'static> Core<D> {
    /// What every new session in the table begins with.
    pub(super) fn begin_session(&mut self, key: Key<Session>, leftover: &[u8]) {
        self.start_session_timer(key);
        if !leftover.is_empty() {
            self.session_received(key, leftover);
        }
        self.mark_session(key);
    }

    /// A workload behind a gateway reaches no application: no further streams go there. Whether others went before.
    fn leave_choice(&mut self, key: Key<Session>) -> bool {
        self.retire_session(key);
        self.sessions.get(key).is_some_and(|session| session.served > 1)
    }

    /// Sends CONNECT. `None` when the session cannot take a stream any more.
    fn ask(
        &mut self,
        key: Key<Session>,
        request: &ConnectRequest<'_>,
    ) -> Option<(StreamId, u32, oneshot::Receiver<Answer>)> {
        let session = self.sessions.get_mut(key)?;
        if session.retired || session.is_closing() {
            return None;
        }
        let stream = session.http2.open(0, request).ok()?;
        let (sender, answer) = oneshot::channel();
        let user = session.add_user(
            stream,
            UserState::Asked {
                answer: sender,
                held: Held::default(),
            },
        );
        session.served += 1;
        session.last_used = self.now;
        self.mark_session(key);
        Some((stream, user, answer))
    }
}
