//! What every journey starts with: the binary under test, its drivers, the usual servers.

use std::path::PathBuf;

use uztunnel_rig::applications::Server;
use uztunnel_rig::{Backend, Blueprint, Pod, ProxyOptions, World, http};

pub const HTTP_PORT: u16 = 8080;
pub const BODY_BYTES: usize = 1024;

pub fn binary() -> PathBuf {
    std::env::var_os("UZTUNNEL_BIN").map_or_else(|| env!("CARGO_BIN_EXE_uztunnel").into(), PathBuf::from)
}

/// Options of node 0 and node 1.
pub fn options() -> [ProxyOptions; 2] {
    backends().map(|backend| ProxyOptions {
        backend,
        ..ProxyOptions::new(&binary())
    })
}

fn io_choice() -> String {
    std::env::var("JOURNEYS_IO").unwrap_or_default()
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

/// The usual two nodes with ready proxies.
pub fn two_nodes() -> World {
    start(Blueprint::two_nodes())
}

pub fn start(blueprint: Blueprint) -> World {
    World::start(blueprint, &options()).expect("a world with ready proxies")
}

/// Starts an HTTP server with bodies of 1 KiB in the pod.
pub fn serve_http(pod: &Pod) -> Server {
    pod.serve(HTTP_PORT, |stream, peer| http::serve(stream, peer, BODY_BYTES))
}
