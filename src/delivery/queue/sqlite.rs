//! The embedded engine: one SQLite file, for one running service.
//!
//! One thread writes. It takes what has come in meanwhile and commits it in one transaction, so that the price of a flush to
//! the disk is shared (group commit). Another thread reads. A lease is kept in memory only: the file says that the job
//! waits until its verdict is committed, so that after a kill it is delivered again at once.
//!
//! A verdict that cannot be committed is kept and tried again until it can, and its lease with it: a store that
//! fails does not turn into deliveries that are made over and over.

mod ids;
mod reader;
mod rows;
mod schema;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use rusqlite::Connection;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

pub use self::schema::OpenError;
use self::{
    reader::{Fresh, Leasing},
    rows::Key,
    writer::{Command, Done},
};
use super::{
    Answer, Attempt, Delivery, Depth, Details, Enqueued, Filter, Health, Hold, JobId, Lease, Policy, Queue,
    QueueError, Recipient, Record, Retention, State, Stock, Verdict,
};

/// Commands that wait for the writer at most. Whoever comes then waits for room.
const WAITING_COMMANDS: usize = 1024;

/// Reads that wait at most.
const WAITING_READS: usize = 256;

/// Jobs that are changed in one transaction at most when many are.
const PORTION: usize = 500;

/// How long a lease waits before it looks for what another process has changed.
const LOOK: Duration = Duration::from_millis(500);

/// A commit that takes longer than this makes the store not ready.
const STALLED: Duration = Duration::from_secs(5);

/// The engine. Dropped, it ends its threads; what was committed stays.
#[derive(Debug)]
pub struct Sqlite {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    reads: mpsc::Sender<Read>,
    /// Policies under which the jobs of recipients are arranged.
    arranged: Mutex<HashMap<Recipient, Policy>>,
}

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// What both threads and all leases know.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    retention: Retention,
    window: Duration,
    held: Mutex<Held>,
    /// Rung when jobs of a recipient may have become due.
    bells: Mutex<HashMap<Recipient, watch::Sender<()>>>,
    counts: Mutex<Counts>,
    health: watch::Sender<Health>,
    /// The connection of the thread that reads; absent while the file is put back.
    reader: Mutex<Option<Connection>>,
    /// When the transaction under way began.
    committing: Mutex<Option<Instant>>,
}

/// Jobs that must not be leased, although the file says that they wait.
#[derive(Debug, Default)]
struct Held {
    leased: HashSet<Key>,
    /// Being superseded, in a transaction under way.
    withdrawn: HashSet<Key>,
    /// Where those begin that were never leased, by recipient.
    fresh: HashMap<i64, Fresh>,
}

/// What is counted as it changes, since counting it in the file takes as long as there are jobs.
#[derive(Debug, Default)]
struct Counts {
    depths: HashMap<Recipient, Depth>,
    bytes: u64,
    dead_dropped: u64,
}

