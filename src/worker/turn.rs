//! A worker's loop: one turn after the other until it is told to end and everything has ended. Who runs the turns,
//! a thread of its own or the simulation, makes no difference to what happens in them.

use std::io;
use std::time::Duration;

use super::core::{Core, TimerEvent};
use super::hbone::session::Ending;
use super::hbone::{revocation, serve};
use super::outcome::Outcome;
use super::shell::Shell;
use super::{inbound, outbound, passthrough};
use crate::bridge::orders::{Capture, Inbox, Order};
use crate::clock;
use crate::limits;
use crate::runtime::tasks::Executor;
use crate::sys::driver::Driver;

/// A worker that is ready to run: its data, its tasks, its orders.
pub struct Worker<D: Driver + 'static> {
    shell: Shell<D>,
    executor: Executor,
    inbox: Inbox,
    has_tasks: bool,
}

/// Whether a worker goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// `busy`: there is work that waits for nothing, so the next turn does not sleep.
    Goes { busy: bool },
    /// Its drain is over.
    Over,
}

impl<D: Driver + 'static> Worker<D> {
    pub fn new(core: Core<D>, executor: Executor, inbox: Inbox) -> Self {
        Self {
            shell: Shell::new(core, executor.spawner()),
            executor,
            inbox,
            has_tasks: false,
        }
    }

    /// Runs turns until a drain is over.
    pub fn run(&mut self) -> io::Result<()> {
        while self.turn()? != Life::Over {}
        Ok(())
    }

    pub fn turn(&mut self) -> io::Result<Life> {
        let woken = self.shell.with(|core| core.poll(self.has_tasks))?;
        if woken {
            self.shell.with(|core| core.carry_out(&self.inbox));
        }
        start_journeys(&self.shell);
        let crowded = self.shell.with(|core| core.tenants.is_crowded());
        // What relays have to say does not wait for tasks.
        if crowded && self.executor.has_woken() {
            self.shell.with(Core::send_out);
        }
        let mut has_tasks = run_tasks(&self.executor, crowded);
        if has_tasks {
            self.shell.with(|core| core.tenants.note_tasks_left());
        }
        // What a task gave to a session that already has a request for another task starts in the next turn.
        has_tasks |= self.shell.with(|core| {
            let has_unchecked = core.continue_recheck() | core.continue_fence();
            core.flush();
            core.answer_reports();
            core.answer_lists();
            let has_new = !core.captured.is_empty() || !core.requests.is_empty();
            has_unchecked || has_new || core.tenants.has_waiting() || !core.later_tunnels.is_empty()
        });
        // A send that failed in the flush has answered tasks that waited for its session.
        has_tasks |= self.executor.has_woken();
        self.has_tasks = has_tasks;
        // What was accepted before the drain is still served.
        Ok(match self.shell.with(|core| core.is_drained(has_tasks)) {
            true => Life::Over,
            false => Life::Goes { busy: has_tasks },
        })
    }

    /// Looks at the worker's data between turns.
    pub fn look<R>(&self, look: impl FnOnce(&mut Core<D>) -> R) -> R {
        self.shell.with(look)
    }
}

/// Runs woken tasks for a bounded time: a handshake costs up to a millisecond, and relays wait meanwhile. `true`
/// when some are left.
fn run_tasks(executor: &Executor, crowded: bool) -> bool {
    if !executor.has_woken() {
        return false;
    }
    let (time, batch) = match crowded {
        true => {
            executor.take_turns();
            (limits::CROWDED_TASKS_TURN_TIME, 1)
        }
        false => (limits::TASKS_TURN_TIME, limits::TASKS_BATCH),
    };
    let until = clock::now() + time;
    while executor.run(batch) {
        if clock::now() >= until {
            return true;
        }
    }
    false
}

/// Starts a task for everything that arrived in this turn.
fn start_journeys<D: Driver + 'static>(shell: &Shell<D>) {
    if shell.with(|core| std::mem::take(&mut core.revocations_changed)) {
        shell.spawn(revocation::compare_sessions(shell.clone()));
    }
    let (captured, requests) = shell.with(|core| {
        (
            std::mem::take(&mut core.captured),
            std::mem::take(&mut core.requests),
        )
    });
    for captured in captured {
        let lane = captured.unbegun.lane();
        match captured.capture {
            Capture::Outbound => shell.spawn_in(lane, outbound::serve(shell.clone(), captured)),
            Capture::InboundHbone => shell.spawn_in(lane, serve::accept(shell.clone(), captured)),
            Capture::InboundPlaintext => shell.spawn_in(lane, passthrough::serve(shell.clone(), captured)),
        }
    }
    for request in requests {
        shell.spawn_in(request.lane, inbound::serve(shell.clone(), request));
    }
}

impl<D: Driver + 'static> Core<D> {
    fn carry_out(&mut self, inbox: &Inbox) {
        while let Some(order) = inbox.next() {
            match order {
                Order::AddPod { pod, listeners } => self.add_pod(pod, listeners),
                Order::RemovePod { uid } => self.remove_pod(&uid),
                Order::Certificate { identity, result } => self.take_certificate(identity, result),
                Order::Answer { question, answer } => self.take_answer(&question, &answer),
                Order::ForgetCertificate { identity } => self.forget_certificate(&identity),
                Order::HandOver {
                    pod,
                    capture,
                    fd,
                    peer,
                    share,
                } => {
                    // The pod may have gone meanwhile: the connection is closed then.
                    if let Some(pod) = self.pods.get(&pod) {
                        self.capture(pod, capture, fd, peer, share);
                    }
                }
                Order::Snapshot => {
                    self.snapshot_waiters.clear();
                    self.start_recheck();
                    self.start_fence();
                }
                Order::Revocations => self.revocations_changed = true,
                Order::Drain { deadline } => self.start_drain(deadline),
                Order::Report(asked) => self.reports.push(asked),
                Order::ListConnections { from, answer } => self.lists.push((from, answer)),
            }
        }
    }

    /// Stops accepting; connections may finish until the deadline.
    fn start_drain(&mut self, deadline: Duration) {
        if self.draining {
            return;
        }
        self.draining = true;
        for key in self.pods.listeners() {
            self.remove_listener(key);
        }
        for key in self.sessions.keys() {
            if let Some(session) = self.sessions.get_mut(key) {
                session.http2.goaway(crate::wire::http2::ErrorCode::NoError, "");
            }
            self.retire_session(key);
        }
        self.timers.start(self.now + deadline, TimerEvent::DrainDeadline);
    }

    /// The deadline of a drain passed: what is left is cut.
    pub fn end_drain(&mut self) {
        for key in self.tunnels.keys() {
            self.cut_tunnel(key, Outcome::Drained);
        }
        for key in self.pipes.keys() {
            self.cut_pipe(key, Outcome::Drained);
        }
        for key in self.sessions.keys() {
            self.close_session(key, &Ending::Drained);
        }
        self.drain_over = true;
    }

    fn is_drained(&self, busy: bool) -> bool {
        self.draining
            && self.tunnels.is_empty()
            && self.pipes.is_empty()
            && self.sessions.is_empty()
            && (self.drain_over || (self.waits.is_empty() && !busy))
    }
}
