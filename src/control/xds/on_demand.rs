//! What is asked for by name: who waits for which answer, and what the control plane is to be told of it.
//!
//! Control thread, pure: time is an argument. Without `XDS_ON_DEMAND` there is none of it. Specification: section 1.8
//! of the control-plane contract.
//!
//! A name is asked for once, whoever wants it, and what is found stays subscribed to. The answer may have another name
//! and carry the one that was asked for as an alias. A control plane answers a subscription once: a name that turned
//! out to be nobody's is remembered for `limits::LOOKUP_ABSENT_KEPT`, then unsubscribed from, so that it can be asked
//! for again. While there is no stream it stays nobody's, as everything that is known stays in force. An answer may
//! cross an unsubscription: what came under its own name is subscribed to all the same, or nothing more would be told of
//! it.
//!
//! Invariants: questions that wait, and names remembered, are bounded; who asked is answered once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::messages::discovery::DeltaDiscoveryRequest;
use super::protocol::{Kind, Verdict};
use crate::bridge::PodUid;
use crate::bridge::lookups::{LookupAnswer, LookupError, Question};
use crate::clock::Instant;
use crate::limits;
use crate::mesh::GatewayTarget;

/// An answer, and the worker that waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub worker: usize,
    pub question: Question,
    pub answer: LookupAnswer,
}

#[derive(Debug, Default)]
pub struct OnDemand {
    names: BTreeMap<Arc<str>, Entry>,
    /// When an entry's time is over.
    due: BTreeSet<(Instant, Arc<str>)>,
    /// Of the names that are waited for, each counted for the pod that asked first.
    parts: limits::Parts<PodUid, { limits::LOOKUPS_MAX }>,
    connected: bool,
    /// Told to the server on this stream.
    subscribed: BTreeSet<Arc<str>>,
    /// Unsubscribed from on this stream, and not subscribed to since: at least the last `limits::LOOKUPS_LEFT_MAX`,
    /// and those before them.
    left: [BTreeSet<Arc<str>>; 2],
    /// To be told, before `subscribe`.
    unsubscribe: BTreeSet<Arc<str>>,
    subscribe: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
enum Entry {
    Waiting {
        target: GatewayTarget,
        asked_by: PodUid,
        workers: BTreeSet<usize>,
        until: Instant,
    },
    /// Nobody's. Without an end while there is no stream.
    Absent { until: Option<Instant> },
}

/// What a response says about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Is,
    IsNot,
    /// It cannot be used.
    IsRefused,
}

impl OnDemand {
    /// A worker asks for a pod. The answer, if it is known already.
    pub fn ask(
        &mut self,
        worker: usize,
        pod: &PodUid,
        target: &GatewayTarget,
        now: Instant,
    ) -> Option<LookupAnswer> {
        let name: Arc<str> = target.to_string().into();
        match self.names.get_mut(&name) {
            Some(Entry::Absent { .. }) => return Some(Ok(Arc::default())),
            Some(Entry::Waiting { workers, until, .. }) => {
                workers.insert(worker);
                self.due.remove(&(*until, name.clone()));
                *until = now + limits::LOOKUP_FORGOTTEN_AFTER;
                self.due.insert((*until, name));
                return None;
            }
            None => {}
        }
        if !self.parts.take(pod) {
            let limit = limits::LOOKUPS_MAX;
            return Some(Err(LookupError::TooMany { limit }));
        }
        let until = now + limits::LOOKUP_FORGOTTEN_AFTER;
        let entry = Entry::Waiting {
            target: target.clone(),
            asked_by: pod.clone(),
            workers: [worker].into(),
            until,
        };
        self.names.insert(name.clone(), entry);
        self.due.insert((until, name.clone()));
        if self.connected {
            self.want(name, target);
        }
        None
    }

    /// Whether a connection of a worker waits for an answer.
    pub fn is_waiting(&self) -> bool {
        self.parts.taken() > 0
    }

    /// A stream was opened: what is waited for is asked for again.
    pub fn opened(&mut self) {
        self.connected = true;
        self.subscribed.clear();
        self.names
            .retain(|_, entry| matches!(entry, Entry::Waiting { .. }));
        let waited_for = self.names.iter().filter_map(|(name, entry)| match entry {
            Entry::Waiting { target, .. } => Some((name.clone(), target.clone())),
            Entry::Absent { .. } => None,
        });
        for (name, target) in waited_for.collect::<Vec<_>>() {
            self.want(name, &target);
        }
    }

    /// The stream ended.
    pub fn closed(&mut self) {
        self.connected = false;
        self.subscribe.clear();
        self.unsubscribe.clear();
        self.left = Default::default();
        for (name, entry) in &mut self.names {
            if let Entry::Absent { until } = entry
                && let Some(until) = until.take()
            {
                self.due.remove(&(until, name.clone()));
            }
        }
    }

    /// A response was dealt with: who is to hear of it.
    pub fn heard(&mut self, verdict: &Verdict, now: Instant) -> Vec<Reply> {
        let mut replies = Vec::new();
        if self.names.is_empty() && self.unsubscribe.is_empty() && self.left.iter().all(BTreeSet::is_empty) {
            return replies;
        }
        let refused = verdict
            .rejected
            .iter()
            .map(|(name, _)| (&**name, Said::IsRefused));
        let accepted = verdict.accepted.iter().map(|(name, _)| (&**name, Said::Is));
        let aliases = verdict.aliases.iter().map(|alias| match alias.accepted {
            true => (&*alias.name, Said::Is),
            false => (&*alias.name, Said::IsRefused),
        });
        // What is removed goes last, as it is applied last.
        let removed = verdict.removed.iter().map(|name| (&**name, Said::IsNot));
        for (name, said) in refused.chain(accepted).chain(aliases).chain(removed) {
            self.hear(name, said, now, &mut replies);
        }
        for (name, _) in &verdict.accepted {
            self.keep(name);
        }
        replies
    }

