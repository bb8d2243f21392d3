//! The end of a server: it stops accepting and finishes what it has, and what is left at the deadline is cut.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    task::Poll,
};

use tokio_util::sync::CancellationToken;

/// Both ends of a drain: it begins, and at its deadline what is left is cut.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    begun: CancellationToken,
    /// Whether it has: the token's own answer is behind a lock.
    has_begun: Arc<AtomicBool>,
    cut: CancellationToken,
}

impl Drain {
    /// Stops accepting and lets what is in flight finish.
    pub fn begin(&self) {
        self.has_begun.store(true, Release);
        self.begun.cancel();
    }

    /// Ready once it has begun. For one task only, and cheap where that is woken often for other reasons: what wakes it
    /// is asked for once.
    pub(super) async fn begun(&self) {
        let mut begun = pin!(self.begun.cancelled());
        let mut waiting = false;
        poll_fn(|cx| {
            if waiting && !self.has_begun() {
                return Poll::Pending;
            }
            waiting = true;
            begun.as_mut().poll(cx)
        })
        .await;
    }

    /// Ends what is left.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Ready once what is left must end.
    pub(super) async fn is_cut(&self) {
        self.cut.cancelled().await;
    }

    /// Whether it has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Acquire)
    }
}
