//! The driver on epoll: plain readiness, for kernels and sandboxes without io_uring.
//!
//! Worker thread. Every socket is registered once, edge-triggered; what the edges said is remembered until a
//! call has used it up, so a busy socket costs no `epoll_wait` of its own:
//! * A receive that got less than it asked for has emptied the socket. There is no second call to hear EAGAIN,
//!   unless FIN, RST or urgent data were seen, which cut a receive short without an edge to follow.
//! * A send is tried at once. Writability is watched only from the first time that a socket was full: most
//!   never are, and the initial "writable" edge of every socket would end a wait for nothing.
//! * Sockets that can go on wait in a list and are served round-robin, one receive each a turn. In crowded turns bulk
//!   streams wait in a second list, behind the others.
//!
//! Invariant: a socket that has something to do is in one of the two lists, or an edge for it is still to come.

mod calls;
mod pools;
mod table;
mod turn;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockAddr, SockRef};

use self::calls::Epoll;
use self::pools::Pools;
use self::table::{Receive, Role, Sending, Socket, Table, Watch};
use super::buffer::Payload;
use super::descriptor::Descriptor;
use super::driver::{
    Close, Counters, Driver, Event, InUse, Owner, ReceiveMode, SendStatus, SocketId, SocketSpec, Wake,
};
use super::socket;
use super::wake::Wakeup;

/// The id under which the eventfd is registered; no table gets so large.
const WAKE_ID: SocketId = SocketId {
    index: u32::MAX,
    generation: u32::MAX,
};

pub struct EpollDriver {
    epoll: Epoll,
    wakeup: Wakeup,
    table: Table,
    /// Sockets with `listed` set, each once; ids of sockets that were closed meanwhile are skipped.
    ready: VecDeque<SocketId>,
    /// Bulk streams that came behind the others in crowded turns: they are `listed`, too.
    behind: VecDeque<SocketId>,
    crowded: bool,
    /// Those behind had no room in the last turn, since others had something to do.
    put_off: bool,
    pools: Pools,
    counters: Counters,
}

impl EpollDriver {
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let wakeup = Wakeup::new()?;
        epoll.add(wakeup.event(), WAKE_ID, false)?;
        Ok(Self {
            epoll,
            wakeup,
            table: Table::default(),
            ready: VecDeque::new(),
            behind: VecDeque::new(),
            crowded: false,
            put_off: false,
            pools: Pools::new()?,
            counters: Counters::default(),
        })
    }

    /// For tests that set options which no proxy needs.
    #[cfg(test)]
    pub fn descriptor(&self, socket: SocketId) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.table.get(socket).map(Socket::fd)
    }

    /// Puts a socket that can go on into the ready list.
    fn list_if_ready(&mut self, id: SocketId) {
        if let Some(socket) = self.table.get_mut(id)
            && !socket.listed
            && socket.has_work()
        {
            socket.listed = true;
            self.ready.push_back(id);
        }
    }

    fn connect_now(&mut self, id: SocketId, peer: SocketAddr) -> io::Result<()> {
        let Some(socket) = self.table.get_mut(id) else {
            return Ok(());
        };
        assert!(
            matches!(socket.role, Role::Idle | Role::Connected),
            "a socket is connected once at a time"
        );
        self.counters.calls += 2;
        match SockRef::from(&socket.fd()).connect(&SockAddr::from(peer)) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            // Over or under way: the edge that says "writable" is on its way in both cases.
            Ok(()) | Err(_) => {}
        }
        socket.role = Role::Connecting;
        socket.ready.write = false;
        socket.ready.read_until_empty = false;
        // Watched only now: an unconnected socket counts as hung up.
        match socket.watch {
            Watch::Nothing => self.epoll.add(socket.fd(), id, true)?,
            Watch::Read | Watch::ReadWrite => self.epoll.modify(socket.fd(), id, true)?,
        }
        socket.watch = Watch::ReadWrite;
        Ok(())
    }

    /// As `Driver::send`, with these flags of `send(2)`.
    fn send_with(&mut self, socket: SocketId, payload: Payload, flags: i32) -> SendStatus {
        assert!(
            !payload.is_empty(),
            "an empty payload would never be reported as sent"
        );
        let Some(entry) = self.table.get_mut(socket) else {
            return SendStatus::Failed {
                taken: 0,
                error: not_connected(),
                payload,
            };
        };
        assert!(entry.send.is_none(), "one send at a time per socket");
        let written = calls::send(entry.fd(), &payload, 0, flags);
        self.counters.calls += written.calls;
        let taken = written.taken;
        if let Some(error) = written.error {
            entry.note_send_error(&error);
            return SendStatus::Failed {
                taken,
                error,
                payload,
            };
        }
        if taken == payload.len() {
            return SendStatus::Done(payload);
        }
        if let Err(error) = watch_write(&self.epoll, socket, entry, &mut self.counters) {
            return SendStatus::Failed {
                taken,
                error,
                payload,
            };
        }
        entry.send = Some(Sending {
            payload,
            taken,
            flags,
        });
        SendStatus::Queued
    }
}

/// Asks for writability when a socket turns out to be full.
fn watch_write(epoll: &Epoll, id: SocketId, socket: &mut Socket, counters: &mut Counters) -> io::Result<()> {
    socket.ready.write = false;
    match socket.watch {
        Watch::ReadWrite => return Ok(()),
        Watch::Read => epoll.modify(socket.fd(), id, true)?,
        Watch::Nothing => epoll.add(socket.fd(), id, true)?,
    }
    counters.calls += 1;
    socket.watch = Watch::ReadWrite;
    Ok(())
}

