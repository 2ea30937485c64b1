//! Certificates that their CA took back: lists of them, and what they say about a peer.
//!
//! `RevocationLists` is read from a file by the control thread and shared by all workers, which ask it in the middle
//! of handshakes (`verify`) and again for live sessions (`Revocable`). Invariant: whether a certificate is revoked is
//! webpki's judgement alone, over the whole chain and with the list's signature checked; what is our own is only the
//! question which lists name a certificate of the chain. Lists that name none are not shown to webpki, which would
//! hash each list anew in each handshake. Specification: RFC 5280 sections 5 and 6.3, control-plane contract 3.4.
//!
//! | list | what it does |
//! |---|---|
//! | none of a certificate's issuer | nothing: the certificate is accepted |
//! | past its nextUpdate | what it names stays revoked; somebody should be told (`overdue`) |
//! | several of one issuer | what any of them names is revoked |
//! | names a certificate, but not signed by its issuer, or by one that may not sign lists | the peer is refused |

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{BorrowedCertRevocationList, CertRevocationList, EndEntityCert, Error as WebpkiError};
use x509_parser::asn1_rs::{Any, FromDer as _};
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use crate::limits;
use crate::tls::error::utc;
use crate::tls::verify::{Chain, Usage};

/// Why a text holds no lists that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    #[error(
        "it is neither PEM nor DER (expected blocks that begin with -----BEGIN X509 CRL-----, or one DER list)"
    )]
    Unknown,
    #[error(
        "its PEM is broken: {0} (expected whole blocks from -----BEGIN X509 CRL----- to -----END X509 CRL-----)"
    )]
    Pem(String),
    #[error(
        "list {number} of it cannot be used: {reason} (expected version 2 with nextUpdate and a CRL number)"
    )]
    List { number: usize, reason: String },
}

/// All lists of one file.
#[derive(Default)]
pub struct RevocationLists {
    lists: Vec<List>,
    /// By the DER of the issuer's name: where its lists are.
    by_issuer: HashMap<Box<[u8]>, Vec<usize>>,
    certificates: usize,
}

struct List {
    list: CertRevocationList<'static>,
    /// For messages.
    issuer: Arc<str>,
    next_update: Option<UnixTime>,
}

/// Which certificate of a peer was taken back. The text is the same whether that was found in a handshake or later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// The names in the peer's leaf.
    pub peer: Arc<str>,
    /// Big-endian.
    pub serial: Box<[u8]>,
    pub issuer: Arc<str>,
    /// The leaf itself, or one of the CAs above it.
    pub is_leaf: bool,
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_ca = if self.is_leaf {
            ""
        } else {
            "of a CA in its chain, "
        };
        write!(
            f,
            "peer certificate revoked by CRL (identity {}, {of_ca}serial number {}, issuer {})",
            self.peer,
            hex(&self.serial),
            self.issuer
        )
    }
}

