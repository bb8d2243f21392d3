//! Certificates, keys and authorities: what TLS towards senders and towards upstreams have in common.
//!
//! What leaves here can be used: a key belongs to its certificate, an authority is a certificate. Nothing of a key
//! is ever in a text. Files are read elsewhere, except for the platform's authorities; connections are opened
//! elsewhere.

mod expiry;
mod verifier;
mod words;

use std::{fmt, sync::Arc, time::SystemTime};

use memchr::memmem;
use rustls::{
    ClientConfig, InconsistentKeys, RootCertStore,
    crypto::{CryptoProvider, ring},
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use verifier::Verifier;
pub use words::{explain, explain_sender, in_words, is_refusal};

/// The protocol that is spoken over TLS, on either side.
pub const ALPN: &[u8] = b"http/1.1";

/// The implementation of the cryptography.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A chain of certificates, the owner's first. Never empty.
#[derive(Debug, Clone)]
pub struct Certificates(Vec<CertificateDer<'static>>);

/// Why there are no certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificatesError {
    /// There is none in it.
    #[error("there is no PEM certificate in it")]
    Missing,
    /// A block does not end, or is not base64.
    #[error("its PEM is incomplete")]
    Broken,
    /// A certificate cannot be used.
    #[error("a certificate in it cannot be used")]
    Unusable,
}

impl Certificates {
    /// Reads the content of a PEM file. What is in it besides certificates is left alone.
    ///
    /// # Errors
    ///
    /// [`CertificatesError::Missing`] and [`CertificatesError::Broken`].
    pub fn parse(pem: &[u8]) -> Result<Self, CertificatesError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        // The decoder's errors repeat lines of the file, which may be another one than was meant.
        match found {
            Ok(found) if found.is_empty() => Err(CertificatesError::Missing),
            Ok(found) => Ok(Self(found)),
            Err(_) => Err(CertificatesError::Broken),
        }
    }

    /// When the first of them ends, as far as they can be read.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        expiry::earliest(&self.0)
    }
}

/// A private key.
#[derive(Clone)]
pub struct Key(Arc<dyn SigningKey>);

/// Why there is no private key. Nothing of the file is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is none in it.
    #[error("there is no PEM private key in it")]
    Missing,
    /// A block does not end, or is not base64.
    #[error("its PEM is incomplete")]
    Broken,
    /// It needs a passphrase.
    #[error("the private key is encrypted")]
    Encrypted,
    /// It is of a kind that is not supported.
    #[error("the private key cannot be used")]
    Unusable,
}

impl Key {
    /// Reads the first private key of a PEM file's content.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn parse(pem: &[u8]) -> Result<Self, KeyError> {
        if ["BEGIN ENCRYPTED PRIVATE KEY", "4,ENCRYPTED"]
            .iter()
            .any(|mark| memmem::find(pem, mark.as_bytes()).is_some())
        {
            return Err(KeyError::Encrypted);
        }
        match PrivateKeyDer::pem_slice_iter(pem).next() {
            None => Err(KeyError::Missing),
            Some(Err(_)) => Err(KeyError::Broken),
            Some(Ok(key)) => {
                let key = Zeroizing::new(key);
                ring::sign::any_supported_type(&key).map(Self).or(Err(KeyError::Unusable))
            }
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// A certificate with its key: who one is towards the other side. Clones are cheap.
#[derive(Clone)]
pub struct Identity(Arc<CertifiedKey>);

/// Why a certificate and a key are not an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The first certificate is of another key.
    #[error("the key does not belong to the certificate")]
    Mismatch,
    /// The first certificate cannot be used.
    #[error("the certificate cannot be used")]
    Certificate,
}

impl Identity {
    /// Puts a certificate and its key together.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn try_new(certificates: Certificates, key: &Key) -> Result<Self, IdentityError> {
        let identity = CertifiedKey::new(certificates.0, Arc::clone(&key.0));
        match identity.keys_match() {
            Ok(()) => Ok(Self(Arc::new(identity))),
            Err(rustls::Error::InconsistentKeys(
                InconsistentKeys::KeyMismatch | InconsistentKeys::Unknown,
            )) => Err(IdentityError::Mismatch),
            Err(_) => Err(IdentityError::Certificate),
        }
    }

    /// Presents this identity on every connection.
    #[must_use]
    pub fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.0)))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// Whose certificates are trusted. Clones are cheap.
#[derive(Clone)]
pub struct Authorities {
    roots: Arc<RootCertStore>,
    /// Certificates that were named one by one: a server may show one of these itself, even if it is an authority's.
    named: Arc<[CertificateDer<'static>]>,
}

/// The platform has no usable root certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no root certificates were found on this system: install them, point SSL_CERT_FILE to them, or name a CA file"
)]
pub struct NoRoots;

