//! What the client says, holds and waits.

use super::*;
use crate::clock;

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
const SECOND: Duration = Duration::from_secs(1);

fn protocol() -> Protocol {
    Protocol::new(Node {
        id: "ztunnel~1.1.1.1~a.b~b.svc.cluster.local".to_owned(),
        metadata: None,
    })
}

fn accepted(names: &[(&str, &str)]) -> Verdict {
    Verdict {
        accepted: names
            .iter()
            .map(|(name, version)| ((*name).into(), (*version).into()))
            .collect(),
        ..Verdict::default()
    }
}

fn rejected(name: &str, reason: &str) -> Verdict {
    Verdict {
        rejected: vec![(name.into(), reason.to_owned())],
        ..Verdict::default()
    }
}

fn versions(request: &DeltaDiscoveryRequest) -> Vec<(&str, &str)> {
    let versions = request.initial_resource_versions.iter();
    versions.map(|(name, version)| (&**name, &**version)).collect()
}

#[test]
fn a_stream_begins_with_everything_of_both_kinds() {
    let (requests, warnings) = protocol().opened();
    let kinds: Vec<&str> = requests.iter().map(|it| &*it.type_url).collect();
    assert_eq!(kinds, [ADDRESS, AUTHORIZATION]);
    for request in requests {
        assert!(request.node.is_some());
        assert!(request.resource_names_subscribe.is_empty());
        assert!(request.resource_names_unsubscribe.is_empty());
        assert!(request.initial_resource_versions.is_empty());
        assert!(request.response_nonce.is_empty() && request.error_detail.is_none());
    }
    assert!(warnings.is_empty());
}

#[test]
fn on_demand_a_stream_begins_with_no_address_and_everything_of_the_other_kind() {
    let mut protocol = protocol().on_demand();
    let now = clock::now();
    protocol.opened();
    assert!(!protocol.is_synced());
    protocol.answer(AUTHORIZATION, "1", Verdict::default(), now);
    assert!(
        protocol.is_synced(),
        "nobody says when all that is needed is there"
    );
    protocol.answer(ADDRESS, "2", accepted(&[("a", "1")]), now);
    protocol.ended(&Ended::Complete, SECOND, 0.5);
    let (requests, _) = protocol.opened();
    for names in [
        &requests[0].resource_names_subscribe,
        &requests[0].resource_names_unsubscribe,
    ] {
        assert_eq!(*names, ["*"]);
    }
    assert_eq!(versions(&requests[0]), [("a", "1")]);
    assert!(requests[1].resource_names_subscribe.is_empty());
    assert!(requests[1].resource_names_unsubscribe.is_empty());
}

#[test]
fn an_answer_names_the_response_and_nothing_else() {
    let mut protocol = protocol();
    let ack = protocol.answer(ADDRESS, "n1", accepted(&[("a", "1")]), clock::now());
    let expected = DeltaDiscoveryRequest {
        type_url: ADDRESS.to_owned(),
        response_nonce: "n1".to_owned(),
        ..Default::default()
    };
    assert_eq!(ack, expected);
    let other = protocol.answer(
        "type.googleapis.com/other",
        "n2",
        Verdict::default(),
        clock::now(),
    );
    assert_eq!(other.error_detail, None, "an unknown type is acknowledged");
}

#[test]
fn a_refusal_names_every_resource_that_is_refused() {
    let mut protocol = protocol();
    let mut verdict = rejected("ns/a", "status: unknown enum: 7");
    verdict
        .rejected
        .push(("ns/b".into(), "unknown address type".to_owned()));
    let nack = protocol.answer(ADDRESS, "n", verdict, clock::now());
    let detail = nack.error_detail.expect("a refusal");
    assert_eq!(detail.code, 0);
    assert_eq!(
        detail.message,
        "ns/a: status: unknown enum: 7; ns/b: unknown address type"
    );
}

#[test]
fn a_refusal_of_very_many_resources_is_cut() {
    let verdict = Verdict {
        rejected: (0..10_000)
            .map(|index| (format!("name-{index}").into(), "x".repeat(50)))
            .collect(),
        ..Verdict::default()
    };
    let nack = protocol().answer(ADDRESS, "n", verdict, clock::now());
    let text = nack.error_detail.expect("a refusal").message;
    assert!(text.len() < limits::XDS_NACK_TEXT_BYTES_MAX + 100);
    assert!(text.ends_with(" more"), "{}", &text[text.len() - 40..]);
}

