//! Policies that change under live connections, and peers without a certificate under STRICT mutual TLS, with the
//! policies that istiod made of `PeerAuthentication`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use prost::Message;
use uztunnel_rig::applications::{Server, echo};
use uztunnel_rig::istiod::messages::{discovery, security};
use uztunnel_rig::istiod::{ADDRESS, AUTHORIZATION, Istiod, Resource};
use uztunnel_rig::{Blueprint, ControlPlane, Family, PATIENCE, World, sys, wait_until};

use crate::admin::dump;
use crate::frames;
use crate::openssl::{Credentials, Peer};
use crate::setup::{options, workload};

/// What istiod sent, byte for byte.
const CAPTURED: &[u8] = include_bytes!("../data/xds-authorization.binpb");

const HBONE_PORT: u16 = 15008;
pub const PORT: u16 = 4000;
const OTHER_PORT: u16 = 4001;
const EXEMPT_PORT: u16 = 6001;

const NO_LONGER: &str = "connection closed because it is no longer allowed after a policy update";

fn world() -> World {
    let blueprint = Blueprint::two_nodes().control_plane(ControlPlane::Istiod);
    let options = options().map(|options| options.variable("AUTHZ_POLICY_INFO_LOGGING", "true"));
    World::start(blueprint, &options).expect("a world with ready proxies")
}

fn serve(world: &World) -> [Server; 3] {
    [PORT, OTHER_PORT, EXEMPT_PORT].map(|port| world.pod("server").serve(port, echo))
}

/// A connection to an echoing server, `server`'s unless said otherwise.
pub struct Live(TcpStream);

impl Live {
    /// One that stands end to end.
    pub fn open(world: &World, pod: &str, port: u16) -> io::Result<Self> {
        Self::open_between(world, pod, "server", port)
    }

    pub fn open_between(world: &World, from: &str, to: &str, port: u16) -> io::Result<Self> {
        let target = world.pod(to).address(Family::V4, port);
        let stream = world.pod(from).namespace.run(|| TcpStream::connect(target))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut live = Self(stream);
        live.say()?;
        Ok(live)
    }

    fn say(&mut self) -> io::Result<()> {
        self.0.write_all(b"x")?;
        self.0.read_exact(&mut [0])
    }

    pub fn wait_for_reset(self) {
        assert_eq!(self.wait_for_end(), Err(io::ErrorKind::ConnectionReset));
    }

    /// What is read when nothing was said any more: the end, or how it was broken off.
    pub fn wait_for_end(mut self) -> Result<usize, io::ErrorKind> {
        sys::uninterrupted(|| self.0.read(&mut [0])).map_err(|error| error.kind())
    }

    /// Still the same connection, up to its orderly end.
    pub fn finish(mut self) {
        self.say().expect("it goes on");
        self.0.shutdown(Shutdown::Write).expect("an open socket");
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("an orderly end");
        assert!(rest.is_empty(), "{rest:?}");
    }
}

pub fn principal(pod: &str) -> security::StringMatch {
    let exact = format!("cluster.local/ns/shop/sa/{pod}");
    security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact(exact)),
    }
}

fn anybody() -> security::StringMatch {
    security::StringMatch {
        match_type: Some(security::string_match::MatchType::Presence(())),
    }
}

/// `shop/<name>`, which is about whom `matched` describes.
fn policy(
    name: &str,
    scope: security::Scope,
    action: security::Action,
    matched: security::Match,
) -> Resource {
    let clause = security::Clause {
        matches: vec![matched],
    };
    let policy = security::Authorization {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules: vec![security::Rule {
            clauses: vec![clause],
        }],
        dry_run: false,
    };
    Resource {
        name: format!("shop/{name}"),
        version: "1".to_owned(),
        value: policy.encode_to_vec(),
    }
}

pub fn deny(name: &str, matched: security::Match) -> Resource {
    policy(name, security::Scope::Namespace, security::Action::Deny, matched)
}

/// The same policy, which only says what it would do.
fn rehearsed(resource: &Resource) -> Resource {
    let mut policy = security::Authorization::decode(&*resource.value).expect("a policy");
    policy.dry_run = true;
    Resource {
        value: policy.encode_to_vec(),
        ..resource.clone()
    }
}

fn allow(name: &str, pod: &str) -> Resource {
    let matched = security::Match {
        principals: vec![principal(pod)],
        ..security::Match::default()
    };
    policy(name, security::Scope::Namespace, security::Action::Allow, matched)
}

