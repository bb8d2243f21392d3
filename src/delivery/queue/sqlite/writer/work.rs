//! What commands do, inside a transaction.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    super::{
        Shared,
        ids::Ids,
        rows::{self, Key, hash_of, millis, to_millis},
    },
    Command, Executed,
    enqueue::Pending,
};
use crate::delivery::queue::{Attempt, MAX_ANSWER, Recipient, State, Verdict};

/// What the record of an attempt takes, in bytes; estimated high.
const ATTEMPT: u64 = 4 << 10;

/// Commands at work in one transaction.
pub(super) struct Work<'w> {
    pub(super) transaction: &'w Transaction<'w>,
    pub(super) shared: &'w Shared,
    pub(super) known: &'w mut Known,
    pub(super) effects: &'w mut Effects,
    pub(super) now: i64,
    /// Taken in, and not yet in the file.
    pub(super) pending: Pending<'w>,
}

/// What the writer knows beside the file.
pub(super) struct Known {
    pub(super) recipients: Recipients,
    pub(super) ids: Ids,
    /// The number of the next delivery. One is never given twice, not even after a transaction that came to nothing.
    pub(super) next: i64,
    /// How many bytes may still be stored at least.
    pub(super) room: u64,
}

/// The numbers of recipients.
#[derive(Default)]
pub(super) struct Recipients {
    /// By webhook and destination.
    numbers: HashMap<String, HashMap<String, i64>>,
    names: HashMap<i64, Recipient>,
}

impl Recipients {
    pub(super) fn clear(&mut self) {
        self.numbers.clear();
        self.names.clear();
    }

    pub(super) fn name(&self, number: i64) -> Option<&Recipient> {
        self.names.get(&number)
    }

    fn number(&self, webhook: &str, destination: &str) -> Option<i64> {
        self.numbers.get(webhook)?.get(destination).copied()
    }

    pub(super) fn learn(&mut self, number: i64, recipient: Recipient) {
        let Recipient { webhook, destination } = recipient.clone();
        self.numbers.entry(webhook).or_default().insert(destination, number);
        self.names.insert(number, recipient);
    }
}

impl<'w> Work<'w> {
    pub(super) fn new(
        transaction: &'w Transaction<'w>,
        shared: &'w Shared,
        known: &'w mut Known,
        effects: &'w mut Effects,
        now: i64,
    ) -> Self {
        Self { transaction, shared, known, effects, now, pending: Pending::default() }
    }

    pub(super) fn run(&mut self, commands: &'w [Command]) -> rusqlite::Result<Vec<Executed>> {
        self.make_room(commands)?;
        let executed = commands.iter().map(|command| self.execute(command)).collect::<Result<_, _>>()?;
        self.write_pending()?;
        self.known.ids.file(self.transaction)?;
        Ok(executed)
    }

    fn execute(&mut self, command: &'w Command) -> rusqlite::Result<Executed> {
        match command {
            Command::Enqueue { delivery, .. } => self.enqueue(delivery),
            Command::Settle { key, in_order, verdict, attempt, .. } => {
                self.known.room = self.known.room.saturating_sub(ATTEMPT);
                self.settle(*key, *in_order, *verdict, attempt.as_ref())?;
                Ok(Executed::Done)
            }
            Command::Arrange { recipient, in_order, .. } => {
                self.write_pending()?;
                self.arrange(recipient, *in_order)?;
                Ok(Executed::Done)
            }
            Command::Redeliver { keys, states, .. } => self.redeliver(keys, states).map(Executed::Count),
            Command::Purge { keys, states, .. } => self.purge(keys, states).map(Executed::Count),
            Command::Close { .. } => Ok(Executed::Done),
        }
    }

    fn settle(
        &mut self,
        key: Key,
        in_order: bool,
        verdict: Verdict,
        attempt: Option<&Attempt>,
    ) -> rusqlite::Result<()> {
        self.effects.ended.push(key);
        let tried = i64::from(attempt.is_some());
        let changed = match verdict {
            Verdict::Delivered => self.finish(key, State::Delivered, None, tried)?,
            Verdict::Dead(death) => self.finish(key, State::Dead, Some(death.name()), tried)?,
            Verdict::Retry(delay) => self
                .transaction
                .prepare_cached(
                    "UPDATE job SET due = ?3, attempts = attempts + ?4, attempts_ever = attempts_ever + ?4
                     WHERE delivery = ?1 AND recipient = ?2 AND state = 'waiting'",
                )?
                .execute([key.delivery, key.recipient, self.now.saturating_add(millis(delay)), tried])?,
        };
        if changed == 0 {
            // It was purged while it was under way.
            return Ok(());
        }
        if let Some(attempt) = attempt {
            self.record(key, attempt)?;
        }
        self.learn_name(key.recipient)?;
        match verdict {
            Verdict::Delivered => self.effects.change(key.recipient, -1, 0),
            Verdict::Dead(_) => self.effects.change(key.recipient, -1, 1),
            Verdict::Retry(_) => {
                // Whoever waits for a due job has to look how long to wait for this one.
                self.effects.ring.insert(key.recipient);
                return Ok(());
            }
        }
        if in_order {
            let line: Option<String> = self
                .transaction
                .prepare_cached("SELECT line FROM job WHERE delivery = ?1 AND recipient = ?2")?
                .query_row([key.delivery, key.recipient], |row| row.get(0))?;
            if let Some(line) = line {
                self.release_next(key.recipient, &line)?;
            }
            self.effects.ring.insert(key.recipient);
        }
        Ok(())
    }

