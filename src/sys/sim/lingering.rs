//! What closed sockets leave behind: operations that go on for some polls, with what they own.

use super::endpoint::Endpoint;
use super::receiving::Scribbled;
use super::sending::Sending;
use super::{Receive, Setup, SimDriver};
use std::io;

use crate::planted::{Bug, is_planted};
use crate::sys::driver::{Close, Event, Received, SocketId};

/// Operations of a closed socket that are not over.
pub(super) struct Lingering {
    /// The slot that the socket had.
    pub(super) index: u32,
    /// Polls that it has gone on for.
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
            let goes_on = match is_planted(Bug::SlotFoundByOldKey) {
                true => !self.ends_as_of_another(at, events),
                false => self.percent(self.habits.linger),
            };
            if !goes_on {
                let left = self.lingering.swap_remove(at);
                self.end_one_lingering(left);
            }
        }
    }

    /// What no driver may do: the end of a cancelled operation is taken for one of the socket that has the slot by now. It
    /// comes as late as it needs to for that, within reason.
    fn ends_as_of_another(&mut self, at: usize, events: &mut Vec<Event>) -> bool {
        const POLLS_MAX: u32 = 2_000;
        let left = &mut self.lingering[at];
        left.polls += 1;
        let (index, is_over) = (left.index, left.polls > POLLS_MAX);
        let slot = &self.slots[index as usize];
        let Some(socket) = &slot.socket else {
            return is_over;
        };
        let (owner, generation) = (socket.owner, slot.generation);
        let id = SocketId { index, generation };
        let error = io::Error::from_raw_os_error(libc::ECANCELED);
        let event = match (socket.setup, &socket.receive) {
            (Setup::Connecting, _) => Event::Connected {
                owner,
                socket: id,
                result: Err(error),
            },
            (Setup::Nothing, Receive::Armed { .. }) => Event::Received {
                owner,
                socket: id,
                data: Received::Failed(error),
            },
            _ => return is_over,
        };
        self.push(events, event);
        true
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
