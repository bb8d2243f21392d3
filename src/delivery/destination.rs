//! Where a webhook's deliveries go, and in what form.

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName};

use crate::{upstream::target::Target, webhook::filter::Events};

/// One configured `[[webhook.destination]]`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Labels logs and metrics.
    pub name: String,
    /// Where requests go.
    pub target: Target,
    /// The form in which deliveries are handed on.
    pub format: Format,
    /// From the start of an attempt to the upstream's status.
    pub timeout: Duration,
    /// Headers that are added, on top of hookgate's own. Values are marked sensitive.
    pub headers: HeaderMap,
    /// https: PEM certificates of the authorities to trust instead of the platform's.
    pub ca: Option<Vec<u8>>,
    /// Narrows the webhook's events. `None`: all of them.
    pub events: Option<Events>,
}

impl Settings {
    /// The timeout of a destination that sets none.
    pub const TIMEOUT: Duration = Duration::from_secs(10);
}

/// The form in which a delivery is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// As it came: the verified bytes, unchanged.
    #[default]
    Raw,
}

/// Headers that hookgate sets itself, or that belong to one connection: no configuration may set them.
#[must_use]
pub fn is_reserved_header(name: &HeaderName) -> bool {
    const RESERVED: [&str; 14] = [
        "connection",
        "content-length",
        "content-type",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "traceparent",
    ];
    let name = name.as_str();
    RESERVED.contains(&name) || name.starts_with("pulumi-webhook-") || name.starts_with("hookgate-")
}
