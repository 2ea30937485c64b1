//! The worker's HBONE sessions by destination: finds one with room, or has one dialled.
//!
//! One dial per key at a time. A session goes to as many of those who wait as it has room for, and is followed by
//! another dial for the others; a failure goes to all of them and is remembered briefly, so that a dead destination
//! fails its waiters at once instead of one after the other. Where there is a choice, a destination in trouble (it
//! failed a dial, or let somebody wait) is avoided: one connection at a time finds out whether it is back, at
//! intervals that grow, and the first success ends that.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::dial;
use super::inside::{self, Errand};
use super::session::Session;
use crate::bridge::orders::PodUid;
use crate::identity::Identity;
use crate::limits;
use crate::runtime::oneshot;
use crate::runtime::slab::Key;
use crate::sys::driver::Driver;
use crate::worker::core::Core;
use crate::worker::outcome::Outcome;
use crate::worker::pods::PodState;
use crate::worker::shell::{Elapsed, Shell};
use crate::worker::trouble::{Trouble, jittered};

/// What must be equal for two streams to share a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// In whose namespace the session's socket lives.
    pub pod: PodUid,
    pub identity: Identity,
    /// The application's address: the peer authorizes by it.
    pub source: IpAddr,
    pub destination: SocketAddr,
    /// Any of these the peer must prove to be.
    pub accepted: Arc<[Identity]>,
    /// The destination's workload uid: an address that is taken over by another workload gets other sessions.
    pub workload: Option<Arc<str>>,
    /// Set for a session inside of another one.
    pub through: Option<Rc<Through>>,
}

/// What else must be equal where sessions are inside of others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Through {
    /// Of the session to the gateway.
    pub gateway: Rc<PoolKey>,
    /// What the gateway is asked for.
    pub authority: String,
}

#[derive(Default)]
pub struct Pool {
    entries: HashMap<Rc<PoolKey>, Entry>,
}

#[derive(Default)]
struct Entry {
    sessions: Vec<Key<Session>>,
    dialing: bool,
    /// The last dial's session was retired before anybody had it.
    was_overtaken: bool,
    waiting: Vec<oneshot::Sender<Dialled>>,
    trouble: Option<DialTrouble>,
}

/// What went wrong with a destination since it last did what it was asked.
struct DialTrouble {
    /// A dial failed: until then nobody dials, and everybody is told why.
    failed: Option<(Instant, Rc<Outcome>)>,
    trouble: Trouble,
}

impl DialTrouble {
    fn is_over(&self, now: Instant) -> bool {
        let failed = self.failed.as_ref().is_some_and(|(until, _)| now < *until);
        !failed && self.trouble.is_over(now)
    }
}

/// The result of a dial, shared by all who waited for it.
pub type Dialled = Result<Key<Session>, Rc<Outcome>>;

enum Step {
    Use(Key<Session>),
    Fail(Rc<Outcome>),
    Wait {
        result: oneshot::Receiver<Dialled>,
        dial: bool,
    },
}

impl Pool {
    /// Keys that have a session, a dial or a remembered failure.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The session takes no further streams.
    pub fn forget(&mut self, key: &Rc<PoolKey>, session: Key<Session>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.sessions.retain(|known| *known != session);
        if entry.sessions.is_empty() && !entry.dialing && entry.trouble.is_none() {
            self.entries.remove(key);
        }
    }
}

