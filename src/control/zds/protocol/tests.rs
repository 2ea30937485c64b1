//! Every row of the protocol's table, without a socket.

use prost::Message;

use super::*;
use crate::wire::zds::proto;

/// In place of an open namespace.
type Fake = u32;

fn id(inode: u64) -> NamespaceId {
    NamespaceId { device: 4, inode }
}

fn info(name: &str) -> PodInfo {
    PodInfo {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        service_account: "cart".to_owned(),
    }
}

fn packet(payload: proto::workload_request::Payload) -> Vec<u8> {
    proto::WorkloadRequest {
        payload: Some(payload),
    }
    .encode_to_vec()
}

fn add(uid: &str) -> Vec<u8> {
    packet(proto::workload_request::Payload::Add(proto::AddWorkload {
        uid: uid.to_owned(),
        workload_info: Some(proto::WorkloadInfo {
            name: uid.to_owned(),
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
        }),
    }))
}

fn keep(uid: &str) -> Vec<u8> {
    packet(proto::workload_request::Payload::Keep(proto::KeepWorkload {
        uid: uid.to_owned(),
    }))
}

fn del(uid: &str) -> Vec<u8> {
    packet(proto::workload_request::Payload::Del(proto::DelWorkload {
        uid: uid.to_owned(),
    }))
}

const SNAPSHOT_SENT: &[u8] = &[0x1a, 0x00];

fn ack() -> Effect<Fake> {
    Effect::Send(zds::encode_ack())
}

fn refused(text: &str) -> Effect<Fake> {
    Effect::Send(zds::encode_nack(text))
}

fn stop(uid: &str) -> Effect<Fake> {
    Effect::Stop(PodUid::new(uid))
}

fn connected() -> Protocol<Fake> {
    let mut protocol = Protocol::new();
    assert_eq!(protocol.connected(), [Effect::Send(vec![0x08, 0x01])]);
    protocol
}

/// Connected, an empty snapshot received.
fn live() -> Protocol<Fake> {
    let mut protocol = connected();
    assert_eq!(told(&mut protocol, SNAPSHOT_SENT), [ack()]);
    protocol
}

fn told(protocol: &mut Protocol<Fake>, packet: &[u8]) -> Vec<Effect<Fake>> {
    protocol.received(packet, Attachment::Nothing)
}

fn offered(protocol: &mut Protocol<Fake>, uid: &str, inode: u64) -> Vec<Effect<Fake>> {
    protocol.received(
        &add(uid),
        Attachment::Namespace {
            id: id(inode),
            namespace: inode as Fake,
        },
    )
}

/// The start that the last of the effects asks for.
fn start(mut effects: Vec<Effect<Fake>>) -> Start<Fake> {
    match effects.pop() {
        Some(Effect::Start(start)) => start,
        other => panic!("a start was expected, not {other:?}"),
    }
}

fn started(protocol: &mut Protocol<Fake>, uid: &str, inode: u64) {
    let start = start(offered(protocol, uid, inode));
    assert_eq!(
        (&start.uid, &start.info, start.id),
        (&PodUid::new(uid), &info(uid), id(inode))
    );
    assert_eq!(protocol.started(start, Ok(())), [ack()]);
}

#[test]
fn an_added_pod_is_started_once_and_acknowledged_when_it_listens() {
    let mut protocol = live();
    started(&mut protocol, "a", 7);
    assert_eq!(protocol.pods_running(), 1);
    assert_eq!(
        offered(&mut protocol, "a", 7),
        [ack()],
        "the same namespace again: nothing is restarted"
    );
}

#[test]
fn the_same_pod_in_another_namespace_replaces_the_old_one() {
    let mut protocol = live();
    started(&mut protocol, "a", 7);
    let effects = offered(&mut protocol, "a", 8);
    assert_eq!(effects[0], stop("a"));
    assert_eq!(effects.len(), 2);
    let start = start(effects);
    assert_eq!(start.id, id(8));
    assert_eq!(protocol.started(start, Ok(())), [ack()]);
    assert_eq!(offered(&mut protocol, "a", 8), [ack()]);
}

#[test]
fn ready_means_snapshot_received_and_nothing_pending() {
    let mut protocol = Protocol::new();
    assert!(!protocol.is_ready());
    protocol.connected();
    assert!(!protocol.is_ready());
    told(&mut protocol, SNAPSHOT_SENT);
    assert!(protocol.is_ready());
    let failed = start(offered(&mut protocol, "a", 7));
    protocol.started(failed, Err("no".to_owned()));
    assert!(!protocol.is_ready());
    told(&mut protocol, &del("a"));
    assert!(protocol.is_ready());
    protocol.disconnected();
    assert!(!protocol.is_ready());
}

#[test]
fn a_failed_start_is_refused_with_the_reason_and_retried_until_it_succeeds() {
    let mut protocol = live();
    let first = start(offered(&mut protocol, "a", 7));
    assert_eq!(
        protocol.started(first, Err("no such namespace".to_owned())),
        [
            Effect::ArmRetry,
            refused("failure to start proxy : no such namespace")
        ]
    );
    let second = start(offered(&mut protocol, "b", 8));
    assert_eq!(
        protocol.started(second, Err("port in use".to_owned())),
        [refused("failure to start proxy : port in use")],
        "an armed timer is not armed again"
    );
    assert_eq!((protocol.pods_running(), protocol.pods_pending()), (0, 2));

    let mut retries = protocol.retry();
    assert_eq!(retries.len(), 2);
    let (b, a) = (start(vec![retries.remove(1)]), start(vec![retries.remove(0)]));
    assert_eq!(
        protocol.started(a, Ok(())),
        [],
        "nobody asked, nobody is answered"
    );
    assert_eq!(
        protocol.started(b, Err("port in use".to_owned())),
        [Effect::ArmRetry]
    );
    assert_eq!((protocol.pods_running(), protocol.pods_pending()), (1, 1));

    let b = start(protocol.retry());
    assert_eq!(protocol.started(b, Ok(())), []);
    assert!(protocol.is_ready());
    assert_eq!(protocol.retry(), []);
}