    /// Whether it was asked for on this stream, as far as that is remembered.
    pub fn has_asked(&self, name: &str) -> bool {
        self.subscribed.contains(name) || self.left.iter().any(|left| left.contains(name))
    }

    /// When `expire` has something to do.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Forgets what was nobody's for long enough, and gives up what was not answered.
    pub fn expire(&mut self, now: Instant) -> Vec<Reply> {
        let mut replies = Vec::new();
        while let Some((at, _)) = self.due.first()
            && *at <= now
        {
            let (_, name) = self.due.pop_first().expect("invariant: there is a first one");
            match self.names.remove(&name) {
                Some(Entry::Waiting {
                    target,
                    asked_by,
                    workers,
                    ..
                }) => {
                    self.parts.give_back(&asked_by);
                    self.subscribe.remove(&name);
                    // What it says later is not waited for any more.
                    self.leave(name.clone());
                    let error = LookupError::NoAnswer {
                        name,
                        seconds: limits::LOOKUP_FORGOTTEN_AFTER.as_secs(),
                    };
                    answer(target, workers, &Err(error), &mut replies);
                }
                Some(Entry::Absent { .. }) => self.leave(name),
                None => {}
            }
        }
        replies
    }

    /// Whether `next_request` has something to say.
    pub fn has_request(&self) -> bool {
        !(self.unsubscribe.is_empty() && self.subscribe.is_empty())
    }

    /// What the server is to be told next, a bounded number of names at a time.
    pub fn next_request(&mut self) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest {
            type_url: Kind::Address.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        // Apart from each other: a name that is in both is to be asked for anew.
        let is_leaving = !self.unsubscribe.is_empty();
        let names = match is_leaving {
            true => &mut self.unsubscribe,
            false => &mut self.subscribe,
        };
        let rest = names.iter().nth(limits::LOOKUPS_REQUEST_MAX).cloned();
        let later = rest.map(|first| names.split_off(&first)).unwrap_or_default();
        for name in std::mem::replace(names, later) {
            if is_leaving {
                request.resource_names_unsubscribe.push(name.to_string());
                self.subscribed.remove(&name);
                self.has_left(name);
            } else {
                request.resource_names_subscribe.push(name.to_string());
                self.has_not_left(&name);
                self.subscribed.insert(name);
            }
        }
        request
    }

    fn hear(&mut self, name: &str, said: Said, now: Instant, replies: &mut Vec<Reply>) {
        let Some((name, entry)) = self.names.remove_entry(name) else {
            return;
        };
        match entry {
            Entry::Waiting {
                target,
                asked_by,
                workers,
                until,
            } => {
                self.parts.give_back(&asked_by);
                self.due.remove(&(until, name.clone()));
                self.subscribe.remove(&name);
                let told = match said {
                    Said::Is | Said::IsNot => Ok(Arc::default()),
                    Said::IsRefused => Err(LookupError::Refused { name: name.clone() }),
                };
                answer(target, workers, &told, replies);
            }
            Entry::Absent { until } => {
                if let Some(until) = until {
                    self.due.remove(&(until, name.clone()));
                }
            }
        }
        match said {
            Said::IsNot if self.names.len() - self.parts.taken() < limits::LOOKUPS_ABSENT_MAX => {
                let until = now + limits::LOOKUP_ABSENT_KEPT;
                self.due.insert((until, name.clone()));
                self.names.insert(name, Entry::Absent { until: Some(until) });
            }
            // One more that is refused may be asked for again at once: it may have been mended.
            Said::IsNot | Said::IsRefused => self.leave(name),
            Said::Is => {}
        }
    }

    /// What is held under this name from now on is to be told of as long as it is there.
    fn keep(&mut self, name: &Arc<str>) {
        self.unsubscribe.remove(name);
        if self.has_not_left(name) {
            self.subscribe.insert(name.clone());
        }
    }

    fn has_left(&mut self, name: Arc<str>) {
        if self.left[0].len() == limits::LOOKUPS_LEFT_MAX {
            self.left[1] = std::mem::take(&mut self.left[0]);
        }
        self.left[0].insert(name);
    }

    /// Whether it had.
    fn has_not_left(&mut self, name: &str) -> bool {
        let [last, before] = &mut self.left;
        last.remove(name) | before.remove(name)
    }

    /// To be asked for, after it was left if the server may count it as subscribed: it would not answer. Host names are
    /// also resources' own, which count when the server has sent them unasked, or when they were announced as held at
    /// the stream's beginning; that one is no more does not change that.
    fn want(&mut self, name: Arc<str>, target: &GatewayTarget) {
        let may_count = match target {
            GatewayTarget::Hostname(_) => true,
            GatewayTarget::Address(_) => self.subscribed.contains(&name),
        };
        if may_count {
            self.unsubscribe.insert(name.clone());
        }
        self.subscribe.insert(name);
    }

    fn leave(&mut self, name: Arc<str>) {
        if self.connected && self.subscribed.contains(&name) {
            self.unsubscribe.insert(name);
        }
    }
}

fn answer(target: GatewayTarget, workers: BTreeSet<usize>, answer: &LookupAnswer, replies: &mut Vec<Reply>) {
    for worker in workers {
        replies.push(Reply {
            worker,
            question: Question::Mesh(target.clone()),
            answer: answer.clone(),
        });
    }
}

#[cfg(test)]
mod tests;
