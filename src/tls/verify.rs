//! Who the peer is: its chain against our roots, then its SPIFFE identities against what we expect.
//!
//! Runs on the worker in the middle of a handshake, called by rustls. Invariant: a `PeerIdentity` exists only
//! for a peer whose chain ends in the roots that came with our own certificate, that holds the private key,
//! and whose identities were accepted. Host names play no part. Peers' certificates are parsed by webpki
//! alone, so that one parser sees hostile bytes. Specification: section 3.2 of the control-plane contract,
//! RFC 5280 for the chain.
//!
//! The identities are checked inside the verifier, not after the handshake, so that a peer learns by an alert
//! that it is refused and never sends a byte of data. rustls turns such a refusal into certificate_unknown.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as Library, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, Error as ChainError, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};

use crate::identity::Identity;
use crate::tls::error::HandshakeError;
use crate::tls::revocation::{Check, Verdict};

/// What a handshake proved about the peer. Made by this layer only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    first: Identity,
    all: Vec<Identity>,
    serial: Box<[u8]>,
}

impl PeerIdentity {
    /// The first SPIFFE identity in the leaf: who the peer is in policies, logs and metrics.
    pub fn first(&self) -> &Identity {
        &self.first
    }

    /// All SPIFFE identities of the leaf, in its order.
    pub fn all(&self) -> &[Identity] {
        &self.all
    }

    /// The leaf's serial number, big-endian.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// For a chain that a verifier below accepted in this handshake.
    pub(super) fn of_verified(chain: Option<&[CertificateDer<'_>]>) -> Result<Self, HandshakeError> {
        let leaf = chain
            .and_then(<[_]>::first)
            .ok_or(HandshakeError::NoCertificate)?;
        let leaf = EndEntityCert::try_from(leaf)
            .map_err(|error| HandshakeError::CertificateRefused(error.to_string()))?;
        let all = identities(&leaf);
        let first = all
            .first()
            .cloned()
            .ok_or_else(|| HandshakeError::CertificateRefused("it holds no SPIFFE identity".to_owned()))?;
        Ok(Self {
            first,
            all,
            serial: leaf.serial().into(),
        })
    }
}

/// What a peer's certificate has to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    Server,
    Client,
}

impl Usage {
    fn key_usage(self) -> KeyUsage {
        match self {
            Self::Server => KeyUsage::server_auth(),
            Self::Client => KeyUsage::client_auth(),
        }
    }
}

/// Chain verification that both sides share: the roots that came with one certificate of ours.
pub(super) struct Chain {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Chain {
    pub(super) fn new(roots: Arc<RootCertStore>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { roots, algorithms }
    }

    /// Validity in time, issuers up to a root, extended key usage if there is one. `accept` then judges the
    /// leaf, and last the lists of revoked certificates have their say.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
        check: Option<&Check>,
        accept: impl FnOnce(&EndEntityCert<'_>) -> Result<(), HandshakeError>,
    ) -> Result<(), Library> {
        let parsed = EndEntityCert::try_from(leaf).map_err(chain_error)?;
        self.build_path(&parsed, intermediates, now, usage, None)
            .map(drop)
            .map_err(chain_error)?;
        accept(&parsed).map_err(refusal)?;
        let Some(check) = check else {
            return Ok(());
        };
        check
            .judge(self, leaf, intermediates, now, usage)
            .map_err(|verdict| match verdict {
                Verdict::Revoked(revoked) => {
                    // The first finding stands; there is one verification in a handshake.
                    let _ = check.found.set(revoked);
                    CertificateError::Revoked.into()
                }
                Verdict::Unusable(reason) => refusal(HandshakeError::CertificateRefused(reason)),
            })
    }

