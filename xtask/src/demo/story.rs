//! The first part: connections of every kind, who met, and what somebody on the wire could see.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uztunnel_rig::applications::Server;
use uztunnel_rig::pattern::Pattern;
use uztunnel_rig::{Family, Membership, ProxyOptions, Redirect, Result, RigError, World, http};

use super::HTTP_PORT;

const BODY_BYTES: usize = 1024;
const BULK_PORT: u16 = 9000;
const BULK_BYTES: u64 = 64 << 20;
const REQUESTS: usize = 100;

/// Sent inside every request; a capture looks for it.
const SECRET: &str = "the-secret-recipe-of-the-shop";

pub fn introduce(world: &World, redirect: Redirect) {
    println!("\nTwo nodes joined by one wire, four pods. All are network namespaces of this machine.");
    for pod in &world.pods {
        let membership = match pod.spec.membership {
            Membership::Inside => pod.identity(),
            Membership::Outside | Membership::KnownPlain | Membership::Unredirected => {
                "not in the mesh".to_owned()
            }
        };
        let addresses = format!("{} {}", pod.addresses.v4, pod.addresses.v6);
        println!(
            "  node {}  {:<9} {addresses:<36} {membership}",
            pod.spec.node, pod.spec.name
        );
    }
    let rules = match redirect {
        Redirect::Nftables => "nftables",
        Redirect::Iptables => "iptables",
    };
    println!("web and shop carry the redirect rules of istio-cni ({rules}); a CNI agent announces them.");
}

pub fn tell(world: &mut World, options: &[ProxyOptions; 2]) -> Result<()> {
    let capture = world.nodes[0].capture(1, SECRET.as_bytes())?;
    world.start_proxies(options)?;
    println!("\nOne uztunnel on each node, ready:");
    for (node, options) in world.nodes.iter().zip(options) {
        let driver = options
            .backend
            .map_or("its own choice", uztunnel_rig::Backend::name);
        println!(
            "  node {}  process {}, driver {driver}",
            node.index,
            node.proxy().pid()
        );
    }
    let _servers = serve(world);

    println!("\nInside the mesh, while the wire is captured:");
    let shop = world.pod("shop").address(Family::V4, HTTP_PORT);
    request(world, "web", "shop by pod address, IPv4", shop, REQUESTS)?;
    let shop = world.pod("shop").address(Family::V6, HTTP_PORT);
    request(world, "web", "shop by pod address, IPv6", shop, REQUESTS)?;
    request(
        world,
        "web",
        "shop by service address",
        world.service("shop", Family::V4, 80),
        REQUESTS,
    )?;
    bulk(world)?;
    who_met(world)?;
    let summary = capture.stop()?.check_only_tls();
    let summary = summary.map_err(|fault| RigError::new("checking that the wire carried only TLS", fault))?;
    println!(
        "\nThe wire, every byte of it: {} TLS records in {} directions of TCP connections ({:.1} MB), {}nothing else, \
         and `{SECRET}` was not readable in it.",
        summary.records,
        summary.flows,
        summary.bytes as f64 / 1e6,
        match summary.control_plane_flows {
            0 => String::new(),
            flows => format!("TLS in {flows} directions to and from the control plane, "),
        }
    );

    println!("\nAcross the border of the mesh, in plaintext (nothing else is possible there):");
    let capture = world.nodes[0].capture(1, SECRET.as_bytes())?;
    let stranger = world.pod("stranger").address(Family::V4, HTTP_PORT);
    request(
        world,
        "web",
        "stranger, an address that nobody announced",
        stranger,
        1,
    )?;
    request(
        world,
        "stranger",
        "web, from outside",
        world.pod("web").address(Family::V4, HTTP_PORT),
        1,
    )?;
    if !capture.stop()?.marker_in_plain_flow() {
        return Err(RigError::new(
            "checking the capture",
            "it did not see plaintext that was there",
        ));
    }
    println!("  the same capture does read `{SECRET}` in these two.");
    Ok(())
}

fn serve(world: &World) -> Vec<Server> {
    let mut servers: Vec<Server> = world
        .pods
        .iter()
        .map(|pod| pod.serve(HTTP_PORT, |stream, peer| http::serve(stream, peer, BODY_BYTES)))
        .collect();
    servers.push(world.pod("shop").serve(BULK_PORT, |mut stream, _| async move {
        let received = Pattern::new(1).receive(&mut stream).await?;
        stream.write_u64(received).await?;
        stream.shutdown().await
    }));
    servers
}

/// Requests over one connection; the server must have seen the client's own address.
fn request(world: &World, client: &str, what: &str, target: SocketAddr, count: usize) -> Result<()> {
    let pod = world.pod(client);
    let responses = pod.run(async move {
        let mut connection = http::Client::connect(target).await?;
        let mut last = connection.get(&format!("/{SECRET}")).await?;
        for _ in 1..count {
            last = connection.get(&format!("/{SECRET}")).await?;
        }
        std::io::Result::Ok(last)
    });
    let failed = |cause: String| RigError::new(format!("{client} asking {what} ({target})"), cause);
    let last = responses.map_err(|error| failed(error.to_string()))?;
    let source: SocketAddr = last
        .source
        .parse()
        .map_err(|_| failed(format!("source {:?}", last.source)))?;
    let own = pod
        .addresses
        .of(if target.is_ipv4() { Family::V4 } else { Family::V6 });
    if last.status != 200 || last.body.len() != BODY_BYTES || source.ip() != own {
        return Err(failed(format!(
            "{} with {} bytes, seen from {source}",
            last.status,
            last.body.len()
        )));
    }
    println!(
        "  {client} -> {what}: {count} x 200 OK with 1 KiB, the server saw {}",
        source.ip()
    );
    Ok(())
}

fn bulk(world: &World) -> Result<()> {
    let target = world.pod("shop").address(Family::V4, BULK_PORT);
    let arrived = world.pod("web").run(async move {
        let mut stream = TcpStream::connect(target).await?;
        Pattern::new(1).send(&mut stream, BULK_BYTES).await?;
        stream.shutdown().await?;
        stream.read_u64().await
    });
    match arrived {
        Ok(BULK_BYTES) => {
            println!(
                "  web -> shop: {} MiB in one stream, every byte checked on arrival",
                BULK_BYTES >> 20
            );
            Ok(())
        }
        Ok(other) => Err(RigError::new(
            "sending bulk",
            format!("{other} of {BULK_BYTES} bytes arrived"),
        )),
        Err(error) => Err(RigError::new("sending bulk", error)),
    }
}

/// The identities, as each side logged them for itself.
fn who_met(world: &World) -> Result<()> {
    println!("\nWho met, as each proxy logged it:");
    for (node, direction) in [(0, "outbound"), (1, "inbound")] {
        let record = world.nodes[node]
            .proxy()
            .logs
            .wait_for_access("the connection", |record| {
                record.message == "connection complete"
                    && record.field("direction") == direction
                    && !record.field("src.identity").is_empty()
            })?;
        println!(
            "  node {node}  {direction:<8}  {} -> {}",
            record.field("src.identity"),
            record.field("dst.identity")
        );
    }
    Ok(())
}
