//! The log: one line for each delivery, in either format, and never a body, a secret or a control
//! character.

use serde_json::Value;

use crate::support::{
    Delivery, Hookgate, Instant, Reply, SECRET, Setup, Upstream, Webhook, eventually, sample,
};

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

/// However many requests are refused, there are ten lines a second and a count, and each delivery has its own.
#[test]
fn strangers_cannot_flood_the_log() {
    const EACH: usize = 1000;
    let (_upstream, hookgate) = start();
    let refused: [(Vec<u8>, u16, &str); 3] = [
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 404, "not_found"),
        (Delivery::good().method("PUT").body("").bytes(), 405, "method_not_allowed"),
        (Delivery::good().unsigned().body("").unsigned().bytes(), 401, "missing_signature"),
    ];
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (request, status, outcome) in &refused {
            let mut connection = hookgate.connect();
            scope.spawn(move || {
                for _ in 0..EACH / 50 {
                    connection.send(&request.repeat(50));
                    for _ in 0..50 {
                        assert_eq!(connection.answer().said(), (*status, *outcome));
                    }
                }
            });
        }
        for number in 0..20 {
            hookgate.send(&Delivery::good().id(&format!("in-the-flood-{number}"))).assert_forwarded(201);
        }
    });
    for number in 0..20 {
        hookgate.line_of(&format!("in-the-flood-{number}"));
    }
    let all = u64::try_from(EACH * refused.len()).unwrap();
    let (lines, left_out) = eventually("every refused request is told or counted", || {
        let lines: Vec<Value> =
            hookgate.log_lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told = u64::try_from(lines.iter().filter(|line| line["message"] == "refused").count()).unwrap();
        let left_out: u64 = lines.iter().filter_map(|line| line["count"].as_u64()).sum();
        (told + left_out == all).then_some((told, left_out))
    });
    let seconds = began.elapsed().as_secs() + 1;
    assert!(lines <= 10 * seconds && left_out > 0, "{lines} lines in {seconds} s");
    let counts = hookgate.wait_for_log(|line| line["count"].is_u64());
    assert_eq!(counts["level"], "INFO", "{counts}");
    assert!(counts["timestamp"].is_string() && counts["outcomes"].is_string(), "{counts}");
}

