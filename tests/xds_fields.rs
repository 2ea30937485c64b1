//! Every field of every resource, put wrong in every way: what then happens is written in a table, and a field of the
//! schemas that is not in the table fails the test.
//!
//! A resource is served whole, then with one field changed, between two good ones: either it is accepted, or it is
//! refused by its name, what was known of it stays as it was, and in both cases its neighbours are applied.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use uztunnel::bridge::{Orders, SnapshotCell};
use uztunnel::clock;
use uztunnel::control::pods::{self, PodChanges};
use uztunnel::control::xds::messages::discovery::{Any, DeltaDiscoveryResponse, Node, Resource};
use uztunnel::control::xds::protocol::{Kind, Protocol};
use uztunnel::control::xds::state::State;
use uztunnel::mesh::{Builder, Locale, Snapshot};

/// What a field takes beside what its type says.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    /// Whatever its type allows.
    Free,
    /// Values that are not in the schema are taken for the first one.
    OpenEnum,
    /// Other values are refused, and of the schema's own values these.
    ClosedEnum(&'static [i32]),
    /// 4 or 16 bytes.
    Address,
    /// Prefix lengths up to that of the address, which has 4 bytes here; counted modulo 256.
    Length,
    /// A text with a slash.
    Key,
    /// A message that may not be empty, and the reason for refusing one that is.
    Needed(&'static str),
}
use Rule::{Address, ClosedEnum, Free, Key, Length, Needed, OpenEnum};

const NO_GATEWAY: &str = "nonempty gateway address is missing address";
const NO_ADDRESS: &str = "failed to parse address, had 0 bytes";
const NO_KEY: &str = "failed to parse namespaced hostname: ";

/// By message and field; where a message means something else inside another one, by the field that it is in.
const TABLE: &[(&str, Rule)] = &[
    ("istio.workload.Address.workload", Free),
    ("istio.workload.Address.service", Free),
    ("istio.workload.Service.name", Free),
    ("istio.workload.Service.namespace", Free),
    ("istio.workload.Service.hostname", Free),
    ("istio.workload.Service.addresses", Needed(NO_ADDRESS)),
    ("istio.workload.Service.ports", Free),
    ("istio.workload.Service.subject_alt_names", Free),
    ("istio.workload.Service.waypoint", Needed(NO_GATEWAY)),
    ("istio.workload.Service.load_balancing", Free),
    ("istio.workload.Service.ip_families", ClosedEnum(&[])),
    ("istio.workload.Service.canonical", Free),
    ("istio.workload.Service.weighted_waypoints", Needed(NO_GATEWAY)),
    ("istio.workload.Service.visibility", OpenEnum),
    ("istio.workload.WeightedWaypoint.destination", Needed(NO_GATEWAY)),
    ("istio.workload.WeightedWaypoint.weight", Free),
    (
        "istio.workload.LoadBalancing.routing_preference",
        ClosedEnum(&[0]),
    ),
    ("istio.workload.LoadBalancing.mode", ClosedEnum(&[])),
    ("istio.workload.LoadBalancing.health_policy", ClosedEnum(&[])),
    ("istio.workload.Workload.uid", Free),
    ("istio.workload.Workload.name", Free),
    ("istio.workload.Workload.namespace", Free),
    ("istio.workload.Workload.addresses", Address),
    ("istio.workload.Workload.hostname", Free),
    ("istio.workload.Workload.network", Free),
    ("istio.workload.Workload.tunnel_protocol", ClosedEnum(&[2])),
    ("istio.workload.Workload.trust_domain", Free),
    ("istio.workload.Workload.service_account", Free),
    ("istio.workload.Workload.waypoint", Needed(NO_GATEWAY)),
    ("istio.workload.Workload.network_gateway", Needed(NO_GATEWAY)),
    ("istio.workload.Workload.node", Free),
    ("istio.workload.Workload.canonical_name", Free),
    ("istio.workload.Workload.canonical_revision", Free),
    ("istio.workload.Workload.workload_type", OpenEnum),
    ("istio.workload.Workload.workload_name", Free),
    ("istio.workload.Workload.native_tunnel", Free),
    ("istio.workload.Workload.application_tunnel", Free),
    ("istio.workload.Workload.services", Needed(NO_KEY)),
    ("istio.workload.Workload.authorization_policies", Free),
    ("istio.workload.Workload.status", ClosedEnum(&[])),
    ("istio.workload.Workload.cluster_id", Free),
    ("istio.workload.Workload.locality", Free),
    ("istio.workload.Workload.network_mode", ClosedEnum(&[])),
    ("istio.workload.Workload.capacity", Free),
    ("istio.workload.Workload.ServicesEntry.key", Key),
    ("istio.workload.Workload.ServicesEntry.value", Free),
    ("istio.workload.Locality.region", Free),
    ("istio.workload.Locality.zone", Free),
    ("istio.workload.Locality.subzone", Free),
    ("istio.workload.PortList.ports", Free),
    ("istio.workload.Port.service_port", Free),
    ("istio.workload.Port.target_port", Free),
    ("istio.workload.ApplicationTunnel.protocol", ClosedEnum(&[])),
    ("istio.workload.ApplicationTunnel.port", Free),
    ("istio.workload.GatewayAddress.hostname", Free),
    ("istio.workload.GatewayAddress.address", Needed(NO_ADDRESS)),
    ("istio.workload.GatewayAddress.hbone_mtls_port", Free),
    ("istio.workload.NetworkAddress.network", Free),
    ("istio.workload.NetworkAddress.address", Address),
    // Only a service's own address may be a range.
    ("istio.workload.NetworkAddress.length", Free),
    ("istio.workload.Service.addresses.length", Length),
    ("istio.workload.NamespacedHostname.namespace", Free),
    ("istio.workload.NamespacedHostname.hostname", Free),
    ("google.protobuf.UInt32Value.value", Free),
    ("istio.security.Authorization.name", Free),
    ("istio.security.Authorization.namespace", Free),
    ("istio.security.Authorization.scope", ClosedEnum(&[])),
    ("istio.security.Authorization.action", ClosedEnum(&[])),
    ("istio.security.Authorization.rules", Free),
    ("istio.security.Authorization.dry_run", Free),
    ("istio.security.Rule.clauses", Free),
    ("istio.security.Clause.matches", Free),
    ("istio.security.Match.namespaces", Free),
    ("istio.security.Match.not_namespaces", Free),
    ("istio.security.Match.principals", Free),
    ("istio.security.Match.not_principals", Free),
    ("istio.security.Match.source_ips", Free),
    ("istio.security.Match.not_source_ips", Free),
    ("istio.security.Match.destination_ips", Free),
    ("istio.security.Match.not_destination_ips", Free),
    ("istio.security.Match.destination_ports", Free),
    ("istio.security.Match.not_destination_ports", Free),
    ("istio.security.Match.service_accounts", Free),
    ("istio.security.Match.not_service_accounts", Free),
    // What cannot be read inside a match is left out of it.
    ("istio.security.Address.address", Free),
    ("istio.security.Address.length", Free),
    ("istio.security.ServiceAccountMatch.namespace", Free),
    ("istio.security.ServiceAccountMatch.serviceAccount", Free),
    ("istio.security.StringMatch.exact", Free),
    ("istio.security.StringMatch.prefix", Free),
    ("istio.security.StringMatch.suffix", Free),
    ("istio.security.StringMatch.presence", Free),
];

/// A message as it goes over the wire.
type Fields = Vec<(u32, Value)>;

#[derive(Debug, Clone)]
enum Value {
    Varint(u64),
    Bytes(Vec<u8>),
    Fields(Fields),
    /// Key and all, whatever it says.
    Raw(Vec<u8>),
}

/// What is to happen.
#[derive(Debug, Clone, PartialEq)]
enum Expected {
    Accepted,
    Refused(String),
    /// Cut between two fields it is a smaller message, else none.
    Either,
}

#[derive(Debug)]
struct Case {
    what: String,
    bytes: Vec<u8>,
    expected: Expected,
}

struct Schemas {
    messages: BTreeMap<String, DescriptorProto>,
    enums: BTreeMap<String, Vec<i32>>,
}

impl Schemas {
    fn load() -> Self {
        let set: FileDescriptorSet =
            protox::compile(["proto/workload.proto", "proto/authorization.proto"], ["proto"])
                .expect("schemas");
        let mut schemas = Self {
            messages: BTreeMap::new(),
            enums: BTreeMap::new(),
        };
        for file in set.file {
            let package = format!(".{}", file.package());
            for it in &file.enum_type {
                schemas.add_enum(&package, it);
            }
            for it in &file.message_type {
                schemas.add(&package, it);
            }
        }
        schemas
    }

    fn add(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for it in &message.enum_type {
            self.add_enum(&name, it);
        }
        for it in &message.nested_type {
            self.add(&name, it);
        }
        self.messages.insert(name, message.clone());
    }

    fn add_enum(&mut self, scope: &str, it: &prost_types::EnumDescriptorProto) {
        let values = it.value.iter().map(|value| value.number()).collect();
        self.enums.insert(format!("{scope}.{}", it.name()), values);
    }

    /// A whole and valid message. Of a oneof it has the member that is to be looked at, or the first.
    fn sample(&self, name: &str, focus: &[u32]) -> Fields {
        let message = &self.messages[name];
        let mut chosen = BTreeSet::new();
        let wanted = focus.first();
        let mut fields = Vec::new();
        for field in &message.field {
            if let (Some(oneof), false) = (field.oneof_index, field.proto3_optional()) {
                let focused = message.field.iter().find(|other| {
                    other.oneof_index == Some(oneof) && Some(&(other.number() as u32)) == wanted
                });
                if focused.is_some_and(|other| other.number() != field.number()) || !chosen.insert(oneof) {
                    continue;
                }
            }
            let deeper = if Some(&(field.number() as u32)) == wanted {
                &focus[1..]
            } else {
                &[]
            };
            fields.push((field.number() as u32, self.value(name, field, deeper)));
        }
        fields
    }

    fn value(&self, message: &str, field: &FieldDescriptorProto, focus: &[u32]) -> Value {
        match field.r#type() {
            Type::String => {
                let text = match field.name() {
                    "uid" => NAME_WORKLOAD,
                    "key" => "ns/other.svc",
                    "namespace" if message == ".istio.workload.Service" => "ns",
                    "hostname" if message == ".istio.workload.Service" => "a.svc",
                    _ => "text",
                };
                Value::Bytes(text.into())
            }
            Type::Bytes => Value::Bytes(vec![10, 0, 0, 1]),
            Type::Message => Value::Fields(self.sample(field.type_name(), focus)),
            Type::Uint32 | Type::Bool | Type::Enum => Value::Varint(1),
            other => panic!("a field of type {other:?}: {}", field.name()),
        }
    }

    /// All cases of the fields of a message that is at `path` in `root`.
    fn cases(
        &self,
        root: &str,
        path: &[u32],
        within: &str,
        name: &str,
        cases: &mut Vec<Case>,
        seen: &mut BTreeSet<String>,
    ) {
        for field in &self.messages[name].field {
            let number = field.number() as u32;
            let here: Vec<u32> = path.iter().copied().chain([number]).collect();
            let plain = format!("{}.{}", &name[1..], field.name());
            let inside = format!("{within}.{}", field.name());
            let rule = |wanted: &str| TABLE.iter().find(|(it, _)| *it == wanted);
            let Some((key, rule)) = rule(&inside).or_else(|| rule(&plain)) else {
                panic!("{plain} is in no row of the table: what happens when it is wrong?");
            };
            seen.insert((*key).to_owned());
            seen.insert(plain.clone());
            let whole = self.sample(root, &here);
            let mut case = |what: String, value: Option<Value>, expected: Expected| {
                let mut changed = whole.clone();
                put(&mut changed, &here, value);
                let bytes = encode(&changed);
                cases.push(Case {
                    what: format!("{inside}: {what}"),
                    bytes,
                    expected,
                });
            };
            self.spoil(field, *rule, &mut case);
            if field.r#type() == Type::Message {
                self.cases(root, &here, &plain, field.type_name(), cases, seen);
            }
        }
    }

    fn spoil(
        &self,
        field: &FieldDescriptorProto,
        rule: Rule,
        case: &mut dyn FnMut(String, Option<Value>, Expected),
    ) {
        use Expected::{Accepted, Refused};
        let number = field.number() as u32;
        let malformed = || Refused("cannot be decoded: ".to_owned());
        let own_type = match field.r#type() {
            Type::String | Type::Bytes | Type::Message => 2,
            _ => 0,
        };
        for other in [0u8, 1, 2, 3, 4, 5, 6, 7] {
            let packed = other == 2 && own_type == 0 && field.label() == Label::Repeated;
            if other == own_type || packed {
                continue;
            }
            let mut raw = Vec::new();
            varint(&mut raw, u64::from(number << 3 | u32::from(other)));
            // A length of eight, or eight bytes of a number.
            raw.extend([8, 0, 0, 0, 0, 0, 0, 0, 0]);
            case(format!("wire type {other}"), Some(Value::Raw(raw)), malformed());
        }
        let mut endless = Vec::new();
        varint(&mut endless, u64::from(number << 3 | own_type as u32));
        endless.extend([0xff; 11]);
        case(
            "a number without end".to_owned(),
            Some(Value::Raw(endless)),
            malformed(),
        );
        if own_type == 2 {
            let mut long = Vec::new();
            varint(&mut long, u64::from(number << 3 | 2));
            varint(&mut long, u64::from(u32::MAX));
            case(
                "longer than everything".to_owned(),
                Some(Value::Raw(long)),
                malformed(),
            );
        }
        match field.r#type() {
            Type::String => {
                case(
                    "no UTF-8".to_owned(),
                    Some(Value::Bytes(vec![b'a', 0xff])),
                    malformed(),
                );
                for text in ["", "a", "a/b", "/", "\0", "ü"] {
                    let expected = match rule {
                        Key if !text.contains('/') => Refused(format!("services: {NO_KEY}{text}")),
                        _ => Accepted,
                    };
                    case(format!("{text:?}"), Some(Value::Bytes(text.into())), expected);
                }
                let long = format!("{}/{}", "x".repeat(50_000), "y".repeat(50_000));
                case(
                    "100,000 letters".to_owned(),
                    Some(Value::Bytes(long.into())),
                    Accepted,
                );
            }
            Type::Bytes => {
                for length in [0, 1, 3, 4, 5, 8, 15, 16, 17, 1000] {
                    let expected = match rule {
                        Address if ![4, 16].contains(&length) => {
                            Refused(format!("failed to parse address, had {length} bytes"))
                        }
                        _ => Accepted,
                    };
                    case(
                        format!("{length} bytes"),
                        Some(Value::Bytes(vec![9; length])),
                        expected,
                    );
                }
            }
            Type::Enum => {
                let known = &self.enums[field.type_name()];
                for number in known.iter().copied().chain([99, -1, i32::MIN]) {
                    let expected = match rule {
                        ClosedEnum(refused) if refused.contains(&number) || !known.contains(&number) => {
                            Refused("unknown enum: ".to_owned())
                        }
                        _ => Accepted,
                    };
                    case(
                        format!("{number}"),
                        Some(Value::Varint(number as i64 as u64)),
                        expected,
                    );
                }
            }
            Type::Uint32 | Type::Bool => {
                for number in [
                    0,
                    1,
                    24,
                    32,
                    33,
                    128,
                    129,
                    280,
                    65_535,
                    70_000,
                    u64::from(u32::MAX),
                    u64::MAX,
                ] {
                    let expected = match rule {
                        Length if number as u32 != 32 && number as u8 > 32 => {
                            Refused("invalid cidr: ".to_owned())
                        }
                        _ => Accepted,
                    };
                    case(format!("{number}"), Some(Value::Varint(number)), expected);
                }
            }
            Type::Message => {
                let expected = match rule {
                    Needed(reason) => Refused(reason.to_owned()),
                    _ => Accepted,
                };
                case("empty".to_owned(), Some(Value::Fields(Vec::new())), expected);
                case(
                    "garbage".to_owned(),
                    Some(Value::Bytes(vec![0xff; 40])),
                    malformed(),
                );
                // Number 0 is no field.
                case("field 0".to_owned(), Some(Value::Bytes(vec![0, 0])), malformed());
                let unknown = Value::Fields(self.sample(field.type_name(), &[]));
                let Value::Fields(mut more) = unknown else { return };
                more.push((1000, Value::Bytes(b"of tomorrow".into())));
                case(
                    "a field of tomorrow".to_owned(),
                    Some(Value::Fields(more)),
                    Accepted,
                );
            }
            _ => {}
        }
        case("missing".to_owned(), None, Expected::Either);
    }
}

