//! Workload certificates: issued when a worker first asks, renewed at half their life, given to every worker that
//! ever asked.
//!
//! Control thread. `Certificates` is the pure record of who asked for what and what is due when; the loop around
//! it is `control::demands`. Specification: upstream's certificate manager, as far as its clients can see it.
//!
//! Invariants: at most one request per identity is under way; a worker that asked gets an answer, and every later
//! certificate of that identity unasked. The map is bounded by the identities of the node's own pods: a worker
//! asks for no others.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;

use crate::bridge::CertificateError;
use crate::clock::{self, Duration, SystemTime};
use crate::identity::Identity;
use crate::tls::{CertifiedIdentity, FakeCa};

const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(150);

/// Who signs. One for the process.
pub trait Authority: 'static {
    fn issue(&self, identity: Identity) -> impl Future<Output = Result<CertifiedIdentity, CertificateError>>;
}

impl Authority for FakeCa {
    /// Signs at once, on this thread: a fraction of a millisecond.
    async fn issue(&self, identity: Identity) -> Result<CertifiedIdentity, CertificateError> {
        FakeCa::issue(self, &identity, clock::wall())
            .map_err(|error| CertificateError(error.to_string().into()))
    }
}

/// What to do with a demand.
#[derive(Debug, PartialEq)]
pub enum Answer<C> {
    /// Ask the authority.
    Issue,
    /// It has been asked.
    Wait,
    Known(Result<Arc<C>, CertificateError>),
}

/// What the authority issued.
#[derive(Debug)]
pub struct Issued<C> {
    pub certificate: Arc<C>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Who must hear of what.
#[derive(Debug)]
pub struct Delivery<C> {
    pub workers: BTreeSet<usize>,
    pub result: Result<Arc<C>, CertificateError>,
}

/// Who asked for which certificate, and what is due when.
#[derive(Debug)]
pub struct Certificates<C>(HashMap<Identity, Entry<C>>);

impl<C> Certificates<C> {
    pub fn new() -> Self {
        Self(HashMap::new())
    }

    /// A worker needs the certificate of `identity`.
    pub fn demand(&mut self, worker: usize, identity: &Identity) -> Answer<C> {
        if let Some(entry) = self.0.get_mut(identity) {
            entry.workers.insert(worker);
            return match (&entry.held, &entry.stage) {
                (Held::Certificate { certificate, .. }, _) => Answer::Known(Ok(Arc::clone(certificate))),
                (Held::Error(error), _) => Answer::Known(Err(error.clone())),
                (Held::Nothing, _) => Answer::Wait,
            };
        }
        let entry = Entry {
            workers: BTreeSet::from([worker]),
            held: Held::Nothing,
            stage: Stage::Asked,
            retry_delay: RETRY_DELAY_MIN,
        };
        self.0.insert(identity.clone(), entry);
        Answer::Issue
    }

    /// The authority answered. `random` in 0..1 spreads retries by 20 %.
    pub fn issued(
        &mut self,
        identity: &Identity,
        result: Result<Issued<C>, CertificateError>,
        now: SystemTime,
        random: f64,
    ) -> Delivery<C> {
        let entry = self
            .0
            .get_mut(identity)
            .expect("invariant: only what was demanded is asked for");
        match result {
            Ok(Issued {
                certificate,
                not_before,
                not_after,
            }) => {
                entry.stage = Stage::Due(renewal(not_before, not_after, now));
                entry.retry_delay = RETRY_DELAY_MIN;
                entry.held = Held::Certificate {
                    certificate: Arc::clone(&certificate),
                    not_after,
                };
                Delivery {
                    workers: entry.workers.clone(),
                    result: Ok(certificate),
                }
            }
            Err(error) => {
                let delay = entry.retry_delay.mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0));
                entry.retry_delay = (entry.retry_delay * 2).min(RETRY_DELAY_MAX);
                match &entry.held {
                    // The old one still serves, and nobody needs to know.
                    Held::Certificate { not_after, .. } if *not_after > now => {
                        entry.stage = Stage::Due((now + delay).min(*not_after));
                        Delivery {
                            workers: BTreeSet::new(),
                            result: Err(error),
                        }
                    }
                    Held::Certificate { .. } | Held::Error(_) | Held::Nothing => {
                        entry.stage = Stage::Due(now + delay);
                        entry.held = Held::Error(error.clone());
                        Delivery {
                            workers: entry.workers.clone(),
                            result: Err(error),
                        }
                    }
                }
            }
        }
    }

    /// When the next renewal or retry is due.
    pub fn next_due(&self) -> Option<SystemTime> {
        let due = |entry: &Entry<C>| match entry.stage {
            Stage::Due(due) => Some(due),
            Stage::Asked => None,
        };
        self.0.values().filter_map(due).min()
    }

    /// What must be asked for now.
    pub fn take_due(&mut self, now: SystemTime) -> Vec<Identity> {
        let mut identities = Vec::new();
        for (identity, entry) in &mut self.0 {
            match entry.stage {
                Stage::Due(due) if due <= now => {
                    entry.stage = Stage::Asked;
                    identities.push(identity.clone());
                }
                Stage::Due(_) | Stage::Asked => {}
            }
        }
        identities
    }
}

