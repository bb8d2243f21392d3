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
    assert_eq!(request.header("hookgate-webhook"), Some("hook"));
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

/// It decides how a body is read, and nobody has signed it.
#[test]
fn the_media_type_is_one_of_two_whatever_the_sender_wrote() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let cases = [
        ("application/json", "application/json"),
        ("APPLICATION/JSON", "application/json"),
        ("application/json; charset=utf-8", "application/json; charset=utf-8"),
        ("Application/JSON;  charset=UTF-8", "application/json; charset=utf-8"),
        ("application/json\t;\tCHARSET=\"Utf-8\"", "application/json; charset=utf-8"),
        ("application/json;charset=utf-8  ", "application/json; charset=utf-8"),
    ];
    for (number, (sent, received)) in cases.into_iter().enumerate() {
        println!("{sent}");
        hookgate.send(&Delivery::good().with("Content-Type", sent)).assert_forwarded(200);
        assert_eq!(upstream.requests()[number].header("content-type"), Some(received));
    }
}

#[test]
fn any_other_media_type_is_refused() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let refused = [
        "",
        "text/plain",
        "application/json-seq",
        "application/vnd.pulumi+json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json;",
        "application/json ; ",
        "application/json; charset=utf-7",
        "application/json; charset=utf-16le",
        "application/json; charset=utf-16",
        "application/json; charset=utf-32",
        "application/json; charset=utf8",
        "application/json; charset=iso-8859-1",
        "application/json; charset=",
        "application/json; charset=\"utf-8",
        "application/json; charset=\"utf\\-8\"",
        "application/json; charset='utf-8'",
        "application/json; charset = utf-8",
        "application/json; charset*=UTF-8''utf-8",
        "application/json; charset=utf-8; charset=utf-7",
        "application/json; charset=utf-7; charset=utf-8",
        "application/json; charset=utf-8; charset=utf-8",
        "application/json; charset=utf-8; q=1",
        "application/json; boundary=x",
        "application/json; charset=utf-8;",
        "application/json; charset=utf-8, text/plain",
        "application/json, application/json",
        "application/json;\tfoo\u{80}bar",
        "application/json; charset=utf-8\u{a0}",
        "application/json charset=utf-8",
    ];
    for sent in refused {
        println!("{sent}");
        let delivery = Delivery::good().with("Content-Type", sent);
        hookgate.send(&delivery).assert_refused(415, "unsupported_media_type");
    }
    let repeated = Delivery::good().and("Content-Type", "application/json");
    hookgate.send(&repeated).assert_refused(415, "unsupported_media_type");
    let other = Delivery::good().and("content-type", "application/json; charset=utf-7");
    hookgate.send(&other).assert_refused(415, "unsupported_media_type");
    hookgate.send(&Delivery::good().without("Content-Type")).assert_refused(415, "unsupported_media_type");
    // One that hyper does not read at all has no label.
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().with("Content-Type", "application/json; charset=utf-8\0").bytes());
    assert_eq!(connection.answer().status, 400);
    assert_eq!(upstream.requests().len(), 0);
}

/// In UTF-7 plain ASCII becomes quotation marks and braces: the free text in this body would be another organization.
#[test]
fn a_charset_does_not_turn_signed_text_into_structure() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate =
        Setup::new(&upstream).webhook("organization = \"acme\"\nenvironments = [\"website/dev\"]").start();
    let body = r#"{"organization":{"name":"Acme","githubLogin":"acme"},"projectName":"website","environmentName":"dev","action":"created","revision":3,"user":{"name":"Eve +ACIAfQ-,+ACI-environmentName+ACI-:+ACI-prod+ACI-,+ACI-organization+ACI-:+AHsAIg-githubLogin+ACI-:+ACI-evil+ACIAfQ-,+ACI-x+ACI-:+AHsAIg-a+ACI-:+ACI-"}}"#;
    let delivery = || Delivery::new("environment_revision", body);
    hookgate.send(&delivery()).assert_forwarded(200);
    for charset in ["utf-7", "UTF-7", "\"utf-7\"", "utf-8; charset=utf-7", "unicode-1-1-utf-7"] {
        let sent = delivery().with("Content-Type", &format!("application/json; charset={charset}"));
        hookgate.send(&sent).assert_refused(415, "unsupported_media_type");
    }
    assert_eq!(upstream.only_request().header("content-type"), Some("application/json"));
}