impl RevocationLists {
    /// PEM with any number of lists among other blocks, or the DER of one. The empty text revokes nothing.
    pub fn parse(text: &[u8]) -> Result<Self, RevocationError> {
        let mut lists = Self::default();
        // A SEQUENCE with a length of several bytes; no text begins so.
        if text.first() == Some(&0x30) && text.get(1).is_some_and(|length| *length >= 0x80) {
            lists.add(text)?;
            return Ok(lists);
        }
        let is_pem = text.windows(BEGIN.len()).any(|window| window == BEGIN);
        if !is_pem && !text.trim_ascii().is_empty() {
            return Err(RevocationError::Unknown);
        }
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
            let (kind, der) = section.map_err(|error| RevocationError::Pem(error.to_string()))?;
            if kind == SectionKind::Crl {
                lists.add(&der)?;
            }
        }
        Ok(lists)
    }

    fn add(&mut self, der: &[u8]) -> Result<(), RevocationError> {
        let number = self.lists.len();
        let unusable = |error: WebpkiError| RevocationError::List {
            number: number + 1,
            reason: error.to_string(),
        };
        let borrowed = BorrowedCertRevocationList::from_der(der).map_err(unusable)?;
        self.certificates += (&borrowed).into_iter().count();
        let list = CertRevocationList::from(borrowed.to_owned().map_err(unusable)?);
        let (issuer, next_update) = head(der).unwrap_or_else(|| ("of an unreadable name".to_owned(), None));
        let same_issuer = self.by_issuer.entry(list.issuer().into()).or_default();
        same_issuer.push(number);
        self.lists.push(List {
            list,
            issuer: issuer.into(),
            next_update,
        });
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.lists.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// How many certificates they name.
    pub fn certificates(&self) -> usize {
        self.certificates
    }

    /// Lists that should have been replaced before `now`: issuer and time.
    pub fn overdue(&self, now: UnixTime) -> impl Iterator<Item = (&str, String)> {
        self.lists.iter().filter_map(move |list| match list.next_update {
            Some(due) if due <= now => Some((&*list.issuer, utc(due))),
            Some(_) | None => None,
        })
    }

    /// The lists that name a certificate with its issuer and serial number, and which one.
    fn naming<'a>(&'a self, links: &'a [Link]) -> impl Iterator<Item = (usize, &'a Link)> {
        links.iter().flat_map(move |link| {
            let of_issuer = self.by_issuer.get(&link.issuer).map_or(&[][..], Vec::as_slice);
            of_issuer.iter().filter_map(move |number| {
                let found = self.lists[*number].list.find_serial(&link.serial);
                // A malformed entry would have been found when the list was read.
                matches!(found, Ok(Some(_))).then_some((*number, link))
            })
        })
    }

    /// `Ok` unless the chain that `peer` presents is revoked, or cannot be told from a revoked one.
    fn judge(&self, chain: &Chain, peer: &Presented<'_>, now: UnixTime, usage: Usage) -> Result<(), Verdict> {
        let mut named: Vec<usize> = self.naming(&peer.links).map(|(number, _)| number).collect();
        named.sort_unstable();
        named.dedup();
        let all: Vec<&CertRevocationList<'_>> =
            named.iter().map(|number| &self.lists[*number].list).collect();
        if all.is_empty() {
            return Ok(());
        }
        // webpki lets the first list of an issuer decide, and it may be one that names another certificate.
        let alone = all.chunks(1).take(if all.len() > 1 { all.len() } else { 0 });
        let mut unusable = None;
        for lists in [&all[..]].into_iter().chain(alone) {
            match chain.ask(&peer.leaf, peer.intermediates, now, usage, lists) {
                Ok(()) => {}
                Err(WebpkiError::CertRevoked) => return Err(Verdict::Revoked(self.revoked(peer))),
                // Another one may say for certain.
                Err(error) => unusable = unusable.or(Some(error)),
            }
        }
        match unusable {
            Some(error) => Err(Verdict::Unusable(self.unusable(peer, &error))),
            None => Ok(()),
        }
    }

    /// The first certificate of the chain that is named: a leaf before the CAs above it.
    fn revoked(&self, peer: &Presented<'_>) -> Revoked {
        let (number, link) = self
            .naming(&peer.links)
            .next()
            .expect("invariant: only lists that name a certificate are asked");
        Revoked {
            peer: names(&peer.leaf).into(),
            serial: link.serial.clone(),
            issuer: self.lists[number].issuer.clone(),
            is_leaf: peer.links.first() == Some(link),
        }
    }

    fn unusable(&self, peer: &Presented<'_>, error: &WebpkiError) -> String {
        let revoked = self.revoked(peer);
        format!("{revoked}, but that list cannot be relied on: {error}")
    }
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RevocationLists({} of {} certificates)",
            self.len(),
            self.certificates
        )
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";

pub(super) enum Verdict {
    Revoked(Revoked),
    /// The reason; whether the peer is revoked is not known.
    Unusable(String),
}

/// A peer's certificates as it presented them.
struct Presented<'a> {
    leaf: EndEntityCert<'a>,
    intermediates: &'a [CertificateDer<'a>],
    links: Vec<Link>,
}

/// What names a certificate in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    /// DER of the name, without its tag.
    issuer: Box<[u8]>,
    serial: Box<[u8]>,
}

impl Link {
    fn of(certificate: &EndEntityCert<'_>) -> Self {
        Self {
            issuer: certificate.issuer().into(),
            serial: certificate.serial().into(),
        }
    }
}

impl<'a> Presented<'a> {
    fn new(leaf: &'a CertificateDer<'a>, intermediates: &'a [CertificateDer<'a>]) -> Option<Self> {
        let leaf = EndEntityCert::try_from(leaf).ok()?;
        // One that cannot be read is no part of the verified path.
        let readable = intermediates
            .iter()
            .filter_map(|it| EndEntityCert::try_from(it).ok());
        let links = [Link::of(&leaf)]
            .into_iter()
            .chain(readable.map(|it| Link::of(&it)))
            .collect();
        Some(Self {
            leaf,
            intermediates,
            links,
        })
    }
}

/// Asked by a verifier in the middle of one handshake, whose owner reads the finding.
#[derive(Clone)]
pub(super) struct Check {
    pub lists: Arc<RevocationLists>,
    /// Set once, when the peer is refused for it: rustls carries only the fact.
    pub found: Arc<OnceLock<Revoked>>,
}

