//! The queue: what was answered 202 is delivered, whatever happens, or ends among the dead letters.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use rusqlite::Connection;
use serde_json::Value;

use crate::support::{
    Answer, Connection as Client, Delivery, Gate, Hookgate, Reply, Request, Setup, TempDir, Upstream,
    Webhook, cannot, eventually, program, run, sample,
};

/// Short waits: a failed attempt is repeated within moments.
const QUICK: &str = "[queue]\npath = \"{dir}/queue.db\"\nbackoff = { initial = \"10ms\", max = \"100ms\" }";

const APP: [(&str, &str); 2] = [("webhook", "esc"), ("destination", "app")];

fn webhook(url: &str) -> Webhook {
    Webhook::to(url).line("name = \"esc\"").destination("name = \"app\"")
}

fn queued(upstream: &Upstream) -> Setup {
    queued_with(upstream, "")
}

/// With further keys of the queue.
fn queued_with(upstream: &Upstream, keys: &str) -> Setup {
    Setup::bare().section(&format!("{QUICK}\n{keys}")).with(webhook(&upstream.url()))
}

/// Another destination.
fn and(name: &str, url: &str) -> String {
    format!("\n[[webhook.destination]]\nname = {name:?}\nurl = {url:?}")
}

#[track_caller]
fn assert_queued(answer: &Answer) {
    assert_eq!(answer.said(), (202, "queued"), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.json()["outcome"], "queued");
    answer.assert_says_nothing_internal();
}

/// An address that nobody listens on.
fn closed_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn ids(requests: &[Request]) -> Vec<String> {
    requests.iter().map(|request| request.header("pulumi-webhook-id").unwrap().to_owned()).collect()
}

fn attempts(requests: &[Request]) -> Vec<String> {
    requests.iter().map(|request| request.header("hookgate-attempt").unwrap().to_owned()).collect()
}

/// The attempts' lines in the log so far.
fn wait_for_attempt(hookgate: &Hookgate, outcome: &str) -> Value {
    hookgate.wait_for_log(|line| line["message"] == "attempt" && line["outcome"] == outcome)
}

