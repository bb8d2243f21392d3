//! The ops endpoints: is it alive, is it ready, what does it count.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
};

use super::metrics::Form;

/// Whether the service should be sent requests. Clones are handles on the same state.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    /// Why the queue takes nothing, if it does not.
    queue: Option<String>,
    /// Destinations that are left alone for now.
    left_alone: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Starting,
    Open,
    Draining,
}

/// What keeps a service from being ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unready {
    /// The listeners are not open yet.
    Starting,
    /// The queue takes nothing, for this reason.
    Queue(String),
    /// It is ending.
    Draining,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting: the listeners are not open yet"),
            Self::Queue(reason) => write!(f, "queue: {reason}"),
            Self::Draining => f.write_str("draining: the service is shutting down"),
        }
    }
}

impl Readiness {
    /// The listeners are open.
    pub fn ready(&self) {
        let mut state = self.lock();
        // A drain that came first stays.
        if state.stage == Stage::Starting {
            state.stage = Stage::Open;
        }
    }

    /// The service is ending. There is no way back.
    pub fn draining(&self) {
        self.lock().stage = Stage::Draining;
    }

    /// The queue takes deliveries, or does not, for this reason.
    pub fn queue(&self, trouble: Option<String>) {
        self.lock().queue = trouble;
    }

    /// A destination is left alone, or not any more. This is told, and makes nobody unready: others are served.
    pub fn left_alone(&self, destination: &str, yes: bool) {
        let mut state = self.lock();
        if yes {
            state.left_alone.insert(destination.to_owned());
        } else {
            state.left_alone.remove(destination);
        }
    }

    /// Whether it is ready.
    ///
    /// # Errors
    ///
    /// What keeps it from being ready.
    pub fn check(&self) -> Result<(), Unready> {
        let state = self.lock();
        match (state.stage, &state.queue) {
            (Stage::Draining, _) => Err(Unready::Draining),
            (Stage::Starting, _) => Err(Unready::Starting),
            (Stage::Open, Some(reason)) => Err(Unready::Queue(reason.clone())),
            (Stage::Open, None) => Ok(()),
        }
    }

    /// Status and text of `/readyz`.
    fn tell(&self) -> (StatusCode, String) {
        let (status, mut text) = match self.check() {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(unready) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {unready}\n")),
        };
        for destination in &self.lock().left_alone {
            writeln!(text, "circuit open: {destination}").expect("writing to a String does not fail");
        }
        (status, text)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers a request to the ops listener. `metrics` writes the metrics when they are asked for, in the form in which they are.
pub fn answer<B>(
    request: &Request<B>,
    readiness: &Readiness,
    metrics: impl FnOnce(Form) -> String,
) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let known = matches!(request.uri().path(), "/healthz" | "/livez" | "/readyz" | "/metrics");
    if known && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, "method not allowed\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" | "/livez" => plain(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" => {
            let (status, text) = readiness.tell();
            plain(status, TEXT, text)
        }
        "/metrics" => {
            let form = Form::asked(request.headers());
            plain(StatusCode::OK, form.media_type(), metrics(form))
        }
        _ => plain(StatusCode::NOT_FOUND, TEXT, "not found: see /healthz, /readyz, /metrics\n".into()),
    }
}

fn plain(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_follows_the_queue_and_only_tells_of_destinations() {
        let readiness = Readiness::default();
        readiness.queue(Some("no NATS".into()));
        assert_eq!(readiness.check(), Err(Unready::Starting));
        readiness.ready();
        assert_eq!(readiness.tell(), (StatusCode::SERVICE_UNAVAILABLE, "not ready: queue: no NATS\n".into()));
        readiness.queue(None);
        assert_eq!(readiness.tell(), (StatusCode::OK, "ready\n".into()));
        readiness.left_alone("esc/app", true);
        readiness.left_alone("esc/app", true);
        assert_eq!(readiness.tell(), (StatusCode::OK, "ready\ncircuit open: esc/app\n".into()));
        readiness.left_alone("esc/app", false);
        assert_eq!(readiness.tell(), (StatusCode::OK, "ready\n".into()));
        readiness.draining();
        readiness.ready();
        assert_eq!(readiness.check(), Err(Unready::Draining));
    }
}
