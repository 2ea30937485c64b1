//! The worker threads: each owns a driver, its pods' connections, HBONE sessions and certificates, and shares
//! nothing mutable with the others.
//!
//! The way of a byte is `tunnel` (application to stream and back) and `hbone::session` (stream to wire and
//! back); the journeys `outbound`, `inbound` and `passthrough` only set connections up.

pub mod backlog;
pub mod buffers;
pub mod certificates;
pub mod core;
pub mod hbone;
pub mod inbound;
pub mod listen;
pub mod live;
mod lookups;
pub mod outbound;
pub mod outcome;
pub mod owner;
pub mod passthrough;
pub mod pipe;
pub mod placement;
pub mod pods;
pub mod recheck;
pub mod report;
pub mod room;
pub mod settings;
pub mod shell;
pub mod telemetry;
pub mod tenants;
pub mod trouble;
pub mod tunnel;
pub mod turn;
pub mod turn_time;
pub mod workload;

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use self::core::Core;
use self::settings::Settings;
use self::turn::Worker;
use crate::bridge::demands::{Demand, Demands};
use crate::bridge::load::LoadTable;
use crate::bridge::log::LogSink;
use crate::bridge::open_files::OpenFiles;
use crate::bridge::orders::{self, WorkerHandle};
use crate::bridge::revocation::Revocations;
use crate::bridge::snapshot::SnapshotCell;
use crate::bridge::traffic::Shard;
use crate::limits;
use crate::runtime::tasks::Executor;

use crate::sys::cpu::{self, Cpu};
use crate::sys::driver::Driver;
use crate::sys::epoll::EpollDriver;
use crate::sys::select::Choice;
use crate::sys::uring::UringDriver;

/// What a worker needs from the rest of the process.
pub struct Setup {
    pub index: usize,
    pub backend: Arc<Choice>,
    /// The CPU to stay on, when the process has its CPUs to itself.
    pub cpu: Option<Cpu>,
    /// Seeds every random choice of this worker.
    pub seed: u64,
    pub settings: Settings,
    pub snapshot: SnapshotCell,
    pub demands: Demands,
    pub load: LoadTable,
    pub files: OpenFiles,
    pub revocations: Revocations,
    pub log: LogSink,
    /// Where it counts what its connections leave behind.
    pub traffic: Shard,
}

/// The running workers.
pub struct Workers {
    pub handles: Vec<WorkerHandle>,
    pub threads: Vec<JoinHandle<()>>,
}

/// What a worker thread tells its starter before it waits for its peers.
type Hello = Result<WorkerHandle, io::Error>;

/// Starts one thread for each setup. Fails, and leaves no thread behind, when one of them cannot make its
/// driver.
pub fn start(setups: Vec<Setup>) -> io::Result<Workers> {
    let mut handles = Vec::new();
    let mut threads = Vec::new();
    let mut introductions = Vec::new();
    for setup in setups {
        let (hello, hellos) = mpsc::channel();
        let (introduce, peers) = mpsc::channel();
        let name = format!("uztunnel-{}", setup.index);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || begin(setup, &hello, &peers))?;
        threads.push(thread);
        introductions.push(introduce);
        let handle = hellos
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        handles.push(handle);
    }
    for introduce in introductions {
        // A worker that ended meanwhile has said so by its last demand.
        let _ = introduce.send(handles.clone());
    }
    Ok(Workers { handles, threads })
}

/// The life of a worker thread. The driver is made here: a ring belongs to the thread that made it.
fn begin(setup: Setup, hello: &mpsc::Sender<Hello>, peers: &mpsc::Receiver<Vec<WorkerHandle>>) {
    if let Some(cpu) = setup.cpu
        && !cpu::pin(cpu)
    {
        tracing::warn!(target: "worker", worker = setup.index, cpu = cpu.0, "cannot stay on this CPU");
    }
    if let Err(error) = cpu::run_in_slices(limits::WORKER_SLICE) {
        tracing::debug!(target: "worker", worker = setup.index, %error, "cannot ask for short slices of the CPU");
    }
    match &*setup.backend.clone() {
        Choice::Uring(profile) => match UringDriver::new(*profile) {
            Ok(driver) => work(setup, driver, hello, peers),
            Err(error) => drop(hello.send(Err(io::Error::other(error.to_string())))),
        },
        Choice::Epoll(_) => match EpollDriver::new() {
            Ok(driver) => work(setup, driver, hello, peers),
            Err(error) => drop(hello.send(Err(error))),
        },
    }
}

fn work<D: Driver + 'static>(
    setup: Setup,
    driver: D,
    hello: &mpsc::Sender<Hello>,
    peers: &mpsc::Receiver<Vec<WorkerHandle>>,
) {
    let (handle, inbox) = orders::channel(driver.waker());
    if hello.send(Ok(handle)).is_err() {
        return;
    }
    let Ok(peers) = peers.recv() else { return };
    let (worker, demands) = (setup.index, setup.demands.clone());
    let executor = Executor::default();
    let core = Core::new(setup, driver, peers.into(), executor.spawner());
    let ended = Worker::new(core, executor, inbox).run();
    let error = ended.err().map(|error| error.to_string());
    // Control is gone only when the process is about to be.
    demands.send(Demand::Ended { worker, error });
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
