//! The simulated network: hosts, listeners, and streams with finite buffers, a latency and a bandwidth each, in
//! virtual time.
//!
//! One lock around everything, so that an endpoint can be handed from worker to worker like a descriptor, and so
//! that the contract tests may use threads. In a simulation there is one thread and the lock is never contended.
//! Invariant: what happens depends on the seed and on the order of calls alone.
//!
//! A stream behaves as Linux's TCP does where a proxy can tell: bytes arrive in order; a FIN comes behind them; a
//! reset overtakes nothing that arrived before it; closing with unread bytes resets; writing to a peer that has
//! closed is answered by a reset; what a reader's window has no room for waits with its sender, and a reset sent or
//! received throws it away; a full accept queue drops the SYN, which is sent again.

mod connecting;
mod looking;
mod streams;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::endpoint::Endpoint;
use super::faults::{Fault, Rates, Struck};
use super::trace::Trace;

/// A host: a pod, or something outside of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(pub u32);

/// Where the redirection of a mesh's pod leads.
const OUTBOUND: u16 = 15001;
const INBOUND_PLAINTEXT: u16 = 15006;
const INBOUND_HBONE: u16 = 15008;

/// A SYN that met a full queue is sent again after this time.
const SYN_AGAIN: Duration = Duration::from_secs(1);

const EPHEMERAL_FIRST: u16 = 32_768;

/// What streams are like: ranges to draw from, both ends included.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Bytes that a stream holds in one direction, sent and not read.
    pub buffer_bytes: (usize, usize),
    /// How much of that is with its reader already, in percent: the rest waits with its sender, where a reset takes it
    /// along. `None`: all of it.
    pub window_percent: Option<(usize, usize)>,
    pub latency_us: (u64, u64),
    /// Bytes a second; `None`: unlimited.
    pub bandwidth: Option<(u64, u64)>,
    /// Whether reads and writes take less than they could.
    pub short: bool,
    pub rates: Rates,
}

impl Shape {
    /// As loopback is: nothing takes time, nothing fails.
    pub fn instant() -> Self {
        Self {
            buffer_bytes: (256 * 1024, 256 * 1024),
            window_percent: None,
            latency_us: (0, 0),
            bandwidth: None,
            short: false,
            rates: Rates::default(),
        }
    }
}

#[derive(Clone)]
pub struct Network(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Threads that wait for `changed`: without any, telling them costs no system call.
    waiting: AtomicUsize,
}

/// A fault that connections between two hosts may fail of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blame {
    pub at: Duration,
    pub fault: Fault,
    pub hosts: (HostId, HostId),
}

/// Whom the network tells that an endpoint may have something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watcher(pub(super) usize);

/// The watchers are told of an endpoint by this word.
pub type Token = u64;

