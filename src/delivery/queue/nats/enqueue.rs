//! Taking deliveries in: one publish in the good case, and telling copies.

use std::{
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    SERVER_WINDOW, Shared, feed,
    record::{JobRecord, time},
    store::{REQUEST, Refused, Store, Which},
    wire::{Again, JobKey, Message, Meta, Stored, body_digest, message_id},
};
use crate::delivery::queue::{Delivery, Enqueued, QueueError, Recipient, State};

/// How often an enqueue tries again because others changed what it looked at.
const TRIES: usize = 8;

impl Shared {
    pub(super) async fn enqueue(&self, delivery: Delivery) -> Result<Enqueued, QueueError> {
        let store = self.takes()?;
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
        for (destination, _) in &delivery.destinations {
            let recipient = Recipient { webhook: delivery.webhook.clone(), destination: destination.clone() };
            feed::ensure(self, store, &recipient).await?;
        }
        let digest = body_digest(delivery.parcel.body.bytes());
        let headers = Meta::new(delivery, &digest).headers();
        let subject = store.names.delivery(delivery);
        let id = message_id(delivery);
        // With no window every delivery is a new one: nothing is compared.
        let compared = !self.window.is_zero();
        let mut id = compared.then_some(id.as_str());
        let mut expected = compared.then_some(0);
        let mut swept = false;
        if self.window > SERVER_WINDOW
            && let Some(told) = self.judge_gone(store, delivery, &digest).await?
        {
            return Ok(told);
        }
        if self.bytes.load(Ordering::Relaxed) >= self.retention.max_bytes {
            self.make_room(store).await?;
        }
        for _ in 0..TRIES {
            let body = delivery.parcel.body.bytes().clone();
            let published = store.publish(subject.clone(), Some(headers.clone()), body, id, expected).await;
            let known = match published {
                Ok(written) if !written.duplicate => return Ok(Enqueued::Queued),
                Ok(written) => {
                    // What the server knows by this ID is looked at, and then no more asked for.
                    id = None;
                    let known = store.delivery(Which::At(written.sequence)).await?;
                    if known.is_none()
                        && let Some(told) = self.judge_gone(store, delivery, &digest).await?
                    {
                        return Ok(told);
                    }
                    known
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
                            call_back(store, &known.meta.webhook, &job, &record).await?;
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

    /// What a delivery is whose ID came before and was delivered, and whose first copy is gone from the log.
    async fn judge_gone(
        &self,
        store: &Store,
        delivery: &Delivery,
        digest: &str,
    ) -> Result<Option<Enqueued>, QueueError> {
        let id = delivery.parcel.id.to_str().unwrap_or_default();
        let Some(gone) = store.remembered(&delivery.webhook, id).await? else { return Ok(None) };
        let age = SystemTime::now().duration_since(time(gone.finished)).unwrap_or_default();
        let told = if gone.digest == digest { Enqueued::Duplicate } else { Enqueued::Conflict };
        Ok((age < self.window).then_some(told))
    }

    /// What a delivery is whose ID came before.
    async fn judge(&self, store: &Store, known: &Stored, digest: &str) -> Result<Judged, QueueError> {
        let now = SystemTime::now();
        let within = |at: SystemTime| now.duration_since(at).unwrap_or(Duration::ZERO) < self.window;
        let jobs = store.records(&known.meta.webhook, known.jobs()).await?;
        let state = |record: &Option<(u64, JobRecord)>| match record {
            None => Some(State::Waiting),
            Some((_, record)) => record.state(),
        };
        let waits = jobs.iter().any(|(_, record)| state(record) == Some(State::Waiting));
        let finished = jobs.iter().filter_map(|(_, record)| record.as_ref()?.1.finished()).max();
        let recent = finished.is_some_and(within);
        if known.meta.digest != digest {
            let taken = waits || recent || within(known.received);
            return Ok(if taken { Judged::Told(Enqueued::Conflict) } else { Judged::Over });
        }
        let dead: Vec<_> = jobs
            .iter()
            .filter(|(_, record)| state(record) == Some(State::Dead))
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
    webhook: &str,
    job: &JobKey,
    record: &JobRecord,
) -> Result<(), QueueError> {
    let calls = record.calls.saturating_add(1);
    call(store, webhook, job, calls, 0).await?;
    revive(store, webhook, job, calls).await
}

/// Publishes a job's call, its `calls`th one, unless there is one that the server has not brought yet: those up to `brought`
/// it has. Whether it was published.
pub(super) async fn call(
    store: &Store,
    webhook: &str,
    job: &JobKey,
    calls: u32,
    brought: u64,
) -> Result<bool, QueueError> {
    let subject = store.names.again(webhook, job);
    let last = store.message(Which::Last(subject.clone())).await?;
    let called = last.as_ref().filter(|last| last.sequence > brought);
    if let Some(Message::Again(again)) = called.and_then(|last| Message::read(Some(&last.headers)))
        && again.calls >= calls
    {
        return Ok(false);
    }
    let headers = Again::new(job, calls).headers();
    let expected = last.map_or(0, |last| last.sequence);
    match store.publish(subject, Some(headers), Bytes::new(), None, Some(expected)).await {
        Ok(_) => Ok(true),
        // Somebody else called at the same time.
        Err(Refused::Stale) => Ok(false),
        Err(refused) => Err(refused.into()),
    }
}

/// Writes that a job waits again for the `calls`th time, unless that is written.
pub(super) async fn revive(store: &Store, webhook: &str, job: &JobKey, calls: u32) -> Result<(), QueueError> {
    for _ in 0..TRIES {
        let Some((sequence, mut record)) = store.record(webhook, job).await? else { return Ok(()) };
        let Some(was) = record.state().filter(|_| record.calls.saturating_add(1) == calls) else {
            return Ok(());
        };
        record.revive(calls);
        match store.write(webhook, job, sequence, &record).await {
            Ok(_) if was == State::Dead => return store.mark(webhook, job, false).await,
            Ok(_) => return Ok(()),
            Err(Refused::Stale) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Refused::Stale.into())
}
