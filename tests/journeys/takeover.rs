//! A pod's address is taken over by another pod while sessions and streams to the old one are open, and the old one had
//! no chance to say goodbye.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uztunnel_rig::applications::Server;
use uztunnel_rig::istiod::{ADDRESS, Istiod, Resource};
use uztunnel_rig::lock;
use uztunnel_rig::zds::WorkloadInfo;
use uztunnel_rig::{Blueprint, Family, Pod, PodSpec, World, mesh_file, wait_until};

use crate::admin::dump;
use crate::setup::{options, workload};
use crate::silence::{end_silence, silence};
use crate::telemetry::sample;

const PORT: u16 = 4700;

/// Answers each byte with `name`, and keeps what it got.
fn serve(pod: &Pod, name: u8) -> (Server, Arc<Mutex<Vec<u8>>>) {
    let got = Arc::<Mutex<Vec<u8>>>::default();
    let record = got.clone();
    let server = pod.serve(PORT, move |mut stream, _| {
        let record = record.clone();
        async move {
            loop {
                let byte = stream.read_u8().await?;
                lock(&record).push(byte);
                stream.write_u8(name).await?;
            }
        }
    });
    (server, got)
}

async fn ask(stream: &mut TcpStream, byte: u8) -> io::Result<u8> {
    stream.write_u8(byte).await?;
    stream.read_u8().await
}

/// The workload of the pod that comes after `server` at its address.
fn successor(istiod: &Istiod, account: &str) -> Resource {
    let uid = "Kubernetes//Pod/shop/successor".to_owned();
    let new = workload(istiod, "server").changed(|workload| {
        workload.uid.clone_from(&uid);
        workload.name = "successor".to_owned();
        workload.service_account = account.to_owned();
    });
    Resource { name: uid, ..new }
}

/// `account`: the service account of the pod that comes after.
fn take_over(account: &str) {
    let blueprint = Blueprint::two_nodes().pod(PodSpec::new("second", 0));
    let mut world = World::build(blueprint).expect("a world");
    let istiod = Istiod::serve(&world).expect("a control plane");
    let options = options().map(|options| istiod.options(options));
    world.start_proxies(&options).expect("ready proxies");
    let (client, pod) = (world.pod("client"), world.pod("server"));
    let target = pod.address(Family::V4, PORT);
    let (server, got_by_old) = serve(pod, b'o');
    let stream = client.run(async move {
        let mut stream = TcpStream::connect(target).await?;
        assert_eq!(ask(&mut stream, b'1').await?, b'o');
        // Another one on the same session ends, so that the session is one that could be used again.
        let mut ended = TcpStream::connect(target).await?;
        assert_eq!(ask(&mut ended, b'2').await?, b'o');
        io::Result::Ok(stream)
    });
    let mut stream = stream.expect("a conversation");
    // As if its node died: the client's side learns nothing of the end of the old pod.
    silence(pod);
    let agent = &world.nodes[1].agent;
    agent.delete(&pod.uid).expect("sent");
    drop(server);
    let info = WorkloadInfo {
        name: "successor".to_owned(),
        namespace: "shop".to_owned(),
        service_account: account.to_owned(),
    };
    agent
        .add("8f1c2d3e-0000-4000-8000-00000000beef", info, pod.namespace.fd())
        .expect("sent");
    let (_server, got_by_new) = serve(pod, b'n');
    let old_uid = mesh_file::workload_uid(&pod.spec);
    let successor = successor(&istiod, account);
    let new_uid = successor.name.clone();
    let nonces = istiod.update(ADDRESS, vec![successor]).into_iter();
    for nonce in nonces.chain(istiod.remove(ADDRESS, &[&old_uid])) {
        assert_eq!(istiod.wait_for_answer(&nonce).error, None);
    }
    // Answered comes before in force.
    wait_until("the new pod in the mesh, and the old one gone from it", || {
        let shown = dump(&world, 0);
        let workloads = shown["workloads"].as_array()?;
        let is_there = |uid: &str| workloads.iter().any(|it| it["uid"] == *uid);
        (is_there(&new_uid) && !is_there(&old_uid)).then_some(())
    });
    // The old conversation goes on, into the silence; the new one begins when the address answers again.
    let old = client.spawn(async move {
        let answer = ask(&mut stream, b'x').await;
        answer.map_err(|error| error.kind())
    });
    wait_until("the old conversation to be on its way", || {
        let labels = ["reporter=\"source\"", "source_workload=\"client\""];
        let moved = sample(&world, 0, "istio_tcp_received_bytes_total", &labels);
        (moved == 3).then_some(())
    });
    end_silence(pod);
    let mut answer = client.run(async move {
        let mut stream = TcpStream::connect(target).await?;
        let answer = ask(&mut stream, b'a').await?;
        io::Result::Ok((answer, stream))
    });
    let (answer, _new) = answer.as_mut().expect("the first connection to the new one");
    assert_eq!(*answer, b'n');
    let answer = client.run(async move { old.await.expect("no panic") });
    assert_eq!(
        answer,
        Err(io::ErrorKind::ConnectionReset),
        "the old conversation is over"
    );
    let got = |by: &Mutex<Vec<u8>>| lock(by).clone();
    assert_eq!(got(&got_by_old), b"12");
    assert_eq!(
        got(&got_by_new),
        b"a",
        "what was meant for the old one reached the new one"
    );
    // Who the new one proved to be is what callers asked for.
    let third = world.pod("second").run(async move {
        let mut stream = TcpStream::connect(target).await?;
        ask(&mut stream, b'b').await
    });
    assert_eq!(third.expect("another client's"), b'n');
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let logs = &world.nodes[0].proxy().logs;
    let record = logs.wait_for_access("the connection to the new pod", |record| {
        record.field("dst.workload") == "successor" && record.field("dst.identity") == identity
    });
    record.expect("the new one's identity");
}

#[test]
fn an_address_that_another_identity_takes_over_gets_nothing_that_was_meant_for_the_old_one() {
    take_over("successor");
}

#[test]
fn an_address_that_another_pod_of_the_same_identity_takes_over_gets_nothing_that_was_meant_for_the_old_one() {
    take_over("server");
}
