//! The mesh as the proxies of a plan are told of it.

use std::sync::Arc;

use uztunnel::mesh::{
    Builder, Clause, LocalState, Locale, Match, NamespacedHostname, NetworkAddress, Policy, PolicyAction,
    PolicyScope, Rule, Service, Snapshot, TunnelProtocol, Workload,
};

use crate::plan::{PORT_FIRST, Plan};
use crate::proxy::{identity, name};

/// The state of one node: who may not talk to whom changes while it runs.
pub struct Mesh {
    builder: Builder,
}

impl Mesh {
    pub fn new(plan: &Plan, node: usize) -> Self {
        let mut builder = Builder::new(Locale {
            node: Some(node_name(node)),
            captured_ports: Arc::new([15001, 15006, 15008]),
            ..Locale::default()
        });
        builder.load(state(plan));
        Self { builder }
    }

    pub fn deny(&mut self, plan: &Plan, client: usize, server: usize, denied: bool) {
        let name = format!("deny-{client}-{server}");
        if !denied {
            self.builder.remove_policy(&format!("sim/{name}"));
            return;
        }
        let all = |pod: usize| plan.pods[pod].addresses.iter().map(|ip| (*ip).into()).collect();
        let between = Match {
            source_ips: all(client),
            destination_ips: all(server),
            ..Match::default()
        };
        self.builder.insert_policy(Policy {
            key: format!("sim/{name}").into(),
            name: name.into(),
            namespace: "sim".into(),
            scope: PolicyScope::Namespace,
            action: PolicyAction::Deny,
            dry_run: false,
            rules: vec![Rule {
                clauses: vec![Clause {
                    matches: vec![between],
                }],
            }],
        });
    }

    pub fn snapshot(&mut self) -> Snapshot {
        self.builder.build()
    }
}

fn node_name(node: usize) -> Arc<str> {
    format!("node-{node}").into()
}

fn state(plan: &Plan) -> LocalState {
    let mut state = LocalState::default();
    for (number, pod) in plan.pods.iter().enumerate() {
        let name = name(number);
        let uid = format!("sim//Pod/sim/{name}");
        let mut workload = Workload::new(&uid, &name, identity(pod.account)).on_node(&node_name(pod.node));
        workload.addresses = pod.addresses.iter().copied().collect();
        workload.protocol = match pod.meshed {
            true => TunnelProtocol::Hbone,
            false => TunnelProtocol::Tcp,
        };
        for (service, described) in plan.services.iter().enumerate() {
            if described.pods.contains(&number) {
                let key = NamespacedHostname::new("sim", &service_name(service));
                workload.join(key, ports(plan));
            }
        }
        state.workloads.push(workload);
    }
    for (number, described) in plan.services.iter().enumerate() {
        let hostname = service_name(number);
        let mut service = Service::new(&hostname, "sim", &hostname);
        service.vips = vec![NetworkAddress::new("", described.address)];
        service.ports = ports(plan);
        state.services.push(service);
    }
    state
}

fn service_name(service: usize) -> String {
    format!("service-{service}.sim")
}

/// Every connection's port, which is the same on both sides.
fn ports(plan: &Plan) -> uztunnel::mesh::PortMap {
    let number = |connection: &crate::plan::ConnectionPlan| PORT_FIRST + connection.number as u16;
    plan.connections
        .iter()
        .map(|connection| (number(connection), number(connection)))
        .collect()
}
