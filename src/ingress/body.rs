//! Reads a request's body: bounded in size, in time, and together with all other bodies that are being held.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use super::rejection::{Refusal, Rejection};

/// The bytes of bodies that may be held at a time, over all requests.
#[derive(Debug, Clone)]
pub struct Budget {
    held: Arc<AtomicUsize>,
    limit: usize,
}

/// A part of the budget, given back on drop.
#[derive(Debug)]
struct Share {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { held: Arc::default(), limit }
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
        Share { budget: self.clone(), bytes: 0 }
    }
}

impl Share {
    /// Takes `more` bytes, or nothing if that is more than there is.
    fn grow(&mut self, more: usize) -> bool {
        let held = self.budget.held.fetch_add(more, Relaxed).saturating_add(more);
        self.bytes = self.bytes.saturating_add(more);
        held <= self.budget.limit
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// A whole body, as it came. Its share of the budget is given back on drop.
#[derive(Debug)]
pub(super) struct Held {
    /// The bytes.
    pub(super) bytes: Bytes,
    _share: Share,
}

/// Reads the whole body.
///
/// # Errors
///
/// [`Rejection::TooLarge`] and [`Rejection::Overloaded`] from the announced length, before anything is read, or
/// from what came; [`Rejection::Timeout`] when it is not complete in time; [`Rejection::BadRequest`] when it
/// breaks off.
pub(super) async fn read(
    mut body: Incoming,
    max: usize,
    deadline: Duration,
    budget: &Budget,
) -> Result<Held, Refusal> {
    let announced = body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > max) {
        return Err(Rejection::TooLarge.because("the announced length is over `max_body`"));
    }
    if !budget.has_room_for(announced.unwrap_or_default()) {
        return Err(Rejection::Overloaded.because("bodies being held are at `max_inflight_bytes`"));
    }
    match timeout(deadline, collect(&mut body, max, budget)).await {
        Ok(read) => read,
        Err(_) => Err(Rejection::Timeout.because("the body was not complete within `body_timeout`")),
    }
}

async fn collect(body: &mut Incoming, max: usize, budget: &Budget) -> Result<Held, Refusal> {
    let mut share = budget.share();
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(Rejection::BadRequest.because("the body broke off or its chunks are malformed"));
        };
        // Trailers are not part of what was signed, and nothing of them goes on.
        let Ok(data) = frame.into_data() else { continue };
        let length = first.len().saturating_add(whole.len()).saturating_add(data.len());
        if length > max {
            return Err(Rejection::TooLarge.because("the body is over `max_body`"));
        }
        if !share.grow(data.len()) {
            return Err(Rejection::Overloaded.because("bodies being held are at `max_inflight_bytes`"));
        }
        // Most bodies come in one piece, which is then not copied.
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            if whole.is_empty() {
                // Room for what came, not for what was announced: announcing costs a sender nothing.
                whole.reserve(length);
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&data);
        }
    }
    let bytes = if whole.is_empty() { first } else { whole.freeze() };
    Ok(Held { bytes, _share: share })
}
