//! A table of values addressed by keys that go stale: index and generation.
//!
//! Invariant: a key finds the value for which it was made, or nothing. A slot's generation changes when its
//! value is taken out, so a late completion or a stale handle never reaches the slot's next user.

/// Where a value is, and which user of the slot it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub index: u32,
    pub generation: u32,
}

impl Key {
    pub fn to_word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub fn from_word(word: u64) -> Self {
        Self {
            index: word as u32,
            generation: (word >> 32) as u32,
        }
    }
}

pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    /// Indices of empty slots; the one emptied last is used first, while it is in the cache.
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Room for so many before the table has to grow.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            u32::try_from(self.slots.len() - 1).expect("invariant: fewer slots than descriptors")
        });
        let slot = &mut self.slots[index as usize];
        assert!(slot.value.is_none(), "a free slot is empty");
        slot.value = Some(value);
        Key {
            index,
            generation: slot.generation,
        }
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        (slot.generation == key.generation).then_some(slot.value.as_ref())?
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        (slot.generation == key.generation).then_some(slot.value.as_mut())?
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        let taken = |(index, slot): (usize, &Slot<T>)| {
            slot.value.as_ref().map(|_| Key {
                index: index as u32,
                generation: slot.generation,
            })
        };
        self.slots.iter().enumerate().filter_map(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing_although_its_slot_is_in_use_again() {
        let mut slots = Slots::new();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second");
        assert_eq!(second.index, first.index);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&"second"));
        assert_eq!(slots.keys().collect::<Vec<_>>(), [second]);
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn a_key_survives_the_way_through_the_kernel() {
        let key = Key {
            index: 0xFFFF_FFFE,
            generation: 0x8000_0001,
        };
        assert_eq!(Key::from_word(key.to_word()), key);
    }
}
