//! The real xDS client against the rig's control plane: real TLS, HTTP/2 and gRPC, all on the loopback.
//!
//! The responses of record are tests/data/xds-*.binpb, byte for byte what istiod sent.

#[path = "xds/proxy.rs"]
mod proxy;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use uztunnel::bridge::lookups::Question;
use uztunnel::bridge::{Order, PodUid};
use uztunnel::control::demands::Asked;
use uztunnel::mesh::{GatewayTarget, Snapshot};
use uztunnel_rig::istiod::messages::{discovery, security, workload};
use uztunnel_rig::istiod::{ADDRESS, AUTHORIZATION, Istiod, Resource, TOKEN, Treatment};
use uztunnel_rig::{Authority, wait_until};

use proxy::{Proxy, Setup};

const ADDRESSES: &[u8] = include_bytes!("data/xds-address.binpb");
const POLICIES: &[u8] = include_bytes!("data/xds-authorization.binpb");

#[test]
fn the_captured_responses_are_replayed_and_acknowledged() {
    let istiod = Istiod::start().expect("istiod");
    istiod.replay(ADDRESS, ADDRESSES);
    istiod.replay(AUTHORIZATION, POLICIES);
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    for bytes in [ADDRESSES, POLICIES] {
        let response = discovery::DeltaDiscoveryResponse::decode(bytes).expect("a response");
        let answered = istiod.wait_for_answer(&response.nonce);
        assert_eq!(
            (answered.type_url, answered.error),
            (response.type_url.clone(), None)
        );
        let snapshot = proxy.snapshots.load();
        for resource in &response.resources {
            let name = &resource.name;
            let known = match (response.type_url.as_str(), name.split_once('/')) {
                (AUTHORIZATION, _) => snapshot.policies().any(|policy| *policy.key == **name),
                (_, Some((namespace, hostname))) => {
                    snapshot.workload(name).is_some() || snapshot.service(namespace, hostname).is_some()
                }
                (_, None) => false,
            };
            assert!(known, "{name}");
        }
    }
    // What the captured dump shows of this service's endpoints.
    let snapshot = proxy.snapshots.load();
    let cart = snapshot
        .service("shop", "cart.shop.svc.cluster.local")
        .expect("a service");
    let endpoints = snapshot.endpoints(cart);
    let mut endpoints: Vec<String> = endpoints.map(|it| it.workload_uid.to_string()).collect();
    endpoints.sort_unstable();
    assert_eq!(
        endpoints,
        ["Kubernetes//Pod/shop/cart-7f-a", "Kubernetes//Pod/shop/cart-7f-b"]
    );
    assert!(matches!(
        proxy.inbox.lock().expect("inbox").next(),
        Some(Order::Snapshot)
    ));
    // What ztunnel counted of the same two responses.
    let captured = include_str!("data/metrics-node1.txt").lines();
    let captured: Vec<&str> = captured.filter(|line| line.contains("istio_xds_")).collect();
    assert_eq!(captured.len(), 7, "{captured:?}");
    let ours = proxy.series();
    for line in captured {
        assert!(ours.lines().any(|it| it == line), "no {line} in\n{ours}");
    }
}

#[test]
fn a_stream_says_who_we_are_and_asks_for_everything() {
    let istiod = Istiod::start().expect("istiod");
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    let asked = istiod.asked();
    let kinds: Vec<&str> = asked.iter().take(2).map(|it| &*it.request.type_url).collect();
    assert_eq!(kinds, [ADDRESS, AUTHORIZATION]);
    for first in &asked[..2] {
        let node = first.request.node.as_ref().expect("a node");
        assert!(
            node.id.starts_with("ztunnel~10.9.8.7~ztunnel-x.istio-system~"),
            "{}",
            node.id
        );
        assert!(first.request.initial_resource_versions.is_empty());
    }
    assert!(asked[2..].iter().all(|it| it.request.node.is_none()));
    let header = |name: &str| {
        asked[0]
            .headers
            .get(name)
            .map(|it| it.to_str().expect("text").to_owned())
    };
    assert_eq!(header("authorization"), Some(format!("Bearer {TOKEN}")));
    assert_eq!(header("clusterid").as_deref(), Some("cluster-7"));
    assert_eq!(header("x-extra").as_deref(), Some("value"));
    assert_eq!(header("content-type").as_deref(), Some("application/grpc"));
    assert_eq!(header("te").as_deref(), Some("trailers"));
    assert_eq!(header("user-agent"), None);
}

