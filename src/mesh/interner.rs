//! One copy of what many resources say alike: namespaces, accounts, nodes, zones, whole lists of services.
//!
//! Control thread, inside the builder; decoders ask it before they allocate. Invariant: what nobody uses any more is
//! let go of, at the latest when as much again has come in.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::address::{NamespacedHostname, PortMap};
use super::fingerprint::{Fingerprint, Fingerprints};
use super::steady::SteadyMap;
use super::workload::{Role, Site};
use crate::identity::Identity;
use crate::limits;

/// A workload's services, with its own port mapping.
pub type Memberships = Arc<[(NamespacedHostname, PortMap)]>;

#[derive(Debug, Default)]
pub struct Interner {
    memberships: Pool<[(NamespacedHostname, PortMap)]>,
    lists: Pool<[Arc<str>]>,
    fingerprints: Fingerprints,
    roles: Known<Fingerprint, Role>,
    sites: Known<Fingerprint, Site>,
    identities: Known<Key, [Identity]>,
    texts: Pool<str>,
    /// Buffers that nobody has at the moment.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Pool<T: ?Sized>(SteadyMap<Arc<T>, ()>);

/// What was made of something that many resources say, by that or its fingerprint.
#[derive(Debug)]
struct Known<K, T: ?Sized>(SteadyMap<K, Arc<T>>);

impl<K, T: ?Sized> Default for Known<K, T> {
    fn default() -> Self {
        Self(SteadyMap::default())
    }
}

impl<K: Hash + Eq, T: ?Sized> Known<K, T> {
    fn get(&self, key: &K) -> Option<Arc<T>> {
        self.0.get(key).cloned()
    }

    fn keep(&mut self, key: K, made: Arc<T>) -> Arc<T> {
        self.0.keep(key, made.clone(), |_, it| Arc::strong_count(it) > 1);
        made
    }
}

/// Trust domain, namespace, service account: those of equal texts that the interner has given out. Told apart by where
/// they lie, and owned, so that nothing else ever lies there.
#[derive(Debug)]
struct Key([Arc<str>; 3]);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.each_ref().map(|text| Arc::as_ptr(text).addr()).hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

impl Eq for Key {}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self(SteadyMap::default())
    }
}

impl<T: Hash + Eq + ?Sized> Pool<T> {
    fn one(&mut self, value: &T) -> Arc<T>
    where
        Arc<T>: for<'a> From<&'a T>,
    {
        match self.0.key(value) {
            Some(known) => known.clone(),
            None => self.keep(value.into()),
        }
    }

    fn same(&mut self, value: Arc<T>) -> Arc<T> {
        match self.0.key(&*value) {
            Some(known) => known.clone(),
            None => self.keep(value),
        }
    }

    fn keep(&mut self, value: Arc<T>) -> Arc<T> {
        self.0.keep(value.clone(), (), |it, ()| Arc::strong_count(it) > 1);
        value
    }
}

