//! What this version cannot do yet: settings that ask for it stop the start, because ignoring them would
//! silently change what the proxy does. What the stock chart sets without being asked only warns.

use std::collections::BTreeMap;

use super::ConfigError;
use super::env::Environment;

pub(super) fn check(
    env: &Environment,
    metadata: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    check_mode(env)?;
    let dns = check_dns(metadata, warnings)?;
    if !env.flag_or("ENABLE_PROXY", true)? {
        return Err(if dns {
            ConfigError::unsupported(
                "ENABLE_PROXY=false",
                "the DNS proxy does not exist yet, set it to true",
            )
        } else {
            ConfigError::Invalid("ztunnel run without any servers enabled: set ENABLE_PROXY=true".to_owned())
        });
    }
    check_control_plane(env, dns, warnings)?;
    check_security(env)?;
    if env.flag_or("UNSTABLE_ENABLE_SOCKS5", false)? {
        return Err(ConfigError::unsupported(
            "UNSTABLE_ENABLE_SOCKS5=true",
            "unset it, or set it to false",
        ));
    }
    let own_identity = ["POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT"];
    if own_identity.iter().all(|name| env.get(name).is_some()) {
        warnings.push(
            "POD_NAME, POD_NAMESPACE and SERVICE_ACCOUNT are set, but this version does not serve tunnels to \
             its own ports yet"
                .to_owned(),
        );
    }
    Ok(())
}

fn check_mode(env: &Environment) -> Result<(), ConfigError> {
    let dedicated = env.parse_or("PROXY_MODE", false, |text| match text {
        "shared" => Ok(false),
        "dedicated" => Ok(true),
        _ => Err("PROXY_MODE must be one of dedicated, shared".to_owned()),
    })?;
    if !dedicated {
        return Ok(());
    }
    let Some(info) = env.get("PROXY_WORKLOAD_INFO") else {
        return Err(ConfigError::Invalid(
            "PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO to be set".to_owned(),
        ));
    };
    if info.splitn(3, '/').count() < 3 {
        return Err(ConfigError::Invalid(format!(
            "PROXY_WORKLOAD_INFO must match the format 'namespace/name/service-account' (got {info})"
        )));
    }
    Err(ConfigError::unsupported(
        "PROXY_MODE=dedicated",
        "set PROXY_MODE=shared, or unset it",
    ))
}

/// On unless the metadata says otherwise; so it is on in every stock installation.
fn check_dns(metadata: &BTreeMap<String, String>, warnings: &mut Vec<String>) -> Result<bool, ConfigError> {
    let enabled = metadata
        .get("DNS_CAPTURE")
        .is_none_or(|value| value.eq_ignore_ascii_case("true"));
    if let Some(address) = metadata.get("DNS_PROXY_ADDR") {
        let numeric = address
            .strip_prefix("localhost:")
            .map_or(address.clone(), |it| format!("127.0.0.1:{it}"));
        if numeric.parse::<std::net::SocketAddr>().is_err() {
            return Err(ConfigError::Invalid(format!(
                "failed to parse DNS_PROXY_ADDR: {address} (expected localhost:PORT or IP:PORT)"
            )));
        }
    }
    if enabled {
        warnings.push(
            "this version has no DNS proxy yet: captured DNS queries find no server; switch the capture off \
             in istio-cni, or set ISTIO_META_DNS_CAPTURE=false if it is off"
                .to_owned(),
        );
    }
    Ok(enabled)
}

fn check_control_plane(env: &Environment, dns: bool, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
    let on_demand = env.flag_or("XDS_ON_DEMAND", false)?;
    if on_demand && dns {
        return Err(ConfigError::Invalid(
            "DNS proxy does not currently support on-demand mode: set ISTIO_META_DNS_CAPTURE=false (and switch the \
             capture off in istio-cni), or XDS_ON_DEMAND=false"
                .to_owned(),
        ));
    }
    if on_demand && env.get("XDS_ADDRESS") == Some("") {
        return Err(ConfigError::Invalid(
            "XDS_ON_DEMAND=true, but XDS_ADDRESS is empty, so there is nobody to ask: set XDS_ADDRESS, or \
             XDS_ON_DEMAND=false"
                .to_owned(),
        ));
    }
    let local = ["LOCAL_XDS_PATH", "LOCAL_XDS"];
    if env.get("XDS_ADDRESS") == Some("") && local.iter().all(|name| env.get_filled(name).is_none()) {
        warnings.push(
            "XDS_ADDRESS is empty and neither LOCAL_XDS_PATH nor LOCAL_XDS is set: nothing is known about \
             the mesh, so no pod can be served"
                .to_owned(),
        );
    }
    Ok(())
}

fn check_security(env: &Environment) -> Result<(), ConfigError> {
    if env.get("TLS12_ENABLED") == Some("true") {
        return Err(ConfigError::unsupported(
            "TLS12_ENABLED=true",
            "unset it; TLS 1.3 is always on",
        ));
    }
    Ok(())
}
