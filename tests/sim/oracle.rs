//! What must be true of every run, whatever struck it.

mod leftovers;
mod pace;

use std::time::Duration;

use uztunnel::sys::sim::Blame;
use uztunnel::sys::sim::faults::Fault;

pub use self::leftovers::{empty, idle, over};
use crate::actor::{Actor, Ended, Saw};
use crate::plan::{ConnectionPlan, Disturb, Ends, Script, Target};
use crate::world::{Excuse, Finding, Whom, World};

/// From a policy to the last byte that a proxy still sends against it: more than any turn takes.
const DENIAL_LATENCY_MAX: Duration = Duration::from_millis(100);

/// Those who are not done although everything that they could wait for is over.
pub fn stuck(world: &World) -> Finding {
    let mut connections: Vec<usize> = world
        .actors
        .iter()
        .filter(|actor| !actor.is_done())
        .map(|actor| world.plan.connections[actor.connection].number)
        .collect();
    connections.dedup();
    let mut what = format!("{} connections have not ended", connections.len());
    if let Some(actor) = world.actors.iter().find(|actor| !actor.is_done()) {
        let number = world.plan.connections[actor.connection].number;
        what.push_str(&format!(
            "; of {number}, {:?} stands at {} sent, {} received, ended {:?}, saw {:?}",
            actor.sends, actor.sent, actor.received, actor.ended, actor.saw
        ));
    }
    Finding {
        connections,
        ..Finding::new("ends", what)
    }
}

/// Every connection came to the end that its two applications and its faults allow.
pub fn connections(world: &World) -> Result<(), Finding> {
    let blames = world.network.blames();
    for (place, plan) in world.plan.connections.iter().enumerate() {
        let Some(client) = world.clients[place] else {
            continue;
        };
        Case {
            world,
            plan,
            client: &world.actors[client],
            servers: world.servers[place]
                .iter()
                .map(|server| &world.actors[*server])
                .collect(),
            blames: &blames,
        }
        .check()
        .map_err(|(oracle, what)| {
            let case = format!("connection {} ({:?}): {what}", plan.number, plan.target);
            Finding::of(oracle, plan.number, case)
        })?;
    }
    Ok(())
}

type Wrong = (&'static str, String);

struct Case<'a> {
    world: &'a World,
    plan: &'a ConnectionPlan,
    client: &'a Actor,
    servers: Vec<&'a Actor>,
    blames: &'a [Blame],
}

