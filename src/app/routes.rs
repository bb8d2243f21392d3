//! Builds the webhooks in force from what is configured: their metrics, destinations and connections to upstreams.

use std::sync::Arc;

use super::build_error::BuildError;
use crate::{
    delivery::destination::{self, Destination},
    files,
    ingress::{
        rejection::Outcome,
        route::{self, Routes, Webhook},
    },
    net::{
        connect::Tls,
        target,
        tls::{Authorities, NoRoots},
    },
    ops::metrics::Metrics,
    upstream::Upstream,
};

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