impl Check {
    pub fn new(lists: Arc<RevocationLists>) -> Self {
        Self {
            lists,
            found: Arc::default(),
        }
    }

    /// For a chain that was verified just now.
    pub fn judge(
        &self,
        chain: &Chain,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Verdict> {
        let Some(peer) = Presented::new(leaf, intermediates) else {
            return Ok(());
        };
        self.lists.judge(chain, &peer, now, usage)
    }
}

/// What is kept of a live session's peer, so that lists that come later can be asked about it.
pub struct Revocable {
    chain: Arc<Chain>,
    usage: Usage,
    /// The leaf first; as presented, unless those are more than a chain needs.
    certificates: Box<[CertificateDer<'static>]>,
    links: Box<[Link]>,
    /// The chain was valid then. Later lists are asked as of that time: a certificate that has expired since must
    /// not hide that it was revoked.
    verified: UnixTime,
    /// What it was compared with last.
    lists: Arc<RevocationLists>,
}

impl Revocable {
    pub(super) fn new(
        chain: Arc<Chain>,
        usage: Usage,
        presented: &[CertificateDer<'_>],
        verified: UnixTime,
        lists: Arc<RevocationLists>,
    ) -> Option<Self> {
        let (leaf, intermediates) = presented.split_first()?;
        let owned = |it: &CertificateDer<'_>| it.clone().into_owned();
        let mut certificates = vec![owned(leaf)];
        // Whoever presents a crowd of them would have later lists searched for in vain, and all of them kept.
        let needed = match intermediates.len() {
            ..=limits::INTERMEDIATES_PLAIN => None,
            _ => {
                let leaf = EndEntityCert::try_from(leaf).ok()?;
                chain.between(&leaf, intermediates, verified, usage).ok()
            }
        };
        certificates.extend(needed.unwrap_or_else(|| intermediates.iter().map(owned).collect()));
        let (leaf, intermediates) = certificates.split_first()?;
        let links = Presented::new(leaf, intermediates)?.links.into();
        Some(Self {
            chain,
            usage,
            certificates: certificates.into(),
            links,
            verified,
            lists,
        })
    }

    /// Whether `lists` name a certificate of it: cheap, and without them there is nothing to check.
    pub fn is_named(&self, lists: &RevocationLists) -> bool {
        lists.naming(&self.links).next().is_some()
    }

    /// Compares the peer with other lists. An `Err` is final; a list that cannot be relied on ends no session.
    pub fn compare(&mut self, lists: &Arc<RevocationLists>) -> Result<(), Revoked> {
        if Arc::ptr_eq(&self.lists, lists) {
            return Ok(());
        }
        self.lists = lists.clone();
        let presented = self
            .certificates
            .split_first()
            .and_then(|(leaf, intermediates)| Presented::new(leaf, intermediates));
        let Some(peer) = presented else {
            return Ok(());
        };
        match lists.judge(&self.chain, &peer, self.verified, self.usage) {
            Err(Verdict::Revoked(revoked)) => Err(revoked),
            Ok(()) | Err(Verdict::Unusable(_)) => Ok(()),
        }
    }
}

impl fmt::Debug for Revocable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revocable({} certificates)", self.certificates.len())
    }
}

/// The issuer in words, and nextUpdate, which webpki keeps to itself. RFC 5280 section 5.1.2.
fn head(der: &[u8]) -> Option<(String, Option<UnixTime>)> {
    let (_, list) = Any::from_der(der).ok()?;
    let (_, to_be_signed) = Any::from_der(list.data).ok()?;
    let (rest, _version) = Any::from_der(to_be_signed.data).ok()?;
    let (rest, _algorithm) = Any::from_der(rest).ok()?;
    let (rest, issuer) = X509Name::from_der(rest).ok()?;
    let (rest, _this_update) = ASN1Time::from_der(rest).ok()?;
    let next_update = ASN1Time::from_der(rest).ok().and_then(|(_, due)| {
        let seconds = u64::try_from(due.timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            seconds,
        )))
    });
    Some((issuer.to_string(), next_update))
}

fn names(leaf: &EndEntityCert<'_>) -> String {
    let names: Vec<&str> = leaf.valid_uri_names().collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(", ")
}

/// As openssl prints serial numbers, so that they can be looked for.
fn hex(serial: &[u8]) -> String {
    let significant = serial.iter().skip_while(|byte| **byte == 0);
    let text: String = significant.map(|byte| format!("{byte:02X}")).collect();
    if text.is_empty() { "00".to_owned() } else { text }
}

#[cfg(test)]
mod tests;
