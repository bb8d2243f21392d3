//! Secrets in the places of other values: no report repeats one.

use std::path::Path;

use super::parse;
use crate::{config::QueueView, files::Patience};

/// Every key, with secrets of every form in the place of its value, and in the place of a key.
#[test]
fn no_report_repeats_what_is_as_long_as_a_secret() {
    const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
listen_mode = "0660"
max_body = "1MiB"
max_connections = 1024
idle_timeout = "60s"
tls = { cert = "x", key = "x" }
[ops]
listen = "127.0.0.1:0"
[log]
format = "json"
level = "info"
[dedupe]
window = "2m"
[queue]
store = "nats"
url = "nats://nats:4222"
stream = "HOOKGATE"
credentials = { file = "x" }
ca = "x"
max_age = "24h"
backoff = { initial = "1s", max = "1h" }
concurrency = 16
[[webhook]]
path = "/hook"
secret = [{ file = "x" }, { env = "x", allow_short = true }, { file = "x", expires = "x" }]
events = ["environments"]
scope = "organization"
environments = ["website/*"]
tags = ["stable"]
kind_check = "enforce"
[[webhook.destination]]
url = "https://app/"
format = "raw"
timeout = "10s"
headers = { X-A = { file = "x" }, X-B = { env = "x" } }
ca = "x"
identity = { cert = "x", key = "x" }
events = ["environments"]
order = "environment"
coalesce = "10s"
"#;
    // As `openssl rand` makes them, with slashes and prefixes, in capitals, in words, in digits.
    let secrets = [
        "canary-secret-5f1c09e2b7a84d36",
        "5f1c09e2b7a84d3600112233445566ffcanary",
        "c4n4ryS3cr3t/kJ8sdh3Kd83jdKDj38dKD83jdkf9kJ8=",
        "/c4n4ryS3cr3t+kJ8sdh3Kd83jdKDj38dKD83jdkf9kJ8",
        "C4N4RYSECRETJBSWY3DPEHPK3PXP",
        "secret-canary-5f1c09e2b7a84d36",
        "canary secret battery staple",
        "123456789012345678901234567890",
    ];
    let mut seen = 0;
    for secret in secrets {
        for text in texts(CONFIG, secret) {
            let view = QueueView::parse(Path::new("h.toml"), &text, &Patience::default()).err();
            let whole = parse(&text).err();
            for report in whole.iter().chain(&view) {
                let said = report.to_string();
                assert!(!said.contains(secret), "{secret} is in\n{said}\nabout{text}");
                seen += 1;
            }
        }
    }
    assert!(seen > 1_500, "{seen}");
}

/// The text with the secret in each of its places in turn.
fn texts(config: &str, secret: &str) -> Vec<String> {
    let mut texts = vec![
        config.replace("https://app/", &format!("https://{secret}:x@app/")),
        config.replace("https://app/", &format!("https://app:x/{secret}?{secret}#{secret}")),
        config.replace("nats://nats:4222", &format!("nats://{secret}@nats:4222")),
    ];
    for (number, line) in config.lines().enumerate() {
        let mut replaced = |new: String| {
            let lines = config.lines().enumerate();
            let lines: Vec<_> = lines.map(|(n, old)| if n == number { new.as_str() } else { old }).collect();
            texts.push(lines.join("\n"));
        };
        if line.starts_with('[') {
            replaced(format!("{line}\n\"{secret}\" = 1"));
            continue;
        }
        let Some((key, value)) = line.split_once(" = ") else { continue };
        replaced(format!("{key} = \"{secret}\""));
        replaced(format!("{key} = [\"{secret}\"]"));
        replaced(format!("{key} = {{ \"{secret}\" = \"{secret}\" }}"));
        replaced(format!("{key} = {secret}"));
        replaced(format!("{key} = \"{secret}"));
        for quoted in value.split('"').skip(1).step_by(2) {
            replaced(line.replacen(&format!("\"{quoted}\""), &format!("\"{secret}\""), 1));
        }
    }
    texts
}
