//! Certificates, pods and settings of this process in the shapes of the dump.
//!
//! Specification: sections 5.4, 5.5 and 5.7 of the admin contract. Invariant: nothing secret is in it. Private keys
//! cannot be reached from here, tokens are not shown, and of headers that carry credentials only the name is.

use std::collections::HashMap;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::bridge::traffic::{LiveConnection, Original};
use crate::bridge::{PodInfo, PodUid};
use crate::clock::Duration;
use crate::config::{CertificateSource, Config, OriginalSource, Server, TrustRoots};
use crate::control::admin::live::PodConnections;
use crate::control::certificates::Standing;
use crate::control::roster::Listed;
use crate::tls::{CertifiedIdentity, Description};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateShape<'a> {
    cert_chain: Vec<Pem>,
    identity: &'a str,
    root_certs: Vec<Pem>,
    state: String,
}

impl<'a> CertificateShape<'a> {
    pub fn new(identity: &'a str, standing: &Standing<CertifiedIdentity>) -> Self {
        let mut shape = Self {
            cert_chain: Vec::new(),
            identity,
            root_certs: Vec::new(),
            state: String::new(),
        };
        match standing {
            Standing::Available(certificate) => {
                shape.cert_chain = certificate
                    .certificates
                    .cert
                    .iter()
                    .filter_map(Pem::new)
                    .collect();
                shape.root_certs = certificate
                    .root_certificates
                    .iter()
                    .filter_map(Pem::new)
                    .collect();
                shape.state.push_str("Available");
            }
            Standing::Initializing => shape.state.push_str("Initializing"),
            Standing::Unavailable(error) => shape.state = format!("Unavailable: {error}"),
        }
        shape
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pem {
    expiration_time: String,
    /// Encoded twice: readers undo both.
    pem: String,
    serial_number: String,
    valid_from: String,
}

impl Pem {
    fn new(certificate: &CertificateDer<'_>) -> Option<Self> {
        let description = Description::of(certificate)?;
        Some(Self {
            expiration_time: rfc_3339(description.expires),
            pem: STANDARD.encode(pem(certificate)),
            serial_number: description.serial_number,
            valid_from: rfc_3339(description.valid_from),
        })
    }
}

/// With lines of 60 characters, as ztunnel dumps them: RFC 7468 would have 64, and asks readers to take any length.
fn pem(certificate: &[u8]) -> String {
    let encoded = STANDARD.encode(certificate);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(60));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Times of certificates have no fractions of a second. Years beyond four digits cannot be written.
fn rfc_3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

/// Every pod by its uid.
pub struct Pods<'a>(pub &'a Listed, pub &'a HashMap<PodUid, PodConnections>);

impl Serialize for Pods<'_> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let up = self.0.up.iter();
        let up = up.map(|(uid, info)| (uid, PodShape::up(info, self.1.get(uid))));
        let pending = self.0.pending.iter();
        let pending = pending.map(|(uid, info)| (uid, PodShape::pending(info)));
        let mut pods: Vec<(&PodUid, PodShape<'_>)> = up.chain(pending).collect();
        pods.sort_by_key(|(uid, _)| *uid);
        serializer.collect_map(pods.iter().map(|(uid, shape)| (uid.as_str(), shape)))
    }
}

#[derive(Serialize)]
struct PodShape<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Connections<'a>>,
    info: InfoShape<'a>,
    state: &'static str,
}

#[derive(Serialize, Default)]
struct Connections<'a> {
    inbound: Vec<ConnectionShape<'a>>,
    outbound: Vec<ConnectionShape<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionShape<'a> {
    actual_dst: SocketAddr,
    original_dst: OriginalShape<'a>,
    protocol: &'static str,
    src: SocketAddr,
}

/// Null when it is not told.
#[derive(Serialize)]
#[serde(untagged)]
enum OriginalShape<'a> {
    Address(SocketAddr),
    Host(Option<&'a str>),
}

impl<'a> ConnectionShape<'a> {
    fn list(connections: &'a [LiveConnection]) -> Vec<Self> {
        connections.iter().map(Self::new).collect()
    }

