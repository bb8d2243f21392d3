//! What operators see: health, metrics, logs.

pub mod health;
pub mod log;
pub mod metrics;

use std::net::SocketAddr;

/// The commit that the program was built from, as far as the build knew it.
pub const COMMIT: &str = match option_env!("HOOKGATE_COMMIT") {
    Some(commit) if !commit.is_empty() => commit,
    _ => "unknown",
};

/// `[ops]`: the listener for health and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen; port 0 lets the kernel choose.
    pub listen: SocketAddr,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([0, 0, 0, 0], 9090)) }
    }
}