pub(super) struct State {
    pub now: Duration,
    pub random: fastrand::Rng,
    pub shape: Shape,
    pub struck: Struck,
    pub trace: Trace,
    pub findings: Vec<String>,
    pub blames: Vec<Blame>,
    pub nodes: Vec<Node>,
    hosts: Vec<Host>,
    listeners: BTreeMap<(HostId, u16), u32>,
    happenings: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    ready: Vec<Vec<(u32, Token)>>,
    spare: Vec<Vec<u8>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Scheduled {
    at: Duration,
    sequence: u64,
    what: Happening,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// A connect reaches its destination.
    Syn {
        from: u32,
    },
    /// A connect's answer is back; `refused`, or made with this node.
    SynAnswer {
        to: u32,
        refused: bool,
    },
    Bytes {
        to: u32,
        bytes: Vec<u8>,
    },
    /// An urgent byte, which is not in the stream any more.
    Mark {
        to: u32,
    },
    Fin {
        to: u32,
    },
    Reset {
        to: u32,
    },
}

struct Host {
    addresses: Vec<IpAddr>,
    /// Its unmarked connections are redirected to the proxy, and so are those of others to it.
    captured: bool,
    next_port: u16,
}

/// One end of a stream, or a listener. Never removed, so that an index means one thing for ever.
pub(super) struct Node {
    pub host: HostId,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// Where a redirected connection was going.
    pub original: SocketAddr,
    pub marked: bool,
    pub phase: Phase,
    pub other: Option<u32>,
    /// Arrived, not read.
    pub inbox: VecDeque<u8>,
    /// Ever read.
    pub read_bytes: u64,
    /// Places in the stream, as numbers of bytes before them, across which no read goes.
    pub marks: VecDeque<u64>,
    /// Sent by this end and not read by the other.
    pub unread: usize,
    pub buffer_bytes: usize,
    /// Of those, what may be on its way to the other or lie there unread; more waits in `outbox`.
    window_bytes: usize,
    outbox: VecDeque<u8>,
    /// This end has ended, and its FIN waits behind the outbox.
    fin_waits: bool,
    latency: Duration,
    bandwidth: Option<u64>,
    /// When its user wrote last.
    written_at: Duration,
    /// When what was sent last will have left, and when it will have arrived.
    sent_at: Duration,
    arrives_at: Duration,
    pub fin_sent: bool,
    pub fin_arrived: bool,
    /// The end was read before anything broke.
    pub end_read: bool,
    /// A listener's user has taken it.
    pub accepted: bool,
    /// What a reset makes of every write, and of a read that has nothing else to say.
    pub broken: Option<i32>,
    pub closed: bool,
    reset_sent: bool,
    /// It was closed in an orderly way, and then bytes made a reset of it: those before its close or those after.
    cut_short: bool,
    watcher: Option<(Watcher, Token)>,
    listed: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Fresh,
    Connecting { outcome: Option<Result<(), i32>> },
    Stream,
    Listening { queue: VecDeque<u32>, queue_max: usize },
}

impl Node {
    /// Room for a few bytes is not worth a wake: without this, two sides could pass single bytes for ever (the
    /// silly window syndrome, RFC 9293 section 3.8.6.2).
    pub fn is_worth_writing(&self) -> bool {
        self.unread <= self.buffer_bytes - self.buffer_bytes.div_ceil(3)
    }

    fn new(host: HostId, local: SocketAddr, phase: Phase) -> Self {
        Self {
            host,
            local,
            peer: local,
            original: local,
            marked: false,
            phase,
            other: None,
            inbox: VecDeque::new(),
            read_bytes: 0,
            marks: VecDeque::new(),
            unread: 0,
            buffer_bytes: 0,
            window_bytes: usize::MAX,
            outbox: VecDeque::new(),
            fin_waits: false,
            latency: Duration::ZERO,
            bandwidth: None,
            written_at: Duration::ZERO,
            sent_at: Duration::ZERO,
            arrives_at: Duration::ZERO,
            fin_sent: false,
            fin_arrived: false,
            end_read: false,
            accepted: false,
            broken: None,
            closed: false,
            reset_sent: false,
            cut_short: false,
            watcher: None,
            listed: false,
        }
    }