fn captured(name: &str) -> Resource {
    let response = discovery::DeltaDiscoveryResponse::decode(CAPTURED).expect("a response");
    let found = response
        .resources
        .into_iter()
        .find(|resource| resource.name == name);
    let resource = found.expect("a captured policy");
    Resource {
        name: resource.name,
        version: resource.version,
        value: resource.resource.expect("a value").value,
    }
}

/// The policies that say themselves whom they select, by name.
fn select(istiod: &Istiod, policies: &[&str]) -> Resource {
    let policies = policies.iter().map(|name| (*name).to_owned()).collect();
    workload(istiod, "server").changed(|workload| workload.authorization_policies = policies)
}

fn acknowledged(istiod: &Istiod, nonces: Vec<String>) {
    for nonce in nonces {
        assert_eq!(istiod.wait_for_answer(&nonce).error, None);
    }
}

/// Waits until so many connections to `server` were closed because of a change, all from these workloads (of
/// strangers the log knows none) and for this reason.
fn assert_closed(world: &World, sources: &[&str], reason: &str) {
    let logs = &world.nodes[1].proxy().logs;
    wait_until(&format!("{} closed connections", sources.len()), || {
        let records = logs.access();
        let closed = records
            .iter()
            .filter(|record| record.field("error") == "connection closed due to policy change");
        let closed: Vec<&str> = closed.map(|record| record.field("src.workload")).collect();
        assert!(closed.len() <= sources.len(), "{closed:?}");
        (closed == sources).then_some(())
    });
    let told = |line: &String| line.contains(NO_LONGER);
    let lines: Vec<String> = logs.lines().into_iter().filter(told).collect();
    assert_eq!(lines.len(), sources.len(), "{lines:#?}");
    let last = lines.last().expect("at least one");
    assert!(last.contains(reason), "{last}");
    // The line says which connection: the id is that of its trace.
    assert!(last.contains("id="), "{last}");
}

#[test]
fn a_deny_closes_the_live_connections_that_it_is_about_and_no_others() {
    let world = world();
    let istiod = world.istiod();
    let _servers = serve(&world);
    let open = |pod, port| Live::open(&world, pod, port).expect("allowed");
    let (denied, same_session) = (open("client", PORT), open("client", OTHER_PORT));
    let (other, plain) = (open("cart", PORT), open("stranger", PORT));

    let about_client = deny(
        "no-entry",
        security::Match {
            principals: vec![principal("client")],
            destination_ports: vec![PORT.into()],
            ..security::Match::default()
        },
    );
    acknowledged(istiod, istiod.update(AUTHORIZATION, vec![about_client]));
    denied.wait_for_reset();
    assert_closed(&world, &["client"], "explicitly denied by: shop/no-entry");
    assert!(
        Live::open(&world, "client", PORT).is_err(),
        "and it does not come back"
    );
    let line = world.nodes[1]
        .proxy()
        .logs
        .wait_for("the policy that decided", |line| {
            line.contains("deny policy match") && line.contains("shop/no-entry")
        });
    let line = line.expect("a line");
    // Whose connection it is about, and which: in spans, as ztunnel says it.
    let scope = line.split('\t').nth(2).expect("the column of the target");
    let spans = scope.strip_prefix("rbac:proxy{wl=shop/server}:inbound{id=");
    let (id, peer) = spans.and_then(|spans| spans.split_once(" peer=")).expect("spans");
    assert!(
        id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{line}"
    );
    assert!(
        peer.starts_with(&format!("{}:", world.pod("client").addresses.v4)),
        "{line}"
    );

    // A peer that names its trace finds the connection by that.
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let credentials = Credentials::valid(&world, &world.pod("client").identity());
    let target = world.pod("server").address(Family::V4, HBONE_PORT);
    let mut peer = Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials);
    let asked = world.pod("server").address(Family::V4, PORT).to_string();
    let trace = ["traceparent", &format!("00-{TRACE}-b7ad6b7169203331-01")];
    assert!(peer.send(&[frames::opening(), frames::connect_with(1, &asked, trace)].concat()));
    let refused = peer.wait_for("an answer", |received| {
        frames::answer_block(received, 1).map(<[u8]>::to_vec)
    });
    assert!(refused.ends_with(b"401"), "{refused:?}");
    let logs = &world.nodes[1].proxy().logs;
    let traced = logs.wait_for("the trace", |line| {
        line.contains("deny policy match") && line.contains(&format!("inbound{{id={TRACE} peer="))
    });
    traced.expect("a line");

    // The same policy is about somebody else from now on.
    let about_strangers = deny(
        "no-entry",
        security::Match {
            not_principals: vec![anybody()],
            ..security::Match::default()
        },
    );
    acknowledged(istiod, istiod.update(AUTHORIZATION, vec![about_strangers]));
    plain.wait_for_reset();
    assert_closed(&world, &["client", ""], "explicitly denied by: shop/no-entry");
    let back = open("client", PORT);
    assert!(Live::open(&world, "stranger", PORT).is_err());

    istiod.remove(AUTHORIZATION, &["shop/no-entry"]);
    let plain = wait_until("the policy to be gone", || {
        Live::open(&world, "stranger", PORT).ok()
    });
    for live in [same_session, other, back, plain] {
        live.finish();
    }
    assert_closed(&world, &["client", ""], "explicitly denied by: shop/no-entry");
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_it_once_it_is_none() {
    let world = world();
    let istiod = world.istiod();
    let _servers = serve(&world);
    let about_client = deny(
        "rehearsal",
        security::Match {
            principals: vec![principal("client")],
            ..security::Match::default()
        },
    );
    let nobody = allow("casting", "nobody");
    let rehearsals = [&about_client, &nobody].map(rehearsed).to_vec();
    acknowledged(istiod, istiod.update(AUTHORIZATION, rehearsals));
    let logs = &world.nodes[1].proxy().logs;
    // Answered comes before in force.
    let live = wait_until("the rehearsal to be told", || {
        let live = Live::open(&world, "client", PORT).expect("nothing is enforced");
        let told =
            |line: &String| line.contains("dry-run: deny policy match") && line.contains("shop/rehearsal");
        logs.lines().iter().any(told).then_some(live)
    });
    let line = logs.wait_for("the other one", |line| {
        line.contains("dry-run: no allow policies match")
    });
    line.expect("a line");

    acknowledged(istiod, istiod.update(AUTHORIZATION, vec![about_client]));
    live.wait_for_reset();
    let closed = logs.wait_for_access("the end", |record| {
        record.field("error") == "connection closed due to policy change"
    });
    assert_eq!(closed.expect("a record").field("src.workload"), "client");
    assert!(Live::open(&world, "client", PORT).is_err());
    // The other one is a dry run still.
    Live::open(&world, "cart", PORT).expect("allowed").finish();
}

