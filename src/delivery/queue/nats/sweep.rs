//! Counting what there is, and forgetting what is old.
//!
//! Any replica sweeps, and all of them may at once: everything here may be done twice. A delivery is forgotten when all
//! its jobs may be. Its message goes first and its records then, because a job without a record would wait.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::{consumer, message::StreamMessage};
use tokio::time::Instant;

use super::{
    Shared,
    record::{JobRecord, Standing, time},
    store::{Scan, Store, Which},
    wire::{JobKey, Message},
};
use crate::delivery::queue::{Depth, QueueError, Recipient, Retention, Stock};

/// How many waiting messages are looked at to see for whom they are; beyond, their share is taken for that of the others.
const SAMPLE: u64 = 1024;
/// For how long a message may be in somebody's hand who has not looked at its record yet.
const IN_HAND: Duration = Duration::from_secs(60);
/// Room is looked for again after this time, if there was none.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two looks at how much room there is.
const BATCH: u32 = 256;

impl Shared {
    pub(super) async fn stock(&self, store: &Store) -> Result<Stock, QueueError> {
        let mut depths: BTreeMap<Recipient, Depth> = BTreeMap::new();
        for consumer in store.consumers().await? {
            let described = consumer.config.description.as_deref().and_then(|text| text.split_once('/'));
            let Some((webhook, destination)) = described else { continue };
            let recipient = Recipient { webhook: webhook.to_owned(), destination: destination.to_owned() };
            let (waiting, oldest) = waiting(store, &recipient, &consumer).await?;
            let depth = depths.entry(recipient).or_default();
            depth.waiting = depth.waiting.saturating_add(waiting);
            depth.oldest = [depth.oldest, oldest].into_iter().flatten().min();
        }
        for (webhook, job) in store.marked().await? {
            let depth = depths.entry(Recipient { webhook, destination: job.destination }).or_default();
            depth.dead = depth.dead.saturating_add(1);
        }
        Ok(Stock {
            depths: depths.into_iter().collect(),
            bytes: store.bytes().await?,
            log_bytes: 0,
            max_bytes: self.retention.max_bytes,
            dead_dropped: self.dead_dropped.load(Ordering::Relaxed),
        })
    }

    /// Forgets what is older than it may be, and makes room before there is none.
    pub(super) async fn sweep(&self, store: &Store) -> Result<(), QueueError> {
        let now = SystemTime::now();
        // The records are in the order in which they were written: what comes after a young one is as young. Only the first
        // time all are looked at, for what a process that was killed left undone.
        let Retention { retain, dead_retain, .. } = self.retention;
        let young = now.checked_sub(retain.min(dead_retain)).unwrap_or(SystemTime::UNIX_EPOCH);
        let first = !self.swept.load(Ordering::Relaxed);
        let mut marked: HashMap<JobKey, String> =
            store.marked().await?.into_iter().map(|(webhook, job)| (job, webhook)).collect();
        let mut scan = store.scan_records().await?;
        let mut seen = Seen::default();
        while let Some(Found { sequence, written, webhook, job, record }) = next(store, &mut scan).await? {
            if written > young && !first {
                break;
            }
            if record.standing == Standing::Dead && marked.remove(&job).is_none() {
                // Whoever wrote the record did not come to it.
                store.mark(&webhook, &job, true).await?;
            }
            let old = |since: Duration| {
                let finished = record.finished.map(time).and_then(|at| now.duration_since(at).ok());
                finished.is_some_and(|age| age >= since)
            };
            let gone = match record.standing {
                Standing::Waiting => false,
                Standing::Dead => old(dead_retain),
                Standing::Delivered | Standing::Coalesced => old(retain),
                Standing::Purged => old(retain.max(IN_HAND)),
            };
            if gone {
                self.forget(store, &mut seen, sequence, webhook, job, record).await?;
            }
        }
        scan.end().await;
        if !first {
            marked.clear();
        }
        self.swept.store(true, Ordering::Relaxed);
        for (job, webhook) in marked {
            let record = store.record(&webhook, &job).await?;
            if record.is_none_or(|(_, record)| record.standing != Standing::Dead) {
                store.mark(&webhook, &job, false).await?;
            }
        }
        // Nine tenths.
        if store.bytes().await? >= self.retention.max_bytes / 10 * 9 {
            drop(self.make_room(store).await);
        }
        Ok(())
    }

