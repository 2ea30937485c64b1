//! The outbound journey (15001): a pod's application opens a connection; it goes to its destination through
//! HBONE, or as it is where the mesh knows no better.
//!
//! Captured, identified, decided, connected, relayed; recorded when the relay ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::core::Core;
use super::hbone::dial::{self, OpenStream};
use super::hbone::inside::{self, Errand};
use super::hbone::pool::{PoolKey, Through};
use super::listen::Captured;
use super::live::Attempting;
use super::outcome::{Leg, Outcome};
use super::pods::{Counted, PodState};
use super::shell::{Shell, Socket};
use super::telemetry::{Account, Opens};
use super::tunnel::TunnelParts;
use super::workload::{own_workload, pod_workload};
use crate::bridge::load::LoadShare;
use crate::bridge::log::Direction;
use crate::limits;
use crate::mesh::{Decision, DoubleHop, Hop, Plan, RouteError, Way, Workload};
use crate::sys::driver::{Driver, SocketSpec};
use crate::wire::baggage::Baggage;
use crate::wire::hbone::forwarded_value;
use crate::wire::traceparent::TraceContext;

/// Serves one captured connection up to its relay.
pub async fn serve<D: Driver + 'static>(shell: Shell<D>, captured: Captured) {
    let Captured {
        pod, fd, peer, share, ..
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
        .while_present(decide(&shell, &pod, peer, target, &mut account))
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
    shell.with(|core| core.telemetry.open(&mut account));
    match connected.map_err(Rc::new).and_then(|connected| connected) {
        Ok(end) => relay(&shell, pod, client, end, Box::new(account), share),
        Err(outcome) => shell.with(|core| core.telemetry.fail(account, core.now, &outcome)),
    }
}

/// A plan, and what is needed to carry it out.
enum Course {
    Plain {
        next_hop: SocketAddr,
    },
    Tunnel {
        source: Arc<Workload>,
        hop: Hop,
    },
    /// A tunnel in a tunnel.
    Double {
        source: Arc<Workload>,
        hop: DoubleHop,
    },
}

impl Course {
    fn next_hop(&self) -> SocketAddr {
        match self {
            Self::Plain { next_hop } => *next_hop,
            Self::Tunnel { hop, .. } => hop.next_hop,
            Self::Double { hop, .. } => hop.outer.next_hop,
        }
    }

    fn opens(&self) -> Opens {
        match self {
            Self::Plain { .. } | Self::Tunnel { .. } => Opens::AtOnce,
            Self::Double { .. } => Opens::Connected,
        }
    }
}

/// The far end of a connection.
enum End<D: Driver + 'static> {
    Stream(OpenStream<D>),
    Socket(Socket<D>),
}

async fn decide<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    peer: SocketAddr,
    target: SocketAddr,
    account: &mut Account,
) -> Result<Course, Outcome> {
    if let Some(plan) = shell.with(|core| core.route_unidentified(pod, target)) {
        let next_hop = plan.way.next_hop();
        account.destination_address = next_hop;
        return Ok(Course::Plain { next_hop });
    }
    let source = own_workload(shell, pod).await?;
    account.source = Some(source.clone());
    shell.with(|core| core.route(&source, peer, target, &[], account))
}

/// Connects as planned. As long as nothing of the client's was said, an endpoint of a service that takes no connection
/// is given up for another one: a pod that ends is an endpoint for a while after it stopped listening.
async fn connect<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    mut course: Course,
    target: SocketAddr,
    account: &mut Account,
) -> Result<End<D>, Rc<Outcome>> {
    let peer = account.source_address;
    let mut tried = Vec::new();
    loop {
        let attempting = Attempting::begin(shell, pod, account, course.next_hop());
        let failed = match &course {
            Course::Plain { next_hop } => pass_through(shell, pod, *next_hop).await.map(End::Socket),
            Course::Tunnel { source, hop } => tunnel(shell, pod, source, hop, account).await.map(End::Stream),
            Course::Double { source, hop } => {
                let reached = tunnel_inside(shell, pod, source, hop, account).await;
                reached.map(End::Stream)
            }
        };
        let failed = match failed {
            Ok(end) => return Ok(end),
            Err(outcome) => outcome,
        };
        drop(attempting);
        shell.with(|core| core.telemetry.begin(account));
        tried.push(course.next_hop());
        let others = account.service.is_some() && tried.len() < limits::ENDPOINT_TRIES_MAX;
        let source = account
            .source
            .clone()
            .filter(|_| others && failed.is_about_an_endpoint());
        let other = source.and_then(|source| {
            let other = shell.with(|core| core.route(&source, peer, target, &tried, account));
            other.ok()
        });
        let Some(other) = other else {
            return Err(failed);
        };
        let id = format_args!("{:032x}", account.connection_id);
        tracing::debug!(%id, from = %course.next_hop(), to = %other.next_hop(), "another endpoint is tried: {failed}");
        shell.with(|core| core.telemetry.reopen(account, &failed, other.opens()));
        course = other;
    }
}

async fn tunnel<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    source: &Arc<Workload>,
    hop: &Hop,
    account: &Account,
) -> Result<OpenStream<D>, Rc<Outcome>> {
    let _budget = setup_budget(pod)?;
    let key = Rc::new(session_key(pod, source, hop, account));
    let authority = hop.authority.to_string();
    let words = words(shell, source, account);
    let request = words.request(&authority, None);
    let (stream, _response) = dial::connect(shell, pod, &key, &request, None).await?;
    Ok(stream)
}

