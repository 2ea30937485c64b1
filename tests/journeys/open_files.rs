//! Open files are the process's, whoever needs them: one pod that takes all that it can leaves some for its neighbours,
//! and for the proxy itself.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uztunnel_rig::{Family, Pod, PodSpec, World, wait_until};

use crate::setup::{BODY_BYTES, HTTP_PORT, options, plan, serve_http};
use crate::telemetry::sample;

const ALLOWED: usize = 1024;
/// An eighth is not for connections, and one pod leaves an eighth of the rest.
const OF_ONE_POD: usize = ALLOWED / 8 * 7 / 8 * 7;
const PORT: u16 = 4500;

/// Opens so many connections that stay; those that were served.
fn open(pod: &Pod, target: SocketAddr, count: usize) -> Vec<TcpStream> {
    pod.run(async move {
        let mut held = Vec::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(target).await.expect("captured");
            let echo = async {
                stream.write_all(b"?").await?;
                stream.read_u8().await
            };
            let answered: io::Result<u8> = tokio::time::timeout(Duration::from_secs(15), echo)
                .await
                .expect("an answer or an end");
            if answered.is_ok() {
                held.push(stream);
            }
        }
        held
    })
}

#[test]
fn a_pod_that_takes_all_it_can_leaves_open_files_for_its_neighbours() {
    let mut world = World::build(plan().pod(PodSpec::new("modest", 0))).expect("a world");
    let [mut first, second] = options();
    let script = format!("ulimit -n {ALLOWED} && exec \"$0\" \"$@\"");
    first.wrapper = ["sh", "-c", &script].map(str::to_owned).into();
    world.start_proxies(&[first, second]).expect("ready proxies");
    // Outside of the mesh: two files for each connection.
    let stranger = world.pod("stranger");
    let _echo = stranger.serve(PORT, async |mut stream: TcpStream, _| {
        let mut byte = [0];
        while stream.read(&mut byte).await? > 0 {
            stream.write_all(&byte).await?;
        }
        Ok(())
    });
    let _http = serve_http(stranger);
    let target = stranger.address(Family::V4, PORT);

    let held = open(world.pod("client"), target, ALLOWED / 2 + 50);
    assert!(held.len() <= OF_ONE_POD / 2, "{} connections", held.len());
    assert!(held.len() > OF_ONE_POD / 2 - 40, "{} connections", held.len());
    let refused = ["reporter=\"source\"", "reason=\"tenant_part\""];
    assert!(sample(&world, 0, "uztunnel_connections_refused_total", &refused) > 0);

    let modest = open(world.pod("modest"), target, 20);
    assert_eq!(modest.len(), 20);
    let http = stranger.address(Family::V4, HTTP_PORT);
    let response = world.pod("modest").run(uztunnel_rig::http::get(http, "/"));
    assert_eq!(response.expect("a response").body.len(), BODY_BYTES);

    drop(held);
    wait_until("there is room again", || {
        (open(world.pod("client"), target, 1).len() == 1).then_some(())
    });
}
