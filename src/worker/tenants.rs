//! Whose work a turn does first: a tenant that has used its part of a turn waits for the next one, behind all others.
//!
//! A tenant is whoever causes work: a pod of this node with its own connections, or the source of HBONE sessions, by
//! its address. Nothing waits as long as the worker is not crowded (`crowd`). While it is, each tenant may use
//! `limits::TENANT_TURN_COST` of a turn for events of sessions and relays; what arrives beyond it waits in a queue of
//! its own, and tenants that wait take turns; what the busy ones send goes out behind what others do. Costs are counted,
//! not measured: in bytes relayed. What sets up connections are tasks, which take turns in lanes, one for each tenant
//! (`runtime/tasks.rs`).
//!
//! On the worker's thread. Invariant: what one tenant caused is done in the order in which it arrived.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use self::crowd::Crowd;
use super::core::Core;
use super::hbone::session::{Session, Transport};
use super::owner::Owned;
use super::pods::PodState;
use super::tunnel::Tunnel;
use crate::bridge::orders::Capture;
use crate::limits;
use crate::planted::{Bug, is_planted};
use crate::runtime::slab::Key;
use crate::runtime::tasks::Lane;
use crate::sys::driver::{Driver, Event, ReceiveMode, Received};

mod crowd;

/// One of those who share a worker. Everything that it causes holds it.
pub struct Tenant {
    number: Lane,
    /// What it may still use of its turn. Below zero: the last thing that it did cost more than it had.
    credit: Cell<i64>,
    /// The turn for which `credit` was given.
    turn: Cell<u64>,
    /// What its turn had no room for.
    waiting: RefCell<VecDeque<Event>>,
    /// It is in the worker's queue.
    queued: Cell<bool>,
    /// Accepted connections whose journeys did not have a turn yet.
    unbegun: Cell<usize>,
    /// Its connections, those being set up included (`room`).
    pub(super) places: Cell<usize>,
    /// The open files that those have, or may need.
    pub(super) files: Cell<usize>,
    /// When the log said that it gets no further ones.
    pub(super) warned: Cell<Option<Instant>>,
    /// The last stretch of turns in which it had work, and what that cost.
    stretch: Cell<u64>,
    used: Cell<i64>,
    /// Whether that was more than a modest part of what the busiest one used.
    busy: Cell<bool>,
    /// The last crowded turn in which its applications got something, and what that cost.
    sent_in: Cell<u64>,
    sent: Cell<i64>,
}

/// A connection whose journey did not have a turn yet.
pub struct Unbegun(Rc<Tenant>);

impl Unbegun {
    /// `None`: there are too many, and this one is to be closed, which tells its application at once.
    pub fn new(tenant: &Rc<Tenant>) -> Option<Self> {
        let unbegun = tenant.unbegun.get();
        if unbegun >= limits::TENANT_UNBEGUN_MAX {
            return None;
        }
        tenant.unbegun.set(unbegun + 1);
        Some(Self(tenant.clone()))
    }

    /// Of the journey's task.
    pub fn lane(&self) -> Lane {
        self.0.lane()
    }
}

impl Drop for Unbegun {
    fn drop(&mut self) {
        self.0.unbegun.set(self.0.unbegun.get() - 1);
    }
}

#[derive(Default)]
pub struct Tenants {
    admitted: Lane,
    crowd: Crowd,
    crowded: bool,
    /// What the work that waits costs, and what else this turn leaves for others since it is crowded.
    waiting_cost: i64,
    left_behind: i64,
    /// Those with waiting work, each once.
    queue: VecDeque<Rc<Tenant>>,
    /// What may still be taken out of queues in this turn.
    turn_credit: i64,
    /// Tenants that were not asked yet in this turn.
    unasked: usize,
    /// Sources are remembered for a while: one that fails each handshake must not begin anew each time.
    by_source: HashMap<IpAddr, Rc<Tenant>>,
    sources_swept: usize,
}

impl Tenant {
    fn new(number: Lane) -> Self {
        Self {
            number,
            credit: Cell::new(0),
            turn: Cell::new(0),
            waiting: RefCell::default(),
            queued: Cell::new(false),
            unbegun: Cell::new(0),
            places: Cell::new(0),
            files: Cell::new(0),
            warned: Cell::new(None),
            // Of no stretch.
            stretch: Cell::new(u64::MAX),
            used: Cell::new(0),
            busy: Cell::new(false),
            sent_in: Cell::new(0),
            sent: Cell::new(0),
        }
    }