impl<D: Driver + 'static> Core<D> {
    fn find_session(&mut self, key: &Rc<PoolKey>) -> Step {
        let now = self.now;
        let entry = self.pool.entries.entry(key.clone()).or_default();
        let streams_max = self.settings.session_streams_max;
        let free = entry
            .sessions
            .iter()
            .filter_map(|found| {
                let session = self.sessions.get(*found)?;
                let streams = session.users.len();
                let usable = !session.retired && session.http2.can_open() && streams < streams_max;
                usable.then_some((streams, *found))
            })
            .min_by_key(|(streams, _)| *streams);
        if let Some((_, session)) = free {
            return Step::Use(session);
        }
        let failed = entry.trouble.as_ref().and_then(|trouble| trouble.failed.as_ref());
        if let Some((until, outcome)) = failed
            && now < *until
        {
            return Step::Fail(outcome.clone());
        }
        let (sender, result) = oneshot::channel();
        entry.waiting.push(sender);
        let dial = !std::mem::replace(&mut entry.dialing, true);
        Step::Wait { result, dial }
    }

    /// Whether to dial again: more wait than the session has room for, or it was overtaken.
    fn dialled(&mut self, key: &Rc<PoolKey>, result: Dialled) -> bool {
        let Some(entry) = self.pool.entries.get_mut(key) else {
            return false;
        };
        // What retires sessions did so to this one as it was made: its gateway went away, its certificate was renewed.
        let is_overtaken = |session: &Key<Session>| {
            let found = self.sessions.get(*session);
            found.is_some_and(|session| session.retired && !session.is_closing())
        };
        let overtaken = result.as_ref().is_ok_and(is_overtaken);
        if !std::mem::replace(&mut entry.was_overtaken, overtaken) && overtaken {
            return true;
        }
        // A session that ended between its handshake and this task's turn was forgotten before it was known:
        // in the list it would stay for ever, and whoever waits would dial it again at once.
        let lives = |session: &Key<Session>| {
            let found = self.sessions.get(*session);
            found.is_some_and(|session| !session.retired)
        };
        let result = result.and_then(|session| match lives(&session) {
            true => Ok(session),
            false => Err(Rc::new(Outcome::SessionClosed(
                "the peer ended it at once".to_owned(),
            ))),
        });
        let room = match &result {
            Ok(session) => {
                entry.sessions.push(*session);
                entry.trouble = None;
                let streams_max = self.settings.session_streams_max;
                let peers_max = self
                    .sessions
                    .get(*session)
                    .map_or(0, |found| found.http2.streams_max());
                // Somebody has to find out that a peer takes none at all.
                streams_max.min(peers_max as usize).max(1)
            }
            Err(outcome) => {
                let until = self.now + jittered(limits::DIAL_FAILURE_KEPT, &mut self.random);
                let trouble = entry.get_into_trouble(self.now, &mut self.random);
                trouble.failed = Some((until, outcome.clone()));
                usize::MAX
            }
        };
        let in_trouble = entry.trouble.is_some();
        let mut told = 0;
        for waiter in std::mem::take(&mut entry.waiting) {
            if told < room {
                // A task that gave up meanwhile does not want it.
                told += usize::from(waiter.send(result.clone()).is_ok());
            } else if !waiter.is_abandoned() {
                entry.waiting.push(waiter);
            }
        }
        entry.dialing = !entry.waiting.is_empty();
        let dials_again = entry.dialing;
        if in_trouble {
            self.start_sweeping();
        }
        dials_again
    }

    /// The destination lets somebody wait who has a choice.
    pub fn pool_is_slow(&mut self, key: &Rc<PoolKey>) {
        let entry = self.pool.entries.entry(key.clone()).or_default();
        entry.get_into_trouble(self.now, &mut self.random);
        self.start_sweeping();
    }

    /// The destination answered.
    pub fn pool_is_well(&mut self, key: &PoolKey) {
        if self.troubles.are_there()
            && let Some(entry) = self.pool.entries.get_mut(key)
        {
            entry.trouble = None;
        }
    }

    /// Whether a connection with a choice should rather go elsewhere. Once the time for that is over, one that
    /// `may_find_out` is told no, and does so for the others.
    pub fn pool_avoids(&mut self, key: &PoolKey, may_find_out: bool) -> bool {
        let Some(entry) = self.pool.entries.get_mut(key) else {
            return false;
        };
        let is_dialled = entry.dialing;
        let found = entry.trouble.as_mut();
        found.is_some_and(|found| is_dialled || found.trouble.is_avoided(self.now, may_find_out))
    }

    /// Forgets troubles whose time is over. Whether there are others.
    pub(in crate::worker) fn sweep_pool(&mut self) -> bool {
        let now = self.now;
        self.pool.entries.retain(|_, entry| {
            entry.trouble.take_if(|trouble| trouble.is_over(now));
            entry.dialing || entry.trouble.is_some() || !entry.sessions.is_empty()
        });
        self.pool.entries.values().any(|entry| entry.trouble.is_some())
    }
}

impl Entry {
    fn get_into_trouble(&mut self, now: Instant, random: &mut fastrand::Rng) -> &mut DialTrouble {
        let found = self.trouble.get_or_insert_with(|| DialTrouble {
            failed: None,
            trouble: Trouble::new(now),
        });
        found.trouble.found(now, random);
        found
    }
}

/// A session on which a stream can be opened now.
pub async fn session<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    key: &Rc<PoolKey>,
    errand: Option<&Rc<Errand>>,
) -> Dialled {
    let until = shell.with(|core| core.now) + limits::SESSION_WAIT;
    // Others may take the room first, or the peer may have less than it was thought to have.
    for _ in 0..limits::POOL_ROUNDS_MAX {
        match shell.with(|core| core.find_session(key)) {
            Step::Use(session) => return Ok(session),
            Step::Fail(outcome) => return Err(outcome),
            Step::Wait { result, dial } => {
                if dial {
                    shell.with(|core| core.tenants.note(&pod.tenant, limits::HANDSHAKE_COST));
                    let (shell, pod, key) = (shell.clone(), pod.clone(), key.clone());
                    let errand = errand.cloned();
                    shell.clone().spawn_in(pod.tenant.lane(), async move {
                        loop {
                            let dialled = match (&key.through, &errand) {
                                (Some(through), Some(errand)) => {
                                    let dialling = inside::dial(&shell, &pod, &key, through, errand);
                                    pod.while_present(dialling).await
                                }
                                _ => pod.while_present(dial::dial(&shell, &pod, &key)).await,
                            };
                            let result = dialled.and_then(|result| result).map_err(Rc::new);
                            if !shell.with(|core| core.dialled(&key, result)) {
                                return;
                            }
                        }
                    });
                }
                let left = shell.with(|core| until.saturating_duration_since(core.now));
                match shell.within(left, result).await {
                    // A dial takes a while, and its peer proves an identity, not which workload of that identity it is.
                    Ok(Some(Ok(_))) => shell.with(|core| core.check_owner(key)).map_err(Rc::new)?,
                    Ok(Some(Err(outcome))) => return Err(outcome),
                    Ok(None) => return Err(Rc::new(Outcome::Drained)),
                    Err(Elapsed) => {
                        return Err(Rc::new(Outcome::Deadline {
                            peer: key.destination,
                            what: "offer a session with a free stream",
                            limit: limits::SESSION_WAIT,
                        }));
                    }
                }
            }
        }
    }
    let limit = limits::POOL_ROUNDS_MAX;
    Err(Rc::new(Outcome::Overloaded {
        what: "rounds of dialling for a free stream",
        limit,
    }))
}

#[cfg(test)]
mod tests;
