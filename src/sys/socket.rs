//! Sockets and their options.
/// Options of an outgoing or listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// `SO_MARK`; `None`: not set.
    pub mark: Option<u32>,
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`, milliseconds.
    pub user_timeout_ms: Option<u32>,
}

/// TCP keepalive (`SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    pub time_s: u32,
    pub interval_s: u32,
    pub retries: u32,
}
