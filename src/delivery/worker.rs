//! Takes jobs out of the queue and delivers them: leased, tried, recorded, and done, tried again later or given up.
//!
//! Each recipient has a line of its own with its own attempts and its own circuit, so that a destination that is down or
//! slow holds up no other. A line uses the destination that is in force when it leases; what is on its way then is not
//! touched by a reload. Jobs whose recipient is not configured wait.
//!
//! What the worker is doing when it is cut off is done again: a lease that is dropped is due at once.

mod condition;
mod line;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    backoff::Backoff,
    destination::Destination,
    queue::{Queue, Recipient},
};
use crate::ops::{health::Readiness, metrics::Metrics};
pub use condition::set_gauges;
use condition::trouble;
use line::Line;

/// What of `[queue]` is about delivering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// After so many attempts a job is given up. `None`: only its age counts.
    pub max_attempts: Option<u32>,
    /// A job that is older is not tried again. Each is tried once, however old it is.
    pub max_age: Duration,
    /// How long to wait between attempts.
    pub backoff: Backoff,
    /// Attempts in flight for each destination.
    pub concurrency: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_attempts: None,
            max_age: Duration::from_secs(24 * 60 * 60),
            backoff: Backoff::default(),
            concurrency: 16,
        }
    }
}

/// Who is configured to receive, and as what.
pub type Recipients = Arc<BTreeMap<Recipient, Arc<Destination>>>;

/// What delivers.
#[derive(Debug)]
pub struct Worker {
    /// Where jobs come from.
    pub queue: Arc<dyn Queue>,
    /// How they are delivered.
    pub settings: Settings,
    /// Which thread this is: see [`crate::upstream::Upstream::new`].
    pub lane: usize,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who is told how the queue is doing.
    pub readiness: Readiness,
    /// The last verdict could not be committed, and the log says so.
    unsettled: AtomicBool,
}

impl Worker {
    /// A worker that does nothing yet. The readiness is that of the queue from now on.
    #[must_use]
    pub fn new(
        queue: Arc<dyn Queue>,
        settings: Settings,
        lane: usize,
        metrics: Arc<Metrics>,
        readiness: Readiness,
    ) -> Self {
        readiness.queue(trouble(&queue.health().borrow()));
        Self { queue, settings, lane, metrics, readiness, unsettled: AtomicBool::new(false) }
    }

    /// Delivers to whoever is among the recipients. After `stop` it leases nothing more and ends when what was leased
    /// has come to its end; `cut` gives that back and ends at once.
    pub async fn run(
        self,
        recipients: watch::Receiver<Recipients>,
        stop: CancellationToken,
        cut: CancellationToken,
    ) {
        let this = Arc::new(self);
        let mut watching = JoinSet::new();
        watching.spawn(Arc::clone(&this).watch_health());
        watching.spawn(Arc::clone(&this).watch_stock(recipients.clone()));
        tokio::select! {
            biased;
            () = cut.cancelled() => {}
            () = this.deliver(recipients, &stop) => {}
        }
    }

    /// A line for each recipient.
    async fn deliver(
        self: &Arc<Self>,
        mut recipients: watch::Receiver<Recipients>,
        stop: &CancellationToken,
    ) {
        let mut lines = JoinSet::new();
        let mut known = HashMap::<Recipient, watch::Sender<Arc<Destination>>>::new();
        loop {
            let current = Arc::clone(&recipients.borrow_and_update());
            known.retain(|recipient, _| {
                let stays = current.contains_key(recipient);
                if !stays {
                    self.metrics.forget_destination(&recipient.webhook, &recipient.destination);
                }
                stays
            });
            for (recipient, destination) in current.iter() {
                if let Some(line) = known.get(recipient) {
                    line.send_replace(Arc::clone(destination));
                } else {
                    let (sender, destination) = watch::channel(Arc::clone(destination));
                    let line = Arc::new(Line::new(Arc::clone(self), recipient.clone()));
                    lines.spawn(line.run(destination, stop.clone()));
                    known.insert(recipient.clone(), sender);
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = recipients.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                Some(ended) = lines.join_next() => {
                    if let Err(error) = ended {
                        error!(%error, "a destination's deliveries stopped unexpectedly, and are started again");
                        known.retain(|_, line| !line.is_closed());
                    }
                }
            }
        }
        drop(known);
        while lines.join_next().await.is_some() {}
    }
}
