//! What becomes of those who want a session when its destination fails, is slow or says nothing.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use crate::bridge::log::Direction;
use crate::clock;
use crate::runtime::tasks::Executor;
use crate::sys::buffer::RecvBuffer;
use crate::sys::driver::Received;
use crate::sys::epoll::EpollDriver;
use crate::tls::{FakeCa, Handshake, Output, RecordMode};
use crate::wire::hbone::ConnectRequest;
use crate::wire::http2::{Connection, Settings};
use crate::worker::fixture;
use crate::worker::hbone::session::{Ending, Role};
use crate::worker::shell::{Medium, Socket};

fn key() -> Rc<PoolKey> {
    Rc::new(PoolKey {
        pod: fixture::pod().pod.uid.clone(),
        identity: Identity::new("cluster.local", "shop", "cart"),
        source: [10, 0, 0, 2].into(),
        destination: ([10, 0, 0, 1], 15008).into(),
        accepted: Arc::new([]),
        workload: None,
        through: None,
    })
}

fn refused() -> Dialled {
    let refused = std::io::ErrorKind::ConnectionRefused.into();
    Err(Rc::new(Outcome::ConnectFailed(refused)))
}

fn dials(core: &mut Core<EpollDriver>, key: &Rc<PoolKey>) -> bool {
    matches!(core.find_session(key), Step::Wait { dial: true, .. })
}

#[test]
fn a_session_that_ended_before_its_dial_was_told_is_a_failed_dial() {
    let mut core = fixture::core(&Executor::default());
    let pod = fixture::pod();
    let (session, _peer) = fixture::session(&mut core, &pod);
    let key = key();
    assert!(dials(&mut core, &key));
    core.close_session(session, &Ending::Said("test".into()));
    assert!(!core.dialled(&key, Ok(session)));
    assert!(matches!(core.find_session(&key), Step::Fail(_)));
    assert!(core.pool.entries[&key].sessions.is_empty());
}

#[test]
fn a_session_that_was_retired_before_anybody_had_it_is_dialled_once_more() {
    let mut core = fixture::core(&Executor::default());
    let (pod, key) = (fixture::pod(), key());
    let retired = |core: &mut Core<EpollDriver>| {
        let (session, peer) = fixture::session(core, &pod);
        core.retire_session(session);
        (session, peer)
    };
    let Step::Wait {
        dial: true,
        mut result,
    } = core.find_session(&key)
    else {
        panic!("nothing is known of it");
    };
    let context = &mut Context::from_waker(Waker::noop());
    let (first, _peer) = retired(&mut core);
    assert!(core.dialled(&key, Ok(first)));
    assert!(Pin::new(&mut result).poll(context).is_pending());
    // A peer that retires whatever it is asked for is not asked for ever.
    let (second, _peer) = retired(&mut core);
    assert!(!core.dialled(&key, Ok(second)));
    let told = Pin::new(&mut result).poll(context);
    assert!(matches!(told, Poll::Ready(Some(Err(_)))));
}

#[test]
fn all_who_wait_for_a_dead_destination_fail_at_once_and_nobody_dials_it_for_a_short_while() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let key = key();
    let mut waiting: Vec<_> = (0..100)
        .map(|waiter| match core.find_session(&key) {
            Step::Wait { result, dial } => {
                assert_eq!(dial, waiter == 0, "one dial for all");
                result
            }
            Step::Use(_) | Step::Fail(_) => panic!("nothing is known of it"),
        })
        .collect();
    assert!(!core.dialled(&key, refused()), "nobody is left who waits");
    let context = &mut Context::from_waker(Waker::noop());
    for waiter in &mut waiting {
        let told = Pin::new(waiter).poll(context);
        assert!(matches!(told, Poll::Ready(Some(Err(_)))));
    }
    let quarter = limits::DIAL_FAILURE_KEPT / 4;
    core.now += quarter * 2;
    assert!(matches!(core.find_session(&key), Step::Fail(_)));
    core.now += quarter * 4;
    assert!(dials(&mut core, &key));
}

