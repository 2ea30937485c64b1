//! Asking a CA for the certificate of one identity, and reading what it answers.
//!
//! Control thread. A `CertificateRequest` owns a private key that was made for it alone, and becomes a
//! `CertifiedIdentity` together with the CA's chain, or nothing. Specification: sections 2.1 and 2.3 of the
//! control-plane contract; RFC 2986 for the request, RFC 7468 for its text.

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::identity::Identity;
use crate::tls::error::{CredentialError, TlsError};
use crate::tls::keys::CertifiedIdentity;

pub struct CertificateRequest {
    identity: Identity,
    key: KeyPair,
    pem: String,
}

impl CertificateRequest {
    /// With a new P-256 key. The subject is empty, so that the only name, the SPIFFE one, is a critical extension
    /// (RFC 5280, 4.2.1.6).
    pub fn new(identity: Identity) -> Result<Self, TlsError> {
        let made = Self::make(&identity);
        let (key, pem) = made.map_err(|error| CredentialError::Request {
            identity: identity.to_string(),
            reason: error.to_string(),
        })?;
        Ok(Self { identity, key, pem })
    }

    fn make(identity: &Identity) -> Result<(KeyPair, String), rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut wanted = CertificateParams::default();
        wanted.distinguished_name = DistinguishedName::new();
        wanted.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        let pem = wanted.serialize_request(&key)?.pem()?;
        Ok((key, pem))
    }

    /// What the CA is sent.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Reads the CA's answer: the leaf, intermediates, and last the bundle of roots. Of the others only the first
    /// certificate counts, of the bundle all do.
    pub fn certify(self, answer: &[String]) -> Result<CertifiedIdentity, TlsError> {
        let (leaf, others) = match answer {
            [] => {
                let identity = self.identity.to_string();
                return Err(CredentialError::EmptyChain { identity }.into());
            }
            [leaf, others @ ..] => (leaf, others),
        };
        let mut chain = vec![self.first_certificate(leaf, || "its leaf".to_owned())?];
        let roots = match others {
            // `CertifiedIdentity` says that there are none.
            [] => Vec::new(),
            [intermediates @ .., bundle] => {
                for (number, text) in (1..).zip(intermediates) {
                    let what = || format!("its intermediate {number}");
                    chain.push(self.first_certificate(text, what)?);
                }
                self.all_certificates(bundle)?
            }
        };
        let key = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        CertifiedIdentity::new(self.identity, chain, key, roots)
    }

    fn first_certificate(
        &self,
        text: &str,
        what: impl FnOnce() -> String,
    ) -> Result<CertificateDer<'static>, CredentialError> {
        CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| self.unreadable(what(), &error))
    }

    fn all_certificates(&self, text: &str) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
        let what = || "its roots".to_owned();
        <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes())
            .map(|section| match section {
                Ok((SectionKind::Certificate, der)) => Ok(CertificateDer::from(der)),
                Ok((kind, _)) => Err(self.unreadable(what(), &format!("a {kind:?} among certificates"))),
                Err(error) => Err(self.unreadable(what(), &error)),
            })
            .collect()
    }

    fn unreadable(&self, what: String, reason: &dyn std::fmt::Display) -> CredentialError {
        CredentialError::Unreadable {
            identity: self.identity.to_string(),
            what,
            reason: reason.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::oid_registry::{OID_EC_P256, OID_PKCS9_EXTENSION_REQUEST, OID_SIG_ECDSA_WITH_SHA256};
    use x509_parser::prelude::FromDer;

    use super::*;

    #[test]
    fn a_request_has_an_empty_subject_and_one_critical_name_and_nothing_else() {
        let identity = Identity::new("cluster.local", "shop", "cart");
        let request = CertificateRequest::new(identity.clone()).expect("made");
        let (label, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(request.pem().as_bytes()).expect("PEM");
        assert_eq!(label, SectionKind::Csr);
        let (rest, parsed) = X509CertificationRequest::from_der(&der).expect("PKCS #10");
        assert!(rest.is_empty());
        parsed.verify_signature().expect("signed by its own key");
        assert_eq!(parsed.signature_algorithm.algorithm, OID_SIG_ECDSA_WITH_SHA256);
        let info = &parsed.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        let curve = info.subject_pki.algorithm.parameters.as_ref();
        assert_eq!(curve.expect("a curve").as_oid().expect("an OID"), OID_EC_P256);
        let attributes: Vec<_> = info.iter_attributes().map(|it| it.oid.clone()).collect();
        assert_eq!(attributes, [OID_PKCS9_EXTENSION_REQUEST]);
        let extensions: Vec<_> = parsed.requested_extensions().expect("some").collect();
        let [ParsedExtension::SubjectAlternativeName(names)] = &extensions[..] else {
            panic!("one extension, the names, not {extensions:?}");
        };
        assert_eq!(names.general_names, [GeneralName::URI(&identity.to_string())]);
    }

    #[test]
    fn every_request_has_a_key_of_its_own() {
        let identity = Identity::new("cluster.local", "shop", "cart");
        let first = CertificateRequest::new(identity.clone()).expect("made");
        let second = CertificateRequest::new(identity).expect("made");
        assert_ne!(first.key.serialize_der(), second.key.serialize_der());
    }
}
