//! The environment as a whole: defaults, every variable, and what errors say.

use super::*;

/// The least that starts.
const BASE: [(&str, &str); 3] = [
    ("FAKE_CA", "true"),
    ("XDS_ADDRESS", ""),
    ("LOCAL_XDS_PATH", "/mesh.yaml"),
];

fn environment<'a>(variables: &[(&'a str, &'a str)]) -> Environment {
    Environment::new(BASE.into_iter().chain(variables.iter().copied())).with_cpus(8)
}

fn config(variables: &[(&str, &str)]) -> Config {
    Config::from_env(&environment(variables)).unwrap_or_else(|error| panic!("{variables:?}: {error}"))
}

fn error(variables: &[(&str, &str)]) -> String {
    match Config::from_env(&environment(variables)) {
        Ok(_) => panic!("{variables:?} was accepted"),
        Err(error) => error.to_string(),
    }
}

/// What the stock chart sets, with the control plane replaced by a file.
const CHART: [(&str, &str); 18] = [
    ("CA_ADDRESS", "istiod.istio-system.svc:15012"),
    ("RUST_LOG", "info"),
    ("RUST_BACKTRACE", "1"),
    ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
    ("INPOD_ENABLED", "true"),
    ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
    ("POD_NAME", "ztunnel-abc"),
    ("POD_NAMESPACE", "istio-system"),
    ("NODE_NAME", "node1"),
    ("INSTANCE_IP", "10.0.0.9"),
    ("SERVICE_ACCOUNT", "ztunnel"),
    ("ISTIO_META_ENABLE_HBONE", "true"),
    ("ISTIO_META_DNS_CAPTURE", "true"),
    ("ZTUNNEL_CPU_LIMIT", "8"),
    ("ZTUNNEL_RESOURCE_CPU_REQUEST", "1"),
    ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
    ("LOG_FORMAT", "json"),
    ("NETWORK", "net1"),
];

#[test]
fn defaults_are_those_of_ztunnel() {
    let config = config(&[]);
    assert_eq!(config.ports.captured(), [15001, 15006, 15008]);
    assert_eq!(
        (config.ports.admin, config.ports.stats, config.ports.readiness),
        (15000, 15020, 15021)
    );
    assert_eq!(config.sockets.packet_mark, Some(1337));
    assert_eq!(config.sockets.original_source, OriginalSource::BestEffort);
    assert!(config.sockets.ipv6 && config.sockets.port_reuse);
    let three_minutes = Duration::from_secs(180);
    let keepalive = Keepalive {
        idle: three_minutes,
        interval: three_minutes,
        retries: 9,
    };
    assert_eq!(config.sockets.keepalive, Some(keepalive));
    assert_eq!(config.sockets.user_timeout, None);
    assert_eq!(config.worker.threads, 2);
    assert_eq!(config.worker.io, IoChoice::Auto);
    assert_eq!(config.worker.stream_window_bytes, 4_194_304);
    assert_eq!(config.worker.connection_window_bytes, 16_777_216);
    assert_eq!(config.worker.frame_bytes_max, 1_048_576);
    assert_eq!(config.worker.session_streams_max, 100);
    assert_eq!(config.worker.session_idle_timeout, Duration::from_secs(300));
    assert!(config.worker.localhost_app_tunnel && config.worker.response_baggage);
    assert!(!config.worker.policy_info_logging);
    assert_eq!(
        config.pods.zds_socket,
        PathBuf::from("/var/run/ztunnel/ztunnel.sock")
    );
    assert_eq!(config.tls.certificate_lifetime, Duration::from_secs(86_400));
    assert_eq!(config.tls.records, RecordLayer::Own);
    assert_eq!(config.node.cluster_id, "Kubernetes");
    assert_eq!(config.node.network, "");
    assert_eq!(config.node.instance_ip, "1.1.1.1");
    assert_eq!(config.logging.filter, "info");
    assert_eq!(config.logging.format, LogFormat::Plain);
    assert_eq!(config.drain.deadline, Duration::from_secs(5));
    assert_eq!(
        config.control.local_state,
        Some(LocalSource::Path("/mesh.yaml".into()))
    );
    assert!(config.control.xds.is_none() && config.control.auth_token.is_none());
}

