//! The embedded engine: one SQLite file, for one running service.
//!
//! The life of a job: [`Queue::enqueue`] sends its delivery to the one thread that writes, which commits all that has come in
//! meanwhile in one transaction, so that the price of a flush to the disk is shared (group commit), and rings for its
//! recipient. [`Queue::lease`] reads from the file what is due, and writes it down in memory only (`Leased`): the file says
//! that the job waits until its verdict is committed, so that after a kill it is delivered again at once. The verdict goes to
//! the writer, and its lease with it; it needs no place there, so that no number of new deliveries holds it up. What is
//! dropped on the way, wherever that is, gives the job back.
//!
//! A verdict that cannot be committed is kept and tried again until it can, and its lease with it: a store that fails does
//! not turn into deliveries that are made over and over.

mod clock;
mod place;
mod reader;
mod rows;
mod schema;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::AtomicU64,
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};

use rusqlite::Connection;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout},
};

pub use self::schema::{OpenError, Why};
use self::{
    clock::Clock,
    place::Place,
    reader::Leasing,
    rows::Key,
    writer::{Command, Work, Writer},
};
use super::{
    Answer, Attempt, Delivery, Details, Enqueued, Filter, Health, Hold, JobId, Lease, Policy, Queue,
    QueueError, Recipient, Record, Retention, State, Stock, Verdict,
};

/// Commands that wait for the writer at most, beside verdicts. Whoever comes then waits for a place.
const PLACES: usize = 1024;

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
    commands: Sender<Command>,
    /// For commands that wait, beside verdicts.
    places: Arc<Semaphore>,
    reads: mpsc::Sender<Read>,
    /// The numbers of recipients, and whether their jobs are in order in the file.
    arranged: Mutex<HashMap<Recipient, (i64, bool)>>,
}

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// What both threads and all leases know.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    retention: Retention,
    window: Duration,
    clock: Clock,
    /// Jobs that must not be leased, although the file says that they wait.
    leased: Mutex<HashSet<Key>>,
    /// Rung when jobs of a recipient, by its number, may have become due.
    bells: Mutex<HashMap<i64, watch::Sender<()>>>,
    /// Dead letters that were dropped since the start.
    dead_dropped: AtomicU64,
    health: watch::Sender<Health>,
    /// The connection of the thread that reads; absent while the file is put back, and at the end.
    reader: Mutex<Option<Connection>>,
    /// When the transaction under way began.
    committing: Mutex<Option<Instant>>,
}

/// That a job is leased. Whoever has it is the only one; dropped, it ends.
#[derive(Debug)]
struct Leased {
    key: Key,
    shared: Arc<Shared>,
    /// Nobody is told that it ends.
    is_silent: bool,
}

impl Leased {
    /// For a job that was just added to those that are.
    fn new(key: Key, shared: &Arc<Shared>) -> Self {
        Self { key, shared: Arc::clone(shared), is_silent: false }
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        lock_of(&self.shared.leased).remove(&self.key);
        if !self.is_silent {
            self.shared.ring(self.key.recipient);
        }
    }
}

