//! Where a webhook's deliveries go, and in what form.

use std::{fmt, sync::Arc, time::Duration};

use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};

pub use super::format::Format;
use super::{
    format::{self, RenderError, put},
    parcel::Parcel,
    queue::Policy,
};
use crate::{
    net::{
        target::Target,
        tls::{Authorities, Identity},
    },
    ops::metrics::ForDestination,
    upstream::{OutboundRequest, Upstream},
    webhook::{filter::Events, payload::Delivery},
};

/// One configured `[[webhook.destination]]`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Labels logs and metrics.
    pub name: String,
    /// Where requests go.
    pub target: Target,
    /// The form in which deliveries are forwarded.
    pub format: Format,
    /// From the start of an attempt to the upstream's status.
    pub timeout: Duration,
    /// Headers that are added, on top of hookgate's own. Values are marked sensitive.
    pub headers: HeaderMap,
    /// https: the authorities to trust instead of the platform's.
    pub ca: Option<Authorities>,
    /// https: the client certificate that hookgate presents.
    pub identity: Option<Identity>,
    /// Narrows the webhook's events. `None`: all of them.
    pub events: Option<Events>,
    /// With a queue: how its jobs are taken out of it.
    pub policy: Policy,
}

impl Settings {
    /// The timeout of a destination that sets none.
    pub const TIMEOUT: Duration = Duration::from_secs(10);
}

/// Headers that hookgate sets itself, or that belong to one connection: no configuration may set them.
#[must_use]
pub fn is_reserved_header(name: &HeaderName) -> bool {
    const RESERVED: [&str; 14] = [
        "connection",
        "content-length",
        "content-type",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "traceparent",
    ];
    let name = name.as_str();
    RESERVED.contains(&name) || name.starts_with("pulumi-webhook-") || name.starts_with("hookgate-")
}

/// A destination at work.
pub struct Destination {
    /// Labels logs.
    pub name: String,
    /// Where its requests go.
    pub upstream: Arc<Upstream>,
    /// What it counts.
    pub metrics: ForDestination,
    /// With a queue: how its jobs are taken out of it.
    pub policy: Policy,
    /// The form in which it gets deliveries.
    pub format: Format,
    events: Option<Events>,
    /// Request line and headers, as far as they are the same in every request.
    head: Vec<u8>,
}

/// Without the head, in which secrets may be.
impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Destination {
    /// A destination of the webhook named `webhook`. `upstream` is that of its settings.
    #[must_use]
    pub fn new(settings: &Settings, webhook: &str, upstream: Arc<Upstream>, metrics: ForDestination) -> Self {
        let Target { request, host, .. } = upstream.target();
        let mut head = format!("POST {request} HTTP/1.1\r\n").into_bytes();
        put(&mut head, HOST.as_str(), host.as_bytes());
        put(&mut head, USER_AGENT.as_str(), AGENT.as_bytes());
        if let Ok(name) = HeaderValue::from_str(webhook) {
            put(&mut head, "hookgate-webhook", name.as_bytes());
        }
        for (name, value) in &settings.headers {
            put(&mut head, name.as_str(), value.as_bytes());
        }
        Self {
            name: settings.name.clone(),
            upstream,
            metrics,
            policy: settings.policy,
            events: settings.events.clone(),
            format: settings.format,
            head,
        }
    }

    /// Whether a delivery that the webhook wants is for this destination.
    #[must_use]
    pub fn wants(&self, delivery: &Delivery<'_>) -> bool {
        self.events.as_ref().is_none_or(|events| events.contain(delivery))
    }

    /// The request of attempt number `attempt` (from 1).
    ///
    /// # Errors
    ///
    /// [`RenderError`] if its format cannot show the delivery.
    pub fn render(&self, parcel: &Parcel, attempt: u32) -> Result<OutboundRequest, RenderError> {
        let rendered = self.format.render(parcel)?;
        Ok(format::write(&self.head, rendered, parcel, attempt))
    }
}

const AGENT: &str = concat!("hookgate/", env!("CARGO_PKG_VERSION"));
