//! What a request costs hookgate, and what it costs HAProxy to do as much of the same as it can.
//!
//! `cargo bench --bench compare`, with `haproxy` (2.4 or later) in the PATH. Everything is on 127.0.0.1: an upstream
//! and the senders are in this program; the two proxies are processes of their own, each pinned to one core by
//! `taskset` where there is one, this program to the others. HAProxy verifies the signature, looks at ID and kind, and
//! forwards; hookgate does that and the rest of its job. Beside them stands hyper alone, which hookgate is built on: a
//! proxy in a few lines that hands on whatever comes and checks nothing, so what no program on hyper gets below.
//!
//! Every round goes through all cases, and in each through all proxies, so that what else the machine does falls on all
//! of them. What is compared is CPU time: that of all threads of a proxy, user and kernel, from
//! `/proc/PID/task/*/schedstat`, for each request answered. Ratios are taken round by round; printed is their median.
//!
//! Options, behind `--`: `--rounds N`, `--secs S`, `--hookgate PATH` for another binary.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a program for people at their own machine, which measures real time and ends with its processes"
)]

#[path = "support/bare.rs"]
mod bare;
#[path = "support/load.rs"]
mod load;

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hookgate::webhook::event::Event;
use load::{Request, SECRET, ask, body, event, median, signature, upstream};
use tokio::{
    net::TcpStream,
    runtime::{Builder, Runtime},
    task::JoinSet,
};

/// Connections that send.
const SENDERS: usize = 64;
/// Connections that are held for the memory of one.
const HELD: usize = 1000;
/// No wait is longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// HAProxy's key is base64; this is `the secret of the benches`.
const SECRET_BASE64: &str = "dGhlIHNlY3JldCBvZiB0aGUgYmVuY2hlcw==";

/// Of bodies, in bytes.
const SIZES: [usize; 3] = [400, 4 << 10, 64 << 10];

/// What is sent, and what must come back.
struct Case {
    name: &'static str,
    size: usize,
    change: Change,
    /// The first digit of the status.
    class: u8,
    /// The proxies that can do it.
    proxies: &'static [Proxy],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Forged,
    Unsigned,
    Unwanted,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Proxy {
    /// HAProxy as it comes.
    Small,
    /// With buffers of 128 KiB: HAProxy checks a body only if it fits into one.
    Large,
    Hookgate,
    /// With a line in the log for each delivery, as it is by default.
    HookgateLog,
    /// hyper alone, without any check.
    Bare,
}

const SMALL: &[Proxy] = &[Proxy::Small, Proxy::Hookgate, Proxy::HookgateLog];
const SMALL_AND_BARE: &[Proxy] = &[Proxy::Small, Proxy::Hookgate, Proxy::HookgateLog, Proxy::Bare];
const LARGE_AND_BARE: &[Proxy] = &[Proxy::Large, Proxy::Hookgate, Proxy::HookgateLog, Proxy::Bare];
const ALL: [Proxy; 5] = [Proxy::Small, Proxy::Large, Proxy::Hookgate, Proxy::HookgateLog, Proxy::Bare];

/// Makes this program hyper alone: behind it, the port to listen on and the upstream.
const BARE: &str = "--bare";

fn cases() -> [Case; 6] {
    let case =
        |name, size: usize, change, class, proxies| Case { name, size: SIZES[size], change, class, proxies };
    [
        case("accepted, 400 B", 0, Change::Nothing, b'2', SMALL_AND_BARE),
        case("accepted, 4 KiB", 1, Change::Nothing, b'2', SMALL_AND_BARE),
        case("accepted, 64 KiB", 2, Change::Nothing, b'2', LARGE_AND_BARE),
        case("wrong signature", 0, Change::Forged, b'4', SMALL),
        case("no signature", 0, Change::Unsigned, b'4', SMALL),
        case("event not wanted", 0, Change::Unwanted, b'2', SMALL),
    ]
}

impl Proxy {
    const fn name(self) -> &'static str {
        match self {
            Self::Small => "HAProxy",
            Self::Large => "HAProxy, 128 KiB buffers",
            Self::Hookgate => "hookgate, log at `warn`",
            Self::HookgateLog => "hookgate, log at `info`",
            Self::Bare => "hyper alone, no checks",
        }
    }

