//! A worker's loop: one turn after the other until it is told to end and everything has ended.

use std::io;
use std::time::Duration;

use super::core::{Core, TimerEvent};
use super::hbone::serve;
use super::listen::Captured;
use super::outcome::Outcome;
use super::shell::Shell;
use super::{inbound, outbound, passthrough};
use crate::bridge::orders::{Capture, Inbox, Order};
use crate::clock;
use crate::limits;
use crate::runtime::tasks::Executor;
use crate::sys::driver::Driver;

/// Runs turns until a drain is over.
pub fn run<D: Driver + 'static>(core: Core<D>, executor: &Executor, inbox: &Inbox) -> io::Result<()> {
    let shell = Shell::new(core, executor.spawner());
    let mut has_tasks = false;
    loop {
        let woken = shell.with(|core| core.poll(has_tasks))?;
        if woken {
            shell.with(|core| core.carry_out(inbox));
        }
        start_journeys(&shell);
        has_tasks = run_tasks(executor);
        // What a task gave to a session that already has a request for another task starts in the next turn.
        has_tasks |= shell.with(|core| {
            core.flush();
            core.answer_reports();
            !core.captured.is_empty() || !core.requests.is_empty()
        });
        // A send that failed in the flush has answered tasks that waited for its session.
        has_tasks |= executor.has_woken();
        if shell.with(|core| core.is_drained()) {
            return Ok(());
        }
    }
}

/// Runs woken tasks for a bounded time: a handshake costs up to a millisecond, and relays wait meanwhile. `true`
/// when some are left.
fn run_tasks(executor: &Executor) -> bool {
    let until = clock::now() + limits::TASKS_TURN_TIME;
    while executor.run(limits::TASKS_BATCH) {
        if clock::now() >= until {
            return true;
        }
    }
    false
}

/// Starts a task for everything that arrived in this turn.
fn start_journeys<D: Driver + 'static>(shell: &Shell<D>) {
    let (captured, requests, has_room) = shell.with(|core| {
        (
            std::mem::take(&mut core.captured),
            std::mem::take(&mut core.requests),
            core.has_room(),
        )
    });
    for captured in captured {
        if !has_room {
            // The newest is shed: closing it tells the application at once.
            shell.with(|core| core.shed += 1);
            continue;
        }
        match captured.capture {
            Capture::Outbound => shell.spawn(outbound::serve(shell.clone(), captured)),
            Capture::InboundHbone => shell.spawn(serve::accept(shell.clone(), captured)),
            Capture::InboundPlaintext => shell.spawn(passthrough::serve(shell.clone(), captured)),
        }
    }
    for request in requests {
        shell.spawn(inbound::serve(shell.clone(), request));
    }
}

impl<D: Driver + 'static> Core<D> {
    fn carry_out(&mut self, inbox: &Inbox) {
        while let Some(order) = inbox.next() {
            match order {
                Order::AddPod { pod, listeners } => self.add_pod(pod, listeners),
                Order::RemovePod { uid } => self.remove_pod(&uid),
                Order::Certificate { identity, result } => self.take_certificate(identity, result),
                Order::HandOver {
                    pod,
                    capture,
                    fd,
                    peer,
                    share,
                } => {
                    // The pod may have gone meanwhile: the connection is closed then.
                    if let Some(pod) = self.pods.get(&pod) {
                        self.captured.push(Captured {
                            pod,
                            capture,
                            fd,
                            peer,
                            share,
                        });
                    }
                }
                Order::Snapshot => self.snapshot_waiters.clear(),
                Order::Drain { deadline } => self.start_drain(deadline),
                Order::Report(asked) => self.reports.push(asked),
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
            self.close_session(key, "connection closed due to connection drain");
        }
        self.drain_over = true;
    }

    fn is_drained(&self) -> bool {
        self.draining
            && self.tunnels.is_empty()
            && self.pipes.is_empty()
            && self.sessions.is_empty()
            && (self.drain_over || self.waits.is_empty())
    }
}
