//! What bytes are known by that were seen before. To compare the bytes themselves would mean to fetch memory that no cache
//! holds, for each of a hundred thousand workloads; and what is found by fingerprints is moved without a look at them.
//!
//! Plain values; made on any thread. Invariant: equal bytes have equal fingerprints under the same keys. Others have not, as
//! far as chance goes: two hashes of 64 bits with keys of their own. The hash is no cryptographic one, it withstands who
//! does not see its outcome. So where one resource would be taken for another, the texts are compared as well, once, at
//! the end (`Workloads::find`).

use std::hash::BuildHasher;

use foldhash::quality::RandomState;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u64; 2]);

/// The keys. A copy makes the same fingerprints.
#[derive(Debug, Clone, Default)]
pub struct Fingerprints([RandomState; 2]);

impl Fingerprints {
    pub fn of(&self, bytes: &[u8]) -> Fingerprint {
        Fingerprint(self.0.each_ref().map(|keys| keys.hash_one(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_have_one_fingerprint_under_the_same_keys_and_others_have_another() {
        let keys = Fingerprints::default();
        let copy = keys.clone();
        let names: Vec<String> = (0..10_000).map(|number| format!("c//Pod/ns/{number}")).collect();
        let distinct: std::collections::HashSet<_> =
            names.iter().map(|name| keys.of(name.as_bytes())).collect();
        assert_eq!(distinct.len(), names.len());
        assert!(
            names
                .iter()
                .all(|name| distinct.contains(&copy.of(name.as_bytes())))
        );
        let others = Fingerprints::default();
        assert!(
            !names
                .iter()
                .any(|name| distinct.contains(&others.of(name.as_bytes())))
        );
    }
}
