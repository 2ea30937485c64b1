//! Two networks: node 0 is in one, node 1 in the other, between them a gateway that passes on what it cannot read.
//!
//! The session inside is between the two proxies; the gateway is a fake one of h2 and rustls (`uztunnel_rig::Gateway`).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uztunnel::identity::Identity;
use uztunnel::tls::fake_ca::Issued;
use uztunnel_rig::applications::{Server, echo, reset};
use uztunnel_rig::hbone::Credentials;
use uztunnel_rig::istiod::messages::workload::{self, address::Type, gateway_address::Destination};
use uztunnel_rig::istiod::{ADDRESS, Resource};
use uztunnel_rig::logs::AccessRecord;
use uztunnel_rig::pattern::Pattern;
use uztunnel_rig::{
    Blueprint, ControlPlane, Family, Gateway, Membership, PodSpec, ServiceSpec, World, wait_until,
};

use crate::admin::dump;
use crate::openssl::HOUR;
use crate::setup::{authority, exchange, options};
use crate::storm::storm_through;
use crate::telemetry::sample;

/// In the world's own folder.
const REVOKED: &str = "revoked.pem";

const PORT: u16 = 8080;
const HBONE_PORT: u16 = 15008;
const SERVICE: &str = "shop.shop.svc.cluster.local";
const GATEWAY_SERVICE: &str = "gateway.shop.svc.cluster.local";
const NETWORKS: [&str; 2] = ["net1", "net2"];

pub struct Networks {
    /// Ends before the namespaces do.
    pub gateway: Gateway,
    pub world: World,
}

/// What differs from world to world.
pub struct Plan {
    /// Whose certificate the gateway shows.
    pub gateway: &'static str,
    /// Who may answer for the service.
    pub names: &'static str,
    /// The gateway is named by its service, and nothing is told unasked.
    pub on_demand: bool,
    /// The near node looks at a file of revoked certificates, `Networks::revoked`.
    pub looks_for_revoked: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            gateway: "gateway",
            names: "server",
            on_demand: false,
            looks_for_revoked: false,
        }
    }
}

impl Plan {
    /// `server` and `spare` answer for the service in the second network; the gateway leads to `server`.
    pub fn start(self) -> Networks {
        let mut blueprint = Blueprint::two_nodes().control_plane(ControlPlane::Istiod);
        blueprint.services = vec![
            ServiceSpec::new("shop", &[(80, PORT)], &["server", "spare"]),
            ServiceSpec::new("gateway", &[(HBONE_PORT, HBONE_PORT)], &["gateway"]),
        ];
        let blueprint = blueprint
            .pod(PodSpec::new("gateway", 1).membership(Membership::Unredirected))
            .pod(PodSpec::new("spare", 1).service_account("server"))
            .pod(PodSpec::new("remote", 1).membership(Membership::Unredirected));
        let mut world = World::build(blueprint).expect("a world");
        let resources = world.pods.iter().filter_map(|pod| {
            let uid = format!("Kubernetes//Pod/shop/{}", pod.spec.name);
            let held = world.istiod().held(ADDRESS, &uid)?;
            Some(self.in_its_network(&world, held, pod.spec.node))
        });
        let mut resources: Vec<Resource> = resources.collect();
        let service = world.istiod().held(ADDRESS, &format!("shop/{SERVICE}"));
        resources.push(self.in_its_network(&world, service.expect("the service"), 0));
        world.istiod().update(ADDRESS, resources);
        let [near, far] = match self.on_demand {
            false => options(),
            true => options().map(|options| {
                options
                    .variable("XDS_ON_DEMAND", "true")
                    .variable("ISTIO_META_DNS_CAPTURE", "false")
            }),
        };
        let near = match self.looks_for_revoked {
            true => near.variable("CRL_PATH", &world.scratch().join(REVOKED).display().to_string()),
            false => near,
        };
        let options = [
            near.variable("NETWORK", NETWORKS[0]),
            far.variable("NETWORK", NETWORKS[1]),
        ];
        world.start_proxies(&options).expect("ready proxies");

        let credentials = credentials(&world, self.gateway);
        let target = world.pod("server").address(Family::V4, HBONE_PORT);
        let gateway = Gateway::start(world.pod("gateway"), credentials, target);
        Networks { gateway, world }
    }