#[test]
fn an_allow_that_is_taken_away_closes_those_whom_it_alone_let_in() {
    let world = world();
    let istiod = world.istiod();
    let _servers = serve(&world);
    let policies = vec![allow("clients", "client"), allow("carts", "cart")];
    acknowledged(istiod, istiod.update(AUTHORIZATION, policies));
    // Answered comes before in force: who opens a connection in between is let in, and closed.
    wait_until("both policies to be in force", || {
        let shown = dump(&world, 1);
        (shown["policies"].as_array()?.len() == 2).then_some(())
    });
    assert!(Live::open(&world, "stranger", PORT).is_err());
    let open = |pod, port| Live::open(&world, pod, port).expect("allowed");
    let (first, second, other) = (
        open("client", PORT),
        open("client", OTHER_PORT),
        open("cart", PORT),
    );

    istiod.remove(AUTHORIZATION, &["shop/clients"]);
    first.wait_for_reset();
    second.wait_for_reset();
    let reason = "allow policies exist, but none allowed";
    assert_closed(&world, &["client", "client"], reason);
    assert!(Live::open(&world, "client", PORT).is_err());

    // Without the last one everybody is allowed.
    istiod.remove(AUTHORIZATION, &["shop/carts"]);
    for pod in ["client", "stranger"] {
        let live = wait_until("everybody to be allowed", || Live::open(&world, pod, PORT).ok());
        live.finish();
    }
    other.finish();
    assert_closed(&world, &["client", "client"], reason);
}

#[test]
fn a_workload_that_comes_under_a_policy_loses_the_live_connections_that_it_is_about() {
    let world = world();
    let istiod = world.istiod();
    let _servers = serve(&world);
    let selecting = policy(
        "selecting",
        security::Scope::WorkloadSelector,
        security::Action::Deny,
        security::Match {
            principals: vec![principal("client")],
            ..security::Match::default()
        },
    );
    acknowledged(istiod, istiod.update(AUTHORIZATION, vec![selecting]));
    let open = |pod| Live::open(&world, pod, PORT).expect("allowed");
    let (denied, other) = (open("client"), open("cart"));

    let before = select(istiod, &[]);
    istiod.update(ADDRESS, vec![select(istiod, &["shop/selecting", "shop/nowhere"])]);
    denied.wait_for_reset();
    assert!(Live::open(&world, "client", PORT).is_err());
    let logs = &world.nodes[1].proxy().logs;
    let line = logs.wait_for("the policy that is not there", |line| {
        line.contains("skipping unknown policy shop/nowhere")
    });
    let line = line.expect("a line");
    assert!(
        line.contains("\twarn\trbac:proxy{wl=shop/server}:inbound{"),
        "{line}"
    );
    assert_closed(&world, &["client"], "explicitly denied by: shop/selecting");
    istiod.update(ADDRESS, vec![before]);
    let back = wait_until("the policy to let go", || Live::open(&world, "client", PORT).ok());
    for live in [other, back] {
        live.finish();
    }
    assert_closed(&world, &["client"], "explicitly denied by: shop/selecting");
}

