//! The chief risk of a driver whose buffers the kernel shares: one connection's bytes on another's socket.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::Duration;

use uztunnel::sys::buffer::{POISON, Payload, RecvBuffer, Slice};
use uztunnel::sys::driver::{Close, Driver, Event, Owner, ReceiveMode, Received, SendStatus, SocketId};

use crate::bench::{Bench, Peer};
use crate::rig::Rig;

const CONNECTIONS: usize = 24;
const STEPS: usize = 12_000;
const WAITING_MAX: usize = 4;
const HELD_MAX: usize = 300;

/// An echo of which everything can be cut off at any moment. All its bytes, both ways, are `pattern`.
struct Connection<P> {
    socket: SocketId,
    peer: P,
    pattern: u8,
    asked: Asked,
    /// A receive was taken back, and nothing came since.
    stopped: bool,
    over: bool,
    sending: bool,
    waiting: VecDeque<Payload>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Once,
    Stream,
}

struct Storm<'a, 'b, B: Bench> {
    rig: &'a mut Rig<'b, B>,
    random: fastrand::Rng,
    connections: Vec<Connection<B::Peer>>,
    made: u8,
    /// Buffers that slow owners keep, with the pattern that they must go on showing.
    held: VecDeque<(u8, RecvBuffer)>,
}

pub fn connections_cut_off_at_random_never_see_each_others_bytes<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let mut storm = Storm {
        rig: &mut rig,
        random: fastrand::Rng::with_seed(0x5EED),
        connections: Vec::new(),
        made: 0,
        held: VecDeque::new(),
    };
    for at in 0..CONNECTIONS {
        let connection = storm.connect(at);
        storm.connections.push(connection);
        storm.receive(at);
    }
    for _ in 0..STEPS {
        storm.step();
    }
    let sockets: Vec<SocketId> = storm
        .connections
        .iter()
        .map(|connection| connection.socket)
        .collect();
    for (pattern, buffer) in storm.held.drain(..) {
        assert_pattern(pattern, buffer.bytes());
    }
    drop(storm);
    rig.finish(&sockets);
}

fn assert_pattern(pattern: u8, bytes: &[u8]) {
    if let Some(other) = bytes.iter().find(|byte| **byte != pattern) {
        panic!("byte {other:#x} on a connection that carries {pattern:#x} only");
    }
}

impl<B: Bench> Storm<'_, '_, B> {
    fn connect(&mut self, at: usize) -> Connection<B::Peer> {
        let (ours, mut peer) = self.rig.bench.pair();
        peer.never_wait();
        Connection {
            socket: self.rig.adopt(ours, Owner(at as u64)),
            peer,
            pattern: self.next_pattern(),
            asked: Asked::Nothing,
            stopped: false,
            over: false,
            sending: false,
            waiting: VecDeque::new(),
        }
    }

    /// Never what freed memory looks like.
    fn next_pattern(&mut self) -> u8 {
        self.made = self.made.wrapping_add(1);
        if self.made == POISON || self.made == 0 {
            self.made += 1;
        }
        self.made
    }

    fn receive(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        let (mode, asked) = match self.random.u8(..3) {
            0 => (ReceiveMode::Once { bytes_max: 700 }, Asked::Once),
            1 => (ReceiveMode::Once { bytes_max: 1 << 20 }, Asked::Once),
            _ => (ReceiveMode::Stream, Asked::Stream),
        };
        self.rig.driver.receive(connection.socket, mode);
        connection.asked = asked;
    }

    fn step(&mut self) {
        let at = self.random.usize(..CONNECTIONS);
        match self.random.u8(..100) {
            0..50 => self.peer_writes(at),
            50..75 => self.peer_reads(at),
            75..85 => self.toggle(at),
            85..90 => self.cut(at),
            _ => {
                if let Some((pattern, buffer)) = self.held.pop_front() {
                    assert_pattern(pattern, buffer.bytes());
                }
            }
        }
        if self.random.u8(..4) == 0 {
            self.turn();
        }
    }

