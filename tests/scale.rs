//! A large mesh within bounds that a slow machine keeps, too: memory of each workload, what one change costs whatever
//! the size of the mesh, and how long the control thread is kept from other work. The figures that count are those of
//! `cargo xtask perf scale`.
//!
//! The allocator of this process counts, so that memory is exact. One test at a time: they share the counters.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::yield_now;
use uztunnel::bridge::{Orders, SnapshotCell};
use uztunnel::clock;
use uztunnel::control::pods::{self, PodChanges};
use uztunnel::control::xds::messages::discovery::Node;
use uztunnel::control::xds::protocol::{Kind, Protocol};
use uztunnel::control::xds::state::State;
use uztunnel::mesh::{Builder, Locale, Snapshot};
use uztunnel_rig::istiod::{self, ADDRESS, Crowd, Resource};

/// What a workload may take, its part of its service and of the list of what is held included. 100,000 of them have
/// to stay below 100 MiB.
const WORKLOAD_BYTES_MAX: usize = 600;

/// What may be left of one that is gone. Texts that nobody uses are let go of when others come, and tables keep their
/// size.
const LEFT_BYTES_MAX: usize = 200;

/// How long the thread may be kept from other work: a hundred times what it takes when optimised.
const STRETCH_MAX: Duration = Duration::from_millis(100);

struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static ALLOCATED_BYTES: AtomicUsize = AtomicUsize::new(0);
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: every call is passed on to the system's allocator with its own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        ALLOCATED_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A control thread's state with a crowd in it.
struct Control {
    state: State,
    protocol: Protocol,
    snapshots: SnapshotCell,
    runtime: tokio::runtime::Runtime,
    _changes: PodChanges,
}

impl Control {
    fn new() -> Self {
        let snapshots = SnapshotCell::new(Snapshot::empty(Locale::default()));
        let (changes, receiver) = pods::changes();
        let locale = Locale {
            node: Some("a-node".into()),
            ..Locale::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            state: State::new(
                Builder::new(locale),
                snapshots.clone(),
                Orders::new(Vec::new()),
                changes,
            ),
            protocol: Protocol::new(Node::default()),
            snapshots,
            runtime: runtime.expect("a runtime"),
            _changes: receiver,
        }
    }

    /// Applies and publishes; gives the longest time for which another task had to wait.
    fn serve(&mut self, resources: Vec<Resource>) -> Duration {
        let message = istiod::encoded(ADDRESS, &resources, Vec::new());
        drop(resources);
        let (state, runtime) = (&mut self.state, &self.runtime);
        let (verdict, longest) = runtime.block_on(async {
            let mut longest = Duration::ZERO;
            let mut last = Instant::now();
            let mut applying = Box::pin(async {
                let mut arriving = state.arriving(message.len());
                arriving.feed(message);
                while !state.make(&mut arriving).expect("a response") {
                    yield_now().await;
                }
                let response = arriving.finish().expect("a response");
                let verdict = state.apply(Kind::Address, response).await;
                state.publish().await;
                verdict
            });
            loop {
                tokio::select! {
                    biased;
                    verdict = &mut applying => {
                        return (verdict, longest.max(last.elapsed()));
                    }
                    () = yield_now() => {
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                }
            }
        });
        assert!(verdict.rejected.is_empty(), "{:?}", verdict.rejected);
        drop(
            self.protocol
                .answer(Kind::Address.type_url(), "n", verdict, clock::now()),
        );
        longest
    }
}

fn crowd(workloads: u32) -> Crowd {
    Crowd {
        workloads,
        services: workloads / 20,
    }
}

/// Bytes that are allocated until one change is published.
fn cost_of_a_change(workloads: u32) -> usize {
    let crowd = crowd(workloads);
    let mut control = Control::new();
    control.serve(crowd.resources());
    let mut costs: Vec<usize> = (0..9)
        .map(|round| {
            let change = vec![crowd.workload(round * 31, round % 2 == 0, 2)];
            let before = ALLOCATED_BYTES.load(Ordering::Relaxed);
            control.serve(change);
            ALLOCATED_BYTES.load(Ordering::Relaxed) - before
        })
        .collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}

#[test]
fn a_workload_of_a_large_mesh_takes_less_than_a_kilobyte() {
    const WORKLOADS: u32 = 20_000;
    let _alone = alone();
    let crowd = crowd(WORKLOADS);
    let resources = crowd.resources();
    let mut control = Control::new();
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    let resources_bytes =
        size_of_val(&*resources) + resources.iter().map(Resource::heap_bytes).sum::<usize>();
    control.serve(resources);
    // Serving has used the resources up.
    let grown = LIVE_BYTES.load(Ordering::Relaxed) + resources_bytes - before;
    let each = grown / WORKLOADS as usize;
    println!("{each} bytes each");
    assert!(each < WORKLOAD_BYTES_MAX, "{each} bytes each");
    assert!(each > 300, "{each} bytes each: something is not counted");
    let snapshot = control.snapshots.load();
    assert_eq!(snapshot.workloads().count(), WORKLOADS as usize);
    assert_eq!(
        snapshot
            .services()
            .map(|it| snapshot.endpoints(it).count())
            .sum::<usize>(),
        WORKLOADS as usize
    );
}

#[test]
fn everything_is_given_back_when_the_mesh_is_empty_again() {
    const WORKLOADS: u32 = 5_000;
    let _alone = alone();
    let crowd = crowd(WORKLOADS);
    let mut control = Control::new();
    control.serve(vec![crowd.workload(0, true, 1)]);
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    control.serve(crowd.resources());
    let full = LIVE_BYTES.load(Ordering::Relaxed);
    let names = (1..WORKLOADS).map(|number| crowd.uid(number));
    let names = names.chain((0..crowd.services).map(|number| crowd.hostname_key(number)));
    let removal = istiod::encoded(ADDRESS, &[], names.collect());
    let state = &mut control.state;
    let removal = state.read(removal).expect("a response");
    let verdict = control.runtime.block_on(async {
        let verdict = state.apply(Kind::Address, removal).await;
        state.publish().await;
        verdict
    });
    drop(
        control
            .protocol
            .answer(Kind::Address.type_url(), "n", verdict, clock::now()),
    );
    let after = LIVE_BYTES.load(Ordering::Relaxed);
    let left = after.saturating_sub(before);
    assert!(
        left < WORKLOADS as usize * LEFT_BYTES_MAX,
        "{left} bytes of {}",
        full - before
    );
    assert_eq!(control.snapshots.load().workloads().count(), 1);
}

#[test]
fn a_change_costs_the_same_in_a_mesh_of_ten_times_the_size() {
    let _alone = alone();
    let (small, large) = (cost_of_a_change(2_000), cost_of_a_change(20_000));
    println!("{small} bytes in the small mesh, {large} in the large one");
    assert!(
        large < small * 3 / 2,
        "{small} bytes in the small mesh, {large} in the large one"
    );
}

#[test]
fn a_large_response_keeps_other_work_waiting_for_a_moment_only() {
    let _alone = alone();
    let resources = crowd(20_000).resources();
    let begun = Instant::now();
    let longest = Control::new().serve(resources);
    let all = begun.elapsed();
    println!("{longest:?} of {all:?}");
    assert!(longest < STRETCH_MAX, "{longest:?} of {all:?}");
}
