//! Layer `control`: the conversation with the rest of the node, off the data path.
//!
//! All of it runs on the control thread (tokio, one thread), except `access_log::run`, which is the log thread.
//! Workers are reached through `bridge` only.

pub mod access_log;
pub mod admin;
pub mod ca;
pub mod certificates;
pub mod demands;
pub mod grpc;
pub mod http;
pub mod local_state;
pub mod log_line;
pub mod metrics;
pub mod pods;
pub mod readiness;
pub mod resolver;
pub mod revocation;
pub mod roster;
pub mod xds;
pub mod zds;
