//! Counters for Prometheus. Label values come from the configuration or a fixed set, never from a request.

mod counted;
mod process;
mod text;

use std::{
    path::Path,
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

pub use counted::{ForDestination, ForWebhook};
pub use text::Form;

use self::counted::seconds;
use super::COMMIT;

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
    started: SystemTime,
    events: Family<EventLabels, Counter>,
    secret_expiry: Family<SecretLabels, Gauge<f64, AtomicU64>>,
    certificate_expiry: Family<FileLabels, Gauge<f64, AtomicU64>>,
    requests: Family<OutcomeLabels, Counter>,
    request_duration: Family<WebhookLabels, Histogram>,
    inflight_bytes: Gauge,
    attempts: Family<ResultLabels, Counter>,
    attempt_duration: Family<DestinationLabels, Histogram>,
    secret_last_used: Family<SecretLabels, Gauge<f64, AtomicU64>>,
    reload_success: Gauge,
    reloads: Family<ReloadLabels, Counter>,
    unreadable: Family<ReasonLabels, Counter>,
    queue: Option<QueueMetrics>,
    /// Requests being served.
    pub inflight_requests: Gauge,
    /// Open connections to the webhook listener.
    pub connections: Gauge,
    /// Connections that were asked to give their place to a newcomer.
    pub connections_evicted: Counter,
}

/// What only a service with a queue reports.
#[derive(Debug, Default)]
struct QueueMetrics {
    depth: Family<DestinationLabels, Gauge>,
    oldest: Family<DestinationLabels, Gauge<f64, AtomicU64>>,
    dead: Family<DestinationLabels, Gauge>,
    circuit_open: Family<DestinationLabels, Gauge>,
    bytes: Gauge,
    max_bytes: Gauge,
    dead_dropped: Counter,
}

/// The result of an attempt. Directly, an attempt is delivered or failed; from a queue, what is not delivered is tried
/// again or dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptResult {
    /// The upstream accepted it.
    Delivered,
    /// It did not, and Pulumi was told so.
    Failed,
    /// It did not, and will be asked again.
    Retry,
    /// It did not, and will not be asked again.
    Dead,
}

