//! Workload certificates: asked for as soon as a pod of the identity is announced, renewed before half their life
//! is over, given to every worker that ever asked, and forgotten with the identity's last pod.
//!
//! Control thread. `Certificates` is the pure record of who needs what, and of what is to be asked for next; the
//! loop around it is `control::demands`. Specification: section 2.4 of the control-plane contract.
//!
//! Invariants: at most one request per identity is under way, and at most `limits::CERTIFICATE_REQUESTS_MAX` in
//! all; a worker that asked gets an answer, and every later certificate of that identity unasked; a certificate
//! that is still valid is not lost by a failure to renew it; whatever is due comes when it was to come, also when the
//! clock is set back meanwhile. The record is bounded by the pods of the node: nothing is asked for on behalf of others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;

use crate::bridge::{CertificateError, PodUid};
use crate::clock::{self, Duration, SystemTime};
use crate::control::spread;
use crate::identity::Identity;
use crate::limits;
use crate::tls::{CertifiedIdentity, FakeCa};

const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(150);

/// By how much of their life certificates are renewed earlier than at its half, at most: those that were issued
/// together must not come back together for ever.
const RENEWAL_SPREAD: f64 = 0.1;

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

/// What pods of one kind may be, in whatever trust domain the mesh puts them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Account {
    pub namespace: String,
    pub name: String,
}

impl Account {
    fn of(identity: &Identity) -> Self {
        Self {
            namespace: identity.namespace().to_owned(),
            name: identity.service_account().to_owned(),
        }
    }
}

/// What to do with a demand.
#[derive(Debug, PartialEq)]
pub enum Answer<C> {
    /// It comes as a `Delivery`.
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

impl<C> Issued<C> {
    /// Where clocks disagree by more than its life, asking for another one helps as little as it does after a failure.
    fn unless_over(self, now: SystemTime) -> Result<Self, CertificateError> {
        match now.duration_since(self.not_after) {
            Ok(since) => {
                let since_s = since.as_secs();
                let error = format!("the CA's certificate expired {since_s} s ago by the clock of this node");
                Err(CertificateError(error.into()))
            }
            Err(_) => Ok(self),
        }
    }
}

/// What is known of one identity's certificate.
#[derive(Debug)]
pub enum Standing<C> {
    Available(Arc<C>),
    /// Asked for, or about to be.
    Initializing,
    Unavailable(CertificateError),
}

/// Who must hear of what.
#[derive(Debug)]
pub struct Delivery<C> {
    pub workers: BTreeSet<usize>,
    pub result: Result<Arc<C>, CertificateError>,
    /// When the authority is asked again.
    pub due: SystemTime,
    /// Why what the authority said is no use.
    pub failure: Option<CertificateError>,
}

/// An identity that no pod of the node has any more, and the workers that hold its certificate.
#[derive(Debug, PartialEq, Eq)]
pub struct Forgotten {
    pub identity: Identity,
    pub workers: BTreeSet<usize>,
}

/// Who needs which certificate, and what is due when.
#[derive(Debug)]
pub struct Certificates<C> {
    pods: HashMap<PodUid, Account>,
    /// Accounts that some pod has.
    needed: HashMap<Account, Need>,
    entries: HashMap<Identity, Entry<C>>,
    /// To be asked for now: the most urgent first, then who came first.
    queue: BTreeSet<(Urgency, u64, Identity)>,
    /// To be asked for later.
    due: BTreeSet<(SystemTime, Identity)>,
    /// With the authority. May hold what was forgotten meanwhile.
    under_way: HashSet<Identity>,
    /// Numbers places in the queue.
    places: u64,
    /// The places of renewals because of doubts: `limits::CERTIFICATE_DOUBT_INTERVAL` from each to the next at least.
    doubts: BTreeSet<SystemTime>,
    /// What the clock showed last.
    seen_at: SystemTime,
}

impl<C> Certificates<C> {
    pub fn new() -> Self {
        Self {
            pods: HashMap::new(),
            needed: HashMap::new(),
            entries: HashMap::new(),
            queue: BTreeSet::new(),
            due: BTreeSet::new(),
            under_way: HashSet::new(),
            places: 0,
            doubts: BTreeSet::new(),
            seen_at: SystemTime::UNIX_EPOCH,
        }
    }

