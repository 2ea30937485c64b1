//! What a worker thread runs on besides its driver: local tasks, timers, slots.
//!
//! Everything here belongs to one worker thread.

pub mod oneshot;
pub mod slab;
pub mod tasks;
pub mod timer;
