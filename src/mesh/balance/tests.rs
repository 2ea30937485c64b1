//! Endpoint picks: distribution, ranking, cost.

mod naive;

use super::weighted::LOOKS;
use super::*;
use crate::mesh::fixture::*;
use crate::mesh::{HealthPolicy, Locality, Scope, Site, Snapshot};

/// A service `web` with the given workloads behind it.
fn balanced(load_balancer: Option<super::super::LoadBalancer>, workloads: Vec<Workload>) -> Snapshot {
    let web = Service {
        load_balancer,
        ..service("web", "10.96.0.1")
    };
    mesh(
        workloads.into_iter().map(|it| behind(it, "web", &[])).collect(),
        vec![web],
        vec![],
    )
}

fn pick<'a>(
    snapshot: &'a Snapshot,
    source: &Workload,
    random: &mut dyn FnMut() -> u64,
) -> Option<&'a Arc<Workload>> {
    pick_wider(snapshot, source, 0, random)
}

fn pick_wider<'a>(
    snapshot: &'a Snapshot,
    source: &Workload,
    wider: usize,
    random: &mut dyn FnMut() -> u64,
) -> Option<&'a Arc<Workload>> {
    let web = snapshot.index.backed("shop", "web.shop").expect("there");
    let tables = web.tables(&snapshot.index.workloads);
    let draw = &mut Draw { random, wider };
    let pick = tables.pick(&web.service.ports, source, 80, Purpose::Traffic, draw)?;
    Some(pick.workload)
}

fn hits(snapshot: &Snapshot, source: &Workload, draws: usize) -> HashMap<String, usize> {
    hits_wider(snapshot, source, 0, draws)
}

fn hits_wider(snapshot: &Snapshot, source: &Workload, wider: usize, draws: usize) -> HashMap<String, usize> {
    let mut random = counting();
    let mut hits = HashMap::new();
    for _ in 0..draws {
        if let Some(workload) = pick_wider(snapshot, source, wider, &mut random) {
            *hits.entry(workload.name.to_string()).or_default() += 1;
        }
    }
    hits
}

fn site_at(locality: Locality) -> Arc<Site> {
    Arc::new(Site {
        locality,
        ..Site::default()
    })
}

fn placed(name: &str, region: &str, zone: &str, network: &str) -> Workload {
    let locality = Locality {
        region: region.into(),
        zone: zone.into(),
        subzone: "".into(),
    };
    with(pod(name, "10.0.0.2"), |it| {
        it.site = site_at(locality);
        it.network = network.into();
    })
}

