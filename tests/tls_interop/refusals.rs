//! Which peers are refused, in which words, and what they are told.

use std::sync::Arc;
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CipherSuite, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::rustls_peer::{self, give, sent_by};
use super::{MODES, Ours, Role, cart, issued, till};
use uztunnel::clock;
use uztunnel::identity::Identity;
use uztunnel::tls::{CertifiedIdentity, FakeCa, Handshake, HandshakeError, Progress, RecordMode, TlsError};

const DAY: Duration = Duration::from_secs(86_400);

/// How a handshake between two of ours ended.
pub(crate) struct Ended {
    pub(crate) client: Result<(), TlsError>,
    pub(crate) server: Result<(), TlsError>,
}

/// Runs it until both are open or one failed; what a failed side leaves in its outbox is still delivered.
pub(crate) fn shake(client: Handshake, server: Handshake) -> Ended {
    let (mut client, mut server) = (Ours::of(client), Ours::of(server));
    let mut ended = Ended {
        client: client.receive(&[]),
        server: Ok(()),
    };
    loop {
        let (to_server, to_client) = (client.take_outbox(), server.take_outbox());
        if to_server.is_empty() && to_client.is_empty() {
            return ended;
        }
        if !to_server.is_empty() && ended.server.is_ok() {
            ended.server = server.receive(&to_server);
        }
        if !to_client.is_empty() && ended.client.is_ok() {
            ended.client = client.receive(&to_client);
        }
    }
}

fn shake_as(
    client: &CertifiedIdentity,
    server: &CertifiedIdentity,
    accepted: &[Identity],
    mode: RecordMode,
) -> Ended {
    shake(
        Handshake::client(client, accepted.into(), mode).expect("client"),
        Handshake::server(server, mode).expect("server"),
    )
}

pub(crate) fn text(result: Result<(), TlsError>) -> String {
    result.expect_err("refused").to_string()
}

/// The other side's words for an alert that came during, or right after, its handshake.
pub(crate) fn assert_told(result: Result<(), TlsError>, expected: AlertDescription) {
    match result {
        Err(TlsError::Handshake(HandshakeError::RefusedByPeer(alert)) | TlsError::Alert(alert)) => {
            assert_eq!(alert, expected);
        }
        other => panic!("expected to be told {expected:?}, got {other:?}"),
    }
}

/// An authority that nobody knows, and the means to issue odd certificates.
struct OtherCa {
    ca: FakeCa,
    issuer: Issuer<'static, KeyPair>,
}

impl OtherCa {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let key_pem = key.serialize_pem();
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_pem = root.self_signed(&key).expect("root").pem();
        Self {
            ca: FakeCa::with_root(&root_pem, &key_pem).expect("an authority"),
            issuer: Issuer::from_ca_cert_pem(&root_pem, key).expect("issuer"),
        }
    }

    fn issue(&self, identity: &Identity) -> CertifiedIdentity {
        self.ca.issue(identity, clock::wall()).expect("issued")
    }

    /// A certificate with these URI names, the first of which is `identity`.
    fn issue_named(
        &self,
        identity: &Identity,
        names: &[&str],
        usages: &[ExtendedKeyUsagePurpose],
    ) -> CertifiedIdentity {
        let key = KeyPair::generate().expect("key");
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = names
            .iter()
            .map(|name| SanType::URI(Ia5String::try_from(*name).expect("ASCII")))
            .collect();
        leaf.extended_key_usages = usages.to_vec();
        let chain = vec![leaf.signed_by(&key, &self.issuer).expect("signed").der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        CertifiedIdentity::new(identity.clone(), chain, key, vec![self.ca.root().clone()]).expect("usable")
    }
}

#[test]
fn a_server_with_another_identity_is_refused_and_told() {
    for mode in MODES {
        let expected = [cart(), Identity::new("cluster.local", "shop", "desk")];
        let ended = shake_as(&issued(&cart()), &issued(&till()), &expected, mode);
        assert_eq!(
            text(ended.client),
            "tls handshake error: identity verification error: peer did not present the expected SAN \
             (spiffe://cluster.local/ns/shop/sa/cart, spiffe://cluster.local/ns/shop/sa/desk), \
             got spiffe://cluster.local/ns/shop/sa/till"
        );
        assert_told(ended.server, AlertDescription::CertificateUnknown);
    }
}

#[test]
fn without_an_expectation_no_server_is_accepted() {
    let ended = shake_as(&issued(&cart()), &issued(&till()), &[], RecordMode::Own);
    assert!(text(ended.client).contains("expected SAN (none), got spiffe://cluster.local/ns/shop/sa/till"));
}

