//! Lookups.

use super::fixture::*;
use super::*;

fn name(service: Option<&Arc<Service>>) -> Option<&str> {
    service.map(|it| &*it.name)
}

fn in_namespace(namespace: &str, name: &str, vip: &str) -> Service {
    Service {
        vips: vec![NetworkAddress::new("net1", ip(vip))],
        ..Service::new(name, namespace, "api.example")
    }
}

#[test]
fn own_workloads_are_those_of_this_node() {
    let elsewhere = pod("remote", "10.0.0.3").on_node("node-b");
    let snapshot = mesh(vec![pod("local", "10.0.0.2"), elsewhere], vec![], vec![]);
    assert!(snapshot.own_workload("local", "shop", "local").is_some());
    assert!(snapshot.own_workload("local", "shop", "other").is_none());
    assert!(snapshot.own_workload("local", "other", "local").is_none());
    assert!(snapshot.own_workload("remote", "shop", "remote").is_none());
    let mut everywhere = Builder::new(Locale {
        node: None,
        ..locale()
    });
    everywhere.insert_workload(pod("remote", "10.0.0.3").on_node("node-b"));
    assert!(
        everywhere
            .build()
            .own_workload("remote", "shop", "remote")
            .is_some()
    );
}

#[test]
fn an_address_of_several_workloads_is_the_pods_then_the_tunnels_then_the_latest() {
    let of = |uid: &str, protocol| {
        with(pod("w", "10.0.0.2"), |it| {
            it.uid = uid.into();
            it.protocol = protocol;
        })
    };
    let entry = || of("c1/entry", TunnelProtocol::Tcp);
    let tunnelled = || of("c1/tunnelled", TunnelProtocol::Hbone);
    let plain_pod = || of("c1//Pod/shop/plain", TunnelProtocol::Tcp);
    let hbone_pod = || of("c1//Pod/shop/hbone", TunnelProtocol::Hbone);
    let later = || of("c1//Pod/shop/later", TunnelProtocol::Hbone);
    for (workloads, winner) in [
        (vec![tunnelled(), entry()], "c1/tunnelled"),
        (vec![plain_pod(), tunnelled()], "c1//Pod/shop/plain"),
        (vec![hbone_pod(), plain_pod()], "c1//Pod/shop/hbone"),
        (vec![later(), hbone_pod()], "c1//Pod/shop/hbone"),
        (vec![hbone_pod(), later()], "c1//Pod/shop/later"),
    ] {
        let snapshot = mesh(workloads, vec![], vec![]);
        let found = snapshot
            .workload_by_address("net1", ip("::ffff:10.0.0.2"))
            .expect("found");
        assert_eq!(&*found.uid, winner);
    }
}

#[test]
fn addresses_belong_to_their_network() {
    let snapshot = mesh(
        vec![pod("w", "10.0.0.2")],
        vec![service("web", "10.96.0.1")],
        vec![],
    );
    assert!(snapshot.workload_by_address("net2", ip("10.0.0.2")).is_none());
    assert!(snapshot.workload_by_address("", ip("10.0.0.2")).is_none());
    assert!(
        snapshot
            .service_by_address("net2", ip("10.96.0.1"), None)
            .is_none()
    );
}

#[test]
fn an_address_is_taken_over_when_somebody_has_it_and_its_workload_has_not() {
    let at = ip("10.0.0.2");
    let [old, new] = ["old", "new"].map(|name| pod(name, "10.0.0.2"));
    let [old_uid, new_uid] = [&old, &new].map(|workload| workload.uid.clone());
    let goes = |builder: &mut Builder| builder.remove(&pod("old", "10.0.0.2").uid);
    let moves = |builder: &mut Builder| builder.insert_workload(pod("old", "10.0.0.4"));
    for ends in [&goes as &dyn Fn(&mut Builder), &moves] {
        let mut builder = Builder::new(locale());
        builder.insert_workload(old.clone());
        let alone = builder.build();
        assert!(!alone.is_taken_over(at, &old_uid));
        assert!(!alone.is_taken_over(ip("10.0.0.3"), &old_uid), "nobody has it");
        builder.insert_workload(new.clone());
        let shared = builder.build();
        assert!(!shared.is_taken_over(at, &old_uid) && !shared.is_taken_over(at, &new_uid));
        ends(&mut builder);
        let over = builder.build();
        assert!(over.is_taken_over(at, &old_uid) && !over.is_taken_over(at, &new_uid));
        assert!(over.addresses_revision() > shared.addresses_revision());
    }
    // Whose name leads there has nothing that could be taken, whoever has the address.
    let mut named = pod("named", "10.0.0.9");
    named.addresses = [].into();
    named.hostname = "old.shop".into();
    let uid = named.uid.clone();
    let mut builder = Builder::new(locale());
    builder.insert_workload(old);
    builder.insert_workload(named.clone());
    assert!(!builder.build().is_taken_over(at, &uid));
    // One that lost its addresses and never had a name is another matter.
    named.hostname = "".into();
    builder.insert_workload(named);
    assert!(builder.build().is_taken_over(at, &uid));
}

