//! What whoever drives a simulation may ask about its network, and tell it.

use std::time::Duration;

use super::{Blame, Network};
use crate::sys::sim::faults::{Fault, Struck};
use crate::sys::sim::trace::Trace;

impl Network {
    pub fn struck(&self) -> Struck {
        self.lock().struck
    }

    /// Somebody else caused a fault.
    pub fn strike(&self, fault: Fault) {
        self.lock().strike(fault);
    }

    /// The faults so far that a connection may fail of.
    pub fn blames(&self) -> Vec<Blame> {
        self.lock().blames.clone()
    }

    /// The other end of a stream, by number.
    pub fn other_end(&self, endpoint: u32) -> Option<u32> {
        self.lock().node(endpoint).other
    }

    /// Whether the other end of this stream has read this end's end: whatever was said is in the other's hands.
    pub fn is_end_read(&self, endpoint: u32) -> bool {
        let mut state = self.lock();
        let other = state.node(endpoint).other;
        other.is_some_and(|other| state.node(other).end_read)
    }

    /// When bytes were written last at the other end. How long they take from there is not its user's doing.
    pub fn last_written_to(&self, endpoint: u32) -> Duration {
        let mut state = self.lock();
        let other = state.node(endpoint).other;
        other.map_or(Duration::ZERO, |other| state.node(other).written_at)
    }

    /// Whether the other end was closed in an orderly way while this end still sent: a reset took along what this end
    /// had not got by then.
    pub fn is_cut_short(&self, endpoint: u32) -> bool {
        let mut state = self.lock();
        let other = state.node(endpoint).other;
        other.is_some_and(|other| state.node(other).cut_short)
    }

    /// Whether whom this endpoint connected to has taken the connection from its queue.
    pub fn is_accepted(&self, endpoint: u32) -> bool {
        let mut state = self.lock();
        let other = state.node(endpoint).other;
        other.is_some_and(|other| state.node(other).accepted)
    }

    /// Something that must never be. The run is over as soon as somebody looks.
    pub fn report(&self, finding: String) {
        self.lock().findings.push(finding);
    }

    /// The first of them.
    pub fn finding(&self) -> Option<String> {
        self.lock().findings.first().cloned()
    }

    pub fn trace<R>(&self, look: impl FnOnce(&mut Trace, Duration) -> R) -> R {
        let mut state = self.lock();
        let now = state.now;
        look(&mut state.trace, now)
    }
}
