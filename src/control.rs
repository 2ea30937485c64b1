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

use std::time::Duration;

/// A delay that is a fifth shorter to a fifth longer: what failed together must not come back together. `random` in
/// 0..1.
fn spread(delay: Duration, random: f64) -> Duration {
    delay.mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_together_comes_back_apart() {
        let delay = Duration::from_secs(10);
        let spread = [-1.0, 0.0, 0.5, 1.0, 2.0].map(|random| spread(delay, random).as_secs());
        assert_eq!(spread, [8, 8, 10, 12, 12]);
    }
}
