//! The rules of ZDS: which pods the node agent wants proxied, and what it is answered.
//!
//! Runs on the control thread, pure: every input returns effects, the shell (`control::zds`) carries them out in
//! order. Specification: the agent's protocol (proto/zds.proto) and upstream's observable behaviour.
//!
//! Invariants:
//! - Every request is answered exactly once, and nothing is sent unasked except the hello: the agent matches
//!   answers to requests by position only.
//! - A pod is running, pending (its start failed and is retried) or unknown, never two of these.
//! - Whatever the agent sends, the pods that run go on running; only `del` and the end of a snapshot stop one.

use std::collections::{BTreeMap, BTreeSet};

use crate::bridge::{PodInfo, PodUid};
use crate::sys::netns::NamespaceId;
use crate::wire::zds::{self, Request, RequestError};

/// What travelled beside a packet. `N` is the open namespace.
#[derive(Debug)]
pub enum Attachment<N> {
    Nothing,
    Namespace {
        id: NamespaceId,
        namespace: N,
    },
    /// One descriptor that could not be examined; why.
    Unusable(String),
    /// More than one descriptor. The receiver closed them all.
    Several,
    /// The packet, or what came beside it, was longer than the room for it; the receiver closed what it got.
    Truncated,
}

/// What the shell does next.
#[derive(Debug, PartialEq)]
pub enum Effect<N> {
    /// Send this packet.
    Send(Vec<u8>),
    /// Create the pod's listeners, then call `Protocol::started` with the outcome.
    Start(Start<N>),
    /// Stop serving the pod at once.
    Stop(PodUid),
    /// Call `Protocol::retry` after `limits::ZDS_RETRY_DELAY`.
    ArmRetry,
    /// The conversation makes no sense any more: close the connection and make a new one. Why.
    Reconnect(String),
}

/// A pod to be started.
#[derive(Debug, Clone, PartialEq)]
pub struct Start<N> {
    pub uid: PodUid,
    pub info: PodInfo,
    pub id: NamespaceId,
    pub namespace: N,
    cause: Cause,
}

/// The state of the conversation and the pods known from it. One for the life of the process.
#[derive(Debug)]
pub struct Protocol<N> {
    phase: Phase,
    running: BTreeMap<PodUid, NamespaceId>,
    pending: BTreeMap<PodUid, Pending<N>>,
    retry_armed: bool,
}

impl<N: Clone> Protocol<N> {
    pub fn new() -> Self {
        Self {
            phase: Phase::Disconnected,
            running: BTreeMap::new(),
            pending: BTreeMap::new(),
            retry_armed: false,
        }
    }

    /// A connection was made. What was pending is forgotten, and with it the retry timer: the agent's snapshot
    /// names it again.
    pub fn connected(&mut self) -> Vec<Effect<N>> {
        self.phase = Phase::Snapshot {
            named: BTreeSet::new(),
        };
        self.pending.clear();
        self.retry_armed = false;
        vec![Effect::Send(zds::encode_hello())]
    }

    /// The connection is gone. Pods go on running.
    pub fn disconnected(&mut self) {
        self.phase = Phase::Disconnected;
    }

    /// One packet.
    pub fn received(&mut self, packet: &[u8], attachment: Attachment<N>) -> Vec<Effect<N>> {
        let namespace = match attachment {
            Attachment::Nothing => None,
            Attachment::Namespace { id, namespace } => Some(Ok((id, namespace))),
            Attachment::Unusable(why) => Some(Err(why)),
            Attachment::Several => {
                return refuse(Refusal::Read, "more than one descriptor came with a message");
            }
            Attachment::Truncated => return refuse(Refusal::Read, "received truncated message"),
        };
        let request = match Request::decode(packet) {
            Ok(request) => request,
            Err(error @ (RequestError::NoInfo { .. } | RequestError::NoUid { .. })) => {
                return refuse(Refusal::Process, &error.to_string());
            }
            Err(error @ (RequestError::Undecodable(_) | RequestError::Empty)) => {
                return refuse(Refusal::Read, &error.to_string());
            }
        };
        match (request, namespace) {
            (Request::Add { uid, info }, Some(Ok((id, namespace)))) => {
                self.add(PodUid::new(&uid), info.into(), id, namespace)
            }
            (Request::Add { uid, .. }, Some(Err(why))) => {
                self.name(&PodUid::new(&uid));
                vec![Effect::Send(nack(Refusal::Start, &why))]
            }
            (Request::Add { .. }, None) => refuse(
                Refusal::Read,
                "No control message: an add needs the descriptor of a network namespace",
            ),
            (Request::Keep { .. } | Request::Del { .. } | Request::SnapshotSent, Some(_)) => refuse(
                Refusal::Read,
                "Unexpected control message: only an add carries a descriptor",
            ),
            (Request::Keep { uid }, None) => self.keep(PodUid::new(&uid)),
            (Request::Del { uid }, None) => self.del(&PodUid::new(&uid)),
            (Request::SnapshotSent, None) => self.snapshot_sent(),
        }
    }

    /// The outcome of an `Effect::Start`; an error is what the agent is told.
    pub fn started(&mut self, start: Start<N>, outcome: Result<(), String>) -> Vec<Effect<N>> {
        let Start {
            uid,
            info,
            id,
            namespace,
            cause,
        } = start;
        let mut effects = Vec::new();
        let reply = match outcome {
            Ok(()) => {
                self.pending.remove(&uid);
                self.running.insert(uid, id);
                zds::encode_ack()
            }
            Err(why) => {
                self.pending.insert(uid, Pending { info, id, namespace });
                if !self.retry_armed {
                    self.retry_armed = true;
                    effects.push(Effect::ArmRetry);
                }
                nack(Refusal::Start, &why)
            }
        };
        match cause {
            Cause::Request => effects.push(Effect::Send(reply)),
            Cause::Retry => {}
        }
        effects
    }

