//! RFC 9113 sections 3.4, 4, 5.5, 6: the form of frames, and chunking.

use super::*;

#[test]
fn the_client_greets_with_preface_settings_and_window() {
    let mut connection = Connection::client(Settings::client());
    let output = std::mem::take(connection.output());
    assert_eq!(output[..24], PREFACE[..]);
    let entries: Vec<(u16, u32)> = output[33..33 + 24]
        .chunks(6)
        .map(|e| {
            let value = u32::from_be_bytes(e[2..].try_into().expect("four bytes"));
            (u16::from_be_bytes([e[0], e[1]]), value)
        })
        .collect();
    assert_eq!(entries, [(4, 4 << 20), (5, 1 << 20), (6, 16 << 10), (2, 0)]);
    assert_eq!(output[57..], window_update(0, (16 << 20) - 65_535));
}

#[test]
fn the_server_greets_with_settings_and_window() {
    let mut connection = Connection::server(Settings::server());
    let output = std::mem::take(connection.output());
    assert_eq!(output[27..33], [0, 3, 0, 0, 0, 200], "MAX_CONCURRENT_STREAMS");
    assert_eq!(output[33..], window_update(0, (16 << 20) - 65_535));
}

#[test]
fn a_peer_that_speaks_something_else_is_noticed_at_the_first_wrong_byte() {
    for (cut, bytes) in [
        (0, b"GET / HTTP/1.1".as_slice()),
        (0, b"\x16\x03\x01"),
        (3, b"PRI X"),
    ] {
        let mut bench = Bench {
            connection: Connection::server(Settings::server()),
            now: Instant::now(),
        };
        assert_eq!(bench.feed(&bytes[..cut]), []);
        assert_eq!(bench.refuse(&bytes[cut..]), Reason::Preface);
    }
}

#[test]
fn the_first_frame_has_to_be_settings() {
    for first in [
        raw(Kind::Settings, FLAG_ACK, 0, &[]),
        raw(Kind::Ping, 0, 0, &[0; 8]),
    ] {
        let mut bench = Bench {
            connection: Connection::client(Settings::client()),
            now: Instant::now(),
        };
        assert!(matches!(bench.refuse(&first), Reason::FirstFrame(_)));
    }
}

#[test]
fn every_way_to_cut_the_input_gives_the_same_events_and_answers() {
    let header_block = request_block();
    let (front, back) = header_block.split_at(5);
    let script = [
        PREFACE.to_vec(),
        settings(&[(4, 70_000), (5, 20_000), (0x99, 1)]),
        raw(Kind::Settings, FLAG_ACK, 0, &[]),
        raw(Kind::Headers, 0, 1, front),
        raw(Kind::Continuation, 0, 1, &[]),
        raw(Kind::Continuation, FLAG_END_HEADERS, 1, back),
        raw(Kind::Headers, FLAG_END_HEADERS | FLAG_PADDED | 0x20, 3, &{
            let mut payload = vec![4, 0, 0, 0, 0, 16];
            payload.extend_from_slice(&header_block);
            payload.extend_from_slice(&[0; 4]);
            payload
        }),
        data(1, b"hello"),
        raw(Kind::Data, FLAG_PADDED, 1, &padded(b"padded", 9)),
        raw(Kind::Unknown(0xee), 0xff, 1, b"whatever"),
        raw(Kind::Priority, 0, 9, &[0; 5]),
        raw(Kind::Ping, 0, 0, b"ping-pon"),
        window_update(1, 5),
        window_update(0, 5),
        raw(Kind::Data, FLAG_PADDED | FLAG_END_STREAM, 1, &padded(b"x", 3)),
        last_data(3, b""),
        goaway(0, ErrorCode::NoError),
    ]
    .concat();

    let run = |cuts: &mut dyn FnMut() -> usize| {
        let mut bench = Bench {
            connection: Connection::server(Settings::server()),
            now: Instant::now(),
        };
        let mut events: Vec<Seen> = Vec::new();
        let mut rest = script.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cuts().clamp(1, rest.len()));
            for event in bench.feed(piece) {
                // Payload of one frame may come in pieces.
                match (events.last_mut(), event) {
                    (Some(Seen::Data(a, bytes, false)), Seen::Data(b, more, end)) if *a == b => {
                        bytes.extend_from_slice(&more);
                        if end {
                            events.push(Seen::End(b));
                        }
                    }
                    (_, Seen::Data(stream, bytes, true)) => {
                        events.extend([Seen::Data(stream, bytes, false), Seen::End(stream)]);
                    }
                    (_, event) => events.push(event),
                }
            }
            rest = after;
        }
        (events, bench.sent())
    };

    let whole = run(&mut || usize::MAX);
    assert_eq!(
        whole.0,
        [
            Seen::Settings,
            Seen::Connect(1, "10.0.0.1:80".into(), false),
            Seen::Connect(3, "10.0.0.1:80".into(), false),
            Seen::Data(1, b"hellopaddedx".to_vec(), false),
            Seen::End(1),
            Seen::End(3),
            Seen::GoAway(0, ErrorCode::NoError),
        ]
    );
    for size in 1..40 {
        assert_eq!(run(&mut || size), whole, "pieces of {size}");
    }
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        assert_eq!(run(&mut || random.usize(1..60)), whole);
    }
}