#[test]
fn a_delivery_is_answered_before_it_is_delivered_and_arrives_byte_for_byte() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = queued(&upstream).destination("headers = { X-App = \"1\" }").start();
    let delivery = Delivery::good().and("X-Other", "1").and("Cookie", "a=b").with("User-Agent", "Pulumi");
    assert_queued(&hookgate.send(&delivery));
    let request = &upstream.wait_for(1)[0];
    assert_eq!(request.head.first_line, "POST /upstream HTTP/1.1");
    assert_eq!(request.body, delivery.the_body());
    for name in ["content-type", "pulumi-webhook-id", "pulumi-webhook-kind", "pulumi-webhook-signature"] {
        assert_eq!(request.header(name), Some(delivery.header_value(name)), "{name}");
    }
    for (name, value) in [
        ("hookgate-webhook", "esc"),
        ("hookgate-event", "environment_revision_created"),
        ("hookgate-kind-verified", "true"),
        ("hookgate-attempt", "1"),
        ("x-app", "1"),
        ("user-agent", concat!("hookgate/", env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert!(request.header("traceparent").is_some());
    assert_eq!((request.header("x-other"), request.header("cookie")), (None, None));
    gate.open();
    let line = wait_for_attempt(&hookgate, "delivered");
    assert_eq!(line["level"], "INFO");
    assert_eq!((&line["webhook"], &line["destination"]), (&"esc".into(), &"app".into()));
    assert_eq!(line["delivery.id"], delivery.header_value("pulumi-webhook-id"));
    assert_eq!((&line["event"], &line["status"]), (&"environment_revision_created".into(), &200.into()));
    assert_eq!(line["attempt"], 1);
    let delivered = [APP[0], APP[1], ("result", "delivered")];
    hookgate.wait_for_metric("hookgate_attempts_total", &delivered, 1.0);
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
    let metrics = hookgate.metrics();
    let requests = [("webhook", "esc"), ("outcome", "queued")];
    assert_eq!(metrics.value("hookgate_requests_total", &requests), Some(1.0));
    assert_eq!(metrics.value("hookgate_queue_max_bytes", &[]), Some(f64::from(1 << 30)));
    assert!(metrics.value("hookgate_queue_bytes", &[]) > Some(0.0));
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn what_is_refused_or_filtered_is_not_queued() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = queued(&upstream)
        .destination("events = [\"environment_revision\"]")
        .destination(&and("tags", &upstream.url()))
        .destination("events = [\"environment_revision_tag\"]")
        .start();
    hookgate.send(&Delivery::good().forged()).assert_refused(401, "bad_signature");
    hookgate.send(&Delivery::of(sample("stack.created"))).assert_own("filtered");
    // Wanted by the webhook, and by none of its destinations.
    hookgate.send(&Delivery::of(sample("environment.created"))).assert_own("filtered");
    hookgate.send(&Delivery::of(sample("ping"))).assert_own("pong");
    let tag = Delivery::of(sample("environment_revision_tag.created"));
    assert_queued(&hookgate.send(&tag));
    assert_eq!(ids(&upstream.wait_for(1)), [tag.header_value("pulumi-webhook-id")]);
    let line = wait_for_attempt(&hookgate, "delivered");
    assert_eq!(line["destination"], "tags");
}

#[test]
fn what_may_end_better_is_tried_again_and_retry_after_is_heeded_within_bounds() {
    let upstream = Upstream::listed([
        Reply::answer(503, &[("retry-after", "3600")], "later"),
        Reply::hang_up(),
        Reply::raw("garbage\r\n\r\n").and_close(),
        Reply::answer(429, &[], ""),
        Reply::ok(),
    ]);
    let hookgate = queued(&upstream).start();
    assert_queued(&hookgate.send(&Delivery::good()));
    let requests = upstream.wait_for(5);
    assert_eq!(attempts(&requests), ["1", "2", "3", "4", "5"]);
    assert!(requests.iter().all(|request| request.body == Delivery::good().the_body()));
    let retry = wait_for_attempt(&hookgate, "retry");
    assert_eq!((&retry["level"], &retry["status"]), (&"WARN".into(), &503.into()));
    assert_eq!(retry["retry_in_ms"], 100.0, "what the upstream asks for, and no more than `max`");
    wait_for_attempt(&hookgate, "delivered");
    let metrics = hookgate.metrics();
    let result = |result| metrics.value("hookgate_attempts_total", &[APP[0], APP[1], ("result", result)]);
    assert_eq!([result("retry"), result("delivered"), result("dead")], [Some(4.0), Some(1.0), Some(0.0)]);
    assert_eq!(result("failed"), None);
}

#[test]
fn an_answer_that_would_be_the_same_again_is_a_dead_letter_at_once() {
    for reply in [Reply::status(404), Reply::status(400), Reply::answer(302, &[("location", "/x")], "")] {
        let upstream = Upstream::always(reply);
        let hookgate = queued(&upstream).start();
        assert_queued(&hookgate.send(&Delivery::good()));
        let line = wait_for_attempt(&hookgate, "dead");
        assert_eq!((&line["level"], &line["death"]), (&"WARN".into(), &"refused".into()));
        assert!(line["status"].is_u64(), "{line}");
        hookgate.wait_for_metric("hookgate_dead_letters", &APP, 1.0);
        assert_eq!(hookgate.metrics().value("hookgate_queue_depth", &APP), Some(0.0));
        assert_eq!(upstream.requests().len(), 1);
    }
}

#[test]
fn attempts_come_to_an_end() {
    let upstream = Upstream::always(Reply::status(500));
    let hookgate = queued_with(&upstream, "max_attempts = 3").start();
    assert_queued(&hookgate.send(&Delivery::good()));
    let line = wait_for_attempt(&hookgate, "dead");
    assert_eq!(
        (&line["death"], &line["attempt"], &line["status"]),
        (&"max_attempts".into(), &3.into(), &500.into())
    );
    hookgate.wait_for_metric("hookgate_dead_letters", &APP, 1.0);
    assert_eq!(attempts(&upstream.requests()), ["1", "2", "3"]);
}

/// It is given up without another attempt.
#[test]
fn age_comes_to_an_end() {
    let upstream = Upstream::always(Reply::answer(503, &[("retry-after", "60")], ""));
    let queue = "[queue]\npath = \"{dir}/queue.db\"\nbackoff = { initial = \"1ms\", max = \"300ms\" }\nmax_age = \"300ms\"";
    let hookgate = Setup::bare().section(queue).with(webhook(&upstream.url())).start();
    assert_queued(&hookgate.send(&Delivery::good()));
    let line = wait_for_attempt(&hookgate, "dead");
    assert_eq!(line["death"], "max_age");
    assert!(line.get("status").is_none() && line.get("attempt").is_none(), "{line}");
    assert_eq!(attempts(&upstream.requests()), ["1"]);
}

/// What was away for longer than that is tried all the same, once.
#[test]
fn a_downtime_kills_nothing_that_was_never_tried() {
    let upstream = Upstream::always(Reply::silence());
    let mut hookgate = queued_with(&upstream, "max_age = \"1s\"").start();
    let delivery = Delivery::good();
    assert_queued(&hookgate.send(&delivery));
    upstream.wait_for(1);
    hookgate.signal("KILL");
    hookgate.wait_exit();
    thread::park_timeout(std::time::Duration::from_millis(1100));
    upstream.now(|_| Reply::ok());
    hookgate.come_back();
    let requests = upstream.wait_for(2);
    assert_eq!(attempts(&requests), ["1", "1"]);
    wait_for_attempt(&hookgate, "delivered");
}

/// The resolver of one destination's name does not answer. Another one's name is resolved all the same.
#[test]
fn a_name_that_does_not_resolve_holds_up_no_other() {
    if cannot("mount") {
        return;
    }
    // Nobody answers here.
    let Ok(resolver) = std::net::UdpSocket::bind("127.0.0.153:53") else {
        return eprintln!("port 53 cannot be bound here");
    };
    let upstream = Upstream::always(Reply::ok());
    let port = upstream.url();
    let port = port.split(':').nth(2).unwrap().split('/').next().unwrap();
    let folder = TempDir::new();
    let conf = folder.write("resolv.conf", "nameserver 127.0.0.153\noptions timeout:30\n");
    let hookgate = Setup::bare()
        .section(QUICK)
        .with(Webhook::to("http://nowhere.example:1/").line("name = \"lost\"").at("/lost"))
        .with(webhook(&format!("http://localhost:{port}/")))
        .launched_by(&[
            "bwrap",
            "--die-with-parent",
            "--dev-bind",
            "/",
            "/",
            "--ro-bind",
            conf.to_str().unwrap(),
            "/etc/resolv.conf",
        ])
        .start();
    for _ in 0..40 {
        assert_queued(&hookgate.send(&Delivery::good().to("/lost")));
    }
    resolver.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    resolver.recv(&mut [0; 512]).unwrap();
    // Those that could take all threads have done so by now.
    thread::park_timeout(std::time::Duration::from_millis(500));
    let began = crate::support::Instant::now();
    for _ in 0..20 {
        assert_queued(&hookgate.send(&Delivery::good()));
    }
    upstream.wait_for(20);
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
    assert!(began.elapsed() < std::time::Duration::from_secs(8), "{:?}", began.elapsed());
    let retried = [APP[0], APP[1], ("result", "retry")];
    assert_eq!(hookgate.metrics().value("hookgate_attempts_total", &retried), Some(0.0));
}

#[test]
fn a_destination_that_is_down_holds_up_no_other_and_is_left_alone() {
    let down = closed_port();
    let up = Upstream::always(Reply::ok());
    let hookgate = Setup::bare()
        .section(&format!("{QUICK}\nmax_attempts = 1000000\nconcurrency = 2"))
        .with(webhook(&format!("http://{down}/")).destination(&and("up", &up.url())))
        .start();
    let mut sent = Vec::new();
    for _ in 0..30 {
        let delivery = Delivery::good();
        assert_queued(&hookgate.send(&delivery));
        sent.push(delivery.header_value("pulumi-webhook-id").to_owned());
    }
    let mut received = ids(&up.wait_for(30));
    received.sort();
    sent.sort();
    assert_eq!(received, sent);
    hookgate.wait_for_metric("hookgate_destination_circuit_open", &APP, 1.0);
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 30.0);
    let ready = hookgate.ops("/readyz");
    assert_eq!((ready.status, ready.text().as_str()), (200, "ready\ncircuit open: esc/app\n"));
    let up_too = [APP[0], ("destination", "up")];
    assert_eq!(hookgate.metrics().value("hookgate_destination_circuit_open", &up_too), Some(0.0));

    // It comes back.
    let back = Upstream::at(&down, Reply::ok());
    back.wait_for(30);
    hookgate.wait_for_metric("hookgate_destination_circuit_open", &APP, 0.0);
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
    assert_eq!(hookgate.ops("/readyz").text(), "ready\n");
    let mut received = ids(&back.requests());
    received.sort();
    assert_eq!(received, sent);
    assert_eq!(up.requests().len(), 30);
    hookgate
        .wait_for_log(|line| line["message"].as_str().is_some_and(|text| text.starts_with("circuit open")));
    hookgate
        .wait_for_log(|line| line["message"].as_str().is_some_and(|text| text.starts_with("circuit closed")));
}

#[test]
fn no_more_attempts_are_in_flight_than_configured() {
    let gate = Gate::new();
    let (now, most) = (std::sync::Arc::new(AtomicUsize::new(0)), std::sync::Arc::new(AtomicUsize::new(0)));
    let seen = (std::sync::Arc::clone(&now), std::sync::Arc::clone(&most));
    let held = gate.clone();
    let upstream = Upstream::scripted(move |_| {
        let in_flight = seen.0.fetch_add(1, Ordering::SeqCst) + 1;
        seen.1.fetch_max(in_flight, Ordering::SeqCst);
        held.wait();
        seen.0.fetch_sub(1, Ordering::SeqCst);
        Reply::ok()
    });
    let hookgate = queued_with(&upstream, "concurrency = 3").start();
    for _ in 0..10 {
        assert_queued(&hookgate.send(&Delivery::good()));
    }
    eventually("three are in flight", || (now.load(Ordering::SeqCst) == 3).then_some(()));
    gate.open();
    upstream.wait_for(10);
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

/// A revision of this number, of the sample's environment or of another one.
fn revision(number: usize, environment: &str) -> Delivery {
    let body: Value = serde_json::from_slice(&sample("environment_revision.created").body()).unwrap();
    let mut body = body;
    body["revision"] = number.into();
    body["environmentName"] = environment.into();
    Delivery::new("environment_revision", body.to_string())
}

#[test]
fn the_events_of_one_environment_come_in_order_and_wait_for_no_other() {
    let gate = Gate::new();
    let held = gate.clone();
    let failed = AtomicUsize::new(0);
    let upstream = Upstream::scripted(move |request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        match (body["environmentName"].as_str(), body["revision"].as_u64()) {
            (Some("slow"), Some(1)) if failed.fetch_add(1, Ordering::SeqCst) < 2 => {
                Reply::held(&held, Reply::status(503))
            }
            _ => Reply::ok(),
        }
    });
    let hookgate = queued(&upstream).destination("order = \"environment\"").start();
    for number in 1..=5 {
        assert_queued(&hookgate.send(&revision(number, "slow")));
    }
    for number in 1..=5 {
        assert_queued(&hookgate.send(&revision(number, "quick")));
    }
    // One of the first environment, all of the second.
    upstream.wait_for(6);
    gate.open();
    let mut came = BTreeMap::<String, Vec<u64>>::new();
    for request in upstream.wait_for(12) {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        came.entry(body["environmentName"].as_str().unwrap().to_owned())
            .or_default()
            .push(body["revision"].as_u64().unwrap());
    }
    assert_eq!(came["slow"], [1, 1, 1, 2, 3, 4, 5]);
    assert_eq!(came["quick"], [1, 2, 3, 4, 5]);
}

/// One operation of Pulumi can fan out into some fifty events.
#[test]
fn of_fifty_events_that_come_together_the_newest_is_delivered() {
    let upstream = Upstream::always(Reply::ok());
    let every = Upstream::always(Reply::ok());
    let hookgate =
        queued(&upstream).destination("coalesce = \"3s\"").destination(&and("every", &every.url())).start();
    let mut connection = Client::open(hookgate.address());
    // Not in order: 7, 14, .. up to 50 somewhere in between.
    for step in 1..=50 {
        connection.send(&revision((step * 7 - 1) % 50 + 1, "prod").bytes());
        assert_queued(&connection.answer());
    }
    every.wait_for(50);
    let request = &upstream.wait_for(1)[0];
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(body["revision"], 50);
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn duplicates_are_told_while_they_wait_and_after() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = queued(&upstream).start();
    let delivery = Delivery::good().id("same");
    assert_queued(&hookgate.send(&delivery));
    hookgate.send(&delivery).assert_own("duplicate");
    upstream.wait_for(1);
    hookgate.send(&delivery).assert_own("duplicate");
    hookgate.send(&Delivery::good_with("other").id("same")).assert_refused(409, "id_conflict");
    gate.open();
    wait_for_attempt(&hookgate, "delivered");
    hookgate.send(&delivery).assert_own("duplicate");
    assert_queued(&hookgate.send(&Delivery::good()));
    upstream.wait_for(2);
}

#[test]
fn without_a_window_each_delivery_is_a_new_one() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = queued(&upstream).section("[dedupe]\nwindow = \"0s\"").start();
    for _ in 0..3 {
        assert_queued(&hookgate.send(&Delivery::good().id("same")));
    }
    assert_queued(&hookgate.send(&Delivery::good_with("other").id("same")));
    assert_eq!(upstream.wait_for(4).len(), 4);
}

