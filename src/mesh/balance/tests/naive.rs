//! Picks against an evaluator that walks all endpoints, as the contract puts it (data-plane.md section 7.3).

use proptest::prelude::*;

use super::*;
use crate::mesh::{ApplicationProtocol, ApplicationTunnel, Health, LoadBalancer};

/// A service `web`, its endpoints, and a source that calls it.
#[derive(Debug, Clone)]
struct Case {
    service: Service,
    endpoints: Vec<Workload>,
    source: Workload,
    purpose: Purpose,
    /// What the nearest have in common with the source, and others need not have.
    wider: usize,
}

/// Endpoints by name, with the port and how many of all draws are theirs; the empty name has those that give nothing.
type Shares = HashMap<(String, u16), u64>;

/// 1. to 3.: who is left, and which of those rank highest.
fn candidates_of(case: &Case) -> Vec<&Workload> {
    let target = case.service.ports.get(80);
    if case.purpose == Purpose::Traffic && target.is_none() {
        return Vec::new();
    }
    let usable = |it: &&Workload| {
        let reachable = !it.addresses.is_empty()
            || !it.hostname.is_empty()
            || (it.network != case.source.network && it.network_gateway.is_some());
        let maps = it.services[0].1.get(80).is_some();
        let serves = match case.purpose {
            Purpose::Traffic => target != Some(0) || maps,
            Purpose::Waypoint => target.is_some() || it.application_tunnel.is_some(),
        };
        let healthy = it.status == Health::Healthy
            || case
                .service
                .load_balancer
                .as_ref()
                .is_some_and(|it| it.health_policy == HealthPolicy::AllowAll);
        reachable && serves && healthy
    };
    let usable: Vec<&Workload> = case.endpoints.iter().filter(usable).collect();
    let Some(balancer) = case
        .service
        .load_balancer
        .as_ref()
        .filter(|it| it.mode != BalanceMode::Standard)
    else {
        return usable;
    };
    let preferences = &*balancer.routing_preferences;
    let run = |it: &Workload, preferences: &[Scope]| {
        let matches = |scope: &&Scope| scope_value(it, **scope) == scope_value(&case.source, **scope);
        preferences.iter().take_while(matches).count()
    };
    let best_of = |preferences| usable.iter().map(|it| run(it, preferences)).max().unwrap_or(0);
    if balancer.mode == BalanceMode::Strict {
        return usable
            .into_iter()
            .filter(|it| run(it, preferences) == preferences.len())
            .collect();
    }
    let counted = match preferences {
        [Scope::Network, rest @ ..] if best_of(preferences) == 0 => rest,
        all => all,
    };
    let enough = best_of(counted).saturating_sub(case.wider);
    usable
        .into_iter()
        .filter(|it| run(it, counted) >= enough)
        .collect()
}

/// 4. and 5.: shares by capacity, and ports.
fn expected(case: &Case) -> Shares {
    let target = case.service.ports.get(80).filter(|target| *target > 0);
    let mut shares = Shares::new();
    for it in candidates_of(case) {
        let tunnel = it.application_tunnel.and_then(|tunnel| tunnel.port);
        let port = it.services[0].1.get(80).or(target).or(tunnel.map(|_| 80));
        let key = match port {
            Some(port) => (it.name.to_string(), port),
            None => (String::new(), 0),
        };
        if it.capacity > 0 {
            *shares.entry(key).or_default() += u64::from(it.capacity);
        }
    }
    shares
}

