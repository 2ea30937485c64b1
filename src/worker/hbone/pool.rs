//! The worker's HBONE sessions by destination: finds one with room, or has one dialled.
//!
//! One dial per key at a time. A session goes to as many of those who wait as it has room for, and is followed by
//! another dial for the others; a failure goes to all of them and is remembered briefly, so that a dead destination
//! fails its waiters at once instead of one after the other.

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
use crate::worker::core::{Core, TimerEvent};
use crate::worker::outcome::Outcome;
use crate::worker::pods::PodState;
use crate::worker::shell::Shell;

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
    /// A timer runs that forgets failures.
    sweeping: bool,
}

#[derive(Default)]
struct Entry {
    sessions: Vec<Key<Session>>,
    dialing: bool,
    waiting: Vec<oneshot::Sender<Dialled>>,
    failed: Option<(Instant, Rc<Outcome>)>,
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
        if entry.sessions.is_empty() && !entry.dialing && entry.failed.is_none() {
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
        if let Some((until, outcome)) = &entry.failed {
            if now < *until {
                return Step::Fail(outcome.clone());
            }
            entry.failed = None;
        }
        let (sender, result) = oneshot::channel();
        entry.waiting.push(sender);
        let dial = !std::mem::replace(&mut entry.dialing, true);
        Step::Wait { result, dial }
    }

    /// Whether to dial again: more wait than the session has room for.
    fn dialled(&mut self, key: &Rc<PoolKey>, result: Dialled) -> bool {
        let Some(entry) = self.pool.entries.get_mut(key) else {
            return false;
        };
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
                entry.failed = None;
                let streams_max = self.settings.session_streams_max;
                let peers_max = self
                    .sessions
                    .get(*session)
                    .map_or(0, |found| found.http2.streams_max());
                // Somebody has to find out that a peer takes none at all.
                streams_max.min(peers_max as usize).max(1)
            }
            Err(outcome) => {
                let until = self.now + limits::DIAL_FAILURE_KEPT;
                entry.failed = Some((until, outcome.clone()));
                if !std::mem::replace(&mut self.pool.sweeping, true) {
                    self.timers.start(until, TimerEvent::Sweep);
                }
                usize::MAX
            }
        };
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
        entry.dialing
    }

    /// Forgets failures whose time is over. Looks again as long as there are others.
    pub fn sweep_pool(&mut self) {
        let now = self.now;
        self.pool.entries.retain(|_, entry| {
            if entry.failed.as_ref().is_some_and(|(until, _)| *until <= now) {
                entry.failed = None;
            }
            entry.dialing || entry.failed.is_some() || !entry.sessions.is_empty()
        });
        let failures = self.pool.entries.values().any(|entry| entry.failed.is_some());
        self.pool.sweeping = failures;
        if failures {
            self.timers
                .start(now + limits::DIAL_FAILURE_KEPT, TimerEvent::Sweep);
        }
    }
}

/// A session on which a stream can be opened now.
pub async fn session<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    key: &Rc<PoolKey>,
    errand: Option<&Rc<Errand>>,
) -> Dialled {
    // Others may take the room first, or the peer may have less than it was thought to have.
    for _ in 0..limits::POOL_ROUNDS_MAX {
        match shell.with(|core| core.find_session(key)) {
            Step::Use(session) => return Ok(session),
            Step::Fail(outcome) => return Err(outcome),
            Step::Wait { result, dial } => {
                if dial {
                    let (shell, pod, key) = (shell.clone(), pod.clone(), key.clone());
                    let errand = errand.cloned();
                    shell.clone().spawn(async move {
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
                match result.await {
                    Some(Ok(_)) => {}
                    Some(Err(outcome)) => return Err(outcome),
                    None => return Err(Rc::new(Outcome::Drained)),
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
mod tests {
    use super::*;
    use crate::runtime::tasks::Executor;
    use crate::worker::fixture;

    #[test]
    fn a_session_that_ended_before_its_dial_was_told_is_a_failed_dial() {
        let mut core = fixture::core(&Executor::default());
        let pod = fixture::pod();
        let (session, _peer) = fixture::session(&mut core, &pod);
        let address = ([10, 0, 0, 1], 15008).into();
        let identity = Identity::new("cluster.local", "shop", "cart");
        let key = Rc::new(PoolKey {
            pod: pod.pod.uid.clone(),
            identity,
            source: [10, 0, 0, 2].into(),
            destination: address,
            accepted: Arc::new([]),
            workload: None,
            through: None,
        });
        assert!(matches!(core.find_session(&key), Step::Wait { dial: true, .. }));
        core.close_session(session, "test");
        assert!(!core.dialled(&key, Ok(session)));
        assert!(matches!(core.find_session(&key), Step::Fail(_)));
        assert!(core.pool.entries[&key].sessions.is_empty());
    }
}
