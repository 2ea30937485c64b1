//! Certificates that are taken back while traffic flows (`CRL_PATH`), on either side of a tunnel.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use uztunnel_rig::applications::echo;
use uztunnel_rig::{Family, Node, Pod, World, wait_until};

use crate::admin::dump;
use crate::certificates::world_with;

const PORT: u16 = 4000;
const HOUR: Duration = Duration::from_secs(3600);

/// A connection on which something is said every few milliseconds, and heard back, until it ends.
struct Talk<'a> {
    pod: &'a Pod,
    heard: Arc<AtomicU64>,
    task: JoinHandle<io::Result<()>>,
}

impl<'a> Talk<'a> {
    fn start(pod: &'a Pod, target: SocketAddr) -> Self {
        let heard = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&heard);
        let task = pod.spawn(async move {
            let mut stream = TcpStream::connect(target).await?;
            loop {
                stream.write_all(b"hello").await?;
                stream.read_exact(&mut [0; 5]).await?;
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let talk = Self { pod, heard, task };
        talk.goes_on();
        talk
    }

    /// Waits until more is heard; an end is a failure.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.heard.load(Ordering::Relaxed);
        wait_until("more of a conversation", || {
            assert!(
                !self.task.is_finished(),
                "the conversation of {} ended",
                self.pod.spec.name
            );
            (self.heard.load(Ordering::Relaxed) > before + 5).then_some(())
        });
    }

    fn wait_for_end(self) -> io::ErrorKind {
        let ended = self.pod.run(self.task).expect("no panic");
        ended.expect_err("it talks until it cannot").kind()
    }
}

fn say_once(pod: &Pod, target: SocketAddr) -> io::Result<()> {
    pod.run(async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(b"hello").await?;
        stream.read_exact(&mut [0; 5]).await.map(drop)
    })
}

fn list_of(world: &World, node: usize) -> PathBuf {
    world.scratch().join(format!("crl-{node}.pem"))
}

/// As a writer does who wants nobody to see half a file.
fn put(world: &World, node: usize, content: &str) {
    let next = world.scratch().join("crl.next");
    std::fs::write(&next, content).expect("written");
    std::fs::rename(next, list_of(world, node)).expect("renamed");
}

#[track_caller]
fn wait_for_log(node: &Node, wanted: &[&str]) -> String {
    let found = node.proxy().logs.wait_for(&wanted.join(" and "), |line| {
        wanted.iter().all(|wanted| line.contains(wanted))
    });
    found.expect("in the log")
}

#[test]
fn a_peer_whose_certificate_is_taken_back_is_cut_off_and_others_go_on() {
    let world = world_with(HOUR, |node, scratch, options| {
        let path = scratch.join(format!("crl-{node}.pem"));
        options.variable("CRL_PATH", &path.display().to_string())
    });
    let [near, far] = [&world.nodes[0], &world.nodes[1]];
    for node in &world.nodes {
        wait_for_log(
            node,
            &[
                "CRL_PATH=",
                "does not exist: no certificate counts as revoked until it does",
            ],
        );
        let shown = dump(&world, node.index);
        let path = list_of(&world, node.index).display().to_string();
        assert_eq!(shown["config"]["crlPath"], path);
    }
    let _server = world.pod("server").serve(PORT, echo);
    let target = world.pod("server").address(Family::V4, PORT);
    let (cart, client) = (world.pod("cart"), world.pod("client"));
    let (revoked, honest) = (Talk::start(cart, target), Talk::start(client, target));

    put(&world, 1, "these are no certificates");
    wait_for_log(
        far,
        &[
            "CRL_PATH=",
            "it is neither PEM nor DER",
            "no certificate counts as revoked",
        ],
    );
    revoked.goes_on();
    honest.goes_on();

    // The server's node learns that the first client's certificate counts no more.
    let signer = world.istiod().authority();
    let list = signer.revocation_list(&[&cart.identity()]).expect("a list");
    let written = Instant::now();
    put(&world, 1, &list);
    assert_eq!(revoked.wait_for_end(), io::ErrorKind::ConnectionReset);
    println!("cut off {:?} after the list was written", written.elapsed());
    honest.goes_on();
    let reason = format!(
        "peer certificate revoked by CRL (identity {}, serial number 01234567",
        cart.identity()
    );
    let line = wait_for_log(
        far,
        &[
            "session closed",
            "connection closed: ",
            &reason,
            "issuer CN=istiod of the rig)",
        ],
    );
    assert!(line.to_lowercase().contains("warn"), "{line}");
    let recorded = far
        .proxy()
        .logs
        .wait_for_access("the stream that was cut", |record| {
            record.level == "error" && record.field("error").contains(&reason)
        });
    let recorded = recorded.expect("a record");
    assert!(
        recorded.field("error").starts_with("connection closed: "),
        "{recorded:?}"
    );

    say_once(cart, target).expect_err("it is refused");
    let refused = far.proxy().logs.wait_for_access("a refused handshake", |record| {
        record.message == "connection failed" && record.field("error").contains(&reason)
    });
    let refused = refused.expect("a record");
    let start = "tls error: tls handshake error: ";
    assert!(refused.field("error").starts_with(start), "{refused:?}");
    wait_for_log(near, &["CertificateRevoked (44): our certificate is revoked"]);

    put(&world, 1, &list[..list.len() / 2]);
    wait_for_log(
        far,
        &[
            "its PEM is broken",
            "what was read before stays in force (1 lists)",
        ],
    );
    say_once(cart, target).expect_err("a bad file changes nothing");
    honest.goes_on();

    // And the client's node, that the server's does.
    let list = signer.revocation_list(&[&world.pod("server").identity()]);
    put(&world, 0, &list.expect("a list"));
    assert_eq!(honest.wait_for_end(), io::ErrorKind::ConnectionReset);
    let reason = format!(
        "peer certificate revoked by CRL (identity {}",
        world.pod("server").identity()
    );
    wait_for_log(near, &["session closed", "connection closed: ", &reason]);
    say_once(client, target).expect_err("it is refused");
    let refused = near
        .proxy()
        .logs
        .wait_for_access("a refused handshake", |record| {
            record.field("direction") == "outbound"
                && record.field("error").contains("tls handshake error: peer cert")
        });
    assert!(refused.expect("a record").field("error").contains(&reason));

    for node in [0, 1] {
        put(&world, node, "");
    }
    wait_until("everybody to be served again", || {
        [cart, client]
            .iter()
            .all(|pod| say_once(pod, target).is_ok())
            .then_some(())
    });
}
