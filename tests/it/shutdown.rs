//! Hang-ups and the end: accepted work is finished, whoever leaves first.

use std::time::Duration;

use crate::support::{Delivery, Gate, Hookgate, Instant, Reply, Setup, Upstream, eventually};

/// One delivery held at the upstream, and the gate that lets it go.
fn with_one_in_flight(drain: &str) -> (Upstream, Gate, Hookgate, crate::support::Connection) {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream).server(&format!("drain_timeout = {drain:?}")).start();
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().bytes());
    upstream.wait_for(1);
    (upstream, gate, hookgate, connection)
}

fn wait_until_nobody_listens(hookgate: &Hookgate) {
    eventually("the listener closes", || hookgate.address().connect().is_err().then_some(()));
}

#[test]
fn a_sender_that_hangs_up_after_sending_does_not_stop_the_delivery() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good();
    let mut connection = hookgate.connect();
    connection.send(&delivery.bytes());
    upstream.wait_for(1);
    drop(connection);
    gate.open();
    let line = hookgate.line_of(delivery.header_value("pulumi-webhook-id"));
    assert_eq!(line["message"], "delivery");
    assert_eq!(line["outcome"], "forwarded");
    assert_eq!(line["upstream.status"], 200);
    hookgate.wait_for_metric(
        "hookgate_requests_total",
        &[("webhook", "hook"), ("outcome", "forwarded")],
        1.0,
    );
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], 0.0);
    // It was delivered, and hookgate knows.
    hookgate.send(&delivery).assert_own("duplicate");
    assert_eq!(upstream.requests().len(), 1);
}

/// The whole request is on its way when the sender is gone already.
#[test]
fn a_sender_that_does_not_wait_at_all_is_still_served() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let ids: Vec<_> = (0..20)
        .map(|_| {
            let delivery = Delivery::good();
            let mut connection = hookgate.connect();
            connection.send(&delivery.bytes());
            connection.finish_sending().unwrap();
            connection.answer().assert_forwarded(200);
            delivery.header_value("pulumi-webhook-id").to_owned()
        })
        .collect();
    let mut seen: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| request.header("pulumi-webhook-id").unwrap().to_owned())
        .collect();
    seen.sort();
    assert_eq!(seen, ids);
}

#[test]
fn a_sender_that_hangs_up_within_the_body_leaves_nothing_behind() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good();
    let bytes = delivery.bytes();
    let mut connection = hookgate.connect();
    connection.send(&bytes[..bytes.len() - 1]);
    drop(connection);
    hookgate.wait_for_metric("hookgate_inflight_bytes", &[], 0.0);
    hookgate.wait_for_metric("hookgate_connections", &[], 0.0);
    hookgate.send(&delivery).assert_forwarded(200);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn what_is_in_flight_at_the_signal_is_finished() {
    for signal in ["TERM", "INT"] {
        println!("{signal}");
        let (upstream, gate, mut hookgate, mut connection) = with_one_in_flight("15s");
        hookgate.signal(signal);
        wait_until_nobody_listens(&hookgate);
        gate.open();
        let answer = connection.answer();
        answer.assert_forwarded(200);
        connection.assert_closed();
        assert_eq!(hookgate.wait_exit().code(), Some(0));
        assert_eq!(upstream.requests().len(), 1);
    }
}

/// The listen queue is closed with the listener; ops goes on and says what is going on.
#[test]
fn while_draining_nobody_listens_and_readyz_says_so() {
    let (_upstream, gate, mut hookgate, mut connection) = with_one_in_flight("15s");
    assert_eq!(hookgate.ops("/readyz").status, 200);
    hookgate.signal("TERM");
    wait_until_nobody_listens(&hookgate);
    let ready = hookgate.ops("/readyz");
    assert_eq!(ready.status, 503, "{ready:?}");
    assert!(ready.text().contains("drain"), "{ready:?}");
    assert_eq!(hookgate.ops("/healthz").status, 200);
    assert_eq!(hookgate.ops("/livez").status, 200);
    assert_eq!(hookgate.ops("/metrics").status, 200);
    gate.open();
    connection.answer().assert_forwarded(200);
    assert_eq!(hookgate.wait_exit().code(), Some(0));
}

#[test]
fn idle_connections_do_not_hold_up_the_end() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = Setup::new(&upstream).server("drain_timeout = \"15s\"").start();
    let mut silent = hookgate.connect();
    let mut idle = hookgate.connect();
    idle.send(&Delivery::good().bytes());
    idle.answer().assert_forwarded(200);
    let start = Instant::now();
    hookgate.signal("TERM");
    assert_eq!(hookgate.wait_exit().code(), Some(0));
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    idle.assert_closed();
    silent.assert_closed();
}

#[test]
fn what_is_open_at_the_deadline_is_cut_off_and_the_exit_status_says_so() {
    let (_upstream, _gate, mut hookgate, mut connection) = with_one_in_flight("1s");
    hookgate.signal("TERM");
    connection.answer().assert_refused(503, "draining");
    connection.assert_closed();
    assert_eq!(hookgate.wait_exit().code(), Some(1));
}

