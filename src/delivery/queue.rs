//! The durable queue: what is in it, and what every engine promises.
//!
//! A *delivery* is what a sender sent. Each destination that it goes to gets a *job* of its own, which is delivered,
//! retried and given up on its own. A job belongs to its [`Recipient`]: the names of webhook and destination, not what
//! stands behind them, so that a changed URL applies to what waits.
//!
//! What [`Queue::enqueue`] has returned [`Enqueued::Queued`] for is committed: it ends as delivered, as superseded or among
//! the dead letters, whatever happens to the process. A lease is not committed: dropped, or lost with its process, its job
//! is delivered again. So a delivery may arrive twice; it is never lost.
//!
//! The queue knows neither HTTP nor the configuration. The worker decides when to retry and when to give up.

pub mod nats;
pub mod sqlite;
mod state;

use std::{
    fmt,
    path::PathBuf,
    pin::Pin,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::sync::watch;

pub use state::{Death, NoState, State};

use super::parcel::{Facts, Parcel};

/// What a call of the queue returns.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, QueueError>> + Send + 'a>>;

/// Where jobs go: a destination of a webhook, by their names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recipient {
    /// The webhook's name.
    pub webhook: String,
    /// The destination's name.
    pub destination: String,
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.webhook, self.destination)
    }
}

/// How a destination wants its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// `order = "environment"`: the jobs of one environment one after another, in order of arrival. Jobs without an
    /// environment are one more environment.
    pub in_order: bool,
    /// `coalesce`: a job waits this long, and of those of one environment and event that wait, only the newest is
    /// delivered. For revisions it is the one with the highest number.
    pub coalesce: Option<Duration>,
}

/// An accepted delivery, to be enqueued.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The webhook that it came to.
    pub webhook: String,
    /// What is forwarded.
    pub parcel: Parcel,
    /// `projectName/environmentName`, where the payload has one.
    pub environment: Option<String>,
    /// The number of the revision, where the payload has one.
    pub revision: Option<u64>,
    /// What people want to know. It is kept, and the queue goes by none of it.
    pub facts: Facts,
    /// The names of the destinations that want it, at least one.
    pub destinations: Vec<(String, Policy)>,
}

/// What became of a delivery that was to be enqueued. Same webhook, same ID and same body are the same delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// It is committed, or the dead jobs of the same delivery are waiting again.
    Queued,
    /// The same delivery still waits, or was delivered within the window.
    Duplicate,
    /// Another body came under its ID within the window, or waits.
    Conflict,
}

/// A job, by the name that its engine gave it. Users see it, and hand it back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an attempt needs to know.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Where it goes.
    pub recipient: Recipient,
    /// What is forwarded.
    pub parcel: Parcel,
    /// When it was accepted, or last redelivered: its age counts from here.
    pub since: SystemTime,
    /// Attempts since then.
    pub attempts: u32,
    /// Attempts that were ever made: the next one is this number plus one.
    pub attempts_ever: u32,
}

/// The record of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// When it began.
    pub at: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// The upstream's status, where it gave one.
    pub status: Option<u16>,
    /// Why there was no usable answer.
    pub error: Option<String>,
    /// The first [`MAX_ANSWER`] bytes of the answer's body.
    pub answer: Bytes,
}

/// How much of an upstream's answer is kept, in bytes.
pub const MAX_ANSWER: usize = 2 << 10;

/// Of a job's attempts, the last ones are kept. All are counted.
pub const KEPT_ATTEMPTS: usize = 20;

/// What becomes of a leased job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The upstream accepted it.
    Delivered,
    /// It is tried again after this time.
    Retry(Duration),
    /// It is given up.
    Dead(Death),
}

