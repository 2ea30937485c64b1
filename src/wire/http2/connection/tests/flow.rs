//! RFC 9113 sections 5.2, 6.9: windows in both directions, and who gets the connection's window back.

use super::*;

const SMALL: Settings = Settings {
    stream_window_bytes: 1000,
    connection_window_bytes: 100_000,
    frame_bytes_max: 16_384,
    streams_max: 200,
    header_list_bytes_max: 16_384,
    unread_bytes_max: 0,
};

#[test]
fn data_within_the_stream_window_passes_and_one_byte_more_ends_the_connection() {
    let mut bench = Bench::server(SMALL);
    bench.accept(1);
    assert_eq!(
        bench.feed(&data(1, &[5; 1000])),
        [Seen::Data(1, vec![5; 1000], false)]
    );
    let reason = bench.refuse(&data(1, &[5]));
    assert_eq!(
        reason,
        Reason::StreamWindow {
            stream: 1,
            bytes: 1,
            window: 0
        }
    );
    assert_eq!(reason.code(), ErrorCode::FlowControlError);
}

#[test]
fn data_beyond_the_connection_window_ends_the_connection() {
    let settings = Settings {
        stream_window_bytes: 1 << 20,
        connection_window_bytes: 65_535,
        ..SMALL
    };
    let mut bench = Bench::server(settings);
    bench.accept(1);
    for _ in 0..4 {
        bench.feed(&data(1, &[0; 16_000]));
    }
    assert_eq!(bench.credits(), [], "nothing was read, and no allowance for it");
    let reason = bench.refuse(&data(1, &[0; 1536]));
    assert_eq!(
        reason,
        Reason::ConnectionWindow {
            stream: 1,
            bytes: 1536,
            window: 1535
        }
    );
}

#[test]
fn the_padding_of_a_frame_counts_against_the_window_and_is_credited_at_once() {
    let mut bench = Bench::server(SMALL);
    bench.accept(1);
    let frame = raw(Kind::Data, FLAG_PADDED, 1, &padded(b"ab", 200));
    for _ in 0..2 {
        assert_eq!(bench.feed(&frame), [Seen::Data(1, b"ab".to_vec(), false)]);
        assert_eq!(bench.credits(), []);
    }
    bench.feed(&frame);
    assert_eq!(bench.credits(), [(1, 603)], "three times padding and its length");
    assert_eq!(bench.connection.unread_bytes(StreamId(1)), 6);
}

#[test]
fn consumed_bytes_come_back_when_half_of_the_window_is_due() {
    let mut bench = Bench::server(SMALL);
    let stream = bench.accept(1);
    bench.feed(&data(1, &[0; 1000]));
    bench.connection.consumed(stream, 499);
    assert_eq!(bench.credits(), []);
    bench.connection.consumed(stream, 1);
    assert_eq!(bench.credits(), [(1, 500)]);
    bench.connection.consumed(stream, 1_000_000);
    assert_eq!(bench.credits(), [(1, 500)], "no more than what arrived");
}

#[test]
fn the_connection_is_credited_too() {
    let mut bench = Bench::server(SMALL);
    let mut credits = Vec::new();
    for number in [1, 3] {
        let stream = bench.accept(number);
        for _ in 0..25 {
            bench.feed(&data(number, &[0; 1000]));
            bench.connection.consumed(stream, 1000);
            credits.extend(bench.credits());
        }
    }
    assert_eq!(credits.len(), 51);
    credits.retain(|(stream, _)| *stream == 0);
    assert_eq!(credits, [(0, 50_000)]);
}

#[test]
fn a_stream_that_the_peer_ended_gets_no_window_but_the_connection_does() {
    let mut bench = Bench::server(Settings {
        stream_window_bytes: 60_000,
        ..SMALL
    });
    let stream = bench.accept(1);
    for _ in 0..3 {
        bench.feed(&data(1, &[0; 16_384]));
    }
    bench.feed(&last_data(1, &[0; 1000]));
    bench.connection.consumed(stream, 60_000);
    assert_eq!(bench.credits(), [(0, 3 * 16_384 + 1000)]);
}

