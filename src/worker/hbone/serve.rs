//! The server's side of HBONE: accepting sessions on a pod's port 15008 and answering CONNECT.

use super::dial::{shake, start_session};
use super::session::{Role, Session};
use crate::bridge::log::Direction;
use crate::runtime::slab::Key;
use crate::runtime::tasks::Lane;
use crate::sys::driver::Driver;
use crate::tls::handshake::Handshake;
use crate::wire::hbone::{ConnectResponse, IncomingRequest};
use crate::wire::http2::{Connection, Settings, StreamId};
use crate::worker::certificates::certificate;
use crate::worker::core::Core;
use crate::worker::listen::Captured;
use crate::worker::outcome::Outcome;
use crate::worker::pods::{CountedHandshake, CountedSession};
use crate::worker::shell::{Shell, Socket};
use crate::worker::telemetry::Account;
use crate::worker::workload::own_workload;

/// A CONNECT that waits for its journey to start.
pub struct Request {
    pub session: Key<Session>,
    pub stream: StreamId,
    pub user: u32,
    pub request: Box<IncomingRequest>,
    /// Of its journey's task.
    pub lane: Lane,
}

/// Takes an accepted connection up to a session, whose requests the worker's turn then hands to
/// `inbound::serve`.
pub async fn accept<D: Driver + 'static>(shell: Shell<D>, captured: Captured) {
    let peer = captured.peer;
    let (now, local) = (
        shell.with(|core| core.now),
        captured.fd.local_address().unwrap_or(peer),
    );
    let pod = captured.pod.clone();
    let established = pod.while_present(establish(&shell, captured)).await;
    if let Err(outcome) = established.and_then(|established| established) {
        let account = Account::new(Direction::Inbound, now, peer, local);
        shell.with(|core| core.telemetry.refuse(account, &outcome));
    }
}

async fn establish<D: Driver + 'static>(shell: &Shell<D>, captured: Captured) -> Result<(), Outcome> {
    drop(captured.unbegun);
    let Captured {
        pod,
        fd,
        peer,
        share,
        // Until there is a session, which is counted for its pod; its streams have places of their own.
        place: _place,
        ..
    } = captured;
    let socket = Socket::adopt(shell, fd).map_err(Outcome::Io)?;
    let budget = CountedHandshake::new(&pod, peer.ip())?;
    let place = CountedSession::new(&pod, peer.ip())?;
    let workload = own_workload(shell, &pod).await?;
    let certificate = certificate(shell, &workload.identity).await?;
    let (rules, records_max) = shell.with(|core| (core.handshake_rules(), core.settings.tls_records_max));
    let handshake = Handshake::server(&certificate, rules)?.with_records_max(records_max);
    let established = shake(shell, &socket, peer, handshake, Direction::Inbound)
        .await
        .inspect_err(|outcome| shell.with(|core| core.doubt_certificate(&workload.identity, outcome)))?;
    drop(budget);
    let http2 = shell.with(|core| Connection::server(place.share(core.http2_settings(Settings::server()))));
    start_session(
        shell,
        socket,
        established,
        http2,
        Role::Server,
        &pod,
        peer,
        Some((share, place)),
    );
    Ok(())
}

impl<D: Driver + 'static> Core<D> {
    /// Answers a CONNECT. Anything but 200 ends the stream.
    pub fn answer(&mut self, key: Key<Session>, stream: StreamId, response: &ConnectResponse<'_>) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.http2.respond(stream, response, response.status != 200);
        }
        self.mark_session(key);
    }

    /// What this proxy offers its peers, on top of the engine's defaults for its side.
    pub fn http2_settings(&self, side: Settings) -> Settings {
        Settings {
            stream_window_bytes: self.settings.stream_window_bytes,
            connection_window_bytes: self.settings.connection_window_bytes,
            frame_bytes_max: self.settings.frame_bytes_max,
            ..side
        }
    }
}
