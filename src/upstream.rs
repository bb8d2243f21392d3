//! The client side: one send to an upstream, under one deadline, its answer capped.
//!
//! It knows addresses, connections and HTTP, and nothing of webhooks. Names are resolved again for each new
//! connection, and no connection is used for long, so that a name that points elsewhere is noticed. Redirects are not followed: a 3xx is not a usable answer.
//!
//! A send puts its request on one connection, once. A pooled connection is used only if the system says that nothing has
//! come on it and that it is not closed; one that still breaks may have brought the request to the upstream, and a
//! `POST` is not repeated on a guess (RFC 9110, 9.2.2).

mod answer;
mod connection;
mod error;

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hyper::{StatusCode, header::HeaderValue};
use tokio::time::Instant;

use connection::{Connection, Fault};
pub use error::{Failure, SendError};

use crate::net::{
    connect::{Connector, Tls},
    target::Target,
};

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
    /// The request is sent once. Where that is not enough, the caller sends it again, and counts.
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
        let mut connection = match self.take_idle(lane, now) {
            Some(connection) => connection,
            None => {
                let connected = self.connector.connect(until, self.timeout).await;
                connected
                    .map(Connection::new)
                    .map_err(|error| SendError::unconnected(&self.target().address, error))?
            }
        };
        match connection.exchange(request, until).await {
            Ok(answer) => Ok(self.done(lane, connection, answer, now)),
            Err(fault) => Err(self.error(&fault, &connection)),
        }
    }

    fn error(&self, fault: &Fault, connection: &Connection) -> SendError {
        let (kind, why) = fault.explain(connection, &self.target().address, self.timeout);
        SendError::new(kind, error::place(&self.target().address, connection.peer()), why)
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
            if connection.age(now) < MAX_AGE && connection.is_quiet() {
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
mod tests;
