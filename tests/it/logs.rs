//! The log: one line for each delivery, in either format, and never a body, a secret or a control
//! character.

use serde_json::Value;

use crate::support::{Delivery, Hookgate, Reply, SECRET, Setup, Upstream, sample};

fn start() -> (Upstream, Hookgate) {
    let upstream = Upstream::always(Reply::status(201));
    let hookgate = Setup::new(&upstream).webhook("name = \"esc\"").start();
    (upstream, hookgate)
}

#[test]
fn each_delivery_has_one_line_with_its_story() {
    let (_upstream, hookgate) = start();
    let delivery = Delivery::good().id("the-one");
    hookgate.send(&delivery).assert_forwarded(201);
    let line = hookgate.line_of("the-one");
    assert_eq!(line["message"], "delivery", "{line}");
    assert_eq!(line["level"], "INFO", "{line}");
    assert_eq!(line["webhook"], "esc", "{line}");
    assert_eq!(line["event.kind"], "environment_revision", "{line}");
    assert_eq!(line["event"], "environment_revision_created", "{line}");
    assert_eq!(line["outcome"], "forwarded", "{line}");
    assert_eq!(line["status"], 201, "{line}");
    assert_eq!(line["upstream.status"], 201, "{line}");
    assert!(line["duration_ms"].as_f64().is_some_and(|time| time > 0.0 && time < 20_000.0), "{line}");
    assert!(
        line["client.address"].as_str().is_some_and(|address| address.starts_with("127.0.0.1")),
        "{line}"
    );
    assert!(line["timestamp"].as_str().is_some_and(|time| time.starts_with("20")), "{line}");
    hookgate.send(&delivery).assert_own("duplicate");
    hookgate.wait_for_log(|line| line["delivery.id"] == "the-one" && line["outcome"] == "duplicate");
    let lines = hookgate.log_lines().iter().filter(|line| line.contains("the-one")).count();
    assert_eq!(lines, 2, "{:#?}", hookgate.log_lines());
}

