//! What went wrong in TLS, in words for the operator, and what to do about it.
//!
//! rustls' own texts are names of its types for the most part. None of them leaves here.

use std::{borrow::Cow, error::Error, io, time::Duration};

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use super::verifier::{cause, is_of_an_authority};

/// What TLS says about a connection to a server that failed; `None` if it says nothing.
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    use rustls::Error as Tls;

    let Some(error) = find(error) else { return broke_off(error).then(|| SILENT.to_owned()) };
    Some(
        match error {
            Tls::InvalidCertificate(error) => explain_certificate(error),
            Tls::AlertReceived(alert) => explain_alert(*alert),
            Tls::InvalidMessage(_) => {
                "its answer is not TLS: is it plain HTTP? Then `url` must begin with http://".into()
            }
            Tls::PeerSentOversizedRecord => "what it sends is not TLS, or is damaged".into(),
            Tls::PeerIncompatible(why) => explain_mismatch(why).into(),
            Tls::NoApplicationProtocol => NO_HTTP_1.into(),
            Tls::NoCertificatesPresented => "it did not send a certificate".into(),
            Tls::DecryptError => {
                "what it sends cannot be decrypted: something in between may change it".into()
            }
            Tls::PeerMisbehaved(_)
            | Tls::InappropriateMessage { .. }
            | Tls::InappropriateHandshakeMessage { .. } => MISBEHAVES.into(),
            Tls::FailedToGetCurrentTime | Tls::FailedToGetRandomBytes => {
                "this machine's clock or random generator does not work".into()
            }
            _ => "TLS failed for a reason that hookgate has no words for".into(),
        }
        .into_owned(),
    )
}

/// What TLS says about a connection to a server that failed, or else what the error and what caused it say, in one line.
#[must_use]
pub fn in_words(error: &(dyn Error + 'static)) -> String {
    explain(error).unwrap_or_else(|| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text += ": ";
            text += &cause.to_string();
            source = cause.source();
        }
        text
    })
}