#[test]
fn a_pending_pod_that_is_added_again_is_tried_at_once() {
    let mut protocol = live();
    let first = start(offered(&mut protocol, "a", 7));
    protocol.started(first, Err("no".to_owned()));
    started(&mut protocol, "a", 9);
    assert_eq!(protocol.pods_pending(), 0);
}

#[test]
fn a_deleted_pod_stops_and_an_unknown_one_is_no_error() {
    let mut protocol = live();
    started(&mut protocol, "a", 7);
    assert_eq!(told(&mut protocol, &del("a")), [stop("a"), ack()]);
    assert_eq!(told(&mut protocol, &del("a")), [ack()]);
}

#[test]
fn a_reconnect_keeps_pods_running_and_the_end_of_the_snapshot_stops_those_not_named() {
    let mut protocol = live();
    for (uid, inode) in [("added", 1), ("deleted", 2), ("kept", 3), ("unnamed", 4)] {
        started(&mut protocol, uid, inode);
    }
    protocol.disconnected();
    assert_eq!(protocol.pods_running(), 4);
    protocol.connected();
    assert_eq!(offered(&mut protocol, "added", 1), [ack()]);
    assert_eq!(told(&mut protocol, &keep("kept")), [ack()]);
    assert_eq!(told(&mut protocol, &keep("never seen")), [ack()]);
    assert_eq!(told(&mut protocol, &keep("deleted")), [ack()]);
    assert_eq!(
        told(&mut protocol, &del("deleted")),
        [ack()],
        "it stops at the end of the snapshot"
    );
    assert_eq!(
        told(&mut protocol, SNAPSHOT_SENT),
        [stop("deleted"), stop("unnamed"), ack()]
    );
    assert_eq!(protocol.pods_running(), 2);
}

#[test]
fn a_connection_forgets_what_was_pending() {
    let mut protocol = live();
    let failed = start(offered(&mut protocol, "a", 7));
    protocol.started(failed, Err("no".to_owned()));
    protocol.disconnected();
    protocol.connected();
    assert_eq!(told(&mut protocol, SNAPSHOT_SENT), [ack()]);
    assert!(protocol.is_ready());
    assert_eq!(protocol.retry(), []);
    let failed = start(offered(&mut protocol, "a", 7));
    let effects = protocol.started(failed, Err("no".to_owned()));
    assert_eq!(
        effects[0],
        Effect::ArmRetry,
        "the timer belongs to the connection"
    );
}

#[test]
fn a_pod_whose_start_failed_in_the_snapshot_counts_as_named() {
    let mut protocol = live();
    started(&mut protocol, "a", 7);
    protocol.disconnected();
    protocol.connected();
    let effects = protocol.received(&add("a"), Attachment::Unusable("bad descriptor".to_owned()));
    assert_eq!(effects, [refused("failure to start proxy : bad descriptor")]);
    assert_eq!(
        told(&mut protocol, SNAPSHOT_SENT),
        [ack()],
        "it goes on running in the namespace it has"
    );
}

#[test]
fn nonsense_is_refused_and_the_connection_made_anew_while_pods_run_on() {
    let namespace = || Attachment::Namespace {
        id: id(7),
        namespace: 7,
    };
    let mut no_info = add("a");
    no_info = {
        let mut message = proto::WorkloadRequest::decode(&no_info[..]).expect("an add");
        if let Some(proto::workload_request::Payload::Add(add)) = &mut message.payload {
            add.workload_info = None;
        }
        message.encode_to_vec()
    };
    let cases: [(&str, Vec<u8>, Attachment<Fake>); 9] = [
        (
            "failure to read message : received truncated message",
            add("a"),
            Attachment::Truncated,
        ),
        (
            "failure to read message : more than one descriptor",
            add("a"),
            Attachment::Several,
        ),
        (
            "failure to read message : No control message",
            add("a"),
            Attachment::Nothing,
        ),
        (
            "failure to read message : Unexpected control message",
            del("a"),
            namespace(),
        ),
        (
            "failure to read message : no payload",
            vec![],
            Attachment::Nothing,
        ),
        (
            "failure to read message : no payload",
            vec![0xff; 40],
            namespace(),
        ),
        (
            "failure to process message : workload_info is required but not present",
            no_info,
            namespace(),
        ),
        (
            "failure to process message : pod keep received after snapshot",
            keep("a"),
            Attachment::Nothing,
        ),
        (
            "failure to process message : pod snapshot received already",
            SNAPSHOT_SENT.to_vec(),
            Attachment::Nothing,
        ),
    ];
    for (text, packet, attachment) in cases {
        let mut protocol = live();
        started(&mut protocol, "runs", 1);
        let effects = protocol.received(&packet, attachment);
        let [Effect::Send(reply), Effect::Reconnect(_)] = &effects[..] else {
            panic!("{text}: {effects:?}");
        };
        let response = proto::WorkloadResponse::decode(&reply[..]).expect("a response");
        let Some(proto::workload_response::Payload::Ack(ack)) = response.payload else {
            panic!("{text}: no ack");
        };
        assert!(
            ack.error.starts_with(text),
            "{:?} starts with {text:?}",
            ack.error
        );
        assert_eq!(protocol.pods_running(), 1);
    }
}