/// A job as the log shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub id: JobId,
    /// Where it goes.
    pub recipient: Recipient,
    /// Where it stands.
    pub state: State,
    /// Why it was given up.
    pub death: Option<Death>,
    /// `Pulumi-Webhook-ID`.
    pub delivery_id: String,
    /// `Pulumi-Webhook-Kind`.
    pub kind: String,
    /// The filter's name where there is one, else the kind.
    pub event: String,
    /// `projectName/environmentName`.
    pub environment: Option<String>,
    /// The number of the revision.
    pub revision: Option<u64>,
    /// What the payload says that people want to know.
    pub facts: Facts,
    /// When the delivery was accepted.
    pub received: SystemTime,
    /// While it waits: when it is due.
    pub due: Option<SystemTime>,
    /// When it came to its end.
    pub finished: Option<SystemTime>,
    /// Attempts that were ever made.
    pub attempts: u32,
    /// The length of the body in bytes.
    pub size: u64,
}

/// Everything about one job.
#[derive(Debug, Clone)]
pub struct Details {
    /// What the log shows.
    pub record: Record,
    /// What is forwarded.
    pub parcel: Parcel,
    /// Its attempts, the first one first.
    pub attempts: Vec<Attempt>,
}

/// Which jobs are meant. Every condition that is there must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these jobs, or of these delivery IDs. Empty: any.
    pub ids: Vec<String>,
    /// One of these states. Empty: any.
    pub states: Vec<State>,
    /// Of this webhook.
    pub webhook: Option<String>,
    /// Of this destination.
    pub destination: Option<String>,
    /// Of this event: a filter's name or a kind.
    pub event: Option<String>,
    /// Accepted at this time or later.
    pub since: Option<SystemTime>,
    /// Accepted before this time.
    pub until: Option<SystemTime>,
}

/// How many jobs a recipient has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Jobs that wait.
    pub waiting: u64,
    /// When the oldest of them was accepted.
    pub oldest: Option<SystemTime>,
    /// Dead letters.
    pub dead: u64,
}

/// The state of the store as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stock {
    /// By recipient; those without a job may be absent.
    pub depths: Vec<(Recipient, Depth)>,
    /// What the store takes, in bytes.
    pub bytes: u64,
    /// What a log beside it takes that `max_bytes` says nothing of, in bytes.
    pub log_bytes: u64,
    /// What it may take, in bytes.
    pub max_bytes: u64,
    /// Dead letters that were dropped since the start, because they were older than `dead_retain`.
    pub dead_dropped: u64,
}

/// Whether deliveries can be enqueued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// They can.
    Ready,
    /// They cannot, for this reason.
    NotReady(String),
}

/// Why the queue could not do what it was told. It will when the reason is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// `max_bytes`, and nothing finished is left that could make room.
    #[error("the queue is full: `queue.max_bytes` is reached")]
    Full,
    /// The store does not work.
    #[error("the queue's store does not work: {0}")]
    Unavailable(String),
}

/// What an engine does. Contracts are held by `tests/it/engines/contract.rs`, for each engine alike.
pub trait Queue: fmt::Debug + Send + Sync {
    /// Commits a delivery with a job for each of its destinations, all or none.
    ///
    /// The same delivery may be enqueued again: if it waits, nothing happens; if some of its jobs are dead, these wait
    /// again, with attempts and age counted afresh; if it was delivered within the window, nothing happens, whether it is
    /// still in the log or was purged, or went since it was old or to make room; after that it is a new one. With a
    /// window of zero, every delivery is a new one.
    ///
    /// Bodies are counted as long as somebody has them in memory: an engine keeps no copy beyond what it bounds. What
    /// nobody waits for any more need not be stored.
    fn enqueue(&self, delivery: Delivery) -> Answer<'_, Enqueued>;

    /// Leases jobs of a recipient that are due, `max` at most (at least one). Waits until there is one.
    ///
    /// Nobody else gets a leased job until its lease is dropped or has ended.
    fn lease<'a>(&'a self, recipient: &'a Recipient, policy: Policy, max: usize) -> Answer<'a, Vec<Lease>>;

    /// Counts. Cheap enough to be asked every few seconds.
    fn stock(&self) -> Answer<'_, Stock>;

