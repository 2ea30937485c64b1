//! The rig tests itself: the network, the capture and the CNI agent, without any proxy. Needs root.

use std::os::fd::AsFd;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};
use uztunnel_rig::agent::{Agent, Answer, Sender};
use uztunnel_rig::applications::echo;
use uztunnel_rig::zds::{self, WorkloadInfo};
use uztunnel_rig::{Blueprint, Family, Membership, PodSpec, World, http};

/// Pods without redirect rules on two nodes.
fn plain_world() -> World {
    let mut blueprint = Blueprint {
        nodes: 2,
        label: "rig".to_owned(),
        ..Blueprint::default()
    };
    for (name, node) in [("near", 0), ("neighbour", 0), ("far", 1)] {
        blueprint = blueprint.pod(PodSpec::new(name, node).membership(Membership::Outside));
    }
    World::build(blueprint).expect("a world")
}

#[test]
fn pods_reach_each_other_on_both_families_with_their_own_addresses() {
    let world = plain_world();
    for server in ["near", "neighbour", "far"] {
        let _server = world
            .pod(server)
            .serve(8080, |stream, peer| http::serve(stream, peer, 1024));
        for client in ["near", "neighbour", "far"] {
            for family in Family::BOTH {
                let target = world.pod(server).address(family, 8080);
                let response = world.pod(client).run(async move { http::get(target, "/").await });
                let response =
                    response.unwrap_or_else(|error| panic!("{client} to {server} {family:?}: {error}"));
                assert_eq!((response.status, response.body.len()), (200, 1024));
                let own = world.pod(client).addresses.of(family).to_string();
                assert!(
                    response.source.contains(&own),
                    "{client} to {server}: seen as {}",
                    response.source
                );
            }
        }
    }
}

#[test]
fn a_capture_on_the_wire_sees_plaintext_and_refuses_to_call_it_tls() {
    let world = plain_world();
    let _server = world.pod("far").serve(7, echo);
    for (port, refusal) in [(7, "no tunnel"), (15008, "not TLS")] {
        let _plain_15008 = (port == 15008).then(|| world.pod("far").serve(port, echo));
        let capture = world.nodes[0]
            .capture(1, b"marker of the test")
            .expect("a capture");
        let target = world.pod("far").address(Family::V4, port);
        world.pod("near").run(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = tokio::net::TcpStream::connect(target).await.expect("connected");
            stream
                .write_all(b"with the marker of the test inside")
                .await
                .expect("sent");
            let mut back = [0; 34];
            stream.read_exact(&mut back).await.expect("echoed");
        });
        let report = capture.stop().expect("a report");
        assert_eq!(report.flows.len(), 2, "{report:?}");
        assert!(
            report
                .flows
                .iter()
                .all(|flow| flow.marker_seen && flow.bytes == 34),
            "{report:?}"
        );
        let refused = report.check_only_tls().expect_err("plaintext is no TLS");
        assert!(refused.contains(refusal), "{refused}");
    }
}

#[test]
fn dropping_a_world_leaves_no_namespace_and_no_file() {
    let world = plain_world();
    let name = world.nodes[0].namespace.name().to_owned();
    let scratch = world.scratch().to_owned();
    assert!(Path::new("/run/netns").join(&name).exists() && scratch.exists());
    drop(world);
    assert!(!Path::new("/run/netns").join(&name).exists() && !scratch.exists());
}

#[test]
fn an_interrupted_owner_leaves_nothing_behind() {
    // The child builds a world and waits; killing it must be enough.
    if std::env::var_os("RIG_TEST_CHILD").is_some() {
        let world = plain_world();
        println!("\nbuilt {}", world.nodes[0].namespace.name());
        loop {
            std::thread::park();
        }
    }
    use std::io::{BufRead, BufReader};
    let mut child = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args([
            "--exact",
            "an_interrupted_owner_leaves_nothing_behind",
            "--nocapture",
        ])
        .env("RIG_TEST_CHILD", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a child");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let name = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("built ").map(str::to_owned));
    let name = name.expect("the child built its world");
    let path = Path::new("/run/netns").join(name);
    assert!(path.exists());
    child.kill().expect("killed");
    child.wait().expect("reaped");
    uztunnel_rig::wait_until("the guardian to delete the namespaces", || {
        (!path.exists()).then_some(())
    });
}

/// A proxy as far as the CNI agent can tell.
struct Client(Socket);

impl Client {
    fn connect(path: &Path) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        socket
            .connect(&SockAddr::unix(path).expect("an address"))
            .expect("connected");
        socket.send(zds::HELLO).expect("sent");
        Self(socket)
    }

    fn receive_and_ack(&self) -> Vec<u8> {
        let mut buffer = [0u8; 1024];
        let got = std::io::Read::read(&mut &self.0, &mut buffer).expect("received");
        self.0.send(&[0x0a, 0x00]).expect("sent");
        buffer[..got].to_vec()
    }
}

#[test]
fn the_agent_sends_a_snapshot_then_changes_and_records_every_packet() {
    let world = plain_world();
    let path = world.scratch().join("test.sock");
    let agent = Agent::listen(&path).expect("an agent");
    let info = |name: &str| WorkloadInfo {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        service_account: name.to_owned(),
    };
    let file = std::fs::File::open("/proc/self/ns/net").expect("a namespace");
    agent.enrol("uid-1", info("one"), file.as_fd());
    let client = Client::connect(&path);
    assert_eq!(client.receive_and_ack(), zds::add("uid-1", Some(&info("one"))));
    assert_eq!(client.receive_and_ack(), zds::SNAPSHOT_SENT);
    agent.wait_for_connection(1).expect("greeted");

    std::thread::scope(|scope| {
        let answers = scope.spawn(|| {
            let added = agent.add("uid-2", info("two"), file.as_fd()).expect("sent");
            let deleted = agent.delete("uid-1").expect("sent");
            let garbage = agent.send(b"garbage", &[]).expect("sent");
            (added, deleted, garbage)
        });
        assert_eq!(client.receive_and_ack(), zds::add("uid-2", Some(&info("two"))));
        assert_eq!(client.receive_and_ack(), zds::delete("uid-1"));
        let mut buffer = [0u8; 1024];
        assert_eq!(
            std::io::Read::read(&mut &client.0, &mut buffer).expect("received"),
            7
        );
        drop(client);
        let (added, deleted, garbage) = answers.join().expect("answers");
        assert_eq!(
            (added, deleted, garbage),
            (Answer::Ack, Answer::Ack, Answer::Closed)
        );
    });

    let again = Client::connect(&path);
    assert_eq!(again.receive_and_ack(), zds::add("uid-2", Some(&info("two"))));
    assert_eq!(again.receive_and_ack(), zds::SNAPSHOT_SENT);
    agent.wait_for_connection(2).expect("greeted again");
    let packets = agent.packets();
    let of_second = packets
        .iter()
        .filter(|packet| packet.connection == 1)
        .collect::<Vec<_>>();
    assert_eq!(of_second[0].bytes, zds::HELLO);
    assert_eq!((&of_second[1].sender, of_second[1].fds), (&Sender::Agent, 1));
}
