//! Many worlds, on every CPU, and what they found.

use std::any::Any;
use std::cell::RefCell;
use std::fmt::Write;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use uztunnel::planted::Bug;
use uztunnel::sys::sim::faults::{Fault, Struck};

use crate::plan::{self, Plan};
use crate::shrink;
use crate::world::{self, Finding, Report};

/// Findings of a campaign that are told in full; more of them hardly say more.
const TOLD_MAX: usize = 3;
/// From so many worlds on, a fault that never struck is one that is not simulated.
const WORLDS_FOR_A_FAULT: u64 = 2_000;
/// The same for the rarest, which strikes once or twice in a thousand.
const WORLDS_FOR_A_CANCEL_RACE: u64 = 10_000;
/// Lines of a trace that a report shows.
const LINES_SHOWN: usize = 40;

#[derive(Debug, Default)]
pub struct Tally {
    pub worlds: u64,
    pub connections: u64,
    pub events: u64,
    pub struck: Struck,
    pub findings: Vec<(u64, Finding)>,
}

/// Runs one world; a panic is a finding like any other.
pub fn run(plan: &Plan, bug: Option<Bug>, keep_trace: bool) -> Report {
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| world::run(plan, bug, keep_trace)));
    outcome.unwrap_or_else(|panicked| {
        uztunnel::planted::plant(None);
        uztunnel::clock::simulated::set(None);
        Report {
            hash: 0,
            events: 0,
            connections: plan.connections.len(),
            struck: Struck::default(),
            virtual_time: Duration::ZERO,
            finding: Some(Finding::new("panic", place_of_panic(&*panicked))),
            trace: Vec::new(),
            endpoints: Vec::new(),
        }
    })
}

thread_local! {
    static PANICKED: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics of worlds are told by their findings, not as they happen.
pub fn catch_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let is_world = uztunnel::clock::simulated::get().is_some();
        if !is_world {
            return usual(info);
        }
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        PANICKED.with_borrow_mut(|told| *told = format!("{place}: {}", words(info.payload())));
    }));
}

fn place_of_panic(payload: &(dyn Any + Send)) -> String {
    let told = PANICKED.with_borrow_mut(std::mem::take);
    match told.is_empty() {
        true => words(payload),
        false => told,
    }
}

fn words(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without words".to_owned())
}

/// Runs worlds until the seeds or the time are used up.
pub fn many(seeds: Range<u64>, until: Option<Instant>, bug: Option<Bug>) -> Tally {
    let next = AtomicU64::new(seeds.start);
    let tally = Mutex::new(Tally::default());
    let enough = AtomicBool::new(false);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || until.is_some_and(|until| Instant::now() >= until) {
                        return;
                    }
                    let report = run(&Plan::draw(seed), bug, false);
                    let mut tally = tally.lock().expect("no thread panics while it counts");
                    tally.add(seed, report);
                    // A planted bug has been found once it was found; so has a flood of findings.
                    let full = if bug.is_some() { 1 } else { 20 };
                    if tally.findings.len() >= full {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    tally.into_inner().expect("no thread panicked while it counted")
}

impl Tally {
    fn add(&mut self, seed: u64, report: Report) {
        self.worlds += 1;
        self.connections += report.connections as u64;
        self.events += report.events;
        for (fault, count) in report.struck.iter() {
            let sum = self.struck.get(fault) + count;
            self.struck.set(fault, sum);
        }
        if let Some(finding) = report.finding {
            self.findings.push((seed, finding));
        }
    }

    /// Faults that never struck although there were worlds enough.
    pub fn missing(&self) -> Vec<Fault> {
        let enough = |fault| match fault {
            Fault::CancelRace => WORLDS_FOR_A_CANCEL_RACE,
            _ => WORLDS_FOR_A_FAULT,
        };
        Fault::ALL
            .into_iter()
            .filter(|fault| self.worlds >= enough(*fault) && self.struck.get(*fault) == 0)
            .collect()
    }

    pub fn tell(&self, cpu: Duration, bug: Option<Bug>) {
        println!(
            "{} worlds, {} connections, {} events, {} findings; {:.0} connections per CPU second",
            self.worlds,
            self.connections,
            self.events,
            self.findings.len(),
            self.connections as f64 / cpu.as_secs_f64().max(0.001),
        );
        let mut line = String::from("faults that struck (how often where switched on):");
        for (fault, count) in self.struck.iter() {
            let _ = write!(line, " {fault} {count} ({})", plan::rate(fault));
        }
        println!("{line}");
        let mut findings: Vec<_> = self.findings.iter().collect();
        findings.sort_by_key(|(seed, _)| *seed);
        for (seed, finding) in findings.iter().take(TOLD_MAX) {
            tell_finding(*seed, finding, bug);
        }
        for (seed, finding) in findings.iter().skip(TOLD_MAX) {
            println!("also seed {seed}: {}: {}", finding.oracle, finding.what);
        }
        for fault in self.missing() {
            println!("never struck: {fault}");
        }
    }

    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.missing().is_empty()
    }
}

/// A finding with all that helps to understand it.
pub fn tell_finding(seed: u64, finding: &Finding, bug: Option<Bug>) {
    println!("\nseed {seed}: {}: {}", finding.oracle, finding.what);
    let lesser = shrink::shrink(seed, finding, bug);
    let plan = lesser.of(Plan::draw(seed));
    let report = run(&plan, bug, true);
    tell_events(&report);
    let planted = bug.map_or(String::new(), |bug| format!(" --plant {bug:?}"));
    println!(
        "a shorter run that fails ({} connections): cargo xtask sim --seed {seed}{}{planted} --trace",
        plan.connections.len(),
        lesser.arguments(),
    );
}

/// The last events of the connections concerned, and the faults among them.
pub fn tell_events(report: &Report) {
    let concerns =
        |who: u32| who == u32::MAX || report.endpoints.is_empty() || report.endpoints.contains(&who);
    let lines: Vec<&str> = report
        .trace
        .iter()
        .filter(|line| concerns(line.who))
        .map(|line| line.words.as_str())
        .collect();
    for line in lines.iter().skip(lines.len().saturating_sub(LINES_SHOWN)) {
        println!("  {line}");
    }
}

/// CPU time of this process so far.
pub fn cpu_time() -> Duration {
    // Fields 14 and 15 of stat(5) behind the name, in ticks of 10 ms.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: u64 = stat
        .rsplit(')')
        .next()
        .into_iter()
        .flat_map(|rest| rest.split_whitespace().skip(11).take(2))
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
