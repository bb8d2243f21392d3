//! Notices that files have changed: the configuration and every file that it names.
//!
//! It looks at them once a second. That needs no help of the kernel, and it sees what a watch on a path misses:
//! Kubernetes exchanges mounted files by a symlink two folders up, and some file systems send no events at all.
//! A look at a file system that is gone does not end, so that the threads that serve do not look themselves: see [`Aside`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::aside::{Aside, NotDone};
use crate::config::Look;

/// How often files are looked at. A change is acted on after two looks, well within five seconds.
const EVERY: Duration = Duration::from_secs(1);

/// The watched files and how they looked last.
#[derive(Debug)]
pub(super) struct Watch {
    files: Vec<PathBuf>,
    seen: Vec<Look>,
}

impl Watch {
    pub(super) fn new(files: Vec<PathBuf>, tell: &dyn Fn(&Path)) -> Self {
        let seen = look(&files, tell);
        Self { files, seen }
    }

    /// Watches files that looked like this before they were read.
    pub(super) const fn since(files: Vec<PathBuf>, seen: Vec<Look>) -> Self {
        Self { files, seen }
    }

    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether the files look as they did, and all of these are among them.
    pub(super) fn stood_still(&self, files: &[PathBuf], tell: &dyn Fn(&Path)) -> bool {
        files.iter().all(|file| self.files.contains(file)) && look(&self.files, tell) == self.seen
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
    ///
    /// # Errors
    ///
    /// They cannot be looked at. As long as that is so, nobody else tries.
    pub(super) async fn changed(&mut self, aside: &Aside) -> Result<(), NotDone> {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = None;
        loop {
            ticks.tick().await;
            if aside.away() > 0 {
                continue;
            }
            let files = self.files.clone();
            let now = aside.run(move |progress| look(&files, &|file| progress.at(file))).await?;
            if now == self.seen {
                before = None;
            } else if before.as_ref() == Some(&now) {
                self.seen = now;
                return Ok(());
            } else {
                before = Some(now);
            }
        }
    }
}

fn look(files: &[PathBuf], tell: &dyn Fn(&Path)) -> Vec<Look> {
    let look = |file: &PathBuf| {
        tell(file);
        Look::at(file)
    };
    files.iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hookgate-watch-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn what_is_replaced_deleted_or_not_looked_at_did_not_stand_still() {
        let folder = Folder::new("files");
        let (one, two) = (folder.0.join("one"), folder.0.join("two"));
        fs::write(&one, "1").unwrap();
        let both = vec![one.clone(), two.clone()];
        let watch = Watch::new(both.clone(), &|_| {});
        assert!(watch.stood_still(&both, &|_| {}));
        assert!(watch.stood_still(&both[..1], &|_| {}));
        assert!(!watch.stood_still(&[folder.0.join("three")], &|_| {}));
        // It appears.
        fs::write(&two, "2").unwrap();
        assert!(!watch.stood_still(&both, &|_| {}));
        // It is replaced by one of the same size.
        let watch = Watch::new(both.clone(), &|_| {});
        fs::write(folder.0.join("new"), "3").unwrap();
        fs::rename(folder.0.join("new"), &two).unwrap();
        assert!(!watch.stood_still(&both, &|_| {}));
        let watch = Watch::new(both.clone(), &|_| {});
        fs::remove_file(&one).unwrap();
        assert!(!watch.stood_still(&both, &|_| {}));
    }

    #[test]
    fn a_link_in_the_middle_of_a_path_is_followed() {
        let folder = Folder::new("links");
        for version in ["..1", "..2"] {
            fs::create_dir(folder.0.join(version)).unwrap();
            fs::write(folder.0.join(version).join("secret"), "same").unwrap();
        }
        symlink("..1", folder.0.join("..data")).unwrap();
        symlink("..data/secret", folder.0.join("secret")).unwrap();
        let files = vec![folder.0.join("secret")];
        let watch = Watch::new(files.clone(), &|_| {});
        symlink("..2", folder.0.join("..tmp")).unwrap();
        fs::rename(folder.0.join("..tmp"), folder.0.join("..data")).unwrap();
        assert!(!watch.stood_still(&files, &|_| {}));
    }

    #[test]
    fn files_are_added_once_and_left_out_with_their_looks() {
        let files: Vec<_> = ["/a", "/b"].map(PathBuf::from).into();
        let mut watch = Watch::new(files.clone(), &|_| {});
        watch.only(&[PathBuf::from("/b"), PathBuf::from("/c")]);
        assert_eq!((watch.files(), watch.seen.len()), (&files[1..], 1));
        assert_eq!(watch.and(&files), ["/b", "/a"].map(PathBuf::from));
    }
}
