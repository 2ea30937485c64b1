//! Receive memory of the epoll driver: many small blocks, a few large ones, and what happens when none is free.
//!
//! Worker thread. A socket starts with small blocks and is given large ones once it fills a small one; it goes
//! back after a few receives that a small one would have held. Most sockets carry messages, not bulk, and a
//! buffer that the owner keeps pins its whole block.

use std::io;
use std::os::fd::BorrowedFd;

use super::calls;
use crate::limits;
use crate::sys::buffer::{RecvBuffer, RecvPool};

/// Receives that stay in large blocks after one that needed it.
pub const BULK_RECEIVES: u8 = 4;

pub struct Pools {
    small: RecvPool,
    large: RecvPool,
    scratch: Box<[u8]>,
    /// Blocks lent in this turn. When none is free but some were, the owner has not seen them yet and may give
    /// them back before the next turn.
    lent_turn: usize,
    fallbacks_turn: usize,
}

/// One receive.
pub enum Outcome {
    Data {
        buffer: RecvBuffer,
        /// How many bytes were asked for.
        asked: usize,
    },
    End,
    /// No block is free now, but the next turn may have one.
    Later,
    /// `WouldBlock` included.
    Failed(io::Error),
}

impl Pools {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            small: RecvPool::new(limits::RECEIVE_SMALL_BLOCKS, limits::RECEIVE_SMALL_BYTES)?,
            large: RecvPool::new(limits::RECEIVE_BLOCKS, limits::RECEIVE_BYTES_MAX)?,
            scratch: vec![0; limits::RECEIVE_FALLBACK_BYTES].into_boxed_slice(),
            lent_turn: 0,
            fallbacks_turn: 0,
        })
    }

    pub fn lent(&self) -> usize {
        self.small.lent() + self.large.lent()
    }

    pub fn start_turn(&mut self) {
        self.lent_turn = 0;
        self.fallbacks_turn = 0;
    }

    /// Fallbacks since `start_turn`.
    pub fn fallbacks_turn(&self) -> usize {
        self.fallbacks_turn
    }

    /// Receives at most `bytes_max` bytes.
    pub fn receive(&mut self, fd: BorrowedFd<'_>, bytes_max: usize, bulk: bool) -> Outcome {
        let pools = match bulk && bytes_max > self.small.block_bytes() {
            true => [&self.large, &self.small],
            false => [&self.small, &self.large],
        };
        let free = pools.into_iter().find_map(|pool| Some((pool, pool.take()?)));
        if let Some((pool, block)) = free {
            let asked = bytes_max.min(pool.block_bytes());
            let received = calls::receive_pooled(fd, pool, block, asked);
            self.lent_turn += usize::from(matches!(received, Ok(Some(_))));
            return Outcome::of(received, asked);
        }
        if self.lent_turn > 0 || self.fallbacks_turn == limits::RECEIVE_FALLBACKS_TURN_MAX {
            return Outcome::Later;
        }
        self.fallbacks_turn += 1;
        let asked = bytes_max.min(self.scratch.len());
        let received = calls::receive_copied(fd, &mut self.scratch[..asked]);
        Outcome::of(received, asked)
    }

    /// Whether a receive of `len` bytes needed a large block.
    pub fn needs_large(len: usize) -> bool {
        len >= limits::RECEIVE_SMALL_BYTES
    }
}

impl Outcome {
    fn of(received: io::Result<Option<RecvBuffer>>, asked: usize) -> Self {
        match received {
            Ok(Some(buffer)) => Self::Data { buffer, asked },
            Ok(None) => Self::End,
            Err(error) => Self::Failed(error),
        }
    }
}
