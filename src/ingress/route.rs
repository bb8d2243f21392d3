//! Webhooks by path.

use std::{collections::HashMap, sync::Arc};

use crate::{
    delivery::destination::{self, Destination},
    ops::metrics::ForWebhook,
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

/// A webhook at work.
#[derive(Debug)]
pub struct Webhook {
    /// Labels logs.
    pub name: String,
    /// Its secrets.
    pub verifier: Verifier,
    /// What it wants.
    pub filter: Filter,
    /// Where its deliveries go: at least one; without a queue the only one.
    pub destinations: Vec<Arc<Destination>>,
    /// What it counts.
    pub metrics: ForWebhook,
}

/// All webhooks, by their exact paths.
#[derive(Debug, Default)]
pub struct Routes(HashMap<String, Webhook>);

impl Routes {
    /// The webhook at this path. No normalisation: what is not exactly the configured path is another path.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<&Webhook> {
        self.0.get(path)
    }

    /// All of them.
    pub fn webhooks(&self) -> impl Iterator<Item = &Webhook> {
        self.0.values()
    }
}

impl FromIterator<(String, Webhook)> for Routes {
    fn from_iter<I: IntoIterator<Item = (String, Webhook)>>(webhooks: I) -> Self {
        Self(webhooks.into_iter().collect())
    }
}
