//! Load over real sockets, for benches that drive a program: senders of signed deliveries, and an upstream.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use hookgate::webhook::{event::Event, secret::Secret, signature::sign};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    task::JoinSet,
};

/// What deliveries are signed with.
pub(crate) const SECRET: &str = "the secret of the benches";

/// The event whose sample is sent.
pub(crate) fn event() -> &'static Event {
    Event::find("environment_revision_created").unwrap()
}

/// Its body, at least `size` bytes long: the rest is a member that nobody reads.
pub(crate) fn body(size: usize) -> String {
    let mut body = event().sample_body();
    if body.len() < size {
        let padding = "x".repeat(size - body.len());
        body = format!("{},\"more\":\"{padding}\"}}", body.trim_end_matches('}'));
    }
    body
}

/// The signature of a body.
pub(crate) fn signature(body: &str) -> String {
    sign(&Secret::try_new(SECRET.into(), false).unwrap(), body.as_bytes())
}

/// A request whose ID is another one each time.
pub(crate) struct Request {
    before: String,
    behind: Vec<u8>,
}

impl Request {
    pub(crate) fn new(kind: &str, signature: Option<&str>, body: &str) -> Self {
        let signature =
            signature.map_or_else(String::new, |is| format!("Pulumi-Webhook-Signature: {is}\r\n"));
        let before = format!(
            "POST /hook HTTP/1.1\r\nHost: hooks.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\
             Content-Type: application/json\r\nPulumi-Webhook-Kind: {kind}\r\n{signature}Content-Length: {}\r\n\
             Pulumi-Webhook-ID: ",
            body.len()
        );
        Self { before, behind: [b"\r\n\r\n", body.as_bytes()].concat() }
    }
}

/// An ID that no other delivery has.
pub(crate) fn id() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("8d001000-1c0e-4d6b-8f5e-{:012x}", NUMBER.fetch_add(1, Relaxed))
}

/// Sends a request and reads its answer: the status, and whether the connection goes on.
pub(crate) async fn ask(
    socket: &mut TcpStream,
    request: &Request,
    buffer: &mut Vec<u8>,
) -> io::Result<([u8; 3], bool)> {
    buffer.clear();
    buffer.extend_from_slice(request.before.as_bytes());
    buffer.extend_from_slice(id().as_bytes());
    buffer.extend_from_slice(&request.behind);
    socket.write_all(buffer).await?;
    buffer.clear();
    loop {
        if socket.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let length = header(&head, "content-length").map_or(0, |text| text.parse().unwrap());
        if buffer.len() < end + 4 + length {
            continue;
        }
        let status = buffer[9..12].try_into().unwrap();
        return Ok((status, header(&head, "connection") != Some("close")));
    }
}

/// The value of a header in a head in lower case.
pub(crate) fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Takes everything and says 200, on a thread of its own. `saw` is given each head, in lower case.
pub(crate) fn upstream(saw: impl Fn(&str) + Clone + Send + 'static) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(answer(socket, saw.clone()));
            }
        });
    });
    address
}

async fn answer(mut socket: TcpStream, saw: impl Fn(&str)) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(128 << 10);
    loop {
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let Some(end) = memchr::memmem::find(&buffer, b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let length = header(&head, "content-length").map_or(0, |text| text.parse().unwrap_or(0));
        if buffer.len() >= end + 4 + length {
            saw(&head);
            buffer.clear();
            socket
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
                .await?;
        }
    }
}

/// The one in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
