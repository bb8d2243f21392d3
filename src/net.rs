//! Names, sockets and TLS: what reaching another machine takes, whoever reaches it and whatever for.
//!
//! A [`target`] says where; [`tls`] says whom to trust; a [`deadline`] bounds every wait. It imports nothing of ours: its errors are
//! its own, and who calls says what they mean.

pub mod client;
pub mod connect;
pub mod deadline;
pub mod socket;
pub mod target;
pub mod tls;
