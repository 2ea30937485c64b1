//! The real ZDS client on a real `SOCK_SEQPACKET` socket, against a scripted node agent.
//!
//! The script of record is tests/data/zds.json: every packet between istio-cni's agent and a proxy. Pods are
//! recorded by a stand-in, and in the last tests served by the real listeners in a namespace of their own (which
//! needs root, as the proxy does).

use std::fs::File;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;
use tokio::sync::oneshot;
use uztunnel::bridge::{Order, Orders, PodInfo, PodUid, orders};
use uztunnel::config::{Config, Environment};
use uztunnel::control::pods::{self, Pods, WorkerPods};
use uztunnel::control::readiness::Readiness;
use uztunnel::control::roster::Roster;
use uztunnel::control::zds::Client;
use uztunnel::sys::driver::Wake;
use uztunnel::sys::netns::Namespace;
use uztunnel_rig::zds::{self, HELLO, SNAPSHOT_SENT};
use uztunnel_rig::{namespace, sys};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_captured_conversation_is_replayed_packet_for_packet() {
    let namespace = File::open("/proc/self/ns/net").expect("own namespace");
    let recorder = Recorder::default();
    let agent = Agent::start(recorder.clone());
    let refused = replay(agent, |_| namespace.as_fd(), |reason| recorder.fail_with(reason));
    assert_eq!(refused, ["failure to start proxy : no such namespace"]);
    let web = "8f1c2d3e-0000-4000-8000-000000000002";
    assert_eq!(
        recorder.events(),
        ["start cart-7f-a", "start web-5c-a", &format!("stop {web}")]
    );
}

#[test]
fn the_captured_conversation_is_replayed_with_real_listeners() {
    let (cart, web) = (fresh_namespace("cart"), fresh_namespace("web"));
    let (pods, inbox) = worker_pods();
    let agent = Agent::start(pods);
    let mut taken = None;
    let refused = replay(
        agent,
        |packet| {
            if packet.windows(4).any(|word| word == b"cart") {
                cart.fd()
            } else {
                web.fd()
            }
        },
        |reason| {
            if reason.is_some() {
                // The pod was deleted: a worker drops its listeners. Then somebody else takes a port.
                while inbox.try_next().is_some() {}
                taken = Some(
                    web.run(|| TcpListener::bind("[::]:15006"))
                        .expect("the port is free again"),
                );
            }
        },
    );
    assert!(taken.is_some());
    assert_eq!(refused.len(), 1);
    assert!(
        refused[0].starts_with("failure to start proxy : cannot bind [::]:15006: "),
        "{refused:?}"
    );
}

/// Plays the agent's part of the capture and compares the client's. `before` is called ahead of every request,
/// with the reason for which the proxy of the capture refused it. Returns how this one refused.
fn replay<'a>(
    mut agent: Agent,
    namespace_of: impl Fn(&[u8]) -> BorrowedFd<'a>,
    mut before: impl FnMut(Option<String>),
) -> Vec<String> {
    let script: serde_json::Value = serde_json::from_str(include_str!("data/zds.json")).expect("JSON");
    let script = script.as_array().expect("a list of packets");
    let mut refused = Vec::new();
    let mut compared = 0;
    for (index, packet) in script.iter().enumerate() {
        let bytes = packet["hex"].as_str().map(from_hex);
        match (packet["from"].as_str(), bytes) {
            (Some("node agent"), Some(bytes)) => {
                let answer = script
                    .get(index + 1)
                    .and_then(|next| next["hex"].as_str())
                    .map(from_hex);
                before(answer.and_then(|answer| refusal(&answer)));
                let count = packet["fds"].as_u64().expect("a count") as usize;
                agent.send(&bytes, &vec![namespace_of(&bytes); count]);
            }
            (Some("proxy"), Some(expected)) => {
                let received = agent.receive();
                match refusal(&expected) {
                    None => assert_eq!(received, expected, "packet {index}"),
                    // The words are the proxy's own; the agent only logs them.
                    Some(_) => refused.push(refusal(&received).expect("a refusal")),
                }
                compared += 1;
            }
            (Some("proxy"), None) => {
                assert_eq!(packet["meaning"], "reconnects");
                agent.close();
            }
            other => panic!("packet {index} is from nobody: {other:?}"),
        }
    }
    assert_eq!(compared, 9);
    refused
}

