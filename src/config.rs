//! Layer `config`: what the process was told by its environment, and by the mesh configuration file.
//!
//! Read once at start, on the main thread; plain values afterwards. Each layer is given its own section.
//! Invariant: whatever is set is checked, and a setting that this version cannot honour stops the start
//! instead of being ignored. The variables are those of ztunnel; our own begin with `UZTUNNEL_`.

mod env;
mod error;
mod mesh_config;
mod own;
mod sections;
mod servers;
mod supported;
mod threads;
mod values;

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

pub use env::Environment;
pub use error::ConfigError;
pub use sections::{
    AuthToken, CertificateSource, Compliance, Control, Drain, IoChoice, Keepalive, LocalSource, LogFormat,
    Logging, Node, OriginalSource, Pods, Ports, RecordLayer, RingFeatures, Server, Sockets, Tls, TrustRoots,
    Worker,
};

use mesh_config::ProxyConfig;
use own::OwnVariables;

/// Everything the process was told.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: Node,
    pub ports: Ports,
    pub sockets: Sockets,
    pub worker: Worker,
    pub pods: Pods,
    pub tls: Tls,
    pub control: Control,
    pub logging: Logging,
    pub drain: Drain,
    /// Of the command line; only shown.
    pub arguments: Vec<String>,
    /// Settings that are legal but do not have the effect somebody may expect, one sentence each.
    pub warnings: Vec<String>,
}

impl Config {
    pub fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        let own = OwnVariables::read(env)?;
        let proxy = ProxyConfig::load(env)?;
        let metadata = proxy.metadata(env);
        let mut warnings = Vec::new();
        supported::check(env, &metadata, &mut warnings)?;
        Ok(Self {
            node: node(env, metadata),
            ports: ports(&proxy),
            sockets: sockets(env, &mut warnings)?,
            worker: worker(env, &own, proxy.concurrency)?,
            pods: Pods {
                zds_socket: PathBuf::from(env.text_or("INPOD_UDS", "/var/run/ztunnel/ztunnel.sock")),
            },
            tls: Tls {
                records: own.records,
                records_per_key_max: own.records_per_key_max,
                certificate_lifetime: duration_or(env, "SECRET_TTL", Duration::from_secs(24 * 60 * 60))?,
                compliance: compliance(env)?,
                revocations: env.get_filled("CRL_PATH").map(PathBuf::from),
            },
            control: servers::control(env, &proxy)?,
            logging: logging(env)?,
            drain: Drain {
                deadline: drain_deadline(env)?,
            },
            arguments: env.arguments.clone(),
            warnings,
        })
    }
}

fn node(env: &Environment, metadata: std::collections::BTreeMap<String, String>) -> Node {
    let owned = |name: &str| env.get(name).map(str::to_owned);
    let cluster_id = owned("ISTIO_META_CLUSTER_ID").or_else(|| owned("CLUSTER_ID"));
    Node {
        name: owned("NODE_NAME"),
        network: env.text_or("NETWORK", ""),
        cluster_id: cluster_id.unwrap_or_else(|| "Kubernetes".to_owned()),
        cluster_domain: env.text_or("CLUSTER_DOMAIN", "cluster.local"),
        trust_domain: env.text_or("TRUST_DOMAIN", "cluster.local"),
        pod_name: owned("POD_NAME"),
        pod_namespace: owned("POD_NAMESPACE"),
        service_account: owned("SERVICE_ACCOUNT"),
        instance_ip: env.text_or("INSTANCE_IP", "1.1.1.1"),
        istio_version: env.text_or("ISTIO_META_ISTIO_VERSION", "unknown"),
        metadata,
        metadata_json: env
            .prefixed("ISTIO_METAJSON_")
            .map(|(key, json)| (key.to_owned(), json.to_owned()))
            .collect(),
    }
}

fn ports(proxy: &ProxyConfig) -> Ports {
    Ports {
        outbound: 15001,
        inbound_plaintext: 15006,
        inbound_hbone: 15008,
        dns: 15053,
        admin: proxy.proxy_admin_port.unwrap_or(15000),
        stats: proxy.stats_port.unwrap_or(15020),
        readiness: 15021,
    }
}

fn sockets(env: &Environment, warnings: &mut Vec<String>) -> Result<Sockets, ConfigError> {
    let keepalive = Keepalive {
        idle: duration_or(env, "KEEPALIVE_TIME", Duration::from_secs(180))?,
        interval: duration_or(env, "KEEPALIVE_INTERVAL", Duration::from_secs(180))?,
        retries: env.parse_or("KEEPALIVE_RETRIES", 9, values::number(0..=u32::MAX))?,
    };
    let user_timeout = keepalive
        .idle
        .saturating_add(keepalive.interval.saturating_mul(keepalive.retries));
    let is_on = env.flag_or("KEEPALIVE_ENABLED", true)?;
    Ok(Sockets {
        packet_mark: match env.parse_or("PACKET_MARK", 1337, values::number(0..=u32::MAX))? {
            0 => None,
            mark => Some(mark),
        },
        original_source: match env.parse("ENABLE_ORIG_SRC", values::flag)? {
            Some(true) => OriginalSource::Required,
            Some(false) => OriginalSource::Never,
            None => OriginalSource::BestEffort,
        },
        ipv6: env.flag_or("IPV6_ENABLED", true)?,
        keepalive: is_on.then(|| as_the_kernel_takes_it(keepalive, env, warnings)),
        user_timeout: env
            .flag_or("USER_TIMEOUT_ENABLED", false)?
            .then_some(user_timeout),
        port_reuse: env.flag_or("INPOD_PORT_REUSE", true)?,
    })
}

