//! TLS towards senders: versions 1.2 and 1.3, one certificate that can be exchanged while serving.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

/// Certificate chain and private key, as PEM files hold them.
#[derive(Clone)]
pub struct Identity {
    /// The certificates, the server's own first.
    pub certificates: Vec<u8>,
    /// The private key.
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// Why certificate and key cannot be used. Nothing of the key is in it.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No certificate can be read.
    #[error("there is no PEM certificate in the certificate file")]
    NoCertificate,
    /// No key can be read.
    #[error("there is no PEM private key in the key file")]
    NoKey,
    /// rustls refuses them, for instance because they do not belong together.
    #[error("certificate and key cannot be used")]
    Refused(#[from] rustls::Error),
}

impl Identity {
    /// Reads both.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NoCertificate`] and [`IdentityError::NoKey`].
    pub fn parse(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificates).collect();
        let certificates = certificates.or(Err(IdentityError::NoCertificate))?;
        if certificates.is_empty() {
            return Err(IdentityError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).or(Err(IdentityError::NoKey))?;
        Ok((certificates, key))
    }
}

/// What a listener speaks TLS with. Clones share one certificate.
#[derive(Debug, Clone)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

impl Tls {
    /// Speaks TLS with this certificate.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn try_new(identity: &Identity) -> Result<Self, IdentityError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(config(identity)?))))
    }

    /// Takes another certificate for handshakes from now on.
    ///
    /// # Errors
    ///
    /// [`IdentityError`]; the one in force stays.
    pub fn replace(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.0.store(Arc::new(config(identity)?));
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load_full())
    }
}

fn config(identity: &Identity) -> Result<ServerConfig, IdentityError> {
    let (certificates, key) = identity.parse()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
