//! What taking in a delivery is, inside a transaction.

use std::borrow::Cow;

use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::{
    super::{
        clock::millis,
        lock_of,
        rows::{self, Key, length, to_integer},
    },
    work::Work,
};
use crate::delivery::queue::{Delivery, Enqueued, Policy, QueueError, State};

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
        if !self.make_room(length(body))? {
            self.effects.full = true;
            return Ok(Err(QueueError::Full));
        }
        self.transaction
            .prepare_cached(
                "INSERT INTO delivery (number, webhook, id, kind, event, environment, revision, content_type, signature,
                     traceparent, kind_verified, received, facts, body)
                 VALUES (1 + max(coalesce((SELECT max(number) FROM delivery), 0),
                         coalesce((SELECT value FROM setting WHERE name = 'gone'), 0)),
                     ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
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
                Ok((rows::state(row.get_ref(0)?.as_str()?)?, row.get::<_, Option<i64>>(1)?, row.get(2)?))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let is_known = jobs.iter().any(|(state, finished, _)| match state {
            State::Waiting => true,
            State::Dead => false,
            State::Delivered | State::Coalesced => finished.is_some_and(|time| self.is_within(time)),
        });
        if !same {
            return Ok((is_known || self.is_within(received)).then_some(Enqueued::Conflict));
        }
        let mut revived = false;
        for (state, _, recipient) in jobs.into_iter().filter(|(state, ..)| *state == State::Dead) {
            self.revive(Key { delivery: number, recipient }, state)?;
            revived = true;
        }
        Ok(if revived { Some(Enqueued::Queued) } else { is_known.then_some(Enqueued::Duplicate) })
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
                    continue;
                }
                // One that is under way goes its way: the newer one waits as if it were the first.
                if !lock_of(&self.shared.leased).contains(&key) {
                    due = due.min(known_due);
                }
                self.put(key, State::Coalesced, None, None, 0)?;
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
        self.count(recipient, None, Some(state));
        self.effects.ring.insert(recipient);
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
}

/// Headers whose grammar was checked are ASCII.
fn text_of(value: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(value)
}
