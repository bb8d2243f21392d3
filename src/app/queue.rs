//! The queue as part of the service: opened at the start, served by a worker on a thread of its own, closed at the end.

use std::{sync::Arc, thread, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{build_error::BuildError, threads::runtime};
use crate::{
    delivery::{
        queue::{Queue, Recipient, Retention, Store, nats::Nats, sqlite::Sqlite},
        worker::{Recipients, Worker},
    },
    ingress::route::Routes,
};

/// The worker's own lane: with a queue, nobody else sends to destinations.
pub(super) const LANE: usize = 0;

/// How long the last commit may take.
const CLOSE: Duration = Duration::from_secs(5);

/// Opens the queue where it is kept. `window` is that of `[dedupe]`, `max_body` that of `[server]`.
pub(super) fn open(
    store: &Store,
    retention: Retention,
    window: Duration,
    max_body: usize,
) -> Result<Arc<dyn Queue>, BuildError> {
    match store {
        Store::Sqlite { path } => {
            let queue = Sqlite::open(path, retention, window)
                .map_err(|error| BuildError::Queue(error.to_string()))?;
            Ok(Arc::new(queue))
        }
        Store::Nats(settings) => {
            let queue = Nats::start(settings, retention, window, max_body)
                .map_err(|error| BuildError::Queue(format!("the queue on NATS: {error}")))?;
            Ok(Arc::new(queue))
        }
    }
}

/// Who the webhooks in force deliver to.
pub(super) fn recipients(routes: &Routes) -> Recipients {
    let recipients = routes.webhooks().flat_map(|webhook| {
        webhook.destinations.iter().map(|destination| {
            let recipient =
                Recipient { webhook: webhook.name.clone(), destination: destination.name.clone() };
            (recipient, Arc::clone(destination))
        })
    });
    Arc::new(recipients.collect())
}

/// Lets the worker work on a thread of its own. A task in `tasks` ends when it has ended.
pub(super) fn spawn(
    worker: Worker,
    recipients: watch::Receiver<Recipients>,
    stop: CancellationToken,
    cut: CancellationToken,
    over: CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    let (ended, end) = oneshot::channel::<()>();
    let thread = thread::Builder::new().name("worker".into()).spawn(move || match runtime() {
        Ok(runtime) => {
            runtime.block_on(async {
                worker.run(recipients, stop, cut).await;
                drop(ended);
                over.cancelled().await;
            });
            // A name that is still being resolved does not hold up the end.
            runtime.shutdown_background();
        }
        Err(error) => error!(%error, "cannot start the worker's runtime: nothing is delivered"),
    });
    match thread {
        // It ends when its sender is dropped, at the thread's end.
        Ok(_thread) => drop(tasks.spawn(async move { drop(end.await) })),
        Err(error) => error!(%error, "cannot start the worker's thread: nothing is delivered"),
    }
}

/// Commits what is under way. Whether everything was.
pub(super) async fn close(queue: &dyn Queue) -> bool {
    match timeout(CLOSE, queue.close()).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            warn!(%error, "the queue was not closed: deliveries whose outcome is not recorded may be made again");
            false
        }
        Err(_elapsed) => {
            warn!(
                "closing the queue takes too long: deliveries whose outcome is not recorded may be made again"
            );
            false
        }
    }
}
