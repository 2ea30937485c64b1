//! A worker without its thread, for tests: a core on the epoll driver, loopback connections, and the peer's end of
//! an HBONE session.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::Setup;
use super::core::Core;
use super::hbone::session::{Role, Session, SessionParts, Transport};
use super::owner::Owned;
use super::pods::PodState;
use super::room::Place;
use super::settings::Settings;
use super::telemetry::Account;
use super::tenants::Tenants;
use crate::bridge::Traffic;
use crate::bridge::demands;
use crate::bridge::load::LoadTable;
use crate::bridge::log::{Direction, log_queue};
use crate::bridge::open_files::OpenFiles;
use crate::bridge::orders::{Pod, PodInfo, PodUid};
use crate::bridge::revocation::Revocations;
use crate::bridge::snapshot::SnapshotCell;
use crate::clock;
use crate::config::Compliance;
use crate::identity::Identity;
use crate::limits;
use crate::mesh::{Locale, Snapshot};
use crate::runtime::slab::Key;
use crate::runtime::tasks::Executor;
use crate::sys::driver::{Driver, ReceiveMode};
use crate::sys::epoll::EpollDriver;
use crate::sys::netns::Namespace;
use crate::sys::select::Choice;
use crate::sys::socket::Options;
use crate::tls::{Channel, Established, FakeCa, Handshake, Opened, Output, Progress, RecordMode, Rules};
use crate::wire::http2;

pub fn core(executor: &Executor) -> Core<EpollDriver> {
    let setup = Setup {
        index: 0,
        backend: Arc::new(Choice::Epoll(None)),
        cpu: None,
        seed: 1,
        settings: Settings {
            socket_options: Options::default(),
            tls_mode: RecordMode::Own,
            tls_records_max: limits::RECORDS_PER_KEY_MAX,
            compliance: Compliance::Default,
            stream_window_bytes: limits::HTTP2_STREAM_WINDOW_BYTES,
            connection_window_bytes: limits::HTTP2_CONNECTION_WINDOW_BYTES,
            frame_bytes_max: limits::HTTP2_FRAME_BYTES,
            session_streams_max: 100,
            session_idle_timeout: Duration::from_secs(300),
            response_baggage: false,
            tunnels_on_loopback: true,
            on_demand: false,
            policy_info_logging: false,
        },
        snapshot: SnapshotCell::new(Snapshot::empty(Locale::default())),
        demands: demands::channel().0,
        load: LoadTable::new(1),
        files: OpenFiles::new(u64::MAX),
        revocations: Revocations::default(),
        log: log_queue().0,
        traffic: Traffic::default().shard(),
    };
    let driver = EpollDriver::new().expect("epoll");
    Core::new(setup, driver, Vec::new().into(), executor.spawner())
}

pub fn pod() -> Rc<PodState> {
    let pod = Pod {
        uid: PodUid::new("pod-1"),
        info: PodInfo {
            name: "till".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "till".to_owned(),
        },
        namespace: Arc::new(Namespace::current().expect("own namespace")),
        preserve_source: false,
    };
    Rc::new(PodState::new(Arc::new(pod), Tenants::default().admit()))
}

/// Both ends of a loopback connection.
pub fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let address = listener.local_addr().expect("bound");
    let near = TcpStream::connect(address).expect("connected");
    let (far, _) = listener.accept().expect("accepted");
    near.set_nodelay(true).expect("an open socket");
    (near, far)
}

pub fn account(core: &Core<EpollDriver>) -> Box<Account> {
    let nowhere = (Ipv4Addr::LOCALHOST, 1).into();
    Box::new(Account::new(Direction::Inbound, core.now, nowhere, nowhere))
}

/// For a connection of the pod's own.
pub fn place(core: &Core<EpollDriver>, pod: &PodState) -> Place {
    core.room.take(&pod.tenant, 1).expect("room")
}

/// All places of the worker, taken by as many tenants as that needs.
pub fn fill(core: &mut Core<EpollDriver>) -> Vec<Place> {
    let mut places = Vec::new();
    while core.room.taken() < limits::CONNECTIONS_WORKER_MAX {
        let tenant = core.tenants.admit();
        places.extend(std::iter::from_fn(|| core.room.take(&tenant, 1).ok()));
    }
    places
}

/// One turn that waits at most 20 ms.
pub fn turn(core: &mut Core<EpollDriver>) {
    let mut events = Vec::new();
    core.driver
        .poll(Some(Duration::from_millis(20)), &mut events)
        .expect("polled");
    core.now = clock::now();
    for event in events {
        core.dispatch(event);
    }
    core.flush();
}

/// Lets `wait` pass without anything arriving, and fires what is due then: time that nobody has to wait for.
pub fn pass(core: &mut Core<EpollDriver>, wait: Duration) {
    core.now += wait;
    core.fire_timers();
    core.flush();
}

