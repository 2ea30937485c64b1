//! The client's side of delta discovery: what to ask, how to answer, what is held, and when to try again.
//!
//! Control thread, pure: time and randomness are arguments. The loop around it is `control::xds`.
//! Specification: sections 1.4 to 1.6 and 1.9 of the control-plane contract, and the delta protocol of xDS.
//!
//! Invariants: what is announced as held is held; a name that the server was not told of, because the list would
//! not fit a message, is taken out if the server does not send it again; no sequence of outcomes makes the client
//! try more often than once in `XDS_DELAY_MIN`, nor that often for longer than a stream or two.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

use super::envelope::Malformed;
use super::messages::discovery::{self, DeltaDiscoveryRequest, Node};
use super::version::Version;
use crate::clock::Instant;
use crate::control::spread;
use crate::limits;
use crate::mesh::{Fingerprint, Fingerprints, SteadyMap};

/// What is subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

/// What became of the resources of one response.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Name and version.
    pub accepted: Vec<(Arc<str>, Version)>,
    /// Name and reason.
    pub rejected: Vec<(Arc<str>, String)>,
    pub removed: Vec<String>,
    /// Of resources that have other names; only where names are asked for.
    pub aliases: Vec<Alias>,
}

/// Another name of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pub name: String,
    /// Whether the resource was.
    pub accepted: bool,
}

/// Why there is no stream any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Nobody answers at the server's address.
    Unreachable(String),
    /// We have no roots to trust it by, or no token to show.
    NotTried(String),
    /// No stream was opened for any other reason.
    NotOpened(String),
    /// The server, or the connection, ended the stream with a status.
    Status { code: Code, message: String },
    /// The server ended the stream without complaint.
    Complete,
    /// We ended it: the server sent what is no response.
    Malformed(Malformed),
}

#[derive(Debug)]
pub struct Protocol {
    node: Node,
    address: Subscription,
    authorization: Subscription,
    delay: Duration,
    /// Whether the current stream brought anything.
    answered: bool,
    /// Addresses are asked for one by one.
    on_demand: bool,
}

/// What is held of one kind.
#[derive(Debug, Default)]
struct Subscription {
    /// By the fingerprints of their names: name and version.
    held: SteadyMap<Fingerprint, (Arc<str>, Version)>,
    fingerprints: Fingerprints,
    /// A response without a fault was received, now or on an earlier stream.
    synced: bool,
    /// Held, but the server does not know it on this stream, and has not sent it.
    unannounced: BTreeSet<Arc<str>>,
    sweep_at: Option<Instant>,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
        }
    }

    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

impl Protocol {
    pub fn new(node: Node) -> Self {
        Self {
            node,
            address: Subscription::default(),
            authorization: Subscription::default(),
            delay: limits::XDS_DELAY_MIN,
            answered: false,
            on_demand: false,
        }
    }

    /// Asks for no address but what is held.
    pub fn on_demand(self) -> Self {
        Self {
            on_demand: true,
            ..self
        }
    }

    /// A stream is about to be opened: its first requests, and warnings about them.
    pub fn opened(&mut self) -> (Vec<DeltaDiscoveryRequest>, Vec<String>) {
        self.answered = false;
        let mut warnings = Vec::new();
        let requests = Kind::ALL.map(|kind| {
            let mut request = DeltaDiscoveryRequest {
                node: Some(self.node.clone()),
                type_url: kind.type_url().to_owned(),
                ..DeltaDiscoveryRequest::default()
            };
            if self.on_demand && kind == Kind::Address {
                // Everything and not everything: how a client says that it begins with nothing.
                request.resource_names_subscribe = vec!["*".to_owned()];
                request.resource_names_unsubscribe = vec!["*".to_owned()];
            }
            let budget = limits::XDS_REQUEST_BYTES_MAX.saturating_sub(request.encoded_len());
            request.initial_resource_versions = self.of(kind).announce(kind, budget, &mut warnings);
            request
        });
        (requests.into(), warnings)
    }

