//! What a new connection costs to authorize in a mesh of none and of many policies, by how many of them are about its
//! workload. No proxies and no network: the decision that workers ask for, on one thread.
//!
//! All meshes are alive at once and take turns within a round, the order reversed every round.

use std::fmt::Write;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use uztunnel::identity::Identity;
use uztunnel::mesh::{
    Builder, Clause, ConnectionFacts, Locale, Match, Policy, PolicyAction, PolicyScope, Rule, Snapshot,
    StringMatch, Workload,
};

use crate::report::{median, spread};

const POLICIES: u32 = 10_000;
const RULES: u32 = 10;
/// Evaluated rules of a round.
const WORK: u32 = 1_000_000;

/// A mesh, and how many of its policies are about the workload that is called.
struct Case {
    name: &'static str,
    about: u32,
    snapshot: Snapshot,
    /// Of each round.
    decision_ns: Vec<f64>,
}

/// A table of all meshes.
pub fn run(rounds: usize) -> String {
    use PolicyScope::{Namespace, WorkloadSelector};
    let mut cases = [
        Case::new("no policy", 0, &[]),
        Case::new(
            "10,000 that select other workloads of its namespace",
            0,
            &[(WorkloadSelector, "shop", POLICIES)],
        ),
        Case::new("10,000 of another namespace", 0, &[(Namespace, "bank", POLICIES)]),
        Case::new(
            "10 of its namespace, 9,990 of another",
            10,
            &[(Namespace, "shop", 10), (Namespace, "bank", POLICIES - 10)],
        ),
        Case::new(
            "10,000 of its namespace",
            POLICIES,
            &[(Namespace, "shop", POLICIES)],
        ),
    ];
    let caller = "spiffe://cluster.local/ns/web/sa/client".parse();
    let caller = caller.expect("invariant: a valid identity");
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..cases.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            cases[at].measure(&caller);
        }
    }
    report(&cases)
}

fn report(cases: &[Case]) -> String {
    let mut out = format!(
        "### Authorizing a connection: DENY policies of {RULES} rules with a principal each, none of which matches\n\n\
         | policies | about its workload | us a connection (spread) |\n|---|---|---|\n",
    );
    for case in cases {
        let us: Vec<f64> = case.decision_ns.iter().map(|ns| ns / 1e3).collect();
        let (name, about) = (case.name, case.about);
        writeln!(
            out,
            "| {name} | {about} | {:.3} ({}) |",
            median(&us),
            spread(&us, 3)
        )
        .expect("invariant: writing to a string cannot fail");
    }
    out
}

impl Case {
    fn new(name: &'static str, about: u32, policies: &[(PolicyScope, &str, u32)]) -> Self {
        let mut builder = Builder::new(Locale::default());
        builder.insert_workload(server());
        for (scope, namespace, count) in policies {
            for number in 0..*count {
                builder.insert_policy(policy(*scope, namespace, number));
            }
        }
        Self {
            name,
            about,
            snapshot: builder.build(),
            decision_ns: Vec::new(),
        }
    }

    fn measure(&mut self, caller: &Identity) {
        let server = self
            .snapshot
            .workload("server")
            .expect("invariant: it was inserted");
        let facts = ConnectionFacts {
            source: SocketAddr::new(Ipv4Addr::new(10, 0, 0, 1).into(), 40_000),
            destination: SocketAddr::new(server.addresses[0], 8080),
            identity: Some(caller),
        };
        let decide = || {
            let permit = self.snapshot.authorize(server, &facts);
            black_box(permit.expect("invariant: nobody is denied"));
        };
        let decisions = WORK / (1 + self.about * RULES);
        for _ in 0..decisions.div_ceil(10) {
            decide();
        }
        let begun = Instant::now();
        for _ in 0..decisions {
            decide();
        }
        self.decision_ns
            .push(begun.elapsed().as_nanos() as f64 / f64::from(decisions));
    }
}

fn server() -> Workload {
    let identity = "spiffe://cluster.local/ns/shop/sa/server".parse();
    Workload {
        addresses: [Ipv4Addr::new(10, 0, 0, 2).into()].into(),
        ..Workload::new("server", "server", identity.expect("invariant: a valid identity"))
    }
}

fn policy(scope: PolicyScope, namespace: &str, number: u32) -> Policy {
    let rule = |caller: u32| {
        let principal = format!("cluster.local/ns/web/sa/caller-{caller}");
        let only = Match {
            principals: vec![StringMatch::Exact(principal.into())],
            ..Match::default()
        };
        Rule {
            clauses: vec![Clause { matches: vec![only] }],
        }
    };
    let name = format!("p-{number}");
    Policy {
        key: format!("{namespace}/{name}").into(),
        name: name.into(),
        namespace: namespace.into(),
        scope,
        action: PolicyAction::Deny,
        dry_run: false,
        rules: (0..RULES).map(rule).collect(),
    }
}