impl Case<'_> {
    fn check(&self) -> Result<(), Wrong> {
        let delivered: Vec<&&Actor> = self.servers.iter().filter(|server| server.received > 0).collect();
        if delivered.len() > 1 {
            return Err(("bytes", "was delivered to two servers".to_owned()));
        }
        self.check_denials()?;
        self.check_late_denials()?;
        let server = delivered
            .first()
            .map(|server| **server)
            .or_else(|| self.kept().last())
            .or_else(|| self.servers.last().copied());
        if !self.met_a_killed_proxy() {
            self.check_end(self.client, server)?;
            for server in &self.servers {
                self.check_end(server, Some(self.client))?;
            }
        }
        if !self.leads_somewhere() {
            return Ok(());
        }
        let Some(server) = server else {
            // Whoever gives up may do so before anybody has looked.
            if self.plan.client_script.ends != Ends::HalfClose || self.is_excused() {
                return Ok(());
            }
            return Err((
                "served",
                format!("never reached its server; the client saw {:?}", self.client.saw),
            ));
        };
        // A service's endpoint that did not answer in time is given up for another one.
        let reached = match self.plan.target {
            Target::Service(_) => self.kept().count(),
            Target::Pod(_) | Target::Nowhere => self.servers.len(),
        };
        if reached > 1 && !self.is_excused() {
            return Err(("served", format!("reached {} servers", self.servers.len())));
        }
        let (client_script, server_script) = (&self.plan.client_script, &self.plan.server_script);
        self.check_view("client", self.client, client_script, server, server_script)?;
        self.check_view("server", server, server_script, self.client, client_script)?;
        pace::check(self.world, self.plan, self.client, server)
            .filter(|_| !self.is_excused())
            .map_or(Ok(()), Err)
    }

    /// Those that were not given up: such a server got nothing of its client, and was told so by a reset.
    fn kept(&self) -> impl Iterator<Item = &Actor> {
        let given_up = |server: &Actor| server.received == 0 && server.saw == Some(Saw::Reset);
        self.servers
            .iter()
            .copied()
            .filter(move |server| !given_up(server))
    }

    /// Outside of the mesh nobody knows its services.
    fn leads_somewhere(&self) -> bool {
        match self.plan.target {
            Target::Pod(_) => true,
            Target::Service(_) => self.world.plan.pods[self.client.pod].meshed,
            Target::Nowhere => false,
        }
    }

    /// An end that was seen was said, and nothing before it is missing.
    fn check_end(&self, reader: &Actor, writer: Option<&Actor>) -> Result<(), Wrong> {
        if reader.saw != Some(Saw::End) {
            return Ok(());
        }
        let Some(writer) = writer else {
            // Refused before there was anybody.
            return Ok(());
        };
        let said = matches!(writer.ended, Some(Ended::End | Ended::Closed));
        let refused = reader.received == 0 && writer.received == 0 && self.is_excused();
        if (!said || reader.received != writer.sent) && !refused {
            return Err((
                "ends",
                format!(
                    "{:?} was received as a clean end after {} bytes, of {} sent by a side that ended by {:?}",
                    writer.sends, reader.received, writer.sent, writer.ended
                ),
            ));
        }
        Ok(())
    }

    fn check_denials(&self) -> Result<(), Wrong> {
        for server in &self.servers {
            if !self.world.plan.pods[server.pod].meshed {
                continue;
            }
            let until = server.finished_at.unwrap_or(Duration::MAX);
            let denied = self.denied_throughout(server.pod, server.opened_at, until);
            // A process that dies leaves its ends to the kernel.
            let ended = server.saw == Some(Saw::End) && !self.met_a_killed_proxy();
            if denied && (server.received > 0 || ended) {
                return Err((
                    "denied",
                    format!(
                        "{} bytes were delivered although policy forbade it",
                        server.received
                    ),
                ));
            }
        }
        Ok(())
    }

    /// A policy that denies also ends what lives.
    fn check_late_denials(&self) -> Result<(), Wrong> {
        for server in &self.servers {
            if !self.world.plan.pods[server.pod].meshed || self.met_a_killed_proxy() {
                continue;
            }
            let Some((denied_at, true)) = self.changes(server.pod).last() else {
                continue;
            };
            let written_at = self.world.network.last_written_to(server.number);
            let latency_max = DENIAL_LATENCY_MAX + self.pauses_after(server.pod, denied_at);
            if denied_at > server.opened_at && written_at > denied_at + latency_max {
                return Err((
                    "denied",
                    format!(
                        "a proxy wrote {:?} after a policy had forbidden it",
                        written_at.saturating_sub(denied_at)
                    ),
                ));
            }
        }
        Ok(())
    }

    /// How long workers of a pod's node were made to pause that may have heard of something late.
    fn pauses_after(&self, pod: usize, at: Duration) -> Duration {
        let plan = &self.world.plan;
        let pauses = plan
            .disturbances
            .iter()
            .filter_map(|disturbance| match disturbance.what {
                Disturb::SlowWorker { node, pause } if node == plan.pods[pod].node => {
                    Some((plan.age + disturbance.at, pause))
                }
                _ => None,
            });
        pauses
            .filter(|(from, pause)| *from + *pause > at)
            .map(|(_, pause)| pause)
            .sum()
    }

    fn changes(&self, server: usize) -> impl Iterator<Item = (Duration, bool)> {
        let client = self.client.pod;
        self.world
            .policies
            .iter()
            .filter(move |(_, of, to, _)| (*of, *to) == (client, server))
            .map(|(at, _, _, denied)| (*at, *denied))
    }

    fn denied_throughout(&self, server: usize, from: Duration, until: Duration) -> bool {
        let before = self.changes(server).take_while(|(at, _)| *at <= from).last();
        let allowed_later = self
            .changes(server)
            .any(|(at, denied)| at > from && at <= until && !denied);
        before.is_some_and(|(at, denied)| denied && at < from) && !allowed_later
    }

    fn met_a_killed_proxy(&self) -> bool {
        let servers = self.world.plan.servers_of(self.plan);
        servers
            .iter()
            .chain([&self.client.pod])
            .any(|pod| self.world.proxies[self.world.plan.pods[*pod].node].is_killed)
    }

    /// Whether something happened that a connection may fail of.
    fn is_excused(&self) -> bool {
        let ended = [Some(self.client), self.servers.last().copied()]
            .into_iter()
            .flatten()
            .filter_map(|actor| actor.finished_at)
            .max()
            .unwrap_or(Duration::MAX);
        self.is_excused_at(ended)
    }

    /// The same, for who has seen everything at this time: what comes later is no excuse.
    fn is_excused_at(&self, ended: Duration) -> bool {
        let servers = self.world.plan.servers_of(self.plan);
        let started = self.world.plan.age + self.plan.start;
        let among = |pod: usize| pod == self.client.pod || servers.contains(&pod);
        let excused = |excuse: &Excuse| match excuse.whom {
            Whom::Connection(number) => number == self.plan.number && excuse.from <= ended,
            Whom::Pod(pod) => among(pod) && excuse.from <= ended && started <= excuse.until,
        };
        let blamed = |blame: &Blame| {
            // A dial that fails fails for all who come until it has.
            let lasts = match blame.fault {
                Fault::ConnectUnanswered => Duration::from_secs(12),
                _ => Duration::from_secs(1),
            };
            let pod = |host| self.world.hosts.iter().position(|known| *known == host);
            let hit = match (pod(blame.hosts.0), pod(blame.hosts.1)) {
                (Some(one), Some(other)) => among(one) && among(other),
                _ => true,
            };
            hit && blame.at <= ended && started <= blame.at + lasts
        };
        let denied = |server: &usize| {
            let before = self.changes(*server).take_while(|(at, _)| *at <= started).last();
            before.is_some_and(|(_, denied)| denied)
                || self
                    .changes(*server)
                    .any(|(at, denied)| at > started && at <= ended && denied)
        };
        self.world.excuses.iter().any(excused) || self.blames.iter().any(blamed) || servers.iter().any(denied)
    }

    /// Whether all that somebody said who then closed was with a proxy before anything broke: a reset behind it takes
    /// nothing away. Only a reader who goes on sending may lose what its own socket has not got yet, when that is
    /// closed behind the end.
    fn was_said(&self, reader: &Actor, writer: &Actor) -> bool {
        let network = &self.world.network;
        network.is_end_read(writer.number) && !network.is_cut_short(reader.number)
    }

    /// What one side must have seen of the other when nothing struck the connection.
    fn check_view(
        &self,
        who: &str,
        reader: &Actor,
        own: &Script,
        writer: &Actor,
        script: &Script,
    ) -> Result<(), Wrong> {
        // Whoever gives up itself need not see anything.
        let finished = reader.finished_at.unwrap_or(Duration::MAX);
        if own.ends != Ends::HalfClose || self.is_excused_at(finished) {
            return Ok(());
        }
        let all = reader.saw == Some(Saw::End) && reader.received == script.bytes;
        let (fine, expected) = match script.ends {
            Ends::HalfClose => (all, "everything and the end"),
            Ends::Close if own.bytes == 0 || self.was_said(reader, writer) => (all, "everything and the end"),
            // Closing with something unread, or being sent to afterwards, resets.
            Ends::Close => (
                all || reader.saw == Some(Saw::Reset),
                "everything and the end, or a reset",
            ),
            Ends::ResetAfterSending(_) | Ends::ResetAfterReceiving(_) => {
                (reader.saw == Some(Saw::Reset), "a reset")
            }
        };
        if fine {
            return Ok(());
        }
        Err((
            "served",
            format!(
                "the {who} should have seen {expected}; it saw {:?} after {} of {} bytes (the other side: sent {}, {:?}, saw {:?})",
                reader.saw, reader.received, script.bytes, writer.sent, writer.ended, writer.saw
            ),
        ))
    }
}
