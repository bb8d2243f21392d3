//! Duplicates: one delivery reaches the upstream once, a failed one again, and an ID belongs to one body.

use std::thread;

use crate::support::{Delivery, Gate, Reply, Setup, Upstream, Webhook, sample};

#[test]
fn a_delivered_one_is_a_duplicate() {
    let upstream = Upstream::always(Reply::status(204));
    let upstream_with_body = Upstream::always(Reply::ok());
    for upstream in [&upstream_with_body, &upstream] {
        let hookgate = Setup::new(upstream).start();
        let delivery = Delivery::good();
        assert_eq!(hookgate.send(&delivery).outcome(), "forwarded");
        hookgate.send(&delivery).assert_own("duplicate");
        hookgate.send(&delivery).assert_own("duplicate");
        assert_eq!(upstream.requests().len(), 1);
        // The same body under another ID is another delivery.
        assert_eq!(hookgate.send(&Delivery::good()).outcome(), "forwarded");
        assert_eq!(upstream.requests().len(), 2);
    }
}

#[test]
fn every_2xx_counts_as_delivered_and_nothing_else_does() {
    let upstream = Upstream::scripted(|request| {
        let id = request.header("pulumi-webhook-id").unwrap();
        Reply::status(id.strip_prefix("status-").unwrap().parse().unwrap())
    });
    let hookgate = Setup::new(&upstream).start();
    for (status, delivered) in [
        (200, true),
        (201, true),
        (202, true),
        (299, true),
        (400, false),
        (404, false),
        (429, false),
        (500, false),
        (503, false),
    ] {
        println!("{status}");
        let delivery = Delivery::good().id(&format!("status-{status}"));
        hookgate.send(&delivery).assert_forwarded(status);
        let again = hookgate.send(&delivery);
        if delivered { again.assert_own("duplicate") } else { again.assert_forwarded(status) }
    }
}

#[test]
fn a_failed_one_is_let_through_again() {
    let failures = [
        Reply::hang_up(),
        Reply::raw("garbage\r\n\r\n").and_close(),
        Reply::answer(302, &[("location", "/x")], ""),
    ];
    for failure in failures {
        let upstream = Upstream::listed([failure, Reply::ok()]);
        let hookgate = Setup::new(&upstream).start();
        let delivery = Delivery::good();
        hookgate.send(&delivery).assert_refused(502, "upstream_bad_answer");
        hookgate.send(&delivery).assert_forwarded(200);
        hookgate.send(&delivery).assert_own("duplicate");
        assert_eq!(upstream.requests().len(), 2);
    }
}

#[test]
fn concurrent_copies_reach_the_upstream_once_and_share_the_answer() {
    for status in [200, 500] {
        let gate = Gate::new();
        let reply = Reply::answer(
            status,
            &[("content-type", "text/x-shared"), ("retry-after", "7")],
            "the one answer",
        );
        let upstream = Upstream::always(Reply::held(&gate, reply));
        let hookgate = Setup::new(&upstream).start();
        let delivery = Delivery::good();
        let mut connections: Vec<_> = (0..5).map(|_| hookgate.connect()).collect();
        for connection in &mut connections {
            connection.send(&delivery.bytes());
        }
        upstream.wait_for(1);
        // All five are inside once the gauge says so.
        hookgate.wait_for_metric("hookgate_inflight_requests", &[], 5.0);
        assert_eq!(upstream.requests().len(), 1);
        gate.open();
        let mut outcomes = Vec::new();
        for connection in &mut connections {
            let answer = connection.answer();
            assert_eq!(answer.status, status, "{answer:?}");
            assert_eq!(answer.text(), "the one answer");
            assert_eq!(answer.header("content-type"), Some("text/x-shared"));
            assert_eq!(answer.header("retry-after"), Some("7"));
            outcomes.push(answer.outcome().to_owned());
        }
        println!("{outcomes:?}");
        assert_eq!(upstream.requests().len(), 1);
    }
}

#[test]
fn concurrent_copies_share_a_failure_too() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::hang_up()));
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good();
    let mut connections: Vec<_> = (0..3).map(|_| hookgate.connect()).collect();
    for connection in &mut connections {
        connection.send(&delivery.bytes());
    }
    upstream.wait_for(1);
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], 3.0);
    gate.open();
    for connection in &mut connections {
        connection.answer().assert_refused(502, "upstream_bad_answer");
    }
    assert_eq!(upstream.requests().len(), 1);
}

