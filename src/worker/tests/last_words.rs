//! What one side said before it was gone, or its stream, reaches the other.

use super::*;

/// How much DATA the peer was sent on the stream, and which frames said that it ended, with their flags.
fn told_behind(
    core: &mut Core<EpollDriver>,
    session: Key<Session>,
    peer: &mut Peer,
    stream: StreamId,
) -> (usize, Vec<(u8, u8)>) {
    core.close_session(session, &Ending::Said("test".into()));
    fixture::turn(core);
    let (mut told, mut ends) = (0, Vec::new());
    let plain = peer.read_to_end();
    let mut rest = &plain[..];
    while let Some((header, behind)) = rest.split_first_chunk::<9>() {
        let bytes = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let (kind, flags) = (header[3], header[4]);
        if header[5..] == stream.get().to_be_bytes() {
            told += if kind == 0 { bytes } else { 0 };
            if kind == 3 || flags == 1 {
                ends.push((kind, flags));
            }
        }
        rest = &behind[bytes..];
    }
    (told, ends)
}

/// In one record, so that one receive brings both.
fn say_and_reset(relay: &mut Relay, said: &[u8], code: ErrorCode) {
    let mut plain = frame(said.len(), 0, 0, relay.stream);
    plain.extend_from_slice(said);
    plain.extend_from_slice(&frame(4, 3, 0, relay.stream));
    plain.extend_from_slice(&code.get().to_be_bytes());
    relay.peer.send(&plain);
}

#[test]
fn what_a_peer_said_completely_reaches_a_slow_reader_although_the_stream_is_reset_behind_it() {
    for code in [ErrorCode::NoError, ErrorCode::Cancel] {
        let executor = Executor::default();
        let mut relay = relay(&executor);
        let said = relay.say_all(ANSWER_BYTES);
        relay.peer.http2.reset(relay.stream, code);
        relay.peer.send(&[]);
        while relay
            .core
            .sessions
            .iter()
            .any(|(_, session)| !session.http2.is_idle())
        {
            fixture::turn(&mut relay.core);
        }
        assert!(
            relay.read_application() == said,
            "{code:?}: other bytes than were sent"
        );
        assert_eq!((relay.core.tunnels.len(), relay.core.remains_bytes), (0, 0));
        assert_eq!(relay.core.sessions.len(), 1, "the session goes on");
    }
}

/// As of an application that sends for ever before it reads.
#[test]
fn an_application_that_does_not_read_what_was_said_before_a_reset_is_reset_all_the_same() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    relay.say(&vec![7; 1 << 20]);
    relay.peer.http2.reset(relay.stream, ErrorCode::Cancel);
    relay.peer.send(&[]);
    while relay.core.remains_bytes == 0 {
        fixture::turn(&mut relay.core);
    }
    assert_eq!(relay.core.tunnels.len(), 1);
    fixture::pass(&mut relay.core, limits::LAST_WORDS_TIME * 2);
    assert_eq!((relay.core.tunnels.len(), relay.core.remains_bytes), (0, 0));
    let end = relay.application.read_to_end(&mut Vec::new());
    assert_eq!(
        end.expect_err("not all of it").kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

/// It has said all that it has to say; the peer has not.
#[test]
fn a_stream_that_is_torn_behind_the_end_of_its_application_is_not_recorded_as_complete() {
    let executor = Executor::default();
    let mut asked = asked(&executor);
    let traffic = Traffic::default();
    asked.core.telemetry = Telemetry::new(log_queue().0, traffic.shard());
    let mut relay = asked.attach();
    let application = &relay.application;
    application.shutdown(std::net::Shutdown::Write).expect("ended");
    while !relay.core.tunnels.iter().all(|(_, tunnel)| tunnel.has_read_all()) {
        fixture::turn(&mut relay.core);
    }
    say_and_reset(&mut relay, b"part", ErrorCode::InternalError);
    while !relay.core.tunnels.is_empty() {
        fixture::turn(&mut relay.core);
    }
    assert_eq!(closed_as(&traffic), [(ResponseFlag::Connect, 1)]);
}

/// An answer that is given early, by a server that goes away behind it.
#[test]
fn what_a_peer_said_before_a_reset_reaches_the_application_before_the_reset_does() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    let said = vec![7; 16_384];
    say_and_reset(&mut relay, &said, ErrorCode::Cancel);
    while !relay.core.tunnels.is_empty() {
        fixture::turn(&mut relay.core);
    }
    let mut received = Vec::new();
    let end = relay.application.read_to_end(&mut received);
    let end = end.map_err(|error| error.kind());
    assert_eq!(
        (received.len(), end),
        (said.len(), Err(std::io::ErrorKind::ConnectionReset))
    );
    assert_eq!(relay.core.remains_bytes, 0);
}

