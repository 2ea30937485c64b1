//! Applications: clients and servers that follow their script and check every byte that they receive.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use uztunnel::sys::driver::Close;
use uztunnel::sys::sim::Endpoint;

use crate::pattern::{self, Way};
use crate::plan::{Ends, Script, Starts};

/// How long a client waits for its connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

pub struct Actor {
    pub connection: usize,
    pub sends: Way,
    pub pod: usize,
    /// Of its endpoint, also when that is closed.
    pub number: u32,
    script: Script,
    endpoint: Option<Endpoint>,
    connecting_until: Option<Duration>,
    pub opened_at: Duration,
    pub sent: u64,
    pub received: u64,
    /// How this side ended what it sends.
    pub ended: Option<Ended>,
    /// What it saw of the other side's end.
    pub saw: Option<Saw>,
    pub finished_at: Option<Duration>,
    stalled_until: Option<Duration>,
    thinks_until: Duration,
    stalls: u32,
    random: fastrand::Rng,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It sent everything and said so.
    End,
    /// It sent everything and closed.
    Closed,
    Reset,
    /// Its world came to an end.
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saw {
    End,
    Reset,
    /// The connect came to nothing.
    NoConnection,
}

/// What an actor wants after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// There is more to do at once.
    Again,
    /// Until the network tells it something, or this time has come.
    Wait(Option<Duration>),
    Done,
}

/// Something wrong that an actor saw.
pub type Finding = String;

impl Actor {
    pub fn client(
        connection: usize,
        pod: usize,
        script: Script,
        endpoint: Endpoint,
        peer: SocketAddr,
        now: Duration,
        seed: u64,
    ) -> Self {
        endpoint.connect(peer);
        let mut actor = Self::server(connection, pod, script, endpoint, now, seed);
        actor.sends = Way::ToServer;
        actor.connecting_until = Some(now + CONNECT_PATIENCE);
        actor
    }

    /// The end of a connection that was accepted.
    pub fn server(
        connection: usize,
        pod: usize,
        script: Script,
        endpoint: Endpoint,
        now: Duration,
        seed: u64,
    ) -> Self {
        Self {
            connection,
            sends: Way::ToClient,
            pod,
            number: endpoint.number(),
            script,
            endpoint: Some(endpoint),
            connecting_until: None,
            opened_at: now,
            sent: 0,
            received: 0,
            ended: None,
            saw: None,
            finished_at: None,
            stalled_until: None,
            thinks_until: now,
            stalls: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    pub fn is_done(&self) -> bool {
        self.endpoint.is_none()
    }

    pub fn stalls(&self) -> u32 {
        self.stalls
    }

    /// The pod of this application is gone, and it with it.
    pub fn kill(&mut self, now: Duration) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.close(Close::Reset);
            self.ended.get_or_insert(Ended::Killed);
            self.finished_at = Some(now);
        }
    }

