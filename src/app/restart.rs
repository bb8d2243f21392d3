//! What of a configuration only a restart puts in force.

use crate::{
    config::{self, Config},
    delivery::{
        backoff::Backoff,
        dedupe,
        queue::{Policy, Retention, Store, nats},
        worker,
    },
    ingress::{route, settings as server},
    ops::{self, log},
    server::limits::ConnectionLimits,
};

/// What is in force until a restart, whatever the file says by then.
#[derive(Debug)]
pub(super) struct UntilRestart {
    server: server::Settings,
    tls: bool,
    ops: ops::Settings,
    dedupe: dedupe::Settings,
    queue: Option<config::Queue>,
    format: log::Format,
}

impl UntilRestart {
    /// What the service is built of.
    pub(super) fn of(config: &Config) -> Self {
        Self {
            server: config.server.clone(),
            tls: config.tls.is_some(),
            ops: config.ops.clone(),
            dedupe: config.dedupe,
            queue: config.queue.clone(),
            format: config.log.format,
        }
    }

    /// Whether the webhooks of a configuration can be served by what is in force: without a queue, one that needs it cannot.
    pub(super) fn can_serve(&self, config: &Config) -> bool {
        self.queue.is_some() || !config.webhooks.iter().any(|webhook| needs_queue(&webhook.settings))
    }

    /// The keys whose new values wait for a restart.
    pub(super) fn waiting(&self, config: &Config) -> Vec<&'static str> {
        let server::Settings {
            listen,
            listen_mode,
            trusted_proxies,
            connections: ConnectionLimits { max_header, max_connections, header_timeout, idle_timeout },
            max_body,
            max_inflight_bytes,
            body_timeout,
            drain_timeout,
        } = &config.server;
        [
            ("server.listen", *listen != self.server.listen),
            ("server.listen_mode", *listen_mode != self.server.listen_mode),
            ("server.trusted_proxies", *trusted_proxies != self.server.trusted_proxies),
            ("server.tls", config.tls.is_some() != self.tls),
            ("server.max_body", *max_body != self.server.max_body),
            ("server.max_header", *max_header != self.server.connections.max_header),
            ("server.max_connections", *max_connections != self.server.connections.max_connections),
            ("server.max_inflight_bytes", *max_inflight_bytes != self.server.max_inflight_bytes),
            ("server.header_timeout", *header_timeout != self.server.connections.header_timeout),
            ("server.body_timeout", *body_timeout != self.server.body_timeout),
            ("server.idle_timeout", *idle_timeout != self.server.connections.idle_timeout),
            ("server.drain_timeout", *drain_timeout != self.server.drain_timeout),
            ("ops.listen", config.ops != self.ops),
            ("dedupe.window", config.dedupe != self.dedupe),
            ("log.format", config.log.format != self.format),
        ]
        .into_iter()
        .chain(changed_of_queue(self.queue.as_ref(), config.queue.as_ref()))
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

/// Whether a webhook can be served with a queue only.
fn needs_queue(settings: &route::Settings) -> bool {
    settings.destinations.len() > 1
        || settings.destinations.iter().any(|destination| destination.policy != Policy::default())
}

/// The keys of `[queue]`, and whether they have changed.
fn changed_of_queue(old: Option<&config::Queue>, new: Option<&config::Queue>) -> Vec<(&'static str, bool)> {
    let (Some(old), Some(new)) = (old, new) else {
        return vec![("queue", old.is_some() != new.is_some())];
    };
    let worker::Settings { max_attempts, max_age, backoff: Backoff { initial, max }, concurrency } =
        &new.worker;
    let Retention { retain, dead_retain, max_bytes } = &new.retention;
    let mut keys = vec![
        ("queue.max_attempts", *max_attempts != old.worker.max_attempts),
        ("queue.max_age", *max_age != old.worker.max_age),
        ("queue.backoff", *initial != old.worker.backoff.initial || *max != old.worker.backoff.max),
        ("queue.concurrency", *concurrency != old.worker.concurrency),
        ("queue.retain", *retain != old.retention.retain),
        ("queue.dead_retain", *dead_retain != old.retention.dead_retain),
        ("queue.max_bytes", *max_bytes != old.retention.max_bytes),
    ];
    match (&old.store, &new.store) {
        (Store::Sqlite { path: old }, Store::Sqlite { path }) => keys.push(("queue.path", path != old)),
        (Store::Nats(old), Store::Nats(nats::Settings { url, stream, credentials, ca, replicas })) => keys
            .extend([
                ("queue.url", *url != old.url),
                ("queue.stream", *stream != old.stream),
                ("queue.credentials", *credentials != old.credentials),
                ("queue.ca", *ca != old.ca),
                ("queue.replicas", *replicas != old.replicas),
            ]),
        (Store::Sqlite { .. } | Store::Nats(_), _) => keys.push(("queue.store", true)),
    }
    keys
}
