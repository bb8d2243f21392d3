//! Reads answers: the head as a whole, the body piece by piece. Pure; strict where reading on would be guessing.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use hyper::{StatusCode, header::HeaderValue};

/// The longest head, in bytes.
pub(super) const MAX_HEAD: usize = 64 << 10;

/// The most headers of a head.
const MAX_HEADERS: usize = 100;

/// The longest line of a chunked body that is not data, and all of its trailers, in bytes.
const MAX_LINE: usize = 16 << 10;

/// What is looked at of an answer's head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) retry_after: Option<HeaderValue>,
    pub(super) body: Framing,
    /// Whether the connection may be used again behind the body.
    pub(super) keep: bool,
    /// Whether a hookgate says that the request was its own.
    pub(super) looped: bool,
}

/// How the end of a body is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many more bytes.
    Length(u64),
    /// By its chunks.
    Chunked(Chunks),
    /// By the end of the connection.
    UntilClosed,
}

/// The header by which a hookgate names the outcome of a request, and what it says of one that it sent itself.
pub(super) const LOOPED: (&str, &[u8]) = ("hookgate-outcome", b"loop_detected");

/// It is not HTTP, or cannot be read in one way only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(&'static str);

impl Head {
    /// Takes a head from the front of `bytes`. `None` while it is not complete.
    pub(super) fn take(bytes: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let parser = httparse::ParserConfig::default();
        let length = match parser.parse_response_with_uninit_headers(&mut response, bytes, &mut headers) {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
            Ok(_) => return Err(Malformed("the head of its answer is longer than 64 KiB")),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Malformed("its answer has more than 100 headers"));
            }
            Err(_) => return Err(what_it_is_instead(bytes)),
        };
        // Another program in the chain may take it for no line end at all.
        let head = bytes.get(..length).unwrap_or_default();
        if memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head.get(at - 1) != Some(&b'\r')) {
            return Err(Malformed("a line of its answer's head ends without CR"));
        }
        let head = Self::read(&response)?;
        bytes.advance(length);
        Ok(Some(head))
    }

    fn read(response: &httparse::Response<'_, '_>) -> Result<Self, Malformed> {
        let code = response.code.unwrap_or_default();
        let status = StatusCode::from_u16(code).ok().filter(|_| code < 600);
        let status = status.ok_or(Malformed("its status is not between 100 and 599"))?;
        let mut keep = response.version == Some(1);
        let (mut length, mut encoding) = (None, None);
        let (mut content_type, mut retry_after) = (None, None);
        for httparse::Header { name, value } in &*response.headers {
            if name.eq_ignore_ascii_case("content-length") {
                let given = decimal(value).ok_or(Malformed("its Content-Length is not a number"))?;
                if length.is_some_and(|length| length != given) {
                    return Err(Malformed("it has two Content-Lengths that differ"));
                }
                length = Some(given);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                // What was before is not the last coding any more.
                encoding = Some(value.trim_ascii().eq_ignore_ascii_case(b"chunked") && encoding.is_none());
            } else if name.eq_ignore_ascii_case("connection") {
                let close = |option: &[u8]| option.trim_ascii().eq_ignore_ascii_case(b"close");
                keep &= !value.split(|b| *b == b',').any(close);
            } else if name.eq_ignore_ascii_case("content-type") {
                content_type = content_type.or_else(|| HeaderValue::from_bytes(value).ok());
            } else if name.eq_ignore_ascii_case("retry-after") {
                retry_after = retry_after.or_else(|| HeaderValue::from_bytes(value).ok());
            }
        }
        let body = match (encoding, length) {
            _ if status.is_informational() || matches!(code, 204 | 304) => Framing::Length(0),
            (Some(_), _) if response.version != Some(1) => {
                return Err(Malformed("it has a Transfer-Encoding in HTTP/1.0"));
            }
            (Some(true), _) => Framing::Chunked(Chunks::default()),
            (Some(false), _) => return Err(Malformed("its Transfer-Encoding is not `chunked` alone")),
            (None, Some(length)) => Framing::Length(length),
            (None, None) => Framing::UntilClosed,
        };
        // Both are what smuggling lives on; the next answer may begin elsewhere than one thinks.
        keep &= encoding.is_none() || length.is_none();
        let looped = status == StatusCode::LOOP_DETECTED
            && response.headers.iter().any(|header| {
                header.name.eq_ignore_ascii_case(LOOPED.0) && header.value.trim_ascii() == LOOPED.1
            });
        Ok(Self { status, content_type, retry_after, body, keep, looped })
    }
}

/// What begins like this is not HTTP/1.1, but perhaps something that an operator can be told.
fn what_it_is_instead(bytes: &[u8]) -> Malformed {
    Malformed(match bytes {
        // An alert, or a handshake.
        [0x15 | 0x16, 3, ..] => "it speaks TLS: `url` must begin with https://",
        // A frame with settings, which a server begins with.
        [0, _, _, 4, ..] => "it speaks HTTP/2: hookgate speaks HTTP/1.1",
        _ => "it does not answer in HTTP/1.1",
    })
}

