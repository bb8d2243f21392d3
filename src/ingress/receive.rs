//! The path of a request, from its head to its answer.
//!
//! `Gate::admit` is that path: one function, read from top to bottom. Every step either lets the request on to
//! the next one or ends it. What stands before the signature check touches the head only.

use std::{
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, Version,
    body::{Body, Incoming},
    header::{HeaderValue, USER_AGENT},
    http::{request::Parts, uri::Authority},
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    TrustedProxies,
    body::{self, Budget, Held},
    head::{Header, Headers},
    rejection::{Answer, Outcome, Reason, Refusal, Rejection},
    route::{Routes, Webhook},
    trace::Trace,
    trail::{Senders, Trail, saw, saw_tag},
};
use crate::{
    delivery::{
        attempt,
        dispatch::{Dispatch, Dispatched},
        parcel::Parcel,
    },
    ops::{
        log::{Limiter, STRANGERS},
        metrics::{ForWebhook, Metrics},
    },
    server::{
        handler::Handler,
        state::{ConnectionState, Peer},
        unreadable::Unreadable,
    },
    upstream::Failure,
    webhook::{
        filter::{Unwanted, Verdict},
        headers::{DeliveryId, EventKind},
        media_type::MediaType,
        payload::{Agreement, Delivery},
        signature::{Signature, Verified},
    },
};

/// The limits of a request.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest body, in bytes.
    pub max_body: usize,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// The bytes of all bodies together.
    pub budget: Budget,
}

/// What requests pass through. One for each thread; the parts behind it are shared.
#[derive(Debug, Clone)]
pub struct Gate {
    /// The webhooks in force. A request keeps those it began with.
    pub routes: Arc<ArcSwap<Routes>>,
    /// The limits of a request.
    pub limits: Limits,
    /// How accepted deliveries are forwarded.
    pub dispatch: Arc<Dispatch>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Arc<TrustedProxies>,
    /// Limits the lines that strangers cause.
    pub strangers: Arc<Limiter>,
    /// What requests to a path that is not configured count.
    pub unrouted: Arc<ForWebhook>,
    /// Which thread this is: see [`crate::upstream::Upstream::new`].
    pub lane: usize,
}

impl Handler for Gate {
    type Body = Full<Bytes>;

    async fn handle(
        &self,
        request: Request<Incoming>,
        connection: &Arc<ConnectionState>,
    ) -> Response<Full<Bytes>> {
        let began = Instant::now();
        let in_flight = InFlight::new(&self.metrics);
        let (head, mut body) = request.into_parts();
        let routes = self.routes.load();
        let mut trail = Trail { body_read: body.is_end_stream(), ..Trail::default() };
        let chunked = body.size_hint().exact().is_none();

        let admitted = {
            let mut admit = pin!(self.admit(&routes, &head, &mut body, began, connection, &mut trail));
            // At the end of a drain every request that is still here is answered, whatever it waits for.
            std::future::poll_fn(|cx| {
                if connection.is_cut() {
                    return Poll::Ready(Err(Rejection::Draining.because("cut off by `drain_timeout`")));
                }
                admit.as_mut().poll(cx)
            })
            .await
        };
        let mut answer = admitted.unwrap_or_else(|Refusal { rejection, reason }| {
            trail.reason = Some(reason);
            rejection.answer()
        });

        // Of a request without a right signature, hyper passes over the body as it is dropped, if all of it is there.
        let body_done = trail.body_read
            || (matches!(answer.outcome, Outcome::Refused(rejection) if rejection.is_of_the_signature())
                && head.version == Version::HTTP_11
                && connection.has_nothing_behind());
        // Behind an unread body, an ambiguous head or a chunked body the next head cannot be told for sure. And
        // who is refused does not keep a connection that others wait for.
        if !body_done
            || connection.is_ambiguous()
            || connection.is_closing()
            || chunked
            || (matches!(answer.outcome, Outcome::Refused(_)) && connection.is_crowded())
        {
            answer.close = true;
        }
        if !body_done {
            connection.leave_unread();
        }
        let duration = began.elapsed();
        drop(in_flight);
        trail
            .webhook
            .map_or(&*self.unrouted, |webhook| &webhook.metrics)
            .request(answer.outcome.index(), duration);
        let senders = Senders { proxies: &self.trusted_proxies, strangers: &self.strangers };
        trail.log(&senders, &head, &routes, &answer, connection, duration);
        answer.into_response(head.headers)
    }

    fn connection(&self, opened: bool) {
        if opened {
            self.metrics.connections.inc();
        } else {
            self.metrics.connections.dec();
        }
    }

