//! The accept loop: permits, deadlines, drain. Knows no webhooks.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

#[cfg(target_os = "linux")]
use super::listener::end_handshakes;
use super::{
    connection::{Guarded, Shared},
    crowd::{Crowd, Place},
    listener::{Address, Listener, is_the_connections_own},
    tls::{Tls, explain_sender},
    unreadable::Unreadable,
};
use crate::ingress::TrustedProxies;

/// `[server]`: listener and limits. The defaults are those of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub listen: Address,
    /// The permissions of the unix socket.
    pub listen_mode: u32,
    /// Whose `X-Forwarded-For` is believed, for the log.
    pub trusted_proxies: TrustedProxies,
    /// The longest body, in bytes.
    pub max_body: usize,
    /// The longest head, in bytes.
    pub max_header: usize,
    /// Connections at a time; more wait in the kernel's queue.
    pub max_connections: usize,
    /// Bodies being held, all requests together, in bytes.
    pub max_inflight_bytes: usize,
    /// From the first byte of a head, or from the connect, to its end.
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// Between two requests of a connection, and for a peer that does not read its answer.
    pub idle_timeout: Duration,
    /// From the signal to the end.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Address::Tcp(SocketAddr::from(([0, 0, 0, 0], 8080))),
            listen_mode: 0o660,
            trusted_proxies: TrustedProxies::default(),
            max_body: 1 << 20,
            max_header: 16 << 10,
            max_connections: 1024,
            max_inflight_bytes: 64 << 20,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(25),
        }
    }
}

/// Both ends of a drain: it begins, and at its deadline what is left is cut.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    begun: CancellationToken,
    /// Whether it has: the token's own answer is behind a lock.
    has_begun: Arc<AtomicBool>,
    cut: CancellationToken,
}

impl Drain {
    /// Stops accepting and lets what is in flight finish.
    pub fn begin(&self) {
        self.has_begun.store(true, Release);
        self.begun.cancel();
    }

    /// Ready once it has begun. For one task only, and cheap where that is woken often for other reasons: what wakes it
    /// is asked for once.
    async fn begun(&self) {
        let mut begun = pin!(self.begun.cancelled());
        let mut waiting = false;
        poll_fn(|cx| {
            if waiting && !self.has_begun() {
                return Poll::Pending;
            }
            waiting = true;
            begun.as_mut().poll(cx)
        })
        .await;
    }

    /// Ends what is left.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Whether it has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Acquire)
    }
}

/// How long an idle connection is kept open for one more request when the drain begins: closing it at once would
/// fail a request that its sender is just writing.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// After the cut, how long answers must get out.
const FAREWELL: Duration = Duration::from_millis(500);

/// The pause after an accept error that is not one connection's own, such as no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most connections that are taken from the kernel's queue when the drain begins: more than it holds by default.
/// Whoever connects faster than they can be taken does not keep the listener open.
const MOST_WAITING: usize = 8192;

/// Who sends: an address, or a unix socket, which has none.
pub type Peer = Option<SocketAddr>;

/// What answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Answers one request of a connection.
    fn handle(
        &self,
        request: Request<Incoming>,
        connection: &Arc<Shared>,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;

    /// A connection was opened (`true`) or closed.
    fn connection(&self, opened: bool);

    /// A connection was asked to give its place to a newcomer.
    fn evicted(&self);

    /// Something came that could not be read as a request; `about` says what, and what to do about it.
    fn unreadable(&self, what: Unreadable, about: &str, peer: Peer);
}

