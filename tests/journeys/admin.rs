//! The admin and the metrics port of a running proxy, as an operator and a scraper see them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use uztunnel_rig::istiod::{ADDRESS, AUTHORIZATION};
use uztunnel_rig::{Blueprint, ControlPlane, Family, World, http, wait_until};

use crate::setup::{BODY_BYTES, options, plan, serve_http, start};

/// Status and body of one request to a port of the node's loopback.
pub fn ask(world: &World, node: usize, at: &str, method: &str, path: &str) -> (u16, String) {
    let asked = world.nodes[node].namespace.run(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // As old clients speak: the answer ends with the connection.
        write!(stream, "{method} {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = asked.unwrap_or_else(|error| panic!("{method} {at}{path}: {error}"));
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), body.to_owned())
}

pub fn dump(world: &World, node: usize) -> Value {
    let (status, body) = ask(world, node, "127.0.0.1:15000", "GET", "/config_dump");
    assert_eq!(status, 200);
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn a_running_proxy_shows_its_mesh_its_pods_and_its_certificates() {
    let plan = Blueprint::two_nodes().control_plane(ControlPlane::Istiod);
    let world = start(plan);
    let _server = serve_http(world.pod("server"));
    let target = world.service("shop", Family::V4, 80);
    let response = world.pod("client").run(http::get(target, "/"));
    assert_eq!(response.expect("a response").body.len(), BODY_BYTES);

    let client = world.pod("client");
    let shown = wait_until("the client's certificate", || {
        let dump = dump(&world, 0);
        let certificates = dump["certificates"].as_array().expect("a list");
        let own = certificates
            .iter()
            .find(|it| it["identity"] == *client.identity());
        let is_there = own.is_some_and(|it| it["state"] == "Available");
        is_there.then_some(dump)
    });
    let pod = &shown["workloadState"][&client.uid];
    assert_eq!(
        (&pod["state"], &pod["info"]["name"]),
        (&"Up".into(), &"client".into())
    );
    let workloads = shown["workloads"].as_array().expect("a list");
    let uids: Vec<&str> = workloads.iter().filter_map(|it| it["uid"].as_str()).collect();
    for pod in ["client", "server"] {
        let uid = format!("Kubernetes//Pod/shop/{pod}");
        assert!(uids.contains(&&*uid), "{uid} in {uids:?}");
    }
    assert_eq!(shown["config"]["localNode"].as_str(), Some("node-0"));

    let (status, scraped) = ask(&world, 0, "[::1]:15020", "GET", "/stats/prometheus");
    assert_eq!(status, 200);
    let has = |line: &str| assert!(scraped.lines().any(|it| it == line), "no {line} in\n{scraped}");
    for kind in [ADDRESS, AUTHORIZATION] {
        has(&format!("istio_xds_message_total{{url=\"{kind}\"}} 1"));
    }
    let own = world
        .pods
        .iter()
        .filter(|pod| shown["workloadState"].get(&pod.uid).is_some());
    has(&format!("workload_manager_active_proxy_count {}", own.count()));
    has("workload_manager_pending_proxy_count 0");
    assert!(scraped.ends_with("# EOF\n"), "{scraped}");

    // A stream that ends is counted, and the next one too.
    world.istiod().end_streams(0, "");
    wait_until("the end of the stream in the metrics", || {
        let (_, scraped) = ask(&world, 0, "127.0.0.1:15020", "GET", "/metrics");
        let ended = "istio_xds_connection_terminations_total{reason=\"Complete\"} 1";
        scraped.contains(ended).then_some(())
    });
}

#[test]
fn the_log_is_turned_up_and_down_and_the_process_is_ended_over_the_admin_port() {
    let mut world = World::build(plan()).expect("a world");
    world.start_proxies(&options()).expect("ready proxies");
    let at = "[::1]:15000";
    let (status, body) = ask(&world, 0, at, "POST", "/logging?level=debug");
    let filter = "hickory_server::server=off,debug";
    assert_eq!((status, body), (200, format!("current log level is {filter}\n")));
    let client = world.pod("client");
    let agent = &world.nodes[0].agent;
    agent.delete(&client.uid).expect("acknowledged");
    let logs = &world.nodes[0].proxy().logs;
    logs.wait_for("a debug line", |line| line.contains("\tdebug\t"))
        .expect("what was silent before");
    let (status, body) = ask(&world, 0, at, "POST", "/logging?reset");
    let filter = "hickory_server::server=off,info";
    assert_eq!((status, body), (200, format!("current log level is {filter}\n")));

    assert_eq!(ask(&world, 0, at, "GET", "/quitquitquit"), (405, String::new()));
    let answered = ask(&world, 0, at, "POST", "/quitquitquit");
    assert_eq!(answered, (200, "shutdown now\n".to_owned()));
    let proxy = world.nodes[0].proxy.as_mut().expect("it runs");
    let status = proxy.wait_for_exit().expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(proxy.logs.contain("POST /quitquitquit"), "{}", proxy.logs.tail());
}

#[test]
fn a_port_that_somebody_else_has_stops_the_start() {
    let world = World::build(plan()).expect("a world");
    let node = &world.nodes[0];
    for (address, server, setting) in [
        ("127.0.0.1:15000", "admin", "proxyAdminPort"),
        ("[::1]:15000", "admin", "proxyAdminPort"),
        ("0.0.0.0:15020", "metrics", "statsPort"),
    ] {
        let taken = node.namespace.run(|| std::net::TcpListener::bind(address));
        let taken = taken.expect("bound");
        let [own, _] = options();
        let mut proxy = world.launch_proxy(0, &own).expect("started");
        assert_eq!(proxy.wait_for_exit().expect("it ends").code(), Some(1));
        let said = proxy.logs.lines().join("\n");
        assert!(
            said.contains(&format!("error: {server} server starts: ")),
            "{said}"
        );
        assert!(said.contains(setting), "{said}");
        // Another port is another matter.
        let config = format!("{{\"{setting}\": 15100}}");
        let elsewhere = own.variable("PROXY_CONFIG", &config);
        let mut proxy = world.launch_proxy(0, &elsewhere).expect("started");
        proxy.wait_until_ready(&node.namespace).expect("ready");
        drop(taken);
    }
}