/// *Redeliver* in Pulumi repeats ID and body.
#[test]
fn a_dead_delivery_that_comes_again_is_revived_where_it_is_dead() {
    let good = Upstream::always(Reply::ok());
    let bad = Upstream::always(Reply::status(404));
    let hookgate = queued(&bad).destination(&and("good", &good.url())).start();
    let delivery = Delivery::good();
    assert_queued(&hookgate.send(&delivery));
    wait_for_attempt(&hookgate, "dead");
    good.wait_for(1);
    hookgate.wait_for_metric("hookgate_dead_letters", &APP, 1.0);
    let delivered = [APP[0], ("destination", "good"), ("result", "delivered")];
    hookgate.wait_for_metric("hookgate_attempts_total", &delivered, 1.0);
    hookgate.wait_for_metric("hookgate_queue_depth", &[APP[0], ("destination", "good")], 0.0);
    bad.now(|_| Reply::ok());
    assert_queued(&hookgate.send(&delivery));
    assert_eq!(attempts(&bad.wait_for(2)), ["1", "2"]);
    hookgate.wait_for_metric("hookgate_dead_letters", &APP, 0.0);
    assert_eq!(good.requests().len(), 1);
    eventually("it is delivered", || (hookgate.send(&delivery).outcome() == "duplicate").then_some(()));
}

