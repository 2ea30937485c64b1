//! From a name or an address to one workload, address and port: upstreams, waypoints and gateways.
//!
//! Pure functions over a snapshot. Invariant: what they choose is never replaced by something else because it has no
//! address: then its name is looked up, or the connection is refused.

use std::net::IpAddr;
use std::sync::Arc;

use super::address::{GatewayAddress, GatewayTarget};
use super::backing::Backed;
use super::balance::{Draw, Purpose};
use super::route::RouteError;
use super::service::{IpFamilies, Service};
use super::workload::Workload;
use super::{NetworkAddress, Snapshot};
use crate::identity::Identity;

/// A workload chosen to take a connection.
#[derive(Debug)]
pub(super) struct Upstream<'a> {
    pub workload: &'a Arc<Workload>,
    pub service: Option<&'a Arc<Service>>,
    pub port: u16,
    pub accepted: &'a Arc<[Identity]>,
}

/// A waypoint or network gateway, and the address whose family its own should have.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    pub upstream: Upstream<'a>,
    pub family_of: IpAddr,
}

/// What a workload is dialled by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selected {
    Address(IpAddr),
    /// Its host name has to be looked up.
    Name,
}

impl Snapshot {
    /// The upstream of an address: a service goes before a workload, and a service that yields no endpoint
    /// does not fall back to one.
    pub(super) fn upstream_of_address(
        &self,
        source: &Workload,
        address: &NetworkAddress,
        port: u16,
        purpose: Purpose,
        draw: &mut Draw<'_>,
    ) -> Option<Upstream<'_>> {
        let namespace = Some(&*source.namespace);
        if let Some(backed) = self.backed_by_address(&address.network, address.ip, namespace) {
            if backed.service.is_passthrough() {
                return None;
            }
            return self.endpoint_of(backed, source, port, purpose, draw);
        }
        let workload = self.workload_by_address(&address.network, address.ip)?;
        Some(Upstream {
            workload,
            service: None,
            port,
            accepted: &workload.accepted,
        })
    }

    /// The waypoint or network gateway that a reference names.
    pub(super) fn resolve_gateway(
        &self,
        reference: &GatewayAddress,
        source: &Workload,
        original: IpAddr,
        purpose: Purpose,
        draw: &mut Draw<'_>,
    ) -> Result<Resolved<'_>, RouteError> {
        let port = reference.hbone_mtls_port;
        let (found, family_of) = match &reference.target {
            GatewayTarget::Address(address) => (
                self.upstream_of_address(source, address, port, purpose, draw),
                address.ip,
            ),
            GatewayTarget::Hostname(key) => {
                let found = match self.index.backed(&key.namespace, &key.hostname) {
                    Some(backed) => self.endpoint_of(backed, source, port, purpose, draw),
                    None => self
                        .workload_by_hostname(&key.namespace, &key.hostname)
                        .map(|workload| Upstream {
                            workload,
                            service: None,
                            port,
                            accepted: &workload.accepted,
                        }),
                };
                (found, original)
            }
        };
        let unknown = match purpose {
            Purpose::Waypoint => RouteError::UnknownWaypoint,
            Purpose::Traffic => RouteError::UnknownGateway,
        };
        let upstream = found.ok_or_else(|| unknown(Box::new(reference.clone())))?;
        Ok(Resolved { upstream, family_of })
    }

    /// True when `workload` is what a reference names: it belongs to the service that the reference names, healthy or
    /// not, or `owns` holds for an endpoint of that service or for the workload that the reference names. `owns` is
    /// only asked about workloads of the same identity.
    pub(super) fn is_gateway(
        &self,
        reference: &GatewayAddress,
        workload: &Workload,
        owns: impl Fn(&Workload) -> bool,
    ) -> bool {
        let (backed, named) = match &reference.target {
            GatewayTarget::Address(address) => (
                self.backed_by_address(&address.network, address.ip, None),
                self.workload_by_address(&address.network, address.ip),
            ),
            GatewayTarget::Hostname(key) => (
                self.index.backed(&key.namespace, &key.hostname),
                self.workload_by_hostname(&key.namespace, &key.hostname),
            ),
        };
        let Some(backed) = backed else {
            return named.is_some_and(|named| owns(named));
        };
        let workloads = &self.index.workloads;
        let (service, members) = (&backed.service, &backed.members);
        // Most that ask are strangers: found out without a walk over the endpoints.
        let place = workloads.place(&workload.uid);
        place.is_some_and(|place| members.contains_key(&place))
            || backed.given.contains_key(&workload.uid)
            || workload.ports_in(&service.namespace, &service.hostname).is_some()
            || (backed.tables(workloads).has_identity(&workload.identity)
                && backed.workloads(workloads).any(|(it, _)| owns(it)))
    }

    pub(super) fn workload_by_hostname(&self, namespace: &str, hostname: &str) -> Option<&Arc<Workload>> {
        let named = self.index.workloads_by_hostname.get(namespace)?.get(hostname)?;
        self.index.workloads_at(named).next()
    }

    fn endpoint_of<'a>(
        &'a self,
        backed: &'a Backed,
        source: &Workload,
        port: u16,
        purpose: Purpose,
        draw: &mut Draw<'_>,
    ) -> Option<Upstream<'a>> {
        let service = &backed.service;
        let tables = backed.tables(&self.index.workloads);
        let pick = tables.pick(&service.ports, source, port, purpose, draw)?;
        Some(Upstream {
            workload: pick.workload,
            service: Some(service),
            port: pick.port,
            accepted: pick.accepted,
        })
    }
}

impl Upstream<'_> {
    /// The address to dial: the original one if it is the workload's, else one of its family, else any, all
    /// within the families of the service.
    pub(super) fn select_ip(&self, original: IpAddr) -> Result<Selected, RouteError> {
        let addresses = &self.workload.addresses;
        if addresses.contains(&original) {
            return Ok(Selected::Address(original));
        }
        let families = self
            .service
            .map_or(IpFamilies::Automatic, |service| service.ip_families);
        let allowed = |ip: &&IpAddr| match families {
            IpFamilies::Automatic | IpFamilies::Dual => true,
            IpFamilies::V4 => ip.is_ipv4(),
            IpFamilies::V6 => ip.is_ipv6(),
        };
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == original.is_ipv4();
        let mut usable = addresses.iter().filter(allowed);
        let first = usable.clone().find(same_family).or_else(|| usable.next());
        match first {
            Some(ip) => Ok(Selected::Address(*ip)),
            None if !self.workload.hostname.is_empty() => Ok(Selected::Name),
            None => Err(RouteError::NoDestination {
                workload: self.workload.uid.clone(),
            }),
        }
    }
}
