//! The pods of the node as one worker sees them: all of them, each with the listeners it accepts on, if it is
//! the pod's home.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::core::Core;
use super::hbone::session::{Ending, Session};
use super::listen::Listener;
use super::outcome::Outcome;
use super::owner::Owned;
use super::tenants::Tenant;
use crate::bridge::orders::{Capture, Pod, PodListeners, PodUid};
use crate::limits;
use crate::mesh::{PolicySet, Workload};
use crate::planted::{Bug, is_planted};
use crate::runtime::slab::{Key, Slab};
use crate::sys::descriptor::Descriptor;
use crate::sys::driver::{Close, Driver};
use crate::wire::http2::Settings;

/// How many of something each source has; sources without any are not there.
type BySource = HashMap<IpAddr, usize>;

/// A pod that is served. Connections hold it; `gone` tells those that outlive it for a moment.
pub struct PodState {
    pub pod: Arc<Pod>,
    /// Stands for what its own connections cost.
    pub tenant: Rc<Tenant>,
    pub gone: Cell<bool>,
    /// Handshakes that peers of this pod have under way on this worker.
    pub handshakes: Cell<usize>,
    pub handshakes_by_source: RefCell<BySource>,
    /// Connections of this pod that are being set up on this worker.
    pub setups: Cell<usize>,
    /// Connections of this pod whose destinations are looked up, on this worker.
    pub lookups: Cell<usize>,
    /// Sessions that peers of this pod have on this worker.
    pub sessions: Cell<usize>,
    pub sessions_by_source: RefCell<BySource>,
    /// Bytes of its streams that are over, which its applications have not read yet.
    pub remains_bytes: Cell<usize>,
    /// What its live connections have been judged by, or are being judged by.
    pub judged: RefCell<Option<Judged>>,
    /// They are being judged again.
    pub is_rejudged: Cell<bool>,
    /// Tasks that end when the pod goes.
    leaving: RefCell<Slab<Waker>>,
}

impl PodState {
    pub fn new(pod: Arc<Pod>, tenant: Rc<Tenant>) -> Self {
        Self {
            pod,
            tenant,
            gone: Cell::new(false),
            handshakes: Cell::new(0),
            handshakes_by_source: RefCell::default(),
            setups: Cell::new(0),
            lookups: Cell::new(0),
            sessions: Cell::new(0),
            sessions_by_source: RefCell::default(),
            remains_bytes: Cell::new(0),
            judged: RefCell::default(),
            is_rejudged: Cell::new(false),
            leaving: RefCell::default(),
        }
    }

    fn leave(&self) {
        self.gone.set(true);
        for (_, waker) in self.leaving.borrow().iter() {
            waker.wake_by_ref();
        }
    }

    /// Does `work` unless the pod goes; `work` is dropped then, and what it owns with it.
    pub async fn while_present<R>(&self, work: impl Future<Output = R>) -> Result<R, Outcome> {
        let mut work = pin!(work);
        let mut stay = Stay { pod: self, key: None };
        poll_fn(|context| {
            if self.gone.get() {
                return Poll::Ready(Err(Outcome::PodRemoved));
            }
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            stay.wake(context.waker());
            Poll::Pending
        })
        .await
    }
}

/// As what a pod's connections are judged, and by which policies.
pub struct Judged {
    pub own: Arc<Workload>,
    pub policies: PolicySet,
}

/// A task's place among those to be woken when the pod goes.
struct Stay<'a> {
    pod: &'a PodState,
    key: Option<Key<Waker>>,
}

impl Stay<'_> {
    fn wake(&mut self, waker: &Waker) {
        let mut leaving = self.pod.leaving.borrow_mut();
        match self.key.and_then(|key| leaving.get_mut(key)) {
            Some(known) => known.clone_from(waker),
            None => self.key = Some(leaving.insert(waker.clone())),
        }
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.pod.leaving.borrow_mut().remove(key);
        }
    }
}

#[derive(Default)]
pub struct Pods {
    by_uid: HashMap<PodUid, Entry>,
}