/// What anybody can bring about is INFO; what somebody with the secret must see is WARN.
#[test]
fn levels_say_who_has_to_look() {
    let upstream = Upstream::scripted(|request| match request.header("pulumi-webhook-id") {
        Some("declined") => Reply::status(503),
        Some("broken") => Reply::hang_up(),
        _ => Reply::ok(),
    });
    let hookgate = Setup::new(&upstream).start();
    for (delivery, outcome, level) in [
        (Delivery::good().to("/other"), "not_found", "INFO"),
        (Delivery::good().method("PUT"), "method_not_allowed", "INFO"),
        (Delivery::good().unsigned(), "missing_signature", "INFO"),
        (Delivery::good().forged(), "bad_signature", "INFO"),
        (Delivery::good().with("Content-Type", "text/plain"), "unsupported_media_type", "INFO"),
        (Delivery::good().body("[]"), "bad_payload", "WARN"),
        (Delivery::good().kind("environment"), "kind_mismatch", "WARN"),
        (Delivery::good().kind("X"), "bad_header", "WARN"),
        (Delivery::good().id("broken"), "upstream_bad_answer", "WARN"),
        (Delivery::good().id("declined"), "forwarded", "WARN"),
        (Delivery::of(sample("stack.created")), "filtered", "INFO"),
    ] {
        hookgate.send(&delivery);
        let line = hookgate.wait_for_log(|line| line["outcome"] == outcome);
        assert_eq!(line["level"], level, "{line}");
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// The line of each request can be found by the sender's trace, and has one of its own where there is none.
#[test]
fn every_line_of_a_request_has_its_trace() {
    let upstream = Upstream::scripted(|request| {
        if request.header("pulumi-webhook-id") == Some("fails") { Reply::status(500) } else { Reply::ok() }
    });
    let hookgate = Setup::new(&upstream).webhook("kind_check = \"warn\"").start();
    let requests = [
        (Delivery::good(), "forwarded"),
        (Delivery::good().id("fails"), "forwarded"),
        (Delivery::of(sample("stack.created")), "filtered"),
        (Delivery::good().to("/other"), "not_found"),
        (Delivery::good().method("PUT"), "method_not_allowed"),
        (Delivery::good().forged(), "bad_signature"),
        (Delivery::good().without("Pulumi-Webhook-Kind"), "missing_header"),
        (Delivery::good().body("[]"), "bad_payload"),
    ];
    for (number, (delivery, outcome)) in requests.into_iter().enumerate() {
        let trace = format!("{TRACE:.30}{number:02}");
        let traceparent = format!("00-{trace}-b7ad6b7169203331-01");
        hookgate.send(&delivery.and("traceparent", &traceparent));
        let line = hookgate.wait_for_log(|line| line["trace_id"] == trace);
        assert_eq!(line["outcome"], outcome, "{line}");
    }
    // What goes on is what is logged, also where it is new.
    hookgate.send(&Delivery::good().id("untraced")).assert_forwarded(200);
    let line = hookgate.line_of("untraced");
    let trace = line["trace_id"].as_str().unwrap();
    let requests = upstream.requests();
    let sent = requests.iter().find(|request| request.header("pulumi-webhook-id") == Some("untraced"));
    assert_eq!(sent.unwrap().header("traceparent").unwrap().split('-').nth(1), Some(trace));
    // A second line of one request.
    let traced = Delivery::good()
        .kind("environment")
        .and("traceparent", "00-00000000000000000000000000000001-0000000000000001-01");
    hookgate.send(&traced).assert_forwarded(200);
    let doubt = hookgate.wait_for_log(|line| line["mismatch"].is_string());
    assert_eq!(doubt["trace_id"], "00000000000000000000000000000001", "{doubt}");
}

#[test]
fn the_attempts_of_the_queue_have_the_trace_of_their_request() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).section("[queue]\npath = \"{dir}/queue.db\"").start();
    let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
    hookgate.send(&Delivery::good().and("traceparent", &traceparent));
    for message in ["delivery", "attempt"] {
        let line = hookgate.wait_for_log(|line| line["message"] == message);
        assert_eq!(line["trace_id"], TRACE, "{line}");
    }
}

/// An ingress that adds a slash or takes away a beginning is seen from the line alone.
#[test]
fn a_lost_request_says_where_it_went_and_where_it_may_belong() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::bare()
        .with(Webhook::to(&upstream.url()).at("/webhooks/pulumi"))
        .with(Webhook::to(&upstream.url()).at("/other"))
        .start();
    for (number, (target, path, nearest)) in [
        ("/webhooks/pulumi/", "/webhooks/pulumi/", "/webhooks/pulumi"),
        ("/pulumi", "/pulumi", "/webhooks/pulumi"),
        ("/hookgate/webhooks/pulumi", "/hookgate/webhooks/pulumi", "/webhooks/pulumi"),
        ("/Webhooks/Pulumi?token=mark", "/Webhooks/Pulumi", "/webhooks/pulumi"),
        ("/othr", "/othr", "/other"),
        ("/%1b%0a", "/%1b%0a", "/other"),
        ("/\u{c2}\u{9b}31m\u{e2}\u{80}\u{ae}", "/\\u{9b}31m\\u{202e}", "/other"),
    ]
    .into_iter()
    .enumerate()
    {
        // Of one kind not all are told in a second.
        let id = format!("lost-{number}");
        hookgate.send(&Delivery::good().to(target).id(&id)).assert_refused(404, "not_found");
        let line = hookgate.wait_for_log(|line| line["claimed.id"] == id);
        assert_eq!((&line["path"], &line["nearest"]), (&path.into(), &nearest.into()), "{line}");
        assert!(!line.to_string().contains("mark"), "{line}");
    }
    let long = format!("/{}", "x".repeat(5000));
    hookgate.send(&Delivery::good().to(&long).id("long")).assert_refused(404, "not_found");
    let line = hookgate.wait_for_log(|line| line["claimed.id"] == "long");
    assert_eq!(line["path"].as_str(), long.get(..128), "{line}");
}

