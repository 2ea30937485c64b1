//! What a drain promises, connection by connection, as things stand when it begins: what is open or being set up goes
//! on until its deadline. Whatever the proxy cannot let in any more may fail from now on.

use std::collections::BTreeSet;
use std::time::Duration;

use uztunnel::runtime::slab::Key;
use uztunnel::worker::hbone::session::{Role, Session, UserState};
use uztunnel::worker::tunnel::Tunnel;

use super::{Excuse, Whom, World};
use crate::plan::{PORT_FIRST, Target};

/// No stream is asked for so long after its client is gone: a dial, and a worker that pauses.
const GONE_AFTER: Duration = Duration::from_secs(15);

impl World {
    /// The node's drain begins now.
    pub(super) fn excuse_drained(&mut self, node: usize, patience: Duration) {
        for place in 0..self.plan.connections.len() {
            if !self.is_by_way_of(place, node) {
                continue;
            }
            let from = match self.is_promised(place) {
                true => self.now + patience,
                false => self.now,
            };
            self.excuses.push(Excuse {
                from,
                until: Duration::MAX,
                whom: Whom::Connection(self.plan.connections[place].number),
            });
        }
    }

    /// Whether a connection goes, or may go, through a node's proxy.
    fn is_by_way_of(&self, place: usize, node: usize) -> bool {
        let connection = &self.plan.connections[place];
        self.plan
            .servers_of(connection)
            .iter()
            .chain([&connection.client])
            .any(|pod| self.plan.pods[*pod].meshed && self.plan.pods[*pod].node == node)
    }

    fn is_promised(&self, place: usize) -> bool {
        if !self.servers[place].is_empty() {
            return true;
        }
        let Some(client) = self.clients[place].map(|client| &self.actors[client]) else {
            return false;
        };
        // One that waits in a listener's queue is lost with it.
        if client.is_done() || !self.network.is_accepted(client.number) {
            return client.is_done();
        }
        let connection = &self.plan.connections[place];
        let closed = |pod: &usize| {
            let plan = &self.plan.pods[*pod];
            plan.meshed && self.proxies[plan.node].is_draining
        };
        if !self.plan.pods[connection.client].meshed || !self.plan.servers_of(connection).iter().any(closed) {
            return true;
        }
        // The server's proxy takes no new session; streams that were asked for on the old ones it serves.
        match connection.target {
            Target::Pod(server) => self.is_all_asked(connection.client, server),
            Target::Service(_) | Target::Nowhere => false,
        }
    }

    /// Whether every connection from this pod to that one which the client's proxy has accepted, and the server's
    /// does not relay yet, has been asked for. Nobody knows of a single one; their number tells.
    fn is_all_asked(&self, client: usize, server: usize) -> bool {
        let mut relayed = BTreeSet::new();
        let mut ports = BTreeSet::new();
        self.look_at(server, |session, port_of| {
            for (_, user) in session.users.iter() {
                if let UserState::Relaying(tunnel) = &user.state {
                    relayed.insert((session.peer_address, user.stream));
                    ports.extend(port_of(*tunnel));
                }
            }
        });
        let mut asked = 0;
        let (sources, destinations) = (
            &self.plan.pods[client].addresses,
            &self.plan.pods[server].addresses,
        );
        self.look_at(client, |session, _| {
            let is_theirs = match &session.role {
                Role::Client { key } => {
                    sources.contains(&key.source) && destinations.contains(&key.destination.ip())
                }
                Role::Server => false,
            };
            let is_asked = |stream, state: &UserState| {
                matches!(state, UserState::Asked { .. })
                    && !relayed.contains(&(session.local_address, stream))
            };
            if is_theirs && !session.is_closing() {
                asked += session
                    .users
                    .iter()
                    .filter(|(_, user)| is_asked(user.stream, &user.state))
                    .count();
            }
        });
        let mut waiting = 0;
        for (place, connection) in self.plan.connections.iter().enumerate() {
            let Some(actor) = self.clients[place].map(|actor| &self.actors[actor]) else {
                continue;
            };
            let may_be = connection.client == client && self.plan.servers_of(connection).contains(&server);
            let port = PORT_FIRST + connection.number as u16;
            if !may_be || ports.contains(&port) || !self.network.is_accepted(actor.number) {
                continue;
            }
            // The stream of a client that gave up lately may still be asked for, and must not stand for another one's.
            let is_long_gone = actor.finished_at.is_some_and(|at| at + GONE_AFTER < self.now);
            waiting += usize::from(!is_long_gone);
        }
        asked == waiting
    }

    /// Shows the sessions of a pod's proxy, with the port of a tunnel's connection.
    fn look_at(&self, pod: usize, mut look: impl FnMut(&Session, &dyn Fn(Key<Tunnel>) -> Option<u16>)) {
        for worker in &self.proxies[self.plan.pods[pod].node].workers {
            worker.look(|core| {
                let port_of = |tunnel| {
                    let account = &core.tunnels.get(tunnel)?.account;
                    Some(account.hbone_address.as_ref()?.address()?.port())
                };
                core.sessions
                    .iter()
                    .for_each(|(_, session)| look(session, &port_of));
            });
        }
    }
}
