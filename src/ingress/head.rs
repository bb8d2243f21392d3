//! The headers of a request that decide anything, found in one pass over its head.

use hyper::{HeaderMap, header::HeaderValue};

use crate::webhook::headers;

/// A header by how often it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Header<'h> {
    /// Not at all.
    #[default]
    Absent,
    /// Once.
    Once(&'h HeaderValue),
    /// More than once.
    Repeated,
}

impl<'h> Header<'h> {
    fn add(&mut self, value: &'h HeaderValue) {
        *self = match self {
            Self::Absent => Self::Once(value),
            Self::Once(_) | Self::Repeated => Self::Repeated,
        };
    }

    pub(super) const fn once(self) -> Option<&'h HeaderValue> {
        match self {
            Self::Once(value) => Some(value),
            Self::Absent | Self::Repeated => None,
        }
    }

    pub(super) const fn is_absent(self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// The headers that decide anything.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Headers<'h> {
    pub(super) host: Header<'h>,
    pub(super) content_length: Header<'h>,
    pub(super) transfer_encoding: Header<'h>,
    pub(super) content_type: Header<'h>,
    pub(super) content_encoding: Header<'h>,
    pub(super) signature: Header<'h>,
    pub(super) id: Header<'h>,
    pub(super) kind: Header<'h>,
    pub(super) traceparent: Header<'h>,
}

impl<'h> Headers<'h> {
    pub(super) fn find(map: &'h HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, value) in map {
            let header = match name.as_str() {
                "host" => &mut found.host,
                "content-length" => &mut found.content_length,
                "transfer-encoding" => &mut found.transfer_encoding,
                "content-type" => &mut found.content_type,
                "content-encoding" => &mut found.content_encoding,
                headers::SIGNATURE => &mut found.signature,
                headers::ID => &mut found.id,
                headers::KIND => &mut found.kind,
                "traceparent" => &mut found.traceparent,
                _ => continue,
            };
            header.add(value);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_counted() {
        let mut map = HeaderMap::new();
        assert!(Headers::find(&map).id.is_absent());
        map.append(headers::ID, HeaderValue::from_static("a"));
        map.append(headers::KIND, HeaderValue::from_static("b"));
        map.append(headers::KIND, HeaderValue::from_static("b"));
        map.append("x-other", HeaderValue::from_static("c"));
        let found = Headers::find(&map);
        assert_eq!(found.id.once(), Some(&HeaderValue::from_static("a")));
        assert_eq!(found.kind, Header::Repeated);
        assert!(found.signature.is_absent());
    }
}
