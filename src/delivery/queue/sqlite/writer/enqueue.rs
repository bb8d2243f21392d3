//! What taking in a delivery is, inside a transaction.

use std::borrow::Cow;

use rusqlite::{CachedStatement, OptionalExtension, ToSql, Transaction, params};

use super::{
    super::{
        lock_of,
        rows::{Key, hash_of, millis, to_integer},
    },
    Command, Executed,
    upkeep::pages,
    work::{REVIVE, Work, finished, forget},
};
use crate::delivery::queue::{Delivery, Enqueued, Policy, State};

/// What a delivery takes beside its body, in bytes; estimated high.
pub(super) const OVERHEAD: u64 = 2 << 10;

/// Rows that one statement writes, where there are so many.
const ROWS: usize = 16;

/// What is written together: a statement for each row takes as long as the row itself.
#[derive(Default)]
pub(super) struct Pending<'w> {
    deliveries: Vec<(i64, &'w Delivery)>,
    /// Those that go at once, by the numbers of delivery and recipient.
    jobs: Vec<(i64, i64)>,
}

impl<'w> Work<'w> {
    /// Makes sure that there is room, as far as finished jobs can make it, the oldest first.
    pub(super) fn make_room(&mut self, commands: &[Command]) -> rusqlite::Result<()> {
        const CHUNK: usize = 100;

        let max = self.shared.retention.max_bytes;
        let needed: u64 = commands
            .iter()
            .map(|command| if let Command::Enqueue { delivery, .. } = command { cost(delivery) } else { 0 })
            .sum();
        while self.known.room < needed {
            let (pages, free, size) = pages(self.transaction)?;
            self.known.room = max.saturating_sub((pages - free) * size);
            if self.known.room >= needed {
                break;
            }
            let mut finished_ones = finished(self.transaction, State::Delivered, i64::MAX, CHUNK)?;
            finished_ones.extend(finished(self.transaction, State::Coalesced, i64::MAX, CHUNK)?);
            if finished_ones.is_empty() {
                break;
            }
            for key in finished_ones {
                forget(self.transaction, key, &mut self.known.ids)?;
            }
        }
        Ok(())
    }

    pub(super) fn enqueue(&mut self, delivery: &'w Delivery) -> rusqlite::Result<Executed> {
        let Delivery { webhook, parcel, destinations, .. } = delivery;
        let id = text_of(parcel.id.as_bytes());
        let hash = hash_of(&id);
        if !self.shared.window.is_zero()
            && let Some(known) = self.find_known(webhook, &id, hash, &parcel.body)?
        {
            return Ok(Executed::Enqueued(known));
        }
        let Some(room) = self.known.room.checked_sub(cost(delivery)) else { return Ok(Executed::Full) };
        self.known.room = room;
        let number = self.known.next;
        self.known.next += 1;
        self.pending.deliveries.push((number, delivery));
        self.known.ids.add(hash, number);
        for (destination, policy) in destinations {
            let recipient = self.number_of(webhook, destination)?;
            if *policy == Policy::default() {
                self.pending.jobs.push((number, recipient));
                self.effects.change(recipient, 1, 0);
            } else {
                self.add_job(number, recipient, *policy, delivery)?;
            }
            self.effects.ring.insert(recipient);
        }
        Ok(Executed::Enqueued(Enqueued::Queued))
    }

    /// Writes what was taken in.
    pub(super) fn write_pending(&mut self) -> rusqlite::Result<()> {
        let Pending { deliveries, jobs } = std::mem::take(&mut self.pending);
        let now = self.now;
        insert(self.transaction, DELIVERY, &deliveries, |row, (number, delivery)| {
            let Delivery { webhook, parcel, environment, revision, .. } = delivery;
            row.bind(number)?;
            row.bind(webhook)?;
            row.bind(text_of(parcel.id.as_bytes()))?;
            row.bind(text_of(parcel.kind.as_bytes()))?;
            row.bind(text_of(parcel.event.as_bytes()))?;
            row.bind(environment)?;
            row.bind(revision.map(to_integer))?;
            row.bind(parcel.content_type.as_str().as_bytes())?;
            row.bind(parcel.signature.as_bytes())?;
            row.bind(parcel.traceparent.as_bytes())?;
            row.bind(parcel.kind_verified)?;
            row.bind(now)?;
            row.bind(&parcel.body[..])
        })?;
        insert(self.transaction, JOB, &jobs, |row, (delivery, recipient)| {
            row.bind(delivery)?;
            row.bind(recipient)?;
            row.bind(now)
        })
    }

