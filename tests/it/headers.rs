//! What the upstream receives: an allow-list, so a leak fails a test that nobody wrote for it.

use crate::support::{Delivery, Reply, Setup, Upstream, sample};

const ALLOWED: [&str; 12] = [
    "content-length",
    "content-type",
    "hookgate-attempt",
    "hookgate-event",
    "hookgate-kind-verified",
    "hookgate-webhook",
    "host",
    "pulumi-webhook-id",
    "pulumi-webhook-kind",
    "pulumi-webhook-signature",
    "traceparent",
    "user-agent",
];

#[test]
fn the_upstream_sees_exactly_the_allowed_headers() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).webhook("name = \"esc\"").start();
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_forwarded(200);
    let request = upstream.only_request();
    assert_eq!(request.head.names(), ALLOWED);
    let expected = [
        ("Content-Type", "application/json".to_owned()),
        ("Content-Length", delivery.the_body().len().to_string()),
        ("Pulumi-Webhook-Id", delivery.header_value("Pulumi-Webhook-Id").to_owned()),
        ("Pulumi-Webhook-Kind", "environment_revision".to_owned()),
        ("Pulumi-Webhook-Signature", delivery.header_value("Pulumi-Webhook-Signature").to_owned()),
        ("User-Agent", format!("hookgate/{}", env!("CARGO_PKG_VERSION"))),
        ("Hookgate-Webhook", "esc".to_owned()),
        ("Hookgate-Event", "environment_revision_created".to_owned()),
        ("Hookgate-Kind-Verified", "true".to_owned()),
        ("Hookgate-Attempt", "1".to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(request.header(name), Some(value.as_str()), "{name}");
    }
    let authority = upstream.address().url("").replace("http://", "");
    assert_eq!(request.header("host"), Some(authority.as_str()));
}

#[test]
fn nothing_else_of_the_sender_goes_on() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good()
        .and("Accept", "*/*")
        .and("Accept-Encoding", "gzip")
        .and("User-Agent", "PulumiService/1.0")
        .and("Cookie", "a=b")
        .and("Authorization", "Bearer x")
        .and("Proxy-Authorization", "Basic x")
        .and("X-Forwarded-For", "10.0.0.1")
        .and("X-Forwarded-Proto", "https")
        .and("X-Forwarded-Host", "evil.test")
        .and("X-Real-Ip", "10.0.0.1")
        .and("Forwarded", "for=10.0.0.1")
        .and("Via", "1.1 x")
        .and("Connection", "keep-alive, X-Hop, Pulumi-Webhook-Id")
        .and("X-Hop", "1")
        .and("Keep-Alive", "timeout=5")
        .and("TE", "trailers")
        .and("Hookgate-Webhook", "forged")
        .and("Hookgate-Event", "forged")
        .and("Hookgate-Kind-Verified", "forged")
        .and("Hookgate-Attempt", "99")
        .and("Hookgate-Outcome", "forged")
        .and("Hookgate-Anything", "forged")
        .and("Pulumi-Webhook-Extra", "1")
        .and("tracestate", "vendor=1")
        .and("baggage", "a=b")
        .and("If-Match", "x")
        .and("Origin", "https://evil.test")
        .and("X-Odd", "\u{e9}");
    hookgate.send(&delivery).assert_forwarded(200);
    let request = upstream.only_request();
    assert_eq!(request.head.names(), ALLOWED);
    assert_eq!(request.header("pulumi-webhook-id"), Some(delivery.header_value("pulumi-webhook-id")));
    assert_eq!(request.header("hookgate-webhook"), Some("webhook-1"));
    assert_eq!(request.header("hookgate-attempt"), Some("1"));
    assert_eq!(request.header("hookgate-event"), Some("environment_revision_created"));
    assert_eq!(request.header("hookgate-kind-verified"), Some("true"));
}

#[test]
fn trailers_end_here() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good()
        .chunked(&[100])
        .and("Trailer", "X-Trailer")
        .trailer("X-Trailer: 1")
        .trailer("Pulumi-Webhook-Kind: ping")
        .trailer("Hookgate-Attempt: 9");
    hookgate.send(&delivery).assert_forwarded(200);
    let request = upstream.only_request();
    assert_eq!(request.head.names(), ALLOWED);
    assert!(request.trailers.is_empty());
    assert_eq!(request.body, delivery.the_body());
}

#[test]
fn a_signature_in_the_trailers_is_no_signature() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let good = Delivery::good();
    let line = format!("Pulumi-Webhook-Signature: {}", good.header_value("pulumi-webhook-signature"));
    hookgate.send(&good.unsigned().chunked(&[100]).trailer(&line)).assert_refused(401, "missing_signature");
}

