//! What was measured of something that was done again and again.

use std::time::Duration;

/// How often something was done a second, and how long each took.
#[derive(Clone)]
pub(crate) struct Measured {
    pub(crate) rate: f64,
    pub(crate) waits: Vec<Duration>,
}

impl Measured {
    pub(crate) fn quantile(&self, q: f64) -> Duration {
        #[expect(
            clippy::as_conversions,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let at = ((self.waits.len() - 1) as f64 * q) as usize;
        self.waits[at]
    }
}
