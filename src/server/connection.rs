//! The socket of one sender, with every wait bounded.
//!
//! [`Guarded`] stands between hyper and the socket. It ends connections that are silent, slow with a head, idle,
//! or do not read their answer, after their time or when they must give way to others ([`super::crowd`]); it watches the
//! framing; and it lets an answer to an unread body arrive before the connection is closed. The deadline of a body is not
//! here: it is the request's, see [`super::body`].

use std::{
    borrow::Cow,
    error::Error as _,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    accept::{Peer, Settings},
    crowd::Place,
    framing::Framing,
    unreadable::{Beginning, Unreadable},
};
use crate::net::deadline::Deadline;

/// What the requests of a connection and its socket tell each other.
#[derive(Debug)]
pub struct Shared {
    /// Its place among all connections.
    place: Arc<Place>,
    peer: Peer,
    /// The peer's address, written out once for all lines of the log.
    address: OnceLock<String>,
    phase: AtomicU8,
    /// Requests that have begun.
    requests: AtomicU64,
    /// The first request whose head can be read in two ways, counted from 1.
    ambiguous: AtomicU64,
    /// The requests that have come as a whole, where not a byte has come behind the last one.
    whole: AtomicU64,
    /// Idle for a while, so that what serves it can be put away.
    rests: AtomicBool,
    unread: AtomicBool,
    closing: AtomicBool,
    cut: AtomicBool,
    /// That of the request: there is one at a time.
    deadline: Mutex<Deadline>,
}

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first byte of the first request.
    Opened = 0,
    /// The end of a head.
    Head = 1,
    /// The service: deadlines are the request's.
    Request = 2,
    /// Its answer is being written.
    Answer = 3,
    /// The first byte of the next request.
    Idle = 4,
}

impl Shared {
    pub(super) fn new(place: Arc<Place>, peer: Peer) -> Self {
        Self {
            place,
            peer,
            address: OnceLock::new(),
            phase: AtomicU8::default(),
            requests: AtomicU64::default(),
            ambiguous: AtomicU64::new(u64::MAX),
            whole: AtomicU64::default(),
            rests: AtomicBool::default(),
            unread: AtomicBool::default(),
            closing: AtomicBool::default(),
            cut: AtomicBool::default(),
            deadline: Mutex::default(),
        }
    }

    /// Who sends.
    pub const fn peer(&self) -> Peer {
        self.peer
    }

    /// The address and port of the sender, where it has them.
    pub fn client_address(&self) -> Option<&str> {
        let peer = self.peer?;
        Some(self.address.get_or_init(|| peer.to_string()))
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Opened,
            1 => Phase::Head,
            2 => Phase::Request,
            3 => Phase::Answer,
            _ => Phase::Idle,
        }
    }

    fn enter(&self, phase: Phase) {
        let number = match phase {
            Phase::Opened => 0,
            Phase::Head => 1,
            Phase::Request => 2,
            Phase::Answer => 3,
            Phase::Idle => 4,
        };
        self.phase.store(number, Relaxed);
    }

    /// A head is complete; its request is being served.
    pub(super) fn request_begins(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.enter(Phase::Request);
        self.place.works();
    }

    /// The request has its answer.
    pub(super) fn request_ends(&self) {
        self.enter(Phase::Answer);
    }

    /// Not all of the request's body was read, so the connection ends with its answer.
    pub fn leave_unread(&self) {
        self.unread.store(true, Relaxed);
    }

    /// Waits for what the request needs of its peer, `until` then at the longest. All requests of a connection share a
    /// timer, which is seldom set.
    ///
    /// # Errors
    ///
    /// [`GivenUp`].
    pub async fn until<F: Future>(&self, until: Instant, wait: F) -> Result<F::Output, GivenUp> {
        let mut wait = pin!(wait);
        let mut waits = false;
        poll_fn(|cx| {
            if let Poll::Ready(output) = wait.as_mut().poll(cx) {
                self.place.works();
                return Poll::Ready(Ok(output));
            }
            if self.place.has_to_go() {
                return Poll::Ready(Err(GivenUp::GaveWay));
            }
            if !std::mem::replace(&mut waits, true) {
                self.place.waits(Instant::now());
            }
            let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
            deadline.set(until);
            deadline.poll(cx).map(|()| Err(GivenUp::TooLate))
        })
        .await
    }

    /// So many bytes of the body that is waited for have come.
    pub fn came(&self, bytes: usize) {
        self.place.progresses(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// A signature of this connection was right.
    pub fn is_proven(&self) {
        self.place.is_proven();
    }

    /// Whether the head of the request that is being served, or one before it, can be read in two ways.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguous.load(Relaxed) <= self.requests.load(Relaxed)
    }

    /// Whether the body of the request that is being served has come, and not a byte behind it.
    pub fn has_nothing_behind(&self) -> bool {
        self.whole.load(Relaxed) == self.requests.load(Relaxed)
    }

    /// It is being served.
    pub(super) fn rests_no_more(&self) {
        self.rests.store(false, Relaxed);
    }

    /// Whether it has been idle for a while, and is.
    pub(super) fn rests(&self) -> bool {
        self.rests.load(Relaxed) && self.phase() == Phase::Idle
    }

    /// Whether all connections are taken, so that others wait for this one, or this one must give way to one.
    pub fn is_crowded(&self) -> bool {
        self.place.has_to_go() || self.place.crowd().is_full()
    }

    /// After which idle time a connection rests. The more are open, the sooner: what idle ones keep together is bounded.
    fn time_to_rest(&self) -> Duration {
        let open = u32::try_from(self.place.crowd().len()).unwrap_or(u32::MAX);
        REST * AT_EASE / open.max(AT_EASE)
    }

    /// Makes the next answer the connection's last: see [`Shared::is_closing`].
    pub(super) fn close_after_answer(&self) {
        self.closing.store(true, Relaxed);
    }

    /// Whether the service is ending, so that an answer must say that it is the connection's last.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Ends what is still waiting: see [`Shared::is_cut`].
    pub(super) fn cut(&self) {
        self.cut.store(true, Relaxed);
    }

    /// Whether the drain's deadline has passed, so that requests must end now.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Relaxed)
    }
}

