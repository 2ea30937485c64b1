//! One run: a plan becomes hosts, proxies and applications, and a seeded scheduler decides who goes next until
//! everybody is done. Then the oracles look at what is left.

mod disturbing;
mod drained;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uztunnel::identity::Identity;
use uztunnel::planted::{self, Bug};
use uztunnel::sys::sim::faults::{Fault, Struck};
use uztunnel::sys::sim::{Endpoint, HostId, Line, Network, Token, Watcher};

use crate::actor::{Actor, Next, Scratch};
use crate::authority;
use crate::mesh::Mesh;
use crate::oracle;
use crate::plan::{Disturb, PORT_FIRST, Plan, Script};
use crate::proxy::{self, Proxy};

/// After everybody is done: long enough for every session to have looked at its clock once.
const SETTLES: Duration = Duration::from_secs(12);
/// What is closed has said goodbye after this time.
const GOODBYE: Duration = Duration::from_secs(25);
/// Longer than every deadline of the proxy together, for one connection whose readers do not stop.
const PATIENCE: Duration = Duration::from_secs(120);
/// A connection that is never slower than this is in time.
const BYTES_PER_SECOND_MIN: u64 = 8_000;
/// Steps without time going on: nothing real does so much at one moment.
const STEPS_AT_ONCE_MAX: u64 = 2_000_000;

/// The tokens of listeners.
const LISTENER: Token = 1 << 32;

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Report {
    pub hash: u64,
    pub events: u64,
    pub connections: usize,
    pub struck: Struck,
    pub virtual_time: Duration,
    pub finding: Option<Finding>,
    /// Kept when asked for.
    pub trace: Vec<Line>,
    /// The endpoints of the connections that the finding is about.
    pub endpoints: Vec<u32>,
}

/// The first thing that was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which oracle said so.
    pub oracle: &'static str,
    pub what: String,
    /// The connections concerned, by number.
    pub connections: Vec<usize>,
}

impl Finding {
    pub fn new(oracle: &'static str, what: impl Into<String>) -> Self {
        Self {
            oracle,
            what: what.into(),
            connections: Vec::new(),
        }
    }

    pub fn of(oracle: &'static str, connection: usize, what: impl Into<String>) -> Self {
        Self {
            connections: vec![connection],
            ..Self::new(oracle, what)
        }
    }
}

enum Agenda {
    /// By its place in the plan.
    Start(usize),
    Disturb(usize),
    Certificate {
        node: usize,
        worker: usize,
        identity: Identity,
    },
    Renew {
        account: usize,
    },
    Publish {
        node: usize,
        client: usize,
        server: usize,
        denied: bool,
    },
    Wake(usize),
    /// The worker's clock runs at its ordinary pace again.
    Hurry,
}

/// Who may go next.
#[derive(Clone, Copy)]
enum Candidate {
    Worker { node: usize, worker: usize },
    Actor(usize),
    Listener(usize),
}

/// Something that makes connections fail for a while, and which ones.
#[derive(Debug, Clone, Copy)]
pub struct Excuse {
    pub from: Duration,
    pub until: Duration,
    pub whom: Whom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    Pod(usize),
    Connection(usize),
}

struct Listening {
    endpoint: Endpoint,
    pod: usize,
    /// Place in the plan.
    connection: usize,
}

