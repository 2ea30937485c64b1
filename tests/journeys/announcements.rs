//! The CNI socket: pods come and go while traffic runs, and garbage changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uztunnel_rig::agent::{Answer, Sender};
use uztunnel_rig::applications::echo;
use uztunnel_rig::{Family, Pod, World, http, zds};

use crate::setup::{HTTP_PORT, options, plan, serve_http, start, two_nodes};

const ECHO_PORT: u16 = 4600;

/// Requests one after the other, in turn on a connection that stays and on a new one. None may fail.
struct Traffic<'a> {
    client: &'a Pod,
    served: Arc<AtomicU64>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<std::io::Result<()>>,
}

impl<'a> Traffic<'a> {
    fn start(world: &'a World, client: &str, server: &str) -> Self {
        let target = world.pod(server).address(Family::V4, HTTP_PORT);
        let served = Arc::<AtomicU64>::default();
        let count = Arc::clone(&served);
        let (stop, mut stopped) = oneshot::channel();
        let running = world.pod(client).spawn(async move {
            let mut stays = http::Client::connect(target).await?;
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                stays.get("/").await?;
                http::get(target, "/").await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self {
            client: world.pod(client),
            served,
            stop,
            running,
        }
    }

    /// It goes on now, not only before.
    fn wait_for_more(&self) {
        let before = self.served.load(Ordering::Relaxed);
        uztunnel_rig::wait_until("further requests to be served", || {
            (self.served.load(Ordering::Relaxed) >= before + 10 || self.running.is_finished()).then_some(())
        });
        assert!(!self.running.is_finished(), "a request failed");
    }

    fn end(self) {
        let Self {
            client,
            stop,
            running,
            ..
        } = self;
        stop.send(()).expect("it runs");
        let ended = client.run(async move { running.await.expect("no panic") });
        ended.expect("no request failed");
    }
}

fn assert_served(world: &World, client: &str, server: &str) {
    let target = world.pod(server).address(Family::V4, HTTP_PORT);
    let response = world.pod(client).run(async move { http::get(target, "/").await });
    response.unwrap_or_else(|error| panic!("{client} to {server}: {error}"));
}

#[test]
fn the_proxy_greets_acknowledges_the_snapshot_and_says_nothing_else() {
    let world = two_nodes();
    let packets = world.nodes[1].agent.packets();
    let from_proxy: Vec<&[u8]> = packets
        .iter()
        .filter(|packet| packet.sender == Sender::Proxy)
        .map(|packet| packet.bytes.as_slice())
        .collect();
    let ack: &[u8] = &[0x0a, 0x00];
    assert_eq!(from_proxy, [zds::HELLO, ack, ack]);
}

#[test]
fn a_pod_added_while_traffic_runs_is_served_and_a_deleted_one_no_more() {
    let world = World::build(plan()).expect("a world");
    let late = world.pod("server");
    world.nodes[1].agent.forget(&late.uid);
    let mut world = world;
    world.start_proxies(&options()).expect("ready proxies");
    let _servers = ["server", "cart"].map(|name| serve_http(world.pod(name)));
    let _echo = world.pod("server").serve(ECHO_PORT, echo);
    let traffic = Traffic::start(&world, "client", "cart");
    traffic.wait_for_more();

    let late = world.pod("server");
    let agent = &world.nodes[1].agent;
    let added = agent
        .add(&late.uid, late.workload_info(), late.namespace.fd())
        .expect("sent");
    assert_eq!(added, Answer::Ack);
    assert_served(&world, "client", "server");
    let to_late = late.address(Family::V4, ECHO_PORT);
    let mut open = world
        .pod("client")
        .run(async move {
            let mut stream = TcpStream::connect(to_late).await?;
            stream.write_u8(7).await?;
            stream.read_u8().await?;
            std::io::Result::Ok(stream)
        })
        .expect("a connection to the new pod");
    traffic.wait_for_more();

    assert_eq!(agent.delete(&late.uid).expect("sent"), Answer::Ack);
    let cut = world.pod("client").run(async move { open.read_u8().await });
    let cut = cut.map_err(|error| error.kind());
    assert_eq!(cut, Err(std::io::ErrorKind::ConnectionReset));
    let target = late.address(Family::V4, 15008);
    uztunnel_rig::wait_until("the listener of the deleted pod to close", || {
        let refused = world
            .pod("stranger")
            .run(async move { TcpStream::connect(target).await });
        refused.is_err().then_some(())
    });
    traffic.wait_for_more();
    traffic.end();
    assert_eq!(agent.delete("an-unknown-uid").expect("sent"), Answer::Ack);
}

#[test]
fn garbage_on_the_socket_is_refused_and_the_proxy_comes_back_for_a_snapshot() {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    let agent = &world.nodes[1].agent;
    let prefix = "failure to read message : ";
    let mut connections = 1;
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\x0a\x7f", b"\x3a\x00", &[0x0a; 1024]] {
        let answer = agent.send(garbage, &[]).expect("sent");
        assert!(
            matches!(&answer, Answer::Refused(words) if words.starts_with(prefix)),
            "{garbage:02x?}: {answer:?}"
        );
        connections += 1;
        agent
            .wait_for_connection(connections)
            .expect("the proxy came back");
        assert_served(&world, "client", "server");
    }
    let info = world.pod("server").workload_info();
    let without_fd = agent.send(&zds::add("no-fd", Some(&info)), &[]).expect("sent");
    assert!(
        matches!(&without_fd, Answer::Refused(words) if words.contains("No control message")),
        "{without_fd:?}"
    );
    agent
        .wait_for_connection(connections + 1)
        .expect("the proxy came back");
    assert_served(&world, "client", "server");
}

#[test]
fn a_lost_agent_takes_no_traffic_down_and_the_next_snapshot_is_taken() {
    let world = start(plan());
    let _server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let (ask, mut asked) = tokio::sync::mpsc::channel::<()>(1);
    let (answered, answers) = std::sync::mpsc::channel();
    let keeping = world.pod("client").spawn(async move {
        let mut connection = http::Client::connect(target).await.expect("connected");
        while asked.recv().await.is_some() {
            let response = connection.get("/").await.map(|response| response.status);
            answered.send(response).expect("the test waits");
        }
    });
    let assert_still_open = || {
        ask.blocking_send(()).expect("the client runs");
        assert_eq!(answers.recv().expect("an answer").expect("a response"), 200);
    };
    assert_still_open();
    for round in 2..5 {
        world.nodes[1].agent.disconnect();
        assert_still_open();
        world.nodes[1]
            .agent
            .wait_for_connection(round)
            .expect("the proxy came back");
        assert_still_open();
    }
    drop(ask);
    world
        .pod("client")
        .run(async move { keeping.await.expect("no panic") });
    assert_served(&world, "client", "server");
}