    fn evicted(&self) {
        self.metrics.connections_evicted.inc();
    }

    fn unreadable(&self, what: Unreadable, about: &str, peer: Peer) {
        self.metrics.unreadable(what.label(), 1);
        if self.strangers.admits("unreadable") {
            let address = peer.map(|peer| peer.to_string());
            info!(
                target: STRANGERS,
                looks_like = what.label(),
                client.address = address,
                reason = about,
                "cannot be read as a request"
            );
        }
    }
}

/// Counts a request while it is being served, however that ends.
struct InFlight<'m>(&'m Metrics);

impl<'m> InFlight<'m> {
    fn new(metrics: &'m Metrics) -> Self {
        metrics.inflight_requests.inc();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.inflight_requests.dec();
    }
}

impl Gate {
    /// The path of a request: receive, verify, identify, filter, dispatch.
    async fn admit<'r>(
        &self,
        routes: &'r Routes,
        head: &'r Parts,
        body: &mut Incoming,
        began: Instant,
        connection: &ConnectionState,
        trail: &mut Trail<'r>,
    ) -> Result<Answer, Refusal> {
        // Receive.
        let Some(webhook) = routes.find(head.uri.path()) else {
            return Err(Rejection::NotFound.because("no webhook has this path"));
        };
        trail.webhook = Some(webhook);
        if head.method != Method::POST {
            return Err(Rejection::MethodNotAllowed.because("the method is not POST"));
        }
        let headers = Headers::find(&head.headers);
        check_framing(&headers, head.version, connection)?;
        let content_type = read_media_type(&headers)?;
        let (signature, signature_header) = read_signature(&headers)?;
        let until = began + self.limits.body_timeout;
        let Held { bytes, share } =
            body::read(body, self.limits.max_body, until, &self.limits.budget, connection).await?;
        trail.body_read = true;

        // Verify.
        let now = SystemTime::now();
        let Ok(Verified { body: verified, key }) = webhook.verifier.verify(bytes, &signature, now) else {
            return Err(
                Rejection::BadSignature.because("the signature does not match any of the secrets in force")
            );
        };
        webhook.metrics.secret_used(key, now);
        connection.proves_itself();
        trail.signed = true;

        // Identify.
        let (id_header, kind_header) = read_identity(&headers)?;
        let Ok(id) = DeliveryId::parse(id_header.as_bytes()) else {
            return Err(Rejection::BadHeader.because("Pulumi-Webhook-ID is malformed"));
        };
        trail.id = Some(id.as_str());
        let Ok(kind) = EventKind::parse(kind_header.as_bytes()) else {
            return Err(Rejection::BadHeader.because("Pulumi-Webhook-Kind is malformed"));
        };
        trail.kind = Some(kind.as_str());
        let trace = Trace::of(headers.traceparent, id.as_str());
        trail.trace = Some(trace);
        if trace.is_ours() {
            return Err(Rejection::LoopDetected.because(LOOP));
        }
        let delivery = Delivery::identify(&verified, id, kind)
            .map_err(|error| Refusal { rejection: Rejection::BadPayload, reason: Reason::Payload(error) })?;
        let event = delivery.event();
        webhook.metrics.event(Webhook::event_number(&delivery));
        trail.event = Some(event.map_or(kind.as_str(), |event| event.name));

        // Filter.
        match webhook.filter.judge(&delivery) {
            Verdict::Forward if webhook.destinations.iter().any(|to| to.wants(&delivery)) => {}
            Verdict::Forward => {
                trail.filtered = Some(("destination.events", saw(trail.event, "")));
                trail.reason = Some(Reason::Said("the event is not among any destination's `events`"));
                return Ok(Answer::done(Outcome::Filtered));
            }
            Verdict::Ignore(unwanted) => {
                trail.filtered = Some(match unwanted {
                    Unwanted::Misfit => ("events", saw(Some(kind.as_str()), "")),
                    Unwanted::Event => ("events", saw(trail.event, "")),
                    Unwanted::Environment => ("environments", saw(environment(&delivery), "no environment")),
                    Unwanted::Tag => ("tags", saw_tag(delivery.tag())),
                });
                trail.reason = Some(Reason::Said(unwanted.reason()));
                return Ok(Answer::done(Outcome::Filtered));
            }
            Verdict::Pong => return Ok(Answer::done(Outcome::Pong)),
            Verdict::KindMismatch(mismatch) => {
                return Err(Refusal {
                    rejection: Rejection::KindMismatch,
                    reason: Reason::Mismatch(mismatch),
                });
            }
            Verdict::WrongOrganization => {
                trail.filtered = Some(("organization", saw(delivery.organization(), "no organization")));
                return Err(
                    Rejection::WrongOrganization.because("the payload names another organization, or none")
                );
            }
        }
        if let Agreement::Differs(mismatch) = delivery.agreement {
            warn!(webhook = webhook.name, delivery.id = id.as_str(), event.kind = kind.as_str(),
                trace_id = trace.id(), %mismatch,
                "the payload does not fit its kind; forwarding it anyway");
        }

        // Dispatch.
        let parcel = Parcel {
            body: verified.clone(),
            content_type,
            id: id_header.clone(),
            kind: kind_header.clone(),
            signature: signature_header,
            event: event.map_or_else(|| kind_header.clone(), |event| HeaderValue::from_static(event.name)),
            kind_verified: delivery.agreement == Agreement::Proven,
            traceparent: trace.header(),
            received: now,
        };
        let dispatched = self
            .dispatch
            .dispatch(&webhook.name, &delivery, &webhook.destinations, parcel, share, self.lane)
            .await;
        if matches!(&dispatched, Dispatched::Tried(outcome) if !outcome.is_delivered()) {
            trail.destination = webhook.destinations.first().map(|destination| destination.name.as_str());
        }
        match dispatched {
            Dispatched::Tried(attempt::Outcome::Delivered(reply) | attempt::Outcome::Declined(reply)) => {
                trail.upstream_status = Some(reply.status);
                if trail.destination.is_some() {
                    trail.reason =
                        Some(Reason::Said("the destination answered with another status than 2xx"));
                }
                Ok(Answer::relay(reply))
            }
            Dispatched::Tried(attempt::Outcome::Failed(error)) => Err(Refusal {
                rejection: match error.kind {
                    Failure::Unreachable => Rejection::UpstreamUnreachable,
                    Failure::BadAnswer | Failure::Redirected(_) | Failure::Looped => {
                        Rejection::UpstreamBadAnswer
                    }
                    Failure::Timeout => Rejection::UpstreamTimeout,
                },
                reason: Reason::Upstream(error),
            }),
            Dispatched::Tried(attempt::Outcome::Unrendered(error)) => {
                Err(Refusal { rejection: Rejection::UpstreamBadAnswer, reason: Reason::Render(error) })
            }
            Dispatched::Queued => Ok(Answer::done(Outcome::Queued)),
            Dispatched::NotQueued(error) => {
                Err(Refusal { rejection: Rejection::QueueUnavailable, reason: Reason::Queue(error) })
            }
            Dispatched::Duplicate => {
                // Sent by another replica, or by this one before it was started again: the queue knows its own.
                let sent = match headers.traceparent.once().filter(|_| is_from_a_hookgate(head)) {
                    Some(given) => Box::pin(self.dispatch.has_sent(&webhook.name, id.as_str(), given)).await,
                    None => Ok(false),
                };
                match sent {
                    Ok(false) => Ok(Answer::done(Outcome::Duplicate)),
                    Ok(true) => Err(Rejection::LoopDetected.because(LOOP)),
                    Err(error) => {
                        Err(Refusal { rejection: Rejection::QueueUnavailable, reason: Reason::Queue(error) })
                    }
                }
            }
            Dispatched::Conflict => Err(Rejection::IdConflict
                .because("another body came under this ID within `dedupe.window`, or waits in the queue")),
        }
    }
}

