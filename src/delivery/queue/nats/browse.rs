//! The log: listing jobs, showing one, calling back, forgetting. Works on the streams alone, from any process.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::message::AckKind;
use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::time::timeout;

use super::{
    TRIES,
    enqueue::call_back,
    record::{JobRecord, time},
    store::{AT_ONCE, REQUEST, Refused, Store, info_of, unavailable},
    wire::{JobKey, Message, Stored, shown},
};
use crate::delivery::queue::{Answer, Details, Filter, JobId, QueueError, Record, State};

/// The ID of what was delivered no longer ago stays known when it is purged: a command does not know the window.
const LATELY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many deliveries are read at a time, but for one.
const WINDOW: u64 = 1023;

pub(super) async fn list(store: &Store, filter: &Filter, max: usize) -> Result<Vec<Record>, QueueError> {
    let mut pages = Pages::new(store, filter).await?;
    let mut found = Vec::new();
    while found.len() < max
        && let Some(page) = pages.next().await?
    {
        found.extend(page.into_iter().map(|found| found.shown));
    }
    found.truncate(max);
    Ok(found)
}

pub(super) async fn show(store: &Store, id: &JobId) -> Result<Option<Details>, QueueError> {
    let Some((sequence, destination)) = JobKey::parse(&id.0) else { return Ok(None) };
    let Some(delivery) = store.delivery(sequence).await? else { return Ok(None) };
    let job = delivery.job(destination);
    if !delivery.meta.has(&job) {
        return Ok(None);
    }
    let known = store.record(&job).await?;
    let Some(shown) = entry(&delivery, &job, known.as_ref()) else { return Ok(None) };
    let attempts = known.map(|record| record.log()).unwrap_or_default();
    Ok(Some(Details {
        record: shown,
        parcel: delivery.meta.parcel(delivery.body, delivery.received),
        attempts,
    }))
}

pub(super) async fn redeliver(store: &Store, filter: &Filter) -> Result<u64, QueueError> {
    change(store, filter, |found| Box::pin(redeliver_one(store, found))).await
}

pub(super) async fn purge(store: &Store, filter: &Filter) -> Result<u64, QueueError> {
    change(store, filter, |found| Box::pin(purge_one(store, found))).await
}

/// Changes what a filter means, some jobs at a time. How many were changed.
async fn change<'a>(
    store: &'a Store,
    filter: &'a Filter,
    change: impl Fn(Found) -> Answer<'a, bool>,
) -> Result<u64, QueueError> {
    let mut pages = Pages::new(store, filter).await?;
    let mut count: u64 = 0;
    while let Some(mut page) = pages.next().await? {
        while !page.is_empty() {
            let some = page.drain(..page.len().min(AT_ONCE)).map(&change);
            for changed in try_join_all(some).await? {
                count = count.saturating_add(u64::from(changed));
            }
        }
    }
    // What was told without an answer has left this process when it ends.
    match timeout(REQUEST, store.client.flush()).await {
        Ok(flushed) => flushed.map_err(unavailable)?,
        Err(_) => return Err(QueueError::Unavailable("NATS does not answer in time".to_owned())),
    }
    Ok(count)
}

async fn redeliver_one(store: &Store, found: Found) -> Result<bool, QueueError> {
    let Found { job, .. } = found;
    for _ in 0..TRIES {
        // Without a record it is due already.
        let Some(mut record) = store.record(&job).await? else { return Ok(true) };
        match record.state {
            None => return Ok(false),
            Some(State::Waiting) => {
                // If it is due it may be leased: it is not to be brought to somebody else as well.
                if record.due.is_none_or(|due| time(due) <= SystemTime::now()) {
                    return Ok(true);
                }
                record.due = None;
                let reply = record.reply.clone();
                match store.write(&job, record).await {
                    Err(Refused::Stale) => continue,
                    written => written?,
                }
                if let Some(reply) = reply {
                    store.reply(&reply, AckKind::Nak(None)).await;
                }
            }
            Some(State::Delivered | State::Dead | State::Coalesced) => {
                call_back(store, &job, &record).await?;
            }
        }
        return Ok(true);
    }
    Err(Refused::Stale.into())
}

