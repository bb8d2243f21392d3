//! Input that could not be read as a request: what it looked like, and what to do about it.
//!
//! Its sender gets a bare 400 or 431, or only a closed connection. Without a word on this side, a load balancer that speaks
//! the PROXY protocol would look like a service that nobody calls.

use std::borrow::Cow;

listed! {
    /// What it looked like.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Unreadable {
        /// A TLS handshake that failed, or TLS where plain HTTP is spoken.
        Tls,
        /// The PROXY protocol.
        ProxyProtocol,
        /// HTTP/2 from the first byte on.
        Http2,
        /// A head longer than `max_header`.
        TooLarge,
        /// More than `MAX_HEADERS`.
        TooManyHeaders,
        /// Something else that is not HTTP/1.
        Syntax,
        /// A head, or a handshake, that was not complete in time.
        Timeout,
    }
}

/// How many headers a request may have: hyper's own limit.
pub(super) const MAX_HEADERS: u32 = 100;

impl Unreadable {
    /// The label in metrics and log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::ProxyProtocol => "proxy_protocol",
            Self::Http2 => "http2",
            Self::TooLarge => "too_large",
            Self::TooManyHeaders => "too_many_headers",
            Self::Syntax => "syntax",
            Self::Timeout => "timeout",
        }
    }

    /// What a head was that hyper refused to read.
    pub(super) fn of_head(beginning: &Beginning, too_large: bool, headers: u32) -> Self {
        let bytes = beginning.bytes();
        if bytes.starts_with(b"\x16\x03") {
            Self::Tls
        } else if bytes.starts_with(b"PROXY ") || bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
            Self::ProxyProtocol
        } else if bytes.starts_with(b"PRI * HTTP/2") {
            Self::Http2
        } else if headers > MAX_HEADERS {
            Self::TooManyHeaders
        } else if too_large {
            Self::TooLarge
        } else {
            Self::Syntax
        }
    }

    /// What it was and what to do about it, for a head.
    pub(super) fn about_head(self, beginning: &Beginning) -> Cow<'static, str> {
        match self {
            Self::Tls => {
                "TLS, but this listener speaks plain HTTP: let the sender use http://, or set `tls` under [server]".into()
            }
            Self::ProxyProtocol => {
                "the PROXY protocol, which hookgate does not read: switch it off at the load balancer".into()
            }
            Self::Http2 => {
                "HTTP/2, but this listener speaks HTTP/1.1: let the proxy in front use HTTP/1.1 towards hookgate".into()
            }
            Self::TooLarge => "a head longer than `max_header` under [server]".into(),
            Self::TooManyHeaders => format!("more than {MAX_HEADERS} headers").into(),
            Self::Syntax => format!("not HTTP/1.1: it begins with \"{}\"", beginning.bytes().escape_ascii()).into(),
            Self::Timeout => "a head that was not complete within `header_timeout`".into(),
        }
    }
}

/// The first bytes of a connection.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    bytes: [u8; 16],
    length: usize,
}

impl Beginning {
    /// Keeps what fits of the first bytes.
    pub(super) fn keep(&mut self, first: &[u8]) {
        self.length = first.len().min(self.bytes.len());
        for (place, byte) in self.bytes.iter_mut().zip(first) {
            *place = *byte;
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_told_by_its_first_bytes() {
        for (first, headers, is) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], 0, Unreadable::Tls),
            (b"PROXY TCP4 192.0.2.1", 0, Unreadable::ProxyProtocol),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", 0, Unreadable::ProxyProtocol),
            (b"PRI * HTTP/2.0\r\n\r\nSM", 0, Unreadable::Http2),
            (b"POST / HTTP/1.1\r\n", 101, Unreadable::TooManyHeaders),
            (b"POST / HTTP/1.1\r\n", 100, Unreadable::Syntax),
            (b"", 0, Unreadable::Syntax),
        ] {
            let mut beginning = Beginning::default();
            beginning.keep(first);
            assert_eq!(Unreadable::of_head(&beginning, false, headers), is, "{first:?}");
        }
    }

    #[test]
    fn what_is_shown_of_it_is_short_and_escaped() {
        let mut beginning = Beginning::default();
        beginning.keep(b"\x1b[31m\xff\"\n and so on and on");
        let text = Unreadable::Syntax.about_head(&beginning);
        assert_eq!(text, r#"not HTTP/1.1: it begins with "\x1b[31m\xff\"\n and so ""#);
    }

    #[test]
    fn every_one_has_a_label_of_its_own() {
        for one in Unreadable::ALL {
            assert_eq!(Unreadable::ALL.iter().filter(|other| other.label() == one.label()).count(), 1);
        }
    }
}
