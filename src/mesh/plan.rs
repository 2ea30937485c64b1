//! What is to be done with a connection that a pod opened: plain values, made by `route`, carried out by a worker.
//!
//! Invariant: a plan names who may answer wherever something encrypted is to be spoken, so that whoever carries it
//! out has no decision left.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::HBONE_PORT;
use super::route::RouteError;
use super::service::Service;
use super::workload::{TunnelProtocol, Workload};
use crate::identity::Identity;

/// The outcome of a decision that is no refusal.
#[derive(Debug, Clone)]
pub enum Decision {
    Go(Plan),
    /// The next hop has only a name.
    Resolve(Unresolved),
}

/// What to do with one captured connection.
#[derive(Debug, Clone)]
pub struct Plan {
    pub way: Way,
    /// The workload at the next hop, if the mesh knows one.
    pub destination: Option<Arc<Workload>>,
    /// The service the client called, if it called one.
    pub service: Option<Arc<Service>>,
    /// The next hop was drawn, so that there may be another one.
    pub drawn: Option<Drawn>,
}

/// A choice among the endpoints of a service (the one that was called, a waypoint's, a network gateway's), or among the
/// waypoints of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// As `Service::failover_scopes`.
    pub failover_scopes: usize,
}

#[derive(Debug, Clone)]
pub enum Way {
    /// As it is.
    Tcp {
        next_hop: SocketAddr,
    },
    Hbone(Hop),
    DoubleHbone(DoubleHop),
}

/// One HBONE session and what CONNECT asks for on it.
#[derive(Debug, Clone)]
pub struct Hop {
    /// Where the TCP connection goes.
    pub next_hop: SocketAddr,
    pub authority: TunnelAuthority,
    /// Who may answer.
    pub accepted: Arc<[Identity]>,
}

/// A session to another network's gateway, and a second one inside of its stream, of which the gateway sees only
/// where it goes. Both ask for the same authority; the inner one also says which network it comes from.
#[derive(Debug, Clone)]
pub struct DoubleHop {
    pub outer: Hop,
    /// Who may answer inside: the names of the service alone, because which workload answers is the gateway's choice.
    pub inner_accepted: Arc<[Identity]>,
    /// The workload in the other network that was chosen here.
    pub remote: Arc<Workload>,
}

/// What CONNECT asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelAuthority {
    Address(SocketAddr),
    Host { hostname: Arc<str>, port: u16 },
}

/// A decision that lacks the address of its next hop.
#[derive(Debug, Clone)]
pub struct Unresolved {
    pub hostname: Arc<str>,
    /// Records of this family are preferred.
    pub prefers_ipv6: bool,
    leg: Leg,
    destination: Arc<Workload>,
    service: Option<Arc<Service>>,
    drawn: Option<Drawn>,
}

/// A way without the address of its next hop.
#[derive(Debug, Clone)]
pub(super) enum Leg {
    /// To the workload that serves the connection.
    Direct {
        protocol: TunnelProtocol,
        port: u16,
        accepted: Arc<[Identity]>,
    },
    /// To somebody who takes the connection further.
    Waypoint {
        port: u16,
        authority: SocketAddr,
        accepted: Arc<[Identity]>,
    },
    Gateway {
        port: u16,
        authority: TunnelAuthority,
        accepted: Arc<[Identity]>,
        inner_accepted: Arc<[Identity]>,
        remote: Arc<Workload>,
    },
}

impl Drawn {
    /// From the services, where there are any, that endpoints were chosen of.
    pub(super) fn from(services: &[Option<&Arc<Service>>]) -> Option<Self> {
        let scopes = services.iter().flatten().map(|service| service.failover_scopes());
        scopes.max().map(|failover_scopes| Self { failover_scopes })
    }
}

impl Way {
    /// Where the TCP connection goes.
    pub fn next_hop(&self) -> SocketAddr {
        match self {
            Self::Tcp { next_hop } => *next_hop,
            Self::Hbone(hop) => hop.next_hop,
            Self::DoubleHbone(hop) => hop.outer.next_hop,
        }
    }
}

impl TunnelAuthority {
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Host { .. } => None,
        }
    }
}

impl fmt::Display for TunnelAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { hostname, port } => write!(f, "{hostname}:{port}"),
        }
    }
}

impl Unresolved {
    pub(super) fn new(
        original: IpAddr,
        leg: Leg,
        destination: &Arc<Workload>,
        service: Option<Arc<Service>>,
        drawn: Option<Drawn>,
    ) -> Self {
        Self {
            hostname: destination.hostname.clone(),
            prefers_ipv6: original.is_ipv6(),
            leg,
            destination: destination.clone(),
            service,
            drawn,
        }
    }

    /// Whether another choice may lead elsewhere.
    pub fn is_drawn(&self) -> bool {
        self.drawn.is_some()
    }

    /// The addresses of the name in the order in which they shall be tried: by chance, those of the family that is
    /// preferred first.
    pub fn in_turn(
        &self,
        addresses: &[IpAddr],
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Vec<IpAddr>, RouteError> {
        if addresses.is_empty() {
            return Err(RouteError::NoRecords {
                workload: self.destination.uid.clone(),
            });
        }
        let mut in_turn = addresses.to_vec();
        for at in (1..in_turn.len()).rev() {
            in_turn.swap(at, (random() % (at as u64 + 1)) as usize);
        }
        in_turn.sort_by_key(|ip| ip.is_ipv6() != self.prefers_ipv6);
        Ok(in_turn)
    }

    /// The plan, now that the name was looked up.
    pub fn with_address(self, ip: IpAddr) -> Plan {
        Plan {
            way: self.leg.to(ip.to_canonical()),
            destination: Some(self.destination),
            service: self.service,
            drawn: self.drawn,
        }
    }

    /// Why the connection is refused when looking up the name failed.
    pub fn refusal(&self, reason: String) -> RouteError {
        RouteError::Unresolved {
            workload: self.destination.uid.clone(),
            hostname: self.hostname.clone(),
            reason,
        }
    }
}

impl Leg {
    pub(super) fn to(self, ip: IpAddr) -> Way {
        match self {
            Self::Direct {
                protocol: TunnelProtocol::Tcp,
                port,
                ..
            } => Way::Tcp {
                next_hop: SocketAddr::new(ip, port),
            },
            Self::Direct {
                protocol: TunnelProtocol::Hbone,
                port,
                accepted,
            } => Way::Hbone(Hop {
                next_hop: SocketAddr::new(ip, HBONE_PORT),
                authority: TunnelAuthority::Address(SocketAddr::new(ip, port)),
                accepted,
            }),
            Self::Waypoint {
                port,
                authority,
                accepted,
            } => Way::Hbone(Hop {
                next_hop: SocketAddr::new(ip, port),
                authority: TunnelAuthority::Address(authority),
                accepted,
            }),
            Self::Gateway {
                port,
                authority,
                accepted,
                inner_accepted,
                remote,
            } => Way::DoubleHbone(DoubleHop {
                outer: Hop {
                    next_hop: SocketAddr::new(ip, port),
                    authority,
                    accepted,
                },
                inner_accepted,
                remote,
            }),
        }
    }
}