/// Serves connections until the drain begins, then until they are done or cut.
///
/// # Errors
///
/// If the listener cannot be used on this runtime.
pub async fn serve<H: Handler>(
    listener: Listener,
    tls: Option<Tls>,
    settings: &Settings,
    crowd: Arc<Crowd>,
    handler: H,
    drain: Drain,
) -> io::Result<()> {
    let tasks = TaskTracker::new();
    let server = Arc::new(Server { settings: settings.clone(), crowd, tls, handler, drain, tasks });
    match listener {
        Listener::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            server
                .accept(|| async {
                    let (socket, peer) = listener.accept().await?;
                    Ok((socket, Some(peer)))
                })
                .await;
            #[cfg(target_os = "linux")]
            end_handshakes(&listener).await;
            let listener = listener.into_std()?;
            server.accept_waiting(|| {
                let (socket, peer) = listener.accept()?;
                socket.set_nonblocking(true)?;
                Ok((tokio::net::TcpStream::from_std(socket)?, Some(peer)))
            });
        }
        Listener::Unix(listener) => {
            let path = listener.local_addr()?.as_pathname().map(ToOwned::to_owned);
            let listener = tokio::net::UnixListener::from_std(listener)?;
            server.accept(|| async { Ok((listener.accept().await?.0, None)) }).await;
            if let Some(path) = path {
                // Nobody finds it any more. Gone already when another thread was first.
                drop(std::fs::remove_file(path));
            }
            let listener = listener.into_std()?;
            server.accept_waiting(|| {
                let socket = listener.accept()?.0;
                socket.set_nonblocking(true)?;
                Ok((tokio::net::UnixStream::from_std(socket)?, None))
            });
        }
    }
    server.tasks.close();
    server.tasks.wait().await;
    Ok(())
}

/// Serves one connection that is open already, in the clear, until it ends. For what brings its own connections:
/// fuzzing and measurements.
pub async fn serve_connection<S, H>(socket: S, settings: &Settings, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let (drain, tasks) = (Drain::default(), TaskTracker::new());
    let crowd = Crowd::new(settings.max_connections);
    Server { settings: settings.clone(), crowd, tls: None, handler, drain, tasks }.open(socket, None).await;
}

struct Server<H> {
    settings: Settings,
    crowd: Arc<Crowd>,
    tls: Option<Tls>,
    handler: H,
    drain: Drain,
    tasks: TaskTracker,
}

