//! Two channels in one process, and what each refuses from the other.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::AlertDescription;

use super::*;
use crate::clock;
use crate::identity::Identity;
use crate::limits;
use crate::tls::error::RecordError;
use crate::tls::record::{
    ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, CIPHERTEXT_BYTES_MAX, HANDSHAKE, OVERHEAD_BYTES,
};
use crate::tls::{FakeCa, Handshake, Progress, RecordMode};

const ROOM: usize = CIPHERTEXT_BYTES_MAX;

fn own(channel: &mut Channel) -> &mut Own {
    match &mut channel.0 {
        Kind::Own(own) => own,
        Kind::Buffered(_) => panic!("this test needs our own record layer"),
    }
}

/// Client and server that have shaken hands.
fn pair(client_mode: RecordMode, server_mode: RecordMode, records_max: u64) -> (Channel, Channel) {
    let ca = FakeCa::new();
    let cart = Identity::new("cluster.local", "shop", "cart");
    let till = Identity::new("cluster.local", "shop", "till");
    let client = ca.issue(&cart, clock::wall()).expect("issued");
    let server = ca.issue(&till, clock::wall()).expect("issued");
    let mut client = Handshake::client(&client, Arc::new([till.clone()]), client_mode)
        .expect("client")
        .with_records_max(records_max);
    let mut server = Handshake::server(&server, server_mode)
        .expect("server")
        .with_records_max(records_max);
    let (mut to_server, mut to_client) = (Output::default(), Output::default());
    loop {
        let client_done = client
            .advance(to_client.filled(), &mut to_server)
            .expect("client");
        to_client.clear();
        let server_done = server
            .advance(to_server.filled(), &mut to_client)
            .expect("server");
        to_server.clear();
        if (client_done, server_done) == (Progress::Done, Progress::Done) {
            break;
        }
    }
    assert!(
        to_client.is_empty(),
        "a server without tickets has nothing to say after Finished"
    );
    let client = client.finish().expect("client");
    let server = server.finish().expect("server");
    assert_eq!((client.peer.first(), server.peer.first()), (&till, &cart));
    assert!(client.alpn_h2 && server.alpn_h2);
    assert!(client.leftover.is_empty() && server.leftover.is_empty());
    (client.channel, server.channel)
}

fn own_pair() -> (Channel, Channel) {
    pair(RecordMode::Own, RecordMode::Own, limits::RECORDS_PER_KEY_MAX)
}

/// A record of any content type, sealed as the peer would.
fn crafted(channel: &mut Channel, content_type: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Output::default();
    own(channel).sealer.seal(&mut out, content_type, content);
    out.filled().to_vec()
}

fn open(channel: &mut Channel, input: &[u8]) -> Result<Opened, TlsError> {
    channel.open(input, &mut [0; ROOM])
}

/// The receiver refuses with `expected`, keeps refusing, and tells the sender with `alert`.
fn assert_refused(
    sender: &mut Channel,
    receiver: &mut Channel,
    record: &[u8],
    expected: RecordError,
    alert: AlertDescription,
) {
    assert_eq!(open(receiver, record), Err(expected.clone().into()));
    let mut out = Output::default();
    sender.seal(&mut out, b"fine");
    assert_eq!(
        open(receiver, out.filled()),
        Err(expected.into()),
        "an error stays"
    );
    out.clear();
    assert!(receiver.wants_control());
    receiver.flush_control(&mut out);
    assert!(!receiver.wants_control());
    assert_eq!(open(sender, out.filled()), Err(TlsError::Alert(alert)));
    assert!(!sender.wants_control(), "an alert is not answered");
}

