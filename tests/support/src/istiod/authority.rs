//! The certificate authority of the rig's control plane; made anew for every server.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{Result, RigError};

pub struct TestAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl TestAuthority {
    pub fn new() -> Result<Self> {
        let failed = |error| RigError::new("making a test authority", error);
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().map_err(failed)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(failed)?;
        Ok(Self { issuer })
    }

    /// What clients have to trust.
    pub fn roots_pem(&self) -> String {
        self.issuer.pem()
    }

    /// TLS of a server with this name, which offers h2.
    pub fn server_config(&self, name: &str) -> Result<Arc<ServerConfig>> {
        let failed = |error: rcgen::Error| RigError::new("issuing a server's certificate", error);
        let key = KeyPair::generate().map_err(failed)?;
        let params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_no_client_auth())
            .and_then(|builder| builder.with_single_cert(vec![leaf.der().clone()], key));
        let mut config = config.map_err(|error| RigError::new("setting up TLS", error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}
