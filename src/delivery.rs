//! Handing accepted deliveries on: now, or from a durable queue, and a record of each attempt.
//!
//! [`dispatch`] decides how, [`attempt`] tries once, [`destination`] says what the upstream receives. With a queue, a
//! delivery is committed to it by `dispatch` and handed on by [`worker`], as [`backoff`] and [`circuit`] say when.

pub mod attempt;
pub mod backoff;
pub mod circuit;
pub mod dedupe;
pub mod destination;
pub mod dispatch;
pub mod queue;
pub mod worker;
