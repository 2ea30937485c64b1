//! Both servers on a control thread of their own, with everything around them that a process has but the workers,
//! and clients that speak plain HTTP/1.1.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use prost::Message;
use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::LocalSet;
use uztunnel::bridge::{Orders, SnapshotCell};
use uztunnel::config::{Config, Environment};
use uztunnel::control::admin::dump::{Constants, process};
use uztunnel::control::admin::{self, Admin, Ending, Live, LogFilter};
use uztunnel::control::certificates::Standing;
use uztunnel::control::demands::{self, Inventory};
use uztunnel::control::metrics::traffic::Workers;
use uztunnel::control::metrics::{Metrics, exposition};
use uztunnel::control::pods;
use uztunnel::control::roster::Roster;
use uztunnel::control::xds::messages::discovery::{Any, DeltaDiscoveryResponse, Resource};
use uztunnel::control::xds::messages::workload as wire;
use uztunnel::control::xds::protocol::Kind;
use uztunnel::control::xds::state::State;
use uztunnel::identity::Identity;
use uztunnel::limits;
use uztunnel::mesh::{Builder, Locale, Snapshot};
use uztunnel::process::version;
use uztunnel::tls::CertifiedIdentity;

/// As the captured node was started.
const VARIABLES: [(&str, &str); 8] = [
    ("NODE_NAME", "node1"),
    ("XDS_ADDRESS", "https://198.18.250.1:15012"),
    ("CA_ADDRESS", "https://198.18.250.1:15012"),
    ("ALT_XDS_HOSTNAME", "istiod.istio-system.svc"),
    ("ALT_CA_HOSTNAME", "istiod.istio-system.svc"),
    ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
    ("ZTUNNEL_WORKER_THREADS", "2"),
    ("RUST_LOG", "info"),
];

/// The first response of a kind, byte for byte what istiod sent.
pub fn captured_resources(kind: Kind) -> Vec<Resource> {
    let bytes: &[u8] = match kind {
        Kind::Address => include_bytes!("../data/xds-address.binpb"),
        Kind::Authorization => include_bytes!("../data/xds-authorization.binpb"),
    };
    let response = DeltaDiscoveryResponse::decode(bytes).expect("a response");
    assert_eq!(response.type_url, kind.type_url());
    response.resources
}

