//! The certificate authority of the simulated mesh. Ed25519 throughout and serial numbers of one length: keys are
//! random, but every message of a handshake is as long in one run as in the next.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use uztunnel::identity::Identity;
use uztunnel::tls::CertifiedIdentity;

pub struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// What was issued for a whole run, kept for the next: making it costs as much as a handshake.
    kept: BTreeMap<String, Arc<CertifiedIdentity>>,
}

thread_local! {
    static AUTHORITY: RefCell<Authority> = RefCell::new(Authority::new());
}

/// The wall clock of every run starts here.
pub fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Valid long before and after any run.
pub fn lasting(identity: &Identity) -> Arc<CertifiedIdentity> {
    AUTHORITY.with_borrow_mut(|authority| {
        let name = identity.to_string();
        if let Some(kept) = authority.kept.get(&name) {
            return kept.clone();
        }
        let week = Duration::from_secs(7 * 86_400);
        let issued = Arc::new(authority.issue(identity, epoch() - week, epoch() + week));
        authority.kept.insert(name, issued.clone());
        issued
    })
}

pub fn until(identity: &Identity, not_after: SystemTime) -> Arc<CertifiedIdentity> {
    let hour = Duration::from_secs(3_600);
    Arc::new(AUTHORITY.with_borrow(|authority| authority.issue(identity, epoch() - hour, not_after)))
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut root = parameters(
            epoch() - Duration::from_secs(1 << 25),
            epoch() + Duration::from_secs(1 << 25),
        );
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = root.self_signed(&key).expect("a root");
        Self {
            root: certificate.der().clone(),
            issuer: Issuer::new(root, key),
            kept: BTreeMap::new(),
        }
    }

    fn issue(&self, identity: &Identity, not_before: SystemTime, not_after: SystemTime) -> CertifiedIdentity {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut leaf = parameters(not_before, not_after);
        leaf.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().expect("ASCII"))];
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = leaf.signed_by(&key, &self.issuer).expect("signed");
        CertifiedIdentity::new(
            identity.clone(),
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            vec![self.root.clone()],
        )
        .expect("the authority issues what is asked for")
    }
}

fn parameters(not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.not_before = not_before.into();
    parameters.not_after = not_after.into();
    parameters.serial_number = Some(SerialNumber::from(vec![0x55; 8]));
    parameters.distinguished_name = DistinguishedName::new();
    parameters
        .distinguished_name
        .push(DnType::OrganizationName, "simulation");
    parameters
}
