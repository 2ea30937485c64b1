//! The worker's own certificates: asked of the control thread once per identity, kept, replaced by order.

use std::collections::HashMap;
use std::sync::Arc;

use super::core::Core;
use super::hbone::session::{Role, Session};
use super::outcome::Outcome;
use super::shell::{Elapsed, Shell};
use crate::bridge::demands::Demand;
use crate::bridge::orders::CertificateError;
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
    Asked(Vec<oneshot::Sender<Answer>>),
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
    fn find_certificate(&mut self, identity: &Identity) -> Step {
        let (sender, receiver) = oneshot::channel();
        match self.certificates.entries.get_mut(identity) {
            Some(Entry::Known { certificate, .. }) => return Step::Known(certificate.clone()),
            Some(Entry::Asked(waiting)) => waiting.push(sender),
            None => {
                self.certificates
                    .entries
                    .insert(identity.clone(), Entry::Asked(vec![sender]));
                self.demands.send(Demand::Certificate {
                    worker: self.index,
                    identity: identity.clone(),
                });
            }
        }
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
        if let Some(Entry::Known { .. }) = previous {
            self.retire_sessions_of(&identity);
        }
        if let Some(Entry::Asked(waiting)) = previous {
            answer(waiting, &result);
        }
    }

    /// A handshake under the identity failed. If it was for want of trust, another certificate may mend that.
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
        match self.certificates.entries.remove(identity) {
            Some(Entry::Known { .. }) => self.retire_sessions_of(identity),
            Some(Entry::Asked(waiting)) => answer(waiting, &Err(CertificateError::no_longer_needed())),
            None => {}
        }
    }
}

fn answer(waiting: Vec<oneshot::Sender<Answer>>, result: &Answer) {
    for waiter in waiting {
        // A task that gave up meanwhile does not want it.
        let _ = waiter.send(result.clone());
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
            Some(Entry::Asked(_)) | None => false,
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

/// The certificate of `identity`, asked for if this worker does not have it yet.
pub async fn certificate<D: Driver + 'static>(shell: &Shell<D>, identity: &Identity) -> Answer {
    match shell.with(|core| core.find_certificate(identity)) {
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
