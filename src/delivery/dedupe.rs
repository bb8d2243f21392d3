//! Telling duplicates: what was delivered within a window, and what is being delivered now.
//!
//! In memory, and bounded: of more than [`CAPACITY`] deliveries within the window the oldest are forgotten, and a
//! copy of one of these would be delivered again. Only what the upstream accepted is remembered; a failed delivery
//! is forgotten, so that a redelivery, which carries the same ID, gets through.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// `[dedupe]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long a delivered ID is remembered. Zero: no memory of IDs at all.
    pub window: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { window: Duration::from_secs(120) }
    }
}

/// Deliveries that are remembered at a time.
pub const CAPACITY: usize = 16_384;

/// What was delivered, and what is being delivered. `T` is the answer that copies of a delivery get.
#[derive(Debug)]
pub struct Memory<T> {
    window: Duration,
    seed: u64,
    table: Mutex<Table<T>>,
}

#[derive(Debug)]
struct Table<T> {
    delivering: HashMap<Key, Underway<T>, BuildHasherDefault<Digest>>,
    /// The digest of each body.
    delivered: HashMap<Key, u64, BuildHasherDefault<Digest>>,
    /// The keys of these by age.
    by_age: VecDeque<(Instant, Key)>,
}

/// A digest of webhook and ID, as two numbers: there are many of them, and a `u128` would be padded.
type Key = [u64; 2];

/// A delivery that is being delivered now.
#[derive(Debug)]
struct Underway<T> {
    body: u64,
    /// Copies that wait for the answer.
    waiting: Vec<oneshot::Sender<T>>,
}

/// What is known of a delivery's ID.
pub enum Claim<'m, T: Clone> {
    /// Nothing: it is to be delivered, and the outcome to be told.
    New(Delivering<'m, T>),
    /// Delivered within the window.
    Duplicate,
    /// Delivered within the window, with another body.
    Conflict,
    /// A copy is being delivered now and gets the answer here. With another body the answer is not for it, but
    /// it must still wait: whether the ID is taken is not known yet.
    Wait {
        /// Whether the body is the same.
        same: bool,
        /// Its answer; an error if it came to no end.
        answer: oneshot::Receiver<T>,
    },
}

impl<T: Clone> Memory<T> {
    /// An empty memory.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let table =
            Table { delivering: HashMap::default(), delivered: HashMap::default(), by_age: VecDeque::new() };
        Self { window: settings.window, seed: fastrand::u64(..), table: Mutex::new(table) }
    }

    /// Claims the ID of a delivery of a webhook at `now`.
    pub fn claim(&self, webhook: &str, id: &str, body: &[u8], now: Instant) -> Claim<'_, T> {
        if self.window.is_zero() {
            return Claim::New(Delivering { memory: self, key: None });
        }
        // Only verified bodies come here, so nobody can make two of one digest without the secret.
        let key = self.digest(id.as_bytes()) ^ self.digest(webhook.as_bytes()).rotate_left(1);
        let (high, low) = (key >> 64, key & u128::from(u64::MAX));
        let key = [high, low].map(|half| u64::try_from(half).unwrap_or_default());
        let body = xxh3_64_with_seed(body, self.seed);
        let mut table = self.lock();
        table.forget(now, self.window);
        if let Some(known) = table.delivered.get(&key) {
            return if *known == body { Claim::Duplicate } else { Claim::Conflict };
        }
        match table.delivering.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(Underway { body, waiting: Vec::new() });
                Claim::New(Delivering { memory: self, key: Some(key) })
            }
            Entry::Occupied(mut underway) => {
                let (sender, answer) = oneshot::channel();
                underway.get_mut().waiting.push(sender);
                Claim::Wait { same: underway.get().body == body, answer }
            }
        }
    }

    fn digest(&self, bytes: &[u8]) -> u128 {
        xxh3_128_with_seed(bytes, self.seed)
    }

    fn lock(&self) -> MutexGuard<'_, Table<T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Table<T> {
    /// Forgets what is older than the window.
    fn forget(&mut self, now: Instant, window: Duration) {
        while self.by_age.front().is_some_and(|(since, _)| now.duration_since(*since) >= window) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.by_age.pop_front() {
            self.delivered.remove(&key);
        }
    }

    /// Remembers a delivery, if need be instead of the oldest one.
    fn remember(&mut self, key: Key, body: u64, now: Instant) {
        if self.by_age.len() >= CAPACITY {
            self.forget_oldest();
        }
        self.delivered.insert(key, body);
        self.by_age.push_back((now, key));
    }
}

