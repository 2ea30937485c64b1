//! The certificate service: requests in, chains or statuses out, by a script that a test may change at any time.
//!
//! gRPC is spoken by hand over the `h2` crate: one method, one message each way. Whose port it is behind does not
//! matter: a `Ca` has one for itself, an `Istiod` serves it beside discovery.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use prost::Message;

use crate::PATIENCE;
use crate::authority::{Authority, Terms, requested_name};

pub(crate) const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// gRPC's status codes, as far as tests need them.
pub mod status {
    pub const OK: u32 = 0;
    pub const CANCELLED: u32 = 1;
    pub const UNKNOWN: u32 = 2;
    pub const PERMISSION_DENIED: u32 = 7;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const INTERNAL: u32 = 13;
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
    /// The stream is reset instead.
    Reset(h2::Reason),
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

/// The service, and the record of what it was asked. Clones share both.
#[derive(Clone)]
pub struct Service(Arc<Shared>);

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
    signed: usize,
}

impl Service {
    pub fn new(script: Script) -> Self {
        let state = State {
            script,
            seen: Vec::new(),
            connections: 0,
            under_way: 0,
            under_way_max: 0,
            signed: 0,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
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

    /// Requests that were answered with a chain.
    pub fn signed(&self) -> usize {
        self.state().signed
    }

    /// Of a `Ca`; connections that have ended included.
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
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.expect("invariant: nobody panics while holding it").0;
        }
    }

    pub(super) fn connected(&self) {
        self.state().connections += 1;
    }

    /// Every connection is gone, and what was under way with it.
    pub(crate) fn disconnected(&self) {
        self.state().under_way = 0;
    }

    /// Answers one request, whichever way it is to be answered.
    pub(crate) async fn answer(
        &self,
        request: http::Request<h2::RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> std::result::Result<(), h2::Error> {
        answer(request, respond, &self.0).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("invariant: nobody panics while holding it")
    }

    fn answered(&self, is_signed: bool) {
        let mut state = self.state();
        state.under_way = state.under_way.saturating_sub(1);
        state.signed += usize::from(is_signed);
    }
}

/// The bundle of several authorities.
pub fn bundle(authorities: &[&Authority]) -> String {
    authorities.iter().map(|it| it.pem()).collect()
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
    if let Answer::Reset(reason) = script.answer {
        shared.answered(false);
        respond.send_reset(reason);
        return Ok(());
    }
    let outcome = decide(&script, &head, &message);
    shared.answered(outcome.is_ok());
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
        Answer::Reset(_) | Answer::Silence => unreachable!("a CA that does not answer decides nothing"),
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
