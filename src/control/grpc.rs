//! gRPC to one server of the control plane: connecting, proving who we are, calling.
//!
//! Control thread. A `Server` is what the configuration says; `Server::connect` makes a fresh `Channel` each time,
//! one HTTP/2 connection over TLS, and there is no pool and no retry: the callers know what a failure means to them.
//! Roots are read again at every connect and the token at every request, so that both may be rotated on disk.
//! Specification: sections 1.1, 1.2 and 3.3 of the control-plane contract.
//!
//! ```text
//! let server = Server::new(&config.control.ca, config.control.auth_token.as_ref(), &config.node.cluster_id);
//! let mut channel = server.connect().await?;
//! let answer: Answer = channel.unary(PATH, server.request(question)?, limits::...).await?;
//! ```
//!
//! Invariant: nothing is sent to a server whose chain and name were not verified; a token appears in no log.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use http_body_util::combinators::MapErr;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::HeaderValue;
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, Uri, Version, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::{BufferSettings, EncodeBody};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::config::{self, AuthToken, Compliance, TrustRoots};
use crate::limits;
use crate::sys::socket::{self, Keepalive, Options};
use crate::tls::server_trust::{self, TrustError};

mod answers;
mod failure;
mod pauses;

pub use answers::{Answers, Piece};
pub use pauses::Pauses;

use pauses::Paused;

/// Why there is no connection to a server, or no credentials to show it.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error("invalid address {uri:?}: {reason}")]
    Address { uri: String, reason: String },
    #[error("invalid alt hostname {0:?}")]
    OtherName(String),
    #[error("cannot read the root certificates from {}: {source}", path.display())]
    RootsFile { path: PathBuf, source: io::Error },
    #[error("cannot read the system's root certificates: {0}")]
    SystemRoots(String),
    #[error("cannot trust anybody by the root certificates from {origin}: {source}")]
    Roots { origin: String, source: TrustError },
    #[error("cannot read the token from {}: {source}", path.display())]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("token file exists, but was empty: {}", .0.display())]
    EmptyToken(PathBuf),
    #[error("the token from {origin} cannot be sent: it is no legal header value")]
    IllegalToken { origin: String },
    #[error("header {name} cannot be sent: it is no legal {what}")]
    IllegalHeader { name: String, what: &'static str },
    #[error("cannot find the address of {host}: {source} (hint: is the DNS server reachable?)")]
    Resolve { host: String, source: io::Error },
    #[error("cannot connect to {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("tls handshake with {host} failed: {reason}")]
    Tls { host: String, reason: String },
    #[error("{host} does not speak HTTP/2: {reason}")]
    Http { host: String, reason: String },
}

impl GrpcError {
    /// Nothing answers at the address: the server is away, or not there yet.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Resolve { .. } | Self::Connect { .. })
    }

    /// No server is at fault: what is on this node, or in the configuration, cannot be used.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::OtherName(_)
            | Self::RootsFile { .. }
            | Self::SystemRoots(_)
            | Self::Roots { .. }
            | Self::TokenFile { .. }
            | Self::EmptyToken(_)
            | Self::IllegalToken { .. }
            | Self::IllegalHeader { .. } => true,
            Self::Resolve { .. } | Self::Connect { .. } | Self::Tls { .. } | Self::Http { .. } => false,
        }
    }
}

/// A server, and what it is told about us. Nothing is read from disk before it is needed.
#[derive(Debug, Clone)]
pub struct Server {
    origin: Uri,
    host: String,
    port: u16,
    name: ServerName<'static>,
    other_name: Option<ServerName<'static>>,
    roots: TrustRoots,
    headers: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
    token: Option<AuthToken>,
    cluster_id: AsciiMetadataValue,
    compliance: Compliance,
}

impl Server {
    pub fn new(
        server: &config::Server,
        token: Option<&AuthToken>,
        cluster_id: &str,
    ) -> Result<Self, GrpcError> {
        let invalid = |reason: String| GrpcError::Address {
            uri: server.uri.clone(),
            reason,
        };
        let uri: Uri = server
            .uri
            .parse()
            .map_err(|error: hyper::http::uri::InvalidUri| invalid(error.to_string()))?;
        let authority = uri
            .authority()
            .ok_or_else(|| invalid("it has no host".to_owned()))?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = authority
            .port_u16()
            .unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        // Plain text is never spoken, whatever the scheme says.
        let origin = Uri::builder()
            .scheme("https")
            .authority(authority.as_str())
            .path_and_query("/")
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        let name = ServerName::try_from(host.clone()).map_err(|error| invalid(error.to_string()))?;
        let other_name = server.other_hostname.as_ref().map(|other| {
            ServerName::try_from(other.clone()).map_err(|_| GrpcError::OtherName(other.clone()))
        });
        let headers = server.headers.iter().map(|(key, value)| metadata(key, value));
        Ok(Self {
            origin,
            host,
            port,
            name,
            other_name: other_name.transpose()?,
            roots: server.roots.clone(),
            headers: headers.collect::<Result<_, _>>()?,
            token: token.cloned(),
            cluster_id: metadata("clusterid", cluster_id)?.1,
            compliance: Compliance::Default,
        })
    }

