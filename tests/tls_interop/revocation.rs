//! Peers whose certificates were taken back, by lists that openssl made and by odd ones.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::AlertDescription;
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use webpki::EndEntityCert;

use super::refusals::{assert_told, shake, text};
use super::{MODES, Ours, cart, till};
use uztunnel::clock;
use uztunnel::config::Compliance;
use uztunnel::identity::Identity;
use uztunnel::tls::{
    CertifiedIdentity, FakeCa, Handshake, Output, Progress, RecordMode, Revocable, RevocationLists, Rules,
    TlsError,
};

/// A CA whose lists `openssl ca` makes.
struct OpensslCa {
    files: TempDir,
    ca: FakeCa,
}

impl OpensslCa {
    fn new(name: &str) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let path = |file: &str| files.path().join(file);
        let configuration = format!(
            "[ca]\ndefault_ca = mesh\n[mesh]\ndatabase = {0}/index\ncrlnumber = {0}/number\n\
             certificate = {0}/root.pem\nprivate_key = {0}/root.key\ndefault_md = sha256\n\
             default_crl_days = 1\ncrl_extensions = extensions\n[extensions]\nauthorityKeyIdentifier = keyid\n",
            files.path().display()
        );
        fs::write(path("ca.cnf"), configuration).expect("written");
        fs::write(path("index"), "").expect("written");
        fs::write(path("number"), "01\n").expect("written");
        let key = path("root.key").display().to_string();
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            &key,
        ]);
        let subject = format!("/O=mesh/CN={name}");
        let certificate = path("root.pem").display().to_string();
        let usage = "keyUsage=critical,keyCertSign,cRLSign";
        openssl(&[
            "req",
            "-x509",
            "-new",
            "-key",
            &key,
            "-subj",
            &subject,
            "-days",
            "2",
            "-addext",
            usage,
            "-out",
            &certificate,
        ]);
        let read = |file: &str| fs::read_to_string(path(file)).expect("made");
        let ca = FakeCa::with_root(&read("root.pem"), &read("root.key")).expect("an authority");
        Self { files, ca }
    }

    fn issue(&self, identity: &Identity) -> CertifiedIdentity {
        self.ca.issue(identity, clock::wall()).expect("issued")
    }

    fn path(&self, file: &str) -> PathBuf {
        self.files.path().join(file)
    }

    fn revoke(&self, identity: &CertifiedIdentity) {
        let der = self.path("revoked.der").display().to_string();
        let pem = self.path("revoked.pem").display().to_string();
        fs::write(&der, &identity.certificates.cert[0]).expect("written");
        openssl(&["x509", "-inform", "DER", "-in", &der, "-out", &pem]);
        self.ca_command(&["-revoke", &pem]);
    }

    fn list(&self, arguments: &[&str]) -> String {
        let out = self.path("crl.pem").display().to_string();
        self.ca_command(&[&["-gencrl", "-out", &out], arguments].concat());
        fs::read_to_string(out).expect("made")
    }

    fn ca_command(&self, arguments: &[&str]) {
        let configuration = self.path("ca.cnf").display().to_string();
        openssl(&[&["ca", "-config", &configuration], arguments].concat());
    }
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .output()
        .expect("openssl is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
}

fn lists(text: &str) -> Arc<RevocationLists> {
    Arc::new(RevocationLists::parse(text.as_bytes()).expect("lists"))
}

fn rules(mode: RecordMode, lists: &Arc<RevocationLists>) -> Rules {
    Rules {
        mode,
        compliance: Compliance::Default,
        revocations: Some(lists.clone()),
    }
}

/// `till` is the server. Only `who` knows lists.
enum Knows {
    Client,
    Server,
}

fn meet(
    client: &CertifiedIdentity,
    server: &CertifiedIdentity,
    who: &Knows,
    rules: Rules,
) -> (Result<(), TlsError>, Result<(), TlsError>) {
    let without = Rules::from(rules.mode);
    let (of_client, of_server) = match who {
        Knows::Client => (rules, without),
        Knows::Server => (without, rules),
    };
    let ended = shake(
        Handshake::client(client, Arc::new([till()]), of_client).expect("client"),
        Handshake::server(server, of_server).expect("server"),
    );
    (ended.client, ended.server)
}

