//! The outbound journey (15001): a pod's application opens a connection; it goes to its destination through
//! HBONE, or as it is where the mesh knows no better.
//!
//! Captured, identified, decided, connected, relayed; recorded when the relay ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::core::Core;
use super::hbone::dial::{self, OpenStream};
use super::hbone::pool::PoolKey;
use super::listen::Captured;
use super::outcome::Outcome;
use super::pods::{Counted, PodState};
use super::shell::{Shell, Socket};
use super::telemetry::Account;
use super::tunnel::TunnelParts;
use super::workload::own_workload;
use crate::bridge::load::LoadShare;
use crate::bridge::log::Direction;
use crate::limits;
use crate::mesh::{Plan, PlanProtocol, Workload};
use crate::sys::driver::{Driver, SocketSpec};
use crate::wire::baggage::Baggage;
use crate::wire::hbone::{ConnectRequest, forwarded_value};
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

    let decided = pod
        .while_present(decide(&shell, &pod, peer, target, &mut account))
        .await;
    let (source, plan) = match decided.and_then(|decided| decided) {
        Ok(decided) => decided,
        Err(outcome) => {
            shell.with(|core| core.telemetry.refuse(account, &outcome));
            return;
        }
    };
    account.destination_address = plan.next_hop;
    account.hbone_address = plan.authority;
    account.service = plan.service.clone();
    account.destination = plan.destination.clone();

    let connected = match plan.protocol {
        PlanProtocol::Hbone => {
            account.source_identity = Some(source.identity.clone());
            account.destination_identity = plan.destination.as_ref().map(|to| to.identity.clone());
            let tunnel = tunnel(&shell, &pod, &source, peer, &plan);
            present(&pod, tunnel).await.map(End::Stream)
        }
        PlanProtocol::Tcp => present(&pod, pass_through(&shell, &pod, &plan))
            .await
            .map(End::Socket),
    };
    match connected {
        Ok(end) => relay(&shell, pod, client, end, Box::new(account), share),
        Err(outcome) => shell.with(|core| core.telemetry.record(account, core.now, &outcome)),
    }
}

/// What `work` comes to, unless the pod goes meanwhile.
async fn present<R>(
    pod: &PodState,
    work: impl Future<Output = Result<R, Rc<Outcome>>>,
) -> Result<R, Rc<Outcome>> {
    pod.while_present(work).await.map_err(Rc::new)?
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
) -> Result<(Arc<Workload>, Plan), Outcome> {
    let source = own_workload(shell, pod).await?;
    account.source = Some(source.clone());
    let plan = shell.with(|core| core.route(&source, peer, target))?;
    Ok((source, plan))
}

async fn tunnel<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    source: &Arc<Workload>,
    peer: SocketAddr,
    plan: &Plan,
) -> Result<OpenStream<D>, Rc<Outcome>> {
    let limit = limits::SETUPS_POD_MAX;
    let _budget = Counted::setup(pod).ok_or(Outcome::Overloaded {
        what: "connections of one pod being set up",
        limit,
    })?;
    let key = Rc::new(PoolKey {
        pod: pod.pod.uid.clone(),
        identity: source.identity.clone(),
        source: peer.ip(),
        destination: plan.next_hop,
        accepted: plan.accepted.clone(),
        workload: plan.destination.as_ref().map(|to| to.uid.clone()),
    });
    let authority = plan.authority.unwrap_or(plan.next_hop).to_string();
    let baggage = baggage(source).encode();
    let forwarded = forwarded_value(peer, plan.service.as_ref().map(|service| &*service.hostname));
    let trace = shell
        .with(|core| TraceContext::new(core.random.u128(..), core.random.u64(1..)))
        .to_string();
    let request = ConnectRequest {
        authority: &authority,
        baggage: Some(&baggage).filter(|text| !text.is_empty()).map(String::as_str),
        forwarded: Some(&forwarded),
        traceparent: Some(&trace),
        forwarded_network: None,
    };
    let (stream, _response) = dial::connect(shell, pod, &key, &request).await?;
    Ok(stream)
}

async fn pass_through<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    plan: &Plan,
) -> Result<Socket<D>, Rc<Outcome>> {
    let limit = limits::SETUPS_POD_MAX;
    let _budget = Counted::setup(pod).ok_or(Outcome::Overloaded {
        what: "connections of one pod being set up",
        limit,
    })?;
    let options = shell.with(|core| core.settings.socket_options);
    let spec = SocketSpec {
        namespace: Some(pod.pod.namespace.clone()),
        options,
        bind_transparent: None,
    };
    let failed = |error| Rc::new(Outcome::ConnectFailed(error));
    let server = Socket::open(shell, &spec, plan.next_hop.ip()).map_err(failed)?;
    server
        .connect(plan.next_hop, limits::CONNECT_TIMEOUT)
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
                let parts = TunnelParts {
                    app,
                    session,
                    stream: stream.stream,
                    user,
                    account,
                    delivered: None,
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
pub fn baggage(workload: &Workload) -> Baggage {
    let text = |text: &str| Some(text).filter(|text| !text.is_empty()).map(str::to_owned);
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
    fn route(
        &mut self,
        source: &Arc<Workload>,
        peer: SocketAddr,
        target: SocketAddr,
    ) -> Result<Plan, Outcome> {
        let random = &mut self.random;
        Ok(self
            .snapshot
            .load()
            .route(source, peer.ip(), target, &mut || random.u64(..))?)
    }
}
