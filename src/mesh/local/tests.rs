//! The file format: the documented example, the forms it allows, and what its errors say.

use super::*;
use crate::mesh::fixture::{ip, locale, socket};
use crate::mesh::{Builder, ConnectionFacts, Locale, StringMatch};

const EXAMPLE: &str = include_str!("../../../tests/data/mesh.yaml");

fn error(text: &str) -> String {
    LocalState::parse(text).expect_err("refused").to_string()
}

#[test]
fn the_documented_example_is_read_in_full() {
    let state = LocalState::parse(EXAMPLE).expect("valid");
    let [cart, wp] = &state.workloads[..] else {
        panic!("two workloads")
    };
    assert_eq!(
        cart.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert_eq!(*cart.addresses, [ip("10.1.0.5"), ip("fd00::5")]);
    assert_eq!(cart.protocol, TunnelProtocol::Hbone);
    assert_eq!(&*cart.site.locality.zone, "eu-1");
    assert_eq!(cart.capacity, 1);
    assert_eq!(
        cart.waypoint.as_ref().expect("set").to_string(),
        "shop/wp.shop.svc.cluster.local:15008"
    );
    assert_eq!(cart.services[0].1.get(443), Some(8443));
    let tunnel = wp.application_tunnel.expect("set");
    assert_eq!(
        (tunnel.protocol, tunnel.port),
        (ApplicationProtocol::Proxy, Some(15088))
    );
    let [policy] = &state.policies[..] else {
        panic!("one policy")
    };
    assert_eq!(&*policy.key, "shop/cart-callers");
    let [rule] = &policy.rules[..] else {
        panic!("one rule")
    };
    let principals = &rule.clauses[0].matches[0].principals;
    let expected = [
        StringMatch::Exact("cluster.local/ns/web/sa/frontend".into()),
        StringMatch::Prefix("cluster.local/ns/ops/".into()),
    ];
    assert_eq!(*principals, expected);
    assert_eq!(rule.clauses[1].matches[0].destination_ports, [8080, 8443]);
    let [cart_service, _] = &state.services[..] else {
        panic!("two services")
    };
    assert_eq!(cart_service.ip_families, IpFamilies::Dual);
    assert_eq!(cart_service.vips[0].to_string(), "net1/10.96.0.20");
    let balancer = cart_service.load_balancer.as_ref().expect("set");
    assert_eq!(
        balancer.routing_preferences,
        [Scope::Network, Scope::Region, Scope::Zone]
    );
    assert_eq!(balancer.mode, BalanceMode::Failover);
}

#[test]
fn the_example_authorizes() {
    let mut builder = Builder::new(Locale {
        node: Some("worker-a".into()),
        ..locale()
    });
    builder.load(LocalState::parse(EXAMPLE).expect("valid"));
    assert!(builder.take_warnings().is_empty());
    let snapshot = builder.build();
    assert_eq!(builder.staged_services(), 0);
    let cart = snapshot
        .own_workload("cart-0", "shop", "cart")
        .expect("local")
        .clone();
    let judge = |source, port, identity: &Identity| {
        let facts = ConnectionFacts {
            source: socket(source),
            destination: std::net::SocketAddr::new(ip("10.1.0.5"), port),
            identity: Some(identity),
        };
        snapshot.authorize(&cart, &facts).is_ok()
    };
    let frontend = Identity::new("cluster.local", "web", "frontend");
    assert!(judge("10.0.0.1:1", 8080, &frontend));
    assert!(!judge("10.66.0.1:1", 8080, &frontend));
    assert!(!judge("10.0.0.1:1", 9, &frontend));
    assert!(!judge(
        "10.0.0.1:1",
        8080,
        &Identity::new("cluster.local", "web", "backend")
    ));
    assert!(judge(
        "10.0.0.1:1",
        8080,
        &Identity::new("cluster.local", "ops", "anybody")
    ));
}

#[test]
fn an_empty_document_is_an_empty_mesh() {
    for text in [
        "",
        "\n",
        "workloads:\n",
        "workloads: []\nservices: []\n",
        "# nothing\n",
    ] {
        let state = LocalState::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert!(state.workloads.is_empty() && state.policies.is_empty() && state.services.is_empty());
    }
}

#[test]
fn json_is_yaml() {
    let text = r#"{"services":[{"name":"web","namespace":"a","hostname":"web.a",
        "vips":["/10.0.0.1"],"ports":{"80":8080},"endpoints":{"u1":{"workloadUid":"u1","port":{"80":1}}}}]}"#;
    let state = LocalState::parse(text).expect("valid");
    assert_eq!(state.services[0].ports.get(80), Some(8080));
    assert_eq!(state.services[0].endpoints["u1"].ports.get(80), Some(1));
}

