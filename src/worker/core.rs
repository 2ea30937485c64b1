//! All data of one worker: its driver, its tables of sessions, tunnels, pipes and waits, and one turn over
//! them.
//!
//! A turn: poll the driver, dispatch each event to its slot, fire timers, carry out orders, run woken tasks,
//! then flush what the turn produced. Bytes move here and in the slots; tasks only set connections up.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::Setup;
use super::buffers::Buffers;
use super::certificates::CertificateCache;
use super::hbone::carrier::Carrier;
use super::hbone::fence::Fence;
use super::hbone::pool::Pool;
use super::hbone::serve::Request;
use super::hbone::session::{Blocked, Session, SessionEvent};
use super::hbone::source::Sources;
use super::listen::{Captured, Listener};
use super::live::Attempt;
use super::lookups::Lookups;
use super::owner::Owned;
use super::pipe::Pipe;
use super::pods::Pods;
use super::recheck::Recheck;
use super::room::Room;
use super::settings::Settings;
use super::telemetry::Telemetry;
use super::tenants::Tenants;
use super::trouble::Troubles;
use super::tunnel::Tunnel;
use super::turn_time::TurnTime;
use crate::bridge::demands::Demands;
use crate::bridge::load::LoadTable;
use crate::bridge::orders::{WorkerHandle, WorkerReport};
use crate::bridge::revocation::Revocations;
use crate::bridge::snapshot::SnapshotCell;
use crate::bridge::traffic::{LiveCursor, LivePage};
use crate::clock;
use crate::limits;
use crate::runtime::oneshot;
use crate::runtime::slab::{Key, Slab};
use crate::runtime::tasks::Spawner;
use crate::runtime::timer::Wheel;
use crate::sys::driver::{Driver, Event, Received, SocketId};

/// What a task waits for on one of its sockets or timers.
#[derive(Default)]
pub struct Wait {
    pub connected: Option<io::Result<()>>,
    pub received: Option<Received>,
    pub sent: Option<io::Result<()>>,
    pub expired: bool,
    pub waker: Option<Waker>,
}

/// What a timer does when it fires.
#[derive(Debug, Clone, Copy)]
pub enum TimerEvent {
    /// A task's deadline.
    Wake(Key<Wait>),
    /// Liveness and idleness of a session.
    Session(Key<Session>),
    /// Accepting resumes after descriptors had run out.
    Listen(Key<Listener>),
    /// What one side of a connection said before it was gone reaches the other now or never.
    TunnelParting(Key<Tunnel>),
    PipeParting(Key<Pipe>),
    /// Troubles of destinations are forgotten when their time is over.
    Sweep,
    /// The worker measures how busy it was.
    Measure,
    /// The end of a drain.
    DrainDeadline,
}