impl Sqlite {
    /// Opens the file for the service, and creates it if it is absent. Blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(path: &Path, retention: Retention, window: Duration) -> Result<Self, OpenError> {
        let lock = lock(path)?;
        let connection = schema::open(path)?;
        Self::start(path, connection, retention, window, Some(lock))
    }

    /// Opens a file for a command, beside the service or without one. Blocks. It keeps no retention.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open_beside(path: &Path) -> Result<Self, OpenError> {
        let connection = schema::open_beside(path)?;
        let retention = Retention { max_bytes: u64::MAX, ..Retention::default() };
        Self::start(path, connection, retention, Duration::ZERO, None)
    }

    fn start(
        path: &Path,
        connection: Connection,
        retention: Retention,
        window: Duration,
        lock: Option<File>,
    ) -> Result<Self, OpenError> {
        let unusable = |what: String| OpenError::Unusable { path: path.to_owned(), what };
        let reader = schema::open_again(path).map_err(|error| unusable(error.to_string()))?;
        let (commands, inbox) = mpsc::channel(WAITING_COMMANDS);
        let (reads, orders) = mpsc::channel(WAITING_READS);
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            retention,
            window,
            held: Mutex::default(),
            bells: Mutex::default(),
            counts: Mutex::default(),
            health: watch::Sender::new(Health::Ready),
            reader: Mutex::new(Some(reader)),
            committing: Mutex::default(),
        });
        let writer = writer::Writer::try_new(connection, Arc::clone(&shared), lock)
            .map_err(|error| unusable(error.to_string()))?;
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.into()).spawn(work);
            // They end when their senders are gone, and `close` waits for what they have to do before.
            thread.map(drop).map_err(|error| unusable(error.to_string()))
        };
        spawn("queue-writer", Box::new(move || writer.run(inbox)))?;
        let reading = Arc::clone(&shared);
        spawn("queue-reader", Box::new(move || read(&reading, orders)))?;
        Ok(Self { shared, commands, reads, arranged: Mutex::default() })
    }

    /// Has the writer do something, and waits until it is committed.
    async fn write<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, QueueError>>) -> Command,
    ) -> Result<T, QueueError> {
        order(&self.commands, command).await
    }

    /// Has the reader do something.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, QueueError> {
        let (done, answer) = oneshot::channel();
        let read: Read = Box::new(move |connection| drop(done.send(work(connection))));
        self.reads.send(read).await.map_err(|_ended| ended())?;
        match answer.await {
            Ok(result) => result.map_err(|error| unavailable(&error)),
            Err(_) => Err(QueueError::Unavailable("the file is not open".into())),
        }
    }

    /// Changes all jobs that a filter means, in portions: nobody who wants to commit waits for all of them. A job that is in
    /// another state when its turn comes is left alone.
    async fn change(
        &self,
        filter: &Filter,
        command: fn(Vec<Key>, Vec<State>, Done<u64>) -> Command,
    ) -> Result<u64, QueueError> {
        let (all, states) = (filter.clone(), &filter.states);
        let keys = self.read(move |connection| reader::keys(connection, &all)).await?;
        let mut count = 0;
        for portion in keys.chunks(PORTION) {
            count += self.write(|done| command(portion.to_vec(), states.clone(), done)).await?;
        }
        Ok(count)
    }

    /// The jobs in the file were put there under the policy that was in force then.
    async fn arrange(&self, recipient: &Recipient, policy: Policy) -> Result<(), QueueError> {
        if lock_of(&self.arranged).get(recipient) == Some(&policy) {
            return Ok(());
        }
        let (to, in_order) = (recipient.clone(), policy.in_order);
        self.write(|done| Command::Arrange { recipient: to, in_order, done }).await?;
        lock_of(&self.arranged).insert(recipient.clone(), policy);
        Ok(())
    }

    async fn lease(
        &self,
        recipient: &Recipient,
        policy: Policy,
        max: usize,
    ) -> Result<Vec<Lease>, QueueError> {
        self.arrange(recipient, policy).await?;
        let mut bell = self.shared.bell(recipient);
        loop {
            bell.mark_unchanged();
            let (shared, commands, to) =
                (Arc::clone(&self.shared), self.commands.downgrade(), recipient.clone());
            // They are leases before they leave the reader: whoever waited may be gone, and they go back then.
            let leasing = self.read(move |connection| {
                let Leasing { jobs, next_due } = reader::lease(connection, &shared, &to, max)?;
                let lease = |(key, fresh, job)| {
                    let (shared, commands, in_order) =
                        (Arc::clone(&shared), commands.clone(), policy.in_order);
                    Lease::new(job, Box::new(Holding { key, fresh, in_order, shared, commands }))
                };
                Ok((jobs.into_iter().map(lease).collect::<Vec<_>>(), next_due))
            });
            let (leases, next_due) = leasing.await?;
            if !leases.is_empty() {
                return Ok(leases);
            }
            let pause = next_due.map_or(LOOK, |due| due.min(LOOK));
            tokio::select! {
                () = self.commands.closed() => return Err(ended()),
                // Whichever it is: look again. The bells are not dropped while the engine is there.
                _ = timeout(pause, bell.changed()) => {}
            }
        }
    }

    async fn stock(&self) -> Result<Stock, QueueError> {
        self.shared.notice_stall();
        let mut stock = {
            let counts = lock_of(&self.shared.counts);
            Stock {
                depths: counts.depths.iter().map(|(to, depth)| (to.clone(), *depth)).collect(),
                bytes: counts.bytes,
                log_bytes: 0,
                max_bytes: self.shared.retention.max_bytes,
                dead_dropped: counts.dead_dropped,
            }
        };
        stock.depths.sort_by(|(a, _), (b, _)| a.cmp(b));
        let waiting: Vec<_> =
            stock.depths.iter().filter(|(_, depth)| depth.waiting > 0).map(|(to, _)| to.clone()).collect();
        let shared = Arc::clone(&self.shared);
        let mut oldest = self.read(move |connection| reader::oldest(connection, &shared, &waiting)).await?;
        for (to, depth) in &mut stock.depths {
            depth.oldest = oldest.remove(to);
        }
        Ok(stock)
    }
}

