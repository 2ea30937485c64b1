//! How a connection ended, as a value, which is mapped here to the CONNECT status, the log and the metrics.
//!
//! Texts follow the contract (observability.md section 4.3): dashboards and tests of users look for them.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rustls::AlertDescription;

use super::owner::Side;
use super::room::NoRoom;
use crate::bridge::lookups::LookupError;
use crate::bridge::orders::CertificateError;
use crate::bridge::traffic::{Refusal, ResponseFlag};
use crate::mesh::{Denial, InboundError, RouteError};
use crate::tls::{HandshakeError, Revoked, TlsError};
use crate::wire::http2::ErrorCode;

#[derive(Debug, thiserror::Error)]
pub enum Outcome {
    /// Both directions ended, or a peer closed or reset: the ordinary ends of a connection.
    #[error("complete")]
    Complete,
    #[error("connection failed: {0}")]
    ConnectFailed(#[source] io::Error),
    #[error("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {0}")]
    HboneConnectTimeout(#[source] io::Error),
    #[error("io error: {0}")]
    Io(#[source] io::Error),
    /// On the way from the client to the server.
    #[error("send: {0}")]
    Send(#[source] io::Error),
    /// On the way back.
    #[error("receive: {0}")]
    Receive(#[source] io::Error),
    #[error("tls error: {0}")]
    Tls(#[from] TlsError),
    #[error("identity error: {0}")]
    Identity(#[from] CertificateError),
    #[error("http status: {0}")]
    Status(HttpStatus),
    #[error("http2 handshake failed: {0}")]
    Handshake(String),
    #[error("h2 failed: {0}")]
    Http2(String),
    #[error("h2 failed: session closed: {0}")]
    SessionClosed(String),
    /// By its peer, or because the way to it broke: as ordinary an end as that of a copy whose peer resets.
    #[error("h2 failed: session closed: {0}")]
    SessionLost(String),
    #[error("connection closed: {0}")]
    Revoked(Revoked),
    #[error("stream reset by the peer: {0:?}")]
    StreamReset(ErrorCode),
    #[error("connection closed due to policy rejection: {0}")]
    Denied(Denial),
    #[error("connection closed due to policy change")]
    NoLongerAllowed(Denial),
    #[error("{0}")]
    Route(#[from] RouteError),
    #[error("{0}")]
    Inbound(#[from] InboundError),
    #[error("failed to fetch information about local workload: {0}")]
    WorkloadUnknown(String),
    #[error("{0}")]
    Lookup(#[from] LookupError),
    #[error("attempted recursive call to ourselves")]
    RecursiveCall,
    #[error("connection closed because its pod was removed")]
    PodRemoved,
    #[error("connection closed due to connection drain")]
    Drained,
    #[error("too many {what} at once: {limit} are allowed")]
    Overloaded { what: &'static str, limit: usize },
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("timed out: {peer} did not {what} within {limit:?}")]
    Deadline {
        peer: SocketAddr,
        what: &'static str,
        limit: Duration,
    },
    /// On one of the two sessions on the way to another network.
    #[error("{leg} {gateway}: {cause}")]
    OnLeg {
        leg: Leg,
        gateway: SocketAddr,
        cause: Rc<Outcome>,
    },
    #[error("{0}")]
    Malformed(String),
}

/// Which of two sessions it is about, in words that the gateway's address follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    ToGateway,
    Inside,
}

impl std::fmt::Display for Leg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ToGateway => "at the network gateway",
            Self::Inside => "behind the network gateway",
        })
    }
}

/// A status as the log shows it: `401 Unauthorized`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpStatus(pub u16);

impl std::fmt::Display for HttpStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = match self.0 {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            429 => "Too Many Requests",
            500 => "Internal Server Error",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            _ => return write!(f, "{}", self.0),
        };
        write!(f, "{} {reason}", self.0)
    }
}

impl Outcome {
    /// Reading what an end says, or writing that to the other end, failed.
    pub fn of_copy(from: Side, error: io::Error) -> Self {
        match from {
            _ if ends_a_copy(&error) => Self::Complete,
            Side::Client => Self::Send(error),
            Side::Server => Self::Receive(error),
        }
    }

    /// What happened on a leg. What names its leg already stays as it is.
    pub fn on_leg(leg: Leg, gateway: SocketAddr, cause: Rc<Self>) -> Self {
        let (leg, gateway, cause) = match &*cause {
            Self::OnLeg { leg, gateway, cause } => (*leg, *gateway, cause.clone()),
            _ => (leg, gateway, cause),
        };
        Self::OnLeg { leg, gateway, cause }
    }

    /// `None` when the connection ended well.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Complete => None,
            failed => Some(failed.to_string()),
        }
    }

    /// True when another endpoint of the same service may do better, given that no answer to CONNECT came from this
    /// one: nothing of the client's was said to it. It refused the connection or did not take it in time, was not who it
    /// should be, its session or the stream ended, or its proxy reached no application there.
    pub fn is_about_an_endpoint(&self) -> bool {
        match self {
            Self::ConnectFailed(_)
            | Self::HboneConnectTimeout(_)
            | Self::Io(_)
            | Self::Tls(TlsError::Handshake(_) | TlsError::Record(_) | TlsError::Alert(_))
            | Self::SessionClosed(_)
            | Self::SessionLost(_)
            | Self::Revoked(_)
            | Self::StreamReset(_)
            | Self::Deadline { .. } => true,
            Self::OnLeg { cause, .. } => cause.is_about_an_endpoint(),
            other => matches!(other, Self::Status(HttpStatus(503))),
        }
    }

    /// True when one side of a handshake does not know the CA of the other. A client's own part of a handshake is over
    /// before the server has seen its certificate (RFC 8446 section 2): it hears of that on its session.
    pub fn is_about_trust(&self) -> bool {
        matches!(
            self,
            Self::Tls(
                TlsError::Handshake(
                    HandshakeError::UnknownIssuer
                        | HandshakeError::RefusedByPeer(AlertDescription::UnknownCA)
                ) | TlsError::Alert(AlertDescription::UnknownCA)
            )
        )
    }

    /// What an inbound CONNECT is answered (contract: data-plane.md section 11).
    pub fn connect_status(&self) -> u16 {
        match self {
            Self::Complete => 200,
            Self::Malformed(_) => 400,
            Self::Inbound(error) => error.status(),
            Self::Denied(_) | Self::NoLongerAllowed(_) => 401,
            Self::OnLeg { cause, .. } => cause.connect_status(),
            Self::ConnectFailed(_)
            | Self::HboneConnectTimeout(_)
            | Self::Io(_)
            | Self::Send(_)
            | Self::Receive(_)
            | Self::Tls(_)
            | Self::Identity(_)
            | Self::Status(_)
            | Self::Handshake(_)
            | Self::Http2(_)
            | Self::SessionClosed(_)
            | Self::SessionLost(_)
            | Self::Revoked(_)
            | Self::StreamReset(_)
            | Self::Route(_)
            | Self::Lookup(_)
            | Self::WorkloadUnknown(_)
            | Self::RecursiveCall
            | Self::PodRemoved
            | Self::Drained
            | Self::Overloaded { .. }
            | Self::NoRoom(_)
            | Self::Deadline { .. } => 503,
        }
    }
}

/// How far a connection had come when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    SettingUp,
    Relaying,
}

