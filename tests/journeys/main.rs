//! Journeys: the real binary in network namespaces, seen from outside only.
//!
//! Each test builds its own world (`uztunnel-rig`), so they run side by side. `UZTUNNEL_BIN` names the binary
//! (default: the one that cargo built), `JOURNEYS_IO` the drivers of the two nodes: `uring`, `epoll`,
//! `uring-epoll`, `epoll-uring`; unset leaves the choice to the binary. They need root and fail without it.

mod addressing;
mod announcements;
mod load;
mod plaintext;
mod setup;
mod streams;
mod transfers;
mod wire;
