//! What is left when nothing goes on, when there are no pods, when everybody has ended.

use uztunnel::sys::driver::{Driver, InUse};
use uztunnel::worker::hbone::session::Role;

use crate::proxy::SimWorker;
use crate::world::{Finding, World};

/// A moment when nothing is going on: whatever a connection had taken is back.
pub fn idle(world: &World) -> Result<(), Finding> {
    for (node, proxy) in world.proxies.iter().enumerate() {
        for (index, worker) in proxy.workers.iter().enumerate() {
            let found = worker.look(|core| {
                let mut left = Left::default();
                left.count("tunnels", core.tunnels.len());
                left.count("pipes", core.pipes.len());
                left.count("waits of tasks", core.waits.len());
                left.count("places of connections", core.room.taken());
                left.count("streams that carry sessions", core.carriers.len());
                left.count("dirty sessions", core.dirty_sessions.len());
                left.count("dirty tunnels", core.dirty_tunnels.len());
                left.count("requests", core.requests.len());
                left.count("bytes of remains", core.remains_bytes);
                left.count("bytes that sources wait to be sent", core.sources.bytes());
                left.count("chunks pinned", core.buffers.chunks_pinned());
                left.count("receive buffers", core.driver.in_use().buffers);
                for (_, session) in core.sessions.iter() {
                    left.count("streams", session.users.len());
                    left.count("streams in the engine", usize::from(!session.http2.is_idle()));
                    left.count(
                        "unread bytes of ended streams",
                        session.http2.unread_bytes_all() as usize,
                    );
                    left.count("armed bytes", session.armed_bytes);
                    left.count("tunnels blocked by windows", session.blocked_window.len());
                    left.count("tunnels blocked by room", session.blocked_room.len());
                    left.count("buffered bytes of sessions", session.buffered_bytes());
                    let is_timed = session.timer.is_some_and(|timer| core.timers.is_running(timer));
                    left.count("sessions whose timer is lost", usize::from(!is_timed));
                    left.count("handshakes of a pod", session.pod.handshakes.get());
                    left.count("connections of a pod being set up", session.pod.setups.get());
                }
                left.found
            });
            if let Some(found) = found.flatten() {
                let what = format!("node {node}, worker {index}, with nothing going on: {found}");
                return Err(Finding::new("left", what));
            }
        }
        let loads: u32 = (0..proxy.workers.len())
            .map(|worker| proxy.load.connections(worker))
            .sum();
        let served: usize = proxy
            .workers
            .iter()
            .map(|worker| worker.look(|core| served(core)).unwrap_or(0))
            .sum();
        // A process that ends takes what was being set up with it.
        let has_ended = proxy.workers.iter().any(SimWorker::is_over);
        if loads as usize != served && !has_ended {
            let what = format!("node {node}: the load table counts {loads} connections of {served}");
            return Err(Finding::new("left", what));
        }
    }
    windows(world)
}

/// Sessions that were accepted: each has a place in the load table.
fn served(core: &uztunnel::worker::core::Core<uztunnel::sys::sim::SimDriver>) -> usize {
    let is_server = |role: &Role| match role {
        Role::Server => true,
        Role::Client { .. } => false,
    };
    core.sessions
        .iter()
        .filter(|(_, session)| is_server(&session.role))
        .count()
}

/// Both ends of an idle session agree about what may be sent.
fn windows(world: &World) -> Result<(), Finding> {
    let mut clients = Vec::new();
    let mut servers = Vec::new();
    for proxy in &world.proxies {
        for worker in &proxy.workers {
            worker.look(|core| {
                for (_, session) in core.sessions.iter() {
                    let credit = session.http2.credit();
                    match session.role {
                        Role::Client { .. } => clients.push((session.local_address, credit)),
                        Role::Server => servers.push((session.peer_address, credit)),
                    }
                }
            });
        }
    }
    for (address, client) in clients {
        let Some((_, server)) = servers.iter().find(|(peer, _)| *peer == address) else {
            continue;
        };
        for (way, sender, receiver) in [
            ("to the server", client, *server),
            ("to the client", *server, client),
        ] {
            if sender.may_send != receiver.granted {
                let what = format!(
                    "session of {address}, {way}: {} bytes may be sent, {} are granted",
                    sender.may_send, receiver.granted
                );
                return Err(Finding::new("credit", what));
            }
        }
    }
    Ok(())
}

/// Every pod is gone: so is everything that was made for them.
pub fn empty(world: &World) -> Result<(), Finding> {
    for (node, proxy) in world.proxies.iter().enumerate() {
        for (index, worker) in proxy.workers.iter().enumerate() {
            let found = worker.look(|core| {
                let mut left = Left::default();
                let in_use = core.driver.in_use();
                if in_use != InUse::default() {
                    left.found = Some(format!("{in_use:?}"));
                }
                left.count("sessions", core.sessions.len());
                left.count("streams that carry sessions", core.carriers.len());
                left.count("places of connections", core.room.taken());
                left.count("listeners", core.listeners.len());
                left.count("pods", core.pods.len());
                left.count("timers", core.timers.len());
                left.count("destinations in the pool", core.pool.len());
                left.count("chunks pinned", core.buffers.chunks_pinned());
                left.count(
                    "connections in the load table",
                    proxy.load.connections(index) as usize,
                );
                left.found
            });
            if let Some(found) = found.flatten() {
                let what = format!("node {node}, worker {index}, without pods: {found}");
                return Err(Finding::new("left", what));
            }
        }
    }
    Ok(())
}

/// Every worker has ended.
pub fn over(world: &World) -> Result<(), Finding> {
    let running = world
        .proxies
        .iter()
        .flat_map(|proxy| &proxy.workers)
        .filter(|worker| !worker.is_over())
        .count();
    match running {
        0 => Ok(()),
        running => Err(Finding::new("left", format!("{running} workers do not end"))),
    }
}

/// Remembers the first thing that is not zero.
#[derive(Default)]
struct Left {
    found: Option<String>,
}

impl Left {
    fn count(&mut self, what: &str, count: usize) {
        if count != 0 && self.found.is_none() {
            self.found = Some(format!("{what}: {count}"));
        }
    }
}