#[test]
fn every_outcome_is_logged_with_its_label_and_status() {
    let (_upstream, hookgate) = start();
    let cases = [
        (Delivery::of(sample("stack.created")), "delivery", "filtered", 200),
        (Delivery::of(sample("ping")), "delivery", "pong", 200),
        (Delivery::good().unsigned(), "refused", "missing_signature", 401),
        (Delivery::good().signature("x"), "refused", "bad_signature", 401),
        (Delivery::good().without("Pulumi-Webhook-Kind"), "refused", "missing_header", 400),
        (Delivery::good().kind("X"), "refused", "bad_header", 400),
        (Delivery::good().body("[]"), "refused", "bad_payload", 422),
        (Delivery::good().kind("environment"), "refused", "kind_mismatch", 422),
        (Delivery::good().to("/other"), "refused", "not_found", 404),
        (Delivery::good().method("PUT"), "refused", "method_not_allowed", 405),
        (Delivery::good().with("Content-Type", "text/plain"), "refused", "unsupported_media_type", 415),
        (Delivery::good().and("Host", "two.test"), "refused", "bad_request", 400),
    ];
    for (delivery, message, outcome, status) in cases {
        println!("{outcome}");
        assert_eq!(hookgate.send(&delivery).said(), (status, outcome));
        let line = hookgate.wait_for_log(|line| line["outcome"] == outcome);
        assert_eq!(line["message"], message, "{line}");
        assert_eq!(line["status"], status, "{line}");
        if message == "refused" {
            assert!(line["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{line}");
        }
    }
}

#[test]
fn a_failed_attempt_says_why() {
    let upstream = Upstream::always(Reply::hang_up());
    let hookgate = Setup::new(&upstream).start();
    hookgate.send(&Delivery::good().id("broken")).assert_refused(502, "upstream_bad_answer");
    let line = hookgate.line_of("broken");
    assert_eq!(line["outcome"], "upstream_bad_answer", "{line}");
    assert_eq!(line["status"], 502, "{line}");
    assert!(line["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{line}");
}

#[test]
fn every_line_is_one_json_object() {
    let (_upstream, mut hookgate) = start();
    hookgate.send(&Delivery::good());
    hookgate.send(&Delivery::good().forged());
    hookgate.signal("TERM");
    assert_eq!(hookgate.wait_exit().code(), Some(0));
    let lines = hookgate.log_lines();
    assert!(lines.len() >= 4, "{lines:#?}");
    for line in lines {
        let fields: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        for field in ["timestamp", "level", "message"] {
            assert!(fields[field].is_string(), "{field} in {line}");
        }
    }
    assert_eq!(hookgate.error_lines(), [""; 0]);
}

/// Deliveries full of marks, good and bad, at the most talkative level.
#[test]
fn no_body_and_no_secret_is_logged_at_any_level() {
    let upstream =
        Upstream::always(Reply::answer(500, &[("x-upstream", "mark-of-the-answer")], "mark-of-the-answer"));
    let hookgate = Setup::new(&upstream)
        .section("[log]\nlevel = \"trace\"")
        .file("token", "mark-of-the-header")
        .destination("headers = { Authorization = { file = \"{dir}/token\" } }")
        .start();
    let body = || Delivery::good_with("mark-of-the-body");
    hookgate.send(&body().id("one"));
    hookgate.send(&body().id("two").forged());
    hookgate.send(&body().id("three").kind("environment_tag"));
    hookgate.send(&Delivery::good().id("four").body("mark-of-the-body"));
    hookgate.send(&body().id("five").and("Cookie", "mark-of-the-cookie"));
    hookgate.line_of("five");
    let signature = body().header_value("pulumi-webhook-signature").to_owned();
    let log = [hookgate.log_lines(), hookgate.error_lines()].concat().join("\n");
    for secret in [
        "mark-of-the-body",
        "mark-of-the-answer",
        "mark-of-the-header",
        "mark-of-the-cookie",
        SECRET,
        &signature,
    ] {
        assert!(!log.contains(secret), "{secret} in the log");
    }
}

/// Nothing that a sender writes can end a line, colour a terminal, or pass for another field.
#[test]
fn control_characters_are_escaped_in_both_formats() {
    for format in ["json", "text"] {
        println!("{format}");
        let upstream = Upstream::always(Reply::ok());
        let hookgate = Setup::new(&upstream)
            .section(&format!("[log]\nformat = {format:?}\nlevel = \"trace\""))
            .events(&["*"])
            .webhook("kind_check = \"warn\"")
            .webhook("organization = \"acme\"")
            .start();
        let odd = [
            Delivery::good().id("a\tb"),
            Delivery::good().id("\u{c2}\u{9b}31mred"),
            Delivery::good().id("\u{9b}31mred"),
            Delivery::good().kind("x\u{c2}\u{85}y"),
            Delivery::good().and("Pulumi-Webhook-Id", "\u{e2}\u{80}\u{a8}"),
            Delivery::good().to("/\u{c2}\u{9b}31m"),
            Delivery::good().to("/%1b%0a"),
            Delivery::good().with("Content-Type", "\u{c2}\u{9b}31m"),
            Delivery::good()
                .body("{\"organization\":{\"githubLogin\":\"\\u001b[31m\\nforged\\u009b\"}}")
                .kind("brand_new"),
            Delivery::good().body("{\"action\":\"\\u001b[31m\\nforged\\u009b\"}").kind("environment"),
            Delivery::good().body("\u{1b}[31m\nforged"),
        ];
        for delivery in odd {
            hookgate.send(&delivery);
        }
        // The log keeps the order of requests that came one after another; this one is the last.
        hookgate.send(&Delivery::good().method("PUT"));
        hookgate.wait_for_line(|line| line.contains("method_not_allowed"));
        for line in hookgate.log_lines().iter().chain(&hookgate.error_lines()) {
            assert!(
                !line.chars().any(|character| character.is_control() || character == '\u{fffd}'),
                "{line:?}"
            );
            assert!(!line.trim_start().starts_with("forged"), "{line:?}");
        }
    }
}

#[test]
fn the_text_format_is_for_people() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).section("[log]\nformat = \"text\"").start();
    hookgate.send(&Delivery::good().id("the-one")).assert_forwarded(200);
    let line = hookgate.wait_for_line(|line| line.contains("the-one"));
    assert!(!line.starts_with('{'), "{line}");
    for word in ["INFO", "delivery", "environment_revision_created", "forwarded", "200", "hook"] {
        assert!(line.contains(word), "{word} in {line}");
    }
}

#[test]
fn the_level_is_a_filter_and_the_environment_wins() {
    let quiet = |setup: Setup| {
        let mut hookgate = setup.section("[log]\nlevel = \"debug\"").start();
        hookgate.send(&Delivery::good().forged().id("refused-one")).assert_refused(401, "bad_signature");
        hookgate.send(&Delivery::good().id("good-one")).assert_forwarded(200);
        hookgate.signal("TERM");
        hookgate.wait_exit();
        hookgate.log_lines().join("\n")
    };
    let upstream = Upstream::always(Reply::ok());
    let with_config = quiet(Setup::new(&upstream));
    assert!(with_config.contains("good-one"), "{with_config}");
    let with_environment = quiet(Setup::new(&upstream).environment("RUST_LOG", "info"));
    assert!(
        with_environment.contains("good-one") && !with_environment.contains("\"DEBUG\""),
        "{with_environment}"
    );
}
