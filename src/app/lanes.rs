//! The threads that serve requests.

use std::{sync::Arc, thread};

use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{runtime, serve};
use crate::ingress::{
    listener::Listener,
    receive::Gate,
    server::{self, Drain},
    tls as server_tls,
};

/// A thread for each lane, the first on this runtime. A connection stays on the lane that accepted it, with its
/// upstream connections, so lanes share next to nothing.
pub(super) fn spawn_lanes(
    listener: &Listener,
    tls: Option<&server_tls::Tls>,
    settings: &server::Settings,
    gate: &Gate,
    lanes: usize,
    drain: &Drain,
    over: &CancellationToken,
) -> JoinSet<()> {
    let permits = Arc::new(Semaphore::new(settings.max_connections));
    let mut tasks = JoinSet::new();
    for lane in 0..lanes {
        let listener = match listener.try_clone() {
            Ok(listener) => listener,
            Err(error) => {
                error!(%error, lane, "cannot share the listener with this thread");
                continue;
            }
        };
        let gate = Gate { lane, ..gate.clone() };
        let serving =
            serve(listener, tls.cloned(), settings.clone(), Arc::clone(&permits), gate, drain.clone());
        if lane == 0 {
            tasks.spawn(serving);
            continue;
        }
        let (ended, end) = oneshot::channel::<()>();
        let over = over.clone();
        let thread = thread::Builder::new().name(format!("lane-{lane}")).spawn(move || {
            match runtime() {
                Ok(runtime) => runtime.block_on(async {
                    serving.await;
                    drop(ended);
                    // Another lane may still be using an upstream connection that this one drives.
                    over.cancelled().await;
                }),
                Err(error) => error!(%error, lane, "cannot start this thread's runtime"),
            }
        });
        match thread {
            // It ends when its sender is dropped, at the thread's end.
            Ok(_thread) => drop(tasks.spawn(async move { drop(end.await) })),
            Err(error) => error!(%error, lane, "cannot start this thread"),
        }
    }
    tasks
}