impl Sqlite {
    /// Opens the file for the service, and creates it if it is absent. Waits for a service that has it open, for a while.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(path: &Path, retention: Retention, window: Duration) -> Result<Self, OpenError> {
        let place = Place::take(path)?;
        let connection = schema::open(&place.path)?;
        Self::start(path, connection, retention, Some(window), Some(place))
    }

    /// Opens a file for a command, beside the service or without one. Blocks. It keeps no retention.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open_beside(path: &Path) -> Result<Self, OpenError> {
        let connection = schema::open_beside(path)?;
        let retention = Retention { max_bytes: u64::MAX, ..Retention::default() };
        Self::start(path, connection, retention, None, None)
    }

    fn start(
        path: &Path,
        connection: Connection,
        retention: Retention,
        window: Option<Duration>,
        mut place: Option<Place>,
    ) -> Result<Self, OpenError> {
        let failed = |error: rusqlite::Error| Why::unusable(path, &error);
        let clock = Clock::read(&connection).map_err(failed)?;
        let window = match window {
            Some(window) => {
                writer::tell(&connection, window, clock.ahead()).map_err(failed)?;
                window
            }
            None => writer::window(&connection).map_err(failed)?,
        };
        let reader = schema::open_again(path).map_err(failed)?;
        if let Some(place) = &mut place {
            place.note().map_err(|error| Why::unusable(path, &error))?;
        }
        let (commands, inbox) = channel();
        let (reads, orders) = mpsc::channel(WAITING_READS);
        let shared = Arc::new(Shared {
            path: place.as_ref().map_or_else(|| path.to_owned(), |place| place.path.clone()),
            retention,
            window,
            clock,
            leased: Mutex::default(),
            bells: Mutex::default(),
            dead_dropped: AtomicU64::new(0),
            health: watch::Sender::new(Health::Ready),
            reader: Mutex::new(Some(reader)),
            committing: Mutex::default(),
        });
        let writer = Writer::new(connection, Arc::clone(&shared), place);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.into()).spawn(work);
            // They end when they are told, or nobody can ask any more; `close` waits for the rest of the writer's work.
            thread.map(drop).map_err(|error| Why::unusable(path, &error))
        };
        spawn("queue-writer", Box::new(move || writer.run(inbox)))?;
        let reading = Arc::clone(&shared);
        spawn("queue-reader", Box::new(move || read(&reading, orders)))?;
        let places = Arc::new(Semaphore::new(PLACES));
        Ok(Self { shared, commands, places, reads, arranged: Mutex::default() })
    }

    /// Has the writer do something, and waits until it is committed.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Work<'_>) -> rusqlite::Result<Result<T, QueueError>> + Send + 'static,
    ) -> Result<T, QueueError> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_closed| ended())?;
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::task(work, place, done)).map_err(|_ended| ended())?;
        answer.await.unwrap_or_else(|_ended| Err(ended()))
    }

    async fn enqueue(&self, delivery: Delivery) -> Result<Enqueued, QueueError> {
        // Who comes while the disk does not answer is not kept waiting for it.
        if let Some(reason) = self.shared.stall() {
            return Err(QueueError::Unavailable(reason));
        }
        let delivery = Box::new(delivery);
        self.write(move |work| work.enqueue(&delivery)).await
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
        work: fn(&mut Work<'_>, &[Key], &[State]) -> rusqlite::Result<u64>,
    ) -> Result<u64, QueueError> {
        let (all, states, shared) = (filter.clone(), &filter.states, Arc::clone(&self.shared));
        let keys = self.read(move |connection| reader::keys(connection, &shared, &all)).await?;
        let mut count = 0;
        for portion in keys.chunks(PORTION) {
            let (portion, states) = (portion.to_vec(), states.clone());
            count += self.write(move |to| work(to, &portion, &states).map(Ok)).await?;
        }
        Ok(count)
    }

    /// The number of a recipient whose jobs in the file are arranged as the policy says.
    async fn arrange(&self, recipient: &Recipient, in_order: bool) -> Result<i64, QueueError> {
        let known = lock_of(&self.arranged).get(recipient).copied();
        if let Some((number, _)) = known.filter(|(_, was)| *was == in_order) {
            return Ok(number);
        }
        let mut last = Some(0);
        let mut number = 0;
        while let Some(after) = last {
            let to = recipient.clone();
            (number, last) = self.write(move |work| work.arrange(&to, in_order, after).map(Ok)).await?;
        }
        lock_of(&self.arranged).insert(recipient.clone(), (number, in_order));
        Ok(number)
    }

    async fn lease(
        &self,
        recipient: &Recipient,
        policy: Policy,
        max: usize,
    ) -> Result<Vec<Lease>, QueueError> {
        let number = self.arrange(recipient, policy.in_order).await?;
        let mut bell = self.shared.bell(number);
        loop {
            bell.mark_unchanged();
            let (shared, commands, to) = (Arc::clone(&self.shared), self.commands.clone(), recipient.clone());
            // They are leases before they leave the reader: whoever waited may be gone, and they go back then.
            let leasing = self.read(move |connection| {
                let Leasing { jobs, damaged, next_due } =
                    reader::lease(connection, &shared, (number, &to), policy.in_order, max)?;
                let lease =
                    |(leased, job)| Lease::new(job, Box::new(Holding { leased, commands: commands.clone() }));
                Ok((jobs.into_iter().map(lease).collect::<Vec<_>>(), damaged, next_due))
            });
            let (leases, damaged, next_due) = leasing.await?;
            for key in damaged {
                self.write(move |work| work.bury(key).map(Ok)).await?;
            }
            if !leases.is_empty() {
                return Ok(leases);
            }
            let pause = next_due.map_or(LOOK, |due| due.min(LOOK));
            // Whichever it is: look again. The bells are not dropped while the engine is there.
            drop(timeout(pause, bell.changed()).await);
        }
    }

    async fn stock(&self) -> Result<Stock, QueueError> {
        // A writer that hangs in the disk cannot say so itself.
        if let Some(reason) = self.shared.stall() {
            self.shared.set_health(Health::NotReady(reason));
        }
        let shared = Arc::clone(&self.shared);
        self.read(move |connection| reader::stock(connection, &shared)).await
    }
}

