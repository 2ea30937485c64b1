//! Beside what prost makes of the same bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;

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
fn owned(sent: Sent<'_>) -> Option<wire::Workload> {
    let services: Result<Vec<_>, _> = sent.services.iter().map(|bytes| service(bytes)).collect();
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
    let [region, zone, subzone] = sent.locality.map(str::to_owned);
    Some(wire::Workload {
        uid: sent.uid.to_owned(),
        name: sent.name.to_owned(),
        namespace: sent.namespace.to_owned(),
        addresses: sent.addresses.iter().map(|it| it.to_vec()).collect(),
        hostname: sent.hostname.to_owned(),
        network: sent.network.to_owned(),
        tunnel_protocol: sent.tunnel_protocol,
        trust_domain: sent.trust_domain.to_owned(),
        service_account: sent.service_account.to_owned(),
        waypoint: sent.waypoint,
        network_gateway: sent.network_gateway,
        node: sent.node.to_owned(),
        canonical_name: sent.canonical_name.to_owned(),
        canonical_revision: sent.canonical_revision.to_owned(),
        workload_type: sent.workload_type,
        workload_name: sent.workload_name.to_owned(),
        native_tunnel: sent.native_tunnel,
        application_tunnel: sent.application_tunnel,
        services: services.collect(),
        authorization_policies: sent
            .authorization_policies
            .iter()
            .map(|it| (*it).to_owned())
            .collect(),
        status: sent.status,
        cluster_id: sent.cluster_id.to_owned(),
        locality: Some(wire::Locality {
            region,
            zone,
            subzone,
        }),
        network_mode: sent.network_mode,
        capacity: sent.capacity,
    })
}

/// None if it is refused.
fn by_us(bytes: &[u8]) -> Option<wire::Workload> {
    let mut sent = Sent::default();
    sent.merge(bytes).ok()?;
    owned(sent)
}

fn by_prost(bytes: &[u8]) -> Option<wire::Workload> {
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
