//! What the joints hold to count by: the metrics of one webhook or destination, found once.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use super::AttemptResult;

/// The metrics of one webhook, found once and then only counted.
#[derive(Debug)]
pub struct ForWebhook {
    pub(super) requests: Vec<Counter>,
    pub(super) events: Vec<Counter>,
    pub(super) duration: Histogram,
    pub(super) secret_last_used: Vec<Gauge<f64, AtomicU64>>,
}

impl ForWebhook {
    /// Counts a request that ended with outcome number `outcome` after `duration`.
    pub fn request(&self, outcome: usize, duration: Duration) {
        if let Some(counter) = self.requests.get(outcome) {
            counter.inc();
        }
        self.duration.observe(duration.as_secs_f64());
    }

    /// Counts a delivery with event number `event`.
    pub fn event(&self, event: usize) {
        if let Some(counter) = self.events.get(event) {
            counter.inc();
        }
    }

    /// Notes that secret number `secret` verified a delivery at `now`.
    pub fn secret_used(&self, secret: usize, now: SystemTime) {
        if let Some(gauge) = self.secret_last_used.get(secret) {
            gauge.set(seconds(now));
        }
    }
}

/// The metrics of one destination.
#[derive(Debug)]
pub struct ForDestination {
    pub(super) delivered: Counter,
    pub(super) failed: Counter,
    pub(super) retry: Counter,
    pub(super) dead: Counter,
    pub(super) duration: Histogram,
    pub(super) circuit_open: Gauge,
}

impl ForDestination {
    /// Counts an attempt.
    pub fn attempt(&self, result: AttemptResult, duration: Duration) {
        match result {
            AttemptResult::Delivered => &self.delivered,
            AttemptResult::Failed => &self.failed,
            AttemptResult::Retry => &self.retry,
            AttemptResult::Dead => &self.dead,
        }
        .inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// Says whether the destination is left alone.
    pub fn circuit_open(&self, open: bool) {
        self.circuit_open.set(open.into());
    }
}

/// Since 1970.
pub(super) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