#[test]
fn what_waits_and_what_was_on_its_way_is_delivered_after_a_kill() {
    let upstream = Upstream::always(Reply::silence());
    let mut hookgate = queued_with(&upstream, "concurrency = 2").start();
    let mut sent = Vec::new();
    for _ in 0..6 {
        let delivery = Delivery::good();
        assert_queued(&hookgate.send(&delivery));
        sent.push(delivery.header_value("pulumi-webhook-id").to_owned());
    }
    upstream.wait_for(2);
    upstream.now(|_| Reply::ok());
    let before = upstream.requests().len();
    assert!(!hookgate.restart("KILL").success());
    let requests = upstream.wait_for(before + 6);
    let mut received = ids(&requests[before..]);
    received.sort();
    sent.sort();
    assert_eq!(received, sent);
}

#[test]
fn the_end_waits_for_what_is_on_its_way_and_leaves_the_rest_in_the_queue() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let mut hookgate = queued_with(&upstream, "concurrency = 1").start();
    for _ in 0..3 {
        assert_queued(&hookgate.send(&Delivery::good()));
    }
    upstream.wait_for(1);
    hookgate.signal("TERM");
    hookgate.wait_for_log(|line| line["message"] == "draining");
    gate.open();
    let ended = hookgate.restart("CONT");
    assert_eq!(ended.code(), Some(0));
    // Each once: what was on its way was finished and recorded.
    let mut received = ids(&upstream.wait_for(3));
    received.sort();
    received.dedup();
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
    assert_eq!((received.len(), upstream.requests().len()), (3, 3));
}

