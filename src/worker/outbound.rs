//! The outbound journey (15001): a pod's application opens a connection; it goes to its destination through
//! HBONE, or as it is where the mesh knows no better.
//!
//! Captured, identified, decided, connected, relayed; recorded when the relay ends.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use super::core::Core;
use super::hbone::dial::{self, OpenStream};
use super::hbone::inside::{self, Errand, Reached};
use super::hbone::pool::{PoolKey, Through};
use super::listen::Captured;
use super::live::Attempting;
use super::lookups;
use super::outcome::{Leg, Outcome};
use super::pods::{Counted, PodState};
use super::room::Place;
use super::shell::{Either, Elapsed, Shell, Socket, either};
use super::telemetry::{Account, Opens};
use super::tunnel::TunnelParts;
use super::workload::{own_workload, pod_workload};
use crate::bridge::load::LoadShare;
use crate::bridge::log::Direction;
use crate::limits;
use crate::mesh::{Decision, DoubleHop, Hop, Plan, RouteError, Unresolved, Way, Workload};
use crate::sys::driver::{Driver, SocketId, SocketSpec};
use crate::wire::baggage::Baggage;
use crate::wire::hbone::forwarded_value;
use crate::wire::traceparent::TraceContext;

/// Serves one captured connection up to its relay.
pub async fn serve<D: Driver + 'static>(shell: Shell<D>, captured: Captured) {
    drop(captured.unbegun);
    let Captured {
        pod,
        fd,
        peer,
        share,
        place,
        ..
    } = captured;
    let now = shell.with(|core| core.now);
    let Ok(client) = Socket::adopt(&shell, fd) else {
        return;
    };
    let Some(target) = shell.with(|core| core.original_destination(client.id())) else {
        return;
    };
    let mut account = Account::new(Direction::Outbound, now, peer, target);
    account.connection_id = shell.with(|core| core.random.u128(1..));

    let decided = pod
        .while_present(decide(&shell, &pod, client.id(), target, &mut account))
        .await;
    let course = match decided.and_then(|decided| decided) {
        Ok(course) => course,
        Err(outcome) => {
            shell.with(|core| core.telemetry.refuse(account, &outcome));
            return;
        }
    };
    if course.opens() == Opens::AtOnce {
        shell.with(|core| core.telemetry.open(&mut account));
    }
    let connected = pod
        .while_present(connect(&shell, &pod, course, target, &mut account))
        .await;
    if let Ok(Ok(End::Inside(reached))) = &connected {
        account.describe_remote(reached.identity.clone(), reached.response.baggage.as_deref());
    }
    shell.with(|core| core.telemetry.open(&mut account));
    match connected.map_err(Rc::new).and_then(|connected| connected) {
        Ok(end) => relay(&shell, pod, client, end, Box::new(account), share, place),
        Err(outcome) => shell.with(|core| core.telemetry.fail(account, core.now, &outcome)),
    }
}

/// A plan, with what is needed to carry it out.
struct Course {
    lead: Lead,
    /// There may be another one.
    has_choice: bool,
}

enum Lead {
    Plain { next_hop: SocketAddr },
    Tunnel(Request),
}

/// A CONNECT, and on which sessions it may be asked.
struct Request {
    key: Rc<PoolKey>,
    authority: String,
    words: Errand,
    /// The network that it comes from, told inside of a session to a gateway only.
    network: Option<Arc<str>>,
}

impl Course {
    fn next_hop(&self) -> SocketAddr {
        match &self.lead {
            Lead::Plain { next_hop } => *next_hop,
            Lead::Tunnel(request) => request.key.destination,
        }
    }

    fn opens(&self) -> Opens {
        match &self.lead {
            Lead::Tunnel(request) if request.key.through.is_some() => Opens::Connected,
            Lead::Tunnel(_) | Lead::Plain { .. } => Opens::AtOnce,
        }
    }
}

/// The far end of a connection.
enum End<D: Driver + 'static> {
    Stream(OpenStream<D>),
    /// In another network.
    Inside(Reached<D>),
    Socket(Socket<D>),
}

