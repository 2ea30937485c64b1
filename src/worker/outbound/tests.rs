//! Which endpoint is chosen, and what becomes of the first one while another is looked for.

use std::cell::RefCell;

use super::*;
use crate::bridge::demands::{self, Demand};
use crate::bridge::log::Direction;
use crate::bridge::lookups::Question;
use crate::bridge::orders::CertificateError;
use crate::clock;
use crate::identity::Identity;
use crate::mesh::{
    Builder, GatewayAddress, GatewayTarget, LocalState, Locale, NamespacedHostname, NetworkAddress, Service,
    Snapshot, TunnelProtocol,
};
use crate::runtime::tasks::Executor;
use crate::sys::epoll::EpollDriver;
use crate::tls::FakeCa;
use crate::worker::fixture;

const VIP: [u8; 4] = [198, 18, 9, 1];

fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

/// The workload of the fixture's pod.
fn source() -> Workload {
    Workload::new("c1//Pod/shop/till", "till", identity("till"))
}

/// An endpoint of the service `shop`.
fn endpoint(name: &str, addresses: &[[u8; 4]]) -> Workload {
    let mut workload = Workload::new(&format!("c1//Pod/shop/{name}"), name, identity(name));
    workload.addresses = addresses.iter().map(|octets| (*octets).into()).collect();
    let ports = [(80, 8080)].into_iter().collect();
    workload.join(NamespacedHostname::new("shop", "shop.shop"), ports);
    workload
}

/// A worker that knows the service, with these endpoints.
fn core(executor: &Executor, endpoints: Vec<Workload>) -> Core<EpollDriver> {
    let core = fixture::core(executor);
    core.snapshot.publish(snapshot(endpoints));
    core
}

fn snapshot(endpoints: Vec<Workload>) -> Snapshot {
    let mut service = Service::new("shop", "shop", "shop.shop");
    service.vips = vec![NetworkAddress::new("", VIP.into())];
    service.ports = [(80, 8080)].into_iter().collect();
    let mut builder = Builder::new(Locale::default());
    builder.load(LocalState {
        workloads: endpoints.into_iter().chain([source()]).collect(),
        services: vec![service],
        policies: Vec::new(),
    });
    builder.build()
}

/// The endpoints that so many connections of the pod would go to.
fn chosen(core: &mut Core<EpollDriver>, pod: &PodState, connections: usize) -> Vec<SocketAddr> {
    let (source, peer) = (Arc::new(source()), ([198, 18, 0, 1], 4000).into());
    let choose = |_| match core.choose(pod, &source, peer, (VIP, 80).into(), &[]) {
        Ok(Decision::Go(plan)) => plan.way.next_hop(),
        other => panic!("{other:?}"),
    };
    (0..connections).map(choose).collect()
}

#[test]
fn link_local_destinations_do_not_wait_for_a_workload_and_others_do() {
    let core = fixture::core(&Executor::default());
    let pod = fixture::pod();
    let metadata = ([169, 254, 169, 254], 80).into();
    let found = core.route_unidentified(&pod, metadata).expect("passed through");
    assert_eq!(found.way.next_hop(), metadata);
    assert!(
        core.route_unidentified(&pod, ([198, 18, 0, 1], 80).into())
            .is_none()
    );
    // Once the workload is there, it decides.
    let mut builder = Builder::new(Locale::default());
    builder.insert_workload(source());
    core.snapshot.publish(builder.build());
    assert!(core.route_unidentified(&pod, metadata).is_none());
}

#[test]
fn a_plain_endpoint_in_trouble_is_chosen_only_to_find_out_or_when_there_is_no_other() {
    let plain = [[198, 18, 1, 1], [198, 18, 1, 2]];
    let endpoints = plain.map(|octets| endpoint(&format!("plain-{}", octets[3]), &[octets]));
    let [dead, other] = plain.map(|octets| SocketAddr::from((octets, 8080)));
    let mut core = core(&Executor::default(), endpoints.into());
    let pod = fixture::pod();
    let key = |address| (pod.pod.uid.clone(), address);
    let to = |chosen: &[SocketAddr], address| chosen.iter().filter(|to| **to == address).count();

    let first = chosen(&mut core, &pod, 100);
    assert!(to(&first, dead) > 0 && to(&first, other) > 0, "{first:?}");
    core.plain_is_in_trouble(key(dead));
    assert_eq!(to(&chosen(&mut core, &pod, 100), other), 100);
    core.now += limits::AVOIDED_MIN * 2;
    assert_eq!(to(&chosen(&mut core, &pod, 100), dead), 1, "one finds out");
    core.plain_is_in_trouble(key(other));
    let both = chosen(&mut core, &pod, 100);
    assert!(
        to(&both, dead) > 0 && to(&both, other) > 0,
        "there is no other choice"
    );
    core.plain_is_well(&key(dead));
    assert_eq!(to(&chosen(&mut core, &pod, 100), dead), 100);
}