    fn record(&self, key: Key, attempt: &Attempt) -> rusqlite::Result<()> {
        let Attempt { number, at, duration, status, error, answer } = attempt;
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO attempt
                     (delivery, recipient, number, at, duration_us, status, error, answer)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                key.delivery,
                key.recipient,
                number,
                to_millis(*at),
                i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
                status,
                error,
                answer.get(..MAX_ANSWER).unwrap_or(answer),
            ])
            .map(drop)
    }

    /// Brings a waiting job to its end. How many there were.
    pub(super) fn finish(
        &self,
        key: Key,
        state: State,
        death: Option<&str>,
        tried: i64,
    ) -> rusqlite::Result<usize> {
        self.transaction
            .prepare_cached(
                "UPDATE job SET state = ?3, finished = ?4, death = ?5, blocked = 0,
                     attempts = attempts + ?6, attempts_ever = attempts_ever + ?6
                 WHERE delivery = ?1 AND recipient = ?2 AND state = 'waiting'",
            )?
            .execute(params![key.delivery, key.recipient, state.name(), self.now, death, tried])
    }

    /// Lets the first waiting job of a line go.
    pub(super) fn release_next(&self, recipient: i64, line: &str) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "UPDATE job SET blocked = 0 WHERE blocked = 1 AND recipient = ?1 AND delivery =
                     (SELECT min(delivery) FROM job WHERE recipient = ?1 AND line = ?2 AND state = 'waiting')",
            )?
            .execute(params![recipient, line])
            .map(drop)
    }

    /// Brings the waiting jobs of a recipient into lines, or lets all of them go.
    fn arrange(&mut self, recipient: &Recipient, in_order: bool) -> rusqlite::Result<()> {
        let number = self.number_of(&recipient.webhook, &recipient.destination)?;
        if in_order {
            self.transaction.execute(
                "UPDATE job SET due = coalesce(due, since), line =
                     (SELECT coalesce(environment, '') FROM delivery WHERE number = job.delivery)
                 WHERE recipient = ?1 AND state = 'waiting' AND line IS NULL",
                [number],
            )?;
            self.transaction.execute(
                "UPDATE job SET blocked = EXISTS (SELECT 1 FROM job AS earlier
                     WHERE earlier.recipient = job.recipient AND earlier.line = job.line
                         AND earlier.state = 'waiting' AND earlier.delivery < job.delivery)
                 WHERE recipient = ?1 AND state = 'waiting'",
                [number],
            )?;
        } else {
            self.transaction.execute(
                "UPDATE job SET blocked = 0 WHERE recipient = ?1 AND state = 'waiting' AND due IS NOT NULL AND blocked = 1",
                [number],
            )?;
        }
        Ok(())
    }

    /// Lets those go that are still in one of these states; none: in any.
    fn redeliver(&mut self, keys: &[Key], states: &[State]) -> rusqlite::Result<u64> {
        let mut count = 0;
        for key in keys {
            let Some((state, _)) = self.state_of(*key, states)? else { continue };
            self.learn_name(key.recipient)?;
            let parameters = [self.now, key.delivery, key.recipient];
            if state == State::Waiting {
                self.transaction
                    .prepare_cached(
                        "UPDATE job SET due = ?1, blocked = 0 WHERE delivery = ?2 AND recipient = ?3",
                    )?
                    .execute(parameters)?;
            } else {
                self.transaction
                    .prepare_cached(&format!("{REVIVE} AND delivery = ?2 AND recipient = ?3"))?
                    .execute(parameters)?;
                self.effects.change(key.recipient, 1, -i64::from(state == State::Dead));
            }
            self.effects.ring.insert(key.recipient);
            count += 1;
        }
        Ok(count)
    }

    /// Forgets those that are still in one of these states; none: in any.
    fn purge(&mut self, keys: &[Key], states: &[State]) -> rusqlite::Result<u64> {
        let mut count = 0;
        for key in keys {
            let Some((state, line)) = self.state_of(*key, states)? else { continue };
            self.learn_name(key.recipient)?;
            forget(self.transaction, *key, &mut self.known.ids)?;
            let was = |other| -i64::from(state == other);
            self.effects.change(key.recipient, was(State::Waiting), was(State::Dead));
            if let Some(line) = line.filter(|_| state == State::Waiting) {
                self.release_next(key.recipient, &line)?;
                self.effects.ring.insert(key.recipient);
            }
            count += 1;
        }
        Ok(count)
    }

    /// State and line of a job that is in one of these states; none: in any.
    fn state_of(&self, key: Key, states: &[State]) -> rusqlite::Result<Option<(State, Option<String>)>> {
        let found = self
            .transaction
            .prepare_cached("SELECT state, line FROM job WHERE delivery = ?1 AND recipient = ?2")?
            .query_row([key.delivery, key.recipient], |row| {
                Ok((rows::state(&row.get::<_, String>(0)?)?, row.get(1)?))
            })
            .optional()?;
        Ok(found.filter(|(state, _)| states.is_empty() || states.contains(state)))
    }

    pub(super) fn number_of(&mut self, webhook: &str, destination: &str) -> rusqlite::Result<i64> {
        if let Some(number) = self.known.recipients.number(webhook, destination) {
            return Ok(number);
        }
        self.transaction.execute(
            "INSERT OR IGNORE INTO recipient (webhook, destination) VALUES (?1, ?2)",
            [webhook, destination],
        )?;
        let number = self.transaction.query_row(
            "SELECT number FROM recipient WHERE webhook = ?1 AND destination = ?2",
            [webhook, destination],
            |row| row.get(0),
        )?;
        let recipient = Recipient { webhook: webhook.to_owned(), destination: destination.to_owned() };
        self.known.recipients.learn(number, recipient);
        Ok(number)
    }

    /// Makes sure that the name is known of a recipient that something changes for.
    pub(super) fn learn_name(&mut self, number: i64) -> rusqlite::Result<()> {
        if self.known.recipients.name(number).is_none() {
            let recipient = name_of(self.transaction, number)?;
            self.known.recipients.learn(number, recipient);
        }
        Ok(())
    }
}

