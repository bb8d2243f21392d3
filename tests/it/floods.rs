//! Connections that do nothing: who gives way to whom, and that good deliveries and probes get through.

use std::time::Duration;

use crate::support::{Connection, Delivery, Flood, Hookgate, Reply, Setup, Upstream, tls::Authority};

/// Takes all connections with those that have sent so much, and returns them.
fn take_all(hookgate: &Hookgate, sent: &[u8]) -> Vec<Connection> {
    let taken = (0..4).map(|number| {
        let mut connection = hookgate.connect();
        connection.send(sent);
        hookgate.wait_for_metric("hookgate_connections", &[], f64::from(number + 1));
        connection
    });
    taken.collect()
}

/// Whoever waits longest goes first, and nobody goes for whom there is no need.
#[test]
fn connections_without_progress_give_way_to_newcomers_the_longest_first() {
    let body = Delivery::good().body_bytes();
    let head = Delivery::good().head_bytes();
    let with_body = [&head[..], &body[..10]].concat();
    for sent in [&b""[..], b"POST /hook HTTP/1.1\r\nX-Slow: ", &head, &with_body] {
        let upstream = Upstream::always(Reply::ok());
        let hookgate = Setup::new(&upstream)
            .server("max_connections = 4")
            .server("header_timeout = \"10m\"")
            .server("body_timeout = \"10m\"")
            .start();
        let mut slow = take_all(&hookgate, sent);
        for gone in 1..=2 {
            hookgate.send(&Delivery::good()).assert_forwarded(200);
            let first = &mut slow[0];
            if sent.starts_with(&head) {
                first.answer().assert_refused(503, "overloaded");
            }
            first.assert_closed();
            slow.remove(0);
            hookgate.wait_for_metric("hookgate_connections", &[], 3.0);
            hookgate.wait_for_metric("hookgate_connections_evicted_total", &[], f64::from(gone));
            slow.push(hookgate.connect());
            slow.last_mut().unwrap().send(sent);
            hookgate.wait_for_metric("hookgate_connections", &[], 4.0);
        }
        // What is left of them is as good as ever: the one that waits longest goes on.
        if sent == head {
            slow[0].send(&body);
            slow[0].answer().assert_forwarded(200);
        }
    }
}

/// Nor does a handshake keep others out that does not go on.
#[test]
fn a_tls_handshake_that_stalls_gives_way_to_a_newcomer() {
    let authority = Authority::new("a");
    let pair = authority.issue(&["localhost"]);
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .file("tls.crt", &pair.cert)
        .file("tls.key", &pair.key)
        .server("tls = { cert = \"{dir}/tls.crt\", key = \"{dir}/tls.key\" }")
        .server("max_connections = 4")
        .server("header_timeout = \"10m\"")
        .start();
    let mut stalled = take_all(&hookgate, b"\x16\x03\x01\x02\x00\x01");
    let mut connection = authority.open(hookgate.address()).unwrap().0;
    connection.send(&Delivery::good().bytes());
    connection.answer().assert_forwarded(200);
    stalled[0].assert_closed();
}

/// While hundreds of connections say nothing or stop in the middle, and come back when they are closed.
#[test]
fn good_deliveries_pass_through_a_flood_that_comes_back_at_once() {
    let half = Delivery::good().head_bytes();
    for (sent, what) in
        [(&b""[..], "silent"), (b"POST /hook HTTP/1.1\r\n", "half a head"), (&half, "no body")]
    {
        let upstream = Upstream::always(Reply::ok());
        let hookgate = Setup::new(&upstream)
            .server("max_connections = 64")
            .server("header_timeout = \"10m\"")
            .server("body_timeout = \"10m\"")
            .start();
        let flood = Flood::start(hookgate.address(), 500, sent);
        hookgate.wait_for_metric("hookgate_connections", &[], 64.0);
        for _ in 0..50 {
            hookgate.send(&Delivery::good()).assert_forwarded(200);
        }
        assert!(flood.came_back() > 100, "{what}: the flood does not come back");
        drop(flood);
        assert_eq!(upstream.requests().len(), 50, "{what}");
    }
}

/// The time of a probe, over which a service that is well would be restarted. The kubelet's is one second; here the flood
/// itself and other tests take their share of the machine.
const PROBE: Duration = Duration::from_secs(3);

#[test]
fn probes_are_answered_in_time_while_silent_connections_come_back_at_once() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    for sent in [&b""[..], b"GET /livez HTTP/1.1\r\nX: "] {
        let flood = Flood::start(hookgate.ops_address(), 1000, sent);
        while flood.came_back() < 1000 {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        for _ in 0..20 {
            for path in ["/livez", "/readyz"] {
                let mut probe = Connection::open(hookgate.ops_address());
                probe.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
                assert!(!probe.is_quiet_for(PROBE), "{path} is not answered within {PROBE:?}");
                assert_eq!(probe.answer().status, 200);
            }
        }
        drop(flood);
    }
}
