//! Handing accepted deliveries on: at most one attempt at a time for one delivery, and a record of each.
//!
//! [`dispatch`] decides how, [`attempt`] tries once, [`destination`] says what the upstream receives.

pub mod attempt;
pub mod dedupe;
pub mod destination;
pub mod dispatch;
