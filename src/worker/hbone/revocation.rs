//! Sessions whose peers' certificates are taken back while they live.
//!
//! Looked at when other lists come into force, a few in each turn: a list may name thousands of peers, and webpki
//! reads the whole list to check its signature. Invariant: a session was compared with the lists in force when it
//! began, or with later ones. Specification: control-plane contract 3.4.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::session::{Ending, Role, Session};
use crate::bridge::log::Direction;
use crate::limits;
use crate::runtime::slab::Key;
use crate::sys::driver::Driver;
use crate::tls::handshake::{Established, Rules};
use crate::tls::{HandshakeError, RevocationLists, Revoked, TlsError};
use crate::wire::http2::ErrorCode;
use crate::worker::core::Core;
use crate::worker::outcome::Outcome;
use crate::worker::shell::Shell;

/// What remains to be compared after one piece of work.
enum Left {
    Sessions,
    Nothing,
}

/// Compares every session with the lists in force, and ends those whose peer they name.
pub async fn compare_sessions<D: Driver + 'static>(shell: Shell<D>) {
    let (lists, mut sessions) = shell.with(|core| (core.revocations.load(), core.sessions.keys()));
    let Some(lists) = lists else { return };
    while let Left::Sessions = shell.with(|core| core.compare_some(&mut sessions, &lists)) {
        let mut yielded = false;
        poll_fn(|context| match std::mem::replace(&mut yielded, true) {
            true => Poll::Ready(()),
            false => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await;
    }
}

/// Lists may have changed since the handshake began. Without an await between this and the session's start, later
/// ones find the session in its table.
pub fn compare_established<D: Driver + 'static>(
    core: &Core<D>,
    established: &mut Established,
) -> Result<(), TlsError> {
    match (&mut established.revocable, core.revocations.load()) {
        (Some(revocable), Some(lists)) => revocable
            .compare(&lists)
            .map_err(|revoked| HandshakeError::Revoked(revoked).into()),
        (None, _) | (_, None) => Ok(()),
    }
}

impl<D: Driver + 'static> Core<D> {
    /// What new handshakes are held to.
    pub fn handshake_rules(&self) -> Rules {
        Rules {
            mode: self.settings.tls_mode,
            compliance: self.settings.compliance,
            revocations: self.revocations.load(),
        }
    }

    /// A handshake failed.
    pub fn count_refusal(&self, outcome: &Outcome, direction: Direction) {
        if let Outcome::Tls(TlsError::Handshake(HandshakeError::Revoked(_))) = outcome {
            self.revocations.count_rejection(direction);
        }
    }

    /// Many that are not named, or one that is.
    fn compare_some(&mut self, sessions: &mut Vec<Key<Session>>, lists: &Arc<RevocationLists>) -> Left {
        for _ in 0..limits::REVOCATION_SESSIONS_AT_ONCE {
            let Some(key) = sessions.pop() else {
                return Left::Nothing;
            };
            let session = self.sessions.get_mut(key).filter(|session| !session.is_closing());
            let Some(revocable) = session.and_then(|session| session.revocable.as_mut()) else {
                continue;
            };
            let named = revocable.is_named(lists);
            if let Err(revoked) = revocable.compare(lists) {
                self.revoke_session(key, revoked);
            }
            if named {
                return Left::Sessions;
            }
        }
        Left::Sessions
    }

    fn revoke_session(&mut self, key: Key<Session>, revoked: Revoked) {
        let Some(session) = self.sessions.get(key) else {
            return;
        };
        let (direction, address) = match session.role {
            Role::Client { .. } => (Direction::Outbound, session.peer_address),
            Role::Server => (Direction::Inbound, session.peer_address),
        };
        self.revocations.count_rejection(direction);
        let outcome = Outcome::Revoked(revoked.clone());
        tracing::warn!(target: "hbone", peer = %address, error = %outcome, "session closed");
        self.end_session(key, ErrorCode::NoError, &Ending::Revoked(revoked), false);
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
    };

    use super::*;
    use crate::runtime::tasks::Executor;
    use crate::sys::epoll::EpollDriver;
    use crate::tls::{FakeCa, RecordMode};
    use crate::worker::fixture;

    /// An authority, and how to list what it takes back.
    struct Revoker {
        ca: FakeCa,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Revoker {
        fn new() -> Self {
            let (ca, issuer) = fixture::authority();
            Self { ca, issuer }
        }

        fn list(&self, serial: &[u8]) -> Arc<RevocationLists> {
            let list = CertificateRevocationListParams {
                this_update: rcgen::date_time_ymd(2026, 1, 1),
                next_update: rcgen::date_time_ymd(2126, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: vec![RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: rcgen::date_time_ymd(2026, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                }],
                key_identifier_method: KeyIdMethod::Sha256,
            };
            let list = list.signed_by(&self.issuer).expect("signed");
            Arc::new(RevocationLists::parse(list.der()).expect("a list"))
        }
    }

    /// A core in which revocation is asked for, without a list yet.
    fn core() -> Core<EpollDriver> {
        let core = fixture::core(&Executor::default());
        core.revocations.publish(Arc::default());
        core
    }

    #[test]
    fn lists_that_came_during_a_handshake_are_asked_before_its_session_starts() {
        let (core, revoker) = (core(), Revoker::new());
        let (mut established, _) = fixture::handshake(&revoker.ca, core.handshake_rules());
        assert_eq!(compare_established(&core, &mut established), Ok(()));
        core.revocations.publish(revoker.list(established.peer.serial()));
        let refused = compare_established(&core, &mut established).expect_err("revoked");
        assert!(matches!(refused, TlsError::Handshake(HandshakeError::Revoked(_))));
        core.count_refusal(&Outcome::Tls(refused), Direction::Inbound);
        assert_eq!(core.revocations.rejections(Direction::Inbound), 1);
        assert_eq!(core.revocations.rejections(Direction::Outbound), 0);
    }

    #[test]
    fn a_session_whose_peer_is_taken_back_says_goodbye_and_others_stay() {
        let (mut core, revoker, pod) = (core(), Revoker::new(), fixture::pod());
        let start = |core: &mut Core<EpollDriver>| {
            let (server, client) = fixture::handshake(&revoker.ca, core.handshake_rules());
            fixture::start(core, &pod, server, client)
        };
        let (revoked, mut peer) = start(&mut core);
        let (honest, _other) = start(&mut core);
        let serial = core
            .sessions
            .get(revoked)
            .expect("it lives")
            .peer
            .serial()
            .to_vec();
        let lists = revoker.list(&serial);
        core.revocations.publish(lists.clone());
        let mut sessions = core.sessions.keys();
        while let Left::Sessions = core.compare_some(&mut sessions, &lists) {}
        fixture::turn(&mut core);
        assert!(core.sessions.get(revoked).is_none_or(Session::is_closing));
        assert!(!core.sessions.get(honest).expect("it lives").is_closing());
        assert_eq!(core.revocations.rejections(Direction::Inbound), 1);
        while core.sessions.get(revoked).is_some() {
            fixture::turn(&mut core);
        }
        // RFC 9113 section 6.8: GOAWAY with NO_ERROR is the last frame.
        let said = peer.read_to_end();
        assert!(said.ends_with(&[0; 4]), "{said:?}");
    }

    #[test]
    fn without_lists_nothing_is_kept_of_peers() {
        let core = fixture::core(&Executor::default());
        let (established, _) = fixture::handshake(&FakeCa::new(), core.handshake_rules());
        assert!(established.revocable.is_none());
        assert_eq!(core.handshake_rules().mode, RecordMode::Own);
    }
}
