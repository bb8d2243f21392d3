//! Counting what there is. What has not changed is not counted again, and what takes long to count is counted less often.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::{consumer, message::StreamMessage, stream};
use tokio::time::Instant;

use super::{
    Shared, lock,
    store::{Store, Which},
    wire::Message,
};
use crate::delivery::queue::{Depth, QueueError, Recipient, Stock};

/// How many waiting messages are looked at to see for whom they are; beyond, their share is taken for that of the others.
const SAMPLE: u64 = 1024;
/// So many dead letters are counted whenever something has changed.
const FEW: usize = 1024;
/// Counting more of them takes at most one part in so many of the time, but for this.
const SHARE: u32 = 10;
const SELDOM: Duration = Duration::from_secs(15);

/// What was counted last.
#[derive(Debug, Default)]
pub(super) struct Counted {
    dead: BTreeMap<Recipient, u64>,
    /// Where the stream of records was then, when that was, and how long it took.
    jobs: (u64, u64),
    at: Option<Instant>,
    took: Duration,
    waiting: HashMap<Recipient, (Place, Waiting)>,
}

/// What a count of waiting jobs depends on: how far the consumer is, and the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    delivered: u64,
    done: u64,
    brought: usize,
    pending: u64,
    last: u64,
}

/// How many wait, and since when.
type Waiting = (u64, Option<SystemTime>);

impl Shared {
    pub(super) async fn stock(&self, store: &Store) -> Result<Stock, QueueError> {
        let mut counted = lock(&self.counted).take().unwrap_or_default();
        let [deliveries, jobs] = store.infos().await?;
        let mut depths: BTreeMap<Recipient, Depth> = BTreeMap::new();
        let mut waiting = HashMap::new();
        for consumer in store.consumers().await? {
            let Some(recipient) = recipient_of(&consumer) else { continue };
            let place = Place {
                delivered: consumer.delivered.stream_sequence,
                done: consumer.ack_floor.stream_sequence,
                brought: consumer.num_ack_pending,
                pending: consumer.num_pending,
                last: deliveries.state.last_sequence,
            };
            let found = match counted.waiting.get(&recipient).filter(|(was, _)| *was == place) {
                Some((_, found)) => *found,
                None => count_waiting(store, &recipient, &consumer).await?,
            };
            depths.insert(recipient.clone(), Depth { waiting: found.0, oldest: found.1, dead: 0 });
            waiting.insert(recipient, (place, found));
        }
        counted.waiting = waiting;
        counted.count_dead(store, &jobs.state).await?;
        for (recipient, dead) in &counted.dead {
            depths.entry(recipient.clone()).or_default().dead = *dead;
        }
        *lock(&self.counted) = Some(counted);
        Ok(Stock {
            depths: depths.into_iter().collect(),
            bytes: deliveries.state.bytes.saturating_add(jobs.state.bytes),
            log_bytes: 0,
            max_bytes: self.retention.max_bytes,
            dead_dropped: self.dead_dropped.load(Ordering::Relaxed),
        })
    }
}

impl Counted {
    async fn count_dead(&mut self, store: &Store, jobs: &stream::State) -> Result<(), QueueError> {
        let place = (jobs.last_sequence, jobs.messages);
        let too_soon = self.took.saturating_mul(SHARE).min(SELDOM);
        if let Some(at) = self.at
            && (self.jobs == place || at.elapsed() < too_soon)
        {
            return Ok(());
        }
        let began = Instant::now();
        let marked = store.marked(store.names.marks(None, None)).await?;
        let few = marked.len() < FEW;
        self.dead.clear();
        for (webhook, job) in marked {
            let recipient = Recipient { webhook, destination: job.destination };
            let dead = self.dead.entry(recipient).or_default();
            *dead = dead.saturating_add(1);
        }
        self.jobs = place;
        self.at = Some(began);
        self.took = if few { Duration::ZERO } else { began.elapsed() };
        Ok(())
    }
}

/// Whose consumer this is. `None`: it is not hookgate's.
pub(super) fn recipient_of(consumer: &consumer::Info) -> Option<Recipient> {
    let (webhook, destination) = consumer.config.description.as_deref()?.split_once('/')?;
    Some(Recipient { webhook: webhook.to_owned(), destination: destination.to_owned() })
}

/// How many jobs of a recipient wait, and since when.
async fn count_waiting(
    store: &Store,
    recipient: &Recipient,
    consumer: &consumer::Info,
) -> Result<Waiting, QueueError> {
    let brought = u64::try_from(consumer.num_ack_pending).unwrap_or(u64::MAX);
    let filter = &consumer.config.filter_subject;
    let mut oldest = None;
    if brought > 0 {
        // All before it is done.
        let from = consumer.ack_floor.stream_sequence.saturating_add(1);
        if let Some(message) = store.message(Which::Next(filter.clone(), from)).await? {
            oldest = Some(received(store, message).await?);
        }
    }
    if consumer.num_pending == 0 {
        return Ok((brought, oldest));
    }
    // What was not brought yet may be for other destinations.
    let from = consumer.delivered.stream_sequence.saturating_add(1);
    let mut scan = store.scan_deliveries(filter.clone(), from).await?;
    let all = scan.left();
    let (mut looked, mut its): (u64, u64) = (0, 0);
    while looked < SAMPLE
        && let Some((sequence, message)) = scan.next().await?
    {
        looked = looked.saturating_add(1);
        let is_its = match Message::read(message.headers.as_ref()) {
            Some(Message::Delivery(meta)) => meta.destinations.contains(&recipient.destination),
            Some(Message::Again(again)) => again.destination == recipient.destination,
            None => false,
        };
        if is_its {
            its = its.saturating_add(1);
            if oldest.is_none()
                && let Some(message) = store.message(Which::At(sequence)).await?
            {
                oldest = Some(received(store, message).await?);
            }
        }
    }
    scan.end().await;
    let share = if looked == all { its } else { its.saturating_mul(all).checked_div(looked).unwrap_or(0) };
    Ok((brought.saturating_add(share), oldest))
}

/// When the delivery was accepted that a message is of.
async fn received(store: &Store, message: StreamMessage) -> Result<SystemTime, QueueError> {
    if let Some(Message::Again(again)) = Message::read(Some(&message.headers))
        && let Some(delivery) = store.delivery(Which::At(again.job().sequence)).await?
    {
        return Ok(delivery.received);
    }
    Ok(message.time.into())
}
