//! Numbered places for what many lookups lead to: those keep the number, and the value behind it can be exchanged in
//! one place.
//!
//! Of the control thread's state; snapshots share the table. There are two tables, which take turns: the last snapshot has
//! the one, changes go into the other, which the snapshot before had and has to catch up on what was exchanged since. So an
//! exchange writes one slot in either, and a copy costs one reference count. Where somebody still looks at a snapshot
//! before the last, its table stays as it is, and the next one shares with the last what does not change, in chunks.
//! Rejected: references to the values in every lookup, as it was first: a change of a workload copied a leaf of each of
//! four maps. A tree of nodes of eight: it copied a few nodes, and counted their twenty neighbours up, and down again when
//! the snapshot went, in memory that no cache holds.
//!
//! Invariants: nothing that a copy shows ever changes; a number that was taken back is given again only after the next
//! snapshot, so that nothing that waits to be applied can mean another value than it did.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::hint::black_box;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::limits;

/// A chunk that two tables share is copied when it changes, with so many reference counts.
const CHUNK: usize = 64;

/// The number of a place for a `T`.
pub struct Place<T> {
    number: u32,
    of: PhantomData<fn() -> T>,
}

/// What is in the places.
pub struct Places<T> {
    table: Arc<Table<T>>,
    /// Never of a copy.
    twin: Option<Twin<T>>,
}

/// The table that the last copy has.
struct Twin<T> {
    table: Arc<Table<T>>,
    /// What was exchanged in the other one.
    since: Vec<(Place<T>, Option<Arc<T>>)>,
}

type Chunk<T> = [Option<Arc<T>>; CHUNK];

/// Without chunks of which all is empty.
type Table<T> = Vec<Option<Arc<Chunk<T>>>>;

/// Which numbers are free.
pub struct Numbers<T> {
    free: Vec<Place<T>>,
    /// Taken back since the last snapshot.
    resting: Vec<Place<T>>,
    next: u32,
}

impl<T> Places<T> {
    pub fn get(&self, place: Place<T>) -> Option<&Arc<T>> {
        let (chunk, slot) = place.coordinates();
        self.table.get(chunk)?.as_ref()?[slot].as_ref()
    }

    /// Reads what an exchange in this place will write.
    pub fn foresee(&self, place: Place<T>) -> Option<&Arc<T>> {
        let (chunk, slot) = place.coordinates();
        if let Some(twin) = &self.twin
            && let Some(Some(chunk)) = twin.table.get(chunk)
        {
            black_box(chunk[slot].is_some());
        }
        self.get(place)
    }

    /// Gives what was there before.
    pub fn set(&mut self, place: Place<T>, value: Arc<T>) -> Option<Arc<T>> {
        self.exchange(place, Some(value))
    }

    pub fn take(&mut self, place: Place<T>) -> Option<Arc<T>> {
        // Copies nothing when there is nothing.
        self.get(place)?;
        self.exchange(place, None)
    }

    /// In the order of their numbers.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        let chunks = self.table.iter().flatten();
        chunks.flat_map(|chunk| chunk.iter().flatten())
    }

    fn exchange(&mut self, place: Place<T>, value: Option<Arc<T>>) -> Option<Arc<T>> {
        self.take_turns();
        match &mut self.twin {
            Some(twin) if twin.since.len() < limits::EXCHANGES_REPEATED_MAX => {
                twin.since.push((place, value.clone()));
            }
            Some(_) | None => self.twin = None,
        }
        let table = Arc::get_mut(&mut self.table);
        put(table.expect("invariant: no copy has it"), place, value)
    }

    /// From here on no copy has the table.
    fn take_turns(&mut self) {
        if Arc::get_mut(&mut self.table).is_some() {
            return;
        }
        let caught_up = self.twin.take().and_then(Twin::caught_up);
        let (next, since) = match caught_up {
            Some(twin) => (twin.table, twin.since),
            None => (Arc::new(Table::clone(&self.table)), Vec::new()),
        };
        let table = std::mem::replace(&mut self.table, next);
        self.twin = Some(Twin { table, since });
    }

    /// Lets go of what was replaced, unless the last copy but one is still there.
    pub fn let_go(&mut self) {
        if let Some(twin) = &mut self.twin {
            twin.catch_up();
        }
    }
}

