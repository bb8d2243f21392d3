//! Taking deliveries in: one publish in the good case, and telling copies.

use std::{sync::atomic::Ordering, time::SystemTime};

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    Shared, TRIES,
    record::{JobRecord, time},
    store::{REQUEST, Refused, Store, Which},
    wire::{Again, JobKey, Message, Meta, Stored},
};
use crate::delivery::queue::{Delivery, Enqueued, QueueError, Recipient, State};

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
            self.consumer(store, &recipient).await?;
        }
        let meta = Meta::new(delivery);
        let headers = meta.headers();
        let subject = store.names.of_id(Some(&meta.webhook), meta.id.as_bytes());
        // With no window every delivery is a new one: nothing is compared.
        let compared = !self.window.is_zero();
        let mut expected = compared.then_some(0);
        if compared && let Some(told) = self.judge_gone(store, &meta).await? {
            return Ok(told);
        }
        if self.bytes.load(Ordering::Relaxed) >= self.retention.max_bytes {
            self.make_room(store).await?;
        }
        let mut made_room = false;
        for _ in 0..TRIES {
            let body = delivery.parcel.body.bytes().clone();
            match store.publish(subject.clone(), headers.clone(), body, expected).await {
                Ok(_) => return Ok(Enqueued::Queued),
                Err(Refused::Stale) => {}
                Err(Refused::Full) if !made_room => {
                    made_room = true;
                    self.make_room(store).await?;
                    continue;
                }
                Err(refused) => return Err(refused.into()),
            }
            let last = store.message(Which::Last(subject.clone())).await?;
            expected = Some(last.as_ref().map_or(0, |last| last.sequence));
            let Some(known) = last.and_then(Stored::read) else { continue };
            if let Some(told) = self.judge(store, &known, &meta).await? {
                return Ok(told);
            }
        }
        Err(Refused::Stale.into())
    }

    /// What a delivery is whose ID came before and was delivered, and whose first copy is gone from the log.
    async fn judge_gone(&self, store: &Store, meta: &Meta) -> Result<Option<Enqueued>, QueueError> {
        let gone = store.remembered(&meta.webhook, meta.id.as_bytes()).await?;
        let gone = gone.filter(|gone| self.is_recent(time(gone.finished)));
        Ok(gone.map(|gone| if gone.digest == meta.digest { Enqueued::Duplicate } else { Enqueued::Conflict }))
    }

    /// What a delivery is whose ID came before. `None`: a new one, since the other one is of the past.
    async fn judge(
        &self,
        store: &Store,
        known: &Stored,
        meta: &Meta,
    ) -> Result<Option<Enqueued>, QueueError> {
        let jobs = store.records(known.jobs()).await?;
        let jobs = jobs.into_iter().map(|(job, record)| (job, record.unwrap_or_else(JobRecord::waiting)));
        let (dead, others): (Vec<_>, Vec<_>) = jobs.partition(|(_, it)| it.state == Some(State::Dead));
        let waits = others.iter().any(|(_, record)| record.state == Some(State::Waiting));
        let finished = others.iter().chain(&dead).filter_map(|(_, record)| record.finished());
        let recent = finished.max().is_some_and(|at| self.is_recent(at));
        if known.meta.digest != meta.digest {
            let taken = waits || recent || self.is_recent(known.received);
            return Ok(taken.then_some(Enqueued::Conflict));
        }
        for (job, record) in &dead {
            call_back(store, job, record).await?;
        }
        if !dead.is_empty() {
            return Ok(Some(Enqueued::Queued));
        }
        Ok((waits || recent).then_some(Enqueued::Duplicate))
    }

    /// Whether something was within the window. What is of the future was.
    fn is_recent(&self, at: SystemTime) -> bool {
        SystemTime::now().duration_since(at).unwrap_or_default() < self.window
    }
}

/// Lets a finished job wait again. The call is the commit: should this end before the record is written, whoever gets
/// the call writes it.
pub(super) async fn call_back(store: &Store, job: &JobKey, record: &JobRecord) -> Result<(), QueueError> {
    let calls = record.calls.saturating_add(1);
    call(store, job, calls, 0).await?;
    revive(store, job, calls).await
}

/// Publishes a job's call, its `calls`th one, unless there is one that the server has not brought yet: those up to `brought`
/// it has. Whether it was published.
pub(super) async fn call(store: &Store, job: &JobKey, calls: u32, brought: u64) -> Result<bool, QueueError> {
    let subject = store.names.again(job);
    let last = store.message(Which::Last(subject.clone())).await?;
    let called = last.as_ref().filter(|last| last.sequence > brought);
    if let Some(Message::Again(again)) = called.and_then(|last| Message::read(Some(&last.headers)))
        && again.calls >= calls
    {
        return Ok(false);
    }
    let headers = Again { job: job.clone(), calls }.headers();
    let expected = last.map_or(0, |last| last.sequence);
    match store.publish(subject, headers, Bytes::new(), Some(expected)).await {
        Ok(_) => Ok(true),
        // Somebody else called at the same time.
        Err(Refused::Stale) => Ok(false),
        Err(refused) => Err(refused.into()),
    }
}

/// Writes that a job waits again for the `calls`th time, unless that is written.
pub(super) async fn revive(store: &Store, job: &JobKey, calls: u32) -> Result<(), QueueError> {
    for _ in 0..TRIES {
        let record = store.record(job).await?.filter(|record| record.state.is_some());
        let Some(mut record) = record.filter(|record| record.calls.saturating_add(1) == calls) else {
            return Ok(());
        };
        record.revive(calls);
        match store.write(job, record).await {
            Err(Refused::Stale) => {}
            written => return written.map_err(Into::into),
        }
    }
    Err(Refused::Stale.into())
}
