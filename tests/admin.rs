//! The admin and the metrics server over real HTTP, on the loopback, and what clients make of their answers.
//!
//! The dumps, tables and series of record are tests/data/config_dump-*.json, istioctl-*.txt and metrics-node1.txt: what
//! ztunnel showed of the responses in tests/data/xds-*.binpb, and what istioctl printed.

#[path = "admin/differences.rs"]
mod differences;
#[path = "admin/istioctl.rs"]
mod istioctl;
#[path = "admin/serving.rs"]
mod serving;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use uztunnel::bridge::orders;
use uztunnel::bridge::traffic::{LiveConnection, LiveCursor, LivePage, Original, Protocol};
use uztunnel::bridge::{CertificateError, Direction, Order, Orders, PodInfo, PodUid};
use uztunnel::clock;
use uztunnel::control::certificates::Standing;
use uztunnel::control::xds::protocol::Kind;
use uztunnel::identity::Identity;
use uztunnel::limits;
use uztunnel::sys::driver::Wake;
use uztunnel::tls::FakeCa;
use uztunnel_rig::wait_until;

use differences::{assert_differences, differences};
use serving::{Response, Serving, captured_resources, request};

const CAPTURED: [&str; 2] = [
    include_str!("data/config_dump-node1.json"),
    include_str!("data/config_dump-node2.json"),
];
const PRINTED: [&str; 2] = [
    include_str!("data/istioctl-node1.txt"),
    include_str!("data/istioctl-node2.txt"),
];
const SCRAPED: &str = include_str!("data/metrics-node1.txt");
const COMMANDS: [&str; 5] = ["workloads", "services", "policies", "certificates", "connections"];
/// When the capture was made, as far as certificates are concerned.
const THEN: &str = "2026-11-21T12:00:00Z";

fn captured(node: usize) -> Value {
    serde_json::from_str(CAPTURED[node]).expect("JSON")
}

/// What istioctl printed for a captured dump.
fn printed(node: usize, command: &str) -> String {
    let heading = format!(
        "$ istioctl ztunnel-config {command} -f config_dump-node{}.json\n",
        node + 1
    );
    let (_, rest) = PRINTED[node].split_once(&heading).expect("the command");
    let table = rest.split("\n\n").next().expect("a table");
    format!("{}\n", table.trim_end_matches('\n'))
}

#[test]
fn the_captured_responses_give_the_captured_dump_in_either_order() {
    for kinds in [Kind::ALL, [Kind::Authorization, Kind::Address]] {
        let serving = Serving::start();
        for kind in kinds {
            serving.apply(kind, captured_resources(kind));
        }
        let ours = serving.dump();
        for (node, localities) in [(0, "node1"), (1, "node2")] {
            let theirs = captured(node);
            for key in ["policies", "services", "stagedServices", "staticConfig"] {
                assert_differences(&theirs[key], &ours[key], &[], &format!("{key} of {localities}"));
            }
            // The reference lists a workload's services in random order: two nodes that know the same differ.
            let (theirs, mine) = (in_order(&theirs["workloads"]), in_order(&ours["workloads"]));
            assert_differences(&theirs, &mine, &[], &format!("workloads of {localities}"));
        }
        let workloads = &ours["workloads"];
        assert_eq!(&in_order(workloads), workloads, "ours are sorted");
    }
}