    fn peer_writes(&mut self, at: usize) {
        let len = match self.random.u8(..8) {
            0 => self.random.usize(1..400_000),
            _ => self.random.usize(1..3_000),
        };
        let connection = &mut self.connections[at];
        // Whatever fits, or nothing when the other side has gone.
        let _ = connection.peer.write(&vec![connection.pattern; len]);
    }

    fn peer_reads(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        let mut bytes = vec![0; 300_000];
        if let Ok(n) = connection.peer.read(&mut bytes) {
            assert_pattern(connection.pattern, &bytes[..n]);
        }
    }

    fn toggle(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        if connection.asked != Asked::Nothing {
            connection.asked = Asked::Nothing;
            connection.stopped = true;
            self.rig.driver.stop_receive(connection.socket);
            if self.random.bool() {
                return;
            }
        }
        if !self.connections[at].over {
            self.receive(at);
        }
    }

    /// Closes with everything in flight. The slot, and likely the descriptor, is used again at once.
    fn cut(&mut self, at: usize) {
        let how = if self.random.bool() {
            Close::Reset
        } else {
            Close::Orderly
        };
        self.rig.driver.close(self.connections[at].socket, how);
        if self.random.bool() {
            self.turn();
        }
        self.connections[at] = self.connect(at);
        self.receive(at);
    }

    fn turn(&mut self) {
        self.rig.turn(Duration::ZERO);
        for event in self.rig.drain() {
            let (socket, owner) = match &event {
                Event::Received { socket, owner, .. } | Event::Sent { socket, owner, .. } => {
                    (*socket, *owner)
                }
                other => panic!("{other:?}"),
            };
            let at = owner.0 as usize;
            assert_eq!(socket, self.connections[at].socket, "an event of a closed socket");
            match event {
                Event::Received { data, .. } => self.received(at, data),
                Event::Sent { error, .. } => {
                    self.connections[at].sending = false;
                    if error.is_some() {
                        self.connections[at].waiting.clear();
                    }
                }
                other => panic!("{other:?}"),
            }
            self.send(at);
        }
    }

    fn received(&mut self, at: usize, data: Received) {
        let connection = &mut self.connections[at];
        let stopped = std::mem::take(&mut connection.stopped);
        let is_late = stopped && self.rig.bench.delivers_after_stop();
        assert!(connection.asked != Asked::Nothing || is_late, "nobody asked");
        let asked = connection.asked;
        if asked == Asked::Once {
            connection.asked = Asked::Nothing;
        }
        let buffer = match data {
            Received::Data(buffer) => buffer,
            Received::End | Received::Failed(_) => {
                connection.over = true;
                connection.asked = Asked::Nothing;
                return;
            }
        };
        assert_pattern(connection.pattern, buffer.bytes());
        if self.random.u8(..6) == 0 && self.held.len() < HELD_MAX {
            self.held.push_back((connection.pattern, buffer));
        } else if connection.waiting.len() < WAITING_MAX {
            let payload = match self.random.u8(..3) {
                0 => Payload::Slices(buffer.bytes().chunks(1_000).map(Slice::copied).collect()),
                1 => Payload::whole(buffer.bytes().to_vec()),
                _ => Payload::Received(buffer),
            };
            connection.waiting.push_back(payload);
        }
        if asked == Asked::Once {
            self.receive(at);
        }
    }

    fn send(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        while !connection.sending
            && let Some(payload) = connection.waiting.pop_front()
        {
            match self.rig.driver.send(connection.socket, payload) {
                SendStatus::Done(_) => {}
                SendStatus::Queued => connection.sending = true,
                SendStatus::Failed { error, .. } => {
                    assert_ne!(error.kind(), io::ErrorKind::InvalidInput);
                    connection.waiting.clear();
                }
            }
        }
    }
}
