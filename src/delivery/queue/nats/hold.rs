//! A lease as the server knows it: a message that was brought and not yet settled.
//!
//! The server takes it for lost after [`ACK_WAIT`]; as long as it is held it is renewed. A verdict is written to the job's
//! record first, and then told to the server, without waiting for an answer: should it not hear, it brings the message
//! again, and the record says that there is nothing to do.
//!
//! A verdict that cannot be written is kept with its lease, and written when that is possible again. Until then nothing is
//! leased, so that no more than what was under way must be kept.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_nats::jetstream::message::AckKind;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};

use super::{
    Shared, lock,
    record::{JobRecord, millis},
    store::{Refused, Store, disconnected},
    wire::JobKey,
};
use crate::delivery::queue::{Answer, Attempt, Hold, QueueError, State, Verdict};

/// After this time a message that nobody renews goes to another replica.
pub(super) const ACK_WAIT: Duration = Duration::from_secs(10);
/// How often leases are renewed.
pub(super) const RENEW: Duration = Duration::from_secs(3);
/// How often a verdict is written again because others wrote meanwhile.
const TRIES: usize = 8;
/// Before a verdict that could not be written is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// What this process holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    jobs: Mutex<HashMap<JobKey, Grip>>,
    trouble: watch::Sender<Trouble>,
}

/// The message of a held job.
#[derive(Debug)]
struct Grip {
    since: Instant,
    brought: Brought,
}

/// Verdicts that cannot be written.
#[derive(Debug, Default)]
struct Trouble {
    kept: usize,
    why: String,
}

impl Held {
    /// Tells the server that work on everything that is held for this long goes on.
    pub(super) async fn renew(&self, store: &Store, older: Duration) {
        let replies: Vec<_> = {
            let jobs = lock(&self.jobs);
            let old = jobs.values().filter(|grip| grip.since.elapsed() >= older);
            old.map(|grip| grip.brought.reply.clone()).collect()
        };
        for reply in replies {
            store.reply(&reply, AckKind::Progress).await;
        }
    }

    /// Why verdicts cannot be written, if they cannot.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.borrow();
        (trouble.kept > 0).then(|| trouble.why.clone())
    }

    /// Waits until verdicts can be written, or cannot.
    pub(super) async fn wait(&self, troubled: bool) {
        // The sender is in `self`.
        drop(self.trouble.subscribe().wait_for(|trouble| (trouble.kept > 0) == troubled).await);
    }
}

/// A message that the server has brought.
#[derive(Debug, Clone)]
pub(super) struct Brought {
    pub(super) reply: String,
    pub(super) sequence: u64,
    /// It calls a job, and is deleted when that is done.
    pub(super) is_call: bool,
}

impl Brought {
    /// The server need not bring it again.
    pub(super) async fn done(&self, store: &Store) {
        store.reply(&self.reply, AckKind::Ack).await;
        if self.is_call
            && let Err(error) = store.delete_delivery(self.sequence).await
        {
            // It does no harm where it is, and is deleted when it comes again or grows old.
            tracing::debug!(%error, "an old call stays");
        }
    }

    /// The server brings it again.
    pub(super) async fn later(&self, store: &Store, delay: Duration) {
        let delay = (!delay.is_zero()).then_some(delay);
        store.reply(&self.reply, AckKind::Nak(delay)).await;
    }
}

/// A job in hand. Dropped, it is no longer renewed.
pub(super) struct InHand {
    pub(super) job: JobKey,
    pub(super) brought: Brought,
    /// It is leased: whoever drops it on the way gives it back.
    pub(super) goes_back: Option<Store>,
    shared: Arc<Shared>,
}

impl InHand {
    /// Takes a job, unless this process has it already. Then the message that was brought is that which brought it, or comes
    /// again later.
    pub(super) async fn take(
        shared: &Arc<Shared>,
        store: &Store,
        job: JobKey,
        brought: Brought,
    ) -> Option<Self> {
        let same = match lock(&shared.held.jobs).entry(job.clone()) {
            Entry::Vacant(free) => {
                free.insert(Grip { since: Instant::now(), brought: brought.clone() });
                return Some(Self { job, brought, goes_back: None, shared: Arc::clone(shared) });
            }
            Entry::Occupied(taken) => taken.get().brought.sequence == brought.sequence,
        };
        if !same {
            brought.later(store, PAUSE).await;
        }
        None
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        lock(&self.shared.held.jobs).remove(&self.job);
        if let Some(store) = self.goes_back.take() {
            let brought = self.brought.clone();
            self.shared.spawn(async move { brought.later(&store, Duration::ZERO).await });
        }
    }
}

/// A leased job.
pub(super) struct Leased {
    pub(super) store: Store,
    pub(super) in_hand: InHand,
    pub(super) webhook: String,
    /// How often it has been called.
    pub(super) calls: u32,
    /// The record as it was, with its sequence.
    pub(super) base: Option<(u64, JobRecord)>,
    /// Every destination of its delivery.
    pub(super) destinations: Vec<String>,
}