#[test]
fn what_the_drain_cuts_off_is_delivered_after_the_restart() {
    let upstream = Upstream::always(Reply::silence());
    let mut hookgate = queued(&upstream).server("drain_timeout = \"100ms\"").start();
    assert_queued(&hookgate.send(&Delivery::good()));
    upstream.wait_for(1);
    upstream.now(|_| Reply::ok());
    assert_eq!(hookgate.restart("TERM").code(), Some(1));
    let requests = upstream.wait_for(2);
    assert_eq!(ids(&requests[..1]), ids(&requests[1..]));
    // The attempt that was cut off was not recorded.
    assert_eq!(attempts(&requests), ["1", "1"]);
}

#[test]
fn a_changed_url_applies_to_what_waits() {
    let down = format!("http://{}/", closed_port());
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::bare().section(QUICK).with(webhook(&down)).start();
    let delivery = Delivery::good();
    assert_queued(&hookgate.send(&delivery));
    wait_for_attempt(&hookgate, "retry");
    hookgate.edit(&down, &upstream.url());
    hookgate.signal("HUP");
    assert_eq!(ids(&upstream.wait_for(1)), [delivery.header_value("pulumi-webhook-id")]);
    wait_for_attempt(&hookgate, "delivered");
    hookgate.send(&delivery).assert_own("duplicate");
}