#[test]
fn what_the_stock_chart_sets_starts_with_warnings_only() {
    let variables: Vec<_> = CHART.into_iter().chain([("FAKE_CA", "false")]).collect();
    let config = config(&variables);
    assert_eq!(config.worker.threads, 2);
    assert_eq!(config.logging.format, LogFormat::Json);
    assert_eq!(config.drain.deadline, Duration::from_secs(25));
    assert_eq!(config.node.name.as_deref(), Some("node1"));
    assert_eq!(ca(config.clone()).uri, "https://istiod.istio-system.svc:15012");
    let [dns, own_tunnels] = &config.warnings[..] else {
        panic!("{:?}", config.warnings)
    };
    assert!(dns.contains("no DNS proxy yet"), "{dns}");
    assert!(own_tunnels.contains("POD_NAME"), "{own_tunnels}");
}

#[test]
fn dns_that_is_off_is_not_warned_about() {
    assert!(config(&[("ISTIO_META_DNS_CAPTURE", "false")]).warnings.is_empty());
    assert_eq!(config(&[("ISTIO_META_DNS_CAPTURE", "TRUE")]).warnings.len(), 1);
}

#[test]
fn variables_of_the_data_path_are_honoured() {
    let config = config(&[
        ("HTTP2_STREAM_WINDOW_SIZE", "65536"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "131072"),
        ("HTTP2_FRAME_SIZE", "16384"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "1m30s"),
        ("PACKET_MARK", "0"),
        ("ENABLE_ORIG_SRC", "false"),
        ("KEEPALIVE_TIME", "10s"),
        ("KEEPALIVE_INTERVAL", "5"),
        ("KEEPALIVE_RETRIES", "3"),
        ("USER_TIMEOUT_ENABLED", "true"),
        ("LOCALHOST_APP_TUNNEL", "false"),
        ("ENABLE_RESPONSE_BAGGAGE", "false"),
        ("AUTHZ_POLICY_INFO_LOGGING", "true"),
        ("IPV6_ENABLED", "false"),
        ("INPOD_UDS", "/tmp/zds"),
        ("INPOD_PORT_REUSE", "false"),
        ("ZTUNNEL_WORKER_THREADS", "3"),
        ("SECRET_TTL", "1h"),
        ("CONNECTION_TERMINATION_DEADLINE", "7s"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
    ]);
    assert_eq!(config.worker.stream_window_bytes, 65_536);
    assert_eq!(config.worker.connection_window_bytes, 131_072);
    assert_eq!(config.worker.frame_bytes_max, 16_384);
    assert_eq!(config.worker.session_streams_max, 1);
    assert_eq!(config.worker.session_idle_timeout, Duration::from_secs(90));
    assert_eq!(config.sockets.packet_mark, None);
    assert_eq!(config.sockets.original_source, OriginalSource::Never);
    assert_eq!(
        config.sockets.keepalive.expect("on").interval,
        Duration::from_secs(5)
    );
    assert_eq!(config.sockets.user_timeout, Some(Duration::from_secs(25)));
    assert!(!config.worker.localhost_app_tunnel && !config.worker.response_baggage);
    assert!(config.worker.policy_info_logging);
    assert!(!config.sockets.ipv6 && !config.sockets.port_reuse);
    assert_eq!(config.pods.zds_socket, PathBuf::from("/tmp/zds"));
    assert_eq!(config.worker.threads, 3);
    assert_eq!(config.tls.certificate_lifetime, Duration::from_secs(3_600));
    assert_eq!(config.drain.deadline, Duration::from_secs(7));
}

#[test]
fn keepalive_that_is_off_leaves_the_user_timeout_alone() {
    let config = config(&[("KEEPALIVE_ENABLED", "false"), ("USER_TIMEOUT_ENABLED", "true")]);
    assert_eq!(config.sockets.keepalive, None);
    assert_eq!(
        config.sockets.user_timeout,
        Some(Duration::from_secs(180 + 9 * 180))
    );
}

#[test]
fn keepalive_is_kept_within_what_the_kernel_takes_with_a_warning() {
    let largest = Keepalive {
        idle: Duration::from_secs(32_767),
        interval: Duration::from_secs(32_767),
        retries: 127,
    };
    let of_keepalive = |mut config: Config| {
        config.warnings.retain(|it| it.contains("KEEPALIVE"));
        config.warnings
    };
    let asked = [
        ("KEEPALIVE_TIME", "32767s"),
        ("KEEPALIVE_INTERVAL", "32767"),
        ("KEEPALIVE_RETRIES", "127"),
    ];
    assert_eq!(config(&asked).sockets.keepalive, Some(largest));
    assert!(of_keepalive(config(&asked)).is_empty());

    let too_large = [
        ("KEEPALIVE_TIME", "1d"),
        ("KEEPALIVE_INTERVAL", "32768"),
        ("KEEPALIVE_RETRIES", "128"),
        ("USER_TIMEOUT_ENABLED", "true"),
    ];
    let too_large = config(&too_large);
    assert_eq!(too_large.sockets.keepalive, Some(largest));
    // Which has a bound of its own.
    let user_timeout = Duration::from_secs(86_400 + 32_768 * 128);
    assert_eq!(too_large.sockets.user_timeout, Some(user_timeout));
    assert_eq!(
        of_keepalive(too_large),
        [
            "KEEPALIVE_TIME=1d is used as 32767s: the kernel takes 1s to 32767s",
            "KEEPALIVE_INTERVAL=32768 is used as 32767s: the kernel takes 1s to 32767s",
            "KEEPALIVE_RETRIES=128 is used as 127: the kernel takes 1 to 127",
        ]
    );

    let too_small = [("KEEPALIVE_TIME", "10ms"), ("KEEPALIVE_RETRIES", "0")];
    let too_small = config(&too_small);
    let keepalive = too_small.sockets.keepalive.expect("on");
    assert_eq!((keepalive.idle, keepalive.retries), (Duration::from_secs(1), 1));
    assert_eq!(of_keepalive(too_small).len(), 2);

    let off = [("KEEPALIVE_TIME", "1d"), ("KEEPALIVE_ENABLED", "false")];
    assert!(of_keepalive(config(&off)).is_empty());
}

#[test]
fn the_drain_deadline_is_a_little_less_than_the_grace_period() {
    for (grace, deadline_secs) in [("30", 25), ("11", 6), ("10", 9), ("2", 1), ("1", 1), ("0", 1)] {
        let deadline = config(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)])
            .drain
            .deadline;
        assert_eq!(deadline, Duration::from_secs(deadline_secs), "{grace}");
    }
    let grace = u64::MAX.to_string();
    let endless = config(&[("TERMINATION_GRACE_PERIOD_SECONDS", &grace)]);
    assert!(crate::clock::now().checked_add(endless.drain.deadline).is_some());
}

