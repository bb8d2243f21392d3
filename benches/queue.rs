//! What the durable queue takes in, and what it gives out.
//!
//! `cargo bench --bench queue` measures, side by side and round by round, deliveries of 400 bytes that are committed a
//! second, and how long each waited for its commit, by senders at a time:
//!
//! - `limit`: SQLite with the same settings and plain group commit of the bodies in one table, and nothing else;
//! - `whole`: the same with as many bytes as a delivery has with its headers, which no engine can do without;
//! - `queue`: the engine, with everything that it keeps of a delivery.
//!
//! `cpu` is the processor time of each, of senders and store together, which says more than the rate where the machine is shared.
//!
//! Then how fast waiting jobs are leased and acknowledged. `-- --waiting 1000000` first fills the queue with as many
//! waiting deliveries, and prints memory and speed with and without them. `--seconds S` is the length of each
//! measurement, `--rounds N` their number, `--senders N` the only number of them that is measured, `--folder DIR` where the
//! files are written.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_types,
    reason = "a program that measures real time and ends with a panic when something fails"
)]

#[path = "support/measured.rs"]
mod measured;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use hookgate::delivery::{
    parcel::{Facts, MediaType, Parcel, VerifiedBody},
    queue::{Attempt, Delivery, Enqueued, Policy, Queue, Recipient, Retention, sqlite::Sqlite},
};
use hyper::header::HeaderValue;
use measured::Measured;
use rusqlite::Connection;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    task::JoinSet,
};

const SENDERS: [usize; 4] = [1, 16, 64, 256];
const BODY: usize = 400;

/// The body with headers, names and numbers.
const WHOLE: usize = BODY + 300;

fn main() {
    let arguments = Arguments::read();
    let folder = arguments.folder.join(format!("hookgate-bench-queue-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    compare(&runtime, &folder, &arguments);
    drain(&runtime, &folder);
    if arguments.waiting > 0 {
        fill(&runtime, &folder, &arguments);
    }
    fs::remove_dir_all(folder).unwrap();
}

struct Arguments {
    seconds: f64,
    rounds: usize,
    senders: Vec<usize>,
    waiting: u64,
    folder: PathBuf,
}

impl Arguments {
    fn read() -> Self {
        let given: Vec<_> = std::env::args().collect();
        let value = |name: &str| given.iter().position(|word| word == name).map(|at| given[at + 1].clone());
        let number = |name, default: f64| value(name).map_or(default, |text| text.parse().unwrap());
        Self {
            seconds: number("--seconds", 1.0),
            rounds: value("--rounds").map_or(3, |text| text.parse().unwrap()),
            senders: value("--senders").map_or(SENDERS.to_vec(), |text| vec![text.parse().unwrap()]),
            waiting: value("--waiting").map_or(0, |text| text.parse().unwrap()),
            folder: value("--folder").map_or_else(std::env::temp_dir, PathBuf::from),
        }
    }
}

/// The processor time of all threads so far.
fn cpu_time() -> Duration {
    rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime).try_into().unwrap()
}

/// How fast, and the processor time of each. As many tasks as there are senders, each of which commits one after the other.
fn measure<F: Future<Output = ()> + 'static>(
    runtime: &Runtime,
    senders: usize,
    length: f64,
    commit: impl Fn() -> F + Clone + 'static,
) -> (Measured, Duration) {
    let local = tokio::task::LocalSet::new();
    let (began, before) = (Instant::now(), cpu_time());
    let end = began + Duration::from_secs_f64(length);
    let mut waits = local.block_on(runtime, async {
        let mut tasks = JoinSet::new();
        for _ in 0..senders {
            let commit = commit.clone();
            tasks.spawn_local(async move {
                let mut waits = Vec::new();
                while Instant::now() < end {
                    let began = Instant::now();
                    commit().await;
                    waits.push(began.elapsed());
                }
                waits
            });
        }
        tasks.join_all().await.concat()
    });
    waits.sort_unstable();
    #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a rate")]
    let rate = waits.len() as f64 / began.elapsed().as_secs_f64();
    let cpu = (cpu_time() - before) / u32::try_from(waits.len()).unwrap();
    (Measured { rate, waits }, cpu)
}

