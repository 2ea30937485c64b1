//! What connections leave behind on both nodes: series, log lines, and while they live their place in the dump.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use uztunnel_rig::applications::echo;
use uztunnel_rig::{Blueprint, Family, World, sys, wait_until};

use crate::admin::{ask, dump};
use crate::setup::options;

const PORT: u16 = 8080;
const NOBODY_LISTENS: u16 = 9;

fn world() -> World {
    let options = options().map(|options| options.variable("RUST_LOG", "info,access=debug"));
    World::start(Blueprint::two_nodes(), &options).expect("a world with ready proxies")
}

fn connect(world: &World, pod: &str, target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = world.pod(pod).namespace.run(|| TcpStream::connect(target))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

fn say(stream: &mut TcpStream, bytes: usize) {
    stream.write_all(&vec![7; bytes]).expect("sent");
    let mut back = vec![0; bytes];
    stream.read_exact(&mut back).expect("echoed");
}

/// Waits until the proxy has ended the connection; silence is no end.
#[track_caller]
fn assert_closed(stream: &mut TcpStream) {
    let end = sys::uninterrupted(|| stream.read(&mut [0; 1]));
    let is_closed = match &end {
        Ok(got) => *got == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    assert!(is_closed, "{end:?}");
}

/// All samples with a name that begins so, by name and labels.
fn scrape(world: &World, node: usize, prefix: &str) -> BTreeMap<String, u64> {
    let (status, text) = ask(world, node, "127.0.0.1:15020", "GET", "/metrics");
    assert_eq!(status, 200);
    let samples = text.lines().filter(|line| line.starts_with(prefix));
    samples
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(series, value)| (series.to_owned(), value.parse().expect("a number")))
        .collect()
}

/// The one sample of the name with all these in its labels; 0 when there is none.
pub fn sample(world: &World, node: usize, name: &str, labels: &[&str]) -> u64 {
    let samples = scrape(world, node, &format!("{name}{{"));
    let mut fitting = samples
        .iter()
        .filter(|(series, _)| labels.iter().all(|label| series.contains(label)));
    let found = fitting.next().map_or(0, |(_, value)| *value);
    assert_eq!(fitting.next(), None, "several series of {name} with {labels:?}");
    found
}

fn live(world: &World, node: usize, pod: &str, direction: &str) -> Value {
    let uid = &world.pod(pod).uid;
    dump(world, node)["workloadState"][uid]["connections"][direction].clone()
}

#[test]
fn a_connection_is_counted_and_shown_while_it_lives_and_logged_when_it_has_ended() {
    let world = world();
    let _server = world.pod("server").serve(PORT, echo);
    let target = world.service("shop", Family::V4, 80);
    let server = world.pod("server").address(Family::V4, PORT);
    let mut stream = connect(&world, "client", target).expect("connected");
    say(&mut stream, 1000);

    let (client, tunnel) = (
        stream.local_addr().expect("bound"),
        SocketAddr::new(server.ip(), 15008),
    );
    let expected = json!([{
        "actualDst": tunnel.to_string(),
        "originalDst": target.to_string(),
        "protocol": "HBONE",
        "src": client.to_string(),
    }]);
    assert_eq!(live(&world, 0, "client", "outbound"), expected);
    assert_eq!(live(&world, 0, "client", "inbound"), json!([]));
    let seen = live(&world, 1, "server", "inbound");
    assert_eq!(seen[0]["actualDst"], server.to_string(), "{seen}");
    assert_eq!(seen[0]["originalDst"], "shop.shop.svc.cluster.local");
    assert_eq!(seen[0]["protocol"], "HBONE");

    // Bytes are counted while the connection lives, in the same direction for both reporters.
    let names = [
        "destination_service=\"shop.shop.svc.cluster.local\"",
        "destination_service_namespace=\"shop\"",
        "destination_service_name=\"shop\"",
        "source_workload=\"client\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "destination_workload=\"server\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/server\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_flags=\"-\"",
    ];
    let count = |node: usize, name: &str| sample(&world, node, name, &names);
    for node in [0, 1] {
        let read = ["opened", "closed"].map(|it| count(node, &format!("istio_tcp_connections_{it}_total")));
        assert_eq!(read, [1, 0], "node {node}");
        let bytes = ["received", "sent"].map(|it| count(node, &format!("istio_tcp_{it}_bytes_total")));
        assert_eq!(bytes, [1000, 1000], "node {node}");
    }
    say(&mut stream, 500);
    assert_eq!(count(0, "istio_tcp_received_bytes_total"), 1500);
    let sockets = |node: usize| {
        ["source", "destination"].map(|it| {
            sample(
                &world,
                node,
                "istio_tcp_sockets_open",
                &[&format!("reporter=\"{it}\"")],
            )
        })
    };
    assert_eq!(sockets(0), [1, 0]);
    assert_eq!(sockets(1), [0, 1], "the session");

    drop(stream);
    for (node, direction) in [(0, "outbound"), (1, "inbound")] {
        let logs = &world.nodes[node].proxy().logs;
        let of = |message: &'static str| {
            let record = logs.wait_for_access(message, |record| {
                record.message == message && record.field("direction") == direction
            });
            record.expect("a line")
        };
        let (opened, complete) = (of("connection opened"), of("connection complete"));
        assert_eq!((&*opened.level, &*complete.level), ("debug", "info"));
        assert_eq!(opened.field("bytes_sent"), "");
        for field in [
            "src.workload",
            "src.identity",
            "dst.service",
            "dst.workload",
            "dst.identity",
        ] {
            assert_eq!(opened.field(field), complete.field(field), "{field}");
            assert_ne!(opened.field(field), "", "{field}");
        }
        assert_eq!(
            (complete.field("bytes_sent"), complete.field("bytes_recv")),
            ("1500", "1500")
        );
        assert_eq!(count(node, "istio_tcp_connections_closed_total"), 1);
        assert!(scrape(&world, node, "istio_tcp_connections_failed").is_empty());
    }
    assert_eq!(sockets(0), [0, 0]);
    wait_until("an empty list of connections", || {
        (live(&world, 0, "client", "outbound") == json!([])).then_some(())
    });
    assert_eq!(live(&world, 1, "server", "inbound"), json!([]));
}

