//! Certificates of a CA that both nodes share: renewed, rotated to another root and missed while traffic flows.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uztunnel_rig::authority::{Authority, ServerCertificate};
use uztunnel_rig::ca::{Answer, Ca, Script, bundle};
use uztunnel_rig::{Blueprint, Family, ProxyOptions, World, http, wait_until};

use crate::setup::{HTTP_PORT, options, serve_http};

/// Both proxies ask for a new certificate about every 1.8 s.
const LIFETIME: Duration = Duration::from_secs(4);
const TOKEN: &str = "journey";

#[test]
fn renewals_and_a_rotation_of_roots_under_load_fail_no_connection() {
    let nodes = Nodes::start(LIFETIME);
    let world = &nodes.world;
    let _server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let stop = Arc::new(AtomicBool::new(false));
    let load = world.pod("client").spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) {
                let response = http::get(target, "/").await?;
                assert_eq!(response.status, 200);
                answered += 1;
            }
            std::io::Result::Ok(answered)
        }
    });
    nodes.wait_for_requests_more(2);
    let (old, new) = (&nodes.root, Arc::new(authority("new root")));
    let both = bundle(&[old, &new]);
    // As istiod does it: first everybody trusts both, then the new one signs, then the old one goes.
    for (signer, roots) in [(old, both.clone()), (&new, both), (&new, new.pem())] {
        nodes.play(signing(signer, roots, LIFETIME));
        // Two of each node: the first may have been under way before.
        nodes.wait_for_requests_more(2);
    }
    stop.store(true, Ordering::Relaxed);
    let answered = world
        .pod("client")
        .run(async move { load.await.expect("no panic") });
    let answered = answered.expect("no connection failed");
    assert!(answered > 100, "{answered} requests");
    for node in &world.nodes {
        let proxy = node.proxy.as_ref().expect("it runs");
        assert!(!proxy.logs.contain("no certificate"), "{}", proxy.logs.tail());
    }
}

#[test]
fn while_the_ca_is_down_traffic_goes_on_and_a_new_pod_is_served_when_it_is_back() {
    let mut nodes = Nodes::start(Duration::from_secs(3600));
    let _server = serve_http(nodes.world.pod("server"));
    let target = nodes.world.pod("server").address(Family::V4, HTTP_PORT);
    // Both pods have their certificates, each asked for on its own node before anybody connects.
    nodes.wait_for_requests(1);
    let answered = |world: &World| {
        world
            .pod("client")
            .run(http::get(target, "/"))
            .map(|it| it.status)
    };
    assert_eq!(answered(&nodes.world).expect("served"), 200);
    for ca in &mut nodes.cas {
        ca.stop();
    }
    // The pod leaves, and its certificate with it; when it is back there is nobody to give it another one.
    let client = nodes.world.pod("client");
    let agent = &nodes.world.nodes[0].agent;
    agent.delete(&client.uid).expect("acknowledged");
    agent
        .add(&client.uid, client.workload_info(), client.namespace.fd())
        .expect("acknowledged");
    let proxy = nodes.world.nodes[0].proxy.as_ref().expect("it runs");
    let reason = "identity error: cannot ask the CA: cannot connect to 127.0.0.1:";
    // The first connections may still meet the pod as it was before.
    wait_until("a connection that is refused for want of a certificate", || {
        answered(&nodes.world).expect_err("no certificate, and never in plain text");
        proxy.logs.contain(reason).then_some(())
    });
    nodes.restart();
    let back = Instant::now();
    wait_until("a request that is answered", || answered(&nodes.world).ok());
    println!("served {:?} after the CA was back", back.elapsed());
}

