//! What goes out of the file: to make room, after its time, or because somebody says so. An ID of what was delivered stays
//! for the window, whatever goes.

use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::{
    super::{
        reader::Pages,
        rows::{Key, millis},
    },
    work::Work,
};
use crate::delivery::queue::{JobId, Recipient, State};

/// Jobs that one look after the file forgets at most, so that it does not hold up those who wait.
const SWEEP: usize = 2_000;

/// Finished jobs that go at a time to make room.
const CHUNK: usize = 64;

impl Work<'_> {
    /// Whether there is room for so many bytes more, made where need be by finished jobs that go, the oldest first.
    pub(super) fn make_room(&mut self, bytes: u64) -> rusqlite::Result<bool> {
        loop {
            if Pages::read(self.transaction)?.used().saturating_add(bytes) <= self.shared.retention.max_bytes
            {
                return Ok(true);
            }
            let mut finished = self.finished(State::Delivered, i64::MAX, CHUNK)?;
            finished.extend(self.finished(State::Coalesced, i64::MAX, CHUNK)?);
            if finished.is_empty() {
                return Ok(false);
            }
            for key in finished {
                self.forget(key)?;
            }
        }
    }

    /// Whether finished jobs are there that could make room.
    pub(super) fn has_finished(&self) -> rusqlite::Result<bool> {
        Ok(!self.finished(State::Delivered, i64::MAX, 1)?.is_empty()
            || !self.finished(State::Coalesced, i64::MAX, 1)?.is_empty())
    }

    /// Jobs in a state that were finished before a time, the oldest first.
    fn finished(&self, state: State, before: i64, max: usize) -> rusqlite::Result<Vec<Key>> {
        self.transaction
            .prepare_cached(
                "SELECT delivery, recipient FROM job INDEXED BY job_finished
                 WHERE state = ?1 AND state <> 'waiting' AND finished < ?2 ORDER BY finished LIMIT ?3",
            )?
            .query_map(params![state.name(), before, i64::try_from(max).unwrap_or(i64::MAX)], |row| {
                Ok(Key { delivery: row.get(0)?, recipient: row.get(1)? })
            })?
            .collect()
    }

    /// What must be done from time to time: forgets what is older than it must be kept. Whether it has changed anything.
    pub(super) fn sweep(&mut self) -> rusqlite::Result<()> {
        let retention = self.shared.retention;
        for (state, retain) in [
            (State::Delivered, retention.retain),
            (State::Coalesced, retention.retain),
            (State::Dead, retention.dead_retain),
        ] {
            for key in self.finished(state, self.now.saturating_sub(millis(retain)), SWEEP)? {
                if state == State::Dead {
                    let Recipient { webhook, destination } = self.name_of(key.recipient)?;
                    let id: Option<String> = self
                        .transaction
                        .prepare_cached("SELECT id FROM delivery WHERE number = ?1")?
                        .query_row([key.delivery], |row| row.get(0))
                        .optional()?;
                    warn!(webhook, destination, delivery.id = id, job = %JobId::from(key),
                        "a dead letter older than `queue.dead_retain` is dropped");
                    self.effects.dead_dropped += 1;
                }
                self.forget(key)?;
            }
        }
        self.transaction
            .prepare_cached(
                "DELETE FROM known WHERE (id, webhook) IN
                     (SELECT id, webhook FROM known WHERE finished <= ?1 LIMIT ?2)",
            )?
            .execute(params![
                self.now.saturating_sub(millis(self.shared.window)),
                i64::try_from(SWEEP).unwrap_or(i64::MAX)
            ])?;
        // Their lease was given back without a verdict, or is of before the start.
        let superseded: Vec<_> = self
            .transaction
            .prepare_cached(
                "SELECT delivery, recipient FROM job INDEXED BY job_superseded
                 WHERE state = 'waiting' AND blocked = 2",
            )?
            .query_map([], |row| Ok(Key { delivery: row.get(0)?, recipient: row.get(1)? }))?
            .collect::<rusqlite::Result<_>>()?;
        for key in superseded {
            if self.withdraw(key) {
                self.finish(key, State::Coalesced, None, 0)?;
            }
        }
        Ok(())
    }

    /// Removes a job, and its delivery if it was the last one.
    pub(super) fn forget(&mut self, key: Key) -> rusqlite::Result<()> {
        let Key { delivery, recipient } = key;
        let found: Option<(String, Option<i64>, Option<String>)> = self
            .transaction
            .prepare_cached(
                "DELETE FROM job WHERE delivery = ?1 AND recipient = ?2 RETURNING state, finished, line",
            )?
            .query_row([delivery, recipient], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((state, finished, line)) = found else { return Ok(()) };
        self.transaction
            .prepare_cached("DELETE FROM attempt WHERE delivery = ?1 AND recipient = ?2")?
            .execute([delivery, recipient])?;
        if let Some(finished) = finished
            && state != State::Dead.name()
            && self.is_within(finished)
        {
            self.keep_id(delivery, finished)?;
        }
        self.transaction
            .prepare_cached(
                "DELETE FROM delivery WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM job WHERE delivery = ?1)",
            )?
            .execute([delivery])?;
        if state == State::Waiting.name() {
            self.let_go(recipient, line.as_deref())?;
        }
        Ok(())
    }

    fn keep_id(&self, delivery: i64, finished: i64) -> rusqlite::Result<()> {
        let digest = self
            .transaction
            .prepare_cached("SELECT body FROM delivery WHERE number = ?1")?
            .query_row([delivery], |row| Ok(Sha256::digest(row.get_ref(0)?.as_bytes()?)))
            .optional()?;
        let Some(digest) = digest else { return Ok(()) };
        self.transaction
            .prepare_cached(
                "INSERT INTO known (id, webhook, digest, finished)
                 SELECT id, webhook, ?2, ?3 FROM delivery WHERE number = ?1
                 ON CONFLICT (id, webhook) DO UPDATE SET digest = excluded.digest, finished = excluded.finished
                     WHERE excluded.finished >= known.finished",
            )?
            .execute(params![delivery, &digest[..], finished])
            .map(drop)
    }
}
