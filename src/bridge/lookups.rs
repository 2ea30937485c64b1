//! What workers ask for that their snapshot does not hold, and what they are told.
//!
//! A worker asks once for each question, however many connections wait, and each connection has a deadline of its own
//! (`worker::lookups`). Whoever else resolves names for a pod may ask in the same way.

use std::net::IpAddr;
use std::sync::Arc;

use crate::mesh::GatewayTarget;

/// A question to the control thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Question {
    /// Whatever the mesh has under this address or name: with `XDS_ON_DEMAND`, the control plane is asked.
    Mesh(GatewayTarget),
    /// The addresses of a host name, as the node's name servers tell them.
    Host(Arc<str>),
}

/// Of a host name: its addresses, of either family, in no order. Of anything else none: whatever there is to know of it,
/// and that may be nothing, is in the published snapshot.
pub type LookupAnswer = Result<Arc<[IpAddr]>, LookupError>;

/// Why it stays unknown what is asked for. A connection is refused then: it must not be passed on in plain text
/// because of an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("the control plane has not said within {seconds} s what {name} is (XDS_ON_DEMAND)")]
    NoAnswer { name: Arc<str>, seconds: u64 },
    #[error("what the control plane says about {name} cannot be used (XDS_ON_DEMAND)")]
    Refused { name: Arc<str> },
    /// Of a host name.
    #[error("{reason}")]
    Host { reason: Arc<str> },
    #[error(
        "too many lookups at once: {limit} are allowed for all pods, fewer for one the less room is left"
    )]
    TooMany { limit: usize },
}
