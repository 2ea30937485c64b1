//! The real istiod on a real Kubernetes API server: `cargo xtask journeys --cluster FOLDER`, with the programs in that
//! folder (`docs/testing.md` says where they come from), and not without. All other journeys have a stand-in that says the
//! same things.

use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};
use uztunnel_rig::applications::echo;
use uztunnel_rig::cluster::Cluster;
use uztunnel_rig::{Blueprint, Family, Membership, PodSpec, ProxyOptions, World, http, wait_until};

use crate::admin::dump;
use crate::istioctl;
use crate::policies::{Live, PORT};
use crate::setup::{BODY_BYTES, HTTP_PORT, assert_tunnelled, fetch, options, serve_http};
use crate::transfers::assert_transfer;

const TRANSFER_BYTES: u64 = 64 << 20;

const POLICIES: &str = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies";
const PEER_AUTHENTICATIONS: &str = "/apis/security.istio.io/v1/namespaces/shop/peerauthentications";

/// A policy by which a pod may not call anybody.
fn denied(name: &str, pod: &str) -> Value {
    let principal = format!("cluster.local/ns/shop/sa/{pod}");
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name},
        "spec": {
            "action": "DENY",
            "rules": [{"from": [{"source": {"principals": [principal]}}]}],
        },
    })
}

/// Two nodes that no proxy is started on yet, and their control plane.
fn build() -> (World, Cluster) {
    let blueprint = Blueprint::two_nodes().pod(PodSpec::new("closed", 1).membership(Membership::KnownPlain));
    let world = World::build(blueprint).expect("a world");
    let cluster = Cluster::start(&world, &programs()).expect("a control plane");
    (world, cluster)
}

fn start_proxies(world: &mut World, cluster: &Cluster, options: [ProxyOptions; 2]) {
    let [first, second] = options;
    let options =
        [(0, first), (1, second)].map(|(node, options)| cluster.options(node, options).expect("a token"));
    world.start_proxies(&options).expect("ready proxies");
}

/// With ready proxies that are told of one more variable.
fn start_with(name: &str, value: &str) -> (World, Cluster) {
    let (mut world, cluster) = build();
    let options = options().map(|options| options.variable(name, value));
    start_proxies(&mut world, &cluster, options);
    (world, cluster)
}

fn programs() -> PathBuf {
    let folder = std::env::var_os("CLUSTER_PROGRAMS");
    folder
        .expect("CLUSTER_PROGRAMS: the folder of the programs, as `cargo xtask journeys --cluster FOLDER` gives it")
        .into()
}

fn assert_served(world: &World) {
    for family in Family::BOTH {
        let target = world.service("shop", family, 80);
        assert_eq!(fetch(world, target).expect("a response"), BODY_BYTES);
    }
}

#[test]
fn what_istiod_makes_of_pods_services_and_policies_is_in_force_on_both_nodes() {
    let (mut world, mut cluster) = build();
    start_proxies(&mut world, &cluster, options());
    let _servers = [
        serve_http(world.pod("server")),
        world.pod("server").serve(PORT, echo),
    ];
    // Routing, and certificates of istiod's CA: both nodes check each other's.
    assert_served(&world);
    assert_tunnelled(&world);
    let shown = dump(&world, 0);
    assert_mesh(&shown);
    assert_istioctl_reads(&shown);
    let logs = &world.nodes[0].proxy().logs;
    let complaint = |line: &String| ["\twarn\t", "\terror\t"].iter().any(|level| line.contains(level));
    let of_control = |line: &String| line.contains("\tcontrol::");
    let lines = logs.lines().into_iter();
    let complaints: Vec<String> = lines.filter(complaint).filter(of_control).collect();
    assert_eq!(complaints, [""; 0], "nothing that istiod says is strange");

    // What is refused, and what is closed.
    let open = |pod: &str| Live::open(&world, pod, PORT);
    let (live, other) = (open("client").expect("allowed"), open("cart").expect("allowed"));
    cluster
        .create(POLICIES, &denied("no-entry", "client"))
        .expect("created");
    live.wait_for_reset();
    assert!(open("client").is_err());
    cluster.delete(&format!("{POLICIES}/no-entry")).expect("deleted");
    wait_until("the policy to be gone", || open("client").ok()).finish();
    let plain = open("stranger").expect("permissive");
    let strict = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "strict"},
        "spec": {"mtls": {"mode": "STRICT"}},
    });
    cluster.create(PEER_AUTHENTICATIONS, &strict).expect("created");
    plain.wait_for_reset();
    assert!(open("stranger").is_err());
    let strict = format!("{PEER_AUTHENTICATIONS}/strict");
    cluster.delete(&strict).expect("deleted");
    wait_until("PERMISSIVE", || open("stranger").ok()).finish();

    // A pod that is not ready is no endpoint.
    let target = world.service("shop", Family::V4, 80);
    let server = world.pod("server");
    cluster.set_ready(server, false).expect("patched");
    wait_until("no endpoint", || fetch(&world, target).err());
    cluster.set_ready(server, true).expect("patched");
    wait_until("the endpoint again", || fetch(&world, target).ok());

    // Istiod goes away and another one comes: what stands goes on, and what is known stays in force meanwhile.
    cluster.kill_istiod();
    let line = logs.wait_for("the end of the stream", |line| {
        line.contains("no stream to the control plane")
    });
    line.expect("a line");
    assert_served(&world);
    cluster.start_istiod().expect("istiod again");
    cluster
        .create(POLICIES, &denied("later", "client"))
        .expect("created");
    wait_until("the new one's policy", || open("client").err());
    other.finish();
    assert_no_certificates_for_another_node(&mut world, &cluster);
}

