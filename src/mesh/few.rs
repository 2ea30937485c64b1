//! A list that nearly always has one entry, as what an address or a name leads to.

use std::ops::Deref;

/// At least one; two words.
#[derive(Debug, Clone)]
pub(super) enum Few<T> {
    One([T; 1]),
    More(Box<[T]>),
}

impl<T: Clone> Few<T> {
    pub fn one(value: T) -> Self {
        Self::One([value])
    }

    pub fn push(&mut self, value: T) {
        *self = Self::More(self.iter().cloned().chain([value]).collect());
    }

    /// `None` when nothing is left.
    pub fn without(&self, mut condition: impl FnMut(&T) -> bool) -> Option<Self> {
        let mut left = self.iter().filter(|value| !condition(value));
        let mut few = Self::one(left.next()?.clone());
        for value in left {
            few.push(value.clone());
        }
        Some(few)
    }

    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        match self {
            Self::One(one) => one.iter_mut(),
            Self::More(list) => list.iter_mut(),
        }
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => one,
            Self::More(list) => list,
        }
    }
}
