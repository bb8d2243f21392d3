//! How the queue is doing: whether it takes deliveries, how much waits in it, and who for in vain.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{debug, error, info, warn};

use super::{Recipients, Worker};
use crate::{
    delivery::{
        destination::Destination,
        queue::{Depth, Health, Recipient, Stock},
    },
    ops::metrics::{Metrics, NO_WEBHOOK},
};

/// How often the stock is counted, and how long counting may take.
const COUNT_EVERY: Duration = Duration::from_secs(2);
const COUNT: Duration = Duration::from_secs(10);

impl Worker {
    /// Passes on whether the queue takes deliveries.
    pub(super) async fn watch_health(self: Arc<Self>) {
        let mut health = self.queue.health();
        let mut was_ready = true;
        loop {
            let trouble = trouble(&health.borrow_and_update());
            match &trouble {
                Some(reason) if was_ready => {
                    error!(%reason, "queue unavailable: answering 503");
                }
                None if !was_ready => info!("queue available again"),
                Some(_) | None => {}
            }
            was_ready = trouble.is_none();
            self.readiness.queue(trouble);
            if health.changed().await.is_err() {
                return;
            }
        }
    }

    /// Counts what waits, and says who it waits for in vain.
    pub(super) async fn watch_stock(self: Arc<Self>, mut recipients: watch::Receiver<Recipients>) {
        let mut ticks = interval(COUNT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut orphans_told = false;
        let mut was_nearly_full = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = recipients.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    orphans_told = false;
                }
            }
            let stock = match timeout(COUNT, self.queue.stock()).await {
                Ok(Ok(stock)) => stock,
                Ok(Err(error)) => {
                    debug!(%error, "the queue cannot be counted");
                    continue;
                }
                Err(_elapsed) => {
                    debug!("counting the queue takes too long");
                    continue;
                }
            };
            let current = Arc::clone(&recipients.borrow_and_update());
            for (Recipient { webhook, destination }, Depth { waiting, .. }) in
                set_gauges(&self.metrics, &stock, &current)
            {
                if !orphans_told && *waiting > 0 {
                    warn!(
                        webhook,
                        destination,
                        waiting,
                        "orphaned: these deliveries wait for a destination that is not configured"
                    );
                }
            }
            orphans_told = true;
            let nearly_full = is_nearly_full(&stock);
            if nearly_full && !was_nearly_full {
                let Stock { bytes, max_bytes, .. } = stock;
                warn!(bytes, max_bytes, "the queue is nearly full: once it is full, new deliveries get 503");
            }
            was_nearly_full = nearly_full;
        }
    }
}

/// Sets the gauges of what waits. Jobs without a recipient are counted together, since labels come from the configuration;
/// they are returned.
pub fn set_gauges<'s>(
    metrics: &Metrics,
    stock: &'s Stock,
    recipients: &BTreeMap<Recipient, Arc<Destination>>,
) -> HashMap<&'s Recipient, &'s Depth> {
    let now = SystemTime::now();
    let age =
        |depth: &Depth| depth.oldest.and_then(|oldest| now.duration_since(oldest).ok()).unwrap_or_default();
    let mut depths: HashMap<_, _> =
        stock.depths.iter().map(|(recipient, depth)| (recipient, depth)).collect();
    for recipient in recipients.keys() {
        let depth = depths.remove(recipient).copied().unwrap_or_default();
        let Recipient { webhook, destination } = recipient;
        metrics.depth(webhook, destination, depth.waiting, age(&depth), depth.dead);
    }
    let (mut waiting, mut dead, mut oldest) = (0, 0, Duration::ZERO);
    for depth in depths.values() {
        waiting += depth.waiting;
        dead += depth.dead;
        oldest = oldest.max(age(depth));
    }
    metrics.depth(NO_WEBHOOK, NO_WEBHOOK, waiting, oldest, dead);
    metrics.stock(stock.bytes + stock.log_bytes, stock.max_bytes, stock.dead_dropped);
    depths
}

/// More than four fifths of what it may be.
const fn is_nearly_full(stock: &Stock) -> bool {
    stock.max_bytes > 0 && stock.bytes / 4 > stock.max_bytes / 5
}

/// Why the queue takes no deliveries, if it takes none.
pub(super) fn trouble(health: &Health) -> Option<String> {
    match health {
        Health::Ready => None,
        Health::NotReady(reason) => Some(reason.clone()),
    }
}
