//! Reads a request's body: bounded in size, in time, and together with all other bodies that are being held.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

use super::rejection::{Refusal, Rejection};
use crate::server::state::{ConnectionState, GivenUp};

/// The bytes of bodies that may be held at a time, over all requests.
///
/// Large bodies that are still coming may not have all of it: whoever holds them back, and needs no secret for that,
/// would otherwise keep out the small ones, which nearly all deliveries are.
#[derive(Debug, Clone)]
pub struct Budget {
    held: Arc<AtomicUsize>,
    limit: usize,
    /// Of the held, those of large bodies that are still coming.
    coming: Arc<AtomicUsize>,
    coming_limit: usize,
}

/// The longest small body, in bytes.
const SMALL: usize = 16 << 10;

/// A part of the budget, given back on drop.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    bytes: usize,
    /// How many of them count as those of a large body that is still coming.
    coming: usize,
}

impl Budget {
    /// A budget of `limit` bytes, for bodies of at most `max_body` bytes on at most `connections`.
    ///
    /// A small body for each connection always finds room beside large ones that do not end, as far as that takes no
    /// more than half of the budget and leaves room for one large body.
    #[must_use]
    pub fn new(limit: usize, max_body: usize, connections: usize) -> Self {
        let kept = connections.saturating_mul(SMALL).min(limit / 2).min(limit.saturating_sub(max_body));
        Self { held: Arc::default(), limit, coming: Arc::default(), coming_limit: limit.saturating_sub(kept) }
    }

    /// Bytes being held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        self.held().saturating_add(bytes) <= self.limit
    }

    fn share(&self) -> Share {
        Share { budget: self.clone(), bytes: 0, coming: 0 }
    }
}

impl Share {
    /// Takes `more` bytes for a body that is not whole yet. Whether there were as many; if not, the body must go.
    fn grow(&mut self, more: usize) -> bool {
        let held = self.budget.held.fetch_add(more, Relaxed).saturating_add(more);
        self.bytes = self.bytes.saturating_add(more);
        if self.bytes <= SMALL {
            return held <= self.budget.limit;
        }
        let more = self.bytes.saturating_sub(std::mem::replace(&mut self.coming, self.bytes));
        let coming = self.budget.coming.fetch_add(more, Relaxed).saturating_add(more);
        held <= self.budget.limit && coming <= self.budget.coming_limit
    }

    /// The body is whole.
    fn settle(&mut self) {
        self.budget.coming.fetch_sub(std::mem::take(&mut self.coming), Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.settle();
        self.budget.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// A whole body, as it came.
#[derive(Debug)]
pub(super) struct Held {
    /// The bytes.
    pub(super) bytes: Bytes,
    /// What they take of the budget.
    pub(super) share: Share,
}

/// Reads the whole body.
///
/// # Errors
///
/// [`Rejection::TooLarge`] and [`Rejection::Overloaded`] from the announced length, before anything is read, or
/// from what came; [`Rejection::Timeout`] when it is not complete in time; [`Rejection::Overloaded`] also when it comes so
/// slowly that its connection must give way; [`Rejection::BadRequest`] when it breaks off.
pub(super) async fn read(
    body: &mut Incoming,
    max: usize,
    until: Instant,
    budget: &Budget,
    connection: &ConnectionState,
) -> Result<Held, Refusal> {
    let announced = body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > max) {
        return Err(Rejection::TooLarge.because("the announced length is over `max_body`"));
    }
    if !budget.has_room_for(announced.unwrap_or_default()) {
        return Err(Rejection::Overloaded.because("bodies in memory have reached `max_inflight_bytes`"));
    }
    match connection.until(until, collect(body, announced, max, budget, connection)).await {
        Ok(collected) => collected,
        Err(GivenUp::TooLate) => {
            Err(Rejection::Timeout.because("the body was not complete within `body_timeout`"))
        }
        Err(GivenUp::GaveWay) => Err(Rejection::Overloaded.because(
            "all of `max_connections` were taken, and this body had been slow for the longest time",
        )),
    }
}

/// The most that is set aside for a body before it has come, in bytes.
const TAKEN_ON_TRUST: usize = 64 << 10;

async fn collect(
    body: &mut Incoming,
    announced: Option<usize>,
    max: usize,
    budget: &Budget,
    connection: &ConnectionState,
) -> Result<Held, Refusal> {
    let mut share = budget.share();
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(Rejection::BadRequest.because("the body broke off or its chunks are malformed"));
        };
        // Trailers are not part of what was signed, and nothing of them goes on.
        let Ok(data) = frame.into_data() else { continue };
        connection.came(data.len());
        let length = first.len().saturating_add(whole.len()).saturating_add(data.len());
        if length > max {
            return Err(Rejection::TooLarge.because("the body is over `max_body`"));
        }
        if !share.grow(data.len()) {
            return Err(Rejection::Overloaded.because("bodies in memory have reached `max_inflight_bytes`"));
        }
        // Most bodies come in one piece, which is then not copied.
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            if whole.is_empty() {
                // Room for what was announced, up to a point: announcing costs a sender nothing.
                whole.reserve(announced.unwrap_or_default().clamp(length, length.max(TAKEN_ON_TRUST)));
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&data);
        }
    }
    share.settle();
    let bytes = if whole.is_empty() { first } else { whole.freeze() };
    Ok(Held { bytes, share })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_that_do_not_end_leave_room_for_a_small_one_on_each_connection() {
        const LARGE: usize = 100 << 10;
        let budget = Budget::new(10 * LARGE, LARGE, 20);
        let take = |bytes| {
            let mut share = budget.share();
            share.grow(bytes).then_some(share)
        };
        let large: Vec<_> = std::iter::from_fn(|| take(LARGE)).collect();
        assert_eq!(large.len(), (10 * LARGE - 20 * SMALL) / LARGE);
        assert_eq!(budget.held(), large.len() * LARGE, "who was refused has given back everything");
        let small: Vec<_> = std::iter::from_fn(|| take(SMALL)).collect();
        assert!(small.len() >= 20, "{}", small.len());
        drop((large, small));
        assert_eq!((budget.held(), budget.coming.load(Relaxed)), (0, 0));
    }

    /// What has come whole is somebody's who may send, or is gone in a moment.
    #[test]
    fn whole_bodies_may_have_all_of_it() {
        const LARGE: usize = 100 << 10;
        let budget = Budget::new(10 * LARGE, LARGE, 1000);
        let whole: Vec<_> = std::iter::from_fn(|| {
            let mut share = budget.share();
            let fits = share.grow(LARGE);
            share.settle();
            fits.then_some(share)
        })
        .collect();
        assert_eq!(whole.len(), 10);
        drop(whole);
        assert_eq!((budget.held(), budget.coming.load(Relaxed)), (0, 0));
    }

    /// With room for one body of the greatest length, that one may come.
    #[test]
    fn the_longest_body_always_fits_into_an_empty_budget() {
        for limit in [1 << 10, 17 << 10, 1 << 20] {
            let budget = Budget::new(limit, limit, 1024);
            assert!(budget.share().grow(limit), "{limit}");
            assert!(!budget.share().grow(limit + 1), "{limit}");
        }
    }
}
