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
mod network;
mod trace;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use self::endpoint::Endpoint;
use self::faults::Fault;
pub use self::network::{HostId, Network, Shape, Token, Watcher};
pub use self::trace::Trace;
use super::buffer::{Payload, RecvBuffer, RecvPool};
use super::descriptor::Descriptor;
use super::driver::{
    Close, Counters, Driver, Event, InUse, Owner, ReceiveMode, Received, SendStatus, SocketId, SocketSpec,
    Wake,
};
use crate::limits;

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
    /// Slots that may have something to do, each once.
    ready: Vec<u32>,
    /// Those of a poll that is on.
    serving: Vec<u32>,
    tokens: Vec<Token>,
    /// What closed sockets left behind.
    lingering: Vec<Lingering>,
    /// Memory for copies of payloads, of sockets that are closed.
    copies: Vec<Vec<u8>>,
    counters: Counters,
    /// Until when the last poll would have slept.
    sleeps_until: Option<Duration>,
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

/// A block that the kernel owns, full of one byte.
struct Scribbled {
    block: u16,
    byte: u8,
}

struct Sending {
    payload: Payload,
    taken: usize,
    /// What the payload was when it was given.
    copy: Vec<u8>,
}

/// Operations of a closed socket that are not over.
struct Lingering {
    endpoint: Option<(Endpoint, Close)>,
    block: Option<Scribbled>,
    send: Option<Sending>,
    operations: usize,
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

/// What a worker waits for, as its driver knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// A poll would find something.
    pub is_due: bool,
    /// When its last poll would end by itself.
    pub sleeps_until: Option<Duration>,
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
            habits,
            ready: Vec::new(),
            serving: Vec::new(),
            tokens: Vec::new(),
            lingering: Vec::new(),
            copies: Vec::new(),
            counters: Counters::default(),
            sleeps_until: None,
        })
    }

    pub fn attention(&self) -> Attention {
        Attention {
            is_due: !self.ready.is_empty()
                || !self.lingering.is_empty()
                || self.waker.woken.load(Ordering::Acquire)
                || self.network.has_ready(self.watcher),
            sleeps_until: self.sleeps_until,
        }
    }

    /// The kernel's number of a socket, for traces.
    pub fn endpoint_number(&self, socket: SocketId) -> Option<u32> {
        self.get(socket).map(|socket| socket.endpoint.number())
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

    // ---- blocks ----------------------------------------------------------------------------------------

    /// Takes a block and fills it with what nobody may see. `None` when there is none.
    fn scribble(&mut self) -> Option<Scribbled> {
        let block = self.pool.take()?;
        let byte = self.random.u8(..);
        self.memory(block).fill(byte);
        Some(Scribbled { block, byte })
    }

    fn memory(&mut self, block: u16) -> &mut [u8] {
        // SAFETY: a block that was taken belongs to its taker, has `block_bytes` bytes at its address and stays
        // mapped as long as the pool; `self` is borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.pool.address(block).as_ptr(), self.pool.block_bytes()) }
    }

    /// The block is ours again: nobody may have written to it.
    fn unscribble(&mut self, scribbled: Scribbled) -> u16 {
        let byte = scribbled.byte;
        if self.memory(scribbled.block).iter().any(|found| *found != byte) {
            self.network
                .report("a receive block was written to while the kernel owned it".to_owned());
        }
        scribbled.block
    }

    fn put_back(&mut self, scribbled: Option<Scribbled>) {
        if let Some(scribbled) = scribbled {
            let block = self.unscribble(scribbled);
            self.pool.put(block);
        }
    }

    /// Reads into a block, or into memory of its own when there is none.
    fn read(
        &mut self,
        id: SocketId,
        bytes_max: usize,
        held: Option<Scribbled>,
    ) -> io::Result<Option<RecvBuffer>> {
        let short = self.network.lock().shape.short;
        let Some(socket) = self.get(id) else {
            self.put_back(held);
            return Err(not_connected());
        };
        let readable = socket.endpoint.readable_bytes();
        let without = held.is_none() && self.network.lock().chance(Fault::NoBuffer);
        let held = match (held, without) {
            (None, false) => self.scribble(),
            (held, _) => held,
        };
        let room = match &held {
            Some(_) => self.pool.block_bytes(),
            None => limits::RECEIVE_FALLBACK_BYTES,
        };
        let mut asked = bytes_max.min(room);
        if short && readable > 1 && self.random.u8(..4) == 0 {
            asked = asked.min(self.random.usize(1..=readable));
        }
        let block = held.map(|scribbled| self.unscribble(scribbled));
        let Some(block) = block else {
            self.counters.buffer_fallbacks += 1;
            let mut bytes = vec![0; asked.min(readable.max(1))];
            let socket = self.get(id).ok_or_else(not_connected)?;
            return Ok(match socket.endpoint.read(&mut bytes)? {
                0 => None,
                n => Some(RecvBuffer::copied(&bytes[..n])),
            });
        };
        // SAFETY: as in `memory`; the driver is not touched while the slice lives.
        let memory = unsafe { std::slice::from_raw_parts_mut(self.pool.address(block).as_ptr(), asked) };
        let socket = self.get(id).expect("invariant: looked up above");
        match socket.endpoint.read(memory) {
            Ok(n @ 1..) => Ok(Some(self.pool.lend(block, n))),
            outcome => {
                self.pool.put(block);
                outcome.map(|_| None)
            }
        }
    }

    // ---- sending ---------------------------------------------------------------------------------------

    fn start_send(&mut self, id: SocketId, payload: Payload) -> Sending {
        let mut copy = self
            .get_mut(id)
            .map(|socket| std::mem::take(&mut socket.copy))
            .unwrap_or_default();
        pieces(&payload, |piece| copy.extend_from_slice(piece));
        Sending {
            payload,
            taken: 0,
            copy,
        }
    }

    /// The payload is the caller's again: it must still be what it was.
    fn end_send(&mut self, id: Option<SocketId>, sending: Sending) -> Payload {
        let mut rest = &sending.copy[..];
        let mut same = true;
        pieces(&sending.payload, |piece| {
            same &= rest.len() >= piece.len() && &rest[..piece.len()] == piece;
            rest = &rest[piece.len().min(rest.len())..];
        });
        if !same || !rest.is_empty() {
            self.network
                .report("a payload changed while it was being sent".to_owned());
        }
        let mut copy = sending.copy;
        copy.clear();
        match id.and_then(|id| self.get_mut(id)) {
            Some(socket) => socket.copy = copy,
            None => self.copies.push(copy),
        }
        sending.payload
    }

    /// Sends as far as it goes, or less. The bytes are read from the payload at this moment, as the kernel does.
    fn go_on_sending(&mut self, id: SocketId, sending: &mut Sending) -> io::Result<()> {
        let short = self.network.lock().shape.short;
        loop {
            let left = sending.payload.len() - sending.taken;
            if left == 0 {
                return Ok(());
            }
            let mut most = left;
            if short && left > 1 && self.random.u8(..4) == 0 {
                most = self.random.usize(1..=left);
            }
            let socket = self.get(id).ok_or_else(not_connected)?;
            let (mut skip, mut sent, mut outcome) = (sending.taken, 0, Ok(()));
            pieces(&sending.payload, |piece| {
                let from = skip.min(piece.len());
                skip -= from;
                let piece = &piece[from..piece.len().min(from + most - sent)];
                let mut at = 0;
                while at < piece.len() && outcome.is_ok() {
                    match socket.endpoint.write(&piece[at..]) {
                        Ok(n) => at += n,
                        Err(error) => outcome = Err(error),
                    }
                }
                sent += at;
            });
            sending.taken += sent;
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
                // A short send: the rest goes later.
                Ok(()) if sent < left => return Ok(()),
                Ok(()) => {}
            }
        }
    }

    // ---- a poll ----------------------------------------------------------------------------------------

    /// Serves every socket that may have something to do, in any order.
    fn serve(&mut self, events: &mut Vec<Event>) {
        let mut tokens = std::mem::take(&mut self.tokens);
        self.network.take_ready(self.watcher, &mut tokens);
        for token in tokens.drain(..) {
            let (index, generation) = (token as u32, (token >> 32) as u32);
            if self.slots[index as usize].generation == generation {
                self.list(index);
            }
        }
        self.tokens = tokens;
        // Slots that are listed meanwhile go into the other list: both keep their memory.
        std::mem::swap(&mut self.ready, &mut self.serving);
        let mut serving = std::mem::take(&mut self.serving);
        self.random.shuffle(&mut serving);
        let full = events.len() + limits::EVENTS_TURN_MAX - SLOT_EVENTS_MAX;
        for index in serving.drain(..) {
            self.slots[index as usize].listed = false;
            if events.len() >= full || self.percent(self.habits.postpone) {
                self.list(index);
                continue;
            }
            let id = SocketId {
                index,
                generation: self.slots[index as usize].generation,
            };
            if self.serve_socket(id, events) {
                self.list(index);
            }
        }
        self.serving = serving;
    }

    /// Whether there is more to do now.
    fn serve_socket(&mut self, id: SocketId, events: &mut Vec<Event>) -> bool {
        let Some(socket) = self.get(id) else {
            return false;
        };
        match socket.setup {
            Setup::Connecting => return self.finish_connect(id, events),
            Setup::Accepting => return self.accept(id, events),
            Setup::Nothing => {}
        }
        if self.random.bool() {
            self.serve_send(id, events);
            self.serve_receive(id, events);
        } else {
            self.serve_receive(id, events);
            self.serve_send(id, events);
        }
        let Some(socket) = self.get(id) else {
            return false;
        };
        let receives = match socket.receive {
            Receive::Armed { .. } => socket.endpoint.is_readable(),
            Receive::Off | Receive::Over => false,
            Receive::Stopping { .. } => true,
        };
        receives || (socket.send.is_some() && socket.endpoint.is_writable())
    }

    fn note(&self, event: &Event) {
        let mut state = self.network.lock();
        let now = state.now;
        let (what, socket, bytes) = match event {
            Event::Accepted { listener, .. } => (1, Some(listener), 0),
            Event::AcceptFailed { listener, .. } => (2, Some(listener), 0),
            Event::Connected { socket, result, .. } => (3, Some(socket), u64::from(result.is_ok())),
            Event::Received { socket, data, .. } => match data {
                Received::Data(buffer) => (4, Some(socket), buffer.len() as u64),
                Received::End => (5, Some(socket), 0),
                Received::Failed(_) => (6, Some(socket), 0),
            },
            Event::Sent {
                socket, taken, error, ..
            } => (7 + u64::from(error.is_some()), Some(socket), *taken as u64),
            Event::Woken => (9, None, 0),
        };
        let number = socket
            .and_then(|socket| self.get(*socket))
            .map_or(u64::MAX, |socket| u64::from(socket.endpoint.number()));
        let who = (self.watcher.0 as u64) << 32 | number;
        let watcher = self.watcher.0;
        state.trace.note(now, what, who, bytes, || match event {
            Event::Woken => format!("driver {watcher}: woken"),
            Event::Accepted { peer, .. } => format!("driver {watcher}: accepted {peer} on {number}"),
            Event::Connected { result, .. } => format!("driver {watcher}: connected {number}: {result:?}"),
            Event::Received { data, .. } => format!("driver {watcher}: received on {number}: {data:?}"),
            Event::Sent { taken, error, .. } => {
                format!("driver {watcher}: sent {taken} on {number}: {error:?}")
            }
            Event::AcceptFailed { error, .. } => format!("driver {watcher}: accept failed: {error}"),
        });
    }

    fn push(&mut self, events: &mut Vec<Event>, event: Event) {
        self.counters.events += 1;
        self.note(&event);
        events.push(event);
    }

    fn finish_connect(&mut self, id: SocketId, events: &mut Vec<Event>) -> bool {
        let Some(socket) = self.get_mut(id) else {
            return false;
        };
        let Some(result) = socket.endpoint.take_connected() else {
            return false;
        };
        socket.setup = Setup::Nothing;
        let owner = socket.owner;
        self.push(
            events,
            Event::Connected {
                owner,
                socket: id,
                result,
            },
        );
        true
    }

    fn accept(&mut self, id: SocketId, events: &mut Vec<Event>) -> bool {
        for _ in 0..self.random.usize(1..SLOT_EVENTS_MAX) {
            let Some(socket) = self.get(id) else {
                return false;
            };
            let owner = socket.owner;
            // It needs a connection to fail to accept one.
            if !socket.endpoint.has_waiting() {
                return false;
            }
            let fails = self.network.lock().chance(Fault::NoDescriptors);
            let Some(socket) = self.get_mut(id) else {
                return false;
            };
            if fails {
                socket.setup = Setup::Nothing;
                let error = io::Error::from_raw_os_error(libc::EMFILE);
                self.push(
                    events,
                    Event::AcceptFailed {
                        owner,
                        listener: id,
                        error,
                    },
                );
                return false;
            }
            let Ok((endpoint, peer)) = socket.endpoint.accept() else {
                return false;
            };
            self.push(
                events,
                Event::Accepted {
                    owner,
                    listener: id,
                    fd: endpoint.into(),
                    peer,
                },
            );
        }
        true
    }

    fn serve_send(&mut self, id: SocketId, events: &mut Vec<Event>) {
        let Some(mut sending) = self.get_mut(id).and_then(|socket| socket.send.take()) else {
            return;
        };
        let error = self.go_on_sending(id, &mut sending).err();
        if error.is_none() && sending.taken < sending.payload.len() {
            if let Some(socket) = self.get_mut(id) {
                socket.send = Some(sending);
            }
            return;
        }
        let taken = sending.taken;
        let payload = self.end_send(Some(id), sending);
        if let Some(socket) = self.get(id) {
            let owner = socket.owner;
            self.push(
                events,
                Event::Sent {
                    owner,
                    socket: id,
                    taken,
                    error,
                    payload,
                },
            );
        }
    }

    fn serve_receive(&mut self, id: SocketId, events: &mut Vec<Event>) {
        let Some(socket) = self.get_mut(id) else {
            return;
        };
        let readable = socket.endpoint.is_readable();
        let has_bytes = socket.endpoint.readable_bytes() > 0;
        let (mode, block) = match &mut socket.receive {
            Receive::Off | Receive::Over => return,
            Receive::Armed { .. } if !readable => return,
            Receive::Armed { mode, block } => (Some(*mode), block.take()),
            Receive::Stopping { block } => (None, block.take()),
        };
        let owner = socket.owner;
        let bytes_max = match mode {
            Some(ReceiveMode::Once { bytes_max }) => bytes_max,
            Some(ReceiveMode::Stream) => usize::MAX,
            None => {
                socket.receive = Receive::Off;
                if !has_bytes || !self.network.lock().chance(Fault::CancelRace) {
                    return self.put_back(block);
                }
                usize::MAX
            }
        };
        let data = match self.read(id, bytes_max, block) {
            Ok(Some(buffer)) => Received::Data(buffer),
            Ok(None) => Received::End,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => Received::Failed(error),
        };
        if let Some(socket) = self.get_mut(id) {
            match (&data, mode) {
                (Received::Data(_), Some(ReceiveMode::Stream) | None) => {}
                (Received::Data(_), Some(ReceiveMode::Once { .. })) => socket.receive = Receive::Off,
                (Received::End | Received::Failed(_), _) => socket.receive = Receive::Over,
            }
        }
        self.push(
            events,
            Event::Received {
                owner,
                socket: id,
                data,
            },
        );
    }

    /// Ends what closed sockets had under way, or scribbles on: the kernel still may.
    fn end_lingering(&mut self) {
        for at in (0..self.lingering.len()).rev() {
            if self.percent(self.habits.linger) {
                if let Some(Scribbled { block, byte }) = &self.lingering[at].block {
                    let (block, byte) = (*block, *byte);
                    self.memory(block).fill(byte);
                }
                continue;
            }
            let left = self.lingering.swap_remove(at);
            self.end_one_lingering(left);
        }
    }

    fn end_one_lingering(&mut self, left: Lingering) {
        self.put_back(left.block);
        if let Some(sending) = left.send {
            drop(self.end_send(None, sending));
        }
        if let Some((endpoint, how)) = left.endpoint {
            endpoint.close(how);
        }
    }

    /// Nothing was there: moves time on to what happens next. When nothing does, other threads get a little real time
    /// to do something before the wait is over.
    fn wait(&mut self, timeout: Option<Duration>) {
        let end = timeout.map(|timeout| self.network.now() + timeout);
        let happens_first = |next: &Duration| end.is_none_or(|end| *next <= end);
        if let Some(next) = self.network.next_happening().filter(happens_first) {
            return self.network.advance(next);
        }
        self.network.wait_for_others(Duration::from_micros(500));
        if self.attention().is_due {
            return;
        }
        if let Some(until) = self.network.next_happening().filter(happens_first).or(end) {
            self.network.advance(until);
        }
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

/// The bytes of a payload, piece by piece.
fn pieces(payload: &Payload, mut with: impl FnMut(&[u8])) {
    match payload {
        Payload::Bytes { bytes, from, end } => with(&bytes[*from..*end]),
        Payload::Slices(slices) => slices.iter().for_each(|slice| with(slice.bytes())),
        Payload::Received(buffer) => with(buffer.bytes()),
    }
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
        let id = self.insert(endpoint, owner);
        let token = u64::from(id.generation) << 32 | u64::from(id.index);
        if let Some(socket) = self.get(id) {
            socket.endpoint.watch(self.watcher, token);
        }
        Ok(id)
    }

    fn open(&mut self, spec: &SocketSpec, family_of: IpAddr, owner: Owner) -> io::Result<SocketId> {
        if self.network.lock().chance(Fault::NoDescriptors) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let host = match &spec.namespace {
            Some(namespace) => {
                HostId(u32::try_from(namespace.id().inode).map_err(|_| io::ErrorKind::InvalidInput)?)
            }
            None => self.home,
        };
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
        // Most receives take a block when bytes are there; some hold one from the start.
        let holds = self.random.u8(..4) == 0 && self.pool.lent() * 2 < usize::from(self.habits.blocks);
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
        if operations > 0 {
            self.lingering.push(Lingering {
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

    fn poll(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.counters.waits += 1;
        if self.habits.keeps_time {
            self.network.advance(self.network.now() + POLL_TAKES);
            if timeout != Some(Duration::ZERO) && !self.attention().is_due {
                self.wait(timeout);
            }
        }
        self.sleeps_until = timeout.map(|timeout| self.network.now() + timeout);
        let from = events.len();
        self.end_lingering();
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
            buffers: self.pool.lent(),
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
