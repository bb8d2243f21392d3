//! Why there is no usable answer, in words for the operator: which destination, where it was sought, what came of it.

use std::{error::Error, fmt, net::SocketAddr};

use hyper::StatusCode;

use crate::net::{
    connect::{ConnectError, NotDone},
    target::Address,
};

/// Why there is no usable answer. The text is for the log, not for the sender.
#[derive(Debug, Clone)]
pub struct SendError {
    /// What kind of failure it is.
    pub kind: Failure,
    /// The destination's name, as far as it was told.
    destination: Option<String>,
    /// Where it was sought.
    place: String,
    why: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection: the name does not resolve, nobody listens, the TLS handshake failed.
    Unreachable,
    /// Connected, but closed, reset or garbage before a status, or a 1xx for one.
    BadAnswer,
    /// A 3xx: redirects are not followed.
    Redirected(StatusCode),
    /// A hookgate refused its own request: what it sent has come back to it.
    Looped,
    /// No status in time.
    Timeout,
}

impl Failure {
    /// Whether it speaks of the moment: a redirect would be the answer the next time too.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        match self {
            Self::Unreachable | Self::BadAnswer | Self::Timeout => true,
            Self::Redirected(_) | Self::Looped => false,
        }
    }

    /// The status, where there was one.
    #[must_use]
    pub const fn status(self) -> Option<StatusCode> {
        match self {
            Self::Redirected(status) => Some(status),
            Self::Looped => Some(StatusCode::LOOP_DETECTED),
            Self::Unreachable | Self::BadAnswer | Self::Timeout => None,
        }
    }
}

impl SendError {
    pub(super) fn new(kind: Failure, place: String, why: impl Into<String>) -> Self {
        Self { kind, destination: None, place, why: why.into() }
    }

    /// There is no connection to this address.
    pub(super) fn unconnected(address: &Address, error: ConnectError) -> Self {
        let place = place(address, error.peer);
        match error.what {
            NotDone::Connection => Self::new(Failure::Unreachable, place, error.why),
            NotDone::Tls => Self::new(Failure::Unreachable, place, refusal(&error.why)),
            NotDone::InTime => Self::new(Failure::Timeout, place, error.why),
        }
    }

    /// Says which destination it was.
    #[must_use]
    pub fn of(self, destination: &str) -> Self {
        Self { destination: Some(destination.to_owned()), ..self }
    }
}

/// What TLS refused, in words.
pub(super) fn refusal(why: &str) -> String {
    format!("the TLS handshake failed: {why}")
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            Some(name) => write!(f, "destination `{name}`")?,
            None => f.write_str("the upstream")?,
        }
        let failed = match self.kind {
            Failure::Unreachable => "cannot be reached",
            Failure::BadAnswer | Failure::Redirected(_) | Failure::Looped => "gave no usable answer",
            Failure::Timeout => "did not answer in time",
        };
        write!(f, " at {} {failed}: {}", self.place, self.why)
    }
}

impl Error for SendError {}

/// Where an upstream is sought, and the address behind the name where it is known. Nothing of the URL's path, which may
/// be secret.
pub(super) fn place(address: &Address, peer: Option<SocketAddr>) -> String {
    match (address, peer) {
        (Address::Tcp { host, .. }, Some(peer)) if host.parse() != Ok(peer.ip()) => {
            format!("{address} ({peer})")
        }
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_destination_and_the_place() {
        let tcp = |host: &str, tls| Address::Tcp { host: host.into(), port: 3000, tls };
        let peer = |text: &str| Some(text.parse().unwrap());
        for (address, peer, expected) in [
            (tcp("app", false), None, "http://app:3000"),
            (tcp("app", true), peer("10.0.0.1:3000"), "https://app:3000 (10.0.0.1:3000)"),
            (tcp("10.0.0.1", false), peer("10.0.0.1:3000"), "http://10.0.0.1:3000"),
            (tcp("::1", false), peer("[::1]:3000"), "http://[::1]:3000"),
            (Address::Unix("/run/app.sock".into()), None, "unix:/run/app.sock"),
        ] {
            assert_eq!(place(&address, peer), expected);
        }
        let error = SendError::new(Failure::Unreachable, place(&tcp("app", false), None), "refused");
        assert_eq!(error.to_string(), "the upstream at http://app:3000 cannot be reached: refused");
        assert_eq!(
            error.of("chat").to_string(),
            "destination `chat` at http://app:3000 cannot be reached: refused"
        );
    }
}
