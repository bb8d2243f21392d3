//! What the program takes in and gives out over real sockets: in direct mode, with its queue in a file, and with its queue
//! on NATS.
//!
//! `cargo bench --bench service`, with `nats-server` in the PATH for what needs one. Everything is on 127.0.0.1: an
//! upstream that says 200 at once, and senders that each keep a connection and send one signed delivery of 400 bytes
//! after the other, are in this program; services and server are processes of their own. It prints
//!
//! - answers with 2xx a second, and how long each sender waited for its own, by senders at a time. Every round goes through
//!   all modes, so that what else the machine does falls on all of them. Beside them, as the limit of what is possible on
//!   NATS: the same bodies published to JetStream, each sender waiting for the acknowledgement;
//! - how fast waiting deliveries are delivered, by one destination's worker with `concurrency` as it is by default;
//! - what several services on one NATS server take in and deliver together.
//!
//! At the end of each, the upstream must have seen every delivery that was accepted, once.
//!
//! Options, behind `--`: `--seconds S` for the length of each measurement, `--rounds N` for their number, `--waiting N` for how
//! many deliveries are drained, `--hookgate PATH` for another binary, `--folder DIR` for where files are written.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_types,
    reason = "a program for people at their own machine, which measures real time"
)]

#[path = "support/load.rs"]
mod load;
#[path = "support/measured.rs"]
mod measured;
#[path = "support/program.rs"]
mod program;

use std::{
    collections::HashMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use bytes::Bytes;
use hookgate::delivery::{
    parcel::{Facts, MediaType, Parcel, VerifiedBody},
    queue::{
        Delivery, Enqueued, Health, Policy, Queue, Retention,
        nats::{Nats, Settings},
        sqlite::Sqlite,
    },
};
use hyper::header::HeaderValue;
use load::{Request, SECRET, ask, body, event, header, id, median, signature, upstream};
use measured::Measured;
use program::Program;
use tokio::{
    net::TcpStream,
    runtime::{Builder, Runtime},
    task::JoinSet,
};

const SENDERS: [usize; 4] = [1, 16, 64, 256];
/// Of a body, in bytes.
const BODY: usize = 400;
/// No wait is longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let mut bench = Bench::new();
    bench.compare();
    bench.drain();
    bench.replicas();
    // It has its files in the folder: it ends first.
    drop(bench.nats.take());
    fs::remove_dir_all(&bench.folder).unwrap();
}

struct Bench {
    seconds: f64,
    rounds: usize,
    waiting: usize,
    hookgate: PathBuf,
    folder: PathBuf,
    runtime: Runtime,
    nats: Option<Server>,
}

/// How deliveries go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Direct,
    Sqlite,
    Nats,
    /// Without a service.
    JetStream,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Sqlite => "queue in a file",
            Self::Nats => "queue on NATS",
            Self::JetStream => "JetStream alone",
        }
    }
}

