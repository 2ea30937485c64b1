//! Records of a session, authentic ones and others, from a peer that stock rustls shook hands with. The first
//! octet chooses our record mode; then each step is an octet for its kind, one of length, and as many octets.
//!
//! The handshake makes random keys, so that one input meets other bytes on the wire each time; what must hold
//! does not depend on them.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::unbuffered::{ConnectionState, EncodeError};
use rustls::{ServerConfig, version};
use uztunnel::clock;
use uztunnel::identity::Identity;
use uztunnel::tls::record::{ALERT, APPLICATION_DATA, HANDSHAKE, Opener, Sealer};
use uztunnel::tls::{CertifiedIdentity, Channel, FakeCa, Handshake, Opened, Output, RecordMode, TlsError};

const RECORDS_MAX: u64 = 16;
/// Room for any record.
const ROOM: usize = 16_640;
const KEY_UPDATE: u8 = 24;

pub fn run(input: &[u8]) {
    let Some((&mode, mut steps)) = input.split_first() else {
        return;
    };
    let mode = if mode % 2 == 0 {
        RecordMode::Own
    } else {
        RecordMode::Buffered
    };
    let (mut ours, mut peer) = shake(mode);
    while let [kind, len, rest @ ..] = steps {
        let (content, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        steps = rest;
        let result = match kind % 7 {
            0 => open(&mut ours, content),
            1 => open_data(&mut ours, &peer.record(APPLICATION_DATA, content), content),
            2 => open_handshake(&mut ours, &mut peer, content),
            3 => open(&mut ours, &peer.record(ALERT, content)),
            4 => {
                let padded = [content, &[APPLICATION_DATA], &[0; 7]].concat();
                open_data(&mut ours, &peer.record(0, &padded), content)
            }
            5 => open_in_pieces(&mut ours, &peer.record(APPLICATION_DATA, content)),
            6 => peer.receives(&mut ours, content),
            _ => unreachable!("a remainder of 7"),
        };
        match result {
            Ok(()) => {}
            Err(Over::Refused(error)) => return assert_refusal_stays(&mut ours, &error),
            Err(Over::Closed) => return,
        }
    }
}

/// Why no further step makes sense.
enum Over {
    Refused(TlsError),
    Closed,
}

fn open(ours: &mut Channel, mut input: &[u8]) -> Result<(), Over> {
    let mut plain = [0; ROOM];
    loop {
        match ours.open(input, &mut plain).map_err(Over::Refused)? {
            Opened::Data { consumed, written } => {
                assert!(written <= ROOM);
                input = &input[consumed..];
            }
            Opened::Control { consumed } => input = &input[consumed..],
            Opened::Closed { consumed } => {
                assert!(consumed <= input.len());
                return Err(Over::Closed);
            }
            // A session would wait for the rest of the record, which never comes.
            Opened::Incomplete { need } => {
                assert!(need > input.len());
                return if input.is_empty() {
                    Ok(())
                } else {
                    Err(Over::Closed)
                };
            }
        }
    }
}

/// The content of an honest record arrives as it was sent.
fn open_data(ours: &mut Channel, record: &[u8], content: &[u8]) -> Result<(), Over> {
    let mut plain = [0; ROOM];
    match ours.open(record, &mut plain).map_err(Over::Refused)? {
        Opened::Data { consumed, written } => {
            assert_eq!(consumed, record.len());
            assert_eq!(&plain[..written], content);
        }
        Opened::Control { consumed } => {
            assert_eq!(consumed, record.len());
            assert!(content.is_empty());
        }
        Opened::Closed { .. } | Opened::Incomplete { .. } => panic!("the record is whole and holds data"),
    }
    Ok(())
}

/// When a KeyUpdate is taken, the peer has to use its next key as well.
fn open_handshake(ours: &mut Channel, peer: &mut Peer, content: &[u8]) -> Result<(), Over> {
    open(ours, &peer.record(HANDSHAKE, content))?;
    let mut messages = content;
    while let [message_type, high, middle, low, rest @ ..] = messages {
        if *message_type == KEY_UPDATE {
            peer.update_sending_key();
            return Ok(());
        }
        let len = u32::from_be_bytes([0, *high, *middle, *low]);
        messages = rest.get(usize::try_from(len).expect("24 bits")..).unwrap_or(&[]);
    }
    Ok(())
}

fn open_in_pieces(ours: &mut Channel, record: &[u8]) -> Result<(), Over> {
    for len in 0..record.len() {
        let opened = ours.open(&record[..len], &mut [0; ROOM]).map_err(Over::Refused)?;
        let need = if len < 5 { 5 } else { record.len() };
        assert_eq!(opened, Opened::Incomplete { need });
    }
    open(ours, record)
}

fn assert_refusal_stays(ours: &mut Channel, error: &TlsError) {
    let mut out = Output::default();
    ours.flush_control(&mut out);
    assert!(!ours.wants_control());
    assert_eq!(ours.open(&[], &mut [0; ROOM]).as_ref(), Err(error));
}

/// A server by rustls up to the end of the handshake, and nobody's from then on.
struct Peer {
    kernel: KernelConnection<ServerConnectionData>,
    sealer: Sealer,
    opener: Opener,
}

impl Peer {
    fn record(&mut self, content_type: u8, content: &[u8]) -> Vec<u8> {
        let mut out = Output::default();
        self.sealer.seal(&mut out, content_type, content);
        out.filled().to_vec()
    }

    fn update_sending_key(&mut self) {
        let (sequence, secrets) = self.kernel.update_tx_secret().expect("TLS 1.3");
        self.sealer = Sealer::new(sequence, &secrets).expect("AES");
    }

    /// What we seal opens at the peer, behind the key updates that are due.
    fn receives(&mut self, ours: &mut Channel, content: &[u8]) -> Result<(), Over> {
        let mut out = Output::default();
        ours.seal(&mut out, content);
        let mut received = Vec::new();
        let mut wire = out.filled();
        while let [_, _, _, high, low, ..] = wire {
            let (record, rest) = wire.split_at(5 + usize::from(u16::from_be_bytes([*high, *low])));
            wire = rest;
            let mut plain = [0; ROOM];
            let (content_type, len) = self.opener.open(record, &mut plain).expect("sealed by us");
            if content_type == APPLICATION_DATA {
                received.extend_from_slice(&plain[..len]);
            } else if content_type == ALERT {
                // rustls minds half a handshake message of the peer when it updates its own key.
                return Err(Over::Closed);
            } else {
                assert_eq!((content_type, plain[0], len), (HANDSHAKE, KEY_UPDATE, 5));
                let (sequence, secrets) = self.kernel.update_rx_secret().expect("TLS 1.3");
                self.opener = Opener::new(sequence, &secrets).expect("AES");
            }
        }
        assert_eq!(received, content);
        Ok(())
    }
}

/// Our certificate, and the configuration of the peer.
static SIDES: LazyLock<(CertifiedIdentity, Arc<ServerConfig>)> = LazyLock::new(|| {
    let (ca, now) = (FakeCa::new(), clock::wall());
    let years = Duration::from_secs(10 * 365 * 86_400);
    let issue = |account: &str| {
        let identity = Identity::new("cluster.local", "shop", account);
        ca.issue_valid(&identity, now - years, now + years)
            .expect("issued")
    };
    let (ours, peer) = (issue("cart"), issue("till"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(peer.roots.clone(), provider.clone());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .expect("suites for TLS 1.3")
        .with_client_cert_verifier(verifier.build().expect("roots"))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(peer.certificates)));
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    (ours, Arc::new(config))
});

fn shake(mode: RecordMode) -> (Channel, Peer) {
    let (ours, config) = &*SIDES;
    let accepted = [Identity::new("cluster.local", "shop", "till")];
    let mut client = Handshake::client(ours, Arc::new(accepted), mode)
        .expect("client")
        .with_records_max(RECORDS_MAX);
    let mut server = UnbufferedServerConnection::new(config.clone()).expect("server");
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    loop {
        let status = server.process_tls_records(&mut to_server);
        let discard = status.discard;
        match status.state.expect("an honest client") {
            ConnectionState::EncodeTlsData(mut encode) => {
                let Err(EncodeError::InsufficientSize(size)) = encode.encode(&mut []) else {
                    panic!("there is something to encode");
                };
                let at = to_client.len();
                to_client.resize(at + size.required_size, 0);
                encode.encode(&mut to_client[at..]).expect("room");
            }
            ConnectionState::TransmitTlsData(transmit) => transmit.done(),
            ConnectionState::BlockedHandshake => {
                let mut out = Output::default();
                client.advance(&to_client, &mut out).expect("an honest server");
                to_client.clear();
                to_server.extend_from_slice(out.filled());
            }
            ConnectionState::WriteTraffic(_) => break,
            state => panic!("{state:?} in a handshake"),
        }
        to_server.drain(..discard);
    }
    let (secrets, kernel) = server.dangerous_into_kernel_connection().expect("extracted");
    let peer = Peer {
        kernel,
        sealer: Sealer::new(secrets.tx.0, &secrets.tx.1).expect("AES"),
        opener: Opener::new(secrets.rx.0, &secrets.rx.1).expect("AES"),
    };
    (client.finish().expect("done").channel, peer)
}