#[test]
fn a_reset_stream_returns_its_unread_bytes_and_what_still_arrives_is_dropped_and_credited() {
    let settings = Settings {
        stream_window_bytes: 60_000,
        ..SMALL
    };
    let mut bench = Bench::server(settings);
    let stream = bench.accept(1);
    for _ in 0..3 {
        bench.feed(&data(1, &[0; 16_384]));
    }
    let frame = data(1, &[0; 8000]);
    assert_eq!(bench.feed(&frame[..1000]).len(), 1);
    bench.connection.reset(stream, ErrorCode::Cancel);
    assert_eq!(bench.connection.unread_bytes_all(), 0);
    let sent = bench.sent();
    assert_eq!((sent[0].0, sent[1].0), (Kind::WindowUpdate, Kind::RstStream));
    assert_eq!(
        sent[0].3,
        (3 * 16_384u32 + 8000).to_be_bytes(),
        "the frame under way included"
    );
    assert_eq!(bench.feed(&frame[1000..]), []);
    for _ in 0..4 {
        assert_eq!(bench.feed(&data(1, &[0; 16_384])), []);
    }
    assert_eq!(bench.credits(), [(0, 4 * 16_384)]);
    bench.connection.consumed(stream, 1);
    assert!(bench.connection.is_idle());
}

#[test]
fn a_peer_reset_returns_the_unread_bytes() {
    let mut bench = Bench::server(Settings {
        stream_window_bytes: 60_000,
        ..SMALL
    });
    bench.accept(1);
    for _ in 0..4 {
        bench.feed(&data(1, &[0; 15_000]));
    }
    assert_eq!(
        bench.feed(&reset(1, ErrorCode::Cancel)),
        [Seen::Reset(1, ErrorCode::Cancel)]
    );
    assert_eq!(bench.credits(), [(0, 60_000)]);
}

#[test]
fn readers_that_stopped_leave_the_connection_window_to_the_others() {
    let mut bench = Bench::server(Settings::server());
    let payload = vec![0; 1 << 20];
    let fill = |bench: &mut Bench, number: u32| {
        for _ in 0..4 {
            bench.feed(&data(number, &payload));
        }
    };
    // Twelve readers stop with a full window each.
    for n in 0..12 {
        let stream = bench.accept(2 * n + 1);
        fill(&mut bench, stream.get());
    }
    assert_eq!(bench.connection.unread_bytes_all(), 48 << 20);
    // The next one moves 256 MiB.
    let stream = bench.accept(101);
    for _ in 0..64 {
        fill(&mut bench, 101);
        bench.connection.consumed(stream, 4 << 20);
    }
    // Four more readers stop: now everything that the session may hold is held.
    for n in 0..4 {
        let stream = bench.accept(2 * n + 201);
        fill(&mut bench, stream.get());
    }
    assert_eq!(bench.connection.unread_bytes_all(), 64 << 20);
    assert!(matches!(
        bench.refuse(&data(101, &[0])),
        Reason::ConnectionWindow { window: 0, .. }
    ));
}

#[test]
fn when_the_allowance_is_used_up_a_stream_that_is_read_still_moves() {
    let settings = Settings {
        stream_window_bytes: 90_000,
        unread_bytes_max: 30_000,
        ..SMALL
    };
    let mut bench = Bench::server(settings);
    bench.accept(1);
    for _ in 0..9 {
        bench.feed(&data(1, &[0; 10_000]));
    }
    let stream = bench.accept(3);
    // 130,000 may be held, 90,000 are: 40,000 remain for whoever reads.
    for _ in 0..100 {
        let granted = bench.connection.receive.granted();
        assert!(granted >= 10_000, "stalled with {granted}");
        assert!(granted as u64 + bench.connection.unread_bytes_all() <= 130_000);
        bench.feed(&data(3, &[0; 10_000]));
        bench.connection.consumed(stream, 10_000);
    }
}

