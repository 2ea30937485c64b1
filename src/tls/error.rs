//! What goes wrong in TLS, and whose fault it is.
//!
//! Plain values, read by the worker that owns the connection. Invariant: each way in which a peer can be
//! refused has a variant and a text of its own, so that a log line says which one it was. The texts
//! "tls handshake error: ...", "peer did not present the expected SAN (...), got ..." and their like are a
//! contract with log readers. Alerts follow RFC 8446 section 6.

use rustls::{
    AlertDescription, CertificateError, Error as Library, InvalidMessage, PeerIncompatible, PeerMisbehaved,
};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::limits;
use crate::tls::record;
use crate::tls::revocation::Revoked;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TlsError {
    #[error("tls handshake error: {0}")]
    Handshake(#[from] HandshakeError),
    #[error("tls record error: {0}")]
    Record(#[from] RecordError),
    /// The peer ended the session; during a handshake this is `HandshakeError::RefusedByPeer`.
    #[error("peer closed the session with the fatal alert {}", alert_text(*.0))]
    Alert(AlertDescription),
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

/// Why there is no session with a peer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HandshakeError {
    #[error(
        "identity verification error: peer did not present the expected SAN ({}), got {}",
        list(expected),
        list(got)
    )]
    WrongIdentity { expected: Vec<String>, got: Vec<String> },
    #[error(
        "identity verification error: peer did not present the expected trustdomain ({expected}), got {}",
        list(got)
    )]
    WrongTrustDomain { expected: String, got: Vec<String> },
    #[error("peer's certificate expired at {not_after} (it is {now})")]
    CertificateExpired { not_after: String, now: String },
    #[error("peer's certificate is valid from {not_before} only (it is {now})")]
    CertificateNotYetValid { not_before: String, now: String },
    #[error(
        "peer's certificate was issued by an unknown CA \
         (none of the roots that came with our own certificate)"
    )]
    UnknownIssuer,
    #[error("peer's certificate is not acceptable: {0}")]
    CertificateRefused(String),
    #[error("{0}")]
    Revoked(Revoked),
    #[error("peer presented no certificate (it has to, both sides authenticate)")]
    NoCertificate,
    #[error("peer does not offer TLS 1.3, the only version accepted")]
    ProtocolVersion,
    #[error("peer and we have no ALPN protocol in common (expected h2)")]
    ApplicationProtocol,
    #[error("peer does not speak TLS (it sent {0})")]
    NotTls(String),
    #[error("peer refused the handshake with the alert {}", alert_text(*.0))]
    RefusedByPeer(AlertDescription),
    #[error("peer closed the session during the handshake")]
    Closed,
    #[error(
        "handshake needs more than {} bytes from the peer",
        limits::HANDSHAKE_BYTES_MAX
    )]
    TooLarge,
    #[error("handshake has not ended")]
    NotDone,
    /// Everything else; the text is rustls' own.
    #[error("{0}")]
    Protocol(Library),
}

