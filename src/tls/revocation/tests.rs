//! What a text of lists is taken for, and that asking it costs little. Who is refused: `tests/tls_interop`.

use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

use super::*;

fn authority(name: &str) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Issuer::new(params, KeyPair::generate().expect("a key"))
}

fn list(
    authority: &Issuer<'static, KeyPair>,
    serials: impl Iterator<Item = u64>,
) -> rcgen::CertificateRevocationList {
    let revoked = |serial: u64| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: rcgen::date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2026, 2, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials.map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
    .signed_by(authority)
    .expect("signed")
}

fn pem(authority: &Issuer<'static, KeyPair>, serials: impl Iterator<Item = u64>) -> String {
    list(authority, serials).pem().expect("PEM")
}

#[test]
fn a_file_holds_any_number_of_lists_as_pem_or_one_as_der() {
    let (east, west) = (authority("east"), authority("west"));
    let other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let both = format!(
        "a note\n{}{other}{}",
        pem(&east, 1..=3),
        pem(&west, std::iter::empty())
    );
    let lists = RevocationLists::parse(both.as_bytes()).expect("two lists");
    assert_eq!((lists.len(), lists.certificates()), (2, 3));
    let one = RevocationLists::parse(list(&east, 7..=8).der()).expect("one list");
    assert_eq!((one.len(), one.certificates()), (1, 2));
    for nothing in ["", " \n", other] {
        let lists = RevocationLists::parse(nothing.as_bytes()).expect(nothing);
        assert!(lists.is_empty());
    }
}

#[test]
fn a_file_that_is_none_says_what_would_be_right() {
    let east = authority("east");
    let whole = pem(&east, 1..=3);
    let half = &whole[..whole.len() / 2];
    // Version 1 has no extensions, so no CRL number.
    let mut old = list(&east, 1..=3).der().to_vec();
    let version = old.windows(3).position(|it| it == [2, 1, 1]).expect("a version");
    old[version + 2] = 0;
    let whole_der = list(&east, 1..=3);
    let cut_short = &whole_der.der()[..100];
    for (text, expected) in [
        (
            &b"revoked: 12, 13"[..],
            "it is neither PEM nor DER (expected blocks that begin with",
        ),
        (half.as_bytes(), "its PEM is broken: "),
        (
            &old,
            "list 1 of it cannot be used: UnsupportedCrlVersion (expected version 2",
        ),
        (cut_short, "list 1 of it cannot be used: TrailingData("),
    ] {
        let error = RevocationLists::parse(text).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let second = format!("{whole}-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n");
    let error = RevocationLists::parse(second.as_bytes()).expect_err("the second is empty");
    assert!(
        error.to_string().starts_with("list 2 of it cannot be used: "),
        "{error}"
    );
}

#[test]
fn lists_that_should_have_been_replaced_are_named() {
    let text = pem(&authority("east"), 1..=3);
    let lists = RevocationLists::parse(text.as_bytes()).expect("a list");
    // 2026-02-01T00:00:00Z.
    let due = 1_769_904_000;
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    assert_eq!(lists.overdue(at(due - 1)).count(), 0);
    let overdue: Vec<_> = lists.overdue(at(due)).collect();
    assert_eq!(overdue.len(), 1);
    assert!(overdue[0].0.contains("CN=east"), "{overdue:?}");
    assert_eq!(overdue[0].1, "2026-02-01T00:00:00Z");
}

#[test]
fn serial_numbers_read_as_openssl_prints_them() {
    assert_eq!(hex(&[0, 0xab, 1]), "AB01");
    assert_eq!(hex(&[0]), "00");
}

#[test]
fn a_hundred_thousand_certificates_are_looked_up_at_once() {
    const CERTIFICATES: u64 = 100_000;
    // Serial numbers as long as those of real CAs.
    let serials = (0..CERTIFICATES).map(|number| u64::MAX - number);
    let text = pem(&authority("east"), serials);
    let began = Instant::now();
    let lists = RevocationLists::parse(text.as_bytes()).expect("a list");
    let parsed = began.elapsed();
    assert_eq!(lists.certificates(), CERTIFICATES as usize);
    let issuer: Box<[u8]> = lists.lists[0].list.issuer().into();
    let links = |serial: u64| {
        let mut bytes = vec![0];
        bytes.extend(serial.to_be_bytes());
        [Link {
            issuer: issuer.clone(),
            serial: bytes.into(),
        }]
    };
    assert_eq!(lists.naming(&links(u64::MAX - CERTIFICATES + 1)).count(), 1);
    assert_eq!(lists.naming(&links(u64::MAX - CERTIFICATES)).count(), 0);
    let began = Instant::now();
    for number in 0..1000 {
        assert_eq!(lists.naming(&links(number)).count(), 0);
    }
    let each = began.elapsed() / 1000;
    println!(
        "{} bytes of PEM read in {parsed:?}, a look-up takes {each:?}",
        text.len()
    );
    // A hundredth of a handshake, even here, without optimisation.
    assert!(each < Duration::from_micros(100), "{each:?}");
}