fn names(hits: &HashMap<String, usize>) -> Vec<&str> {
    let mut names: Vec<&str> = hits.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn picks_follow_the_capacities() {
    let of = |name: &str, capacity| Workload {
        capacity,
        ..pod(name, "10.0.0.2")
    };
    let snapshot = balanced(
        None,
        vec![of("one", 1), of("three", 3), of("never", 0), of("six", 6)],
    );
    // Every pair of numbers that matters: three entries, weights of ten.
    let client = pod("client", "10.0.0.1");
    let mut hits: HashMap<String, usize> = HashMap::new();
    for (column, coin) in (0..3).flat_map(|column| (0..10).map(move |coin| (column, coin))) {
        let mut numbers = [column, coin].into_iter();
        let picked = pick(&snapshot, &client, &mut || numbers.next().expect("two numbers"));
        *hits
            .entry(picked.expect("an endpoint").name.to_string())
            .or_default() += 1;
    }
    assert_eq!(hits["one"], 3);
    assert_eq!(hits["three"], 9);
    assert_eq!(hits["six"], 18);
    assert_eq!(names(&hits), ["one", "six", "three"]);
}

#[test]
fn equal_capacities_are_picked_equally() {
    let workloads = (0..7).map(|at| Workload {
        capacity: 5,
        ..pod(&format!("p{at}"), "10.0.0.2")
    });
    let hits = hits(
        &balanced(None, workloads.collect()),
        &pod("client", "10.0.0.1"),
        700,
    );
    assert_eq!(hits.len(), 7);
    assert!(hits.values().all(|count| *count == 100), "{hits:?}");
}

#[test]
fn nothing_is_picked_when_no_endpoint_has_a_capacity() {
    let snapshot = balanced(
        None,
        vec![Workload {
            capacity: 0,
            ..pod("none", "10.0.0.2")
        }],
    );
    assert!(pick(&snapshot, &pod("client", "10.0.0.1"), &mut counting()).is_none());
}

#[test]
fn failover_takes_the_longest_run_of_matching_preferences() {
    let load_balancer = || balancer(BalanceMode::Failover, &[Scope::Region, Scope::Zone]);
    let here = placed("client", "eu", "eu-1", "net1");
    let zone = placed("zone", "eu", "eu-1", "net1");
    let region = placed("region", "eu", "eu-2", "net1");
    // The zone matches, but a mismatch before it ends the comparison.
    let far = placed("far", "us", "eu-1", "net1");
    let all = balanced(load_balancer(), vec![zone, region.clone(), far.clone()]);
    assert_eq!(names(&hits(&all, &here, 10)), ["zone"]);
    let without_zone = balanced(load_balancer(), vec![region, far.clone()]);
    assert_eq!(names(&hits(&without_zone, &here, 10)), ["region"]);
    let only_far = balanced(
        load_balancer(),
        vec![far, placed("farther", "ap", "ap-1", "net1")],
    );
    assert_eq!(names(&hits(&only_far, &here, 10)), ["far", "farther"]);
}

#[test]
fn who_does_not_hear_from_the_nearest_is_offered_those_of_the_next_scopes_as_well() {
    let here = placed("client", "eu", "eu-1", "net1");
    let all = || {
        vec![
            placed("zone", "eu", "eu-1", "net1"),
            placed("region", "eu", "eu-2", "net1"),
            placed("far", "us", "us-1", "net1"),
        ]
    };
    let scopes = [Scope::Region, Scope::Zone];
    let failover = balanced(balancer(BalanceMode::Failover, &scopes), all());
    let strict = balanced(balancer(BalanceMode::Strict, &scopes), all());
    for (wider, found) in [
        (0, &["zone"][..]),
        (1, &["region", "zone"]),
        (2, &["far", "region", "zone"]),
        (3, &["far", "region", "zone"]),
    ] {
        assert_eq!(names(&hits_wider(&failover, &here, wider, 12)), found, "{wider}");
        assert_eq!(names(&hits_wider(&strict, &here, wider, 12)), ["zone"], "{wider}");
    }
}

#[test]
fn strict_takes_only_full_matches() {
    let load_balancer = || balancer(BalanceMode::Strict, &[Scope::Region, Scope::Zone]);
    let here = placed("client", "eu", "eu-1", "net1");
    let zone = placed("zone", "eu", "eu-1", "net1");
    let region = placed("region", "eu", "eu-2", "net1");
    let with = balanced(load_balancer(), vec![zone, region.clone()]);
    assert_eq!(names(&hits(&with, &here, 10)), ["zone"]);
    let without = balanced(load_balancer(), vec![region]);
    assert!(hits(&without, &here, 10).is_empty());
}

#[test]
fn empty_localities_are_equal() {
    let snapshot = balanced(
        balancer(BalanceMode::Strict, &[Scope::Region]),
        vec![placed("server", "", "", "net1")],
    );
    assert_eq!(
        names(&hits(&snapshot, &placed("client", "", "", "net1"), 3)),
        ["server"]
    );
}

#[test]
fn a_better_match_without_capacity_hides_the_others() {
    let full = Workload {
        capacity: 0,
        ..placed("full", "eu", "", "net1")
    };
    let snapshot = balanced(
        balancer(BalanceMode::Failover, &[Scope::Region]),
        vec![full, placed("far", "us", "", "net1")],
    );
    assert!(hits(&snapshot, &placed("client", "eu", "", "net1"), 3).is_empty());
}

#[test]
fn with_the_network_first_local_endpoints_outrank_all_remote_ones() {
    let load_balancer = || balancer(BalanceMode::Failover, &[Scope::Network, Scope::Region]);
    let here = placed("client", "eu", "", "net1");
    let local = placed("local", "us", "", "net1");
    let remote = placed("remote", "eu", "", "net2");
    let remote_far = placed("remote-far", "ap", "", "net3");
    let all = balanced(load_balancer(), vec![local, remote.clone(), remote_far.clone()]);
    assert_eq!(names(&hits(&all, &here, 10)), ["local"]);
    // Among remote ones the remaining preferences still count.
    let only_remote = balanced(load_balancer(), vec![remote.clone(), remote_far.clone()]);
    assert_eq!(names(&hits(&only_remote, &here, 10)), ["remote"]);
    let strict = balancer(BalanceMode::Strict, &[Scope::Network, Scope::Region]);
    assert!(hits(&balanced(strict, vec![remote, remote_far]), &here, 10).is_empty());
}

#[test]
fn an_endpoint_without_an_address_is_only_seen_from_other_networks() {
    let hidden = with(pod("hidden", "10.0.0.2"), |it| {
        it.addresses = [].into();
        it.network = "net2".into();
        it.network_gateway = waypoint("net2/192.0.2.1", 15008);
    });
    let unreachable = Workload {
        addresses: [].into(),
        ..pod("unreachable", "10.0.0.2")
    };
    let snapshot = balanced(None, vec![hidden, unreachable, pod("plain", "10.0.0.3")]);
    let from = |network| hits(&snapshot, &placed("client", "", "", network), 10);
    assert_eq!(names(&from("net1")), ["hidden", "plain"]);
    assert_eq!(names(&from("net2")), ["plain"]);
}

/// How many entries the dearest of many picks looks at.
fn looks_max(endpoints: u32, capacity: fn(u32) -> u32, modes: BalanceMode) -> usize {
    let workloads = (0..endpoints).map(|at| {
        let locality = Locality {
            region: format!("r{}", at % 3).into(),
            ..Locality::default()
        };
        Workload {
            capacity: capacity(at),
            site: site_at(locality),
            ..pod(&format!("p{at}"), "10.0.0.2")
        }
    });
    let snapshot = balanced(
        balancer(modes, &[Scope::Region, Scope::Zone]),
        workloads.collect(),
    );
    let source = placed("client", "r1", "", "net1");
    let mut random = counting();
    let mut dearest = 0;
    for _ in 0..2_000 {
        LOOKS.with(|looks| looks.set(0));
        pick(&snapshot, &source, &mut random).expect("an endpoint");
        dearest = dearest.max(LOOKS.with(std::cell::Cell::get));
    }
    dearest
}

#[test]
fn a_thousand_endpoints_cost_what_ten_cost() {
    for mode in [BalanceMode::Standard, BalanceMode::Failover] {
        for endpoints in [10, 1_000] {
            assert_eq!(looks_max(endpoints, |_| 1, mode), 1, "{endpoints} equal ones");
            assert_eq!(
                looks_max(endpoints, |at| 1 + at % 7, mode),
                2,
                "{endpoints} weighted ones"
            );
        }
    }
}