pub struct World {
    pub plan: Arc<Plan>,
    pub network: Network,
    pub hosts: Vec<HostId>,
    pub proxies: Vec<Proxy>,
    pub meshes: Vec<Mesh>,
    pub actors: Vec<Actor>,
    /// By place in the plan: the client, and the servers that took the connection.
    pub clients: Vec<Option<usize>>,
    pub servers: Vec<Vec<usize>>,
    pub excuses: Vec<Excuse>,
    /// When a policy came into force: client, server, denied.
    pub policies: Vec<(Duration, usize, usize, bool)>,
    pub pods_removed: Vec<bool>,
    listeners: Vec<Listening>,
    watcher: Watcher,
    ready: Vec<Token>,
    /// Memory for `choose`.
    candidates: Vec<Candidate>,
    agenda: BTreeMap<(Duration, u64), Agenda>,
    sequence: u64,
    random: fastrand::Rng,
    pub now: Duration,
    base: Instant,
    wall_offset_s: i64,
    step: Duration,
    scratch: Scratch,
    starts_left: usize,
    disturbances_left: usize,
    /// Certificates that workers get when they ask, where it is not the lasting one.
    ending: BTreeMap<usize, Duration>,
    steps_at_once: u64,
}

/// Runs a plan to its end, or to its first finding.
pub fn run(plan: &Plan, bug: Option<Bug>, keep_trace: bool) -> Report {
    planted::plant(bug);
    let mut world = World::new(plan.clone());
    if keep_trace {
        world.network.trace(|trace, _| trace.keep_lines());
    }
    let finding = world.live().err();
    let (hash, events, lines) = world.network.trace(|trace, _| {
        let lines: Vec<Line> = trace.lines().cloned().collect();
        (trace.hash(), trace.events(), lines)
    });
    let report = Report {
        hash,
        events,
        connections: world.plan.connections.len(),
        struck: world.network.struck(),
        virtual_time: world.now,
        endpoints: world.endpoints_of(finding.as_ref()),
        finding,
        trace: lines,
    };
    drop(world);
    planted::plant(None);
    uztunnel::clock::simulated::set(None);
    report
}

impl World {
    fn new(plan: Plan) -> Self {
        let plan = Arc::new(plan);
        let network = Network::new(plan.seed ^ 0x5EED, plan.shape.clone());
        let home = network.add_host(&[]);
        let watcher = network.add_watcher();
        let base = Instant::now();
        proxy::set_clock(base, authority::epoch(), Duration::ZERO);
        let mut meshes: Vec<Mesh> = (0..plan.nodes.len()).map(|node| Mesh::new(&plan, node)).collect();
        let mut proxies: Vec<Proxy> = plan
            .nodes
            .iter()
            .enumerate()
            .map(|(number, node)| {
                Proxy::start(&network, home, &plan, node, number, meshes[number].snapshot())
            })
            .collect();
        let mut hosts = Vec::new();
        for (number, pod) in plan.pods.iter().enumerate() {
            let host = network.add_host(&pod.addresses);
            hosts.push(host);
            if pod.meshed {
                network.set_captured(host, true);
                proxies[pod.node].add_pod(&network, host, number, pod.account, &plan.nodes[pod.node]);
            }
        }
        let mut world = Self {
            clients: vec![None; plan.connections.len()],
            servers: vec![Vec::new(); plan.connections.len()],
            pods_removed: vec![false; plan.pods.len()],
            starts_left: plan.connections.len(),
            disturbances_left: plan.disturbances.len(),
            random: fastrand::Rng::with_seed(plan.seed ^ 0xACE),
            network,
            hosts,
            proxies,
            meshes,
            actors: Vec::new(),
            excuses: Vec::new(),
            policies: Vec::new(),
            listeners: Vec::new(),
            watcher,
            ready: Vec::new(),
            candidates: Vec::new(),
            agenda: BTreeMap::new(),
            sequence: 0,
            now: Duration::ZERO,
            base,
            wall_offset_s: 0,
            step: Duration::ZERO,
            scratch: Scratch::default(),
            ending: BTreeMap::new(),
            steps_at_once: 0,
            plan,
        };
        world.now = world.plan.age;
        world.network.advance(world.now);
        world.listen();
        world.fill_agenda();
        world
    }

