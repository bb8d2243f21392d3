//! Where connections come from: a bound listener, what its connections inherit, and how its queue comes to an end.

#[cfg(target_os = "linux")]
use std::time::Duration;
use std::{
    fmt,
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
#[cfg(target_os = "linux")]
use socket2::{SockFilter, SockRef};
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
    /// Binds. A unix socket that a dead process left behind is replaced, and has the permissions `mode` before anybody
    /// can connect. As many connections wait as the system allows.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn bind(address: &Address, mode: u32) -> io::Result<Self> {
        /// More than any system allows, which takes its own limit then.
        const LONGEST_QUEUE: i32 = i32::MAX;

        match address {
            Address::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
                // Connections of the process before may be around for a minute.
                socket.set_reuse_address(true)?;
                socket.bind(&(*address).into())?;
                // Answers are written whole; waiting to fill a segment would only delay them. Connections inherit it.
                socket.set_tcp_nodelay(true)?;
                socket.set_nonblocking(true)?;
                socket.listen(LONGEST_QUEUE)?;
                Ok(Self::Tcp(socket.into()))
            }
            Address::Unix(path) => {
                clear(path)?;
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                socket.bind(&SockAddr::unix(path)?)?;
                // Until it listens, nobody can connect, whatever the umask lets the file's mode be.
                fs::set_permissions(path, Permissions::from_mode(mode))?;
                socket.set_nonblocking(true)?;
                socket.listen(LONGEST_QUEUE)?;
                Ok(Self::Unix(socket.into()))
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

/// Removes the socket that a dead process left behind at a path. Anything else there stays, and is an error where it is in
/// the way.
fn clear(path: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is something else at this path, which is not a socket: remove it, or choose another path",
        ));
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One whose queue is full would let a connect wait.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        // Nobody has it open. Whatever else went wrong says nothing about that.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
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
    use std::os::unix::net::UnixListener;

    use super::*;

    fn tcp() -> std::net::TcpListener {
        let listener = Listener::bind(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))), 0).unwrap();
        let Listener::Tcp(listener) = listener else { panic!("it is TCP") };
        listener
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hookgate-listener-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    /// Without it, the second of two small writes waits for the first one's acknowledgement.
    #[test]
    fn connections_inherit_from_the_listener_that_they_do_not_wait_to_fill_a_segment() {
        let listener = tcp();
        listener.set_nonblocking(false).unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(listener.accept().unwrap().0.nodelay().unwrap());
    }

    /// The standard library's own queue is 128 long.
    #[test]
    fn as_many_connections_wait_as_the_system_allows() {
        let allowed: usize =
            fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
        let many = allowed.min(400);
        assert!(many > 129, "this system allows {allowed}, which tells nothing");
        let listener = tcp();
        let address = listener.local_addr().unwrap();
        let connect = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(20));
        let waiting: Result<Vec<_>, _> = (0..many).map(connect).collect();
        assert_eq!(waiting.unwrap().len(), many);

        let folder = Folder::new("queue");
        let path = folder.0.join("socket");
        let _listener = Listener::bind(&Address::Unix(path.clone()), 0o600).unwrap();
        let connect = |_| {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&SockAddr::unix(&path).unwrap()).map(|()| socket)
        };
        let waiting: Result<Vec<_>, _> = (0..many).map(connect).collect();
        assert_eq!(waiting.unwrap().len(), many);
    }

    #[test]
    fn a_unix_socket_has_the_mode_that_it_is_given() {
        let folder = Folder::new("mode");
        for mode in [0o660, 0o600, 0o666, 0o777, 0o620] {
            let path = folder.0.join(format!("{mode:o}"));
            let _listener = Listener::bind(&Address::Unix(path.clone()), mode).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn only_the_socket_of_the_dead_is_replaced() {
        let folder = Folder::new("dead");
        let bind = |name: &str| Listener::bind(&Address::Unix(folder.0.join(name)), 0o660);
        drop(UnixListener::bind(folder.0.join("dead")).unwrap());
        assert!(bind("dead").is_ok());
        let _alive = UnixListener::bind(folder.0.join("alive")).unwrap();
        assert_eq!(bind("alive").unwrap_err().kind(), io::ErrorKind::AddrInUse);
        fs::write(folder.0.join("file"), "content").unwrap();
        std::os::unix::fs::symlink(folder.0.join("file"), folder.0.join("link")).unwrap();
        for name in ["file", "link"] {
            let error = bind(name).unwrap_err();
            assert!(error.to_string().contains("not a socket"), "{error}");
        }
        assert_eq!(fs::read_to_string(folder.0.join("file")).unwrap(), "content");
    }
}
