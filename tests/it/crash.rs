//! What was answered 202 is delivered, whatever kills the service and at whatever step.
//!
//! `HOOKGATE_CRASH_ROUNDS=200` in the environment makes the random tests as long as one likes, and `HOOKGATE_CUT_SECONDS=30`
//! the time for which NATS is cut off.

use std::{
    collections::HashMap,
    io::{Read, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::{
    Address, Connection, Cut, Delivery, Hookgate, Instant, NatsCluster, NatsServer, Proxy, Reply, Request,
    Setup, Upstream, Webhook, cannot, eventually,
};

/// Kills without a word in the environment.
const ROUNDS: usize = 12;

/// Senders at a time.
const SENDERS: usize = 4;

const SQLITE: &str = "[queue]\npath = \"{dir}/queue.db\"\nbackoff = { initial = \"10ms\", max = \"50ms\" }";

/// An upstream that refuses the first attempt of every eighth delivery.
fn moody() -> Upstream {
    Upstream::scripted(|request| {
        let moody = id(request).ends_with(['0', '8']);
        Reply::status(if moody && request.header("hookgate-attempt") == Some("1") { 503 } else { 200 })
    })
}

fn setup(queue: &str, upstream: &Upstream) -> Setup {
    Setup::bare().section(queue).with(Webhook::to(&upstream.url()).line("name = \"esc\""))
}

fn id(request: &Request) -> &str {
    request.header("pulumi-webhook-id").unwrap()
}

/// How often each delivery was accepted by the upstream.
fn accepted_by(upstream: &Upstream) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for request in upstream.requests() {
        if !(id(&request).ends_with(['0', '8']) && request.header("hookgate-attempt") == Some("1")) {
            *counts.entry(id(&request).to_owned()).or_default() += 1;
        }
    }
    counts
}

/// The status that a delivery is answered with, if the service lives long enough to say so.
fn try_to_send(delivery: &Delivery, to: &Address) -> Option<u16> {
    status_of(&delivery.bytes(), to)
}

/// The same for `/readyz`.
fn try_to_ask(hookgate: &Hookgate) -> Option<u16> {
    status_of(b"GET /readyz HTTP/1.1\r\nHost: ops.test\r\nConnection: close\r\n\r\n", hookgate.ops_address())
}

fn status_of(request: &[u8], to: &Address) -> Option<u16> {
    let mut socket = to.connect().ok()?;
    socket.write_all(request).ok()?;
    let mut head = [0; 12];
    socket.read_exact(&mut head).ok()?;
    str::from_utf8(&head).ok()?.strip_prefix("HTTP/1.1 ")?.parse().ok()
}

/// Senders that go on while the service dies and comes back, and what it promised to deliver.
struct Senders {
    address: Arc<Mutex<Address>>,
    over: Arc<AtomicBool>,
    promises: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<Sent>>,
}

/// What senders have seen.
#[derive(Debug, Default)]
struct Sent {
    /// The IDs that were answered with 202.
    promised: Vec<String>,
    /// How many were answered with 503.
    refused: usize,
    /// The longest wait for an answer.
    slowest: Duration,
}

impl Senders {
    fn start(hookgate: &Hookgate) -> Self {
        Self::called("sender", hookgate)
    }

    /// Under IDs of their own.
    fn called(name: &'static str, hookgate: &Hookgate) -> Self {
        let address = Arc::new(Mutex::new(hookgate.address().clone()));
        let over = Arc::new(AtomicBool::new(false));
        let promises = Arc::new(AtomicUsize::new(0));
        let send = |sender: usize| {
            let (address, over) = (Arc::clone(&address), Arc::clone(&over));
            let promises = Arc::clone(&promises);
            thread::spawn(move || {
                let mut sent = Sent::default();
                for number in 0.. {
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    let id = format!("{name}-{sender}-delivery-{number}");
                    let to = address.lock().unwrap().clone();
                    let began = Instant::now();
                    let status = try_to_send(&Delivery::good().id(&id), &to);
                    sent.slowest = sent.slowest.max(began.elapsed());
                    match status {
                        Some(202) => {
                            sent.promised.push(id);
                            promises.fetch_add(1, Ordering::SeqCst);
                        }
                        Some(503) => {
                            sent.refused += 1;
                            // Pulumi comes again later, too.
                            thread::park_timeout(Duration::from_millis(10));
                        }
                        _ => {}
                    }
                }
                sent
            })
        };
        Self { threads: (0..SENDERS).map(send).collect(), address, over, promises }
    }

    /// Waits until so many more were promised.
    fn go_on(&self, count: usize) {
        let enough = self.promises.load(Ordering::SeqCst) + count;
        eventually("deliveries are accepted", || {
            (self.promises.load(Ordering::SeqCst) >= enough).then_some(())
        });
    }

    fn moved(&self, hookgate: &Hookgate) {
        *self.address.lock().unwrap() = hookgate.address().clone();
    }

    fn end(self) -> Sent {
        self.over.store(true, Ordering::SeqCst);
        let mut all = Sent::default();
        for thread in self.threads {
            let sent = thread.join().unwrap();
            all.promised.extend(sent.promised);
            all.refused += sent.refused;
            all.slowest = all.slowest.max(sent.slowest);
        }
        all
    }
}

/// Every promise is kept; how often a delivery was made more than once is not held against anybody.
fn assert_kept(promised: &[String], upstream: &Upstream, kills: usize) {
    let patience =
        Duration::from_secs(20) + Duration::from_millis(20) * u32::try_from(promised.len()).unwrap();
    let began = Instant::now();
    let missing = loop {
        let seen = accepted_by(upstream);
        let missing: Vec<_> = promised.iter().filter(|id| !seen.contains_key(*id)).cloned().collect();
        if missing.is_empty() || began.elapsed() > patience {
            break missing;
        }
        thread::park_timeout(Duration::from_millis(50));
    };
    let seen = accepted_by(upstream);
    let twice = seen.values().filter(|count| **count > 1).count();
    println!(
        "{kills} kills, {} accepted, {} delivered, {twice} of them more than once, {} lost",
        promised.len(),
        seen.len(),
        missing.len()
    );
    assert!(missing.is_empty(), "lost: {missing:?}");
    assert!(promised.len() > kills, "{} deliveries are too few to show anything", promised.len());
}

fn rounds() -> usize {
    #[expect(clippy::disallowed_methods, reason = "the length of a test is nobody's configuration")]
    std::env::var("HOOKGATE_CRASH_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap())
}

fn survive_kills(queue: &str) {
    let upstream = moody();
    let mut hookgate = setup(queue, &upstream).start();
    let senders = Senders::start(&hookgate);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..rounds() {
        thread::park_timeout(Duration::from_millis(random.u64(5..250)));
        hookgate.restart("KILL");
        senders.moved(&hookgate);
    }
    let promised = senders.end().promised;
    assert_kept(&promised, &upstream, rounds());
}

#[test]
fn nothing_accepted_is_lost_by_kills_at_random_moments() {
    survive_kills(SQLITE);
}

/// `order` and `coalesce` come and go, and so does a destination, while the service is killed and comes back.
#[test]
fn nothing_accepted_is_lost_while_settings_change_and_kills_go_on() {
    const ORDER: [&str; 2] = ["order = \"environment\" # app", "# app"];
    const COALESCE: [&str; 2] = ["coalesce = \"20ms\" # cache", "# cache"];
    const CONCURRENCY: [&str; 2] = ["concurrency = 16", "concurrency = 3"];
    const THIRD: [&str; 2] = ["[\"environment_revision\"] # third", "[\"environment_deleted\"] # third"];

    let (upstream, cache, third) = (moody(), moody(), moody());
    let destination = |name: &str, upstream: &Upstream, line: &str| {
        format!("\n[[webhook.destination]]\nname = {name:?}\nurl = {:?}\n{line}", upstream.url())
    };
    let setup = Setup::bare().section(&format!("{SQLITE}\n{}", CONCURRENCY[0])).with(
        Webhook::to(&upstream.url())
            .line("name = \"esc\"")
            .destination(&format!("name = \"app\"\n{}", ORDER[1]))
            .destination(&destination("cache", &cache, COALESCE[1]))
            .destination(&destination("third", &third, &format!("events = {}", THIRD[0]))),
    );
    let mut hookgate = setup.start();
    let senders = Senders::start(&hookgate);
    let mut random = fastrand::Rng::with_seed(11);
    let mut state = [1, 1, 0, 0];
    let toggled = [ORDER, COALESCE, CONCURRENCY, THIRD];
    for _ in 0..rounds() {
        for _ in 0..random.usize(1..4) {
            let which = random.usize(0..toggled.len());
            let (from, to) = (toggled[which][state[which]], toggled[which][1 - state[which]]);
            hookgate.edit(from, to);
            state[which] = 1 - state[which];
            hookgate.signal("HUP");
            thread::park_timeout(Duration::from_millis(random.u64(0..60)));
        }
        hookgate.restart("KILL");
        senders.moved(&hookgate);
    }
    let promised = senders.end().promised;
    assert_kept(&promised, &upstream, rounds());
    // Whatever was coalesced there, nothing is stuck.
    for name in ["app", "cache", "third"] {
        let labels = [("webhook", "esc"), ("destination", name)];
        hookgate.wait_for_metric("hookgate_queue_depth", &labels, 0.0);
        assert_eq!(hookgate.metrics().value("hookgate_dead_letters", &labels), Some(0.0), "{name}");
    }
}

/// The process ends itself at a step, some times after it has gone past it; comes back, and so on.
fn survive_steps(queue: &str, steps: &[&str]) {
    for step in steps {
        let upstream = moody();
        let mut hookgate =
            setup(queue, &upstream).environment("FAILPOINTS", &format!("{step}=9*off->return")).start();
        let mut promised = Vec::new();
        let mut kills = 0;
        let mut number = 0;
        while kills < 4 {
            let id = format!("{step}-{number}");
            number += 1;
            assert!(number < 2000, "`{step}` is never reached");
            match try_to_send(&Delivery::good().id(&id), hookgate.address()) {
                Some(202) => promised.push(id),
                // Its store must be reached first.
                Some(503) => {
                    eventually("ready, or over", || {
                        let over = hookgate.has_ended();
                        (over || try_to_ask(&hookgate) == Some(200)).then_some(())
                    });
                }
                Some(status) => panic!("{status}"),
                None => {
                    kills += hookgate.come_back_at_last();
                }
            }
        }
        // In its last life it goes past the step.
        hookgate.forget("FAILPOINTS");
        hookgate.restart("KILL");
        println!("{step}:");
        assert_kept(&promised, &upstream, kills);
    }
}

#[test]
fn nothing_accepted_is_lost_by_an_end_at_any_step() {
    survive_steps(SQLITE, &["read", "commit", "answer", "committed", "leased", "attempted", "settled"]);
}

fn on(nats: &NatsServer) -> String {
    on_url(&nats.url())
}

fn on_url(url: &str) -> String {
    format!("[queue]\nstore = \"nats\"\nurl = {url:?}\nbackoff = {{ initial = \"10ms\", max = \"50ms\" }}")
}

#[test]
fn nothing_accepted_is_lost_on_nats_by_kills_at_random_moments() {
    let nats = NatsServer::start();
    survive_kills(&on(&nats));
}

/// Between commit and record there is nothing of its own: what is published is committed.
#[test]
fn nothing_accepted_is_lost_on_nats_by_an_end_at_any_step() {
    let nats = NatsServer::start();
    survive_steps(&on(&nats), &["read", "committed", "leased", "attempted", "settled"]);
}

/// What the server has acknowledged it has, and what is under way meanwhile is refused and not lost.
#[test]
fn nothing_accepted_is_lost_when_the_nats_server_is_killed() {
    let mut nats = NatsServer::start();
    let upstream = moody();
    let hookgate = setup(&on(&nats), &upstream).start();
    let senders = Senders::start(&hookgate);
    let mut random = fastrand::Rng::with_seed(7);
    let kills = 5;
    for _ in 0..kills {
        thread::park_timeout(Duration::from_millis(random.u64(200..600)));
        nats.restart();
        eventually("it is ready again", || (hookgate.ops("/readyz").status == 200).then_some(()));
    }
    let promised = senders.end().promised;
    assert_kept(&promised, &upstream, kills);
}

/// For how long NATS is cut off.
fn cut_length() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "the length of a test is nobody's configuration")]
    Duration::from_secs(std::env::var("HOOKGATE_CUT_SECONDS").map_or(2, |seconds| seconds.parse().unwrap()))
}