/// What TLS says about a sender's connection that failed.
#[must_use]
pub fn explain_sender(error: &(dyn Error + 'static)) -> String {
    use AlertDescription as Alert;
    use rustls::Error as Tls;

    match find(error) {
        Some(Tls::InvalidMessage(_) | Tls::PeerSentOversizedRecord) => {
            "it does not speak TLS: is it plain HTTP, to a port that speaks TLS?".into()
        }
        Some(Tls::AlertReceived(
            Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown | Alert::UnsupportedCertificate,
        )) => "the sender does not trust the certificate of `server.tls`: does the file hold the whole chain, and is it \
               for the name that the sender uses?"
            .into(),
        Some(Tls::AlertReceived(Alert::CertificateExpired | Alert::CertificateRevoked)) => {
            "the sender refuses the certificate of `server.tls`: it has expired or was revoked".into()
        }
        Some(Tls::AlertReceived(Alert::ProtocolVersion) | Tls::PeerIncompatible(_)) => {
            "nothing in common with the sender: hookgate speaks TLS 1.2 and 1.3, with modern ciphers".into()
        }
        Some(Tls::AlertReceived(alert)) => format!("the sender ended the handshake ({})", name(*alert)),
        Some(Tls::NoApplicationProtocol) => "the sender wants another protocol than HTTP/1.1".into(),
        Some(_) => "the sender violates the rules of TLS".into(),
        None if broke_off(error) => "the sender hung up in the middle of the handshake".into(),
        None => error.to_string(),
    }
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

fn broke_off(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

const SILENT: &str = "it ended the connection without any TLS: does it speak TLS 1.2 or 1.3?";

const MISBEHAVES: &str = "it violates the rules of TLS: is its software up to date?";

const NOTHING_IN_COMMON: &str = "it has nothing in common with hookgate: ciphers, key exchange or signatures. Are its settings up to date?";

const NO_HTTP_1: &str = "it does not speak HTTP/1.1";

fn explain_certificate(error: &CertificateError) -> Cow<'static, str> {
    match error {
        error if is_of_an_authority(error) => "its certificate is an authority's (CA:TRUE), which serves for a server only \
             where it is itself named as `ca`: set `ca` to that very file, or make another one with `openssl req -x509 … \
             -addext basicConstraints=critical,CA:FALSE`"
            .into(),
        CertificateError::UnknownIssuer => "its certificate is from an unknown issuer: none of the trusted authorities \
             signed it. Set `ca` to the authority's certificate, and let the service send those in between"
            .into(),
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate has expired, {} ago by this machine's clock: renew it",
            roughly(time.as_secs().saturating_sub(not_after.as_secs()))
        )
        .into(),
        CertificateError::Expired => "its certificate has expired: renew it".into(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is not valid yet, for {} more by this machine's clock: is the clock right?",
            roughly(not_before.as_secs().saturating_sub(time.as_secs()))
        )
        .into(),
        CertificateError::NotValidYet => "its certificate is not valid yet: is the clock right?".into(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            let kind = if expected.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
            let names: Vec<_> = presented.iter().filter_map(|name| bare(name)).collect();
            let names = if names.is_empty() {
                "it names no host in its subjectAltName, and the common name does not count".into()
            } else {
                format!("it names {}", names.join(", "))
            };
            format!(
                "its certificate is for another name than {expected}: {names}. Use a name of its own in `url`, or make \
                 another one with `-addext subjectAltName={kind}:{expected}`"
            )
            .into()
        }
        CertificateError::NotValidForName => "its certificate is for another name".into(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for servers: its extendedKeyUsage lacks serverAuth".into()
        }
        CertificateError::BadEncoding => "its certificate cannot be read: it is damaged".into(),
        CertificateError::BadSignature => {
            "a signature is wrong: on its certificate, or in its handshake (then it has another key)".into()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "its certificate has a key or a signature of a kind that is not taken: make one with SHA-256 or better and \
             ECDSA P-256, P-384, Ed25519 or RSA of 2048 bits or more"
                .into()
        }
        CertificateError::UnhandledCriticalExtension => {
            "its certificate has a critical extension that hookgate does not know".into()
        }
        CertificateError::Revoked => "its certificate was revoked".into(),
        other => match cause(other) {
            Some(webpki::Error::UnsupportedCertVersion) => {
                "its certificate is of version 1, which has no subjectAltName: make one of version 3"
            }
            Some(webpki::Error::NameConstraintViolation) => {
                "its certificate has a name that its authority must not sign for"
            }
            Some(webpki::Error::EndEntityUsedAsCa) => {
                "its certificate was signed with one that is not an authority's (CA:FALSE)"
            }
            _ => "its certificate, or one of those above it, is not valid: `openssl verify -x509_strict` may say more",
        }
        .into(),
    }
}

/// A host as it stands in a certificate, which is given as `DnsName("app")` or `IpAddress(10.0.0.1)`; `None` for other names.
fn bare(presented: &str) -> Option<&str> {
    let dns = presented.strip_prefix("DnsName(\"").and_then(|name| name.strip_suffix("\")"));
    dns.or_else(|| presented.strip_prefix("IpAddress(").and_then(|address| address.strip_suffix(')')))
}

/// Seconds in the largest unit of which there are two or more.
fn roughly(seconds: u64) -> String {
    let units = [(86_400, "days"), (3600, "hours"), (60, "minutes")];
    let fitting = units.into_iter().find(|(unit, _)| seconds >= 2 * unit);
    fitting.map_or_else(
        || format!("{:?}", Duration::from_secs(seconds)),
        |(unit, name)| format!("{} {name}", seconds / unit),
    )
}

fn explain_mismatch(why: &PeerIncompatible) -> &'static str {
    match why {
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
            "it speaks neither TLS 1.2 nor 1.3, and older ones are not safe"
        }
        _ => NOTHING_IN_COMMON,
    }
}

fn explain_alert(alert: AlertDescription) -> Cow<'static, str> {
    use AlertDescription as Alert;

    match alert {
        Alert::CertificateRequired => {
            "it demands a client certificate, and none is configured: set `identity`".into()
        }
        Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown | Alert::AccessDenied => {
            format!(
                "it refuses the client certificate, or demands one and got none ({}): see `identity`",
                name(alert)
            )
            .into()
        }
        Alert::CertificateExpired => "it refuses the client certificate: it has expired".into(),
        Alert::CertificateRevoked => "it refuses the client certificate: it was revoked".into(),
        Alert::NoApplicationProtocol => NO_HTTP_1.into(),
        Alert::UnrecognisedName => "it does not serve the name in `url`".into(),
        Alert::ProtocolVersion => "it speaks neither TLS 1.2 nor 1.3, and older ones are not safe".into(),
        Alert::HandshakeFailure | Alert::InsufficientSecurity => {
            "it has no ciphers in common with hookgate, or it demands a client certificate and none is configured"
                .into()
        }
        Alert::InternalError => "it has an error of its own: its log may say more".into(),
        other => format!("it ended the handshake ({})", name(other)).into(),
    }
}

