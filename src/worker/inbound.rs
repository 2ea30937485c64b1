//! The inbound journey (15008): a CONNECT stream of an authenticated peer is delivered to the pod's
//! application.
//!
//! Asked, identified, validated, authorized, connected, answered, relayed; recorded when the relay ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::core::Core;
use super::hbone::dial::OpenStream;
use super::hbone::serve::Request;
use super::hbone::session::{Gone, UserState};
use super::live::Attempting;
use super::lookups;
use super::outbound::baggage;
use super::outcome::Outcome;
use super::pods::{Counted, PodState};
use super::recheck::note_first;
use super::room::Place;
use super::shell::{Medium, Shell, Socket};
use super::telemetry::Account;
use super::tenants::Tenant;
use super::tunnel::TunnelParts;
use super::workload::{own_workload, pod_workload};
use crate::bridge::log::Direction;
use crate::identity::Identity;
use crate::limits;
use crate::mesh::{
    ConnectionFacts, Delivery, Denial, Permit, PolicyEvent, Snapshot, TunnelAuthority, Workload,
};
use crate::planted::{Bug, is_planted};
use crate::runtime::oneshot;
use crate::sys::driver::{Driver, SocketSpec};
use crate::wire::hbone::{Authority, ConnectResponse, IncomingRequest, Method};
use crate::wire::http2::ErrorCode;
use crate::wire::proxy_protocol::ProxyHeader;
use crate::wire::traceparent::TraceContext;

/// What of the session a stream's journey needs.
struct Origin {
    pod: Rc<PodState>,
    peer: SocketAddr,
    local: SocketAddr,
    identity: Identity,
    tenant: Rc<Tenant>,
}

/// Serves one CONNECT up to its relay, or up to the answer that refuses it.
pub async fn serve<D: Driver + 'static>(shell: Shell<D>, request: Request) {
    let Request {
        session,
        stream,
        user,
        request,
        lane: _,
    } = request;
    let stream = OpenStream::new(&shell, session, stream, user);
    let (found, now) = shell.with(|core| (core.origin(&stream), core.now));
    let Some((origin, given_up)) = found else {
        return;
    };
    let mut account = Account::new(Direction::Inbound, now, origin.peer, origin.local);
    account.source_identity = Some(origin.identity.clone());
    let told = request.traceparent.as_deref().and_then(TraceContext::parse);
    account.connection_id = match told {
        Some(context) => context.trace_id,
        None => shell.with(|core| core.random.u128(..)),
    };

    let identified = origin
        .pod
        .while_present(identify(&shell, &origin, &request, &mut account))
        .await;
    let (place, own, delivery) = match identified.and_then(|identified| identified) {
        Ok(identified) => identified,
        Err(outcome) => return refuse(&shell, stream, account, &outcome, Refusal::BeforeConnection),
    };
    shell.with(|core| core.telemetry.open(&mut account));
    let attempting = Attempting::begin(&shell, &origin.pod, &account, delivery.address);
    let delivered =
        origin
            .pod
            .while_present(deliver(&shell, &origin, &own, &delivery, account.connection_id));
    let delivered = shell.unless(given_up, delivered).await;
    drop(attempting);
    let server = match delivered {
        Ok(Ok(Ok(server))) => server,
        // Otherwise peers that ask and go away would use up the pod's budget with connections to nowhere.
        Err(gone) => {
            let gone = gone.unwrap_or(Gone::Reset(ErrorCode::Cancel));
            return shell.with(|core| core.telemetry.fail(account, core.now, &gone.outcome()));
        }
        Ok(Ok(Err(outcome)) | Err(outcome)) => {
            return refuse(&shell, stream, account, &outcome, Refusal::Connection);
        }
    };
    let app = server.release();
    shell.with(|core| {
        let told = core.settings.response_baggage.then(|| baggage(&own).encode());
        let told = told.as_deref().filter(|text| !text.is_empty());
        core.answer(
            stream.session,
            stream.stream,
            &ConnectResponse {
                status: 200,
                baggage: told,
            },
        );
        let share = core.load.share(core.index);
        let parts = TunnelParts {
            app,
            session: stream.session,
            stream: stream.stream,
            user: stream.user,
            account: Box::new(account),
            pod: origin.pod,
            actual: delivery.address,
            share,
            place,
        };
        core.attach_tunnel(parts);
    });
    stream.attached();
}