    /// Bytes before the next mark; one that was reached is passed.
    pub fn until_mark(&mut self) -> usize {
        while self.marks.front() == Some(&self.read_bytes) {
            self.marks.pop_front();
        }
        let mark = self.marks.front();
        mark.map_or(usize::MAX, |mark| (mark - self.read_bytes) as usize)
    }
}

impl Network {
    pub fn new(seed: u64, shape: Shape) -> Self {
        let state = State {
            now: Duration::ZERO,
            random: fastrand::Rng::with_seed(seed),
            shape,
            struck: Struck::default(),
            trace: Trace::default(),
            findings: Vec::new(),
            blames: Vec::new(),
            nodes: Vec::new(),
            hosts: Vec::new(),
            listeners: BTreeMap::new(),
            happenings: BinaryHeap::new(),
            sequence: 0,
            ready: Vec::new(),
            spare: Vec::new(),
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Tells threads that wait for another thread's doing.
    pub(super) fn changed(&self) {
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            self.0.changed.notify_all();
        }
    }

    /// Waits, in real time, for another thread to do something.
    pub fn wait_for_others(&self, patience: Duration) {
        let state = self.lock();
        self.0.waiting.fetch_add(1, Ordering::SeqCst);
        // Whoever waits looks again anyway, at what it waits for.
        drop(self.0.changed.wait_timeout(state, patience));
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Virtual time since the network was made.
    pub fn now(&self) -> Duration {
        self.lock().now
    }

    /// When the next thing happens by itself.
    pub fn next_happening(&self) -> Option<Duration> {
        self.lock().happenings.peek().map(|Reverse(next)| next.at)
    }

    /// Moves time on and lets happen what is due until then. Time does not go back.
    pub fn advance(&self, until: Duration) {
        let mut state = self.lock();
        while state
            .happenings
            .peek()
            .is_some_and(|Reverse(next)| next.at <= until)
        {
            let Some(Reverse(next)) = state.happenings.pop() else {
                break;
            };
            state.now = state.now.max(next.at);
            state.happen(next.what);
        }
        state.now = state.now.max(until);
        drop(state);
        self.changed();
    }

    pub fn add_host(&self, addresses: &[IpAddr]) -> HostId {
        let mut state = self.lock();
        state.hosts.push(Host {
            addresses: addresses.to_vec(),
            captured: false,
            next_port: EPHEMERAL_FIRST,
        });
        HostId(state.hosts.len() as u32 - 1)
    }

    /// Whether connections of and to this host are redirected to its proxy.
    pub fn set_captured(&self, host: HostId, captured: bool) {
        self.lock().hosts[host.0 as usize].captured = captured;
    }

    /// What the address belongs to from now on.
    pub fn move_address(&self, address: IpAddr, to: HostId) {
        let mut state = self.lock();
        for host in &mut state.hosts {
            host.addresses.retain(|known| *known != address);
        }
        state.hosts[to.0 as usize].addresses.push(address);
    }

    pub fn set_rate(&self, fault: Fault, rate: f64) {
        self.lock().shape.rates.set(fault, rate);
    }

    /// A random number below `bound`, of the network's own.
    pub fn draw(&self, bound: u64) -> u64 {
        self.lock().random.u64(..bound)
    }

    pub fn add_watcher(&self) -> Watcher {
        let mut state = self.lock();
        state.ready.push(Vec::new());
        Watcher(state.ready.len() - 1)
    }

    pub fn has_ready(&self, watcher: Watcher) -> bool {
        !self.lock().ready[watcher.0].is_empty()
    }

    /// Moves the tokens of endpoints that may have something to do to the end of `into`.
    pub fn take_ready(&self, watcher: Watcher, into: &mut Vec<Token>) {
        let mut state = self.lock();
        let State { ready, nodes, .. } = &mut *state;
        for (index, token) in ready[watcher.0].drain(..) {
            let node = &mut nodes[index as usize];
            if node.watcher == Some((watcher, token)) {
                node.listed = false;
                into.push(token);
            }
        }
    }

    /// A socket that is not connected yet.
    pub fn open(&self, host: HostId, marked: bool, bind: Option<IpAddr>, family_of: IpAddr) -> Endpoint {
        let mut state = self.lock();
        let local = state.local_address(host, bind, bind.unwrap_or(family_of));
        let mut node = Node::new(host, local, Phase::Fresh);
        node.marked = marked;
        let index = state.add(node);
        drop(state);
        Endpoint::new(self.clone(), index)
    }

    /// # Errors
    /// The port is taken.
    pub fn listen(&self, host: HostId, port: u16, queue_max: usize) -> io::Result<Endpoint> {
        let mut state = self.lock();
        let local = match port {
            0 => state.local_address(host, None, IpAddr::from([127, 0, 0, 1])),
            port => {
                let ip = state.hosts[host.0 as usize].addresses.first().copied();
                SocketAddr::new(ip.unwrap_or(IpAddr::from([127, 0, 0, 1])), port)
            }
        };
        if state.listeners.contains_key(&(host, local.port())) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let queue = VecDeque::new();
        let index = state.add(Node::new(host, local, Phase::Listening { queue, queue_max }));
        state.listeners.insert((host, local.port()), index);
        drop(state);
        Ok(Endpoint::new(self.clone(), index))
    }

    /// Two connected ends on one host.
    pub fn pair(&self, host: HostId) -> (Endpoint, Endpoint) {
        let mut state = self.lock();
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let latency = state.draw_latency();
        let [a, b] = [(); 2].map(|()| {
            let local = state.local_address(host, None, loopback);
            let mut node = Node::new(host, local, Phase::Stream);
            node.latency = latency;
            state.add(node)
        });
        state.join(a, b);
        drop(state);
        (Endpoint::new(self.clone(), a), Endpoint::new(self.clone(), b))
    }
}

impl State {
    fn add(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).expect("invariant: a simulation ends long before 2^32 sockets")
    }

    pub fn node(&mut self, index: u32) -> &mut Node {
        &mut self.nodes[index as usize]
    }

    pub fn strike(&mut self, fault: Fault) {
        let struck = self.struck.get(fault) + 1;
        self.struck.set(fault, struck);
        self.trace.note(self.now, 0xF0 + fault as u64, u64::MAX, 0, || {
            format!("fault: {fault}")
        });
    }

    pub fn blame(&mut self, fault: Fault, one: HostId, other: HostId) {
        let at = self.now;
        let hosts = (one, other);
        self.blames.push(Blame { at, fault, hosts });
    }

    /// Whether the fault strikes now.
    pub fn chance(&mut self, fault: Fault) -> bool {
        let rate = self.shape.rates.get(fault);
        let strikes = rate > 0.0 && self.random.f64() < rate;
        if strikes {
            self.strike(fault);
        }
        strikes
    }

    fn local_address(&mut self, host: HostId, bind: Option<IpAddr>, family_of: IpAddr) -> SocketAddr {
        let host = &mut self.hosts[host.0 as usize];
        let port = host.next_port;
        host.next_port = host.next_port.checked_add(1).unwrap_or(EPHEMERAL_FIRST);
        let own = host
            .addresses
            .iter()
            .find(|address| address.is_ipv4() == family_of.is_ipv4());
        let ip = bind.or(own.copied()).unwrap_or(family_of);
        SocketAddr::new(ip, port)
    }

    fn schedule(&mut self, at: Duration, what: Happening) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.happenings.push(Reverse(Scheduled { at, sequence, what }));
    }

