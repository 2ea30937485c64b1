//! The state in all its orders of arrival.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::*;
use crate::mesh::fixture::*;
use crate::mesh::{Endpoint, Health, HealthPolicy, LoadBalancer, PortMap};

fn endpoints(snapshot: &Snapshot, service: &str) -> Vec<String> {
    let service = snapshot.service("shop", &host(service)).expect("there");
    let endpoints = snapshot.endpoints(service);
    let mut uids: Vec<String> = endpoints.map(|it| it.workload_uid.to_string()).collect();
    uids.sort();
    uids
}

fn server() -> Workload {
    behind(pod("server", "10.0.0.2"), "web", &[])
}

fn web() -> Service {
    service("web", "10.96.0.1")
}

fn with_health_policy(health_policy: HealthPolicy) -> Service {
    let load_balancer = LoadBalancer {
        routing_preferences: vec![],
        mode: crate::mesh::BalanceMode::Standard,
        health_policy,
    };
    Service {
        load_balancer: Some(load_balancer),
        ..web()
    }
}

fn builder() -> Builder {
    Builder::new(locale())
}

mod away;
mod foresight;

const SERVER: &str = "c1//Pod/shop/server";

#[test]
fn endpoints_and_service_may_come_in_any_order() {
    let mut first = builder();
    first.insert_workload(server());
    first.build();
    assert_eq!(first.staged_services(), 1);
    first.insert_service(web());
    assert_eq!(endpoints(&first.build(), "web"), [SERVER]);
    assert_eq!(first.staged_services(), 0);

    let mut second = builder();
    second.insert_service(web());
    second.build();
    second.insert_workload(server());
    assert_eq!(endpoints(&second.build(), "web"), [SERVER]);
    assert_eq!(second.staged_services(), 0);
}

#[test]
fn a_push_of_many_endpoints_rebuilds_the_service_once() {
    let mut builder = builder();
    builder.insert_service(web());
    for at in 0..100 {
        builder.insert_workload(behind(pod(&format!("p{at}"), "10.0.0.2"), "web", &[]));
    }
    builder.build();
    assert_eq!(builder.rebuilds(), 1);
    builder.build();
    assert_eq!(builder.rebuilds(), 1);
}

#[test]
fn what_is_said_last_decides_who_is_an_endpoint_whether_the_service_had_some_or_not() {
    let named = |name: &str, status| Workload {
        status,
        ..behind(pod(name, "10.0.0.2"), "web", &[])
    };
    let push = |builder: &mut Builder| {
        use Health::{Healthy, Unhealthy};
        for (name, status) in [
            ("back", Unhealthy),
            ("gone", Healthy),
            ("left", Healthy),
            ("sick", Healthy),
            ("stays", Healthy),
        ] {
            builder.insert_workload(named(name, status));
        }
        builder.insert_workload(named("sick", Unhealthy));
        builder.insert_workload(named("back", Healthy));
        builder.remove("c1//Pod/shop/gone");
        builder.insert_workload(pod("left", "10.0.0.2"));
        builder.remove("c1//Pod/shop/stays");
        builder.insert_workload(named("stays", Healthy));
    };
    let expected = ["c1//Pod/shop/back", "c1//Pod/shop/stays"];
    let mut first = builder();
    first.insert_service(web());
    push(&mut first);
    assert_eq!(endpoints(&first.build(), "web"), expected);

    let mut further = builder();
    further.insert_service(web());
    further.insert_workload(server());
    further.build();
    push(&mut further);
    assert_eq!(
        endpoints(&further.build(), "web"),
        [expected[0], SERVER, expected[1]]
    );
    further.remove(SERVER);
    assert_eq!(endpoints(&further.build(), "web"), expected);
}

#[test]
fn work_that_is_done_in_parts_gives_the_same_state_and_builds_each_table_once() {
    let mut builder = builder();
    for at in 0..10 {
        let name = format!("s{at}");
        builder.insert_service(service(&name, &format!("10.96.1.{at}")));
        builder.insert_workload(behind(pod(&format!("p{at}"), "10.0.0.2"), &name, &[]));
    }
    let mut parts = 1;
    while builder.settle(3) {
        parts += 1;
    }
    assert!(parts > 3, "{parts}");
    assert_eq!(builder.rebuilds(), 10);
    let snapshot = builder.build();
    assert_eq!(builder.rebuilds(), 10, "nothing was left to do");
    for at in 0..10 {
        assert_eq!(
            endpoints(&snapshot, &format!("s{at}")),
            [format!("c1//Pod/shop/p{at}")]
        );
    }
}

