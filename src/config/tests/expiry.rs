//! When the certificates in the files end.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::{FOLDER, Folder, parse, test_variable, with};
use crate::config::Config;

/// The end of `server.crt`, 2126-10-30T21:17:28Z.
const SERVER: Duration = Duration::from_secs(4_949_068_648);
/// That of `ca.pem`.
const CA: Duration = Duration::from_secs(4_949_067_458);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn file(name: &str) -> String {
    Path::new(FOLDER).join("files").join(name).to_str().unwrap().to_owned()
}

/// The end of each file, by its path.
fn ends(config: &Config) -> Vec<(&str, SystemTime)> {
    config.certificates.iter().map(|(file, at)| (file.to_str().unwrap(), *at)).collect()
}

#[test]
fn every_file_with_certificates_has_its_end() {
    let (cert, key, ca) = (file("server.crt"), file("server.key"), file("ca.pem"));
    let pair = format!("{{ cert = {cert:?}, key = {key:?} }}");
    let of_cert = [(cert.as_str(), UNIX_EPOCH + SERVER)];
    let of_ca = [(ca.as_str(), UNIX_EPOCH + CA)];
    let https = with("").replace("http:", "https:");
    for (text, expected) in [
        (with(""), &[][..]),
        (with(&format!("server.tls = {pair}")), &of_cert),
        (format!("{https}identity = {pair}"), &of_cert),
        (format!("{https}ca = {ca:?}"), &of_ca),
        (with(&format!("[queue]\nstore = \"nats\"\nurl = \"tls://a\"\nca = {ca:?}")), &of_ca),
        (format!("server.tls = {pair}\n{https}identity = {pair}\nca = {ca:?}"), &[of_ca[0], of_cert[0]]),
    ] {
        assert_eq!(ends(&parse(&text).unwrap()), expected, "{text}");
    }
}

#[test]
fn a_certificate_is_warned_of_from_14_days_before_its_end_on() {
    let tls = format!("{{ cert = {:?}, key = {:?} }}", file("server.crt"), file("server.key"));
    let https = with("").replace("http:", "https:");
    let server = with(&format!("server.tls = {tls}"));
    let client = format!("{https}identity = {tls}");
    let trusted = format!("{https}ca = {:?}", file("ca.pem"));
    let second = Duration::from_secs(1);
    for (now, words) in [
        (SERVER - 14 * DAY - second, None),
        (SERVER - 14 * DAY, Some("server.crt expires at 2126-10-30T21:17:28Z: ")),
        (SERVER, Some("server.crt expires at 2126-10-30T21:17:28Z: ")),
        (SERVER + second, Some("server.crt has expired, at 2126-10-30T21:17:28Z: ")),
    ] {
        for (text, key) in [
            (&server, Some("server.tls.cert")),
            (&client, Some("webhook.webhooks-pulumi.destination.default.identity.cert")),
            (&trusted, None),
        ] {
            let path = Path::new("hookgate.toml");
            let config = Config::parse_in(path, text, UNIX_EPOCH + now, &test_variable).unwrap();
            let mut told = config.warnings.iter().filter(|warning| warning.text.contains("expire"));
            match (told.next(), key.zip(words)) {
                (Some(told), Some((key, words))) => {
                    assert_eq!(told.key, key);
                    assert!(told.text.contains(words), "{told}");
                }
                (told, expected) => assert!(told.is_none() && expected.is_none(), "{told:?} {expected:?}"),
            }
            assert!(told.next().is_none(), "{:?}", config.warnings);
        }
    }
}

/// Whom TLS trusts is not asked here.
#[test]
fn a_chain_ends_with_its_first_certificate_to_end() {
    let folder = Folder::new("chain");
    let key = KeyPair::generate().unwrap();
    let chain = [2060, 2027, 2031].map(|year| {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 15);
        params.self_signed(&key).unwrap().pem()
    });
    let cert = folder.write("tls.crt", chain.concat().as_bytes(), 0o644);
    // Not a certificate, behind one that is.
    let odd = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    let half = folder.write("half.crt", format!("{}{odd}", chain[1]).as_bytes(), 0o644);
    let key = folder.write("tls.key", key.serialize_pem().as_bytes(), 0o600);
    for cert in [cert, half] {
        let config = parse(&with(&format!("server.tls = {{ cert = {cert:?}, key = {key:?} }}"))).unwrap();
        let end = UNIX_EPOCH + Duration::from_secs(1_799_971_200);
        assert_eq!(ends(&config), [(cert.to_str().unwrap(), end)]);
    }
}