/// Digits and nothing else.
fn decimal(value: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(value.trim_ascii()).ok()?;
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

impl Framing {
    /// Takes what there is of the body from the front of `bytes`; an empty piece if there is none yet. `None` behind
    /// its end.
    pub(super) fn take(&mut self, bytes: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        match self {
            Self::Length(0) => Ok(None),
            Self::Length(left) => Ok(Some(take_of(left, bytes))),
            Self::Chunked(chunks) => chunks.take(bytes),
            Self::UntilClosed => Ok(Some(bytes.split().freeze())),
        }
    }
}

/// Pieces up to this length are copied out, in bytes: most answers are short, and what they came in can be used again.
const COPIED: usize = 512;

/// At most `left` bytes, which becomes less by them.
fn take_of(left: &mut u64, bytes: &mut BytesMut) -> Bytes {
    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left = left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX));
    if here > COPIED {
        return bytes.split_to(here).freeze();
    }
    let piece = Bytes::copy_from_slice(bytes.get(..here).unwrap_or_default());
    bytes.advance(here);
    piece
}

/// Where one is in a chunked body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Chunks {
    /// Before the line with a chunk's size.
    #[default]
    Size,
    /// In a chunk that has so many bytes left.
    Data(u64),
    /// Before the line end behind a chunk.
    DataEnd,
    /// Before a line of the trailers, of which there were so many bytes.
    Trailers(usize),
    /// Behind the end.
    End,
}

impl Chunks {
    fn take(&mut self, bytes: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        loop {
            match self {
                Self::End => return Ok(None),
                Self::Data(0) => *self = Self::DataEnd,
                Self::Data(left) => return Ok(Some(take_of(left, bytes))),
                Self::Size | Self::DataEnd | Self::Trailers(_) => {
                    let Some(line) = take_line(bytes)? else { return Ok(Some(Bytes::new())) };
                    self.pass(&line)?;
                }
            }
        }
    }

    fn pass(&mut self, line: &[u8]) -> Result<(), Malformed> {
        *self = match *self {
            Self::Size => match chunk_size(line).ok_or(Malformed("a chunk without a size"))? {
                0 => Self::Trailers(0),
                size => Self::Data(size),
            },
            Self::DataEnd if line.is_empty() => Self::Size,
            Self::DataEnd => return Err(Malformed("a chunk that is longer than it says")),
            Self::Trailers(_) if line.is_empty() => Self::End,
            Self::Trailers(sum) if sum <= MAX_LINE => Self::Trailers(sum.saturating_add(line.len())),
            Self::Trailers(_) => return Err(Malformed("trailers without end")),
            Self::Data(_) | Self::End => return Ok(()),
        };
        Ok(())
    }
}

/// A line without its end, CR LF.
fn take_line(bytes: &mut BytesMut) -> Result<Option<BytesMut>, Malformed> {
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return if bytes.len() > MAX_LINE { Err(Malformed("a line without end")) } else { Ok(None) };
    };
    let mut line = bytes.split_to(end);
    bytes.advance(1);
    if !line.ends_with(b"\r") {
        return Err(Malformed("a line that ends without CR"));
    }
    line.truncate(end.saturating_sub(1));
    Ok(Some(line))
}