/// Every way of sending a message arrives as it was, in both directions.
fn exchange(sender: &mut Channel, receiver: &mut Channel, rounds: usize) {
    let mut out = Output::default();
    let mut sent = Vec::new();
    for round in 0..rounds {
        let message: Vec<u8> = (0..1 + round * 977 % 20_000).map(|i| (i + round) as u8).collect();
        if round % 2 == 0 {
            sender.seal(&mut out, &message);
        } else {
            let start = sender.begin(&mut out);
            out.append(&message);
            sender.finish(&mut out, start);
        }
        sent.extend_from_slice(&message);
    }
    let (mut at, mut received) = (0, Vec::new());
    let mut plain = vec![0; ROOM];
    while at < out.len() {
        match receiver.open(&out.filled()[at..], &mut plain).expect("honest") {
            Opened::Data { consumed, written } => {
                received.extend_from_slice(&plain[..written]);
                at += consumed;
            }
            Opened::Control { consumed } => at += consumed,
            Opened::Incomplete { .. } | Opened::Closed { .. } => panic!("neither was sent"),
        }
    }
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "bytes arrive as they were sent");
}

#[test]
fn both_modes_talk_to_each_other_under_the_smallest_record_limit() {
    let modes = [RecordMode::Own, RecordMode::Buffered];
    for (client_mode, server_mode) in modes.iter().flat_map(|c| modes.iter().map(move |s| (*c, *s))) {
        let (mut client, mut server) = pair(client_mode, server_mode, limits::RECORDS_PER_KEY_MIN);
        for _ in 0..4 {
            exchange(&mut client, &mut server, 40);
            exchange(&mut server, &mut client, 40);
        }
    }
}

#[test]
fn a_key_seals_exactly_as_many_records_as_allowed() {
    let (mut client, mut server) = pair(RecordMode::Own, RecordMode::Own, 16);
    let mut out = Output::default();
    for _ in 0..15 {
        client.seal(&mut out, b"x");
    }
    assert_eq!(out.len(), 15 * (1 + OVERHEAD_BYTES));
    assert_eq!(own(&mut client).sealer.sealed(), 15);
    client.seal(&mut out, b"x");
    assert_eq!(
        out.len(),
        16 * (1 + OVERHEAD_BYTES) + 5 + OVERHEAD_BYTES,
        "a key update came before"
    );
    assert_eq!(own(&mut client).sealer.sealed(), 1);
    for _ in 0..2 {
        exchange(&mut server, &mut client, 3);
    }
}

#[test]
fn a_limit_below_the_smallest_is_raised() {
    let (mut client, _) = pair(RecordMode::Own, RecordMode::Own, 0);
    let mut out = Output::default();
    client.seal(&mut out, b"x");
    assert_eq!(out.len(), 1 + OVERHEAD_BYTES);
}

#[test]
fn a_requested_key_update_is_answered_once() {
    let (mut client, mut server) = own_pair();
    for _ in 0..3 {
        let mut request = Output::default();
        own(&mut client).send_key_update(&mut request, [24, 0, 0, 1, 1]);
        assert!(matches!(
            open(&mut server, request.filled()),
            Ok(Opened::Control { .. })
        ));
        assert!(server.wants_control());
    }
    let mut out = Output::default();
    server.flush_control(&mut out);
    assert!(!server.wants_control());
    assert_eq!(
        out.len(),
        5 + OVERHEAD_BYTES,
        "one key update answers all requests"
    );
    server.seal(&mut out, b"under the new key");
    let consumed = 5 + OVERHEAD_BYTES;
    assert_eq!(open(&mut client, out.filled()), Ok(Opened::Control { consumed }));
    assert!(!client.wants_control(), "an answer asks for nothing");
    assert!(matches!(
        open(&mut client, &out.filled()[consumed..]),
        Ok(Opened::Data { written: 17, .. })
    ));
    exchange(&mut client, &mut server, 3);
}

#[test]
fn data_carries_a_due_answer_along() {
    let (mut client, mut server) = own_pair();
    let request = crafted(&mut client, HANDSHAKE, &[24, 0, 0, 1, 1]);
    open(&mut server, &request).expect("key update");
    let mut out = Output::default();
    let start = server.begin(&mut out);
    assert_eq!(
        start,
        5 + OVERHEAD_BYTES,
        "the key update stands in front of the record"
    );
    out.append(b"data");
    server.finish(&mut out, start);
    assert!(!server.wants_control());
    assert_eq!(
        open(&mut client, out.filled()),
        Ok(Opened::Control { consumed: start })
    );
}

