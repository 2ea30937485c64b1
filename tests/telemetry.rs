//! The captured traffic in the captured world: decisions, counting and formatting as the workers do them, without a
//! socket, give the captured series and access-log lines. Every difference stands in a table.
//!
//! tests/data/traffic.json lists the connections that were made; metrics-node*.txt and access-*.log are what ztunnel left
//! behind of them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::task::LocalSet;
use uztunnel::bridge::log::{LogItem, LogQueue, log_queue};
use uztunnel::bridge::{Direction, Orders, SnapshotCell};
use uztunnel::clock;
use uztunnel::control::access_log::push_record;
use uztunnel::control::log_line::Format;
use uztunnel::control::metrics::Metrics;
use uztunnel::control::metrics::traffic::Workers;
use uztunnel::control::pods;
use uztunnel::control::roster::Roster;
use uztunnel::control::xds::protocol::Kind;
use uztunnel::control::xds::state::State;
use uztunnel::mesh::{
    Builder, ConnectionFacts, Decision, Hop, Locale, Plan, Snapshot, TunnelAuthority, TunnelProtocol, Way,
    Workload,
};
use uztunnel::wire::hbone::{IncomingRequest, Method, forwarded_value};
use uztunnel::worker::outcome::{HttpStatus, Outcome};
use uztunnel::worker::telemetry::{Account, Telemetry};

const TRAFFIC: &str = include_str!("data/traffic.json");
const SERIES: [&str; 2] = [
    include_str!("data/metrics-node1.txt"),
    include_str!("data/metrics-node2.txt"),
];
const PLAIN: [&str; 2] = [
    include_str!("data/access-plain-node1.log"),
    include_str!("data/access-plain-node2.log"),
];
const JSON: [&str; 2] = [
    include_str!("data/access-json-node1.log"),
    include_str!("data/access-json-node2.log"),
];

/// What "ping" and its echo have.
const BYTES: usize = 4;
const CONNECTION_REFUSED: i32 = 111;

/// The proxy of one node, as far as it decides and tells.
struct Node {
    name: String,
    snapshot: Arc<Snapshot>,
    workers: Workers,
    telemetry: Telemetry,
    log: LogQueue,
    lines: Vec<(String, String)>,
    /// Connections that were open when the capture ended.
    open: Vec<Account>,
}

/// One connection of the list.
struct Step {
    client: String,
    target: SocketAddr,
    client_saw: String,
}

fn steps() -> Vec<Step> {
    let steps: Vec<Value> = serde_json::from_str(TRAFFIC).expect("JSON");
    let text = |step: &Value, key: &str| step[key].as_str().expect("a text").to_owned();
    steps
        .iter()
        .map(|step| {
            let connection = text(step, "connection");
            let (client, target) = connection.split_once(" to ").expect("both ends");
            Step {
                client: client.to_owned(),
                target: target.parse().expect("an address"),
                client_saw: text(step, "client_saw"),
            }
        })
        .collect()
}

/// The state that istiod's captured responses make on a node.
fn snapshot(node: &str) -> Arc<Snapshot> {
    let locale = Locale {
        node: Some(node.into()),
        captured_ports: Arc::new([15001, 15006, 15008]),
        ..Locale::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let cell = SnapshotCell::new(Snapshot::empty(locale.clone()));
        let (builder, orders) = (Builder::new(locale), Orders::new(Vec::new()));
        let mut state = State::new(builder, cell.clone(), orders, pods::changes().0);
        for (kind, bytes) in [
            (Kind::Address, &include_bytes!("data/xds-address.binpb")[..]),
            (
                Kind::Authorization,
                &include_bytes!("data/xds-authorization.binpb")[..],
            ),
        ] {
            let response = state.read(Bytes::from_static(bytes)).expect("a response");
            let verdict = state.apply(kind, response).await;
            assert!(verdict.rejected.is_empty(), "{verdict:?}");
        }
        state.publish().await;
        cell.load()
    })
}

