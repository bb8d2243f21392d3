//! Whether a server is who it is to be: what rustls says, and one thing more.
//!
//! `openssl req -x509` makes a certificate of an authority (CA:TRUE), which rustls takes for a server's under no
//! circumstances. Whoever names that very certificate as `ca` means it, so it is accepted: this one and no other, with
//! its name and its time checked, from a server that proves that it has the key.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Authorities, explain, provider};

/// Trusts authorities, and the very certificates that were named.
#[derive(Debug)]
pub(super) struct Verifier {
    usual: Arc<WebPkiServerVerifier>,
    named: Arc<[CertificateDer<'static>]>,
}

impl Verifier {
    pub(super) fn try_new(authorities: &Authorities) -> Result<Self, Error> {
        let roots = Arc::clone(&authorities.roots);
        let usual = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        let usual = usual.map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { usual, named: Arc::clone(&authorities.named) })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // By then its time was found to be right: that is looked at first, and tests hold it.
            Err(Error::InvalidCertificate(error))
                if is_of_an_authority(&error) && self.named.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Says in words why a server's certificate is not taken.
pub(super) struct Telling {
    verifier: Verifier,
    told: Box<dyn Fn(String) + Send + Sync>,
}

impl Telling {
    pub(super) fn new(verifier: Verifier, told: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self { verifier, told: Box::new(told) }
    }
}

impl fmt::Debug for Telling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telling").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Telling {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict =
            self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verdict.inspect_err(|error| {
            if let Some(words) = explain(error) {
                (self.told)(words);
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Whether all that is wrong so far is that an authority's certificate (CA:TRUE) is shown as a server's.
pub(super) fn is_of_an_authority(error: &CertificateError) -> bool {
    matches!(cause(error), Some(webpki::Error::CaUsedAsEndEntity))
}

/// What lies behind an error that rustls has no word of its own for.
pub(super) fn cause(error: &CertificateError) -> Option<&webpki::Error> {
    match error {
        CertificateError::Other(other) => other.0.downcast_ref(),
        _ => None,
    }
}
