//! What a change of a large mesh costs the control thread without gRPC, TLS and wakes: responses of a control plane are
//! decoded, applied and published in this process, with no proxy and no network.
//!
//! As in a proxy, changes come some at a time, with a pause in between. How much of them the caches still have then is up to
//! whatever else runs on the machine, and on its host. Beside that stands what they cost without a pause.

use std::fmt::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uztunnel::bridge::{Orders, SnapshotCell};
use uztunnel::clock;
use uztunnel::control::pods::{self, PodChanges};
use uztunnel::control::xds::envelope::Malformed;
use uztunnel::control::xds::messages::discovery::Node;
use uztunnel::control::xds::protocol::{Kind, Protocol};
use uztunnel::control::xds::state::State;
use uztunnel::mesh::{Builder, Locale, Snapshot};
use uztunnel_rig::istiod::{self, ADDRESS, Crowd, Resource};

use crate::report::{median, spread};

const CROWD: Crowd = Crowd {
    workloads: 100_000,
    services: 5_000,
};
/// What comes between two publications, as of a thousand changes a second.
const RESPONSES: usize = 10;
const BATCH: u32 = 10;
/// Publications that are measured, of each kind.
const CYCLES: usize = 150;
const PAUSE: Duration = Duration::from_millis(20);

/// Endpoints become unhealthy and healthy again, are removed and come back.
pub struct Unrest {
    crowd: Crowd,
    batch: u32,
    number: u32,
    round: u32,
    removed: Vec<u32>,
}

/// What one response says.
pub enum Change {
    Updated(Vec<Resource>),
    Removed(Vec<String>),
}

/// The state of a control thread.
struct Control {
    state: State,
    protocol: Protocol,
    _changes: PodChanges,
}

/// Time of one publication and what led to it, in its parts.
#[derive(Default)]
struct Spent {
    decoding: Duration,
    applying: Duration,
    publishing: Duration,
}

impl Unrest {
    pub fn new(crowd: Crowd, batch: u32) -> Self {
        Self {
            crowd,
            batch,
            number: 0,
            round: 0,
            removed: Vec::new(),
        }
    }

    /// A prime step: changes are spread over all services.
    fn next_number(&mut self) -> u32 {
        self.number = (self.number + 7919) % self.crowd.workloads;
        self.number
    }
}

impl Iterator for Unrest {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        let (round, crowd) = (self.round, self.crowd);
        self.round += 1;
        let version = u64::from(round) + 2;
        if round % 8 == 0 && !self.removed.is_empty() {
            let back = self.removed.drain(..);
            let back = back.map(|number| crowd.workload(number, true, version));
            return Some(Change::Updated(back.collect()));
        }
        let numbers: Vec<u32> = (0..self.batch).map(|_| self.next_number()).collect();
        if round % 8 == 7 {
            let names = numbers.iter().map(|number| crowd.uid(*number)).collect();
            self.removed = numbers;
            return Some(Change::Removed(names));
        }
        let changed = numbers.into_iter();
        let changed = changed.map(|number| crowd.workload(number, round % 2 == 0, version));
        Some(Change::Updated(changed.collect()))
    }
}

impl Change {
    fn encoded(self) -> Bytes {
        match self {
            Self::Updated(resources) => istiod::encoded(ADDRESS, &resources, Vec::new()),
            Self::Removed(names) => istiod::encoded(ADDRESS, &[], names),
        }
    }
}

impl Control {
    fn new() -> Self {
        let (changes, receiver) = pods::changes();
        let locale = Locale {
            node: Some("a-node".into()),
            ..Locale::default()
        };
        let snapshots = SnapshotCell::new(Snapshot::empty(Locale::default()));
        let orders = Orders::new(Vec::new());
        Self {
            state: State::new(Builder::new(locale), snapshots, orders, changes),
            protocol: Protocol::new(Node::default()),
            _changes: receiver,
        }
    }

