//! What the re-check of live connections promises, on connections that no driver knows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::*;
use crate::identity::Identity;
use crate::mesh::{Builder, Clause, Locale, Match, Policy, PolicyAction, PolicyScope, Rule, Workload};
use crate::runtime::slab::Key;
use crate::runtime::tasks::Executor;
use crate::sys::driver::{Driver, SocketId};
use crate::sys::epoll::EpollDriver;
use crate::worker::fixture;
use crate::worker::owner::Owned;
use crate::worker::pipe::Pipe;

const FORBIDDEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 66)), 40_000);
const OTHER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 7)), 40_000);
const APPLICATION: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 1, 1)), 80);

/// A worker with the pod `shop/till`, and the state of the mesh.
struct Node {
    core: Core<EpollDriver>,
    builder: Builder,
    pod: Rc<PodState>,
    socket: SocketId,
}

fn node(executor: &Executor) -> Node {
    let mut core = fixture::core(executor);
    let pod = fixture::pod();
    core.add_pod(pod.pod.clone(), None);
    let pod = core.pods.iter().next().expect("just added").clone();
    let (near, far) = fixture::connection();
    let socket = core
        .driver
        .adopt(near.into(), Owned::Task(Key::from_bits(0)).to_owner())
        .expect("adopted");
    std::mem::forget(far);
    let mut builder = Builder::new(Locale::default());
    builder.insert_workload(till(&[]));
    let mut node = Node {
        core,
        builder,
        pod,
        socket,
    };
    node.publish();
    node
}

fn till(policies: &[&str]) -> Workload {
    let identity = Identity::new("cluster.local", "shop", "till");
    let mut workload = Workload::new("c1//Pod/shop/till", "till", identity);
    workload.authorization_policies = policies.iter().map(|key| (*key).into()).collect();
    workload
}

/// Denies what comes from the address.
fn deny(namespace: &str, name: &str, scope: PolicyScope, source: IpAddr) -> Policy {
    let it = Match {
        source_ips: vec![source.into()],
        ..Match::default()
    };
    Policy {
        key: format!("{namespace}/{name}").into(),
        name: name.into(),
        namespace: namespace.into(),
        scope,
        action: PolicyAction::Deny,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause { matches: vec![it] }],
        }],
    }
}

impl Node {
    fn publish(&mut self) {
        let snapshot = self.builder.build();
        self.core.snapshot.publish(snapshot);
        self.core.start_recheck();
        while self.core.continue_recheck() {}
    }

    fn pipe(&mut self, direction: Direction, source: SocketAddr) -> Key<Pipe> {
        let account = Account::new(direction, self.core.now, source, APPLICATION);
        let share = self.core.load.share(0);
        let place = fixture::place(&self.core, &self.pod);
        let pipe = Pipe::idle(
            self.pod.clone(),
            [self.socket; 2],
            Box::new(account),
            share,
            place,
        );
        self.core.pipes.insert(pipe)
    }

    fn lives(&self, key: Key<Pipe>) -> bool {
        self.core.pipes.get(key).is_some()
    }
}

#[test]
fn a_new_policy_ends_what_it_forbids_and_nothing_else() {
    let executor = Executor::default();
    let mut node = node(&executor);
    let forbidden = node.pipe(Direction::Inbound, FORBIDDEN);
    let allowed = node.pipe(Direction::Inbound, OTHER);
    let outbound = node.pipe(Direction::Outbound, FORBIDDEN);
    let dry = Policy {
        dry_run: true,
        ..deny("shop", "dry", PolicyScope::Namespace, FORBIDDEN.ip())
    };
    node.builder.insert_policy(dry);
    node.publish();
    assert!(node.lives(forbidden), "a dry run enforces nothing");
    node.builder
        .insert_policy(deny("shop", "no", PolicyScope::Namespace, FORBIDDEN.ip()));
    node.publish();
    assert!(!node.lives(forbidden));
    assert!(node.lives(allowed) && node.lives(outbound));
}

#[test]
fn policies_of_the_whole_mesh_count_and_those_of_other_namespaces_do_not() {
    let executor = Executor::default();
    let mut node = node(&executor);
    let connection = node.pipe(Direction::Inbound, FORBIDDEN);
    node.builder
        .insert_policy(deny("bank", "no", PolicyScope::Namespace, FORBIDDEN.ip()));
    node.publish();
    assert!(node.lives(connection));
    assert!(node.core.recheck.pods.is_empty());
    node.builder
        .insert_policy(deny("istio-system", "no", PolicyScope::Global, FORBIDDEN.ip()));
    node.publish();
    assert!(!node.lives(connection));
}

#[test]
fn a_workload_that_another_policy_selects_from_now_on_is_judged_by_it() {
    let executor = Executor::default();
    let mut node = node(&executor);
    let connection = node.pipe(Direction::Inbound, FORBIDDEN);
    node.builder
        .insert_policy(deny("shop", "no", PolicyScope::WorkloadSelector, FORBIDDEN.ip()));
    node.publish();
    assert!(node.lives(connection), "nobody is selected yet");
    node.builder.insert_workload(till(&["shop/no"]));
    node.publish();
    assert!(!node.lives(connection));
}

