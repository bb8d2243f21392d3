//! Faults of the machine: no descriptors, little memory, a log that nobody reads, names that change, a clock
//! that jumps. The service bears them, and is as before when they are over.

use std::{
    fs,
    io::Read,
    net::UdpSocket,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::support::{
    Address, Connection, Delivery, Hookgate, Instant, PATIENCE, Reply, SECRET, Setup, Upstream, Webhook,
    eventually, faketime, program, sample, signed,
};

const PAUSING: &str = "cannot accept a connection, pausing";

#[test]
fn without_descriptors_accepting_pauses_and_comes_back() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).launched_by(&["prlimit", "--nofile=64"]).start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    let start = Instant::now();
    let many: Vec<_> = (0..100).map(|_| hookgate.connect()).collect();
    let line = hookgate.wait_for_log(|line| line["message"] == PAUSING);
    assert_eq!(line["level"], "WARN");
    // It pauses: it says so a few times in a second, and not as often as it can.
    let mut open = hookgate.connect();
    assert!(open.is_quiet_for(Duration::from_millis(500)));
    let said = hookgate.log_lines().iter().filter(|line| line.contains(PAUSING)).count();
    let tenths = usize::try_from(start.elapsed().as_millis() / 100).unwrap();
    // At most once in a tenth of a second for each thread and for the ops listener.
    assert!(said <= (tenths + 1) * 5, "{said} times in {tenths} tenths of a second");
    drop((many, open));
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(hookgate.ops("/readyz").status, 200);
    hookgate.wait_for_metric("hookgate_connections", &[], 0.0);
}

/// The soft limit on open files is raised to the hard one, and where that is too low, it says so.
#[test]
fn as_many_descriptors_are_taken_as_the_system_allows() {
    let upstream = Upstream::always(Reply::ok());
    let told = |hookgate: &Hookgate| {
        let limits = fs::read_to_string(format!("/proc/{}/limits", hookgate.id())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap().to_owned();
        let warned = hookgate.log_lines().iter().any(|line| line.contains("server.max_connections"));
        (line.split_whitespace().next().unwrap().to_owned(), warned)
    };
    for (limit, raised, warned) in
        [("64:4096", "4096", false), ("64:2303", "2303", true), ("64:2304", "2304", false)]
    {
        let hookgate = Setup::new(&upstream).launched_by(&["prlimit", &format!("--nofile={limit}")]).start();
        assert_eq!(told(&hookgate), (raised.to_owned(), warned), "{limit}");
        let mut check = Command::new("prlimit");
        check.arg(format!("--nofile={limit}")).arg(program().get_program());
        let output = check.arg("check").arg("--config").arg(hookgate.config()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.contains("1024 connections may need 2304 open files"), warned, "{limit}: {said}");
    }
}

/// The deadlines give the descriptors back, whatever the senders do.
#[test]
fn descriptors_come_back_by_themselves() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .server("header_timeout = \"1s\"")
        .launched_by(&["prlimit", "--nofile=64"])
        .start();
    let many: Vec<_> = (0..100).map(|_| hookgate.connect()).collect();
    hookgate.wait_for_log(|line| line["message"] == PAUSING);
    assert_eq!(hookgate.ops("/healthz").status, 200);
    eventually("a good delivery gets through", || {
        (hookgate.send(&Delivery::good()).said() == (200, "forwarded")).then_some(())
    });
    drop(many);
}

#[test]
fn many_bodies_fit_into_little_memory() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .server("max_inflight_bytes = \"8MiB\"")
        .server("body_timeout = \"10m\"")
        // Address space, of which a program takes far more than it uses.
        .launched_by(&["prlimit", "--as=1073741824"])
        .start();
    let body = vec![b'x'; (1 << 20) - 1];
    let large = Delivery::new("environment_revision", body).forged();
    let mut senders: Vec<_> = (0..100).map(|_| hookgate.connect()).collect();
    for sender in &mut senders {
        // All but the last byte, so that it must be held.
        sender.send(&large.head_bytes());
        sender.send(&large.the_body()[..large.the_body().len() - 1]);
    }
    let mut said: Vec<(u16, String)> = Vec::new();
    for sender in &mut senders {
        sender.send(b"x");
        said.extend(sender.try_answer().map(|answer| (answer.status, answer.outcome().to_owned())));
    }
    assert!(said.iter().all(|(status, _)| [401, 503].contains(status)), "{said:?}");
    assert!(said.contains(&(503, "overloaded".to_owned())), "{said:?}");
    drop(senders);
    hookgate.wait_for_metric("hookgate_inflight_bytes", &[], 0.0);
    hookgate.send(&Delivery::good()).assert_forwarded(200);
}