    /// Of its tasks.
    pub fn lane(&self) -> Lane {
        self.number
    }

    /// Whether it had much to do in the last stretch in which it had anything.
    pub fn is_busy(&self) -> bool {
        self.busy.get()
    }
}

/// Brings those that are chosen to the front. How many they are.
fn partition<T>(items: &mut [T], is_chosen: impl Fn(&T) -> bool) -> usize {
    let mut chosen = 0;
    for at in 0..items.len() {
        if is_chosen(&items[at]) {
            items.swap(at, chosen);
            chosen += 1;
        }
    }
    chosen
}

impl Tenants {
    /// A new one.
    pub fn admit(&mut self) -> Rc<Tenant> {
        self.admitted += 1;
        Rc::new(Tenant::new(self.admitted))
    }

    /// Who stands for all sessions of a source.
    pub fn of_source(&mut self, source: IpAddr) -> Rc<Tenant> {
        if let Some(known) = self.by_source.get(&source) {
            return known.clone();
        }
        // Sweeping gets rarer as more are left by it: constant cost for each source.
        if self.by_source.len() >= 2 * self.sources_swept + limits::TENANTS_GONE_MAX {
            self.by_source.retain(|_, tenant| Rc::strong_count(tenant) > 1);
            self.sources_swept = self.by_source.len();
        }
        let tenant = self.admit();
        self.by_source.insert(source, tenant.clone());
        tenant
    }

    /// Whose work a captured connection is: its peer's, where the peer may open sessions for anybody.
    pub fn of_captured(&mut self, pod: &PodState, capture: Capture, peer: SocketAddr) -> Rc<Tenant> {
        match capture {
            Capture::InboundHbone => self.of_source(peer.ip()),
            Capture::Outbound | Capture::InboundPlaintext => pod.tenant.clone(),
        }
    }

    /// A tenant has received so many bytes that are to go on.
    #[inline]
    pub fn note_received(&mut self, tenant: &Rc<Tenant>, bytes: usize) {
        self.crowd.note(tenant, limits::EVENT_COST + bytes as i64);
        if self.crowded && bytes == limits::CROWDED_READ_BYTES {
            // It has more, which would have come with it otherwise.
            self.note_left(limits::RECEIVE_BYTES_MAX - limits::CROWDED_READ_BYTES);
        }
    }

    /// A tenant has something done that costs as much.
    pub fn note(&mut self, tenant: &Rc<Tenant>, cost: i64) {
        self.crowd.note(tenant, cost);
    }

    /// What piled up, or was opened, goes to an application of the tenant. What just arrived was counted then.
    #[inline]
    pub fn note_sent(&mut self, tenant: &Rc<Tenant>, bytes: usize) {
        let piled_up = bytes.saturating_sub(limits::RECEIVE_BYTES_MAX);
        if piled_up > 0 {
            self.crowd.note(tenant, piled_up as i64);
        }
        tenant
            .sent
            .set(tenant.sent.get() + limits::SEND_COST + bytes as i64);
    }

    /// An application of the tenant is told the end.
    pub fn note_end(&mut self, tenant: &Rc<Tenant>) {
        self.crowd.note(tenant, limits::END_COST);
        tenant.sent.set(tenant.sent.get() + limits::END_COST);
    }

    /// Whether applications of the tenant may get something in this turn.
    #[inline]
    pub fn may_send(&self, tenant: &Tenant) -> bool {
        if !self.crowded {
            return true;
        }
        let turn = self.crowd.turn();
        if tenant.sent_in.replace(turn) != turn {
            tenant.sent.set(0);
        }
        tenant.sent.get() < limits::TENANT_SENDS_COST
    }

    /// So many bytes are left for another turn because this one is crowded.
    pub fn note_left(&mut self, bytes: usize) {
        self.left_behind += limits::END_COST + bytes as i64;
    }

    /// Tasks are left for the next turn.
    pub fn note_tasks_left(&mut self) {
        self.crowd.note_long();
    }

