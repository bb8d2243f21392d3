//! The log: listing jobs, showing one, calling back, forgetting. Works on the streams alone, from any process.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::message::AckKind;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::{
    enqueue::call_back,
    record::{JobRecord, time},
    store::{AT_ONCE, REQUEST, Refused, Store, Which, info_of, unavailable},
    sweep::IN_HAND,
    wire::{JobKey, Message, Meta, Stored},
};
use crate::delivery::queue::{Details, Filter, JobId, QueueError, Recipient, Record, State};

/// How often something is tried again because others changed it.
const TRIES: usize = 8;
/// The ID of what was delivered no longer ago stays known when it is purged: a command does not know the window.
const LATELY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many deliveries are read at a time, at first and at most.
const WINDOW: u64 = 256;
const MAX_WINDOW: u64 = 8192;

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
    let Some(delivery) = store.delivery(Which::At(sequence)).await? else { return Ok(None) };
    let job = delivery.job(destination);
    if !delivery.meta.has(&job) {
        return Ok(None);
    }
    let base = store.record(&delivery.meta.webhook, &job).await?;
    let record = base.map(|(_, record)| record);
    let Some(shown) = entry(&delivery.meta, delivery.received, &job, record.as_ref()) else {
        return Ok(None);
    };
    let attempts = record.map(|record| record.log()).unwrap_or_default();
    Ok(delivery.meta.parcel(delivery.body, delivery.received).map(|parcel| Details {
        record: shown,
        parcel,
        attempts,
    }))
}

pub(super) async fn redeliver(store: &Store, filter: &Filter) -> Result<u64, QueueError> {
    change(store, filter, Change::Redeliver).await
}

pub(super) async fn purge(store: &Store, filter: &Filter) -> Result<u64, QueueError> {
    let Filter { ids, states, webhook, destination, event, since, until } = filter;
    let all_dead = ids.is_empty()
        && event.is_none()
        && since.is_none()
        && until.is_none()
        && (states.is_empty() || states.contains(&State::Dead));
    let [_, jobs] = store.infos().await?;
    let count = change(store, filter, Change::Purge { unmark: !all_dead }).await?;
    if all_dead {
        // The marks of all of them at once.
        let marks = store.names.marks(webhook.as_deref(), destination.as_deref());
        store.unmark(marks, jobs.state.last_sequence.saturating_add(1)).await?;
    }
    Ok(count)
}

/// What is done with a job.
#[derive(Debug, Clone, Copy)]
enum Change {
    Redeliver,
    /// With its mark, or all marks are taken away afterwards.
    Purge {
        unmark: bool,
    },
}

