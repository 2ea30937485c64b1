//! The io_uring driver: operations go in by a shared queue, completions come out of another, and one system
//! call per turn does both.
//!
//! Runs on the worker thread that made it. Parts: `ring` (the kernel's queues), `buffer_ring` (receive blocks
//! that the kernel picks from), `operation` (what is in flight and owns its memory), `receiving`, `sending`,
//! `connecting`, `closing` (what happens to a socket), `behind` (bulk in crowded turns), `features` and `probe`
//! (what this kernel can do).
//!
//! Invariants: everything that the kernel may read or write belongs to an `Operation` or to a provided block
//! until the completion says otherwise; a completion names its operation by index and generation, so that
//! memory is never released for the wrong one (asserted in release builds).

mod behind;
mod buffer_ring;
mod closing;
mod connecting;
mod features;
mod operation;
mod probe;
mod receive_state;
mod receiving;
mod ring;
mod sending;
mod slots;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};

use self::behind::Behind;
use self::buffer_ring::Group;
use self::closing::Closing;
pub use self::features::{FeatureSet, KernelRelease, Profile, UnknownFeatureSet};
use self::operation::{Class, Operation, Repeating, Target, Work};
pub use self::probe::probe;
use self::receive_state::{Flow, Receive};
use self::ring::{DisabledRing, Ring};
pub use self::ring::{RingError, Step};
use self::sending::{Direct, Frame, Sending};
use self::slots::{Key, Slots};
use super::buffer::Payload;
use super::descriptor::Descriptor;
use super::driver::{
    Close, Counters, Driver, Event, InUse, Owner, ReceiveMode, SendStatus, SocketId, SocketSpec, Wake,
};
use super::socket;
use super::wake::Wakeup;
use crate::limits;

/// Events that one completion can lead to at most: bytes that were held, and the failure behind them.
const EVENTS_COMPLETION_MAX: usize = 2;

pub struct UringDriver {
    /// Dropped before the groups, so that the kernel is done with their memory.
    ring: Ring,
    profile: Profile,
    /// By `Class`.
    groups: Vec<Group>,
    operations: Slots<Operation>,
    sockets: Slots<Socket>,
    closing: Slots<Closing>,
    behind: Behind,
    /// Sockets whose receive found no block, first come first served.
    starved: VecDeque<Key>,
    /// Sockets whose owner asked again for what came after a receive was taken back.
    due: VecDeque<Key>,
    /// Frames that no send uses now.
    #[expect(
        clippy::vec_box,
        reason = "the kernel reads frames where they are, so they never move"
    )]
    frames: Vec<Box<Frame>>,
    /// Where a receive without a block reads to.
    scratch: Box<[u8]>,
    wakeup: Wakeup,
    direct_sends_left: usize,
    /// The driver is being dropped: nothing new is started.
    draining: bool,
    counters: Counters,
}

struct Socket {
    fd: OwnedFd,
    owner: Owner,
    receive: Receive,
    /// The size of what this socket receives at a time.
    flow: Flow,
    send: Option<Key>,
    /// The accept or connect that is under way.
    setup: Option<Key>,
    /// The error that a send took from the socket, which the receiving side then only sees as an end.
    broken: Option<i32>,
}

impl Socket {
    /// A send that fails takes the error away from the socket. EPIPE says nothing about the receiving side.
    fn note_send_error(&mut self, error: &io::Error) {
        let errno = error.raw_os_error().filter(|errno| *errno != libc::EPIPE);
        self.broken = self.broken.or(errno);
    }

    /// Why what a receive takes for the end is none: a send took the error from the socket, maybe one whose
    /// completion was not looked at yet.
    fn error_behind_an_end(&mut self, counters: &mut Counters) -> Option<i32> {
        if self.broken.is_none() && self.send.is_some() {
            counters.calls += 1;
            self.broken = socket::is_broken(self.fd.as_fd()).then_some(libc::ECONNRESET);
        }
        self.broken
    }
}

impl SocketId {
    fn key(self) -> Key {
        Key {
            index: self.index,
            generation: self.generation,
        }
    }
}

impl Key {
    fn socket_id(self) -> SocketId {
        SocketId {
            index: self.index,
            generation: self.generation,
        }
    }
}

