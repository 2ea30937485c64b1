//! All fuzz targets, for whoever runs them without libFuzzer.

#[path = "targets/baggage.rs"]
mod baggage;
#[path = "targets/hbone_authority.rs"]
mod hbone_authority;
#[path = "targets/hpack.rs"]
mod hpack;
#[path = "targets/http2.rs"]
mod http2;
#[path = "targets/tls_record.rs"]
mod tls_record;
#[path = "targets/traceparent.rs"]
mod traceparent;
#[path = "targets/xds.rs"]
mod xds;
#[path = "targets/xds_response.rs"]
mod xds_response;
#[path = "targets/zds.rs"]
mod zds;

/// What a target does with one input. It panics when something is wrong.
pub type Body = fn(&[u8]);

/// Name and body of each target; the name is that of its corpus and of its binary.
pub const ALL: &[(&str, Body)] = &[
    ("baggage", baggage::run),
    ("hbone_authority", hbone_authority::run),
    ("hpack", hpack::run),
    ("http2", http2::run),
    ("tls_record", tls_record::run),
    ("traceparent", traceparent::run),
    ("xds", xds::run),
    ("xds_response", xds_response::run),
    ("zds", zds::run),
];
