//! An authorization policy: whom it is about, whether it allows or denies, and its rules.
//!
//! Plain values behind `Arc`. How they are evaluated is `authorize`'s business.

use std::sync::Arc;

use ipnet::IpNet;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use super::address::canonical_range;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `namespace/name`.
    pub key: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub scope: PolicyScope,
    pub action: PolicyAction,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
    /// Any rule suffices; none at all never matches.
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum PolicyScope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum PolicyAction {
    Allow,
    Deny,
}

/// Every clause has to match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Rule {
    pub clauses: Vec<Clause>,
}

/// Any match suffices; none at all matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Clause {
    pub matches: Vec<Match>,
}

/// Every pair of lists has to agree: some positive entry hits (or there is none), and no negative one does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    #[serde(deserialize_with = "ranges")]
    pub source_ips: Vec<IpNet>,
    #[serde(deserialize_with = "ranges")]
    pub not_source_ips: Vec<IpNet>,
    #[serde(deserialize_with = "ranges")]
    pub destination_ips: Vec<IpNet>,
    #[serde(deserialize_with = "ranges")]
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    /// Anything but the empty text.
    Presence,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountMatch {
    pub namespace: Box<str>,
    pub service_account: Box<str>,
}

impl StringMatch {
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

impl Match {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn ranges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let ranges = Vec::deserialize(deserializer)?;
    Ok(ranges.into_iter().map(canonical_range).collect())
}

impl<'de> Deserialize<'de> for StringMatch {
    /// Reads `!Exact v` and `{Exact: v}`; the value of `Presence` carries nothing.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        enum Shape {
            Exact(Box<str>),
            Prefix(Box<str>),
            Suffix(Box<str>),
            Presence(#[allow(dead_code)] IgnoredAny),
        }
        Ok(match Shape::deserialize(deserializer)? {
            Shape::Exact(text) => Self::Exact(text),
            Shape::Prefix(text) => Self::Prefix(text),
            Shape::Suffix(text) => Self::Suffix(text),
            Shape::Presence(_) => Self::Presence,
        })
    }
}
