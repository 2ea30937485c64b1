//! Endpoints in trouble: those that refused, or let somebody wait, since they last did what they were asked.
//!
//! Connections with a choice avoid them; one at a time finds out whether an endpoint is back, at intervals that grow,
//! and the first success ends that. Owned by the worker. The pool keeps the troubles of its sessions' destinations;
//! here are those of endpoints that are called without one. Invariants: whoever has no choice still tries; what is
//! remembered is bounded, and forgotten when nobody asks any more.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::core::{Core, TimerEvent};
use crate::bridge::orders::PodUid;
use crate::limits;
use crate::sys::driver::Driver;

#[derive(Debug)]
pub struct Trouble {
    /// Until then those who have a choice go elsewhere.
    avoided_until: Instant,
    /// Times that it was found like that.
    times: u32,
    /// One connection is finding out whether it still is.
    is_tried: bool,
}

impl Trouble {
    pub fn new(now: Instant) -> Self {
        Self {
            avoided_until: now,
            times: 0,
            is_tried: false,
        }
    }

    /// It is there, again or still. Counts once for all who find out at the same time.
    pub fn found(&mut self, now: Instant, random: &mut fastrand::Rng) {
        if std::mem::take(&mut self.is_tried) || self.avoided_until <= now {
            let pause = limits::AVOIDED_MIN * (1 << self.times.min(10));
            self.avoided_until = now + jittered(pause.min(limits::AVOIDED_MAX), random);
            self.times += 1;
        }
    }

    /// Whether a connection with a choice should rather go elsewhere. Once the time for that is over, one that
    /// `may_find_out` is told no, and does so for the others.
    pub fn is_avoided(&mut self, now: Instant, may_find_out: bool) -> bool {
        if now < self.avoided_until || !may_find_out {
            return true;
        }
        self.is_tried = true;
        // If nothing is heard of that one, another one tries.
        self.avoided_until = now + limits::ENDPOINT_PATIENCE + limits::AVOIDED_MIN;
        false
    }

    /// Whether nobody needs to know of it any more: it was not asked again although it could have been.
    pub fn is_over(&self, now: Instant) -> bool {
        self.avoided_until + limits::AVOIDED_MAX <= now
    }
}

/// From three quarters to five quarters of `pause`: workers that lost a destination at the same moment do not all ask
/// for it again at the same moment.
pub fn jittered(pause: Duration, random: &mut fastrand::Rng) -> Duration {
    pause * random.u32(750..=1250) / 1000
}

/// An endpoint that is called without a tunnel, and by which pod: another one may have another way to it.
pub type PlainKey = (PodUid, SocketAddr);

/// The troubles of a worker's destinations.
#[derive(Default)]
pub struct Troubles {
    plain: HashMap<PlainKey, Trouble>,
    /// A timer runs that forgets troubles; without it there are none, of plain endpoints or of the pool's.
    is_sweeping: bool,
}

impl Troubles {
    /// Whether there may be any.
    pub fn are_there(&self) -> bool {
        self.is_sweeping
    }

    /// Plain endpoints in trouble.
    pub fn len(&self) -> usize {
        self.plain.len()
    }

    pub fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }
}

impl<D: Driver + 'static> Core<D> {
    /// The endpoint refuses, or lets somebody wait who has a choice. Beyond the bound the newest are not remembered.
    pub fn plain_is_in_trouble(&mut self, key: PlainKey) {
        let is_full = self.troubles.plain.len() >= limits::TROUBLES_PLAIN_MAX;
        if is_full && !self.troubles.plain.contains_key(&key) {
            return;
        }
        let trouble = self.troubles.plain.entry(key);
        trouble
            .or_insert_with(|| Trouble::new(self.now))
            .found(self.now, &mut self.random);
        self.start_sweeping();
    }

    /// It took a connection.
    pub fn plain_is_well(&mut self, key: &PlainKey) {
        if self.troubles.are_there() {
            self.troubles.plain.remove(key);
        }
    }

    /// As `Trouble::is_avoided`.
    pub fn plain_is_avoided(&mut self, key: &PlainKey, may_find_out: bool) -> bool {
        let now = self.now;
        let trouble = self.troubles.plain.get_mut(key);
        trouble.is_some_and(|trouble| trouble.is_avoided(now, may_find_out))
    }

    pub(super) fn start_sweeping(&mut self) {
        if !std::mem::replace(&mut self.troubles.is_sweeping, true) {
            self.timers
                .start(self.now + limits::AVOIDED_MAX, TimerEvent::Sweep);
        }
    }

    /// Forgets troubles whose time is over. Looks again as long as there are others.
    pub(super) fn sweep_troubles(&mut self) {
        let now = self.now;
        self.troubles.plain.retain(|_, trouble| !trouble.is_over(now));
        self.troubles.is_sweeping = false;
        if self.sweep_pool() || !self.troubles.plain.is_empty() {
            self.start_sweeping();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tasks::Executor;
    use crate::worker::fixture;

    fn key(octet: u8) -> PlainKey {
        (PodUid::new("pod-1"), ([10, 0, 0, octet], 80).into())
    }

    #[test]
    fn an_endpoint_in_trouble_is_avoided_for_longer_and_longer_until_it_answers() {
        let mut core = fixture::core(&Executor::default());
        let [dead, other] = [1, 2].map(key);
        let mut pause = limits::AVOIDED_MIN;
        for _ in 0..8 {
            // However many find out at once, it counts once.
            for _ in 0..10 {
                core.plain_is_in_trouble(dead.clone());
            }
            assert!(!core.plain_is_avoided(&other, true));
            core.now += pause * 7 / 10;
            assert!(core.plain_is_avoided(&dead, true));
            core.now += pause * 6 / 10;
            // One finds out for the others, unless it was unlucky already.
            assert!(core.plain_is_avoided(&dead, false));
            assert!(!core.plain_is_avoided(&dead, true));
            assert!(core.plain_is_avoided(&dead, true));
            core.now += limits::ENDPOINT_PATIENCE;
            pause = (pause * 2).min(limits::AVOIDED_MAX);
        }
        core.plain_is_in_trouble(dead.clone());
        assert!(core.plain_is_avoided(&dead, true));
        core.plain_is_well(&dead);
        assert!(!core.plain_is_avoided(&dead, true));
    }

    #[test]
    fn another_pod_may_have_another_way_to_the_endpoint() {
        let mut core = fixture::core(&Executor::default());
        core.plain_is_in_trouble(key(1));
        assert!(!core.plain_is_avoided(&(PodUid::new("pod-2"), key(1).1), true));
    }

    #[test]
    fn plain_troubles_have_a_bound_and_are_forgotten() {
        let mut core = fixture::core(&Executor::default());
        let keys = (0..).map(|number: u16| (PodUid::new("pod-1"), ([10, 0, 0, 1], number).into()));
        for key in keys.take(limits::TROUBLES_PLAIN_MAX + 1) {
            core.plain_is_in_trouble(key);
        }
        assert_eq!(core.troubles.len(), limits::TROUBLES_PLAIN_MAX);
        for _ in 0..4 {
            fixture::pass(&mut core, limits::AVOIDED_MAX);
        }
        assert!(core.troubles.is_empty() && !core.troubles.are_there());
    }
}