/// Whether a refused stream counts as a connection in the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    BeforeConnection,
    Connection,
}

fn refuse<D: Driver + 'static>(
    shell: &Shell<D>,
    stream: OpenStream<D>,
    account: Account,
    outcome: &Outcome,
    refusal: Refusal,
) {
    shell.with(|core| {
        let response = ConnectResponse {
            status: outcome.connect_status(),
            baggage: None,
        };
        core.answer(stream.session, stream.stream, &response);
        match refusal {
            Refusal::BeforeConnection => core.telemetry.refuse(account, outcome),
            Refusal::Connection => core.telemetry.fail(account, core.now, outcome),
        }
    });
    stream.answered();
}

/// Takes a place, as a captured connection has one, checks the request and finds out where it goes.
async fn identify<D: Driver + 'static>(
    shell: &Shell<D>,
    origin: &Origin,
    request: &IncomingRequest,
    account: &mut Account,
) -> Result<(Place, Arc<Workload>, Delivery), Outcome> {
    let place = shell.with(|core| core.take_place(&origin.tenant, &origin.pod, origin.peer.ip(), 1))?;
    if let Method::Other(method) = &request.method {
        return Err(Outcome::Malformed(format!(
            "expected method CONNECT, got {method}"
        )));
    }
    let target = match request.authority.parse::<Authority>() {
        Ok(Authority::Ip(address)) => TunnelAuthority::Address(address),
        Ok(Authority::Host { host, port }) => TunnelAuthority::Host {
            hostname: host.into(),
            port,
        },
        Err(error) => {
            return Err(Outcome::Malformed(format!(
                "no valid authority pseudo header: {error}"
            )));
        }
    };
    account.hbone_address = Some(target.clone());
    let own = own_workload(shell, &origin.pod).await?;
    if let TunnelAuthority::Address(address) = &target
        && address.ip().to_canonical() != origin.local.ip().to_canonical()
        && own.application_tunnel.is_none()
    {
        // Whoever owns it may have this pod for a waypoint.
        let network = shell.with(|core| core.snapshot.load().locale().network.clone());
        lookups::know(shell, &origin.pod, &network, address.ip()).await?;
    }
    if let TunnelAuthority::Host { hostname, .. } = &target
        && let Some(service) = shell.with(|core| core.snapshot.load().missing_service(&own, hostname))
    {
        lookups::ask_for(shell, &origin.pod, &service, &mut Vec::new()).await?;
    }
    let delivery = shell.with(|core| core.validate(origin, &own, &target, request, account))?;
    Ok((place, own, delivery))
}

/// Authorizes and connects to the application: a 200 means that it has accepted.
async fn deliver<D: Driver + 'static>(
    shell: &Shell<D>,
    origin: &Origin,
    own: &Arc<Workload>,
    delivery: &Delivery,
    connection_id: u128,
) -> Result<Socket<D>, Outcome> {
    let facts = Facts {
        peer: origin.peer,
        application: delivery.address,
        identity: Some(&origin.identity),
        connection_id,
    };
    let on_loopback = shell.with(|core| core.settings.tunnels_on_loopback);
    let connect_to = delivery.connect_address(on_loopback);
    let header = delivery.preamble.as_ref().map(|preamble| {
        let identity = origin.identity.to_string();
        let header = ProxyHeader {
            source: origin.peer,
            destination: preamble.destination,
            identity: Some(&identity),
            host: preamble.host.as_deref(),
        };
        header.encode()
    });
    authorize_and_connect(shell, &origin.pod, own, &facts, connect_to, header).await
}

/// What a policy may ask of a connection.
pub struct Facts<'a> {
    pub peer: SocketAddr,
    /// The pod's address with the port that the application takes it at.
    pub application: SocketAddr,
    /// `None` for a peer that did not prove one.
    pub identity: Option<&'a Identity>,
    /// Names the connection in the log.
    pub connection_id: u128,
}