/// What Linux takes of `TCP_KEEPIDLE` and `TCP_KEEPINTVL`, in whole seconds, and of `TCP_KEEPCNT`. Whatever is outside is
/// refused, and the socket keeps what the host sets: two hours until the first probe.
const KEEPALIVE_TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(32_767);
const KEEPALIVE_RETRIES: RangeInclusive<u32> = 1..=127;

/// ztunnel starts with any values, so they stop no start here; but keepalive shall not silently be as if it was off.
fn as_the_kernel_takes_it(asked: Keepalive, env: &Environment, warnings: &mut Vec<String>) -> Keepalive {
    let (times, retries) = (KEEPALIVE_TIMES, KEEPALIVE_RETRIES);
    Keepalive {
        idle: within(&times, asked.idle, "KEEPALIVE_TIME", env, warnings),
        interval: within(&times, asked.interval, "KEEPALIVE_INTERVAL", env, warnings),
        retries: within(&retries, asked.retries, "KEEPALIVE_RETRIES", env, warnings),
    }
}

fn within<T: Ord + Copy + Debug>(
    range: &RangeInclusive<T>,
    asked: T,
    name: &str,
    env: &Environment,
    warnings: &mut Vec<String>,
) -> T {
    let (least, most) = (*range.start(), *range.end());
    let taken = asked.clamp(least, most);
    if taken != asked {
        let value = env.text_or(name, "");
        warnings.push(format!(
            "{name}={value} is used as {taken:?}: the kernel takes {least:?} to {most:?}"
        ));
    }
    taken
}

fn worker(env: &Environment, own: &OwnVariables, concurrency: Option<u16>) -> Result<Worker, ConfigError> {
    // RFC 9113, 6.9.2: a window has at most 2^31-1 bytes; that of a connection begins with 65,535, and 4.2:
    // a frame limit is between 2^14 and 2^24-1.
    let stream_window = values::number(1..=WINDOW_BYTES_MAX);
    let connection_window = values::number(65_535..=WINDOW_BYTES_MAX);
    let frame = values::number(16_384..=16_777_215);
    let streams = env.parse_or(
        "POOL_MAX_STREAMS_PER_CONNECTION",
        100,
        values::number(0..=u16::MAX),
    )?;
    Ok(Worker {
        threads: threads::worker_threads(env, concurrency)?,
        io: own.io,
        ring_features: own.ring_features,
        stream_window_bytes: env.parse_or("HTTP2_STREAM_WINDOW_SIZE", 4 << 20, stream_window)?,
        connection_window_bytes: env.parse_or("HTTP2_CONNECTION_WINDOW_SIZE", 16 << 20, connection_window)?,
        frame_bytes_max: env.parse_or("HTTP2_FRAME_SIZE", 1 << 20, frame)?,
        // A session always takes the stream it was opened for.
        session_streams_max: streams.max(1),
        session_idle_timeout: duration_or(env, "POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300))?,
        localhost_app_tunnel: env.flag_or("LOCALHOST_APP_TUNNEL", true)?,
        response_baggage: env.flag_or("ENABLE_RESPONSE_BAGGAGE", true)?,
        on_demand: env.flag_or("XDS_ON_DEMAND", false)?,
        policy_info_logging: env.get("AUTHZ_POLICY_INFO_LOGGING") == Some("true"),
    })
}

const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;

/// A policy that nobody knows must not be taken for none.
fn compliance(env: &Environment) -> Result<Compliance, ConfigError> {
    env.parse_or("COMPLIANCE_POLICY", Compliance::Default, |text| match text {
        "" => Ok(Compliance::Default),
        "pqc" => Ok(Compliance::PostQuantum),
        _ => Err("expected pqc, or nothing for no further restrictions".to_owned()),
    })
}

fn logging(env: &Environment) -> Result<Logging, ConfigError> {
    let filter = env.get_filled("RUST_LOG").unwrap_or("info");
    if let Err(error) = filter.parse::<tracing_subscriber::filter::EnvFilter>() {
        let reason = format!("{error}; expected a list such as info or warn,access=info");
        return Err(ConfigError::variable("RUST_LOG", filter, reason));
    }
    let format = match env.get("LOG_FORMAT") {
        Some("json") => LogFormat::Json,
        Some(_) | None => LogFormat::Plain,
    };
    Ok(Logging {
        filter: filter.to_owned(),
        format,
    })
}

/// Some seconds less than Kubernetes gives, so that connections are recorded before the process is killed.
fn drain_deadline(env: &Environment) -> Result<Duration, ConfigError> {
    let grace_secs = env.parse("TERMINATION_GRACE_PERIOD_SECONDS", values::number(0..=u64::MAX))?;
    let derived_secs = match grace_secs {
        Some(secs) if secs > 10 => secs - 5,
        Some(secs) => secs.saturating_sub(1).max(1),
        None => 5,
    };
    duration_or(
        env,
        "CONNECTION_TERMINATION_DEADLINE",
        Duration::from_secs(derived_secs).min(values::DURATION_MAX),
    )
}

fn duration_or(env: &Environment, name: &str, default: Duration) -> Result<Duration, ConfigError> {
    env.parse_or(name, default, values::duration)
}

#[cfg(test)]
mod tests;
