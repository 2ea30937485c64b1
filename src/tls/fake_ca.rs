//! The certificate authority of `FAKE_CA=true`: demos and tests without a control plane.
//!
//! Its root and private key are the constants below, the same in every copy of this program, because two
//! proxies that were started apart must trust each other. Whoever can read this file can be anybody in a mesh
//! that trusts it, so it is never used unless the environment asks for it by name. Used on the control
//! thread. Specification: section 2.7 of the control-plane contract.

use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::identity::Identity;
use crate::tls::error::{CredentialError, TlsError};
use crate::tls::keys::CertifiedIdentity;

/// Public and worthless: see the head of this file.
const WORTHLESS_ROOT_KEY_PEM: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg4ufsVAN4X1dZpFH3
5su7mZH6kIsNf1FPydUbJ0Re10uhRANCAAQiWFCJIUBFUkWV2ww5CbPjYBcFn2NQ
xCfKTlL/tG3hIKPRhncrZPegcPSa6pRA5T1MRxsR9h8oZONAOvbe16IU
-----END PRIVATE KEY-----
";

/// `CN=uztunnel fake CA (public key, no security)`, 2020 to 2120, for the key above.
const WORTHLESS_ROOT_CERTIFICATE_PEM: &str = "\
-----BEGIN CERTIFICATE-----
MIIBzTCCAXOgAwIBAgIBATAKBggqhkjOPQQDAjBNMRYwFAYDVQQKDA1jbHVzdGVy
LmxvY2FsMTMwMQYDVQQDDCp1enR1bm5lbCBmYWtlIENBIChwdWJsaWMga2V5LCBu
byBzZWN1cml0eSkwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaME0x
FjAUBgNVBAoMDWNsdXN0ZXIubG9jYWwxMzAxBgNVBAMMKnV6dHVubmVsIGZha2Ug
Q0EgKHB1YmxpYyBrZXksIG5vIHNlY3VyaXR5KTBZMBMGByqGSM49AgEGCCqGSM49
AwEHA0IABCJYUIkhQEVSRZXbDDkJs+NgFwWfY1DEJ8pOUv+0beEgo9GGdytk96Bw
9JrqlEDlPUxHGxH2Hyhk40A69t7XohSjQjBAMB0GA1UdDgQWBBSHL7jk87U+gsJl
tiidVtYGyRRQ0zAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIBBjAKBggq
hkjOPQQDAgNIADBFAiEAz8D3buTfd6OY8B1x7YyOUiAEwqVUeIvzrL0f9IY1b4YC
ID6yLXQMH8jbY4uFZcstxNHviosN1qJ/yqho5ZFWn59D
-----END CERTIFICATE-----
";

/// Life of what `issue` issues.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Certificates are valid a little before they are issued, for clocks that are late.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

pub struct FakeCa {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf with its private key, as files and other programs need them.
pub struct Issued {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl FakeCa {
    /// The well-known authority.
    pub fn new() -> Self {
        Self::with_root(WORTHLESS_ROOT_CERTIFICATE_PEM, WORTHLESS_ROOT_KEY_PEM)
            .expect("invariant: the constants of this file are a certificate and its key")
    }

    /// An authority with another root, PEM of a certificate and of its private key.
    pub fn with_root(certificate_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let failed = |reason: String| CredentialError::Signing {
            identity: "the root".to_owned(),
            reason,
        };
        let root = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| failed(error.to_string()))?;
        let key = KeyPair::from_pem(key_pem).map_err(|error| failed(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|error| failed(error.to_string()))?;
        Ok(Self { root, issuer })
    }

    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A certificate for 24 h from `now` on, with a new private key.
    pub fn issue(&self, identity: &Identity, now: SystemTime) -> Result<CertifiedIdentity, TlsError> {
        self.issue_valid(identity, now - CLOCK_SKEW, now + CERTIFICATE_LIFE)
    }

    /// The same with a validity of the caller's choice.
    pub fn issue_valid(
        &self,
        identity: &Identity,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertifiedIdentity, TlsError> {
        let Issued { chain, key } = self.sign(identity, not_before, not_after)?;
        CertifiedIdentity::new(identity.clone(), chain, key, vec![self.root.clone()])
    }

    /// Only the certificate and its key.
    pub fn sign(
        &self,
        identity: &Identity,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Issued, TlsError> {
        self.sign_leaf(identity, not_before, not_after).map_err(|error| {
            let identity = identity.to_string();
            let reason = error.to_string();
            CredentialError::Signing { identity, reason }.into()
        })
    }

    fn sign_leaf(
        &self,
        identity: &Identity,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Issued, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::default();
        leaf.not_before = not_before.into();
        leaf.not_after = not_after.into();
        leaf.distinguished_name = DistinguishedName::new();
        leaf.distinguished_name
            .push(DnType::OrganizationName, "cluster.local");
        leaf.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        leaf.use_authority_key_identifier_extension = true;
        let certificate = leaf.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        })
    }
}

impl Default for FakeCa {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn two_authorities_made_apart_issue_under_one_root() {
        let identity = Identity::new("cluster.local", "shop", "cart");
        let now = clock::wall();
        let first = FakeCa::new().issue(&identity, now).expect("issued");
        let second = FakeCa::new().issue(&identity, now).expect("issued");
        assert_eq!(first.root_certificates, second.root_certificates);
        assert_ne!(first.certificates.cert, second.certificates.cert);
        let life = first.not_after.duration_since(now).expect("later");
        assert!(life <= CERTIFICATE_LIFE && life > CERTIFICATE_LIFE - Duration::from_secs(2));
        assert!(first.not_before < now);
    }

    #[test]
    fn a_certificate_of_another_identity_is_not_taken() {
        let now = clock::wall();
        let ca = FakeCa::new();
        let cart = Identity::new("cluster.local", "shop", "cart");
        let Issued { chain, key } = ca.sign(&cart, now, now + CERTIFICATE_LIFE).expect("signed");
        let other = Identity::new("cluster.local", "shop", "till");
        let error =
            CertifiedIdentity::new(other, chain, key, vec![ca.root().clone()]).expect_err("the names differ");
        assert_eq!(
            error.to_string(),
            "did not find expected SAN: spiffe://cluster.local/ns/shop/sa/till \
             (the certificate's first is spiffe://cluster.local/ns/shop/sa/cart)"
        );
    }

    #[test]
    fn what_a_ca_may_get_wrong_is_named() {
        let now = clock::wall();
        let ca = FakeCa::new();
        let cart = Identity::new("cluster.local", "shop", "cart");
        let signed = || ca.sign(&cart, now, now + CERTIFICATE_LIFE).expect("signed");
        let made = |chain, key, roots| {
            CertifiedIdentity::new(cart.clone(), chain, key, roots)
                .expect_err("unusable")
                .to_string()
        };
        let roots = vec![ca.root().clone()];
        let text = made(Vec::new(), signed().key, roots.clone());
        assert_eq!(text, format!("chain returned from CA is empty for: {cart}"));
        let text = made(signed().chain, signed().key, Vec::new());
        assert_eq!(text, format!("no root certificate present for: {cart}"));
        let text = made(signed().chain, signed().key, roots.clone());
        assert!(
            text.starts_with(&format!("private key for {cart} is unusable")),
            "{text}"
        );
        let text = made(vec![CertificateDer::from(vec![1, 2, 3])], signed().key, roots);
        assert!(
            text.starts_with(&format!("certificate for {cart} is malformed")),
            "{text}"
        );
    }
}
