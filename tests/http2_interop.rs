//! Our HTTP/2 engine against the `h2` crate, as client and as server, over an in-memory pipe whose pieces are cut
//! at random (seeded) places in both directions.

#[path = "http2/oracle.rs"]
mod oracle;
#[path = "http2/session.rs"]
mod session;

use std::time::Duration;

use bytes::Bytes;
use oracle::{H2Client, H2Server};
use session::{Cuts, Session, pattern};
use uztunnel::wire::http2::{ErrorCode, Settings};

/// Every test is over long before; a hang must fail, not block the run.
fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(async {
            tokio::time::timeout(Duration::from_secs(30), test)
                .await
                .expect("no progress")
        })
}

/// Sizes of the payloads of 100 tunnels: none, tiny, around the default frame, and many frames.
fn sizes(streams: u32) -> Vec<usize> {
    let all = [0, 1, 100, 16_383, 16_384, 16_385, 40_000, 70_000];
    (0..streams as usize)
        .map(|n| all[n % all.len()] + n / all.len())
        .collect()
}

async fn our_client_echoes(sizes: &[usize], ours: Settings, theirs: H2Server, cuts: Cuts) {
    let (here, there) = tokio::io::duplex(1 << 16);
    let server = tokio::spawn(theirs.echo(there));
    let mut session = Session::client(here, ours, cuts);
    let keys: Vec<u32> = (0..sizes.len() as u32).collect();
    for (key, size) in keys.iter().zip(sizes) {
        session.send_when_possible(*key, pattern(*key, *size));
    }
    session
        .run_until(|session| session.finished() == sizes.len())
        .await;
    for (key, size) in keys.iter().zip(sizes) {
        assert!(
            session.received(*key) == pattern(*key, *size),
            "stream {key} of {size} bytes"
        );
    }
    assert!(session.connection.is_idle());
    session.close().await;
    assert_eq!(server.await.expect("server"), sizes.len());
}

async fn their_client_is_echoed(sizes: &[usize], ours: Settings, theirs: H2Client, cuts: Cuts) {
    let (here, there) = tokio::io::duplex(1 << 16);
    let mut session = Session::server(here, ours, cuts);
    let client = tokio::spawn(theirs.send_all(there, sizes.to_vec()));
    session.run_until_closed().await;
    for (number, (size, echoed)) in sizes.iter().zip(client.await.expect("client")).enumerate() {
        assert!(
            echoed == pattern(number as u32, *size),
            "stream {number} of {size} bytes"
        );
    }
    assert!(session.connection.is_idle());
}

#[test]
fn our_client_moves_a_hundred_parallel_streams_byte_exactly() {
    for seed in 0..3 {
        let cuts = Cuts::new(seed, 3000);
        run(our_client_echoes(
            &sizes(100),
            Settings::client(),
            H2Server::default(),
            cuts,
        ));
    }
}

#[test]
fn our_server_moves_a_hundred_parallel_streams_byte_exactly() {
    for seed in 0..3 {
        let cuts = Cuts::new(seed, 3000);
        run(their_client_is_echoed(
            &sizes(100),
            Settings::server(),
            H2Client::default(),
            cuts,
        ));
    }
}

#[test]
fn pieces_of_a_few_bytes_change_nothing() {
    let sizes = [0, 1, 500, 3000, 17_000];
    run(our_client_echoes(
        &sizes,
        Settings::client(),
        H2Server::default(),
        Cuts::new(1, 7),
    ));
    run(their_client_is_echoed(
        &sizes,
        Settings::server(),
        H2Client::default(),
        Cuts::new(2, 7),
    ));
}

#[test]
fn huge_frames_pass_in_both_directions() {
    let sizes = [3 << 20, 1 << 20, (1 << 20) + 1];
    let theirs = H2Server {
        window_bytes: 8 << 20,
        frame_bytes: 1 << 20,
        ..H2Server::default()
    };
    let cuts = Cuts::new(1, 1 << 18);
    run(our_client_echoes(&sizes, Settings::client(), theirs, cuts));
    let theirs = H2Client {
        window_bytes: 8 << 20,
        frame_bytes: 1 << 20,
    };
    run(their_client_is_echoed(
        &sizes,
        Settings::server(),
        theirs,
        Cuts::new(2, 1 << 18),
    ));
}

#[test]
fn tiny_frames_pass_in_both_directions() {
    // Larger ones would exceed the budget for small frames of h2 itself.
    let sizes = [1, 50, 150];
    let cuts = Cuts::new(1, 100).with_frames_of(3);
    run(our_client_echoes(
        &sizes,
        Settings::client(),
        H2Server::default(),
        cuts,
    ));
    let cuts = Cuts::new(2, 100).with_frames_of(3);
    run(their_client_is_echoed(
        &sizes,
        Settings::server(),
        H2Client::default(),
        cuts,
    ));
}

