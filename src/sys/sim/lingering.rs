//! What closed sockets leave behind: operations that go on for some polls, with what they own.

use super::SimDriver;
use super::endpoint::Endpoint;
use super::receiving::Scribbled;
use super::sending::Sending;
use crate::sys::driver::Close;

/// Operations of a closed socket that are not over.
pub(super) struct Lingering {
    pub(super) endpoint: Option<(Endpoint, Close)>,
    pub(super) block: Option<Scribbled>,
    pub(super) send: Option<Sending>,
    pub(super) operations: usize,
    /// Only when the bug is planted: was given back already, and the kernel still writes.
    pub(super) given_back: Option<Scribbled>,
}

impl SimDriver {
    /// Ends what closed sockets had under way, or scribbles on: the kernel still may.
    pub(super) fn end_lingering(&mut self) {
        for at in (0..self.lingering.len()).rev() {
            let left = &self.lingering[at];
            if let Some(Scribbled { block, byte }) = left.block.as_ref().or(left.given_back.as_ref()) {
                let (block, byte) = (*block, *byte);
                self.memory(block).fill(byte);
            }
            if self.percent(self.habits.linger) {
                continue;
            }
            let left = self.lingering.swap_remove(at);
            self.end_one_lingering(left);
        }
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
