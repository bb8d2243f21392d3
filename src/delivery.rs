//! Handing accepted deliveries on: at most one attempt at a time for one delivery, and a record of each.

pub mod dedupe;
pub mod destination;
