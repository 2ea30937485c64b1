//! Who builds the tables of a service, when, and of what.

use std::collections::{BTreeMap, BTreeSet};

use super::super::balance::{Draw, Purpose};
use super::*;
use crate::mesh::fixture::*;
use crate::mesh::{BalanceMode, Builder, HealthPolicy, LoadBalancer, Snapshot};

const ADDRESS: [&str; 3] = ["10.0.0.2", "10.0.0.3", "10.0.0.4"];

fn backed<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Arc<Backed> {
    snapshot.index.backed("shop", &host(name)).expect("there")
}

/// As a worker picks: gives who takes the connection, and on which port.
fn pick(snapshot: &Snapshot, name: &str) -> Option<(String, u16)> {
    let backed = backed(snapshot, name);
    let client = pod("client", "10.0.0.1");
    let pick = backed.tables(&snapshot.index.workloads).pick(
        &backed.service.ports,
        &client,
        80,
        Purpose::Traffic,
        &mut Draw {
            random: &mut counting(),
            wider: 0,
        },
    )?;
    Some((pick.workload.name.to_string(), pick.port))
}

/// `services` services with an endpoint each.
fn crowd(services: usize) -> Builder {
    let mut builder = Builder::new(locale());
    for at in 0..services {
        let name = format!("s{at}");
        builder.insert_service(service(&name, &format!("10.96.0.{at}")));
        builder.insert_workload(behind(pod(&format!("p{at}"), "10.0.0.2"), &name, &[]));
    }
    builder
}

/// A service `web` with so many endpoints.
fn large(endpoints: usize) -> Builder {
    let mut builder = Builder::new(locale());
    builder.insert_service(service("web", "10.96.0.1"));
    for at in 0..endpoints {
        builder.insert_workload(behind(pod(&format!("p{at}"), "10.0.0.2"), "web", &[]));
    }
    builder
}

#[test]
fn nobody_builds_the_tables_of_services_that_nobody_calls() {
    let mut builder = crowd(20);
    builder.build();
    for at in 0..20 {
        let workload = behind(pod(&format!("p{at}"), "10.0.0.3"), &format!("s{at}"), &[]);
        builder.insert_workload(workload);
    }
    let snapshot = builder.build();
    assert_eq!((builder.rebuilds(), builder.tables_built()), (40, 0));
    assert!(snapshot.index.services.values().all(|it| !it.is_built()));
    // What does not choose among endpoints needs none either.
    let web = snapshot.service("shop", "s3.shop").expect("there");
    assert_eq!(snapshot.endpoints(web).count(), 1);
    let own = snapshot.workload("c1//Pod/shop/p3").expect("there");
    assert!(snapshot.inbound_service(own, 8080, None, None).is_some());
    assert!(snapshot.index.services.values().all(|it| !it.is_built()));
}

#[test]
fn the_first_pick_builds_and_the_next_ones_find_it() {
    let snapshot = crowd(3).build();
    assert_eq!(pick(&snapshot, "s1"), Some(("p1".to_owned(), 8080)));
    let built: Vec<bool> = snapshot.index.services.values().map(|it| it.is_built()).collect();
    assert_eq!(built, [false, true, false]);
    let tables =
        |snapshot: &Snapshot| std::ptr::from_ref(backed(snapshot, "s1").tables(&snapshot.index.workloads));
    assert_eq!(tables(&snapshot), tables(&snapshot.clone()));
}

#[test]
fn the_tables_of_a_called_service_are_there_before_anybody_sees_its_next_version() {
    let mut builder = crowd(3);
    let before = builder.build();
    pick(&before, "s1");
    for round in 1..4 {
        for at in 0..3 {
            let address = ADDRESS[round % 3];
            builder.insert_workload(behind(pod(&format!("p{at}"), address), &format!("s{at}"), &[]));
        }
        let after = builder.build();
        assert_eq!(builder.tables_built(), round, "those of the one that was called");
        assert!(backed(&after, "s1").is_built() && !backed(&after, "s0").is_built());
        assert!(!Arc::ptr_eq(backed(&before, "s1"), backed(&after, "s1")));
    }
    // Also when the service itself is another one.
    builder.insert_service(service("s1", "10.96.1.1"));
    assert!(backed(&builder.build(), "s1").is_built());
}