    /// Forgets finished ones, those that ended longest ago first, until a tenth is free again.
    pub(super) async fn make_room(&self, store: &Store) -> Result<(), QueueError> {
        // Who comes later finds the room that was made, or that there was none a moment ago.
        let mut failed = self.room.lock().await;
        if failed.is_some_and(|at| at.elapsed() < AGAIN) {
            return Err(QueueError::Full);
        }
        let enough = self.retention.max_bytes / 10 * 9;
        let mut bytes = store.bytes().await?;
        if bytes >= enough {
            let mut scan = store.scan_records().await?;
            let mut seen = Seen::default();
            let mut forgotten: u32 = 0;
            while let Some(Found { sequence, webhook, job, record, .. }) = next(store, &mut scan).await? {
                if !matches!(record.standing, Standing::Delivered | Standing::Coalesced | Standing::Purged) {
                    continue;
                }
                self.forget(store, &mut seen, sequence, webhook, job, record).await?;
                forgotten = forgotten.wrapping_add(1);
                if forgotten.is_multiple_of(BATCH) || scan.left() < u64::from(BATCH) {
                    bytes = store.bytes().await?;
                    if bytes < enough {
                        break;
                    }
                }
            }
            scan.end().await;
            bytes = store.bytes().await?;
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        if bytes >= self.retention.max_bytes || (bytes >= enough && self.full.load(Ordering::Relaxed)) {
            *failed = Some(Instant::now());
            return Err(QueueError::Full);
        }
        *failed = None;
        Ok(())
    }

    /// Forgets a job, if all jobs of its delivery may be forgotten: this is the last of them to be found.
    async fn forget(
        &self,
        store: &Store,
        seen: &mut Seen,
        sequence: u64,
        webhook: String,
        job: JobKey,
        record: JobRecord,
    ) -> Result<(), QueueError> {
        let expected = record.destinations.len().max(1);
        let delivery = job.sequence;
        let jobs = seen.0.entry(delivery).or_default();
        jobs.push((sequence, webhook, job, record.standing));
        if jobs.len() < expected {
            return Ok(());
        }
        let jobs = seen.0.remove(&delivery).unwrap_or_default();
        store.delete_delivery(delivery).await?;
        for (sequence, webhook, job, standing) in jobs {
            let dead = standing == Standing::Dead;
            if dead {
                store.mark(&webhook, &job, false).await?;
            }
            // Another replica may have been here first; then it is not to be counted twice.
            if store.delete_record(sequence).await? && dead {
                tracing::warn!(job = %job.id(), webhook, "a dead letter was dropped: it is older than `dead_retain`");
                self.dead_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Jobs that may be forgotten, by delivery, until all of one's jobs are found.
#[derive(Default)]
struct Seen(HashMap<u64, Vec<(u64, String, JobKey, Standing)>>);

/// A record as a scan finds it.
struct Found {
    sequence: u64,
    written: SystemTime,
    webhook: String,
    job: JobKey,
    record: JobRecord,
}

/// The next record.
async fn next(store: &Store, scan: &mut Scan) -> Result<Option<Found>, QueueError> {
    while let Some((sequence, message)) = scan.next().await? {
        if let Some((webhook, job)) = store.names.read_job(&message.subject)
            && let Ok(record) = serde_json::from_slice(&message.payload)
            && let Ok(info) = message.info()
        {
            let written = info.published.into();
            return Ok(Some(Found { sequence, written, webhook, job, record }));
        }
    }
    Ok(None)
}

/// How many jobs of a recipient wait, and since when.
async fn waiting(
    store: &Store,
    recipient: &Recipient,
    consumer: &consumer::Info,
) -> Result<(u64, Option<SystemTime>), QueueError> {
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
        let headers = message.headers.clone().unwrap_or_default();
        let is_its = match Message::read(&headers) {
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
    if let Some(Message::Again(again)) = Message::read(&message.headers)
        && let Some(delivery) = store.delivery(Which::At(again.sequence)).await?
    {
        return Ok(delivery.received);
    }
    Ok(message.time.into())
}
