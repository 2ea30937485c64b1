//! From the bytes of a resource to a workload, a service or a policy.
//!
//! Pure. Invariant: what comes out holds to the rules of `mesh`; what does not is refused as a whole, with an error
//! that names the field and what is in it. Specification: sections 1 and 2 of the wire contract, where a row says
//! REJECT. Ports and prefix lengths wider than their type are cut off, as the control plane is used to.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message;

use super::fields::{Fields, FieldsError};
use super::messages::workload as wire;
use super::protocol::Kind;
use crate::mesh::{
    ApplicationProtocol, ApplicationTunnel, BalanceMode, CidrVip, GatewayAddress, GatewayTarget,
    HealthPolicy, Interner, IpFamilies, LoadBalancer, NamespacedHostname, NetworkAddress, PortMap, Scope,
    Service, TunnelProtocol, Visibility, WeightedWaypoint, Workload, canonical_range,
};

mod policy;
mod workload;

pub use policy::policy;

use workload::Split;

/// A resource of the type `istio.workload.Address`.
#[derive(Debug, Clone)]
pub enum Address {
    /// Counted already, so that the mesh takes it as it is.
    Workload(Arc<Workload>),
    Service(Box<Service>),
}

/// Why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("XDS payload without resource")]
    NoPayload,
    #[error("cannot be decoded: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("cannot be decoded: {0}")]
    Fields(#[from] FieldsError),
    #[error("is of another type than the response, which is of {}", .0.type_url())]
    OtherType(Kind),
    #[error("unknown address type")]
    UnknownAddressType,
    #[error("{field}: {source}")]
    Field { field: String, source: FieldError },
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("unknown enum: {0}")]
    UnknownEnum(i32),
    #[error("unknown enum: unsupported tunnel protocol: legacy istio mtls")]
    LegacyMtls,
    #[error("unknown enum: invalid target")]
    UnspecifiedScope,
    #[error("failed to parse address, had {0} bytes")]
    AddressBytes(usize),
    #[error("failed to parse namespaced hostname: {0}")]
    Hostname(String),
    #[error("nonempty gateway address is missing address")]
    NoGatewayAddress,
    #[error("invalid cidr: {ip}/{length}")]
    Cidr { ip: IpAddr, length: u8 },
}

/// Decodes one `Address`. What it shares with others it has from the interner.
pub fn address(bytes: &[u8], interner: &mut Interner) -> Result<Address, DecodeError> {
    enum Last<'a> {
        Workload(Split<'a>),
        Service(wire::Service),
    }
    // Of several, the last counts; several of one kind in a row are one.
    let mut last = None;
    for field in Fields::of(bytes) {
        match field? {
            (1, value) => {
                let mut workload = match last.take() {
                    Some(Last::Workload(workload)) => workload,
                    Some(Last::Service(_)) | None => Split::new(interner),
                };
                workload.merge(value.bytes("workload")?)?;
                last = Some(Last::Workload(workload));
            }
            (2, value) => {
                let mut service = match last.take() {
                    Some(Last::Service(service)) => service,
                    Some(Last::Workload(_)) | None => wire::Service::default(),
                };
                service.merge(value.bytes("service")?)?;
                last = Some(Last::Service(service));
            }
            (_, _) => {}
        }
    }
    match last {
        Some(Last::Workload(workload)) => Ok(Address::Workload(Arc::new(workload.into_workload(interner)?))),
        Some(Last::Service(service)) => Ok(Address::Service(Box::new(service_of(service, interner)?))),
        None => Err(DecodeError::UnknownAddressType),
    }
}

fn service_of(from: wire::Service, interner: &mut Interner) -> Result<Service, DecodeError> {
    let mut service = Service::new(&from.name, "", "");
    NamespacedHostname {
        namespace: service.namespace,
        hostname: service.hostname,
    } = interner.hostname(&from.namespace, &from.hostname);
    for (at, address) in from.addresses.into_iter().enumerate() {
        let field = format_args!("addresses[{at}]");
        match in_field(field, virtual_address(address))? {
            VirtualAddress::Exact(vip) => service.vips.push(vip),
            VirtualAddress::Range(vip) => service.cidr_vips.push(vip),
        }
    }
    service.ports = ports(&from.ports);
    service.subject_alt_names = from.subject_alt_names.into_iter().map(Arc::from).collect();
    service.waypoint = gateway("waypoint", from.waypoint)?;
    for (at, weighted) in from.weighted_waypoints.into_iter().enumerate() {
        let field = format_args!("weighted_waypoints[{at}].destination");
        // Unlike the single waypoint, an entry without one makes no sense.
        let destination = weighted.destination.ok_or(FieldError::NoGatewayAddress);
        service.weighted_waypoints.push(WeightedWaypoint {
            destination: in_field(field, destination.and_then(gateway_address))?,
            weight: weighted.weight,
        });
    }
    service.load_balancer = from.load_balancing.map(load_balancer).transpose()?;
    service.ip_families = match known("ip_families", from.ip_families)? {
        wire::IpFamilies::Automatic => IpFamilies::Automatic,
        wire::IpFamilies::Ipv4Only => IpFamilies::V4,
        wire::IpFamilies::Ipv6Only => IpFamilies::V6,
        wire::IpFamilies::Dual => IpFamilies::Dual,
    };
    service.canonical = from.canonical;
    // A value that is not known yet restricts nobody, as in upstream: new restrictions come with new versions.
    service.visibility = match wire::service::Visibility::try_from(from.visibility) {
        Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
        Ok(wire::service::Visibility::Public) | Err(_) => Visibility::Public,
    };
    Ok(service)
}

fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, DecodeError> {
    match known("tunnel_protocol", value)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::Tcp),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => {
            in_field(format_args!("tunnel_protocol"), Err(FieldError::LegacyMtls))
        }
    }
}

/// For telemetry only, so that a type of tomorrow is no reason to refuse a workload.
fn workload_type(value: i32) -> &'static str {
    match wire::WorkloadType::try_from(value) {
        Ok(wire::WorkloadType::Cronjob) => "cronjob",
        Ok(wire::WorkloadType::Pod) => "pod",
        Ok(wire::WorkloadType::Job) => "job",
        Ok(wire::WorkloadType::Deployment) | Err(_) => "deployment",
    }
}

fn application_tunnel(from: wire::ApplicationTunnel) -> Result<ApplicationTunnel, DecodeError> {
    use wire::application_tunnel::Protocol;
    Ok(ApplicationTunnel {
        protocol: match known("application_tunnel.protocol", from.protocol)? {
            Protocol::None => ApplicationProtocol::None,
            Protocol::Proxy => ApplicationProtocol::Proxy,
        },
        port: Some(port(from.port)).filter(|port| *port != 0),
    })
}

fn load_balancer(from: wire::LoadBalancing) -> Result<LoadBalancer, DecodeError> {
    use wire::load_balancing::{HealthPolicy as Health, Mode, Scope as Target};
    let preferences = from.routing_preference.iter().enumerate();
    let preferences = preferences.map(|(at, value)| {
        let field = format_args!("load_balancing.routing_preference[{at}]");
        let scope = match Target::try_from(*value) {
            Err(_) => Err(FieldError::UnknownEnum(*value)),
            Ok(Target::UnspecifiedScope) => Err(FieldError::UnspecifiedScope),
            Ok(Target::Region) => Ok(Scope::Region),
            Ok(Target::Zone) => Ok(Scope::Zone),
            Ok(Target::Subzone) => Ok(Scope::Subzone),
            Ok(Target::Node) => Ok(Scope::Node),
            Ok(Target::Cluster) => Ok(Scope::Cluster),
            Ok(Target::Network) => Ok(Scope::Network),
        };
        in_field(field, scope)
    });
    Ok(LoadBalancer {
        routing_preferences: preferences.collect::<Result<_, _>>()?,
        mode: match known("load_balancing.mode", from.mode)? {
            Mode::UnspecifiedMode => BalanceMode::Standard,
            Mode::Strict => BalanceMode::Strict,
            Mode::Failover => BalanceMode::Failover,
            Mode::Passthrough => BalanceMode::Passthrough,
        },
        health_policy: match known("load_balancing.health_policy", from.health_policy)? {
            Health::OnlyHealthy => HealthPolicy::OnlyHealthy,
            Health::AllowAll => HealthPolicy::AllowAll,
        },
    })
}

fn gateway(
    field: &str,
    from: Option<wire::GatewayAddress>,
) -> Result<Option<Box<GatewayAddress>>, DecodeError> {
    from.map(|from| in_field(format_args!("{field}"), gateway_address(from).map(Box::new)))
        .transpose()
}

fn gateway_address(from: wire::GatewayAddress) -> Result<GatewayAddress, FieldError> {
    use wire::gateway_address::Destination;
    let target = match from.destination.ok_or(FieldError::NoGatewayAddress)? {
        Destination::Hostname(name) => {
            GatewayTarget::Hostname(NamespacedHostname::new(&name.namespace, &name.hostname))
        }
        Destination::Address(address) => {
            GatewayTarget::Address(NetworkAddress::new(&address.network, ip(&address.address)?))
        }
    };
    Ok(GatewayAddress {
        target,
        hbone_mtls_port: port(from.hbone_mtls_port),
    })
}

enum VirtualAddress {
    Exact(NetworkAddress),
    Range(CidrVip),
}

fn virtual_address(from: wire::NetworkAddress) -> Result<VirtualAddress, FieldError> {
    let ip = plain_ip(&from.address)?;
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    match from.length {
        Some(length) if length != whole => Ok(VirtualAddress::Range(CidrVip {
            network: from.network.into(),
            cidr: range(ip, length)?,
        })),
        Some(_) | None => Ok(VirtualAddress::Exact(NetworkAddress::new(&from.network, ip))),
    }
}

fn range(ip: IpAddr, length: u32) -> Result<IpNet, FieldError> {
    let length = length as u8;
    let range = IpNet::new(ip, length).map_err(|_| FieldError::Cidr { ip, length })?;
    Ok(canonical_range(range))
}

fn ip(bytes: &[u8]) -> Result<IpAddr, FieldError> {
    plain_ip(bytes).map(|ip| ip.to_canonical())
}

/// As it was sent: prefix lengths count in its own family.
fn plain_ip(bytes: &[u8]) -> Result<IpAddr, FieldError> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(octets));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => Ok(IpAddr::from(octets)),
        Err(_) => Err(FieldError::AddressBytes(bytes.len())),
    }
}

fn ports(list: &[wire::Port]) -> PortMap {
    let pairs = list
        .iter()
        .map(|it| (port(it.service_port), port(it.target_port)));
    pairs.collect()
}

fn port(value: u32) -> u16 {
    value as u16
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, DecodeError> {
    let known = E::try_from(value).map_err(|_| FieldError::UnknownEnum(value));
    in_field(format_args!("{field}"), known)
}

fn in_field<T>(field: fmt::Arguments<'_>, result: Result<T, FieldError>) -> Result<T, DecodeError> {
    result.map_err(|source| DecodeError::Field {
        field: field.to_string(),
        source,
    })
}

#[cfg(test)]
mod tests;
