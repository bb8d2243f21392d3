//! Work with files, away from the threads that serve, for a limited time.
//!
//! Opening a pipe that nobody writes to never ends, nor does a look at a file system that is gone, and a thread that
//! waits for either cannot be stopped. So it is left alone after a while. What it brings back then is thrown away, and
//! only so many may be away at a time.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

/// How long one look may take: at least so long, and less than twice as long. Reading has less, and says which file it is
/// that hangs: see [`crate::files`].
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts threads, and knows how many of them are not back.
#[derive(Debug)]
pub(super) struct Aside {
    most: usize,
    /// Each of them has one more.
    away: Arc<()>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotDone {
    /// It takes too long at this file, and is left alone.
    #[error("{} is still not read after {PATIENCE:?}: is it a pipe, or on a file system that hangs?", .0.display())]
    Hangs(PathBuf),
    /// Too many are left alone.
    #[error("{0} threads wait for files that cannot be read: repair the file system, or restart hookgate")]
    TooMany(usize),
    /// It panicked.
    #[error("the thread that reads failed")]
    Failed,
    /// There is no thread.
    #[error("cannot start a thread: {0}")]
    NoThread(#[from] io::Error),
}

/// Which file is at work, and the how many-th it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<Mutex<(PathBuf, u64)>>);

impl Progress {
    /// This file is next.
    pub(super) fn at(&self, file: &Path) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = (file.to_owned(), now.1 + 1);
    }

    fn get(&self) -> (PathBuf, u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Aside {
    /// At most so many are left alone.
    pub(super) fn new(most: usize) -> Self {
        Self { most, away: Arc::default() }
    }

    /// How many are not back.
    pub(super) fn away(&self) -> usize {
        Arc::strong_count(&self.away) - 1
    }

    /// Waits until all are back, and a moment at least.
    pub(super) async fn all_are_back(&self) {
        loop {
            sleep(Duration::from_secs(1)).await;
            if self.away() == 0 {
                return;
            }
        }
    }

    /// Does work, which says at which file it is. The end of the service does not wait for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Progress) -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        if self.away() >= self.most {
            return Err(NotDone::TooMany(self.away()));
        }
        let (done, mut result) = oneshot::channel();
        let progress = Progress::default();
        let (away, at_work) = (Arc::clone(&self.away), progress.clone());
        thread::Builder::new().name("files".into()).spawn(move || {
            let result = work(&at_work);
            drop(away);
            drop(done.send(result));
        })?;
        let mut before = 0;
        loop {
            if let Ok(result) = timeout(PATIENCE, &mut result).await {
                return result.map_err(|_dropped| NotDone::Failed);
            }
            match progress.get() {
                (file, number) if number == before => return Err(NotDone::Hangs(file)),
                (_, number) => before = number,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_come_back_is_left_alone_and_only_so_many() {
        let aside = Aside::new(2);
        let mut held = Vec::new();
        for away in 1..=2 {
            let (hold, wait) = channel::<()>();
            held.push(hold);
            let hung = aside.run(move |progress| {
                progress.at(Path::new("/a/pipe"));
                wait.recv().is_err()
            });
            // The thread, which lives by the clock on the wall, may not have begun.
            assert!(matches!(hung.await, Err(NotDone::Hangs(_))));
            assert_eq!(aside.away(), away);
        }
        assert!(matches!(aside.run(|_| ()).await, Err(NotDone::TooMany(2))));
        tokio::time::resume();
        held.clear();
        aside.all_are_back().await;
        assert_eq!(aside.run(|_| 5).await.ok(), Some(5));
        assert!(matches!(aside.run(|_| assert_eq!(1, 2)).await, Err(NotDone::Failed)));
        aside.all_are_back().await;
    }

    /// Many slow files are not a file that hangs.
    #[tokio::test(start_paused = true)]
    async fn each_file_has_its_time() {
        let aside = Aside::new(1);
        let ((next, wait), (at, seen)) = (channel::<()>(), channel::<()>());
        let work = aside.run(move |progress| {
            for number in 0..5 {
                progress.at(Path::new(&format!("/{number}")));
                at.send(()).unwrap();
                wait.recv().unwrap();
            }
        });
        let steps = async {
            for _ in 0..5 {
                // The thread lives by the clock on the wall.
                seen.recv().unwrap();
                sleep(PATIENCE * 2 / 3).await;
                next.send(()).unwrap();
            }
        };
        tokio::select! {
            biased;
            done = work => panic!("{done:?}"),
            () = steps => {}
        }
    }
}
