//! Whether the streams agree with each other and with the consumers: either may have been lost, cleared or restored.
//!
//! A consumer's message is acknowledged after its job's record was written. So up to where a consumer has everything
//! acknowledged, its *floor*, every job has a record that says how it ended. Where records were lost, jobs wait that no
//! consumer will bring: they are called. Where deliveries were lost, a consumer may be further than the stream: it is made
//! again, and what it brings a second time has a record.
//!
//! Not everything is compared each time. How far a consumer is, is written to the stream of records every now and then,
//! with the last delivery of that moment: the [`Watermark`]. As long as both are still there, what was written before it is,
//! too, and only what came after it is compared.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use async_nats::{HeaderMap, jetstream::stream};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{
    Shared,
    enqueue::call,
    feed::{self, PAUSE},
    lock,
    shape::Shape,
    stock::recipient_of,
    store::{AT_ONCE, Store, Which},
    wire::{JobKey, Message},
};
use crate::delivery::queue::{QueueError, Recipient, State};

/// What was known of the streams when they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Known {
    set_up: bool,
    connection: Option<u64>,
    extents: Option<[Extent; 2]>,
    /// The comparison since then.
    audit: Option<JoinHandle<()>>,
    /// The floors that were written.
    floors: HashMap<Recipient, u64>,
}

/// What a stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    created: SystemTime,
    messages: u64,
    first: u64,
    last: u64,
}

impl Extent {
    fn of(info: &stream::Info) -> Self {
        let state = &info.state;
        let (messages, first, last) = (state.messages, state.first_sequence, state.last_sequence);
        Self { created: info.created.into(), messages, first, last }
    }

    /// Whether it is another one, or an older state of it.
    fn is_lost(&self, had: &Self) -> bool {
        self.created != had.created || self.last < had.last
    }

    /// Whether nothing of what it had is left.
    fn is_empty_of(&self, had: &Self) -> bool {
        let next = had.last.saturating_add(1);
        if had.messages > 0 { self.first >= next } else { self.first > next }
    }
}

/// How far a consumer is.
#[derive(Debug, Serialize, Deserialize)]
struct Watermark {
    /// Every job of it up to here has ended.
    floor: u64,
    /// The last message of the stream of deliveries, and when it was stored in nanoseconds since 1970.
    last: u64,
    stored: u128,
}

fn nanos(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()
}

impl Shared {
    /// Sees to it that the streams are there and as they must be, and that nothing is left behind where they are not what
    /// they were.
    pub(super) async fn look_at_streams(
        self: &Arc<Self>,
        store: &Store,
        shape: Shape,
        known: &mut Known,
        connection: u64,
    ) -> Result<(), QueueError> {
        let is_new = known.connection != Some(connection);
        let mut infos = if known.set_up && !is_new { store.infos().await.ok() } else { None };
        // A limit on the records is not the operator's: `max_bytes` covers both.
        infos = infos.filter(|[_, jobs]| jobs.config.max_bytes <= 0);
        let mut made = [false; 2];
        let infos = match infos {
            Some(infos) => infos,
            None => {
                known.set_up = false;
                lock(&self.known).clear();
                made = shape.impose(store).await?;
                known.set_up = true;
                store.infos().await?
            }
        };
        self.bytes.store(infos.iter().map(|info| info.state.bytes).sum(), Ordering::Relaxed);
        if let Some(objection) = shape.objection(store, &infos) {
            known.set_up = false;
            return Err(QueueError::Unavailable(objection));
        }
        let now = [Extent::of(&infos[0]), Extent::of(&infos[1])];
        let lost = known.extents.map_or([made[0] && now[1].messages > 0, false], |had| {
            [now[0].is_lost(&had[0]), now[1].is_lost(&had[1])]
        });
        // Records are deleted after their deliveries, and one by one.
        let is_cleared = known.extents.is_some_and(|had| now[1].is_empty_of(&had[1]));
        let is_doubtful = is_cleared || lost.contains(&true);
        for (lost, info) in lost.iter().zip(&infos) {
            if *lost {
                tracing::error!(
                    stream = info.config.name,
                    messages = info.state.messages,
                    last = info.state.last_sequence,
                    "the stream has lost what was in it: it was removed, cleared or restored to an older state"
                );
            }
        }
        if is_new || is_doubtful {
            if is_doubtful {
                lock(&self.known).clear();
                self.untidy.store(true, Ordering::Relaxed);
            }
            self.held.renew(store, Duration::ZERO).await;
            self.put_back(store).await?;
            let (this, of, trusted) = (Arc::clone(self), store.clone(), !is_doubtful);
            if let Some(former) = known.audit.take() {
                former.abort();
            }
            known.floors.clear();
            known.audit = Some(self.spawn(async move {
                let closing = this.closing.clone();
                closing.run_until_cancelled(this.audit(&of, trusted)).await;
            }));
        } else if known.extents != Some(now) && known.audit.as_ref().is_some_and(JoinHandle::is_finished) {
            self.note_floors(store, &infos[0].state, &mut known.floors).await?;
        }
        known.extents = Some(now);
        known.connection = Some(connection);
        Ok(())
    }

