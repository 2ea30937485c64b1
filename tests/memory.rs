//! What a large mesh leaves resident, with the allocator of the binary: little more than what is in use.
//!
//! A test binary of its own, with one test: memory of the process is what it looks at.

use bytes::Bytes;
use uztunnel::bridge::{Orders, SnapshotCell};
use uztunnel::control::pods;
use uztunnel::control::xds::protocol::Kind;
use uztunnel::control::xds::state::State;
use uztunnel::mesh::{Builder, Locale, Snapshot};
use uztunnel::sys::allocator;
use uztunnel_rig::istiod::{self, ADDRESS, Crowd};

const WORKLOADS: u32 = 40_000;

/// Measured: 571, and 1004 before what the replicas of a deployment have in common existed once. The list of what is held
/// is not in it.
const RESIDENT_WORKLOAD_BYTES_MAX: usize = 700;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a file of the kernel");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .expect("a number");
    kib.parse::<usize>().expect("a number") * 1024
}

fn message() -> Bytes {
    let crowd = Crowd {
        workloads: WORKLOADS,
        services: WORKLOADS / 20,
    };
    istiod::encoded(ADDRESS, &crowd.resources(), Vec::new())
}

#[test]
fn a_large_mesh_leaves_little_more_resident_than_it_uses() {
    let snapshots = SnapshotCell::new(Snapshot::empty(Locale::default()));
    let (changes, _receiver) = pods::changes();
    let builder = Builder::new(Locale {
        node: Some("a-node".into()),
        ..Locale::default()
    });
    let mut state = State::new(builder, snapshots, Orders::new(Vec::new()), changes);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let message = message();
    allocator::give_back();
    let before = resident_bytes();
    let response = state.read(message.clone()).expect("a response");
    let verdict = runtime.block_on(state.apply(Kind::Address, response));
    assert!(verdict.rejected.is_empty(), "{:?}", verdict.rejected);
    runtime.block_on(state.publish());
    drop(verdict);
    allocator::give_back();
    let each = (resident_bytes() - before) / WORKLOADS as usize;
    println!("{each} bytes for each workload");
    assert!(
        each <= RESIDENT_WORKLOAD_BYTES_MAX,
        "{each} bytes for each workload"
    );
}