/// Why a session ended at a record.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecordError {
    #[error("record does not authenticate: corrupted, reordered or sealed under another key")]
    Authentication,
    #[error("record of {bytes} bytes (at most {})", record::CIPHERTEXT_BYTES_MAX)]
    OversizeRecord { bytes: usize },
    #[error("record with {bytes} bytes of content and padding (at most {})", record::CONTENT_BYTES_MAX + 1)]
    OversizeContent { bytes: usize },
    #[error("record of type {content_type} after the handshake (expected protected records, type 23)")]
    Unprotected { content_type: u8 },
    #[error("record holds only padding and no content type")]
    OnlyPadding,
    #[error(
        "protected content of type {content_type} (expected 21 alert, 22 handshake or 23 application data)"
    )]
    UnexpectedContent { content_type: u8 },
    #[error("more than {} records without content in a row", limits::EMPTY_RECORDS_MAX)]
    EmptyFlood,
    #[error("handshake message is empty or does not end in the record in which it began")]
    SplitHandshake,
    #[error(
        "handshake message of type {message_type} \
         (expected 24 key update, or 4 new session ticket from a server)"
    )]
    UnexpectedHandshake { message_type: u8 },
    #[error("key update is malformed (expected one byte, 0 or 1)")]
    MalformedKeyUpdate,
    #[error("key update is not the last message of its record")]
    KeyUpdateNotLast,
    #[error(
        "more than {} key updates, tickets or warnings without data in between",
        limits::CONTROL_BURST_MAX
    )]
    ControlFlood,
    #[error("alert is not two bytes long")]
    MalformedAlert,
    #[error("all 2^64 sequence numbers of the key are used up")]
    SequenceExhausted,
    /// The caller's mistake: the record stays in the input, and the session goes on with more room.
    #[error("{room} bytes of room for a record that needs {need}")]
    NoRoom { need: usize, room: usize },
    /// Buffered mode only: what the library found; the text is rustls' own.
    #[error("{0}")]
    Library(Library),
}

/// Why a certificate, its key and its roots are of no use to us.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CredentialError {
    #[error("chain returned from CA is empty for: {identity}")]
    EmptyChain { identity: String },
    #[error("no root certificate present for: {identity}")]
    NoRoots { identity: String },
    #[error("did not find expected SAN: {identity} (the certificate's first is {got})")]
    WrongSan { identity: String, got: String },
    #[error("certificate for {identity} is malformed: {reason}")]
    Malformed { identity: String, reason: String },
    #[error("private key for {identity} is unusable or belongs to another certificate: {reason}")]
    Key { identity: String, reason: String },
    #[error("failed to create CSR: {reason} for {identity}")]
    Request { identity: String, reason: String },
    #[error("chain returned from CA is malformed for: {identity} ({what}: {reason})")]
    Unreadable {
        identity: String,
        what: String,
        reason: String,
    },
    #[error("signing error: {reason} for {identity}")]
    Signing { identity: String, reason: String },
}

impl TlsError {
    /// What the peer has to be told; `None` when nothing or nothing more.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Record(error) => error.alert(),
            // rustls tells the peer by itself during a handshake.
            Self::Handshake(_) | Self::Alert(_) | Self::Credential(_) => None,
        }
    }
}

impl RecordError {
    fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Authentication => Some(AlertDescription::BadRecordMac),
            Self::OversizeRecord { .. } | Self::OversizeContent { .. } => {
                Some(AlertDescription::RecordOverflow)
            }
            Self::Unprotected { .. }
            | Self::OnlyPadding
            | Self::UnexpectedContent { .. }
            | Self::EmptyFlood
            | Self::SplitHandshake
            | Self::UnexpectedHandshake { .. }
            | Self::KeyUpdateNotLast
            | Self::ControlFlood => Some(AlertDescription::UnexpectedMessage),
            Self::MalformedKeyUpdate => Some(AlertDescription::IllegalParameter),
            Self::MalformedAlert => Some(AlertDescription::DecodeError),
            Self::SequenceExhausted => Some(AlertDescription::InternalError),
            Self::NoRoom { .. } | Self::Library(_) => None,
        }
    }
}

