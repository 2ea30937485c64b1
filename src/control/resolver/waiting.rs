//! Who waits for which host name, and which name is looked up next: pods take turns, however many names one asks for.
//!
//! Pure. A name is looked up once for all who wait for it, in the turn of whichever pod comes first. One pod has no more
//! than its part of the places and of the names that wait, and a name that waited for longer than anybody waits for it
//! is not looked up.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::bridge::PodUid;
use crate::bridge::lookups::LookupError;
use crate::clock::Instant;
use crate::limits;

#[derive(Default)]
pub struct Waiting {
    names: HashMap<Arc<str>, Name>,
    pods: HashMap<PodUid, Pod>,
    /// Pods with names in their queue; whose turn is next comes first.
    turns: VecDeque<PodUid>,
}

#[derive(Default)]
struct Name {
    workers: BTreeSet<usize>,
    /// In whose queues it is, and when each of them asked last.
    queued_by: BTreeMap<PodUid, Instant>,
    /// In whose turn it was begun.
    begun_for: Option<PodUid>,
}

/// Of a pod that waits for anything.
#[derive(Default)]
struct Pod {
    /// The oldest first, with when they were asked for. Some may have been begun in another pod's turn, and ended.
    queue: VecDeque<(Instant, Arc<str>)>,
    /// Names that are being looked up in its turn.
    begun: usize,
}

impl Waiting {
    /// # Errors
    /// Too many names wait, of this pod or of all.
    pub fn add(
        &mut self,
        worker: usize,
        pod: &PodUid,
        host: &Arc<str>,
        now: Instant,
    ) -> Result<(), LookupError> {
        let of_pod = self.pods.get(pod);
        let own = of_pod.map_or(0, |pod| pod.queue.len() + pod.begun);
        if !self.names.contains_key(host) && !limits::has_part(limits::LOOKUPS_MAX, self.names.len(), own) {
            let limit = limits::LOOKUPS_MAX;
            return Err(LookupError::TooMany { limit });
        }
        let name = self.names.entry(Arc::clone(host)).or_default();
        name.workers.insert(worker);
        if name.begun_for.is_none() && name.queued_by.insert(pod.clone(), now).is_none() {
            let queue = &mut self.pods.entry(pod.clone()).or_default().queue;
            if queue.is_empty() {
                self.turns.push_back(pod.clone());
            }
            queue.push_back((now, Arc::clone(host)));
        }
        Ok(())
    }

    /// The next name to be looked up; the caller does, and brings the end of it to `ended`.
    pub fn begin(&mut self) -> Option<Arc<str>> {
        let begun = self.pods.values().map(|pod| pod.begun).sum();
        for _ in 0..self.turns.len() {
            let uid = self.turns.pop_front()?;
            let own = self.pods.get(&uid).map_or(0, |pod| pod.begun);
            let host = match limits::has_part(limits::RESOLUTIONS_MAX, begun, own) {
                true => self.begin_for(&uid),
                false => None,
            };
            if self.pods.get(&uid).is_some_and(|pod| !pod.queue.is_empty()) {
                self.turns.push_back(uid);
            }
            if host.is_some() {
                return host;
            }
        }
        None
    }

    fn begin_for(&mut self, uid: &PodUid) -> Option<Arc<str>> {
        let pod = self.pods.get_mut(uid)?;
        while let Some((_, host)) = pod.queue.pop_front() {
            let Some(name) = self.names.get_mut(&host) else {
                continue;
            };
            if name.queued_by.remove(uid).is_some() && name.begun_for.is_none() {
                name.begun_for = Some(uid.clone());
                pod.begun += 1;
                return Some(host);
            }
        }
        self.leave_if_done(uid);
        None
    }

    /// Those who waited for a name that was looked up.
    pub fn ended(&mut self, host: &str) -> BTreeSet<usize> {
        let name = self.names.remove(host);
        let name = name.expect("invariant: a name that was begun is kept until it ended");
        if let Some(uid) = name.begun_for {
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.begun -= 1;
            }
            self.leave_if_done(&uid);
        }
        name.workers
    }

    /// Takes out what was asked for before `since` and not begun: those who wait for it have given up. With whom to tell.
    pub fn expire(&mut self, since: Instant) -> BTreeMap<Arc<str>, BTreeSet<usize>> {
        let mut expired = BTreeMap::new();
        for (uid, pod) in &mut self.pods {
            while let Some(host) = pod.pop_older(since) {
                let Some(name) = self.names.get_mut(&host) else {
                    continue;
                };
                match name.queued_by.get(uid) {
                    // It was asked for again.
                    Some(last) if *last >= since => pod.queue.push_back((*last, Arc::clone(&host))),
                    Some(_) | None => drop(name.queued_by.remove(uid)),
                }
                if name.queued_by.is_empty() && name.begun_for.is_none() {
                    let name = self.names.remove(&host).unwrap_or_default();
                    expired.insert(host, name.workers);
                }
            }
        }
        self.pods.retain(|_, pod| !pod.is_done());
        self.turns
            .retain(|uid| self.pods.get(uid).is_some_and(|pod| !pod.queue.is_empty()));
        expired
    }

    fn leave_if_done(&mut self, uid: &PodUid) {
        if self.pods.get(uid).is_some_and(Pod::is_done) {
            self.pods.remove(uid);
        }
    }
}

