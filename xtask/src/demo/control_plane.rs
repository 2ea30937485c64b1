//! The control plane's part, with `--control-plane`: what it was asked and sent, a policy that comes and goes, and its
//! absence. Everything is read from its own record, from the proxies' logs, or tried.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use uztunnel_rig::istiod::{ADDRESS, AUTHORIZATION, Istiod, deny_namespace};
use uztunnel_rig::{PATIENCE, Result, RigError, World, http};

use super::HTTP_PORT;

/// The namespace of all pods.
const NAMESPACE: &str = "shop";

pub fn show(world: &World) -> Result<()> {
    let istiod = world.istiod();
    println!(
        "\nThe control plane, a stand-in for istiod at {} on node 0: discovery and certificates over gRPC, TLS and \
         tokens.",
        istiod.address
    );
    what_it_was_asked(istiod)?;
    let _server = world
        .pod("shop")
        .serve(HTTP_PORT, |stream, peer| http::serve(stream, peer, 1024));
    a_policy(world, istiod)?;
    an_absence(world, istiod)
}

fn what_it_was_asked(istiod: &Istiod) -> Result<()> {
    for sent in istiod.sent() {
        let what = match sent.type_url.as_str() {
            ADDRESS => "workloads and services",
            AUTHORIZATION => "policies",
            other => other,
        };
        let answer = wait_for("the answer to a response", || {
            let mut answered = istiod.answered().into_iter();
            answered.find(|answered| answered.nonce == sent.nonce)
        })?;
        let answer = answer
            .error
            .map_or("accepted".to_owned(), |error| format!("refused: {error}"));
        println!(
            "  stream {}: {} {what} sent, {answer}",
            sent.stream,
            sent.names.len()
        );
    }
    let seen = istiod.ca.seen();
    let identities: BTreeSet<&str> = seen.iter().map(|request| request.name.as_str()).collect();
    for identity in identities {
        println!("  a certificate was asked for {identity}");
    }
    println!(
        "  {} of {} requests for certificates signed",
        istiod.ca.signed(),
        seen.len()
    );
    Ok(())
}

/// Shuts the namespace, and opens it again.
fn a_policy(world: &World, istiod: &Istiod) -> Result<()> {
    let policy = deny_namespace(NAMESPACE);
    let name = policy.name.clone();
    for nonce in istiod.update(AUTHORIZATION, vec![policy]) {
        istiod.wait_for_answer(&nonce);
    }
    let pushed = Instant::now();
    wait_for("the policy to refuse a request", || request(world).err())?;
    let record = world.nodes[1]
        .proxy()
        .logs
        .wait_for_access("the refusal", |record| {
            record.field("direction") == "inbound" && !record.field("error").is_empty()
        })?;
    println!(
        "  policy {name} pushed: web -> shop is refused {:.0} ms later; node 1 says: {}",
        pushed.elapsed().as_secs_f64() * 1e3,
        record.field("error")
    );
    istiod.remove(AUTHORIZATION, &[name.as_str()]);
    wait_for("the policy to be gone", || request(world).ok())?;
    println!("  policy {name} taken back: web -> shop is served again");
    Ok(())
}

fn an_absence(world: &World, istiod: &Istiod) -> Result<()> {
    let (streams, sent_before) = (istiod.streams_made(), istiod.sent().len());
    istiod.go_away();
    for _ in 0..10 {
        request(world).map_err(|error| RigError::new("a request without the control plane", error))?;
    }
    println!("  away: 10 of 10 requests are served with what is known");
    istiod.come_back()?;
    let back = Instant::now();
    let nodes = world.nodes.len();
    // One response for each of the two types and each node.
    let again = wait_for("both nodes to be back", || {
        let sent = istiod.sent().split_off(sent_before);
        let (streams_made, answers) = (istiod.streams_made() - streams, sent.len());
        (streams_made >= nodes && answers >= 2 * nodes).then_some(sent)
    })?;
    let resources: usize = again.iter().map(|sent| sent.names.len()).sum();
    println!(
        "  back: both nodes ask again within {:.0} ms and say what they hold; {resources} resources had to be sent",
        back.elapsed().as_secs_f64() * 1e3
    );
    Ok(())
}

fn request(world: &World) -> std::io::Result<()> {
    let target = world.service("shop", uztunnel_rig::Family::V4, 80);
    let response = world.pod("web").run(http::get(target, "/"))?;
    match response.status {
        200 => Ok(()),
        other => Err(std::io::Error::other(format!("status {other}"))),
    }
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            return Err(RigError::new(
                format!("waiting for {what}"),
                format!("not within {PATIENCE:?}"),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