impl Outcome {
    /// The flag of the connection's series (contract: data-plane.md section 19). A TLS handshake that fails is CONNECT
    /// there as well, whatever the flag's name: only an unusable certificate of our own is TLS_FAILURE.
    pub fn flag(&self, phase: Phase) -> ResponseFlag {
        match self {
            Self::Complete | Self::Drained | Self::PodRemoved => ResponseFlag::None,
            Self::Denied(_) | Self::NoLongerAllowed(_) => ResponseFlag::Deny,
            Self::HboneConnectTimeout(_) => ResponseFlag::NetworkPolicy,
            Self::OnLeg { cause, .. } => cause.flag(phase),
            Self::Identity(_) => ResponseFlag::IdentityError,
            Self::Revoked(_) | Self::Tls(TlsError::Handshake(HandshakeError::Revoked(_))) => {
                ResponseFlag::CertRevoked
            }
            Self::Tls(TlsError::Credential(_)) => ResponseFlag::TlsFailure,
            Self::SessionLost(_) => match phase {
                Phase::SettingUp => ResponseFlag::H2HandshakeFailure,
                Phase::Relaying => ResponseFlag::None,
            },
            Self::Handshake(_) | Self::Http2(_) | Self::SessionClosed(_) | Self::StreamReset(_) => {
                match phase {
                    Phase::SettingUp => ResponseFlag::H2HandshakeFailure,
                    Phase::Relaying => ResponseFlag::Connect,
                }
            }
            Self::ConnectFailed(_)
            | Self::Io(_)
            | Self::Send(_)
            | Self::Receive(_)
            | Self::Tls(TlsError::Handshake(_) | TlsError::Record(_) | TlsError::Alert(_))
            | Self::Status(_)
            | Self::Route(_)
            | Self::Lookup(_)
            | Self::Inbound(_)
            | Self::WorkloadUnknown(_)
            | Self::RecursiveCall
            | Self::Overloaded { .. }
            | Self::NoRoom(_)
            | Self::Deadline { .. }
            | Self::Malformed(_) => ResponseFlag::Connect,
        }
    }

