//! A poll: every socket that may have something to do, in any order.

use std::io;
use std::time::Duration;

use super::faults::Fault;
use super::{Receive, SLOT_EVENTS_MAX, Setup, SimDriver};
use crate::limits;
use crate::sys::driver::{Event, Received, SocketId};

impl SimDriver {
    /// Serves every socket that may have something to do, in any order.
    pub(super) fn serve(&mut self, events: &mut Vec<Event>) {
        let mut tokens = std::mem::take(&mut self.tokens);
        self.network.take_ready(self.watcher, &mut tokens);
        for token in tokens.drain(..) {
            let (index, generation) = (token as u32, (token >> 32) as u32);
            if self.slots[index as usize].generation == generation {
                self.list(index);
            }
        }
        self.tokens = tokens;
        // Slots that are listed meanwhile go into the other list: both keep their memory.
        std::mem::swap(&mut self.ready, &mut self.serving);
        let mut serving = std::mem::take(&mut self.serving);
        self.random.shuffle(&mut serving);
        let full = events.len() + limits::EVENTS_TURN_MAX - SLOT_EVENTS_MAX;
        for index in serving.drain(..) {
            self.slots[index as usize].listed = false;
            if events.len() >= full || self.percent(self.habits.postpone) {
                self.list(index);
                continue;
            }
            let id = SocketId {
                index,
                generation: self.slots[index as usize].generation,
            };
            if self.serve_socket(id, events) {
                self.list(index);
            }
        }
        self.serving = serving;
    }

    /// Whether there is more to do now.
    pub(super) fn serve_socket(&mut self, id: SocketId, events: &mut Vec<Event>) -> bool {
        let Some(socket) = self.get(id) else {
            return false;
        };
        match socket.setup {
            Setup::Connecting => return self.finish_connect(id, events),
            Setup::Accepting => return self.accept(id, events),
            Setup::Nothing => {}
        }
        if self.random.bool() {
            self.serve_send(id, events);
            self.serve_receive(id, events);
        } else {
            self.serve_receive(id, events);
            self.serve_send(id, events);
        }
        let Some(socket) = self.get(id) else {
            return false;
        };
        let receives = match socket.receive {
            Receive::Armed { .. } => socket.endpoint.is_readable(),
            Receive::Off | Receive::Over => false,
            Receive::Stopping { .. } => true,
        };
        receives || (socket.send.is_some() && socket.endpoint.is_writable())
    }

    pub(super) fn note(&self, event: &Event) {
        let mut state = self.network.lock();
        let now = state.now;
        let (what, socket, bytes) = match event {
            Event::Accepted { listener, .. } => (1, Some(listener), 0),
            Event::AcceptFailed { listener, .. } => (2, Some(listener), 0),
            Event::Connected { socket, result, .. } => (3, Some(socket), u64::from(result.is_ok())),
            Event::Received { socket, data, .. } => match data {
                Received::Data(buffer) => (4, Some(socket), buffer.len() as u64),
                Received::End => (5, Some(socket), 0),
                Received::Failed(_) => (6, Some(socket), 0),
            },
            Event::Sent {
                socket, taken, error, ..
            } => (7 + u64::from(error.is_some()), Some(socket), *taken as u64),
            Event::Woken => (9, None, 0),
        };
        let number = socket
            .and_then(|socket| self.get(*socket))
            .map_or(u64::MAX, |socket| u64::from(socket.endpoint.number()));
        let who = (self.watcher.0 as u64) << 32 | number;
        let watcher = self.watcher.0;
        state.trace.note(now, what, who, bytes, || match event {
            Event::Woken => format!("driver {watcher}: woken"),
            Event::Accepted { peer, .. } => format!("driver {watcher}: accepted {peer} on {number}"),
            Event::Connected { result, .. } => format!("driver {watcher}: connected {number}: {result:?}"),
            Event::Received { data, .. } => format!("driver {watcher}: received on {number}: {data:?}"),
            Event::Sent { taken, error, .. } => {
                format!("driver {watcher}: sent {taken} on {number}: {error:?}")
            }
            Event::AcceptFailed { error, .. } => format!("driver {watcher}: accept failed: {error}"),
        });
    }

    pub(super) fn push(&mut self, events: &mut Vec<Event>, event: Event) {
        self.counters.events += 1;
        self.note(&event);
        events.push(event);
    }

    pub(super) fn finish_connect(&mut self, id: SocketId, events: &mut Vec<Event>) -> bool {
        let Some(socket) = self.get_mut(id) else {
            return false;
        };
        let Some(result) = socket.endpoint.take_connected() else {
            return false;
        };
        socket.setup = Setup::Nothing;
        let owner = socket.owner;
        self.push(
            events,
            Event::Connected {
                owner,
                socket: id,
                result,
            },
        );
        true
    }

    pub(super) fn accept(&mut self, id: SocketId, events: &mut Vec<Event>) -> bool {
        for _ in 0..self.random.usize(1..SLOT_EVENTS_MAX) {
            let Some(socket) = self.get(id) else {
                return false;
            };
            let owner = socket.owner;
            // It needs a connection to fail to accept one.
            if !socket.endpoint.has_waiting() {
                return false;
            }
            let fails = self.network.lock().chance(Fault::NoDescriptors);
            let Some(socket) = self.get_mut(id) else {
                return false;
            };
            if fails {
                socket.setup = Setup::Nothing;
                let error = io::Error::from_raw_os_error(libc::EMFILE);
                self.push(
                    events,
                    Event::AcceptFailed {
                        owner,
                        listener: id,
                        error,
                    },
                );
                return false;
            }
            let Ok((endpoint, peer)) = socket.endpoint.accept() else {
                return false;
            };
            self.push(
                events,
                Event::Accepted {
                    owner,
                    listener: id,
                    fd: endpoint.into(),
                    peer,
                },
            );
        }
        true
    }

    /// Nothing was there: moves time on to what happens next. When nothing does, other threads get a little real time
    /// to do something before the wait is over.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) {
        let end = timeout.map(|timeout| self.network.now() + timeout);
        let happens_first = |next: &Duration| end.is_none_or(|end| *next <= end);
        if let Some(next) = self.network.next_happening().filter(happens_first) {
            return self.network.advance(next);
        }
        self.network.wait_for_others(Duration::from_micros(500));
        if self.is_due() {
            return;
        }
        if let Some(until) = self.network.next_happening().filter(happens_first).or(end) {
            self.network.advance(until);
        }
    }
}
