//! What is read from the file: due jobs, and the log.
//!
//! A job that has never been leased, and goes at once, is *fresh*: it has no due time in the file and is in none of the
//! indexes of waiting jobs, which keeps commits short. Fresh jobs are found by going through the jobs in order of arrival,
//! and how far that has got is kept in memory.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, OptionalExtension, params, params_from_iter, types::Value};

use super::{
    Held, Shared, lock_of, now,
    rows::{self, Key, from_millis},
};
use crate::delivery::queue::{Details, Filter, Job, JobId, Recipient, Record};

/// Jobs that were leased, with whether they were fresh, or else how long it takes until one is due.
#[derive(Debug)]
pub(super) struct Leasing {
    pub(super) jobs: Vec<(Key, bool, Job)>,
    pub(super) next_due: Option<Duration>,
}

/// Where the fresh jobs of a recipient are.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// Those before this delivery have been leased.
    next: i64,
    /// Leases of these were given back.
    pub(super) returned: BTreeSet<i64>,
}

/// A job that can be leased; those that have been due for longest come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    since: i64,
    delivery: i64,
    fresh: bool,
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
    let max = max.max(1);
    // Until the end, so that what is read here and who holds what are of one moment.
    let mut held = lock_of(&shared.held);
    let (mut candidates, next_due) = due(connection, &held, number, max)?;
    let fresh = held.fresh.entry(number).or_default();
    candidates.extend(fresh.look(connection, number, max)?);
    candidates.sort_unstable();
    candidates.truncate(max);
    let sql = format!(
        "SELECT {}, {} FROM job JOIN delivery ON delivery.number = job.delivery
         WHERE job.delivery = ?1 AND job.recipient = ?2",
        rows::JOB,
        rows::PARCEL
    );
    let mut whole = connection.prepare_cached(&sql)?;
    let jobs = candidates
        .iter()
        .map(|candidate| {
            let (key, job) =
                whole.query_row([candidate.delivery, number], |row| rows::job(row, recipient))?;
            Ok((key, candidate.fresh, job))
        })
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for candidate in candidates.iter().filter(|candidate| candidate.fresh) {
        fresh.take(candidate.delivery);
    }
    held.leased.extend(jobs.iter().map(|(key, ..)| *key));
    Ok(Leasing { jobs, next_due })
}

/// Jobs with a due time that has come, and how long it takes until another one's has.
fn due(
    connection: &Connection,
    held: &Held,
    recipient: i64,
    max: usize,
) -> rusqlite::Result<(Vec<Candidate>, Option<Duration>)> {
    let mut due = connection.prepare_cached(
        "SELECT delivery, due FROM job INDEXED BY job_due
         WHERE recipient = ?1 AND state = 'waiting' AND blocked = 0 AND due IS NOT NULL ORDER BY due, delivery",
    )?;
    let mut rows = due.query([recipient])?;
    let now = now();
    let mut found = Vec::new();
    while found.len() < max
        && let Some(row) = rows.next()?
    {
        let (delivery, since): (i64, i64) = (row.get(0)?, row.get(1)?);
        let key = Key { delivery, recipient };
        if held.leased.contains(&key) || held.withdrawn.contains(&key) {
            continue;
        }
        if since > now {
            return Ok((found, Some(Duration::from_millis(u64::try_from(since - now).unwrap_or(0)))));
        }
        found.push(Candidate { since, delivery, fresh: false });
    }
    Ok((found, None))
}

/// The condition of a fresh job.
macro_rules! fresh {
    ($before:literal, $after:literal) => {
        concat!($before, " state = 'waiting' AND due IS NULL ", $after)
    };
}

