//! The inbound decision: whether a CONNECT that arrived at a pod is meant for it, and where it is delivered.
//!
//! Pure functions over a snapshot, run by the workers once per stream. Invariant: a delivery goes to the
//! pod whose socket took the connection, to nobody else, and never to a port this process captures.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::Snapshot;
use super::plan::TunnelAuthority;
use super::service::Service;
use super::workload::{ApplicationProtocol, Workload};

/// Where an accepted stream goes.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The pod's own address with the port the application listens on; also what policies are checked for.
    pub address: SocketAddr,
    /// What the application wants to be told in front of the bytes.
    pub preamble: Option<Preamble>,
    /// The service a host name stood for.
    pub service: Option<Arc<Service>>,
}

/// What a PROXY protocol header says besides who the client is, for applications that take tunnels themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preamble {
    /// What the client asked for.
    pub destination: SocketAddr,
    /// The name it asked for, when that was one.
    pub host: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InboundError {
    #[error("ip mismatch: {local} != {requested}")]
    Mismatch { local: IpAddr, requested: IpAddr },
    #[error("no service or workload for hostname: {0}")]
    UnknownHost(String),
    #[error("requested service {host}:{port} found, but cannot resolve port")]
    UnknownPort { host: String, port: u16 },
    #[error("requested service {0} found, but has no IP addresses")]
    NoAddress(String),
    #[error("attempted recursive call to ourselves")]
    Recursive,
}

impl Delivery {
    /// Where to connect. Applications that take tunnels listen on loopback where `LOCALHOST_APP_TUNNEL` says so, out of
    /// reach of everybody but this proxy.
    pub fn connect_address(&self, tunnels_on_loopback: bool) -> SocketAddr {
        let loopback = match self.address.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        if self.preamble.is_some() && tunnels_on_loopback {
            SocketAddr::new(loopback, self.address.port())
        } else {
            self.address
        }
    }
}

impl InboundError {
    /// The status which answers the CONNECT.
    pub fn status(&self) -> u16 {
        match self {
            Self::Mismatch { .. } => 400,
            Self::UnknownHost(_) | Self::UnknownPort { .. } | Self::NoAddress(_) | Self::Recursive => 503,
        }
    }
}

impl Snapshot {
    /// Checks a request that came to `own` on its address `local`, and finds out where it goes.
    pub fn validate_inbound(
        &self,
        own: &Arc<Workload>,
        local: IpAddr,
        target: &TunnelAuthority,
    ) -> Result<Delivery, InboundError> {
        let local = local.to_canonical();
        let (port, service) = match target {
            TunnelAuthority::Address(requested) => {
                self.check_address(own, local, requested.ip().to_canonical())?;
                (requested.port(), None)
            }
            TunnelAuthority::Host { hostname, port } => {
                let (service, port) = self.resolve_host(own, hostname, *port)?;
                (port, Some(service))
            }
        };
        if self.is_captured_port(port) {
            return Err(InboundError::Recursive);
        }
        let tunnel = own.application_tunnel;
        let preamble = match tunnel.map(|tunnel| tunnel.protocol) {
            Some(ApplicationProtocol::Proxy) => Some(Preamble {
                destination: self.tunnel_destination(target, service)?,
                host: service.map(|service| service.hostname.clone()),
            }),
            Some(ApplicationProtocol::None) | None => None,
        };
        let port = tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
        Ok(Delivery {
            address: SocketAddr::new(local, port),
            preamble,
            service: service.cloned(),
        })
    }

    /// The workload at the other end of an inbound connection. What a gateway passes on from another network comes from
    /// the gateway's address, which says nothing about who began it.
    pub fn inbound_source(&self, peer: IpAddr, forwarded_network: Option<&str>) -> Option<&Arc<Workload>> {
        let network = &self.locale().network;
        let from_gateway = forwarded_network.is_some_and(|other| !other.eq_ignore_ascii_case(network));
        if from_gateway {
            return None;
        }
        self.workload_by_address(network, peer)
    }

    /// The service that an inbound connection to `port` of `own` is about: the one the client named or asked
    /// for, else the only one that leads to this port. Several that do are a guess, so none is named.
    pub fn inbound_service<'a>(
        &'a self,
        own: &'a Workload,
        port: u16,
        forwarded_host: Option<&str>,
        requested: Option<&'a Arc<Service>>,
    ) -> Option<&'a Arc<Service>> {
        let candidates = || requested.into_iter().chain(self.services_of(own));
        let named = forwarded_host.and_then(|host| {
            candidates()
                .find(|service| *service.hostname == *host)
                .or_else(|| candidates().find(|service| service.hostname.eq_ignore_ascii_case(host)))
        });
        named.or(requested).or_else(|| {
            let leads_here = |ports: &super::PortMap| ports.iter().any(|(_, target)| target == port);
            let mut leading = self.backed_of(own).filter(|backed| {
                let ports = || backed.ports_of(&own.uid, &self.index.workloads);
                leads_here(&backed.service.ports) || ports().is_some_and(leads_here)
            });
            let only = leading.next().filter(|_| leading.next().is_none())?;
            Some(&only.service)
        })
    }

    /// An address other than the pod's own is only for those that take traffic for others: workloads with an
    /// application tunnel, and the waypoint of whatever owns the address.
    fn check_address(&self, own: &Workload, local: IpAddr, requested: IpAddr) -> Result<(), InboundError> {
        if requested == local || own.application_tunnel.is_some() {
            return Ok(());
        }
        let network = &self.locale().network;
        let owns_local = |it: &Workload| it.addresses.contains(&local);
        let is_ours = |waypoint| self.is_gateway(waypoint, own, owns_local);
        let serves = match self.workload_by_address(network, requested) {
            Some(workload) => workload.waypoint.as_deref().is_some_and(is_ours),
            None => self
                .service_by_address(network, requested, None)
                .is_some_and(|service| service.waypoints().any(is_ours)),
        };
        if serves {
            return Ok(());
        }
        Err(InboundError::Mismatch { local, requested })
    }

    fn resolve_host(
        &self,
        own: &Workload,
        host: &str,
        port: u16,
    ) -> Result<(&Arc<Service>, u16), InboundError> {
        let backed = self
            .backed_by_hostname(host, Some(&own.namespace))
            .ok_or_else(|| InboundError::UnknownHost(host.to_owned()))?;
        let service = &backed.service;
        let target = backed
            .ports_of(&own.uid, &self.index.workloads)
            .and_then(|ports| ports.get(port))
            .or_else(|| service.ports.get(port).filter(|target| *target > 0))
            .ok_or_else(|| InboundError::UnknownPort {
                host: host.to_owned(),
                port,
            })?;
        Ok((service, target))
    }

    /// For a host name: an address of its service, preferably of our network and there an IPv4 one.
    fn tunnel_destination(
        &self,
        target: &TunnelAuthority,
        service: Option<&Arc<Service>>,
    ) -> Result<SocketAddr, InboundError> {
        match target {
            TunnelAuthority::Address(address) => Ok(*address),
            TunnelAuthority::Host { hostname, port } => service
                .iter()
                .flat_map(|service| &service.vips)
                .min_by_key(|vip| (vip.network != self.locale().network, vip.ip.is_ipv6()))
                .map(|vip| SocketAddr::new(vip.ip, *port))
                .ok_or_else(|| InboundError::NoAddress(hostname.to_string())),
        }
    }
}

#[cfg(test)]
mod tests;