/// No sender waits longer for its answer: the limit of a commit, and what a busy machine adds to it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

fn survive_a_cut(how: Cut) {
    let nats = NatsServer::start();
    let proxy = Proxy::start(nats.address());
    let upstream = moody();
    let hookgate = setup(&on_url(&proxy.url()), &upstream).start();
    let readiness = |status| {
        eventually(&format!("readiness is {status}"), || {
            (hookgate.ops("/readyz").status == status).then_some(())
        });
    };
    readiness(200);
    let senders = Senders::start(&hookgate);
    senders.go_on(50);
    let began = Instant::now();
    proxy.cut(how);
    readiness(503);
    let noticed = began.elapsed();
    while let Some(left) = cut_length().checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
        assert_eq!(hookgate.ops("/readyz").status, 503, "it is cut off");
    }
    let began = Instant::now();
    proxy.mend();
    readiness(200);
    println!("{how:?}: not ready after {noticed:?}, ready {:?} after its end", began.elapsed());
    senders.go_on(50);
    let sent = senders.end();
    println!("{} refused, the slowest answer after {:?}", sent.refused, sent.slowest);
    // What comes late may still come in time.
    assert!(sent.refused > 0 || how == Cut::Held);
    assert!(sent.slowest < ANSWERED_WITHIN, "{:?}", sent.slowest);
    assert_kept(&sent.promised, &upstream, 1);
}