impl Node {
    fn new(name: &str) -> Self {
        let (sink, log) = log_queue();
        let workers = Workers::new(1);
        Self {
            name: name.to_owned(),
            snapshot: snapshot(name),
            telemetry: Telemetry::new(sink, workers.traffic.shard()),
            workers,
            log,
            lines: Vec::new(),
            open: Vec::new(),
        }
    }

    fn workload(&self, is_wanted: impl Fn(&Workload) -> bool) -> Option<Arc<Workload>> {
        self.snapshot.workloads().find(|it| is_wanted(it)).cloned()
    }

    /// Formats what was recorded since.
    fn take_lines(&mut self) {
        self.telemetry.flush();
        while let Some(item) = self.log.next() {
            let LogItem::Access(batch) = item else { continue };
            for record in batch {
                let [plain, json] = [Format::Plain, Format::Json].map(|format| {
                    let mut line = Vec::new();
                    push_record(&mut line, format, &record);
                    String::from_utf8(line).expect("text").trim_end().to_owned()
                });
                self.lines.push((plain, json));
            }
        }
    }

    /// The `istio_tcp_*` samples of a scrape, but not the sockets: there are none here.
    fn series(&self) -> BTreeMap<String, u64> {
        let registry = Metrics::default().registry("unknown", Roster::default(), self.workers.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
        samples(&text)
    }
}

fn samples(text: &str) -> BTreeMap<String, u64> {
    let lines = text
        .lines()
        .filter(|line| line.starts_with("istio_tcp_") && !line.starts_with("istio_tcp_sockets_open"));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a sample");
            (series.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// Makes every connection of the list, on both nodes.
fn play() -> [Node; 2] {
    let mut nodes = ["node1", "node2"].map(Node::new);
    for step in steps() {
        let source = nodes[0].workload(|it| *it.name == *step.client).expect("a pod");
        match source.protocol {
            TunnelProtocol::Hbone => outbound(&mut nodes, &source, &step),
            // Not in the mesh: its connections are seen where they arrive.
            TunnelProtocol::Tcp => drop(plaintext(&mut nodes, &source, &step)),
        }
        nodes.iter_mut().for_each(Node::take_lines);
    }
    nodes
}

fn node_of<'a>(nodes: &'a mut [Node; 2], workload: &Workload) -> &'a mut Node {
    let node = nodes.iter_mut().find(|node| *node.name == *workload.site.node);
    node.expect("one of the two")
}

fn outbound(nodes: &mut [Node; 2], source: &Arc<Workload>, step: &Step) {
    let peer = client_address(source);
    let node = node_of(nodes, source);
    let mut account = Account::new(Direction::Outbound, clock::now(), peer, step.target);
    account.source = Some(source.clone());
    let plan = match choose(&node.snapshot, source, peer.ip(), step.target) {
        Ok(plan) => plan,
        Err(outcome) => return node.telemetry.refuse(account, &outcome),
    };
    account.describe_outbound(source, &plan);
    node.telemetry.open(&mut account);
    let told = match &plan.way {
        Way::Hbone(hop) => inbound(nodes, source, hop, &plan, step)
            .map_err(|outcome| Outcome::Status(HttpStatus(outcome.connect_status()))),
        // Nobody is there to answer.
        Way::Tcp { .. } if step.client_saw == "timeout" => {
            return node_of(nodes, source).open.push(account);
        }
        Way::Tcp { .. } => Ok(()),
        Way::DoubleHbone(_) => panic!("one network"),
    };
    end(&mut node_of(nodes, source).telemetry, account, told.as_ref());
}

/// Chance decides between endpoints. The capture's went to the other node wherever there was one.
fn choose(
    snapshot: &Snapshot,
    source: &Arc<Workload>,
    from: IpAddr,
    target: SocketAddr,
) -> Result<Plan, Outcome> {
    let draw = |seed: u64| match snapshot.route(source, from, target, &mut || {
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }) {
        Ok(Decision::Go(plan)) => Ok(plan),
        Ok(Decision::Resolve(unresolved)) => {
            Err(Outcome::from(unresolved.refusal("no name servers".to_owned())))
        }
        Err(error) => Err(Outcome::from(error)),
    };
    let is_elsewhere = |plan: &Plan| {
        plan.destination
            .as_ref()
            .is_some_and(|to| to.site.node != source.site.node)
    };
    let elsewhere = (1..64).find_map(|seed| draw(seed).ok().filter(is_elsewhere));
    elsewhere.map_or_else(|| draw(0), Ok)
}

/// The stream at the node of its destination.
fn inbound(
    nodes: &mut [Node; 2],
    source: &Workload,
    hop: &Hop,
    plan: &Plan,
    step: &Step,
) -> Result<(), Outcome> {
    let destination = plan.destination.as_ref().expect("known");
    let node = node_of(nodes, destination);
    let own = node.workload(|it| it.uid == destination.uid).expect("known");
    let authority = hop.authority.address().expect("an address");
    let peer = client_address(source);
    let host = plan.service.as_ref().map(|service| &*service.hostname);
    let request = IncomingRequest {
        method: Method::Connect,
        authority: authority.to_string(),
        baggage: Vec::new(),
        traceparent: None,
        forwarded: Some(forwarded_value(peer, host)),
        forwarded_network: None,
    };
    let target = TunnelAuthority::Address(authority);
    let delivery = node.snapshot.validate_inbound(&own, hop.next_hop.ip(), &target);
    let delivery = delivery.expect("it is the pod's");
    let mut account = Account::new(Direction::Inbound, clock::now(), peer, hop.next_hop);
    account.source_identity = Some(source.identity.clone());
    account.hbone_address = Some(target);
    account.describe_inbound(&node.snapshot, &own, &request, &delivery, true);
    deliver(node, account, &own, delivery.address, step)
}

fn plaintext(nodes: &mut [Node; 2], source: &Workload, step: &Step) -> Result<(), Outcome> {
    let is_there = |it: &Workload| it.addresses.contains(&step.target.ip());
    let destination = nodes[0].workload(is_there).expect("a pod");
    let node = node_of(nodes, &destination);
    let own = node.workload(is_there).expect("known");
    let mut account = Account::new(
        Direction::Inbound,
        clock::now(),
        client_address(source),
        step.target,
    );
    account.describe_plaintext(&node.snapshot, &own);
    deliver(node, account, &own, step.target, step)
}

fn deliver(
    node: &mut Node,
    mut account: Account,
    own: &Workload,
    application: SocketAddr,
    step: &Step,
) -> Result<(), Outcome> {
    node.telemetry.open(&mut account);
    let facts = ConnectionFacts {
        source: account.source_address,
        destination: application,
        identity: account.source_identity.as_ref(),
    };
    let delivered = match node.snapshot.authorize(own, &facts) {
        Err(denial) => Err(Outcome::Denied(denial)),
        Ok(_) if step.client_saw == "ping" => Ok(()),
        Ok(_) => Err(Outcome::ConnectFailed(io::Error::from_raw_os_error(
            CONNECTION_REFUSED,
        ))),
    };
    end(&mut node.telemetry, account, delivered.as_ref());
    delivered
}

fn end(telemetry: &mut Telemetry, mut account: Account, ended: Result<&(), &Outcome>) {
    let now = clock::now();
    match ended {
        Ok(()) => {
            account.from_client(BYTES);
            account.to_client(BYTES);
            telemetry.close(account, now, &Outcome::Complete);
        }
        Err(outcome) => telemetry.fail(account, now, outcome),
    }
}

fn client_address(workload: &Workload) -> SocketAddr {
    SocketAddr::new(workload.addresses[0], 40_000)
}

#[test]
fn the_captured_traffic_gives_the_captured_series() {
    // Defects of the reference: inbound by pod address it names any service of the pod. Ours names none, since several
    // lead to the port: by node and guess, how many samples.
    let mut guesses = BTreeMap::new();
    for (at, node) in play().iter().enumerate() {
        let mut theirs = BTreeMap::new();
        for (series, value) in samples(SERIES[at]) {
            let is_guess = |name: &&str| {
                let of_inbound = series.contains("{reporter=\"destination\"");
                of_inbound && series.contains(&format!("destination_service_name=\"{name}\""))
            };
            let guess = ["cart-guarded", "cart-near", "cart-direct"]
                .into_iter()
                .find(is_guess);
            let named = match guess {
                None => series,
                Some(name) => {
                    *guesses.entry((at + 1, name)).or_insert(0) += 1;
                    without_service(&series, name)
                }
            };
            *theirs.entry(named).or_insert(0) += value;
        }
        let ours = node.series();
        let missing: Vec<_> = theirs
            .iter()
            .filter(|(name, value)| ours.get(*name) != Some(value))
            .collect();
        let surplus: Vec<_> = ours
            .iter()
            .filter(|(name, value)| theirs.get(*name) != Some(value))
            .collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "{missing:#?}\ninstead of\n{surplus:#?}"
        );
        assert!(ours.len() > 25, "{} samples", ours.len());
    }
    // A sample each of opened, closed, received and sent bytes: the plain connection of `legacy` and the tunnel of `web`.
    let expected = [((1, "cart-guarded"), 8), ((2, "cart-near"), 4)];
    assert_eq!(guesses, BTreeMap::from(expected));
}

