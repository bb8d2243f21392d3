//! The path of a request as a whole: the input is what a sender writes on one connection.
//!
//! Promise: whatever is sent, nothing panics, every answer names a known outcome, and what reaches the upstream is a
//! request of the allowed headers whose body carries the signature of the webhook's secret, which is computed anew
//! here. As many requests reach the upstream as were answered as forwarded.
//!
//! A fuzzer cannot make signatures, so 64 times `@` in the input stand for the right one: it is put there before the
//! bytes are sent. How the bytes are cut follows from their number.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hookgate::{
    delivery::{
        dedupe::{Memory, Settings as Dedupe},
        destination::{self, Destination, Format},
        dispatch::{Direct, Dispatch},
        queue::Policy,
    },
    ingress::{
        Budget,
        receive::{Gate, Limits},
        rejection::Outcome,
        route::{Routes, Webhook},
        settings::Settings,
    },
    net::target::Target,
    ops::metrics::{Metrics, NO_WEBHOOK},
    server::accept::serve_connection,
    upstream,
    webhook::{
        filter::{Events, Filter, Globs, KindCheck},
        secret::Secret,
        signature::{Key, Verifier},
    },
};
use hyper::header::{HeaderMap, HeaderValue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    task::{JoinSet, yield_now},
};

use super::mac::hmac_sha256;

/// What stands for the right signature.
pub const SIGN_HERE: &[u8] = &[b'@'; 64];

/// The webhooks: name, path, secret. The second has two secrets, of which this is the second, and a narrow filter.
const WEBHOOKS: [(&str, &str, &str); 2] = [
    ("open", "/open", "fuzz-secret-of-the-open-one"),
    ("narrow", "/narrow", "fuzz-secret-of-the-narrow-one"),
];
/// Signs nothing here, and is tried first.
const OTHER_SECRET: &str = "fuzz-secret-that-signs-nothing";

/// The headers that may reach the upstream.
const ALLOWED: [&str; 14] = [
    "host",
    "content-type",
    "content-length",
    "user-agent",
    "traceparent",
    "pulumi-webhook-id",
    "pulumi-webhook-kind",
    "pulumi-webhook-signature",
    "hookgate-webhook",
    "hookgate-event",
    "hookgate-kind-verified",
    "hookgate-attempt",
    "authorization",
    "accept",
];

thread_local! {
    static BENCH: Bench = Bench::new();
}

/// Judges one input.
pub fn run(bytes: &[u8]) {
    forwarded(bytes);
}

/// Judges one input, and says how many of its requests reached the upstream.
pub fn forwarded(bytes: &[u8]) -> usize {
    BENCH.with(|bench| bench.judge(bytes))
}

/// A gate with an upstream behind it, used for one connection after another.
struct Bench {
    runtime: Runtime,
    gate: Gate,
    settings: Settings,
    upstream: Arc<Upstream>,
    _accepting: JoinSet<()>,
}

impl Bench {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _entered = runtime.enter();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/in", listener.local_addr().expect("it is bound"));
        listener.set_nonblocking(true).expect("a listener can do that");
        let upstream = Arc::new(Upstream::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(
            Arc::clone(&upstream).serve(TcpListener::from_std(listener).expect("inside of the runtime")),
        );
        let settings = Settings { max_body: 64 << 10, max_inflight_bytes: 64 << 10, ..Settings::default() };
        let gate = gate(&settings, &Target::parse(&url).expect("it is a URL"));
        Self { gate, settings, upstream, _accepting: accepting, runtime }
    }

