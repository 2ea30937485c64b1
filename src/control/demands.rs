//! The loop that gives workers their certificates: what they ask for, what pods come and go, what the authority
//! answers and when it is asked again; and what workers report last: their end.
//!
//! Control thread. Decides nothing: that is `Certificates`.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::bridge::lookups::Question;
use crate::bridge::{CertificateError, Demand, DemandQueue, Order, Orders, PodInfo, PodUid, SnapshotCell};
use crate::clock::{self, Duration, SystemTime};
use crate::control::certificates::{
    Account, Answer, Authority, Certificates, Delivery, Forgotten, Issued, Standing,
};
use crate::control::metrics::Metrics;
use crate::control::pods::{PodChange, PodChanges};
use crate::identity::Identity;
use crate::limits;
use crate::mesh::{GatewayTarget, Snapshot};
use crate::tls::CertifiedIdentity;

/// A worker ended although nobody had told it to, or in another way than it was told. Its pods are unserved, so
/// the process cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("worker {worker} failed: {error}")]
pub struct WorkerFailed {
    pub worker: usize,
    pub error: String,
}

/// Every certificate of the process, and how it stands.
pub type Inventory = BTreeMap<Identity, Standing<CertifiedIdentity>>;

/// Asks the loop for the inventory; whoever shows it holds one.
pub type Inspector = mpsc::Sender<oneshot::Sender<Inventory>>;
pub type Inspections = mpsc::Receiver<oneshot::Sender<Inventory>>;

pub fn inspections() -> (Inspector, Inspections) {
    mpsc::channel(limits::INSPECTIONS_QUEUED_MAX)
}

/// What a worker asked for. Bounded by what workers ask at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<T> {
    pub worker: usize,
    /// For a connection of it.
    pub pod: PodUid,
    pub what: T,
}

/// What the loop tells, besides the workers.
pub struct Reports {
    pub inspections: Inspections,
    pub metrics: Metrics,
    pub lookups: Lookups,
}

/// The ways to those who answer questions. Without anybody who does, connections find out by their deadline.
pub struct Lookups {
    pub mesh: mpsc::UnboundedSender<Asked<GatewayTarget>>,
    pub hosts: mpsc::UnboundedSender<Asked<Arc<str>>>,
}

/// The other ends of `Lookups`.
pub struct Answering {
    pub mesh: mpsc::UnboundedReceiver<Asked<GatewayTarget>>,
    pub hosts: mpsc::UnboundedReceiver<Asked<Arc<str>>>,
}

pub fn lookups() -> (Lookups, Answering) {
    let (mesh, mesh_asked) = mpsc::unbounded_channel();
    let (hosts, hosts_asked) = mpsc::unbounded_channel();
    let answering = Answering {
        mesh: mesh_asked,
        hosts: hosts_asked,
    };
    (Lookups { mesh, hosts }, answering)
}

impl Lookups {
    fn ask(&self, worker: usize, pod: PodUid, question: Question) {
        // As above.
        match question {
            Question::Mesh(what) => drop(self.mesh.send(Asked { worker, pod, what })),
            Question::Host(what) => drop(self.hosts.send(Asked { worker, pod, what })),
        }
    }
}

/// Answers the workers until all of them have ended, or one has failed. Needs a `LocalSet`.
pub async fn serve(
    mut demands: DemandQueue,
    mut pods: PodChanges,
    snapshot: SnapshotCell,
    authority: impl Authority,
    orders: Orders,
    mut reports: Reports,
) -> Result<(), WorkerFailed> {
    let mut ledger = Ledger {
        certificates: Certificates::new(),
        snapshot,
        orders,
        unknown: HashMap::new(),
    };
    let mut requests = Requests::new(authority);
    let mut running = ledger.orders.workers();
    while running > 0 {
        while let Some(identity) = ledger.certificates.next_request(clock::wall()) {
            requests.start(identity);
        }
        let due = ledger.certificates.next_due();
        let due = due.map(|due| wait_for(due, clock::wall()));
        tokio::select! {
            // A pod is announced before any worker knows of it: what workers then ask for finds it here.
            biased;
            Some(change) = pods.recv() => ledger.pod_changed(change),
            (identity, result) = requests.next() => {
                let is_usable = ledger.answered(identity, result);
                reports.metrics.certificate_answered(is_usable);
            }
            demand = demands.recv() => match demand {
                Some(Demand::Certificate { worker, identity }) => ledger.demanded(worker, identity),
                Some(Demand::Lookup { worker, pod, question }) => reports.lookups.ask(worker, pod, question),
                Some(Demand::Doubt { identity }) => ledger.doubted(&identity),
                Some(Demand::Ended { error: None, .. }) => running -= 1,
                Some(Demand::Ended { worker, error: Some(error) }) => {
                    return Err(WorkerFailed { worker, error });
                }
                None => return Ok(()),
            },
            Some(asked) = reports.inspections.recv() => {
                // Whoever asked may have gone.
                let _ = asked.send(ledger.certificates.listing(clock::wall()));
            }
            () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {}
        }
    }
    Ok(())
}