impl Queue for Sqlite {
    fn enqueue(&self, delivery: Delivery) -> Answer<'_, Enqueued> {
        Box::pin(self.enqueue(delivery))
    }

    fn lease<'a>(&'a self, recipient: &'a Recipient, policy: Policy, max: usize) -> Answer<'a, Vec<Lease>> {
        Box::pin(self.lease(recipient, policy, max))
    }

    fn stock(&self) -> Answer<'_, Stock> {
        Box::pin(self.stock())
    }

    fn list<'a>(&'a self, filter: &'a Filter, max: usize) -> Answer<'a, Vec<Record>> {
        let (filter, shared) = (filter.clone(), Arc::clone(&self.shared));
        Box::pin(self.read(move |connection| reader::list(connection, &shared, &filter, max)))
    }

    fn show<'a>(&'a self, id: &'a JobId) -> Answer<'a, Option<Details>> {
        let (id, shared) = (id.clone(), Arc::clone(&self.shared));
        Box::pin(self.read(move |connection| reader::show(connection, &shared, &id)))
    }

    fn redeliver<'a>(&'a self, filter: &'a Filter) -> Answer<'a, u64> {
        Box::pin(self.change(filter, |work, keys, states| work.redeliver(keys, states)))
    }

    fn purge<'a>(&'a self, filter: &'a Filter) -> Answer<'a, u64> {
        Box::pin(self.change(filter, |work, keys, states| work.purge(keys, states)))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    fn close(&self) -> Answer<'_, ()> {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Close(done)).map_err(|_ended| ended());
        Box::pin(async move {
            sent?;
            answer.await.unwrap_or_else(|_ended| Err(ended()))
        })
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        // Leases may outlive it. Who has ended already need not be told.
        drop(self.commands.send(Command::Close(oneshot::channel().0)));
    }
}

/// A lease, as the engine sees it. Released, it is dropped.
#[derive(Debug)]
struct Holding {
    leased: Leased,
    commands: Sender<Command>,
}

impl Hold for Holding {
    fn settle(self: Box<Self>, verdict: Verdict, attempt: Option<Attempt>) -> Answer<'static, ()> {
        let Self { leased, commands } = *self;
        let (done, answer) = oneshot::channel();
        // It is the writer's before anybody waits for it.
        let sent = commands.send(Command::verdict(leased, verdict, attempt, done)).map_err(|_ended| ended());
        Box::pin(async move {
            sent?;
            answer.await.unwrap_or_else(|_ended| Err(ended()))
        })
    }

    fn release(self: Box<Self>) {}
}

impl Shared {
    fn bell(&self, recipient: i64) -> watch::Receiver<()> {
        lock_of(&self.bells).entry(recipient).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    fn ring(&self, recipient: i64) {
        if let Some(bell) = lock_of(&self.bells).get(&recipient) {
            bell.send_replace(());
        }
    }

    fn set_health(&self, health: Health) {
        self.health.send_if_modified(|known| {
            let changed = *known != health;
            *known = health;
            changed
        });
    }

    /// Why nothing is committed just now, if the disk does not answer.
    fn stall(&self) -> Option<String> {
        let since = (*lock_of(&self.committing))?;
        (since.elapsed() > STALLED).then(|| format!("a commit takes longer than {STALLED:?}"))
    }
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

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended() -> QueueError {
    QueueError::Unavailable("the queue has ended".into())
}

fn unavailable(error: &rusqlite::Error) -> QueueError {
    QueueError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests;
