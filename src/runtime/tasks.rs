//! The local executor: runs the journeys' `async fn`s on their worker thread.
//!
//! Tasks set connections up; they never carry bytes in steady state. Woken tasks run in the order in which
//! they were woken, a bounded number a turn, so that a storm of new connections does not stall relays. When those of
//! several tenants compete, their lanes take turns instead.
//!
//! Tasks end with their executor: those that still wait own their worker, and what they wait for is owned by it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::Waker;

use async_task::Builder;

use super::slab::Slab;

/// Whose task it is: those of one lane run in the order in which they were woken.
pub type Lane = u64;

/// For tasks that are nobody's in particular.
pub const OWN_LANE: Lane = 0;

type Runnable = async_task::Runnable<Lane>;

/// Where tasks are started and woken ones queue up.
pub struct Executor {
    woken: mpsc::Receiver<Runnable>,
    /// Those that were woken before the others and compete.
    lanes: RefCell<Lanes>,
    /// The first of the queue, when somebody looked whether there is one.
    next: Cell<Option<Runnable>>,
    spawner: Spawner,
}

/// Woken tasks by lane.
#[derive(Default)]
struct Lanes {
    /// None is empty.
    queues: HashMap<Lane, VecDeque<Runnable>>,
    turns: VecDeque<Lane>,
}

impl Lanes {
    fn push(&mut self, runnable: Runnable) {
        let lane = *runnable.metadata();
        let queue = self.queues.entry(lane).or_default();
        if queue.is_empty() {
            self.turns.push_back(lane);
        }
        queue.push_back(runnable);
    }

    fn pop(&mut self) -> Option<Runnable> {
        let lane = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&lane)?;
        let runnable = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&lane);
        } else {
            self.turns.push_back(lane);
        }
        runnable
    }
}

/// Starts tasks; cheap to clone.
#[derive(Clone)]
pub struct Spawner {
    queue: mpsc::Sender<Runnable>,
    /// One for each task that is not done.
    live: Rc<RefCell<Slab<Waker>>>,
}

impl Default for Executor {
    fn default() -> Self {
        let (queue, woken) = mpsc::channel();
        Self {
            woken,
            lanes: RefCell::default(),
            next: Cell::new(None),
            spawner: Spawner {
                queue,
                live: Rc::default(),
            },
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
            match self.take_next() {
                Some(runnable) => {
                    runnable.run();
                }
                None => return false,
            }
        }
        true
    }

    /// Whether woken tasks wait for `run`.
    pub fn has_woken(&self) -> bool {
        self.next.set(self.take_next());
        let next = self.next.take();
        let has = next.is_some();
        self.next.set(next);
        has
    }

    /// From now on the tasks that are woken already run lane by lane, before those that are woken later.
    pub fn take_turns(&self) {
        let mut lanes = self.lanes.borrow_mut();
        let woken = std::iter::from_fn(|| self.woken.try_recv().ok());
        self.next
            .take()
            .into_iter()
            .chain(woken)
            .for_each(|runnable| lanes.push(runnable));
    }

    fn take_next(&self) -> Option<Runnable> {
        let first = self.next.take().or_else(|| self.lanes.borrow_mut().pop());
        // An error means that the queue is empty: the executor itself holds a sender.
        first.or_else(|| self.woken.try_recv().ok())
    }
}

impl Drop for Executor {
    /// Drops every task, woken or not. One that is dropped may wake others, which have been woken already.
    fn drop(&mut self) {
        let mut live = self.spawner.live.take();
        for key in live.keys() {
            live.remove(key).into_iter().for_each(Waker::wake);
        }
        while let Some(runnable) = self.take_next() {
            drop(runnable);
        }
    }
}

impl Spawner {
    /// Starts a task that runs until it is done; nobody waits for it.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn_in(OWN_LANE, task);
    }

    /// The same in a lane.
    pub fn spawn_in(&self, lane: Lane, task: impl Future<Output = ()> + 'static) {
        let queue = self.queue.clone();
        let schedule = move |runnable| {
            // Fails only when the executor is gone, that is at the end of the worker: the task is dropped.
            let _ = queue.send(runnable);
        };
        let live = self.live.clone();
        let key = live.borrow_mut().insert(Waker::noop().clone());
        let task = async move {
            task.await;
            live.borrow_mut().remove(key);
        };
        let (runnable, task) = Builder::new().metadata(lane).spawn_local(|_| task, schedule);
        if let Some(waker) = self.live.borrow_mut().get_mut(key) {
            *waker = runnable.waker();
        }
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
    fn a_look_at_the_queue_tells_of_woken_tasks_and_loses_none() {
        let executor = Executor::default();
        assert!(!executor.has_woken());
        let ran = Rc::new(RefCell::new(0));
        for _ in 0..2 {
            let ran = ran.clone();
            executor.spawner().spawn(async move { *ran.borrow_mut() += 1 });
        }
        assert!(executor.has_woken() && executor.has_woken());
        assert!(!executor.run(10));
        assert_eq!(*ran.borrow(), 2);
        assert!(!executor.has_woken());
    }

    #[test]
    fn tasks_of_a_lane_with_many_let_those_of_others_go_first() {
        let executor = Executor::default();
        let log = Rc::new(RefCell::new(Vec::new()));
        let spawn = |lane, name, tasks| {
            for _ in 0..tasks {
                let log = log.clone();
                let task = async move { log.borrow_mut().push(name) };
                executor.spawner().spawn_in(lane, task);
            }
        };
        spawn(1, 'g', 1000);
        spawn(2, 'm', 2);
        assert!(executor.has_woken());
        executor.take_turns();
        assert!(executor.run(4));
        assert_eq!(*log.borrow(), ['g', 'm', 'g', 'm']);
        // One that is woken later has its turn when they are told apart again.
        spawn(2, 'm', 1);
        executor.take_turns();
        assert!(executor.run(2));
        assert_eq!(log.borrow()[4..], ['g', 'm']);
        assert!(!executor.run(1000));
        assert_eq!(log.borrow().len(), 1003);
        assert!(executor.lanes.borrow().queues.is_empty());
    }

    #[test]
    fn tasks_that_wait_end_with_their_executor() {
        let executor = Executor::default();
        let owned = Rc::new(());
        let mut senders = Vec::new();
        for _ in 0..3 {
            let (sender, waits) = oneshot::channel::<()>();
            senders.push(sender);
            let owned = owned.clone();
            executor.spawner().spawn(async move {
                waits.await;
                drop(owned);
            });
        }
        assert!(!executor.run(10));
        drop(senders.pop());
        drop(executor);
        assert_eq!(Rc::strong_count(&owned), 1);
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