impl Bench {
    fn new() -> Self {
        let given: Vec<_> = std::env::args().collect();
        let after = |name: &str| given.iter().position(|word| word == name).map(|at| given[at + 1].as_str());
        let folder = after("--folder").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = folder.join(format!("hookgate-bench-service-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let nats = Server::start(&folder);
        if nats.is_none() {
            println!("there is no nats-server in the PATH: without what needs it\n");
        }
        Self {
            seconds: after("--seconds").map_or(0.5, |text| text.parse().unwrap()),
            rounds: after("--rounds").map_or(3, |text| text.parse().unwrap()),
            waiting: after("--waiting").map_or(10_000, |text| text.parse().unwrap()),
            hookgate: after("--hookgate").unwrap_or(env!("CARGO_BIN_EXE_hookgate")).into(),
            folder,
            runtime: Builder::new_current_thread().enable_all().build().unwrap(),
            nats,
        }
    }

    /// The modes that can be measured here.
    fn modes(&self, wanted: &[Mode]) -> Vec<Mode> {
        let can = |mode: &&Mode| self.nats.is_some() || matches!(mode, Mode::Direct | Mode::Sqlite);
        wanted.iter().filter(can).copied().collect()
    }

    fn compare(&self) {
        let modes = self.modes(&[Mode::Direct, Mode::Sqlite, Mode::Nats, Mode::JetStream]);
        let rigs: Vec<_> = modes
            .iter()
            .map(|mode| (*mode != Mode::JetStream).then(|| Rig::start(self, *mode, "COMPARED", 1)))
            .collect();
        println!("| senders | | 2xx/s | beside direct | p50 | p99 |\n| --- | --- | --- | --- | --- | --- |");
        for senders in SENDERS {
            let mut rows = vec![Vec::new(); modes.len()];
            for _ in 0..self.rounds {
                for (rig, rows) in rigs.iter().zip(&mut rows) {
                    rows.push(match rig {
                        Some(rig) => rig.load(self, senders),
                        None => self.publish(senders),
                    });
                }
            }
            let direct: Vec<_> = rows[0].iter().map(|round| round.rate).collect();
            for (mode, rows) in modes.iter().zip(&mut rows) {
                let ratios: Vec<_> =
                    rows.iter().zip(&direct).map(|(row, direct)| row.rate / direct).collect();
                rows.sort_by(|a, b| a.rate.total_cmp(&b.rate));
                let middle = &rows[rows.len() / 2];
                println!(
                    "| {senders} | {} | {:.0} | {:.2} | {:.1?} | {:.1?} |",
                    mode.name(),
                    middle.rate,
                    median(&ratios),
                    middle.quantile(0.5),
                    middle.quantile(0.99),
                );
            }
        }
        for rig in rigs.into_iter().flatten() {
            rig.end();
        }
    }

    /// The same bodies, and nothing but JetStream.
    fn publish(&self, senders: usize) -> Measured {
        let url = self.nats.as_ref().unwrap().url();
        let body = Bytes::from(body(BODY));
        self.runtime.block_on(async {
            let stream = jetstream::new(async_nats::connect(url).await.unwrap());
            let config = jetstream::stream::Config {
                name: "ALONE".to_owned(),
                subjects: vec!["alone".to_owned()],
                ..jetstream::stream::Config::default()
            };
            stream.get_or_create_stream(config).await.unwrap();
            measure(senders, self.seconds, async |_| {
                let acknowledged = stream.publish("alone", body.clone()).await.unwrap();
                acknowledged.await.unwrap();
            })
            .await
        })
    }

    /// Deliveries that wait when the service starts.
    fn drain(&self) {
        println!("\n| waiting deliveries | delivered/s |\n| --- | --- |");
        for mode in self.modes(&[Mode::Sqlite, Mode::Nats]) {
            self.fill(mode);
            let rig = Rig::start(self, mode, "DRAINED", 1);
            rig.seen.wait(self.waiting);
            let took = rig.seen.lasted();
            println!("| {} {} | {:.0} |", self.waiting, mode.name(), rate(self.waiting, took));
            rig.end();
        }
    }

    /// Enqueues as the service does.
    fn fill(&self, mode: Mode) {
        const WINDOW: Duration = Duration::from_secs(120);
        let signature = signature(&body(BODY));
        self.runtime.block_on(async {
            let retention = Retention::default();
            let queue: Arc<dyn Queue> = match mode {
                Mode::Nats => {
                    let settings = Settings {
                        url: self.nats.as_ref().unwrap().url(),
                        stream: "DRAINED".to_owned(),
                        credentials: None,
                        ca: None,
                        replicas: 1,
                    };
                    Arc::new(Nats::start(&settings, retention, WINDOW, BODY).unwrap())
                }
                _ => Arc::new(Sqlite::open(&self.folder.join("DRAINED.db"), retention, WINDOW).unwrap()),
            };
            queue.health().wait_for(|health| *health == Health::Ready).await.unwrap();
            let mut tasks = JoinSet::new();
            for _ in 0..self.waiting {
                let (queue, delivery) = (Arc::clone(&queue), delivery(&signature));
                tasks.spawn(async move { assert_eq!(queue.enqueue(delivery).await, Ok(Enqueued::Queued)) });
                if tasks.len() >= 256 {
                    tasks.join_next().await.unwrap().unwrap();
                }
            }
            tasks.join_all().await;
            queue.close().await.unwrap();
        });
    }

    fn replicas(&self) {
        if self.nats.is_none() {
            return;
        }
        println!(
            "\n| services on one NATS server | accepted/s | delivered/s | p50 of the 202 | p99 |\n| --- | --- | --- | --- | --- |"
        );
        for services in 1..=3 {
            let rig = Rig::start(self, Mode::Nats, &format!("SHARED-{services}"), services);
            let measured = self.runtime.block_on(rig.send(64, 2.0 * self.seconds));
            let accepted = measured.waits.len();
            rig.seen.wait(accepted);
            println!(
                "| {services} | {:.0} | {:.0} | {:.1?} | {:.1?} |",
                measured.rate,
                rate(accepted, rig.seen.lasted()),
                measured.quantile(0.5),
                measured.quantile(0.99),
            );
            rig.end();
        }
    }
}

/// Services with the same settings, and their upstream.
struct Rig {
    services: Vec<Program>,
    seen: Seen,
    queued: bool,
}

impl Rig {
    fn start(bench: &Bench, mode: Mode, name: &str, services: usize) -> Self {
        let seen = Seen::default();
        let to = seen.clone();
        let upstream = upstream(move |head| to.note(header(head, "pulumi-webhook-id").unwrap()));
        let queue = match mode {
            Mode::Direct | Mode::JetStream => String::new(),
            Mode::Sqlite => {
                format!("[queue]\npath = {:?}\n", bench.folder.join(format!("{name}.db")))
            }
            Mode::Nats => {
                let url = bench.nats.as_ref().unwrap().url();
                format!("[queue]\nstore = \"nats\"\nurl = {url:?}\nstream = {name:?}\n")
            }
        };
        let config = bench.folder.join(format!("{name}-{mode:?}.toml"));
        fs::write(&config, configuration(&queue, upstream)).unwrap();
        let services = (0..services)
            .map(|_| Program::start(&bench.hookgate, &config, &[("BENCH_SECRET", SECRET)]))
            .collect();
        let rig = Self { services, seen, queued: mode != Mode::Direct };
        for service in &rig.services {
            eventually("it is ready", || service.ops("/readyz").starts_with("HTTP/1.1 200"));
        }
        rig
    }

    /// Sends for a while, and waits until all of that is delivered.
    fn load(&self, bench: &Bench, senders: usize) -> Measured {
        let before = self.seen.count();
        let measured = bench.runtime.block_on(self.send(senders, bench.seconds));
        self.seen.wait(before + measured.waits.len());
        measured
    }

    async fn send(&self, senders: usize, seconds: f64) -> Measured {
        let body = body(BODY);
        let request = Request::new(event().sample_kind(), Some(&signature(&body)), &body);
        let connections: Vec<_> = {
            let addresses = self.services.iter().map(|service| service.webhook).cycle();
            let connect = async |address| {
                tokio::sync::Mutex::new((TcpStream::connect(address).await.unwrap(), Vec::new()))
            };
            let mut connections = Vec::new();
            for address in addresses.take(senders) {
                connections.push(connect(address).await);
            }
            connections
        };
        measure(senders, seconds, async |sender| {
            // Each has its own.
            let mut connection = connections[sender].lock().await;
            let (socket, buffer) = &mut *connection;
            let (status, open) = ask(socket, &request, buffer).await.unwrap();
            let wanted: &[u8; 3] = if self.queued { b"202" } else { b"200" };
            assert!(status == *wanted && open, "{}", String::from_utf8_lossy(buffer));
        })
        .await
    }

    /// Every delivery came once, and the services end as they should.
    fn end(self) {
        let twice = self.seen.twice();
        assert_eq!(twice, 0, "{twice} deliveries came more than once");
        for service in self.services {
            assert!(service.end().success(), "the drain was not complete");
        }
    }
}

fn configuration(queue: &str, upstream: SocketAddr) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[ops]\nlisten = \"127.0.0.1:0\"\n\
         [log]\nlevel = \"warn,hookgate::app=info\"\n{queue}\
         [[webhook]]\nname = \"bench\"\npath = \"/hook\"\nsecret = {{ env = \"BENCH_SECRET\" }}\n\
         events = [\"environment_revision\"]\n\
         [[webhook.destination]]\nname = \"app\"\nurl = \"http://{upstream}/hook\"\n"
    )
}

