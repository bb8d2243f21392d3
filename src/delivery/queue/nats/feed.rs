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
    time::{Duration, SystemTime},
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    message::AckKind,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    enqueue::revive,
    hold::{ACK_WAIT, InHand, Leased},
    lock,
    store::{Refused, Store, Which},
    wire::{JobKey, JobRecord, Message, Standing, Stored, millis, time},
};
use crate::delivery::queue::{Job, Lease, Policy, QueueError, Recipient};

/// For one request for messages. The server forgets it then.
const PULL: Duration = Duration::from_secs(5);
/// How long leases are kept that nobody asks for any more.
const IDLE: Duration = Duration::from_secs(3);
/// Before the server is asked again after an error.
const PAUSE: Duration = Duration::from_millis(250);
/// How many messages of a recipient may be leased or wait for their next attempt. What is beyond waits for these.
const MAX_PENDING: i64 = 65_536;
/// How often a job is looked at again because others changed it.
const TRIES: usize = 8;
/// How many later deliveries a job is compared with.
const MAX_ALIKE: usize = 4096;

/// What is brought to a recipient.
pub(super) struct Feed {
    policy: Policy,
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
    choosing: tokio::sync::Mutex<()>,
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

/// A lease that nobody has taken yet.
struct Ready {
    since: Instant,
    lease: Lease,
    webhook: String,
    job: JobKey,
    /// The sequence of the job's record, 0 for none.
    base: u64,
}

/// For so long what the record said is believed.
const FRESH: Duration = Duration::from_millis(250);

impl Ready {
    /// The lease, unless its job was changed while it lay here: forgotten, for one.
    async fn take(self, shared: &Shared) -> Option<Lease> {
        if self.since.elapsed() < FRESH {
            return Some(self.lease);
        }
        let record = shared.ready().ok()?.record(&self.webhook, &self.job).await.ok()?;
        (record.map_or(0, |(sequence, _)| sequence) == self.base).then_some(self.lease)
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

/// Whether a message is a job for now. If it is not, the server is told.
async fn look(
    shared: &Arc<Shared>,
    store: &Store,
    recipient: &Recipient,
    feed: &Feed,
    message: jetstream::Message,
) -> Option<Ready> {
    let reply = message.message.reply.as_ref()?.to_string();
    let in_hand = InHand::new(shared, &reply);
    let looking = Looking { store, recipient, feed };
    match looking.at(message, in_hand).await {
        Ok(lease) => lease,
        Err(error) => {
            tracing::debug!(%recipient, %error, "a delivery cannot be leased now");
            store.reply(&reply, AckKind::Nak(Some(PAUSE))).await;
            None
        }
    }
}

struct Looking<'a> {
    store: &'a Store,
    recipient: &'a Recipient,
    feed: &'a Feed,
}

/// What is to be done with a job that waits.
enum Turn {
    /// It is leased.
    Now,
    /// It is not due yet.
    Later(Duration),
    /// A newer one goes in its place.
    Superseded,
    /// Somebody else wrote its record: look again.
    Changed,
}

impl Looking<'_> {
    async fn at(
        &self,
        message: jetstream::Message,
        mut in_hand: InHand,
    ) -> Result<Option<Ready>, QueueError> {
        let store = self.store;
        let info = message.info().map_err(|error| QueueError::Unavailable(error.to_string()))?;
        let (sequence, received) = (info.stream_sequence, SystemTime::from(info.published));
        let headers = message.headers.clone().unwrap_or_default();
        let (delivery, generation) = match Message::read(&headers) {
            Some(Message::Delivery(meta)) => {
                let subject = message.subject.to_string();
                let body = message.payload.clone();
                (Stored { sequence, subject, received, meta: *meta, body }, 0)
            }
            Some(Message::Again(again)) => {
                if again.destination != self.recipient.destination {
                    // Its own consumer takes it.
                    store.reply(&in_hand.reply, AckKind::Ack).await;
                    return Ok(None);
                }
                in_hand.call = Some(sequence);
                match store.delivery(Which::At(again.sequence)).await? {
                    Some(delivery) => (delivery, again.generation),
                    None => {
                        in_hand.done(store).await;
                        return Ok(None);
                    }
                }
            }
            None => {
                tracing::error!(sequence, "a message in the queue is none of a delivery: it is passed over");
                store.reply(&in_hand.reply, AckKind::Term).await;
                return Ok(None);
            }
        };
        let destination = &self.recipient.destination;
        if delivery.meta.webhook != self.recipient.webhook
            || !delivery.meta.destinations.contains(destination)
        {
            in_hand.done(store).await;
            return Ok(None);
        }
        let job = delivery.job(destination);
        for _ in 0..TRIES {
            let mut base = store.record(&delivery.meta.webhook, &job).await?;
            if !waits(base.as_ref().map(|(_, record)| record), generation) {
                let called = base.as_ref().is_some_and(|(_, record)| {
                    record.is_finished()
                        && record.standing != Standing::Purged
                        && record.generation.saturating_add(1) == generation
                });
                if !called {
                    in_hand.done(store).await;
                    return Ok(None);
                }
                revive(store, &delivery.meta.webhook, &job, generation).await?;
                base = store.record(&delivery.meta.webhook, &job).await?;
                if !waits(base.as_ref().map(|(_, record)| record), generation) {
                    continue;
                }
            }
            match self.turn(&delivery, &job, base.as_ref(), &in_hand.reply).await? {
                Turn::Now => return Ok(self.lease(delivery, job, generation, base, in_hand)),
                Turn::Later(delay) => {
                    in_hand.later(store, delay).await;
                    return Ok(None);
                }
                Turn::Superseded => {
                    in_hand.done(store).await;
                    return Ok(None);
                }
                Turn::Changed => {}
            }
        }
        Err(Refused::Stale.into())
    }

