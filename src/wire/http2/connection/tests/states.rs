//! RFC 9113 sections 5.1, 6.4, 6.8, 8.1: the life of a stream, GOAWAY, numbers and concurrency.

use super::*;

#[test]
fn a_tunnel_lives_until_both_directions_ended() {
    let mut bench = Bench::server(Settings::server());
    let stream = bench.accept(1);
    assert_eq!(
        bench.feed(&last_data(1, b"bye")),
        [Seen::Data(1, b"bye".to_vec(), true)]
    );
    assert!(bench.connection.may_send(stream), "the other direction goes on");
    bench.connection.consumed(stream, 3);
    bench.connection.data_header(stream, 10, false);
    assert_eq!(
        bench.connection.data_header(stream, 0, true),
        [0, 0, 0, 0, 1, 0, 0, 0, 1]
    );
    assert!(!bench.connection.may_send(stream));
    assert!(bench.connection.is_idle());
    assert_eq!(bench.connection.send_capacity(stream), 0);
}

#[test]
fn we_may_end_first_and_the_peer_goes_on() {
    let mut bench = Bench::client(Settings::client());
    let stream = bench.open();
    assert_eq!(
        bench.connection.data_header(stream, 4, true),
        [0, 0, 4, 0, 1, 0, 0, 0, 1]
    );
    assert_eq!(
        bench.feed(&data(1, b"still")),
        [Seen::Data(1, b"still".to_vec(), false)]
    );
    assert_eq!(bench.feed(&last_data(1, b"")), [Seen::End(1)]);
    assert_eq!(bench.connection.streams_open(), 0);
    assert!(!bench.connection.is_idle(), "five bytes wait for their reader");
    bench.connection.consumed(stream, 5);
    assert!(bench.connection.is_idle());
}

#[test]
fn content_after_the_end_of_a_stream_is_a_stream_error() {
    for late in [data(1, b"late"), last_data(1, b""), request(1)] {
        let mut bench = Bench::server(Settings::server());
        bench.accept(1);
        bench.accept(3);
        bench.feed(&last_data(1, b""));
        assert_eq!(bench.feed(&late), [Seen::Reset(1, ErrorCode::StreamClosed)]);
        assert_eq!(bench.resets(), [(1, ErrorCode::StreamClosed)]);
        assert_eq!(bench.connection.streams_open(), 1, "the other stream lives");
    }
}

#[test]
fn frames_on_streams_that_were_never_opened_end_the_connection() {
    for bytes in [
        data(5, b"x"),
        reset(5, ErrorCode::Cancel),
        window_update(5, 1),
        request(2),
        data(2, b""),
    ] {
        let mut bench = Bench::server(Settings::server());
        bench.accept(3);
        assert!(matches!(bench.refuse(&bytes), Reason::IdleStream { .. }));
    }
    for bytes in [
        data(3, b"x"),
        response(3, 200),
        response(2, 200),
        window_update(2, 1),
    ] {
        let mut bench = Bench::client(Settings::client());
        bench.open();
        assert!(matches!(bench.refuse(&bytes), Reason::IdleStream { .. }));
    }
}

#[test]
fn frames_on_closed_streams_are_ignored() {
    let mut bench = Bench::server(Settings::server());
    let stream = bench.accept(5);
    bench.connection.reset(stream, ErrorCode::Cancel);
    bench.sent();
    for number in [1, 5] {
        assert_eq!(bench.feed(&window_update(number, 0)), []);
        assert_eq!(bench.feed(&reset(number, ErrorCode::Cancel)), []);
        assert_eq!(bench.feed(&data(number, b"late")), []);
        assert_eq!(
            bench.feed(&request(number)),
            [],
            "a lower number is closed, not new"
        );
    }
    assert_eq!(bench.sent(), []);
}

