//! Opens connections to an upstream: name, TCP or unix socket, TLS.

use std::{io, time::Duration};

use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout,
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

    /// Opens a connection. The caller bounds the time.
    pub(super) async fn connect(&self) -> Result<Connection, SendError> {
        match &self.target.address {
            Address::Unix(path) => {
                let socket =
                    UnixStream::connect(path).await.map_err(|error| SendError::unreachable(&error))?;
                Ok(Connection::new(socket))
            }
            Address::Tcp { host, port, tls } => {
                let socket = tcp(host, *port).await.map_err(|error| SendError::unreachable(&error))?;
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

/// How long an address may take while there is another one to try. One that swallows packets would otherwise use up
/// the whole time of an attempt.
const PATIENCE: Duration = Duration::from_secs(2);

/// Resolves the name, and takes the first of its addresses that answers. The caller bounds the whole.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut addresses = lookup_host((host, port)).await?.peekable();
    while let Some(address) = addresses.next() {
        let connecting = TcpStream::connect(address);
        let connected = if addresses.peek().is_some() {
            timeout(PATIENCE, connecting).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
        } else {
            connecting.await
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
