//! What a worker does with sessions, streams and pods that go away in the middle of something.

use std::cell::Cell;
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

use super::core::Core;
use super::fixture::{self, Peer};
use super::hbone::session::{Ending, Gone, Held, Session, Transport, UserState};
use super::inbound;
use super::outcome::Outcome;
use super::owner::Owned;
use super::pods::PodState;
use super::room::Place;
use super::shell::Shell;
use super::telemetry::Telemetry;
use super::tenants::Tenant;
use super::tunnel::TunnelParts;
use super::turn::{Life, Worker};
use crate::bridge::Traffic;
use crate::bridge::log::{AccessEvent, LogItem, log_queue};
use crate::bridge::orders::{self, Order};
use crate::bridge::traffic::ResponseFlag;
use crate::clock;
use crate::limits;
use crate::runtime::oneshot;
use crate::runtime::slab::Key;
use crate::runtime::tasks::Executor;
use crate::sys::driver::Driver;
use crate::sys::epoll::EpollDriver;
use crate::tls::Revoked;
use crate::wire::hbone::ConnectRequest;
use crate::wire::http2::{ErrorCode, StreamId};

mod last_words;

const REQUEST: ConnectRequest<'static> = ConnectRequest {
    authority: "127.0.0.1:80",
    baggage: None,
    forwarded: None,
    traceparent: None,
    forwarded_network: None,
};

/// More than the sockets here hold, less than a stream's window.
pub const ANSWER_BYTES: usize = 3 << 20;

pub struct Relay {
    pub core: Core<EpollDriver>,
    pod: Rc<PodState>,
    pub session: Key<Session>,
    pub peer: Peer,
    stream: StreamId,
    /// The application's own end.
    pub application: std::net::TcpStream,
}

/// A peer's CONNECT whose journey has begun.
struct Asked {
    core: Core<EpollDriver>,
    pod: Rc<PodState>,
    session: Key<Session>,
    peer: Peer,
    stream: StreamId,
    user: u32,
}

/// A tunnel between a peer and an application that does not read yet.
pub fn relay(executor: &Executor) -> Relay {
    asked(executor).attach()
}

fn asked(executor: &Executor) -> Asked {
    let mut core = fixture::core(executor);
    core.add_pod(fixture::pod().pod.clone(), None);
    let pod = core.pods.iter().next().expect("just added").clone();
    let (session, mut peer) = fixture::session(&mut core, &pod);
    let stream = peer.http2.open(0, &REQUEST).expect("the first stream");
    peer.send(&[]);
    while core.requests.is_empty() {
        fixture::turn(&mut core);
    }
    let user = core.requests.remove(0).user;
    Asked {
        core,
        pod,
        session,
        peer,
        stream,
        user,
    }
}

impl Asked {
    fn attach(self) -> Relay {
        let Self {
            mut core,
            pod,
            session,
            peer,
            stream,
            user,
        } = self;
        let (near, application) = fixture::connection();
        // Far less than the answer, however the kernel is set up.
        socket2::SockRef::from(&near)
            .set_send_buffer_size(64 << 10)
            .expect("an open socket");
        socket2::SockRef::from(&application)
            .set_recv_buffer_size(64 << 10)
            .expect("an open socket");
        let app = core
            .driver
            .adopt(near.into(), Owned::Task(Key::from_bits(0)).to_owner())
            .expect("adopted");
        let (share, place) = (core.load.share(0), fixture::place(&core, &pod));
        let mut account = fixture::account(&core);
        core.telemetry.open(&mut account);
        core.attach_tunnel(TunnelParts {
            app,
            session,
            stream,
            user,
            account,
            pod: pod.clone(),
            actual: (std::net::Ipv4Addr::LOCALHOST, 80).into(),
            share,
            place,
        });
        Relay {
            core,
            pod,
            session,
            peer,
            stream,
            application,
        }
    }
}

impl Relay {
    /// The peer says everything that it has to say: as long as the worker's window has room.
    pub fn say_all(&mut self, bytes: usize) -> Vec<u8> {
        let said: Vec<u8> = (0..bytes).map(|at| (at / 7) as u8).collect();
        self.say(&said);
        self.peer.send(&frame(0, 0, 1, self.stream));
        while !self
            .core
            .tunnels
            .iter()
            .all(|(_, tunnel)| tunnel.peer_has_ended())
        {
            fixture::turn(&mut self.core);
        }
        said
    }

