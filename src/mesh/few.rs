//! A list that nearly always has one entry, as what an address or a name leads to: then it owns no memory beside itself.
//! Rejected: smallvec, three words where a place is one number and this has two.

use std::ops::{Deref, DerefMut};

/// Invariant: one entry is `One`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Few<T> {
    One([T; 1]),
    Other(Box<[T]>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Other(Box::default())
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut entries = entries.into_iter().fuse();
        match (entries.next(), entries.next()) {
            (Some(only), None) => Self::One([only]),
            (first, second) => Self::Other(first.into_iter().chain(second).chain(entries).collect()),
        }
    }
}

impl<T, const LEN: usize> From<[T; LEN]> for Few<T> {
    fn from(entries: [T; LEN]) -> Self {
        entries.into_iter().collect()
    }
}

impl<T: Clone> Few<T> {
    pub fn one(value: T) -> Self {
        Self::One([value])
    }

    pub fn push(&mut self, value: T) {
        self.insert(self.len(), value);
    }

    pub fn insert(&mut self, at: usize, value: T) {
        let (before, after) = self.split_at(at);
        *self = before.iter().chain([&value]).chain(after).cloned().collect();
    }

    /// `None` when nothing is left.
    pub fn without(&self, mut condition: impl FnMut(&T) -> bool) -> Option<Self> {
        let left: Self = self.iter().filter(|value| !condition(value)).cloned().collect();
        (!left.is_empty()).then_some(left)
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => one,
            Self::Other(list) => list,
        }
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::One(one) => one,
            Self::Other(list) => list,
        }
    }
}

/// A list that grows one by one, and nearly always ends with one entry.
#[derive(Debug, Clone)]
pub struct Gathered<T> {
    first: Option<T>,
    more: Vec<T>,
}

impl<T> Default for Gathered<T> {
    fn default() -> Self {
        Self {
            first: None,
            more: Vec::new(),
        }
    }
}

impl<T> Gathered<T> {
    pub fn push(&mut self, entry: T) {
        match self.first {
            None => self.first = Some(entry),
            Some(_) => self.more.push(entry),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.more)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_gathered_is_there_in_its_order_and_one_entry_owns_no_memory() {
        let mut gathered = Gathered::default();
        for count in 0..4 {
            assert_eq!((gathered.len(), gathered.is_empty()), (count, count == 0));
            assert!(gathered.iter().copied().eq(0..count));
            assert!(count > 1 || gathered.more.capacity() == 0);
            gathered.push(count);
        }
    }

    #[test]
    fn however_it_was_made_one_entry_owns_no_memory_and_equals_are_equal() {
        for count in 0..4_u8 {
            let made: Few<u8> = (0..count).collect();
            assert_eq!(*made, *(0..count).collect::<Vec<_>>());
            assert_eq!(matches!(made, Few::One(_)), count == 1);
            let mut pushed = made.clone();
            pushed.push(count);
            assert_eq!(pushed, (0..=count).collect());
            let left = pushed.without(|entry| *entry == count);
            assert_eq!(left, (count > 0).then_some(made.clone()));
            let mut inserted = made;
            inserted.insert(0, 9);
            assert_eq!(inserted, std::iter::once(9).chain(0..count).collect());
        }
    }

    #[test]
    fn leaving_one_of_many_out_copies_each_of_the_others_once() {
        struct Counting<'a>(&'a Cell<usize>, usize);
        impl Clone for Counting<'_> {
            fn clone(&self) -> Self {
                self.0.set(self.0.get() + 1);
                Self(self.0, self.1)
            }
        }
        let copies = Cell::new(0);
        let many: Few<_> = (0..1_000).map(|at| Counting(&copies, at)).collect();
        let left = many.without(|entry| entry.1 == 7).expect("others");
        assert_eq!((left.len(), copies.get()), (999, 999));
    }

    #[test]
    fn an_entry_is_no_larger_than_a_list() {
        assert_eq!(Few::<u8>::default(), [].into());
        assert!(size_of::<Few<std::net::IpAddr>>() <= size_of::<Vec<u8>>());
    }
}
