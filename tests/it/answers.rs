//! Every row of the answers table that does not belong to the queue: status, label, form, and what the
//! connection does afterwards.

use crate::support::{Connection, Delivery, Reply, Setup, Upstream, Webhook, sample};

/// An upstream that must not be reached, behind a webhook for the group `environments`.
fn in_front() -> (Upstream, Setup) {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream).server("max_body = \"4KiB\"");
    (upstream, setup)
}

#[test]
fn a_good_delivery_is_forwarded() {
    let (upstream, setup) = in_front();
    let hookgate = setup.start();
    let delivery = Delivery::good();
    let answer = hookgate.send(&delivery);
    answer.assert_forwarded(200);
    assert_eq!(answer.text(), "done");
    let request = upstream.only_request();
    assert_eq!(request.head.first_line, "POST /upstream HTTP/1.1");
    assert_eq!(request.body, delivery.the_body());
}

/// Refusals that follow from the head: they come without the body, and the connection ends.
#[test]
fn what_the_head_shows_is_refused_before_the_body() {
    let (upstream, setup) = in_front();
    let hookgate = setup.start();
    let good = Delivery::good;
    let cases: Vec<(&str, Delivery, u16, &str)> = vec![
        ("another path", good().to("/other"), 404, "not_found"),
        ("a longer path", good().to("/hook/"), 404, "not_found"),
        ("another case", good().to("/Hook"), 404, "not_found"),
        ("an encoded path", good().to("/%68ook"), 404, "not_found"),
        ("the root", good().to("/"), 404, "not_found"),
        ("PUT", good().method("PUT"), 405, "method_not_allowed"),
        ("DELETE", good().method("DELETE"), 405, "method_not_allowed"),
        ("lower-case post", good().method("post"), 405, "method_not_allowed"),
        ("an own method", good().method("SEND"), 405, "method_not_allowed"),
        ("text", good().with("Content-Type", "text/plain"), 415, "unsupported_media_type"),
        (
            "a form",
            good().with("Content-Type", "application/x-www-form-urlencoded"),
            415,
            "unsupported_media_type",
        ),
        ("a longer subtype", good().with("Content-Type", "application/jsonp"), 415, "unsupported_media_type"),
        ("an empty type", good().with("Content-Type", ""), 415, "unsupported_media_type"),
        ("no type", good().without("Content-Type"), 415, "unsupported_media_type"),
        ("two types", good().and("Content-Type", "application/json"), 415, "unsupported_media_type"),
        ("gzip", good().and("Content-Encoding", "gzip"), 415, "unsupported_media_type"),
        ("identity", good().and("Content-Encoding", "identity"), 415, "unsupported_media_type"),
        ("no signature", good().unsigned(), 401, "missing_signature"),
        ("an empty signature", good().signature(""), 401, "bad_signature"),
        ("a short signature", good().signature(&"a".repeat(63)), 401, "bad_signature"),
        ("a long signature", good().signature(&"a".repeat(65)), 401, "bad_signature"),
        ("no hex", good().signature(&"g".repeat(64)), 401, "bad_signature"),
        ("two signatures", good().and("Pulumi-Webhook-Signature", &"a".repeat(64)), 400, "bad_header"),
        ("a large body", good().with("Content-Length", "4097"), 413, "too_large"),
        ("a huge body", good().with("Content-Length", "9223372036854775807"), 413, "too_large"),
    ];
    for (what, delivery, status, label) in cases {
        println!("{what}");
        let answer = delivery.send_head_only(hookgate.address());
        answer.assert_refused(status, label);
        assert_eq!(
            answer.header("connection").map(str::to_ascii_lowercase).as_deref(),
            Some("close"),
            "{what}"
        );
        assert_eq!(answer.header("allow"), (status == 405).then_some("POST"), "{what}");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn a_get_is_told_what_is_allowed() {
    let (_upstream, setup) = in_front();
    let hookgate = setup.start();
    let mut connection = hookgate.connect();
    for (target, status, label) in [
        ("/hook", 405, "method_not_allowed"),
        ("/hook?x=1", 405, "method_not_allowed"),
        ("/healthz", 404, "not_found"),
    ] {
        connection.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        let answer = connection.answer();
        answer.assert_refused(status, label);
        assert_eq!(answer.header("allow"), (status == 405).then_some("POST"));
    }
}

#[test]
fn an_answer_to_head_has_no_body() {
    let (_upstream, setup) = in_front();
    let hookgate = setup.start();
    let mut connection = hookgate.connect();
    connection.send(b"HEAD /hook HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut rest = String::new();
    connection.read_all(&mut rest);
    assert!(rest.starts_with("HTTP/1.1 405 "), "{rest}");
    assert!(rest.ends_with("\r\n\r\n"), "{rest}");
}

/// Framing that is ambiguous, or that no honest sender uses.
#[test]
fn odd_framing_is_refused() {
    let (upstream, setup) = in_front();
    let hookgate = setup.start();
    let good = Delivery::good;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("length and chunks", good().chunked(&[9]).and("Content-Length", "382").bytes()),
        ("two equal lengths", good().and("Content-Length", "382").and("Content-Length", "382").bytes()),
        ("no host", good().without("Host").bytes()),
        ("two hosts", good().and("Host", "other.test").bytes()),
        ("bare line feeds", String::from_utf8(good().bytes()).unwrap().replace("\r\n", "\n").into_bytes()),
    ];
    for (what, bytes) in cases {
        println!("{what}");
        let mut connection = hookgate.connect();
        connection.send(&bytes);
        let answer = connection.answer();
        answer.assert_refused(400, "bad_request");
        connection.assert_closed();
    }
    assert_eq!(upstream.requests().len(), 0);
}

/// Heads that cannot be parsed get a bare 400 or the label, and in any case the end of the connection.
#[test]
fn heads_that_are_no_http_are_refused() {
    let (upstream, setup) = in_front();
    let hookgate = setup.start();
    let good = Delivery::good;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no HTTP", b"hello\r\n\r\n".to_vec()),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("two differing lengths", good().and("Content-Length", "382").and("Content-Length", "1").bytes()),
        ("a length that is not a number", good().and("Content-Length", "+382").bytes()),
        ("a negative length", good().and("Content-Length", "-1").bytes()),
        ("an unknown coding", good().and("Transfer-Encoding", "gzip").bytes()),
        ("a coding after chunked", good().and("Transfer-Encoding", "chunked, gzip").bytes()),
        ("a space before the colon", good().and("X-Odd ", "1").bytes()),
        ("a folded header", good().and("X-Odd", "1\r\n folded").bytes()),
        ("a zero byte", good().and("X-Odd", "a\0b").bytes()),
        ("a bare carriage return", good().and("X-Odd", "a\rb").bytes()),
    ];
    for (what, bytes) in cases {
        println!("{what}");
        let mut connection = hookgate.connect();
        connection.send(&bytes);
        // The TLS hello has no end of a head: say that nothing more will come.
        drop(connection.finish_sending());
        if let Some(answer) = connection.try_answer() {
            assert_eq!(answer.status, 400, "{what}: {answer:?}");
            assert!(
                answer.header("hookgate-outcome").is_none_or(|label| label == "bad_request"),
                "{answer:?}"
            );
            connection.assert_closed();
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    // And it still serves.
    hookgate.send(&good()).assert_forwarded(200);
}

/// Refusals and answers that need the whole body: the connection can go on.
#[test]
fn what_the_body_shows_is_answered_on_a_connection_that_goes_on() {
    let (upstream, setup) = in_front();
    let hookgate = setup.webhook("organization = \"crazy-adventures\"").start();
    let good = Delivery::good;
    let revision = |body: &str| good().body(body);
    let cases: Vec<(&str, Delivery, u16, &str)> = vec![
        ("forged", good().forged(), 401, "bad_signature"),
        ("tampered", good().tampered("{}"), 401, "bad_signature"),
        ("no ID", good().without("Pulumi-Webhook-Id"), 400, "missing_header"),
        ("no kind", good().without("Pulumi-Webhook-Kind"), 400, "missing_header"),
        ("empty ID", good().id(""), 400, "bad_header"),
        ("odd ID", good().id("a b"), 400, "bad_header"),
        ("slash in ID", good().id("a/b"), 400, "bad_header"),
        ("long ID", good().id(&"a".repeat(129)), 400, "bad_header"),
        ("ID beyond ASCII", good().id("\u{e9}"), 400, "bad_header"),
        ("two IDs", good().and("Pulumi-Webhook-ID", "b"), 400, "bad_header"),
        ("empty kind", good().kind(""), 400, "bad_header"),
        ("upper-case kind", good().kind("Environment_revision"), 400, "bad_header"),
        ("dash in kind", good().kind("environment-revision"), 400, "bad_header"),
        ("long kind", good().kind(&"a".repeat(65)), 400, "bad_header"),
        ("two kinds", good().and("Pulumi-Webhook-Kind", "environment_revision"), 400, "bad_header"),
        ("an empty body", revision(""), 422, "bad_payload"),
        ("no JSON", revision("hello"), 422, "bad_payload"),
        ("an array", revision("[1]"), 422, "bad_payload"),
        ("a string", revision("\"x\""), 422, "bad_payload"),
        ("null", revision("null"), 422, "bad_payload"),
        ("two objects", revision("{} {}"), 422, "bad_payload"),
        ("an open object", revision("{\"action\":\"created\""), 422, "bad_payload"),
        ("a trailing comma", revision("{\"action\":\"created\",}"), 422, "bad_payload"),
        ("wrong kind", good().kind("environment_tag"), 422, "kind_mismatch"),
        ("not wanted", Delivery::of(sample("stack.created")), 200, "filtered"),
        (
            "unknown kind",
            Delivery::new("brand_new", "{\"organization\":{\"githubLogin\":\"crazy-adventures\"}}"),
            200,
            "filtered",
        ),
        ("ping", Delivery::of(sample("ping")), 200, "pong"),
    ];
    let mut connection = hookgate.connect();
    for (what, delivery, status, label) in cases {
        println!("{what}");
        connection.send(&delivery.bytes());
        let answer = connection.answer();
        if status == 200 { answer.assert_own(label) } else { answer.assert_refused(status, label) }
    }
    assert_eq!(upstream.requests().len(), 0);
    connection.send(&good().bytes());
    connection.answer().assert_forwarded(200);
}

/// Without a signature nothing of the body is looked at; where it has come already it is passed over.
#[test]
fn without_a_signature_a_connection_goes_on_if_all_of_the_request_and_nothing_else_has_come() {
    let (upstream, setup) = in_front();
    let hookgate = setup.start();
    let refused = |delivery: &Delivery, label| {
        let mut connection = hookgate.connect();
        connection.send(&delivery.bytes());
        connection.answer().assert_refused(401, label);
        connection
    };
    let unsigned = Delivery::good().unsigned();
    for (delivery, label) in
        [(unsigned.clone(), "missing_signature"), (Delivery::good().signature("x"), "bad_signature")]
    {
        let mut connection = refused(&delivery, label);
        connection.send(&delivery.bytes());
        connection.answer().assert_refused(401, label);
        connection.send(&Delivery::good().bytes());
        connection.answer().assert_forwarded(200);
    }
    assert_eq!(upstream.requests().len(), 2);

    let good = Delivery::good().bytes();
    let whole = unsigned.bytes();
    let behind = |more: &[u8]| [&whole, more].concat();
    for (what, bytes) in [
        ("another request", behind(&good)),
        ("its beginning", behind(b"P")),
        ("not all of the body", whole[..whole.len() - 1].to_vec()),
        ("chunks", unsigned.clone().chunked(&[100]).bytes()),
        ("HTTP/1.0", unsigned.clone().http_1_0().bytes()),
        ("more than is passed over", Delivery::good_with(&"x".repeat(17 << 10)).unsigned().bytes()),
    ] {
        println!("{what}");
        let mut connection = hookgate.connect();
        connection.send(&bytes);
        assert!(matches!(connection.answer().status, 401 | 413));
        connection.assert_closed();
    }
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn payloads_must_be_plain_utf8_without_repeated_keys() {
    let (upstream, setup) = in_front();
    let hookgate = setup.webhook("organization = \"crazy-adventures\"").start();
    let sample = String::from_utf8(sample("environment_tag.created").body()).unwrap();
    let twice =
        |key: &str, value: &str| sample.replacen('{', &format!("{{\"{key}\":{value},"), 1).into_bytes();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a byte order mark", [b"\xef\xbb\xbf", sample.as_bytes()].concat()),
        ("UTF-16", sample.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        (
            "invalid UTF-8",
            sample
                .replace("Morty", "M\u{1}rty")
                .into_bytes()
                .iter()
                .map(|byte| if *byte == 1 { 0xff } else { *byte })
                .collect(),
        ),
        ("two actions", twice("action", "\"deleted\"")),
        ("two equal actions", twice("action", "\"created\"")),
        ("two tag names", twice("tagName", "\"other\"")),
        ("two environments", twice("environmentName", "\"other\"")),
        ("two projects", twice("projectName", "\"other\"")),
        ("two organizations", twice("organization", "{\"githubLogin\":\"crazy-adventures\"}")),
        (
            "two logins",
            sample
                .replacen(
                    "\"githubLogin\": \"crazy-adventures\"",
                    "\"githubLogin\":\"x\",\"githubLogin\":\"crazy-adventures\"",
                    1,
                )
                .into_bytes(),
        ),
        ("an escaped second action", twice("\\u0061ction", "\"deleted\"")),
    ];
    for (what, body) in cases {
        println!("{what}");
        assert_ne!(body, sample.as_bytes());
        hookgate.send(&Delivery::new("environment_tag", body)).assert_refused(422, "bad_payload");
    }
    assert_eq!(upstream.requests().len(), 0);
    // A key that is not read may come as it likes.
    hookgate.send(&Delivery::new("environment_tag", twice("other", "1,\"other\":2"))).assert_forwarded(200);
}

#[test]
fn a_body_without_a_length_is_measured_as_it_comes() {
    let (upstream, setup) = in_front();
    let hookgate = setup.start();
    let body = format!("{{\"pad\":\"{}\"}}", "x".repeat(5000));
    let mut connection = hookgate.connect();
    connection.send(&Delivery::new("environment", body).chunked(&[1000]).bytes());
    connection.answer().assert_refused(413, "too_large");
    connection.assert_closed();
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn both_bad_signatures_read_the_same() {
    let (_upstream, setup) = in_front();
    let hookgate = setup.start();
    let missing = hookgate.send(&Delivery::good().unsigned()).json();
    let wrong = hookgate.send(&Delivery::good().forged()).json();
    let malformed = hookgate.send(&Delivery::good().signature("x")).json();
    assert_eq!(wrong, malformed);
    for field in ["title", "detail", "type", "status"] {
        assert_eq!(missing[field], wrong[field], "{field}");
    }
}

#[test]
fn no_answer_contains_the_expected_signature() {
    let (_upstream, setup) = in_front();
    let hookgate = setup.start();
    let good = Delivery::good();
    let answer = hookgate.send(&good.clone().forged());
    let everything = format!("{answer:?} {}", answer.text());
    assert!(!everything.contains(good.header_value("Pulumi-Webhook-Signature")));
}

#[test]
fn media_types_are_compared_as_the_grammar_says() {
    let (_upstream, setup) = in_front();
    let hookgate = setup.start();
    for media_type in [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "application/json ; charset=\"utf-8\"",
    ] {
        println!("{media_type}");
        hookgate.send(&Delivery::good().with("Content-Type", media_type)).assert_forwarded(200);
    }
}

#[test]
fn a_query_is_ignored_and_not_passed_on() {
    let (upstream, setup) = in_front();
    let hookgate = setup.start();
    hookgate.send(&Delivery::good().to("/hook?a=b&c")).assert_forwarded(200);
    assert_eq!(upstream.only_request().head.first_line, "POST /upstream HTTP/1.1");
}

#[test]
fn the_longest_id_and_every_allowed_character_pass() {
    let (_upstream, setup) = in_front();
    let hookgate = setup.start();
    for id in ["a".repeat(128), "AZaz09._:-".to_owned(), "1".to_owned()] {
        hookgate.send(&Delivery::good().id(&id)).assert_forwarded(200);
    }
}

#[test]
fn http_1_0_is_served() {
    let (_upstream, setup) = in_front();
    let hookgate = setup.start();
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().http_1_0().without("Host").bytes());
    connection.answer().assert_forwarded(200);
    connection.assert_closed();
    hookgate.send(&Delivery::good().http_1_0().unsigned()).assert_refused(401, "missing_signature");
}

#[test]
fn a_sender_that_asks_first_is_told_before_it_sends_the_body() {
    let (upstream, setup) = in_front();
    let hookgate = setup.start();
    let answer = Delivery::good().unsigned().and("Expect", "100-continue").send_head_only(hookgate.address());
    answer.assert_refused(401, "missing_signature");
    assert_eq!(answer.interim, [0_u16; 0]);

    let delivery = Delivery::good().and("Expect", "100-continue");
    let mut connection = Connection::open(hookgate.address());
    connection.send(&delivery.head_bytes());
    connection.assert_interim(100);
    connection.send(&delivery.body_bytes());
    connection.answer().assert_forwarded(200);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn each_path_has_its_own_webhook() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::bare()
        .with(Webhook::to(&upstream.address().url("/one")).at("/a").line("name = \"one\""))
        .with(Webhook::to(&upstream.address().url("/two?key=1")).at("/b").events(&["stacks"]))
        .start();
    hookgate.send(&Delivery::good().to("/a")).assert_forwarded(200);
    hookgate.send(&Delivery::good().to("/b")).assert_own("filtered");
    hookgate.send(&Delivery::of(sample("stack.created")).to("/a")).assert_own("filtered");
    hookgate.send(&Delivery::of(sample("stack.created")).to("/b")).assert_forwarded(200);
    hookgate.send(&Delivery::good()).assert_refused(404, "not_found");
    let requests = upstream.requests();
    let seen: Vec<_> = requests
        .iter()
        .map(|request| (request.head.first_line.as_str(), request.header("hookgate-webhook").unwrap()))
        .collect();
    assert_eq!(seen, [("POST /one HTTP/1.1", "one"), ("POST /two?key=1 HTTP/1.1", "b")]);
}
