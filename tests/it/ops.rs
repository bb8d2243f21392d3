//! The ops listener: health, readiness, metrics, and nothing sensitive.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{
    Connection, Delivery, Gate, Hookgate, NatsServer, Reply, SECRET, Setup, Upstream, Webhook, eventually,
    sample, tls::Authority,
};

#[test]
fn health_is_on_the_ops_listener_only() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    for path in ["/healthz", "/livez", "/readyz", "/metrics"] {
        assert_eq!(hookgate.ops(path).status, 200, "{path}");
        let mut connection = hookgate.connect();
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        connection.answer().assert_refused(404, "not_found");
    }
    for path in ["/", "/other", "/hook", "/healthz/", "/metrics/x", "/debug/pprof"] {
        assert_eq!(hookgate.ops(path).status, 404, "{path}");
    }
    // And deliveries are not for the ops listener.
    assert_eq!(Delivery::good().send(hookgate.ops_address()).status, 404);
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn health_can_be_asked_with_head_and_a_query() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    assert_eq!(hookgate.ops("/healthz?verbose=1").status, 200);
    let mut connection = Connection::open(hookgate.ops_address());
    connection.send(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut text = String::new();
    connection.read_all(&mut text);
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\n"), "{text}");
}

#[test]
fn the_metrics_count_what_happened() {
    let upstream = Upstream::scripted(|request| {
        if request.header("pulumi-webhook-id") == Some("fails") { Reply::status(500) } else { Reply::ok() }
    });
    let hookgate = Setup::new(&upstream).webhook("name = \"esc\"").destination("name = \"app\"").start();
    let good = Delivery::good().id("one");
    let mut connection = hookgate.connect();
    let traffic = [
        (good.clone(), "forwarded"),
        (good.clone(), "duplicate"),
        (good.clone(), "duplicate"),
        (Delivery::good(), "forwarded"),
        (Delivery::good().id("fails"), "forwarded"),
        (Delivery::good_with("x").id("one"), "id_conflict"),
        (Delivery::of(sample("stack.created")), "filtered"),
        (Delivery::of(sample("ping")), "pong"),
        (Delivery::good().forged(), "bad_signature"),
        (Delivery::good().kind("environment"), "kind_mismatch"),
        (Delivery::good().body("[]"), "bad_payload"),
        (Delivery::good().without("Pulumi-Webhook-Id"), "missing_header"),
        (Delivery::good().id("-/-"), "bad_header"),
    ];
    for (delivery, outcome) in &traffic {
        connection.send(&delivery.bytes());
        assert_eq!(connection.answer().outcome(), *outcome);
    }
    hookgate.send(&Delivery::good().unsigned());
    hookgate.send(&Delivery::good().to("/other"));
    hookgate.send(&Delivery::good().to("/another"));
    hookgate.send(&Delivery::good().method("PUT"));
    let outcome = |webhook, outcome, count| {
        hookgate.wait_for_metric(
            "hookgate_requests_total",
            &[("webhook", webhook), ("outcome", outcome)],
            count,
        );
    };
    outcome("esc", "forwarded", 3.0);
    outcome("esc", "duplicate", 2.0);
    for once in [
        "id_conflict",
        "filtered",
        "pong",
        "bad_signature",
        "kind_mismatch",
        "bad_payload",
        "missing_header",
        "bad_header",
        "missing_signature",
        "method_not_allowed",
    ] {
        outcome("esc", once, 1.0);
    }
    outcome("none", "not_found", 2.0);
    let metrics = hookgate.metrics();
    let attempts = |result| {
        metrics.value(
            "hookgate_attempts_total",
            &[("webhook", "esc"), ("destination", "app"), ("result", result)],
        )
    };
    assert_eq!(attempts("delivered"), Some(2.0));
    assert_eq!(attempts("failed"), Some(1.0));
    let both = [("webhook", "esc"), ("destination", "app")];
    assert_eq!(metrics.value("hookgate_attempt_duration_seconds_count", &both), Some(3.0));
    let sum = metrics.value("hookgate_attempt_duration_seconds_sum", &both).unwrap();
    assert!(sum > 0.0 && sum < 20.0, "{sum}");
    assert_eq!(metrics.value("hookgate_request_duration_seconds_count", &[("webhook", "esc")]), Some(15.0));
    assert_eq!(metrics.value("hookgate_inflight_requests", &[]), Some(0.0));
    assert_eq!(metrics.value("hookgate_inflight_bytes", &[]), Some(0.0));
    let [build] = &metrics.labels("hookgate_build_info")[..] else { panic!("one build: {metrics:?}") };
    assert_eq!(build["version"], env!("CARGO_PKG_VERSION"));
    assert!(!build["commit"].is_empty());
    let events = |event| metrics.value("hookgate_events_total", &[("webhook", "esc"), ("event", event)]);
    // Whatever became of them; a kind that the payload disagrees with is not counted as what it says.
    assert_eq!(events("environment_revision_created"), Some(6.0));
    assert_eq!(events("stack_created"), Some(1.0));
    assert_eq!(events("ping"), Some(1.0));
    assert_eq!(events("other"), Some(1.0));
    assert_eq!(events("environment_deleted"), Some(0.0));
    drop(connection);
    hookgate.wait_for_metric("hookgate_connections", &[], 0.0);
}