impl Interner {
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if text.is_empty() {
            return Arc::default();
        }
        self.texts.one(text)
    }

    pub fn hostname(&mut self, namespace: &str, hostname: &str) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.text(namespace),
            hostname: self.text(hostname),
        }
    }

    pub fn texts(&mut self, texts: &[&str]) -> Arc<[Arc<str>]> {
        if texts.is_empty() {
            return Arc::default();
        }
        let texts = texts.iter().map(|text| self.text(text)).collect();
        self.lists.same(texts)
    }

    pub fn memberships(&mut self, list: Vec<(NamespacedHostname, PortMap)>) -> Memberships {
        if list.is_empty() {
            return Arc::default();
        }
        match self.memberships.0.key(&*list) {
            Some(known) => known.clone(),
            None => self.memberships.keep(list.into()),
        }
    }

    /// An empty buffer, for what is put together to be looked up. To allocate one each time would be a good part of the
    /// look-up.
    pub fn lend(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// For the next one who needs it.
    pub fn take_back(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < limits::XDS_SPARE_MAX && buffer.capacity() <= limits::XDS_SPARE_BYTES_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// What workloads are that say this of themselves; `make` finds out, if nobody said it before.
    pub fn role<E>(
        &mut self,
        encoded: &[u8],
        make: impl FnOnce(&mut Self) -> Result<Role, E>,
    ) -> Result<Arc<Role>, E> {
        self.made_of(encoded, |it| &mut it.roles, make)
    }

    /// Likewise, where they run.
    pub fn site<E>(
        &mut self,
        encoded: &[u8],
        make: impl FnOnce(&mut Self) -> Result<Site, E>,
    ) -> Result<Arc<Site>, E> {
        self.made_of(encoded, |it| &mut it.sites, make)
    }

    fn made_of<T, E>(
        &mut self,
        encoded: &[u8],
        known: fn(&mut Self) -> &mut Known<Fingerprint, T>,
        make: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let fingerprint = self.fingerprints.of(encoded);
        if let Some(made) = known(self).get(&fingerprint) {
            return Ok(made);
        }
        let made = Arc::new(make(self)?);
        Ok(known(self).keep(fingerprint, made))
    }

    /// An identity, as the set of one that peers are checked against.
    pub fn identity(
        &mut self,
        trust_domain: &Arc<str>,
        namespace: &Arc<str>,
        service_account: &Arc<str>,
    ) -> Arc<[Identity]> {
        let given = Key([trust_domain.clone(), namespace.clone(), service_account.clone()]);
        if let Some(known) = self.identities.get(&given) {
            return known;
        }
        // They may be texts that came from somewhere else.
        let key = Key(given.0.each_ref().map(|text| self.texts.same(text.clone())));
        if let Some(known) = self.identities.get(&key) {
            return known;
        }
        let set = Arc::new([Identity::new(trust_domain, namespace, service_account)]);
        self.identities.keep(key, set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many may be kept that nobody uses.
    const FEW: usize = 1024;
    const MANY: u32 = 10_240;

    #[test]
    fn equals_are_one_and_what_nobody_uses_is_let_go_of() {
        let mut interner = Interner::default();
        let kept = interner.text("shop");
        assert!(Arc::ptr_eq(&kept, &interner.text("shop")));
        for number in 0..MANY {
            interner.text(&number.to_string());
        }
        let left = interner.texts.0.len();
        assert!(left <= FEW, "{left}");
        assert!(Arc::ptr_eq(&kept, &interner.text("shop")), "what is used stays");
        let list = || vec![(NamespacedHostname::new("shop", "cart"), PortMap::default())];
        let one = interner.memberships(list());
        assert!(Arc::ptr_eq(&one, &interner.memberships(list())));
        let text = |text: &str| Arc::<str>::from(text);
        let identity = interner.identity(&text("t"), &text("n"), &text("a"));
        let again = interner.identity(&text("t"), &text("n"), &text("a"));
        assert!(Arc::ptr_eq(&identity, &again));
        assert_eq!(identity[0].to_string(), "spiffe://t/ns/n/sa/a");
        let other = interner.identity(&text("t"), &text("n"), &text("b"));
        assert_eq!(other[0].to_string(), "spiffe://t/ns/n/sa/b");
    }

    #[test]
    fn buffers_are_lent_empty_and_neither_many_nor_large_ones_are_kept() {
        let mut interner = Interner::default();
        for _ in 0..3 {
            let mut buffer = Vec::with_capacity(100);
            buffer.push(1);
            interner.take_back(buffer);
        }
        let lent = [interner.lend(), interner.lend(), interner.lend()];
        assert!(lent.iter().all(Vec::is_empty));
        assert_eq!(lent.map(|buffer| buffer.capacity() >= 100), [true, true, false]);
        interner.take_back(Vec::with_capacity(limits::XDS_SPARE_BYTES_MAX + 1));
        assert_eq!(interner.lend().capacity(), 0);
    }

    #[test]
    fn what_was_made_of_bytes_is_known_until_nobody_has_it() {
        let mut interner = Interner::default();
        let role = |_: &mut Interner| Ok::<_, ()>(Role::new(Identity::new("t", "n", "a")));
        let known = |_: &mut Interner| Err("it was to be made again");
        let kept = interner.role(b"kept", role).expect("made");
        for number in 0..MANY {
            let made = interner.role(&number.to_be_bytes(), role).expect("made");
            let again = interner.role(&number.to_be_bytes(), known);
            assert!(Arc::ptr_eq(&made, &again.expect("known")));
        }
        let left = interner.roles.0.len();
        assert!(left <= FEW, "{left}");
        let again = interner.role(b"kept", known).expect("it is in use");
        assert!(Arc::ptr_eq(&kept, &again));
        assert_eq!(
            interner.role(b"never seen", known),
            Err("it was to be made again")
        );
        assert_eq!(
            interner.site(b"kept", |_| Err("of another kind")),
            Err("of another kind")
        );
        let site = interner.site(b"kept", |_| Ok::<_, ()>(Site::default()));
        assert_eq!(*site.expect("made"), Site::default());
        let again = interner.site(b"kept", |_| Err("it was to be made again"));
        assert!(again.is_ok());
    }
}