pub fn many_workloads(count: u32) -> Vec<Resource> {
    let workload = |index: u32| {
        let uid = format!("Kubernetes//Pod/shop/pod-{index}");
        let workload = wire::Workload {
            uid: uid.clone(),
            name: format!("pod-{index}"),
            namespace: "shop".to_owned(),
            addresses: vec![(0x0a00_0000 + index).to_be_bytes().to_vec()],
            node: "node1".to_owned(),
            canonical_name: "web".to_owned(),
            workload_name: "web".to_owned(),
            ..Default::default()
        };
        let r#type = Some(wire::address::Type::Workload(workload));
        let value = wire::Address { r#type }.encode_to_vec().into();
        Resource {
            name: uid,
            resource: Some(Any {
                value,
                ..Any::default()
            }),
            ..Default::default()
        }
    };
    (0..count).map(workload).collect()
}

/// A response, and who waits until it is published.
type Applied = (Kind, Vec<Resource>, mpsc::Sender<()>);

/// The servers, until it is dropped.
pub struct Serving {
    pub metrics: Metrics,
    pub roster: Roster,
    pub workers: Workers,
    pub live: Live,
    pub metrics_address: SocketAddr,
    admin_address: SocketAddr,
    dumps: Arc<Semaphore>,
    responses: tokio::sync::mpsc::UnboundedSender<Applied>,
    certificates: Arc<Mutex<Inventory>>,
    asked_to_end: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    pub fn start() -> Self {
        Self::with_variables(&[])
    }

    /// These replace those of the captured node.
    pub fn with_variables(variables: &[(&str, &str)]) -> Self {
        let is_usual = |name: &str| variables.iter().all(|(other, _)| *other != name);
        let usual = VARIABLES.into_iter().filter(|(name, _)| is_usual(name));
        let environment = Environment::new(usual.chain(variables.iter().copied())).with_directory("/");
        let config = Config::from_env(&environment).expect("a configuration");
        let constants = Arc::new(Constants {
            settings: process::settings(&config),
            version: version::description(&config.node.istio_version),
            local_state: config.control.local_state.clone(),
        });
        let bound = || TcpListener::bind("127.0.0.1:0").expect("bound");
        let (admin_listener, metrics_listener) = (bound(), bound());
        let address = |listener: &TcpListener| listener.local_addr().expect("an address");
        let addresses = (address(&admin_listener), address(&metrics_listener));
        let (stop, stopped) = oneshot::channel();
        let (responses, mut to_apply) = tokio::sync::mpsc::unbounded_channel::<Applied>();
        let mut serving = Self {
            metrics: Metrics::default(),
            roster: Roster::default(),
            workers: Workers::new(2),
            live: Live::default(),
            metrics_address: addresses.1,
            admin_address: addresses.0,
            dumps: Arc::new(Semaphore::new(limits::DUMPS_MAX)),
            responses,
            certificates: Arc::default(),
            asked_to_end: Arc::default(),
            stop: Some(stop),
            thread: None,
        };
        let registry = serving
            .metrics
            .registry("unknown", serving.roster.clone(), serving.workers.clone());
        let live = serving.live.clone();
        let (roster, dumps) = (serving.roster.clone(), Arc::clone(&serving.dumps));
        let certificates = Arc::clone(&serving.certificates);
        let asked_to_end = Arc::clone(&serving.asked_to_end);
        let run = move || async move {
            let snapshots = SnapshotCell::new(Snapshot::empty(Locale::default()));
            let mut state = State::new(
                Builder::new(Locale::default()),
                snapshots.clone(),
                Orders::new(Vec::new()),
                pods::changes().0,
            );
            let (inspector, mut inspections) = demands::inspections();
            let shown = Rc::new(Admin {
                snapshots,
                inspector,
                roster,
                constants,
                filter: Written::default(),
                ending: Ending::default(),
                dumps,
                live,
            });
            let ending = shown.ending.clone();
            let admin = admin::server(admin_listener.into(), shown).expect("registered");
            let scrapes = exposition::server(metrics_listener.into(), registry).expect("registered");
            tokio::task::spawn_local(admin.serve());
            tokio::task::spawn_local(scrapes.serve());
            tokio::task::spawn_local(async move {
                while let Some(asked) = inspections.recv().await {
                    let listed = std::mem::take(&mut *certificates.lock().expect("certificates"));
                    let _ = asked.send(listed);
                }
            });
            tokio::task::spawn_local(async move {
                ending.asked().await;
                asked_to_end.store(true, Ordering::Relaxed);
            });
            tokio::task::spawn_local(async move {
                while let Some((kind, resources, done)) = to_apply.recv().await {
                    let message = DeltaDiscoveryResponse {
                        resources,
                        ..DeltaDiscoveryResponse::default()
                    };
                    let response = state.read(message.encode_to_vec().into()).expect("a response");
                    let verdict = state.apply(kind, response).await;
                    assert!(verdict.rejected.is_empty(), "{verdict:?}");
                    state.publish().await;
                    let _ = done.send(());
                }
            });
            let _ = stopped.await;
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            LocalSet::new().block_on(&runtime, run());
        });
        serving.thread = Some(thread);
        serving
    }

    /// Applies and publishes a response.
    pub fn apply(&self, kind: Kind, resources: Vec<Resource>) {
        let (done, is_done) = mpsc::channel();
        assert!(self.responses.send((kind, resources, done)).is_ok());
        is_done.recv().expect("applied");
    }

    /// What the next dump finds.
    pub fn certify(&self, certificates: impl IntoIterator<Item = (Identity, Standing<CertifiedIdentity>)>) {
        self.certificates
            .lock()
            .expect("certificates")
            .extend(certificates);
    }

    pub fn dump(&self) -> Value {
        let response = self.get("/config_dump");
        assert_eq!(response.status, 200);
        serde_json::from_slice(&response.body).expect("JSON")
    }

    pub fn get(&self, path: &str) -> Response {
        self.ask("GET", path)
    }

    pub fn ask(&self, method: &str, path: &str) -> Response {
        request(self.admin_address, method, path, "")
    }

    /// `headers` end in CR LF each.
    pub fn scrape(&self, headers: &str) -> Response {
        request(self.metrics_address, "GET", "/metrics", headers)
    }

    /// Sends and does not read.
    pub fn send(&self, request: &str) -> TcpStream {
        send(self.admin_address, request)
    }

    pub fn free_dumps(&self) -> usize {
        self.dumps.available_permits()
    }

    pub fn is_asked_to_end(&self) -> bool {
        self.asked_to_end.load(Ordering::Relaxed)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().expect("started").join();
        if !std::thread::panicking() {
            ended.expect("the control thread did not panic");
        }
    }
}

/// Keeps what it is told.
struct Written(RefCell<String>);

impl Default for Written {
    fn default() -> Self {
        Self(RefCell::new("info".to_owned()))
    }
}

impl LogFilter for Written {
    fn text(&self) -> String {
        self.0.borrow().clone()
    }

    fn change(&self, reset: bool, list: &str) -> Result<(), String> {
        if list == "bad" {
            return Err(list.to_owned());
        }
        if reset {
            self.0.replace("info".to_owned());
        }
        if !list.is_empty() {
            self.0.replace(list.to_owned());
        }
        Ok(())
    }
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// To the end of the connection.
    pub fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("answered");
        let end = bytes.windows(4).position(|it| it == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').expect("a header");
            (name.to_lowercase(), value.trim().to_owned())
        });
        let mut response = Self {
            status: status.and_then(|it| it.parse().ok()).expect("a status"),
            headers: headers.collect(),
            body: bytes.split_off(end + 4),
        };
        if response.header("transfer-encoding") == Some("chunked") {
            response.body = joined(&response.body);
        }
        response
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(it, _)| it == name);
        found.map(|(_, value)| &**value)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("text")
    }
}

/// RFC 9112, 7.1. Panics when the last chunk is missing: the answer was cut off.
fn joined(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|it| it == b"\r\n").expect("a chunk");
        let size = std::str::from_utf8(&chunks[..end]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return body;
        }
        let rest = &chunks[end + 2..];
        body.extend_from_slice(&rest[..size]);
        chunks = &rest[size + 2..];
    }
}

pub fn request(to: SocketAddr, method: &str, path: &str, headers: &str) -> Response {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n");
    Response::read(send(to, &request))
}

fn send(to: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).expect("connected");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    stream
}
