//! The outbound decision: where a connection that a pod of this node opens has to go, and how.
//!
//! A pure function of the snapshot, run by the workers once per connection; it returns a plan and does
//! nothing. Invariant: what the mesh does not know is passed through unchanged, what it knows and cannot
//! serve is refused with the reason; a known destination is never downgraded to plain text by an error.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::balance::{Draw, Purpose};
use super::gateway::{Resolved, Selected, Upstream};
use super::plan::{Decision, Drawn, Leg, Plan, TunnelAuthority, Unresolved, Way};
use super::service::Service;
use super::workload::Workload;
use super::{GatewayAddress, NetworkAddress, Snapshot};

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
    UnknownWaypoint(Box<GatewayAddress>),
    #[error("unknown network gateway: {0}")]
    UnknownGateway(Box<GatewayAddress>),
    #[error("no valid routing destination for workload: {workload}")]
    NoDestination { workload: Arc<str> },
    #[error("no ip addresses were resolved for workload: {workload} (looking up {hostname}: {reason})")]
    Unresolved {
        workload: Arc<str>,
        hostname: Arc<str>,
        reason: String,
    },
    #[error(
        "ip addresses were resolved for workload {workload}, but valid dns response had no A/AAAA records"
    )]
    NoRecords { workload: Arc<str> },
}

impl Snapshot {
    /// Decides about a connection of `source` from its address `downstream` to `target`.
    pub fn route(
        &self,
        source: &Arc<Workload>,
        downstream: IpAddr,
        target: SocketAddr,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Decision, RouteError> {
        self.route_wider(source, downstream, target, 0, random)
    }

    /// The same for one who knows that the nearest endpoints do not answer: where a service fails over
    /// (`Service::failover_scopes`), the last `wider` of the preferences that those match do not count.
    pub fn route_wider(
        &self,
        source: &Arc<Workload>,
        downstream: IpAddr,
        target: SocketAddr,
        wider: usize,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Decision, RouteError> {
        let draw = &mut Draw { random, wider };
        let target = SocketAddr::new(target.ip().to_canonical(), target.port());
        if self.is_recursive(target) {
            return Err(RouteError::Recursive);
        }
        let call = Call {
            snapshot: self,
            source,
            downstream: downstream.to_canonical(),
            target,
        };
        // Whether the client called a service is decided with a workload of that address going first, the
        // upstream below with the service going first: that is how ztunnel treats an address that is both.
        let called = self.called_service(source, target.ip());
        if let Some(service) = called
            && let Some(waypoint) = call.waypoint_of(service, draw)
        {
            return call.through_waypoint(waypoint, service, draw);
        }
        let address = NetworkAddress {
            network: source.network.clone(),
            ip: target.ip(),
        };
        let upstream = self.upstream_of_address(source, &address, target.port(), Purpose::Traffic, draw);
        let Some(upstream) = upstream else {
            return match called {
                Some(service) if !service.is_passthrough() => Err(RouteError::NoHealthyUpstream(target)),
                Some(_) | None => Ok(Decision::Go(pass_through(target))),
            };
        };
        if upstream.workload.network != source.network {
            return match called {
                None => Err(RouteError::NoServiceForTarget(target)),
                Some(service) => call.through_gateway(&upstream, service, draw),
            };
        }
        // Calls to a service do not consider the waypoint of the workload that was chosen.
        if let (None, Some(waypoint)) = (called, &upstream.workload.waypoint)
            && !call.is_from(waypoint)
        {
            return call.through_own_waypoint(waypoint, &upstream, draw);
        }
        direct(&upstream, target)
    }

    /// The plan for a connection of a pod that the mesh does not know yet, where none is needed to make it: link-local
    /// addresses (the cloud's metadata and the like) never leave the node, and no resource of the mesh has them. A pod
    /// that asks them before it starts must not wait for the control plane, which may be waiting for it to be ready.
    pub fn route_unidentified(&self, target: SocketAddr) -> Option<Plan> {
        let ip = target.ip().to_canonical();
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let network = &self.locale().network;
        let known = || {
            self.workload_by_address(network, ip).is_some()
                || self.service_by_address(network, ip, None).is_some()
        };
        (link_local && !known()).then(|| pass_through(SocketAddr::new(ip, target.port())))
    }

    /// The service behind an address, unless a workload owns it.
    fn called_service(&self, source: &Workload, ip: IpAddr) -> Option<&Arc<Service>> {
        let network = &*self.index.locale.network;
        if self.workload_by_address(network, ip).is_some() {
            return None;
        }
        self.service_by_address(network, ip, Some(&source.namespace))
    }
}

/// One connection, and what it is judged by.
struct Call<'a> {
    snapshot: &'a Snapshot,
    source: &'a Arc<Workload>,
    downstream: IpAddr,
    target: SocketAddr,
}

impl<'a> Call<'a> {
    /// The waypoint that a call to a service goes through. What comes from one of the service's own waypoints has
    /// been through it: sent there again, a waypoint that calls the service by its address would never get out.
    fn waypoint_of(&self, service: &'a Service, draw: &mut Draw<'_>) -> Option<&'a GatewayAddress> {
        let chosen = service.choose_waypoint(draw.random)?;
        let from_waypoint = service.waypoints().any(|waypoint| self.is_from(waypoint));
        (!from_waypoint).then_some(chosen)
    }

