//! Requests for certificates as openssl reads them, and answers of a CA: good ones, and each way to be malformed.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use uztunnel::tls::CertifiedIdentity;
use uztunnel::tls::csr::CertificateRequest;
use uztunnel_rig::Authority;
use uztunnel_rig::authority::Terms;
use uztunnel_rig::ca::bundle;

use super::cart;

const HOUR: Duration = Duration::from_secs(3600);

fn request() -> CertificateRequest {
    CertificateRequest::new(cart()).expect("made")
}

fn root() -> Authority {
    Authority::new("root").expect("made")
}

fn signed(authority: &Authority, request: &CertificateRequest) -> String {
    authority
        .sign(request.pem(), &Terms::lasting(HOUR))
        .expect("signed")
}

/// What becomes of a request when the CA answers what `answer` makes of it.
fn certified(
    answer: impl FnOnce(&CertificateRequest) -> Vec<String>,
) -> Result<CertifiedIdentity, uztunnel::tls::TlsError> {
    let request = request();
    let answer = answer(&request);
    request.certify(&answer)
}

#[test]
fn openssl_verifies_a_request_and_finds_one_critical_name() {
    let mut openssl = Command::new("openssl")
        .args(["req", "-verify", "-noout", "-text"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    let mut stdin = openssl.stdin.take().expect("piped");
    stdin.write_all(request().pem().as_bytes()).expect("written");
    drop(stdin);
    let output = openssl.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("verify OK"), "{said}");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for expected in [
        "Subject:",
        "ASN1 OID: prime256v1",
        "X509v3 Subject Alternative Name: critical",
        "URI:spiffe://cluster.local/ns/shop/sa/cart",
        "Signature Algorithm: ecdsa-with-SHA256",
    ] {
        assert!(lines.contains(&expected), "no {expected:?} in\n{text}");
    }
    let extensions = lines.iter().filter(|line| line.starts_with("X509v3"));
    assert_eq!(extensions.count(), 1, "{text}");
}

#[test]
fn leaf_intermediates_and_several_roots_come_from_their_places() {
    let (old, new) = (root(), root());
    let intermediate = old.subordinate("intermediate").expect("signed");
    let identity = certified(|request| {
        let leaf = signed(&intermediate, request);
        // Behind the leaf its own chain may stand again: only the first certificate of a text counts.
        let leaf = format!("{leaf}{}", old.pem());
        vec![leaf, intermediate.pem(), bundle(&[&old, &new])]
    });
    let identity = identity.expect("a good answer");
    assert_eq!(identity.identity, cart());
    assert_eq!(
        identity.certificates.cert.len(),
        2,
        "the leaf and one intermediate"
    );
    assert_eq!(identity.root_certificates.len(), 2);
    assert_eq!(identity.roots.len(), 2);
    let life = identity.not_after.duration_since(identity.not_before);
    assert_eq!(life.expect("in order"), HOUR);
}

#[test]
fn each_malformed_answer_is_refused_in_its_own_words() {
    let root = root();
    let other = |name: &'static str| {
        let root = &root;
        move |request: &CertificateRequest| {
            let mut terms = Terms::lasting(HOUR);
            terms.name = Some(name.to_owned());
            vec![root.sign(request.pem(), &terms).expect("signed"), root.pem()]
        }
    };
    let refused = |answer: &dyn Fn(&CertificateRequest) -> Vec<String>| {
        certified(answer).expect_err("a bad answer").to_string()
    };
    let name = cart().to_string();
    let leaf = |request: &CertificateRequest| signed(&root, request);

    assert_eq!(
        refused(&|_| Vec::new()),
        format!("chain returned from CA is empty for: {name}")
    );
    assert_eq!(
        refused(&|request| vec![leaf(request)]),
        format!("no root certificate present for: {name}")
    );
    assert_eq!(
        refused(&|request| vec![leaf(request), String::new()]),
        format!("no root certificate present for: {name}")
    );
    assert_eq!(
        refused(&|_| vec!["hello".to_owned(), root.pem()]),
        format!("chain returned from CA is malformed for: {name} (its leaf: no items found)")
    );
    assert_eq!(
        refused(&|request| vec![leaf(request), "hello".to_owned(), root.pem()]),
        format!("chain returned from CA is malformed for: {name} (its intermediate 1: no items found)")
    );
    let cut = |request: &CertificateRequest| {
        let pem = root.pem();
        vec![leaf(request), pem[..pem.len() / 2].to_owned()]
    };
    let text = refused(&cut);
    let start = format!("chain returned from CA is malformed for: {name} (its roots: missing section end");
    assert!(text.starts_with(&start), "{text}");
    assert_eq!(
        refused(&|request| vec![leaf(request), format!("{}{}", root.pem(), request.pem())]),
        format!("chain returned from CA is malformed for: {name} (its roots: a Csr among certificates)")
    );
    let text = refused(&|_| {
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        vec![garbage.to_owned(), root.pem()]
    });
    assert!(
        text.starts_with(&format!("certificate for {name} is malformed")),
        "{text}"
    );
    assert_eq!(
        refused(&other("spiffe://cluster.local/ns/shop/sa/till")),
        format!(
            "did not find expected SAN: {name} \
             (the certificate's first is spiffe://cluster.local/ns/shop/sa/till)"
        )
    );
    assert_eq!(
        refused(&other("https://example.com/")),
        format!("did not find expected SAN: {name} (the certificate's first is https://example.com/)")
    );
    // Of another request: the key is not ours.
    let text = refused(&|_| vec![signed(&root, &self::request()), root.pem()]);
    assert!(
        text.starts_with(&format!(
            "private key for {name} is unusable or belongs to another"
        )),
        "{text}"
    );
}

#[test]
fn roots_that_cannot_be_trusted_are_passed_over_as_long_as_one_can() {
    let root = root();
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let identity = certified(|request| vec![signed(&root, request), format!("{garbage}{}", root.pem())]);
    assert_eq!(identity.expect("one root is enough").roots.len(), 1);
    let refused = certified(|request| vec![signed(&root, request), garbage.to_owned()]);
    assert_eq!(
        refused.expect_err("nobody to trust").to_string(),
        format!("no root certificate present for: {}", cart())
    );
}