/// Makes finished jobs wait again, with attempts and age counted afresh from ?1.
pub(super) const REVIVE: &str =
    "UPDATE job SET state = 'waiting', blocked = 0, due = ?1, since = ?1, attempts = 0,
    finished = NULL, death = NULL WHERE 1";

/// What a transaction changes beside the file, once it is committed.
#[derive(Default)]
pub(super) struct Effects {
    /// Changes of the numbers of waiting and dead jobs, by the recipient's number.
    pub(super) changes: HashMap<i64, (i64, i64)>,
    /// Recipients that may have a due job now.
    pub(super) ring: HashSet<i64>,
    /// Leases that have ended.
    pub(super) ended: Vec<Key>,
    /// Jobs that were withdrawn from being leased until the commit.
    pub(super) withdrawn: Vec<Key>,
    pub(super) dead_dropped: u64,
}

impl Effects {
    pub(super) fn change(&mut self, recipient: i64, waiting: i64, dead: i64) {
        let change = self.changes.entry(recipient).or_default();
        change.0 += waiting;
        change.1 += dead;
    }
}

pub(super) fn name_of(connection: &Connection, recipient: i64) -> rusqlite::Result<Recipient> {
    connection
        .prepare_cached("SELECT webhook, destination FROM recipient WHERE number = ?1")?
        .query_row([recipient], |row| Ok(Recipient { webhook: row.get(0)?, destination: row.get(1)? }))
}

/// Jobs in a state that were finished before a time, the oldest first.
pub(super) fn finished(
    connection: &Connection,
    state: State,
    before: i64,
    max: usize,
) -> rusqlite::Result<Vec<Key>> {
    connection
        .prepare_cached(
            "SELECT delivery, recipient FROM job WHERE state = ?1 AND state <> 'waiting' AND finished < ?2
             ORDER BY finished LIMIT ?3",
        )?
        .query_map(params![state.name(), before, i64::try_from(max).unwrap_or(i64::MAX)], |row| {
            Ok(Key { delivery: row.get(0)?, recipient: row.get(1)? })
        })?
        .collect()
}

/// Removes a job, and its delivery if it was the last one.
pub(super) fn forget(connection: &Connection, key: Key, ids: &mut Ids) -> rusqlite::Result<()> {
    let Key { delivery, recipient } = key;
    connection
        .prepare_cached("DELETE FROM attempt WHERE delivery = ?1 AND recipient = ?2")?
        .execute([delivery, recipient])?;
    connection
        .prepare_cached("DELETE FROM job WHERE delivery = ?1 AND recipient = ?2")?
        .execute([delivery, recipient])?;
    let gone = connection
        .prepare_cached(
            "DELETE FROM delivery WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM job WHERE delivery = ?1)
             RETURNING id",
        )?
        .query_row([delivery], |row| Ok(hash_of(row.get_ref(0)?.as_str()?)))
        .optional()?;
    if let Some(hash) = gone {
        connection
            .prepare_cached("DELETE FROM by_id WHERE hash = ?1 AND number = ?2")?
            .execute([hash, delivery])?;
        ids.remove(hash, delivery);
    }
    Ok(())
}
