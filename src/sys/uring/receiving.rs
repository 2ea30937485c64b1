//! Receiving: which operation stands for what the owner asked, and what to do when no block is free.
//!
//! Blocks are picked by the kernel when bytes arrive, so an idle socket owns none. When a class of blocks runs
//! out, receives of that class starve; they are served in order at the next polls: by a block that came back,
//! else (a bounded number a turn) by memory of their own. So blocks held by slow owners delay nobody, and a
//! receive is tried again only when there is a block for it or bytes to be read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr::NonNull;

use io_uring::{cqueue, opcode, squeue, types};

use super::operation::{Class, Target, Work};
use super::receive_state::{Held, Left, Outcome, Receive};
use super::slots::Key;
use super::{Socket, UringDriver};
use crate::limits;
use crate::sys::buffer::RecvBuffer;
use crate::sys::driver::{Event, ReceiveMode, Received};
use crate::sys::socket;

/// `IORING_RECVSEND_POLL_FIRST`: wait for readiness before trying, when trying is known to find nothing.
const POLL_FIRST: u16 = 1;

/// Delivers a failure as the last event of a socket's receiving side.
pub(super) fn fail(socket: &mut Socket, key: Key, error: io::Error, events: &mut Vec<Event>) {
    socket.receive = Receive::Over;
    deliver(socket, key, Received::Failed(error), events);
}

fn deliver(socket: &Socket, key: Key, data: Received, events: &mut Vec<Event>) {
    events.push(Event::Received {
        owner: socket.owner,
        socket: key.socket_id(),
        data,
    });
}

impl UringDriver {
    pub(super) fn start_receiving(&mut self, key: Key, mode: ReceiveMode) {
        if let ReceiveMode::Once { bytes_max } = mode {
            assert!(bytes_max > 0, "a receive of nothing looks like the end");
        }
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        match std::mem::replace(&mut socket.receive, Receive::Idle) {
            Receive::Idle => self.arm(key, mode),
            Receive::Stopping {
                operation,
                held,
                then: None,
            } => {
                socket.receive = Receive::Stopping {
                    operation,
                    held,
                    then: Some(mode),
                };
            }
            Receive::Held(held) => {
                socket.receive = Receive::Due { held, mode };
                self.due.push_back(key);
            }
            Receive::Over => socket.receive = Receive::Over,
            Receive::Armed { .. }
            | Receive::Starved { .. }
            | Receive::Due { .. }
            | Receive::Stopping { then: Some(_), .. } => panic!("one receive at a time on a socket"),
        }
    }

    pub(super) fn stop_receiving(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        let mut cancel = None;
        socket.receive = match std::mem::replace(&mut socket.receive, Receive::Idle) {
            Receive::Armed {
                operation, switching, ..
            } => {
                cancel = (!switching).then_some(operation);
                Receive::Stopping {
                    operation,
                    held: Held::default(),
                    then: None,
                }
            }
            Receive::Stopping {
                operation,
                held,
                then: _,
            } => Receive::Stopping {
                operation,
                held,
                then: None,
            },
            Receive::Due { held, mode: _ } => Receive::Held(held),
            Receive::Idle | Receive::Starved { .. } => Receive::Idle,
            receive @ (Receive::Held(_) | Receive::Over) => receive,
        };
        if let Some(operation) = cancel {
            self.cancel(operation, Target::Driver);
        }
    }

    /// Only where the last completion said that it left something, which for an idle socket is mostly the end.
    pub(super) fn take_end_of(&mut self, key: Key) -> bool {
        let Some(socket) = self.sockets.get_mut(key) else {
            return false;
        };
        if !matches!(socket.receive, Receive::Idle)
            || socket.flow.left != Left::Something
            || socket.broken.is_some()
        {
            return false;
        }
        self.counters.calls += 1;
        let ends = socket::is_at_end(socket.fd.as_fd(), &mut socket.broken)
            && socket.error_behind_an_end(&mut self.counters).is_none();
        if ends {
            socket.receive = Receive::Over;
        }
        ends
    }