#[test]
fn a_pod_whose_workload_left_first_is_judged_as_what_it_was() {
    let executor = Executor::default();
    let mut node = node(&executor);
    let connection = node.pipe(Direction::Inbound, FORBIDDEN);
    node.builder.remove("c1//Pod/shop/till");
    node.publish();
    assert!(node.lives(connection));
    node.builder
        .insert_policy(deny("shop", "no", PolicyScope::Namespace, FORBIDDEN.ip()));
    node.publish();
    assert!(!node.lives(connection));
}

#[test]
fn so_is_one_that_came_after_the_last_change_of_policies() {
    let executor = Executor::default();
    let mut node = node(&executor);
    let late = node.pod.pod.clone();
    node.core.remove_pod(&late.uid);
    node.core.add_pod(late, None);
    node.pod = node.core.pods.iter().next().expect("just added").clone();
    let snapshot = node.core.snapshot.load();
    note_first(&node.pod, &snapshot, &Arc::new(till(&[])));
    let connection = node.pipe(Direction::Inbound, FORBIDDEN);
    node.builder.remove("c1//Pod/shop/till");
    node.builder
        .insert_policy(deny("shop", "no", PolicyScope::Namespace, FORBIDDEN.ip()));
    node.publish();
    assert!(!node.lives(connection));
}

#[test]
fn the_last_allowing_policy_that_goes_opens_and_one_that_comes_closes() {
    let executor = Executor::default();
    let mut node = node(&executor);
    let allow = Policy {
        action: PolicyAction::Allow,
        ..deny("shop", "only", PolicyScope::Namespace, OTHER.ip())
    };
    node.builder.insert_policy(allow);
    node.publish();
    let (stranger, friend) = (
        node.pipe(Direction::Inbound, FORBIDDEN),
        node.pipe(Direction::Inbound, OTHER),
    );
    node.builder.remove_policy("shop/only");
    node.publish();
    assert!(
        node.lives(stranger) && node.lives(friend),
        "nothing restricts any more"
    );
    let allow = Policy {
        action: PolicyAction::Allow,
        ..deny("shop", "again", PolicyScope::Namespace, OTHER.ip())
    };
    node.builder.insert_policy(allow);
    node.publish();
    assert!(!node.lives(stranger) && node.lives(friend));
}

#[test]
fn policies_that_are_repeated_word_for_word_are_no_change() {
    let executor = Executor::default();
    let mut node = node(&executor);
    let policy = || deny("shop", "no", PolicyScope::Namespace, FORBIDDEN.ip());
    node.builder.insert_policy(policy());
    node.publish();
    let revision = node.core.recheck.revision;
    node.builder.insert_policy(policy());
    node.publish();
    assert_eq!(node.core.recheck.revision, revision);
}

#[test]
fn a_change_during_a_pass_is_asked_of_those_that_the_pass_has_seen() {
    let executor = Executor::default();
    let mut node = node(&executor);
    let first = node.pipe(Direction::Inbound, FORBIDDEN);
    for _ in 0..2 * limits::RECHECK_SLOTS_TURN_MAX {
        node.pipe(Direction::Inbound, OTHER);
    }
    node.builder.insert_policy(deny(
        "shop",
        "other",
        PolicyScope::Namespace,
        Ipv4Addr::LOCALHOST.into(),
    ));
    node.core.snapshot.publish(node.builder.build());
    node.core.start_recheck();
    assert!(node.core.continue_recheck(), "one slice is not enough");
    node.builder
        .insert_policy(deny("shop", "no", PolicyScope::Namespace, FORBIDDEN.ip()));
    node.publish();
    assert!(!node.lives(first));
}

/// The bar is 5 ms; what one slice takes is bounded by its own clock, so that only a busy machine makes it longer.
#[test]
fn a_hundred_thousand_live_connections_are_judged_again_in_slices() {
    let executor = Executor::default();
    let mut node = node(&executor);
    for _ in 0..100_000 {
        node.pipe(Direction::Inbound, OTHER);
    }
    let forbidden = node.pipe(Direction::Inbound, FORBIDDEN);
    for number in 0..100 {
        let source = IpAddr::from([10, 0, 0, number]);
        node.builder.insert_policy(deny(
            "shop",
            &format!("no-{number}"),
            PolicyScope::Namespace,
            source,
        ));
    }
    node.builder
        .insert_policy(deny("shop", "no", PolicyScope::Namespace, FORBIDDEN.ip()));
    node.core.snapshot.publish(node.builder.build());
    let started = Instant::now();
    node.core.start_recheck();
    let mut slices = vec![started.elapsed()];
    loop {
        let slice = Instant::now();
        let goes_on = node.core.continue_recheck();
        slices.push(slice.elapsed());
        if !goes_on {
            break;
        }
    }
    assert!(!node.lives(forbidden));
    assert_eq!(node.core.pipes.len(), 100_000);
    slices.sort_unstable();
    let longest_but_few = slices[slices.len() * 95 / 100];
    println!(
        "{} slices in {:?}: median {:?}, 95 % {longest_but_few:?}, longest {:?}",
        slices.len(),
        started.elapsed(),
        slices[slices.len() / 2],
        slices[slices.len() - 1]
    );
    assert!(longest_but_few < Duration::from_millis(5), "{longest_but_few:?}");
}
