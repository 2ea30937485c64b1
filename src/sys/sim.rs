//! The driver on a simulated network: no kernel, no real time, everything decided by a seed.
//!
//! It keeps the rules of `sys::driver` and uses every freedom that they leave: completions of one poll come in any
//! order, some come later than they could, reads and writes are as short as one byte, a send goes out at once or
//! not, a receive holds its block from the start or takes it at the end, a cancelled receive may bring bytes, and
//! what a closed socket had under way ends some polls later.
//!
//! It also checks its user. Memory that the kernel would own is scribbled on, and looked at when it comes back:
//! a block that anybody else wrote to, or a payload that changed while it was being sent, is a finding.
//!
//! Behind the cargo feature `sim`; one thread in a simulation, a few in the contract tests.

mod endpoint;
pub mod faults;
mod lingering;
mod network;
mod receiving;
mod sending;
mod serving;
mod trace;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use self::endpoint::Endpoint;
use self::faults::Fault;
use self::lingering::Lingering;
pub use self::network::{Blame, HostId, Network, Shape, Token, Watcher};
use self::receiving::Scribbled;
use self::sending::Sending;
pub use self::trace::{Line, Trace};
use super::buffer::{Payload, RecvPool};
use super::descriptor::Descriptor;
use super::driver::{
    Close, Counters, Driver, Event, InUse, Owner, ReceiveMode, SendStatus, SocketId, SocketSpec, Wake,
};
use crate::limits;
use crate::planted::{Bug, is_planted};

/// Virtual time that a poll takes by itself when nobody else moves time on: otherwise nothing would ever arrive
/// for a user who polls without waiting.
const POLL_TAKES: Duration = Duration::from_micros(20);

/// More events than one slot causes in a poll, so that there is room for a wake as well.
const SLOT_EVENTS_MAX: usize = 8;

/// How a driver uses its freedom.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Receive blocks, and their size.
    pub blocks: u16,
    pub block_bytes: usize,
    /// In percent: a completion that is ready comes in a later poll.
    pub postpone: u8,
    /// In percent: a send is tried at once.
    pub direct: u8,
    /// In percent: an operation of a closed socket goes on for another poll.
    pub linger: u8,
    /// Nobody else moves time on: every poll does a little, and one that finds nothing until something happens.
    pub keeps_time: bool,
}

impl Habits {
    /// As a driver on an idle machine: everything comes as soon as it can.
    pub fn plain() -> Self {
        Self {
            blocks: 64,
            block_bytes: limits::RECEIVE_SMALL_BYTES,
            postpone: 0,
            direct: 50,
            linger: 0,
            keeps_time: true,
        }
    }
}

pub struct SimDriver {
    network: Network,
    /// Where sockets are made whose namespace is not given.
    home: HostId,
    watcher: Watcher,
    waker: Arc<SimWaker>,
    habits: Habits,
    random: fastrand::Rng,
    slots: Vec<Slot>,
    free: Vec<u32>,
    pool: RecvPool,
    /// Blocks that are neither free nor lent.
    taken: usize,
    /// Slots that may have something to do, each once.
    ready: Vec<u32>,
    /// Those of a poll that is on.
    serving: Vec<u32>,
    tokens: Vec<Token>,
    /// What closed sockets left behind.
    lingering: Vec<Lingering>,
    /// What a process that was killed is told at its next turn.
    cut_off: Vec<Event>,
    /// Memory for copies of payloads, of sockets that are closed.
    copies: Vec<Vec<u8>>,
    counters: Counters,
    is_dead: bool,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    listed: bool,
    socket: Option<Socket>,
}

struct Socket {
    endpoint: Endpoint,
    owner: Owner,
    setup: Setup,
    receive: Receive,
    send: Option<Sending>,
    /// The memory of `Sending::copy` between two sends: of its own, so that sockets that sent before allocate
    /// nothing, however many send at once.
    copy: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    Nothing,
    Connecting,
    Accepting,
}

enum Receive {
    Off,
    Armed {
        mode: ReceiveMode,
        block: Option<Scribbled>,
    },
    /// Taken back; the block comes back with the next poll, perhaps with bytes.
    Stopping {
        block: Option<Scribbled>,
    },
    Over,
}