    /// The peer says this, and may go on.
    fn say(&mut self, said: &[u8]) {
        let mut plain = Vec::new();
        for piece in said.chunks(16_384) {
            let header = frame(piece.len(), 0, 0, self.stream);
            plain.extend_from_slice(&header);
            plain.extend_from_slice(piece);
        }
        // In pieces, so that neither side waits for the other for ever.
        for piece in plain.chunks(64 * 1024) {
            self.peer.send(piece);
            fixture::turn(&mut self.core);
        }
    }

    fn read_application(&mut self) -> Vec<u8> {
        self.application.set_nonblocking(true).expect("an open socket");
        let mut bytes = Vec::new();
        loop {
            match self.application.read_to_end(&mut bytes) {
                Ok(_) => return bytes,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => fixture::turn(&mut self.core),
                Err(error) => panic!("{error} after {} bytes", bytes.len()),
            }
        }
    }
}

fn frame(bytes: usize, kind: u8, flags: u8, stream: StreamId) -> Vec<u8> {
    let mut frame = (bytes as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.get().to_be_bytes());
    frame
}

/// A session ends under a connection in one way or another: the flag by which the connection counts as closed.
#[test]
fn a_connection_fails_by_what_breaks_rules_and_not_by_ends_of_pods_and_peers() {
    type Ends = fn(&mut Core<EpollDriver>, Peer) -> Option<Peer>;
    let pod_goes: Ends = |core, peer| {
        let uid = core.pods.iter().next().expect("the only one").pod.uid.clone();
        core.remove_pod(&uid);
        Some(peer)
    };
    let peer_ends: Ends = |_, peer| {
        peer.end();
        Some(peer)
    };
    let peer_resets: Ends = |_, peer| {
        peer.reset();
        None
    };
    let peer_breaks_rules: Ends = |_, mut peer| {
        // RFC 9113 section 6.1: DATA of stream 0.
        peer.send(&[0; 9]);
        Some(peer)
    };
    for (ends, flag) in [
        (pod_goes, ResponseFlag::None),
        (peer_ends, ResponseFlag::None),
        (peer_resets, ResponseFlag::None),
        (peer_breaks_rules, ResponseFlag::Connect),
    ] {
        let executor = Executor::default();
        let mut asked = asked(&executor);
        let (traffic, (sink, _lines)) = (Traffic::default(), log_queue());
        asked.core.telemetry = Telemetry::new(sink, traffic.shard());
        let Relay {
            mut core,
            peer,
            application: _application,
            ..
        } = asked.attach();
        let _peer = ends(&mut core, peer);
        while !core.tunnels.is_empty() {
            fixture::turn(&mut core);
        }
        assert_eq!(closed_as(&traffic), [(flag, 1)]);
    }
}

/// The flags of the only kind of connections, and how many closed with each.
fn closed_as(traffic: &Traffic) -> Vec<(ResponseFlag, u64)> {
    let sums = traffic.series().into_values().next().expect("one connection");
    let closed = ResponseFlag::ALL.into_iter().zip(sums.closed);
    closed.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn an_application_that_resets_gives_its_armed_bytes_back_once() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    let armed = |relay: &Relay| {
        relay
            .core
            .sessions
            .get(relay.session)
            .map(|session| session.armed_bytes)
    };
    // A busy application is read in large pieces, which count.
    relay.application.set_nonblocking(true).expect("an open socket");
    while armed(&relay) == Some(0) {
        let _ = std::io::Write::write(&mut relay.application, &[1; 64 << 10]);
        fixture::turn(&mut relay.core);
    }
    let application = socket2::SockRef::from(&relay.application);
    application
        .set_linger(Some(Duration::ZERO))
        .expect("an open socket");
    drop(relay.application);
    relay.application = fixture::connection().0;
    while !relay.core.tunnels.is_empty() {
        fixture::turn(&mut relay.core);
    }
    assert_eq!(armed(&relay), Some(0));
}