/// The environment as `environments` has it.
fn environment(delivery: &Delivery<'_>) -> Option<String> {
    delivery.environment().map(|(project, name)| format!("{project}/{name}"))
}

/// What the log says of a request that hookgate sent itself.
const LOOP: &str =
    "hookgate sent this request itself: a destination is hookgate's own listener, or leads back to it";

/// Whether a hookgate says that it sent this: this one, or another one in front.
fn is_from_a_hookgate(head: &Parts) -> bool {
    head.headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"hookgate/"))
}

/// Refuses what hyper accepts but another program in the chain might read otherwise.
fn check_framing(
    headers: &Headers<'_>,
    version: Version,
    connection: &ConnectionState,
) -> Result<(), Refusal> {
    if connection.is_ambiguous() {
        return Err(Rejection::BadRequest.because("lengths or line ends that can be read in two ways"));
    }
    let chunked = match headers.transfer_encoding {
        Header::Absent => true,
        Header::Once(encoding) => {
            encoding.as_bytes().eq_ignore_ascii_case(b"chunked") && headers.content_length.is_absent()
        }
        Header::Repeated => false,
    };
    if !chunked {
        return Err(Rejection::BadRequest.because("a Transfer-Encoding other than one `chunked` alone"));
    }
    match headers.host {
        Header::Once(host) if is_host(host.as_bytes()) => Ok(()),
        Header::Once(_) => Err(Rejection::BadRequest.because("Host is not a host with an optional port")),
        Header::Absent if version == Version::HTTP_10 => Ok(()),
        Header::Absent | Header::Repeated => Err(Rejection::BadRequest.because("not exactly one Host")),
    }
}

