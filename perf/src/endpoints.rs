//! What it costs to choose an endpoint of a service of ten and of a thousand, and to build the tables that choices are
//! made from. No proxies and no network: the decision that workers ask for, on one thread.
//!
//! Services of all sizes are alive at once and take turns within a round, the order reversed every round.

use std::fmt::Write;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use uztunnel::mesh::{
    BalanceMode, Builder, HealthPolicy, LoadBalancer, Locale, NamespacedHostname, NetworkAddress, PortMap,
    Scope, Service, Snapshot, Workload,
};

use crate::report::{median, spread};

/// Tables of the largest are there before anybody calls.
const SIZES: [u16; 3] = [10, 64, 1000];
const CHOICES: u32 = 200_000;
const FIRST_CHOICES: u32 = 40;

/// How endpoints are chosen.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Equal,
    Weighted,
    /// By region, then zone.
    Failover,
}

/// A mesh with one service, and a client.
struct Case {
    kind: Kind,
    endpoints: u16,
    snapshot: Snapshot,
    client: Arc<Workload>,
    /// Of each round.
    choice_ns: Vec<f64>,
    first_choice_us: Vec<f64>,
}

/// A table of all kinds and sizes.
pub fn run(rounds: usize) -> String {
    let kinds = [Kind::Equal, Kind::Weighted, Kind::Failover];
    let cases = kinds
        .iter()
        .flat_map(|kind| SIZES.map(|endpoints| Case::new(*kind, endpoints)));
    let mut cases: Vec<Case> = cases.collect();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..cases.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            cases[at].measure(&mut random);
        }
    }
    report(&cases)
}

fn report(cases: &[Case]) -> String {
    let mut out = String::from(
        "### Choosing an endpoint\n\n| endpoints | ns a choice (spread) | times that of ten | us with tables to be built \
         (spread) |\n|---|---|---|---|\n",
    );
    let mut ten_ns = 1.0;
    for case in cases {
        let (choice_ns, first_us) = (median(&case.choice_ns), median(&case.first_choice_us));
        if case.endpoints == SIZES[0] {
            ten_ns = choice_ns;
        }
        writeln!(
            out,
            "| {}, {:?} | {choice_ns:.0} ({}) | {:.2} | {first_us:.1} ({}) |",
            case.endpoints,
            case.kind,
            spread(&case.choice_ns, 0),
            choice_ns / ten_ns,
            spread(&case.first_choice_us, 0),
        )
        .expect("invariant: writing to a string cannot fail");
    }
    out
}

impl Case {
    fn new(kind: Kind, endpoints: u16) -> Self {
        let snapshot = builder(kind, endpoints).build();
        let client = snapshot.workload("client").expect("invariant: it was inserted");
        Self {
            kind,
            endpoints,
            client: client.clone(),
            snapshot,
            choice_ns: Vec::new(),
            first_choice_us: Vec::new(),
        }
    }

    fn measure(&mut self, random: &mut fastrand::Rng) {
        choose(&self.snapshot, &self.client, random);
        let begun = Instant::now();
        for _ in 0..CHOICES {
            choose(&self.snapshot, &self.client, random);
        }
        self.choice_ns
            .push(begun.elapsed().as_nanos() as f64 / f64::from(CHOICES));
        let fresh: Vec<(Builder, Snapshot)> = (0..FIRST_CHOICES)
            .map(|_| {
                let mut builder = builder(self.kind, self.endpoints);
                let snapshot = builder.build();
                (builder, snapshot)
            })
            .collect();
        let begun = Instant::now();
        for (_, snapshot) in &fresh {
            choose(snapshot, &self.client, random);
        }
        self.first_choice_us
            .push(begun.elapsed().as_nanos() as f64 / 1e3 / f64::from(FIRST_CHOICES));
    }
}

fn choose(snapshot: &Snapshot, client: &Arc<Workload>, random: &mut fastrand::Rng) {
    let target = SocketAddr::new(Ipv4Addr::new(10, 96, 0, 1).into(), 80);
    let decision = snapshot.route(client, client.addresses[0], target, &mut || random.u64(..));
    black_box(decision.expect("invariant: every endpoint can be reached"));
}

fn builder(kind: Kind, endpoints: u16) -> Builder {
    let mut builder = Builder::new(Locale::default());
    let load_balancer = match kind {
        Kind::Equal | Kind::Weighted => None,
        Kind::Failover => Some(LoadBalancer {
            routing_preferences: vec![Scope::Region, Scope::Zone],
            mode: BalanceMode::Failover,
            health_policy: HealthPolicy::OnlyHealthy,
        }),
    };
    let mut service = Service::new("web", "shop", "web.shop");
    service.vips = vec![NetworkAddress::new("", Ipv4Addr::new(10, 96, 0, 1).into())];
    service.ports = PortMap::from_iter([(80, 8080)]);
    service.load_balancer = load_balancer;
    builder.insert_service(service);
    let key = NamespacedHostname::new("shop", "web.shop");
    for number in 0..endpoints {
        let [high, low] = number.to_be_bytes();
        let mut workload = workload(&format!("web-{number}"), Ipv4Addr::new(10, 1, high, low).into());
        Arc::make_mut(&mut workload.site).locality.zone = format!("zone-{}", number % 3).into();
        if let Kind::Weighted = kind {
            workload.capacity = 1 + u32::from(number % 7);
        }
        workload.join(key.clone(), PortMap::default());
        builder.insert_workload(workload);
    }
    let mut client = workload("client", Ipv4Addr::new(10, 2, 0, 1).into());
    Arc::make_mut(&mut client.site).locality.zone = "zone-1".into();
    builder.insert_workload(client);
    builder
}

fn workload(uid: &str, address: IpAddr) -> Workload {
    let identity = "spiffe://cluster.local/ns/shop/sa/web".parse();
    Workload {
        addresses: [address].into(),
        ..Workload::new(uid, uid, identity.expect("invariant: a valid identity"))
    }
}