    /// Its configuration, and how it is started.
    fn command(self, hookgate: &Path, folder: &Path, port: u16, upstream: SocketAddr) -> Command {
        let config = folder.join(format!("{self:?}"));
        let (text, mut command) = match self {
            Self::Small | Self::Large => {
                let size = if self == Self::Small { 16 << 10 } else { 128 << 10 };
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f"]).arg(&config);
                (haproxy(port, upstream, size), command)
            }
            Self::Hookgate | Self::HookgateLog => {
                let level = if self == Self::Hookgate { "warn" } else { "info" };
                let mut command = Command::new(hookgate);
                command
                    .args(["run", "--config"])
                    .arg(&config)
                    .env("COMPARE_SECRET", SECRET)
                    .env_remove("RUST_LOG");
                (hookgate_toml(port, upstream, level), command)
            }
            Self::Bare => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args([BARE, &port.to_string(), &upstream.to_string()]);
                (String::new(), command)
            }
        };
        fs::write(config, text).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

fn haproxy(port: u16, upstream: SocketAddr, size: usize) -> String {
    format!(
        r#"global
    nbthread 1
    maxconn 4000
    tune.bufsize {size}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-request 60s
    timeout http-keep-alive 60s
    http-reuse always
frontend in
    bind 127.0.0.1:{port}
    option http-buffer-request
    http-request set-var(txn.sig) req.hdr(Pulumi-Webhook-Signature),lower
    http-request return status 401 unless {{ var(txn.sig) -m len 64 }}
    http-request set-var(txn.mac) req.body,hmac(sha256,"{SECRET_BASE64}"),hex,lower
    http-request return status 401 unless {{ var(txn.mac),secure_memcmp(txn.sig) }}
    http-request return status 400 unless {{ req.hdr(Pulumi-Webhook-ID) -m found }} {{ req.hdr(Pulumi-Webhook-Kind) -m found }}
    http-request return status 204 unless {{ req.hdr(Pulumi-Webhook-Kind) -m str environment_revision }}
    default_backend up
backend up
    server one {upstream} pool-max-conn -1 pool-purge-delay 60s
"#
    )
}

fn hookgate_toml(port: u16, upstream: SocketAddr, level: &str) -> String {
    format!(
        r#"[server]
listen = "127.0.0.1:{port}"
max_connections = 4000
[ops]
listen = "127.0.0.1:0"
[log]
level = "{level}"
[[webhook]]
path = "/hook"
secret = {{ env = "COMPARE_SECRET" }}
events = ["environment_revision"]
[[webhook.destination]]
url = "http://{upstream}/hook"
"#
    )
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, flag, port, upstream] = &arguments[..]
        && flag == BARE
    {
        return bare::serve(port.parse().unwrap(), upstream.parse().unwrap());
    }
    let options = Options::read();
    let Some(version) = haproxy_version() else {
        println!("compare: skipped: there is no haproxy in the PATH");
        return;
    };
    let folder = std::env::temp_dir().join(format!("hookgate-compare-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let pinned = pin_ourselves();
    let upstream = upstream(|_| {});
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let running: Vec<_> = ALL
        .into_iter()
        .map(|proxy| Running::start(proxy, &options.hookgate, &folder, upstream, pinned))
        .collect();

    let cases = cases();
    for case in &cases {
        for proxy in running.iter().filter(|running| case.proxies.contains(&running.proxy)) {
            proxy.check(&runtime, case);
        }
    }
    let mut costs = vec![vec![Vec::new(); ALL.len()]; cases.len()];
    for _ in 0..options.rounds {
        for (case, costs) in cases.iter().zip(&mut costs) {
            for (proxy, costs) in running.iter().zip(costs) {
                if case.proxies.contains(&proxy.proxy) {
                    costs.push(proxy.cost(&runtime, case, options.length));
                }
            }
        }
    }
    println!("{}\n", setting(&version, &options, pinned));
    print_costs(&cases, &costs);
    print_memory(&runtime, &running);
    drop(running);
    fs::remove_dir_all(folder).unwrap();
}

struct Options {
    rounds: usize,
    length: Duration,
    hookgate: PathBuf,
}

impl Options {
    fn read() -> Self {
        let arguments: Vec<_> = std::env::args().collect();
        let after = |name: &str| {
            arguments.iter().position(|argument| argument == name).map(|at| arguments[at + 1].as_str())
        };
        Self {
            rounds: after("--rounds").map_or(5, |text| text.parse().unwrap()),
            length: Duration::from_secs_f64(after("--secs").map_or(1.0, |text| text.parse().unwrap())),
            hookgate: after("--hookgate").unwrap_or(env!("CARGO_BIN_EXE_hookgate")).into(),
        }
    }
}

/// What was measured, where and how.
fn setting(version: &str, options: &Options, pinned: bool) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown processor");
    let date = Command::new("date").args(["-u", "+%F"]).output().unwrap().stdout;
    format!(
        "{}: {}, {} cores, Linux {}; {version}; {} rounds of {:?}, {SENDERS} connections, each proxy on one thread{}.",
        String::from_utf8(date).unwrap().trim(),
        model.trim_start_matches(['\t', ' ', ':']),
        thread::available_parallelism().map_or(1, Into::into).max(cpu.matches("processor\t").count()),
        read("/proc/sys/kernel/osrelease").trim(),
        options.rounds,
        options.length,
        if pinned { " on core 0" } else { "" },
    )
}

fn haproxy_version() -> Option<String> {
    let output = Command::new("haproxy").arg("-v").output().ok()?.stdout;
    let first = String::from_utf8(output).ok()?.lines().next()?.to_owned();
    Some(first.split(" - ").next()?.to_owned())
}

/// Leaves core 0 to the proxies. Not where there is one core or no `taskset`.
fn pin_ourselves() -> bool {
    let cores = thread::available_parallelism().map_or(1, Into::into);
    cores > 1
        && Command::new("taskset")
            .args(["-a", "-cp", &format!("1-{}", cores - 1), &std::process::id().to_string()])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

/// A proxy at work. Ended on drop.
struct Running {
    proxy: Proxy,
    child: Child,
    address: SocketAddr,
    at_start: u64,
}

impl Running {
    fn start(proxy: Proxy, hookgate: &Path, folder: &Path, upstream: SocketAddr, pinned: bool) -> Self {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let command = proxy.command(hookgate, folder, address.port(), upstream);
        let mut pinning = Command::new("taskset");
        let command = if pinned {
            pinning.args(["-c", "0"]).arg(command.get_program()).args(command.get_args());
            pinning
                .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
                .env_remove("RUST_LOG");
            pinning.stdin(Stdio::null()).stdout(Stdio::null())
        } else {
            &mut { command }
        };
        let child = command.spawn().unwrap();
        let mut running = Self { proxy, child, address, at_start: 0 };
        let start = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < PATIENCE, "{} does not listen", proxy.name());
            thread::park_timeout(Duration::from_millis(10));
        }
        running.at_start = running.memory("VmRSS");
        running
    }

