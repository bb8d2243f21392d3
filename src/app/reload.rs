//! Reloads the configuration while the service runs: at SIGHUP, and when one of its files has changed.
//!
//! A configuration is put in force as a whole or not at all, and only if its files stood still while they were read.
//! A request keeps the webhooks that were in force when its head was complete, secrets included. Reading happens on a
//! thread of its own, so that slow files hold up neither requests nor the end. One that hangs is reported and left alone:
//! see [`Aside`].

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tracing::{error, info, warn};

use super::{
    BuildError,
    aside::{Aside, NotDone, Progress},
    queue,
    watch::Watch,
};
use crate::{
    config::{self, Config, Fingerprints, Look, Mistake, Report},
    delivery::{
        backoff::Backoff,
        dedupe,
        destination::{self, Destination},
        queue::{Policy, Retention, Store, nats},
        worker::{self, Recipients},
    },
    files,
    ingress::{
        receive::Gate,
        rejection::Outcome,
        route::{self, Routes, Webhook},
        settings as server,
    },
    net::{
        connect::Tls,
        target,
        tls::{Authorities, NoRoots},
    },
    ops::{self, log, metrics::Metrics},
    server::{limits::ConnectionLimits, tls as server_tls},
    upstream::Upstream,
};

/// Where the configuration comes from, and what of it is in force until a restart.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) files: Vec<PathBuf>,
    pub(super) looks: Vec<Look>,
    pub(super) ops: ops::Settings,
    pub(super) dedupe: dedupe::Settings,
    pub(super) queue: Option<config::Queue>,
    pub(super) format: log::Format,
    pub(super) log: Option<log::Control>,
    pub(super) told: Mutex<Told>,
}

/// What a reload acts on.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) settings: server::Settings,
    pub(super) tls: Option<server_tls::Tls>,
    pub(super) gate: Gate,
    pub(super) lanes: usize,
    /// Who the worker delivers to, where there is one.
    pub(super) recipients: Option<watch::Sender<Recipients>>,
}

/// What the log has said of the configuration in force: it is not said again at each reload.
#[derive(Debug)]
pub(super) struct Told {
    warnings: Vec<Mistake>,
    restart: Vec<&'static str>,
    keys: Fingerprints,
}

impl Told {
    /// At the start, only the warnings were told.
    pub(super) const fn about(warnings: Vec<Mistake>, keys: Fingerprints) -> Self {
        Self { warnings, restart: Vec::new(), keys }
    }
}

/// How often files that change while they are read are read again before it is left to [`Watch::changed`].
const ATTEMPTS: usize = 3;

/// Watches SIGHUP. From then on it does not end the process any more.
pub(super) fn hangups() -> Option<Signal> {
    signal(SignalKind::hangup())
        .map_err(|error| {
            warn!(%error, "SIGHUP cannot be watched; changed files are noticed all the same");
        })
        .ok()
}

/// What was read, and how the files looked before.
struct Loaded {
    watch: Watch,
    what: What,
}

enum What {
    /// The files never came to rest.
    Moving,
    /// There are mistakes.
    Wrong(Report),
    /// It is a configuration that cannot be put in force, for this reason.
    Unfit(String),
    /// What is to be in force. The configuration is without its webhooks.
    Good(Box<Config>, Routes),
}

/// The most threads that are left alone because what they read hangs.
const MOST_HANGING: usize = 8;

impl Source {
    /// Loads the configuration anew at each SIGHUP and each change of its files. Does not end.
    pub(super) async fn reload_on_change(self, serving: Serving, mut hangups: Option<Signal>) {
        let this = Arc::new((self, serving));
        let (source, serving) = &*this;
        let mut watch = Watch::since(source.files.clone(), source.looks.clone());
        // Who looks waits for one look; who reads waits for none that hangs, so that mended files can be read.
        let (looks, reads) = (Aside::new(1), Aside::new(MOST_HANGING));
        let mut hangs = false;
        loop {
            let hangup = async {
                match &mut hangups {
                    Some(hangups) => hangups.recv().await,
                    None => std::future::pending().await,
                }
            };
            let looked = tokio::select! {
                _ = hangup => Ok(()),
                changed = watch.changed(&looks) => changed,
                // What was in vain has not been said again by anybody.
                () = async { looks.all_are_back().await; reads.all_are_back().await }, if hangs => Ok(()),
            };
            let loaded = match looked {
                Ok(()) => {
                    let (worker, files) = (Arc::clone(&this), watch.files().to_vec());
                    reads.run(move |progress| worker.0.load(&worker.1, files, progress)).await
                }
                Err(error) => Err(error),
            };
            hangs = matches!(loaded, Err(NotDone::Hangs(_) | NotDone::TooMany(_)));
            match loaded {
                Ok(Loaded { watch: looked, what }) => {
                    watch = looked;
                    source.take(serving, &mut watch, what);
                }
                Err(error) => {
                    error!(%error, "the configuration was not reloaded: its files cannot be read; the old one stays in force");
                    serving.gate.metrics.reload(false);
                }
            }
        }
    }

