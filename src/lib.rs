//! uztunnel: the node proxy of an Istio ambient mesh, on io_uring and thread per core.

#![deny(unsafe_code)]

pub mod bridge;
pub mod clock;
pub mod config;
pub mod control;
pub mod identity;
pub mod limits;
pub mod mesh;
pub mod process;
pub mod runtime;
#[allow(unsafe_code)]
pub mod sys;
pub mod tls;
pub mod wire;
pub mod worker;
