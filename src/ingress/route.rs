//! Webhooks by path.

use crate::{
    delivery::destination,
    webhook::{filter::Filter, signature::Verifier},
};

/// One configured `[[webhook]]`.
#[derive(Debug)]
pub struct Settings {
    /// Labels logs and metrics.
    pub name: String,
    /// The exact path of its requests.
    pub path: String,
    /// Its secrets.
    pub verifier: Verifier,
    /// What it wants.
    pub filter: Filter,
    /// Where its deliveries go. At least one; exactly one without a queue.
    pub destinations: Vec<destination::Settings>,
}