#[test]
fn the_gauges_show_what_is_held() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good();
    let mut connection = hookgate.connect();
    connection.send(&delivery.bytes());
    upstream.wait_for(1);
    let metrics = hookgate.metrics();
    assert_eq!(metrics.value("hookgate_inflight_requests", &[]), Some(1.0));
    assert_eq!(metrics.value("hookgate_connections", &[]), Some(1.0));
    let bytes = metrics.value("hookgate_inflight_bytes", &[]).unwrap();
    assert!(bytes >= 382.0, "{bytes}");
    gate.open();
    connection.answer().assert_forwarded(200);
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], 0.0);
    hookgate.wait_for_metric("hookgate_inflight_bytes", &[], 0.0);
    assert_eq!(hookgate.metrics().value("hookgate_connections", &[]), Some(1.0));
}

/// No request can add a label value.
#[test]
fn labels_come_from_the_config_or_a_fixed_set() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    let mark = "mark_of_the_sender";
    hookgate.send(&Delivery::good().to(&format!("/{mark}")));
    hookgate.send(&Delivery::good().method(mark));
    hookgate.send(&Delivery::good().id(mark));
    hookgate.send(&Delivery::new(mark, "{}"));
    hookgate.send(&Delivery::good().and("Hookgate-Webhook", mark));
    hookgate.wait_for_metric(
        "hookgate_requests_total",
        &[("webhook", "hook"), ("outcome", "method_not_allowed")],
        1.0,
    );
    let text = hookgate.ops("/metrics").text();
    assert!(!text.contains(mark), "{text}");
    assert!(!text.contains(SECRET), "{text}");
    for labels in hookgate.metrics().labels("hookgate_requests_total") {
        assert!(["hook", "none"].contains(&labels["webhook"].as_str()), "{labels:?}");
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text";

#[test]
fn metrics_are_written_in_the_form_that_is_asked_for() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    for accept in
        ["", "*/*", "text/plain;version=0.0.4", "application/openmetrics-text;q=0.1, text/plain;q=0.2"]
    {
        let answer = hookgate.scrape(accept);
        assert_eq!(
            answer.header("content-type"),
            Some("text/plain; version=0.0.4; charset=utf-8"),
            "{accept}"
        );
        let text = answer.text();
        for (name, kind) in [
            ("hookgate_requests_total", "counter"),
            ("hookgate_attempts_total", "counter"),
            ("hookgate_events_total", "counter"),
            ("hookgate_unreadable_total", "counter"),
            ("hookgate_config_reloads_total", "counter"),
            ("hookgate_build_info", "gauge"),
            ("hookgate_request_duration_seconds", "histogram"),
            ("hookgate_attempt_duration_seconds", "histogram"),
            ("hookgate_inflight_requests", "gauge"),
            ("hookgate_inflight_bytes", "gauge"),
            ("hookgate_connections", "gauge"),
            ("hookgate_secret_last_used_timestamp_seconds", "gauge"),
            ("process_cpu_seconds_total", "counter"),
            ("process_start_time_seconds", "gauge"),
        ] {
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}: {text}");
        }
        assert!(!text.contains("# EOF"), "{text}");
    }
    let answer = hookgate.scrape(&format!("text/plain;q=0.1, {OPEN_METRICS};version=1.0.0;q=0.5"));
    let media_type = answer.header("content-type");
    assert_eq!(media_type, Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in [
        "# TYPE hookgate_requests counter",
        "# TYPE hookgate_build info",
        "# TYPE process_cpu_seconds counter",
    ] {
        assert!(text.lines().any(|seen| seen == line), "{line}: {text}");
    }
}