    pub fn begin_turn(&mut self) {
        self.crowd
            .begin_turn(self.waiting_cost + std::mem::take(&mut self.left_behind));
        // Nothing overtakes what waits.
        self.crowded = self.crowd.is_crowded() || self.has_waiting();
        self.turn_credit = limits::TURN_COST;
    }

    /// Whether tenants are kept to their parts in this turn.
    pub fn is_crowded(&self) -> bool {
        self.crowded
    }

    pub fn has_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// How much one receive may bring.
    pub fn read_bytes_max(&self) -> usize {
        limits::receive_bytes_max(self.crowded)
    }

    /// Above how much in its send buffer a session's applications are not read.
    pub fn output_bytes_max(&self) -> usize {
        match self.crowded {
            true => limits::CROWDED_OUTPUT_BYTES,
            false => limits::OUTPUT_SOFT_BYTES,
        }
    }

    /// How much one send may hand to an application.
    pub fn send_bytes_max(&self) -> usize {
        match self.crowded {
            true => limits::CROWDED_OUTPUT_BYTES,
            false => usize::MAX,
        }
    }

    /// Whether the tenant may do something now. Otherwise it has to wait.
    fn may(&self, tenant: &Tenant, cost: i64) -> bool {
        self.refill(tenant);
        let may = tenant.credit.get() > 0 && tenant.waiting.borrow().is_empty();
        if may {
            tenant.credit.set(tenant.credit.get() - cost);
        }
        may
    }

    /// Puts an event behind all that the tenant waits with.
    fn wait(&mut self, tenant: &Rc<Tenant>, event: Event) {
        self.list(tenant);
        self.waiting_cost += whole_cost_of(&event);
        tenant.waiting.borrow_mut().push_back(event);
    }

    /// Puts the rest of what was begun before all that the tenant waits with.
    fn go_on(&mut self, tenant: &Rc<Tenant>, event: Event) {
        self.list(tenant);
        self.waiting_cost += whole_cost_of(&event);
        tenant.waiting.borrow_mut().push_front(event);
    }

    /// From now on `take_waiting` gives each tenant its part of this turn, once.
    fn ask_all(&mut self) {
        self.unasked = self.queue.len();
    }

    /// What waited and may be done in this turn.
    fn take_waiting(&mut self) -> Option<(Rc<Tenant>, Event)> {
        while self.unasked > 0 {
            let tenant = self.queue.front()?.clone();
            self.refill(&tenant);
            let credit = tenant.credit.get();
            if credit > 0
                && let Some(event) = tenant.waiting.borrow_mut().pop_front()
            {
                let cost = cost_of(&event);
                tenant.credit.set(credit - cost);
                self.turn_credit -= cost;
                self.waiting_cost -= whole_cost_of(&event);
                return Some((tenant.clone(), event));
            }
            self.unasked -= 1;
            self.turn_credit -= limits::EVENT_COST;
            self.queue.pop_front();
            if tenant.waiting.borrow().is_empty() {
                tenant.queued.set(false);
            } else {
                self.queue.push_back(tenant);
            }
            if self.turn_credit <= 0 {
                self.unasked = 0;
            }
        }
        None
    }

    fn refill(&self, tenant: &Tenant) {
        let turn = self.crowd.turn();
        let turns = turn - tenant.turn.replace(turn);
        if turns == 0 || is_planted(Bug::TurnCreditNeverRefilled) {
            return;
        }
        let earned = limits::TENANT_TURN_COST.saturating_mul(turns.min(i64::MAX as u64) as i64);
        let credit = tenant.credit.get().saturating_add(earned);
        tenant.credit.set(credit.min(limits::TENANT_TURN_COST));
    }

    fn list(&mut self, tenant: &Rc<Tenant>) {
        if !tenant.queued.replace(true) {
            self.queue.push_back(tenant.clone());
        }
    }
}