impl HandshakeError {
    /// Reads the meaning out of what rustls reports. Its enums are non-exhaustive, hence the last arms.
    pub(super) fn from_library(error: Library) -> Self {
        match error {
            Library::InvalidCertificate(error) => Self::from_certificate(error),
            Library::NoCertificatesPresented => Self::NoCertificate,
            Library::NoApplicationProtocol
            | Library::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol) => {
                Self::ApplicationProtocol
            }
            Library::AlertReceived(alert) => Self::RefusedByPeer(alert),
            Library::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Self::ProtocolVersion,
            Library::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls("a malformed record header".to_owned()),
            other => Self::Protocol(other),
        }
    }

    fn from_certificate(error: CertificateError) -> Self {
        match error {
            CertificateError::ExpiredContext { time, not_after } => Self::CertificateExpired {
                not_after: utc(not_after),
                now: utc(time),
            },
            CertificateError::NotValidYetContext { time, not_before } => Self::CertificateNotYetValid {
                not_before: utc(not_before),
                now: utc(time),
            },
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            // What `verify` found out beyond the chain travels through rustls as it is.
            CertificateError::Other(other) => match other.0.downcast_ref::<Self>() {
                Some(own) => own.clone(),
                None => Self::CertificateRefused(other.to_string()),
            },
            other => Self::CertificateRefused(other.to_string()),
        }
    }
}

impl RecordError {
    pub(super) fn from_library(error: Library) -> Self {
        match error {
            Library::DecryptError => Self::Authentication,
            other => Self::Library(other),
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

pub(super) fn utc(time: UnixTime) -> String {
    OffsetDateTime::from_unix_timestamp(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{} s after 1970", time.as_secs()))
}

/// RFC 8446 section 6.2, in words where the cause is likely a wrong configuration.
fn alert_text(alert: AlertDescription) -> String {
    let meaning = match alert {
        AlertDescription::AccessDenied => "it does not accept our identity",
        AlertDescription::CertificateUnknown => "it does not accept our certificate or identity",
        AlertDescription::BadCertificate => "it does not accept our certificate",
        AlertDescription::UnsupportedCertificate => "our certificate is not for this use",
        AlertDescription::CertificateExpired => "it holds our certificate for expired or not yet valid",
        AlertDescription::CertificateRevoked => "our certificate is revoked",
        AlertDescription::UnknownCA => "it does not know the CA of our certificate",
        AlertDescription::CertificateRequired => "it asks for a certificate",
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3",
        AlertDescription::NoApplicationProtocol => "it does not speak h2",
        AlertDescription::HandshakeFailure => "no parameters in common",
        // Foreign and non-exhaustive; its name says enough.
        _ => return format!("{alert:?} ({})", u8::from(alert)),
    };
    format!("{alert:?} ({}): {meaning}", u8::from(alert))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn contract_texts_stand_in_the_errors() {
        let error = TlsError::from(HandshakeError::WrongIdentity {
            expected: vec!["spiffe://a/ns/b/sa/c".to_owned()],
            got: vec![
                "spiffe://a/ns/b/sa/d".to_owned(),
                "spiffe://a/ns/b/sa/e".to_owned(),
            ],
        });
        assert_eq!(
            error.to_string(),
            "tls handshake error: identity verification error: peer did not present the expected SAN \
             (spiffe://a/ns/b/sa/c), got spiffe://a/ns/b/sa/d, spiffe://a/ns/b/sa/e"
        );
        let error = HandshakeError::WrongTrustDomain {
            expected: "cluster.local".to_owned(),
            got: Vec::new(),
        };
        assert_eq!(
            error.to_string(),
            "identity verification error: peer did not present the expected trustdomain (cluster.local), \
             got none"
        );
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(
            utc(UnixTime::since_unix_epoch(Duration::ZERO)),
            "1970-01-01T00:00:00Z"
        );
        assert_eq!(
            utc(UnixTime::since_unix_epoch(Duration::MAX)),
            format!("{} s after 1970", u64::MAX)
        );
    }

    #[test]
    fn an_alert_says_what_the_peer_minds() {
        let error = TlsError::Alert(AlertDescription::UnknownCA);
        assert_eq!(
            error.to_string(),
            "peer closed the session with the fatal alert UnknownCA (48): \
             it does not know the CA of our certificate"
        );
        let other = HandshakeError::RefusedByPeer(AlertDescription::RecordOverflow);
        assert_eq!(
            other.to_string(),
            "peer refused the handshake with the alert RecordOverflow (22)"
        );
    }
}
