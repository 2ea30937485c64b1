//! Replicas that die while their service is called all the time: no new connection fails.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use uztunnel_rig::applications::Server;
use uztunnel_rig::istiod::{ADDRESS, Istiod};
use uztunnel_rig::lock;
use uztunnel_rig::{
    Blueprint, Family, Membership, Pod, PodSpec, ServiceSpec, World, http, mesh_file, wait_until,
};

use crate::setup::{BODY_BYTES, HTTP_PORT, fetch, options, serve_http, start};
use crate::silence::{end_silence, silence};

const PER_SECOND: u32 = 100;
const DEAD_FOR: Duration = Duration::from_secs(3);

/// One call on a connection of its own.
struct Call {
    started: Instant,
    ended: Instant,
    failure: Option<io::Error>,
}

/// `PER_SECOND` new connections a second, until it is told to stop.
struct Callers<'a> {
    client: &'a Pod,
    stop: oneshot::Sender<()>,
    done: Arc<Mutex<Vec<Call>>>,
    running: JoinHandle<()>,
}

impl<'a> Callers<'a> {
    fn start(client: &'a Pod, target: SocketAddr) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let done = Arc::<Mutex<Vec<Call>>>::default();
        let record = done.clone();
        let running = client.spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
            let mut calls = JoinSet::new();
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                pace.tick().await;
                let record = record.clone();
                calls.spawn(async move {
                    let started = Instant::now();
                    let response = http::get(target, "/").await;
                    if let Ok(response) = &response {
                        assert_eq!((response.status, response.body.len()), (200, BODY_BYTES));
                    }
                    let call = Call {
                        started,
                        ended: Instant::now(),
                        failure: response.err(),
                    };
                    lock(&record).push(call);
                });
            }
            while let Some(call) = calls.join_next().await {
                call.expect("no panic");
            }
        });
        Self {
            client,
            stop,
            done,
            running,
        }
    }

    fn end(self) -> Vec<Call> {
        self.stop.send(()).expect("it runs");
        let running = self.running;
        self.client.run(async move { running.await.expect("no panic") });
        std::mem::take(&mut *lock(&self.done))
    }
}

/// Waits until `server` has been called `more` times from now on.
fn wait_for_calls(server: &Server, more: usize) {
    let enough = server.peers().len() + more;
    wait_until("the replica is called", || {
        (server.peers().len() >= enough).then_some(())
    });
}

/// Those who were already talking to a replica when it was killed may lose their connection with it; nobody else does.
fn assert_no_new_connection_failed(calls: &[Call], kills: &[Instant]) {
    let talked = |call: &Call| kills.iter().any(|kill| (call.started..call.ended).contains(kill));
    let failed: Vec<_> = calls
        .iter()
        .filter(|call| call.failure.is_some() && !talked(call))
        .collect();
    let first = failed.first().and_then(|call| call.failure.as_ref());
    assert!(
        failed.is_empty(),
        "{} of {} failed, the first: {first:?}",
        failed.len(),
        calls.len()
    );
    let (ms, longest) = (
        |call: &Call| (call.ended - call.started).as_millis(),
        calls.iter(),
    );
    println!(
        "{} calls, the longest took {:?} ms",
        calls.len(),
        longest.map(ms).max()
    );
}

#[test]
fn no_new_connection_fails_while_one_of_two_replicas_is_silent_for_three_seconds() {
    let replicas = ["server", "replica"];
    let blueprint = Blueprint::two_nodes()
        .pod(PodSpec::new("replica", 1))
        .service(ServiceSpec::new("bank", &[(80, HTTP_PORT)], &replicas));
    let world = start(blueprint);
    let servers = replicas.map(|replica| serve_http(world.pod(replica)));
    let callers = Callers::start(world.pod("client"), world.service("bank", Family::V4, 80));
    wait_for_calls(&servers[1], 20);
    silence(world.pod("replica"));
    std::thread::sleep(DEAD_FOR);
    end_silence(world.pod("replica"));
    // It is found out that it is back.
    wait_for_calls(&servers[1], 50);
    assert_no_new_connection_failed(&callers.end(), &[]);
}

