//! An operation that the kernel has: for whom, what kind, and everything it refers to.
//!
//! Invariant: an operation, and the memory in it, exists until its last completion. Closing a socket turns
//! the target of its operations, so that what completes later can only be released, never delivered.

use socket2::SockAddr;

use super::sending::Sending;
use super::slots::Key;

pub(super) struct Operation {
    pub target: Target,
    pub work: Work,
}

/// Who is told of the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Socket(Key),
    /// A socket that was closed; it waits for its operations.
    Closing(Key),
    /// The driver's own.
    Driver,
}

pub(super) enum Work {
    /// Edges of the wake-up descriptor, multishot.
    Wake,
    Cancel,
    /// Multishot where the kernel has it.
    Accept,
    /// Waits until a listener has a connection; on kernels without multishot accept.
    AcceptReady,
    /// The address is read by the kernel until completion.
    Connect(#[expect(dead_code, reason = "read by the kernel")] Box<SockAddr>),
    /// One receive into a block of the class.
    Receive(Class),
    /// Receives into blocks of the class until told to stop.
    ReceiveStream(Class),
    /// Waits until there is something to receive.
    ReceiveReady,
    Send(Sending),
}

/// What a completion that is not the last one can belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeating {
    Wake,
    Accept,
    ReceiveStream(Class),
}

impl Work {
    pub fn repeating(&self) -> Option<Repeating> {
        match self {
            Self::Wake => Some(Repeating::Wake),
            Self::Accept => Some(Repeating::Accept),
            Self::ReceiveStream(class) => Some(Repeating::ReceiveStream(*class)),
            Self::Cancel
            | Self::AcceptReady
            | Self::Connect(_)
            | Self::Receive(_)
            | Self::ReceiveReady
            | Self::Send(_) => None,
        }
    }
}

/// Sizes of receive blocks. A socket gets small ones until it shows that more comes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Small,
    Large,
}

impl Class {
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    pub fn index(self) -> usize {
        match self {
            Self::Small => 0,
            Self::Large => 1,
        }
    }
}
