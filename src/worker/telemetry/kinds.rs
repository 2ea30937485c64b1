//! Which series a connection is counted in: found by what it is made of, without building a text.
//!
//! Kinds are found by the addresses of the mesh's own values, which stay the same from snapshot to snapshot while
//! nothing about them changes; where they are others, equal labels lead to the same series. Invariant: an address in the
//! table belongs to the value that it was taken from, since a weak reference keeps its place.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};

use super::Account;
use crate::bridge::log::Direction;
use crate::bridge::traffic::{EndLabels, Labels, Series, ServiceLabels, Shard};
use crate::identity::Identity;
use crate::limits;
use crate::mesh::{Service, Workload};
use crate::wire::baggage::Baggage;

/// The series of one worker.
pub struct Kinds {
    shard: Shard,
    found: HashMap<Parts, Found>,
    all: HashSet<ByLabels>,
    /// How many of them are of sources, or destinations, that only their peers tell of.
    told: usize,
    /// How much of that is whose: of an identity of the own workloads, since series outlive pods. Only grows, as what is
    /// free only shrinks, so that what is counted with others once always is.
    parts: HashMap<Option<Identity>, Part>,
}

#[derive(Default)]
struct Part {
    kinds: usize,
    told: usize,
    has_folded: bool,
}

/// What a connection is made of, by address.
#[derive(PartialEq, Eq, Hash)]
struct Parts {
    direction: Direction,
    source: Option<usize>,
    service: Option<usize>,
    destination: Option<usize>,
    principal: Option<Identity>,
}

struct Found {
    series: Arc<Series>,
    is_folded: bool,
    _source: Option<Weak<Workload>>,
    _service: Option<Weak<Service>>,
    _destination: Option<Weak<Workload>>,
}

/// A series among others, by what it is labelled with.
struct ByLabels(Arc<Series>);

impl Borrow<Labels> for ByLabels {
    fn borrow(&self) -> &Labels {
        self.0.labels()
    }
}

impl PartialEq for ByLabels {
    fn eq(&self, other: &Self) -> bool {
        self.0.labels() == other.0.labels()
    }
}

impl Eq for ByLabels {}

impl Hash for ByLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.labels().hash(state);
    }
}

impl Kinds {
    pub fn new(shard: Shard) -> Self {
        Self {
            shard,
            found: HashMap::new(),
            all: HashSet::new(),
            told: 0,
            parts: HashMap::new(),
        }
    }

    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Where a connection is counted.
    pub fn series(&mut self, account: &Account) -> Arc<Series> {
        let source_is_told = account.source.is_none() && account.source_told.is_some();
        if source_is_told || account.destination_told.is_some() {
            return self.labelled(labels(account), owner(account), true).0;
        }
        let parts = Parts {
            direction: account.direction,
            source: account.source.as_ref().map(address),
            service: account.service.as_ref().map(address),
            destination: account.destination.as_ref().map(address),
            principal: account.source_identity.clone(),
        };
        if let Some(found) = self.found.get(&parts) {
            if found.is_folded {
                self.shard.count_folded();
            }
            return Arc::clone(&found.series);
        }
        let (series, is_folded) = self.labelled(labels(account), owner(account), false);
        if self.found.len() >= limits::SERIES_FOUND_MAX {
            self.found.clear();
        }
        let found = Found {
            series: Arc::clone(&series),
            is_folded,
            _source: account.source.as_ref().map(Arc::downgrade),
            _service: account.service.as_ref().map(Arc::downgrade),
            _destination: account.destination.as_ref().map(Arc::downgrade),
        };
        self.found.insert(parts, found);
        series
    }

    /// And whether it is counted with others.
    fn labelled(&mut self, labels: Labels, owner: Option<Identity>, is_told: bool) -> (Arc<Series>, bool) {
        if let Some(known) = self.all.get(&labels) {
            return (Arc::clone(&known.0), false);
        }
        let part = self.parts.entry(owner.clone()).or_default();
        // Those of everything that is counted together come on top.
        let is_full = !limits::has_part(limits::SERIES_WORKER_MAX, self.all.len(), part.kinds)
            || is_told && !limits::has_part(limits::SERIES_TOLD_MAX, self.told, part.told);
        if is_full {
            if !std::mem::replace(&mut part.has_folded, true) {
                tell_of_folding(owner.as_ref());
            }
            self.shard.count_folded();
            return (self.fold(labels), true);
        }
        part.kinds += 1;
        part.told += usize::from(is_told);
        self.told += usize::from(is_told);
        (self.begin(labels), false)
    }

    /// One of the few series for everything that there is no room for: totals stay right. Traffic that is not
    /// authenticated stays apart from what is, whoever it is from.
    fn fold(&mut self, labels: Labels) -> Arc<Series> {
        let folded = Labels {
            reporter: labels.reporter,
            source: EndLabels::default(),
            source_principal: None,
            is_mutual_tls: labels.is_mutual_tls,
            service: ServiceLabels::default(),
            destination: EndLabels::default(),
            destination_principal: None,
            has_localities: false,
        };
        match self.all.get(&folded) {
            Some(known) => Arc::clone(&known.0),
            None => self.begin(folded),
        }
    }

