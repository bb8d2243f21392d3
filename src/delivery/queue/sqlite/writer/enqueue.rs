//! What taking in a delivery is, inside a transaction.

use std::borrow::Cow;

use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::{
    super::{
        lock_of,
        rows::{Key, millis, to_integer},
    },
    work::Work,
};
use crate::delivery::queue::{Delivery, Enqueued, Policy, QueueError, State};

/// What a delivery takes beside its body, in bytes; estimated high.
pub(super) const OVERHEAD: u64 = 2 << 10;

impl Work<'_> {
    pub(in super::super) fn enqueue(
        &mut self,
        delivery: &Delivery,
    ) -> rusqlite::Result<Result<Enqueued, QueueError>> {
        if !self.shared.window.is_zero()
            && let Some(known) = self.known(delivery)?
        {
            return Ok(Ok(known));
        }
        let Delivery { webhook, parcel, environment, revision, facts, destinations } = delivery;
        let body = &parcel.body.bytes()[..];
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        if !self.make_room(size.saturating_add(OVERHEAD))? {
            self.effects.full = true;
            return Ok(Err(QueueError::Full));
        }
        self.transaction
            .prepare_cached(
                "INSERT INTO delivery (webhook, id, kind, event, environment, revision, content_type, signature,
                     traceparent, kind_verified, received, facts, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?
            .execute(params![
                webhook,
                text_of(parcel.id.as_bytes()),
                text_of(parcel.kind.as_bytes()),
                text_of(parcel.event.as_bytes()),
                environment,
                revision.map(to_integer),
                parcel.content_type.as_str().as_bytes(),
                parcel.signature.as_bytes(),
                parcel.traceparent.as_bytes(),
                parcel.kind_verified,
                self.now,
                // JSON of texts and numbers has no reason to fail.
                serde_json::to_string(facts).unwrap_or_default(),
                body,
            ])?;
        let number = self.transaction.last_insert_rowid();
        for (destination, policy) in destinations {
            let (recipient, in_order) = self.number_of(webhook, destination, policy.in_order)?;
            self.add_job(number, recipient, Policy { in_order, ..*policy }, delivery)?;
            self.effects.ring.insert(recipient);
        }
        self.effects.stored = true;
        Ok(Ok(Enqueued::Queued))
    }

    /// What the queue knows of a delivery's ID. `None`: it is a new one.
    fn known(&mut self, delivery: &Delivery) -> rusqlite::Result<Option<Enqueued>> {
        let (webhook, id) = (&delivery.webhook, text_of(delivery.parcel.id.as_bytes()));
        let body = &delivery.parcel.body.bytes()[..];
        // The newest one counts.
        let found = self
            .transaction
            .prepare_cached(
                "SELECT number, received, body = ?3 FROM delivery WHERE id = ?1 AND webhook = ?2
                 ORDER BY number DESC LIMIT 1",
            )?
            .query_row(params![id, webhook, body], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        if let Some((number, received, same)) = found
            && let Some(known) = self.compare(number, received, same)?
        {
            return Ok(Some(known));
        }
        let forgotten: Option<(Vec<u8>, i64)> = self
            .transaction
            .prepare_cached("SELECT digest, finished FROM known WHERE id = ?1 AND webhook = ?2")?
            .query_row(params![id, webhook], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(forgotten.filter(|(_, finished)| self.is_within(*finished)).map(|(digest, _)| {
            if digest == Sha256::digest(body)[..] { Enqueued::Duplicate } else { Enqueued::Conflict }
        }))
    }

    /// Whether a time is inside the window.
    pub(super) fn is_within(&self, time: i64) -> bool {
        self.now.saturating_sub(time) < millis(self.shared.window)
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
        let is = |state: &String, other: State| state == other.name();
        let waits = jobs.iter().any(|(state, ..)| is(state, State::Waiting));
        let recent = jobs.iter().any(|(state, finished, _)| {
            !is(state, State::Dead) && finished.is_some_and(|time| self.is_within(time))
        });
        if !same {
            return Ok((waits || recent || self.is_within(received)).then_some(Enqueued::Conflict));
        }
        let dead: Vec<_> = jobs.iter().filter(|(state, ..)| is(state, State::Dead)).collect();
        for (.., recipient) in &dead {
            self.revive(Key { delivery: number, recipient: *recipient })?;
        }
        Ok(if dead.is_empty() {
            (waits || recent).then_some(Enqueued::Duplicate)
        } else {
            Some(Enqueued::Queued)
        })
    }

    fn add_job(
        &mut self,
        delivery: i64,
        recipient: i64,
        policy: Policy,
        whole: &Delivery,
    ) -> rusqlite::Result<()> {
        let environment = whole.environment.as_deref();
        let line = match policy {
            Policy { in_order: true, .. } => Some(environment.unwrap_or_default()),
            Policy { coalesce: Some(_), .. } => environment,
            Policy { in_order: false, coalesce: None } => None,
        };
        let (mut due, mut superseded) = (self.now, false);
        if let (Some(wait), Some(line), Some(_)) = (policy.coalesce, line, environment) {
            due = self.now.saturating_add(millis(wait));
            for (key, known_due, revision) in
                self.rivals(recipient, line, &text_of(whole.parcel.event.as_bytes()))?
            {
                if revision > whole.revision.map(to_integer) {
                    superseded = true;
                } else if self.withdraw(key) {
                    self.finish(key, State::Coalesced, None, 0)?;
                    due = due.min(known_due);
                } else {
                    // It goes its way, and is not tried again.
                    self.transaction
                        .prepare_cached("UPDATE job SET blocked = 2 WHERE delivery = ?1 AND recipient = ?2")?
                        .execute([key.delivery, recipient])?;
                }
            }
        }
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
                policy.in_order && !superseded,
                line,
                due,
                self.now,
                superseded.then_some(self.now)
            ])?;
        self.let_go(recipient, line.filter(|_| policy.in_order))
    }

    /// The waiting jobs of one line and event that a newer one may follow, with due time and revision.
    fn rivals(
        &self,
        recipient: i64,
        line: &str,
        event: &str,
    ) -> rusqlite::Result<Vec<(Key, i64, Option<i64>)>> {
        self.transaction
            .prepare_cached(
                "SELECT job.delivery, job.due, delivery.revision FROM job INDEXED BY job_line
                 JOIN delivery ON delivery.number = job.delivery
                 WHERE job.recipient = ?1 AND job.line = ?2 AND job.state = 'waiting' AND delivery.event = ?3",
            )?
            .query_map(params![recipient, line, event], |row| {
                Ok((Key { delivery: row.get(0)?, recipient }, row.get(1)?, row.get(2)?))
            })?
            .collect()
    }

    /// Keeps a job from being leased until the commit. False: it is leased, and goes its way.
    pub(super) fn withdraw(&mut self, key: Key) -> bool {
        let mut held = lock_of(&self.shared.held);
        if held.leased.contains(&key) {
            return false;
        }
        held.withdrawn.insert(key);
        self.effects.withdrawn.push(key);
        true
    }
}

/// Headers whose grammar was checked are ASCII.
fn text_of(value: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(value)
}
