//! A persistent hash map: a copy costs one reference count, and a change to a map of which there are copies clones
//! only the leaf that it touches and the few nodes above.
//!
//! Written because the mesh of a large cluster is mostly such maps. Leaves are vectors of exactly the size that they
//! need, found by one byte of each hash; inner nodes have eight children. Rejected: `imbl::HashMap`, whose nodes have
//! room for 16 or 32 entries whatever is in them: 160 to 360 bytes for an entry of 24 to 56 with 100,000 of them.
//!
//! Invariants: a leaf has at most `LEAF_MAX` entries unless all bits of their hashes are used up; no node is empty.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::hint::black_box;
use std::sync::Arc;

use foldhash::quality::RandomState;

const LEAF_MAX: usize = 24;
/// Below this many entries in all, the children of a node become one leaf again.
const LEAF_MERGED: usize = 8;
const BITS: u32 = 3;
const CHILDREN: usize = 1 << BITS;
/// The upper bits of a hash tell entries of one leaf apart.
const PATH_BITS: u32 = 56;

#[derive(Clone)]
pub struct TrieMap<K, V> {
    root: Option<Arc<Node<K, V>>>,
    len: usize,
    hasher: RandomState,
}

#[derive(Clone)]
enum Node<K, V> {
    Leaf {
        /// Of the first entries.
        tags: [u8; LEAF_MAX],
        entries: Vec<(K, V)>,
    },
    Branch([Option<Arc<Node<K, V>>>; CHILDREN]),
}

impl<K, V> Default for TrieMap<K, V> {
    fn default() -> Self {
        Self {
            root: None,
            len: 0,
            hasher: RandomState::default(),
        }
    }
}