async fn decide<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    client: SocketId,
    target: SocketAddr,
    account: &mut Account,
) -> Result<Course, Outcome> {
    if shell.with(|core| core.is_aimed_at_us(client, target)) {
        return Err(Outcome::RecursiveCall);
    }
    if let Some(plan) = shell.with(|core| core.route_unidentified(pod, target)) {
        let next_hop = plan.way.next_hop();
        account.destination_address = next_hop;
        return Ok(Course {
            lead: Lead::Plain { next_hop },
            has_choice: false,
        });
    }
    let source = own_workload(shell, pod).await?;
    account.source = Some(source.clone());
    lookups::know(shell, pod, &source.network, target.ip()).await?;
    route(shell, pod, &source, target, &[], account).await
}

/// A course other than those that lead to `tried`, described in `account`. With nothing tried, the first one.
async fn route<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    source: &Arc<Workload>,
    target: SocketAddr,
    tried: &[SocketAddr],
    account: &mut Account,
) -> Result<Course, Outcome> {
    let peer = account.source_address;
    let mut gateways = Vec::new();
    // Names that led nowhere, and why.
    let mut in_vain: Vec<(Arc<str>, Outcome)> = Vec::new();
    let mut draws = 0;
    let plan = loop {
        match shell.with(|core| core.choose(pod, source, peer, target, tried)) {
            Ok(Decision::Go(plan)) => break plan,
            Ok(Decision::Resolve(unresolved)) => {
                let (hostname, has_choice) = (unresolved.hostname.clone(), unresolved.is_drawn());
                draws += 1;
                if let Some(known) = in_vain.iter().position(|(name, _)| *name == hostname) {
                    if draws < limits::ENDPOINT_DRAWS_MAX {
                        continue;
                    }
                    return Err(in_vain.swap_remove(known).1);
                }
                shell.with(|core| core.telemetry.count_lookup(source, &hostname));
                let choose = |core: &mut Core<D>, unresolved: &Unresolved, addresses| {
                    core.choose_address(pod, source, peer, tried, unresolved, addresses)?
                        .ok_or(RouteError::NoHealthyUpstream(target))
                };
                match lookups::resolve(shell, pod, unresolved, choose).await {
                    Ok(plan) => break plan,
                    // Another endpoint may have a better one.
                    Err(why @ Outcome::Route(_))
                        if has_choice && in_vain.len() + 1 < limits::ENDPOINT_TRIES_MAX =>
                    {
                        in_vain.push((hostname, why));
                    }
                    Err(outcome) => return Err(outcome),
                }
            }
            // Some show only when an endpoint has been chosen.
            Err(RouteError::UnknownGateway(gateway) | RouteError::UnknownWaypoint(gateway))
                if lookups::ask_for(shell, pod, &gateway.target, &mut gateways).await? => {}
            Err(refused) => return Err(refused.into()),
        }
    };
    shell.with(|core| core.course(pod, source, plan, account))
}

/// Connects as planned. As long as nothing of the client's was said, an endpoint of a service that takes no connection,
/// or takes its time, is given up for another one: a pod that ends, or whose node died, is an endpoint for a while
/// after it stopped listening. A workload that lost its address meanwhile is given up for the one that has it now.
async fn connect<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    mut course: Course,
    target: SocketAddr,
    account: &mut Account,
) -> Result<End<D>, Rc<Outcome>> {
    let mut tried = Vec::new();
    let mut tries_left = limits::ENDPOINT_TRIES_MAX;
    loop {
        tries_left -= 1;
        let other = {
            let _attempting = Attempting::begin(shell, pod, account, course.next_hop());
            let mut work = pin!(attempt(shell, pod, &course));
            let attempted = if course.has_choice && tries_left > 0 {
                shell.within(limits::ENDPOINT_PATIENCE, work.as_mut()).await
            } else {
                Ok(work.as_mut().await)
            };
            match attempted {
                Ok(Ok(end)) => return Ok(end),
                Ok(Err(failed)) if tries_left == 0 || !failed.is_about_an_endpoint() => return Err(failed),
                Ok(Err(failed)) => another(shell, pod, &course, target, &mut tried, account, &failed)
                    .await
                    .ok_or(failed)?,
                Err(Elapsed) => {
                    let slow = Outcome::Deadline {
                        peer: course.next_hop(),
                        what: "answer",
                        limit: limits::ENDPOINT_PATIENCE,
                    };
                    let mut choosing = pin!(another(shell, pod, &course, target, &mut tried, account, &slow));
                    // The choice may have to wait for a name server, and the slow one may answer meanwhile.
                    match either(work.as_mut(), choosing.as_mut()).await {
                        Either::First(Ok(end)) => return Ok(end),
                        Either::First(Err(failed)) if !failed.is_about_an_endpoint() => return Err(failed),
                        Either::First(Err(failed)) => choosing.await.ok_or(failed)?,
                        Either::Second(None) => return work.await,
                        Either::Second(Some(other)) => {
                            shell.with(|core| core.avoid(pod, &course));
                            other
                        }
                    }
                }
            }
        };
        course = other;
    }
}