    /// Through the waypoint of a service that was called.
    fn through_waypoint(
        &self,
        waypoint: &GatewayAddress,
        service: &'a Arc<Service>,
        draw: &mut Draw<'_>,
    ) -> Result<Decision, RouteError> {
        let resolved = self.resolve_waypoint(waypoint, draw)?;
        let chosen = &resolved.upstream;
        if chosen.workload.network != self.source.network {
            return self.through_gateway(chosen, service, draw);
        }
        let has_several = || service.waypoints().nth(1).is_some();
        let among_waypoints = || has_several().then_some(Drawn { failover_scopes: 0 });
        let drawn = Drawn::from(&[chosen.service]).or_else(among_waypoints);
        self.to_waypoint(&resolved, Some(service), drawn)
    }

    /// Through the waypoint of the workload that was called, or drawn from a service that has its address, too. It is
    /// dialled wherever it says that it is.
    fn through_own_waypoint(
        &self,
        waypoint: &GatewayAddress,
        called: &Upstream<'a>,
        draw: &mut Draw<'_>,
    ) -> Result<Decision, RouteError> {
        let resolved = self.resolve_waypoint(waypoint, draw)?;
        let drawn = Drawn::from(&[resolved.upstream.service, called.service]);
        self.to_waypoint(&resolved, called.service, drawn)
    }

    fn resolve_waypoint(
        &self,
        waypoint: &GatewayAddress,
        draw: &mut Draw<'_>,
    ) -> Result<Resolved<'a>, RouteError> {
        let original = self.target.ip();
        self.snapshot
            .resolve_gateway(waypoint, self.source, original, Purpose::Waypoint, draw)
    }

    fn to_waypoint(
        &self,
        resolved: &Resolved<'_>,
        service: Option<&Arc<Service>>,
        drawn: Option<Drawn>,
    ) -> Result<Decision, RouteError> {
        let chosen = &resolved.upstream;
        let leg = Leg::Waypoint {
            port: chosen.port,
            authority: self.target,
            accepted: chosen.accepted.clone(),
        };
        decide(chosen, leg, resolved.family_of, service.cloned(), drawn)
    }

    /// To another network: a session to its gateway, and one to whoever serves the service there inside of it.
    fn through_gateway(
        &self,
        upstream: &Upstream<'_>,
        service: &Arc<Service>,
        draw: &mut Draw<'_>,
    ) -> Result<Decision, RouteError> {
        let Some(gateway) = &upstream.workload.network_gateway else {
            return Err(RouteError::NoDestination {
                workload: upstream.workload.uid.clone(),
            });
        };
        let resolved =
            self.snapshot
                .resolve_gateway(gateway, self.source, self.target.ip(), Purpose::Traffic, draw)?;
        let leg = Leg::Gateway {
            port: resolved.upstream.port,
            authority: TunnelAuthority::Host {
                hostname: service.hostname.clone(),
                port: self.target.port(),
            },
            accepted: resolved.upstream.accepted.clone(),
            inner_accepted: match upstream.service {
                Some(service) => service.names.clone(),
                None => self.snapshot.index.nobody.clone(),
            },
            remote: upstream.workload.clone(),
        };
        let gateway = &resolved.upstream;
        let drawn = Drawn::from(&[gateway.service, upstream.service]);
        decide(gateway, leg, resolved.family_of, Some(service.clone()), drawn)
    }

    /// A connection that comes from the waypoint of its destination has been through it.
    fn is_from(&self, waypoint: &GatewayAddress) -> bool {
        self.snapshot.is_gateway(waypoint, self.source, |it| {
            it.identity == self.source.identity && it.addresses.contains(&self.downstream)
        })
    }
}

fn pass_through(target: SocketAddr) -> Plan {
    Plan {
        way: Way::Tcp { next_hop: target },
        destination: None,
        service: None,
        drawn: None,
    }
}

fn direct(upstream: &Upstream<'_>, target: SocketAddr) -> Result<Decision, RouteError> {
    let leg = Leg::Direct {
        protocol: upstream.workload.protocol,
        port: upstream.port,
        accepted: upstream.accepted.clone(),
    };
    let drawn = Drawn::from(&[upstream.service]);
    decide(upstream, leg, target.ip(), upstream.service.cloned(), drawn)
}

/// Completes a way by the address of `upstream`. `family_of` is what the address should be like.
fn decide(
    upstream: &Upstream<'_>,
    leg: Leg,
    family_of: IpAddr,
    service: Option<Arc<Service>>,
    drawn: Option<Drawn>,
) -> Result<Decision, RouteError> {
    let destination = upstream.workload;
    Ok(match upstream.select_ip(family_of)? {
        Selected::Address(ip) => Decision::Go(Plan {
            way: leg.to(ip),
            destination: Some(destination.clone()),
            service,
            drawn,
        }),
        Selected::Name => Decision::Resolve(Unresolved::new(family_of, leg, destination, service, drawn)),
    })
}

#[cfg(test)]
mod tests;
