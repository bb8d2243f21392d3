//! The ops listener as part of the service.
//!
//! Probes are answered whatever anybody does: it has a thread, limits and deadlines of its own, and connections that say
//! nothing give way to newcomers at once. A liveness probe that waits behind a flood would restart a healthy service.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
};
use tokio::{
    sync::Mutex,
    task::{JoinSet, yield_now},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{lanes::serve, queue::recipients, threads};
use crate::{
    delivery::{dispatch::Dispatch, worker},
    ingress::receive::Gate,
    ops::health::{self, Readiness},
    server::{
        crowd::Crowd,
        drain::Drain,
        handler::Handler,
        limits::ConnectionLimits,
        listener::Listener,
        state::{ConnectionState, Peer},
        unreadable::Unreadable,
    },
};

/// The connections of the ops listener at a time.
const CONNECTIONS: usize = 256;

/// Serves probes and scrapers until the drain begins. A task in `tasks` ends when that is done.
pub(super) fn spawn(
    listener: Listener,
    answers: Ops,
    drain: Drain,
    over: CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    let limits = limits();
    let crowd = Crowd::new(limits.max_connections);
    threads::spawn("ops", serve(listener, None, limits, crowd, answers, drain), over, tasks);
}

/// Tight, since only probes and scrapers ask: they send a short head, at once.
fn limits() -> ConnectionLimits {
    ConnectionLimits {
        max_connections: CONNECTIONS,
        max_header: 8 << 10,
        header_timeout: Duration::from_secs(1),
        ..ConnectionLimits::default()
    }
}

/// Answers on the ops listener.
#[derive(Debug, Clone)]
pub(super) struct Ops {
    readiness: Readiness,
    gate: Gate,
    /// When the queue was counted last.
    counted: Arc<Mutex<Option<Instant>>>,
}

/// A count that is younger is true enough: several scrapers do not make the queue count for each.
const COUNTED: Duration = Duration::from_millis(250);

/// How long a scrape waits for a count. If the store is slower, the gauges are those of the last one.
const COUNTING: Duration = Duration::from_secs(2);

impl Ops {
    pub(super) fn new(readiness: Readiness, gate: Gate) -> Self {
        Self { readiness, gate, counted: Arc::default() }
    }

    /// Has the queue counted for a scrape.
    async fn count_queue(&self) {
        let Dispatch::Queued(queue) = &*self.gate.dispatch else { return };
        let counting = async {
            let mut counted = self.counted.lock().await;
            if counted.is_some_and(|at| at.elapsed() < COUNTED) {
                return;
            }
            if let Ok(stock) = queue.stock().await {
                let recipients = recipients(&self.gate.routes.load());
                worker::set_gauges(&self.gate.metrics, &stock, &recipients);
                *counted = Some(Instant::now());
            }
        };
        drop(timeout(COUNTING, counting).await);
    }
}

impl Handler for Ops {
    type Body = Full<Bytes>;

    async fn handle(
        &self,
        request: Request<Incoming>,
        connection: &Arc<ConnectionState>,
    ) -> Response<Full<Bytes>> {
        // Writing the metrics takes longest. Whoever asks for them again and again in one go waits for all others.
        yield_now().await;
        if request.uri().path() == "/metrics" {
            self.count_queue().await;
        }
        let metrics = |form| self.gate.metrics.text(form, self.gate.limits.budget.held());
        let mut response = health::answer(&request, &self.readiness, metrics);
        if connection.is_crowded() || connection.is_closing() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn connection(&self, _opened: bool) {}

    fn evicted(&self) {}

    fn unreadable(&self, _: Unreadable, _: &str, _: Peer) {}
}
