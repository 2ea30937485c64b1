//! The `forwarded` header (RFC 7239) as the mesh uses it: `for="<ip>:<port>"`, and `;host=<service>` when known.

use std::net::SocketAddr;

/// The header of a CONNECT that carries a connection from `for_` to the service `host`.
pub fn forwarded_value(for_: SocketAddr, host: Option<&str>) -> String {
    match host {
        // RFC 7239 wants a host in quotes only when it has a port; the mesh's readers expect none.
        Some(host) => format!("for=\"{for_}\";host={host}"),
        None => format!("for=\"{for_}\""),
    }
}

/// The host that a `forwarded` header names: that of the first element which has one. `None` when it is empty or
/// not visible ASCII.
pub fn forwarded_host(value: &str) -> Option<String> {
    let host = value.split([';', ',']).find_map(|part| {
        let (name, host) = part.split_once('=')?;
        // RFC 7239 section 4: parameter names are case-insensitive.
        name.trim().eq_ignore_ascii_case("host").then_some(host)
    })?;
    let host = host.trim().trim_matches('"');
    let usable = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic());
    usable.then(|| host.to_owned())
}
