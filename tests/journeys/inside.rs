//! Sessions inside of those to a gateway: what becomes of what they carry when their own peer says goodbye, when a
//! policy forbids it, and when the peer's certificate is taken back. The session to the gateway goes on each time.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uztunnel_rig::hbone::{HboneServer, PORT as HBONE_PORT};
use uztunnel_rig::istiod::AUTHORIZATION;
use uztunnel_rig::istiod::messages::security;
use uztunnel_rig::{Family, wait_until};

use crate::networks::{Networks, Plan, credentials};
use crate::policies::{deny, principal};

fn wait_for_reset(networks: &Networks, pod: &str, mut stream: TcpStream) {
    let ended = networks
        .world
        .pod(pod)
        .run(async move { stream.read_u8().await.map_err(|error| error.kind()) });
    assert_eq!(ended, Err(io::ErrorKind::ConnectionReset));
}

/// Still the same connection, up to its orderly end.
fn finish(networks: &Networks, pod: &str, stream: TcpStream) {
    let mut stream = networks.goes_on(pod, stream);
    networks.world.pod(pod).run(async move {
        stream.shutdown().await.expect("an open socket");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("an orderly end");
        assert!(rest.is_empty(), "{rest:?}");
    });
}

/// One session to the gateway, which has not ended.
fn assert_gateway_undisturbed(networks: &Networks, sessions: usize) {
    assert_eq!(networks.gateway.sessions(), sessions);
    assert!(networks.gateway.connections_ended().is_empty());
}

#[test]
fn a_workload_behind_a_gateway_that_says_goodbye_keeps_what_it_carries_and_gets_nothing_new() {
    let networks = Plan::default().start();
    let world = &networks.world;
    let workload = HboneServer::start(world.pod("remote"), credentials(world, "server"), 200);
    networks
        .gateway
        .lead_to(world.pod("remote").address(Family::V4, HBONE_PORT));
    let kept = networks.open("client");
    assert_eq!(networks.exchange("client").0, b"a line\n");
    assert_eq!(workload.sessions(), 1, "they share it");
    workload.say_goodbye();
    wait_until("connections over another session", || {
        assert_eq!(networks.exchange("client").0, b"a line\n");
        (workload.sessions() == 2).then_some(())
    });
    assert!(
        workload.connections_ended().is_empty(),
        "the first carries a connection"
    );
    finish(&networks, "client", kept);
    wait_until("the old session to end", || {
        (workload.connections_ended() == [Ok(())]).then_some(())
    });
    assert_gateway_undisturbed(&networks, 1);
}

#[test]
fn a_policy_of_the_other_network_closes_live_connections_through_a_gateway_and_no_others() {
    let networks = Plan::default().start();
    let world = &networks.world;
    let _server = networks.serve_echo();
    let (denied, other) = (networks.open("client"), networks.open("cart"));
    let about_client = deny(
        "no-entry",
        security::Match {
            principals: vec![principal("client")],
            ..security::Match::default()
        },
    );
    world.istiod().update(AUTHORIZATION, vec![about_client]);
    wait_for_reset(&networks, "client", denied);
    let closed = networks.complete(1, "the closed connection", |record| {
        record.field("error") == "connection closed due to policy change"
    });
    assert_eq!(closed.field("src.identity"), world.pod("client").identity());

    let refused = world.pod("client").spawn({
        let target = networks.service();
        async move {
            let mut stream = TcpStream::connect(target).await?;
            stream.write_all(b"a line\n").await?;
            stream.read_u8().await
        }
    });
    let refused = world.pod("client").run(refused).expect("no panic");
    assert!(refused.is_err(), "{refused:?}");
    networks.complete(0, "the refused connection", |record| {
        let gateway = world.pod("gateway").address(Family::V4, HBONE_PORT);
        record.field("error")
            == format!("behind the network gateway {gateway}: http status: 401 Unauthorized")
    });
    finish(&networks, "cart", other);
    assert_gateway_undisturbed(&networks, 2);
}

#[test]
fn a_workload_behind_a_gateway_whose_certificate_is_taken_back_is_cut_off_and_the_gateway_is_not() {
    let plan = Plan {
        looks_for_revoked: true,
        ..Plan::default()
    };
    let networks = plan.start();
    let world = &networks.world;
    let _server = networks.serve_echo();
    let live = networks.open("client");
    let server = world.pod("server").identity();
    let list = world.istiod().authority().revocation_list(&[&server]);
    let put = |content: &str| {
        let next = networks.revoked().with_extension("next");
        std::fs::write(&next, content).expect("written");
        std::fs::rename(next, networks.revoked()).expect("renamed");
    };
    put(&list.expect("a list"));
    wait_for_reset(&networks, "client", live);
    let reason = format!("connection closed: peer certificate revoked by CRL (identity {server}");
    networks.complete(0, "the connection that was cut", |record| {
        record.level == "error" && record.field("error").contains(&reason)
    });
    assert_gateway_undisturbed(&networks, 1);

    put("");
    let answer = wait_until("the workload to be reached again", || {
        let target = networks.service();
        let said = world.pod("client").run(async move {
            let mut stream = TcpStream::connect(target).await?;
            stream.write_all(b"a line\n").await?;
            stream.read_u8().await
        });
        said.ok()
    });
    assert_eq!(answer, b'a');
    assert_gateway_undisturbed(&networks, 1);
}
