//! The connections of a listener: how many may be open, and who gives way when all places are taken.
//!
//! A newcomer never waits for the deadline of a connection that does nothing. When no place is free, the connection that
//! has made no progress for the longest time loses its place: one that has not sent a byte of a head, one whose head stays
//! unfinished, one whose body comes slower than `SLOWEST_BODY`, one that is idle between two requests, one whose peer does not
//! read its answer. A connection whose delivery is being handled never does, and one that has carried a verified delivery
//! only after a time in which any other would have.
//!
//! A connection says since when it waits for its peer (`Place::waits`) and when it does not (`Place::works`). What has
//! arrived from the peer is looked at before the place is given up, so that nobody loses it who has just sent something.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    task::{Context, Waker},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

/// Who waits for less than this is not asked to give way: the first bytes may be on their way.
const GRACE: Duration = Duration::from_millis(10);

/// How much longer than others a connection may wait that has carried a verified delivery.
const PROVEN: Duration = Duration::from_secs(5);

/// A body that comes slower than so many bytes a second makes no progress.
const SLOWEST_BODY: u64 = 16 << 10;

/// How many of those who wait longest are looked for at a time: at the least one, and no more than a part of all.
const PART_OF_ALL: usize = 32;

/// All connections of a listener, over all of its threads.
#[derive(Debug)]
pub struct Crowd {
    permits: Arc<Semaphore>,
    /// What times are counted from.
    epoch: Instant,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    places: Vec<Arc<Place>>,
    /// Who waits longest as of the last look, the longest last, with since when.
    next: Vec<(u64, Arc<Place>)>,
}

/// The place of an open connection.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    /// Its index among all places.
    index: AtomicUsize,
    /// Since when it waits for its peer, in microseconds since the crowd's epoch; `WORKS`: it does not.
    since: AtomicU64,
    proven: AtomicBool,
    asked: AtomicBool,
    /// Wakes the connection's task.
    waker: Mutex<Option<Waker>>,
}

/// It does not wait for its peer.
const WORKS: u64 = u64::MAX;

impl Crowd {
    /// Room for `max` connections.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(max));
        Arc::new(Self { permits, epoch: Instant::now(), members: Mutex::default() })
    }

    /// Whether all places are taken.
    pub(super) fn is_full(&self) -> bool {
        self.permits.available_permits() == 0
    }

    /// A place's permit, as soon as there is one. While there is none, somebody is asked to give way, and `evicted` is
    /// called for each.
    pub(super) async fn admit(&self, evicted: impl Fn()) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
                return Some(permit);
            }
            if self.evict() {
                evicted();
            }
            // Nobody may be there who can go now, and who was asked may have got something to do in that moment.
            if let Ok(permit) = timeout(GRACE, Arc::clone(&self.permits).acquire_owned()).await {
                return permit.ok();
            }
        }
    }

    /// Opens a place that waits for its peer from now on. It is closed when it is dropped.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        let mut members = self.lock();
        let place = Arc::new(Place {
            crowd: Arc::clone(self),
            index: AtomicUsize::new(members.places.len()),
            since: AtomicU64::new(self.at(Instant::now())),
            proven: AtomicBool::default(),
            asked: AtomicBool::default(),
            waker: Mutex::default(),
        });
        members.places.push(Arc::clone(&place));
        Open(place)
    }

    /// Asks the connection that has made no progress for the longest time to give way. Whether there was one.
    fn evict(&self) -> bool {
        let mut members = self.lock();
        let mut looked = false;
        loop {
            while let Some((since, place)) = members.next.pop() {
                if place.since.load(Relaxed) == since && !place.asked.swap(true, AcqRel) {
                    drop(members);
                    place.wake();
                    return true;
                }
            }
            if looked {
                return false;
            }
            looked = true;
            members.look(self.at(Instant::now()));
        }
    }

    fn at(&self, time: Instant) -> u64 {
        micros(time.saturating_duration_since(self.epoch))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// Finds those who wait longest.
    fn look(&mut self, now: u64) {
        let mut waiting: Vec<(u64, u64, &Arc<Place>)> = Vec::with_capacity(self.places.len());
        for place in &self.places {
            let since = place.since.load(Relaxed);
            // Who works has a time that never comes.
            if since.saturating_add(micros(GRACE)) <= now && !place.asked.load(Relaxed) {
                let bonus = if place.proven.load(Relaxed) { micros(PROVEN) } else { 0 };
                waiting.push((since.saturating_add(bonus), since, place));
            }
        }
        let wanted = (self.places.len() / PART_OF_ALL).max(1);
        if waiting.len() > wanted {
            waiting.select_nth_unstable_by_key(wanted - 1, |(rank, _, _)| *rank);
            waiting.truncate(wanted);
        }
        waiting.sort_unstable_by_key(|(rank, _, _)| std::cmp::Reverse(*rank));
        self.next = waiting.into_iter().map(|(_, since, place)| (since, Arc::clone(place))).collect();
    }
}

/// A place as long as its connection is open.
#[derive(Debug)]
pub(super) struct Open(Arc<Place>);

