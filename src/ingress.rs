//! The receiving side: what comes from the world.

pub mod route;
pub mod server;
