//! Reloads the configuration while the service runs: at SIGHUP, and when one of its files has changed.
//!
//! A configuration is put in force as a whole or not at all. Requests keep what they began with.

use std::{path::PathBuf, sync::Arc};

use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::{BuildError, watch::Watch};
use crate::{
    config::Config,
    delivery::{
        dedupe,
        destination::{self, Destination},
    },
    ingress::{
        receive::Gate,
        rejection::Outcome,
        route::{self, Routes, Webhook},
        server,
    },
    ops::{self, log, metrics::Metrics},
    upstream::{Tls, TlsError, target},
};

/// Where the configuration comes from, and what of it is in force until a restart.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) files: Vec<PathBuf>,
    pub(super) ops: ops::Settings,
    pub(super) dedupe: dedupe::Settings,
    pub(super) log: Option<log::Control>,
}

impl Source {
    /// Loads the configuration anew at each SIGHUP and each change of its files. Does not end.
    pub(super) async fn reload_on_change(&self, settings: &server::Settings, gate: &Gate, lanes: usize) {
        let mut watch = Watch::new(self.files.clone());
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => Some(hangups),
            Err(error) => {
                warn!(%error, "SIGHUP cannot be watched; changed files are noticed all the same");
                None
            }
        };
        loop {
            let hangup = async {
                match &mut hangups {
                    Some(hangups) => hangups.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = hangup => {}
                () = watch.changed() => {}
            }
            // Looked at before it is read: what changes meanwhile is noticed as a change.
            watch = Watch::new(watch.into_files());
            let files = self.reload(settings, gate, lanes);
            gate.metrics.reload(files.is_some());
            if let Some(files) = files {
                watch.also(files);
            }
        }
    }

    /// Puts the file's configuration in force, or leaves the one that is. The files to watch from now on, if it
    /// was put in force.
    fn reload(&self, settings: &server::Settings, gate: &Gate, lanes: usize) -> Option<Vec<PathBuf>> {
        let config = match Config::load(&self.path) {
            Ok(config) => config,
            Err(report) => {
                for mistake in report.mistakes() {
                    error!(mistake = %mistake, "the new configuration is wrong");
                }
                error!("the configuration was not reloaded: the old one stays in force");
                return None;
            }
        };
        let webhooks = config.webhooks.into_iter().map(|webhook| webhook.settings);
        let routes = match routes(webhooks, &gate.metrics, lanes) {
            Ok(routes) => routes,
            Err(error) => {
                error!(%error, "the configuration was not reloaded: the old one stays in force");
                return None;
            }
        };
        for warning in &config.warnings {
            warn!(warning = %warning, "doubtful configuration");
        }
        if config.server != *settings || config.ops != self.ops || config.dedupe != self.dedupe {
            warn!("changes of [server], [ops] and [dedupe] need a restart");
        }
        if let Some(log) = &self.log {
            log.set_level(&config.log.level);
        }
        gate.routes.store(Arc::new(routes));
        info!("the configuration was reloaded");
        Some(config.files)
    }
}

/// Prepares the webhooks of a configuration.
pub(super) fn routes(
    settings: impl Iterator<Item = route::Settings>,
    metrics: &Metrics,
    lanes: usize,
) -> Result<Routes, BuildError> {
    let mut platform = None;
    settings
        .filter_map(|mut settings| {
            // Without a queue there is exactly one, which the configuration has made sure of.
            let destination = settings.destinations.pop()?;
            Some((settings, destination))
        })
        .map(|(settings, destination)| {
            let tls = towards(&destination, &mut platform).map_err(|source| BuildError::Tls {
                webhook: settings.name.clone(),
                destination: destination.name.clone(),
                source,
            })?;
            let handles = metrics.destination(&settings.name, &destination.name);
            let destination = Destination::new(&destination, &settings.name, tls, handles, lanes);
            let secrets = settings.verifier.keys().iter().map(|key| key.name());
            let webhook = Webhook {
                metrics: metrics.webhook(&settings.name, Outcome::all().map(Outcome::label), secrets),
                name: settings.name,
                verifier: settings.verifier,
                filter: settings.filter,
                destination,
            };
            Ok((settings.path, webhook))
        })
        .collect()
}

/// TLS towards a destination that has it. The platform's roots are read once.
fn towards(destination: &destination::Settings, platform: &mut Option<Tls>) -> Result<Option<Tls>, TlsError> {
    match (&destination.target.address, &destination.ca, &platform) {
        (target::Address::Tcp { tls: true, .. }, Some(ca), _) => Tls::try_new(Some(ca)).map(Some),
        (target::Address::Tcp { tls: true, .. }, None, Some(known)) => Ok(Some(known.clone())),
        (target::Address::Tcp { tls: true, .. }, None, None) => {
            *platform = Some(Tls::try_new(None)?);
            Ok(platform.clone())
        }
        _ => Ok(None),
    }
}