impl<C> Default for Certificates<C> {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct Entry<C> {
    /// Who asked; they get what comes later, too.
    workers: BTreeSet<usize>,
    held: Held<C>,
    stage: Stage,
    retry_delay: Duration,
}

#[derive(Debug)]
enum Held<C> {
    Nothing,
    Certificate {
        certificate: Arc<C>,
        not_after: SystemTime,
    },
    Error(CertificateError),
}

#[derive(Debug)]
enum Stage {
    /// A request is under way.
    Asked,
    /// The next request is due then.
    Due(SystemTime),
}

/// Half way through the validity. A certificate that is older than that already is renewed after a pause, not in
/// a busy loop.
fn renewal(not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> SystemTime {
    let half = match not_after.duration_since(not_before) {
        Ok(life) => not_before + life / 2,
        Err(_) => not_after,
    };
    half.max(now + RETRY_DELAY_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + 1000 * HOUR
    }

    fn identity() -> Identity {
        Identity::new("cluster.local", "shop", "cart")
    }

    fn issued(serial: u32, not_before: SystemTime) -> Result<Issued<u32>, CertificateError> {
        Ok(Issued {
            certificate: Arc::new(serial),
            not_before,
            not_after: not_before + 24 * HOUR,
        })
    }

    fn error(text: &str) -> CertificateError {
        CertificateError(text.into())
    }

    #[test]
    fn one_request_is_made_for_all_who_ask_and_all_hear_of_it() {
        let mut certificates = Certificates::new();
        assert_eq!(certificates.demand(0, &identity()), Answer::Issue);
        assert_eq!(certificates.demand(1, &identity()), Answer::Wait);
        assert_eq!(certificates.demand(0, &identity()), Answer::Wait);
        let Delivery { workers, result } = certificates.issued(&identity(), issued(1, start()), start(), 0.5);
        assert_eq!((workers, result), (BTreeSet::from([0, 1]), Ok(Arc::new(1))));
        assert_eq!(
            certificates.demand(2, &identity()),
            Answer::Known(Ok(Arc::new(1)))
        );
    }

    #[test]
    fn a_certificate_is_renewed_at_half_its_life_and_given_to_all_who_asked_before() {
        let mut certificates = Certificates::new();
        certificates.demand(0, &identity());
        certificates.issued(&identity(), issued(1, start()), start(), 0.5);
        certificates.demand(3, &identity());
        assert_eq!(certificates.next_due(), Some(start() + 12 * HOUR));
        assert!(certificates.take_due(start() + 11 * HOUR).is_empty());
        let now = start() + 12 * HOUR;
        assert_eq!(certificates.take_due(now), [identity()]);
        assert!(certificates.take_due(now).is_empty(), "one request at a time");
        assert_eq!(
            certificates.demand(0, &identity()),
            Answer::Known(Ok(Arc::new(1))),
            "the old one serves"
        );
        let Delivery { workers, .. } = certificates.issued(&identity(), issued(2, now), now, 0.5);
        assert_eq!(workers, BTreeSet::from([0, 3]));
        assert_eq!(
            certificates.demand(0, &identity()),
            Answer::Known(Ok(Arc::new(2)))
        );
    }

    #[test]
    fn a_failure_is_told_at_once_and_retried_at_growing_delays() {
        let mut certificates: Certificates<u32> = Certificates::new();
        certificates.demand(0, &identity());
        let mut now = start();
        for delay_s in [1, 2, 4, 8, 16, 32, 64, 128, 150, 150] {
            let Delivery { workers, result } = certificates.issued(&identity(), Err(error("no")), now, 0.5);
            assert_eq!((workers, result), (BTreeSet::from([0]), Err(error("no"))));
            assert_eq!(
                certificates.demand(0, &identity()),
                Answer::Known(Err(error("no")))
            );
            now += Duration::from_secs(delay_s);
            assert_eq!(certificates.next_due(), Some(now));
            assert_eq!(certificates.take_due(now), [identity()]);
        }
        let Delivery { workers, result } = certificates.issued(&identity(), issued(1, now), now, 0.5);
        assert_eq!((workers, result), (BTreeSet::from([0]), Ok(Arc::new(1))));
    }

    #[test]
    fn a_failed_renewal_keeps_the_old_certificate_until_it_expires() {
        let mut certificates = Certificates::new();
        certificates.demand(0, &identity());
        certificates.issued(&identity(), issued(1, start()), start(), 0.5);
        let now = start() + 24 * HOUR - Duration::from_millis(500);
        certificates.take_due(now);
        let Delivery { workers, .. } = certificates.issued(&identity(), Err(error("no")), now, 0.5);
        assert_eq!(workers, BTreeSet::new());
        assert_eq!(
            certificates.demand(0, &identity()),
            Answer::Known(Ok(Arc::new(1)))
        );
        let expiry = start() + 24 * HOUR;
        assert_eq!(
            certificates.next_due(),
            Some(expiry),
            "the retry is not later than the expiry"
        );
        certificates.take_due(expiry);
        let Delivery { workers, .. } = certificates.issued(&identity(), Err(error("no")), expiry, 0.5);
        assert_eq!(workers, BTreeSet::from([0]));
        assert_eq!(
            certificates.demand(0, &identity()),
            Answer::Known(Err(error("no")))
        );
    }

    #[test]
    fn a_certificate_past_its_half_life_is_not_renewed_in_a_busy_loop() {
        for (not_before, not_after) in [(start(), start() + HOUR), (start() + HOUR, start())] {
            let now = start() + 2 * HOUR;
            assert_eq!(renewal(not_before, not_after, now), now + RETRY_DELAY_MIN);
        }
    }
}
