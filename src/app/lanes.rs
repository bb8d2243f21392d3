//! The threads that serve requests.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::threads;
use crate::{
    ingress::receive::Gate,
    server::{
        accept, crowd::Crowd, drain::Drain, handler::Handler, limits::ConnectionLimits, listener::Listener,
        tls as server_tls,
    },
};

/// A thread for each lane, the first on this runtime. A connection stays on the lane that accepted it, with its
/// upstream connections, so lanes share next to nothing.
pub(super) fn spawn_lanes(
    listener: &Listener,
    tls: Option<&server_tls::Tls>,
    limits: &ConnectionLimits,
    gate: &Gate,
    lanes: usize,
    drain: &Drain,
    over: &CancellationToken,
) -> JoinSet<()> {
    let crowd = Crowd::new(limits.max_connections);
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
        let serving = serve(listener, tls.cloned(), limits.clone(), Arc::clone(&crowd), gate, drain.clone());
        if lane == 0 {
            tasks.spawn(serving);
            continue;
        }
        // Its runtime lives on: another lane may still be using an upstream connection that this one drives.
        threads::spawn(&format!("lane-{lane}"), serving, over.clone(), &mut tasks);
    }
    tasks
}

/// Serves a listener until its drain is over.
pub(super) async fn serve<H: Handler>(
    listener: Listener,
    tls: Option<server_tls::Tls>,
    limits: ConnectionLimits,
    crowd: Arc<Crowd>,
    handler: H,
    drain: Drain,
) {
    if let Err(error) = accept::serve(listener, tls, limits, crowd, handler, drain).await {
        error!(%error, "a listener cannot be used");
    }
}