#[test]
fn before_the_acknowledgement_a_peer_may_use_the_window_it_started_with() {
    let mut bench = Bench {
        connection: Connection::server(SMALL),
        now: Instant::now(),
    };
    bench.feed(&[PREFACE.to_vec(), settings(&[]), request(1), data(1, &[0; 16_384])].concat());
    bench.connection.respond(StreamId(1), &OK, false);
    bench.sent();
    bench.feed(&raw(Kind::Settings, FLAG_ACK, 0, &[]));
    // Now 15,384 bytes below zero.
    assert_eq!(bench.credits(), []);
    bench.connection.consumed(StreamId(1), 15_884);
    assert_eq!(bench.credits(), [(1, 15_884)]);
    assert_eq!(bench.feed(&data(1, &[0; 500])).len(), 1);
    assert_eq!(
        bench.refuse(&data(1, &[0])),
        Reason::StreamWindow {
            stream: 1,
            bytes: 1,
            window: 0
        }
    );
}

#[test]
fn sending_takes_from_both_windows() {
    let mut bench = Bench::client(Settings::client());
    let (a, b) = (bench.open(), bench.open());
    assert_eq!(bench.connection.send_capacity(a), 65_535);
    for _ in 0..3 {
        bench.connection.data_header(a, 16_384, false);
    }
    assert_eq!(bench.connection.send_capacity(a), 16_383);
    assert_eq!(
        bench.connection.send_capacity(b),
        16_383,
        "the connection is shared"
    );
    bench.connection.data_header(b, 16_383, false);
    assert_eq!(
        bench.feed(&window_update(1, 1)),
        [],
        "the connection is still closed"
    );
    assert_eq!(bench.feed(&window_update(0, 10)), [Seen::ConnectionWritable]);
    assert_eq!(bench.connection.send_capacity(a), 10);
}

#[test]
fn a_stream_reports_writable_when_its_own_window_opens() {
    let mut bench = Bench::client(Settings::client());
    bench.feed(&window_update(0, 1_000_000));
    let stream = bench.open();
    for len in [16_384, 16_384, 16_384, 16_383] {
        bench.connection.data_header(stream, len, false);
    }
    assert_eq!(bench.connection.send_capacity(stream), 0);
    assert_eq!(bench.feed(&window_update(1, 5)), [Seen::Writable(1)]);
    assert_eq!(bench.feed(&window_update(1, 5)), []);
    assert_eq!(bench.connection.send_capacity(stream), 10);
}

#[test]
fn a_smaller_initial_window_may_push_live_windows_below_zero() {
    let mut bench = Bench::client(Settings::client());
    let (a, b) = (bench.open(), bench.open());
    bench.connection.data_header(a, 1000, false);
    assert_eq!(bench.feed(&settings(&[(4, 100)])), [Seen::Settings]);
    assert_eq!(bench.connection.send_capacity(a), 0, "900 below zero");
    assert_eq!(bench.connection.send_capacity(b), 100);
    assert_eq!(bench.feed(&window_update(1, 900)), []);
    assert_eq!(bench.feed(&window_update(1, 1)), [Seen::Writable(1)]);
    bench.connection.data_header(b, 100, false);
    bench.connection.data_header(a, 1, false);
    assert_eq!(
        bench.feed(&settings(&[(4, 1), (4, 101)])),
        [Seen::Settings, Seen::Writable(1), Seen::Writable(3)]
    );
}

#[test]
fn windows_beyond_the_largest_one_are_errors() {
    let max = (1u32 << 31) - 1;
    let mut bench = Bench::client(Settings::client());
    bench.open();
    assert_eq!(bench.feed(&window_update(1, max - 65_535)), []);
    assert_eq!(
        bench.feed(&window_update(1, 1)),
        [Seen::Reset(1, ErrorCode::FlowControlError)]
    );
    assert_eq!(bench.resets(), [(1, ErrorCode::FlowControlError)]);
    assert_eq!(
        bench.refuse(&window_update(0, max - 65_534)),
        Reason::WindowOverflow(0)
    );

    let mut bench = Bench::client(Settings::client());
    bench.open();
    bench.feed(&window_update(1, 1));
    assert_eq!(bench.refuse(&settings(&[(4, max)])), Reason::WindowOverflow(1));
}

#[test]
fn a_window_update_of_nothing_is_an_error() {
    let mut bench = Bench::server(Settings::server());
    bench.accept(1);
    assert_eq!(
        bench.feed(&window_update(1, 0)),
        [Seen::Reset(1, ErrorCode::ProtocolError)]
    );
    assert_eq!(
        bench.refuse(&window_update(0, 1 << 31)),
        Reason::WindowUpdateZero,
        "the high bit is reserved"
    );
}
