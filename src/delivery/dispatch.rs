//! How accepted deliveries are forwarded. Direct: now, and the sender gets the upstream's answer. Queued: committed to
//! the queue, from which a [`worker`](super::worker) delivers it.

use std::{sync::Arc, time::Duration};

use hyper::header::HeaderValue;
use tokio::time::{Instant, timeout};

use super::{
    attempt::{Outcome, attempt},
    dedupe::{Claim, Memory},
    destination::Destination,
    parcel::Parcel,
    queue::{self, Enqueued, Queue, QueueError},
};
use crate::{ops::metrics::AttemptResult, webhook::payload::Delivery};

/// How long a sender waits for the commit. What had not begun by then is not stored. One that comes later stands, although
/// the sender was told otherwise: what it sends again is then a duplicate.
const COMMIT: Duration = Duration::from_secs(5);

/// How deliveries are forwarded.
#[derive(Debug)]
pub enum Dispatch {
    /// At once.
    Direct(Direct),
    /// By way of a queue.
    Queued(Arc<dyn Queue>),
}

/// What became of a delivery.
#[derive(Debug, Clone)]
pub enum Dispatched {
    /// It was tried, or a copy of it was that was on its way already.
    Tried(Outcome),
    /// It is committed to the queue.
    Queued,
    /// The queue did not take it.
    NotQueued(QueueError),
    /// It was delivered before, or waits already.
    Duplicate,
    /// Another body came under its ID.
    Conflict,
}

impl Dispatch {
    /// Hands a delivery of the webhook named `webhook` on to those of its destinations that want it. At least one does;
    /// without a queue it is the only one. `held` is given back when nobody has the body in memory any more, also where that
    /// is long after the answer: a queue whose disk has stalled holds what it has taken in.
    pub async fn dispatch(
        &self,
        webhook: &str,
        delivery: &Delivery<'_>,
        destinations: &[Arc<Destination>],
        mut parcel: Parcel,
        held: impl Send + 'static,
        lane: usize,
    ) -> Dispatched {
        match self {
            Self::Direct(direct) => {
                let destination = destinations.first().expect("a webhook has a destination");
                direct.dispatch(webhook, delivery.id.as_str(), destination, &parcel, lane).await
            }
            Self::Queued(queue) => {
                parcel.body = parcel.body.holding(held);
                enqueue(
                    &**queue,
                    queue::Delivery {
                        webhook: webhook.to_owned(),
                        environment: delivery
                            .environment()
                            .map(|(project, name)| format!("{project}/{name}")),
                        revision: delivery.revision(),
                        facts: delivery.facts(),
                        destinations: destinations
                            .iter()
                            .filter(|destination| destination.wants(delivery))
                            .map(|destination| (destination.name.clone(), policy(destination, &parcel)))
                            .collect(),
                        parcel,
                    },
                )
                .await
            }
        }
    }

    /// Whether what came with this `traceparent` is the queue's own request for this delivery: it is stored with the one
    /// that all its attempts carry, whichever process makes them. A sender's copy carries the sender's, and so does
    /// that of another hookgate in front.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the queue cannot say.
    pub async fn has_sent(
        &self,
        webhook: &str,
        id: &str,
        traceparent: &HeaderValue,
    ) -> Result<bool, QueueError> {
        let Self::Queued(queue) = self else { return Ok(false) };
        let filter = queue::Filter {
            ids: vec![id.to_owned()],
            webhook: Some(webhook.to_owned()),
            ..queue::Filter::default()
        };
        let looked = timeout(COMMIT, async {
            // Its jobs have one parcel, and the newest delivery of this ID is the one that is meant.
            let Some(job) = queue.list(&filter, 1).await?.pop() else { return Ok(false) };
            let details = queue.show(&job.id).await?;
            Ok(details.is_some_and(|details| details.parcel.traceparent == *traceparent))
        });
        looked.await.unwrap_or_else(|_elapsed| {
            Err(QueueError::Unavailable(format!("it did not find a delivery within {COMMIT:?}")))
        })
    }
}

/// How the destination wants this delivery. What is not proven takes no other one's place in the queue: anybody who has
/// some signed body of an environment can send it as a newer event.
fn policy(destination: &Destination, parcel: &Parcel) -> queue::Policy {
    let coalesce = destination.policy.coalesce.filter(|_| parcel.kind_verified);
    queue::Policy { coalesce, ..destination.policy }
}

async fn enqueue(queue: &dyn Queue, delivery: queue::Delivery) -> Dispatched {
    step!("read");
    match timeout(COMMIT, queue.enqueue(delivery)).await {
        Ok(Ok(Enqueued::Queued)) => {
            step!("committed");
            Dispatched::Queued
        }
        Ok(Ok(Enqueued::Duplicate)) => Dispatched::Duplicate,
        Ok(Ok(Enqueued::Conflict)) => Dispatched::Conflict,
        Ok(Err(error)) => Dispatched::NotQueued(error),
        Err(_elapsed) => {
            Dispatched::NotQueued(QueueError::Unavailable(format!("no commit within {COMMIT:?}")))
        }
    }
}

/// Hands on at once.
#[derive(Debug)]
pub struct Direct {
    memory: Memory<Outcome>,
}

impl Direct {
    /// Remembers IDs in `memory`.
    #[must_use]
    pub const fn new(memory: Memory<Outcome>) -> Self {
        Self { memory }
    }

    /// Delivers once however many copies come at a time. `id` and `webhook` say which delivery it is.
    async fn dispatch(
        &self,
        webhook: &str,
        id: &str,
        destination: &Destination,
        parcel: &Parcel,
        lane: usize,
    ) -> Dispatched {
        loop {
            let began = Instant::now();
            match self.memory.claim(webhook, id, parcel.body.bytes(), began) {
                Claim::New(delivering) => {
                    let (outcome, ended) = attempt(destination, parcel, 1, lane, began).await;
                    let delivered = outcome.is_delivered();
                    let result = if delivered { AttemptResult::Delivered } else { AttemptResult::Failed };
                    destination.metrics.attempt(result, ended.duration_since(began));
                    delivering.finish(delivered.then_some(ended), &outcome);
                    return Dispatched::Tried(outcome);
                }
                Claim::Duplicate => return Dispatched::Duplicate,
                Claim::Conflict => return Dispatched::Conflict,
                Claim::Wait { same, answer } => match answer.await {
                    Ok(outcome) if same => return Dispatched::Tried(outcome),
                    // Another body's answer is not for this one, and a try without end has none: ask again.
                    Ok(_) | Err(_) => {}
                },
            }
        }
    }
}