impl<T> Twin<T> {
    fn caught_up(mut self) -> Option<Self> {
        self.catch_up().then_some(self)
    }

    /// Makes its table what the other one is. False while a copy has it.
    fn catch_up(&mut self) -> bool {
        let Some(table) = Arc::get_mut(&mut self.table) else {
            return false;
        };
        for (place, value) in self.since.drain(..) {
            put(table, place, value);
        }
        true
    }
}

/// Gives what was there before.
fn put<T>(table: &mut Table<T>, place: Place<T>, value: Option<Arc<T>>) -> Option<Arc<T>> {
    let (at, slot) = place.coordinates();
    if value.is_some() {
        if table.len() <= at {
            table.resize_with(at + 1, || None);
        }
        let chunk = table[at].get_or_insert_with(|| Arc::new([const { None }; CHUNK]));
        return std::mem::replace(&mut Arc::make_mut(chunk)[slot], value);
    }
    let chunk = table.get_mut(at)?;
    let values = Arc::make_mut(chunk.as_mut()?);
    let before = values[slot].take();
    if values.iter().all(Option::is_none) {
        *chunk = None;
        while table.pop_if(|chunk| chunk.is_none()).is_some() {}
    }
    before
}

impl<T> Place<T> {
    /// Its number, small as long as there are few places.
    pub fn index(self) -> usize {
        self.number as usize
    }

    /// Chunk, and slot of it.
    fn coordinates(self) -> (usize, usize) {
        (self.index() / CHUNK, self.index() % CHUNK)
    }
}

impl<T> Numbers<T> {
    /// A number that nothing has.
    pub fn next(&mut self) -> Place<T> {
        self.free.pop().unwrap_or_else(|| {
            let number = self.next;
            self.next += 1;
            Place {
                number,
                of: PhantomData,
            }
        })
    }

    pub fn take_back(&mut self, place: Place<T>) {
        self.resting.push(place);
    }

    /// A snapshot was made: nothing waits any more.
    pub fn rested(&mut self) {
        self.free.append(&mut self.resting);
        if self.free.is_empty() {
            self.resting = Vec::new();
        }
    }
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self {
            table: Arc::default(),
            twin: None,
        }
    }
}

impl<T> Clone for Places<T> {
    fn clone(&self) -> Self {
        Self {
            table: self.table.clone(),
            ..Self::default()
        }
    }
}

impl<T> fmt::Debug for Places<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Places({})", self.values().count())
    }
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self {
            free: Vec::new(),
            resting: Vec::new(),
            next: 0,
        }
    }
}

impl<T> fmt::Debug for Numbers<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Numbers({} free of {})", self.free.len(), self.next)
    }
}

// Not derived, which would ask the same of `T`.
impl<T> Clone for Place<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Place<T> {}

impl<T> PartialEq for Place<T> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<T> Eq for Place<T> {}

impl<T> PartialOrd for Place<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Place<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number.cmp(&other.number)
    }
}

impl<T> Hash for Place<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