#[test]
fn istiod_tells_of_what_is_asked_for_and_of_its_changes() {
    let (world, cluster) = start_with("XDS_ON_DEMAND", "true");
    let _server = serve_http(world.pod("server"));
    // Ready without any of them, but for the pods of the node.
    let uids = |dump: &Value| {
        let workloads = dump["workloads"].as_array().expect("a list").iter();
        workloads
            .map(|it| it["uid"].as_str().expect("a text").to_owned())
            .collect::<Vec<_>>()
    };
    let server = "Kubernetes//Pod/shop/server".to_owned();
    assert!(!uids(&dump(&world, 0)).contains(&server));
    assert_served(&world);
    assert_tunnelled(&world);
    assert!(uids(&dump(&world, 0)).contains(&server));
    let target = world.service("shop", Family::V4, 80);
    cluster.set_ready(world.pod("server"), false).expect("patched");
    wait_until("no endpoint", || fetch(&world, target).err());
    cluster.set_ready(world.pod("server"), true).expect("patched");
    wait_until("the endpoint again", || fetch(&world, target).ok());
}

#[test]
fn istiods_certificates_are_renewed_under_open_connections() {
    let (world, _cluster) = start_with("SECRET_TTL", "6s");
    let _server = world.pod("server").serve(PORT, echo);
    let open = || Live::open(&world, "client", PORT).expect("allowed");
    let live = open();
    let serial = || {
        let shown = dump(&world, 0);
        let certificates = shown["certificates"].as_array().expect("a list");
        let own = certificates
            .iter()
            .find(|it| it["identity"] == *world.pod("client").identity());
        own.expect("its certificate")["certChain"][0]["serialNumber"].clone()
    };
    let mut known = serial();
    assert!(known.is_string(), "{known}");
    for _ in 0..3 {
        known = wait_until("another certificate", || {
            open().finish();
            let now = serial();
            (now != known).then_some(now)
        });
    }
    live.finish();
}

#[test]
fn istio_csr_signs_for_the_pods_of_the_node_and_for_no_others() {
    let (mut world, mut cluster) = build();
    cluster.start_istio_csr().expect("istio-csr");
    start_proxies(&mut world, &cluster, options());
    let _server = serve_http(world.pod("server"));
    assert_served(&world);
    assert_tunnelled(&world);
    assert_no_certificates_for_another_node(&mut world, &cluster);
}

/// A CA lets a proxy have certificates of the pods that are on the proxy's node, as the API server says.
fn assert_no_certificates_for_another_node(world: &mut World, cluster: &Cluster) {
    let [ours, _] = options();
    world.nodes[0].proxy = None;
    let misled = cluster.options(1, ours).expect("a token of the other node");
    let proxy = world.launch_proxy(0, &misled).expect("started");
    let identity = world.pod("client").identity();
    let refused = proxy.logs.wait_for("the CA's refusal", |line| {
        line.contains("no certificate") && line.contains(&identity)
    });
    let refused = refused.expect("a line");
    assert!(refused.contains("Unauthenticated"), "{refused}");
}

