//! A control plane of our own: delta discovery and the certificate service on one address, over real gRPC, TLS and
//! tokens, by script.
//!
//! It holds resources and answers as istiod does: a first request of a type is answered with what its list of
//! versions lacks and with what it has too much, changes are pushed to every stream. On command it keeps silent,
//! refuses, turns the order round, ends streams, cuts connections, or goes away and comes back on the same port, with
//! the same root or another. Everything that was asked, sent and answered is on record. As in istiod, one root signs
//! for the server and for the mesh. It is written on bare HTTP/2, so that it shares no code with the client that it
//! tests.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::applications::when_free;
use crate::authority::Authority;
use crate::ca::{self, Script, Service};
use crate::lock;
use crate::proxy::{ProxyOptions, Upstream};
use crate::world::World;
use crate::{Result, RigError, addresses, wait_until};

mod crowd;
mod mesh;
mod on_demand;
mod serve;

pub use crowd::Crowd;
pub use mesh::deny_namespace;

/// Generated from proto/*.proto, for those who make resources.
#[allow(clippy::all)]
pub mod messages {
    pub mod discovery {
        include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
    }
    pub mod workload {
        include!(concat!(env!("OUT_DIR"), "/istio.workload.rs"));
    }
    pub mod security {
        include!(concat!(env!("OUT_DIR"), "/istio.security.rs"));
    }
}

use messages::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// The name that the server's certificate is for.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";

/// The only token that is let in.
pub const TOKEN: &str = "a-token-of-the-rig";

pub const PORT: u16 = 15012;
pub const ROOTS_FILE: &str = "istiod-root.pem";
const TOKEN_FILE: &str = "istiod-token";

/// Of workload certificates, unless a test says otherwise: what proxies ask for by default.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// What gRPC servers take in one message by default.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// One resource as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub name: String,
    pub version: String,
    pub value: Vec<u8>,
}

impl Resource {
    /// Memory that it owns, beside itself.
    pub fn heap_bytes(&self) -> usize {
        self.name.capacity() + self.version.capacity() + self.value.capacity()
    }
}

/// A request, and on which stream it came (counted from 0 over the server's life).
#[derive(Debug, Clone)]
pub struct Asked {
    pub stream: usize,
    pub headers: http::HeaderMap,
    pub request: DeltaDiscoveryRequest,
}

/// What was sent on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub stream: usize,
    pub type_url: String,
    pub nonce: String,
    pub names: Vec<String>,
    pub removed: Vec<String>,
}

/// The answer to something that was sent: `error` is the text of a NACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub type_url: String,
    pub nonce: String,
    pub error: Option<String>,
}

/// How streams are treated that are opened from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Treatment {
    Serve,
    /// Requests are taken in and nothing is sent.
    Silence,
    /// The first response of each type waits.
    Delay(Duration),
    /// Ended before any response, with a gRPC status.
    Refuse {
        code: u32,
        message: String,
    },
    /// The last type that is asked for is answered first, and resources come in the reverse of their order.
    Reversed,
    /// Every stream ends without complaint right after its first response.
    EndAtOnce,
    /// Likewise, but for the last byte of that response.
    CutShort,
}

/// The server. It runs in a thread of its own, with its port in the network namespace of whoever starts it.
pub struct Istiod {
    pub address: SocketAddr,
    /// What it answers to requests for certificates.
    pub ca: Service,
    shared: Arc<Shared>,
    /// Of the server's own certificate from the next `come_back` on.
    authority: Mutex<Arc<Authority>>,
    /// Where proxies find roots and token; the world's scratch folder.
    files: Option<PathBuf>,
    runtime: tokio::runtime::Handle,
    accepting: Mutex<Option<tokio::task::JoinHandle<()>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    resources: BTreeMap<String, BTreeMap<String, Resource>>,
    /// Sent instead of the first response of a type, byte for byte.
    replays: BTreeMap<String, Vec<u8>>,
    treatment: Option<Treatment>,
    streams: Vec<mpsc::UnboundedSender<Command>>,
    connections: Vec<AbortHandle>,
    connections_made: usize,
    streams_made: usize,
    asked: Vec<Asked>,
    sent: Vec<Sent>,
    answered: Vec<Answered>,
    nonces: usize,
}

enum Command {
    Push(DeltaDiscoveryResponse),
    End { code: u32, message: String },
    Reset(h2::Reason),
}