#[test]
fn a_closed_stream_still_feeds_the_header_table() {
    let mut bench = Bench::server(Settings::server());
    let stream = bench.accept(1);
    bench.connection.reset(stream, ErrorCode::Cancel);
    bench.sent();
    // Literal with incremental indexing (RFC 7541 section 6.2.1), then a reference to it.
    let mut block = vec![0x40, 10];
    block.extend_from_slice(b":authority");
    block.extend_from_slice(b"\x0810.9.9.9");
    assert_eq!(bench.feed(&raw(Kind::Headers, FLAG_END_HEADERS, 1, &block)), []);
    let mut block = vec![];
    hpack::encode_literal(&mut block, b":method", b"CONNECT");
    block.push(0x80 | 62);
    let event = bench.feed(&raw(Kind::Headers, FLAG_END_HEADERS, 3, &block));
    assert_eq!(event, [Seen::Connect(3, "10.9.9.9".into(), false)]);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_keep_the_header_table_in_step() {
    let mut bench = Bench::server(Settings {
        streams_max: 2,
        ..Settings::server()
    });
    let first = bench.accept(1);
    bench.accept(3);
    let mut block = request_block();
    block.extend_from_slice(&[0x40, 1, b'x', 1, b'y']);
    assert_eq!(bench.feed(&raw(Kind::Headers, FLAG_END_HEADERS, 5, &block)), []);
    assert_eq!(bench.resets(), [(5, ErrorCode::RefusedStream)]);
    assert_eq!(bench.feed(&data(5, b"for nobody")), []);
    bench.connection.reset(first, ErrorCode::NoError);
    bench.sent();
    let mut block = request_block();
    block.push(0x80 | 62);
    assert_eq!(
        bench.feed(&raw(Kind::Headers, FLAG_END_HEADERS, 7, &block)).len(),
        1
    );
}

#[test]
fn ended_streams_with_unread_bytes_are_bounded_too() {
    let mut bench = Bench::server(Settings {
        streams_max: 5,
        ..Settings::server()
    });
    for n in 0..10 {
        let stream = bench.accept(2 * n + 1);
        bench.feed(&last_data(stream.get(), b"x"));
        bench.connection.data_header(stream, 0, true);
    }
    assert_eq!(bench.connection.streams_open(), 0);
    assert_eq!(bench.feed(&request(101)), []);
    assert_eq!(bench.resets(), [(101, ErrorCode::RefusedStream)]);
    bench.connection.consumed(StreamId(1), 1);
    bench.accept(103);
    bench.connection.reset(StreamId(3), ErrorCode::Cancel);
    assert_eq!(bench.sent(), [], "no RST_STREAM on a stream that is closed");
}

#[test]
fn a_client_goes_by_the_peers_limit() {
    let mut connection = Connection::client(Settings::client());
    for _ in 0..limits::HTTP2_STREAMS_ASSUMED {
        connection.open(0, &REQUEST).expect("assumed to be allowed");
    }
    assert_eq!(connection.open(0, &REQUEST), Err(OpenError::StreamsMax(100)));
    let mut bench = Bench {
        connection,
        now: Instant::now(),
    };
    bench.feed(&settings(&[(3, 101)]));
    let last = bench.connection.open(0, &REQUEST).expect("one more");
    assert_eq!(last.get(), 201);
    assert!(!bench.connection.can_open());
    bench.feed(&reset(1, ErrorCode::Cancel));
    assert!(bench.connection.can_open());
}

#[test]
fn settings_without_a_stream_limit_lift_it() {
    let bench = Bench::client(Settings::client());
    assert_eq!(bench.connection.streams_max(), u32::MAX);
}

#[test]
fn a_client_stops_when_its_numbers_are_used_up() {
    let mut bench = Bench::client(Settings::client());
    bench.connection.number_next = frame::STREAM_MAX;
    assert_eq!(
        bench.connection.open(0, &REQUEST).map(StreamId::get),
        Ok(frame::STREAM_MAX)
    );
    assert_eq!(bench.connection.open(0, &REQUEST), Err(OpenError::NumbersUsed));
    let last = response(frame::STREAM_MAX, 200);
    assert_eq!(bench.feed(&last), [Seen::Response(frame::STREAM_MAX, 200, false)]);
}

#[test]
fn goaway_of_the_server_refuses_the_streams_above_it_first() {
    let mut bench = Bench::client(Settings::client());
    for _ in 0..4 {
        bench.open();
    }
    assert_eq!(
        bench.feed(&goaway(3, ErrorCode::NoError)),
        [
            Seen::Reset(5, ErrorCode::RefusedStream),
            Seen::Reset(7, ErrorCode::RefusedStream),
            Seen::GoAway(3, ErrorCode::NoError)
        ]
    );
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.connection.open(0, &REQUEST), Err(OpenError::GoingAway));
    assert_eq!(bench.feed(&data(3, b"goes on")).len(), 1);
    assert_eq!(
        bench.feed(&goaway(7, ErrorCode::NoError)),
        [Seen::GoAway(3, ErrorCode::NoError)],
        "a number that grows revives nothing"
    );
    assert_eq!(
        bench.feed(&goaway(1, ErrorCode::InternalError)),
        [
            Seen::Reset(3, ErrorCode::RefusedStream),
            Seen::GoAway(1, ErrorCode::InternalError)
        ]
    );
}