/// An alert, as the standard names it.
fn name(alert: AlertDescription) -> String {
    use AlertDescription as Alert;

    let name = match alert {
        Alert::CloseNotify => "close_notify",
        Alert::UnexpectedMessage => "unexpected_message",
        Alert::BadRecordMac => "bad_record_mac",
        Alert::HandshakeFailure => "handshake_failure",
        Alert::BadCertificate => "bad_certificate",
        Alert::UnsupportedCertificate => "unsupported_certificate",
        Alert::CertificateUnknown => "certificate_unknown",
        Alert::IllegalParameter => "illegal_parameter",
        Alert::UnknownCA => "unknown_ca",
        Alert::AccessDenied => "access_denied",
        Alert::DecodeError => "decode_error",
        Alert::DecryptError => "decrypt_error",
        Alert::InternalError => "internal_error",
        Alert::UserCanceled => "user_canceled",
        Alert::MissingExtension => "missing_extension",
        other => return format!("TLS alert {}", u8::from(other)),
    };
    format!("TLS alert {name}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{InvalidMessage, OtherError, PeerMisbehaved};

    use super::*;

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

    /// Everything that rustls can say, as far as it can be made here.
    fn errors() -> Vec<rustls::Error> {
        use rustls::Error as Tls;

        let other = |error| CertificateError::Other(OtherError(Arc::new(error)));
        let mut errors: Vec<_> = (0..=u8::MAX).map(|alert| Tls::AlertReceived(alert.into())).collect();
        errors.extend(
            [
                CertificateError::BadEncoding,
                CertificateError::Expired,
                CertificateError::NotValidYet,
                CertificateError::Revoked,
                CertificateError::UnhandledCriticalExtension,
                CertificateError::UnknownIssuer,
                CertificateError::UnknownRevocationStatus,
                CertificateError::ExpiredRevocationList,
                CertificateError::BadSignature,
                CertificateError::NotValidForName,
                CertificateError::InvalidPurpose,
                CertificateError::InvalidOcspResponse,
                CertificateError::ApplicationVerificationFailure,
                other(webpki::Error::CaUsedAsEndEntity),
                other(webpki::Error::UnsupportedCertVersion),
                other(webpki::Error::MaximumPathDepthExceeded),
                other(webpki::Error::NameConstraintViolation),
                other(webpki::Error::EndEntityUsedAsCa),
            ]
            .map(Tls::InvalidCertificate),
        );
        errors.extend([
            Tls::InvalidMessage(InvalidMessage::InvalidContentType),
            Tls::InvalidMessage(InvalidMessage::MissingData("ServerHello")),
            Tls::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13),
            Tls::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon),
            Tls::PeerMisbehaved(PeerMisbehaved::TooManyEmptyFragments),
            Tls::NoCertificatesPresented,
            Tls::DecryptError,
            Tls::EncryptError,
            Tls::PeerSentOversizedRecord,
            Tls::HandshakeNotComplete,
            Tls::NoApplicationProtocol,
            Tls::FailedToGetCurrentTime,
            Tls::General("InsideInformation".into()),
        ]);
        errors
    }

    /// `CamelCase` with a capital inside is the name of a type, other than these words.
    fn type_name(text: &str) -> Option<&str> {
        const WORDS: [&str; 4] = ["subjectAltName", "extendedKeyUsage", "basicConstraints", "serverAuth"];
        text.split(|c: char| !c.is_alphanumeric()).find(|word| {
            let capital_inside =
                word.chars().zip(word.chars().skip(1)).any(|(a, b)| a.is_lowercase() && b.is_uppercase());
            capital_inside && !WORDS.contains(word)
        })
    }

    #[test]
    fn nothing_that_rustls_says_is_told_in_names_of_its_types() {
        assert_eq!(type_name("Other(OtherError(CaUsedAsEndEntity))"), Some("OtherError"));
        let errors = errors();
        assert!(errors.len() > 280);
        for error in errors {
            let told = [explain(&error).unwrap(), explain_sender(&error)];
            for text in told {
                assert_eq!(type_name(&text), None, "{text}");
                assert!(!text.contains("  ") && !text.contains('"'), "{text}");
            }
        }
    }

    #[test]
    fn names_and_times_are_told_as_people_do() {
        assert_eq!(bare("DnsName(\"app.internal\")"), Some("app.internal"));
        assert_eq!(bare("IpAddress(10.0.0.1)"), Some("10.0.0.1"));
        assert_eq!(bare("Unsupported(0x01)"), None);
        for (seconds, text) in
            [(1, "1s"), (119, "119s"), (120, "2 minutes"), (7200, "2 hours"), (200_000, "2 days")]
        {
            assert_eq!(roughly(seconds), text);
        }
    }
}
