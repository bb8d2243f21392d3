//! What Pulumi says, and what can be believed of it. Pure: no runtime, no HTTP library, no clock, no I/O.
//!
//! A delivery passes through these files in this order, and each step takes what only the step before it can
//! make: [`signature`] gives a [`signature::VerifiedBody`], [`payload`] reads it, [`filter`] decides.
//! A file imports only files before it in the list below.

pub mod mangled;
pub mod secret;
pub mod signature;

pub mod headers;
pub mod media_type;

pub mod event;
pub mod payload;

pub mod filter;
