//! Closing: a socket's descriptor and the memory of its operations outlive its handle until the kernel has
//! let go of them.
//!
//! Closing a descriptor does not end the operations on it: they pin the connection, and the peer would see
//! neither FIN nor RST. So operations are cancelled first, and the descriptor is closed when the last one is
//! over, which is one turn later.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd};
use io_uring::{opcode, squeue};

use super::buffer_ring::Group;
use super::operation::{Target, Work};
use super::slots::{Key, Slots};
use super::{Socket, UringDriver};
use crate::clock;
use crate::sys::driver::Close;
use crate::sys::socket;

/// How long a dropped driver waits for its operations. Cancelled ones are over within a call; this is for a
/// kernel that misbehaves.
const DRAIN_MAX: Duration = Duration::from_secs(5);

pub(super) struct Closing {
    fd: OwnedFd,
    how: Close,
    /// Operations on the descriptor that are not over, cancellations included.
    operations: u32,
}

impl UringDriver {
    pub(super) fn close_socket(&mut self, key: Key, how: Close) {
        let Some(socket) = self.sockets.remove(key) else {
            return;
        };
        let Socket {
            fd,
            owner: _,
            receive,
            flow: _,
            send,
            setup,
            broken: _,
        } = socket;
        let operations = [receive.operation(), send, setup];
        let running = operations.iter().flatten().count();
        if running == 0 {
            self.close_descriptor(fd, how);
            return;
        }
        let cancel_all = self
            .profile
            .cancel_by_descriptor()
            .then(|| CancelBuilder::fd(Fd(fd.as_raw_fd())).all());
        let closing = self.closing.insert(Closing {
            fd,
            how,
            operations: running as u32,
        });
        for operation in operations.into_iter().flatten() {
            let running = self.operations.get_mut(operation);
            running.expect("invariant: a socket names live operations").target = Target::Closing(closing);
            self.hasten(operation);
            if cancel_all.is_none() {
                self.cancel(operation, Target::Closing(closing));
            }
        }
        if let Some(builder) = cancel_all {
            self.submit_cancel(
                opcode::AsyncCancel2::new(builder).build(),
                Target::Closing(closing),
            );
        }
    }

    /// Asks the kernel to end an operation; its completion says how it ended.
    pub(super) fn cancel(&mut self, operation: Key, target: Target) {
        self.hasten(operation);
        self.submit_cancel(opcode::AsyncCancel::new(operation.to_word()).build(), target);
    }

    fn submit_cancel(&mut self, entry: squeue::Entry, target: Target) {
        // A cancellation by descriptor needs the descriptor until it is over.
        if let Target::Closing(closing) = target {
            let closing = self.closing.get_mut(closing);
            closing
                .expect("invariant: it waits for its operations")
                .operations += 1;
        }
        // SAFETY: names no memory.
        unsafe { self.submit(target, Work::Cancel, entry) };
    }

    /// One of the operations that a closed socket waits for is over.
    pub(super) fn operation_over(&mut self, key: Key) {
        let closing = self.closing.get_mut(key);
        let closing = closing.expect("invariant: it waits for its operations");
        closing.operations -= 1;
        if closing.operations == 0
            && let Some(Closing { fd, how, .. }) = self.closing.remove(key)
        {
            self.close_descriptor(fd, how);
        }
    }

    fn close_descriptor(&mut self, fd: OwnedFd, how: Close) {
        match how {
            Close::Orderly => {}
            Close::Reset => {
                self.counters.calls += 1;
                // Fails only on what is no TCP socket; closing is right for that too.
                let _ = socket::reset_on_close(fd.as_fd());
            }
        }
        self.counters.calls += 1;
        drop(fd);
    }

    /// Ends every operation and waits until the kernel has let go of all memory. `false`: it has not.
    fn drain(&mut self) -> bool {
        self.draining = true;
        let sockets: Vec<Key> = self.sockets.keys().collect();
        for socket in sockets {
            self.close_socket(socket, Close::Orderly);
        }
        let is_wake = |key: &Key| {
            let operation = self.operations.get(*key);
            operation.is_some_and(|operation| matches!(operation.work, Work::Wake))
        };
        let wake: Vec<Key> = self.operations.keys().filter(is_wake).collect();
        for operation in wake {
            self.cancel(operation, Target::Driver);
        }
        let end = clock::now() + DRAIN_MAX;
        let mut discarded = Vec::new();
        while !self.operations.is_empty() {
            let left = end.saturating_duration_since(clock::now());
            if left.is_zero() || self.ring.enter(Some(left)).is_err() {
                return false;
            }
            self.reap(0, &mut discarded);
            discarded.clear();
        }
        true
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        if self.drain() {
            return;
        }
        // The kernel still has operations: what they refer to must never be used for anything else.
        tracing::error!(
            operations = self.operations.len(),
            "io_uring operations did not end; their memory is given up"
        );
        std::mem::forget(std::mem::replace(&mut self.operations, Slots::new()));
        std::mem::take(&mut self.groups).into_iter().for_each(Group::leak);
    }
}