/// The first sender gives up while the upstream works; the copy that waits still learns the answer.
#[test]
fn a_copy_outlives_the_first_sender() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good();
    let mut first = hookgate.connect();
    first.send(&delivery.bytes());
    upstream.wait_for(1);
    let mut second = hookgate.connect();
    second.send(&delivery.bytes());
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], 2.0);
    drop(first);
    gate.open();
    let answer = second.answer();
    assert_eq!((answer.status, answer.text()), (200, "done".to_owned()));
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn one_id_with_two_bodies_is_a_conflict() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    hookgate.send(&Delivery::good().id("same")).assert_forwarded(200);
    hookgate.send(&Delivery::good_with("other").id("same")).assert_refused(409, "id_conflict");
    hookgate.send(&Delivery::good().id("same")).assert_own("duplicate");
    hookgate.send(&Delivery::good().id("SAME")).assert_forwarded(200);
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_conflict_is_seen_while_the_first_is_under_way() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream).start();
    let mut first = hookgate.connect();
    first.send(&Delivery::good().id("same").bytes());
    upstream.wait_for(1);
    let other = Delivery::good_with("other").id("same");
    let address = hookgate.address().clone();
    let second = thread::spawn(move || other.send(&address));
    // Whether at once or after the first is done, it is a conflict and does not reach the upstream.
    gate.open();
    first.answer().assert_forwarded(200);
    second.join().unwrap().assert_refused(409, "id_conflict");
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn what_goes_no_further_claims_no_id() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let stack = || Delivery::of(sample("stack.created")).id("same");
    hookgate.send(&stack()).assert_own("filtered");
    hookgate.send(&stack()).assert_own("filtered");
    hookgate.send(&Delivery::of(sample("ping")).id("same")).assert_own("pong");
    hookgate.send(&Delivery::of(sample("ping")).id("same")).assert_own("pong");
    hookgate.send(&Delivery::good().id("same").forged()).assert_refused(401, "bad_signature");
    hookgate.send(&Delivery::good().id("same").kind("environment")).assert_refused(422, "kind_mismatch");
    hookgate.send(&Delivery::good().id("same")).assert_forwarded(200);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_failed_one_claims_no_id() {
    let upstream = Upstream::listed([Reply::status(500), Reply::ok()]);
    let hookgate = Setup::new(&upstream).start();
    hookgate.send(&Delivery::good().id("same")).assert_forwarded(500);
    hookgate.send(&Delivery::good_with("other").id("same")).assert_forwarded(200);
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn no_window_means_no_memory() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).section("[dedupe]\nwindow = \"0s\"").start();
    for _ in 0..3 {
        hookgate.send(&Delivery::good().id("same")).assert_forwarded(200);
    }
    hookgate.send(&Delivery::good_with("other").id("same")).assert_forwarded(200);
    assert_eq!(upstream.requests().len(), 4);
}

#[test]
fn the_memory_ends_with_the_window() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).section("[dedupe]\nwindow = \"1s\"").start();
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_forwarded(200);
    crate::support::eventually("the window ends", || {
        (hookgate.send(&delivery).outcome() == "forwarded").then_some(())
    });
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn two_webhooks_have_two_memories() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.url();
    let hookgate = Setup::bare().with(Webhook::to(&url).at("/a")).with(Webhook::to(&url).at("/b")).start();
    hookgate.send(&Delivery::good().id("same").to("/a")).assert_forwarded(200);
    hookgate.send(&Delivery::good_with("other").id("same").to("/b")).assert_forwarded(200);
    hookgate.send(&Delivery::good().id("same").to("/a")).assert_own("duplicate");
    hookgate.send(&Delivery::good().id("same").to("/b")).assert_refused(409, "id_conflict");
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn many_different_deliveries_at_once_all_arrive_once() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let address = hookgate.address().clone();
            thread::spawn(move || {
                let mut connection = crate::support::Connection::open(&address);
                for _ in 0..25 {
                    connection.send(&Delivery::good().bytes());
                    connection.answer().assert_forwarded(200);
                }
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    let mut ids: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| request.header("pulumi-webhook-id").unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 200);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 200);
}