/// Puts a value in the place of another one, or takes it out.
fn put(fields: &mut Fields, path: &[u32], value: Option<Value>) {
    let (first, rest) = path.split_first().expect("a path");
    let at = fields
        .iter()
        .position(|(number, _)| number == first)
        .expect("the sample has it");
    match (rest.is_empty(), value) {
        (true, Some(value)) => fields[at].1 = value,
        (true, None) => drop(fields.remove(at)),
        (false, value) => match &mut fields[at].1 {
            Value::Fields(inner) => put(inner, rest, value),
            other => panic!("{other:?} has no fields"),
        },
    }
}

fn encode(fields: &Fields) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in fields {
        let bytes = match value {
            Value::Raw(raw) => {
                out.extend(raw);
                continue;
            }
            Value::Varint(value) => {
                varint(&mut out, u64::from(number << 3));
                varint(&mut out, *value);
                continue;
            }
            Value::Bytes(bytes) => bytes.clone(),
            Value::Fields(inner) => encode(inner),
        };
        varint(&mut out, u64::from(number << 3 | 2));
        varint(&mut out, bytes.len() as u64);
        out.extend(bytes);
    }
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

const NAME_WORKLOAD: &str = "c//Pod/ns/a";
const NAME_SERVICE: &str = "ns/a.svc";
const NAME_POLICY: &str = "ns/p";