fn without_service(series: &str, name: &str) -> String {
    let named = format!(
        "destination_service=\"{name}.shop.svc.cluster.local\",destination_service_namespace=\"shop\",\
         destination_service_name=\"{name}\""
    );
    let unknown = "destination_service=\"unknown\",destination_service_namespace=\"unknown\",\
                   destination_service_name=\"unknown\"";
    assert!(series.contains(&named), "{series}");
    series.replace(&named, unknown)
}

#[test]
fn connections_without_a_destination_are_counted_in_a_series_of_our_own() {
    let nodes = play();
    let registry = Metrics::default().registry("unknown", Roster::default(), nodes[0].workers.clone());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
    // A port that its service does not have, a service without endpoints, a waypoint that is not there.
    let line = "uztunnel_connections_refused_total{reporter=\"source\",reason=\"route\"} 3";
    assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
}

/// (node, line, key, theirs, ours)
type Difference = (usize, usize, String, String, String);

const ANY_SERVICE: &str = "any service of the pod";

/// The differences of the lines of both formats, which are the same but for the service that the reference guesses.
fn expected_differences() -> Vec<Difference> {
    let mut expected = Vec::new();
    let mut add = |node, line, key: &str, theirs: &str, ours: &str| {
        expected.push((node, line, key.to_owned(), theirs.to_owned(), ours.to_owned()));
    };
    // Inbound by pod address: several services lead to the port, so none is named.
    add(1, 2, "dst.service", ANY_SERVICE, "");
    // What fails before a destination is chosen: ours names the source.
    let name_source = |add: &mut dyn FnMut(usize, usize, &str, &str, &str), line| {
        add(1, line, "src.workload", "", "web-5c-a");
        add(1, line, "src.namespace", "", "shop");
        add(1, line, "src.cluster", "", "Kubernetes");
    };
    name_source(&mut add, 6);
    add(1, 8, "dst.service", ANY_SERVICE, "");
    name_source(&mut add, 10);
    name_source(&mut add, 11);
    // And writes a waypoint as an address and a port.
    let printed = "unknown waypoint: waypoint GatewayAddress { destination: Address(NetworkAddress { network: \"\", \
                   address: 198.18.151.7 }), hbone_mtls_port: 15008 } not found";
    add(1, 11, "error", printed, "unknown waypoint: 198.18.151.7:15008");
    add(2, 1, "dst.service", ANY_SERVICE, "");
    expected
}