    fn judge(&self, bytes: &[u8]) -> usize {
        let bytes = signed(bytes);
        let mut gate = self.gate.clone();
        // What one input leaves behind must not matter to the next one.
        gate.dispatch = Arc::new(Dispatch::Direct(Direct::new(Memory::new(Dedupe::default()))));
        let answers = self.runtime.block_on(async {
            let (mut ours, theirs) = duplex(1 << 16);
            let piece = [usize::MAX, 1 << 10, 61, 1][bytes.len() % 4];
            let exchange = async {
                let mut answers = Vec::new();
                let (mut reading, mut writing) = tokio::io::split(&mut ours);
                let write = async {
                    for piece in bytes.chunks(piece.min(bytes.len()).max(1)) {
                        if writing.write_all(piece).await.is_err() {
                            // It was refused and the connection is closed.
                            return;
                        }
                        yield_now().await;
                    }
                    drop(writing.shutdown().await);
                };
                let (_, read) = tokio::join!(write, reading.read_to_end(&mut answers));
                read.expect("a pipe in memory does not fail");
                answers
            };
            let both = async {
                tokio::join!(serve_connection(theirs, self.settings.connections.clone(), gate), exchange)
            };
            // Nothing here waits for time: the sender has said all that it says.
            tokio::time::timeout(Duration::from_secs(20), both).await.expect("it comes to an end").1
        });

        let seen = self.upstream.take();
        seen.iter().for_each(check);
        let answered = check_answers(&answers);
        assert_eq!(seen.len(), answered, "dispatched, and answered as forwarded");
        assert_eq!(self.gate.limits.budget.held(), 0, "bytes are still being held");
        assert_eq!(self.gate.metrics.inflight_requests.get(), 0, "requests are still being served");
        assert_eq!(self.gate.metrics.connections.get(), 0, "connections are still open");
        answered
    }
}

/// The gate as `app` would build it of two webhooks.
fn gate(settings: &Settings, target: &Target) -> Gate {
    let metrics = Arc::new(Metrics::new());
    let routes: Routes = WEBHOOKS
        .iter()
        .map(|(name, path, secret)| {
            let narrow = *name == "narrow";
            let key = |text: &str| {
                let secret = Secret::try_new(text.into(), false).expect("it is long enough");
                Key::new(text.into(), &secret, None)
            };
            let keys = if narrow { vec![key(OTHER_SECRET), key(secret)] } else { vec![key(secret)] };
            let mut events = Events::default();
            events.add(if narrow { "environments" } else { "*" }, None).expect("it is an event");
            let filter = Filter {
                events,
                organization: narrow.then(|| "Crazy-Adventures".into()),
                environments: narrow.then(|| Globs::new(["website/*"])),
                tags: narrow.then(|| Globs::new(["stable", "v?"])),
                kind_check: if narrow { KindCheck::Warn } else { KindCheck::Enforce },
            };
            let mut headers = HeaderMap::new();
            headers.insert("authorization", HeaderValue::from_static("Bearer fuzz"));
            let destination = destination::Settings {
                name: "stub".into(),
                target: target.clone(),
                format: Format::Raw,
                timeout: destination::Settings::TIMEOUT,
                headers,
                ca: None,
                identity: None,
                events: None,
                policy: Policy::default(),
            };
            let handles = metrics.destination(name, "stub");
            let upstream =
                Arc::new(upstream::Upstream::new(target.clone(), None, destination::Settings::TIMEOUT, 1));
            let webhook = Webhook {
                name: (*name).into(),
                metrics: metrics.webhook(name, labels(), Webhook::event_labels(), keys.iter().map(Key::name)),
                verifier: Verifier::new(keys),
                filter,
                destinations: vec![Arc::new(Destination::new(&destination, name, upstream, handles))],
            };
            ((*path).into(), webhook)
        })
        .collect();
    Gate {
        routes: Arc::new(Arc::new(routes).into()),
        limits: Limits {
            max_body: settings.max_body,
            body_timeout: settings.body_timeout,
            budget: Budget::new(
                settings.max_inflight_bytes,
                settings.max_body,
                settings.connections.max_connections,
            ),
        },
        dispatch: Arc::new(Dispatch::Direct(Direct::new(Memory::new(Dedupe::default())))),
        trusted_proxies: Arc::default(),
        strangers: Arc::default(),
        unrouted: Arc::new(metrics.webhook(NO_WEBHOOK, labels(), std::iter::empty(), std::iter::empty())),
        metrics,
        lane: 0,
    }
}

fn labels() -> impl Iterator<Item = &'static str> {
    Outcome::all().map(Outcome::label)
}

/// Puts the right signature where the input asks for it.
fn signed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut from = 0;
    while let Some(at) = find(&bytes[from..], SIGN_HERE).map(|at| at + from) {
        from = at + SIGN_HERE.len();
        let start = bytes[..at].windows(4).rposition(|four| four == b"\r\n\r\n").unwrap_or_default();
        let Some(end) = find(&bytes[from..], b"\r\n\r\n").map(|end| from + end + 4) else { continue };
        let head = String::from_utf8_lossy(&bytes[start..end]).to_ascii_lowercase();
        let rest = &bytes[end..];
        let length = head.split("content-length:").nth(1).and_then(|rest| rest.lines().next());
        let body = if head.contains("chunked") {
            dechunked(rest)
        } else if let Some(length) = length.and_then(|length| length.trim().parse::<usize>().ok()) {
            rest[..length.min(rest.len())].to_vec()
        } else {
            rest.to_vec()
        };
        let (_, _, secret) = WEBHOOKS[usize::from(head.contains("/narrow"))];
        let signature = hex::encode(hmac_sha256(secret.as_bytes(), &body));
        bytes[at..from].copy_from_slice(signature.as_bytes());
    }
    bytes
}

