//! Forgetting what is old, and what must make room.
//!
//! Any replica sweeps, and all of them may at once: everything here may be done twice. A delivery is forgotten when all
//! its jobs may be. Its message goes first and its records then, because a job without a record would wait.
//!
//! Records are in the order in which they were written. How far a sweep has come is remembered: what stays for long, dead
//! letters for one, is not looked at each time.

use std::{
    collections::HashMap,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    Shared,
    record::JobRecord,
    store::{AT_ONCE, Scan, Store, Which, info_of},
    wire::{JobKey, Stored},
};
use crate::delivery::queue::{QueueError, Retention, State};

/// For how long a message may be in somebody's hand who has not looked at its record yet.
pub(super) const IN_HAND: Duration = Duration::from_secs(60);
/// Room is looked for again after this time, if there was none.
const AGAIN: Duration = Duration::from_millis(500);
/// What stays for long may stay longer by one part in so many.
const LATE: u32 = 100;

/// How far the sweeps have come.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Every record before this one was looked at.
    from: u64,
    /// When one of them may be forgotten. `None`: none of them was looked at.
    due: Option<SystemTime>,
}

/// How far making room has come.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Every record before this one stays, or is written again before it may go.
    from: u64,
    /// When there was none to make.
    failed: Option<Instant>,
}

/// A record as a scan finds it.
struct Found {
    sequence: u64,
    written: SystemTime,
    webhook: String,
    job: JobKey,
    record: JobRecord,
}

impl Shared {
    /// When a job may be forgotten.
    fn leaves(&self, record: &JobRecord) -> Option<SystemTime> {
        let Retention { retain, dead_retain, .. } = self.retention;
        let stays = match record.state() {
            Some(State::Waiting) => return None,
            Some(State::Dead) => dead_retain,
            Some(State::Delivered | State::Coalesced) => retain,
            None => retain.max(IN_HAND),
        };
        record.finished()?.checked_add(stays)
    }

    /// Forgets what is older than it may be, and makes room before there is none.
    pub(super) async fn sweep(&self, store: &Store, swept: &mut Swept) -> Result<(), QueueError> {
        let now = SystemTime::now();
        let Retention { retain, dead_retain, max_bytes } = self.retention;
        let [deliveries, jobs] = store.infos().await?;
        if self.untidy.swap(false, Ordering::Relaxed)
            && let Err(error) = self.tidy(store).await
        {
            self.untidy.store(true, Ordering::Relaxed);
            return Err(error);
        }
        let again = swept.due.is_none_or(|due| due <= now) || swept.from > jobs.state.last_sequence + 1;
        if again {
            *swept = Swept { from: 1, due: None };
        }
        // What comes after a young one is as young.
        let young = now.checked_sub(retain.min(dead_retain)).unwrap_or(SystemTime::UNIX_EPOCH);
        let late = retain.max(dead_retain) / LATE;
        let far = now.checked_add(retain.max(dead_retain)).unwrap_or(now);
        let mut due = swept.due.unwrap_or(far);
        let mut scan = store.scan_records(swept.from).await?;
        let mut some = Vec::new();
        let mut from = jobs.state.last_sequence.saturating_add(1);
        while let Some(found) = next(store, &mut scan).await? {
            if found.written > young {
                from = found.sequence;
                break;
            }
            match self.leaves(&found.record) {
                Some(leaves) if leaves <= now => some.push(found),
                Some(leaves) => due = due.min(leaves),
                None => {}
            }
            if some.len() >= AT_ONCE {
                self.forget(store, &mut some, |record| self.leaves(record).is_some_and(|at| at <= now))
                    .await?;
            }
        }
        self.forget(store, &mut some, |record| self.leaves(record).is_some_and(|at| at <= now)).await?;
        scan.end().await;
        *swept = Swept { from, due: Some(due.max(now.checked_add(late).unwrap_or(now))) };
        let mut known = store.scan_known().await?;
        while let Some((sequence, message)) = known.next().await? {
            let gone: SystemTime = info_of(&message)?.published.into();
            if now.duration_since(gone).unwrap_or_default() < self.window {
                break;
            }
            store.delete_record(sequence).await?;
        }
        known.end().await;
        // Nine tenths.
        if deliveries.state.bytes.saturating_add(jobs.state.bytes) >= max_bytes / 10 * 9 {
            drop(self.make_room(store).await);
        }
        Ok(())
    }

    /// Puts right what a process that was killed, or a stream that was lost, has left: dead letters without a mark, marks of
    /// others, and records of deliveries that are gone.
    async fn tidy(&self, store: &Store) -> Result<(), QueueError> {
        let marked = store.marked(store.names.marks(None, None)).await?;
        let mut marked: HashMap<_, _> = marked.into_iter().map(|(webhook, job)| (job, webhook)).collect();
        let mut scan = store.scan_records(1).await?;
        let mut gone: u64 = 0;
        while let Some(Found { sequence, webhook, job, record, .. }) = next(store, &mut scan).await? {
            let is_dead = record.state() == Some(State::Dead);
            if !is_dead && record.state() != Some(State::Waiting) {
                continue;
            }
            if delivery_of(store, &job).await?.is_none() {
                gone = gone.saturating_add(1);
                store.delete_record(sequence).await?;
            } else if is_dead && marked.remove(&job).is_none() {
                store.mark(&webhook, &job, true).await?;
            }
        }
        scan.end().await;
        if gone > 0 {
            tracing::error!(
                stream = store.names.deliveries,
                gone,
                "deliveries that waited or were dead are gone from the stream: it was lost, cleared or restored"
            );
        }
        for (job, webhook) in marked {
            let record = store.record(&webhook, &job).await?;
            if record.is_none_or(|(_, record)| record.state() != Some(State::Dead)) {
                store.mark(&webhook, &job, false).await?;
            }
        }
        Ok(())
    }

