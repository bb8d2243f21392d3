//! Limits: sizes, deadlines, connections, memory. Short real ones.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::Command,
    sync::mpsc,
    time::Duration,
};

use crate::support::{
    Answer, Connection, Delivery, Gate, Hookgate, Instant, PATIENCE, Reply, Setup, Upstream, Webhook,
    eventually, tls::Authority,
};

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

/// Nobody gives way whose delivery is being forwarded, however long that takes and whoever comes.
#[test]
fn connections_beyond_the_limit_wait_while_all_others_are_being_served() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream).server("max_connections = 2").start();
    let mut served: Vec<_> = (0..2).map(|_| hookgate.connect()).collect();
    for connection in &mut served {
        connection.send(&Delivery::good().bytes());
    }
    upstream.wait_for(2);
    let mut third = hookgate.connect();
    third.send(&Delivery::good().bytes());
    assert!(third.is_quiet_for(Duration::from_millis(500)));
    assert_eq!(upstream.requests().len(), 2);
    // The ops listener has room of its own.
    assert_eq!(hookgate.ops("/healthz").status, 200);
    hookgate.wait_for_metric("hookgate_connections_evicted_total", &[], 0.0);
    gate.open();
    for connection in served.iter_mut().chain([&mut third]) {
        connection.answer().assert_forwarded(200);
    }
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

/// Who asks for much and reads none of it, or a byte now and then, has `idle_timeout` for it all, and asking for
/// more does not help.
#[test]
fn a_sender_that_does_not_read_its_answers_is_cut_off() {
    let upstream = Upstream::always(Reply::answer(200, &[], "x".repeat(64 << 10)));
    let hookgate =
        Setup::new(&upstream).server("idle_timeout = \"1s\"").section("[dedupe]\nwindow = \"0s\"").start();
    for reads in [false, true] {
        let mut connection = hookgate.connect();
        // Together more than the kernel's buffers of both sides take.
        let bytes = Delivery::good().bytes().repeat(400);
        connection.send(&bytes);
        eventually("the connection is ended", || {
            if reads {
                connection.read_some(1);
            }
            connection.send(b"\r\n");
            (hookgate.metrics().value("hookgate_connections", &[]) == Some(0.0)).then_some(())
        });
        // Most of what it asked for was never made.
        hookgate.wait_for_metric("hookgate_inflight_bytes", &[], 0.0);
    }
    hookgate.send(&Delivery::good()).assert_forwarded(200);
}

/// A sender that takes its time, and reads everything, gets everything.
#[test]
fn a_sender_that_reads_late_gets_its_answers() {
    let upstream = Upstream::always(Reply::answer(200, &[], "x".repeat(64 << 10)));
    let hookgate = Setup::new(&upstream).section("[dedupe]\nwindow = \"0s\"").start();
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().bytes().repeat(200));
    upstream.wait_for(20);
    for _ in 0..200 {
        let answer = connection.answer();
        answer.assert_forwarded(200);
        assert_eq!(answer.body.bytes.len(), 64 << 10);
    }
}

/// Connections that wait for nothing give way to those that wait for them.
#[test]
fn idle_connections_give_way_when_all_are_taken() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .server("max_connections = 8")
        .server("header_timeout = \"1s\"")
        .server("idle_timeout = \"10m\"")
        .start();
    let mut idle: Vec<_> = (0..8).map(|_| hookgate.connect()).collect();
    for connection in &mut idle {
        connection.send(&Delivery::good().bytes());
        connection.answer().assert_forwarded(200);
    }
    hookgate.send(&Delivery::good()).assert_forwarded(200);
}

/// Nor can they be kept by asking for refusals all the time.
#[test]
fn refused_senders_give_way_when_all_are_taken() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .server("max_connections = 8")
        .server("idle_timeout = \"10m\"")
        .server("header_timeout = \"10m\"")
        .start();
    let mut bad: Vec<_> = (0..8).map(|_| hookgate.connect()).collect();
    hookgate.wait_for_metric("hookgate_connections", &[], 8.0);
    for connection in &mut bad {
        connection.send(&Delivery::good().forged().bytes());
        connection.answer().assert_refused(401, "bad_signature");
    }
    // At least one of them is gone.
    hookgate.send(&Delivery::good()).assert_forwarded(200);
}

