//! The third part, with `--keep`: the world stays, with commands to play with, until Ctrl-C.

use std::thread;
use std::time::Duration;

use uztunnel_rig::{Family, World, http};

use super::HTTP_PORT;

pub fn invite(world: &World) -> ! {
    let _servers: Vec<_> = world
        .pods
        .iter()
        .map(|pod| pod.serve(HTTP_PORT, |stream, peer| http::serve(stream, peer, 1024)))
        .collect();
    let web = world.pod("web").namespace.name();
    let stranger = world.pod("stranger").namespace.name();
    let node = world.nodes[0].namespace.name();
    let shop = world.pod("shop").address(Family::V4, HTTP_PORT);
    let shop_v6 = world.pod("shop").address(Family::V6, HTTP_PORT);
    let service = world.service("shop", Family::V4, 80);
    println!("\nIt keeps running. In another terminal:");
    println!("  ip netns exec {web} curl -i http://{shop}/            # in the mesh: see x-source");
    println!("  ip netns exec {web} curl -i http://{service}/            # by service address");
    println!("  ip netns exec {web} curl -i 'http://{shop_v6}/'");
    println!("  ip netns exec {stranger} curl -i http://{shop}/            # from outside, in plaintext");
    println!("  ip netns exec {node} curl -i http://127.0.0.1:15021/healthz/ready");
    println!("  ip netns exec {web} nft list ruleset; ip netns exec {web} ip rule");
    println!("  ip netns exec {node} tcpdump -ni wire1 -X port 15008   # (package tcpdump) nothing readable");
    println!("  ip netns exec {web} bash                               # a shell as the application has it");
    println!("\nAccess-log lines appear below. Ctrl-C removes everything.\n");
    let mut shown: Vec<usize> = world
        .nodes
        .iter()
        .map(|node| node.proxy().logs.lines().len())
        .collect();
    loop {
        for (node, shown) in world.nodes.iter().zip(&mut shown) {
            let lines = node.proxy().logs.lines();
            for line in &lines[*shown..] {
                println!("node {}: {line}", node.index);
            }
            *shown = lines.len();
        }
        thread::sleep(Duration::from_millis(200));
    }
}
