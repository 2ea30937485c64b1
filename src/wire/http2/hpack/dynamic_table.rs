//! The dynamic table of HPACK (RFC 7541 sections 2.3.2 and 4), as a decoder keeps it.
//!
//! Names and values lie one after the other in one vector, oldest first, so that an insertion allocates nothing
//! once the vector has grown. Evicted bytes stay in front until the vector holds twice the table's bound; then
//! the live part moves to the front. A connection whose peer never inserts owns no memory here.

use std::collections::VecDeque;

/// RFC 7541 4.1: what an entry counts on top of its name and value.
pub(super) const ENTRY_OVERHEAD: usize = 32;

pub(super) struct DynamicTable {
    bytes: Vec<u8>,
    /// Oldest first.
    entries: VecDeque<Entry>,
    /// Sum of the entries' sizes by RFC 7541 4.1, never above `size_max`.
    size: usize,
    /// As the peer set it last, never above `size_limit`.
    size_max: usize,
    /// What we granted.
    size_limit: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    name_len: usize,
    value_len: usize,
}

impl Entry {
    fn size(self) -> usize {
        self.name_len + self.value_len + ENTRY_OVERHEAD
    }
}

impl DynamicTable {
    pub(super) fn new(size_limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            entries: VecDeque::new(),
            size: 0,
            size_max: size_limit,
            size_limit,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn size_limit(&self) -> usize {
        self.size_limit
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Name and value of an entry; the newest is 0.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let position = self.entries.len().checked_sub(index + 1)?;
        let entry = self.entries[position];
        let whole = &self.bytes[entry.start..entry.start + entry.name_len + entry.value_len];
        Some(whole.split_at(entry.name_len))
    }

    /// RFC 7541 4.3. The caller has checked `size_max` against `size_limit`.
    pub(super) fn resize(&mut self, size_max: usize) {
        debug_assert!(size_max <= self.size_limit);
        self.size_max = size_max;
        self.evict_to(size_max);
    }

    /// RFC 7541 4.4: evicts first; an entry larger than the table leaves it empty and is no error.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let entry_bytes = name.len() + value.len();
        let size = entry_bytes + ENTRY_OVERHEAD;
        let Some(rest) = self.size_max.checked_sub(size) else {
            self.evict_to(0);
            return;
        };
        self.evict_to(rest);
        if self.bytes.len() + entry_bytes > 2 * self.size_limit {
            self.compact();
        }
        self.entries.push_back(Entry {
            start: self.bytes.len(),
            name_len: name.len(),
            value_len: value.len(),
        });
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.size += size;
    }

    fn evict_to(&mut self, size: usize) {
        while self.size > size {
            let oldest = self
                .entries
                .pop_front()
                .expect("invariant: a size above zero has entries");
            self.size -= oldest.size();
        }
    }

    fn compact(&mut self) {
        let live = self
            .entries
            .front()
            .map_or(self.bytes.len(), |oldest| oldest.start);
        self.bytes.drain(..live);
        for entry in &mut self.entries {
            entry.start -= live;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(table: &DynamicTable) -> Vec<String> {
        (0..table.len())
            .map(|i| String::from_utf8_lossy(table.get(i).expect("below len").0).into_owned())
            .collect()
    }

    #[test]
    fn the_oldest_entries_make_room() {
        let mut table = DynamicTable::new(100);
        for name in ["a", "b", "c"] {
            table.insert(name.as_bytes(), b"");
        }
        assert_eq!(names(&table), ["c", "b", "a"]);
        table.insert(b"d", b"");
        assert_eq!(names(&table), ["d", "c", "b"]);
        table.resize(33);
        assert_eq!(names(&table), ["d"]);
        assert!(table.get(1).is_none());
        assert!(table.get(usize::MAX - 1).is_none());
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut table = DynamicTable::new(64);
        table.insert(b"a", b"");
        table.insert(&[b'x'; 33], b"");
        assert_eq!(table.len(), 0);
        table.insert(&[b'y'; 32], b"");
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn ten_thousand_insertions_keep_the_memory_bounded_and_the_texts_intact() {
        let mut table = DynamicTable::new(4096);
        for i in 0..10_000u32 {
            let value = i.to_string().repeat(1 + i as usize % 50);
            table.insert(&i.to_le_bytes(), value.as_bytes());
            assert_eq!(table.get(0), Some((&i.to_le_bytes()[..], value.as_bytes())));
            let oldest = table.get(table.len() - 1).expect("oldest").0;
            let oldest = u32::from_le_bytes(oldest.try_into().expect("four bytes"));
            assert_eq!(oldest as usize + table.len() - 1, i as usize);
        }
        assert!(table.memory_bytes() < 3 * 2 * 4096, "{}", table.memory_bytes());
    }
}
