//! Sessions inside of a stream of another one ("double HBONE"): through the gateway of another network, which sees where
//! its streams go, to whoever serves there, who is authenticated on the session inside.
//!
//! Unlike ztunnel's these are pooled: connections of one source to one service share the session inside, and with it the
//! workload that the gateway chose. Invariant: no more streams are opened on it once its workload answers that it
//! reaches no application. Specification: data-plane contract sections 6.9 and 9.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::carrier::Line;
use super::dial::{self, OpenStream, shake};
use super::pool::{PoolKey, Through};
use super::session::{Role, Session, SessionParts, Transport};
use crate::bridge::log::Direction;
use crate::identity::Identity;
use crate::runtime::slab::Key;
use crate::sys::driver::Driver;
use crate::tls::handshake::{Established, Handshake};
use crate::wire::hbone::{ConnectRequest, IncomingResponse};
use crate::wire::http2::{Connection, Settings};
use crate::worker::certificates::certificate;
use crate::worker::outcome::{Leg, Outcome};
use crate::worker::pods::PodState;
use crate::worker::shell::Shell;

/// What CONNECT says of a connection: to the gateway of that for which a session inside is made.
#[derive(Clone)]
pub struct Errand {
    pub baggage: String,
    pub forwarded: String,
    pub trace: String,
}

impl Errand {
    /// `network`: the own one, told inside only.
    pub fn request<'a>(&'a self, authority: &'a str, network: Option<&'a str>) -> ConnectRequest<'a> {
        ConnectRequest {
            authority,
            baggage: Some(&*self.baggage).filter(|text| !text.is_empty()),
            forwarded: Some(&self.forwarded),
            traceparent: Some(&self.trace),
            forwarded_network: network,
        }
    }
}

/// A stream inside, and what is known of whoever answered there.
pub struct Reached<D: Driver + 'static> {
    pub stream: OpenStream<D>,
    pub response: Box<IncomingResponse>,
    /// `None` when the session has ended meanwhile.
    pub identity: Option<Identity>,
}

/// Opens a stream on a session inside of one to the gateway, and waits for 200.
pub async fn connect<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    key: &Rc<PoolKey>,
    request: &ConnectRequest<'_>,
    errand: &Rc<Errand>,
) -> Result<Reached<D>, Rc<Outcome>> {
    let (stream, response) = dial::connect(shell, pod, key, request, Some(errand)).await?;
    let identity = shell.with(|core| {
        let session = core.sessions.get(stream.session);
        session.map(|session| session.peer.first().clone())
    });
    Ok(Reached {
        stream,
        response,
        identity,
    })
}

/// Makes the session of `key`: a stream of the session to its gateway, and a handshake on it. Boxed: a session to the
/// gateway comes from the pool as well, which dials for both.
pub fn dial<'a, D: Driver + 'static>(
    shell: &'a Shell<D>,
    pod: &'a Rc<PodState>,
    key: &'a Rc<PoolKey>,
    through: &'a Through,
    errand: &'a Rc<Errand>,
) -> Pin<Box<dyn Future<Output = Result<Key<Session>, Outcome>> + 'a>> {
    Box::pin(async move {
        let request = errand.request(&through.authority, None);
        let gateway = key.destination;
        let (stream, _) = dial::connect(shell, pod, &through.gateway, &request, None)
            .await
            .map_err(|cause| Outcome::on_leg(Leg::ToGateway, gateway, cause))?;
        let inside = |cause| Outcome::on_leg(Leg::Inside, gateway, Rc::new(cause));
        shake_inside(shell, pod, key, stream).await.map_err(inside)
    })
}

async fn shake_inside<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    key: &Rc<PoolKey>,
    stream: OpenStream<D>,
) -> Result<Key<Session>, Outcome> {
    let line = Line::open(stream, shell)?;
    let certificate = certificate(shell, &key.identity).await?;
    let (rules, records_max) = shell.with(|core| (core.handshake_rules(), core.settings.tls_records_max));
    let handshake =
        Handshake::client(&certificate, key.accepted.clone(), rules)?.with_records_max(records_max);
    match shake(shell, &line, key.destination, handshake, Direction::Outbound).await {
        Ok(established) => {
            let session = start(shell, line, established, pod, key);
            shell.with(|core| core.retire_if_renewed(session, &key.identity, &certificate));
            Ok(session)
        }
        Err(failed) => {
            shell.with(|core| core.doubt_certificate(&key.identity, &failed));
            Err(line.lost().map_or(failed, |why| why.outcome()))
        }
    }
}

fn start<D: Driver + 'static>(
    shell: &Shell<D>,
    line: Line<D>,
    established: Established,
    pod: &Rc<PodState>,
    key: &Rc<PoolKey>,
) -> Key<Session> {
    let carrier = line.release();
    shell.with(|core| {
        let settings = core.http2_settings(Settings::client());
        let session = Session::new(SessionParts {
            role: Role::Client { key: key.clone() },
            transport: Transport::Carrier(carrier),
            channel: established.channel,
            http2: Connection::client(settings),
            pod: pod.clone(),
            peer: established.peer,
            peer_address: key.destination,
            local_address: core.carrier_address(carrier).unwrap_or(key.destination),
            revocable: established.revocable,
            places: None,
            tenant: pod.tenant.clone(),
            unsent: core.sources.unsent(key.source),
            now: core.now,
        });
        let inside = core.sessions.insert(session);
        core.begin_session(inside, &established.leftover);
        core.give_carrier(carrier, inside);
        inside
    })
}