#[test]
fn connections_that_fail_are_counted_with_their_flag_and_refused_ones_in_a_series_of_our_own() {
    let world = world();
    let dead = world.pod("server").address(Family::V4, NOBODY_LISTENS);
    let mut stream = connect(&world, "client", dead).expect("captured");
    assert_closed(&mut stream);
    for (node, error) in [
        (0, "http status: 503 Service Unavailable"),
        (1, "connection failed: "),
    ] {
        let logs = &world.nodes[node].proxy().logs;
        let record = logs.wait_for_access(error, |record| record.field("error").starts_with(error));
        assert_eq!(record.expect("a line").level, "error");
        for name in ["closed", "failed"] {
            let name = format!("istio_tcp_connections_{name}_total");
            assert_eq!(
                sample(&world, node, &name, &["response_flags=\"CONNECT\""]),
                1,
                "{name}"
            );
        }
        assert_eq!(
            sample(
                &world,
                node,
                "istio_tcp_connections_opened_total",
                &["response_flags=\"-\""]
            ),
            1
        );
    }
    // No such port: nobody is dialled.
    let mut stream = connect(&world, "client", world.service("shop", Family::V4, 81)).expect("captured");
    assert_closed(&mut stream);
    let logs = &world.nodes[0].proxy().logs;
    let refused = logs.wait_for_access("a refusal", |record| record.message == "connection failed");
    let refused = refused.expect("a line");
    assert_eq!(
        (&*refused.level, refused.field("src.workload")),
        ("warn", "client")
    );
    let labels = ["reporter=\"source\"", "reason=\"route\""];
    assert_eq!(
        sample(&world, 0, "uztunnel_connections_refused_total", &labels),
        1
    );
    let opened = scrape(&world, 0, "istio_tcp_connections_opened_total");
    assert_eq!(opened.values().sum::<u64>(), 1, "{opened:?}");
}