impl Queue for Sqlite {
    fn enqueue(&self, delivery: Delivery) -> Answer<'_, Enqueued> {
        Box::pin(self.write(move |done| Command::Enqueue { delivery: Box::new(delivery), done }))
    }

    fn lease<'a>(&'a self, recipient: &'a Recipient, policy: Policy, max: usize) -> Answer<'a, Vec<Lease>> {
        Box::pin(self.lease(recipient, policy, max))
    }

    fn stock(&self) -> Answer<'_, Stock> {
        Box::pin(self.stock())
    }

    fn list<'a>(&'a self, filter: &'a Filter, max: usize) -> Answer<'a, Vec<Record>> {
        let filter = filter.clone();
        Box::pin(self.read(move |connection| reader::list(connection, &filter, max)))
    }

    fn show<'a>(&'a self, id: &'a JobId) -> Answer<'a, Option<Details>> {
        let id = id.clone();
        Box::pin(self.read(move |connection| reader::show(connection, &id)))
    }

    fn redeliver<'a>(&'a self, filter: &'a Filter) -> Answer<'a, u64> {
        Box::pin(self.change(filter, |keys, states, done| Command::Redeliver { keys, states, done }))
    }

    fn purge<'a>(&'a self, filter: &'a Filter) -> Answer<'a, u64> {
        Box::pin(self.change(filter, |keys, states, done| Command::Purge { keys, states, done }))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(self.write(|done| Command::Close { done }))
    }
}

/// A lease, as the engine sees it.
#[derive(Debug)]
struct Holding {
    key: Key,
    /// It had never been leased before.
    fresh: bool,
    in_order: bool,
    shared: Arc<Shared>,
    /// A lease does not keep the engine alive.
    commands: mpsc::WeakSender<Command>,
}

impl Hold for Holding {
    fn settle(self: Box<Self>, verdict: Verdict, attempt: Option<Attempt>) -> Answer<'static, ()> {
        let Self { key, in_order, shared, commands, .. } = *self;
        Box::pin(async move {
            let Some(commands) = commands.upgrade() else { return Err(ended()) };
            // From here on the writer ends the lease, whoever still waits for it.
            let settled =
                order(&commands, |done| Command::Settle { key, in_order, verdict, attempt, done }).await;
            if commands.is_closed() {
                shared.end_lease(key);
            }
            settled
        })
    }

    fn release(self: Box<Self>) {
        {
            let mut held = lock_of(&self.shared.held);
            held.leased.remove(&self.key);
            if self.fresh {
                held.fresh.entry(self.key.recipient).or_default().returned.insert(self.key.delivery);
            }
        }
        self.shared.ring_all();
    }
}

impl Shared {
    fn bell(&self, recipient: &Recipient) -> watch::Receiver<()> {
        lock_of(&self.bells).entry(recipient.clone()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    fn ring(&self, recipient: &Recipient) {
        if let Some(bell) = lock_of(&self.bells).get(recipient) {
            bell.send_replace(());
        }
    }

    fn ring_all(&self) {
        for bell in lock_of(&self.bells).values() {
            bell.send_replace(());
        }
    }

    fn end_lease(&self, key: Key) {
        lock_of(&self.held).leased.remove(&key);
    }

    fn set_health(&self, health: Health) {
        self.health.send_if_modified(|known| {
            let changed = *known != health;
            *known = health;
            changed
        });
    }

    /// A writer that hangs in the disk cannot say so itself.
    fn notice_stall(&self) {
        let since = *lock_of(&self.committing);
        if let Some(since) = since
            && since.elapsed() > STALLED
        {
            self.set_health(Health::NotReady(format!("a commit takes longer than {STALLED:?}")));
        }
    }

    /// Whether the file that is open is the one that the path names.
    fn is_in_place(&self, opened: (u64, u64)) -> bool {
        identity(&self.path).is_ok_and(|found| found == opened)
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Sends a command and waits for what becomes of it.
async fn order<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<Result<T, QueueError>>) -> Command,
) -> Result<T, QueueError> {
    let (done, answer) = oneshot::channel();
    commands.send(command(done)).await.map_err(|_ended| ended())?;
    answer.await.unwrap_or_else(|_ended| Err(ended()))
}

/// What the thread that reads does.
fn read(shared: &Shared, mut orders: mpsc::Receiver<Read>) {
    while let Some(work) = orders.blocking_recv() {
        // Without a connection the order is dropped, which tells whoever waits for it.
        if let Some(connection) = &*lock_of(&shared.reader) {
            work(connection);
        }
    }
}

/// Makes sure that this is the only service on the file. The kernel gives the lock back when the process ends.
fn lock(path: &Path) -> Result<File, OpenError> {
    let unusable = |error: io::Error| OpenError::Unusable { path: path.to_owned(), what: error.to_string() };
    let mut name = OsString::from(path);
    name.push(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(name).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended() -> QueueError {
    QueueError::Unavailable("the queue has ended".into())
}

fn unavailable(error: &rusqlite::Error) -> QueueError {
    QueueError::Unavailable(error.to_string())
}

fn now() -> i64 {
    rows::to_millis(SystemTime::now())
}

#[cfg(test)]
mod tests;