impl Istiod {
    /// On a free port of the loopback.
    pub fn start() -> Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    pub fn start_at(address: SocketAddr) -> Result<Self> {
        let authority = Arc::new(Authority::new("istiod of the rig")?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| RigError::new("making istiod's runtime", error))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(stopped);
        });
        let mut istiod = Self {
            address,
            ca: Service::new(Script::signing(&authority, CERTIFICATE_LIFETIME)),
            shared: Arc::default(),
            authority: Mutex::new(authority),
            files: None,
            runtime: handle,
            accepting: Mutex::default(),
            stop: Some(stop),
            thread: Some(thread),
        };
        istiod.address = istiod.open()?;
        Ok(istiod)
    }

    /// For the proxies of a world: on node 0, with the world's pods and services.
    pub fn serve(world: &World) -> Result<Self> {
        let address = SocketAddr::new(addresses::node(0).v4.into(), PORT);
        let mut istiod = world.nodes[0].namespace.run(|| Self::start_at(address))?;
        istiod.update(ADDRESS, mesh::resources(world));
        istiod.files = Some(world.scratch().to_owned());
        istiod.trust(&[&istiod.authority()])?;
        istiod.accept_token(TOKEN)?;
        Ok(istiod)
    }

    /// What makes a proxy of that world use it.
    pub fn options(&self, options: ProxyOptions) -> ProxyOptions {
        let own = Upstream {
            address: self.address,
            name: SERVER_NAME,
            roots: self.file(ROOTS_FILE),
        };
        options.under(&own, &own, &self.file(TOKEN_FILE))
    }

    /// Who signs for the server itself, and for the mesh unless `ca` is told otherwise.
    pub fn authority(&self) -> Arc<Authority> {
        Arc::clone(&lock(&self.authority))
    }

    /// The server's own certificate is signed by another root from the next `come_back` on.
    pub fn change_authority(&self, authority: &Arc<Authority>) {
        *lock(&self.authority) = Arc::clone(authority);
    }

    /// Writes the roots that the proxies of the world trust as the server's.
    pub fn trust(&self, authorities: &[&Authority]) -> Result<()> {
        write(&self.file(ROOTS_FILE), &ca::bundle(authorities))
    }

    /// Writes the token that the proxies of the world show; only `TOKEN` is let in.
    pub fn accept_token(&self, token: &str) -> Result<()> {
        write(&self.file(TOKEN_FILE), token)
    }

    /// From now on its thread runs after all others of its CPU: it shall not delay what is measured.
    pub fn run_last(&self) -> Result<()> {
        self.perform(async { crate::sys::run_last() })
            .map_err(|error| RigError::new("lowering istiod's priority", error))
    }

    /// Closes the port and cuts every connection. What it holds, and its record, stay.
    pub fn go_away(&self) {
        if let Some(accepting) = lock(&self.accepting).take() {
            accepting.abort();
            // Cancelled, as wanted.
            let _ = self.perform(accepting);
        }
        self.cut_connections();
    }

    /// Opens the port again.
    pub fn come_back(&self) -> Result<()> {
        self.open().map(drop)
    }

    fn open(&self) -> Result<SocketAddr> {
        let failed = |error| RigError::new(format!("binding istiod to {}", self.address), error);
        let address = self.address;
        // By the server's thread, which is in the right namespace.
        let listen = move || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            tokio::net::TcpListener::from_std(listener)
        };
        let listener = self.perform(when_free(listen)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tls = ca::acceptor(self.authority().server(&[SERVER_NAME])?)?;
        let serving = serve::accept(listener, tls, self.shared.clone(), self.ca.clone());
        *lock(&self.accepting) = Some(self.runtime.spawn(serving));
        Ok(address)
    }

    fn file(&self, name: &str) -> PathBuf {
        let folder = self.files.as_deref();
        folder
            .expect("invariant: only an istiod of a world has proxies to write files for")
            .join(name)
    }

    /// As a TCP connection ends when its process is killed.
    pub fn cut_connections(&self) {
        let connections = self.shared.with(|inner| {
            inner.streams.clear();
            std::mem::take(&mut inner.connections)
        });
        connections.iter().for_each(AbortHandle::abort);
        self.ca.disconnected();
    }

    /// Ends every stream with a status, as a server does that shuts down.
    pub fn end_streams(&self, code: u32, message: &str) {
        let streams = self.shared.with(|inner| std::mem::take(&mut inner.streams));
        for stream in streams {
            // A stream that is over already needs no end.
            let _ = stream.send(Command::End {
                code,
                message: message.to_owned(),
            });
        }
    }

    /// Ends every stream without a status, as a proxy in between does, or a server that finds fault.
    pub fn reset_streams(&self, reason: h2::Reason) {
        let streams = self.shared.with(|inner| std::mem::take(&mut inner.streams));
        for stream in streams {
            // As above.
            let _ = stream.send(Command::Reset(reason));
        }
    }

    pub fn treat(&self, treatment: Treatment) {
        self.shared.with(|inner| inner.treatment = Some(treatment));
    }

    /// Answers the first request of this type on every stream with these bytes of a `DeltaDiscoveryResponse`.
    pub fn replay(&self, type_url: &str, bytes: &[u8]) {
        self.shared
            .with(|inner| inner.replays.insert(type_url.to_owned(), bytes.to_vec()));
    }

    /// Adds or changes resources, and pushes them to every stream. Gives the nonces of what was sent.
    pub fn update(&self, type_url: &str, resources: Vec<Resource>) -> Vec<String> {
        self.shared.with(|inner| {
            let held = inner.resources.entry(type_url.to_owned()).or_default();
            for resource in &resources {
                held.insert(resource.name.clone(), resource.clone());
            }
            inner.push(type_url, &resources, &[])
        })
    }

    /// Removes resources, and tells every stream. Gives the nonces of what was sent.
    pub fn remove(&self, type_url: &str, names: &[&str]) -> Vec<String> {
        self.shared.with(|inner| {
            let held = inner.resources.entry(type_url.to_owned()).or_default();
            for name in names {
                held.remove(*name);
            }
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            inner.push(type_url, &[], &names)
        })
    }

    /// A resource as it is served now.
    pub fn held(&self, type_url: &str, name: &str) -> Option<Resource> {
        self.shared
            .with(|inner| inner.resources.get(type_url)?.get(name).cloned())
    }

    /// Everything that was asked so far, answers included.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.with(|inner| inner.asked.clone())
    }

    pub fn sent(&self) -> Vec<Sent> {
        self.shared.with(|inner| inner.sent.clone())
    }

    pub fn answered(&self) -> Vec<Answered> {
        self.shared.with(|inner| inner.answered.clone())
    }

    pub fn streams_made(&self) -> usize {
        self.shared.with(|inner| inner.streams_made)
    }

    /// Whether all of these were answered: with the first error, if there was one. Cheaper than `answered`.
    pub fn all_answered(&self, nonces: &[String]) -> Option<std::result::Result<(), String>> {
        self.shared.with(|inner| {
            for nonce in nonces {
                // The latest are the last.
                let answered = inner.answered.iter().rev().find(|it| it.nonce == *nonce)?;
                if let Some(error) = &answered.error {
                    return Some(Err(error.clone()));
                }
            }
            Some(Ok(()))
        })
    }

    pub fn connections_made(&self) -> usize {
        self.shared.with(|inner| inner.connections_made)
    }

    /// Waits for the answer to what was sent under this nonce.
    #[track_caller]
    pub fn wait_for_answer(&self, nonce: &str) -> Answered {
        wait_until(&format!("the answer to {nonce}"), || {
            self.answered()
                .into_iter()
                .find(|answered| answered.nonce == nonce)
        })
    }

    /// Waits until something of this type was sent on a stream at or after `stream`, and answered.
    #[track_caller]
    pub fn wait_for_exchange(&self, type_url: &str, stream: usize) -> (Sent, Answered) {
        wait_until(&format!("an exchange of {type_url} on stream {stream}"), || {
            let mut sent = self.sent().into_iter();
            let sent = sent.find(|sent| sent.type_url == type_url && sent.stream >= stream)?;
            let mut answered = self.answered().into_iter();
            let answered = answered.find(|answered| answered.nonce == sent.nonce)?;
            Some((sent, answered))
        })
    }
}

