//! Names and addresses by which the mesh state refers to things: network addresses, namespaced host names,
//! CIDR ranges, port maps and gateway references.
//!
//! Plain values, shared by every thread. Every IP address is canonical: an IPv4-mapped IPv6 address is
//! turned into the IPv4 address when it enters, so that one host has one key.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

/// An IP address within one network of the mesh. The empty name is a network like any other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    pub network: Arc<str>,
    pub ip: IpAddr,
}

/// The primary key of a service, also used for workloads that have a host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
}

/// What spellings of a host name have in common: their case means nothing (RFC 4343). Nothing is copied where a name has
/// no capitals, as next to none has.
pub(super) fn without_case(hostname: &str) -> Cow<'_, str> {
    match hostname.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(hostname.to_ascii_lowercase()),
        false => Cow::Borrowed(hostname),
    }
}

/// A range of IPv4-mapped IPv6 addresses is one of IPv4 addresses, as every single address is. What begins among them
/// and has a shorter prefix reaches beyond them: no more than `::/0` does it hold an IPv4 address.
pub fn canonical_range(range: IpNet) -> IpNet {
    let ip = range.addr().to_canonical();
    if ip == range.addr() {
        return range;
    }
    let length = range.prefix_len().checked_sub(96);
    length
        .and_then(|length| IpNet::new(ip, length).ok())
        .unwrap_or(range)
}

/// A range of virtual addresses of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrVip {
    pub network: Arc<str>,
    pub cidr: IpNet,
}

/// What a waypoint or network-gateway reference names, or whoever else asks for something by address or name. Its text
/// is the name by which a control plane is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatewayTarget {
    Address(NetworkAddress),
    Hostname(NamespacedHostname),
}

/// A reference to a waypoint or a network gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayAddress {
    pub target: GatewayTarget,
    /// A service port when the target is a service, else the port of the workload.
    pub hbone_mtls_port: u16,
}

/// Service port to target port, sorted by service port. A target of 0 stands for a named port, whose number
/// only the endpoint knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PortMap(Arc<[(u16, u16)]>);

/// A text that is none of the names or addresses of this file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind}: {text:?} (expected {expected})")]
pub struct InvalidName {
    pub kind: &'static str,
    pub text: String,
    pub expected: &'static str,
}

impl NetworkAddress {
    pub fn new(network: &str, ip: IpAddr) -> Self {
        Self {
            network: network.into(),
            ip: ip.to_canonical(),
        }
    }
}

impl NamespacedHostname {
    pub fn new(namespace: &str, hostname: &str) -> Self {
        Self {
            namespace: namespace.into(),
            hostname: hostname.into(),
        }
    }
}

impl CidrVip {
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.cidr.contains(&ip)
    }
}

impl PortMap {
    pub fn get(&self, service_port: u16) -> Option<u16> {
        let at = self
            .0
            .binary_search_by_key(&service_port, |(from, _)| *from)
            .ok()?;
        Some(self.0[at].1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u16, u16)> {
        self.0.iter().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u16, u16)> for PortMap {
    /// A service port given twice keeps its last target.
    fn from_iter<T: IntoIterator<Item = (u16, u16)>>(ports: T) -> Self {
        let sorted: std::collections::BTreeMap<u16, u16> = ports.into_iter().collect();
        Self(sorted.into_iter().collect())
    }
}

impl FromStr for NetworkAddress {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('/')
            .and_then(|(network, ip)| Some(Self::new(network, ip.parse().ok()?)))
            .ok_or_else(|| InvalidName {
                kind: "network address",
                text: text.to_owned(),
                expected: "network/IP, with nothing before the slash for the unnamed network",
            })
    }
}

impl FromStr for NamespacedHostname {
    type Err = InvalidName;

    /// Splits at the first slash; an empty namespace is legal.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !hostname.is_empty() => Ok(Self::new(namespace, hostname)),
            Some(_) | None => Err(InvalidName {
                kind: "namespaced hostname",
                text: text.to_owned(),
                expected: "namespace/hostname",
            }),
        }
    }
}

impl FromStr for GatewayTarget {
    type Err = InvalidName;

    /// The address form is tried first.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        text.parse().map(Self::Hostname).map_err(|_| InvalidName {
            kind: "destination",
            text: text.to_owned(),
            expected: "network/IP or namespace/hostname",
        })
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl fmt::Display for GatewayTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(hostname) => hostname.fmt(f),
        }
    }
}

impl fmt::Display for GatewayAddress {
    /// `address:port`, or `namespace/hostname:port`; what is not in the unnamed network with its network in front.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.hbone_mtls_port;
        match &self.target {
            GatewayTarget::Address(NetworkAddress { network, ip }) => {
                if !network.is_empty() {
                    write!(f, "{network}/")?;
                }
                SocketAddr::new(*ip, port).fmt(f)
            }
            GatewayTarget::Hostname(hostname) => write!(f, "{hostname}:{port}"),
        }
    }
}

impl<'de> Deserialize<'de> for NetworkAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for NamespacedHostname {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for GatewayTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PortMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ports = std::collections::BTreeMap::<u16, u16>::deserialize(deserializer)?;
        Ok(ports.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_ipv4_address_becomes_the_ipv4_address() {
        let address: NetworkAddress = "net1/::ffff:10.0.0.1".parse().expect("valid");
        assert_eq!(
            address,
            NetworkAddress::new("net1", "10.0.0.1".parse().expect("ip"))
        );
        assert_eq!(address.to_string(), "net1/10.0.0.1");
    }

    #[test]
    fn a_range_of_mapped_ipv4_addresses_becomes_one_of_ipv4_addresses() {
        for (range, canonical) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            // Bits behind the prefix may be set.
            ("::ffff:10.0.0.1/104", "10.0.0.1/8"),
            ("::ffff:10.0.0.1/128", "10.0.0.1/32"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
            ("::ffff:0.0.0.0/95", "::ffff:0.0.0.0/95"),
            ("::ffff:10.0.0.0/8", "::ffff:10.0.0.0/8"),
            ("::/0", "::/0"),
            ("fd00::/104", "fd00::/104"),
            ("10.0.0.0/8", "10.0.0.0/8"),
        ] {
            let [range, canonical] = [range, canonical].map(|text| text.parse().expect("a range"));
            assert_eq!(canonical_range(range), canonical, "{range}");
        }
    }

    #[test]
    fn the_unnamed_network_is_a_network() {
        let address: NetworkAddress = "/fd00::1".parse().expect("valid");
        assert_eq!(&*address.network, "");
        assert_eq!(address.to_string(), "/fd00::1");
    }

    #[test]
    fn a_gateway_target_is_read_as_an_address_first() {
        assert!(matches!("shop/10.0.0.1".parse(), Ok(GatewayTarget::Address(_))));
        assert!(matches!(
            "shop/wp.shop.svc".parse(),
            Ok(GatewayTarget::Hostname(_))
        ));
        let error = "nothing".parse::<GatewayTarget>().expect_err("no slash");
        assert_eq!(
            error.to_string(),
            "invalid destination: \"nothing\" (expected network/IP or namespace/hostname)"
        );
    }

    #[test]
    fn a_port_given_twice_keeps_its_last_target() {
        let ports: PortMap = [(80, 1), (443, 8443), (80, 8080)].into_iter().collect();
        assert_eq!(ports.get(80), Some(8080));
        assert_eq!(ports.get(443), Some(8443));
        assert_eq!(ports.get(81), None);
    }
}
