//! What commands do, inside a transaction.
//!
//! What waits in a line has one head, which is not blocked, and which may be under way; whoever else comes to wait there is
//! blocked behind it. Where the head stops waiting, the first one behind it is let go. Nothing of that depends on what the
//! configuration said when a job was leased or a request came in: the row decides.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension, Transaction, params};
use tracing::error;

use super::super::{
    Shared,
    rows::{self, Key, millis},
};
use crate::delivery::queue::{Attempt, Death, JobId, KEPT_ATTEMPTS, MAX_ANSWER, Recipient, State, Verdict};

/// Commands at work in one transaction.
pub(in super::super) struct Work<'w> {
    pub(super) transaction: &'w Transaction<'w>,
    pub(super) shared: &'w Shared,
    pub(super) recipients: &'w mut Recipients,
    pub(super) effects: &'w mut Effects,
    pub(super) now: i64,
}

/// The numbers of recipients, and whether each wants its jobs in order.
pub(super) type Recipients = HashMap<Recipient, (i64, bool)>;

/// What a transaction changes beside the file, once it is committed.
#[derive(Default)]
pub(super) struct Effects {
    /// Recipients that may have a due job now.
    pub(super) ring: HashSet<i64>,
    /// Jobs that were withdrawn from being leased until the end of the transaction.
    pub(super) withdrawn: Vec<Key>,
    pub(super) dead_dropped: u64,
    /// Something new was stored, or there was no room for it.
    pub(super) stored: bool,
    pub(super) full: bool,
}

impl<'w> Work<'w> {
    pub(super) fn new(
        transaction: &'w Transaction<'w>,
        shared: &'w Shared,
        recipients: &'w mut Recipients,
        effects: &'w mut Effects,
    ) -> Self {
        Self { transaction, shared, recipients, effects, now: shared.clock.now() }
    }

