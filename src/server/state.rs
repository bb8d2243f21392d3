//! What the requests of a connection and its socket tell each other.
//!
//! A handler sees who sends, whether the connection can go on behind the request, and how long its body is waited for.
//! The server keeps in it what the connection waits for, what its heads were like, and how it is to end.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
};

use tokio::time::Instant;

use super::crowd::Place;
use crate::net::deadline::Deadline;

/// Who sends: an address, or a unix socket, which has none.
pub type Peer = Option<SocketAddr>;

/// One connection, as its requests and its socket see it.
#[derive(Debug)]
pub struct ConnectionState {
    /// Its place among all connections.
    place: Arc<Place>,
    peer: Peer,
    /// The peer's address, written out once for all lines of the log.
    address: OnceLock<String>,
    progress: Progress,
    heads: Heads,
    ending: Ending,
    /// That of the request: there is one at a time.
    deadline: Mutex<Deadline>,
}

/// How far a connection has come.
#[derive(Debug, Default)]
struct Progress {
    phase: AtomicU8,
    /// Requests that have begun.
    requests: AtomicU64,
    /// Bytes of streamed answers that were taken to be written.
    streamed: AtomicU64,
}

/// What was seen of the raw heads, as far as it came.
#[derive(Debug)]
struct Heads {
    /// The first request whose head can be read in two ways, counted from 1.
    ambiguous: AtomicU64,
    /// The requests that have come as a whole, where not a byte has come behind the last one.
    whole: AtomicU64,
}

/// How the connection is to end.
#[derive(Debug, Default)]
struct Ending {
    /// A request's body was not read to its end.
    unread: AtomicBool,
    /// With the next answer.
    closing: AtomicBool,
    /// Now.
    cut: AtomicBool,
}

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first byte of the first request.
    Opened,
    /// The end of a head.
    Head,
    /// The handler: deadlines are the request's.
    Request,
    /// The answer is being made, and written as far as it is.
    Answer,
    /// The answer is made; the rest of it is being written.
    Answered,
    /// The first byte of the next request.
    Idle,
}

impl Progress {
    fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Opened,
            1 => Phase::Head,
            2 => Phase::Request,
            3 => Phase::Answer,
            4 => Phase::Answered,
            _ => Phase::Idle,
        }
    }

    fn enter(&self, phase: Phase) {
        let number = match phase {
            Phase::Opened => 0,
            Phase::Head => 1,
            Phase::Request => 2,
            Phase::Answer => 3,
            Phase::Answered => 4,
            Phase::Idle => 5,
        };
        self.phase.store(number, Relaxed);
    }
}

/// For handlers.
impl ConnectionState {
    /// Who sends.
    #[must_use]
    pub const fn peer(&self) -> Peer {
        self.peer
    }

    /// The address and port of the sender, where it has them.
    pub fn client_address(&self) -> Option<&str> {
        let peer = self.peer?;
        Some(self.address.get_or_init(|| peer.to_string()))
    }

    /// Not all of the request's body was read, so the connection ends with its answer.
    pub fn leave_unread(&self) {
        self.ending.unread.store(true, Relaxed);
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
    pub fn proves_itself(&self) {
        self.place.proves_itself();
    }

    /// Whether the head of the request that is being served, or one before it, can be read in two ways.
    pub fn is_ambiguous(&self) -> bool {
        self.heads.ambiguous.load(Relaxed) <= self.progress.requests.load(Relaxed)
    }

    /// Whether the body of the request that is being served has come, and not a byte behind it.
    pub fn has_nothing_behind(&self) -> bool {
        self.heads.whole.load(Relaxed) == self.progress.requests.load(Relaxed)
    }

    /// Whether all connections are taken, so that others wait for this one, or this one must give way to one.
    pub fn is_crowded(&self) -> bool {
        self.place.has_to_go() || self.place.crowd().is_full()
    }

    /// Whether the service is ending, so that an answer must say that it is the connection's last.
    pub fn is_closing(&self) -> bool {
        self.ending.closing.load(Relaxed)
    }

    /// Whether the drain's deadline has passed, so that requests must end now.
    pub fn is_cut(&self) -> bool {
        self.ending.cut.load(Relaxed)
    }
}

/// For the server.
impl ConnectionState {
    pub(super) fn new(place: Arc<Place>, peer: Peer) -> Self {
        Self {
            place,
            peer,
            address: OnceLock::new(),
            progress: Progress::default(),
            heads: Heads { ambiguous: AtomicU64::new(u64::MAX), whole: AtomicU64::default() },
            ending: Ending::default(),
            deadline: Mutex::default(),
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn phase(&self) -> Phase {
        self.progress.phase()
    }

    /// The first byte of a head has come.
    pub(super) fn head_begins(&self) {
        self.progress.enter(Phase::Head);
    }

    /// A head is complete; its request is being served.
    pub(super) fn request_begins(&self) {
        self.progress.requests.fetch_add(1, Relaxed);
        self.progress.enter(Phase::Request);
        self.place.works();
    }

    /// The request has an answer, which is being made from now on.
    pub(super) fn answer_begins(&self) {
        self.progress.enter(Phase::Answer);
    }

    /// So many bytes more of an answer were made, and there is room for them.
    pub(super) fn streamed(&self, bytes: usize) {
        self.progress.streamed.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Relaxed);
    }

    /// How many there were so far.
    pub(super) fn streamed_so_far(&self) -> u64 {
        self.progress.streamed.load(Relaxed)
    }

    /// The answer is made.
    pub(super) fn answer_ends(&self) {
        self.progress.enter(Phase::Answered);
    }

    /// The next request is waited for, since then.
    pub(super) fn idles(&self, since: Instant) {
        self.progress.enter(Phase::Idle);
        self.place.waits(since);
    }

    /// What the raw bytes say: the first ambiguous request, and how many have come whole.
    pub(super) fn saw_heads(&self, ambiguous_from: Option<u64>, whole: Option<u64>) {
        self.heads.whole.store(whole.unwrap_or_default(), Relaxed);
        if let Some(request) = ambiguous_from {
            self.heads.ambiguous.store(request, Relaxed);
        }
    }

    /// Whether a body was left unread.
    pub(super) fn has_unread(&self) -> bool {
        self.ending.unread.load(Relaxed)
    }

    /// Makes the next answer the connection's last: see [`Self::is_closing`].
    pub(super) fn close_after_answer(&self) {
        self.ending.closing.store(true, Relaxed);
    }

    /// Ends what is still waiting: see [`Self::is_cut`].
    pub(super) fn cut(&self) {
        self.ending.cut.store(true, Relaxed);
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