    /// Why there was no connection at all.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::RecursiveCall
            | Self::Route(RouteError::Recursive)
            | Self::Inbound(InboundError::Recursive) => Refusal::Recursive,
            Self::Route(_) | Self::Lookup(_) => Refusal::Route,
            Self::OnLeg { cause, .. } => cause.refusal(),
            Self::WorkloadUnknown(_) => Refusal::WorkloadUnknown,
            Self::Inbound(
                InboundError::Mismatch { .. }
                | InboundError::UnknownHost(_)
                | InboundError::UnknownPort { .. }
                | InboundError::NoAddress(_),
            )
            | Self::Malformed(_)
            | Self::Denied(_)
            | Self::NoLongerAllowed(_) => Refusal::Request,
            Self::Overloaded { .. } => Refusal::Capacity,
            Self::NoRoom(why) => why.refusal(),
            Self::Complete | Self::Drained | Self::PodRemoved => Refusal::Ending,
            Self::ConnectFailed(_)
            | Self::HboneConnectTimeout(_)
            | Self::Io(_)
            | Self::Send(_)
            | Self::Receive(_)
            | Self::Tls(_)
            | Self::Identity(_)
            | Self::Status(_)
            | Self::Handshake(_)
            | Self::Http2(_)
            | Self::SessionClosed(_)
            | Self::SessionLost(_)
            | Self::Revoked(_)
            | Self::StreamReset(_)
            | Self::Deadline { .. } => Refusal::Handshake,
        }
    }
}

