//! Who the ends of a connection are, taken from the decision that was made about it. Pure: snapshots come in.

use std::sync::Arc;

use super::Account;
use crate::bridge::traffic::Original;
use crate::identity::Identity;
use crate::mesh::{Delivery, Plan, Snapshot, Way, Workload};
use crate::wire::baggage::Baggage;
use crate::wire::hbone::{IncomingRequest, forwarded_host};

impl Account {
    /// What a connection of `source` is by its plan; once more when another endpoint is tried.
    pub fn describe_outbound(&mut self, source: &Arc<Workload>, plan: &Plan) {
        let hop = match &plan.way {
            Way::Tcp { .. } => None,
            Way::Hbone(hop) => Some(hop),
            Way::DoubleHbone(hop) => Some(&hop.outer),
        };
        let is_tunnelled = hop.is_some();
        self.is_through_gateway = matches!(plan.way, Way::DoubleHbone(_));
        self.source = Some(source.clone());
        self.destination_address = plan.way.next_hop();
        self.hbone_address = hop.map(|hop| hop.authority.clone());
        self.source_identity = is_tunnelled.then(|| source.identity.clone());
        let destination = plan.destination.as_ref().filter(|_| is_tunnelled);
        self.destination_identity = destination.map(|to| to.identity.clone());
        self.service = plan.service.clone();
        self.destination = plan.destination.clone();
        self.destination_told = None;
    }

    /// Who answered in another network: `identity` is proven, the rest is what it says. An answer without baggage says
    /// that nothing is known.
    pub fn describe_remote(&mut self, identity: Option<Identity>, baggage: Option<&str>) {
        if let Ok(told) = Baggage::parse(baggage) {
            self.destination_told = Some(Box::new(told));
            self.destination_identity = identity;
        }
    }

    /// What a stream to `own` is, now that it is known where it is delivered. `reads_baggage`: what the peer says about
    /// a source that the mesh does not know is used.
    pub fn describe_inbound(
        &mut self,
        snapshot: &Snapshot,
        own: &Arc<Workload>,
        request: &IncomingRequest,
        delivery: &Delivery,
        reads_baggage: bool,
    ) {
        let from = self.source_address.ip();
        let source = snapshot.inbound_source(from, request.forwarded_network.as_deref());
        self.source = source.cloned();
        if source.is_none() && reads_baggage {
            let told = Baggage::parse(request.baggage.iter().map(String::as_str));
            self.source_told = told.ok().map(Box::new);
        }
        self.destination = Some(own.clone());
        self.destination_identity = Some(own.identity.clone());
        let named = request.forwarded.as_deref().and_then(forwarded_host);
        let port = delivery.address.port();
        let service = snapshot.inbound_service(own, port, named.as_deref(), delivery.service.as_ref());
        self.service = service.cloned();
        self.original = Original::Host(named.map(Into::into));
    }

    /// What a plain connection to `own` is.
    pub fn describe_plaintext(&mut self, snapshot: &Snapshot, own: &Arc<Workload>) {
        let network = &snapshot.locale().network;
        let source = snapshot.workload_by_address(network, self.source_address.ip());
        self.source = source.cloned();
        self.destination = Some(own.clone());
        let port = self.destination_address.port();
        self.service = snapshot.inbound_service(own, port, None, None).cloned();
    }
}