#[test]
fn a_retired_session_says_goodbye_only_when_its_last_bytes_are_sent() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let pod = fixture::pod();
    let (key, mut peer) = fixture::session(&mut core, &pod);
    core.flush();
    let session = core.sessions.get_mut(key).expect("just made");
    // As while the kernel holds a send buffer of it.
    session.sending = true;
    core.retire_session(key);
    core.flush();
    let session = core.sessions.get_mut(key).expect("it waits for its send");
    assert!(!session.is_closing());
    session.sending = false;
    core.mark_session(key);
    core.flush();
    // SETTINGS and the window, then GOAWAY.
    assert_eq!(peer.read_to_end()[3], 4);
    drop(peer);
    while !core.sessions.is_empty() {
        fixture::turn(&mut core);
    }
}

#[test]
fn the_last_bytes_of_a_retired_session_arrive_although_the_peer_still_sends() {
    let executor = Executor::default();
    let Relay {
        mut core,
        session: key,
        mut peer,
        stream,
        mut application,
        ..
    } = relay(&executor);
    // More than the peer's socket takes in, less than the worker's holds.
    let answer = vec![7; 160 << 10];
    peer.set_receive_buffer_size(4 << 10);
    let session = core.sessions.get(key).expect("just made");
    let Transport::Socket(socket) = session.transport else {
        panic!("it is on a socket");
    };
    let socket = core.driver.descriptor(socket).expect("open");
    socket2::SockRef::from(&socket)
        .set_send_buffer_size(1 << 20)
        .expect("an open socket");
    peer.send(&frame(0, 0, 1, stream));
    let saying = std::thread::spawn({
        let answer = answer.clone();
        move || std::io::Write::write_all(&mut application, &answer)
    });
    core.retire_session(key);
    while core
        .sessions
        .get(key)
        .is_some_and(|session| !session.is_closing())
    {
        fixture::turn(&mut core);
    }
    saying.join().expect("no panic").expect("all was taken");
    // As a peer gives window back for what it takes in.
    peer.http2.ping(*b"any time");
    peer.send(&[]);
    fixture::turn(&mut core);
    let reading = std::thread::spawn(move || peer.read_to_end());
    while !reading.is_finished() {
        fixture::turn(&mut core);
    }
    let plain = reading.join().expect("an orderly end");
    assert!(plain.len() > answer.len(), "{} bytes arrived", plain.len());
    while !core.sessions.is_empty() {
        fixture::turn(&mut core);
    }
}

/// As it would be with a tunnel there already.
#[test]
fn a_connection_whose_session_ended_while_it_was_set_up_is_told_why() {
    let revoked = Revoked {
        peer: "spiffe://cluster.local/ns/shop/sa/cart".into(),
        serial: [1].into(),
        issuer: "CN=root".into(),
        is_leaf: true,
    };
    for (why, flag) in [
        (Ending::Revoked(revoked), ResponseFlag::CertRevoked),
        (Ending::Drained, ResponseFlag::None),
        (Ending::Said("h2 failed".to_owned()), ResponseFlag::Connect),
    ] {
        let executor = Executor::default();
        let mut asked = asked(&executor);
        asked.peer.send(&frame(2, 0, 1, asked.stream));
        asked.peer.send(b"hi");
        let traffic = Traffic::default();
        asked.core.telemetry = Telemetry::new(log_queue().0, traffic.shard());
        let held = |asked: &mut Asked| {
            let session = asked.core.sessions.get_mut(asked.session).expect("it lives");
            match &session.user_mut(asked.user, asked.stream).expect("asked").state {
                UserState::Preparing { held } => held.end,
                _ => false,
            }
        };
        while !held(&mut asked) {
            fixture::turn(&mut asked.core);
        }
        let session = asked.session;
        asked.core.close_session(session, &why);
        let is_revoked = matches!(why, Ending::Revoked(_));
        let mut relay = asked.attach();
        while !relay.core.tunnels.is_empty() {
            fixture::turn(&mut relay.core);
        }
        let mut got = Vec::new();
        let end = relay
            .application
            .read_to_end(&mut got)
            .map_err(|error| error.kind());
        match is_revoked {
            true => assert_eq!((end, &*got), (Err(std::io::ErrorKind::ConnectionReset), &b""[..])),
            // All that the peer has to say came before.
            false => assert_eq!((end, &*got), (Ok(2), &b"hi"[..]), "{why:?}"),
        }
        assert_eq!(closed_as(&traffic), [(flag, 1)], "{why:?}");
    }
}

