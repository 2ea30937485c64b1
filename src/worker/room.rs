//! Room for connections on a worker, and who gets the last of it.
//!
//! Each connection has a place from the moment that it was accepted, or asked for, until it is over: it counts for its
//! worker and for its tenant. The less is free, the fewer places a tenant may have and get a further one
//! (`limits::part_max`): the greediest is the first that gets none, whoever has few gets some for long. Nothing that lives
//! is ended for that, and how many others have does not have to be known. The same goes for open files, of which all
//! workers have so many together: a place stands for those that its connection has, or may need.
//!
//! On the worker's thread.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;

use super::core::Core;
use super::pods::PodState;
use super::tenants::Tenant;
use crate::bridge::open_files::OpenFiles;
use crate::bridge::traffic::Refusal;
use crate::limits;
use crate::sys::driver::Driver;

/// The places of one worker.
pub struct Room {
    counts: Rc<Counts>,
    /// Those of all workers, this one's included as far as it has told.
    files: OpenFiles,
    told: usize,
    /// What this worker has open and no place stands for.
    others: usize,
}

#[derive(Default)]
struct Counts {
    places: Cell<usize>,
    /// What those have open, or may need.
    files: Cell<usize>,
}

impl Counts {
    fn change_files(&self, tenant: &Tenant, before: usize, now: usize) {
        for count in [&self.files, &tenant.files] {
            count.set(count.get() - before + now);
        }
    }
}

/// One connection's, until it is dropped.
pub struct Place {
    counts: Rc<Counts>,
    tenant: Rc<Tenant>,
    files: usize,
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
    #[error("too many open files: {limit} are for connections, raise RLIMIT_NOFILE (ulimit -n)")]
    Files { limit: usize },
    /// Whoever has fewer open gets a place.
    #[error(
        "too many open files for connections of one pod or source: {limit} are allowed while no more are left than \
         now, raise RLIMIT_NOFILE (ulimit -n)"
    )]
    TenantFiles { limit: usize },
}

impl NoRoom {
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Worker => Refusal::WorkerFull,
            Self::Files { .. } => Refusal::OpenFiles,
            Self::Tenant { .. } | Self::TenantFiles { .. } => Refusal::TenantPart,
        }
    }
}

impl Room {
    pub fn new(files: OpenFiles) -> Self {
        Self {
            counts: Rc::default(),
            files,
            told: 0,
            others: 0,
        }
    }

    /// For a connection that may need so many open files.
    ///
    /// # Errors
    /// There is no room for anybody, or the tenant has its part of it: the newest is shed.
    pub fn take(&self, tenant: &Rc<Tenant>, files: usize) -> Result<Place, NoRoom> {
        let all = limits::CONNECTIONS_WORKER_MAX;
        let free = all - self.taken();
        if free == 0 {
            return Err(NoRoom::Worker);
        }
        let limit = limits::part_max(all, free);
        if tenant.places.get() >= limit {
            return Err(NoRoom::Tenant { limit });
        }
        let all = self.files.limit();
        let free = all.saturating_sub(self.open_files());
        if free < files {
            return Err(NoRoom::Files { limit: all });
        }
        let limit = limits::part_max(all, free);
        if tenant.files.get() >= limit {
            return Err(NoRoom::TenantFiles { limit });
        }
        self.counts.places.set(self.taken() + 1);
        tenant.places.set(tenant.places.get() + 1);
        self.counts.change_files(tenant, 0, files);
        Ok(Place {
            counts: self.counts.clone(),
            tenant: tenant.clone(),
            files,
        })
    }

    /// Connections that are there, those being set up included.
    pub fn taken(&self) -> usize {
        self.counts.places.get()
    }

    /// Of all workers.
    fn open_files(&self) -> usize {
        (self.files.open() + self.own_files()).saturating_sub(self.told)
    }

    fn own_files(&self) -> usize {
        self.counts.files.get() + self.others
    }

    /// Tells the other workers what this one has open. `others`: beside those that places stand for.
    pub fn tell(&mut self, others: usize) {
        self.others = others;
        let open = self.own_files();
        if open != self.told {
            self.files.tell(self.told, open);
            self.told = open;
        }
    }
}

impl Place {
    /// Who causes the connection's work.
    pub fn tenant(&self) -> &Rc<Tenant> {
        &self.tenant
    }

    /// The connection has the one open file that it needs.
    pub fn needs_one_file(&mut self) {
        self.counts.change_files(&self.tenant, self.files, 1);
        self.files = 1;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.change_files(&self.tenant, self.files, 0);
        for count in [&self.counts.places, &self.tenant.places] {
            count.set(count.get() - 1);
        }
    }
}

