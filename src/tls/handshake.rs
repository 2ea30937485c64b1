//! A TLS 1.3 handshake without I/O: received bytes in, bytes to send out, a `Channel` at the end.
//!
//! Runs on the worker that owns the connection. Invariant: rustls is shown received records one at a time and
//! none after the peer's Finished, so that the first record of the session is opened by the channel, with the
//! sequence number that the extracted keys start with. When it fails, the alert for the peer is in `out`
//! before the error is returned. Specification: RFC 8446 sections 4 and 5, control-plane contract 3.2.

use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{
    ClientConnection, CommonState, Connection, Error as Library, ExtractedSecrets, NamedGroup,
    ServerConnection,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::clock::{self, SystemTime};
use crate::config::Compliance;
use crate::identity::Identity;
use crate::limits;
use crate::tls::channel::{Channel, Kernel};
use crate::tls::error::{HandshakeError, TlsError};
use crate::tls::keys::{ALPN, CertifiedIdentity};
use crate::tls::output::Output;
use crate::tls::record::{
    ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, CIPHERTEXT_BYTES_MAX, HANDSHAKE, HEADER_BYTES,
};
use crate::tls::revocation::{Check, Revocable, RevocationLists};
use crate::tls::verify::{Chain, PeerIdentity, Usage};

/// Who protects records after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordMode {
    /// Our record layer.
    Own,
    /// rustls as it comes: the reference, and for those who must not leave the library.
    Buffered,
}

/// What a handshake is held to besides the identities. A `RecordMode` alone stands for no further rules.
#[derive(Debug, Clone)]
pub struct Rules {
    pub mode: RecordMode,
    pub compliance: Compliance,
    /// Peers that these name are refused, and what is needed to compare them with later lists is kept. `None`: no
    /// certificate ever counts as revoked.
    pub revocations: Option<Arc<RevocationLists>>,
}

impl From<RecordMode> for Rules {
    fn from(mode: RecordMode) -> Self {
        Self {
            mode,
            compliance: Compliance::Default,
            revocations: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Bytes from the peer are needed.
    More,
    /// Call `finish`, once what is in `out` is on its way.
    Done,
}

pub struct Handshake {
    machine: Machine,
    /// `received[start..]` is what rustls has not done with; it has been shown what is below `shown`.
    received: Vec<u8>,
    start: usize,
    shown: usize,
    /// Bytes that rustls took out of `received`.
    taken: usize,
    state: State,
    records_max: u64,
    watch: Option<Watch>,
}

/// What `Rules::revocations` needs during and after the handshake.
struct Watch {
    check: Check,
    chain: Arc<Chain>,
    /// What the peer's certificate is for.
    usage: Usage,
}

/// The outcome of a handshake.
pub struct Established {
    pub channel: Channel,
    pub peer: PeerIdentity,
    /// What came behind the handshake, still sealed; to be opened by `channel` first.
    pub leftover: Vec<u8>,
    /// Whether h2 was agreed. A client may come without ALPN.
    pub alpn_h2: bool,
    /// The group of the key exchange.
    pub group: Option<NamedGroup>,
    /// With `Rules::revocations`.
    pub revocable: Option<Box<Revocable>>,
}

impl std::fmt::Debug for Established {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Established({:?}, {} bytes left)",
            self.peer,
            self.leftover.len()
        )
    }
}

enum Machine {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
    Buffered(Box<Connection>),
}

#[derive(Clone)]
enum State {
    Running,
    Done,
    Failed(TlsError),
}

/// What rustls made of what it was shown.
enum Turn {
    /// Ask again.
    Again,
    /// Show it the next record.
    Blocked,
    Complete,
}

impl Handshake {
    /// A client of a server that must have one of the identities `accepted`. Send what the first `advance`
    /// gives, with nothing received.
    pub fn client(
        identity: &CertifiedIdentity,
        accepted: Arc<[Identity]>,
        rules: impl Into<Rules>,
    ) -> Result<Self, TlsError> {
        let rules = rules.into();
        let watch = Watch::new(&rules, identity, Usage::Server);
        let check = watch.as_ref().map(|watch| watch.check.clone());
        let config = identity
            .client_config(accepted, rules.compliance, check)
            .map_err(HandshakeError::from_library)?;
        // Goes nowhere: SNI is off, addresses are never sent in it, and the verifier ignores names.
        let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
        let machine = match rules.mode {
            RecordMode::Own => {
                UnbufferedClientConnection::new(config, name).map(|client| Machine::Client(Box::new(client)))
            }
            RecordMode::Buffered => ClientConnection::new(config, name)
                .map(|client| Machine::Buffered(Box::new(Connection::Client(client)))),
        };
        Ok(Self::new(machine.map_err(HandshakeError::from_library)?, watch))
    }