impl fmt::Debug for Leased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leased").field("job", &self.in_hand.job).finish_non_exhaustive()
    }
}

/// A verdict that is to be written.
struct Settling {
    verdict: Verdict,
    attempt: Option<Attempt>,
    at: SystemTime,
}

impl Settling {
    /// When the job is due again.
    fn due(&self) -> Option<SystemTime> {
        match self.verdict {
            Verdict::Retry(delay) => Some(self.at.checked_add(delay).unwrap_or(self.at)),
            Verdict::Delivered | Verdict::Dead(_) => None,
        }
    }
}

impl Leased {
    /// Writes the verdict and tells the server.
    async fn settle(&mut self, settling: &Settling) -> Result<(), QueueError> {
        let waits = self.write(settling).await?;
        let brought = &self.in_hand.brought;
        if waits && let Some(due) = settling.due() {
            let delay = due.duration_since(SystemTime::now()).unwrap_or_default();
            brought.later(&self.store, delay).await;
        } else {
            brought.done(&self.store).await;
        }
        self.in_hand.goes_back = None;
        Ok(())
    }

    /// Writes the verdict to the record. Whether that is what counts: others may have brought the job to an end.
    async fn write(&self, settling: &Settling) -> Result<bool, QueueError> {
        let job = &self.in_hand.job;
        let mut base = self.base.clone();
        for _ in 0..TRIES {
            let sequence = base.as_ref().map_or(0, |(sequence, _)| *sequence);
            let mut record =
                base.map_or_else(|| JobRecord::waiting(&self.destinations), |(_, record)| record);
            let Some(was) = record.state().filter(|_| record.calls == self.calls) else {
                // It was forgotten, or called back: a lease that was lost has no say.
                return Ok(false);
            };
            if let Some(attempt) = &settling.attempt {
                if record.has(attempt) {
                    // The server did not come to saying that it has it.
                    return Ok(true);
                }
                record.add(attempt);
            }
            match settling.verdict {
                Verdict::Delivered => record.finish(Some(State::Delivered), None),
                _ if was != State::Waiting => {}
                Verdict::Dead(death) => record.finish(Some(State::Dead), Some(death)),
                Verdict::Retry(_) => {
                    record.due = settling.due().map(millis);
                    record.reply = Some(self.in_hand.brought.reply.clone());
                }
            }
            match self.store.write(&self.webhook, job, sequence, &record).await {
                Ok(_) => {
                    let is_dead = record.state() == Some(State::Dead);
                    if is_dead != (was == State::Dead)
                        && let Err(error) = self.store.mark(&self.webhook, job, is_dead).await
                    {
                        // The next start sees to it.
                        tracing::debug!(%error, "a dead letter is not counted yet");
                    }
                    return Ok(record.state() == Some(State::Waiting));
                }
                Err(Refused::Stale) => base = self.store.record(&self.webhook, job).await?,
                Err(refused) => return Err(refused.into()),
            }
        }
        Err(Refused::Stale.into())
    }

    /// Tries again until the verdict is written, or the end comes.
    async fn keep(mut self: Box<Self>, settling: Settling, mut why: QueueError) -> Result<(), QueueError> {
        let shared = Arc::clone(&self.in_hand.shared);
        let mut connections = shared.connections.subscribe();
        let kept = Kept::new(&shared.held);
        loop {
            kept.because(&why);
            connections.mark_unchanged();
            tokio::select! {
                () = sleep(PAUSE) => {}
                _ = connections.changed() => {}
                () = shared.closing.cancelled() => return Err(why),
            }
            let settled = if self.store.is_connected() {
                Self::settle(&mut self, &settling).await
            } else {
                Err(disconnected())
            };
            match settled {
                Ok(()) => return Ok(()),
                Err(error) => why = error,
            }
        }
    }
}

/// A verdict that is kept.
struct Kept<'a>(&'a Held);

impl<'a> Kept<'a> {
    fn new(held: &'a Held) -> Self {
        held.trouble.send_modify(|trouble| trouble.kept = trouble.kept.saturating_add(1));
        Self(held)
    }

    fn because(&self, why: &QueueError) {
        self.0.trouble.send_modify(|trouble| trouble.why = why.to_string());
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.trouble.send_modify(|trouble| trouble.kept = trouble.kept.saturating_sub(1));
    }
}

impl Hold for Leased {
    fn settle(mut self: Box<Self>, verdict: Verdict, attempt: Option<Attempt>) -> Answer<'static, ()> {
        Box::pin(async move {
            let settling = Settling { verdict, attempt, at: SystemTime::now() };
            let Err(why) = Self::settle(&mut self, &settling).await else { return Ok(()) };
            // In a task of its own: whoever waits for it may give up, and the verdict is still kept.
            let shared = Arc::clone(&self.in_hand.shared);
            let (settled, told) = oneshot::channel();
            shared.spawn(async move {
                let kept = self.keep(settling, why).await;
                // Nobody may wait any more.
                drop(settled.send(kept));
            });
            told.await.unwrap_or_else(|_| Err(disconnected()))
        })
    }

    fn release(self: Box<Self>) {}
}
