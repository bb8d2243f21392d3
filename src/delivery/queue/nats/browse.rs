//! The log: listing jobs, showing one, calling back, forgetting. Works on the streams alone, from any process.

use std::{collections::BTreeSet, time::SystemTime};

use async_nats::jetstream::message::AckKind;
use futures_util::future::join_all;

use super::{
    enqueue::call_back,
    record::{JobRecord, Standing, time},
    store::{AT_ONCE, Refused, Store, Which},
    wire::{JobKey, Message, Meta, Stored},
};
use crate::delivery::queue::{Details, Filter, JobId, QueueError, Recipient, Record, State};

/// How often something is tried again because others changed it.
const TRIES: usize = 8;
/// How many deliveries are read at a time, at first and at most.
const WINDOW: u64 = 256;
const MAX_WINDOW: u64 = 8192;

pub(super) async fn list(store: &Store, filter: &Filter, max: usize) -> Result<Vec<Record>, QueueError> {
    let found = select(store, filter, max).await?;
    Ok(found.into_iter().map(|found| found.record).collect())
}

pub(super) async fn show(store: &Store, id: &JobId) -> Result<Option<Details>, QueueError> {
    let Some(job) = JobKey::parse(&id.0) else { return Ok(None) };
    let Some(delivery) = store.delivery(Which::At(job.sequence)).await? else { return Ok(None) };
    if !delivery.meta.destinations.contains(&job.destination) {
        return Ok(None);
    }
    let base = store.record(&delivery.meta.webhook, &job).await?;
    let record = base.map(|(_, record)| record);
    let Some(shown) = entry(&delivery.meta, delivery.received, &job, record.as_ref()) else {
        return Ok(None);
    };
    let attempts = record.map(|record| record.log()).unwrap_or_default();
    Ok(delivery.meta.parcel(delivery.body).map(|parcel| Details { record: shown, parcel, attempts }))
}

pub(super) async fn redeliver(store: &Store, filter: &Filter) -> Result<u64, QueueError> {
    let mut count: u64 = 0;
    for found in select(store, filter, usize::MAX).await? {
        if redeliver_one(store, &found.job).await? {
            count = count.saturating_add(1);
        }
    }
    flush(store).await?;
    Ok(count)
}

pub(super) async fn purge(store: &Store, filter: &Filter) -> Result<u64, QueueError> {
    let mut count: u64 = 0;
    for found in select(store, filter, usize::MAX).await? {
        if purge_one(store, &found.job).await? {
            count = count.saturating_add(1);
        }
    }
    flush(store).await?;
    Ok(count)
}

/// What was told without an answer has left this process when it ends.
async fn flush(store: &Store) -> Result<(), QueueError> {
    match tokio::time::timeout(super::store::REQUEST, store.client.flush()).await {
        Ok(flushed) => flushed.map_err(super::store::unavailable),
        Err(_) => Err(QueueError::Unavailable("NATS does not answer in time".to_owned())),
    }
}