impl<K, V> TrieMap<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads what a change of a map of few entries touches first.
    pub fn foresee(&self) {
        if let Some(root) = &self.root {
            let entries = match &**root {
                Node::Leaf { entries, .. } => entries.len(),
                Node::Branch(_) => 0,
            };
            black_box((Arc::strong_count(root), entries));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In no particular order, but the same for a map that does not change.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut waiting: Vec<&Node<K, V>> = self.root.as_deref().into_iter().collect();
        let mut entries: std::slice::Iter<'_, (K, V)> = [].iter();
        std::iter::from_fn(move || {
            loop {
                if let Some((key, value)) = entries.next() {
                    return Some((key, value));
                }
                match waiting.pop()? {
                    Node::Leaf { entries: more, .. } => entries = more.iter(),
                    Node::Branch(children) => waiting.extend(children.iter().flatten().map(|child| &**child)),
                }
            }
        })
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Hash + Eq, V> TrieMap<K, V> {
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        if let Some((only, value)) = self.only() {
            return (only.borrow() == key).then_some(value);
        }
        self.find(self.hasher.hash_one(key), key)
    }

    /// The entry, if there is one: as in a mesh of one network, where to hash the key would cost more than all the rest.
    fn only(&self) -> Option<&(K, V)> {
        match self.root.as_deref()? {
            Node::Leaf { entries, .. } if entries.len() == 1 => entries.first(),
            Node::Leaf { .. } | Node::Branch(_) => None,
        }
    }

    fn find<Q: Hash + Eq + ?Sized>(&self, hash: u64, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut node = self.root.as_deref()?;
        let mut depth = 0;
        loop {
            match node {
                Node::Leaf { tags, entries } => {
                    return place(tags, entries, hash, key).map(|at| &entries[at].1);
                }
                Node::Branch(children) => {
                    node = children[child_of(hash, depth)].as_deref()?;
                    depth += BITS;
                }
            }
        }
    }

    /// What `get` gives for each key. They are looked up side by side, so that none waits for the memory of another.
    pub fn get_each<'a, const N: usize>(&'a self, keys: &[Option<K>; N]) -> [Option<&'a V>; N] {
        let hashes = keys
            .each_ref()
            .map(|key| key.as_ref().map(|key| self.hasher.hash_one(key)));
        let mut nodes = hashes.map(|hash| hash.and(self.root.as_deref()));
        let mut depth = 0;
        let mut deeper = true;
        while deeper {
            deeper = false;
            for (node, hash) in nodes.iter_mut().zip(hashes) {
                if let (Some(Node::Branch(children)), Some(hash)) = (*node, hash) {
                    *node = children[child_of(hash, depth)].as_deref();
                    deeper = true;
                }
            }
            depth += BITS;
        }
        std::array::from_fn(|at| match (nodes[at], hashes[at], &keys[at]) {
            (Some(Node::Leaf { tags, entries }), Some(hash), Some(key)) => {
                place(tags, entries, hash, key).map(|at| &entries[at].1)
            }
            _ => None,
        })
    }

    pub fn contains_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> TrieMap<K, V> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Copies nothing when there is no such key.
    pub fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        self.find(hash, key)?;
        self.find_mut(hash, key)
    }

    /// The value of a key, which `make` makes if there is none.
    pub fn get_or_insert_with(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        if self.only().is_some_and(|(only, _)| only == key) {
            let root = self.root.as_mut().map(Arc::make_mut);
            let Some(Node::Leaf { entries, .. }) = root else {
                unreachable!("invariant: the only entry is in a leaf");
            };
            return &mut entries[0].1;
        }
        let hash = self.hasher.hash_one(key);
        if self.find(hash, key).is_none() {
            self.len += 1;
            put(&mut self.root, &self.hasher, 0, hash, (key.clone(), make()));
        }
        self.find_mut(hash, key)
            .expect("invariant: it was there or was inserted")
    }

    /// Inserts the value that `make` makes, unless there is one: that one is given then, and the map stays as it is.
    pub fn insert_new(&mut self, key: &K, make: impl FnOnce() -> V) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let known = self.find(hash, key).cloned();
        if known.is_none() {
            self.len += 1;
            put(&mut self.root, &self.hasher, 0, hash, (key.clone(), make()));
        }
        known
    }

    /// Gives the value that was there before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = self.hasher.hash_one(&key);
        let before = put(&mut self.root, &self.hasher, 0, hash, (key, value));
        self.len += usize::from(before.is_none());
        before
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        self.find(hash, key)?;
        let removed = take(&mut self.root, &self.hasher, 0, hash, key)?;
        self.len -= 1;
        Some(removed)
    }

    /// Copies the way to the leaf, whether the key is there or not.
    fn find_mut<Q: Hash + Eq + ?Sized>(&mut self, hash: u64, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let mut node = Arc::make_mut(self.root.as_mut()?);
        let mut depth = 0;
        loop {
            match node {
                Node::Leaf { tags, entries } => {
                    let at = place(tags, entries, hash, key)?;
                    return Some(&mut entries[at].1);
                }
                Node::Branch(children) => {
                    node = Arc::make_mut(children[child_of(hash, depth)].as_mut()?);
                    depth += BITS;
                }
            }
        }
    }
}

/// Gives the value that was there before; its key stays.
fn put<K: Hash + Eq + Clone, V: Clone>(
    slot: &mut Option<Arc<Node<K, V>>>,
    hasher: &RandomState,
    depth: u32,
    hash: u64,
    entry: (K, V),
) -> Option<V> {
    let Some(node) = slot else {
        *slot = Some(Arc::new(leaf(hasher, vec![entry])));
        return None;
    };
    match Arc::make_mut(node) {
        Node::Branch(children) => {
            let child = &mut children[child_of(hash, depth)];
            put(child, hasher, depth + BITS, hash, entry)
        }
        Node::Leaf { tags, entries } => {
            if let Some(at) = place(tags, entries, hash, &entry.0) {
                return Some(std::mem::replace(&mut entries[at].1, entry.1));
            }
            if entries.len() >= LEAF_MAX && depth < PATH_BITS {
                let mut parts: [Vec<(K, V)>; CHILDREN] = Default::default();
                for entry in std::mem::take(entries).into_iter().chain([entry]) {
                    parts[child_of(hasher.hash_one(&entry.0), depth)].push(entry);
                }
                let whole = |part: Vec<(K, V)>| (!part.is_empty()).then(|| Arc::new(leaf(hasher, part)));
                *slot = Some(Arc::new(Node::Branch(parts.map(whole))));
                return None;
            }
            if let Some(tag) = tags.get_mut(entries.len()) {
                *tag = tag_of(hash);
            }
            if entries.len() == entries.capacity() {
                entries.reserve_exact(1 + entries.len() / 2);
            }
            entries.push(entry);
            None
        }
    }
}