#[test]
fn a_replica_in_trouble_of_the_waypoint_of_a_pod_is_given_up_for_another() {
    let replicas = [[198, 18, 1, 1], [198, 18, 1, 2]].map(|octets| endpoint("waypoint", &[octets]));
    let replicas = replicas.map(|replica| Workload {
        uid: format!("c1//Pod/shop/waypoint-{}", replica.addresses[0]).into(),
        ..replica
    });
    let [dead, other] = [[198, 18, 1, 1], [198, 18, 1, 2]].map(|octets| SocketAddr::from((octets, 8080)));
    let database = SocketAddr::from(([198, 18, 2, 1], 5432));
    let mut called = Workload::new("c1//Pod/shop/database", "database", identity("database"));
    called.addresses = [database.ip()].into();
    called.waypoint = Some(Box::new(GatewayAddress {
        target: GatewayTarget::Hostname(NamespacedHostname::new("shop", "shop.shop")),
        hbone_mtls_port: 80,
    }));
    let mut core = core(
        &Executor::default(),
        replicas.into_iter().chain([called]).collect(),
    );
    let (pod, source, peer) = (fixture::pod(), Arc::new(source()), ([198, 18, 0, 1], 4000).into());
    let choose = |core: &mut Core<EpollDriver>, tried: &[SocketAddr]| match core
        .choose(&pod, &source, peer, database, tried)
    {
        Ok(Decision::Go(plan)) => plan,
        other => panic!("{other:?}"),
    };
    assert_eq!(choose(&mut core, &[dead]).way.next_hop(), other);
    let plan = choose(&mut core, &[other]);
    assert!(plan.service.is_none(), "the client called no service");
    let mut account = Account::new(Direction::Outbound, core.now, peer, database);
    let course = core.course(&pod, &source, plan, &mut account);
    let course = course.unwrap_or_else(|error| panic!("{error}"));
    assert!(course.has_choice && course.next_hop() == dead);
    core.avoid(&pod, &course);
    for _ in 0..100 {
        assert_eq!(choose(&mut core, &[]).way.next_hop(), other);
    }
}

/// Where a service has a workload's address, only the choice tells whose waypoint it is.
#[test]
fn the_waypoint_of_the_endpoint_that_was_chosen_is_asked_for() {
    let executor = Executor::default();
    let mut behind = endpoint("behind", &[VIP]);
    let waypoint = GatewayTarget::Address(NetworkAddress::new("", [198, 18, 9, 9].into()));
    behind.waypoint = Some(Box::new(GatewayAddress {
        target: waypoint.clone(),
        hbone_mtls_port: 15008,
    }));
    let mut core = core(&executor, vec![behind]);
    let settings = Rc::get_mut(&mut core.settings).expect("nobody else has them");
    settings.on_demand = true;
    let (sender, mut asked) = demands::channel();
    core.demands = sender;
    let shell = Shell::new(core, executor.spawner());
    shell.spawn({
        let shell = shell.clone();
        async move {
            let (peer, target) = (([198, 18, 0, 1], 4000).into(), (VIP, 80).into());
            let mut account = Account::new(Direction::Outbound, clock::now(), peer, target);
            let (pod, source) = (fixture::pod(), Arc::new(source()));
            let routed = route(&shell, &pod, &source, target, &[], &mut account).await;
            assert!(routed.is_err(), "nobody has answered");
        }
    });
    executor.run(10);
    let lookup = asked.try_recv();
    assert!(
        matches!(&lookup, Ok(Demand::Lookup { question: Question::Mesh(target), .. }) if *target == waypoint),
        "{lookup:?}"
    );
}