/// What an upstream that never stops says.
enum Endless {
    /// As fast as it can.
    Flood(&'static str, &'static str),
    /// A little now and then.
    Drip(&'static str, &'static str),
}

/// In front of an upstream that says this for as long as anybody listens; returns the answer once nobody does.
fn ask_endless(says: Endless) -> Answer {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/upstream", listener.local_addr().unwrap());
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        assert!(socket.read(&mut [0; 4096]).unwrap() > 0);
        let (first, again, pause) = match says {
            Endless::Flood(first, again) => (first, again.repeat(1000), Duration::ZERO),
            Endless::Drip(first, again) => (first, again.to_owned(), Duration::from_millis(50)),
        };
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(first.as_bytes()).unwrap();
        while socket.write_all(again.as_bytes()).is_ok() {
            std::thread::park_timeout(pause);
        }
        ended.send(()).unwrap();
    });
    let webhook = Webhook::to(&url).destination("timeout = \"1s\"");
    let hookgate = Setup::bare().with(webhook).start();
    let answer = hookgate.send(&Delivery::good());
    end.recv_timeout(PATIENCE).expect("the upstream's connection is ended");
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], 0.0);
    assert!(resident(&hookgate) < 64 << 20, "{} bytes", resident(&hookgate));
    answer
}

#[test]
fn an_upstream_that_never_stops_is_stopped() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n";
    let status = |says| {
        let answer = ask_endless(says);
        (answer.status, answer.outcome().to_owned(), answer.body.bytes.len())
    };
    let refused = |says| {
        let answer = ask_endless(says);
        answer.assert_refused(answer.status, answer.outcome());
        (answer.status, answer.outcome().to_owned())
    };
    let bad_answer = || (502, "upstream_bad_answer".to_owned());
    let timeout = || (504, "upstream_timeout".to_owned());
    let forwarded = |length| (200, "forwarded".to_owned(), length);

    // A body: its first 64 KiB.
    assert_eq!(status(Endless::Flood("HTTP/1.1 200 OK\r\n\r\n", "x")), forwarded(64 << 10));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(status(Endless::Flood(chunked, "5\r\nhello\r\n")), forwarded(64 << 10));
    let long = "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551613\r\n\r\n";
    assert_eq!(status(Endless::Flood(long, "x")), forwarded(64 << 10));
    // A body that drips is relayed as far as it came.
    let (code, label, length) = status(Endless::Drip(long, "x"));
    assert_eq!((code, &*label), (200, "forwarded"));
    assert!(length < 100, "{length}");
    // A chunk size, an extension, trailers.
    assert_eq!(status(Endless::Flood(chunked, "0")), forwarded(0));
    assert_eq!(
        status(Endless::Flood("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;", "x")),
        forwarded(0)
    );
    assert_eq!(
        status(Endless::Flood("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", "x: y\r\n")),
        forwarded(0)
    );
    // A head.
    assert_eq!(refused(Endless::Flood(HEAD, "x: y\r\n")), bad_answer());
    assert_eq!(refused(Endless::Flood(HEAD, "x")), bad_answer());
    assert_eq!(refused(Endless::Flood("HTTP/1.1 200 ", "x")), bad_answer());
    assert_eq!(refused(Endless::Drip(HEAD, "x")), timeout());
    assert_eq!(refused(Endless::Drip("", "\r\n")), timeout());
    // What is not HTTP.
    assert_eq!(refused(Endless::Flood("", "garbage\r\n")), bad_answer());
    assert_eq!(refused(Endless::Flood("", "\0")), bad_answer());
    // Interim answers.
    assert_eq!(refused(Endless::Flood("", "HTTP/1.1 100 Continue\r\n\r\n")), bad_answer());
    assert_eq!(refused(Endless::Drip("HTTP/1.1 103 Early Hints\r\nlink: ", "x")), timeout());
    assert_eq!(refused(Endless::Flood("HTTP/1.1 101 Switching Protocols\r\n\r\n", "x")), bad_answer());
}

/// Resident memory of the service, in bytes.
fn resident(hookgate: &Hookgate) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", hookgate.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// The bound that docs/operations.md and SECURITY.md state: the bodies that are held, so much for each connection, and the program.
const FOR_A_CONNECTION: usize = 80 << 10;
const FOR_A_TLS_CONNECTION: usize = 160 << 10;
const FOR_THE_PROGRAM: usize = 32 << 20;

