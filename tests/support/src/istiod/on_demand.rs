//! What the rig's control plane sends to those that ask by name, as istiod does it: the pods of the client's node
//! unasked, whatever was asked for by name or by address, and with a service its endpoints. What was sent is subscribed
//! to; a name that is asked for twice is answered once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost::Message;

use super::Resource;
use super::messages::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use super::messages::workload as wire;

/// Of one stream and the type `Address`.
#[derive(Debug, Default)]
pub(super) struct OnDemand {
    node: String,
    subscribed: BTreeSet<String>,
}

/// What is to be sent.
pub(super) struct Found<'a> {
    pub resources: Vec<&'a Resource>,
    pub removed: Vec<String>,
}

impl OnDemand {
    /// From the first request of a client that begins with nothing.
    pub fn of(first: &DeltaDiscoveryRequest) -> Option<Self> {
        let nothing = ["*".to_owned()];
        let is_on_demand =
            first.resource_names_subscribe == nothing && first.resource_names_unsubscribe == nothing;
        let node = first.node.as_ref()?.metadata.as_ref()?.fields.get("NODE_NAME")?;
        let Some(prost_types::value::Kind::StringValue(node)) = &node.kind else {
            return None;
        };
        is_on_demand.then(|| Self {
            node: node.clone(),
            subscribed: first.initial_resource_versions.keys().cloned().collect(),
        })
    }

    /// In answer to the first request: what changed of what is held, and the node's pods.
    pub fn first<'a>(
        &mut self,
        held: &'a BTreeMap<String, Resource>,
        known: &HashMap<String, String>,
    ) -> Found<'a> {
        let wanted = held.values().filter(|resource| {
            self.subscribed.contains(&resource.name)
                || workload(&resource.value).is_some_and(|workload| workload.node == self.node)
        });
        let missing = |resource: &&Resource| known.get(&resource.name) != Some(&resource.version);
        let resources = wanted.filter(missing).collect();
        let removed = known.keys().filter(|name| !held.contains_key(*name));
        let removed = removed.cloned().collect();
        self.sent(Found { resources, removed })
    }

    /// In answer to a further request; `None` if it asks for nothing new.
    pub fn asked<'a>(
        &mut self,
        held: &'a BTreeMap<String, Resource>,
        request: &DeltaDiscoveryRequest,
    ) -> Option<Found<'a>> {
        for name in &request.resource_names_unsubscribe {
            self.subscribed.remove(name);
        }
        let names: Vec<&String> = request
            .resource_names_subscribe
            .iter()
            .filter(|name| !request.resource_names_unsubscribe.contains(name))
            .filter(|name| self.subscribed.insert((*name).clone()))
            .collect();
        if names.is_empty() {
            return None;
        }
        let mut found = Found {
            resources: Vec::new(),
            removed: Vec::new(),
        };
        for name in names {
            let named = |resource: &&Resource| resource.name == *name || aliases(resource).contains(name);
            let resources: Vec<&Resource> = held.values().filter(named).collect();
            if resources.is_empty() {
                found.removed.push(name.clone());
            }
            for resource in resources {
                let endpoints = held.values().filter(|it| is_endpoint(it, &resource.name));
                found.resources.extend(endpoints);
                found.resources.push(resource);
            }
        }
        Some(self.sent(found))
    }

    /// Takes out of a change what this client does not hear of.
    pub fn reduce(&mut self, change: &mut DeltaDiscoveryResponse) {
        change.resources.retain(|resource| {
            let value = resource.resource.as_ref().map(|any| &any.value[..]);
            let is_own = || value.and_then(workload).is_some_and(|it| it.node == self.node);
            self.subscribed.contains(&resource.name) || is_own()
        });
        let names = change.resources.iter().map(|resource| resource.name.clone());
        self.subscribed.extend(names);
        change
            .removed_resources
            .retain(|name| self.subscribed.contains(name));
    }

    fn sent<'a>(&mut self, found: Found<'a>) -> Found<'a> {
        let names = found.resources.iter().map(|resource| resource.name.clone());
        self.subscribed.extend(names);
        found
    }
}

/// The addresses of a resource, as clients ask for them.
fn aliases(resource: &Resource) -> Vec<String> {
    let name = |network: &str, address: &[u8]| {
        let ip = match address.len() {
            4 => <[u8; 4]>::try_from(address).ok().map(std::net::IpAddr::from),
            _ => <[u8; 16]>::try_from(address).ok().map(std::net::IpAddr::from),
        };
        ip.map(|ip| format!("{network}/{ip}"))
    };
    let address = wire::Address::decode(&resource.value[..]);
    match address.ok().and_then(|address| address.r#type) {
        Some(wire::address::Type::Workload(workload)) => {
            let addresses = workload.addresses.iter();
            addresses.filter_map(|ip| name(&workload.network, ip)).collect()
        }
        Some(wire::address::Type::Service(service)) => {
            let addresses = service.addresses.iter();
            addresses
                .filter_map(|vip| name(&vip.network, &vip.address))
                .collect()
        }
        None => Vec::new(),
    }
}

/// With the names by which resources may be asked for.
pub(super) fn response(nonce: &str, found: Found<'_>) -> DeltaDiscoveryResponse {
    let resources = found.resources.iter().copied();
    let mut response = super::response(super::ADDRESS, nonce, resources, found.removed);
    for (told, resource) in response.resources.iter_mut().zip(&found.resources) {
        told.aliases = aliases(resource);
    }
    response
}

fn workload(address: &[u8]) -> Option<wire::Workload> {
    match wire::Address::decode(address).ok()?.r#type? {
        wire::address::Type::Workload(workload) => Some(workload),
        wire::address::Type::Service(_) => None,
    }
}

fn is_endpoint(resource: &Resource, service: &str) -> bool {
    workload(&resource.value).is_some_and(|workload| workload.services.contains_key(service))
}
