//! From a name or an address to one workload, address and port: upstreams, waypoints and gateways.
//!
//! Pure functions over a snapshot. Invariant: what they return can be dialled as it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::address::{GatewayAddress, GatewayTarget};
use super::balance::Purpose;
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

impl Snapshot {
    /// The upstream of an address: a service goes before a workload, and a service that yields no endpoint
    /// does not fall back to one.
    pub(super) fn upstream_of_address(
        &self,
        source: &Workload,
        address: &NetworkAddress,
        port: u16,
        purpose: Purpose,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Upstream<'_>> {
        let namespace = Some(&*source.namespace);
        if let Some(service) = self.service_by_address(&address.network, address.ip, namespace) {
            if service.is_passthrough() {
                return None;
            }
            return Self::endpoint_of(service, source, port, purpose, random);
        }
        let workload = self.workload_by_address(&address.network, address.ip)?;
        Some(Upstream {
            workload,
            service: None,
            port,
            accepted: &workload.accepted,
        })
    }

    /// The waypoint (or gateway) that a reference names, with the address to dial.
    pub(super) fn resolve_gateway(
        &self,
        reference: &GatewayAddress,
        source: &Workload,
        original: IpAddr,
        purpose: Purpose,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<(Upstream<'_>, SocketAddr), RouteError> {
        let port = reference.hbone_mtls_port;
        let (found, family_basis) = match &reference.target {
            GatewayTarget::Address(address) => (
                self.upstream_of_address(source, address, port, purpose, random),
                address.ip,
            ),
            GatewayTarget::Hostname(key) => {
                let found = match self.service(&key.namespace, &key.hostname) {
                    Some(service) => Self::endpoint_of(service, source, port, purpose, random),
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
        let upstream = found.ok_or_else(|| RouteError::UnknownWaypoint(reference.to_string()))?;
        let ip = upstream.select_ip(family_basis)?;
        let next_hop = SocketAddr::new(ip, upstream.port);
        Ok((upstream, next_hop))
    }

    /// True when the condition holds for the workload that a reference names, or for an endpoint of the service
    /// that it names.
    pub(super) fn gateway_includes(
        &self,
        reference: &GatewayAddress,
        mut condition: impl FnMut(&Workload) -> bool,
    ) -> bool {
        let (service, workload) = match &reference.target {
            GatewayTarget::Address(address) => (
                self.service_by_address(&address.network, address.ip, None),
                self.workload_by_address(&address.network, address.ip),
            ),
            GatewayTarget::Hostname(key) => (
                self.service(&key.namespace, &key.hostname),
                self.workload_by_hostname(&key.namespace, &key.hostname),
            ),
        };
        match (service, workload) {
            (Some(service), _) => service
                .endpoints
                .keys()
                .filter_map(|uid| self.workload(uid))
                .any(|it| condition(it)),
            (None, Some(workload)) => condition(workload),
            (None, None) => false,
        }
    }

    fn workload_by_hostname(&self, namespace: &str, hostname: &str) -> Option<&Arc<Workload>> {
        self.index
            .workloads_by_hostname
            .get(namespace)?
            .get(hostname)?
            .first()
    }

    fn endpoint_of<'a>(
        service: &'a Arc<Service>,
        source: &Workload,
        port: u16,
        purpose: Purpose,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Upstream<'a>> {
        let pick = service
            .balance
            .pick(&service.ports, source, port, purpose, random)?;
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
    pub(super) fn select_ip(&self, original: IpAddr) -> Result<IpAddr, RouteError> {
        let addresses = &self.workload.addresses;
        if addresses.contains(&original) {
            return Ok(original);
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
        first.copied().ok_or_else(|| {
            let workload = self.workload.uid.clone();
            if self.workload.hostname.is_empty() {
                RouteError::NoDestination { workload }
            } else {
                RouteError::NeedsResolution {
                    workload,
                    hostname: self.workload.hostname.clone(),
                }
            }
        })
    }
}
