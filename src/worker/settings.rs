//! What a worker is set to: the parts of the configuration that reach the data path, in its own types.

use std::time::Duration;

use crate::config;
use crate::limits;
use crate::sys::socket::{Keepalive, Options};
use crate::tls::handshake::RecordMode;

/// What the kernel takes of `TCP_USER_TIMEOUT`: 24 days.
const USER_TIMEOUT_MS_MAX: u32 = i32::MAX as u32;

#[derive(Debug, Clone)]
pub struct Settings {
    /// Of sockets to other pods and hosts.
    pub socket_options: Options,
    pub tls_mode: RecordMode,
    pub tls_records_max: u64,
    pub compliance: config::Compliance,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub frame_bytes_max: u32,
    /// Streams of one session before another is dialled.
    pub session_streams_max: usize,
    pub session_idle_timeout: Duration,
    /// What peers say about themselves is used, and we say who our pods are.
    pub response_baggage: bool,
    /// Applications that take tunnels listen on loopback.
    pub tunnels_on_loopback: bool,
    /// The control plane tells only what it is asked for.
    pub on_demand: bool,
    /// Policy decisions are logged at INFO instead of DEBUG.
    pub policy_info_logging: bool,
}

impl Settings {
    /// Of sockets to applications of the pod itself. Its kernel is ours and answers probes whatever the application
    /// does, so keepalive would find out nothing, and cost four system calls a connection.
    pub fn local_options(&self) -> Options {
        Options {
            local_peer: true,
            keepalive: None,
            ..self.socket_options
        }
    }

    pub fn new(worker: &config::Worker, sockets: &config::Sockets, tls: &config::Tls) -> Self {
        let keepalive = sockets.keepalive.map(|keepalive| Keepalive {
            time_s: whole_seconds(keepalive.idle),
            interval_s: whole_seconds(keepalive.interval),
            retries: keepalive.retries,
        });
        let user_timeout_ms = sockets
            .user_timeout
            .map(|timeout| timeout.as_millis().min(USER_TIMEOUT_MS_MAX.into()) as u32);
        Self {
            socket_options: Options {
                mark: sockets.packet_mark,
                keepalive,
                user_timeout_ms,
                local_peer: false,
            },
            tls_mode: match tls.records {
                config::RecordLayer::Own => RecordMode::Own,
                config::RecordLayer::Buffered => RecordMode::Buffered,
            },
            tls_records_max: tls.records_per_key_max.unwrap_or(limits::RECORDS_PER_KEY_MAX),
            compliance: tls.compliance,
            stream_window_bytes: worker.stream_window_bytes,
            connection_window_bytes: worker.connection_window_bytes,
            frame_bytes_max: worker.frame_bytes_max,
            session_streams_max: usize::from(worker.session_streams_max),
            session_idle_timeout: worker.session_idle_timeout,
            response_baggage: worker.response_baggage,
            tunnels_on_loopback: worker.localhost_app_tunnel,
            on_demand: worker.on_demand,
            policy_info_logging: worker.policy_info_logging,
        }
    }
}

/// The kernel counts keepalive in seconds.
fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