#[test]
fn a_pick_sees_what_has_become_of_the_endpoints() {
    for called_before in [true, false] {
        let mut builder = crowd(1);
        let look = |builder: &mut Builder| {
            let snapshot = builder.build();
            called_before.then(|| pick(&snapshot, "s0"));
            snapshot
        };
        let first = look(&mut builder);
        builder.insert_workload(behind(pod("p0", "10.0.0.2"), "s0", &[(80, 9090)]));
        let other_port = look(&mut builder);
        builder.insert_workload(behind(pod("other", "10.0.0.3"), "s0", &[]));
        builder.remove("c1//Pod/shop/p0");
        let other_pod = look(&mut builder);
        builder.insert_workload(Workload {
            capacity: 0,
            ..behind(pod("other", "10.0.0.3"), "s0", &[])
        });
        let nobody = look(&mut builder);
        let picks = [&first, &other_port, &other_pod, &nobody].map(|snapshot| pick(snapshot, "s0"));
        let some = |name: &str, port| Some((name.to_owned(), port));
        assert_eq!(
            picks,
            [some("p0", 8080), some("p0", 9090), some("other", 8080), None]
        );
    }
}

#[test]
fn no_worker_builds_the_tables_of_a_large_service() {
    const MAX: usize = limits::BALANCE_LAZY_ENDPOINTS_MAX;
    let mut builder = large(MAX);
    assert!(!backed(&builder.build(), "web").is_built(), "{MAX} are not many");
    let more = |at: usize| behind(pod(&format!("p{at}"), "10.0.0.3"), "web", &[]);
    builder.insert_workload(more(MAX));
    assert!(backed(&builder.build(), "web").is_built());
    assert_eq!(builder.tables_built(), 1);
    builder.insert_workload(more(0));
    assert!(backed(&builder.build(), "web").is_built());
    builder.insert_service(service("web", "10.96.0.2"));
    assert!(backed(&builder.build(), "web").is_built());
    assert_eq!(builder.tables_built(), 3);
    // Endpoints that were there before their service.
    let mut late = Builder::new(locale());
    (0..=MAX).for_each(|at| late.insert_workload(more(at)));
    late.build();
    late.insert_service(service("web", "10.96.0.1"));
    assert!(backed(&late.build(), "web").is_built());
}

/// A step of a random history: workloads of six names and three addresses, which join up to two of three services.
fn step(builder: &mut Builder, random: &mut impl FnMut(u64) -> u64) {
    let at = random(6);
    let name = format!("p{at}");
    match random(9) {
        0 => builder.remove(&format!("c1//Pod/shop/{name}")),
        1 => builder.remove(&format!("shop/s{}.shop", random(3))),
        // Lets in whom it may have kept out until then.
        8 => {
            let number = random(3);
            let name = format!("s{number}");
            builder.insert_service(Service {
                load_balancer: Some(LoadBalancer {
                    health_policy: HealthPolicy::AllowAll,
                    ..balancer(BalanceMode::Standard, &[]).expect("one")
                }),
                ..service(&name, &format!("10.96.{}.{number}", random(2)))
            });
        }
        2 | 3 => {
            let number = random(3);
            builder.insert_service(service(
                &format!("s{number}"),
                &format!("10.96.{}.{number}", random(2)),
            ));
        }
        _ => {
            let elsewhere = random(3) > 0;
            let mut workload = Workload {
                status: match random(4) {
                    0 => crate::mesh::Health::Unhealthy,
                    _ => crate::mesh::Health::Healthy,
                },
                capacity: random(3) as u32,
                ..pod(&name, ADDRESS[random(3) as usize])
            };
            for _ in 0..random(3) {
                workload = behind(
                    workload,
                    &format!("s{}", random(3)),
                    &[(80, 1 + random(2) as u16)],
                );
            }
            builder.insert_workload(workload.on_node(if elsewhere { "node-b" } else { "node-a" }));
        }
    }
}

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut next = seed;
    move |below| {
        next = next
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (next >> 33) % below
    }
}

/// Everything that decisions are made from, in words.
fn tables(backed: &Backed, snapshot: &Snapshot) -> String {
    format!("{:?}", Balance::build(backed, &snapshot.index.workloads))
}

#[test]
fn tables_are_those_of_their_version_from_whichever_snapshot_they_are_built() {
    let mut shared = 0;
    for seed in 0..40 {
        let (mut builder, mut random) = (Builder::new(locale()), random(seed));
        let mut snapshots: Vec<Snapshot> = Vec::new();
        for _ in 0..60 {
            for _ in 0..=random(3) {
                step(&mut builder, &mut random);
            }
            let snapshot = builder.build();
            for backed in snapshot.index.services.values() {
                let fresh = tables(backed, &snapshot);
                if random(4) == 0 {
                    backed.tables(&snapshot.index.workloads);
                }
                if backed.is_built() {
                    let built = format!("{:?}", backed.tables(&Workloads::default()));
                    assert_eq!(built, fresh, "seed {seed}: built earlier, or ahead");
                }
                for earlier in &snapshots {
                    if earlier.index.services.values().any(|it| Arc::ptr_eq(it, backed)) {
                        shared += 1;
                        assert_eq!(tables(backed, earlier), fresh, "seed {seed}");
                    }
                }
            }
            snapshots.push(snapshot);
        }
    }
    assert!(shared > 1_000, "{shared} versions are in more than one snapshot");
}

