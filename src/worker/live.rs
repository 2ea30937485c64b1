//! Which connections a worker has at this moment, in pages, for the dump.
//!
//! Runs on the worker at the end of a turn: one page looks at a bounded number of slots, whoever asks for more waits for
//! another turn. Specification: data-plane contract section 15, admin contract section 5.5.

use std::net::SocketAddr;

use super::core::Core;
use super::pods::PodState;
use super::shell::Shell;
use super::telemetry::Account;
use crate::bridge::traffic::{LiveConnection, LiveCursor, LivePage, Protocol};
use crate::limits;
use crate::runtime::slab::Key;
use crate::sys::driver::Driver;

/// A connection that is being set up. Those that are set up are in the tables of tunnels and pipes.
pub struct Attempt(LiveConnection);

/// Keeps an attempt in its table until it is dropped.
pub struct Attempting<D: Driver + 'static> {
    shell: Shell<D>,
    key: Key<Attempt>,
}

impl<D: Driver + 'static> Attempting<D> {
    /// `actual`: where the connection is made to.
    pub fn begin(shell: &Shell<D>, pod: &PodState, account: &Account, actual: SocketAddr) -> Self {
        let attempt = Attempt(live(pod, account, actual));
        Self {
            shell: shell.clone(),
            key: shell.with(|core| core.attempts.insert(attempt)),
        }
    }
}

impl<D: Driver + 'static> Drop for Attempting<D> {
    fn drop(&mut self) {
        self.shell.with(|core| core.attempts.remove(self.key));
    }
}

const ATTEMPTS: usize = 0;
const TUNNELS: usize = 1;
const PIPES: usize = 2;

impl<D: Driver + 'static> Core<D> {
    /// Answers those who asked in this turn.
    pub fn answer_lists(&mut self) {
        while let Some((from, asked)) = self.lists.pop() {
            // Who asked may have gone.
            let _ = asked.send(self.page(from));
        }
    }

    fn page(&self, mut at: LiveCursor) -> LivePage {
        let mut page = LivePage::default();
        for _ in 0..limits::LIVE_SLOTS_PAGE_MAX {
            let slots = match at.table {
                ATTEMPTS => self.attempts.slots(),
                TUNNELS => self.tunnels.slots(),
                PIPES => self.pipes.slots(),
                _ => return page,
            };
            if at.slot >= slots {
                at = LiveCursor {
                    table: at.table + 1,
                    slot: 0,
                };
                continue;
            }
            page.connections.extend(self.live_at(at));
            at.slot += 1;
        }
        page.next = Some(at);
        page
    }

    /// `None` when nothing is in the slot.
    fn live_at(&self, at: LiveCursor) -> Option<LiveConnection> {
        match at.table {
            ATTEMPTS => self.attempts.at(at.slot).map(|(_, attempt)| attempt.0.clone()),
            TUNNELS => {
                let (_, tunnel) = self.tunnels.at(at.slot)?;
                Some(live(&tunnel.pod, &tunnel.account, tunnel.actual))
            }
            _ => {
                let (_, pipe) = self.pipes.at(at.slot)?;
                Some(live(&pipe.pod, &pipe.account, pipe.account.destination_address))
            }
        }
    }
}

fn live(pod: &PodState, account: &Account, actual: SocketAddr) -> LiveConnection {
    LiveConnection {
        pod: pod.pod.uid.clone(),
        direction: account.direction,
        source: account.source_address,
        original: account.original.clone(),
        actual,
        protocol: match (&account.source_identity, account.is_through_gateway) {
            (None, _) => Protocol::Tcp,
            (Some(_), false) => Protocol::Hbone,
            (Some(_), true) => Protocol::DoubleHbone,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::bridge::log::Direction;
    use crate::bridge::traffic::Original;
    use crate::runtime::tasks::Executor;
    use crate::worker::fixture;

    #[test]
    fn every_connection_is_on_a_page_and_no_page_looks_at_more_than_its_slots() {
        const CONNECTIONS: usize = 3 * limits::LIVE_SLOTS_PAGE_MAX + 17;
        let mut core = fixture::core(&Executor::default());
        let pod = fixture::pod();
        let keys: Vec<_> = (0..CONNECTIONS)
            .map(|index| {
                let source = ([198, 18, 0, 1], index as u16).into();
                let target = ([198, 18, 0, 2], 80).into();
                let account = Account::new(Direction::Outbound, core.now, source, target);
                core.attempts.insert(Attempt(live(&pod, &account, target)))
            })
            .collect();
        for key in keys.iter().step_by(2) {
            core.attempts.remove(*key);
        }
        let (mut seen, mut pages, mut next) = (Vec::new(), 0, Some(LiveCursor::default()));
        while let Some(from) = next {
            let (answer, answered) = mpsc::channel();
            core.lists.push((from, answer));
            core.answer_lists();
            let page = answered.recv().expect("answered");
            assert!(page.connections.len() <= limits::LIVE_SLOTS_PAGE_MAX);
            seen.extend(page.connections.iter().map(|it| it.source.port()));
            assert!(page.connections.iter().all(|it| {
                it.original == Original::Address(it.actual)
                    && it.protocol == Protocol::Tcp
                    && it.pod == pod.pod.uid
            }));
            next = page.next;
            pages += 1;
        }
        let expected: Vec<u16> = (0..CONNECTIONS as u16).skip(1).step_by(2).collect();
        assert_eq!(seen, expected);
        assert_eq!(pages, 4);
    }
}
