//! The authorization decision: whether the policies about a workload let a connection in.
//!
//! Pure functions over a snapshot, run by the workers when a connection arrives and again when policies
//! change. Invariant: a [`Permit`] exists only because `authorize` made it, and whoever delivers takes one.
//! Order: enforced DENY policies first, then ALLOW policies, and without any of those everything is allowed.

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Snapshot;
use super::policy::{Clause, Match, Policy, PolicyAction, Rule, ServiceAccountMatch, StringMatch};
use super::workload::Workload;
use crate::identity::Identity;

/// What a connection is judged by.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionFacts<'a> {
    /// The TCP peer; for a tunnel that is the tunnel's, which may be a waypoint.
    pub source: SocketAddr,
    /// Where the application takes it, after every mapping.
    pub destination: SocketAddr,
    /// The peer's verified identity; none for plain text.
    pub identity: Option<&'a Identity>,
}

/// The proof that a connection was authorized.
#[derive(Debug)]
pub struct Permit {
    reason: PermitReason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PermitReason {
    /// Nothing denied it, and no policy is there that allows only some.
    NoAllowPolicies,
    /// This rule allows it.
    AllowedBy(Matched),
}

/// The rule that made a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// The policy's key.
    pub policy: Arc<str>,
    /// Which of its rules, from 0 on.
    pub rule: usize,
}

/// Why a connection was not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    #[error("explicitly denied by: {}", .0.policy)]
    Explicit(Matched),
    #[error("allow policies exist, but none allowed")]
    NotAllowed,
}