#[test]
fn the_captured_traffic_gives_the_captured_lines() {
    let nodes = play();
    for (captured, read, of) in [
        (
            PLAIN,
            plain_fields as fn(&str) -> Fields,
            plain_of as fn(&(String, String)) -> &str,
        ),
        (JSON, json_fields, json_of),
    ] {
        let mut found = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            let theirs: Vec<Fields> = captured[at].lines().map(read).collect();
            let ours: Vec<Fields> = node.lines.iter().map(|line| read(of(line))).collect();
            assert_eq!(theirs.len(), ours.len(), "{ours:#?}");
            for (line, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
                compare(at + 1, line, theirs, ours, &mut found);
            }
        }
        assert_eq!(found, expected_differences());
    }
}

fn plain_of(line: &(String, String)) -> &str {
    &line.0
}

fn json_of(line: &(String, String)) -> &str {
    &line.1
}

/// In the order of the line; level and message first.
type Fields = Vec<(String, String)>;

fn plain_fields(line: &str) -> Fields {
    let columns: Vec<&str> = line.splitn(5, '\t').collect();
    let [_, level, scope, message, fields] = columns[..] else {
        panic!("five columns: {line}");
    };
    let mut read: Fields = [("level", level), ("scope", scope), ("message", message)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let mut rest = fields;
    while let Some((key, after)) = rest.split_once('=') {
        let value = match after.strip_prefix('"') {
            None => after.split(' ').next().expect("a value").to_owned(),
            Some(_) => {
                let mut strings = serde_json::Deserializer::from_str(after).into_iter::<String>();
                let text = strings.next().expect("a text").expect("quoted");
                read.push((key.trim_start().to_owned(), text));
                rest = &after[strings.byte_offset()..];
                continue;
            }
        };
        rest = &after[value.len()..];
        read.push((key.trim_start().to_owned(), value));
    }
    read
}

fn json_fields(line: &str) -> Fields {
    // A map would sort them.
    let object = line
        .strip_prefix('{')
        .and_then(|line| line.strip_suffix('}'))
        .expect("an object");
    let (mut read, mut rest) = (Fields::new(), object);
    while !rest.is_empty() {
        let mut keys = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let key = keys.next().expect("a key").expect("a text");
        let after = &rest[keys.byte_offset() + 1..];
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
        let value = match values.next().expect("a value").expect("JSON") {
            Value::String(text) => text,
            other => other.to_string(),
        };
        rest = after[values.byte_offset()..].trim_start_matches(',');
        if key != "time" {
            read.push((key, value));
        }
    }
    read
}

fn compare(node: usize, line: usize, theirs: &Fields, ours: &Fields, found: &mut Vec<Difference>) {
    let value = |fields: &Fields, key: &str| {
        let field = fields.iter().find(|(it, _)| it == key);
        field.map_or(String::new(), |(key, value)| comparable(key, value))
    };
    let keys: Vec<&String> = ours
        .iter()
        .chain(
            theirs
                .iter()
                .filter(|(key, _)| ours.iter().all(|(it, _)| it != key)),
        )
        .map(|(key, _)| key)
        .collect();
    for key in keys {
        let (mut of_theirs, of_ours) = (value(theirs, key), value(ours, key));
        if of_theirs != of_ours {
            let is_guess = key == "dst.service" && of_theirs.starts_with("cart-");
            if is_guess {
                of_theirs = ANY_SERVICE.to_owned();
            }
            found.push((node, line, key.clone(), of_theirs, of_ours));
        }
    }
    // What both have stands in the same order.
    let common = |fields: &Fields, others: &Fields| -> Vec<String> {
        let is_common = |key: &String| others.iter().any(|(it, _)| it == key);
        fields
            .iter()
            .map(|(key, _)| key.clone())
            .filter(is_common)
            .collect()
    };
    assert_eq!(common(theirs, ours), common(ours, theirs));
}

/// Without what chance or the clock decides: a client's port, and how long it took.
fn comparable(key: &str, value: &str) -> String {
    match key {
        "src.addr" => value.rsplit_once(':').expect("a port").0.to_owned(),
        "duration" => {
            assert!(
                value
                    .strip_suffix("ms")
                    .is_some_and(|number| number.parse::<u64>().is_ok()),
                "{value}"
            );
            "in ms".to_owned()
        }
        _ => value.to_owned(),
    }
}