#[test]
fn bad_values_stop_the_start_with_name_value_and_what_would_be_right() {
    for (name, value, reason) in [
        (
            "PROXY_MODE",
            "both",
            "PROXY_MODE must be one of dedicated, shared",
        ),
        ("ENABLE_PROXY", "1", "expected true or false"),
        ("KEEPALIVE_ENABLED", "", "expected true or false"),
        (
            "KEEPALIVE_RETRIES",
            "-1",
            "expected a whole number from 0 to 4294967295",
        ),
        (
            "HTTP2_FRAME_SIZE",
            "16383",
            "expected a whole number from 16384 to 16777215",
        ),
        (
            "HTTP2_STREAM_WINDOW_SIZE",
            "2147483648",
            "expected a whole number from 1 to 2147483647",
        ),
        (
            "HTTP2_CONNECTION_WINDOW_SIZE",
            "1",
            "expected a whole number from 65535 to 2147483647",
        ),
        (
            "POOL_MAX_STREAMS_PER_CONNECTION",
            "65536",
            "expected a whole number from 0 to 65535",
        ),
        (
            "PACKET_MARK",
            "0x539",
            "expected a whole number from 0 to 4294967295",
        ),
        (
            "TERMINATION_GRACE_PERIOD_SECONDS",
            "30s",
            "expected a whole number from 0 to 18446744073709551615",
        ),
        (
            "ALT_CA_HOSTNAME",
            "a b",
            "expected a DNS name such as istiod.istio-system.svc",
        ),
    ] {
        assert_eq!(
            error(&[(name, value)]),
            format!("invalid env var {name}={value} ({reason})")
        );
    }
    let text = error(&[("SECRET_TTL", "1.5h")]);
    assert!(
        text.starts_with("invalid env var SECRET_TTL=1.5h (expected a duration such as 30s"),
        "{text}"
    );
    let text = error(&[("XDS_ADDRESS", "not a host")]);
    assert!(
        text.starts_with("invalid env var XDS_ADDRESS=not a host (invalid uri: "),
        "{text}"
    );
    let text = error(&[("CA_ADDRESS", "a:b")]);
    assert!(
        text.starts_with("invalid env var CA_ADDRESS=a:b (invalid uri: "),
        "{text}"
    );
    let text = error(&[("RUST_LOG", "info,a=b=c")]);
    assert!(
        text.starts_with("invalid env var RUST_LOG=info,a=b=c ("),
        "{text}"
    );
}