/// The record, and who hears of what it says.
struct Ledger {
    certificates: Certificates<CertifiedIdentity>,
    snapshot: SnapshotCell,
    orders: Orders,
    /// Pods whose workload the mesh does not know yet.
    unknown: HashMap<PodUid, PodInfo>,
}

impl Ledger {
    fn pod_changed(&mut self, change: PodChange) {
        let forgotten = match change {
            PodChange::Started { uid, info } => {
                let account = Account {
                    namespace: info.namespace.clone(),
                    name: info.service_account.clone(),
                };
                let identity = identity_of(&self.snapshot.load(), &info);
                if identity.is_none() {
                    self.unknown.insert(uid.clone(), info);
                } else {
                    self.unknown.remove(&uid);
                }
                self.certificates.pod_started(uid, account, identity.as_ref())
            }
            PodChange::Stopped { uid } => {
                self.unknown.remove(&uid);
                self.certificates.pod_stopped(&uid)
            }
            PodChange::MeshChanged => {
                let snapshot = self.snapshot.load();
                let certificates = &mut self.certificates;
                self.unknown.retain(|_, info| match identity_of(&snapshot, info) {
                    Some(identity) => {
                        certificates.prefetch(&identity);
                        false
                    }
                    None => true,
                });
                return;
            }
        };
        for Forgotten { identity, workers } in forgotten {
            tracing::debug!(%identity, "certificate forgotten: its last pod left");
            for worker in workers {
                let identity = identity.clone();
                self.orders.send(worker, Order::ForgetCertificate { identity });
            }
        }
    }

    fn demanded(&mut self, worker: usize, identity: Identity) {
        match self.certificates.demand(worker, &identity, clock::wall()) {
            Answer::Wait => {}
            Answer::Known(result) => self.orders.send(worker, Order::Certificate { identity, result }),
        }
    }

    fn doubted(&mut self, identity: &Identity) {
        if self.certificates.doubt(identity, clock::wall(), fastrand::f64()) {
            tracing::info!(%identity, "renewed early: a handshake failed because one side does not know the other's CA");
        }
    }

    /// Whether what came can be used.
    fn answered(&mut self, identity: Identity, result: Result<CertifiedIdentity, CertificateError>) -> bool {
        let issued = result.map(|certificate| Issued {
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            certificate: Arc::new(certificate),
        });
        let is_issued = issued.is_ok();
        let now = clock::wall();
        let delivery = self.certificates.issued(&identity, issued, now, fastrand::f64());
        let Some(Delivery {
            workers,
            result,
            due,
            failure,
        }) = delivery
        else {
            return is_issued;
        };
        if let Some(error) = &failure {
            let retry_in = due.duration_since(now).unwrap_or_default();
            tracing::warn!(%identity, %error, ?retry_in, "no certificate");
        }
        for worker in workers {
            let (identity, result) = (identity.clone(), result.clone());
            self.orders.send(worker, Order::Certificate { identity, result });
        }
        failure.is_none()
    }
}

fn identity_of(snapshot: &Snapshot, info: &PodInfo) -> Option<Identity> {
    let workload = snapshot.own_workload(&info.name, &info.namespace, &info.service_account);
    workload.map(|workload| workload.identity.clone())
}

/// Requests that are with the authority.
struct Requests<A> {
    authority: Rc<A>,
    tasks: JoinSet<(Identity, Result<CertifiedIdentity, CertificateError>)>,
}

impl<A: Authority> Requests<A> {
    fn new(authority: A) -> Self {
        Self {
            authority: Rc::new(authority),
            tasks: JoinSet::new(),
        }
    }

    fn start(&mut self, identity: Identity) {
        let authority = Rc::clone(&self.authority);
        self.tasks.spawn_local(async move {
            let result = authority.issue(identity.clone()).await;
            (identity, result)
        });
    }