    /// What the queue knows of a delivery's ID. `None`: it is a new one.
    fn find_known(
        &mut self,
        webhook: &str,
        id: &str,
        hash: i64,
        body: &[u8],
    ) -> rusqlite::Result<Option<Enqueued>> {
        let found = self.known.ids.find(self.transaction, hash)?;
        if !found.is_empty() {
            // It may have come just before.
            self.write_pending()?;
        }
        for number in found {
            let known = self
                .transaction
                .prepare_cached(
                    "SELECT received, body = ?4 FROM delivery WHERE number = ?1 AND webhook = ?2 AND id = ?3",
                )?
                .query_row(params![number, webhook, id, body], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            // The newest one counts.
            if let Some((received, same)) = known {
                return self.compare(number, received, same);
            }
        }
        Ok(None)
    }

    /// What a delivery is to the one before it under its ID.
    fn compare(&mut self, number: i64, received: i64, same: bool) -> rusqlite::Result<Option<Enqueued>> {
        let jobs = self
            .transaction
            .prepare_cached("SELECT state, finished, recipient FROM job WHERE delivery = ?1")?
            .query_map([number], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?, row.get::<_, i64>(2)?))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let within = |time: i64| self.now.saturating_sub(time) < millis(self.shared.window);
        let waits = jobs.iter().any(|(state, ..)| state == State::Waiting.name());
        let recent = jobs
            .iter()
            .any(|(state, finished, _)| state != State::Dead.name() && finished.is_some_and(within));
        if !same {
            return Ok((waits || recent || within(received)).then_some(Enqueued::Conflict));
        }
        let dead: Vec<_> = jobs.iter().filter(|(state, ..)| state == State::Dead.name()).collect();
        if !dead.is_empty() {
            self.transaction
                .prepare_cached(&format!("{REVIVE} AND delivery = ?2 AND state = 'dead'"))?
                .execute([self.now, number])?;
            for (.., recipient) in dead {
                self.learn_name(*recipient)?;
                self.effects.change(*recipient, 1, -1);
                self.effects.ring.insert(*recipient);
            }
            return Ok(Some(Enqueued::Queued));
        }
        Ok((waits || recent).then_some(Enqueued::Duplicate))
    }

