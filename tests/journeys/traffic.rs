//! Requests without a pause, of which none may fail: on connections that are new each time, and on connections that
//! stay. Everything is counted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use uztunnel_rig::{World, http};

/// Of each kind, for each client pod.
const LOOPS: usize = 3;
/// Between two requests of one loop: what is tested is not how fast they are.
const PAUSE: Duration = Duration::from_millis(10);

/// What was done, while it is done and afterwards.
#[derive(Debug, Default)]
pub struct Figures {
    connections: AtomicU64,
    requests: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Figures {
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn failures(&self) -> Vec<String> {
        let failures = self.failures.lock();
        failures.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives whether the loop may go on.
    fn count(&self, kind: &str, outcome: std::io::Result<http::Response>) -> bool {
        let failure = match outcome {
            Ok(response) if response.status == 200 => {
                self.requests.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Ok(response) => format!("status {}", response.status),
            Err(error) => error.to_string(),
        };
        let failures = self.failures.lock();
        let mut failures = failures.unwrap_or_else(PoisonError::into_inner);
        failures.push(format!("{kind}: {failure}"));
        false
    }
}

pub struct Traffic<'a> {
    world: &'a World,
    figures: Arc<Figures>,
    stop: Arc<AtomicBool>,
    loops: Vec<(String, JoinHandle<()>)>,
}

impl<'a> Traffic<'a> {
    /// From these pods to an HTTP server. Each has been served once before: what is tested is what happens to load
    /// that runs, not to pods that have no certificate yet.
    pub fn start(world: &'a World, clients: &[&str], target: SocketAddr) -> Self {
        for client in clients {
            let first = world.pod(client).run(http::get(target, "/"));
            assert_eq!(first.expect("a first response").status, 200, "{client}");
        }
        let mut traffic = Self {
            world,
            figures: Arc::default(),
            stop: Arc::default(),
            loops: Vec::new(),
        };
        for client in clients {
            for _ in 0..LOOPS {
                let (figures, stop) = (Arc::clone(&traffic.figures), Arc::clone(&traffic.stop));
                traffic.spawn(client, renewing(target, figures, stop));
                let (figures, stop) = (Arc::clone(&traffic.figures), Arc::clone(&traffic.stop));
                traffic.spawn(client, staying(target, figures, stop));
            }
        }
        traffic
    }

    fn spawn(&mut self, client: &str, work: impl Future<Output = ()> + Send + 'static) {
        let running = self.world.pod(client).spawn(work);
        self.loops.push((client.to_owned(), running));
    }

    /// Everything has gone well so far.
    #[track_caller]
    pub fn assert_faultless(&self) {
        let failures = self.figures.failures();
        if let Some(first) = failures.first() {
            panic!(
                "{} failures, the first: {first}\n{}",
                failures.len(),
                self.reasons()
            );
        }
    }

    /// What the proxies say about it: the first lines of each that are no mere information.
    fn reasons(&self) -> String {
        const LINES: usize = 8;
        let mut text = String::new();
        for node in &self.world.nodes {
            let lines = node.proxy().logs.lines();
            let bad = lines.iter().filter(|line| !line.contains("\tinfo\t"));
            for line in bad.take(LINES) {
                text.push_str(&format!("node {}: {line}\n", node.index));
            }
        }
        text
    }

    /// Stops, and has gone well to its end.
    #[track_caller]
    pub fn end(self) -> Arc<Figures> {
        self.stop.store(true, Ordering::Relaxed);
        let reasons = self.reasons();
        let figures = Arc::clone(&self.figures);
        for (client, running) in self.loops {
            let ended = self.world.pod(&client).run(running);
            ended.expect("no loop panics");
        }
        let failures = figures.failures();
        if let Some(first) = failures.first() {
            panic!("{} failures, the first: {first}\n{reasons}", failures.len());
        }
        figures
    }
}

async fn renewing(target: SocketAddr, figures: Arc<Figures>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        figures.connections.fetch_add(1, Ordering::Relaxed);
        figures.count("a new connection", http::get(target, "/").await);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn staying(target: SocketAddr, figures: Arc<Figures>, stop: Arc<AtomicBool>) {
    const KIND: &str = "a connection that stays";
    figures.connections.fetch_add(1, Ordering::Relaxed);
    let mut connection = match http::Client::connect(target).await {
        Ok(connection) => connection,
        Err(error) => {
            figures.count(KIND, Err(error));
            return;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        if !figures.count(KIND, connection.get("/").await) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
