//! A CA as istiod is one: the certificate service over gRPC, TLS and a token, on a thread of its own. What it
//! answers is a `Script` that a test may change at any time; what it was asked is kept in `Seen`.
//!
//! gRPC is spoken by hand over the `h2` crate: one method, one message each way.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use prost::Message;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;

use crate::authority::{Authority, ServerCertificate, Terms, requested_name};
use crate::{PATIENCE, Result, RigError};

const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// gRPC's status codes, as far as tests need them.
pub mod status {
    pub const OK: u32 = 0;
    pub const PERMISSION_DENIED: u32 = 7;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const UNAUTHENTICATED: u32 = 16;
}

/// What the CA does with requests.
#[derive(Clone)]
pub struct Script {
    pub answer: Answer,
    /// Before it answers.
    pub delay: Duration,
    /// Without this token requests are UNAUTHENTICATED.
    pub token: Option<String>,
}

#[derive(Clone)]
pub enum Answer {
    /// The leaf, `intermediates`, and the roots in one text.
    Sign {
        signer: Arc<Authority>,
        intermediates: Vec<String>,
        roots: String,
        lifetime: Duration,
        /// A name other than the one that was asked for.
        name: Option<String>,
    },
    /// Just that.
    Chain(Vec<String>),
    Fail {
        code: u32,
        message: String,
    },
    /// No answer as long as the connection lives.
    Silence,
}

impl Script {
    /// Signs everything.
    pub fn signing(signer: &Arc<Authority>, lifetime: Duration) -> Self {
        let answer = Answer::Sign {
            signer: Arc::clone(signer),
            intermediates: Vec::new(),
            roots: signer.pem(),
            lifetime,
            name: None,
        };
        Self::of(answer)
    }

    pub fn failing(code: u32, message: &str) -> Self {
        let message = message.to_owned();
        Self::of(Answer::Fail { code, message })
    }

    pub fn of(answer: Answer) -> Self {
        Self {
            answer,
            delay: Duration::ZERO,
            token: None,
        }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The name that the CSR asks for.
    pub name: String,
    /// `ImpersonatedIdentity` of the metadata.
    pub impersonated: Option<String>,
    pub validity_seconds: i64,
    pub headers: BTreeMap<String, String>,
}

/// A running CA; ended when dropped.
pub struct Ca {
    address: SocketAddr,
    shared: Arc<Shared>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    script: Script,
    seen: Vec<Seen>,
    connections: usize,
    under_way: usize,
    under_way_max: usize,
}

impl Ca {
    /// On a port of its own at 127.0.0.1.
    pub fn start(certificate: ServerCertificate, script: Script) -> Result<Self> {
        let state = State {
            script,
            seen: Vec::new(),
            connections: 0,
            under_way: 0,
            under_way_max: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let mut ca = Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            shared,
            running: None,
        };
        ca.restart(certificate)?;
        Ok(ca)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and every connection.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // It ended by a panic, which the test harness has printed.
            let _ = thread.join();
        }
        self.state().under_way = 0;
    }

    /// At the same address, with another certificate of the server.
    pub fn restart(&mut self, certificate: ServerCertificate) -> Result<()> {
        self.stop();
        let failed = |error: std::io::Error| RigError::new("starting the CA", error);
        let listener = std::net::TcpListener::bind(self.address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        self.address = listener.local_addr().map_err(failed)?;
        let acceptor = acceptor(certificate)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let shared = Arc::clone(&self.shared);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            LocalSet::new().block_on(&runtime, async move {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, acceptor, shared) => {}
                }
            });
        });
        self.running = Some((stop, thread));
        Ok(())
    }

    pub fn play(&self, script: Script) {
        self.state().script = script;
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Requests that are not under way any more.
    pub fn answered(&self) -> usize {
        let state = self.state();
        state.seen.len() - state.under_way
    }

    /// Connections that have ended included.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// The most requests that were under way at one time.
    pub fn under_way_max(&self) -> usize {
        self.state().under_way_max
    }

    /// Waits until `count` requests have arrived.
    #[track_caller]
    pub fn wait_for_requests(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        while state.seen.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} requests, not {count}", state.seen.len());
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.expect("invariant: nobody panics while holding it").0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("invariant: nobody panics while holding it")
    }
}

/// The bundle of several authorities.
pub fn bundle(authorities: &[&Authority]) -> String {
    authorities.iter().map(|it| it.pem()).collect()
}