    pub fn server(identity: &CertifiedIdentity, rules: impl Into<Rules>) -> Result<Self, TlsError> {
        let rules = rules.into();
        let watch = Watch::new(&rules, identity, Usage::Client);
        let check = watch.as_ref().map(|watch| watch.check.clone());
        let config = identity
            .server_config(rules.compliance, check)
            .map_err(HandshakeError::from_library)?;
        let machine = match rules.mode {
            RecordMode::Own => {
                UnbufferedServerConnection::new(config).map(|server| Machine::Server(Box::new(server)))
            }
            RecordMode::Buffered => ServerConnection::new(config)
                .map(|server| Machine::Buffered(Box::new(Connection::Server(server)))),
        };
        Ok(Self::new(machine.map_err(HandshakeError::from_library)?, watch))
    }

    fn new(machine: Machine, watch: Option<Watch>) -> Self {
        Self {
            machine,
            received: Vec::new(),
            start: 0,
            shown: 0,
            taken: 0,
            state: State::Running,
            records_max: limits::RECORDS_PER_KEY_MAX,
            watch,
        }
    }

    /// How many records one of our keys seals before it is updated.
    pub fn with_records_max(mut self, records: u64) -> Self {
        self.records_max = records.clamp(limits::RECORDS_PER_KEY_MIN, limits::RECORDS_PER_KEY_MAX);
        self
    }

