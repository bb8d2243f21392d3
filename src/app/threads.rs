//! Threads of the service, each with a runtime of its own.

use std::thread;

use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::runtime;

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
