//! Which events are logged: `RUST_LOG` at first, then what the admin server is told.
//!
//! Kept by the control thread; every thread that logs looks at what was made of it, under a lock that only a change
//! takes for writing. Specification: section 6 of the observability contract, section 4 of the admin contract.

use std::cell::RefCell;
use std::fmt;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;

use crate::control::admin::LogFilter;
use crate::limits;

const OWN_CRATE: &str = "uztunnel";

/// Always in front, as upstream has it: the DNS library's server reports every odd query.
const QUIET: (&str, LevelFilter) = ("hickory_server::server", LevelFilter::OFF);

/// Clauses `[target=]level`, each target once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clauses {
    targets: Vec<(String, LevelFilter)>,
    /// For all other targets; without it they are silent.
    default: Option<LevelFilter>,
}

impl Clauses {
    /// `info` when nothing is said.
    ///
    /// # Errors
    /// The clause that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut clauses = Self {
            targets: vec![(QUIET.0.to_owned(), QUIET.1)],
            default: None,
        };
        let text = if text.trim().is_empty() { "info" } else { text };
        clauses.add(text)?;
        Ok(clauses)
    }

    /// Adds clauses, separated by commas. A target that is there already gets another level.
    fn add(&mut self, list: &str) -> Result<(), String> {
        for clause in list.split(',').map(str::trim).filter(|clause| !clause.is_empty()) {
            let (target, level) = split(clause).ok_or_else(|| clause.to_owned())?;
            match target {
                None => self.default = Some(level),
                Some(target) => {
                    self.targets.retain(|(known, _)| *known != target);
                    self.targets.push((target, level));
                }
            }
        }
        if self.targets.len() > limits::LOG_CLAUSES_MAX {
            return Err(format!("more than {} targets", limits::LOG_CLAUSES_MAX));
        }
        // The most specific first, which is how they are printed.
        self.targets
            .sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.filter().map(|_| ())
    }

    /// What the library makes of them. It has the last word on targets.
    pub fn filter(&self) -> Result<EnvFilter, String> {
        let text = self.to_string();
        EnvFilter::try_new(&text).map_err(|_| text)
    }
}

impl fmt::Display for Clauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (target, level) in &self.targets {
            write!(f, "{separator}{target}={level}")?;
            separator = ",";
        }
        match self.default {
            Some(level) => write!(f, "{separator}{level}"),
            None => Ok(()),
        }
    }
}

/// A clause's target and level. Targets of upstream's crate mean ours, so that a setting written for it goes on
/// working; a colon between target and level is what `istioctl` advertises.
fn split(clause: &str) -> Option<(Option<String>, LevelFilter)> {
    if let Ok(level) = clause.parse() {
        return Some((None, level));
    }
    let (target, level) = clause.rsplit_once('=').or_else(|| {
        let (target, level) = clause.rsplit_once(':')?;
        // `a::b` is a target without a level.
        (!target.ends_with(':')).then_some((target, level))
    })?;
    if target.is_empty() {
        return None;
    }
    let ours = match target.strip_prefix("ztunnel") {
        Some(rest) if rest.is_empty() || rest.starts_with("::") || rest.starts_with('[') => {
            format!("{OWN_CRATE}{rest}")
        }
        Some(_) | None => target.to_owned(),
    };
    Some((Some(ours), level.parse().ok()?))
}

/// The filter that can be changed while it is in use.
pub struct Filter {
    at_start: Clauses,
    current: RefCell<Clauses>,
    in_use: reload::Handle<EnvFilter, Registry>,
}

impl Filter {
    /// `in_use` has `at_start` in force.
    pub fn new(at_start: Clauses, in_use: reload::Handle<EnvFilter, Registry>) -> Self {
        Self {
            current: RefCell::new(at_start.clone()),
            at_start,
            in_use,
        }
    }
}

impl LogFilter for Filter {
    fn text(&self) -> String {
        self.current.borrow().to_string()
    }

    fn change(&self, reset: bool, list: &str) -> Result<(), String> {
        let mut clauses = if reset {
            self.at_start.clone()
        } else {
            self.current.borrow().clone()
        };
        clauses.add(list)?;
        if clauses == *self.current.borrow() {
            return Ok(());
        }
        let filter = clauses.filter()?;
        // Fails only when the subscriber is gone, and with it whoever could see the difference.
        self.in_use.reload(filter).map_err(|error| error.to_string())?;
        self.current.replace(clauses);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn filter(text: &str) -> (Filter, impl tracing::Subscriber + Send + Sync) {
        let clauses = Clauses::parse(text).expect("a valid filter");
        let (layer, handle) = reload::Layer::new(clauses.filter().expect("valid"));
        (Filter::new(clauses, handle), Registry::default().with(layer))
    }

    #[test]
    fn the_filter_is_printed_with_the_most_specific_targets_first_and_the_default_last() {
        let (filter, _subscriber) = filter("info");
        assert_eq!(filter.text(), "hickory_server::server=off,info");
        filter.change(false, "access=debug,info").expect("valid");
        assert_eq!(filter.text(), "hickory_server::server=off,access=debug,info");
        filter.change(false, "access:warn,error,b=trace").expect("valid");
        assert_eq!(
            filter.text(),
            "hickory_server::server=off,access=warn,b=trace,error"
        );
        filter.change(false, "").expect("nothing to do");
        assert_eq!(
            filter.text(),
            "hickory_server::server=off,access=warn,b=trace,error"
        );
        filter.change(true, "ztunnel::xds=debug").expect("valid");
        assert_eq!(
            filter.text(),
            "hickory_server::server=off,uztunnel::xds=debug,info"
        );
        filter.change(true, "").expect("valid");
        assert_eq!(filter.text(), "hickory_server::server=off,info");
    }

    #[test]
    fn a_change_is_in_force_at_once_and_a_bad_list_changes_nothing() {
        let (filter, subscriber) = filter("warn,access=debug");
        tracing::subscriber::with_default(subscriber, || {
            let shown = || {
                (
                    tracing::enabled!(target: "access", tracing::Level::DEBUG),
                    tracing::enabled!(target: "uztunnel::worker", tracing::Level::DEBUG),
                )
            };
            assert_eq!(shown(), (true, false));
            filter.change(false, "debug,access=info").expect("valid");
            assert_eq!(shown(), (false, true));
            for bad in ["loud", "debug,access=loud", "=debug", "uztunnel::worker", "a b"] {
                let clause = filter.change(false, bad).expect_err(bad);
                assert_eq!(bad.rsplit(',').next(), Some(&*clause));
            }
            assert_eq!(shown(), (false, true));
            filter.change(true, "").expect("valid");
            assert_eq!(shown(), (true, false));
        });
    }
}
