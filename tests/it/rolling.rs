//! A rolling restart: two instances behind one port, one restarted after the other under steady load, and no request
//! fails.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use crate::support::{Address, Connection, Delivery, Hookgate, Reply, Setup, TempDir, Upstream, eventually};

/// How often each instance is restarted.
const ROUNDS: usize = 10;

/// How many deliveries an instance that was restarted has forwarded before the other one is restarted.
const STEADY: f64 = 50.0;

/// Between two deliveries of a sender: a steady load, not the most that the machine can do.
const PAUSE: Duration = Duration::from_millis(2);

/// Two instances in front of one service.
struct Pair {
    upstream: Upstream,
    instances: Vec<Hookgate>,
}

impl Pair {
    fn start() -> Self {
        let upstream = Upstream::always(Reply::ok());
        let instances = (0..2).map(|_| Setup::new(&upstream).server(DRAIN).start()).collect();
        Self { upstream, instances }
    }

    /// Where each listens, after each restart too: for deliveries, and for probes.
    fn addresses(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let tcp = |address: &Address| match address {
            Address::Tcp(address) => *address,
            Address::Unix(path) => panic!("{path:?}"),
        };
        self.instances.iter().map(|instance| (tcp(instance.address()), tcp(instance.ops_address()))).collect()
    }

    /// Ends each instance and starts it anew on its addresses, one after the other, several times.
    fn restart_in_turns(&mut self) {
        let addresses = self.addresses();
        for _ in 0..ROUNDS {
            for (instance, (webhook, ops)) in self.instances.iter_mut().zip(&addresses) {
                instance.signal("TERM");
                assert_eq!(instance.wait_exit().code(), Some(0));
                *instance = Setup::new(&self.upstream)
                    .server(DRAIN)
                    .listen(&webhook.to_string())
                    .ops_listen(&ops.to_string())
                    .start();
                assert_eq!(instance.ops("/readyz").status, 200);
                eventually("it is back in service", || {
                    let labels = [("webhook", "hook"), ("outcome", "forwarded")];
                    let served = instance.metrics().value("hookgate_requests_total", &labels);
                    (served.unwrap() >= STEADY).then_some(())
                });
            }
        }
    }
}

const DRAIN: &str = "drain_timeout = \"15s\"";

/// Senders that stop when they are told to. Each returns the IDs of what was answered 200.
fn under_load(front: &Address, work: impl FnOnce()) -> BTreeSet<String> {
    let over = AtomicBool::new(false);
    let sender = |keep: bool| {
        let over = &over;
        move || {
            let mut sent = Vec::new();
            let mut kept = None;
            while !over.load(SeqCst) {
                let delivery = Delivery::good();
                let connection: &mut Connection = kept.get_or_insert_with(|| Connection::open(front));
                connection.send(&delivery.bytes());
                let answer = connection
                    .try_answer()
                    .unwrap_or_else(|| panic!("no answer to the last of {} (kept: {keep})", sent.len() + 1));
                answer.assert_forwarded(200);
                sent.push(delivery.header_value("pulumi-webhook-id").to_owned());
                let last = answer.header("connection").is_some_and(|it| it.eq_ignore_ascii_case("close"));
                if !keep || last {
                    kept = None;
                }
                thread::park_timeout(PAUSE);
            }
            sent
        }
    };
    thread::scope(|scope| {
        let senders: Vec<_> = [true, true, true, false, false, false]
            .map(|keep| scope.spawn(sender(keep)))
            .into_iter()
            .collect();
        let stop = Stop(&over);
        work();
        drop(stop);
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
    })
}

/// Stops the senders, also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Whatever was answered 200 was delivered, once, and nothing else was.
fn assert_exact(upstream: &Upstream, sent: &BTreeSet<String>) {
    let delivered: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| request.header("pulumi-webhook-id").unwrap().to_owned())
        .collect();
    println!("{} deliveries in {} restarts", sent.len(), 2 * ROUNDS);
    assert!(sent.len() > 100, "{} deliveries are too few", sent.len());
    assert_eq!(delivered.len(), sent.len());
    assert_eq!(&delivered.into_iter().collect::<BTreeSet<_>>(), sent);
}

/// A proxy on one port: each connection goes to the next instance, or to the other one where that refuses.
struct Proxy(SocketAddr);

impl Proxy {
    fn start(instances: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (instances, next) = (Arc::new(instances), AtomicUsize::new(0));
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let (instances, first) = (Arc::clone(&instances), next.fetch_add(1, SeqCst));
                thread::spawn(move || {
                    let in_turn =
                        (0..instances.len()).map(|turn| instances[(first + turn) % instances.len()]);
                    let connected = in_turn.into_iter().find_map(|address| TcpStream::connect(address).ok());
                    join(&client, &connected.expect("one of the two listens"));
                });
            }
        });
        Self(address)
    }
}

/// Carries bytes both ways until both sides are done.
fn join(client: &TcpStream, instance: &TcpStream) {
    let carry = |mut from: &TcpStream, mut to: &TcpStream| {
        let mut buffer = [0; 16 << 10];
        let done: io::Result<()> = (|| {
            loop {
                let count = from.read(&mut buffer)?;
                if count == 0 {
                    return to.shutdown(Shutdown::Write);
                }
                to.write_all(&buffer[..count])?;
            }
        })();
        if done.is_err() {
            drop(to.shutdown(Shutdown::Both));
        }
    };
    client.set_nodelay(true).unwrap();
    instance.set_nodelay(true).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| carry(client, instance));
        carry(instance, client);
    });
}

#[test]
fn no_request_fails_behind_a_tcp_proxy() {
    let mut pair = Pair::start();
    let proxy = Proxy::start(pair.addresses().into_iter().map(|(webhook, _)| webhook).collect());
    let sent = under_load(&Address::Tcp(proxy.0), || pair.restart_in_turns());
    assert_exact(&pair.upstream, &sent);
}

/// HAProxy, on a unix socket, asking `/readyz` ten times a second.
struct HaProxy {
    child: Child,
    socket: Address,
    _dir: TempDir,
}

impl HaProxy {
    fn start(instances: &[(SocketAddr, SocketAddr)]) -> Self {
        let dir = TempDir::new();
        let socket = dir.path().join("front.sock");
        let servers: Vec<_> = (1..)
            .zip(instances)
            .map(|(number, (webhook, ops))| format!("  server s{number} {webhook} port {}", ops.port()))
            .collect();
        let config = format!(
            "defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
  timeout check 5s
  retries 3
  option redispatch 1
frontend front
  bind unix@{}
  default_backend back
backend back
  balance roundrobin
  option httpchk GET /readyz
  default-server check inter 100ms fall 2 rise 1
{}
",
            socket.display(),
            servers.join("\n"),
        );
        let path = dir.write("haproxy.cfg", config);
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("HAProxy: tests/run installs it");
        let this = Self { child, socket: Address::Unix(socket), _dir: dir };
        eventually("HAProxy listens", || this.socket.connect().is_ok().then_some(()));
        this
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn no_request_fails_behind_haproxy() {
    let mut pair = Pair::start();
    let proxy = HaProxy::start(&pair.addresses());
    let sent = under_load(&proxy.socket, || pair.restart_in_turns());
    assert_exact(&pair.upstream, &sent);
}
