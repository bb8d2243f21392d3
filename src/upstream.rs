//! The client side: one send to an upstream, under one deadline, its answer capped.
//!
//! It knows addresses, connections and HTTP, and nothing of webhooks. Names are resolved anew for each new
//! connection, and no connection is used for long, so that a name that points elsewhere is noticed. Redirects are not followed: a 3xx is no usable answer.

mod answer;
mod connect;
mod connection;
pub mod target;

use std::{
    error::Error,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hyper::{StatusCode, header::HeaderValue};
use tokio::time::{Instant, timeout_at};

use connect::Connector;
pub use connect::Tls;
use connection::{Connection, Fault};
use target::Target;

use crate::tls;

/// The most of an answer's body that is read, in bytes. The rest is not waited for.
pub const MAX_ANSWER: usize = 64 << 10;

/// Idle connections that a lane keeps. Lanes are few and webhooks are rare: more would only grow stale.
const MAX_IDLE: usize = 256;

/// After this long an idle connection is not used again: whoever stands between may have forgotten it.
const MAX_IDLE_TIME: Duration = Duration::from_secs(60);

/// Older than this, a connection is not used again, however busy it is: its name may point elsewhere by now, and
/// an upstream that is on its way out may keep it open for as long as it is used.
const MAX_AGE: Duration = Duration::from_secs(60);

/// One upstream: where it is, and the connections to it that are open.
#[derive(Debug)]
pub struct Upstream {
    connector: Connector,
    timeout: Duration,
    /// Idle connections, last used last. One lane for each thread that sends: a connection is driven by the thread
    /// that opened it, and is cheapest to use from there.
    lanes: Vec<Mutex<Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A request as it is sent.
pub struct OutboundRequest {
    /// Request line and headers with the empty line behind them, `Content-Length` and `Host` among them. The body may
    /// follow: what is one piece is sent by a cheaper call than what is two.
    pub head: Vec<u8>,
    /// What of the body is not behind the head.
    pub body: Bytes,
}

/// What is in it is not for the log: headers may be secret.
impl fmt::Debug for OutboundRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboundRequest").finish_non_exhaustive()
    }
}

/// What an upstream answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status; never 1xx or 3xx.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: Option<HeaderValue>,
    /// `Retry-After`.
    pub retry_after: Option<HeaderValue>,
    /// The body: its first [`MAX_ANSWER`] bytes, or as much of it as came before it broke off.
    pub body: Bytes,
}

/// Why there is no usable answer. The text is for the log, not for the sender.
#[derive(Debug, Clone)]
pub struct SendError {
    /// What kind of failure it is.
    pub kind: Failure,
    detail: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection: the name does not resolve, nobody listens, TLS does not come about.
    Unreachable,
    /// Connected, but closed, reset or garbage before a status, or a 1xx for one.
    BadAnswer,
    /// A 3xx: redirects are not followed.
    Redirected(StatusCode),
    /// No status in time.
    Timeout,
}

impl Failure {
    /// Whether it speaks of the moment: a redirect would be the answer the next time too.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        match self {
            Self::Unreachable | Self::BadAnswer | Self::Timeout => true,
            Self::Redirected(_) => false,
        }
    }

    /// The status, where there was one.
    #[must_use]
    pub const fn status(self) -> Option<StatusCode> {
        match self {
            Self::Redirected(status) => Some(status),
            Self::Unreachable | Self::BadAnswer | Self::Timeout => None,
        }
    }
}

impl SendError {
    fn new(kind: Failure, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    fn unreachable(error: &dyn Error) -> Self {
        Self::new(Failure::Unreachable, chain(error))
    }

    fn tls(error: &(dyn Error + 'static)) -> Self {
        let detail = tls::explain(error).unwrap_or_else(|| chain(error));
        Self::new(Failure::Unreachable, format!("TLS with it does not come about: {detail}"))
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Failure::Unreachable => "the upstream cannot be reached",
            Failure::BadAnswer | Failure::Redirected(_) => "the upstream gave no usable answer",
            Failure::Timeout => "the upstream did not answer in time",
        };
        write!(f, "{kind}: {}", self.detail)
    }
}

impl Error for SendError {}

/// An error and what caused it, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += ": ";
        text += &cause.to_string();
        source = cause.source();
    }
    text
}

impl Upstream {
    /// An upstream without a connection yet. `timeout` runs from the start of a send to the answer's status;
    /// `lanes` is the number of threads that send.
    #[must_use]
    pub fn new(target: Target, tls: Option<Tls>, timeout: Duration, lanes: usize) -> Self {
        let lanes = (0..lanes.max(1)).map(|_| Mutex::default()).collect();
        Self { connector: Connector::new(target, tls), timeout, lanes }
    }