    fn finish(&mut self, how: Close, now: Duration) -> Next {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.close(how);
        }
        self.finished_at = Some(now);
        Next::Done
    }

    /// One step: at most one read and one write.
    pub fn step(&mut self, now: Duration, scratch: &mut Scratch) -> Result<Next, Finding> {
        if self.endpoint.is_none() {
            return Ok(Next::Done);
        }
        if let Some(until) = self.connecting_until {
            match self.endpoint.as_ref().and_then(Endpoint::take_connected) {
                None if now < until => return Ok(Next::Wait(Some(until))),
                Some(Ok(())) => self.connecting_until = None,
                None | Some(Err(_)) => {
                    self.saw = Some(Saw::NoConnection);
                    self.ended = Some(Ended::Reset);
                    return Ok(self.finish(Close::Orderly, now));
                }
            }
        }
        if now < self.thinks_until {
            return Ok(Next::Wait(Some(self.thinks_until)));
        }
        let read = self.read(now, scratch)?;
        if self.endpoint.is_none() {
            return Ok(Next::Done);
        }
        let wrote = self.write(now, scratch);
        if self.endpoint.is_none() {
            return Ok(Next::Done);
        }
        if self.ended.is_some() && self.saw.is_some() {
            return Ok(self.finish(Close::Orderly, now));
        }
        if read || wrote {
            if self.script.think_us_max > 0 {
                let think = self.random.u64(..=self.script.think_us_max);
                self.thinks_until = now + Duration::from_micros(think);
            }
            return Ok(Next::Again);
        }
        Ok(Next::Wait(self.stalled_until))
    }

    /// Whether something was read.
    fn read(&mut self, now: Duration, scratch: &mut Scratch) -> Result<bool, Finding> {
        if self.saw.is_some() {
            return Ok(false);
        }
        match self.stalled_until {
            Some(until) if now < until => return Ok(false),
            Some(_) => self.stalled_until = None,
            None => {}
        }
        if let Some((after, pause)) = self.script.stall
            && self.received >= after
        {
            self.script.stall = None;
            self.stalls += 1;
            self.stalled_until = Some(now + pause);
            return Ok(false);
        }
        let Some(endpoint) = &self.endpoint else {
            return Ok(false);
        };
        let most = self.random.usize(1..=self.script.piece_max);
        scratch.bytes.resize(most, 0);
        match endpoint.read(&mut scratch.bytes) {
            Ok(0) => self.saw = Some(Saw::End),
            Ok(n) => {
                let way = match self.sends {
                    Way::ToServer => Way::ToClient,
                    Way::ToClient => Way::ToServer,
                };
                let got = &scratch.bytes[..n];
                let wrong =
                    pattern::first_wrong(self.connection, way, self.received, got, &mut scratch.expected);
                if let Some(at) = wrong {
                    return Err(format!(
                        "connection {}: byte {at} {way:?} is not the one that was sent",
                        self.connection
                    ));
                }
                self.received += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(_) => {
                self.saw = Some(Saw::Reset);
                self.ended.get_or_insert(Ended::Reset);
                self.finish(Close::Orderly, now);
                return Ok(true);
            }
        }
        if let Ends::ResetAfterReceiving(bytes) = self.script.ends
            && (self.received >= bytes || self.saw.is_some())
        {
            self.ended = Some(Ended::Reset);
            self.finish(Close::Reset, now);
        }
        Ok(true)
    }

    /// Whether something was written.
    fn write(&mut self, now: Duration, scratch: &mut Scratch) -> bool {
        let may_start = match self.script.starts {
            Starts::AtOnce => true,
            Starts::After(bytes) => self.received >= bytes || self.saw.is_some(),
            Starts::AfterEnd => self.saw.is_some(),
        };
        if self.ended.is_some() || !may_start {
            return false;
        }
        let Some(endpoint) = &self.endpoint else {
            return false;
        };
        let until = match self.script.ends {
            Ends::ResetAfterSending(bytes) => bytes,
            Ends::HalfClose | Ends::Close | Ends::ResetAfterReceiving(_) => self.script.bytes,
        };
        let left = until - self.sent;
        if left == 0 {
            return match self.script.ends {
                Ends::HalfClose => {
                    self.ended = Some(match endpoint.shutdown_send() {
                        Ok(()) => Ended::End,
                        // A reset is about to be read.
                        Err(_) => Ended::Reset,
                    });
                    true
                }
                Ends::Close => {
                    self.ended = Some(Ended::Closed);
                    self.finish(Close::Orderly, now);
                    true
                }
                Ends::ResetAfterSending(_) => {
                    self.ended = Some(Ended::Reset);
                    self.finish(Close::Reset, now);
                    true
                }
                Ends::ResetAfterReceiving(_) => false,
            };
        }
        let n = self.random.usize(1..=self.script.piece_max).min(left as usize);
        scratch.bytes.resize(n, 0);
        pattern::fill(self.connection, self.sends, self.sent, &mut scratch.bytes);
        match endpoint.write(&scratch.bytes) {
            Ok(n) => {
                self.sent += n as u64;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // The other side is gone: what it said before is read first.
            Err(_) => {
                self.ended = Some(Ended::Reset);
                true
            }
        }
    }
}

/// Memory that all actors share.
#[derive(Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    expected: Vec<u8>,
}