/// Workloads with their services sorted.
fn in_order(workloads: &Value) -> Value {
    let mut workloads = workloads.clone();
    for workload in workloads.as_array_mut().expect("workloads") {
        if let Some(services) = workload.get_mut("services").and_then(Value::as_array_mut) {
            services.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    workloads
}

#[test]
fn the_settings_of_the_captured_node_are_dumped_as_there() {
    let serving = Serving::start();
    let (ours, theirs) = (serving.dump(), captured(0));
    assert_differences(
        &theirs["config"],
        &ours["config"],
        &[
            // There is no DNS proxy yet, so no resolver either.
            ("/dnsProxy", "false"),
            ("/dnsResolverCfg", "null"),
            ("/dnsResolverOpts", "null"),
            // Sorted; there in random order.
            ("/illegalPorts/0", "15001"),
            ("/illegalPorts/1", "15006"),
            ("/illegalPorts/2", "15008"),
        ],
        "config",
    );
    let keys =
        |dump: &Value| -> BTreeSet<String> { dump.as_object().expect("an object").keys().cloned().collect() };
    assert_eq!(keys(&ours), keys(&theirs));
    assert_eq!(keys(&ours["version"]), keys(&theirs["version"]));
    assert!(
        ours["version"]
            .as_object()
            .expect("texts")
            .values()
            .all(Value::is_string),
        "{}",
        ours["version"]
    );
}

#[test]
fn a_dump_is_sorted_indented_and_the_same_twice() {
    let serving = Serving::start();
    for kind in Kind::ALL {
        serving.apply(kind, captured_resources(kind));
    }
    let response = serving.get("/config_dump?any=query");
    assert_eq!(response.header("content-type"), Some("application/json"));
    let text = response.text();
    assert_eq!(text, serving.get("/config_dump").text());
    let sorted: Value = serde_json::from_str(&text).expect("JSON");
    // The library keeps keys sorted, and indents as the capture is indented.
    assert_eq!(text, serde_json::to_string_pretty(&sorted).expect("JSON"));
    let theirs = captured(0);
    assert_eq!(CAPTURED[0], serde_json::to_string_pretty(&theirs).expect("JSON"));
}

#[test]
fn endpoints_without_their_service_are_staged_until_it_comes() {
    let serving = Serving::start();
    let (services, workloads): (Vec<_>, Vec<_>) = captured_resources(Kind::Address)
        .into_iter()
        .partition(|it| it.name.matches('/').count() == 1);
    serving.apply(Kind::Address, workloads);
    let staged = &serving.dump()["stagedServices"];
    let cart = &staged["shop/cart.shop.svc.cluster.local"];
    assert_differences(
        &captured(0)["services"][6]["endpoints"],
        cart,
        &[],
        "the endpoints of cart",
    );
    serving.apply(Kind::Address, services);
    let dump = serving.dump();
    assert_eq!(dump["stagedServices"], json!({}));
    assert_eq!(&dump["services"][6]["endpoints"], cart);
}

#[test]
fn the_local_file_is_read_again_for_each_dump() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), include_str!("data/mesh.yaml")).expect("written");
    let serving = Serving::with_variables(&[
        ("LOCAL_XDS_PATH", file.path().to_str().expect("UTF-8")),
        ("XDS_ADDRESS", ""),
    ]);
    let dumped = serving.dump();
    let shown = &dumped["staticConfig"];
    let local = uztunnel::mesh::LocalState::parse(include_str!("data/mesh.yaml")).expect("a mesh");
    let count = |key: &str| shown[key].as_array().expect("a list").len();
    assert_eq!(count("workloads"), local.workloads.len());
    assert_eq!(count("services"), local.services.len());
    assert_eq!(count("policies"), local.policies.len());
    assert!(local.workloads.len() > 1, "or nothing is shown");
    // What is shown is a local file again: with services as a map, and the same in it.
    let again = uztunnel::mesh::LocalState::parse(&shown.to_string()).expect("a mesh");
    assert_eq!(again.workloads, local.workloads);
    assert_eq!(again.policies, local.policies);
    std::fs::write(file.path(), "workloads: nonsense").expect("written");
    let nothing = json!({"policies": [], "services": [], "workloads": []});
    assert_eq!(serving.dump()["staticConfig"], nothing);
}

