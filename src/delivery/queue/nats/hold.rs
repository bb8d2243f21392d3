//! A lease as the server knows it: a message that was brought and not yet settled.
//!
//! The server takes it for lost after [`ACK_WAIT`]; as long as it is held it is renewed. A verdict is written to the job's
//! record first, and then told to the server, without waiting for an answer: should it not hear, it brings the message
//! again, and the record says that there is nothing to do.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_nats::jetstream::message::AckKind;
use tokio::time::Instant;

use super::{
    Shared, lock,
    record::{JobRecord, Standing, millis},
    store::{Refused, Store},
    wire::JobKey,
};
use crate::delivery::queue::{Answer, Attempt, Hold, QueueError, Verdict};

/// After this time a message that nobody renews goes to another replica.
pub(super) const ACK_WAIT: Duration = Duration::from_secs(10);
/// How often leases are renewed.
pub(super) const RENEW: Duration = Duration::from_secs(3);
/// How often a verdict is written again because others wrote meanwhile.
const TRIES: usize = 8;

/// The messages that are held.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    replies: HashMap<u64, (Instant, String)>,
}

impl Held {
    fn add(&self, reply: &str) -> u64 {
        let mut table = lock(&self.0);
        table.next = table.next.wrapping_add(1);
        let ticket = table.next;
        table.replies.insert(ticket, (Instant::now(), reply.to_owned()));
        ticket
    }

    fn remove(&self, ticket: u64) {
        lock(&self.0).replies.remove(&ticket);
    }

    /// Tells the server that work on everything older than a moment goes on.
    pub(super) async fn renew(&self, store: &Store) {
        let replies: Vec<_> = {
            let table = lock(&self.0);
            let old = table.replies.values().filter(|(since, _)| since.elapsed() >= RENEW / 2);
            old.map(|(_, reply)| reply.clone()).collect()
        };
        for reply in replies {
            store.reply(&reply, AckKind::Progress).await;
        }
    }
}

/// A message in hand. Dropped, it is no longer renewed.
pub(super) struct InHand {
    pub(super) reply: String,
    /// Its sequence, if it is a call for a finished job: then it is deleted when done.
    pub(super) call: Option<u64>,
    shared: Arc<Shared>,
    ticket: u64,
}

impl InHand {
    pub(super) fn new(shared: &Arc<Shared>, reply: &str) -> Self {
        let ticket = shared.held.add(reply);
        Self { reply: reply.to_owned(), call: None, shared: Arc::clone(shared), ticket }
    }

    /// The server need not bring it again.
    pub(super) async fn done(&self, store: &Store) {
        store.reply(&self.reply, AckKind::Ack).await;
        if let Some(sequence) = self.call
            && let Err(error) = store.delete_delivery(sequence).await
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

impl Drop for InHand {
    fn drop(&mut self) {
        self.shared.held.remove(self.ticket);
    }
}

/// A leased job.
pub(super) struct Leased {
    pub(super) store: Store,
    pub(super) in_hand: InHand,
    pub(super) webhook: String,
    pub(super) job: JobKey,
    pub(super) generation: u32,
    /// The record as it was, with its sequence.
    pub(super) base: Option<(u64, JobRecord)>,
    /// Every destination of its delivery.
    pub(super) destinations: Vec<String>,
}

impl fmt::Debug for Leased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leased").field("job", &self.job).finish_non_exhaustive()
    }
}

/// What the server is to be told.
enum Told {
    Done,
    Later(Duration),
}

impl Leased {
    async fn write(&self, verdict: Verdict, attempt: Option<&Attempt>) -> Result<Told, QueueError> {
        let mut base = self.base.clone();
        for _ in 0..TRIES {
            let sequence = base.as_ref().map_or(0, |(sequence, _)| *sequence);
            let mut record =
                base.map_or_else(|| JobRecord::waiting(&self.destinations), |(_, record)| record);
            if record.standing == Standing::Purged || record.generation != self.generation {
                // It was forgotten or ended meanwhile: a lease that was lost has no say.
                return Ok(Told::Done);
            }
            let was = record.standing;
            if let Some(attempt) = attempt {
                record.add(attempt);
            }
            let told = match verdict {
                Verdict::Delivered => {
                    record.finish(Standing::Delivered);
                    Told::Done
                }
                // Others took it for lost, and brought it to an end.
                _ if was != Standing::Waiting => Told::Done,
                Verdict::Dead(death) => {
                    record.die(death);
                    Told::Done
                }
                Verdict::Retry(delay) => {
                    let due = SystemTime::now().checked_add(delay).unwrap_or_else(SystemTime::now);
                    record.due = Some(millis(due));
                    record.reply = Some(self.in_hand.reply.clone());
                    // It was the newest when it was tried; it need not be next time. What was called back stays that.
                    record.chosen &= record.generation > 0;
                    Told::Later(delay)
                }
            };
            match self.store.write(&self.webhook, &self.job, sequence, &record).await {
                Ok(_) => {
                    let is_dead = record.standing == Standing::Dead;
                    if is_dead != (was == Standing::Dead)
                        && let Err(error) = self.store.mark(&self.webhook, &self.job, is_dead).await
                    {
                        // The sweep sees to it.
                        tracing::debug!(%error, "a dead letter is not counted yet");
                    }
                    return Ok(told);
                }
                Err(Refused::Stale) => base = self.store.record(&self.webhook, &self.job).await?,
                Err(refused) => return Err(refused.into()),
            }
        }
        Err(Refused::Stale.into())
    }
}

impl Hold for Leased {
    fn settle(self: Box<Self>, verdict: Verdict, attempt: Option<Attempt>) -> Answer<'static, ()> {
        Box::pin(async move {
            match self.write(verdict, attempt.as_ref()).await {
                Ok(Told::Done) => self.in_hand.done(&self.store).await,
                Ok(Told::Later(delay)) => self.in_hand.later(&self.store, delay).await,
                Err(error) => {
                    self.in_hand.later(&self.store, Duration::ZERO).await;
                    return Err(error);
                }
            }
            Ok(())
        })
    }

    fn release(self: Box<Self>) {
        let shared = Arc::clone(&self.in_hand.shared);
        shared.spawn(async move { self.in_hand.later(&self.store, Duration::ZERO).await });
    }
}
