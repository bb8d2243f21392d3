//! The accept loop: permits, deadlines, drain. Knows no webhooks.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// `[server]`: listener and limits. The defaults are those of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub listen: Address,
    /// The longest body, in bytes.
    pub max_body: usize,
    /// The longest head, in bytes.
    pub max_header: usize,
    /// Connections at a time; more wait in the kernel's queue.
    pub max_connections: usize,
    /// Bodies being held, all requests together, in bytes.
    pub max_inflight_bytes: usize,
    /// From the first byte of a head, or from the connect, to its end.
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// Between two requests of a connection, and for a peer that does not read its answer.
    pub idle_timeout: Duration,
    /// From the signal to the end.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Address::Tcp(SocketAddr::from(([0, 0, 0, 0], 8080))),
            max_body: 1 << 20,
            max_header: 16 << 10,
            max_connections: 1024,
            max_inflight_bytes: 64 << 20,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(25),
        }
    }
}

/// Where a listener is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// IP address and port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
