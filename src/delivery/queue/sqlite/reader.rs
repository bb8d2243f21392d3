//! What is read from the file: due jobs, and the log.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, OptionalExtension, params, params_from_iter, types::Value};

use super::{
    Shared, lock_of, now,
    rows::{self, Key, from_millis},
};
use crate::delivery::queue::{Details, Filter, Job, JobId, Recipient, Record};

/// Jobs that were leased, or else how long it takes until one is due.
#[derive(Debug)]
pub(super) struct Leasing {
    pub(super) jobs: Vec<(Key, Job)>,
    pub(super) next_due: Option<Duration>,
}

/// Leases jobs that are due, those that have been due for longest first.
pub(super) fn lease(
    connection: &Connection,
    shared: &Shared,
    recipient: &Recipient,
    max: usize,
) -> rusqlite::Result<Leasing> {
    let nothing = Leasing { jobs: Vec::new(), next_due: None };
    let Some(number) = number_of(connection, recipient)? else { return Ok(nothing) };
    // Until the end, so that what is read here and who holds what are of one moment.
    let mut held = lock_of(&shared.held);
    let mut due = connection.prepare_cached(
        "SELECT delivery, due FROM job
         WHERE recipient = ?1 AND state = 'waiting' AND blocked = 0 ORDER BY due, delivery",
    )?;
    let mut rows = due.query([number])?;
    let now = now();
    let mut chosen = Vec::new();
    let mut next_due = None;
    while chosen.len() < max.max(1)
        && let Some(row) = rows.next()?
    {
        let key = Key { delivery: row.get(0)?, recipient: number };
        if held.leased.contains(&key) || held.withdrawn.contains(&key) {
            continue;
        }
        let due: i64 = row.get(1)?;
        if due > now {
            next_due = Some(Duration::from_millis(u64::try_from(due - now).unwrap_or(0)));
            break;
        }
        chosen.push(key);
    }
    let sql = format!(
        "SELECT {}, {} FROM job JOIN delivery ON delivery.number = job.delivery
         WHERE job.delivery = ?1 AND job.recipient = ?2",
        rows::JOB,
        rows::PARCEL
    );
    let mut whole = connection.prepare_cached(&sql)?;
    let jobs = chosen
        .iter()
        .map(|key| whole.query_row(params![key.delivery, key.recipient], |row| rows::job(row, recipient)))
        .collect::<rusqlite::Result<Vec<_>>>()?;
    held.leased.extend(jobs.iter().map(|(key, _)| *key));
    Ok(Leasing { jobs, next_due })
}

fn number_of(connection: &Connection, recipient: &Recipient) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT number FROM recipient WHERE webhook = ?1 AND destination = ?2")?
        .query_row([&recipient.webhook, &recipient.destination], |row| row.get(0))
        .optional()
}

/// When the oldest waiting job of each recipient was accepted.
pub(super) fn oldest(
    connection: &Connection,
    recipients: &[Recipient],
) -> rusqlite::Result<HashMap<Recipient, SystemTime>> {
    let mut oldest = HashMap::new();
    let mut statement = connection.prepare_cached(
        "SELECT delivery.received FROM job INDEXED BY job_waiting
         JOIN delivery ON delivery.number = job.delivery
         WHERE job.recipient = ?1 AND job.state = 'waiting' ORDER BY job.delivery LIMIT 1",
    )?;
    for recipient in recipients {
        let Some(number) = number_of(connection, recipient)? else { continue };
        let received = statement.query_row([number], |row| row.get(0)).optional()?;
        if let Some(received) = received {
            oldest.insert(recipient.clone(), from_millis(received));
        }
    }
    Ok(oldest)
}

/// The newest jobs that a filter means.
pub(super) fn list(connection: &Connection, filter: &Filter, max: usize) -> rusqlite::Result<Vec<Record>> {
    let (condition, mut values) = rows::condition(filter);
    values.push(Value::from(i64::try_from(max).unwrap_or(i64::MAX)));
    let sql = format!(
        "SELECT {} FROM {} WHERE {condition} ORDER BY job.delivery DESC, job.recipient LIMIT ?",
        rows::RECORD,
        rows::TABLES
    );
    let mut statement = connection.prepare(&sql)?;
    statement.query_map(params_from_iter(values), rows::record)?.collect()
}

/// All jobs that a filter means.
pub(super) fn keys(connection: &Connection, filter: &Filter) -> rusqlite::Result<Vec<Key>> {
    let (condition, values) = rows::condition(filter);
    let sql = format!("SELECT job.delivery, job.recipient FROM {} WHERE {condition}", rows::TABLES);
    let mut statement = connection.prepare(&sql)?;
    let key = |row: &rusqlite::Row<'_>| Ok(Key { delivery: row.get(0)?, recipient: row.get(1)? });
    statement.query_map(params_from_iter(values), key)?.collect()
}

/// One job.
pub(super) fn show(connection: &Connection, id: &JobId) -> rusqlite::Result<Option<Details>> {
    let Ok(key) = id.0.parse::<Key>() else { return Ok(None) };
    let sql = format!(
        "SELECT {}, {} FROM {} WHERE job.delivery = ?1 AND job.recipient = ?2",
        rows::RECORD,
        rows::PARCEL,
        rows::TABLES
    );
    let found = connection
        .query_row(&sql, params![key.delivery, key.recipient], |row| {
            Ok((rows::record(row)?, rows::parcel(row, 16)?))
        })
        .optional()?;
    let Some((record, parcel)) = found else { return Ok(None) };
    let mut statement = connection.prepare(
        "SELECT number, at, duration_us, status, error, answer FROM attempt
         WHERE delivery = ?1 AND recipient = ?2 ORDER BY number",
    )?;
    let attempts = statement
        .query_map(params![key.delivery, key.recipient], rows::attempt)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(Some(Details { record, parcel, attempts }))
}
