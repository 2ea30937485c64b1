//! TLS towards the servers of the control plane: their chain against the given roots, their name against the
//! host's, or against the one other name that the configuration allows.
//!
//! Control thread. Invariant: no configuration exists without a root to trust, and none that trusts a chain
//! without a name. Specification: section 3.3 of the control-plane contract; RFC 9525 for names, by webpki.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as Library, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::config::Compliance;
use crate::tls::keys::{ALPN, provider};

/// Why a server could never be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("no certificate in it can be used as a root ({certificates} found)")]
    NoRoots { certificates: usize },
    #[error("{0}")]
    Unusable(String),
}

/// The certificates of a PEM text; blocks that are none, or cannot be read, are skipped.
pub fn certificates_of_pem(text: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text).flatten().collect()
}

/// What a client needs to speak TLS 1.3 and HTTP/2 with a server under one of `roots`. There is no client
/// certificate: the proxy shows a token. `other_name` is accepted where the host's name is not.
pub fn client_config(
    roots: Vec<CertificateDer<'static>>,
    other_name: Option<ServerName<'static>>,
    compliance: Compliance,
) -> Result<ClientConfig, TrustError> {
    let certificates = roots.len();
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(roots);
    if added == 0 {
        return Err(TrustError::NoRoots { certificates });
    }
    let provider = provider(compliance);
    let unusable = |error: String| TrustError::Unusable(error);
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unusable(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(EitherName { chain, other_name }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Roots and names are checked anew by every connection.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// webpki's judgement, and once more for the other name if the first one does not fit.
#[derive(Debug)]
struct EitherName {
    chain: Arc<WebPkiServerVerifier>,
    other_name: Option<ServerName<'static>>,
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Library> {
        let judged = self
            .chain
            .verify_server_cert(leaf, intermediates, name, ocsp, now);
        match (&self.other_name, judged) {
            (
                Some(other),
                Err(Library::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )),
            ) => self
                .chain
                .verify_server_cert(leaf, intermediates, other, ocsp, now),
            (_, judged) => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Library> {
        self.chain.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Library> {
        self.chain.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
