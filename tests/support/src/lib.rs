//! The rig: a whole mesh on one machine. Nodes and pods are network namespaces, applications are threads
//! inside them, the CNI agent is a socket of ours, and the proxies are real processes.
//!
//! Tests (`tests/journeys`), the demo (`cargo xtask demo`) and the measurements (`perf/`) all stand on it.
//! It runs as root, sends traffic only between namespaces that it made itself, and leaves nothing behind: a
//! `World` takes its namespaces and processes down when dropped, and a guardian process does the same when
//! the owner dies in any other way (see `guardian`).
//!
//! | type | made by | ends |
//! |---|---|---|
//! | `World` | `Blueprint::build` | drop: proxies, applications, namespaces, files |
//! | `Namespace` | `World` | drop deletes the name |
//! | `Agent` | `World`, one per node | drop closes the socket |
//! | `Istiod` | `Istiod::start`, `World::build` where the blueprint wants it | drop closes the port and every connection |
//! | `Cluster` | `Cluster::start` | drop kills its programs by their ids |
//! | `Proxy` | `World::start_proxy` | drop kills the process by its id |
//! | `Ca` | `Ca::start` | drop closes its connections |
//! | `HboneServer`, `Gateway` | their `start` | drop ends its task and its connections |
//! | `NameServer` | `NameServer::start` | drop ends its thread |
//! | `Capture` | `Node::capture` | `Capture::stop` gives the report |

#![deny(unsafe_code)]

pub mod addresses;
pub mod agent;
pub mod applications;
pub mod authority;
pub mod blueprint;
pub mod ca;
pub mod capture;
pub mod cluster;
pub mod gateway;
pub mod guardian;
pub mod hbone;
pub mod http;
pub mod istiod;
pub mod logs;
pub mod mesh_file;
pub mod name_server;
pub mod namespace;
pub mod pattern;
pub mod process;
pub mod proxy;
pub mod reassembly;
pub mod redirect;
#[allow(unsafe_code)]
pub mod sys;
pub mod tls_records;
pub mod topology;
pub mod world;
pub mod zds;

pub use addresses::Family;
pub use agent::Agent;
pub use authority::Authority;
pub use blueprint::{Blueprint, ControlPlane, Membership, PodSpec, ServiceSpec};
pub use ca::Ca;
pub use capture::{Capture, CaptureReport};
pub use cluster::Cluster;
pub use gateway::Gateway;
pub use hbone::HboneServer;
pub use istiod::Istiod;
pub use namespace::Namespace;
pub use proxy::{Backend, Proxy, ProxyOptions};
pub use redirect::Redirect;
pub use world::{Node, Pod, World};

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Also what a thread that panicked had locked: its test fails, and tells more than the lock could.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a wait for something that should happen at once may take before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A failure of the rig itself (not of what it tests): what was attempted, and what the machine said.
#[derive(Debug)]
pub struct RigError {
    operation: String,
    cause: String,
}

impl RigError {
    pub fn new(operation: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self {
            operation: operation.into(),
            cause: cause.to_string(),
        }
    }
}

impl std::fmt::Display for RigError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.operation, self.cause)
    }
}

impl std::error::Error for RigError {}

pub type Result<T> = std::result::Result<T, RigError>;

/// Waits until `condition` gives a value, asking every few milliseconds. Panics after `PATIENCE`.
#[track_caller]
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