#[test]
fn a_bad_resource_is_refused_by_name_and_everything_else_is_applied() {
    let istiod = Istiod::start().expect("istiod");
    istiod.update(ADDRESS, vec![pod("a", 1, "1"), pod("b", 2, "1")]);
    istiod.update(AUTHORIZATION, vec![policy("ns/p", 1, "1")]);
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();

    let bad = Resource {
        value: vec![0x0a, 0x03, 0xff],
        version: "2".to_owned(),
        ..pod("a", 1, "2")
    };
    let unknown = Resource {
        value: Vec::new(),
        ..pod("nobody", 1, "2")
    };
    let nonces = istiod.update(ADDRESS, vec![bad, pod("b", 22, "2"), unknown, pod("c", 3, "2")]);
    let refusal = istiod.wait_for_answer(&nonces[0]).error.expect("a refusal");
    assert!(
        refusal.starts_with("c//Pod/ns/a: cannot be decoded: "),
        "{refusal}"
    );
    assert!(
        refusal.ends_with("; c//Pod/ns/nobody: unknown address type"),
        "{refusal}"
    );
    proxy.wait_for("the good ones", |snapshot| {
        has_address(snapshot, "c//Pod/ns/c", 3) && has_address(snapshot, "c//Pod/ns/b", 22)
    });
    assert!(
        has_address(&proxy.snapshots.load(), "c//Pod/ns/a", 1),
        "the version before it stays"
    );
    proxy.wait_for_log("refused \"c//Pod/ns/a\": cannot be decoded");

    let nonces = istiod.update(
        AUTHORIZATION,
        vec![policy("ns/p", 9, "2"), policy("ns/q", 0, "1")],
    );
    let refusal = istiod.wait_for_answer(&nonces[0]).error.expect("a refusal");
    assert_eq!(refusal, "ns/p: action: unknown enum: 9");
    proxy.wait_for("the good policy", |snapshot| snapshot.policies().count() == 2);

    // The server learns at the next stream which version is in force.
    istiod.cut_connections();
    let (sent, _) = istiod.wait_for_exchange(ADDRESS, 1);
    assert_eq!(
        sent.names,
        ["c//Pod/ns/a", "c//Pod/ns/nobody"],
        "and only what was refused comes again"
    );
    let second = istiod
        .asked()
        .into_iter()
        .find(|it| it.stream == 1)
        .expect("a second stream");
    let versions = second.request.initial_resource_versions;
    assert_eq!(versions.get("c//Pod/ns/a").map(String::as_str), Some("1"));
    assert_eq!(versions.get("c//Pod/ns/b").map(String::as_str), Some("2"));
    assert!(!versions.contains_key("c//Pod/ns/nobody"));
    assert!(
        proxy.readiness.is_ready(),
        "once ready, a lost stream changes nothing"
    );
}

#[test]
fn removed_resources_are_gone_and_names_that_nobody_knows_do_no_harm() {
    let istiod = Istiod::start().expect("istiod");
    istiod.update(
        ADDRESS,
        vec![pod("a", 1, "1"), pod("b", 2, "1"), service("ns", "s.ns", "1")],
    );
    istiod.update(AUTHORIZATION, vec![policy("ns/p", 1, "1")]);
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    let nonces = istiod.remove(
        ADDRESS,
        &["c//Pod/ns/a", "ns/s.ns", "nobody", "c//Pod/ns/zzz", "ns/zzz"],
    );
    assert_eq!(istiod.wait_for_answer(&nonces[0]).error, None);
    istiod.remove(AUTHORIZATION, &["ns/p", "ns/zzz"]);
    proxy.wait_for("the removals", |snapshot| {
        snapshot.workload("c//Pod/ns/a").is_none()
            && snapshot.service("ns", "s.ns").is_none()
            && snapshot.policies().count() == 0
    });
    assert!(has_address(&proxy.snapshots.load(), "c//Pod/ns/b", 2));
}