#[test]
fn nothing_accepted_is_lost_when_connections_to_nats_are_refused() {
    survive_a_cut(Cut::Refused);
}

#[test]
fn nothing_accepted_is_lost_when_all_that_is_sent_to_nats_disappears() {
    survive_a_cut(Cut::Swallowed);
}

#[test]
fn nothing_accepted_is_lost_when_all_that_is_sent_to_nats_comes_late() {
    survive_a_cut(Cut::Held);
}

/// What a stream says of itself: its leader, and how many copies there are that have everything.
fn looked_at(url: &str, stream: &str) -> Option<(String, usize, usize)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let servers: Vec<_> = url.split(',').map(str::to_owned).collect();
        let client = async_nats::connect(servers).await.ok()?;
        let stream = async_nats::jetstream::new(client).get_stream(stream).await.ok()?;
        let info = stream.cached_info();
        let cluster = info.cluster.as_ref()?;
        let current = cluster.replicas.iter().filter(|peer| peer.current && !peer.offline).count();
        Some((cluster.leader.clone()?, info.config.num_replicas, current + 1))
    })
}

/// The server that leads the deliveries is killed under load, and after it has come back its successor.
#[test]
fn nothing_accepted_is_lost_when_a_server_of_a_cluster_is_killed() {
    let mut nats = NatsCluster::start();
    let url = nats.url();
    let upstream = moody();
    let queue = format!("{}\nreplicas = 3", on_url(&url));
    let hookgate = setup(&queue, &upstream).start();
    let is_ready = || eventually("it is ready", || (hookgate.ops("/readyz").status == 200).then_some(()));
    is_ready();
    let leader = || {
        for stream in ["HOOKGATE_JOBS", "HOOKGATE"] {
            eventually("three servers have everything", || {
                let (_, replicas, current) = looked_at(&url, stream)?;
                assert_eq!(replicas, 3);
                (current == 3).then_some(())
            });
        }
        looked_at(&url, "HOOKGATE").unwrap().0
    };
    let senders = Senders::start(&hookgate);
    let mut leaders = Vec::new();
    for _ in 0..2 {
        senders.go_on(50);
        let name = leader();
        nats.server(&name).kill();
        // Two are enough.
        senders.go_on(50);
        is_ready();
        nats.server(&name).restart();
        leaders.push(name);
    }
    leader();
    senders.go_on(50);
    let sent = senders.end();
    println!("{leaders:?}: {} refused, the slowest answer after {:?}", sent.refused, sent.slowest);
    assert!(sent.slowest < ANSWERED_WITHIN, "{:?}", sent.slowest);
    assert_kept(&sent.promised, &upstream, leaders.len());
}

