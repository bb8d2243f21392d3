//! Opens connections to an upstream: name, TCP or unix socket, TLS, HTTP.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream, lookup_host},
    task::AbortHandle,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    Failure, SendError,
    target::{Address, Target},
};
use crate::tls::{self, Authorities, Identity};

/// The longest head of an answer, in bytes.
const MAX_ANSWER_HEAD: usize = 64 << 10;

/// Whom to trust, and who hookgate is, for `https` upstreams.
#[derive(Clone)]
pub struct Tls(TlsConnector);

impl Tls {
    /// Trusts these authorities, and presents this identity where the upstream asks for one.
    ///
    /// # Errors
    ///
    /// If the provider does not fit, which no configuration can bring about.
    pub fn try_new(authorities: &Authorities, identity: Option<&Identity>) -> Result<Self, rustls::Error> {
        Ok(Self(TlsConnector::from(tls::client(authorities, identity)?)))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls(..)")
    }
}

#[derive(Debug)]
pub(super) struct Connector {
    target: Target,
    tls: Option<Tls>,
}

impl Connector {
    pub(super) const fn new(target: Target, tls: Option<Tls>) -> Self {
        Self { target, tls }
    }

    pub(super) const fn target(&self) -> &Target {
        &self.target
    }

    /// Opens a connection. The caller ends it at the deadline.
    pub(super) async fn connect(&self, deadline: Instant) -> Result<Connection, SendError> {
        match &self.target.address {
            Address::Unix(path) => {
                let socket =
                    UnixStream::connect(path).await.map_err(|error| SendError::unreachable(&error))?;
                Connection::open(socket).await
            }
            Address::Tcp { host, port, tls } => {
                let socket =
                    tcp(host, *port, deadline).await.map_err(|error| SendError::unreachable(&error))?;
                match &self.tls {
                    Some(Tls(connector)) if *tls => {
                        let name = ServerName::try_from(host.clone())
                            .map_err(|error| SendError::unreachable(&error))?;
                        let socket =
                            connector.connect(name, socket).await.map_err(|error| SendError::tls(&error))?;
                        Connection::open(socket).await
                    }
                    None if *tls => Err(SendError::new(Failure::Unreachable, "TLS is not set up")),
                    _ => Connection::open(socket).await,
                }
            }
        }
    }
}

/// How long an address may take at most while there is another one to try. One that swallows packets would otherwise
/// use up the whole time of an attempt.
const PATIENCE: Duration = Duration::from_secs(2);

/// Resolves the name, and takes the first of its addresses that answers. The caller ends it at the deadline.
async fn tcp(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    first_that_answers(&addresses, deadline).await
}

async fn first_that_answers(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut untried = addresses.iter();
    while let Some(address) = untried.next() {
        let connecting = TcpStream::connect(address);
        let connected = match u32::try_from(untried.len()).unwrap_or(u32::MAX) {
            0 => connecting.await,
            others => {
                // Those behind it get their share of the time that is left.
                let left = deadline.saturating_duration_since(Instant::now());
                timeout(PATIENCE.min(left / others.saturating_add(1)), connecting)
                    .await
                    .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
            }
        };
        match connected {
            Ok(socket) => {
                // Requests are written whole; waiting to fill a segment would only delay them.
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A connection on which one request at a time can be sent. Closed on drop.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    answered: Arc<AtomicBool>,
    driver: AbortHandle,
    opened: Instant,
}

impl Connection {
    async fn open<S>(socket: S) -> Result<Self, SendError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let answered = Arc::new(AtomicBool::new(false));
        let socket = Watched { socket, answered: Arc::clone(&answered) };
        let (sender, connection) = http1::Builder::new()
            .max_header_size(MAX_ANSWER_HEAD)
            .max_buf_size(MAX_ANSWER_HEAD)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| SendError::unreachable(&error))?;
        // Owned by this connection: aborted when it is dropped.
        #[expect(clippy::disallowed_methods, reason = "the connection owns the task by its abort handle")]
        let driver = tokio::spawn(connection).abort_handle();
        Ok(Self { sender, answered, driver, opened: Instant::now() })
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.answered.store(false, Relaxed);
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// Whether anything came from the upstream since the last request was sent.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// How long ago it was opened.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Notes when something came from the upstream.
struct Watched<S> {
    socket: S,
    answered: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.answered.store(true, Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    use super::*;

    /// A listener that answers nobody any more: its queue of one is full, and the kernel drops whoever else knocks.
    fn deaf() -> (SocketAddr, Vec<Socket>) {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut sockets = vec![listener];
        for _ in 0..4 {
            let knocking = socket();
            knocking.set_nonblocking(true).unwrap();
            drop(knocking.connect(&address));
            sockets.push(knocking);
        }
        (address.as_socket().unwrap(), sockets)
    }

    /// Without patience the kernel tries for minutes.
    #[tokio::test]
    async fn a_dead_address_leaves_time_for_the_others() {
        let (dead, _sockets) = deaf();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        let deadline = Instant::now() + Duration::from_secs(3);
        let addresses = [dead, dead, live];
        let connecting = first_that_answers(&addresses, deadline);
        let socket = timeout(Duration::from_secs(3), connecting).await.expect("in time").unwrap();
        assert_eq!(socket.peer_addr().unwrap(), live);
    }
}