#[test]
fn readiness_follows_the_snapshot_and_the_connection() {
    let mut agent = Agent::start(Recorder::default());
    assert_eq!(agent.receive(), HELLO);
    assert!(!agent.readiness.is_ready());
    assert_eq!(agent.ask(SNAPSHOT_SENT, &[]), Answer::Ack);
    agent.settle();
    assert!(agent.readiness.is_ready());
    agent.close();
    assert_eq!(agent.receive(), HELLO);
    assert!(!agent.readiness.is_ready(), "a lost agent makes the node unready");
    assert_eq!(agent.ask(SNAPSHOT_SENT, &[]), Answer::Ack);
    agent.settle();
    assert!(agent.readiness.is_ready());
}

#[test]
fn garbage_is_refused_and_neither_the_client_nor_its_pods_are_harmed() {
    let namespace = File::open("/proc/self/ns/net").expect("own namespace");
    let one = [namespace.as_fd()];
    let two = [namespace.as_fd(), namespace.as_fd()];
    let recorder = Recorder::default();
    let mut agent = Agent::start(recorder.clone());
    assert_eq!(agent.receive(), HELLO);
    assert_eq!(agent.ask(&add("runs"), &one), Answer::Ack);
    assert_eq!(agent.ask(SNAPSHOT_SENT, &[]), Answer::Ack);

    let garbage: [(&str, Vec<u8>, &[BorrowedFd<'_>]); 10] = [
        ("failure to read message : no payload", vec![0xff; 100], &[]),
        ("failure to read message : no payload", vec![0x3a, 0x00], &[]),
        (
            "failure to read message : received truncated message",
            vec![0x0a; 1025],
            &[],
        ),
        ("failure to read message : No control message", add("other"), &[]),
        (
            "failure to read message : more than one descriptor",
            add("other"),
            &two,
        ),
        (
            "failure to read message : Unexpected control message",
            zds::delete("runs"),
            &one,
        ),
        (
            "failure to process message : workload_info is required",
            zds::add("other", None),
            &one,
        ),
        ("failure to process message : uid is required", add(""), &one),
        (
            "failure to process message : pod keep received after snapshot",
            zds::keep("runs"),
            &[],
        ),
        (
            "failure to process message : pod snapshot received already",
            SNAPSHOT_SENT.to_vec(),
            &[],
        ),
    ];
    for (text, bytes, descriptors) in garbage {
        match agent.ask(&bytes, descriptors) {
            Answer::Refused(reason) => assert!(reason.starts_with(text), "{reason:?} starts with {text:?}"),
            Answer::Ack => panic!("{text}: acknowledged"),
        }
        // The client comes back by itself, and the conversation starts over.
        agent.accept();
        assert_eq!(agent.receive(), HELLO);
        assert_eq!(agent.ask(&zds::keep("runs"), &[]), Answer::Ack);
        assert_eq!(agent.ask(SNAPSHOT_SENT, &[]), Answer::Ack);
    }
    assert_eq!(
        recorder.events(),
        ["start runs"],
        "the pod was neither stopped nor started again"
    );
    assert_eq!(agent.ask(&add("later"), &one), Answer::Ack);
}

#[test]
fn a_pod_gets_its_listeners_in_its_own_namespace() {
    let namespace = fresh_namespace("listen");
    let (pods, inbox) = worker_pods();
    let agent = Agent::start(pods);
    assert_eq!(agent.receive(), HELLO);
    assert_eq!(agent.ask(&add("pod"), &[namespace.fd()]), Answer::Ack);
    let Order::AddPod {
        pod,
        listeners: Some(listeners),
    } = inbox.next()
    else {
        panic!("an acknowledged pod was ordered");
    };
    assert_eq!(pod.info.name, "pod");
    assert!(pod.preserve_source, "the test runs as root");
    for port in [15001, 15006, 15008] {
        for address in ["127.0.0.1", "::1"] {
            let connected = namespace.run(|| TcpStream::connect((address, port)));
            assert!(connected.is_ok(), "{address} {port}: {connected:?}");
        }
    }
    assert_eq!(agent.ask(SNAPSHOT_SENT, &[]), Answer::Ack);

    // A second proxy of the same user takes the same ports, as in an upgrade.
    let (pods, second) = worker_pods();
    let successor = Agent::start(pods);
    assert_eq!(successor.receive(), HELLO);
    assert_eq!(successor.ask(&add("pod"), &[namespace.fd()]), Answer::Ack);
    assert!(matches!(second.next(), Order::AddPod { .. }));

    assert_eq!(agent.ask(&zds::delete("pod"), &[]), Answer::Ack);
    assert!(matches!(inbox.next(), Order::RemovePod { uid } if uid == PodUid::new("pod")));
    drop(listeners);
}

#[test]
fn a_pod_whose_port_is_taken_is_refused_and_served_once_the_port_is_free() {
    let namespace = fresh_namespace("taken");
    let taken = namespace.run(|| TcpListener::bind("[::]:15006")).expect("bound");
    let (pods, inbox) = worker_pods();
    let agent = Agent::start(pods);
    assert_eq!(agent.receive(), HELLO);
    let Answer::Refused(reason) = agent.ask(&add("pod"), &[namespace.fd()]) else {
        panic!("the port is taken");
    };
    assert!(reason.starts_with("failure to start proxy : cannot "), "{reason}");
    assert!(reason.contains("15006"), "{reason}");
    assert_eq!(agent.ask(SNAPSHOT_SENT, &[]), Answer::Ack);
    agent.settle();
    assert!(!agent.readiness.is_ready(), "a pod of the snapshot is not served");
    assert_eq!(listed(&agent), (vec![], vec!["pod".to_owned()], 0, 0));
    assert!(inbox.try_next().is_none(), "no half of a pod is served");

    drop(taken);
    let order = inbox.next();
    assert!(
        matches!(
            order,
            Order::AddPod {
                listeners: Some(_),
                ..
            }
        ),
        "{order:?}"
    );
    agent.settle();
    assert!(agent.readiness.is_ready());
    assert_eq!(listed(&agent), (vec!["pod".to_owned()], vec![], 1, 0));
    assert_eq!(agent.ask(&zds::delete("pod"), &[]), Answer::Ack);
    assert_eq!(listed(&agent), (vec![], vec![], 1, 1));
}

#[test]
fn a_descriptor_that_is_no_namespace_is_refused_without_losing_the_connection() {
    let (pods, inbox) = worker_pods();
    let agent = Agent::start(pods);
    assert_eq!(agent.receive(), HELLO);
    let file = File::open("/proc/self/status").expect("a file");
    let Answer::Refused(reason) = agent.ask(&add("pod"), &[file.as_fd()]) else {
        panic!("no namespace, no pod");
    };
    assert!(
        reason.starts_with("failure to start proxy : cannot enter the network namespace"),
        "{reason}"
    );
    assert_eq!(agent.ask(&zds::delete("pod"), &[]), Answer::Ack);
    assert_eq!(agent.ask(SNAPSHOT_SENT, &[]), Answer::Ack);
    agent.settle();
    assert!(agent.readiness.is_ready());
    assert!(inbox.try_next().is_none());
}

/// What came back for a request.
#[derive(Debug, PartialEq)]
enum Answer {
    Ack,
    Refused(String),
}

/// The agent's end of the socket, and the client under test on a thread of its own.
struct Agent {
    listener: Socket,
    connection: Socket,
    readiness: Readiness,
    roster: Roster,
    client: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    _directory: TempDir,
}

impl Agent {
    /// Starts a client and accepts its first connection.
    fn start(pods: impl Pods + Send + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ztunnel.sock");
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        listener
            .bind(&SockAddr::unix(&path).expect("a path"))
            .expect("bound");
        listener.listen(16).expect("listening");
        let (readiness, roster) = (Readiness::default(), Roster::default());
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let (readiness, roster) = (readiness.clone(), roster.clone());
            move || run_client(path, pods, readiness, roster, stopped)
        });
        let connection = accept(&listener);
        Self {
            listener,
            connection,
            readiness,
            roster,
            client: Some((stop, thread)),
            _directory: directory,
        }
    }

    fn accept(&mut self) {
        self.connection = accept(&self.listener);
    }

    /// Closes the connection, as a restarted agent does, and accepts the next one.
    fn close(&mut self) {
        self.connection
            .shutdown(std::net::Shutdown::Both)
            .expect("connected");
        self.accept();
    }

    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        sys::send_with_fds(self.connection.as_fd(), bytes, descriptors).expect("sent");
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 1024];
        let length = sys::uninterrupted(|| (&self.connection).read(&mut buffer))
            .expect("a packet within the patience");
        buffer[..length].to_vec()
    }

    fn ask(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Answer {
        self.send(bytes, descriptors);
        let answer = self.receive();
        match refusal(&answer) {
            None => {
                assert_eq!(answer, [0x0a, 0x00]);
                Answer::Ack
            }
            Some(reason) => Answer::Refused(reason),
        }
    }

    /// The client handles one message after the other: what an earlier one caused is over when this is answered.
    fn settle(&self) {
        assert_eq!(self.ask(&zds::delete("nobody"), &[]), Answer::Ack);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.client.take() {
            // Fails when the client panicked; the join tells.
            let _ = stop.send(());
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the client panicked");
        }
    }
}