/// A delivery as the request path makes it.
fn delivery(signature: &str) -> Delivery {
    let value = |text: &str| HeaderValue::from_str(text).unwrap();
    Delivery {
        webhook: "bench".into(),
        parcel: Parcel {
            body: VerifiedBody::stored(body(BODY).into()),
            content_type: MediaType::Json,
            id: value(&id()),
            kind: value(event().sample_kind()),
            signature: value(signature),
            event: value("environment_revision_created"),
            kind_verified: true,
            traceparent: value("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
            received: std::time::SystemTime::now(),
        },
        environment: Some("website/prod".into()),
        revision: Some(7),
        facts: Facts::default(),
        destinations: vec![("app".into(), Policy::default())],
    }
}

/// What came to an upstream.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Arrivals>>);

#[derive(Default)]
struct Arrivals {
    times: HashMap<String, u32>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Seen {
    fn note(&self, id: &str) {
        let mut arrivals = self.0.lock().unwrap();
        let now = Instant::now();
        arrivals.first.get_or_insert(now);
        arrivals.last = Some(now);
        *arrivals.times.entry(id.to_owned()).or_default() += 1;
    }

    /// Deliveries that came, each counted once.
    fn count(&self) -> usize {
        self.0.lock().unwrap().times.len()
    }

    fn wait(&self, count: usize) {
        eventually("everything is delivered", || self.count() >= count);
        assert_eq!(self.count(), count, "something came that nobody was promised");
    }

    /// From the first to the last.
    fn lasted(&self) -> Duration {
        let arrivals = self.0.lock().unwrap();
        arrivals.last.unwrap() - arrivals.first.unwrap()
    }

    fn twice(&self) -> usize {
        self.0.lock().unwrap().times.values().filter(|times| **times > 1).count()
    }
}

fn eventually(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// As many as there are senders do something one time after the other. They are told their number.
async fn measure(senders: usize, seconds: f64, work: impl AsyncFn(usize)) -> Measured {
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let (work, end) = (&work, &end);
    let all = (0..senders).map(|sender| async move {
        let mut waits = Vec::new();
        while Instant::now() < *end {
            let began = Instant::now();
            work(sender).await;
            waits.push(began.elapsed());
        }
        waits
    });
    let mut waits = futures_util::future::join_all(all).await.concat();
    waits.sort_unstable();
    Measured { rate: rate(waits.len(), began.elapsed()), waits }
}

fn rate(count: usize, took: Duration) -> f64 {
    #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a rate")]
    let count = count as f64;
    count / took.as_secs_f64()
}

/// A NATS server. Killed on drop.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// `None`: there is none on this machine.
    fn start(folder: &Path) -> Option<Self> {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new("nats-server")
            .args(["-js", "-a", "127.0.0.1", "-p", &address.port().to_string(), "-sd"])
            .arg(folder.join("nats"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        eventually("nats-server listens", || std::net::TcpStream::connect(address).is_ok());
        Some(Self { child, address })
    }

    fn url(&self) -> String {
        format!("nats://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
