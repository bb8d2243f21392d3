//! Notices that files have changed: the configuration and every file that it names.
//!
//! It looks at them once a second. That needs no help of the kernel, and it sees what a watch on a path misses:
//! Kubernetes exchanges mounted files by a symlink two folders up, and some file systems send no events at all.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

/// How often files are looked at. A change is acted on after two looks, well within five seconds.
const EVERY: Duration = Duration::from_secs(1);

/// The watched files and how they looked last.
#[derive(Debug)]
pub(super) struct Watch {
    files: Vec<PathBuf>,
    seen: Vec<Look>,
}

/// What of a file changes with its content: device, inode, size, and both times in nanoseconds.
/// `None`: it is not there, or may not be looked at.
type Look = Option<[i128; 5]>;

impl Watch {
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        let seen = look(&files);
        Self { files, seen }
    }

    pub(super) fn into_files(self) -> Vec<PathBuf> {
        self.files
    }

    /// Watches other files from now on. Those that were watched already keep their last look.
    pub(super) fn also(&mut self, files: Vec<PathBuf>) {
        let seen = files.iter().map(|file| match self.files.iter().position(|known| known == file) {
            Some(at) => self.seen.get(at).copied().flatten(),
            None => look_at(file),
        });
        self.seen = seen.collect();
        self.files = files;
    }

    /// Waits until the files have changed, and have not changed again for a second: whoever writes them may not
    /// have finished.
    pub(super) async fn changed(&mut self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = None;
        loop {
            ticks.tick().await;
            let now = look(&self.files);
            if now == self.seen {
                before = None;
            } else if before.as_ref() == Some(&now) {
                self.seen = now;
                return;
            } else {
                before = Some(now);
            }
        }
    }
}

fn look(files: &[PathBuf]) -> Vec<Look> {
    files.iter().map(|file| look_at(file)).collect()
}

fn look_at(file: &Path) -> Look {
    let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let meta = fs::metadata(file).ok()?;
    Some([
        meta.dev().into(),
        meta.ino().into(),
        meta.size().into(),
        time(meta.mtime(), meta.mtime_nsec()),
        time(meta.ctime(), meta.ctime_nsec()),
    ])
}
