//! TLS towards senders: versions 1.2 and 1.3, one certificate that can be exchanged while serving.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

pub(super) use crate::net::tls::explain_sender;
use crate::net::tls::{ALPN, Identity, provider};

/// What a listener speaks TLS with. Clones share one certificate.
#[derive(Debug, Clone)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

impl Tls {
    /// Speaks TLS with this certificate.
    ///
    /// # Errors
    ///
    /// If the provider does not fit, which no configuration can bring about.
    pub fn try_new(identity: &Identity) -> Result<Self, rustls::Error> {
        Ok(Self(Arc::new(ArcSwap::new(config(identity)?))))
    }

    /// Takes another certificate for handshakes from now on. Connections that are open stay as they are.
    ///
    /// # Errors
    ///
    /// As [`Tls::try_new`]; the certificate in force stays.
    pub fn replace(&self, identity: &Identity) -> Result<(), rustls::Error> {
        self.0.store(config(identity)?);
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load_full())
    }
}

/// A memory of sessions belongs to a configuration, so none outlives its certificate.
fn config(identity: &Identity) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(identity.resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}