/// Why the peer is waited for no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// Its time is over.
    TooLate,
    /// Its connection gave its place to another one.
    GaveWay,
}

/// A sender's socket with deadlines.
#[derive(Debug)]
pub(super) struct Guarded<T> {
    socket: T,
    shared: Arc<Shared>,
    beginning: Beginning,
    framing: Framing,
    header_timeout: Duration,
    idle_timeout: Duration,
    read: Deadline,
    idle_since: Instant,
    /// What came before anybody was there to read it.
    ahead: Bytes,
    write: Deadline,
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
    pub(super) fn new(socket: T, shared: Arc<Shared>, settings: &Settings) -> Self {
        let now = Instant::now();
        let mut read = Deadline::default();
        read.set(now + settings.header_timeout);
        Self {
            socket,
            shared,
            beginning: Beginning::default(),
            framing: Framing::default(),
            header_timeout: settings.header_timeout,
            idle_timeout: settings.idle_timeout,
            read,
            idle_since: now,
            ahead: Bytes::new(),
            write: Deadline::default(),
            linger: None,
        }
    }

    /// Looks at what came.
    /// `all` says that the kernel had no more of it.
    fn received(&mut self, bytes: &[u8], all: bool) {
        match self.shared.phase() {
            Phase::Idle => self.begin_head(),
            Phase::Opened => {
                self.shared.enter(Phase::Head);
                self.beginning.keep(bytes);
            }
            Phase::Head | Phase::Request | Phase::Answer => {}
        }
        self.framing.feed(bytes);
        let whole = self.framing.whole().filter(|_| all);
        self.shared.whole.store(whole.unwrap_or_default(), Relaxed);
        if let Some(request) = self.framing.ambiguous_from() {
            self.shared.ambiguous.store(request, Relaxed);
        }
    }

    /// What could not be read, where that is why hyper gave up, and what there is to say about it.
    pub(super) fn unreadable(&self, error: &hyper::Error) -> Option<(Unreadable, Cow<'static, str>)> {
        let timed_out = || {
            let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
            source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
        };
        let what = if error.is_parse() {
            Unreadable::of_head(&self.beginning, error.is_parse_too_large(), self.framing.most_headers())
        } else if self.shared.phase() == Phase::Head && timed_out() {
            Unreadable::Timeout
        } else {
            return None;
        };
        Some((what, what.about_head(&self.beginning)))
    }

    /// The first bytes of a head are there. Its time begins when the others must be waited for, which most heads
    /// never come to.
    fn begin_head(&mut self) {
        self.shared.enter(Phase::Head);
        self.read.clear();
    }

    /// The answer is made, and the next head is awaited.
    fn rest(&mut self) {
        if self.framing.is_within_head() {
            // Its beginning came with the request before it.
            self.begin_head();
        } else {
            self.shared.enter(Phase::Idle);
            self.idle_since = Instant::now();
            self.shared.place.waits(self.idle_since);
            let rest = self.shared.time_to_rest().min(self.header_timeout).min(self.idle_timeout);
            self.read.set(self.idle_since + rest);
        }
    }

    /// Ready when an idle connection must end.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.read.poll(cx));
            let now = Instant::now();
            let idle = now.duration_since(self.idle_since);
            if idle >= self.idle_timeout {
                return Poll::Ready(());
            }
            // Unless its answer is still on its way.
            self.shared.rests.store(!self.write.is_set(), Relaxed);
            self.read.set(now + (self.idle_timeout - idle));
        }
    }
}

/// After this long an idle connection rests. Waking costs some microseconds, so that one which is used is not put away
/// all the time.
const REST: Duration = Duration::from_millis(250);

/// Up to this many open connections have all of [`REST`].
const AT_EASE: u32 = 64;

