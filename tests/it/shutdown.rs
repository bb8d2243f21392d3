//! Hang-ups and the end: accepted work is finished, whoever leaves first.

use crate::support::{Delivery, Gate, Hookgate, Reply, Setup, Upstream, eventually};

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
        &[("webhook", "webhook-1"), ("outcome", "forwarded")],
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
    let start = crate::support::Instant::now();
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
