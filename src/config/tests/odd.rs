//! What is to be warned of, and what other programs did to files and variables.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::{FOLDER, Folder, mistakes, parse, test_now, with};
use crate::{
    config::Config,
    webhook::{
        secret::Secret,
        signature::{Signature, sign},
    },
};

#[test]
fn a_newline_at_the_end_of_a_variable_is_not_part_of_it() {
    let variable = |name: &str| (name == "NEWLINE").then(|| "pulumi-webhook-test-secret\r\n".into());
    let text = with("").replace("GOOD_SECRET", "NEWLINE") + "headers = { X-A = { env = \"NEWLINE\" } }\n";
    let config = Config::parse_in(Path::new("h.toml"), &text, test_now(), &variable).unwrap();
    assert_eq!(config.webhooks[0].settings.destinations[0].headers["x-a"], "pulumi-webhook-test-secret");
    assert!(!config.warnings.iter().any(|warning| warning.text.contains("mangled")), "{:?}", config.warnings);
    let key = Secret::try_new(b"pulumi-webhook-test-secret".to_vec(), false).unwrap();
    let signature = sign(&key, b"{}");
    let signature = Signature::parse(signature.as_bytes()).unwrap();
    let verifier = &config.webhooks[0].settings.verifier;
    assert!(verifier.verify(bytes::Bytes::from_static(b"{}"), &signature, test_now()).is_ok());
}

#[test]
fn files_that_others_may_write_or_read_are_warned_of() {
    let folder = Folder::new("writers");
    let secret = folder.write("secret", b"0123456789abcdef", 0o600);
    let link = folder.0.join("link");
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    let text = with("").replace("{ env = \"GOOD_SECRET\" }", &format!("{{ file = {link:?} }}"));
    for (mode, warned) in [(0o600, 0), (0o640, 0), (0o644, 1), (0o660, 1), (0o602, 1), (0o666, 2)] {
        fs::set_permissions(&secret, Permissions::from_mode(mode)).unwrap();
        let warnings = parse(&text).unwrap().warnings;
        let warnings: Vec<_> = warnings.iter().filter(|warning| warning.text.contains("chmod")).collect();
        assert_eq!(warnings.len(), warned, "{mode:o} {warnings:?}");
        assert!(warnings.iter().all(|w| w.key == "webhook.webhooks-pulumi.secret.file"), "{warnings:?}");
        let said = |word: &str| warnings.iter().any(|warning| warning.text.contains(word));
        assert_eq!((said("chmod go-w"), said("chmod o-r")), (mode & 0o022 != 0, mode & 0o004 != 0));
    }
}

#[test]
fn private_keys_that_everybody_may_read_are_warned_of() {
    let folder = Folder::new("readers");
    let [cert, key] = ["server.crt", "server.key"].map(|name| {
        let content = fs::read(Path::new(FOLDER).join("files").join(name)).unwrap();
        folder.write(name, &content, 0o600)
    });
    let tls = |cert: &Path| format!("server.tls = {{ cert = {cert:?}, key = {key:?} }}");
    for (mode, words) in [
        (0o600, &[][..]),
        (0o440, &[]),
        (0o644, &["chmod o-r"]),
        (0o620, &["chmod go-w"]),
        (0o666, &["chmod go-w", "chmod o-r"]),
    ] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let config = parse(&with(&tls(&cert))).unwrap();
        let told: Vec<_> = config.warnings.iter().map(|warning| warning.text.as_str()).collect();
        assert_eq!(told.len(), words.len(), "{mode:o} {told:?}");
        assert!(told.iter().zip(words).all(|(told, word)| told.contains(word)), "{mode:o} {told:?}");
        assert!(config.warnings.iter().all(|warning| warning.key == "server.tls.key"));
        assert_eq!(config.files, [Path::new("hookgate.toml"), &cert, &key]);
    }
    // The key is not a certificate, and nothing of it is repeated.
    let told = mistakes(&with(&tls(&key)));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("server.tls.cert: ") && told[0].contains("holds no certificate"), "{told:?}");
}