/// Changes what a filter means, some jobs at a time. How many were changed.
async fn change(store: &Store, filter: &Filter, change: Change) -> Result<u64, QueueError> {
    let mut pages = Pages::new(store, filter).await?;
    let mut count: u64 = 0;
    while let Some(mut page) = pages.next().await? {
        while !page.is_empty() {
            let some = page.drain(..page.len().min(AT_ONCE)).map(|found| async move {
                match change {
                    Change::Redeliver => redeliver_one(store, &found).await,
                    Change::Purge { unmark } => purge_one(store, &found, unmark).await,
                }
            });
            for changed in join_all(some).await {
                count = count.saturating_add(u64::from(changed?));
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

async fn redeliver_one(store: &Store, found: &Found) -> Result<bool, QueueError> {
    let (webhook, job) = (&found.shown.recipient.webhook, &found.job);
    for _ in 0..TRIES {
        // Without a record it is due already.
        let Some((sequence, mut record)) = store.record(webhook, job).await? else { return Ok(true) };
        match record.state() {
            None => return Ok(false),
            Some(State::Waiting) => {
                let later = record.due.is_some_and(|due| time(due) > SystemTime::now());
                // If it is due it may be leased: it is not to be brought to somebody else as well.
                if !later {
                    return Ok(true);
                }
                record.due = None;
                match store.write(webhook, job, sequence, &record).await {
                    Ok(_) => {
                        if let Some(reply) = &record.reply {
                            store.reply(reply, AckKind::Nak(None)).await;
                        }
                        return Ok(true);
                    }
                    Err(Refused::Stale) => {}
                    Err(refused) => return Err(refused.into()),
                }
            }
            Some(State::Delivered | State::Dead | State::Coalesced) => {
                call_back(store, webhook, job, &record).await?;
                return Ok(true);
            }
        }
    }
    Err(Refused::Stale.into())
}

/// Forgets a job, and takes its mark away, if that is wanted.
async fn purge_one(store: &Store, found: &Found, unmark: bool) -> Result<bool, QueueError> {
    let (webhook, job) = (&found.shown.recipient.webhook, &found.job);
    let mut base = found.record.clone();
    for _ in 0..TRIES {
        let sequence = base.as_ref().map_or(0, |(sequence, _)| *sequence);
        let mut record = base.map_or_else(|| JobRecord::waiting(&found.destinations), |(_, record)| record);
        let Some(was) = record.state() else { return Ok(false) };
        if was == State::Delivered {
            let Record { delivery_id, finished, .. } = &found.shown;
            store.remember(webhook, delivery_id, &found.digest, *finished, LATELY).await?;
        }
        let reply = record.reply.clone();
        let rests = record.finished().and_then(|at| SystemTime::now().duration_since(at).ok());
        if found.destinations.len() == 1 && rests.is_some_and(|rests| rests > IN_HAND) {
            // Nobody has it in hand any more: it needs no record that keeps it from coming back.
            store.delete_delivery(job.sequence).await?;
            if !store.delete_record(sequence).await?
                && let Some((sequence, _)) = store.record(webhook, job).await?
            {
                store.delete_record(sequence).await?;
            }
            if was == State::Dead && unmark {
                store.mark(webhook, job, false).await?;
            }
            return Ok(true);
        }
        record.finish(None, None);
        match store.write(webhook, job, sequence, &record).await {
            Ok(_) => {}
            Err(Refused::Stale) => {
                base = store.record(webhook, job).await?;
                continue;
            }
            Err(refused) => return Err(refused.into()),
        }
        if let Some(reply) = reply {
            store.reply(&reply, AckKind::Ack).await;
        }
        if was == State::Dead && unmark {
            store.mark(webhook, job, false).await?;
        }
        let others = found.destinations.iter().filter(|name| **name != job.destination);
        let others = others.map(|destination| JobKey { destination: destination.clone(), ..job.clone() });
        let others = store.records(webhook, others).await?;
        if others.iter().all(|(_, other)| other.as_ref().is_some_and(|(_, other)| other.state().is_none())) {
            // The records go with the next sweep: somebody may have the message in hand.
            store.delete_delivery(job.sequence).await?;
        }
        return Ok(true);
    }
    Err(Refused::Stale.into())
}

/// A job that a filter means.
struct Found {
    job: JobKey,
    destinations: Vec<String>,
    /// Of its body.
    digest: String,
    record: Option<(u64, JobRecord)>,
    shown: Record,
}

/// What is known of a delivery without its body.
struct Head {
    sequence: u64,
    received: SystemTime,
    meta: Meta,
}

impl From<Stored> for Head {
    fn from(stored: Stored) -> Self {
        Self { sequence: stored.sequence, received: stored.received, meta: stored.meta }
    }
}

/// The jobs that a filter means, page by page, the newest first.
struct Pages<'a> {
    store: &'a Store,
    filter: &'a Filter,
    /// Between these deliveries, so many at a time.
    range: Option<(u64, u64)>,
    size: u64,
    /// At these places, after that.
    places: Vec<u64>,
}

impl<'a> Pages<'a> {
    async fn new(store: &'a Store, filter: &'a Filter) -> Result<Self, QueueError> {
        let Filter { ids, states, webhook, destination, .. } = filter;
        let mut places = BTreeSet::new();
        let mut range = None;
        if !ids.is_empty() {
            for id in ids {
                places.extend(JobKey::parse(id).map(|(sequence, _)| sequence));
                places.extend(store.places(store.names.of_id(webhook.as_deref(), id)).await?);
            }
        } else if *states == [State::Dead] {
            let marks = store.names.marks(webhook.as_deref(), destination.as_deref());
            places.extend(store.marked(marks).await?.into_iter().map(|(_, job)| job.sequence));
        } else {
            let [deliveries, _] = store.infos().await?;
            let mut first = deliveries.state.first_sequence.max(1);
            if *states == [State::Waiting] {
                // Everything before has ended, but for what was called.
                let floors = store.consumers().await?.into_iter().map(|it| it.ack_floor.stream_sequence);
                first = first.max(floors.min().map_or(0, |floor| floor.saturating_add(1)));
                let called = store.calls(webhook.as_deref()).await?;
                places.extend(called.into_iter().map(|job| job.sequence).filter(|called| *called < first));
            }
            range = Some((first, deliveries.state.last_sequence));
        }
        Ok(Self { store, filter, range, size: WINDOW, places: places.into_iter().collect() })
    }

    /// The next ones. There may be none among them; `None`: it was the last page.
    async fn next(&mut self) -> Result<Option<Vec<Found>>, QueueError> {
        if let Some((first, until)) = self.range.filter(|(first, until)| first <= until) {
            let from = until.saturating_sub(self.size.saturating_sub(1)).max(first);
            let heads = self.read(from, until).await?;
            let too_old = |head: &Head| self.filter.since.is_some_and(|since| head.received < since);
            let ended = heads.first().is_some_and(too_old);
            self.range = (!ended && from > first).then(|| (first, from.saturating_sub(1)));
            self.size = self.size.saturating_mul(2).min(MAX_WINDOW);
            return self.resolve(heads).await.map(Some);
        }
        if self.places.is_empty() {
            return Ok(None);
        }
        let some = self.places.split_off(self.places.len().saturating_sub(AT_ONCE));
        let deliveries = join_all(some.iter().map(|&place| self.store.delivery(Which::At(place)))).await;
        let deliveries = deliveries.into_iter().collect::<Result<Vec<_>, _>>()?;
        self.resolve(deliveries.into_iter().flatten().map(Head::from).collect()).await.map(Some)
    }

    /// The deliveries of a part of the stream.
    async fn read(&self, from: u64, until: u64) -> Result<Vec<Head>, QueueError> {
        let names = &self.store.names;
        let subjects = self.filter.webhook.as_ref();
        let subjects = subjects.map_or_else(|| names.all_deliveries(), |webhook| names.of_webhook(webhook));
        let mut heads = Vec::new();
        let mut scan = self.store.scan_deliveries(subjects, from).await?;
        while let Some((sequence, message)) = scan.next().await? {
            if sequence > until {
                break;
            }
            let received = info_of(&message)?.published.into();
            if let Some(Message::Delivery(meta)) = Message::read(message.headers.as_ref()) {
                heads.push(Head { sequence, received, meta: *meta });
            }
        }
        scan.end().await;
        Ok(heads)
    }

    /// Those jobs of deliveries, of which the last one is the newest, that the filter means.
    async fn resolve(&self, heads: Vec<Head>) -> Result<Vec<Found>, QueueError> {
        let Self { store, filter, .. } = self;
        let mut found = Vec::new();
        let jobs = heads.iter().rev().filter(|head| is_meant(filter, head)).flat_map(|head| {
            let destinations = head.meta.destinations.iter();
            let wanted = filter.destination.as_ref();
            let destinations = destinations.filter(move |name| wanted.is_none_or(|wanted| wanted == *name));
            destinations.map(move |name| (head, head.meta.job(head.sequence, name)))
        });
        let jobs: Vec<_> = jobs.collect();
        for some in jobs.chunks(AT_ONCE) {
            let records =
                join_all(some.iter().map(|(head, job)| store.record(&head.meta.webhook, job))).await;
            for ((head, job), record) in some.iter().zip(records) {
                let record = record?;
                let known = record.as_ref().map(|(_, record)| record);
                let Some(shown) = entry(&head.meta, head.received, job, known) else { continue };
                let named = |name: &String| *name == shown.id.0 || *name == shown.delivery_id;
                if (filter.states.is_empty() || filter.states.contains(&shown.state))
                    && (filter.ids.is_empty() || filter.ids.iter().any(named))
                {
                    let (destinations, digest) = (head.meta.destinations.clone(), head.meta.digest.clone());
                    found.push(Found { job: job.clone(), destinations, digest, record, shown });
                }
            }
        }
        Ok(found)
    }
}

impl Store {
    /// Where the messages of these subjects are.
    async fn places(&self, subjects: String) -> Result<Vec<u64>, QueueError> {
        let mut scan = self.scan_deliveries(subjects, 1).await?;
        let mut places = Vec::new();
        while let Some((sequence, _)) = scan.next().await? {
            places.push(sequence);
        }
        scan.end().await;
        Ok(places)
    }

    /// The jobs that were called.
    async fn calls(&self, webhook: Option<&str>) -> Result<Vec<JobKey>, QueueError> {
        let mut scan = self.scan_deliveries(self.names.calls(webhook), 1).await?;
        let mut called = Vec::new();
        while let Some((_, message)) = scan.next().await? {
            if let Some(Message::Again(again)) = Message::read(message.headers.as_ref()) {
                called.push(again.job());
            }
        }
        scan.end().await;
        Ok(called)
    }
}

fn is_meant(filter: &Filter, head: &Head) -> bool {
    let Head { meta, received, .. } = head;
    filter.webhook.as_ref().is_none_or(|webhook| *webhook == meta.webhook)
        && filter.event.as_ref().is_none_or(|event| *event == meta.event() || *event == meta.kind())
        && filter.since.is_none_or(|since| *received >= since)
        && filter.until.is_none_or(|until| *received < until)
}

/// A job as the log shows it, unless it was forgotten.
fn entry(meta: &Meta, received: SystemTime, job: &JobKey, record: Option<&JobRecord>) -> Option<Record> {
    let state = record.map_or(Some(State::Waiting), JobRecord::state)?;
    let due = record.and_then(|record| record.due.or(record.since)).map_or(received, time);
    Some(Record {
        id: job.id(),
        recipient: Recipient { webhook: meta.webhook.clone(), destination: job.destination.clone() },
        state,
        death: record.and_then(JobRecord::death),
        delivery_id: meta.delivery_id(),
        kind: meta.kind(),
        event: meta.event(),
        environment: meta.environment.clone(),
        revision: meta.revision,
        facts: meta.facts.clone(),
        received,
        due: (state == State::Waiting).then_some(due),
        finished: record.and_then(JobRecord::finished),
        attempts: record.map_or(0, |record| record.attempts_ever),
        size: meta.size,
    })
}
