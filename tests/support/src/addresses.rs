//! The address plan: 198.18.0.0/15 (RFC 2544, benchmarks) and fd00:198:18::/48, so nothing here can ever be
//! somebody else's host.
//!
//! | what | IPv4 | IPv6 |
//! |---|---|---|
//! | node n | 198.18.(n+1).1 | fd00:198:18:(n+1)::1 |
//! | pod k of node n | 198.18.(n+1).(10+k) | fd00:198:18:(n+1)::(10+k) |
//! | service s | 198.18.240.(1+s) | fd00:198:18:f0::(1+s) |
//! | nobody (no route) | 198.19.255.1 | fd00:198:18:ffff::1 |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// One IPv4 and one IPv6 address of the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Addresses {
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }

    fn new(subnet: u8, host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(198, 18, subnet, host),
            v6: Ipv6Addr::new(0xfd00, 0x198, 0x18, u16::from(subnet), 0, 0, 0, u16::from(host)),
        }
    }
}

/// Nodes that fit into the plan.
pub const NODES_MAX: usize = 200;
/// Pods of one node that fit.
pub const PODS_MAX: usize = 240;

const SERVICES_SUBNET: u8 = 240;

pub fn node(index: usize) -> Addresses {
    Addresses::new(subnet(index), 1)
}

pub fn pod(node: usize, index: usize) -> Addresses {
    assert!(index < PODS_MAX, "at most {PODS_MAX} pods on a node");
    Addresses::new(subnet(node), 10 + index as u8)
}

pub fn service(index: usize) -> Addresses {
    assert!(index < 250, "at most 250 services");
    Addresses::new(SERVICES_SUBNET, 1 + index as u8)
}

/// Addresses that no node has a route to.
pub fn nobody() -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(198, 19, 255, 1),
        v6: Ipv6Addr::new(0xfd00, 0x198, 0x18, 0xffff, 0, 0, 0, 1),
    }
}

/// The third number of the node's network.
pub fn subnet(node: usize) -> u8 {
    assert!(node < NODES_MAX, "at most {NODES_MAX} nodes");
    node as u8 + 1
}

/// Gateway of every pod on its node's side (link-local, the same on each pod link).
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Link-local address of a node on its wires.
pub fn wire(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x100 + u16::from(subnet(node)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_in_the_reserved_ranges() {
        for addresses in [node(0), node(199), pod(3, 7), service(9), nobody()] {
            let [a, b, ..] = addresses.v4.octets();
            assert!(a == 198 && (b == 18 || b == 19), "{}", addresses.v4);
            assert_eq!(&addresses.v6.segments()[..3], &[0xfd00, 0x198, 0x18]);
        }
    }

    #[test]
    fn pods_and_services_do_not_share_an_address() {
        assert_ne!(subnet(NODES_MAX - 1), SERVICES_SUBNET);
        assert_eq!(pod(1, 2).v4, Ipv4Addr::new(198, 18, 2, 12));
    }
}