#[test]
fn a_journey_ends_when_the_peer_gives_its_stream_up() {
    let executor = Executor::default();
    let shell = Shell::new(fixture::core(&executor), executor.spawner());
    let (wanted, given_up) = oneshot::channel();
    let mut held = Held {
        wanted: Some(wanted),
        ..Held::default()
    };
    let outcome = Rc::new(Cell::new(None));
    shell.spawn({
        let (shell, outcome) = (shell.clone(), outcome.clone());
        async move { outcome.set(Some(shell.unless(given_up, std::future::pending::<()>()).await)) }
    });
    executor.run(10);
    assert!(outcome.take().is_none());
    held.give_up(Gone::Ended(Ending::Drained));
    executor.run(10);
    let outcome = outcome.take().expect("it ended").expect_err("given up");
    let gone = outcome.expect("told why");
    assert!(matches!(gone.outcome(), Outcome::Drained), "{gone:?}");
}

#[test]
fn a_request_that_crosses_the_goaway_of_a_drain_is_served() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let pod = fixture::pod();
    let (key, mut peer) = fixture::session(&mut core, &pod);
    // What a drain does.
    let session = core.sessions.get_mut(key).expect("just made");
    session.http2.goaway(ErrorCode::NoError, "");
    core.retire_session(key);
    core.flush();
    peer.http2.open(0, &REQUEST).expect("it has not heard of it");
    peer.send(&[]);
    while core.requests.is_empty() {
        let session = core.sessions.get(key).expect("nobody has closed it");
        assert!(!session.is_closing(), "nobody takes the request");
        fixture::turn(&mut core);
    }
}

/// Asks for a stream after `fill` took places of the worker, and has a look at it then. Says what the peer was told
/// until its session was closed.
fn stream_after(
    fill: impl FnOnce(&mut Core<EpollDriver>, &PodState, Key<Session>) -> Vec<Place>,
    look: impl FnOnce(&Core<EpollDriver>, usize),
) -> Vec<u8> {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let pod = fixture::pod();
    let (session, mut peer) = fixture::session(&mut core, &pod);
    peer.http2.open(0, &REQUEST).expect("the first stream");
    peer.send(&[]);
    while core.requests.is_empty() {
        fixture::turn(&mut core);
    }
    let request = core.requests.remove(0);
    let tenant = core.tenants.of_source([10, 0, 0, 1].into());
    core.sessions.get_mut(session).expect("just made").tenant = tenant;
    let places = fill(&mut core, &pod, session);
    let shell = Shell::new(core, executor.spawner());
    shell.spawn(inbound::serve(shell.clone(), request));
    executor.run(10);
    shell.with(|core| {
        look(core, places.len());
        core.flush();
        core.close_session(session, &Ending::Said("test".into()));
        core.flush();
    });
    peer.read_to_end()
}

/// The status of a refusal, as it stands in the header block.
fn is_refused(told: &[u8]) -> bool {
    told.windows(3).any(|bytes| bytes == b"503")
}

fn nothing_is_set_up(core: &Core<EpollDriver>, places: usize) {
    assert_eq!(
        (core.waits.len(), core.room.taken(), core.shed),
        (0, places, 1),
        "nothing is set up"
    );
}

fn all_for(core: &Core<EpollDriver>, tenant: &Rc<Tenant>) -> Vec<Place> {
    std::iter::from_fn(|| core.room.take(tenant, 1).ok()).collect()
}

#[test]
fn a_full_worker_refuses_further_streams() {
    let told = stream_after(|core, _, _| fixture::fill(core), nothing_is_set_up);
    assert!(is_refused(&told));
}

#[test]
fn a_source_with_more_than_its_part_gets_no_further_stream() {
    let all_for_source = |core: &mut Core<EpollDriver>, _: &PodState, key| {
        let tenant = core.sessions.get(key).expect("a session").tenant.clone();
        all_for(core, &tenant)
    };
    assert!(is_refused(&stream_after(all_for_source, nothing_is_set_up)));
}

#[test]
fn a_pod_with_more_than_its_part_is_still_reached() {
    let told = stream_after(
        |core, pod, _| all_for(core, &pod.tenant),
        |core, places| assert_eq!((core.room.taken(), core.shed), (places + 1, 0)),
    );
    assert!(!is_refused(&told));
}

