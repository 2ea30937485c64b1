//! What is applied, when it is published, and who is told of it.

use std::cell::Cell;

use prost::Message;
use tokio::task::yield_now;

use super::super::messages::discovery::{Any, DeltaDiscoveryResponse, Resource};
use super::super::messages::workload as wire;
use super::*;
use crate::bridge::lookups::{LookupAnswer, Question};
use crate::bridge::{Inbox, orders};
use crate::control::pods::PodChanges;
use crate::mesh::{GatewayTarget, Locale, Policy, PolicyAction, PolicyScope};
use crate::sys::driver::Wake;
use wire::WorkloadStatus::{Healthy, Unhealthy};

fn any(value: bytes::Bytes) -> Any {
    Any {
        type_url: Kind::Address.type_url().to_owned(),
        value,
    }
}

fn resource(index: usize) -> Resource {
    let uid = format!("c//Pod/ns/{index}");
    let workload = wire::Workload {
        uid: uid.clone(),
        services: [("ns/all.svc".to_owned(), wire::PortList::default())].into(),
        ..Default::default()
    };
    let r#type = Some(wire::address::Type::Workload(workload));
    let value = wire::Address { r#type }.encode_to_vec().into();
    Resource {
        name: uid,
        resource: Some(any(value)),
        ..Default::default()
    }
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// The state of `node-a` with one worker, and what it is told.
struct World {
    state: State,
    worker: Inbox,
    pods: PodChanges,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        let locale = Locale {
            node: Some("node-a".into()),
            ..Locale::default()
        };
        let (handle, worker) = orders::channel(Arc::new(NoWake));
        let (changes, pods) = crate::control::pods::changes();
        let snapshots = SnapshotCell::new(Snapshot::empty(locale.clone()));
        let builder = Builder::new(locale);
        Self {
            state: State::new(builder, snapshots, Orders::new(vec![handle]), changes),
            worker,
            pods,
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime"),
        }
    }

    fn workload(&mut self, node: &str, status: wire::WorkloadStatus) {
        let workload = wire::Workload {
            uid: format!("c//Pod/ns/of-{node}"),
            addresses: vec![vec![10, 0, 0, 1]],
            node: node.to_owned(),
            status: status.into(),
            ..Default::default()
        };
        let r#type = Some(wire::address::Type::Workload(workload));
        let value = wire::Address { r#type }.encode_to_vec().into();
        let response = DeltaDiscoveryResponse {
            resources: vec![Resource {
                resource: Some(any(value)),
                ..Default::default()
            }],
            ..Default::default()
        };
        let response = self
            .state
            .read(response.encode_to_vec().into())
            .expect("well formed");
        let verdict = self.runtime.block_on(self.state.apply(Kind::Address, response));
        assert!(verdict.rejected.is_empty(), "{:?}", verdict.rejected);
    }

    /// Of any namespace.
    fn policy(&mut self, name: &str) {
        self.state.builder.insert_policy(Policy {
            key: format!("ns/{name}").into(),
            name: name.into(),
            namespace: "ns".into(),
            scope: PolicyScope::Global,
            action: PolicyAction::Deny,
            dry_run: false,
            rules: Vec::new(),
        });
        self.state.changed();
    }

    /// Publishes; gives whether the worker was told of the snapshot, and the record of certificates.
    fn publish(&mut self) -> (bool, bool) {
        self.runtime.block_on(self.state.publish());
        self.told()
    }

    fn told(&mut self) -> (bool, bool) {
        let mut told = (false, false);
        while let Some(order) = self.worker.next() {
            told.0 |= matches!(order, Order::Snapshot);
        }
        while let Ok(change) = self.pods.try_recv() {
            told.1 |= matches!(change, PodChange::MeshChanged);
        }
        told
    }

    /// After the last snapshot.
    fn due_in(&self) -> Option<std::time::Duration> {
        let (due, last) = (self.state.publish_at?, self.state.published_at?);
        Some(due.duration_since(last))
    }
}

#[test]
fn workers_are_told_of_snapshots_that_concern_what_they_have() {
    let mut world = World::new();
    world.workload("node-b", Healthy);
    assert_eq!(
        world.publish(),
        (true, false),
        "its address may have been another's"
    );
    world.workload("node-b", Unhealthy);
    assert_eq!(world.publish(), (false, false), "the next connection sees it");
    world.workload("node-a", Healthy);
    assert_eq!(world.publish(), (true, true), "its pod may wait for it");
    world.workload("node-a", Unhealthy);
    assert_eq!(world.publish(), (true, true), "it is of this node");
    world.policy("deny");
    assert_eq!(world.publish(), (true, true));
    world.policy("deny");
    assert_eq!(world.publish(), (false, false), "the same again");
    world.state.addresses_told_at = None;
    world.state.remove(Kind::Address, "c//Pod/ns/of-node-b");
    assert_eq!(
        world.publish(),
        (true, false),
        "it leaves its address to the other one"
    );
}

#[test]
fn workers_are_not_woken_again_and_again_because_addresses_change_hands() {
    let mut world = World::new();
    world.workload("node-b", Healthy);
    assert_eq!(world.publish(), (true, false));
    // Whatever this machine does meanwhile.
    let last = clock::now() + std::time::Duration::from_secs(3600);
    world.state.addresses_told_at = Some(last);
    let due = last + limits::ADDRESSES_TOLD_INTERVAL;
    for node in ["node-c", "node-d"] {
        world.workload(node, Healthy);
        assert_eq!(world.publish(), (false, false));
        assert_eq!(world.state.tell_at(), Some(due));
    }
    world.state.tell(due);
    assert_eq!((world.told(), world.state.tell_at()), ((true, false), None));
    world.workload("node-e", Healthy);
    assert_eq!(world.publish(), (false, false));
    world.policy("deny");
    assert_eq!(world.publish(), (true, true), "with it, of addresses as well");
    assert_eq!(world.state.tell_at(), None);
}

#[test]
fn changes_are_published_at_once_and_gathered_while_they_keep_coming() {
    let mut world = World::new();
    world.workload("node-b", Healthy);
    let due = world.state.publish_at.expect("something to publish");
    assert!(due <= clock::now(), "nothing came before");
    world.publish();
    assert_eq!(world.due_in(), None);
    // In an hour, whatever this machine does meanwhile.
    let later = clock::now() + std::time::Duration::from_secs(3600);
    world.state.published_at = Some(later);
    for status in [Unhealthy, Healthy, Unhealthy] {
        world.workload("node-b", status);
        assert_eq!(
            world.due_in(),
            Some(limits::SNAPSHOT_INTERVAL),
            "no later for more"
        );
    }
    world.publish();
    assert_eq!(world.due_in(), None);
}

#[test]
fn what_somebody_waits_for_and_what_decides_about_pods_of_this_node_is_published_soon() {
    type Urgent = fn(&mut World);
    let policy: Urgent = |world| world.policy("deny");
    let own: Urgent = |world| world.workload("node-a", Healthy);
    let asked: Urgent = |world| {
        let target = GatewayTarget::Address("/10.0.0.9".parse().expect("an address"));
        world.state.reply(vec![Reply {
            worker: 0,
            question: Question::Mesh(target),
            answer: LookupAnswer::Ok(Arc::default()),
        }]);
    };
    for urgent in [policy, own, asked] {
        let mut world = World::new();
        world.workload("node-b", Healthy);
        world.publish();
        // In an hour, whatever this machine does meanwhile.
        let later = clock::now() + std::time::Duration::from_secs(3600);
        world.state.published_at = Some(later);
        world.workload("node-b", Unhealthy);
        assert_eq!(world.due_in(), Some(limits::SNAPSHOT_INTERVAL));
        urgent(&mut world);
        assert_eq!(world.due_in(), Some(limits::SNAPSHOT_INTERVAL_URGENT));
    }
}

#[test]
fn more_is_not_heard_of_before_the_next_publication_while_changes_keep_coming() {
    let mut world = World::new();
    let day = std::time::Duration::from_secs(86_400);
    world.workload("node-b", Healthy);
    world.publish();
    assert_eq!(world.state.next_publication(), None, "the first one");
    // Whatever this machine does meanwhile, that was not long ago.
    world.state.published_at = Some(clock::now() + day);
    world.workload("node-b", Unhealthy);
    world.publish();
    let at = world.state.published_at.expect("published");
    assert_eq!(
        world.state.next_publication(),
        Some(at + limits::SNAPSHOT_INTERVAL)
    );
    world.state.published_at = at.checked_sub(2 * limits::SNAPSHOT_INTERVAL);
    world.workload("node-b", Healthy);
    world.publish();
    assert_eq!(world.state.next_publication(), None, "after a pause");
}

#[test]
fn other_work_gets_its_turn_while_a_large_response_is_applied() {
    // For a hundred turns of an optimised build.
    const RESOURCES: usize = 25_600;
    let empty = Snapshot::empty(Locale::default());
    let snapshots = SnapshotCell::new(empty);
    let builder = Builder::new(Locale::default());
    let (changes, _changes) = crate::control::pods::changes();
    let mut state = State::new(builder, snapshots.clone(), Orders::new(Vec::new()), changes);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let applied = Cell::new(false);
    let turns = runtime.block_on(async {
        let applying = async {
            let response = DeltaDiscoveryResponse {
                resources: (0..RESOURCES).map(resource).collect(),
                ..Default::default()
            };
            let response = state.read(response.encode_to_vec().into()).expect("well formed");
            let verdict = state.apply(Kind::Address, response).await;
            applied.set(true);
            verdict
        };
        let others = async {
            let mut turns = 0;
            while !applied.get() {
                turns += 1;
                // Nobody sees a part of it.
                assert_eq!(snapshots.load().workloads().count(), 0);
                yield_now().await;
            }
            turns
        };
        let (verdict, turns) = tokio::join!(applying, others);
        assert_eq!(verdict.accepted.len(), RESOURCES);
        state.publish().await;
        turns
    });
    assert!(turns >= 10, "{turns}");
    assert_eq!(snapshots.load().workloads().count(), RESOURCES);
    assert_eq!(state.publish_at(), None);
}
