//! What waits, for how many turns, and what goes first. Counted in turns and pieces of work, never in time.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use super::*;
use crate::bridge::orders::{Pod, PodListeners, PodUid};
use crate::runtime::tasks::Executor;
use crate::sys::descriptor::Descriptor;
use crate::sys::epoll::EpollDriver;
use crate::wire::hbone::ConnectRequest;
use crate::worker::fixture;

/// What one tenant gets of a crowded turn: the last one may begin with next to no credit left.
const CONNECTIONS_TURN_MAX: usize = (limits::TENANT_TURN_COST / limits::CONNECTION_COST) as usize + 1;
const REQUEST: ConnectRequest<'_> = ConnectRequest {
    authority: "10.0.0.2:80",
    baggage: None,
    forwarded: None,
    traceparent: None,
    forwarded_network: None,
};

/// A turn that does not wait, without tasks.
fn turn(core: &mut Core<EpollDriver>) {
    core.poll(true).expect("polled");
    core.flush();
}

fn descriptor(listener: TcpListener) -> Descriptor {
    std::os::fd::OwnedFd::from(listener).into()
}

/// A pod that is served, and where its captured connections arrive.
fn listening_pod(core: &mut Core<EpollDriver>, uid: &str) -> (Rc<PodState>, SocketAddr) {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let [outbound, plaintext, hbone] = [listen(), listen(), listen()];
    let address = outbound.local_addr().expect("bound");
    let like = fixture::pod().pod.clone();
    let pod = Pod {
        uid: PodUid::new(uid),
        info: like.info.clone(),
        namespace: like.namespace.clone(),
        preserve_source: false,
    };
    let listeners = PodListeners {
        outbound: descriptor(outbound),
        inbound_plaintext: descriptor(plaintext),
        inbound_hbone: descriptor(hbone),
    };
    core.add_pod(Arc::new(pod), Some(listeners));
    (core.pods.get(&PodUid::new(uid)).expect("added"), address)
}

fn connect(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(to).expect("the backlog has room");
    (0..count).map(connect).collect()
}

/// Turns until a connection of `pod` was captured; with it, those of others that were in the same or earlier turns.
fn turns_until_captured(core: &mut Core<EpollDriver>, pod: &Rc<PodState>) -> (usize, usize) {
    let mut others = 0;
    for turns in 1.. {
        turn(core);
        let captured: Vec<_> = core.captured.drain(..).collect();
        let own = captured.iter().any(|captured| Rc::ptr_eq(&captured.pod, pod));
        others += captured
            .iter()
            .filter(|captured| !Rc::ptr_eq(&captured.pod, pod))
            .count();
        if own {
            return (turns, others);
        }
    }
    unreachable!("the loop ends with the connection")
}

#[test]
fn a_storm_of_one_pod_lets_the_connection_of_another_go_first() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let (calm, to_calm) = listening_pod(&mut core, "calm");
    let (storm, to_storm) = listening_pod(&mut core, "storm");
    let _first = [(&storm, to_storm), (&calm, to_calm)].map(|(pod, address)| {
        let first = connect(address, 1);
        turns_until_captured(&mut core, pod);
        first
    });
    let storms = connect(to_storm, 100);
    // The storm has been waiting for several turns when the calm pod's connection comes.
    let mut before = 0;
    for _ in 0..4 {
        turn(&mut core);
        let captured = core.captured.drain(..).count();
        assert!(captured <= CONNECTIONS_TURN_MAX, "{captured} in one turn");
        before += captured;
    }
    let _calm = connect(to_calm, 1);
    let (turns, others) = turns_until_captured(&mut core, &calm);
    assert!(turns <= 2, "{turns} turns");
    assert!(others <= 2 * CONNECTIONS_TURN_MAX, "{others} went first");
    // Nothing is lost, and everybody who waits is served.
    let mut served = before + others;
    while served < storms.len() {
        turn(&mut core);
        served += core.captured.drain(..).count();
    }
    assert!(!core.tenants.has_waiting());
}

