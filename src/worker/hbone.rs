//! HBONE on a worker: sessions (one TLS connection with HTTP/2 in it each) and the pool that finds or dials
//! them.

pub mod dial;
pub mod drive;
pub mod fence;
pub mod pool;
pub mod revocation;
pub mod serve;
pub mod session;
