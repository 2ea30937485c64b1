//! The real client of the CA and the real record of certificates, against a CA on a real socket: gRPC, TLS, tokens.
//!
//! Workers are inboxes that a test reads. Rules of the contract: control-plane.md sections 1.2, 2 and 3.3.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;
use tokio::time::timeout;
use uztunnel::bridge::{
    CertificateError, Demand, Demands, Inbox, Order, Orders, PodInfo, PodUid, SnapshotCell, demands, orders,
};
use uztunnel::config::{CertificateSource, Config, Environment};
use uztunnel::control::ca::{Ca as Client, Signer};
use uztunnel::control::certificates::Authority as _;
use uztunnel::control::demands::{Reports, inspections, lookups, serve};
use uztunnel::control::grpc::Server;
use uztunnel::control::metrics::Metrics;
use uztunnel::control::pods::{self, PodChange};
use uztunnel::identity::Identity;
use uztunnel::limits;
use uztunnel::mesh::{Builder, LocalState, Locale};
use uztunnel::sys::driver::Wake;
use uztunnel::tls::{CertifiedIdentity, Handshake, Output, Progress, RecordMode, TlsError};
use uztunnel_rig::ca::{Answer, Ca, Script, bundle, status};
use uztunnel_rig::{Authority, PATIENCE};

const HOUR: Duration = Duration::from_secs(3600);
const HOST: &str = "127.0.0.1";

type Certified = Result<Arc<CertifiedIdentity>, CertificateError>;

