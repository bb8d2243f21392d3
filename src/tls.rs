//! Certificates, keys and authorities: what TLS towards senders and towards upstreams have in common.
//!
//! What leaves here can be used: a key belongs to its certificate, an authority is a certificate. Nothing of a key
//! is ever in a text. Files are read elsewhere, except for the platform's authorities; connections are opened
//! elsewhere.

use std::{error::Error, fmt, io, sync::Arc};

use memchr::memmem;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, InconsistentKeys, RootCertStore,
    crypto::{CryptoProvider, ring},
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

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
    /// A block does not end, or is no base64.
    #[error("its PEM is not whole")]
    Broken,
    /// A certificate is none that can be used.
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
    /// A block does not end, or is no base64.
    #[error("its PEM is not whole")]
    Broken,
    /// It needs a passphrase.
    #[error("the private key is encrypted")]
    Encrypted,
    /// It is of a kind that is not supported.
    #[error("the private key is none that can be used")]
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

/// Why certificate and key are no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The first certificate is of another key.
    #[error("the key does not belong to the certificate")]
    Mismatch,
    /// The first certificate is none that can be used.
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
pub struct Authorities(Arc<RootCertStore>);

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
        for certificate in Certificates::parse(pem)?.0 {
            roots.add(certificate).or(Err(CertificatesError::Unusable))?;
        }
        Ok(Self(Arc::new(roots)))
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
        if roots.is_empty() { Err(NoRoots) } else { Ok(Self(Arc::new(roots))) }
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.0.len())
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
        .with_root_certificates(Arc::clone(&authorities.0));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity.resolver()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// What TLS says about a connection that failed, in words for the operator; `None` if it says nothing.
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let error = find(error)?;
    Some(match error {
        rustls::Error::InvalidCertificate(error) => explain_certificate(error),
        rustls::Error::AlertReceived(alert) => explain_alert(*alert),
        rustls::Error::InvalidMessage(_) => "what it answers is not TLS: is it plain HTTP?".into(),
        other => other.to_string(),
    })
}

/// Whether the other side ended the connection by a TLS alert: it does not want what TLS was made of.
#[must_use]
pub fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    matches!(find(error), Some(rustls::Error::AlertReceived(_)))
}

/// The TLS error among an error and its causes. An [`io::Error`] is not the cause of itself.
fn find<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner: Option<&'e (dyn Error + 'static)> =
            inner.map(|inner| -> &'e (dyn Error + 'static) { inner });
        if let Some(found) = inner.unwrap_or(error).downcast_ref() {
            return Some(found);
        }
        next = inner.or_else(|| error.source());
    }
    None
}

fn explain_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "its certificate is from an unknown issuer: none of the trusted authorities signed it".into()
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate has expired, {} s ago by this machine's clock",
            time.as_secs().saturating_sub(not_after.as_secs())
        ),
        CertificateError::Expired => "its certificate has expired".into(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is not valid yet, for {} s more by this machine's clock",
            not_before.as_secs().saturating_sub(time.as_secs())
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented = if presented.is_empty() { "none".into() } else { presented.join(", ") };
            format!("its certificate is for another name than {}: it names {presented}", expected.to_str())
        }
        CertificateError::NotValidForName => "its certificate is for another name".into(),
        other => format!("its certificate is not valid: {other}"),
    }
}

fn explain_alert(alert: AlertDescription) -> String {
    use AlertDescription as Alert;

    match alert {
        Alert::CertificateRequired => "it demands a client certificate, and there is none".into(),
        Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown | Alert::AccessDenied => {
            format!("it refuses the client certificate, or that there is none (alert {alert:?})")
        }
        Alert::CertificateExpired => "it refuses the client certificate: that has expired".into(),
        Alert::NoApplicationProtocol => "it does not speak HTTP/1.1".into(),
        other => format!("it refuses the connection (alert {other:?})"),
    }
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

    #[test]
    fn a_tls_error_is_found_among_its_wrappings() {
        let error = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let once = io::Error::new(io::ErrorKind::InvalidData, error());
        let twice = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error()));
        let wrappings: [&(dyn Error + 'static); 3] = [&error(), &once, &twice];
        for wrapped in wrappings {
            assert!(explain(wrapped).is_some_and(|text| text.contains("unknown issuer")), "{wrapped}");
            assert!(!is_refusal(wrapped));
        }
        let alert = io::Error::other(rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
        assert!(
            is_refusal(&alert) && explain(&alert).is_some_and(|text| text.contains("client certificate"))
        );
        assert_eq!(explain(&io::Error::from(io::ErrorKind::ConnectionReset)), None);
    }
}
