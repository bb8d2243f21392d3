//! Telling duplicates: what was delivered within a window, and what is being delivered now.

use std::time::Duration;

/// `[dedupe]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long a delivered ID is remembered. Zero: no memory of IDs at all.
    pub window: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { window: Duration::from_secs(120) }
    }
}
