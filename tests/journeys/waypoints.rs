//! Through waypoints: what they are asked, what they are told, what the applications behind a tunnel of their own see;
//! and endpoints that are given up for others.

use std::net::SocketAddr;
use std::time::SystemTime;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use uztunnel::identity::Identity;
use uztunnel::tls::fake_ca::Issued;
use uztunnel_rig::applications::echo;
use uztunnel_rig::hbone::{Asked, Credentials, HboneServer};
use uztunnel_rig::{Blueprint, Family, Membership, PodSpec, ServiceSpec, World, http};

use crate::openssl::HOUR;
use crate::setup::{BODY_BYTES, HTTP_PORT, authority, exchange, plan, serve_http, start, two_nodes};

const TUNNEL_PORT: u16 = 15088;
const SERVICE: &str = "shop.shop.svc.cluster.local";

/// The usual world, and `waypoint` on node 1, where the test itself answers.
fn with_waypoint(change: impl FnOnce(Blueprint) -> Blueprint) -> World {
    let waypoint = PodSpec::new("waypoint", 1).membership(Membership::Unredirected);
    start(change(plan().pod(waypoint)))
}

fn before_service(mut blueprint: Blueprint) -> Blueprint {
    blueprint.services[0].waypoint = Some("waypoint".to_owned());
    blueprint
}

fn serve_waypoint(world: &World, status: u16) -> HboneServer {
    serve_tunnels(world, "waypoint", status)
}

fn serve_tunnels(world: &World, pod: &str, status: u16) -> HboneServer {
    let pod = world.pod(pod);
    let identity: Identity = pod.identity().parse().expect("an identity");
    let now = SystemTime::now();
    let authority = authority(world);
    let Issued { chain, key } = authority.sign(&identity, now - HOUR, now + HOUR).expect("signed");
    let root = authority.root().clone();
    HboneServer::start(pod, Credentials { chain, key, root }, status)
}

fn assert_told(asked: &Asked, client: SocketAddr, host: &str) {
    assert_eq!(asked.method, "CONNECT");
    assert_eq!(
        asked.header("forwarded"),
        Some(&*format!("for=\"{client}\"{host}"))
    );
    let baggage = asked.header("baggage").expect("who the client is");
    assert_eq!(
        baggage,
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=client,service.name=client,\
         service.version=latest"
    );
    let trace = asked.header("traceparent").expect("a trace");
    let parts: Vec<usize> = trace.split('-').map(str::len).collect();
    assert_eq!(parts, [2, 32, 16, 2], "{trace}");
    assert!(trace.starts_with("00-") && trace.ends_with("-00"), "{trace}");
    // Nothing else: least of all a network, which only a session inside of another one carries.
    assert_eq!(asked.headers.len(), 3, "{:?}", asked.headers);
}

#[test]
fn a_service_with_a_waypoint_is_called_by_its_own_address_at_the_waypoint() {
    let world = with_waypoint(before_service);
    let waypoint = serve_waypoint(&world, 200);
    for family in Family::BOTH {
        let target = world.service("shop", family, 80);
        let (answer, client) = exchange(world.pod("client"), target);
        assert_eq!(answer, b"a line\n");
        let asked = waypoint.asked();
        let asked = asked.last().expect("it was asked");
        assert_eq!(asked.authority, target.to_string());
        assert_told(asked, client, &format!(";host={SERVICE}"));
        let record = world.nodes[0].proxy().logs.wait_for_access("the call", |record| {
            record.message == "connection complete" && record.field("dst.hbone_addr") == target.to_string()
        });
        let record = record.expect("a record");
        assert_eq!(record.field("dst.workload"), "waypoint");
        assert_eq!(record.field("dst.service"), SERVICE);
        assert_eq!(record.field("dst.identity"), world.pod("waypoint").identity());
        let hop = world.pod("waypoint").address(Family::V4, 15008);
        assert_eq!(record.field("dst.addr"), hop.to_string());
    }
}

