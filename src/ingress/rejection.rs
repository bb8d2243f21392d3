//! What a request gets for an answer: every outcome with its status, its label and its outward text.
//!
//! Pulumi stores answers and shows them to people, so nothing internal is in them: no digest, no address, no
//! detail of what was wrong inside. Details go to the log, see [`Refusal`].

use std::{borrow::Cow, sync::LazyLock};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};

use crate::{
    delivery::{format::RenderError, queue::QueueError},
    upstream::{Reply, SendError},
    webhook::payload::{Mismatch, PayloadError},
};

/// The header that names the outcome of a request on every answer of ours.
pub const OUTCOME: HeaderName = HeaderName::from_static("hookgate-outcome");

/// Seconds after which a sender may try again when we could not serve it.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

listed! {
    /// How a request ended.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Outcome {
        /// The upstream answered.
        Forwarded,
        /// It is in the queue.
        Queued,
        /// Genuine, but not wanted.
        Filtered,
        /// Delivered before.
        Duplicate,
        /// A ping, answered here.
        Pong;
        /// Refused, or not forwarded.
        Refused(Rejection),
    }
}

impl Outcome {
    /// The label in header, log and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Queued => "queued",
            Self::Filtered => "filtered",
            Self::Duplicate => "duplicate",
            Self::Pong => "pong",
            Self::Refused(rejection) => rejection.label(),
        }
    }
}

listed! {
    /// Why a request is refused.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Rejection {
        /// The path is not configured.
        NotFound,
        /// Not `POST`.
        MethodNotAllowed,
        /// Framing that can be read in two ways, or a body that breaks off.
        BadRequest,
        /// Not JSON, or encoded.
        UnsupportedMediaType,
        /// No signature.
        MissingSignature,
        /// A malformed or wrong signature.
        BadSignature,
        /// The body is longer than allowed.
        TooLarge,
        /// Too many bytes are being held.
        Overloaded,
        /// The body was not complete in time.
        Timeout,
        /// ID or kind is absent.
        MissingHeader,
        /// ID or kind is malformed, or one of the three headers is repeated.
        BadHeader,
        /// Not one JSON object in UTF-8.
        BadPayload,
        /// The payload does not fit the kind.
        KindMismatch,
        /// Another organization than the pinned one.
        WrongOrganization,
        /// A recent delivery had this ID and another body.
        IdConflict,
        /// hookgate sent it itself.
        LoopDetected,
        /// No connection to the upstream.
        UpstreamUnreachable,
        /// The upstream gave no usable answer.
        UpstreamBadAnswer,
        /// The upstream did not answer in time.
        UpstreamTimeout,
        /// The queue did not take it.
        QueueUnavailable,
        /// The service is ending, and this request was not done by then.
        Draining,
    }
}

impl Rejection {
    /// Status, label and outward sentence, for each.
    const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        /// One text for both: the sender knows whether it sent a signature, and nobody needs to know what was wrong with it.
        const UNSIGNED: &str = "The request does not carry a valid signature.";
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "No webhook is received at this path."),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Webhooks are received with POST.")
            }
            Self::BadRequest => (StatusCode::BAD_REQUEST, "bad_request", "The request is malformed."),
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body must be application/json without Content-Encoding.",
            ),
            Self::MissingSignature => (StatusCode::UNAUTHORIZED, "missing_signature", UNSIGNED),
            Self::BadSignature => (StatusCode::UNAUTHORIZED, "bad_signature", UNSIGNED),
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The body is longer than this service accepts.")
            }
            Self::Overloaded => {
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "The service is busy. Try again later.")
            }
            Self::Timeout => (StatusCode::REQUEST_TIMEOUT, "timeout", "The body did not arrive in time."),
            Self::MissingHeader => (
                StatusCode::BAD_REQUEST,
                "missing_header",
                "Pulumi-Webhook-ID and Pulumi-Webhook-Kind must be present.",
            ),
            Self::BadHeader => (
                StatusCode::BAD_REQUEST,
                "bad_header",
                "A Pulumi-Webhook header is malformed or given more than once.",
            ),
            Self::BadPayload => {
                (StatusCode::UNPROCESSABLE_ENTITY, "bad_payload", "The body is not one JSON object in UTF-8.")
            }
            Self::KindMismatch => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "kind_mismatch",
                "The body is not that of the kind in Pulumi-Webhook-Kind.",
            ),
            Self::WrongOrganization => (
                StatusCode::FORBIDDEN,
                "wrong_organization",
                "Deliveries of this organization are not received here.",
            ),
            Self::IdConflict => {
                (StatusCode::CONFLICT, "id_conflict", "A recent delivery had this ID and another body.")
            }
            Self::LoopDetected => {
                (StatusCode::LOOP_DETECTED, "loop_detected", "This service sent the request to itself.")
            }
            Self::UpstreamUnreachable => {
                (StatusCode::BAD_GATEWAY, "upstream_unreachable", "The receiving service cannot be reached.")
            }
            Self::UpstreamBadAnswer => (
                StatusCode::BAD_GATEWAY,
                "upstream_bad_answer",
                "The receiving service gave no usable answer.",
            ),
            Self::UpstreamTimeout => (
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_timeout",
                "The receiving service did not answer in time.",
            ),
            Self::QueueUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "queue_unavailable",
                "The delivery cannot be stored now. Try again later.",
            ),
            Self::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "The service is shutting down. Try again later.",
            ),
        }
    }

    /// The label in header, body, log and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        self.parts().1
    }

    /// Whether nothing but the signature is wrong with what has been looked at so far.
    #[must_use]
    pub const fn is_of_the_signature(self) -> bool {
        matches!(self, Self::MissingSignature | Self::BadSignature)
    }

    /// `application/problem+json` (RFC 9457).
    fn problem(self) -> Bytes {
        /// Written once: who is flooded with forgeries has better things to do.
        static PROBLEMS: LazyLock<[Bytes; Rejection::ALL.len()]> = LazyLock::new(|| {
            Rejection::ALL.map(|rejection| {
                let (status, reason, detail) = rejection.parts();
                let title = status.canonical_reason().unwrap_or_default();
                let code = status.as_u16();
                Bytes::from(format!(
                    r#"{{"type":"about:blank","title":"{title}","status":{code},"reason":"{reason}","detail":"{detail}"}}"#
                ))
            })
        });
        PROBLEMS.get(self.index()).cloned().unwrap_or_default()
    }

    /// The answer.
    #[must_use]
    pub fn answer(self) -> Answer {
        Answer {
            outcome: Outcome::Refused(self),
            status: self.parts().0,
            content_type: Some(HeaderValue::from_static("application/problem+json")),
            retry_after: matches!(self, Self::Overloaded | Self::QueueUnavailable | Self::Draining)
                .then_some(RETRY_SECONDS),
            close: false,
            body: self.problem(),
        }
    }
}