fn serial(identity: &CertifiedIdentity) -> String {
    let leaf = EndEntityCert::try_from(&identity.certificates.cert[0]).expect("a certificate");
    let digits: String = leaf.serial().iter().map(|byte| format!("{byte:02X}")).collect();
    digits.strip_prefix("00").map_or(digits.clone(), str::to_owned)
}

#[test]
fn whoever_is_on_a_list_is_refused_in_both_roles_and_told_so() {
    let ca = OpensslCa::new("revoking");
    let (client, server) = (ca.issue(&cart()), ca.issue(&till()));
    ca.revoke(&client);
    ca.revoke(&server);
    let all = lists(&ca.list(&[]));
    let words = |identity: &CertifiedIdentity| {
        format!(
            "tls handshake error: peer certificate revoked by CRL (identity {}, serial number {}, issuer \
             O=mesh, CN=revoking)",
            identity.identity,
            serial(identity)
        )
    };
    for mode in MODES {
        let (told, refused) = meet(&client, &server, &Knows::Server, rules(mode, &all));
        assert_eq!(text(refused), words(&client));
        assert_told(told, AlertDescription::CertificateRevoked);
        let (refused, told) = meet(&client, &server, &Knows::Client, rules(mode, &all));
        assert_eq!(text(refused), words(&server));
        assert_told(told, AlertDescription::CertificateRevoked);
        // Others of the same CA are as good as before.
        let (other_client, other_server) = (ca.issue(&cart()), ca.issue(&till()));
        for who in [Knows::Client, Knows::Server] {
            let ended = meet(&other_client, &other_server, &who, rules(mode, &all));
            assert_eq!(ended, (Ok(()), Ok(())));
        }
    }
}

#[test]
fn a_list_that_is_late_still_counts_and_unknown_issuers_and_missing_lists_do_not() {
    let (ca, stranger) = (OpensslCa::new("late"), OpensslCa::new("stranger"));
    let (client, server) = (ca.issue(&cart()), ca.issue(&till()));
    // The stranger's list may name whom it likes: it is not the issuer.
    stranger.revoke(&client);
    let unknown = lists(&stranger.list(&[]));
    assert_eq!(unknown.certificates(), 1);
    let mode = RecordMode::Own;
    let ended = meet(&client, &server, &Knows::Server, rules(mode, &unknown));
    assert_eq!(ended, (Ok(()), Ok(())));
    ca.revoke(&client);
    let late = ca.list(&[
        "-crl_lastupdate",
        "20200101000000Z",
        "-crl_nextupdate",
        "20200102000000Z",
    ]);
    let late = lists(&late);
    let now = clock::wall()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    let now = rustls_pki_types::UnixTime::since_unix_epoch(now);
    let overdue: Vec<_> = late.overdue(now).collect();
    assert_eq!(overdue, [("O=mesh, CN=late", "2020-01-02T00:00:00Z".to_owned())]);
    let (_, refused) = meet(&client, &server, &Knows::Server, rules(mode, &late));
    assert!(text(refused).contains("revoked by CRL"));
    let ended = meet(&ca.issue(&cart()), &server, &Knows::Server, rules(mode, &late));
    assert_eq!(ended, (Ok(()), Ok(())));
}

/// An authority whose lists may be wrong.
struct OddCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    ca: FakeCa,
}