/// The service with a standard output of the test's choosing. Its log does not say where it listens.
struct Unheard {
    child: Child,
    address: Address,
    _setup: Setup,
}

impl Unheard {
    fn start(upstream: &Upstream, stdout: Stdio) -> Self {
        let setup = Setup::new(upstream).listen("unix:{dir}/in.sock");
        let config = setup.write();
        let mut command = program();
        let child = command.arg("run").arg("--config").arg(config).stdout(stdout).spawn().unwrap();
        let socket = setup.dir().join("in.sock");
        let this = Self { child, address: Address::Unix(socket.clone()), _setup: setup };
        eventually("it listens", || UnixStream::connect(&socket).ok());
        this
    }

    /// Makes it write this many lines, and more: those of signed pings, of which none is left out.
    fn talk(&self, lines: usize) {
        self.repeat(&Delivery::of(sample("ping")).bytes(), lines, (200, "pong"));
    }

    /// Sends a request so often, in hundreds.
    fn repeat(&self, request: &[u8], times: usize, said: (u16, &str)) {
        let mut connection = Connection::open(&self.address);
        for _ in 0..times / 100 {
            connection.send(&request.repeat(100));
            for _ in 0..100 {
                assert_eq!(connection.answer().said(), said);
            }
        }
    }

    /// Processor time that it has taken.
    fn busy(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// It serves, it does not spin, and it ends well.
    fn assert_well(mut self) {
        Delivery::good().send(&self.address).assert_forwarded(200);
        let before = self.busy();
        let mut idle = Connection::open(&self.address);
        assert!(idle.is_quiet_for(Duration::from_secs(1)));
        let busy = self.busy() - before;
        assert!(busy < Duration::from_millis(500), "{busy:?} in an idle second");
        drop(idle);
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
        let status = eventually("it ends", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_full_disk_for_the_log_stops_nothing() {
    let upstream = Upstream::always(Reply::ok());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let hookgate = Unheard::start(&upstream, full.into());
    hookgate.talk(1000);
    hookgate.assert_well();
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = Unheard::start(&upstream, Stdio::piped());
    // More than the pipe and the buffer take.
    hookgate.talk(10_000);
    let unread = hookgate.child.stdout.take();
    hookgate.assert_well();
    drop(unread);
}

#[test]
fn a_log_whose_reader_is_gone_stops_nothing() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = Unheard::start(&upstream, Stdio::piped());
    drop(hookgate.child.stdout.take());
    hookgate.talk(1000);
    hookgate.assert_well();
}

/// When it can be written again, the log says how much it lacks.
#[test]
fn a_log_that_is_read_again_says_what_it_lacks() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = Unheard::start(&upstream, Stdio::piped());
    hookgate.talk(10_000);
    let mut stdout = hookgate.child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut log = String::new();
        stdout.read_to_string(&mut log).map(|_| log)
    });
    hookgate.assert_well();
    let log = reader.join().unwrap().unwrap();
    let (mut written, mut lacking) = (0, 0);
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        match line["count"].as_u64().filter(|_| line["message"] == "log lines dropped") {
            Some(count) => lacking += count,
            None => written += 1,
        }
    }
    assert!(lacking > 0);
    // One says that it starts, two where it listens, one is that of the good delivery, and two tell the end.
    assert_eq!(written + lacking, 10_000 + 6);
}

