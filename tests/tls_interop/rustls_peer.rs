//! Against stock rustls, in memory.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{
    CipherSuite, CipherSuiteCommon, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error,
    ServerConfig, ServerConnection, SignatureScheme, SupportedCipherSuite, Tls13CipherSuite,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{MODES, Ours, ROLES, Role, cart, count_records, issued, till};
use uztunnel::tls::{CertifiedIdentity, RecordMode};

const AES_256: CipherSuite = CipherSuite::TLS13_AES_256_GCM_SHA384;
const AES_128: CipherSuite = CipherSuite::TLS13_AES_128_GCM_SHA256;

/// rustls with one suite, updating its key after `records_max` records.
pub(crate) fn provider(suite: CipherSuite, records_max: u64) -> Arc<CryptoProvider> {
    let provider = default_provider();
    let limited = provider
        .cipher_suites
        .iter()
        .find_map(|candidate| match candidate {
            SupportedCipherSuite::Tls13(tls13) if tls13.common.suite == suite => Some(Tls13CipherSuite {
                common: CipherSuiteCommon {
                    confidentiality_limit: records_max,
                    ..tls13.common
                },
                ..**tls13
            }),
            _ => None,
        });
    // rustls wants suites that live for ever; a test process does not.
    let limited: &'static Tls13CipherSuite = Box::leak(Box::new(limited.expect("rustls has it")));
    Arc::new(CryptoProvider {
        cipher_suites: vec![SupportedCipherSuite::Tls13(limited)],
        ..provider
    })
}

/// A client that takes any server: who it talks to is not what is tested here.
#[derive(Debug)]
pub(crate) struct TakesAnybody(pub(crate) Arc<CryptoProvider>);

impl ServerCertVerifier for TakesAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        panic!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

pub(crate) fn client_config(provider: Arc<CryptoProvider>, identity: &CertifiedIdentity) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakesAnybody(provider)))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certificates.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

