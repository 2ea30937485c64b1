//! What the workers ask for: certificates; and what they report last: their end.
//!
//! Control thread. The loop around `Certificates`: at most `limits::CERTIFICATE_REQUESTS_MAX` requests are with
//! the authority at a time, the others wait here.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bridge::{CertificateError, Demand, DemandQueue, Order, Orders};
use crate::clock::{self, Duration, SystemTime};
use crate::control::certificates::{Answer, Authority, Certificates, Delivery, Issued};
use crate::identity::Identity;
use crate::limits;
use crate::tls::CertifiedIdentity;

/// A worker ended although nobody had told it to, or in another way than it was told. Its pods are unserved, so
/// the process cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("worker {worker} failed: {error}")]
pub struct WorkerFailed {
    pub worker: usize,
    pub error: String,
}

/// Answers the workers until all of them have ended, or one has failed. Needs a `LocalSet`.
pub async fn serve(
    mut demands: DemandQueue,
    authority: impl Authority,
    orders: Orders,
) -> Result<(), WorkerFailed> {
    let mut certificates = Certificates::new();
    let mut requests = Requests::new(authority);
    let mut running = orders.workers();
    while running > 0 {
        let due = certificates.next_due().map(|due| wait_for(due, clock::wall()));
        tokio::select! {
            demand = demands.recv() => match demand {
                Some(Demand::Certificate { worker, identity }) => {
                    match certificates.demand(worker, &identity) {
                        Answer::Issue => requests.start(identity),
                        Answer::Wait => {}
                        Answer::Known(result) => orders.send(worker, Order::Certificate { identity, result }),
                    }
                }
                Some(Demand::Ended { error: None, .. }) => running -= 1,
                Some(Demand::Ended { worker, error: Some(error) }) => {
                    return Err(WorkerFailed { worker, error });
                }
                None => return Ok(()),
            },
            (identity, result) = requests.next() => {
                if let Err(error) = &result {
                    tracing::warn!(%identity, %error, "no certificate");
                }
                let issued = result.map(|certificate| Issued {
                    not_before: certificate.not_before,
                    not_after: certificate.not_after,
                    certificate: Arc::new(certificate),
                });
                let Delivery { workers, result } =
                    certificates.issued(&identity, issued, clock::wall(), fastrand::f64());
                for worker in workers {
                    let identity = identity.clone();
                    orders.send(worker, Order::Certificate { identity, result: result.clone() });
                }
            },
            () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {
                for identity in certificates.take_due(clock::wall()) {
                    requests.start(identity);
                }
            }
        }
    }
    Ok(())
}

/// Requests that are with the authority.
struct Requests<A> {
    authority: Arc<A>,
    slots: Arc<Semaphore>,
    tasks: JoinSet<(Identity, Result<CertifiedIdentity, CertificateError>)>,
}

impl<A: Authority> Requests<A> {
    fn new(authority: A) -> Self {
        Self {
            authority: Arc::new(authority),
            slots: Arc::new(Semaphore::new(limits::CERTIFICATE_REQUESTS_MAX)),
            tasks: JoinSet::new(),
        }
    }

    fn start(&mut self, identity: Identity) {
        let (authority, slots) = (Arc::clone(&self.authority), Arc::clone(&self.slots));
        self.tasks.spawn_local(async move {
            let _slot = slots.acquire().await.expect("invariant: never closed");
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
    use tokio::task::LocalSet;

    use super::*;
    use crate::bridge::{demands, orders};
    use crate::sys::driver::Wake;
    use crate::tls::FakeCa;

    struct NoWake;

    impl Wake for NoWake {
        fn wake(&self) {}
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
        let (handles, inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| orders::channel(Arc::new(NoWake))).unzip();
        let (sender, queue) = demands::channel();
        for worker in [0, 1] {
            sender.send(Demand::Certificate {
                worker,
                identity: identity("cart"),
            });
        }
        let serving = async {
            let served = tokio::task::spawn_local(serve(queue, FakeCa::new(), Orders::new(handles)));
            let mut received = Vec::new();
            for inbox in &inboxes {
                let order = loop {
                    match inbox.next() {
                        Some(order) => break order,
                        None => tokio::task::yield_now().await,
                    }
                };
                let Order::Certificate {
                    identity: named,
                    result,
                } = order
                else {
                    panic!("a certificate was asked for, not {order:?}");
                };
                assert_eq!(named, identity("cart"));
                received.push(result.expect("issued"));
            }
            assert!(Arc::ptr_eq(&received[0], &received[1]), "issued once");
            for worker in [0, 1] {
                sender.send(Demand::Ended { worker, error: None });
            }
            served.await.expect("no panic")
        };
        assert_eq!(run(serving), Ok(()));
    }

    #[test]
    fn a_failed_worker_ends_the_serving_with_its_reason() {
        let (handle, _inbox) = orders::channel(Arc::new(NoWake));
        let (sender, queue) = demands::channel();
        let workers = Orders::new(vec![handle.clone(), handle]);
        sender.send(Demand::Ended {
            worker: 1,
            error: Some("no ring".to_owned()),
        });
        let ended = run(serve(queue, FakeCa::new(), workers));
        assert_eq!(
            ended,
            Err(WorkerFailed {
                worker: 1,
                error: "no ring".to_owned()
            })
        );
    }
}
