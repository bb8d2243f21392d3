//! How a file looks from outside, to tell later whether it has changed.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use crate::files::Patience;

/// What of a file changes with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look(Option<[i128; 5]>);

impl Look {
    /// As it looks now. One that is not there, or may not be looked at, has a look too.
    #[must_use]
    pub fn at(file: &Path) -> Self {
        Self(look_at(file))
    }

    /// As [`Look::at`], but does not wait for a file system that hangs. What cannot be looked at looks as if it were not
    /// there.
    #[must_use]
    pub fn within(patience: &Patience, file: &Path) -> Self {
        let file = file.to_owned();
        Self(patience.within(move || look_at(&file)).flatten())
    }
}

/// Device, inode, size, and both times in nanoseconds. Of a pipe or a device only the first two: reading alone changes
/// the rest.
fn look_at(file: &Path) -> Option<[i128; 5]> {
    let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let meta = fs::metadata(file).ok()?;
    if !meta.is_file() {
        return Some([meta.dev().into(), meta.ino().into(), 0, 0, 0]);
    }
    Some([
        meta.dev().into(),
        meta.ino().into(),
        meta.size().into(),
        time(meta.mtime(), meta.mtime_nsec()),
        time(meta.ctime(), meta.ctime_nsec()),
    ])
}
