//! The socket of one sender, with every wait bounded.
//!
//! [`Guarded`] stands between hyper and the socket. It ends connections that are silent, slow with a head, idle,
//! or do not read their answer, after their time or when they must give way to others ([`super::crowd`]); it watches the
//! framing; and it lets an answer to an unread body arrive before the connection is closed. The deadline of a body is not
//! here: it is the request's, and is set where its body is read.

use std::{
    borrow::Cow,
    error::Error as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    framing::Framing,
    limits::ConnectionLimits,
    state::{ConnectionState, Phase},
    unreadable::{Beginning, Unreadable},
};
use crate::net::deadline::Deadline;

/// A sender's socket with deadlines.
#[derive(Debug)]
pub(super) struct Guarded<T> {
    socket: T,
    state: Arc<ConnectionState>,
    beginning: Beginning,
    framing: Framing,
    header_timeout: Duration,
    idle_timeout: Duration,
    read: Deadline,
    write: Deadline,
    /// How much of streamed answers there was when the time of writing was last set.
    streamed: u64,
    linger: Option<Linger>,
}

/// Reading on after our side is closed, so that the kernel does not answer unread bytes with a reset that would
/// destroy our answer on its way.
#[derive(Debug)]
struct Linger {
    left: usize,
    deadline: Deadline,
}

/// How long, and for how many bytes, an unread body is read on.
const LINGER_TIME: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 16 << 20;

impl<T> Guarded<T> {
    pub(super) fn new(socket: T, state: Arc<ConnectionState>, limits: &ConnectionLimits) -> Self {
        let now = Instant::now();
        let mut read = Deadline::default();
        read.set(now + limits.header_timeout);
        Self {
            socket,
            state,
            beginning: Beginning::default(),
            framing: Framing::default(),
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            read,
            write: Deadline::default(),
            streamed: 0,
            linger: None,
        }
    }

    /// Looks at what came; `all` says that the kernel had no more of it.
    fn received(&mut self, bytes: &[u8], all: bool) {
        match self.state.phase() {
            Phase::Idle => self.begin_head(),
            Phase::Opened => {
                self.state.head_begins();
                self.beginning.keep(bytes);
            }
            Phase::Head | Phase::Request | Phase::Answer | Phase::Answered => {}
        }
        self.framing.feed(bytes);
        let whole = self.framing.whole().filter(|_| all);
        self.state.saw_heads(self.framing.ambiguous_from(), whole);
    }

    /// What could not be read, where that is why hyper gave up, and what there is to say about it.
    pub(super) fn unreadable(&self, error: &hyper::Error) -> Option<(Unreadable, Cow<'static, str>)> {
        let timed_out = || {
            let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
            source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
        };
        let what = if error.is_parse() {
            Unreadable::of_head(&self.beginning, error.is_parse_too_large(), self.framing.most_headers())
        } else if self.state.phase() == Phase::Head && timed_out() {
            Unreadable::Timeout
        } else {
            return None;
        };
        Some((what, what.about_head(&self.beginning)))
    }

    /// The first bytes of a head are there. Its time begins when the others must be waited for, which most heads
    /// never come to.
    fn begin_head(&mut self) {
        self.state.head_begins();
        self.read.clear();
    }