#[test]
fn what_this_version_cannot_do_stops_the_start() {
    for (variables, text) in [
        (
            &[("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "a/b/c")][..],
            "PROXY_MODE=dedicated is not",
        ),
        (
            &[("UNSTABLE_ENABLE_SOCKS5", "true")],
            "UNSTABLE_ENABLE_SOCKS5=true is not supported",
        ),
        (
            &[("TLS12_ENABLED", "true")],
            "TLS12_ENABLED=true is not supported",
        ),
        (
            &[("ENABLE_PROXY", "false")],
            "ENABLE_PROXY=false is not supported",
        ),
    ] {
        let message = error(variables);
        assert!(message.starts_with(text), "{message}");
    }
    for (name, harmless) in [
        ("UNSTABLE_ENABLE_SOCKS5", "false"),
        ("TLS12_ENABLED", "false"),
        ("XDS_ON_DEMAND", "false"),
        ("PROXY_MODE", "shared"),
    ] {
        config(&[(name, harmless)]);
    }
}

#[test]
fn the_mesh_is_told_on_demand_where_that_is_wanted_and_nothing_speaks_against_it() {
    assert!(!config(&[]).worker.on_demand);
    let wanted = [
        ("XDS_ON_DEMAND", "true"),
        ("ISTIO_META_DNS_CAPTURE", "off"),
        ("XDS_ADDRESS", "istiod:15012"),
    ];
    assert!(config(&wanted).worker.on_demand);
}

#[test]
fn key_exchange_is_restricted_by_a_policy_that_is_known() {
    let compliance = |text| config(&[("COMPLIANCE_POLICY", text)]).tls.compliance;
    assert_eq!(config(&[]).tls.compliance, Compliance::Default);
    assert_eq!(compliance(""), Compliance::Default);
    assert_eq!(compliance("pqc"), Compliance::PostQuantum);
    for unknown in ["PQC", "fips", "fips-140-2", "off", " pqc"] {
        assert_eq!(
            error(&[("COMPLIANCE_POLICY", unknown)]),
            format!(
                "invalid env var COMPLIANCE_POLICY={unknown} (expected pqc, or nothing for no further \
                 restrictions)"
            )
        );
    }
}

#[test]
fn revoked_certificates_are_looked_for_where_a_path_says() {
    let path = |variables| config(variables).tls.revocations;
    assert_eq!(path(&[]), None);
    assert_eq!(path(&[("CRL_PATH", "")]), None);
    assert_eq!(path(&[("CRL_PATH", "/crl.pem")]), Some("/crl.pem".into()));
}

#[test]
fn contradictions_are_named() {
    for (variables, text) in [
        (
            &[("LOCAL_XDS", "workloads: []")][..],
            "invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set",
        ),
        (
            &[("XDS_ON_DEMAND", "true")],
            "invalid configuration: DNS proxy does not currently support on-demand mode: set \
             ISTIO_META_DNS_CAPTURE=false (and switch the capture off in istio-cni), or XDS_ON_DEMAND=false",
        ),
        (
            &[("XDS_ON_DEMAND", "true"), ("ISTIO_META_DNS_CAPTURE", "false")],
            "invalid configuration: XDS_ON_DEMAND=true, but XDS_ADDRESS is empty, so there is nobody to ask: set \
             XDS_ADDRESS, or XDS_ON_DEMAND=false",
        ),
        (
            &[("PROXY_MODE", "dedicated")],
            "invalid configuration: PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO to be set",
        ),
        (
            &[("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "a/b")],
            "invalid configuration: PROXY_WORKLOAD_INFO must match the format \
             'namespace/name/service-account' (got a/b)",
        ),
        (
            &[("ENABLE_PROXY", "false"), ("ISTIO_META_DNS_CAPTURE", "false")],
            "invalid configuration: ztunnel run without any servers enabled: set ENABLE_PROXY=true",
        ),
        (
            &[("ISTIO_META_DNS_PROXY_ADDR", "nowhere")],
            "invalid configuration: failed to parse DNS_PROXY_ADDR: nowhere (expected localhost:PORT or IP:PORT)",
        ),
    ] {
        assert_eq!(error(variables), text);
    }
}

fn without_address(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::from_env(&Environment::new(
        [("FAKE_CA", "true")].into_iter().chain(variables.iter().copied()),
    ))
}

#[test]
fn without_an_xds_address_the_configured_or_the_usual_istiod_is_asked() {
    let address = |variables: &[(&str, &str)]| {
        let config = without_address(variables).expect("starts");
        config.control.xds.map(|server| server.uri)
    };
    assert_eq!(address(&[]).as_deref(), Some("https://localhost:15012"));
    assert_eq!(
        address(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]).as_deref(),
        Some("https://istiod.istio-system.svc:15012")
    );
    let document = ("PROXY_CONFIG", "discoveryAddress: istiod-canary:15012");
    assert_eq!(
        address(&[document]).as_deref(),
        Some("https://istiod-canary:15012")
    );
    assert_eq!(
        address(&[document, ("XDS_ADDRESS", "other:1")]).as_deref(),
        Some("https://other:1"),
        "the variable goes before the document"
    );
    assert_eq!(address(&[document, ("XDS_ADDRESS", "")]), None);
}

#[test]
fn a_local_file_goes_with_istiod_or_without() {
    let both = without_address(&[("LOCAL_XDS_PATH", "/mesh.yaml")]).expect("starts");
    assert!(both.control.xds.is_some() && both.control.local_state.is_some());
    let inline = without_address(&[("XDS_ADDRESS", ""), ("LOCAL_XDS", "workloads: []")]).expect("starts");
    assert!(inline.control.xds.is_none());
    assert_eq!(
        inline.control.local_state,
        Some(LocalSource::Text("workloads: []".to_owned()))
    );
    let unknown = |config: &Config| {
        let mut warnings = config.warnings.iter();
        warnings.any(|it| it.contains("nothing is known about the mesh"))
    };
    assert!(!unknown(&inline) && !unknown(&both));
    let nothing = without_address(&[("XDS_ADDRESS", "")]).expect("starts");
    assert!(unknown(&nothing));
}

#[test]
fn unknown_variables_of_others_are_tolerated() {
    config(&[
        ("SOMETHING_ELSE", "x"),
        ("INPOD_ENABLED", "maybe"),
        ("ZTUNNEL_UNHEARD_OF", "1"),
    ]);
    let text = error(&[("UZTUNNEL_I0", "epoll")]);
    assert!(
        text.contains("UZTUNNEL_I0") && text.contains("did you mean UZTUNNEL_IO?"),
        "{text}"
    );
}

#[test]
fn the_proxy_configuration_is_merged_key_by_key_with_the_variable_first() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("etc/istio/config/mesh");
    std::fs::create_dir_all(file.parent().expect("a parent")).expect("directories");
    let mesh = "trustDomain: td\ndefaultConfig:\n  concurrency: 3\n  statsPort: 1234\n  drainDuration: 45s\n  \
                proxyMetadata:\n    ISTIO_META_A: file\n    B: 1\n    C: true\n";
    std::fs::write(&file, mesh).expect("written");
    let at = |variables: &[(&str, &str)]| {
        Config::from_env(&environment(variables).with_directory(directory.path()))
    };
    let config = at(&[]).expect("valid");
    assert_eq!(
        (config.worker.threads, config.ports.stats, config.ports.admin),
        (3, 1234, 15000)
    );
    let json = r#"{"concurrency": 5, "proxyAdminPort": 99, "proxyMetadata": {"B": "variable"}}"#;
    let config = at(&[("PROXY_CONFIG", json), ("ISTIO_META_ISTIO_META_D", "d")]).expect("valid");
    assert_eq!(
        (config.worker.threads, config.ports.stats, config.ports.admin),
        (5, 1234, 99)
    );
    let metadata: Vec<(&str, &str)> = config
        .node
        .metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        metadata,
        [("A", "file"), ("B", "variable"), ("C", "true"), ("D", "d")]
    );
    assert!(at(&[("PROXY_CONFIG", "")]).is_ok());

    let text = at(&[("PROXY_CONFIG", "concurrency: many")])
        .expect_err("bad")
        .to_string();
    assert!(
        text.starts_with("error parsing proxy config: failed parsing proxy config env: "),
        "{text}"
    );
    std::fs::write(&file, "defaultConfig: [").expect("written");
    let text = at(&[]).expect_err("bad").to_string();
    let start = format!(
        "error parsing proxy config: failed parsing mesh config file {}",
        file.display()
    );
    assert!(text.starts_with(&start), "{text}");
}

#[test]
fn the_environment_goes_before_the_documents_metadata() {
    let document = "proxyMetadata: {ISTIO_META_CLUSTER_ID: document, DNS_CAPTURE: 'false'}";
    let config = config(&[("PROXY_CONFIG", document), ("ISTIO_META_CLUSTER_ID", "variable")]);
    assert_eq!(config.node.metadata["CLUSTER_ID"], "variable");
    assert_eq!(config.node.cluster_id, "variable");
    assert!(config.warnings.is_empty());
    // The document's metadata is announced, but is not the cluster's id.
    let document_only = self::config(&[("PROXY_CONFIG", document), ("CLUSTER_ID", "plain")]);
    assert_eq!(document_only.node.cluster_id, "plain");
}

fn ca(config: Config) -> Server {
    match config.control.ca {
        CertificateSource::Server(ca) => ca,
        CertificateSource::Fake => panic!("FAKE_CA is not set"),
    }
}

#[test]
fn certificates_come_from_the_ca_unless_the_fake_one_is_asked_for() {
    let unset = Config::from_env(&Environment::new([("XDS_ADDRESS", ""), ("LOCAL_XDS", "{}")]));
    let by_default = ca(unset.expect("the CA has a default address"));
    assert_eq!(by_default.uri, "https://localhost:15012");
    let fake = config(&[("FAKE_CA", "true"), ("CA_ADDRESS", "")]);
    assert!(matches!(fake.control.ca, CertificateSource::Fake));
    assert_eq!(
        error(&[("FAKE_CA", "false"), ("CA_ADDRESS", "")]),
        "invalid configuration: ca_address must be set to use CA: set CA_ADDRESS, or FAKE_CA=true for tests"
    );
}

#[test]
fn headers_and_trust_of_servers_are_read() {
    let config = config(&[
        ("FAKE_CA", "false"),
        ("CA_HEADER_X_Tenant", "blue"),
        ("CA_ROOT_CA", "SYSTEM"),
        ("ALT_CA_HOSTNAME", "istiod.other.svc"),
        ("AUTH_TOKEN", "secret-text"),
    ]);
    assert!(!format!("{config:?}").contains("secret-text"));
    assert_eq!(
        config.control.auth_token,
        Some(AuthToken::Literal("secret-text".to_owned()))
    );
    let ca = ca(config);
    assert_eq!(ca.headers, [("x_tenant".to_owned(), "blue".to_owned())]);
    assert_eq!(ca.roots, TrustRoots::System);
    assert_eq!(ca.other_hostname.as_deref(), Some("istiod.other.svc"));
    // A path that is none leads to the working directory.
    let directory = tempfile::tempdir().expect("a directory");
    let in_directory = |variables: &[(&str, &str)]| {
        Config::from_env(&environment(variables).with_directory(directory.path())).expect("valid")
    };
    assert_eq!(in_directory(&[("AUTH_TOKEN", "")]).control.auth_token, None);
    let ca = self::ca(in_directory(&[("FAKE_CA", "false"), ("CA_ROOT_CA", "")]));
    assert_eq!(ca.roots, TrustRoots::Pem(String::new()));
    let pem = "-----BEGIN CERTIFICATE-----";
    let ca = self::ca(self::config(&[("FAKE_CA", "false"), ("CA_ROOT_CA", pem)]));
    assert_eq!(ca.roots, TrustRoots::Pem(pem.to_owned()));
    for (name, value, text) in [
        ("CA_HEADER_", "x", "failed to parse header key: CA_HEADER_"),
        ("CA_HEADER_a b", "x", "failed to parse header key: CA_HEADER_a b"),
        (
            "XDS_HEADER_TOKEN-BIN",
            "x",
            "failed to parse header key: XDS_HEADER_TOKEN-BIN",
        ),
        ("XDS_HEADER_A", "x\ny", "failed to parse header value: x\ny"),
    ] {
        assert_eq!(error(&[(name, value)]), text);
    }
}
