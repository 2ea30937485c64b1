//! Choosing an endpoint: the tables of a service, and the pick made from them. Who builds them, and when, is `backing`'s.
//!
//! The tables are immutable and shared by every thread. Invariant: a pick touches at most two entries, however
//! many endpoints there are, because all filtering, ranking and weighing happened when the table was built.
//! Randomness comes in as an argument.
//!
//! Rejected: walking the endpoints per connection and drawing among those that rank highest. It reads more
//! simply and is what makes large services slow.

mod weighted;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use weighted::Weighted;

use super::address::PortMap;
use super::backing::{Backed, Workloads};
use super::service::{BalanceMode, Scope, Service};
use super::workload::Workload;
use crate::identity::Identity;

/// What the chosen endpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The connection ends there: only ports of the service count.
    Traffic,
    /// It is the next hop of a tunnel: an application tunnel may stand in for a port.
    Waypoint,
}

/// How an endpoint is drawn.
pub(super) struct Draw<'a> {
    pub random: &'a mut dyn FnMut() -> u64,
    /// How many of the preferences that the best endpoints match do not count, where a service fails over: for those who
    /// found out that the best ones do not answer.
    pub wider: usize,
}

/// A chosen endpoint.
#[derive(Debug)]
pub(super) struct Pick<'a> {
    pub workload: &'a Arc<Workload>,
    pub port: u16,
    /// The service's alternative names, then the endpoint's own identity.
    pub accepted: &'a Arc<[Identity]>,
}

/// The tables of one service.
#[derive(Debug)]
pub(super) struct Balance {
    candidates: Box<[Candidate]>,
    /// Whose endpoints they are, sorted, each once.
    identities: Box<[Identity]>,
    every: PerNetwork,
    /// For service ports with a target of 0: the endpoints that map them.
    named: HashMap<u16, PerNetwork>,
    /// For waypoint ports that are none of the service's.
    tunnels: PerNetwork,
}

#[derive(Debug)]
struct Candidate {
    workload: Arc<Workload>,
    ports: PortMap,
    accepted: Arc<[Identity]>,
}

/// Endpoints that have neither an address nor a name can be reached only through the gateway of another
/// network, so a source within that network must not see them.
#[derive(Debug, Clone, Default)]
struct PerNetwork {
    inside: HashMap<Arc<str>, Ranked>,
    elsewhere: Ranked,
}

/// Candidates by how well they match a source.
#[derive(Debug, Clone, Default)]
struct Ranked {
    preferences: Box<[Scope]>,
    strict: bool,
    root: Node,
    /// Only when `Network` comes first: the same candidates by the remaining preferences, for sources in
    /// whose network there are none.
    remote: Option<Node>,
}

/// Everything that shares the values of the first preferences, and below it what shares one more.
#[derive(Debug, Clone, Default)]
struct Node {
    weighted: Weighted,
    children: HashMap<Arc<str>, Node>,
}

impl Balance {
    pub fn build(backed: &Backed, workloads: &Workloads) -> Self {
        let service = &*backed.service;
        let candidates = candidates(backed, workloads);
        let of = |keep: &dyn Fn(&Candidate) -> bool| {
            let all = (0u32..).zip(&candidates);
            let chosen: Vec<u32> = all.filter(|(_, it)| keep(it)).map(|(at, _)| at).collect();
            match chosen.is_empty() {
                true => PerNetwork::default(),
                false => PerNetwork::build(service, &candidates, &chosen),
            }
        };
        let named_ports = service.ports.iter().filter(|(_, target)| *target == 0);
        let named = named_ports
            .map(|(port, _)| (port, of(&|candidate| candidate.ports.get(port).is_some())))
            .collect();
        Self {
            every: of(&|_| true),
            named,
            tunnels: of(&|candidate| candidate.workload.application_tunnel.is_some()),
            identities: identities(&candidates),
            candidates,
        }
    }

    /// True when an endpoint has this identity.
    pub fn has_identity(&self, identity: &Identity) -> bool {
        self.identities.binary_search(identity).is_ok()
    }

    pub fn pick(
        &self,
        service_ports: &PortMap,
        source: &Workload,
        port: u16,
        purpose: Purpose,
        draw: &mut Draw<'_>,
    ) -> Option<Pick<'_>> {
        let service_target = service_ports.get(port);
        let table = match (purpose, service_target) {
            (Purpose::Traffic, None) => return None,
            (Purpose::Traffic, Some(0)) => self.named.get(&port)?,
            (Purpose::Traffic | Purpose::Waypoint, Some(_)) => &self.every,
            (Purpose::Waypoint, None) => &self.tunnels,
        };
        let ranked = table.seen_from(&source.network);
        let at = ranked.best(source, draw.wider)?.draw(draw.random)?;
        let candidate = &self.candidates[at as usize];
        let tunnel_port = || {
            let tunnel = candidate.workload.application_tunnel.as_ref()?;
            tunnel.port.map(|_| port)
        };
        let target = candidate
            .ports
            .get(port)
            .or(service_target.filter(|target| *target > 0))
            .or_else(tunnel_port)?;
        Some(Pick {
            workload: &candidate.workload,
            port: target,
            accepted: &candidate.accepted,
        })
    }
}

impl PerNetwork {
    fn build(service: &Service, candidates: &[Candidate], chosen: &[u32]) -> Self {
        let workload = |at: &u32| &*candidates[*at as usize].workload;
        let hidden_networks: BTreeSet<&Arc<str>> = chosen
            .iter()
            .filter(|at| workload(at).is_unaddressed())
            .map(|at| &workload(at).network)
            .collect();
        let inside = hidden_networks.into_iter().map(|network| {
            let seen: Vec<u32> = chosen
                .iter()
                .copied()
                .filter(|at| !workload(at).is_unaddressed() || workload(at).network != *network)
                .collect();
            (network.clone(), Ranked::build(service, candidates, &seen))
        });
        Self {
            inside: inside.collect(),
            elsewhere: Ranked::build(service, candidates, chosen),
        }
    }