    /// Starts the operation for what the owner asked.
    fn arm(&mut self, key: Key, mode: ReceiveMode) {
        let socket = self
            .sockets
            .get(key)
            .expect("invariant: only a live socket receives");
        let class = socket.flow.class(mode);
        let group = &self.groups[class.index()];
        let fd = types::Fd(socket.fd.as_raw_fd());
        let (work, entry, bytes) = if !self.profile.buffer_rings || group.available() == 0 {
            let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
            (Work::ReceiveReady, entry, 0)
        } else {
            match mode {
                ReceiveMode::Stream if self.profile.multishot_receive() && !self.behind.holds_back(class) => {
                    let entry = opcode::RecvMulti::new(fd, group.id()).build();
                    (Work::ReceiveStream(class), entry, 0)
                }
                ReceiveMode::Stream | ReceiveMode::Once { .. } => {
                    let turn_max = limits::receive_bytes_max(self.behind.crowded);
                    let len = bytes_max(mode).min(group.block_bytes()).min(turn_max);
                    let poll_first = socket.flow.left == Left::Nothing && self.profile.poll_first();
                    let entry = opcode::Recv::new(fd, std::ptr::null_mut(), len as u32)
                        .buf_group(group.id())
                        .ioprio(if poll_first { POLL_FIRST } else { 0 })
                        .build()
                        .flags(squeue::Flags::BUFFER_SELECT);
                    (Work::Receive(class), entry, len)
                }
            }
        };
        // SAFETY: names no memory but the group's blocks, which live until the ring is gone.
        let operation = unsafe { self.submit_bytes(Target::Socket(key), work, entry, bytes) };
        let socket = self.sockets.get_mut(key).expect("invariant: as above");
        socket.receive = Receive::Armed {
            operation,
            mode,
            switching: false,
        };
    }

