//! Bytes, ends and resets on their way between the two ends of a stream.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Happening, Node, Phase, State};
use crate::sys::sim::faults::Fault;

impl State {
    /// Bytes that a write of this node would be taken of.
    pub fn room(&self, index: u32) -> usize {
        let node = &self.nodes[index as usize];
        node.buffer_bytes.saturating_sub(node.unread)
    }

    /// Sends bytes for which there is room.
    pub fn send(&mut self, index: u32, bytes: &[u8]) {
        let Some(to) = self.nodes[index as usize].other else {
            return;
        };
        let cut = self
            .chance(Fault::Reset)
            .then(|| self.random.usize(..=bytes.len()));
        let sent = &bytes[..cut.unwrap_or(bytes.len())];
        let now = self.now;
        let node = self.node(index);
        node.written_at = now;
        node.unread += sent.len();
        let fits = match node.outbox.is_empty() {
            true => node.window_room(sent.len()).min(sent.len()),
            false => 0,
        };
        let (leave, wait) = sent.split_at(fits);
        node.outbox.extend(wait);
        if !leave.is_empty() {
            self.leave(index, to, leave);
        }
        if cut.is_some() {
            let now = self.now;
            let node = self.node(index);
            let at = node.arrives_at.max(now + node.latency);
            node.give_up_outbox();
            let hosts = [index, to].map(|node| self.nodes[node as usize].host);
            self.blame(Fault::Reset, hosts[0], hosts[1]);
            self.schedule(at, Happening::Reset { to });
            let back = self.now + self.nodes[index as usize].latency;
            self.schedule(back, Happening::Reset { to: index });
        }
    }

    /// Bytes set out that the other end's window has room for.
    fn leave(&mut self, index: u32, to: u32, sent: &[u8]) {
        let now = self.now;
        let node = self.node(index);
        let takes = match node.bandwidth {
            Some(rate) => Duration::from_nanos((sent.len() as u64).saturating_mul(1_000_000_000) / rate),
            None => Duration::ZERO,
        };
        node.sent_at = node.sent_at.max(now) + takes;
        node.arrives_at = node.arrives_at.max(node.sent_at + node.latency);
        let at = node.arrives_at;
        if self.is_next(at) {
            self.arrive(to, sent);
        } else {
            let mut segment = self.spare.pop().unwrap_or_default();
            segment.extend_from_slice(sent);
            self.schedule(at, Happening::Bytes { to, bytes: segment });
        }
    }

    /// The other end has read: what waited for its window goes, and the end behind it.
    fn leave_outbox(&mut self, index: u32) {
        let node = self.node(index);
        let waits = node.outbox.len();
        let room = node.window_room(0).min(waits);
        // As for `is_worth_writing`: no trickle of single bytes.
        if room == 0 || (room < waits && room < node.window_bytes.div_ceil(3)) {
            return;
        }
        let leaves: Vec<u8> = node.outbox.drain(..room).collect();
        if let Some(to) = node.other {
            self.leave(index, to, &leaves);
        }
        let node = self.node(index);
        if node.outbox.is_empty() && std::mem::take(&mut node.fin_waits) {
            self.send_fin(index);
        }
    }

    /// Sends a byte that only marks its place. It is as light as nothing.
    pub fn send_urgent(&mut self, index: u32) {
        let now = self.now;
        let node = self.node(index);
        let at = node.arrives_at.max(now + node.latency);
        node.arrives_at = at;
        if let Some(to) = node.other {
            self.happen_at(at, Happening::Mark { to });
        }
    }

    pub(super) fn arrive(&mut self, to: u32, bytes: &[u8]) {
        let back = self.now;
        let node = self.node(to);
        if node.closed {
            // Nobody reads here any more: the sender is told.
            let back = back + node.latency;
            node.cut_short |= !node.reset_sent;
            node.give_up_outbox();
            if let Some(from) = node.other {
                self.schedule(back, Happening::Reset { to: from });
            }
        } else if node.broken.is_none() {
            node.inbox.extend(bytes);
            self.tell(to);
        }
    }

    pub(super) fn fin_arrives(&mut self, to: u32) {
        let node = self.node(to);
        // After a reset it would make a stream with a hole look like a whole one.
        if node.broken.is_none() {
            node.fin_arrived = true;
            self.tell(to);
        }
    }

    pub(super) fn reset_arrives(&mut self, to: u32) {
        let node = self.node(to);
        node.give_up_outbox();
        if node.closed || node.broken.is_some() {
            return;
        }
        // As in tcp_reset(): who had the end of the stream already is only told when it writes.
        node.broken = Some(match node.fin_arrived {
            true => libc::EPIPE,
            false => libc::ECONNRESET,
        });
        self.tell(to);
    }

    /// This end sends nothing more.
    pub fn end(&mut self, index: u32) {
        let node = self.node(index);
        if std::mem::replace(&mut node.fin_sent, true) {
            return;
        }
        match node.outbox.is_empty() {
            true => self.send_fin(index),
            false => node.fin_waits = true,
        }
    }

    fn send_fin(&mut self, index: u32) {
        let now = self.now;
        let node = self.node(index);
        let at = node.arrives_at.max(now + node.latency);
        node.arrives_at = at;
        if let Some(to) = node.other {
            self.happen_at(at, Happening::Fin { to });
        }
    }

    /// Gives a node up. `reset`: the other end must see it as a reset.
    pub fn close(&mut self, index: u32, reset: bool) {
        let now = self.now;
        let node = self.node(index);
        if std::mem::replace(&mut node.closed, true) {
            return;
        }
        node.watcher = None;
        let (host, port) = (node.host, node.local.port());
        if let Phase::Listening { queue, .. } = &mut node.phase {
            let waiting = std::mem::take(queue);
            self.listeners.remove(&(host, port));
            for accepted in waiting {
                self.close(accepted, true);
            }
            return;
        }
        let resets = reset || !node.inbox.is_empty();
        node.inbox = VecDeque::new();
        if !resets {
            if node.broken.is_none() {
                self.end(index);
            }
            return;
        }
        node.give_up_outbox();
        node.reset_sent = true;
        node.cut_short = !reset;
        let at = node.arrives_at.max(now + node.latency);
        if let Some(to) = node.other
            && node.broken.is_none()
        {
            self.happen_at(at, Happening::Reset { to });
        }
    }

    /// `n` bytes of this node's inbox were read: the other end may send as many more.
    pub fn was_read(&mut self, index: u32, n: usize) {
        if let Some(other) = self.nodes[index as usize].other {
            let sender = self.node(other);
            sender.unread = sender.unread.saturating_sub(n);
            if sender.is_worth_writing() {
                self.tell(other);
            }
            self.leave_outbox(other);
        }
    }
}

impl Node {
    /// What the other end's window still takes, not counting `written` bytes that are not on their way yet.
    fn window_room(&self, written: usize) -> usize {
        let under_way = self.unread - self.outbox.len() - written;
        self.window_bytes.saturating_sub(under_way)
    }

    /// As tcp_disconnect() and tcp_reset(): a connection that is reset sends nothing of what it still holds.
    fn give_up_outbox(&mut self) {
        self.outbox.clear();
        self.fin_waits = false;
    }
}
