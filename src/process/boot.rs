//! The life of the proxy process: start in order, serve, end in order.
//!
//! Main thread, which becomes the control thread. Order: configuration, log thread, descriptors limit, mesh state,
//! client of the CA, backend, checks of privileges, our own servers, workers, the control plane, and once the mesh
//! is known the node agent's connection, since that brings traffic. Every failure before that ends the process with
//! status 1 and one line that says what is wrong.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;

use tokio::runtime::LocalOptions;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::bridge::demands::{self as demand_queue, DemandQueue};
use crate::bridge::{LogSink, OpenFiles, Order, Orders, SnapshotCell};
use crate::clock;
use crate::config::{
    self, CertificateSource, Config, ConfigError, Environment, IoChoice, LogFormat, RingFeatures,
};
use crate::control::admin::dump::{Constants, process};
use crate::control::admin::{self, Admin, Ending, Live};
use crate::control::ca::{Ca, Signer};
use crate::control::demands::{self, Asked, Reports, WorkerFailed};
use crate::control::grpc::{self, GrpcError};
use crate::control::local_state::{self, LocalStateError};
use crate::control::log_line::Format;
use crate::control::metrics::traffic::Workers;
use crate::control::metrics::{Metrics, exposition};
use crate::control::pods::{self, WorkerPods};
use crate::control::readiness::{self, Readiness, Task};
use crate::control::resolver::{self, NameServers};
use crate::control::roster::Roster;
use crate::control::{revocation, xds, zds};
use crate::limits;
use crate::mesh::{Builder, GatewayTarget, Locale};
use crate::process::log_filter::Filter;
use crate::process::logging::{self, FLUSH_PATIENCE, LoggingError};
use crate::process::servers::{self, ServerError};
use crate::process::signals::Signals;
use crate::process::version;
use crate::sys::driver::SocketSpec;
use crate::sys::netns::Namespace;
use crate::sys::select::{self, Choice, IoMode, Refusal};
use crate::sys::socket::{self, Options};
use crate::sys::uring::FeatureSet;
use crate::sys::{cpu, rlimit};
use crate::tls::FakeCa;
use crate::worker::{self, Setup, settings::Settings};

