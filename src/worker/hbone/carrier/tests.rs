//! What happens to a session inside when something happens to the stream that carries it, and the other way round.

use super::*;
use crate::runtime::tasks::Executor;
use crate::sys::epoll::EpollDriver;
use crate::tls::{Channel, FakeCa, Output, RecordMode};
use crate::wire::hbone::ConnectRequest;
use crate::wire::http2::{Connection, Settings};
use crate::worker::fixture::{self, Peer};
use crate::worker::hbone::session::{Ending, Role, SessionParts, Transport};

const REQUEST: ConnectRequest<'static> = ConnectRequest {
    authority: "shop.example:80",
    baggage: None,
    forwarded: None,
    traceparent: None,
    forwarded_network: None,
};

/// Less than a stream's window, more than a receive.
const BYTES: usize = 1 << 20;

/// A session of the worker inside of a stream of another one of its.
struct Carried {
    core: Core<EpollDriver>,
    outer: Key<Session>,
    stream: StreamId,
    carrier: Key<Carrier>,
    inside: Key<Session>,
    /// At the other end of the outer session.
    gateway: Peer,
    /// At the other end of the session inside.
    channel: Channel,
    http2: Connection,
}

fn carried() -> Carried {
    let mut core = fixture::core(&Executor::default());
    let pod = fixture::pod();
    let (outer, mut gateway) = fixture::session(&mut core, &pod);
    let stream = gateway.http2.open(0, &REQUEST).expect("the first stream");
    gateway.send(&[]);
    while core.requests.is_empty() {
        fixture::turn(&mut core);
    }
    let user = core.requests.remove(0).user;
    let carrier = core.carry(outer, stream, user).expect("the stream lives");
    let (here, there) = fixture::handshake(&FakeCa::new(), RecordMode::Own.into());
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let tenant = pod.tenant.clone();
    let inside = core.sessions.insert(Session::new(SessionParts {
        role: Role::Server,
        transport: Transport::Carrier(carrier),
        channel: here.channel,
        http2: Connection::server(Settings::server()),
        pod,
        peer: here.peer,
        peer_address: nowhere,
        local_address: nowhere,
        revocable: None,
        places: None,
        tenant,
        unsent: core.sources.unsent(nowhere.ip()),
        now: core.now,
    }));
    core.begin_session(inside, &[]);
    core.give_carrier(carrier, inside);
    Carried {
        core,
        outer,
        stream,
        carrier,
        inside,
        gateway,
        channel: there.channel,
        http2: Connection::client(Settings::client()),
    }
}

fn frame(bytes: usize, flags: u8, stream: StreamId) -> Vec<u8> {
    let mut frame = (bytes as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[0, flags]);
    frame.extend_from_slice(&stream.get().to_be_bytes());
    frame
}

impl Carried {
    /// The peer inside says these bytes, and the gateway passes them on.
    fn say_inside(&mut self, plain: &[u8]) {
        let mut all = std::mem::take(self.http2.output());
        all.extend_from_slice(plain);
        let mut sealed = Output::default();
        for piece in all.chunks(16_000) {
            self.channel.seal(&mut sealed, piece);
        }
        for piece in sealed.filled().chunks(16_384) {
            let mut data = frame(piece.len(), 0, self.stream);
            data.extend_from_slice(piece);
            self.gateway.send(&data);
            fixture::turn(&mut self.core);
        }
    }

    fn outer(&self) -> &Session {
        self.core
            .sessions
            .get(self.outer)
            .expect("the outer session lives")
    }

    fn inside(&self) -> Option<&Session> {
        self.core.sessions.get(self.inside)
    }

    fn turn_until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if is_so(self) {
                return;
            }
            fixture::turn(&mut self.core);
        }
        panic!("{what}: not after 2,000 turns");
    }

    /// Nothing of the carrier is left in the outer session.
    fn assert_forgotten(&self) {
        assert_eq!((self.core.carriers.len(), self.outer().users.len()), (0, 0));
        assert!(self.outer().blocked_room.is_empty() && self.outer().blocked_window.is_empty());
        assert!(!self.outer().is_closing());
    }

    /// More than goes into the send buffers of a peer that does not read.
    fn send_too_much(&mut self) {
        // What it begins with goes first.
        fixture::turn(&mut self.core);
        let bytes = vec![7; 64 << 20];
        let end = bytes.len();
        let status = self.core.carrier_send(self.carrier, bytes, end);
        assert!(matches!(status, SendStatus::Queued));
        let inside = self.core.sessions.get_mut(self.inside).expect("it lives");
        inside.sending = true;
        for _ in 0..3 {
            fixture::turn(&mut self.core);
        }
        let outer = self.outer();
        assert!(!outer.blocked_room.is_empty() || !outer.blocked_window.is_empty());
    }
}