    /// What its TLS connections are restricted to.
    pub fn with_compliance(self, compliance: Compliance) -> Self {
        Self { compliance, ..self }
    }

    /// A new connection. May take `CONTROL_CONNECT_TIMEOUT` per address and `CONTROL_HANDSHAKE_TIMEOUT`.
    pub async fn connect(&self) -> Result<Channel, GrpcError> {
        let tls = self.trust().await?;
        let pauses = Pauses::default();
        let stream = Paused::new(self.dial().await?, pauses.clone());
        let handshakes = async {
            let stream = self.shake_hands(tls, stream).await?;
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(limits::CONTROL_WINDOW_BYTES)
                .initial_connection_window_size(limits::CONTROL_WINDOW_BYTES)
                .keep_alive_interval(limits::CONTROL_PING_INTERVAL)
                .keep_alive_timeout(limits::CONTROL_PING_TIMEOUT)
                .keep_alive_while_idle(false)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|error| self.no_http(&failure::text(&error)))
        };
        let waited = timeout(limits::CONTROL_HANDSHAKE_TIMEOUT, handshakes).await;
        let (sender, connection) = waited.map_err(|_| self.no_tls("no answer in time"))??;
        // It ends with the last handle and the last stream.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                let error = failure::text(&error);
                tracing::debug!(error, "connection to the control plane ended");
            }
        });
        Ok(Channel {
            connection: Connection(sender),
            origin: self.origin.clone(),
            pauses,
        })
    }

    /// A message with everything that a request needs beside it: the configured headers, then the credentials,
    /// which win.
    pub fn request<M>(&self, message: M) -> Result<tonic::Request<M>, GrpcError> {
        let mut request = tonic::Request::new(message);
        let metadata: &mut MetadataMap = request.metadata_mut();
        for (key, value) in &self.headers {
            metadata.insert(key.clone(), value.clone());
        }
        if let Some(token) = &self.token {
            metadata.insert("authorization", bearer(token)?);
            metadata.insert("clusterid", self.cluster_id.clone());
        }
        Ok(request)
    }

    /// By another thread: the system's roots are many, and a disk may be slow.
    async fn trust(&self) -> Result<rustls::ClientConfig, GrpcError> {
        let (roots, other_name, compliance) = (self.roots.clone(), self.other_name.clone(), self.compliance);
        let reading = tokio::task::spawn_blocking(move || {
            let (origin, roots) = read_roots(&roots)?;
            server_trust::client_config(roots, other_name, compliance)
                .map_err(|source| GrpcError::Roots { origin, source })
        });
        reading.await.expect("invariant: reading roots does not panic")
    }

    async fn dial(&self) -> Result<TcpStream, GrpcError> {
        let no_address = |source| GrpcError::Resolve {
            host: self.host.clone(),
            source,
        };
        let resolving = tokio::net::lookup_host((self.host.as_str(), self.port));
        let addresses = timeout(limits::CONTROL_CONNECT_TIMEOUT, resolving)
            .await
            .map_err(|_| no_address(io::ErrorKind::TimedOut.into()))?
            .map_err(no_address)?;
        let mut failure = no_address(io::ErrorKind::NotFound.into());
        for address in addresses.take(limits::CONTROL_ADDRESSES_MAX) {
            let connecting = timeout(limits::CONTROL_CONNECT_TIMEOUT, TcpStream::connect(address));
            match connecting.await {
                Ok(Ok(stream)) => {
                    let options = Options {
                        keepalive: Some(KEEPALIVE),
                        ..Options::default()
                    };
                    socket::set_options(stream.as_fd(), &options);
                    return Ok(stream);
                }
                Ok(Err(source)) => failure = GrpcError::Connect { address, source },
                Err(_) => {
                    let source = io::ErrorKind::TimedOut.into();
                    failure = GrpcError::Connect { address, source };
                }
            }
        }
        Err(failure)
    }

    async fn shake_hands(
        &self,
        tls: rustls::ClientConfig,
        stream: Paused<TcpStream>,
    ) -> Result<TlsStream<BufReader<Paused<TcpStream>>>, GrpcError> {
        // By itself rustls reads 4 KiB at a time, a quarter of a record.
        let stream = BufReader::with_capacity(limits::CONTROL_READ_BYTES, stream);
        let stream = TlsConnector::from(Arc::new(tls))
            .connect(self.name.clone(), stream)
            .await
            .map_err(|error| self.no_tls(&error.to_string()))?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Ok(stream),
            Some(_) | None => Err(self.no_http("it did not agree to h2 in the TLS handshake")),
        }
    }

    fn no_tls(&self, reason: &str) -> GrpcError {
        GrpcError::Tls {
            host: self.host.clone(),
            reason: reason.to_owned(),
        }
    }

    fn no_http(&self, reason: &str) -> GrpcError {
        GrpcError::Http {
            host: self.host.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// One connection; clones share it. Calls on a connection that has ended fail with a status.
#[derive(Debug, Clone)]
pub struct Channel {
    connection: Connection,
    origin: Uri,
    pauses: Pauses,
}

impl Channel {
    /// In which nothing is read from it.
    pub fn pauses(&self) -> &Pauses {
        &self.pauses
    }

    /// Opens a stream both ways. What is in `requests` already is sent at once; a server may answer with headers
    /// only when it has something to say, and until then this waits.
    pub async fn stream<Q>(
        &mut self,
        path: &'static str,
        requests: tonic::Request<mpsc::Receiver<Q>>,
        answer_bytes_max: usize,
    ) -> Result<Answers<Incoming>, Status>
    where
        Q: Message + Send + Sync + 'static,
    {
        let Connection(sender) = &mut self.connection;
        sender.ready().await.map_err(|error| broken(&error))?;
        let (metadata, _, requests) = requests.into_parts();
        let encoder = ProstEncoder::<Q>::new(BufferSettings::default());
        let requests = ReceiverStream::new(requests).map(Ok);
        let mut request = Request::new(Body::new(EncodeBody::new_client(encoder, requests, None, None)));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = at(&self.origin, path);
        *request.headers_mut() = metadata.into_headers();
        let headers = request.headers_mut();
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let response = sender.send_request(request).await.map_err(failed)?;
        Answers::new(response, answer_bytes_max)
    }

    /// One question, one answer. Has no deadline: the caller sets one.
    pub async fn unary<Q, A>(
        &mut self,
        path: &'static str,
        request: tonic::Request<Q>,
        answer_bytes_max: usize,
    ) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut client = self.client(answer_bytes_max);
        client.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let response = client
            .unary(request, PathAndQuery::from_static(path), codec)
            .await?;
        Ok(response.into_inner())
    }

    fn client(&self, answer_bytes_max: usize) -> Grpc<Connection> {
        Grpc::with_origin(self.connection.clone(), self.origin.clone())
            .max_decoding_message_size(answer_bytes_max)
    }
}

/// Contract: section 1.1.
const KEEPALIVE: Keepalive = Keepalive {
    time_s: 300,
    interval_s: 75,
    retries: 9,
};

/// hyper's HTTP/2 client as tonic wants it. Errors are statuses already: of hyper's tonic knows nothing.
#[derive(Debug, Clone)]
struct Connection(SendRequest<Body>);

type Answered = MapErr<Incoming, fn(hyper::Error) -> Status>;

impl GrpcService<Body> for Connection {
    type ResponseBody = Answered;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answered>, Status>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.poll_ready(context).map_err(|error| broken(&error))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answering = self.0.send_request(request);
        Box::pin(async {
            let response = answering.await.map_err(failed)?;
            Ok(response.map(|body| body.map_err(failed as fn(hyper::Error) -> Status)))
        })
    }
}

