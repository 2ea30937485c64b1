//! HTTP/2 as HBONE needs it (RFC 9113): CONNECT only.

pub mod hpack;
