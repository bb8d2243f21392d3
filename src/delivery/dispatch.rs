//! How accepted deliveries are handed on. Direct: now, and the sender gets the upstream's answer.

use super::{
    attempt::{Outcome, attempt},
    dedupe::{Claim, Memory},
    destination::{Destination, Parcel},
};

/// What became of a delivery.
#[derive(Debug, Clone)]
pub enum Dispatched {
    /// It was tried, or a copy of it was that was on its way already.
    Tried(Outcome),
    /// It was delivered before.
    Duplicate,
    /// Another body was delivered under its ID.
    Conflict,
}

/// Hands on at once.
#[derive(Debug)]
pub struct Direct {
    memory: Memory<Outcome>,
}

impl Direct {
    /// Remembers IDs in `memory`.
    #[must_use]
    pub const fn new(memory: Memory<Outcome>) -> Self {
        Self { memory }
    }

    /// Delivers once however many copies come at a time. `id` and `webhook` say which delivery it is.
    pub async fn dispatch(
        &self,
        webhook: &str,
        id: &str,
        destination: &Destination,
        parcel: &Parcel,
        lane: usize,
    ) -> Dispatched {
        loop {
            match self.memory.claim(webhook, id, &parcel.body) {
                Claim::New(delivering) => {
                    let outcome = attempt(destination, parcel, 1, lane).await;
                    delivering.finish(outcome.is_delivered(), &outcome);
                    return Dispatched::Tried(outcome);
                }
                Claim::Duplicate => return Dispatched::Duplicate,
                Claim::Conflict => return Dispatched::Conflict,
                Claim::Wait { same, answer } => match answer.await {
                    Ok(outcome) if same => return Dispatched::Tried(outcome),
                    // Another body's answer is not for this one, and a try without end has none: ask again.
                    Ok(_) | Err(_) => {}
                },
            }
        }
    }
}
