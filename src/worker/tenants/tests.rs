//! What waits, for how many turns, and what goes first. Counted in turns and pieces of work, never in time.

use std::io::Read;

use super::*;
use crate::runtime::tasks::Executor;
use crate::sys::buffer::RecvBuffer;
use crate::sys::driver::SocketId;
use crate::sys::epoll::EpollDriver;
use crate::wire::hbone::ConnectRequest;
use crate::worker::fixture::{self, Peer};
use crate::worker::tests::{ANSWER_BYTES, Relay, relay};

const REQUEST: ConnectRequest<'_> = ConnectRequest {
    authority: "10.0.0.2:80",
    baggage: None,
    forwarded: None,
    traceparent: None,
    forwarded_network: None,
};
/// Those that come by themselves in one turn: the last one may begin with next to no credit left.
const EVENTS_TURN_MAX: usize = (limits::TENANT_TURN_COST / limits::EVENT_COST) as usize + 1;
/// Of one session: less than it may open, more than a turn has room for when each comes by itself.
const REQUESTS: usize = 90;

/// A session of its own source.
struct Sender {
    key: Key<Session>,
    socket: SocketId,
    peer: Peer,
}

fn sender(core: &mut Core<EpollDriver>, source: [u8; 4]) -> Sender {
    let (key, peer) = fixture::session(core, &fixture::pod());
    let tenant = core.tenants.of_source(source.into());
    let session = core.sessions.get_mut(key).expect("a session");
    session.tenant = tenant;
    let Transport::Socket(socket) = session.transport else {
        unreachable!("the fixture's sessions have sockets")
    };
    Sender { key, socket, peer }
}

impl Sender {
    /// What the driver would say of bytes that arrived.
    fn received(&self, bytes: &[u8]) -> Event {
        Event::Received {
            owner: Owned::Session(self.key).to_owner(),
            socket: self.socket,
            data: Received::Data(RecvBuffer::copied(bytes)),
        }
    }

    fn request(&mut self) -> Event {
        self.peer.http2.open(0, &REQUEST).expect("a stream");
        let bytes = self.peer.sealed(&[]);
        self.received(&bytes)
    }
}

/// A turn in which nothing arrives. Returns whose requests came out.
fn next_turn(core: &mut Core<EpollDriver>) -> Vec<Key<Session>> {
    core.tenants.begin_turn();
    core.serve_waiting();
    take_requests(core)
}

fn take_requests(core: &mut Core<EpollDriver>) -> Vec<Key<Session>> {
    core.requests.drain(..).map(|request| request.session).collect()
}

#[test]
fn what_a_source_sends_beyond_its_part_of_a_turn_lets_another_go_first() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let mut greedy = sender(&mut core, [10, 0, 0, 1]);
    let mut modest = sender(&mut core, [10, 0, 0, 2]);
    core.tenants.begin_turn();
    for _ in 0..REQUESTS {
        let event = greedy.request();
        core.dispatch_fairly(event);
    }
    let event = modest.request();
    core.dispatch_fairly(event);
    let served = take_requests(&mut core);
    assert_eq!(served.last(), Some(&modest.key), "it did not wait");
    assert!(
        served.len() <= EVENTS_TURN_MAX + 1,
        "{} in one turn",
        served.len()
    );
    // Nothing is lost, and nothing of the greedy one overtakes what it sent before.
    let mut of_greedy = served.len() - 1;
    let event = greedy.request();
    core.dispatch_fairly(event);
    assert!(take_requests(&mut core).is_empty());
    while core.tenants.has_waiting() {
        of_greedy += next_turn(&mut core).len();
    }
    assert_eq!(of_greedy, REQUESTS + 1);
    let session = core.sessions.get(greedy.key).expect("it goes on");
    assert_eq!(session.receives_waiting, 0);
}

