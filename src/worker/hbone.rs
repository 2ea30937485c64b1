//! HBONE on a worker: sessions (one TLS connection with HTTP/2 in it each), also inside of streams of others, and the
//! pool that finds or dials them.

pub mod carrier;
pub mod dial;
pub mod drive;
pub mod fence;
pub mod inside;
pub mod pool;
pub mod revocation;
pub mod serve;
pub mod session;
pub mod source;