fn accept(listener: &Socket) -> Socket {
    listener.set_read_timeout(Some(PATIENCE)).expect("set");
    let (connection, _) =
        sys::uninterrupted(|| listener.accept()).expect("the client connects within the patience");
    connection.set_read_timeout(Some(PATIENCE)).expect("set");
    connection
}

fn run_client(
    path: PathBuf,
    pods: impl Pods,
    readiness: Readiness,
    roster: Roster,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::select! {
            () = Client::new(path, pods, readiness, roster).run() => {}
            _ = stopped => {}
        }
    });
}

/// Pods that exist as words only.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    events: Vec<String>,
    failure: Option<String>,
}

impl Recorder {
    fn fail_with(&self, failure: Option<String>) {
        self.0.lock().expect("no panic").failure = failure;
    }

    fn events(&self) -> Vec<String> {
        self.0.lock().expect("no panic").events.clone()
    }
}

impl Pods for Recorder {
    fn start(&mut self, _: &PodUid, info: &PodInfo, _: &Arc<Namespace>) -> Result<(), String> {
        let mut recorded = self.0.lock().expect("no panic");
        match recorded.failure.take() {
            Some(failure) => Err(failure),
            None => {
                recorded.events.push(format!("start {}", info.name));
                Ok(())
            }
        }
    }