impl Pod {
    fn is_done(&self) -> bool {
        self.queue.is_empty() && self.begun == 0
    }

    fn pop_older(&mut self, since: Instant) -> Option<Arc<str>> {
        self.queue.front().filter(|(asked, _)| *asked < since)?;
        self.queue.pop_front().map(|(_, host)| host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{self, Duration};

    fn pod(name: &str) -> PodUid {
        PodUid::new(name)
    }

    /// Asks for `count` names that nobody else asks for.
    fn crowd(waiting: &mut Waiting, who: &str, count: usize, now: Instant) -> usize {
        let names = (0..count).map(|index| format!("{who}-{index}.example").into());
        names
            .map_while(|host| waiting.add(0, &pod(who), &host, now).ok())
            .count()
    }

    fn begin_all(waiting: &mut Waiting) -> Vec<Arc<str>> {
        std::iter::from_fn(|| waiting.begin()).collect()
    }

    #[test]
    fn one_pod_that_asks_for_names_without_end_leaves_places_and_turns_to_others() {
        let (mut waiting, now) = (Waiting::default(), clock::now());
        crowd(&mut waiting, "crawler", 1000, now);
        let of_crawler = begin_all(&mut waiting);
        let places = limits::RESOLUTIONS_MAX;
        assert_eq!(of_crawler.len(), places - places / 8);
        let host = "api.example".into();
        waiting.add(1, &pod("shop"), &host, now).expect("room");
        assert_eq!(waiting.begin(), Some(host.clone()), "at once");
        assert_eq!(waiting.ended(&host), [1].into());
        // With places for both, they take turns.
        crowd(&mut waiting, "shop", 4, now);
        for host in &of_crawler[..20] {
            waiting.ended(host);
        }
        let begun: Vec<bool> = (0..8)
            .map(|_| waiting.begin().expect("places").starts_with("shop"))
            .collect();
        assert_eq!(begun.iter().filter(|is_shops| **is_shops).count(), 4, "{begun:?}");
    }

    #[test]
    fn a_name_is_looked_up_once_in_the_first_turn_of_whoever_asks_for_it() {
        let (mut waiting, now) = (Waiting::default(), clock::now());
        crowd(&mut waiting, "crawler", 1000, now);
        let host: Arc<str> = "api.example".into();
        waiting.add(0, &pod("crawler"), &host, now).expect("room");
        let mut under_way = begin_all(&mut waiting);
        waiting.add(1, &pod("shop"), &host, now).expect("room");
        assert_eq!(
            waiting.begin(),
            Some(host.clone()),
            "not behind what the crawler wants"
        );
        waiting.add(2, &pod("other"), &host, now).expect("room");
        assert_eq!(waiting.begin(), None, "under way");
        assert_eq!(waiting.ended(&host), [0, 1, 2].into());
        while let Some(begun) = under_way.pop() {
            assert_ne!(begun, host);
            waiting.ended(&begun);
            under_way.extend(begin_all(&mut waiting));
        }
        assert!(waiting.names.is_empty() && waiting.pods.is_empty() && waiting.turns.is_empty());
    }

    #[test]
    fn a_name_that_nobody_waits_for_any_more_is_not_looked_up() {
        let (mut waiting, now) = (Waiting::default(), clock::now());
        let later = now + Duration::from_secs(1);
        crowd(&mut waiting, "crawler", 100, now);
        let begun = begin_all(&mut waiting);
        let shared: Arc<str> = "crawler-99.example".into();
        waiting.add(1, &pod("shop"), &shared, later).expect("room");
        let expired = waiting.expire(later);
        assert_eq!(expired.len(), 100 - begun.len() - 1);
        assert!(expired.values().all(|workers| *workers == [0].into()));
        assert_eq!(waiting.begin(), Some(shared), "the other one still waits");
        assert_eq!(waiting.begin(), None);
    }

    #[test]
    fn a_name_that_was_asked_for_again_is_no_older_than_that() {
        let (mut waiting, now) = (Waiting::default(), clock::now());
        let [early, later] = [1, 5].map(|seconds| now + Duration::from_secs(seconds));
        let host: Arc<str> = "api.example".into();
        for who in ["crawler", "shop"] {
            waiting.add(0, &pod(who), &host, now).expect("room");
        }
        waiting.add(1, &pod("crawler"), &host, later).expect("room");
        assert!(waiting.expire(early).is_empty());
        // In another one's turn, so that an entry stays behind.
        assert_eq!(waiting.begin(), Some(host.clone()));
        waiting.ended(&host);
        waiting.add(0, &pod("shop"), &host, later).expect("room");
        assert!(waiting.expire(early).is_empty());
        assert_eq!(waiting.begin(), Some(host.clone()));
        assert_eq!(waiting.begin(), None);
    }

    #[test]
    fn who_waits_for_the_most_names_leaves_room_for_those_of_others() {
        let (mut waiting, now) = (Waiting::default(), clock::now());
        let all = limits::LOOKUPS_MAX;
        assert_eq!(crowd(&mut waiting, "crawler", all, now), all - all / 8);
        assert_eq!(crowd(&mut waiting, "shop", 10, now), 10);
    }
}
