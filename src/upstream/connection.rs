//! One connection to an upstream, on which one request at a time is sent. It is driven by who uses it: no task of
//! its own, no channel between.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use tokio::{io::AsyncReadExt, time::Instant};

use super::{
    MAX_ANSWER, OutboundRequest, Reply,
    answer::{Framing, Head, MAX_HEAD, Malformed},
    error::{Failure, refusal},
};
use crate::net::{connect::Connected, deadline::Deadline, socket::Socket, target::Address, tls};

/// A connection. Closed on drop.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    /// What came and is not read yet.
    came: BytesMut,
    /// Whether anything came since the last request was sent.
    answered: bool,
    /// Whether a request was answered on it before.
    kept: bool,
    deadline: Deadline,
    opened: Instant,
    peer: Option<SocketAddr>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    Io(io::Error),
    Malformed(Malformed),
    Closed,
    TimedOut {
        /// Whether the whole request was sent by then.
        sent: bool,
    },
    Unusable(StatusCode),
    /// A hookgate says that the request was its own.
    Looped,
    /// Interim answers without end.
    Interim,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl Fault {
    /// What kind of failure it is on this connection to this address, and why, in words. `limit` is how long it had.
    pub(super) fn explain(
        &self,
        connection: &Connection,
        address: &Address,
        limit: Duration,
    ) -> (Failure, String) {
        match self {
            // In TLS 1.3 the client's side is done before the upstream has looked at the client's certificate.
            Self::Io(error) if !connection.answered && tls::is_refusal(error) => {
                (Failure::Unreachable, refusal(&tls::in_words(error)))
            }
            Self::Io(error) => {
                let why = tls::in_words(error);
                (Failure::BadAnswer, format!("{}: {why}", connection.broken(address)))
            }
            Self::Closed => (Failure::BadAnswer, connection.broken(address)),
            Self::Malformed(malformed) => (Failure::BadAnswer, malformed.to_string()),
            Self::Interim => {
                (Failure::BadAnswer, format!("more than {MAX_INTERIM} interim answers (1xx) and no status"))
            }
            Self::Looped => (
                Failure::Looped,
                "the destination is hookgate itself, or leads back to it: set `url` to the service's own address"
                    .into(),
            ),
            Self::Unusable(status) if status.is_redirection() => (
                Failure::Redirected(*status),
                format!("it answered {status}, and redirects are not followed: set `url` to where it leads"),
            ),
            Self::Unusable(status) => (Failure::BadAnswer, format!("it answered {status}, which nobody asked for")),
            Self::TimedOut { sent } => {
                let request = if *sent { "the request was sent" } else { "not all of the request was taken" };
                (Failure::Timeout, format!("there was no status within {limit:?}; {request}"))
            }
        }
    }
}

/// The most interim answers before the one that counts.
const MAX_INTERIM: usize = 16;

/// How much room there is at least for what comes: a usual answer as a whole.
const ROOM: usize = 1 << 10;

/// The same for what comes of a body behind its head.
const ROOM_FOR_BODY: usize = 16 << 10;

impl Connection {
    /// A connection that was just opened.
    pub(super) fn new((socket, peer): Connected) -> Self {
        Self {
            socket,
            came: BytesMut::new(),
            answered: false,
            kept: false,
            deadline: Deadline::default(),
            opened: Instant::now(),
            peer,
        }
    }

    /// Where it goes to, if that is an address.
    pub(super) const fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// How it ended before a status came.
    fn broken(&self, address: &Address) -> String {
        match (self.answered, self.kept, address) {
            (true, ..) => "the connection ended in the middle of the answer's head",
            (false, true, _) => {
                "it ended a kept connection as the request came, and whether it has taken it is not known"
            }
            (false, false, Address::Tcp { tls: false, .. }) => {
                "it ended the connection before a status (a TLS port does that to plain HTTP: then `url` must begin \
                 with https://)"
            }
            (false, false, _) => "it ended the connection before a status",
        }
        .to_owned()
    }

