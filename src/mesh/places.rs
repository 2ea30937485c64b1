//! Numbered places for what many lookups lead to: those keep the number, and the value behind it can be exchanged in
//! one place.
//!
//! Of the control thread's state; snapshots share the table. It is persistent like `trie`: a copy costs one reference
//! count, and an exchange clones one leaf of eight and the few nodes above. Rejected: references to the values in every
//! lookup, as it was. A change of a workload then copied a leaf of each of four maps, and to count again some hundred
//! references to workloads that nobody had in a cache was most of what the change cost.
//!
//! Invariants: no node is empty; a number that was taken back is given again only after the next snapshot, so that
//! nothing that waits to be applied can mean another value than it did.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

const BITS: u32 = 3;
const WIDTH: usize = 1 << BITS;

/// The number of a place for a `T`.
pub struct Place<T> {
    number: u32,
    of: PhantomData<fn() -> T>,
}

/// What is in the places.
pub struct Places<T> {
    root: Option<Arc<Node<T>>>,
    /// Levels of branches above the leaves.
    height: u32,
}

/// Which numbers are free.
pub struct Numbers<T> {
    free: Vec<Place<T>>,
    /// Taken back since the last snapshot.
    resting: Vec<Place<T>>,
    next: u32,
}

enum Node<T> {
    Leaf([Option<Arc<T>>; WIDTH]),
    Branch([Option<Arc<Self>>; WIDTH]),
}

impl<T> Places<T> {
    pub fn get(&self, place: Place<T>) -> Option<&Arc<T>> {
        if !fits(place.number, self.height) {
            return None;
        }
        let mut node = self.root.as_deref()?;
        let mut height = self.height;
        loop {
            match node {
                Node::Leaf(values) => return values[at(place.number, 0)].as_ref(),
                Node::Branch(children) => {
                    node = children[at(place.number, height)].as_deref()?;
                    height -= 1;
                }
            }
        }
    }

    /// Gives what was there before.
    pub fn set(&mut self, place: Place<T>, value: Arc<T>) -> Option<Arc<T>> {
        while !fits(place.number, self.height) {
            self.height += 1;
            if let Some(root) = self.root.take() {
                let mut children: [Option<Arc<Node<T>>>; WIDTH] = Default::default();
                children[0] = Some(root);
                self.root = Some(Arc::new(Node::Branch(children)));
            }
        }
        set(&mut self.root, self.height, place.number, value)
    }

    pub fn take(&mut self, place: Place<T>) -> Option<Arc<T>> {
        // Copies nothing when there is nothing.
        self.get(place)?;
        take(&mut self.root, self.height, place.number)
    }

    /// In the order of their numbers.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        let mut waiting: Vec<&Node<T>> = self.root.as_deref().into_iter().collect();
        let mut values: std::slice::Iter<'_, Option<Arc<T>>> = [].iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(value) = values.by_ref().flatten().next() {
                    return Some(value);
                }
                match waiting.pop()? {
                    Node::Leaf(more) => values = more.iter(),
                    Node::Branch(children) => {
                        waiting.extend(children.iter().rev().flatten().map(|child| &**child));
                    }
                }
            }
        })
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

fn fits(number: u32, height: u32) -> bool {
    number.checked_shr(BITS * (height + 1)).unwrap_or(0) == 0
}

fn at(number: u32, height: u32) -> usize {
    (number >> (BITS * height)) as usize & (WIDTH - 1)
}

fn set<T>(slot: &mut Option<Arc<Node<T>>>, height: u32, number: u32, value: Arc<T>) -> Option<Arc<T>> {
    let node = slot.get_or_insert_with(|| {
        Arc::new(if height == 0 {
            Node::Leaf(Default::default())
        } else {
            Node::Branch(Default::default())
        })
    });
    match Arc::make_mut(node) {
        Node::Leaf(values) => values[at(number, 0)].replace(value),
        Node::Branch(children) => set(&mut children[at(number, height)], height - 1, number, value),
    }
}

fn take<T>(slot: &mut Option<Arc<Node<T>>>, height: u32, number: u32) -> Option<Arc<T>> {
    let (before, is_empty) = match Arc::make_mut(slot.as_mut()?) {
        Node::Leaf(values) => {
            let before = values[at(number, 0)].take();
            (before, values.iter().all(Option::is_none))
        }
        Node::Branch(children) => {
            let before = take(&mut children[at(number, height)], height - 1, number);
            (before, children.iter().all(Option::is_none))
        }
    };
    if is_empty {
        *slot = None;
    }
    before
}

impl<T> Clone for Node<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(values) => Self::Leaf(values.clone()),
            Self::Branch(children) => Self::Branch(children.clone()),
        }
    }
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self {
            root: None,
            height: 0,
        }
    }
}

impl<T> Clone for Places<T> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            height: self.height,
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
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn place(number: u32) -> Place<u32> {
        Place {
            number,
            of: PhantomData,
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds_and_copies_do_not_change(
            steps in proptest::collection::vec((prop_oneof![0u32..40, 0u32..2000, Just(u32::MAX)], any::<bool>()), 0..600)
        ) {
            let mut places = Places::default();
            let mut model = HashMap::new();
            let mut copies = Vec::new();
            for (step, (number, set)) in (0u32..).zip(steps) {
                if set {
                    let before = places.set(place(number), Arc::new(step));
                    prop_assert_eq!(before.map(|it| *it), model.insert(number, step));
                } else {
                    let before = places.take(place(number));
                    prop_assert_eq!(before.map(|it| *it), model.remove(&number));
                }
                if step % 50 == 0 {
                    copies.push((places.clone(), model.clone()));
                }
            }
            copies.push((places, model));
            for (places, model) in copies {
                let mut numbers: Vec<u32> = model.keys().copied().collect();
                numbers.sort_unstable();
                let in_order: Vec<u32> = numbers.iter().map(|number| model[number]).collect();
                prop_assert_eq!(places.values().map(|it| **it).collect::<Vec<_>>(), in_order);
                for number in 0..50 {
                    prop_assert_eq!(places.get(place(number)).map(|it| **it), model.get(&number).copied());
                }
            }
        }
    }

    #[test]
    fn emptied_places_own_nothing() {
        let mut places = Places::default();
        for number in 0..1000 {
            places.set(place(number), Arc::new(number));
        }
        for number in 0..1000 {
            places.take(place(number));
        }
        assert!(places.root.is_none() && places.values().next().is_none());
        assert_eq!(places.get(place(3)), None);
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
