//! Journeys: the real binary in network namespaces, seen from outside only.
//!
//! Each test builds its own world (`uztunnel-rig`), so they run side by side. They need root and fail without it.
//!
//! | variable | what |
//! |---|---|
//! | `UZTUNNEL_BIN` | the binary under test (default: the one that cargo built) |
//! | `JOURNEYS_IO` | drivers of node 0 and node 1: `uring`, `epoll`, `uring-epoll`, `epoll-uring`; `denied`: its own choice with io_uring forbidden by seccomp; unset: its own choice |
//! | `JOURNEYS_VARIABLES` | `NAME=VALUE ...` for every proxy |
//! | `JOURNEYS_CONTROL_PLANE` | `istiod` (default): one control plane with a CA that both nodes share; `file`: the mesh file and `FAKE_CA` |
//! | `JOURNEYS_TTL_SECONDS`, `JOURNEYS_DURATION_SECONDS` | life of certificates that are renewed under load, and how long (default 4 and 12) |
//! | `JOURNEYS_RESTARTS` | restarts of the control plane under load (default 5) |
//! | `JOURNEYS_STORM_SECONDS` | length of the reset storm (default 5) |

mod addressing;
mod admin;
mod announcements;
mod certificates;
mod cluster;
mod control_plane;
mod failover;
mod frames;
mod hostile;
mod inside;
#[path = "../admin/istioctl.rs"]
mod istioctl;
mod load;
mod names;
mod networks;
mod obeyed;
mod on_demand;
mod open_files;
mod openssl;
mod plaintext;
mod policies;
mod refusals;
mod replay;
mod revocation;
mod services;
mod setup;
mod silence;
mod start;
mod storm;
mod streams;
mod takeover;
mod telemetry;
mod tiny_records;
mod traffic;
mod transfers;
mod waypoints;
mod wire;
