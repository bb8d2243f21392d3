//! Requests that come from the world: [`receive`] is their path, from head to answer.

mod body;
mod forwarded;
mod head;
pub mod receive;
pub mod rejection;
pub mod route;
pub mod settings;
mod trace;
mod trail;

pub use body::Budget;
pub use forwarded::TrustedProxies;
