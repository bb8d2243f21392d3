//! What is known of a request, and the one line of the log that says it: what came, what became of it, and why.
//!
//! Whoever can connect can have a request refused, so what is refused before a right signature is seen is of interest
//! to few, and its lines are limited: see [`Limiter`]. What happens to a signed delivery always has its line.

use std::{borrow::Cow, time::Duration};

use hyper::{StatusCode, http::request::Parts};
use tracing::{Level, enabled, info, warn};

use super::{
    forwarded::TrustedProxies,
    head::Headers,
    rejection::{Answer, Outcome, Reason, Rejection},
    route::{Routes, Webhook},
    trace::Trace,
};
use crate::{
    ops::log::{Limiter, STRANGERS, milliseconds, shown},
    server::state::ConnectionState,
    webhook::{
        headers::{DeliveryId, EventKind},
        payload::Tag,
    },
};

/// What is said of senders.
pub(super) struct Senders<'g> {
    /// Whose `X-Forwarded-For` is believed.
    pub(super) proxies: &'g TrustedProxies,
    /// Limits the lines that strangers cause.
    pub(super) strangers: &'g Limiter,
}

/// What is known of a request.
#[derive(Default)]
pub(super) struct Trail<'r> {
    pub(super) webhook: Option<&'r Webhook>,
    pub(super) id: Option<&'r str>,
    pub(super) kind: Option<&'r str>,
    pub(super) event: Option<&'r str>,
    pub(super) trace: Option<Trace>,
    /// Which filter did not let it through, and what it saw.
    pub(super) filtered: Option<(&'static str, String)>,
    /// Who was tried, where that was in vain.
    pub(super) destination: Option<&'r str>,
    pub(super) upstream_status: Option<StatusCode>,
    pub(super) reason: Option<Reason>,
    /// The body was read to its end.
    pub(super) body_read: bool,
    /// The signature is right: who sent it knows a secret, or has seen what somebody sent who does.
    pub(super) signed: bool,
}

impl Trail<'_> {
    /// Writes the line.
    pub(super) fn log(
        &mut self,
        senders: &Senders<'_>,
        head: &Parts,
        routes: &Routes,
        answer: &Answer,
        connection: &ConnectionState,
        duration: Duration,
    ) {
        let outcome = answer.outcome.label();
        let serious = match answer.outcome {
            Outcome::Refused(_) if self.signed => true,
            // Senders in good faith are turned away, too.
            Outcome::Refused(rejection) => matches!(rejection, Rejection::Overloaded | Rejection::Draining),
            // The service was asked, and did not take it.
            _ => self.destination.is_some(),
        };
        let stranger = !self.signed;
        let wanted = match (stranger, serious) {
            (true, false) => enabled!(target: STRANGERS, Level::INFO),
            (_, true) => enabled!(Level::WARN),
            (false, false) => enabled!(Level::INFO),
        };
        if !wanted || (stranger && !senders.strangers.admits(outcome)) {
            return;
        }
        let headers = Headers::find;
        let trace = *self.trace.get_or_insert_with(|| Trace::of(headers(&head.headers).traceparent, ""));
        let client = senders.proxies.client(connection.peer(), connection.client_address(), &head.headers);
        let reason = self.reason.as_ref().map(Reason::text);
        macro_rules! line {
            ($level:ident, $(target: $target:ident,)? $message:literal $(, $($name:ident).+ = $value:expr)*) => {
                $level!(
                    $(target: $target,)?
                    webhook = self.webhook.map(|webhook| webhook.name.as_str()),
                    delivery.id = self.id,
                    event.kind = self.kind,
                    event = self.event,
                    outcome,
                    status = answer.status.as_u16(),
                    upstream.status = self.upstream_status.map(|status| status.as_u16()),
                    duration_ms = milliseconds(duration),
                    client.address = client.as_deref(),
                    trace_id = trace.id(),
                    $($($name).+ = $value,)*
                    reason = reason.as_deref(),
                    $message
                )
            };
        }
        if stranger {
            let found = headers(&head.headers);
            let id = found.id.once().and_then(|id| DeliveryId::parse(id.as_bytes()).ok());
            let kind = found.kind.once().and_then(|kind| EventKind::parse(kind.as_bytes()).ok());
            let lost = self.webhook.is_none();
            let path = lost.then(|| shown(head.uri.path()));
            let nearest = if lost { routes.nearest(head.uri.path()).map(shown) } else { None };
            let method = (head.method != hyper::Method::POST).then(|| head.method.as_str());
            macro_rules! refused {
                ($level:ident $(, target: $target:ident)?) => {
                    line!(
                        $level,
                        $(target: $target,)?
                        "refused",
                        method = method.map(shown).as_deref(),
                        path = path.as_deref(),
                        nearest = nearest.as_deref(),
                        claimed.id = id.map(DeliveryId::as_str),
                        claimed.kind = kind.map(EventKind::as_str)
                    )
                };
            }
            if serious {
                refused!(warn);
            } else {
                refused!(info, target: STRANGERS);
            }
            return;
        }
        let (filter, saw) = self.filtered.as_ref().map(|(filter, saw)| (*filter, saw.as_str())).unzip();
        match answer.outcome {
            Outcome::Refused(_) => {
                line!(warn, "refused", destination = self.destination, filter = filter, saw = saw);
            }
            Outcome::Filtered => line!(info, "delivery", filter = filter, saw = saw),
            _ if serious => line!(warn, "delivery", destination = self.destination),
            _ => line!(info, "delivery"),
        }
    }
}

/// What a filter saw, in the words of a person.
pub(super) fn saw<'s>(value: Option<impl Into<Cow<'s, str>>>, nothing: &'static str) -> String {
    value.map_or_else(|| nothing.to_owned(), |value| shown(&value.into()))
}

/// What a filter by tags saw.
pub(super) fn saw_tag(tag: Tag<'_>) -> String {
    match tag {
        Tag::None => "no tag".into(),
        Tag::Named(tag) => shown(tag),
        Tag::Unreadable => "a tag that is not text".into(),
    }
}
