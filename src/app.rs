//! The service: built from a configuration, bound early, run until it is told to end, drained under a deadline.

mod aside;
mod build_error;
mod descriptors;
mod doubts;
mod lanes;
mod memory;
mod ops;
mod privacy;
mod queue;
mod reload;
mod restart;
mod routes;
mod start;
mod threads;
mod watch;

use std::{
    io,
    num::NonZero,
    pin::pin,
    sync::{Arc, Mutex},
    thread::available_parallelism,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use build_error::BuildError;
pub use descriptors::raise_descriptor_limit;
pub use doubts::doubts;
use lanes::spawn_lanes;
use ops::Ops;
pub use privacy::forbid_dumps;
use reload::{Serving, Source, Told, hangups};
use restart::UntilRestart;
use routes::routes;
pub use start::tell_start;
pub use threads::runtime;

use crate::{
    config::Config,
    delivery::{
        dedupe::Memory,
        dispatch::{Direct, Dispatch},
        queue::Queue,
        worker::{self, Worker},
    },
    ingress::{
        self, Budget,
        receive::{Gate, Limits},
        rejection::Outcome,
        route::Routes,
    },
    ops::{
        health::Readiness,
        log,
        metrics::{Metrics, NO_WEBHOOK},
    },
    server::{
        drain::Drain,
        listener::{Address, Listener},
        tls as server_tls,
        unreadable::Unreadable,
    },
};

/// The service, bound and not yet running.
#[derive(Debug)]
pub struct App {
    source: Source,
    addresses: Addresses,
    webhooks: Listener,
    ops: Listener,
    tls: Option<server_tls::Tls>,
    settings: ingress::settings::Settings,
    gate: Gate,
    queue: Option<(Arc<dyn Queue>, worker::Settings)>,
    lanes: usize,
    /// Lanes that send to destinations.
    upstream_lanes: usize,
}

/// Where the service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// For webhooks.
    pub webhook: Address,
    /// For health and metrics.
    pub ops: Address,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything that was accepted was finished.
    Completely,
    /// The deadline, or a second signal, cut work off.
    CutOff,
}

/// The most threads that serve requests. One serves tens of thousands of deliveries a second, and a sidecar is
/// not to spread over a large machine.
const MAX_LANES: usize = 4;

/// How long the ops listener's last answers may take.
const OPS_DRAIN: Duration = Duration::from_millis(100);