/// Errors of a copy that are how applications ordinarily end (contract: observability.md section 4.2).
pub fn ends_a_copy(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionAborted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::CredentialError;

    /// Contract: observability.md section 3.3, data-plane.md section 19.
    #[test]
    fn flags_are_those_of_the_contract() {
        use ResponseFlag as Flag;
        let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
        let identity = "spiffe://cluster.local/ns/shop/sa/web".to_owned();
        let refused = |error: HandshakeError| Outcome::Tls(TlsError::Handshake(error));
        for (outcome, setting_up, relaying) in [
            (Outcome::Complete, Flag::None, Flag::None),
            (Outcome::Drained, Flag::None, Flag::None),
            (Outcome::PodRemoved, Flag::None, Flag::None),
            (Outcome::ConnectFailed(broken()), Flag::Connect, Flag::Connect),
            (
                Outcome::HboneConnectTimeout(broken()),
                Flag::NetworkPolicy,
                Flag::NetworkPolicy,
            ),
            (Outcome::Receive(broken()), Flag::Connect, Flag::Connect),
            (Outcome::Status(HttpStatus(401)), Flag::Connect, Flag::Connect),
            (
                refused(HandshakeError::UnknownIssuer),
                Flag::Connect,
                Flag::Connect,
            ),
            (
                Outcome::Tls(TlsError::Credential(CredentialError::NoRoots { identity })),
                Flag::TlsFailure,
                Flag::TlsFailure,
            ),
            (
                Outcome::Identity(CertificateError::no_longer_needed()),
                Flag::IdentityError,
                Flag::IdentityError,
            ),
            (
                Outcome::StreamReset(ErrorCode::Cancel),
                Flag::H2HandshakeFailure,
                Flag::Connect,
            ),
            (
                Outcome::Http2("closed".to_owned()),
                Flag::H2HandshakeFailure,
                Flag::Connect,
            ),
        ] {
            let flags = [Phase::SettingUp, Phase::Relaying].map(|phase| outcome.flag(phase));
            assert_eq!(flags, [setting_up, relaying], "{outcome}");
        }
    }

    /// Contract: data-plane.md section 16.
    #[test]
    fn a_copy_fails_by_its_direction_and_a_reset_is_an_ordinary_end() {
        let of = |from, kind: io::ErrorKind| Outcome::of_copy(from, kind.into()).error();
        let timed_out = io::ErrorKind::TimedOut;
        assert_eq!(of(Side::Client, timed_out).as_deref(), Some("send: timed out"));
        assert_eq!(of(Side::Server, timed_out).as_deref(), Some("receive: timed out"));
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe] {
            assert_eq!(
                [Side::Client, Side::Server].map(|from| of(from, kind)),
                [None, None]
            );
        }
    }

    /// What an inbound CONNECT is answered, whether another endpoint may do better, and what a connection that never
    /// was one is counted as. Contract: data-plane.md section 11; DEVIATIONS.md has the reasons.
    #[test]
    fn statuses_retries_and_reasons_of_outcomes() {
        let broken = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let at: SocketAddr = ([198, 18, 0, 1], 15008).into();
        let handshake = |error| Outcome::Tls(TlsError::Handshake(error));
        let on_leg = |cause| Outcome::on_leg(Leg::Inside, at, Rc::new(cause));
        let deadline = Outcome::Deadline {
            peer: at,
            what: "answer",
            limit: Duration::from_secs(5),
        };
        let full = Outcome::Overloaded {
            what: "connections",
            limit: 1,
        };
        for (outcome, status, is_about_an_endpoint, refusal) in [
            (Outcome::Complete, 200, false, Refusal::Ending),
            (Outcome::ConnectFailed(broken()), 503, true, Refusal::Handshake),
            (
                Outcome::HboneConnectTimeout(broken()),
                503,
                true,
                Refusal::Handshake,
            ),
            (Outcome::Io(broken()), 503, true, Refusal::Handshake),
            (
                handshake(HandshakeError::UnknownIssuer),
                503,
                true,
                Refusal::Handshake,
            ),
            (Outcome::SessionClosed("x".into()), 503, true, Refusal::Handshake),
            (Outcome::SessionLost("x".into()), 503, true, Refusal::Handshake),
            (
                Outcome::StreamReset(ErrorCode::Cancel),
                503,
                true,
                Refusal::Handshake,
            ),
            (deadline, 503, true, Refusal::Handshake),
            (Outcome::Status(HttpStatus(503)), 503, true, Refusal::Handshake),
            (Outcome::Status(HttpStatus(401)), 503, false, Refusal::Handshake),
            (Outcome::Status(HttpStatus(400)), 503, false, Refusal::Handshake),
            (Outcome::Http2("x".into()), 503, false, Refusal::Handshake),
            (Outcome::Handshake("x".into()), 503, false, Refusal::Handshake),
            (
                Outcome::Identity(CertificateError::no_longer_needed()),
                503,
                false,
                Refusal::Handshake,
            ),
            (Outcome::Malformed("x".into()), 400, false, Refusal::Request),
            (Outcome::Denied(Denial::NotAllowed), 401, false, Refusal::Request),
            (
                Outcome::Inbound(InboundError::Recursive),
                503,
                false,
                Refusal::Recursive,
            ),
            (
                Outcome::Route(RouteError::Recursive),
                503,
                false,
                Refusal::Recursive,
            ),
            (Outcome::RecursiveCall, 503, false, Refusal::Recursive),
            (
                Outcome::Route(RouteError::NoHealthyUpstream(at)),
                503,
                false,
                Refusal::Route,
            ),
            (
                Outcome::WorkloadUnknown("x".into()),
                503,
                false,
                Refusal::WorkloadUnknown,
            ),
            (full, 503, false, Refusal::Capacity),
            (NoRoom::Worker.into(), 503, false, Refusal::WorkerFull),
            (NoRoom::Files { limit: 1 }.into(), 503, false, Refusal::OpenFiles),
            (
                NoRoom::Tenant { limit: 1 }.into(),
                503,
                false,
                Refusal::TenantPart,
            ),
            (Outcome::PodRemoved, 503, false, Refusal::Ending),
            (Outcome::Drained, 503, false, Refusal::Ending),
            (on_leg(Outcome::Io(broken())), 503, true, Refusal::Handshake),
            (
                on_leg(Outcome::Status(HttpStatus(401))),
                503,
                false,
                Refusal::Handshake,
            ),
        ] {
            let found = (
                outcome.connect_status(),
                outcome.is_about_an_endpoint(),
                outcome.refusal(),
            );
            assert_eq!(found, (status, is_about_an_endpoint, refusal), "{outcome}");
        }
    }
}