impl Istiod {
    /// In the server's thread.
    fn perform<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (done, result) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            // The receiver waits just below.
            let _ = done.send(work.await);
        });
        result
            .recv()
            .expect("invariant: the server's thread lives as long as this")
    }
}

impl Drop for Istiod {
    fn drop(&mut self) {
        self.cut_connections();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It only waits for the line above.
            let _ = thread.join();
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|error| RigError::new(format!("writing {}", path.display()), error))
}

impl Shared {
    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut lock(&self.0))
    }
}

impl Inner {
    fn treatment(&self) -> Treatment {
        self.treatment.clone().unwrap_or(Treatment::Serve)
    }

    fn nonce(&mut self) -> String {
        self.nonces += 1;
        format!("nonce-{}", self.nonces)
    }

    /// Sends one response to every stream.
    fn push(&mut self, type_url: &str, resources: &[Resource], removed: &[String]) -> Vec<String> {
        self.streams.retain(|stream| !stream.is_closed());
        let mut nonces = Vec::new();
        for stream in self.streams.clone() {
            let nonce = self.nonce();
            let response = response(type_url, &nonce, resources.iter(), removed.to_vec());
            if stream.send(Command::Push(response)).is_ok() {
                nonces.push(nonce);
            }
        }
        nonces
    }
}

/// The bytes of a response, for those who need no server.
pub fn encoded(type_url: &str, resources: &[Resource], removed: Vec<String>) -> Bytes {
    response(type_url, "n", resources.iter(), removed)
        .encode_to_vec()
        .into()
}

fn response<'a>(
    type_url: &str,
    nonce: &str,
    resources: impl Iterator<Item = &'a Resource>,
    removed_resources: Vec<String>,
) -> DeltaDiscoveryResponse {
    let resources = resources.map(|resource| messages::discovery::Resource {
        version: resource.version.clone(),
        resource: Some(messages::discovery::Any {
            type_url: type_url.to_owned(),
            value: resource.value.clone(),
        }),
        name: resource.name.clone(),
        aliases: Vec::new(),
    });
    DeltaDiscoveryResponse {
        resources: resources.collect(),
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        removed_resources,
        ..DeltaDiscoveryResponse::default()
    }
}