pub(crate) fn server_config(provider: Arc<CryptoProvider>, identity: &CertifiedIdentity) -> ServerConfig {
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider.clone())
        .build()
        .expect("roots");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("suites for TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certificates.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

pub(crate) fn client(config: ClientConfig) -> Connection {
    let name = ServerName::try_from("peer.test").expect("a name");
    Connection::Client(ClientConnection::new(Arc::new(config), name).expect("client"))
}

pub(crate) fn server(config: ServerConfig) -> Connection {
    Connection::Server(ServerConnection::new(Arc::new(config)).expect("server"))
}

/// The opposite of what we are.
fn peer(our_role: Role, suite: CipherSuite, records_max: u64) -> Connection {
    let provider = provider(suite, records_max);
    let mut peer = match our_role {
        Role::Server => client(client_config(provider, &issued(&cart()))),
        Role::Client => server(server_config(provider, &issued(&till()))),
    };
    peer.set_buffer_limit(None);
    peer
}

pub(crate) fn sent_by(peer: &mut Connection) -> Vec<u8> {
    let mut wire = Vec::new();
    while peer.wants_write() {
        peer.write_tls(&mut wire).expect("memory");
    }
    wire
}

pub(crate) fn give(peer: &mut Connection, mut wire: &[u8], received: &mut Vec<u8>) -> Result<(), Error> {
    while !wire.is_empty() {
        peer.read_tls(&mut wire).expect("memory");
        let plaintext = peer.process_new_packets()?.plaintext_bytes_to_read();
        let at = received.len();
        received.resize(at + plaintext, 0);
        peer.reader().read_exact(&mut received[at..]).expect("announced");
    }
    Ok(())
}

/// Moves bytes both ways, in pieces, until neither side has any.
fn settle(
    ours: &mut Ours,
    peer: &mut Connection,
    peer_received: &mut Vec<u8>,
    piece_bytes: &mut dyn FnMut() -> usize,
) {
    loop {
        let to_peer = ours.take_outbox();
        let to_us = sent_by(peer);
        if to_peer.is_empty() && to_us.is_empty() {
            return;
        }
        for pieces in [(&to_us, true), (&to_peer, false)] {
            let (mut wire, is_for_us) = (&pieces.0[..], pieces.1);
            while !wire.is_empty() {
                let (piece, rest) = wire.split_at(piece_bytes().clamp(1, wire.len()));
                wire = rest;
                if is_for_us {
                    ours.receive(piece).expect("an honest peer");
                } else {
                    give(peer, piece, peer_received).expect("we are honest");
                }
            }
        }
    }
}

fn shake(ours: &mut Ours, peer: &mut Connection, piece_bytes: &mut dyn FnMut() -> usize) {
    ours.receive(&[]).expect("a first flight");
    settle(ours, peer, &mut Vec::new(), piece_bytes);
    assert!(ours.is_open() && !peer.is_handshaking());
}

fn random_message(random: &mut fastrand::Rng) -> Vec<u8> {
    let bytes = match random.u8(..4) {
        0 => random.usize(1..4),
        1 => random.usize(1..2000),
        2 => random.usize(16_380..16_390),
        _ => random.usize(1..40_000),
    };
    (0..bytes).map(|_| random.u8(..)).collect()
}

/// Random messages both ways at once.
fn converse(ours: &mut Ours, peer: &mut Connection, seed: u64, rounds: usize) {
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut pieces = fastrand::Rng::with_seed(seed + 1);
    let (mut to_peer, mut to_us, mut peer_received) = (Vec::new(), Vec::new(), Vec::new());
    ours.received.clear();
    for _ in 0..rounds {
        for _ in 0..random.usize(..4) {
            let message = random_message(&mut random);
            // In place a record holds 16,384 bytes; longer messages exercise the split.
            ours.send(&message, random.bool());
            to_peer.extend_from_slice(&message);
        }
        for _ in 0..random.usize(..4) {
            let message = random_message(&mut random);
            peer.writer().write_all(&message).expect("memory");
            to_us.extend_from_slice(&message);
        }
        let largest = [7, 300, 20_000, 200_000][pieces.usize(..4)];
        settle(ours, peer, &mut peer_received, &mut || pieces.usize(1..largest));
    }
    assert!(ours.received == to_us, "every byte from the peer, in order");
    assert!(peer_received == to_peer, "every byte to the peer, in order");
}

#[test]
fn sessions_with_rustls_survive_key_updates_both_ways_under_random_chunking() {
    for (seed, (role, mode)) in (1..).zip(
        ROLES
            .iter()
            .flat_map(|role| MODES.iter().map(move |mode| (*role, *mode))),
    ) {
        for suite in [AES_256, AES_128] {
            let mut ours = Ours::new(role, mode, 16);
            let mut peer = peer(role, suite, 16);
            shake(&mut ours, &mut peer, &mut || 1000);
            assert_eq!(
                peer.negotiated_cipher_suite().map(|suite| suite.suite()),
                Some(suite)
            );
            converse(&mut ours, &mut peer, 100 * seed, 60);
            assert!(
                ours.controls > 5,
                "rustls updated its key {} times",
                ours.controls
            );
        }
    }
}

#[test]
fn our_key_updates_are_where_the_limit_puts_them() {
    for role in ROLES {
        let mut ours = Ours::new(role, RecordMode::Own, 16);
        let mut peer = peer(role, AES_256, 1 << 24);
        shake(&mut ours, &mut peer, &mut || 1000);
        for _ in 0..150 {
            ours.send(b"x", false);
        }
        let wire = ours.take_outbox();
        assert_eq!(
            count_records(&wire),
            150 + 9,
            "one key update before every 16th record"
        );
        let mut received = Vec::new();
        give(&mut peer, &wire, &mut received).expect("rustls follows");
        assert_eq!(received, [b'x'; 150]);
    }
}

#[test]
fn bytes_may_arrive_one_by_one() {
    for role in ROLES {
        for mode in MODES {
            let mut ours = Ours::new(role, mode, 16);
            let mut peer = peer(role, AES_128, 16);
            shake(&mut ours, &mut peer, &mut || 1);
            let mut peer_received = Vec::new();
            for round in 0..40u8 {
                ours.send(&[round; 100], round % 2 == 0);
                peer.writer().write_all(&[round; 50]).expect("memory");
                settle(&mut ours, &mut peer, &mut peer_received, &mut || 1);
            }
            assert_eq!((ours.received.len(), peer_received.len()), (2000, 4000));
        }
    }
}

#[test]
fn data_right_behind_the_handshake_is_not_lost() {
    for mode in MODES {
        // A client may send with its Finished; all of it arrives in one piece.
        let mut ours = Ours::new(Role::Server, mode, 16);
        let mut peer = peer(Role::Server, AES_256, 16);
        let message = vec![9; 100_000];
        peer.writer().write_all(&message).expect("memory");
        settle(&mut ours, &mut peer, &mut Vec::new(), &mut || usize::MAX);
        assert!(ours.received == message);

        // A server that sends tickets and data with its answer to our Finished.
        let mut ours = Ours::new(Role::Client, mode, 16);
        let mut peer = self::peer(Role::Client, AES_256, 1 << 24);
        peer.writer().write_all(&message).expect("memory");
        ours.receive(&[]).expect("hello");
        settle(&mut ours, &mut peer, &mut Vec::new(), &mut || usize::MAX);
        assert!(ours.received == message);
        assert_eq!(ours.controls, 1, "both tickets of rustls stand in one record");
    }
}

#[test]
fn key_updates_that_rustls_is_told_to_send_are_answered() {
    for role in ROLES {
        let mut ours = Ours::new(role, RecordMode::Own, 1 << 20);
        let mut peer = peer(role, AES_256, 1 << 24);
        shake(&mut ours, &mut peer, &mut || 1000);
        ours.controls = 0;
        for round in 1..=20 {
            peer.refresh_traffic_keys().expect("TLS 1.3");
            ours.receive(&sent_by(&mut peer)).expect("a key update");
            assert_eq!(ours.controls, round);
            let answer = ours.take_outbox();
            assert_eq!(count_records(&answer), 1, "rustls asks for an update in return");
            give(&mut peer, &answer, &mut Vec::new()).expect("the answer");
        }
        converse(&mut ours, &mut peer, 7, 5);
    }
}

#[test]
fn close_notify_is_understood_both_ways() {
    for role in ROLES {
        for mode in MODES {
            let mut ours = Ours::new(role, mode, 64);
            let mut peer = peer(role, AES_256, 1 << 24);
            shake(&mut ours, &mut peer, &mut || 1000);
            let mut outbox = std::mem::take(&mut ours.outbox);
            ours.channel().close_notify(&mut outbox);
            let mut wire = outbox.filled();
            peer.read_tls(&mut wire).expect("memory");
            assert!(peer.process_new_packets().expect("clean").peer_has_closed());
            peer.send_close_notify();
            ours.receive(&sent_by(&mut peer)).expect("clean");
            assert!(ours.closed);
        }
    }
}

#[test]
fn the_hybrid_post_quantum_group_is_taken_when_both_have_it() {
    for role in ROLES {
        let mut ours = Ours::new(role, RecordMode::Own, 64);
        let mut peer = peer(role, AES_256, 1 << 24);
        shake(&mut ours, &mut peer, &mut || 1000);
        let group = peer.negotiated_key_exchange_group().map(|group| group.name());
        // As a client rustls' default offers X25519 first and alone; as a server it takes our first.
        let expected = match role {
            Role::Client => rustls::NamedGroup::X25519MLKEM768,
            Role::Server => rustls::NamedGroup::X25519,
        };
        assert_eq!(group, Some(expected));
    }
}