    fn begin(&mut self, labels: Labels) -> Arc<Series> {
        let series = self.shard.begin(labels);
        self.all.insert(ByLabels(Arc::clone(&series)));
        series
    }
}

/// Whose kind of connection it is: the own workload's.
fn owner(account: &Account) -> Option<Identity> {
    let own = match account.direction {
        Direction::Outbound => &account.source,
        Direction::Inbound => &account.destination,
    };
    own.as_ref().map(|workload| workload.identity.clone())
}

/// Once for each owner.
fn tell_of_folding(owner: Option<&Identity>) {
    let owner = owner.map_or_else(|| "an unknown workload".to_owned(), Identity::to_string);
    tracing::warn!(
        target: "telemetry",
        kinds_max = limits::SERIES_WORKER_MAX,
        told_max = limits::SERIES_TOLD_MAX,
        "too many kinds of connections of {owner} for series of their own: further ones are counted under unknown labels",
    );
}

fn address<T>(shared: &Arc<T>) -> usize {
    Arc::as_ptr(shared).addr()
}

/// Contract: observability.md section 3.1.
pub fn labels(account: &Account) -> Labels {
    let source = match (&account.source, &account.source_told) {
        (Some(workload), _) => of_workload(workload),
        (None, Some(told)) => of_baggage(told),
        (None, None) => EndLabels::default(),
    };
    let destination = match (&account.destination_told, &account.destination) {
        (Some(told), _) => Some(of_baggage(told)),
        (None, Some(workload)) => Some(of_workload(workload)),
        (None, None) => None,
    };
    let principal = match (&account.destination_told, &account.destination) {
        (Some(_), _) => account.destination_identity.clone(),
        (None, workload) => workload.as_ref().map(|workload| workload.identity.clone()),
    };
    let has_localities = account.source.is_some() || account.source_told.is_some() || destination.is_some();
    Labels {
        reporter: account.direction,
        source,
        source_principal: account.source_identity.clone(),
        is_mutual_tls: account.source_identity.is_some(),
        service: account.service.as_deref().map(of_service).unwrap_or_default(),
        destination: destination.unwrap_or_default(),
        destination_principal: principal,
        has_localities,
    }
}

pub(super) fn of_workload(workload: &Workload) -> EndLabels {
    EndLabels {
        workload: workload.workload_name.clone(),
        canonical_service: workload.canonical_name.clone(),
        canonical_revision: workload.canonical_revision.clone(),
        namespace: workload.namespace.clone(),
        app: workload.canonical_name.clone(),
        version: workload.canonical_revision.clone(),
        cluster: workload.site.cluster_id.clone(),
        region: workload.site.locality.region.clone(),
        zone: workload.site.locality.zone.clone(),
    }
}

/// By the words of the peer: the app is then the workload, not the service.
fn of_baggage(told: &Baggage) -> EndLabels {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    EndLabels {
        workload: text(&told.workload_name),
        canonical_service: text(&told.service_name),
        canonical_revision: text(&told.revision),
        namespace: text(&told.namespace),
        app: text(&told.workload_name),
        version: text(&told.revision),
        cluster: text(&told.cluster),
        region: text(&told.region),
        zone: text(&told.zone),
    }
}

