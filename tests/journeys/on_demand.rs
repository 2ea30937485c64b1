//! A mesh that is told on demand (`XDS_ON_DEMAND`): the pods of a node come unasked, and for everything else a
//! connection waits until the control plane has said what it is.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uztunnel::limits;
use uztunnel_rig::istiod::ADDRESS;
use uztunnel_rig::istiod::messages::workload::WorkloadStatus;
use uztunnel_rig::{Blueprint, ControlPlane, Family, World, http, wait_until};

use crate::setup::{BODY_BYTES, HTTP_PORT, assert_tunnelled, fetch, options, serve_http, wait_for_error};

const SERVER: &str = "Kubernetes//Pod/shop/server";
const SERVICE: &str = "shop/shop.shop.svc.cluster.local";

fn world() -> World {
    let plan = Blueprint::two_nodes().control_plane(ControlPlane::Istiod);
    let mut world = World::build(plan).expect("a world");
    let options = options().map(|options| {
        options
            .variable("XDS_ON_DEMAND", "true")
            .variable("ISTIO_META_DNS_CAPTURE", "false")
    });
    world.start_proxies(&options).expect("ready proxies");
    world
}

/// How often a name was asked for.
fn asked(world: &World, name: &str) -> usize {
    let asked = world.istiod().asked();
    let names = asked.iter().flat_map(|it| &it.request.resource_names_subscribe);
    names.filter(|it| *it == name).count()
}

fn told(world: &World, stream: usize) -> BTreeSet<String> {
    let sent = world.istiod().sent().into_iter();
    let sent = sent.filter(|sent| sent.stream == stream && sent.type_url == ADDRESS);
    sent.flat_map(|sent| sent.names).collect()
}

/// Until every node has had the first answer about addresses.
fn wait_for_first_answers(world: &World) {
    wait_until("the first answers", || {
        let sent = world.istiod().sent().into_iter();
        let streams = sent
            .filter(|sent| sent.type_url == ADDRESS)
            .map(|sent| sent.stream);
        (streams.collect::<BTreeSet<_>>().len() >= 2).then_some(())
    });
}

#[test]
fn what_is_asked_for_is_found_by_its_address_and_what_is_nobodys_is_passed_on() {
    let world = world();
    wait_for_first_answers(&world);
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>()
    };
    let client_and_cart = names(&["Kubernetes//Pod/shop/client", "Kubernetes//Pod/shop/cart"]);
    let mut unasked = [told(&world, 0), told(&world, 1)];
    unasked.sort_by_key(BTreeSet::len);
    assert_eq!(
        unasked,
        [names(&[SERVER]), client_and_cart],
        "the pods of each node"
    );

    let _servers = ["server", "stranger"].map(|pod| serve_http(world.pod(pod)));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let many: Vec<_> = (0..8)
        .map(|_| world.pod("client").spawn(http::get(target, "/")))
        .collect();
    for one in many {
        let response = world
            .pod("client")
            .run(one)
            .expect("no panic")
            .expect("a response");
        assert_eq!(response.body.len(), BODY_BYTES);
    }
    assert_eq!(
        asked(&world, &format!("/{}", target.ip())),
        1,
        "once for all of them"
    );
    assert_tunnelled(&world);

    for family in Family::BOTH {
        let service = world.service("shop", family, 80);
        assert_eq!(fetch(&world, service).expect("a response"), BODY_BYTES);
    }
    let service = world.service("shop", Family::V4, 80);
    assert_eq!(asked(&world, &format!("/{}", service.ip())), 1);
    let other = world.service("shop", Family::V6, 80);
    assert_eq!(
        asked(&world, &format!("/{}", other.ip())),
        0,
        "known by the first"
    );

    let stranger = world.pod("stranger").address(Family::V4, HTTP_PORT);
    for _ in 0..2 {
        assert_eq!(fetch(&world, stranger).expect("a response"), BODY_BYTES);
    }
    assert!(asked(&world, &format!("/{}", stranger.ip())) >= 1);
}