#[test]
fn every_turn_is_counted_for_others_to_read() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let load = core.load.clone();
    for _ in 0..3 {
        fixture::turn(&mut core);
    }
    let turns = load.turns(core.index);
    assert_eq!(turns.count(), 3);
    assert!(turns.longest > std::time::Duration::ZERO && turns.total >= turns.longest);
    assert_eq!(load.all_turns(), turns);
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_peer_that_never_opens_a_stream_has_its_session_for_30_seconds() {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let pod = fixture::pod();
    let (key, mut peer) = fixture::session(&mut core, &pod);
    core.start_session_timer(key);
    for _ in 1..limits::SILENT_SESSION.as_secs() {
        fixture::pass(&mut core, SECOND);
    }
    assert!(!core.sessions.get(key).expect("not yet").is_closing());
    fixture::pass(&mut core, SECOND);
    assert!(core.sessions.is_empty());
    assert!(!peer.read_to_end().is_empty(), "GOAWAY and an orderly end");
}

/// Neither FIN nor RST comes from a machine that lost its power, or through a wire that was cut.
#[test]
fn a_peer_that_stops_answering_loses_its_session_and_the_application_is_told_by_a_reset() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    relay.core.start_session_timer(relay.session);
    assert_eq!(relay.core.room.taken(), 1);
    let mut seconds = 0;
    while relay.core.sessions.get(relay.session).is_some() {
        fixture::pass(&mut relay.core, SECOND);
        seconds += 1;
        assert!(seconds <= 40, "it is never ended");
    }
    // Looked at every 10 s: asked when nothing had come for so long, given up 20 s later.
    let after = limits::PING_INTERVAL + limits::PING_TIMEOUT;
    assert!(
        (after.as_secs()..=after.as_secs() + 10).contains(&seconds),
        "{seconds}"
    );
    assert_eq!((relay.core.tunnels.len(), relay.core.room.taken()), (0, 0));
    let end = relay.application.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn a_peer_that_is_heard_of_keeps_its_session_and_streams() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    relay.core.start_session_timer(relay.session);
    for _ in 0..20 {
        for _ in 0..9 {
            fixture::pass(&mut relay.core, SECOND);
        }
        // As any byte of it would.
        let session = relay.core.sessions.get_mut(relay.session).expect("kept");
        session.last_received = relay.core.now;
        session.ping_sent = None;
    }
    assert_eq!((relay.core.sessions.len(), relay.core.tunnels.len()), (1, 1));
}

/// A client keeps its session for the next connection as long as its own settings say.
#[test]
fn a_peer_that_was_served_keeps_its_unused_session_for_much_longer() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    relay.core.start_session_timer(relay.session);
    relay.peer.http2.reset(relay.stream, ErrorCode::Cancel);
    relay.peer.send(&[]);
    while !relay.core.tunnels.is_empty() {
        fixture::turn(&mut relay.core);
    }
    let start = relay.core.now;
    while let Some(session) = relay.core.sessions.get_mut(relay.session) {
        // It answers PINGs, and that is all that it does.
        session.last_received = relay.core.now;
        session.ping_sent = None;
        fixture::pass(&mut relay.core, SECOND);
    }
    let kept = relay.core.now - start;
    let limit = relay.core.settings.session_idle_timeout * 3;
    assert!(
        kept >= limit && kept < limit + 2 * limits::PING_INTERVAL,
        "{kept:?}"
    );
}

#[test]
fn a_drain_is_not_over_while_tasks_wait_for_their_turn() {
    let executor = Executor::default();
    let core = fixture::core(&executor);
    let spawner = executor.spawner();
    let (handle, inbox) = orders::channel(core.driver.waker());
    let mut worker = Worker::new(core, executor, inbox);
    let ran = Rc::new(Cell::new(0));
    // Those of the first batch take longer than tasks may have in one turn.
    let tasks = limits::TASKS_BATCH + 1;
    for _ in 0..tasks {
        let ran = ran.clone();
        spawner.spawn(async move {
            let until = clock::now() + limits::TASKS_TURN_TIME / 2;
            while clock::now() < until {}
            ran.set(ran.get() + 1);
        });
    }
    handle.send(Order::Drain {
        deadline: Duration::from_secs(60),
    });
    let mut turns = 0;
    while worker.turn().expect("a turn") != Life::Over {
        turns += 1;
    }
    assert_eq!((ran.get(), turns), (tasks, 1));
}