    /// Takes received bytes, appends bytes to send to `out`. After an error `out` holds the alert that tells
    /// the peer (send it, then close), and every further call returns the same error. After `Done` received
    /// bytes are only kept.
    pub fn advance(&mut self, received: &[u8], out: &mut Output) -> Result<Progress, TlsError> {
        self.received.extend_from_slice(received);
        match self.state.clone() {
            State::Running => {}
            State::Done => return Ok(Progress::Done),
            State::Failed(error) => return Err(error),
        }
        match self.run(out) {
            Ok(progress) => {
                if progress == Progress::Done {
                    self.state = State::Done;
                }
                Ok(progress)
            }
            Err(error) => {
                // rustls knows that the peer is revoked and tells it so; which certificate it was, the check knows.
                let found = self.watch.as_ref().and_then(|watch| watch.check.found.get());
                let error = found.map_or(error, |revoked| HandshakeError::Revoked(revoked.clone()));
                let error = TlsError::from(error);
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }

    /// After `Progress::Done`.
    pub fn finish(self) -> Result<Established, TlsError> {
        match self.state {
            State::Done => {}
            State::Running => return Err(HandshakeError::NotDone.into()),
            State::Failed(error) => return Err(error),
        }
        let mut leftover = self.received;
        leftover.drain(..self.start);
        let records_max = self.records_max;
        let (facts, channel) = match self.machine {
            Machine::Client(client) => {
                let facts = Facts::of(&client, self.watch)?;
                let (secrets, kernel) = client
                    .dangerous_into_kernel_connection()
                    .map_err(HandshakeError::from_library)?;
                (facts, own_channel(secrets, Kernel::Client(kernel), records_max)?)
            }
            Machine::Server(server) => {
                let facts = Facts::of(&server, self.watch)?;
                let (secrets, kernel) = server
                    .dangerous_into_kernel_connection()
                    .map_err(HandshakeError::from_library)?;
                (facts, own_channel(secrets, Kernel::Server(kernel), records_max)?)
            }
            Machine::Buffered(connection) => {
                let facts = Facts::of(&connection, self.watch)?;
                (facts, Channel::buffered(connection, records_max))
            }
        };
        Ok(Established {
            channel,
            peer: facts.peer,
            leftover,
            alpn_h2: facts.alpn_h2,
            group: facts.group,
            revocable: facts.revocable,
        })
    }

    fn run(&mut self, out: &mut Output) -> Result<Progress, HandshakeError> {
        loop {
            match self.turn(out)? {
                Turn::Again => {}
                Turn::Complete => return Ok(Progress::Done),
                Turn::Blocked => {
                    if !self.show_next_record()? {
                        self.compact();
                        return Ok(Progress::More);
                    }
                }
            }
        }
    }

    fn turn(&mut self, out: &mut Output) -> Result<Turn, HandshakeError> {
        let shown = &mut self.received[self.start..self.shown];
        let (discard, turn) = match &mut self.machine {
            Machine::Client(client) => {
                let turn = take_turn(client.process_tls_records(shown), out);
                // A failed connection yields what it had queued, the alert at the end.
                while turn.1.is_err() && client.wants_write() {
                    if take_turn(client.process_tls_records(shown), out).1.is_err() {
                        break;
                    }
                }
                turn
            }
            Machine::Server(server) => {
                let turn = take_turn(server.process_tls_records(shown), out);
                // A failed connection yields what it had queued, the alert at the end.
                while turn.1.is_err() && server.wants_write() {
                    if take_turn(server.process_tls_records(shown), out).1.is_err() {
                        break;
                    }
                }
                turn
            }
            Machine::Buffered(connection) => (shown.len(), take_buffered_turn(connection, shown, out)),
        };
        self.start += discard;
        self.taken += discard;
        if self.taken + (self.shown - self.start) > limits::HANDSHAKE_BYTES_MAX {
            return Err(HandshakeError::TooLarge);
        }
        turn
    }

    /// False when no further whole record is there.
    fn show_next_record(&mut self) -> Result<bool, HandshakeError> {
        let rest = &self.received[self.shown..];
        let Some(&[content_type, major, _, high, low]) = rest.first_chunk::<HEADER_BYTES>() else {
            // Whoever speaks another protocol is told from the first byte, which may be all it sends.
            return match rest.first() {
                Some(first) if !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(first) => {
                    Err(HandshakeError::NotTls(hex(rest)))
                }
                Some(_) | None => Ok(false),
            };
        };
        let bytes = usize::from(u16::from_be_bytes([high, low]));
        let known = matches!(
            content_type,
            CHANGE_CIPHER_SPEC | ALERT | HANDSHAKE | APPLICATION_DATA
        );
        if !known || major != 3 || bytes > CIPHERTEXT_BYTES_MAX {
            return Err(HandshakeError::NotTls(hex(rest)));
        }
        if rest.len() < HEADER_BYTES + bytes {
            return Ok(false);
        }
        self.shown += HEADER_BYTES + bytes;
        Ok(true)
    }

    fn compact(&mut self) {
        self.received.drain(..self.start);
        self.shown -= self.start;
        self.start = 0;
    }
}

/// What rustls knows only until it is turned into a channel.
struct Facts {
    peer: PeerIdentity,
    alpn_h2: bool,
    group: Option<NamedGroup>,
    revocable: Option<Box<Revocable>>,
}

impl Facts {
    fn of(connection: &CommonState, watch: Option<Watch>) -> Result<Self, HandshakeError> {
        let certificates = connection.peer_certificates();
        let group = connection.negotiated_key_exchange_group();
        Ok(Self {
            peer: PeerIdentity::of_verified(certificates)?,
            alpn_h2: connection.alpn_protocol() == Some(ALPN),
            group: group.map(|group| group.name()),
            revocable: watch.and_then(|watch| watch.keep(certificates?)).map(Box::new),
        })
    }
}

impl Watch {
    fn new(rules: &Rules, identity: &CertifiedIdentity, usage: Usage) -> Option<Self> {
        let lists = rules.revocations.clone()?;
        Some(Self {
            check: Check::new(lists),
            chain: identity.chain().clone(),
            usage,
        })
    }

    /// For a chain that was verified in this handshake, of which there is always something to keep: its leaf can be
    /// read, and intermediates that cannot are no part of what was verified.
    fn keep(self, certificates: &[CertificateDer<'_>]) -> Option<Revocable> {
        let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let now = UnixTime::since_unix_epoch(now);
        Revocable::new(self.chain, self.usage, certificates, now, self.check.lists)
    }
}

fn own_channel(secrets: ExtractedSecrets, kernel: Kernel, records_max: u64) -> Result<Channel, TlsError> {
    Channel::own(secrets, kernel, records_max).ok_or_else(|| {
        HandshakeError::Protocol(Library::General("no AES-GCM suite was agreed".to_owned())).into()
    })
}

/// One answer of an unbuffered connection: how many bytes are done with, and what it wants next.
fn take_turn<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut Output,
) -> (usize, Result<Turn, HandshakeError>) {
    let discard = status.discard;
    let turn = match status.state {
        Ok(ConnectionState::EncodeTlsData(mut encode)) => {
            // Asked with no room at first, it says how much it needs.
            if let Err(EncodeError::InsufficientSize(size)) = encode.encode(&mut []) {
                let written = encode.encode(out.room(size.required_size));
                out.fill(written.unwrap_or(0));
            }
            Ok(Turn::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(Turn::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Turn::Blocked),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Turn::Complete),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Err(HandshakeError::Closed),
        // Early data is off and no record is shown after Finished; the enum is foreign and non-exhaustive.
        Ok(other) => Err(HandshakeError::Protocol(Library::General(format!(
            "unexpected state in a handshake: {other:?}"
        )))),
        Err(error) => Err(HandshakeError::from_library(error)),
    };
    (discard, turn)
}

fn take_buffered_turn(
    connection: &mut Connection,
    mut shown: &[u8],
    out: &mut Output,
) -> Result<Turn, HandshakeError> {
    let mut result = Ok(());
    while !shown.is_empty() && result.is_ok() {
        result = match connection.read_tls(&mut shown) {
            Ok(_) => connection
                .process_new_packets()
                .map_err(HandshakeError::from_library)
                .and_then(|state| {
                    if state.peer_has_closed() {
                        Err(HandshakeError::Closed)
                    } else {
                        Ok(())
                    }
                }),
            Err(error) => Err(HandshakeError::Protocol(Library::General(error.to_string()))),
        };
    }
    while connection.wants_write() {
        connection
            .write_tls(out)
            .expect("invariant: writing to memory does not fail");
    }
    result?;
    Ok(if connection.is_handshaking() {
        Turn::Blocked
    } else {
        Turn::Complete
    })
}

/// The first bytes of something that is no TLS, for a message.
fn hex(bytes: &[u8]) -> String {
    let shown: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;

    use super::*;
    use crate::clock::{self, Duration};
    use crate::tls::FakeCa;
    use crate::tls::fake_ca::Issued;

    #[test]
    fn what_a_peer_may_send_before_it_is_known_is_bounded() {
        let cart = Identity::new("cluster.local", "shop", "cart");
        let identity = FakeCa::new().issue(&cart, clock::wall()).expect("issued");
        for mode in [RecordMode::Own, RecordMode::Buffered] {
            let mut client = Handshake::client(&identity, Arc::new([]), mode).expect("client");
            let mut hello = Output::default();
            client.advance(&[], &mut hello).expect("hello");
            // As if the client had sent that much before.
            let mut server = Handshake::server(&identity, mode).expect("server");
            server.taken = limits::HANDSHAKE_BYTES_MAX - hello.len();
            let mut out = Output::default();
            assert_eq!(server.advance(hello.filled(), &mut out), Ok(Progress::More));
            let mut server = Handshake::server(&identity, mode).expect("server");
            server.taken = limits::HANDSHAKE_BYTES_MAX - hello.len() + 1;
            let error = server.advance(hello.filled(), &mut out).expect_err("too much");
            assert_eq!(
                error.to_string(),
                "tls handshake error: handshake needs more than 131072 bytes from the peer"
            );
        }
    }

    /// Upstream counts those for which it cannot: `istio_crl_untracked_connections_total`.
    #[test]
    fn every_peer_can_be_compared_with_lists_that_come_later() {
        let (ca, now) = (FakeCa::new(), clock::wall());
        let [cart, till] = ["cart", "till"].map(|name| Identity::new("cluster.local", "shop", name));
        for mode in [RecordMode::Own, RecordMode::Buffered] {
            for unreadable in [0, 1, limits::INTERMEDIATES_PLAIN + 1] {
                let [ours, theirs] = [&cart, &till].map(|identity| {
                    let signed = ca.sign(identity, now, now + Duration::from_secs(3600));
                    let Issued { mut chain, key } = signed.expect("signed");
                    chain.extend(vec![CertificateDer::from(vec![1, 2, 3]); unreadable]);
                    let roots = vec![ca.root().clone()];
                    CertifiedIdentity::new(identity.clone(), chain, key, roots).expect("usable")
                });
                let rules = || Rules {
                    revocations: Some(Arc::default()),
                    ..mode.into()
                };
                let mut client = Handshake::client(&ours, [till.clone()].into(), rules()).expect("client");
                let mut server = Handshake::server(&theirs, rules()).expect("server");
                let (mut there, mut back) = (Output::default(), Output::default());
                client.advance(&[], &mut there).expect("hello");
                server.advance(there.filled(), &mut back).expect("hello");
                there.clear();
                client.advance(back.filled(), &mut there).expect("done");
                server.advance(there.filled(), &mut back).expect("done");
                for side in [client, server] {
                    let established = side.finish().expect("done");
                    assert!(
                        established.revocable.is_some(),
                        "{mode:?}, {unreadable} unreadable"
                    );
                }
            }
        }
    }
}
