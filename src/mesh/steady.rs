//! A hash map of which nobody waits until it has grown: it is many small ones, each of which grows by itself.
//!
//! Control thread. A table of a hundred thousand entries takes milliseconds to be copied into one twice as large, in which
//! neither other tasks nor workers on the same CPU get their turn: some kernels let a thread that wakes in only at the next
//! tick, and giving way is what the code around an insertion can do, not what is inside of it.
//! Rejected: making room in advance, which helps with what is announced (the first response) and not with what comes
//! later; a tree, which costs several times as much for each look-up.
//!
//! Invariant: what one call does is bounded by `1 / TABLES` of the entries.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// A power of two. With 100,000 entries each table has some 1,600, which are copied within 0.1 ms.
const TABLES: usize = 64;
/// The bits of a hash that choose its table; those at either end are the tables' own.
const TABLE_BITS_FROM: u32 = 32;
/// A table that has room for fewer keeps it.
const SHRUNK_CAPACITY_MIN: usize = 64;
/// A table is swept when it has so many entries, or twice what the last sweep left.
const SWEEP_MIN: usize = 16;

#[derive(Debug)]
pub struct SteadyMap<K, V> {
    keys: RandomState,
    tables: Box<[Table<K, V>; TABLES]>,
    len: usize,
}

#[derive(Debug)]
struct Table<K, V> {
    entries: HashTable<(K, V)>,
    sweep_at: usize,
}

impl<K, V> Default for SteadyMap<K, V> {
    fn default() -> Self {
        let table = |_| Table {
            entries: HashTable::new(),
            sweep_at: SWEEP_MIN,
        };
        Self {
            keys: RandomState::default(),
            tables: Box::new(std::array::from_fn(table)),
            len: 0,
        }
    }
}

impl<K, V> SteadyMap<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let entries = self.tables.iter().flat_map(|table| &table.entries);
        entries.map(|(key, value)| (key, value))
    }
}

impl<K: Hash + Eq, V> SteadyMap<K, V> {
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entry_of(key).map(|(_, value)| value)
    }

    /// The key as the map has it.
    pub fn key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&K>
    where
        K: Borrow<Q>,
    {
        self.entry_of(key).map(|(key, _)| key)
    }

    /// What was there before. The key that was there stays.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = self.keys.hash_one(&key);
        let Self { keys, tables, len } = self;
        let entries = &mut tables[table_of(hash)].entries;
        match entries.entry(hash, |(known, _)| *known == key, |(key, _)| keys.hash_one(key)) {
            Entry::Occupied(mut known) => Some(std::mem::replace(&mut known.get_mut().1, value)),
            Entry::Vacant(free) => {
                free.insert((key, value));
                *len += 1;
                None
            }
        }
    }

    /// As `insert`, and lets go of what is not in use, whenever as much again has come in.
    pub fn keep(&mut self, key: K, value: V, is_in_use: impl Fn(&K, &V) -> bool) {
        let hash = self.keys.hash_one(&key);
        let Self { keys, tables, len } = self;
        let Table { entries, sweep_at } = &mut tables[table_of(hash)];
        if entries.len() >= *sweep_at {
            let before = entries.len();
            entries.retain(|(key, value)| is_in_use(key, value));
            *len -= before - entries.len();
            shrink(keys, entries);
            *sweep_at = (2 * entries.len()).max(SWEEP_MIN);
        }
        self.insert(key, value);
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let hash = self.keys.hash_one(key);
        let Self { keys, tables, len } = self;
        let entries = &mut tables[table_of(hash)].entries;
        let found = entries.find_entry(hash, |(known, _)| known.borrow() == key);
        let ((_, value), _) = found.ok()?.remove();
        *len -= 1;
        shrink(keys, entries);
        Some(value)
    }

    fn entry_of<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&(K, V)>
    where
        K: Borrow<Q>,
    {
        let hash = self.keys.hash_one(key);
        let entries = &self.tables[table_of(hash)].entries;
        entries.find(hash, |(known, _)| known.borrow() == key)
    }
}

fn table_of(hash: u64) -> usize {
    (hash >> TABLE_BITS_FROM) as usize % TABLES
}

/// What has become small keeps no room for what was large.
fn shrink<K: Hash, V>(keys: &RandomState, entries: &mut HashTable<(K, V)>) {
    if entries.capacity() > SHRUNK_CAPACITY_MIN && entries.len() < entries.capacity() / 4 {
        entries.shrink_to(2 * entries.len(), |(key, _)| keys.hash_one(key));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const MANY: u32 = 100_000;

    #[test]
    fn no_table_has_much_more_than_its_part() {
        let mut map = SteadyMap::default();
        for number in 0..MANY {
            map.insert(number.to_string(), number);
        }
        let longest = map.tables.iter().map(|table| table.entries.len()).max();
        let part = MANY as usize / TABLES;
        assert!(longest <= Some(part * 5 / 4), "{longest:?} of {part}");
    }

    #[test]
    fn what_has_become_small_keeps_no_room_for_what_was_large() {
        let room = |map: &SteadyMap<u32, ()>| -> usize {
            map.tables.iter().map(|table| table.entries.capacity()).sum()
        };
        let mut map = SteadyMap::default();
        for number in 0..MANY {
            map.insert(number, ());
        }
        assert!(room(&map) >= MANY as usize);
        for number in 10..MANY {
            map.remove(&number);
        }
        assert_eq!(map.len(), 10);
        assert!(room(&map) <= TABLES * 2 * SHRUNK_CAPACITY_MIN, "{}", room(&map));
        for number in 0..MANY {
            map.keep(number, (), |_, ()| false);
        }
        assert!(map.len() <= 2 * TABLES * SWEEP_MIN, "{}", map.len());
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<u8>(), any::<u16>(), 0..4_u8), 0..2_000)) {
            let (mut map, mut model) = (SteadyMap::default(), HashMap::new());
            for (key, value, what) in steps {
                match what {
                    0 => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    1 => {
                        map.keep(key, value, |_, _| true);
                        model.insert(key, value);
                    }
                    _ => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(map.len(), model.len());
            }
            let all: HashMap<u8, u16> = map.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(all, model);
        }
    }
}
