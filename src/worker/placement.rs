//! Which worker serves a captured connection. Pure: loads come in, an index comes out.

use crate::bridge::load::LoadTable;
use crate::bridge::orders::Capture;

/// Home keeps its connections until it is this busy: sessions to a destination do not multiply needlessly.
const BUSY_PER_MILLE: u32 = 700;
/// Moving pays only when the other worker is clearly less busy.
const BUSY_MARGIN_PER_MILLE: u32 = 150;

/// `random` draws a number below its argument.
pub fn place(
    capture: Capture,
    home: usize,
    load: &LoadTable,
    mut random: impl FnMut(usize) -> usize,
) -> usize {
    let workers = load.workers();
    if workers == 1 {
        return home;
    }
    match capture {
        // Few, long and heavy: always balanced, two random choices plus home.
        Capture::InboundHbone => {
            let candidates = [home, random(workers), random(workers)];
            candidates
                .into_iter()
                .min_by_key(|worker| (load.connections(*worker), load.busy_per_mille(*worker)))
                .unwrap_or(home)
        }
        Capture::Outbound | Capture::InboundPlaintext => {
            let busy = load.busy_per_mille(home);
            if busy < BUSY_PER_MILLE {
                return home;
            }
            let other = [random(workers), random(workers)]
                .into_iter()
                .min_by_key(|worker| load.busy_per_mille(*worker))
                .unwrap_or(home);
            if load.busy_per_mille(other) + BUSY_MARGIN_PER_MILLE < busy {
                other
            } else {
                home
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inbound_sessions_spread_evenly_however_few_they_are() {
        let load = LoadTable::new(4);
        let mut random = fastrand::Rng::with_seed(1);
        let _shares: Vec<_> = (0..16)
            .map(|_| load.share(place(Capture::InboundHbone, 0, &load, |n| random.usize(0..n))))
            .collect();
        let most = (0..4).map(|worker| load.connections(worker)).max();
        assert!(
            most <= Some(6),
            "16 sessions over 4 workers, the fullest has {most:?}"
        );
    }

    #[test]
    fn outbound_connections_stay_at_home_until_home_is_busy() {
        let load = LoadTable::new(2);
        assert_eq!(place(Capture::Outbound, 1, &load, |_| 0), 1);
        load.set_busy(1, 900);
        assert_eq!(place(Capture::Outbound, 1, &load, |_| 0), 0);
        load.set_busy(0, 850);
        assert_eq!(place(Capture::Outbound, 1, &load, |_| 0), 1);
    }
}