#[test]
fn the_next_stream_announces_what_is_held() {
    let mut protocol = protocol();
    let now = clock::now();
    protocol.opened();
    protocol.answer(ADDRESS, "1", accepted(&[("a", "1"), ("b", ""), ("c", "1")]), now);
    protocol.answer(AUTHORIZATION, "2", accepted(&[("p", "7")]), now);
    protocol.answer(ADDRESS, "3", rejected("a", "bad"), now);
    protocol.answer(ADDRESS, "4", rejected("new", "bad"), now);
    let removed = Verdict {
        removed: vec!["c".to_owned(), "never there".to_owned()],
        ..accepted(&[("b", "2")])
    };
    protocol.answer(ADDRESS, "5", removed, now);
    protocol.ended(&Ended::Complete, SECOND, 0.5);
    let (requests, _) = protocol.opened();
    assert_eq!(versions(&requests[0]), [("a", "1"), ("b", "2")]);
    assert_eq!(versions(&requests[1]), [("p", "7")]);
}

#[test]
fn both_kinds_have_to_come_without_a_fault_before_the_mesh_is_known() {
    let mut protocol = protocol();
    let now = clock::now();
    protocol.answer(AUTHORIZATION, "1", Verdict::default(), now);
    assert!(!protocol.is_synced());
    protocol.answer(ADDRESS, "2", rejected("a", "bad"), now);
    assert!(
        !protocol.is_synced(),
        "a response that is refused in part does not count"
    );
    protocol.answer(ADDRESS, "3", accepted(&[("a", "2")]), now);
    assert!(protocol.is_synced());
    protocol.answer(ADDRESS, "4", rejected("a", "bad"), now);
    protocol.ended(&Ended::Complete, SECOND, 0.5);
    assert!(protocol.is_synced(), "once known, the mesh stays known");
}

#[test]
fn a_list_that_would_not_fit_is_cut_and_the_rest_is_swept_unless_it_comes_again() {
    let mut protocol = protocol();
    let now = clock::now();
    let name = |index: usize| format!("{index:06}-{}", "n".repeat(100));
    let all: Vec<(Arc<str>, Version)> = (0..50_000)
        .map(|index| (name(index).into(), "v".into()))
        .collect();
    let verdict = Verdict {
        accepted: all,
        ..Verdict::default()
    };
    protocol.answer(ADDRESS, "1", verdict, now);
    let (requests, warnings) = protocol.opened();
    assert!(requests[0].encoded_len() <= limits::XDS_REQUEST_BYTES_MAX);
    let announced = requests[0].initial_resource_versions.len();
    assert!((20_000..50_000).contains(&announced), "{announced}");
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains(&format!("{} are left out", 50_000 - announced)),
        "{}",
        warnings[0]
    );
    assert_eq!(protocol.sweep_at(), None, "nothing has come yet");

    // The server sends all that it was not told of, but for the last, which is gone, and one that is refused now.
    let told = &requests[0].initial_resource_versions;
    let mut left_out: Vec<String> = (0..50_000)
        .map(name)
        .filter(|it| !told.contains_key(it))
        .collect();
    assert_eq!(left_out.len(), 50_000 - announced);
    let gone: Arc<str> = left_out.pop().expect("left out").into();
    let refused: Arc<str> = left_out.pop().expect("left out").into();
    let again = left_out.iter().map(|it| (it.as_str().into(), "v".into()));
    let verdict = Verdict {
        accepted: again.collect(),
        rejected: vec![(refused, "bad".to_owned())],
        ..Verdict::default()
    };
    protocol.answer(ADDRESS, "2", verdict, now);
    let due = protocol.sweep_at().expect("a sweep");
    assert!(protocol.sweep(due - SECOND).is_empty());
    assert_eq!(protocol.sweep(due), [(Kind::Address, gone)]);
    assert_eq!(protocol.held(Kind::Address), 49_999);
    assert_eq!(protocol.sweep_at(), None);
}

#[test]
fn a_list_is_warned_of_before_it_is_cut() {
    let mut protocol = protocol();
    let all = (0..32_000)
        .map(|index| (format!("{index:06}-{}", "n".repeat(80)).into(), "v".into()))
        .collect();
    let verdict = Verdict {
        accepted: all,
        ..Verdict::default()
    };
    protocol.answer(ADDRESS, "1", verdict, clock::now());
    let (requests, warnings) = protocol.opened();
    assert_eq!(requests[0].initial_resource_versions.len(), 32_000);
    assert!(warnings[0].contains(": 0 are left out"), "{}", warnings[0]);
}

