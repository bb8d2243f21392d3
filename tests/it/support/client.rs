//! The sender: deliveries as bytes on a socket, and a reader of the answers.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::Value;

use super::{
    PATIENCE, SECRET, Sample, signed,
    wire::{Address, Body, Head, Socket, is_closed, is_timeout, read_body, read_head},
};

/// One request to the webhook listener: a good delivery until a test spoils it.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    method: String,
    target: String,
    version: &'static str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Sizes of the chunks, repeated; `None` sends a Content-Length.
    chunks: Option<Vec<usize>>,
    trailers: Vec<String>,
}

impl Delivery {
    /// A signed delivery with an ID of its own.
    pub(crate) fn new(kind: &str, body: impl Into<Vec<u8>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = format!("8d001000-0000-4000-8000-{:012x}", NEXT.fetch_add(1, Ordering::Relaxed));
        let body = body.into();
        let headers = [
            ("Host", "hookgate.test"),
            ("Content-Type", "application/json"),
            ("Pulumi-Webhook-Id", &id),
            ("Pulumi-Webhook-Kind", kind),
            ("Pulumi-Webhook-Signature", &signed(&body, SECRET.as_bytes())),
        ];
        Self {
            method: "POST".to_owned(),
            target: "/hook".to_owned(),
            version: "HTTP/1.1",
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            body,
            chunks: None,
            trailers: Vec::new(),
        }
    }

    /// The sample, under the kind that it belongs to.
    pub(crate) fn of(sample: &Sample) -> Self {
        Self::new(sample.kind, sample.body())
    }

    /// A delivery that passes every check of a webhook with the group `environments`.
    pub(crate) fn good() -> Self {
        Self::of(super::sample("environment_revision.created"))
    }

    /// A good delivery that differs from others in its bytes too.
    pub(crate) fn good_with(field: &str) -> Self {
        let body = super::sample("environment_revision.created").body();
        let mut body = String::from_utf8(body).unwrap();
        assert_eq!(body.pop(), Some('}'));
        Self::new("environment_revision", format!("{body},\"unknown\":\"{field}\"}}"))
    }

    pub(crate) fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    /// To this path (or any other request target).
    pub(crate) fn to(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    pub(crate) fn http_1_0(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// Replaces a header, in its place; adds it where it is missing.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        match self.headers.iter_mut().find(|(seen, _)| seen.eq_ignore_ascii_case(name)) {
            Some(header) => value.clone_into(&mut header.1),
            None => return self.and(name, value),
        }
        self
    }

