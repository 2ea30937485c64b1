//! What strikes a world: the disturbances of its plan, and whom each of them excuses.

use std::time::Duration;

use uztunnel::mesh::TunnelAuthority;
use uztunnel::worker::outcome::Outcome;

use super::{Agenda, Excuse, Whom, World};
use crate::plan::{Disturb, PORT_FIRST};
use crate::proxy;

impl World {
    fn excuse(&mut self, until: Duration, whom: Whom) {
        self.excuses.push(Excuse {
            from: self.now,
            until,
            whom,
        });
    }

    pub(super) fn disturb(&mut self, what: Disturb) {
        let for_ever = Duration::MAX;
        match what {
            Disturb::ClockJump { seconds } => self.wall_offset_s += seconds,
            Disturb::SlowWorker { node, pause } => {
                let workers = &mut self.proxies[node].workers;
                let worker = self.random.usize(..workers.len());
                workers[worker].paused_until = self.now + pause;
                self.step = Duration::from_micros(self.random.u64(1..300));
                self.schedule(self.now + pause, Agenda::Hurry);
            }
            Disturb::Expiry {
                account,
                renewed_after,
            } => {
                let until = self.now + renewed_after + Duration::from_secs(2);
                for pod in 0..self.plan.pods.len() {
                    if self.plan.pods[pod].account == account {
                        self.excuse(until, Whom::Pod(pod));
                    }
                }
                self.schedule(self.now + renewed_after, Agenda::Renew { account });
            }
            Disturb::Renewal { account } => {
                if !self.ending.contains_key(&account) {
                    self.renew(account);
                }
            }
            Disturb::Policy {
                client,
                server,
                denied,
            } => {
                for node in 0..self.proxies.len() {
                    let at = self.now + Duration::from_micros(self.random.u64(..100_000));
                    self.schedule(
                        at,
                        Agenda::Publish {
                            node,
                            client,
                            server,
                            denied,
                        },
                    );
                }
            }
            Disturb::RemovePod { pod } => {
                self.excuse(for_ever, Whom::Pod(pod));
                self.pods_removed[pod] = true;
                self.proxies[self.plan.pods[pod].node].remove_pod(pod);
                for actor in self.actors.iter_mut().filter(|actor| actor.pod == pod) {
                    actor.kill(self.now);
                }
            }
            Disturb::Kill { node } => {
                self.excuse_node(node);
                let pods = self.plan.pods.len();
                self.proxies[node].kill(pods);
            }
            Disturb::Drain { node, patience } => {
                if !self.proxies[node].is_draining {
                    self.proxies[node].drain(patience);
                    self.excuse_drained(node, patience);
                }
            }
            Disturb::GoAway | Disturb::ResetStream | Disturb::KeyUpdate => {
                if !self.disturb_session(what) {
                    return;
                }
            }
        }
        if let Some(fault) = what.fault() {
            self.network.strike(fault);
        }
    }

    fn excuse_node(&mut self, node: usize) {
        for pod in 0..self.plan.pods.len() {
            if self.plan.pods[pod].meshed && self.plan.pods[pod].node == node {
                self.excuse(Duration::MAX, Whom::Pod(pod));
            }
        }
    }

    /// Does something to a session or stream of a worker that has one. `false`: nobody has.
    fn disturb_session(&mut self, what: Disturb) -> bool {
        let all: Vec<(usize, usize)> = self
            .proxies
            .iter()
            .enumerate()
            .filter(|(_, proxy)| !proxy.is_killed)
            .flat_map(|(node, proxy)| (0..proxy.workers.len()).map(move |worker| (node, worker)))
            .collect();
        if all.is_empty() {
            return false;
        }
        let from = self.random.usize(..all.len());
        for at in 0..all.len() {
            let (node, worker) = all[(from + at) % all.len()];
            let draw = self.random.u64(..);
            proxy::set_clock(self.base + self.now, self.wall(), Duration::ZERO);
            let it = &mut self.proxies[node].workers[worker];
            let done = it.look(|core| match what {
                Disturb::ResetStream => {
                    let keys = core.tunnels.keys();
                    let key = *keys.get(draw as usize % keys.len().max(1))?;
                    let account = &core.tunnels.get(key)?.account;
                    let asked = account.hbone_address.as_ref().and_then(TunnelAuthority::address);
                    let port = asked.unwrap_or(account.destination_address).port();
                    core.cut_tunnel(key, Outcome::Drained);
                    core.flush();
                    Some(Some(port))
                }
                _ => {
                    let keys = core.sessions.keys();
                    let key = *keys.get(draw as usize % keys.len().max(1))?;
                    let session = core.sessions.get_mut(key)?;
                    if session.is_closing() {
                        return None;
                    }
                    if what == Disturb::GoAway {
                        session
                            .http2
                            .goaway(uztunnel::wire::http2::ErrorCode::NoError, "");
                        core.retire_session(key);
                    } else if !session.channel.update_key_soon() {
                        return None;
                    }
                    core.mark_session(key);
                    core.flush();
                    Some(None)
                }
            });
            if let Some(port) = done.flatten() {
                it.is_busy = true;
                if let Some(port) = port {
                    self.excuse(self.now, Whom::Connection(usize::from(port - PORT_FIRST)));
                }
                return true;
            }
        }
        false
    }
}