fn not_connected() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Driver for EpollDriver {
    fn name(&self) -> &'static str {
        "epoll"
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.wakeup.waker()
    }

    fn adopt(&mut self, fd: Descriptor, owner: Owner) -> io::Result<SocketId> {
        let fd = fd.into_fd()?;
        SockRef::from(&fd).set_nonblocking(true)?;
        let id = self.table.insert(Socket::new(fd, owner, Role::Connected));
        let socket = self.table.get_mut(id).expect("invariant: just inserted");
        self.counters.calls += 2;
        if let Err(error) = self.epoll.add(socket.fd(), id, false) {
            self.table.remove(id);
            return Err(error);
        }
        socket.watch = Watch::Read;
        Ok(id)
    }

    fn open(&mut self, spec: &SocketSpec, family_of: IpAddr, owner: Owner) -> io::Result<SocketId> {
        self.counters.calls += 1;
        let fd = socket::open(spec, family_of)?;
        Ok(self.table.insert(Socket::new(fd, owner, Role::Idle)))
    }

    fn set_owner(&mut self, socket: SocketId, owner: Owner) {
        if let Some(socket) = self.table.get_mut(socket) {
            socket.owner = owner;
        }
    }

    fn listen(&mut self, listener: SocketId) {
        if let Some(socket) = self.table.get_mut(listener) {
            socket.role = Role::Listening { accepting: true };
            self.list_if_ready(listener);
        }
    }

    fn connect(&mut self, socket: SocketId, peer: SocketAddr) {
        if let Err(error) = self.connect_now(socket, peer)
            && let Some(entry) = self.table.get_mut(socket)
        {
            entry.role = Role::ConnectOver(Err(error));
            self.list_if_ready(socket);
        }
    }

    fn receive(&mut self, socket: SocketId, mode: ReceiveMode) {
        let Some(entry) = self.table.get_mut(socket) else {
            return;
        };
        assert!(!entry.is_receiving(), "one receive at a time per socket");
        if entry.receive == Receive::Over {
            return;
        }
        entry.receive = match mode {
            ReceiveMode::Once { bytes_max } => {
                assert!(bytes_max > 0, "a receive of no bytes cannot be told from the end");
                Receive::Once { bytes_max }
            }
            ReceiveMode::Stream => Receive::Stream,
        };
        self.list_if_ready(socket);
    }

    fn stop_receive(&mut self, socket: SocketId) {
        if let Some(entry) = self.table.get_mut(socket)
            && entry.is_receiving()
        {
            entry.receive = Receive::Off;
        }
    }

    fn take_end(&mut self, socket: SocketId) -> bool {
        let Some(entry) = self.table.get_mut(socket) else {
            return false;
        };
        if entry.receive != Receive::Off || !entry.ready.read_until_empty || entry.broken.is_some() {
            return false;
        }
        self.counters.calls += 1;
        let mut broken = None;
        let ends = socket::is_at_end(entry.fd(), &mut broken);
        entry.broken = broken;
        if ends {
            entry.receive = Receive::Over;
        }
        ends
    }

    fn send(&mut self, socket: SocketId, payload: Payload) -> SendStatus {
        self.send_with(socket, payload, 0)
    }

    fn send_last(&mut self, socket: SocketId, payload: Payload) -> SendStatus {
        self.send_with(socket, payload, libc::MSG_MORE)
    }

    fn shutdown_send(&mut self, socket: SocketId) -> io::Result<()> {
        let entry = self.table.get(socket).ok_or_else(not_connected)?;
        assert!(
            entry.send.is_none(),
            "the sending side is shut down after the last send is over"
        );
        self.counters.calls += 1;
        SockRef::from(&entry.fd()).shutdown(std::net::Shutdown::Write)
    }

    fn close(&mut self, socket: SocketId, how: Close) {
        let Some(entry) = self.table.remove(socket) else {
            return;
        };
        self.counters.calls += 1;
        match how {
            Close::Orderly => {}
            Close::Reset => {
                self.counters.calls += 1;
                // Only fails on what is not a socket.
                let _ = socket::reset_on_close(entry.fd());
            }
        }
        // A listener's descriptor may also be held by a successor process; then closing ours would leave its
        // registration here.
        if let Role::Listening { .. } = entry.role {
            self.epoll.remove(entry.fd());
        }
    }

    fn local_address(&self, socket: SocketId) -> io::Result<SocketAddr> {
        socket::local_address(self.table.get(socket).ok_or_else(not_connected)?.fd())
    }

    fn original_destination(&self, socket: SocketId) -> io::Result<SocketAddr> {
        socket::original_destination(self.table.get(socket).ok_or_else(not_connected)?.fd())
    }

    fn set_crowded(&mut self, crowded: bool) {
        self.crowded = crowded;
    }

    fn poll(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.turn(timeout, events)
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn in_use(&self) -> InUse {
        let mut in_use = InUse {
            buffers: self.pools.lent(),
            ..InUse::default()
        };
        for socket in self.table.iter() {
            in_use.sockets += 1;
            in_use.operations += socket.operations();
        }
        in_use
    }
}

#[cfg(test)]
mod tests;
