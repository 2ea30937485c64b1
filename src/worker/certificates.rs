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
mod tests {
    use super::*;
    use crate::clock;
    use crate::runtime::tasks::Executor;
    use crate::tls::FakeCa;
    use crate::worker::fixture;

    #[test]
    fn a_session_whose_certificate_was_renewed_during_its_handshake_takes_no_streams() {
        let mut core = fixture::core(&Executor::default());
        let (identity, ca) = (Identity::new("cluster.local", "shop", "cart"), FakeCa::new());
        let issue = || Arc::new(ca.issue(&identity, clock::wall()).expect("issued"));
        let (old, new) = (issue(), issue());
        core.take_certificate(identity.clone(), Ok(new.clone()));
        let pod = fixture::pod();
        for (certificate, is_retired) in [(old, true), (new, false)] {
            let (session, _peer) = fixture::session(&mut core, &pod);
            core.retire_if_renewed(session, &identity, &certificate);
            assert_eq!(core.sessions.get(session).expect("it lives").retired, is_retired);
        }
    }

    #[test]
    fn a_forgotten_certificate_is_gone_and_those_who_wait_for_it_hear_why() {
        let mut core = fixture::core(&Executor::default());
        let identity = Identity::new("cluster.local", "shop", "cart");
        let Step::Wait(mut waiting) = core.find_certificate(&identity) else {
            panic!("nobody has given one yet");
        };
        core.forget_certificate(&identity);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let heard = std::pin::Pin::new(&mut waiting).poll(&mut context);
        let std::task::Poll::Ready(Some(Err(error))) = heard else {
            panic!("an error, at once");
        };
        assert_eq!(error, CertificateError::no_longer_needed());

        let certificate = FakeCa::new().issue(&identity, clock::wall()).expect("issued");
        core.take_certificate(identity.clone(), Ok(Arc::new(certificate)));
        assert!(matches!(core.find_certificate(&identity), Step::Known(_)));
        core.forget_certificate(&identity);
        assert!(core.certificates.is_empty());
    }
}
