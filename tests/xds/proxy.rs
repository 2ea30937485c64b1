//! The client in a thread of its own, and what the rest of a process sees of it.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use uztunnel::bridge::orders::{self, Inbox};
use uztunnel::bridge::{Orders, SnapshotCell};
use uztunnel::config::{self, AuthToken, Config, Environment, TrustRoots};
use uztunnel::control::demands::Asked;
use uztunnel::control::grpc::Server;
use uztunnel::control::metrics::Metrics;
use uztunnel::control::metrics::traffic::Workers;
use uztunnel::control::pods;
use uztunnel::control::readiness::{Readiness, Task};
use uztunnel::control::roster::Roster;
use uztunnel::control::xds::Client;
use uztunnel::control::xds::node::node;
use uztunnel::control::xds::state::State;
use uztunnel::mesh::{Builder, GatewayTarget, Locale, Snapshot};
use uztunnel::sys::driver::Wake;
use uztunnel_rig::istiod::{Istiod, SERVER_NAME, TOKEN};
use uztunnel_rig::wait_until;

/// How a client will find its server.
pub struct Setup {
    pub server: config::Server,
    pub token: PathBuf,
    pub roots: PathBuf,
    _directory: TempDir,
}

impl Setup {
    pub fn new(istiod: &Istiod) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (token, roots) = (directory.path().join("token"), directory.path().join("roots.pem"));
        let setup = Self {
            server: config::Server {
                uri: format!("https://{}", istiod.address),
                roots: TrustRoots::File(roots.clone()),
                other_hostname: Some(SERVER_NAME.to_owned()),
                headers: vec![
                    ("x-extra".to_owned(), "value".to_owned()),
                    ("clusterid".to_owned(), "loses".to_owned()),
                ],
            },
            token,
            roots,
            _directory: directory,
        };
        setup.write_token(TOKEN);
        setup.write_roots(&istiod.authority().pem());
        setup
    }

    pub fn write_token(&self, token: &str) {
        std::fs::write(&self.token, token).expect("written");
    }

    pub fn write_roots(&self, pem: &str) {
        std::fs::write(&self.roots, pem).expect("written");
    }

    pub fn start(self) -> Proxy {
        self.start_and(|client| client)
    }

    /// Workloads and services are asked for by name, by what is sent here.
    pub fn start_on_demand(self) -> (Proxy, mpsc::UnboundedSender<Asked<GatewayTarget>>) {
        let (asking, asked) = mpsc::unbounded_channel();
        (self.start_and(|client| client.on_demand(asked)), asking)
    }

    fn start_and(self, change: impl FnOnce(Client) -> Client + Send + 'static) -> Proxy {
        let (handle, inbox) = orders::channel(Arc::new(Nobody));
        let snapshots = SnapshotCell::new(Snapshot::empty(Locale::default()));
        let readiness = Readiness::default();
        // As the process does, before it makes the client.
        readiness.pending(Task::StateManager);
        let log = Log::default();
        let metrics = Metrics::default();
        let token = AuthToken::File(self.token.clone());
        let server = Server::new(&self.server, Some(&token), "cluster-7").expect("a server");
        let environment = Environment::new([
            ("FAKE_CA", "true"),
            ("POD_NAME", "ztunnel-x"),
            ("POD_NAMESPACE", "istio-system"),
            ("INSTANCE_IP", "10.9.8.7"),
            ("NODE_NAME", "a-node"),
        ]);
        let node = node(&Config::from_env(&environment).expect("a configuration").node);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn({
            let (snapshots, readiness, log) = (snapshots.clone(), readiness.clone(), log.clone());
            let metrics = metrics.clone();
            move || {
                let subscriber = tracing_subscriber::fmt()
                    .with_ansi(false)
                    .with_max_level(tracing::Level::DEBUG)
                    .with_writer(move || log.clone())
                    .finish();
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                let state = State::new(
                    Builder::new(Locale::default()),
                    snapshots,
                    Orders::new(vec![handle]),
                    pods::changes().0,
                );
                let (client, _synced) = Client::new(server, node, state, readiness, metrics);
                let client = change(client);
                tracing::subscriber::with_default(subscriber, || {
                    runtime.block_on(async {
                        tokio::select! {
                            () = client.run() => {}
                            _ = stopped => {}
                        }
                    });
                });
            }
        });
        Proxy {
            setup: self,
            snapshots,
            readiness,
            metrics,
            inbox: Mutex::new(inbox),
            log,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

/// The client in a thread of its own, and what it shows to the rest of a process.
pub struct Proxy {
    pub setup: Setup,
    pub snapshots: SnapshotCell,
    pub readiness: Readiness,
    metrics: Metrics,
    pub inbox: Mutex<Inbox>,
    log: Log,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub fn start(istiod: &Istiod) -> Self {
        Setup::new(istiod).start()
    }

    #[track_caller]
    pub fn wait_until_ready(&self) {
        wait_until("readiness", || self.readiness.is_ready().then_some(()));
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Snapshot) -> bool) {
        wait_until(what, || condition(&self.snapshots.load()).then_some(()));
    }

    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        self.wait_for_logs(text, 1);
    }

    #[track_caller]
    pub fn wait_for_logs(&self, text: &str, times: usize) {
        wait_until(&format!("{times} times {text:?} in the log"), || {
            (self.log.text().matches(text).count() >= times).then_some(())
        });
    }

    /// As they are scraped.
    pub fn series(&self) -> String {
        let mut text = String::new();
        let registry = self
            .metrics
            .registry("unknown", Roster::default(), Workers::new(1));
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("written");
        text
    }

    #[track_caller]
    pub fn wait_for_terminations(&self, reason: &str, count: usize) {
        let line = format!("istio_xds_connection_terminations_total{{reason=\"{reason}\"}} {count}\n");
        wait_until(&line, || self.series().contains(&line).then_some(()));
    }

    pub fn logged(&self, text: &str) -> bool {
        self.log.text().contains(text)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        let thread = self.thread.take().expect("started");
        let ended = thread.join();
        if std::thread::panicking() {
            println!("the client's log:\n{}", self.log.text());
        } else {
            ended.expect("the client did not panic");
        }
    }
}

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("log")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("log").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
