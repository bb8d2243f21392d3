//! The demo's upstream: takes whatever comes, and reports it.

use std::{convert::Infallible, io};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc::UnboundedSender, task::JoinSet};

use crate::webhook::headers;

/// A request that reached the upstream.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) id: String,
    /// `Hookgate-Event`.
    pub(super) event: String,
    pub(super) body: Vec<u8>,
}

/// Serves until it is dropped. What is received is reported before it is answered.
pub(super) async fn serve(listener: TcpListener, report: UnboundedSender<Received>) -> io::Error {
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => return error,
        };
        let report = report.clone();
        let answer = service_fn(move |request| {
            let report = report.clone();
            async move { Ok::<_, Infallible>(answer(request, &report).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
        // A connection's error is its peer's business, which is hookgate here.
        connections.spawn(async move { connection.await.unwrap_or(()) });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(request: Request<Incoming>, report: &UnboundedSender<Received>) -> Response<Full<Bytes>> {
    let (head, mut incoming) = request.into_parts();
    let mut body = Vec::new();
    // hookgate lets in no more than `max_body`.
    while let Some(Ok(frame)) = incoming.frame().await {
        body.extend(frame.data_ref().into_iter().flatten());
    }
    let received = Received {
        id: text(&head.headers, HeaderName::from_static(headers::ID)),
        event: text(&head.headers, HeaderName::from_static("hookgate-event")),
        body,
    };
    // The other end is gone when the demo ends.
    report.send(received).unwrap_or(());
    let mut response = Response::new(Full::new(Bytes::from_static(b"{\"received\":true}\n")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(headers: &HeaderMap, name: HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}
