//! The process's own HTTP servers: bound at start, or the start fails.
//!
//! Main thread. A port that somebody else has is fatal: a proxy that cannot be asked is none that can be operated.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use crate::config::Config;
use crate::control::pods::listen_on_any_family;
use crate::limits;
use crate::sys::socket::{self, ListenError, ListenSpec};

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[error("{server} server starts: {source}{advice}")]
pub struct ServerError {
    server: &'static str,
    advice: &'static str,
    source: ListenError,
}

/// The listening sockets of all servers.
pub struct Sockets {
    pub readiness: OwnedFd,
    pub metrics: OwnedFd,
    /// One for each family that the loopback has.
    pub admin: Vec<OwnedFd>,
}

/// Binds everything.
pub fn bind(config: &Config) -> Result<Sockets, ServerError> {
    let ports = &config.ports;
    let ipv6 = config.sockets.ipv6;
    Ok(Sockets {
        readiness: bind_any("readiness", "", ipv6, ports.readiness)?,
        metrics: bind_any(
            "metrics",
            " (statsPort in PROXY_CONFIG chooses another port)",
            ipv6,
            ports.stats,
        )?,
        admin: bind_loopback(ipv6 && loopback_has_ipv6(), ports.admin)?,
    })
}

fn bind_any(
    server: &'static str,
    advice: &'static str,
    ipv6: bool,
    port: u16,
) -> Result<OwnedFd, ServerError> {
    let listening = listen_on_any_family(ipv6, |ipv6| spec(socket::any_address(ipv6, port)));
    listening.map(|it| it.fd).map_err(|source| ServerError {
        server,
        advice,
        source,
    })
}

fn bind_loopback(ipv6: bool, port: u16) -> Result<Vec<OwnedFd>, ServerError> {
    let mut listening = Vec::new();
    let addresses: &[IpAddr] = if ipv6 {
        &[IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
    } else {
        &[IpAddr::V4(Ipv4Addr::LOCALHOST)]
    };
    for address in addresses {
        match socket::listen(&spec(SocketAddr::new(*address, port))) {
            Ok(it) => listening.push(it.fd),
            Err(error) if address.is_ipv6() && is_family_missing(&error) => {
                tracing::debug!("no IPv6 on the loopback: the admin server listens on IPv4 only");
            }
            Err(source) => {
                return Err(ServerError {
                    server: "admin",
                    advice: " (proxyAdminPort in PROXY_CONFIG chooses another port)",
                    source,
                });
            }
        }
    }
    Ok(listening)
}

fn spec(address: SocketAddr) -> ListenSpec {
    ListenSpec {
        namespace: None,
        address,
        reuse_port: false,
        mark: None,
        transparent: Some(false),
        backlog: limits::LISTEN_BACKLOG,
    }
}

/// Unless the kernel says otherwise.
fn loopback_has_ipv6() -> bool {
    match std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6") {
        Ok(text) => text.trim() != "1",
        // No such file: no IPv6 at all, which binding will tell as well.
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            tracing::warn!(%error, "cannot tell whether the loopback has IPv6: assuming that it has");
            true
        }
    }
}

fn is_family_missing(error: &ListenError) -> bool {
    let source = match error {
        ListenError::Create { source, .. } | ListenError::Bind { source, .. } => source,
        ListenError::Namespace { .. } | ListenError::Option { .. } | ListenError::Listen { .. } => {
            return false;
        }
    };
    let missing = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL];
    source.raw_os_error().is_some_and(|code| missing.contains(&code))
}