impl UringDriver {
    /// Makes a ring for the calling thread, which alone may use the driver.
    ///
    /// # Errors
    /// The step that the kernel refused. A profile that `probe` returned fails only for want of resources.
    pub fn new(profile: Profile) -> Result<Self, RingError> {
        let disabled = DisabledRing::new(profile)?;
        let mut groups = Vec::with_capacity(Class::ALL.len());
        for class in Class::ALL {
            let (blocks, bytes) = match class {
                Class::Small => (limits::RECEIVE_SMALL_BLOCKS, limits::RECEIVE_SMALL_BYTES),
                Class::Large => (limits::RECEIVE_BLOCKS, limits::RECEIVE_BYTES_MAX),
            };
            let id = class.index() as u16;
            groups.push(Group::new(&disabled, id, blocks, bytes, profile.buffer_rings)?);
        }
        let ring = disabled.enable()?;
        let wakeup = Wakeup::new().map_err(|error| Step::Setup.failed(error))?;
        let mut driver = Self {
            ring,
            profile,
            groups,
            operations: Slots::with_capacity(limits::RING_ENTRIES as usize),
            sockets: Slots::new(),
            closing: Slots::new(),
            behind: Behind::default(),
            starved: VecDeque::with_capacity(limits::EVENTS_TURN_MAX),
            due: VecDeque::with_capacity(limits::EVENTS_TURN_MAX),
            frames: Vec::new(),
            scratch: vec![0; limits::RECEIVE_FALLBACK_BYTES].into_boxed_slice(),
            wakeup,
            direct_sends_left: limits::SENDS_DIRECT_TURN_MAX,
            draining: false,
            counters: Counters::default(),
        };
        driver.watch_wakeup();
        Ok(driver)
    }

    pub fn profile(&self) -> Profile {
        self.profile
    }