impl<D: Driver + 'static> Core<D> {
    /// A place for a connection with a pod that the tenant causes, and for the open files that it may need. When there is
    /// none the log says so once in a while, however many connections are refused.
    pub fn take_place(
        &mut self,
        tenant: &Rc<Tenant>,
        pod: &PodState,
        peer: IpAddr,
        files: usize,
    ) -> Result<Place, NoRoom> {
        let why = match self.room.take(tenant, files) {
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

    /// With more open files than anybody needs.
    fn room() -> Room {
        Room::new(OpenFiles::new(u64::MAX))
    }

    fn take_all(room: &Room, tenant: &Rc<Tenant>) -> (Vec<Place>, NoRoom) {
        let mut places = Vec::new();
        loop {
            match room.take(tenant, 1) {
                Ok(place) => places.push(place),
                Err(why) => return (places, why),
            }
        }
    }

    #[test]
    fn a_pod_that_is_alone_gets_seven_eighths_of_a_worker() {
        let (room, mut tenants) = (room(), Tenants::default());
        let (places, why) = take_all(&room, &tenants.admit());
        let all = limits::CONNECTIONS_WORKER_MAX / 8 * 7;
        assert_eq!(places.len(), all);
        assert_eq!(why, NoRoom::Tenant { limit: all });
        assert_eq!(why.refusal(), Refusal::TenantPart);
    }

    #[test]
    fn what_a_greedy_pod_leaves_is_for_busy_and_for_modest_ones() {
        let (room, mut tenants) = (room(), Tenants::default());
        let [busy, modest, greedy] = [(); 3].map(|()| tenants.admit());
        let take =
            |tenant, count| -> Vec<_> { (0..count).map_while(|_| room.take(tenant, 1).ok()).collect() };
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
        assert!(matches!(room.take(&greedy, 1), Err(NoRoom::Tenant { .. })));
        assert!(room.take(&modest, 1).is_ok());
    }

    #[test]
    fn many_greedy_pods_leave_room_for_a_modest_one() {
        let (room, mut tenants) = (room(), Tenants::default());
        let modest = tenants.admit();
        let greedy: Vec<_> = (0..16).map(|_| tenants.admit()).collect();
        let _taken: Vec<_> = greedy.iter().map(|greedy| take_all(&room, greedy).0).collect();
        let (places, why) = take_all(&room, &modest);
        assert!(places.len() >= 16, "{}", places.len());
        assert!(matches!(why, NoRoom::Tenant { .. }));
    }

    #[test]
    fn the_last_places_are_for_those_who_have_none() {
        let (room, mut tenants) = (room(), Tenants::default());
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
            assert!(
                core.take_place(&pod.tenant, &pod, [10, 0, 0, 1].into(), 1)
                    .is_err()
            );
            let warned = if second < 60 { start } else { core.now };
            assert_eq!(pod.tenant.warned.get(), Some(warned));
        }
    }

    #[test]
    fn the_places_of_ended_connections_come_back() {
        let (room, mut tenants) = (room(), Tenants::default());
        let tenant = tenants.admit();
        let (places, _) = take_all(&room, &tenant);
        drop(places);
        assert_eq!((room.taken(), tenant.places.get()), (0, 0));
        assert!(room.take(&tenant, 1).is_ok());
    }

    #[test]
    fn a_pod_that_is_alone_leaves_an_eighth_of_the_open_files_to_others() {
        let (mut room, mut tenants) = (Room::new(OpenFiles::new(20_000)), Tenants::default());
        let limit = 20_000 - limits::FILES_KEPT_MAX;
        let [greedy, modest] = [(); 2].map(|()| tenants.admit());
        let mut taken: Vec<_> = std::iter::from_fn(|| room.take(&greedy, 2).ok()).collect();
        assert_eq!(taken.len(), limit / 8 * 7 / 2);
        let why = room.take(&greedy, 2).err().expect("refused");
        assert_eq!(why, NoRoom::TenantFiles { limit: limit / 8 * 7 });
        assert_eq!(why.refusal(), Refusal::TenantPart);
        let mut others: Vec<_> = (0..500).map_while(|_| room.take(&modest, 2).ok()).collect();
        assert_eq!(others.len(), 500);
        // Tunnels need no more than one.
        for place in &mut others {
            place.needs_one_file();
        }
        assert_eq!((room.own_files(), modest.files.get()), (limit / 8 * 7 + 500, 500));
        // And what no place stands for is gone all the same.
        room.tell(limit - room.own_files() - 1);
        let full = NoRoom::Files { limit };
        assert_eq!(room.take(&modest, 2).err(), Some(full));
        assert_eq!(full.refusal(), Refusal::OpenFiles);
        taken.pop();
        assert!(room.take(&tenants.admit(), 2).is_ok());
    }

    #[test]
    fn workers_share_the_open_files_of_the_process() {
        let files = OpenFiles::new(800);
        let (mut rooms, mut tenants) = ([(); 2].map(|()| Room::new(files.clone())), Tenants::default());
        let [greedy, modest] = [(); 2].map(|()| tenants.admit());
        let taken = std::iter::from_fn(|| rooms[0].take(&greedy, 1).ok());
        let mut taken: Vec<_> = taken.collect();
        rooms[0].tell(0);
        assert_eq!(files.open(), taken.len());
        let further: Vec<_> = std::iter::from_fn(|| rooms[1].take(&modest, 1).ok()).collect();
        assert!(further.len() < files.limit() / 8, "{}", further.len());
        rooms[1].tell(2);
        assert_eq!(files.open(), taken.len() + further.len() + 2);
        // What was told is not counted twice.
        taken.truncate(10);
        rooms[0].tell(0);
        drop(further);
        rooms[1].tell(0);
        assert_eq!((files.open(), rooms[1].open_files()), (10, 10));
        drop(taken);
        assert_eq!(rooms[0].open_files(), 0);
    }
}