/// A client's state, without a stream.
struct Bench {
    kind: Kind,
    name: &'static str,
    whole: Vec<u8>,
    state: State,
    protocol: Protocol,
    snapshots: SnapshotCell,
    runtime: tokio::runtime::Runtime,
    round: u32,
    _changes: PodChanges,
}

impl Bench {
    fn new(kind: Kind, name: &'static str, whole: Vec<u8>) -> Self {
        let snapshots = SnapshotCell::new(Snapshot::empty(Locale::default()));
        let (changes, receiver) = pods::changes();
        let builder = Builder::new(Locale::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            kind,
            name,
            whole,
            state: State::new(builder, snapshots.clone(), Orders::new(Vec::new()), changes),
            protocol: Protocol::new(Node::default()),
            snapshots,
            runtime: runtime.expect("a runtime"),
            round: 0,
            _changes: receiver,
        }
    }

    /// Gives the text of the refusal, if it was one.
    fn serve(&mut self, resources: Vec<Resource>) -> Option<String> {
        let message = DeltaDiscoveryResponse {
            type_url: self.kind.type_url().to_owned(),
            nonce: "n".to_owned(),
            resources,
            ..DeltaDiscoveryResponse::default()
        };
        let (state, kind) = (&mut self.state, self.kind);
        let response = state.read(message.encode_to_vec().into()).expect("a response");
        let verdict = self.runtime.block_on(async {
            let verdict = state.apply(kind, response).await;
            state.publish().await;
            verdict
        });
        let answer = self
            .protocol
            .answer(&message.type_url, &message.nonce, verdict, clock::now());
        answer.error_detail.map(|detail| detail.message)
    }