    fn in_its_network(&self, world: &World, held: Resource, node: usize) -> Resource {
        let mut address = workload::Address::decode(&held.value[..]).expect("an address");
        match address.r#type.as_mut().expect("a resource") {
            Type::Workload(workload) => {
                workload.network = NETWORKS[node].to_owned();
                let gateway = workload::NetworkAddress {
                    network: NETWORKS[1].to_owned(),
                    address: world.pod("gateway").addresses.v4.octets().to_vec(),
                    length: None,
                };
                let destination = match self.on_demand {
                    false => Destination::Address(gateway),
                    true => Destination::Hostname(workload::NamespacedHostname {
                        namespace: "shop".to_owned(),
                        hostname: GATEWAY_SERVICE.to_owned(),
                    }),
                };
                workload.network_gateway = (node == 1).then(|| workload::GatewayAddress {
                    destination: Some(destination),
                    hbone_mtls_port: HBONE_PORT.into(),
                });
            }
            Type::Service(service) => {
                let addresses = std::mem::take(&mut service.addresses);
                let everywhere = |address: workload::NetworkAddress| {
                    NETWORKS.map(|network| workload::NetworkAddress {
                        network: network.to_owned(),
                        ..address.clone()
                    })
                };
                service.addresses = addresses.into_iter().flat_map(everywhere).collect();
                let name = format!("spiffe://cluster.local/ns/shop/sa/{}", self.names);
                service.subject_alt_names = vec![name];
            }
        }
        Resource {
            version: "2".to_owned(),
            value: address.encode_to_vec(),
            ..held
        }
    }
}

/// Of the service account with this name.
pub fn credentials(world: &World, account: &str) -> Credentials {
    let identity = Identity::new("cluster.local", "shop", account);
    let (authority, now) = (authority(world), SystemTime::now());
    let Issued { chain, key } = authority.sign(&identity, now - HOUR, now + HOUR).expect("signed");
    let root = authority.root().clone();
    Credentials { chain, key, root }
}

impl Networks {
    /// What the near node looks at for revoked certificates.
    pub fn revoked(&self) -> PathBuf {
        self.world.scratch().join(REVOKED)
    }

    pub fn service(&self) -> SocketAddr {
        self.world.service("shop", Family::V4, 80)
    }

    pub fn serve_echo(&self) -> Server {
        self.world.pod("server").serve(PORT, echo)
    }

    pub fn exchange(&self, pod: &str) -> (Vec<u8>, SocketAddr) {
        exchange(self.world.pod(pod), self.service())
    }

    /// A connection that stands end to end.
    pub fn open(&self, pod: &str) -> TcpStream {
        let target = self.service();
        self.world.pod(pod).run(async move {
            let mut stream = TcpStream::connect(target).await.expect("captured");
            say(&mut stream).await.expect("a way there and back");
            stream
        })
    }

    /// Whether a line goes there and back on it.
    pub fn goes_on(&self, pod: &str, mut stream: TcpStream) -> TcpStream {
        self.world.pod(pod).run(async move {
            say(&mut stream).await.expect("it goes on");
            stream
        })
    }

    pub fn complete(&self, node: usize, what: &str, wanted: impl Fn(&AccessRecord) -> bool) -> AccessRecord {
        let logs = &self.world.nodes[node].proxy().logs;
        let record = logs.wait_for_access(what, |record| {
            record.message == "connection complete" && wanted(record)
        });
        record.expect("a record")
    }
}

async fn say(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"a line\n").await?;
    let mut back = [0; 7];
    stream.read_exact(&mut back).await?;
    assert_eq!(&back, b"a line\n");
    Ok(())
}

