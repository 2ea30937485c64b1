//! Hostile peers get cut off with a reason; honest ones at their busiest do not.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Feeds `make(n)` until the connection fails, `per_second` times per second for at most four seconds. Returns how
/// many it took.
fn flood(
    bench: &mut Bench,
    per_second: u32,
    mut make: impl FnMut(u32, &mut Bench) -> Vec<u8>,
) -> Result<u32, Reason> {
    let mut reason = None;
    for n in 0..per_second * 4 {
        let bytes = make(n, bench);
        if let Err(why) = bench.try_feed(&bytes) {
            reason = Some((n, why));
            break;
        }
        bench.connection.output().clear();
        bench.later(SECOND / per_second);
        assert!(bench.connection.memory_bytes() < 1 << 20);
    }
    match reason {
        None => Ok(per_second * 4),
        Some((_, why)) => Err(why),
    }
}

#[test]
fn rapid_reset_is_cut_off() {
    let mut bench = Bench::server(Settings::server());
    let mut requests = 0;
    let outcome = flood(&mut bench, 10_000, |n, _| {
        requests += 1;
        [request(2 * n + 1), reset(2 * n + 1, ErrorCode::Cancel)].concat()
    });
    assert_eq!(outcome, Err(Reason::RapidReset));
    assert!((2500..4000).contains(&requests), "{requests}");
    assert!(bench.connection.streams_open() <= 1);
}

#[test]
fn resets_provoked_by_broken_rules_are_cut_off() {
    let provoke: [fn(u32) -> Vec<u8>; 4] = [
        |stream| window_update(stream, 0),
        |stream| {
            [
                window_update(stream, u32::MAX >> 1),
                window_update(stream, u32::MAX >> 1),
            ]
            .concat()
        },
        |stream| [last_data(stream, b""), data(stream, b"late")].concat(),
        |stream| raw(Kind::Headers, FLAG_END_HEADERS, stream, &[0x80 | 8]),
    ];
    for provoke in provoke {
        let mut bench = Bench::server(Settings::server());
        let mut requests = 0;
        let outcome = flood(&mut bench, 10_000, |n, bench| {
            requests += 1;
            bench.feed(&request(2 * n + 1));
            // Also when it was answered: the work is wasted all the same.
            bench.connection.respond(StreamId(2 * n + 1), &OK, false);
            provoke(2 * n + 1)
        });
        assert_eq!(outcome, Err(Reason::ProvokedReset));
        assert!(requests < 400, "{requests}");
    }
}

#[test]
fn streams_opened_beyond_the_limit_are_cut_off_when_they_do_not_stop() {
    let mut bench = Bench::server(Settings::server());
    let outcome = flood(&mut bench, 10_000, |n, _| request(2 * n + 1));
    assert_eq!(outcome, Err(Reason::RapidReset));
}

#[test]
fn a_busy_node_that_resets_served_streams_is_honest() {
    let mut bench = Bench::server(Settings::server());
    let outcome = flood(&mut bench, 10_000, |n, bench| {
        bench.accept(2 * n + 1);
        [
            data(2 * n + 1, b"GET / HTTP/1.1\r\n\r\n"),
            reset(2 * n + 1, ErrorCode::Cancel),
        ]
        .concat()
    });
    assert_eq!(outcome, Ok(40_000));
}

#[test]
fn a_node_whose_clients_give_up_two_thousand_times_per_second_is_honest() {
    let mut bench = Bench::server(Settings::server());
    let outcome = flood(&mut bench, 2000, |n, _| {
        [request(2 * n + 1), reset(2 * n + 1, ErrorCode::Cancel)].concat()
    });
    assert_eq!(outcome, Ok(8000));
}

#[test]
fn resetting_served_streams_ourselves_blames_nobody() {
    let mut bench = Bench::server(Settings::server());
    let outcome = flood(&mut bench, 10_000, |n, bench| {
        let stream = bench.accept(2 * n + 1);
        bench.connection.reset(stream, ErrorCode::Cancel);
        // What was under way, and the peer's own reset, cross ours.
        [data(2 * n + 1, b"small"), reset(2 * n + 1, ErrorCode::Cancel)].concat()
    });
    assert_eq!(outcome, Ok(40_000));
}

#[test]
fn short_connections_at_a_high_rate_are_honest_and_leave_nothing() {
    let mut bench = Bench::server(Settings::server());
    let outcome = flood(&mut bench, 30_000, |n, bench| {
        // The reader credits every request by itself, as some peers do.
        let stream = bench.accept(2 * n + 1);
        bench.feed(&data(2 * n + 1, b"request"));
        bench.connection.consumed(stream, 7);
        bench.connection.data_header(stream, 8, true);
        [window_update(0, 8), last_data(2 * n + 1, b"")].concat()
    });
    assert_eq!(outcome, Ok(120_000));
    assert!(bench.connection.is_idle());
    assert!(
        bench.connection.memory_bytes() < 8192,
        "{}",
        bench.connection.memory_bytes()
    );
}