#[test]
fn a_connection_whose_destination_changes_hands_while_it_is_made_goes_to_who_has_the_address_now() {
    // Nobody takes tunnels there.
    const ADDRESS: [u8; 4] = [127, 0, 9, 1];
    let executor = Executor::default();
    let tunnelled = |name| {
        let mut workload = endpoint(name, &[ADDRESS]);
        workload.protocol = TunnelProtocol::Hbone;
        workload
    };
    let mut core = core(&executor, vec![tunnelled("old")]);
    let (demands, _asked) = demands::channel();
    core.demands = demands;
    let shell = Shell::new(core, executor.spawner());
    let account = Rc::<RefCell<Option<Account>>>::default();
    shell.spawn({
        let (shell, pod, result) = (shell.clone(), fixture::pod(), account.clone());
        async move {
            let now = shell.with(|core| core.now);
            let (peer, target) = (([198, 18, 0, 1], 4000).into(), (ADDRESS, 80).into());
            let mut account = Account::new(Direction::Outbound, now, peer, target);
            let source = Arc::new(source());
            account.source = Some(source.clone());
            let course = route(&shell, &pod, &source, target, &[], &mut account).await;
            let course = course.unwrap_or_else(|error| panic!("{error}"));
            let failed = connect(&shell, &pod, course, target, &mut account).await.err();
            assert!(
                matches!(failed.as_deref(), Some(Outcome::ConnectFailed(_))),
                "{failed:?}"
            );
            *result.borrow_mut() = Some(account);
        }
    });
    // The old one is called, as soon as the caller has its certificate.
    executor.run(10);
    shell.with(|core| {
        core.snapshot.publish(snapshot(vec![tunnelled("new")]));
        let certificate = FakeCa::new().issue(&identity("till"), clock::wall());
        core.take_certificate(identity("till"), Ok(Arc::new(certificate.expect("issued"))));
    });
    for _ in 0..4 {
        executor.run(10);
        shell.with(fixture::turn);
    }
    let account = account.borrow_mut().take().expect("it is over");
    assert_eq!(account.destination.as_ref().map(|it| &*it.name), Some("new"));
}

#[test]
fn what_the_slow_endpoint_says_is_heard_while_the_name_of_another_is_looked_up() {
    let executor = Executor::default();
    let mut slow = endpoint("slow", &[[198, 18, 1, 1]]);
    slow.protocol = TunnelProtocol::Hbone;
    let named = Workload {
        hostname: "legacy.example".into(),
        ..endpoint("named", &[])
    };
    let mut core = core(&executor, vec![slow, named]);
    let (sender, mut asked) = demands::channel();
    core.demands = sender;
    let shell = Shell::new(core, executor.spawner());
    let pod = fixture::pod();
    let target = (VIP, 80).into();
    let failure = Rc::<RefCell<Option<String>>>::default();
    shell.spawn({
        let (shell, pod, failure) = (shell.clone(), pod.clone(), failure.clone());
        async move {
            let now = shell.with(|core| core.now);
            let peer = ([198, 18, 0, 1], 4000).into();
            let mut account = Account::new(Direction::Outbound, now, peer, target);
            let source = Arc::new(source());
            account.source = Some(source.clone());
            // Until the slow one is drawn: the other one has to be looked up.
            let course = loop {
                let plan = match shell.with(|core| core.choose(&pod, &source, peer, target, &[])) {
                    Ok(Decision::Go(plan)) => plan,
                    Ok(Decision::Resolve(_)) => continue,
                    Err(error) => panic!("{error}"),
                };
                let course = shell.with(|core| core.course(&pod, &source, plan, &mut account));
                break course.unwrap_or_else(|error| panic!("{error}"));
            };
            let connected = connect(&shell, &pod, course, target, &mut account).await;
            *failure.borrow_mut() = connected.err().map(|outcome| outcome.to_string());
        }
    });
    executor.run(10);
    // It waits for its certificate, for longer than those who have a choice are patient.
    shell.with(|core| fixture::pass(core, limits::ENDPOINT_PATIENCE * 2));
    executor.run(10);
    let mut demanded = std::iter::from_fn(|| asked.try_recv().ok());
    assert!(matches!(demanded.next(), Some(Demand::Certificate { .. })));
    let lookup = demanded.next();
    assert!(
        matches!(&lookup, Some(Demand::Lookup { question: Question::Host(name), .. }) if &**name == "legacy.example"),
        "{lookup:?}"
    );
    assert_eq!(*failure.borrow(), None);
    shell.with(|core| core.take_certificate(identity("till"), Err(CertificateError::no_longer_needed())));
    for _ in 0..4 {
        executor.run(10);
    }
    let failure = failure.borrow_mut().take();
    assert!(
        failure
            .as_ref()
            .is_some_and(|failure| failure.contains("no longer needed")),
        "{failure:?}, although nobody has answered for the name"
    );
}