/// Whoever knows Pulumi's own log of deliveries finds there whose signature was wrong.
#[test]
fn a_wrong_signature_says_whose_delivery_it_claims_to_be() {
    let (_upstream, hookgate) = start();
    for (delivery, outcome) in
        [(Delivery::good().forged(), "bad_signature"), (Delivery::good().unsigned(), "missing_signature")]
    {
        hookgate.send(&delivery.clone().id("whose")).assert_refused(401, outcome);
        let line = hookgate.wait_for_log(|line| line["outcome"] == outcome);
        assert_eq!(line["claimed.id"], "whose", "{line}");
        assert_eq!(line["claimed.kind"], "environment_revision", "{line}");
        assert_eq!(line["webhook"], "esc", "{line}");
        // What is not proven does not stand where what is proven does.
        assert!(line["delivery.id"].is_null() && line["event.kind"].is_null(), "{line}");
        let odd = delivery
            .id("not an ID")
            .kind("../..")
            .and("traceparent", &format!("00-{TRACE}-b7ad6b7169203331-01"));
        hookgate.send(&odd).assert_refused(401, outcome);
        let line = hookgate.wait_for_log(|line| line["outcome"] == outcome && line["trace_id"] == TRACE);
        assert!(line["claimed.id"].is_null() && line["claimed.kind"].is_null(), "{line}");
    }
}

#[test]
fn a_filtered_delivery_says_which_filter_and_what_it_saw() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .events(&["environments"])
        .webhook("environments = [\"other/*\"]\ntags = [\"stable\"]")
        .with(
            Webhook::to(&upstream.url())
                .at("/tags")
                .line("tags = [\"release-*\"]")
                .destination("events = [\"environment_tag\"]"),
        )
        .with(Webhook::to(&upstream.url()).at("/acme").line("organization = \"other\""))
        .start();
    let tag = sample("environment_tag.created");
    let body: Value = serde_json::from_slice(&tag.body()).unwrap();
    let tagged = body["tagName"].as_str().unwrap();
    let revision: Value = serde_json::from_slice(&sample("environment_revision.created").body()).unwrap();
    let environment = format!(
        "{}/{}",
        revision["projectName"].as_str().unwrap(),
        revision["environmentName"].as_str().unwrap()
    );
    for (id, delivery, filter, saw) in [
        ("event", Delivery::of(sample("stack.created")), "events", "stack_created"),
        ("environment", Delivery::good(), "environments", environment.as_str()),
        ("tag", Delivery::of(tag).to("/tags"), "tags", tagged),
        ("destination", Delivery::good().to("/tags"), "destination.events", "environment_revision_created"),
        ("organization", Delivery::good().to("/acme"), "organization", "crazy-adventures"),
    ] {
        hookgate.send(&delivery.id(id));
        let line = hookgate.line_of(id);
        assert_eq!((&line["filter"], &line["saw"]), (&filter.into(), &saw.into()), "{line}");
        assert!(line["reason"].is_string(), "{line}");
    }
}

#[test]
fn a_failed_delivery_names_its_destination() {
    let upstream = Upstream::scripted(|request| match request.header("pulumi-webhook-id") {
        Some("declined") => Reply::status(500),
        Some("broken") => Reply::hang_up(),
        _ => Reply::ok(),
    });
    let hookgate = Setup::new(&upstream).destination("name = \"app\"").start();
    hookgate.send(&Delivery::good().id("declined")).assert_forwarded(500);
    hookgate.send(&Delivery::good().id("broken")).assert_refused(502, "upstream_bad_answer");
    hookgate.send(&Delivery::good().id("fine")).assert_forwarded(200);
    for (id, destination) in [("declined", "app".into()), ("broken", "app".into()), ("fine", Value::Null)] {
        let line = hookgate.line_of(id);
        assert_eq!(line["destination"], destination, "{line}");
        assert_eq!(line["reason"].is_string(), id != "fine", "{line}");
    }
}

