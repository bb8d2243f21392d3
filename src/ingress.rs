//! The receiving side: what comes from the world.
//!
//! [`listener`] is where they come in, [`server`] serves them and knows no webhooks; [`receive`] is the path of a request.

mod body;
mod connection;
pub mod crowd;
mod forwarded;
#[doc(hidden)]
pub mod framing;
mod head;
pub mod listener;
pub mod receive;
pub mod rejection;
pub mod route;
pub mod server;
pub mod tls;
mod trace;
mod trail;
pub mod unreadable;

pub use body::Budget;
pub use connection::Shared;
pub use forwarded::TrustedProxies;
