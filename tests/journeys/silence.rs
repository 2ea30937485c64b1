//! Peers that fall silent: no FIN, no RST, no packet at all, as when a machine loses its power.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uztunnel::limits;
use uztunnel_rig::{Family, Pod, World};

use crate::setup::two_nodes;

const PORT: u16 = 4000;

/// When a session has to be over at the latest: it is looked at in intervals of PINGs.
const OVER_AFTER: Duration = Duration::from_secs(
    2 * limits::PING_INTERVAL.as_secs() + limits::PING_TIMEOUT.as_secs() + /* a busy machine */ 5,
);

/// Nothing that the nodes send each other arrives any more.
fn cut_the_wire(world: &World) {
    for node in &world.nodes {
        let wire = uztunnel_rig::topology::wire_interface(1 - node.index);
        let rules = format!(
            "table inet silence {{
                chain arrive {{
                    type filter hook prerouting priority raw;
                    iifname \"{wire}\" drop;
                }}
            }}"
        );
        let cut = node.namespace.run_program("nft", &["-f", "-"], &rules);
        cut.expect("nftables");
    }
}

/// Nothing reaches the pod, and nothing leaves it.
pub fn silence(pod: &Pod) {
    let rules = "table inet silence {
        chain arrive { type filter hook prerouting priority raw; iifname != \"lo\" drop; }
        chain leave { type filter hook output priority raw; oifname != \"lo\" drop; }
    }";
    let silenced = pod.namespace.run_program("nft", &["-f", "-"], rules);
    silenced.expect("nftables");
}

pub fn end_silence(pod: &Pod) {
    let rules = "delete table inet silence";
    let ended = pod.namespace.run_program("nft", &["-f", "-"], rules);
    ended.expect("nftables");
}

#[test]
fn a_node_that_falls_silent_has_its_sessions_ended_with_a_reason_and_its_streams_reset() {
    let world = two_nodes();
    let server = world.pod("server").serve(PORT, |mut stream, _| async move {
        stream.write_all(b"hello").await?;
        stream.read_exact(&mut [0; 1]).await.map(drop)
    });
    let target = world.pod("server").address(Family::V4, PORT);
    let stream = world.pod("client").run(async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.read_exact(&mut [0; 5]).await?;
        io::Result::Ok(stream)
    });
    let mut stream = stream.expect("a conversation");
    cut_the_wire(&world);
    let start = Instant::now();
    let end = world.pod("client").run(async move {
        let end = tokio::time::timeout(OVER_AFTER, stream.read_u8()).await;
        end.expect("the client is told").map_err(|error| error.kind())
    });
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    assert!(
        start.elapsed() >= limits::PING_TIMEOUT,
        "{:?}: too soon for a wire that may come back",
        start.elapsed()
    );
    for node in &world.nodes {
        let reason = "no answer to a PING within 20 s; the peer or the way to it is gone";
        let logs = &node.proxy().logs;
        let line = logs.wait_within(OVER_AFTER, reason, |line| line.contains(reason));
        let line = line.expect("the log gives the reason");
        assert!(
            line.contains("nothing came for") && line.contains("peer=") && line.contains("streams=1"),
            "{line}"
        );
        let record = logs.wait_for_access("the stream's end", |record| {
            record.field("error").contains("no answer to a PING within 20 s")
        });
        record.expect("the access log gives the reason");
    }
    assert_eq!(server.wait_for_ends(1), [Err(io::ErrorKind::ConnectionReset)]);
}

#[test]
fn a_pod_that_takes_no_connection_fails_those_to_it_in_time_and_the_log_says_why() {
    let world = two_nodes();
    silence(world.pod("server"));
    let target = world.pod("server").address(Family::V4, PORT);
    let end = world.pod("client").run(async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.read_u8().await
    });
    assert!(end.is_err(), "{end:?}");
    let reason = format!(
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {}:15008 did not accept within {:?}",
        target.ip(),
        limits::CONNECT_TIMEOUT
    );
    let logs = &world.nodes[0].proxy().logs;
    let record = logs.wait_for_access("the reason", |record| record.field("error") == reason);
    record.expect("the reason in the log");
}
