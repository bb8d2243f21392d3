//! Bringing jobs to those who lease them.
//!
//! A recipient's feed asks the server for as many messages as leases are wanted. It does so in a task of its own: a
//! caller that gives up waiting loses nothing, and what arrives later is kept for the next one, for a while.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    hold::ACK_WAIT,
    lock,
    look::{Ready, look},
    store::{Store, failed, unavailable},
};
use crate::delivery::queue::{Lease, QueueError, Recipient};

/// For one request for messages. The server forgets it then.
const PULL: Duration = Duration::from_secs(5);
/// How long leases are kept that nobody asks for any more.
const IDLE: Duration = Duration::from_secs(3);
/// Before the server is asked again after an error.
pub(super) const PAUSE: Duration = Duration::from_millis(250);
/// How many messages of a recipient may be leased or wait for their next attempt. What is beyond waits for these.
const MAX_PENDING: i64 = 65_536;

/// What is brought to a recipient.
pub(super) struct Feed {
    /// Leases that callers wait for.
    wanted: AtomicUsize,
    /// Somebody wants more.
    demand: Notify,
    ready: Mutex<VecDeque<Ready>>,
    /// There are leases.
    arrived: Notify,
    ended: CancellationToken,
    /// When somebody last did.
    asked: Mutex<Instant>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

/// Leases of a recipient.
pub(super) async fn lease(
    shared: &Arc<Shared>,
    recipient: &Recipient,
    max: usize,
) -> Result<Vec<Lease>, QueueError> {
    let max = max.max(1);
    shared.closed()?;
    let feed = feed(shared, recipient);
    let _wish = Wish::new(&feed, max);
    loop {
        // What was leased comes to its end first.
        tokio::select! {
            () = shared.held.wait(false) => {}
            () = shared.closing.cancelled() => shared.closed()?,
        }
        let arrived = feed.arrived.notified();
        let mut leases = Vec::new();
        for ready in feed.take(max) {
            leases.extend(ready.take(shared).await);
        }
        if !leases.is_empty() {
            return Ok(leases);
        }
        tokio::select! {
            () = arrived => {}
            () = shared.closing.cancelled() => shared.closed()?,
        }
    }
}

/// A caller who waits for leases.
struct Wish<'a> {
    feed: &'a Feed,
    max: usize,
}

impl<'a> Wish<'a> {
    fn new(feed: &'a Feed, max: usize) -> Self {
        feed.wanted.fetch_add(max, Ordering::AcqRel);
        *lock(&feed.asked) = Instant::now();
        feed.demand.notify_waiters();
        feed.demand.notify_one();
        Self { feed, max }
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        self.feed.wanted.fetch_sub(self.max, Ordering::AcqRel);
        *lock(&self.feed.asked) = Instant::now();
        // Another caller may be owed what is left.
        self.feed.arrived.notify_one();
    }
}

impl Shared {
    fn closed(&self) -> Result<(), QueueError> {
        if self.closing.is_cancelled() {
            return Err(QueueError::Unavailable("the queue is closed".to_owned()));
        }
        Ok(())
    }
}

/// The feed of a recipient; it is started if there is none.
fn feed(shared: &Arc<Shared>, recipient: &Recipient) -> Arc<Feed> {
    let mut feeds = lock(&shared.feeds);
    if let Some(feed) = feeds.get(recipient) {
        return Arc::clone(feed);
    }
    let feed = Arc::new(Feed {
        wanted: AtomicUsize::new(0),
        demand: Notify::new(),
        ready: Mutex::default(),
        arrived: Notify::new(),
        ended: shared.closing.child_token(),
        asked: Mutex::new(Instant::now()),
    });
    feeds.insert(recipient.clone(), Arc::clone(&feed));
    drop(feeds);
    let (this, weak) = (Arc::clone(shared), Arc::downgrade(&feed));
    let (recipient, ended) = (recipient.clone(), feed.ended.clone());
    shared.spawn(async move {
        let bring = async {
            let mut consumer = None;
            // The feed goes with its engine.
            while let Some(feed) = weak.upgrade() {
                if let Err(error) = feed.bring(&this, &recipient, &mut consumer).await {
                    tracing::debug!(%recipient, %error, "no deliveries can be leased now");
                    consumer = None;
                    // Perhaps it is gone.
                    lock(&this.known).remove(&recipient);
                    drop(feed);
                    sleep(PAUSE).await;
                }
            }
        };
        ended.run_until_cancelled(bring).await;
        if let Some(feed) = weak.upgrade() {
            lock(&feed.ready).clear();
        }
    });
    feed
}

impl Feed {
    fn take(&self, max: usize) -> Vec<Ready> {
        let mut ready = lock(&self.ready);
        let some = max.min(ready.len());
        ready.drain(..some).collect()
    }

    fn missing(&self) -> usize {
        self.wanted.load(Ordering::Acquire).saturating_sub(lock(&self.ready).len())
    }

    /// One request for messages, and what comes of it.
    async fn bring(
        &self,
        shared: &Arc<Shared>,
        recipient: &Recipient,
        consumer: &mut Option<PullConsumer>,
    ) -> Result<(), QueueError> {
        let missing = self.missing();
        if missing == 0 {
            tokio::select! {
                () = self.demand.notified() => {}
                () = sleep(IDLE / 3) => self.release_idle(),
            }
            return Ok(());
        }
        shared.held.wait(false).await;
        let store = shared.ready()?;
        let mut connections = shared.connections.subscribe();
        connections.mark_unchanged();
        let consumer = match consumer {
            Some(consumer) => consumer,
            None => consumer.insert(create(store, recipient).await?),
        };
        let pull = consumer.batch().max_messages(missing).expires(PULL).messages();
        let mut messages = pull.await.map_err(unavailable)?;
        let mut looked_at = FuturesUnordered::new();
        let mut open = true;
        while open || !looked_at.is_empty() {
            tokio::select! {
                message = messages.next(), if open => match message {
                    Some(Ok(message)) => looked_at.push(look(shared, store, recipient, message)),
                    Some(Err(error)) => return Err(failed(&*error)),
                    None => open = false,
                },
                Some(ready) = looked_at.next(), if !looked_at.is_empty() => {
                    if let Some(ready) = ready {
                        lock(&self.ready).push_back(ready);
                        self.arrived.notify_one();
                    }
                }
                // Requests do not outlive their connection.
                _ = connections.changed(), if open => open = false,
                () = sleep(IDLE), if open => self.release_idle(),
            }
        }
        Ok(())
    }

    /// Gives back what nobody asked for in a while: others may want it.
    fn release_idle(&self) {
        if self.wanted.load(Ordering::Acquire) == 0 && lock(&self.asked).elapsed() > IDLE {
            let idle = std::mem::take(&mut *lock(&self.ready));
            drop(idle);
        }
    }
}

/// Sees to it that a recipient has its consumer.
pub(super) async fn ensure(shared: &Shared, store: &Store, recipient: &Recipient) -> Result<(), QueueError> {
    if lock(&shared.known).contains(recipient) {
        return Ok(());
    }
    create(store, recipient).await?;
    lock(&shared.known).insert(recipient.clone());
    Ok(())
}

async fn create(store: &Store, recipient: &Recipient) -> Result<PullConsumer, QueueError> {
    let name = store.names.consumer(recipient);
    let config = pull::Config {
        durable_name: Some(name.clone()),
        name: Some(name),
        description: Some(recipient.to_string()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        filter_subject: store.names.of_webhook(&recipient.webhook),
        max_ack_pending: MAX_PENDING,
        ..pull::Config::default()
    };
    store.consumer(config).await
}