#[test]
fn a_service_of_another_network_is_called_by_its_name_at_the_gateway_and_again_inside() {
    let networks = Plan::default().start();
    let server = networks.serve_echo();
    let world = &networks.world;
    let (answer, client) = networks.exchange("client");
    assert_eq!(answer, b"a line\n");
    let asked = networks.gateway.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].method, "CONNECT");
    assert_eq!(asked[0].authority, format!("{SERVICE}:80"));
    let forwarded = format!("for=\"{client}\";host={SERVICE}");
    assert_eq!(asked[0].header("forwarded"), Some(&*forwarded));
    assert!(
        asked[0]
            .header("baggage")
            .is_some_and(|it| it.contains("k8s.deployment.name=client"))
    );
    assert!(asked[0].header("traceparent").is_some());
    // Its network is told inside only.
    assert_eq!(asked[0].headers.len(), 3, "{:?}", asked[0].headers);

    // What the other network's node says about itself is what the near one shows, although it dialled the gateway.
    let near = networks.complete(0, "the call", |record| record.field("direction") == "outbound");
    let gateway = world.pod("gateway");
    assert_eq!(
        near.field("dst.addr"),
        gateway.address(Family::V4, HBONE_PORT).to_string()
    );
    assert_eq!(near.field("dst.identity"), world.pod("server").identity());
    assert_eq!(near.field("dst.workload"), "server");
    assert_eq!(near.field("dst.service"), SERVICE);
    assert_eq!(near.field("dst.hbone_addr"), format!("{SERVICE}:80"));
    assert_eq!(near.field("error"), "");
    let labels = [
        "reporter=\"source\"",
        "destination_workload=\"server\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/server\"",
        "destination_service_name=\"shop\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
    ] {
        assert_eq!(sample(world, 0, name, &labels), 1, "{name}");
    }
    let far = networks.complete(1, "the delivery", |record| record.field("direction") == "inbound");
    assert_eq!(far.field("src.identity"), world.pod("client").identity());
    // By its own words: the gateway's address, which the connection comes from, says nothing about it.
    assert_eq!(far.field("src.workload"), "client");
    assert_eq!(far.field("dst.workload"), "server");
    assert_eq!(far.field("dst.service"), SERVICE);
    assert_eq!(far.field("dst.hbone_addr"), format!("{SERVICE}:80"));
    assert_eq!(server.peers()[0].ip(), gateway.addresses.of(Family::V4));
}

#[test]
fn connections_of_one_client_to_one_service_share_both_sessions_and_those_of_others_do_not() {
    let networks = Plan::default().start();
    let _server = networks.serve_echo();
    let kept = networks.open("client");
    for _ in 0..10 {
        assert_eq!(networks.exchange("client").0, b"a line\n");
    }
    assert_eq!(
        (networks.gateway.sessions(), networks.gateway.asked().len()),
        (1, 1)
    );
    let uid = &networks.world.pod("client").uid;
    let live = dump(&networks.world, 0)["workloadState"][uid]["connections"]["outbound"].clone();
    assert_eq!(live[0]["protocol"], "DOUBLEHBONE", "{live}");
    // Another pod proves another identity, at the gateway and inside.
    assert_eq!(networks.exchange("cart").0, b"a line\n");
    assert_eq!(
        (networks.gateway.sessions(), networks.gateway.asked().len()),
        (2, 2)
    );
    networks.goes_on("client", kept);
}

#[test]
fn transfers_through_a_gateway_arrive_byte_for_byte_both_ways_at_once() {
    const BYTES: u64 = 48 << 20;
    let networks = Plan::default().start();
    let [there, back] = [Pattern::new(11), Pattern::new(12)];
    let (expected, sent) = (there.clone(), back.clone());
    let serving = networks.world.pod("server").serve(PORT, move |stream, _| {
        let (expected, sent) = (expected.clone(), sent.clone());
        async move {
            let (mut reader, mut writer) = stream.into_split();
            let sending = async {
                sent.send(&mut writer, BYTES).await?;
                writer.shutdown().await
            };
            let (received, sending) = tokio::join!(expected.receive(&mut reader), sending);
            assert_eq!(received?, BYTES);
            sending
        }
    });
    let target = networks.service();
    for _ in 0..2 {
        let (there, back) = (there.clone(), back.clone());
        let received = networks.world.pod("client").run(async move {
            let (mut reader, mut writer) = TcpStream::connect(target).await?.into_split();
            let sending = async {
                there.send(&mut writer, BYTES).await?;
                writer.shutdown().await
            };
            let (received, sending) = tokio::join!(back.receive(&mut reader), sending);
            sending?;
            received
        });
        assert_eq!(received.expect("an orderly end"), BYTES);
    }
    assert_eq!(serving.wait_for_ends(2), [Ok(()), Ok(())]);
    assert_eq!(networks.gateway.asked().len(), 1, "in one session");
    let bytes = BYTES.to_string();
    for node in 0..2 {
        let record = networks.complete(node, "the transfer", |_| true);
        assert_eq!(record.field("bytes_sent"), bytes, "{record:?}");
        assert_eq!(record.field("bytes_recv"), bytes, "{record:?}");
    }
}

