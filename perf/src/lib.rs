//! Measurements: load tools, scenarios, and a runner that compares proxies side by side.
//!
//! Machines of one kind differ by up to 1.7x and a machine differs from itself by the minute, so nothing absolute
//! counts: all variants (proxies and the direct path) are alive at once in worlds of the rig, and are measured in
//! short slices, round-robin, the order reversed every round. Ratios are taken within a round; their median is the
//! result. CPU time is what the scheduler charged to the proxy processes (their CPU clocks), and beside it what the
//! whole machine spent: part of the network's work is done in other processes' time.
//!
//! | module | what |
//! |---|---|
//! | `load` | clients: closed-loop requests, connection per request, bulk |
//! | `server` | what they talk to |
//! | `scenario` | what is measured |
//! | `bench` | worlds and slices |
//! | `scale` | a large mesh, loaded and changed while an echo runs |
//! | `echo` | that echo |
//! | `holdups` | whether somebody else than the proxies held a message up |
//! | `changes` | what a change of a large mesh costs, without proxies |
//! | `endpoints` | what a choice among endpoints costs, without proxies |
//! | `policies` | what a connection costs to authorize, without proxies |
//! | `pods` | many pods announced at once |
//! | `tenants` | what the storm of one pod costs another one |
//! | `seats` | which CPU a thread runs on, and who goes first there |
//! | `awake` | CPUs that do not sleep meanwhile |
//! | `witness` | what the machine alone makes of a worker's turn |
//! | `report` | medians, spread, ratios, as a table |

pub mod awake;
pub mod bench;
pub mod changes;
pub mod echo;
pub mod endpoints;
pub mod holdups;
pub mod load;
pub mod machine;
pub mod pods;
pub mod policies;
pub mod report;
pub mod scale;
pub mod scenario;
pub mod seats;
pub mod server;
pub mod tenants;
pub mod witness;