/// A refusal with what the log is told about it and the sender is not.
#[derive(Debug)]
pub struct Refusal {
    /// What the sender sees.
    pub rejection: Rejection,
    /// What the log says.
    pub reason: Reason,
}

/// What was wrong, for the log. Written out only when a line is.
#[derive(Debug)]
pub enum Reason {
    /// In fixed words.
    Said(&'static str),
    /// The payload cannot be read.
    Payload(PayloadError),
    /// The payload does not fit its kind.
    Mismatch(Mismatch),
    /// The upstream gave no answer.
    Upstream(SendError),
    /// The destination's format cannot show it.
    Render(RenderError),
    /// The queue did not take it.
    Queue(QueueError),
}

impl Reason {
    /// In words.
    #[must_use]
    pub fn text(&self) -> Cow<'static, str> {
        match self {
            Self::Said(text) => (*text).into(),
            Self::Payload(error) => error.to_string().into(),
            Self::Mismatch(mismatch) => mismatch.to_string().into(),
            Self::Upstream(error) => error.to_string().into(),
            Self::Render(error) => error.to_string().into(),
            Self::Queue(error) => error.to_string().into(),
        }
    }
}

impl Rejection {
    /// Refuses, and says in fixed words why.
    #[must_use]
    pub const fn because(self, reason: &'static str) -> Refusal {
        Refusal { rejection: self, reason: Reason::Said(reason) }
    }
}

/// What goes back to the sender.
#[derive(Debug)]
pub struct Answer {
    /// How the request ended.
    pub outcome: Outcome,
    /// The status.
    pub status: StatusCode,
    /// Tells the sender that the connection ends with this answer.
    pub close: bool,
    content_type: Option<HeaderValue>,
    retry_after: Option<HeaderValue>,
    body: Bytes,
}

impl Answer {
    /// A 2xx of ours, for what is done without the upstream, or will be.
    #[must_use]
    pub fn done(outcome: Outcome) -> Self {
        let body = match outcome {
            Outcome::Queued => r#"{"outcome":"queued"}"#,
            Outcome::Filtered => r#"{"outcome":"filtered"}"#,
            Outcome::Duplicate => r#"{"outcome":"duplicate"}"#,
            Outcome::Pong => r#"{"outcome":"pong"}"#,
            Outcome::Forwarded | Outcome::Refused(_) => "",
        };
        Self {
            outcome,
            status: if outcome == Outcome::Queued { StatusCode::ACCEPTED } else { StatusCode::OK },
            close: false,
            content_type: Some(HeaderValue::from_static("application/json")),
            retry_after: None,
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    /// The upstream's answer: status, `Content-Type`, `Retry-After` and body.
    #[must_use]
    pub fn relay(reply: Reply) -> Self {
        let Reply { status, content_type, retry_after, body } = reply;
        Self { outcome: Outcome::Forwarded, status, close: false, content_type, retry_after, body }
    }

    /// The answer as it is sent. `headers` are those of the request: their room is used again, and hyper keeps it for
    /// the next request.
    #[must_use]
    pub fn into_response(self, mut headers: HeaderMap) -> Response<Full<Bytes>> {
        headers.clear();
        if let Some(value) = self.content_type {
            headers.insert(CONTENT_TYPE, value);
        }
        if let Some(value) = self.retry_after {
            headers.insert(RETRY_AFTER, value);
        }
        if self.outcome == Outcome::Refused(Rejection::MethodNotAllowed) {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        headers.insert(OUTCOME, HeaderValue::from_static(self.outcome.label()));
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_distinct_and_indices_are_places() {
        let all: Vec<_> = Outcome::all().collect();
        assert_eq!(all.len(), Outcome::COUNT);
        for (index, outcome) in all.iter().enumerate() {
            assert_eq!(outcome.index(), index);
            assert_eq!(all.iter().filter(|other| other.label() == outcome.label()).count(), 1);
        }
    }

    #[test]
    fn the_outward_text_does_not_tell_a_missing_signature_from_a_wrong_one() {
        assert_eq!(Rejection::MissingSignature.parts().2, Rejection::BadSignature.parts().2);
    }
}
