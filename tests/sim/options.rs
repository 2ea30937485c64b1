//! What a run of the simulation is asked for on its command line.

use std::ops::Range;
use std::time::Duration;

use uztunnel::planted::Bug;
use uztunnel::sys::sim::faults::Fault;

use crate::plan::Plan;

pub const USAGE: &str = "\
cargo xtask sim [WHAT] [OPTIONS]

  (nothing)            what CI runs: known seeds, determinism, planted bugs, new seeds
  --seed N             one world
  --seeds N..M         these worlds
  --minutes T          new worlds (those of the day) for so long

  --trace              every event of the world in words (with --seed)
  --keep 3,7           only these connections (with --seed)
  --without a,b        without these kinds of faults (with --seed)
  --plant BUG          with a bug planted (with --seed or --seeds)
  --hunt               how many worlds it takes to find each bug that can be planted
";

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Everything,
    Seed(u64),
    Seeds(Range<u64>),
    For(Duration),
    Hunt,
    /// The hash of these worlds' traces, for a second process to compare.
    Hash(Range<u64>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub what: What,
    pub trace: bool,
    pub plant: Option<Bug>,
    pub lesser: Lesser,
}

/// What is left out of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lesser {
    /// `None`: all connections.
    pub keep: Option<Vec<usize>>,
    pub without: Vec<Fault>,
}

impl Lesser {
    pub fn of(&self, mut plan: Plan) -> Plan {
        if let Some(keep) = &self.keep {
            plan.connections
                .retain(|connection| keep.contains(&connection.number));
        }
        for fault in &self.without {
            plan.shape.rates.set(*fault, 0.0);
            plan.disturbances
                .retain(|disturbance| disturbance.what.fault() != Some(*fault));
            if *fault == Fault::StalledReader {
                for connection in &mut plan.connections {
                    connection.client_script.stall = None;
                    connection.server_script.stall = None;
                }
            }
        }
        plan
    }

    /// As options of the command line.
    pub fn arguments(&self) -> String {
        let mut arguments = String::new();
        if let Some(keep) = &self.keep {
            let keep: Vec<String> = keep.iter().map(ToString::to_string).collect();
            arguments.push_str(&format!(" --keep {}", keep.join(",")));
        }
        if !self.without.is_empty() {
            let without: Vec<&str> = self.without.iter().map(|fault| fault.name()).collect();
            arguments.push_str(&format!(" --without {}", without.join(",")));
        }
        arguments
    }
}

impl Options {
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            what: What::Everything,
            trace: false,
            plant: None,
            lesser: Lesser::default(),
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{argument}: a value is missing"))
            };
            match argument.as_str() {
                "--seed" => options.what = What::Seed(number(&value()?)?),
                "--seeds" => options.what = What::Seeds(range(&value()?)?),
                "--hash" => options.what = What::Hash(range(&value()?)?),
                "--minutes" => options.what = What::For(Duration::from_secs(60 * number(&value()?)?)),
                "--hunt" => options.what = What::Hunt,
                "--trace" => options.trace = true,
                "--keep" => {
                    let keep = value()?;
                    let numbers = keep
                        .split(',')
                        .map(|part| number(part).map(|number| number as usize));
                    options.lesser.keep = Some(numbers.collect::<Result<_, _>>()?);
                }
                "--without" => {
                    options.lesser.without = value()?.split(',').map(fault).collect::<Result<_, _>>()?;
                }
                "--plant" => options.plant = Some(bug(&value()?)?),
                other => return Err(format!("{other}: not an option of the simulation")),
            }
        }
        Ok(options)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text}: expected a number"))
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text
        .split_once("..")
        .ok_or_else(|| format!("{text}: expected N..M"))?;
    Ok(number(from)?..number(to)?)
}

fn fault(name: &str) -> Result<Fault, String> {
    Fault::ALL
        .into_iter()
        .find(|fault| fault.name() == name)
        .ok_or_else(|| {
            let names: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
            format!("{name}: no such fault; there are {}", names.join(", "))
        })
}

fn bug(name: &str) -> Result<Bug, String> {
    Bug::ALL
        .into_iter()
        .find(|bug| format!("{bug:?}") == name)
        .ok_or_else(|| format!("{name}: no such bug; there are {:?}", Bug::ALL))
}
