//! Serves connections: accepting, limits, deadlines, framing, drain, for any [`Handler`](handler::Handler). Knows no webhooks.
//!
//! [`accept::serve`] takes connections from a [`listener`] until a [`drain`] begins; each of them has a place in the
//! [`crowd`] and is served by hyper over a socket that bounds every wait. What requests and socket of a connection tell each
//! other is its [`state`].

pub mod accept;
mod answering;
mod connection;
pub mod crowd;
pub mod drain;
#[doc(hidden)]
pub mod framing;
mod guarded;
pub mod handler;
pub mod limits;
pub mod listener;
pub mod state;
pub mod tls;
pub mod unreadable;

#[cfg(test)]
mod tests;
