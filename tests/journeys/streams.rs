//! Ends of connections: who speaks first, half-closes, resets.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uztunnel_rig::Family;
use uztunnel_rig::applications::{echo, reset};
use uztunnel_rig::pattern::Pattern;

use crate::setup::two_nodes;

const PORT: u16 = 4000;

/// Long enough for an end to be passed on by mistake, if it were.
const GRACE: Duration = Duration::from_millis(300);

/// The journeys of this file hold inside a tunnel and in plaintext alike.
const PAIRS: [(&str, &str); 3] = [
    ("client", "server"),
    ("client", "stranger"),
    ("stranger", "server"),
];

#[test]
fn a_server_that_speaks_first_is_heard() {
    let world = two_nodes();
    for (client, server) in PAIRS {
        let _server = world.pod(server).serve(PORT, |mut stream, _| async move {
            stream.write_all(b"220 ready\r\n").await?;
            let mut command = [0; 6];
            stream.read_exact(&mut command).await?;
            stream.write_all(b"221 bye\r\n").await?;
            stream.shutdown().await
        });
        let target = world.pod(server).address(Family::V4, PORT);
        let heard = world.pod(client).run(async move {
            let mut stream = TcpStream::connect(target).await?;
            let mut banner = [0; 11];
            stream.read_exact(&mut banner).await?;
            stream.write_all(b"QUIT\r\n").await?;
            let mut rest = banner.to_vec();
            stream.read_to_end(&mut rest).await?;
            io::Result::Ok(rest)
        });
        assert_eq!(
            heard.expect("a conversation"),
            b"220 ready\r\n221 bye\r\n",
            "{client} to {server}"
        );
    }
}

#[test]
fn after_the_clients_half_close_the_server_goes_on_sending() {
    let world = two_nodes();
    for (client, server) in PAIRS {
        let pattern = Pattern::new(1);
        let sent = pattern.clone();
        let serving = world.pod(server).serve(PORT, move |mut stream, _| {
            let pattern = sent.clone();
            async move {
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await?;
                assert_eq!(request, b"request");
                tokio::time::sleep(GRACE).await;
                pattern.send(&mut stream, 8 << 20).await?;
                tokio::time::sleep(GRACE).await;
                stream.shutdown().await
            }
        });
        let target = world.pod(server).address(Family::V4, PORT);
        let received = world.pod(client).run(async move {
            let mut stream = TcpStream::connect(target).await?;
            stream.write_all(b"request").await?;
            stream.shutdown().await?;
            pattern.receive(&mut stream).await
        });
        assert_eq!(received.expect("an orderly end"), 8 << 20, "{client} to {server}");
        assert_eq!(serving.wait_for_ends(1), [Ok(())], "{client} to {server}");
    }
}

#[test]
fn after_the_servers_half_close_the_client_goes_on_sending() {
    let world = two_nodes();
    for (client, server) in PAIRS {
        let pattern = Pattern::new(2);
        let expected = pattern.clone();
        let serving = world.pod(server).serve(PORT, move |mut stream, _| {
            let pattern = expected.clone();
            async move {
                stream.write_all(b"greeting").await?;
                stream.shutdown().await?;
                assert_eq!(pattern.receive(&mut stream).await?, 8 << 20);
                Ok(())
            }
        });
        let target = world.pod(server).address(Family::V4, PORT);
        let sent = world.pod(client).run(async move {
            let mut stream = TcpStream::connect(target).await?;
            let mut greeting = Vec::new();
            stream.read_to_end(&mut greeting).await?;
            assert_eq!(greeting, b"greeting");
            tokio::time::sleep(GRACE).await;
            pattern.send(&mut stream, 8 << 20).await?;
            stream.shutdown().await
        });
        sent.unwrap_or_else(|error| panic!("{client} to {server}: {error}"));
        assert_eq!(serving.wait_for_ends(1), [Ok(())], "{client} to {server}");
    }
}

