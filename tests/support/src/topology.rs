//! Links, addresses and routes of the namespaces.
//!
//! Every pod hangs on its node by one veth pair, every pair of nodes is joined by one veth pair, the wire. All
//! forwarding is routed (no bridge), as in the simplest cluster networks. Duplicate address detection is off:
//! IPv6 addresses work at once. Gateways are answered by ARP and neighbour discovery of the kernel.

use std::fmt::Write;

use crate::addresses::{self, Addresses};
use crate::namespace::{Namespace, run_with_input};
use crate::{Result, RigError};

/// The pod's only interface, seen from inside.
pub const POD_INTERFACE: &str = "eth0";

/// Settings of every namespace, before any interface exists (new interfaces inherit `default`).
const SYSCTLS: [(&str, &str); 8] = [
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv4/ip_local_port_range", "10000 65535"),
    // Thousands of short connections between one pair of addresses: ports in TIME_WAIT are taken again.
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/tcp_max_syn_backlog", "4096"),
    // What Linux has by itself: namespaces would inherit the machine's. BBR arms a timer for each segment, on the CPU of
    // whoever sends.
    ("net/ipv4/tcp_congestion_control", "cubic"),
];

const FORWARDING: [(&str, &str); 2] = [
    ("net/ipv4/conf/all/forwarding", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// Settings that every namespace gets when it is created.
pub fn prepare(namespace: &Namespace) -> Result<()> {
    namespace.write_sysctls(&SYSCTLS)?;
    run_with_input("ip", &["-n", namespace.name(), "link", "set", "lo", "up"], "").map(drop)
}

/// Gives node `index` its own addresses and makes it forward.
pub fn set_up_node(namespace: &Namespace, index: usize) -> Result<()> {
    namespace.write_sysctls(&FORWARDING)?;
    let own = addresses::node(index);
    batch(
        namespace,
        &format!(
            "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\n",
            own.v4, own.v6
        ),
    )
}

/// Name of the interface on a node that leads to `peer`.
pub fn wire_interface(peer: usize) -> String {
    format!("wire{peer}")
}

/// Joins two nodes by a veth pair and routes their pods over it.
pub fn set_up_wire(nodes: [&Namespace; 2], indices: [usize; 2]) -> Result<()> {
    let names = [wire_interface(indices[1]), wire_interface(indices[0])];
    add_veth([nodes[0], nodes[1]], [&names[0], &names[1]])?;
    for side in 0..2 {
        let (own, peer) = (indices[side], indices[1 - side]);
        let name = &names[side];
        let subnet = addresses::subnet(peer);
        let peer_address = addresses::node(peer).v4;
        let mut commands = String::new();
        line(
            &mut commands,
            format_args!("addr add {}/64 dev {name} nodad", addresses::wire(own)),
        );
        line(&mut commands, format_args!("link set {name} up"));
        line(
            &mut commands,
            format_args!("route add 198.18.{subnet}.0/24 via {peer_address} dev {name} onlink"),
        );
        let via = addresses::wire(peer);
        line(
            &mut commands,
            format_args!("-6 route add fd00:198:18:{subnet:x}::/64 via {via} dev {name}"),
        );
        batch(nodes[side], &commands)?;
    }
    Ok(())
}

/// Hangs a pod on its node. `link` is unique on the node.
pub fn set_up_pod(
    node: &Namespace,
    node_index: usize,
    pod: &Namespace,
    link: usize,
    own: Addresses,
) -> Result<()> {
    let name = format!("pod{link}");
    add_veth([node, pod], [&name, POD_INTERFACE])?;
    let mut commands = String::new();
    line(
        &mut commands,
        format_args!("addr add {}/64 dev {name} nodad", addresses::GATEWAY_V6),
    );
    line(&mut commands, format_args!("link set {name} up"));
    line(&mut commands, format_args!("route add {}/32 dev {name}", own.v4));
    line(
        &mut commands,
        format_args!("-6 route add {}/128 dev {name}", own.v6),
    );
    batch(node, &commands)?;

    let gateway = addresses::node(node_index).v4;
    let mut commands = String::new();
    line(
        &mut commands,
        format_args!("addr add {}/32 dev {POD_INTERFACE}", own.v4),
    );
    line(
        &mut commands,
        format_args!("addr add {}/128 dev {POD_INTERFACE} nodad", own.v6),
    );
    line(&mut commands, format_args!("link set {POD_INTERFACE} up"));
    line(
        &mut commands,
        format_args!("route add default via {gateway} dev {POD_INTERFACE} onlink"),
    );
    let gateway = addresses::GATEWAY_V6;
    line(
        &mut commands,
        format_args!("-6 route add default via {gateway} dev {POD_INTERFACE}"),
    );
    batch(pod, &commands)
}

fn line(commands: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(commands, "{text}").expect("invariant: writing to a string cannot fail");
}

fn add_veth(namespaces: [&Namespace; 2], names: [&str; 2]) -> Result<()> {
    let arguments = [
        "link",
        "add",
        names[0],
        "netns",
        namespaces[0].name(),
        "type",
        "veth",
        "peer",
        "name",
        names[1],
        "netns",
        namespaces[1].name(),
    ];
    run_with_input("ip", &arguments, "").map(drop)
}

/// Runs `ip` commands in a namespace, one a line; a line that begins with `-6` is about IPv6. One `ip` process per
/// family, as its batch mode takes the family only from the command line.
pub fn batch(namespace: &Namespace, commands: &str) -> Result<()> {
    let (v6, v4): (Vec<&str>, Vec<&str>) = commands.lines().partition(|line| line.starts_with("-6 "));
    for (is_v6, lines) in [(false, v4), (true, v6)] {
        if lines.is_empty() {
            continue;
        }
        let input: String = lines
            .iter()
            .map(|line| format!("{}\n", line.trim_start_matches("-6 ")))
            .collect();
        let mut arguments = vec!["-n", namespace.name(), "-batch", "-"];
        if is_v6 {
            arguments.insert(0, "-6");
        }
        run_with_input("ip", &arguments, &input).map_err(|error| {
            RigError::new(format!("ip commands in {}:\n{input}", namespace.name()), error)
        })?;
    }
    Ok(())
}
