//! From the bytes of a `Workload` to a workload, without anything in between that owns memory.
//!
//! Pure. There may be a hundred thousand of them, so the texts stay where they are until the interner has seen them.
//! What few workloads have (gateways, tunnels of applications) is left to prost. Invariant: accepts what prost accepts,
//! and reads it alike (shown by tests with bytes at random), except that prost does not look at the type of a map.

use std::net::IpAddr;

use prost::Message;

use super::super::fields::{Fields, FieldsError, Value};
use super::super::messages::workload as wire;
use super::{
    DecodeError, FieldError, application_tunnel, gateway, in_field, ip, known, or_default, port,
    tunnel_protocol, workload_type,
};
use crate::mesh::{
    Few, Gathered, Health, Interner, Locality, Memberships, NamespacedHostname, NetworkMode, PortMap, Role,
    Site, Tail, Workload,
};

/// Fields as they were sent. Numbers of fields are those of proto/workload.proto.
#[derive(Debug, Default)]
struct Sent<'a> {
    namespace: &'a str,
    network: &'a str,
    tunnel_protocol: i32,
    trust_domain: &'a str,
    service_account: &'a str,
    waypoint: Option<wire::GatewayAddress>,
    network_gateway: Option<wire::GatewayAddress>,
    node: &'a str,
    canonical_name: &'a str,
    canonical_revision: &'a str,
    workload_type: i32,
    workload_name: &'a str,
    native_tunnel: bool,
    application_tunnel: Option<wire::ApplicationTunnel>,
    /// Entries of the map.
    services: Vec<&'a [u8]>,
    authorization_policies: Vec<&'a str>,
    cluster_id: &'a str,
    /// Region, zone, subzone.
    locality: [&'a str; 3],
    network_mode: i32,
}

/// A workload as it was sent. What it has in common with others is not looked at yet: nearly always it is known.
#[derive(Debug)]
pub(super) struct Split<'a> {
    uid: &'a str,
    name: &'a str,
    addresses: Gathered<&'a [u8]>,
    hostname: &'a str,
    status: i32,
    capacity: Option<u32>,
    /// The fields that make the site.
    site: Vec<u8>,
    /// The fields that make the role, without services.
    role: Vec<u8>,
    services: Gathered<&'a [u8]>,
}

const SERVICES: u32 = 22;

impl<'a> Split<'a> {
    /// Of a message that is yet to be read.
    pub(super) fn new(interner: &mut Interner) -> Self {
        Self {
            uid: "",
            name: "",
            addresses: Gathered::default(),
            hostname: "",
            status: 0,
            capacity: None,
            site: interner.lend(),
            role: interner.lend(),
            services: Gathered::default(),
        }
    }

    /// One more occurrence of the message: what it has goes before what was there.
    pub(super) fn merge(&mut self, bytes: &'a [u8]) -> Result<(), DecodeError> {
        self.role.reserve(bytes.len());
        let mut fields = Fields::of(bytes);
        loop {
            let before = fields.rest();
            let Some(field) = fields.next() else {
                return Ok(());
            };
            let (number, value) = field?;
            let sent = &before[..before.len() - fields.rest().len()];
            match number {
                1 => self.name = value.text("name")?,
                3 => self.addresses.push(value.bytes("addresses")?),
                17 => self.status = value.number("status")? as i32,
                20 => self.uid = value.text("uid")?,
                21 => self.hostname = value.text("hostname")?,
                27 => {
                    let capacity = self.capacity.get_or_insert_default();
                    for field in Fields::of(value.bytes("capacity")?) {
                        if let (1, value) = field? {
                            *capacity = value.number("capacity")? as u32;
                        }
                    }
                }
                9 | 18 | 24 => self.site.extend_from_slice(sent),
                2 | 4..=8 | 10..=14 | 16 | 19 | 23 | 25 => self.role.extend_from_slice(sent),
                SERVICES => self.services.push(sent),
                _ => {}
            }
        }
    }

