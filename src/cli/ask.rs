//! What `send`, `healthcheck` and `demo` ask of a server: one request with [`crate::net::client`], trusting the platform where nobody
//! else is named.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;

use crate::{
    files,
    net::{
        client::{self, Answer, ClientError, Limits},
        connect::Tls,
        target::{Address, Target},
        tls::{Authorities, NoRoots},
    },
};

/// How much of an answer's body is kept, in bytes.
const MAX_BODY: usize = 64 << 10;

/// Why there is no answer. Reads on after "hookgate: ".
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    NoRoots(#[from] NoRoots),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Sends one request and takes the answer within `time`. For https, `trust` stands in for the platform's authorities.
///
/// # Errors
///
/// [`AskError`], until a status line came.
pub(super) async fn ask(
    target: &Target,
    request: Request<Full<Bytes>>,
    time: Duration,
    trust: Option<&Authorities>,
) -> Result<Answer, AskError> {
    let tls = match (&target.address, trust) {
        (Address::Unix(_) | Address::Tcp { tls: false, .. }, _) => None,
        (_, Some(trust)) => Some(Tls::try_new(trust, None)?),
        (_, None) => {
            let roots = files::within(files::PATIENCE, Authorities::platform).unwrap_or(Err(NoRoots))?;
            Some(Tls::try_new(&roots, None)?)
        }
    };
    Ok(client::exchange(target, tls, request, Limits { time, answer: MAX_BODY }).await?)
}