#[test]
fn an_encoded_body_is_refused_whatever_it_is_called() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    for encoding in [
        "gzip",
        "x-gzip",
        "deflate",
        "br",
        "zstd",
        "identity",
        "",
        " ",
        "gzip, identity",
        "aws-chunked",
        "\u{e9}",
    ] {
        println!("{encoding}");
        let delivery = Delivery::good().and("Content-Encoding", encoding);
        hookgate.send(&delivery).assert_refused(415, "unsupported_media_type");
    }
    let twice = Delivery::good().and("Content-Encoding", "identity").and("content-encoding", "identity");
    hookgate.send(&twice).assert_refused(415, "unsupported_media_type");
    // Others that some program decodes a body or picks a method by do not go on.
    let delivery = Delivery::good()
        .and("X-Content-Encoding", "gzip")
        .and("Content-Transfer-Encoding", "base64")
        .and("Content-Language", "en")
        .and("Content-Range", "bytes 0-1/2")
        .and("Content-Location", "/other")
        .and("Content-Disposition", "form-data")
        .and("Content-MD5", "x")
        .and("Content-Digest", "sha-256=:x:")
        .and("Digest", "sha-256=x")
        .and("X-HTTP-Method-Override", "DELETE")
        .and("X-Original-URL", "/admin")
        .and("X-Rewrite-URL", "/admin")
        .and("Accept-Charset", "utf-7")
        .and("Expect", "200-ok");
    hookgate.send(&delivery).assert_forwarded(200);
    assert_eq!(upstream.only_request().head.names(), ALLOWED);
}

/// A queue keeps which of the two it was.
#[test]
fn the_media_type_comes_out_of_a_queue_as_it_went_in() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).section("[queue]\npath = \"{dir}/queue.db\"").start();
    for (number, (sent, received)) in [
        ("Application/JSON", "application/json"),
        ("application/json;charset=\"UTF-8\"", "application/json; charset=utf-8"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = hookgate.send(&Delivery::good().with("Content-Type", sent));
        assert_eq!((answer.status, answer.outcome()), (202, "queued"));
        assert_eq!(upstream.wait_for(number + 1)[number].header("content-type"), Some(received));
    }
    let other = Delivery::good().with("Content-Type", "application/json; charset=utf-7");
    hookgate.send(&other).assert_refused(415, "unsupported_media_type");
}

/// What the sender's path, query, method, version, host and expectations say stays here.
#[test]
fn the_request_line_is_that_of_the_configuration() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let good = Delivery::good;
    let passing = [
        good().to("/hook?method=DELETE&charset=utf-7"),
        good().to("http://evil.test/hook"),
        good().http_1_0(),
        good().with("Host", "evil.test:81"),
        good().and("Expect", "100-continue, x"),
        good().and("Connection", "close"),
        good()
            .and("Upgrade", "h2c")
            .and("Connection", "Upgrade, HTTP2-Settings")
            .and("HTTP2-Settings", "AAMAAABk"),
    ];
    let authority = upstream.address().url("").replace("http://", "");
    for (number, delivery) in passing.iter().enumerate() {
        println!("{}", String::from_utf8_lossy(&delivery.head_bytes()));
        hookgate.send(delivery).assert_forwarded(200);
        let request = &upstream.requests()[number];
        assert_eq!(request.head.first_line, "POST /upstream HTTP/1.1");
        assert_eq!(request.head.names(), ALLOWED);
        assert_eq!(request.header("host"), Some(authority.as_str()));
    }
    for target in ["/hook/", "//hook", "/./hook", "/%68ook", "/hook%2f", "/hook;x", "/HOOK", "/x/../hook"] {
        println!("{target}");
        hookgate.send(&good().to(target)).assert_refused(404, "not_found");
    }
    for method in ["GET", "PUT", "post", "POSTS", "DELETE", "OPTIONS"] {
        println!("{method}");
        hookgate.send(&good().method(method)).assert_refused(405, "method_not_allowed");
    }
    assert_eq!(upstream.requests().len(), passing.len());
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

/// Flags that version 00 does not know end here, and so does what later versions add.
#[test]
fn a_trace_brings_nothing_but_its_id_and_known_flags() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let begin = "-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-";
    for (number, (version, end, flags)) in
        [("00", "ff", "03"), ("00", "fc", "00"), ("42", "01-later", "01")].into_iter().enumerate()
    {
        hookgate
            .send(&Delivery::good().and("traceparent", &format!("{version}{begin}{end}")))
            .assert_forwarded(200);
        let [sent, trace, _, seen] = fields(upstream.requests()[number].header("traceparent").unwrap());
        assert_eq!((&*sent, &*trace, &*seen), ("00", "0af7651916cd43dd8448eb211c80319c", flags));
    }
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
