//! The authorization decision row by row, and a comparison with a naive evaluator.

use proptest::prelude::*;

use super::*;
use crate::mesh::fixture::*;
use crate::mesh::{Builder, PolicyScope};

fn identity() -> Identity {
    Identity::new("cluster.local", "web", "frontend")
}

fn policy(name: &str, action: PolicyAction, rules: Vec<Rule>) -> Policy {
    Policy {
        key: format!("shop/{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        scope: PolicyScope::Namespace,
        action,
        dry_run: false,
        rules,
    }
}

/// One rule of one clause of one match.
fn rule(it: Match) -> Vec<Rule> {
    vec![Rule {
        clauses: vec![Clause { matches: vec![it] }],
    }]
}

fn everything() -> Vec<Rule> {
    vec![Rule { clauses: vec![] }]
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn from_frontend() -> Match {
    Match {
        principals: vec![exact("cluster.local/ns/web/sa/frontend")],
        ..Match::default()
    }
}

fn from_elsewhere() -> Match {
    Match {
        source_ips: vec![ip("192.0.2.1").into()],
        ..Match::default()
    }
}

fn facts(identity: Option<&Identity>) -> ConnectionFacts<'_> {
    ConnectionFacts {
        source: socket("10.0.0.1:40000"),
        destination: socket("10.0.0.2:8080"),
        identity,
    }
}

fn judge(policies: Vec<Policy>, identity: Option<&Identity>) -> Result<PermitReason, Denial> {
    judge_listing(policies, &[], identity)
}

fn judge_listing(
    policies: Vec<Policy>,
    listed: &[&str],
    identity: Option<&Identity>,
) -> Result<PermitReason, Denial> {
    let authorization_policies = listed.iter().map(|it| (*it).into()).collect();
    let server = with(pod("server", "10.0.0.2"), |it| {
        it.authorization_policies = authorization_policies
    });
    let snapshot = mesh(vec![server.clone()], vec![], policies);
    snapshot
        .authorize(&server, &facts(identity))
        .map(|permit| permit.reason().clone())
}

fn hits(it: Match, identity: Option<&Identity>) -> bool {
    judge(vec![policy("p", PolicyAction::Allow, rule(it))], identity).is_ok()
}

fn allowed_by(name: &str) -> Result<PermitReason, Denial> {
    Ok(PermitReason::AllowedBy(Matched {
        policy: format!("shop/{name}").into(),
        rule: 0,
    }))
}

#[test]
fn without_policies_everything_is_allowed() {
    assert_eq!(judge(vec![], None), Ok(PermitReason::NoAllowPolicies));
}

#[test]
fn a_deny_policy_that_matches_goes_before_every_allow_policy() {
    let policies = vec![
        policy("allow", PolicyAction::Allow, everything()),
        policy("deny", PolicyAction::Deny, rule(from_frontend())),
    ];
    let denial = judge(policies.clone(), Some(&identity())).expect_err("denied");
    assert_eq!(denial.to_string(), "explicitly denied by: shop/deny");
    assert_eq!(judge(policies, None), allowed_by("allow"));
}

#[test]
fn a_decision_names_the_rule_that_made_it() {
    let second = |it: Match| [rule(from_elsewhere()), rule(it)].concat();
    let policies = |action| vec![policy("p", action, second(from_frontend()))];
    let matched = Matched {
        policy: "shop/p".into(),
        rule: 1,
    };
    assert_eq!(
        judge(policies(PolicyAction::Allow), Some(&identity())),
        Ok(PermitReason::AllowedBy(matched.clone()))
    );
    assert_eq!(
        judge(policies(PolicyAction::Deny), Some(&identity())),
        Err(Denial::Explicit(matched))
    );
}

#[test]
fn a_deny_policy_that_does_not_match_leaves_everything_allowed() {
    let policies = vec![policy("deny", PolicyAction::Deny, rule(from_frontend()))];
    assert_eq!(judge(policies, None), Ok(PermitReason::NoAllowPolicies));
}

#[test]
fn where_allow_policies_exist_one_has_to_match() {
    let policies = vec![policy("allow", PolicyAction::Allow, rule(from_frontend()))];
    assert_eq!(judge(policies.clone(), Some(&identity())), allowed_by("allow"));
    let denial = judge(policies, None).expect_err("denied");
    assert_eq!(denial.to_string(), "allow policies exist, but none allowed");
}

#[test]
fn a_policy_without_rules_never_matches() {
    assert_eq!(
        judge(vec![policy("none", PolicyAction::Allow, vec![])], None),
        Err(Denial::NotAllowed)
    );
    let deny = judge(vec![policy("none", PolicyAction::Deny, vec![])], None);
    assert_eq!(deny, Ok(PermitReason::NoAllowPolicies));
}

#[test]
fn a_rule_without_clauses_and_a_clause_without_matches_match_everything() {
    assert_eq!(
        judge(vec![policy("p", PolicyAction::Allow, everything())], None),
        allowed_by("p")
    );
    let empty_clause = vec![Rule {
        clauses: vec![Clause::default()],
    }];
    assert_eq!(
        judge(vec![policy("p", PolicyAction::Allow, empty_clause)], None),
        allowed_by("p")
    );
}

#[test]
fn a_match_without_fields_matches_nothing() {
    assert!(!hits(Match::default(), Some(&identity())));
}

#[test]
fn rules_are_alternatives_and_clauses_are_all_required() {
    let no = || Clause {
        matches: vec![Match {
            destination_ports: vec![1],
            ..Match::default()
        }],
    };
    let yes = || Clause {
        matches: vec![Match {
            destination_ports: vec![8080],
            ..Match::default()
        }],
    };
    let of = |rules: Vec<Vec<Clause>>| {
        let rules = rules.into_iter().map(|clauses| Rule { clauses }).collect();
        judge(vec![policy("p", PolicyAction::Allow, rules)], None).is_ok()
    };
    assert!(of(vec![vec![no()], vec![yes()]]));
    assert!(of(vec![vec![yes(), yes()]]));
    assert!(!of(vec![vec![yes(), no()]]));
    let either = Clause {
        matches: [no().matches, yes().matches].concat(),
    };
    assert!(of(vec![vec![either]]));
}

#[test]
fn all_fields_of_a_match_have_to_agree() {
    let both = Match {
        destination_ports: vec![8080],
        ..from_frontend()
    };
    assert!(hits(both.clone(), Some(&identity())));
    assert!(!hits(both.clone(), None));
    assert!(!hits(
        Match {
            destination_ports: vec![1],
            ..both
        },
        Some(&identity())
    ));
}

#[test]
fn a_negative_entry_excludes_what_a_positive_one_includes() {
    let net = |text: &str| text.parse().expect("a range");
    let range = Match {
        source_ips: vec![net("10.0.0.0/8")],
        ..Match::default()
    };
    assert!(hits(range.clone(), None));
    assert!(!hits(
        Match {
            not_source_ips: vec![net("10.0.0.1/32")],
            ..range.clone()
        },
        None
    ));
    assert!(hits(
        Match {
            not_source_ips: vec![net("10.0.0.9/32")],
            ..range
        },
        None
    ));
    let only_negative = Match {
        not_destination_ports: vec![8080],
        ..Match::default()
    };
    assert!(!hits(only_negative, None));
    let other_negative = Match {
        not_destination_ports: vec![1],
        ..Match::default()
    };
    assert!(hits(other_negative, None));
}

#[test]
fn destinations_are_what_the_application_is_reached_by() {
    let net = |text: &str| text.parse().expect("a range");
    assert!(hits(
        Match {
            destination_ips: vec![net("10.0.0.2/32")],
            ..Match::default()
        },
        None
    ));
    assert!(!hits(
        Match {
            destination_ips: vec![net("fd00::/8")],
            ..Match::default()
        },
        None
    ));
    assert!(hits(
        Match {
            not_destination_ips: vec![net("10.0.0.3/32")],
            ..Match::default()
        },
        None
    ));
    assert!(hits(
        Match {
            destination_ports: vec![8080],
            ..Match::default()
        },
        None
    ));
}

#[test]
fn mapped_addresses_are_compared_as_ipv4() {
    let only = Match {
        source_ips: vec!["10.0.0.1/32".parse().expect("a range")],
        ..Match::default()
    };
    let server = pod("server", "10.0.0.2");
    let policies = vec![policy("p", PolicyAction::Allow, rule(only))];
    let snapshot = mesh(vec![server.clone()], vec![], policies);
    let mapped = ConnectionFacts {
        source: socket("[::ffff:10.0.0.1]:1"),
        ..facts(None)
    };
    assert!(snapshot.authorize(&server, &mapped).is_ok());
}

#[test]
fn principals_are_written_without_the_scheme() {
    let of = |pattern| Match {
        principals: vec![pattern],
        ..Match::default()
    };
    let identity = identity();
    for (pattern, expected) in [
        (exact("cluster.local/ns/web/sa/frontend"), true),
        (exact("spiffe://cluster.local/ns/web/sa/frontend"), false),
        (StringMatch::Prefix("cluster.local/ns/web/".into()), true),
        (StringMatch::Prefix("spiffe://".into()), false),
        (StringMatch::Suffix("/sa/frontend".into()), true),
        (StringMatch::Suffix("/sa/backend".into()), false),
        (StringMatch::Presence, true),
    ] {
        assert_eq!(
            hits(of(pattern.clone()), Some(&identity)),
            expected,
            "{pattern:?}"
        );
        assert!(!hits(of(pattern.clone()), None), "{pattern:?}");
    }
}

#[test]
fn without_an_identity_negative_identity_fields_pass_and_positive_ones_do_not() {
    let account = || ServiceAccountMatch {
        namespace: "web".into(),
        service_account: "frontend".into(),
    };
    assert!(hits(
        Match {
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        },
        None
    ));
    assert!(!hits(
        Match {
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        },
        Some(&identity())
    ));
    assert!(hits(
        Match {
            not_service_accounts: vec![account()],
            ..Match::default()
        },
        None
    ));
    assert!(!hits(
        Match {
            service_accounts: vec![account()],
            ..Match::default()
        },
        None
    ));
    assert!(hits(
        Match {
            service_accounts: vec![account()],
            ..Match::default()
        },
        Some(&identity())
    ));
}

#[test]
fn service_accounts_ignore_the_trust_domain() {
    let account = ServiceAccountMatch {
        namespace: "web".into(),
        service_account: "frontend".into(),
    };
    let it = Match {
        service_accounts: vec![account],
        ..Match::default()
    };
    assert!(hits(
        it.clone(),
        Some(&Identity::new("elsewhere", "web", "frontend"))
    ));
    assert!(!hits(
        it.clone(),
        Some(&Identity::new("cluster.local", "ops", "frontend"))
    ));
    assert!(!hits(it, Some(&Identity::new("cluster.local", "web", "backend"))));
}

#[test]
fn without_an_identity_the_namespace_is_the_empty_text() {
    let of = |pattern| Match {
        namespaces: vec![pattern],
        ..Match::default()
    };
    for (pattern, with, without) in [
        (exact("web"), true, false),
        (exact(""), false, true),
        (StringMatch::Prefix("".into()), true, true),
        (StringMatch::Suffix("b".into()), true, false),
        (StringMatch::Presence, true, false),
    ] {
        assert_eq!(hits(of(pattern.clone()), Some(&identity())), with, "{pattern:?}");
        assert_eq!(hits(of(pattern.clone()), None), without, "{pattern:?}");
    }
}

#[test]
fn a_strict_policy_denies_plain_text_only() {
    let plain_text = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let strict = || vec![policy("strict", PolicyAction::Deny, rule(plain_text.clone()))];
    assert!(judge(strict(), None).is_err());
    assert!(judge(strict(), Some(&identity())).is_ok());
}

#[test]
fn policies_apply_by_namespace_globally_or_by_being_listed() {
    let deny = |scope, namespace: &str| Policy {
        scope,
        namespace: namespace.into(),
        ..policy("deny", PolicyAction::Deny, everything())
    };
    assert!(judge(vec![deny(PolicyScope::Namespace, "shop")], None).is_err());
    assert!(judge(vec![deny(PolicyScope::Namespace, "other")], None).is_ok());
    assert!(judge(vec![deny(PolicyScope::Global, "istio-system")], None).is_err());
    assert!(judge(vec![deny(PolicyScope::WorkloadSelector, "shop")], None).is_ok());
    let selected = vec![deny(PolicyScope::WorkloadSelector, "shop")];
    assert!(judge_listing(selected, &["shop/deny"], None).is_err());
}

/// What was observed, as `message policy`.
fn events(policies: Vec<Policy>, listed: &[&str], identity: Option<&Identity>) -> (bool, Vec<String>) {
    let authorization_policies = listed.iter().map(|it| (*it).into()).collect();
    let server = with(pod("server", "10.0.0.2"), |it| {
        it.authorization_policies = authorization_policies
    });
    let snapshot = mesh(vec![server.clone()], vec![], policies);
    let mut events = Vec::new();
    let result = snapshot.authorize_observed(&server, &facts(identity), &mut |event| {
        events.push(format!("{} {}", event.message(), event.policy().unwrap_or("-")));
    });
    (result.is_ok(), events)
}

#[test]
fn dry_run_policies_are_reported_and_never_enforced() {
    let dry = |name, action, rules| Policy {
        dry_run: true,
        ..policy(name, action, rules)
    };
    let (allowed, seen) = events(vec![dry("d", PolicyAction::Deny, everything())], &[], None);
    assert!(allowed);
    assert_eq!(
        seen,
        ["dry-run: deny policy match shop/d", "no allow policies, allow -"]
    );

    let (allowed, seen) = events(vec![dry("a", PolicyAction::Allow, everything())], &[], None);
    assert!(allowed);
    assert_eq!(
        seen,
        ["dry-run: allow policy match shop/a", "no allow policies, allow -"]
    );

    let (allowed, seen) = events(vec![dry("a", PolicyAction::Allow, vec![])], &[], None);
    assert!(allowed);
    assert_eq!(
        seen,
        ["dry-run: no allow policies match -", "no allow policies, allow -"]
    );
}

#[test]
fn what_decided_is_reported() {
    let (allowed, seen) = events(vec![policy("a", PolicyAction::Allow, everything())], &[], None);
    assert_eq!(
        (allowed, seen),
        (true, vec!["allow policy match shop/a".to_owned()])
    );
    let (allowed, seen) = events(vec![policy("a", PolicyAction::Allow, vec![])], &[], None);
    assert_eq!(
        (allowed, seen),
        (false, vec!["no allow policies matched -".to_owned()])
    );
    let (allowed, seen) = events(vec![policy("d", PolicyAction::Deny, everything())], &[], None);
    assert_eq!(
        (allowed, seen),
        (false, vec!["deny policy match shop/d".to_owned()])
    );
}

#[test]
fn policies_that_are_listed_but_not_there_are_reported_and_skipped() {
    let (allowed, seen) = events(vec![], &["shop/gone"], None);
    assert!(allowed);
    assert_eq!(
        seen,
        ["skipping unknown policy shop/gone", "no allow policies, allow -"]
    );
}

#[test]
fn a_policy_that_becomes_selector_scoped_leaves_its_namespace() {
    let server = pod("server", "10.0.0.2");
    let mut builder = Builder::new(locale());
    builder.insert_workload(server.clone());
    let deny = policy("deny", PolicyAction::Deny, everything());
    builder.insert_policy(deny.clone());
    let before = builder.build();
    builder.insert_policy(Policy {
        scope: PolicyScope::WorkloadSelector,
        ..deny
    });
    let after = builder.build();
    assert!(before.authorize(&server, &facts(None)).is_err());
    assert!(after.authorize(&server, &facts(None)).is_ok());
    assert!(builder.remove_policy("shop/deny"));
    assert!(!builder.remove_policy("shop/deny"));
}

/// The definition once more, with as little structure as possible.
fn naive(
    policies: &[Policy],
    source: &str,
    port: u16,
    identity: Option<&Identity>,
) -> Result<(), Option<String>> {
    let text = identity.map(|it| it.to_string()["spiffe://".len()..].to_owned());
    let namespace = identity.map_or("", Identity::namespace);
    let field = |positive: Vec<bool>, negative: Vec<bool>| {
        (positive.is_empty() || positive.contains(&true)) && !negative.contains(&true)
    };
    let one = |it: &Match| {
        let principal = |list: &[StringMatch]| -> Vec<bool> {
            list.iter()
                .map(|p| text.as_ref().is_some_and(|text| p.matches(text)))
                .collect()
        };
        let spaces = |list: &[StringMatch]| list.iter().map(|p| p.matches(namespace)).collect();
        let port_in = |list: &[u16]| list.iter().map(|p| *p == port).collect();
        let ip_in = |list: &[ipnet::IpNet]| list.iter().map(|net| net.contains(&ip(source))).collect();
        let lists = it.principals.len()
            + it.not_principals.len()
            + it.namespaces.len()
            + it.not_namespaces.len()
            + it.destination_ports.len()
            + it.not_destination_ports.len()
            + it.source_ips.len()
            + it.not_source_ips.len();
        lists > 0
            && field(principal(&it.principals), principal(&it.not_principals))
            && field(spaces(&it.namespaces), spaces(&it.not_namespaces))
            && field(port_in(&it.destination_ports), port_in(&it.not_destination_ports))
            && field(ip_in(&it.source_ips), ip_in(&it.not_source_ips))
    };
    let matching = |policy: &Policy| {
        policy.rules.iter().any(|rule| {
            rule.clauses
                .iter()
                .all(|clause| clause.matches.is_empty() || clause.matches.iter().any(one))
        })
    };
    let enforced = |action| {
        policies
            .iter()
            .filter(move |it| it.action == action && !it.dry_run)
    };
    let mut denying: Vec<String> = enforced(PolicyAction::Deny)
        .filter(|it| matching(it))
        .map(|it| it.key.to_string())
        .collect();
    denying.sort();
    if let Some(first) = denying.into_iter().next() {
        return Err(Some(first));
    }
    if enforced(PolicyAction::Allow).count() == 0 || enforced(PolicyAction::Allow).any(matching) {
        return Ok(());
    }
    Err(None)
}

fn string_matches() -> impl Strategy<Value = Vec<StringMatch>> {
    let words = [
        "",
        "web",
        "ops",
        "cluster.local/ns/web/sa/frontend",
        "cluster.local/",
        "frontend",
    ];
    let one = (0..4usize, 0..words.len()).prop_map(move |(kind, word)| match kind {
        0 => StringMatch::Exact(words[word].into()),
        1 => StringMatch::Prefix(words[word].into()),
        2 => StringMatch::Suffix(words[word].into()),
        _ => StringMatch::Presence,
    });
    proptest::collection::vec(one, 0..2)
}

fn matches() -> impl Strategy<Value = Match> {
    let port_list = || proptest::collection::vec(prop_oneof![Just(80u16), Just(8080), Just(9)], 0..2);
    let nets = || {
        let nets = [
            "10.0.0.0/8",
            "10.0.0.1/32",
            "192.0.2.0/24",
            "fd00::/8",
            "0.0.0.0/0",
        ];
        let one = (0..nets.len()).prop_map(move |at| nets[at].parse().expect("a range"));
        proptest::collection::vec(one, 0..2)
    };
    let strings = (
        string_matches(),
        string_matches(),
        string_matches(),
        string_matches(),
    );
    (strings, port_list(), port_list(), nets(), nets()).prop_map(|(strings, ports, no_ports, ips, no_ips)| {
        Match {
            principals: strings.0,
            not_principals: strings.1,
            namespaces: strings.2,
            not_namespaces: strings.3,
            destination_ports: ports,
            not_destination_ports: no_ports,
            source_ips: ips,
            not_source_ips: no_ips,
            ..Match::default()
        }
    })
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let clause = proptest::collection::vec(matches(), 0..3).prop_map(|matches| Clause { matches });
    let rule = proptest::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let rules = proptest::collection::vec(rule, 0..3);
    let one = (rules, any::<bool>(), proptest::bool::weighted(0.2), any::<bool>());
    proptest::collection::vec(one, 0..5).prop_map(|list| {
        let named = list
            .into_iter()
            .enumerate()
            .map(|(at, (rules, deny, dry_run, listed))| {
                let action = if deny {
                    PolicyAction::Deny
                } else {
                    PolicyAction::Allow
                };
                let scope = if listed {
                    PolicyScope::WorkloadSelector
                } else {
                    PolicyScope::Namespace
                };
                Policy {
                    dry_run,
                    scope,
                    ..policy(&format!("p{at}"), action, rules)
                }
            });
        named.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decisions_agree_with_the_definition(
        policies in policies(),
        source in prop_oneof![Just("10.0.0.1"), Just("192.0.2.7"), Just("fd00::1")],
        port in prop_oneof![Just(80u16), Just(8080)],
        namespace in proptest::option::of(prop_oneof![Just("web"), Just("ops")]),
    ) {
        let identity = namespace.map(|it| Identity::new("cluster.local", it, "frontend"));
        let authorization_policies = policies
            .iter()
            .filter(|it| it.scope == PolicyScope::WorkloadSelector)
            .map(|it| it.key.clone())
            .collect();
        let server = with(pod("server", "10.0.0.2"), |it| it.authorization_policies = authorization_policies);
        let snapshot = mesh(vec![server.clone()], vec![], policies.clone());
        let facts = ConnectionFacts {
            source: SocketAddr::new(ip(source), 1),
            destination: SocketAddr::new(ip("10.0.0.2"), port),
            identity: identity.as_ref(),
        };
        let decided = snapshot.authorize(&server, &facts);
        match (decided, naive(&policies, source, port, identity.as_ref())) {
            (Ok(_), Ok(())) | (Err(Denial::NotAllowed), Err(None)) => {}
            (Err(Denial::Explicit(Matched { policy, rule })), Err(Some(_))) => {
                // Which of several denials is reported is arbitrary; that it is one of them is not.
                let mut alone: Vec<Policy> = policies.iter().filter(|it| it.key == policy).cloned().collect();
                for policy in &mut alone {
                    policy.rules = vec![policy.rules[rule].clone()];
                }
                prop_assert!(naive(&alone, source, port, identity.as_ref()).is_err());
            }
            (decided, expected) => prop_assert!(false, "{decided:?}, expected {expected:?}"),
        }
    }
}

/// The bar is 5 us in a release build for policies that select nobody; this build is several times slower.
#[test]
fn ten_thousand_policies_about_others_cost_a_connection_nothing() {
    let ten_rules = || {
        (0..10)
            .flat_map(|number| {
                rule(Match {
                    principals: vec![exact(&format!("cluster.local/ns/web/sa/caller-{number}"))],
                    ..Match::default()
                })
            })
            .collect()
    };
    let policies = |scope: PolicyScope, namespace: &str| -> Vec<Policy> {
        (0..10_000)
            .map(|number| Policy {
                key: format!("{namespace}/p-{number}").into(),
                namespace: namespace.into(),
                scope,
                ..policy(&format!("p-{number}"), PolicyAction::Deny, ten_rules())
            })
            .collect()
    };
    let identity = identity();
    let cost = |policies: Vec<Policy>, rounds: u32| {
        let server = pod("server", "10.0.0.2");
        let snapshot = mesh(vec![server.clone()], vec![], policies);
        let started = std::time::Instant::now();
        for _ in 0..rounds {
            snapshot
                .authorize(&server, &facts(Some(&identity)))
                .expect("nobody is denied");
        }
        started.elapsed() / rounds
    };
    let unselected = cost(policies(PolicyScope::WorkloadSelector, "shop"), 10_000);
    let elsewhere = cost(policies(PolicyScope::Namespace, "bank"), 10_000);
    let all = cost(policies(PolicyScope::Namespace, "shop"), 3);
    println!("a connection: {unselected:?} and {elsewhere:?} when none is about it, {all:?} when all are");
    assert!(unselected.max(elsewhere) < std::time::Duration::from_micros(50));
}
