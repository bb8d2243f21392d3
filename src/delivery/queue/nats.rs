//! The queue on NATS JetStream: for several replicas that share one.
//!
//! Two streams. `NAME` holds deliveries: a message each, with the names of all its destinations, so that one publish
//! commits the whole fan-out. `NAME_JOBS` holds a record for each job that has one: where it stands, and its attempts. A job
//! without a record waits. What is in the streams is all there is; replicas and commands keep nothing of their own.
//!
//! The life of a job:
//!
//! 1. Its delivery is published (`enqueue`), on the condition that the subject's last message is still the one that was
//!    looked at: the subject ends in a digest of the ID, so of two copies that come to two replicas at once, one is stored.
//! 2. Its recipient's durable consumer brings the message to one of the replicas (`lease`), which reads the job's record. If
//!    the job waits and is due, it is leased: held, and renewed every few seconds.
//! 3. Its verdict is written to the record (`hold`), on the condition that nobody else wrote meanwhile, and then the message
//!    is acknowledged. A message that comes again finds in the record that all is done. A verdict that cannot be written is
//!    kept and tried again, the lease renewed; until then nothing new is leased, and the queue is not ready.
//! 4. To deliver a finished job once more, a message without a body is published that calls it.
//! 5. When it is old, or room is needed, its delivery and its record are deleted (`sweep`).
//!
//! A record names its delivery by a nonce that was written with it. So whatever is lost, cleared or restored of one stream:
//! a record is never taken for that of another delivery. What the loss of records leaves behind, jobs that wait and that no
//! consumer will bring, is found and called (`audit`).
//!
//! A record that cannot be read says nothing. If a consumer brings its job, the job is made once more; if none will, it is set
//! aside as a dead letter. Either way a record that can be read takes its place.
//!
//! `connect` connects, `shape` is what the streams must be like, `wire` and `record` are what is written, `store` reads and
//! writes, `browse` is the log, `stock` counts.

mod audit;
mod browse;
mod connect;
mod enqueue;
mod hold;
mod lease;
mod record;
mod shape;
mod stock;
mod store;
mod sweep;
mod wire;

use std::{
    collections::HashMap,
    fmt, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{
    ConnectOptions, ServerAddr,
    jetstream::{consumer::PullConsumer, stream},
};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    audit::Known,
    connect::{Connections, options, split},
    hold::Held,
    shape::Shape,
    stock::Counted,
    store::{Store, disconnected},
    sweep::{Room, Swept},
    wire::Names,
};
use super::{
    Answer, Delivery, Details, Enqueued, Filter, Health, JobId, Lease, Policy, Queue, QueueError, Recipient,
    Record, Retention, Stock,
};

/// Where the queue is.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `nats://` or `tls://`, with user and password or a token where the server wants one; several servers of one cluster
    /// with commas between them.
    pub url: String,
    /// The name of the stream, and the beginning of every subject.
    pub stream: String,
    /// A credentials file of NATS, or one with the seed of an nkey.
    pub credentials: Option<PathBuf>,
    /// The authority to trust instead of the platform's. With one, the connection is TLS.
    pub ca: Option<PathBuf>,
    /// On how many servers of a cluster everything is kept.
    pub replicas: usize,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may have a password in it.
        f.debug_struct("Settings").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// Why there is no queue. Nothing secret is in it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The URL is not that of a NATS server.
    #[error("the URL is not that of a NATS server")]
    Url,
    /// The name would not do for a stream.
    #[error("a stream's name has letters, digits, `_` and `-`, and not more than 100 of them")]
    Stream,
    /// The credentials file cannot be read.
    #[error("the credentials file cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// There are no credentials in the file.
    #[error("there are neither credentials nor the seed of an nkey in the credentials file")]
    Credentials,
    /// There are no authorities in the file.
    #[error("the file of authorities cannot be used: {0}")]
    Authorities(#[source] io::Error),
}

/// A health check of the server.
const CHECK: Duration = Duration::from_secs(2);
/// Between two of them.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// For what is under way at the end.
const CLOSING: Duration = Duration::from_secs(5);
/// How often something is tried again because others changed it.
const TRIES: usize = 8;

/// The engine.
#[derive(Debug)]
pub struct Nats {
    shared: Arc<Shared>,
}

/// What everybody in here needs.
#[derive(Debug)]
struct Shared {
    store: OnceLock<Store>,
    shape: Shape,
    retention: Retention,
    /// For how long a delivered one is a duplicate.
    window: Duration,
    health: watch::Sender<Health>,
    connections: watch::Sender<Connections>,
    /// There was no room for a delivery, and none was made since. That a smaller one has found some says nothing.
    full: AtomicBool,
    bytes: AtomicU64,
    dead_dropped: AtomicU64,
    /// Up to which change of the connection the streams were looked at: deliveries are taken then only.
    checked: AtomicU64,
    counted: Mutex<Option<Counted>>,
    /// The largest body of a delivery. `None`: this is not a service, but a command beside it.
    max_body: Option<usize>,
    /// Who makes room.
    room: tokio::sync::Mutex<Room>,
    /// Those that are known to be there.
    consumers: Mutex<HashMap<Recipient, Arc<PullConsumer>>>,
    held: Held,
    closing: CancellationToken,
    tasks: TaskTracker,
    runtime: Handle,
}

