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
    store::Store,
};
use crate::delivery::queue::{Lease, Policy, QueueError, Recipient};

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
    pub(super) policy: Policy,
    /// Leases that callers wait for.
    wanted: AtomicUsize,
    /// Somebody wants more.
    demand: Notify,
    ready: Mutex<VecDeque<Ready>>,
    /// There are leases.
    arrived: Notify,
    ended: CancellationToken,
    asked: Mutex<Instant>,
    /// One at a time finds the newest of those that are alike: they would get into each other's way.
    pub(super) choosing: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("policy", &self.policy).finish_non_exhaustive()
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
    policy: Policy,
    max: usize,
) -> Result<Vec<Lease>, QueueError> {
    let max = max.max(1);
    shared.closed()?;
    let feed = feed(shared, recipient, policy);
    let _wish = Wish::new(&feed, max);
    loop {
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
            () = feed.ended.cancelled() => {
                return Err(QueueError::Unavailable("the destination's settings changed".to_owned()));
            }
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

/// The feed of a recipient; it is started if there is none, or if its policy changed.
fn feed(shared: &Arc<Shared>, recipient: &Recipient, policy: Policy) -> Arc<Feed> {
    let mut feeds = lock(&shared.feeds);
    if let Some(feed) = feeds.get(recipient).filter(|feed| feed.policy == policy) {
        return Arc::clone(feed);
    }
    let feed = Arc::new(Feed {
        policy,
        wanted: AtomicUsize::new(0),
        demand: Notify::new(),
        ready: Mutex::default(),
        arrived: Notify::new(),
        ended: shared.closing.child_token(),
        asked: Mutex::new(Instant::now()),
        choosing: tokio::sync::Mutex::new(()),
    });
    if let Some(former) = feeds.insert(recipient.clone(), Arc::clone(&feed)) {
        former.ended.cancel();
    }
    drop(feeds);
    for lane in 0..consumers_of(policy.in_order) {
        let (shared, weak) = (Arc::clone(shared), Arc::downgrade(&feed));
        let (recipient, ended) = (recipient.clone(), feed.ended.clone());
        let this = Arc::clone(&shared);
        shared.spawn(async move {
            let bring = async {
                let mut consumer = None;
                // The feed goes with its engine.
                while let Some(feed) = weak.upgrade() {
                    if let Err(error) = feed.bring(&this, &recipient, lane, &mut consumer).await {
                        tracing::debug!(%recipient, %error, "no deliveries can be leased now");
                        consumer = None;
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
    }
    feed
}

const fn consumers_of(in_order: bool) -> usize {
    if in_order { 17 } else { 1 }
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
        lane: usize,
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
        let store = shared.ready()?;
        let mut connections = shared.connections.subscribe();
        connections.mark_unchanged();
        let consumer = match consumer {
            Some(consumer) => consumer,
            None => {
                let (name, filter) = store
                    .names
                    .consumers(recipient, self.policy.in_order)
                    .into_iter()
                    .nth(lane)
                    .ok_or_else(|| QueueError::Unavailable("there is no such consumer".to_owned()))?;
                ensure(shared, store, recipient, self.policy.in_order).await?;
                self.still_has(shared, store, recipient, &name).await?;
                let found = create(store, recipient, name, filter, self.policy.in_order).await?;
                consumer.insert(found)
            }
        };
        let max = if self.policy.in_order { 1 } else { missing };
        let pull = consumer.batch().max_messages(max).expires(PULL).messages();
        let mut messages = pull.await.map_err(super::store::unavailable)?;
        let mut looked_at = FuturesUnordered::new();
        let mut open = true;
        while open || !looked_at.is_empty() {
            tokio::select! {
                message = messages.next(), if open => match message {
                    Some(Ok(message)) => looked_at.push(look(shared, store, recipient, self, message)),
                    Some(Err(error)) => return Err(QueueError::Unavailable(error.to_string())),
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

    /// Whether a consumer is there that was there once. Should it be gone because a replica with newer settings put one of
    /// the other kind in its place, it is not made again: every job would go to both.
    async fn still_has(
        &self,
        shared: &Shared,
        store: &Store,
        recipient: &Recipient,
        name: &str,
    ) -> Result<(), QueueError> {
        let present = store.consumers().await?;
        let is_there = |name: &str| present.iter().any(|consumer| consumer.name == name);
        if is_there(name) {
            return Ok(());
        }
        let others = store.names.consumers(recipient, !self.policy.in_order);
        if others.iter().any(|(other, _)| is_there(other)) {
            return Err(QueueError::Unavailable("another replica has other settings for it".to_owned()));
        }
        lock(&shared.known).remove(recipient);
        Err(QueueError::Unavailable("its consumer is gone".to_owned()))
    }

    /// Gives back what nobody asked for in a while: others may want it.
    fn release_idle(&self) {
        if self.wanted.load(Ordering::Acquire) == 0 && lock(&self.asked).elapsed() > IDLE {
            let idle = std::mem::take(&mut *lock(&self.ready));
            drop(idle);
        }
    }
}

/// Sees to it that a recipient has its consumers.
pub(super) async fn ensure(
    shared: &Shared,
    store: &Store,
    recipient: &Recipient,
    in_order: bool,
) -> Result<(), QueueError> {
    if lock(&shared.known).get(recipient) == Some(&in_order) {
        return Ok(());
    }
    for (name, filter) in store.names.consumers(recipient, in_order) {
        create(store, recipient, name, filter, in_order).await?;
    }
    // Those of the other kind would bring the same once more.
    let others = store.names.consumers(recipient, !in_order);
    let present = store.consumers().await?;
    for (name, _) in others {
        if present.iter().any(|consumer| consumer.name == name) {
            store.delete_consumer(&name).await;
        }
    }
    lock(&shared.known).insert(recipient.clone(), in_order);
    Ok(())
}

async fn create(
    store: &Store,
    recipient: &Recipient,
    name: String,
    filter: String,
    in_order: bool,
) -> Result<PullConsumer, QueueError> {
    let config = pull::Config {
        durable_name: Some(name.clone()),
        name: Some(name),
        description: Some(recipient.to_string()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        filter_subject: filter,
        max_ack_pending: if in_order { 1 } else { MAX_PENDING },
        ..pull::Config::default()
    };
    store.consumer(config).await
}