#[test]
fn the_media_type_arrives_as_it_was_sent() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    hookgate
        .send(&Delivery::good().with("Content-Type", "Application/JSON;  charset=UTF-8"))
        .assert_forwarded(200);
    assert_eq!(upstream.only_request().header("content-type"), Some("Application/JSON;  charset=UTF-8"));
}

#[test]
fn configured_headers_are_added() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .file("token", "Bearer of-a-file\n")
        .environment("UPSTREAM_KEY", "of the environment")
        .destination(
            "headers = { Authorization = { file = \"{dir}/token\" }, X-Key = { env = \"UPSTREAM_KEY\" }, X-Plain = \"plain\" }",
        )
        .start();
    let delivery =
        Delivery::good().and("Authorization", "Bearer of-the-sender").and("X-Plain", "of the sender");
    hookgate.send(&delivery).assert_forwarded(200);
    let request = upstream.only_request();
    assert_eq!(request.header("authorization"), Some("Bearer of-a-file"));
    assert_eq!(request.header("x-key"), Some("of the environment"));
    assert_eq!(request.header("x-plain"), Some("plain"));
    let mut allowed = ALLOWED.to_vec();
    allowed.extend(["authorization", "x-key", "x-plain"]);
    allowed.sort_unstable();
    assert_eq!(request.head.names(), allowed);
}

/// The four fields of a traceparent.
fn fields(traceparent: &str) -> [String; 4] {
    let fields: Vec<_> = traceparent.split('-').map(str::to_owned).collect();
    let lower_hex = |text: &str| text.chars().all(|digit| matches!(digit, '0'..='9' | 'a'..='f'));
    assert!(fields.iter().all(|field| lower_hex(field)), "{traceparent}");
    let fields: [String; 4] = fields.try_into().unwrap();
    assert_eq!(fields.each_ref().map(String::len), [2, 32, 16, 2], "{traceparent}");
    assert!(fields[1] != "0".repeat(32) && fields[2] != "0".repeat(16), "{traceparent}");
    fields
}

#[test]
fn a_trace_is_continued() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    hookgate.send(&Delivery::good().and("traceparent", sent)).assert_forwarded(200);
    let request = upstream.only_request();
    let [version, trace, parent, flags] = fields(request.header("traceparent").unwrap());
    assert_eq!(
        (version.as_str(), trace.as_str(), flags.as_str()),
        ("00", "0af7651916cd43dd8448eb211c80319c", "01")
    );
    assert_ne!(parent, "b7ad6b7169203331");
}

#[test]
fn a_trace_is_begun_where_there_is_none_or_a_broken_one() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let broken = [
        None,
        Some(""),
        Some("hello"),
        Some("00-00000000000000000000000000000000-b7ad6b7169203331-01"),
        Some("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"),
        Some("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"),
        Some("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra"),
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"),
    ];
    let mut traces = Vec::new();
    for (number, sent) in broken.iter().enumerate() {
        println!("{sent:?}");
        let delivery = Delivery::good();
        let delivery =
            sent.map_or_else(|| delivery.clone(), |value| delivery.clone().and("traceparent", value));
        hookgate.send(&delivery).assert_forwarded(200);
        let [version, trace, _, _] = fields(upstream.requests()[number].header("traceparent").unwrap());
        assert_eq!(version, "00");
        assert_ne!(trace, "0af7651916cd43dd8448eb211c80319c");
        traces.push(trace);
    }
    traces.sort();
    traces.dedup();
    assert_eq!(traces.len(), broken.len());
}

/// For people who read an answer; names are equal in any case. Towards the upstream they are left in lower case.
#[test]
fn names_in_answers_are_in_title_case() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let answer = hookgate.send(&Delivery::good());
    assert!(answer.head.headers.iter().any(|(name, _)| name == "Hookgate-Outcome"), "{answer:?}");
}

#[test]
fn no_answer_repeats_the_sender() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let mark = "mark-of-the-sender";
    let deliveries = [
        Delivery::good().to(&format!("/{mark}")),
        Delivery::good().method(mark),
        Delivery::good().with("Content-Type", mark),
        Delivery::good().signature(mark),
        Delivery::good().id(&format!("{mark} ")).id(&format!("{mark}/")),
        Delivery::good().kind(mark),
        Delivery::good().body(mark),
        Delivery::of(sample("stack.created")).id(mark),
    ];
    for delivery in deliveries {
        let answer = hookgate.send(&delivery);
        let everything = format!("{answer:?} {}", answer.text());
        assert!(!everything.contains(mark), "{everything}");
    }
}