/// Connects to the application if policies allow it, before and after: what a policy forbids from now on must
/// not be let in because its application took seconds to accept, or to take the `header` in front of the client's
/// bytes. Nothing may be awaited between the second question and the relay, which is asked again by itself.
pub async fn authorize_and_connect<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    own: &Arc<Workload>,
    facts: &Facts<'_>,
    connect_to: SocketAddr,
    header: Option<Vec<u8>>,
) -> Result<Socket<D>, Outcome> {
    let (permit, seen) = shell
        .with(|core| {
            // Everything from one snapshot: what is published after it counts as a change.
            let snapshot = core.snapshot.load();
            let own = pod_workload(&snapshot, pod).unwrap_or(own);
            note_first(pod, &snapshot, own);
            Ok((
                core.authorize(&snapshot, own, facts)?,
                snapshot.policies_revision(),
            ))
        })
        .map_err(Outcome::Denied)?;
    let server = connect_application(shell, pod, facts.peer, connect_to, &permit).await?;
    if let Some(header) = header {
        let end = header.len();
        server.send(header, end).await.map_err(Outcome::ConnectFailed)?;
    }
    shell
        .with(|core| core.authorize_again(pod, own, facts, seen))
        .map_err(Outcome::Denied)?;
    Ok(server)
}

/// Connects to the pod's application, from the client's own address where sources are preserved. Takes the
/// proof that this was authorized.
async fn connect_application<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    peer: SocketAddr,
    application: SocketAddr,
    _permit: &Permit,
) -> Result<Socket<D>, Outcome> {
    let _budget = Counted::setup(pod)?;
    let options = shell.with(|core| core.settings.local_options());
    // A pod that calls itself cannot be its own foreign source, and nobody foreign reaches loopback.
    let source = peer.ip().to_canonical();
    let foreign = source != application.ip() && !application.ip().is_loopback();
    let bind_transparent =
        (pod.pod.preserve_source && foreign && source.is_ipv4() == application.is_ipv4()).then_some(source);
    let spec = SocketSpec {
        namespace: Some(pod.pod.namespace.clone()),
        options,
        bind_transparent,
    };
    let server = Socket::open(shell, &spec, application.ip())
        .map_err(Outcome::ConnectFailed)?
        .resetting();
    server
        .connect(application, limits::CONNECT_TIMEOUT)
        .await
        .map_err(Outcome::ConnectFailed)?;
    Ok(server)
}

impl<D: Driver + 'static> Core<D> {
    /// With what ends when the peer gives the stream up. `None` when the session or the stream has gone already:
    /// nothing is dialled for a stream that was reset.
    fn origin(&mut self, stream: &OpenStream<D>) -> Option<(Origin, oneshot::Receiver<Gone>)> {
        let session = self.sessions.get_mut(stream.session)?;
        let (wanted, given_up) = oneshot::channel();
        match &mut session.user_mut(stream.user, stream.stream)?.state {
            UserState::Preparing { held } if held.gone.is_none() => held.wanted = Some(wanted),
            UserState::Preparing { .. }
            | UserState::Asked { .. }
            | UserState::Relaying(_)
            | UserState::Carrying(_) => return None,
        }
        let origin = Origin {
            pod: session.pod.clone(),
            peer: session.peer_address,
            local: session.local_address,
            identity: session.peer.first().clone(),
            tenant: session.tenant.clone(),
        };
        Some((origin, given_up))
    }

    fn validate(
        &mut self,
        origin: &Origin,
        own: &Arc<Workload>,
        target: &TunnelAuthority,
        request: &IncomingRequest,
        account: &mut Account,
    ) -> Result<Delivery, Outcome> {
        let snapshot = self.snapshot.load();
        let delivery = snapshot.validate_inbound(own, origin.local.ip(), target)?;
        let reads_baggage = self.settings.response_baggage;
        account.describe_inbound(&snapshot, own, request, &delivery, reads_baggage);
        Ok(delivery)
    }

    /// Asks the policies again when they may have changed since the revision `seen`.
    fn authorize_again(
        &mut self,
        pod: &PodState,
        own: &Arc<Workload>,
        facts: &Facts<'_>,
        seen: u64,
    ) -> Result<(), Denial> {
        let snapshot = self.snapshot.load();
        if snapshot.policies_revision() == seen || is_planted(Bug::PermitNotRechecked) {
            return Ok(());
        }
        let own = pod_workload(&snapshot, pod).unwrap_or(own);
        self.authorize(&snapshot, own, facts).map(drop)
    }

    fn authorize(&self, snapshot: &Snapshot, own: &Workload, facts: &Facts<'_>) -> Result<Permit, Denial> {
        let asked = ConnectionFacts {
            source: facts.peer,
            destination: facts.application,
            identity: facts.identity,
        };
        let as_info = self.settings.policy_info_logging;
        snapshot.authorize_observed(own, &asked, &mut |event| {
            tell_of_policy(as_info, own, facts, &event)
        })
    }
}

