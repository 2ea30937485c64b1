//! What is asked for, who is told, and what is forgotten.

use super::super::protocol::Alias;
use super::*;
use crate::clock;

fn target(name: &str) -> GatewayTarget {
    name.parse().expect("an address or a name")
}

fn pod() -> PodUid {
    PodUid::new("pod")
}

fn reply(worker: usize, name: &str, answer: LookupAnswer) -> Reply {
    Reply {
        worker,
        question: Question::Mesh(target(name)),
        answer,
    }
}

/// Subscribed to, unsubscribed from.
fn told(names: &mut OnDemand) -> (Vec<String>, Vec<String>) {
    let request = names.next_request();
    assert_eq!(request.type_url, Kind::Address.type_url());
    assert!(request.node.is_none() && request.response_nonce.is_empty());
    assert!(request.initial_resource_versions.is_empty());
    (
        request.resource_names_subscribe,
        request.resource_names_unsubscribe,
    )
}

/// Everything that is to be told; gives what is subscribed to.
fn asked(names: &mut OnDemand) -> Vec<String> {
    let mut subscribed = Vec::new();
    while names.has_request() {
        subscribed.extend(told(names).0);
    }
    subscribed
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn removed(name: &str) -> Verdict {
    Verdict {
        removed: vec![name.to_owned()],
        ..Verdict::default()
    }
}

fn accepted(name: &str) -> Verdict {
    Verdict {
        accepted: vec![(name.into(), "7".into())],
        ..Verdict::default()
    }
}

fn by_alias(name: &str, accepted: bool) -> Verdict {
    Verdict {
        aliases: vec![Alias {
            name: name.to_owned(),
            accepted,
        }],
        ..Verdict::default()
    }
}

fn connected() -> OnDemand {
    let mut names = OnDemand::default();
    names.opened();
    names
}

#[test]
fn a_name_is_asked_for_once_and_everybody_who_asked_is_told_once() {
    let mut names = connected();
    let now = clock::now();
    for worker in [0, 1, 0] {
        assert_eq!(names.ask(worker, &pod(), &target("/10.0.0.1"), now), None);
    }
    names.ask(0, &pod(), &target("ns/host"), now);
    assert_eq!(asked(&mut names), texts(&["/10.0.0.1", "ns/host"]));
    assert!(!names.has_request());
    // What else is told is for nobody.
    assert_eq!(names.heard(&by_alias("/10.0.0.2", true), now), []);
    let replies = names.heard(&by_alias("/10.0.0.1", true), now);
    assert_eq!(
        replies,
        [0, 1].map(|worker| reply(worker, "/10.0.0.1", Ok(Arc::default())))
    );
    assert_eq!(names.heard(&by_alias("/10.0.0.1", true), now), []);
    assert_eq!(
        names.heard(&accepted("ns/host"), now),
        [reply(0, "ns/host", Ok(Arc::default()))]
    );
    assert_eq!(names.next_due(), None);
}

#[test]
fn what_is_nobodys_is_remembered_for_a_while_and_then_asked_for_anew() {
    let mut names = connected();
    let now = clock::now();
    let stranger = target("net/1.2.3.4");
    names.ask(3, &pod(), &stranger, now);
    told(&mut names);
    let replies = names.heard(&removed("net/1.2.3.4"), now);
    assert_eq!(replies, [reply(3, "net/1.2.3.4", Ok(Arc::default()))]);
    assert_eq!(
        names.ask(0, &pod(), &stranger, now),
        Some(Ok(Arc::default())),
        "known to be nobody's"
    );
    assert!(!names.has_request());
    let later = now + limits::LOOKUP_ABSENT_KEPT;
    assert_eq!(names.next_due(), Some(later));
    assert_eq!(names.expire(later), []);
    assert_eq!(told(&mut names), (vec![], texts(&["net/1.2.3.4"])));
    assert_eq!(names.ask(0, &pod(), &stranger, later), None);
    assert_eq!(told(&mut names), (texts(&["net/1.2.3.4"]), vec![]));
}

#[test]
fn what_was_found_and_lost_is_asked_for_by_leaving_it_first() {
    let mut names = connected();
    let now = clock::now();
    names.ask(0, &pod(), &target("/10.0.0.1"), now);
    told(&mut names);
    names.heard(&by_alias("/10.0.0.1", true), now);
    // Its workload went, and the server thinks that we still want the address.
    assert_eq!(names.ask(0, &pod(), &target("/10.0.0.1"), now), None);
    assert_eq!(told(&mut names), (vec![], texts(&["/10.0.0.1"])));
    assert_eq!(told(&mut names), (texts(&["/10.0.0.1"]), vec![]));
    assert!(!names.has_request());
}

#[test]
fn what_the_server_counts_as_subscribed_by_its_own_name_is_left_before_it_is_asked_for() {
    let mut names = connected();
    let now = clock::now();
    names.ask(0, &pod(), &target("ns/host"), now);
    asked(&mut names);
    names.heard(&accepted("ns/host"), now);
    names.closed();
    // Announced as held, and removed since.
    names.opened();
    names.heard(&removed("ns/host"), now);
    for worker in [0, 1] {
        assert_eq!(names.ask(worker, &pod(), &target("ns/host"), now), None);
    }
    assert_eq!(told(&mut names), (vec![], texts(&["ns/host"])));
    assert_eq!(told(&mut names), (texts(&["ns/host"]), vec![]));
    assert!(!names.has_request());
    // Likewise while it is waited for.
    names.closed();
    names.opened();
    assert_eq!(told(&mut names), (vec![], texts(&["ns/host"])));
    assert_eq!(told(&mut names), (texts(&["ns/host"]), vec![]));
}

#[test]
fn what_is_refused_is_told_as_that_and_may_be_asked_for_again() {
    let mut names = connected();
    let now = clock::now();
    for verdict in [
        by_alias("/10.0.0.1", false),
        Verdict {
            rejected: vec![("/10.0.0.1".into(), "bad".to_owned())],
            ..Verdict::default()
        },
    ] {
        assert_eq!(names.ask(0, &pod(), &target("/10.0.0.1"), now), None);
        asked(&mut names);
        let error = LookupError::Refused {
            name: "/10.0.0.1".into(),
        };
        let replies = names.heard(&verdict, now);
        assert_eq!(replies, [reply(0, "/10.0.0.1", Err(error))]);
        assert_eq!(told(&mut names), (vec![], texts(&["/10.0.0.1"])));
    }
}

#[test]
fn questions_outlive_a_stream_and_so_does_what_was_nobodys_until_the_next_one() {
    let mut names = connected();
    let now = clock::now();
    names.ask(0, &pod(), &target("/10.0.0.1"), now);
    names.ask(0, &pod(), &target("/10.0.0.2"), now);
    told(&mut names);
    names.heard(&removed("/10.0.0.2"), now);
    names.closed();
    let later = now + limits::LOOKUP_ABSENT_KEPT;
    assert_eq!(names.expire(later), []);
    assert_eq!(
        names.ask(1, &pod(), &target("/10.0.0.2"), later),
        Some(Ok(Arc::default()))
    );
    assert_eq!(names.ask(1, &pod(), &target("/10.0.0.3"), later), None);
    assert!(!names.has_request(), "there is nobody to tell");
    names.opened();
    assert_eq!(told(&mut names), (texts(&["/10.0.0.1", "/10.0.0.3"]), vec![]));
    assert_eq!(
        names.ask(1, &pod(), &target("/10.0.0.2"), later),
        None,
        "asked anew"
    );
    assert_eq!(told(&mut names), (texts(&["/10.0.0.2"]), vec![]));
}

#[test]
fn who_gets_no_answer_is_told_so_in_the_end() {
    let mut names = connected();
    let now = clock::now();
    names.ask(0, &pod(), &target("/10.0.0.1"), now);
    let later = now + limits::LOOKUP_FORGOTTEN_AFTER;
    assert_eq!(names.next_due(), Some(later));
    let error = LookupError::NoAnswer {
        name: "/10.0.0.1".into(),
        seconds: limits::LOOKUP_FORGOTTEN_AFTER.as_secs(),
    };
    assert_eq!(names.expire(later), [reply(0, "/10.0.0.1", Err(error))]);
    assert!(!names.has_request(), "nobody wants it any more");
    assert_eq!((names.names.len(), names.parts.taken()), (0, 0));
}

#[test]
fn a_server_that_does_not_answer_is_told_that_nobody_waits_any_more() {
    let mut names = connected();
    let now = clock::now();
    names.ask(0, &pod(), &target("/10.0.0.1"), now);
    assert_eq!(told(&mut names), (texts(&["/10.0.0.1"]), vec![]));
    assert_eq!(names.expire(now + limits::LOOKUP_FORGOTTEN_AFTER).len(), 1);
    assert_eq!(told(&mut names), (vec![], texts(&["/10.0.0.1"])));
}

#[test]
fn an_answer_that_crosses_an_unsubscription_is_subscribed_to_all_the_same() {
    let mut names = connected();
    let now = clock::now();
    // Nobody's for a while, and there before the server was told that nobody wants it any more.
    names.ask(0, &pod(), &target("ns/host"), now);
    asked(&mut names);
    names.heard(&removed("ns/host"), now);
    names.expire(now + limits::LOOKUP_ABSENT_KEPT);
    assert_eq!(names.heard(&accepted("ns/host"), now), []);
    assert!(!names.has_request(), "the server counts it as subscribed");
    // The server took its time, and was told already.
    names.ask(0, &pod(), &target("ns/other"), now);
    asked(&mut names);
    names.expire(now + limits::LOOKUP_FORGOTTEN_AFTER);
    assert_eq!(told(&mut names), (vec![], texts(&["ns/other"])));
    assert_eq!(names.heard(&accepted("ns/other"), now), []);
    assert_eq!(told(&mut names), (texts(&["ns/other"]), vec![]));
    assert_eq!(names.heard(&accepted("ns/other"), now), []);
    assert!(!names.has_request(), "told once");
}

#[test]
fn an_answer_that_crosses_the_last_unsubscription_ends_a_new_question_and_is_subscribed_to() {
    let mut names = connected();
    let now = clock::now();
    names.ask(0, &pod(), &target("ns/host"), now);
    asked(&mut names);
    names.expire(now + limits::LOOKUP_FORGOTTEN_AFTER);
    told(&mut names);
    names.ask(1, &pod(), &target("ns/host"), now);
    let replies = names.heard(&accepted("ns/host"), now);
    assert_eq!(replies, [reply(1, "ns/host", Ok(Arc::default()))]);
    assert_eq!(told(&mut names), (texts(&["ns/host"]), vec![]));
}

#[test]
fn of_the_names_that_were_unsubscribed_from_the_last_are_remembered() {
    let mut names = connected();
    let now = clock::now();
    let name = |index: usize| format!("ns/host-{index:06}");
    let all = limits::LOOKUPS_LEFT_MAX * 3;
    for index in 0..all {
        names.ask(0, &pod(), &target(&name(index)), now);
        asked(&mut names);
        names.expire(now + limits::LOOKUP_FORGOTTEN_AFTER);
        told(&mut names);
    }
    let remembered: usize = names.left.iter().map(BTreeSet::len).sum();
    assert!(remembered <= limits::LOOKUPS_LEFT_MAX * 2, "{remembered}");
    for index in all - limits::LOOKUPS_LEFT_MAX..all {
        names.heard(&accepted(&name(index)), now);
        assert_eq!(told(&mut names), (texts(&[&name(index)]), vec![]));
    }
    names.expire(now + limits::LOOKUP_FORGOTTEN_AFTER);
    names.closed();
    names.opened();
    names.heard(&accepted(&name(0)), now);
    assert!(!names.has_request(), "of another stream");
}

#[test]
fn a_question_is_given_up_so_long_after_it_was_last_asked() {
    let mut names = connected();
    let first = clock::now();
    let last = first + limits::LOOKUP_FORGOTTEN_AFTER / 2;
    for at in [first, last] {
        assert_eq!(names.ask(0, &pod(), &target("/10.0.0.1"), at), None);
    }
    assert_eq!(names.expire(first + limits::LOOKUP_FORGOTTEN_AFTER), vec![]);
    assert_eq!(names.next_due(), Some(last + limits::LOOKUP_FORGOTTEN_AFTER));
    assert_eq!(names.expire(last + limits::LOOKUP_FORGOTTEN_AFTER).len(), 1);
    assert_eq!(names.next_due(), None);
}

#[test]
fn questions_and_names_are_bounded_and_told_in_portions() {
    let mut names = connected();
    let now = clock::now();
    let name = |index: usize| format!("ns/host-{index:06}");
    let limit = limits::LOOKUPS_MAX;
    let refused =
        (0..limit).find_map(|index| Some((index, names.ask(0, &pod(), &target(&name(index)), now)?)));
    let part = limit - limit / 8;
    assert_eq!(refused, Some((part, Err(LookupError::TooMany { limit }))));
    assert_eq!(
        names.ask(1, &pod(), &target(&name(0)), now),
        None,
        "asked already"
    );
    let other = PodUid::new("other");
    assert_eq!(
        names.ask(0, &other, &target(&name(part)), now),
        None,
        "another pod's"
    );
    let mut told_of = Vec::new();
    while names.has_request() {
        let (subscribed, _) = told(&mut names);
        assert!(subscribed.len() <= limits::LOOKUPS_REQUEST_MAX);
        told_of.extend(subscribed);
    }
    assert_eq!(told_of, (0..=part).map(name).collect::<Vec<_>>());
    for index in 0..limits::LOOKUPS_ABSENT_MAX + 10 {
        names.ask(0, &pod(), &target(&name(index)), now);
        names.heard(&removed(&name(index)), now);
    }
    assert_eq!(names.names.len(), limits::LOOKUPS_ABSENT_MAX);
}