/// Takes an entry out whose key is there.
fn take<K: Hash + Eq + Clone + Borrow<Q>, V: Clone, Q: Hash + Eq + ?Sized>(
    slot: &mut Option<Arc<Node<K, V>>>,
    hasher: &RandomState,
    depth: u32,
    hash: u64,
    key: &Q,
) -> Option<V> {
    let removed;
    let rest = match Arc::make_mut(slot.as_mut()?) {
        Node::Leaf { tags, entries } => {
            let at = place(tags, entries, hash, key)?;
            removed = entries.swap_remove(at).1;
            if at < LEAF_MAX
                && let Some((moved, _)) = entries.get(at)
            {
                tags[at] = tag_of(hasher.hash_one(moved));
            }
            entries.len()
        }
        Node::Branch(children) => {
            removed = take(
                &mut children[child_of(hash, depth)],
                hasher,
                depth + BITS,
                hash,
                key,
            )?;
            match small(children) {
                Some(count) => {
                    let mut entries = Vec::with_capacity(count);
                    for child in children.iter().flatten() {
                        if let Node::Leaf { entries: more, .. } = &**child {
                            entries.extend_from_slice(more);
                        }
                    }
                    *slot = (count > 0).then(|| Arc::new(leaf(hasher, entries)));
                    return Some(removed);
                }
                None => 1,
            }
        }
    };
    if rest == 0 {
        *slot = None;
    }
    Some(removed)
}

/// How many entries there are below a node, if they are few.
fn small<K, V>(children: &[Option<Arc<Node<K, V>>>; CHILDREN]) -> Option<usize> {
    let mut count = 0;
    for child in children.iter().flatten() {
        match &**child {
            Node::Leaf { entries, .. } => count += entries.len(),
            Node::Branch(_) => return None,
        }
    }
    (count <= LEAF_MERGED).then_some(count)
}

fn leaf<K: Hash, V>(hasher: &RandomState, mut entries: Vec<(K, V)>) -> Node<K, V> {
    entries.shrink_to_fit();
    let mut tags = [0; LEAF_MAX];
    for (tag, (key, _)) in tags.iter_mut().zip(&entries) {
        *tag = tag_of(hasher.hash_one(key));
    }
    Node::Leaf { tags, entries }
}

fn place<K: Borrow<Q>, V, Q: Eq + ?Sized>(
    tags: &[u8; LEAF_MAX],
    entries: &[(K, V)],
    hash: u64,
    key: &Q,
) -> Option<usize> {
    let tag = tag_of(hash);
    let mut places = entries.iter().enumerate();
    places
        .find(|(at, entry)| tags.get(*at).is_none_or(|it| *it == tag) && entry.0.borrow() == key)
        .map(|(at, _)| at)
}

fn child_of(hash: u64, depth: u32) -> usize {
    (hash >> depth) as usize & (CHILDREN - 1)
}

fn tag_of(hash: u64) -> u8 {
    (hash >> PATH_BITS) as u8
}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for TrieMap<K, V> {
    /// Of equal keys the last value counts. Few entries become a leaf at once, which does not grow meanwhile.
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        let mut entries = entries.into_iter();
        let mut few: Vec<(K, V)> = Vec::with_capacity(LEAF_MAX.min(entries.size_hint().0));
        let mut map = Self::default();
        let mut beyond = None;
        for (key, value) in entries.by_ref() {
            if let Some(known) = few.iter_mut().find(|known| known.0 == key) {
                known.1 = value;
            } else if few.len() < LEAF_MAX {
                few.push((key, value));
            } else {
                beyond = Some((key, value));
                break;
            }
        }
        map.len = few.len();
        map.root = (map.len > 0).then(|| Arc::new(leaf(&map.hasher, few)));
        for (key, value) in beyond.into_iter().chain(entries) {
            map.insert(key, value);
        }
        map
    }
}

