//! What `tests/instructions` counts: one case of the path, so and so many times, with little around it.
//!
//! `instructions CASE TIMES`. The cases `pure-…` are the pure part of the path; the others go over one connection in
//! memory through server, gate and, where it is forwarded, a unix socket to an upstream in the same thread, whose own
//! instructions are few. Without arguments it goes through every case once, to see that they do what they say.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a program for measurements may panic when its own input is wrong"
)]

mod support;

use std::{hint::black_box, io, path::Path, sync::Arc};

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
    upstream::Upstream,
};
use hyper::header::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{UnixListener, UnixStream},
    runtime::Builder,
};

use support::{SIZES, Sample, filter, head_to_toe, verifier};

/// Case, filter, signature, the label of the answer.
const SERVED: [(&str, &str, Signature, &str); 4] = [
    ("forwarded", "environments", Signature::Right, "forwarded"),
    ("filtered", "stacks", Signature::Right, "filtered"),
    ("bad-signature", "environments", Signature::Wrong, "bad_signature"),
    ("no-signature", "environments", Signature::None, "missing_signature"),
];

/// What a request carries for a signature.
#[derive(Debug, Clone, Copy)]
enum Signature {
    Right,
    Wrong,
    None,
}

const PURE: [(&str, usize); 2] = [("pure-400", 0), ("pure-64k", 2)];

fn main() {
    // Cargo adds an argument of its own when it runs a bench.
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [case, times] = &arguments[..] {
        run(case, times.parse().unwrap());
    } else {
        PURE.iter().for_each(|(case, _)| run(case, 1));
        SERVED.iter().for_each(|(case, ..)| run(case, 1));
    }
}

fn run(case: &str, times: usize) {
    if let Some((_, size)) = PURE.iter().find(|(name, _)| *name == case) {
        let (verifier, filter, sample) = (verifier(), filter("environments"), Sample::new(SIZES[*size].1));
        for _ in 0..times {
            assert!(head_to_toe(&verifier, &filter, black_box(&sample)));
        }
        return;
    }
    let case = SERVED.iter().find(|(name, ..)| *name == case).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(served(case, times));
}

async fn served((_, event, signature, label): &(&str, &str, Signature, &str), times: usize) {
    let socket = std::env::temp_dir().join(format!("hookgate-instructions-{}", std::process::id()));
    let listener = UnixListener::bind(&socket).unwrap();
    let settings = Settings::default();
    let gate = gate(&settings, event, &socket);
    let (mut ours, theirs) = duplex(1 << 16);
    let expected = format!("Hookgate-Outcome: {label}\r\n");
    let sending = async {
        let sample = Sample::new(SIZES[0].1);
        let mut answer = vec![0; 4096];
        for number in 0..times {
            ours.write_all(&request(&sample, *signature, number)).await.unwrap();
            // Answers come in one piece: they are written at once and the pipe has room.
            let length = ours.read(&mut answer).await.unwrap();
            assert!(memchr::memmem::find(&answer[..length], expected.as_bytes()).is_some());
        }
        drop(ours);
    };
    let serving = serve_connection(theirs, settings.connections.clone(), gate);
    tokio::select! {
        ((), ()) = async { tokio::join!(serving, sending) } => {}
        error = upstream(&listener) => error.unwrap(),
    }
    std::fs::remove_file(socket).unwrap();
}

fn request(sample: &Sample, signature: Signature, number: usize) -> Vec<u8> {
    const NAME: &str = "Pulumi-Webhook-Signature: ";
    let (name, signature, end) = match signature {
        Signature::Right => (NAME, sample.signature.clone(), "\r\n"),
        Signature::Wrong => (NAME, "0".repeat(64), "\r\n"),
        Signature::None => ("", String::new(), ""),
    };
    let mut request = format!(
        "POST /hook HTTP/1.1\r\nHost: hooks.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\nContent-Type: \
         application/json\r\nPulumi-Webhook-Id: bench-{number}\r\nPulumi-Webhook-Kind: {}\r\n{name}{signature}{end}Content-\
         Length: {}\r\n\r\n",
        sample.kind,
        sample.body.len()
    )
    .into_bytes();
    request.extend_from_slice(&sample.body);
    request
}

/// Answers every request on one connection after another. A body ends with a brace.
async fn upstream(listener: &UnixListener) -> io::Result<()> {
    loop {
        let (mut socket, _) = listener.accept().await?;
        while answer_one(&mut socket).await? {}
    }
}

async fn answer_one(socket: &mut UnixStream) -> io::Result<bool> {
    let mut bytes = vec![0; 8192];
    let mut length = 0;
    while !bytes[..length].ends_with(b"}") {
        let more = socket.read(&mut bytes[length..]).await?;
        if more == 0 {
            return Ok(false);
        }
        length += more;
    }
    socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
    Ok(true)
}

fn gate(settings: &Settings, event: &str, socket: &Path) -> Gate {
    let labels = || Outcome::all().map(Outcome::label);
    let metrics = Arc::new(Metrics::new());
    let destination = destination::Settings {
        name: "app".into(),
        target: Target::parse(&format!("unix:{}:/in", socket.display())).unwrap(),
        format: Format::Raw,
        timeout: destination::Settings::TIMEOUT,
        headers: HeaderMap::new(),
        ca: None,
        identity: None,
        events: None,
        policy: Policy::default(),
    };
    let webhook = Webhook {
        name: "bench".into(),
        verifier: verifier(),
        filter: filter(event),
        destinations: vec![Arc::new(Destination::new(
            &destination,
            "bench",
            Arc::new(Upstream::new(destination.target.clone(), None, destination.timeout, 1)),
            metrics.destination("bench", "app"),
        ))],
        metrics: metrics.webhook("bench", labels(), Webhook::event_labels(), ["bench"].into_iter()),
    };
    let routes: Routes = std::iter::once(("/hook".to_owned(), webhook)).collect();
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
