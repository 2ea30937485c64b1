//! What sessions hold together for peers that do not read, and what becomes of those that do.

use std::io::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::runtime::tasks::Executor;
use crate::sys::epoll::EpollDriver;
use crate::worker::fixture::{self, Peer};
use crate::worker::hbone::session::{Ending, Transport};
use crate::worker::tests::{Relay, relay};

/// Where all sessions of the fixture come from.
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const ANSWER_BYTES: usize = 2 << 20;

#[test]
fn sessions_of_one_source_are_counted_together_and_those_of_others_apart() {
    let sources = Sources::default();
    let mut first = sources.unsent(SOURCE);
    let mut second = sources.unsent(SOURCE);
    let other = sources.unsent([10, 0, 0, 1].into());
    first.set(limits::SOURCE_UNSENT_BYTES_SOFT - 1);
    assert!(!second.is_short());
    second.set(1);
    assert!(first.is_short() && second.is_short() && !other.is_short());
    assert!(!first.is_exhausted());
    first.set(limits::SOURCE_UNSENT_BYTES_MAX - 1);
    assert!(second.is_exhausted() && !other.is_exhausted());
    assert_eq!(sources.bytes(), limits::SOURCE_UNSENT_BYTES_MAX);
    drop(first);
    assert!(!second.is_short());
    drop((second, other));
    assert!(sources.is_empty());
}

#[test]
fn the_log_hears_of_a_source_once_in_a_while_however_many_sessions_it_has() {
    let sources = Sources::default();
    let mut first = sources.unsent(SOURCE);
    let second = sources.unsent(SOURCE);
    let now = crate::clock::now();
    assert!(!first.is_news(now), "nothing is held");
    first.set(limits::SOURCE_UNSENT_BYTES_SOFT);
    assert!(first.is_news(now) && !second.is_news(now));
    let later = now + limits::SOURCE_WARNING_INTERVAL;
    assert!(!second.is_news(later - Duration::from_millis(1)));
    assert!(second.is_news(later) && !first.is_news(later));
}

/// The application says all that it has; until it is stuck, if nobody reads at the other end.
fn say(
    core: &mut Core<EpollDriver>,
    application: &mut std::net::TcpStream,
    said: &mut usize,
    held_max: usize,
) {
    let piece = [7; 64 << 10];
    let mut stuck = 0;
    while *said < ANSWER_BYTES && stuck < 5 {
        let left = piece.len().min(ANSWER_BYTES - *said);
        match application.write(&piece[..left]) {
            Ok(taken) => (*said, stuck) = (*said + taken, 0),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => stuck += 1,
            Err(error) => panic!("{error}"),
        }
        fixture::turn(core);
        let held = core.sources.bytes() - limits::SOURCE_UNSENT_BYTES_SOFT;
        assert!(held <= held_max, "{held} bytes");
    }
}

#[test]
fn a_session_of_a_source_that_holds_much_takes_little_and_goes_on_when_its_own_peer_reads() {
    let executor = Executor::default();
    let Relay {
        mut core,
        session: key,
        mut peer,
        mut application,
        ..
    } = relay(&executor);
    core.flush();
    // What other sessions of the source hold, and go on holding.
    let mut others = core.sources.unsent(SOURCE);
    others.set(limits::SOURCE_UNSENT_BYTES_SOFT);
    // Far less than the answer, however the kernel is set up.
    peer.set_receive_buffer_size(64 << 10);
    let Some(Transport::Socket(socket)) = core.sessions.get(key).map(|session| session.transport) else {
        panic!("it is on a socket");
    };
    let socket = core.driver.descriptor(socket).expect("open");
    for socket in [
        socket2::SockRef::from(&socket),
        socket2::SockRef::from(&application),
    ] {
        socket.set_send_buffer_size(64 << 10).expect("an open socket");
    }
    application.set_nonblocking(true).expect("an open socket");
    let mut said = 0;
    // One small receive is being sent, and one was armed before that.
    let held_max = 2 * limits::OUTPUT_SMALL_BYTES;
    let is_stuck = |core: &Core<EpollDriver>| core.sessions.get(key).is_some_and(|session| session.sending);
    while !is_stuck(&core) {
        say(&mut core, &mut application, &mut said, held_max);
        assert!(said < ANSWER_BYTES, "all is read although its peer reads nothing");
    }
    let session = core.sessions.get(key).expect("nobody ends it");
    assert!(session.buffered_bytes() <= held_max);

    let reading = std::thread::spawn(move || peer.read_to_end());
    while said < ANSWER_BYTES {
        say(&mut core, &mut application, &mut said, held_max);
    }
    application
        .shutdown(std::net::Shutdown::Write)
        .expect("an open socket");
    let is_said = |core: &Core<EpollDriver>| core.tunnels.iter().all(|(_, tunnel)| tunnel.has_read_all());
    while !is_said(&core) || core.sources.bytes() > limits::SOURCE_UNSENT_BYTES_SOFT {
        fixture::turn(&mut core);
    }
    core.close_session(key, &Ending::Said("test".into()));
    while !reading.is_finished() {
        fixture::turn(&mut core);
    }
    let plain = reading.join().expect("an orderly end");
    let answer = plain.iter().filter(|byte| **byte == 7).count();
    assert!(answer >= ANSWER_BYTES, "{answer} bytes arrived");
}

/// A session whose peer makes it answer, more than what may wait, and reads nothing; another one that reads.
fn ask_and_do_not_read(held_by_others: usize) -> (bool, bool) {
    let executor = Executor::default();
    let mut core = fixture::core(&executor);
    let pod = fixture::pod();
    let (silent, mut asks) = fixture::session(&mut core, &pod);
    let (honest, mut reads) = fixture::session(&mut core, &pod);
    core.flush();
    let mut others = core.sources.unsent(SOURCE);
    others.set(held_by_others);
    // As while the kernel has no room for what was sent before.
    core.sessions
        .get_mut(silent)
        .expect("just made")
        .set_sending(Some(1));
    let ask = |peer: &mut Peer, times: usize| {
        // RFC 9113 section 6.7.
        let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0], &b"question"[..]].concat();
        peer.send(&ping.repeat(times));
    };
    let answers = limits::SOURCE_ANSWERS_BYTES / 17 + 2;
    for _ in 0..answers.div_ceil(50) {
        ask(&mut asks, 50);
        ask(&mut reads, 50);
        fixture::turn(&mut core);
        fixture::turn(&mut core);
    }
    let control = |core: &mut Core<EpollDriver>| {
        let session = core.sessions.get_mut(silent)?;
        (!session.is_closing()).then(|| session.http2.output().len())
    };
    while control(&mut core).is_some_and(|bytes| bytes <= limits::SOURCE_ANSWERS_BYTES) {
        fixture::turn(&mut core);
    }
    let goes_on = |key| {
        core.sessions
            .get(key)
            .is_some_and(|session| !session.is_closing())
    };
    (goes_on(silent), goes_on(honest))
}

#[test]
fn who_makes_us_answer_and_does_not_read_is_ended_only_when_its_source_holds_too_much() {
    assert_eq!(
        ask_and_do_not_read(limits::SOURCE_UNSENT_BYTES_MAX),
        (false, true)
    );
    assert_eq!(
        ask_and_do_not_read(limits::SOURCE_UNSENT_BYTES_SOFT),
        (true, true)
    );
}
