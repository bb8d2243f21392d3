//! Serves connections: accepting, limits, deadlines, framing, drain, for any [`Handler`](accept::Handler). Knows no webhooks.

pub mod accept;
pub mod connection;
pub mod crowd;
#[doc(hidden)]
pub mod framing;
pub mod listener;
pub mod tls;
pub mod unreadable;
