//! One copy of what many resources say alike: namespaces, accounts, nodes, zones, whole lists of services.
//!
//! Control thread, inside the builder; decoders ask it before they allocate. Invariant: what nobody uses any more is
//! let go of, at the latest when as much again has come in.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::address::{NamespacedHostname, PortMap};
use crate::identity::Identity;

/// A workload's services, with its own port mapping.
pub type Memberships = Arc<[(NamespacedHostname, PortMap)]>;

#[derive(Debug, Default)]
pub struct Interner {
    memberships: Pool<[(NamespacedHostname, PortMap)]>,
    lists: Pool<[Arc<str>]>,
    identities: HashMap<[Arc<str>; 3], Arc<[Identity]>>,
    identities_sweep_at: usize,
    texts: Pool<str>,
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

const SWEEP_MIN: usize = 1024;

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            sweep_at: SWEEP_MIN,
        }
    }
}

impl<T: Hash + Eq + ?Sized> Pool<T> {
    fn one(&mut self, value: &T) -> Arc<T>
    where
        Arc<T>: for<'a> From<&'a T>,
    {
        match self.known.get(value) {
            Some(known) => known.clone(),
            None => self.keep(value.into()),
        }
    }

    fn same(&mut self, value: Arc<T>) -> Arc<T> {
        match self.known.get(&*value) {
            Some(known) => known.clone(),
            None => self.keep(value),
        }
    }

    fn keep(&mut self, value: Arc<T>) -> Arc<T> {
        if self.known.len() >= self.sweep_at {
            self.known.retain(|it| Arc::strong_count(it) > 1);
            self.sweep_at = (2 * self.known.len()).max(SWEEP_MIN);
        }
        self.known.insert(value.clone());
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

    pub fn texts(&mut self, texts: &[String]) -> Arc<[Arc<str>]> {
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
        match self.memberships.known.get(&*list) {
            Some(known) => known.clone(),
            None => self.memberships.keep(list.into()),
        }
    }

    /// An identity, as the set of one that peers are checked against.
    pub fn identity(
        &mut self,
        trust_domain: &Arc<str>,
        namespace: &Arc<str>,
        service_account: &Arc<str>,
    ) -> Arc<[Identity]> {
        let key = [trust_domain.clone(), namespace.clone(), service_account.clone()];
        if let Some(known) = self.identities.get(&key) {
            return known.clone();
        }
        if self.identities.len() >= self.identities_sweep_at {
            self.identities.retain(|_, it| Arc::strong_count(it) > 1);
            self.identities_sweep_at = (2 * self.identities.len()).max(SWEEP_MIN);
        }
        let set: Arc<[Identity]> = Arc::new([Identity::new(trust_domain, namespace, service_account)]);
        self.identities.insert(key, set.clone());
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_are_one_and_what_nobody_uses_is_let_go_of() {
        let mut interner = Interner::default();
        let kept = interner.text("shop");
        assert!(Arc::ptr_eq(&kept, &interner.text("shop")));
        for number in 0..10 * SWEEP_MIN {
            interner.text(&number.to_string());
        }
        assert!(
            interner.texts.known.len() <= SWEEP_MIN + 1,
            "{}",
            interner.texts.known.len()
        );
        assert!(Arc::ptr_eq(&kept, &interner.text("shop")), "what is used stays");
        let list = || vec![(NamespacedHostname::new("shop", "cart"), PortMap::default())];
        let one = interner.memberships(list());
        assert!(Arc::ptr_eq(&one, &interner.memberships(list())));
        let text = |text: &str| Arc::<str>::from(text);
        let identity = interner.identity(&text("t"), &text("n"), &text("a"));
        let again = interner.identity(&text("t"), &text("n"), &text("a"));
        assert!(Arc::ptr_eq(&identity, &again));
        assert_eq!(identity[0].to_string(), "spiffe://t/ns/n/sa/a");
    }
}