async fn redeliver_one(store: &Store, job: &JobKey) -> Result<bool, QueueError> {
    let Some(delivery) = store.delivery(Which::At(job.sequence)).await? else { return Ok(false) };
    for _ in 0..TRIES {
        let base = store.record(&delivery.meta.webhook, job).await?;
        // Without a record it is due already.
        let Some((sequence, mut record)) = base else { return Ok(true) };
        match record.standing {
            Standing::Purged => return Ok(false),
            Standing::Waiting => {
                let later = record.due.is_some_and(|due| time(due) > SystemTime::now());
                // If it is due it may be leased: it is not to be brought to somebody else as well.
                if !later {
                    return Ok(true);
                }
                record.due = None;
                record.chosen = true;
                match store.write(&delivery.meta.webhook, job, sequence, &record).await {
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
            Standing::Delivered | Standing::Dead | Standing::Coalesced => {
                call_back(store, &delivery, job, &record).await?;
                return Ok(true);
            }
        }
    }
    Err(Refused::Stale.into())
}

async fn purge_one(store: &Store, job: &JobKey) -> Result<bool, QueueError> {
    let Some(delivery) = store.delivery(Which::At(job.sequence)).await? else { return Ok(false) };
    let webhook = &delivery.meta.webhook;
    for _ in 0..TRIES {
        let base = store.record(webhook, job).await?;
        let sequence = base.as_ref().map_or(0, |(sequence, _)| *sequence);
        let mut record =
            base.map_or_else(|| JobRecord::waiting(&delivery.meta.destinations), |(_, record)| record);
        if record.standing == Standing::Purged {
            return Ok(false);
        }
        let was_dead = record.standing == Standing::Dead;
        let reply = record.reply.clone();
        record.purge();
        match store.write(webhook, job, sequence, &record).await {
            Ok(_) => {}
            Err(Refused::Stale) => continue,
            Err(refused) => return Err(refused.into()),
        }
        if let Some(reply) = reply {
            store.reply(&reply, AckKind::Ack).await;
        }
        if was_dead {
            store.mark(webhook, job, false).await?;
        }
        let jobs = store.records(&delivery).await?;
        let purged = |record: &(u64, JobRecord)| record.1.standing == Standing::Purged;
        if jobs.iter().all(|(_, record)| record.as_ref().is_some_and(purged)) {
            // The records go with the next sweep: somebody may have the message in hand.
            store.delete_delivery(delivery.sequence).await?;
        }
        return Ok(true);
    }
    Err(Refused::Stale.into())
}

/// A job that a filter means.
struct Found {
    job: JobKey,
    record: Record,
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

async fn select(store: &Store, filter: &Filter, max: usize) -> Result<Vec<Found>, QueueError> {
    if max == 0 {
        return Ok(Vec::new());
    }
    if !filter.ids.is_empty() {
        let mut sequences = BTreeSet::new();
        for id in &filter.ids {
            sequences.extend(JobKey::parse(id).map(|job| job.sequence));
            let mut scan = store.scan_deliveries(store.names.of_id(filter.webhook.as_deref(), id), 1).await?;
            while let Some((sequence, _)) = scan.next().await? {
                sequences.insert(sequence);
            }
            scan.end().await;
        }
        return select_of(store, filter, sequences, max).await;
    }
    if filter.states == [State::Dead] {
        let marked = store.marked().await?;
        let sequences = marked.into_iter().map(|(_, job)| job.sequence).collect();
        return select_of(store, filter, sequences, max).await;
    }
    let subjects = match &filter.webhook {
        Some(webhook) => store.names.of_webhook(webhook),
        None => store.names.all_deliveries(),
    };
    let (first, last) = store.range().await?;
    let (mut until, mut size) = (last, WINDOW);
    let mut found = Vec::new();
    while until >= first && until > 0 && found.len() < max {
        let from = until.saturating_sub(size - 1).max(first);
        let mut heads = Vec::new();
        let mut scan = store.scan_deliveries(subjects.clone(), from).await?;
        while let Some((sequence, message)) = scan.next().await? {
            if sequence > until {
                break;
            }
            let headers = message.headers.clone().unwrap_or_default();
            let info = message.info().map_err(|error| QueueError::Unavailable(error.to_string()))?;
            if let Some(Message::Delivery(meta)) = Message::read(&headers) {
                heads.push(Head { sequence, received: info.published.into(), meta: *meta });
            }
        }
        scan.end().await;
        let too_old = |head: &Head| filter.since.is_some_and(|since| head.received < since);
        let ended = heads.first().is_some_and(too_old);
        resolve(store, filter, heads, max, &mut found).await?;
        if ended || from <= 1 {
            break;
        }
        until = from - 1;
        size = size.saturating_mul(2).min(MAX_WINDOW);
    }
    Ok(found)
}

async fn select_of(
    store: &Store,
    filter: &Filter,
    sequences: BTreeSet<u64>,
    max: usize,
) -> Result<Vec<Found>, QueueError> {
    let sequences: Vec<_> = sequences.into_iter().collect();
    let mut found = Vec::new();
    for some in sequences.rchunks(AT_ONCE) {
        let deliveries = join_all(some.iter().map(|&sequence| store.delivery(Which::At(sequence)))).await;
        let deliveries = deliveries.into_iter().collect::<Result<Vec<_>, _>>()?;
        let heads = deliveries.into_iter().flatten().map(Head::from).collect();
        resolve(store, filter, heads, max, &mut found).await?;
        if found.len() >= max {
            break;
        }
    }
    Ok(found)
}

/// Adds those jobs of deliveries, of which the last one is the newest, that a filter means.
async fn resolve(
    store: &Store,
    filter: &Filter,
    heads: Vec<Head>,
    max: usize,
    found: &mut Vec<Found>,
) -> Result<(), QueueError> {
    let jobs = heads.iter().rev().filter(|head| is_meant(filter, head)).flat_map(|head| {
        let destinations = head.meta.destinations.iter();
        let wanted = filter.destination.as_ref();
        let destinations = destinations.filter(move |name| wanted.is_none_or(|wanted| wanted == *name));
        destinations.map(move |name| (head, JobKey { sequence: head.sequence, destination: name.clone() }))
    });
    let jobs: Vec<_> = jobs.collect();
    for some in jobs.chunks(AT_ONCE) {
        let records = join_all(some.iter().map(|(head, job)| store.record(&head.meta.webhook, job))).await;
        for ((head, job), record) in some.iter().zip(records) {
            let record = record?.map(|(_, record)| record);
            let Some(record) = entry(&head.meta, head.received, job, record.as_ref()) else { continue };
            let named = |name: &String| *name == record.id.0 || *name == record.delivery_id;
            if (filter.states.is_empty() || filter.states.contains(&record.state))
                && (filter.ids.is_empty() || filter.ids.iter().any(named))
            {
                found.push(Found { job: job.clone(), record });
            }
            if found.len() >= max {
                return Ok(());
            }
        }
    }
    Ok(())
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
    let state = record.map_or(Some(State::Waiting), |record| record.standing.state())?;
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
        received,
        due: (state == State::Waiting).then_some(due),
        finished: record.and_then(|record| record.finished).map(time),
        attempts: record.map_or(0, |record| record.attempts_ever),
        size: meta.size,
    })
}
