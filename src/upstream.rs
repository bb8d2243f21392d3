//! The client side: one send to an upstream, under one deadline, its answer capped.
//!
//! It knows addresses, connections and HTTP, and nothing of webhooks. Names are resolved anew for each new
//! connection, and no connection is used for long, so that a name that points elsewhere is noticed. Redirects are not followed: a 3xx is no usable answer.

mod connect;
pub mod target;

use std::{
    error::Error,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Incoming},
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use tokio::time::{Instant, timeout_at};

pub use connect::Tls;
use connect::{Connection, Connector};
use target::Target;

use crate::tls;

/// The most of an answer's body that is read, in bytes. The rest is not waited for.
pub const MAX_ANSWER: usize = 64 << 10;

/// Idle connections that a lane keeps. Lanes are few and webhooks are rare: more would only grow stale.
const MAX_IDLE: usize = 64;

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

    /// Sends the request that `make` makes and waits for the answer.
    ///
    /// A pooled connection may turn out to have been closed by the upstream meanwhile. If nothing of an answer came
    /// on it, the request is made and sent once more, on a new connection.
    ///
    /// # Errors
    ///
    /// [`SendError`] when there is no usable status in time. Once the status is there it decides: a body that
    /// breaks off or stalls is returned as far as it came.
    pub async fn send(
        &self,
        lane: usize,
        make: impl Fn() -> Request<Full<Bytes>>,
    ) -> Result<Reply, SendError> {
        let deadline = Instant::now() + self.timeout;
        let answer =
            timeout_at(deadline, self.answer(lane, deadline, make)).await.map_err(|_elapsed| {
                SendError::new(Failure::Timeout, format!("no status after {:?}", self.timeout))
            })??;
        let (response, connection) = answer;
        if response.status().is_informational() || response.status().is_redirection() {
            let status = response.status();
            let kind = if status.is_redirection() { Failure::Redirected(status) } else { Failure::BadAnswer };
            return Err(SendError::new(kind, format!("it answered {status}")));
        }
        let (head, mut body) = response.into_parts();
        let (bytes, complete) = read_body(&mut body, deadline).await;
        if complete {
            self.give_back(lane, connection);
        }
        Ok(Reply {
            status: head.status,
            content_type: head.headers.get(CONTENT_TYPE).cloned(),
            retry_after: head.headers.get(RETRY_AFTER).cloned(),
            body: bytes,
        })
    }

    async fn answer(
        &self,
        lane: usize,
        deadline: Instant,
        make: impl Fn() -> Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Connection), SendError> {
        if let Some(mut connection) = self.take_idle(lane) {
            match connection.send(make()).await {
                Ok(response) => return Ok((response, connection)),
                Err(error) if connection.has_answered() => return Err(bad_answer(&error)),
                Err(_) => {}
            }
        }
        let mut connection = self.connector.connect(deadline).await?;
        match connection.send(make()).await {
            Ok(response) => Ok((response, connection)),
            // In TLS 1.3 the client's side is done before the upstream has looked at the client's certificate.
            Err(error) if !connection.has_answered() && tls::is_refusal(&error) => {
                Err(SendError::tls(&error))
            }
            Err(error) => Err(bad_answer(&error)),
        }
    }

    /// An idle connection that is still open: one of the own lane if there is one, since a connection of another
    /// lane is driven by another thread.
    fn take_idle(&self, own: usize) -> Option<Connection> {
        let others = (0..self.lanes.len()).filter(|lane| *lane != own);
        std::iter::once(own).chain(others).find_map(|lane| self.take_idle_of(lane))
    }

    /// The idle connection of a lane that was used last, if it is still open.
    fn take_idle_of(&self, lane: usize) -> Option<Connection> {
        let mut idle = self.lane(lane)?.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Idle { connection, since }) = idle.pop() {
            if since.elapsed() > MAX_IDLE_TIME {
                // Those below it are older still.
                idle.clear();
                return None;
            }
            if connection.is_open() && connection.age() < MAX_AGE {
                return Some(connection);
            }
        }
        None
    }

    fn give_back(&self, lane: usize, connection: Connection) {
        let Some(lane) = self.lane(lane) else { return };
        let mut idle = lane.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_open() && idle.len() < MAX_IDLE {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    fn lane(&self, lane: usize) -> Option<&Mutex<Vec<Idle>>> {
        self.lanes.get(lane)
    }
}

fn bad_answer(error: &hyper::Error) -> SendError {
    SendError::new(Failure::BadAnswer, chain(error))
}

/// The body as far as it came until the deadline, at most [`MAX_ANSWER`] bytes, and whether that is all of it.
async fn read_body(body: &mut Incoming, deadline: Instant) -> (Bytes, bool) {
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Ok(frame) = timeout_at(deadline, body.frame()).await {
        let data = match frame {
            None => return (if whole.is_empty() { first } else { whole.freeze() }, true),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(_trailers) => continue,
            },
            Some(Err(_)) => break,
        };
        let room = MAX_ANSWER.saturating_sub(first.len().saturating_add(whole.len()));
        let enough = data.len() > room;
        let data = data.slice(..data.len().min(room));
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            if whole.is_empty() {
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&data);
        }
        if enough {
            break;
        }
        if body.is_end_stream() {
            return (if whole.is_empty() { first } else { whole.freeze() }, true);
        }
    }
    (if whole.is_empty() { first } else { whole.freeze() }, false)
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
        let mut opened = Vec::new();
        for _ in 0..5 {
            let reply = upstream.send(0, || Request::new(Full::default())).await.unwrap();
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
