//! What can be measured.

use std::time::Duration;

use crate::load::Load;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    pub load: Load,
    /// Client pods that run it at once, each with a server pod of its own.
    pub pods: usize,
}

/// Of any scenario.
pub const PODS_MAX: usize = 2;

const RR64: Scenario = Scenario {
    name: "rr64",
    what: "1 KiB request/response, 64 connections",
    load: Load::Requests {
        connections: 64,
        pause: Duration::ZERO,
    },
    pods: 1,
};

const BULK1: Scenario = Scenario {
    name: "bulk1",
    what: "bulk, 1 stream",
    load: Load::Bulk { streams: 1 },
    pods: 1,
};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "rr1",
        what: "1 KiB request/response, 1 connection",
        load: Load::Requests {
            connections: 1,
            pause: Duration::ZERO,
        },
        pods: 1,
    },
    RR64,
    Scenario {
        name: "connect",
        what: "1 KiB request on a new connection each, 16 clients",
        load: Load::ConnectionPerRequest {
            clients: 16,
            pause: Duration::ZERO,
        },
        pods: 1,
    },
    BULK1,
    Scenario {
        name: "bulk4",
        what: "bulk, 4 streams",
        load: Load::Bulk { streams: 4 },
        pods: 1,
    },
];

/// Not among those of `all`: what it costs when two pods of a node are busy, and neither is a storm.
const PAIRS: &[Scenario] = &[
    Scenario {
        name: "rr64-pair",
        what: "1 KiB request/response, 64 connections from each of two pods",
        pods: 2,
        ..RR64
    },
    Scenario {
        name: "bulk1-pair",
        what: "bulk, 1 stream from each of two pods",
        pods: 2,
        ..BULK1
    },
];

impl Scenario {
    /// The scenario with that name, or the usual ones for `all`.
    pub fn named(name: &str) -> Option<Vec<Self>> {
        if name == "all" {
            return Some(ALL.to_vec());
        }
        ALL.iter()
            .chain(PAIRS)
            .find(|scenario| scenario.name == name)
            .map(|scenario| vec![*scenario])
    }

    pub fn is_bulk(&self) -> bool {
        matches!(self.load, Load::Bulk { .. })
    }
}

/// Names for an error message.
pub fn names() -> String {
    let names: Vec<&str> = ALL.iter().chain(PAIRS).map(|scenario| scenario.name).collect();
    format!("{}, all", names.join(", "))
}
