//! Which pods the node agent wants served, and which are: for the admin dump and for metrics.
//!
//! Written by the ZDS client on the control thread, read by whoever shows it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bridge::{PodInfo, PodUid};

/// The list. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<Listed>>);

/// What the list says at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    pub up: BTreeMap<PodUid, PodInfo>,
    /// Their start failed and is tried again.
    pub pending: BTreeMap<PodUid, PodInfo>,
    /// Since the process began.
    pub started: u64,
    pub stopped: u64,
}

impl Roster {
    pub fn started(&self, uid: PodUid, info: PodInfo) {
        self.change(|listed| {
            listed.up.insert(uid, info);
            listed.started += 1;
        });
    }

    pub fn stopped(&self, uid: &PodUid) {
        self.change(|listed| {
            if listed.up.remove(uid).is_some() {
                listed.stopped += 1;
            }
        });
    }

    /// Replaces what is pending.
    pub fn set_pending<'a>(&self, pending: impl Iterator<Item = (&'a PodUid, &'a PodInfo)>) {
        let mut pending = pending.peekable();
        self.change(|listed| {
            if listed.pending.is_empty() && pending.peek().is_none() {
                return;
            }
            listed.pending = pending.map(|(uid, info)| (uid.clone(), info.clone())).collect();
        });
    }

    pub fn listed(&self) -> Listed {
        self.change(|listed| listed.clone())
    }

    /// Looks without copying.
    pub fn look<R>(&self, look: impl FnOnce(&Listed) -> R) -> R {
        self.change(|listed| look(listed))
    }

    /// Maps survive a panic of whoever held the lock: no operation leaves them half changed.
    fn change<R>(&self, change: impl FnOnce(&mut Listed) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