#[test]
fn a_node_with_ztunnel_and_one_without_share_a_mesh() {
    let [ours, _] = options();
    let ztunnel = ProxyOptions::new(&programs().join("ztunnel"));
    let (mut world, cluster) = build();
    start_proxies(&mut world, &cluster, [ours, ztunnel]);
    let _servers =
        ["cart", "server"].map(|pod| (serve_http(world.pod(pod)), world.pod(pod).serve(PORT, echo)));
    // Ours calls.
    assert_served(&world);
    let logs = &world.nodes[0].proxy().logs;
    let identity_of = |direction: &str, field: &str| {
        let what = format!("a connection that is {direction}");
        let record = logs.wait_for_access(&what, |record| record.field("direction") == direction);
        record.expect("a record").field(field).to_owned()
    };
    assert_eq!(
        identity_of("outbound", "dst.identity"),
        world.pod("server").identity()
    );
    // Theirs calls.
    for family in Family::BOTH {
        let target = world.pod("cart").address(family, HTTP_PORT);
        let response = world.pod("server").run(http::get(target, "/"));
        assert_eq!(response.expect("a response").body.len(), BODY_BYTES);
    }
    assert_eq!(
        identity_of("inbound", "src.identity"),
        world.pod("server").identity()
    );
    assert_transfer(&world, "client", "server", Family::V4, [TRANSFER_BYTES; 2]);
    assert_transfer(&world, "server", "cart", Family::V6, [TRANSFER_BYTES; 2]);

    // Who may not call any more is told so, whoever carried the call and whoever received it.
    let open = |from: &str, to: &str| Live::open_between(&world, from, to, PORT);
    let [called, calling] = [("client", "server"), ("server", "cart")].map(|(from, to)| {
        (
            open(from, to).expect("allowed"),
            denied(&format!("not-{from}"), from),
        )
    });
    let ends = [called, calling].map(|(live, policy)| {
        cluster.create(POLICIES, &policy).expect("created");
        live.wait_for_end()
    });
    // Ztunnel makes an orderly end of our reset.
    assert_eq!(ends, [Err(io::ErrorKind::ConnectionReset), Ok(0)]);
    assert!(open("client", "server").is_err() && open("server", "cart").is_err());
    open("cart", "server").expect("allowed").finish();
}

/// What istiod made of the pods and services.
fn assert_mesh(shown: &Value) {
    let find = |list: &str, name: &str| {
        let all = shown[list].as_array().expect("a list");
        let found = all
            .iter()
            .find(|it| it["name"] == name && it["namespace"] == "shop");
        found.unwrap_or_else(|| panic!("no {name} in {all:#?}")).clone()
    };
    for (pod, protocol) in [
        ("client", "HBONE"),
        ("cart", "HBONE"),
        ("server", "HBONE"),
        ("closed", "TCP"),
    ] {
        let workload = find("workloads", pod);
        let facts = ["uid", "protocol", "serviceAccount", "status"].map(|field| workload[field].as_str());
        let uid = format!("Kubernetes//Pod/shop/{pod}");
        assert_eq!(facts, [Some(&*uid), Some(protocol), Some(pod), Some("Healthy")]);
    }
    let service = find("services", "shop");
    assert_eq!(service["hostname"], "shop.shop.svc.cluster.local");
    let endpoints = service["endpoints"].as_object().expect("endpoints");
    assert_eq!(endpoints.len(), 1, "{endpoints:?}");
    let certificates = shown["certificates"].as_array().expect("a list");
    for pod in ["client", "cart"] {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{pod}");
        let certificate = certificates.iter().find(|it| it["identity"] == *identity);
        assert_eq!(certificate.expect("its certificate")["state"], "Available");
    }
}

/// Its tables are those that the admin tests make of a dump.
fn assert_istioctl_reads(shown: &Value) {
    let program = programs().join("istioctl");
    // It looks at the clock, and all certificates are valid since istiod made its root, just now.
    let now = shown["certificates"][0]["rootCerts"][0]["validFrom"].as_str();
    for command in ["workloads", "services", "policies", "certificates", "connections"] {
        let table = istioctl::table(command, shown, now.expect("a time"));
        istioctl::assert_prints(program.as_os_str(), command, shown, &table);
    }
}
