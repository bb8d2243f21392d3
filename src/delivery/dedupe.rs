//! Telling duplicates: what was delivered within a window, and what is being delivered now.
//!
//! In memory, and bounded: of more than [`CAPACITY`] deliveries within the window the oldest are forgotten, and a
//! copy of one of these would be delivered again. Only what the upstream accepted is remembered; a failed delivery
//! is forgotten, so that a redelivery, which carries the same ID, gets through.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use xxhash_rust::xxh3::xxh3_128_with_seed;

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
    entries: HashMap<u128, Entry<T>, BuildHasherDefault<Digest>>,
    /// Delivered ones by age.
    delivered: VecDeque<(Instant, u128)>,
}

#[derive(Debug)]
struct Entry<T> {
    body: u128,
    state: State<T>,
}

#[derive(Debug)]
enum State<T> {
    /// Being delivered; these copies wait for the answer.
    Delivering(Vec<oneshot::Sender<T>>),
    /// Delivered.
    Delivered,
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
    /// it has to wait all the same: whether the ID is taken is not known yet.
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
        let table = Table { entries: HashMap::default(), delivered: VecDeque::new() };
        Self { window: settings.window, seed: fastrand::u64(..), table: Mutex::new(table) }
    }

    /// Claims the ID of a delivery of a webhook.
    pub fn claim(&self, webhook: &str, id: &str, body: &[u8]) -> Claim<'_, T> {
        if self.window.is_zero() {
            return Claim::New(Delivering { memory: self, key: None });
        }
        // Only verified bodies come here, so nobody can make two of one digest without the secret.
        let key = self.digest(id.as_bytes()) ^ self.digest(webhook.as_bytes()).rotate_left(1);
        let body = self.digest(body);
        let mut table = self.lock();
        table.forget(Instant::now(), self.window);
        match table.entries.get_mut(&key) {
            None => {
                table.entries.insert(key, Entry { body, state: State::Delivering(Vec::new()) });
                Claim::New(Delivering { memory: self, key: Some(key) })
            }
            Some(Entry { body: known, state: State::Delivered }) if *known == body => Claim::Duplicate,
            Some(Entry { state: State::Delivered, .. }) => Claim::Conflict,
            Some(Entry { body: known, state: State::Delivering(waiting) }) => {
                let (sender, answer) = oneshot::channel();
                waiting.push(sender);
                Claim::Wait { same: *known == body, answer }
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
    /// Forgets what is older than the window, and the oldest of too many.
    fn forget(&mut self, now: Instant, window: Duration) {
        while let Some((since, key)) = self.delivered.front() {
            if now.duration_since(*since) < window && self.delivered.len() <= CAPACITY {
                return;
            }
            self.entries.remove(key);
            self.delivered.pop_front();
        }
    }
}

/// The hash of a key that is a digest already, made with a seed that nobody else knows.
#[derive(Debug, Default)]
struct Digest(u64);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        let (low, _) = bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
        self.0 ^= u64::from_ne_bytes(*low);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A delivery on its way. Dropped without an answer it is forgotten, and copies that wait try for themselves.
pub struct Delivering<'m, T: Clone> {
    memory: &'m Memory<T>,
    key: Option<u128>,
}

impl<T: Clone> Delivering<'_, T> {
    /// Ends the delivery: remembers it if the upstream accepted it, and gives copies that wait the answer.
    pub fn finish(mut self, delivered: bool, answer: &T) {
        let Some(key) = self.key.take() else { return };
        let mut table = self.memory.lock();
        let Some(entry) = table.entries.get_mut(&key) else { return };
        let was = std::mem::replace(&mut entry.state, State::Delivered);
        if delivered {
            table.delivered.push_back((Instant::now(), key));
        } else {
            table.entries.remove(&key);
        }
        drop(table);
        if let State::Delivering(waiting) = was {
            for copy in waiting {
                // A copy whose sender hung up needs no answer.
                drop(copy.send(answer.clone()));
            }
        }
    }
}

impl<T: Clone> Drop for Delivering<'_, T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.memory.lock().entries.remove(&key);
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

    fn deliver(memory: &Memory<u16>, id: &str, body: &[u8], delivered: bool) {
        match memory.claim("w", id, body) {
            Claim::New(delivering) => delivering.finish(delivered, &200),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_delivered_is_remembered_for_the_window() {
        let memory = memory(Duration::from_secs(10));
        deliver(&memory, "a", b"1", true);
        assert!(matches!(memory.claim("w", "a", b"1"), Claim::Duplicate));
        assert!(matches!(memory.claim("w", "a", b"2"), Claim::Conflict));
        assert!(matches!(memory.claim("v", "a", b"2"), Claim::New(_)));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(matches!(memory.claim("w", "a", b"2"), Claim::New(_)));
    }

    #[tokio::test]
    async fn what_failed_or_was_given_up_is_forgotten() {
        let memory = memory(Duration::from_secs(10));
        deliver(&memory, "a", b"1", false);
        drop(memory.claim("w", "a", b"1"));
        deliver(&memory, "a", b"2", true);
        assert!(matches!(memory.claim("w", "a", b"2"), Claim::Duplicate));
    }

    #[tokio::test]
    async fn copies_wait_for_the_first_ones_answer() {
        let memory = memory(Duration::from_secs(10));
        let Claim::New(first) = memory.claim("w", "a", b"1") else { panic!() };
        let Claim::Wait { same: true, answer } = memory.claim("w", "a", b"1") else { panic!() };
        let Claim::Wait { same: false, answer: other } = memory.claim("w", "a", b"2") else { panic!() };
        first.finish(false, &503);
        assert_eq!((answer.await, other.await), (Ok(503), Ok(503)));

        let Claim::New(first) = memory.claim("w", "a", b"1") else { panic!() };
        let Claim::Wait { answer, .. } = memory.claim("w", "a", b"1") else { panic!() };
        drop(first);
        assert!(answer.await.is_err());
    }

    #[tokio::test]
    async fn without_a_window_nothing_is_remembered() {
        let memory = memory(Duration::ZERO);
        let first = memory.claim("w", "a", b"1");
        assert!(matches!(memory.claim("w", "a", b"1"), Claim::New(_)));
        drop(first);
        deliver(&memory, "a", b"1", true);
        assert!(matches!(memory.claim("w", "a", b"2"), Claim::New(_)));
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let memory = memory(Duration::from_secs(1000));
        for n in 0..CAPACITY + 100 {
            deliver(&memory, &n.to_string(), b"1", true);
        }
        drop(memory.claim("w", "x", b""));
        assert!(memory.lock().entries.len() <= CAPACITY);
        assert!(matches!(memory.claim("w", "0", b"1"), Claim::New(_)));
        assert!(matches!(memory.claim("w", &(CAPACITY + 99).to_string(), b"1"), Claim::Duplicate));
    }
}
