//! What can be measured.

use crate::load::Load;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    pub load: Load,
}

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "rr1",
        what: "1 KiB request/response, 1 connection",
        load: Load::Requests { connections: 1 },
    },
    Scenario {
        name: "rr64",
        what: "1 KiB request/response, 64 connections",
        load: Load::Requests { connections: 64 },
    },
    Scenario {
        name: "connect",
        what: "1 KiB request on a new connection each, 16 clients",
        load: Load::ConnectionPerRequest { clients: 16 },
    },
    Scenario {
        name: "bulk1",
        what: "bulk, 1 stream",
        load: Load::Bulk { streams: 1 },
    },
    Scenario {
        name: "bulk4",
        what: "bulk, 4 streams",
        load: Load::Bulk { streams: 4 },
    },
];

impl Scenario {
    /// The scenario with that name, or all of them for `all`.
    pub fn named(name: &str) -> Option<Vec<Self>> {
        if name == "all" {
            return Some(ALL.to_vec());
        }
        ALL.iter()
            .find(|scenario| scenario.name == name)
            .map(|scenario| vec![*scenario])
    }

    pub fn is_bulk(&self) -> bool {
        matches!(self.load, Load::Bulk { .. })
    }
}

/// Names for an error message.
pub fn names() -> String {
    let names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
    format!("{}, all", names.join(", "))
}
