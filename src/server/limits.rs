//! What the connections of a listener may take.

use std::time::Duration;

/// Limits of connections and of what a server reads by itself. Those of a body are its handler's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The longest head, in bytes.
    pub max_header: usize,
    /// Connections at a time; more wait in the kernel's queue.
    pub max_connections: usize,
    /// From the first byte of a head, or from the connect, to its end.
    pub header_timeout: Duration,
    /// Between two requests of a connection, and for a peer that does not read its answer.
    pub idle_timeout: Duration,
}

/// The defaults of the configuration.
impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_header: 16 << 10,
            max_connections: 1024,
            header_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
        }
    }
}