impl<D: Driver + 'static> Core<D> {
    /// Handles an event of a crowded turn, or lets it wait.
    pub(super) fn dispatch_fairly(&mut self, event: Event) {
        let Some(tenant) = self.tenant_of(&event) else {
            return self.dispatch(event);
        };
        if self.tenants.may(&tenant, cost_of(&event)) {
            self.dispatch_part(&tenant, event);
        } else {
            self.note_waiting_receive(&event);
            self.tenants.wait(&tenant, event);
        }
    }

    /// Lets those who wait have their parts of this turn. An event whose owner has gone meanwhile reaches nobody.
    pub(super) fn serve_waiting(&mut self) {
        self.tenants.ask_all();
        while let Some((tenant, event)) = self.tenants.take_waiting() {
            let session = receiving_session(&event);
            self.dispatch_part(&tenant, event);
            if let Some(key) = session {
                self.note_served_receive(key);
            }
        }
    }

    /// What is sent is taken from the back: those of tenants with little to do wait for no send of the busy ones. How
    /// many tunnels and sessions those have.
    pub(super) fn put_busy_first(&mut self) -> [usize; 2] {
        let (tunnels, sessions) = (&self.tunnels, &self.sessions);
        let is_busy = |key: &Key<Tunnel>| tunnels.get(*key).is_some_and(|tunnel| tunnel.tenant().is_busy());
        let busy_tunnels = partition(&mut self.dirty_tunnels, is_busy);
        let is_busy = |key: &Key<Session>| sessions.get(*key).is_some_and(|session| session.tenant.is_busy());
        [busy_tunnels, partition(&mut self.dirty_sessions, is_busy)]
    }

    /// Who causes an event. `None`: what it costs is done by a task, or it is nobody's in particular.
    fn tenant_of(&self, event: &Event) -> Option<Rc<Tenant>> {
        let tenant = match owned(event)? {
            Owned::Task(_) | Owned::Listener(_) => return None,
            Owned::Session(key) => &self.sessions.get(key)?.tenant,
            Owned::Tunnel(key) => self.tunnels.get(key)?.tenant(),
            Owned::Pipe(key, _) => &self.pipes.get(key)?.pod.tenant,
        };
        Some(tenant.clone())
    }

    /// Handles an event, or as much of what a session received as one part of a turn has room for. The rest waits.
    fn dispatch_part(&mut self, tenant: &Rc<Tenant>, mut event: Event) {
        let cost = cost_of(&event);
        if let Some(key) = receiving_session(&event)
            && let Event::Received {
                data: Received::Data(buffer),
                ..
            } = &mut event
            && buffer.len() > limits::CROWDED_READ_BYTES
        {
            self.tenants.note(tenant, cost);
            self.session_received(key, &buffer.bytes()[..limits::CROWDED_READ_BYTES]);
            buffer.consume(limits::CROWDED_READ_BYTES);
            self.note_waiting_receive(&event);
            self.tenants.go_on(tenant, event);
            return;
        }
        self.dispatch(event);
    }

    /// What a session received waits: nothing more is received until it was served. The peer's window of TCP is the
    /// bound then, and blocks are left for others.
    fn note_waiting_receive(&mut self, event: &Event) {
        let session = receiving_session(event).and_then(|key| self.sessions.get_mut(key));
        let Some(session) = session else { return };
        session.receives_waiting += 1;
        if let (1, Transport::Socket(socket)) = (session.receives_waiting, session.transport) {
            self.driver.stop_receive(socket);
        }
    }

    fn note_served_receive(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.receives_waiting -= 1;
        if session.receives_waiting == 0
            && session.receives()
            && let Transport::Socket(socket) = session.transport
        {
            self.driver.receive(socket, ReceiveMode::Stream);
        }
    }
}

fn owned(event: &Event) -> Option<Owned> {
    match event {
        Event::Accepted { owner, .. }
        | Event::AcceptFailed { owner, .. }
        | Event::Connected { owner, .. }
        | Event::Received { owner, .. }
        | Event::Sent { owner, .. } => Owned::from_owner(*owner),
        Event::Woken => None,
    }
}

fn receiving_session(event: &Event) -> Option<Key<Session>> {
    match (event, owned(event)) {
        (Event::Received { .. }, Some(Owned::Session(key))) => Some(key),
        _ => None,
    }
}

/// What is done at once costs.
fn cost_of(event: &Event) -> i64 {
    whole_cost_of(event).min(limits::EVENT_COST + limits::CROWDED_READ_BYTES as i64)
}

fn whole_cost_of(event: &Event) -> i64 {
    limits::EVENT_COST + event.received_bytes() as i64
}

#[cfg(test)]
mod tests;