impl OddCa {
    /// Signed by `above`, or by itself.
    fn new(name: &str, usages: &[KeyUsagePurpose], above: Option<&Self>) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        let certificate = match above {
            Some(above) => params.signed_by(&key, &above.issuer),
            None => params.self_signed(&key),
        };
        let certificate = certificate.expect("signed");
        let ca = FakeCa::with_root(&certificate.pem(), &key.serialize_pem()).expect("an authority");
        // What the certificate does not allow is signed nevertheless.
        params.key_usages = BOTH.to_vec();
        Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            ca,
        }
    }

    /// Under `root`, with this authority in between.
    fn issue(&self, identity: &Identity, root: &Self) -> CertifiedIdentity {
        self.issue_as(identity, root, |_| {})
    }

    /// The same, and whatever is made of the chain that it presents.
    fn issue_as(
        &self,
        identity: &Identity,
        root: &Self,
        change: impl FnOnce(&mut Vec<CertificateDer<'static>>),
    ) -> CertifiedIdentity {
        let now = clock::wall();
        let day = Duration::from_secs(86_400);
        let mut issued = self.ca.sign(identity, now - day, now + day).expect("signed");
        if self.certificate != root.certificate {
            issued.chain.push(self.certificate.clone());
        }
        change(&mut issued.chain);
        let roots = vec![root.certificate.clone()];
        CertifiedIdentity::new(identity.clone(), issued.chain, issued.key, roots).expect("usable")
    }

    fn list(&self, revoked: &[&CertificateDer<'_>]) -> String {
        let revoked = revoked.iter().map(|certificate| RevokedCertParams {
            serial_number: SerialNumber::from_slice(
                EndEntityCert::try_from(*certificate)
                    .expect("a certificate")
                    .serial(),
            ),
            revocation_time: rcgen::date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 1),
            next_update: rcgen::date_time_ymd(2126, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("signed").pem().expect("PEM")
    }
}

const BOTH: &[KeyUsagePurpose] = &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

fn leaf(identity: &CertifiedIdentity) -> &CertificateDer<'static> {
    &identity.certificates.cert[0]
}

#[test]
fn a_ca_that_was_taken_back_takes_its_certificates_with_it() {
    let root = OddCa::new("root", BOTH, None);
    let between = OddCa::new("between", BOTH, Some(&root));
    let (client, server) = (between.issue(&cart(), &root), root.issue(&till(), &root));
    let taken_back = lists(&root.list(&[&between.certificate]));
    for mode in MODES {
        let (told, refused) = meet(&client, &server, &Knows::Server, rules(mode, &taken_back));
        let said = text(refused);
        let start = "tls handshake error: peer certificate revoked by CRL (identity \
                     spiffe://cluster.local/ns/shop/sa/cart, of a CA in its chain, serial number ";
        assert!(said.starts_with(start) && said.contains("CN=root"), "{said}");
        assert_told(told, AlertDescription::CertificateRevoked);
    }
}

#[test]
fn of_several_lists_of_one_issuer_each_counts() {
    let root = OddCa::new("root", BOTH, None);
    let (client, other, server) = (
        root.issue(&cart(), &root),
        root.issue(&cart(), &root),
        root.issue(&till(), &root),
    );
    let both = lists(&(root.list(&[leaf(&other)]) + &root.list(&[leaf(&client)])));
    for revoked in [&client, &other] {
        let (_, refused) = meet(revoked, &server, &Knows::Server, rules(RecordMode::Own, &both));
        assert!(text(refused).contains("revoked by CRL"));
    }
}

#[test]
fn a_list_that_its_issuer_did_not_sign_refuses_whom_it_names_and_nobody_else() {
    let root = OddCa::new("root", BOTH, None);
    let forger = OddCa::new("root", BOTH, None);
    let (client, other, server) = (
        root.issue(&cart(), &root),
        root.issue(&cart(), &root),
        root.issue(&till(), &root),
    );
    let forged = lists(&forger.list(&[leaf(&client)]));
    let (told, refused) = meet(&client, &server, &Knows::Server, rules(RecordMode::Own, &forged));
    let said = text(refused);
    let end = "but that list cannot be relied on: InvalidCrlSignatureForPublicKey";
    assert!(said.ends_with(end), "{said}");
    assert_told(told, AlertDescription::CertificateUnknown);
    let ended = meet(&other, &server, &Knows::Server, rules(RecordMode::Own, &forged));
    assert_eq!(ended, (Ok(()), Ok(())));
    // An intermediate that may sign certificates, but no lists.
    let between = OddCa::new("between", &[KeyUsagePurpose::KeyCertSign], Some(&root));
    let client = between.issue(&cart(), &root);
    let not_allowed = lists(&between.list(&[leaf(&client)]));
    let (_, refused) = meet(
        &client,
        &server,
        &Knows::Server,
        rules(RecordMode::Own, &not_allowed),
    );
    let said = text(refused);
    assert!(
        said.ends_with("cannot be relied on: IssuerNotCrlSigner"),
        "{said}"
    );
}

/// What a server keeps of a client that it accepted with no list at all.
fn accepted(client: &CertifiedIdentity, server: &CertifiedIdentity) -> Revocable {
    let of_server = rules(RecordMode::Own, &Arc::default());
    let mut client = Handshake::client(client, Arc::new([till()]), RecordMode::Own).expect("client");
    let mut server = Handshake::server(server, of_server).expect("server");
    let (mut to_server, mut to_client) = (Output::default(), Output::default());
    loop {
        client
            .advance(to_client.filled(), &mut to_server)
            .expect("client");
        to_client.clear();
        let progress = server
            .advance(to_server.filled(), &mut to_client)
            .expect("server");
        to_server.clear();
        if progress == Progress::Done {
            let established = server.finish().expect("server");
            return *established.revocable.expect("lists are asked for");
        }
    }
}

#[test]
fn a_live_session_is_compared_with_later_lists() {
    let root = OddCa::new("root", BOTH, None);
    let between = OddCa::new("between", BOTH, Some(&root));
    let forger = OddCa::new("between", BOTH, None);
    let (client, server) = (between.issue(&cart(), &root), root.issue(&till(), &root));
    let other = between.issue(&cart(), &root);
    let mut session = accepted(&client, &server);
    let harmless = between.list(&[leaf(&other)]);
    for text in [&harmless, &forger.list(&[leaf(&client)]), ""] {
        assert_eq!(session.compare(&lists(text)), Ok(()), "{text}");
    }
    let (_, refused) = meet(
        &client,
        &server,
        &Knows::Server,
        rules(RecordMode::Own, &lists(&between.list(&[leaf(&client)]))),
    );
    let revoked = session
        .compare(&lists(&between.list(&[leaf(&client)])))
        .expect_err("revoked");
    assert_eq!(text(refused), format!("tls handshake error: {revoked}"));
    let revoked = session
        .compare(&lists(&root.list(&[&between.certificate])))
        .expect_err("its CA is");
    assert!(!revoked.is_leaf);
}

#[test]
fn a_crowd_of_certificates_does_not_keep_a_live_session_from_being_revoked() {
    let root = OddCa::new("root", BOTH, None);
    let between = OddCa::new("between", BOTH, Some(&root));
    let forger = OddCa::new("root", BOTH, None);
    let server = root.issue(&till(), &root);
    // As many as are verified in vain before the search for a path is given up, less what the path itself takes.
    let forged: Vec<_> = (0..98)
        .map(|_| OddCa::new("between", BOTH, Some(&forger)).certificate)
        .collect();
    let client = between.issue_as(&cart(), &root, |chain| {
        chain.splice(1..1, forged);
    });
    let mut session = accepted(&client, &server);
    assert_eq!(format!("{session:?}"), "Revocable(2 certificates)");
    let list = lists(&between.list(&[leaf(&client)]));
    session.compare(&list).expect_err("revoked");
}

#[test]
fn of_several_lists_of_one_issuer_one_that_cannot_be_relied_on_hides_no_other() {
    let root = OddCa::new("root", BOTH, None);
    let forger = OddCa::new("root", BOTH, None);
    let (client, server) = (root.issue(&cart(), &root), root.issue(&till(), &root));
    let [forged, good] = [&forger, &root].map(|ca| ca.list(&[leaf(&client)]));
    for text in [format!("{forged}{good}"), format!("{good}{forged}")] {
        let both = lists(&text);
        let (told, refused) = meet(&client, &server, &Knows::Server, rules(RecordMode::Own, &both));
        assert_told(told, AlertDescription::CertificateRevoked);
        let said = self::text(refused);
        assert!(
            said.contains("revoked by CRL") && !said.contains("relied on"),
            "{said}"
        );
        accepted(&client, &server).compare(&both).expect_err("revoked");
    }
}

#[test]
fn a_certificate_that_has_expired_since_does_not_hide_that_it_was_revoked() {
    let ca = OpensslCa::new("brief");
    let now = clock::wall();
    let brief = ca.ca.issue_valid(
        &cart(),
        now - Duration::from_secs(60),
        now + Duration::from_secs(2),
    );
    let (client, server) = (brief.expect("issued"), ca.issue(&till()));
    let mut session = accepted(&client, &server);
    ca.revoke(&client);
    let list = lists(&ca.list(&[]));
    while clock::wall() < client.not_after {
        thread::sleep(Duration::from_millis(50));
    }
    session.compare(&list).expect_err("revoked");
}

#[test]
fn a_list_of_a_hundred_thousand_costs_only_those_whom_it_names() {
    let root = OddCa::new("root", BOTH, None);
    let (client, other, server) = (
        root.issue(&cart(), &root),
        root.issue(&cart(), &root),
        root.issue(&till(), &root),
    );
    let mut serials: Vec<SerialNumber> = (0..100_000u64)
        .map(|it| SerialNumber::from(u64::MAX - it))
        .collect();
    let named = EndEntityCert::try_from(leaf(&client)).expect("a certificate");
    serials.push(SerialNumber::from_slice(named.serial()));
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2126, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials
            .into_iter()
            .map(|serial_number| RevokedCertParams {
                serial_number,
                revocation_time: rcgen::date_time_ymd(2026, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = lists(&list.signed_by(&root.issuer).expect("signed").pem().expect("PEM"));
    let time = |client: &CertifiedIdentity, lists: &Arc<RevocationLists>| {
        let began = Instant::now();
        let ended = meet(client, &server, &Knows::Server, rules(RecordMode::Own, lists));
        (began.elapsed(), ended.1.is_ok())
    };
    let (mut without, mut with) = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        let (took, is_good) = time(&other, &Arc::default());
        assert!(is_good);
        without = without.min(took);
        let (took, is_good) = time(&other, &list);
        assert!(is_good);
        with = with.min(took);
    }
    let (named, is_good) = time(&client, &list);
    assert!(!is_good);
    println!("handshake: {without:?} without a list, {with:?} with, {named:?} for the one that it names");
    // Hashing the list would take longer than the whole handshake.
    assert!(with < without * 3, "{without:?} without, {with:?} with");
}

#[test]
fn the_group_of_the_key_exchange_follows_the_policy() {
    use rustls::NamedGroup::X25519MLKEM768;
    let ca = OpensslCa::new("groups");
    let (client, server) = (ca.issue(&cart()), ca.issue(&till()));
    let strict = Rules {
        compliance: Compliance::PostQuantum,
        ..RecordMode::Own.into()
    };
    let usual = Rules::from(RecordMode::Own);
    for (of_client, of_server) in [
        (&usual, &usual),
        (&strict, &usual),
        (&usual, &strict),
        (&strict, &strict),
    ] {
        let mut client =
            Ours::of(Handshake::client(&client, Arc::new([till()]), of_client.clone()).expect("made"));
        let mut server = Ours::of(Handshake::server(&server, of_server.clone()).expect("made"));
        client.receive(&[]).expect("hello");
        while !(client.is_open() && server.is_open()) {
            server.receive(&client.take_outbox()).expect("server");
            client.receive(&server.take_outbox()).expect("client");
        }
        assert_eq!(
            (client.group, server.group),
            (Some(X25519MLKEM768), Some(X25519MLKEM768))
        );
    }
}