impl<T: AsyncRead + AsyncWrite + Unpin> Guarded<T> {
    /// Waits for the first bytes, without any buffer until they come, and keeps them for who reads next. False when
    /// the peer has closed.
    ///
    /// # Errors
    ///
    /// When nothing came in time, or the socket is broken.
    pub(super) async fn wake(&mut self) -> io::Result<bool> {
        if !self.ahead.is_empty() {
            return Ok(true);
        }
        poll_fn(|cx| {
            let mut bytes = [0; 2048];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *self).poll_read(cx, &mut buffer))?;
            self.ahead = Bytes::copy_from_slice(buffer.filled());
            Poll::Ready(Ok(!self.ahead.is_empty()))
        })
        .await
    }

    /// Takes back what was read and not used.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        self.ahead = bytes;
    }

    /// Whether the peer may still be sending when our side is closed: an unread body, the rest of a head that was
    /// refused, a request behind the last one. When the service ends, only an unread body is worth the wait.
    fn may_get_more(&self) -> bool {
        self.shared.unread.load(Relaxed)
            || (!self.shared.is_closing()
                && matches!(self.shared.phase(), Phase::Opened | Phase::Head | Phase::Answer))
    }

    /// A write that makes the peer wait for too long ends the connection.
    fn bound_write<R>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if write.is_pending() {
            let works = self.shared.phase() == Phase::Request;
            if !self.write.is_set() {
                // From the first wait until everything is written: reading it byte by byte does not help, nor
                // does asking for more.
                let now = Instant::now();
                self.write.set(now + self.idle_timeout);
                if !works {
                    self.shared.place.waits(now);
                }
            }
            if works || !self.shared.place.has_to_go() {
                ready!(self.write.poll(cx));
            }
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        write
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| {
            let now = Instant::now();
            let mut deadline = Deadline::default();
            deadline.set(now + LINGER_TIME);
            self.shared.place.waits(now);
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
                Poll::Pending if self.shared.place.has_to_go() => return Poll::Ready(()),
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
        if this.shared.phase() == Phase::Answer {
            // hyper asks for the next head.
            this.rest();
        }
        if !this.ahead.is_empty() {
            let now = this.ahead.split_to(this.ahead.len().min(buffer.remaining()));
            buffer.put_slice(&now);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.socket).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                this.received(buffer.filled().get(before..).unwrap_or_default(), buffer.remaining() > 0);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match this.shared.phase() {
                Phase::Opened | Phase::Head | Phase::Idle if this.shared.place.has_to_go() => {
                    Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
                }
                Phase::Opened | Phase::Head => {
                    if !this.read.is_set() {
                        let now = Instant::now();
                        this.read.set(now + this.header_timeout);
                        this.shared.place.waits(now);
                    }
                    ready!(this.read.poll(cx));
                    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                }
                Phase::Idle => {
                    ready!(this.poll_idle(cx));
                    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                }
                Phase::Request | Phase::Answer => Poll::Pending,
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
        // hyper flushes when it has nothing left to write.
        let flush = Pin::new(&mut self.socket).poll_flush(cx);
        if flush.is_ready() {
            self.write.clear();
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

    #[test]
    fn the_more_connections_there_are_the_sooner_they_rest() {
        let crowd = Crowd::new(10_000);
        let shared = Shared::new(crowd.open().place(), None);
        for (open, time) in [(1, 250), (64, 250), (128, 125), (1_000, 16), (10_000, 1)] {
            let _taken = crowd.take(open);
            assert_eq!(shared.time_to_rest().as_millis(), time, "{open}");
        }
    }

    /// Asking for more does not start the time again, nor does reading a byte now and then. No socket is awaited, so the
    /// clock can stand still.
    #[tokio::test(start_paused = true)]
    async fn the_time_for_reading_answers_ends_only_when_all_is_written() {
        let settings = Settings::default();
        let step = settings.idle_timeout / 4;
        let shared = Arc::new(Shared::new(Crowd::new(8).open().place(), None));
        let (socket, mut peer) = duplex(64);
        let mut guarded = Guarded::new(socket, Arc::clone(&shared), &settings);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut waited = 0;
        let ended = loop {
            shared.request_begins();
            shared.request_ends();
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
            assert!(waited < 10, "the time starts again and again");
            peer.read_u8().await.unwrap();
            advance(step).await;
        };
        assert_eq!((ended.kind(), waited), (io::ErrorKind::TimedOut, 4));
    }

    /// Who has read everything has the whole time again.
    #[tokio::test(start_paused = true)]
    async fn the_time_for_reading_answers_begins_anew_once_all_is_written() {
        let settings = Settings::default();
        let shared = Arc::new(Shared::new(Crowd::new(8).open().place(), None));
        let (socket, mut peer) = duplex(1);
        let mut guarded = Guarded::new(socket, shared, &settings);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..5 {
            assert!(matches!(Pin::new(&mut guarded).poll_write(&mut cx, b"x"), Poll::Ready(Ok(1))));
            assert!(Pin::new(&mut guarded).poll_write(&mut cx, b"x").is_pending());
            advance(settings.idle_timeout / 2).await;
            peer.read_u8().await.unwrap();
            assert!(matches!(Pin::new(&mut guarded).poll_flush(&mut cx), Poll::Ready(Ok(()))));
        }
    }
}