impl Open {
    /// For what the connection's parts share.
    pub(super) fn place(&self) -> Arc<Place> {
        Arc::clone(&self.0)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut members = self.0.crowd.lock();
        let index = self.0.index.load(Relaxed);
        drop(members.places.swap_remove(index));
        if let Some(moved) = members.places.get(index) {
            moved.index.store(index, Relaxed);
        }
        drop(members);
        self.0.works();
    }
}

impl Place {
    /// All connections.
    pub(super) fn crowd(&self) -> &Crowd {
        &self.crowd
    }

    /// Makes `cx` what wakes the connection when it must give way: that of its task, which stays the same.
    pub(super) fn wake_by(&self, cx: &Context<'_>) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
    }

    fn wake(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// It waits for its peer, since then.
    pub(super) fn waits(&self, since: Instant) {
        self.since.store(self.crowd.at(since), Relaxed);
    }

    /// So many bytes of a body came, which excuse some of the wait.
    pub(super) fn progresses(&self, bytes: u64) {
        let since = self.since.load(Relaxed);
        if since != WORKS {
            let excused = since.saturating_add(bytes.saturating_mul(1_000_000) / SLOWEST_BODY);
            self.since.store(excused.min(self.crowd.at(Instant::now())), Relaxed);
        }
    }

    /// It does not wait for its peer.
    pub(super) fn works(&self) {
        self.since.store(WORKS, Relaxed);
    }

    /// It has carried a verified delivery.
    pub(super) fn proves_itself(&self) {
        self.proven.store(true, Relaxed);
    }

    /// Whether it must give way as soon as it waits for its peer.
    pub(super) fn has_to_go(&self) -> bool {
        self.asked.load(Acquire)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::time::advance;

    use super::*;

    /// Who is asked to give way, one after the other, until nobody is left who could.
    fn evicted(crowd: &Crowd, open: &[Open]) -> Vec<usize> {
        let asked = || (0..open.len()).filter(|at| open[*at].0.has_to_go()).collect::<Vec<_>>();
        let mut order = Vec::new();
        let mut before = asked();
        while crowd.evict() {
            let now = asked();
            order.extend(now.iter().filter(|at| !before.contains(at)));
            before = now;
        }
        order
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_longest_goes_first_and_who_works_stays() {
        let crowd = Crowd::new(8);
        let open: Vec<_> = (0..6).map(|_| crowd.open()).collect();
        advance(Duration::from_secs(1)).await;
        open[0].0.waits(Instant::now());
        advance(Duration::from_secs(1)).await;
        open[1].0.works();
        open[2].0.waits(Instant::now());
        advance(Duration::from_secs(1)).await;
        open[3].0.waits(Instant::now());
        open[4].0.proves_itself();
        // 3 has only just begun to wait.
        assert_eq!(evicted(&crowd, &open), [5, 0, 2, 4]);
        advance(GRACE).await;
        assert_eq!(evicted(&crowd, &open), [3]);
        assert!(!open[1].0.has_to_go());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_is_progress_and_one_that_drips_is_not() {
        let crowd = Crowd::new(8);
        let open: Vec<_> = (0..3).map(|_| crowd.open()).collect();
        for _ in 0..100 {
            advance(Duration::from_millis(100)).await;
            open[0].0.progresses(1);
            open[1].0.progresses(SLOWEST_BODY / 10);
            open[2].0.progresses(SLOWEST_BODY);
        }
        assert_eq!(evicted(&crowd, &open), [0], "0 waits for 10 s less 100 bytes, the others do not wait");
        advance(GRACE).await;
        assert_eq!(evicted(&crowd, &open).len(), 2);
    }

    /// What was seen at the last look is not believed when somebody must go.
    #[tokio::test(start_paused = true)]
    async fn who_has_made_progress_since_the_last_look_stays() {
        let crowd = Crowd::new(200);
        let open: Vec<_> = (0..100).map(|_| crowd.open()).collect();
        advance(Duration::from_secs(1)).await;
        assert!(crowd.evict());
        open.iter().for_each(|open| open.0.works());
        assert!(!crowd.evict());
    }

    #[tokio::test(start_paused = true)]
    async fn places_that_close_are_gone_and_the_others_found_still() {
        let crowd = Crowd::new(8);
        let mut open: Vec<_> = (0..5).map(|_| crowd.open()).collect();
        drop(open.remove(1));
        drop(open.remove(3));
        drop(open.remove(0));
        advance(Duration::from_secs(1)).await;
        assert_eq!(crowd.lock().places.len(), 2);
        assert_eq!(evicted(&crowd, &open).len(), 2);
        drop(open);
        assert!(crowd.lock().places.is_empty() && !crowd.evict());
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_gets_the_place_of_who_gives_way() {
        let crowd = Crowd::new(1);
        let asked = AtomicU32::default();
        let admit = || {
            crowd.admit(|| {
                asked.fetch_add(1, Relaxed);
            })
        };
        let permit = admit().await.unwrap();
        let first = crowd.open();
        assert!(crowd.is_full());
        let (second, ()) = tokio::join!(admit(), async {
            while !first.0.has_to_go() {
                advance(Duration::from_millis(1)).await;
            }
            drop((first, permit));
        });
        assert!(second.is_some());
        assert_eq!(asked.load(Relaxed), 1);
    }
}