#[test]
fn a_snapshot_does_not_change_with_its_builder() {
    let mut builder = builder();
    builder.insert_service(web());
    builder.insert_workload(server());
    let before = builder.build();
    builder.remove(SERVER);
    let after = builder.build();
    assert_eq!(endpoints(&before, "web"), [SERVER]);
    assert!(before.workload_by_address("net1", ip("10.0.0.2")).is_some());
    assert!(endpoints(&after, "web").is_empty());
    assert!(after.workload_by_address("net1", ip("10.0.0.2")).is_none());
    assert!(after.own_workload("server", "shop", "server").is_none());
}

#[test]
fn removing_and_adding_a_workload_in_one_push_keeps_the_new_endpoint() {
    let mut builder = builder();
    builder.insert_service(web());
    builder.insert_workload(server());
    builder.build();
    builder.remove(SERVER);
    builder.insert_workload(behind(pod("server", "10.0.0.3"), "web", &[(80, 9090)]));
    let snapshot = builder.build();
    let service = snapshot.service("shop", "web.shop").expect("there");
    let endpoint = snapshot.endpoints(service).next().expect("an endpoint");
    assert_eq!(
        (&*endpoint.workload_uid, endpoint.ports.get(80)),
        (SERVER, Some(9090))
    );
    assert!(snapshot.workload_by_address("net1", ip("10.0.0.2")).is_none());
}

#[test]
fn a_workload_that_leaves_a_service_is_no_endpoint_any_more() {
    let mut builder = builder();
    builder.insert_service(web());
    builder.insert_workload(server());
    builder.build();
    builder.insert_workload(pod("server", "10.0.0.2"));
    assert!(endpoints(&builder.build(), "web").is_empty());

    builder.insert_workload(behind(pod("other", "10.0.0.3"), "missing", &[]));
    builder.build();
    assert_eq!(builder.staged_services(), 1);
    builder.insert_workload(pod("other", "10.0.0.3"));
    builder.build();
    assert_eq!(builder.staged_services(), 0);
    builder.insert_workload(behind(pod("other", "10.0.0.3"), "missing", &[]));
    builder.build();
    builder.remove("c1//Pod/shop/other");
    builder.build();
    assert_eq!(builder.staged_services(), 0);
}

#[test]
fn a_workload_that_becomes_unhealthy_is_evicted() {
    let mut builder = builder();
    builder.insert_service(web());
    builder.insert_workload(server());
    builder.build();
    builder.insert_workload(Workload {
        status: Health::Unhealthy,
        ..server()
    });
    assert!(endpoints(&builder.build(), "web").is_empty());
    builder.insert_workload(server());
    assert_eq!(endpoints(&builder.build(), "web"), [SERVER]);
}

#[test]
fn whom_a_health_policy_keeps_out_the_next_one_may_let_in() {
    let sick = Workload {
        status: Health::Unhealthy,
        ..server()
    };
    let mut builder = builder();
    builder.insert_workload(sick);
    builder.insert_service(with_health_policy(HealthPolicy::AllowAll));
    assert_eq!(endpoints(&builder.build(), "web"), [SERVER]);
    for _ in 0..2 {
        builder.insert_service(with_health_policy(HealthPolicy::OnlyHealthy));
        assert!(endpoints(&builder.build(), "web").is_empty());
        builder.insert_service(with_health_policy(HealthPolicy::AllowAll));
        assert_eq!(endpoints(&builder.build(), "web"), [SERVER]);
    }
    builder.remove(SERVER);
    builder.insert_service(with_health_policy(HealthPolicy::OnlyHealthy));
    builder.insert_service(with_health_policy(HealthPolicy::AllowAll));
    assert!(endpoints(&builder.build(), "web").is_empty());
}

#[test]
fn an_update_of_a_service_keeps_its_endpoints_and_moves_its_addresses() {
    let mut builder = builder();
    builder.insert_service(web());
    builder.insert_workload(server());
    builder.build();
    builder.insert_service(service("web", "10.96.0.2"));
    let snapshot = builder.build();
    assert_eq!(endpoints(&snapshot, "web"), [SERVER]);
    assert!(
        snapshot
            .service_by_address("net1", ip("10.96.0.1"), None)
            .is_none()
    );
    assert!(
        snapshot
            .service_by_address("net1", ip("10.96.0.2"), None)
            .is_some()
    );
}

#[test]
fn removals_of_unknown_names_warn_where_they_look_like_something() {
    let mut builder = builder();
    builder.remove("c1//Pod/shop/gone");
    assert!(builder.take_warnings().is_empty());
    builder.remove("shop/gone.shop");
    builder.remove("gone");
    assert_eq!(
        builder.take_warnings(),
        [
            "cannot remove service \"shop/gone.shop\": it is not there",
            "cannot remove \"gone\": no workload has this uid",
        ]
    );
}