struct SimWaker {
    network: Network,
    woken: AtomicBool,
}

impl Wake for SimWaker {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.network.changed();
    }
}

impl SimDriver {
    /// # Errors
    /// No memory for the blocks.
    pub fn new(network: &Network, home: HostId, seed: u64, habits: Habits) -> io::Result<Self> {
        let waker = SimWaker {
            network: network.clone(),
            woken: AtomicBool::new(false),
        };
        Ok(Self {
            network: network.clone(),
            home,
            watcher: network.add_watcher(),
            waker: Arc::new(waker),
            random: fastrand::Rng::with_seed(seed),
            slots: Vec::new(),
            free: Vec::new(),
            pool: RecvPool::new(habits.blocks, habits.block_bytes)?,
            taken: 0,
            habits,
            ready: Vec::new(),
            serving: Vec::new(),
            tokens: Vec::new(),
            lingering: Vec::new(),
            cut_off: Vec::new(),
            copies: Vec::new(),
            counters: Counters::default(),
            is_dead: false,
        })
    }

    /// Whether a poll would find something now.
    pub fn is_due(&self) -> bool {
        !self.ready.is_empty()
            || !self.lingering.is_empty()
            || !self.cut_off.is_empty()
            || self.waker.woken.load(Ordering::Acquire)
            || self.network.has_ready(self.watcher)
    }

    /// The process is gone: the kernel closes every socket, and there will be no other. What is left of it waits for no
    /// send.
    pub fn kill(&mut self) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let generation = slot.generation;
            let Some(socket) = slot.socket.take() else {
                continue;
            };
            slot.generation = generation.wrapping_add(1);
            if let Some(sending) = socket.send {
                let event = Event::Sent {
                    owner: socket.owner,
                    socket: SocketId {
                        index: index as u32,
                        generation,
                    },
                    taken: sending.taken,
                    error: Some(not_connected()),
                    payload: self.end_send(None, sending),
                };
                self.cut_off.push(event);
            }
            socket.endpoint.close(Close::Orderly);
        }
        for Lingering { endpoint, .. } in &mut self.lingering {
            if let Some((endpoint, how)) = endpoint.take() {
                endpoint.close(how);
            }
        }
        self.is_dead = true;
    }

    fn insert(&mut self, endpoint: Endpoint, owner: Owner) -> SocketId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            // Room for all of them, so that no poll has to make any.
            self.ready.reserve(self.slots.len() - self.ready.len());
            self.serving.reserve(self.slots.len());
            u32::try_from(self.slots.len() - 1).expect("invariant: a simulation has few sockets")
        });
        let slot = &mut self.slots[index as usize];
        let id = SocketId {
            index,
            generation: slot.generation,
        };
        slot.socket = Some(Socket {
            endpoint,
            owner,
            setup: Setup::Nothing,
            receive: Receive::Off,
            send: None,
            copy: self.copies.pop().unwrap_or_default(),
        });
        id
    }

    fn get(&self, id: SocketId) -> Option<&Socket> {
        let slot = self.slots.get(id.index as usize)?;
        slot.socket.as_ref().filter(|_| slot.generation == id.generation)
    }

    fn get_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.socket.as_mut().filter(|_| slot.generation == id.generation)
    }

    fn list(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.socket.is_some() && !slot.listed {
            slot.listed = true;
            self.ready.push(index);
        }
    }

    fn percent(&mut self, percent: u8) -> bool {
        percent > 0 && self.random.u8(..100) < percent
    }
}

impl Drop for SimDriver {
    /// A socket that was to be closed with a reset is, and what its operations owned is looked at.
    fn drop(&mut self) {
        while let Some(left) = self.lingering.pop() {
            self.end_one_lingering(left);
        }
    }
}