/// Where something is from that is in a variable itself.
const NO_FILE: &str = "the configuration (which names no file)";

/// Another path of the same server.
fn at(origin: &Uri, path: &'static str) -> Uri {
    let mut parts = origin.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static(path));
    Uri::from_parts(parts).expect("invariant: an origin is whole, and the path is a constant")
}

fn broken(error: &hyper::Error) -> Status {
    Status::unavailable(format!("connection ended: {}", failure::text(error)))
}

fn failed(error: hyper::Error) -> Status {
    failure::status(error.into())
}

fn metadata(name: &str, value: &str) -> Result<(AsciiMetadataKey, AsciiMetadataValue), GrpcError> {
    let illegal = |what| GrpcError::IllegalHeader {
        name: name.to_owned(),
        what,
    };
    let key = AsciiMetadataKey::from_bytes(name.as_bytes()).map_err(|_| illegal("header name"))?;
    let value = value.parse().map_err(|_| illegal("header value"))?;
    Ok((key, value))
}

/// Without the white space around it: a file written by hand ends in a newline, which no header may hold.
fn read_token(token: &AuthToken) -> Result<String, GrpcError> {
    match token {
        AuthToken::Literal(text) => Ok(text.trim().to_owned()),
        AuthToken::File(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| GrpcError::TokenFile {
                path: path.clone(),
                source,
            })?;
            match text.trim() {
                "" => Err(GrpcError::EmptyToken(path.clone())),
                token => Ok(token.to_owned()),
            }
        }
    }
}

