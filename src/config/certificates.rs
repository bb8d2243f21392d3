//! Files of certificates and keys: `server.tls`, and `identity` and `ca` of a destination.
//!
//! They are read and checked here, so that what is wrong with them is reported with everything else. What was read
//! of a key is cleared from memory, and no text repeats it.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{origin::warn_of_mode, reader::Item, units::show_instant};
use crate::net::tls::{Authorities, Certificates, CertificatesError, Identity, IdentityError, Key, KeyError};
use crate::webhook::mangled;

/// The files of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate, and those of its issuers.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The longest file, in bytes. The certificates of every public authority together have a quarter of this.
const MAX_PEM: usize = 1 << 20;

/// How long before the end of a certificate it is warned of.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// `{ cert = "…", key = "…" }`.
pub(super) fn identity(item: Item<'_>) -> Option<(Identity, IdentityFiles)> {
    let context = item.context;
    let mut table = item.table("{ cert = \"…\", key = \"…\" }, both of them PEM files")?;
    let cert = table.require("cert", "write cert = \"/etc/hookgate/tls.crt\", a PEM file");
    let key = table.require("key", "write key = \"/etc/hookgate/tls.key\", a PEM file");
    let (at, name, cert_name) = (table.at, table.key.clone(), table.path("cert"));
    table.finish();

    let cert_at = cert.as_ref().map_or(at, |cert| cert.at);
    let certificates = cert.and_then(|item| certificates(&item));
    let key = key.and_then(|item| private_key(&item));
    let ((cert, certificates), (key, private)) = (certificates?, key?);
    match Identity::try_new(certificates, &private) {
        Ok(identity) => Some((identity, IdentityFiles { cert, key })),
        Err(IdentityError::Mismatch) => {
            let text = format_args!(
                "the key in {} does not belong to the first certificate in {}: use a key and a certificate that were made for each other, and put the server's own certificate first",
                key.display(),
                cert.display()
            );
            context.mistake(at, &name, text);
            None
        }
        Err(IdentityError::Certificate) => {
            let text =
                format_args!("the first certificate in {} cannot be read: it must be X.509", cert.display());
            context.mistake(cert_at, &cert_name, text);
            None
        }
    }
}

/// A path. Who wrote the content of the file in its place finds it in no report.
fn path<'c>(item: &Item<'c>) -> Option<&'c Path> {
    let text = item.text("a path in quotes")?;
    if text.contains("-----") || text.contains(char::is_control) {
        item.mistake("must be the path of a PEM file: write its content into a file, and the path here");
        return None;
    }
    Some(Path::new(text))
}

fn certificates(item: &Item<'_>) -> Option<(PathBuf, Certificates)> {
    let path = path(item)?;
    let put = "write the path of a PEM file with the certificate, followed by those of its issuers";
    let (path, certificates) = read(item, path, put, false, |pem| {
        Certificates::parse(pem).map_err(|error| wrong_certificates(path, error))
    })?;
    if let Some(at) = certificates.expires() {
        item.context.certificates_end(&path, at);
        warn_of_end(item, &path, at);
    }
    Some((path, certificates))
}

fn private_key(item: &Item<'_>) -> Option<(PathBuf, Key)> {
    let path = path(item)?;
    let put = "write the path of a PEM file with the private key, readable for hookgate's user";
    read(item, path, put, true, |pem| Key::parse(pem).map_err(|error| wrong_key(path, error)))
}

/// `ca`: the authorities to trust.
pub(super) fn authorities(item: &Item<'_>) -> Option<(PathBuf, Authorities)> {
    let path = path(item)?;
    let put = "write the path of a PEM file with the certificates of the authorities to trust";
    let (path, authorities) = read(item, path, put, false, |pem| {
        Authorities::parse(pem).map_err(|error| wrong_certificates(path, error))
    })?;
    // Old and new authorities stand side by side while they change, so the end of one is nothing to warn of.
    if let Some(at) = authorities.expires() {
        item.context.certificates_end(&path, at);
    }
    Some((path, authorities))
}

/// A certificate that has ended, or will soon, is refused by whoever it is shown to.
fn warn_of_end(item: &Item<'_>, path: &Path, at: SystemTime) {
    let (path, end) = (path.display(), show_instant(at));
    match at.duration_since(item.context.now) {
        Err(_) => item.warning(format_args!(
            "a certificate in {path} has expired, at {end}: put a new one there, or the other side refuses it"
        )),
        Ok(left) if left <= SOON => item.warning(format_args!(
            "a certificate in {path} expires at {end}: put a new one there in time; it is taken without a restart"
        )),
        Ok(_) => {}
    }
}

/// The file's path, and what is in it. `put` says what must be there; a key is `private`.
fn read<T>(
    item: &Item<'_>,
    path: &Path,
    put: &str,
    private: bool,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Option<(PathBuf, T)> {
    item.context.name_file(path);
    let mistake = |text: &dyn Display| item.mistake(text);
    match item.context.read(path, MAX_PEM) {
        Ok(content) => {
            warn_of_mode(item, path, content.mode, private);
            match odd_text(&content.bytes) {
                Some(odd) => mistake(&format_args!("{} {odd}", path.display())),
                None => match parse(&content.bytes) {
                    Ok(parsed) => return Some((path.to_owned(), parsed)),
                    Err(text) => mistake(&text),
                },
            }
        }
        Err(error) => mistake(&format_args!("{error}; {put}")),
    }
    None
}

/// What an editor did to a text that nobody reads like that.
pub(super) fn odd_text(content: &[u8]) -> Option<&'static str> {
    if content.starts_with(mangled::MARK) {
        Some("begins with a byte order mark (U+FEFF): save it as UTF-8 without one")
    } else if mangled::is_utf16(content) {
        Some("is UTF-16: save it as UTF-8 without a byte order mark")
    } else {
        None
    }
}

fn wrong_certificates(path: &Path, error: CertificatesError) -> String {
    let path = path.display();
    match error {
        CertificatesError::Missing => {
            format!("{path} holds no certificate: it must be in PEM, with -----BEGIN CERTIFICATE-----")
        }
        CertificatesError::Broken => {
            format!("{path} is incomplete: it must be PEM certificates, each from BEGIN to END")
        }
        CertificatesError::Unusable => {
            format!("a certificate in {path} cannot be read: each must be X.509, remove the one that is not")
        }
    }
}

fn wrong_key(path: &Path, error: KeyError) -> String {
    let path = path.display();
    match error {
        KeyError::Missing => {
            format!("{path} holds no private key: it must be in PEM, with -----BEGIN PRIVATE KEY-----")
        }
        KeyError::Broken => format!("{path} is incomplete: it must be a PEM private key from BEGIN to END"),
        KeyError::Encrypted => format!(
            "the private key in {path} is encrypted, and hookgate cannot ask for its passphrase: decrypt it, e.g. with `openssl pkey -in OLD -out NEW`"
        ),
        KeyError::Unusable => format!(
            "the private key in {path} cannot be used: it must be ECDSA (P-256 or P-384), Ed25519, or RSA of 2048 to 4096 bits"
        ),
    }
}