#[test]
fn a_history_ends_in_the_state_of_a_mesh_that_was_told_only_its_end() {
    let mut waited = 0;
    for seed in 0..60 {
        let (mut builder, mut random) = (Builder::new(locale()), random(seed));
        for at in 0..3 {
            builder.insert_service(service(&format!("s{at}"), &format!("10.96.0.{at}")));
        }
        for _ in 0..200 {
            step(&mut builder, &mut random);
            match random(4) {
                0 => drop(builder.build()),
                1 => drop(builder.settle(1)),
                _ => {}
            }
        }
        let grown = builder.build();
        let mut told = Builder::new(locale());
        for workload in grown.workloads() {
            told.insert_workload(Workload::clone(workload));
        }
        for service in grown.services() {
            told.insert_service(Service::clone(service));
        }
        let told = told.build();
        for service in grown.services() {
            let words = |snapshot: &Snapshot| {
                let backed = snapshot.index.backed(&service.namespace, &service.hostname);
                tables(backed.expect("there"), snapshot)
            };
            assert_eq!(words(&grown), words(&told), "seed {seed}, {}", service.key());
        }
        assert_eq!(staged(&grown), staged(&told), "seed {seed}");
        waited += grown.staged().count();
    }
    assert!(waited > 20, "{waited} services had somebody waiting in the end");
}

/// Who waits for which service.
fn staged(snapshot: &Snapshot) -> BTreeMap<String, BTreeSet<Arc<str>>> {
    let uids = |list: Vec<Endpoint>| list.into_iter().map(|it| it.workload_uid).collect();
    let staged = snapshot.staged();
    staged
        .map(|(key, endpoints)| (key.to_string(), uids(endpoints)))
        .collect()
}

#[test]
fn whoever_loses_an_address_to_another_one_is_told_of_by_the_revision() {
    let mut takeovers = 0;
    for seed in 0..60 {
        let (mut builder, mut random) = (Builder::new(locale()), random(seed));
        let mut before = builder.build();
        for _ in 0..200 {
            step(&mut builder, &mut random);
            let after = builder.build();
            let lists = after
                .index
                .workloads_by_address
                .values()
                .flat_map(|it| it.values());
            assert_eq!(
                after.index.owners_beyond_first,
                lists.map(|list| list.len() - 1).sum::<usize>()
            );
            for (uid, address) in (0..6).flat_map(|at| ADDRESS.map(|it| (format!("c1//Pod/shop/p{at}"), it)))
            {
                let is_over = |snapshot: &Snapshot| snapshot.is_taken_over(ip(address), &uid);
                if is_over(&after) && !is_over(&before) {
                    takeovers += 1;
                    assert!(
                        after.addresses_revision() > before.addresses_revision(),
                        "seed {seed}: {address} of {uid}"
                    );
                }
            }
            before = after;
        }
    }
    assert!(takeovers > 100, "{takeovers}");
}

#[test]
fn another_state_of_a_workload_that_is_found_as_before_is_no_news_for_sessions_and_policies() {
    let elsewhere = |capacity| {
        Workload {
            capacity,
            ..behind(pod("p", "10.0.0.2"), "web", &[])
        }
        .on_node("node-b")
    };
    let mut builder = large(0);
    builder.insert_workload(elsewhere(1));
    let before = builder.build();
    builder.insert_workload(elsewhere(2));
    let after = builder.build();
    let revisions = |snapshot: &Snapshot| (snapshot.addresses_revision(), snapshot.policies_revision());
    assert_eq!(revisions(&before), revisions(&after));
    for (snapshot, capacity) in [(&before, 1), (&after, 2)] {
        let found = snapshot
            .workload_by_address("net1", ip("10.0.0.2"))
            .expect("there");
        assert_eq!(found.capacity, capacity);
    }
    builder.remove("c1//Pod/shop/p");
    assert_eq!(
        revisions(&builder.build()),
        revisions(&before),
        "nobody got its address"
    );
}
