//! Serves one connection, from its TLS handshake to its end.

use std::{convert::Infallible, future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{sleep, timeout},
};
use tracing::debug;

use super::{
    answering::Answering,
    crowd::{Crowd, Place},
    drain::Drain,
    guarded::Guarded,
    handler::Handler,
    limits::ConnectionLimits,
    state::{ConnectionState, Peer},
    tls::{Tls, explain_sender},
    unreadable::Unreadable,
};

/// How long an idle connection is kept open for one more request when the drain begins: closing it at once would
/// fail a request that its sender is just writing.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// After the cut, how long answers must get out.
const FAREWELL: Duration = Duration::from_millis(500);

/// What every connection of a listener is served with.
pub(super) struct Connections<H> {
    pub(super) limits: ConnectionLimits,
    pub(super) crowd: Arc<Crowd>,
    pub(super) tls: Option<Tls>,
    pub(super) handler: H,
    pub(super) drain: Drain,
}

impl<H: Handler> Connections<H> {
    /// Serves a connection that is open, until it ends.
    pub(super) async fn open<S>(&self, socket: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _counted = Counted::new(&self.handler);
        let open = self.crowd.open();
        let place = open.place();
        poll_fn(|cx| {
            place.wake_by(cx);
            Poll::Ready(())
        })
        .await;
        match &self.tls {
            None => self.connection(socket, peer, place).await,
            Some(tls) => {
                // In a box: connections without TLS need no room for it.
                let mut handshake =
                    Box::pin(timeout(self.limits.header_timeout, tls.acceptor().accept(socket)));
                let shaken = poll_fn(|cx| match handshake.as_mut().poll(cx) {
                    Poll::Ready(shaken) => Poll::Ready(Some(shaken)),
                    Poll::Pending if place.has_to_go() => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                });
                let shaken = tokio::select! {
                    biased;
                    shaken = shaken => shaken,
                    () = self.last_request() => return debug!("the drain ended a TLS handshake"),
                };
                let Some(shaken) = shaken else { return debug!("a TLS handshake gave way to a newcomer") };
                match shaken {
                    Ok(Ok(socket)) => Box::pin(self.connection(socket, peer, place)).await,
                    Ok(Err(error)) => {
                        let about = format!("the TLS handshake failed: {}", explain_sender(&error));
                        self.handler.unreadable(Unreadable::Tls, &about, peer);
                    }
                    Err(_elapsed) => {
                        let about = "a TLS handshake that was not complete within `header_timeout`";
                        self.handler.unreadable(Unreadable::Timeout, about, peer);
                    }
                }
            }
        }
    }

    /// Waits until the drain has begun and no further request is waited for.
    async fn last_request(&self) {
        self.drain.begun().await;
        tokio::select! {
            () = self.drain.is_cut() => {}
            () = sleep(LAST_REQUEST) => {}
        }
    }

    async fn connection<S>(&self, socket: S, peer: Peer, place: Arc<Place>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let state = &Arc::new(ConnectionState::new(place, peer));
        let socket = Guarded::new(socket, Arc::clone(state), &self.limits);
        let service = service_fn(|request| {
            state.request_begins();
            async move {
                let response = self.handler.handle(request, state).await;
                Ok::<_, Infallible>(response.map(|body| Answering::new(body, Arc::clone(state))))
            }
        });
        // In a box: hyper gives the socket back only as it takes itself apart.
        let mut connection = Box::new(
            http1::Builder::new()
                .half_close(true)
                .title_case_headers(true)
                // Answers are short, and one piece is sent by a cheaper call than several.
                .writev(false)
                .max_header_size(self.limits.max_header)
                .max_buf_size(self.limits.max_header.max(READ_BUFFER))
                .serve_connection(TokioIo::new(socket), service),
        );
        tokio::select! {
            biased;
            ended = &mut *connection => {
                // Other ends are of no use: the requests were answered and logged.
                if let Err(error) = ended {
                    self.cannot_read(connection.into_parts().io.into_inner(), &error, peer).await;
                }
                return;
            }
            () = self.drain.begun() => {}
        }
        // A request that is on its way now is still served, and told that it is the connection's last.
        state.close_after_answer();
        tokio::select! {
            biased;
            _ = &mut *connection => return,
            () = self.drain.is_cut() => {}
            () = sleep(LAST_REQUEST) => {}
        }
        Pin::new(&mut *connection).graceful_shutdown();
        tokio::select! {
            biased;
            _ = &mut *connection => return,
            () = self.drain.is_cut() => {}
        }
        state.cut();
        drop(timeout(FAREWELL, connection).await);
    }

    /// Tells of what could not be read as a request.
    async fn cannot_read<S>(&self, mut socket: Guarded<S>, error: &hyper::Error, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some((what, about)) = socket.unreadable(error) else { return };
        self.handler.unreadable(what, &about, peer);
        if what == Unreadable::Http2 {
            let farewell = async {
                socket.write_all(BAD_REQUEST).await?;
                socket.shutdown().await
            };
            drop(timeout(FAREWELL, farewell).await);
        }
    }
}

/// The answer to HTTP/2, which hyper ends without one.
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// The most that is read of a body at once, in bytes.
const READ_BUFFER: usize = 16 << 10;

/// Counts a connection while it is open.
struct Counted<'h, H: Handler>(&'h H);

impl<'h, H: Handler> Counted<'h, H> {
    fn new(handler: &'h H) -> Self {
        handler.connection(true);
        Self(handler)
    }
}

impl<H: Handler> Drop for Counted<'_, H> {
    fn drop(&mut self) {
        self.0.connection(false);
    }
}