    fn lease(
        &self,
        delivery: Stored,
        key: JobKey,
        generation: u32,
        base: Option<(u64, JobRecord)>,
        in_hand: InHand,
    ) -> Option<Ready> {
        let Stored { meta, body, received, .. } = delivery;
        let record = base.as_ref().map(|(_, record)| record);
        let job = Job {
            id: key.id(),
            recipient: self.recipient.clone(),
            parcel: meta.parcel(body)?,
            since: record.and_then(|record| record.since).map_or(received, time),
            attempts: record.map_or(0, |record| record.attempts),
            attempts_ever: record.map_or(0, |record| record.attempts_ever),
        };
        let ready = (meta.webhook.clone(), key.clone(), base.as_ref().map_or(0, |(sequence, _)| *sequence));
        let leased = Leased {
            store: self.store.clone(),
            in_hand,
            webhook: meta.webhook,
            job: key,
            generation,
            base,
            destinations: meta.destinations,
        };
        let (webhook, key, base) = ready;
        let lease = Lease::new(job, Box::new(leased));
        Some(Ready { since: Instant::now(), lease, webhook, job: key, base })
    }

    async fn turn(
        &self,
        delivery: &Stored,
        job: &JobKey,
        base: Option<&(u64, JobRecord)>,
        reply: &str,
    ) -> Result<Turn, QueueError> {
        let now = SystemTime::now();
        let record = base.map(|(_, record)| record);
        let wait = |due: SystemTime| due.duration_since(now).ok().filter(|left| !left.is_zero());
        if let Some(left) = record.and_then(|record| record.due).and_then(|due| wait(time(due))) {
            return Ok(Turn::Later(left));
        }
        let Some(window) = self.feed.policy.coalesce else { return Ok(Turn::Now) };
        if record.is_some_and(|record| record.chosen) {
            return Ok(Turn::Now);
        }
        let due = delivery.received.checked_add(window).unwrap_or(now);
        if record.is_none_or(|record| record.attempts == 0)
            && let Some(left) = wait(due)
        {
            let mut waiting =
                record.cloned().unwrap_or_else(|| JobRecord::waiting(&delivery.meta.destinations));
            waiting.due = Some(millis(due));
            waiting.reply = Some(reply.to_owned());
            let sequence = base.map_or(0, |(sequence, _)| *sequence);
            return match self.store.write(&delivery.meta.webhook, job, sequence, &waiting).await {
                Ok(_) => Ok(Turn::Later(left)),
                Err(Refused::Stale) => Ok(Turn::Changed),
                Err(refused) => Err(refused.into()),
            };
        }
        let _alone = self.feed.choosing.lock().await;
        let known = base.map(|(sequence, _)| *sequence);
        if self.store.record(&delivery.meta.webhook, job).await?.map(|(sequence, _)| sequence) != known {
            return Ok(Turn::Changed);
        }
        self.choose(delivery, job, base).await
    }

