//! The service on NATS as its users see it: a server that is away, and settings that change.

use std::{collections::BTreeMap, thread, time::Duration};

use crate::support::{
    Delivery, Gate, Hookgate, NatsServer, Reply, Setup, TempDir, Upstream, Webhook, eventually,
};

fn setup(server: &NatsServer, upstream: &Upstream) -> Setup {
    let queue = format!(
        "[queue]\nstore = \"nats\"\nurl = {:?}\nconcurrency = 20\nbackoff = {{ initial = \"10ms\", max = \"50ms\" }}",
        server.url()
    );
    let webhook = Webhook::to(&upstream.url()).line("name = \"esc\"").destination("name = \"destination-1\"");
    Setup::bare().section(&queue).with(webhook)
}

fn is_ready(hookgate: &Hookgate) {
    eventually("it is ready", || (hookgate.ops("/readyz").status == 200).then_some(()));
}

/// Sends deliveries that the upstream keeps waiting, until it has them all.
fn under_way(hookgate: &Hookgate, upstream: &Upstream, count: usize) {
    for number in 0..count {
        let delivery = Delivery::good().id(&format!("under-way-{number}"));
        assert_eq!(hookgate.send(&delivery).status, 202);
    }
    upstream.wait_for(count);
}

/// How often each delivery was made.
fn made(upstream: &Upstream) -> BTreeMap<String, usize> {
    let mut made = BTreeMap::new();
    for request in upstream.requests() {
        *made.entry(request.header("pulumi-webhook-id").unwrap().to_owned()).or_default() += 1;
    }
    made
}

/// Everything is at its end, and nothing was made twice.
fn assert_made_once(hookgate: &Hookgate, upstream: &Upstream, count: usize) {
    let labels = [("webhook", "esc"), ("destination", "destination-1")];
    eventually("all are delivered", || {
        let delivered = [labels[0], labels[1], ("result", "delivered")];
        let delivered = hookgate.metrics().value("hookgate_attempts_total", &delivered).unwrap_or_default();
        let waiting = hookgate.metrics().value("hookgate_queue_depth", &labels).unwrap_or(1.0);
        (delivered >= 20.0 && waiting == 0.0).then_some(())
    });
    // Longer than a lease lasts that was not renewed.
    thread::park_timeout(Duration::from_secs(11));
    let made = made(upstream);
    assert_eq!(made.len(), count);
    assert!(made.values().all(|times| *times == 1), "{made:?}");
}

/// The server is restarted while attempts are under way, of which some end while it is away, and some after.
#[test]
fn what_is_under_way_when_the_server_restarts_is_not_made_twice() {
    let (early, late) = (Gate::new(), Gate::new());
    let upstream = {
        let (early, late) = (early.clone(), late.clone());
        Upstream::scripted(move |request| {
            let is_early = request.header("pulumi-webhook-id").unwrap().ends_with(['0', '2', '4', '6', '8']);
            Reply::held(if is_early { &early } else { &late }, Reply::ok())
        })
    };
    let mut server = NatsServer::start();
    let hookgate = setup(&server, &upstream).start();
    is_ready(&hookgate);
    under_way(&hookgate, &upstream, 20);
    server.kill();
    early.open();
    eventually("the reason is said", || {
        let answer = hookgate.ops("/readyz");
        (answer.status == 503 && answer.text().contains("NATS")).then_some(())
    });
    thread::park_timeout(Duration::from_millis(1500));
    server.restart();
    late.open();
    is_ready(&hookgate);
    assert_made_once(&hookgate, &upstream, 20);
}

/// A reload while attempts are under way.
#[test]
fn a_reload_repeats_nothing_that_is_under_way() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let server = NatsServer::start();
    let hookgate = setup(&server, &upstream).start();
    is_ready(&hookgate);
    under_way(&hookgate, &upstream, 20);
    let mut reloads = 0.0;
    for (from, to) in [
        ("name = \"destination-1\"", "name = \"another\""),
        ("name = \"another\"", "name = \"destination-1\""),
        ("name = \"destination-1\"", "name = \"destination-1\"\nheaders = { X-One = \"1\" }"),
    ] {
        hookgate.edit(from, to);
        hookgate.signal("HUP");
        eventually("it is reloaded", || {
            let labels = [("result", "success")];
            let now = hookgate.metrics().value("hookgate_config_reloads_total", &labels);
            (now? > reloads).then_some(())
        });
        reloads += 1.0;
    }
    gate.open();
    assert_made_once(&hookgate, &upstream, 20);
}

/// A server that is away at the start, one that cannot be trusted and one that refuses: the service waits, and says why
/// in words.
#[test]
fn a_server_that_is_away_at_the_start_is_waited_for() {
    let upstream = Upstream::always(Reply::ok());
    let mut server = NatsServer::stopped(TempDir::new(), "");
    let mut hookgate = setup(&server, &upstream).start();
    eventually("the reason is said", || {
        let text = hookgate.ops("/readyz").text();
        text.contains("there is no connection to NATS: ").then_some(())
    });
    hookgate.send(&Delivery::good()).assert_refused(503, "queue_unavailable");
    assert!(!hookgate.has_ended());
    server.restart();
    is_ready(&hookgate);
    assert_eq!(hookgate.send(&Delivery::good()).status, 202);
    upstream.wait_for(1);
    let lines = hookgate.log_lines();
    for line in lines.iter().filter(|line| line.contains("NATS")) {
        for debug in ["Some(", "None", "Os {", "Custom {", "Kind"] {
            assert!(!line.contains(debug), "{line}");
        }
    }
}
