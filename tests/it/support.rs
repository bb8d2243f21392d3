//! What every integration test stands on: the program as a child process, a scripted upstream, and a
//! client that says exactly the bytes it is told to. Plain threads and sockets; every wait has a limit,
//! so that a test fails and never hangs.

mod client;
mod flood;
mod hookgate;
mod nats;
mod peer;
mod proxy;
mod samples;
pub(crate) mod tls;
mod upstream;
mod wire;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

pub(crate) use self::{
    client::{Answer, Connection, Delivery},
    flood::Flood,
    hookgate::{Hookgate, Setup, Webhook, program, run},
    nats::{NatsCluster, NatsServer},
    peer::Peer,
    proxy::{Cut, Proxy},
    samples::{ESC, PUBLISHED_KINDS, SAMPLES, Sample, known_answers, sample},
    upstream::{Reply, Request, Upstream},
    wire::Address,
};

/// No wait of a test is longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The secret of the known-answer signatures, and of every webhook that does not name another.
pub(crate) const SECRET: &str = "pulumi-webhook-test-secret";

/// Tests measure real sockets, whose time no one can pause.
#[expect(clippy::disallowed_types, reason = "real sockets take real time")]
pub(crate) type Instant = std::time::Instant;

/// The signature of a body as the header carries it, computed without the program's help.
pub(crate) fn signed(body: &[u8], secret: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// Whether `tests/run` has found that this machine does not let tests do something, and has said so.
pub(crate) fn cannot(what: &str) -> bool {
    #[expect(clippy::disallowed_methods, reason = "what a machine allows is nobody's configuration")]
    let cannot = std::env::var("HOOKGATE_TESTS_CANNOT").unwrap_or_default();
    cannot.split_whitespace().any(|word| word == what)
}

/// Looks again and again until `look` sees something; for what only another process can change.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A door that stays shut until it is opened once; clones are the same door.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits for the door; gives up after a while so that no thread stays for ever.
    pub(crate) fn wait(&self) -> bool {
        let open = self.0.0.lock().unwrap();
        *self.0.1.wait_timeout_while(open, PATIENCE * 2, |open| !*open).unwrap().0
    }
}

/// A list that threads add to and tests wait on.
#[derive(Debug)]
pub(crate) struct Journal<T> {
    state: Mutex<(Vec<T>, bool)>,
    changed: Condvar,
}

impl<T> Default for Journal<T> {
    fn default() -> Self {
        Self { state: Mutex::new((Vec::new(), false)), changed: Condvar::new() }
    }
}

impl<T: Clone> Journal<T> {
    pub(crate) fn push(&self, entry: T) {
        self.state.lock().unwrap().0.push(entry);
        self.changed.notify_all();
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.state.lock().unwrap().0.clone()
    }

    /// Waits until `look` finds what it wants among the entries; `None` when the journal is closed first
    /// or the time is up.
    pub(crate) fn wait<R>(&self, mut look: impl FnMut(&[T]) -> Option<R>) -> Option<R> {
        let start = Instant::now();
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(found) = look(&state.0) {
                return Some(found);
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            if state.1 || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits until the journal is closed; false when the time is up first.
    pub(crate) fn wait_closed(&self) -> bool {
        let state = self.state.lock().unwrap();
        self.changed.wait_timeout_while(state, PATIENCE, |state| !state.1).unwrap().0.1
    }
}

/// A folder of its own for each test, gone at the end.
#[derive(Debug)]
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("hookgate-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the folder and returns its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// libfaketime, wherever Debian puts it.
pub(crate) fn faketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path().join("faketime"));
    let mut libraries = folders.map(|folder| folder.join("libfaketimeMT.so.1")).filter(|file| file.exists());
    libraries.next().expect("libfaketime of the package `faketime`")
}