#[test]
fn certificates_are_dumped_as_captured() {
    let serving = Serving::start();
    let ca = FakeCa::new();
    let identity = |account| Identity::new("cluster.local", "shop", account);
    let certified = ca.issue(&identity("web"), clock::wall()).expect("issued");
    let error = CertificateError("signing gRPC error (PermissionDenied): no".into());
    serving.certify([
        (identity("web"), Standing::Available(certified.into())),
        (identity("cart"), Standing::Initializing),
        (identity("db"), Standing::Unavailable(error)),
    ]);
    let dump = serving.dump();
    let theirs = &captured(0)["certificates"][1];
    let [cart, db, web] = &dump["certificates"].as_array().expect("a list")[..] else {
        panic!("three certificates: {}", dump["certificates"]);
    };
    // The same keys, the same identity and state; other certificates of course.
    let (chain, roots) = ("/certChain/0", "/rootCerts/0");
    let found = differences(theirs, web);
    let expected = ["expirationTime", "pem", "serialNumber", "validFrom"];
    let expected: Vec<String> = [chain, roots]
        .into_iter()
        .flat_map(|at| expected.map(|key| format!("{at}/{key}")))
        .collect();
    assert_eq!(
        found.iter().map(|it| it.path.clone()).collect::<Vec<_>>(),
        expected
    );
    for it in [&web["certChain"][0], &web["rootCerts"][0]] {
        for (key, length) in [("validFrom", 20), ("expirationTime", 20)] {
            let time = it[key].as_str().expect("a time");
            assert!(time.len() == length && time.ends_with('Z'), "{time}");
        }
        let serial = it["serialNumber"].as_str().expect("a number");
        assert!(serial.bytes().all(|byte| byte.is_ascii_digit()), "{serial}");
    }
    let nothing = |account: &str, state: &str| {
        json!({
            "certChain": [],
            "identity": format!("spiffe://cluster.local/ns/shop/sa/{account}"),
            "rootCerts": [],
            "state": state,
        })
    };
    assert_eq!(*cart, nothing("cart", "Initializing"));
    let why = "Unavailable: signing gRPC error (PermissionDenied): no";
    assert_eq!(*db, nothing("db", why));
    // And as istioctl prints them.
    let table = istioctl::table("certificates", &dump, THEN);
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|row| row.split_whitespace().collect())
        .collect();
    let states: Vec<_> = rows[1..].iter().map(|row| (row[1], row[2])).collect();
    assert_eq!(
        states,
        [
            ("NA", "Initializing"),
            ("NA", "Unavailable"),
            ("Leaf", "Available"),
            ("Root", "Available")
        ]
    );
    // The program looks at the clock, and the certificates were made just now.
    let now = web["certChain"][0]["validFrom"].as_str().expect("a time");
    assert_istioctl_prints(
        "certificates",
        &dump,
        &istioctl::table("certificates", &dump, now),
    );
}

#[test]
fn pods_are_dumped_as_captured() {
    let serving = Serving::start();
    let (uid, late) = (PodUid::new("cluster1//v1/Pod/a/late"), pod("late", "a", "b"));
    serving.roster.set_pending([(&uid, &late)].into_iter());
    let dump = dump_with_captured_pods(&serving);
    let mut theirs = captured(0)["workloadState"].clone();
    theirs["cluster1//v1/Pod/a/late"] =
        json!({"info": {"name": "late", "namespace": "a", "serviceAccount": "b"}, "state": "Pending"});
    assert_differences(&theirs, &dump["workloadState"], &[], "workloadState");
}

fn pod(name: &str, namespace: &str, account: &str) -> PodInfo {
    PodInfo {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
    }
}

/// A dump with the pods of the captured node, and the connection that one of them had.
fn dump_with_captured_pods(serving: &Serving) -> Value {
    for (namespace, name, account) in [
        ("shop", "web-5c-a", "web"),
        ("default", "client", "client"),
        ("shop", "cart-7f-b", "cart"),
    ] {
        let uid = PodUid::new(&format!("cluster1//v1/Pod/{namespace}/{name}"));
        serving.roster.started(uid, pod(name, namespace, account));
    }
    let worker = tell_connections(serving, "cluster1//v1/Pod/shop/web-5c-a");
    let dump = serving.dump();
    worker.join().expect("it was asked for both pages");
    dump
}

