//! Watches the raw bytes of a connection for heads whose framing could be read in two ways.
//!
//! hyper resolves such heads as RFC 9112 allows (`Transfer-Encoding` overrides `Content-Length`, equal lengths
//! count once, a bare LF ends a line) and hides from the service that it did. Another program in the chain may
//! resolve them otherwise, which is what request smuggling lives on, so here they are found and then refused.
//!
//! The watcher only looks. It follows heads and announced bodies, so that a body that looks like a head is not
//! taken for one; behind a `Transfer-Encoding` it stops, and the server closes the connection after that request.

/// Follows the bytes that a peer sends on one connection.
#[derive(Debug, Default)]
pub struct Framing {
    place: Place,
    head: Head,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
    /// Heads that have ended.
    ended: u64,
    /// The first head that can be read in two ways, counted from 1.
    ambiguous: Option<u64>,
    /// The most header lines that a head had so far.
    headers: u32,
}

#[derive(Debug, Default, Clone, Copy)]
enum Place {
    /// In a head, or before one.
    #[default]
    Head,
    /// In a body that has so many bytes left.
    Body(u64),
    /// Behind a head with `Transfer-Encoding`: where the next head begins is not known.
    Unknown,
}

/// What the head said so far.
#[derive(Debug, Default, Clone, Copy)]
struct Head {
    begun: bool,
    headers: u32,
    length: Option<u64>,
    encodings: u8,
}

/// How much of a line is looked at: enough for the two names and a length. A line that is longer may have lost digits
/// of its length, which makes the head ambiguous.
const KEPT: usize = 96;

impl Framing {
    /// Takes the bytes that came.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.place {
                Place::Unknown => return,
                Place::Body(left) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = bytes.get(here..).unwrap_or_default();
                    let left = left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX));
                    self.place = if left == 0 { Place::Head } else { Place::Body(left) };
                }
                Place::Head => {
                    let Some(end) = memchr::memchr(b'\n', bytes) else {
                        self.keep(bytes);
                        return;
                    };
                    let (line, rest) = bytes.split_at(end);
                    bytes = rest.get(1..).unwrap_or_default();
                    if self.rest.is_empty() && line.len() < KEPT {
                        self.line(line);
                    } else {
                        // Long lines are shortened wherever the bytes were cut, so that all cuts read alike.
                        self.keep(line);
                        let mut whole = std::mem::take(&mut self.rest);
                        self.line(&whole);
                        whole.clear();
                        self.rest = whole;
                    }
                }
            }
        }
    }

    /// The first head that can be read in two ways, counted from 1. Nothing behind it can be trusted; what came
    /// before it can.
    #[must_use]
    pub const fn ambiguous_from(&self) -> Option<u64> {
        self.ambiguous
    }

    /// The requests that have come so far, if not a byte has come behind the last one.
    pub(crate) const fn whole(&self) -> Option<u64> {
        match self.place {
            Place::Head if !self.head.begun && self.rest.is_empty() => Some(self.ended),
            _ => None,
        }
    }

    /// The most header lines that a head had so far, the one that has not ended included.
    pub(crate) const fn most_headers(&self) -> u32 {
        self.headers
    }

    /// Whether a head has begun and not ended.
    pub(crate) const fn is_within_head(&self) -> bool {
        matches!(self.place, Place::Head) && (self.head.begun || !self.rest.is_empty())
    }

    fn doubt(&mut self, ambiguous: bool) {
        if ambiguous && self.ambiguous.is_none() {
            self.ambiguous = Some(self.ended.saturating_add(1));
        }
    }

    /// Keeps the beginning of a line, and its last byte, which tells whether a CR ended it.
    fn keep(&mut self, part: &[u8]) {
        let room = KEPT.saturating_sub(self.rest.len());
        self.rest.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
        if part.len() > room
            && let (Some(kept), Some(last)) = (self.rest.last_mut(), part.last())
        {
            *kept = *last;
        }
    }

    /// A line without its LF.
    fn line(&mut self, line: &[u8]) {
        let Some(line) = line.strip_suffix(b"\r") else {
            self.doubt(true);
            return self.header(line);
        };
        self.header(line);
    }

    fn header(&mut self, line: &[u8]) {
        if line.is_empty() {
            // Empty lines before a request are allowed and mean nothing (RFC 9112, 2.2).
            if self.head.begun {
                self.end();
            }
        } else if !self.head.begun {
            self.head.begun = true;
            return;
        }
        self.head.headers = self.head.headers.saturating_add(1);
        self.headers = self.headers.max(self.head.headers);
        if let Some(value) = value_of(line, b"content-length") {
            let shortened = line.len() + 1 >= KEPT;
            let length = str::from_utf8(value).ok().and_then(|digits| digits.trim_ascii().parse().ok());
            let length = length.filter(|_| !shortened);
            self.doubt(self.head.length.is_some() || length.is_none());
            self.head.length = length.or(Some(0));
        } else if value_of(line, b"transfer-encoding").is_some() {
            self.head.encodings = self.head.encodings.saturating_add(1);
        }
    }

    fn end(&mut self) {
        let Head { length, encodings, .. } = std::mem::take(&mut self.head);
        self.doubt(encodings > 1 || (encodings > 0 && length.is_some()));
        self.ended = self.ended.saturating_add(1);
        self.place = match length {
            _ if encodings > 0 => Place::Unknown,
            Some(length) if length > 0 => Place::Body(length),
            _ => Place::Head,
        };
    }
}

fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let value = rest.trim_ascii_start().strip_prefix(b":")?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ambiguous_from(bytes: &[u8]) -> Option<u64> {
        let mut framing = Framing::default();
        framing.feed(bytes);
        framing.ambiguous_from()
    }

    fn ambiguous(bytes: &[u8]) -> bool {
        ambiguous_from(bytes).is_some()
    }

    const PLAIN: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";

    #[test]
    fn plain_requests_are_clear_also_one_after_another() {
        assert!(!ambiguous(PLAIN.as_bytes()));
        assert!(!ambiguous(format!("{PLAIN}\r\n{PLAIN}{PLAIN}").as_bytes()));
        assert!(!ambiguous(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"));
        assert!(!ambiguous(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_found_also_in_a_later_request() {
        for head in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x3\r\n",
            "Content-Length : 3\r\nTransfer-Encoding\t: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Host: h\nContent-Length: 3\r\n",
        ] {
            let request = format!("POST / HTTP/1.1\r\n{head}\r\n");
            assert_eq!(ambiguous_from(request.as_bytes()), Some(1), "{head}");
            assert_eq!(ambiguous_from(format!("{PLAIN}{request}").as_bytes()), Some(2), "{head}");
            assert_eq!(ambiguous_from(format!("{PLAIN}\r\n{PLAIN}{request}").as_bytes()), Some(3), "{head}");
        }
        assert!(ambiguous(b"POST / HTTP/1.1\nHost: h\r\n\r\n"));
    }

    #[test]
    fn a_length_that_is_shortened_is_ambiguous_however_it_is_cut() {
        for padded in [format!("{:0>120}", 43), format!("{:>200}", 3), format!("3{}", " ".repeat(90))] {
            let request = format!("POST / HTTP/1.1\r\nContent-Length: {padded}\r\n\r\n");
            for size in [1, 50, 95, 96, 97, 1000] {
                let mut framing = Framing::default();
                request.as_bytes().chunks(size).for_each(|piece| framing.feed(piece));
                assert_eq!(framing.ambiguous_from(), Some(1), "{padded} in pieces of {size}");
            }
        }
        let longest = format!("POST / HTTP/1.1\r\nContent-Length: {:0>77}\r\n\r\nabc{PLAIN}", 3);
        assert!(!ambiguous(longest.as_bytes()));
    }

    #[test]
    fn the_beginning_of_a_head_is_told_from_its_end() {
        let within = |bytes: &[u8]| {
            let mut framing = Framing::default();
            framing.feed(bytes);
            framing.is_within_head()
        };
        assert!(!within(b"") && !within(PLAIN.as_bytes()));
        assert!(
            within(b"P") && within(b"POST / HTTP/1.1\r\n") && within(b"POST / HTTP/1.1\r\nHost: h\r\n\r")
        );
        assert!(within(format!("{PLAIN}P").as_bytes()));
        assert!(!within(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na"));
    }

    #[test]
    fn whole_requests_are_counted_while_nothing_is_behind_them() {
        let whole = |bytes: &[u8]| {
            let mut framing = Framing::default();
            framing.feed(bytes);
            framing.whole()
        };
        assert_eq!((whole(b""), whole(PLAIN.as_bytes())), (Some(0), Some(1)));
        assert_eq!(whole(format!("{PLAIN}{PLAIN}").as_bytes()), Some(2));
        for part in ["P", "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", "POST / HTTP/1.1\r\n\r"] {
            assert_eq!(
                (whole(part.as_bytes()), whole(format!("{PLAIN}{part}").as_bytes())),
                (None, None),
                "{part}"
            );
        }
        assert_eq!(whole(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), None);
    }

    #[test]
    fn a_body_is_not_read_as_a_head() {
        let body = "Content-Length: 3\nTransfer-Encoding: chunked\n\n";
        let request = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert!(!ambiguous(request.as_bytes()));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_does_not_matter(
            which in 0_usize..4,
            cuts in proptest::collection::vec(1_usize..40, 1..40),
        ) {
            let requests = [
                PLAIN.to_owned(),
                format!("{PLAIN}POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n"),
                format!("POST / HTTP/1.1\r\nX: {}\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", "y".repeat(300)),
                format!("POST / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(300)),
            ];
            let bytes = requests[which].as_bytes();
            let mut framing = Framing::default();
            let mut rest = bytes;
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                framing.feed(now);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(framing.ambiguous_from(), ambiguous_from(bytes));
        }
    }
}