#[test]
fn a_clients_reset_reaches_the_server_as_a_reset() {
    let world = two_nodes();
    for (client, server) in PAIRS {
        let serving = world.pod(server).serve(PORT, echo);
        let target = world.pod(server).address(Family::V4, PORT);
        let reset_sent = world.pod(client).run(async move {
            let mut stream = TcpStream::connect(target).await?;
            stream.write_all(b"hello").await?;
            stream.read_exact(&mut [0; 5]).await?;
            reset(stream)
        });
        reset_sent.expect("a connection to reset");
        let ended = serving.wait_for_ends(1);
        assert_eq!(
            ended,
            [Err(io::ErrorKind::ConnectionReset)],
            "{client} to {server}"
        );
    }
}

#[test]
fn a_servers_reset_reaches_the_client_as_a_reset() {
    let world = two_nodes();
    for (client, server) in PAIRS {
        let _server = world.pod(server).serve(PORT, |mut stream, _| async move {
            stream.read_exact(&mut [0; 5]).await?;
            reset(stream)
        });
        let target = world.pod(server).address(Family::V4, PORT);
        let outcome = world.pod(client).run(async move {
            let mut stream = TcpStream::connect(target).await?;
            stream.write_all(b"hello").await?;
            stream.read(&mut [0; 5]).await
        });
        let error = outcome.expect_err("no orderly end");
        assert_eq!(
            error.kind(),
            io::ErrorKind::ConnectionReset,
            "{client} to {server}"
        );
    }
}

/// As of a server that refuses a large upload by its first lines. What a fresh connection may send at once arrives
/// without the proxy as well.
#[test]
fn an_early_answer_is_heard_although_its_server_goes_away_without_reading_the_rest() {
    const ANSWER: [u8; 8192] = [7; 8192];
    let world = two_nodes();
    for (client, server) in PAIRS {
        let _server = world.pod(server).serve(PORT, |mut stream, _| async move {
            stream.read_exact(&mut [0; 1024]).await?;
            // Unread bytes make the end a reset.
            stream.write_all(&ANSWER).await
        });
        let target = world.pod(server).address(Family::V4, PORT);
        for round in 0..20 {
            let heard = world.pod(client).run(async move {
                let mut stream = TcpStream::connect(target).await.expect("connected");
                while stream.write_all(&[1; 16 << 10]).await.is_ok() {}
                let mut heard = Vec::new();
                // Behind the answer the connection is reset.
                let _ = stream.read_to_end(&mut heard).await;
                heard
            });
            assert!(
                heard == ANSWER,
                "{client} to {server}, round {round}: {} bytes of the answer",
                heard.len()
            );
        }
    }
}

#[test]
fn a_reset_while_bytes_flow_ends_both_sides_and_no_other_connection() {
    let world = two_nodes();
    let serving = world.pod("server").serve(PORT, echo);
    let target = world.pod("server").address(Family::V4, PORT);
    world.pod("client").run(async move {
        let mut steady = TcpStream::connect(target).await.expect("connected");
        for round in 0..20u8 {
            let mut brief = TcpStream::connect(target).await.expect("connected");
            brief.write_all(&[round; 64]).await.expect("sent");
            brief
                .read_exact(&mut [0; 64])
                .await
                .expect("echoed: the connection stands end to end");
            brief.write_all(&[round; 32 * 1024]).await.expect("sent");
            reset(brief).expect("reset");
            steady.write_all(&[round]).await.expect("sent");
            assert_eq!(steady.read_u8().await.expect("echoed"), round);
        }
        steady.shutdown().await.expect("closed");
    });
    let ended = serving.wait_for_ends(21);
    assert_eq!(ended.iter().filter(|end| end.is_ok()).count(), 1, "{ended:?}");
    for node in &world.nodes {
        uztunnel_rig::wait_until("21 access-log records", || {
            let records = node.proxy().logs.access();
            (records
                .iter()
                .filter(|record| record.message == "connection complete")
                .count()
                >= 21)
                .then_some(())
        });
    }
}
