//! SPIFFE identities as the mesh uses them: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! Owned by nobody, shared by all layers; a plain value. Specification: SPIFFE-ID section 2 and Istio's
//! convention for the path.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The identity of a workload. Cheap to clone: one reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<Parts>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Parts {
    trust_domain: Box<str>,
    namespace: Box<str>,
    service_account: Box<str>,
}

/// A text that is no SPIFFE identity of a mesh workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid spiffe identity: {0:?} (expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>)"
)]
pub struct InvalidIdentity(pub String);

impl Identity {
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self(Arc::new(Parts {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }))
    }

    pub fn trust_domain(&self) -> &str {
        &self.0.trust_domain
    }

    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    /// Accepts exactly five segments; namespace and service account may be empty, as Istio allows.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidIdentity(text.to_owned());
        let path = text.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let segments: Vec<&str> = path.split('/').collect();
        match segments[..] {
            [trust_domain, "ns", namespace, "sa", account] if !trust_domain.is_empty() => {
                Ok(Self::new(trust_domain, namespace, account))
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain(),
            self.namespace(),
            self.service_account()
        )
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_a_round_trip_through_text() {
        let text = "spiffe://cluster.local/ns/shop/sa/cart";
        let identity: Identity = text.parse().expect("valid");
        assert_eq!(identity, Identity::new("cluster.local", "shop", "cart"));
        assert_eq!(identity.to_string(), text);
    }

    #[test]
    fn texts_of_another_shape_are_refused() {
        for text in [
            "",
            "cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe://cluster.local/ns/a/sa",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/sa/a/ns/b",
            "spiffe:///ns/a/sa/b",
        ] {
            assert_eq!(text.parse::<Identity>(), Err(InvalidIdentity(text.to_owned())));
        }
    }
}