    /// Takes the block out of a completion, whatever becomes of the rest: it is not the kernel's any more.
    pub(super) fn receive_outcome(&mut self, class: Class, completion: &cqueue::Entry) -> Outcome {
        let result = completion.result();
        let buffer = cqueue::buffer_select(completion.flags()).and_then(|block| {
            let len = usize::try_from(result).unwrap_or(0);
            self.groups[class.index()].filled(block, len)
        });
        match (buffer, -result) {
            (Some(buffer), _) => Outcome::Data {
                buffer,
                left: match cqueue::sock_nonempty(completion.flags()) {
                    true => Left::Something,
                    false => Left::Nothing,
                },
            },
            (None, 0) => Outcome::End,
            (None, libc::ENOBUFS) => Outcome::NoBlock,
            (None, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => Outcome::Nothing,
            (None, errno) => Outcome::Failed(io::Error::from_raw_os_error(errno)),
        }
    }

    /// A receive that goes on brought something.
    pub(super) fn received(
        &mut self,
        target: Target,
        class: Class,
        outcome: Outcome,
        events: &mut Vec<Event>,
    ) {
        let Target::Socket(key) = target else { return };
        let Outcome::Data { buffer, left } = outcome else {
            return;
        };
        let socket = self.sockets.get_mut(key);
        let socket = socket.expect("invariant: operations of a closed socket are retargeted");
        socket.flow.note(class, buffer.len());
        socket.flow.left = left;
        let wanted = socket.flow.class(ReceiveMode::Stream);
        let must_end = wanted != class || self.behind.holds_back(class);
        match &mut socket.receive {
            Receive::Armed {
                operation, switching, ..
            } => {
                let cancel = (must_end && !*switching).then_some(*operation);
                *switching |= cancel.is_some();
                deliver(socket, key, Received::Data(buffer), events);
                if let Some(operation) = cancel {
                    self.cancel(operation, Target::Driver);
                }
            }
            Receive::Stopping { held, .. } => held.add(buffer),
            Receive::Idle
            | Receive::Starved { .. }
            | Receive::Held(_)
            | Receive::Due { .. }
            | Receive::Over => {
                unreachable!("invariant: a socket that is not receiving has no receive operation")
            }
        }
    }

    /// A receive operation is over.
    pub(super) fn received_last(
        &mut self,
        target: Target,
        class: Class,
        outcome: Outcome,
        events: &mut Vec<Event>,
    ) {
        let Target::Socket(key) = target else { return };
        let socket = self.sockets.get_mut(key);
        let socket = socket.expect("invariant: operations of a closed socket are retargeted");
        if let Outcome::Data { buffer, left } = &outcome {
            socket.flow.note(class, buffer.len());
            socket.flow.left = *left;
        }
        match std::mem::replace(&mut socket.receive, Receive::Idle) {
            Receive::Armed { mode, .. } => self.asked_for(key, mode, outcome, events),
            Receive::Stopping { held, then, .. } => self.stopped(key, held, then, outcome, events),
            Receive::Idle
            | Receive::Starved { .. }
            | Receive::Held(_)
            | Receive::Due { .. }
            | Receive::Over => {
                unreachable!("invariant: a socket that is not receiving has no receive operation")
            }
        }
    }

    /// Delivers what an owner waits for, and goes on as the mode says. The socket is idle now.
    fn asked_for(&mut self, key: Key, mode: ReceiveMode, outcome: Outcome, events: &mut Vec<Event>) {
        let socket = self
            .sockets
            .get_mut(key)
            .expect("invariant: checked by the caller");
        match outcome {
            Outcome::Data { buffer, .. } => {
                deliver(socket, key, Received::Data(buffer), events);
                match mode {
                    ReceiveMode::Once { .. } => {}
                    ReceiveMode::Stream => self.arm(key, mode),
                }
            }
            Outcome::End => {
                socket.receive = Receive::Over;
                let data = match socket.error_behind_an_end(&mut self.counters) {
                    Some(errno) => Received::Failed(io::Error::from_raw_os_error(errno)),
                    None => Received::End,
                };
                deliver(socket, key, data, events);
            }
            Outcome::NoBlock => {
                socket.receive = Receive::Starved { mode };
                self.starved.push_back(key);
            }
            Outcome::Nothing => self.arm(key, mode),
            Outcome::Failed(error) => fail(socket, key, error, events),
        }
    }

    /// A receive that was taken back is over. What it brought meanwhile is kept for the next one, except the
    /// end, which that finds again.
    fn stopped(
        &mut self,
        key: Key,
        mut held: Held,
        then: Option<ReceiveMode>,
        outcome: Outcome,
        events: &mut Vec<Event>,
    ) {
        match outcome {
            Outcome::Data { buffer, .. } => held.add(buffer),
            Outcome::Failed(error) => held.failure = Some(error),
            Outcome::End | Outcome::NoBlock | Outcome::Nothing => {}
        }
        match then {
            Some(mode) => self.give(key, held, mode, events),
            None if held.is_empty() => {}
            None => {
                held.unpin();
                let socket = self
                    .sockets
                    .get_mut(key)
                    .expect("invariant: checked by the caller");
                socket.receive = Receive::Held(held);
            }
        }
    }

    /// Delivers what was kept as the mode says, and goes on. The socket is idle now.
    fn give(&mut self, key: Key, mut held: Held, mode: ReceiveMode, events: &mut Vec<Event>) {
        let socket = self
            .sockets
            .get_mut(key)
            .expect("invariant: checked by the caller");
        let Some(buffer) = held.take(bytes_max(mode)) else {
            match held.failure {
                Some(error) => fail(socket, key, error, events),
                None => self.arm(key, mode),
            }
            return;
        };
        deliver(socket, key, Received::Data(buffer), events);
        match mode {
            ReceiveMode::Once { .. } if held.is_empty() => {}
            ReceiveMode::Once { .. } => socket.receive = Receive::Held(held),
            ReceiveMode::Stream => self.give(key, held, mode, events),
        }
    }

    /// Serves owners that asked again where something was kept.
    pub(super) fn give_due(&mut self, events: &mut Vec<Event>) {
        for _ in 0..self.due.len() {
            let Some(key) = self.due.pop_front() else { break };
            let Some(socket) = self.sockets.get_mut(key) else {
                continue;
            };
            match std::mem::replace(&mut socket.receive, Receive::Idle) {
                Receive::Due { held, mode } => self.give(key, held, mode, events),
                // Taken back meanwhile.
                receive => socket.receive = receive,
            }
        }
    }

    /// A socket has something to receive, and no block was reserved for it.
    pub(super) fn receive_ready(&mut self, target: Target, result: i32, events: &mut Vec<Event>) {
        let Target::Socket(key) = target else { return };
        let socket = self.sockets.get_mut(key);
        let socket = socket.expect("invariant: operations of a closed socket are retargeted");
        match std::mem::replace(&mut socket.receive, Receive::Idle) {
            Receive::Armed { mode, .. } if result < 0 => {
                let outcome = match -result {
                    libc::ECANCELED | libc::EINTR | libc::EAGAIN => Outcome::Nothing,
                    errno => Outcome::Failed(io::Error::from_raw_os_error(errno)),
                };
                self.asked_for(key, mode, outcome, events);
            }
            Receive::Armed { mode, .. } => {
                let class = socket.flow.class(mode);
                if self.profile.buffer_rings && self.groups[class.index()].available() > 0 {
                    self.arm(key, mode);
                } else {
                    self.receive_now(key, mode, events);
                }
            }
            Receive::Stopping { then: Some(mode), .. } => self.arm(key, mode),
            Receive::Stopping { then: None, .. } => {}
            Receive::Idle
            | Receive::Starved { .. }
            | Receive::Held(_)
            | Receive::Due { .. }
            | Receive::Over => {
                unreachable!("invariant: a socket that is not receiving has no receive operation")
            }
        }
    }

    /// Receives by a system call: into a block that is free right now, else into memory of its own.
    fn receive_now(&mut self, key: Key, mode: ReceiveMode, events: &mut Vec<Event>) {
        let socket = self
            .sockets
            .get_mut(key)
            .expect("invariant: checked by the caller");
        let class = socket.flow.class(mode);
        let fd = socket.fd.as_raw_fd();
        let bytes_max = bytes_max(mode);
        self.counters.calls += 1;
        let group = &mut self.groups[class.index()];
        let received = match group.receive_direct(bytes_max, |memory, len| receive_into(fd, memory, len)) {
            Some(received) => received,
            None => {
                let len = bytes_max.min(self.scratch.len());
                let memory = NonNull::from(&mut *self.scratch).cast();
                receive_into(fd, memory, len).map(|n| {
                    self.counters.buffer_fallbacks += u64::from(n > 0);
                    (n > 0).then(|| RecvBuffer::copied(&self.scratch[..n]))
                })
            }
        };
        let outcome = match received {
            Ok(Some(buffer)) => {
                if buffer.is_pooled() {
                    socket.flow.note(class, buffer.len());
                }
                socket.flow.left = Left::Unknown;
                Outcome::Data {
                    buffer,
                    left: Left::Unknown,
                }
            }
            Ok(None) => Outcome::End,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.wait_until_ready(key, mode);
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Outcome::Nothing,
            Err(error) => Outcome::Failed(error),
        };
        self.asked_for(key, mode, outcome, events);
    }

    fn wait_until_ready(&mut self, key: Key, mode: ReceiveMode) {
        let socket = self.sockets.get(key).expect("invariant: checked by the caller");
        let fd = types::Fd(socket.fd.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: names no memory.
        let operation = unsafe { self.submit(Target::Socket(key), Work::ReceiveReady, entry) };
        let socket = self.sockets.get_mut(key).expect("invariant: as above");
        socket.receive = Receive::Armed {
            operation,
            mode,
            switching: false,
        };
    }

    /// Serves receives that found no block, in order: by blocks that came back, then by memory of their own.
    pub(super) fn serve_starved(&mut self, events: &mut Vec<Event>) {
        let mut promised = [0; Class::ALL.len()];
        let mut fallbacks = 0;
        for _ in 0..self.starved.len() {
            let Some(key) = self.starved.pop_front() else {
                break;
            };
            let Some(socket) = self.sockets.get_mut(key) else {
                continue;
            };
            let Receive::Starved { mode } = socket.receive else {
                continue;
            };
            let class = socket.flow.class(mode).index();
            if promised[class] < self.groups[class].available() {
                promised[class] += 1;
                self.arm(key, mode);
            } else if fallbacks < limits::RECEIVE_FALLBACKS_TURN_MAX {
                fallbacks += 1;
                socket.receive = Receive::Idle;
                self.receive_now(key, mode, events);
            } else {
                self.starved.push_back(key);
            }
        }
    }
}

fn bytes_max(mode: ReceiveMode) -> usize {
    match mode {
        ReceiveMode::Once { bytes_max } => bytes_max,
        ReceiveMode::Stream => limits::RECEIVE_BYTES_MAX,
    }
}

fn receive_into(fd: RawFd, memory: NonNull<u8>, len: usize) -> io::Result<usize> {
    // SAFETY: both callers pass memory of at least `len` bytes that nobody else refers to: a block that was
    // taken from its pool, or the driver's scratch space.
    let n = unsafe { libc::recv(fd, memory.as_ptr().cast(), len, libc::MSG_DONTWAIT) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(n.unsigned_abs())
}
