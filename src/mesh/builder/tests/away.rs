//! Services that go and come again: who names them meanwhile.

use super::*;

const WEB: &str = "shop/web.shop";
const SICK: &str = "c1//Pod/shop/sick";

fn sick() -> Workload {
    Workload {
        status: Health::Unhealthy,
        ..behind(pod("sick", "10.0.0.3"), "web", &[])
    }
}

fn staged(snapshot: &Snapshot) -> Vec<String> {
    let waiting = snapshot.staged().flat_map(|(_, endpoints)| endpoints);
    let mut uids: Vec<String> = waiting.map(|it| it.workload_uid.to_string()).collect();
    uids.sort();
    uids
}

/// A mesh where the service has one endpoint, and keeps one out.
fn grown() -> Builder {
    let mut builder = builder();
    builder.insert_service(web());
    builder.insert_workload(server());
    builder.insert_workload(sick());
    assert_eq!(endpoints(&builder.build(), "web"), [SERVER]);
    builder
}

#[test]
fn a_service_that_comes_again_has_its_endpoints_at_once() {
    let mut builder = grown();
    builder.remove(WEB);
    let without = builder.build();
    assert!(
        without
            .service_by_address("net1", ip("10.96.0.1"), None)
            .is_none()
    );
    assert_eq!(staged(&without), [SERVER, SICK]);
    builder.insert_service(web());
    let again = builder.build();
    assert_eq!(endpoints(&again, "web"), [SERVER]);
    assert!(staged(&again).is_empty());
    // And is a service like others afterwards.
    builder.remove(SERVER);
    assert!(endpoints(&builder.build(), "web").is_empty());
    builder.insert_workload(server());
    assert_eq!(endpoints(&builder.build(), "web"), [SERVER]);
}

#[test]
fn endpoints_that_no_snapshot_has_seen_wait_as_well() {
    for again_in_one_push in [true, false] {
        let mut builder = builder();
        builder.insert_service(web());
        builder.insert_workload(server());
        builder.remove(WEB);
        if !again_in_one_push {
            assert_eq!(staged(&builder.build()), [SERVER]);
        }
        builder.insert_service(web());
        assert_eq!(endpoints(&builder.build(), "web"), [SERVER]);
    }
}

#[test]
fn a_removal_of_a_service_that_is_not_there_sends_nobody_away() {
    for is_applied in [true, false] {
        let mut builder = builder();
        builder.insert_workload(server());
        if is_applied {
            builder.build();
        }
        builder.remove(WEB);
        builder.insert_service(web());
        assert_eq!(endpoints(&builder.build(), "web"), [SERVER]);
    }
}

/// A change, who waits for the service after it, and whom the service has when it comes again.
type Case<'a> = (&'a dyn Fn(&mut Builder), &'a [&'a str], &'a [&'a str]);

#[test]
fn who_changes_while_the_service_is_away_is_what_it_has_become() {
    let unhealthy = || Workload {
        status: Health::Unhealthy,
        ..server()
    };
    let healthy = || behind(pod("sick", "10.0.0.3"), "web", &[]);
    let cases: [Case; 5] = [
        (&|it| it.insert_workload(unhealthy()), &[SERVER, SICK], &[]),
        (
            &|it| it.insert_workload(healthy()),
            &[SERVER, SICK],
            &[SERVER, SICK],
        ),
        (&|it| it.insert_workload(pod("server", "10.0.0.2")), &[SICK], &[]),
        (&|it| it.remove(SERVER), &[SICK], &[]),
        (&|it| it.remove(SICK), &[SERVER], &[SERVER]),
    ];
    for (at, (change, waiting, after)) in cases.into_iter().enumerate() {
        for (before_removal, in_one_push) in [(true, false), (false, false), (true, true), (false, true)] {
            let when = format!("case {at}: {before_removal}, {in_one_push}");
            let mut builder = grown();
            if before_removal {
                change(&mut builder);
                builder.remove(WEB);
            } else {
                builder.remove(WEB);
                builder.build();
                change(&mut builder);
            }
            if !in_one_push {
                assert_eq!(staged(&builder.build()), waiting, "{when}");
            }
            builder.insert_service(web());
            let snapshot = builder.build();
            assert_eq!(endpoints(&snapshot, "web"), after, "{when}");
            assert!(staged(&snapshot).is_empty(), "{when}");
        }
    }
}