    /// Reads the file and what it names, until nothing changed meanwhile: halves of two versions are no configuration.
    /// What a wrong configuration names is watched too, as it may be what is missing.
    fn load(&self, serving: &Serving, mut files: Vec<PathBuf>, progress: &Progress) -> Loaded {
        let tell: &dyn Fn(&Path) = &|file| progress.at(file);
        let mut attempt = 1;
        loop {
            let watch = Watch::new(files, tell);
            let loaded = Config::load(&self.path);
            let named = loaded.as_ref().map_or_else(Report::files, |config| &config.files);
            if watch.stood_still(named, tell) {
                let what = match loaded {
                    Ok(config) => self.prepare(config, serving),
                    Err(report) => What::Wrong(report),
                };
                return Loaded { watch, what };
            }
            if attempt == ATTEMPTS {
                return Loaded { watch, what: What::Moving };
            }
            attempt += 1;
            files = watch.and(named);
        }
    }

    /// Prepares a configuration: the authorities of the platform are read here too.
    fn prepare(&self, mut config: Config, serving: &Serving) -> What {
        // What is in force goes without a queue, and cannot serve a webhook that needs one.
        if self.queue.is_none() && config.webhooks.iter().any(|webhook| needs_queue(&webhook.settings)) {
            return What::Unfit(
                "it needs a restart: several destinations, `order` and `coalesce` need the queue".into(),
            );
        }
        let webhooks = std::mem::take(&mut config.webhooks).into_iter().map(|webhook| webhook.settings);
        match routes(webhooks, &serving.gate.metrics, serving.lanes, &serving.gate.routes.load_full()) {
            Ok(routes) => What::Good(Box::new(config), routes),
            Err(error) => What::Unfit(error.to_string()),
        }
    }

    /// Puts what was read in force, or leaves what is.
    fn take(&self, serving: &Serving, watch: &mut Watch, what: What) {
        let wrong = |error: &dyn fmt::Display| error!(%error, "the new configuration is wrong");
        let done = match what {
            What::Moving => {
                info!("the configuration's files are changing: it is reloaded when they have come to rest");
                return;
            }
            What::Wrong(report) => {
                for mistake in report.mistakes() {
                    error!(mistake = %mistake, "the new configuration is wrong");
                }
                false
            }
            What::Unfit(error) => {
                wrong(&error);
                false
            }
            What::Good(config, routes) => match replace_identity(serving.tls.as_ref(), &config) {
                Ok(()) => {
                    watch.only(&config.files);
                    self.put_in_force(*config, routes, serving);
                    true
                }
                Err(error) => {
                    wrong(&error);
                    false
                }
            },
        };
        if !done {
            error!("the configuration was not reloaded: the old one stays in force");
        }
        serving.gate.metrics.reload(done);
    }

    fn put_in_force(&self, config: Config, routes: Routes, serving: &Serving) {
        let Serving { settings, tls, gate, recipients, .. } = serving;
        let restart = self.restart_for(settings, tls.is_some(), &config);
        let ruled = self.log.as_ref().is_some_and(|log| !log.set_level(&config.log.level));
        let changed = self.tell(config.warnings, restart, config.fingerprints);
        if ruled && changed.iter().any(|key| key == "log.level") {
            warn!("`log.level` has no effect as long as RUST_LOG is set");
        }
        tell_expiries(&routes, &config.certificates, &gate.metrics);
        let routes = Arc::new(routes);
        gate.routes.store(Arc::clone(&routes));
        if let Some(recipients) = recipients {
            recipients.send_replace(queue::recipients(&routes));
        }
        info!(changed = list(&changed), config.digest = config.digest, "the configuration was reloaded");
    }