pub struct Core<D: Driver> {
    pub index: usize,
    pub driver: D,
    /// Tells a long turn from one that the scheduler interrupted.
    turn_time: TurnTime,
    /// Read once a turn.
    pub now: Instant,
    pub settings: Rc<Settings>,
    pub snapshot: SnapshotCell,
    pub demands: Demands,
    pub peers: Arc<[WorkerHandle]>,
    pub load: LoadTable,
    pub revocations: Revocations,
    pub random: fastrand::Rng,
    pub timers: Wheel<TimerEvent>,
    pub waits: Slab<Wait>,
    pub listeners: Slab<Listener>,
    pub sessions: Slab<Session>,
    /// What sessions hold for peers that do not read, by source.
    pub sources: Sources,
    /// Streams of sessions that carry other sessions.
    pub carriers: Slab<Carrier>,
    pub tunnels: Slab<Tunnel>,
    pub pipes: Slab<Pipe>,
    /// Connections that are being set up, to be shown.
    pub attempts: Slab<Attempt>,
    pub pods: Pods,
    pub pool: Pool,
    pub troubles: Troubles,
    pub certificates: CertificateCache,
    pub(super) lookups: Lookups,
    pub buffers: Buffers,
    pub telemetry: Telemetry,
    pub recheck: Recheck,
    pub fence: Fence,
    /// Who shares this worker, and what waits for its turn.
    pub tenants: Tenants,
    /// How many connections and open files it has, and may have.
    pub room: Room,
    /// Tasks that wait for another snapshot.
    pub snapshot_waiters: Vec<oneshot::Sender<()>>,
    pub spawner: Spawner,
    /// Sessions that have something to seal or send at the end of this turn.
    pub dirty_sessions: Vec<Key<Session>>,
    /// Tunnels that got bytes for their application in this turn.
    pub dirty_tunnels: Vec<Key<Tunnel>>,
    /// Those whose applications could have had more in a crowded turn.
    pub later_tunnels: VecDeque<Key<Tunnel>>,
    /// Connections captured in this turn; a task is started for each at its end.
    pub captured: Vec<Captured>,
    /// CONNECT requests that arrived in this turn; likewise.
    pub requests: Vec<Request>,
    /// Those who asked for a report in this turn.
    pub reports: Vec<mpsc::Sender<WorkerReport>>,
    /// Those who asked for connections, and from where on.
    pub lists: Vec<(LiveCursor, mpsc::Sender<LivePage>)>,
    /// Other lists came into force in this turn; a task compares the sessions with them.
    pub revocations_changed: bool,
    /// Set by a drain order.
    pub draining: bool,
    /// Set when the drain's deadline has passed.
    pub drain_over: bool,
    /// Connections closed, and streams refused, at once because the worker had no room for them.
    pub shed: u64,
    /// Of `limits::REMAINS_BYTES_MAX`.
    pub remains_bytes: usize,
    scratch: Scratch,
    busy: Duration,
    measured_at: Instant,
    measuring: bool,
}

/// Memory that one turn after the other reuses.
struct Scratch {
    events: Vec<Event>,
    /// One for each level: a session inside of another takes in bytes while the outer one does.
    session_events: Vec<Vec<SessionEvent>>,
    unblocked: Vec<Blocked>,
    due: Vec<TimerEvent>,
}

impl Scratch {
    /// With room for ordinary turns from the start, so that a relay that has run for a while never allocates.
    fn new() -> Self {
        Self {
            events: Vec::with_capacity(limits::EVENTS_TURN_MAX),
            session_events: vec![Vec::with_capacity(limits::EVENTS_TURN_MAX)],
            unblocked: Vec::new(),
            due: Vec::with_capacity(limits::EVENTS_TURN_MAX),
        }
    }
}

/// How often a worker publishes how busy it was.
const MEASURE_INTERVAL: Duration = Duration::from_millis(100);