    fn new(connection: &'a LiveConnection) -> Self {
        Self {
            actual_dst: connection.actual,
            original_dst: match &connection.original {
                Original::Address(address) => OriginalShape::Address(*address),
                Original::Host(host) => OriginalShape::Host(host.as_deref()),
            },
            protocol: connection.protocol.text(),
            src: connection.source,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InfoShape<'a> {
    name: &'a str,
    namespace: &'a str,
    service_account: &'a str,
}

impl<'a> PodShape<'a> {
    fn up(info: &'a PodInfo, live: Option<&'a PodConnections>) -> Self {
        let connections = live.map_or_else(Connections::default, |live| Connections {
            inbound: ConnectionShape::list(&live.inbound),
            outbound: ConnectionShape::list(&live.outbound),
        });
        Self {
            connections: Some(connections),
            state: "Up",
            ..Self::pending(info)
        }
    }

    fn pending(info: &'a PodInfo) -> Self {
        let info = InfoShape {
            name: &info.name,
            namespace: &info.namespace,
            service_account: &info.service_account,
        };
        Self {
            connections: None,
            info,
            state: "Pending",
        }
    }
}

/// The settings in effect, in the words of ztunnel. What this program does not have is off, or null.
pub fn settings(config: &Config) -> Value {
    let Config {
        node,
        ports,
        sockets,
        worker,
        control,
        ..
    } = config;
    let any = if sockets.ipv6 { "[::]" } else { "0.0.0.0" };
    let on_any = |port: u16| format!("{any}:{port}");
    let localhost = |port: u16| json!({"Localhost": [sockets.ipv6, port]});
    let (ca, is_fake) = match &control.ca {
        CertificateSource::Fake => (None, true),
        CertificateSource::Server(server) => (Some(server), false),
    };
    let xds = control.xds.as_ref();
    let mut captured = ports.captured();
    captured.sort_unstable();
    Value::from_iter([
        ("adminAddr", json!(localhost(ports.admin))),
        (
            "altCaHostname",
            json!(ca.and_then(|it| it.other_hostname.as_deref())),
        ),
        (
            "altXdsHostname",
            json!(xds.and_then(|it| it.other_hostname.as_deref())),
        ),
        ("caAddress", json!(ca.map(|it| &it.uri))),
        ("caHeaders", json!(headers(ca))),
        ("caRootCert", json!(ca.map(roots))),
        ("clusterDomain", json!(node.cluster_domain)),
        ("clusterId", json!(node.cluster_id)),
        ("connectionWindowSize", json!(worker.connection_window_bytes)),
        (
            "crlPath",
            json!(config.tls.revocations.as_ref().map(|path| path.to_string_lossy())),
        ),
        ("dnsProxy", json!(false)),
        ("dnsProxyAddr", json!(localhost(ports.dns))),
        ("dnsResolverCfg", json!(null)),
        ("dnsResolverOpts", json!(null)),
        ("enableEnhancedBaggage", json!(worker.response_baggage)),
        ("fakeCa", json!(is_fake)),
        ("fakeSelfInbound", json!(false)),
        ("frameSize", json!(worker.frame_bytes_max)),
        ("illegalPorts", json!(captured)),
        ("inboundAddr", json!(on_any(ports.inbound_hbone))),
        ("inboundPlaintextAddr", json!(on_any(ports.inbound_plaintext))),
        ("inpodPortReuse", json!(sockets.port_reuse)),
        ("inpodUds", json!(config.pods.zds_socket.to_string_lossy())),
        ("ipv6Enabled", json!(sockets.ipv6)),
        ("localNode", json!(node.name)),
        ("localhostAppTunnel", json!(worker.localhost_app_tunnel)),
        ("network", json!(node.network)),
        ("numWorkerThreads", json!(worker.threads)),
        ("outboundAddr", json!(on_any(ports.outbound))),
        ("packetMark", json!(sockets.packet_mark)),
        ("poolMaxStreamsPerConn", json!(worker.session_streams_max)),
        (
            "poolUnusedReleaseTimeout",
            json!(duration(worker.session_idle_timeout)),
        ),
        ("preferedServiceNamespace", json!(null)),
        ("proxy", json!(true)),
        ("proxyArgs", json!(config.arguments.join(" "))),
        ("proxyMetadata", json!(node.metadata)),
        ("proxyMode", json!("Shared")),
        ("proxyWorkloadInformation", json!(null)),
        ("readinessAddr", json!({"SocketAddr": on_any(ports.readiness)})),
        (
            "requireOriginalSource",
            json!(match sockets.original_source {
                OriginalSource::Required => Some(true),
                OriginalSource::Never => Some(false),
                OriginalSource::BestEffort => None,
            }),
        ),
        ("secretTtl", json!(duration(config.tls.certificate_lifetime))),
        ("selfTerminationDeadline", json!(duration(config.drain.deadline))),
        (
            "socketConfig",
            json!({
                "keepaliveEnabled": sockets.keepalive.is_some(),
                "keepaliveInterval": sockets.keepalive.map(|it| duration(it.interval)),
                "keepaliveRetries": sockets.keepalive.map(|it| it.retries),
                "keepaliveTime": sockets.keepalive.map(|it| duration(it.idle)),
                "userTimeoutEnabled": sockets.user_timeout.is_some(),
            }),
        ),
        ("socks5Addr", json!(null)),
        ("statsAddr", json!({"SocketAddr": on_any(ports.stats)})),
        ("windowSize", json!(worker.stream_window_bytes)),
        ("xdsAddress", json!(xds.map(|it| &it.uri))),
        ("xdsHeaders", json!(headers(xds))),
        ("xdsOnDemand", json!(config.worker.on_demand)),
        ("xdsRootCert", json!(xds.map(roots))),
        ("ztunnelIdentity", json!(null)),
        ("ztunnelWorkload", json!(null)),
    ])
}

fn duration(duration: Duration) -> Value {
    json!({"nanos": duration.subsec_nanos(), "secs": duration.as_secs()})
}

fn roots(server: &Server) -> Value {
    match &server.roots {
        TrustRoots::File(path) => json!({"File": path.to_string_lossy()}),
        TrustRoots::System => "Default".into(),
        TrustRoots::Pem(_) => "Static".into(),
    }
}

fn headers(server: Option<&Server>) -> Value {
    let shown = |(name, value): &(String, String)| {
        let is_secret = ["auth", "token", "secret", "cookie", "key"]
            .iter()
            .any(|word| name.contains(word));
        json!([name, if is_secret { "(not shown)" } else { value.as_str() }])
    };
    server
        .iter()
        .flat_map(|server| server.headers.iter().map(shown))
        .collect()
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn captured_certificates_are_described_and_encoded_as_captured() {
        let dumps = [
            include_str!("../../../../tests/data/config_dump-node1.json"),
            include_str!("../../../../tests/data/config_dump-node2.json"),
        ];
        let mut seen = 0;
        for dump in dumps {
            let dump: Value = serde_json::from_str(dump).expect("JSON");
            for item in dump["certificates"].as_array().expect("a list") {
                for shown in [&item["certChain"][0], &item["rootCerts"][0]] {
                    let text = STANDARD.decode(shown["pem"].as_str().expect("a text"));
                    let certificate = CertificateDer::from_pem_slice(&text.expect("base64")).expect("PEM");
                    let ours = Pem::new(&certificate).expect("a certificate");
                    assert_eq!(serde_json::to_value(ours).expect("JSON"), *shown);
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 8);
        assert!(Pem::new(&CertificateDer::from(vec![1, 2, 3])).is_none());
    }

    #[test]
    fn headers_that_carry_credentials_show_their_names_only() {
        let server = Server {
            uri: "https://istiod".to_owned(),
            roots: TrustRoots::Pem("PEM".to_owned()),
            other_hostname: None,
            headers: vec![
                ("authorization".to_owned(), "Basic x".to_owned()),
                ("x-api-key".to_owned(), "k".to_owned()),
                ("x-revision".to_owned(), "canary".to_owned()),
            ],
        };
        assert_eq!(
            headers(Some(&server)),
            json!([
                ["authorization", "(not shown)"],
                ["x-api-key", "(not shown)"],
                ["x-revision", "canary"]
            ])
        );
        assert_eq!(roots(&server), json!("Static"));
        assert_eq!(headers(None), json!([]));
    }
}
