//! One connection to an upstream, on which one request at a time is sent. It is driven by who uses it: no task of
//! its own, no channel between.

use std::{
    fmt, io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    MAX_ANSWER, OutboundRequest, Reply,
    answer::{Framing, Head, MAX_HEAD, Malformed},
};
use crate::deadline::Deadline;

/// What a connection goes over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// A connection. Closed on drop.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    /// What came and is not read yet.
    came: BytesMut,
    /// Whether anything came since the last request was sent.
    answered: bool,
    deadline: Deadline,
    opened: Instant,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the connection was closed before an answer")]
    Closed,
    #[error("no answer in time")]
    TimedOut,
    #[error("it answered {0}")]
    Unusable(StatusCode),
}

/// How much room there is at least for what comes: a usual answer as a whole.
const ROOM: usize = 1 << 10;

/// The same for what comes of a body behind its head.
const ROOM_FOR_BODY: usize = 16 << 10;

impl Connection {
    pub(super) fn new(socket: impl Socket + 'static) -> Self {
        Self {
            socket: Box::new(socket),
            came: BytesMut::new(),
            answered: false,
            deadline: Deadline::default(),
            opened: Instant::now(),
        }
    }

    /// Whether anything came from the upstream since the last request was sent.
    pub(super) const fn has_answered(&self) -> bool {
        self.answered
    }

    /// How long ago it was opened.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.opened)
    }

    /// Whether the upstream has neither closed it nor said anything that nobody asked for.
    pub(super) fn is_open(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut byte = [0];
        Pin::new(&mut self.socket).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
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
                if !head.status.is_informational() {
                    return Ok(head);
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
            return Err(Fault::TimedOut);
        }
        std::future::poll_fn(|cx| self.poll_more(cx, unsent)).await
    }

    fn poll_more(&mut self, cx: &mut Context<'_>, unsent: &mut Unsent<'_>) -> Poll<Result<usize, Fault>> {
        let sent = if unsent.flushed { Poll::Pending } else { unsent.poll_send(cx, &mut self.socket) };
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
        Poll::Ready(Err(Fault::TimedOut))
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