fn not_connected() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Driver for SimDriver {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn adopt(&mut self, fd: Descriptor, owner: Owner) -> io::Result<SocketId> {
        let endpoint = fd.into_endpoint()?;
        if self.is_dead {
            return Err(not_connected());
        }
        let id = self.insert(endpoint, owner);
        let token = u64::from(id.generation) << 32 | u64::from(id.index);
        if let Some(socket) = self.get(id) {
            socket.endpoint.watch(self.watcher, token);
        }
        Ok(id)
    }

    fn open(&mut self, spec: &SocketSpec, family_of: IpAddr, owner: Owner) -> io::Result<SocketId> {
        let host = match &spec.namespace {
            Some(namespace) => {
                HostId(u32::try_from(namespace.id().inode).map_err(|_| io::ErrorKind::InvalidInput)?)
            }
            None => self.home,
        };
        let mut state = self.network.lock();
        if state.chance(Fault::NoDescriptors) {
            state.blame(Fault::NoDescriptors, host, host);
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        drop(state);
        let marked = spec.options.mark.is_some();
        let endpoint = self.network.open(host, marked, spec.bind_transparent, family_of);
        self.adopt(endpoint.into(), owner)
    }

    fn set_owner(&mut self, socket: SocketId, owner: Owner) {
        if let Some(socket) = self.get_mut(socket) {
            socket.owner = owner;
        }
    }

    fn listen(&mut self, listener: SocketId) {
        if let Some(socket) = self.get_mut(listener) {
            socket.setup = Setup::Accepting;
            self.list(listener.index);
        }
    }

    fn connect(&mut self, socket: SocketId, peer: SocketAddr) {
        if let Some(entry) = self.get_mut(socket) {
            assert!(
                entry.setup == Setup::Nothing,
                "a socket is connected once at a time"
            );
            entry.setup = Setup::Connecting;
            entry.endpoint.connect(peer);
            self.list(socket.index);
        }
    }

    fn receive(&mut self, socket: SocketId, mode: ReceiveMode) {
        // Half of the receives of one piece take a block when bytes are there, the others hold one from the start. One
        // that goes on never does: idle sessions hold nothing, on no driver.
        let once = matches!(mode, ReceiveMode::Once { .. });
        let holds = self.random.bool() && once && self.pool.lent() * 2 < usize::from(self.habits.blocks);
        let Some(entry) = self.get_mut(socket) else {
            return;
        };
        let block = match &mut entry.receive {
            Receive::Off => None,
            Receive::Stopping { block } => block.take(),
            Receive::Over => return,
            Receive::Armed { .. } => panic!("one receive at a time per socket"),
        };
        if let ReceiveMode::Once { bytes_max } = mode {
            assert!(bytes_max > 0, "a receive of no bytes cannot be told from the end");
        }
        let block = match (block, holds) {
            (None, true) => self.scribble(),
            (block, _) => block,
        };
        if let Some(entry) = self.get_mut(socket) {
            entry.receive = Receive::Armed { mode, block };
        }
        self.list(socket.index);
    }

    fn stop_receive(&mut self, socket: SocketId) {
        if let Some(entry) = self.get_mut(socket)
            && let Receive::Armed { block, .. } = &mut entry.receive
        {
            entry.receive = Receive::Stopping { block: block.take() };
            self.list(socket.index);
        }
    }

    /// A kernel need not have the end yet.
    fn take_end(&mut self, socket: SocketId) -> bool {
        let lucky = self.random.bool();
        let Some(entry) = self.get_mut(socket) else {
            return false;
        };
        if !lucky || !matches!(entry.receive, Receive::Off) || !entry.endpoint.take_end() {
            return false;
        }
        entry.receive = Receive::Over;
        true
    }

    fn send_last(&mut self, socket: SocketId, payload: Payload) -> SendStatus {
        self.send(socket, payload)
    }

    fn send(&mut self, socket: SocketId, payload: Payload) -> SendStatus {
        assert!(
            !payload.is_empty(),
            "an empty payload would never be reported as sent"
        );
        let Some(entry) = self.get(socket) else {
            return SendStatus::Failed {
                taken: 0,
                error: not_connected(),
                payload,
            };
        };
        assert!(entry.send.is_none(), "one send at a time per socket");
        let mut sending = self.start_send(socket, payload);
        if self.percent(self.habits.direct) {
            let outcome = self.go_on_sending(socket, &mut sending);
            let taken = sending.taken;
            if let Err(error) = outcome {
                let payload = self.end_send(Some(socket), sending);
                return SendStatus::Failed {
                    taken,
                    error,
                    payload,
                };
            }
            if taken == sending.payload.len() {
                return SendStatus::Done(self.end_send(Some(socket), sending));
            }
        }
        if let Some(entry) = self.get_mut(socket) {
            entry.send = Some(sending);
        }
        self.list(socket.index);
        SendStatus::Queued
    }

    fn shutdown_send(&mut self, socket: SocketId) -> io::Result<()> {
        let entry = self.get(socket).ok_or_else(not_connected)?;
        assert!(
            entry.send.is_none(),
            "the sending side is shut down after the last send is over"
        );
        entry.endpoint.shutdown_send()
    }

    fn close(&mut self, socket: SocketId, how: Close) {
        if self.get(socket).is_none() {
            return;
        }
        let slot = &mut self.slots[socket.index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let Some(socket_closed) = slot.socket.take() else {
            return;
        };
        self.free.push(socket.index);
        let Socket {
            endpoint,
            setup,
            receive,
            send,
            copy,
            ..
        } = socket_closed;
        if copy.capacity() > 0 {
            self.copies.push(copy);
        }
        let (block, receiving) = match receive {
            Receive::Armed { block, .. } | Receive::Stopping { block } => (block, true),
            Receive::Off | Receive::Over => (None, false),
        };
        let operations =
            usize::from(setup != Setup::Nothing) + usize::from(receiving) + usize::from(send.is_some());
        let endpoint = match operations > 0 && self.random.bool() {
            // Closed when its operations are over.
            true => Some((endpoint, how)),
            false => {
                endpoint.close(how);
                None
            }
        };
        let (block, given_back) = match block {
            Some(scribbled) if is_planted(Bug::CancelTakenForCompletion) => {
                self.taken -= 1;
                self.pool.put(scribbled.block);
                (None, Some(scribbled))
            }
            block => (block, None),
        };
        if operations > 0 {
            self.lingering.push(Lingering {
                index: socket.index,
                polls: 0,
                given_back,
                endpoint,
                block,
                send,
                operations,
            });
        }
    }

    fn local_address(&self, socket: SocketId) -> io::Result<SocketAddr> {
        self.get(socket)
            .ok_or_else(not_connected)?
            .endpoint
            .local_address()
    }

    fn original_destination(&self, socket: SocketId) -> io::Result<SocketAddr> {
        let socket = self.get(socket).ok_or_else(not_connected)?;
        Ok(socket.endpoint.original_destination())
    }

    /// Its receives cost no time.
    fn set_crowded(&mut self, _crowded: bool) {}

    fn poll(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.counters.waits += 1;
        if self.habits.keeps_time {
            self.network.advance(self.network.now() + POLL_TAKES);
            if timeout != Some(Duration::ZERO) && !self.is_due() {
                self.wait(timeout);
            }
        }
        let from = events.len();
        for event in std::mem::take(&mut self.cut_off) {
            self.push(events, event);
        }
        self.end_lingering(events);
        self.serve(events);
        if self.waker.woken.swap(false, Ordering::AcqRel) {
            self.push(events, Event::Woken);
            let last = events.len() - 1;
            let place = self.random.usize(from..=last);
            events.swap(place, last);
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn in_use(&self) -> InUse {
        let mut in_use = InUse {
            sockets: 0,
            operations: self.lingering.iter().map(|left| left.operations).sum(),
            buffers: self.pool.lent() + self.taken,
        };
        in_use.sockets += self
            .lingering
            .iter()
            .filter(|left| left.endpoint.is_some())
            .count();
        for socket in self.slots.iter().filter_map(|slot| slot.socket.as_ref()) {
            in_use.sockets += 1;
            in_use.operations += usize::from(socket.setup != Setup::Nothing)
                + usize::from(matches!(
                    socket.receive,
                    Receive::Armed { .. } | Receive::Stopping { .. }
                ))
                + usize::from(socket.send.is_some());
        }
        in_use
    }
}