/// Chooses another endpoint than that of `course` and those tried before, if there is one. If the address is another
/// workload's by now, it may well be the same address.
async fn another<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    course: &Course,
    target: SocketAddr,
    tried: &mut Vec<SocketAddr>,
    account: &mut Account,
    why: &Outcome,
) -> Option<Course> {
    let source = account.source.clone()?;
    let from = course.next_hop();
    if !shell.with(|core| core.is_overtaken(course)) {
        if !course.has_choice {
            return None;
        }
        tried.push(from);
    }
    let given_up = (course.opens() == Opens::Connected).then(|| account.clone());
    let other = route(shell, pod, &source, target, tried, account).await.ok()?;
    let id = format_args!("{:032x}", account.connection_id);
    tracing::debug!(%id, %from, to = %other.next_hop(), "another endpoint is tried: {why}");
    shell.with(|core| {
        if let Some(given_up) = given_up {
            core.telemetry.give_up(given_up, why);
        }
        core.telemetry.reopen(account, why, other.opens());
    });
    Some(other)
}

async fn attempt<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    course: &Course,
) -> Result<End<D>, Rc<Outcome>> {
    let _budget = Counted::setup(pod)?;
    match &course.lead {
        Lead::Plain { next_hop } => {
            let connected = pass_through(shell, pod, *next_hop).await;
            if course.has_choice {
                let key = (pod.pod.uid.clone(), *next_hop);
                shell.with(|core| match &connected {
                    Ok(_) => core.plain_is_well(&key),
                    Err(_) => core.plain_is_in_trouble(key),
                });
            }
            connected.map(End::Socket)
        }
        Lead::Tunnel(request) => tunnel(shell, pod, request).await,
    }
}

async fn tunnel<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    request: &Request,
) -> Result<End<D>, Rc<Outcome>> {
    let connect = request
        .words
        .request(&request.authority, request.network.as_deref());
    if request.key.through.is_none() {
        let (stream, _response) = dial::connect(shell, pod, &request.key, &connect, None).await?;
        return Ok(End::Stream(stream));
    }
    let errand = Rc::new(request.words.clone());
    let reached = inside::connect(shell, pod, &request.key, &connect, &errand).await;
    let inside = |cause| Rc::new(Outcome::on_leg(Leg::Inside, request.key.destination, cause));
    reached.map(End::Inside).map_err(inside)
}

async fn pass_through<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    next_hop: SocketAddr,
) -> Result<Socket<D>, Rc<Outcome>> {
    let options = shell.with(|core| core.settings.socket_options);
    let spec = SocketSpec {
        namespace: Some(pod.pod.namespace.clone()),
        options,
        bind_transparent: None,
    };
    let failed = |error| Rc::new(Outcome::ConnectFailed(error));
    let server = Socket::open(shell, &spec, next_hop.ip()).map_err(failed)?;
    server
        .connect(next_hop, limits::CONNECT_TIMEOUT)
        .await
        .map_err(failed)?;
    Ok(server)
}

fn relay<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: Rc<PodState>,
    client: Socket<D>,
    end: End<D>,
    account: Box<Account>,
    share: LoadShare,
    place: Place,
) {
    match end {
        End::Stream(stream) | End::Inside(Reached { stream, .. }) => {
            let app = client.release();
            shell.with(|core| {
                let (session, user) = (stream.session, stream.user);
                let actual = account.destination_address;
                let parts = TunnelParts {
                    app,
                    session,
                    stream: stream.stream,
                    user,
                    account,
                    pod,
                    actual,
                    share,
                    place,
                };
                core.attach_tunnel(parts);
            });
            stream.attached();
        }
        End::Socket(server) => {
            let (client, server) = (client.release(), server.release());
            shell.with(|core| core.attach_pipe(pod, client, server, account, share, place));
        }
    }
}

