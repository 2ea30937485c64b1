//! Two nodes with one worker each, the mesh between them, and what their workers say about themselves.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use uztunnel::bridge::{
    CertificateError, LoadTable, OpenFiles, Order, Pod, PodInfo, PodListeners, PodUid, Revocations,
    SnapshotCell, Traffic, WorkerHandle, WorkerReport, demands, log, orders,
};
use uztunnel::config::Compliance;
use uztunnel::identity::Identity;
use uztunnel::limits;
use uztunnel::mesh::{
    Builder, LocalState, Locale, NamespacedHostname, NetworkAddress, Service, TunnelProtocol, Workload,
};
use uztunnel::runtime::tasks::Executor;
use uztunnel::sys::descriptor::Descriptor;
use uztunnel::sys::driver::Driver;
use uztunnel::sys::epoll::EpollDriver;
use uztunnel::sys::netns::Namespace;
use uztunnel::sys::select::Choice;
use uztunnel::sys::socket::{self, ListenSpec, Options};
use uztunnel::sys::uring::{self, UringDriver};
use uztunnel::tls::fake_ca::FakeCa;
use uztunnel::tls::handshake::RecordMode;
use uztunnel::worker::Setup;
use uztunnel::worker::core::Core;
use uztunnel::worker::settings::Settings;
use uztunnel::worker::turn::Worker;
use uztunnel_rig::namespace;

use crate::counting::{self, Counter};

/// How long a state that has to come may take. Only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(15);

const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
/// Not in the mesh: reached in plaintext.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 1);
/// In the mesh, but nothing of ours answers there.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 6, 1);

/// Where the applications listen.
pub const ECHO: SocketAddr = address(SERVER, 8080);
pub const SINK: SocketAddr = address(SERVER, 8081);
pub const OUTSIDE_ECHO: SocketAddr = address(OUTSIDE, 8080);
pub const STRANGER_HBONE: SocketAddr = address(STRANGER, 15008);

/// What clients connect to: the addresses of services in front of them.
pub const TO_ECHO: SocketAddr = address(Ipv4Addr::new(127, 0, 3, 1), 80);
pub const TO_SINK: SocketAddr = address(Ipv4Addr::new(127, 0, 3, 2), 80);
pub const TO_OUTSIDE: SocketAddr = address(Ipv4Addr::new(127, 0, 3, 3), 80);
pub const TO_STRANGER: SocketAddr = address(Ipv4Addr::new(127, 0, 3, 4), 80);

const fn address(ip: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(ip), port)
}

#[derive(Debug, Clone, Copy)]
pub enum Backend {
    Epoll,
    Uring,
}

pub struct World {
    pub client: Node,
    pub server: Node,
}

/// A worker on a thread of its own, and the one pod it serves.
pub struct Node {
    handle: WorkerHandle,
    pod: PodUid,
    thread: JoinHandle<io::Result<()>>,
    pub allocations: Counter,
    _log: log::LogQueue,
    _demands: demands::DemandQueue,
}

impl World {
    /// Runs a scenario in a world of its own; at its end both workers have ended without a fault.
    pub fn enter(backend: Backend, scenario: fn(&World)) {
        Self::enter_with(backend, settings(), scenario);
    }

    /// The same with other settings than the usual ones.
    pub fn enter_with(backend: Backend, settings: Settings, scenario: fn(&World)) {
        static WORLDS: AtomicUsize = AtomicUsize::new(0);
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let name = format!("relay-{}-{number}", std::process::id());
        let namespace = namespace::Namespace::create(&name).expect("a namespace (this test runs as root)");
        namespace
            .run_program("ip", &["link", "set", "lo", "up"], "")
            .expect("loopback is up");
        namespace.run(|| {
            let world = Self::start(backend, &settings);
            scenario(&world);
            world.client.end();
            world.server.end();
        });
    }

    fn start(backend: Backend, settings: &Settings) -> Self {
        let snapshot = SnapshotCell::new(mesh());
        let client = Node::start(backend, settings, "client", CLIENT, &snapshot);
        let server = Node::start(backend, settings, "server", SERVER, &snapshot);
        // Both answer: the listeners are in place.
        client.report();
        server.report();
        Self { client, server }
    }
}

fn mesh() -> uztunnel::mesh::Snapshot {
    let mut state = LocalState::default();
    for (name, ip, protocol, services) in [
        ("client", CLIENT, TunnelProtocol::Hbone, &[][..]),
        (
            "server",
            SERVER,
            TunnelProtocol::Hbone,
            &[("echo", TO_ECHO, 8080), ("sink", TO_SINK, 8081)],
        ),
        (
            "outside",
            OUTSIDE,
            TunnelProtocol::Tcp,
            &[("outside", TO_OUTSIDE, 8080)],
        ),
        (
            "stranger",
            STRANGER,
            TunnelProtocol::Hbone,
            &[("stranger", TO_STRANGER, 8080)],
        ),
    ] {
        let mut workload = Workload::new(&format!("test//Pod/test/{name}"), name, identity(name));
        workload.addresses = [ip.into()].into();
        workload.protocol = protocol;
        for (service, vip, port) in services {
            let hostname = format!("{service}.test");
            let ports = || [(vip.port(), *port)].into_iter().collect();
            workload.join(NamespacedHostname::new("test", &hostname), ports());
            let mut service = Service::new(service, "test", &hostname);
            service.vips = vec![NetworkAddress::new("", vip.ip())];
            service.ports = ports();
            state.services.push(service);
        }
        state.workloads.push(workload);
    }
    let mut builder = Builder::new(Locale {
        captured_ports: Arc::new([15001, 15006, 15008]),
        ..Locale::default()
    });
    builder.load(state);
    builder.build()
}

fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "test", name)
}