#[test]
fn a_connection_waits_while_the_control_plane_is_away_and_goes_on_when_it_is_back() {
    let world = world();
    let _server = serve_http(world.pod("server"));
    // Each is new to the node once. A machine that needs longer for the return than connections wait says nothing.
    for target in [
        world.service("shop", Family::V4, 80),
        world.service("shop", Family::V6, 80),
        world.pod("server").address(Family::V4, HTTP_PORT),
        world.pod("server").address(Family::V6, HTTP_PORT),
    ] {
        world.istiod().go_away();
        let (opened, is_open) = std::sync::mpsc::channel();
        let began = Instant::now();
        let waiting = world.pod("client").spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(target).await?;
            stream
                .write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
                .await?;
            let _ = opened.send(());
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            io::Result::Ok(answer.len())
        });
        is_open.recv().expect("the proxy takes the connection");
        world.istiod().come_back().expect("bound again");
        let answer = world.pod("client").run(waiting).expect("no panic");
        if answer.as_ref().is_ok_and(|bytes| *bytes >= BODY_BYTES) {
            return;
        }
        let waited = began.elapsed();
        assert!(
            waited > limits::LOOKUP_WAIT - Duration::from_secs(1),
            "{answer:?} after {waited:?}"
        );
    }
    panic!("four times in a row the control plane was not back in time");
}

#[test]
fn without_an_answer_a_connection_is_refused_and_what_is_known_goes_on() {
    let world = world();
    let _servers = ["server", "stranger"].map(|pod| serve_http(world.pod(pod)));
    let server = world.pod("server").address(Family::V4, HTTP_PORT);
    assert_eq!(fetch(&world, server).expect("a response"), BODY_BYTES);
    world.istiod().go_away();
    let stranger = world.pod("stranger").address(Family::V4, HTTP_PORT);
    fetch(&world, stranger)
        .expect_err("it could be in the mesh, and is not to be reached in plain text then");
    let error = wait_for_error(&world, &format!("what /{} is", stranger.ip()));
    assert!(
        error.contains("the control plane has not said within 5 s"),
        "{error}"
    );
    assert_eq!(fetch(&world, server).expect("a response"), BODY_BYTES);
    world.istiod().come_back().expect("bound again");
    wait_until("the stranger", || fetch(&world, stranger).ok());
}

#[test]
fn after_a_restart_of_the_control_plane_nothing_comes_twice_and_what_was_asked_for_is_kept_up_to_date() {
    let world = world();
    let istiod = world.istiod();
    let _server = serve_http(world.pod("server"));
    let service = world.service("shop", Family::V4, 80);
    assert_eq!(fetch(&world, service).expect("a response"), BODY_BYTES);
    wait_for_first_answers(&world);
    let streams = istiod.streams_made();
    istiod.go_away();
    istiod.come_back().expect("bound again");
    let announced = wait_until("the client's node", || {
        let asked = istiod.asked().into_iter();
        let mut first = asked.filter(|it| it.stream >= streams && it.request.type_url == ADDRESS);
        first.find(|it| it.request.initial_resource_versions.contains_key(SERVICE))
    });
    let held = &announced.request.initial_resource_versions;
    assert!(held.contains_key(SERVER), "{held:?}");
    let sent = wait_until("its answer", || {
        let mut sent = istiod.sent().into_iter();
        sent.find(|sent| sent.stream == announced.stream && sent.type_url == ADDRESS)
    });
    assert_eq!((sent.names.len(), sent.removed.len()), (0, 0), "{sent:?}");
    assert_eq!(fetch(&world, service).expect("a response"), BODY_BYTES);

    let healthy = istiod.held(ADDRESS, SERVER).expect("the pod's workload");
    let sick = healthy.changed(|workload| workload.status = WorkloadStatus::Unhealthy.into());
    istiod.update(ADDRESS, vec![sick]);
    wait_until("no endpoint", || fetch(&world, service).err());
}