impl AttemptResult {
    /// Its label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Retry => "retry",
            Self::Dead => "dead",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    webhook: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    webhook: String,
    event: &'static str,
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
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SecretLabels {
    webhook: String,
    secret: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabels {
    file: String,
}

impl Metrics {
    /// All metrics, at zero.
    #[must_use]
    pub fn new() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut metrics = Self {
            registry: Registry::with_prefix("hookgate"),
            started: SystemTime::now(),
            events: Family::default(),
            secret_expiry: Family::default(),
            certificate_expiry: Family::default(),
            unreadable: Family::default(),
            requests: Family::default(),
            request_duration: Family::new_with_constructor(histogram),
            inflight_bytes: Gauge::default(),
            attempts: Family::default(),
            attempt_duration: Family::new_with_constructor(histogram),
            secret_last_used: Family::default(),
            reload_success: Gauge::default(),
            reloads: Family::default(),
            queue: None,
            inflight_requests: Gauge::default(),
            connections: Gauge::default(),
            connections_evicted: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Requests by outcome", metrics.requests.clone());
        registry.register(
            "request_duration_seconds",
            "From the head of a request to its answer",
            metrics.request_duration.clone(),
        );
        registry.register("events", "Deliveries with a valid signature, by event", metrics.events.clone());
        registry.register("inflight_requests", "Requests being served", metrics.inflight_requests.clone());
        registry.register("inflight_bytes", "Bytes of bodies in memory", metrics.inflight_bytes.clone());
        registry.register("connections", "Open connections of senders", metrics.connections.clone());
        registry.register(
            "connections_evicted",
            "Connections without progress that gave their place to a newcomer",
            metrics.connections_evicted.clone(),
        );
        registry.register(
            "unreadable",
            "Input that could not be read as a request",
            metrics.unreadable.clone(),
        );
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
            "secret_expiry_timestamp_seconds",
            "When a secret expires",
            metrics.secret_expiry.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the first certificate in a file expires",
            metrics.certificate_expiry.clone(),
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
        registry.register(
            "build",
            "The program",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)]),
        );
        metrics
    }

    /// All metrics of a service with a queue, at zero.
    #[must_use]
    pub fn with_queue() -> Self {
        let mut metrics = Self::new();
        let queue = QueueMetrics::default();
        let registry = &mut metrics.registry;
        registry.register("queue_depth", "Jobs that wait to be delivered", queue.depth.clone());
        registry.register(
            "queue_oldest_seconds",
            "Age of the oldest waiting job; 0 if none waits",
            queue.oldest.clone(),
        );
        registry.register("dead_letters", "Dead letters that are kept", queue.dead.clone());
        registry.register(
            "destination_circuit_open",
            "1 while a failing destination is only probed",
            queue.circuit_open.clone(),
        );
        registry.register("queue_bytes", "Size of the queue", queue.bytes.clone());
        registry.register("queue_max_bytes", "Largest size of the queue", queue.max_bytes.clone());
        registry.register(
            "dead_letters_dropped",
            "Dead letters that were dropped because they were older than dead_retain",
            queue.dead_dropped.clone(),
        );
        metrics.queue = Some(queue);
        metrics
    }

    /// The handles of a webhook, [`NO_WEBHOOK`] for none. `outcomes` and `events` are the labels in the order in which
    /// [`ForWebhook::request`] and [`ForWebhook::event`] count them.
    #[must_use]
    pub fn webhook<'s>(
        &self,
        webhook: &str,
        outcomes: impl Iterator<Item = &'static str>,
        events: impl Iterator<Item = &'static str>,
        secrets: impl Iterator<Item = &'s str>,
    ) -> ForWebhook {
        let requests = outcomes.map(|outcome| {
            self.requests.get_or_create(&OutcomeLabels { webhook: webhook.into(), outcome }).clone()
        });
        let events = events
            .map(|event| self.events.get_or_create(&EventLabels { webhook: webhook.into(), event }).clone());
        let last_used = secrets.map(|secret| {
            let labels = SecretLabels { webhook: webhook.into(), secret: secret.into() };
            self.secret_last_used.get_or_create(&labels).clone()
        });
        ForWebhook {
            requests: requests.collect(),
            events: events.collect(),
            duration: self.request_duration.get_or_create(&WebhookLabels { webhook: webhook.into() }).clone(),
            secret_last_used: last_used.collect(),
        }
    }

    /// The handles of a destination.
    #[must_use]
    pub fn destination(&self, webhook: &str, destination: &str) -> ForDestination {
        let labels = DestinationLabels { webhook: webhook.into(), destination: destination.into() };
        let queue = self.queue.as_ref();
        let attempts = |result: AttemptResult, counted: bool| {
            let labels = ResultLabels {
                webhook: webhook.into(),
                destination: destination.into(),
                result: result.label(),
            };
            // What this service cannot come to is counted where nobody looks.
            if counted { self.attempts.get_or_create(&labels).clone() } else { Counter::default() }
        };
        ForDestination {
            delivered: attempts(AttemptResult::Delivered, true),
            failed: attempts(AttemptResult::Failed, queue.is_none()),
            retry: attempts(AttemptResult::Retry, queue.is_some()),
            dead: attempts(AttemptResult::Dead, queue.is_some()),
            duration: self.attempt_duration.get_or_create(&labels).clone(),
            circuit_open: queue
                .map(|queue| queue.circuit_open.get_or_create(&labels).clone())
                .unwrap_or_default(),
        }
    }

    /// Sets what waits for a destination. The age is that of the oldest job.
    pub fn depth(&self, webhook: &str, destination: &str, waiting: u64, oldest: Duration, dead: u64) {
        let Some(queue) = &self.queue else { return };
        let labels = DestinationLabels { webhook: webhook.into(), destination: destination.into() };
        queue.depth.get_or_create(&labels).set(gauge(waiting));
        queue.oldest.get_or_create(&labels).set(oldest.as_secs_f64());
        queue.dead.get_or_create(&labels).set(gauge(dead));
    }

    /// Forgets a destination that is not configured any more.
    pub fn forget_destination(&self, webhook: &str, destination: &str) {
        let Some(queue) = &self.queue else { return };
        let labels = DestinationLabels { webhook: webhook.into(), destination: destination.into() };
        queue.depth.remove(&labels);
        queue.oldest.remove(&labels);
        queue.dead.remove(&labels);
        queue.circuit_open.remove(&labels);
    }

    /// Sets what the queue takes as a whole. `dead_dropped` counts from the start.
    pub fn stock(&self, bytes: u64, max_bytes: u64, dead_dropped: u64) {
        let Some(queue) = &self.queue else { return };
        queue.bytes.set(gauge(bytes));
        queue.max_bytes.set(gauge(max_bytes));
        queue.dead_dropped.inc_by(dead_dropped.saturating_sub(queue.dead_dropped.get()));
    }

    /// Sets when secrets expire: webhook, secret and time of each that does.
    pub fn secrets_expire<'s>(&self, secrets: impl Iterator<Item = (&'s str, &'s str, SystemTime)>) {
        self.secret_expiry.clear();
        for (webhook, secret, at) in secrets {
            let labels = SecretLabels { webhook: webhook.into(), secret: secret.into() };
            self.secret_expiry.get_or_create(&labels).set(seconds(at));
        }
    }

    /// Sets when certificates end: file and time of each.
    pub fn certificates_expire<'c>(&self, files: impl Iterator<Item = (&'c Path, SystemTime)>) {
        self.certificate_expiry.clear();
        for (file, at) in files {
            let labels = FileLabels { file: file.display().to_string() };
            self.certificate_expiry.get_or_create(&labels).set(seconds(at));
        }
    }

    /// Counts what could not be read as a request. With 0 it is only there from then on.
    pub fn unreadable(&self, reason: &'static str, count: u64) {
        self.unreadable.get_or_create(&ReasonLabels { reason }).inc_by(count);
    }

    /// Counts a reload of the configuration.
    pub fn reload(&self, success: bool) {
        let [done, failed] = RELOADS;
        let result = if success { done } else { failed };
        self.reload_success.set(success.into());
        self.reloads.get_or_create(&ReloadLabels { result }).inc();
    }

    /// Everything in the form that was asked for. `inflight_bytes` is read by the caller at this moment.
    #[must_use]
    pub fn text(&self, form: Form, inflight_bytes: usize) -> String {
        self.inflight_bytes.set(i64::try_from(inflight_bytes).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String does not fail");
        process::write(&mut text, self.started);
        form.write(&text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let metrics = Metrics::new();
        let webhook = metrics.webhook(
            "esc",
            ["forwarded", "filtered"].into_iter(),
            ["environment", "other"].into_iter(),
            ["new"].into_iter(),
        );
        webhook.event(1);
        let ends = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        metrics.secrets_expire([("esc", "old", ends)].into_iter());
        metrics.secrets_expire([("esc", "new", ends)].into_iter());
        metrics.certificates_expire([(Path::new("/old.crt"), ends)].into_iter());
        metrics.certificates_expire([(Path::new("/a \"b\".crt"), ends)].into_iter());
        webhook.request(1, Duration::from_millis(3));
        webhook.secret_used(0, UNIX_EPOCH + Duration::from_secs(1_778_653_144));
        metrics.destination("esc", "app").attempt(AttemptResult::Failed, Duration::from_millis(3));
        metrics.connections.inc();
        metrics.unreadable("http2", 1);
        metrics.unreadable("timeout", 0);
        let text = metrics.text(Form::OpenMetrics, 7);
        for line in [
            r#"hookgate_requests_total{webhook="esc",outcome="filtered"} 1"#,
            r#"hookgate_requests_total{webhook="esc",outcome="forwarded"} 0"#,
            r#"hookgate_request_duration_seconds_count{webhook="esc"} 1"#,
            r#"hookgate_request_duration_seconds_bucket{le="0.005",webhook="esc"} 1"#,
            r#"hookgate_attempts_total{webhook="esc",destination="app",result="failed"} 1"#,
            r#"hookgate_attempt_duration_seconds_count{webhook="esc",destination="app"} 1"#,
            r#"hookgate_secret_last_used_timestamp_seconds{webhook="esc",secret="new"} 1778653144.0"#,
            r#"hookgate_unreadable_total{reason="http2"} 1"#,
            r#"hookgate_unreadable_total{reason="timeout"} 0"#,
            "hookgate_inflight_requests 0",
            "hookgate_inflight_bytes 7",
            "hookgate_connections 1",
            r#"hookgate_events_total{webhook="esc",event="other"} 1"#,
            r#"hookgate_events_total{webhook="esc",event="environment"} 0"#,
            r#"hookgate_secret_expiry_timestamp_seconds{webhook="esc",secret="new"} 1800000000.0"#,
            r#"hookgate_certificate_expiry_timestamp_seconds{file="/a \"b\".crt"} 1800000000.0"#,
            concat!(
                r#"hookgate_build_info{version=""#,
                env!("CARGO_PKG_VERSION"),
                r#"",commit="unknown"} 1"#
            ),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains(r#"secret="old""#) && !text.contains("/old.crt"), "{text}");
        for process in
            ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"]
        {
            let name = format!("process_{process} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok());
            assert!(value.is_some_and(|value| value > 0.0), "{name}: {text}");
        }
        for of_queue in ["queue", "dead", "circuit", "retry"] {
            assert!(!text.contains(&format!("hookgate_{of_queue}")), "{of_queue}: {text}");
        }
    }

    #[test]
    fn a_queue_has_metrics_of_its_own() {
        let metrics = Metrics::with_queue();
        let app = metrics.destination("esc", "app");
        app.attempt(AttemptResult::Retry, Duration::from_millis(3));
        app.circuit_open(true);
        metrics.depth("esc", "app", 3, Duration::from_millis(1500), 2);
        metrics.depth("esc", "old", 1, Duration::ZERO, 0);
        drop(metrics.destination("esc", "old"));
        metrics.forget_destination("esc", "old");
        metrics.stock(10, 20, 3);
        metrics.stock(11, 20, 5);
        let text = metrics.text(Form::Prometheus, 0);
        for line in [
            r#"hookgate_attempts_total{webhook="esc",destination="app",result="delivered"} 0"#,
            r#"hookgate_attempts_total{webhook="esc",destination="app",result="retry"} 1"#,
            r#"hookgate_attempts_total{webhook="esc",destination="app",result="dead"} 0"#,
            r#"hookgate_queue_depth{webhook="esc",destination="app"} 3"#,
            r#"hookgate_queue_oldest_seconds{webhook="esc",destination="app"} 1.5"#,
            r#"hookgate_dead_letters{webhook="esc",destination="app"} 2"#,
            r#"hookgate_destination_circuit_open{webhook="esc",destination="app"} 1"#,
            "hookgate_queue_bytes 11",
            "hookgate_queue_max_bytes 20",
            "hookgate_dead_letters_dropped_total 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains(r#"result="failed""#), "{text}");
        assert!(!text.contains(r#"hookgate_queue_depth{webhook="esc",destination="old"}"#), "{text}");
    }
}
