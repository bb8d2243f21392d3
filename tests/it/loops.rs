//! A destination that leads back to hookgate, by a way that no configuration shows. Such a delivery is never taken for
//! delivered. Two hookgates in a row are not a loop.

use std::net::{SocketAddr, TcpListener};

use serde_json::Value;

use crate::support::{
    Address, Cut, Delivery, Hookgate, Instant, NatsServer, Proxy, Reply, Setup, Upstream, Webhook,
    eventually, run,
};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// An address that nobody listens on yet.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

const APP: [(&str, &str); 2] = [("webhook", "esc"), ("destination", "app")];

fn webhook(url: &str) -> Webhook {
    Webhook::to(url).line("name = \"esc\"").destination("name = \"app\"")
}

/// A hookgate that sends to itself.
fn around(section: &str) -> (Hookgate, Proxy) {
    let address = free();
    let proxy = Proxy::start(address);
    let webhook = webhook(&Address::Tcp(proxy.address()).url("/hook"));
    (Setup::bare().listen(&address.to_string()).section(section).with(webhook).start(), proxy)
}

fn queue(more: &str) -> String {
    format!(
        "[queue]\npath = \"{{dir}}/queue.db\"\nbackoff = {{ initial = \"10ms\", max = \"100ms\" }}\n{more}"
    )
}

const NO_MEMORY: &str = "[dedupe]\nwindow = \"0s\"";

fn attempts(hookgate: &Hookgate, result: &str) -> f64 {
    hookgate.metrics().value("hookgate_attempts_total", &[APP[0], APP[1], ("result", result)]).unwrap()
}

fn dead(hookgate: &Hookgate) -> Value {
    hookgate.wait_for_log(|line| line["message"] == "attempt" && line["outcome"] == "dead")
}

#[test]
fn direct_a_delivery_to_hookgate_itself_fails_at_once_and_says_why() {
    for section in ["", NO_MEMORY] {
        let (hookgate, _proxy) = around(section);
        for delivery in [Delivery::good(), Delivery::good().and("traceparent", TRACE)] {
            let start = Instant::now();
            let answer = hookgate.send(&delivery);
            answer.assert_refused(502, "upstream_bad_answer");
            answer.assert_says_nothing_internal();
            assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
            let id = delivery.header_value("pulumi-webhook-id");
            let outcome = |outcome: &str| {
                hookgate.wait_for_log(|line| line["delivery.id"] == id && line["outcome"] == outcome)
            };
            let (inner, outer) = (outcome("loop_detected"), outcome("upstream_bad_answer"));
            assert_eq!(inner["status"], 508, "{inner}");
            assert!(inner["reason"].as_str().unwrap().contains("sent this request itself"), "{inner}");
            let reason = outer["reason"].as_str().unwrap();
            assert!(reason.contains("the destination is hookgate itself"), "{reason}");
            // It was not delivered, so it is not a duplicate.
            hookgate.send(&delivery).assert_refused(502, "upstream_bad_answer");
        }
        assert_eq!((attempts(&hookgate, "delivered"), attempts(&hookgate, "failed")), (0.0, 4.0));
    }
}

#[test]
fn queued_a_delivery_to_hookgate_itself_is_a_dead_letter_that_says_why() {
    for section in [queue(""), queue(NO_MEMORY)] {
        for delivery in [Delivery::good(), Delivery::good().and("traceparent", TRACE)] {
            let (hookgate, _proxy) = around(&section);
            assert_eq!(hookgate.send(&delivery).said(), (202, "queued"));
            let line = dead(&hookgate);
            assert_eq!(
                (&line["status"], &line["death"], &line["attempt"]),
                (&508.into(), &"refused".into(), &1.into())
            );
            assert!(line["error"].as_str().unwrap().contains("the destination is hookgate itself"), "{line}");
            hookgate.wait_for_metric("hookgate_dead_letters", &APP, 1.0);
            let results = ["delivered", "retry", "dead"].map(|result| attempts(&hookgate, result));
            assert_eq!(results, [0.0, 0.0, 1.0]);
        }
    }
}

