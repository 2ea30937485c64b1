//! A hash map of which nobody waits until it has grown: what is in it moves to the larger table a little with each call.
//!
//! Control thread. A table of a hundred thousand entries takes milliseconds to be copied into one twice as large, in which
//! neither other tasks nor workers on the same CPU get their turn: some kernels let a thread that wakes in only at the next
//! tick, and giving way is what the code around an insertion can do, not what is inside of it.
//! Rejected: making room in advance, which helps with what is announced (the first response) and not with what comes
//! later; 64 small maps instead of a large one, which was no cheaper and grows all of them at about the same time; a tree,
//! whose look-ups touch more memory.
//!
//! Invariant: one call moves what is in `MOVED_PER_CALL` places at most, and each entry is in one of two tables.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// Places of the table before that a call empties. A table is full with as many entries as seven of eight places, and
/// the next has room for twice as many: it gets what was there long before it is full itself.
const MOVED_PER_CALL: usize = 16;
/// Tables do not get smaller than for so many.
const ROOM_MIN: usize = 64;

#[derive(Debug)]
pub struct SteadyMap<K, V> {
    keys: RandomState,
    entries: HashTable<(K, V)>,
    /// The table before, with what did not move yet.
    before: HashTable<(K, V)>,
    /// Its places up to this one are empty.
    moved: usize,
}

impl<K, V> Default for SteadyMap<K, V> {
    fn default() -> Self {
        Self {
            keys: RandomState::default(),
            entries: HashTable::new(),
            before: HashTable::new(),
            moved: 0,
        }
    }
}

impl<K, V> SteadyMap<K, V> {
    pub fn len(&self) -> usize {
        self.entries.len() + self.before.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let all = self.entries.iter().chain(&self.before);
        all.map(|(key, value)| (key, value))
    }
}

impl<K: Hash + Eq, V> SteadyMap<K, V> {
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.find(key).map(|(_, value)| value)
    }

    /// The key as the map has it.
    pub fn key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&K>
    where
        K: Borrow<Q>,
    {
        self.find(key).map(|(key, _)| key)
    }

    /// What was there before. The key that was there stays.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.keep(key, value, |_, _| true)
    }

    /// As `insert`, and lets go of what is not in use when it would move: so of all of it, whenever as much again has
    /// come in.
    pub fn keep(&mut self, key: K, value: V, is_in_use: impl Fn(&K, &V) -> bool) -> Option<V> {
        self.go_on(is_in_use);
        let Self {
            keys,
            entries,
            before,
            ..
        } = self;
        let hash = keys.hash_one(&key);
        let is_it = |(known, _): &(K, V)| *known == key;
        let known = match entries.find_mut(hash, is_it) {
            None if !before.is_empty() => before.find_mut(hash, is_it),
            known => known,
        };
        if let Some((_, known)) = known {
            return Some(std::mem::replace(known, value));
        }
        entries.insert_unique(hash, (key, value), |(key, _)| keys.hash_one(key));
        None
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.go_on(|_, _| true);
        let hash = self.keys.hash_one(key);
        for table in [&mut self.entries, &mut self.before] {
            if let Ok(found) = table.find_entry(hash, |(known, _)| known.borrow() == key) {
                let ((_, value), _) = found.remove();
                return Some(value);
            }
        }
        None
    }

    fn find<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&(K, V)>
    where
        K: Borrow<Q>,
    {
        let hash = self.keys.hash_one(key);
        let is_it = |(known, _): &(K, V)| known.borrow() == key;
        match self.entries.find(hash, is_it) {
            None if !self.before.is_empty() => self.before.find(hash, is_it),
            found => found,
        }
    }

    /// Sees to it that there is room for one more, and not for many more than there are.
    fn go_on(&mut self, is_in_use: impl Fn(&K, &V) -> bool) {
        if self.before.is_empty() {
            if self.before.capacity() > 0 {
                self.before = HashTable::new();
            }
            let (len, room) = (self.entries.len(), self.entries.capacity());
            if len < room && (len >= room / 4 || room <= ROOM_MIN * 2) {
                return;
            }
            let next = HashTable::with_capacity((2 * len).max(ROOM_MIN));
            self.before = std::mem::replace(&mut self.entries, next);
            self.moved = 0;
        }
        let Self {
            keys,
            entries,
            before,
            moved,
        } = self;
        let places = *moved..before.num_buckets().min(*moved + MOVED_PER_CALL);
        *moved = places.end;
        for place in places {
            let Ok(entry) = before.get_bucket_entry(place) else {
                continue;
            };
            let ((key, value), _) = entry.remove();
            if is_in_use(&key, &value) {
                entries.insert_unique(keys.hash_one(&key), (key, value), |(key, _)| keys.hash_one(key));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const MANY: u32 = 100_000;

    fn room<K, V>(map: &SteadyMap<K, V>) -> usize {
        map.entries.capacity() + map.before.capacity()
    }

    #[test]
    fn no_call_moves_more_than_its_part_and_no_table_is_full_before_it_has_all() {
        let mut map = SteadyMap::default();
        for number in 0..MANY {
            let (left, room) = (map.before.len(), map.entries.capacity());
            map.insert(number, ());
            assert!(
                left <= map.before.len() + MOVED_PER_CALL || left == 0,
                "{left} moved"
            );
            assert!(map.entries.capacity() == room || left == 0, "grew at {number}");
        }
        assert_eq!(map.len(), MANY as usize);
        for number in 0..MANY {
            let left = map.before.len();
            map.remove(&number);
            assert!(
                left <= map.before.len() + MOVED_PER_CALL + 1 || left == 0,
                "{left} moved"
            );
        }
        assert!(map.is_empty());
    }

    #[test]
    fn what_has_become_small_keeps_no_room_for_what_was_large() {
        let mut map = SteadyMap::default();
        for number in 0..MANY {
            map.insert(number, ());
        }
        assert!(room(&map) >= MANY as usize);
        for number in 10..MANY {
            map.remove(&number);
        }
        assert_eq!(map.len(), 10);
        for _ in 0..MANY {
            map.insert(0, ());
        }
        assert!(room(&map) <= 4 * ROOM_MIN, "{}", room(&map));
    }

    #[test]
    fn what_is_not_in_use_does_not_pile_up() {
        const USED: usize = 1_000;
        let mut map = SteadyMap::default();
        for number in 0..MANY as usize {
            map.keep(number, (), |number, ()| *number < USED);
            let (len, room) = (map.len(), room(&map));
            assert!(
                len <= 4 * USED && room <= 12 * USED,
                "{len} in {room} at {number}"
            );
        }
        let left = (0..USED).filter(|number| map.get(number).is_some());
        assert_eq!(left.count(), USED, "and what is stays");
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0..600_u16, any::<u16>(), 0..5_u8), 0..4_000)) {
            let (mut map, mut model) = (SteadyMap::default(), HashMap::new());
            for (key, value, what) in steps {
                match what {
                    0 => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    _ => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(map.key(&key).is_some(), model.contains_key(&key));
                prop_assert_eq!(map.len(), model.len());
            }
            let all: Vec<(u16, u16)> = map.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(all.len(), model.len());
            prop_assert_eq!(all.into_iter().collect::<HashMap<_, _>>(), model);
        }
    }
}