/// Forgets a job. Its record stays as long as somebody may have its message in hand, and goes with a sweep.
async fn purge_one(store: &Store, found: Found) -> Result<bool, QueueError> {
    let Found { job, delivery, mut record, .. } = found;
    for _ in 0..TRIES {
        let Some(was) = record.state else { return Ok(false) };
        if was == State::Delivered {
            store.remember(&delivery.meta, record.finished(), LATELY).await?;
        }
        let reply = record.reply.take();
        record.finish(None, None);
        match store.write(&job, record).await {
            Err(Refused::Stale) => {
                record = store.record(&job).await?.unwrap_or_else(JobRecord::waiting);
                continue;
            }
            written => written?,
        }
        if let Some(reply) = reply {
            store.reply(&reply, AckKind::Ack).await;
        }
        let others = store.records(delivery.jobs().filter(|other| *other != job)).await?;
        if others.iter().all(|(_, other)| other.as_ref().is_some_and(|other| other.state.is_none())) {
            store.delete_delivery(job.sequence).await?;
        }
        return Ok(true);
    }
    Err(Refused::Stale.into())
}

/// A job that a filter means.
struct Found {
    job: JobKey,
    delivery: Arc<Stored>,
    record: JobRecord,
    shown: Record,
}

/// The jobs that a filter means, page by page, the newest first.
struct Pages<'a> {
    store: &'a Store,
    filter: &'a Filter,
    /// Between these deliveries, so many at a time.
    range: Option<(u64, u64)>,
    /// At these places, after that.
    places: Vec<u64>,
}

impl<'a> Pages<'a> {
    async fn new(store: &'a Store, filter: &'a Filter) -> Result<Self, QueueError> {
        let Filter { ids, states, webhook, destination, .. } = filter;
        let (webhook, destination) = (webhook.as_deref(), destination.as_deref());
        let mut places = BTreeSet::new();
        let mut range = None;
        if !ids.is_empty() {
            for id in ids {
                places.extend(JobKey::parse(id).map(|(sequence, _)| sequence));
                let mut scan = store.scan_deliveries(store.names.of_id(webhook, id.as_bytes()), 1).await?;
                while let Some((sequence, _)) = scan.next().await? {
                    places.insert(sequence);
                }
                scan.end().await;
            }
        } else if *states == [State::Dead] {
            let marked = store.marked(store.names.marks(webhook, destination)).await?;
            places.extend(marked.into_iter().map(|job| job.sequence));
        } else {
            let [deliveries, _] = store.infos().await?;
            let mut first = deliveries.state.first_sequence.max(1);
            if *states == [State::Waiting] {
                // Everything before has ended, but for what was called.
                let floors = store.consumers().await?.into_iter().map(|it| it.ack_floor.stream_sequence);
                first = first.max(floors.min().map_or(0, |floor| floor.saturating_add(1)));
                let mut scan = store.scan_deliveries(store.names.calls(webhook), 1).await?;
                while let Some((_, message)) = scan.next().await? {
                    if let Some(Message::Again(again)) = Message::read(message.headers.as_ref()) {
                        places.extend(Some(again.job.sequence).filter(|called| *called < first));
                    }
                }
                scan.end().await;
            }
            range = Some((first, deliveries.state.last_sequence));
        }
        Ok(Self { store, filter, range, places: places.into_iter().collect() })
    }

    /// The next ones. There may be none among them; `None`: it was the last page.
    async fn next(&mut self) -> Result<Option<Vec<Found>>, QueueError> {
        let deliveries = if let Some((first, until)) = self.range.filter(|(first, until)| first <= until) {
            let from = until.saturating_sub(WINDOW).max(first);
            let deliveries = self.read(from, until).await?;
            let too_old = |it: &Stored| self.filter.since.is_some_and(|since| it.received < since);
            let ended = from == first || deliveries.first().is_some_and(too_old);
            self.range = (!ended).then(|| (first, from.saturating_sub(1)));
            deliveries
        } else if self.places.is_empty() {
            return Ok(None);
        } else {
            let some = self.places.split_off(self.places.len().saturating_sub(AT_ONCE));
            let deliveries = try_join_all(some.iter().map(|&place| self.store.delivery(place))).await?;
            deliveries.into_iter().flatten().collect()
        };
        self.resolve(deliveries).await.map(Some)
    }