/// What was accepted by the process before carries a mark that this one did not make.
#[test]
fn queued_a_loop_is_found_after_a_restart_too() {
    for delivery in [Delivery::good(), Delivery::good().and("traceparent", TRACE)] {
        let (mut hookgate, proxy) = around(&queue(""));
        proxy.cut(Cut::Refused);
        assert_eq!(hookgate.send(&delivery).said(), (202, "queued"));
        hookgate.wait_for_log(|line| line["message"] == "attempt" && line["outcome"] == "retry");
        hookgate.restart("TERM");
        proxy.mend();
        let line = dead(&hookgate);
        assert!(line["error"].as_str().unwrap().contains("the destination is hookgate itself"), "{line}");
        assert_eq!(attempts(&hookgate, "delivered"), 0.0);
    }
}

/// Replicas share a queue and nothing else: what one sends may come to another.
#[test]
fn queued_a_loop_over_another_replica_is_found() {
    let nats = NatsServer::start();
    let section = format!("[queue]\nstore = \"nats\"\nurl = {:?}", nats.url());
    let addresses = [free(), free()];
    let proxies = addresses.map(Proxy::start);
    // Each sends to the other.
    let replicas: Vec<_> = (0..2)
        .map(|n| {
            let webhook = webhook(&Address::Tcp(proxies[1 - n].address()).url("/hook"));
            Setup::bare().listen(&addresses[n].to_string()).section(&section).with(webhook).start()
        })
        .collect();
    for replica in &replicas {
        eventually("it is ready", || (replica.ops("/readyz").status == 200).then_some(()));
    }
    for sent in 1..=4 {
        let delivery = Delivery::good().and("traceparent", TRACE);
        assert_eq!(replicas[0].send(&delivery).said(), (202, "queued"));
        let both = |result: &str| replicas.iter().map(|replica| attempts(replica, result)).sum::<f64>();
        eventually("it is dead", || (both("dead") >= f64::from(sent)).then_some(()));
        assert_eq!((both("delivered"), both("dead")), (0.0, f64::from(sent)));
    }
}

/// The second one's answer may be lost; what the first one sends again then is a duplicate and no loop.
#[test]
fn two_hookgates_in_a_row_are_no_loop() {
    let upstream = Upstream::always(Reply::ok());
    let second = Setup::bare().section(&queue("")).with(webhook(&upstream.url())).start();
    let first = Setup::bare().section(&queue("")).with(webhook(&second.address().url("/hook"))).start();
    for delivery in [Delivery::good(), Delivery::good().and("traceparent", TRACE)] {
        let before = (upstream.requests().len(), attempts(&first, "delivered"));
        assert_eq!(first.send(&delivery).said(), (202, "queued"));
        assert_eq!(upstream.wait_for(before.0 + 1)[before.0].body, delivery.the_body());
        let delivered = |count: f64| {
            eventually("the first one has delivered", || {
                (attempts(&first, "delivered") >= before.1 + count).then_some(())
            });
        };
        delivered(1.0);
        let id = delivery.header_value("pulumi-webhook-id");
        let config = first.config().to_str().unwrap();
        let again = run(&["deliveries", "redeliver", id, "--config", config], b"");
        assert!(again.status.success(), "{again:?}");
        delivered(2.0);
        second.wait_for_log(|line| line["delivery.id"] == id && line["outcome"] == "duplicate");
        assert_eq!(upstream.requests().len(), before.0 + 1);
    }
    assert_eq!((attempts(&first, "dead"), attempts(&first, "retry")), (0.0, 0.0));
}

/// The mark is of no use to others: it says nothing of any other delivery, and nothing is remembered of who used it.
#[test]
fn a_mark_that_was_seen_refuses_nobody_elses_delivery() {
    let upstream = Upstream::always(Reply::status(500));
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_forwarded(500);
    let mark = upstream.only_request().header("traceparent").unwrap().to_owned();
    // Whoever sends the mark is refused.
    hookgate.send(&delivery.clone().and("traceparent", &mark)).assert_refused(508, "loop_detected");
    // The sender's redelivery is not, nor is another delivery of the same trace.
    hookgate.send(&delivery).assert_forwarded(500);
    hookgate.send(&Delivery::good().and("traceparent", &mark)).assert_forwarded(500);
}
