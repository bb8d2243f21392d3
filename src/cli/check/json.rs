//! What `check` says, as JSON: the names are an interface.
//!
//! `meaning` has the keys of the file, with defaults in the places of absent ones; durations and sizes are written as the
//! file writes them. As everywhere, secrets and header values are told by where they come from only.

use serde_json::{Value, json};

use super::{shown_url, size};
use crate::{
    config::{
        Config, Destination, IdentityFiles, Mistake, Queue, Source, Webhook, is_hidden, show_duration,
        show_instant, show_size,
    },
    delivery::{destination, queue::Store},
    ops::log,
    server::listener::Address,
    webhook::{
        event::Kind,
        filter::{Events, KindCheck},
    },
};

/// The whole answer, on lines of their own.
pub(super) fn text(file: &str, mistakes: &[Mistake], good: Option<&Config>) -> String {
    let value = json!({
        "file": file,
        "good": good.is_some(),
        "mistakes": mistakes.iter().map(mistake).collect::<Vec<_>>(),
        "warnings": good.map_or(&[][..], |config| &config.warnings).iter().map(mistake).collect::<Vec<_>>(),
        "meaning": good.map(meaning),
    });
    let mut safe = String::new();
    for c in format!("{value:#}").chars() {
        if c.is_ascii() || !is_hidden(c) {
            safe.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| safe.push_str(&format!("\\u{unit:04x}")));
        }
    }
    safe
}

fn mistake(mistake: &Mistake) -> Value {
    json!({
        "file": mistake.file.display().to_string(),
        "line": mistake.place.map(|place| place.line),
        "column": mistake.place.map(|place| place.column),
        "key": mistake.key,
        "text": mistake.text,
    })
}

fn meaning(config: &Config) -> Value {
    let server = &config.server;
    json!({
        "server": {
            "listen": server.listen.to_string(),
            "trusted_proxies": server.trusted_proxies.networks().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "listen_mode": match &server.listen {
                Address::Unix(_) => Some(format!("{:04o}", server.listen_mode)),
                Address::Tcp(_) => None,
            },
            "tls": config.tls.as_ref().map(|tls| identity(&tls.files)),
            "max_body": size(server.max_body),
            "max_header": size(server.connections.max_header),
            "max_connections": server.connections.max_connections,
            "max_inflight_bytes": size(server.max_inflight_bytes),
            "header_timeout": show_duration(server.connections.header_timeout),
            "body_timeout": show_duration(server.body_timeout),
            "idle_timeout": show_duration(server.connections.idle_timeout),
            "drain_timeout": show_duration(server.drain_timeout),
        },
        "ops": { "listen": config.ops.listen.to_string() },
        "log": {
            "format": match config.log.format {
                log::Format::Json => "json",
                log::Format::Text => "text",
            },
            "level": config.log.level,
        },
        "dedupe": { "window": show_duration(config.dedupe.window) },
        "queue": config.queue.as_ref().map(queue),
        "webhook": config.webhooks.iter().map(webhook).collect::<Vec<_>>(),
    })
}

fn queue(queue: &Queue) -> Value {
    let Queue { store, retention, worker } = queue;
    let mut value = json!({
        "store": store.name(),
        "max_age": show_duration(worker.max_age),
        "max_attempts": worker.max_attempts,
        "backoff": {
            "initial": show_duration(worker.backoff.initial),
            "max": show_duration(worker.backoff.max),
        },
        "concurrency": worker.concurrency,
        "retain": show_duration(retention.retain),
        "dead_retain": show_duration(retention.dead_retain),
        "max_bytes": show_size(retention.max_bytes),
    });
    let own = match store {
        Store::Sqlite { path } => json!({ "path": path.display().to_string() }),
        Store::Nats(nats) => json!({
            "url": nats.url,
            "stream": nats.stream,
            "credentials": nats.credentials.as_ref().map(|path| path.display().to_string()),
            "ca": nats.ca.as_ref().map(|path| path.display().to_string()),
            "replicas": nats.replicas,
        }),
    };
    if let (Value::Object(value), Value::Object(own)) = (&mut value, own) {
        value.extend(own);
    }
    value
}

fn webhook(webhook: &Webhook) -> Value {
    let settings = &webhook.settings;
    let destinations = settings.destinations.iter().zip(&webhook.destinations);
    let secret = |origin: &crate::config::Origin| {
        let mut value = source(&origin.source);
        if let Value::Object(value) = &mut value {
            value.insert("name".into(), json!(origin.name));
            value.insert("expires".into(), json!(origin.expires.map(show_instant)));
        }
        value
    };
    json!({
        "name": settings.name,
        "path": settings.path,
        "secret": webhook.secrets.iter().map(secret).collect::<Vec<_>>(),
        "events": events(&settings.filter.events),
        "scope": webhook.scope.map(|scope| scope.name()),
        "organization": settings.filter.organization,
        "environments": webhook.environments,
        "tags": webhook.tags,
        "kind_check": match settings.filter.kind_check {
            KindCheck::Enforce => "enforce",
            KindCheck::Warn => "warn",
        },
        "destination": destinations.map(|(settings, told)| destination(settings, told)).collect::<Vec<_>>(),
    })
}

fn destination(settings: &destination::Settings, told: &Destination) -> Value {
    let headers = told.headers.iter().map(|(name, from)| (name.clone(), source(from)));
    json!({
        "name": settings.name,
        "url": shown_url(&told.url),
        "format": match settings.format {
            destination::Format::Raw => "raw",
        },
        "timeout": show_duration(settings.timeout),
        "headers": headers.collect::<serde_json::Map<_, _>>(),
        "ca": told.ca.as_ref().map(|path| path.display().to_string()),
        "identity": told.identity.as_ref().map(identity),
        "events": settings.events.as_ref().map(events),
        "order": settings.policy.in_order.then_some("environment"),
        "coalesce": settings.policy.coalesce.map(show_duration),
    })
}

fn source(source: &Source) -> Value {
    match source {
        Source::Text => json!({ "text": "…" }),
        Source::File(path) => json!({ "file": path.display().to_string() }),
        Source::Env(name) => json!({ "env": name }),
    }
}

fn identity(files: &IdentityFiles) -> Value {
    json!({ "cert": files.cert.display().to_string(), "key": files.key.display().to_string() })
}

/// Every filter by its name, and kinds that hookgate does not know as `kind:NAME`.
fn events(events: &Events) -> Vec<String> {
    if events.are_all() {
        return vec!["*".to_owned()];
    }
    let kinds = events.kinds().iter().filter(|kind| Kind::find(kind).is_none());
    let kinds = kinds.map(|kind| format!("kind:{kind}"));
    let known = events.kinds().iter().filter(|kind| Kind::find(kind).is_some());
    let mut names: Vec<_> = events.filters().map(|event| event.name.to_owned()).chain(kinds).collect();
    for kind in known {
        let filters = super::filters_of(kind, events);
        names.extend(
            filters.into_iter().map(str::to_owned).filter(|name| !names.contains(name)).collect::<Vec<_>>(),
        );
    }
    names
}
