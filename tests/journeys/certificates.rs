//! Certificates of a CA that both nodes share: renewed, rotated to another root and missed while traffic flows.
//!
//! | variable | what |
//! |---|---|
//! | `JOURNEYS_TTL_SECONDS` | life of the certificates that are renewed under load (default 4) |
//! | `JOURNEYS_DURATION_SECONDS` | how long that goes on (default 12) |

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use uztunnel_rig::authority::Authority;
use uztunnel_rig::ca::{Answer, Script, bundle};
use uztunnel_rig::istiod::ROOTS_FILE;
use uztunnel_rig::{Blueprint, ControlPlane, Family, ProxyOptions, World, http, wait_until};

use crate::admin::dump;
use crate::setup::{HTTP_PORT, number, options, serve_http};
use crate::traffic::Traffic;

/// gRPC's word for a server that is there but does not work.
const UNAVAILABLE: u32 = 14;

#[test]
fn short_lived_certificates_are_renewed_under_load_and_no_connection_fails() {
    let ttl = number("JOURNEYS_TTL_SECONDS", 4);
    let duration = number("JOURNEYS_DURATION_SECONDS", 12);
    let world = world(Duration::from_secs(ttl));
    let _server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let traffic = Traffic::start(&world, &["client", "cart"], target);
    let end = Instant::now() + Duration::from_secs(duration);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500).min(end - Instant::now()));
        traffic.assert_faultless();
    }
    let figures = traffic.end();
    let signed = ["client", "cart", "server"].map(|pod| requests(&world, pod));
    println!(
        "{duration} s with certificates of {ttl} s: {} connections, {} requests, {} failures; certificates of \
         client, cart and server: {signed:?}",
        figures.connections(),
        figures.requests(),
        figures.failures().len(),
    );
    // Each is renewed when half of its life is over, or a little earlier, and the last may be about to be.
    let halves = usize::try_from(duration * 2 / ttl).expect("a small number");
    let renewals = halves.saturating_sub(1);
    for signed in signed {
        assert!(signed > renewals, "{signed} certificates in {duration} s");
    }
    assert_never_without_certificate(&world);
}

#[test]
fn a_rotation_of_roots_under_load_fails_no_connection() {
    const LIFETIME: Duration = Duration::from_secs(6);
    let world = world(LIFETIME);
    let istiod = world.istiod();
    let _server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let traffic = Traffic::start(&world, &["client", "cart"], target);
    let (old, new) = (
        istiod.authority(),
        Arc::new(Authority::new("new root").expect("made")),
    );
    let both = bundle(&[&old, &new]);
    // As istiod does it, for the mesh and for itself: first everybody trusts both, then the new one signs, then the
    // old one goes.
    istiod.trust(&[&old, &new]).expect("written");
    for (signer, roots) in [(&old, both.clone()), (&new, both), (&new, new.pem())] {
        let is_last = roots == new.pem();
        istiod.ca.play(signing(signer, roots, LIFETIME));
        istiod.change_authority(signer);
        if is_last {
            istiod.trust(&[&new]).expect("written");
        }
        // Whoever it was connected to, it is with the new certificate that it comes back.
        istiod.go_away();
        istiod.come_back().expect("bound again");
        wait_for_renewals(&world);
        traffic.assert_faultless();
    }
    let figures = traffic.end();
    println!("{} connections, none failed", figures.connections());
    assert!(figures.connections() > 100, "{figures:?}");
    assert_never_without_certificate(&world);
}

#[test]
fn roots_that_are_swapped_in_one_step_part_the_mesh_only_until_a_handshake_tells() {
    let reason = "peer's certificate was issued by an unknown CA";
    assert_heals(|old, _| old.pem(), reason);
}

#[test]
fn a_client_whose_root_is_not_trusted_any_more_is_refused_only_until_a_handshake_tells() {
    let reason = "fatal alert UnknownCA (48): it does not know the CA of our certificate";
    assert_heals(|old, new| bundle(&[old, new]), reason);
}

