//! A certificate authority of a test: a root of its own that signs requests and servers. Keys live as long as it.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::lock;
use crate::{Result, RigError};

pub struct Authority {
    certificate: rcgen::Certificate,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
    /// What was signed: the name that was asked for, and the serial number.
    signed: Mutex<Vec<(String, u64)>>,
}

/// Of eight bytes, as those of real CAs are longer than one.
const FIRST_SERIAL: u64 = 0x0123_4567_89ab_0000;

/// What a certificate says that its request leaves open.
#[derive(Debug, Clone)]
pub struct Terms {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// A URI instead of the names that were asked for.
    pub name: Option<String>,
}

impl Terms {
    /// From now on.
    pub fn lasting(lifetime: Duration) -> Self {
        let now = SystemTime::now();
        Self {
            not_before: now,
            not_after: now + lifetime,
            name: None,
        }
    }
}

/// A certificate and its key, for a server of the rig.
pub struct ServerCertificate {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Authority {
    pub fn new(name: &str) -> Result<Self> {
        let (params, key) = authority(name)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            certificate,
            key_pem: key.serialize_pem(),
            issuer: Issuer::new(params, key),
            signed: Mutex::default(),
        })
    }

    /// An intermediate, signed by this one.
    pub fn subordinate(&self, name: &str) -> Result<Self> {
        let (params, key) = authority(name)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Self {
            certificate,
            key_pem: key.serialize_pem(),
            issuer: Issuer::new(params, key),
            signed: Mutex::default(),
        })
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// For those who sign in its name by other means.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// PEM for the PEM of a request (PKCS #10).
    pub fn sign(&self, request: &str, terms: &Terms) -> Result<String> {
        let asked = requested_name(request)?;
        let mut request = CertificateSigningRequestParams::from_pem(request).map_err(failed)?;
        let serial = self.remember(asked);
        request.params.serial_number = Some(SerialNumber::from(serial));
        if let Some(name) = &terms.name {
            let name = Ia5String::try_from(name.as_str()).map_err(failed)?;
            request.params.subject_alt_names = vec![SanType::URI(name)];
        }
        request.params.not_before = terms.not_before.into();
        request.params.not_after = terms.not_after.into();
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let signed = request.signed_by(&self.issuer).map_err(failed)?;
        Ok(signed.pem())
    }

    fn remember(&self, name: String) -> u64 {
        let mut signed = lock(&self.signed);
        let serial = FIRST_SERIAL + signed.len() as u64;
        signed.push((name, serial));
        serial
    }

    /// A list, as PEM, of all certificates that were signed for these names so far.
    pub fn revocation_list(&self, names: &[&str]) -> Result<String> {
        let now = SystemTime::now();
        let signed = lock(&self.signed);
        let revoked = signed.iter().filter(|(name, _)| names.contains(&name.as_str()));
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(86_400)).into(),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .map(|(_, serial)| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: now.into(),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer)
            .and_then(|list| list.pem())
            .map_err(failed)
    }

    /// For a server with these host names or addresses.
    pub fn server(&self, names: &[&str]) -> Result<ServerCertificate> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().map_err(failed)?;
        let signed = CertificateParams::new(names)
            .and_then(|params| params.signed_by(&key, &self.issuer))
            .map_err(failed)?;
        Ok(ServerCertificate {
            chain: vec![signed.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        })
    }
}

/// The name that a request asks for: a pod's, or a server's.
pub fn requested_name(request: &str) -> Result<String> {
    let request = CertificateSigningRequestParams::from_pem(request).map_err(failed)?;
    match &request.params.subject_alt_names[..] {
        [SanType::URI(name) | SanType::DnsName(name)] => Ok(name.to_string()),
        names => Err(RigError::new("reading a request's name", format!("{names:?}"))),
    }
}

fn authority(name: &str) -> Result<(CertificateParams, KeyPair)> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params, KeyPair::generate().map_err(failed)?))
}

fn failed(error: rcgen::Error) -> RigError {
    RigError::new("making a certificate", error)
}