impl App {
    /// Binds the listeners and prepares everything else. Must be called on the runtime of [`App::run`]. `log` lets a reload change the log's level.
    ///
    /// # Errors
    ///
    /// [`BuildError`].
    pub fn build(config: Config, log: Option<log::Control>) -> Result<Self, BuildError> {
        let lanes = available_parallelism().map_or(1, NonZero::get).min(MAX_LANES);
        let queued = config.queue.is_some();
        let until_restart = UntilRestart::of(&config);
        let metrics = Arc::new(if queued { Metrics::with_queue() } else { Metrics::new() });
        for what in Unreadable::ALL {
            metrics.unreadable(what.label(), 0);
        }
        let upstream_lanes = if queued { queue::LANE + 1 } else { lanes };
        let routes = routes(
            config.webhooks.into_iter().map(|webhook| webhook.settings),
            &metrics,
            upstream_lanes,
            &Routes::default(),
        )?;
        reload::tell_expiries(&routes, &config.certificates, &metrics);
        let queue = match &config.queue {
            None => None,
            Some(settings) => {
                let (window, max_body) = (config.dedupe.window, config.server.max_body);
                let queue = queue::open(&settings.store, settings.retention, window, max_body)?;
                Some((queue, settings.worker.clone()))
            }
        };
        let dispatch = match &queue {
            None => Dispatch::Direct(Direct::new(Memory::new(config.dedupe))),
            Some((queue, _)) => Dispatch::Queued(Arc::clone(queue)),
        };
        let gate = Gate {
            routes: Arc::new(ArcSwap::from_pointee(routes)),
            limits: Limits {
                max_body: config.server.max_body,
                body_timeout: config.server.body_timeout,
                budget: Budget::new(
                    config.server.max_inflight_bytes,
                    config.server.max_body,
                    config.server.connections.max_connections,
                ),
            },
            dispatch: Arc::new(dispatch),
            trusted_proxies: Arc::new(config.server.trusted_proxies.clone()),
            strangers: Arc::default(),
            unrouted: Arc::new(metrics.webhook(
                NO_WEBHOOK,
                Outcome::all().map(Outcome::label),
                std::iter::empty(),
                std::iter::empty(),
            )),
            metrics,
            lane: 0,
        };
        let tls = config.tls.map(|tls| server_tls::Tls::try_new(&tls.identity)).transpose()?;
        let (webhooks, webhook) = bind("server.listen", &config.server.listen, config.server.listen_mode)?;
        let (ops, ops_address) = bind("ops.listen", &Address::Tcp(config.ops.listen), 0)?;
        let addresses = Addresses { webhook, ops: ops_address };
        let source = Source {
            path: config.path,
            files: config.files,
            looks: config.looks,
            until_restart,
            log,
            told: Mutex::new(Told::about(config.warnings, config.fingerprints)),
        };
        Ok(Self {
            source,
            addresses,
            webhooks,
            ops,
            tls,
            settings: config.server,
            gate,
            queue,
            lanes,
            upstream_lanes,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until `shutdown` is ready, then drains; `now` ends the drain at once.
    ///
    /// SIGHUP, or a change of one of the configuration's files, reloads it.
    pub async fn run(self, shutdown: impl Future<Output = ()>, now: impl Future<Output = ()>) -> Drained {
        // Before anybody can know that the service is there.
        let hangups = hangups();
        let readiness = Readiness::default();
        let (drain, ops_drain) = (Drain::default(), Drain::default());
        let over = CancellationToken::new();
        let _over = over.clone().drop_guard();
        let strangers = Arc::clone(&self.gate.strangers);
        let mut telling = JoinSet::new();
        telling.spawn({
            let strangers = Arc::clone(&strangers);
            async move { strangers.tell_every_second().await }
        });
        let mut ops = JoinSet::new();
        let answers = Ops::new(readiness.clone(), self.gate.clone());
        ops::spawn(self.ops, answers, ops_drain.clone(), over.clone(), &mut ops);
        let mut lanes = spawn_lanes(
            &self.webhooks,
            self.tls.as_ref(),
            &self.settings.connections,
            &self.gate,
            self.lanes,
            &drain,
            &over,
        );
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let mut recipients = None;
        if let Some((queue, settings)) = &self.queue {
            let (sender, receiver) = sync::watch::channel(queue::recipients(&self.gate.routes.load()));
            let metrics = Arc::clone(&self.gate.metrics);
            let worker =
                Worker::new(Arc::clone(queue), settings.clone(), queue::LANE, metrics, readiness.clone());
            queue::spawn(worker, receiver, stop.clone(), cut.clone(), over.clone(), &mut lanes);
            recipients = Some(sender);
        }
        // The lanes have their own handles; this one must not keep the queue of connections open.
        drop(self.webhooks);
        info!(listener = "webhook", address = %self.addresses.webhook, "listening");
        info!(listener = "ops", address = %self.addresses.ops, "listening");
        readiness.ready();

        let serving = Serving { tls: self.tls, gate: self.gate, lanes: self.upstream_lanes, recipients };
        let mut reloading = pin!(self.source.reload_on_change(serving, hangups));
        tokio::select! {
            () = shutdown => {}
            () = &mut reloading => {}
        }
        readiness.draining();
        info!(timeout = ?self.settings.drain_timeout, "draining");
        drain.begin();
        stop.cancel();
        let mut drained = tokio::select! {
            biased;
            () = all(&mut lanes) => Drained::Completely,
            () = tokio::time::sleep(self.settings.drain_timeout) => {
                warn!("`drain_timeout` has passed: cutting off what is not finished");
                drain.cut();
                cut.cancel();
                // What is left answers and ends within moments of the cut.
                drop(timeout(CUT, all(&mut lanes)).await);
                Drained::CutOff
            }
            () = now => {
                warn!("told to end at once");
                Drained::CutOff
            }
        };
        if let Some((queue, _)) = &self.queue
            && !queue::close(&**queue).await
        {
            drained = Drained::CutOff;
        }
        strangers.tell();
        ops_drain.begin();
        drop(timeout(OPS_DRAIN, all(&mut ops)).await);
        info!(complete = drained == Drained::Completely, "drained");
        drained
    }
}

/// The first SIGTERM or SIGINT, and the second: what [`App::run`] wants. Must be called on its runtime.
///
/// # Errors
///
/// If the signals cannot be watched.
pub fn signals() -> io::Result<(impl Future<Output = ()>, impl Future<Output = ()>)> {
    let (mut first, mut second) = (Signals::watch()?, Signals::watch()?);
    // A file that may not grow is an error to be handled, as any other; unwatched, this signal would end the process.
    drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
    let second = async move {
        second.next().await;
        second.next().await;
    };
    Ok((async move { first.next().await }, second))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How long the answers of what was cut off may take.
const CUT: Duration = Duration::from_secs(1);

async fn all(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

fn bind(key: &'static str, address: &Address, mode: u32) -> Result<(Listener, Address), BuildError> {
    let bound = Listener::bind(address, mode).and_then(|listener| Ok((listener.address()?, listener)));
    let (bound, listener) =
        bound.map_err(|source| BuildError::Bind { key, address: address.clone(), source })?;
    Ok((listener, bound))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::{
        io::{AsyncWriteExt, duplex},
        task::yield_now,
    };

    use super::*;
    use crate::server::accept;

    /// A handler is dropped with its connection, and gives back what it counted.
    #[tokio::test]
    async fn a_request_that_is_dropped_is_in_flight_no_more() {
        let text = "[server]\nlisten = \"127.0.0.1:0\"\n[ops]\nlisten = \"127.0.0.1:0\"\n\
                    [[webhook]]\npath = \"/hook\"\nevents = [\"*\"]\n\
                    secret = { file = \"tests/data/config/files/secret\" }\n\
                    [[webhook.destination]]\nurl = \"http://127.0.0.1:1/\"\n";
        let config =
            Config::parse(Path::new("hookgate.toml"), text).unwrap_or_else(|report| panic!("{report}"));
        let app = App::build(config, None).unwrap();
        let (socket, mut peer) = duplex(4096);
        let head = format!(
            "POST /hook HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\
             Pulumi-Webhook-Signature: {}\r\nContent-Length: 9\r\n\r\n{{",
            "0".repeat(64)
        );
        peer.write_all(head.as_bytes()).await.unwrap();
        let in_flight = &app.gate.metrics.inflight_requests;
        {
            let mut serving =
                pin!(accept::serve_connection(socket, app.settings.connections.clone(), app.gate.clone()));
            while in_flight.get() == 0 {
                tokio::select! {
                    biased;
                    () = &mut serving => panic!("the request is not served"),
                    () = yield_now() => {}
                }
            }
            assert_eq!((in_flight.get(), app.gate.limits.budget.held()), (1, 1));
        }
        assert_eq!((in_flight.get(), app.gate.limits.budget.held()), (0, 0));
    }
}