#[test]
fn a_client_of_another_trust_domain_is_refused_and_told() {
    for mode in MODES {
        let stranger = Identity::new("elsewhere.org", "shop", "cart");
        let ended = shake_as(&issued(&stranger), &issued(&till()), &[till()], mode);
        assert_eq!(
            text(ended.server),
            "tls handshake error: identity verification error: peer did not present the expected trustdomain \
             (cluster.local), got spiffe://elsewhere.org/ns/shop/sa/cart"
        );
        assert_told(ended.client, AlertDescription::CertificateUnknown);
    }
}

#[test]
fn expired_certificates_are_refused_on_both_sides() {
    let (ca, now) = (FakeCa::new(), clock::wall());
    let expired = |identity: &Identity| {
        ca.issue_valid(identity, now - 2 * DAY, now - DAY)
            .expect("issued")
    };
    for mode in MODES {
        let ended = shake_as(&issued(&cart()), &expired(&till()), &[till()], mode);
        let message = text(ended.client);
        assert!(
            message.starts_with("tls handshake error: peer's certificate expired at 20"),
            "{message}"
        );
        assert_told(ended.server, AlertDescription::CertificateExpired);

        let ended = shake_as(&expired(&cart()), &issued(&till()), &[till()], mode);
        let message = text(ended.server);
        assert!(
            message.starts_with("tls handshake error: peer's certificate expired at 20"),
            "{message}"
        );
        assert_told(ended.client, AlertDescription::CertificateExpired);
    }
}

#[test]
fn a_certificate_of_tomorrow_is_refused() {
    let (ca, now) = (FakeCa::new(), clock::wall());
    let early = ca.issue_valid(&till(), now + DAY, now + 2 * DAY).expect("issued");
    let ended = shake_as(&issued(&cart()), &early, &[till()], RecordMode::Own);
    let message = text(ended.client);
    assert!(
        message.starts_with("tls handshake error: peer's certificate is valid from 20"),
        "{message}"
    );
}

#[test]
fn an_unknown_ca_is_refused_on_both_sides() {
    let other = OtherCa::new();
    let expected = "tls handshake error: peer's certificate was issued by an unknown CA \
                    (none of the roots that came with our own certificate)";
    for mode in MODES {
        let ended = shake_as(&issued(&cart()), &other.issue(&till()), &[till()], mode);
        assert_eq!(text(ended.client), expected);
        assert_told(ended.server, AlertDescription::UnknownCA);
        // The server trusts its own root only; the client is made to trust the server's.
        let client = other
            .ca
            .sign(&cart(), clock::wall() - DAY, clock::wall() + DAY)
            .expect("signed");
        let roots = vec![FakeCa::new().root().clone()];
        let client = CertifiedIdentity::new(cart(), client.chain, client.key, roots).expect("usable");
        let ended = shake_as(&client, &issued(&till()), &[till()], mode);
        assert_eq!(text(ended.server), expected);
        assert_told(ended.client, AlertDescription::UnknownCA);
    }
}

#[test]
fn names_other_than_spiffe_are_skipped_and_any_identity_of_several_counts() {
    let other = OtherCa::new();
    let [first, second] = [till().to_string(), cart().to_string()];
    let server = other.issue_named(
        &till(),
        &[&first, "https://example.org/", "spiffe://odd", &second],
        &[],
    );
    let client = other.issue(&cart());
    for accepted in [till(), cart()] {
        let (mut client, mut server) = (
            Handshake::client(&client, Arc::new([accepted]), RecordMode::Own).expect("client"),
            Handshake::server(&server, RecordMode::Own).expect("server"),
        );
        let (mut to_server, mut to_client) = (Default::default(), Default::default());
        client.advance(&[], &mut to_server).expect("hello");
        server
            .advance(to_server.filled(), &mut to_client)
            .expect("answer");
        let done = client
            .advance(to_client.filled(), &mut to_server)
            .expect("accepted");
        assert_eq!(done, Progress::Done);
        let peer = client.finish().expect("established").peer;
        assert_eq!(peer.first(), &till());
        assert_eq!(peer.all(), [till(), cart()]);
        assert!(!peer.serial().is_empty());
    }
    let ended = shake_as(&client, &server, &[Identity::new("a", "b", "c")], RecordMode::Own);
    let message = text(ended.client);
    assert!(
        message.ends_with(&format!(
            "got {first}, https://example.org/, spiffe://odd, {second}"
        )),
        "{message}"
    );
}

