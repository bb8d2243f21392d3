//! What cannot be read as a request: the sender gets a bare answer, and the operator a line and a count that say what it was.

use serde_json::Value;

use crate::support::{Delivery, Hookgate, Reply, Setup, Upstream, tls::Authority};

/// Its line, and that it was counted.
#[track_caller]
fn line_of(hookgate: &Hookgate, what: &str) -> Value {
    let line = hookgate.wait_for_log(|line| line["looks_like"] == what);
    hookgate.wait_for_metric("hookgate_unreadable_total", &[("reason", what)], 1.0);
    assert_eq!(line["level"], "INFO", "{line}");
    line
}

#[test]
fn what_cannot_be_read_leaves_a_line_that_says_what_it_looked_like() {
    let upstream = Upstream::always(Reply::ok());
    let head = "POST /hook HTTP/1.1\r\nHost: h\r\n";
    let many = (0..120).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    for (bytes, what, reason, status) in [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(), "proxy_protocol", "PROXY protocol", 400),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec(), "proxy_protocol", "PROXY protocol", 400),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n".to_vec(), "tls", "http://", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "http2", "HTTP/1.1", 400),
        (format!("{head}X: {}\r\n\r\n", "x".repeat(40_000)).into(), "too_large", "max_header", 431),
        (format!("{head}{many}\r\n").into(), "too_many_headers", "100 headers", 431),
        (b"\x1b[31mGET\r\n\r\n".to_vec(), "syntax", r#"begins with "\x1b[31mGET\r\n\r\n""#, 400),
    ] {
        let hookgate = Setup::new(&upstream).start();
        let mut connection = hookgate.connect();
        connection.send(&bytes);
        assert_eq!(connection.answer().status, status, "{what}");
        connection.assert_closed();
        let line = line_of(&hookgate, what);
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        assert!(line["client.address"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        // Every reason is there from the start, at zero.
        let reasons = hookgate.ops("/metrics").text();
        assert_eq!(reasons.matches("hookgate_unreadable_total{").count(), 7, "{reasons}");
    }
    assert_eq!(upstream.requests().len(), 0);
}

/// A second head of a connection is not taken for what the first one looked like.
#[test]
fn a_later_head_that_cannot_be_read_is_told_too() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().bytes());
    connection.answer().assert_forwarded(200);
    connection.send(b"nonsense\r\n\r\n");
    assert_eq!(connection.answer().status, 400);
    line_of(&hookgate, "syntax");
}

#[test]
fn a_head_that_is_not_complete_in_time_is_told_and_a_silent_connection_is_not() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("header_timeout = \"1s\"").start();
    let mut silent = hookgate.connect();
    silent.assert_closed();
    let mut slow = hookgate.connect();
    slow.send(b"POST /hook HT");
    slow.assert_closed();
    let line = line_of(&hookgate, "timeout");
    assert!(line["reason"].as_str().unwrap().contains("header_timeout"), "{line}");
}

#[test]
fn a_tls_handshake_that_fails_is_told() {
    let authority = Authority::new("a");
    let pair = authority.issue(&["localhost"]);
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .file("tls.crt", &pair.cert)
        .file("tls.key", &pair.key)
        .server("tls = { cert = \"{dir}/tls.crt\", key = \"{dir}/tls.key\" }")
        .start();
    let mut plain = hookgate.connect();
    plain.send(&Delivery::good().bytes());
    let line = line_of(&hookgate, "tls");
    assert!(line["reason"].as_str().unwrap().contains("TLS handshake failed"), "{line}");
}

/// However many come, they fill no disk, and none is left out of the count.
#[test]
fn lines_of_what_cannot_be_read_are_limited() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    for _ in 0..300 {
        let mut connection = hookgate.connect();
        connection.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
        assert_eq!(connection.answer().status, 400);
    }
    hookgate.wait_for_metric("hookgate_unreadable_total", &[("reason", "proxy_protocol")], 300.0);
    hookgate.wait_for_log(|line| line["outcomes"].as_str().is_some_and(|text| text.contains("unreadable ")));
    let lines = hookgate.log_lines().iter().filter(|line| line.contains("looks_like")).count();
    assert!(lines < 150, "{lines}");
}
