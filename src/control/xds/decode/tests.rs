//! What decodes to what, and what is refused with which words.

use prost::Message;

use super::super::messages::{discovery, security, workload as wire};
use super::*;
use crate::mesh::{Builder, LocalState, Locale, Locality, Policy, Snapshot, StringMatch};

fn captured() -> Vec<discovery::Resource> {
    let address = include_bytes!("../../../../tests/data/xds-address.binpb");
    let response = discovery::DeltaDiscoveryResponse::decode(&address[..]).expect("a response");
    assert_eq!(response.type_url, "type.googleapis.com/istio.workload.Address");
    response.resources
}

fn captured_policies() -> Vec<discovery::Resource> {
    let policies = include_bytes!("../../../../tests/data/xds-authorization.binpb");
    let response = discovery::DeltaDiscoveryResponse::decode(&policies[..]).expect("a response");
    assert_eq!(
        response.type_url,
        "type.googleapis.com/istio.security.Authorization"
    );
    response.resources
}

fn insert(builder: &mut Builder, resource: &discovery::Resource) {
    let value = &resource.resource.as_ref().expect("a payload").value;
    match address(value, &mut Interner::default()) {
        Ok(Address::Workload(workload)) => {
            assert_eq!(*workload.uid, *resource.name);
            builder.insert_workload(workload);
        }
        Ok(Address::Service(service)) => {
            assert_eq!(service.key().to_string(), resource.name);
            builder.insert_service(*service);
        }
        Err(error) => panic!("{}: {error}", resource.name),
    }
}

fn insert_policy(builder: &mut Builder, resource: &discovery::Resource) {
    let value = &resource.resource.as_ref().expect("a payload").value;
    let policy = policy(&resource.name, value).expect("a policy");
    assert_eq!(*policy.key, format!("{}/{}", policy.namespace, policy.name));
    builder.insert_policy(policy);
}

/// Everything of a snapshot that has an order.
fn listing(snapshot: &Snapshot) -> (Vec<Workload>, Vec<String>, Vec<Policy>) {
    let mut workloads: Vec<Workload> = snapshot.workloads().map(|it| Workload::clone(it)).collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let service = |it: &std::sync::Arc<Service>| {
        let mut endpoints: Vec<String> = snapshot.endpoints(it).map(|it| format!("{it:?}")).collect();
        endpoints.sort();
        format!(
            "{} {} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {endpoints:?}",
            it.key(),
            it.name,
            it.vips,
            it.cidr_vips,
            it.ports,
            it.subject_alt_names,
            it.waypoint,
            it.weighted_waypoints,
            it.load_balancer,
            it.ip_families,
            it.canonical,
            it.visibility,
        )
    };
    let mut services: Vec<String> = snapshot.services().map(service).collect();
    services.sort();
    let mut policies: Vec<Policy> = snapshot.policies().map(|it| Policy::clone(it)).collect();
    policies.sort_by(|a, b| a.key.cmp(&b.key));
    (workloads, services, policies)
}

#[test]
fn the_captured_responses_give_the_same_mesh_in_whatever_order() {
    let mut forth = Builder::new(Locale::default());
    captured().iter().for_each(|it| insert(&mut forth, it));
    captured_policies()
        .iter()
        .for_each(|it| insert_policy(&mut forth, it));
    let mut back = Builder::new(Locale::default());
    captured_policies()
        .iter()
        .rev()
        .for_each(|it| insert_policy(&mut back, it));
    captured().iter().rev().for_each(|it| insert(&mut back, it));
    let (forth, back) = (listing(&forth.build()), listing(&back.build()));
    assert_eq!(forth, back);
    let (workloads, services, policies) = forth;
    assert_eq!(workloads.len() + services.len(), captured().len());
    assert_eq!(policies.len(), captured_policies().len());
}