#[test]
fn a_queue_that_others_may_read_or_nobody_may_write_is_warned_of() {
    let folder = Folder::new("queue");
    let told = |path: &Path| {
        let config = parse(&with(&format!("queue.path = {path:?}"))).unwrap();
        let told: Vec<_> = config.warnings.into_iter().map(|warning| (warning.key, warning.text)).collect();
        assert!(told.iter().all(|(key, _)| key == "queue.path"), "{told:?}");
        told.into_iter().map(|(_, text)| text).collect::<Vec<_>>()
    };
    let file = folder.0.join("queue.db");
    assert_eq!(told(&file), Vec::<String>::new());
    for (name, mode, warned) in [
        ("queue.db", 0o600, 0),
        ("queue.db", 0o640, 1),
        ("queue.db-wal", 0o604, 2),
        ("queue.db", 0o600, 1),
        ("queue.db-wal", 0o600, 0),
    ] {
        folder.write(name, b"", mode);
        let told = told(&file);
        assert_eq!(told.len(), warned, "{name} {mode:o} {told:?}");
        assert!(told.iter().all(|text| text.contains("chmod 600")), "{told:?}");
    }
    assert!(
        told(&folder.0.join("none/queue.db"))[0].contains("none is not a folder that this user may write to")
    );
    assert!(told(&file.join("queue.db"))[0].contains("not a folder"));
}

#[test]
fn what_goes_to_another_machine_without_tls_is_warned_of() {
    for (url, warned) in [
        ("http://127.0.0.1:3000/", false),
        ("http://localhost/", false),
        ("http://[::1]/", false),
        ("unix:/run/app.sock:/", false),
        ("https://app/", false),
        ("http://app/", true),
        ("http://192.0.2.1:80/", true),
    ] {
        let text = with("").replace("http://127.0.0.1:3000/", url);
        let warnings = parse(&text).unwrap().warnings;
        assert_eq!(warnings.iter().any(|warning| warning.text.contains("without TLS")), warned, "{url}");
    }
}

#[test]
fn a_star_in_a_path_stands_for_itself_and_is_warned_of() {
    let warnings = parse(&with("").replace("/webhooks/pulumi", "/webhooks/*")).unwrap().warnings;
    assert!(warnings[0].text.contains("a path is compared exactly"), "{warnings:?}");
}

#[test]
fn what_an_editor_did_to_a_certificate_is_named() {
    let folder = Folder::new("editor");
    let pem = fs::read_to_string(Path::new(FOLDER).join("files/ca.pem")).unwrap();
    let utf16: Vec<u8> = pem.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (content, words) in
        [([b"\xef\xbb\xbf", pem.as_bytes()].concat(), "byte order mark"), (utf16, "UTF-16")]
    {
        let path = folder.write("ca.pem", &content, 0o600);
        let text = with("").replace("http://127.0.0.1:3000/", "https://app/") + &format!("ca = {path:?}\n");
        let told = mistakes(&text);
        assert!(told.len() == 1 && told[0].contains(words), "{told:?}");
    }
}

#[test]
fn a_queue_on_another_machine_without_tls_is_warned_of() {
    let ca = "ca = \"tests/data/config/files/ca.pem\"";
    for (url, more, warned) in [
        ("nats://nats:4222", "", true),
        ("nats://127.0.0.1,nats://nats", "", true),
        ("tls://nats:4222", "", false),
        ("nats://nats:4222", ca, false),
        ("nats://localhost:4222,nats://[::1]", "", false),
    ] {
        let text = with(&format!("[queue]\nstore = \"nats\"\nurl = \"{url}\"\n{more}"));
        let warnings = parse(&text).unwrap().warnings;
        assert_eq!(warnings.iter().any(|warning| warning.key == "queue.url"), warned, "{url} {more}");
    }
}
