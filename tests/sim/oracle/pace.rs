//! Nobody waits for somebody else's application: connections whose own applications do not stop come to their end in
//! a time that follows from what their world is like, however long others do.

use std::time::Duration;

use uztunnel::sys::sim::faults::Fault;

use super::Wrong;
use crate::actor::Actor;
use crate::plan::{ConnectionPlan, Disturb, Plan, Script};
use crate::world::World;

/// What a connection takes besides moving bytes: its certificate (60 ms at most here), and what is told once in
/// 200 ms (a failed dial) or less.
const SETUP: Duration = Duration::from_secs(1);
/// A SYN that meets a full queue comes again after a second.
const SYN_AGAIN: Duration = Duration::from_secs(1);
/// Ways over the network until a session is there and its stream is answered: SYN, two flights of TLS, CONNECT, the
/// application's SYN, each with its answer.
const WAYS_TO_SET_UP: u32 = 10;
/// How often a byte is in a queue that others share, and its window behind them on the way back: there and back, on
/// the session and at both applications.
const QUEUES: u32 = 6;
/// Bytes of headers and records around a piece, and pieces that a script has at most.
const OVERHEAD_BYTES: u64 = 60 * 1_000;

/// What is wrong, if it took too long.
pub fn check(world: &World, plan: &ConnectionPlan, client: &Actor, server: &Actor) -> Option<Wrong> {
    let flows = |script: &Script| script.stall.is_none() && script.think_us_max == 0;
    if !flows(&plan.client_script) || !flows(&plan.server_script) || is_slow(&world.plan) {
        return None;
    }
    let ended = client.finished_at?.max(server.finished_at?);
    let took = ended.saturating_sub(world.plan.age + plan.start);
    let bound = bound(world, plan);
    (took > bound).then(|| ("pace", format!("took {took:?}, more than {bound:?}")))
}

/// Worlds whose proxies, network or certificates make everybody wait.
fn is_slow(plan: &Plan) -> bool {
    let waits = [
        Fault::ConnectRefused,
        Fault::ConnectUnanswered,
        Fault::QueueFull,
        Fault::NoDescriptors,
    ];
    waits.iter().any(|fault| plan.shape.rates.get(*fault) > 0.0)
        || plan.disturbances.iter().any(|disturbance| {
            matches!(
                disturbance.what,
                Disturb::SlowWorker { .. } | Disturb::Expiry { .. }
            )
        })
}

fn bound(world: &World, connection: &ConnectionPlan) -> Duration {
    let plan = &world.plan;
    let bytes_of = |connection: &ConnectionPlan| {
        connection.client_script.bytes + connection.server_script.bytes + OVERHEAD_BYTES
    };
    let (own, all) = (
        bytes_of(connection),
        plan.connections.iter().map(bytes_of).sum::<u64>(),
    );
    let latency = Duration::from_micros(plan.shape.latency_us.1);
    // A third of a buffer is filled again at least with every way of its reader's news.
    let filled = (plan.shape.buffer_bytes.0 / 3).max(1) as u64;
    let bandwidth = plan.shape.bandwidth.map_or(u64::MAX, |(least, _)| least);
    let over_session =
        latency * ways(all, filled) + Duration::from_nanos(all.saturating_mul(1_000_000_000) / bandwidth);
    // Half of a window is given back at least, and takes a way there and one back.
    let window = plan.nodes.iter().map(|node| node.stream_window_bytes / 2).min();
    let by_window = latency * 2 * ways(own, u64::from(window.unwrap_or(1).max(1)));
    let streams_max = plan.nodes.iter().map(|node| node.session_streams_max).min();
    let dials = plan.connections.len() / streams_max.unwrap_or(1).max(1) + 1;
    let set_up = latency * WAYS_TO_SET_UP * dials as u32;
    let queues_full = world.network.struck().get(Fault::QueueFull) as u32;
    SETUP + SYN_AGAIN * queues_full + set_up + (over_session + by_window) * QUEUES
}

fn ways(bytes: u64, at_once: u64) -> u32 {
    u32::try_from(bytes / at_once + 1).unwrap_or(u32::MAX)
}
