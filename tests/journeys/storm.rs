//! Streams reset at random under load, each carrying its own byte pattern: no byte ever appears on another connection.
//!
//! `JOURNEYS_STORM_SECONDS` sets the length (default 5).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use uztunnel_rig::applications::{Server, reset};
use uztunnel_rig::pattern::Pattern;
use uztunnel_rig::{Family, PodSpec, World};

use crate::setup::start;

const PORT: u16 = 4400;
/// Of a storm that is not the main one.
const SHORT_SECONDS: u64 = 3;
const TASKS: usize = 24;

/// What one connection does, drawn from its number. Both sides know it.
#[derive(Debug, Clone, Copy)]
struct Script {
    number: u64,
    /// Bytes in each direction.
    there: u64,
    back: u64,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Orderly,
    /// After so many bytes were received.
    ResetByClient(u64),
    ResetByServer(u64),
}

impl Script {
    fn of(number: u64) -> Self {
        let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D;
        let mut draw = |below: u64| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_F491_4F6C_DD1D) % below
        };
        let size = |draw: &mut dyn FnMut(u64) -> u64| 1 + (draw(1 << 20) >> draw(16));
        let (there, back) = (size(&mut draw), size(&mut draw));
        let end = match draw(3) {
            0 => End::Orderly,
            1 => End::ResetByClient(draw(back)),
            _ => End::ResetByServer(draw(there)),
        };
        Self {
            number,
            there,
            back,
            end,
        }
    }

    fn patterns(&self) -> [Pattern; 2] {
        [Pattern::new(2 * self.number), Pattern::new(2 * self.number + 1)]
    }
}

/// Sends one pattern and checks the other. `stop_after`: give up after so many received bytes.
async fn exchange(
    (reader, writer): (&mut ReadHalf<'_>, &mut WriteHalf<'_>),
    (sending, bytes): (Pattern, u64),
    receiving: Pattern,
    stop_after: Option<u64>,
) -> io::Result<u64> {
    let sent = async {
        sending.send(writer, bytes).await?;
        writer.shutdown().await
    };
    let received = receiving.receive_up_to(reader, stop_after.unwrap_or(u64::MAX));
    match stop_after {
        Some(_) => {
            // The reset comes when enough was received, whatever is still to be sent.
            tokio::select! {
                biased;
                received = received => received,
                error = async { match sent.await { Ok(()) => std::future::pending().await, Err(error) => error } } => {
                    Err(error)
                }
            }
        }
        None => {
            let (sent, received) = tokio::join!(sent, received);
            sent?;
            received
        }
    }
}

async fn serve(mut stream: TcpStream, _peer: SocketAddr) -> io::Result<()> {
    let script = Script::of(stream.read_u64().await?);
    let [there, back] = script.patterns();
    let stop_after = match script.end {
        End::ResetByServer(bytes) => Some(bytes),
        End::Orderly | End::ResetByClient(_) => None,
    };
    let (mut reader, mut writer) = stream.split();
    let received = exchange((&mut reader, &mut writer), (back, script.back), there, stop_after).await?;
    match script.end {
        End::ResetByServer(_) => reset(stream),
        End::Orderly if received != script.there => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{received} bytes of {script:?}"),
        )),
        End::Orderly | End::ResetByClient(_) => Ok(()),
    }
}

async fn call(target: SocketAddr, number: u64) -> io::Result<()> {
    let script = Script::of(number);
    let [there, back] = script.patterns();
    let stop_after = match script.end {
        End::ResetByClient(bytes) => Some(bytes),
        End::Orderly | End::ResetByServer(_) => None,
    };
    let mut stream = TcpStream::connect(target).await?;
    stream.write_u64(number).await?;
    let (mut reader, mut writer) = stream.split();
    let received = exchange(
        (&mut reader, &mut writer),
        (there, script.there),
        back,
        stop_after,
    )
    .await?;
    match script.end {
        End::ResetByClient(_) => reset(stream),
        End::Orderly if received != script.back => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{received} bytes of {script:?}"),
        )),
        End::Orderly | End::ResetByServer(_) => Ok(()),
    }
}