#[test]
fn padding_disappears() {
    let (mut client, mut server) = own_pair();
    // Sealed with the content type in front of the padding and a zero where the type usually is.
    let record = crafted(&mut client, 0, b"data\x17\0\0\0\0\0\0\0");
    let mut plain = [0; ROOM];
    let opened = server.open(&record, &mut plain);
    assert_eq!(
        opened,
        Ok(Opened::Data {
            consumed: record.len(),
            written: 4
        })
    );
    assert_eq!(&plain[..4], b"data");
    let mut longest = vec![0; CONTENT_BYTES_MAX];
    longest[0] = b'x';
    longest[1] = APPLICATION_DATA;
    let record = crafted(&mut client, 0, &longest);
    assert!(matches!(
        open(&mut server, &record),
        Ok(Opened::Data { written: 1, .. })
    ));
}

#[test]
fn an_empty_record_is_nothing_and_many_are_a_flood() {
    let (mut client, mut server) = own_pair();
    for _ in 0..2 {
        for _ in 0..limits::EMPTY_RECORDS_MAX {
            let record = crafted(&mut client, APPLICATION_DATA, b"");
            assert_eq!(
                open(&mut server, &record),
                Ok(Opened::Control {
                    consumed: record.len()
                })
            );
        }
        exchange(&mut client, &mut server, 1);
    }
    for _ in 0..limits::EMPTY_RECORDS_MAX {
        let record = crafted(&mut client, APPLICATION_DATA, b"");
        open(&mut server, &record).expect("not too many yet");
    }
    let record = crafted(&mut client, APPLICATION_DATA, b"");
    let alert = AlertDescription::UnexpectedMessage;
    assert_refused(&mut client, &mut server, &record, RecordError::EmptyFlood, alert);
}

#[test]
fn key_updates_without_data_are_a_flood() {
    let (mut client, mut server) = own_pair();
    let mut out = Output::default();
    for _ in 0..limits::CONTROL_BURST_MAX {
        out.clear();
        own(&mut client).send_key_update(&mut out, [24, 0, 0, 1, 0]);
        open(&mut server, out.filled()).expect("not too many yet");
    }
    for _ in 0..limits::CONTROL_EARN_RECORDS {
        exchange(&mut client, &mut server, 1);
    }
    out.clear();
    own(&mut client).send_key_update(&mut out, [24, 0, 0, 1, 0]);
    open(&mut server, out.filled()).expect("earned by data");
    out.clear();
    own(&mut client).send_key_update(&mut out, [24, 0, 0, 1, 0]);
    let alert = AlertDescription::UnexpectedMessage;
    let record = out.filled();
    assert_refused(&mut client, &mut server, record, RecordError::ControlFlood, alert);
}

#[test]
fn tickets_are_forgotten_but_only_a_server_may_send_them() {
    let ticket = [&[4, 0, 0, 3, 1, 2, 3][..], &[4, 0, 0, 0]].concat();
    let (mut client, mut server) = own_pair();
    let record = crafted(&mut server, HANDSHAKE, &ticket);
    assert_eq!(
        open(&mut client, &record),
        Ok(Opened::Control {
            consumed: record.len()
        })
    );
    exchange(&mut server, &mut client, 2);
    let record = crafted(&mut client, HANDSHAKE, &ticket);
    let expected = RecordError::UnexpectedHandshake { message_type: 4 };
    let alert = AlertDescription::UnexpectedMessage;
    assert_refused(&mut client, &mut server, &record, expected, alert);
}

