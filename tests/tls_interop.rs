//! The `tls` layer against other implementations: stock rustls and the openssl program.
//!
//! * `tls_interop/rustls_peer.rs`: records and key updates against rustls, both roles, any chunking.
//! * `tls_interop/csr.rs`: requests for certificates as openssl reads them, and what a CA may answer.
//! * `tls_interop/openssl.rs`: the same against `openssl s_client` and `s_server`.
//! * `tls_interop/chunking.rs`: the wire to them that cuts at random.
//! * `tls_interop/refusals.rs`: which peers are refused, with which words, and what they are told.
//! * `tls_interop/revocation.rs`: peers whose certificates were taken back, and the groups that are agreed.
//!
//! Rules of the contract: control-plane.md sections 2.3 and 3.2; RFC 8446.

#[path = "tls_interop/chunking.rs"]
mod chunking;
#[path = "tls_interop/csr.rs"]
mod csr;
#[path = "tls_interop/openssl.rs"]
mod openssl;
#[path = "tls_interop/refusals.rs"]
mod refusals;
#[path = "tls_interop/revocation.rs"]
mod revocation;
#[path = "tls_interop/rustls_peer.rs"]
mod rustls_peer;

use std::sync::Arc;

use rustls::NamedGroup;
use uztunnel::clock;
use uztunnel::identity::Identity;
use uztunnel::tls::{
    CertifiedIdentity, Channel, FakeCa, Handshake, Opened, Output, Progress, RecordMode, Rules, TlsError,
};

const MODES: [RecordMode; 2] = [RecordMode::Own, RecordMode::Buffered];
const ROLES: [Role; 2] = [Role::Client, Role::Server];

/// What we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

fn till() -> Identity {
    Identity::new("cluster.local", "shop", "till")
}

fn issued(identity: &Identity) -> CertifiedIdentity {
    FakeCa::new().issue(identity, clock::wall()).expect("issued")
}

/// Our end of a connection, from the first byte on: bytes in, bytes and plaintext out.
struct Ours {
    state: State,
    inbox: Vec<u8>,
    /// To be sent to the peer.
    outbox: Output,
    received: Vec<u8>,
    /// Records that were neither data nor close_notify.
    controls: usize,
    closed: bool,
    /// Of the key exchange, once that is over.
    group: Option<NamedGroup>,
    scratch: Vec<u8>,
}

enum State {
    Shaking(Handshake),
    Open(Channel),
    Gone,
}

impl Ours {
    /// We are `cart` as a client and `till` as a server; the peer is the other.
    fn new(role: Role, rules: impl Into<Rules>, records_max: u64) -> Self {
        let handshake = match role {
            Role::Client => Handshake::client(&issued(&cart()), Arc::new([till()]), rules),
            Role::Server => Handshake::server(&issued(&till()), rules),
        };
        Self::of(handshake.expect("made").with_records_max(records_max))
    }

    fn of(handshake: Handshake) -> Self {
        Self {
            state: State::Shaking(handshake),
            inbox: Vec::new(),
            outbox: Output::default(),
            received: Vec::new(),
            controls: 0,
            closed: false,
            group: None,
            scratch: vec![0; 16_640],
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    fn channel(&mut self) -> &mut Channel {
        match &mut self.state {
            State::Open(channel) => channel,
            State::Shaking(_) | State::Gone => panic!("the handshake is not over"),
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Shaking(mut handshake) => match handshake.advance(bytes, &mut self.outbox)? {
                Progress::More => {
                    self.state = State::Shaking(handshake);
                    return Ok(());
                }
                Progress::Done => {
                    let established = handshake.finish()?;
                    self.inbox = established.leftover;
                    self.group = established.group;
                    self.state = State::Open(established.channel);
                }
            },
            State::Open(channel) => {
                self.inbox.extend_from_slice(bytes);
                self.state = State::Open(channel);
            }
            State::Gone => panic!("it failed before"),
        }
        self.open_records()
    }

    fn open_records(&mut self) -> Result<(), TlsError> {
        let mut at = 0;
        let State::Open(channel) = &mut self.state else {
            return Ok(());
        };
        let result = loop {
            match channel.open(&self.inbox[at..], &mut self.scratch) {
                Ok(Opened::Data { consumed, written }) => {
                    self.received.extend_from_slice(&self.scratch[..written]);
                    at += consumed;
                }
                Ok(Opened::Control { consumed }) => {
                    self.controls += 1;
                    at += consumed;
                }
                Ok(Opened::Closed { consumed }) => {
                    self.closed = true;
                    at += consumed;
                    break Ok(());
                }
                Ok(Opened::Incomplete { .. }) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.inbox.drain(..at);
        if channel.wants_control() {
            channel.flush_control(&mut self.outbox);
        }
        result
    }

    /// Seals `bytes`, now copying and now in place.
    fn send(&mut self, bytes: &[u8], in_place: bool) {
        let mut outbox = std::mem::take(&mut self.outbox);
        let channel = self.channel();
        if in_place {
            let start = channel.begin(&mut outbox);
            outbox.append(bytes);
            channel.finish(&mut outbox, start);
        } else {
            channel.seal(&mut outbox, bytes);
        }
        self.outbox = outbox;
    }

    fn take_outbox(&mut self) -> Vec<u8> {
        let bytes = self.outbox.filled().to_vec();
        self.outbox.clear();
        bytes
    }
}

/// Whole TLS records in `wire`, which ends with one.
fn count_records(mut wire: &[u8]) -> usize {
    let mut records = 0;
    while let [_, _, _, high, low, rest @ ..] = wire {
        wire = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
        records += 1;
    }
    records
}
