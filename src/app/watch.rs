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

    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether the files look as they did, and all of these are among them.
    pub(super) fn stood_still(&self, files: &[PathBuf]) -> bool {
        files.iter().all(|file| self.files.contains(file)) && look(&self.files) == self.seen
    }

    /// Its files and these.
    pub(super) fn and(self, others: &[PathBuf]) -> Vec<PathBuf> {
        let mut files = self.files;
        let new: Vec<_> = others.iter().filter(|other| !files.contains(other)).cloned().collect();
        files.extend(new);
        files
    }

    /// Watches only these of its files from now on. They keep their last look.
    pub(super) fn only(&mut self, files: &[PathBuf]) {
        let old = std::mem::take(&mut self.files).into_iter().zip(std::mem::take(&mut self.seen));
        (self.files, self.seen) = old.filter(|(file, _)| files.contains(file)).unzip();
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
