//! The client of the CA: istiod, or whoever speaks its certificate service (istio-csr).
//!
//! Control thread. One connection serves all requests for a while; it is made anew when it breaks and when it is
//! older than `limits::CA_CONNECTION_AGE_MAX`, so that roots which were rotated on disk come into use without
//! anybody watching the file. While no other can be made it stays in use, unless the CA is not trusted any more. Which
//! identity is asked for and when is decided by `control::certificates`.
//! Specification: sections 1.2, 2.2, 2.3 and 2.6 of the control-plane contract.
//!
//! Invariant: a request ends within `limits::CERTIFICATE_REQUEST_TIMEOUT`, so that a CA that hangs cannot hold the
//! places of all requests for ever.

use std::cell::Cell;
use std::error::Error;

use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::bridge::CertificateError;
use crate::clock::{self, Duration, Instant};
use crate::control::certificates::Authority;
use crate::control::grpc::{Channel, GrpcError, Server};
use crate::control::spread;
use crate::identity::Identity;
use crate::limits;
use crate::tls::csr::CertificateRequest;
use crate::tls::{CertifiedIdentity, FakeCa, TlsError};
use crate::wire::ca::{self, Answer, Request};

/// Why the CA gave no certificate.
#[derive(Debug, Clone, thiserror::Error)]
enum CaError {
    /// Also: no credentials to show.
    #[error("cannot ask the CA: {0}")]
    Unreachable(std::sync::Arc<GrpcError>),
    #[error("signing gRPC error ({code:?}): {message}")]
    Refused { code: Code, message: String },
    /// The connection broke under the request, or the server is ending.
    #[error("signing gRPC error ({code:?}): {message}")]
    Broken { code: Code, message: String },
    #[error("no connection to the CA within {} s", limits::CERTIFICATE_REQUEST_TIMEOUT.as_secs())]
    Unconnected,
    #[error("no answer from the CA within {} s", limits::CERTIFICATE_REQUEST_TIMEOUT.as_secs())]
    Silent,
    #[error(transparent)]
    Certificate(#[from] TlsError),
}

/// Who signs, as the configuration says.
pub enum Signer {
    Fake(Box<FakeCa>),
    Ca(Box<Ca>),
}

impl Authority for Signer {
    async fn issue(&self, identity: Identity) -> Result<CertifiedIdentity, CertificateError> {
        match self {
            Self::Fake(fake) => Authority::issue(&**fake, identity).await,
            Self::Ca(ca) => ca.issue(identity).await,
        }
    }
}

pub struct Ca {
    server: Server,
    lifetime: Duration,
    connection: Mutex<Connection>,
    /// By which the age of a connection is told, and how long making one took.
    clock: Box<dyn Fn() -> Instant>,
}

/// Who waits for the lock while another connects shares the outcome.
#[derive(Default)]
struct Connection {
    open: Option<Open>,
    /// Tells connections apart.
    made: u64,
    failure: Option<(Instant, CaError)>,
}

#[derive(Clone)]
struct Open {
    channel: Channel,
    number: u64,
    since: Instant,
}

impl Ca {
    /// `lifetime` is what certificates are asked for; the CA may give less.
    pub fn new(server: Server, lifetime: Duration) -> Self {
        Self {
            server,
            lifetime,
            connection: Mutex::default(),
            clock: Box::new(clock::now),
        }
    }

    /// With another clock than the process's.
    pub fn with_clock(self, clock: impl Fn() -> Instant + 'static) -> Self {
        Self {
            clock: Box::new(clock),
            ..self
        }
    }

    async fn certify(&self, identity: Identity) -> Result<CertifiedIdentity, CaError> {
        let request = CertificateRequest::new(identity.clone())?;
        let question = ca::request(request.pem(), self.lifetime, &identity);
        let over = Cell::new(None);
        let asking = self.ask(question, &over);
        let Ok(answered) = timeout(limits::CERTIFICATE_REQUEST_TIMEOUT, asking).await else {
            let Some(number) = over.get() else {
                return Err(CaError::Unconnected);
            };
            // Where one request hangs the next would. If the lock is taken, somebody connects already.
            if let Ok(mut connection) = self.connection.try_lock() {
                connection.give_up(number);
            }
            return Err(CaError::Silent);
        };
        Ok(request.certify(&answered?.cert_chain)?)
    }

    /// A connection that was good before may have ended unnoticed, and a server that restarts is back soon, or
    /// another one takes its place: connections that wait for a first certificate must not fail for that. `over`: the
    /// number of the connection that is being asked over.
    async fn ask(&self, question: Request, over: &Cell<Option<u64>>) -> Result<Answer, CaError> {
        for pause in limits::CA_PAUSES {
            let began = (self.clock)();
            match self.attempt(question.clone(), over).await {
                Err(error) if error.is_worth_another_attempt((self.clock)() - began) => {
                    tokio::time::sleep(spread(pause, fastrand::f64())).await;
                }
                answer => return answer,
            }
        }
        self.attempt(question, over).await
    }