    fn resource(&self, name: &str, value: Vec<u8>) -> Resource {
        Resource {
            name: name.to_owned(),
            resource: Some(Any {
                type_url: self.kind.type_url().to_owned(),
                value: value.into(),
            }),
            ..Resource::default()
        }
    }

    /// A good one that tells rounds apart.
    fn neighbour(&self, name: &str) -> Resource {
        let text = |number: u32, text: &str| (number, Value::Bytes(text.into()));
        let fields = match self.kind {
            Kind::Address => vec![(
                1,
                Value::Fields(vec![text(20, name), text(9, &format!("round {}", self.round))]),
            )],
            Kind::Authorization => vec![text(1, name), text(2, &format!("round {}", self.round))],
        };
        self.resource(name, encode(&fields))
    }

    fn has_neighbour(&self, name: &str) -> bool {
        let snapshot = self.snapshots.load();
        let wanted = format!("round {}", self.round);
        match self.kind {
            Kind::Address => snapshot.workload(name).is_some_and(|it| *it.site.node == wanted),
            Kind::Authorization => snapshot
                .policies()
                .any(|it| *it.key == *name && *it.namespace == wanted),
        }
    }

    /// What is in force of the resource, in words.
    fn known(&self) -> String {
        let snapshot = self.snapshots.load();
        match (self.kind, self.name.split_once('/')) {
            (Kind::Authorization, _) => {
                let policy = snapshot.policies().find(|it| *it.key == *self.name);
                format!("{:?}", policy.expect("it was served"))
            }
            (Kind::Address, Some((namespace, hostname))) if self.name == NAME_SERVICE => {
                format!(
                    "{:?}",
                    snapshot.service(namespace, hostname).expect("it was served")
                )
            }
            (Kind::Address, _) => format!("{:?}", snapshot.workload(self.name).expect("it was served")),
        }
    }

