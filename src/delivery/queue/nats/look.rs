//! What a message of the server is: a job for now, one for later, or none any more.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::{self, message::AckKind};
use tokio::time::Instant;

use super::{
    Shared,
    enqueue::revive,
    feed::PAUSE,
    hold::{Brought, InHand, Leased},
    record::{JobRecord, time},
    store::{Store, Which, info_of},
    wire::{JobKey, Message, Stored},
};
use crate::delivery::{
    parcel::Parcel,
    queue::{Job, Lease, QueueError, Recipient, State},
};

/// A lease that nobody has taken yet.
pub(super) struct Ready {
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
    pub(super) async fn take(self, shared: &Shared) -> Option<Lease> {
        if self.since.elapsed() < FRESH {
            return Some(self.lease);
        }
        let record = shared.ready().ok()?.record(&self.webhook, &self.job).await.ok()?;
        (record.map_or(0, |(sequence, _)| sequence) == self.base).then_some(self.lease)
    }
}

/// Whether a message is a job for now. If it is not, the server is told.
pub(super) async fn look(
    shared: &Arc<Shared>,
    store: &Store,
    recipient: &Recipient,
    message: jetstream::Message,
) -> Option<Ready> {
    let reply = message.message.reply.as_ref()?.to_string();
    match looked_at(shared, store, recipient, message, &reply).await {
        Ok(ready) => ready,
        Err(error) => {
            tracing::debug!(%recipient, %error, "a delivery cannot be leased now");
            store.reply(&reply, AckKind::Nak(Some(PAUSE))).await;
            None
        }
    }
}

async fn looked_at(
    shared: &Arc<Shared>,
    store: &Store,
    recipient: &Recipient,
    message: jetstream::Message,
    reply: &str,
) -> Result<Option<Ready>, QueueError> {
    let info = info_of(&message)?;
    let (sequence, received) = (info.stream_sequence, SystemTime::from(info.published));
    let mut brought = Brought { reply: reply.to_owned(), sequence, is_call: false };
    let (delivery, calls) = match Message::read(message.headers.as_ref()) {
        Some(Message::Delivery(meta)) => {
            let subject = message.subject.to_string();
            let body = message.payload.clone();
            (Some(Stored { sequence, subject, received, meta: *meta, body }), 0)
        }
        Some(Message::Again(again)) => {
            let job = again.job();
            // Those of another destination are its consumer's.
            brought.is_call = job.destination == recipient.destination;
            let delivery = store.delivery(Which::At(job.sequence)).await?;
            (delivery.filter(|delivery| brought.is_call && delivery.meta.has(&job)), again.calls)
        }
        None => {
            tracing::error!(sequence, "a message in the queue is not a delivery: it is passed over");
            store.reply(reply, AckKind::Term).await;
            return Ok(None);
        }
    };
    let wanted = |delivery: &Stored| {
        delivery.meta.webhook == recipient.webhook
            && delivery.meta.destinations.contains(&recipient.destination)
    };
    let Some(delivery) = delivery.filter(wanted) else {
        brought.done(store).await;
        return Ok(None);
    };
    let job = delivery.job(&recipient.destination);
    let Some(in_hand) = InHand::take(shared, store, job, brought).await else { return Ok(None) };
    if shared.held.trouble().is_some() {
        in_hand.brought.later(store, PAUSE).await;
        return Ok(None);
    }
    let webhook = &delivery.meta.webhook;
    let mut base = store.record(webhook, &in_hand.job).await?;
    if base.as_ref().is_some_and(|(_, record)| is_called_by(record, calls)) {
        // Whoever called it did not come to writing that.
        revive(store, webhook, &in_hand.job, calls).await?;
        base = store.record(webhook, &in_hand.job).await?;
    }
    let record = base.as_ref().map(|(_, record)| record);
    if !record.map_or(calls == 0, |record| record.waits(calls)) {
        in_hand.brought.done(store).await;
        return Ok(None);
    }
    let left = record.and_then(|record| record.due).map(|due| time(due).duration_since(SystemTime::now()));
    if let Some(Ok(left)) = left
        && !left.is_zero()
    {
        in_hand.brought.later(store, left).await;
        return Ok(None);
    }
    let Some(parcel) = delivery.meta.parcel(delivery.body.clone(), delivery.received) else {
        let job = in_hand.job.id();
        tracing::error!(%job, "a delivery in the queue cannot be read: it is not delivered, and stays until it is purged");
        in_hand.brought.later(store, UNREADABLE).await;
        return Ok(None);
    };
    Ok(Some(lease(store, recipient, delivery, parcel, calls, base, in_hand)))
}

/// How often it is said that a delivery cannot be read.
const UNREADABLE: Duration = Duration::from_secs(15 * 60);

/// Whether a record is that of a job which ended before this call of it.
fn is_called_by(record: &JobRecord, calls: u32) -> bool {
    record.state().is_some_and(|state| state != State::Waiting) && record.calls.saturating_add(1) == calls
}

fn lease(
    store: &Store,
    recipient: &Recipient,
    delivery: Stored,
    parcel: Parcel,
    calls: u32,
    base: Option<(u64, JobRecord)>,
    mut in_hand: InHand,
) -> Ready {
    in_hand.goes_back = Some(store.clone());
    let Stored { meta, received, .. } = delivery;
    let record = base.as_ref().map(|(_, record)| record);
    let job = Job {
        id: in_hand.job.id(),
        recipient: recipient.clone(),
        parcel,
        since: record.and_then(|record| record.since).map_or(received, time),
        attempts: record.map_or(0, |record| record.attempts),
        attempts_ever: record.map_or(0, |record| record.attempts_ever),
    };
    let (webhook, key) = (meta.webhook.clone(), in_hand.job.clone());
    let sequence = base.as_ref().map_or(0, |(sequence, _)| *sequence);
    let leased = Leased {
        store: store.clone(),
        in_hand,
        webhook: meta.webhook,
        calls,
        base,
        destinations: meta.destinations,
    };
    let lease = Lease::new(job, Box::new(leased));
    Ready { since: Instant::now(), lease, webhook, job: key, base: sequence }
}
