//! What is asked for, who hears of it, and what becomes of sessions.

use std::rc::Rc;

use super::*;
use crate::clock;
use crate::runtime::tasks::Executor;
use crate::sys::epoll::EpollDriver;
use crate::tls::FakeCa;
use crate::worker::fixture;
use crate::worker::hbone::pool::PoolKey;

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

#[test]
fn a_renewed_certificate_retires_the_sessions_that_were_dialled_with_the_old_one() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let pod = fixture::pod();
    let client_of = |core: &mut Core<EpollDriver>, identity: &Identity| {
        let (key, peer) = fixture::session(core, &pod);
        let session = core.sessions.get_mut(key).expect("just made");
        let destination = session.peer_address;
        let pool_key = PoolKey {
            pod: pod.pod.uid.clone(),
            identity: identity.clone(),
            source: destination.ip(),
            destination,
            accepted: [].into(),
            workload: None,
            through: None,
        };
        session.role = Role::Client {
            key: Rc::new(pool_key),
        };
        (key, peer)
    };
    let (renewed, other) = (
        Identity::new("cluster.local", "shop", "cart"),
        Identity::new("cluster.local", "shop", "web"),
    );
    let (old, _peer) = client_of(&mut core, &renewed);
    let (untouched, _other_peer) = client_of(&mut core, &other);
    let issue = || {
        let issued = FakeCa::new().issue(&renewed, clock::wall());
        Ok(Arc::new(issued.expect("a certificate")))
    };
    core.take_certificate(renewed.clone(), issue());
    assert!(!core.sessions.get(old).expect("there").retired, "the first one");
    core.take_certificate(renewed.clone(), issue());
    assert!(core.sessions.get(old).expect("not flushed yet").retired);
    assert!(!core.sessions.get(untouched).expect("there").retired);
}