impl<D: Driver + 'static> Core<D> {
    pub fn new(setup: Setup, driver: D, peers: Arc<[WorkerHandle]>, spawner: Spawner) -> Self {
        let now = clock::now();
        let timers = Wheel::new(now);
        Self {
            index: setup.index,
            driver,
            now,
            buffers: Buffers::default(),
            telemetry: Telemetry::new(setup.log, setup.traffic),
            recheck: Recheck::default(),
            fence: Fence::default(),
            tenants: Tenants::default(),
            room: Room::new(setup.files),
            settings: Rc::new(setup.settings),
            snapshot: setup.snapshot,
            demands: setup.demands,
            peers,
            revocations: setup.revocations,
            load: setup.load,
            random: fastrand::Rng::with_seed(setup.seed),
            timers,
            waits: Slab::default(),
            listeners: Slab::default(),
            sessions: Slab::default(),
            sources: Sources::default(),
            carriers: Slab::default(),
            tunnels: Slab::default(),
            pipes: Slab::default(),
            attempts: Slab::default(),
            pods: Pods::default(),
            pool: Pool::default(),
            troubles: Troubles::default(),
            certificates: CertificateCache::default(),
            lookups: Lookups::default(),
            snapshot_waiters: Vec::new(),
            spawner,
            dirty_sessions: Vec::new(),
            dirty_tunnels: Vec::new(),
            later_tunnels: VecDeque::new(),
            captured: Vec::new(),
            requests: Vec::new(),
            reports: Vec::new(),
            lists: Vec::new(),
            revocations_changed: false,
            draining: false,
            drain_over: false,
            shed: 0,
            remains_bytes: 0,
            scratch: Scratch::new(),
            busy: Duration::ZERO,
            measured_at: now,
            turn_time: TurnTime::default(),
            measuring: false,
        }
    }

    /// Waits for events and dispatches them. `has_tasks`: woken tasks wait, so the driver must not.
    /// Returns whether another thread woke the worker.
    pub fn poll(&mut self, has_tasks: bool) -> io::Result<bool> {
        let timeout = if has_tasks {
            Some(Duration::ZERO)
        } else {
            self.timers.next_in(self.now)
        };
        let mut events = std::mem::take(&mut self.scratch.events);
        self.driver.poll(timeout, &mut events)?;
        self.now = clock::now();
        if !events.is_empty() {
            self.start_measuring();
        }
        let mut woken = false;
        self.tenants.begin_turn();
        self.driver.set_crowded(self.tenants.is_crowded());
        self.resume_tunnels();
        for event in events.drain(..) {
            if matches!(event, Event::Woken) {
                woken = true;
            } else if self.tenants.is_crowded() {
                self.dispatch_fairly(event);
            } else {
                self.dispatch(event);
            }
        }
        if self.tenants.has_waiting() {
            self.serve_waiting();
        }
        self.scratch.events = events;
        self.fire_timers();
        Ok(woken)
    }

    /// Seals and sends what the turn produced so far.
    pub fn send_out(&mut self) {
        if self.tenants.is_crowded() {
            let busy = self.put_busy_first();
            self.send_all_but(busy);
        }
        self.send_all_but([0, 0]);
    }

    /// So many tunnels and sessions, the first ones, stay.
    pub(super) fn send_all_but(&mut self, [tunnels, sessions]: [usize; 2]) {
        // Applications first: bytes taken by them give window back, which the session flush then carries.
        while self.dirty_tunnels.len() > tunnels
            && let Some(key) = self.dirty_tunnels.pop()
        {
            self.flush_tunnel(key);
        }
        while self.dirty_sessions.len() > sessions
            && let Some(key) = self.dirty_sessions.pop()
        {
            self.flush_session(key);
        }
    }

    /// The same at the turn's end, and hands its records to the log.
    pub fn flush(&mut self) {
        self.send_out();
        self.buffers.end_turn();
        self.telemetry.flush();
        self.room.tell(self.sessions.len() + self.listeners.len());
        let turn = clock::now().saturating_duration_since(self.now);
        self.busy += turn;
        self.load.record_turn(self.index, self.turn_time.of(turn));
    }

    pub(super) fn dispatch(&mut self, event: Event) {
        let (Event::Accepted { owner, .. }
        | Event::AcceptFailed { owner, .. }
        | Event::Connected { owner, .. }
        | Event::Received { owner, .. }
        | Event::Sent { owner, .. }) = &event
        else {
            return;
        };
        let Some(owned) = Owned::from_owner(*owner) else {
            tracing::error!(target: "worker", owner = owner.0, "an event for a socket that nobody owns was dropped");
            return;
        };
        match owned {
            Owned::Listener(key) => self.listener_event(key, event),
            Owned::Task(key) => self.task_event(key, event),
            Owned::Session(key) => self.session_event(key, event),
            Owned::Tunnel(key) => self.tunnel_event(key, event),
            Owned::Pipe(key, side) => self.pipe_event(key, side, event),
        }
    }

    fn task_event(&mut self, key: Key<Wait>, event: Event) {
        let Some(wait) = self.waits.get_mut(key) else {
            return;
        };
        match event {
            Event::Connected { result, .. } => wait.connected = Some(result),
            Event::Received { data, .. } => wait.received = Some(data),
            Event::Sent { error, .. } => wait.sent = Some(error.map_or(Ok(()), Err)),
            Event::Accepted { .. } | Event::AcceptFailed { .. } | Event::Woken => {}
        }
        if let Some(waker) = wait.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn fire_timers(&mut self) {
        let mut due = std::mem::take(&mut self.scratch.due);
        self.timers.expire(self.now, &mut due);
        for event in due.drain(..) {
            match event {
                TimerEvent::Wake(key) => {
                    if let Some(wait) = self.waits.get_mut(key) {
                        wait.expired = true;
                        if let Some(waker) = wait.waker.take() {
                            waker.wake();
                        }
                    }
                }
                TimerEvent::Session(key) => self.session_timer(key),
                TimerEvent::Listen(key) => self.resume_listener(key),
                TimerEvent::TunnelParting(key) => self.part_tunnel(key),
                TimerEvent::PipeParting(key) => self.part_pipe(key),
                TimerEvent::Sweep => self.sweep_troubles(),
                TimerEvent::Measure => self.measure(),
                TimerEvent::DrainDeadline => self.end_drain(),
            }
        }
        self.scratch.due = due;
    }

    /// Events arrived: from now on it is measured how busy the worker is, until it has been idle for a while.
    fn start_measuring(&mut self) {
        if !self.measuring {
            self.measuring = true;
            self.busy = Duration::ZERO;
            self.measured_at = self.now;
            self.timers
                .start(self.now + MEASURE_INTERVAL, TimerEvent::Measure);
        }
    }

    /// Publishes how busy the worker was, for placement.
    fn measure(&mut self) {
        let elapsed = self
            .now
            .saturating_duration_since(self.measured_at)
            .as_micros()
            .max(1);
        let busy = (self.busy.as_micros() * 1000 / elapsed).min(1000) as u32;
        let smoothed = (self.load.busy_per_mille(self.index) + busy) / 2;
        self.load.set_busy(self.index, smoothed);
        self.busy = Duration::ZERO;
        self.measured_at = self.now;
        // An idle worker is left asleep: the first events after a pause start measuring again.
        self.measuring = smoothed > 0;
        if self.measuring {
            self.timers
                .start(self.now + MEASURE_INTERVAL, TimerEvent::Measure);
        }
    }

    pub fn take_session_events(&mut self) -> Vec<SessionEvent> {
        self.scratch.session_events.pop().unwrap_or_default()
    }

    pub fn put_session_events(&mut self, events: Vec<SessionEvent>) {
        debug_assert!(events.is_empty());
        self.scratch.session_events.push(events);
    }

    pub fn take_unblocked(&mut self) -> Vec<Blocked> {
        std::mem::take(&mut self.scratch.unblocked)
    }

    pub fn put_unblocked(&mut self, unblocked: Vec<Blocked>) {
        debug_assert!(unblocked.is_empty());
        self.scratch.unblocked = unblocked;
    }

    pub fn mark_session(&mut self, key: Key<Session>) {
        if let Some(session) = self.sessions.get_mut(key)
            && !session.dirty
        {
            session.dirty = true;
            self.dirty_sessions.push(key);
        }
    }

    pub fn mark_tunnel(&mut self, key: Key<Tunnel>) {
        if let Some(tunnel) = self.tunnels.get_mut(key)
            && !tunnel.dirty
        {
            tunnel.dirty = true;
            self.dirty_tunnels.push(key);
        }
    }

    /// Where the application wanted to go before it was redirected here.
    pub fn original_destination(&self, id: SocketId) -> Option<SocketAddr> {
        self.driver.original_destination(id).ok()
    }

    pub fn local_address(&self, id: SocketId) -> Option<SocketAddr> {
        self.driver.local_address(id).ok()
    }
}