    /// Adds a header, also where it is there already.
    pub(crate) fn and(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(seen, _)| !seen.eq_ignore_ascii_case(name));
        self
    }

    pub(crate) fn id(self, id: &str) -> Self {
        self.with("Pulumi-Webhook-Id", id)
    }

    pub(crate) fn kind(self, kind: &str) -> Self {
        self.with("Pulumi-Webhook-Kind", kind)
    }

    pub(crate) fn signature(self, signature: &str) -> Self {
        self.with("Pulumi-Webhook-Signature", signature)
    }

    pub(crate) fn signed_with(self, secret: &[u8]) -> Self {
        let signature = signed(&self.body, secret);
        self.signature(&signature)
    }

    /// With 64 hex digits that are not the signature.
    pub(crate) fn forged(self) -> Self {
        self.signed_with(b"not the secret of any webhook")
    }

    pub(crate) fn unsigned(self) -> Self {
        self.without("Pulumi-Webhook-Signature")
    }

    /// With another body, signed anew.
    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.signed_with(SECRET.as_bytes())
    }

    /// With another body and the old signature.
    pub(crate) fn tampered(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sent in chunks of these sizes, over and over.
    pub(crate) fn chunked(mut self, sizes: &[usize]) -> Self {
        self.chunks = Some(sizes.to_vec());
        self
    }

    pub(crate) fn trailer(mut self, line: &str) -> Self {
        self.trailers.push(line.to_owned());
        self
    }

    pub(crate) fn header_value(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(seen, _)| seen.eq_ignore_ascii_case(name));
        &found.expect("the header is there").1
    }

    pub(crate) fn the_body(&self) -> &[u8] {
        &self.body
    }

    /// The head as it goes over the wire, the blank line included.
    pub(crate) fn head_bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let said = |name: &str| self.headers.iter().any(|(seen, _)| seen.eq_ignore_ascii_case(name));
        if self.chunks.is_some() {
            head.push_str("Transfer-Encoding: chunked\r\n");
        } else if !said("Content-Length") && !said("Transfer-Encoding") {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        // One byte for each character, so that tests can send bytes beyond ASCII.
        head.chars().map(|byte| u8::try_from(u32::from(byte)).unwrap()).collect()
    }

    /// The body as it goes over the wire.
    pub(crate) fn body_bytes(&self) -> Vec<u8> {
        let Some(sizes) = &self.chunks else { return self.body.clone() };
        let mut bytes = Vec::new();
        let mut rest = self.body.as_slice();
        let mut sizes = sizes.iter().cycle();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(*sizes.next().unwrap().min(&rest.len()));
            bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
            rest = after;
        }
        bytes.extend(b"0\r\n");
        for line in &self.trailers {
            bytes.extend(format!("{line}\r\n").bytes());
        }
        bytes.extend(b"\r\n");
        bytes
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.head_bytes(), self.body_bytes()].concat()
    }

    /// Sends it on a connection of its own and reads the answer.
    pub(crate) fn send(&self, to: &Address) -> Answer {
        let mut connection = Connection::open(to);
        connection.send(&self.bytes());
        connection.answer()
    }

    /// Sends only the head and reads the answer, which must come without the body, and the connection's
    /// end, which must come with it.
    pub(crate) fn send_head_only(&self, to: &Address) -> Answer {
        let mut connection = Connection::open(to);
        connection.send(&self.head_bytes());
        let answer = connection.answer();
        connection.assert_closed();
        answer
    }
}

/// A connection to a listener.
#[derive(Debug)]
pub(crate) struct Connection(BufReader<Socket>);

impl Connection {
    pub(crate) fn open(to: &Address) -> Self {
        match to.connect() {
            Ok(socket) => Self(BufReader::new(socket)),
            Err(error) => panic!("cannot connect to {to:?}: {error}"),
        }
    }

    pub(crate) fn over(socket: Socket) -> Self {
        Self(BufReader::new(socket))
    }

