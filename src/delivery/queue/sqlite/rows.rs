//! Rows of the file and what they stand for.

use std::{
    str::FromStr,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hyper::header::HeaderValue;
use rusqlite::{
    Row,
    types::{FromSqlError, Value},
};

use super::clock::Clock;
use crate::delivery::{
    parcel::{Facts, MediaType, Parcel, VerifiedBody},
    queue::{Attempt, Death, Filter, Job, JobId, NoState, Recipient, Record, State},
};

/// The primary key of a job: the numbers of delivery and recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) delivery: i64,
    pub(super) recipient: i64,
}

impl From<Key> for JobId {
    fn from(Key { delivery, recipient }: Key) -> Self {
        Self(format!("{delivery}-{recipient}"))
    }
}

/// A text that names no job.
#[derive(Debug)]
pub(super) struct NoKey;

impl FromStr for Key {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let (delivery, recipient) = text.split_once('-').ok_or(NoKey)?;
        let number = |text: &str| text.parse().map_err(|_no_number| NoKey);
        Ok(Self { delivery: number(delivery)?, recipient: number(recipient)? })
    }
}

/// The length of a column in bytes.
pub(super) fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// A limit of rows.
pub(super) fn to_count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A number that cannot be negative, as SQLite stores it.
pub(super) fn to_integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_integer(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn small<T: TryFrom<i64>>(number: i64, most: T) -> T {
    T::try_from(number).unwrap_or(most)
}

/// The columns of [`parcel`].
pub(super) const PARCEL: &str = "delivery.body, delivery.content_type, delivery.id, delivery.kind, \
    delivery.signature, delivery.event, delivery.kind_verified, delivery.traceparent, delivery.received";

/// Reads [`PARCEL`], which begins at a column.
pub(super) fn parcel(row: &Row<'_>, at: usize, clock: &Clock) -> rusqlite::Result<Parcel> {
    let header = |column: usize| -> rusqlite::Result<HeaderValue> {
        HeaderValue::from_bytes(row.get_ref(column)?.as_bytes()?)
            .map_err(|error| FromSqlError::Other(Box::new(error)).into())
    };
    Ok(Parcel {
        body: VerifiedBody::stored(Bytes::from(row.get::<_, Vec<u8>>(at)?)),
        content_type: MediaType::of_stored(row.get_ref(at + 1)?.as_bytes()?),
        id: header(at + 2)?,
        kind: header(at + 3)?,
        signature: header(at + 4)?,
        event: header(at + 5)?,
        kind_verified: row.get(at + 6)?,
        traceparent: header(at + 7)?,
        received: clock.shown(row.get(at + 8)?),
    })
}

/// The columns of [`job`], before those of the parcel.
pub(super) const JOB: &str = "job.delivery, job.recipient, job.since, job.attempts, job.attempts_ever";

/// Reads [`JOB`] and behind it [`PARCEL`].
pub(super) fn job(row: &Row<'_>, recipient: &Recipient, clock: &Clock) -> rusqlite::Result<Job> {
    let key = Key { delivery: row.get(0)?, recipient: row.get(1)? };
    Ok(Job {
        id: key.into(),
        recipient: recipient.clone(),
        parcel: parcel(row, 5, clock)?,
        since: clock.shown(row.get(2)?),
        attempts: small(row.get(3)?, u32::MAX),
        attempts_ever: small(row.get(4)?, u32::MAX),
    })
}

/// The columns of [`record`]. What is missing of a damaged job is empty.
pub(super) const RECORD: &str = "job.delivery, job.recipient, recipient.webhook, recipient.destination, \
    job.state, job.death, coalesce(delivery.id, ''), coalesce(delivery.kind, ''), coalesce(delivery.event, ''), \
    delivery.environment, delivery.revision, coalesce(delivery.received, job.since), job.due, job.finished, \
    job.attempts_ever, coalesce(length(delivery.body), 0), coalesce(delivery.facts, '')";

/// The tables of [`RECORD`], [`PARCEL`] and [`condition`].
pub(super) const TABLES: &str = "job \
    LEFT JOIN delivery ON delivery.number = job.delivery \
    JOIN recipient ON recipient.number = job.recipient";

/// Reads a state by its name.
pub(super) fn state(name: &str) -> rusqlite::Result<State> {
    name.parse().map_err(|error| FromSqlError::Other(Box::<NoState>::new(error)).into())
}

/// Reads [`RECORD`].
pub(super) fn record(row: &Row<'_>, clock: &Clock) -> rusqlite::Result<Record> {
    let key = Key { delivery: row.get(0)?, recipient: row.get(1)? };
    let state = state(&row.get::<_, String>(4)?)?;
    let death: Option<String> = row.get(5)?;
    let waits = state == State::Waiting;
    Ok(Record {
        id: key.into(),
        recipient: Recipient { webhook: row.get(2)?, destination: row.get(3)? },
        state,
        death: death.and_then(|name| Death::ALL.into_iter().find(|death| death.name() == name)),
        delivery_id: row.get(6)?,
        kind: row.get(7)?,
        event: row.get(8)?,
        environment: row.get(9)?,
        revision: row.get::<_, Option<i64>>(10)?.map(from_integer),
        received: clock.shown(row.get(11)?),
        due: Some(clock.shown(row.get(12)?)).filter(|_| waits),
        finished: row.get::<_, Option<i64>>(13)?.map(|time| clock.shown(time)),
        attempts: small(row.get(14)?, u32::MAX),
        size: from_integer(row.get(15)?),
        // For people only: a job whose facts cannot be read is delivered all the same.
        facts: serde_json::from_slice::<Facts>(row.get_ref(16)?.as_bytes()?).unwrap_or_default(),
    })
}

/// Reads `number, at, duration_us, status, error, answer`.
pub(super) fn attempt(row: &Row<'_>, clock: &Clock) -> rusqlite::Result<Attempt> {
    Ok(Attempt {
        number: small(row.get(0)?, u32::MAX),
        at: clock.shown(row.get(1)?),
        duration: Duration::from_micros(from_integer(row.get(2)?)),
        status: row.get(3)?,
        error: row.get(4)?,
        answer: Bytes::from(row.get::<_, Vec<u8>>(5)?),
    })
}

/// A filter as a condition on [`TABLES`], with its parameters.
pub(super) fn condition(filter: &Filter, clock: &Clock) -> (String, Vec<Value>) {
    let Filter { ids, states, webhook, destination, event, since, until } = filter;
    let text = |text: &String| Value::from(text.clone());
    let time = |time: &SystemTime| Value::from(clock.stored(*time));
    let mut all = All { text: "1".into(), values: Vec::new() };
    all.any(ids.iter().flat_map(|id| {
        // Each alternative is an index of the one table: else SQLite reads every job instead of looking them up.
        let job = id.parse().ok().map(|Key { delivery, recipient }| {
            ("(job.delivery = ? AND job.recipient = ?)", vec![delivery.into(), recipient.into()])
        });
        let by_id = ("job.delivery IN (SELECT number FROM delivery WHERE delivery.id = ?)", vec![text(id)]);
        std::iter::once(by_id).chain(job)
    }));
    all.any(states.iter().map(|state| ("job.state = ?", vec![state.name().to_owned().into()])));
    all.any(webhook.iter().map(|name| ("recipient.webhook = ?", vec![text(name)])));
    all.any(destination.iter().map(|name| ("recipient.destination = ?", vec![text(name)])));
    all.any(
        event.iter().map(|name| ("(delivery.event = ? OR delivery.kind = ?)", vec![text(name), text(name)])),
    );
    all.any(since.iter().map(|since| ("delivery.received >= ?", vec![time(since)])));
    all.any(until.iter().map(|until| ("delivery.received < ?", vec![time(until)])));
    (all.text, all.values)
}

/// Conditions that all must hold.
struct All {
    text: String,
    values: Vec<Value>,
}

impl All {
    /// Adds that one of these must hold; nothing if there are none.
    fn any(&mut self, alternatives: impl Iterator<Item = (&'static str, Vec<Value>)>) {
        let (texts, values): (Vec<_>, Vec<_>) = alternatives.unzip();
        if !texts.is_empty() {
            self.text += &format!(" AND ({})", texts.join(" OR "));
            self.values.extend(values.into_iter().flatten());
        }
    }
}
