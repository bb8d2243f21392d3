//! The forms in which a delivery is forwarded, one file a format: what is sent, and what a status of the answer means.
//!
//! A format is pure. It makes the content type, headers and body of a request from what was verified, or says why it cannot;
//! how these become bytes on a connection is written here, once for all of them.

pub mod raw;

use std::borrow::Cow;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};

use super::parcel::Parcel;
use crate::{upstream::OutboundRequest, webhook::headers};

/// The form in which a delivery is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// As it came: the verified bytes, unchanged.
    #[default]
    Raw,
}

/// A request as a format makes it, without what only the destination knows.
#[derive(Debug)]
pub struct Rendered<'p> {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Whether the delivery's own headers go with it: ID, kind, signature, trace and `Hookgate-*`. They are for services of
    /// the operator's, and nobody else's.
    pub carries_delivery: bool,
    /// The format's own headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Cow<'p, Bytes>,
}

/// A format cannot show a delivery. It could not the next time either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be rendered: {0}")]
pub struct RenderError(pub String);

/// What an answer's status means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The delivery was accepted.
    Delivered,
    /// It was not, and another try may end better.
    Later,
    /// It was not, and never will be.
    Never,
}

impl Format {
    /// The request for a delivery. A format that shows its facts reads them by [`Parcel::facts`].
    ///
    /// # Errors
    ///
    /// [`RenderError`] if this format cannot show it.
    pub fn render(self, parcel: &Parcel) -> Result<Rendered<'_>, RenderError> {
        match self {
            Self::Raw => Ok(raw::render(parcel)),
        }
    }

    /// What this status of an answer means.
    #[must_use]
    pub const fn judge(self, status: u16) -> Meaning {
        match self {
            Self::Raw => raw::judge(status),
        }
    }
}

/// A body up to this length is copied behind its head, in bytes.
const SHORT: usize = 8 << 10;

/// The request on the wire. `first` is what of the head is the same in every request of the destination.
#[must_use]
pub fn write(first: &[u8], rendered: Rendered<'_>, parcel: &Parcel, attempt: u32) -> OutboundRequest {
    let Rendered { content_type, carries_delivery, headers, body } = rendered;
    let length = body.len();
    let (behind_head, body) =
        if length <= SHORT { (body, Bytes::new()) } else { (Cow::Owned(Bytes::new()), body.into_owned()) };
    let (mut number, mut digits) = (itoa::Buffer::new(), itoa::Buffer::new());
    let always =
        [("content-type", content_type.as_bytes()), ("content-length", digits.format(length).as_bytes())];
    let of_delivery = [
        (headers::ID, parcel.id.as_bytes()),
        (headers::KIND, parcel.kind.as_bytes()),
        (headers::SIGNATURE, parcel.signature.as_bytes()),
        ("hookgate-event", parcel.event.as_bytes()),
        ("traceparent", parcel.traceparent.as_bytes()),
        ("hookgate-kind-verified", if parcel.kind_verified { b"true" } else { b"false" }),
        ("hookgate-attempt", number.format(attempt).as_bytes()),
    ];
    let of_delivery = if carries_delivery { &of_delivery[..] } else { &[] };
    let own = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let all = always.into_iter().chain(of_delivery.iter().copied()).chain(own);
    // Exactly the room that it takes: allocators have small pieces at hand.
    let room = all.clone().map(|(name, value)| name.len() + value.len() + ": \r\n".len()).sum::<usize>();
    let mut head = Vec::with_capacity(first.len() + room + "\r\n".len() + behind_head.len());
    head.extend_from_slice(first);
    for (name, value) in all {
        put(&mut head, name, value);
    }
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(&behind_head);
    OutboundRequest { head, body }
}

/// Writes a header. Its value is one, so it ends no line.
pub(super) fn put(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::{
        super::parcel::{MediaType, VerifiedBody},
        *,
    };

    fn parcel(body: Vec<u8>) -> Parcel {
        let value = HeaderValue::from_static;
        Parcel {
            body: VerifiedBody::stored(body.into()),
            content_type: MediaType::Json,
            id: value("the-id"),
            kind: value("ping"),
            signature: value("00ff"),
            event: value("ping"),
            kind_verified: true,
            traceparent: value("00-1-1-01"),
            received: SystemTime::UNIX_EPOCH,
        }
    }

    fn text(request: &OutboundRequest) -> String {
        String::from_utf8([&request.head[..], &request.body].concat()).unwrap()
    }

    #[test]
    fn the_head_is_one_piece_of_exactly_the_room_that_it_takes() {
        for length in [0, 1, SHORT, SHORT + 1] {
            let parcel = parcel(vec![b'x'; length]);
            let request = write(b"POST / HTTP/1.1\r\n", raw::render(&parcel), &parcel, 3);
            assert_eq!(request.head.capacity(), request.head.len(), "{length}");
            assert_eq!(request.body.is_empty(), length <= SHORT, "{length}");
            let text = text(&request);
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert_eq!(body.len(), length);
            assert!(head.contains(&format!("\r\ncontent-length: {length}\r\n")), "{head}");
            assert!(head.contains("\r\nhookgate-attempt: 3"), "{head}");
        }
    }

    #[test]
    fn only_who_is_told_of_the_delivery_gets_its_headers() {
        let parcel = parcel(b"{}".to_vec());
        let rendered = Rendered {
            content_type: "text/plain",
            carries_delivery: false,
            headers: vec![(HeaderName::from_static("accept"), HeaderValue::from_static("a/b"))],
            body: Cow::Owned(Bytes::from_static(b"hello")),
        };
        assert_eq!(
            text(&write(b"POST / HTTP/1.1\r\n", rendered, &parcel, 1)),
            "POST / HTTP/1.1\r\ncontent-type: text/plain\r\ncontent-length: 5\r\naccept: a/b\r\n\r\nhello"
        );
    }
}
