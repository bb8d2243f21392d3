//! One try to deliver: render, send, classify. Direct and queued deliveries share it.

use std::time::{Duration, SystemTime};

use hyper::header::HeaderValue;
use tokio::time::Instant;

use super::{
    destination::Destination,
    format::{Format, Meaning, RenderError},
    parcel::Parcel,
};
use crate::upstream::{Reply, SendError};

/// What became of one try.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The upstream answered 2xx.
    Delivered(Reply),
    /// The upstream answered something else.
    Declined(Reply),
    /// There is no usable answer.
    Failed(SendError),
    /// Nothing was sent: the destination's format cannot show the delivery.
    Unrendered(RenderError),
}

/// Whether another try could end better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prospect {
    /// It is done.
    Done,
    /// It may, and the upstream may have said when.
    Better(Option<Duration>),
    /// It would end the same.
    Same,
}

impl Outcome {
    /// Whether the upstream accepted it.
    #[must_use]
    pub const fn is_delivered(&self) -> bool {
        matches!(self, Self::Delivered(_))
    }

    /// The upstream's status, where it gave one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Delivered(reply) | Self::Declined(reply) => Some(reply.status.as_u16()),
            Self::Failed(error) => error.kind.status().map(|status| status.as_u16()),
            Self::Unrendered(_) => None,
        }
    }

    /// Whether another try in this format could end better. `now` is what a date in `Retry-After` is compared with.
    #[must_use]
    pub fn prospect(&self, format: Format, now: SystemTime) -> Prospect {
        match self {
            Self::Delivered(_) => Prospect::Done,
            Self::Declined(reply) if format.judge(reply.status.as_u16()) == Meaning::Later => {
                Prospect::Better(reply.retry_after.as_ref().and_then(|value| read_retry_after(value, now)))
            }
            Self::Failed(error) if error.kind.is_transient() => Prospect::Better(None),
            Self::Declined(_) | Self::Failed(_) | Self::Unrendered(_) => Prospect::Same,
        }
    }
}

/// Tries once, as attempt number `number` (from 1), beginning at `now`. With when it ended.
pub async fn attempt(
    destination: &Destination,
    parcel: &Parcel,
    number: u32,
    lane: usize,
    now: Instant,
) -> (Outcome, Instant) {
    let request = match destination.render(parcel, number) {
        Ok(request) => request,
        Err(error) => return (Outcome::Unrendered(error), Instant::now()),
    };
    let outcome = match destination.upstream.send(lane, &request, now).await {
        Ok(reply) if destination.format.judge(reply.status.as_u16()) == Meaning::Delivered => {
            Outcome::Delivered(reply)
        }
        Ok(reply) => Outcome::Declined(reply),
        Err(error) => Outcome::Failed(error.of(&destination.name)),
    };
    (outcome, Instant::now())
}

/// `Retry-After`: seconds, or a date in any of the forms of RFC 9110. What is neither says nothing.
fn read_retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are longer than anybody waits.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use bytes::Bytes;
    use hyper::StatusCode;
    use proptest::prelude::*;

    use super::*;

    fn declined(status: u16, retry_after: Option<&'static str>) -> Outcome {
        Outcome::Declined(Reply {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: None,
            retry_after: retry_after.map(HeaderValue::from_static),
            body: Bytes::new(),
        })
    }

    #[test]
    fn what_speaks_of_the_moment_is_tried_again() {
        let prospect = |outcome: Outcome| outcome.prospect(Format::Raw, UNIX_EPOCH);
        let five = Some(Duration::from_secs(5));
        assert_eq!(prospect(declined(503, Some("5"))), Prospect::Better(five));
        assert_eq!(prospect(declined(503, None)), Prospect::Better(None));
        assert_eq!(prospect(declined(404, Some("5"))), Prospect::Same);
        assert_eq!(prospect(Outcome::Unrendered(RenderError("no name".into()))), Prospect::Same);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(86_400)),
            ("Thu, 29 Feb 1996 00:00:00 GMT", Some(41_440_223)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 UTC", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 GMT x", None),
        ] {
            let found = read_retry_after(&HeaderValue::from_static(value), now);
            assert_eq!(found, seconds.map(Duration::from_secs), "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_retry_after_is_too_strange(
            text in any::<String>(),
            near in "[A-Z][a-z]{2}, [0-9]{2} (Jan|Feb|Dec) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT",
        ) {
            for text in [text, near] {
                if let Ok(value) = HeaderValue::from_str(&text) {
                    read_retry_after(&value, UNIX_EPOCH);
                }
            }
        }
    }
}
