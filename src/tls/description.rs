//! A certificate in words: what the admin dump shows of our own certificates and roots.
//!
//! Pure. Only certificates that an authority gave us, never those of peers.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;

/// Public facts of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Decimal.
    pub serial_number: String,
    pub valid_from: OffsetDateTime,
    pub expires: OffsetDateTime,
}

impl Description {
    /// `None` for what is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = parse_x509_certificate(certificate).ok()?;
        let validity = parsed.validity();
        Some(Self {
            serial_number: parsed.tbs_certificate.serial.to_string(),
            valid_from: validity.not_before.to_datetime(),
            expires: validity.not_after.to_datetime(),
        })
    }
}