#[test]
fn a_destination_in_trouble_is_avoided_for_longer_and_longer_until_it_answers() {
    let mut core = fixture::core(&Executor::default());
    let key = key();
    assert!(!core.pool_avoids(&key, true));
    let mut pause = limits::AVOIDED_MIN;
    for _ in 0..8 {
        // However many find out at once, it counts once.
        for _ in 0..10 {
            core.pool_is_slow(&key);
        }
        core.now += pause * 7 / 10;
        assert!(core.pool_avoids(&key, true));
        core.now += pause * 6 / 10;
        // One finds out for the others, unless it was unlucky already.
        assert!(core.pool_avoids(&key, false));
        assert!(!core.pool_avoids(&key, true));
        assert!(core.pool_avoids(&key, true));
        core.now += limits::ENDPOINT_PATIENCE;
        pause = (pause * 2).min(limits::AVOIDED_MAX);
    }
    core.pool_is_slow(&key);
    assert!(core.pool_avoids(&key, true));
    core.pool_is_well(&key);
    assert!(!core.pool_avoids(&key, true));
}

#[test]
fn a_failed_dial_is_avoided_by_those_with_a_choice_and_the_first_success_ends_that() {
    let mut core = fixture::core(&Executor::default());
    let pod = fixture::pod();
    let key = key();
    assert!(dials(&mut core, &key));
    assert!(!core.dialled(&key, refused()));
    assert!(core.pool_avoids(&key, true));
    core.now += limits::DIAL_FAILURE_KEPT * 2;
    assert!(dials(&mut core, &key));
    let (session, _peer) = fixture::session(&mut core, &pod);
    assert!(!core.dialled(&key, Ok(session)));
    assert!(!core.pool_avoids(&key, true));
}

#[test]
fn troubles_are_forgotten_and_leave_nothing_behind() {
    let mut core = fixture::core(&Executor::default());
    core.pool_is_slow(&key());
    assert!(core.troubles.are_there() && core.pool.len() == 1);
    for _ in 0..4 {
        fixture::pass(&mut core, limits::AVOIDED_MAX);
    }
    assert!(!core.troubles.are_there() && core.pool.is_empty());
}

/// What `work` fails with when nothing arrives for `limit`, and no earlier.
fn failure_after<R>(
    executor: &Executor,
    shell: &Shell<EpollDriver>,
    limit: Duration,
    work: impl Future<Output = Result<R, Rc<Outcome>>> + 'static,
) -> String {
    let failure = Rc::<RefCell<Option<String>>>::default();
    shell.spawn({
        let failure = failure.clone();
        async move { *failure.borrow_mut() = work.await.err().map(|outcome| outcome.to_string()) }
    });
    // What it has to send is sent.
    for _ in 0..2 {
        executor.run(10);
        shell.with(fixture::turn);
    }
    let moment = Duration::from_millis(200);
    executor.run(10);
    shell.with(|core| fixture::pass(core, limit - moment));
    executor.run(10);
    assert_eq!(*failure.borrow(), None, "too early");
    shell.with(|core| fixture::pass(core, 2 * moment));
    executor.run(10);
    let failure = failure.borrow_mut().take();
    failure.expect("it is over")
}

#[test]
fn a_peer_that_does_not_finish_its_handshake_is_given_up_by_name() {
    let executor = Executor::default();
    let shell = Shell::new(fixture::core(&executor), executor.spawner());
    let (near, _far) = fixture::connection();
    let peer = near.peer_addr().expect("connected");
    let certificate = FakeCa::new()
        .issue(&key().identity, clock::wall())
        .expect("issued");
    let handshake = Handshake::client(&certificate, Arc::new([]), RecordMode::Own).expect("a client");
    let work = {
        let shell = shell.clone();
        async move {
            let socket = Socket::adopt(&shell, near.into()).expect("adopted");
            let shaken = dial::shake(&shell, &socket, peer, handshake, Direction::Outbound).await;
            shaken.map_err(Rc::new)
        }
    };
    assert_eq!(
        failure_after(&executor, &shell, limits::HANDSHAKE_TIMEOUT, work),
        format!("timed out: {peer} did not finish the TLS handshake within 10s")
    );
}

