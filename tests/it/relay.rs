//! The upstream's side: its answer relayed, its failures named, its connections used again.

use std::net::TcpListener;

use crate::support::{
    Address, Answer, Connection, Delivery, Gate, Hookgate, Instant, Reply, Setup, Upstream, Webhook,
};

fn in_front_of(upstream: &Upstream) -> Hookgate {
    Setup::new(upstream).destination("timeout = \"1s\"").start()
}

/// A good delivery on a connection that goes on. Upstream connections are pooled for each thread, and a
/// sender's connection stays on its thread.
fn send_on(sender: &mut Connection) -> Answer {
    sender.send(&Delivery::good().bytes());
    sender.answer()
}

#[test]
fn status_type_retry_after_and_body_are_relayed() {
    let upstream = Upstream::scripted(|request| {
        let status = request.header("pulumi-webhook-id").unwrap().parse().unwrap();
        Reply::answer(status, &[("Content-Type", "text/x-odd; a=b"), ("Retry-After", "120")], "its own words")
    });
    let hookgate = in_front_of(&upstream);
    for status in [
        200, 201, 202, 203, 206, 299, 400, 401, 403, 404, 408, 409, 410, 413, 422, 425, 429, 451, 500, 501,
        502, 503, 504, 599,
    ] {
        println!("{status}");
        let answer = hookgate.send(&Delivery::good().id(&status.to_string()));
        answer.assert_forwarded(status);
        assert_eq!(answer.header("content-type"), Some("text/x-odd; a=b"));
        assert_eq!(answer.header("retry-after"), Some("120"));
        assert_eq!(answer.text(), "its own words");
    }
}

#[test]
fn answers_without_a_body_are_relayed() {
    let upstream = Upstream::listed([
        Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        Reply::raw("HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n"),
        Reply::answer(500, &[], ""),
    ]);
    let hookgate = in_front_of(&upstream);
    for status in [204, 205, 500] {
        let mut connection = hookgate.connect();
        connection.send(&Delivery::good().and("Connection", "close").bytes());
        let answer = connection.answer();
        answer.assert_forwarded(status);
        assert_eq!(answer.text(), "");
        assert_eq!(answer.header("content-type"), None);
        connection.assert_closed();
    }
}

#[test]
fn other_headers_of_the_upstream_are_dropped() {
    let upstream = Upstream::always(Reply::answer(
        200,
        &[
            ("Content-Type", "text/plain"),
            ("Server", "internal/1.2"),
            ("Set-Cookie", "session=1"),
            ("Location", "http://internal.test/"),
            ("X-Powered-By", "x"),
            ("WWW-Authenticate", "Basic"),
            ("Hookgate-Outcome", "forged"),
            ("Hookgate-Other", "forged"),
            ("Connection", "keep-alive"),
            ("Access-Control-Allow-Origin", "*"),
            ("Content-Language", "en"),
        ],
        "body",
    ));
    let hookgate = in_front_of(&upstream);
    let answer = hookgate.send(&Delivery::good());
    answer.assert_forwarded(200);
    let allowed = ["content-length", "content-type", "date", "hookgate-outcome", "retry-after", "connection"];
    for name in answer.head.names() {
        assert!(allowed.contains(&name.as_str()), "{name} in {answer:?}");
    }
}

#[test]
fn the_first_64_kib_of_the_body_are_relayed() {
    const LIMIT: usize = 64 * 1024;
    for size in [LIMIT - 1, LIMIT, LIMIT + 1, 1 << 20] {
        println!("{size}");
        let body: Vec<u8> = (0..size).map(|place| b'a' + u8::try_from(place % 23).unwrap()).collect();
        let upstream = Upstream::always(Reply::answer(200, &[], &body));
        let hookgate = in_front_of(&upstream);
        let answer = hookgate.send(&Delivery::good());
        answer.assert_forwarded(200);
        assert!(answer.body.complete);
        assert!(answer.body.bytes == body[..size.min(LIMIT)], "{} bytes", answer.body.bytes.len());
        // Cut or not, it was delivered.
        hookgate.send(&Delivery::good()).assert_forwarded(200);
    }
}

#[test]
fn chunked_and_unframed_answers_are_relayed() {
    let upstream = Upstream::listed([
        Reply::raw(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\nx-trailer: 1\r\n\r\n",
        ),
        Reply::raw("HTTP/1.1 200 OK\r\n\r\nonetwo").and_close(),
        Reply::raw("HTTP/1.0 200 OK\r\n\r\nonetwo").and_close(),
    ]);
    let hookgate = in_front_of(&upstream);
    for _ in 0..3 {
        let answer = hookgate.send(&Delivery::good());
        answer.assert_forwarded(200);
        assert_eq!(answer.text(), "onetwo");
        assert!(answer.body.trailers.is_empty());
    }
}

