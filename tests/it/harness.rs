//! The tests' own tools, tried on each other: a harness that sees nothing would let everything pass.

use crate::support::{Connection, Delivery, Gate, Reply, SAMPLES, Upstream, known_answers, signed};

#[test]
fn the_upstream_records_what_the_client_sends() {
    let upstream = Upstream::always(Reply::answer(418, &[("x-one", "1")], "tea"));
    let delivery =
        Delivery::good().to("/upstream?x").and("X-Odd", "\u{e9} a ").chunked(&[1, 7]).trailer("X-T: 1");
    let answer = delivery.send(upstream.address());
    assert_eq!((answer.status, answer.header("X-One"), answer.text()), (418, Some("1"), "tea".to_owned()));
    assert!(answer.body.complete);
    let request = upstream.only_request();
    assert_eq!(request.head.first_line, "POST /upstream?x HTTP/1.1");
    assert_eq!(request.body, delivery.the_body());
    assert_eq!(request.header("x-odd"), Some("\u{e9} a"));
    assert_eq!(request.trailers, ["X-T: 1\r\n"]);
    assert_eq!((request.connection, request.turn), (1, 1));
}

#[test]
fn the_upstream_keeps_and_closes_connections_as_told() {
    let upstream = Upstream::listed([
        Reply::ok(),
        Reply::raw("HTTP/1.1 103 Early Hints\r\n\r\n").then(Reply::ok()).and_close(),
        Reply::hang_up(),
        Reply::ok().and_close_at_next_byte(),
    ]);
    let mut connection = Connection::open(upstream.address());
    connection.send(&Delivery::good().bytes());
    assert_eq!(connection.answer().status, 200);
    assert!(connection.is_quiet_for(std::time::Duration::from_millis(20)));
    connection.send(&Delivery::good().bytes());
    assert_eq!(connection.answer().interim, [103]);
    connection.assert_closed();
    assert_eq!(upstream.connections(), 1);

    let mut connection = Connection::open(upstream.address());
    connection.send(&Delivery::good().bytes());
    assert!(connection.try_answer().is_none());

    let mut connection = Connection::open(upstream.address());
    connection.send(&Delivery::good().bytes());
    assert_eq!(connection.answer().status, 200);
    connection.send(&Delivery::good().bytes());
    assert!(connection.try_answer().is_none());
    assert_eq!(upstream.connections(), 3);
    assert_eq!(upstream.requests().len(), 4);
}

#[test]
fn a_held_reply_waits_for_its_gate_and_a_short_one_is_seen_as_short() {
    let gate = Gate::new();
    let short = Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").and_close();
    let upstream = Upstream::always(Reply::held(&gate, short));
    let mut connection = Connection::open(upstream.address());
    connection.send(&Delivery::good().bytes());
    upstream.wait_for(1);
    assert!(connection.is_quiet_for(std::time::Duration::from_millis(20)));
    gate.open();
    let answer = connection.answer();
    assert_eq!(answer.text(), "half");
    assert!(!answer.body.complete);
}

#[test]
fn every_sample_has_a_known_answer() {
    let table = known_answers();
    assert_eq!(table.len(), SAMPLES.len());
    for sample in &SAMPLES {
        let body = sample.body();
        let name = format!("{}.json", sample.name);
        let (_, length, signature) = table.iter().find(|(seen, _, _)| *seen == name).unwrap();
        assert_eq!(body.len(), *length, "{name}");
        assert_eq!(signed(&body, crate::support::SECRET.as_bytes()), *signature, "{name}");
        assert_ne!(body.last(), Some(&b'\n'), "{name}");
    }
}