fn acceptor(certificate: ServerCertificate) -> Result<TlsAcceptor> {
    let chain: Vec<CertificateDer<'static>> = certificate.chain;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, certificate.key)
        });
    let mut config = config.map_err(|error| RigError::new("configuring the CA's TLS", error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: std::net::TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("invariant: it was just made");
    // A failing accept ends the CA, and with it the test.
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(serve(stream, acceptor.clone(), Arc::clone(&shared)));
    }
}

/// Until the client leaves; what it does wrong ends only its own connection.
async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    shared.state().connections += 1;
    while let Some(Ok((request, respond))) = connection.accept().await {
        let shared = Arc::clone(&shared);
        tokio::task::spawn_local(async move {
            // The client may have gone meanwhile.
            let _ = answer(request, respond, &shared).await;
        });
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: &Shared,
) -> std::result::Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut message = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    let script = {
        let mut state = shared.state();
        state.seen.push(seen(&head, &message));
        state.under_way += 1;
        state.under_way_max = state.under_way_max.max(state.under_way);
        shared.changed.notify_all();
        state.script.clone()
    };
    tokio::time::sleep(script.delay).await;
    if matches!(script.answer, Answer::Silence) {
        std::future::pending::<()>().await;
    }
    let outcome = decide(&script, &head, &message);
    {
        let mut state = shared.state();
        state.under_way = state.under_way.saturating_sub(1);
    }
    let head = http::Response::builder().header("content-type", "application/grpc");
    match outcome {
        Ok(chain) => {
            let head = head.body(()).expect("invariant: a legal response");
            let mut stream = respond.send_response(head, false)?;
            stream.send_data(frame(&Response { cert_chain: chain }), false)?;
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", status::OK.into());
            stream.send_trailers(trailers)
        }
        Err((code, message)) => {
            let head = head
                .header("grpc-status", code)
                .header("grpc-message", message.replace(' ', "%20"))
                .body(())
                .expect("invariant: a legal response");
            respond.send_response(head, true).map(drop)
        }
    }
}

fn seen(head: &http::request::Parts, message: &[u8]) -> Seen {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter();
    let headers = headers.map(|(name, value)| (name.to_string(), text(value)));
    let request = decode(message).unwrap_or_default();
    let impersonated = request.metadata.and_then(|mut metadata| {
        match metadata.fields.remove("ImpersonatedIdentity")?.kind? {
            prost_types::value::Kind::StringValue(name) => Some(name),
            _ => None,
        }
    });
    Seen {
        name: requested_name(&request.csr).unwrap_or_else(|error| error.to_string()),
        impersonated,
        validity_seconds: request.validity_duration,
        headers: headers.collect(),
    }
}

/// The chain, or a status.
fn decide(
    script: &Script,
    head: &http::request::Parts,
    message: &[u8],
) -> std::result::Result<Vec<String>, (u32, String)> {
    if head.uri.path() != METHOD {
        return Err((status::UNIMPLEMENTED, format!("no method {}", head.uri.path())));
    }
    if let Some(token) = &script.token {
        let shown = head.headers.get("authorization");
        if shown.map(http::HeaderValue::as_bytes) != Some(format!("Bearer {token}").as_bytes()) {
            return Err((status::UNAUTHENTICATED, "authentication failure".to_owned()));
        }
    }
    match &script.answer {
        Answer::Sign {
            signer,
            intermediates,
            roots,
            lifetime,
            name,
        } => {
            let mut terms = Terms::lasting(*lifetime);
            terms.name.clone_from(name);
            let leaf = decode(message).and_then(|request| signer.sign(&request.csr, &terms).ok());
            let leaf = leaf.ok_or((status::PERMISSION_DENIED, "unreadable CSR".to_owned()))?;
            let chain = [leaf].into_iter().chain(intermediates.iter().cloned());
            Ok(chain.chain([roots.clone()]).collect())
        }
        Answer::Chain(chain) => Ok(chain.clone()),
        Answer::Fail { code, message } => Err((*code, message.clone())),
        Answer::Silence => unreachable!("a silent CA decides nothing"),
    }
}

/// The message behind gRPC's prefix of five bytes.
fn decode(message: &[u8]) -> Option<Request> {
    Request::decode(message.get(5..)?).ok()
}

fn frame(response: &Response) -> Bytes {
    let length = response.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("invariant: far below 4 GiB"));
    bytes.extend_from_slice(&response.encode_to_vec());
    bytes.freeze()
}

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<prost_types::Struct>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}