    /// Makes consumers again that are further than their stream: they would never bring what it takes in next.
    async fn put_back(&self, store: &Store) -> Result<(), QueueError> {
        let consumers = store.consumers().await?;
        let [deliveries, _] = store.infos().await?;
        for consumer in consumers {
            let last = deliveries.state.last_sequence;
            let Some(recipient) = recipient_of(&consumer) else { continue };
            if consumer.delivered.stream_sequence.max(consumer.ack_floor.stream_sequence) > last {
                tracing::error!(
                    %recipient,
                    last,
                    consumer = consumer.delivered.stream_sequence,
                    "the stream has lost its newest deliveries: its consumer is made again"
                );
                store.delete_consumer(&consumer.name).await;
                lock(&self.known).remove(&recipient);
                feed::ensure(self, store, &recipient).await?;
            }
        }
        Ok(())
    }

    /// Looks for jobs that wait and that nobody will bring, until all was looked at.
    async fn audit(&self, store: &Store, trusted: bool) {
        loop {
            match self.find_stuck(store, trusted).await {
                Ok(0) => return,
                Ok(called) => {
                    tracing::error!(
                        stream = store.names.jobs,
                        called,
                        "deliveries have lost the record of how they ended: they are made again"
                    );
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "the streams cannot be compared now");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Calls jobs that wait and that no consumer will bring. How many they were.
    async fn find_stuck(&self, store: &Store, trusted: bool) -> Result<u64, QueueError> {
        let mut called: u64 = 0;
        for consumer in store.consumers().await? {
            let Some(recipient) = recipient_of(&consumer) else { continue };
            let floor = consumer.ack_floor.stream_sequence;
            let from = if trusted { self.sure(store, &recipient).await? } else { 0 };
            if from >= floor {
                continue;
            }
            let mut scan =
                store.scan_deliveries(consumer.config.filter_subject.clone(), from.saturating_add(1)).await?;
            let mut some = Vec::new();
            loop {
                let next = scan.next().await?.filter(|(sequence, _)| *sequence <= floor);
                let end = next.is_none();
                if let Some((sequence, message)) = next {
                    some.extend(job_of(&recipient, sequence, message.headers.as_ref()));
                }
                if end || some.len() >= AT_ONCE {
                    let calls = call_stuck(store, &recipient, std::mem::take(&mut some), floor).await?;
                    called = called.saturating_add(calls);
                }
                if end {
                    break;
                }
            }
            scan.end().await;
        }
        Ok(called)
    }

    /// Up to where a recipient's jobs are sure to have their records.
    async fn sure(&self, store: &Store, recipient: &Recipient) -> Result<u64, QueueError> {
        let Some(mark) = store.last_of_jobs(store.names.watermark(recipient)).await? else { return Ok(0) };
        let Ok(mark) = serde_json::from_slice::<Watermark>(&mark.payload) else { return Ok(0) };
        let [deliveries, _] = store.infos().await?;
        let state = deliveries.state;
        let stored = if state.last_sequence == mark.last {
            Some(SystemTime::from(state.last_timestamp))
        } else {
            store.message(Which::At(mark.last)).await?.map(|message| message.time.into())
        };
        if state.last_sequence < mark.last {
            tracing::error!(
                stream = store.names.deliveries,
                last = state.last_sequence,
                known = mark.last,
                "the stream has lost its newest deliveries: it was removed, or restored to an older state"
            );
        }
        Ok(if stored.map(nanos) == Some(mark.stored) { mark.floor } else { 0 })
    }

    /// Writes how far consumers are.
    async fn note_floors(
        &self,
        store: &Store,
        deliveries: &stream::State,
        written: &mut HashMap<Recipient, u64>,
    ) -> Result<(), QueueError> {
        for consumer in store.consumers().await? {
            let Some(recipient) = recipient_of(&consumer) else { continue };
            let floor = consumer.ack_floor.stream_sequence.min(deliveries.last_sequence);
            if written.get(&recipient) == Some(&floor) {
                continue;
            }
            let stored = nanos(deliveries.last_timestamp.into());
            let mark = Watermark { floor, last: deliveries.last_sequence, stored };
            let payload = Bytes::from(serde_json::to_vec(&mark).unwrap_or_default());
            store.publish(store.names.watermark(&recipient), None, payload, None, None).await?;
            written.insert(recipient, floor);
        }
        Ok(())
    }
}

/// The job of a recipient that a message is of.
fn job_of(recipient: &Recipient, sequence: u64, headers: Option<&HeaderMap>) -> Option<JobKey> {
    let destination = &recipient.destination;
    match Message::read(headers)? {
        Message::Delivery(meta) => {
            let is_its = meta.webhook == recipient.webhook && meta.destinations.contains(destination);
            is_its.then(|| meta.job(sequence, destination))
        }
        Message::Again(again) => (again.destination == *destination).then(|| again.job()),
    }
}

async fn call_stuck(
    store: &Store,
    recipient: &Recipient,
    jobs: Vec<JobKey>,
    floor: u64,
) -> Result<u64, QueueError> {
    let mut called: u64 = 0;
    for (job, record) in store.records(&recipient.webhook, jobs).await? {
        let record = record.map(|(_, record)| record);
        let waits = record.as_ref().is_none_or(|record| record.state() == Some(State::Waiting));
        let calls = record.map_or(0, |record| record.calls);
        if waits && call(store, &recipient.webhook, &job, calls, floor).await? {
            called = called.saturating_add(1);
        }
    }
    Ok(called)
}
