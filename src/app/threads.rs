//! Threads of the service, each with a runtime of its own.

use std::{io, thread, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

/// A runtime for [`App::run`](super::App::run).
///
/// # Errors
///
/// What the kernel says.
pub fn runtime() -> io::Result<Runtime> {
    // Blocking threads only resolve names, for each destination one at a time.
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(5))
        .build()
}

/// Does `work` on a thread of its own. A task in `tasks` ends when it has ended; what it has spawned goes on until `over`.
pub(super) fn spawn(
    name: &str,
    work: impl Future<Output = ()> + Send + 'static,
    over: CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    let (ended, end) = oneshot::channel::<()>();
    let named = name.to_owned();
    let thread = thread::Builder::new().name(named.clone()).spawn(move || match runtime() {
        Ok(runtime) => runtime.block_on(async {
            work.await;
            drop(ended);
            over.cancelled().await;
        }),
        Err(error) => error!(%error, thread = named, "cannot start this thread's runtime"),
    });
    match thread {
        // It ends when its sender is dropped, at the thread's end.
        Ok(_thread) => drop(tasks.spawn(async move { drop(end.await) })),
        Err(error) => error!(%error, thread = name, "cannot start this thread"),
    }
}