#[test]
fn two_hundred_identities_at_once_are_certified_within_three_seconds() {
    const PODS: usize = 200;
    run(async {
        let mut files = Files::new();
        let mut script = Script::signing(&files.signer, HOUR);
        // As long as istiod takes.
        script.delay = Duration::from_millis(20);
        let ca = files.ca(script);
        let accounts: Vec<String> = (0..PODS).map(|number| format!("account-{number}")).collect();
        let mut world = World::start(&files, &ca, &accounts, &[]);
        let began = Instant::now();
        for account in &accounts {
            world.announce(account);
        }
        // Nobody asks: they are fetched because their pods are there.
        let ca = wait_for_requests(ca, PODS).await;
        for account in &accounts {
            world.demand(account);
        }
        let mut certified = BTreeSet::new();
        while certified.len() < PODS {
            let (identity, result) = world.next().await;
            result.expect("signed");
            certified.insert(identity);
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(ca.service.under_way_max(), limits::CERTIFICATE_REQUESTS_MAX);
        assert_eq!(ca.service.connections(), 1, "they share one");
        let seen = ca.service.seen();
        assert_eq!(seen.len(), PODS, "one request each");
        for request in &seen {
            assert_eq!(request.impersonated.as_ref(), Some(&request.name));
        }
        println!("{PODS} identities certified in {took:?}");
    });
}

#[test]
fn a_request_carries_lifetime_headers_and_a_token_that_is_read_each_time() {
    run(async {
        let mut files = Files::new();
        let mut script = Script::signing(&files.signer, HOUR);
        script.token = Some("first".to_owned());
        let ca = files.ca(script.clone());
        files.write_token("first\n");
        let variables = [
            ("SECRET_TTL", "90m"),
            ("CLUSTER_ID", "east"),
            ("CA_HEADER_X_Tenant", "blue"),
            ("CA_HEADER_Authorization", "Bearer forged"),
        ];
        let mut world = World::start(&files, &ca, &[], &variables);
        world.get("cart").await.expect("signed");
        script.token = Some("second".to_owned());
        ca.service.play(script);
        files.write_token(" second ");
        world.get("till").await.expect("signed");
        for (request, (account, token)) in ca
            .service
            .seen()
            .iter()
            .zip([("cart", "first"), ("till", "second")])
        {
            let name = identity(account).to_string();
            assert_eq!(request.name, name);
            assert_eq!(request.impersonated.as_ref(), Some(&name));
            assert_eq!(request.validity_seconds, 5400);
            assert_eq!(request.headers["authorization"], format!("Bearer {token}"));
            assert_eq!(request.headers["clusterid"], "east");
            assert_eq!(request.headers["x_tenant"], "blue");
            assert_eq!(request.headers["content-type"], "application/grpc");
            assert_eq!(request.headers["te"], "trailers");
        }
    });
}

#[test]
fn what_the_ca_refuses_is_told_in_its_words_and_asked_again() {
    run(async {
        let mut files = Files::new();
        let ca = files.ca(Script::failing(status::PERMISSION_DENIED, "not on this node"));
        let mut world = World::start(&files, &ca, &[], &[]);
        let error = world.get("cart").await.expect_err("refused");
        assert_eq!(
            error.to_string(),
            "signing gRPC error (PermissionDenied): not on this node"
        );
        ca.service.play(Script::signing(&files.signer, HOUR));
        world
            .certificate("cart")
            .await
            .expect("asked again, and told to who had asked");
        assert_eq!(
            ca.service.connections(),
            1,
            "a refusal does not break the connection"
        );
    });
}

/// istiod says so with a code that broken connections have as well: while it gets ready, and when it cannot sign.
#[test]
fn a_ca_that_cannot_sign_is_asked_once_over_the_connection_that_there_is() {
    run(async {
        let mut files = Files::new();
        let ca = files.ca(Script::signing(&files.signer, HOUR));
        let client = client(&files, &ca, &[]);
        client.issue(identity("cart")).await.expect("signed");
        let codes = [
            (status::INTERNAL, "Internal"),
            (status::UNKNOWN, "Unknown"),
            (status::CANCELLED, "Cancelled"),
        ];
        for (asked, (code, name)) in (2..).zip(codes) {
            ca.service.play(Script::failing(code, "not ready"));
            let error = client.issue(identity("cart")).await.expect_err("refused");
            let expected = format!("signing gRPC error ({name}): not ready");
            assert_eq!(error.to_string(), expected);
            assert_eq!(ca.service.seen().len(), asked, "{name}");
        }
        assert_eq!(ca.service.connections(), 1);
    });
}

#[test]
fn a_reset_instead_of_an_answer_is_told_with_its_reason() {
    run(async {
        let mut files = Files::new();
        let ca = files.ca(Script::of(Answer::Reset(h2::Reason::ENHANCE_YOUR_CALM)));
        let mut world = World::start(&files, &ca, &[], &[]);
        let error = world.get("cart").await.expect_err("reset");
        assert_eq!(
            error.to_string(),
            "signing gRPC error (ResourceExhausted): http2 error: stream error received: detected excessive load \
             generating behavior"
        );
    });
}

#[test]
fn a_missing_or_wrong_token_is_named_and_a_right_one_heals_it() {
    run(async {
        let mut files = Files::new();
        let mut script = Script::signing(&files.signer, HOUR);
        script.token = Some("right".to_owned());
        let ca = files.ca(script);
        files.write_token("wrong");
        let mut world = World::start(&files, &ca, &[], &[]);
        let error = world.get("cart").await.expect_err("refused");
        assert_eq!(
            error.to_string(),
            "signing gRPC error (Unauthenticated): authentication failure"
        );
        files.write_token("\n");
        let error = world.get("till").await.expect_err("nothing to show");
        let start = "cannot ask the CA: token file exists, but was empty";
        assert!(error.to_string().starts_with(start), "{error}");
        files.write_token("right");
        let both = [world.next().await, world.next().await];
        for (identity, result) in both {
            result.unwrap_or_else(|error| panic!("{identity}: {error}"));
        }
    });
}

#[test]
fn answers_that_are_no_certificate_for_the_identity_are_refused() {
    run(async {
        let mut files = Files::new();
        let ca = files.ca(Script::of(Answer::Chain(vec!["garbage".to_owned(); 2])));
        let mut world = World::start(&files, &ca, &[], &[]);
        let error = world.get("cart").await.expect_err("garbage");
        let start = format!("chain returned from CA is malformed for: {}", identity("cart"));
        assert!(error.to_string().starts_with(&start), "{error}");
        ca.service.play(Script::of(Answer::Sign {
            signer: Arc::clone(&files.signer),
            intermediates: Vec::new(),
            roots: files.signer.pem(),
            lifetime: HOUR,
            name: Some(identity("admin").to_string()),
        }));
        let error = world.get("till").await.expect_err("somebody else's");
        let start = format!("did not find expected SAN: {}", identity("till"));
        assert!(error.to_string().starts_with(&start), "{error}");
    });
}

#[test]
fn while_the_ca_is_down_old_certificates_serve_and_new_ones_recover_by_themselves() {
    run(async {
        let mut files = Files::new();
        let mut ca = files.ca(Script::signing(&files.signer, HOUR));
        let mut world = World::start(&files, &ca, &[], &[]);
        let before = world.get("cart").await.expect("signed");
        ca.stop();
        let error = world.get("till").await.expect_err("nobody is there");
        let start = format!("cannot ask the CA: cannot connect to {}", ca.address());
        assert!(error.to_string().starts_with(&start), "{error}");
        world.demand("cart");
        let during = world.certificate("cart").await.expect("still valid");
        assert!(Arc::ptr_eq(&before, &during));
        ca.restart(files.server(&[HOST])).expect("restarted");
        world
            .certificate("till")
            .await
            .expect("asked again, and told to who had asked");
    });
}

#[test]
fn a_ca_that_was_restarted_is_connected_to_anew_without_an_error() {
    run(async {
        let mut files = Files::new();
        let mut ca = files.ca(Script::signing(&files.signer, HOUR));
        let mut world = World::start(&files, &ca, &[], &[]);
        world.get("cart").await.expect("signed");
        ca.stop();
        // Its root was rotated as well; the file is read at the next connection.
        files.replace_tls_root();
        ca.restart(files.server(&[HOST])).expect("restarted");
        world.get("till").await.expect("signed");
        assert_eq!(ca.service.connections(), 2);
    });
}

#[test]
fn a_ca_that_restarts_under_the_first_request_of_a_pod_fails_nobody() {
    run(async {
        let mut files = Files::new();
        let (mut world, mut ca) = asked_in_vain(&mut files).await;
        let stopped = Instant::now();
        ca.stop();
        // Long enough to be refused a connection at once; this thread is also the client's, which asks later.
        tokio::time::sleep(limits::CA_PAUSES[1] / 5).await;
        ca.service.play(Script::signing(&files.signer, HOUR));
        ca.restart(files.server(&[HOST])).expect("restarted");
        world
            .certificate("cart")
            .await
            .expect("signed, and no error before");
        let waited = stopped.elapsed();
        assert!(
            waited >= limits::CA_PAUSES[1] * 4 / 5,
            "{waited:?}: it was not asked while it was away"
        );
        assert_eq!(ca.service.seen().len(), 2);
    });
}

#[test]
fn roots_that_left_the_disk_are_believed_for_a_minute_and_no_longer() {
    run(async {
        let mut files = Files::new();
        let mut ca = files.ca(Script::signing(&files.signer, HOUR));
        let (client, passed) = client_with_clock(&files, &ca);
        client.issue(identity("cart")).await.expect("signed");
        // The CA keeps its certificate, but nobody is to believe in its root any more.
        files.replace_tls_root();
        passed.set(limits::CA_CONNECTION_AGE_MAX - Duration::from_millis(1));
        client
            .issue(identity("cart"))
            .await
            .expect("over the connection of before");
        assert_eq!(ca.service.connections(), 1);
        passed.set(limits::CA_CONNECTION_AGE_MAX);
        let error = client
            .issue(identity("cart"))
            .await
            .expect_err("the roots are read anew");
        let start = "cannot ask the CA: tls handshake with 127.0.0.1 failed: ";
        assert!(error.to_string().starts_with(start), "{error}");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        ca.restart(files.server(&[HOST])).expect("restarted");
        passed.set(limits::CA_CONNECTION_AGE_MAX + Duration::from_millis(1));
        client.issue(identity("cart")).await.expect("signed");
        assert_eq!(
            ca.service.seen().len(),
            3,
            "the CA that was not trusted was told nothing"
        );
    });
}

#[test]
fn a_connection_that_cannot_be_replaced_serves_on_until_it_can() {
    run(async {
        let mut files = Files::new();
        let mut ca = files.ca(Script::signing(&files.signer, HOUR));
        let (client, passed) = client_with_clock(&files, &ca);
        client.issue(identity("cart")).await.expect("signed");
        passed.set(limits::CA_CONNECTION_AGE_MAX);
        fs::remove_file(files.root_path()).expect("removed");
        client.issue(identity("cart")).await.expect("no roots to read");
        fs::write(files.root_path(), "-----BEGIN CERT").expect("written");
        passed.set(passed.get() + HOUR);
        client.issue(identity("cart")).await.expect("no root among them");
        assert_eq!(ca.service.connections(), 1);
        fs::write(files.root_path(), files.tls.pem()).expect("written");
        passed.set(passed.get() + Duration::from_millis(1));
        client.issue(identity("cart")).await.expect("signed");
        assert_eq!(ca.service.connections(), 2, "tried again by each request");

        // Where the old one is over as well, the reason is why there is no new one.
        ca.stop();
        passed.set(passed.get() + HOUR);
        let error = client.issue(identity("cart")).await.expect_err("nobody is there");
        let start = format!("cannot ask the CA: cannot connect to {}", ca.address());
        assert!(error.to_string().starts_with(&start), "{error}");
    });
}

#[test]
fn what_swallows_packets_is_named_and_not_tried_until_the_request_is_over() {
    run(async {
        let files = Files::new();
        let swallowing = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let swallowing = swallowing.expect("a socket");
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        swallowing.bind(&nowhere.into()).expect("bound");
        // Who is not accepted fills its queue, of which Linux makes one more than it is told.
        swallowing.listen(0).expect("listening");
        let address = swallowing.local_addr().expect("bound").as_socket().expect("IPv4");
        let _waiting = std::net::TcpStream::connect(address).expect("connected");
        let client = client_of(&files, address, &[]).with_clock(|| tokio::time::Instant::now().into_std());
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        let error = client.issue(identity("cart")).await.expect_err("nobody answers");
        let expected = format!("cannot ask the CA: cannot connect to {address}: timed out");
        assert_eq!(error.to_string(), expected);
        let took = began.elapsed();
        assert!(
            took < limits::CERTIFICATE_WAIT,
            "{took:?}: who waits for it hears of it"
        );
    });
}

#[test]
fn a_ca_that_does_not_answer_is_given_up_and_asked_again() {
    run(async {
        let mut files = Files::new();
        let (mut world, ca) = asked_in_vain(&mut files).await;
        // From here the runtime's clock runs as fast as nothing happens.
        tokio::time::pause();
        let error = world.certificate("cart").await.expect_err("no answer");
        tokio::time::resume();
        assert_eq!(error.to_string(), "no answer from the CA within 15 s");
        ca.service.play(Script::signing(&files.signer, HOUR));
        world.certificate("cart").await.expect("signed");
        assert_eq!(
            ca.service.connections(),
            2,
            "the silent connection is not used again"
        );
    });
}

#[test]
fn a_server_with_another_name_is_accepted_only_if_the_configuration_says_so() {
    run(async {
        let files = Files::new();
        let script = Script::signing(&files.signer, HOUR);
        let ca = Ca::start(files.server(&["istiod.other.svc"]), script).expect("started");
        let mut strict = World::start(&files, &ca, &[], &[]);
        let error = strict.get("cart").await.expect_err("another name");
        let start = format!("cannot ask the CA: tls handshake with {HOST} failed: invalid peer certificate");
        assert!(error.to_string().starts_with(&start), "{error}");
        let variables = [("ALT_CA_HOSTNAME", "istiod.other.svc")];
        let mut lenient = World::start(&files, &ca, &[], &variables);
        lenient.get("cart").await.expect("signed");
    });
}

#[test]
fn a_server_under_an_unknown_root_is_not_told_anything() {
    run(async {
        let mut files = Files::new();
        let ca = files.ca(Script::signing(&files.signer, HOUR));
        files.replace_tls_root();
        let mut world = World::start(&files, &ca, &[], &[]);
        let error = world.get("cart").await.expect_err("unknown issuer");
        let start = format!("cannot ask the CA: tls handshake with {HOST} failed: invalid peer certificate");
        assert!(error.to_string().starts_with(&start), "{error}");
        assert!(ca.service.seen().is_empty());
    });
}

#[test]
fn certificates_of_seconds_are_renewed_without_a_gap() {
    run(async {
        let mut files = Files::new();
        let ca = files.ca(Script::signing(&files.signer, Duration::from_secs(4)));
        let mut world = World::start(&files, &ca, &[], &[]);
        let mut held = world.get("cart").await.expect("signed");
        for _ in 0..3 {
            let renewed = world.certificate("cart").await.expect("signed");
            let now = SystemTime::now();
            assert!(now < held.not_after, "the old one still served");
            assert!(renewed.not_before <= now && renewed.not_after > held.not_after);
            shake_hands(&held, &renewed).expect("old and new trust each other");
            held = renewed;
        }
    });
}

#[test]
fn a_failed_renewal_is_not_told_while_the_old_certificate_lasts() {
    run(async {
        let mut files = Files::new();
        let ca = files.ca(Script::signing(&files.signer, Duration::from_secs(4)));
        let mut world = World::start(&files, &ca, &[], &[]);
        let held = world.get("cart").await.expect("signed");
        ca.service
            .play(Script::failing(status::PERMISSION_DENIED, "gone"));
        let ca = wait_for_requests(ca, 2).await;
        world.demand("cart");
        let same = world.certificate("cart").await.expect("it lasts");
        assert!(Arc::ptr_eq(&held, &same));
        let error = world.certificate("cart").await.expect_err("nothing is left");
        assert!(SystemTime::now() >= held.not_after, "told before its end");
        assert_eq!(error.to_string(), "signing gRPC error (PermissionDenied): gone");
        ca.service.play(Script::signing(&files.signer, HOUR));
        world.certificate("cart").await.expect("signed");
    });
}

#[test]
fn during_a_rotation_of_roots_both_are_trusted() {
    run(async {
        let mut files = Files::new();
        let (old, new) = (Arc::clone(&files.signer), Arc::new(authority("new root")));
        let both = bundle(&[&old, &new]);
        let signing = |signer: &Arc<Authority>, roots: &str| {
            Script::of(Answer::Sign {
                signer: Arc::clone(signer),
                intermediates: Vec::new(),
                roots: roots.to_owned(),
                lifetime: HOUR,
                name: None,
            })
        };
        let ca = files.ca(signing(&old, &old.pem()));
        let mut world = World::start(&files, &ca, &[], &[]);
        let before = world.get("before").await.expect("signed");
        ca.service.play(signing(&old, &both));
        let aware = world.get("aware").await.expect("signed");
        ca.service.play(signing(&new, &both));
        let rotated = world.get("rotated").await.expect("signed");
        ca.service.play(signing(&new, &new.pem()));
        let after = world.get("after").await.expect("signed");
        for (client, server) in [
            (&before, &aware),
            (&aware, &rotated),
            (&rotated, &after),
            (&aware, &aware),
        ] {
            shake_hands(client, server).expect("a root in common");
            shake_hands(server, client).expect("a root in common");
        }
        let refused = shake_hands(&before, &after).expect_err("no root in common");
        assert!(refused.to_string().contains("unknown CA"), "{refused}");
    });
}

/// Where roots and tokens lie, and who signs.
struct Files {
    directory: TempDir,
    /// Signs the CA's own server certificate.
    tls: Authority,
    /// Signs workloads.
    signer: Arc<Authority>,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            directory: TempDir::new().expect("a scratch directory"),
            tls: authority("tls root"),
            signer: Arc::new(authority("root")),
        };
        files.write_token("token");
        fs::write(files.root_path(), files.tls.pem()).expect("written");
        files
    }

    /// A CA whose name the client accepts.
    fn ca(&mut self, script: Script) -> Ca {
        Ca::start(self.server(&[HOST]), script).expect("started")
    }

    fn server(&self, names: &[&str]) -> uztunnel_rig::authority::ServerCertificate {
        self.tls.server(names).expect("signed")
    }

    /// What was signed under the old one is not believed at the next connection.
    fn replace_tls_root(&mut self) {
        self.tls = authority("another tls root");
        fs::write(self.root_path(), self.tls.pem()).expect("written");
    }

    fn root_path(&self) -> PathBuf {
        self.directory.path().join("root-cert.pem")
    }

    fn token_path(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    fn write_token(&self, token: &str) {
        fs::write(self.token_path(), token).expect("written");
    }
}

