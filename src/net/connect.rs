//! Opens connections to one target: name, TCP or unix socket, TLS.
//!
//! A failed one says why in words for the operator; what follows from it is the caller's.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    socket::{Below, Socket},
    target::{Address, Target},
    tls::{self, Authorities, Identity},
};

/// Whom to trust, and who hookgate is, for `https` targets.
#[derive(Clone)]
pub struct Tls(TlsConnector);

impl Tls {
    /// Trusts these authorities, and presents this identity where the other side asks for one.
    ///
    /// # Errors
    ///
    /// If the provider does not fit, which no configuration can bring about.
    pub fn try_new(authorities: &Authorities, identity: Option<&Identity>) -> Result<Self, rustls::Error> {
        Ok(Self(TlsConnector::from(tls::client(authorities, identity)?)))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

/// An open connection: what it goes over, and the address it goes to if it has one.
pub type Connected = (Box<dyn Socket>, Option<SocketAddr>);

/// Why there is no connection.
#[derive(Debug, Clone)]
pub struct ConnectError {
    /// What was not done.
    pub what: NotDone,
    /// The address that was reached, where it is known.
    pub peer: Option<SocketAddr>,
    /// Why, in words for the operator.
    pub why: String,
}

/// What opening a connection came to grief on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotDone {
    /// The name does not resolve, or nobody listens.
    Connection,
    /// The TLS handshake failed.
    Tls,
    /// The time was over.
    InTime,
}

/// Opens connections to one target.
#[derive(Debug)]
pub struct Connector {
    target: Target,
    tls: Option<Tls>,
    names: Names,
}

impl Connector {
    /// For this target; `tls` is for `https`.
    #[must_use]
    pub fn new(target: Target, tls: Option<Tls>) -> Self {
        Self { target, tls, names: Names::default() }
    }

    /// Where its connections go.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// Opens a connection, until the deadline, which is `limit` after the start of what it is for.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub async fn connect(&self, deadline: Instant, limit: Duration) -> Result<Connected, ConnectError> {
        let mut way = Way::default();
        let (what, why) = match timeout_at(deadline, self.open(deadline, &mut way)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err((what, why))) => (what, why),
            Err(_elapsed) => (NotDone::InTime, way.took_longer_than(limit)),
        };
        Err(ConnectError { what, peer: way.peer, why })
    }

    async fn open(&self, deadline: Instant, way: &mut Way) -> Result<Connected, (NotDone, String)> {
        let refused = |why| (NotDone::Connection, why);
        match &self.target.address {
            Address::Unix(path) => {
                let socket = UnixStream::connect(path).await.map_err(|error| refused(error.to_string()))?;
                Ok((Box::new(socket), None))
            }
            Address::Tcp { host, port, tls } => {
                let (socket, peer) = tcp(&self.names, host, *port, deadline, way).await.map_err(refused)?;
                way.peer = Some(peer);
                match &self.tls {
                    Some(Tls(connector)) if *tls => {
                        let name = ServerName::try_from(host.clone())
                            .map_err(|_invalid| refused("its name cannot be that of a certificate".into()))?;
                        way.step = "the TLS handshake was not done";
                        let socket = connector.connect(name, Below::new(socket)).await;
                        let socket = socket.map_err(|error| (NotDone::Tls, tls::in_words(&error)))?;
                        Ok((Box::new(socket), Some(peer)))
                    }
                    None if *tls => Err(refused("TLS is not set up".into())),
                    _ => Ok((Box::new(socket), Some(peer))),
                }
            }
        }
    }
}

/// How far a connection has come, for the log.
#[derive(Debug)]
struct Way {
    /// What was not done yet.
    step: &'static str,
    /// Addresses that were tried in vain, and why.
    tried: Vec<(SocketAddr, String)>,
    peer: Option<SocketAddr>,
}

impl Default for Way {
    fn default() -> Self {
        Self { step: "there was no connection", tried: Vec::new(), peer: None }
    }
}

impl Way {
    fn took_longer_than(&self, limit: Duration) -> String {
        let Self { step, tried, .. } = self;
        let tried = if tried.is_empty() { String::new() } else { format!("; tried {}", enough_of(tried)) };
        format!("{step} within {limit:?}{tried}")
    }
}