    /// The same once more, and whether a certificate of the path is in one of `lists`. Issuers without a list are
    /// passed over, and lists past their nextUpdate count.
    pub(super) fn ask(
        &self,
        leaf: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
        lists: &[&CertRevocationList<'_>],
    ) -> Result<(), ChainError> {
        let options = RevocationOptionsBuilder::new(lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        self.build_path(leaf, intermediates, now, usage, options)
            .map(drop)
    }

    /// The certificates between a leaf that was found good and its root, as they are used to get there.
    pub(super) fn between(
        &self,
        leaf: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<Vec<CertificateDer<'static>>, ChainError> {
        let path = self.build_path(leaf, intermediates, now, usage, None)?;
        Ok(path
            .intermediate_certificates()
            .map(|it| it.der().into_owned())
            .collect())
    }

    fn build_path<'p>(
        &'p self,
        leaf: &'p EndEntityCert<'p>,
        intermediates: &'p [CertificateDer<'p>],
        now: UnixTime,
        usage: Usage,
        revocation: Option<RevocationOptions<'_>>,
    ) -> Result<VerifiedPath<'p>, ChainError> {
        leaf.verify_for_usage(
            self.algorithms.all,
            &self.roots.roots,
            intermediates,
            now,
            usage.key_usage(),
            revocation,
            None,
        )
    }
}

/// What a client asks of a server: one of the identities that were expected at the destination. Made for each
/// connection, since the expectation is the connection's own; that and a copy of the `ClientConfig` are the
/// few allocations a handshake pays for it.
pub(super) struct ServerVerifier {
    pub(super) chain: Arc<Chain>,
    pub(super) accepted: Arc<[Identity]>,
    pub(super) check: Option<Check>,
}

impl ServerVerifier {
    fn accept(&self, leaf: &EndEntityCert<'_>) -> Result<(), HandshakeError> {
        let got = identities(leaf);
        if got.iter().any(|identity| self.accepted.contains(identity)) {
            return Ok(());
        }
        Err(HandshakeError::WrongIdentity {
            expected: self.accepted.iter().map(Identity::to_string).collect(),
            got: uris(leaf),
        })
    }
}

/// What a server asks of a client: an identity in its own trust domain.
pub(super) struct ClientVerifier {
    pub(super) chain: Arc<Chain>,
    pub(super) trust_domain: Box<str>,
    pub(super) check: Option<Check>,
}

impl ClientVerifier {
    fn accept(&self, leaf: &EndEntityCert<'_>) -> Result<(), HandshakeError> {
        let got = identities(leaf);
        if got
            .iter()
            .any(|identity| identity.trust_domain() == &*self.trust_domain)
        {
            return Ok(());
        }
        Err(HandshakeError::WrongTrustDomain {
            expected: self.trust_domain.to_string(),
            got: uris(leaf),
        })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Library> {
        let (usage, check) = (Usage::Server, self.check.as_ref());
        self.chain
            .verify(end_entity, intermediates, now, usage, check, |leaf| {
                self.accept(leaf)
            })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Library> {
        verify_tls12_signature(message, cert, dss, &self.chain.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Library> {
        verify_tls13_signature(message, cert, dss, &self.chain.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ClientVerifier {
    /// None: a client of the mesh has one certificate and needs no hint which to send.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Library> {
        let (usage, check) = (Usage::Client, self.check.as_ref());
        self.chain
            .verify(end_entity, intermediates, now, usage, check, |leaf| {
                self.accept(leaf)
            })?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Library> {
        verify_tls12_signature(message, cert, dss, &self.chain.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Library> {
        verify_tls13_signature(message, cert, dss, &self.chain.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.algorithms.supported_schemes()
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerVerifier({:?})", self.accepted)
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientVerifier({})", self.trust_domain)
    }
}

/// The SPIFFE identities of a leaf, in its order; names of other shapes are skipped.
pub(super) fn identities(leaf: &EndEntityCert<'_>) -> Vec<Identity> {
    leaf.valid_uri_names()
        .filter_map(|uri| uri.parse().ok())
        .collect()
}

/// All URI names of a leaf, for messages.
fn uris(leaf: &EndEntityCert<'_>) -> Vec<String> {
    leaf.valid_uri_names().map(str::to_owned).collect()
}

fn refusal(error: HandshakeError) -> Library {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// In rustls' own terms where there are any, since those choose the alert.
fn chain_error(error: ChainError) -> Library {
    match error {
        ChainError::BadDer | ChainError::BadDerTime | ChainError::TrailingData(_) => {
            CertificateError::BadEncoding.into()
        }
        ChainError::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }.into()
        }
        ChainError::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }.into()
        }
        ChainError::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        ChainError::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        ChainError::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose.into(),
        // Foreign and non-exhaustive: limits of path building, malformed extensions and the like.
        other => refusal(HandshakeError::CertificateRefused(other.to_string())),
    }
}
