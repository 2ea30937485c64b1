//! A stand-in for a waypoint: an HBONE server of a pod that writes down what it is asked for, and sends back the bytes
//! of the streams that it takes. Made of rustls and h2, so it shares nothing with the program under test.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::applications::Server;
use crate::lock;
use crate::world::Pod;

pub const PORT: u16 = 15008;

/// Who the server is, and whose clients it takes.
pub struct Credentials {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub root: CertificateDer<'static>,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    pub authority: String,
    /// In no order.
    pub headers: Vec<(String, String)>,
    pub peer: SocketAddr,
}

impl Asked {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| &**value)
    }
}

/// Ends when dropped.
pub struct HboneServer {
    asked: Arc<Mutex<Vec<Asked>>>,
    sessions: Arc<AtomicUsize>,
    /// Counted.
    goodbyes: watch::Sender<usize>,
    server: Server,
}

/// What its connections share.
#[derive(Clone)]
struct Shared {
    asked: Arc<Mutex<Vec<Asked>>>,
    sessions: Arc<AtomicUsize>,
    goodbyes: watch::Receiver<usize>,
    status: u16,
}

impl HboneServer {
    /// Answers every request with `status`.
    pub fn start(pod: &Pod, credentials: Credentials, status: u16) -> Self {
        let tls = TlsAcceptor::from(Arc::new(config(credentials)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let sessions = Arc::new(AtomicUsize::new(0));
        let (goodbyes, goodbyes_seen) = watch::channel(0);
        let shared = Shared {
            asked: Arc::clone(&asked),
            sessions: Arc::clone(&sessions),
            goodbyes: goodbyes_seen,
            status,
        };
        let server = pod.serve(PORT, move |socket, peer| {
            serve(socket, peer, tls.clone(), shared.clone())
        });
        Self {
            asked,
            sessions,
            goodbyes,
            server,
        }
    }

    /// Sessions so far.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// How connections ended, those that have.
    pub fn connections_ended(&self) -> Vec<Result<(), io::ErrorKind>> {
        self.server.ended()
    }

    /// Takes no further streams on the sessions that there are; those on them go on.
    pub fn say_goodbye(&self) {
        self.goodbyes.send_modify(|goodbyes| *goodbyes += 1);
    }

    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.asked).clone()
    }
}

pub(crate) fn config(credentials: Credentials) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(credentials.root).expect("a root");
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a version of the provider")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(credentials.chain, credentials.key)
        .expect("a certificate and its key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

async fn serve(socket: TcpStream, peer: SocketAddr, tls: TlsAcceptor, mut shared: Shared) -> io::Result<()> {
    shared.goodbyes.mark_unchanged();
    let socket = tls.accept(socket).await?;
    let mut connection = h2::server::handshake(socket).await.map_err(io::Error::other)?;
    shared.sessions.fetch_add(1, Ordering::Relaxed);
    let mut streams = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            request = connection.accept() => {
                let Some(request) = request else { return Ok(()) };
                let (request, respond) = request.map_err(io::Error::other)?;
                lock(&shared.asked).push(record(&request, peer));
                streams.spawn(answer(request.into_body(), respond, shared.status));
            }
            Ok(()) = shared.goodbyes.changed() => connection.graceful_shutdown(),
        }
    }
}

pub(crate) fn record(request: &Request<RecvStream>, peer: SocketAddr) -> Asked {
    Asked {
        method: request.method().to_string(),
        authority: request.uri().to_string(),
        headers: lines(request.headers()),
        peer,
    }
}

fn lines(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}

/// Sends back what comes, and the end when the end comes.
async fn answer(
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    status: u16,
) -> Result<(), h2::Error> {
    let response = Response::builder().status(status).body(());
    let response = response.expect("invariant: a status is all that it has");
    let mut out = respond.send_response(response, status != 200)?;
    if status != 200 {
        return Ok(());
    }
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        out.send_data(data, false)?;
    }
    out.send_data(Bytes::new(), true)
}
