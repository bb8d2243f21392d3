//! Forgetting what is old, and what must make room.
//!
//! Any replica sweeps, and all of them may at once: everything here may be done twice. A delivery is forgotten when all
//! its jobs may be. Its message goes first and its records then, because a job without a record would wait.
//!
//! Records are in the order in which they were written. How far a sweep has come is remembered: what stays for long, dead
//! letters for one, is not looked at each time.

use std::{
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    Shared,
    record::JobRecord,
    store::{AT_ONCE, Scan, Store, info_of},
    wire::JobKey,
};
use crate::delivery::queue::{QueueError, Retention, State};

/// For how long a message may be in somebody's hand who has not looked at its record yet.
const IN_HAND: Duration = Duration::from_secs(60);
/// Room is looked for again after this time, if there was none.
const AGAIN: Duration = Duration::from_millis(500);
/// What stays for long may stay longer by one part in so many: so seldom a sweep begins at the beginning.
const LATE: u32 = 100;

/// How far the sweeps have come.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Every record before this one was looked at since they began at the beginning.
    from: u64,
    began: Option<Instant>,
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
pub(super) struct Found {
    pub(super) written: SystemTime,
    pub(super) job: JobKey,
    pub(super) record: JobRecord,
}

impl Shared {
    /// Whether a job may be forgotten now because it is old.
    fn is_old(&self, record: &JobRecord) -> bool {
        let Retention { retain, dead_retain, .. } = self.retention;
        let stays = match record.state {
            Some(State::Waiting) => return false,
            Some(State::Dead) => dead_retain,
            Some(State::Delivered | State::Coalesced) => retain,
            None => retain.max(IN_HAND),
        };
        let leaves = record.finished().and_then(|at| at.checked_add(stays));
        leaves.is_some_and(|at| at <= SystemTime::now())
    }

    /// Forgets what is older than it may be, and makes room before there is none.
    pub(super) async fn sweep(&self, store: &Store, swept: &mut Swept) -> Result<(), QueueError> {
        let Retention { retain, dead_retain, max_bytes } = self.retention;
        if swept.began.is_none_or(|at| at.elapsed() >= retain.max(dead_retain) / LATE) {
            *swept = Swept { from: 1, began: Some(Instant::now()) };
        }
        let age = |at: SystemTime| SystemTime::now().duration_since(at).unwrap_or_default();
        // What comes after a young one is as young.
        let is_young = |found: &Found| age(found.written) < retain.min(dead_retain);
        swept.from = self.pass(store, swept.from, |record| self.is_old(record), is_young).await?;
        let mut known = store.scan_records(store.names.all('k'), 1).await?;
        while let Some((sequence, message)) = known.next().await? {
            if age(info_of(&message)?.published.into()) < self.window {
                break;
            }
            store.delete_record(sequence).await?;
        }
        known.end().await;
        // Nine tenths.
        if self.note_bytes(&store.infos().await?) >= max_bytes / 10 * 9 {
            drop(self.make_room(store).await);
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
        let bytes = || self.bytes.load(Ordering::Relaxed);
        let infos = store.infos().await?;
        if self.note_bytes(&infos) >= enough {
            let from = if room.from > infos[1].state.last_sequence { 1 } else { room.from };
            let may_go = |record: &JobRecord| !matches!(record.state, Some(State::Waiting | State::Dead));
            room.from = self.pass(store, from, may_go, |_| bytes() < enough).await?;
        }
        if bytes() >= max_bytes || (bytes() >= enough && self.full.load(Ordering::Relaxed)) {
            room.failed = Some(Instant::now());
            return Err(QueueError::Full);
        }
        room.failed = None;
        Ok(())
    }

    /// Goes through the records from `from` on and forgets the deliveries of which all jobs may go, until it is told to end.
    /// Where that was.
    async fn pass(
        &self,
        store: &Store,
        from: u64,
        may_go: impl Fn(&JobRecord) -> bool,
        ends: impl Fn(&Found) -> bool,
    ) -> Result<u64, QueueError> {
        let mut scan = store.scan_records(store.names.all('j'), from).await?;
        let mut from = from;
        loop {
            let mut some = Vec::new();
            let mut ended = true;
            while let Some(found) = next(store, &mut scan).await?.filter(|found| !ends(found)) {
                from = found.record.sequence.saturating_add(1);
                if may_go(&found.record) {
                    some.push(found);
                }
                if some.len() >= AT_ONCE {
                    ended = false;
                    break;
                }
            }
            let all = some.into_iter().map(|found| self.forget(store, found, &may_go));
            join_all(all).await.into_iter().collect::<Result<(), _>>()?;
            self.note_bytes(&store.infos().await?);
            if ended {
                scan.end().await;
                return Ok(from);
            }
        }
    }

    /// Forgets the jobs of a record's delivery, if all of them may go: the last one that may takes all with it.
    async fn forget(
        &self,
        store: &Store,
        found: Found,
        may_go: impl Fn(&JobRecord) -> bool,
    ) -> Result<(), QueueError> {
        let Found { job, record, .. } = found;
        let delivery = store.delivery_of(&job).await?;
        let mut jobs = vec![(job.clone(), record)];
        if let Some(delivery) = &delivery {
            let others = delivery.jobs().filter(|other| *other != job);
            for (other, record) in store.records(others).await? {
                let Some(record) = record.filter(&may_go) else { return Ok(()) };
                jobs.push((other, record));
            }
            let delivered = jobs.iter().filter(|(_, record)| record.state == Some(State::Delivered));
            let delivered = delivered.filter_map(|(_, record)| record.finished()).max();
            store.remember(&delivery.meta, delivered, self.window).await?;
            store.delete_delivery(job.sequence).await?;
        }
        for (job, record) in jobs {
            // Another replica may have been here first; then it is not to be counted twice.
            let was_there = store.delete_record(record.sequence).await?;
            if let Some(mark) = record.mark {
                store.delete_record(mark).await?;
            }
            if was_there && record.state == Some(State::Dead) {
                tracing::warn!(job = %job.id(), webhook = job.webhook, "a dead letter was dropped: it is older than `dead_retain`");
                self.dead_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// The next record.
pub(super) async fn next(store: &Store, scan: &mut Scan) -> Result<Option<Found>, QueueError> {
    while let Some((sequence, message)) = scan.next().await? {
        if let Some(job) = store.names.read_job(&message.subject) {
            let (written, record) =
                (info_of(&message)?.published.into(), JobRecord::read(sequence, &message.payload));
            return Ok(Some(Found { written, job, record }));
        }
    }
    Ok(None)
}