/// The admin dump that ztunnel made of these responses has the shapes of a local file, but that its workloads only
/// name their services: the ports are with the endpoints.
fn dumped() -> Snapshot {
    let text = include_str!("../../../../tests/data/config_dump-node1.json");
    let mut dump: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let shown = dump.as_object_mut().expect("an object");
    shown.retain(|key, _| ["workloads", "services", "policies"].contains(&key.as_str()));
    let services = dump["services"].as_array().expect("services").clone();
    for workload in dump["workloads"].as_array_mut().expect("workloads") {
        let uid = workload["uid"].as_str().expect("a uid").to_owned();
        let names = workload["services"].as_array().cloned().unwrap_or_default();
        let ports = names.iter().map(|name| {
            let name = name.as_str().expect("a name");
            let service = services.iter().find(|it| {
                let key = format!(
                    "{}/{}",
                    it["namespace"].as_str().expect("a namespace"),
                    it["hostname"].as_str().expect("a host name")
                );
                key == name
            });
            let endpoint = &service.expect("the service")["endpoints"][&uid];
            (name.to_owned(), endpoint["port"].clone())
        });
        workload["services"] = ports.collect::<serde_json::Map<_, _>>().into();
    }
    let mut builder = Builder::new(Locale::default());
    builder.load(LocalState::parse(&dump.to_string()).expect("a mesh"));
    builder.build()
}

#[test]
fn the_captured_responses_give_the_captured_dump() {
    let mut builder = Builder::new(Locale::default());
    captured().iter().for_each(|it| insert(&mut builder, it));
    captured_policies()
        .iter()
        .for_each(|it| insert_policy(&mut builder, it));
    let (ours, theirs) = (listing(&builder.build()), listing(&dumped()));
    assert_eq!(ours.0, theirs.0);
    assert_eq!(ours.1, theirs.1);
    assert_eq!(ours.2, theirs.2);
}

