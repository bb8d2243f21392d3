//! The upstream's side: its answer relayed, its failures named, its connections used again.

use std::net::TcpListener;

use crate::support::{
    Address, Answer, Connection, Delivery, Gate, Hookgate, Instant, Reply, Setup, Upstream,
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
        Reply::raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
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
        .with(crate::support::Webhook::to(&nobody.url("/")))
        .with(crate::support::Webhook::to("http://no-such-host.invalid/").at("/name"))
        .start();
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_refused(502, "upstream_unreachable");
    hookgate.send(&delivery).assert_refused(502, "upstream_unreachable");
    hookgate.send(&delivery.to("/name")).assert_refused(502, "upstream_unreachable");
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
    for _ in 0..20 {
        send_on(&mut sender).assert_forwarded(200);
    }
    assert_eq!(upstream.requests().len(), 20);
}

/// The pool cannot know: the upstream closes in the face of the next request.
#[test]
fn a_pooled_connection_that_breaks_unanswered_is_replaced_once() {
    let upstream = Upstream::always(Reply::ok().and_close_at_next_byte());
    let hookgate = in_front_of(&upstream);
    let mut sender = hookgate.connect();
    for sent in 1..=5 {
        send_on(&mut sender).assert_forwarded(200);
        assert_eq!(upstream.connections(), sent);
    }
    assert_eq!(upstream.requests().len(), 5);
}

#[test]
fn the_replacement_is_tried_only_once() {
    let upstream = Upstream::scripted(|request| {
        if request.connection == 1 { Reply::ok().and_close_at_next_byte() } else { Reply::hang_up() }
    });
    let hookgate = in_front_of(&upstream);
    let mut sender = hookgate.connect();
    send_on(&mut sender).assert_forwarded(200);
    send_on(&mut sender).assert_refused(502, "upstream_bad_answer");
    assert_eq!(upstream.connections(), 2);
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_slow_upstream_does_not_hold_up_others() {
    let gate = Gate::new();
    let slow = Upstream::always(Reply::held(&gate, Reply::ok()));
    let quick = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&slow).with(crate::support::Webhook::to(&quick.url()).at("/quick")).start();
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
    let hookgate = Setup::bare().with(crate::support::Webhook::to(&address.url("/"))).start();
    let delivery = Delivery::good_with(&"x".repeat(900_000));
    hookgate.send(&delivery).assert_forwarded(413);
    drop(hookgate);
    thread.join().unwrap();
}

#[test]
fn the_url_decides_path_and_query() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.address().url("/a/b%20c?d=e&f=%26");
    let hookgate = Setup::bare().with(crate::support::Webhook::to(&url)).start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(upstream.only_request().head.first_line, "POST /a/b%20c?d=e&f=%26 HTTP/1.1");
}