#[test]
fn a_pod_with_a_waypoint_is_called_by_its_own_address_at_the_waypoint() {
    let world = with_waypoint(|mut blueprint| {
        blueprint.pods[2].waypoint = Some("waypoint".to_owned());
        blueprint
    });
    let server = serve_http(world.pod("server"));
    let waypoint = serve_waypoint(&world, 200);
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let (answer, client) = exchange(world.pod("client"), target);
    assert_eq!(answer, b"a line\n");
    let asked = waypoint.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].authority, target.to_string());
    assert_told(&asked[0], client, "");
    assert!(server.peers().is_empty(), "the waypoint was bypassed");
    // A call to the service ignores the waypoint of the endpoint.
    let service = world.service("shop", Family::V4, 80);
    let response = world
        .pod("client")
        .run(async move { http::get(service, "/").await });
    assert_eq!(response.expect("a response").body.len(), BODY_BYTES);
    assert_eq!(waypoint.asked().len(), 1);
}

#[test]
fn what_a_waypoint_refuses_is_closed_and_the_log_says_with_which_status() {
    for (status, text) in [
        (403, "http status: 403 Forbidden"),
        (503, "http status: 503 Service Unavailable"),
    ] {
        let world = with_waypoint(before_service);
        let waypoint = serve_waypoint(&world, status);
        let server = serve_http(world.pod("server"));
        let (answer, _) = exchange(world.pod("client"), world.service("shop", Family::V4, 80));
        assert!(answer.is_empty(), "{answer:?}");
        assert_eq!(waypoint.asked().len(), 1);
        assert!(server.peers().is_empty(), "the waypoint was bypassed");
        let record = world.nodes[0].proxy().logs.wait_for_access(text, |record| {
            record.message == "connection complete" && record.field("error") == text
        });
        assert_eq!(record.expect("a record").level, "error");
    }
}

#[test]
fn a_waypoint_that_is_not_there_is_not_bypassed() {
    let world = with_waypoint(before_service);
    let server = serve_http(world.pod("server"));
    let (answer, _) = exchange(world.pod("client"), world.service("shop", Family::V4, 80));
    assert!(answer.is_empty(), "{answer:?}");
    assert!(server.peers().is_empty());
    let record = world.nodes[0]
        .proxy()
        .logs
        .wait_for_access("the failure", |record| {
            record.field("error").starts_with("connection failed: ")
        });
    assert_eq!(record.expect("a record").field("dst.workload"), "waypoint");
}