#[test]
fn namesakes_are_preferred_by_namespace_then_canonical_then_first() {
    let services = |canonical: bool| {
        vec![
            in_namespace("a", "first", "10.96.0.1"),
            in_namespace("b", "second", "10.96.0.1"),
            Service {
                canonical,
                ..in_namespace("c", "third", "10.96.0.1")
            },
        ]
    };
    for (canonical, namespace, expected) in [
        (false, None, "first"),
        (false, Some("b"), "second"),
        (false, Some("z"), "first"),
        (true, Some("z"), "third"),
        (true, None, "third"),
        (true, Some("a"), "first"),
    ] {
        let snapshot = mesh(vec![], services(canonical), vec![]);
        let by_address = snapshot.service_by_address("net1", ip("10.96.0.1"), namespace);
        assert_eq!(name(by_address), Some(expected), "{canonical} {namespace:?}");
        let by_name = snapshot.service_by_hostname("api.example", namespace);
        assert_eq!(name(by_name), Some(expected), "{canonical} {namespace:?}");
    }
}

#[test]
fn services_whose_names_differ_in_case_are_two_and_go_one_by_one() {
    let spelled = |name: &str, hostname: &str| Service::new(name, "a", hostname);
    let [upper, lower] = [spelled("upper", "API.example"), spelled("lower", "api.example")];
    let mut builder = Builder::new(locale());
    for service in [&upper, &lower] {
        builder.insert_service(service.clone());
    }
    fn by_key<'a>(snapshot: &'a Snapshot, hostname: &str) -> Option<&'a str> {
        name(snapshot.service("a", hostname))
    }
    let both = builder.build();
    assert_eq!(by_key(&both, "API.example"), Some("upper"));
    assert_eq!(by_key(&both, "api.example"), Some("lower"));
    assert_eq!(by_key(&both, "Api.example"), None, "keys are spelled as they are");
    assert!(builder.remove_service(&upper.key()));
    let one = builder.build();
    assert_eq!(by_key(&one, "API.example"), None);
    assert_eq!(name(one.service_by_hostname("API.example", None)), Some("lower"));
    assert!(builder.remove_service(&lower.key()));
    assert_eq!(
        name(builder.build().service_by_hostname("api.example", None)),
        None
    );
}

#[test]
fn services_of_a_namespace_are_hidden_from_others_but_not_from_nobody() {
    let hidden = Service {
        visibility: Visibility::Namespace,
        ..in_namespace("a", "hidden", "10.96.0.1")
    };
    let snapshot = mesh(vec![], vec![hidden], vec![]);
    for (namespace, visible) in [(Some("a"), true), (Some("b"), false), (None, true)] {
        let found = snapshot.service_by_address("net1", ip("10.96.0.1"), namespace);
        assert_eq!(found.is_some(), visible, "{namespace:?}");
        assert_eq!(
            snapshot.service_by_hostname("api.example", namespace).is_some(),
            visible
        );
    }
    assert!(snapshot.service("a", "api.example").is_some());
}

#[test]
fn ranges_are_matched_by_namespace_then_length_then_canonical() {
    let ranged = |namespace: &str, name: &str, cidr: &str, canonical| Service {
        cidr_vips: vec![CidrVip {
            network: "net1".into(),
            cidr: cidr.parse().expect("a range"),
        }],
        canonical,
        ..Service::new(name, namespace, &format!("{name}.example"))
    };
    let services = vec![
        ranged("a", "wide", "240.0.0.0/8", false),
        // Host bits may be set.
        ranged("b", "narrow", "240.240.7.7/16", false),
        ranged("c", "canonical", "240.240.0.0/16", true),
        ranged("d", "six", "fd00::/8", false),
        service("exact", "240.240.0.1"),
    ];
    let snapshot = mesh(vec![], services, vec![]);
    let find = |address, namespace| name(snapshot.service_by_address("net1", ip(address), namespace));
    assert_eq!(find("240.1.0.1", None), Some("wide"));
    assert_eq!(find("240.240.9.9", None), Some("canonical"));
    assert_eq!(find("240.240.9.9", Some("b")), Some("narrow"));
    assert_eq!(find("240.240.9.9", Some("a")), Some("wide"));
    assert_eq!(find("240.240.0.1", Some("a")), Some("exact"));
    assert_eq!(find("fd12::1", None), Some("six"));
    assert_eq!(find("10.0.0.1", None), None);
    assert_eq!(
        name(snapshot.service_by_address("net2", ip("240.1.0.1"), None)),
        None
    );
}

#[test]
fn an_invisible_exact_address_gives_way_to_a_range() {
    let cidr = "10.96.0.0/16".parse().expect("a range");
    let range = Service {
        cidr_vips: vec![CidrVip {
            network: "net1".into(),
            cidr,
        }],
        ..Service::new("range", "b", "range.example")
    };
    let hidden = Service {
        visibility: Visibility::Namespace,
        ..in_namespace("a", "hidden", "10.96.0.1")
    };
    let snapshot = mesh(vec![], vec![range, hidden], vec![]);
    assert_eq!(
        name(snapshot.service_by_address("net1", ip("10.96.0.1"), Some("a"))),
        Some("hidden")
    );
    assert_eq!(
        name(snapshot.service_by_address("net1", ip("10.96.0.1"), Some("b"))),
        Some("range")
    );
}

#[test]
fn a_mesh_that_knows_nothing_answers_nothing() {
    let snapshot = Snapshot::empty(locale());
    assert!(snapshot.own_workload("a", "b", "c").is_none());
    assert!(snapshot.workload_by_address("net1", ip("10.0.0.1")).is_none());
    assert!(
        snapshot
            .service_by_address("net1", ip("10.0.0.1"), None)
            .is_none()
    );
}
