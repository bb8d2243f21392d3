//! One request on a connection of its own: any method, over http, https or a unix socket.
//!
//! Everything has one deadline, and of the answer's body only so much is kept. It keeps no connections, follows no redirects
//! and shows every answer as it came. It is not the client that forwards deliveries: that one is made for their rate.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, StatusCode, Version, body::Incoming, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use super::{
    connect::{ConnectError, Connector, NotDone, Tls},
    target::{Address, Target},
};

/// What an exchange may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the start to the end of the answer.
    pub time: Duration,
    /// How much of an answer's body is kept, in bytes.
    pub answer: usize,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The protocol's version.
    pub version: Version,
    /// The status, a redirect too.
    pub status: StatusCode,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, as much of it as was kept.
    pub body: Vec<u8>,
    /// How the body ended.
    pub end: BodyEnd,
}

/// How the body of an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEnd {
    /// It is all there.
    Complete,
    /// There was more than is kept.
    Capped,
    /// It broke off, or took too long.
    BrokenOff,
}

/// Why there is no answer. Reads on after "hookgate: ".
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection.
    #[error("cannot connect to {to}: {why}")]
    Connect {
        /// Host and port, or the socket.
        to: String,
        /// Why.
        why: String,
    },
    /// The connection ended before a status, or what came is not HTTP.
    #[error("{to} gave no usable answer: {source}{hint}")]
    NoAnswer {
        /// Host and port, or the socket.
        to: String,
        /// What was wrong with it.
        source: hyper::Error,
        /// What it may be.
        hint: &'static str,
    },
    /// No status came in time.
    #[error("{to} did not answer within {limit:?}")]
    Timeout {
        /// Host and port, or the socket.
        to: String,
        /// The time it had.
        limit: Duration,
    },
    /// The TLS handshake failed.
    #[error("the TLS handshake with {to} failed: {reason}")]
    Tls {
        /// Host and port, or the socket.
        to: String,
        /// Why.
        reason: String,
    },
}

/// Sends one request and takes the answer. The target says where to and what for; `tls` is for https.
///
/// # Errors
///
/// [`ClientError`], until a status line came. From then on there is an answer, however it ends.
pub async fn exchange(
    target: &Target,
    tls: Option<Tls>,
    mut request: Request<Full<Bytes>>,
    limits: Limits,
) -> Result<Answer, ClientError> {
    let deadline = Instant::now() + limits.time;
    let late = || ClientError::Timeout { to: place(&target.address), limit: limits.time };
    *request.uri_mut() = target.request.clone();
    if !request.headers().contains_key(HOST) {
        request.headers_mut().insert(HOST, target.host.clone());
    }

    let connector = Connector::new(target.clone(), tls);
    let (socket, _peer) = connector.connect(deadline, limits.time).await.map_err(|error| {
        let to = place(&target.address);
        match error {
            ConnectError { what: NotDone::Connection, why, .. } => ClientError::Connect { to, why },
            ConnectError { what: NotDone::Tls, why, .. } => ClientError::Tls { to, reason: why },
            ConnectError { what: NotDone::InTime, .. } => late(),
        }
    })?;

    let no_answer = |source| ClientError::NoAnswer {
        to: place(&target.address),
        source,
        hint: match &target.address {
            Address::Tcp { tls: false, .. } => " (if it speaks TLS, the URL must begin with https://)",
            Address::Tcp { .. } | Address::Unix(_) => "",
        },
    };
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake::<_, Full<Bytes>>(TokioIo::new(socket))
        .await
        .map_err(no_answer)?;

    // The connection moves the bytes; it may end before the answer is read out of its buffers.
    let mut connection = pin!(connection);
    let mut connected = true;
    let mut exchange = pin!(async {
        let response = timeout_at(deadline, sender.send_request(request)).await.map_err(|_elapsed| late())?;
        let (head, body) = response.map_err(no_answer)?.into_parts();
        let (body, end) = read(body, limits.answer, deadline).await;
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

async fn read(mut body: Incoming, most: usize, deadline: Instant) -> (Vec<u8>, BodyEnd) {
    let mut kept = Vec::new();
    loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return (kept, BodyEnd::Complete),
            Ok(Some(Err(_))) | Err(_) => return (kept, BodyEnd::BrokenOff),
        };
        let Ok(bytes) = frame.into_data() else { continue };
        let room = most.saturating_sub(kept.len());
        kept.extend(bytes.iter().take(room));
        if bytes.len() > room {
            return (kept, BodyEnd::Capped);
        }
    }
}

/// An address for people.
fn place(address: &Address) -> String {
    match address {
        Address::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
        Address::Tcp { host, port, .. } => format!("{host}:{port}"),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use super::*;

    const MAX_BODY: usize = 64 << 10;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

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
        let limits = Limits { time: limit, answer: MAX_BODY };
        let answered = run(exchange(&target, None, request, limits));
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
    fn any_method_is_sent_to_a_unix_socket_too() {
        let folder = std::env::temp_dir().join(format!("hookgate-client-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        let target =
            Target::parse(&format!("unix:{}:/hooks/1?x=y", folder.join("socket").display())).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n{}") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                asked.extend(byte);
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            String::from_utf8(asked).unwrap()
        });
        let request = Request::patch("/")
            .header("authorization", "token x")
            .body(Full::new(Bytes::from_static(b"{}")))
            .unwrap();
        let answer = run(exchange(&target, None, request, Limits { time: LONG, answer: 1 })).unwrap();
        assert_eq!((answer.status.as_u16(), answer.end), (204, BodyEnd::Complete));
        let asked = server.join().unwrap();
        assert!(asked.starts_with("PATCH /hooks/1?x=y HTTP/1.1\r\n"), "{asked}");
        assert!(
            asked.contains("Authorization: token x\r\n") && asked.contains("Host: localhost\r\n"),
            "{asked}"
        );
        std::fs::remove_dir_all(folder).unwrap();
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