/// A thousand senders that take their time, each with as much as it may have, and a good one among them.
#[test]
fn a_thousand_slow_senders_keep_no_one_out_and_take_bounded_memory() {
    a_thousand_slow_senders(Setup::new, |hookgate| hookgate.connect(), FOR_A_CONNECTION);
}

/// The same over TLS, which has buffers of its own.
#[test]
fn a_thousand_slow_senders_over_tls_take_bounded_memory() {
    let authority = Authority::new("a");
    let pair = authority.issue(&["localhost"]);
    a_thousand_slow_senders(
        |upstream| {
            Setup::new(upstream)
                .file("tls.crt", &pair.cert)
                .file("tls.key", &pair.key)
                .server("tls = { cert = \"{dir}/tls.crt\", key = \"{dir}/tls.key\" }")
        },
        |hookgate| authority.open(hookgate.address()).unwrap().0,
        FOR_A_TLS_CONNECTION,
    );
}

fn a_thousand_slow_senders(
    setup: impl Fn(&Upstream) -> Setup,
    connect: impl Fn(&Hookgate) -> Connection,
    for_a_connection: usize,
) {
    // This process needs a descriptor for each of them, and so does its child.
    let own = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &own, "--nofile=8192:"]).status().unwrap();
    assert!(raised.success(), "the limit on open files is below 8192 and cannot be raised");

    let upstream = Upstream::always(Reply::ok());
    let hookgate =
        setup(&upstream).server("header_timeout = \"10m\"").server("body_timeout = \"10m\"").start();
    let good = Delivery::good();
    let deliver = || {
        let mut connection = connect(&hookgate);
        connection.send(&Delivery::good().bytes());
        connection.answer().assert_forwarded(200);
    };
    let mut slow: Vec<_> = (0..1000).map(|_| connect(&hookgate)).collect();
    for (number, connection) in slow.iter_mut().enumerate() {
        match number % 4 {
            // A head that is as long as it may be, and not over.
            0 => connection
                .send(&[b"POST /hook HTTP/1.1\r\nHost: x\r\nX-Slow: ", &[b'x'; 15 << 10][..]].concat()),
            // A body that takes a sixteenth of what it announced.
            1 => {
                connection.send(&good.clone().with("Content-Length", "960000").head_bytes());
                connection.send(&[b'x'; 60_000]);
            }
            // A body, announced as long as it may be, of which a part has come.
            2 => {
                connection.send(&good.clone().with("Content-Length", "1048576").head_bytes());
                connection.send(&[b'x'; 100_000]);
            }
            // Chunks of a byte.
            _ => {
                connection.send(&good.clone().chunked(&[1]).head_bytes());
                connection.send(&b"1\r\nx\r\n".repeat(1000));
            }
        }
    }
    for round in 0..3 {
        for connection in &mut slow {
            // A digit is good for a head, and for a body too; in chunks it is the beginning of a size.
            connection.send(b"1");
        }
        deliver();
        assert_eq!(upstream.requests().len(), round + 1);
    }
    let came = 250 * (60_003 + 100_003 + 1_000);
    hookgate.wait_for_metric("hookgate_inflight_bytes", &[], f64::from(came));
    let held = usize::try_from(came).unwrap();
    assert_eq!(hookgate.metrics().value("hookgate_connections", &[]), Some(1000.0));
    // Below TLS, a record that does not end.
    let record = [&[0x17, 0x03, 0x03, 0x40, 0x00][..], &[b'x'; 16_000]].concat();
    slow.iter_mut().for_each(|connection| connection.send_below_tls(&record));
    deliver();
    let bound = held + 1000 * for_a_connection + FOR_THE_PROGRAM;
    println!(
        "{} KiB resident, {} KiB held, bound {} KiB",
        resident(&hookgate) >> 10,
        held >> 10,
        bound >> 10
    );
    assert!(resident(&hookgate) < bound, "{} of {bound} bytes", resident(&hookgate));
    drop(slow);
    hookgate.wait_for_metric("hookgate_connections", &[], 0.0);
    hookgate.wait_for_metric("hookgate_inflight_bytes", &[], 0.0);
    deliver();
}