/// What was tried, but not without end: a name may have many addresses.
fn enough_of(tried: &[(SocketAddr, String)]) -> String {
    const ENOUGH: usize = 4;
    let mut texts: Vec<_> =
        tried.iter().take(ENOUGH).map(|(address, why)| format!("{address} ({why})")).collect();
    if tried.len() > ENOUGH {
        texts.push(format!("and {} more", tried.len() - ENOUGH));
    }
    texts.join(", ")
}

/// How long an address may take at most while there is another one to try. One that swallows packets would otherwise
/// use up the whole time of an attempt.
const PATIENCE: Duration = Duration::from_secs(2);

/// Resolves the name, and takes the first of its addresses that answers. The caller ends it at the deadline.
async fn tcp(
    names: &Names,
    host: &str,
    port: u16,
    deadline: Instant,
    way: &mut Way,
) -> Result<(TcpStream, SocketAddr), String> {
    way.step = "its name was not resolved";
    let addresses = names.resolve(host, port).await.map_err(|error| {
        let error = error.strip_prefix("failed to lookup address information: ").unwrap_or(&error);
        format!("its name cannot be resolved: {error}")
    })?;
    way.step = "there was no connection";
    let connected = first_that_answers(&addresses, deadline, &mut way.tried).await;
    connected.ok_or_else(|| match &*way.tried {
        [] => "its name has no address".to_owned(),
        // Where the URL says the address, once is enough.
        [(_, why)] if host.parse::<IpAddr>().is_ok() => why.clone(),
        tried => format!("tried {}", enough_of(tried)),
    })
}

/// What a name stood for, or why that could not be found out, and when.
type Found = (Instant, Result<Vec<SocketAddr>, String>);

/// Resolves a destination's name, one look-up at a time: nobody can break off one that hangs in the resolver, and it takes a
/// thread for as long. Those who wait for it take what it finds.
#[derive(Debug, Default)]
struct Names(Arc<Mutex<Option<Found>>>);

impl Names {
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![(address, port).into()]);
        }
        let asked = Instant::now();
        let mut last = Arc::clone(&self.0).lock_owned().await;
        match &*last {
            Some((at, found)) if *at >= asked => found.clone(),
            _ => {
                let host = host.to_owned();
                // The turn is over when the thread is free again, whoever still waits.
                let look_up = spawn_blocking(move || {
                    let found = (host.as_str(), port).to_socket_addrs();
                    let found = found.map(Iterator::collect).map_err(|error| error.to_string());
                    *last = Some((Instant::now(), found.clone()));
                    found
                });
                look_up.await.map_err(|error| error.to_string())?
            }
        }
    }
}

/// What there is to say of an address that lets its time pass.
const NO_ANSWER: &str = "no answer";

async fn first_that_answers(
    addresses: &[SocketAddr],
    deadline: Instant,
    tried: &mut Vec<(SocketAddr, String)>,
) -> Option<(TcpStream, SocketAddr)> {
    let mut untried = addresses.iter();
    while let Some(address) = untried.next() {
        let connecting = TcpStream::connect(address);
        let connected = match u32::try_from(untried.len()).unwrap_or(u32::MAX) {
            0 => {
                // If it is the deadline that ends this, it was still tried.
                tried.push((*address, NO_ANSWER.to_owned()));
                let connected = connecting.await;
                tried.pop();
                connected
            }
            others => {
                // Those behind it get their share of the time that is left.
                let left = deadline.saturating_duration_since(Instant::now());
                timeout(PATIENCE.min(left / others.saturating_add(1)), connecting)
                    .await
                    .unwrap_or_else(|_elapsed| Err(io::Error::new(io::ErrorKind::TimedOut, NO_ANSWER)))
            }
        };
        // Requests are written whole; waiting to fill a segment would only delay them.
        match connected.and_then(|socket| socket.set_nodelay(true).map(|()| socket)) {
            Ok(socket) => return Some((socket, *address)),
            Err(error) => tried.push((*address, error.to_string())),
        }
    }
    None
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
        let mut tried = Vec::new();
        let connecting = first_that_answers(&addresses, deadline, &mut tried);
        let (socket, address) = timeout(Duration::from_secs(3), connecting).await.expect("in time").unwrap();
        assert_eq!((socket.peer_addr().unwrap(), address), (live, live));
        let dead = (dead, NO_ANSWER.to_owned());
        assert_eq!(tried, [dead.clone(), dead]);
    }
}