    /// One of the figures in `/proc/PID/status`, in KiB.
    fn memory(&self, name: &str) -> u64 {
        let file = fs::File::open(format!("/proc/{}/status", self.child.id())).unwrap();
        let mut lines = BufReader::new(file).lines().map_while(Result::ok);
        let line = lines.find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Nanoseconds on a processor so far.
    fn cpu(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        // A thread may end between being listed and being read.
        let read =
            |task: io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("schedstat")).ok();
        tasks.filter_map(read).map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// It does what the case is about.
    fn check(&self, runtime: &Runtime, case: &Case) {
        let status = runtime.block_on(async {
            let mut connection = TcpStream::connect(self.address).await.unwrap();
            ask(&mut connection, &request(case), &mut Vec::new()).await.unwrap().0
        });
        assert_eq!(status[0], case.class, "{}, {}", self.proxy.name(), case.name);
    }

    /// Microseconds of CPU for a request.
    fn cost(&self, runtime: &Runtime, case: &Case, length: Duration) -> f64 {
        let before = self.cpu();
        let answered = runtime.block_on(async {
            let mut senders = JoinSet::new();
            let end = Instant::now() + length;
            for _ in 0..SENDERS {
                senders.spawn(send(self.address, request(case), case.class, end));
            }
            senders.join_all().await.into_iter().sum::<u64>()
        });
        let spent = self.cpu() - before;
        assert!(answered > 0, "{} answered nothing", self.proxy.name());
        micros(spent) / micros(answered * 1000)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn micros(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64() * 1e6
}

/// Sends until the end, anew where the proxy closes, and counts the answers.
async fn send(address: SocketAddr, request: Request, class: u8, end: Instant) -> u64 {
    let (mut answered, mut buffer) = (0, Vec::new());
    let mut connection = None;
    while Instant::now() < end {
        let mut socket = match connection.take() {
            Some(socket) => socket,
            None => TcpStream::connect(address).await.unwrap(),
        };
        // A proxy may close while the next request is on its way; that one is not counted.
        let Ok((status, open)) = ask(&mut socket, &request, &mut buffer).await else { continue };
        assert_eq!(status[0], class, "{}", String::from_utf8_lossy(&status));
        answered += 1;
        connection = open.then_some(socket);
    }
    answered
}

/// What a case sends.
fn request(case: &Case) -> Request {
    let body = body(case.size);
    let signature = match case.change {
        Change::Nothing | Change::Unwanted => Some(signature(&body)),
        Change::Forged => Some("0".repeat(64)),
        Change::Unsigned => None,
    };
    // The body stays: what kind it is told to be decides whether it is wanted.
    let kind = match case.change {
        Change::Unwanted => Event::find("policy_violation_mandatory").unwrap().sample_kind(),
        _ => event().sample_kind(),
    };
    Request::new(kind, signature.as_deref(), &body)
}

/// Microseconds, and behind them the ratio to HAProxy.
fn print_costs(cases: &[Case], costs: &[Vec<Vec<f64>>]) {
    let names = SMALL_AND_BARE.iter().map(|proxy| proxy.name()).collect::<Vec<_>>().join(" | ");
    println!("| CPU for a request, microseconds: median (least to most), ratio | {names} |");
    println!("|{}", " --- |".repeat(1 + SMALL_AND_BARE.len()));
    for (case, costs) in cases.iter().zip(costs) {
        let of = |proxy| &costs[ALL.iter().position(|one| *one == proxy).unwrap()];
        let base = of(case.proxies[0]);
        let mut row = String::new();
        for proxy in case.proxies {
            let own = of(*proxy);
            let least = own.iter().copied().fold(f64::INFINITY, f64::min);
            let most = own.iter().copied().fold(0.0, f64::max);
            let ratios: Vec<_> = own.iter().zip(base).map(|(own, base)| own / base).collect();
            write!(row, " {:.1} ({least:.1} to {most:.1}), {:.2} |", median(own), median(&ratios)).unwrap();
        }
        row.push_str(&" |".repeat(SMALL_AND_BARE.len() - case.proxies.len()));
        let name = case.name;
        let note = if case.proxies[0] == Proxy::Large { " (HAProxy with 128 KiB buffers)" } else { "" };
        println!("| {name}{note} |{row}");
    }
}

/// At the start, at most so far, and for each of many idle connections that were used once.
fn print_memory(runtime: &Runtime, running: &[Running]) {
    println!(
        "\n| memory, resident | at the start, KiB | at most under these loads, KiB | an idle connection, bytes |"
    );
    println!("| --- | --- | --- | --- |");
    let case = &cases()[0];
    for proxy in running {
        let most = proxy.memory("VmHWM");
        let before = proxy.memory("VmRSS");
        let held: Vec<_> = runtime.block_on(async {
            let mut held = Vec::with_capacity(HELD);
            for _ in 0..HELD {
                let mut connection = TcpStream::connect(proxy.address).await.unwrap();
                ask(&mut connection, &request(case), &mut Vec::new()).await.unwrap();
                held.push(connection);
            }
            // What it does with connections that rest, it does by then.
            tokio::time::sleep(Duration::from_secs(3)).await;
            held
        });
        let after = proxy.memory("VmRSS");
        let each = after.saturating_sub(before) * 1024 / u64::try_from(held.len()).unwrap();
        println!("| {} | {} | {most} | {each} |", proxy.proxy.name(), proxy.at_start);
    }
}