/// Waits for the refusal of a plain connection from `stranger`.
fn assert_refused(world: &World, port: u16, by: &str) {
    let failed = Live::open(world, "stranger", port).err();
    failed.expect("refused");
    let target = world.pod("server").address(Family::V4, port).to_string();
    let error = format!("connection closed due to policy rejection: explicitly denied by: {by}");
    let logs = &world.nodes[1].proxy().logs;
    let record = logs.wait_for_access(&error, |record| {
        record.field("error") == error && record.field("dst.addr") == target
    });
    let record = record.expect("a record");
    assert_eq!(record.field("src.identity"), "");
    let stranger = world.pod("stranger").addresses.v4.to_string();
    assert!(record.field("src.addr").starts_with(&stranger), "{record:?}");
}

#[test]
fn strict_as_istiod_sends_it_keeps_out_peers_without_a_certificate_and_nobody_else() {
    const STRICT: &str = "istio-system/istio_converted_static_strict";
    let world = world();
    let istiod = world.istiod();
    let _servers = serve(&world);
    let open = |pod, port| Live::open(&world, pod, port).expect("allowed");
    let (plain, mutual) = (open("stranger", PORT), open("client", PORT));

    acknowledged(istiod, istiod.update(AUTHORIZATION, vec![captured(STRICT)]));
    let permissive = select(istiod, &[]);
    istiod.update(ADDRESS, vec![select(istiod, &[STRICT])]);
    plain.wait_for_reset();
    assert_closed(&world, &[""], &format!("explicitly denied by: {STRICT}"));
    assert_refused(&world, PORT, STRICT);
    open("cart", PORT).finish();

    istiod.update(ADDRESS, vec![permissive]);
    let plain = wait_until("PERMISSIVE", || Live::open(&world, "stranger", PORT).ok());
    for live in [plain, mutual] {
        live.finish();
    }
}

#[test]
fn strict_with_an_exempt_port_lets_plaintext_in_there_only() {
    const MOSTLY: &str = "bank/converted_peer_authentication_mostly-strict";
    let world = world();
    let istiod = world.istiod();
    let _servers = serve(&world);
    acknowledged(istiod, istiod.update(AUTHORIZATION, vec![captured(MOSTLY)]));
    istiod.update(ADDRESS, vec![select(istiod, &[MOSTLY])]);
    wait_until("plaintext to be kept out", || {
        Live::open(&world, "stranger", PORT).err()
    });
    assert_refused(&world, PORT, MOSTLY);
    for (pod, port) in [
        ("stranger", EXEMPT_PORT),
        ("client", PORT),
        ("client", EXEMPT_PORT),
    ] {
        let live = Live::open(&world, pod, port);
        live.unwrap_or_else(|error| panic!("{pod} to {port}: {error}"))
            .finish();
    }
}

/// Between pods of one node connections take the same way as between nodes.
#[test]
fn a_policy_holds_between_pods_of_one_node() {
    let world = world();
    let _server = world.pod("cart").serve(PORT, echo);
    let target = world.pod("cart").address(Family::V4, PORT);
    let say = || {
        let stream = world.pod("client").namespace.run(|| TcpStream::connect(target))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut live = Live(stream);
        live.say().map(|()| live)
    };
    let live = say().expect("allowed");
    let about_client = deny(
        "no-entry",
        security::Match {
            principals: vec![principal("client")],
            ..security::Match::default()
        },
    );
    acknowledged(
        world.istiod(),
        world.istiod().update(AUTHORIZATION, vec![about_client]),
    );
    live.wait_for_reset();
    assert!(say().is_err());
    let refused = world.nodes[0]
        .proxy()
        .logs
        .wait_for_access("the refusal", |record| {
            record.field("direction") == "inbound"
                && record
                    .field("error")
                    .contains("explicitly denied by: shop/no-entry")
        });
    assert_eq!(refused.expect("a record").field("dst.workload"), "cart");
}