impl Authorities {
    /// Those in the content of a PEM file.
    ///
    /// # Errors
    ///
    /// [`CertificatesError`].
    pub fn parse(pem: &[u8]) -> Result<Self, CertificatesError> {
        let mut roots = RootCertStore::empty();
        let named = Certificates::parse(pem)?.0;
        for certificate in &named {
            roots.add(certificate.clone()).or(Err(CertificatesError::Unusable))?;
        }
        Ok(Self { roots: Arc::new(roots), named: named.into() })
    }

    /// Those of the platform, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    ///
    /// # Errors
    ///
    /// [`NoRoots`].
    pub fn platform() -> Result<Self, NoRoots> {
        let mut roots = RootCertStore::empty();
        // A system's store may hold certificates that rustls does not take; the others serve.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() { Err(NoRoots) } else { Ok(Self { roots: Arc::new(roots), named: Arc::new([]) }) }
    }

    /// When the first of those that were named ends, as far as they can be read. `None` for those of the platform.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        expiry::earliest(&self.named)
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.roots.len())
    }
}

/// How to open connections: TLS 1.2 and 1.3, whom to trust, and who one is if the other side asks.
///
/// # Errors
///
/// If the provider does not fit, which no configuration and no peer can bring about.
pub fn client(
    authorities: &Authorities,
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        // It trusts what rustls' own trusts, and the very certificates that were named.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::try_new(authorities)?));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity.resolver()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The same for a library that opens the connection and keeps its errors to itself: `told` hears, in the words of
/// [`explain`], why a server's certificate is not taken. No protocol is asked for.
///
/// # Errors
///
/// As [`client`].
pub fn client_told(
    authorities: &Authorities,
    told: impl Fn(String) + Send + Sync + 'static,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::clone(&*client(authorities, None)?);
    config.alpn_protocols.clear();
    let verifier = Arc::new(verifier::Telling::new(Verifier::try_new(authorities)?, told));
    config.dangerous().set_certificate_verifier(verifier);
    Ok(config)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A certificate for `localhost` that signed itself, and its key.
    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    fn identity(cert: &str, key: &str) -> Result<Identity, IdentityError> {
        let (cert, key) =
            (Certificates::parse(cert.as_bytes()).unwrap(), Key::parse(key.as_bytes()).unwrap());
        Identity::try_new(cert, &key)
    }

    #[test]
    fn a_key_belongs_to_the_first_certificate() {
        let ((cert, key), (other, other_key)) = (pair(), pair());
        assert!(identity(&cert, &key).is_ok());
        assert!(identity(&format!("{cert}{other}"), &key).is_ok());
        assert_eq!(identity(&format!("{other}{cert}"), &key).err(), Some(IdentityError::Mismatch));
        assert_eq!(identity(&cert, &other_key).err(), Some(IdentityError::Mismatch));
        // One file may hold both.
        let both = format!("{key}{cert}");
        assert!(identity(&both, &both).is_ok());
    }

    #[test]
    fn what_is_no_pem_is_told_apart() {
        let (cert, key) = pair();
        let half = |pem: &str| pem.get(..pem.len() / 2).unwrap().to_owned();
        let certificates = |pem: &str| Certificates::parse(pem.as_bytes()).err();
        assert_eq!(certificates(""), Some(CertificatesError::Missing));
        assert_eq!(certificates(&key), Some(CertificatesError::Missing));
        assert_eq!(certificates(&half(&cert)), Some(CertificatesError::Broken));
        let parsed = |pem: &str| Key::parse(pem.as_bytes()).err();
        assert_eq!(parsed(&cert), Some(KeyError::Missing));
        assert_eq!(parsed(&half(&key)), Some(KeyError::Broken));
        let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
        assert_eq!(parsed(&encrypted), Some(KeyError::Encrypted));
        let nonsense = "-----BEGIN PRIVATE KEY-----\nbm90IGEga2V5\n-----END PRIVATE KEY-----\n";
        assert_eq!(parsed(nonsense), Some(KeyError::Unusable));
        let nonsense = nonsense.replace("PRIVATE KEY", "CERTIFICATE");
        assert_eq!(Authorities::parse(nonsense.as_bytes()).err(), Some(CertificatesError::Unusable));
    }

    #[test]
    fn nothing_prints_itself() {
        let (cert, key) = pair();
        let key_line = key.lines().nth(1).unwrap();
        let parsed = Key::parse(key.as_bytes()).unwrap();
        let printed = format!("{parsed:?} {:?}", identity(&cert, &key));
        assert_eq!(printed, "Key(..) Ok(Identity(..))");
        assert!(!printed.contains(key_line));
    }
}