fn compare(runtime: &Runtime, folder: &Path, arguments: &Arguments) {
    let limit = Arc::new(Limit::start(&folder.join("limit.db")));
    let whole = Arc::new(Limit::start(&folder.join("whole.db")));
    let queue = Arc::new(open(&folder.join("queue.db")));
    println!(
        "{:<8} {:>8} {:>12} {:>10} {:>10} {:>7} {:>9}",
        "", "senders", "commits/s", "p50", "p99", "ratio", "cpu"
    );
    for &senders in &arguments.senders {
        let mut rows = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..arguments.rounds {
            for (row, limit, size) in [(0, &limit, BODY), (1, &whole, WHOLE)] {
                let limit = Arc::clone(limit);
                rows[row].push(measure(runtime, senders, arguments.seconds, move || {
                    let limit = Arc::clone(&limit);
                    async move { limit.commit(bytes(size)).await }
                }));
            }
            let queue = Arc::clone(&queue);
            rows[2].push(measure(runtime, senders, arguments.seconds, move || {
                let queue = Arc::clone(&queue);
                async move { assert_eq!(queue.enqueue(delivery()).await, Ok(Enqueued::Queued)) }
            }));
        }
        let limits: Vec<_> = rows[0].iter().map(|(limit, _)| limit.rate).collect();
        for (name, rows) in ["limit", "whole", "queue"].into_iter().zip(&mut rows) {
            let mut ratios: Vec<_> =
                limits.iter().zip(&*rows).map(|(limit, (row, _))| row.rate / limit).collect();
            ratios.sort_by(f64::total_cmp);
            rows.sort_by(|(a, _), (b, _)| a.rate.total_cmp(&b.rate));
            let (middle, cpu) = &rows[rows.len() / 2];
            println!(
                "{name:<8} {senders:>8} {:>12.0} {:>10.1?} {:>10.1?} {:>7.2} {:>9.1?}",
                middle.rate,
                middle.quantile(0.5),
                middle.quantile(0.99),
                ratios[ratios.len() / 2],
                cpu
            );
        }
    }
    runtime.block_on(queue.close()).unwrap();
}

/// Leases and acknowledges what the comparison has left, as one destination's worker does it with 16 at a time.
fn drain(runtime: &Runtime, folder: &Path) {
    let queue = open(&folder.join("queue.db"));
    let before = cpu_time();
    let (count, took) = runtime.block_on(async {
        let began = Instant::now();
        let mut count = 0_u32;
        let mut acks = JoinSet::new();
        let to = Recipient { webhook: "esc".into(), destination: "app".into() };
        let waiting = Queue::stock(&queue).await.unwrap().depths[0].1.waiting;
        while u64::from(count) < waiting.min(20_000) {
            let leases = queue.lease(&to, Policy::default(), 16).await.unwrap();
            for lease in leases {
                count += 1;
                acks.spawn(lease.ack(Attempt {
                    number: 1,
                    at: SystemTime::now(),
                    duration: Duration::ZERO,
                    status: Some(200),
                    error: None,
                    answer: Bytes::new(),
                }));
            }
            while acks.len() > 64 {
                acks.join_next().await.unwrap().unwrap().unwrap();
            }
        }
        acks.join_all().await;
        (count, began.elapsed())
    });
    let cpu = (cpu_time() - before) / count;
    println!("\nleased and acknowledged: {:.0}/s, {cpu:.1?} each", f64::from(count) / took.as_secs_f64());
    runtime.block_on(queue.close()).unwrap();
}