impl<T> fmt::Debug for Place<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({})", self.number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn place(number: u32) -> Place<u32> {
        Place {
            number,
            of: PhantomData,
        }
    }

    /// A copy, and what it has to show for ever.
    type Shown = (Places<u32>, HashMap<u32, u32>);

    fn assert_shows((places, model): &Shown) {
        let mut numbers: Vec<u32> = model.keys().copied().collect();
        numbers.sort_unstable();
        let in_order: Vec<u32> = numbers.iter().map(|number| model[number]).collect();
        assert_eq!(places.values().map(|it| **it).collect::<Vec<_>>(), in_order);
        for number in 0..300 {
            assert_eq!(
                places.get(place(number)).map(|it| **it),
                model.get(&number).copied()
            );
        }
    }

    proptest! {
        /// Copies are made every few steps, and some are looked at for longer than others.
        #[test]
        fn it_holds_what_a_map_holds_and_copies_do_not_change(
            steps in proptest::collection::vec((prop_oneof![0u32..40, 0u32..300, 0u32..9000], any::<bool>()), 0..600),
            pace in 1u32..60,
            kept in 0usize..4,
        ) {
            let (mut places, mut model) = (Places::default(), HashMap::new());
            let mut copies: VecDeque<Shown> = VecDeque::new();
            for (step, (number, set)) in (0u32..).zip(steps) {
                if set {
                    let before = places.set(place(number), Arc::new(step));
                    prop_assert_eq!(before.map(|it| *it), model.insert(number, step));
                } else {
                    let before = places.take(place(number));
                    prop_assert_eq!(before.map(|it| *it), model.remove(&number));
                }
                if step % pace == 0 {
                    copies.push_back((places.clone(), model.clone()));
                    while copies.len() > kept {
                        assert_shows(&copies.pop_front().expect("it is not empty"));
                    }
                    if number % 2 == 0 {
                        places.let_go();
                    }
                }
            }
            copies.push_back((places, model));
            copies.iter().for_each(assert_shows);
        }
    }

    fn filled(count: u32) -> Places<u32> {
        let mut places = Places::default();
        for number in 0..count {
            places.set(place(number), Arc::new(number));
        }
        places
    }

    #[test]
    fn emptied_places_own_nothing() {
        let mut places = filled(1000);
        for number in 0..1000 {
            places.take(place(number));
        }
        assert!(places.table.is_empty() && places.values().next().is_none());
        assert_eq!(places.get(place(3)), None);
    }

    /// One that a hundred thousand neighbours have too would be copied and counted otherwise.
    #[test]
    fn an_exchange_leaves_its_neighbours_alone_once_both_tables_are_there() {
        let mut places = filled(1000);
        let mut shown = places.clone();
        for round in 0..10 {
            for number in 0..1000 {
                if number % 10 == 0 {
                    places.set(place(number), Arc::new(round));
                }
            }
            shown = places.clone();
            if round >= 2 {
                // Of either table.
                let neighbour = shown.get(place(5)).expect("it is there");
                assert_eq!(Arc::strong_count(neighbour), 2);
            }
        }
        drop(shown);
    }

    #[test]
    fn what_was_replaced_is_let_go_of_when_no_copy_shows_it() {
        let mut places = filled(100);
        let before = places.clone();
        let replaced = before.get(place(7)).expect("it is there").clone();
        places.set(place(7), Arc::new(0));
        let shown = places.clone();
        places.let_go();
        assert_eq!(Arc::strong_count(&replaced), 2);
        drop(before);
        places.let_go();
        assert_eq!(Arc::strong_count(&replaced), 1);
        assert_eq!(shown.get(place(7)).map(|it| **it), Some(0));
    }

    #[test]
    fn after_many_exchanges_what_was_replaced_is_let_go_of() {
        let count = 4 * limits::EXCHANGES_REPEATED_MAX as u32;
        let mut places = filled(count);
        let shown = places.clone();
        let replaced = shown.get(place(7)).expect("it is there").clone();
        for number in 0..count {
            places.set(place(number), Arc::new(0));
        }
        drop(shown);
        assert_eq!(Arc::strong_count(&replaced), 1);
    }

    #[test]
    fn a_number_is_not_given_again_before_the_next_snapshot() {
        let mut numbers = Numbers::<u32>::default();
        let first = numbers.next();
        numbers.take_back(first);
        let second = numbers.next();
        assert_ne!(first, second);
        numbers.rested();
        assert_eq!(numbers.next(), first);
    }
}