#[test]
fn an_endpoint_given_with_its_service_waits_for_its_workload() {
    let endpoint = Endpoint {
        workload_uid: SERVER.into(),
        ports: PortMap::default(),
        status: Health::Healthy,
    };
    let mut builder = builder();
    builder.insert_service(Service {
        endpoints: [(SERVER.into(), endpoint)].into_iter().collect(),
        ..web()
    });
    builder.insert_workload(pod("client", "10.0.0.1"));
    let route = |snapshot: &Snapshot| {
        let source = snapshot.workload("c1//Pod/shop/client").expect("there");
        snapshot
            .route(source, ip("10.0.0.1"), socket("10.96.0.1:80"), &mut counting())
            .is_ok()
    };
    assert!(!route(&builder.build()));
    builder.insert_workload(pod("server", "10.0.0.2"));
    assert!(route(&builder.build()));
    builder.remove(SERVER);
    assert!(!route(&builder.build()));
}

#[test]
fn all_views_of_a_service_hold_one_object_after_any_sequence_of_updates() {
    let mut builder = builder();
    let mut next = 7u64;
    let mut random = || {
        next = next
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        next >> 33
    };
    // Services with their addresses, in the order in which they were given.
    let mut given: Vec<(String, IpAddr)> = Vec::new();
    for _ in 0..300 {
        let at = random() % 6;
        let name = format!("s{at}");
        match random() % 5 {
            0 => builder.insert_workload(behind(pod(&format!("p{at}"), "10.0.0.2"), &name, &[])),
            1 => builder.remove(&format!("c1//Pod/shop/p{at}")),
            2 => {
                builder.remove(&format!("shop/s{at}.shop"));
                given.retain(|(other, _)| *other != name);
            }
            _ => {
                let cidr = format!("10.{}.0.0/16", 100 + at).parse().expect("a range");
                let cidr_vips = vec![crate::mesh::CidrVip {
                    network: "net1".into(),
                    cidr,
                }];
                let vip = format!("10.96.{}.{}", random() % 2, at % 3);
                builder.insert_service(Service {
                    cidr_vips,
                    ..service(&name, &vip)
                });
                given.retain(|(other, _)| *other != name);
                given.push((name, vip.parse().expect("an address")));
            }
        }
        let snapshot = builder.build();
        for service in snapshot.services() {
            for vip in &service.vips {
                let by_address = snapshot
                    .service_by_address("net1", vip.ip, None)
                    .expect("indexed");
                let latest = given.iter().rfind(|(_, ip)| *ip == vip.ip);
                assert_eq!(Some(&*by_address.name), latest.map(|(name, _)| &**name));
                assert!(*by_address.name != *service.name || Arc::ptr_eq(by_address, service));
            }
            for vip in &service.cidr_vips {
                let by_range = snapshot
                    .service_by_address("net1", vip.cidr.addr(), None)
                    .expect("indexed");
                assert!(Arc::ptr_eq(by_range, service));
            }
        }
        let indexed: Vec<_> = snapshot
            .index
            .services_by_vip
            .values()
            .flat_map(|it| it.values())
            .collect();
        assert!(indexed.iter().all(|list| !list.is_empty()));
        let addresses: BTreeSet<IpAddr> = given.iter().map(|(_, ip)| *ip).collect();
        assert_eq!(indexed.len(), addresses.len());
        let lengths: usize = snapshot.index.cidr_lengths.values().sum();
        assert_eq!(lengths, snapshot.services().count());
    }
}

#[test]
fn an_address_goes_back_to_the_service_of_the_namespace_that_had_it_before() {
    let vip = "10.96.0.1";
    let elsewhere = || Service {
        namespace: "other".into(),
        hostname: "c.other".into(),
        canonical: true,
        ..service("c", vip)
    };
    let found = |builder: &mut Builder, namespace| {
        let ip = vip.parse().expect("an address");
        let snapshot = builder.build();
        let service = snapshot.service_by_address("net1", ip, namespace);
        service.expect("some service has it").name.to_string()
    };
    let mut builder = builder();
    builder.insert_service(Service {
        canonical: true,
        ..service("a", vip)
    });
    builder.insert_service(elsewhere());
    builder.insert_service(service("b", vip));
    assert_eq!(found(&mut builder, Some("shop")), "b", "the latest one");
    assert_eq!(found(&mut builder, Some("other")), "c");
    assert_eq!(found(&mut builder, None), "c", "b is not canonical, and hides a");
    builder.insert_service(service("b", "10.96.0.2"));
    assert_eq!(
        found(&mut builder, Some("shop")),
        "a",
        "b has another address now"
    );
    builder.insert_service(service("b", vip));
    builder.remove("shop/b.shop");
    assert_eq!(found(&mut builder, Some("shop")), "a", "b is gone");
    builder.insert_service(service("b", vip));
    builder.insert_service(service("a", vip));
    assert_eq!(found(&mut builder, Some("shop")), "a", "the latest one");
    builder.remove("shop/a.shop");
    assert_eq!(found(&mut builder, Some("shop")), "b");
    builder.remove("shop/b.shop");
    assert_eq!(found(&mut builder, Some("shop")), "c", "of another namespace");
}