    /// A pod is served from now on. `identity` is prefetched; it is missing as long as the mesh does not know the
    /// pod's workload, and the first connection asks then.
    pub fn pod_started(
        &mut self,
        uid: PodUid,
        account: Account,
        identity: Option<&Identity>,
    ) -> Vec<Forgotten> {
        self.needed.entry(account.clone()).or_default().pods += 1;
        let forgotten = match self.pods.insert(uid, account) {
            Some(previous) => self.release(&previous),
            None => Vec::new(),
        };
        if let Some(identity) = identity {
            self.prefetch(identity);
        }
        forgotten
    }

    /// The mesh knows now what a pod is that was announced before.
    pub fn prefetch(&mut self, identity: &Identity) {
        if self.is_needed(identity) {
            self.ensure(identity, Urgency::Prefetch);
        }
    }

    /// A pod is gone, and with the last of its account what the workers hold for it.
    pub fn pod_stopped(&mut self, uid: &PodUid) -> Vec<Forgotten> {
        match self.pods.remove(uid) {
            Some(account) => self.release(&account),
            None => Vec::new(),
        }
    }

    /// A connection on a worker needs the certificate of `identity`.
    pub fn demand(&mut self, worker: usize, identity: &Identity, now: SystemTime) -> Answer<C> {
        if !self.is_needed(identity) {
            // The connection's pod has just left.
            return Answer::Known(Err(CertificateError::no_longer_needed()));
        }
        let entry = self.ensure(identity, Urgency::Connection);
        entry.workers.insert(worker);
        match &entry.held {
            Held::Certificate {
                certificate,
                not_after,
            } if *not_after > now => return Answer::Known(Ok(Arc::clone(certificate))),
            Held::Error(error) => return Answer::Known(Err(error.clone())),
            Held::Certificate { .. } | Held::Nothing => {}
        }
        entry.waiting.insert(worker);
        self.hasten(identity, Urgency::Connection);
        Answer::Wait
    }

    /// A peer of this identity did not trust us, or we did not trust the peer: the CA may have other roots by now, which
    /// come with a new certificate. Anybody may make handshakes fail, so that this costs the CA little: once for each
    /// certificate and not before it has some age, and one in `limits::CERTIFICATE_DOUBT_INTERVAL` in all. `random` in
    /// 0..1 spreads the nodes of a mesh. True if the certificate is renewed earlier for it.
    pub fn doubt(&mut self, identity: &Identity, now: SystemTime, random: f64) -> bool {
        self.follow(now);
        let interval = limits::CERTIFICATE_DOUBT_INTERVAL;
        self.doubts.retain(|place| *place + interval > now);
        if self.doubts.len() >= limits::CERTIFICATE_DOUBTS_MAX {
            return false;
        }
        let Some(entry) = self.entries.get_mut(identity) else {
            return false;
        };
        let (Held::Certificate { not_after, .. }, Stage::Due(due)) = (&entry.held, entry.stage) else {
            return false;
        };
        if std::mem::replace(&mut entry.doubted, true) {
            return false;
        }
        let life = not_after.duration_since(entry.taken_at).unwrap_or_default();
        let age = limits::CERTIFICATE_DOUBT_AGE.min(life / 10);
        let place = free_place(&self.doubts, (entry.taken_at + age).max(now));
        let wanted = place + age.mul_f64(limits::CERTIFICATE_DOUBT_SPREAD * random.clamp(0.0, 1.0));
        if wanted >= due {
            return false;
        }
        self.doubts.insert(place);
        entry.stage = Stage::Due(wanted);
        self.due.remove(&(due, identity.clone()));
        self.due.insert((wanted, identity.clone()));
        true
    }

    /// What to ask the authority for next; the caller asks, and brings the answer to `issued`.
    pub fn next_request(&mut self, now: SystemTime) -> Option<Identity> {
        self.follow(now);
        while let Some((due, _)) = self.due.first()
            && *due <= now
        {
            let (_, identity) = self.due.pop_first().expect("invariant: there is a first one");
            let urgency = match self.entries[&identity].held {
                Held::Certificate { not_after, .. } if not_after > now => Urgency::Renewal,
                Held::Certificate { .. } | Held::Error(_) | Held::Nothing => Urgency::Prefetch,
            };
            self.enqueue(&identity, urgency);
        }
        if self.under_way.len() >= limits::CERTIFICATE_REQUESTS_MAX {
            return None;
        }
        let (_, _, identity) = self.queue.pop_first()?;
        let entry = self.entries.get_mut(&identity);
        entry.expect("invariant: only entries are queued").stage = Stage::Asked;
        self.under_way.insert(identity.clone());
        Some(identity)
    }