/// Three services on one queue: each delivery is made once, and when one of them is killed nothing is lost.
#[test]
fn replicas_share_the_work_and_one_may_die() {
    let nats = NatsServer::start();
    let upstream = Upstream::always(Reply::ok());
    let replicas: Vec<_> = (0..3).map(|_| setup(&on(&nats), &upstream).start()).collect();
    for replica in &replicas {
        eventually("it is ready", || (replica.ops("/readyz").status == 200).then_some(()));
    }
    let deliveries: Vec<_> = (0..150).map(|number| format!("shared-{number}")).collect();
    for (id, replica) in deliveries.iter().zip(replicas.iter().cycle()) {
        assert_eq!(try_to_send(&Delivery::good().id(id), replica.address()), Some(202));
    }
    // A copy is known whichever replica it comes to.
    replicas[1].send(&Delivery::good().id("shared-0")).assert_own("duplicate");
    let seen = upstream.wait_for(150);
    for replica in &replicas {
        replica.wait_for_metric(
            "hookgate_queue_depth",
            &[("webhook", "esc"), ("destination", "default")],
            0.0,
        );
    }
    let mut ids: Vec<_> = seen.iter().map(|request| id(request).to_owned()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), upstream.requests().len()), (150, 150));
    let shares: Vec<_> = replicas
        .iter()
        .map(|replica| {
            let labels = [("webhook", "esc"), ("destination", "default"), ("result", "delivered")];
            replica.metrics().value("hookgate_attempts_total", &labels).unwrap()
        })
        .collect();
    assert!(shares.iter().all(|share| *share > 0.0), "{shares:?}");

    let mut promised = Vec::new();
    for number in 0..60 {
        // None that a moody upstream would refuse.
        let id = format!("survivor-{number}-x");
        let replica = &replicas[number % 3];
        if number == 30 {
            replicas[0].signal("KILL");
        }
        if try_to_send(&Delivery::good().id(&id), replica.address()) == Some(202) {
            promised.push(id);
        }
    }
    assert_kept(&promised, &upstream, 1);
}