/// A server that answers the first flight, and takes nothing that comes then.
struct Vanishing {
    server: RefCell<Option<Handshake>>,
    answer: RefCell<Output>,
}

impl Medium for Vanishing {
    async fn send(&self, bytes: Vec<u8>, end: usize) -> std::io::Result<()> {
        let server = self.server.take();
        let mut server = server.ok_or(std::io::ErrorKind::BrokenPipe)?;
        server
            .advance(&bytes[..end], &mut self.answer.borrow_mut())
            .expect("a client");
        Ok(())
    }

    async fn receive(&self, _: usize) -> Received {
        Received::Data(RecvBuffer::copied(self.answer.borrow().filled()))
    }
}

#[test]
fn a_peer_that_is_refused_and_gone_before_it_is_told_failed_for_what_it_was_refused_for() {
    let executor = Executor::default();
    let shell = Shell::new(fixture::core(&executor), executor.spawner());
    let ca = FakeCa::new();
    let [cart, till, bank] =
        ["cart", "till", "bank"].map(|name| Identity::new("cluster.local", "shop", name));
    let issue = |identity| ca.issue(identity, clock::wall()).expect("issued");
    let client = Handshake::client(&issue(&cart), Arc::new([bank]), RecordMode::Own).expect("a client");
    let server = Handshake::server(&issue(&till), RecordMode::Own).expect("a server");
    let medium = Vanishing {
        server: Some(server).into(),
        answer: RefCell::default(),
    };
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let mut shaken = std::pin::pin!(dial::shake(&shell, &medium, nowhere, client, Direction::Outbound));
    let context = &mut Context::from_waker(Waker::noop());
    let Poll::Ready(Err(refused)) = shaken.as_mut().poll(context) else {
        panic!("nothing to wait for, and not whom it wants");
    };
    let reason = refused.to_string();
    assert!(reason.contains("ns/shop/sa/bank"), "{reason}");
}

#[test]
fn a_peer_that_does_not_answer_connect_is_given_up_by_name() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let (pod, key) = (fixture::pod(), key());
    let (session, _peer) = fixture::session(&mut core, &pod);
    let client = core.sessions.get_mut(session).expect("it lives");
    client.role = Role::Client { key: key.clone() };
    client.http2 = Connection::client(Settings::client());
    assert!(dials(&mut core, &key));
    assert!(!core.dialled(&key, Ok(session)));
    let shell = Shell::new(core, executor.spawner());
    let work = {
        let shell = shell.clone();
        async move {
            let request = ConnectRequest {
                authority: "10.0.0.1:80",
                ..ConnectRequest::default()
            };
            dial::connect(&shell, &pod, &key, &request, None).await
        }
    };
    assert_eq!(
        failure_after(&executor, &shell, limits::CONNECT_ANSWER_TIMEOUT, work),
        "timed out: 10.0.0.1:15008 did not answer CONNECT within 20s"
    );
}

#[test]
fn nobody_waits_for_ever_for_a_session_that_others_dial() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let (pod, key) = (fixture::pod(), key());
    assert!(dials(&mut core, &key), "a dial that never ends");
    let shell = Shell::new(core, executor.spawner());
    let work = {
        let shell = shell.clone();
        async move { session(&shell, &pod, &key, None).await }
    };
    assert_eq!(
        failure_after(&executor, &shell, limits::SESSION_WAIT, work),
        "timed out: 10.0.0.1:15008 did not offer a session with a free stream within 30s"
    );
}