fn pool_key(pod: &PodState, source: &Workload, peer: SocketAddr, hop: &Hop, plan: &Plan) -> PoolKey {
    PoolKey {
        pod: pod.pod.uid.clone(),
        identity: source.identity.clone(),
        source: peer.ip(),
        destination: hop.next_hop,
        accepted: hop.accepted.clone(),
        workload: plan.destination.as_ref().map(|to| to.uid.clone()),
        through: None,
    }
}

/// Of a session inside of the one to the gateway, of which `gateway` is the key.
fn pool_key_inside(hop: &DoubleHop, gateway: PoolKey) -> PoolKey {
    PoolKey {
        accepted: hop.inner_accepted.clone(),
        // Which one it is, is the gateway's choice.
        workload: None,
        through: Some(Rc::new(Through {
            authority: hop.outer.authority.to_string(),
            gateway: Rc::new(gateway.clone()),
        })),
        ..gateway
    }
}

/// What this proxy says about a workload of its own (contract: data-plane.md section 9).
pub fn baggage(workload: &Workload) -> Baggage<&str> {
    fn text(text: &str) -> Option<&str> {
        Some(text).filter(|text| !text.is_empty())
    }
    Baggage {
        cluster: text(&workload.site.cluster_id),
        namespace: text(&workload.namespace),
        workload_name: text(&workload.workload_name),
        workload_type: text(&workload.workload_type),
        service_name: text(&workload.canonical_name),
        revision: text(&workload.canonical_revision),
        region: text(&workload.site.locality.region),
        zone: text(&workload.site.locality.zone),
    }
}

