//! The target of a CONNECT: `ip:port`, `[v6]:port` or `host:port` (RFC 9110 9.3.6, RFC 3986 3.2).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::limits::AUTHORITY_BYTES_MAX;

/// Where a peer wants to be connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    Ip(SocketAddr),
    /// `host` is spelled as it came. Its case means nothing (RFC 9110 section 4.2.3): who looks for it passes over that.
    Host {
        host: String,
        port: u16,
    },
}

/// Why a text is no authority of a CONNECT. The text itself is part of the message, at most
/// `AUTHORITY_BYTES_MAX` of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuthority {
    #[error("empty authority (expected ip:port, [ipv6]:port or host:port)")]
    Empty,
    #[error("authority of {bytes} bytes (at most {AUTHORITY_BYTES_MAX})")]
    TooLong { bytes: usize },
    #[error("authority {0:?} names no port (expected ip:port, [ipv6]:port or host:port)")]
    NoPort(String),
    #[error("authority {0:?} has an invalid port (expected 1 to 65535)")]
    BadPort(String),
    #[error("authority {0:?} has an invalid IPv6 address (expected [ipv6]:port)")]
    BadIpv6(String),
    #[error("authority {0:?} has an invalid IPv4 address")]
    BadIpv4(String),
    #[error("authority {0:?} has an invalid host name (expected letters, digits, '-', '_' and '.')")]
    BadHost(String),
}

impl Authority {
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl FromStr for Authority {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidAuthority::Empty);
        }
        if text.len() > AUTHORITY_BYTES_MAX {
            return Err(InvalidAuthority::TooLong { bytes: text.len() });
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(InvalidAuthority::NoPort(text.to_owned()));
        };
        if let Some(inner) = host.strip_prefix('[') {
            // `Ipv6Addr` knows no zone, so that `[fe80::1%eth0]` is refused as well.
            let ip: Option<Ipv6Addr> = inner.strip_suffix(']').and_then(|ip| ip.parse().ok());
            let ip = match ip {
                Some(ip) => ip,
                None if text.ends_with(']') => return Err(InvalidAuthority::NoPort(text.to_owned())),
                None => return Err(InvalidAuthority::BadIpv6(text.to_owned())),
            };
            return Ok(Self::Ip(SocketAddr::new(IpAddr::V6(ip), parse_port(text, port)?)));
        }
        if host.contains(':') {
            return Err(InvalidAuthority::BadIpv6(text.to_owned()));
        }
        let port = parse_port(text, port)?;
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(Self::Ip(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        check_host(text, host)?;
        let host = host.to_owned();
        Ok(Self::Host { host, port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// RFC 9110 9.3.6: a server rejects an empty or invalid port. Digits only: `u16::from_str` takes a plus sign.
fn parse_port(text: &str, port: &str) -> Result<u16, InvalidAuthority> {
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        Ok(_) | Err(_) => Err(InvalidAuthority::BadPort(text.to_owned())),
    }
}

fn check_host(text: &str, host: &str) -> Result<(), InvalidAuthority> {
    let permitted = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if host.is_empty() || host.starts_with('.') || host.contains("..") || !host.bytes().all(permitted) {
        return Err(InvalidAuthority::BadHost(text.to_owned()));
    }
    // No top-level domain is a number, so this was meant to be an address: `10.0.0`, `10.0.0.256`.
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidAuthority::BadIpv4(text.to_owned()));
    }
    Ok(())
}