#[test]
fn jobs_whose_name_is_gone_wait_until_it_returns() {
    let down = format!("http://{}/", closed_port());
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = Setup::bare().section(QUICK).with(webhook(&down)).start();
    let delivery = Delivery::good();
    assert_queued(&hookgate.send(&delivery));
    wait_for_attempt(&hookgate, "retry");
    hookgate.edit("name = \"app\"", "name = \"renamed\"");
    hookgate.edit(&down, &upstream.url());
    // Told after a reload, and after a restart.
    let is_told = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("orphaned"));
    hookgate.signal("HUP");
    hookgate.wait_for_log(is_told);
    hookgate.wait_for_metric("hookgate_queue_depth", &[("webhook", "none"), ("destination", "none")], 1.0);
    assert_eq!(hookgate.metrics().value("hookgate_queue_depth", &APP), None);
    assert_eq!(hookgate.restart("TERM").code(), Some(0));
    let line = hookgate.wait_for_log(is_told);
    assert_eq!(
        (&line["webhook"], &line["destination"], &line["waiting"]),
        (&"esc".into(), &"app".into(), &1.into())
    );
    assert!(upstream.requests().is_empty());
    hookgate.edit("name = \"renamed\"", "name = \"app\"");
    hookgate.signal("HUP");
    assert_eq!(ids(&upstream.wait_for(1)), [delivery.header_value("pulumi-webhook-id")]);
    hookgate.wait_for_metric("hookgate_queue_depth", &[("webhook", "none"), ("destination", "none")], 0.0);
}

#[test]
fn a_full_queue_refuses_new_deliveries_and_drops_no_accepted_one() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = queued_with(&upstream, "max_bytes = \"2MiB\"").start();
    let large = |number: usize| Delivery::good_with(&format!("{number}{}", "x".repeat(200_000)));
    let mut accepted = 0;
    let mut fill = |delivery: &dyn Fn(usize) -> Delivery| {
        let refused = loop {
            let answer = hookgate.send(&delivery(accepted));
            if answer.status != 202 {
                break answer;
            }
            accepted += 1;
            assert!(accepted < 2000, "it is never full");
        };
        refused.assert_refused(503, "queue_unavailable");
    };
    fill(&large);
    // Until there is no room for a small one either.
    fill(&|_| Delivery::good());
    assert!(accepted > 3, "{accepted}");
    eventually("it is not ready", || {
        let ready = hookgate.ops("/readyz");
        (ready.status == 503 && ready.text().starts_with("not ready: queue: ")).then_some(())
    });
    hookgate.wait_for_log(|line| line["message"].as_str().is_some_and(|text| text.contains("nearly full")));
    gate.open();
    upstream.wait_for(accepted);
    eventually("it is ready again", || (hookgate.ops("/readyz").status == 200).then_some(()));
    eventually("it takes deliveries again", || {
        (hookgate.send(&Delivery::good()).status == 202).then_some(())
    });
}

