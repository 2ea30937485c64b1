//! The local executor: runs the journeys' `async fn`s on their worker thread.
//!
//! Tasks set connections up; they never carry bytes in steady state. Woken tasks run in the order in which
//! they were woken, a bounded number a turn, so that a storm of new connections does not stall relays.

use std::future::Future;
use std::sync::mpsc;

use async_task::Runnable;

/// Where tasks are started and woken ones queue up.
pub struct Executor {
    woken: mpsc::Receiver<Runnable>,
    spawner: Spawner,
}

/// Starts tasks; cheap to clone.
#[derive(Clone)]
pub struct Spawner {
    queue: mpsc::Sender<Runnable>,
}

impl Default for Executor {
    fn default() -> Self {
        let (queue, woken) = mpsc::channel();
        Self {
            woken,
            spawner: Spawner { queue },
        }
    }
}

impl Executor {
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Runs up to `tasks_max` woken tasks. `true` when some are left.
    pub fn run(&self, tasks_max: usize) -> bool {
        for _ in 0..tasks_max {
            match self.woken.try_recv() {
                Ok(runnable) => {
                    runnable.run();
                }
                Err(mpsc::TryRecvError::Empty | mpsc::TryRecvError::Disconnected) => return false,
            }
        }
        true
    }
}

impl Spawner {
    /// Starts a task that runs until it is done; nobody waits for it.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let queue = self.queue.clone();
        let schedule = move |runnable| {
            // Fails only when the executor is gone, that is at the end of the worker: the task is dropped.
            let _ = queue.send(runnable);
        };
        let (runnable, task) = async_task::spawn_local(task, schedule);
        runnable.schedule();
        task.detach();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::runtime::oneshot;

    #[test]
    fn tasks_run_in_the_order_in_which_they_were_woken() {
        let executor = Executor::default();
        let log = Rc::new(RefCell::new(Vec::new()));
        let (first, first_waits) = oneshot::channel::<()>();
        let (second, second_waits) = oneshot::channel::<()>();
        for (name, waits) in [("first", first_waits), ("second", second_waits)] {
            let log = log.clone();
            executor.spawner().spawn(async move {
                waits.await;
                log.borrow_mut().push(name);
            });
        }
        assert!(!executor.run(10));
        drop(second);
        drop(first);
        assert!(!executor.run(10));
        assert_eq!(*log.borrow(), ["second", "first"]);
    }

    #[test]
    fn a_turn_runs_a_bounded_number_of_tasks() {
        let executor = Executor::default();
        for _ in 0..3 {
            executor.spawner().spawn(async {});
        }
        assert!(executor.run(2));
        assert!(!executor.run(2));
    }
}
