//! What commands do, inside a transaction.
//!
//! What waits in a line has one head, which is not blocked, and which may be under way; whoever else comes to wait there is
//! blocked behind it. Where the head stops waiting, the first one behind it is let go. Nothing of that depends on what the
//! configuration said when a job was leased or a request came in: the row decides.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension, Transaction, params};
use tracing::error;

use super::super::{
    PORTION, Shared,
    clock::millis,
    rows::{self, Key, to_count},
};
use crate::delivery::queue::{Attempt, Death, JobId, KEPT_ATTEMPTS, MAX_ANSWER, Recipient, State, Verdict};

/// Commands at work in one transaction.
pub(in super::super) struct Work<'w> {
    pub(super) transaction: &'w Transaction<'w>,
    pub(super) shared: &'w Shared,
    pub(super) effects: Effects,
    pub(super) now: i64,
    /// Bytes that may be taken without another look at the file.
    pub(super) room: u64,
    /// By how much each recipient's waiting and dead jobs are more than before.
    counts: HashMap<i64, (i64, i64)>,
}

/// What a transaction changes beside the file, once it is committed.
#[derive(Default)]
pub(super) struct Effects {
    /// Recipients that may have a due job now.
    pub(super) ring: HashSet<i64>,
    pub(super) dead_dropped: u64,
    /// Something new was stored, or there was no room for it.
    pub(super) stored: bool,
    pub(super) full: bool,
}

/// Where a job stands in the file.
pub(super) struct Standing {
    pub(super) state: State,
    pub(super) line: Option<String>,
    pub(super) finished: Option<i64>,
}

impl<'w> Work<'w> {
    pub(super) fn new(transaction: &'w Transaction<'w>, shared: &'w Shared) -> Self {
        let (effects, counts) = (Effects::default(), HashMap::new());
        Self { transaction, shared, effects, now: shared.clock.now(), room: 0, counts }
    }

    /// Everything was done: writes down what was counted meanwhile.
    pub(super) fn end(self) -> rusqlite::Result<Effects> {
        for (recipient, (waiting, dead)) in self.counts.into_iter().filter(|(_, counts)| *counts != (0, 0)) {
            self.transaction
                .prepare_cached(
                    "UPDATE recipient SET waiting = waiting + ?2, dead = dead + ?3 WHERE number = ?1",
                )?
                .execute([recipient, waiting, dead])?;
        }
        Ok(self.effects)
    }

    /// Counts a job that comes to a state from another; `None`: it is new, or goes.
    pub(super) fn count(&mut self, recipient: i64, from: Option<State>, to: Option<State>) {
        let more = |state| i64::from(to == Some(state)) - i64::from(from == Some(state));
        let (waiting, dead) = self.counts.entry(recipient).or_default();
        *waiting += more(State::Waiting);
        *dead += more(State::Dead);
    }

    pub(super) fn standing(&self, key: Key) -> rusqlite::Result<Option<Standing>> {
        self.transaction
            .prepare_cached("SELECT state, line, finished FROM job WHERE delivery = ?1 AND recipient = ?2")?
            .query_row([key.delivery, key.recipient], |row| {
                let state = rows::state(row.get_ref(0)?.as_str()?)?;
                Ok(Standing { state, line: row.get(1)?, finished: row.get(2)? })
            })
            .optional()
    }

    pub(in super::super) fn settle(
        &mut self,
        key: Key,
        verdict: Verdict,
        attempt: Option<&Attempt>,
    ) -> rusqlite::Result<()> {
        // Verdicts are taken whether there is room or not.
        self.make_room(attempt.map_or(0, |attempt| rows::length(&attempt.answer)))?;
        let tried = i64::from(attempt.is_some());
        let stood = match verdict {
            Verdict::Delivered => self.put(key, State::Delivered, None, None, tried)?,
            Verdict::Dead(death) => self.put(key, State::Dead, None, Some(death), tried)?,
            Verdict::Retry(delay) => {
                self.put(key, State::Waiting, Some(self.now.saturating_add(millis(delay))), None, tried)?
            }
        };
        // Else it was purged while it was under way.
        attempt.filter(|_| stood).map_or(Ok(()), |attempt| self.record(key, attempt))
    }