struct Entry {
    state: Rc<PodState>,
    listeners: Vec<Key<Listener>>,
}

impl Pods {
    pub fn get(&self, uid: &PodUid) -> Option<Rc<PodState>> {
        self.by_uid.get(uid).map(|entry| entry.state.clone())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rc<PodState>> {
        self.by_uid.values().map(|entry| &entry.state)
    }

    pub fn len(&self) -> usize {
        self.by_uid.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_uid.is_empty()
    }

    pub fn listeners(&self) -> Vec<Key<Listener>> {
        self.by_uid
            .values()
            .flat_map(|entry| entry.listeners.iter().copied())
            .collect()
    }
}

/// Counts one thing against a pod's budget for as long as it lives.
pub struct Counted {
    pod: Rc<PodState>,
    count: fn(&PodState) -> &Cell<usize>,
}

impl Counted {
    /// # Errors
    /// `limit` of them exist already: the newest is shed.
    pub fn new(
        pod: &Rc<PodState>,
        count: fn(&PodState) -> &Cell<usize>,
        limit: usize,
        what: &'static str,
    ) -> Result<Self, Outcome> {
        let cell = count(pod);
        if cell.get() >= limit {
            return Err(Outcome::Overloaded { what, limit });
        }
        cell.set(cell.get() + 1);
        let pod = pod.clone();
        Ok(Self { pod, count })
    }

    pub fn lookup(pod: &Rc<PodState>) -> Result<Self, Outcome> {
        let what = "connections of one pod whose destinations are looked up";
        Self::new(pod, |pod| &pod.lookups, limits::LOOKUPS_POD_MAX, what)
    }

