//! A recorded conversation between istio-cni's node agent and a proxy, packet for packet.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use uztunnel_rig::{ProxyOptions, World, sys};

use crate::setup::{binary, plan};

const RECORDING: &str = include_str!("../data/zds.json");

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits");
    (0..text.len()).step_by(2).map(digits).collect()
}

fn accept(listener: &Socket) -> Socket {
    let (socket, _) = sys::uninterrupted(|| listener.accept()).expect("the proxy connects");
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a timeout");
    socket
}

fn receive(mut socket: &Socket) -> Vec<u8> {
    let mut buffer = [0; 1024];
    let got = sys::uninterrupted(|| socket.read(&mut buffer)).expect("a packet within the agent's 5 s");
    buffer[..got].to_vec()
}

#[test]
fn the_recorded_conversation_with_the_node_agent_is_repeated_packet_for_packet() {
    let world = World::build(plan()).expect("a world");
    let path = world.scratch().join("recorded.sock");
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    listener
        .bind(&SockAddr::unix(&path).expect("an address"))
        .expect("bound");
    listener.listen(4).expect("listening");
    let options = ProxyOptions::new(&binary()).variable("INPOD_UDS", &path.display().to_string());
    let _proxy = world.launch_proxy(0, &options).expect("started");

    let not_a_namespace = File::open("/dev/null").expect("a file");
    let packets: Vec<Value> = serde_json::from_str(RECORDING).expect("a recording");
    let mut agent = accept(&listener);
    let mut adds = 0;
    for (index, packet) in packets.iter().enumerate() {
        let Some(hex) = packet["hex"].as_str() else {
            assert_eq!(packet["meaning"], "reconnects", "packet {index}");
            agent = accept_after_closing(agent, &listener);
            continue;
        };
        let bytes = unhex(hex);
        let last = index + 1 == packets.len();
        match packet["from"].as_str() {
            Some("proxy") if last => {
                // The recorded refusal was worded by another proxy; what is fixed is that it is one.
                let refusal = uztunnel_rig::zds::read_response(&receive(&agent));
                let words = refusal.expect("a response").expect_err("a refusal");
                assert!(words.starts_with("failure to start proxy : "), "{words}");
            }
            Some("proxy") => assert_eq!(receive(&agent), bytes, "packet {index}: {}", packet["meaning"]),
            Some("node agent") => {
                let refused = index + 2 == packets.len();
                // Each pod of the recording gets a namespace of its own here; the last add none at all.
                let pod = world.pods[adds % 2].namespace.fd();
                let fd: BorrowedFd<'_> = if refused { not_a_namespace.as_fd() } else { pod };
                let fds = packet["fds"].as_u64().expect("a number of descriptors") as usize;
                adds += fds;
                sys::send_with_fds(agent.as_fd(), &bytes, &[fd; 1][..fds]).expect("sent");
            }
            other => panic!("packet {index} is from {other:?}"),
        }
    }
}

fn accept_after_closing(agent: Socket, listener: &Socket) -> Socket {
    drop(agent);
    accept(listener)
}