#[test]
fn what_a_peer_must_not_send_is_refused_by_name() {
    use AlertDescription::{DecodeError, IllegalParameter, RecordOverflow, UnexpectedMessage};
    let oversize = vec![1; CONTENT_BYTES_MAX + 1];
    let cases: [(u8, &[u8], RecordError, AlertDescription); 14] = [
        (HANDSHAKE, &[], RecordError::SplitHandshake, UnexpectedMessage),
        (
            HANDSHAKE,
            &[24, 0, 0, 1],
            RecordError::SplitHandshake,
            UnexpectedMessage,
        ),
        (
            HANDSHAKE,
            &[24, 0],
            RecordError::SplitHandshake,
            UnexpectedMessage,
        ),
        (
            HANDSHAKE,
            &[24, 0, 0, 1, 2],
            RecordError::MalformedKeyUpdate,
            IllegalParameter,
        ),
        (
            HANDSHAKE,
            &[24, 0, 0, 0],
            RecordError::MalformedKeyUpdate,
            IllegalParameter,
        ),
        (
            HANDSHAKE,
            &[24, 0, 0, 1, 0, 24],
            RecordError::KeyUpdateNotLast,
            UnexpectedMessage,
        ),
        (
            HANDSHAKE,
            &[1, 0, 0, 0],
            RecordError::UnexpectedHandshake { message_type: 1 },
            UnexpectedMessage,
        ),
        (
            HANDSHAKE,
            &[13, 0, 0, 0],
            RecordError::UnexpectedHandshake { message_type: 13 },
            UnexpectedMessage,
        ),
        (
            CHANGE_CIPHER_SPEC,
            &[1],
            RecordError::UnexpectedContent { content_type: 20 },
            UnexpectedMessage,
        ),
        (
            24,
            b"heartbeat",
            RecordError::UnexpectedContent { content_type: 24 },
            UnexpectedMessage,
        ),
        (0, &[0; 9], RecordError::OnlyPadding, UnexpectedMessage),
        (ALERT, &[], RecordError::MalformedAlert, DecodeError),
        (ALERT, &[1, 0, 1], RecordError::MalformedAlert, DecodeError),
        // One more byte than a record's content, padding included, may have.
        (
            APPLICATION_DATA,
            &oversize,
            RecordError::OversizeContent { bytes: 16386 },
            RecordOverflow,
        ),
    ];
    for (content_type, content, expected, alert) in cases {
        let (mut client, mut server) = own_pair();
        let record = crafted(&mut client, content_type, content);
        assert_refused(&mut client, &mut server, &record, expected, alert);
    }
}

#[test]
fn records_outside_protection_are_refused() {
    use AlertDescription::{BadRecordMac, RecordOverflow, UnexpectedMessage};
    let cases: [(&[u8], RecordError, AlertDescription); 6] = [
        (
            &[20, 3, 3, 0, 1, 1],
            RecordError::Unprotected { content_type: 20 },
            UnexpectedMessage,
        ),
        (
            &[21, 3, 3, 0, 2, 2, 40],
            RecordError::Unprotected { content_type: 21 },
            UnexpectedMessage,
        ),
        (
            b"GET / HTTP",
            RecordError::Unprotected { content_type: b'G' },
            UnexpectedMessage,
        ),
        (
            &[23, 3, 3, 0x41, 0x01],
            RecordError::OversizeRecord { bytes: 16641 },
            RecordOverflow,
        ),
        (&[23, 3, 3, 0, 0], RecordError::Authentication, BadRecordMac),
        (
            &[23, 3, 3, 0, 3, 1, 2, 3],
            RecordError::Authentication,
            BadRecordMac,
        ),
    ];
    for (record, expected, alert) in cases {
        let (mut client, mut server) = own_pair();
        assert_refused(&mut client, &mut server, record, expected, alert);
    }
}

#[test]
fn a_changed_byte_anywhere_breaks_the_record() {
    let (mut client, _) = own_pair();
    let mut out = Output::default();
    client.seal(&mut out, b"payload");
    for at in (1..3).chain(5..out.len()) {
        let (mut client, mut server) = own_pair();
        let mut out = Output::default();
        client.seal(&mut out, b"payload");
        out.filled_mut()[at] ^= 0x40;
        let record = out.filled().to_vec();
        let alert = AlertDescription::BadRecordMac;
        assert_refused(
            &mut client,
            &mut server,
            &record,
            RecordError::Authentication,
            alert,
        );
    }
}