    /// The authority answered. `random` in 0..1 spreads retries and renewals. `None`: nobody needs it any more.
    pub fn issued(
        &mut self,
        identity: &Identity,
        result: Result<Issued<C>, CertificateError>,
        now: SystemTime,
        random: f64,
    ) -> Option<Delivery<C>> {
        self.follow(now);
        let was_under_way = self.under_way.remove(identity);
        debug_assert!(was_under_way, "one answer for each request");
        let entry = self.entries.get_mut(identity)?;
        let delivery = entry.take(result, now, random.clamp(0.0, 1.0));
        entry.stage = Stage::Due(delivery.due);
        self.due.insert((delivery.due, identity.clone()));
        Some(delivery)
    }

    /// Everything that is recorded, by identity.
    pub fn listing(&self, now: SystemTime) -> BTreeMap<Identity, Standing<C>> {
        let standing = |entry: &Entry<C>| match &entry.held {
            Held::Certificate {
                certificate,
                not_after,
            } if *not_after > now => Standing::Available(Arc::clone(certificate)),
            // It expired while its renewal was late.
            Held::Certificate { .. } | Held::Nothing => Standing::Initializing,
            Held::Error(error) => Standing::Unavailable(error.clone()),
        };
        let entries = self.entries.iter();
        entries
            .map(|(identity, entry)| (identity.clone(), standing(entry)))
            .collect()
    }

    /// When the next renewal or retry is due.
    pub fn next_due(&self) -> Option<SystemTime> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Somebody may set the clock back, by years if it was wrong. What waits is brought forward by as much: it was to
    /// wait for so long, and not for the clock to show that time again. Renewals, too: they were placed by a clock that
    /// was wrong, or is now.
    fn follow(&mut self, now: SystemTime) {
        let set_back = self.seen_at.duration_since(now).unwrap_or_default();
        self.seen_at = now;
        if set_back.is_zero() {
            return;
        }
        let doubts = std::mem::take(&mut self.doubts).into_iter();
        self.doubts = doubts.map(|place| place - set_back).collect();
        for entry in self.entries.values_mut() {
            entry.taken_at -= set_back;
            if let Stage::Due(due) = &mut entry.stage {
                *due -= set_back;
            }
        }
        let waiting = std::mem::take(&mut self.due).into_iter();
        self.due = waiting
            .map(|(due, identity)| (due - set_back, identity))
            .collect();
    }

    fn is_needed(&self, identity: &Identity) -> bool {
        self.needed.contains_key(&Account::of(identity))
    }

    /// The entry of an identity that some pod has.
    fn ensure(&mut self, identity: &Identity, urgency: Urgency) -> &mut Entry<C> {
        if !self.entries.contains_key(identity) {
            let entry = Entry {
                workers: BTreeSet::new(),
                waiting: BTreeSet::new(),
                held: Held::Nothing,
                stage: Stage::Asked,
                retry_delay: RETRY_DELAY_MIN,
                taken_at: SystemTime::UNIX_EPOCH,
                doubted: false,
            };
            self.entries.insert(identity.clone(), entry);
            if let Some(need) = self.needed.get_mut(&Account::of(identity)) {
                need.identities.insert(identity.clone());
            }
            // What was forgotten while its request was under way takes that answer.
            if !self.under_way.contains(identity) {
                self.enqueue(identity, urgency);
            }
        }
        self.entries.get_mut(identity).expect("invariant: just made")
    }

    /// One pod of the account less.
    fn release(&mut self, account: &Account) -> Vec<Forgotten> {
        let need = self.needed.get_mut(account);
        let need = need.expect("invariant: the account of every pod is needed");
        need.pods -= 1;
        if need.pods > 0 {
            return Vec::new();
        }
        let identities = self.needed.remove(account).unwrap_or_default().identities;
        identities
            .into_iter()
            .filter_map(|identity| self.forget(identity))
            .collect()
    }

    fn forget(&mut self, identity: Identity) -> Option<Forgotten> {
        let entry = self.entries.remove(&identity)?;
        self.leave_lists(&identity, &entry.stage);
        Some(Forgotten {
            identity,
            workers: entry.workers,
        })
    }

    /// Asks at once, and before the less urgent ones.
    fn hasten(&mut self, identity: &Identity, urgency: Urgency) {
        let stage = match self.entries.get(identity) {
            Some(entry) => entry.stage,
            None => return,
        };
        let is_better = match stage {
            Stage::Queued(queued, _) => urgency < queued,
            Stage::Due(_) => true,
            Stage::Asked => false,
        };
        if is_better {
            self.leave_lists(identity, &stage);
            self.enqueue(identity, urgency);
        }
    }

