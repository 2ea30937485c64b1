//! Accepting captured connections and giving each to the worker that serves it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::core::{Core, TimerEvent};
use super::placement;
use super::pods::PodState;
use super::room::Place;
use super::tenants::Unbegun;
use crate::bridge::load::LoadShare;
use crate::bridge::orders::{Capture, Order};
use crate::bridge::traffic::Refusal;
use crate::limits;
use crate::runtime::slab::Key;
use crate::sys::descriptor::Descriptor;
use crate::sys::driver::{Driver, Event, SocketId};

pub struct Listener {
    pub socket: Option<SocketId>,
    pub pod: Rc<PodState>,
    pub capture: Capture,
}

/// A captured connection that this worker serves.
pub struct Captured {
    pub pod: Rc<PodState>,
    pub capture: Capture,
    pub fd: Descriptor,
    pub peer: SocketAddr,
    pub share: LoadShare,
    pub place: Place,
    /// To be dropped when its journey begins.
    pub unbegun: Unbegun,
}

/// How long accepting pauses when descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl<D: Driver + 'static> Core<D> {
    pub fn listener_event(&mut self, key: Key<Listener>, event: Event) {
        match event {
            Event::Accepted { fd, peer, .. } => self.accepted(key, fd, peer),
            Event::AcceptFailed { error, .. } => {
                tracing::warn!(target: "worker", %error, "accepting pauses for 100 ms");
                self.timers
                    .start(self.now + ACCEPT_PAUSE, TimerEvent::Listen(key));
            }
            Event::Connected { .. } | Event::Received { .. } | Event::Sent { .. } | Event::Woken => {}
        }
    }

    pub fn resume_listener(&mut self, key: Key<Listener>) {
        if let Some(socket) = self.listeners.get(key).and_then(|listener| listener.socket) {
            self.driver.listen(socket);
        }
    }

    fn accepted(&mut self, key: Key<Listener>, fd: Descriptor, peer: SocketAddr) {
        let Some(listener) = self.listeners.get(key) else {
            return;
        };
        let (pod, capture) = (listener.pod.clone(), listener.capture);
        let random = &mut self.random;
        let worker = placement::place(capture, self.index, &self.load, |workers| {
            random.usize(0..workers)
        });
        let share = self.load.share_socket(worker, capture.direction());
        if worker == self.index {
            self.capture(pod, capture, fd, peer, share);
        } else {
            let uid = pod.pod.uid.clone();
            // A worker that has ended drops the order, and the share with it.
            self.peers[worker].send(Order::HandOver {
                pod: uid,
                capture,
                fd,
                peer,
                share,
            });
        }
    }

    /// Takes a connection that this worker is to serve: its journey starts at the end of the turn. One that there is no
    /// room for is closed, which tells its application at once.
    pub(super) fn capture(
        &mut self,
        pod: Rc<PodState>,
        capture: Capture,
        fd: Descriptor,
        peer: SocketAddr,
        share: LoadShare,
    ) {
        let tenant = self.tenants.of_captured(&pod, capture, peer);
        let (cost, files) = match capture {
            Capture::InboundHbone => (limits::HANDSHAKE_COST, 1),
            // Its own, and perhaps one to where it goes.
            Capture::Outbound | Capture::InboundPlaintext => (limits::SETUP_COST, 2),
        };
        self.tenants.note(&tenant, cost);
        let Some(unbegun) = Unbegun::new(&tenant) else {
            self.shed += 1;
            self.telemetry
                .count_refused(capture.direction(), Refusal::Capacity);
            return;
        };
        let place = match self.take_place(&tenant, &pod, peer.ip(), files) {
            Ok(place) => place,
            Err(why) => {
                let refusal = why.refusal();
                return self.telemetry.count_refused(capture.direction(), refusal);
            }
        };
        self.captured.push(Captured {
            pod,
            capture,
            fd,
            peer,
            share,
            place,
            unbegun,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{IpAddr, TcpStream};

    use super::*;
    use crate::bridge::Traffic;
    use crate::bridge::log::{Direction, log_queue};
    use crate::runtime::tasks::Executor;
    use crate::sys::epoll::EpollDriver;
    use crate::worker::fixture;
    use crate::worker::telemetry::Telemetry;

    const SOURCE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 40_000);

    /// A connection is captured; its application's end.
    fn capture(core: &mut Core<EpollDriver>, pod: &Rc<PodState>, capture: Capture) -> TcpStream {
        let (near, application) = fixture::connection();
        let share = core.load.share_socket(0, capture.direction());
        core.capture(pod.clone(), capture, near.into(), SOURCE, share);
        application
    }

    #[test]
    fn a_pod_with_more_than_its_part_is_shed_and_its_neighbour_and_its_peers_are_served() {
        let mut core = fixture::core(&Executor::default());
        let traffic = Traffic::default();
        core.telemetry = Telemetry::new(log_queue().0, traffic.shard());
        let [greedy, modest] = [fixture::pod(), fixture::pod()];
        let taken: Vec<_> = std::iter::from_fn(|| core.room.take(&greedy.tenant, 1).ok()).collect();
        for shed in [Capture::Outbound, Capture::InboundPlaintext] {
            let mut application = capture(&mut core, &greedy, shed);
            assert_eq!(application.read(&mut [0]).expect("closed in order"), 0);
        }
        assert_eq!((core.captured.len(), core.shed), (0, 2));
        let refused = |why| [Direction::Inbound, Direction::Outbound].map(|direction| ((direction, why), 1));
        assert_eq!(traffic.others().refused, refused(Refusal::TenantPart).into());
        let _served = [
            capture(&mut core, &modest, Capture::Outbound),
            capture(&mut core, &modest, Capture::InboundPlaintext),
            capture(&mut core, &greedy, Capture::InboundHbone),
        ];
        assert_eq!((core.captured.len(), core.shed), (3, 2));
        assert_eq!(core.room.taken(), taken.len() + 3);
    }

    #[test]
    fn a_full_worker_sheds_whoever_comes() {
        let mut core = fixture::core(&Executor::default());
        let traffic = Traffic::default();
        core.telemetry = Telemetry::new(log_queue().0, traffic.shard());
        let mut places = fixture::fill(&mut core);
        let pod = fixture::pod();
        let mut application = capture(&mut core, &pod, Capture::Outbound);
        assert_eq!(application.read(&mut [0]).expect("closed in order"), 0);
        let refused = [((Direction::Outbound, Refusal::WorkerFull), 1)];
        assert_eq!(traffic.others().refused, refused.into());
        places.pop();
        let _served = capture(&mut core, &pod, Capture::Outbound);
        assert_eq!((core.captured.len(), core.shed), (1, 1));
    }
}