/// A worker that tells of the connection that the captured pod had, on the second of two pages.
fn tell_connections(serving: &Serving, pod: &str) -> JoinHandle<()> {
    struct Polled;
    impl Wake for Polled {
        fn wake(&self) {}
    }
    let (handle, inbox) = orders::channel(Arc::new(Polled));
    serving.live.serve(Orders::new(vec![handle]));
    let nobody = "198.18.154.1:5000".parse().expect("an address");
    let mut page = LivePage {
        connections: vec![LiveConnection {
            pod: PodUid::new(pod),
            direction: Direction::Outbound,
            source: "198.18.16.2:6736".parse().expect("an address"),
            original: Original::Address(nobody),
            actual: nobody,
            protocol: Protocol::Tcp,
        }],
        next: None,
    };
    std::thread::spawn(move || {
        let second = LiveCursor { table: 1, slot: 7 };
        let mut first = Some(LivePage {
            next: Some(second),
            ..LivePage::default()
        });
        loop {
            let Some(order) = inbox.next() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let Order::ListConnections { from, answer } = order else {
                panic!("asked for something else: {order:?}");
            };
            if let Some(first) = first.take() {
                assert_eq!(from, LiveCursor::default());
                answer.send(first).expect("waited for");
            } else {
                assert_eq!(from, second);
                return answer.send(std::mem::take(&mut page)).expect("waited for");
            }
        }
    })
}

#[test]
fn the_tables_of_the_captured_dumps_come_out_as_istioctl_prints_them() {
    for node in [0, 1] {
        for command in COMMANDS {
            let made = istioctl::table(command, &captured(node), THEN);
            let expected = printed(node, command);
            assert_eq!(
                made.trim_end(),
                expected.trim_end(),
                "{command} of node{}",
                node + 1
            );
        }
    }
}

/// Where `ISTIOCTL` names the program.
fn assert_istioctl_prints(command: &str, dump: &Value, table: &str) {
    if let Some(program) = std::env::var_os("ISTIOCTL") {
        istioctl::assert_prints(&program, command, dump, table);
    }
}

#[test]
fn istioctl_prints_of_our_dump_what_it_printed_of_the_captured_one() {
    let serving = Serving::start();
    for kind in Kind::ALL {
        serving.apply(kind, captured_resources(kind));
    }
    let dump = dump_with_captured_pods(&serving);
    // Certificates are others; there is a test of their own.
    for command in ["workloads", "services", "policies", "connections"] {
        let made = istioctl::table(command, &dump, THEN);
        assert_eq!(made.trim_end(), printed(0, command).trim_end(), "{command}");
        assert_istioctl_prints(command, &dump, &made);
    }
}