    pub fn watch(&mut self, index: u32, watcher: Option<(Watcher, Token)>) {
        let node = self.node(index);
        node.watcher = watcher;
        node.listed = false;
        self.tell(index);
    }

    /// The endpoint's watcher shall look at it.
    pub fn tell(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        if let Some((watcher, token)) = node.watcher
            && !node.listed
        {
            node.listed = true;
            self.ready[watcher.0].push((index, token));
        }
    }

    /// At once when it takes no time, so that an instant network needs nobody to move time on.
    fn happen_at(&mut self, at: Duration, what: Happening) {
        if self.is_next(at) {
            self.happen(what);
        } else {
            self.schedule(at, what);
        }
    }

    /// Whether something that happens at this time happens now, before everything that is scheduled.
    fn is_next(&self, at: Duration) -> bool {
        at <= self.now && self.happenings.peek().is_none_or(|Reverse(next)| next.at > at)
    }

    fn draw_latency(&mut self) -> Duration {
        let (from, to) = self.shape.latency_us;
        Duration::from_micros(self.random.u64(from..=to))
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Syn { from } => self.syn(from),
            Happening::SynAnswer { to, refused } => {
                let node = self.node(to);
                if let Phase::Connecting { outcome } = &mut node.phase {
                    *outcome = Some(match refused {
                        true => Err(libc::ECONNREFUSED),
                        false => Ok(()),
                    });
                }
                self.tell(to);
            }
            Happening::Bytes { to, mut bytes } => {
                self.arrive(to, &bytes);
                bytes.clear();
                self.spare.push(bytes);
            }
            Happening::Mark { to } => {
                let node = self.node(to);
                let place = node.read_bytes + node.inbox.len() as u64;
                node.marks.push_back(place);
                self.tell(to);
            }
            Happening::Fin { to } => self.fin_arrives(to),
            Happening::Reset { to } => self.reset_arrives(to),
        }
    }
}
