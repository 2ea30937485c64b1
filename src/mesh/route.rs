//! The outbound decision: where a connection that a pod of this node opens has to go, and how.
//!
//! A pure function of the snapshot, run by the workers once per connection; it returns a plan and does
//! nothing. Invariant: what the mesh does not know is passed through unchanged, what it knows and cannot
//! serve is refused with the reason; a known destination is never downgraded to plain text by an error.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::balance::Purpose;
use super::gateway::Upstream;
use super::service::Service;
use super::workload::{TunnelProtocol, Workload};
use super::{HBONE_PORT, NetworkAddress, Snapshot};
use crate::identity::Identity;

/// What to do with one captured connection.
#[derive(Debug, Clone)]
pub struct Plan {
    pub protocol: PlanProtocol,
    /// Where the TCP connection goes.
    pub next_hop: SocketAddr,
    /// What CONNECT asks for; only with HBONE.
    pub authority: Option<SocketAddr>,
    /// Who may answer; empty for plain TCP.
    pub accepted: Arc<[Identity]>,
    /// The workload at `next_hop`, if the mesh knows one.
    pub destination: Option<Arc<Workload>>,
    /// The service the client called, if it called one.
    pub service: Option<Arc<Service>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanProtocol {
    Tcp,
    Hbone,
}

/// Why a connection is refused before anything is dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("attempted recursive call to ourselves")]
    Recursive,
    #[error("no healthy upstream: {0}")]
    NoHealthyUpstream(SocketAddr),
    #[error("no service for target address: {0}")]
    NoServiceForTarget(SocketAddr),
    #[error("unknown waypoint: {0}")]
    UnknownWaypoint(String),
    #[error("no valid routing destination for workload: {workload}")]
    NoDestination { workload: Arc<str> },
    #[error(
        "no ip addresses were resolved for workload: {workload} (it has only the host name {hostname}, and \
         this version does not resolve host names of workloads yet)"
    )]
    NeedsResolution { workload: Arc<str>, hostname: Arc<str> },
    #[error(
        "no valid routing destination for workload: {workload} (it is on network {network:?}, the source on \
         {source_network:?}, and this version does not reach other networks through gateways yet)"
    )]
    OtherNetwork {
        workload: Arc<str>,
        network: Arc<str>,
        source_network: Arc<str>,
    },
}

impl Snapshot {
    /// Decides about a connection of `source` from its address `downstream` to `target`.
    pub fn route(
        &self,
        source: &Arc<Workload>,
        downstream: IpAddr,
        target: SocketAddr,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Plan, RouteError> {
        let target = SocketAddr::new(target.ip().to_canonical(), target.port());
        if self.is_recursive(target) {
            return Err(RouteError::Recursive);
        }
        // Whether the client called a service is decided with a workload of that address going first, the
        // upstream below with the service going first: that is how ztunnel treats an address that is both.
        let called = self.called_service(source, target.ip());
        if let Some(service) = called
            && let Some(waypoint) = service.choose_waypoint(random)
        {
            return self.through_waypoint(waypoint, source, target, Some(service), true, random);
        }
        let address = NetworkAddress {
            network: source.network.clone(),
            ip: target.ip(),
        };
        let upstream = self.upstream_of_address(source, &address, target.port(), Purpose::Traffic, random);
        let Some(upstream) = upstream else {
            return match called {
                Some(service) if !service.is_passthrough() => Err(RouteError::NoHealthyUpstream(target)),
                Some(_) | None => Ok(self.pass_through(target)),
            };
        };
        if upstream.workload.network != source.network {
            return Err(match called {
                None => RouteError::NoServiceForTarget(target),
                Some(_) => other_network(upstream.workload, source),
            });
        }
        // Calls to a service do not consider the waypoint of the workload that was chosen.
        if let (None, Some(waypoint)) = (called, &upstream.workload.waypoint)
            && !self.is_from_waypoint(source, downstream, upstream.workload)
        {
            return self.through_waypoint(waypoint, source, target, upstream.service, false, random);
        }
        direct(&upstream, target)
    }

    /// The service behind an address, unless a workload owns it.
    fn called_service(&self, source: &Workload, ip: IpAddr) -> Option<&Arc<Service>> {
        let network = &*self.index.locale.network;
        if self.workload_by_address(network, ip).is_some() {
            return None;
        }
        self.service_by_address(network, ip, Some(&source.namespace))
    }

    fn through_waypoint(
        &self,
        waypoint: &super::GatewayAddress,
        source: &Workload,
        target: SocketAddr,
        service: Option<&Arc<Service>>,
        compare_networks: bool,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Plan, RouteError> {
        let (chosen, next_hop) =
            self.resolve_gateway(waypoint, source, target.ip(), Purpose::Waypoint, random)?;
        if compare_networks && chosen.workload.network != source.network {
            return Err(other_network(chosen.workload, source));
        }
        Ok(Plan {
            protocol: PlanProtocol::Hbone,
            next_hop,
            authority: Some(target),
            accepted: chosen.accepted.clone(),
            destination: Some(chosen.workload.clone()),
            service: service.cloned(),
        })
    }

    /// A connection that comes from the waypoint of its destination has been through it.
    fn is_from_waypoint(&self, source: &Workload, downstream: IpAddr, destination: &Workload) -> bool {
        let downstream = downstream.to_canonical();
        destination.waypoint.as_deref().is_some_and(|waypoint| {
            self.gateway_includes(waypoint, |it| {
                it.identity == source.identity && it.addresses.contains(&downstream)
            })
        })
    }

    fn pass_through(&self, target: SocketAddr) -> Plan {
        Plan {
            protocol: PlanProtocol::Tcp,
            next_hop: target,
            authority: None,
            accepted: self.index.nobody.clone(),
            destination: None,
            service: None,
        }
    }
}

fn direct(upstream: &Upstream<'_>, target: SocketAddr) -> Result<Plan, RouteError> {
    let final_target = SocketAddr::new(upstream.select_ip(target.ip())?, upstream.port);
    let (protocol, next_hop, authority) = match upstream.workload.protocol {
        TunnelProtocol::Hbone => (
            PlanProtocol::Hbone,
            SocketAddr::new(final_target.ip(), HBONE_PORT),
            Some(final_target),
        ),
        TunnelProtocol::Tcp => (PlanProtocol::Tcp, final_target, None),
    };
    Ok(Plan {
        protocol,
        next_hop,
        authority,
        accepted: upstream.accepted.clone(),
        destination: Some(upstream.workload.clone()),
        service: upstream.service.cloned(),
    })
}

fn other_network(workload: &Workload, source: &Workload) -> RouteError {
    if workload.network_gateway.is_none() {
        return RouteError::NoDestination {
            workload: workload.uid.clone(),
        };
    }
    RouteError::OtherNetwork {
        workload: workload.uid.clone(),
        network: workload.network.clone(),
        source_network: source.network.clone(),
    }
}

#[cfg(test)]
mod tests;
