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
    Shared, TRIES, lock,
    record::{JobRecord, millis},
    store::{Refused, Store, disconnected},
    wire::JobKey,
};
use crate::delivery::queue::{Answer, Attempt, Hold, QueueError, State, Verdict};

/// After this time a message that nobody renews goes to another replica.
pub(super) const ACK_WAIT: Duration = Duration::from_secs(10);
/// How often leases are renewed.
pub(super) const RENEW: Duration = Duration::from_secs(3);
/// Before a verdict that could not be written is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// What this process holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    jobs: Mutex<HashMap<JobKey, (Instant, Brought)>>,
    trouble: watch::Sender<Trouble>,
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
            let old = jobs.values().filter(|(since, _)| since.elapsed() >= older);
            old.map(|(_, brought)| brought.reply.clone()).collect()
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
    /// Takes a job, unless this process has it already. Then the message that was brought is the one which brought it, or
    /// comes again later.
    pub(super) async fn take(
        shared: &Arc<Shared>,
        store: &Store,
        job: JobKey,
        brought: Brought,
    ) -> Option<Self> {
        let same = match lock(&shared.held.jobs).entry(job.clone()) {
            Entry::Vacant(free) => {
                free.insert((Instant::now(), brought.clone()));
                return Some(Self { job, brought, goes_back: None, shared: Arc::clone(shared) });
            }
            Entry::Occupied(taken) => taken.get().1.sequence == brought.sequence,
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
    /// Its record as it was.
    pub(super) record: JobRecord,
}

impl fmt::Debug for Leased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leased").field("job", &self.in_hand.job).finish_non_exhaustive()
    }
}

impl Leased {
    /// Writes the verdict, and tells the server.
    async fn try_settle(
        &mut self,
        verdict: Verdict,
        attempt: Option<&Attempt>,
        due: Option<SystemTime>,
    ) -> Result<(), QueueError> {
        let waits = self.write(verdict, attempt, due).await?;
        let brought = &self.in_hand.brought;
        if let Some(due) = due.filter(|_| waits) {
            let delay = due.duration_since(SystemTime::now()).unwrap_or_default();
            brought.later(&self.store, delay).await;
        } else {
            brought.done(&self.store).await;
        }
        self.in_hand.goes_back = None;
        Ok(())
    }

    /// Writes the verdict to the record. Whether the job waits: others may have brought it to an end.
    async fn write(
        &mut self,
        verdict: Verdict,
        attempt: Option<&Attempt>,
        due: Option<SystemTime>,
    ) -> Result<bool, QueueError> {
        let job = &self.in_hand.job;
        let calls = self.record.calls;
        for _ in 0..TRIES {
            let mut record = self.record.clone();
            let Some(was) = record.state.filter(|_| record.calls == calls) else {
                // It was forgotten, or called back: a lease that was lost has no say.
                return Ok(false);
            };
            if let Some(attempt) = attempt {
                if record.has(attempt) {
                    // The server did not come to saying that it has it.
                    return Ok(true);
                }
                record.add(attempt);
            }
            match verdict {
                Verdict::Delivered => record.finish(Some(State::Delivered), None),
                _ if was != State::Waiting => {}
                Verdict::Dead(death) => record.finish(Some(State::Dead), Some(death)),
                Verdict::Retry(_) => {
                    record.due = due.map(millis);
                    record.reply = Some(self.in_hand.brought.reply.clone());
                }
            }
            let waits = record.state == Some(State::Waiting);
            match self.store.write(job, record).await {
                Ok(()) => return Ok(waits),
                Err(Refused::Stale) => {
                    let record = self.store.record(job).await?;
                    self.record = record.unwrap_or(JobRecord { sequence: 0, ..self.record.clone() });
                }
                Err(refused) => return Err(refused.into()),
            }
        }
        Err(Refused::Stale.into())
    }

    /// Tries until the verdict is written, or the end comes.
    async fn settle(mut self, verdict: Verdict, attempt: Option<Attempt>) -> Result<(), QueueError> {
        let shared = Arc::clone(&self.in_hand.shared);
        let mut connections = shared.connections.subscribe();
        let due = match verdict {
            Verdict::Retry(delay) => SystemTime::now().checked_add(delay),
            Verdict::Delivered | Verdict::Dead(_) => None,
        };
        let mut kept = None;
        loop {
            connections.mark_unchanged();
            let Err(why) = self.try_settle(verdict, attempt.as_ref(), due).await else { return Ok(()) };
            kept.get_or_insert_with(|| Kept::new(&shared.held)).because(&why);
            tokio::select! {
                () = sleep(PAUSE) => {}
                _ = connections.changed() => {}
                () = shared.closing.cancelled() => return Err(why),
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
    fn settle(self: Box<Self>, verdict: Verdict, attempt: Option<Attempt>) -> Answer<'static, ()> {
        // In a task of its own: whoever waits for it may give up, and the verdict is written all the same.
        let shared = Arc::clone(&self.in_hand.shared);
        let (told, settled) = oneshot::channel();
        shared.spawn(async move { drop(told.send(Self::settle(*self, verdict, attempt).await)) });
        Box::pin(async move { settled.await.unwrap_or_else(|_| Err(disconnected())) })
    }

    fn release(self: Box<Self>) {}
}