    /// How long ago it was opened.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.opened)
    }

    /// Whether the upstream has neither closed it nor said anything that nobody asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.socket.is_quiet()
    }

    /// Sends a request and waits for the answer, until `until`. Tells as well whether the connection can be used again.
    ///
    /// Once the status is there it decides: a body that breaks off or stalls is returned as far as it came.
    pub(super) async fn exchange(
        &mut self,
        request: &OutboundRequest,
        until: Instant,
    ) -> Result<(Reply, bool), Fault> {
        self.deadline.set(until);
        self.answered = false;
        let mut unsent = Unsent { head: &request.head, body: &request.body, flushed: false };
        let mut head = self.head(&mut unsent).await?;
        self.kept = true;
        let (body, complete) = self.body(&mut unsent, &mut head.body).await;
        let again = complete && head.keep && unsent.flushed && self.came.is_empty();
        // What an idle connection keeps is little.
        if !again || self.came.try_reclaim(ROOM + 1) {
            self.came = BytesMut::new();
        }
        let Head { status, content_type, retry_after, .. } = head;
        Ok((Reply { status, content_type, retry_after, body }, again))
    }

    /// The head of the final answer.
    async fn head(&mut self, unsent: &mut Unsent<'_>) -> Result<Head, Fault> {
        let mut interim = 0;
        loop {
            let before = self.came.len();
            if self.more(unsent).await? == 0 {
                return Err(Fault::Closed);
            }
            // A head that comes byte by byte is not read again with every byte.
            let seen = self.came.get(before.saturating_sub(2)..).unwrap_or_default();
            if before > 0
                && self.came.len() < MAX_HEAD
                && !memchr::memchr_iter(b'\n', seen).any(|at| is_end(seen, at))
            {
                continue;
            }
            while let Some(head) = Head::take(&mut self.came)? {
                if head.status.is_redirection() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Err(Fault::Unusable(head.status));
                }
                if head.looped {
                    return Err(Fault::Looped);
                }
                if !head.status.is_informational() {
                    return Ok(head);
                }
                interim += 1;
                if interim > MAX_INTERIM {
                    return Err(Fault::Interim);
                }
            }
        }
    }

    /// The body as far as it comes until the deadline, at most [`MAX_ANSWER`] bytes, and whether that is all of it.
    async fn body(&mut self, unsent: &mut Unsent<'_>, framing: &mut Framing) -> (Bytes, bool) {
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        let complete = loop {
            let piece = match framing.take(&mut self.came) {
                Ok(Some(piece)) => piece,
                Ok(None) => break true,
                Err(Malformed { .. }) => break false,
            };
            if piece.is_empty() {
                self.came.reserve(ROOM_FOR_BODY);
                match self.more(unsent).await {
                    Ok(0) | Err(_) => break false,
                    Ok(_) => continue,
                }
            }
            let room = MAX_ANSWER.saturating_sub(first.len().saturating_add(whole.len()));
            let enough = piece.len() > room;
            let piece = piece.slice(..piece.len().min(room));
            if first.is_empty() && whole.is_empty() {
                first = piece;
            } else {
                whole.extend_from_slice(&std::mem::take(&mut first));
                whole.extend_from_slice(&piece);
            }
            if enough {
                break false;
            }
        };
        (if whole.is_empty() { first } else { whole.freeze() }, complete)
    }

    /// Sends on, until something came: so many bytes, or none where the upstream has closed.
    async fn more(&mut self, unsent: &mut Unsent<'_>) -> Result<usize, Fault> {
        // The timer has no turn while there is always something to read.
        if self.answered && self.deadline.has_passed(Instant::now()) {
            return Err(Fault::TimedOut { sent: unsent.flushed });
        }
        std::future::poll_fn(|cx| self.poll_more(cx, unsent)).await
    }

    fn poll_more(&mut self, cx: &mut Context<'_>, unsent: &mut Unsent<'_>) -> Poll<Result<usize, Fault>> {
        let sent = if unsent.flushed { Poll::Pending } else { unsent.poll_send(cx, &mut *self.socket) };
        self.came.reserve(ROOM);
        let read = pin!(self.socket.read_buf(&mut self.came)).poll(cx);
        if let Poll::Ready(read) = read {
            self.answered |= matches!(read, Ok(1..));
            return Poll::Ready(read.map_err(Fault::Io));
        }
        // Who does not want the whole request may have answered before closing, so reading comes first.
        if let Poll::Ready(Err(error)) = sent {
            return Poll::Ready(Err(error.into()));
        }
        ready!(self.deadline.poll(cx));
        Poll::Ready(Err(Fault::TimedOut { sent: unsent.flushed }))
    }
}

/// Whether the line feed at this place ends a head.
fn is_end(bytes: &[u8], at: usize) -> bool {
    let before = bytes.get(..at).unwrap_or_default();
    before.ends_with(b"\n") || before.ends_with(b"\n\r")
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("opened", &self.opened).finish_non_exhaustive()
    }
}

/// What is left to send of a request.
struct Unsent<'r> {
    head: &'r [u8],
    body: &'r [u8],
    flushed: bool,
}

impl Unsent<'_> {
    /// Ready when all is sent.
    fn poll_send(&mut self, cx: &mut Context<'_>, socket: &mut dyn Socket) -> Poll<io::Result<()>> {
        let mut socket = Pin::new(socket);
        while !(self.head.is_empty() && self.body.is_empty()) {
            let sent = if self.body.is_empty() {
                // The call for one piece is the cheaper one.
                socket.as_mut().poll_write(cx, self.head)
            } else {
                let slices = [io::IoSlice::new(self.head), io::IoSlice::new(self.body)];
                socket.as_mut().poll_write_vectored(cx, &slices)
            };
            let sent = ready!(sent)?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = sent.min(self.head.len());
            self.head = self.head.get(of_head..).unwrap_or_default();
            self.body = self.body.get(sent.saturating_sub(of_head)..).unwrap_or_default();
        }
        ready!(socket.poll_flush(cx))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }
}