/// The hash of a key that is a digest already, made with a seed that nobody else knows.
#[derive(Debug, Default)]
struct Digest(u64);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        let (first, _) = bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
        self.0 ^= u64::from_ne_bytes(*first);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A delivery on its way. Dropped without an answer it is forgotten, and copies that wait try for themselves.
pub struct Delivering<'m, T: Clone> {
    memory: &'m Memory<T>,
    key: Option<Key>,
}

impl<T: Clone> Delivering<'_, T> {
    /// Ends the delivery: remembers it if the upstream accepted it, which was at `delivered`, and gives copies that
    /// wait the answer.
    pub fn finish(mut self, delivered: Option<Instant>, answer: &T) {
        let Some(key) = self.key.take() else { return };
        let mut table = self.memory.lock();
        let Some(Underway { body, waiting }) = table.delivering.remove(&key) else { return };
        if let Some(now) = delivered {
            table.remember(key, body, now);
        }
        drop(table);
        for copy in waiting {
            // A copy whose sender hung up needs no answer.
            drop(copy.send(answer.clone()));
        }
    }
}

impl<T: Clone> Drop for Delivering<'_, T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.memory.lock().delivering.remove(&key);
        }
    }
}

impl<T: Clone> fmt::Debug for Delivering<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivering").finish_non_exhaustive()
    }
}

impl<T: Clone> fmt::Debug for Claim<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New(_) => "New",
            Self::Duplicate => "Duplicate",
            Self::Conflict => "Conflict",
            Self::Wait { .. } => "Wait",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(window: Duration) -> Memory<u16> {
        Memory::new(Settings { window })
    }

    fn claim<'m>(memory: &'m Memory<u16>, id: &str, body: &[u8]) -> Claim<'m, u16> {
        memory.claim("w", id, body, Instant::now())
    }

    fn deliver(memory: &Memory<u16>, id: &str, body: &[u8], delivered: bool) {
        match claim(memory, id, body) {
            Claim::New(delivering) => delivering.finish(delivered.then(Instant::now), &200),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_delivered_is_remembered_for_the_window() {
        let memory = memory(Duration::from_secs(10));
        deliver(&memory, "a", b"1", true);
        assert!(matches!(claim(&memory, "a", b"1"), Claim::Duplicate));
        assert!(matches!(claim(&memory, "a", b"2"), Claim::Conflict));
        assert!(matches!(memory.claim("v", "a", b"2", Instant::now()), Claim::New(_)));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(matches!(claim(&memory, "a", b"2"), Claim::New(_)));
    }

    #[tokio::test]
    async fn what_failed_or_was_given_up_is_forgotten() {
        let memory = memory(Duration::from_secs(10));
        deliver(&memory, "a", b"1", false);
        drop(claim(&memory, "a", b"1"));
        deliver(&memory, "a", b"2", true);
        assert!(matches!(claim(&memory, "a", b"2"), Claim::Duplicate));
    }

    #[tokio::test]
    async fn copies_wait_for_the_first_ones_answer() {
        let memory = memory(Duration::from_secs(10));
        let Claim::New(first) = claim(&memory, "a", b"1") else { panic!() };
        let Claim::Wait { same: true, answer } = claim(&memory, "a", b"1") else { panic!() };
        let Claim::Wait { same: false, answer: other } = claim(&memory, "a", b"2") else { panic!() };
        first.finish(None, &503);
        assert_eq!((answer.await, other.await), (Ok(503), Ok(503)));

        let Claim::New(first) = claim(&memory, "a", b"1") else { panic!() };
        let Claim::Wait { answer, .. } = claim(&memory, "a", b"1") else { panic!() };
        drop(first);
        assert!(answer.await.is_err());
    }

    #[tokio::test]
    async fn without_a_window_nothing_is_remembered() {
        let memory = memory(Duration::ZERO);
        let first = claim(&memory, "a", b"1");
        assert!(matches!(claim(&memory, "a", b"1"), Claim::New(_)));
        drop(first);
        deliver(&memory, "a", b"1", true);
        assert!(matches!(claim(&memory, "a", b"2"), Claim::New(_)));
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let memory = memory(Duration::from_secs(1000));
        for n in 0..CAPACITY + 100 {
            deliver(&memory, &n.to_string(), b"1", true);
        }
        drop(claim(&memory, "x", b""));
        assert!(memory.lock().delivered.len() <= CAPACITY && memory.lock().delivering.is_empty());
        assert!(matches!(claim(&memory, "0", b"1"), Claim::New(_)));
        assert!(matches!(claim(&memory, &(CAPACITY + 99).to_string(), b"1"), Claim::Duplicate));
    }
}