    /// The retry timer fired.
    pub fn retry(&mut self) -> Vec<Effect<N>> {
        self.retry_armed = false;
        let start = |(uid, pending): (&PodUid, &Pending<N>)| {
            Effect::Start(Start {
                uid: uid.clone(),
                info: pending.info.clone(),
                id: pending.id,
                namespace: pending.namespace.clone(),
                cause: Cause::Retry,
            })
        };
        self.pending.iter().map(start).collect()
    }

    /// The agent's snapshot was received and every pod of it runs.
    pub fn is_ready(&self) -> bool {
        self.has_snapshot() && self.pending.is_empty()
    }

    /// The agent and the proxy understood each other on this connection.
    pub fn has_snapshot(&self) -> bool {
        match self.phase {
            Phase::Live => true,
            Phase::Disconnected | Phase::Snapshot { .. } => false,
        }
    }

    /// Pods whose start failed, to be tried again.
    pub fn pending(&self) -> impl Iterator<Item = (&PodUid, &PodInfo)> {
        self.pending.iter().map(|(uid, pending)| (uid, &pending.info))
    }

    pub fn pods_running(&self) -> usize {
        self.running.len()
    }

    pub fn pods_pending(&self) -> usize {
        self.pending.len()
    }

    fn add(&mut self, uid: PodUid, info: PodInfo, id: NamespaceId, namespace: N) -> Vec<Effect<N>> {
        self.name(&uid);
        let mut effects = Vec::new();
        match self.running.get(&uid) {
            // Said again, as after a reconnect: nothing is restarted, also when the info changed.
            Some(running) if *running == id => return vec![Effect::Send(zds::encode_ack())],
            Some(_) => {
                self.running.remove(&uid);
                effects.push(Effect::Stop(uid.clone()));
            }
            None => {}
        }
        effects.push(Effect::Start(Start {
            uid,
            info,
            id,
            namespace,
            cause: Cause::Request,
        }));
        effects
    }

    fn keep(&mut self, uid: PodUid) -> Vec<Effect<N>> {
        match &mut self.phase {
            Phase::Snapshot { named } => {
                named.insert(uid);
                vec![Effect::Send(zds::encode_ack())]
            }
            Phase::Live | Phase::Disconnected => refuse(Refusal::Process, "pod keep received after snapshot"),
        }
    }

    fn del(&mut self, uid: &PodUid) -> Vec<Effect<N>> {
        self.pending.remove(uid);
        let mut effects = Vec::new();
        match &mut self.phase {
            // Whether it runs is settled at the end of the snapshot.
            Phase::Snapshot { named } => {
                named.remove(uid);
            }
            Phase::Live | Phase::Disconnected => {
                if self.running.remove(uid).is_some() {
                    effects.push(Effect::Stop(uid.clone()));
                }
            }
        }
        effects.push(Effect::Send(zds::encode_ack()));
        effects
    }

    fn snapshot_sent(&mut self) -> Vec<Effect<N>> {
        let named = match std::mem::replace(&mut self.phase, Phase::Live) {
            Phase::Snapshot { named } => named,
            Phase::Live | Phase::Disconnected => {
                return refuse(Refusal::Process, "pod snapshot received already");
            }
        };
        let gone: Vec<PodUid> = self
            .running
            .keys()
            .filter(|uid| !named.contains(*uid))
            .cloned()
            .collect();
        let mut effects = Vec::with_capacity(gone.len() + 1);
        for uid in gone {
            self.running.remove(&uid);
            effects.push(Effect::Stop(uid));
        }
        effects.push(Effect::Send(zds::encode_ack()));
        effects
    }

    /// Remembers that the snapshot speaks of this pod.
    fn name(&mut self, uid: &PodUid) {
        match &mut self.phase {
            Phase::Snapshot { named } => {
                named.insert(uid.clone());
            }
            Phase::Live | Phase::Disconnected => {}
        }
    }
}

impl<N: Clone> Default for Protocol<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
enum Phase {
    Disconnected,
    /// `named`: the pods that the snapshot added or kept so far.
    Snapshot {
        named: BTreeSet<PodUid>,
    },
    Live,
}

#[derive(Debug)]
struct Pending<N> {
    info: PodInfo,
    id: NamespaceId,
    namespace: N,
}

/// Who waits for the outcome of a start: the agent for its answer, or nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Request,
    Retry,
}

/// What failed; the agent's log shows it in front of the reason.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    Read,
    Start,
    Process,
}

fn nack(refusal: Refusal, why: &str) -> Vec<u8> {
    let what = match refusal {
        Refusal::Read => "failure to read message",
        Refusal::Start => "failure to start proxy",
        Refusal::Process => "failure to process message",
    };
    zds::encode_nack(&format!("{what} : {why}"))
}

/// Answers, then starts over: after such a message agent and proxy no longer agree on what was said.
fn refuse<N>(refusal: Refusal, why: &str) -> Vec<Effect<N>> {
    vec![
        Effect::Send(nack(refusal, why)),
        Effect::Reconnect(why.to_owned()),
    ]
}

#[cfg(test)]
mod tests;
