//! What the control plane said, applied to the mesh and published to the workers.
//!
//! Control thread. Invariants: a response is published as a whole or not yet; a resource that is refused leaves what
//! was there before it, and everything else, as it is. Long work is cut into slices, so that certificates and pods
//! do not wait behind a hundred thousand workloads.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task;

use super::decode::DecodeError;
use super::envelope::Malformed;
use super::on_demand::Reply;
use super::protocol::{Alias, Kind, Verdict};
use super::response::{Arriving, Content, Resource, Response};
use crate::bridge::{Order, Orders, SnapshotCell};
use crate::clock::{self, Instant};
use crate::control::pods::PodChange;
use crate::limits;
use crate::mesh::{Builder, Snapshot};

/// The one writer of the mesh state.
pub struct State {
    builder: Builder,
    snapshots: SnapshotCell,
    orders: Orders,
    changes: mpsc::UnboundedSender<PodChange>,
    /// When changes that nobody has seen yet are published.
    publish_at: Option<Instant>,
    published_at: Option<Instant>,
    /// The publication before it was not long ago either.
    is_streaming: bool,
    /// What is published, and what of it workers were told of.
    published: Revisions,
    told: Revisions,
    /// When workers were last told for addresses alone.
    addresses_told_at: Option<Instant>,
    /// Snapshots that were replaced while workers looked at them: what is theirs alone is freed on this thread.
    retired: Vec<Arc<Snapshot>>,
    retire_at: Option<Instant>,
    /// Whether other names of resources are told.
    tells_aliases: bool,
    /// Told when what they are about is published.
    replies: Vec<Reply>,
    /// Long work gave way to others, or began.
    gave_way_at: Instant,
}

impl State {
    /// `builder` has what `snapshots` shows.
    pub fn new(
        builder: Builder,
        snapshots: SnapshotCell,
        orders: Orders,
        changes: mpsc::UnboundedSender<PodChange>,
    ) -> Self {
        let published = Revisions::of(&snapshots.load());
        Self {
            published,
            told: published,
            addresses_told_at: None,
            builder,
            snapshots,
            orders,
            changes,
            publish_at: None,
            published_at: None,
            is_streaming: false,
            retired: Vec::new(),
            retire_at: None,
            tells_aliases: false,
            replies: Vec::new(),
            gave_way_at: clock::now(),
        }
    }

    /// Says of each resource by which other names it may have been asked for.
    pub fn telling_aliases(self) -> Self {
        Self {
            tells_aliases: true,
            ..self
        }
    }

    /// Tells workers, as soon as they find published what it is about.
    pub fn reply(&mut self, replies: Vec<Reply>) {
        self.replies.extend(replies);
        if self.publish_at.is_none() {
            self.send_replies();
        } else {
            self.changed();
        }
    }

    /// What was done before does not count, since the thread has just woken or given way.
    pub fn begin_slice(&mut self) {
        self.gave_way_at = clock::now();
    }

    /// After a slice of long work: if enough was done since the last time, workers on the same CPU and other tasks of this
    /// thread get their turn. Some kernels let a worker that wakes in only when their clock ticks, which is every 4 or
    /// 10 ms, unless somebody gives way before.
    pub async fn give_way(&mut self) {
        if clock::now() < self.gave_way_at + limits::XDS_SLICE_TIME {
            return;
        }
        std::thread::yield_now();
        task::yield_now().await;
        self.begin_slice();
    }

    /// Begins with a response of so many bytes.
    pub fn arriving(&self, message_bytes: usize) -> Arriving {
        Arriving::new(message_bytes, self.tells_aliases)
    }

    /// Makes at most `XDS_SLICE` resources of what has come of a response; true when that was all. Nobody sees them
    /// before `apply`.
    pub fn make(&mut self, arriving: &mut Arriving) -> Result<bool, Malformed> {
        let made = arriving.step(limits::XDS_SLICE, self.builder.interner())?;
        Ok(made < limits::XDS_SLICE)
    }

    /// Of a message that is there as a whole.
    pub fn read(&mut self, message: Bytes) -> Result<Response, Malformed> {
        let mut arriving = self.arriving(message.len());
        arriving.feed(message);
        while !self.make(&mut arriving)? {}
        arriving.finish()
    }

    /// Applies one response: resources in their order, then removals.
    pub async fn apply(&mut self, kind: Kind, mut response: Response) -> Verdict {
        let mut verdict = Verdict::default();
        let slices = response.take_slices();
        verdict.accepted.reserve_exact(response.resources);
        let mut aliases = response.aliases.into_iter().peekable();
        let mut at = 0;
        for slice in slices {
            self.give_way().await;
            self.foresee(kind, slice.iter().map(|it| &*it.name));
            for resource in slice {
                let Resource {
                    name,
                    version,
                    content,
                } = resource.of_kind(kind, self.builder.interner());
                let refusal = self.insert(content).err();
                while let Some((_, alias)) = aliases.next_if(|(of, _)| *of == at) {
                    verdict.aliases.push(Alias {
                        name: alias,
                        accepted: refusal.is_none(),
                    });
                }
                at += 1;
                match refusal {
                    None => verdict.accepted.push((name, version)),
                    Some(error) => verdict.rejected.push((name, error.to_string())),
                }
            }
        }
        for names in response.envelope.removed.chunks(limits::XDS_SLICE) {
            self.give_way().await;
            self.foresee(kind, names.iter().map(|name| &**name));
            for name in names {
                self.remove(kind, name);
            }
        }
        verdict.removed = response.envelope.removed;
        self.changed();
        verdict
    }