    pub fn setup(pod: &Rc<PodState>) -> Result<Self, Outcome> {
        let what = "connections of one pod being set up";
        Self::new(pod, |pod| &pod.setups, limits::SETUPS_POD_MAX, what)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if is_planted(Bug::PodBudgetKept) {
            return;
        }
        let cell = (self.count)(&self.pod);
        cell.set(cell.get() - 1);
    }
}

/// Counts one thing of one source with a pod for as long as it lives.
struct OfSource {
    pod: Rc<PodState>,
    source: IpAddr,
    counts: fn(&PodState) -> &RefCell<BySource>,
}

impl OfSource {
    /// With how many there are of that source, this one included.
    fn new(pod: &Rc<PodState>, source: IpAddr, counts: fn(&PodState) -> &RefCell<BySource>) -> (Self, usize) {
        let mut by_source = counts(pod).borrow_mut();
        let count = by_source.entry(source).or_default();
        *count += 1;
        let pod = pod.clone();
        let counted = Self { pod, source, counts };
        (counted, *count)
    }
}

impl Drop for OfSource {
    fn drop(&mut self) {
        let mut by_source = (self.counts)(&self.pod).borrow_mut();
        if let Some(count) = by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

/// Counts a handshake against the pod's budget and against its source's part of it.
pub struct CountedHandshake {
    _all: Counted,
    _of_source: OfSource,
}

impl CountedHandshake {
    /// # Errors
    /// The pod, or this source with this pod, has as many as are allowed: which of the two, and how many.
    pub fn new(pod: &Rc<PodState>, source: IpAddr) -> Result<Self, Outcome> {
        let of_source = pod.handshakes_by_source.borrow().get(&source).copied();
        if of_source >= Some(limits::HANDSHAKES_SOURCE_MAX) {
            return Err(Outcome::Overloaded {
                what: "TLS handshakes of one source with one pod",
                limit: limits::HANDSHAKES_SOURCE_MAX,
            });
        }
        let what = "TLS handshakes of one pod";
        let all = Counted::new(pod, |pod| &pod.handshakes, limits::HANDSHAKES_POD_MAX, what)?;
        let (of_source, _) = OfSource::new(pod, source, |pod| &pod.handshakes_by_source);
        Ok(Self {
            _all: all,
            _of_source: of_source,
        })
    }
}

/// Counts a peer's session against the pod's budget, and how many its source has.
pub struct CountedSession {
    _all: Counted,
    _of_source: OfSource,
    number: usize,
}

impl CountedSession {
    /// # Errors
    /// The pod has as many as are allowed.
    pub fn new(pod: &Rc<PodState>, source: IpAddr) -> Result<Self, Outcome> {
        let what = "HBONE sessions of one pod";
        let all = Counted::new(pod, |pod| &pod.sessions, limits::SESSIONS_POD_MAX, what)?;
        let (of_source, number) = OfSource::new(pod, source, |pod| &pod.sessions_by_source);
        Ok(Self {
            _all: all,
            _of_source: of_source,
            number,
        })
    }

    /// What the session offers its peer of what the first ones of its source are offered.
    pub fn share(&self, settings: Settings) -> Settings {
        let Settings {
            connection_window_bytes,
            unread_bytes_max,
            ..
        } = settings;
        Settings {
            connection_window_bytes: limits::session_window_bytes(connection_window_bytes, self.number),
            unread_bytes_max: limits::session_unread_bytes(unread_bytes_max, self.number),
            ..settings
        }
    }
}

impl<D: Driver + 'static> Core<D> {
    pub fn add_pod(&mut self, pod: Arc<Pod>, listeners: Option<PodListeners>) {
        if self.pods.by_uid.contains_key(&pod.uid) {
            self.remove_pod(&pod.uid.clone());
        }
        let uid = pod.uid.clone();
        let state = Rc::new(PodState::new(pod, self.tenants.admit()));
        let mut keys = Vec::new();
        if let Some(PodListeners {
            outbound,
            inbound_plaintext,
            inbound_hbone,
        }) = listeners
        {
            for (capture, fd) in [
                (Capture::InboundHbone, inbound_hbone),
                (Capture::InboundPlaintext, inbound_plaintext),
                (Capture::Outbound, outbound),
            ] {
                keys.extend(self.add_listener(&state, capture, fd));
            }
        }
        self.pods.by_uid.insert(
            uid,
            Entry {
                state,
                listeners: keys,
            },
        );
    }

    /// Closes everything of a pod at once.
    pub fn remove_pod(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.by_uid.remove(uid) else {
            return;
        };
        entry.state.leave();
        for key in entry.listeners {
            self.remove_listener(key);
        }
        let sessions: Vec<Key<Session>> = self
            .sessions
            .iter()
            .filter(|(_, session)| Rc::ptr_eq(&session.pod, &entry.state))
            .map(|(key, _)| key)
            .collect();
        for key in sessions {
            self.close_session(key, &Ending::PodRemoved);
        }
        self.cut_remains(&entry.state);
        for key in self.pipes.keys() {
            let of_pod = self
                .pipes
                .get(key)
                .is_some_and(|pipe| Rc::ptr_eq(&pipe.pod, &entry.state));
            if of_pod {
                self.cut_pipe(key, Outcome::PodRemoved);
            }
        }
    }

    fn add_listener(
        &mut self,
        pod: &Rc<PodState>,
        capture: Capture,
        fd: Descriptor,
    ) -> Option<Key<Listener>> {
        let key = self.listeners.insert(Listener {
            socket: None,
            pod: pod.clone(),
            capture,
        });
        // Accepted connections inherit the options of their listener. Tunnels keep the kernel's: peers have
        // PINGs to find out who is there.
        match capture {
            Capture::Outbound => fd.set_options(&self.settings.local_options()),
            Capture::InboundPlaintext => fd.set_options(&self.settings.socket_options),
            Capture::InboundHbone => {}
        }
        match self.driver.adopt(fd, Owned::Listener(key).to_owner()) {
            Ok(socket) => {
                if let Some(listener) = self.listeners.get_mut(key) {
                    listener.socket = Some(socket);
                }
                self.driver.listen(socket);
                Some(key)
            }
            Err(error) => {
                self.listeners.remove(key);
                tracing::error!(target: "worker", pod = %pod.pod.uid, ?capture, %error, "cannot accept on a listener");
                None
            }
        }
    }

    pub fn remove_listener(&mut self, key: Key<Listener>) {
        if let Some(Listener {
            socket: Some(socket), ..
        }) = self.listeners.remove(key)
        {
            self.driver.close(socket, Close::Orderly);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::fixture;

    #[test]
    fn sessions_of_one_pod_are_bounded_and_their_places_come_back() {
        let pod = fixture::pod();
        let source = IpAddr::from([10, 0, 0, 1]);
        let places: Vec<_> = std::iter::from_fn(|| CountedSession::new(&pod, source).ok()).collect();
        assert_eq!(places.len(), limits::SESSIONS_POD_MAX);
        drop(places);
        assert!(CountedSession::new(&pod, source).is_ok());
        assert!(pod.sessions_by_source.borrow().is_empty());
    }

    #[test]
    fn further_sessions_of_a_source_are_offered_less_and_all_of_them_leave_no_more_unread_than_the_bound() {
        let pod = fixture::pod();
        let [greedy, honest] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        let whole = Settings::server();
        let bytes = |settings: &Settings| {
            u64::from(settings.connection_window_bytes) + u64::from(settings.unread_bytes_max)
        };
        // What is held when the largest windows are kept, however many others came and went meanwhile.
        let mut held = Vec::new();
        let mut all = 0;
        while let Ok(place) = CountedSession::new(&pod, greedy) {
            let offered = place.share(whole);
            if held.len() < limits::SESSIONS_SOURCE_WHOLE {
                assert_eq!(bytes(&offered), bytes(&whole));
            }
            // RFC 9113 section 6.9.2.
            assert!(offered.connection_window_bytes >= 65_535);
            assert_eq!(offered.stream_window_bytes, whole.stream_window_bytes);
            all += bytes(&offered);
            held.push(place);
        }
        assert_eq!(all, limits::SESSIONS_SOURCE_UNREAD_BYTES);
        held.pop();
        let place = CountedSession::new(&pod, honest).expect("a place");
        assert_eq!(bytes(&place.share(whole)), bytes(&whole));
    }

    #[test]
    fn what_a_source_has_with_one_pod_takes_nothing_from_what_others_offer_it() {
        let source = IpAddr::from([10, 0, 0, 1]);
        let whole = Settings::server();
        let pods = [fixture::pod(), fixture::pod()];
        let places = |pod: &Rc<PodState>| -> Vec<_> {
            (0..2 * limits::SESSIONS_SOURCE_WHOLE)
                .map(|_| CountedSession::new(pod, source).expect("a place"))
                .collect()
        };
        for places in pods.each_ref().map(places) {
            assert_eq!(places[0].share(whole), whole);
            assert_ne!(places.last().expect("many").share(whole), whole);
        }
    }

    #[test]
    fn handshakes_of_one_source_leave_room_for_others() {
        let pod = fixture::pod();
        let [greedy, honest] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        let held: Vec<_> = std::iter::from_fn(|| CountedHandshake::new(&pod, greedy).ok()).collect();
        assert_eq!(held.len(), limits::HANDSHAKES_SOURCE_MAX);
        assert!(CountedHandshake::new(&pod, honest).is_ok());
        let refused = |source| {
            CountedHandshake::new(&pod, source)
                .err()
                .map(|why| why.to_string())
        };
        let (source_max, pod_max) = (limits::HANDSHAKES_SOURCE_MAX, limits::HANDSHAKES_POD_MAX);
        assert_eq!(
            refused(greedy),
            Some(format!(
                "too many TLS handshakes of one source with one pod at once: {source_max} are allowed"
            ))
        );
        drop(held);
        assert!(pod.handshakes_by_source.borrow().is_empty());
        assert_eq!(pod.handshakes.get(), 0);
        let sources = (0..).map(|n: u32| IpAddr::from(n.to_be_bytes()));
        let held: Vec<_> = sources
            .map_while(|source| CountedHandshake::new(&pod, source).ok())
            .collect();
        assert_eq!(held.len(), pod_max);
        assert_eq!(
            refused(honest),
            Some(format!(
                "too many TLS handshakes of one pod at once: {pod_max} are allowed"
            ))
        );
    }
}