/// However slowly the log is read, and whatever strangers do meanwhile.
#[test]
fn a_flood_does_not_push_out_the_lines_of_deliveries_that_wait_to_be_read() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = Unheard::start(&upstream, Stdio::piped());
    let nowhere = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    let ids: Vec<_> = (0..20).map(|number| format!("delivery-{number}")).collect();
    for id in &ids {
        hookgate.repeat(nowhere, 1000, (404, "not_found"));
        Delivery::good().id(id).send(&hookgate.address).assert_forwarded(200);
    }
    let mut stdout = hookgate.child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut log = String::new();
        stdout.read_to_string(&mut log).map(|_| log)
    });
    hookgate.assert_well();
    let log = reader.join().unwrap().unwrap();
    for id in &ids {
        assert_eq!(log.lines().filter(|line| line.contains(&format!("{id:?}"))).count(), 1, "{id}");
    }
}

/// Starts the service in a world where files of its folder stand in the place of the system's.
fn in_place_of(setup: Setup, files: &[(&str, &str)]) -> Hookgate {
    let mounts: String = files
        .iter()
        .map(|(name, system)| format!("mount --bind '{}' {system} && ", setup.dir().join(name).display()))
        .collect();
    // Both become the service, so that signals reach it.
    let launcher = ["unshare", "--mount", "sh", "-c", &format!("{mounts}exec \"$@\""), "sh"];
    setup.launched_by(&launcher).start()
}

/// The service in a world where the test says which name has which address.
fn resolving(hosts: &str, upstream: &Webhook) -> (Hookgate, PathBuf) {
    let setup = Setup::bare()
        .file("hosts", hosts)
        .file("nsswitch.conf", "hosts: files\n")
        .section("[dedupe]\nwindow = \"0s\"")
        .with(upstream.clone());
    let hosts = setup.dir().join("hosts");
    let files = [("hosts", "/etc/hosts"), ("nsswitch.conf", "/etc/nsswitch.conf")];
    (in_place_of(setup, &files), hosts)
}

/// In place: the file is a mount in the service's world.
fn write(hosts: &Path, content: &str) {
    fs::write(hosts, content).unwrap();
}

#[test]
fn a_name_that_changes_its_address_or_goes_is_resolved_anew() {
    let last = || Reply::answer(200, &[("connection", "close")], "done").and_close();
    let first = Upstream::at("127.0.0.1:0", last());
    let Address::Tcp(address) = first.address() else { panic!("it listens on TCP") };
    let port = address.port();
    let second = Upstream::at(&format!("127.0.0.2:{port}"), last());
    let webhook = Webhook::to(&format!("http://upstream.test:{port}/upstream"));
    let (hookgate, hosts) = resolving("127.0.0.1 upstream.test\n", &webhook);
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!((first.requests().len(), second.requests().len()), (1, 0));

    write(&hosts, "127.0.0.2 upstream.test\n");
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));

    write(&hosts, "127.0.0.1 other.test\n");
    hookgate.send(&Delivery::good()).assert_refused(502, "upstream_unreachable");

    write(&hosts, "127.0.0.1 upstream.test\n");
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!((first.requests().len(), second.requests().len()), (2, 1));

    // One of several addresses is enough.
    write(&hosts, "127.0.0.3 upstream.test\n127.0.0.2 upstream.test\n");
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!((first.requests().len(), second.requests().len()), (2, 2));
}

/// The resolver would wait for half a minute; the end of the service does not.
#[test]
fn a_name_server_that_never_answers_does_not_hold_up_the_end() {
    let silent = UdpSocket::bind("127.61.61.61:53").unwrap();
    let webhook = Webhook::to("http://upstream.test:9/upstream").destination("timeout = \"60s\"");
    let setup = Setup::bare()
        .file("nsswitch.conf", "hosts: dns\n")
        .file("resolv.conf", "nameserver 127.61.61.61\noptions timeout:30 attempts:1\n")
        .server("drain_timeout = \"1s\"")
        .with(webhook);
    let files = [("nsswitch.conf", "/etc/nsswitch.conf"), ("resolv.conf", "/etc/resolv.conf")];
    let mut hookgate = in_place_of(setup, &files);
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().bytes());
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    silent.recv(&mut [0; 512]).unwrap();
    hookgate.signal("TERM");
    connection.answer().assert_refused(503, "draining");
    assert_eq!(hookgate.wait_exit().code(), Some(1));
}

