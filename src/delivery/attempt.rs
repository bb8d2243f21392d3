//! One try to deliver: render, send, classify, count.

use tokio::time::Instant;

use super::destination::{Destination, Parcel};
use crate::upstream::{Reply, SendError};

/// What became of one try.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The upstream answered 2xx.
    Delivered(Reply),
    /// The upstream answered something else.
    Declined(Reply),
    /// There is no usable answer.
    Failed(SendError),
}

impl Outcome {
    /// Whether the upstream accepted it.
    #[must_use]
    pub const fn is_delivered(&self) -> bool {
        matches!(self, Self::Delivered(_))
    }
}

/// Tries once, as attempt number `number` (from 1).
pub async fn attempt(destination: &Destination, parcel: &Parcel, number: u32, lane: usize) -> Outcome {
    let began = Instant::now();
    let request = destination.render(parcel, number);
    let outcome = match destination.upstream.send(lane, &request, began).await {
        Ok(reply) if reply.status.is_success() => Outcome::Delivered(reply),
        Ok(reply) => Outcome::Declined(reply),
        Err(error) => Outcome::Failed(error),
    };
    destination.metrics.attempt(outcome.is_delivered(), began.elapsed());
    outcome
}