#[test]
fn a_certificate_for_servers_only_is_no_client() {
    let other = OtherCa::new();
    let name = cart().to_string();
    let client = other.issue_named(&cart(), &[&name], &[ExtendedKeyUsagePurpose::ServerAuth]);
    let ended = shake_as(&client, &other.issue(&till()), &[till()], RecordMode::Own);
    let message = text(ended.server);
    assert!(
        message.starts_with("tls handshake error: peer's certificate is not acceptable"),
        "{message}"
    );
    assert_told(ended.client, AlertDescription::UnsupportedCertificate);
}

/// A rustls client that changes what it offers, against our server. Returns our error and what the peer made
/// of our answer.
fn odd_client(
    mode: RecordMode,
    change: impl FnOnce(&mut rustls::ClientConfig),
) -> (Result<(), TlsError>, Result<(), Error>, Ours) {
    let provider = rustls_peer::provider(CipherSuite::TLS13_AES_256_GCM_SHA384, 1 << 24);
    let mut config = rustls_peer::client_config(provider, &issued(&cart()));
    change(&mut config);
    let mut peer = rustls_peer::client(config);
    let mut ours = Ours::new(Role::Server, mode, 64);
    loop {
        let to_us = sent_by(&mut peer);
        let result = if to_us.is_empty() {
            Ok(())
        } else {
            ours.receive(&to_us)
        };
        let to_peer = ours.take_outbox();
        let peer_result = give(&mut peer, &to_peer, &mut Vec::new());
        if result.is_err() || peer_result.is_err() || (to_us.is_empty() && to_peer.is_empty()) {
            return (result, peer_result, ours);
        }
    }
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_client_without_a_certificate_is_refused_and_told() {
    for mode in MODES {
        let (error, told, _) = odd_client(mode, |config| {
            config.client_auth_cert_resolver = Arc::new(NoCertificate);
        });
        assert_eq!(
            text(error),
            "tls handshake error: peer presented no certificate (it has to, both sides authenticate)"
        );
        assert_eq!(
            told,
            Err(Error::AlertReceived(AlertDescription::CertificateRequired))
        );
    }
}

#[test]
fn a_client_of_another_application_protocol_is_refused_and_told() {
    for mode in MODES {
        let (error, told, _) = odd_client(mode, |config| config.alpn_protocols = vec![b"http/1.1".to_vec()]);
        assert_eq!(
            text(error),
            "tls handshake error: peer and we have no ALPN protocol in common (expected h2)"
        );
        assert_eq!(
            told,
            Err(Error::AlertReceived(AlertDescription::NoApplicationProtocol))
        );
    }
}

#[test]
fn a_client_without_alpn_is_accepted() {
    for mode in MODES {
        let (result, told, ours) = odd_client(mode, |config| config.alpn_protocols.clear());
        assert_eq!((result, told), (Ok(()), Ok(())));
        assert!(ours.is_open());
    }
}

#[test]
fn a_server_that_refuses_us_is_quoted() {
    for mode in MODES {
        let provider = rustls_peer::provider(CipherSuite::TLS13_AES_256_GCM_SHA384, 1 << 24);
        let mut config = rustls_peer::server_config(provider, &issued(&till()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut peer = rustls_peer::server(config);
        let mut ours = Ours::new(Role::Client, mode, 64);
        ours.receive(&[]).expect("hello");
        give(&mut peer, &ours.take_outbox(), &mut Vec::new()).expect_err("no protocol in common");
        let message = text(ours.receive(&sent_by(&mut peer)));
        assert_eq!(
            message,
            "tls handshake error: peer refused the handshake with the alert NoApplicationProtocol (120): \
             it does not speak h2"
        );
    }
}

#[test]
fn whoever_does_not_speak_tls_is_recognised_by_the_first_bytes() {
    for mode in MODES {
        for (garbage, shown) in [
            (&b"GET / HTTP/1.1\r\n"[..], "47 45 54 20 2f 20 48 54"),
            (b"\0", "00"),
            (b"\x16\x07\x01\x00\x00", "16 07 01 00 00"),
            (b"\x16\x03\x01\xff\xff", "16 03 01 ff ff"),
        ] {
            let mut handshake = Handshake::server(&issued(&till()), mode).expect("server");
            let error = handshake
                .advance(garbage, &mut Default::default())
                .expect_err("refused");
            assert_eq!(
                error.to_string(),
                format!("tls handshake error: peer does not speak TLS (it sent {shown})")
            );
            assert_eq!(
                handshake.advance(&[], &mut Default::default()),
                Err(error.clone())
            );
            assert_eq!(handshake.finish().expect_err("failed"), error);
        }
    }
}

#[test]
fn a_hello_of_16_mib_is_refused_at_its_start() {
    for mode in MODES {
        let mut handshake = Handshake::server(&issued(&till()), mode).expect("server");
        // A ClientHello that claims 16 MiB, in full records.
        let mut record = vec![0x16, 3, 1, 0x40, 0];
        record.resize(5 + 16_384, 0);
        record[5..9].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
        let error = handshake
            .advance(&record, &mut Default::default())
            .expect_err("refused");
        assert_eq!(
            error.to_string(),
            "tls handshake error: received corrupt message of type HandshakePayloadTooLarge"
        );
    }
}

#[test]
fn a_handshake_ends_only_when_it_is_done() {
    for mode in MODES {
        let handshake = Handshake::server(&issued(&till()), mode).expect("server");
        let error = handshake.finish().expect_err("nothing has happened yet");
        assert_eq!(error, TlsError::Handshake(HandshakeError::NotDone));
    }
}

#[test]
fn any_change_on_the_wire_breaks_the_handshake_of_one_side() {
    let (client, server) = (issued(&cart()), issued(&till()));
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..200 {
        let mode = MODES[round % 2];
        let mut client = Ours::of(Handshake::client(&client, Arc::new([till()]), mode).expect("client"));
        let mut server = Ours::of(Handshake::server(&server, mode).expect("server"));
        client.receive(&[]).expect("hello");
        let mut to_server = client.take_outbox();
        // Behind the record header and its version, which nobody has to look at.
        let at = random.usize(5..to_server.len());
        to_server[at] ^= 1 << random.u8(..8);
        let server_result = server.receive(&to_server);
        let client_result = client.receive(&server.take_outbox());
        assert!(
            server_result.is_err() || client_result.is_err() || !client.is_open(),
            "byte {at} was changed and nobody noticed"
        );
    }
}

#[test]
fn damage_in_any_flight_ends_in_an_error_or_a_working_session() {
    let (client, server) = (issued(&cart()), issued(&till()));
    let mut random = fastrand::Rng::with_seed(11);
    for round in 0..300 {
        let mode = MODES[round % 2];
        let mut client = Ours::of(Handshake::client(&client, Arc::new([till()]), mode).expect("client"));
        let mut server = Ours::of(Handshake::server(&server, mode).expect("server"));
        let mut damage = |flight: &mut Vec<u8>| {
            let at = random.usize(..flight.len());
            match random.u8(..4) {
                0 => flight[at] ^= 1 << random.u8(..8),
                1 => flight.insert(at, random.u8(..)),
                2 => drop(flight.remove(at)),
                _ => flight.truncate(at),
            }
        };
        let damaged = round / 2 % 3;
        client.receive(&[]).expect("hello");
        let mut result = Ok(());
        for flight in 0..3 {
            let (from, to) = if flight == 1 {
                (&mut server, &mut client)
            } else {
                (&mut client, &mut server)
            };
            let mut wire = from.take_outbox();
            if flight == damaged && !wire.is_empty() {
                damage(&mut wire);
            }
            result = result.and(to.receive(&wire));
            if result.is_err() {
                break;
            }
        }
        if result.is_ok() && client.is_open() && server.is_open() {
            client.send(b"all is well", false);
            server.receive(&client.take_outbox()).expect("the same keys");
            assert_eq!(server.received, b"all is well");
        }
    }
}

#[test]
fn a_chain_with_an_intermediate_is_accepted() {
    let other = OtherCa::new();
    let key = KeyPair::generate().expect("key");
    let mut middle = CertificateParams::default();
    middle.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    middle
        .distinguished_name
        .push(rcgen::DnType::CommonName, "the one in the middle");
    let middle_certificate = middle.signed_by(&key, &other.issuer).expect("signed");
    let middle_der: CertificateDer<'static> = middle_certificate.der().clone();
    let through = FakeCa::with_root(&middle_certificate.pem(), &key.serialize_pem()).expect("an authority");
    let now = clock::wall();
    let leaf = through.sign(&till(), now - DAY, now + DAY).expect("signed");
    let chain = vec![leaf.chain[0].clone(), middle_der];
    let roots = vec![other.ca.root().clone()];
    let server = CertifiedIdentity::new(till(), chain, leaf.key, roots).expect("usable");
    let ended = shake_as(&other.issue(&cart()), &server, &[till()], RecordMode::Own);
    assert_eq!((ended.client, ended.server), (Ok(()), Ok(())));
}