impl<D: Driver + 'static> Core<D> {
    /// Decides otherwise than for what leads to `tried`, as far as that is known yet. Endpoints in trouble are the last
    /// choice, after those of the next scopes where a service fails over.
    fn choose(
        &mut self,
        pod: &PodState,
        source: &Arc<Workload>,
        peer: SocketAddr,
        target: SocketAddr,
        tried: &[SocketAddr],
    ) -> Result<Decision, RouteError> {
        let snapshot = self.snapshot.load();
        let mut chosen = None;
        for draw in 0.. {
            let wider = draw / limits::ENDPOINT_DRAWS_MAX;
            let random = &mut self.random;
            let mut random = || random.u64(..);
            let plan = match snapshot.route_wider(source, peer.ip(), target, wider, &mut random)? {
                Decision::Go(plan) => plan,
                Decision::Resolve(unresolved) => return Ok(Decision::Resolve(unresolved)),
            };
            if wider > plan.drawn.map_or(0, |drawn| drawn.failover_scopes) {
                break;
            }
            if tried.contains(&plan.way.next_hop()) {
                continue;
            }
            if !self.avoids(pod, source, peer, &plan, tried.is_empty()) {
                return Ok(Decision::Go(plan));
            }
            chosen.get_or_insert(plan);
        }
        chosen
            .map(Decision::Go)
            .ok_or(RouteError::NoHealthyUpstream(target))
    }

    /// The same among the addresses of a name, in the order in which they are given. `None`: all of them were tried.
    fn choose_address(
        &mut self,
        pod: &PodState,
        source: &Workload,
        peer: SocketAddr,
        tried: &[SocketAddr],
        unresolved: &Unresolved,
        addresses: Vec<IpAddr>,
    ) -> Result<Option<Plan>, RouteError> {
        let mut is_recursive = false;
        let mut chosen = None;
        for ip in addresses {
            let plan = unresolved.clone().with_address(ip);
            let next_hop = plan.way.next_hop();
            // A name server may say anything.
            if self.snapshot.load().is_recursive(next_hop) {
                is_recursive = true;
            } else if !tried.contains(&next_hop) {
                if !self.avoids(pod, source, peer, &plan, tried.is_empty()) {
                    return Ok(Some(plan));
                }
                chosen.get_or_insert(plan);
            }
        }
        match chosen {
            None if is_recursive => Err(RouteError::Recursive),
            chosen => Ok(chosen),
        }
    }

    /// How a plan is carried out; `account` says what it leads to.
    fn course(
        &mut self,
        pod: &PodState,
        source: &Arc<Workload>,
        plan: Plan,
        account: &mut Account,
    ) -> Result<Course, Outcome> {
        let lead = match &plan.way {
            Way::Tcp { next_hop } => Lead::Plain { next_hop: *next_hop },
            Way::Hbone(hop) => Lead::Tunnel(self.request(pod, source, hop, &plan, account)),
            Way::DoubleHbone(hop) => Lead::Tunnel(self.request_inside(pod, source, hop, &plan, account)),
        };
        let course = Course {
            lead,
            has_choice: plan.drawn.is_some(),
        };
        account.describe_outbound(source, &plan);
        Ok(course)
    }

    fn request(
        &mut self,
        pod: &PodState,
        source: &Workload,
        hop: &Hop,
        plan: &Plan,
        account: &Account,
    ) -> Request {
        let peer = account.source_address;
        let hostname = plan.service.as_ref().map(|service| &*service.hostname);
        Request {
            key: Rc::new(pool_key(pod, source, peer, hop, plan)),
            authority: hop.authority.to_string(),
            words: Errand {
                baggage: baggage(source).encode(),
                forwarded: forwarded_value(peer, hostname),
                trace: TraceContext::new(account.connection_id, self.random.u64(1..)).to_string(),
            },
            network: None,
        }
    }

    /// The gateway is asked for the same as whoever is behind it.
    fn request_inside(
        &mut self,
        pod: &PodState,
        source: &Workload,
        hop: &DoubleHop,
        plan: &Plan,
        account: &Account,
    ) -> Request {
        let gateway = pool_key(pod, source, account.source_address, &hop.outer, plan);
        Request {
            key: Rc::new(pool_key_inside(hop, gateway)),
            network: Some(source.network.clone()),
            ..self.request(pod, source, &hop.outer, plan, account)
        }
    }

    /// Whether the plan leads to an endpoint in trouble of a service, which may have others. Who `may_find_out` is told
    /// no now and then; who has been unlucky once is not.
    fn avoids(
        &mut self,
        pod: &PodState,
        source: &Workload,
        peer: SocketAddr,
        plan: &Plan,
        may_find_out: bool,
    ) -> bool {
        if plan.drawn.is_none() || !self.troubles.are_there() {
            return false;
        }
        match &plan.way {
            Way::Hbone(hop) | Way::DoubleHbone(DoubleHop { outer: hop, .. }) => {
                let key = pool_key(pod, source, peer, hop, plan);
                self.pool_avoids(&key, may_find_out)
            }
            Way::Tcp { next_hop } => {
                let key = (pod.pod.uid.clone(), *next_hop);
                self.plain_is_avoided(&key, may_find_out)
            }
        }
    }

    fn avoid(&mut self, pod: &PodState, course: &Course) {
        match &course.lead {
            Lead::Tunnel(request) => {
                let through = request.key.through.as_ref();
                self.pool_is_slow(through.map_or(&request.key, |through| &through.gateway));
            }
            Lead::Plain { next_hop } => self.plain_is_in_trouble((pod.pod.uid.clone(), *next_hop)),
        }
    }

    /// Whether it leads to a workload whose address has changed hands since.
    fn is_overtaken(&self, course: &Course) -> bool {
        matches!(&course.lead, Lead::Tunnel(request) if self.check_owner(&request.key).is_err())
    }

    /// Whether a connection was made to our own listener, at whatever address of the pod, and not led there on its way to
    /// somebody: where it wants to go is where it is, and we would call ourselves for ever.
    fn is_aimed_at_us(&self, client: SocketId, target: SocketAddr) -> bool {
        self.snapshot.load().is_captured_port(target.port()) && self.local_address(client) == Some(target)
    }

    /// Only while the pod's workload is not known yet.
    fn route_unidentified(&self, pod: &PodState, target: SocketAddr) -> Option<Plan> {
        let snapshot = self.snapshot.load();
        match pod_workload(&snapshot, pod) {
            Some(_) => None,
            None => snapshot.route_unidentified(target),
        }
    }
}

#[cfg(test)]
mod tests;