    async fn serve(&mut self, responses: Vec<Bytes>) -> Result<Spent, Malformed> {
        let mut spent = Spent::default();
        for response in responses {
            let begun = Instant::now();
            let response = self.state.read(response)?;
            spent.decoding += begun.elapsed();
            let begun = Instant::now();
            let verdict = self.state.apply(Kind::Address, response).await;
            let answer = self.protocol.answer(ADDRESS, "n", verdict, clock::now());
            spent.applying += begun.elapsed();
            drop(answer);
        }
        let begun = Instant::now();
        self.state.publish().await;
        spent.publishing = begun.elapsed();
        Ok(spent)
    }
}

impl Spent {
    fn all(&self) -> Duration {
        self.decoding + self.applying + self.publishing
    }
}

/// A table of what loading and changes cost, the latter with and without pauses.
pub fn run() -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let mut control = Control::new();
    let mut serve = |responses| {
        let served = runtime.block_on(control.serve(responses));
        served.map_err(|error| error.to_string())
    };
    let load = serve(vec![istiod::encoded(ADDRESS, &CROWD.resources(), Vec::new())])?;
    let mut unrest = Unrest::new(CROWD, BATCH).map(Change::encoded);
    let mut out = format!(
        "### {} workloads in {} services, loaded in {:.0} ms; then {RESPONSES} responses of {BATCH} changes at a time\n\n\
         | changes come | us a change (spread) | decoding | applying | publishing |\n|---|---|---|---|---|\n",
        CROWD.workloads,
        CROWD.services,
        load.all().as_secs_f64() * 1e3,
    );
    let pause = format!("after pauses of {} ms", PAUSE.as_millis());
    for (name, pause) in [(&*pause, PAUSE), ("one after the other", Duration::ZERO)] {
        let mut cycles = Vec::new();
        for _ in 0..CYCLES {
            let responses = unrest.by_ref().take(RESPONSES).collect();
            std::thread::sleep(pause);
            cycles.push(serve(responses)?);
        }
        let us = |part: fn(&Spent) -> Duration| -> Vec<f64> {
            let changes = RESPONSES as f64 * f64::from(BATCH);
            let each = cycles.iter().map(|it| part(it).as_secs_f64() * 1e6);
            each.map(|us| us / changes).collect()
        };
        let all = us(Spent::all);
        writeln!(
            out,
            "| {name} | {:.2} ({}) | {:.2} | {:.2} | {:.2} |",
            median(&all),
            spread(&all, 2),
            median(&us(|it| it.decoding)),
            median(&us(|it| it.applying)),
            median(&us(|it| it.publishing)),
        )
        .expect("invariant: writing to a string cannot fail");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_comes_back_and_nothing_changes_twice_before_all_has_changed() {
        let crowd = Crowd {
            workloads: 1_000,
            services: 50,
        };
        let mut seen = std::collections::HashSet::new();
        let mut gone = Vec::new();
        for change in Unrest::new(crowd, 10).take(80) {
            match change {
                Change::Removed(names) => gone = names,
                Change::Updated(resources) if !gone.is_empty() => {
                    let back: Vec<String> = resources.into_iter().map(|it| it.name).collect();
                    assert_eq!(back, std::mem::take(&mut gone));
                }
                Change::Updated(resources) => {
                    assert_eq!(resources.len(), 10);
                    assert!(resources.into_iter().all(|it| seen.insert(it.name)));
                }
            }
        }
        assert!(seen.len() > 500, "{}", seen.len());
    }

    #[test]
    fn a_thousand_changes_are_served() {
        let crowd = Crowd {
            workloads: 1_000,
            services: 50,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let mut control = Control::new();
        let load = istiod::encoded(ADDRESS, &crowd.resources(), Vec::new());
        runtime.block_on(control.serve(vec![load])).expect("served");
        assert_eq!(control.protocol.held(Kind::Address), 1_050);
        let mut unrest = Unrest::new(crowd, 10).map(Change::encoded);
        for _ in 0..10 {
            let responses = unrest.by_ref().take(RESPONSES).collect();
            runtime.block_on(control.serve(responses)).expect("served");
        }
        // The last of a hundred responses removed nothing.
        assert_eq!(control.protocol.held(Kind::Address), 1_050);
    }
}