    /// Forgets finished ones, those that ended longest ago first, until a tenth is free again.
    pub(super) async fn make_room(&self, store: &Store) -> Result<(), QueueError> {
        // Who comes later finds the room that was made, or that there was none a moment ago.
        let mut room = self.room.lock().await;
        if room.failed.is_some_and(|at| at.elapsed() < AGAIN) {
            return Err(QueueError::Full);
        }
        let max_bytes = self.retention.max_bytes;
        let enough = max_bytes / 10 * 9;
        let [deliveries, jobs] = store.infos().await?;
        let mut bytes = deliveries.state.bytes.saturating_add(jobs.state.bytes);
        if bytes >= enough {
            if room.from > jobs.state.last_sequence {
                room.from = 1;
            }
            let may_go = |record: &JobRecord| {
                matches!(record.state(), Some(State::Delivered | State::Coalesced) | None)
            };
            let mut scan = store.scan_records(room.from).await?;
            let mut some = Vec::new();
            while bytes >= enough {
                let found = next(store, &mut scan).await?;
                let end = found.is_none();
                if let Some(found) = found {
                    room.from = found.sequence.saturating_add(1);
                    if may_go(&found.record) {
                        some.push(found);
                    }
                }
                if end || some.len() >= AT_ONCE {
                    self.forget(store, &mut some, may_go).await?;
                    bytes = store.bytes().await?;
                }
                if end {
                    break;
                }
            }
            scan.end().await;
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        if bytes >= max_bytes || (bytes >= enough && self.full.load(Ordering::Relaxed)) {
            room.failed = Some(Instant::now());
            return Err(QueueError::Full);
        }
        room.failed = None;
        Ok(())
    }

    /// Forgets the jobs of the deliveries of these records, of which all jobs may go.
    async fn forget(
        &self,
        store: &Store,
        some: &mut Vec<Found>,
        may_go: impl Fn(&JobRecord) -> bool,
    ) -> Result<(), QueueError> {
        let may_go = &may_go;
        let all = some.drain(..).map(|found| self.forget_one(store, found, may_go));
        join_all(all).await.into_iter().collect()
    }

    async fn forget_one(
        &self,
        store: &Store,
        found: Found,
        may_go: impl Fn(&JobRecord) -> bool,
    ) -> Result<(), QueueError> {
        let Found { sequence, webhook, job, record, .. } = found;
        let others = record.destinations.iter().filter(|name| **name != job.destination);
        let others = others.map(|destination| JobKey { destination: destination.clone(), ..job.clone() });
        let others = store.records(&webhook, others).await?;
        let delivery = delivery_of(store, &job).await?;
        let mut jobs = vec![(sequence, job.clone(), record)];
        for (job, other) in others {
            match other {
                Some((sequence, record)) if may_go(&record) => jobs.push((sequence, job, record)),
                // The last one that may go takes all with it. Without a delivery nobody waits for the others.
                Some(_) => return Ok(()),
                None if delivery.is_some() => return Ok(()),
                None => {}
            }
        }
        if let Some(Stored { meta, .. }) = delivery {
            let delivered = jobs.iter().filter(|(_, _, record)| record.state() == Some(State::Delivered));
            let delivered = delivered.filter_map(|(_, _, record)| record.finished()).max();
            let (id, digest) = (meta.delivery_id(), &meta.digest);
            store.remember(&webhook, &id, digest, delivered, self.window).await?;
            store.delete_delivery(job.sequence).await?;
        }
        for (sequence, job, record) in jobs {
            let dead = record.state() == Some(State::Dead);
            if dead {
                store.mark(&webhook, &job, false).await?;
            }
            // Another replica may have been here first; then it is not to be counted twice.
            if store.delete_record(sequence).await? && dead {
                tracing::warn!(job = %job.id(), webhook, "a dead letter was dropped: it is older than `dead_retain`");
                self.dead_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// A job's delivery, if it is where it was: another one may be there now.
async fn delivery_of(store: &Store, job: &JobKey) -> Result<Option<Stored>, QueueError> {
    let delivery = store.delivery(Which::At(job.sequence)).await?;
    Ok(delivery.filter(|delivery| delivery.meta.has(job)))
}

/// The next record.
async fn next(store: &Store, scan: &mut Scan) -> Result<Option<Found>, QueueError> {
    while let Some((sequence, message)) = scan.next().await? {
        if let Some((webhook, job)) = store.names.read_job(&message.subject)
            && let Ok(record) = serde_json::from_slice(&message.payload)
            && let Ok(info) = message.info()
        {
            let written = info.published.into();
            return Ok(Some(Found { sequence, written, webhook, job, record }));
        }
    }
    Ok(None)
}