    fn watch_wakeup(&mut self) {
        let fd = types::Fd(self.wakeup.event().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        // SAFETY: names no memory; the descriptor lives as long as the driver.
        unsafe { self.submit(Target::Driver, Work::Wake, entry) };
    }

    /// Starts an operation.
    ///
    /// # Safety
    /// All memory that `entry` names must be owned by `work`, at an address that does not change when `work`
    /// moves, or be valid for as long as the driver.
    unsafe fn submit(&mut self, target: Target, work: Work, entry: squeue::Entry) -> Key {
        let key = self.operations.insert(Operation { target, work });
        // SAFETY: the operation owns what the entry names and is removed by its last completion only.
        unsafe { self.ring.push(entry.user_data(key.to_word())) };
        key
    }

    /// Takes completions until there are none, or the turn's events are used up.
    fn reap(&mut self, from: usize, events: &mut Vec<Event>) {
        while events.len() - from + EVENTS_COMPLETION_MAX <= limits::EVENTS_TURN_MAX {
            let Some(completion) = self.ring.completion() else {
                break;
            };
            self.complete(&completion, from, events);
        }
    }

    fn complete(&mut self, completion: &cqueue::Entry, from: usize, events: &mut Vec<Event>) {
        let operation = Key::from_word(completion.user_data());
        if cqueue::more(completion.flags()) {
            let live = self.operations.get(operation);
            let live = live.expect("invariant: a completion names a live operation");
            let repeating = live.work.repeating();
            let repeating = repeating.expect("invariant: only multishot operations complete repeatedly");
            let target = live.target;
            match repeating {
                Repeating::Wake => {}
                Repeating::Accept => self.accepted(target, completion.result(), false, events),
                Repeating::ReceiveStream(class) => {
                    let outcome = self.receive_outcome(class, completion);
                    self.received(target, class, outcome, events);
                }
            }
            return;
        }
        let over = self.operations.remove(operation);
        let over = over.expect("invariant: a completion names a live operation");
        match over.work {
            Work::Wake => {
                if !self.draining {
                    self.watch_wakeup();
                }
            }
            Work::Cancel => {}
            Work::Accept => self.accepted(over.target, completion.result(), true, events),
            Work::AcceptReady => self.accept_ready(over.target, completion.result(), from, events),
            Work::Connect(_) => self.connected(over.target, completion.result(), events),
            Work::Receive(class) | Work::ReceiveStream(class) => {
                let outcome = self.receive_outcome(class, completion);
                self.received_last(over.target, class, outcome, events);
            }
            Work::ReceiveReady => self.receive_ready(over.target, completion.result(), events),
            Work::Send(sending) => self.sent(over.target, sending, completion.result(), events),
        }
        if let Target::Closing(closing) = over.target {
            self.operation_over(closing);
        }
    }

    fn sent(&mut self, target: Target, mut sending: Sending, result: i32, events: &mut Vec<Event>) {
        let Target::Socket(key) = target else {
            let (_payload, _taken, frame) = sending.into_parts();
            self.keep(frame);
            return;
        };
        let error = sending.note(result).err();
        if error.is_none() && !sending.is_done() {
            self.queue_send(key, sending);
            return;
        }
        let socket = self.sockets.get_mut(key);
        let socket = socket.expect("invariant: operations of a closed socket are retargeted");
        socket.send = None;
        if let Some(error) = &error {
            socket.note_send_error(error);
        }
        let owner = socket.owner;
        let (payload, taken, frame) = sending.into_parts();
        self.keep(frame);
        events.push(Event::Sent {
            owner,
            socket: key.socket_id(),
            taken,
            error,
            payload,
        });
    }

    fn register(&mut self, fd: OwnedFd, owner: Owner) -> SocketId {
        // Here, not by the first turn in which all sockets send at once.
        if self.frames.len() <= self.sockets.len() && self.frames.len() < limits::SEND_FRAMES_SPARE_MAX {
            self.frames.push(Frame::new());
        }
        let key = self.sockets.insert(Socket {
            fd,
            owner,
            receive: Receive::Idle,
            flow: Flow::default(),
            send: None,
            setup: None,
            broken: None,
        });
        key.socket_id()
    }

    /// As `Driver::send`, with these flags of `send(2)`.
    fn send_with(&mut self, socket: SocketId, payload: Payload, flags: i32) -> SendStatus {
        assert!(!payload.is_empty(), "there is nothing to send");
        let key = socket.key();
        let Some(socket) = self.sockets.get_mut(key) else {
            return SendStatus::Failed {
                taken: 0,
                error: io::ErrorKind::NotConnected.into(),
                payload,
            };
        };
        assert!(socket.send.is_none(), "one send at a time on a socket");
        let small = payload.len() <= limits::SEND_DIRECT_BYTES_MAX;
        let frame = self.frames.pop().unwrap_or_else(Frame::new);
        let mut sending = Sending::new(payload, flags, frame);
        if small && self.direct_sends_left > 0 {
            self.direct_sends_left -= 1;
            self.counters.calls += 1;
            match sending.send_direct(socket.fd.as_fd()) {
                Direct::Partly => {}
                Direct::Done => {
                    let (payload, _, frame) = sending.into_parts();
                    self.keep(frame);
                    return SendStatus::Done(payload);
                }
                Direct::Failed(error) => {
                    socket.note_send_error(&error);
                    let (payload, taken, frame) = sending.into_parts();
                    self.keep(frame);
                    return SendStatus::Failed {
                        taken,
                        error,
                        payload,
                    };
                }
            }
        }
        self.queue_send(key, sending);
        SendStatus::Queued
    }

    fn queue_send(&mut self, key: Key, mut sending: Sending) {
        let socket = self.sockets.get(key);
        let fd = socket
            .expect("invariant: only a live socket sends")
            .fd
            .as_raw_fd();
        let entry = sending.entry(fd);
        let bytes = sending.left();
        // SAFETY: the entry names the payload's heap memory and the boxed frame, both owned by the work.
        let operation = unsafe { self.submit_bytes(Target::Socket(key), Work::Send(sending), entry, bytes) };
        let socket = self.sockets.get_mut(key);
        socket.expect("invariant: only a live socket sends").send = Some(operation);
    }

    fn keep(&mut self, frame: Box<Frame>) {
        if self.frames.len() < limits::SEND_FRAMES_SPARE_MAX {
            self.frames.push(frame);
        }
    }
}

impl Driver for UringDriver {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.wakeup.waker()
    }

