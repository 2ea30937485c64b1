//! Room for connections on a worker, and who gets the last of it.
//!
//! Each connection has a place from the moment that it was accepted, or asked for, until it is over: it counts for its
//! worker and for its tenant. The less is free, the fewer places a tenant may have and get a further one
//! (`limits::places_tenant_max`): the greediest is the first that gets none, whoever has few gets some for long. Nothing
//! that lives is ended for that, and how many others have does not have to be known.
//!
//! On the worker's thread.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;

use super::core::Core;
use super::pods::PodState;
use super::tenants::Tenant;
use crate::bridge::traffic::Refusal;
use crate::limits;
use crate::sys::driver::Driver;

/// The places of one worker.
#[derive(Default)]
pub struct Room {
    taken: Rc<Cell<usize>>,
}

/// One connection's, until it is dropped.
pub struct Place {
    taken: Rc<Cell<usize>>,
    tenant: Rc<Tenant>,
}

/// Why there is no place for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    #[error(
        "too many connections of one worker at once: {} are allowed",
        limits::CONNECTIONS_WORKER_MAX
    )]
    Worker,
    /// Whoever has fewer gets one.
    #[error(
        "too many connections of one pod or source at once: {limit} are allowed while its worker has no more room \
         than now"
    )]
    Tenant { limit: usize },
}

impl NoRoom {
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Worker => Refusal::WorkerFull,
            Self::Tenant { .. } => Refusal::TenantPart,
        }
    }
}

impl Room {
    /// # Errors
    /// The worker is full, or the tenant has its part of it: the newest is shed.
    pub fn take(&self, tenant: &Rc<Tenant>) -> Result<Place, NoRoom> {
        let free = limits::CONNECTIONS_WORKER_MAX - self.taken();
        if free == 0 {
            return Err(NoRoom::Worker);
        }
        let limit = limits::places_tenant_max(free);
        if tenant.places.get() >= limit {
            return Err(NoRoom::Tenant { limit });
        }
        self.taken.set(self.taken() + 1);
        tenant.places.set(tenant.places.get() + 1);
        Ok(Place {
            taken: self.taken.clone(),
            tenant: tenant.clone(),
        })
    }

    /// Connections that are there, those being set up included.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }
}

impl Place {
    /// Who causes the connection's work.
    pub fn tenant(&self) -> &Rc<Tenant> {
        &self.tenant
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.set(self.taken.get() - 1);
        self.tenant.places.set(self.tenant.places.get() - 1);
    }
}

impl<D: Driver + 'static> Core<D> {
    /// A place for a connection with a pod that the tenant causes. When there is none the log says so once in a while,
    /// however many connections are refused.
    pub fn take_place(&mut self, tenant: &Rc<Tenant>, pod: &PodState, peer: IpAddr) -> Result<Place, NoRoom> {
        let why = match self.room.take(tenant) {
            Ok(place) => return Ok(place),
            Err(why) => why,
        };
        self.shed += 1;
        let is_due = |at| self.now.saturating_duration_since(at) >= limits::ROOM_WARNING_INTERVAL;
        if tenant.warned.get().is_none_or(is_due) {
            tenant.warned.set(Some(self.now));
            tracing::warn!(target: "worker", pod = %pod.pod.uid, %peer, "connections are refused: {why}");
        }
        Err(why)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::tasks::Executor;
    use crate::worker::fixture;
    use crate::worker::tenants::Tenants;

    fn take_all(room: &Room, tenant: &Rc<Tenant>) -> (Vec<Place>, NoRoom) {
        let mut places = Vec::new();
        loop {
            match room.take(tenant) {
                Ok(place) => places.push(place),
                Err(why) => return (places, why),
            }
        }
    }

    #[test]
    fn a_pod_that_is_alone_gets_seven_eighths_of_a_worker() {
        let (room, mut tenants) = (Room::default(), Tenants::default());
        let (places, why) = take_all(&room, &tenants.admit());
        let all = limits::CONNECTIONS_WORKER_MAX / 8 * 7;
        assert_eq!(places.len(), all);
        assert_eq!(why, NoRoom::Tenant { limit: all });
        assert_eq!(why.refusal(), Refusal::TenantPart);
    }

    #[test]
    fn what_a_greedy_pod_leaves_is_for_busy_and_for_modest_ones() {
        let (room, mut tenants) = (Room::default(), Tenants::default());
        let [busy, modest, greedy] = [(); 3].map(|()| tenants.admit());
        let take = |tenant, count| -> Vec<_> { (0..count).map_while(|_| room.take(tenant).ok()).collect() };
        let mut held = [take(&busy, 20_000), take(&modest, 100)];
        let (mut taken, _) = take_all(&room, &greedy);
        assert!(
            taken.len() > limits::CONNECTIONS_WORKER_MAX / 4 * 3,
            "{}",
            taken.len()
        );
        for (tenant, held) in [&busy, &modest].into_iter().zip(&mut held) {
            let further = take(tenant, 10_000);
            assert_eq!(further.len(), 10_000);
            held.extend(further);
        }
        // What ends goes to others while it has more than its part.
        taken.truncate(taken.len() - 1000);
        assert!(matches!(room.take(&greedy), Err(NoRoom::Tenant { .. })));
        assert!(room.take(&modest).is_ok());
    }

    #[test]
    fn many_greedy_pods_leave_room_for_a_modest_one() {
        let (room, mut tenants) = (Room::default(), Tenants::default());
        let modest = tenants.admit();
        let greedy: Vec<_> = (0..16).map(|_| tenants.admit()).collect();
        let _taken: Vec<_> = greedy.iter().map(|greedy| take_all(&room, greedy).0).collect();
        let (places, why) = take_all(&room, &modest);
        assert!(places.len() >= 16, "{}", places.len());
        assert!(matches!(why, NoRoom::Tenant { .. }));
    }

    #[test]
    fn the_last_places_are_for_those_who_have_none() {
        let (room, mut tenants) = (Room::default(), Tenants::default());
        let mut taken = Vec::new();
        let why = loop {
            match take_all(&room, &tenants.admit()) {
                (places, why) if places.is_empty() => break why,
                (places, _) => taken.push(places),
            }
        };
        assert_eq!(why, NoRoom::Worker);
        assert_eq!(why.refusal(), Refusal::WorkerFull);
        assert_eq!(room.taken(), limits::CONNECTIONS_WORKER_MAX);
        assert_eq!(taken.last().map(Vec::len), Some(1));
    }

    #[test]
    fn the_log_hears_once_a_minute_of_a_tenant_that_is_refused() {
        let mut core = fixture::core(&Executor::default());
        let pod = fixture::pod();
        let _taken = take_all(&core.room, &pod.tenant);
        let start = core.now;
        for second in 0..=60 {
            core.now = start + Duration::from_secs(second);
            assert!(core.take_place(&pod.tenant, &pod, [10, 0, 0, 1].into()).is_err());
            let warned = if second < 60 { start } else { core.now };
            assert_eq!(pod.tenant.warned.get(), Some(warned));
        }
    }

    #[test]
    fn the_places_of_ended_connections_come_back() {
        let (room, mut tenants) = (Room::default(), Tenants::default());
        let tenant = tenants.admit();
        let (places, _) = take_all(&room, &tenant);
        drop(places);
        assert_eq!((room.taken(), tenant.places.get()), (0, 0));
        assert!(room.take(&tenant).is_ok());
    }
}
