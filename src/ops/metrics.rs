//! Counters for Prometheus. Label values come from the configuration or a fixed set, never from a request.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

/// The `webhook` label of requests to a path that is not configured.
pub const NO_WEBHOOK: &str = "none";

/// The results of a reload: done, failed.
const RELOADS: [&str; 2] = ["success", "failure"];

/// Upper bounds of the buckets for durations, in seconds: from what verifying takes to the longest timeouts.
const SECONDS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];

/// Every metric of the service.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<OutcomeLabels, Counter>,
    request_duration: Family<WebhookLabels, Histogram>,
    inflight_bytes: Gauge,
    attempts: Family<ResultLabels, Counter>,
    attempt_duration: Family<DestinationLabels, Histogram>,
    secret_last_used: Family<SecretLabels, Gauge<f64, AtomicU64>>,
    reload_success: Gauge,
    reloads: Family<ReloadLabels, Counter>,
    /// Requests being served.
    pub inflight_requests: Gauge,
    /// Open connections to the webhook listener.
    pub connections: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    webhook: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebhookLabels {
    webhook: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    webhook: String,
    destination: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DestinationLabels {
    webhook: String,
    destination: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SecretLabels {
    webhook: String,
    secret: String,
}

impl Metrics {
    /// All metrics, at zero.
    #[must_use]
    pub fn new() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut metrics = Self {
            registry: Registry::with_prefix("hookgate"),
            requests: Family::default(),
            request_duration: Family::new_with_constructor(histogram),
            inflight_bytes: Gauge::default(),
            attempts: Family::default(),
            attempt_duration: Family::new_with_constructor(histogram),
            secret_last_used: Family::default(),
            reload_success: Gauge::default(),
            reloads: Family::default(),
            inflight_requests: Gauge::default(),
            connections: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Requests by outcome", metrics.requests.clone());
        registry.register(
            "request_duration_seconds",
            "From the head of a request to its answer",
            metrics.request_duration.clone(),
        );
        registry.register("inflight_requests", "Requests being served", metrics.inflight_requests.clone());
        registry.register("inflight_bytes", "Bytes of bodies being held", metrics.inflight_bytes.clone());
        registry.register("connections", "Open connections of senders", metrics.connections.clone());
        registry.register("attempts", "Attempts to deliver by result", metrics.attempts.clone());
        registry.register(
            "attempt_duration_seconds",
            "From the start of an attempt to its end",
            metrics.attempt_duration.clone(),
        );
        registry.register(
            "secret_last_used_timestamp_seconds",
            "When a secret last verified a delivery; 0: not since the start",
            metrics.secret_last_used.clone(),
        );
        registry.register(
            "config_last_reload_success",
            "1 while the configuration in force is that of the file; 0 after a reload that failed",
            metrics.reload_success.clone(),
        );
        registry.register(
            "config_reloads",
            "Reloads of the configuration by result",
            metrics.reloads.clone(),
        );
        metrics.reload_success.set(1);
        for result in RELOADS {
            metrics.reloads.get_or_create(&ReloadLabels { result }).inc_by(0);
        }
        registry.register("build", "The program", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        metrics
    }

    /// The handles of a webhook, [`NO_WEBHOOK`] for none. `outcomes` are the labels in the order in which
    /// [`ForWebhook::request`] counts them.
    #[must_use]
    pub fn webhook<'s>(
        &self,
        webhook: &str,
        outcomes: impl Iterator<Item = &'static str>,
        secrets: impl Iterator<Item = &'s str>,
    ) -> ForWebhook {
        let requests = outcomes.map(|outcome| {
            self.requests.get_or_create(&OutcomeLabels { webhook: webhook.into(), outcome }).clone()
        });
        let last_used = secrets.map(|secret| {
            let labels = SecretLabels { webhook: webhook.into(), secret: secret.into() };
            self.secret_last_used.get_or_create(&labels).clone()
        });
        ForWebhook {
            requests: requests.collect(),
            duration: self.request_duration.get_or_create(&WebhookLabels { webhook: webhook.into() }).clone(),
            secret_last_used: last_used.collect(),
        }
    }

    /// The handles of a destination.
    #[must_use]
    pub fn destination(&self, webhook: &str, destination: &str) -> ForDestination {
        let attempts = |result| {
            let labels = ResultLabels { webhook: webhook.into(), destination: destination.into(), result };
            self.attempts.get_or_create(&labels).clone()
        };
        let labels = DestinationLabels { webhook: webhook.into(), destination: destination.into() };
        ForDestination {
            delivered: attempts("delivered"),
            failed: attempts("failed"),
            duration: self.attempt_duration.get_or_create(&labels).clone(),
        }
    }

    /// Counts a reload of the configuration.
    pub fn reload(&self, success: bool) {
        let [done, failed] = RELOADS;
        let result = if success { done } else { failed };
        self.reload_success.set(success.into());
        self.reloads.get_or_create(&ReloadLabels { result }).inc();
    }

    /// Everything in the OpenMetrics text format. `inflight_bytes` is read by the caller at this moment.
    #[must_use]
    pub fn text(&self, inflight_bytes: usize) -> String {
        self.inflight_bytes.set(i64::try_from(inflight_bytes).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The metrics of one webhook, found once and then only counted.
#[derive(Debug)]
pub struct ForWebhook {
    requests: Vec<Counter>,
    duration: Histogram,
    secret_last_used: Vec<Gauge<f64, AtomicU64>>,
}

impl ForWebhook {
    /// Counts a request that ended with outcome number `outcome` after `duration`.
    pub fn request(&self, outcome: usize, duration: Duration) {
        if let Some(counter) = self.requests.get(outcome) {
            counter.inc();
        }
        self.duration.observe(duration.as_secs_f64());
    }

    /// Notes that secret number `secret` verified a delivery at `now`.
    pub fn secret_used(&self, secret: usize, now: SystemTime) {
        if let Some(gauge) = self.secret_last_used.get(secret) {
            gauge.set(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        }
    }
}

/// The metrics of one destination.
#[derive(Debug)]
pub struct ForDestination {
    delivered: Counter,
    failed: Counter,
    duration: Histogram,
}

impl ForDestination {
    /// Counts an attempt.
    pub fn attempt(&self, delivered: bool, duration: Duration) {
        if delivered { &self.delivered } else { &self.failed }.inc();
        self.duration.observe(duration.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let metrics = Metrics::new();
        let webhook = metrics.webhook("esc", ["forwarded", "filtered"].into_iter(), ["new"].into_iter());
        webhook.request(1, Duration::from_millis(3));
        webhook.secret_used(0, UNIX_EPOCH + Duration::from_secs(1_778_653_144));
        metrics.destination("esc", "app").attempt(false, Duration::from_millis(3));
        metrics.connections.inc();
        let text = metrics.text(7);
        for line in [
            r#"hookgate_requests_total{webhook="esc",outcome="filtered"} 1"#,
            r#"hookgate_requests_total{webhook="esc",outcome="forwarded"} 0"#,
            r#"hookgate_request_duration_seconds_count{webhook="esc"} 1"#,
            r#"hookgate_request_duration_seconds_bucket{le="0.005",webhook="esc"} 1"#,
            r#"hookgate_attempts_total{webhook="esc",destination="app",result="failed"} 1"#,
            r#"hookgate_attempt_duration_seconds_count{webhook="esc",destination="app"} 1"#,
            r#"hookgate_secret_last_used_timestamp_seconds{webhook="esc",secret="new"} 1778653144.0"#,
            "hookgate_inflight_requests 0",
            "hookgate_inflight_bytes 7",
            "hookgate_connections 1",
            concat!(r#"hookgate_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
