//! Slots addressed by generation-checked keys: a key of a removed slot finds nothing, also when the slot has
//! been reused.

use std::fmt;
use std::marker::PhantomData;

use crate::planted::{Bug, is_planted};

/// Bits of a generation, so that a key fits into 60 bits (see `worker::owner`).
const GENERATION_BITS: u32 = 28;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// Names one slot of a `Slab<T>` for as long as that slot lives.
pub struct Key<T> {
    index: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    pub fn index(self) -> u32 {
        self.index
    }

    /// 28 bits of generation, 32 bits of index.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The inverse of `to_bits`; bits above 60 are ignored.
    pub fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32 & GENERATION_MASK,
            of: PhantomData,
        }
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index && self.generation == other.generation
    }
}

impl<T> Eq for Key<T> {}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// A table of slots. Removing and inserting reuses memory; it never shrinks.
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Option<u32>,
    len: usize,
}

struct Slot<T> {
    generation: u32,
    content: Content<T>,
}

enum Content<T> {
    Used(T),
    Free { next: Option<u32> },
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: None,
            len: 0,
        }
    }
}

impl<T> Slab<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn insert(&mut self, value: T) -> Key<T> {
        self.insert_with(|_| value)
    }

    /// Inserts a value that is told its own key.
    pub fn insert_with(&mut self, make: impl FnOnce(Key<T>) -> T) -> Key<T> {
        self.len += 1;
        if let Some(index) = self.free {
            let slot = &mut self.slots[index as usize];
            let Content::Free { next } = slot.content else {
                unreachable!("invariant: the free list holds free slots only")
            };
            self.free = next;
            let key = Key {
                index,
                generation: slot.generation,
                of: PhantomData,
            };
            slot.content = Content::Used(make(key));
            return key;
        }
        let index =
            u32::try_from(self.slots.len()).expect("invariant: limits keep slabs far below 2^32 slots");
        let key = Key {
            index,
            generation: 0,
            of: PhantomData,
        };
        self.slots.push(Slot {
            generation: 0,
            content: Content::Used(make(key)),
        });
        key
    }

    pub fn get(&self, key: Key<T>) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        match &slot.content {
            Content::Used(value) if is_named(slot.generation, key) => Some(value),
            Content::Used(_) | Content::Free { .. } => None,
        }
    }

    pub fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        match &mut slot.content {
            Content::Used(value) if is_named(slot.generation, key) => Some(value),
            Content::Used(_) | Content::Free { .. } => None,
        }
    }

    pub fn remove(&mut self, key: Key<T>) -> Option<T> {
        self.get(key)?;
        let slot = &mut self.slots[key.index as usize];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        let content = std::mem::replace(&mut slot.content, Content::Free { next: self.free });
        self.free = Some(key.index);
        self.len -= 1;
        match content {
            Content::Used(value) => Some(value),
            Content::Free { .. } => None,
        }
    }

    /// The slot at an index, whatever its generation: for owners that check identity by other means.
    pub fn by_index_mut(&mut self, index: u32) -> Option<&mut T> {
        match &mut self.slots.get_mut(index as usize)?.content {
            Content::Used(value) => Some(value),
            Content::Free { .. } => None,
        }
    }

    /// As `by_index_mut`, and frees the slot.
    pub fn remove_index(&mut self, index: u32) -> Option<T> {
        let generation = self.slots.get(index as usize)?.generation;
        self.remove(Key {
            index,
            generation,
            of: PhantomData,
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        (0..self.slots.len()).filter_map(|index| self.at(index))
    }

    /// How many slots there are, free ones included.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// What is in a slot now, and its key.
    pub fn at(&self, index: usize) -> Option<(Key<T>, &T)> {
        let slot = self.slots.get(index)?;
        let Content::Used(value) = &slot.content else {
            return None;
        };
        let key = Key {
            index: index as u32,
            generation: slot.generation,
            of: PhantomData,
        };
        Some((key, value))
    }

    pub fn keys(&self) -> Vec<Key<T>> {
        self.iter().map(|(key, _)| key).collect()
    }
}

/// Whether a slot of this generation is the one that the key names.
fn is_named<T>(generation: u32, key: Key<T>) -> bool {
    generation == key.generation || is_planted(Bug::SlotFoundByOldKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_removed_slot_finds_nothing_after_reuse() {
        let mut slab = Slab::default();
        let first = slab.insert("a");
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("b");
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"b"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn a_key_survives_a_round_trip_through_bits() {
        let mut slab = Slab::default();
        for _ in 0..3 {
            let key = slab.insert(1);
            slab.remove(key);
        }
        let key = slab.insert(2);
        assert_eq!(Key::from_bits(key.to_bits()), key);
        assert_eq!(Key::<i32>::from_bits(key.to_bits() | 0xF << 60), key);
    }
}
