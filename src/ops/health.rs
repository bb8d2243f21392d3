//! The ops endpoints: is it alive, is it ready, what does it count.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
};

/// Whether the service should be sent requests. Clones are handles on the same state.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicU8>);

/// What keeps a service from being ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// The listeners are not open yet.
    Starting,
    /// It is ending.
    Draining,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting: the listeners are not open yet",
            Self::Draining => "draining: the service is ending",
        })
    }
}

impl Readiness {
    /// The listeners are open.
    pub fn ready(&self) {
        // A drain that came first stays.
        let _unless_draining = self.0.compare_exchange(0, 1, SeqCst, SeqCst);
    }

    /// The service is ending. There is no way back.
    pub fn draining(&self) {
        self.0.store(2, SeqCst);
    }

    /// Whether it is ready.
    ///
    /// # Errors
    ///
    /// What keeps it from being ready.
    pub fn check(&self) -> Result<(), Unready> {
        match self.0.load(SeqCst) {
            0 => Err(Unready::Starting),
            1 => Ok(()),
            _ => Err(Unready::Draining),
        }
    }
}

/// Answers a request to the ops listener. `metrics` writes the metrics when they are asked for.
pub fn answer<B>(
    request: &Request<B>,
    readiness: &Readiness,
    metrics: impl FnOnce() -> String,
) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let known = matches!(request.uri().path(), "/healthz" | "/livez" | "/readyz" | "/metrics");
    if known && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, "method not allowed\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" | "/livez" => plain(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" => match readiness.check() {
            Ok(()) => plain(StatusCode::OK, TEXT, "ready\n".into()),
            Err(unready) => plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {unready}\n")),
        },
        "/metrics" => plain(StatusCode::OK, OPEN_METRICS, metrics()),
        _ => plain(StatusCode::NOT_FOUND, TEXT, "not found: see /healthz, /readyz, /metrics\n".into()),
    }
}

fn plain(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