#[test]
fn an_address_that_is_asked_for_and_nobodys_is_answered_without_a_warning() {
    let istiod = Istiod::start().expect("istiod");
    let (proxy, asking) = Setup::new(&istiod).start_on_demand();
    proxy.wait_until_ready();
    for name in ["/1.2.3.4", "ns/nobody.svc"] {
        let what: GatewayTarget = name.parse().expect("an address or a name");
        let asked = Asked {
            worker: 0,
            pod: PodUid::new("pod"),
            what: what.clone(),
        };
        asking.send(asked).expect("the client runs");
        let answer = wait_until("an answer", || {
            let inbox = proxy.inbox.lock().expect("inbox");
            std::iter::from_fn(|| inbox.next()).find_map(|order| match order {
                Order::Answer { question, answer } => Some((question, answer)),
                _ => None,
            })
        });
        assert_eq!(answer, (Question::Mesh(what), Ok(Arc::default())));
    }
    // Published after that, and warned of what came before it.
    istiod.update(AUTHORIZATION, vec![policy("ns/p", 1, "1")]);
    proxy.wait_for("the policy", |snapshot| snapshot.policies().count() == 1);
    assert!(!proxy.logged("cannot remove"));
}

#[test]
fn changes_that_keep_coming_are_all_seen_and_all_answered_and_the_end_of_the_stream_is_noticed() {
    let istiod = Istiod::start().expect("istiod");
    istiod.update(ADDRESS, vec![pod("a", 1, "1")]);
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    // One after the other, so that the connection is read with pauses.
    for number in 2..30 {
        istiod.update(ADDRESS, vec![pod("a", number, &number.to_string())]);
        proxy.wait_for("one change", |snapshot| {
            has_address(snapshot, "c//Pod/ns/a", number)
        });
    }
    let nonces = (30..100).map(|number| istiod.update(ADDRESS, vec![pod("a", number, &number.to_string())]));
    for nonces in nonces.collect::<Vec<_>>() {
        assert_eq!(istiod.wait_for_answer(&nonces[0]).error, None);
    }
    proxy.wait_for("the last change", |snapshot| {
        has_address(snapshot, "c//Pod/ns/a", 99)
    });
    istiod.update(ADDRESS, vec![pod("b", 1, "1")]);
    istiod.go_away();
    istiod.come_back().expect("bound again");
    proxy.wait_for("what was sent last", |snapshot| {
        has_address(snapshot, "c//Pod/ns/b", 1)
    });
}

#[test]
fn a_new_stream_brings_only_what_changed_meanwhile() {
    let istiod = Istiod::start().expect("istiod");
    istiod.update(
        ADDRESS,
        vec![pod("a", 1, "1"), pod("b", 2, "1"), pod("c", 3, "1")],
    );
    istiod.update(AUTHORIZATION, vec![policy("ns/p", 1, "1")]);
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    istiod.go_away();
    assert!(
        has_address(&proxy.snapshots.load(), "c//Pod/ns/a", 1),
        "what is known stays"
    );
    istiod.update(ADDRESS, vec![pod("b", 22, "2")]);
    istiod.remove(ADDRESS, &["c//Pod/ns/c"]);
    istiod.come_back().expect("bound again");
    let (sent, answered) = istiod.wait_for_exchange(ADDRESS, 1);
    assert_eq!(sent.names, ["c//Pod/ns/b"]);
    assert_eq!(sent.removed, ["c//Pod/ns/c"]);
    assert_eq!(answered.error, None);
    let (policies, _) = istiod.wait_for_exchange(AUTHORIZATION, 1);
    assert_eq!((policies.names.len(), policies.removed.len()), (0, 0));
    proxy.wait_for("the change and the removal", |snapshot| {
        has_address(snapshot, "c//Pod/ns/b", 22) && snapshot.workload("c//Pod/ns/c").is_none()
    });
}

#[test]
fn what_workers_let_go_of_is_freed_while_there_is_no_stream() {
    let istiod = Istiod::start().expect("istiod");
    istiod.update(ADDRESS, vec![pod("a", 1, "1")]);
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    // As a worker does that is busy.
    let looked_at = proxy.snapshots.load();
    istiod.update(ADDRESS, vec![pod("a", 2, "2")]);
    proxy.wait_for("the change", |snapshot| has_address(snapshot, "c//Pod/ns/a", 2));
    istiod.go_away();
    proxy.wait_for_log("no stream to the control plane");
    let replaced = Arc::downgrade(&looked_at);
    drop(looked_at);
    wait_until("the end of the snapshot that was replaced", || {
        (replaced.strong_count() == 0).then_some(())
    });
}

