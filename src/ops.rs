//! What operators see: health, metrics, logs.

pub mod health;
pub mod log;
pub mod metrics;

use std::net::SocketAddr;

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