#[test]
fn interim_answers_of_the_upstream_are_passed_over() {
    let upstream = Upstream::always(
        Reply::raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(8))
            .then(Reply::ok()),
    );
    let hookgate = in_front_of(&upstream);
    let answer = hookgate.send(&Delivery::good());
    answer.assert_forwarded(200);
    assert_eq!(answer.interim, [0_u16; 0]);
    assert_eq!(answer.text(), "done");
}

#[test]
fn redirects_are_a_bad_answer_and_never_followed() {
    let elsewhere = Upstream::always(Reply::ok());
    for status in [300, 301, 302, 303, 304, 307, 308] {
        println!("{status}");
        let location = elsewhere.url();
        let upstream = Upstream::always(Reply::answer(status, &[("Location", &location)], ""));
        let hookgate = in_front_of(&upstream);
        let answer = hookgate.send(&Delivery::good());
        answer.assert_refused(502, "upstream_bad_answer");
        assert_eq!(answer.header("location"), None);
        assert_eq!(upstream.requests().len(), 1);
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[test]
fn no_usable_answer_is_a_bad_answer() {
    let cases = [
        ("closed at once", Reply::hang_up()),
        ("garbage", Reply::raw("this is not HTTP at all\r\n\r\n").and_close()),
        ("garbage, left open", Reply::raw("\0\0\0\0\r\n\r\n")),
        ("half a head", Reply::raw("HTTP/1.1 200 OK\r\ncontent-").and_close()),
        ("half a status line", Reply::raw("HTTP/1.").and_close()),
        ("no status", Reply::raw("HTTP/1.1 abc\r\n\r\n").and_close()),
        ("a status beyond 599", Reply::answer(600, &[], "x")),
        ("a status far beyond", Reply::answer(999, &[], "x")),
        ("a head without CR", Reply::raw("HTTP/1.1 200 OK\ncontent-length: 0\n\n")),
        ("a header without CR", Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 0\nx: y\r\n\r\n")),
        (
            "interim answers without end",
            Reply::raw("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(17)).then(Reply::ok()),
        ),
        ("only an interim answer", Reply::raw("HTTP/1.1 100 Continue\r\n\r\n").and_close()),
        (
            "a protocol switch",
            Reply::raw("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
                .and_close(),
        ),
    ];
    for (what, reply) in cases {
        println!("{what}");
        let upstream = Upstream::always(reply);
        let hookgate = in_front_of(&upstream);
        let answer = hookgate.send(&Delivery::good());
        answer.assert_refused(502, "upstream_bad_answer");
        // Nothing says that it was not processed, so a fresh connection is not tried again.
        assert_eq!(upstream.requests().len(), 1, "{what}");
    }
}

#[test]
fn no_connection_is_unreachable() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = Address::Tcp(address);
    let hookgate = Setup::bare()
        .with(Webhook::to(&nobody.url("/")))
        .with(Webhook::to("http://no-such-host.invalid/").at("/name"))
        .start();
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_refused(502, "upstream_unreachable");
    hookgate.send(&delivery).assert_refused(502, "upstream_unreachable");
    hookgate.send(&delivery.to("/name")).assert_refused(502, "upstream_unreachable");
}

/// Why a delivery to this URL fails: as direct mode says it, and as an attempt of the queue does.
fn reasons(url: &str) -> [String; 2] {
    let webhook = || Webhook::to(url).destination("name = \"app\"\ntimeout = \"1s\"");
    let direct = Setup::bare().with(webhook()).start();
    let delivery = Delivery::good();
    let answer = direct.send(&delivery);
    answer.assert_says_nothing_internal();
    assert!([502, 504].contains(&answer.status), "{answer:?}");
    let line = direct.line_of(delivery.header_value("pulumi-webhook-id"));
    let queued = Setup::bare().section("[queue]\npath = \"{dir}/queue.db\"").with(webhook()).start();
    assert_eq!(queued.send(&delivery).said(), (202, "queued"));
    let attempt = queued.wait_for_log(|line| line["message"] == "attempt");
    [&line["reason"], &attempt["error"]].map(|text| text.as_str().unwrap().to_owned())
}

/// A failure names the destination, where it was sought and what was not done, in the same words in both modes.
#[test]
fn failures_name_the_destination_and_what_was_tried() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let (port, upstream) = (nobody.port(), |reply| Upstream::always(reply));
    let (closing, redirecting, hanging) =
        (upstream(Reply::hang_up()), upstream(Reply::status(307)), upstream(Reply::silence()));
    let tls = upstream(Reply::raw(b"\x15\x03\x01\x00\x02\x02\x46".to_vec()));
    let at = |upstream: &Upstream| {
        let url = upstream.url();
        (url.clone(), url.strip_suffix("/upstream").unwrap().to_owned())
    };
    let mut cases = vec![
        (
            format!("http://{nobody}/secret-path"),
            format!("at http://{nobody} cannot be reached: Connection refused (os error 111)"),
        ),
        (
            format!("http://localhost:{port}/"),
            format!("at http://localhost:{port} cannot be reached: tried "),
        ),
        (
            "http://no-such-host.invalid:81/".to_owned(),
            "at http://no-such-host.invalid:81 cannot be reached: its name cannot be resolved: ".to_owned(),
        ),
        (
            "unix:/no/such.sock:/in".to_owned(),
            "at unix:/no/such.sock cannot be reached: No such file or directory (os error 2)".to_owned(),
        ),
        (
            format!("https://{silent}/"),
            format!("at https://{silent} did not answer in time: the TLS handshake was not done within 1s"),
        ),
    ];
    for (upstream, words) in [
        (&closing, "gave no usable answer: it ended the connection before a status (a TLS port does that"),
        (
            &redirecting,
            "gave no usable answer: it answered 307 Temporary Redirect, and redirects are not followed",
        ),
        (&hanging, "did not answer in time: there was no status within 1s; the request was sent"),
        (&tls, "gave no usable answer: it speaks TLS: `url` must begin with https://"),
    ] {
        let (url, place) = at(upstream);
        cases.push((url, format!("at {place} {words}")));
    }
    for (url, words) in cases {
        let [direct, queued] = reasons(&url);
        assert!(direct.starts_with(&format!("destination `app` {words}")), "{words}\n{direct}");
        assert_eq!(direct, queued);
        assert!(!direct.contains("secret-path"), "{direct}");
    }
    let [reason, _] = reasons(&format!("http://localhost:{port}/"));
    assert!(reason.contains(&format!("127.0.0.1:{port} (Connection refused")), "{reason}");
}

#[test]
fn an_upstream_that_says_nothing_is_given_up_in_time() {
    for reply in [
        Reply::silence(),
        Reply::raw("HTTP/1.1 100 Continue\r\n\r\n").then(Reply::silence()),
        Reply::raw("HTTP/1.1 200 OK\r\ncontent-le").then(Reply::silence()),
    ] {
        let upstream = Upstream::always(reply);
        let hookgate = in_front_of(&upstream);
        let start = Instant::now();
        let delivery = Delivery::good();
        hookgate.send(&delivery).assert_refused(504, "upstream_timeout");
        let took = start.elapsed().as_secs_f64();
        assert!((0.9..10.0).contains(&took), "{took}");
        // It failed, so the next one goes through.
        upstream.now(|_| Reply::ok());
        hookgate.send(&delivery).assert_forwarded(200);
    }
}

#[test]
fn a_body_that_breaks_off_is_relayed_as_far_as_it_came() {
    let cases = [
        ("closed", Reply::raw("HTTP/1.1 201 Made\r\ncontent-length: 100\r\n\r\nhalf").and_close()),
        (
            "chunks closed",
            Reply::raw("HTTP/1.1 201 Made\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").and_close(),
        ),
        ("silent", Reply::raw("HTTP/1.1 201 Made\r\ncontent-length: 100\r\n\r\nhalf").then(Reply::silence())),
        (
            "broken chunk",
            Reply::raw("HTTP/1.1 201 Made\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n")
                .and_close(),
        ),
    ];
    for (what, reply) in cases {
        println!("{what}");
        let upstream = Upstream::always(reply);
        let hookgate = in_front_of(&upstream);
        let delivery = Delivery::good();
        let answer = hookgate.send(&delivery);
        answer.assert_forwarded(201);
        assert_eq!(answer.text(), "half");
        // A 2xx was seen: delivered.
        hookgate.send(&delivery).assert_own("duplicate");
        assert_eq!(upstream.requests().len(), 1);
    }
}

#[test]
fn a_failing_status_with_a_broken_body_is_still_that_status() {
    let upstream =
        Upstream::always(Reply::raw("HTTP/1.1 500 Oops\r\ncontent-length: 100\r\n\r\nhalf").and_close());
    let hookgate = in_front_of(&upstream);
    let answer = hookgate.send(&Delivery::good());
    answer.assert_forwarded(500);
    assert_eq!(answer.text(), "half");
}

#[test]
fn an_upstream_connection_is_used_again() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = in_front_of(&upstream);
    let mut sender = hookgate.connect();
    for _ in 0..10 {
        send_on(&mut sender).assert_forwarded(200);
    }
    assert_eq!(upstream.requests().len(), 10);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_answer_in_full_frees_the_connection_even_when_it_is_an_error() {
    let upstream = Upstream::always(Reply::status(500));
    let hookgate = in_front_of(&upstream);
    let mut sender = hookgate.connect();
    for _ in 0..5 {
        send_on(&mut sender).assert_forwarded(500);
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_connection_that_the_upstream_closed_meanwhile_fails_nothing() {
    let upstream = Upstream::always(Reply::ok().and_close());
    let hookgate = in_front_of(&upstream);
    let mut sender = hookgate.connect();
    for sent in 1..=20 {
        send_on(&mut sender).assert_forwarded(200);
        upstream.wait_for_closed(sent);
    }
    assert_eq!(upstream.requests().len(), 20);
}

/// The pool cannot know: the upstream closes in the face of the next request. Whether it has taken it is not known, so
/// it is not sent again (RFC 9110, 9.2.2).
#[test]
fn direct_what_was_sent_is_not_sent_again() {
    let upstream = Upstream::always(Reply::ok().and_close_at_next_byte());
    let hookgate = in_front_of(&upstream);
    let mut sender = hookgate.connect();
    for connection in 1..=3 {
        send_on(&mut sender).assert_forwarded(200);
        assert_eq!(upstream.connections(), connection);
        let delivery = Delivery::good();
        sender.send(&delivery.bytes());
        sender.answer().assert_refused(502, "upstream_bad_answer");
        assert_eq!(upstream.connections(), connection);
        let line = hookgate.line_of(delivery.header_value("pulumi-webhook-id"));
        assert!(line["reason"].as_str().unwrap().contains("whether it has taken it is not known"), "{line}");
    }
    assert_eq!(upstream.requests().len(), 3);
}

/// With a queue it is sent again, as what it is: another attempt.
#[test]
fn queued_what_is_sent_again_is_another_attempt() {
    let upstream = Upstream::scripted(|request| {
        if request.connection == 1 { Reply::ok().and_close_at_next_byte() } else { Reply::ok() }
    });
    let queue = "[queue]\npath = \"{dir}/queue.db\"\nbackoff = { initial = \"10ms\", max = \"100ms\" }";
    let webhook = Webhook::to(&upstream.url()).line("name = \"esc\"").destination("name = \"app\"");
    let hookgate = Setup::bare().section(queue).with(webhook).start();
    for count in 1..=2 {
        assert_eq!(hookgate.send(&Delivery::good()).said(), (202, "queued"));
        upstream.wait_for(count);
        hookgate.wait_for_metric("hookgate_queue_depth", &[("webhook", "esc"), ("destination", "app")], 0.0);
    }
    hookgate.wait_for_log(|line| line["outcome"] == "retry" && line["attempt"] == 1);
    hookgate.wait_for_log(|line| line["outcome"] == "delivered" && line["attempt"] == 2);
    let attempts: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| request.header("hookgate-attempt").unwrap().to_owned())
        .collect();
    assert_eq!(attempts, ["1", "2"]);
}

#[test]
fn a_slow_upstream_does_not_hold_up_others() {
    let gate = Gate::new();
    let slow = Upstream::always(Reply::held(&gate, Reply::ok()));
    let quick = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&slow).with(Webhook::to(&quick.url()).at("/quick")).start();
    let mut held: Vec<_> = (0..20).map(|_| hookgate.connect()).collect();
    for connection in &mut held {
        connection.send(&Delivery::good().bytes());
    }
    slow.wait_for(20);
    hookgate.send(&Delivery::good().to("/quick")).assert_forwarded(200);
    gate.open();
    for connection in &mut held {
        connection.answer().assert_forwarded(200);
    }
}

/// Some upstreams answer before they have read the whole request.
#[test]
fn an_early_answer_is_an_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 1);
        stream.write_all(b"HTTP/1.1 413 No\r\ncontent-length: 3\r\nconnection: close\r\n\r\ntoo").unwrap();
        // Reads the rest, so that the kernel does not take the answer back.
        std::io::copy(&mut stream, &mut std::io::sink()).ok();
    });
    let hookgate = Setup::bare().with(Webhook::to(&address.url("/"))).start();
    let delivery = Delivery::good_with(&"x".repeat(900_000));
    hookgate.send(&delivery).assert_forwarded(413);
    drop(hookgate);
    thread.join().unwrap();
}

#[test]
fn the_url_decides_path_and_query() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.address().url("/a/b%20c?d=e&f=%26");
    let hookgate = Setup::bare().with(Webhook::to(&url)).start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(upstream.only_request().head.first_line, "POST /a/b%20c?d=e&f=%26 HTTP/1.1");
}