    fn record(&self, key: Key, attempt: &Attempt) -> rusqlite::Result<()> {
        let Attempt { number, at, duration, status, error, answer } = attempt;
        self.transaction
            .prepare_cached(
                "INSERT INTO attempt (delivery, recipient, number, at, duration_us, status, error, answer)
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

    /// Puts a job that waits into another state, or at another time. One that a newer one has replaced while it was under
    /// way is not tried again, and may be delivered or dead all the same. False: it is not there, or finished.
    pub(super) fn put(
        &mut self,
        key: Key,
        to: State,
        due: Option<i64>,
        death: Option<Death>,
        tried: i64,
    ) -> rusqlite::Result<bool> {
        let Some(Standing { state: from, line, .. }) = self.standing(key)? else { return Ok(false) };
        let to = match (from, to) {
            (State::Delivered | State::Dead, _) => return Ok(false),
            (State::Coalesced, State::Waiting) => State::Coalesced,
            (State::Waiting | State::Coalesced, to) => to,
        };
        let waits = to == State::Waiting;
        self.transaction
            .prepare_cached(
                "UPDATE job SET state = ?3, due = coalesce(?4, due), finished = ?5, death = ?6, blocked = blocked AND ?7,
                     attempts = attempts + ?8, attempts_ever = attempts_ever + ?8
                 WHERE delivery = ?1 AND recipient = ?2",
            )?
            .execute(params![
                key.delivery,
                key.recipient,
                to.name(),
                due,
                (!waits).then_some(self.now),
                death.map(Death::name),
                waits,
                tried
            ])?;
        self.count(key.recipient, Some(from), Some(to));
        if waits || line.is_some() {
            self.effects.ring.insert(key.recipient);
        }
        self.let_go(key.recipient, line.as_deref())?;
        Ok(true)
    }

    /// Lets the first job of a line go that is blocked, unless it has a head.
    pub(super) fn let_go(&mut self, recipient: i64, line: Option<&str>) -> rusqlite::Result<()> {
        let Some(line) = line else { return Ok(()) };
        let released = self
            .transaction
            .prepare_cached(
                "UPDATE job SET blocked = 0 WHERE recipient = ?1 AND delivery =
                     (SELECT min(delivery) FROM job INDEXED BY job_line
                         WHERE recipient = ?1 AND line = ?2 AND state = 'waiting' AND blocked = 1)
                     AND NOT EXISTS (SELECT 1 FROM job INDEXED BY job_line
                         WHERE recipient = ?1 AND line = ?2 AND state = 'waiting' AND blocked = 0)",
            )?
            .execute(params![recipient, line])?;
        if released > 0 {
            self.effects.ring.insert(recipient);
        }
        Ok(())
    }

    /// A job whose rows cannot be read holds up nobody.
    pub(in super::super) fn bury(&mut self, key: Key) -> rusqlite::Result<()> {
        if self.put(key, State::Dead, None, Some(Death::Damaged), 0)? {
            let Recipient { webhook, destination } = self.name_of(key.recipient)?;
            error!(webhook, destination, job = %JobId::from(key),
                "a delivery cannot be read from the queue's file: it is among the dead letters now");
        }
        Ok(())
    }

    /// Brings the waiting jobs of a recipient into lines, or lets all of them go, where the policy is another one than before:
    /// in order of arrival, a portion of those after a delivery at a time. Its number, and the last one if there are more.
    ///
    /// The recipient is what it was before to whatever comes meanwhile, and to a service that is cut off and starts again:
    /// then the last portion, or the first, is that much longer.
    pub(in super::super) fn arrange(
        &mut self,
        recipient: &Recipient,
        in_order: bool,
        after: i64,
    ) -> rusqlite::Result<(i64, Option<i64>)> {
        let (number, was) = self.number_of(&recipient.webhook, &recipient.destination, in_order)?;
        if was == in_order {
            return Ok((number, None));
        }
        let portion = self
            .transaction
            .prepare_cached(
                "SELECT delivery FROM job INDEXED BY job_waiting
                 WHERE recipient = ?1 AND state = 'waiting' AND delivery > ?2 ORDER BY delivery LIMIT ?3",
            )?
            .query_map(params![number, after, to_count(PORTION)], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        let mut arrange = self.transaction.prepare_cached(if in_order {
            "UPDATE job SET (line, blocked) =
                 (SELECT line, EXISTS (SELECT 1 FROM job AS other INDEXED BY job_line WHERE recipient = ?2
                      AND other.line = its.line AND state = 'waiting' AND blocked = 0 AND delivery < ?1)
                  FROM (SELECT coalesce((SELECT environment FROM delivery WHERE number = ?1), '') AS line) AS its)
             WHERE delivery = ?1 AND recipient = ?2"
        } else {
            "UPDATE job SET blocked = 0 WHERE delivery = ?1 AND recipient = ?2"
        })?;
        for delivery in &portion {
            arrange.execute([*delivery, number])?;
        }
        let last = portion.last().copied().filter(|_| portion.len() == PORTION);
        if last.is_none() {
            self.transaction
                .execute("UPDATE recipient SET in_order = ?2 WHERE number = ?1", params![number, in_order])?;
            self.effects.ring.insert(number);
        }
        Ok((number, last))
    }

    /// Lets those go that are still in one of these states; none: in any.
    pub(in super::super) fn redeliver(&mut self, keys: &[Key], states: &[State]) -> rusqlite::Result<u64> {
        self.each(keys, states, |work, key, Standing { state, .. }| match state {
            State::Waiting => work.put(key, state, Some(work.now), None, 0).map(drop),
            State::Delivered | State::Dead | State::Coalesced => work.revive(key, state),
        })
    }

    /// Forgets those that are still in one of these states; none: in any.
    pub(in super::super) fn purge(&mut self, keys: &[Key], states: &[State]) -> rusqlite::Result<u64> {
        self.each(keys, states, |work, key, _| work.forget(key))
    }

    fn each(
        &mut self,
        keys: &[Key],
        states: &[State],
        change: fn(&mut Self, Key, Standing) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<u64> {
        let mut count = 0;
        for key in keys {
            if let Some(standing) = self.standing(*key)?
                && (states.is_empty() || states.contains(&standing.state))
            {
                change(self, *key, standing)?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Makes a finished job wait again, with attempts and age counted afresh; in its line, where it has one.
    pub(super) fn revive(&mut self, key: Key, from: State) -> rusqlite::Result<()> {
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
        self.count(key.recipient, Some(from), Some(State::Waiting));
        self.effects.ring.insert(key.recipient);
        Ok(())
    }

    /// The number of a recipient, and whether its jobs are in order: as it is in the file, or as given for a new one.
    pub(super) fn number_of(
        &mut self,
        webhook: &str,
        destination: &str,
        in_order: bool,
    ) -> rusqlite::Result<(i64, bool)> {
        let known = self
            .transaction
            .prepare_cached("SELECT number, in_order FROM recipient WHERE webhook = ?1 AND destination = ?2")?
            .query_row([webhook, destination], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some(known) = known {
            return Ok(known);
        }
        self.transaction
            .prepare_cached("INSERT INTO recipient (webhook, destination, in_order) VALUES (?1, ?2, ?3)")?
            .execute(params![webhook, destination, in_order])?;
        Ok((self.transaction.last_insert_rowid(), in_order))
    }

    pub(super) fn name_of(&self, recipient: i64) -> rusqlite::Result<Recipient> {
        self.transaction
            .prepare_cached("SELECT webhook, destination FROM recipient WHERE number = ?1")?
            .query_row([recipient], |row| Ok(Recipient { webhook: row.get(0)?, destination: row.get(1)? }))
    }
}
