//! What goes wrong on a simulated network, how often, and how often it did.
//!
//! Owned by the network. A rate is a chance at each occasion of its kind; a fault that never found an occasion
//! shows as a count of zero, which the runner of a campaign takes for a failure of its own.

use std::fmt;

/// Kinds of faults that the network and the driver cause themselves. Those that need more than a socket (a policy
/// that changes, a pod that goes) are caused by whoever drives the simulation, and counted here as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A connect to a listener that is there is refused.
    ConnectRefused,
    /// A connect is never answered.
    ConnectUnanswered,
    /// A SYN meets a full queue and is sent again a second later.
    QueueFull,
    /// A stream breaks between two of its bytes: both ends see a reset.
    Reset,
    /// A receive finds no block free.
    NoBuffer,
    /// No descriptor is left: accept or socket fails.
    NoDescriptors,
    /// A cancelled receive brings bytes all the same.
    CancelRace,
    /// An application stops reading for a while.
    StalledReader,
    /// The wall clock jumps.
    ClockJump,
    /// A worker takes its time.
    SlowWorker,
    /// A certificate is not renewed in time.
    ExpiredCertificate,
    /// Policies change.
    PolicyChange,
    PodRemoved,
    ProxyKilled,
    ProxyDrained,
    /// A session is told to go away.
    GoAway,
    /// A stream is reset by a proxy.
    StreamReset,
    /// A key is updated long before its time.
    KeyUpdate,
}

impl Fault {
    pub const ALL: [Self; 18] = [
        Self::ConnectRefused,
        Self::ConnectUnanswered,
        Self::QueueFull,
        Self::Reset,
        Self::NoBuffer,
        Self::NoDescriptors,
        Self::CancelRace,
        Self::StalledReader,
        Self::ClockJump,
        Self::SlowWorker,
        Self::ExpiredCertificate,
        Self::PolicyChange,
        Self::PodRemoved,
        Self::ProxyKilled,
        Self::ProxyDrained,
        Self::GoAway,
        Self::StreamReset,
        Self::KeyUpdate,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect-refused",
            Self::ConnectUnanswered => "connect-unanswered",
            Self::QueueFull => "queue-full",
            Self::Reset => "reset",
            Self::NoBuffer => "no-buffer",
            Self::NoDescriptors => "no-descriptors",
            Self::CancelRace => "cancel-race",
            Self::StalledReader => "stalled-reader",
            Self::ClockJump => "clock-jump",
            Self::SlowWorker => "slow-worker",
            Self::ExpiredCertificate => "expired-certificate",
            Self::PolicyChange => "policy-change",
            Self::PodRemoved => "pod-removed",
            Self::ProxyKilled => "proxy-killed",
            Self::ProxyDrained => "proxy-drained",
            Self::GoAway => "go-away",
            Self::StreamReset => "stream-reset",
            Self::KeyUpdate => "key-update",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One number for each kind of fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerFault<T>([T; Fault::ALL.len()]);

impl<T: Copy + Default> Default for PerFault<T> {
    fn default() -> Self {
        Self([T::default(); Fault::ALL.len()])
    }
}

impl<T: Copy> PerFault<T> {
    pub fn get(&self, fault: Fault) -> T {
        self.0[fault.index()]
    }

    pub fn set(&mut self, fault: Fault, value: T) {
        self.0[fault.index()] = value;
    }

    pub fn iter(&self) -> impl Iterator<Item = (Fault, T)> {
        Fault::ALL.into_iter().map(|fault| (fault, self.get(fault)))
    }
}

/// Chances, each between 0 and 1, at each occasion.
pub type Rates = PerFault<f64>;

/// How often each fault struck.
pub type Struck = PerFault<u64>;