    /// The next answer; never, while nothing is asked.
    fn next(&mut self) -> impl Future<Output = (Identity, Result<CertifiedIdentity, CertificateError>)> {
        std::future::poll_fn(|context| match self.tasks.poll_join_next(context) {
            std::task::Poll::Ready(Some(answer)) => {
                std::task::Poll::Ready(answer.expect("invariant: an authority does not panic"))
            }
            std::task::Poll::Ready(None) | std::task::Poll::Pending => std::task::Poll::Pending,
        })
    }
}

/// Until `due`, but looks again soon enough to notice that somebody set the clock.
fn wait_for(due: SystemTime, now: SystemTime) -> Duration {
    due.duration_since(now)
        .unwrap_or_default()
        .min(limits::CLOCK_CHECK_INTERVAL)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use tokio::sync::mpsc;
    use tokio::task::LocalSet;

    use super::*;
    use crate::bridge::{Demands, Inbox, demands, orders};
    use crate::control::metrics::traffic::Workers;
    use crate::control::pods;
    use crate::control::roster::Roster;
    use crate::mesh::{Builder, LocalState, Locale};
    use crate::sys::driver::Wake;
    use crate::tls::FakeCa;

    const MESH: &str = "
workloads:
- uid: Kubernetes//Pod/shop/any
  name: any
  namespace: shop
  serviceAccount: known
  trustDomain: cluster.local
  workloadIps: [10.0.0.1]
  protocol: HBONE
  services: {}
";

    struct NoWake;

    impl Wake for NoWake {
        fn wake(&self) {}
    }

    /// The fake one, which counts.
    struct Counting {
        inner: FakeCa,
        asked: mpsc::UnboundedSender<Identity>,
        /// How far its clock is behind that of this node.
        behind: Duration,
    }

    impl Authority for Counting {
        async fn issue(&self, identity: Identity) -> Result<CertifiedIdentity, CertificateError> {
            let _ = self.asked.send(identity.clone());
            let issued = self.inner.issue(&identity, clock::wall() - self.behind);
            Ok(issued.expect("issued"))
        }
    }

    struct World {
        demands: Demands,
        pods: mpsc::UnboundedSender<PodChange>,
        inboxes: Vec<Inbox>,
        asked: mpsc::UnboundedReceiver<Identity>,
        snapshot: SnapshotCell,
        metrics: Metrics,
        served: tokio::task::JoinHandle<Result<(), WorkerFailed>>,
    }

    impl World {
        /// In a mesh that knows the workload `any` of the account `known`.
        fn start(workers: usize) -> Self {
            Self::start_with_ca(workers, Duration::ZERO)
        }

        /// The same under a CA whose clock is `behind`.
        fn start_with_ca(workers: usize, behind: Duration) -> Self {
            let (handles, inboxes) = (0..workers).map(|_| orders::channel(Arc::new(NoWake))).unzip();
            let (demands, queue) = demands::channel();
            let (pods, changes) = pods::changes();
            let (sender, asked) = mpsc::unbounded_channel();
            let authority = Counting {
                inner: FakeCa::new(),
                asked: sender,
                behind,
            };
            let mut builder = Builder::new(Locale::default());
            builder.load(LocalState::parse(MESH).expect("valid"));
            let snapshot = SnapshotCell::new(builder.build());
            let metrics = Metrics::default();
            let reports = Reports {
                inspections: inspections().1,
                metrics: metrics.clone(),
                lookups: lookups().0,
            };
            let serving = serve(
                queue,
                changes,
                snapshot.clone(),
                authority,
                Orders::new(handles),
                reports,
            );
            Self {
                demands,
                pods,
                inboxes,
                asked,
                snapshot,
                metrics,
                served: tokio::task::spawn_local(serving),
            }
        }

        fn announce(&self, account: &str) {
            let info = PodInfo {
                name: "any".to_owned(),
                namespace: "shop".to_owned(),
                service_account: account.to_owned(),
            };
            let uid = PodUid::new(account);
            self.pods.send(PodChange::Started { uid, info }).expect("served");
        }

        fn demand(&self, worker: usize, account: &str) {
            let identity = identity(account);
            assert!(self.demands.send(Demand::Certificate { worker, identity }));
        }

        async fn order(&self, worker: usize) -> Order {
            loop {
                match self.inboxes[worker].next() {
                    Some(order) => return order,
                    None => tokio::task::yield_now().await,
                }
            }
        }

        async fn certificate(
            &self,
            worker: usize,
            account: &str,
        ) -> Result<Arc<CertifiedIdentity>, CertificateError> {
            match self.order(worker).await {
                Order::Certificate {
                    identity: named,
                    result,
                } => {
                    assert_eq!(named, identity(account));
                    result
                }
                order => panic!("a certificate was asked for, not {order:?}"),
            }
        }
    }

    fn run<R>(test: impl Future<Output = R>) -> R {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        LocalSet::new().block_on(&runtime, test)
    }

    fn identity(account: &str) -> Identity {
        Identity::new("cluster.local", "shop", account)
    }

    #[test]
    fn every_worker_that_asks_gets_the_same_certificate() {
        run(async {
            let world = World::start(2);
            world.announce("cart");
            world.demand(0, "cart");
            world.demand(1, "cart");
            let first = world.certificate(0, "cart").await.expect("issued");
            let second = world.certificate(1, "cart").await.expect("issued");
            assert!(Arc::ptr_eq(&first, &second), "issued once");
            for worker in [0, 1] {
                world.demands.send(Demand::Ended { worker, error: None });
            }
            assert_eq!(world.served.await.expect("no panic"), Ok(()));
        });
    }

    #[test]
    fn a_certificate_that_has_expired_when_it_comes_is_counted_as_a_failure() {
        run(async {
            let day = Duration::from_secs(24 * 3600);
            for (behind, result) in [(Duration::ZERO, "Issued"), (2 * day, "Failed")] {
                let world = World::start_with_ca(1, behind);
                world.announce("cart");
                world.demand(0, "cart");
                let certificate = world.certificate(0, "cart").await;
                assert_eq!(certificate.is_ok(), behind.is_zero(), "{certificate:?}");
                let mut text = String::new();
                let registry = world.metrics.registry("", Roster::default(), Workers::new(1));
                text::encode(&mut text, &registry).expect("text");
                let name = "uztunnel_certificate_requests_total";
                let shown: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
                assert_eq!(shown, [format!("{name}{{result=\"{result}\"}} 1")]);
            }
        });
    }

    #[test]
    fn workers_are_told_to_forget_with_the_last_pod_and_get_no_more() {
        run(async {
            let world = World::start(2);
            world.announce("cart");
            world.demand(1, "cart");
            world.certificate(1, "cart").await.expect("issued");
            let uid = PodUid::new("cart");
            world.pods.send(PodChange::Stopped { uid }).expect("served");
            let order = world.order(1).await;
            assert!(
                matches!(&order, Order::ForgetCertificate { identity: named } if *named == identity("cart")),
                "{order:?}"
            );
            world.demand(1, "cart");
            let refused = world.certificate(1, "cart").await.expect_err("no pod has it");
            assert_eq!(refused.to_string(), "the identity is no longer needed");
            assert!(world.inboxes[0].next().is_none(), "that worker never asked");
        });
    }

    #[test]
    fn a_pod_that_the_mesh_knows_gets_its_certificate_unasked() {
        run(async {
            let mut world = World::start(1);
            world.announce("unknown");
            world.announce("known");
            assert_eq!(world.asked.recv().await, Some(identity("known")));
        });
    }

    #[test]
    fn a_pod_that_the_mesh_learns_of_later_gets_its_certificate_then() {
        run(async {
            let mut world = World::start(1);
            world.announce("late");
            // Served in order: when this one has its answer the other was looked up in vain.
            world.announce("cart");
            world.demand(0, "cart");
            world.certificate(0, "cart").await.expect("issued");
            assert_eq!(world.asked.recv().await, Some(identity("cart")));
            let mut builder = Builder::new(Locale::default());
            builder.load(LocalState::parse(&MESH.replace("known", "late")).expect("valid"));
            world.snapshot.publish(builder.build());
            world.pods.send(PodChange::MeshChanged).expect("served");
            assert_eq!(world.asked.recv().await, Some(identity("late")));
        });
    }

    #[test]
    fn a_failed_worker_ends_the_serving_with_its_reason() {
        run(async {
            let world = World::start(2);
            world.demands.send(Demand::Ended {
                worker: 1,
                error: Some("no ring".to_owned()),
            });
            let failed = WorkerFailed {
                worker: 1,
                error: "no ring".to_owned(),
            };
            assert_eq!(world.served.await.expect("no panic"), Err(failed));
        });
    }
}