fn status(code: Code, message: &str) -> Ended {
    Ended::Status {
        code,
        message: message.to_owned(),
    }
}

/// Every way in which a stream can end.
fn all_ends() -> Vec<Ended> {
    vec![
        Ended::Unreachable("refused".to_owned()),
        Ended::NotTried("no roots".to_owned()),
        Ended::NotOpened("no HTTP/2".to_owned()),
        Ended::Complete,
        status(Code::Unknown, ""),
        status(Code::Cancelled, ""),
        status(Code::DeadlineExceeded, ""),
        status(Code::Unavailable, "transport is closing"),
        status(Code::Unavailable, "received prior goaway"),
        status(Code::Unavailable, "no healthy upstream"),
        status(Code::Unauthenticated, "authentication failure"),
        status(Code::ResourceExhausted, "too large"),
    ]
}

#[test]
fn no_end_makes_the_client_spin() {
    for end in all_ends() {
        for answers in [false, true] {
            let mut protocol = protocol();
            let mut waited = Duration::ZERO;
            for _ in 0..20 {
                protocol.opened();
                if answers {
                    protocol.answer(ADDRESS, "1", Verdict::default(), clock::now());
                    protocol.answer(AUTHORIZATION, "1", Verdict::default(), clock::now());
                }
                waited += protocol.ended(&end, Duration::ZERO, 0.0);
            }
            let least = match end {
                Ended::Unreachable(_) if !answers => limits::XDS_DELAY_STARTING_MAX * 8,
                _ => limits::XDS_DELAY_MAX * 6,
            };
            assert!(waited >= least, "{end:?}: 20 attempts in {waited:?}");
        }
    }
}

#[test]
fn a_stream_that_did_its_work_is_followed_by_the_next_at_once() {
    for (end, delay_ms) in [
        (Ended::Complete, 10),
        (status(Code::Unknown, ""), 10),
        (status(Code::Cancelled, ""), 10),
        (status(Code::DeadlineExceeded, ""), 10),
        (status(Code::Unavailable, "transport is closing"), 10),
        (status(Code::Unavailable, "received prior goaway"), 10),
        (status(Code::Unavailable, "no healthy upstream"), 20),
        (status(Code::Internal, ""), 20),
        (Ended::Unreachable(String::new()), 20),
        (Ended::NotTried(String::new()), 20),
        (Ended::NotOpened(String::new()), 20),
    ] {
        let mut protocol = protocol();
        for _ in 0..10 {
            protocol.ended(&Ended::NotOpened(String::new()), SECOND, 0.5);
        }
        protocol.opened();
        protocol.answer(ADDRESS, "1", Verdict::default(), clock::now());
        let delay = protocol.ended(&end, SECOND, 0.5);
        assert_eq!(delay, Duration::from_millis(delay_ms), "{end:?}");
    }
}

#[test]
fn delays_double_up_to_a_bound_and_are_spread() {
    let mut protocol = protocol();
    let end = status(Code::Unavailable, "overloaded");
    let delays: Vec<u128> = (0..13)
        .map(|_| protocol.ended(&end, SECOND, 0.5).as_millis())
        .collect();
    assert_eq!(
        delays,
        [
            20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 15_000, 15_000, 15_000
        ]
    );
    assert_eq!(protocol.ended(&end, SECOND, 0.0).as_millis(), 12_000);
    assert_eq!(protocol.ended(&end, SECOND, 1.0).as_millis(), 18_000);
}

#[test]
fn a_server_that_is_away_at_start_is_asked_at_least_every_second() {
    let mut protocol = protocol();
    let away = Ended::Unreachable("refused".to_owned());
    for _ in 0..20 {
        assert!(protocol.ended(&away, Duration::ZERO, 1.0) < SECOND);
    }
    protocol.answer(ADDRESS, "1", Verdict::default(), clock::now());
    protocol.answer(AUTHORIZATION, "2", Verdict::default(), clock::now());
    for _ in 0..20 {
        protocol.ended(&away, Duration::ZERO, 0.5);
    }
    assert_eq!(
        protocol.ended(&away, Duration::ZERO, 0.5),
        limits::XDS_DELAY_MAX,
        "once the mesh is known there is no hurry"
    );
}
