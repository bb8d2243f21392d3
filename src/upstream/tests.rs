//! Connections that are used again, and those that must not be.

use std::{
    io::{Read, Write},
    net::{TcpListener as StdListener, TcpStream as StdStream},
    sync::{Arc, mpsc},
    thread,
};

use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
    time::{advance, pause, resume},
};

use super::*;
use crate::net::tls::{self, Authorities};

fn request() -> OutboundRequest {
    OutboundRequest { head: b"POST / HTTP/1.1\r\nhost: x\r\n\r\n".into(), body: Bytes::new() }
}

/// The clock stands still only while no socket is awaited.
#[tokio::test]
async fn a_busy_connection_is_replaced_after_a_while() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (accepted, mut connections) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            accepted.send(()).unwrap();
            open.spawn(async move {
                while socket.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {
                    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    let upstream = Upstream::new(Target::parse(&url).unwrap(), None, Duration::from_secs(20), 1);
    let request = request();
    let mut opened = Vec::new();
    for _ in 0..5 {
        let reply = upstream.send(0, &request, Instant::now()).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
        opened.push(std::iter::from_fn(|| connections.try_recv().ok()).count());
        pause();
        advance(MAX_AGE / 2 + Duration::from_secs(1)).await;
        resume();
    }
    // Each is used again after half of its time, and no more after the whole.
    assert_eq!(opened, [1, 0, 1, 0, 1]);
}

const REAL: &[u8] = b"HTTP/1.1 503 Real\r\ncontent-length: 0\r\n\r\n";
const POISON: &[u8] = b"HTTP/1.1 200 Poison\r\ncontent-length: 0\r\n\r\n";

/// What a service does with a connection, between one request and the next.
type Deed<S> = fn(&mut S);

fn read_request(stream: &mut impl Read) -> bool {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n") {
        if !stream.read(&mut byte).is_ok_and(|count| count > 0) {
            return false;
        }
        seen.extend(byte);
    }
    true
}

/// A service that answers `503 Real` to each request, does its deed on the connection when it is told to, and says when that is done.
/// It counts its connections from 1 and answers none of a second one before it has heard of it.
struct Service {
    url: String,
    go: mpsc::Sender<()>,
    done: mpsc::Receiver<usize>,
}

impl Service {
    fn start<S: Read + Write + Send + 'static>(
        scheme: &str,
        accept: impl Fn(StdStream) -> S + Send + 'static,
        deed: Deed<S>,
    ) -> Self {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://{}/", listener.local_addr().unwrap());
        let (go, told) = mpsc::channel();
        let (tell, done) = mpsc::channel();
        thread::spawn(move || {
            for number in 1.. {
                let (stream, _) = listener.accept().unwrap();
                // What is written is there, and does not wait for more.
                stream.set_nodelay(true).unwrap();
                let mut stream = accept(stream);
                while read_request(&mut stream) {
                    stream.write_all(REAL).unwrap();
                    stream.flush().unwrap();
                    if told.recv().is_err() {
                        return;
                    }
                    deed(&mut stream);
                    tell.send(number).unwrap();
                }
            }
        });
        Self { url, go, done }
    }

    /// The deed is done, and the runtime, which is on this very thread, has not heard of it.
    fn does_its_deed(&self) -> usize {
        self.go.send(()).unwrap();
        self.done.recv().unwrap()
    }
}

/// Sends twice, with the service's deed in between. On how many connections.
async fn connections(service: &Service, tls: Option<Tls>) -> usize {
    let upstream = Upstream::new(Target::parse(&service.url).unwrap(), tls, Duration::from_secs(20), 1);
    let mut last = 0;
    for _ in 0..2 {
        let reply = upstream.send(0, &request(), Instant::now()).await.unwrap();
        assert_eq!(
            reply.status,
            StatusCode::SERVICE_UNAVAILABLE,
            "an answer that nobody asked for was taken"
        );
        last = service.does_its_deed();
    }
    last
}

/// The system knows at once what the runtime hears of later: the next request must not get what lies there.
#[tokio::test]
async fn a_connection_with_something_in_it_is_never_used_again() {
    let plain = |deed| Service::start("http", |stream: StdStream| stream, deed);
    let cases: [(&str, Deed<StdStream>, usize); 4] = [
        ("silent", |_| {}, 1),
        ("poisoned", |stream| stream.write_all(POISON).unwrap(), 2),
        ("one byte", |stream| stream.write_all(b"H").unwrap(), 2),
        ("closed", |stream| stream.shutdown(std::net::Shutdown::Both).unwrap(), 2),
    ];
    for (what, deed, expected) in cases {
        assert_eq!(connections(&plain(deed), None).await, expected, "{what}");
    }
}

type Secured = StreamOwned<ServerConnection, StdStream>;

/// Writes so many bytes of TLS, and keeps the rest to itself.
fn write_part(stream: &mut Secured, count: usize) {
    let mut bytes = Vec::new();
    stream.conn.write_tls(&mut bytes).unwrap();
    stream.sock.write_all(&bytes[..count.min(bytes.len())]).unwrap();
}

/// New keys and tickets are TLS's own affair. Data, half a record and a close are not.
#[tokio::test]
async fn what_tls_says_for_itself_is_no_answer() {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let client = Tls::try_new(&Authorities::parse(cert.pem().as_bytes()).unwrap(), None).unwrap();
    let server = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            );
        let config = Arc::new(config.unwrap());
        move |stream: StdStream| StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream)
    };
    let both: &[_] = &[&rustls::version::TLS12, &rustls::version::TLS13];
    let newest = &both[1..];
    let cases: [(&str, &[_], Deed<Secured>, usize); 7] = [
        ("silent", both, |_| {}, 1),
        (
            "new keys",
            newest,
            |stream| {
                stream.conn.refresh_traffic_keys().unwrap();
                stream.flush().unwrap();
            },
            1,
        ),
        ("poisoned", both, |stream| stream.write_all(POISON).unwrap(), 2),
        (
            "new keys, then poisoned",
            newest,
            |stream| {
                stream.conn.refresh_traffic_keys().unwrap();
                stream.write_all(POISON).unwrap();
            },
            2,
        ),
        (
            "half a record",
            both,
            |stream| {
                stream.conn.writer().write_all(POISON).unwrap();
                write_part(stream, 20);
            },
            2,
        ),
        (
            "closed by TLS",
            both,
            |stream| {
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            },
            2,
        ),
        ("closed", both, |stream| stream.sock.shutdown(std::net::Shutdown::Both).unwrap(), 2),
    ];
    for (what, versions, deed, expected) in cases {
        for version in versions {
            let service = Service::start("https", server(&[version]), deed);
            assert_eq!(
                connections(&service, Some(client.clone())).await,
                expected,
                "{what} {:?}",
                version.version
            );
        }
    }
}

/// Whether the service has taken it is not known, so it is not sent again.
#[tokio::test]
async fn a_request_is_sent_once() {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (seen, requests) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut answers = [REAL].into_iter();
            while read_request(&mut stream) {
                seen.send(()).unwrap();
                let Some(answer) = answers.next() else { break };
                stream.write_all(answer).unwrap();
            }
        }
    });
    let upstream = Upstream::new(Target::parse(&url).unwrap(), None, Duration::from_secs(20), 1);
    upstream.send(0, &request(), Instant::now()).await.unwrap();
    let error = upstream.send(0, &request(), Instant::now()).await.unwrap_err();
    assert_eq!(error.kind, Failure::BadAnswer);
    assert!(error.to_string().contains("ended a kept connection as the request came"), "{error}");
    assert_eq!(requests.try_iter().count(), 2);
}
