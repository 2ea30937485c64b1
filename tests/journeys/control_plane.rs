//! The mesh as a control plane tells it: from the first state on, through changes, refusals and absences.
//!
//! `JOURNEYS_RESTARTS` says how often the control plane is restarted under load (default 5).

use std::io;
use std::time::{Duration, Instant};

use uztunnel::limits;
use uztunnel_rig::istiod::messages::workload::WorkloadStatus;
use uztunnel_rig::istiod::{ADDRESS, AUTHORIZATION, Istiod, ROOTS_FILE, Treatment, deny_namespace};
use uztunnel_rig::{Blueprint, ControlPlane, Family, World, proxy, wait_until};

use crate::setup::{self, BODY_BYTES, HTTP_PORT, assert_tunnelled, number, options, serve_http, workload};
use crate::traffic::Traffic;

/// Both nodes open a stream of their own, and ask for workloads and policies.
const STREAMS: usize = 2;
const TYPES: usize = 2;

/// After so many attempts in vain the delay between them is as long as it gets before the first state of the mesh.
const DOUBLINGS: usize =
    (limits::XDS_DELAY_STARTING_MAX.as_millis() / limits::XDS_DELAY_MIN.as_millis()).ilog2() as usize + 1;

/// What fifty restarts may add to a proxy's memory: nothing that grows with their number.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

fn world() -> World {
    World::build(Blueprint::two_nodes().control_plane(ControlPlane::Istiod)).expect("a world")
}

fn ready() -> World {
    let mut world = world();
    world.start_proxies(&options()).expect("ready proxies");
    world
}

/// One request of `client` to the service in front of `server`.
fn fetch(world: &World, family: Family) -> io::Result<usize> {
    setup::fetch(world, world.service("shop", family, 80))
}

#[test]
fn traffic_follows_what_the_control_plane_says() {
    let world = ready();
    let istiod = world.istiod();
    let _server = serve_http(world.pod("server"));
    for family in Family::BOTH {
        assert_eq!(fetch(&world, family).expect("a response"), BODY_BYTES);
    }
    assert_tunnelled(&world);

    for nonce in istiod.update(AUTHORIZATION, vec![deny_namespace("shop")]) {
        assert_eq!(istiod.wait_for_answer(&nonce).error, None);
    }
    wait_until("the policy to refuse", || fetch(&world, Family::V4).err());
    istiod.remove(AUTHORIZATION, &["shop/nobody"]);
    wait_until("the policy to be gone", || fetch(&world, Family::V4).ok());

    // The service's only endpoint becomes unhealthy, and comes back.
    let healthy = workload(istiod, "server");
    let sick = healthy.changed(|workload| workload.status = WorkloadStatus::Unhealthy.into());
    istiod.update(ADDRESS, vec![sick]);
    wait_until("no endpoint", || fetch(&world, Family::V4).err());
    istiod.update(ADDRESS, vec![healthy]);
    wait_until("the endpoint again", || fetch(&world, Family::V4).ok());
}

#[test]
fn the_control_plane_is_trusted_by_the_roots_of_the_system_when_they_are_asked_for() {
    let mut world = world();
    let options = options().map(|options| {
        options
            .variable("XDS_ROOT_CA", "SYSTEM")
            .variable("SSL_CERT_FILE", ROOTS_FILE)
    });
    // Ready means that the mesh came from it.
    world.start_proxies(&options).expect("ready proxies");
    let _server = serve_http(world.pod("server"));
    assert_eq!(fetch(&world, Family::V4).expect("a response"), BODY_BYTES);
}

#[test]
fn without_its_control_plane_a_node_goes_on_with_what_it_knows() {
    let world = ready();
    let istiod = world.istiod();
    let _server = serve_http(world.pod("server"));
    // With certificates for both pods, which no longer come once it is away.
    assert_eq!(fetch(&world, Family::V4).expect("a response"), BODY_BYTES);
    istiod.go_away();
    for node in &world.nodes {
        node.proxy()
            .logs
            .wait_for("what is known stays in force", |line| {
                line.contains("what is known stays in force")
            })
            .expect("a warning");
        let (status, _) = node
            .namespace
            .run(|| proxy::probe("/healthz/ready"))
            .expect("answered");
        assert_eq!(status, 200);
    }
    assert_eq!(fetch(&world, Family::V6).expect("a response"), BODY_BYTES);
    // The agent is followed all the same.
    world.nodes[0].agent.disconnect();
    world.nodes[0]
        .agent
        .wait_for_connection(2)
        .expect("the proxy comes back to the agent");
    assert_eq!(fetch(&world, Family::V4).expect("a response"), BODY_BYTES);
    istiod.come_back().expect("bound again");
    let (sent, _) = istiod.wait_for_exchange(ADDRESS, 2);
    assert!(sent.names.is_empty(), "nothing comes twice: {:?}", sent.names);
}

#[test]
fn neither_readiness_nor_pods_come_before_the_state_of_the_mesh() {
    let world = world();
    let istiod = world.istiod();
    istiod.treat(Treatment::Silence);
    let [own, _] = options();
    let mut proxy = world.launch_proxy(0, &own).expect("started");
    wait_until("both questions", || (istiod.asked().len() == 2).then_some(()));
    let node = &world.nodes[0];
    let (status, body) = node
        .namespace
        .run(|| proxy::probe("/healthz/ready"))
        .expect("answered");
    assert_eq!(
        (status, body.as_str()),
        (
            500,
            "not ready, pending: state manager, workload proxy manager\nstate manager: connected to the control \
             plane, which has not sent the state of the mesh yet\n"
        )
    );
    assert_eq!(
        node.agent.connections(),
        0,
        "the agent's pods would come too early"
    );
    istiod.treat(Treatment::Serve);
    istiod.cut_connections();
    proxy.wait_until_ready(&node.namespace).expect("ready");
    assert_eq!(node.agent.connections(), 1);
}