    fn try_case(&mut self, case: &Case) {
        self.round += 1;
        let whole = self.resource(self.name, self.whole.clone());
        assert_eq!(self.serve(vec![whole]), None, "{}: the good one", case.what);
        let before = self.known();
        let spoilt = self.resource(self.name, case.bytes.clone());
        let refusal = self.serve(vec![
            self.neighbour("x//y/one"),
            spoilt,
            self.neighbour("x//y/two"),
        ]);
        for neighbour in ["x//y/one", "x//y/two"] {
            assert!(
                self.has_neighbour(neighbour),
                "{}: its neighbour {neighbour}",
                case.what
            );
        }
        match (&case.expected, &refusal) {
            (Expected::Accepted | Expected::Either, None) => {}
            (Expected::Either, Some(_)) => {}
            (Expected::Refused(reason), Some(text)) => {
                assert!(text.contains(reason.as_str()), "{}: {text}", case.what)
            }
            (expected, got) => panic!("{}: {expected:?}, but {got:?}", case.what),
        }
        if let Some(text) = refusal {
            assert!(
                text.starts_with(&format!("{}: ", self.name)),
                "{}: {text}",
                case.what
            );
            assert_eq!(self.known(), before, "{}: what was known before", case.what);
        }
    }
}

fn run(kind: Kind, name: &'static str, root: &str, start: &[u32], least: usize) -> BTreeSet<String> {
    let schemas = Schemas::load();
    let whole = encode(&schemas.sample(root, start));
    let mut bench = Bench::new(kind, name, whole.clone());
    let mut seen = BTreeSet::new();
    let mut cases = Vec::new();
    schemas.cases(root, &[], "", root, &mut cases, &mut seen);
    for length in 0..whole.len() {
        cases.push(Case {
            what: format!("cut after {length} bytes"),
            bytes: whole[..length].to_vec(),
            expected: Expected::Either,
        });
    }
    for case in &cases {
        bench.try_case(case);
    }
    let refused = cases
        .iter()
        .filter(|case| matches!(case.expected, Expected::Refused(_)))
        .count();
    assert!(refused > least, "{refused} of {} cases are refusals", cases.len());
    seen
}

