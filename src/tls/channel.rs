//! What a session seals and opens its records with, after the handshake.
//!
//! Two kinds behind one face: our own record layer, and stock rustls as the reference (`UZTUNNEL_TLS`). Runs
//! on the worker that owns the session, does no I/O and keeps no received bytes (buffered mode: at most what
//! one record held). Invariant: when `open` has failed it fails for ever, nothing that came after is read,
//! and `flush_control` gives the alert that tells the peer. Specification: RFC 8446 sections 4.6, 5 and 6.

mod buffered;
mod own;

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{Connection, ExtractedSecrets};

use crate::tls::error::TlsError;
use crate::tls::output::Output;
use crate::tls::record::{CONTENT_BYTES_MAX, HEADER_BYTES};
use buffered::Buffered;
use own::Own;

/// The protection of one session's records, both directions.
///
/// Records go out in the order in which they were sealed: whatever is written to `out` by these methods must
/// be sent in the order of the calls, and nothing is sealed into the same `out` between `begin` and `finish`.
pub struct Channel(Kind);

/// What `Channel::open` found in the front of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// `need` bytes of input make the whole record, or its header when that is not complete yet.
    Incomplete { need: usize },
    /// `plain[..written]` is the next application data. `consumed` is 0 when buffered mode gives what it kept
    /// because `plain` had been too small.
    Data { consumed: usize, written: usize },
    /// A record without application data: handshake message, warning, or empty.
    Control { consumed: usize },
    /// The peer sent close_notify; whatever comes behind it is to be ignored (RFC 8446 section 6.1).
    Closed { consumed: usize },
}

enum Kind {
    Own(Box<Own>),
    Buffered(Box<Buffered>),
}

/// The part of rustls that derives the next keys.
pub(super) enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Channel {
    /// `None` when the suite is not AES-GCM.
    pub(super) fn own(secrets: ExtractedSecrets, kernel: Kernel, records_max: u64) -> Option<Self> {
        Own::new(secrets, kernel, records_max).map(|own| Self(Kind::Own(Box::new(own))))
    }

    pub(super) fn buffered(connection: Box<Connection>, records_max: u64) -> Self {
        Self(Kind::Buffered(Box::new(Buffered::new(connection, records_max))))
    }

    /// Starts a record at the end of `out`: a KeyUpdate record when one is due, then room for a header.
    /// Returns where the record starts. Append up to 16,384 bytes, then call `finish`.
    pub fn begin(&mut self, out: &mut Output) -> usize {
        match &mut self.0 {
            Kind::Own(own) => own.before_record(out),
            Kind::Buffered(_) => {}
        }
        let start = out.len();
        out.room(HEADER_BYTES);
        out.fill(HEADER_BYTES);
        start
    }

    /// Seals in place, as application data, what was appended to `out` since `begin` returned `start`.
    /// Nothing appended gives no record; more than a record holds becomes several, at the price of a copy.
    pub fn finish(&mut self, out: &mut Output, start: usize) {
        let content_bytes = out.len() - start - HEADER_BYTES;
        match &mut self.0 {
            Kind::Own(own) if (1..=CONTENT_BYTES_MAX).contains(&content_bytes) => {
                own.seal_in_place(out, start);
            }
            Kind::Own(_) | Kind::Buffered(_) => {
                let content = out.filled()[start + HEADER_BYTES..].to_vec();
                out.truncate(start);
                self.seal(out, &content);
            }
        }
    }

    /// Seals `plaintext` to the end of `out`, one record per 16,384 bytes, without another copy.
    pub fn seal(&mut self, out: &mut Output, plaintext: &[u8]) {
        for content in plaintext.chunks(CONTENT_BYTES_MAX) {
            match &mut self.0 {
                Kind::Own(own) => own.seal(out, content),
                Kind::Buffered(buffered) => buffered.seal(out, content),
            }
        }
    }

    /// Opens the record in the front of `input` into the front of `plain`, which needs room for the record's
    /// ciphertext (16,640 bytes do for every record; what stands behind the data written is scratch). Errors
    /// stay, except `RecordError::NoRoom`. After an error send what `flush_control` gives, then close.
    pub fn open(&mut self, input: &[u8], plain: &mut [u8]) -> Result<Opened, TlsError> {
        match &mut self.0 {
            Kind::Own(own) => own.open(input, plain),
            Kind::Buffered(buffered) => buffered.open(input, plain),
        }
    }

    /// Whether something must be sent although nobody has data: the answer to a KeyUpdate request (the next
    /// record carries it along, too), or an alert.
    pub fn wants_control(&self) -> bool {
        match &self.0 {
            Kind::Own(own) => own.wants_control(),
            Kind::Buffered(buffered) => buffered.wants_control(),
        }
    }

    /// Has the sending key replaced with the next record. `false` where only the library can say when.
    #[cfg(feature = "sim")]
    pub fn update_key_soon(&mut self) -> bool {
        match &mut self.0 {
            Kind::Own(own) => {
                own.update_key_soon();
                true
            }
            Kind::Buffered(_) => false,
        }
    }

    pub fn flush_control(&mut self, out: &mut Output) {
        match &mut self.0 {
            Kind::Own(own) => own.flush_control(out),
            Kind::Buffered(buffered) => buffered.flush_control(out),
        }
    }

    /// Says that nothing more will be sent. Only the first call does something; what is sealed after it, or
    /// after an alert, leaves `out` as it was (in buffered mode after any error).
    pub fn close_notify(&mut self, out: &mut Output) {
        match &mut self.0 {
            Kind::Own(own) => own.close_notify(out),
            Kind::Buffered(buffered) => buffered.close_notify(out),
        }
    }
}

#[cfg(test)]
mod tests;