fn of_service(service: &Service) -> ServiceLabels {
    ServiceLabels {
        hostname: service.hostname.clone(),
        namespace: service.namespace.clone(),
        name: service.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::Traffic;
    use crate::clock;

    fn account(source: Option<&Arc<Workload>>, told: Option<&str>) -> Account {
        let nowhere = ([198, 18, 0, 1], 1).into();
        let mut account = Account::new(Direction::Inbound, clock::now(), nowhere, nowhere);
        account.source = source.cloned();
        account.source_told = told.map(|text| Box::new(Baggage::parse([text]).expect("ASCII")));
        account
    }

    fn outbound(source: &Arc<Workload>, destination: &str) -> Account {
        let mut account = account(Some(source), None);
        account.direction = Direction::Outbound;
        account.destination = Some(workload(destination));
        account
    }

    fn workload(name: &str) -> Arc<Workload> {
        let mut workload = Workload::new(name, name, Identity::new("cluster.local", "shop", name));
        workload.workload_name = name.into();
        Arc::new(workload)
    }

    /// Contract: observability.md sections 3.1 and 3.2.
    #[test]
    fn what_peers_say_about_themselves_has_its_place_in_the_labels() {
        const TOLD: &str = "k8s.cluster.name=c2,k8s.namespace.name=bank,k8s.deployment.name=teller,\
                            service.name=money,service.version=v7,cloud.region=north,\
                            cloud.availability_zone=north-1";
        let told = EndLabels {
            workload: "teller".into(),
            canonical_service: "money".into(),
            canonical_revision: "v7".into(),
            namespace: "bank".into(),
            app: "teller".into(),
            version: "v7".into(),
            cluster: "c2".into(),
            region: "north".into(),
            zone: "north-1".into(),
        };
        assert_eq!(labels(&account(None, Some(TOLD))).source, told);
        let known = workload("web");
        assert_eq!(
            labels(&account(Some(&known), Some(TOLD))).source,
            of_workload(&known)
        );

        // Of a destination in another network the mesh knows the gateway only.
        let gateway = workload("gateway");
        let teller = Identity::new("cluster.local", "bank", "teller");
        for (header, destination, principal) in [
            (Some(TOLD), told, &teller),
            (None, EndLabels::default(), &teller),
            (
                Some("k8s.namespace.name=caf\u{e9}"),
                of_workload(&gateway),
                &gateway.identity,
            ),
        ] {
            let mut account = account(Some(&known), None);
            account.destination = Some(gateway.clone());
            account.describe_remote(Some(teller.clone()), header);
            let labels = labels(&account);
            assert_eq!(labels.destination, destination, "{header:?}");
            assert_eq!(
                labels.destination_principal.as_ref(),
                Some(principal),
                "{header:?}"
            );
        }
    }

    #[test]
    fn another_value_with_the_same_labels_is_counted_in_the_same_series() {
        let traffic = Traffic::default();
        let mut kinds = Kinds::new(traffic.shard());
        let (old, new) = (workload("web"), workload("web"));
        let first = kinds.series(&account(Some(&old), None));
        assert!(Arc::ptr_eq(&first, &kinds.series(&account(Some(&old), None))));
        assert!(Arc::ptr_eq(&first, &kinds.series(&account(Some(&new), None))));
        assert_eq!((kinds.found.len(), kinds.all.len()), (2, 1));
        // The old one goes: its address is nobody else's as long as it leads somewhere.
        let before = address(&old);
        drop(old);
        for index in 0..64 {
            let other = workload(&format!("w{index}"));
            assert_ne!(address(&other), before);
        }
        assert!(!Arc::ptr_eq(
            &first,
            &kinds.series(&account(Some(&workload("cart")), None))
        ));
    }

    #[test]
    fn kinds_have_a_bound_and_those_beyond_it_are_counted_together() {
        let traffic = Traffic::default();
        let mut kinds = Kinds::new(traffic.shard());
        let opened = |kinds: &mut Kinds, account: &Account| kinds.series(account).count_opened();
        // One owner's: seven eighths of them have series, and all others one.
        let of_one = limits::SERIES_TOLD_MAX / 8 * 7;
        for index in 0..of_one + 100 {
            opened(
                &mut kinds,
                &account(None, Some(&format!("k8s.pod.name=p{index}"))),
            );
        }
        assert_eq!(traffic.series().len(), of_one + 1);
        assert_eq!(traffic.others().folded, 100);
        // Strangers have used up their part; what the mesh knows has its own.
        for index in 0..limits::SERIES_WORKER_MAX {
            opened(&mut kinds, &outbound(&workload(&format!("w{index}")), "db"));
        }
        // And one for all others of each direction.
        assert_eq!(kinds.all.len(), limits::SERIES_WORKER_MAX + 1);
        assert!(kinds.found.len() <= limits::SERIES_FOUND_MAX);
        let (series, folded) = (traffic.series(), traffic.others().folded);
        let all = of_one + 100 + limits::SERIES_WORKER_MAX;
        let counted: u64 = series.values().map(|sums| sums.opened).sum();
        assert_eq!(counted, all as u64, "nobody is lost");
        assert_eq!(folded, (all + 1 - limits::SERIES_WORKER_MAX) as u64);
        let together = series
            .iter()
            .filter(|(labels, _)| labels.source == EndLabels::default());
        let together: Vec<u64> = together.map(|(_, sums)| sums.opened).collect();
        assert_eq!((together.len(), together.iter().sum()), (2, folded));
        let late = outbound(&workload("late"), "db");
        for _ in 0..3 {
            opened(&mut kinds, &late);
        }
        assert_eq!(
            traffic.others().folded,
            folded + 3,
            "each connection, not each kind"
        );
    }

    #[test]
    fn who_calls_everybody_leaves_series_for_others() {
        let traffic = Traffic::default();
        let mut kinds = Kinds::new(traffic.shard());
        let [crawler, modest] = ["crawler", "modest"].map(workload);
        let of_one = limits::SERIES_WORKER_MAX / 8 * 7;
        for index in 0..of_one + 50 {
            let account = outbound(&crawler, &format!("d{index}"));
            kinds.series(&account).count_opened();
        }
        assert_eq!((kinds.all.len(), traffic.others().folded), (of_one + 1, 50));
        for index in 0..100 {
            let account = outbound(&modest, &format!("d{index}"));
            let series = kinds.series(&account);
            assert_eq!(series.labels().source, of_workload(&modest));
            series.count_opened();
        }
        assert_eq!(traffic.others().folded, 50);
    }
}
