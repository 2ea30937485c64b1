//! One copy of what many resources say alike: namespaces, accounts, nodes, zones, whole lists of services.
//!
//! Control thread, inside the builder; decoders ask it before they allocate. Invariant: what nobody uses any more is
//! let go of, at the latest when as much again has come in.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use super::address::{NamespacedHostname, PortMap};
use super::workload::{Locality, Site};
use crate::identity::Identity;

/// A workload's services, with its own port mapping.
pub type Memberships = Arc<[(NamespacedHostname, PortMap)]>;

#[derive(Debug, Default)]
pub struct Interner {
    memberships: Pool<[(NamespacedHostname, PortMap)]>,
    lists: Pool<[Arc<str>]>,
    /// What a workload's services are encoded as.
    encoded: HashMap<Box<[u8]>, Memberships>,
    identities: HashMap<Key, Arc<[Identity]>>,
    identities_sweep_at: usize,
    /// By node: what the last of its workloads said.
    sites: HashMap<Arc<str>, Arc<Site>>,
    sites_sweep_at: usize,
    texts: Pool<str>,
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

const SWEEP_MIN: usize = 1024;
/// Beyond this many the encoded services are forgotten: 100 bytes each, and made again within a microsecond.
const ENCODED_MAX: usize = 8192;
/// Longer ones are rare, and not kept.
const ENCODED_BYTES_MAX: usize = 256;

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
        Self {
            known: HashSet::default(),
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
        match self.memberships.known.get(&*list) {
            Some(known) => known.clone(),
            None => self.memberships.keep(list.into()),
        }
    }

    /// The services that these bytes were said to stand for.
    pub fn known_memberships(&self, encoded: &[u8]) -> Option<Memberships> {
        self.encoded.get(encoded).cloned()
    }

    pub fn know_memberships(&mut self, encoded: &[u8], list: &Memberships) {
        if encoded.len() > ENCODED_BYTES_MAX {
            return;
        }
        if self.encoded.len() >= ENCODED_MAX {
            self.encoded = HashMap::default();
        }
        self.encoded.insert(encoded.into(), list.clone());
    }

    /// Region, zone and subzone are the locality.
    pub fn site(&mut self, node: &str, cluster_id: &str, locality: [&str; 3]) -> Arc<Site> {
        if let Some(known) = self.sites.get(node)
            && *known.cluster_id == *cluster_id
            && known.locality.parts().each_ref().map(|text| &***text) == locality
        {
            return known.clone();
        }
        if self.sites.len() >= self.sites_sweep_at {
            self.sites.retain(|_, it| Arc::strong_count(it) > 1);
            self.sites_sweep_at = (2 * self.sites.len()).max(SWEEP_MIN);
        }
        let node = self.text(node);
        let [region, zone, subzone] = locality.map(|text| self.text(text));
        let site = Arc::new(Site {
            node: node.clone(),
            cluster_id: self.text(cluster_id),
            locality: Locality {
                region,
                zone,
                subzone,
            },
        });
        self.sites.insert(node, site.clone());
        site
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
            return known.clone();
        }
        // They may be texts that came from somewhere else.
        let key = Key(given.0.each_ref().map(|text| self.texts.same(text.clone())));
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
        let other = interner.identity(&text("t"), &text("n"), &text("b"));
        assert_eq!(other[0].to_string(), "spiffe://t/ns/n/sa/b");
    }

    #[test]
    fn workloads_of_one_node_share_their_site_as_long_as_they_agree() {
        let mut interner = Interner::default();
        let mut site = |node, cluster, zone| interner.site(node, cluster, ["r", zone, ""]);
        let first = site("node", "c", "z");
        assert!(Arc::ptr_eq(&first, &site("node", "c", "z")));
        for (node, cluster, zone) in [
            ("node", "c", "other"),
            ("node", "other", "z"),
            ("other", "c", "z"),
            ("", "", ""),
        ] {
            let other = site(node, cluster, zone);
            let said = (&*other.node, &*other.cluster_id, &*other.locality.zone);
            assert_eq!(said, (node, cluster, zone));
        }
        assert_eq!(*site("node", "c", "z"), *first);
        for number in 0..10 * SWEEP_MIN {
            interner.site(&number.to_string(), "c", ["", "", ""]);
        }
        assert!(interner.sites.len() <= SWEEP_MIN + 1, "{}", interner.sites.len());
    }

    #[test]
    fn encoded_services_are_forgotten_when_they_are_many() {
        let mut interner = Interner::default();
        let list = interner.memberships(vec![(
            NamespacedHostname::new("shop", "cart"),
            PortMap::default(),
        )]);
        for number in 0..3 * ENCODED_MAX as u32 {
            interner.know_memberships(&number.to_be_bytes(), &list);
            assert_eq!(
                interner.known_memberships(&number.to_be_bytes()).as_ref(),
                Some(&list)
            );
        }
        assert!(interner.encoded.len() <= ENCODED_MAX);
        let long = [0; ENCODED_BYTES_MAX + 1];
        interner.know_memberships(&long, &list);
        assert_eq!(interner.known_memberships(&long), None);
        assert_eq!(interner.known_memberships(b"never seen"), None);
    }
}
