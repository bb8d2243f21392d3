//! What a message of the server is: a job for now, one for later, or none any more.
//!
//! Where only the newest of those that are alike is wanted, it is found here.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::{self, message::AckKind};
use tokio::time::Instant;

use super::{
    Shared,
    enqueue::revive,
    feed::{Feed, PAUSE},
    hold::{InHand, Leased},
    record::{JobRecord, Standing, millis, time},
    store::{Refused, Store, Which},
    wire::{JobKey, Message, Stored},
};
use crate::delivery::queue::{Job, Lease, QueueError, Recipient};

/// How often a job is looked at again because others changed it.
const TRIES: usize = 8;
/// How many others a job is compared with.
const MAX_ALIKE: usize = 4096;
/// How many deliveries before a job, alike or not, others that it is compared with may be.
const FAR: u64 = 65_536;

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
        // One that was tried comes again by itself, when it is due.
        if chosen.is_finished() || chosen.attempts > 0 {
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

    /// Those that are of the same environment and event as a delivery, and wait. Of those after it the ones that are
    /// delivered, too: what came before them comes too late.
    async fn alike(&self, delivery: &Stored) -> Result<Vec<Alike>, QueueError> {
        let mut found = Vec::new();
        let Some(filter) = self.store.names.alike(&delivery.subject) else { return Ok(found) };
        let mine = (delivery.meta.revision, delivery.sequence);
        let mut from = self.earliest(delivery).await?;
        while found.len() < MAX_ALIKE {
            let Some(message) = self.store.message(Which::Next(filter.clone(), from)).await? else { break };
            let sequence = message.sequence;
            from = sequence.saturating_add(1);
            let Some(other) = Stored::read(message) else { continue };
            let destination = &self.recipient.destination;
            if sequence == delivery.sequence
                || !delivery.meta.is_alike(&other.meta)
                || !other.meta.destinations.contains(destination)
            {
                continue;
            }
            let job = other.job(destination);
            let base = self.store.record(&self.recipient.webhook, &job).await?;
            let record = base.as_ref().map(|(_, record)| record);
            let standing = record.map_or(Standing::Waiting, |record| record.standing);
            let age = (other.meta.revision, other.sequence);
            let is_meant = if sequence < delivery.sequence {
                // One that waits for no newer one is let go.
                standing == Standing::Waiting
                    && (is_newer(age, mine) || record.is_none_or(|record| !record.chosen))
            } else {
                standing == Standing::Waiting || standing == Standing::Delivered
            };
            if is_meant {
                found.push(Alike { job, base, age, destinations: other.meta.destinations });
            }
            if standing == Standing::Delivered && sequence > delivery.sequence && is_newer(age, mine) {
                // That settles it; those after that one see to themselves.
                break;
            }
        }
        Ok(found)
    }

    /// From where on others may wait: the server brings them in about the order in which they are due, and some are tried
    /// again later. Everything before is done, or too far away to be looked for.
    async fn earliest(&self, delivery: &Stored) -> Result<u64, QueueError> {
        let near = delivery.sequence.saturating_sub(FAR);
        let in_order = self.feed.policy.in_order;
        let Some(consumer) = self.store.names.consumer_of(self.recipient, in_order, &delivery.subject) else {
            return Ok(delivery.sequence);
        };
        let done = self.store.done_by(&consumer).await?;
        Ok(near.max(done.saturating_add(1)).min(delivery.sequence))
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