    fn listen(&mut self) {
        let plan = self.plan.clone();
        for (place, connection) in plan.connections.iter().enumerate() {
            for pod in plan.servers_of(connection) {
                let port = PORT_FIRST + connection.number as u16;
                let endpoint = self
                    .network
                    .listen(self.hosts[*pod], port, 4)
                    .expect("every connection has its own port");
                endpoint.watch(self.watcher, LISTENER | self.listeners.len() as u64);
                self.listeners.push(Listening {
                    endpoint,
                    pod: *pod,
                    connection: place,
                });
            }
        }
    }

    fn fill_agenda(&mut self) {
        let plan = self.plan.clone();
        for (place, connection) in plan.connections.iter().enumerate() {
            self.schedule(plan.age + connection.start, Agenda::Start(place));
        }
        for (place, disturbance) in plan.disturbances.iter().enumerate() {
            if let Disturb::Expiry { account, .. } = disturbance.what {
                self.ending.insert(account, plan.age + disturbance.at);
            }
            self.schedule(plan.age + disturbance.at, Agenda::Disturb(place));
        }
    }

    fn schedule(&mut self, at: Duration, what: Agenda) {
        self.sequence += 1;
        self.agenda.insert((at.max(self.now), self.sequence), what);
    }

    /// Both ends of the legs that applications hold of the connections concerned.
    fn endpoints_of(&self, finding: Option<&Finding>) -> Vec<u32> {
        let concerned = finding.map_or(&[][..], |finding| &finding.connections);
        self.actors
            .iter()
            .filter(|actor| concerned.contains(&self.plan.connections[actor.connection].number))
            .flat_map(|actor| [Some(actor.number), self.network.other_end(actor.number)])
            .flatten()
            .collect()
    }

    // ---- the run ---------------------------------------------------------------------------------------

    fn live(&mut self) -> Result<(), Finding> {
        let stall = |script: &Script| script.stall.map_or(Duration::ZERO, |(_, pause)| pause);
        let longest = self
            .plan
            .connections
            .iter()
            .map(|connection| {
                let (client, server) = (&connection.client_script, &connection.server_script);
                let seconds = client.bytes.max(server.bytes) / BYTES_PER_SECOND_MIN;
                Duration::from_secs(seconds) + stall(client) + stall(server)
            })
            .max()
            .unwrap_or(Duration::ZERO);
        let last = self
            .agenda
            .keys()
            .next_back()
            .map_or(Duration::ZERO, |(at, _)| *at);
        let horizon = last + PATIENCE + longest;
        while !self.is_everybody_done() {
            self.step_until(horizon)?;
            if self.now >= horizon {
                return Err(oracle::stuck(self));
            }
        }
        oracle::connections(self)?;
        self.pass(SETTLES)?;
        oracle::idle(self)?;
        for proxy in &self.proxies {
            (0..self.plan.pods.len()).for_each(|pod| proxy.remove_pod(pod));
        }
        self.pass(GOODBYE)?;
        oracle::empty(self)?;
        for proxy in &mut self.proxies {
            proxy.drain(Duration::ZERO);
        }
        self.pass(Duration::from_secs(1))?;
        oracle::over(self)
    }

    fn is_everybody_done(&self) -> bool {
        self.starts_left == 0 && self.disturbances_left == 0 && self.actors.iter().all(Actor::is_done)
    }

    /// Lets time go by.
    fn pass(&mut self, time: Duration) -> Result<(), Finding> {
        let until = self.now + time;
        while self.now < until {
            self.step_until(until)?;
        }
        Ok(())
    }

    /// Somebody goes, or time does.
    fn step_until(&mut self, until: Duration) -> Result<(), Finding> {
        self.network.take_ready(self.watcher, &mut self.ready);
        let Some(candidate) = self.choose() else {
            self.steps_at_once = 0;
            return self.move_time(until);
        };
        self.steps_at_once += 1;
        if self.steps_at_once > STEPS_AT_ONCE_MAX {
            return Err(Finding::new(
                "time",
                "so much happens at one moment that time never goes on",
            ));
        }
        match candidate {
            Candidate::Worker { node, worker } => self.turn(node, worker)?,
            Candidate::Actor(actor) => self.act(actor)?,
            Candidate::Listener(listener) => self.accept(listener),
        }
        match self.network.finding() {
            None => Ok(()),
            Some(finding) => Err(Finding::new("memory", finding)),
        }
    }

