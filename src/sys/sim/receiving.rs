//! Receiving, and the blocks that the kernel would own meanwhile.
//!
//! The front of a block that the driver does not own is full of one byte, and still is when it comes back.

use std::io;

use super::faults::Fault;
use super::{Receive, SimDriver, not_connected};
use crate::limits;
use crate::sys::buffer::RecvBuffer;
use crate::sys::driver::{Event, ReceiveMode, Received, SocketId};

/// A block that the kernel owns, its front full of one byte.
pub(super) struct Scribbled {
    pub(super) block: u16,
    pub(super) byte: u8,
}

/// Where a block is scribbled on: its front, which receives hit first.
const SCRIBBLED_BYTES_MAX: usize = 2048;

impl SimDriver {
    /// Takes a block and fills it with what nobody may see. `None` when there is none.
    pub(super) fn scribble(&mut self) -> Option<Scribbled> {
        let block = self.pool.take()?;
        self.taken += 1;
        let byte = self.random.u8(..);
        self.memory(block).fill(byte);
        Some(Scribbled { block, byte })
    }

    pub(super) fn memory(&mut self, block: u16) -> &mut [u8] {
        let bytes = self.pool.block_bytes().min(SCRIBBLED_BYTES_MAX);
        // SAFETY: a block that was taken belongs to its taker, has `block_bytes` bytes at its address and stays
        // mapped as long as the pool; `self` is borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.pool.address(block).as_ptr(), bytes) }
    }

    /// The block is ours again: nobody may have written to it.
    pub(super) fn unscribble(&mut self, scribbled: Scribbled) -> u16 {
        let byte = scribbled.byte;
        if self.memory(scribbled.block).iter().any(|found| *found != byte) {
            self.network
                .report("a receive block was written to while the kernel owned it".to_owned());
        }
        scribbled.block
    }

    pub(super) fn put_back(&mut self, scribbled: Option<Scribbled>) {
        if let Some(scribbled) = scribbled {
            let block = self.unscribble(scribbled);
            self.taken -= 1;
            self.pool.put(block);
        }
    }

    /// Reads into a block, or into memory of its own when there is none.
    pub(super) fn read(
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
        let block = match (held, without) {
            (None, true) => None,
            (None, false) => self.pool.take(),
            (Some(scribbled), _) => {
                self.taken -= 1;
                Some(self.unscribble(scribbled))
            }
        };
        let room = match block {
            Some(_) => self.pool.block_bytes(),
            None => limits::RECEIVE_FALLBACK_BYTES,
        };
        let mut asked = bytes_max.min(room);
        if short && readable > 1 && self.random.u8(..4) == 0 {
            asked = asked.min(self.random.usize(1..=readable));
        }
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

    pub(super) fn serve_receive(&mut self, id: SocketId, events: &mut Vec<Event>) {
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
}