/// With and without a queue, and with as much in them as there can be.
#[test]
fn promtool_has_nothing_to_say_about_the_metrics() {
    const NAMED: &str = "name = \"other\"";
    const TRUSTING: &str = "ca = \"{dir}/ca.pem\"";
    let upstream = Upstream::always(Reply::ok());
    for queue in ["", "[queue]\npath = \"{dir}/queue.db\""] {
        let hookgate = Setup::new(&upstream)
            .section(queue)
            .secret("{ name = \"old\", file = \"{dir}/secret\", expires = \"2099-01-01T00:00:00Z\" }")
            .with(Webhook::to("https://localhost:1/").at("/other").line(NAMED).destination(TRUSTING))
            .file("ca.pem", Authority::new("a").issue_in(&["a"], 2020..2095).cert)
            .start();
        hookgate.send(&Delivery::good());
        hookgate.send(&Delivery::good().forged());
        let text = hookgate.scrape("").text();
        let labels = "{webhook=\"hook\",secret=\"old\"}";
        assert!(
            text.contains(&format!("hookgate_secret_expiry_timestamp_seconds{labels} 4070908800.0\n")),
            "{text}"
        );
        let file = hookgate.dir().join("ca.pem");
        let line = format!("hookgate_certificate_expiry_timestamp_seconds{{file={file:?}}} 3944678400.0\n");
        assert!(text.contains(&line), "{text}");
        let mut promtool = Command::new("promtool");
        promtool
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = promtool.spawn().expect("promtool, of the Debian package prometheus");
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success() && said.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn the_series_of_two_scrapes_are_the_same_in_the_same_order() {
    let upstream = Upstream::always(Reply::ok());
    let setup = |name: &str| {
        let mut setup = Setup::bare();
        for number in 0..8 {
            let webhook = Webhook::to(&upstream.url()).at(&format!("/{number}"));
            setup = setup.with(webhook.line(&format!("name = \"{name}-{number}\"")));
        }
        setup.start()
    };
    let series = |hookgate: &Hookgate, accept: &str| {
        let text = hookgate.scrape(accept).text();
        text.lines().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect::<Vec<_>>()
    };
    let (one, two) = (setup("esc"), setup("esc"));
    for accept in ["", OPEN_METRICS] {
        let first = series(&one, accept);
        one.send(&Delivery::good().to("/3")).assert_forwarded(200);
        one.send(&Delivery::good().to("/other")).assert_refused(404, "not_found");
        assert_eq!(series(&one, accept), first);
        // Also those of another process.
        assert_eq!(series(&two, accept), first);
        let of_one: Vec<_> = first.iter().filter(|name| name.starts_with("hookgate_inflight")).collect();
        assert_eq!(of_one.len(), 2);
    }
}

/// Not at the next count, not only once a count was made.
#[test]
fn the_gauges_of_the_queue_are_true_from_the_first_scrape_on() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let nats = NatsServer::start();
    for queue in ["path = \"{dir}/queue.db\"".to_owned(), format!("store = \"nats\"\nurl = {:?}", nats.url())]
    {
        println!("{queue}");
        let setup = Setup::new(&upstream).webhook("name = \"esc\"").destination("name = \"app\"");
        let hookgate = setup.section(&format!("[queue]\n{queue}")).start();
        eventually("the queue is there", || (hookgate.ops("/readyz").status == 200).then_some(()));
        let both = [("webhook", "esc"), ("destination", "app")];
        let mut waiting = 0.0;
        for _ in 0..5 {
            waiting += 1.0;
            hookgate.send(&Delivery::good());
            let metrics = hookgate.metrics();
            assert_eq!(metrics.value("hookgate_queue_depth", &both), Some(waiting), "{metrics:?}");
            assert!(metrics.value("hookgate_queue_oldest_seconds", &both).is_some_and(|age| age < 20.0));
            assert_eq!(metrics.value("hookgate_dead_letters", &both), Some(0.0));
            // A scrape has what was counted a moment ago.
            assert!(hookgate.connect().is_quiet_for(Duration::from_millis(300)));
        }
    }
    gate.open();
}
