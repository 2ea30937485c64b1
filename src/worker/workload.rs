//! Who the pod of a captured connection is: its workload in the mesh, which may arrive a little later than the
//! pod itself.

use std::rc::Rc;
use std::sync::Arc;

use super::core::Core;
use super::outcome::Outcome;
use super::pods::PodState;
use super::shell::Shell;
use crate::limits;
use crate::mesh::Workload;
use crate::runtime::oneshot;
use crate::sys::driver::Driver;

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

impl<D: Driver + 'static> Core<D> {
    fn find_own_workload(&self, pod: &PodState) -> Option<Arc<Workload>> {
        let info = &pod.pod.info;
        self.snapshot
            .load()
            .own_workload(&info.name, &info.namespace, &info.service_account)
            .cloned()
    }

    fn wait_for_snapshot(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.snapshot_waiters.retain(|waiting| !waiting.is_abandoned());
        self.snapshot_waiters.push(sender);
        receiver
    }
}