    /// Somebody who may go now.
    fn choose(&mut self) -> Option<Candidate> {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        for (node, proxy) in self.proxies.iter().enumerate() {
            for (worker, it) in proxy.workers.iter().enumerate() {
                if it.is_runnable(self.now) {
                    candidates.push(Candidate::Worker { node, worker });
                }
            }
        }
        candidates.extend(self.ready.iter().map(|token| match token & LISTENER {
            0 => Candidate::Actor(*token as usize),
            _ => Candidate::Listener((token & !LISTENER) as usize),
        }));
        let chosen = match candidates.len() {
            0 => None,
            count => Some(candidates[self.random.usize(..count)]),
        };
        self.candidates = candidates;
        chosen
    }

    fn not_ready(&mut self, token: Token) {
        if let Some(at) = self.ready.iter().position(|ready| *ready == token) {
            self.ready.swap_remove(at);
        }
    }

    fn move_time(&mut self, until: Duration) -> Result<(), Finding> {
        let workers = self
            .proxies
            .iter()
            .flat_map(|proxy| proxy.workers.iter().filter_map(|worker| worker.next_at()));
        let agenda = self.agenda.keys().next().map(|(at, _)| *at);
        let next = workers
            .chain(agenda)
            .chain(self.network.next_happening())
            .filter(|at| *at > self.now)
            .min()
            .unwrap_or(until)
            .min(until);
        // What is due now goes first, without time going on.
        let due_now = agenda.is_some_and(|at| at <= self.now)
            || self.network.next_happening().is_some_and(|at| at <= self.now);
        if !due_now {
            self.now = next;
        }
        self.network.advance(self.now);
        while let Some((&(at, sequence), _)) = self.agenda.first_key_value() {
            if at > self.now {
                break;
            }
            if let Some(what) = self.agenda.remove(&(at, sequence)) {
                self.happen(what)?;
            }
        }
        Ok(())
    }

    fn wall(&self) -> std::time::SystemTime {
        let wall = authority::epoch() + self.now;
        match self.wall_offset_s {
            offset @ 0.. => wall + Duration::from_secs(offset as u64),
            offset => wall - Duration::from_secs(offset.unsigned_abs()),
        }
    }

    fn turn(&mut self, node: usize, worker: usize) -> Result<(), Finding> {
        proxy::set_clock(self.base + self.now, self.wall(), self.step);
        let it = &mut self.proxies[node].workers[worker];
        it.turn(self.now).map_err(|what| Finding::new("worker", what))?;
        self.proxies[node].forget_log();
        for (worker, identity) in self.proxies[node].take_demands() {
            let at = self.now + Duration::from_micros(self.random.u64(100..60_000));
            self.schedule(
                at,
                Agenda::Certificate {
                    node,
                    worker,
                    identity,
                },
            );
        }
        Ok(())
    }

