//! From the bytes of an `Authorization` to a policy.
//!
//! Pure. What a version does not know inside a match is left out of it, as upstream does; a match that is left empty
//! by this matches nothing.

use ipnet::IpNet;
use prost::Message;

use super::super::messages::security as wire;
use super::{DecodeError, known, port, range};
use crate::mesh::{Clause, Match, Policy, PolicyAction, PolicyScope, Rule, ServiceAccountMatch, StringMatch};

/// Decodes one `Authorization`; `name` is the resource's, by which workloads refer to it.
pub fn policy(name: &str, bytes: &[u8]) -> Result<Policy, DecodeError> {
    let from = wire::Authorization::decode(bytes)?;
    Ok(Policy {
        key: name.into(),
        name: from.name.into(),
        namespace: from.namespace.into(),
        scope: match known("scope", from.scope)? {
            wire::Scope::Global => PolicyScope::Global,
            wire::Scope::Namespace => PolicyScope::Namespace,
            wire::Scope::WorkloadSelector => PolicyScope::WorkloadSelector,
        },
        action: match known("action", from.action)? {
            wire::Action::Allow => PolicyAction::Allow,
            wire::Action::Deny => PolicyAction::Deny,
        },
        dry_run: from.dry_run,
        rules: from.rules.into_iter().map(rule).collect(),
    })
}

fn rule(from: wire::Rule) -> Rule {
    let clause = |clause: wire::Clause| Clause {
        matches: clause.matches.into_iter().map(match_of).collect(),
    };
    Rule {
        clauses: from.clauses.into_iter().map(clause).collect(),
    }
}

fn match_of(from: wire::Match) -> Match {
    Match {
        namespaces: strings(from.namespaces),
        not_namespaces: strings(from.not_namespaces),
        service_accounts: accounts(from.service_accounts),
        not_service_accounts: accounts(from.not_service_accounts),
        principals: strings(from.principals),
        not_principals: strings(from.not_principals),
        source_ips: ranges(&from.source_ips),
        not_source_ips: ranges(&from.not_source_ips),
        destination_ips: ranges(&from.destination_ips),
        not_destination_ips: ranges(&from.not_destination_ips),
        destination_ports: from.destination_ports.into_iter().map(port).collect(),
        not_destination_ports: from.not_destination_ports.into_iter().map(port).collect(),
    }
}

fn strings(list: Vec<wire::StringMatch>) -> Vec<StringMatch> {
    use wire::string_match::MatchType;
    let known = |it: wire::StringMatch| {
        Some(match it.match_type? {
            MatchType::Exact(text) => StringMatch::Exact(text.into()),
            MatchType::Prefix(text) => StringMatch::Prefix(text.into()),
            MatchType::Suffix(text) => StringMatch::Suffix(text.into()),
            MatchType::Presence(()) => StringMatch::Presence,
        })
    };
    list.into_iter().filter_map(known).collect()
}

fn accounts(list: Vec<wire::ServiceAccountMatch>) -> Vec<ServiceAccountMatch> {
    let account = |it: wire::ServiceAccountMatch| ServiceAccountMatch {
        namespace: it.namespace.into(),
        service_account: it.service_account.into(),
    };
    list.into_iter().map(account).collect()
}

fn ranges(list: &[wire::Address]) -> Vec<IpNet> {
    let readable = |it: &wire::Address| {
        let ip = super::plain_ip(&it.address).ok()?;
        range(ip, it.length).ok()
    };
    list.iter().filter_map(readable).collect()
}
