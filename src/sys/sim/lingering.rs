//! What closed sockets leave behind: operations that go on for some polls, with what they own.

use super::endpoint::Endpoint;
use super::receiving::Scribbled;
use super::sending::Sending;
use super::{Receive, Setup, SimDriver, Socket};
use std::io;

use crate::planted::{Bug, is_planted};
use crate::sys::driver::{Close, Event, Received, SocketId};

/// Operations of a closed socket that are not over.
pub(super) struct Lingering {
    /// The slot that the socket had.
    pub(super) index: u32,
    /// Through which it has gone on.
    pub(super) polls: u32,
    pub(super) endpoint: Option<(Endpoint, Close)>,
    pub(super) block: Option<Scribbled>,
    pub(super) send: Option<Sending>,
    pub(super) operations: usize,
    /// Only when the bug is planted: was given back already, and the kernel still writes.
    pub(super) given_back: Option<Scribbled>,
}

impl SimDriver {
    /// Ends what closed sockets had under way, or scribbles on: the kernel still may.
    pub(super) fn end_lingering(&mut self, events: &mut Vec<Event>) {
        for at in (0..self.lingering.len()).rev() {
            let left = &self.lingering[at];
            if let Some(Scribbled { block, byte }) = left.block.as_ref().or(left.given_back.as_ref()) {
                let (block, byte) = (*block, *byte);
                self.memory(block).fill(byte);
            }
            if self.percent(self.habits.linger) || self.waits_for_next_socket(at) {
                continue;
            }
            let left = self.lingering.swap_remove(at);
            if is_planted(Bug::SlotFoundByOldKey) {
                self.apply_late_completion(left.index, events);
            }
            self.end_one_lingering(left);
        }
    }

    /// When the bug is planted, completions are late: if the slot gets another socket soon, then after that.
    fn waits_for_next_socket(&mut self, at: usize) -> bool {
        const POLLS_MAX: u32 = 2_000;
        let left = &mut self.lingering[at];
        left.polls += 1;
        let is_taken = self.slots[left.index as usize].socket.is_some();
        is_planted(Bug::SlotFoundByOldKey) && !is_taken && left.polls < POLLS_MAX
    }

    /// The cancelled operation's end is taken for one of the socket that has the slot now. A driver never does this.
    fn apply_late_completion(&mut self, index: u32, events: &mut Vec<Event>) {
        let slot = &self.slots[index as usize];
        let Some(socket) = &slot.socket else {
            return;
        };
        let owner = socket.owner;
        let socket_id = SocketId {
            index,
            generation: slot.generation,
        };
        let error = io::Error::from_raw_os_error(libc::ECANCELED);
        let event = match socket {
            Socket {
                setup: Setup::Connecting,
                ..
            } => Event::Connected {
                owner,
                socket: socket_id,
                result: Err(error),
            },
            Socket {
                receive: Receive::Armed { .. },
                ..
            } => Event::Received {
                owner,
                socket: socket_id,
                data: Received::Failed(error),
            },
            _ => return,
        };
        self.push(events, event);
    }

    pub(super) fn end_one_lingering(&mut self, left: Lingering) {
        self.put_back(left.block);
        if let Some(sending) = left.send {
            drop(self.end_send(None, sending));
        }
        if let Some((endpoint, how)) = left.endpoint {
            endpoint.close(how);
        }
    }
}