/// The client of a session of the worker, in plain blocking steps.
pub struct Peer {
    socket: TcpStream,
    channel: Channel,
    pub http2: http2::Connection,
}

impl Peer {
    /// Sends the engine's control frames and `data` behind them, in as few records as hold them.
    pub fn send(&mut self, data: &[u8]) {
        let bytes = self.sealed(data);
        io::Write::write_all(&mut self.socket, &bytes).expect("sent");
    }

    /// What `send` would send.
    pub fn sealed(&mut self, data: &[u8]) -> Vec<u8> {
        let mut plain = std::mem::take(self.http2.output());
        plain.extend_from_slice(data);
        let mut out = Output::default();
        self.channel.seal(&mut out, &plain);
        out.filled().to_vec()
    }

    /// Ends in order, and without a goodbye.
    pub fn end(&self) {
        self.socket
            .shutdown(std::net::Shutdown::Write)
            .expect("an open socket");
    }

    /// Ends without a word.
    pub fn reset(self) {
        socket2::SockRef::from(&self.socket)
            .set_linger(Some(Duration::ZERO))
            .expect("an open socket");
    }

    pub fn set_receive_buffer_size(&self, bytes: usize) {
        socket2::SockRef::from(&self.socket)
            .set_recv_buffer_size(bytes)
            .expect("an open socket");
    }

    /// All plaintext until the end, told from close_notify.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut self.socket, &mut bytes).expect("received");
        let mut plain = vec![0; 32 * 1024];
        let (mut at, mut all) = (0, Vec::new());
        while at < bytes.len() {
            match self.channel.open(&bytes[at..], &mut plain).expect("authentic") {
                Opened::Data { consumed, written } => {
                    all.extend_from_slice(&plain[..written]);
                    at += consumed;
                }
                Opened::Control { consumed } => at += consumed,
                Opened::Closed { .. } => return all,
                Opened::Incomplete { .. } => panic!("the last record is cut off"),
            }
        }
        panic!("no close_notify after {} bytes", all.len());
    }
}

/// A session that the worker serves, and its peer.
pub fn session(core: &mut Core<EpollDriver>, pod: &Rc<PodState>) -> (Key<Session>, Peer) {
    let (server, client) = handshake(&FakeCa::new(), RecordMode::Own.into());
    start(core, pod, server, client)
}

/// An authority with a root of its own, and what signs in its name.
pub fn authority() -> (FakeCa, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key");
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = root.self_signed(&key).expect("a root").pem();
    let ca = FakeCa::with_root(&certificate, &key.serialize_pem()).expect("an authority");
    (ca, Issuer::new(root, key))
}

/// The two ends of a handshake between certificates of `ca`: the server's, which keeps to `rules`, and the client's.
pub fn handshake(ca: &FakeCa, rules: Rules) -> (Established, Established) {
    let [cart, till] = ["cart", "till"].map(|name| Identity::new("cluster.local", "shop", name));
    let issue = |identity| ca.issue(identity, clock::wall()).expect("issued");
    let mut client =
        Handshake::client(&issue(&cart), Arc::new([till.clone()]), RecordMode::Own).expect("client");
    let mut server = Handshake::server(&issue(&till), rules).expect("server");
    let (mut to_server, mut to_client) = (Output::default(), Output::default());
    loop {
        let there = client
            .advance(to_client.filled(), &mut to_server)
            .expect("client");
        to_client.clear();
        let here = server
            .advance(to_server.filled(), &mut to_client)
            .expect("server");
        to_server.clear();
        if (there, here) == (Progress::Done, Progress::Done) {
            break;
        }
    }
    (server.finish().expect("server"), client.finish().expect("client"))
}

/// Gives the server's end to the worker.
pub fn start(
    core: &mut Core<EpollDriver>,
    pod: &Rc<PodState>,
    established: Established,
    client: Established,
) -> (Key<Session>, Peer) {
    let (near, far) = connection();
    let address = near.local_addr().expect("connected");
    let owner = Owned::Task(Key::from_bits(0)).to_owner();
    let socket = core.driver.adopt(near.into(), owner).expect("adopted");
    let session = Session::new(SessionParts {
        role: Role::Server,
        transport: Transport::Socket(socket),
        channel: established.channel,
        http2: http2::Connection::server(http2::Settings::server()),
        pod: pod.clone(),
        peer: established.peer,
        peer_address: address,
        local_address: address,
        revocable: established.revocable,
        places: None,
        tenant: pod.tenant.clone(),
        unsent: core.sources.unsent(address.ip()),
        now: core.now,
    });
    let key = core.sessions.insert(session);
    core.driver.set_owner(socket, Owned::Session(key).to_owner());
    core.driver.receive(socket, ReceiveMode::Stream);
    core.mark_session(key);
    let peer = Peer {
        socket: far,
        channel: client.channel,
        http2: http2::Connection::client(http2::Settings::client()),
    };
    (key, peer)
}