    fn seen_from(&self, network: &str) -> &Ranked {
        if self.inside.is_empty() {
            return &self.elsewhere;
        }
        self.inside.get(network).unwrap_or(&self.elsewhere)
    }
}

impl Ranked {
    fn build(service: &Service, candidates: &[Candidate], chosen: &[u32]) -> Self {
        let (preferences, strict): (Box<[Scope]>, bool) = match &service.load_balancer {
            None => (Box::default(), false),
            Some(balancer) => match balancer.mode {
                BalanceMode::Standard => (Box::default(), false),
                BalanceMode::Strict => (balancer.routing_preferences.clone().into(), true),
                // An endpoint of a service that passes through is chosen only when a waypoint or gateway is named by it.
                BalanceMode::Failover | BalanceMode::Passthrough => {
                    (balancer.routing_preferences.clone().into(), false)
                }
            },
        };
        let remote = match &*preferences {
            [Scope::Network, rest @ ..] if !strict => Some(Node::build(candidates, chosen, rest)),
            [..] => None,
        };
        Self {
            root: Node::build(candidates, chosen, &preferences),
            remote,
            strict,
            preferences,
        }
    }

    /// The candidates that match the longest run of leading preferences, and with them those that match all but the last
    /// `wider` of that run.
    fn best(&self, source: &Workload, wider: usize) -> Option<&Weighted> {
        let preferences = &*self.preferences;
        let (mut node, depth) = self.root.descend(source, preferences);
        if self.strict {
            return (depth == preferences.len()).then_some(&node.weighted);
        }
        match &self.remote {
            // Another network does not end the comparison when the network comes first: the remaining
            // preferences still rank the remote candidates among themselves.
            Some(remote) if depth == 0 => node = remote.ancestor(source, &preferences[1..], wider),
            Some(_) | None if wider == 0 => {}
            Some(_) | None => node = self.root.ancestor(source, preferences, wider),
        }
        Some(&node.weighted)
    }
}

impl Node {
    fn build(candidates: &[Candidate], chosen: &[u32], preferences: &[Scope]) -> Self {
        let mut children = HashMap::new();
        if let Some((first, rest)) = preferences.split_first() {
            let mut groups: HashMap<&Arc<str>, Vec<u32>> = HashMap::new();
            for &at in chosen {
                groups
                    .entry(scope_value(&candidates[at as usize].workload, *first))
                    .or_default()
                    .push(at);
            }
            children = groups
                .into_iter()
                .map(|(value, group)| (value.clone(), Self::build(candidates, &group, rest)))
                .collect();
        }
        Self {
            weighted: Weighted::build(chosen, |at| candidates[at as usize].workload.capacity),
            children,
        }
    }

    fn descend(&self, source: &Workload, preferences: &[Scope]) -> (&Self, usize) {
        let mut node = self;
        for (depth, scope) in preferences.iter().enumerate() {
            match node.children.get(scope_value(source, *scope)) {
                Some(child) => node = child,
                None => return (node, depth),
            }
        }
        (node, preferences.len())
    }

    /// What is `up` levels above the end of the descent.
    fn ancestor(&self, source: &Workload, preferences: &[Scope], up: usize) -> &Self {
        let (node, depth) = self.descend(source, preferences);
        match up {
            0 => node,
            _ => self.descend(source, &preferences[..depth.saturating_sub(up)]).0,
        }
    }
}

fn candidates(backed: &Backed, workloads: &Workloads) -> Box<[Candidate]> {
    let names = &backed.service.names;
    let mut sets: HashMap<&Identity, Arc<[Identity]>> = HashMap::new();
    let mut candidates: Vec<Candidate> = backed
        .workloads(workloads)
        .filter(|(workload, _)| !workload.is_unaddressed() || workload.network_gateway.is_some())
        .map(|(workload, ports)| {
            let accepted = if names.is_empty() {
                workload.accepted.clone()
            } else {
                let with_names = || {
                    names
                        .iter()
                        .chain([&workload.identity])
                        .cloned()
                        .collect::<Arc<[Identity]>>()
                };
                sets.entry(&workload.identity).or_insert_with(with_names).clone()
            };
            Candidate {
                workload: workload.clone(),
                ports: ports.clone(),
                accepted,
            }
        })
        .collect();
    // The order of endpoints is arbitrary; with a fixed one, equal draws give equal picks.
    candidates.sort_unstable_by(|a, b| a.workload.uid.cmp(&b.workload.uid));
    candidates.into()
}

/// Endpoints of one service mostly have one identity, which is one object.
fn identities(candidates: &[Candidate]) -> Box<[Identity]> {
    let mut identities: Vec<&Identity> = candidates.iter().map(|it| &it.workload.identity).collect();
    identities.dedup();
    identities.sort_unstable();
    identities.dedup();
    identities.into_iter().cloned().collect()
}

fn scope_value(workload: &Workload, scope: Scope) -> &Arc<str> {
    match scope {
        Scope::Region => &workload.site.locality.region,
        Scope::Zone => &workload.site.locality.zone,
        Scope::Subzone => &workload.site.locality.subzone,
        Scope::Node => &workload.site.node,
        Scope::Cluster => &workload.site.cluster_id,
        Scope::Network => &workload.network,
    }
}

#[cfg(test)]
mod tests;
