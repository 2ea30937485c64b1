//! The proxy configuration of the mesh: a file (`./etc/istio/config/mesh`, its `defaultConfig`) and the
//! variable `PROXY_CONFIG`, which goes before it key by key; and the proxy metadata made from both and from
//! `ISTIO_META_*`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use super::ConfigError;
use super::env::Environment;

const MESH_FILE: &str = "etc/istio/config/mesh";
const METADATA_PREFIX: &str = "ISTIO_META_";

/// Unknown keys are ignored: the document is the mesh's, and most of it is about sidecars.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ProxyConfig {
    pub discovery_address: Option<String>,
    pub proxy_admin_port: Option<u16>,
    pub stats_port: Option<u16>,
    pub concurrency: Option<u16>,
    pub proxy_metadata: BTreeMap<String, Scalar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    default_config: Option<ProxyConfig>,
}

/// A text, also where somebody forgot the quotes around a number or a boolean.
#[derive(Debug)]
pub(super) struct Scalar(pub String);

impl ProxyConfig {
    pub fn load(env: &Environment) -> Result<Self, ConfigError> {
        let file = env.directory.join(MESH_FILE);
        let failed = |reason: String| {
            ConfigError::ProxyConfig(format!(
                "failed parsing mesh config file {}: {reason}",
                file.display()
            ))
        };
        let base = match std::fs::read_to_string(&file) {
            Ok(text) if text.trim().is_empty() => Self::default(),
            Ok(text) => {
                let mesh: MeshConfig = parse(&text).map_err(failed)?;
                mesh.default_config.unwrap_or_default()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(failed(error.to_string())),
        };
        match env.get_filled("PROXY_CONFIG") {
            None => Ok(base),
            Some(text) => {
                let over: Self = parse(text).map_err(|reason| {
                    ConfigError::ProxyConfig(format!("failed parsing proxy config env: {reason}"))
                })?;
                Ok(over.over(base))
            }
        }
    }

    fn over(self, base: Self) -> Self {
        let mut proxy_metadata = base.proxy_metadata;
        proxy_metadata.extend(self.proxy_metadata);
        Self {
            discovery_address: self.discovery_address.or(base.discovery_address),
            proxy_admin_port: self.proxy_admin_port.or(base.proxy_admin_port),
            stats_port: self.stats_port.or(base.stats_port),
            concurrency: self.concurrency.or(base.concurrency),
            proxy_metadata,
        }
    }

    /// The metadata announced to the control plane: the document's (without one `ISTIO_META_` each), then
    /// the environment's (without any).
    pub fn metadata(&self, env: &Environment) -> BTreeMap<String, String> {
        let document = self.proxy_metadata.iter().map(|(key, value)| {
            (
                key.strip_prefix(METADATA_PREFIX).unwrap_or(key).to_owned(),
                value.0.clone(),
            )
        });
        let variables = env.prefixed(METADATA_PREFIX).map(|(key, value)| {
            (
                key.trim_start_matches(METADATA_PREFIX).to_owned(),
                value.to_owned(),
            )
        });
        document.chain(variables).collect()
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| error.without_snippet().to_string())
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyScalar;
        impl<'de> Visitor<'de> for AnyScalar {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.to_owned()))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
        }
        deserializer.deserialize_any(AnyScalar)
    }
}
