//! Live connections into a pod are judged again when the policies about it change, or which policies these are.
//!
//! Runs on the worker, after the order that tells of a new snapshot and in slices of later turns. Invariant: once a
//! slice has found nothing left, no connection is alive that the latest snapshot then known would not let in. A
//! connection that is still being set up is its journey's business (`inbound::authorize_and_connect`). Pods about
//! which nothing has changed cost a comparison, their connections nothing.

use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::core::Core;
use super::outcome::Outcome;
use super::pods::{Judged, PodState};
use super::telemetry::Account;
use super::workload::pod_workload;
use crate::bridge::log::Direction;
use crate::clock;
use crate::limits;
use crate::mesh::{ConnectionFacts, Denial, Permit, Snapshot, Workload};
use crate::planted::{Bug, is_planted};
use crate::sys::driver::Driver;

/// How far this worker is.
#[derive(Default)]
pub struct Recheck {
    /// Of the last snapshot whose policies were compared.
    revision: Option<u64>,
    /// Pods whose connections are judged.
    pods: Vec<Rc<PodState>>,
    /// Slots of tunnels, and of pipes, that this pass has yet to look at. What came later is in other slots, or was
    /// judged when it was set up.
    tunnels: Range<usize>,
    pipes: Range<usize>,
    /// Policies changed again during this pass: another one follows. It is not begun anew instead, or a mesh that
    /// changes all the time would never let it end.
    again: bool,
}

impl Recheck {
    fn next(&mut self) -> Option<Slot> {
        let tunnel = self.tunnels.next().map(Slot::Tunnel);
        tunnel.or_else(|| self.pipes.next().map(Slot::Pipe))
    }

    fn is_pass_over(&self) -> bool {
        self.tunnels.is_empty() && self.pipes.is_empty()
    }
}

enum Slot {
    Tunnel(usize),
    Pipe(usize),
}

impl<D: Driver + 'static> Core<D> {
    /// Finds the pods about which policies are others than before.
    pub fn start_recheck(&mut self) {
        let snapshot = self.snapshot.load();
        let revision = Some(snapshot.policies_revision());
        if self.recheck.revision == revision || is_planted(Bug::LiveNotRechecked) {
            return;
        }
        self.recheck.revision = revision;
        let mut is_changed = false;
        for pod in self.pods.iter() {
            let mut judged = pod.judged.borrow_mut();
            // A workload may leave the mesh before its pod does, which is judged as what it was until it ends.
            let was = judged.as_ref().map(|judged| &judged.own);
            let Some(own) = pod_workload(&snapshot, pod).or(was) else {
                continue;
            };
            let policies = snapshot.policy_set(own);
            if judged.as_ref().is_some_and(|judged| judged.policies == policies) {
                continue;
            }
            is_changed = true;
            let own = own.clone();
            *judged = Some(Judged { own, policies });
            if !pod.is_rejudged.replace(true) {
                self.recheck.pods.push(pod.clone());
            }
        }
        if !is_changed {
            return;
        }
        if self.recheck.is_pass_over() {
            self.start_pass();
        } else {
            self.recheck.again = true;
        }
    }

    fn start_pass(&mut self) {
        self.recheck.tunnels = 0..self.tunnels.slots();
        self.recheck.pipes = 0..self.pipes.slots();
    }

    /// Judges for a bounded time; true while there is more to do.
    pub fn continue_recheck(&mut self) -> bool {
        if self.recheck.pods.is_empty() {
            return false;
        }
        let snapshot = self.snapshot.load();
        let until = clock::now() + limits::RECHECK_TURN_TIME;
        for _ in 0..limits::RECHECK_SLOTS_TURN_MAX {
            let Some(slot) = self.recheck.next() else { break };
            if self.recheck_slot(&slot, &snapshot) && clock::now() >= until {
                break;
            }
        }
        if !self.recheck.is_pass_over() {
            return true;
        }
        if std::mem::take(&mut self.recheck.again) {
            self.start_pass();
            return true;
        }
        for pod in self.recheck.pods.drain(..) {
            pod.is_rejudged.set(false);
        }
        false
    }

    /// False when there was nothing to judge in the slot.
    fn recheck_slot(&mut self, slot: &Slot, snapshot: &Snapshot) -> bool {
        let verdict = match slot {
            Slot::Tunnel(index) => self
                .tunnels
                .at(*index)
                .and_then(|(_, tunnel)| judge(snapshot, &tunnel.pod, tunnel.actual, &tunnel.account)),
            Slot::Pipe(index) => self.pipes.at(*index).and_then(|(_, pipe)| {
                let captured = pipe.account.destination_address;
                judge(snapshot, &pipe.pod, captured, &pipe.account)
            }),
        };
        let Some(verdict) = verdict else {
            return false;
        };
        if let Err(denial) = verdict {
            self.end_denied(slot, denial);
        }
        true
    }

    fn end_denied(&mut self, slot: &Slot, denial: Denial) {
        match slot {
            Slot::Tunnel(index) => {
                if let Some((key, tunnel)) = self.tunnels.at(*index) {
                    tell(&tunnel.account, &denial);
                    self.cut_tunnel(key, Outcome::NoLongerAllowed(denial));
                }
            }
            Slot::Pipe(index) => {
                if let Some((key, pipe)) = self.pipes.at(*index) {
                    tell(&pipe.account, &denial);
                    self.cut_pipe(key, Outcome::NoLongerAllowed(denial));
                }
            }
        }
    }
}

/// The pod's first connection is judged as `own` now.
pub fn note_first(pod: &PodState, snapshot: &Snapshot, own: &Arc<Workload>) {
    let mut judged = pod.judged.borrow_mut();
    if judged.is_none() {
        let (own, policies) = (own.clone(), snapshot.policy_set(own));
        *judged = Some(Judged { own, policies });
    }
}

/// `None` when nothing has changed about the pod, and for its own connections to others.
fn judge(
    snapshot: &Snapshot,
    pod: &PodState,
    application: SocketAddr,
    account: &Account,
) -> Option<Result<Permit, Denial>> {
    if account.direction == Direction::Outbound || !pod.is_rejudged.get() {
        return None;
    }
    let judged = pod.judged.borrow();
    let facts = ConnectionFacts {
        source: account.source_address,
        destination: application,
        identity: account.source_identity.as_ref(),
    };
    Some(snapshot.authorize(&judged.as_ref()?.own, &facts))
}

fn tell(account: &Account, denial: &Denial) {
    tracing::info!(
        target: "access",
        id = format_args!("{:032x}", account.connection_id),
        source = %account.source_address,
        destination = %account.destination_address,
        reason = %denial,
        "connection closed because it is no longer allowed after a policy update",
    );
}

#[cfg(test)]
mod tests;
