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
    aside::{Aside, NotDone, Progress},
    queue,
    restart::UntilRestart,
    routes::routes,
    watch::Watch,
};
use crate::{
    config::{Config, Fingerprints, Look, Mistake, Report},
    delivery::worker::Recipients,
    ingress::{receive::Gate, route::Routes},
    ops::{log, metrics::Metrics},
    server::tls as server_tls,
};

/// Where the configuration comes from, and what of it is in force until a restart.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) files: Vec<PathBuf>,
    pub(super) looks: Vec<Look>,
    pub(super) until_restart: UntilRestart,
    pub(super) log: Option<log::Control>,
    pub(super) told: Mutex<Told>,
}

/// What a reload acts on.
#[derive(Debug)]
pub(super) struct Serving {
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
            warn!(%error, "SIGHUP cannot be watched; changed files are still noticed");
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
    /// Loads the configuration again at each SIGHUP and each change of its files. Does not end.
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

    /// Reads the file and what it names, until nothing changed meanwhile: halves of two versions are not a configuration.
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
        if !self.until_restart.can_serve(&config) {
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
                info!("the configuration's files are changing: it is reloaded once they stop changing");
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
        let Serving { gate, recipients, .. } = serving;
        let restart = self.until_restart.waiting(&config);
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