#[test]
fn every_way_to_end_a_stream_is_followed_by_another() {
    let istiod = Istiod::start().expect("istiod");
    istiod.update(ADDRESS, vec![pod("a", 1, "1")]);
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    for (index, (code, message)) in [(0, ""), (14, "transport is closing"), (13, "broken"), (2, "")]
        .into_iter()
        .enumerate()
    {
        istiod.end_streams(code, message);
        let (sent, answered) = istiod.wait_for_exchange(ADDRESS, index + 1);
        assert!(sent.names.is_empty(), "nothing comes twice");
        assert_eq!(answered.error, None);
    }
    proxy.wait_for_terminations("Complete", 1);
    proxy.wait_for_terminations("Reconnect", 2);
    proxy.wait_for_terminations("Error", 1);
}

#[test]
fn a_stream_that_breaks_is_an_error_with_its_cause_and_a_connection_that_closes_is_none() {
    let istiod = Istiod::start().expect("istiod");
    istiod.update(ADDRESS, vec![pod("a", 1, "1")]);
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    istiod.reset_streams(h2::Reason::INTERNAL_ERROR);
    istiod.wait_for_exchange(ADDRESS, 1);
    proxy.wait_for_log(
        "gRPC status Internal: error reading a body from connection: stream error received: unexpected internal \
         error encountered",
    );
    proxy.wait_for_terminations("Error", 1);
    istiod.cut_connections();
    istiod.wait_for_exchange(ADDRESS, 2);
    proxy.wait_for_terminations("Reconnect", 1);
}

#[test]
fn with_the_server_down_at_start_the_reason_is_clear_and_its_return_is_noticed_within_a_second() {
    let istiod = Istiod::start().expect("istiod");
    istiod.update(ADDRESS, vec![pod("a", 1, "1")]);
    istiod.go_away();
    let proxy = Proxy::start(&istiod);
    let address = istiod.address;
    proxy.wait_for_log(&format!("cannot connect to {address}: Connection refused"));
    proxy.wait_for_log("not ready before it has sent the state of the mesh");
    // Long enough for the delays to have grown: the ninth attempt and those after it are as far apart as they get.
    proxy.wait_for_logs("no stream to the control plane", 9);
    assert!(!proxy.readiness.is_ready());
    assert!(proxy.series().contains("{reason=\"ConnectionError\"} "));
    istiod.come_back().expect("bound again");
    let back = Instant::now();
    proxy.wait_until_ready();
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
    assert!(has_address(&proxy.snapshots.load(), "c//Pod/ns/a", 1));
}

#[test]
fn a_token_that_is_not_accepted_is_named_and_a_new_one_is_read_from_the_file() {
    let istiod = Istiod::start().expect("istiod");
    let setup = Setup::new(&istiod);
    setup.write_token("wrong");
    let proxy = setup.start();
    proxy.wait_for_log(
        "gRPC status Unauthenticated: authentication failure (hint: check the control plane logs",
    );
    assert!(!proxy.readiness.is_ready());
    assert!(!proxy.logged("wrong"), "a token is in no log");
    proxy.setup.write_token("");
    proxy.wait_for_log("token file exists, but was empty");
    // As an editor leaves it.
    proxy.setup.write_token(&format!("\n {TOKEN} \n"));
    proxy.wait_until_ready();
}

#[test]
fn what_is_wrong_on_this_node_counts_as_an_error_and_not_as_a_failed_connection() {
    let istiod = Istiod::start().expect("istiod");
    for (token, roots, reason) in [
        ("", istiod.authority().pem(), "token file exists, but was empty: "),
        ("secret\nsecret", istiod.authority().pem(), "the token from "),
        (
            TOKEN,
            "no certificate".to_owned(),
            "by the root certificates from ",
        ),
    ] {
        let setup = Setup::new(&istiod);
        setup.write_token(token);
        setup.write_roots(&roots);
        let file = if token == TOKEN {
            &setup.roots
        } else {
            &setup.token
        };
        let reason = format!("{reason}{}", file.display());
        let proxy = setup.start();
        proxy.wait_for_log(&reason);
        let series = proxy.series();
        assert!(series.contains("{reason=\"Error\"} "), "{series}");
        assert!(!series.contains("{reason=\"ConnectionError\"} "), "{series}");
        assert!(!proxy.logged("secret"), "a token is in no log");
    }
}