impl<H: Handler> Server<H> {
    async fn accept<S, F>(self: &Arc<Self>, accept: impl Fn() -> F)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<(S, Peer)>>,
    {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.drain.begun() => return,
                accepted = accept() => accepted,
            };
            match accepted {
                // A permit only once somebody is there: one that waits with its lane would be missing elsewhere.
                // Who finds none is the last that this lane accepts until somebody has given way.
                Ok((socket, peer)) => tokio::select! {
                    biased;
                    permit = self.crowd.admit(|| self.handler.evicted()) => {
                        let server = Arc::clone(self);
                        self.tasks.spawn(async move {
                            let _permit = permit;
                            server.open(socket, peer).await;
                        });
                    }
                    () = self.drain.begun() => return self.open_in_turn(socket, peer),
                },
                Err(error) if is_the_connections_own(&error) => {}
                Err(error) => {
                    warn!(error = %error, "cannot accept a connection, pausing");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes what is waiting in the kernel's queue when the drain begins: closing the listener would reset it, and
    /// its senders connected in good faith. Asks the kernel itself, since the runtime may not have heard of the last
    /// ones yet. Who comes without a permit waits for one.
    fn accept_waiting<S>(self: &Arc<Self>, accept: impl Fn() -> io::Result<(S, Peer)>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        for _ in 0..MOST_WAITING {
            match accept() {
                Ok((socket, peer)) => self.open_in_turn(socket, peer),
                Err(error) if is_the_connections_own(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!(error = %error, "cannot accept the connections that are still waiting");
                    return;
                }
            }
        }
    }

    /// Serves a connection once there is a permit for it.
    fn open_in_turn<S>(self: &Arc<Self>, socket: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                permit = server.crowd.admit(|| server.handler.evicted()) => {
                    let _permit = permit;
                    server.open(socket, peer).await;
                }
                () = server.drain.cut.cancelled() => {}
            }
        });
    }

    async fn open<S>(&self, socket: S, peer: Peer)
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
                    Box::pin(timeout(self.settings.header_timeout, tls.acceptor().accept(socket)));
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
            () = self.drain.cut.cancelled() => {}
            () = sleep(LAST_REQUEST) => {}
        }
    }

    async fn connection<S>(&self, socket: S, peer: Peer, place: Arc<Place>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::new(Shared::new(place, peer));
        let mut socket = Guarded::new(socket, Arc::clone(&shared), &self.settings);
        loop {
            // hyper keeps two buffers for each connection; most connections are silent most of the time.
            let awake = tokio::select! {
                biased;
                awake = socket.wake() => awake,
                () = self.drain.begun() => Ok(true),
            };
            match awake {
                Ok(true) => {}
                // TLS says goodbye.
                Ok(false) => return drop(socket.shutdown().await),
                Err(_) => return,
            }
            match self.serve_until_rest(socket, &shared).await {
                Some(resting) => socket = resting,
                None => return,
            }
        }
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

    /// Serves a connection until it ends, or rests.
    async fn serve_until_rest<S>(&self, socket: Guarded<S>, shared: &Arc<Shared>) -> Option<Guarded<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        shared.rests_no_more();
        let service = service_fn(|request| {
            shared.request_begins();
            async move {
                let response = self.handler.handle(request, shared).await;
                shared.request_ends();
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = Box::new(
            http1::Builder::new()
                .half_close(true)
                .title_case_headers(true)
                // Answers are short, and one piece is sent by a cheaper call than several.
                .writev(false)
                .max_header_size(self.settings.max_header)
                .max_buf_size(self.settings.max_header.max(READ_BUFFER))
                .serve_connection(TokioIo::new(socket), service),
        );
        let resting = poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if shared.rests() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        tokio::select! {
            biased;
            ended = resting => {
                let parts = connection.into_parts();
                let mut socket = parts.io.into_inner();
                match ended {
                    None => {
                        socket.put_back(parts.read_buf);
                        return Some(socket);
                    }
                    // Other ends are of no use: the requests were answered and logged.
                    Some(Ok(())) => {}
                    Some(Err(error)) => self.cannot_read(socket, &error, shared.peer()).await,
                }
                return None;
            }
            () = self.drain.begun() => {}
        }
        // A request that is on its way now is still served, and told that it is the connection's last.
        shared.close_after_answer();
        tokio::select! {
            biased;
            _ = &mut *connection => return None,
            () = self.drain.cut.cancelled() => {}
            () = sleep(LAST_REQUEST) => {}
        }
        Pin::new(&mut *connection).graceful_shutdown();
        tokio::select! {
            biased;
            _ = &mut *connection => return None,
            () = self.drain.cut.cancelled() => {}
        }
        shared.cut();
        drop(timeout(FAREWELL, connection).await);
        None
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::{
        io::{AsyncReadExt, duplex},
        time::advance,
    };

    use super::*;

    /// Says 200, and keeps what it sees of the connection.
    #[derive(Clone, Default)]
    struct Ok200(Arc<Mutex<Option<Arc<Shared>>>>);

    impl Handler for Ok200 {
        async fn handle(&self, _: Request<Incoming>, shared: &Arc<Shared>) -> Response<Full<Bytes>> {
            *self.0.lock().unwrap() = Some(Arc::clone(shared));
            Response::new(Full::default())
        }

        fn connection(&self, _: bool) {}

        fn evicted(&self) {}

        fn unreadable(&self, _: Unreadable, _: &str, _: Peer) {}
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_rests_serves_again_and_ends_in_time() {
        let handler = Ok200::default();
        let (mut ours, theirs) = duplex(1024);
        let settings = Settings { idle_timeout: Duration::from_secs(20), ..Settings::default() };
        let tasks = TaskTracker::new();
        let served = handler.clone();
        tasks.spawn(async move { serve_connection(theirs, &settings, served).await });
        let mut answer = vec![0; 1024];
        for pause in [0, 200, 300, 10_000, 19_000] {
            advance(Duration::from_millis(pause)).await;
            tokio::task::yield_now().await;
            let rested = handler.0.lock().unwrap().as_ref().is_some_and(|shared| shared.rests());
            assert_eq!(rested, pause > 250, "after {pause} ms");
            // In two pieces: waking is not all of it.
            ours.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
            tokio::task::yield_now().await;
            ours.write_all(b"st: x\r\n\r\n").await.unwrap();
            let length = ours.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK\r\n"), "after {pause} ms");
        }
        advance(Duration::from_secs(21)).await;
        assert_eq!(ours.read(&mut answer).await.unwrap(), 0);
        tasks.close();
        tasks.wait().await;
    }
}
