//! The messages of delta discovery and of its resources, generated from proto/*.proto.

#![allow(clippy::all)]

/// Delta discovery.
pub mod discovery {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
}

/// Workloads and services.
pub mod workload {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.rs"));
}

/// Policies.
pub mod security {
    include!(concat!(env!("OUT_DIR"), "/istio.security.rs"));
}
