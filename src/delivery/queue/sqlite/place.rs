//! Where the file is: that it is there, that it is still the one that is open, and that no other service uses it.

use std::{
    ffi::OsString,
    fs::{self, File, Permissions, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tokio::time::Instant;
use tracing::info;

use super::schema::{OpenError, PATIENCE, Why};

/// How often it looks meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// Nobody but the service's user may read what is in the queue, and send it again.
const MODE: u32 = 0o600;

/// A file that is open, and what belongs to it.
#[derive(Debug)]
pub(super) struct Place {
    /// As it is configured.
    given: PathBuf,
    /// Without symbolic links: what belongs to it is beside this.
    pub(super) path: PathBuf,
    /// The lock is on the file itself, however it is reached, and lasts as long as this is open. SQLite's own locks on it
    /// end when this is closed: that must be after its connections are.
    lock: File,
    files: [(u64, u64); 3],
}

/// What has become of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Whole,
    Replaced,
    /// The file, or the log that belongs to it.
    Missing,
}

impl Place {
    /// Makes sure that there is a file, and that this is the only service on it. Blocks.
    pub(super) fn take(given: &Path) -> Result<Self, OpenError> {
        let unusable = |error: io::Error| Why::unusable(given, &error);
        let (began, mut told) = (Instant::now(), false);
        loop {
            let lock = open(given).map_err(unusable)?;
            let file = identity_of(&lock).map_err(unusable)?;
            match lock.try_lock() {
                // It may have been put back meanwhile, as another file.
                Ok(()) if identity(given).is_ok_and(|found| found == file) => {
                    let path = fs::canonicalize(given).map_err(unusable)?;
                    return Ok(Self { given: given.to_owned(), path, lock, files: [file; 3] });
                }
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
            }
            if began.elapsed() >= PATIENCE {
                let by = holder(file.1).map_or_else(String::new, |process| format!(" (process {process})"));
                return Err(Why::InUse(by).of(given));
            }
            if !std::mem::replace(&mut told, true) {
                info!(path = %given.display(), limit = ?PATIENCE, "another hookgate has the queue open: waiting for its end");
            }
            thread::park_timeout(LOOK);
        }
    }

    /// A file that will be moved to its place, which is that of `before`.
    pub(super) fn prepare(before: &Self, copy: PathBuf) -> io::Result<Self> {
        let lock = open(&copy)?;
        lock.try_lock()?;
        let file = identity_of(&lock)?;
        Ok(Self { given: before.given.clone(), path: copy, lock, files: [file; 3] })
    }

    /// Flushes what another connection wrote to it.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.lock.sync_all()
    }

    /// Takes note of the files that SQLite has open now.
    pub(super) fn note(&mut self) -> io::Result<()> {
        let paths = [self.path.clone(), self.beside("-wal"), self.beside("-shm")];
        for (file, path) in self.files.iter_mut().zip(paths) {
            *file = identity(&path)?;
            // One that belongs to somebody else is used as it is.
            drop(fs::set_permissions(path, Permissions::from_mode(MODE)));
        }
        Ok(())
    }

    /// Whether what is open is what the next start will open.
    pub(super) fn look(&self) -> Found {
        let [file, log, index] = self.files;
        match identity(&self.given) {
            Ok(found) if found != file => Found::Replaced,
            Err(_) => Found::Missing,
            Ok(_) => {
                let is =
                    |suffix, expected| identity(&self.beside(suffix)).is_ok_and(|found| found == expected);
                if is("-wal", log) && is("-shm", index) { Found::Whole } else { Found::Missing }
            }
        }
    }

    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        beside(&self.path, suffix)
    }
}

/// A file beside another one.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Removes a file that may be absent.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The length of the write-ahead log of a file.
pub(super) fn log_length(path: &Path) -> u64 {
    fs::metadata(beside(path, "-wal")).map_or(0, |file| file.len())
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(MODE).open(path)
}

/// Device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

fn identity_of(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|file| (file.dev(), file.ino()))
}

/// The process that holds the lock, where the kernel says so: `1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF`.
fn holder(inode: u64) -> Option<u32> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, file, ..] = words.as_slice() else { return None };
        let is_it = file.rsplit(':').next()?.parse() == Ok(inode);
        is_it.then(|| process.parse().ok()).flatten()
    })
}