    /// Finds the newest of those that are alike, and lets it go in the place of all the others.
    async fn choose(
        &self,
        delivery: &Stored,
        job: &JobKey,
        base: Option<&(u64, JobRecord)>,
    ) -> Result<Turn, QueueError> {
        let alike = self.alike(delivery).await?;
        let mine = (delivery.meta.revision, delivery.sequence);
        let best = alike.iter().filter(|other| is_newer(other.age, mine)).max_by(|one, other| {
            if is_newer(one.age, other.age) { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less }
        });
        for other in alike.iter().filter(|other| best.is_none_or(|best| best.job != other.job)) {
            self.supersede(other).await?;
        }
        let Some(best) = best else { return Ok(Turn::Now) };
        let sequence = base.map_or(0, |(sequence, _)| *sequence);
        let mut record = base
            .map_or_else(|| JobRecord::waiting(&delivery.meta.destinations), |(_, record)| record.clone());
        record.finish(Standing::Coalesced);
        match self.store.write(&delivery.meta.webhook, job, sequence, &record).await {
            Ok(_) => {}
            Err(Refused::Stale) => return Ok(Turn::Changed),
            Err(refused) => return Err(refused.into()),
        }
        let sequence = best.base.as_ref().map_or(0, |(sequence, _)| *sequence);
        let mut chosen = best.record();
        if chosen.is_finished() {
            return Ok(Turn::Superseded);
        }
        let reply =
            chosen.reply.take().filter(|_| chosen.due.is_some_and(|due| time(due) > SystemTime::now()));
        chosen.due = None;
        chosen.chosen = true;
        match self.store.write(&self.recipient.webhook, &best.job, sequence, &chosen).await {
            Ok(_) => {
                if let Some(reply) = reply {
                    self.store.reply(&reply, AckKind::Nak(None)).await;
                }
            }
            // It is on its way already.
            Err(Refused::Stale) => {}
            Err(refused) => return Err(refused.into()),
        }
        Ok(Turn::Superseded)
    }

    /// Those after a delivery that are of the same environment and event, and wait. Those that are delivered, too: what
    /// came before them comes too late.
    async fn alike(&self, delivery: &Stored) -> Result<Vec<Alike>, QueueError> {
        let mut found = Vec::new();
        let Some(filter) = self.store.names.alike(&delivery.subject) else { return Ok(found) };
        let mut from = delivery.sequence;
        while found.len() < MAX_ALIKE {
            from = from.saturating_add(1);
            let Some(message) = self.store.message(Which::Next(filter.clone(), from)).await? else { break };
            from = message.sequence;
            let Some(other) = Stored::read(message) else { continue };
            let destination = &self.recipient.destination;
            if !delivery.meta.is_alike(&other.meta) || !other.meta.destinations.contains(destination) {
                continue;
            }
            let job = other.job(destination);
            let base = self.store.record(&self.recipient.webhook, &job).await?;
            let standing = base.as_ref().map_or(Standing::Waiting, |(_, record)| record.standing);
            let age = (other.meta.revision, other.sequence);
            if standing == Standing::Waiting || standing == Standing::Delivered {
                found.push(Alike { job, base, age, destinations: other.meta.destinations });
            }
            if standing == Standing::Delivered && is_newer(age, (delivery.meta.revision, delivery.sequence)) {
                // That settles it; those after that one see to themselves.
                break;
            }
        }
        Ok(found)
    }

    async fn supersede(&self, other: &Alike) -> Result<(), QueueError> {
        let mut record = other.record();
        if record.is_finished() {
            return Ok(());
        }
        let reply = record.reply.clone();
        record.finish(Standing::Coalesced);
        let sequence = other.base.as_ref().map_or(0, |(sequence, _)| *sequence);
        match self.store.write(&self.recipient.webhook, &other.job, sequence, &record).await {
            Ok(_) => {
                if let Some(reply) = reply {
                    self.store.reply(&reply, AckKind::Ack).await;
                }
                Ok(())
            }
            // Whoever changed it looks after it.
            Err(Refused::Stale) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }
}

/// Whether a message of this generation is a job that waits.
fn waits(record: Option<&JobRecord>, generation: u32) -> bool {
    match record {
        None => generation == 0,
        Some(record) => record.standing == Standing::Waiting && record.generation == generation,
    }
}

/// A later delivery of the same environment and event.
struct Alike {
    job: JobKey,
    base: Option<(u64, JobRecord)>,
    /// Its revision, and its place in the stream.
    age: Age,
    destinations: Vec<String>,
}

impl Alike {
    fn record(&self) -> JobRecord {
        match &self.base {
            Some((_, record)) => record.clone(),
            None => JobRecord::waiting(&self.destinations),
        }
    }
}

type Age = (Option<u64>, u64);

/// By the number of the revision, else by the order of arrival.
fn is_newer(one: Age, other: Age) -> bool {
    match (one.0, other.0) {
        (Some(mine), Some(yours)) if mine != yours => mine > yours,
        _ => one.1 > other.1,
    }
}