    /// The keys whose new values wait for a restart.
    fn restart_for(&self, old: &server::Settings, tls: bool, config: &Config) -> Vec<&'static str> {
        let server::Settings {
            listen,
            listen_mode,
            trusted_proxies,
            connections: ConnectionLimits { max_header, max_connections, header_timeout, idle_timeout },
            max_body,
            max_inflight_bytes,
            body_timeout,
            drain_timeout,
        } = &config.server;
        [
            ("server.listen", *listen != old.listen),
            ("server.listen_mode", *listen_mode != old.listen_mode),
            ("server.trusted_proxies", *trusted_proxies != old.trusted_proxies),
            ("server.tls", config.tls.is_some() != tls),
            ("server.max_body", *max_body != old.max_body),
            ("server.max_header", *max_header != old.connections.max_header),
            ("server.max_connections", *max_connections != old.connections.max_connections),
            ("server.max_inflight_bytes", *max_inflight_bytes != old.max_inflight_bytes),
            ("server.header_timeout", *header_timeout != old.connections.header_timeout),
            ("server.body_timeout", *body_timeout != old.body_timeout),
            ("server.idle_timeout", *idle_timeout != old.connections.idle_timeout),
            ("server.drain_timeout", *drain_timeout != old.drain_timeout),
            ("ops.listen", config.ops != self.ops),
            ("dedupe.window", config.dedupe != self.dedupe),
            ("log.format", config.log.format != self.format),
        ]
        .into_iter()
        .chain(changed_of_queue(self.queue.as_ref(), config.queue.as_ref()))
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }

    /// Says what to look at and what waits for a restart, as far as it was not said before. The keys that have changed.
    fn tell(&self, warnings: Vec<Mistake>, restart: Vec<&'static str>, keys: Fingerprints) -> Vec<String> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in &warnings {
            // Where in the file it stands may have moved.
            if !told.warnings.iter().any(|known| known.key == warning.key && known.text == warning.text) {
                warn!(warning = %warning, "configuration warning");
            }
        }
        if !restart.is_empty() && restart != told.restart {
            warn!(
                keys = restart.join(", "),
                "changed keys need a restart: the old values stay in force until then"
            );
        }
        let changed = told.keys.changed(&keys);
        *told = Told { warnings, restart, keys };
        changed
    }
}

/// Names of keys in a row, as many as fit into a line.
fn list(keys: &[String]) -> String {
    const MOST: usize = 20;
    match keys.get(..MOST) {
        _ if keys.is_empty() => "nothing".into(),
        Some(first) if keys.len() > MOST => format!("{} and {} more", first.join(", "), keys.len() - MOST),
        _ => keys.join(", "),
    }
}

/// Whether a webhook can be served with a queue only.
fn needs_queue(settings: &route::Settings) -> bool {
    settings.destinations.len() > 1
        || settings.destinations.iter().any(|destination| destination.policy != Policy::default())
}

/// The keys of `[queue]`, and whether they have changed.
fn changed_of_queue(old: Option<&config::Queue>, new: Option<&config::Queue>) -> Vec<(&'static str, bool)> {
    let (Some(old), Some(new)) = (old, new) else {
        return vec![("queue", old.is_some() != new.is_some())];
    };
    let worker::Settings { max_attempts, max_age, backoff: Backoff { initial, max }, concurrency } =
        &new.worker;
    let Retention { retain, dead_retain, max_bytes } = &new.retention;
    let mut keys = vec![
        ("queue.max_attempts", *max_attempts != old.worker.max_attempts),
        ("queue.max_age", *max_age != old.worker.max_age),
        ("queue.backoff", *initial != old.worker.backoff.initial || *max != old.worker.backoff.max),
        ("queue.concurrency", *concurrency != old.worker.concurrency),
        ("queue.retain", *retain != old.retention.retain),
        ("queue.dead_retain", *dead_retain != old.retention.dead_retain),
        ("queue.max_bytes", *max_bytes != old.retention.max_bytes),
    ];
    match (&old.store, &new.store) {
        (Store::Sqlite { path: old }, Store::Sqlite { path }) => keys.push(("queue.path", path != old)),
        (Store::Nats(old), Store::Nats(nats::Settings { url, stream, credentials, ca, replicas })) => keys
            .extend([
                ("queue.url", *url != old.url),
                ("queue.stream", *stream != old.stream),
                ("queue.credentials", *credentials != old.credentials),
                ("queue.ca", *ca != old.ca),
                ("queue.replicas", *replicas != old.replicas),
            ]),
        (Store::Sqlite { .. } | Store::Nats(_), _) => keys.push(("queue.store", true)),
    }
    keys
}

