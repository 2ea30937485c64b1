//! The ZDS client: keeps a connection to the CNI node agent and does what it asks for.
//!
//! Control thread. This file moves packets and time; what they mean is `protocol`'s, how long to wait is
//! `backoff`'s, what happens to a pod is behind `Pods`. Dropping the future of `Client::run` closes the
//! connection and stops no pod.
//!
//! Invariant: nothing that the agent sends ends the process or a pod's traffic. Upstream exits when the agent
//! breaks the order of messages; here the agent gets the same refusal, and a new connection.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{self, Instant};

use crate::clock;
use crate::control::pods::Pods;
use crate::control::readiness::{Readiness, Task};
use crate::control::roster::Roster;
use crate::limits;
use crate::sys::fd_passing::{Datagram, ReceiveError, SeqPacket};
use crate::sys::netns::Namespace;
use crate::sys::reactor;

pub mod backoff;
pub mod protocol;

use backoff::{AnnounceDelay, ConnectDelay};
use protocol::{Attachment, Effect, Protocol};

/// The client. One for the process.
pub struct Client<P> {
    path: PathBuf,
    pods: P,
    readiness: Readiness,
    roster: Roster,
    protocol: Protocol<Arc<Namespace>>,
    retry_at: Option<Instant>,
}

impl<P: Pods> Client<P> {
    /// `path` is the agent's socket.
    pub fn new(path: PathBuf, pods: P, readiness: Readiness, roster: Roster) -> Self {
        readiness.pending(Task::WorkloadProxyManager);
        Self {
            path,
            pods,
            readiness,
            roster,
            protocol: Protocol::new(),
            retry_at: None,
        }
    }

    /// Talks to the agent, for ever.
    pub async fn run(mut self) {
        let mut announce = AnnounceDelay::new(clock::now());
        loop {
            let connection = self.connect().await;
            let ended = self.converse(&connection).await;
            let understood = self.protocol.has_snapshot();
            self.protocol.disconnected();
            self.publish_state();
            if understood {
                announce.ready(clock::now());
            }
            match ended {
                // The agent was restarted: its successor waits for us.
                Ended::Lost(why) if understood => tracing::info!("node agent's connection ended: {why}"),
                Ended::Lost(why) | Ended::Broken(why) => {
                    let delay = announce.take(clock::now(), fastrand::f64());
                    tracing::warn!(?delay, "node agent's connection is made anew: {why}");
                    time::sleep(delay).await;
                }
            }
        }
    }

    async fn connect(&self) -> AsyncFd<SeqPacket> {
        let mut delay = ConnectDelay::new();
        loop {
            match SeqPacket::connect(&self.path).and_then(reactor::register) {
                Ok(connection) => return connection,
                Err(error) => {
                    let delay = delay.take();
                    let path = self.path.display();
                    tracing::warn!(?delay, "cannot connect to the node agent at {path}: {error}");
                    time::sleep(delay).await;
                }
            }
        }
    }

    async fn converse(&mut self, connection: &AsyncFd<SeqPacket>) -> Ended {
        tracing::info!("connected to the node agent at {}", self.path.display());
        self.retry_at = None;
        let mut effects = self.protocol.connected();
        loop {
            if let Err(ended) = self.carry_out(effects, connection).await {
                return ended;
            }
            self.publish_state();
            // One byte more than allowed is not needed to notice a longer packet: the kernel says so.
            let mut buffer = [0; limits::ZDS_PACKET_BYTES_MAX];
            let retry_at = self.retry_at;
            effects = tokio::select! {
                () = time::sleep_until(retry_at.unwrap_or_else(now)), if retry_at.is_some() => {
                    self.retry_at = None;
                    self.protocol.retry()
                }
                received = receive(connection, &mut buffer) => match attachment_of(received) {
                    Ok((len, attachment)) => self.protocol.received(&buffer[..len], attachment),
                    Err(why) => return Ended::Lost(why),
                },
            };
        }
    }

