//! What is asked for, who hears of it, and what becomes of sessions.

use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::bridge::demands;
use crate::clock::Duration;
use crate::runtime::tasks::Executor;
use crate::sys::epoll::EpollDriver;
use crate::tls::fake_ca::Issued;
use crate::tls::{FakeCa, Handshake, HandshakeError, Output, Progress, RecordMode};
use crate::worker::fixture::{self, Peer};
use crate::worker::hbone::pool::PoolKey;
use crate::worker::pods::PodState;

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
    let now = clock::wall();
    let Step::Wait(waiting) = core.find_certificate(&identity, now) else {
        panic!("nobody has given one yet");
    };
    core.forget_certificate(&identity);
    let error = heard(waiting).expect("at once").expect_err("there is none");
    assert_eq!(error, CertificateError::no_longer_needed());

    let certificate = FakeCa::new().issue(&identity, now).expect("issued");
    core.take_certificate(identity.clone(), Ok(Arc::new(certificate)));
    assert!(matches!(core.find_certificate(&identity, now), Step::Known(_)));
    core.forget_certificate(&identity);
    assert!(core.certificates.is_empty());
}

#[test]
fn a_certificate_that_has_expired_is_asked_for_again_once_and_waited_for() {
    let mut core = fixture::core(&Executor::default());
    let (demands, mut asked) = demands::channel();
    core.demands = demands;
    let identity = Identity::new("cluster.local", "shop", "cart");
    let (now, hour) = (clock::wall(), Duration::from_secs(3600));
    let issue = |from| {
        let issued = FakeCa::new().issue_valid(&identity, from, from + hour);
        Arc::new(issued.expect("issued"))
    };
    core.take_certificate(identity.clone(), Ok(issue(now)));
    let last = now + hour - Duration::from_secs(1);
    assert!(matches!(core.find_certificate(&identity, last), Step::Known(_)));
    assert!(asked.try_recv().is_err(), "nobody asks for what is still valid");
    let waiting: Vec<_> = (0..2)
        .map(|_| match core.find_certificate(&identity, now + hour) {
            Step::Wait(waiting) => waiting,
            Step::Known(old) => panic!("{old:?} is over"),
        })
        .collect();
    let demand = Demand::Certificate {
        worker: core.index,
        identity: identity.clone(),
    };
    assert_eq!(
        (asked.try_recv().ok(), asked.try_recv().ok()),
        (Some(demand), None)
    );

    let renewed = issue(now + hour);
    core.take_certificate(identity.clone(), Ok(renewed.clone()));
    for waiting in waiting {
        let told = heard(waiting).expect("by now").expect("the new one");
        assert!(Arc::ptr_eq(&told, &renewed));
    }
    assert!(matches!(
        core.find_certificate(&identity, now + hour),
        Step::Known(_)
    ));
}

/// What who waits was told by now.
fn heard(mut waiting: oneshot::Receiver<Answer>) -> Option<Answer> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(&mut waiting).poll(&mut context) {
        std::task::Poll::Ready(told) => told,
        std::task::Poll::Pending => None,
    }
}

/// A session that was dialled under `identity`.
fn client_of(core: &mut Core<EpollDriver>, pod: &Rc<PodState>, identity: &Identity) -> (Key<Session>, Peer) {
    let (key, peer) = fixture::session(core, pod);
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
}

#[test]
fn a_renewed_certificate_retires_the_sessions_that_were_dialled_with_the_old_one() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let pod = fixture::pod();
    let (renewed, other) = (
        Identity::new("cluster.local", "shop", "cart"),
        Identity::new("cluster.local", "shop", "web"),
    );
    let (old, _peer) = client_of(&mut core, &pod, &renewed);
    let (untouched, _other_peer) = client_of(&mut core, &pod, &other);
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

/// In the middle of a change of roots: the server knows the new one only, and says so when the client is done.
#[test]
fn a_server_that_does_not_know_the_root_of_a_client_makes_it_renew_early() {
    let [cart, till] = ["cart", "till"].map(|name| Identity::new("cluster.local", "shop", name));
    let (old, (new, _), now) = (FakeCa::new(), fixture::authority(), clock::wall());
    let theirs = new.issue(&till, now).expect("issued");
    for mode in [RecordMode::Own, RecordMode::Buffered] {
        let signed = old.sign(&cart, now, now + Duration::from_secs(3600));
        let Issued { chain, key } = signed.expect("signed");
        let roots = vec![old.root().clone(), new.root().clone()];
        let ours = CertifiedIdentity::new(cart.clone(), chain, key, roots).expect("usable");
        let mut client = Handshake::client(&ours, [till.clone()].into(), mode).expect("a client");
        let mut server = Handshake::server(&theirs, RecordMode::Own).expect("a server");
        let (mut there, mut back) = (Output::default(), Output::default());
        client.advance(&[], &mut there).expect("hello");
        server.advance(there.filled(), &mut back).expect("a certificate");
        there.clear();
        let done = client.advance(back.filled(), &mut there);
        assert_eq!(done, Ok(Progress::Done), "it has heard of no trouble");
        back.clear();
        let refused = server.advance(there.filled(), &mut back).expect_err("unknown");
        assert_eq!(refused, HandshakeError::UnknownIssuer.into());

        let mut core = fixture::core(&Executor::default());
        let (demands, mut asked) = demands::channel();
        core.demands = demands;
        core.take_certificate(cart.clone(), Ok(Arc::new(ours)));
        let (session, _peer) = client_of(&mut core, &fixture::pod(), &cart);
        let established = client.finish().expect("done");
        core.sessions.get_mut(session).expect("just made").channel = established.channel;
        core.session_received(session, back.filled());
        assert!(core.sessions.get(session).expect("until the flush").is_closing());
        let identity = cart.clone();
        assert_eq!(asked.try_recv(), Ok(Demand::Doubt { identity }), "{mode:?}");
    }
}

#[test]
fn sessions_that_were_dialled_with_an_expired_certificate_serve_until_there_is_another() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let pod = fixture::pod();
    let cart = Identity::new("cluster.local", "shop", "cart");
    let (old, _peer) = client_of(&mut core, &pod, &cart);
    let (ca, now, hour) = (FakeCa::new(), clock::wall(), Duration::from_secs(3600));
    let expired = Arc::new(ca.issue_valid(&cart, now - 2 * hour, now - hour).expect("issued"));
    let renewed = Arc::new(ca.issue(&cart, now).expect("issued"));
    core.take_certificate(cart.clone(), Ok(expired.clone()));
    let shell = Shell::new(core, executor.spawner());
    let found = Rc::new(Cell::new(None));
    shell.spawn({
        let (shell, cart, found) = (shell.clone(), cart.clone(), found.clone());
        async move { found.set(Some(certificate(&shell, &cart).await)) }
    });
    let is_retired = || shell.with(|core| core.sessions.get(old).expect("there").retired);
    executor.run(10);
    assert!(found.take().is_none() && !is_retired(), "it waits");
    shell.with(|core| core.retire_if_renewed(old, &cart, &expired));
    assert!(!is_retired(), "nor would one whose handshake ends now be");
    shell.with(|core| core.take_certificate(cart.clone(), Ok(renewed.clone())));
    assert!(is_retired());
    executor.run(10);
    let found = found.take().expect("by now").expect("a certificate");
    assert!(Arc::ptr_eq(&found, &renewed));
}