#[test]
fn a_frame_larger_than_offered_ends_the_connection() {
    let mut bench = Bench::server(Settings {
        frame_bytes_max: 20_000,
        ..Settings::server()
    });
    bench.accept(1);
    bench.feed(&data(1, &[0; 20_000]));
    let kind = Kind::Data;
    let reason = bench.refuse(&data(1, &[0; 20_001])[..9]);
    assert_eq!(
        reason,
        Reason::FrameTooLarge {
            kind,
            bytes: 20_001,
            bytes_max: 20_000
        }
    );
    assert_eq!(reason.code(), ErrorCode::FrameSizeError);
}

#[test]
fn frames_of_a_wrong_length_end_the_connection() {
    let wrong = [
        raw(Kind::RstStream, 0, 1, &[0; 3]),
        raw(Kind::RstStream, 0, 1, &[0; 5]),
        raw(Kind::WindowUpdate, 0, 1, &[0; 5]),
        raw(Kind::Ping, 0, 0, &[0; 7]),
        raw(Kind::Ping, 0, 0, &[0; 9]),
        raw(Kind::GoAway, 0, 0, &[0; 7]),
        raw(Kind::Settings, 0, 0, &[0; 7]),
        raw(Kind::Settings, FLAG_ACK, 0, &[0; 6]),
        raw(Kind::Priority, 0, 1, &[0; 4]),
        raw(Kind::Data, FLAG_PADDED, 1, &[]),
        raw(Kind::Headers, FLAG_PADDED | 0x20, 3, &[0; 5]),
    ];
    for bytes in wrong {
        let mut bench = Bench::server(Settings::server());
        bench.accept(1);
        let reason = bench.refuse(&bytes);
        assert!(matches!(reason, Reason::FrameLength { .. }), "{reason}");
        assert_eq!(reason.code(), ErrorCode::FrameSizeError);
    }
}

#[test]
fn frames_on_the_wrong_kind_of_stream_end_the_connection() {
    let wrong = [
        data(0, b"x"),
        raw(Kind::Headers, FLAG_END_HEADERS, 0, &request_block()),
        raw(Kind::Priority, 0, 0, &[0; 5]),
        reset(0, ErrorCode::Cancel),
        raw(Kind::Settings, 0, 1, &[]),
        raw(Kind::Ping, 0, 1, &[0; 8]),
        raw(Kind::GoAway, 0, 1, &[0; 8]),
    ];
    for bytes in wrong {
        let mut bench = Bench::server(Settings::server());
        bench.accept(1);
        assert!(matches!(bench.refuse(&bytes), Reason::FrameStream { .. }));
    }
}

#[test]
fn padding_that_exceeds_the_frame_ends_the_connection() {
    let mut bench = Bench::server(Settings::server());
    bench.accept(1);
    assert_eq!(bench.feed(&raw(Kind::Data, FLAG_PADDED, 1, &padded(b"", 4))), []);
    assert_eq!(
        bench.refuse(&raw(Kind::Data, FLAG_PADDED, 1, &[5, 0, 0, 0, 0])),
        Reason::Padding(Kind::Data)
    );
    let mut bench = Bench::server(Settings::server());
    let block = [&[200], request_block().as_slice()].concat();
    let bytes = raw(Kind::Headers, FLAG_END_HEADERS | FLAG_PADDED, 1, &block);
    assert_eq!(bench.refuse(&bytes), Reason::Padding(Kind::Headers));
}