/// In the spans that ztunnel's lines about policies have: whose connection it is, and which. They are made only where
/// somebody reads them: most policies say something about every connection.
fn tell_of_policy(as_info: bool, own: &Workload, facts: &Facts<'_>, event: &PolicyEvent<'_>) {
    let is_unknown = matches!(event, PolicyEvent::Unknown(_));
    let is_read = match (is_unknown, as_info) {
        (true, _) => tracing::enabled!(target: "rbac", tracing::Level::WARN),
        (false, true) => tracing::enabled!(target: "rbac", tracing::Level::INFO),
        (false, false) => tracing::enabled!(target: "rbac", tracing::Level::DEBUG),
    };
    if !is_read {
        return;
    }
    let wl = format_args!("{}/{}", own.namespace, own.name);
    let proxy = tracing::info_span!(target: "rbac", "proxy", %wl);
    let (id, peer) = (format_args!("{:032x}", facts.connection_id), facts.peer);
    let inbound = tracing::info_span!(target: "rbac", parent: &proxy, "inbound", %id, %peer);
    let _inbound = inbound.enter();
    let (policy, rule) = (event.policy(), event.rule());
    let message = event.message();
    match (is_unknown, as_info) {
        (true, _) => tracing::warn!(target: "rbac", policy, "{message} {}", policy.unwrap_or_default()),
        (false, true) => tracing::info!(target: "rbac", policy, rule, "{message}"),
        (false, false) => tracing::debug!(target: "rbac", policy, rule, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::mesh::{Builder, Locale};
    use crate::runtime::tasks::Executor;
    use crate::worker::fixture;

    const OWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 8080);
    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)), 40_000);

    /// What is taken of the baggage of a peer that the mesh does not know: the name of its workload.
    fn told(response_baggage: bool) -> Option<String> {
        let mut core = fixture::core(&Executor::default());
        let settings = Rc::get_mut(&mut core.settings).expect("nobody else has them");
        settings.response_baggage = response_baggage;
        core.snapshot.publish(Builder::new(Locale::default()).build());
        let pod = fixture::pod();
        let identity = Identity::new("cluster.local", "shop", "till");
        let own = Arc::new(Workload::new("c1//Pod/shop/till", "till", identity));
        let origin = Origin {
            peer: PEER,
            local: OWN,
            identity: Identity::new("cluster.local", "bank", "cart"),
            tenant: pod.tenant.clone(),
            pod,
        };
        let request = IncomingRequest {
            method: Method::Connect,
            authority: OWN.to_string(),
            baggage: vec!["k8s.namespace.name=bank,k8s.deployment.name=cart".to_owned()],
            traceparent: None,
            forwarded: None,
            forwarded_network: None,
        };
        let mut account = Account::new(Direction::Inbound, core.now, PEER, OWN);
        let target = TunnelAuthority::Address(OWN);
        core.validate(&origin, &own, &target, &request, &mut account)
            .expect("its own address");
        account.source_told.and_then(|told| told.workload_name)
    }

    /// Contract: data-plane.md section 11.4: one switch for both ways.
    #[test]
    fn what_a_peer_says_about_itself_is_read_only_where_response_baggage_is_on() {
        assert_eq!(told(true).as_deref(), Some("cart"));
        assert_eq!(told(false), None);
    }
}
