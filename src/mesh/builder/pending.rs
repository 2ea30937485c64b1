//! Workloads that joined services, left them or changed since the last build: one queue for each service.
//!
//! Of the builder. Endpoints are made of them when they are applied: until then a hundred thousand of them would take
//! memory, and leave holes in what comes after. Which services a list names, and where those are, is remembered: to
//! hash and compare their names would be a good part of what a change costs. That is forgotten when a service comes or
//! goes. Invariant: what is pushed is taken once, in this order for each service.

use std::collections::VecDeque;
use std::hint::black_box;

use foldhash::HashMap;

use crate::limits;
use crate::mesh::address::NamespacedHostname;
use crate::mesh::backing::Backed;
use crate::mesh::few::Gathered;
use crate::mesh::interner::Memberships;
use crate::mesh::places::Place;
use crate::mesh::workload::{Health, Workload};

#[derive(Debug, Default)]
pub(super) struct Pending {
    queues: Vec<Queue>,
    /// Those with changes, first come first served.
    waiting: VecDeque<usize>,
    by_service: HashMap<NamespacedHostname, usize>,
    /// The queues of a list of services, by where it lies. The list is held, so that nothing else ever lies there.
    by_list: HashMap<usize, (Memberships, Box<[usize]>)>,
    /// A service came or went since the last build: no place that is remembered counts.
    is_outdated: bool,
}

#[derive(Debug)]
struct Queue {
    service: NamespacedHostname,
    found: Option<Place<Backed>>,
    changes: Gathered<(Place<Workload>, Change)>,
}

/// What waits for one service.
#[derive(Debug)]
pub(super) struct Taken {
    queue: usize,
    pub changes: Gathered<(Place<Workload>, Change)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// It names the service, and did so before or not; in this state.
    Joined(Health),
    Left,
}

impl Queue {
    fn of(service: &NamespacedHostname) -> Self {
        Self {
            service: service.clone(),
            found: None,
            changes: Gathered::default(),
        }
    }
}

impl Pending {
    pub fn push(&mut self, services: &Memberships, place: Place<Workload>, change: Change) {
        if services.is_empty() {
            return;
        }
        let Self {
            queues,
            waiting,
            by_service,
            by_list,
            ..
        } = self;
        let (_, numbers) = by_list.entry(services.as_ptr().addr()).or_insert_with(|| {
            let numbers = services.iter().map(|(key, _)| {
                *by_service.entry(key.clone()).or_insert_with(|| {
                    queues.push(Queue::of(key));
                    queues.len() - 1
                })
            });
            (services.clone(), numbers.collect())
        });
        for number in &*numbers {
            let queue = &mut queues[*number];
            if queue.changes.is_empty() {
                waiting.push_back(*number);
            }
            queue.changes.push((place, change));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Reads what a push for the list will write.
    pub fn foresee(&self, services: &Memberships) {
        let known = self.by_list.get(&services.as_ptr().addr());
        for number in known.into_iter().flat_map(|(_, numbers)| numbers) {
            black_box(self.queues[*number].changes.len());
        }
    }

    /// Where the next services are, as far as it is known.
    pub fn next_places<const N: usize>(&self) -> [Option<Place<Backed>>; N] {
        let mut places = [None; N];
        for (place, queue) in places.iter_mut().zip(&self.waiting) {
            *place = self.queues[*queue].found;
        }
        places
    }

    /// The first, and then the others: what is pushed meanwhile comes after all of them.
    pub fn take(&mut self) -> Option<Taken> {
        let queue = self.waiting.pop_front()?;
        let changes = std::mem::take(&mut self.queues[queue].changes);
        Some(Taken { queue, changes })
    }

    /// Whose changes they are.
    pub fn service_of(&self, taken: &Taken) -> &NamespacedHostname {
        &self.queues[taken.queue].service
    }

    /// Where the service is: as it was found before, else as `find` finds it.
    pub fn place_of(
        &mut self,
        taken: &Taken,
        find: impl FnOnce(&NamespacedHostname) -> Option<Place<Backed>>,
    ) -> Option<Place<Backed>> {
        let queue = &mut self.queues[taken.queue];
        if self.is_outdated {
            return find(&queue.service);
        }
        if queue.found.is_none() {
            queue.found = find(&queue.service);
        }
        queue.found
    }

    /// A service came or went.
    pub fn places_changed(&mut self) {
        self.is_outdated = true;
    }

    /// Everything was taken. What is remembered is let go of when it is not right any more, or too much: a list that
    /// nobody else has would be kept for ever.
    pub fn rested(&mut self) {
        if self.is_outdated || self.by_list.len() > limits::MEMBERSHIPS_REMEMBERED_MAX {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::address::PortMap;
    use crate::mesh::places::Numbers;

    fn list(hostnames: &[&str]) -> Memberships {
        let named = |hostname: &&str| (NamespacedHostname::new("shop", hostname), PortMap::default());
        hostnames.iter().map(named).collect()
    }

    fn taken(pending: &mut Pending) -> Option<(String, usize)> {
        let taken = pending.take()?;
        let name = pending.service_of(&taken).hostname.to_string();
        Some((name, taken.changes.len()))
    }

    #[test]
    fn changes_of_all_lists_that_name_a_service_wait_in_one_queue_and_are_taken_once() {
        let mut pending = Pending::default();
        let mut numbers = Numbers::default();
        let [one, other] = [list(&["a", "b"]), list(&["b", "c"])];
        for services in [&one, &other, &one] {
            pending.push(services, numbers.next(), Change::Left);
        }
        assert_eq!(taken(&mut pending), Some(("a".to_owned(), 2)));
        pending.push(&one, numbers.next(), Change::Left);
        let rest = [("b", 4), ("c", 1), ("a", 1)].map(|(name, len)| Some((name.to_owned(), len)));
        for expected in rest {
            assert_eq!(taken(&mut pending), expected);
        }
        assert_eq!(taken(&mut pending), None);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_place_is_remembered_until_a_service_comes_or_goes() {
        let mut pending = Pending::default();
        let mut numbers = Numbers::<Backed>::default();
        let [before, after] = [numbers.next(), numbers.next()];
        let services = list(&["a"]);
        let found = |pending: &mut Pending, now| {
            pending.push(&services, Numbers::default().next(), Change::Left);
            let taken = pending.take().expect("one waits");
            pending.place_of(&taken, |_| now)
        };
        assert_eq!(found(&mut pending, None), None);
        assert_eq!(found(&mut pending, Some(before)), Some(before));
        pending.rested();
        assert_eq!(found(&mut pending, Some(after)), Some(before));
        pending.places_changed();
        assert_eq!(found(&mut pending, None), None);
        assert_eq!(found(&mut pending, Some(after)), Some(after));
        pending.rested();
        assert!(pending.by_list.is_empty() && pending.queues.is_empty());
        assert_eq!(found(&mut pending, Some(after)), Some(after));
    }

    #[test]
    fn lists_that_are_remembered_have_a_bound() {
        let mut pending = Pending::default();
        for number in 0..=limits::MEMBERSHIPS_REMEMBERED_MAX {
            let services = list(&[&number.to_string()]);
            pending.push(&services, Numbers::default().next(), Change::Left);
        }
        while pending.take().is_some() {}
        pending.rested();
        assert!(pending.by_list.is_empty() && pending.queues.is_empty() && pending.by_service.is_empty());
    }
}
