//! Webhooks by path.

use std::{collections::HashMap, sync::Arc};

use crate::{
    delivery::destination::{self, Destination},
    ops::metrics::ForWebhook,
    webhook::{
        event::{EVENTS, PING},
        filter::Filter,
        payload::Delivery,
        signature::Verifier,
    },
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

/// As much of a wrong path is compared, with as many right ones: it is the sender who decides how often.
const LONGEST_COMPARED: usize = 256;
const MOST_COMPARED: usize = 256;

impl Webhook {
    /// What a webhook counts its deliveries by, in the order of [`Webhook::event_number`].
    pub fn event_labels() -> impl Iterator<Item = &'static str> {
        EVENTS.iter().map(|event| event.name).chain([PING, "other"])
    }

    /// The number of a delivery's label.
    #[must_use]
    pub fn event_number(delivery: &Delivery<'_>) -> usize {
        let others = if delivery.is_ping() { EVENTS.len() } else { EVENTS.len() + 1 };
        delivery.event_number().unwrap_or(others)
    }
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

    /// The path that a wrong one was probably meant to be: one that it begins or ends with, or that begins or ends with
    /// it, as a proxy that adds or takes away would make it; else the one with the fewest different letters.
    #[must_use]
    pub fn nearest(&self, path: &str) -> Option<&str> {
        let wrong: String = path.chars().take(LONGEST_COMPARED).collect();
        let unlike = |known: &str| {
            let bare = known.trim_matches('/');
            let wrong_bare = wrong.trim_matches('/');
            let contained = !bare.is_empty()
                && !wrong_bare.is_empty()
                && (path.contains(known.trim_end_matches('/')) || known.contains(wrong_bare));
            (!contained, strsim::osa_distance(&known.to_ascii_lowercase(), &wrong.to_ascii_lowercase()))
        };
        self.0.keys().take(MOST_COMPARED).map(String::as_str).min_by_key(|known| (unlike(known), *known))
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