/// To another network: through its gateway, inside of the session to that.
async fn tunnel_inside<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    source: &Arc<Workload>,
    hop: &DoubleHop,
    account: &mut Account,
) -> Result<OpenStream<D>, Rc<Outcome>> {
    let _budget = setup_budget(pod)?;
    let gateway = Rc::new(session_key(pod, source, &hop.outer, account));
    let authority = hop.outer.authority.to_string();
    let key = Rc::new(PoolKey {
        accepted: hop.inner_accepted.clone(),
        // Which one it is, is the gateway's choice.
        workload: None,
        through: Some(Rc::new(Through {
            gateway: gateway.clone(),
            authority: authority.clone(),
        })),
        ..(*gateway).clone()
    });
    let words = Rc::new(words(shell, source, account));
    let request = words.request(&authority, Some(&source.network));
    let reached = inside::connect(shell, pod, &key, &request, &words)
        .await
        .map_err(|cause| Rc::new(Outcome::on_leg(Leg::Inside, hop.outer.next_hop, cause)))?;
    account.describe_remote(reached.identity, reached.response.baggage.as_deref());
    Ok(reached.stream)
}

fn setup_budget(pod: &Rc<PodState>) -> Result<Counted, Rc<Outcome>> {
    let limit = limits::SETUPS_POD_MAX;
    Counted::setup(pod).ok_or_else(|| {
        Rc::new(Outcome::Overloaded {
            what: "connections of one pod being set up",
            limit,
        })
    })
}

fn session_key(pod: &PodState, source: &Workload, hop: &Hop, account: &Account) -> PoolKey {
    PoolKey {
        pod: pod.pod.uid.clone(),
        identity: source.identity.clone(),
        source: account.source_address.ip(),
        destination: hop.next_hop,
        accepted: hop.accepted.clone(),
        workload: account.destination.as_ref().map(|to| to.uid.clone()),
        through: None,
    }
}

/// What CONNECT says of a connection, to whomever it goes.
fn words<D: Driver + 'static>(shell: &Shell<D>, source: &Workload, account: &Account) -> Errand {
    let service = account.service.as_ref().map(|service| &*service.hostname);
    let trace = shell.with(|core| TraceContext::new(account.connection_id, core.random.u64(1..)));
    Errand {
        baggage: baggage(source).encode(),
        forwarded: forwarded_value(account.source_address, service),
        trace: trace.to_string(),
    }
}

async fn pass_through<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    next_hop: SocketAddr,
) -> Result<Socket<D>, Rc<Outcome>> {
    let _budget = setup_budget(pod)?;
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
) {
    match end {
        End::Stream(stream) => {
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
                };
                core.attach_tunnel(parts);
            });
            stream.attached();
        }
        End::Socket(server) => {
            let (client, server) = (client.release(), server.release());
            shell.with(|core| core.attach_pipe(pod, client, server, account, share));
        }
    }
}

/// What this proxy says about a workload of its own (contract: data-plane.md section 9).
pub fn baggage(workload: &Workload) -> Baggage<&str> {
    fn text(text: &str) -> Option<&str> {
        Some(text).filter(|text| !text.is_empty())
    }
    Baggage {
        cluster: text(&workload.cluster_id),
        namespace: text(&workload.namespace),
        workload_name: text(&workload.workload_name),
        workload_type: text(&workload.workload_type),
        service_name: text(&workload.canonical_name),
        revision: text(&workload.canonical_revision),
        region: text(&workload.locality.region),
        zone: text(&workload.locality.zone),
    }
}

impl<D: Driver + 'static> Core<D> {
    /// A plan other than those that lead to `tried`, described in `account`. With nothing tried, the first one.
    fn route(
        &mut self,
        source: &Arc<Workload>,
        peer: SocketAddr,
        target: SocketAddr,
        tried: &[SocketAddr],
        account: &mut Account,
    ) -> Result<Course, Outcome> {
        let snapshot = self.snapshot.load();
        let random = &mut self.random;
        let mut decide = || -> Result<Plan, RouteError> {
            match snapshot.route(source, peer.ip(), target, &mut || random.u64(..))? {
                Decision::Go(plan) => Ok(plan),
                Decision::Resolve(unresolved) => Err(unresolved.refusal()),
            }
        };
        let mut plan = decide()?;
        let mut draws = 1;
        while tried.contains(&plan.way.next_hop()) {
            if draws == limits::ENDPOINT_DRAWS_MAX {
                return Err(RouteError::NoHealthyUpstream(target).into());
            }
            plan = decide()?;
            draws += 1;
        }
        let course = match &plan.way {
            Way::Tcp { next_hop } => Course::Plain { next_hop: *next_hop },
            Way::Hbone(hop) => Course::Tunnel {
                source: source.clone(),
                hop: hop.clone(),
            },
            Way::DoubleHbone(hop) => Course::Double {
                source: source.clone(),
                hop: hop.clone(),
            },
        };
        account.describe_outbound(source, &plan);
        Ok(course)
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
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::mesh::{Builder, Locale};
    use crate::runtime::tasks::Executor;
    use crate::worker::fixture;

    #[test]
    fn link_local_destinations_do_not_wait_for_a_workload_and_others_do() {
        let core = fixture::core(&Executor::default());
        let pod = fixture::pod();
        let metadata = ([169, 254, 169, 254], 80).into();
        let found = core.route_unidentified(&pod, metadata).expect("passed through");
        assert_eq!(found.way.next_hop(), metadata);
        assert!(
            core.route_unidentified(&pod, ([198, 18, 0, 1], 80).into())
                .is_none()
        );
        // Once the workload is there, it decides.
        let info = &pod.pod.info;
        let identity = Identity::new("cluster.local", &info.namespace, &info.service_account);
        let mut builder = Builder::new(Locale::default());
        builder.insert_workload(Workload::new("c1//Pod/shop/till", &info.name, identity));
        core.snapshot.publish(builder.build());
        assert!(core.route_unidentified(&pod, metadata).is_none());
    }
}