#[test]
fn a_half_close_goes_through_a_gateway_and_the_other_direction_goes_on() {
    const BYTES: u64 = 4 << 20;
    let networks = Plan::default().start();
    let pattern = Pattern::new(3);
    let sent = pattern.clone();
    let serving = networks.world.pod("server").serve(PORT, move |mut stream, _| {
        let sent = sent.clone();
        async move {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await?;
            assert_eq!(request, b"request");
            sent.send(&mut stream, BYTES).await?;
            stream.shutdown().await
        }
    });
    let target = networks.service();
    let received = networks.world.pod("client").run(async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(b"request").await?;
        stream.shutdown().await?;
        pattern.receive(&mut stream).await
    });
    assert_eq!(received.expect("an orderly end"), BYTES);
    assert_eq!(serving.wait_for_ends(1), [Ok(())]);
}

#[test]
fn a_reset_goes_through_a_gateway_both_ways_and_ends_no_other_connection_of_the_session() {
    let networks = Plan::default().start();
    let kept_server = networks.serve_echo();
    let kept = networks.open("client");
    let brief = networks.open("client");
    networks
        .world
        .pod("client")
        .run(async move { reset(brief) })
        .expect("reset");
    assert_eq!(
        kept_server.wait_for_ends(1),
        [Err(io::ErrorKind::ConnectionReset)]
    );
    let kept = networks.goes_on("client", kept);

    // The other way round: who is asked to resets.
    let spare = networks
        .world
        .pod("spare")
        .serve(PORT, |mut stream, _| async move {
            stream.read_exact(&mut [0; 7]).await?;
            reset(stream)
        });
    let target = networks.world.pod("spare").address(Family::V4, HBONE_PORT);
    networks.gateway.lead_to(target);
    let service = networks.service();
    let ended = networks.world.pod("cart").run(async move {
        let mut stream = TcpStream::connect(service).await?;
        stream.write_all(b"a line\n").await?;
        stream.read(&mut [0]).await
    });
    assert_eq!(
        ended.map_err(|error| error.kind()),
        Err(io::ErrorKind::ConnectionReset)
    );
    assert_eq!(spare.peers().len(), 1);
    networks.goes_on("client", kept);
}

#[test]
fn no_byte_appears_on_another_connection_while_streams_through_a_gateway_are_reset_at_random() {
    let networks = Plan::default().start();
    let targets = Family::BOTH.map(|family| networks.world.service("shop", family, 80));
    storm_through(&networks.world, ("server", PORT), targets);
}

