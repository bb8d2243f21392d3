//! The configuration: a file becomes settings, or a report of everything that is wrong with it.

use crate::{delivery, ingress, ops};

/// The configuration.
#[derive(Debug)]
#[expect(missing_docs, reason = "a stand-in")]
pub struct Config {
    pub server: ingress::server::Settings,
    pub ops: ops::Settings,
    pub log: ops::log::Settings,
    pub dedupe: delivery::dedupe::Settings,
    pub webhooks: Vec<Webhook>,
}
/// A webhook.
#[derive(Debug)]
#[expect(missing_docs, reason = "a stand-in")]
pub struct Webhook {
    pub settings: ingress::route::Settings,
}