    pub(super) fn into_workload(mut self, interner: &mut Interner) -> Result<Workload, DecodeError> {
        self.join_services()?;
        let role = interner.role(&self.role, |interner| Sent::of(&self.role)?.into_role(interner))?;
        let site = interner.site(&self.site, |interner| {
            Ok::<_, DecodeError>(Sent::of(&self.site)?.into_site(interner))
        })?;
        interner.take_back(self.role);
        interner.take_back(self.site);
        let uid = self.uid.into();
        Ok(Workload {
            name: Tail::of(&uid, self.name),
            uid,
            addresses: addresses(&self.addresses)?,
            hostname: interner.text(self.hostname),
            status: match known("status", self.status)? {
                wire::WorkloadStatus::Healthy => Health::Healthy,
                wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
            },
            capacity: self.capacity.unwrap_or(1),
            site,
            role,
        })
    }

    /// Makes services a part of the role. They are a map, which has no order: of a name that comes twice the last counts.
    fn join_services(&mut self) -> Result<(), DecodeError> {
        let Self { role, services, .. } = self;
        if services.len() <= 1 {
            services.iter().for_each(|field| role.extend_from_slice(field));
            return Ok(());
        }
        let named = services.iter().map(|field| Ok((name_of_service(field)?, *field)));
        let mut named = named.collect::<Result<Vec<_>, DecodeError>>()?;
        named.sort_by_key(|(name, _)| *name);
        for (_, field) in named {
            role.extend_from_slice(field);
        }
        Ok(())
    }
}

/// Of the field, with its number.
fn name_of_service(field: &[u8]) -> Result<&str, DecodeError> {
    let mut name = "";
    for field in Fields::of(field) {
        let (_, value) = field?;
        (name, _) = service(value.bytes("services")?)?;
    }
    Ok(name)
}