#[test]
fn a_uid_that_by_chance_has_the_fingerprint_of_another_takes_nothing_from_it() {
    let mut builder = builder();
    builder.insert_service(web());
    builder.insert_workload(server());
    let other = behind(pod("other", "10.0.0.3"), "web", &[]);
    builder.index.workloads.confuse(&other.uid, SERVER);
    builder.insert_workload(other.clone());
    let warnings = builder.take_warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("shop/other") && warnings[0].contains("shop/server"),
        "{warnings:?}"
    );
    builder.remove(&other.uid);
    let snapshot = builder.build();
    assert!(snapshot.workload(&other.uid).is_none());
    assert_eq!(snapshot.workload(SERVER).map(|it| &*it.uid), Some(SERVER));
    assert_eq!(endpoints(&snapshot, "web"), [SERVER]);
}

#[test]
fn a_workload_of_the_same_role_with_another_address_is_reached_there() {
    let mut builder = builder();
    builder.insert_workload(server());
    let before = builder.build();
    let moved = Workload {
        addresses: [[10, 0, 0, 9].into()].into(),
        ..(**before.workload(SERVER).expect("there")).clone()
    };
    builder.insert_workload(moved);
    let after = builder.build();
    assert!(after.addresses_revision() > before.addresses_revision());
    let at = |snapshot: &Snapshot, last| {
        let found = snapshot.workload_by_address(&server().network, [10, 0, 0, last].into());
        found.map(|it| it.uid.to_string())
    };
    assert_eq!((at(&before, 2).as_deref(), at(&before, 9)), (Some(SERVER), None));
    assert_eq!((at(&after, 2), at(&after, 9).as_deref()), (None, Some(SERVER)));
}

#[test]
fn a_service_in_the_place_of_another_does_not_have_those_whom_that_one_kept_out() {
    let mut builder = builder();
    builder.insert_service(web());
    builder.insert_workload(Workload {
        status: Health::Unhealthy,
        ..server()
    });
    builder.build();
    builder.remove(&format!("shop/{}", host("web")));
    builder.build();
    assert!(builder.outside.is_empty());
    builder.insert_service(service("other", "10.96.0.2"));
    builder.build();
    builder.remove(&format!("shop/{}", host("other")));
    builder.build();
    // What the place is left with is staged for the name of its service.
    assert_eq!(builder.staged_services(), 1);
    builder.insert_service(with_health_policy(HealthPolicy::AllowAll));
    assert_eq!(endpoints(&builder.build(), "web"), [SERVER]);
}

#[test]
fn identities_are_shared_and_forgotten() {
    let mut builder = builder();
    for at in 0..3 {
        let workload = Workload {
            uid: format!("u{at}").into(),
            ..pod("server", "10.0.0.2")
        };
        builder.insert_workload(workload);
    }
    let snapshot = builder.build();
    let sets: Vec<_> = snapshot.workloads().map(|it| it.accepted.clone()).collect();
    assert!(sets.iter().all(|set| Arc::ptr_eq(set, &sets[0])));
    let set = Arc::downgrade(&sets[0]);
    drop((snapshot, sets));
    for at in 0..3 {
        builder.remove(&format!("u{at}"));
    }
    drop(builder.build());
    for account in 0..5_000 {
        builder
            .interner()
            .identity(&Arc::from("t"), &Arc::from("n"), &Arc::from(format!("{account}")));
    }
    assert!(set.upgrade().is_none(), "when others come");
    assert!(builder.referring.is_empty());
}

#[test]
fn oddities_of_the_input_are_reported_once() {
    let mut builder = builder();
    let identity = Identity::new("", "shop", "server");
    builder.insert_workload(Workload::new("u1", "server", identity));
    builder.insert_service(Service {
        subject_alt_names: vec!["nonsense".into()],
        ..web()
    });
    let warnings = builder.take_warnings();
    assert!(
        warnings[0].starts_with("workload \"u1\" has no trust domain"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].starts_with("service shop/web.shop: skipping a subject"),
        "{warnings:?}"
    );
    assert!(builder.take_warnings().is_empty());
}
