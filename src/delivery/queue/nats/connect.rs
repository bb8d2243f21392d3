//! The connection: who is connected to, as whom, and how it stands.

use std::{error::Error, io, path::Path, time::Duration};

use async_nats::{ConnectOptions, Event};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{Settings, StartError, store, wire};
use crate::{
    files,
    net::tls::{self, Authorities},
};

/// The longest file of credentials or authorities, in bytes.
const MAX_FILE: usize = 1 << 20;

/// What is known of connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// How many were made and lost.
    pub(super) changes: u64,
    /// What the last try to make one ended in.
    pub(super) trouble: Option<String>,
    /// Why the certificate of the server was not taken that is just tried. The library does not say it.
    fault: Option<String>,
}

impl Connections {
    fn heard(&mut self, event: &Event) {
        let fault = self.fault.take();
        match event {
            Event::Connected => {
                self.changes = self.changes.wrapping_add(1);
                self.trouble = None;
            }
            Event::Disconnected => self.changes = self.changes.wrapping_add(1),
            // It names a server at most: the library's errors have no secrets in them.
            Event::ClientError(error) => {
                self.trouble = fault.or_else(|| Some(store::plain(&error.to_string())));
            }
            Event::ServerError(error) => self.trouble = Some(store::plain(&error.to_string())),
            _ => {}
        }
    }
}

/// The user of a URL, and the URL without: it may be logged.
pub(super) fn split(url: &str) -> (String, Option<&str>) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    match rest.rsplit_once('@') {
        Some((user, host)) => (format!("{scheme}://{host}"), Some(user)),
        None => (format!("{scheme}://{rest}"), None),
    }
}

pub(super) fn options(
    settings: &Settings,
    user: Option<&str>,
    connections: &watch::Sender<Connections>,
) -> Result<ConnectOptions, StartError> {
    const CONNECT: Duration = Duration::from_secs(3);
    const PING: Duration = Duration::from_secs(4);
    const MAX_DELAY: Duration = Duration::from_secs(1);

    let mut options = ConnectOptions::new();
    if let Some(path) = &settings.credentials {
        options = credentials(path)?;
    } else if let Some(user) = user {
        // Without a password it is a token.
        let known = |part| wire::unmarked(part, '%').ok_or(StartError::Url);
        options = match user.split_once(':') {
            Some((user, password)) => options.user_and_password(known(user)?, known(password)?),
            None => options.token(known(user)?),
        };
    }
    let unusable = |error: Box<dyn Error + Send + Sync>| StartError::Authorities(io::Error::other(error));
    let authorities = match &settings.ca {
        Some(path) => {
            options = options.require_tls(true);
            let pem =
                files::read(path, MAX_FILE, files::PATIENCE).map_err(|error| unusable(error.into()))?.bytes;
            Some(Authorities::parse(&pem).map_err(|error| unusable(error.into()))?)
        }
        // Without any the library says that there are none.
        None if settings.url.contains("tls://") => Authorities::platform().ok(),
        None => None,
    };
    if let Some(authorities) = authorities {
        let known = connections.clone();
        let told = move |words| known.send_modify(|known| known.fault = Some(words));
        let config = tls::client_told(&authorities, told).map_err(|error| unusable(error.into()))?;
        options = options.tls_client_config(config);
    }
    let connections = connections.clone();
    Ok(options
        .name("hookgate")
        .retry_on_initial_connect()
        .connection_timeout(CONNECT)
        .request_timeout(Some(store::REQUEST))
        .ping_interval(PING)
        .reconnect_delay_callback(|attempts| {
            let attempts = u32::try_from(attempts.min(10)).unwrap_or(10);
            (Duration::from_millis(20) * 2_u32.saturating_pow(attempts)).min(MAX_DELAY)
        })
        .event_callback(move |event| {
            connections.send_modify(|known| known.heard(&event));
            std::future::ready(())
        }))
}

fn credentials(path: &Path) -> Result<ConnectOptions, StartError> {
    let unreadable = |error: Box<dyn Error + Send + Sync>| StartError::Unreadable(io::Error::other(error));
    let bytes = files::read(path, MAX_FILE, files::PATIENCE).map_err(|error| unreadable(error.into()))?.bytes;
    let text = Zeroizing::new(str::from_utf8(&bytes).map_err(|error| unreadable(error.into()))?.to_owned());
    if let Ok(options) = ConnectOptions::with_credentials(&text) {
        return Ok(options);
    }
    let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
    seed.map(|seed| ConnectOptions::with_nkey(seed.to_owned())).ok_or(StartError::Credentials)
}