#[test]
fn a_server_under_other_roots_is_not_trusted_until_the_roots_change() {
    let istiod = Istiod::start().expect("istiod");
    let setup = Setup::new(&istiod);
    setup.write_roots(&Authority::new("a stranger").expect("an authority").pem());
    let proxy = setup.start();
    proxy.wait_for_log("tls handshake with 127.0.0.1 failed: invalid peer certificate: ");
    assert!(istiod.asked().is_empty(), "nothing is said to a stranger");
    proxy.setup.write_roots("no certificate");
    proxy.wait_for_log("no certificate in it can be used as a root (0 found)");
    std::fs::remove_file(&proxy.setup.roots).expect("removed");
    proxy.wait_for_log("cannot read the root certificates from ");
    proxy.setup.write_roots(&istiod.authority().pem());
    proxy.wait_until_ready();
}

#[test]
fn a_server_whose_name_is_another_is_not_trusted() {
    let istiod = Istiod::start().expect("istiod");
    let mut setup = Setup::new(&istiod);
    setup.server.other_hostname = Some("somebody.else.svc".to_owned());
    let proxy = setup.start();
    proxy.wait_for_log("tls handshake with 127.0.0.1 failed: invalid peer certificate: ");
    assert!(istiod.asked().is_empty());
}

#[test]
fn a_server_that_ends_every_stream_at_once_is_asked_less_and_less_often() {
    let istiod = Istiod::start().expect("istiod");
    istiod.treat(Treatment::EndAtOnce);
    let begun = Instant::now();
    let proxy = Proxy::start(&istiod);
    wait_until("seven connections", || {
        (istiod.connections_made() >= 7).then_some(())
    });
    // 20, 40, 80, 160, 320 and 640 ms, each a fifth less at most.
    assert!(
        begun.elapsed() >= Duration::from_millis(1008),
        "{:?}",
        begun.elapsed()
    );
    istiod.treat(Treatment::Serve);
    proxy.wait_until_ready();
}

#[test]
fn a_response_that_lacks_its_last_byte_leaves_nothing_behind() {
    let istiod = Istiod::start().expect("istiod");
    istiod.update(ADDRESS, vec![pod("a", 1, "1"), pod("gone", 3, "1")]);
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    istiod.treat(Treatment::CutShort);
    istiod.end_streams(14, "transport is closing");
    istiod.remove(ADDRESS, &["c//Pod/ns/gone"]);
    istiod.update(ADDRESS, vec![pod("a", 11, "2"), pod("b", 2, "2")]);
    // Streams that begin before the change have nothing to be cut from.
    let streams = istiod.streams_made();
    wait_until("two more streams", || {
        (istiod.streams_made() >= streams + 3).then_some(())
    });
    proxy.wait_for_log("the stream ended within a message");
    let snapshot = proxy.snapshots.load();
    assert!(has_address(&snapshot, "c//Pod/ns/a", 1));
    assert!(snapshot.workload("c//Pod/ns/b").is_none());
    assert!(snapshot.workload("c//Pod/ns/gone").is_some());
    let asked = istiod.asked();
    let last = asked
        .iter()
        .rfind(|it| it.request.type_url == ADDRESS && it.request.node.is_some());
    let held: Vec<_> = last
        .expect("a request")
        .request
        .initial_resource_versions
        .iter()
        .collect();
    let mut held: Vec<_> = held
        .iter()
        .map(|(name, version)| (name.as_str(), version.as_str()))
        .collect();
    held.sort_unstable();
    assert_eq!(held, [("c//Pod/ns/a", "1"), ("c//Pod/ns/gone", "1")]);

    istiod.treat(Treatment::Serve);
    proxy.wait_for("the change", |snapshot| {
        has_address(snapshot, "c//Pod/ns/a", 11)
            && has_address(snapshot, "c//Pod/ns/b", 2)
            && snapshot.workload("c//Pod/ns/gone").is_none()
    });
}

#[test]
fn a_server_that_refuses_is_asked_again() {
    let istiod = Istiod::start().expect("istiod");
    istiod.treat(Treatment::Refuse {
        code: 8,
        message: "too many proxies".to_owned(),
    });
    let proxy = Proxy::start(&istiod);
    proxy.wait_for_log("gRPC status ResourceExhausted: too many proxies");
    istiod.treat(Treatment::Delay(Duration::from_millis(50)));
    proxy.wait_until_ready();
}