    /// Sends bytes; that the other side has closed already is for the reader to find out.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        match self.0.get_mut().write_all(bytes) {
            Err(error) if !is_closed(&error) => panic!("cannot send: {error}"),
            _ => {}
        }
    }

    /// Reads an answer; panics where none comes.
    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().expect("an answer, but the connection was closed without one")
    }

    /// Reads an answer; `None` where the connection is closed without one.
    pub(crate) fn try_answer(&mut self) -> Option<Answer> {
        let mut interim = Vec::new();
        loop {
            let head = match read_head(&mut self.0) {
                Ok(head) => head?,
                Err(error) if is_closed(&error) => return None,
                Err(error) => panic!("no answer: {error}"),
            };
            let status = head.first_line.split(' ').nth(1).and_then(|status| status.parse().ok());
            let status: u16 = status.unwrap_or_else(|| panic!("no status: {head:?}"));
            if status < 200 {
                interim.push(status);
                continue;
            }
            // These two have no body, whatever their headers say.
            let body = match status {
                204 | 304 => Body { complete: true, ..Body::default() },
                _ => read_body(&mut self.0, &head, true).expect("a body"),
            };
            return Some(Answer { status, head, body, interim });
        }
    }

    /// Waits so long for a byte; true where none came and the connection is open.
    pub(crate) fn is_quiet_for(&mut self, time: Duration) -> bool {
        self.0.get_ref().set_read_timeout(time).unwrap();
        let quiet = matches!(self.0.fill_buf(), Err(error) if is_timeout(&error));
        self.0.get_ref().set_read_timeout(PATIENCE).unwrap();
        quiet
    }

    /// Waits for the other side to close without another byte.
    pub(crate) fn assert_closed(&mut self) {
        match self.0.fill_buf() {
            Ok([]) => {}
            Ok(bytes) => panic!("expected the end, got {:?}", String::from_utf8_lossy(bytes)),
            Err(error) if is_closed(&error) => {}
            Err(error) => panic!("the connection was not closed: {error}"),
        }
    }

    /// Reads up to so many bytes, if any come; for those who read slowly.
    pub(crate) fn read_some(&mut self, count: usize) {
        let socket = self.0.get_mut();
        socket.set_read_timeout(Duration::from_millis(10)).unwrap();
        drop(socket.read(&mut vec![0; count]));
        socket.set_read_timeout(PATIENCE).unwrap();
    }

    /// Reads whatever comes until the other side closes.
    pub(crate) fn read_all(&mut self, into: &mut String) {
        match self.0.read_to_string(into) {
            Err(error) if !is_closed(&error) => panic!("the connection was not closed: {error}"),
            _ => {}
        }
    }

    /// Reads one interim answer.
    pub(crate) fn assert_interim(&mut self, status: u16) {
        let head = read_head(&mut self.0).unwrap().expect("an interim answer");
        assert!(head.first_line.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}");
    }

    /// Over TLS, sends bytes past it; otherwise nothing.
    pub(crate) fn send_below_tls(&mut self, bytes: &[u8]) {
        if let Socket::Tls(socket) = self.0.get_mut() {
            socket.tcp().write_all(bytes).unwrap();
        }
    }

    /// Breaks off, without a regular end.
    pub(crate) fn reset(self) {
        self.0.get_ref().reset_on_drop().unwrap();
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub(crate) fn finish_sending(&mut self) -> io::Result<()> {
        self.0.get_ref().shutdown(Shutdown::Write)
    }
}

/// One answer of hookgate.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Body,
    /// Statuses below 200 that came before.
    pub(crate) interim: Vec<u16>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub(crate) fn outcome(&self) -> &str {
        self.header("hookgate-outcome").unwrap_or_else(|| panic!("no Hookgate-Outcome: {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.bytes.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body.bytes).unwrap_or_else(|_| panic!("a JSON body: {self:?}"))
    }

    /// Status and label, for comparing at a glance.
    pub(crate) fn said(&self) -> (u16, &str) {
        (self.status, self.outcome())
    }

    /// An answer of hookgate's own that refuses or reports a failure.
    #[track_caller]
    pub(crate) fn assert_refused(&self, status: u16, label: &str) {
        assert_eq!(self.said(), (status, label), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["reason"], label, "{problem}");
        assert!(problem["type"].is_string(), "{problem}");
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
        if status == 503 {
            let after = self.header("retry-after").and_then(|after| after.parse::<u32>().ok());
            assert!(after.is_some_and(|after| (1..=3600).contains(&after)), "{self:?}");
        }
        self.assert_says_nothing_internal();
    }

    /// Pulumi stores answers and shows them to people.
    #[track_caller]
    pub(crate) fn assert_says_nothing_internal(&self) {
        let everything = format!("{:?} {}", self.head, String::from_utf8_lossy(&self.body.bytes));
        for internal in ["127.0.0.1", "localhost", "/upstream", SECRET, "/tmp", ".sock", "os error"] {
            assert!(!everything.contains(internal), "{internal:?} in {everything}");
        }
    }

    /// An answer of hookgate's own to a delivery that is fine but goes no further.
    #[track_caller]
    pub(crate) fn assert_own(&self, label: &str) {
        assert_eq!(self.said(), (200, label), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        assert_eq!(self.json()["outcome"], label, "{self:?}");
        self.assert_says_nothing_internal();
    }

    /// The upstream's answer.
    #[track_caller]
    pub(crate) fn assert_forwarded(&self, status: u16) {
        assert_eq!(self.said(), (status, "forwarded"), "{self:?}");
    }
}