/// What happened while policies were evaluated, for the log: the policy's key, and which of its rules matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyEvent<'a> {
    Denied(&'a str, usize),
    Allowed(&'a str, usize),
    DryRunDenied(&'a str, usize),
    DryRunAllowed(&'a str, usize),
    DryRunNothingAllowed,
    NoAllowPolicies,
    NothingAllowed,
    /// A workload names a policy that is not there.
    Unknown(&'a str),
}

impl Permit {
    pub fn reason(&self) -> &PermitReason {
        &self.reason
    }
}

/// Which policies are about a workload, to tell exactly and cheaply whether they have changed between two snapshots
/// of one builder.
#[derive(Debug, Clone)]
pub struct PolicySet {
    namespace: Arc<str>,
    /// Revisions of the lists of its namespace and of the whole mesh; 0 for none.
    lists: [u64; 2],
    /// Those that the workload names.
    named: Vec<Arc<Policy>>,
}

impl PartialEq for PolicySet {
    fn eq(&self, other: &Self) -> bool {
        self.namespace == other.namespace
            && self.lists == other.lists
            && self.named.len() == other.named.len()
            && std::iter::zip(&self.named, &other.named).all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

impl PolicyEvent<'_> {
    pub fn message(&self) -> &'static str {
        match self {
            Self::Denied(..) => "deny policy match",
            Self::Allowed(..) => "allow policy match",
            Self::DryRunDenied(..) => "dry-run: deny policy match",
            Self::DryRunAllowed(..) => "dry-run: allow policy match",
            Self::DryRunNothingAllowed => "dry-run: no allow policies match",
            Self::NoAllowPolicies => "no allow policies, allow",
            Self::NothingAllowed => "no allow policies matched",
            Self::Unknown(_) => "skipping unknown policy",
        }
    }

    pub fn policy(&self) -> Option<&str> {
        match self {
            Self::Denied(key, _)
            | Self::Allowed(key, _)
            | Self::DryRunDenied(key, _)
            | Self::DryRunAllowed(key, _)
            | Self::Unknown(key) => Some(key),
            Self::DryRunNothingAllowed | Self::NoAllowPolicies | Self::NothingAllowed => None,
        }
    }

    pub fn rule(&self) -> Option<usize> {
        match self {
            Self::Denied(_, rule)
            | Self::Allowed(_, rule)
            | Self::DryRunDenied(_, rule)
            | Self::DryRunAllowed(_, rule) => Some(*rule),
            Self::DryRunNothingAllowed | Self::NoAllowPolicies | Self::NothingAllowed | Self::Unknown(_) => {
                None
            }
        }
    }
}

impl Snapshot {
    /// Judges a connection to `destination`.
    pub fn authorize(
        &self,
        destination: &Workload,
        connection: &ConnectionFacts<'_>,
    ) -> Result<Permit, Denial> {
        self.authorize_observed(destination, connection, &mut |_| {})
    }

    /// The same; `observe` hears what matched on the way.
    pub fn authorize_observed(
        &self,
        destination: &Workload,
        connection: &ConnectionFacts<'_>,
        observe: &mut dyn FnMut(PolicyEvent<'_>),
    ) -> Result<Permit, Denial> {
        for key in destination.authorization_policies.iter() {
            if !self.index.policies.contains_key(key) {
                observe(PolicyEvent::Unknown(key));
            }
        }
        let facts = Facts::new(connection);
        let policies = |action: PolicyAction, dry_run: bool| {
            self.policies_for(destination)
                .filter(move |policy| policy.action == action && policy.dry_run == dry_run)
        };
        let first_match = |action, dry_run| {
            policies(action, dry_run).find_map(|policy| Some((&policy.key, matching_rule(policy, &facts)?)))
        };
        let matched = |policy: &Arc<str>, rule| Matched {
            policy: policy.clone(),
            rule,
        };

        if let Some((key, rule)) = first_match(PolicyAction::Deny, true) {
            observe(PolicyEvent::DryRunDenied(key, rule));
        }
        if let Some((key, rule)) = first_match(PolicyAction::Deny, false) {
            observe(PolicyEvent::Denied(key, rule));
            return Err(Denial::Explicit(matched(key, rule)));
        }
        let enforced = policies(PolicyAction::Allow, false).next().is_some();
        match first_match(PolicyAction::Allow, true) {
            Some((key, rule)) => observe(PolicyEvent::DryRunAllowed(key, rule)),
            None if !enforced && policies(PolicyAction::Allow, true).next().is_some() => {
                observe(PolicyEvent::DryRunNothingAllowed);
            }
            None => {}
        }
        if !enforced {
            observe(PolicyEvent::NoAllowPolicies);
            return Ok(Permit {
                reason: PermitReason::NoAllowPolicies,
            });
        }
        match first_match(PolicyAction::Allow, false) {
            Some((key, rule)) => {
                observe(PolicyEvent::Allowed(key, rule));
                Ok(Permit {
                    reason: PermitReason::AllowedBy(matched(key, rule)),
                })
            }
            None => {
                observe(PolicyEvent::NothingAllowed);
                Err(Denial::NotAllowed)
            }
        }
    }

    pub fn policy_set(&self, workload: &Workload) -> PolicySet {
        let by_namespace = &self.index.policies_by_namespace;
        let revision = |namespace: &str| by_namespace.get(namespace).map_or(0, |list| list.revision);
        PolicySet {
            namespace: workload.namespace.clone(),
            lists: [revision(&workload.namespace), revision("")],
            named: self.policies_named(workload).cloned().collect(),
        }
    }

    /// The policies about a workload: those of its namespace, the global ones, and those it names.
    fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        let by_namespace = &self.index.policies_by_namespace;
        let of = |namespace: &str| {
            by_namespace
                .get(namespace)
                .into_iter()
                .flat_map(|list| &list.policies)
        };
        of(&workload.namespace)
            .chain(of(""))
            .chain(self.policies_named(workload))
    }

    fn policies_named<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        workload
            .authorization_policies
            .iter()
            .filter_map(|key| self.index.policies.get(key))
    }
}

/// The facts in the form in which matches compare them.
struct Facts<'a> {
    source: IpAddr,
    destination: SocketAddr,
    identity: Option<&'a Identity>,
    /// The identity without its scheme, which is how policies write principals. Made when one asks.
    principal: OnceCell<String>,
}

impl<'a> Facts<'a> {
    fn new(connection: &ConnectionFacts<'a>) -> Self {
        let destination = connection.destination;
        Self {
            source: connection.source.ip().to_canonical(),
            destination: SocketAddr::new(destination.ip().to_canonical(), destination.port()),
            identity: connection.identity,
            principal: OnceCell::new(),
        }
    }

    fn has_principal(&self, pattern: &StringMatch) -> bool {
        self.identity.is_some_and(|identity| {
            let principal = self.principal.get_or_init(|| {
                let text = identity.to_string();
                text.strip_prefix("spiffe://").map_or(text.clone(), str::to_owned)
            });
            pattern.matches(principal)
        })
    }

    /// Without an identity the namespace is the empty text, which some patterns match.
    fn has_namespace(&self, pattern: &StringMatch) -> bool {
        pattern.matches(self.identity.map_or("", Identity::namespace))
    }

    fn has_service_account(&self, account: &ServiceAccountMatch) -> bool {
        self.identity.is_some_and(|identity| {
            identity.namespace() == &*account.namespace
                && identity.service_account() == &*account.service_account
        })
    }
}

fn matching_rule(policy: &Policy, facts: &Facts<'_>) -> Option<usize> {
    policy.rules.iter().position(|rule| rule_matches(rule, facts))
}

fn rule_matches(rule: &Rule, facts: &Facts<'_>) -> bool {
    rule.clauses.iter().all(|clause| clause_matches(clause, facts))
}

fn clause_matches(clause: &Clause, facts: &Facts<'_>) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|it| match_matches(it, facts))
}

/// A match without any field matches nothing, so that an empty one cannot open a workload to all.
fn match_matches(it: &Match, facts: &Facts<'_>) -> bool {
    let destination_ip = facts.destination.ip();
    let destination_port = facts.destination.port();
    !it.is_empty()
        && agrees(&it.destination_ips, &it.not_destination_ips, |range| {
            range.contains(&destination_ip)
        })
        && agrees(&it.destination_ports, &it.not_destination_ports, |port| {
            *port == destination_port
        })
        && agrees(&it.source_ips, &it.not_source_ips, |range| {
            range.contains(&facts.source)
        })
        && agrees(&it.principals, &it.not_principals, |pattern| {
            facts.has_principal(pattern)
        })
        && agrees(&it.namespaces, &it.not_namespaces, |pattern| {
            facts.has_namespace(pattern)
        })
        && agrees(&it.service_accounts, &it.not_service_accounts, |it| {
            facts.has_service_account(it)
        })
}

fn agrees<T>(positive: &[T], negative: &[T], mut hits: impl FnMut(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&mut hits)) && !negative.iter().any(&mut hits)
}

#[cfg(test)]
mod tests;