/// Whoever holds back the ends of large bodies keeps no small one out, however many there are. No secret is needed
/// for a signature that is only well-formed.
#[test]
fn large_bodies_that_do_not_end_keep_no_small_one_out() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .server("max_inflight_bytes = \"4MiB\"")
        .server("max_connections = 100")
        .server("body_timeout = \"10m\"")
        .start();
    let large = Delivery::new("environment_revision", vec![b'x'; 1 << 20]).forged();
    let mut senders: Vec<_> = (0..20).map(|_| hookgate.connect()).collect();
    for sender in &mut senders {
        sender.send(&large.head_bytes());
        sender.send(&large.the_body()[..large.the_body().len() - 1]);
    }
    // Until all have sent what they want, or were told that there is no room.
    eventually("all but two are refused", || {
        let metrics = hookgate.metrics();
        let refused =
            metrics.value("hookgate_requests_total", &[("webhook", "hook"), ("outcome", "overloaded")]);
        let held = metrics.value("hookgate_inflight_bytes", &[]);
        (refused == Some(18.0) && held == Some(2.0 * f64::from((1 << 20) - 1))).then_some(())
    });
    for _ in 0..10 {
        hookgate.send(&Delivery::good()).assert_forwarded(200);
    }
    drop(senders);
    hookgate.wait_for_metric("hookgate_inflight_bytes", &[], 0.0);
}

/// Announcing a long body and sending next to nothing of it costs next to no memory.
#[test]
fn what_is_only_announced_takes_no_memory() {
    const SENDERS: u32 = 60;
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("body_timeout = \"10m\"").start();
    let mut senders: Vec<_> = (0..SENDERS).map(|_| hookgate.connect()).collect();
    let head = Delivery::good().with("Content-Length", "1048576").head_bytes();
    senders.iter_mut().for_each(|sender| sender.send(&head));
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], f64::from(SENDERS));
    let before = hookgate.memory("VmData");
    // The first byte stays where it is; with the second, there must be a place for both.
    for byte in 1..=2 {
        senders.iter_mut().for_each(|sender| sender.send(b"x"));
        hookgate.wait_for_metric("hookgate_inflight_bytes", &[], f64::from(byte * SENDERS));
    }
    let grown = hookgate.memory("VmData") - before;
    println!("{grown} KiB more for {SENDERS} announced MiB");
    assert!(grown < u64::from(SENDERS) * 256, "{grown} KiB more for {SENDERS} announced MiB");
}

/// A sender that breaks off in whatever way leaves nothing behind, also where nobody is left to answer.
#[test]
fn requests_whose_sender_is_gone_are_in_flight_no_more() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream).start();
    let in_flight = |count| hookgate.wait_for_metric("hookgate_inflight_requests", &[], count);
    let whole = Delivery::good().bytes();
    for reset in [false, true] {
        let mut sender = hookgate.connect();
        sender.send(&whole[..whole.len() - 1]);
        in_flight(1.0);
        if reset {
            sender.reset();
        } else {
            drop(sender);
        }
        in_flight(0.0);
    }
    // What came whole is finished all the same.
    let mut sender = hookgate.connect();
    sender.send(&whole);
    upstream.wait_for(1);
    sender.reset();
    gate.open();
    in_flight(0.0);
    hookgate.wait_for_metric("hookgate_connections", &[], 0.0);
}

/// As many connections may be open as `max_connections` says, before any of them must give way.
#[test]
fn no_connection_gives_way_before_all_are_taken() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("max_connections = 3").start();
    let mut two: Vec<_> = (0..2).map(|_| hookgate.connect()).collect();
    hookgate.wait_for_metric("hookgate_connections", &[], 2.0);
    for _ in 0..3 {
        for connection in &mut two {
            connection.send(&Delivery::good().forged().bytes());
            let answer = connection.answer();
            answer.assert_refused(401, "bad_signature");
            assert_eq!(answer.header("connection"), None, "{answer:?}");
        }
    }
    let mut third = hookgate.connect();
    third.send(&Delivery::good().forged().bytes());
    let answer = third.answer();
    answer.assert_refused(401, "bad_signature");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
}