#[test]
fn a_wrong_field_of_any_resource_is_refused_by_name_or_read_as_the_table_says() {
    let mut seen = run(Kind::Address, NAME_WORKLOAD, ".istio.workload.Address", &[1], 800);
    seen.extend(run(
        Kind::Address,
        NAME_SERVICE,
        ".istio.workload.Address",
        &[2],
        800,
    ));
    seen.extend(run(
        Kind::Authorization,
        NAME_POLICY,
        ".istio.security.Authorization",
        &[],
        300,
    ));
    for (row, _) in TABLE {
        assert!(seen.contains(*row), "{row} is in the table, but in no schema");
    }
}

#[test]
fn a_workload_that_says_everything_twice_is_read_as_the_last_word() {
    let schemas = Schemas::load();
    let whole = encode(&schemas.sample(".istio.workload.Address", &[1]));
    let mut bench = Bench::new(Kind::Address, NAME_WORKLOAD, whole.clone());
    let twice = [whole.clone(), whole].concat();
    bench.try_case(&Case {
        what: "twice".to_owned(),
        bytes: twice,
        expected: Expected::Accepted,
    });
    let workload = bench.snapshots.load().workload(NAME_WORKLOAD).cloned();
    let workload = workload.expect("it was served");
    assert_eq!(workload.services.len(), 1, "a key of a map is there once");
    assert_eq!(workload.addresses.len(), 2);
}

#[test]
fn the_same_resource_twice_in_a_response_is_the_last_of_them() {
    let mut bench = Bench::new(Kind::Address, NAME_WORKLOAD, Vec::new());
    bench.round = 1;
    let first = bench.neighbour("x//y/one");
    bench.round = 2;
    let second = bench.neighbour("x//y/one");
    assert_eq!(bench.serve(vec![first, second]), None);
    assert!(bench.has_neighbour("x//y/one"));
}

#[test]
fn a_resource_without_payload_is_refused_by_name() {
    let mut bench = Bench::new(Kind::Address, NAME_WORKLOAD, Vec::new());
    let empty = Resource {
        name: "ns/a".to_owned(),
        ..Resource::default()
    };
    let refusal = bench.serve(vec![empty, bench.neighbour("x//y/one")]);
    assert_eq!(refusal.as_deref(), Some("ns/a: XDS payload without resource"));
    assert!(bench.has_neighbour("x//y/one"));
    // Nothing of the test is left over from what cannot be decoded.
    assert!(Resource::decode(&[0x1a, 1, 0xff][..]).is_err());
}