#[test]
fn an_endpoint_that_changed_while_its_service_was_away_says_its_own_ports() {
    let mut builder = grown();
    builder.remove(WEB);
    builder.build();
    builder.insert_workload(behind(pod("server", "10.0.0.9"), "web", &[(80, 9090)]));
    builder.build();
    builder.insert_service(web());
    let snapshot = builder.build();
    let service = snapshot.service("shop", "web.shop").expect("there");
    let endpoint = snapshot.endpoints(service).next().expect("an endpoint");
    assert_eq!(endpoint.ports.get(80), Some(9090));
}

#[test]
fn whom_a_service_kept_out_it_may_let_in_when_it_comes_again() {
    use HealthPolicy::{AllowAll, OnlyHealthy};
    // It came sick while the service was there or before, fell sick, or another policy took it out.
    type Before<'a> = &'a dyn Fn(&mut Builder);
    let histories: [Before; 4] = [
        &|it| {
            it.insert_service(with_health_policy(OnlyHealthy));
            it.insert_workload(sick());
        },
        &|it| {
            it.insert_workload(sick());
            it.build();
            it.insert_service(with_health_policy(OnlyHealthy));
        },
        &|it| {
            it.insert_service(with_health_policy(OnlyHealthy));
            it.insert_workload(behind(pod("sick", "10.0.0.3"), "web", &[]));
            it.build();
            it.insert_workload(sick());
        },
        &|it| {
            it.insert_service(with_health_policy(AllowAll));
            it.insert_workload(sick());
            it.build();
            it.insert_service(with_health_policy(OnlyHealthy));
        },
    ];
    for (at, history) in histories.into_iter().enumerate() {
        let mut builder = builder();
        history(&mut builder);
        assert!(endpoints(&builder.build(), "web").is_empty(), "history {at}");
        builder.remove(WEB);
        builder.insert_service(with_health_policy(AllowAll));
        assert_eq!(endpoints(&builder.build(), "web"), [SICK], "history {at}");
        builder.remove(WEB);
        builder.insert_service(with_health_policy(OnlyHealthy));
        assert!(endpoints(&builder.build(), "web").is_empty(), "history {at}");
    }
}

#[test]
fn a_workload_whose_service_named_it_itself_waits_when_the_service_goes() {
    let endpoint = Endpoint {
        workload_uid: SERVER.into(),
        ports: ports(&[(80, 9090)]),
        status: Health::Healthy,
    };
    let mut builder = builder();
    builder.insert_workload(server());
    builder.build();
    builder.insert_service(Service {
        endpoints: [(SERVER.into(), endpoint)].into_iter().collect(),
        ..web()
    });
    let port = |snapshot: &Snapshot| {
        let service = snapshot.service("shop", "web.shop").expect("there");
        let endpoint = snapshot.endpoints(service).next().expect("an endpoint");
        endpoint.ports.get(80)
    };
    assert_eq!(port(&builder.build()), Some(9090));
    builder.remove(WEB);
    assert_eq!(staged(&builder.build()), [SERVER]);
    builder.insert_service(web());
    assert_eq!(port(&builder.build()), None, "its own say, which is none");
}

#[test]
fn nothing_is_kept_of_whom_a_service_lets_in_and_of_workloads_that_are_gone() {
    let mut builder = grown();
    assert!(!builder.outside.is_empty());
    builder.insert_workload(behind(pod("sick", "10.0.0.3"), "web", &[]));
    builder.build();
    assert!(builder.outside.is_empty());
    for is_away in [true, false] {
        let mut builder = grown();
        assert!(!builder.outside.is_empty());
        if is_away {
            builder.remove(WEB);
            builder.build();
            assert!(builder.outside.is_empty(), "they wait with the others");
        }
        builder.remove(SERVER);
        builder.remove(SICK);
        builder.build();
        assert!(builder.outside.is_empty());
        assert_eq!(builder.staged_services(), 0);
    }
}