#[test]
fn a_reader_that_stops_behind_a_gateway_stops_nobody_else() {
    let networks = Plan::default().start();
    let _server = networks.serve_echo();
    let target = networks.service();
    // Sends until nothing more is taken, and reads nothing of what comes back.
    let stopped = networks.world.pod("client").run(async move {
        let stream = TcpStream::connect(target).await.expect("captured");
        let mut sent = 0_usize;
        let quiet = std::time::Duration::from_millis(500);
        while tokio::time::timeout(quiet, stream.writable()).await.is_ok() {
            match stream.try_write(&[7; 64 << 10]) {
                Ok(written) => sent += written,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        (stream, sent)
    });
    for _ in 0..20 {
        assert_eq!(networks.exchange("client").0, b"a line\n");
    }
    assert_eq!(networks.gateway.asked().len(), 1, "in the same session");
    // And it goes on where it was.
    let (stream, sent) = stopped;
    let received = networks.world.pod("client").run(async move {
        let (mut reader, mut writer) = stream.into_split();
        let mut all = Vec::new();
        let (ended, read) = tokio::join!(writer.shutdown(), reader.read_to_end(&mut all));
        ended?;
        read?;
        io::Result::Ok((all.len(), all.iter().all(|byte| *byte == 7)))
    });
    assert_eq!(received.expect("an orderly end"), (sent, true));
}

#[test]
fn a_stream_that_the_gateway_resets_ends_what_it_carried_with_the_reason() {
    let networks = Plan::default().start();
    let _server = networks.serve_echo();
    let mut carried = [networks.open("client"), networks.open("client")];
    networks.gateway.reset_streams();
    for stream in &mut carried {
        let ended = wait_until("the reset", || match stream.try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            ended => Some(ended),
        });
        assert_eq!(
            ended.map_err(|error| error.kind()),
            Err(io::ErrorKind::ConnectionReset)
        );
    }
    let record = networks.complete(0, "the reason", |record| {
        record
            .field("error")
            .contains("the network gateway reset the stream that carries it")
    });
    assert_eq!(record.level, "error");
    // The session to the gateway is as good as before.
    assert_eq!(networks.exchange("client").0, b"a line\n");
    assert_eq!(
        (networks.gateway.sessions(), networks.gateway.asked().len()),
        (1, 2)
    );
}

#[test]
fn a_gateway_that_says_goodbye_keeps_what_it_carries_and_gets_nothing_new() {
    let networks = Plan::default().start();
    let _server = networks.serve_echo();
    let kept = networks.open("client");
    networks.gateway.say_goodbye();
    wait_until("connections over another session", || {
        assert_eq!(networks.exchange("client").0, b"a line\n");
        (networks.gateway.sessions() == 2).then_some(())
    });
    assert!(networks.gateway.connections_ended().is_empty());
    let kept = networks.goes_on("client", kept);
    // With its last connection the old session ends, inside and outside.
    drop(kept);
    wait_until("the old session to end", || {
        (networks.gateway.connections_ended() == [Ok(())]).then_some(())
    });
}

#[test]
fn a_workload_that_reaches_no_application_any_more_is_left_for_another_choice_of_the_gateway() {
    let networks = Plan::default().start();
    let server = networks.serve_echo();
    assert_eq!(networks.exchange("client").0, b"a line\n");
    drop(server);
    let _spare = networks.world.pod("spare").serve(PORT, echo);
    let target = networks.world.pod("spare").address(Family::V4, HBONE_PORT);
    networks.gateway.lead_to(target);
    assert_eq!(networks.exchange("client").0, b"a line\n");
    assert_eq!(
        (networks.gateway.sessions(), networks.gateway.asked().len()),
        (1, 2)
    );
}

fn assert_fails(networks: &Networks, error: &str) {
    let server = networks.serve_echo();
    let (answer, _) = networks.exchange("client");
    assert!(answer.is_empty(), "{answer:?}");
    let gateway = networks.world.pod("gateway").address(Family::V4, HBONE_PORT);
    let error = error.replace("GATEWAY", &gateway.to_string());
    let record = networks.complete(0, &error, |record| record.field("error").starts_with(&error));
    // Who would have answered is not known: it is the gateway that was called.
    assert_eq!(record.field("dst.workload"), "gateway");
    assert!(server.peers().is_empty());
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_failed_total",
    ] {
        let labels = ["reporter=\"source\"", "destination_workload=\"gateway\""];
        assert_eq!(sample(&networks.world, 0, name, &labels), 1, "{name}");
    }
}

#[test]
fn who_answers_behind_a_gateway_under_a_name_that_is_not_the_services_is_refused() {
    let networks = Plan {
        names: "bank",
        ..Plan::default()
    };
    let networks = networks.start();
    assert_fails(&networks, "behind the network gateway GATEWAY: tls error: ");
    assert_eq!(networks.gateway.asked().len(), 1);
}

#[test]
fn a_gateway_that_is_somebody_else_is_refused_and_asked_for_nothing() {
    let networks = Plan {
        gateway: "stranger",
        ..Plan::default()
    };
    let networks = networks.start();
    assert_fails(&networks, "at the network gateway GATEWAY: tls error: ");
    assert!(networks.gateway.asked().is_empty());
}

#[test]
fn a_gateway_that_knows_no_way_is_named_with_its_status() {
    let networks = Plan::default().start();
    // No proxy there.
    let nowhere = networks.world.pod("stranger").address(Family::V4, HBONE_PORT);
    networks.gateway.lead_to(nowhere);
    assert_fails(
        &networks,
        "at the network gateway GATEWAY: http status: 503 Service Unavailable",
    );
}

#[test]
fn a_gateway_and_the_service_behind_it_are_asked_for_by_name_where_nothing_is_told_unasked() {
    let plan = Plan {
        on_demand: true,
        ..Plan::default()
    };
    let networks = plan.start();
    let _server = networks.serve_echo();
    let (answer, _) = networks.exchange("client");
    assert_eq!(answer, b"a line\n");
    let asked = networks.world.istiod().asked();
    let asked: Vec<&String> = asked
        .iter()
        .flat_map(|it| &it.request.resource_names_subscribe)
        .collect();
    // The near node asks for the gateway; the far one is asked for the service by its name.
    for name in [format!("shop/{GATEWAY_SERVICE}"), format!("shop/{SERVICE}")] {
        assert!(asked.contains(&&name), "{name} is not in {asked:?}");
    }
}
