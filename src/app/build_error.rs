//! Why the service cannot be built.

use std::io;

use crate::{net::tls::NoRoots, server::listener::Address};

/// Why the service cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A listener cannot be bound.
    #[error("cannot listen on {address} (`{key}`): {source}")]
    Bind {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        address: Address,
        /// What the kernel says.
        source: io::Error,
    },
    /// There is nobody to trust towards a destination.
    #[error("destination `{destination}` of webhook `{webhook}`: {source}")]
    NoRoots {
        /// The webhook's name.
        webhook: String,
        /// The destination's name.
        destination: String,
        /// What is wrong.
        source: NoRoots,
    },
    /// The queue cannot be opened.
    #[error("{0}")]
    Queue(String),
    /// TLS as a whole cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}
