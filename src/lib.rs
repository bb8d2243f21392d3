//! hookgate, the verifying sidecar for Pulumi webhooks.

pub mod app;
pub mod cli;
pub mod config;
pub mod delivery;
pub mod ingress;
pub mod ops;
pub mod upstream;
pub mod webhook;
