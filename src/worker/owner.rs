//! What the owner word of a socket means: which table of the worker, which slot.

use super::core::Wait;
use super::hbone::session::Session;
use super::listen::Listener;
use super::pipe::Pipe;
use super::tunnel::Tunnel;
use crate::runtime::slab::Key;
use crate::sys::driver::Owner;

/// Whom an event concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owned {
    Listener(Key<Listener>),
    /// A task that sets a connection up.
    Task(Key<Wait>),
    Session(Key<Session>),
    /// The application's side of a tunnel.
    Tunnel(Key<Tunnel>),
    Pipe(Key<Pipe>, Side),
}

/// The two ends of a pipe: the one that was captured, and the one that was dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

const TAG_SHIFT: u32 = 60;
const LISTENER: u64 = 1;
const TASK: u64 = 2;
const SESSION: u64 = 3;
const TUNNEL: u64 = 4;
const PIPE_CLIENT: u64 = 5;
const PIPE_SERVER: u64 = 6;

impl Owned {
    pub fn to_owner(self) -> Owner {
        let (tag, bits) = match self {
            Self::Listener(key) => (LISTENER, key.to_bits()),
            Self::Task(key) => (TASK, key.to_bits()),
            Self::Session(key) => (SESSION, key.to_bits()),
            Self::Tunnel(key) => (TUNNEL, key.to_bits()),
            Self::Pipe(key, Side::Client) => (PIPE_CLIENT, key.to_bits()),
            Self::Pipe(key, Side::Server) => (PIPE_SERVER, key.to_bits()),
        };
        Owner(tag << TAG_SHIFT | bits)
    }

    /// `None` for a word that this program never made.
    pub fn from_owner(owner: Owner) -> Option<Self> {
        let bits = owner.0;
        match bits >> TAG_SHIFT {
            LISTENER => Some(Self::Listener(Key::from_bits(bits))),
            TASK => Some(Self::Task(Key::from_bits(bits))),
            SESSION => Some(Self::Session(Key::from_bits(bits))),
            TUNNEL => Some(Self::Tunnel(Key::from_bits(bits))),
            PIPE_CLIENT => Some(Self::Pipe(Key::from_bits(bits), Side::Client)),
            PIPE_SERVER => Some(Self::Pipe(Key::from_bits(bits), Side::Server)),
            _ => None,
        }
    }
}
