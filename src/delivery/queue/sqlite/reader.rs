//! What is read from the file: due jobs, counts, and the log.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, Error, ErrorCode, OptionalExtension, params, params_from_iter, types::Value};

use super::{
    Leased, Shared, lock_of, place,
    rows::{self, Key},
};
use crate::delivery::queue::{Depth, Details, Filter, Job, JobId, Recipient, Record, Stock};

/// Jobs that were leased.
#[derive(Debug)]
pub(super) struct Leasing {
    pub(super) jobs: Vec<(Leased, Job)>,
    /// Those whose rows cannot be read.
    pub(super) damaged: Vec<Key>,
    /// How long it takes until one more is due.
    pub(super) next_due: Option<Duration>,
}

/// Leases jobs that are due, those that have been due for longest first.
pub(super) fn lease(
    connection: &Connection,
    shared: &Arc<Shared>,
    (number, recipient): (i64, &Recipient),
    in_order: bool,
    max: usize,
) -> rusqlite::Result<Leasing> {
    // Ages are taken by the system's clock of now.
    shared.clock.compare(SystemTime::now());
    let (keys, next_due) = {
        // Until the end, so that what is read here and who holds what are of one moment.
        let mut leased = lock_of(&shared.leased);
        let (keys, next_due) = due(connection, shared, &leased, number, in_order, max.max(1))?;
        leased.extend(keys.iter().copied());
        (keys, next_due)
    };
    let leases: Vec<_> = keys.into_iter().map(|key| Leased::new(key, shared)).collect();
    let mut leasing = Leasing { jobs: Vec::new(), damaged: Vec::new(), next_due };
    let sql = format!(
        "SELECT {}, {} FROM job LEFT JOIN delivery ON delivery.number = job.delivery
         WHERE job.delivery = ?1 AND job.recipient = ?2 AND job.state = 'waiting'",
        rows::JOB,
        rows::PARCEL
    );
    let mut whole = connection.prepare_cached(&sql)?;
    for leased in leases {
        let read = |row: &rusqlite::Row<'_>| rows::job(row, recipient, &shared.clock);
        match whole.query_row([leased.key.delivery, number], read) {
            Ok(job) => leasing.jobs.push((leased, job)),
            // It was purged just now.
            Err(Error::QueryReturnedNoRows) => {}
            Err(error @ Error::SqliteFailure(..)) if !is_corrupt(&error) => return Err(error),
            Err(_) => leasing.damaged.push(leased.key),
        }
    }
    Ok(leasing)
}

/// Whether it says that what was read is damaged.
fn is_corrupt(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
}

/// Jobs that are due and may go, and how long it takes until another one is.
fn due(
    connection: &Connection,
    shared: &Shared,
    leased: &HashSet<Key>,
    recipient: i64,
    in_order: bool,
    max: usize,
) -> rusqlite::Result<(Vec<Key>, Option<Duration>)> {
    // Under way beside the head of a line are those that a newer one has replaced, and any while `order` has just come.
    let mut busy = HashSet::new();
    if in_order {
        let mut line =
            connection.prepare_cached("SELECT line FROM job WHERE delivery = ?1 AND recipient = ?2")?;
        for key in leased.iter().filter(|key| key.recipient == recipient) {
            busy.extend(
                line.query_row([key.delivery, recipient], |row| row.get::<_, Option<String>>(0))
                    .optional()?,
            );
        }
    }
    let mut due = connection.prepare_cached(
        "SELECT delivery, due, line FROM job INDEXED BY job_due
         WHERE recipient = ?1 AND state = 'waiting' AND blocked = 0 ORDER BY due, delivery",
    )?;
    let mut rows = due.query([recipient])?;
    let now = shared.clock.now();
    let mut found = Vec::new();
    while found.len() < max
        && let Some(row) = rows.next()?
    {
        let (key, time) = (Key { delivery: row.get(0)?, recipient }, row.get::<_, i64>(1)?);
        if leased.contains(&key) {
            continue;
        }
        if time > now {
            return Ok((found, Some(Duration::from_millis(u64::try_from(time - now).unwrap_or(0)))));
        }
        if in_order && busy.contains(&row.get::<_, Option<String>>(2)?) {
            continue;
        }
        found.push(key);
    }
    Ok((found, None))
}

