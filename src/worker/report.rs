//! What a worker holds and has done, told to whoever asks by order: tests, and the control thread for metrics.

use super::core::Core;
use super::hbone::carrier::Carrier;
use super::hbone::session::Session;
use super::tunnel::Tunnel;
use crate::bridge::orders::WorkerReport;
use crate::sys::driver::Driver;

impl<D: Driver + 'static> Core<D> {
    /// Answers those who asked in this turn. Called at its end, when nothing is in anybody's hands.
    pub fn answer_reports(&mut self) {
        while let Some(asked) = self.reports.pop() {
            // Who asked may have gone.
            let _ = asked.send(self.report());
        }
    }

    fn report(&self) -> WorkerReport {
        let sessions = || self.sessions.iter().map(|(_, session)| session);
        let tunnels = self.tunnels.iter().map(|(_, tunnel)| tunnel);
        let carriers = self.carriers.iter().map(|(_, carrier)| carrier);
        WorkerReport {
            counters: self.driver.counters(),
            in_use: self.driver.in_use(),
            sessions: self.sessions.len(),
            streams: sessions().map(|session| session.users.len()).sum(),
            tunnels: self.tunnels.len(),
            pipes: self.pipes.len(),
            waits: self.waits.len(),
            places: self.room.taken(),
            listeners: self.listeners.len(),
            pooled: self.pool.len(),
            buffered_bytes: sessions().map(Session::buffered_bytes).sum::<usize>()
                + tunnels.map(Tunnel::buffered_bytes).sum::<usize>()
                + carriers.map(Carrier::buffered_bytes).sum::<usize>(),
            chunks_pinned: self.buffers.chunks_pinned(),
            shed: self.shed,
        }
    }
}