    /// The jobs that a filter means, the newest first, `max` at most.
    fn list<'a>(&'a self, filter: &'a Filter, max: usize) -> Answer<'a, Vec<Record>>;

    /// One job.
    fn show<'a>(&'a self, id: &'a JobId) -> Answer<'a, Option<Details>>;

    /// Lets jobs be delivered at once: finished ones again, with attempts and age counted afresh, waiting ones without
    /// waiting longer. How many they were. A service that runs beside notices within a second.
    fn redeliver<'a>(&'a self, filter: &'a Filter) -> Answer<'a, u64>;

    /// Forgets jobs, with their bodies and attempts. How many they were.
    fn purge<'a>(&'a self, filter: &'a Filter) -> Answer<'a, u64>;

    /// Whether deliveries can be enqueued, and every change of that.
    fn health(&self) -> watch::Receiver<Health>;

    /// Commits what is under way and ends.
    fn close(&self) -> Answer<'_, ()>;
}

/// A leased job. Its verdict consumes it; dropped without one, the job is due again at once.
#[derive(Debug)]
pub struct Lease {
    job: Job,
    hold: Option<Box<dyn Hold>>,
}

/// What an engine knows of a lease.
pub trait Hold: fmt::Debug + Send {
    /// Records the attempt, if there was one, and what becomes of the job, in one commit.
    ///
    /// A lease has one owner, until its verdict is committed or it is given back: whoever drops what settles it on the
    /// way gives it back. The worker waits without end, so that there are never more verdicts on the way than places of
    /// its own: an engine that gives up says so by an error, and what it keeps it bounds itself.
    fn settle(self: Box<Self>, verdict: Verdict, attempt: Option<Attempt>) -> Answer<'static, ()>;

    /// Gives the job back. Must not block.
    fn release(self: Box<Self>);
}

impl Lease {
    /// A lease of a job.
    #[must_use]
    pub fn new(job: Job, hold: Box<dyn Hold>) -> Self {
        Self { job, hold: Some(hold) }
    }

    /// The job.
    #[must_use]
    pub const fn job(&self) -> &Job {
        &self.job
    }

    /// It was delivered.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: it may be delivered again.
    pub async fn ack(self, attempt: Attempt) -> Result<(), QueueError> {
        self.settle(Verdict::Delivered, Some(attempt)).await
    }

    /// It is tried again after `delay`.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: it may be tried again earlier.
    pub async fn retry(self, delay: Duration, attempt: Attempt) -> Result<(), QueueError> {
        self.settle(Verdict::Retry(delay), Some(attempt)).await
    }

    /// It is given up, after an attempt or without one.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: it may be tried again.
    pub async fn dead_letter(self, death: Death, attempt: Option<Attempt>) -> Result<(), QueueError> {
        self.settle(Verdict::Dead(death), attempt).await
    }

    async fn settle(mut self, verdict: Verdict, attempt: Option<Attempt>) -> Result<(), QueueError> {
        match self.hold.take() {
            Some(hold) => hold.settle(verdict, attempt).await,
            None => Ok(()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.release();
        }
    }
}

/// Where the queue is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// In a file, for one running service.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// In NATS JetStream, for any number of running services.
    Nats(nats::Settings),
}

impl Store {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Nats(_) => "nats",
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::Sqlite { path: "/var/lib/hookgate/queue.db".into() }
    }
}

/// How long finished jobs stay, and how much there may be of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// For delivered and superseded jobs.
    pub retain: Duration,
    /// For dead letters.
    pub dead_retain: Duration,
    /// Of the whole store, in bytes. Finished jobs make room first; nothing else is dropped for it.
    pub max_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        const HOUR: u64 = 60 * 60;
        Self {
            retain: Duration::from_secs(72 * HOUR),
            dead_retain: Duration::from_secs(30 * 24 * HOUR),
            max_bytes: 1 << 30,
        }
    }
}
