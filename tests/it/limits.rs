//! Limits: sizes, deadlines, connections, memory. Short real ones.

use std::time::Duration;

use crate::support::{Connection, Delivery, Gate, Instant, Reply, Setup, Upstream, eventually};

/// Sends a byte of this now and then, until the other side answers or closes.
fn dribble(connection: &mut Connection, bytes: &[u8]) {
    for byte in bytes.iter().cycle().take(100) {
        connection.send(&[*byte]);
        if !connection.is_quiet_for(Duration::from_millis(200)) {
            return;
        }
    }
    panic!("20 s of dribbling are borne");
}

#[test]
fn a_large_head_is_refused() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    hookgate.send(&Delivery::good().and("X-Large", &"x".repeat(8_000))).assert_forwarded(200);
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().and("X-Large", &"x".repeat(40_000)).bytes());
    assert_eq!(connection.answer().status, 431);
    connection.assert_closed();
    let mut connection = hookgate.connect();
    let many = (0..2000)
        .fold(Delivery::good(), |delivery, number| delivery.and(&format!("X-{number}"), "many of them"));
    connection.send(&many.bytes());
    assert_eq!(connection.answer().status, 431);
    connection.assert_closed();
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_configured_head_limit_holds() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("max_header = \"32KiB\"").start();
    hookgate.send(&Delivery::good().and("X-Large", &"x".repeat(20_000))).assert_forwarded(200);
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().and("X-Large", &"x".repeat(70_000)).bytes());
    assert_eq!(connection.answer().status, 431);
}

#[test]
fn a_silent_connection_is_closed() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("header_timeout = \"1s\"").start();
    let start = Instant::now();
    let mut connection = hookgate.connect();
    connection.assert_closed();
    assert!(start.elapsed() > Duration::from_millis(800), "{:?}", start.elapsed());
}

#[test]
fn a_slow_head_is_cut_off_without_an_answer() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("header_timeout = \"1s\"").start();
    let mut connection = hookgate.connect();
    connection.send(b"POST /hook HTTP/1.1\r\nHost: x\r\nX-Slow: ");
    dribble(&mut connection, b"x");
    connection.assert_closed();
}

/// The deadline of a head begins with its first byte, on a connection that goes on too.
#[test]
fn a_slow_second_head_is_cut_off_too() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate =
        Setup::new(&upstream).server("header_timeout = \"1s\"").server("idle_timeout = \"60s\"").start();
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().bytes());
    connection.answer().assert_forwarded(200);
    connection.send(b"POST /hook HTTP/1.1\r\nX-Slow: ");
    dribble(&mut connection, b"x");
    connection.assert_closed();
}

#[test]
fn a_body_that_does_not_come_is_a_timeout() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("body_timeout = \"1s\"").start();
    for part in [0, 100] {
        let delivery = Delivery::good();
        let mut connection = hookgate.connect();
        connection.send(&delivery.head_bytes());
        connection.send(&delivery.body_bytes()[..part]);
        connection.answer().assert_refused(408, "timeout");
        connection.assert_closed();
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn the_body_deadline_is_for_the_whole_body() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("body_timeout = \"1s\"").start();
    let mut connection = hookgate.connect();
    let delivery = Delivery::good();
    connection.send(&delivery.head_bytes());
    dribble(&mut connection, &delivery.body_bytes());
    connection.answer().assert_refused(408, "timeout");
    let mut connection = hookgate.connect();
    connection.send(&delivery.chunked(&[1]).head_bytes());
    dribble(&mut connection, b"1\r\nx\r\n");
    connection.answer().assert_refused(408, "timeout");
}

#[test]
fn an_idle_connection_lives_for_its_own_time() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate =
        Setup::new(&upstream).server("header_timeout = \"1s\"").server("idle_timeout = \"3s\"").start();
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().bytes());
    connection.answer().assert_forwarded(200);
    let start = Instant::now();
    connection.assert_closed();
    let idle = start.elapsed().as_secs_f64();
    assert!((2.5..10.0).contains(&idle), "{idle}");

    // And a request within that time is served.
    let mut connection = hookgate.connect();
    for _ in 0..2 {
        connection.send(&Delivery::good().bytes());
        connection.answer().assert_forwarded(200);
        assert!(connection.is_quiet_for(Duration::from_millis(1500)));
    }
}

#[test]
fn an_idle_timeout_below_the_header_timeout_holds_too() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate =
        Setup::new(&upstream).server("header_timeout = \"60s\"").server("idle_timeout = \"1s\"").start();
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().bytes());
    connection.answer().assert_forwarded(200);
    connection.assert_closed();
}

/// A delivery that the upstream takes its time over is not idle.
#[test]
fn a_waiting_sender_is_not_idle() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream)
        .server("header_timeout = \"1s\"")
        .server("idle_timeout = \"1s\"")
        .server("body_timeout = \"1s\"")
        .start();
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().bytes());
    upstream.wait_for(1);
    assert!(connection.is_quiet_for(Duration::from_millis(2500)));
    gate.open();
    connection.answer().assert_forwarded(200);
}

#[test]
fn connections_beyond_the_limit_wait_their_turn() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("max_connections = 2").start();
    let mut first = hookgate.connect();
    let mut second = hookgate.connect();
    for connection in [&mut first, &mut second] {
        connection.send(&Delivery::good().bytes());
        connection.answer().assert_forwarded(200);
    }
    let mut third = hookgate.connect();
    third.send(&Delivery::good().bytes());
    assert!(third.is_quiet_for(Duration::from_millis(500)));
    assert_eq!(upstream.requests().len(), 2);
    // The ops listener has room of its own.
    assert_eq!(hookgate.ops("/healthz").status, 200);
    drop(first);
    third.answer().assert_forwarded(200);
    assert_eq!(upstream.requests().len(), 3);
}

#[test]
fn bodies_beyond_the_memory_are_put_off() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate =
        Setup::new(&upstream).server("max_body = \"1KiB\"").server("max_inflight_bytes = \"1KiB\"").start();
    let delivery = || Delivery::good_with(&"x".repeat(400));
    let mut first = hookgate.connect();
    first.send(&delivery().bytes());
    upstream.wait_for(1);
    hookgate.send(&delivery()).assert_refused(503, "overloaded");
    hookgate.send(&delivery().chunked(&[100])).assert_refused(503, "overloaded");
    // What holds no body is still answered as ever.
    hookgate.send(&Delivery::good().unsigned()).assert_refused(401, "missing_signature");
    gate.open();
    first.answer().assert_forwarded(200);
    hookgate.wait_for_metric("hookgate_inflight_bytes", &[], 0.0);
    hookgate.send(&delivery()).assert_forwarded(200);
    assert_eq!(upstream.requests().len(), 2);
}

/// A thousand bad senders later everything is given back.
#[test]
fn nothing_is_lost_to_bad_senders() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("max_connections = 4").server("max_body = \"1KiB\"").start();
    let good = Delivery::good();
    for number in 0..200 {
        let mut connection = hookgate.connect();
        match number % 5 {
            0 => connection.send(&good.head_bytes()),
            1 => connection.send(b"POST /hook"),
            2 => connection.send(&Delivery::good().forged().bytes()),
            3 => connection.send(b"\0\0\0"),
            _ => {}
        }
    }
    eventually("all connections are given back", || {
        (hookgate.metrics().value("hookgate_connections", &[]) == Some(0.0)).then_some(())
    });
    hookgate.wait_for_metric("hookgate_inflight_bytes", &[], 0.0);
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], 0.0);
    hookgate.send(&Delivery::good()).assert_forwarded(200);
}