#[test]
fn an_unknown_type_is_acknowledged_and_logged() {
    let istiod = Istiod::start().expect("istiod");
    let proxy = Proxy::start(&istiod);
    proxy.wait_until_ready();
    let nonces = istiod.update("type.googleapis.com/of.tomorrow", vec![pod("a", 1, "1")]);
    assert_eq!(istiod.wait_for_answer(&nonces[0]).error, None);
    proxy.wait_for_log("unknown type \"type.googleapis.com/of.tomorrow\"");
}

#[test]
fn the_mesh_is_complete_only_when_both_kinds_came_without_a_fault() {
    let istiod = Istiod::start().expect("istiod");
    let bad = Resource {
        value: Vec::new(),
        ..pod("bad", 1, "1")
    };
    istiod.update(ADDRESS, vec![bad, pod("a", 1, "1")]);
    let proxy = Proxy::start(&istiod);
    let (_, answered) = istiod.wait_for_exchange(ADDRESS, 0);
    assert!(answered.error.is_some());
    istiod.wait_for_exchange(AUTHORIZATION, 0);
    assert!(!proxy.readiness.is_ready());
    istiod.update(ADDRESS, vec![pod("bad", 2, "2")]);
    proxy.wait_until_ready();
}

#[test]
fn very_many_resources_are_published_at_once_and_announced_within_the_servers_limit() {
    const WORKLOADS: u32 = 45_000;
    let istiod = Istiod::start().expect("istiod");
    let long = "n".repeat(90);
    let pods = (0..WORKLOADS).map(|index| pod(&format!("{long}-{index}"), index, "1"));
    istiod.update(ADDRESS, pods.collect());
    let proxy = Proxy::start(&istiod);
    // Whoever looks sees nothing or everything.
    wait_until("the workloads", || {
        let count = proxy.snapshots.load().workloads().count();
        assert!(count == 0 || count == WORKLOADS as usize, "{count}");
        proxy.readiness.is_ready().then_some(())
    });
    assert_eq!(proxy.snapshots.load().workloads().count(), WORKLOADS as usize);
    istiod.cut_connections();
    // The fake server takes 4 MiB, as a real one does.
    let (sent, answered) = istiod.wait_for_exchange(ADDRESS, 1);
    assert_eq!(answered.error, None);
    let second = istiod
        .asked()
        .into_iter()
        .find(|it| it.stream == 1)
        .expect("a second stream");
    let announced = second.request.initial_resource_versions.len();
    assert!(announced > 30_000, "{announced}");
    assert_eq!(sent.names.len() + announced, WORKLOADS as usize);
    proxy.wait_for_log(&format!("{} are left out of it", sent.names.len()));
}

fn pod(name: &str, address: u32, version: &str) -> Resource {
    let uid = format!("c//Pod/ns/{name}");
    let workload = workload::Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        addresses: vec![(0x0a00_0000 + address).to_be_bytes().to_vec()],
        ..Default::default()
    };
    let kind = workload::address::Type::Workload(workload);
    resource(uid, version, workload::Address { r#type: Some(kind) })
}

fn service(namespace: &str, hostname: &str, version: &str) -> Resource {
    let service = workload::Service {
        namespace: namespace.to_owned(),
        hostname: hostname.to_owned(),
        ..Default::default()
    };
    let kind = workload::address::Type::Service(service);
    let address = workload::Address { r#type: Some(kind) };
    resource(format!("{namespace}/{hostname}"), version, address)
}

fn policy(name: &str, action: i32, version: &str) -> Resource {
    let (namespace, short) = name.split_once('/').expect("a namespace");
    let authorization = security::Authorization {
        name: short.to_owned(),
        namespace: namespace.to_owned(),
        action,
        ..Default::default()
    };
    resource(name.to_owned(), version, authorization)
}

fn resource(name: String, version: &str, message: impl Message) -> Resource {
    Resource {
        name,
        version: version.to_owned(),
        value: message.encode_to_vec(),
    }
}

fn has_address(snapshot: &Snapshot, uid: &str, address: u32) -> bool {
    let expected = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + address));
    snapshot
        .workload(uid)
        .is_some_and(|it| *it.addresses == [expected])
}
