//! HTTP/1.1 as bytes: sockets, heads and bodies, read the same way for the client and the upstream.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use socket2::SockRef;

use super::{PATIENCE, tls::Secured};

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// Reads `127.0.0.1:80` or `unix:/path`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => Some(Self::Unix(path.into())),
            None => text.parse().ok().map(Self::Tcp),
        }
    }

    /// The URL of a path there, as a config writes it.
    pub(crate) fn url(&self, path: &str) -> String {
        match self {
            Self::Tcp(address) => format!("http://{address}{path}"),
            Self::Unix(socket) => format!("unix:{}:{path}", socket.display()),
        }
    }

    pub(crate) fn connect(&self) -> io::Result<Socket> {
        let socket = match self {
            Self::Tcp(address) => Socket::Tcp(TcpStream::connect_timeout(address, PATIENCE)?),
            Self::Unix(path) => Socket::Unix(UnixStream::connect(path)?),
        };
        socket.prepare()?;
        Ok(socket)
    }
}

/// A stream socket of either family, or one that speaks TLS.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Secured),
}

impl Socket {
    /// Every read and write has a limit.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        self.set_read_timeout(PATIENCE)?;
        match self {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(PATIENCE))
            }
            Self::Unix(stream) => stream.set_write_timeout(Some(PATIENCE)),
            Self::Tls(_) => Ok(()),
        }
    }

    pub(crate) fn set_read_timeout(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
            Self::Tls(stream) => stream.set_read_timeout(limit),
        }
    }

    /// Its end is then a reset.
    pub(crate) fn reset_on_drop(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream).set_linger(Some(Duration::ZERO)),
            Self::Unix(_) | Self::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tls(stream) => stream.shutdown(how),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// First line and headers, in their order and spelling. Bytes beyond ASCII become the characters of the
/// same number, so nothing is lost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) first_line: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header, compared without case; panics where it comes twice.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(seen, _)| seen.eq_ignore_ascii_case(name));
        let first = values.next();
        assert!(values.next().is_none(), "header {name} comes twice: {self:?}");
        first.map(|(_, value)| value.as_str())
    }

    /// The names of all headers, in lower case, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.sort();
        names
    }
}

/// Reads one head; `None` where the other side closed instead of sending one.
pub(crate) fn read_head(reader: &mut BufReader<Socket>) -> io::Result<Option<Head>> {
    let mut head = Head::default();
    let mut first = true;
    loop {
        let mut line = Vec::new();
        match reader.read_until(b'\n', &mut line) {
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(_) if first && line.is_empty() => return Ok(None),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if first && line.is_empty() && is_closed(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        let line: String = line.iter().map(|byte| char::from(*byte)).collect();
        let line = line.strip_suffix("\r\n").expect("a line ends with CR and LF");
        if first {
            line.clone_into(&mut head.first_line);
            first = false;
        } else if line.is_empty() {
            return Ok(Some(head));
        } else {
            let (name, value) = line.split_once(':').expect("a header has a colon");
            head.headers.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }
}

/// A body as far as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    /// False where the other side closed before the announced end.
    pub(crate) complete: bool,
    pub(crate) trailers: Vec<String>,
}

/// Reads the body that the head announces; one without a length ends with the connection where
/// `to_the_end` says so, and is empty elsewhere.
pub(crate) fn read_body(reader: &mut BufReader<Socket>, head: &Head, to_the_end: bool) -> io::Result<Body> {
    let mut body = Body { complete: true, ..Body::default() };
    if head.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Ok(size) = u64::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16) else {
                body.complete = false;
                return Ok(body);
            };
            body.complete &= read_up_to(reader, size, &mut body.bytes)?;
            if size == 0 {
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line)?;
                    if line.trim().is_empty() {
                        return Ok(body);
                    }
                    body.trailers.push(line);
                }
            }
            body.complete &= read_up_to(reader, 2, &mut Vec::new())?;
            if !body.complete {
                return Ok(body);
            }
        }
    } else if let Some(length) = head.header("content-length") {
        let length = length.parse().expect("Content-Length is a number");
        body.complete = read_up_to(reader, length, &mut body.bytes)?;
    } else if to_the_end {
        body.complete = read_up_to(reader, u64::MAX, &mut body.bytes)? || body.complete;
    }
    Ok(body)
}

/// Reads so many bytes; false where the other side closed before.
fn read_up_to(reader: &mut BufReader<Socket>, length: u64, into: &mut Vec<u8>) -> io::Result<bool> {
    let before = into.len();
    match reader.by_ref().take(length).read_to_end(into) {
        Ok(_) => {}
        Err(error) if is_closed(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(u64::try_from(into.len() - before) == Ok(length))
}

/// Whether the error says that the other side is gone.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

/// Whether the error says that nothing came in time.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