    /// A job of a destination that has `order` or `coalesce`.
    fn add_job(
        &mut self,
        delivery: i64,
        recipient: i64,
        policy: Policy,
        whole: &Delivery,
    ) -> rusqlite::Result<()> {
        let line = match (policy, &whole.environment) {
            (Policy { in_order: true, .. }, environment) => Some(environment.as_deref().unwrap_or_default()),
            (Policy { coalesce: Some(_), .. }, Some(environment)) => Some(environment.as_str()),
            _ => None,
        };
        let (mut due, mut superseded) = (self.now, false);
        if let (Some(wait), Some(line), Some(_)) = (policy.coalesce, line, &whole.environment) {
            due = self.now.saturating_add(millis(wait));
            for (key, known_due, revision) in
                self.rivals(recipient, line, &text_of(whole.parcel.event.as_bytes()))?
            {
                if revision > whole.revision.map(to_integer) {
                    superseded = true;
                } else if self.withdraw(key) {
                    self.finish(key, State::Coalesced, None, 0)?;
                    self.effects.change(recipient, -1, 0);
                    due = due.min(known_due);
                }
            }
        }
        let blocked = match line {
            Some(line) if policy.in_order && !superseded => self
                .transaction
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM job WHERE recipient = ?1 AND line = ?2 AND state = 'waiting')",
                )?
                .query_row(params![recipient, line], |row| row.get(0))?,
            _ => false,
        };
        let state = if superseded { State::Coalesced } else { State::Waiting };
        self.transaction
            .prepare_cached(
                "INSERT INTO job (delivery, recipient, state, blocked, line, due, since, finished)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                delivery,
                recipient,
                state.name(),
                blocked,
                line,
                due,
                self.now,
                superseded.then_some(self.now)
            ])?;
        if !superseded {
            self.effects.change(recipient, 1, 0);
        }
        if let Some(line) = line.filter(|_| policy.in_order) {
            self.release_next(recipient, line)?;
        }
        Ok(())
    }

    /// The waiting jobs of one line and event, with due time and revision.
    fn rivals(
        &self,
        recipient: i64,
        line: &str,
        event: &str,
    ) -> rusqlite::Result<Vec<(Key, i64, Option<i64>)>> {
        self.transaction
            .prepare_cached(
                "SELECT job.delivery, job.due, delivery.revision FROM job
                 JOIN delivery ON delivery.number = job.delivery
                 WHERE job.recipient = ?1 AND job.line = ?2 AND job.state = 'waiting' AND delivery.event = ?3",
            )?
            .query_map(params![recipient, line, event], |row| {
                Ok((Key { delivery: row.get(0)?, recipient }, row.get(1)?, row.get(2)?))
            })?
            .collect()
    }

    /// Keeps a job from being leased until the commit. False: it is leased, and goes its way.
    fn withdraw(&mut self, key: Key) -> bool {
        let mut held = lock_of(&self.shared.held);
        if held.leased.contains(&key) {
            return false;
        }
        held.withdrawn.insert(key);
        self.effects.withdrawn.push(key);
        true
    }
}

/// Table and columns of a delivery, and a row of parameters.
const DELIVERY: [&str; 2] = [
    "delivery (number, webhook, id, kind, event, environment, revision, content_type, signature, traceparent,
        kind_verified, received, body)",
    "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
];

/// The same of a job that goes at once.
const JOB: [&str; 2] = ["job (delivery, recipient, state, blocked, since)", "(?, ?, 'waiting', 0, ?)"];

/// Inserts many rows.
fn insert<T>(
    transaction: &Transaction<'_>,
    table: [&str; 2],
    rows: &[T],
    bind: impl Fn(&mut Row<'_, '_>, &T) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let write = |rows: &[T], statement: &mut CachedStatement<'_>| {
        let mut row = Row { statement, at: 0 };
        for value in rows {
            bind(&mut row, value)?;
        }
        statement.raw_execute().map(drop)
    };
    let (many, rest) = rows.as_chunks::<ROWS>();
    if !many.is_empty() {
        let mut statement = transaction.prepare_cached(&statement(table, ROWS))?;
        many.iter().try_for_each(|rows| write(rows, &mut statement))?;
    }
    let mut statement = transaction.prepare_cached(&statement(table, 1))?;
    rest.chunks(1).try_for_each(|rows| write(rows, &mut statement))
}

/// `FAIL` leaves the rows before one that fails, which the end of the transaction takes back; to take them back
/// itself, the statement would have to keep a copy of every page.
fn statement([table, row]: [&str; 2], rows: usize) -> String {
    let rows = vec![row; rows].join(", ");
    format!("INSERT OR FAIL INTO {table} VALUES {rows}")
}

/// The parameters of a statement of many rows, one after the other.
struct Row<'s, 'c> {
    statement: &'s mut CachedStatement<'c>,
    at: usize,
}

impl Row<'_, '_> {
    fn bind(&mut self, value: impl ToSql) -> rusqlite::Result<()> {
        self.at += 1;
        self.statement.raw_bind_parameter(self.at, value)
    }
}

/// What a delivery takes, in bytes.
fn cost(delivery: &Delivery) -> u64 {
    u64::try_from(delivery.parcel.body.len()).unwrap_or(u64::MAX).saturating_add(OVERHEAD)
}

/// Headers whose grammar was checked are ASCII.
fn text_of(value: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(value)
}
