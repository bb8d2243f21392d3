//! Where connections come from: a bound listener, what its connections inherit, and how its queue comes to an end.

#[cfg(target_os = "linux")]
use std::time::Duration;
use std::{fmt, io, net::SocketAddr, path::PathBuf};

#[cfg(target_os = "linux")]
use socket2::SockFilter;
use socket2::SockRef;
#[cfg(target_os = "linux")]
use tokio::time::sleep;
#[cfg(target_os = "linux")]
use tracing::debug;

/// Where a listener is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// IP address and port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound listener. Its clones share one queue of connections, so that every thread can have one.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A unix socket.
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    /// Binds. A unix socket that a dead process left behind is replaced.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                // Answers are written whole; waiting to fill a segment would only delay them. Connections inherit it.
                SockRef::from(&listener).set_tcp_nodelay(true)?;
                Ok(Self::Tcp(listener))
            }
            Address::Unix(path) => {
                use std::os::unix::{fs::FileTypeExt, net::UnixListener, net::UnixStream};
                let is_socket =
                    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
                if is_socket && UnixStream::connect(path).is_err() {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener))
            }
        }
    }

    /// Where it is bound; with port 0 configured, the port that the kernel chose.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                Ok(Address::Unix(address.as_pathname().map(Into::into).unwrap_or_default()))
            }
        }
    }

    /// Another handle on the same listener.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
        }
    }
}

/// Lets the kernel begin no more handshakes, and those that it has begun end, so that the queue, once emptied, stays
/// empty until the listener is closed: closing it over a new connection would reset that. Whoever tries meanwhile tries
/// again after a second, as after any lost packet, and is refused then. Where the kernel does not take the filter, a gap
/// of microseconds is left.
#[cfg(target_os = "linux")]
pub(super) async fn end_handshakes(listener: &tokio::net::TcpListener) {
    /// A classic packet filter over the TCP header: drops what has the flag SYN, and takes everything else.
    const NO_SYN: [SockFilter; 4] = [
        SockFilter::new(0x30, 0, 0, 13),       // load the byte with the flags
        SockFilter::new(0x45, 0, 1, 0x02),     // is SYN among them? If not, skip one
        SockFilter::new(0x06, 0, 0, 0),        // drop
        SockFilter::new(0x06, 0, 0, u32::MAX), // take it whole
    ];
    /// A round trip to whoever stands in front.
    const LAST_HANDSHAKE: Duration = Duration::from_millis(5);

    match SockRef::from(listener).attach_filter(&NO_SYN) {
        Ok(()) => sleep(LAST_HANDSHAKE).await,
        Err(error) => debug!(error = %error, "the kernel takes no filter"),
    }
}

/// Errors of one connection that say nothing about the next one.
pub(super) fn is_the_connections_own(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | NotConnected | InvalidInput
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without it, the second of two small writes waits for the first one's acknowledgement.
    #[test]
    fn connections_inherit_from_the_listener_that_they_do_not_wait_to_fill_a_segment() {
        let listener = Listener::bind(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        let Listener::Tcp(listener) = listener else { panic!("it is TCP") };
        listener.set_nonblocking(false).unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(listener.accept().unwrap().0.nodelay().unwrap());
    }
}
