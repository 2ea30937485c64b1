//! Who the pod of a captured connection is: its workload in the mesh, which may arrive a little later than the
//! pod itself.

use std::rc::Rc;
use std::sync::Arc;

use super::core::Core;
use super::outcome::Outcome;
use super::pods::PodState;
use super::shell::Shell;
use crate::limits;
use crate::mesh::{Snapshot, Workload};
use crate::runtime::oneshot;
use crate::sys::driver::Driver;

/// By how many the list of waiting tasks grows at least.
const WAITERS_GROWTH_MIN: usize = 16;

/// The pod's own workload. Waits for the control plane to deliver it, up to `limits::OWN_WORKLOAD_WAIT`.
pub async fn own_workload<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
) -> Result<Arc<Workload>, Outcome> {
    let wait = async {
        loop {
            let (changed, found) = shell.with(|core| match core.find_own_workload(pod) {
                Some(workload) => (None, Some(workload)),
                None => (Some(core.wait_for_snapshot()), None),
            });
            match (found, changed) {
                (Some(workload), _) => return workload,
                (None, Some(changed)) => drop(changed.await),
                (None, None) => {}
            }
        }
    };
    shell.within(limits::OWN_WORKLOAD_WAIT, wait).await.map_err(|_| {
        let info = &pod.pod.info;
        Outcome::WorkloadUnknown(format!(
            "{}.{} ({})",
            info.service_account, info.namespace, info.name
        ))
    })
}

/// The workload that a pod is, as far as the snapshot knows it.
pub(super) fn pod_workload<'a>(snapshot: &'a Snapshot, pod: &PodState) -> Option<&'a Arc<Workload>> {
    let info = &pod.pod.info;
    snapshot.own_workload(&info.name, &info.namespace, &info.service_account)
}

impl<D: Driver + 'static> Core<D> {
    pub(super) fn find_own_workload(&self, pod: &PodState) -> Option<Arc<Workload>> {
        pod_workload(&self.snapshot.load(), pod).cloned()
    }

    fn wait_for_snapshot(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        // Looking at all of them each time would let one pod that the mesh does not know stall everybody: only
        // when the list would have to grow, so that it stays within twice of those that wait.
        if self.snapshot_waiters.len() == self.snapshot_waiters.capacity() {
            self.snapshot_waiters.retain(|waiting| !waiting.is_abandoned());
            let waiting = self.snapshot_waiters.len();
            self.snapshot_waiters.reserve(waiting.max(WAITERS_GROWTH_MIN));
        }
        self.snapshot_waiters.push(sender);
        receiver
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use super::*;
    use crate::identity::Identity;
    use crate::mesh::{Builder, Locale};
    use crate::runtime::tasks::Executor;
    use crate::worker::fixture;

    #[test]
    fn a_connection_waits_for_its_pods_workload_and_no_longer_than_it_may() {
        let executor = Executor::default();
        let shell = Shell::new(fixture::core(&executor), executor.spawner());
        let told = Rc::<RefCell<Option<String>>>::default();
        let ask = || {
            let (asking, telling) = (shell.clone(), told.clone());
            shell.spawn(async move {
                let outcome = own_workload(&asking, &fixture::pod()).await;
                *telling.borrow_mut() = Some(match outcome {
                    Ok(workload) => workload.uid.to_string(),
                    Err(error) => error.to_string(),
                });
            });
            executor.run(10);
            told.take()
        };
        let pass = |wait| {
            shell.with(|core| fixture::pass(core, wait));
            executor.run(10);
            told.take()
        };
        let short = Duration::from_millis(10);
        assert_eq!(ask(), None);
        assert_eq!(pass(limits::OWN_WORKLOAD_WAIT - short), None);
        assert_eq!(
            pass(short * 2).as_deref(),
            Some("failed to fetch information about local workload: till.shop (till)")
        );

        assert_eq!(ask(), None);
        let mut builder = Builder::new(Locale::default());
        let till = Identity::new("cluster.local", "shop", "till");
        builder.insert_workload(Workload::new("c1//Pod/shop/till", "till", till));
        shell.with(|core| {
            core.snapshot.publish(builder.build());
            core.snapshot_waiters.clear();
        });
        executor.run(10);
        assert_eq!(told.take().as_deref(), Some("c1//Pod/shop/till"));
    }

    #[test]
    fn tasks_that_gave_up_waiting_do_not_pile_up_and_the_others_stay() {
        let mut core = fixture::core(&Executor::default());
        let _waits = core.wait_for_snapshot();
        for _ in 0..10_000 {
            drop(core.wait_for_snapshot());
        }
        assert!(core.snapshot_waiters.len() <= 2 * WAITERS_GROWTH_MIN);
        assert!(
            core.snapshot_waiters
                .iter()
                .any(|waiting| !waiting.is_abandoned())
        );
    }
}