#[test]
fn what_an_application_said_before_it_broke_reaches_the_peer_also_when_a_send_finds_out_first() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    let mut more = frame(4, 0, 0, relay.stream);
    more.extend_from_slice(b"more");
    relay.peer.send(&more);
    relay.application.set_nonblocking(true).expect("an open socket");
    while !matches!(relay.application.peek(&mut [0; 4]), Ok(4)) {
        fixture::turn(&mut relay.core);
    }
    relay.application.set_nonblocking(false).expect("an open socket");
    // More than one receive takes. Unread bytes make the end a reset.
    let said = vec![7; 60 << 10];
    std::io::Write::write_all(&mut relay.application, &said).expect("sent");
    drop(relay.application);
    relay.peer.send(&more);
    while !relay.core.tunnels.is_empty() {
        fixture::turn(&mut relay.core);
    }
    let (told, ends) = told_behind(&mut relay.core, relay.session, &mut relay.peer, relay.stream);
    // RST_STREAM.
    assert_eq!((told, &*ends), (said.len(), &[(3, 0)][..]));
}

/// It closes as applications do, and its kernel answers what still comes.
#[test]
fn an_answer_that_was_ended_stays_a_whole_one_although_a_send_finds_out_before_its_end_is_read() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    let said = vec![7; 60 << 10];
    std::io::Write::write_all(&mut relay.application, &said).expect("sent");
    drop(relay.application);
    let mut more = frame(4, 0, 0, relay.stream);
    more.extend_from_slice(b"more");
    // The first one is answered by a reset, which the second one meets.
    for _ in 0..2 {
        relay.peer.send(&more);
        fixture::turn(&mut relay.core);
    }
    while !relay.core.tunnels.is_empty() {
        fixture::turn(&mut relay.core);
    }
    let (told, ends) = told_behind(&mut relay.core, relay.session, &mut relay.peer, relay.stream);
    // END_STREAM, and RST_STREAM behind it.
    assert_eq!((told, &*ends), (said.len(), &[(0, 1), (3, 0)][..]));
}

#[test]
fn what_a_peer_said_before_it_was_gone_reaches_the_application_also_when_a_send_finds_out_first() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    let mut plain = frame(6, 0, 1, relay.stream);
    plain.extend_from_slice(b"answer");
    relay.peer.send(&plain);
    relay.peer.reset();
    let session = relay.core.sessions.get_mut(relay.session).expect("it lives");
    session.http2.ping(*b"anything");
    relay.core.flush_session(relay.session);
    assert!(
        relay
            .core
            .sessions
            .get(relay.session)
            .expect("read to its end")
            .broken
            .is_some()
    );
    while !relay.core.tunnels.is_empty() {
        fixture::turn(&mut relay.core);
    }
    let mut received = Vec::new();
    relay
        .application
        .read_to_end(&mut received)
        .expect("an orderly end");
    assert_eq!(received, b"answer");
    assert!(relay.core.sessions.is_empty());
}

#[test]
fn a_reset_behind_the_end_leaves_the_application_what_its_socket_took() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    // The application's socket takes in less than ours holds.
    socket2::SockRef::from(&relay.application)
        .set_recv_buffer_size(1)
        .expect("an open socket");
    let said = relay.say_all(100 << 10);
    while !relay
        .core
        .tunnels
        .iter()
        .all(|(_, tunnel)| tunnel.buffered_bytes() == 0)
    {
        fixture::turn(&mut relay.core);
    }
    relay.peer.http2.reset(relay.stream, ErrorCode::Cancel);
    relay.peer.send(&[]);
    while !relay.core.tunnels.is_empty() {
        fixture::turn(&mut relay.core);
    }
    assert!(relay.read_application() == said, "other bytes than were sent");
}

#[test]
fn a_complete_answer_reaches_a_slow_reader_although_the_session_ends_behind_it() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    let said = relay.say_all(ANSWER_BYTES);
    let session = relay.session;
    relay.core.close_session(session, &Ending::Said("test".into()));
    fixture::turn(&mut relay.core);
    assert!(relay.core.sessions.is_empty());
    assert!(relay.core.remains_bytes > 0);
    assert!(relay.read_application() == said, "other bytes than were sent");
    assert_eq!((relay.core.tunnels.len(), relay.core.remains_bytes), (0, 0));
}