#[test]
fn what_a_session_inside_holds_counts_against_its_own_windows_only() {
    let mut carried = carried();
    let stream = carried.http2.open(0, &REQUEST).expect("the first stream inside");
    let mut data = Vec::new();
    for _ in 0..BYTES / 16_384 {
        data.extend_from_slice(&frame(16_384, 0, stream));
        data.extend_from_slice(&[7; 16_384]);
    }
    carried.say_inside(&data);
    carried.turn_until("all bytes inside", |it| {
        it.inside()
            .is_some_and(|inside| inside.http2.unread_bytes_all() == BYTES as u64)
    });
    // Nobody has read them, and the gateway may send on.
    assert_eq!(carried.outer().http2.unread_bytes_all(), 0);
}

#[test]
fn a_stream_that_is_reset_takes_the_session_inside_and_what_waits_with_it() {
    let mut carried = carried();
    carried.send_too_much();
    carried.gateway.http2.reset(carried.stream, ErrorCode::Cancel);
    carried.gateway.send(&[]);
    carried.turn_until("the end inside", |it| it.inside().is_none());
    carried.assert_forgotten();
}

#[test]
fn a_session_inside_that_is_given_up_leaves_nothing_in_the_outer_one() {
    let mut carried = carried();
    carried.send_too_much();
    let why = Ending::Said("test".into());
    carried.core.drop_session(carried.inside, &why);
    assert!(carried.inside().is_none());
    carried.assert_forgotten();
    // The engine forgot the stream as well.
    assert!(carried.outer().http2.is_idle());
}

#[test]
fn a_session_inside_ends_in_order_when_its_stream_does() {
    let mut carried = carried();
    fixture::turn(&mut carried.core);
    let end = frame(0, 1, carried.stream);
    carried.gateway.send(&end);
    carried.turn_until("the end inside", |it| it.inside().is_none());
    carried.assert_forgotten();
    assert!(carried.outer().http2.is_idle());
}

#[test]
fn a_session_inside_does_not_outlive_the_one_that_carries_it() {
    let mut carried = carried();
    let outer = carried.outer;
    carried.core.close_session(outer, &Ending::Said("test".into()));
    assert!(carried.inside().is_none());
    assert!(carried.core.carriers.is_empty());
}

#[test]
fn a_handshake_during_which_the_session_that_carries_it_is_retired_makes_no_session_for_others() {
    let mut carried = carried();
    let carrier = carried.core.carriers.get_mut(carried.carrier).expect("it lives");
    carrier.owner = Owner::Task {
        arrived: Vec::new(),
        lost: None,
        changed: None,
    };
    let (outer, carrier, inside) = (carried.outer, carried.carrier, carried.inside);
    carried.core.retire_session(outer);
    assert!(carried.inside().is_some_and(|inside| !inside.retired));
    carried.core.give_carrier(carrier, inside);
    assert!(carried.inside().is_some_and(|inside| inside.retired));
}

#[test]
fn sessions_go_out_of_service_with_the_one_that_carries_them_and_say_goodbye_first() {
    let mut carried = carried();
    let stream = carried.http2.open(0, &REQUEST).expect("the first stream inside");
    carried.say_inside(&[]);
    carried.turn_until("the request", |it| !it.core.requests.is_empty());
    let outer = carried.outer;
    carried.core.retire_session(outer);
    assert!(
        carried
            .inside()
            .is_some_and(|inside| inside.retired && !inside.is_closing())
    );
    // Its last stream ends, then it says goodbye, then it waits for its peer's end.
    carried.http2.reset(stream, ErrorCode::Cancel);
    carried.say_inside(&[]);
    let user = carried.core.requests.remove(0).user;
    let inside = carried.core.sessions.get_mut(carried.inside).expect("it lives");
    inside.remove_user(user, stream);
    let key = carried.inside;
    carried.core.mark_session(key);
    carried.turn_until("the goodbye", |it| it.inside().is_some_and(Session::is_closing));
    assert_eq!(carried.core.carriers.len(), 1);
    let end = frame(0, 1, carried.stream);
    carried.gateway.send(&end);
    carried.turn_until("the end inside", |it| it.inside().is_none());
    // Nothing is left on the outer one, which was to end as well.
    assert!(carried.core.carriers.is_empty());
    carried.turn_until("the goodbye outside", |it| {
        it.core.sessions.get(it.outer).is_none_or(Session::is_closing)
    });
}