#[test]
fn a_header_block_may_not_be_interrupted() {
    for bytes in [
        data(1, b""),
        raw(Kind::Continuation, 0, 5, &[]),
        request(5),
        raw(Kind::Unknown(77), 0, 3, &[]),
    ] {
        let mut bench = Bench::server(Settings::server());
        bench.accept(1);
        bench.feed(&raw(Kind::Headers, 0, 3, &request_block()));
        assert!(matches!(
            bench.refuse(&bytes),
            Reason::HeaderBlockInterrupted { block: 3, .. }
        ));
    }
    let mut bench = Bench::server(Settings::server());
    bench.accept(1);
    let bytes = raw(Kind::Continuation, FLAG_END_HEADERS, 1, &[]);
    assert_eq!(bench.refuse(&bytes), Reason::ContinuationUnexpected(1));
}

#[test]
fn push_ends_the_connection() {
    let mut bench = Bench::client(Settings::client());
    let stream = bench.open();
    assert_eq!(
        bench.refuse(&raw(
            Kind::PushPromise,
            FLAG_END_HEADERS,
            stream.get(),
            &[0, 0, 0, 2]
        )),
        Reason::Push
    );
}

#[test]
fn invalid_settings_end_the_connection_with_their_own_code() {
    let cases = [
        (2, 2, ErrorCode::ProtocolError),
        (4, 1 << 31, ErrorCode::FlowControlError),
        (5, (1 << 14) - 1, ErrorCode::ProtocolError),
        (5, 1 << 24, ErrorCode::ProtocolError),
    ];
    for (id, value, code) in cases {
        let mut bench = Bench::server(Settings::server());
        let reason = bench.refuse(&settings(&[(id, value)]));
        assert_eq!(
            (reason.clone(), reason.code()),
            (Reason::SettingValue { id, value }, code)
        );
    }
    // Section 6.5.2: a server may not switch push on.
    let mut bench = Bench::client(Settings::client());
    assert_eq!(
        bench.refuse(&settings(&[(2, 1)])),
        Reason::SettingValue { id: 2, value: 1 }
    );
}

#[test]
fn settings_are_applied_acknowledged_and_the_unknown_ones_ignored() {
    let mut bench = Bench::client(Settings::client());
    assert_eq!(bench.connection.frame_bytes_max(), 16_384);
    assert_eq!(
        bench.feed(&settings(&[(5, 1 << 20), (3, 5), (0xbeef, 9)])),
        [Seen::Settings]
    );
    assert_eq!(bench.sent(), [(Kind::Settings, FLAG_ACK, 0, vec![])]);
    assert_eq!(bench.connection.frame_bytes_max(), 1 << 20);
    assert_eq!(bench.connection.streams_max(), 5);
    assert_eq!(
        bench.refuse(&raw(Kind::Settings, FLAG_ACK, 0, &[])),
        Reason::SettingsAck
    );
}

#[test]
fn a_peer_that_shrinks_its_header_table_is_told_so_once() {
    let mut bench = Bench::client(Settings::client());
    bench.feed(&settings(&[(1, 0)]));
    bench.feed(&settings(&[(1, 4096)]));
    bench.sent();
    let first = |bench: &mut Bench| {
        bench.connection.open(0, &REQUEST).expect("a stream is left");
        bench.sent()[0].3[0]
    };
    assert_eq!(first(&mut bench), 0x20, "RFC 7541 section 6.3");
    assert_ne!(first(&mut bench), 0x20);
    bench.feed(&settings(&[(1, 100)]));
    bench.sent();
    assert_ne!(first(&mut bench), 0x20, "a table of 0 bytes cannot shrink");
}

#[test]
fn pings_are_answered_and_our_own_reported() {
    let mut bench = Bench::server(Settings::server());
    assert_eq!(bench.feed(&raw(Kind::Ping, 0, 0, b"abcdefgh")), []);
    assert_eq!(bench.sent(), [(Kind::Ping, FLAG_ACK, 0, b"abcdefgh".to_vec())]);
    bench.connection.ping([7; 8]);
    assert_eq!(bench.sent(), [(Kind::Ping, 0, 0, vec![7; 8])]);
    assert_eq!(
        bench.feed(&raw(Kind::Ping, FLAG_ACK, 0, &[7; 8])),
        [Seen::Pong([7; 8])]
    );
    assert_eq!(
        bench.feed(&raw(Kind::Ping, FLAG_ACK, 0, &[7; 8])),
        [],
        "nobody asked"
    );
}
