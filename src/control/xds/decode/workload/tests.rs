//! Beside what prost makes of the same bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};

use super::*;

fn full() -> wire::Workload {
    let text = str::to_owned;
    let gateway = wire::GatewayAddress {
        hbone_mtls_port: 15008,
        destination: Some(wire::gateway_address::Destination::Address(
            wire::NetworkAddress {
                network: text("n"),
                address: vec![1, 2, 3, 4],
                length: None,
            },
        )),
    };
    let ports = |from| wire::PortList {
        ports: vec![
            wire::Port {
                service_port: from,
                target_port: 70_000,
            },
            wire::Port::default(),
        ],
    };
    wire::Workload {
        uid: text("uid"),
        name: text("name"),
        namespace: text("namespace"),
        addresses: vec![vec![10, 0, 0, 1], vec![0; 16], Vec::new()],
        hostname: text("hostname"),
        network: text("network"),
        tunnel_protocol: 1,
        trust_domain: text("trust_domain"),
        service_account: text("account"),
        waypoint: Some(gateway.clone()),
        network_gateway: Some(gateway),
        node: text("node"),
        canonical_name: text("canonical"),
        canonical_revision: text("v1"),
        workload_type: 3,
        workload_name: text("workload"),
        native_tunnel: true,
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 80,
        }),
        services: [(text("b/b"), ports(1)), (text("a/a"), ports(2))].into(),
        authorization_policies: vec![text("p/1"), text("p/2")],
        status: 1,
        cluster_id: text("cluster"),
        locality: Some(wire::Locality {
            region: text("region"),
            zone: text("zone"),
            subzone: text("subzone"),
        }),
        network_mode: 1,
        capacity: Some(7),
    }
}

/// As prost would have made it; none where a service is malformed.
fn owned(split: &Split<'_>, role: Sent<'_>, site: &Sent<'_>) -> Option<wire::Workload> {
    let services: Result<Vec<_>, _> = role.services.iter().map(|bytes| service(bytes)).collect();
    let services = services.ok()?.into_iter().map(|(name, ports)| {
        let ports = ports.iter().map(|(from, to)| wire::Port {
            service_port: u32::from(*from),
            target_port: u32::from(*to),
        });
        let list = wire::PortList {
            ports: ports.collect(),
        };
        (name.to_owned(), list)
    });
    let [region, zone, subzone] = site.locality.map(str::to_owned);
    let policies = role.authorization_policies.iter();
    Some(wire::Workload {
        uid: split.uid.to_owned(),
        name: split.name.to_owned(),
        namespace: role.namespace.to_owned(),
        addresses: split.addresses.iter().map(|it| it.to_vec()).collect(),
        hostname: split.hostname.to_owned(),
        network: role.network.to_owned(),
        tunnel_protocol: role.tunnel_protocol,
        trust_domain: role.trust_domain.to_owned(),
        service_account: role.service_account.to_owned(),
        waypoint: role.waypoint,
        network_gateway: role.network_gateway,
        node: site.node.to_owned(),
        canonical_name: role.canonical_name.to_owned(),
        canonical_revision: role.canonical_revision.to_owned(),
        workload_type: role.workload_type,
        workload_name: role.workload_name.to_owned(),
        native_tunnel: role.native_tunnel,
        application_tunnel: role.application_tunnel,
        services: services.collect(),
        authorization_policies: policies.map(|it| (*it).to_owned()).collect(),
        status: split.status,
        cluster_id: site.cluster_id.to_owned(),
        locality: Some(wire::Locality {
            region,
            zone,
            subzone,
        }),
        network_mode: role.network_mode,
        capacity: split.capacity,
    })
}

/// None if it is refused.
fn by_us(bytes: &[u8]) -> Option<wire::Workload> {
    let mut split = Split::new(&mut Interner::default());
    split.merge(bytes).ok()?;
    split.join_services().ok()?;
    let (role, site) = (Sent::of(&split.role).ok()?, Sent::of(&split.site).ok()?);
    owned(&split, role, &site)
}

/// Whether an entry of the map is said to be of a type that no entry has. Prost does not look at the type of maps, and
/// reads what follows as an entry, whatever it is.
fn mistakes_the_type_of_services(mut rest: &[u8]) -> bool {
    while let Ok((number, wire_type)) = decode_key(&mut rest) {
        if number == SERVICES && wire_type != WireType::LengthDelimited {
            return true;
        }
        if skip_field(wire_type, number, &mut rest, DecodeContext::default()).is_err() {
            break;
        }
    }
    false
}