#[test]
fn starved_windows_of_the_peer_are_kept_exactly() {
    for (window_bytes, size) in [(1, 300), (7, 1000), (100, 10_000), (65_535, 200_000)] {
        let theirs = H2Server {
            window_bytes,
            ..H2Server::default()
        };
        let sizes = [size; 5];
        run(our_client_echoes(
            &sizes,
            Settings::client(),
            theirs,
            Cuts::new(1, 500),
        ));
        let theirs = H2Client {
            window_bytes,
            ..H2Client::default()
        };
        run(their_client_is_echoed(
            &sizes,
            Settings::server(),
            theirs,
            Cuts::new(2, 500),
        ));
    }
}

#[test]
fn our_own_starved_windows_stall_nobody() {
    for (stream_window_bytes, size) in [(1, 300), (7, 1000), (100, 10_000), (65_535, 200_000)] {
        let starved = |settings| Settings {
            stream_window_bytes,
            connection_window_bytes: 65_535,
            unread_bytes_max: 0,
            ..settings
        };
        let sizes = [size; 5];
        let ours = starved(Settings::client());
        run(our_client_echoes(
            &sizes,
            ours,
            H2Server::default(),
            Cuts::new(1, 500),
        ));
        let ours = starved(Settings::server());
        run(their_client_is_echoed(
            &sizes,
            ours,
            H2Client::default(),
            Cuts::new(2, 500),
        ));
    }
}

#[test]
fn the_limit_of_streams_is_kept_by_both_sides() {
    let theirs = H2Server {
        streams_max: 3,
        ..H2Server::default()
    };
    run(our_client_echoes(
        &sizes(40),
        Settings::client(),
        theirs,
        Cuts::new(1, 3000),
    ));
    let ours = Settings {
        streams_max: 3,
        ..Settings::server()
    };
    run(their_client_is_echoed(
        &sizes(40),
        ours,
        H2Client::default(),
        Cuts::new(2, 3000),
    ));
}

#[test]
fn a_reset_of_either_side_reaches_the_other_with_its_code() {
    run(async {
        let (here, there) = tokio::io::duplex(1 << 16);
        let mut session = Session::server(here, Settings::server(), Cuts::new(1, 1000));
        let client = tokio::spawn(async move {
            let (mut client, driver) = H2Client::default().connect(there).await;
            // One that we reset after some bytes went both ways.
            let (mut send, mut body) = client.tunnel().await;
            send.send_data(Bytes::from_static(b"hello"), false).expect("send");
            assert_eq!(oracle::read(&mut body, 5).await, b"hello");
            send.send_reset(h2::Reason::CANCEL);
            drop((send, body));
            // One that the server resets.
            let (mut send, mut body) = client.tunnel().await;
            send.send_data(Bytes::from_static(b"reset me"), false)
                .expect("send");
            let error = loop {
                match body.data().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error,
                    None => panic!("a reset is no end"),
                }
            };
            assert_eq!(error.reason(), Some(h2::Reason::CONNECT_ERROR));
            drop((send, body, client));
            driver.await.expect("driver").expect("an orderly end");
        });
        session.run_until(|session| session.resets().len() == 1).await;
        assert_eq!(session.resets(), [ErrorCode::Cancel]);
        session
            .run_until(|session| session.last_received() == b"reset me")
            .await;
        session.reset_last(ErrorCode::ConnectError);
        session.run_until_closed().await;
        client.await.expect("client");
        assert!(session.connection.is_idle());
    });
}

#[test]
fn a_reset_of_their_server_and_of_our_client_arrive_too() {
    run(async {
        let (here, there) = tokio::io::duplex(1 << 16);
        let server = tokio::spawn(async move {
            let mut connection = H2Server::default().accept(there).await;
            let (request, mut respond) = connection.accept().await.expect("stream").expect("stream");
            let sender = respond
                .send_response(http::Response::new(()), false)
                .expect("response");
            let mut body = request.into_body();
            let driver = tokio::spawn(async move { while connection.accept().await.is_some() {} });
            assert_eq!(
                oracle::read(&mut body, pattern(0, 100).len()).await,
                pattern(0, 100)
            );
            let error = body.data().await.expect("reset").expect_err("reset");
            assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
            drop(sender);
            driver.await.expect("driver");
        });
        let mut session = Session::client(here, Settings::client(), Cuts::new(1, 1000));
        session.send_open_end(0, pattern(0, 100));
        session
            .run_until(|session| session.responses() == 1 && session.unsent() == 0)
            .await;
        session.reset_last(ErrorCode::Cancel);
        session.flush().await;
        session.close().await;
        server.await.expect("server");

        let (here, there) = tokio::io::duplex(1 << 16);
        let server = tokio::spawn(async move {
            let mut connection = H2Server::default().accept(there).await;
            let (_request, mut respond) = connection.accept().await.expect("stream").expect("stream");
            let mut sender = respond
                .send_response(http::Response::new(()), false)
                .expect("response");
            sender.send_reset(h2::Reason::REFUSED_STREAM);
            while connection.accept().await.is_some() {}
        });
        let mut session = Session::client(here, Settings::client(), Cuts::new(1, 1000));
        session.send_open_end(0, Vec::new());
        session.run_until(|session| !session.resets().is_empty()).await;
        assert_eq!(session.resets(), [ErrorCode::RefusedStream]);
        session.close().await;
        server.await.expect("server");
    });
}