#[test]
fn the_roots_of_the_system_are_trusted_when_they_are_asked_for() {
    let nodes = Nodes::start_with(Duration::from_secs(3600), |node, scratch, options| {
        // Where the node's own CA is among them, and where it is not.
        let store = match node {
            0 => scratch.join("ca-root.pem"),
            _ => {
                let path = scratch.join("others.pem");
                std::fs::write(&path, authority("others").pem()).expect("written");
                path
            }
        };
        options
            .variable("CA_ROOT_CA", "SYSTEM")
            .variable("SSL_CERT_FILE", &store.display().to_string())
    });
    nodes.cas[0].wait_for_requests(1);
    let distrustful = nodes.world.nodes[1].proxy();
    let refused = distrustful.logs.wait_for("a CA that is not trusted", |line| {
        line.contains("cannot ask the CA: tls handshake with 127.0.0.1 failed")
            && line.contains("UnknownIssuer")
    });
    refused.expect("in the log");
    assert!(nodes.cas[1].seen().is_empty(), "nothing was sent to it");
}

/// Two nodes, each with a CA at its loopback address; one root signs for both.
pub struct Nodes {
    pub world: World,
    cas: Vec<Ca>,
    pub root: Arc<Authority>,
    tls: Authority,
}

impl Nodes {
    fn start(lifetime: Duration) -> Self {
        Self::start_with(lifetime, |_, _, options| options)
    }

    /// `change` is given a node's number, the world's scratch folder and the options of its proxy.
    pub fn start_with(
        lifetime: Duration,
        change: impl Fn(usize, &Path, ProxyOptions) -> ProxyOptions,
    ) -> Self {
        let mut world = World::build(Blueprint::two_nodes()).expect("a world");
        let (root, tls) = (Arc::new(authority("root")), authority("tls root"));
        let script = signing(&root, root.pem(), lifetime);
        let start = |namespace: &uztunnel_rig::Namespace| {
            namespace.run(|| Ca::start(server_certificate(&tls), script.clone()).expect("started"))
        };
        let cas: Vec<Ca> = world.nodes.iter().map(|node| start(&node.namespace)).collect();
        let file = |name: &str, content: &str| {
            let path = world.scratch().join(name);
            std::fs::write(&path, content).expect("written");
            path
        };
        let root_file = file("ca-root.pem", &tls.pem());
        let token_file = file("token", TOKEN);
        let options: Vec<ProxyOptions> = options()
            .into_iter()
            .zip(&cas)
            .map(|(options, ca)| with_ca(options, ca, &root_file, &token_file))
            .enumerate()
            .map(|(node, options)| change(node, world.scratch(), options))
            .collect();
        world.start_proxies(&options).expect("ready proxies");
        Self {
            world,
            cas,
            root,
            tls,
        }
    }

    fn play(&self, script: Script) {
        for ca in &self.cas {
            ca.play(script.clone());
        }
    }

    fn restart(&mut self) {
        for (node, ca) in self.world.nodes.iter().zip(&mut self.cas) {
            let certificate = server_certificate(&self.tls);
            let restarted = node.namespace.run(|| ca.restart(certificate));
            restarted.expect("restarted");
        }
    }

    /// So many of each node.
    fn wait_for_requests(&self, count: usize) {
        for ca in &self.cas {
            ca.wait_for_requests(count);
        }
    }

    /// So many more of each node.
    fn wait_for_requests_more(&self, count: usize) {
        let counts: Vec<usize> = self.cas.iter().map(|ca| ca.seen().len()).collect();
        for (ca, before) in self.cas.iter().zip(counts) {
            ca.wait_for_requests(before + count);
        }
    }
}

fn with_ca(options: ProxyOptions, ca: &Ca, root: &Path, token: &Path) -> ProxyOptions {
    options
        .variable("FAKE_CA", "false")
        .variable("CA_ADDRESS", &format!("https://{}", ca.address()))
        .variable("CA_ROOT_CA", &root.display().to_string())
        .variable("AUTH_TOKEN", &token.display().to_string())
}

fn signing(signer: &Arc<Authority>, roots: String, lifetime: Duration) -> Script {
    let mut script = Script::of(Answer::Sign {
        signer: Arc::clone(signer),
        intermediates: Vec::new(),
        roots,
        lifetime,
        name: None,
    });
    script.token = Some(TOKEN.to_owned());
    script
}

fn authority(name: &str) -> Authority {
    Authority::new(name).expect("made")
}

fn server_certificate(tls: &Authority) -> ServerCertificate {
    tls.server(&["127.0.0.1"]).expect("signed")
}
