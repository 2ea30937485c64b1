//! Peers that are not who they should be are refused, and the log says why.

use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use uztunnel::tls::fake_ca::FakeCa;
use uztunnel_rig::{Family, Membership, PodSpec, World, http};

use crate::openssl::{Credentials, HOUR, Peer};
use crate::setup::{BODY_BYTES, HTTP_PORT, authority, plan, serve_http, start, two_nodes};

const FRIEND: &str = "spiffe://cluster.local/ns/shop/sa/friend";
const FOREIGNER: &str = "spiffe://elsewhere.org/ns/shop/sa/friend";

/// An authority that nobody trusts.
fn foreign_authority() -> FakeCa {
    let key = KeyPair::generate().expect("a key");
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = root.self_signed(&key).expect("a root");
    FakeCa::with_root(&certificate.pem(), &key.serialize_pem()).expect("an authority")
}

fn assert_still_served(world: &World) {
    let _server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let response = world
        .pod("client")
        .run(async move { http::get(target, "/").await });
    assert_eq!(response.expect("a response").body.len(), BODY_BYTES);
}

#[test]
fn a_client_that_is_refused_on_15008_leaves_the_reason_in_the_log() {
    let world = two_nodes();
    let now = SystemTime::now();
    let valid = Credentials::valid(&world, FRIEND).arguments();
    let expired =
        Credentials::issue(&world, &authority(&world), FRIEND, now - 2 * HOUR, now - HOUR).arguments();
    let foreign =
        Credentials::issue(&world, &foreign_authority(), FRIEND, now - HOUR, now + HOUR).arguments();
    let foreigner = Credentials::valid(&world, FOREIGNER).arguments();
    let with = |arguments: &[String], more: &[&str]| {
        let more = more.iter().map(|argument| (*argument).to_owned());
        arguments.iter().cloned().chain(more).collect::<Vec<String>>()
    };
    let cases = [
        (
            with(&foreigner, &["-alpn", "h2"]),
            "did not present the expected trustdomain",
        ),
        (with(&expired, &["-alpn", "h2"]), "expired at"),
        (with(&foreign, &["-alpn", "h2"]), "unknown CA"),
        (with(&[], &["-alpn", "h2"]), "no certificate"),
        (with(&valid, &["-alpn", "h2", "-tls1_2"]), "TLS 1.3"),
        (with(&valid, &["-alpn", "http/1.1"]), "ALPN"),
    ];
    let target = world.pod("server").address(Family::V4, 15008);
    for (arguments, expected) in cases {
        let mut peer = Peer::connect(&world.pod("stranger").namespace, target, &arguments);
        let logged = world.nodes[1].proxy().logs.wait_for_access(expected, |record| {
            record.message == "connection failed" && record.field("error").contains(expected)
        });
        let record = logged.expect("a reason in the log");
        assert!(record.field("error").starts_with("tls error: "), "{record:?}");
        assert_eq!(record.level, "warn");
        peer.wait_until_over();
    }
    assert_still_served(&world);
}

#[test]
fn garbage_on_15008_harms_nobody_else() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = two_nodes();
    let target = world.pod("server").address(Family::V4, 15008);
    let mut client_hello_cut_short = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc];
    client_hello_cut_short.resize(300, 0);
    let garbage: [Vec<u8>; 5] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0x16, 3, 1, 0xff, 0xff, 0, 0, 0],
        vec![0; 4096],
        client_hello_cut_short,
    ];
    for bytes in garbage {
        world.pod("stranger").run(async move {
            let mut stream = tokio::net::TcpStream::connect(target).await.expect("connected");
            // The proxy may refuse before all of it was taken.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
        });
        assert_still_served(&world);
    }
}

/// A world in which the mesh file promises a tunnel to `impostor`, and openssl answers there.
fn world_with_impostor() -> World {
    start(plan().pod(PodSpec::new("impostor", 1).membership(Membership::Unredirected)))
}

#[test]
fn a_server_that_is_refused_leaves_the_reason_in_the_log() {
    let world = world_with_impostor();
    let now = SystemTime::now();
    let own = world.pod("impostor").identity();
    let h2: &[&str] = &["-alpn", "h2", "-tls1_3"];
    let valid = || Credentials::valid(&world, &own);
    let cases = [
        (
            Credentials::valid(&world, FRIEND),
            h2,
            "did not present the expected SAN",
        ),
        (
            Credentials::issue(&world, &authority(&world), &own, now - 2 * HOUR, now - HOUR),
            h2,
            "expired at",
        ),
        (
            Credentials::issue(&world, &foreign_authority(), &own, now - HOUR, now + HOUR),
            h2,
            "unknown CA",
        ),
        (valid(), &["-alpn", "h2", "-tls1_2"], "TLS 1.3"),
        (valid(), &["-alpn", "http/1.1", "-tls1_3"], "does not speak h2"),
    ];
    for (credentials, arguments, expected) in cases {
        let _server = Peer::listen(&world.pod("impostor").namespace, &credentials, arguments);
        let target = world.pod("impostor").address(Family::V4, HTTP_PORT);
        let failed = world
            .pod("client")
            .run(async move { http::get(target, "/").await });
        assert!(failed.is_err(), "{failed:?}");
        let logged = world.nodes[0].proxy().logs.wait_for_access(expected, |record| {
            record.level == "error" && record.field("error").contains(expected)
        });
        let record = logged.expect("a reason in the log");
        assert!(record.field("error").starts_with("tls error: "), "{record:?}");
        // A refused dial is remembered for a moment; the next case must dial again.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    assert_still_served(&world);
}
