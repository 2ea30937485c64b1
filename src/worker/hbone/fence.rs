//! Sessions to an address that belongs to another workload by now.
//!
//! A session is known by the workload that it was dialled for (`pool::PoolKey`), so that nobody who means the new owner
//! of an address is given it. Runs on the worker, after the order that tells of a new snapshot and in slices of later
//! turns. Invariant: once a slice has found nothing left, no session takes further streams whose address the latest
//! snapshot then known gives to others. Its streams go on: they end where they always did, at the keys of the old peer.

use std::ops::Range;

use super::pool::PoolKey;
use super::session::Role;
use crate::limits;
use crate::mesh::Snapshot;
use crate::sys::driver::Driver;
use crate::worker::core::Core;
use crate::worker::outcome::Outcome;

/// How far this worker is.
#[derive(Default)]
pub struct Fence {
    /// Of the last snapshot whose addresses were looked at.
    revision: u64,
    /// Slots of sessions that this pass has yet to look at. What came later was dialled with a later snapshot, or is
    /// asked about before it is used.
    slots: Range<usize>,
    /// Addresses changed again during this pass: another one follows.
    again: bool,
}

impl<D: Driver + 'static> Core<D> {
    /// Looks at all sessions if addresses may have changed hands.
    pub fn start_fence(&mut self) {
        let revision = self.snapshot.load().addresses_revision();
        if std::mem::replace(&mut self.fence.revision, revision) == revision {
            return;
        }
        if self.fence.slots.is_empty() {
            self.fence.slots = 0..self.sessions.slots();
        } else {
            self.fence.again = true;
        }
    }

    /// Looks at some of them; true while there are more.
    pub fn continue_fence(&mut self) -> bool {
        if self.fence.slots.is_empty() {
            return false;
        }
        let snapshot = self.snapshot.load();
        for _ in 0..limits::FENCE_SLOTS_TURN_MAX {
            let Some(slot) = self.fence.slots.next() else {
                break;
            };
            let Some((key, session)) = self.sessions.at(slot) else {
                continue;
            };
            let Role::Client { key: pool_key } = &session.role else {
                continue;
            };
            if session.retired || !is_taken_over(&snapshot, pool_key) {
                continue;
            }
            tracing::debug!(
                target: "hbone", peer = %session.peer_address, workload = pool_key.workload.as_deref(),
                "session retired: its address belongs to another workload"
            );
            self.retire_session(key);
        }
        if self.fence.slots.is_empty() && std::mem::take(&mut self.fence.again) {
            self.fence.slots = 0..self.sessions.slots();
        }
        !self.fence.slots.is_empty()
    }

    /// # Errors
    /// The address has changed hands since the connection was routed.
    pub fn check_owner(&self, key: &PoolKey) -> Result<(), Outcome> {
        match is_taken_over(&self.snapshot.load(), key) {
            false => Ok(()),
            true => Err(Outcome::SessionClosed(format!(
                "{} belongs to another workload now",
                key.destination
            ))),
        }
    }
}

fn is_taken_over(snapshot: &Snapshot, key: &PoolKey) -> bool {
    let workload = key.workload.as_deref();
    workload.is_some_and(|uid| snapshot.is_taken_over(key.destination.ip(), uid))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::rc::Rc;
    use std::sync::Arc;

    use super::*;
    use crate::identity::Identity;
    use crate::mesh::{Builder, Locale, Workload};
    use crate::runtime::slab::Key;
    use crate::runtime::tasks::Executor;
    use crate::sys::epoll::EpollDriver;
    use crate::worker::fixture;
    use crate::worker::hbone::session::Session;

    const ADDRESS: [u8; 4] = [10, 0, 0, 1];

    fn till(uid: &str) -> Workload {
        let identity = Identity::new("cluster.local", "shop", "till");
        let mut workload = Workload::new(uid, uid, identity);
        workload.addresses = [IpAddr::from(ADDRESS)].into();
        workload
    }

    fn publish(core: &mut Core<EpollDriver>, builder: &mut Builder) {
        core.snapshot.publish(builder.build());
        core.start_fence();
        while core.continue_fence() {}
    }

    /// A session that was dialled for the workload `uid`.
    fn dialled(core: &mut Core<EpollDriver>, uid: &str) -> (Key<Session>, Rc<PoolKey>, fixture::Peer) {
        let pod = fixture::pod();
        let (session, peer) = fixture::session(core, &pod);
        let key = Rc::new(PoolKey {
            pod: pod.pod.uid.clone(),
            identity: Identity::new("cluster.local", "shop", "cart"),
            source: [10, 0, 0, 2].into(),
            destination: (ADDRESS, 15008).into(),
            accepted: Arc::new([]),
            workload: Some(uid.into()),
            through: None,
        });
        core.sessions.get_mut(session).expect("it lives").role = Role::Client { key: key.clone() };
        (session, key, peer)
    }

    #[test]
    fn sessions_to_an_address_that_another_workload_took_over_are_retired_although_its_identity_is_the_same()
    {
        let mut core = fixture::core(&Executor::default());
        let mut builder = Builder::new(Locale::default());
        builder.insert_workload(till("old"));
        publish(&mut core, &mut builder);
        let (session, key, _peer) = dialled(&mut core, "old");
        // Its own changes, and neighbours, are nothing to it.
        let mut sick = till("old");
        sick.canonical_revision = "v2".into();
        builder.insert_workload(sick);
        let mut neighbour = till("neighbour");
        neighbour.addresses = [[10, 0, 0, 9].into()].into();
        builder.insert_workload(neighbour);
        publish(&mut core, &mut builder);
        // Nor is its absence, as long as nobody else is there.
        builder.remove("old");
        publish(&mut core, &mut builder);
        assert!(!core.sessions.get(session).expect("it lives").retired);
        assert!(core.check_owner(&key).is_ok());
        builder.insert_workload(till("new"));
        publish(&mut core, &mut builder);
        assert!(core.sessions.get(session).expect("until the flush").retired);
        let refused = core.check_owner(&key).expect_err("another workload's");
        assert!(refused.is_about_an_endpoint());
        assert_eq!(
            refused.to_string(),
            "h2 failed: session closed: 10.0.0.1:15008 belongs to another workload now"
        );
        // Idle as it is, it ends at once.
        core.flush();
        assert!(core.sessions.get(session).is_none_or(Session::is_closing));
    }

    #[test]
    fn an_address_that_two_workloads_share_keeps_the_sessions_of_both() {
        let mut core = fixture::core(&Executor::default());
        let mut builder = Builder::new(Locale::default());
        builder.insert_workload(till("one"));
        let (session, _, _peer) = dialled(&mut core, "one");
        builder.insert_workload(till("other"));
        publish(&mut core, &mut builder);
        assert!(!core.sessions.get(session).expect("it lives").retired);
    }
}