#[derive(Default)]
struct Counts {
    orderly: AtomicU64,
    reset: AtomicU64,
    next: AtomicU64,
}

/// Calls until the time is over. An orderly script has to end orderly; any other may end with an error, but never with
/// wrong bytes.
async fn keep_calling(target: SocketAddr, until: Instant, counts: Arc<Counts>) {
    while Instant::now() < until {
        let number = counts.next.fetch_add(1, Ordering::Relaxed);
        let script = Script::of(number);
        let outcome = tokio::time::timeout(Duration::from_secs(20), call(target, number)).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{script:?} hangs"));
        match (script.end, outcome) {
            (_, Err(error)) if error.kind() == io::ErrorKind::InvalidData => panic!("{script:?}: {error}"),
            (End::Orderly, Err(error)) => panic!("{script:?}: {error}"),
            (End::Orderly, Ok(())) => counts.orderly.fetch_add(1, Ordering::Relaxed),
            (End::ResetByClient(_) | End::ResetByServer(_), Ok(()) | Err(_)) => {
                counts.reset.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

fn storm_seconds() -> u64 {
    let text = std::env::var("JOURNEYS_STORM_SECONDS").unwrap_or_else(|_| "5".to_owned());
    text.parse()
        .unwrap_or_else(|_| panic!("JOURNEYS_STORM_SECONDS={text}: expected a number of seconds"))
}

/// Streams from pods to addresses, of which these servers get to see the ends.
fn storm_between(world: &World, servers: &[(&str, u16)], calls: &[(&'static str, SocketAddr)], seconds: u64) {
    let servers = servers
        .iter()
        .map(|(name, port)| world.pod(name).serve(*port, serve));
    let servers: Vec<Server> = servers.collect();
    let until = Instant::now() + Duration::from_secs(seconds);
    let counts = Arc::<Counts>::default();
    let mut running = Vec::new();
    for (client, target) in calls.iter().copied().cycle().take(TASKS) {
        let counts = Arc::clone(&counts);
        let calling = world
            .pod(client)
            .spawn(async move { keep_calling(target, until, counts).await });
        running.push((client, calling));
    }
    for (client, calling) in running {
        world
            .pod(client)
            .run(async move { calling.await.expect("no wrong byte and no hanging stream") });
    }
    for server in servers {
        let wrong = server
            .ended()
            .iter()
            .filter(|end| **end == Err(io::ErrorKind::InvalidData))
            .count();
        assert_eq!(wrong, 0, "connections on which a server saw wrong bytes");
    }
    let (orderly, reset) = (
        counts.orderly.load(Ordering::Relaxed),
        counts.reset.load(Ordering::Relaxed),
    );
    println!("{orderly} connections ended orderly, {reset} were reset");
    assert!(
        orderly > 50 && reset > 50,
        "too few to mean anything: {orderly} orderly, {reset} reset"
    );
}

/// A short one, of two pods to one server.
pub fn storm_through(world: &World, (server, port): (&str, u16), targets: [SocketAddr; 2]) {
    let [first, second] = targets;
    let calls = [
        ("client", first),
        ("cart", first),
        ("client", second),
        ("cart", second),
    ];
    storm_between(
        world,
        &[(server, port)],
        &calls,
        storm_seconds().min(SHORT_SECONDS),
    );
}

#[test]
fn no_byte_ever_appears_on_another_connection_while_streams_are_reset_at_random() {
    let world = start(crate::setup::plan().pod(PodSpec::new("other", 1)));
    // Two tenants on either side, so that a foreign byte could also be another tenant's.
    let pairs = [("client", "server"), ("cart", "other")];
    let calls = Family::BOTH
        .into_iter()
        .flat_map(|family| pairs.map(|(client, server)| (client, world.pod(server).address(family, PORT))));
    let calls: Vec<_> = calls.collect();
    storm_between(
        &world,
        &[("server", PORT), ("other", PORT)],
        &calls,
        storm_seconds(),
    );
}
