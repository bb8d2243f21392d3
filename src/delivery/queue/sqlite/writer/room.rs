//! What goes out of the file: to make room, after its time, or because somebody says so. An ID of what was delivered stays
//! for the window, whatever goes.

use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::{
    super::{
        clock::millis,
        reader::Pages,
        rows::{Key, to_count},
    },
    work::{Standing, Work},
};
use crate::delivery::queue::{JobId, Recipient, State};

/// Jobs that one look after the file forgets at most, so that it does not hold up those who wait.
const SWEEP: usize = 2_000;

/// What a row takes beside its body, in bytes; estimated high.
pub(super) const OVERHEAD: u64 = 2 << 10;

/// Finished jobs that go at a time to make room.
const CHUNK: usize = 64;

impl Work<'_> {
    /// Whether there is room for a row with so many bytes, made where need be by finished jobs that go, the oldest first.
    pub(super) fn make_room(&mut self, bytes: u64) -> rusqlite::Result<bool> {
        let bytes = bytes.saturating_add(OVERHEAD);
        loop {
            if let Some(left) = self.room.checked_sub(bytes) {
                self.room = left;
                return Ok(true);
            }
            self.room = self.shared.retention.max_bytes.saturating_sub(Pages::read(self.transaction)?.used());
            if self.room >= bytes {
                continue;
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
            .query_map(params![state.name(), before, to_count(max)], |row| {
                Ok(Key { delivery: row.get(0)?, recipient: row.get(1)? })
            })?
            .collect()
    }

    /// Work for now and then: forgets what is older than it must be kept.
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
            .execute(params![self.now.saturating_sub(millis(self.shared.window)), to_count(SWEEP)])
            .map(drop)
    }

    /// Removes a job, and its delivery if it was the last one.
    pub(super) fn forget(&mut self, key: Key) -> rusqlite::Result<()> {
        let Key { delivery, recipient } = key;
        let Some(Standing { state, line, finished }) = self.standing(key)? else { return Ok(()) };
        for table in ["DELETE FROM job", "DELETE FROM attempt"] {
            self.transaction
                .prepare_cached(&format!("{table} WHERE delivery = ?1 AND recipient = ?2"))?
                .execute([delivery, recipient])?;
        }
        self.count(recipient, Some(state), None);
        if let Some(finished) = finished.filter(|time| state != State::Dead && self.is_within(*time)) {
            self.keep_id(delivery, finished)?;
        }
        let is_gone = self
            .transaction
            .prepare_cached(
                "DELETE FROM delivery WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM job WHERE delivery = ?1)",
            )?
            .execute([delivery])?
            > 0;
        if is_gone {
            self.transaction
                .prepare_cached(
                    "INSERT INTO setting (name, value) VALUES ('gone', ?1)
                     ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
                )?
                .execute([delivery])?;
        }
        self.let_go(recipient, line.as_deref())
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
