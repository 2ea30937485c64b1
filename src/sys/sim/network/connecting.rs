//! From a SYN to a stream: where it is led, whether it is answered, what the stream will be like.

use std::net::{IpAddr, SocketAddr};

use super::{Happening, HostId, INBOUND_HBONE, INBOUND_PLAINTEXT, Node, OUTBOUND, Phase, SYN_AGAIN, State};
use crate::sys::sim::faults::Fault;

/// No smaller window is drawn: a few segments, as every kernel has room for.
const WINDOW_BYTES_MIN: usize = 4_000;

impl State {
    /// The listener that a connect of this node reaches, if any, and whether its destination was changed.
    pub(super) fn route(&self, from: u32) -> Option<u32> {
        let node = &self.nodes[from as usize];
        let own = &self.hosts[node.host.0 as usize];
        let to = node.peer;
        if own.captured && !node.marked && !to.ip().is_loopback() {
            return self.listeners.get(&(node.host, OUTBOUND)).copied();
        }
        let host = match to.ip().is_loopback() || own.addresses.contains(&to.ip()) {
            true => node.host,
            false => self.host_of(to.ip())?,
        };
        let redirected =
            host != node.host && self.hosts[host.0 as usize].captured && to.port() != INBOUND_HBONE;
        let port = if redirected { INBOUND_PLAINTEXT } else { to.port() };
        self.listeners.get(&(host, port)).copied()
    }

    pub(super) fn host_of(&self, address: IpAddr) -> Option<HostId> {
        self.hosts
            .iter()
            .position(|host| host.addresses.contains(&address))
            .map(|at| HostId(at as u32))
    }

    pub fn start_connect(&mut self, index: u32, peer: SocketAddr) {
        let latency = self.draw_latency();
        let node = self.node(index);
        node.peer = peer;
        node.original = peer;
        node.latency = latency;
        node.phase = Phase::Connecting { outcome: None };
        let at = self.now + latency;
        if self.chance(Fault::ConnectUnanswered) {
            let from = self.nodes[index as usize].host;
            let to = self.route(index).map_or(from, |to| self.nodes[to as usize].host);
            return self.blame(Fault::ConnectUnanswered, from, to);
        }
        self.happen_at(at, Happening::Syn { from: index });
    }

    pub(super) fn syn(&mut self, from: u32) {
        if self.nodes[from as usize].closed {
            return;
        }
        let back = self.now + self.nodes[from as usize].latency;
        let listener = self.route(from);
        let is_refused = listener.is_some() && self.chance(Fault::ConnectRefused);
        if let Some(listener) = listener.filter(|_| is_refused) {
            let hosts = [from, listener].map(|node| self.nodes[node as usize].host);
            self.blame(Fault::ConnectRefused, hosts[0], hosts[1]);
        }
        let Some(listener) = listener.filter(|_| !is_refused) else {
            return self.happen_at(
                back,
                Happening::SynAnswer {
                    to: from,
                    refused: true,
                },
            );
        };
        let Phase::Listening { queue, queue_max } = &self.nodes[listener as usize].phase else {
            return;
        };
        let is_full = queue.len() >= *queue_max;
        if is_full {
            self.strike(Fault::QueueFull);
        }
        if is_full || self.chance(Fault::QueueFull) {
            let again = self.now + SYN_AGAIN;
            return self.schedule(again, Happening::Syn { from });
        }
        let (host, local) = {
            let node = &self.nodes[listener as usize];
            (node.host, node.local)
        };
        let client = &self.nodes[from as usize];
        let mut node = Node::new(host, local, Phase::Stream);
        node.peer = client.local;
        node.original = client.peer;
        // A listener that was not redirected to is where the client wanted to go.
        if client.peer.port() == local.port() {
            node.local = client.peer;
        }
        let accepted = self.add(node);
        self.join(accepted, from);
        if let Phase::Listening { queue, .. } = &mut self.node(listener).phase {
            queue.push_back(accepted);
        }
        self.tell(listener);
        self.happen_at(
            back,
            Happening::SynAnswer {
                to: from,
                refused: false,
            },
        );
    }

    fn draw_window(&mut self, buffer_bytes: usize) -> usize {
        match self.shape.window_percent {
            None => usize::MAX,
            Some((from, to)) => (buffer_bytes * self.random.usize(from..=to) / 100).max(WINDOW_BYTES_MIN),
        }
    }

    /// Makes two nodes the ends of one stream.
    pub(super) fn join(&mut self, a: u32, b: u32) {
        let latency = self.nodes[b as usize].latency;
        let bandwidth = self
            .shape
            .bandwidth
            .map(|(from, to)| self.random.u64(from..=to).max(1));
        for (one, other) in [(a, b), (b, a)] {
            let (from, to) = self.shape.buffer_bytes;
            let buffer_bytes = self.random.usize(from..=to).max(1);
            let window_bytes = self.draw_window(buffer_bytes);
            let now = self.now;
            let address = self.nodes[other as usize].local;
            let node = self.node(one);
            node.other = Some(other);
            node.buffer_bytes = buffer_bytes;
            node.window_bytes = window_bytes;
            node.latency = latency;
            node.bandwidth = bandwidth;
            node.sent_at = now;
            node.arrives_at = now;
            if node.phase == Phase::Stream && node.peer == node.local {
                node.peer = address;
            }
        }
    }
}
