//! The first line of the log: what runs here, with which configuration.

use tracing::info;

use crate::{config::Config, delivery::queue::Store, ops::COMMIT};

/// Says what is about to start.
pub fn tell_start(config: &Config) {
    let (mode, store) = match &config.queue {
        None => ("direct", None),
        Some(queue) => (
            "queued",
            Some(match queue.store {
                Store::Sqlite { .. } => "sqlite",
                Store::Nats(_) => "nats",
            }),
        ),
    };
    let destinations: usize = config.webhooks.iter().map(|webhook| webhook.settings.destinations.len()).sum();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        commit = COMMIT,
        config.file = %config.path.display(),
        config.digest = config.digest,
        webhooks = config.webhooks.len(),
        destinations,
        mode,
        store,
        "hookgate starts"
    );
}
