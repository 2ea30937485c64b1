//! The rules that istio-cni leaves in an enrolled pod: redirection to the proxy's ports, its marks, and the
//! policy routing that brings replies to spoofed source addresses back.
//!
//! The rule texts beside this file are what istio-cni's own node agent programmed (IPv6 and DNS capture on); only
//! packet counters are left out.

use crate::Result;
use crate::namespace::Namespace;
use crate::topology::batch;

/// Which of the two rule sets a pod gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Redirect {
    #[default]
    Nftables,
    Iptables,
}

const NFTABLES: &str = include_str!("redirect/pod.nft");
const IPTABLES_V4: &str = include_str!("redirect/pod.iptables");
const IPTABLES_V6: &str = include_str!("redirect/pod.ip6tables");

/// Replies of connections that the proxy opened with a foreign source address (connection mark 0x111) are
/// delivered locally instead of being routed away.
const ROUTING: &str = "\
rule add fwmark 0x111/0xfff pref 32764 lookup 100
route add local 0.0.0.0/0 dev lo table 100
-6 rule add fwmark 0x111/0xfff pref 32764 lookup 100
-6 route add local ::/0 dev lo table 100
";

/// Enrols the pod: its traffic goes to the ports 15001, 15006 and 15008 from now on.
pub fn enrol(pod: &Namespace, redirect: Redirect) -> Result<()> {
    match redirect {
        Redirect::Nftables => {
            pod.run_program("nft", &["-f", "-"], NFTABLES)?;
        }
        Redirect::Iptables => {
            pod.run_program("iptables-restore", &["--noflush", "--wait"], IPTABLES_V4)?;
            pod.run_program("ip6tables-restore", &["--noflush", "--wait"], IPTABLES_V6)?;
        }
    }
    batch(pod, ROUTING)
}