fn policy_with(principals: &str) -> String {
    format!(
        "policies:\n- {{name: p, namespace: a, scope: Global, action: Deny, dryRun: false, \
         rules: [[[{{principals: [{principals}]}}]]]}}\n"
    )
}

#[test]
fn string_matches_are_tagged_values_or_maps() {
    let read = |text: &str| {
        let state = LocalState::parse(&policy_with(text)).unwrap_or_else(|error| panic!("{text}: {error}"));
        state.policies[0].rules[0].clauses[0].matches[0].principals[0].clone()
    };
    for (tagged, mapped, expected) in [
        ("!Exact a/b", "{Exact: a/b}", StringMatch::Exact("a/b".into())),
        ("!Prefix a/", "{Prefix: a/}", StringMatch::Prefix("a/".into())),
        ("!Suffix \"/b\"", "{Suffix: /b}", StringMatch::Suffix("/b".into())),
        ("!Presence []", "{Presence: []}", StringMatch::Presence),
    ] {
        assert_eq!(read(tagged), expected);
        assert_eq!(read(mapped), expected);
    }
}

#[test]
fn errors_name_the_resource_the_field_and_what_would_be_right() {
    let workload = |field: &str| {
        format!(
            "workloads:\n- {{uid: u1, namespace: a, workloadIps: [], services: {{}}}}\n\
             - {{uid: u2, namespace: a, workloadIps: [\"10.0.0.1\"], services: {{}}, {field}}}\n"
        )
    };
    let service = |field: &str| {
        format!("services:\n- {{name: s, namespace: a, hostname: s.a, vips: [], ports: {{}}, {field}}}\n")
    };
    for (text, parts) in [
        (
            workload("protocl: TCP"),
            &["workload \"u2\" (workloads[1])", "protocl", "protocol"][..],
        ),
        (
            workload("protocol: UDP"),
            &["workload \"u2\"", ".protocol", "UDP", "TCP", "HBONE"],
        ),
        (workload("capacity: -1"), &["workload \"u2\"", ".capacity"]),
        (
            workload("waypoint: {destination: wp, hboneMtlsPort: 1}"),
            &[
                "workload \"u2\"",
                ".waypoint.destination",
                "network/IP or namespace/hostname",
            ],
        ),
        (
            workload("locality: {region: r}"),
            &["workload \"u2\"", ".locality", "zone"],
        ),
        (
            workload("applicationTunnel: {protocol: NONE, prt: 1}"),
            &["workload \"u2\"", "prt", "port"],
        ),
        (
            service("vips: []"),
            &["service \"a/s.a\" (services[0])", "duplicate", "vips"],
        ),
        (
            "services:\n- {name: s, namespace: a, hostname: s.a, vips: [10.0.0.1], ports: {}}\n".to_owned(),
            &["service \"a/s.a\" (services[0])", ".vips[0]", "network/IP"],
        ),
        (
            service("cidrVips: [{network: n, cidr: 10.0.0.1}]"),
            &["service \"a/s.a\"", ".cidrVips[0].cidr"],
        ),
        (
            service("canonical: yes-please"),
            &["service \"a/s.a\"", ".canonical"],
        ),
        (
            service("loadBalancer: {mode: Strict}"),
            &["service \"a/s.a\"", ".loadBalancer", "routingPreferences"],
        ),
        (
            service("endpoints: {u: {workloadUid: u, ports: {}}}"),
            &["service \"a/s.a\"", "ports", "port"],
        ),
        (
            policy_with("!Exakt x"),
            &[
                "policy \"a/p\" (policies[0])",
                ".rules[0][0][0].principals[0]",
                "Exakt",
            ],
        ),
        (
            policy_with("plain"),
            &["policy \"a/p\"", ".principals[0]", "Exact"],
        ),
        (
            "workloads:\n- {namespace: a}\n".to_owned(),
            &["workloads[0]", "workloadIps"],
        ),
        (
            workload("locality: {region: r, zone: z, subzone: s, zne: x}"),
            &["workload \"u2\"", ".locality", "zne"],
        ),
        (
            service("cidrVips: [{network: n, cidr: 10.0.0.0/8, cdir: x}]"),
            &["service \"a/s.a\"", ".cidrVips[0]", "cdir"],
        ),
        // It would be an empty match, and no more than what is left of it.
        (
            policy_with("{Exact: x}], principal: [{Exact: y}"),
            &["policy", "principal", "principals"],
        ),
        ("workload: []\n".to_owned(), &["workload", "workloads"]),
        ("workloads: {}\n".to_owned(), &["invalid mesh state"]),
        ("workloads: [\n".to_owned(), &["invalid mesh state"]),
    ] {
        let message = error(&text);
        for part in parts {
            assert!(message.contains(part), "{text}\n{message}\nlacks {part}");
        }
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn keys_have_to_be_there_and_to_be_unique() {
    let twice = "workloads:\n- &w {uid: u1, namespace: a, workloadIps: [], services: {}}\n- *w\n";
    assert_eq!(error(twice), "invalid mesh state: workload \"u1\" is there twice");
    let without = "workloads:\n- {name: n, namespace: a, workloadIps: [], services: {}}\n";
    let message = error(without);
    assert!(message.starts_with("invalid mesh state: workload \"n\" (workloads[0]).uid: it is missing"));
    let services = "services:\n- &s {name: s, namespace: a, hostname: s.a, vips: [], ports: {}}\n- *s\n";
    assert_eq!(
        error(services),
        "invalid mesh state: service \"a/s.a\" is there twice"
    );
}

#[test]
fn mapped_addresses_become_ipv4() {
    let text = "workloads:\n- {uid: u, namespace: a, workloadIps: [\"::ffff:10.0.0.1\"], services: {}}\n";
    assert_eq!(
        *LocalState::parse(text).expect("valid").workloads[0].addresses,
        [ip("10.0.0.1")]
    );
}

#[test]
fn ranges_of_mapped_addresses_become_ranges_of_ipv4_addresses() {
    let text = "
services:
- {name: s, namespace: a, hostname: s.a, vips: [], ports: {}, cidrVips: [{network: '', cidr: '::ffff:10.0.0.0/104'}]}
policies:
- name: p
  namespace: a
  scope: Global
  action: Deny
  dryRun: false
  rules: [[[{sourceIps: ['::ffff:10.1.0.0/112', 'fd00::/8'], notSourceIps: ['::ffff:10.1.1.0/120'],
             destinationIps: ['::ffff:10.2.0.0/112'], notDestinationIps: ['::ffff:10.2.2.2/128']}]]]
";
    let state = LocalState::parse(text).expect("valid");
    let ranges = |texts: &[&str]| -> Vec<ipnet::IpNet> {
        let ranges = texts.iter().map(|text| text.parse().expect("a range"));
        ranges.collect()
    };
    assert_eq!(state.services[0].cidr_vips[0].cidr, ranges(&["10.0.0.0/8"])[0]);
    let read = &state.policies[0].rules[0].clauses[0].matches[0];
    assert_eq!(read.source_ips, ranges(&["10.1.0.0/16", "fd00::/8"]));
    assert_eq!(read.not_source_ips, ranges(&["10.1.1.0/24"]));
    assert_eq!(read.destination_ips, ranges(&["10.2.0.0/16"]));
    assert_eq!(read.not_destination_ips, ranges(&["10.2.2.2/32"]));
}

#[test]
fn a_file_may_hold_a_whole_cluster() {
    let mut text = String::from("workloads:\n");
    for at in 0..12_000 {
        let workload = format!(
            "- {{uid: u{at}, name: n{at}, namespace: a, serviceAccount: s, trustDomain: cluster.local, node: n, \
             network: net1, protocol: HBONE, workloadIps: [\"10.1.{}.{}\"], services: {{\"a/w.a\": {{80: 8080}}}}, \
             locality: {{region: r, zone: z, subzone: s}}, canonicalName: c, canonicalRevision: v1}}\n",
            at / 250,
            at % 250
        );
        text.push_str(&workload);
    }
    assert_eq!(LocalState::parse(&text).expect("valid").workloads.len(), 12_000);
}