    /// Whether it was made for this target and this timeout.
    #[must_use]
    pub fn is_for(&self, target: &Target, timeout: Duration) -> bool {
        self.target() == target && self.timeout == timeout
    }

    /// Where it is.
    #[must_use]
    pub const fn target(&self) -> &Target {
        self.connector.target()
    }

    /// Sends a request at `now` and waits for the answer.
    ///
    /// A pooled connection may turn out to have been closed by the upstream meanwhile. If nothing of an answer came
    /// on it, the request is sent once more, on a new connection.
    ///
    /// # Errors
    ///
    /// [`SendError`] when there is no usable status in time. Once the status is there it decides: a body that
    /// breaks off or stalls is returned as far as it came.
    pub async fn send(
        &self,
        lane: usize,
        request: &OutboundRequest,
        now: Instant,
    ) -> Result<Reply, SendError> {
        let until = now + self.timeout;
        if let Some(mut connection) = self.take_idle(lane, now) {
            match connection.exchange(request, until).await {
                Ok(answer) => return Ok(self.done(lane, connection, answer, now)),
                Err(fault @ Fault::TimedOut) => return Err(self.error(&fault)),
                Err(fault) if connection.has_answered() => return Err(self.error(&fault)),
                Err(_) => {}
            }
        }
        let connecting = timeout_at(until, self.connector.connect(until)).await;
        let mut connection = connecting.map_err(|_elapsed| self.error(&Fault::TimedOut))??;
        match connection.exchange(request, until).await {
            Ok(answer) => Ok(self.done(lane, connection, answer, now)),
            // In TLS 1.3 the client's side is done before the upstream has looked at the client's certificate.
            Err(Fault::Io(error)) if !connection.has_answered() && tls::is_refusal(&error) => {
                Err(SendError::tls(&error))
            }
            Err(fault) => Err(self.error(&fault)),
        }
    }

    fn error(&self, fault: &Fault) -> SendError {
        match fault {
            Fault::TimedOut => {
                SendError::new(Failure::Timeout, format!("no status after {:?}", self.timeout))
            }
            Fault::Unusable(status) if status.is_redirection() => {
                SendError::new(Failure::Redirected(*status), fault.to_string())
            }
            fault => SendError::new(Failure::BadAnswer, chain(fault)),
        }
    }

    /// An idle connection that is still open: one of the own lane if there is one, since a connection of another
    /// lane is driven by another thread.
    fn take_idle(&self, own: usize, now: Instant) -> Option<Connection> {
        let others = (0..self.lanes.len()).filter(|lane| *lane != own);
        std::iter::once(own).chain(others).find_map(|lane| self.take_idle_of(lane, now))
    }

    /// The idle connection of a lane that was used last, if it is still open.
    fn take_idle_of(&self, lane: usize, now: Instant) -> Option<Connection> {
        let mut idle = self.lane(lane)?.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Idle { mut connection, since }) = idle.pop() {
            if now.duration_since(since) > MAX_IDLE_TIME {
                // Those below it are older still.
                idle.clear();
                return None;
            }
            if connection.age(now) < MAX_AGE && connection.is_open() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection that can be used again; it counts as idle since its last request began.
    fn done(
        &self,
        lane: usize,
        connection: Connection,
        (reply, again): (Reply, bool),
        since: Instant,
    ) -> Reply {
        if let Some(lane) = self.lane(lane).filter(|_| again) {
            let mut idle = lane.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < MAX_IDLE {
                idle.push(Idle { connection, since });
            }
        }
        reply
    }

    fn lane(&self, lane: usize) -> Option<&Mutex<Vec<Idle>>> {
        self.lanes.get(lane)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinSet,
        time::{advance, pause, resume},
    };

    use super::*;

    /// The clock stands still only while no socket is awaited.
    #[tokio::test]
    async fn a_busy_connection_is_replaced_after_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (accepted, mut connections) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                accepted.send(()).unwrap();
                open.spawn(async move {
                    while socket.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {
                        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    }
                });
            }
        });
        let upstream = Upstream::new(Target::parse(&url).unwrap(), None, Duration::from_secs(20), 1);
        let request =
            OutboundRequest { head: b"POST / HTTP/1.1\r\nhost: x\r\n\r\n".into(), body: Bytes::new() };
        let mut opened = Vec::new();
        for _ in 0..5 {
            let reply = upstream.send(0, &request, Instant::now()).await.unwrap();
            assert_eq!(reply.status, StatusCode::OK);
            opened.push(std::iter::from_fn(|| connections.try_recv().ok()).count());
            pause();
            advance(MAX_AGE / 2 + Duration::from_secs(1)).await;
            resume();
        }
        // Each is used again after half of its time, and no more after the whole.
        assert_eq!(opened, [1, 0, 1, 0, 1]);
    }
}