impl<K: Hash + Eq + Borrow<Q>, V, Q: Hash + Eq + ?Sized> std::ops::Index<&Q> for TrieMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no entry of this key")
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for TrieMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Hashes that agree in most bits, so that leaves overflow.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Alike(u16);

    impl Hash for Alike {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            state.write_u8((self.0 % 3) as u8);
        }
    }

    fn check<K: Hash + Eq + Clone + Copy + fmt::Debug>(steps: &[(u16, bool)], key: impl Fn(u16) -> K) {
        let mut map = TrieMap::new();
        let mut model = HashMap::new();
        let mut copies = Vec::new();
        for (at, (number, insert)) in steps.iter().enumerate() {
            let key = key(*number);
            if *insert {
                assert_eq!(map.insert(key, at), model.insert(key, at));
            } else {
                assert_eq!(map.remove(&key), model.remove(&key));
            }
            if at % 50 == 0 {
                copies.push((map.clone(), model.clone()));
            }
            *map.get_or_insert_with(&key, || 7) += 1;
            *model.entry(key).or_insert(7) += 1;
        }
        copies.push((map, model));
        for (map, model) in copies {
            assert_eq!(map.len(), model.len());
            assert_eq!(
                map.iter()
                    .map(|(key, value)| (*key, *value))
                    .collect::<HashMap<_, _>>(),
                model
            );
            assert!(model.iter().all(|(key, value)| map.get(key) == Some(value)));
            let keys: Vec<K> = (0..500).map(&key).collect();
            for keys in keys.chunks(7) {
                let keys: [Option<K>; 8] = std::array::from_fn(|at| keys.get(at).copied());
                let values = keys.map(|key| model.get(&key?));
                assert_eq!(map.get_each(&keys), values);
            }
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds_and_copies_do_not_change(
            steps in proptest::collection::vec((0u16..500, any::<bool>()), 0..1500)
        ) {
            check(&steps, |number| number);
            check(&steps, |number| Alike(number % 120));
        }
    }

    #[test]
    fn a_map_made_at_once_is_the_one_made_step_by_step() {
        for len in [0, 1, LEAF_MAX - 1, LEAF_MAX, LEAF_MAX + 1, 10 * LEAF_MAX] {
            // Every third key comes twice.
            let twice = |n: usize| {
                [(n, n)]
                    .into_iter()
                    .chain(n.is_multiple_of(3).then_some((n, n + 1)))
            };
            let entries: Vec<_> = (0..len).flat_map(twice).collect();
            let mut steps = TrieMap::new();
            for (key, value) in entries.iter().copied() {
                steps.insert(key, value);
            }
            let mut made: TrieMap<usize, usize> = entries.into_iter().collect();
            assert_eq!(made.len(), len);
            assert_eq!(made.root.is_none(), len == 0);
            assert!(steps.iter().all(|(key, value)| made.get(key) == Some(value)));
            made.insert(usize::MAX, 0);
            assert_eq!(made.len(), len + 1);
            assert!((0..len).all(|key| made.remove(&key) == steps.remove(&key)));
        }
    }

    #[test]
    fn an_emptied_map_owns_nothing_and_a_shrunken_one_little() {
        let mut map: TrieMap<u32, u32> = (0..10_000).map(|n| (n, n)).collect();
        for n in 5..10_000 {
            assert_eq!(map.remove(&n), Some(n));
        }
        assert!(
            matches!(map.root.as_deref(), Some(Node::Leaf { .. })),
            "five fit into one leaf"
        );
        for n in 0..5 {
            map.remove(&n);
        }
        assert!(map.root.is_none() && map.is_empty());
        assert_eq!(map.get(&3), None);
    }
}
