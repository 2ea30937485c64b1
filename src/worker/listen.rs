//! Accepting captured connections and giving each to the worker that serves it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::core::{Core, TimerEvent};
use super::placement;
use super::pods::PodState;
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

    /// Takes a connection that this worker is to serve: its journey starts at the end of the turn.
    pub(super) fn capture(
        &mut self,
        pod: Rc<PodState>,
        capture: Capture,
        fd: Descriptor,
        peer: SocketAddr,
        share: LoadShare,
    ) {
        let tenant = self.tenants.of_captured(&pod, capture, peer);
        let cost = match capture {
            Capture::InboundHbone => limits::HANDSHAKE_COST,
            Capture::Outbound | Capture::InboundPlaintext => limits::SETUP_COST,
        };
        self.tenants.note(&tenant, cost);
        let Some(unbegun) = Unbegun::new(&tenant) else {
            self.shed += 1;
            self.telemetry
                .count_refused(capture.direction(), Refusal::Capacity);
            return;
        };
        self.captured.push(Captured {
            pod,
            capture,
            fd,
            peer,
            share,
            unbegun,
        });
    }
}
