//! The mesh as a control plane tells it: from the first state on, through changes, refusals and absences.

use std::io;

use prost::Message;
use uztunnel_rig::istiod::messages::{security, workload};
use uztunnel_rig::istiod::{ADDRESS, AUTHORIZATION, Istiod, ROOTS_FILE, Resource, Treatment};
use uztunnel_rig::{Blueprint, Family, World, http, proxy, wait_until};

use crate::setup::{BODY_BYTES, options, serve_http};

fn world() -> (World, Istiod) {
    let world = World::build(Blueprint::two_nodes()).expect("a world");
    let istiod = Istiod::serve(&world).expect("a control plane");
    (world, istiod)
}

fn ready(world: &mut World, istiod: &Istiod) {
    let options = options().map(|options| istiod.options(options));
    world.start_proxies(&options).expect("ready proxies");
}

/// One request of `client` to the service in front of `server`.
fn fetch(world: &World, family: Family) -> io::Result<usize> {
    let target = world.service("shop", family, 80);
    let response = world
        .pod("client")
        .run(async move { http::get(target, "/").await });
    response.map(|response| response.body.len())
}

fn deny_all() -> Resource {
    let policy = security::Authorization {
        name: "nobody".to_owned(),
        namespace: "shop".to_owned(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule::default()],
        dry_run: false,
    };
    Resource {
        name: "shop/nobody".to_owned(),
        version: "1".to_owned(),
        value: policy.encode_to_vec(),
    }
}

#[test]
fn traffic_follows_what_the_control_plane_says() {
    let (mut world, istiod) = world();
    ready(&mut world, &istiod);
    let _server = serve_http(world.pod("server"));
    for family in Family::BOTH {
        assert_eq!(fetch(&world, family).expect("a response"), BODY_BYTES);
    }
    let inbound = world.nodes[1]
        .proxy()
        .logs
        .wait_for_access("an inbound tunnel", |record| {
            record.field("direction") == "inbound" && record.message == "connection complete"
        });
    let identity = world.pod("client").identity();
    assert_eq!(inbound.expect("a record").field("src.identity"), identity);

    for nonce in istiod.update(AUTHORIZATION, vec![deny_all()]) {
        assert_eq!(istiod.wait_for_answer(&nonce).error, None);
    }
    wait_until("the policy to refuse", || fetch(&world, Family::V4).err());
    istiod.remove(AUTHORIZATION, &["shop/nobody"]);
    wait_until("the policy to be gone", || fetch(&world, Family::V4).ok());

    // The service's only endpoint becomes unhealthy, and comes back.
    let healthy = world_resource(&istiod, "server");
    let sick = with_status(&healthy, workload::WorkloadStatus::Unhealthy);
    istiod.update(ADDRESS, vec![sick]);
    wait_until("no endpoint", || fetch(&world, Family::V4).err());
    istiod.update(
        ADDRESS,
        vec![with_status(&healthy, workload::WorkloadStatus::Healthy)],
    );
    wait_until("the endpoint again", || fetch(&world, Family::V4).ok());
}

#[test]
fn the_control_plane_is_trusted_by_the_roots_of_the_system_when_they_are_asked_for() {
    let (mut world, istiod) = world();
    let options = options().map(|options| {
        istiod
            .options(options)
            .variable("XDS_ROOT_CA", "SYSTEM")
            .variable("SSL_CERT_FILE", ROOTS_FILE)
    });
    // Ready means that the mesh came from it.
    world.start_proxies(&options).expect("ready proxies");
    let _server = serve_http(world.pod("server"));
    assert_eq!(fetch(&world, Family::V4).expect("a response"), BODY_BYTES);
}

fn world_resource(istiod: &Istiod, pod: &str) -> Resource {
    let uid = format!("Kubernetes//Pod/shop/{pod}");
    istiod.held(ADDRESS, &uid).expect("the pod's workload")
}

fn with_status(resource: &Resource, status: workload::WorkloadStatus) -> Resource {
    let mut address = workload::Address::decode(&resource.value[..]).expect("an address");
    if let Some(workload::address::Type::Workload(workload)) = &mut address.r#type {
        workload.status = status.into();
    }
    Resource {
        version: format!("{status:?}"),
        value: address.encode_to_vec(),
        ..resource.clone()
    }
}

#[test]
fn without_its_control_plane_a_node_goes_on_with_what_it_knows() {
    let (mut world, mut istiod) = world();
    ready(&mut world, &istiod);
    let _server = serve_http(world.pod("server"));
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
    let (world, istiod) = world();
    istiod.treat(Treatment::Silence);
    let [own, _] = options();
    let mut proxy = world.launch_proxy(0, &istiod.options(own)).expect("started");
    wait_until("both questions", || (istiod.asked().len() == 2).then_some(()));
    let node = &world.nodes[0];
    let (status, body) = node
        .namespace
        .run(|| proxy::probe("/healthz/ready"))
        .expect("answered");
    assert_eq!(
        (status, body.as_str()),
        (500, "not ready, pending: state manager, workload proxy manager\n")
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