/// A body that is still coming when the signal comes belongs to work in flight too.
#[test]
fn a_body_under_way_at_the_signal_may_finish() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = Setup::new(&upstream).server("drain_timeout = \"15s\"").start();
    let delivery = Delivery::good();
    let mut connection = hookgate.connect();
    connection.send(&delivery.head_bytes());
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], 1.0);
    hookgate.signal("TERM");
    wait_until_nobody_listens(&hookgate);
    connection.send(&delivery.body_bytes());
    connection.answer().assert_forwarded(200);
    assert_eq!(hookgate.wait_exit().code(), Some(0));
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_body_that_never_comes_is_cut_off_too() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate =
        Setup::new(&upstream).server("drain_timeout = \"1s\"").server("body_timeout = \"60s\"").start();
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().head_bytes());
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], 1.0);
    hookgate.signal("TERM");
    connection.answer().assert_refused(503, "draining");
    assert_eq!(hookgate.wait_exit().code(), Some(1));
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn a_second_signal_ends_at_once() {
    let (_upstream, _gate, mut hookgate, _connection) = with_one_in_flight("600s");
    hookgate.signal("TERM");
    wait_until_nobody_listens(&hookgate);
    hookgate.signal("TERM");
    let status = hookgate.wait_exit();
    assert_ne!(status.code(), Some(0), "{status}");
}

/// The sender is gone, the delivery is not: the drain waits for it.
#[test]
fn the_drain_waits_for_work_whose_sender_has_left() {
    let (upstream, gate, mut hookgate, connection) = with_one_in_flight("15s");
    drop(connection);
    hookgate.signal("TERM");
    wait_until_nobody_listens(&hookgate);
    gate.open();
    assert_eq!(hookgate.wait_exit().code(), Some(0));
    assert_eq!(upstream.requests().len(), 1);
    let lines = hookgate.log_lines().join("\n");
    assert!(lines.contains("\"forwarded\""), "{lines}");
}

/// The line that says how the end went.
fn drained(hookgate: &Hookgate) -> serde_json::Value {
    hookgate.wait_for_log(|line| line["message"] == "drained")["complete"].clone()
}

#[test]
fn the_log_says_how_the_end_went() {
    let (_upstream, gate, mut hookgate, mut connection) = with_one_in_flight("15s");
    hookgate.signal("TERM");
    hookgate.wait_for_log(|line| line["message"] == "draining");
    gate.open();
    connection.answer().assert_forwarded(200);
    assert_eq!(hookgate.wait_exit().code(), Some(0));
    assert_eq!(drained(&hookgate), true);
    assert!(!hookgate.log_lines().join("\n").contains("cutting off"));
}

/// Time itself is under test here.
#[test]
fn the_deadline_is_kept() {
    for (drain, seconds) in [("0s", 0.0), ("2s", 2.0)] {
        let (_upstream, _gate, mut hookgate, mut connection) = with_one_in_flight(drain);
        let start = Instant::now();
        hookgate.signal("TERM");
        let answer = connection.answer();
        let took = start.elapsed().as_secs_f64();
        answer.assert_refused(503, "draining");
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(hookgate.wait_exit().code(), Some(1));
        let whole = start.elapsed().as_secs_f64();
        assert!(took >= seconds && whole < seconds + 3.0, "{drain}: answered {took}, ended {whole}");
        assert_eq!(drained(&hookgate), false);
        hookgate.wait_for_log(|line| {
            line["level"] == "WARN"
                && line["message"].as_str().is_some_and(|text| text.contains("drain_timeout"))
        });
    }
}

/// Either signal may be the first and the second.
#[test]
fn a_second_signal_of_either_kind_ends_at_once_and_says_so() {
    for (first, second) in [("TERM", "INT"), ("INT", "TERM"), ("INT", "INT")] {
        let (_upstream, _gate, mut hookgate, _connection) = with_one_in_flight("600s");
        hookgate.signal(first);
        hookgate.wait_for_log(|line| line["message"] == "draining");
        let start = Instant::now();
        hookgate.signal(second);
        assert_eq!(hookgate.wait_exit().code(), Some(1));
        assert!(start.elapsed().as_secs_f64() < 3.0, "{:?}", start.elapsed());
        assert_eq!(drained(&hookgate), false);
    }
}

/// As soon as nobody listens any more, readiness has long said why.
#[test]
fn readiness_ends_before_the_listener_does() {
    for _ in 0..10 {
        let (_upstream, _gate, hookgate, _connection) = with_one_in_flight("15s");
        hookgate.signal("TERM");
        eventually("the listener closes", || {
            let refused = hookgate.address().connect().is_err();
            let ready = hookgate.ops("/readyz");
            assert!(!refused || ready.status == 503, "nobody listens, and {ready:?}");
            assert!(ready.status == 200 || ready.text().contains("draining"), "{ready:?}");
            refused.then_some(())
        });
    }
}