#[test]
fn the_client_behind_a_trusted_proxy_is_the_one_it_names() {
    let upstream = Upstream::always(Reply::ok());
    for (trusted, expected) in [("[\"127.0.0.0/8\"]", "203.0.113.9"), ("[\"10.0.0.0/8\"]", "127.0.0.1:")] {
        let hookgate = Setup::new(&upstream).server(&format!("trusted_proxies = {trusted}")).start();
        let through = |delivery: Delivery| {
            delivery.and("X-Forwarded-For", "8.8.8.8, 203.0.113.9").and("X-Forwarded-For", "127.0.0.9")
        };
        hookgate.send(&through(Delivery::good().id("good"))).assert_forwarded(200);
        hookgate.send(&through(Delivery::good().to("/other"))).assert_refused(404, "not_found");
        let lines = [hookgate.line_of("good"), hookgate.wait_for_log(|line| line["outcome"] == "not_found")];
        for line in lines {
            assert!(line["client.address"].as_str().unwrap().starts_with(expected), "{line}");
        }
    }
    // Nothing of it goes on.
    assert!(upstream.requests().iter().all(|request| request.header("x-forwarded-for").is_none()));
}

#[test]
fn the_first_line_says_what_starts() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .with(Webhook::to(&upstream.url()).at("/two"))
        .section("[queue]\npath = \"{dir}/queue.db\"")
        .start();
    let line: Value = serde_json::from_str(&hookgate.log_lines()[0]).unwrap();
    assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"hookgate starts".into()), "{line}");
    assert_eq!(line["version"], env!("CARGO_PKG_VERSION"), "{line}");
    assert!(line["commit"].as_str().is_some_and(|commit| !commit.is_empty()), "{line}");
    assert_eq!(line["config.file"], hookgate.config().to_str().unwrap(), "{line}");
    let digest = sha256(&std::fs::read(hookgate.config()).unwrap());
    assert_eq!(line["config.digest"].as_str(), digest.get(..12), "{line}");
    assert_eq!((&line["webhooks"], &line["destinations"]), (&2.into(), &2.into()), "{line}");
    assert_eq!((&line["mode"], &line["store"]), (&"queued".into(), &"sqlite".into()), "{line}");
    let direct = Setup::new(&upstream).start();
    let line: Value = serde_json::from_str(&direct.log_lines()[0]).unwrap();
    assert_eq!((&line["mode"], &line["store"]), (&"direct".into(), &Value::Null), "{line}");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(bytes))
}

/// The service with a `RUST_LOG`, after a delivery that was refused with a right signature; its log.
fn log_with(rust_log: &str) -> Vec<Value> {
    let upstream = Upstream::always(Reply::ok());
    // Where it listens is not in the log.
    let setup = Setup::new(&upstream).listen("unix:{dir}/in.sock").environment("RUST_LOG", rust_log);
    let mut hookgate = setup.start_unheard();
    hookgate.send(&Delivery::good().body("[]")).assert_refused(422, "bad_payload");
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    hookgate.signal("TERM");
    hookgate.wait_exit();
    hookgate.log_lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_filter_of_another_program_does_not_silence_hookgate() {
    for nothing in ["off", "hyper=debug", "hookgate=off", "some_other_program=trace"] {
        let log = log_with(nothing);
        assert!(log.iter().any(|line| line["outcome"] == "bad_payload"), "{nothing}: {log:#?}");
        assert!(!log.iter().any(|line| line["message"] == "delivery"), "{nothing}: {log:#?}");
        let said = log.iter().find(|line| line["filter"] == nothing);
        let said = said.unwrap_or_else(|| panic!("{nothing}: {log:#?}"));
        assert!(said["message"].as_str().unwrap().contains("RUST_LOG"), "{said}");
    }
    // What leaves something is obeyed, and said too.
    let log = log_with("error");
    assert!(log.iter().any(|line| line["filter"] == "error"), "{log:#?}");
    assert!(!log.iter().any(|line| line["outcome"] == "bad_payload"), "{log:#?}");
    // What is not a filter is ignored, and that is said.
    let log = log_with("hookgate=loud");
    assert!(log.iter().any(|line| line["message"].as_str().unwrap().contains("ignored")), "{log:#?}");
    assert!(log.iter().any(|line| line["message"] == "delivery"), "{log:#?}");
}