impl Nats {
    /// Starts the engine. It connects on its own, and again when the connection is lost: [`Queue::health`] says how it
    /// stands. To be called in a runtime. `max_body` is that of the largest delivery, in bytes: a server that does not take
    /// messages of that size is warned of.
    ///
    /// # Errors
    ///
    /// [`StartError`]: settings that will never work.
    pub fn start(
        settings: &Settings,
        retention: Retention,
        window: Duration,
        max_body: usize,
    ) -> Result<Self, StartError> {
        Self::connect(settings, retention, window, Some(max_body))
    }

    /// The same for a command, beside services or without one: it leaves the streams as they are and forgets nothing.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn start_beside(settings: &Settings) -> Result<Self, StartError> {
        Self::connect(settings, Retention::default(), Duration::ZERO, None)
    }

    fn connect(
        settings: &Settings,
        retention: Retention,
        window: Duration,
        max_body: Option<usize>,
    ) -> Result<Self, StartError> {
        let name = &settings.stream;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > 100 || !name.bytes().all(fits) {
            return Err(StartError::Stream);
        }
        let (urls, users): (Vec<_>, Vec<_>) = settings.url.split(',').map(|url| split(url.trim())).unzip();
        let servers = urls.iter().map(|url| url.parse::<ServerAddr>());
        let servers: Vec<_> = servers.collect::<Result<_, _>>().or(Err(StartError::Url))?;
        let (connections, _) = watch::channel(Connections::default());
        let (health, _) = watch::channel(Health::NotReady("not connected to NATS yet".to_owned()));
        let user = users.into_iter().flatten().next();
        let options = options(settings, user, &connections)?;
        let shared = Arc::new(Shared {
            store: OnceLock::new(),
            shape: Shape { replicas: settings.replicas.max(1), max_bytes: retention.max_bytes },
            retention,
            window,
            health,
            connections,
            full: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            dead_dropped: AtomicU64::new(0),
            checked: AtomicU64::new(u64::MAX),
            counted: Mutex::default(),
            max_body,
            room: tokio::sync::Mutex::default(),
            consumers: Mutex::default(),
            held: Held::default(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        });
        let names = Names::new(name);
        let this = Arc::clone(&shared);
        shared.spawn(async move { this.run(servers, options, names).await });
        Ok(Self { shared })
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

impl Shared {
    /// Connects, and looks after the store until the end.
    async fn run(self: Arc<Self>, servers: Vec<ServerAddr>, options: ConnectOptions, names: Names) {
        let connect = async || {
            let client = options.clone().connect(servers.clone()).await.map_err(store::unavailable)?;
            Store::new(client, names.clone(), self.shape.replicas).await
        };
        let store = loop {
            match connect().await {
                Ok(store) => break store,
                // The authorities' file, say, which is there again in a moment.
                Err(error) => {
                    self.health.send_replace(Health::NotReady(error.to_string()));
                }
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
        };
        let store = self.store.get_or_init(|| store).clone();
        if self.max_body.is_some() {
            for task in [Task::Renew, Task::Sweep] {
                let this = Arc::clone(&self);
                self.spawn(async move { this.look_after(task).await });
            }
        }
        let mut connections = self.connections.subscribe();
        let mut known = Known::default();
        while !self.closing.is_cancelled() {
            let connection = connections.borrow_and_update().changes;
            let looked = timeout(CHECK, self.check(&store, &mut known, connection)).await;
            let health = match looked {
                Ok(Ok(())) => self.room_and_records(&store).await,
                Ok(Err(QueueError::Unavailable(why))) => Health::NotReady(why),
                Ok(Err(full @ QueueError::Full)) => Health::NotReady(full.to_string()),
                Err(_) => Health::NotReady("NATS does not answer in time".to_owned()),
            };
            let failed = health != Health::Ready;
            self.health.send_if_modified(|known| {
                let changed = *known != health;
                *known = health;
                changed
            });
            let pause = if failed { CHECK_EVERY / 4 } else { CHECK_EVERY };
            tokio::select! {
                () = self.closing.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                // The senders are in `self`.
                _ = connections.changed() => {}
                // Verdicts cannot be written, or can again.
                () = self.held.wait(self.held.trouble().is_none()) => {}
            }
        }
    }

    /// Whether there is room for deliveries, and verdicts are recorded.
    async fn room_and_records(&self, store: &Store) -> Health {
        if self.full.load(Ordering::Relaxed) {
            // This takes as long as it takes.
            if self.make_room(store).await.is_err() {
                return Health::NotReady(QueueError::Full.to_string());
            }
            self.full.store(false, Ordering::Relaxed);
        }
        self.held.trouble().map_or(Health::Ready, |why| {
            Health::NotReady(format!("the outcomes of attempts cannot be recorded: {why}"))
        })
    }

    /// Whether the server is there, and the streams are as they must be.
    async fn check(
        self: &Arc<Self>,
        store: &Store,
        known: &mut Known,
        connection: u64,
    ) -> Result<(), QueueError> {
        if !store.is_connected() {
            let trouble = self.connections.borrow().trouble.clone();
            let trouble = trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
            return Err(QueueError::Unavailable(format!("there is no connection to NATS{trouble}")));
        }
        let Some(max_body) = self.max_body else { return store.infos().await.map(drop) };
        // Once, and again if the server has another limit later.
        let (max_payload, needed) = (store.client.max_payload(), max_body.saturating_add(wire::HEADERS));
        if max_payload < needed && known.warned.replace(max_payload) != Some(max_payload) {
            tracing::warn!(
                max_payload,
                needed,
                "the NATS server takes no messages as large as the largest deliveries: these will be refused; \
                 raise `max_payload` of the server, or lower `server.max_body`"
            );
        }
        let looked = self.look_at_streams(store, known, connection).await;
        self.checked.store(if looked.is_ok() { connection } else { u64::MAX }, Ordering::Release);
        looked
    }

    /// What the streams take, in bytes.
    fn note_bytes(&self, infos: &[stream::Info]) -> u64 {
        let bytes = infos.iter().map(|info| info.state.bytes).sum();
        self.bytes.store(bytes, Ordering::Relaxed);
        bytes
    }

    async fn look_after(self: Arc<Self>, task: Task) {
        let Some(store) = self.store.get() else { return };
        let every = match task {
            Task::Renew => hold::RENEW,
            Task::Sweep => {
                let shortest = self.retention.retain.min(self.retention.dead_retain);
                (shortest / 4).clamp(Duration::from_millis(250), Duration::from_secs(60))
            }
        };
        let mut swept = Swept::default();
        while self.closing.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            match task {
                Task::Renew => self.held.renew(store, hold::RENEW / 2).await,
                Task::Sweep if store.is_connected() => {
                    if let Err(error) = self.sweep(store, &mut swept).await {
                        tracing::debug!(%error, "old deliveries stay for now");
                    }
                }
                Task::Sweep => {}
            }
        }
    }

    /// Whether the end has not come.
    fn open(&self) -> Result<(), QueueError> {
        if self.closing.is_cancelled() {
            return Err(QueueError::Unavailable("the queue is closed".to_owned()));
        }
        Ok(())
    }

    /// The store, if it can be used now.
    fn ready(&self) -> Result<&Store, QueueError> {
        self.open()?;
        self.store.get().filter(|store| store.is_connected()).ok_or_else(disconnected)
    }

    /// The store, if it takes deliveries now: after a connection was lost, what is behind the new one is looked at first.
    fn takes(&self) -> Result<&Store, QueueError> {
        let store = self.ready()?;
        if self.connections.borrow().changes == self.checked.load(Ordering::Acquire) {
            return Ok(store);
        }
        match &*self.health.borrow() {
            Health::NotReady(why) => Err(QueueError::Unavailable(why.clone())),
            Health::Ready => Err(QueueError::Unavailable("the connection to NATS is new".to_owned())),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.tasks.spawn_on(task, &self.runtime)
    }

    async fn close(&self) -> Result<(), QueueError> {
        self.closing.cancel();
        self.tasks.close();
        let ended = timeout(CLOSING, async {
            self.tasks.wait().await;
            if let Some(store) = self.store.get().filter(|store| store.is_connected()) {
                drop(store.client.flush().await);
            }
        });
        match ended.await {
            Ok(()) => Ok(()),
            Err(_) => Err(QueueError::Unavailable("NATS did not take everything in time".to_owned())),
        }
    }
}

/// What is done again and again.
#[derive(Debug, Clone, Copy)]
enum Task {
    Renew,
    Sweep,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue for Nats {
    fn enqueue(&self, delivery: Delivery) -> Answer<'_, Enqueued> {
        Box::pin(self.shared.enqueue(delivery))
    }

    fn lease<'a>(&'a self, recipient: &'a Recipient, _policy: Policy, max: usize) -> Answer<'a, Vec<Lease>> {
        // The configuration refuses every policy but the one.
        Box::pin(self.shared.lease(recipient, max))
    }

    fn stock(&self) -> Answer<'_, Stock> {
        Box::pin(async { self.shared.stock(self.shared.ready()?).await })
    }

    fn list<'a>(&'a self, filter: &'a Filter, max: usize) -> Answer<'a, Vec<Record>> {
        Box::pin(async move { browse::list(self.shared.ready()?, filter, max).await })
    }

    fn show<'a>(&'a self, id: &'a JobId) -> Answer<'a, Option<Details>> {
        Box::pin(async move { browse::show(self.shared.ready()?, id).await })
    }

    fn redeliver<'a>(&'a self, filter: &'a Filter) -> Answer<'a, u64> {
        Box::pin(async move { browse::redeliver(self.shared.ready()?, filter).await })
    }

    fn purge<'a>(&'a self, filter: &'a Filter) -> Answer<'a, u64> {
        Box::pin(async move { browse::purge(self.shared.ready()?, filter).await })
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(self.shared.close())
    }
}