/// The number before any extension.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(line.split(|b| *b == b';').next()?.trim_ascii_end()).ok()?;
    let digits = Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Result<Option<Head>, Malformed> {
        Head::take(&mut BytesMut::from(text))
    }

    fn framing(headers: &str) -> Option<Framing> {
        head(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n")).ok().flatten().map(|head| head.body)
    }

    #[test]
    fn the_end_of_a_body_is_told_in_one_way_or_not_at_all() {
        let chunked = Some(Framing::Chunked(Chunks::Size));
        for (headers, expected) in [
            ("", Some(Framing::UntilClosed)),
            ("Content-Length: 3\r\n", Some(Framing::Length(3))),
            ("content-length: 3\r\nContent-Length: 3\r\n", Some(Framing::Length(3))),
            ("Content-Length: 3\r\nContent-Length: 4\r\n", None),
            ("Content-Length: 3, 3\r\n", None),
            ("Content-Length: +3\r\n", None),
            ("Content-Length: 99999999999999999999\r\n", None),
            ("Content-Length:\r\n", None),
            ("Transfer-Encoding: chunked\r\n", chunked),
            ("Transfer-Encoding: gzip, chunked\r\n", None),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", None),
            ("Transfer-Encoding: identity\r\nContent-Length: 3\r\n", None),
        ] {
            assert_eq!(framing(headers), expected, "{headers}");
        }
        for status in [100, 103, 204, 304] {
            let text = format!("HTTP/1.1 {status} X\r\ncontent-length: 5\r\n\r\n");
            assert_eq!(head(&text).unwrap().unwrap().body, Framing::Length(0));
        }
        assert_eq!(head("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").ok(), None);
    }

    #[test]
    fn a_connection_is_kept_only_where_nothing_speaks_against_it() {
        let keep = |text: &str| head(text).unwrap().unwrap().keep;
        assert!(keep("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"));
        assert!(keep("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\n"));
        assert!(!keep("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: x, Close\r\n\r\n"));
        assert!(!keep("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n"));
        assert!(!keep("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"));
    }

    #[test]
    fn heads_are_bounded() {
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD));
        assert!(head(&long).is_err());
        assert!(head(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101))).is_err());
        assert_eq!(head("HTTP/1.1 200 OK\r\nx: y\r\n"), Ok(None));
        assert!(head("HTTP/1.1 99 Low\r\n\r\n").is_err());
        assert!(head("HTTP/1.1 599 X\r\n\r\n").is_ok());
        for beyond in [0, 99, 600, 700, 999] {
            assert!(head(&format!("HTTP/1.1 {beyond:03} X\r\n\r\n")).is_err(), "{beyond}");
        }
    }

    #[test]
    fn a_line_that_ends_without_cr_is_refused() {
        for bare in [
            "HTTP/1.1 200 OK\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\n",
            "HTTP/1.1 200 OK\ncontent-length: 0\n\n",
            "\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert_eq!(head(bare), Err(Malformed("a line of its answer's head ends without CR")), "{bare:?}");
        }
    }

    #[test]
    fn other_protocols_are_named() {
        for (bytes, words) in [
            (&b"\x15\x03\x01\x00\x02\x02\x46"[..], "https://"),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "HTTP/2"),
            (b"220 mail.example ESMTP\r\n", "does not answer in HTTP/1.1"),
        ] {
            let error = Head::take(&mut BytesMut::from(bytes)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn only_a_hookgate_says_that_it_is_a_loop() {
        let looped = |text: &str| head(text).unwrap().unwrap().looped;
        assert!(looped("HTTP/1.1 508 Loop Detected\r\nHookgate-Outcome: loop_detected\r\n\r\n"));
        assert!(!looped("HTTP/1.1 508 Loop Detected\r\n\r\n"));
        assert!(!looped("HTTP/1.1 508 Loop Detected\r\nHookgate-Outcome: forwarded\r\n\r\n"));
        assert!(!looped("HTTP/1.1 502 Bad\r\nHookgate-Outcome: loop_detected\r\n\r\n"));
    }

    const CHUNKED: &str = "4;x=\"y\"\r\nthis\r\nA \r\n is a body\r\n000\r\nx-trailer: 1\r\n\r\nrest";

    /// The body that comes of these pieces, and what is left behind it.
    fn chunks(text: &str, cuts: &[usize]) -> Result<(Vec<u8>, Option<usize>), Malformed> {
        let (mut chunks, mut bytes, mut body) = (Chunks::default(), BytesMut::new(), Vec::new());
        let mut rest = text.as_bytes();
        let mut cuts = cuts.iter().cycle();
        loop {
            match chunks.take(&mut bytes)? {
                None => return Ok((body, Some(bytes.len() + rest.len()))),
                Some(piece) if piece.is_empty() => {
                    if rest.is_empty() {
                        return Ok((body, None));
                    }
                    let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                    bytes.extend_from_slice(now);
                    rest = later;
                }
                Some(piece) => body.extend_from_slice(&piece),
            }
        }
    }

    #[test]
    fn broken_chunks_are_found() {
        for broken in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            "1\nab",
            "1\r\nab\r\n",
            "11111111111111111\r\n",
            " 1\r\na",
        ] {
            assert!(chunks(broken, &[100]).is_err(), "{broken:?}");
        }
        assert!(chunks(&"1".repeat(MAX_LINE + 1), &[MAX_LINE + 1]).is_err());
        assert!(chunks(&format!("0\r\n{}", "x: y\r\n".repeat(MAX_LINE)), &[usize::MAX]).is_err());
        assert_eq!(chunks("4\r\nha", &[100]), Ok((b"ha".to_vec(), None)));
    }

    proptest! {
        #[test]
        fn how_chunks_are_cut_does_not_matter(cuts in proptest::collection::vec(1_usize..20, 1..20)) {
            prop_assert_eq!(chunks(CHUNKED, &cuts), Ok((b"this is a body".to_vec(), Some(4))));
        }

        #[test]
        fn no_bytes_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = BytesMut::from(&*bytes);
            if let Ok(Some(mut head)) = Head::take(&mut bytes) {
                while head.body.take(&mut bytes).is_ok_and(|piece| piece.is_some_and(|piece| !piece.is_empty())) {}
            }
        }
    }
}