#[test]
fn a_kept_connection_is_told_that_its_next_answer_is_the_last() {
    let (upstream, gate, mut hookgate, mut held) = with_one_in_flight("15s");
    upstream.now(|_| Reply::ok());
    let mut kept = hookgate.connect();
    kept.send(&Delivery::good().bytes());
    let answer = kept.answer();
    answer.assert_forwarded(200);
    assert_eq!(answer.header("connection"), None);
    hookgate.signal("TERM");
    eventually("the drain begins", || (hookgate.ops("/readyz").status == 503).then_some(()));
    kept.send(&Delivery::good().bytes());
    let last = kept.answer();
    last.assert_forwarded(200);
    assert_eq!(last.header("connection"), Some("close"));
    kept.assert_closed();
    // The one in flight since before the signal is told too.
    gate.open();
    let answer = held.answer();
    answer.assert_forwarded(200);
    assert_eq!(answer.header("connection"), Some("close"));
    held.assert_closed();
    assert_eq!(hookgate.wait_exit().code(), Some(0));
}

/// Time itself is under test here. `header_timeout` and `idle_timeout` are far longer.
#[test]
fn idle_connections_are_closed_within_about_a_second() {
    let server = "drain_timeout = \"60s\"\nheader_timeout = \"30s\"\nidle_timeout = \"60s\"";
    let gate = Gate::new();
    let upstream = Upstream::listed([Reply::ok(), Reply::held(&gate, Reply::ok())]);
    let mut hookgate = Setup::new(&upstream).server(server).start();
    let mut idle = hookgate.connect();
    idle.send(&Delivery::good().bytes());
    idle.answer().assert_forwarded(200);
    let mut silent = hookgate.connect();
    let mut held = hookgate.connect();
    held.send(&Delivery::good().bytes());
    upstream.wait_for(2);
    hookgate.wait_for_metric("hookgate_connections", &[], 3.0);
    let start = Instant::now();
    hookgate.signal("TERM");
    idle.assert_closed();
    let after = start.elapsed().as_secs_f64();
    assert!((0.9..3.0).contains(&after), "idle: {after}");
    silent.assert_closed();
    let after = start.elapsed().as_secs_f64();
    assert!(after < 3.0, "silent: {after}");
    gate.open();
    held.answer().assert_forwarded(200);
    assert_eq!(hookgate.wait_exit().code(), Some(0));
    assert_eq!(drained(&hookgate), true);
}

/// A head that is on its way when the drain begins is waited for, as long as any head is.
#[test]
fn a_head_under_way_at_the_signal_may_finish() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = Setup::new(&upstream).server("drain_timeout = \"15s\"").start();
    let bytes = Delivery::good().bytes();
    let mut connection = hookgate.connect();
    connection.send(&bytes[..20]);
    hookgate.wait_for_metric("hookgate_connections", &[], 1.0);
    hookgate.signal("TERM");
    wait_until_nobody_listens(&hookgate);
    // Longer than idle connections are kept; that is what is under test.
    assert!(connection.is_quiet_for(Duration::from_millis(1500)));
    connection.send(&bytes[20..]);
    let answer = connection.answer();
    answer.assert_forwarded(200);
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(hookgate.wait_exit().code(), Some(0));
}

/// The process is stopped while they connect, so that the signal and the connections are there at the same time.
#[test]
fn connections_that_wait_in_the_queue_at_the_signal_are_served() {
    for _ in 0..10 {
        let upstream = Upstream::always(Reply::ok());
        let mut hookgate = Setup::new(&upstream).server("drain_timeout = \"15s\"").start();
        hookgate.send(&Delivery::good()).assert_forwarded(200);
        hookgate.signal("STOP");
        let mut waiting: Vec<_> = (0..20)
            .map(|_| {
                let mut connection = hookgate.connect();
                connection.send(&Delivery::good().bytes());
                connection
            })
            .collect();
        hookgate.signal("TERM");
        hookgate.signal("CONT");
        for connection in &mut waiting {
            connection.answer().assert_forwarded(200);
        }
        assert_eq!(hookgate.wait_exit().code(), Some(0));
        assert_eq!(upstream.requests().len(), 21);
    }
}

/// No permit is free for them at the signal: they get one after the other when the first is done.
#[test]
fn connections_beyond_the_limit_at_the_signal_are_served_too() {
    let gate = Gate::new();
    let upstream = Upstream::listed([Reply::held(&gate, Reply::ok()), Reply::ok()]);
    let server = "drain_timeout = \"15s\"\nmax_connections = 1";
    let mut hookgate = Setup::new(&upstream).server(server).start();
    let mut all: Vec<_> = (0..10)
        .map(|turn| {
            let mut connection = hookgate.connect();
            connection.send(&Delivery::good().bytes());
            upstream.wait_for(usize::from(turn == 0));
            connection
        })
        .collect();
    hookgate.signal("TERM");
    wait_until_nobody_listens(&hookgate);
    gate.open();
    for connection in &mut all {
        connection.answer().assert_forwarded(200);
    }
    assert_eq!(hookgate.wait_exit().code(), Some(0));
    assert_eq!(drained(&hookgate), true);
    assert_eq!(upstream.requests().len(), 10);
}