    pub(in super::super) fn settle(
        &mut self,
        key: Key,
        verdict: Verdict,
        attempt: Option<&Attempt>,
    ) -> rusqlite::Result<()> {
        let tried = i64::from(attempt.is_some());
        let changed = match verdict {
            Verdict::Delivered => self.finish(key, State::Delivered, None, tried)?,
            Verdict::Dead(death) => self.finish(key, State::Dead, Some(death), tried)?,
            Verdict::Retry(delay) => {
                let due = self.now.saturating_add(millis(delay));
                let waits = self
                    .transaction
                    .prepare_cached(
                        "UPDATE job SET due = ?3, attempts = attempts + ?4, attempts_ever = attempts_ever + ?4
                         WHERE delivery = ?1 AND recipient = ?2 AND state = 'waiting' AND blocked <> 2",
                    )?
                    .execute([key.delivery, key.recipient, due, tried])?
                    > 0;
                // Or a newer one came meanwhile.
                waits || self.finish(key, State::Coalesced, None, tried)?
            }
        };
        // Else it was purged while it was under way.
        if let Some(attempt) = attempt.filter(|_| changed) {
            self.record(key, attempt)?;
        }
        // Verdicts are taken whether there is room or not.
        self.make_room(0).map(drop)
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
                self.shared.clock.stored(*at),
                i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
                status,
                error,
                answer.get(..MAX_ANSWER).unwrap_or(answer),
            ])?;
        let kept = u32::try_from(KEPT_ATTEMPTS).unwrap_or(u32::MAX);
        if let Some(before) = number.checked_sub(kept).filter(|before| *before > 0) {
            self.transaction
                .prepare_cached(
                    "DELETE FROM attempt WHERE delivery = ?1 AND recipient = ?2 AND number <= ?3",
                )?
                .execute(params![key.delivery, key.recipient, before])?;
        }
        Ok(())
    }

    /// Brings a waiting job to its end. Whether it waited.
    pub(super) fn finish(
        &mut self,
        key: Key,
        state: State,
        death: Option<Death>,
        tried: i64,
    ) -> rusqlite::Result<bool> {
        let line: Option<Option<String>> = self
            .transaction
            .prepare_cached(
                "UPDATE job SET state = ?3, finished = ?4, death = ?5, blocked = 0,
                     attempts = attempts + ?6, attempts_ever = attempts_ever + ?6
                 WHERE delivery = ?1 AND recipient = ?2 AND state = 'waiting' RETURNING line",
            )?
            .query_row(
                params![key.delivery, key.recipient, state.name(), self.now, death.map(Death::name), tried],
                |row| row.get(0),
            )
            .optional()?;
        self.let_go(key.recipient, line.as_ref().and_then(Option::as_deref))?;
        Ok(line.is_some())
    }

    /// Lets the first job of a line go that is blocked, unless it has a head.
    pub(super) fn let_go(&mut self, recipient: i64, line: Option<&str>) -> rusqlite::Result<()> {
        let Some(line) = line else { return Ok(()) };
        let has_head: bool = self
            .transaction
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM job INDEXED BY job_line
                         WHERE recipient = ?1 AND line = ?2 AND state = 'waiting' AND blocked = 0)
                     OR EXISTS (SELECT 1 FROM job INDEXED BY job_line
                         WHERE recipient = ?1 AND line = ?2 AND state = 'waiting' AND blocked = 2)",
            )?
            .query_row(params![recipient, line], |row| row.get(0))?;
        if has_head {
            return Ok(());
        }
        let released = self
            .transaction
            .prepare_cached(
                "UPDATE job SET blocked = 0 WHERE recipient = ?1 AND delivery =
                     (SELECT min(delivery) FROM job INDEXED BY job_line
                         WHERE recipient = ?1 AND line = ?2 AND state = 'waiting' AND blocked = 1)",
            )?
            .execute(params![recipient, line])?;
        if released > 0 {
            self.effects.ring.insert(recipient);
        }
        Ok(())
    }

    /// A job whose rows cannot be read holds up nobody.
    pub(in super::super) fn bury(&mut self, key: Key) -> rusqlite::Result<()> {
        if self.finish(key, State::Dead, Some(Death::Damaged), 0)? {
            let Recipient { webhook, destination } = self.name_of(key.recipient)?;
            error!(webhook, destination, job = %JobId::from(key),
                "a delivery cannot be read from the queue's file: it is among the dead letters now");
        }
        Ok(())
    }

    /// Brings the waiting jobs of a recipient into lines, or lets all of them go, where the policy is another one than before.
    pub(in super::super) fn arrange(
        &mut self,
        recipient: &Recipient,
        in_order: bool,
    ) -> rusqlite::Result<i64> {
        let (number, was) = self.number_of(&recipient.webhook, &recipient.destination, in_order)?;
        if was == in_order {
            return Ok(number);
        }
        let steps: &[&str] = if in_order {
            &[
                "UPDATE job SET line = (SELECT coalesce(environment, '') FROM delivery WHERE number = job.delivery)
                 WHERE recipient = ?1 AND state = 'waiting' AND line IS NULL",
                "UPDATE job SET blocked = 1
                 WHERE recipient = ?1 AND state = 'waiting' AND blocked = 0 AND line IS NOT NULL",
                "UPDATE job SET blocked = 0 WHERE recipient = ?1 AND state = 'waiting' AND blocked = 1 AND delivery IN
                     (SELECT min(delivery) FROM job WHERE recipient = ?1 AND state = 'waiting' AND line IS NOT NULL
                      GROUP BY line)",
                "UPDATE recipient SET in_order = 1 WHERE number = ?1",
            ]
        } else {
            &[
                "UPDATE job SET blocked = 0 WHERE recipient = ?1 AND state = 'waiting' AND blocked = 1",
                "UPDATE recipient SET in_order = 0 WHERE number = ?1",
            ]
        };
        for step in steps {
            self.transaction.execute(step, [number])?;
        }
        self.recipients.insert(recipient.clone(), (number, in_order));
        self.effects.ring.insert(number);
        Ok(number)
    }

    /// Lets those go that are still in one of these states; none: in any.
    pub(in super::super) fn redeliver(&mut self, keys: &[Key], states: &[State]) -> rusqlite::Result<u64> {
        let mut count = 0;
        for key in keys {
            match self.state_of(*key, states)? {
                Some(State::Waiting) => {
                    self.transaction
                        .prepare_cached("UPDATE job SET due = ?1 WHERE delivery = ?2 AND recipient = ?3")?
                        .execute([self.now, key.delivery, key.recipient])?;
                }
                Some(_) => self.revive(*key)?,
                None => continue,
            }
            self.effects.ring.insert(key.recipient);
            count += 1;
        }
        Ok(count)
    }

    /// Makes a finished job wait again, with attempts and age counted afresh; in its line, where it has one.
    pub(super) fn revive(&mut self, key: Key) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "UPDATE job SET line = (SELECT coalesce(environment, '') FROM delivery WHERE number = job.delivery)
                 WHERE delivery = ?1 AND recipient = ?2 AND line IS NULL
                     AND (SELECT in_order FROM recipient WHERE number = ?2)",
            )?
            .execute([key.delivery, key.recipient])?;
        self.transaction
            .prepare_cached(
                "UPDATE job SET state = 'waiting', due = ?3, since = ?3, attempts = 0, finished = NULL, death = NULL,
                     blocked = (SELECT in_order FROM recipient WHERE number = ?2)
                         AND EXISTS (SELECT 1 FROM job AS other INDEXED BY job_line WHERE other.recipient = ?2
                             AND other.line = job.line AND other.state = 'waiting')
                 WHERE delivery = ?1 AND recipient = ?2",
            )?
            .execute([key.delivery, key.recipient, self.now])?;
        self.effects.ring.insert(key.recipient);
        Ok(())
    }

    /// Forgets those that are still in one of these states; none: in any.
    pub(in super::super) fn purge(&mut self, keys: &[Key], states: &[State]) -> rusqlite::Result<u64> {
        let mut count = 0;
        for key in keys {
            if self.state_of(*key, states)?.is_some() {
                self.forget(*key)?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// The state of a job that is in one of these; none: in any.
    fn state_of(&self, key: Key, states: &[State]) -> rusqlite::Result<Option<State>> {
        let found = self
            .transaction
            .prepare_cached("SELECT state FROM job WHERE delivery = ?1 AND recipient = ?2")?
            .query_row([key.delivery, key.recipient], |row| rows::state(&row.get::<_, String>(0)?))
            .optional()?;
        Ok(found.filter(|state| states.is_empty() || states.contains(state)))
    }

    /// The number of a recipient, and whether its jobs are in order: as it is in the file, or as given for a new one.
    pub(super) fn number_of(
        &mut self,
        webhook: &str,
        destination: &str,
        in_order: bool,
    ) -> rusqlite::Result<(i64, bool)> {
        let recipient = Recipient { webhook: webhook.to_owned(), destination: destination.to_owned() };
        if let Some(known) = self.recipients.get(&recipient) {
            return Ok(*known);
        }
        self.transaction.execute(
            "INSERT OR IGNORE INTO recipient (webhook, destination, in_order) VALUES (?1, ?2, ?3)",
            params![webhook, destination, in_order],
        )?;
        let known = self.transaction.query_row(
            "SELECT number, in_order FROM recipient WHERE webhook = ?1 AND destination = ?2",
            [webhook, destination],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        self.recipients.insert(recipient, known);
        Ok(known)
    }

    pub(super) fn name_of(&self, recipient: i64) -> rusqlite::Result<Recipient> {
        self.transaction
            .prepare_cached("SELECT webhook, destination FROM recipient WHERE number = ?1")?
            .query_row([recipient], |row| Ok(Recipient { webhook: row.get(0)?, destination: row.get(1)? }))
    }
}
