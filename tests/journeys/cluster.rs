//! The real istiod on a real Kubernetes API server: `cargo xtask journeys --cluster FOLDER`, with the programs in that
//! folder (`docs/testing.md` says where they come from). All other journeys have a stand-in that says the same things.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use uztunnel_rig::applications::echo;
use uztunnel_rig::cluster::Cluster;
use uztunnel_rig::{Blueprint, Family, Membership, PodSpec, World, wait_until};

use crate::admin::dump;
use crate::policies::{Live, PORT};
use crate::setup::{BODY_BYTES, assert_tunnelled, fetch, options, serve_http};

const POLICIES: &str = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies";
const PEER_AUTHENTICATIONS: &str = "/apis/security.istio.io/v1/namespaces/shop/peerauthentications";

/// Who is called `client` may not call anybody.
fn about_client(name: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name},
        "spec": {
            "action": "DENY",
            "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}],
        },
    })
}

/// Two nodes under a real control plane. `variables`: what both proxies are told besides.
fn start(variables: &[(&str, &str)]) -> (World, Cluster) {
    let blueprint = Blueprint::two_nodes().pod(PodSpec::new("closed", 1).membership(Membership::KnownPlain));
    let mut world = World::build(blueprint).expect("a world");
    let cluster = Cluster::start(&world, &programs()).expect("a control plane");
    let [first, second] = options();
    let options = [(0, first), (1, second)].map(|(node, options)| {
        let options = cluster.options(node, options).expect("a token");
        variables
            .iter()
            .fold(options, |options, (name, value)| options.variable(name, value))
    });
    world.start_proxies(&options).expect("ready proxies");
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
#[ignore = "needs etcd, kube-apiserver and istiod"]
fn what_istiod_makes_of_pods_services_and_policies_is_in_force_on_both_nodes() {
    let (world, mut cluster) = start(&[]);
    let _servers = [
        serve_http(world.pod("server")),
        world.pod("server").serve(PORT, echo),
    ];
    // Routing, and certificates of istiod's CA: both nodes check each other's.
    assert_served(&world);
    assert_tunnelled(&world);
    let shown = dump(&world, 0);
    assert_mesh(&shown);
    assert_istioctl_reads(&shown, &world);
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
        .create(POLICIES, &about_client("no-entry"))
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
    cluster.create(POLICIES, &about_client("later")).expect("created");
    wait_until("the new one's policy", || open("client").err());
    other.finish();
}

#[test]
#[ignore = "needs etcd, kube-apiserver and istiod"]
fn istiod_tells_of_what_is_asked_for_and_of_its_changes() {
    let (world, cluster) = start(&[("XDS_ON_DEMAND", "true")]);
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
#[ignore = "needs etcd, kube-apiserver and istiod"]
fn istiods_certificates_are_renewed_under_open_connections() {
    let (world, _cluster) = start(&[("SECRET_TTL", "6s")]);
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

/// Its tables have a line for each pod of the mesh and for each certificate.
fn assert_istioctl_reads(shown: &Value, world: &World) {
    let file = world.scratch().join("dump.json");
    std::fs::write(&file, shown.to_string()).expect("written");
    let table = |of: &str| {
        let mut command = Command::new(programs().join("istioctl"));
        command.args(["ztunnel-config", of, "-f"]).arg(&file);
        let output = command.output().expect("istioctl runs");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaint}");
        String::from_utf8(output.stdout).expect("text")
    };
    let workloads = table("workloads");
    for pod in ["client", "cart", "server"] {
        let is_of_pod = |line: &&str| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            cells.starts_with(&["shop", pod]) && cells.last() == Some(&"HBONE")
        };
        assert!(workloads.lines().any(|line| is_of_pod(&line)), "{workloads}");
    }
    let certificates = table("certificates");
    let client = "spiffe://cluster.local/ns/shop/sa/client";
    assert!(
        certificates.lines().any(|line| line.starts_with(client)),
        "{certificates}"
    );
}