fn by_prost(bytes: &[u8]) -> Option<wire::Workload> {
    if mistakes_the_type_of_services(bytes) {
        return None;
    }
    let mut workload = wire::Workload::decode(bytes).ok()?;
    // Where nothing and empty mean the same, and ports are cut off.
    workload.locality.get_or_insert_default();
    for list in workload.services.values_mut() {
        for port in &mut list.ports {
            (port.service_port, port.target_port) = (port.service_port & 0xffff, port.target_port & 0xffff);
        }
    }
    Some(workload)
}

#[test]
fn every_field_is_read_and_a_message_cut_anywhere_is_read_as_prost_reads_it() {
    let bytes = full().encode_to_vec();
    assert!(by_us(&bytes).is_some());
    for length in 0..=bytes.len() {
        assert_eq!(
            by_us(&bytes[..length]),
            by_prost(&bytes[..length]),
            "{length} bytes"
        );
    }
    // Twice: what may come once is replaced, what repeats is added to.
    let twice = bytes.repeat(2);
    assert_eq!(by_us(&twice), by_prost(&twice));
}

#[test]
fn of_a_service_named_twice_the_last_ports_count_and_services_are_in_order() {
    let mut interner = Interner::default();
    let list = services(
        vec![("b/b", vec![(1, 1)]), ("a/a", vec![]), ("b/b", vec![(2, 2)])],
        &mut interner,
    );
    let list: BTreeMap<String, PortMap> = list
        .expect("well formed")
        .into_iter()
        .map(|(name, ports)| (name.to_string(), ports))
        .collect();
    assert!(list.keys().eq(["a/a", "b/b"]));
    assert_eq!(list["b/b"], [(2, 2)].into_iter().collect());
}

#[test]
fn replicas_share_their_role_whatever_the_order_of_services_and_unknown_fields() {
    let mut interner = Interner::default();
    let mut decode = |bytes: &[u8]| {
        let mut split = Split::new(&mut interner);
        split.merge(bytes).expect("well formed");
        split.into_workload(&mut interner).expect("a workload")
    };
    let services = |names: [&str; 2]| {
        let entries = names.map(|name| wire::Workload {
            services: [(name.to_owned(), wire::PortList::default())].into(),
            ..Default::default()
        });
        entries.map(|it| it.encode_to_vec()).concat()
    };
    let replica = |uid: &str, node: &str, names| {
        let own = wire::Workload {
            uid: uid.to_owned(),
            name: uid.to_owned(),
            addresses: vec![vec![10, 0, 0, uid.len() as u8]],
            node: node.to_owned(),
            namespace: "shop".to_owned(),
            status: 1,
            capacity: Some(3),
            ..Default::default()
        };
        [own.encode_to_vec(), services(names)].concat()
    };
    let one = decode(&replica("a", "n1", ["s/a", "s/b"]));
    let mut bytes = replica("ab", "n1", ["s/b", "s/a"]);
    // Field 15, which nobody knows.
    bytes.extend([0x7a, 0x01, 0x05]);
    let other = decode(&bytes);
    assert!(std::sync::Arc::ptr_eq(&one.role, &other.role));
    assert!(std::sync::Arc::ptr_eq(&one.site, &other.site));
    assert_eq!((&*one.uid, &*other.uid), ("a", "ab"));
    assert_eq!(one.services.len(), 2);
    let elsewhere = decode(&replica("c", "n2", ["s/a", "s/c"]));
    assert_ne!(one.role, elsewhere.role);
    assert_eq!((&*one.site.node, &*elsewhere.site.node), ("n1", "n2"));
}

#[test]
fn with_any_byte_exchanged_it_is_read_as_prost_reads_it() {
    let whole = full().encode_to_vec();
    for at in 0..whole.len() {
        for byte in 0..=u8::MAX {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            assert_eq!(by_us(&bytes), by_prost(&bytes), "{byte} at {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn bytes_at_random_are_read_as_prost_reads_them(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..3), 0..4),
    ) {
        let mut bytes = full().encode_to_vec();
        for (at, byte, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        prop_assert_eq!(by_us(&bytes), by_prost(&bytes));
    }
}
