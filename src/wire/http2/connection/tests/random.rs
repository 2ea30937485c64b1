//! Frames at random: whatever a peer sends, in whatever pieces, the engine stays within its bounds and its windows
//! agree with each other.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A frame that is often valid: streams 0 to 9, payloads that fit their kind.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let stream = prop_oneof![8 => 1..10u32, 1 => Just(0u32)];
    let odd = (0..5u32).prop_map(|n| 2 * n + 1);
    prop_oneof![
        6 => (odd.clone(), any::<bool>()).prop_map(|(stream, end)| {
            let mut bytes = request(stream);
            bytes[4] |= if end { FLAG_END_STREAM } else { 0 };
            bytes
        }),
        3 => odd.clone().prop_map(|stream| response(stream, 200)),
        2 => (odd.clone(), 1..20usize).prop_map(|(stream, cut)| {
            let block = request_block();
            let (front, back) = block.split_at(cut);
            [raw(Kind::Headers, 0, stream, front), raw(Kind::Continuation, FLAG_END_HEADERS, stream, back)].concat()
        }),
        9 => (odd.clone(), 0..300usize, any::<bool>()).prop_map(|(stream, len, end)| {
            if end { last_data(stream, &vec![7; len]) } else { data(stream, &vec![7; len]) }
        }),
        3 => (odd.clone(), 0..50usize, any::<u8>()).prop_map(|(stream, len, padding)| {
            raw(Kind::Data, FLAG_PADDED, stream, &padded(&vec![7; len], padding))
        }),
        2 => (odd.clone(), any::<u32>()).prop_map(|(stream, code)| reset(stream, ErrorCode::from(code % 16))),
        3 => (prop_oneof![odd, Just(0)], 1..1u32 << 30).prop_map(|(stream, bytes)| window_update(stream, bytes)),
        2 => (1..7u16, prop_oneof![0..2u32, 16_384..70_000u32]).prop_map(|entry| settings(&[entry])),
        1 => any::<[u8; 8]>().prop_map(|payload| raw(Kind::Ping, 0, 0, &payload)),
        1 => (0..10u32).prop_map(|last| goaway(last, ErrorCode::NoError)),
        1 => (any::<u8>(), any::<u8>(), stream, vec(any::<u8>(), 0..20))
            .prop_map(|(kind, flags, stream, payload)| raw(Kind::from(kind % 12), flags, stream, &payload)),
    ]
}

/// Small bounds, so that random frames reach them.
const BOUNDS: Settings = Settings {
    stream_window_bytes: 1500,
    connection_window_bytes: 65_535,
    frame_bytes_max: 16_384,
    streams_max: 3,
    header_list_bytes_max: 1000,
    unread_bytes_max: 1000,
};

fn bench(client: bool) -> Bench {
    if !client {
        return Bench::server(BOUNDS);
    }
    let mut bench = Bench::client(BOUNDS);
    for key in 0..3 {
        bench.connection.open(key, &REQUEST).expect("a stream is left");
    }
    bench
}

fn check(connection: &Connection) {
    let unread: u64 = (0..20)
        .map(|number| connection.unread_bytes(StreamId(number)))
        .sum();
    assert_eq!(
        unread,
        connection.unread_bytes_all(),
        "windows of streams and connection agree"
    );
    let granted = connection.receive.granted();
    assert!(granted >= 0 && granted as u64 + unread <= 65_535 + 1000);
    assert!(connection.streams_open() <= 3);
    assert!(connection.memory_bytes() < 1 << 20);
}

/// Feeds pieces; requests are answered, nothing is read. Returns what was seen, sent, and how it ended.
fn observe(mut bench: Bench, pieces: &[&[u8]]) -> (Vec<Seen>, Vec<u8>, Option<Reason>) {
    let (mut all, mut sent) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut at = 0;
        loop {
            match bench.connection.receive(piece, &mut at, bench.now) {
                Ok(Some(event)) => {
                    if let Event::Connect { stream, .. } = &event {
                        bench.connection.respond(*stream, &OK, false);
                    }
                    match seen(event, piece) {
                        Seen::Data(stream, bytes, end) => {
                            all.extend(bytes.iter().map(|byte| Seen::Data(stream, vec![*byte], false)));
                            all.extend(end.then_some(Seen::End(stream)));
                        }
                        other => all.push(other),
                    }
                }
                Ok(None) => break,
                Err(error) => return (all, sent, Some(error.reason)),
            }
        }
        sent.append(bench.connection.output());
        check(&bench.connection);
    }
    (all, sent, None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_never_matter(client: bool, frames in vec(any_frame(), 0..40), cuts in vec(1..40usize, 1..20)) {
        let bytes = frames.concat();
        let whole = observe(bench(client), &[&bytes]);
        let mut pieces = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        let cut = observe(bench(client), &pieces);
        // Output of the last piece before an error is not taken.
        let common = whole.1.len().min(cut.1.len());
        prop_assert_eq!(&whole.1[..common], &cut.1[..common]);
        prop_assert_eq!((whole.0, whole.2), (cut.0, cut.2));
    }

    #[test]
    fn busy_applications_keep_the_windows_exact(
        client: bool,
        frames in vec(any_frame(), 0..60),
        acts in vec((0..10u32, 0..5u8, 0..400usize), 1..60),
    ) {
        let mut bench = bench(client);
        let mut acts = acts.into_iter().cycle();
        for frame in frames {
            let Ok(events) = bench.try_feed(&frame) else { break };
            for event in events {
                if let Seen::Connect(stream, ..) = event {
                    bench.connection.respond(StreamId(stream), &OK, false);
                }
            }
            let (number, act, bytes) = acts.next().expect("invariant: cycles");
            let (stream, connection) = (StreamId(number), &mut bench.connection);
            match act {
                0 => connection.reset(stream, ErrorCode::Cancel),
                1 if connection.may_send(stream) => {
                    let len = connection.send_capacity(stream).min(bytes);
                    connection.data_header(stream, len, true);
                }
                _ => connection.consumed(stream, bytes),
            }
            check(connection);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_memory_stays_bounded(client: bool, bytes in vec(any::<u8>(), 0..2000)) {
        observe(bench(client), &[&bytes]);
    }
}
