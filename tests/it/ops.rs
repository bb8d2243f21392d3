//! The ops listener: health, readiness, metrics, and nothing sensitive.

use crate::support::{Connection, Delivery, Gate, Reply, SECRET, Setup, Upstream, sample};

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
    assert_eq!(metrics.value("hookgate_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
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

#[test]
fn the_metrics_are_prometheus_text() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    let answer = hookgate.ops("/metrics");
    let media_type = answer.header("content-type").unwrap().to_owned();
    assert!(
        media_type.starts_with("text/plain") || media_type.starts_with("application/openmetrics-text"),
        "{media_type}"
    );
    let text = answer.text();
    for (name, kind) in [
        ("hookgate_request_duration_seconds", "histogram"),
        ("hookgate_attempt_duration_seconds", "histogram"),
        ("hookgate_inflight_requests", "gauge"),
        ("hookgate_inflight_bytes", "gauge"),
        ("hookgate_connections", "gauge"),
        ("hookgate_secret_last_used_timestamp_seconds", "gauge"),
    ] {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}: {text}");
    }
    for name in ["hookgate_requests", "hookgate_attempts"] {
        assert!(text.contains(&format!("# TYPE {name}")), "{name}: {text}");
    }
}