/// Shows senders the certificate of the new configuration, where there is one.
fn replace_identity(tls: Option<&server_tls::Tls>, config: &Config) -> Result<(), rustls::Error> {
    match (tls, &config.tls) {
        (Some(tls), Some(new)) => tls.replace(&new.identity),
        _ => Ok(()),
    }
}

/// Says in the metrics when the secrets in force expire, and the certificates.
pub(super) fn tell_expiries(
    routes: &Routes,
    certificates: &BTreeMap<PathBuf, SystemTime>,
    metrics: &Metrics,
) {
    let secrets = routes.webhooks().flat_map(|webhook| {
        let keys = webhook.verifier.keys().iter();
        keys.filter_map(|key| Some((webhook.name.as_str(), key.name(), key.expires()?)))
    });
    metrics.secrets_expire(secrets);
    metrics.certificates_expire(certificates.iter().map(|(file, at)| (file.as_path(), *at)));
}

/// Prepares the webhooks of a configuration. What of the `old` ones did not change keeps its open connections.
pub(super) fn routes(
    settings: impl Iterator<Item = route::Settings>,
    metrics: &Metrics,
    lanes: usize,
    old: &Routes,
) -> Result<Routes, BuildError> {
    let mut platform = None;
    settings
        .map(|settings| {
            let before = old.find(&settings.path);
            let destinations = settings.destinations.iter().map(|destination| {
                let tls = towards(&settings.name, destination, &mut platform)?;
                let handles = metrics.destination(&settings.name, &destination.name);
                let upstream = upstream(destination, tls, lanes, before);
                Ok(Arc::new(Destination::new(destination, &settings.name, upstream, handles)))
            });
            let destinations = destinations.collect::<Result<_, BuildError>>()?;
            let secrets = settings.verifier.keys().iter().map(|key| key.name());
            let webhook = Webhook {
                metrics: metrics.webhook(
                    &settings.name,
                    Outcome::all().map(Outcome::label),
                    Webhook::event_labels(),
                    secrets,
                ),
                name: settings.name,
                verifier: settings.verifier,
                filter: settings.filter,
                destinations,
            };
            Ok((settings.path, webhook))
        })
        .collect()
}

/// The upstream of a destination: one of the webhook's destinations before, if it is the same. With TLS it is not,
/// since certificates may have changed.
fn upstream(
    destination: &destination::Settings,
    tls: Option<Tls>,
    lanes: usize,
    before: Option<&Webhook>,
) -> Arc<Upstream> {
    let destination::Settings { target, timeout, .. } = destination;
    let mut known = before.iter().flat_map(|webhook| &webhook.destinations).map(|known| &known.upstream);
    match known.find(|upstream| upstream.is_for(target, *timeout)) {
        Some(upstream) if tls.is_none() => Arc::clone(upstream),
        _ => Arc::new(Upstream::new(target.clone(), tls, *timeout, lanes)),
    }
}

/// TLS towards a destination that has it. The platform's roots are read once.
fn towards(
    webhook: &str,
    destination: &destination::Settings,
    platform: &mut Option<Authorities>,
) -> Result<Option<Tls>, BuildError> {
    let target::Address::Tcp { tls: true, .. } = destination.target.address else { return Ok(None) };
    let authorities = match (&destination.ca, &platform) {
        (Some(own), _) => own.clone(),
        (None, Some(known)) => known.clone(),
        (None, None) => {
            let roots = files::within(files::PATIENCE, Authorities::platform).unwrap_or(Err(NoRoots));
            let roots = roots.map_err(|source| BuildError::NoRoots {
                webhook: webhook.to_owned(),
                destination: destination.name.clone(),
                source,
            })?;
            platform.insert(roots).clone()
        }
    };
    Ok(Some(Tls::try_new(&authorities, destination.identity.as_ref())?))
}