#[test]
fn what_an_application_took_before_its_socket_failed_is_counted() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    let (sink, queue) = log_queue();
    relay.core.telemetry = Telemetry::new(sink, Traffic::default().shard());
    relay.say_all(ANSWER_BYTES);
    // All that the kernel has of it; then the application resets, with the rest of a large send on its way.
    relay.application.set_nonblocking(true).expect("an open socket");
    let mut taken = Vec::new();
    let rest = relay.application.read_to_end(&mut taken);
    assert_eq!(
        rest.expect_err("more to come").kind(),
        std::io::ErrorKind::WouldBlock
    );
    let socket = socket2::SockRef::from(&relay.application);
    socket.set_linger(Some(Duration::ZERO)).expect("an open socket");
    drop(relay.application);
    while !relay.core.tunnels.is_empty() {
        fixture::turn(&mut relay.core);
    }
    let Some(LogItem::Access(records)) = queue.next() else {
        panic!("a record");
    };
    let AccessEvent::Complete { bytes_received, .. } = &records[0].event else {
        panic!("{:?}", records[0].event);
    };
    assert!(
        *bytes_received >= taken.len() as u64,
        "{bytes_received} of {}",
        taken.len()
    );
}

#[test]
fn what_streams_left_behind_is_cut_with_their_pod() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    relay.say_all(ANSWER_BYTES);
    let session = relay.session;
    relay.core.close_session(session, &Ending::Said("test".into()));
    assert_eq!(relay.core.tunnels.len(), 1);
    let pod = relay.pod.clone();
    relay.core.cut_remains(&pod);
    assert_eq!((relay.core.tunnels.len(), relay.core.remains_bytes), (0, 0));
}

#[test]
fn beyond_the_budget_of_remains_a_stream_is_cut_off_with_its_session() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    relay.say_all(ANSWER_BYTES);
    relay.core.remains_bytes = limits::REMAINS_BYTES_MAX;
    let session = relay.session;
    relay.core.close_session(session, &Ending::Said("test".into()));
    assert_eq!(relay.core.tunnels.len(), 0);
    assert_eq!(relay.core.remains_bytes, limits::REMAINS_BYTES_MAX);
}

#[test]
fn what_is_torn_leaves_half_of_the_budget_to_what_is_complete() {
    let is_left = |is_complete: bool| {
        let executor = Executor::default();
        let mut relay = relay(&executor);
        match is_complete {
            true => drop(relay.say_all(ANSWER_BYTES)),
            false => relay.say(&vec![7; ANSWER_BYTES]),
        }
        relay.core.remains_bytes = limits::REMAINS_BYTES_MAX / 2;
        let session = relay.session;
        relay.core.close_session(session, &Ending::Said("test".into()));
        relay.core.tunnels.len() == 1
    };
    assert!(is_left(true));
    assert!(!is_left(false));
}

#[test]
fn nothing_is_left_of_what_comes_after_the_end_of_a_drain() {
    let executor = Executor::default();
    let mut relay = relay(&executor);
    relay.say_all(ANSWER_BYTES);
    relay.core.drain_over = true;
    let session = relay.session;
    relay.core.close_session(session, &Ending::Drained);
    assert_eq!((relay.core.tunnels.len(), relay.core.remains_bytes), (0, 0));
}

#[test]
fn who_left_the_most_unread_leaves_room_for_what_others_have_to_read() {
    let left_is_read = |of_pod: usize| {
        let executor = Executor::default();
        let mut relay = relay(&executor);
        let said = relay.say_all(ANSWER_BYTES);
        // Nearly all of it is taken, by this pod or by another one.
        let taken = limits::REMAINS_BYTES_MAX / 8 * 7;
        relay.core.remains_bytes = taken;
        relay.pod.remains_bytes.set(of_pod);
        let session = relay.session;
        relay.core.close_session(session, &Ending::Said("test".into()));
        let is_kept = relay.core.tunnels.len() == 1;
        if is_kept {
            assert!(relay.read_application() == said, "other bytes than were sent");
        }
        assert_eq!(
            (relay.core.remains_bytes, relay.pod.remains_bytes.get()),
            (taken, of_pod)
        );
        is_kept
    };
    assert!(left_is_read(0));
    assert!(!left_is_read(limits::REMAINS_BYTES_MAX / 8 * 7));
}