/// Somebody else holds the file's lock, as a backup that never ends would.
#[test]
fn a_store_that_hangs_is_told_to_senders_and_recovers() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = queued(&upstream).start();
    assert_queued(&hookgate.send(&Delivery::good()));
    upstream.wait_for(1);
    wait_for_attempt(&hookgate, "delivered");
    let other = Connection::open(hookgate.dir().join("queue.db")).unwrap();
    let other_holds = || other.execute_batch("BEGIN IMMEDIATE").is_ok();
    eventually("the lock is free for a moment", || other_holds().then_some(()));
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_refused(503, "queue_unavailable");
    eventually("it is not ready", || (hookgate.ops("/readyz").status == 503).then_some(()));
    other.execute_batch("ROLLBACK").unwrap();
    eventually("it is ready again", || (hookgate.ops("/readyz").status == 200).then_some(()));
    // The commit that came too late may stand: it is then a duplicate.
    let outcome = hookgate.send(&delivery).outcome().to_owned();
    assert!(["queued", "duplicate"].contains(&outcome.as_str()), "{outcome}");
    upstream.wait_for(2);
}

#[test]
fn a_file_that_is_none_or_in_use_is_refused_at_the_start() {
    let upstream = Upstream::always(Reply::ok());
    let setup =
        queued(&upstream).file("queue.db", "this is not a database, whatever its name says".repeat(100));
    let output = run(&["run", "--config", setup.write().to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("queue.db"), "{said}");
    let kept = fs::read_to_string(setup.dir().join("queue.db")).unwrap();
    assert!(kept.starts_with("this is not a database"), "it is not touched");

    let hookgate = queued(&upstream).start();
    let mut second = program();
    let output = second.arg("run").arg("--config").arg(hookgate.config()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("in use"), "{said}");

    let setup = Setup::bare()
        .section("[queue]\npath = \"{dir}/no/such/folder/queue.db\"")
        .with(webhook(&upstream.url()));
    let output = run(&["run", "--config", setup.write().to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_queue_that_comes_with_a_reload_needs_a_restart() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = Setup::bare().with(webhook(&upstream.url())).start();
    let config = fs::read_to_string(hookgate.config()).unwrap();
    let with_queue = QUICK.replace("{dir}", hookgate.dir().to_str().unwrap());
    fs::write(hookgate.config(), format!("{config}\n{}\n{with_queue}\n", and("other", &upstream.url())))
        .unwrap();
    hookgate.signal("HUP");
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 0.0);
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(hookgate.restart("TERM").code(), Some(0));
    assert_queued(&hookgate.send(&Delivery::good()));
    upstream.wait_for(3);
    // Its keys need one too.
    hookgate.edit("max = \"100ms\"", "max = \"200ms\"");
    hookgate.signal("HUP");
    hookgate.wait_for_log(|line| line["keys"] == "queue.backoff");
}

#[test]
fn everything_that_was_accepted_under_load_arrives_once() {
    const SENDERS: usize = 8;
    const EACH: usize = 50;
    let upstream = Upstream::always(Reply::ok());
    let hookgate = queued(&upstream).start();
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let address = hookgate.address().clone();
            thread::spawn(move || {
                let mut connection = Client::open(&address);
                for _ in 0..EACH {
                    connection.send(&Delivery::good().bytes());
                    assert_queued(&connection.answer());
                }
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    let mut received = ids(&upstream.wait_for(SENDERS * EACH));
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
    received.sort();
    received.dedup();
    assert_eq!((received.len(), upstream.requests().len()), (SENDERS * EACH, SENDERS * EACH));
}