    fn enqueue(&mut self, identity: &Identity, urgency: Urgency) {
        let place = self.places;
        self.places += 1;
        let entry = self.entries.get_mut(identity);
        entry.expect("invariant: only entries are queued").stage = Stage::Queued(urgency, place);
        self.queue.insert((urgency, place, identity.clone()));
    }

    fn leave_lists(&mut self, identity: &Identity, stage: &Stage) {
        match *stage {
            Stage::Queued(urgency, place) => self.queue.remove(&(urgency, place, identity.clone())),
            Stage::Due(due) => self.due.remove(&(due, identity.clone())),
            Stage::Asked => false,
        };
    }
}

impl<C> Default for Certificates<C> {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug, Default)]
struct Need {
    pods: usize,
    /// What is recorded for them: one, unless the mesh changed its mind.
    identities: BTreeSet<Identity>,
}

/// In this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// A connection waits.
    Connection,
    /// There is no certificate.
    Prefetch,
    /// There is one.
    Renewal,
}

#[derive(Debug)]
struct Entry<C> {
    /// Who asked; they get what comes later, too.
    workers: BTreeSet<usize>,
    /// Those of them that were told to wait, and have been told nothing since.
    waiting: BTreeSet<usize>,
    held: Held<C>,
    stage: Stage,
    retry_delay: Duration,
    /// When the certificate that is held came.
    taken_at: SystemTime,
    /// Somebody doubted it.
    doubted: bool,
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

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Waits for its turn, at this place.
    Queued(Urgency, u64),
    /// A request is under way.
    Asked,
    /// The next request is due then.
    Due(SystemTime),
}

impl<C> Entry<C> {
    fn take(
        &mut self,
        result: Result<Issued<C>, CertificateError>,
        now: SystemTime,
        random: f64,
    ) -> Delivery<C> {
        let waiting = std::mem::take(&mut self.waiting);
        match result.and_then(|issued| issued.unless_over(now)) {
            Ok(Issued {
                certificate,
                not_before,
                not_after,
            }) => {
                self.retry_delay = RETRY_DELAY_MIN;
                self.taken_at = now;
                self.doubted = false;
                self.held = Held::Certificate {
                    certificate: Arc::clone(&certificate),
                    not_after,
                };
                Delivery {
                    workers: self.workers.clone(),
                    result: Ok(certificate),
                    due: renewal(not_before, not_after, now, random),
                    failure: None,
                }
            }
            Err(error) => {
                let delay = spread(self.retry_delay, random);
                self.retry_delay = (self.retry_delay * 2).min(RETRY_DELAY_MAX);
                match &self.held {
                    // The old one still serves, or does so again: the clock was ahead. Others need not know.
                    Held::Certificate {
                        certificate,
                        not_after,
                    } if *not_after > now => Delivery {
                        workers: waiting,
                        result: Ok(Arc::clone(certificate)),
                        due: (now + delay).min(*not_after),
                        failure: Some(error),
                    },
                    Held::Certificate { .. } | Held::Error(_) | Held::Nothing => {
                        self.held = Held::Error(error.clone());
                        Delivery {
                            workers: self.workers.clone(),
                            result: Err(error.clone()),
                            due: now + delay,
                            failure: Some(error),
                        }
                    }
                }
            }
        }
    }
}

/// The first place from `earliest` on that keeps its distance to those that are `taken`.
fn free_place(taken: &BTreeSet<SystemTime>, earliest: SystemTime) -> SystemTime {
    let mut free = earliest;
    for place in taken {
        if *place >= free + limits::CERTIFICATE_DOUBT_INTERVAL {
            break;
        }
        free = free.max(*place + limits::CERTIFICATE_DOUBT_INTERVAL);
    }
    free
}

/// Before half of the validity is over, by a random part of `RENEWAL_SPREAD`. A certificate that is older than that
/// already, because clocks disagree or its life is short, is renewed half way through what is left of it, and after
/// a pause: never in a busy loop.
fn renewal(not_before: SystemTime, not_after: SystemTime, now: SystemTime, random: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let wanted = not_before + life.mul_f64(0.5 - RENEWAL_SPREAD * random);
    let pause = spread(RETRY_DELAY_MIN, random);
    if wanted >= now + pause && !life.is_zero() {
        return wanted;
    }
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(0.5 - RENEWAL_SPREAD * random).max(pause)
}

#[cfg(test)]
mod tests;
