//! Taking deliveries in: one publish in the good case, and telling copies.

use std::{
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use tokio::time::timeout;

use super::{
    Shared, feed,
    record::{JobRecord, Standing, time},
    store::{REQUEST, Refused, Store, Which},
    wire::{JobKey, Meta, Stored, body_digest, message_id},
};
use crate::delivery::queue::{Delivery, Enqueued, QueueError, Recipient};

/// How often an enqueue tries again because others changed what it looked at.
const TRIES: usize = 8;

impl Shared {
    pub(super) async fn enqueue(&self, delivery: Delivery) -> Result<Enqueued, QueueError> {
        let store = self.ready()?;
        match timeout(REQUEST, self.take(store, &delivery)).await {
            Ok(taken) => {
                if taken == Err(QueueError::Full) {
                    self.full.store(true, Ordering::Relaxed);
                }
                taken
            }
            Err(_) => Err(QueueError::Unavailable("NATS does not answer in time".to_owned())),
        }
    }

    async fn take(&self, store: &Store, delivery: &Delivery) -> Result<Enqueued, QueueError> {
        for (destination, policy) in &delivery.destinations {
            let recipient = Recipient { webhook: delivery.webhook.clone(), destination: destination.clone() };
            feed::ensure(self, store, &recipient, policy.in_order).await?;
        }
        let digest = body_digest(&delivery.parcel.body);
        let headers = Meta::new(delivery, &digest).headers();
        let subject = store.names.delivery(delivery);
        let id = message_id(delivery);
        // With no window every delivery is a new one: nothing is compared.
        let compared = !self.window.is_zero();
        let mut id = compared.then_some(id.as_str());
        let mut expected = compared.then_some(0);
        let mut swept = false;
        if self.bytes.load(Ordering::Relaxed) >= self.retention.max_bytes {
            self.make_room(store).await?;
        }
        for _ in 0..TRIES {
            let body = delivery.parcel.body.clone();
            let published = store.publish(subject.clone(), Some(headers.clone()), body, id, expected).await;
            let known = match published {
                Ok(written) if !written.duplicate => return Ok(Enqueued::Queued),
                Ok(written) => {
                    // What the server knows by this ID is looked at, and then no more asked for.
                    id = None;
                    store.delivery(Which::At(written.sequence)).await?
                }
                Err(Refused::Stale) => match store.delivery(Which::Last(subject.clone())).await? {
                    Some(known) => Some(known),
                    None => {
                        expected = Some(0);
                        None
                    }
                },
                Err(Refused::Full) if !swept => {
                    swept = true;
                    self.make_room(store).await?;
                    None
                }
                Err(refused) => return Err(refused.into()),
            };
            if let Some(known) = known {
                match self.judge(store, &known, &digest).await? {
                    Judged::Told(enqueued) => return Ok(enqueued),
                    Judged::Dead(jobs) => {
                        for (job, record) in jobs {
                            call_back(store, &known, &job, &record).await?;
                        }
                        return Ok(Enqueued::Queued);
                    }
                    Judged::Over if known.subject == subject => expected = Some(known.sequence),
                    Judged::Over => {}
                }
            }
        }
        Err(Refused::Stale.into())
    }

    /// What a delivery is whose ID came before.
    async fn judge(&self, store: &Store, known: &Stored, digest: &str) -> Result<Judged, QueueError> {
        let now = SystemTime::now();
        let within = |at: SystemTime| now.duration_since(at).unwrap_or(Duration::ZERO) < self.window;
        let jobs = store.records(known).await?;
        let standing = |record: &Option<(u64, JobRecord)>| {
            record.as_ref().map_or(Standing::Waiting, |(_, record)| record.standing)
        };
        let waits = jobs.iter().any(|(_, record)| standing(record) == Standing::Waiting);
        let finished = jobs.iter().filter_map(|(_, record)| record.as_ref()?.1.finished.map(time)).max();
        let recent = finished.is_some_and(within);
        if known.meta.digest != digest {
            let taken = waits || recent || within(known.received);
            return Ok(if taken { Judged::Told(Enqueued::Conflict) } else { Judged::Over });
        }
        let dead: Vec<_> = jobs
            .iter()
            .filter(|(_, record)| standing(record) == Standing::Dead)
            .filter_map(|(job, record)| Some((job.clone(), record.clone()?.1)))
            .collect();
        if !dead.is_empty() {
            return Ok(Judged::Dead(dead));
        }
        Ok(if waits || recent { Judged::Told(Enqueued::Duplicate) } else { Judged::Over })
    }
}

/// What is to be done with a copy.
enum Judged {
    /// Nothing.
    Told(Enqueued),
    /// These jobs are called back.
    Dead(Vec<(JobKey, JobRecord)>),
    /// It is a new delivery: the other one is of the past.
    Over,
}

/// Lets a finished job wait again. The call is the commit: should this end before the record is written, whoever gets
/// the call writes it.
pub(super) async fn call_back(
    store: &Store,
    delivery: &Stored,
    job: &JobKey,
    record: &JobRecord,
) -> Result<(), QueueError> {
    use super::wire::{Again, Message};

    let unreadable = || QueueError::Unavailable(format!("job {} has a subject that is none", job.id()));
    let subject = store.names.again(&delivery.subject, job).ok_or_else(unreadable)?;
    let generation = record.generation.saturating_add(1);
    let last = store.message(Which::Last(subject.clone())).await?;
    let called = last.as_ref().and_then(|last| Message::read(&last.headers));
    if !matches!(called, Some(Message::Again(again)) if again.generation >= generation) {
        let again = Again { sequence: job.sequence, destination: job.destination.clone(), generation };
        let expected = last.map_or(0, |last| last.sequence);
        match store.publish(subject, Some(again.headers()), bytes::Bytes::new(), None, Some(expected)).await {
            // Somebody else called at the same time.
            Ok(_) | Err(Refused::Stale) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    revive(store, &delivery.meta.webhook, job, generation).await
}

/// Writes that a job waits again for the `generation`th time, unless that is written.
pub(super) async fn revive(
    store: &Store,
    webhook: &str,
    job: &JobKey,
    generation: u32,
) -> Result<(), QueueError> {
    for _ in 0..TRIES {
        let Some((sequence, mut record)) = store.record(webhook, job).await? else { return Ok(()) };
        if record.generation.saturating_add(1) != generation || record.standing == Standing::Purged {
            return Ok(());
        }
        let was_dead = record.standing == Standing::Dead;
        record.revive(generation);
        match store.write(webhook, job, sequence, &record).await {
            Ok(_) if was_dead => return store.mark(webhook, job, false).await,
            Ok(_) => return Ok(()),
            Err(Refused::Stale) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Refused::Stale.into())
}