    /// A part of what was accepted of a response that `answer` is about to be asked about.
    pub fn hold(&mut self, kind: Kind, accepted: impl Iterator<Item = (Arc<str>, Version)>) {
        self.of(kind).hold(accepted);
    }

    /// A response was dealt with: what to answer.
    pub fn answer(
        &mut self,
        type_url: &str,
        nonce: &str,
        verdict: Verdict,
        now: Instant,
    ) -> DeltaDiscoveryRequest {
        self.answered = true;
        let error_detail = (!verdict.rejected.is_empty()).then(|| discovery::Status {
            code: 0,
            message: refusal(&verdict.rejected),
        });
        if let Some(kind) = Kind::of(type_url) {
            self.of(kind).received(verdict, now);
        }
        DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Every kind that is asked for as a whole was once received without a fault. Stays true.
    pub fn is_synced(&self) -> bool {
        (self.address.synced || self.on_demand) && self.authorization.synced
    }

    /// When `sweep` has something to do.
    pub fn sweep_at(&self) -> Option<Instant> {
        [self.address.sweep_at, self.authorization.sweep_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// What the server had not been told of and did not send: it is no more.
    pub fn sweep(&mut self, now: Instant) -> Vec<(Kind, Arc<str>)> {
        let mut gone = Vec::new();
        for kind in Kind::ALL {
            let names = self.of(kind).sweep(now);
            gone.extend(names.into_iter().map(|name| (kind, name)));
        }
        gone
    }

    /// How many resources are held.
    pub fn held(&self, kind: Kind) -> usize {
        match kind {
            Kind::Address => self.address.held.len(),
            Kind::Authorization => self.authorization.held.len(),
        }
    }

    /// The stream ended, `lived` after the attempt to open it began: how long to wait before the next attempt.
    /// `random` in 0..1 spreads the nodes of a mesh, which all lose their server at once, by 20 %.
    pub fn ended(&mut self, ended: &Ended, lived: Duration, random: f64) -> Duration {
        for kind in Kind::ALL {
            self.of(kind).sweep_at = None;
        }
        // A stream that did its work is no failure. One that was over at once is, however it ended, or a server
        // that ends every stream would be asked without a pause.
        let settled = self.answered && lived >= limits::XDS_STREAM_SETTLED;
        self.answered = false;
        if settled {
            self.delay = limits::XDS_DELAY_MIN;
        }
        let again_at_once = settled
            && match ended {
                Ended::Complete => true,
                Ended::Status { .. } => ended.is_reconnect(),
                Ended::Unreachable(_) | Ended::NotTried(_) | Ended::NotOpened(_) | Ended::Malformed(_) => {
                    false
                }
            };
        if !again_at_once {
            let longest = match ended {
                // Nothing works before the first sync, and a refused connection costs nobody anything.
                Ended::Unreachable(_) if !self.is_synced() => limits::XDS_DELAY_STARTING_MAX,
                _ => limits::XDS_DELAY_MAX,
            };
            self.delay = (self.delay * 2).min(longest);
        }
        spread(self.delay, random)
    }

    fn of(&mut self, kind: Kind) -> &mut Subscription {
        match kind {
            Kind::Address => &mut self.address,
            Kind::Authorization => &mut self.authorization,
        }
    }
}

impl Ended {
    pub fn of_status(status: &Status) -> Self {
        Self::Status {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }

    /// The server went away in good order, as it does when it is restarted.
    pub fn is_reconnect(&self) -> bool {
        match self {
            Self::Status { code, message } => is_reconnect(*code, message),
            Self::Unreachable(_)
            | Self::NotTried(_)
            | Self::NotOpened(_)
            | Self::Complete
            | Self::Malformed(_) => false,
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(why) | Self::NotTried(why) | Self::NotOpened(why) => f.write_str(why),
            Self::Status { code, message } => {
                write!(f, "gRPC status {code:?}: {message}")?;
                if message.contains("authentication failure") {
                    f.write_str(" (hint: check the control plane logs for more information)")?;
                }
                Ok(())
            }
            Self::Complete => f.write_str("the control plane ended the stream"),
            Self::Malformed(error) => write!(f, "{error}"),
        }
    }
}

impl Subscription {
    fn announce(
        &mut self,
        kind: Kind,
        budget_bytes: usize,
        warnings: &mut Vec<String>,
    ) -> BTreeMap<String, String> {
        self.unannounced.clear();
        self.sweep_at = None;
        let mut announced = BTreeMap::new();
        let mut bytes = 0;
        for (_, (name, version)) in self.held.iter() {
            bytes += name.len() + version.len() + ENTRY_BYTES;
            if bytes <= budget_bytes {
                announced.insert(name.to_string(), version.to_string());
            } else {
                self.unannounced.insert(name.clone());
            }
        }
        if bytes > limits::XDS_REQUEST_BYTES_WARN {
            let (all, left_out) = (self.held.len(), self.unannounced.len());
            warnings.push(format!(
                "the list of the {all} {kind:?} resources that are held takes {bytes} bytes, and control planes take \
                 {} in one message: {left_out} are left out of it (beyond {budget_bytes} bytes), so that the \
                 control plane sends them again",
                limits::GRPC_MESSAGE_BYTES_DEFAULT
            ));
        }
        announced
    }

    fn received(&mut self, verdict: Verdict, now: Instant) {
        if verdict.rejected.is_empty() {
            self.synced = true;
        }
        if !self.unannounced.is_empty() {
            self.sweep_at.get_or_insert(now + limits::XDS_SWEEP_DELAY);
        }
        // What is refused keeps the version before it, if there was one: it is in force.
        for (name, _) in &verdict.rejected {
            self.unannounced.remove(name);
        }
        self.hold(verdict.accepted.into_iter());
        // Last, as they are applied last.
        for name in &verdict.removed {
            self.unannounced.remove(name.as_str());
            self.held.remove(&self.fingerprint(name));
        }
    }

    fn hold(&mut self, mut accepted: impl Iterator<Item = (Arc<str>, Version)>) {
        loop {
            let slice = accepted.by_ref().take(limits::XDS_SLICE);
            let slice: Vec<_> = slice.map(|held| (self.fingerprint(&held.0), held)).collect();
            if slice.is_empty() {
                return;
            }
            // Side by side, so that none waits for the memory of another.
            for (fingerprint, _) in &slice {
                let before = self.held.get(fingerprint);
                black_box(before.map(|(name, _)| Arc::strong_count(name)));
            }
            for (fingerprint, held) in slice {
                self.unannounced.remove(&held.0);
                self.held.insert(fingerprint, held);
            }
        }
    }

    /// If by chance two names had one, only the last would be announced, and the other one be sent again.
    fn fingerprint(&self, name: &str) -> Fingerprint {
        self.fingerprints.of(name.as_bytes())
    }

    fn sweep(&mut self, now: Instant) -> BTreeSet<Arc<str>> {
        if self.sweep_at.is_none_or(|at| at > now) {
            return BTreeSet::new();
        }
        self.sweep_at = None;
        let gone = std::mem::take(&mut self.unannounced);
        for name in &gone {
            self.held.remove(&self.fingerprint(name));
        }
        gone
    }
}

/// Tags and lengths of a map entry with texts below 2 MiB.
const ENTRY_BYTES: usize = 1 + 4 + 2 * (1 + 3);

/// What a server, or a proxy in front of it, says when it goes away.
fn is_reconnect(code: Code, message: &str) -> bool {
    match code {
        Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => true,
        Code::Unavailable => {
            message.contains("transport is closing") || message.contains("received prior goaway")
        }
        _ => false,
    }
}

/// `name: reason; name: reason`, as far as it fits.
fn refusal(rejected: &[(Arc<str>, String)]) -> String {
    let mut text = String::new();
    for (at, (name, reason)) in rejected.iter().enumerate() {
        let entry = format!("{name}: {reason}");
        if at > 0 && text.len() + entry.len() > limits::XDS_NACK_TEXT_BYTES_MAX {
            text.push_str(&format!("; and {} more", rejected.len() - at));
            break;
        }
        if at > 0 {
            text.push_str("; ");
        }
        text.push_str(&entry);
    }
    text
}

#[cfg(test)]
mod tests;
