//! The control plane's part of the configuration: local state, servers, trust and credentials.

use std::path::PathBuf;

use super::ConfigError;
use super::env::Environment;
use super::mesh_config::ProxyConfig;
use super::sections::{AuthToken, CertificateSource, Control, LocalSource, Server, TrustRoots};
use super::values;

const ROOTS: &str = "var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "var/run/secrets/tokens/istio-token";

pub(super) fn control(env: &Environment, proxy: &ProxyConfig) -> Result<Control, ConfigError> {
    let ca_address = env.get("CA_ADDRESS").unwrap_or_else(|| default_address(env));
    let ca = server(env, "CA", ca_address)?;
    Ok(Control {
        local_state: local_state(env)?,
        xds: server(env, "XDS", xds_address(env, proxy))?,
        ca: match ca {
            // Checked all the same.
            _ if env.flag_or("FAKE_CA", false)? => CertificateSource::Fake,
            Some(ca) => CertificateSource::Server(ca),
            None => {
                return Err(ConfigError::Invalid(
                    "ca_address must be set to use CA: set CA_ADDRESS, or FAKE_CA=true for tests".to_owned(),
                ));
            }
        },
        auth_token: auth_token(env),
    })
}

fn xds_address<'a>(env: &'a Environment, proxy: &'a ProxyConfig) -> &'a str {
    env.get("XDS_ADDRESS")
        .or(proxy.discovery_address.as_deref().filter(|it| !it.is_empty()))
        .unwrap_or_else(|| default_address(env))
}

fn default_address(env: &Environment) -> &'static str {
    match env.get("KUBERNETES_SERVICE_HOST") {
        Some(_) => "https://istiod.istio-system.svc:15012",
        None => "https://localhost:15012",
    }
}

fn local_state(env: &Environment) -> Result<Option<LocalSource>, ConfigError> {
    match (env.get_filled("LOCAL_XDS_PATH"), env.get_filled("LOCAL_XDS")) {
        (Some(_), Some(_)) => Err(ConfigError::Invalid(
            "only one of LOCAL_XDS_PATH or LOCAL_XDS may be set".to_owned(),
        )),
        (Some(path), None) => Ok(Some(LocalSource::Path(PathBuf::from(path)))),
        (None, Some(text)) => Ok(Some(LocalSource::Text(text.to_owned()))),
        (None, None) => Ok(None),
    }
}

fn server(env: &Environment, kind: &str, address: &str) -> Result<Option<Server>, ConfigError> {
    let headers = headers(env, &format!("{kind}_HEADER_"))?;
    let other_hostname = env.parse(&format!("ALT_{kind}_HOSTNAME"), hostname)?;
    let invalid = |reason| ConfigError::variable(&format!("{kind}_ADDRESS"), address, reason);
    let Some(uri) = values::server_uri(address).map_err(invalid)? else {
        return Ok(None);
    };
    let roots = roots(env, &format!("{kind}_ROOT_CA"));
    Ok(Some(Server {
        uri,
        roots,
        other_hostname,
        headers,
    }))
}

/// A path if it leads to something, the system's store by its name, else the certificates themselves.
fn roots(env: &Environment, name: &str) -> TrustRoots {
    match env.get(name) {
        None => TrustRoots::File(env.directory.join(ROOTS)),
        Some("SYSTEM") => TrustRoots::System,
        Some(text) => existing(env, text).map_or_else(|| TrustRoots::Pem(text.to_owned()), TrustRoots::File),
    }
}

/// What a text names if it is a path and no literal: not the working directory, which the empty text would lead to.
fn existing(env: &Environment, text: &str) -> Option<PathBuf> {
    let path = env.directory.join(text);
    (!text.is_empty() && path.exists() && !path.is_dir()).then_some(path)
}

fn auth_token(env: &Environment) -> Option<AuthToken> {
    match env.get("AUTH_TOKEN") {
        None => existing(env, TOKEN).map(AuthToken::File),
        Some("") => None,
        Some(text) => {
            let file = existing(env, text).map(AuthToken::File);
            Some(file.unwrap_or_else(|| AuthToken::Literal(text.to_owned())))
        }
    }
}

fn hostname(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("expected a DNS name such as istiod.istio-system.svc".to_owned())
    }
}

/// Headers for every request. gRPC keeps names that end with `-bin` for binary values.
fn headers(env: &Environment, prefix: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let header = |(key, value): (&str, &str)| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let name = format!("{prefix}{key}");
        let key = key.to_ascii_lowercase();
        if key.is_empty() || !key.bytes().all(legal) || key.ends_with("-bin") {
            return Err(ConfigError::HeaderKey(name));
        }
        if !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(ConfigError::HeaderValue(value.to_owned()));
        }
        Ok((key, value.to_owned()))
    };
    env.prefixed(prefix).map(header).collect()
}