/// Two services and three under load, of which one after the other is killed and comes back.
#[test]
fn nothing_accepted_is_lost_when_replicas_are_killed() {
    const NAMES: [&str; 3] = ["first", "second", "third"];

    for count in [2, 3] {
        let nats = NatsServer::start();
        let upstream = moody();
        let mut replicas: Vec<_> = (0..count).map(|_| setup(&on(&nats), &upstream).start()).collect();
        let senders: Vec<_> =
            NAMES.iter().zip(&replicas).map(|(name, replica)| Senders::called(name, replica)).collect();
        let kills = 2 * count;
        for kill in 0..kills {
            // All are at work.
            senders.iter().for_each(|senders| senders.go_on(25));
            replicas[kill % count].restart("KILL");
            senders[kill % count].moved(&replicas[kill % count]);
        }
        let promised: Vec<_> = senders.into_iter().flat_map(|senders| senders.end().promised).collect();
        println!("{count} replicas:");
        assert_kept(&promised, &upstream, kills);
    }
}

/// The system calls of the service say that the commit is on the disk before the sender is told so.
#[test]
fn each_202_follows_a_flush_of_the_disk() {
    if cannot("strace") {
        return;
    }
    const CALLS: &str = "trace=recvfrom,read,fsync,fdatasync,writev,sendto,write";

    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = setup(SQLITE, &upstream)
        .launched_by(&["strace", "-D", "-f", "-s", "64", "-e", CALLS, "-o", "{dir}/calls"])
        .start();
    let mut connection = Connection::open(hookgate.address());
    for _ in 0..20 {
        connection.send(&Delivery::good().bytes());
        assert_eq!(connection.answer().said(), (202, "queued"));
    }
    upstream.wait_for(20);
    drop(connection);
    hookgate.signal("TERM");
    hookgate.wait_exit();
    let path = hookgate.dir().join("calls");
    let calls = eventually("the tracer's last line", || {
        let calls = std::fs::read_to_string(&path).unwrap();
        calls.contains("+++ exited with").then_some(calls)
    });
    let (mut answers, mut flushed) = (0, false);
    for call in calls.lines() {
        // A call that another thread interrupts in the trace is done where it is resumed.
        let done = !call.contains("<unfinished");
        if call.contains("POST /hook HTTP/1.1") {
            flushed = false;
        } else if done && (call.contains("fdatasync") || call.contains("fsync")) && call.ends_with("= 0") {
            flushed = true;
        } else if call.contains("HTTP/1.1 202 ") {
            assert!(flushed, "a 202 before the flush:\n{calls}");
            answers += 1;
        }
    }
    assert_eq!(answers, 20, "{calls}");
}