#[test]
fn continuation_floods_are_cut_off() {
    let mut bench = Bench::server(Settings::server());
    bench.feed(&raw(Kind::Headers, 0, 1, &[]));
    let empty = raw(Kind::Continuation, 0, 1, &[]);
    for _ in 0..limits::HTTP2_CONTINUATIONS {
        assert_eq!(bench.feed(&empty), []);
    }
    assert_eq!(bench.refuse(&empty), Reason::ContinuationFlood);

    let mut bench = Bench::server(Settings::server());
    bench.feed(&raw(Kind::Headers, 0, 1, &[0; 30_000]));
    bench.feed(&raw(Kind::Continuation, 0, 1, &[0; 35_536]));
    let reason = bench.refuse(&raw(Kind::Continuation, 0, 1, &[0]));
    assert_eq!(reason, Reason::HeaderBlock { bytes_max: 65_536 });
    assert_eq!(reason.code(), ErrorCode::EnhanceYourCalm);
}

#[test]
fn header_bombs_are_cut_off() {
    let settings = Settings {
        header_list_bytes_max: 4000,
        ..Settings::server()
    };
    let bomb = |times: usize| {
        let mut block = request_block();
        block.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0x81, 0x06]);
        block.extend_from_slice(&[b'y'; 896]);
        block.extend_from_slice(&vec![0x80 | 62; times]);
        block
    };
    let mut bench = Bench::server(settings);
    let reason = bench.refuse(&raw(Kind::Headers, FLAG_END_HEADERS, 1, &bomb(1000)));
    assert!(matches!(reason, Reason::HeaderExpansion(_)), "{reason}");
    assert_eq!(reason.code(), ErrorCode::EnhanceYourCalm);

    let mut bench = Bench::server(settings);
    let outcome = flood(&mut bench, 1000, |n, _| {
        raw(Kind::Headers, FLAG_END_HEADERS, 2 * n + 1, &bomb(5))
    });
    assert_eq!(outcome, Err(Reason::HeaderList));
}

#[test]
fn floods_of_control_frames_are_cut_off() {
    let cases: [(Vec<u8>, Reason); 7] = [
        (settings(&[(4, 100)]), Reason::SettingsFlood),
        (raw(Kind::Ping, 0, 0, &[0; 8]), Reason::PingFlood),
        (window_update(0, 1), Reason::WindowUpdateFlood),
        (window_update(1, 1), Reason::WindowUpdateFlood),
        (raw(Kind::Priority, 0, 1, &[0; 5]), Reason::IdleFrameFlood),
        (raw(Kind::Unknown(99), 0, 0, &[]), Reason::IdleFrameFlood),
        (raw(Kind::Ping, FLAG_ACK, 0, &[0; 8]), Reason::IdleFrameFlood),
    ];
    for (frame, reason) in cases {
        let mut bench = Bench::server(Settings::server());
        bench.accept(1);
        assert_eq!(flood(&mut bench, 100_000, |_, _| frame.clone()), Err(reason));
    }
    let mut bench = Bench::server(Settings::server());
    assert_eq!(
        bench.refuse(&settings(&vec![(4, 100); 101])),
        Reason::SettingsFlood,
        "in one frame"
    );
}

#[test]
fn empty_data_is_cut_off_also_when_it_is_all_padding() {
    for frame in [data(1, b""), raw(Kind::Data, FLAG_PADDED, 1, &padded(b"", 255))] {
        let mut bench = Bench::server(Settings::server());
        bench.accept(1);
        assert_eq!(
            flood(&mut bench, 10_000, |_, _| frame.clone()),
            Err(Reason::DataEmptyFlood)
        );
    }
}

#[test]
fn tiny_data_that_is_read_is_ordinary_traffic() {
    let mut bench = Bench::server(Settings::server());
    let stream = bench.accept(1);
    bench.feed(&data(1, &[0; 1000]));
    for _ in 0..limits::HTTP2_DATA_TINY_HELD + 100_000 {
        bench.feed(&data(1, b"x"));
        bench.connection.consumed(stream, 1);
        bench.connection.output().clear();
    }
}

#[test]
fn tiny_data_that_piles_up_is_cut_off() {
    let mut bench = Bench::server(Settings::server());
    bench.accept(1);
    let many = data(1, b"x").repeat(1000);
    let mut frames = 0;
    let reason = loop {
        match bench.try_feed(&many) {
            Ok(_) => frames += 1000,
            Err(reason) => break reason,
        }
    };
    assert_eq!(reason, Reason::DataTinyFlood);
    assert_eq!(frames, limits::HTTP2_DATA_TINY_HELD / 1000 * 1000);
}

#[test]
fn sixteen_stopped_readers_of_small_messages_are_honest() {
    let mut bench = Bench::server(Settings::server());
    for n in 0..16 {
        let stream = bench.accept(2 * n + 1);
        let many = data(stream.get(), &[0; 64]).repeat(1 << 10);
        for _ in 0..64 {
            bench.feed(&many);
        }
    }
    assert_eq!(bench.connection.unread_bytes_all(), 64 << 20);
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_cut_off() {
    let mut bench = Bench::server(Settings::server());
    let ping = raw(Kind::Ping, 0, 0, &[0; 8]);
    let reason = loop {
        bench.later(Duration::from_millis(2));
        if let Err(reason) = bench.try_feed(&ping) {
            break reason;
        }
    };
    assert_eq!(reason, Reason::OutputQueue);
    assert!(bench.connection.output().len() <= limits::HTTP2_OUTPUT_BYTES + 17);
}
