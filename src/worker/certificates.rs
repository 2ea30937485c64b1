//! The worker's own certificates: asked of the control thread once per identity, kept, replaced by order. One that has
//! expired, because its renewal is late, is asked for again, and no handshake begins with it.

use std::collections::HashMap;
use std::sync::Arc;

use super::core::Core;
use super::hbone::session::{Role, Session};
use super::outcome::Outcome;
use super::shell::{Elapsed, Shell};
use crate::bridge::demands::Demand;
use crate::bridge::orders::CertificateError;
use crate::clock::{self, SystemTime};
use crate::identity::Identity;
use crate::limits;
use crate::runtime::oneshot;
use crate::runtime::slab::Key;
use crate::sys::driver::Driver;
use crate::tls::CertifiedIdentity;

type Answer = Result<Arc<CertifiedIdentity>, CertificateError>;

#[derive(Default)]
pub struct CertificateCache {
    entries: HashMap<Identity, Entry>,
}

enum Entry {
    Asked {
        waiting: Vec<oneshot::Sender<Answer>>,
        /// There was one, which expired: sessions may have been opened with it.
        again: bool,
    },
    Known {
        certificate: Arc<CertifiedIdentity>,
        /// The control thread was told that a handshake with it failed for want of trust.
        doubted: bool,
    },
}

enum Step {
    Known(Arc<CertifiedIdentity>),
    Wait(oneshot::Receiver<Answer>),
}

impl CertificateCache {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<D: Driver + 'static> Core<D> {
    fn find_certificate(&mut self, identity: &Identity, now: SystemTime) -> Step {
        let (sender, receiver) = oneshot::channel();
        let again = match self.certificates.entries.get_mut(identity) {
            Some(Entry::Known { certificate, .. }) if certificate.not_after > now => {
                return Step::Known(certificate.clone());
            }
            Some(Entry::Asked { waiting, .. }) => {
                waiting.push(sender);
                return Step::Wait(receiver);
            }
            Some(Entry::Known { .. }) => true,
            None => false,
        };
        let waiting = vec![sender];
        let asked = Entry::Asked { waiting, again };
        self.certificates.entries.insert(identity.clone(), asked);
        self.demands.send(Demand::Certificate {
            worker: self.index,
            identity: identity.clone(),
        });
        Step::Wait(receiver)
    }

    /// The control thread's answer, or a renewed certificate.
    pub fn take_certificate(&mut self, identity: Identity, result: Answer) {
        // An error comes only when there is no certificate that is still valid.
        let previous = match &result {
            Ok(certificate) => {
                let certificate = certificate.clone();
                let doubted = false;
                let known = Entry::Known { certificate, doubted };
                self.certificates.entries.insert(identity.clone(), known)
            }
            Err(_) => self.certificates.entries.remove(&identity),
        };
        if let Some(previous) = previous {
            self.replace(&identity, previous, &result);
        }
    }

    /// A handshake under the identity failed, or the session that it made. If it was for want of trust, another
    /// certificate may mend that.
    pub(super) fn doubt_certificate(&mut self, identity: &Identity, outcome: &Outcome) {
        if let Some(Entry::Known { doubted, .. }) = self.certificates.entries.get_mut(identity)
            && outcome.is_about_trust()
            && !std::mem::replace(doubted, true)
        {
            self.demands.send(Demand::Doubt {
                identity: identity.clone(),
            });
        }
    }

    /// The last pod of the identity left this node. Its connections end by themselves.
    pub(super) fn forget_certificate(&mut self, identity: &Identity) {
        if let Some(entry) = self.certificates.entries.remove(identity) {
            self.replace(identity, entry, &Err(CertificateError::no_longer_needed()));
        }
    }

    /// What was opened with the previous one, and who waits for the next.
    fn replace(&mut self, identity: &Identity, previous: Entry, result: &Answer) {
        let (waiting, was_known) = match previous {
            Entry::Known { .. } => (Vec::new(), true),
            Entry::Asked { waiting, again } => (waiting, again),
        };
        if was_known {
            self.retire_sessions_of(identity);
        }
        for waiter in waiting {
            // A task that gave up meanwhile does not want it.
            let _ = waiter.send(result.clone());
        }
    }
}

impl<D: Driver + 'static> Core<D> {
    /// As `retire_sessions_of`, for a session whose handshake, with `certificate`, began before another came.
    pub(super) fn retire_if_renewed(
        &mut self,
        session: Key<Session>,
        identity: &Identity,
        certificate: &Arc<CertifiedIdentity>,
    ) {
        let is_latest = match self.certificates.entries.get(identity) {
            Some(Entry::Known {
                certificate: known, ..
            }) => Arc::ptr_eq(known, certificate),
            // It expired, and no other came yet: with that one it is retired.
            Some(Entry::Asked { again, .. }) => *again,
            None => false,
        };
        if !is_latest {
            self.retire_session(session);
        }
    }

    /// Streams go on, but new ones are opened with the new certificate: a busy session must not outlive the one
    /// that it was opened with.
    fn retire_sessions_of(&mut self, identity: &Identity) {
        let of_identity = |session: &Session| match &session.role {
            Role::Client { key } => key.identity == *identity,
            Role::Server => false,
        };
        let sessions: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| of_identity(session))
            .map(|(key, _)| key)
            .collect();
        for key in sessions {
            self.retire_session(key);
        }
    }
}

/// The certificate of `identity`, asked for if this worker has none that is still valid.
pub async fn certificate<D: Driver + 'static>(shell: &Shell<D>, identity: &Identity) -> Answer {
    match shell.with(|core| core.find_certificate(identity, clock::wall())) {
        Step::Known(certificate) => Ok(certificate),
        Step::Wait(answer) => match shell.within(limits::CERTIFICATE_WAIT, answer).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(CertificateError("the worker is shutting down".into())),
            Err(Elapsed) => {
                let seconds = limits::CERTIFICATE_WAIT.as_secs();
                Err(CertificateError(
                    format!("no certificate for {identity} within {seconds} s").into(),
                ))
            }
        },
    }
}

#[cfg(test)]
mod tests;