/// The control thread's part of a proxy, with one worker that the test plays.
struct World {
    demands: Demands,
    pods: mpsc::UnboundedSender<PodChange>,
    inbox: Inbox,
    bell: Arc<Bell>,
    serving: tokio::task::JoinHandle<()>,
}

impl World {
    /// `known` are accounts whose workloads the mesh knows before their pods come.
    fn start(files: &Files, ca: &Ca, known: &[String], variables: &[(&str, &str)]) -> Self {
        let client = client(files, ca, variables);
        let signer = Signer::Ca(client.into());

        let bell = Arc::new(Bell::default());
        let (handle, inbox) = orders::channel(Arc::clone(&bell) as Arc<dyn Wake>);
        let (demands, queue) = demands::channel();
        let (pods, changes) = pods::changes();
        let orders = Orders::new(vec![handle]);
        let snapshot = mesh(known);
        let reports = Reports {
            inspections: inspections().1,
            metrics: Metrics::default(),
            lookups: lookups().0,
        };
        let serving = async move {
            let ended = serve(queue, changes, snapshot, signer, orders, reports).await;
            ended.expect("no worker failed");
        };
        Self {
            demands,
            pods,
            inbox,
            bell,
            serving: tokio::task::spawn_local(serving),
        }
    }

    fn announce(&self, account: &str) {
        let info = PodInfo {
            name: account.to_owned(),
            namespace: "shop".to_owned(),
            service_account: account.to_owned(),
        };
        let uid = PodUid::new(account);
        let started = PodChange::Started { uid, info };
        self.pods.send(started).expect("served");
    }