fn fill(runtime: &Runtime, folder: &Path, arguments: &Arguments) {
    let queue = Arc::new(open(&folder.join("many.db")));
    let rate = |label: &str| {
        let queue = Arc::clone(&queue);
        let (measured, cpu) = measure(runtime, 64, arguments.seconds.max(3.0), move || {
            let queue = Arc::clone(&queue);
            async move { assert_eq!(queue.enqueue(delivery()).await, Ok(Enqueued::Queued)) }
        });
        let resident = resident();
        println!(
            "{label}: {:.0} commits/s with 64 senders, {cpu:.1?} each, resident {resident} KiB",
            measured.rate
        );
    };
    println!();
    rate("empty");
    let local = tokio::task::LocalSet::new();
    local.block_on(runtime, async {
        let mut tasks = JoinSet::new();
        for _ in 0..256_u64 {
            let (queue, count) = (Arc::clone(&queue), arguments.waiting / 256);
            tasks.spawn_local(async move {
                for _ in 0..count {
                    assert_eq!(queue.enqueue(delivery()).await, Ok(Enqueued::Queued));
                }
            });
        }
        tasks.join_all().await;
    });
    let stock = runtime.block_on(Queue::stock(&*queue)).unwrap();
    println!("{} waiting, {} MiB", stock.depths[0].1.waiting, stock.bytes >> 20);
    rate("with those");
    runtime.block_on(queue.close()).unwrap();
    drop(queue);
    let began = Instant::now();
    let queue = open(&folder.join("many.db"));
    let opened = began.elapsed();
    let to = Recipient { webhook: "esc".into(), destination: "app".into() };
    drop(runtime.block_on(queue.lease(&to, Policy::default(), 16)).unwrap());
    println!("opened in {opened:.1?}, the first of them leased after {:.1?}", began.elapsed());
    runtime.block_on(queue.close()).unwrap();
}

fn open(path: &Path) -> Sqlite {
    let retention = Retention { max_bytes: 64 << 30, ..Retention::default() };
    Sqlite::open(path, retention, Duration::from_secs(120)).unwrap()
}

fn bytes(size: usize) -> Bytes {
    let mut body = vec![b'x'; size];
    body[..8].copy_from_slice(&fastrand::u64(..).to_le_bytes());
    body.into()
}

fn delivery() -> Delivery {
    let id = HeaderValue::try_from(format!("{:032x}", fastrand::u128(..))).unwrap();
    Delivery {
        webhook: "esc".into(),
        parcel: Parcel {
            body: VerifiedBody::stored(bytes(BODY)),
            content_type: MediaType::Json,
            id,
            kind: HeaderValue::from_static("environment_revision"),
            signature: HeaderValue::from_static(
                "0000000000000000000000000000000000000000000000000000000000000000",
            ),
            event: HeaderValue::from_static("environment_revision_created"),
            kind_verified: true,
            traceparent: HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
            received: SystemTime::now(),
        },
        environment: Some("website/prod".into()),
        revision: Some(7),
        facts: Facts::default(),
        destinations: vec![("app".into(), Policy::default())],
    }
}

/// Kibibytes that are resident.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Plain group commit, and nothing else.
struct Limit(mpsc::Sender<(Bytes, oneshot::Sender<()>)>);

impl Limit {
    fn start(path: &Path) -> Self {
        let mut connection = Connection::open(path).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE body (number INTEGER PRIMARY KEY, body BLOB NOT NULL)",
            )
            .unwrap();
        let (sender, mut inbox) = mpsc::channel::<(Bytes, oneshot::Sender<()>)>(1024);
        std::thread::spawn(move || {
            let mut batch = Vec::new();
            while inbox.blocking_recv_many(&mut batch, 512) > 0 {
                let transaction = connection.transaction().unwrap();
                let mut insert = transaction.prepare_cached("INSERT INTO body (body) VALUES (?1)").unwrap();
                for (body, _) in &batch {
                    insert.execute([&body[..]]).unwrap();
                }
                drop(insert);
                transaction.commit().unwrap();
                for (_, done) in batch.drain(..) {
                    done.send(()).unwrap();
                }
            }
        });
        Self(sender)
    }

    async fn commit(&self, body: Bytes) {
        let (done, committed) = oneshot::channel();
        self.0.send((body, done)).await.unwrap();
        committed.await.unwrap();
    }
}