fn certificate(name: &str) -> Order {
    let identity = identity(name);
    let certificate = FakeCa::new().issue(&identity, SystemTime::now());
    Order::Certificate {
        identity,
        result: Ok(Arc::new(certificate.expect("issued"))),
    }
}

pub fn settings() -> Settings {
    Settings {
        socket_options: Options::default(),
        tls_mode: RecordMode::Own,
        tls_records_max: limits::RECORDS_PER_KEY_MAX,
        compliance: Compliance::Default,
        stream_window_bytes: limits::HTTP2_STREAM_WINDOW_BYTES,
        connection_window_bytes: limits::HTTP2_CONNECTION_WINDOW_BYTES,
        frame_bytes_max: limits::HTTP2_FRAME_BYTES,
        session_streams_max: 100,
        session_idle_timeout: Duration::from_secs(300),
        response_baggage: true,
        tunnels_on_loopback: true,
        on_demand: false,
        policy_info_logging: false,
    }
}

impl Node {
    fn start(
        backend: Backend,
        settings: &Settings,
        name: &str,
        ip: Ipv4Addr,
        snapshot: &SnapshotCell,
    ) -> Self {
        let (demands, demand_queue) = demands::channel();
        let (sink, log) = log::log_queue();
        let setup = Setup {
            index: 0,
            backend: Arc::new(Choice::Epoll(None)),
            cpu: None,
            seed: 1,
            settings: settings.clone(),
            snapshot: snapshot.clone(),
            demands,
            load: LoadTable::new(1),
            files: OpenFiles::new(u64::MAX),
            revocations: Revocations::default(),
            log: sink,
            traffic: Traffic::default().shard(),
        };
        let (hello, hellos) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{name}"))
            .spawn(move || match backend {
                Backend::Epoll => work(EpollDriver::new().expect("an epoll driver"), setup, &hello),
                Backend::Uring => {
                    let profile = uring::probe(None, None).expect("this kernel lets us use io_uring");
                    work(UringDriver::new(profile).expect("a ring"), setup, &hello)
                }
            })
            .expect("a thread");
        let (handle, allocations) = hellos.recv().expect("the worker started");
        let pod = PodUid::new(name);
        handle.send(certificate(name));
        handle.send(Order::AddPod {
            pod: Arc::new(Pod {
                uid: pod.clone(),
                info: PodInfo {
                    name: name.to_owned(),
                    namespace: "test".to_owned(),
                    service_account: name.to_owned(),
                },
                namespace: Arc::new(Namespace::current().expect("own namespace")),
                preserve_source: false,
            }),
            listeners: Some(listeners(ip)),
        });
        Self {
            handle,
            pod,
            thread,
            allocations,
            _log: log,
            _demands: demand_queue,
        }
    }

    pub fn send(&self, order: Order) {
        assert!(self.handle.send(order), "the worker of {} lives", self.pod);
    }

    /// Gives the pod its certificate once more.
    pub fn certify(&self) {
        self.send(certificate(&self.pod.to_string()));
    }

    /// From now on connections that need the pod's certificate wait for it.
    pub fn take_certificate_away(&self) {
        self.send(Order::Certificate {
            identity: identity(&self.pod.to_string()),
            result: Err(CertificateError("taken away".into())),
        });
    }

    pub fn remove_pod(&self) {
        self.send(Order::RemovePod {
            uid: self.pod.clone(),
        });
    }

    pub fn report(&self) -> WorkerReport {
        let (asked, answers) = mpsc::channel();
        self.send(Order::Report(asked));
        answers
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("the worker of {} answers", self.pod))
    }

    /// Waits until the worker's report is as it should be.
    pub fn until(&self, what: &str, is_so: impl Fn(&WorkerReport) -> bool) -> WorkerReport {
        let start = Instant::now();
        loop {
            let report = self.report();
            if is_so(&report) {
                return report;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{}: never saw {what}: {report:#?}",
                self.pod
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the worker has ended by itself.
    pub fn until_ended(&self) {
        let start = Instant::now();
        while !self.thread.is_finished() {
            assert!(start.elapsed() < PATIENCE, "{} never ended", self.pod);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(self) {
        self.handle.send(Order::Drain {
            deadline: Duration::ZERO,
        });
        self.until_ended();
        let ended = self.thread.join().expect("the worker did not panic");
        ended.expect("the worker ended without an error");
    }
}

fn work<D: Driver + 'static>(
    driver: D,
    setup: Setup,
    hello: &mpsc::Sender<(WorkerHandle, Counter)>,
) -> io::Result<()> {
    let (handle, inbox) = orders::channel(driver.waker());
    hello
        .send((handle.clone(), counting::count_here()))
        .expect("the starter waits");
    let executor = Executor::default();
    let core = Core::new(setup, driver, Arc::new([handle]), executor.spawner());
    Worker::new(core, executor, inbox).run()
}

/// Only the client's pod has applications that call, so only its outbound port is one that they use.
fn listeners(ip: Ipv4Addr) -> PodListeners {
    // As the control thread makes them, with the options that accepted connections inherit.
    let listen = |ip: Ipv4Addr, port| {
        let listening = socket::listen(&ListenSpec {
            namespace: None,
            address: address(ip, port),
            reuse_port: false,
            mark: None,
            transparent: Some(false),
            backlog: limits::LISTEN_BACKLOG,
        });
        Descriptor::from(listening.expect("the port is free").fd)
    };
    PodListeners {
        outbound: match ip {
            CLIENT => listen(Ipv4Addr::UNSPECIFIED, TO_ECHO.port()),
            _ => listen(ip, 15001),
        },
        inbound_plaintext: listen(ip, 15006),
        inbound_hbone: listen(ip, 15008),
    }
}