/// Counts, and what the file takes.
pub(super) fn stock(connection: &Connection, shared: &Shared) -> rusqlite::Result<Stock> {
    let mut statement = connection.prepare_cached(
        "SELECT webhook, destination, waiting, dead,
             (SELECT received FROM delivery WHERE number = (SELECT min(delivery) FROM job INDEXED BY job_waiting
                 WHERE job.recipient = recipient.number AND state = 'waiting'))
         FROM recipient ORDER BY webhook, destination",
    )?;
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    let depths = statement.query_map([], |row| {
        let recipient = Recipient { webhook: row.get(0)?, destination: row.get(1)? };
        let oldest = row.get::<_, Option<i64>>(4)?.map(|time| shared.clock.shown(time));
        Ok((recipient, Depth { waiting: count(row.get(2)?), oldest, dead: count(row.get(3)?) }))
    })?;
    Ok(Stock {
        depths: depths.collect::<rusqlite::Result<_>>()?,
        bytes: Pages::read(connection)?.used(),
        log_bytes: place::log_length(&shared.path),
        max_bytes: shared.retention.max_bytes,
        dead_dropped: shared.dead_dropped.load(std::sync::atomic::Ordering::Relaxed),
    })
}

/// The pages of the file, as the transaction under way leaves them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pages {
    pub(super) all: u64,
    pub(super) free: u64,
    size: u64,
}

impl Pages {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let pragma = |name: &str| -> rusqlite::Result<u64> {
            let mut statement = connection.prepare_cached(name)?;
            statement.query_row([], |row| row.get::<_, i64>(0)).map(|value| u64::try_from(value).unwrap_or(0))
        };
        Ok(Self {
            all: pragma("PRAGMA page_count")?,
            free: pragma("PRAGMA freelist_count")?,
            size: pragma("PRAGMA page_size")?,
        })
    }

    /// Bytes in use.
    pub(super) const fn used(self) -> u64 {
        self.all.saturating_sub(self.free).saturating_mul(self.size)
    }
}

/// The newest jobs that a filter means.
pub(super) fn list(
    connection: &Connection,
    shared: &Shared,
    filter: &Filter,
    max: usize,
) -> rusqlite::Result<Vec<Record>> {
    let (condition, mut values) = rows::condition(filter, &shared.clock);
    values.push(Value::from(i64::try_from(max).unwrap_or(i64::MAX)));
    let sql = format!(
        "SELECT {} FROM {} WHERE {condition} ORDER BY job.delivery DESC, job.recipient LIMIT ?",
        rows::RECORD,
        rows::TABLES
    );
    let mut statement = connection.prepare(&sql)?;
    statement.query_map(params_from_iter(values), |row| rows::record(row, &shared.clock))?.collect()
}

/// All jobs that a filter means.
pub(super) fn keys(connection: &Connection, shared: &Shared, filter: &Filter) -> rusqlite::Result<Vec<Key>> {
    let (condition, values) = rows::condition(filter, &shared.clock);
    let sql = format!("SELECT job.delivery, job.recipient FROM {} WHERE {condition}", rows::TABLES);
    let mut statement = connection.prepare(&sql)?;
    let key = |row: &rusqlite::Row<'_>| Ok(Key { delivery: row.get(0)?, recipient: row.get(1)? });
    statement.query_map(params_from_iter(values), key)?.collect()
}

/// One job.
pub(super) fn show(
    connection: &Connection,
    shared: &Shared,
    id: &JobId,
) -> rusqlite::Result<Option<Details>> {
    let Ok(key) = id.0.parse::<Key>() else { return Ok(None) };
    let sql = format!(
        "SELECT {}, {} FROM {} WHERE job.delivery = ?1 AND job.recipient = ?2",
        rows::RECORD,
        rows::PARCEL,
        rows::TABLES
    );
    let found = connection
        .query_row(&sql, params![key.delivery, key.recipient], |row| {
            Ok((rows::record(row, &shared.clock)?, rows::parcel(row, 17, &shared.clock)?))
        })
        .optional()?;
    let Some((record, parcel)) = found else { return Ok(None) };
    let mut statement = connection.prepare(
        "SELECT number, at, duration_us, status, error, answer FROM attempt
         WHERE delivery = ?1 AND recipient = ?2 ORDER BY number",
    )?;
    let attempts = statement
        .query_map(params![key.delivery, key.recipient], |row| rows::attempt(row, &shared.clock))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(Some(Details { record, parcel, attempts }))
}