/// Every pair of numbers that a draw may take, so the counts are exact.
fn drawn(case: &Case) -> Shares {
    let snapshot = mesh(case.endpoints.clone(), vec![case.service.clone()], vec![]);
    let web = snapshot.index.backed("shop", "web.shop").expect("there");
    let tables = web.tables(&snapshot.index.workloads);
    let candidates = candidates_of(case);
    let weighty = candidates.iter().filter(|it| it.capacity > 0).count() as u64;
    let sum: u64 = candidates.iter().map(|it| u64::from(it.capacity)).sum();
    let mut shares = Shares::new();
    // Without anybody to be drawn once at least, so that a pick of nobody's would show.
    for column in 0..weighty.max(1) {
        for coin in 0..sum.max(1) {
            let mut numbers = [column, coin].into_iter();
            let mut random = || numbers.next().expect("two numbers a draw");
            let draw = &mut Draw {
                random: &mut random,
                wider: case.wider,
            };
            let pick = tables.pick(&web.service.ports, &case.source, 80, case.purpose, draw);
            let key = pick.map_or((String::new(), 0), |it| (it.workload.name.to_string(), it.port));
            *shares.entry(key).or_default() += 1;
        }
    }
    if weighty == 0 {
        assert_eq!(shares.into_keys().collect::<Vec<_>>(), [(String::new(), 0)]);
        return Shares::new();
    }
    for share in shares.values_mut() {
        assert_eq!(*share % weighty, 0, "a share that is no multiple of the columns");
        *share /= weighty;
    }
    shares
}

fn place() -> impl Strategy<Value = (String, String, String, String)> {
    (0..2u8, 0..2u8, 0..2u8, 0..3u8).prop_map(|(region, zone, node, network)| {
        (
            format!("r{region}"),
            format!("z{zone}"),
            format!("n{node}"),
            format!("net{network}"),
        )
    })
}

prop_compose! {
    fn workload()(
        (region, zone, node, network) in place(),
        capacity in 0u32..4,
        addressed in prop::bool::weighted(0.8),
        named in prop::bool::weighted(0.2),
        behind_gateway in any::<bool>(),
        maps in prop::option::of(1u16..4),
        tunnel in prop::option::of(prop::option::of(Just(15088))),
        healthy in prop::bool::weighted(0.8),
    ) -> Workload {
        let base = placed("", &region, &zone, &network);
        let map: Vec<(u16, u16)> = maps.into_iter().map(|target| (80, target)).collect();
        let endpoint = with(base.on_node(&node), |it| {
            if !addressed {
                it.addresses = [].into();
            }
            it.hostname = if named { "name.example".into() } else { "".into() };
            it.network_gateway = behind_gateway.then(|| waypoint("net9/192.0.2.1", 15008)).flatten();
            it.application_tunnel = tunnel.map(|port| ApplicationTunnel {
                protocol: ApplicationProtocol::Proxy,
                port,
            });
            it.status = if healthy { Health::Healthy } else { Health::Unhealthy };
            it.capacity = capacity;
        });
        behind(endpoint, "web", &map)
    }
}

prop_compose! {
    fn balancing()(
        mode in prop::sample::select(vec![
            BalanceMode::Standard,
            BalanceMode::Strict,
            BalanceMode::Failover,
            BalanceMode::Passthrough,
        ]),
        routing_preferences in prop::sample::subsequence(
            vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Node], 0..=4,
        ).prop_shuffle(),
        all in any::<bool>(),
    ) -> LoadBalancer {
        let health_policy = if all { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
        LoadBalancer { routing_preferences, mode, health_policy }
    }
}

prop_compose! {
    fn case()(
        load_balancer in prop::option::of(balancing()),
        port in prop::option::of(prop::sample::select(vec![0u16, 8080])),
        mut endpoints in prop::collection::vec(workload(), 0..6),
        (region, zone, node, network) in place(),
        waypoint in any::<bool>(),
        wider in 0usize..4,
    ) -> Case {
        for (at, it) in endpoints.iter_mut().enumerate() {
            it.uid = format!("c1//Pod/shop/p{at}").into();
            it.name = (*format!("p{at}")).into();
        }
        let map: Vec<(u16, u16)> = port.into_iter().map(|target| (80, target)).collect();
        Case {
            service: Service { load_balancer, ports: ports(&map), ..service("web", "10.96.0.1") },
            endpoints,
            source: placed("client", &region, &zone, &network).on_node(&node),
            purpose: if waypoint { Purpose::Waypoint } else { Purpose::Traffic },
            wider,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn picks_are_those_of_a_walk_over_all_endpoints(case in case()) {
        prop_assert_eq!(drawn(&case), expected(&case));
    }
}
