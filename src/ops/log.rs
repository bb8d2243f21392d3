//! The log: one line an event, JSON or text, on standard output.
//!
//! Lines go through a bounded buffer that a thread of its own writes out, so that a standard output that blocks
//! or is closed never holds up the service. What does not fit is counted and said when there is room again.

mod filter;
mod json;
mod limit;
mod shown;
mod sink;
mod timestamp;

use std::{fmt, time::Duration};

use tracing::Subscriber;
use tracing_subscriber::{Layer, layer::SubscriberExt, registry, reload};

pub use filter::{leaves_nothing, tell_rust_log};
pub use limit::Limiter;
pub use shown::shown;
pub use sink::{Flush, Sink};

/// The target of lines that strangers cause, which is anybody who can connect. When lines must wait, they leave room
/// for others.
pub const STRANGERS: &str = "hookgate::strangers";

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How lines are written.
    pub format: Format,
    /// A tracing filter directive such as `info` or `hookgate=debug`. `RUST_LOG` wins over it.
    pub level: String,
}

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::default(), level: "info".into() }
    }
}

/// Changes the level of a log that is running.
pub struct Control(Box<dyn Fn(&str) -> bool + Send + Sync>);

impl Control {
    /// Takes another level, unless `RUST_LOG` rules. Whether it did.
    #[must_use]
    pub fn set_level(&self, level: &str) -> bool {
        self.0(level)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Control(..)")
    }
}

/// A duration as lines have it: with three digits behind the point.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A subscriber that writes to `sink`. `rust_log` is the content of `RUST_LOG`; it wins over the settings unless it
/// cannot be read.
pub fn subscriber(
    settings: &Settings,
    rust_log: Option<&str>,
    sink: Sink,
) -> (impl Subscriber + Send + Sync + use<>, Control) {
    let ruled = rust_log.and_then(|directives| filter::of_rust_log(directives).ok());
    let rules = ruled.is_some();
    let (filter, handle) = reload::Layer::new(ruled.unwrap_or_else(|| filter::of_level(&settings.level)));
    let control = Control(Box::new(move |level| {
        if !rules {
            // It fails only when the subscriber is gone, and then there is no log to set.
            drop(handle.reload(filter::of_level(level)));
        }
        !rules
    }));
    let lines = match settings.format {
        Format::Json => json::Json(sink).boxed(),
        Format::Text => tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_target(false)
            .with_writer(sink::Lines(sink))
            .boxed(),
    };
    (registry().with(filter).with(lines), control)
}
