//! `[server]`: the listener for webhooks, and the limits of what comes in through it.

use std::{net::SocketAddr, time::Duration};

use super::forwarded::TrustedProxies;
use crate::server::{limits::ConnectionLimits, listener::Address};

/// `[server]`. The defaults are those of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub listen: Address,
    /// The permissions of the unix socket.
    pub listen_mode: u32,
    /// Whose `X-Forwarded-For` is believed, for the log.
    pub trusted_proxies: TrustedProxies,
    /// What connections may take.
    pub connections: ConnectionLimits,
    /// The longest body, in bytes.
    pub max_body: usize,
    /// Bodies being held, all requests together, in bytes.
    pub max_inflight_bytes: usize,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// From the signal to the end.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Address::Tcp(SocketAddr::from(([0, 0, 0, 0], 8080))),
            listen_mode: 0o660,
            trusted_proxies: TrustedProxies::default(),
            connections: ConnectionLimits::default(),
            max_body: 1 << 20,
            max_inflight_bytes: 64 << 20,
            body_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(25),
        }
    }
}