/// Without a proxy there is no session whose dial would tell: each connection finds out by itself, unless it is told.
#[test]
fn a_plain_replica_that_is_silent_is_tried_now_and_then_only() {
    const CALLS: usize = 60;
    let replicas = ["plain", "dead"];
    let blueprint = replicas
        .iter()
        .fold(Blueprint::two_nodes(), |blueprint, replica| {
            blueprint.pod(PodSpec::new(replica, 1).membership(Membership::KnownPlain))
        });
    let blueprint = blueprint.service(ServiceSpec::new("bank", &[(80, HTTP_PORT)], &replicas));
    let debug =
        options().map(|options| options.variable("RUST_LOG", "info,uztunnel::worker::outbound=debug"));
    let world = World::start(blueprint, &debug).expect("a world with ready proxies");
    let servers = replicas.map(|replica| serve_http(world.pod(replica)));
    silence(world.pod("dead"));
    let target = world.service("bank", Family::V4, 80);
    for _ in 0..CALLS {
        assert_eq!(fetch(&world, target).expect("the other one answers"), BODY_BYTES);
    }
    let dead = format!("from={}", world.pod("dead").address(Family::V4, HTTP_PORT));
    let logs = &world.nodes[0].proxy().logs;
    let given_up = || {
        let lines = logs.lines().into_iter();
        lines
            .filter(|line| line.contains("another endpoint is tried") && line.contains(&dead))
            .count()
    };
    let tried = wait_until("the log", || Some(given_up()).filter(|tried| *tried > 0));
    // Every second connection otherwise.
    assert!(tried < CALLS / 4, "{tried} of {CALLS} connections waited for it");
    end_silence(world.pod("dead"));
    wait_until("it is found out that it is back", || {
        fetch(&world, target).expect("either answers");
        (servers[1].peers().len() >= 5).then_some(())
    });
}

#[test]
fn no_new_connection_fails_while_the_proxy_and_the_application_of_a_replica_are_dead_for_three_seconds() {
    let replicas = ["server", "replica"];
    let blueprint = Blueprint::two_nodes()
        .pod(PodSpec::new("replica", 0))
        .service(ServiceSpec::new("bank", &[(80, HTTP_PORT)], &replicas));
    let mut world = start(blueprint);
    let _stays = serve_http(world.pod("replica"));
    let dies = serve_http(world.pod("server"));
    let proxy = world.nodes[1].proxy.take().expect("it runs");
    let callers = Callers::start(world.pod("client"), world.service("bank", Family::V4, 80));
    wait_for_calls(&dies, 20);
    let killed = Instant::now();
    drop((proxy, dies));
    std::thread::sleep(DEAD_FOR);
    let back = serve_http(world.pod("server"));
    let mut proxy = world.launch_proxy(1, &options()[1]).expect("started");
    proxy.wait_until_ready(&world.nodes[1].namespace).expect("ready");
    wait_for_calls(&back, 50);
    assert_no_new_connection_failed(&callers.end(), &[killed]);
}

#[test]
fn no_new_connection_fails_while_four_of_five_replicas_are_killed_at_the_moment_that_they_are_deleted() {
    let replicas = ["server", "one", "two", "three", "four"];
    let mut blueprint =
        Blueprint::two_nodes().service(ServiceSpec::new("bank", &[(80, HTTP_PORT)], &replicas));
    for replica in &replicas[1..] {
        blueprint = blueprint.pod(PodSpec::new(replica, 1));
    }
    let mut world = World::build(blueprint).expect("a world");
    let istiod = Istiod::serve(&world).expect("a control plane");
    let options = options().map(|options| istiod.options(options));
    world.start_proxies(&options).expect("ready proxies");
    let [stays, dying @ ..] = replicas.map(|replica| serve_http(world.pod(replica)));
    let callers = Callers::start(world.pod("client"), world.service("bank", Family::V4, 80));
    let mut kills = Vec::new();
    for (server, replica) in dying.into_iter().zip(&replicas[1..]) {
        let pod = world.pod(replica);
        wait_for_calls(&server, 10);
        kills.push(Instant::now());
        drop(server);
        world.nodes[1].agent.delete(&pod.uid).expect("sent");
        // The mesh learns of it later, as ever.
        wait_for_calls(&stays, 20);
        for nonce in istiod.remove(ADDRESS, &[&mesh_file::workload_uid(&pod.spec)]) {
            assert_eq!(istiod.wait_for_answer(&nonce).error, None);
        }
    }
    wait_for_calls(&stays, 50);
    assert_no_new_connection_failed(&callers.end(), &kills);
}