fn bearer(token: &AuthToken) -> Result<AsciiMetadataValue, GrpcError> {
    let value = format!("Bearer {}", read_token(token)?).parse();
    let mut value: AsciiMetadataValue = value.map_err(|_| GrpcError::IllegalToken {
        origin: match token {
            AuthToken::File(path) => path.display().to_string(),
            AuthToken::Literal(_) => NO_FILE.to_owned(),
        },
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The certificates, and what to call the place that they are from.
fn read_roots(roots: &TrustRoots) -> Result<(String, Vec<CertificateDer<'static>>), GrpcError> {
    match roots {
        TrustRoots::File(path) => {
            let text = std::fs::read(path).map_err(|source| GrpcError::RootsFile {
                path: path.clone(),
                source,
            })?;
            let certificates = server_trust::certificates_of_pem(&text);
            Ok((path.display().to_string(), certificates))
        }
        TrustRoots::Pem(text) => {
            let certificates = server_trust::certificates_of_pem(text.as_bytes());
            Ok((NO_FILE.to_owned(), certificates))
        }
        TrustRoots::System => {
            let loaded = rustls_native_certs::load_native_certs();
            match loaded.errors.first() {
                Some(error) => Err(GrpcError::SystemRoots(error.to_string())),
                None => Ok(("the system".to_owned(), loaded.certs)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(uri: &str) -> Result<Server, GrpcError> {
        let config = config::Server {
            uri: uri.to_owned(),
            roots: TrustRoots::Pem(String::new()),
            other_hostname: None,
            headers: vec![("x-a".to_owned(), "1".to_owned())],
        };
        Server::new(&config, Some(&AuthToken::Literal(" token\n".to_owned())), "c")
    }

    #[test]
    fn an_address_is_a_host_a_port_and_always_tls() {
        for (uri, host, port) in [
            (
                "https://istiod.istio-system.svc:15012",
                "istiod.istio-system.svc",
                15012,
            ),
            ("https://istiod", "istiod", 443),
            ("http://istiod:15010", "istiod", 15010),
            ("http://istiod", "istiod", 80),
            ("https://[fd00::1]:15012", "fd00::1", 15012),
            ("https://10.0.0.1:1", "10.0.0.1", 1),
        ] {
            let server = server(uri).expect(uri);
            assert_eq!((server.host.as_str(), server.port), (host, port), "{uri}");
            assert_eq!(server.origin.scheme_str(), Some("https"));
        }
        assert!(matches!(
            server("https://bad host"),
            Err(GrpcError::Address { .. })
        ));
    }

    #[test]
    fn a_request_carries_headers_and_a_trimmed_token_that_no_log_shows() {
        let request = server("https://istiod")
            .expect("a server")
            .request(())
            .expect("a request");
        let metadata = request.metadata();
        let text = |name: &str| metadata.get(name).map(|value| value.to_str().expect("text"));
        assert_eq!(text("authorization"), Some("Bearer token"));
        assert_eq!((text("clusterid"), text("x-a")), (Some("c"), Some("1")));
        assert!(!format!("{metadata:?}").contains("Bearer"));
    }

    #[test]
    fn without_a_token_no_credentials_are_sent() {
        let mut server = server("https://istiod").expect("a server");
        server.token = None;
        let request = server.request(()).expect("a request");
        let names: Vec<String> = request
            .metadata()
            .keys()
            .map(|key| match key {
                tonic::metadata::KeyRef::Ascii(key) => key.as_str().to_owned(),
                tonic::metadata::KeyRef::Binary(key) => key.as_str().to_owned(),
            })
            .collect();
        assert_eq!(names, ["x-a"]);
    }

    #[test]
    fn roots_that_are_none_are_told_from_servers_that_are_not_trusted() {
        let server = server("https://istiod").expect("a server");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let trusted = runtime.block_on(server.trust());
        let error = trusted.expect_err("no roots").to_string();
        assert_eq!(
            error,
            "cannot trust anybody by the root certificates from the configuration (which names no file): no \
             certificate in it can be used as a root (0 found)"
        );
    }
}
