//! `cargo xtask demo`: the main job on real traffic, shown to a person in about a minute.
//!
//! Two nodes and four pods: `web` and `shop` are in the mesh, `visitor` and `stranger` are not. Nothing that it says
//! is asserted from knowledge: identities come from the proxies' access logs, what crossed the wire from a capture,
//! what the control plane did from its record, figures from measurements made on the spot.

mod control_plane;
mod figures;
mod play;
mod story;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uztunnel_rig::{
    Backend, Blueprint, ControlPlane, Membership, PodSpec, ProxyOptions, Redirect, ServiceSpec, World,
    guardian, sys,
};

use crate::packages;
use crate::process::{Outcome, build_proxy};

pub const HTTP_PORT: u16 = 8080;

/// A demo that nobody ends takes itself down.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// With `--keep` somebody plays with it.
const LIMIT_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Ctrl-C was seen: from now on the thread that waits for it has the say.
static LEAVING: AtomicBool = AtomicBool::new(false);

struct Arguments {
    redirect: Redirect,
    control_plane: ControlPlane,
    keep: bool,
    backends: [Backend; 2],
    /// Shows another program with the same contract.
    binary: Option<PathBuf>,
}

pub fn run(arguments: &[String]) -> Outcome {
    let arguments = parse(arguments)?;
    packages::ensure(&[packages::BUILD, packages::NETWORK, packages::INTEROP])?;
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => build_proxy("release")?,
    };
    guardian::set_limit(if arguments.keep { LIMIT_KEPT } else { LIMIT });
    leave_on_interrupt().map_err(|error| format!("preparing for Ctrl-C: {error}"))?;
    let options = arguments
        .backends
        .map(|backend| ProxyOptions::new(&binary).backend(backend));
    let shown = World::build(blueprint(&arguments)).and_then(|mut world| {
        let shown = show(&mut world, &arguments, &options);
        stop_if_interrupted();
        shown
    });
    stop_if_interrupted();
    shown.map_err(|error| error.to_string())?;
    println!("\nEverything is removed again: processes, namespaces, files.");
    Ok(())
}

fn show(world: &mut World, arguments: &Arguments, options: &[ProxyOptions; 2]) -> uztunnel_rig::Result<()> {
    story::introduce(world, arguments.redirect);
    story::tell(world, options)?;
    if arguments.control_plane == ControlPlane::Istiod {
        control_plane::show(world)?;
    }
    figures::show(world)?;
    if arguments.keep {
        play::invite(world);
    }
    Ok(())
}

/// What fails while everything is taken away is no news, and what is left is not to be taken away twice.
fn stop_if_interrupted() {
    while LEAVING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

fn blueprint(arguments: &Arguments) -> Blueprint {
    Blueprint {
        nodes: 2,
        label: "demo".to_owned(),
        ..Blueprint::default()
    }
    .pod(PodSpec::new("web", 0))
    .pod(PodSpec::new("visitor", 0).membership(Membership::Outside))
    .pod(PodSpec::new("shop", 1))
    .pod(PodSpec::new("stranger", 1).membership(Membership::Outside))
    .service(ServiceSpec::new("shop", &[(80, HTTP_PORT)], &["shop"]))
    .redirect(arguments.redirect)
    .control_plane(arguments.control_plane)
}

/// Ctrl-C at any moment: the guardian cleans up, then this process ends.
fn leave_on_interrupt() -> std::io::Result<()> {
    sys::block_interrupts()?;
    std::thread::spawn(|| {
        while !sys::wait_for_interrupt(Duration::from_secs(3600)) {}
        LEAVING.store(true, Ordering::SeqCst);
        println!("\ninterrupted: cleaning up");
        guardian::clean_up_now();
        println!("Everything is removed again: processes, namespaces, files.");
        std::process::exit(130);
    });
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        redirect: Redirect::Nftables,
        control_plane: ControlPlane::File,
        keep: false,
        backends: [Backend::Uring; 2],
        binary: None,
    };
    let mut given = arguments.iter();
    let mut io = "mixed";
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--iptables" => parsed.redirect = Redirect::Iptables,
            "--control-plane" => parsed.control_plane = ControlPlane::Istiod,
            "--keep" => parsed.keep = true,
            "--binary" => parsed.binary = Some(given.next().ok_or("--binary needs a path")?.into()),
            "--io" => io = given.next().ok_or("--io needs a value: uring, epoll or mixed")?,
            other => {
                return Err(format!(
                    "demo {other}: expected --control-plane, --iptables, --keep, --binary PATH or --io uring|epoll|mixed"
                ));
            }
        }
    }
    parsed.backends = match io {
        "uring" => [Backend::Uring; 2],
        "epoll" => [Backend::Epoll; 2],
        "mixed" => [Backend::Uring, Backend::Epoll],
        other => return Err(format!("--io {other}: expected uring, epoll or mixed")),
    };
    Ok(parsed)
}