#[test]
fn pings_pass_both_ways() {
    run(async {
        let (here, there) = tokio::io::duplex(1 << 16);
        let mut session = Session::server(here, Settings::server(), Cuts::new(1, 5));
        session.connection.ping(*b"our ping");
        let client = tokio::spawn(async move {
            let (client, mut driver) = H2Client::default().handshake(there).await;
            let mut pings = driver.ping_pong().expect("ping");
            let driver = tokio::spawn(driver);
            pings.ping(h2::Ping::opaque()).await.expect("pong");
            drop(client);
            driver.await.expect("driver").expect("an orderly end");
        });
        session.run_until_closed().await;
        assert_eq!(session.pongs(), [*b"our ping"]);
        client.await.expect("client");
    });
}

#[test]
fn a_graceful_goaway_of_their_server_lets_live_streams_finish() {
    run(async {
        let (here, there) = tokio::io::duplex(1 << 16);
        let server = tokio::spawn(async move {
            let mut connection = H2Server::default().accept(there).await;
            let (request, respond) = connection.accept().await.expect("stream").expect("stream");
            let echo = tokio::spawn(oracle::echo_stream(request, respond));
            connection.graceful_shutdown();
            while connection.accept().await.is_some() {}
            echo.await.expect("echo");
        });
        let mut session = Session::client(here, Settings::client(), Cuts::new(1, 1000));
        session.send_open_end(0, pattern(0, 50_000));
        session
            .run_until(|session| session.connection.is_going_away())
            .await;
        assert!(!session.connection.can_open());
        session.finish(0);
        session.run_until(|session| session.finished() == 1).await;
        assert!(session.received(0) == pattern(0, 50_000));
        session.run_until_closed().await;
        server.await.expect("server");
    });
}

#[test]
fn our_goaway_lets_the_clients_live_streams_finish_and_refuses_new_ones() {
    run(async {
        let (here, there) = tokio::io::duplex(1 << 16);
        let mut session = Session::server(here, Settings::server(), Cuts::new(1, 1000));
        let client = tokio::spawn(async move {
            let (mut client, driver) = H2Client::default().connect(there).await;
            let (mut send, mut body) = client.tunnel().await;
            send.send_data(Bytes::from(pattern(0, 10)), false).expect("send");
            assert_eq!(
                oracle::read(&mut body, pattern(0, 10).len()).await,
                pattern(0, 10)
            );
            send.send_data(Bytes::from_static(b"now"), false).expect("send");
            // The GOAWAY arrives before the echo.
            assert_eq!(oracle::read(&mut body, 3).await, b"now");
            assert!(client.try_tunnel().await.is_err());
            send.send_data(Bytes::from_static(b"bye"), true).expect("send");
            assert_eq!(oracle::read(&mut body, 3).await, b"bye");
            oracle::read_end(&mut body).await;
            drop((send, body, client));
            driver.await.expect("driver").expect("an orderly end");
        });
        session
            .run_until(|session| session.last_received().len() == 10)
            .await;
        session.connection.goaway(ErrorCode::NoError, "draining");
        session.run_until_closed().await;
        client.await.expect("client");
        assert_eq!(session.finished(), 1);
    });
}

#[test]
fn the_engine_speaks_with_itself() {
    run(async {
        let (here, there) = tokio::io::duplex(1 << 16);
        let mut server = Session::server(there, Settings::server(), Cuts::new(8, 5000));
        let server = tokio::spawn(async move {
            server.run_until_closed().await;
            server.connection.is_idle()
        });
        let mut session = Session::client(here, Settings::client(), Cuts::new(9, 5000));
        let sizes = sizes(300);
        for (key, size) in sizes.iter().enumerate() {
            session.send_when_possible(key as u32, pattern(key as u32, *size));
        }
        session
            .run_until(|session| session.finished() == sizes.len())
            .await;
        for (key, size) in sizes.iter().enumerate() {
            assert!(
                session.received(key as u32) == pattern(key as u32, *size),
                "stream {key}"
            );
        }
        session.close().await;
        assert!(server.await.expect("server"));
    });
}