    fn adopt(&mut self, fd: Descriptor, owner: Owner) -> io::Result<SocketId> {
        let fd = fd.into_fd()?;
        let on: libc::c_int = 1;
        // SAFETY: reads an int from `on`.
        let outcome = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONBIO, &raw const on) };
        self.counters.calls += 1;
        if outcome == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.register(fd, owner))
    }

    fn open(&mut self, spec: &SocketSpec, family_of: IpAddr, owner: Owner) -> io::Result<SocketId> {
        self.counters.calls += 1;
        Ok(self.register(socket::open(spec, family_of)?, owner))
    }

    fn set_owner(&mut self, socket: SocketId, owner: Owner) {
        if let Some(socket) = self.sockets.get_mut(socket.key()) {
            socket.owner = owner;
        }
    }

    fn listen(&mut self, listener: SocketId) {
        self.start_accepting(listener.key());
    }

    fn connect(&mut self, socket: SocketId, peer: SocketAddr) {
        self.start_connecting(socket.key(), peer);
    }

    fn receive(&mut self, socket: SocketId, mode: ReceiveMode) {
        self.start_receiving(socket.key(), mode);
    }

    fn stop_receive(&mut self, socket: SocketId) {
        self.stop_receiving(socket.key());
    }

    fn take_end(&mut self, socket: SocketId) -> bool {
        self.take_end_of(socket.key())
    }

    fn send(&mut self, socket: SocketId, payload: Payload) -> SendStatus {
        self.send_with(socket, payload, 0)
    }

    fn send_last(&mut self, socket: SocketId, payload: Payload) -> SendStatus {
        self.send_with(socket, payload, libc::MSG_MORE)
    }

    fn shutdown_send(&mut self, socket: SocketId) -> io::Result<()> {
        let Some(socket) = self.sockets.get(socket.key()) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        assert!(socket.send.is_none(), "bytes are still being sent");
        self.counters.calls += 1;
        socket2::SockRef::from(&socket.fd).shutdown(std::net::Shutdown::Write)
    }

    fn close(&mut self, socket: SocketId, how: Close) {
        self.close_socket(socket.key(), how);
    }

    fn local_address(&self, socket: SocketId) -> io::Result<SocketAddr> {
        let entry = self
            .sockets
            .get(socket.key())
            .ok_or(io::ErrorKind::NotConnected)?;
        socket::local_address(entry.fd.as_fd())
    }

    fn original_destination(&self, socket: SocketId) -> io::Result<SocketAddr> {
        let entry = self
            .sockets
            .get(socket.key())
            .ok_or(io::ErrorKind::NotConnected)?;
        socket::original_destination(entry.fd.as_fd())
    }

    fn set_crowded(&mut self, crowded: bool) {
        self.behind.crowded = crowded;
    }

    fn poll(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let from = events.len();
        self.direct_sends_left = limits::SENDS_DIRECT_TURN_MAX;
        self.groups.iter_mut().for_each(Group::provide);
        self.give_due(events);
        self.serve_starved(events);

        self.serve_behind()?;
        let left_over = self.ring.has_completions();
        let busy = left_over || events.len() > from || !self.starved.is_empty() || !self.behind.is_empty();
        let may_sleep = !busy && timeout != Some(Duration::ZERO) && self.wakeup.may_sleep();
        let outcome = if may_sleep {
            self.ring.enter(timeout)
        } else if left_over && !self.ring.has_submissions() {
            Ok(())
        } else {
            self.ring.enter(Some(Duration::ZERO))
        };
        if self.wakeup.was_woken() {
            events.push(Event::Woken);
        }
        outcome?;
        self.reap(from, events);
        self.counters.events += (events.len() - from) as u64;
        Ok(())
    }

    fn counters(&self) -> Counters {
        Counters {
            waits: self.ring.enters(),
            ..self.counters
        }
    }

    fn in_use(&self) -> InUse {
        InUse {
            sockets: self.sockets.len() + self.closing.len(),
            // All but the watch of the wake-up descriptor, which is always there.
            operations: self.operations.len() - 1,
            buffers: self.groups.iter().map(Group::lent).sum(),
        }
    }
}

#[cfg(test)]
mod tests;