#[test]
fn a_captured_workload_has_every_field() {
    let mut builder = Builder::new(Locale::default());
    captured().iter().for_each(|it| insert(&mut builder, it));
    let snapshot = builder.build();
    let cart = snapshot
        .workload("Kubernetes//Pod/shop/cart-7f-a")
        .expect("the pod");
    assert_eq!(
        cart.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert_eq!(
        *cart.addresses,
        ["198.18.24.2".parse::<IpAddr>().expect("an address")]
    );
    assert_eq!(cart.protocol, TunnelProtocol::Hbone);
    assert_eq!((&*cart.site.node, &*cart.workload_type), ("node2", "pod"));
    assert_eq!(
        (
            &*cart.canonical_name,
            &*cart.canonical_revision,
            &*cart.workload_name
        ),
        ("cart", "v7", "cart")
    );
    assert_eq!(
        (&*cart.site.locality.region, &*cart.site.locality.zone),
        ("r1", "z1")
    );
    assert_eq!((cart.capacity, &*cart.site.cluster_id), (1, "Kubernetes"));
    let policies: Vec<&str> = cart.authorization_policies.iter().map(|it| &**it).collect();
    assert_eq!(policies, ["shop/accounts", "shop/no-admin"]);
    let (key, ports) = cart.services.last().expect("a service");
    assert_eq!(key.to_string(), "shop/cart.shop.svc.cluster.local");
    assert_eq!((ports.get(80), ports.get(7000)), (Some(8080), Some(7000)));
    let service = snapshot
        .service("shop", "cart.shop.svc.cluster.local")
        .expect("the service");
    let mut endpoints = snapshot.endpoints(service);
    assert!(endpoints.any(|it| *it.workload_uid == *"Kubernetes//Pod/shop/cart-7f-a"));
}

#[test]
fn a_captured_policy_has_every_match() {
    let resources = captured_policies();
    let viewers = resources
        .iter()
        .find(|it| it.name == "bank/viewers")
        .expect("the policy");
    let viewers = policy(&viewers.name, &viewers.resource.as_ref().expect("bytes").value).expect("a policy");
    assert_eq!(viewers.rules.len(), 2);
    assert_eq!(viewers.rules[0].clauses[0].matches[0].destination_ports, [6000]);
    let who = &viewers.rules[0].clauses[1].matches[0];
    assert_eq!(who.not_namespaces, [StringMatch::Exact("old".into())]);
    assert_eq!(
        who.principals,
        [
            StringMatch::Exact("cluster.local/ns/shop/sa/web".into()),
            StringMatch::Suffix("/sa/cart".into())
        ]
    );
    let from = &viewers.rules[1].clauses[0].matches[0];
    assert_eq!(from.source_ips, ["198.18.16.0/24".parse().expect("a range")]);
    assert_eq!(from.not_source_ips, ["198.18.16.9/32".parse().expect("a range")]);
}

fn refusal(bytes: &[u8]) -> String {
    address(bytes, &mut Interner::default())
        .expect_err("refused")
        .to_string()
}

fn of_workload(change: impl FnOnce(&mut wire::Workload)) -> Vec<u8> {
    let mut workload = wire::Workload {
        uid: "c//Pod/ns/a".to_owned(),
        ..Default::default()
    };
    change(&mut workload);
    let r#type = Some(wire::address::Type::Workload(workload));
    wire::Address { r#type }.encode_to_vec()
}

fn of_service(change: impl FnOnce(&mut wire::Service)) -> Vec<u8> {
    let mut service = wire::Service::default();
    change(&mut service);
    let r#type = Some(wire::address::Type::Service(service));
    wire::Address { r#type }.encode_to_vec()
}

fn workload(change: impl FnOnce(&mut wire::Workload)) -> Workload {
    match address(&of_workload(change), &mut Interner::default()) {
        Ok(Address::Workload(workload)) => Arc::unwrap_or_clone(workload),
        other => panic!("no workload: {other:?}"),
    }
}

fn service(change: impl FnOnce(&mut wire::Service)) -> Service {
    match address(&of_service(change), &mut Interner::default()) {
        Ok(Address::Service(service)) => *service,
        other => panic!("no service: {other:?}"),
    }
}

fn nowhere() -> Option<wire::GatewayAddress> {
    Some(wire::GatewayAddress {
        destination: None,
        hbone_mtls_port: 15008,
    })
}

fn vip(bytes: &[u8], length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: "n".to_owned(),
        address: bytes.to_vec(),
        length,
    }
}

#[test]
fn every_invalid_field_of_a_workload_is_refused_by_its_name() {
    let missing = "nonempty gateway address is missing address";
    let cases: [(Vec<u8>, String); 12] = [
        (
            of_workload(|it| it.addresses = vec![vec![1, 2, 3, 4], vec![0; 5]]),
            "addresses[1]: failed to parse address, had 5 bytes".to_owned(),
        ),
        (
            of_workload(|it| it.addresses = vec![vec![]]),
            "addresses[0]: failed to parse address, had 0 bytes".to_owned(),
        ),
        (
            of_workload(|it| it.tunnel_protocol = 2),
            "tunnel_protocol: unknown enum: unsupported tunnel protocol: legacy istio mtls".to_owned(),
        ),
        (
            of_workload(|it| it.tunnel_protocol = 9),
            "tunnel_protocol: unknown enum: 9".to_owned(),
        ),
        (
            of_workload(|it| it.network_mode = -1),
            "network_mode: unknown enum: -1".to_owned(),
        ),
        (
            of_workload(|it| it.status = 2),
            "status: unknown enum: 2".to_owned(),
        ),
        (
            of_workload(|it| it.waypoint = nowhere()),
            format!("waypoint: {missing}"),
        ),
        (
            of_workload(|it| it.network_gateway = nowhere()),
            format!("network_gateway: {missing}"),
        ),
        (
            of_workload(|it| {
                let destination = wire::gateway_address::Destination::Address(vip(&[1], None));
                it.waypoint = Some(wire::GatewayAddress {
                    destination: Some(destination),
                    hbone_mtls_port: 1,
                });
            }),
            "waypoint: failed to parse address, had 1 bytes".to_owned(),
        ),
        (
            of_workload(|it| {
                it.services.insert("nohost".to_owned(), wire::PortList::default());
            }),
            "services: failed to parse namespaced hostname: nohost".to_owned(),
        ),
        (
            of_workload(|it| {
                it.application_tunnel = Some(wire::ApplicationTunnel { protocol: 7, port: 1 });
            }),
            "application_tunnel.protocol: unknown enum: 7".to_owned(),
        ),
        (
            wire::Address { r#type: None }.encode_to_vec(),
            "unknown address type".to_owned(),
        ),
    ];
    for (bytes, text) in cases {
        assert_eq!(refusal(&bytes), text);
    }
    // Field 15 of Address, which is none of the known ones.
    assert_eq!(refusal(&[0x7a, 0x00]), "unknown address type");
    let cut = of_workload(|it| it.name = "long enough to be cut".to_owned());
    assert!(refusal(&cut[..cut.len() - 1]).starts_with("cannot be decoded: "));
    // A string that is no UTF-8.
    assert!(refusal(&[0x0a, 0x03, 0x0a, 0x01, 0xff]).starts_with("cannot be decoded: "));
}

#[test]
fn every_invalid_field_of_a_service_is_refused_by_its_name() {
    let balance = |preferences: Vec<i32>, mode, health_policy| {
        of_service(|it| {
            it.load_balancing = Some(wire::LoadBalancing {
                routing_preference: preferences,
                mode,
                health_policy,
            });
        })
    };
    let missing = "nonempty gateway address is missing address";
    let cases = [
        (
            of_service(|it| it.ip_families = 4),
            "ip_families: unknown enum: 4".to_owned(),
        ),
        (
            balance(vec![1, 0], 0, 0),
            "load_balancing.routing_preference[1]: unknown enum: invalid target".to_owned(),
        ),
        (
            balance(vec![7], 0, 0),
            "load_balancing.routing_preference[0]: unknown enum: 7".to_owned(),
        ),
        (
            balance(vec![], 4, 0),
            "load_balancing.mode: unknown enum: 4".to_owned(),
        ),
        (
            balance(vec![], 0, 2),
            "load_balancing.health_policy: unknown enum: 2".to_owned(),
        ),
        (
            of_service(|it| it.waypoint = nowhere()),
            format!("waypoint: {missing}"),
        ),
        (
            of_service(|it| it.weighted_waypoints = vec![wire::WeightedWaypoint::default()]),
            format!("weighted_waypoints[0].destination: {missing}"),
        ),
        (
            of_service(|it| it.addresses = vec![vip(&[10, 0, 0, 0], Some(33))]),
            "addresses[0]: invalid cidr: 10.0.0.0/33".to_owned(),
        ),
        (
            of_service(|it| it.addresses = vec![vip(&[10, 0, 0], None)]),
            "addresses[0]: failed to parse address, had 3 bytes".to_owned(),
        ),
    ];
    for (bytes, text) in cases {
        assert_eq!(refusal(&bytes), text);
    }
}

#[test]
fn what_a_workload_leaves_out_has_a_default() {
    let plain = workload(|_| {});
    assert_eq!(
        plain.identity.to_string(),
        "spiffe://cluster.local/ns//sa/default"
    );
    assert_eq!((plain.capacity, &*plain.site.cluster_id), (1, "Kubernetes"));
    assert_eq!(&*plain.workload_type, "deployment");
    assert_eq!(plain.site.locality, Locality::default());
    assert_eq!(plain.application_tunnel, None);
    let explicit = workload(|it| {
        it.capacity = Some(0);
        it.workload_type = 99;
        it.application_tunnel = Some(wire::ApplicationTunnel { protocol: 1, port: 0 });
        it.addresses = vec![[&[0; 10][..], &[0xff, 0xff, 10, 0, 0, 1][..]].concat()];
        it.services
            .insert("/empty.namespace".to_owned(), wire::PortList::default());
    });
    assert_eq!(explicit.capacity, 0);
    assert_eq!(
        &*explicit.workload_type, "deployment",
        "telemetry is no reason to refuse"
    );
    assert_eq!(
        explicit.application_tunnel,
        Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port: None
        })
    );
    assert_eq!(
        *explicit.addresses,
        ["10.0.0.1".parse::<IpAddr>().expect("an address")]
    );
    assert_eq!(
        explicit.services[0].0,
        NamespacedHostname::new("", "empty.namespace")
    );
}

#[test]
fn addresses_of_a_service_are_exact_or_ranges_by_their_length() {
    let mapped = [&[0; 10][..], &[0xff, 0xff, 10, 1, 0, 0][..]].concat();
    let service = service(|it| {
        it.addresses = vec![
            vip(&[10, 0, 0, 1], None),
            vip(&[10, 0, 0, 2], Some(32)),
            vip(&[0xfd; 16], Some(128)),
            vip(&[10, 0, 0, 9], Some(24)),
            vip(&[10, 0, 0, 9], Some(0)),
            vip(&mapped, Some(112)),
            // 256 + 16: cut off to eight bits.
            vip(&[10, 0, 0, 9], Some(272)),
        ];
        it.visibility = 5;
        it.ports = vec![
            wire::Port {
                service_port: 80,
                target_port: 1,
            },
            wire::Port {
                service_port: 65536 + 80,
                target_port: 65536 + 2,
            },
        ];
    });
    let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
    assert_eq!(
        vips,
        [
            "n/10.0.0.1",
            "n/10.0.0.2",
            "n/fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"
        ]
    );
    let ranges: Vec<String> = service.cidr_vips.iter().map(|it| it.cidr.to_string()).collect();
    assert_eq!(
        ranges,
        ["10.0.0.9/24", "10.0.0.9/0", "10.1.0.0/16", "10.0.0.9/16"]
    );
    assert_eq!(
        service.visibility,
        Visibility::Public,
        "an unknown restriction restricts nobody"
    );
    assert_eq!(
        service.ports.get(80),
        Some(2),
        "ports are cut off, and the last one wins"
    );
}

#[test]
fn an_unknown_scope_or_action_refuses_a_policy_and_an_unknown_match_is_left_out() {
    let of = |change: &dyn Fn(&mut security::Authorization)| {
        let mut authorization = security::Authorization::default();
        change(&mut authorization);
        policy("ns/p", &authorization.encode_to_vec())
    };
    let text = |result: Result<Policy, DecodeError>| result.expect_err("refused").to_string();
    assert_eq!(text(of(&|it| it.scope = 3)), "scope: unknown enum: 3");
    assert_eq!(text(of(&|it| it.action = 2)), "action: unknown enum: 2");
    assert!(text(policy("ns/p", &[0xff])).starts_with("cannot be decoded: "));
    let left = of(&|it| {
        let matches = vec![security::Match {
            principals: vec![security::StringMatch { match_type: None }],
            source_ips: vec![
                security::Address {
                    address: vec![1, 2, 3],
                    length: 24,
                },
                security::Address {
                    address: vec![1, 2, 3, 4],
                    length: 33,
                },
            ],
            ..Default::default()
        }];
        let clauses = vec![security::Clause { matches }];
        it.rules = vec![security::Rule { clauses }];
    })
    .expect("a policy");
    assert!(left.rules[0].clauses[0].matches[0].is_empty());
    assert_eq!(&*left.key, "ns/p", "the key is the name of the resource");
}

#[test]
fn calls_in_the_captured_mesh_go_where_the_contract_says() {
    use crate::mesh::{Decision, Way};
    let mut builder = Builder::new(Locale::default());
    captured().iter().for_each(|it| insert(&mut builder, it));
    let snapshot = builder.build();
    let route = |target: &str| {
        let source = snapshot.own_workload("web-5c-a", "shop", "web").expect("there");
        let address = "198.18.16.2".parse().expect("an address");
        // The last of several endpoints, as far as there is a choice.
        snapshot.route(source, address, target.parse().expect("a target"), &mut || 1)
    };
    // Target; next hop, what is asked for there (nothing: plain).
    for (target, next_hop, authority) in [
        // Services: any endpoint, the one of this node, the nearest.
        ("198.18.151.1:80", "198.18.15.2:15008", Some("198.18.15.2:8080")),
        ("198.18.151.3:7000", "198.18.15.2:15008", Some("198.18.15.2:7000")),
        ("198.18.151.2:7000", "198.18.15.2:15008", Some("198.18.15.2:7000")),
        ("198.18.151.5:6000", "198.18.25.2:15008", Some("198.18.25.2:6000")),
        // A pod of the mesh, one that is not enrolled, a machine, a stranger.
        ("198.18.24.2:7000", "198.18.24.2:15008", Some("198.18.24.2:7000")),
        ("198.18.17.2:80", "198.18.17.2:80", None),
        ("198.18.153.4:22", "198.18.153.4:22", None),
        ("198.18.154.1:443", "198.18.154.1:443", None),
    ] {
        let Ok(Decision::Go(plan)) = route(target) else {
            panic!("{target} is not reached");
        };
        assert_eq!(plan.way.next_hop().to_string(), next_hop, "{target}");
        match (plan.way, authority) {
            (Way::Tcp { .. }, None) => {}
            (Way::Hbone(hop), Some(authority)) => {
                assert_eq!(hop.authority.to_string(), authority, "{target}")
            }
            (way, _) => panic!("{target}: {way:?}"),
        }
    }
    // Behind the partner's address there is only a name.
    let Ok(Decision::Resolve(unresolved)) = route("240.240.0.1:443") else {
        panic!("not to be resolved");
    };
    assert_eq!(&*unresolved.hostname, "backend.partner.example");
    let plan = unresolved.with_address("198.18.154.2".parse().expect("an address"));
    assert_eq!(plan.way.next_hop().to_string(), "198.18.154.2:8443");
    // A waypoint without a pod, and a port that nobody has.
    for (target, error) in [
        ("198.18.151.4:7000", "unknown waypoint: 198.18.151.7:15008"),
        ("198.18.151.1:81", "no healthy upstream: 198.18.151.1:81"),
    ] {
        assert_eq!(route(target).expect_err("refused").to_string(), error);
    }
}