#[test]
fn a_source_that_is_alone_waits_for_nothing() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let mut alone = sender(&mut core, [10, 0, 0, 1]);
    for _ in 0..REQUESTS {
        alone.peer.http2.open(0, &REQUEST).expect("a stream");
        alone.peer.send(&[]);
    }
    let mut served = 0;
    while served < REQUESTS {
        core.poll(false).expect("polled");
        assert!(!core.tenants.is_crowded() && !core.tenants.has_waiting());
        served += take_requests(&mut core).len();
        core.flush();
    }
}

#[test]
fn a_large_receive_is_opened_in_parts_and_nothing_is_received_until_the_last_one() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let mut sender = sender(&mut core, [10, 0, 0, 1]);
    // Frames of a type that nobody knows (RFC 9113 section 4.1: ignored), then a request.
    let unknown = [&[0, 64, 0, 0xfa, 0, 0, 0, 0, 0][..], &[0; 16384]].concat();
    let mut bytes = sender.peer.sealed(&unknown.repeat(16));
    assert!(bytes.len() > 3 * limits::CROWDED_READ_BYTES);
    sender.peer.http2.open(0, &REQUEST).expect("a stream");
    bytes.extend(sender.peer.sealed(&[]));
    core.tenants.begin_turn();
    core.dispatch_fairly(sender.received(&bytes));
    let mut turns = 1;
    while core.tenants.has_waiting() {
        let session = core.sessions.get(sender.key).expect("it goes on");
        assert_eq!(session.receives_waiting, 1);
        assert!(core.requests.is_empty(), "it comes last");
        core.tenants.begin_turn();
        core.serve_waiting();
        turns += 1;
    }
    assert!(turns > 1);
    assert_eq!(take_requests(&mut core), [sender.key]);
    // The driver receives again.
    sender.peer.http2.open(0, &REQUEST).expect("a stream");
    sender.peer.send(&[]);
    while take_requests(&mut core).is_empty() {
        core.poll(false).expect("polled");
        core.flush();
    }
}