/// Reads a PROXY protocol header of this family: source, destination, and what follows them.
async fn read_header(stream: &mut TcpStream) -> std::io::Result<(SocketAddr, SocketAddr, Vec<u8>)> {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).await?;
    assert_eq!(&fixed[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(fixed[12..14], [0x21, 0x11], "PROXY, TCP over IPv4");
    let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    stream.read_exact(&mut rest).await?;
    let ip = |at: usize| <[u8; 4]>::try_from(&rest[at..at + 4]).expect("four bytes");
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let source = SocketAddr::from((ip(0), port(8)));
    let destination = SocketAddr::from((ip(4), port(10)));
    Ok((source, destination, rest.split_off(12)))
}

#[test]
fn an_application_that_takes_tunnels_reads_a_header_in_front_of_the_bytes() {
    let gateway = PodSpec::new("gateway", 1).tunnel_port(TUNNEL_PORT);
    let mut blueprint = plan().pod(gateway);
    blueprint.services[0].waypoint = Some("gateway".to_owned());
    let world = start(blueprint);
    let (sender, headers) = std::sync::mpsc::channel();
    let server = world.pod("gateway").serve(TUNNEL_PORT, move |mut stream, peer| {
        let sender = sender.clone();
        async move {
            let header = read_header(&mut stream).await?;
            // The test gave up waiting: nobody wants it.
            let _ = sender.send(header);
            echo(stream, peer).await
        }
    });
    let client = world.pod("client");
    // What its service's clients ask for, and what its own do.
    let targets = [
        world.service("shop", Family::V4, 80),
        world.pod("gateway").address(Family::V4, 4400),
    ];
    for target in targets {
        let (answer, _) = exchange(world.pod("client"), target);
        assert_eq!(answer, b"a line\n", "{target}");
        let (source, destination, texts) = headers.recv_timeout(uztunnel_rig::PATIENCE).expect("a header");
        assert_eq!(source.ip(), client.addresses.of(Family::V4));
        assert_eq!(destination, target);
        let identity = client.identity();
        assert_eq!(
            texts,
            [&[0xd0, 0, identity.len() as u8], identity.as_bytes()].concat()
        );
    }
    for peer in server.peers() {
        assert!(peer.ip().is_loopback(), "the tunnel came from {peer}");
    }
    let record = world.nodes[1]
        .proxy()
        .logs
        .wait_for_access("the delivery", |record| {
            record.field("dst.hbone_addr") == targets[0].to_string()
        });
    assert_eq!(record.expect("a record").field("dst.workload"), "gateway");
}

#[test]
fn a_replica_of_a_waypoint_that_refuses_is_given_up_for_another() {
    for is_called_by_service in [true, false] {
        let world = with_waypoint(|blueprint| {
            let replicas = ServiceSpec::new("waypoints", &[(15008, 15008)], &["waypoint", "gone"]);
            // It belongs to the service, and nobody listens there.
            let mut blueprint = blueprint
                .pod(PodSpec::new("gone", 1).membership(Membership::Unredirected))
                .service(replicas);
            match is_called_by_service {
                true => blueprint.services[0].waypoint = Some("waypoints".to_owned()),
                false => blueprint.pods[2].waypoint = Some("waypoints".to_owned()),
            }
            blueprint
        });
        let waypoint = serve_waypoint(&world, 200);
        let target = match is_called_by_service {
            true => world.service("shop", Family::V4, 80),
            false => world.pod("server").address(Family::V4, HTTP_PORT),
        };
        for call in 0..30 {
            let (answer, _) = exchange(world.pod("client"), target);
            assert_eq!(answer, b"a line\n", "call {call}");
        }
        assert_eq!(waypoint.asked().len(), 30);
    }
}

#[test]
fn waypoints_share_the_calls_of_a_service_by_their_weights() {
    let world = with_waypoint(|mut blueprint| {
        let shop = &mut blueprint.services[0];
        shop.waypoint = Some("unused".to_owned());
        let weights = [("waypoint", 3), ("canary", 1), ("unused", 0)];
        shop.weighted_waypoints = weights.map(|(name, weight)| (name.to_owned(), weight)).into();
        let replica = |name| PodSpec::new(name, 1).membership(Membership::Unredirected);
        blueprint.pod(replica("canary")).pod(replica("unused"))
    });
    let servers = ["waypoint", "canary", "unused"].map(|pod| serve_tunnels(&world, pod, 200));
    const CALLS: usize = 200;
    for call in 0..CALLS {
        let (answer, _) = exchange(world.pod("client"), world.service("shop", Family::V4, 80));
        assert_eq!(answer, b"a line\n", "call {call}");
    }
    let [most, some, none] = servers.map(|server| server.asked().len());
    assert_eq!((most + some, none), (CALLS, 0));
    // A quarter; drawn by chance, five standard deviations around it.
    assert!((20..=80).contains(&some), "{some} of {CALLS} calls");
}

#[test]
fn an_endpoint_that_refuses_is_given_up_for_another() {
    // Two of three endpoints have nobody who listens, one of them not even a proxy.
    let blueprint = plan()
        .pod(PodSpec::new("ending", 1))
        .pod(PodSpec::new("gone", 1).membership(Membership::Unredirected))
        .service(ServiceSpec::new(
            "bank",
            &[(80, HTTP_PORT)],
            &["server", "ending", "gone"],
        ));
    let world = start(blueprint);
    let server = serve_http(world.pod("server"));
    let target = world.service("bank", Family::V4, 80);
    for call in 0..30 {
        let response = world
            .pod("client")
            .run(async move { http::get(target, "/").await });
        let response = response.unwrap_or_else(|error| panic!("call {call}: {error}"));
        assert_eq!(response.body.len(), BODY_BYTES);
    }
    assert_eq!(server.peers().len(), 30);
}

#[test]
fn a_pod_that_refuses_is_not_called_twice() {
    let world = two_nodes();
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let (answer, _) = exchange(world.pod("client"), target);
    assert!(answer.is_empty());
    let logs = &world.nodes[1].proxy().logs;
    let refused =
        |record: &uztunnel_rig::logs::AccessRecord| record.field("error").starts_with("connection failed");
    logs.wait_for_access("the refusal", refused).expect("a record");
    let record = world.nodes[0]
        .proxy()
        .logs
        .wait_for_access("the status", |record| {
            record.field("error") == "http status: 503 Service Unavailable"
        });
    assert_eq!(record.expect("a record").field("dst.workload"), "server");
    assert_eq!(logs.access().iter().filter(|record| refused(record)).count(), 1);
}
