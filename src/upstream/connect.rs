//! Opens connections to an upstream: name, TCP or unix socket, TLS.

use std::{io, net::SocketAddr, time::Duration};

use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    Failure, SendError,
    connection::Connection,
    target::{Address, Target},
};
use crate::tls::{self, Authorities, Identity};

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
                Ok(Connection::new(socket))
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
                        Ok(Connection::new(socket))
                    }
                    None if *tls => Err(SendError::new(Failure::Unreachable, "TLS is not set up")),
                    _ => Ok(Connection::new(socket)),
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