    fn demand(&self, account: &str) {
        let identity = identity(account);
        let sent = self.demands.send(Demand::Certificate { worker: 0, identity });
        assert!(sent, "served");
    }

    /// A pod comes, and its first connection with it.
    async fn get(&mut self, account: &str) -> Certified {
        self.announce(account);
        self.demand(account);
        self.certificate(account).await
    }

    /// What the worker is told next, which must be of this account.
    async fn certificate(&mut self, account: &str) -> Certified {
        let (named, result) = self.next().await;
        assert_eq!(named, identity(account), "{result:?}");
        result
    }

    async fn next(&mut self) -> (Identity, Certified) {
        loop {
            match self.inbox.next() {
                Some(Order::Certificate { identity, result }) => return (identity, result),
                Some(order) => panic!("unexpected: {order:?}"),
                None => timeout(PATIENCE, self.bell.0.notified())
                    .await
                    .expect("an order in time"),
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

/// Where the first request, for the certificate of `cart`, has reached a CA that is silent.
async fn asked_in_vain(files: &mut Files) -> (World, Ca) {
    let ca = files.ca(Script::of(Answer::Silence));
    let world = World::start(files, &ca, &[], &[]);
    world.announce("cart");
    world.demand("cart");
    (world, wait_for_requests(ca, 1).await)
}

/// Without holding up the client, which lives on this thread.
async fn wait_for_requests(ca: Ca, count: usize) -> Ca {
    let waiting = tokio::task::spawn_blocking(move || {
        ca.service.wait_for_requests(count);
        ca
    });
    waiting.await.expect("they came")
}

/// The client of `ca` as a proxy with these variables makes it.
fn client(files: &Files, ca: &Ca, variables: &[(&str, &str)]) -> Client {
    client_of(files, ca.address(), variables)
}

/// The same, and how much time has passed for it.
fn client_with_clock(files: &Files, ca: &Ca) -> (Client, Rc<Cell<Duration>>) {
    let (began, passed) = (Instant::now(), Rc::new(Cell::new(Duration::ZERO)));
    let time = Rc::clone(&passed);
    let client = client(files, ca, &[]).with_clock(move || began + time.get());
    (client, passed)
}

/// Of one that may be none.
fn client_of(files: &Files, address: SocketAddr, variables: &[(&str, &str)]) -> Client {
    let address = format!("https://{address}");
    let (root, token) = (files.root_path(), files.token_path());
    let base = [
        ("XDS_ADDRESS", ""),
        ("LOCAL_XDS", "{}"),
        ("CA_ADDRESS", address.as_str()),
        ("CA_ROOT_CA", root.to_str().expect("UTF-8")),
        ("AUTH_TOKEN", token.to_str().expect("UTF-8")),
    ];
    let environment = Environment::new(base.into_iter().chain(variables.iter().copied()));
    let config = Config::from_env(&environment).expect("valid");
    let CertificateSource::Server(server) = &config.control.ca else {
        panic!("the CA is configured");
    };
    let token = config.control.auth_token.as_ref();
    let server = Server::new(server, token, &config.node.cluster_id).expect("valid");
    Client::new(server, config.tls.certificate_lifetime)
}

fn authority(name: &str) -> Authority {
    Authority::new(name).expect("made")
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

fn mesh(accounts: &[String]) -> SnapshotCell {
    let mut yaml = "workloads:\n".to_owned();
    for account in accounts {
        write!(
            yaml,
            "- uid: Kubernetes//Pod/shop/{account}\n  name: {account}\n  namespace: shop\n  \
             serviceAccount: {account}\n  trustDomain: cluster.local\n  workloadIps: []\n  \
             protocol: HBONE\n  services: {{}}\n"
        )
        .expect("a string takes everything");
    }
    let mut builder = Builder::new(Locale::default());
    if !accounts.is_empty() {
        builder.load(LocalState::parse(&yaml).expect("valid"));
    }
    SnapshotCell::new(builder.build())
}

/// A whole handshake of two workloads, both sides checked.
fn shake_hands(client: &CertifiedIdentity, server: &CertifiedIdentity) -> Result<(), TlsError> {
    let mut near = Handshake::client(client, Arc::new([server.identity.clone()]), RecordMode::Own)?;
    let mut far = Handshake::server(server, RecordMode::Own)?;
    let (mut to_far, mut to_near) = (Output::default(), Output::default());
    let mut is_done = [false, false];
    near.advance(&[], &mut to_far)?;
    while is_done != [true, true] {
        if !is_done[1] {
            let progress = far.advance(to_far.filled(), &mut to_near)?;
            is_done[1] = matches!(progress, Progress::Done);
            to_far.clear();
        }
        if !is_done[0] {
            let progress = near.advance(to_near.filled(), &mut to_far)?;
            is_done[0] = matches!(progress, Progress::Done);
            to_near.clear();
        }
    }
    Ok(())
}