    /// The next of these are about to be applied.
    fn foresee<'a>(&self, kind: Kind, names: impl Iterator<Item = &'a str>) {
        match kind {
            Kind::Address => self.builder.foresee(names),
            Kind::Authorization => {}
        }
    }

    /// Takes out what is no more, if it was there: that somebody asks for what is nobody's is no fault of a server's.
    pub async fn forget(&mut self, names: &[String]) {
        for names in names.chunks(limits::XDS_SLICE) {
            self.give_way().await;
            for name in names {
                if self.builder.forget(name) {
                    self.changed();
                }
            }
        }
    }

    /// Takes out what is no more.
    pub fn remove(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::Address => self.builder.remove(name),
            Kind::Authorization => {
                if !self.builder.remove_policy(name) {
                    tracing::debug!("cannot remove policy {name:?}: it is not there");
                }
            }
        }
        self.changed();
    }

    pub fn publish_at(&self) -> Option<Instant> {
        self.publish_at
    }

    /// Shows the workers what has changed, if anything has.
    pub async fn publish(&mut self) {
        if self.publish_at.is_none() {
            return;
        }
        while self.builder.settle(limits::XDS_SERVICES_SLICE) {
            self.give_way().await;
        }
        self.publish_at = None;
        let now = clock::now();
        let before = self.published_at.replace(now);
        self.is_streaming = before.is_some_and(|at| now < at + limits::SNAPSHOT_INTERVAL * 3 / 2);
        let snapshot = self.builder.build();
        let before = std::mem::replace(&mut self.published, Revisions::of(&snapshot));
        self.retired.push(self.snapshots.publish(snapshot));
        self.retire();
        self.tell(now);
        if before.policies != self.published.policies {
            // Nobody listens when the process is on its way out.
            let _ = self.changes.send(PodChange::MeshChanged);
        }
        self.send_replies();
        let warnings = self.builder.take_warnings();
        for warning in warnings.iter().take(limits::XDS_WARNINGS_MAX) {
            tracing::warn!("{warning}");
        }
        if let Some(more @ 1..) = warnings.len().checked_sub(limits::XDS_WARNINGS_MAX) {
            tracing::warn!("and {more} more warnings about the state of the mesh");
        }
    }

    /// When `tell` may have something to do.
    pub fn tell_at(&self) -> Option<Instant> {
        let told = self.addresses_told_at.filter(|_| self.told != self.published);
        told.map(|at| at + limits::ADDRESSES_TOLD_INTERVAL)
    }

    /// Tells workers of what concerns what they have. Most changes are about workloads of other nodes: they concern nobody
    /// before the next connection, and to wake all workers for them would be the largest part of what they cost.
    pub fn tell(&mut self, now: Instant) {
        if self.told == self.published {
            return;
        }
        if self.told.policies == self.published.policies {
            // Sessions to addresses that changed hands may end a moment later: no new connection takes them.
            if self.tell_at().is_some_and(|at| now < at) {
                return;
            }
            self.addresses_told_at = Some(now);
        }
        self.told = self.published;
        self.orders.send_all(|| Order::Snapshot);
    }

    /// While changes keep coming: before this time there is no use in hearing of more.
    pub fn next_publication(&self) -> Option<Instant> {
        let published = self.published_at.filter(|_| self.is_streaming);
        published.map(|at| at + limits::SNAPSHOT_INTERVAL)
    }

    /// When `retire` may have something to do.
    pub fn retire_at(&self) -> Option<Instant> {
        self.retire_at
    }

    /// Frees what no worker looks at any more.
    pub fn retire(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        let spare = self.retired.len().saturating_sub(limits::SNAPSHOTS_RETIRED_MAX);
        self.retired.drain(..spare);
        self.builder.let_go();
        let waits = !self.retired.is_empty();
        self.retire_at = waits.then(|| clock::now() + limits::SNAPSHOT_INTERVAL);
    }

    fn insert(&mut self, content: Content) -> Result<(), Box<DecodeError>> {
        match content {
            Content::Workload(workload) => self.builder.insert_workload(workload),
            Content::Service(service) => self.builder.insert_service(*service),
            Content::Policy(policy) => self.builder.insert_policy(*policy),
            Content::Refused(error) => return Err(error),
            Content::Undecoded(_) => unreachable!("invariant: of a kind, it is decoded"),
        }
        Ok(())
    }

    fn send_replies(&mut self) {
        for Reply {
            worker,
            question,
            answer,
        } in self.replies.drain(..)
        {
            self.orders.send(worker, Order::Answer { question, answer });
        }
    }

    /// Changes are published at once after a pause, and gathered while they keep coming: not for long if somebody waits
    /// for them, or if they decide about the pods of this node.
    fn changed(&mut self) {
        let is_urgent =
            !self.replies.is_empty() || self.builder.policies_revision() != self.published.policies;
        let interval = if is_urgent {
            limits::SNAPSHOT_INTERVAL_URGENT
        } else {
            limits::SNAPSHOT_INTERVAL
        };
        let now = clock::now();
        let earliest = self.published_at.map_or(now, |at| now.max(at + interval));
        let due = self.publish_at.map_or(earliest, |due| due.min(earliest));
        self.publish_at = Some(due);
    }
}

/// By which workers find out whether they have to look at what they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Revisions {
    /// Grows with the policies, and the workloads of this node.
    policies: u64,
    /// Grows when an address may have another owner.
    addresses: u64,
}

impl Revisions {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            policies: snapshot.policies_revision(),
            addresses: snapshot.addresses_revision(),
        }
    }
}

#[cfg(test)]
mod tests;
