//! Everything that crosses threads, each with one writer: the snapshot and the revoked certificates (control), orders
//! (control to worker), demands (worker to control), access records (worker to log), what is counted of traffic (worker
//! to scrape), hand-overs, load and open files (worker to worker), and how long turns take (worker to whoever asks).
//!
//! Workers never wait for another thread: they read the snapshot pointer, and everything else arrives as an
//! order together with a wake.

pub mod demands;
pub mod load;
pub mod log;
pub mod lookups;
pub mod open_files;
pub mod orders;
pub mod revocation;
pub mod snapshot;
pub mod traffic;
pub mod turns;

pub use demands::{Demand, DemandQueue, Demands};
pub use load::{LoadShare, LoadTable};
pub use log::{AccessEvent, AccessRecord, Direction, LogItem, LogQueue, LogSink, Party};
pub use open_files::OpenFiles;
pub use orders::{
    Capture, CertificateError, Inbox, Order, Orders, Pod, PodInfo, PodListeners, PodUid, WorkerHandle,
    WorkerReport,
};
pub use revocation::Revocations;
pub use snapshot::SnapshotCell;
pub use traffic::Traffic;
pub use turns::TurnHistogram;