#[test]
fn ipv6_is_served_and_used() {
    let upstream = Upstream::at("[::1]:0", Reply::ok());
    let hookgate = Setup::new(&upstream).listen("[::1]:0").start();
    assert!(matches!(hookgate.address(), Address::Tcp(address) if address.is_ipv6()));
    let delivery = Delivery::good().with("Host", "[::1]:8080");
    hookgate.send(&delivery).assert_forwarded(200);
    let line = hookgate.line_of(delivery.header_value("Pulumi-Webhook-Id"));
    assert!(line["client.address"].as_str().unwrap().starts_with("[::1]:"), "{line}");
    let Address::Tcp(address) = upstream.address() else { panic!("it listens on TCP") };
    assert_eq!(upstream.only_request().header("host"), Some(address.to_string().as_str()));
}

/// `::` takes both families.
#[test]
fn any_ipv6_address_takes_ipv4_too() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).listen("[::]:0").start();
    let Address::Tcp(address) = hookgate.address() else { panic!("it listens on TCP") };
    for host in ["127.0.0.1", "[::1]"] {
        let to = Address::parse(&format!("{host}:{}", address.port())).unwrap();
        Delivery::good().send(&to).assert_forwarded(200);
    }
}

#[test]
fn a_port_in_use_is_a_plain_sentence() {
    let [upstream, other] = [(); 2].map(|()| Upstream::always(Reply::ok()));
    let Address::Tcp(taken) = other.address() else { panic!("it listens on TCP") };
    let setup = Setup::new(&upstream).listen(&taken.to_string());
    let output = program().arg("run").arg("--config").arg(setup.write()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let sentence = format!("cannot listen on {taken} (`server.listen`): Address already in use");
    assert!(errors.contains(&sentence), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn the_clock_may_jump() {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream)
        .secret(
            "[ { name = \"new\", file = \"{dir}/secret\" }, { name = \"old\", file = \"{dir}/old\", expires = \"2027-01-31T00:00:00Z\" } ]",
        )
        .file("old", "the secret before this one")
        .file("clock", "@2027-01-30 23:00:00\n")
        .server("idle_timeout = \"10m\"");
    let clock = setup.dir().join("clock");
    let hookgate = setup
        .environment("TZ", "UTC")
        .environment("LD_PRELOAD", faketime().to_str().unwrap())
        .environment("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap())
        .environment("FAKETIME_NO_CACHE", "1")
        // As in life: only the clock on the wall jumps.
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start();
    let old = || {
        let delivery = Delivery::good();
        let signature = signed(delivery.the_body(), b"the secret before this one");
        delivery.signature(&signature)
    };
    let mut kept = hookgate.connect();
    let mut send = |delivery: Delivery| {
        kept.send(&delivery.bytes());
        kept.answer()
    };
    send(old()).assert_forwarded(200);
    // An hour and a second on: the old secret is over, without a reload, on the same connection.
    fs::write(&clock, "@2027-01-31 00:00:01\n").unwrap();
    send(old()).assert_refused(401, "bad_signature");
    send(Delivery::good()).assert_forwarded(200);
    // Far on, and back again: neither deadlines nor the memory of IDs live by this clock.
    fs::write(&clock, "@2038-01-19 03:14:08\n").unwrap();
    let repeated = Delivery::good();
    send(repeated.clone()).assert_forwarded(200);
    fs::write(&clock, "@2027-01-30 23:00:00\n").unwrap();
    send(repeated).assert_own("duplicate");
    send(old()).assert_forwarded(200);
    let used = [("webhook", "hook"), ("secret", "old")];
    let used = hookgate.metrics().value("hookgate_secret_last_used_timestamp_seconds", &used).unwrap();
    // 2027-01-30 23:00:00 UTC, give or take a minute.
    assert!((1_801_350_000.0..1_801_350_060.0).contains(&used), "{used}");
    assert_ne!(SECRET, "the secret before this one");
}
