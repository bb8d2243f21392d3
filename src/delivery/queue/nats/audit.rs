//! Whether the streams agree with each other and with the consumers: any of them may have been lost, cleared or restored.
//!
//! A consumer's message is acknowledged after its job's record was written. So up to where a consumer has everything
//! acknowledged, its *floor*, every job has a record that says how it ended. Where records were lost, jobs wait that no
//! consumer will bring: they are called. Where deliveries were lost, a consumer may be further than the stream: it is made
//! again, and what it brings a second time has a record.
//!
//! All of it is compared, and nothing is remembered for it: in the background, whenever a connection was made or a stream
//! is not what it was.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::stream;
use tokio::task::JoinHandle;

use super::{
    Shared,
    enqueue::call,
    lock,
    record::JobRecord,
    stock::recipient_of,
    store::{AT_ONCE, Refused, Store},
    sweep::{Found, next},
    wire::{JobKey, Message},
};
use crate::delivery::queue::{QueueError, State};

/// Before streams are compared again that could not be.
const PAUSE: Duration = Duration::from_millis(250);

/// What was known of the streams when they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Known {
    connection: Option<u64>,
    infos: Option<[stream::Info; 2]>,
    /// The comparison since then.
    audit: Option<JoinHandle<()>>,
    /// The server's limit of a message that was warned of.
    pub(super) warned: Option<usize>,
}

/// Whether a stream is another one than it was, or an older state of it.
fn is_lost(now: &stream::Info, had: &stream::Info) -> bool {
    now.created != had.created || now.state.last_sequence < had.state.last_sequence
}

/// Whether nothing of what a stream had is left. Of one that was empty: whatever was written since.
fn is_empty_of(now: &stream::Info, had: &stream::Info) -> bool {
    let next = had.state.last_sequence.saturating_add(1);
    let first = now.state.first_sequence;
    if had.state.messages > 0 { first >= next } else { first > next }
}

impl Shared {
    /// Sees to it that the streams are there and as they must be, and that nothing is left behind where they are not what
    /// they were.
    pub(super) async fn look_at_streams(
        self: &Arc<Self>,
        store: &Store,
        known: &mut Known,
        connection: u64,
    ) -> Result<(), QueueError> {
        let is_new = known.connection != Some(connection);
        let infos = self.shape.impose(store, is_new).await?;
        self.note_bytes(&infos);
        let had = known.infos.replace(infos.clone()).unwrap_or_else(|| infos.clone());
        let lost: Vec<_> = infos.iter().zip(&had).filter(|(now, had)| is_lost(now, had)).collect();
        for (info, _) in &lost {
            tracing::error!(
                stream = info.config.name,
                messages = info.state.messages,
                last = info.state.last_sequence,
                "the stream has lost what was in it: it was removed, cleared or restored to an older state"
            );
        }
        // Records are deleted after their deliveries, and one by one.
        if is_new || !lost.is_empty() || is_empty_of(&infos[1], &had[1]) {
            // Until it has come through, it is done again.
            known.connection = None;
            lock(&self.consumers).clear();
            self.held.renew(store, Duration::ZERO).await;
            self.put_back(store, infos[0].state.last_sequence).await?;
            if let Some(former) = known.audit.take() {
                former.abort();
            }
            let (this, of) = (Arc::clone(self), store.clone());
            known.audit = Some(self.spawn(async move {
                let closing = this.closing.clone();
                closing.run_until_cancelled(this.audit(&of)).await;
            }));
            known.connection = Some(connection);
        }
        Ok(())
    }

    /// Makes consumers again that are further than their stream: they would never bring what it takes in next.
    async fn put_back(&self, store: &Store, last: u64) -> Result<(), QueueError> {
        for consumer in store.consumers().await? {
            let Some(recipient) = recipient_of(&consumer) else { continue };
            let at = consumer.delivered.stream_sequence.max(consumer.ack_floor.stream_sequence);
            if at > last {
                tracing::error!(
                    %recipient,
                    last,
                    consumer = at,
                    "the stream has lost its newest deliveries: its consumer is made again"
                );
                store.delete_consumer(&consumer.name).await;
                lock(&self.consumers).remove(&recipient);
                self.consumer(store, &recipient).await?;
            }
        }
        Ok(())
    }

    /// Compares everything, until that has come through.
    async fn audit(&self, store: &Store) {
        while let Err(error) = self.compare(store).await {
            tracing::debug!(%error, "the streams cannot be compared now");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn compare(&self, store: &Store) -> Result<(), QueueError> {
        self.call_stuck(store).await?;
        self.clear_up(store).await
    }

    /// Calls jobs that wait and that no consumer will bring.
    async fn call_stuck(&self, store: &Store) -> Result<(), QueueError> {
        let mut called: u64 = 0;
        for consumer in store.consumers().await? {
            let Some(recipient) = recipient_of(&consumer) else { continue };
            let floor = consumer.ack_floor.stream_sequence;
            let mut scan = store.scan_deliveries(consumer.config.filter_subject, 1).await?;
            let mut ended = floor == 0;
            while !ended {
                let mut some = Vec::new();
                while some.len() < AT_ONCE && !ended {
                    let next = scan.next().await?.filter(|(sequence, _)| *sequence <= floor);
                    ended = next.is_none();
                    some.extend(next.and_then(|(sequence, message)| {
                        Message::read(message.headers.as_ref())?.job(sequence, &recipient)
                    }));
                }
                for (job, record) in store.records(some).await? {
                    let record = record.unwrap_or_else(JobRecord::waiting);
                    if record.state == Some(State::Waiting) && call(store, &job, record.calls, floor).await? {
                        called = called.saturating_add(1);
                    }
                }
            }
            scan.end().await;
        }
        if called > 0 {
            tracing::error!(
                stream = store.names.jobs,
                called,
                "deliveries have lost the record of how they ended: they are made again"
            );
        }
        Ok(())
    }

    /// Deletes what is left of deliveries that are gone, and marks of jobs that are not dead. A record that nobody can read is
    /// set aside.
    async fn clear_up(&self, store: &Store) -> Result<(), QueueError> {
        let mut gone: u64 = 0;
        let mut scan = store.scan_records(store.names.all('j'), 1).await?;
        while let Some(Found { job, record, .. }) = next(store, &mut scan).await? {
            if !matches!(record.state, Some(State::Dead | State::Waiting)) {
                continue;
            }
            if store.delivery_of(&job).await?.is_none() {
                gone = gone.saturating_add(1);
                store.delete_record(record.sequence).await?;
            } else if record.unreadable {
                set_aside(store, &job, record).await?;
            }
        }
        scan.end().await;
        if gone > 0 {
            tracing::error!(
                stream = store.names.deliveries,
                gone,
                "deliveries that waited or were dead are gone from the stream: it was lost, cleared or restored"
            );
        }
        for job in store.marked(store.names.marks(None, None)).await? {
            if store.record(&job).await?.is_none_or(|record| record.state != Some(State::Dead)) {
                store.unmark(&job).await?;
            }
        }
        Ok(())
    }
}

/// Lets a job whose record cannot be read be a dead letter, which a person sees and may deliver again.
async fn set_aside(store: &Store, job: &JobKey, record: JobRecord) -> Result<(), QueueError> {
    match store.write(job, record).await {
        Ok(()) => {
            tracing::error!(job = %job.id(), webhook = job.webhook, "what was recorded of a delivery cannot be read: it is set aside as a dead letter");
            Ok(())
        }
        // It was written anew meanwhile.
        Err(Refused::Stale) => Ok(()),
        Err(refused) => Err(refused.into()),
    }
}