/// The data of well-formed chunks, as far as they are.
fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(end) = find(bytes, b"\r\n") {
        let line = String::from_utf8_lossy(&bytes[..end]);
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
        let Some(chunk) =
            size.ok().filter(|size| *size > 0).and_then(|size| bytes.get(end + 2..)?.get(..size))
        else {
            break;
        };
        data.extend_from_slice(chunk);
        bytes = bytes.get(end + 2 + chunk.len() + 2..).unwrap_or_default();
    }
    data
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Holds what the sender got against the contract. Says how many requests were forwarded.
fn check_answers(answers: &[u8]) -> usize {
    const OUTCOME: &str = "\r\nHookgate-Outcome: ";
    let text = String::from_utf8_lossy(answers);
    assert!(text.is_empty() || text.starts_with("HTTP/1."), "{text}");
    let mut forwarded = 0;
    // No body here has a line break in it, so what looks like this header is it.
    for answer in text.split(OUTCOME).skip(1) {
        let label = answer.lines().next().unwrap_or_default();
        assert!(labels().any(|known| known == label), "{label}");
        forwarded += usize::from(label == "forwarded");
    }
    // Neither a secret nor a signature that was not sent gets out.
    for (_, _, secret) in WEBHOOKS {
        assert!(!text.contains(secret), "{text}");
    }
    forwarded
}

/// Holds what reached the upstream against the contract.
fn check(seen: &Seen) {
    let text = String::from_utf8_lossy(&seen.head);
    let mut lines = text.split("\r\n");
    assert_eq!(lines.next(), Some("POST /in HTTP/1.1"), "{text}");
    let mut headers = HashMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header is a name and a value");
        let name = name.to_ascii_lowercase();
        // The parameters of Content-Type go on as received.
        assert!(value.is_ascii() || name == "content-type", "{text}");
        assert!(ALLOWED.contains(&&*name), "{name} must not reach the upstream: {text}");
        assert!(headers.insert(name, value).is_none(), "twice: {text}");
    }
    let webhook = headers["hookgate-webhook"];
    let (_, _, secret) = WEBHOOKS.iter().find(|(name, ..)| *name == webhook).expect("one of ours");
    let right = hex::encode(hmac_sha256(secret.as_bytes(), &seen.body));
    assert!(right.eq_ignore_ascii_case(headers["pulumi-webhook-signature"]), "dispatched unverified: {text}");
    assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&seen.body).is_ok(), "not JSON: {text}");
    assert_eq!(headers["authorization"], "Bearer fuzz");
    assert_eq!(headers["hookgate-attempt"], "1");
}

/// A request as it reached the upstream.
#[derive(Debug)]
struct Seen {
    head: Vec<u8>,
    body: Vec<u8>,
}

/// Takes every request and answers it with 200.
#[derive(Debug, Default)]
struct Upstream(Mutex<Vec<Seen>>);

impl Upstream {
    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            let upstream = Arc::clone(&self);
            connections.spawn(async move { drop(upstream.connection(socket).await) });
        }
    }

    async fn connection(&self, mut socket: TcpStream) -> io::Result<()> {
        let mut bytes = Vec::new();
        loop {
            let Some(end) = find(&bytes, b"\r\n\r\n") else {
                if socket.read_buf(&mut bytes).await? == 0 {
                    return Ok(());
                }
                continue;
            };
            let head = bytes[..end].to_vec();
            bytes.drain(..end + 4);
            // Whatever is wrong with it is said by `check`, in the test's own thread.
            let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let length: usize = length.unwrap_or_default();
            while bytes.len() < length {
                if socket.read_buf(&mut bytes).await? == 0 {
                    return Ok(());
                }
            }
            let body = bytes.drain(..length).collect();
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Seen { head, body });
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
        }
    }
}