    fn stop(&mut self, uid: &PodUid) {
        self.0
            .lock()
            .expect("no panic")
            .events
            .push(format!("stop {uid}"));
    }
}

/// Orders of a worker that is the test itself.
struct Inbox {
    orders: orders::Inbox,
    rung: mpsc::Receiver<()>,
}

impl Inbox {
    fn next(&self) -> Order {
        loop {
            self.rung
                .recv_timeout(PATIENCE)
                .expect("an order within the patience");
            if let Some(order) = self.orders.next() {
                return order;
            }
        }
    }

    fn try_next(&self) -> Option<Order> {
        self.orders.next()
    }
}

struct Bell(mpsc::Sender<()>);

impl Wake for Bell {
    fn wake(&self) {
        // Fails when the test ended.
        let _ = self.0.send(());
    }
}

/// The real thing, with one worker whose orders the test reads.
fn worker_pods() -> (WorkerPods, Inbox) {
    let settings = [
        ("FAKE_CA", "true"),
        ("XDS_ADDRESS", ""),
        ("LOCAL_XDS", "workloads: []"),
    ];
    let config = Config::from_env(&Environment::new(settings)).expect("a configuration");
    let (bell, rung) = mpsc::channel();
    let (handle, orders) = orders::channel(Arc::new(Bell(bell)));
    let (changes, _) = pods::changes();
    let pods = WorkerPods::new(config.ports, config.sockets, Orders::new(vec![handle]), changes);
    (pods, Inbox { orders, rung })
}

fn fresh_namespace(purpose: &str) -> uztunnel_rig::Namespace {
    let name = format!("uzzds-{}-{purpose}", std::process::id());
    let namespace = uztunnel_rig::Namespace::create(&name).expect("a namespace, as root");
    namespace
        .run(|| namespace::run_ip(&["link", "set", "lo", "up"]))
        .expect("loopback");
    namespace
}

fn add(name: &str) -> Vec<u8> {
    let info = zds::WorkloadInfo {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        service_account: "default".to_owned(),
    };
    zds::add(name, Some(&info))
}

/// The text of a response that refuses.
fn refusal(packet: &[u8]) -> Option<String> {
    zds::read_response(packet)?.err()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |index: usize| u8::from_str_radix(&text[index..index + 2], 16).expect("hex digits");
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Names of the pods that are up, then of those that are pending; how many were started, how many stopped.
fn listed(agent: &Agent) -> (Vec<String>, Vec<String>, u64, u64) {
    let listed = agent.roster.listed();
    let names = |pods: std::collections::BTreeMap<PodUid, PodInfo>| {
        pods.into_values().map(|info| info.name).collect::<Vec<_>>()
    };
    (
        names(listed.up),
        names(listed.pending),
        listed.started,
        listed.stopped,
    )
}