    /// The deliveries of a part of the stream, without their bodies.
    async fn read(&self, from: u64, until: u64) -> Result<Vec<Stored>, QueueError> {
        let names = &self.store.names;
        let webhook = self.filter.webhook.as_ref();
        let subjects = webhook.map_or_else(|| names.all('d'), |webhook| names.of_webhook(webhook));
        let mut scan = self.store.scan_deliveries(subjects, from).await?;
        let mut found = Vec::new();
        while let Some((sequence, message)) = scan.next().await?.filter(|(sequence, _)| *sequence <= until) {
            let received = info_of(&message)?.published.into();
            if let Some(Message::Delivery(meta)) = Message::read(message.headers.as_ref()) {
                found.push(Stored { sequence, received, meta: *meta, body: Bytes::new() });
            }
        }
        scan.end().await;
        Ok(found)
    }

    /// Those jobs of deliveries, of which the last one is the newest, that the filter means.
    async fn resolve(&self, deliveries: Vec<Stored>) -> Result<Vec<Found>, QueueError> {
        let Self { store, filter, .. } = self;
        let wanted =
            |job: &JobKey| filter.destination.as_ref().is_none_or(|wanted| *wanted == job.destination);
        let meant = deliveries.into_iter().rev().filter(|delivery| is_meant(filter, delivery)).map(Arc::new);
        let jobs = meant.flat_map(|delivery| {
            let jobs: Vec<_> = delivery.jobs().filter(wanted).collect();
            jobs.into_iter().map(move |job| (job, Arc::clone(&delivery)))
        });
        let (jobs, deliveries): (Vec<_>, Vec<_>) = jobs.unzip();
        let mut records = Vec::new();
        for some in jobs.chunks(AT_ONCE) {
            records.extend(store.records(some.iter().cloned()).await?);
        }
        let mut found = Vec::new();
        for ((job, record), delivery) in records.into_iter().zip(deliveries) {
            let Some(shown) = entry(&delivery, &job, record.as_ref()) else { continue };
            let named = |name: &String| *name == shown.id.0 || *name == shown.delivery_id;
            if (filter.states.is_empty() || filter.states.contains(&shown.state))
                && (filter.ids.is_empty() || filter.ids.iter().any(named))
            {
                let record = record.unwrap_or_else(JobRecord::waiting);
                found.push(Found { job, delivery, record, shown });
            }
        }
        Ok(found)
    }
}

fn is_meant(filter: &Filter, delivery: &Stored) -> bool {
    let Stored { meta, received, .. } = delivery;
    filter.webhook.as_ref().is_none_or(|webhook| *webhook == meta.webhook)
        && filter
            .event
            .as_ref()
            .is_none_or(|event| *event == shown(&meta.event) || *event == shown(&meta.kind))
        && filter.since.is_none_or(|since| *received >= since)
        && filter.until.is_none_or(|until| *received < until)
}

/// A job as the log shows it, unless it was forgotten.
fn entry(delivery: &Stored, job: &JobKey, record: Option<&JobRecord>) -> Option<Record> {
    let Stored { meta, received, .. } = delivery;
    let state = record.map_or(Some(State::Waiting), |record| record.state)?;
    let due = record.and_then(|record| record.due.or(record.since)).map_or(*received, time);
    Some(Record {
        id: job.id(),
        recipient: job.recipient(),
        state,
        death: record.and_then(|record| record.death),
        delivery_id: shown(&meta.id),
        kind: shown(&meta.kind),
        event: shown(&meta.event),
        environment: meta.environment.clone(),
        revision: meta.revision,
        facts: meta.facts.clone(),
        received: *received,
        due: (state == State::Waiting).then_some(due),
        finished: record.and_then(JobRecord::finished),
        attempts: record.map_or(0, |record| record.attempts_ever),
        size: meta.size,
    })
}