    async fn carry_out(
        &mut self,
        effects: Vec<Effect<Arc<Namespace>>>,
        connection: &AsyncFd<SeqPacket>,
    ) -> Result<(), Ended> {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Send(packet) => send(connection, &packet)
                    .await
                    .map_err(|error| Ended::Lost(format!("cannot send: {error}")))?,
                Effect::Start(start) => {
                    let outcome = self.pods.start(&start.uid, &start.info, &start.namespace);
                    let (uid, info) = (start.uid.as_str(), &start.info);
                    match &outcome {
                        Ok(()) => {
                            self.roster.started(start.uid.clone(), info.clone());
                            tracing::info!(uid, name = info.name, namespace = info.namespace, "pod added")
                        }
                        Err(error) => tracing::warn!(
                            uid,
                            name = info.name,
                            namespace = info.namespace,
                            error,
                            "pod cannot be served yet"
                        ),
                    }
                    effects.extend(self.protocol.started(start, outcome));
                }
                Effect::Stop(uid) => {
                    tracing::info!(uid = uid.as_str(), "pod removed");
                    self.pods.stop(&uid);
                    self.roster.stopped(&uid);
                }
                Effect::ArmRetry => self.retry_at = Some(now() + limits::ZDS_RETRY_DELAY),
                Effect::Reconnect(why) => return Err(Ended::Broken(why)),
            }
        }
        Ok(())
    }

    fn publish_state(&self) {
        self.roster.set_pending(self.protocol.pending());
        if self.protocol.is_ready() {
            self.readiness.done(Task::WorkloadProxyManager);
        } else {
            self.readiness.pending(Task::WorkloadProxyManager);
        }
    }
}

/// Why a connection is over.
enum Ended {
    /// The agent closed it, or the socket failed.
    Lost(String),
    /// The agent said something that makes no sense.
    Broken(String),
}

/// For tokio's timers.
fn now() -> Instant {
    Instant::from_std(clock::now())
}

async fn receive(
    connection: &AsyncFd<SeqPacket>,
    buffer: &mut [u8; limits::ZDS_PACKET_BYTES_MAX],
) -> io::Result<Result<Datagram, ReceiveError>> {
    // The readiness is cleared by an I/O error that says `WouldBlock`; what was received wrongly was received.
    connection
        .async_io(Interest::READABLE, |socket| match socket.receive(buffer) {
            Err(ReceiveError::Io(error)) => Err(error),
            received => Ok(received),
        })
        .await
}

/// Splits what was received into the packet's length and what came beside it. The error says why there is no
/// next packet.
fn attachment_of(
    received: io::Result<Result<Datagram, ReceiveError>>,
) -> Result<(usize, Attachment<Arc<Namespace>>), String> {
    let failed = |error: io::Error| format!("cannot receive: {error}");
    match received.map_err(failed)? {
        Ok(Datagram { len: 0, .. }) => Err("closed by the agent".to_owned()),
        Ok(Datagram {
            len,
            descriptor: None,
        }) => Ok((len, Attachment::Nothing)),
        Ok(Datagram {
            len,
            descriptor: Some(descriptor),
        }) => {
            let attachment = match Namespace::from_fd(descriptor) {
                Ok(namespace) => {
                    if !namespace.is_network() {
                        tracing::warn!("the node agent passed a descriptor that is no network namespace");
                    }
                    Attachment::Namespace {
                        id: namespace.id(),
                        namespace: Arc::new(namespace),
                    }
                }
                Err(error) => Attachment::Unusable(format!("cannot examine the descriptor: {error}")),
            };
            Ok((len, attachment))
        }
        Err(ReceiveError::Truncated) => Ok((0, Attachment::Truncated)),
        Err(ReceiveError::TooManyDescriptors { .. }) => Ok((0, Attachment::Several)),
        Err(ReceiveError::Io(error)) => Err(failed(error)),
    }
}

async fn send(connection: &AsyncFd<SeqPacket>, packet: &[u8]) -> io::Result<()> {
    connection
        .async_io(Interest::WRITABLE, |socket| socket.send(packet))
        .await
}
