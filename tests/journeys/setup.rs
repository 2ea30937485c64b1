//! What every journey starts with: the binary under test, its drivers, who tells it about the mesh, the usual servers.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uztunnel::tls::fake_ca::FakeCa;
use uztunnel_rig::applications::Server;
use uztunnel_rig::istiod::{ADDRESS, Istiod, Resource};
use uztunnel_rig::{Backend, Blueprint, ControlPlane, Pod, ProxyOptions, World, http};

pub const HTTP_PORT: u16 = 8080;
pub const BODY_BYTES: usize = 1024;

pub fn binary() -> PathBuf {
    std::env::var_os("UZTUNNEL_BIN").map_or_else(|| env!("CARGO_BIN_EXE_uztunnel").into(), PathBuf::from)
}

/// Options of node 0 and node 1.
pub fn options() -> [ProxyOptions; 2] {
    backends().map(|backend| {
        let options = ProxyOptions {
            backend,
            deny_io_uring: io_choice() == "denied",
            ..ProxyOptions::new(&binary())
        };
        variables()
            .iter()
            .fold(options, |options, (name, value)| options.variable(name, value))
    })
}

/// What the run wants every proxy to be told.
pub fn variables() -> Vec<(String, String)> {
    let text = std::env::var("JOURNEYS_VARIABLES").unwrap_or_default();
    let pair = |word: &str| {
        let pair = word.split_once('=');
        let (name, value) = pair.unwrap_or_else(|| panic!("JOURNEYS_VARIABLES: {word}: expected NAME=VALUE"));
        (name.to_owned(), value.to_owned())
    };
    text.split_whitespace().map(pair).collect()
}

pub fn io_choice() -> String {
    std::env::var("JOURNEYS_IO").unwrap_or_default()
}

/// The number in a variable of the run, or what holds without it.
pub fn number<T: FromStr>(variable: &str, default: T) -> T {
    std::env::var(variable).map_or(default, |text| {
        let number = text.parse().ok();
        number.unwrap_or_else(|| panic!("{variable}={text}: expected a number"))
    })
}

/// Who tells the proxies of this run about the mesh.
pub fn control_plane() -> ControlPlane {
    match std::env::var("JOURNEYS_CONTROL_PLANE")
        .unwrap_or_default()
        .as_str()
    {
        "" | "istiod" => ControlPlane::Istiod,
        "file" => ControlPlane::File,
        other => panic!("JOURNEYS_CONTROL_PLANE={other}: expected istiod, file or nothing"),
    }
}

/// Whoever signs for the proxies of this world.
pub fn authority(world: &World) -> FakeCa {
    match world.blueprint.control_plane {
        ControlPlane::File => FakeCa::new(),
        ControlPlane::Istiod => {
            let root = world.istiod().authority();
            FakeCa::with_root(&root.pem(), root.key_pem()).expect("an authority")
        }
    }
}

fn backends() -> [Option<Backend>; 2] {
    match io_choice().as_str() {
        "" | "denied" => [None, None],
        "uring" => [Some(Backend::Uring); 2],
        "epoll" => [Some(Backend::Epoll); 2],
        "uring-epoll" => [Some(Backend::Uring), Some(Backend::Epoll)],
        "epoll-uring" => [Some(Backend::Epoll), Some(Backend::Uring)],
        other => {
            panic!("JOURNEYS_IO={other}: expected uring, epoll, uring-epoll, epoll-uring, denied or nothing")
        }
    }
}

/// The usual two nodes and four pods, under the control plane of this run.
pub fn plan() -> Blueprint {
    Blueprint::two_nodes().control_plane(control_plane())
}

/// The same with ready proxies.
pub fn two_nodes() -> World {
    start(plan())
}

pub fn start(blueprint: Blueprint) -> World {
    World::start(blueprint, &options()).expect("a world with ready proxies")
}

/// What the control plane says of a pod of the namespace `shop`.
pub fn workload(istiod: &Istiod, pod: &str) -> Resource {
    let uid = format!("Kubernetes//Pod/shop/{pod}");
    istiod.held(ADDRESS, &uid).expect("the pod's workload")
}

/// Starts an HTTP server with bodies of 1 KiB in the pod.
pub fn serve_http(pod: &Pod) -> Server {
    pod.serve(HTTP_PORT, |stream, peer| http::serve(stream, peer, BODY_BYTES))
}

/// One request of `client`: the bytes of the body that come back.
pub fn fetch(world: &World, target: SocketAddr) -> io::Result<usize> {
    let response = world.pod("client").run(http::get(target, "/"));
    response.map(|response| response.body.len())
}

/// Says a line from a pod and gives what comes back until the end, and the pod's own address.
pub fn exchange(pod: &Pod, target: SocketAddr) -> (Vec<u8>, SocketAddr) {
    pod.run(async move {
        let mut stream = TcpStream::connect(target).await.expect("captured");
        let own = stream.local_addr().expect("an address");
        let mut answer = Vec::new();
        // A proxy that refuses may have closed already.
        if stream.write_all(b"a line\n").await.is_ok() && stream.shutdown().await.is_ok() {
            let _ = stream.read_to_end(&mut answer).await;
        }
        (answer, own)
    })
}

/// Waits until a connection of `client` has come through a tunnel to node 1, and was known there by its certificate.
pub fn assert_tunnelled(world: &World) {
    let logs = &world.nodes[1].proxy().logs;
    let inbound = logs.wait_for_access("an inbound tunnel", |record| {
        record.field("direction") == "inbound" && record.message == "connection complete"
    });
    let identity = world.pod("client").identity();
    assert_eq!(inbound.expect("a record").field("src.identity"), identity);
}

/// The error of a connection that node 0 ended with these words among others.
pub fn wait_for_error(world: &World, words: &str) -> String {
    let logs = &world.nodes[0].proxy().logs;
    let record = logs.wait_for_access(words, |record| record.field("error").contains(words));
    record.expect("a record").field("error").to_owned()
}
