//! A failing world made smaller: fewer kinds of faults, fewer connections, the same oracle.

use std::time::{Duration, Instant};

use uztunnel::planted::Bug;
use uztunnel::sys::sim::faults::Fault;

use crate::campaign;
use crate::options::Lesser;
use crate::plan::{ConnectionPlan, Disturbance, Plan};
use crate::world::Finding;

/// How long one finding may be made smaller.
const PATIENCE: Duration = Duration::from_secs(30);

struct Search<'a> {
    seed: u64,
    finding: &'a Finding,
    bug: Option<Bug>,
    until: Instant,
}

pub fn shrink(seed: u64, finding: &Finding, bug: Option<Bug>) -> Lesser {
    let search = Search {
        seed,
        finding,
        bug,
        until: Instant::now() + PATIENCE,
    };
    let mut lesser = Lesser::default();
    let drawn = Plan::draw(seed);
    for fault in Fault::ALL.into_iter().filter(|fault| meets(&drawn, *fault)) {
        let mut tried = lesser.clone();
        tried.without.push(fault);
        if search.still_fails(&tried) {
            lesser = tried;
        }
    }
    let all = drawn
        .connections
        .iter()
        .map(|connection| connection.number)
        .collect();
    lesser.keep = Some(search.fewer_connections(&lesser, all));
    lesser
}

/// Whether the fault may strike in this world at all.
fn meets(plan: &Plan, fault: Fault) -> bool {
    let disturbs = |disturbance: &Disturbance| disturbance.what.fault() == Some(fault);
    let stalls = |connection: &ConnectionPlan| {
        connection.client_script.stall.is_some() || connection.server_script.stall.is_some()
    };
    plan.shape.rates.get(fault) > 0.0
        || plan.disturbances.iter().any(disturbs)
        || (fault == Fault::StalledReader && plan.connections.iter().any(stalls))
}

impl Search<'_> {
    fn still_fails(&self, lesser: &Lesser) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        let plan = lesser.of(Plan::draw(self.seed));
        let found = campaign::run(&plan, self.bug, false).finding;
        found.is_some_and(|found| found.oracle == self.finding.oracle)
    }

    /// Leaves out halves, then quarters, and so on, as long as what is left still fails.
    fn fewer_connections(&self, lesser: &Lesser, mut keep: Vec<usize>) -> Vec<usize> {
        let fails = |keep: Vec<usize>| {
            self.still_fails(&Lesser {
                keep: Some(keep),
                ..lesser.clone()
            })
        };
        let mut part = keep.len().div_ceil(2);
        while part > 0 {
            let mut at = 0;
            while at < keep.len() {
                let mut tried = keep.clone();
                tried.drain(at..(at + part).min(keep.len()));
                if fails(tried.clone()) {
                    keep = tried;
                } else {
                    at += part;
                }
            }
            part = match part {
                1 => 0,
                part => part.div_ceil(2),
            };
        }
        keep
    }
}