#[test]
fn a_replayed_record_is_refused() {
    let (mut client, mut server) = own_pair();
    let mut out = Output::default();
    client.seal(&mut out, b"once");
    open(&mut server, out.filled()).expect("the first time");
    let alert = AlertDescription::BadRecordMac;
    let record = out.filled();
    assert_refused(
        &mut client,
        &mut server,
        record,
        RecordError::Authentication,
        alert,
    );
}

#[test]
fn fatal_alerts_end_the_session_and_user_canceled_does_not() {
    let (mut client, mut server) = own_pair();
    let canceled = crafted(&mut client, ALERT, &[1, 90]);
    assert!(matches!(open(&mut server, &canceled), Ok(Opened::Control { .. })));
    exchange(&mut client, &mut server, 1);
    // In TLS 1.3 the level says nothing: a "warning" other than the two is fatal.
    let expired = crafted(&mut client, ALERT, &[1, 45]);
    let error = Err(TlsError::Alert(AlertDescription::CertificateExpired));
    assert_eq!(open(&mut server, &expired), error);
    assert_eq!(open(&mut server, &expired), error);
    assert!(!server.wants_control());
}

#[test]
fn nothing_is_read_behind_close_notify() {
    for mode in [RecordMode::Own, RecordMode::Buffered] {
        let (mut client, mut server) = pair(mode, mode, 64);
        let mut out = Output::default();
        client.seal(&mut out, b"last");
        let last = out.len();
        client.close_notify(&mut out);
        let close = out.len();
        client.close_notify(&mut out);
        assert_eq!(out.len(), close, "once is enough");
        assert_eq!(
            open(&mut server, out.filled()),
            Ok(Opened::Data {
                consumed: last,
                written: 4
            })
        );
        assert_eq!(
            open(&mut server, &out.filled()[last..]),
            Ok(Opened::Closed {
                consumed: close - last
            })
        );
        assert_eq!(open(&mut server, b"anything"), Ok(Opened::Closed { consumed: 8 }));
        // The other direction goes on.
        exchange(&mut server, &mut client, 3);
    }
}

#[test]
fn a_record_waits_for_room() {
    let (mut client, mut server) = own_pair();
    let mut out = Output::default();
    client.seal(&mut out, b"0123456789");
    let short = server.open(out.filled(), &mut [0; 4]);
    assert_eq!(short, Err(RecordError::NoRoom { need: 11, room: 4 }.into()));
    assert!(!server.wants_control());
    assert!(matches!(
        open(&mut server, out.filled()),
        Ok(Opened::Data { written: 10, .. })
    ));
}

