//! One turn of the epoll driver: wait, note the edges, serve the ready list.
//!
//! Worker thread. Every edge of a batch is noted before any socket is served, and sockets are closed only
//! between turns, so nothing in a batch is stale except by generation. Work is bounded by
//! `limits::EVENTS_TURN_MAX`; what does not fit stays listed, and then the next turn does not sleep.

use std::io;
use std::time::Duration;

use super::pools::{BULK_RECEIVES, Outcome, Pools};
use super::table::{Receive, Role, Socket};
use super::{EpollDriver, WAKE_ID, calls, watch_write};
use crate::limits;
use crate::sys::driver::{Event, Received, SocketId};
use crate::sys::socket;

/// Most events that serving one socket that is not a listener gives: `Sent` and `Received`.
const EVENTS_SOCKET_MAX: usize = 2;

impl EpollDriver {
    pub(super) fn turn(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        self.wait(timeout)?;
        if self.wakeup.was_woken() {
            events.push(Event::Woken);
        }
        self.serve(before + limits::EVENTS_TURN_MAX, events);
        self.counters.events += (events.len() - before) as u64;
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let no_time = Some(Duration::ZERO);
        let is_idle = self.ready.is_empty() && self.behind.is_empty();
        let sleeps = is_idle && timeout != no_time && self.wakeup.may_sleep();
        self.counters.waits += 1;
        let edges = self.epoll.wait(if sleeps { timeout } else { no_time })?;
        for at in 0..edges {
            let (id, edges) = self.epoll.edge(at);
            if id == WAKE_ID {
                continue;
            }
            if let Some(socket) = self.table.get_mut(id) {
                socket.ready.read |= edges.read();
                socket.ready.write |= edges.write();
                socket.ready.read_until_empty |= edges.cuts_receives();
                self.list_if_ready(id);
            }
        }
        Ok(())
    }

    /// Serves every socket that is listed now once, until there are `events_max` events.
    fn serve(&mut self, events_max: usize, events: &mut Vec<Event>) {
        self.pools.start_turn();
        for _ in 0..self.ready.len() {
            if events.len() + EVENTS_SOCKET_MAX > events_max {
                break;
            }
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            match self.table.get(id) {
                Some(socket) if self.crowded && socket.bulk > 0 => self.behind.push_back(id),
                Some(_) | None => self.serve_socket(id, events_max, events),
            }
        }
        self.serve_behind(events_max, events);
        self.counters.buffer_fallbacks += self.pools.fallbacks_turn() as u64;
    }

    /// Bulk has what room a turn leaves for it, and waits for another turn where others have something to do. At least
    /// every second turn has room.
    fn serve_behind(&mut self, events_max: usize, events: &mut Vec<Event>) {
        self.put_off = self.crowded && !self.put_off && !events.is_empty() && !self.behind.is_empty();
        if self.put_off {
            return;
        }
        let mut room = limits::bulk_bytes_max(self.crowded);
        while room > 0
            && events.len() + EVENTS_SOCKET_MAX <= events_max
            && let Some(id) = self.behind.pop_front()
        {
            let before = events.len();
            self.serve_socket(id, events_max, events);
            room = room.saturating_sub(events[before..].iter().map(Event::received_bytes).sum());
        }
    }

    fn serve_socket(&mut self, id: SocketId, events_max: usize, events: &mut Vec<Event>) {
        let Some(socket) = self.table.get_mut(id) else {
            return;
        };
        socket.listed = false;
        match socket.role {
            Role::Connecting | Role::ConnectOver(_) => self.finish_connect(id, events),
            Role::Listening { .. } => self.accept(id, events_max, events),
            Role::Idle | Role::Connected => {
                self.continue_send(id, events);
                self.receive_once(id, events);
            }
        }
        self.list_if_ready(id);
    }