#[test]
fn resources_and_types_may_come_in_any_order() {
    let mut world = world();
    world.istiod().treat(Treatment::Reversed);
    world.start_proxies(&options()).expect("ready proxies");
    let sent = world.istiod().sent();
    let types: Vec<&str> = sent.iter().map(|sent| sent.type_url.as_str()).collect();
    assert_eq!(types.first(), Some(&AUTHORIZATION), "{types:?}");
    let _server = serve_http(world.pod("server"));
    for family in Family::BOTH {
        assert_eq!(fetch(&world, family).expect("a response"), BODY_BYTES);
    }
}

#[test]
fn started_without_its_control_plane_a_node_says_why_it_waits_and_is_ready_a_second_after_its_return() {
    let world = world();
    let istiod = world.istiod();
    istiod.go_away();
    // Each attempt is a line at this level.
    let options = options().map(|options| options.variable("RUST_LOG", "debug"));
    let launch = |node: usize| world.launch_proxy(node, &options[node]).expect("started");
    let mut proxies = [0, 1].map(launch);
    let reason = format!(
        "no stream to the control plane: cannot connect to {}: Connection refused (os error 111)",
        istiod.address
    );
    let expected =
        format!("not ready, pending: state manager, workload proxy manager\nstate manager: {reason}\n");
    for (node, proxy) in world.nodes.iter().zip(&proxies) {
        wait_until("the reason on 15021", || {
            let answer = node.namespace.run(|| proxy::probe("/healthz/ready"));
            (answer.ok()? == (500, expected.clone())).then_some(())
        });
        let logged = proxy.logs.wait_for("the reason in the log", |line| {
            line.contains(&format!(
                "{reason}; not ready before it has sent the state of the mesh"
            ))
        });
        logged.expect("a warning");
    }
    for proxy in &proxies {
        wait_until("the delays to have grown as far as they do", || {
            let lines = proxy.logs.lines();
            let attempts = lines.iter().filter(|line| line.contains(&reason));
            (attempts.count() >= DOUBLINGS).then_some(())
        });
    }
    istiod.come_back().expect("bound");
    let back = Instant::now();
    for (node, proxy) in world.nodes.iter().zip(&mut proxies) {
        proxy.wait_until_ready(&node.namespace).expect("ready");
        let waited = back.elapsed();
        println!(
            "node {} is ready {waited:?} after the control plane came",
            node.index
        );
        assert!(waited < Duration::from_secs(1), "{waited:?}");
    }
}

#[test]
fn restarts_of_the_control_plane_under_load_lose_no_connection_and_send_nothing_twice() {
    let restarts: usize = number("JOURNEYS_RESTARTS", 5);
    let world = ready();
    let istiod = world.istiod();
    let _server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let traffic = Traffic::start(&world, &["client", "cart"], target);
    wait_for_exchanges(istiod, 0);
    let first = istiod.sent();
    let resident = || {
        let proxies = world.nodes.iter();
        proxies.map(|node| node.proxy().resident_bytes().expect("it runs"))
    };
    // Once it has lived a second a stream counts as one that worked, and the next one follows at once.
    let settle = || std::thread::sleep(limits::XDS_STREAM_SETTLED + Duration::from_millis(100));
    settle();
    let mut before: Vec<u64> = Vec::new();
    for round in 0..restarts {
        if round == restarts / 5 {
            before = resident().collect();
        }
        let streams = istiod.streams_made();
        istiod.go_away();
        istiod.come_back().expect("bound again");
        wait_for_exchanges(istiod, streams);
        settle();
        traffic.assert_faultless();
    }
    let after: Vec<u64> = resident().collect();
    let figures = traffic.end();
    let sent = &istiod.sent()[first.len()..];
    let twice: usize = sent
        .iter()
        .map(|sent| sent.names.len() + sent.removed.len())
        .sum();
    println!(
        "{restarts} restarts: {} connections and {} requests, none failed; {} responses after the first ones, {twice} \
         resources in them; resident memory {before:?} and {after:?} bytes",
        figures.connections(),
        figures.requests(),
        sent.len(),
    );
    assert!(sent.len() >= restarts * STREAMS * TYPES, "{}", sent.len());
    assert_eq!(twice, 0, "resources that were held already were sent again");
    for (before, after) in before.iter().zip(&after) {
        assert!(
            *after < before + GROWTH_BYTES_MAX,
            "{before} grew to {after} bytes"
        );
    }
}

/// Until both nodes have answered all that they were sent on streams from this one on.
fn wait_for_exchanges(istiod: &Istiod, first: usize) {
    wait_until(&format!("both nodes on streams from {first} on"), || {
        let answered = istiod.answered();
        let sent = istiod.sent().into_iter().filter(|sent| sent.stream >= first);
        let done = sent.filter(|sent| answered.iter().any(|it| it.nonce == sent.nonce));
        (done.count() >= STREAMS * TYPES).then_some(())
    });
}