    fn act(&mut self, actor: usize) -> Result<(), Finding> {
        let number = self.plan.connections[self.actors[actor].connection].number;
        let next = {
            let it = &mut self.actors[actor];
            let stalls = it.stalls();
            let next = it
                .step(self.now, &mut self.scratch)
                .map_err(|what| Finding::of("bytes", number, what))?;
            if it.stalls() > stalls {
                self.network.strike(Fault::StalledReader);
            }
            next
        };
        match next {
            Next::Again => {}
            Next::Done => self.not_ready(actor as Token),
            Next::Wait(until) => {
                self.not_ready(actor as Token);
                if let Some(until) = until {
                    self.schedule(until, Agenda::Wake(actor));
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) {
        let Ok((endpoint, _)) = self.listeners[listener].endpoint.accept() else {
            return self.not_ready(LISTENER | listener as u64);
        };
        let (pod, place) = (self.listeners[listener].pod, self.listeners[listener].connection);
        let connection = &self.plan.connections[place];
        let token = self.actors.len() as Token;
        endpoint.watch(self.watcher, token);
        let number = connection.number;
        self.network.trace(|trace, now| {
            trace.note(now, 20, u64::from(endpoint.number()), number as u64, || {
                format!("server of {number} in pod {pod} accepts {}", endpoint.number())
            });
        });
        let seed = self.plan.seed ^ (number as u64) << 20 ^ 0xB0B;
        let script = connection.server_script.clone();
        self.actors
            .push(Actor::server(place, pod, script, endpoint, self.now, seed));
        self.servers[place].push(self.actors.len() - 1);
    }

    // ---- what is on the agenda -------------------------------------------------------------------------

    fn happen(&mut self, what: Agenda) -> Result<(), Finding> {
        match what {
            Agenda::Start(place) => self.start(place),
            Agenda::Disturb(place) => {
                self.disturbances_left -= 1;
                let disturbance = self.plan.disturbances[place];
                self.disturb(disturbance.what);
            }
            Agenda::Certificate {
                node,
                worker,
                identity,
            } => self.answer_demand(node, worker, identity),
            Agenda::Renew { account } => self.renew(account),
            Agenda::Publish {
                node,
                client,
                server,
                denied,
            } => {
                self.meshes[node].deny(&self.plan, client, server, denied);
                let snapshot = self.meshes[node].snapshot();
                self.proxies[node].publish(snapshot);
                if node == self.plan.pods[server].node {
                    self.policies.push((self.now, client, server, denied));
                }
            }
            Agenda::Wake(actor) => {
                if !self.actors[actor].is_done() && !self.ready.contains(&(actor as Token)) {
                    self.ready.push(actor as Token);
                }
            }
            Agenda::Hurry => self.step = Duration::ZERO,
        }
        Ok(())
    }

    fn start(&mut self, place: usize) {
        self.starts_left -= 1;
        let connection = &self.plan.connections[place];
        let pod = connection.client;
        if self.pods_removed[pod] {
            return;
        }
        let peer = self.plan.address_of(connection);
        let token = self.actors.len() as Token;
        let endpoint = self.network.open(self.hosts[pod], false, None, peer.ip());
        endpoint.watch(self.watcher, token);
        let number = connection.number;
        self.network.trace(|trace, now| {
            trace.note(now, 21, u64::from(endpoint.number()), number as u64, || {
                format!(
                    "client of {number} in pod {pod} connects {} to {peer}",
                    endpoint.number()
                )
            });
        });
        let seed = self.plan.seed ^ (number as u64) << 20 ^ 0xA11CE;
        let script = connection.client_script.clone();
        self.actors
            .push(Actor::client(place, pod, script, endpoint, peer, self.now, seed));
        self.clients[place] = Some(self.actors.len() - 1);
    }

    fn answer_demand(&mut self, node: usize, worker: usize, identity: Identity) {
        let account = (0..4).find(|account| proxy::identity(*account) == identity);
        let ends = account.and_then(|account| self.ending.get(&account).copied());
        let certificate = match ends {
            None => authority::lasting(&identity),
            Some(ends) => authority::until(&identity, authority::epoch() + ends),
        };
        // Nobody hands out what has expired, by its own whole seconds: the answer is the next one.
        if certificate.not_after <= self.wall() {
            return;
        }
        self.proxies[node].orders.send(
            worker,
            uztunnel::bridge::Order::Certificate {
                identity,
                result: Ok(certificate),
            },
        );
    }

    fn renew(&mut self, account: usize) {
        self.ending.remove(&account);
        let identity = proxy::identity(account);
        for proxy in &self.proxies {
            proxy.certify(&identity, &authority::lasting(&identity));
        }
    }
}
