//! A plain HTTP client for `send`, `healthcheck` and `demo`: one connection, one request, one deadline.
//!
//! It is not the client that forwards deliveries (that is [`crate::upstream`]): it keeps no connections and shows
//! every answer as it came, a redirect too.

use std::{io, pin::pin, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, StatusCode, Version, body::Incoming, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    files,
    net::{
        target::{Address, Target},
        tls::{self, Authorities, NoRoots},
    },
};

/// How much of an answer's body is kept.
const MAX_BODY: usize = 64 << 10;

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) version: Version,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) end: BodyEnd,
}

/// How the body of an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// It is all there.
    Complete,
    /// There was more than is kept.
    Capped,
    /// It broke off, or took too long.
    BrokenOff,
}

/// Why there is no answer. Reads on after "hookgate: ".
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot connect to {to}: {source}")]
    Connect { to: String, source: io::Error },
    #[error("{to} gave no usable answer: {source}{hint}")]
    NoAnswer { to: String, source: hyper::Error, hint: &'static str },
    #[error("{to} did not answer within {limit:?}")]
    Timeout { to: String, limit: Duration },
    #[error("the TLS handshake with {to} failed: {reason}")]
    Tls { to: String, reason: String },
}

/// Sends one request and takes the answer. For https, `trust` stands in for the platform's authorities.
///
/// # Errors
///
/// [`ClientError`], until a status line came. From then on there is an answer, however it ends.
pub(super) async fn exchange(
    target: &Target,
    mut request: Request<Full<Bytes>>,
    limit: Duration,
    trust: Option<&Authorities>,
) -> Result<Answer, ClientError> {
    let deadline = Instant::now() + limit;
    let late = || ClientError::Timeout { to: place(&target.address), limit };
    *request.uri_mut() = target.request.clone();
    if !request.headers().contains_key(HOST) {
        request.headers_mut().insert(HOST, target.host.clone());
    }

    let stream = timeout_at(deadline, connect(&target.address, trust)).await.map_err(|_elapsed| late())??;
    let no_answer = |source| ClientError::NoAnswer {
        to: place(&target.address),
        source,
        hint: match &target.address {
            Address::Tcp { tls: false, .. } => " (if it speaks TLS, the URL has to begin with https://)",
            Address::Tcp { .. } | Address::Unix(_) => "",
        },
    };
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(no_answer)?;

    // The connection moves the bytes; it may end before the answer is read out of its buffers.
    let mut connection = pin!(connection);
    let mut connected = true;
    let mut exchange = pin!(async {
        let response = timeout_at(deadline, sender.send_request(request)).await.map_err(|_elapsed| late())?;
        let (head, body) = response.map_err(no_answer)?.into_parts();
        let (body, end) = read(body, deadline).await;
        Ok(Answer { version: head.version, status: head.status, headers: head.headers, body, end })
    });
    loop {
        tokio::select! {
            answer = &mut exchange => return answer,
            // Its error is the exchange's too.
            _ = &mut connection, if connected => connected = false,
        }
    }
}

async fn read(mut body: Incoming, deadline: Instant) -> (Vec<u8>, BodyEnd) {
    let mut kept = Vec::new();
    loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return (kept, BodyEnd::Complete),
            Ok(Some(Err(_))) | Err(_) => return (kept, BodyEnd::BrokenOff),
        };
        let Ok(bytes) = frame.into_data() else { continue };
        let room = MAX_BODY - kept.len();
        kept.extend(bytes.iter().take(room));
        if bytes.len() > room {
            return (kept, BodyEnd::Capped);
        }
    }
}

async fn connect(address: &Address, trust: Option<&Authorities>) -> Result<Box<dyn Stream>, ClientError> {
    let refused = |source| ClientError::Connect { to: place(address), source };
    match address {
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(refused)?)),
        Address::Tcp { host, port, tls } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(refused)?;
            if !*tls {
                return Ok(Box::new(stream));
            }
            let secured = secure(host, stream, trust).await;
            Ok(Box::new(secured.map_err(|reason| ClientError::Tls { to: place(address), reason })?))
        }
    }
}

/// TLS that trusts these authorities, or without them the platform's.
async fn secure(
    host: &str,
    stream: TcpStream,
    trust: Option<&Authorities>,
) -> Result<TlsStream<TcpStream>, String> {
    let config = match trust {
        Some(trust) => tls::client(trust, None),
        None => {
            let roots = files::within(files::PATIENCE, Authorities::platform).unwrap_or(Err(NoRoots));
            tls::client(&roots.map_err(|error| error.to_string())?, None)
        }
    };
    let config = config.map_err(|error| error.to_string())?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let secured = TlsConnector::from(config).connect(name, stream).await;
    secured.map_err(|error| tls::explain(&error).unwrap_or_else(|| error.to_string()))
}

/// An address for people.
fn place(address: &Address) -> String {
    match address {
        Address::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
        Address::Tcp { host, port, .. } => format!("{host}:{port}"),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// Asks a server that answers with these bytes, then closes; without any it stays silent.
    fn ask(answer: &[u8], limit: Duration) -> Result<Answer, ClientError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::parse(&format!("http://{}/x", listener.local_addr().unwrap())).unwrap();
        let answer = answer.to_vec();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                asked.extend(byte);
            }
            if answer.is_empty() {
                // Until the client has had enough.
                drop(stream.read(&mut [0]));
            }
            drop(stream.write_all(&answer));
            String::from_utf8(asked).unwrap()
        });
        let request = Request::new(Full::new(Bytes::new()));
        let answered = crate::app::runtime().unwrap().block_on(exchange(&target, request, limit, None));
        let asked = server.join().unwrap();
        assert!(asked.starts_with("GET /x HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("Host: 127.0.0.1:"), "{asked}");
        answered
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn answers_are_shown_as_they_came() {
        let answer = ask(b"HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 2\r\n\r\nhi", LONG).unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.body.as_slice(), answer.end),
            (302, &b"hi"[..], BodyEnd::Complete)
        );
        assert_eq!(answer.headers.get("location").unwrap(), "/y");
        let answer = ask(b"HTTP/1.0 200 OK\r\n\r\nuntil the end", LONG).unwrap();
        assert_eq!((answer.version, answer.body.as_slice()), (Version::HTTP_10, &b"until the end"[..]));
    }

    #[test]
    fn a_long_body_is_capped_and_a_broken_one_is_kept() {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
        let whole = ask(&[head.as_bytes(), &vec![b'x'; MAX_BODY + 1]].concat(), LONG).unwrap();
        assert_eq!((whole.body.len(), whole.end), (MAX_BODY, BodyEnd::Capped));
        let broken = ask(&[head.as_bytes(), b"part"].concat(), LONG).unwrap();
        assert_eq!((broken.body.as_slice(), broken.end), (&b"part"[..], BodyEnd::BrokenOff));
    }

    #[test]
    fn what_is_no_answer_is_said() {
        let failed = |answer: &[u8], limit| ask(answer, limit).unwrap_err().to_string();
        assert!(failed(b"garbage\r\n\r\n", LONG).contains("gave no usable answer"));
        assert!(failed(b"", Duration::from_millis(50)).contains("did not answer within 50ms"));
    }
}
