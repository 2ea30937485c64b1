//! The sockets of an epoll driver, by slot and generation, and what is known about each.
//!
//! Worker thread. Invariant: a slot's generation changes when its socket goes, so an id, a ready-list entry or
//! a kernel event of an earlier socket never reaches a later one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::buffer::Payload;
use crate::sys::driver::{Owner, SocketId};

pub struct Socket {
    fd: OwnedFd,
    pub owner: Owner,
    pub role: Role,
    pub watch: Watch,
    pub ready: Ready,
    pub receive: Receive,
    pub send: Option<Sending>,
    /// How many receives more go into a large block.
    pub bulk: u8,
    /// In the driver's ready list.
    pub listed: bool,
    /// The error that a send took from the socket, which the receive side then only sees as an end.
    pub broken: Option<i32>,
}

pub enum Role {
    /// Opened, not asked to connect yet.
    Idle,
    Connecting,
    /// `connect(2)` had its outcome at once; to be told by the next poll.
    ConnectOver(io::Result<()>),
    Connected,
    Listening {
        accepting: bool,
    },
}

/// What epoll was told to watch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    Nothing,
    Read,
    ReadWrite,
}

/// What edges have told and calls have not used up since.
#[derive(Clone, Copy, Default)]
pub struct Ready {
    pub read: bool,
    pub write: bool,
    /// FIN, RST or urgent data were seen: a short receive does not mean that nothing follows.
    pub read_until_empty: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Receive {
    Off,
    Once {
        bytes_max: usize,
    },
    Stream,
    /// The end or an error was delivered.
    Over,
}

pub struct Sending {
    pub payload: Payload,
    pub taken: usize,
    /// Of `send(2)`.
    pub flags: i32,
}

impl Socket {
    pub fn new(fd: OwnedFd, owner: Owner, role: Role) -> Self {
        Self {
            fd,
            owner,
            role,
            watch: Watch::Nothing,
            ready: Ready {
                write: true,
                ..Ready::default()
            },
            receive: Receive::Off,
            send: None,
            bulk: 0,
            listed: false,
            broken: None,
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the next turn can do something for this socket.
    pub fn has_work(&self) -> bool {
        match self.role {
            Role::Connecting => self.ready.write,
            Role::ConnectOver(_) => true,
            Role::Listening { accepting } => accepting && self.ready.read,
            Role::Idle | Role::Connected => self.can_receive() || (self.send.is_some() && self.ready.write),
        }
    }

    pub fn can_receive(&self) -> bool {
        self.ready.read && self.is_receiving()
    }

    pub fn is_receiving(&self) -> bool {
        match self.receive {
            Receive::Once { .. } | Receive::Stream => true,
            Receive::Off | Receive::Over => false,
        }
    }

    /// A send that fails takes the error away from the socket. EPIPE says nothing about the receiving side.
    pub fn note_send_error(&mut self, error: &io::Error) {
        let errno = error.raw_os_error().filter(|errno| *errno != libc::EPIPE);
        self.broken = self.broken.or(errno);
    }

    pub fn operations(&self) -> usize {
        let role = match self.role {
            Role::Connecting | Role::ConnectOver(_) => 1,
            Role::Listening { accepting } => usize::from(accepting),
            Role::Idle | Role::Connected => 0,
        };
        role + usize::from(self.is_receiving()) + usize::from(self.send.is_some())
    }
}

#[derive(Default)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    socket: Option<Socket>,
}

impl Table {
    pub fn insert(&mut self, socket: Socket) -> SocketId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("invariant: descriptors are fewer than 2^31")
        });
        let slot = &mut self.slots[index as usize];
        slot.socket = Some(socket);
        SocketId {
            index,
            generation: slot.generation,
        }
    }

    pub fn remove(&mut self, id: SocketId) -> Option<Socket> {
        let slot = self.slot_mut(id)?;
        let socket = slot.socket.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(socket)
    }

    pub fn get(&self, id: SocketId) -> Option<&Socket> {
        let slot = self.slots.get(id.index as usize)?;
        slot.socket.as_ref().filter(|_| slot.generation == id.generation)
    }

    pub fn get_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.slot_mut(id)?.socket.as_mut()
    }

    fn slot_mut(&mut self, id: SocketId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation).then_some(slot)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Socket> {
        self.slots.iter().filter_map(|slot| slot.socket.as_ref())
    }
}