#[test]
fn a_client_that_does_not_read_its_dump_holds_nobody_up() {
    let serving = Serving::start();
    serving.apply(Kind::Address, serving::many_workloads(40_000));
    let begun = Instant::now();
    let whole = serving.get("/config_dump").body.len();
    assert!(whole > 16 << 20, "{whole} bytes do not fit socket buffers");
    println!("a dump of {whole} bytes took {:?}", begun.elapsed());
    // As many as are written at a time; none of them reads.
    let mut stuck: Vec<_> = (0..limits::DUMPS_MAX)
        .map(|_| serving.send("GET /config_dump HTTP/1.1\r\nhost: a\r\n\r\n"))
        .collect();
    wait_until("both dumps to be stuck", || {
        (serving.free_dumps() == 0).then_some(())
    });
    assert_eq!(serving.get("/").status, 200, "others are answered");
    let waiting = serving.send("GET /config_dump HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let patience = waiting.read_timeout().expect("a socket");
    let is_set = waiting.set_read_timeout(Some(Duration::from_millis(100)));
    is_set.expect("a timeout");
    let early = waiting.peek(&mut [0; 1]).expect_err("no place is free");
    assert_eq!(early.kind(), ErrorKind::WouldBlock);
    waiting.set_read_timeout(patience).expect("a timeout");
    assert_eq!(serving.get("/").status, 200);
    // When one of the clients leaves, its place is free, and whoever waited is served.
    drop(stuck.pop());
    let response = Response::read(waiting);
    assert_eq!((response.status, response.body.len()), (200, whole));
    drop(stuck);
    wait_until("all places to be free", || {
        (serving.free_dumps() == limits::DUMPS_MAX).then_some(())
    });
}

#[test]
fn paths_and_methods_are_those_of_the_contract() {
    let serving = Serving::start();
    let dashboard = serving.get("/");
    assert_eq!(dashboard.status, 200);
    assert_eq!(dashboard.header("content-type"), Some("text/html; charset=utf-8"));
    for path in ["config_dump", "logging", "quitquitquit"] {
        assert!(dashboard.text().contains(path), "{path}");
    }
    assert_eq!(serving.ask("POST", "/config_dump").status, 200, "any method");
    for (method, path, status) in [
        ("GET", "/quitquitquit", 405),
        ("GET", "/config_dump/", 404),
        ("GET", "/debug/pprof/profile", 404),
        ("POST", "/healthz/ready", 404),
    ] {
        let response = serving.ask(method, path);
        assert_eq!(
            (response.status, &*response.text()),
            (status, ""),
            "{method} {path}"
        );
        assert_eq!(response.header("content-type"), None);
    }
}

#[test]
fn log_levels_are_shown_changed_and_reset() {
    let serving = Serving::start();
    let said = |query: &str| {
        let response = serving.ask("POST", &format!("/logging{query}"));
        assert_eq!(response.header("content-type"), Some("text/plain"));
        (response.status, response.text())
    };
    let is = |filter: &str| (200, format!("current log level is {filter}\n"));
    assert_eq!(said(""), is("info"));
    assert_eq!(said("?level="), is("info"));
    // As istioctl sends it, and as curl does.
    assert_eq!(said("?level=access%3Adebug%2Cwarn"), is("access:debug,warn"));
    assert_eq!(said("?level=error&reset"), is("error"));
    assert_eq!(said("?reset"), is("info"));
    let (status, text) = said("?level=bad");
    assert_eq!(status, 400);
    assert!(text.starts_with("Invalid level provided: bad\nusage: "), "{text}");
    let response = serving.get("/logging");
    assert_eq!(response.status, 405);
    assert!(response.text().starts_with("Invalid HTTP method\nusage: "));
}

#[test]
fn whoever_asks_for_the_end_is_answered_first() {
    let serving = Serving::start();
    assert!(!serving.is_asked_to_end());
    let response = serving.ask("POST", "/quitquitquit");
    assert_eq!((response.status, &*response.text()), (200, "shutdown now\n"));
    wait_until("the end", || serving.is_asked_to_end().then_some(()));
}

#[test]
fn a_scrape_has_the_captured_series_of_the_control_plane() {
    let serving = Serving::start();
    for kind in Kind::ALL {
        let resources = captured_resources(kind);
        let payloads = resources.iter().filter_map(|it| it.resource.as_ref());
        let bytes = payloads.map(|it| it.value.len()).sum();
        serving.metrics.response_received(Some(kind), bytes);
    }
    for pod in ["a", "b", "c"] {
        let info = PodInfo {
            name: pod.to_owned(),
            namespace: pod.to_owned(),
            service_account: pod.to_owned(),
        };
        serving.roster.started(PodUid::new(pod), info);
    }
    let scraped = serving.scrape("").text();
    let (ours, theirs) = (families(&scraped), families(SCRAPED));
    // Series of traffic have a test of their own.
    let theirs: Vec<_> = theirs
        .iter()
        .filter(|it| !it.name.starts_with("istio_tcp_"))
        .collect();
    assert_eq!(theirs.len(), 7, "{theirs:?}");
    for captured in theirs {
        let family = ours.iter().find(|it| it.name == captured.name);
        let family = family.unwrap_or_else(|| panic!("no {} in\n{scraped}", captured.name));
        assert_eq!(family.described, captured.described);
        assert_eq!(family.samples, captured.samples, "{}", captured.name);
    }
    let names: Vec<&str> = ours.iter().map(|it| it.name).collect();
    assert_eq!(
        names,
        [
            "process_open_fds",
            "process_max_fds",
            "istio_build",
            "istio_xds_message",
            "istio_xds_message_bytes",
            "istio_tcp_sockets_open",
            "workload_manager_active_proxy_count",
            "workload_manager_pending_proxy_count",
            "workload_manager_proxies_started",
            "workload_manager_proxies_stopped",
            "uztunnel_worker_connections",
            "uztunnel_worker_busy_per_mille",
        ],
        "in this order, and nothing that has no series yet"
    );
    for family in &ours {
        let is_stable = family.name.starts_with("process_") || family.name == "istio_build";
        assert_eq!(
            family.help.ends_with("(unstable)."),
            !is_stable,
            "{}",
            family.help
        );
        assert_eq!(family.help.ends_with('.'), !family.name.starts_with("process_"));
    }
    assert!(scraped.ends_with("\n# EOF\n"));
}

#[test]
fn series_that_the_capture_lacks_have_the_names_and_labels_of_the_contract() {
    use uztunnel::control::metrics::Termination;
    let serving = Serving::start();
    for reason in [
        Termination::ConnectionError,
        Termination::Reconnect,
        Termination::Error,
        Termination::Complete,
    ] {
        serving.metrics.stream_ended(reason);
    }
    serving.metrics.stream_ended(Termination::Reconnect);
    serving.metrics.certificate_answered(true);
    serving.metrics.certificate_answered(false);
    serving.metrics.response_received(None, 5);
    let scraped = serving.scrape("").text();
    for line in [
        "# TYPE istio_xds_connection_terminations counter",
        "istio_xds_connection_terminations_total{reason=\"ConnectionError\"} 1",
        "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 2",
        "istio_xds_connection_terminations_total{reason=\"Error\"} 1",
        "istio_xds_connection_terminations_total{reason=\"Complete\"} 1",
        "istio_xds_message_total{url=\"unknown\"} 1",
        "istio_xds_message_bytes_total{url=\"unknown\"} 5",
        "# TYPE uztunnel_certificate_requests counter",
        "uztunnel_certificate_requests_total{result=\"Issued\"} 1",
        "uztunnel_certificate_requests_total{result=\"Failed\"} 1",
    ] {
        assert!(scraped.lines().any(|it| it == line), "no {line:?} in\n{scraped}");
    }
}

#[test]
fn a_scrape_is_negotiated() {
    let serving = Serving::start();
    let plain = serving.scrape("");
    assert_eq!(plain.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(plain.header("content-encoding"), None);
    let open = serving.scrape("accept: text/plain;q=0.1, application/openmetrics-text;version=1.0.0\r\n");
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text;charset=utf-8;version=1.0.0")
    );
    let packed = serving.scrape("accept-encoding: br, gzip\r\n");
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    GzDecoder::new(&packed.body[..])
        .read_to_string(&mut text)
        .expect("gzip");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let at = serving.metrics_address;
    assert_eq!(
        request(at, "POST", "/stats/prometheus", "").status,
        200,
        "any method"
    );
    let other = request(at, "GET", "/metrics/", "");
    assert_eq!((other.status, &*other.text()), (404, ""));
}

#[derive(Debug)]
struct FamilyText<'a> {
    name: &'a str,
    help: &'a str,
    /// Lines of TYPE and UNIT, in their order.
    described: Vec<&'a str>,
    /// In whatever order.
    samples: BTreeSet<&'a str>,
}

/// The captured text has no HELP lines.
fn families(text: &str) -> Vec<FamilyText<'_>> {
    let mut families: Vec<FamilyText<'_>> = Vec::new();
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, _) = rest.split_once(' ').expect("a type");
            assert!(help.is_empty() || help.starts_with(&format!("{name} ")), "{help}");
            families.push(FamilyText {
                name,
                help,
                described: vec![line],
                samples: BTreeSet::new(),
            });
        } else if line.starts_with("# UNIT ") {
            families.last_mut().expect("a family").described.push(line);
        } else if line != "# EOF" {
            let family = families.last_mut().expect("a family");
            assert!(line.starts_with(family.name), "{line}");
            family.samples.insert(line);
        }
    }
    families
}