    fn finish_connect(&mut self, id: SocketId, events: &mut Vec<Event>) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        let result = match std::mem::replace(&mut entry.role, Role::Idle) {
            Role::ConnectOver(result) => result,
            Role::Connecting | Role::Idle | Role::Connected | Role::Listening { .. } => {
                self.counters.calls += 1;
                socket::take_error(entry.fd())
            }
        };
        if result.is_ok() {
            entry.role = Role::Connected;
        }
        events.push(Event::Connected {
            owner: entry.owner,
            socket: id,
            result,
        });
    }

    fn accept(&mut self, id: SocketId, events_max: usize, events: &mut Vec<Event>) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        for _ in 0..limits::ACCEPTS_TURN_MAX.min(events_max - events.len()) {
            self.counters.calls += 1;
            match calls::accept(entry.fd()) {
                Ok((fd, peer)) => events.push(Event::Accepted {
                    owner: entry.owner,
                    listener: id,
                    fd: fd.into(),
                    peer,
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    entry.ready.read = false;
                    break;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    entry.role = Role::Listening { accepting: false };
                    events.push(Event::AcceptFailed {
                        owner: entry.owner,
                        listener: id,
                        error,
                    });
                    break;
                }
            }
        }
    }

    fn continue_send(&mut self, id: SocketId, events: &mut Vec<Event>) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if !entry.ready.write {
            return;
        }
        let Some(mut sending) = entry.send.take() else {
            return;
        };
        let written = calls::send(entry.fd(), &sending.payload, sending.taken, sending.flags);
        self.counters.calls += written.calls;
        sending.taken = written.taken;
        let mut error = written.error;
        if let Some(error) = &error {
            entry.note_send_error(error);
        } else if sending.taken < sending.payload.len() {
            error = watch_write(&self.epoll, id, entry, &mut self.counters).err();
            if error.is_none() {
                entry.send = Some(sending);
                return;
            }
        }
        events.push(Event::Sent {
            owner: entry.owner,
            socket: id,
            taken: sending.taken,
            error,
            payload: sending.payload,
        });
    }

    fn receive_once(&mut self, id: SocketId, events: &mut Vec<Event>) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if !entry.can_receive() {
            return;
        }
        let bytes_max = match entry.receive {
            Receive::Once { bytes_max } => bytes_max,
            Receive::Stream | Receive::Off | Receive::Over => limits::receive_bytes_max(self.crowded),
        };
        let outcome = self.pools.receive(entry.fd(), bytes_max, entry.bulk > 0);
        if let Outcome::Later = outcome {
            return;
        }
        self.counters.calls += 1;
        let Some(data) = entry.note_received(outcome) else {
            return;
        };
        events.push(Event::Received {
            owner: entry.owner,
            socket: id,
            data,
        });
    }
}

impl Socket {
    /// What a receive means for the socket, and what its owner gets.
    fn note_received(&mut self, outcome: Outcome) -> Option<Received> {
        match outcome {
            Outcome::Data { buffer, asked } => {
                if Pools::needs_large(buffer.len()) {
                    self.bulk = BULK_RECEIVES;
                } else {
                    self.bulk = self.bulk.saturating_sub(1);
                }
                if buffer.len() < asked && !self.ready.read_until_empty {
                    self.ready.read = false;
                }
                if let Receive::Once { .. } = self.receive {
                    self.receive = Receive::Off;
                }
                Some(Received::Data(buffer))
            }
            Outcome::End => {
                self.receive = Receive::Over;
                Some(match self.broken {
                    Some(errno) => Received::Failed(io::Error::from_raw_os_error(errno)),
                    None => Received::End,
                })
            }
            Outcome::Failed(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.ready.read = false;
                None
            }
            Outcome::Failed(error) => {
                self.receive = Receive::Over;
                Some(Received::Failed(error))
            }
            Outcome::Later => None,
        }
    }
}

/// Errors that `accept(2)` passes on from the one connection that it would have returned; the next one may be
/// fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        None | Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    )
}
