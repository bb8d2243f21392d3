//! Accepts connections until the drain begins, each with a permit.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OwnedSemaphorePermit,
    time::sleep,
};
use tokio_util::task::TaskTracker;
use tracing::warn;

#[cfg(target_os = "linux")]
use super::listener::end_handshakes;
use super::{
    connection::Connections,
    crowd::Crowd,
    drain::Drain,
    handler::Handler,
    limits::ConnectionLimits,
    listener::{Listener, is_the_connections_own},
    state::Peer,
    tls::Tls,
};

/// The pause after an accept error that is not one connection's own, such as no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most connections that are taken from the kernel's queue when the drain begins: more than it holds by default.
/// Whoever connects faster than they can be taken does not keep the listener open.
const MOST_WAITING: usize = 8192;

/// Serves connections until the drain begins, then until they are done or cut.
///
/// # Errors
///
/// If the listener cannot be used on this runtime.
pub async fn serve<H: Handler>(
    listener: Listener,
    tls: Option<Tls>,
    limits: ConnectionLimits,
    crowd: Arc<Crowd>,
    handler: H,
    drain: Drain,
) -> io::Result<()> {
    let tasks = TaskTracker::new();
    let connections = Connections { limits, crowd, tls, handler, drain };
    let server = Arc::new(Server { connections, tasks });
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
pub async fn serve_connection<S, H>(socket: S, limits: ConnectionLimits, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let crowd = Crowd::new(limits.max_connections);
    Connections { limits, crowd, tls: None, handler, drain: Drain::default() }.open(socket, None).await;
}

struct Server<H> {
    connections: Connections<H>,
    tasks: TaskTracker,
}

impl<H: Handler> Server<H> {
    /// A permit for one more connection, as soon as there is one.
    async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let Connections { crowd, handler, .. } = &self.connections;
        crowd.admit(|| handler.evicted()).await
    }

    async fn accept<S, F>(self: &Arc<Self>, accept: impl Fn() -> F)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<(S, Peer)>>,
    {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.connections.drain.begun() => return,
                accepted = accept() => accepted,
            };
            match accepted {
                // A permit only once somebody is there: one that waits with its lane would be missing elsewhere.
                // Who finds none is the last that this lane accepts until somebody has given way.
                Ok((socket, peer)) => tokio::select! {
                    biased;
                    permit = self.admit() => {
                        let server = Arc::clone(self);
                        self.tasks.spawn(async move {
                            let _permit = permit;
                            server.connections.open(socket, peer).await;
                        });
                    }
                    () = self.connections.drain.begun() => return self.open_in_turn(socket, peer),
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
                permit = server.admit() => {
                    let _permit = permit;
                    server.connections.open(socket, peer).await;
                }
                () = server.connections.drain.is_cut() => {}
            }
        });
    }
}