/// The client has a certificate of the old root and trusts `clients`; the server has and trusts the new one only. The
/// client is refused for `reason`, and served once it has renewed its certificate for that.
fn assert_heals(clients: impl Fn(&Authority, &Authority) -> String, reason: &str) {
    // Not renewed for any other reason for longer than this takes.
    const LIFETIME: Duration = Duration::from_secs(60);
    let world = world(LIFETIME);
    let istiod = world.istiod();
    let _server = serve_http(world.pod("server"));
    let (old, new) = (
        istiod.authority(),
        Arc::new(Authority::new("new root").expect("made")),
    );
    assert_eq!(fetch(&world).expect("served"), 200);
    istiod.ca.play(signing(&old, clients(&old, &new), LIFETIME));
    // With its certificate a pod loses what it knew of roots.
    leave_and_return(&world, 0, "client");
    wait_until("a request that is answered", || fetch(&world).ok());
    let asked = requests(&world, "client");
    istiod.ca.play(signing(&new, new.pem(), LIFETIME));
    leave_and_return(&world, 1, "server");
    // One may be all that is refused, and its line comes after its end.
    wait_until("a connection that is refused for want of trust", || {
        let _ = fetch(&world);
        world.nodes[0].proxy().logs.contain(reason).then_some(())
    });
    wait_until("a request that is answered", || fetch(&world).ok());
    assert_eq!(requests(&world, "client"), asked + 1);
}

#[test]
fn while_the_ca_is_down_traffic_goes_on_and_a_new_pod_is_served_when_it_is_back() {
    let world = world(Duration::from_secs(3600));
    let _server = serve_http(world.pod("server"));
    assert_eq!(fetch(&world).expect("served"), 200);
    let istiod = world.istiod();
    istiod.go_away();
    assert_eq!(fetch(&world).expect("served"), 200);
    // The pod leaves, and its certificate with it; when it is back there is nobody to give it another one.
    leave_and_return(&world, 0, "client");
    let reason = format!(
        "identity error: cannot ask the CA: cannot connect to {}",
        istiod.address
    );
    // The line comes after the connection's end.
    wait_until("a connection that is refused for want of a certificate", || {
        fetch(&world).expect_err("no certificate, and never in plain text");
        world.nodes[0].proxy().logs.contain(&reason).then_some(())
    });
    istiod.come_back().expect("bound again");
    let back = Instant::now();
    wait_until("a request that is answered", || fetch(&world).ok());
    println!("served {:?} after the CA was back", back.elapsed());
}

#[test]
fn a_certificate_that_cannot_be_renewed_serves_until_it_expires_and_then_the_reason_is_clear() {
    const LIFETIME: Duration = Duration::from_secs(8);
    const WORDS: &str = "the signer is being moved";
    let world = world(LIFETIME);
    let _server = serve_http(world.pod("server"));
    assert_eq!(fetch(&world).expect("served"), 200);
    let istiod = world.istiod();
    istiod.ca.play(Script::failing(UNAVAILABLE, WORDS));
    let down = Instant::now();
    wait_until("a connection that fails", || fetch(&world).err());
    let served = down.elapsed();
    // Renewals are asked for before half of the life is over.
    assert!(served > LIFETIME / 2 - Duration::from_millis(500), "{served:?}");
    assert!(served < LIFETIME + Duration::from_secs(1), "{served:?}");
    let reason = format!("identity error: signing gRPC error (Unavailable): {WORDS}");
    wait_until("the reason", || {
        fetch(&world).expect_err("no certificate, and never in plain text");
        world.nodes[0].proxy().logs.contain(&reason).then_some(())
    });
    let signer = istiod.authority();
    istiod.ca.play(signing(&signer, signer.pem(), LIFETIME));
    wait_until("a request that is answered", || fetch(&world).ok());
}