/// Why the process cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error(transparent)]
    LocalState(#[from] LocalStateError),
    #[error("UZTUNNEL_IO=uring, but io_uring cannot be used: {0}")]
    Backend(Refusal),
    #[error("failed to set netns: {0}. make sure ztunnel has CAP_SYS_ADMIN")]
    Namespace(#[source] io::Error),
    #[error("failed to set mark on socket. make sure ztunnel has CAP_NET_RAW, CAP_NET_ADMIN: {0}")]
    Mark(#[source] io::Error),
    #[error("cannot start the control thread: {0}")]
    Control(#[source] io::Error),
    #[error("cannot use the CA of CA_ADDRESS: {0}")]
    Ca(#[source] GrpcError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("cannot start the workers: {0}")]
    Workers(#[source] io::Error),
    #[error("cannot use XDS_ADDRESS: {0}")]
    ControlPlane(#[source] GrpcError),
    #[error(transparent)]
    Worker(#[from] WorkerFailed),
}

/// Runs the proxy until it is told to end.
pub fn serve(environment: &Environment) -> Result<(), BootError> {
    let config = Config::from_env(environment)?;
    let format = match config.logging.format {
        LogFormat::Plain => Format::Plain,
        LogFormat::Json => Format::Json,
    };
    let (log, filter) = logging::start(&config.logging.filter, format)?;
    let served = serve_configured(&config, &log, filter);
    log.flush(FLUSH_PATIENCE);
    served
}

fn serve_configured(config: &Config, log: &LogSink, filter: Filter) -> Result<(), BootError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = rlimit::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
    let mut mesh = local_mesh(config)?;
    let snapshot = SnapshotCell::new(mesh.build());
    for warning in mesh.take_warnings() {
        tracing::warn!("{warning}");
    }
    let signer = signer(config)?;
    let backend = Arc::new(choose_backend(config)?);
    check_privileges(config.sockets.packet_mark)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(BootError::Control)?;
    let parts = Parts {
        mesh,
        snapshot,
        signer,
        backend,
        filter,
    };
    runtime.block_on(run(config, log, parts))
}

/// What was made before the control thread's runtime.
struct Parts {
    mesh: Builder,
    snapshot: SnapshotCell,
    signer: Signer,
    backend: Arc<Choice>,
    filter: Filter,
}

/// Everything that happens on the control thread.
async fn run(config: &Config, log: &LogSink, parts: Parts) -> Result<(), BootError> {
    let Parts {
        mesh,
        snapshot,
        signer,
        backend,
        filter,
    } = parts;
    let mut signals = Signals::catch().map_err(BootError::Control)?;
    let readiness = Readiness::default();
    for task in [Task::StateManager, Task::Proxy, Task::WorkloadProxyManager] {
        readiness.pending(task);
    }
    let (roster, metrics) = (Roster::default(), Metrics::default());
    let (inspector, inspections) = demands::inspections();
    let shown = Admin {
        snapshots: snapshot.clone(),
        inspector,
        roster: roster.clone(),
        constants: Arc::new(constants(config)),
        filter,
        ending: Ending::default(),
        dumps: Arc::new(Semaphore::new(limits::DUMPS_MAX)),
        live: Live::default(),
    };
    let (asked_to_end, live) = (shown.ending.clone(), shown.live.clone());
    let shared = Workers::new(config.worker.threads.min(limits::WORKERS_MAX));
    start_servers(config, &readiness, &metrics, shared.clone(), shown)?;

    // Before the first handshake.
    let watch = config
        .tls
        .revocations
        .clone()
        .map(|path| revocation::Watch::start(path, shared.revocations.clone()));
    let (orders, demands) = start_workers(config, log, snapshot.clone(), &shared, &backend)?;
    live.serve(orders.clone());
    if let Some(watch) = watch {
        tokio::task::spawn_local(watch.run(orders.clone()));
    }
    tracing::info!(
        io = backend.name(),
        workers = orders.workers(),
        "{}",
        version::banner(&config.node.istio_version)
    );
    tracing::info!("{backend}");
    readiness.done(Task::Proxy);
    let (changes, pod_changes) = pods::changes();
    let state = xds::state::State::new(mesh, snapshot.clone(), orders.clone(), changes.clone());
    let (lookups, answering) = demands::lookups();
    let synced = follow_control_plane(config, state, &readiness, metrics.clone(), answering.mesh)?;
    let name_servers = NameServers::new(config.sockets.ipv6);
    tokio::task::spawn_local(resolver::serve(
        answering.hosts,
        name_servers,
        orders.clone(),
        clock::now,
    ));

    let pods = WorkerPods::new(
        config.ports.clone(),
        config.sockets.clone(),
        orders.clone(),
        changes,
    );
    let agent = zds::Client::new(config.pods.zds_socket.clone(), pods, readiness.clone(), roster);
    let agent = tokio::task::spawn_local(async move {
        // Pods bring traffic, which needs a mesh. An error is the end of the process: the client is gone.
        if synced.await.is_ok() {
            agent.run().await;
        }
    });
    let reports = Reports {
        inspections,
        metrics,
        lookups,
    };
    let serving = demands::serve(demands, pod_changes, snapshot, signer, orders.clone(), reports);
    let mut workers = std::pin::pin!(serving);
    let ending = tokio::select! {
        ending = signals.ending() => ending.to_string(),
        () = asked_to_end.asked() => "POST /quitquitquit".to_owned(),
        ended = &mut workers => return ended.map_err(BootError::Worker),
    };

    let deadline = config.drain.deadline;
    tracing::info!(?deadline, "{ending}: no new connections, waiting for the others");
    agent.abort();
    readiness.pending(Task::WorkloadProxyManager);
    orders.send_all(|| Order::Drain { deadline });
    tokio::select! {
        ended = &mut workers => ended?,
        () = signals.interrupt() => tracing::warn!("SIGINT again: ending at once"),
        () = tokio::time::sleep(deadline + limits::DRAIN_GRACE) => {
            tracing::warn!("drain duration expired with pending connections, forcefully shutting down");
        }
    }
    tracing::info!("workers: {}", shared.load.all_turns());
    tracing::info!("ended");
    Ok(())
}

/// Starts the xDS client, if there is a server. Resolves once the mesh is known.
fn follow_control_plane(
    config: &Config,
    state: xds::state::State,
    readiness: &Readiness,
    metrics: Metrics,
    asked: mpsc::UnboundedReceiver<Asked<GatewayTarget>>,
) -> Result<oneshot::Receiver<()>, BootError> {
    let control = &config.control;
    let Some(server) = &control.xds else {
        // What the file says is all there is.
        readiness.done(Task::StateManager);
        let (known, waiter) = oneshot::channel();
        let _ = known.send(());
        return Ok(waiter);
    };
    let server = grpc::Server::new(server, control.auth_token.as_ref(), &config.node.cluster_id)
        .map_err(BootError::ControlPlane)?
        .with_compliance(config.tls.compliance);
    let node = xds::node::node(&config.node);
    let (client, synced) = xds::Client::new(server, node, state, readiness.clone(), metrics);
    let client = match config.worker.on_demand {
        true => client.on_demand(asked),
        false => client,
    };
    tokio::task::spawn_local(client.run());
    Ok(synced)
}

/// The mesh as the local file describes it; empty without one.
fn local_mesh(config: &Config) -> Result<Builder, BootError> {
    let locale = Locale {
        network: config.node.network.as_str().into(),
        node: config.node.name.as_deref().map(Into::into),
        captured_ports: config.ports.captured().into(),
    };
    let mut builder = Builder::new(locale);
    if let Some(source) = &config.control.local_state {
        builder.load(local_state::read(source)?);
    }
    Ok(builder)
}

fn signer(config: &Config) -> Result<Signer, BootError> {
    let server = match &config.control.ca {
        CertificateSource::Fake => return Ok(Signer::Fake(FakeCa::new().into())),
        CertificateSource::Server(server) => server,
    };
    let token = config.control.auth_token.as_ref();
    let server = grpc::Server::new(server, token, &config.node.cluster_id)
        .map_err(BootError::Ca)?
        .with_compliance(config.tls.compliance);
    Ok(Signer::Ca(
        Ca::new(server, config.tls.certificate_lifetime).into(),
    ))
}

fn choose_backend(config: &Config) -> Result<Choice, BootError> {
    let (wanted, mask) = wanted_backend(&config.worker);
    select::choose(wanted, mask).map_err(BootError::Backend)
}

/// What the configuration says about io_uring, in the words of `sys`.
pub fn wanted_backend(worker: &config::Worker) -> (IoMode, Option<FeatureSet>) {
    let wanted = match worker.io {
        IoChoice::Auto => IoMode::Auto,
        IoChoice::Uring => IoMode::Uring,
        IoChoice::Epoll => IoMode::Epoll,
    };
    let mask = match worker.ring_features {
        RingFeatures::Auto => None,
        RingFeatures::Kernel5_15 => Some(FeatureSet::V5_15),
        RingFeatures::Kernel5_19 => Some(FeatureSet::V5_19),
        RingFeatures::Kernel6_0 => Some(FeatureSet::V6_0),
        RingFeatures::Kernel6_1 => Some(FeatureSet::V6_1),
    };
    (wanted, mask)
}

/// Without these no pod could ever be served: better no start than one NACK per pod.
fn check_privileges(mark: Option<u32>) -> Result<(), BootError> {
    Namespace::current()
        .and_then(|own| own.run(|| ()))
        .map_err(BootError::Namespace)?;
    let options = Options {
        mark,
        ..Options::default()
    };
    let spec = SocketSpec {
        options,
        ..SocketSpec::default()
    };
    socket::open(&spec, IpAddr::V4(Ipv4Addr::LOCALHOST)).map_err(BootError::Mark)?;
    Ok(())
}

/// What the dump shows and never changes.
fn constants(config: &Config) -> Constants {
    Constants {
        settings: process::settings(config),
        version: version::description(&config.node.istio_version),
        local_state: config.control.local_state.clone(),
    }
}

fn start_servers(
    config: &Config,
    readiness: &Readiness,
    metrics: &Metrics,
    workers: Workers,
    shown: Admin<Filter>,
) -> Result<(), BootError> {
    let sockets = servers::bind(config)?;
    let registry = metrics.registry(&config.node.istio_version, shown.roster.clone(), workers);
    let probes = readiness::server(sockets.readiness, readiness.clone()).map_err(BootError::Control)?;
    let scrapes = exposition::server(sockets.metrics, registry).map_err(BootError::Control)?;
    tokio::task::spawn_local(probes.serve());
    tokio::task::spawn_local(scrapes.serve());
    let shown = Rc::new(shown);
    for socket in sockets.admin {
        let server = admin::server(socket, Rc::clone(&shown)).map_err(BootError::Control)?;
        tokio::task::spawn_local(server.serve());
    }
    Ok(())
}

fn start_workers(
    config: &Config,
    log: &LogSink,
    snapshot: SnapshotCell,
    shared: &Workers,
    backend: &Arc<Choice>,
) -> Result<(Orders, DemandQueue), BootError> {
    let threads = shared.load.workers();
    let cpus = cpu::allowed().unwrap_or_default();
    let pinned = cpu::set_is_ours(&cpus, cpu::online(), cpu::quota(), threads);
    let files = OpenFiles::new(rlimit::open_files().map_or(u64::MAX, |limit| limit.soft));
    let settings = Settings::new(&config.worker, &config.sockets, &config.tls);
    let (demands, queue) = demand_queue::channel();
    let setup = |index: usize| Setup {
        index,
        backend: Arc::clone(backend),
        cpu: cpus.get(index).filter(|_| pinned).copied(),
        seed: fastrand::u64(..),
        settings: settings.clone(),
        snapshot: snapshot.clone(),
        demands: demands.clone(),
        load: shared.load.clone(),
        files: files.clone(),
        revocations: shared.revocations.clone(),
        log: log.clone(),
        traffic: shared.traffic.shard(),
    };
    let workers = worker::start((0..threads).map(setup).collect()).map_err(BootError::Workers)?;
    // They would have it from this thread.
    cpu::stand_back(limits::CONTROL_NICE);
    Ok((Orders::new(workers.handles), queue))
}