#[test]
fn a_pod_that_is_alone_is_not_held_back() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let (storm, to_storm) = listening_pod(&mut core, "storm");
    let _storms = connect(to_storm, limits::ACCEPTS_TURN_MAX);
    let mut turns = 0;
    let mut captured = 0;
    while captured < limits::ACCEPTS_TURN_MAX {
        turn(&mut core);
        captured += core.captured.drain(..).count();
        turns += 1;
    }
    assert!(Rc::strong_count(&storm.tenant) > 0 && turns <= 2, "{turns} turns");
}

#[test]
fn requests_of_one_source_let_those_of_another_go_first() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let pod = fixture::pod();
    let [greedy, modest] = [1, 2].map(|host| {
        let (key, peer) = fixture::session(&mut core, &pod);
        let tenant = core.tenants.of_source(IpAddr::from([10, 0, 0, host]));
        core.sessions.get_mut(key).expect("a session").tenant = tenant;
        (key, peer)
    });
    let ((greedy, mut storm), (modest, mut calm)) = (greedy, modest);
    for peer in [&mut storm, &mut calm] {
        peer.http2.open(0, &REQUEST).expect("a stream");
        peer.send(&[]);
        while core.requests.is_empty() {
            turn(&mut core);
        }
        core.requests.clear();
    }
    for _ in 0..90 {
        storm.http2.open(0, &REQUEST).expect("a stream");
    }
    storm.send(&[]);
    while core.requests.is_empty() {
        turn(&mut core);
    }
    calm.http2.open(0, &REQUEST).expect("a stream");
    calm.send(&[]);
    let mut others = core.requests.drain(..).count();
    loop {
        assert!(others <= 4 * CONNECTIONS_TURN_MAX, "{others} went first");
        turn(&mut core);
        let requests: Vec<_> = core.requests.drain(..).collect();
        others += requests
            .iter()
            .filter(|request| request.session == greedy)
            .count();
        if requests.iter().any(|request| request.session == modest) {
            break;
        }
    }
    while others < 90 {
        turn(&mut core);
        others += core.requests.drain(..).count();
    }
    turn(&mut core);
    assert!(!core.tenants.has_waiting());
}

#[test]
fn a_tenant_that_used_more_than_its_part_makes_up_for_it_and_one_that_was_idle_saves_nothing() {
    let mut tenants = Tenants::default();
    let tenant = tenants.admit();
    tenants.begin_turn();
    assert!(tenants.may(&tenant, 3 * limits::TENANT_TURN_COST));
    assert!(!tenants.may(&tenant, 1));
    tenants.begin_turn();
    assert!(!tenants.may(&tenant, 1), "it still owes one turn");
    tenants.begin_turn();
    assert!(
        !tenants.may(&tenant, 1),
        "it has made up for it, and has nothing left"
    );
    tenants.begin_turn();
    assert!(tenants.may(&tenant, 1));
    for _ in 0..100 {
        tenants.begin_turn();
    }
    assert!(tenants.may(&tenant, limits::TENANT_TURN_COST));
    assert!(!tenants.may(&tenant, 1));
}

#[test]
fn a_source_is_remembered_and_those_that_are_gone_are_forgotten_in_the_end() {
    let mut tenants = Tenants::default();
    let address = |n: usize| IpAddr::from((n as u32).to_be_bytes());
    let kept = tenants.of_source(address(0));
    for n in 1..10 * limits::TENANTS_GONE_MAX {
        assert!(Rc::ptr_eq(
            &tenants.of_source(address(n)),
            &tenants.of_source(address(n))
        ));
    }
    assert!(tenants.by_source.len() <= limits::TENANTS_GONE_MAX + 2);
    assert!(Rc::ptr_eq(&kept, &tenants.of_source(address(0))));
}