#[test]
fn the_roots_of_the_system_are_trusted_when_they_are_asked_for() {
    let world = world_with(Duration::from_secs(3600), |node, scratch, options| {
        // Where the CA is among them, and where it is not.
        let store = match node {
            0 => scratch.join(ROOTS_FILE),
            _ => {
                let path = scratch.join("others.pem");
                let others = Authority::new("others").expect("made");
                std::fs::write(&path, others.pem()).expect("written");
                path
            }
        };
        options
            .variable("CA_ROOT_CA", "SYSTEM")
            .variable("SSL_CERT_FILE", &store.display().to_string())
    });
    wait_until("a request of the node that trusts", || {
        (requests(&world, "client") > 0).then_some(())
    });
    let handshake = format!(
        "cannot ask the CA: tls handshake with {} failed",
        world.istiod().address.ip()
    );
    let distrustful = world.nodes[1].proxy();
    let refused = distrustful.logs.wait_for("a CA that is not trusted", |line| {
        line.contains(&handshake) && line.contains("UnknownIssuer")
    });
    refused.expect("in the log");
    assert_eq!(requests(&world, "server"), 0, "nothing was sent to it");
}

/// Two nodes whose control plane gives certificates of this life.
fn world(lifetime: Duration) -> World {
    world_with(lifetime, |_, _, options| options)
}

/// `change` is given a node's number, the world's scratch folder and the options of its proxy.
pub fn world_with(lifetime: Duration, change: impl Fn(usize, &Path, ProxyOptions) -> ProxyOptions) -> World {
    let plan = Blueprint::two_nodes().control_plane(ControlPlane::Istiod);
    let mut world = World::build(plan).expect("a world");
    let signer = world.istiod().authority();
    let script = signing(&signer, signer.pem(), lifetime);
    world.istiod().ca.play(script);
    let options = options().into_iter().enumerate();
    let options: Vec<ProxyOptions> = options
        .map(|(node, options)| change(node, world.scratch(), options))
        .collect();
    world.start_proxies(&options).expect("ready proxies");
    world
}

/// The only pod of its identity leaves its node and comes back when its certificate is forgotten.
fn leave_and_return(world: &World, node: usize, name: &str) {
    let pod = world.pod(name);
    let agent = &world.nodes[node].agent;
    agent.delete(&pod.uid).expect("acknowledged");
    // Acknowledged before it is forgotten; a pod that is back by then is served with the old one.
    wait_until("the certificate to be forgotten", || {
        let dump = dump(world, node);
        let certificates = dump["certificates"].as_array().expect("a list");
        let identity = pod.identity();
        let is_the_pods = |it: &Value| it["identity"] == identity;
        (!certificates.iter().any(is_the_pods)).then_some(())
    });
    agent
        .add(&pod.uid, pod.workload_info(), pod.namespace.fd())
        .expect("acknowledged");
}

/// The status that `client` gets from `server`.
fn fetch(world: &World) -> std::io::Result<u16> {
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let response = world.pod("client").run(http::get(target, "/"));
    response.map(|response| response.status)
}

/// How many certificates were asked for on behalf of a pod.
fn requests(world: &World, pod: &str) -> usize {
    let identity = world.pod(pod).identity();
    let seen = world.istiod().ca.seen();
    seen.iter().filter(|request| request.name == identity).count()
}

/// Two more for each pod: the first may have been under way before.
fn wait_for_renewals(world: &World) {
    const PODS: [&str; 3] = ["client", "cart", "server"];
    let before = PODS.map(|pod| requests(world, pod));
    for (pod, before) in PODS.into_iter().zip(before) {
        wait_until(&format!("two renewals for {pod}"), || {
            (requests(world, pod) >= before + 2).then_some(())
        });
    }
}

fn assert_never_without_certificate(world: &World) {
    for node in &world.nodes {
        let failed = node.proxy().logs.access();
        let failed = failed.iter().find(|record| !record.field("error").is_empty());
        assert_eq!(failed, None, "node {}", node.index);
    }
}

fn signing(signer: &Arc<Authority>, roots: String, lifetime: Duration) -> Script {
    Script::of(Answer::Sign {
        signer: Arc::clone(signer),
        intermediates: Vec::new(),
        roots,
        lifetime,
        name: None,
    })
}