#[test]
fn tenants_that_wait_take_turns() {
    let executor = Executor::default();
    let sender = sender(&mut fixture::core(&executor), [10, 0, 0, 1]);
    let event = || sender.received(&[0; limits::CROWDED_READ_BYTES]);
    let mut tenants = Tenants::default();
    let all: Vec<_> = (0..5).map(|_| tenants.admit()).collect();
    for (n, tenant) in all.iter().enumerate() {
        for _ in 0..=n {
            tenants.wait(tenant, event());
        }
    }
    let mut served = Vec::new();
    for turns in 1.. {
        tenants.begin_turn();
        tenants.ask_all();
        let mut cost = 0;
        while let Some((tenant, event)) = tenants.take_waiting() {
            served.push(tenant.number);
            cost += cost_of(&event);
        }
        assert!(cost <= 2 * limits::TURN_COST, "{cost} in one turn");
        if !tenants.has_waiting() {
            break;
        }
        assert!(turns < 15, "each turn serves somebody");
    }
    assert_eq!(served.len(), 15);
    // Two of such receives are a tenant's part of a turn. Nobody has a second part before all had a first one.
    let first_parts = &served[..9];
    for number in 1..=5 {
        let times = first_parts.iter().filter(|served| **served == number).count();
        assert_eq!(times, usize::from(number > 1) + 1, "{served:?}");
    }
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

#[test]
fn of_connections_that_did_not_begin_the_newest_are_refused_until_one_begins() {
    let mut tenants = Tenants::default();
    let (storm, calm) = (tenants.admit(), tenants.admit());
    let new = || Unbegun::new(&storm);
    let mut held: Vec<_> = (0..limits::TENANT_UNBEGUN_MAX).map_while(|_| new()).collect();
    assert_eq!(held.len(), limits::TENANT_UNBEGUN_MAX);
    assert!(new().is_none() && Unbegun::new(&calm).is_some());
    held.pop();
    held.extend(new());
    assert_eq!(held.len(), limits::TENANT_UNBEGUN_MAX);
}

/// Lets somebody with little to do wait behind somebody with much.
fn crowd(tenants: &mut Tenants) {
    let (busy, modest) = (tenants.admit(), tenants.admit());
    crowd_by(tenants, &busy, &modest);
}

fn crowd_by(tenants: &mut Tenants, busy: &Rc<Tenant>, modest: &Rc<Tenant>) {
    while !tenants.is_crowded() {
        tenants.note(busy, limits::STRETCH_COST);
        tenants.note(modest, limits::EVENT_COST);
        tenants.begin_turn();
    }
}

#[test]
fn applications_of_a_tenant_get_their_part_of_a_crowded_turn_whatever_others_got() {
    let mut tenants = Tenants::default();
    let (storm, calm) = (tenants.admit(), tenants.admit());
    let mut sends = 0;
    while sends < 1000 && tenants.may_send(&storm) {
        tenants.note_sent(&storm, 1024);
        sends += 1;
    }
    assert_eq!(sends, 1000, "as many as there are while nothing is crowded");
    crowd(&mut tenants);
    for _ in 0..3 {
        let mut sends = 0;
        while tenants.may_send(&storm) {
            tenants.note_sent(&storm, 1024);
            sends += 1;
        }
        assert!((8..=128).contains(&sends), "{sends}");
        assert!(tenants.may_send(&calm));
        tenants.note_tasks_left();
        tenants.begin_turn();
    }
}

#[test]
fn what_busy_tenants_send_in_a_crowded_turn_goes_out_behind_what_others_do() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    let core = &mut relay.core;
    let (tunnel, session) = (core.tunnels.keys()[0], core.sessions.keys()[0]);
    let busy = core.tunnels.get(tunnel).expect("it stands").tenant().clone();
    core.sessions.get_mut(session).expect("it stands").tenant = busy.clone();
    let other = sender(core, [10, 0, 0, 2]);
    let modest = core.tenants.of_source([10, 0, 0, 2].into());
    crowd_by(&mut core.tenants, &busy, &modest);
    for sessions in [[session, other.key], [other.key, session]] {
        core.mark_tunnel(tunnel);
        for key in sessions {
            core.mark_session(key);
        }
        let busy = core.put_busy_first();
        assert_eq!(busy, [1, 1]);
        core.send_all_but(busy);
        assert_eq!(
            (&core.dirty_tunnels[..], &core.dirty_sessions[..]),
            (&[tunnel][..], &[session][..]),
            "the other's went out, and nothing of the busy one"
        );
        core.send_out();
        assert!(core.dirty_tunnels.is_empty() && core.dirty_sessions.is_empty());
    }
}

#[test]
fn what_piled_up_for_an_application_is_handed_over_in_several_crowded_turns() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    let said = relay.say_all(ANSWER_BYTES);
    let Relay {
        mut core,
        application,
        peer: _stays,
        ..
    } = relay;
    let key = core.tunnels.keys()[0];
    let waiting = |core: &Core<EpollDriver>| core.tunnels.get(key).map_or(0, |tunnel| tunnel.queue.bytes());
    let (mut left, part) = (waiting(&core), limits::TENANT_SENDS_COST as usize);
    assert!(left > 2 * part, "{left} bytes prove nothing");
    let (least, mut turns, mut got) = (left / part, 0, Vec::new());
    crowd(&mut core.tenants);
    application.set_nonblocking(true).expect("set");
    while got.len() < said.len() {
        // What there is; an error is `WouldBlock`.
        let _ = (&application).read_to_end(&mut got);
        core.tenants.note_tasks_left();
        core.poll(true).expect("polled");
        core.send_out();
        let handed_over = left - waiting(&core);
        assert!(handed_over <= part, "{handed_over} in one turn");
        left -= handed_over;
        turns += usize::from(handed_over > 0);
    }
    assert!(got == said, "in order and complete");
    assert!(turns >= least, "{turns} turns");
    assert!(core.later_tunnels.is_empty());
}
