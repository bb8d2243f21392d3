//! Handing accepted deliveries on: now, or from a durable queue, and a record of each attempt.
//!
//! [`dispatch`] decides how, [`attempt`] tries once, [`destination`] says what the upstream receives. With a queue, a
//! delivery is committed to it by `dispatch` and delivered by [`worker`], as [`backoff`] and [`circuit`] say when.

/// A step of a delivery's way at which tests kill the process: it ends here if the variable `FAILPOINTS` says so. Nothing in
/// what is shipped, where the feature of the crate `fail` is off.
macro_rules! step {
    ($name:literal) => {
        fail::fail_point!($name, |_| std::process::abort())
    };
}

pub mod attempt;
pub mod backoff;
pub mod circuit;
pub mod dedupe;
pub mod destination;
pub mod dispatch;
pub mod format;
pub mod parcel;
pub mod queue;
pub mod worker;