#[test]
fn after_our_last_goaway_new_streams_are_dropped_and_old_ones_go_on() {
    let mut bench = Bench::server(Settings::server());
    bench.accept(1);
    bench.connection.close(ErrorCode::NoError, "draining");
    let text = [0, 0, 0, 1, 0, 0, 0, 0]
        .iter()
        .chain(b"draining")
        .copied()
        .collect();
    assert_eq!(bench.sent(), [(Kind::GoAway, 0, 0, text)]);
    assert_eq!(bench.feed(&request(3)), []);
    assert_eq!(bench.feed(&data(3, b"dropped")), []);
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.feed(&data(1, b"goes on")).len(), 1);
    bench
        .connection
        .close(ErrorCode::ProtocolError, &"long".repeat(1000));
    let sent = bench.sent();
    assert_eq!(
        sent[0].3[..8],
        [0, 0, 0, 1, 0, 0, 0, 1],
        "the last stream does not grow"
    );
    assert_eq!(sent[0].3.len(), 8 + limits::HTTP2_GOAWAY_TEXT_BYTES);
}

#[test]
fn what_a_client_sent_before_it_saw_our_goaway_is_served() {
    let mut bench = Bench::server(Settings::server());
    bench.accept(1);
    bench.connection.goaway(ErrorCode::NoError, "");
    let sent = bench.sent();
    let [(Kind::GoAway, 0, 0, announced), (Kind::Ping, 0, 0, ping)] = &sent[..] else {
        panic!("{sent:?}");
    };
    assert_eq!(announced[..4], frame::STREAM_MAX.to_be_bytes());
    bench.accept(3);
    assert!(bench.connection.is_announcing());
    assert_eq!(bench.feed(&raw(Kind::Ping, FLAG_ACK, 0, ping)), []);
    let last = [0, 0, 0, 3, 0, 0, 0, 0].to_vec();
    assert_eq!(bench.sent(), [(Kind::GoAway, 0, 0, last)]);
    assert!(!bench.connection.is_announcing());
    assert_eq!(bench.feed(&request(5)), []);
    assert_eq!(bench.sent(), []);
}

#[test]
fn calls_on_streams_that_are_gone_do_nothing() {
    let mut bench = Bench::server(Settings::server());
    let stream = bench.accept(1);
    bench.feed(&reset(1, ErrorCode::Cancel));
    bench.connection.respond(stream, &OK, true);
    bench.connection.set_key(stream, 4);
    bench.connection.consumed(stream, 100);
    bench.connection.reset(stream, ErrorCode::Cancel);
    assert_eq!(bench.connection.send_capacity(stream), 0);
    assert_eq!(bench.connection.unread_bytes(stream), 0);
    assert!(!bench.connection.may_send(stream));
    assert_eq!(bench.connection.end_header(stream), None);
    assert_eq!(bench.sent(), []);
}

#[test]
fn events_carry_the_key_of_their_stream() {
    let mut bench = Bench::server(Settings::server());
    let stream = bench.accept(1);
    let key_of = |bench: &mut Bench, bytes: &[u8]| match bench.connection.receive(bytes, &mut 0, bench.now) {
        Ok(Some(Event::Data { key, .. } | Event::Reset { key, .. } | Event::End { key, .. })) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(key_of(&mut bench, &data(1, b"x")), KEY_NONE);
    bench.connection.set_key(stream, 77);
    assert_eq!(key_of(&mut bench, &data(1, b"x")), 77);
    assert_eq!(key_of(&mut bench, &last_data(1, b"")), 77);
    assert_eq!(key_of(&mut bench, &reset(1, ErrorCode::Cancel)), 77);
}

#[test]
#[should_panic(expected = "nothing follows END_STREAM")]
fn data_after_our_own_end_is_a_bug() {
    let mut bench = Bench::client(Settings::client());
    let stream = bench.open();
    bench.connection.data_header(stream, 0, true);
    bench.connection.data_header(stream, 1, false);
}

#[test]
#[should_panic(expected = "an empty DATA frame only ends a stream")]
fn an_empty_frame_that_ends_nothing_is_a_bug() {
    let mut bench = Bench::client(Settings::client());
    let stream = bench.open();
    bench.connection.data_header(stream, 0, false);
}