    /// The answer is made, and the next head is awaited.
    fn next_head(&mut self) {
        if self.framing.is_within_head() {
            // Its beginning came with the request before it.
            self.begin_head();
        } else {
            let now = Instant::now();
            self.state.idles(now);
            self.read.set(now + self.idle_timeout);
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Guarded<T> {
    /// Whether the peer may still be sending when our side is closed: an unread body, the rest of a head that was
    /// refused, a request behind the last one. When the service ends, only an unread body is worth the wait.
    fn may_get_more(&self) -> bool {
        self.state.has_unread()
            || (!self.state.is_closing()
                && matches!(
                    self.state.phase(),
                    Phase::Opened | Phase::Head | Phase::Answer | Phase::Answered
                ))
    }

    /// A write that waits for the peer for too long ends the connection.
    fn bound_write<R>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if write.is_pending() {
            let works = self.state.phase() == Phase::Request;
            let streamed = self.state.streamed_so_far();
            if !self.write.is_set() {
                // From the first wait until everything is written: reading it byte by byte does not help, nor
                // does asking for more.
                let now = Instant::now();
                self.write.set(now + self.idle_timeout);
                self.streamed = streamed;
                if !works {
                    self.state.place().waits(now);
                }
            } else if streamed > self.streamed {
                // An answer without end is never all written: there was room for more of it.
                self.write.set(Instant::now() + self.idle_timeout);
                self.state.place().progresses(streamed - self.streamed);
                self.streamed = streamed;
            }
            if works || !self.state.place().has_to_go() {
                ready!(self.write.poll(cx));
            }
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        write
    }

    /// hyper flushes when it has nothing left to write.
    fn all_is_written(&mut self) {
        if self.write.is_set() && self.state.phase() == Phase::Answer {
            // From now on the peer waits for the rest of its answer.
            self.state.place().works();
        }
        self.write.clear();
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| {
            let now = Instant::now();
            let mut deadline = Deadline::default();
            deadline.set(now + LINGER_TIME);
            self.state.place().waits(now);
            Linger { left: LINGER_BYTES, deadline }
        });
        let mut scratch = [0; 4096];
        while linger.left > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    linger.left = linger.left.saturating_sub(buffer.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if self.state.place().has_to_go() => return Poll::Ready(()),
                Poll::Pending => return linger.deadline.poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.state.phase() == Phase::Answered {
            // hyper asks for the next head.
            this.next_head();
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.socket).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                this.received(buffer.filled().get(before..).unwrap_or_default(), buffer.remaining() > 0);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match this.state.phase() {
                Phase::Opened | Phase::Head | Phase::Idle if this.state.place().has_to_go() => {
                    Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
                }
                Phase::Opened | Phase::Head => {
                    if !this.read.is_set() {
                        let now = Instant::now();
                        this.read.set(now + this.header_timeout);
                        this.state.place().waits(now);
                    }
                    ready!(this.read.poll(cx));
                    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                }
                Phase::Idle => {
                    ready!(this.read.poll(cx));
                    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                }
                Phase::Request | Phase::Answer | Phase::Answered => Poll::Pending,
            },
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.bound_write(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.bound_write(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.socket).poll_flush(cx);
        if flush.is_ready() {
            self.all_is_written();
        }
        self.bound_write(cx, flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            let shutdown = Pin::new(&mut self.socket).poll_shutdown(cx);
            ready!(self.bound_write(cx, shutdown))?;
        }
        if self.may_get_more() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, duplex},
        time::advance,
    };

    use super::super::crowd::Crowd;
    use super::*;

    /// Asking for more does not begin the time anew, nor does reading a byte now and then. No socket is awaited, so the
    /// clock can stand still.
    #[tokio::test(start_paused = true)]
    async fn the_time_for_reading_answers_ends_only_when_all_is_written() {
        let limits = ConnectionLimits::default();
        let step = limits.idle_timeout / 4;
        let state = Arc::new(ConnectionState::new(Crowd::new(8).open().place(), None));
        let (socket, mut peer) = duplex(64);
        let mut guarded = Guarded::new(socket, Arc::clone(&state), &limits);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut waited = 0;
        let ended = loop {
            state.request_begins();
            state.answer_begins();
            state.answer_ends();
            // hyper writes what there is, and looks for the next head.
            let written = loop {
                match Pin::new(&mut guarded).poll_write(&mut cx, b"x") {
                    Poll::Ready(Ok(_)) => {}
                    other => break other,
                }
            };
            if let Poll::Ready(Err(error)) = written {
                break error;
            }
            let next = Pin::new(&mut guarded).poll_read(&mut cx, &mut ReadBuf::new(&mut [0; 8]));
            assert!(next.is_pending());
            waited += 1;
            assert!(waited < 10, "the time begins anew again and again");
            peer.read_u8().await.unwrap();
            advance(step).await;
        };
        assert_eq!((ended.kind(), waited), (io::ErrorKind::TimedOut, 4));
    }

    /// Who has read everything has the whole time again.
    #[tokio::test(start_paused = true)]
    async fn the_time_for_reading_answers_begins_anew_once_all_is_written() {
        let limits = ConnectionLimits::default();
        let state = Arc::new(ConnectionState::new(Crowd::new(8).open().place(), None));
        let (socket, mut peer) = duplex(1);
        let mut guarded = Guarded::new(socket, state, &limits);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..5 {
            assert!(matches!(Pin::new(&mut guarded).poll_write(&mut cx, b"x"), Poll::Ready(Ok(1))));
            assert!(Pin::new(&mut guarded).poll_write(&mut cx, b"x").is_pending());
            advance(limits.idle_timeout / 2).await;
            peer.read_u8().await.unwrap();
            assert!(matches!(Pin::new(&mut guarded).poll_flush(&mut cx), Poll::Ready(Ok(()))));
        }
    }
}
