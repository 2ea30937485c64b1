//! The certificate, private key and roots of one workload identity, ready for handshakes.
//!
//! Made by the control thread (from a CA's answer, or by the fake CA), shared read-only by all workers,
//! dropped when the last session and the last pool entry let go of it. Invariant: leaf, key and identity
//! belong together, and there is at least one root. Private keys never leave this layer. Specification:
//! sections 2.3, 3.1 and 3.2 of the control-plane contract.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::EndEntityCert;
use x509_parser::parse_x509_certificate;

use crate::clock;
use crate::config::Compliance;
use crate::identity::Identity;
use crate::tls::error::{CredentialError, TlsError};
use crate::tls::revocation::Check;
use crate::tls::verify::{Chain, ClientVerifier, ServerVerifier};

/// One for all identities.
static ANY_GROUP: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| make_provider(Compliance::Default).into());
static HYBRID_ONLY: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| make_provider(Compliance::PostQuantum).into());

/// The only application protocol of a session.
pub(super) const ALPN: &[u8] = b"h2";

pub struct CertifiedIdentity {
    pub identity: Identity,
    /// Leaf and intermediates as they are sent, and the private key.
    pub certificates: Arc<CertifiedKey>,
    pub roots: Arc<RootCertStore>,
    /// The roots as certificates, for those who show them.
    pub root_certificates: Vec<CertificateDer<'static>>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    chain: Arc<Chain>,
}

impl CertifiedIdentity {
    /// `chain` is the leaf followed by its intermediates. Certificates in `roots` that cannot be trust
    /// anchors are skipped.
    pub fn new(
        identity: Identity,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsError> {
        let name = || identity.to_string();
        let leaf = chain
            .first()
            .ok_or_else(|| CredentialError::EmptyChain { identity: name() })?;
        check_first_name(&identity, leaf)?;
        let (not_before, not_after) = validity(&identity, leaf)?;

        let mut store = RootCertStore::empty();
        let (added, skipped) = store.add_parsable_certificates(roots.iter().cloned());
        if added == 0 {
            return Err(CredentialError::NoRoots { identity: name() }.into());
        }
        if skipped > 0 {
            tracing::warn!(%identity, skipped, "certificates among the roots that cannot be trust anchors");
        }
        let store = Arc::new(store);

        let provider = provider(Compliance::Default);
        let certificates =
            CertifiedKey::from_der(chain, key, &provider).map_err(|error| CredentialError::Key {
                identity: name(),
                reason: error.to_string(),
            })?;
        let certificates = Arc::new(certificates);
        let verification = Arc::new(Chain::new(
            store.clone(),
            provider.signature_verification_algorithms,
        ));
        let unusable = |error: rustls::Error| CredentialError::Malformed {
            identity: name(),
            reason: error.to_string(),
        };
        let client = client_config(&provider, &certificates, &verification).map_err(unusable)?;
        let server =
            server_config(&provider, &certificates, &verification, &identity, None).map_err(unusable)?;
        Ok(Self {
            certificates,
            roots: store,
            root_certificates: roots,
            not_before,
            not_after,
            client: Arc::new(client),
            server: Arc::new(server),
            chain: verification,
            identity,
        })
    }

    /// For one connection to a server that must have one of the identities `accepted`.
    pub(super) fn client_config(
        &self,
        accepted: Arc<[Identity]>,
        compliance: Compliance,
        check: Option<Check>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut config = match compliance {
            Compliance::Default => ClientConfig::clone(&self.client),
            Compliance::PostQuantum => client_config(&provider(compliance), &self.certificates, &self.chain)?,
        };
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(ServerVerifier {
                chain: self.chain.clone(),
                accepted,
                check,
            }));
        Ok(Arc::new(config))
    }

    /// For one connection of a client. Without settings of its own it is the same for all.
    pub(super) fn server_config(
        &self,
        compliance: Compliance,
        check: Option<Check>,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        if compliance == Compliance::Default && check.is_none() {
            return Ok(self.server.clone());
        }
        let provider = provider(compliance);
        let config = server_config(&provider, &self.certificates, &self.chain, &self.identity, check)?;
        Ok(Arc::new(config))
    }

    pub(super) fn chain(&self) -> &Arc<Chain> {
        &self.chain
    }
}

impl fmt::Debug for CertifiedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CertifiedIdentity({}, valid until {:?})",
            self.identity, self.not_after
        )
    }
}

/// The wall clock of this program, for the validity of certificates.
#[derive(Debug)]
struct Wall;

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(now))
    }
}

/// AES-GCM only, and the hybrid post-quantum group first; the client then sends an X25519 share beside it, so
/// that a peer without the hybrid needs no second round trip. Some must have the hybrid or nothing.
pub(super) fn provider(compliance: Compliance) -> Arc<CryptoProvider> {
    match compliance {
        Compliance::Default => ANY_GROUP.clone(),
        Compliance::PostQuantum => HYBRID_ONLY.clone(),
    }
}

fn make_provider(compliance: Compliance) -> CryptoProvider {
    let kx_groups = match compliance {
        Compliance::Default => vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        Compliance::PostQuantum => vec![kx_group::X25519MLKEM768],
    };
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups,
        ..default_provider()
    }
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    certificates: &Arc<CertifiedKey>,
    chain: &Arc<Chain>,
) -> Result<ClientConfig, rustls::Error> {
    // Refuses every server until `CertifiedIdentity::client_config` says whom to accept.
    let nobody = ServerVerifier {
        chain: chain.clone(),
        accepted: Arc::new([]),
        check: None,
    };
    let mut config = ClientConfig::builder_with_details(provider.clone(), Arc::new(Wall))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(nobody))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificates.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(config)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    certificates: &Arc<CertifiedKey>,
    chain: &Arc<Chain>,
    identity: &Identity,
    check: Option<Check>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = ClientVerifier {
        chain: chain.clone(),
        trust_domain: identity.trust_domain().into(),
        check,
    };
    let mut config = ServerConfig::builder_with_details(provider.clone(), Arc::new(Wall))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificates.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A ticket could never be redeemed, and the handshake would not end with the client's Finished.
    config.send_tls13_tickets = 0;
    config.enable_secret_extraction = true;
    Ok(config)
}

/// Section 2.3 of the contract: the first URI name of the leaf must be the identity that was asked for.
fn check_first_name(identity: &Identity, leaf: &CertificateDer<'_>) -> Result<(), CredentialError> {
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| CredentialError::Malformed {
        identity: identity.to_string(),
        reason: error.to_string(),
    })?;
    let first = leaf.valid_uri_names().next();
    if first.and_then(|uri| uri.parse().ok()).as_ref() == Some(identity) {
        return Ok(());
    }
    Err(CredentialError::WrongSan {
        identity: identity.to_string(),
        got: first.unwrap_or("missing").to_owned(),
    })
}

fn validity(
    identity: &Identity,
    leaf: &CertificateDer<'_>,
) -> Result<(SystemTime, SystemTime), CredentialError> {
    let malformed = |reason: String| CredentialError::Malformed {
        identity: identity.to_string(),
        reason,
    };
    let (_, parsed) = parse_x509_certificate(leaf).map_err(|error| malformed(error.to_string()))?;
    let time = |seconds: i64| {
        u64::try_from(seconds)
            .ok()
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            .ok_or_else(|| malformed(format!("validity at {seconds} s from 1970")))
    };
    let validity = parsed.validity();
    Ok((
        time(validity.not_before.timestamp())?,
        time(validity.not_after.timestamp())?,
    ))
}