/// `uri-host [ ":" port ]`, or empty (RFC 9112, 3.2).
fn is_host(value: &[u8]) -> bool {
    // What nearly all say: a name or an IPv4 address.
    let colon = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
    let (name, port) = value.split_at(colon);
    let usual = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if !name.is_empty() && name.iter().all(usual) && is_port(port) {
        return true;
    }
    let Ok(authority) = Authority::try_from(value) else { return value.is_empty() };
    let port = authority.as_str().strip_prefix(authority.host());
    !value.contains(&b'@') && port.is_some_and(|port| is_port(port.as_bytes()))
}

/// Nothing, or a colon and a port, which may be empty.
fn is_port(text: &[u8]) -> bool {
    let Some(digits) = text.strip_prefix(b":") else { return text.is_empty() };
    let port = digits.iter().try_fold(0_u16, |port, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        port.checked_mul(10)?.checked_add(digit.into())
    });
    port.is_some()
}

/// JSON in UTF-8, and not encoded: nothing is decoded before it is verified, and nothing after.
fn read_media_type(headers: &Headers<'_>) -> Result<MediaType, Refusal> {
    let refuse = |reason| Rejection::UnsupportedMediaType.because(reason);
    let Some(content_type) = headers.content_type.once() else {
        return Err(refuse("not exactly one Content-Type"));
    };
    let media_type = MediaType::parse(content_type.as_bytes()).map_err(|error| refuse(error.reason()))?;
    if !headers.content_encoding.is_absent() {
        return Err(refuse("a Content-Encoding"));
    }
    Ok(media_type)
}

/// The signature, and the header as it goes on: in lower case, as Pulumi writes it. The case of its digits is not
/// signed, and a service that compares texts would refuse the delivery for it.
fn read_signature(headers: &Headers<'_>) -> Result<(Signature, HeaderValue), Refusal> {
    let header = match headers.signature {
        Header::Once(header) => header,
        Header::Absent => return Err(Rejection::MissingSignature.because("no Pulumi-Webhook-Signature")),
        Header::Repeated => {
            return Err(Rejection::BadHeader.because("Pulumi-Webhook-Signature is given more than once"));
        }
    };
    match Signature::parse(header.as_bytes()) {
        Ok(signature) if header.as_bytes().iter().any(u8::is_ascii_uppercase) => {
            let lower = HeaderValue::from_bytes(&header.as_bytes().to_ascii_lowercase());
            Ok((signature, lower.expect("hex digits are a header value")))
        }
        Ok(signature) => Ok((signature, header.clone())),
        Err(_) => Err(Rejection::BadSignature.because("Pulumi-Webhook-Signature is not 64 hex digits")),
    }
}

/// ID and kind: both there, and neither given twice.
fn read_identity<'h>(headers: &Headers<'h>) -> Result<(&'h HeaderValue, &'h HeaderValue), Refusal> {
    match (headers.id, headers.kind) {
        (Header::Once(id), Header::Once(kind)) => Ok((id, kind)),
        (Header::Repeated, _) => {
            Err(Rejection::BadHeader.because("Pulumi-Webhook-ID is given more than once"))
        }
        (_, Header::Repeated) => {
            Err(Rejection::BadHeader.because("Pulumi-Webhook-Kind is given more than once"))
        }
        (Header::Absent, _) => Err(Rejection::MissingHeader.because("no Pulumi-Webhook-ID")),
        (_, Header::Absent) => Err(Rejection::MissingHeader.because("no Pulumi-Webhook-Kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_the_grammar_says() {
        for host in [
            "",
            "a.test",
            "a.test:80",
            "a-b.test:65535",
            "1.2.3.4:18080",
            "a_b:1",
            "a.test:080",
            "a.test:",
            "192.0.2.1",
            "[2001:db8::1]",
            "[::1]:8080",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for wrong in [
            "a@b", "a/b", "a b", "a, b", "a:b", "a:99999", "a:65536", "a:+80", "a:-1", "a:1:1", ":x",
            "http://a", "a?b", "a#b", "[::1", "a\"b",
        ] {
            assert!(!is_host(wrong.as_bytes()), "{wrong}");
        }
    }
}