    async fn attempt(&self, question: Request, over: &Cell<Option<u64>>) -> Result<Answer, CaError> {
        over.set(None);
        let mut open = self.connect((self.clock)()).await?;
        over.set(Some(open.number));
        self.ask_over(&mut open, question).await
    }

    async fn ask_over(&self, open: &mut Open, question: Request) -> Result<Answer, CaError> {
        let request = self.server.request(question).map_err(CaError::unreachable)?;
        let asking = open
            .channel
            .unary(ca::CREATE_CERTIFICATE, request, limits::CA_ANSWER_BYTES_MAX);
        let answer = asking.await.map_err(CaError::from);
        if let Err(CaError::Broken { .. }) = &answer {
            self.connection.lock().await.give_up(open.number);
        }
        answer
    }

    /// For somebody who asks since `asked_at`.
    async fn connect(&self, asked_at: Instant) -> Result<Open, CaError> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = &connection.open
            && (self.clock)().saturating_duration_since(open.since) < limits::CA_CONNECTION_AGE_MAX
        {
            return Ok(open.clone());
        }
        if let Some((failed_at, error)) = &connection.failure
            && *failed_at >= asked_at
        {
            return connection.open.clone().ok_or_else(|| error.clone());
        }
        match self.server.connect().await {
            Ok(channel) => {
                connection.made += 1;
                let open = Open {
                    channel,
                    number: connection.made,
                    since: (self.clock)(),
                };
                connection.open = Some(open.clone());
                connection.failure = None;
                Ok(open)
            }
            Err(error) => {
                // A CA that does not hold against the roots of now is not believed over an old connection either.
                let says_nothing_of_the_ca = error.is_local() || error.is_unreachable();
                connection.open = connection.open.take().filter(|_| says_nothing_of_the_ca);
                if connection.open.is_some() {
                    tracing::warn!(%error, "no new connection to the CA, so that the old one stays in use");
                }
                let error = CaError::unreachable(error);
                connection.failure = Some(((self.clock)(), error.clone()));
                connection.open.clone().ok_or(error)
            }
        }
    }
}

impl Connection {
    /// Unless another one was made meanwhile.
    fn give_up(&mut self, number: u64) {
        if self.open.as_ref().is_some_and(|open| open.number == number) {
            self.open = None;
        }
    }
}

impl Authority for Ca {
    async fn issue(&self, identity: Identity) -> Result<CertifiedIdentity, CertificateError> {
        let certified = self.certify(identity).await;
        certified.map_err(|error| CertificateError(error.to_string().into()))
    }
}

impl CaError {
    /// Another connection may be better, and soon. What swallows packets would swallow those of the next attempt, and
    /// the time of the request with them: what cannot be reached would be told by nobody.
    fn is_worth_another_attempt(&self, took: Duration) -> bool {
        match self {
            Self::Broken { .. } => true,
            Self::Unreachable(_) => took < limits::CA_CONNECTING_SOON,
            Self::Refused { .. } | Self::Unconnected | Self::Silent | Self::Certificate(_) => false,
        }
    }

    fn unreachable(error: GrpcError) -> Self {
        Self::Unreachable(error.into())
    }
}

impl From<Status> for CaError {
    fn from(status: Status) -> Self {
        let (code, message) = (status.code(), status.message().to_owned());
        match is_of_the_connection(&status) {
            true => Self::Broken { code, message },
            false => Self::Refused { code, message },
        }
    }
}

/// Whether a connection that ended, or a server that is ending, is why a request failed. A CA that is not ready or
/// cannot sign answers with the same codes: what a transport fails with has that error for its source, an answer has
/// none.
fn is_of_the_connection(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Cancelled | Code::Internal => status.source().is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, TrustRoots};

    #[test]
    fn who_waits_for_a_connection_for_too_long_is_told_so() {
        let config = config::Server {
            uri: "https://127.0.0.1".to_owned(),
            roots: TrustRoots::Pem(String::new()),
            other_hostname: None,
            headers: Vec::new(),
        };
        let server = Server::new(&config, None, "").expect("valid");
        let ca = Ca::new(server, Duration::from_secs(3600));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let _connects = ca.connection.lock().await;
            let cart = Identity::new("cluster.local", "shop", "cart");
            let error = ca.certify(cart).await.expect_err("nobody connects");
            assert_eq!(error.to_string(), "no connection to the CA within 15 s");
        });
    }
}