#[test]
fn buffered_mode_keeps_what_has_no_room() {
    let (mut client, mut server) = pair(RecordMode::Own, RecordMode::Buffered, 64);
    let mut out = Output::default();
    client.seal(&mut out, b"0123456789");
    let mut plain = [0; 4];
    let mut received = Vec::new();
    let mut at = 0;
    while received.len() < 10 {
        match server.open(&out.filled()[at..], &mut plain) {
            Ok(Opened::Data { consumed, written }) => {
                at += consumed;
                received.extend_from_slice(&plain[..written]);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((received.as_slice(), at), (&b"0123456789"[..], out.len()));
    assert_eq!(server.open(&[], &mut plain), Ok(Opened::Incomplete { need: 5 }));
}

#[test]
fn buffered_mode_refuses_what_our_own_does() {
    // An empty handshake record is missing here: rustls waits for more.
    let oversize = vec![1; CONTENT_BYTES_MAX + 1];
    let cases: [(u8, &[u8]); 10] = [
        (HANDSHAKE, &[24, 0, 0, 1, 2]),
        (HANDSHAKE, &[24, 0, 0, 0]),
        (HANDSHAKE, &[24, 0, 0, 1, 0, 24]),
        (HANDSHAKE, &[1, 0, 0, 0]),
        (CHANGE_CIPHER_SPEC, &[1]),
        (24, b"heartbeat"),
        (0, &[0; 9]),
        (ALERT, &[]),
        (ALERT, &[2, 40]),
        (APPLICATION_DATA, &oversize),
    ];
    for (content_type, content) in cases {
        let (mut client, mut server) = pair(RecordMode::Own, RecordMode::Buffered, 64);
        let record = crafted(&mut client, content_type, content);
        let error = open(&mut server, &record).expect_err("refused");
        assert_eq!(open(&mut server, &record), Err(error));
    }
    let outside: [(&[u8], bool); 5] = [
        (b"\x14\x03\x03\x00\x01\x01", true),
        (b"\x15\x03\x03\x00\x02\x02\x28", true),
        (b"GET / HTTP", true),
        (b"\x17\x03\x03\x00\x03abc", true),
        // The library cannot be told to send an alert for what it would have taken.
        (b"\x17\x03\x03\x41\x01", false),
    ];
    for (record, peer_is_told) in outside {
        let (mut client, mut server) = pair(RecordMode::Own, RecordMode::Buffered, 64);
        let error = open(&mut server, record).expect_err("refused");
        assert_eq!(open(&mut server, record), Err(error));
        let mut out = Output::default();
        server.flush_control(&mut out);
        let told = matches!(open(&mut client, out.filled()), Err(TlsError::Alert(_)));
        assert_eq!(told, peer_is_told, "{record:?}");
    }
}

#[test]
fn sealing_nothing_leaves_no_record() {
    for mode in [RecordMode::Own, RecordMode::Buffered] {
        let (mut client, _) = pair(mode, mode, 64);
        let mut out = Output::default();
        out.append(b"before");
        let start = client.begin(&mut out);
        client.finish(&mut out, start);
        client.seal(&mut out, b"");
        assert_eq!(out.filled(), b"before");
    }
}

#[test]
fn an_incomplete_record_says_how_much_is_missing() {
    for mode in [RecordMode::Own, RecordMode::Buffered] {
        let (mut client, mut server) = pair(mode, mode, 64);
        let mut out = Output::default();
        client.seal(&mut out, b"data");
        for len in 0..out.len() {
            let need = if len < 5 { 5 } else { out.len() };
            let opened = open(&mut server, &out.filled()[..len]);
            assert_eq!(opened, Ok(Opened::Incomplete { need }));
        }
        assert!(matches!(
            open(&mut server, out.filled()),
            Ok(Opened::Data { written: 4, .. })
        ));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_input_makes_open_panic(input in proptest::collection::vec(any::<u8>(), 0..600), room in 0usize..700) {
        for mode in [RecordMode::Own, RecordMode::Buffered] {
            let (_, mut server) = pair(mode, mode, 64);
            let mut plain = vec![0; room];
            let _ = server.open(&input, &mut plain);
            let mut out = Output::default();
            server.flush_control(&mut out);
        }
    }

    #[test]
    fn no_authentic_record_makes_open_panic(
        content_type in prop_oneof![Just(ALERT), Just(HANDSHAKE), Just(APPLICATION_DATA), any::<u8>()],
        contents in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                Just(vec![24, 0, 0, 1, 1]),
                Just(vec![4, 0, 0, 2, 1, 2]),
            ],
            1..6,
        ),
    ) {
        let (mut client, mut server) = own_pair();
        for content in contents {
            let record = crafted(&mut client, content_type, &content);
            match open(&mut server, &record) {
                Ok(Opened::Data { consumed, .. } | Opened::Control { consumed }) => {
                    prop_assert_eq!(consumed, record.len());
                }
                Ok(Opened::Closed { .. }) | Err(_) => {}
                Ok(Opened::Incomplete { .. }) => prop_assert!(false, "the record is whole"),
            }
        }
        let mut out = Output::default();
        server.flush_control(&mut out);
    }
}