impl<'a> Sent<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut sent = Self::default();
        for field in Fields::of(bytes) {
            let (number, value) = field?;
            sent.add(number, value)?;
        }
        Ok(sent)
    }

    fn add(&mut self, number: u32, value: Value<'a>) -> Result<(), DecodeError> {
        match number {
            2 => self.namespace = value.text("namespace")?,
            4 => self.network = value.text("network")?,
            5 => self.tunnel_protocol = value.number("tunnel_protocol")? as i32,
            6 => self.trust_domain = value.text("trust_domain")?,
            7 => self.service_account = value.text("service_account")?,
            8 => merge(&mut self.waypoint, value.bytes("waypoint")?)?,
            9 => self.node = value.text("node")?,
            10 => self.canonical_name = value.text("canonical_name")?,
            11 => self.canonical_revision = value.text("canonical_revision")?,
            12 => self.workload_type = value.number("workload_type")? as i32,
            13 => self.workload_name = value.text("workload_name")?,
            14 => self.native_tunnel = value.number("native_tunnel")? != 0,
            16 => self
                .authorization_policies
                .push(value.text("authorization_policies")?),
            18 => self.cluster_id = value.text("cluster_id")?,
            19 => merge(&mut self.network_gateway, value.bytes("network_gateway")?)?,
            22 => self.services.push(value.bytes("services")?),
            23 => merge(&mut self.application_tunnel, value.bytes("application_tunnel")?)?,
            24 => self.locality(value.bytes("locality")?)?,
            25 => self.network_mode = value.number("network_mode")? as i32,
            _ => {}
        }
        Ok(())
    }

    /// Without what is the workload's own.
    fn into_role(self, interner: &mut Interner) -> Result<Role, DecodeError> {
        let trust_domain = interner.text(or_default(self.trust_domain, "cluster.local"));
        let service_account = interner.text(or_default(self.service_account, "default"));
        let namespace = interner.text(self.namespace);
        let accepted = interner.identity(&trust_domain, &namespace, &service_account);
        Ok(Role {
            namespace,
            trust_domain,
            service_account,
            identity: accepted[0].clone(),
            accepted,
            network: interner.text(self.network),
            protocol: tunnel_protocol(self.tunnel_protocol)?,
            network_mode: match known("network_mode", self.network_mode)? {
                wire::NetworkMode::Standard => NetworkMode::Standard,
                wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
            },
            waypoint: gateway("waypoint", self.waypoint)?,
            network_gateway: gateway("network_gateway", self.network_gateway)?,
            services: memberships(&self.services, interner)?,
            authorization_policies: interner.texts(&self.authorization_policies),
            workload_name: interner.text(self.workload_name),
            workload_type: interner.text(workload_type(self.workload_type)),
            canonical_name: interner.text(self.canonical_name),
            canonical_revision: interner.text(self.canonical_revision),
            native_tunnel: self.native_tunnel,
            application_tunnel: self.application_tunnel.map(application_tunnel).transpose()?,
        })
    }

    fn into_site(self, interner: &mut Interner) -> Site {
        let [region, zone, subzone] = self.locality.map(|text| interner.text(text));
        Site {
            node: interner.text(self.node),
            cluster_id: interner.text(or_default(self.cluster_id, "Kubernetes")),
            locality: Locality {
                region,
                zone,
                subzone,
            },
        }
    }

    fn locality(&mut self, bytes: &'a [u8]) -> Result<(), FieldsError> {
        for field in Fields::of(bytes) {
            let (number, value) = field?;
            match number {
                1 => self.locality[0] = value.text("locality.region")?,
                2 => self.locality[1] = value.text("locality.zone")?,
                3 => self.locality[2] = value.text("locality.subzone")?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn merge<M: Message + Default>(into: &mut Option<M>, bytes: &[u8]) -> Result<(), DecodeError> {
    Ok(into.get_or_insert_default().merge(bytes)?)
}

type Entry<'a> = (&'a str, Vec<(u16, u16)>);

/// An entry of the map: `namespace/hostname` to ports.
fn service(bytes: &[u8]) -> Result<Entry<'_>, FieldsError> {
    let (mut name, mut ports) = ("", Vec::new());
    for field in Fields::of(bytes) {
        match field? {
            (1, value) => name = value.text("services.key")?,
            (2, value) => {
                for field in Fields::of(value.bytes("services.value")?) {
                    if let (1, value) = field? {
                        ports.push(service_port(value)?);
                    }
                }
            }
            (_, _) => {}
        }
    }
    Ok((name, ports))
}

fn service_port(value: Value<'_>) -> Result<(u16, u16), FieldsError> {
    let (mut from, mut to) = (0, 0);
    for field in Fields::of(value.bytes("services.ports")?) {
        match field? {
            (1, value) => from = port(value.number("services.ports.service_port")? as u32),
            (2, value) => to = port(value.number("services.ports.target_port")? as u32),
            (_, _) => {}
        }
    }
    Ok((from, to))
}

fn memberships(sent: &[&[u8]], interner: &mut Interner) -> Result<Memberships, DecodeError> {
    let entries = sent.iter().map(|bytes| service(bytes));
    let list = services(entries.collect::<Result<_, _>>()?, interner)?;
    Ok(interner.memberships(list))
}

/// A name given twice keeps what was said last, and the order is that of names.
fn services(
    mut sent: Vec<Entry<'_>>,
    interner: &mut Interner,
) -> Result<Vec<(NamespacedHostname, PortMap)>, DecodeError> {
    sent.reverse();
    sent.sort_by_key(|(name, _)| *name);
    sent.dedup_by_key(|(name, _)| *name);
    let mut services = Vec::with_capacity(sent.len());
    for (name, ports) in sent {
        let Some((namespace, hostname)) = name.split_once('/') else {
            let error = FieldError::Hostname(name.to_owned());
            return in_field(format_args!("services"), Err(error));
        };
        let ports: PortMap = ports.into_iter().collect();
        services.push((interner.hostname(namespace, hostname), ports));
    }
    Ok(services)
}

fn addresses(sent: &Gathered<&[u8]>) -> Result<Few<IpAddr>, DecodeError> {
    let sent = sent.iter().enumerate();
    sent.map(|(at, bytes)| in_field(format_args!("addresses[{at}]"), ip(bytes)))
        .collect()
}

#[cfg(test)]
mod tests;
