//! Signatures: known answers, those of other tools, and every form that is not a signature.

use std::process::{Command, Stdio};

use crate::support::{Delivery, Reply, SECRET, Setup, Upstream, known_answers, sample};

#[test]
fn the_known_answers_pass_and_their_neighbours_do_not() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    let table = known_answers();
    assert_eq!(table.len(), 21);
    for (file, _, signature) in &table {
        let sample = sample(file.strip_suffix(".json").unwrap());
        println!("{file}");
        hookgate.send(&Delivery::of(sample).signature(signature)).assert_forwarded(200);
        let last = if signature.ends_with('0') { "1" } else { "0" };
        let mut near = signature.clone();
        near.pop();
        hookgate.send(&Delivery::of(sample).signature(&(near + last))).assert_refused(401, "bad_signature");
    }
    assert_eq!(upstream.requests().len(), 21);
}

#[test]
fn the_signature_of_an_empty_body_is_right_and_the_body_is_not() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let known = "a81af229532c5a5b8093cb9e9ca710d7cf7c794b20306159abf6d531fa56e1d7";
    hookgate.send(&Delivery::good().tampered("").signature(known)).assert_refused(422, "bad_payload");
}

#[test]
fn signatures_made_by_openssl_pass() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let sample = sample("environment_revision.created");
    let output = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", SECRET, "-hex"])
        .arg(sample.path())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let signature = text.trim().rsplit(' ').next().unwrap();
    hookgate.send(&Delivery::of(sample).signature(signature)).assert_forwarded(200);
}

#[test]
fn either_case_of_hex_passes_and_arrives_in_lower_case() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let lower = Delivery::good().header_value("Pulumi-Webhook-Signature").to_owned();
    let mut mixed = lower.to_ascii_uppercase();
    mixed.truncate(32);
    mixed.extend(lower.chars().skip(32));
    for signature in [lower.to_ascii_uppercase(), mixed, lower.clone()] {
        hookgate.send(&Delivery::good().signature(&signature)).assert_forwarded(200);
        assert_eq!(
            upstream.requests().last().unwrap().header("pulumi-webhook-signature"),
            Some(lower.as_str())
        );
    }
}

#[test]
fn anything_but_64_hex_digits_is_refused() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let right = Delivery::good().header_value("Pulumi-Webhook-Signature").to_owned();
    let spaced: String = right.chars().flat_map(|digit| [digit, ' ']).collect();
    let malformed = [
        format!("sha256={right}"),
        format!("0x{right}"),
        format!("{right},{right}"),
        format!("{right}00"),
        format!("{right}\u{e9}"),
        format!("\"{right}\""),
        right.replacen(|_: char| true, "g", 1),
        "0".repeat(63),
        "0".repeat(64),
        "0".repeat(4000),
        spaced,
        // The same digest in base64, as Pulumi's Python sample makes it.
        "0gb3bUzTcJB5ECsBKtebz0vdbUzWwK0P1nS0Dv6kdLE=".to_owned(),
        "true".to_owned(),
        "null".to_owned(),
        String::new(),
    ];
    for signature in malformed {
        println!("{signature:.80}");
        hookgate.send(&Delivery::good().signature(&signature)).assert_refused(401, "bad_signature");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let body = Delivery::good().the_body().to_vec();
    let mut connection = hookgate.connect();
    for place in (0..body.len()).step_by(37).chain([body.len() - 1]) {
        let mut changed = body.clone();
        changed[place] ^= 1;
        connection.send(&Delivery::good().tampered(changed).bytes());
        connection.answer().assert_refused(401, "bad_signature");
    }
    let mut shorter = body.clone();
    shorter.pop();
    let longer = [body.as_slice(), b"\n"].concat();
    for other in [shorter, longer, Vec::new()] {
        hookgate.send(&Delivery::good().tampered(other)).assert_refused(401, "bad_signature");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn during_a_rotation_either_secret_passes() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .file("old", "the old secret of this webhook")
        .environment("NEW_SECRET", "the new secret of this webhook")
        .secret(
            "[ { name = \"new\", env = \"NEW_SECRET\" }, { name = \"old\", file = \"{dir}/old\", expires = \"2999-01-01T00:00:00Z\" } ]",
        )
        .start();
    hookgate.send(&Delivery::good().signed_with(b"the new secret of this webhook")).assert_forwarded(200);
    hookgate.send(&Delivery::good().signed_with(b"the old secret of this webhook")).assert_forwarded(200);
    hookgate.send(&Delivery::good()).assert_refused(401, "bad_signature");
    let used = |name| {
        hookgate
            .metrics()
            .value("hookgate_secret_last_used_timestamp_seconds", &[("webhook", "hook"), ("secret", name)])
    };
    for name in ["new", "old"] {
        assert!(used(name).is_some_and(|time| time > 1.7e9), "{name}: {:?}", used(name));
    }
}

#[test]
fn an_expired_secret_is_not_tried() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .file("old", "the old secret of this webhook")
        .secret(
            "[ { name = \"new\", file = \"{dir}/secret\" }, { name = \"old\", file = \"{dir}/old\", expires = \"2020-01-01T00:00:00Z\" } ]",
        )
        .start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    let old = Delivery::good().signed_with(b"the old secret of this webhook");
    hookgate.send(&old).assert_refused(401, "bad_signature");
}

#[test]
fn a_secret_comes_from_the_environment() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate =
        Setup::new(&upstream).environment("HOOK_SECRET", SECRET).secret("{ env = \"HOOK_SECRET\" }").start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
}

#[test]
fn one_newline_at_the_end_of_a_secret_file_is_not_part_of_it() {
    let cases: [(&[u8], &[u8]); 6] = [
        (b"pulumi-webhook-test-secret\n", b"pulumi-webhook-test-secret"),
        (b"pulumi-webhook-test-secret\r\n", b"pulumi-webhook-test-secret"),
        (b"pulumi-webhook-test-secret\n\n", b"pulumi-webhook-test-secret\n"),
        (b"pulumi-webhook-test-secret\r", b"pulumi-webhook-test-secret\r"),
        (b" pulumi-webhook-test-secret \n", b" pulumi-webhook-test-secret "),
        ("p\u{fc}lumi-webhook-test-secret\t".as_bytes(), "p\u{fc}lumi-webhook-test-secret\t".as_bytes()),
    ];
    for (file, secret) in cases {
        println!("{:?}", String::from_utf8_lossy(file));
        let upstream = Upstream::always(Reply::ok());
        let hookgate = Setup::new(&upstream).file("secret", file).start();
        hookgate.send(&Delivery::good().signed_with(secret)).assert_forwarded(200);
        if secret != SECRET.as_bytes() {
            hookgate.send(&Delivery::good()).assert_refused(401, "bad_signature");
        }
    }
}

#[test]
fn each_webhook_has_its_own_secret() {
    let upstream = Upstream::always(Reply::ok());
    let other =
        crate::support::Webhook::to(&upstream.url()).at("/other").secret("{ file = \"{dir}/other\" }");
    let hookgate = Setup::new(&upstream).with(other).file("other", "the secret of the other webhook").start();
    let good = Delivery::good;
    let by_other = || good().signed_with(b"the secret of the other webhook");
    hookgate.send(&good()).assert_forwarded(200);
    hookgate.send(&by_other().to("/other")).assert_forwarded(200);
    hookgate.send(&by_other()).assert_refused(401, "bad_signature");
    hookgate.send(&good().to("/other")).assert_refused(401, "bad_signature");
}