impl Fresh {
    /// The first ones, in order of arrival.
    fn look(
        &mut self,
        connection: &Connection,
        recipient: i64,
        max: usize,
    ) -> rusqlite::Result<Vec<Candidate>> {
        let mut found = Vec::new();
        let mut of_returned = connection
            .prepare_cached(fresh!("SELECT since FROM job WHERE delivery = ?1 AND recipient = ?2 AND", ""))?;
        for delivery in self.returned.clone() {
            match of_returned.query_row([delivery, recipient], |row| row.get(0)).optional()? {
                Some(since) => found.push(Candidate { since, delivery, fresh: true }),
                // It was purged, or redelivered meanwhile and has a due time now.
                None => drop(self.returned.remove(&delivery)),
            }
        }
        found.truncate(max);
        let missing = max - found.len();
        if missing > 0 {
            let newest = newest(connection)?;
            let mut later = connection.prepare_cached(fresh!(
                "SELECT delivery, since FROM job WHERE delivery >= ?1 AND recipient = ?2 AND",
                "ORDER BY delivery LIMIT ?3"
            ))?;
            let later = later
                .query_map(
                    params![self.next, recipient, i64::try_from(missing).unwrap_or(i64::MAX)],
                    |row| Ok(Candidate { delivery: row.get(0)?, since: row.get(1)?, fresh: true }),
                )?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            self.next = later.first().map_or(newest + 1, |first| first.delivery);
            found.extend(later);
        }
        // A clock that was set back does not change their order.
        let mut since = i64::MIN;
        for candidate in &mut found {
            since = since.max(candidate.since);
            candidate.since = since;
        }
        Ok(found)
    }

    /// One of the first ones is leased.
    fn take(&mut self, delivery: i64) {
        if !self.returned.remove(&delivery) {
            self.next = delivery + 1;
        }
    }

    /// No fresh job is before this delivery, but for those that are leased.
    fn first(&self) -> i64 {
        self.returned.first().map_or(self.next, |first| self.next.min(*first))
    }
}

/// The number of the newest delivery that has a job.
fn newest(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("SELECT coalesce(max(delivery), 0) FROM job")?.query_row([], |row| row.get(0))
}

/// How many fresh jobs recipients have.
pub(super) fn count_fresh(connection: &Connection, shared: &Shared) -> rusqlite::Result<HashMap<i64, u64>> {
    let recipients: Vec<i64> = connection
        .prepare_cached("SELECT number FROM recipient")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let newest = newest(connection)?;
    let from = {
        let held = lock_of(&shared.held);
        let first = |number| held.fresh.get(number).map_or(0, Fresh::first);
        let leased = held.leased.iter().map(|key| key.delivery);
        recipients.iter().map(first).chain(leased).min().unwrap_or(0)
    };
    let mut found: HashMap<i64, (i64, u64)> = HashMap::new();
    let mut all = connection
        .prepare_cached(fresh!("SELECT recipient, delivery FROM job WHERE delivery >= ?1 AND", ""))?;
    let mut rows = all.query([from])?;
    while let Some(row) = rows.next()? {
        let (_, count) = found.entry(row.get(0)?).or_insert((row.get(1)?, 0));
        *count += 1;
    }
    let mut held = lock_of(&shared.held);
    for number in recipients {
        let first = found.get(&number).map_or(newest + 1, |(first, _)| *first);
        held.fresh.entry(number).or_insert_with(|| Fresh { next: first, ..Fresh::default() });
    }
    Ok(found.into_iter().map(|(number, (_, count))| (number, count)).collect())
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
    shared: &Shared,
    recipients: &[Recipient],
) -> rusqlite::Result<HashMap<Recipient, SystemTime>> {
    let mut oldest = HashMap::new();
    let mut with_due = connection.prepare_cached(
        "SELECT delivery FROM job INDEXED BY job_waiting
         WHERE recipient = ?1 AND state = 'waiting' AND due IS NOT NULL ORDER BY delivery LIMIT 1",
    )?;
    let mut received = connection.prepare_cached("SELECT received FROM delivery WHERE number = ?1")?;
    for recipient in recipients {
        let Some(number) = number_of(connection, recipient)? else { continue };
        let mut held = lock_of(&shared.held);
        let leased = held.leased.iter().filter(|key| key.recipient == number).map(|key| key.delivery).min();
        let fresh = held.fresh.entry(number).or_default().look(connection, number, 1)?;
        drop(held);
        let due = with_due.query_row([number], |row| row.get(0)).optional()?;
        let first = leased.into_iter().chain(fresh.first().map(|first| first.delivery)).chain(due).min();
        // A leased one may have been purged.
        let Some(first) = first else { continue };
        if let Some(time) = received.query_row([first], |row| row.get(0)).optional()? {
            oldest.insert(recipient.clone(), from_millis(time));
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
