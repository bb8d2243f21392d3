//! Where a webhook's deliveries go, and in what form.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};

use super::queue::Policy;
use crate::{
    ops::metrics::ForDestination,
    tls::{Authorities, Identity},
    upstream::{Upstream, target::Target},
    webhook::{filter::Events, headers, payload::Delivery},
};

/// One configured `[[webhook.destination]]`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Labels logs and metrics.
    pub name: String,
    /// Where requests go.
    pub target: Target,
    /// The form in which deliveries are handed on.
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

/// The form in which a delivery is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// As it came: the verified bytes, unchanged.
    #[default]
    Raw,
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
#[derive(Debug)]
pub struct Destination {
    /// Labels logs.
    pub name: String,
    /// Where its requests go.
    pub upstream: Arc<Upstream>,
    /// What it counts.
    pub metrics: ForDestination,
    /// With a queue: how its jobs are taken out of it.
    pub policy: Policy,
    events: Option<Events>,
    format: Format,
    /// The headers that are the same in every request.
    headers: HeaderMap,
}

/// A delivery as it is handed on: what the sender said of it, and what was found out.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// The verified bytes.
    pub body: Bytes,
    /// `Content-Type` as received.
    pub content_type: HeaderValue,
    /// `Pulumi-Webhook-ID` as received.
    pub id: HeaderValue,
    /// `Pulumi-Webhook-Kind` as received.
    pub kind: HeaderValue,
    /// `Pulumi-Webhook-Signature` as received.
    pub signature: HeaderValue,
    /// The filter's name where there is one, else the kind.
    pub event: HeaderValue,
    /// Whether the signed payload proves the kind.
    pub kind_verified: bool,
    /// The trace that the delivery belongs to.
    pub traceparent: HeaderValue,
}

impl Destination {
    /// A destination of the webhook named `webhook`. `upstream` is that of its settings.
    #[must_use]
    pub fn new(settings: &Settings, webhook: &str, upstream: Arc<Upstream>, metrics: ForDestination) -> Self {
        let mut headers = HeaderMap::with_capacity(HEADERS + settings.headers.len());
        // Every name is there from the start: a request replaces values, and the map never grows.
        for name in
            [CONTENT_LENGTH, CONTENT_TYPE, ID, KIND, SIGNATURE, EVENT, KIND_VERIFIED, ATTEMPT, TRACEPARENT]
        {
            headers.insert(name, HeaderValue::from_static(""));
        }
        headers.extend(settings.headers.clone());
        headers.insert(HOST, settings.target.host.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Ok(name) = HeaderValue::from_str(webhook) {
            headers.insert(WEBHOOK, name);
        }
        Self {
            name: settings.name.clone(),
            upstream,
            metrics,
            policy: settings.policy,
            events: settings.events.clone(),
            format: settings.format,
            headers,
        }
    }

    /// Whether a delivery that the webhook wants is for this destination.
    #[must_use]
    pub fn wants(&self, delivery: &Delivery<'_>) -> bool {
        self.events.as_ref().is_none_or(|events| events.contain(delivery))
    }

    /// The request of attempt number `attempt` (from 1).
    #[must_use]
    pub fn render(&self, parcel: &Parcel, attempt: u32) -> Request<Full<Bytes>> {
        match self.format {
            Format::Raw => self.render_raw(parcel, attempt),
        }
    }

    /// As it came: nothing that the sender sent goes on but the verified bytes and the headers named here.
    fn render_raw(&self, parcel: &Parcel, attempt: u32) -> Request<Full<Bytes>> {
        let verified = if parcel.kind_verified { "true" } else { "false" };
        let mut request = Request::new(Full::new(parcel.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.upstream.target().request.clone();
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(CONTENT_LENGTH, parcel.body.len().into());
        headers.insert(CONTENT_TYPE, parcel.content_type.clone());
        headers.insert(ID, parcel.id.clone());
        headers.insert(KIND, parcel.kind.clone());
        headers.insert(SIGNATURE, parcel.signature.clone());
        headers.insert(EVENT, parcel.event.clone());
        headers.insert(KIND_VERIFIED, HeaderValue::from_static(verified));
        headers.insert(ATTEMPT, if attempt == 1 { HeaderValue::from_static("1") } else { attempt.into() });
        headers.insert(TRACEPARENT, parcel.traceparent.clone());
        request
    }
}

/// How many headers hookgate sets itself.
const HEADERS: usize = 12;

const AGENT: &str = concat!("hookgate/", env!("CARGO_PKG_VERSION"));
const ID: HeaderName = HeaderName::from_static(headers::ID);
const KIND: HeaderName = HeaderName::from_static(headers::KIND);
const SIGNATURE: HeaderName = HeaderName::from_static(headers::SIGNATURE);
const WEBHOOK: HeaderName = HeaderName::from_static("hookgate-webhook");
const EVENT: HeaderName = HeaderName::from_static("hookgate-event");
const KIND_VERIFIED: HeaderName = HeaderName::from_static("hookgate-kind-verified");
const ATTEMPT: HeaderName = HeaderName::from_static("hookgate-attempt");
/// W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
