//! How long a good delivery takes while thousands of connections do nothing.
//!
//! `cargo bench --bench flood`, with `nginx` and `haproxy` in the PATH; what is missing is left out. Each program listens
//! on 127.0.0.1, takes 1,024 connections and gives a head and a body 5 s. Attackers open connections, say nothing or stop
//! in the middle, and come back as soon as they are closed. Meanwhile one sender delivers over a connection of its own each
//! time; what is printed is the time from its connect to its answer. For hookgate a probe asks the ops listener too, which
//! has attackers of its own. Attackers, sender and upstream are in this program, so that all of them and the program that
//! is measured share the machine: only the rows of one run can be compared.
//!
//! Options, behind `--`: `--attackers N` (5000), `--secs S` (8), `--hookgate PATH` for another binary.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a program for people at their own machine, which measures real time and ends with its processes"
)]

#[path = "support/load.rs"]
#[expect(dead_code, reason = "not every bench needs all of it")]
mod load;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use load::{SECRET, body, event, id, signature, upstream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Builder,
    task::JoinSet,
};

/// No wait is longer.
const PATIENCE: Duration = Duration::from_secs(40);

/// Between two good deliveries.
const PAUSE: Duration = Duration::from_millis(5);

/// Attackers of the ops listener.
const OPS_ATTACKERS: usize = 1000;

/// What an attacker sends before it waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attack {
    Nothing,
    Silent,
    HalfHead,
    HalfBody,
}

impl Attack {
    const ALL: [Self; 4] = [Self::Nothing, Self::Silent, Self::HalfHead, Self::HalfBody];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Silent => "silent",
            Self::HalfHead => "half a head",
            Self::HalfBody => "half a body",
        }
    }

    fn bytes(self) -> Vec<u8> {
        let head = "POST /hook HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Type: application/json\r\n";
        match self {
            Self::Nothing | Self::Silent => Vec::new(),
            Self::HalfHead => format!("{head}X-Slow: ").into(),
            Self::HalfBody => format!(
                "{head}Pulumi-Webhook-ID: a\r\nPulumi-Webhook-Kind: b\r\nPulumi-Webhook-Signature: {}\r\n\
                 Content-Length: 1000\r\n\r\n{{\"a\":",
                "0".repeat(64)
            )
            .into(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Program {
    Hookgate,
    Nginx,
    HaProxy,
}

impl Program {
    fn start(self, hookgate: &Path, folder: &Path, upstream: SocketAddr) -> Option<Running> {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, ops) = (free(), free());
        let config = folder.join(format!("{self:?}"));
        let here = folder.display();
        let (text, mut command) = match self {
            Self::Hookgate => {
                let mut command = Command::new(hookgate);
                command
                    .args(["run", "--config"])
                    .arg(&config)
                    .env("FLOOD_SECRET", SECRET)
                    .env_remove("RUST_LOG");
                let text = format!(
                    "[server]\nlisten = \"{address}\"\nmax_connections = 1024\nheader_timeout = \"5s\"\n\
                     body_timeout = \"5s\"\n[ops]\nlisten = \"{ops}\"\n[[webhook]]\npath = \"/hook\"\n\
                     secret = {{ env = \"FLOOD_SECRET\" }}\nevents = [\"environment_revision\"]\n\
                     [[webhook.destination]]\nurl = \"http://{upstream}/hook\"\n"
                );
                (text, command)
            }
            Self::Nginx => {
                let mut command = Command::new("nginx");
                command.arg("-c").arg(&config).args(["-p"]).arg(folder);
                let text = format!(
                    "daemon off;\nmaster_process off;\npid {here}/nginx.pid;\nerror_log /dev/null;\n\
                     worker_rlimit_nofile 8192;\nevents {{ worker_connections 1024; }}\n\
                     http {{\naccess_log off;\nclient_header_timeout 5s;\nclient_body_timeout 5s;\n\
                     client_body_temp_path {here}/b;\nproxy_temp_path {here}/p;\nfastcgi_temp_path {here}/f;\n\
                     uwsgi_temp_path {here}/u;\nscgi_temp_path {here}/s;\n\
                     server {{ listen {address} backlog=4096; location / {{ proxy_pass http://{upstream}; }} }}\n}}\n"
                );
                (text, command)
            }
            Self::HaProxy => {
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f"]).arg(&config);
                let text = format!(
                    "global\n    nbthread 1\n    maxconn 1024\ndefaults\n    mode http\n    timeout connect 5s\n    \
                     timeout client 5s\n    timeout server 60s\n    timeout http-request 5s\nfrontend in\n    \
                     bind {address} backlog 4096\n    option http-buffer-request\n    default_backend up\n\
                     backend up\n    server one {upstream}\n"
                );
                (text, command)
            }
        };
        fs::write(config, text).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < PATIENCE, "{self:?} does not listen");
            thread::park_timeout(Duration::from_millis(10));
        }
        Some(Running { child, address, ops: (self == Self::Hookgate).then_some(ops) })
    }
}

/// A program at work. Ended on drop.
struct Running {
    child: Child,
    address: SocketAddr,
    ops: Option<SocketAddr>,
}

impl Running {
    /// The most that was resident so far, in MiB.
    fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Connects, sends `bytes`, and waits to be closed, again and again, until `over`.
fn attack(
    address: SocketAddr,
    attackers: usize,
    bytes: Vec<u8>,
    over: &Arc<AtomicBool>,
    came_back: &Arc<AtomicU64>,
) -> JoinHandle<()> {
    let (over, came_back) = (Arc::clone(over), Arc::clone(came_back));
    let bytes: Arc<[u8]> = bytes.into();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..attackers {
                let (bytes, came_back, over) =
                    (Arc::clone(&bytes), Arc::clone(&came_back), Arc::clone(&over));
                tasks.spawn(async move {
                    while !over.load(Relaxed) {
                        let Ok(mut socket) = tokio::net::TcpStream::connect(address).await else { continue };
                        drop(socket.write_all(&bytes).await);
                        while socket.read(&mut [0; 512]).await.is_ok_and(|length| length > 0) {}
                        came_back.fetch_add(1, Relaxed);
                    }
                });
            }
            while !over.load(Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tasks.shutdown().await;
        });
    })
}

/// The time from a connect to the first line of the answer, and whether that line has `wanted` in it.
fn ask(address: SocketAddr, request: &[u8], wanted: &str) -> (Duration, bool) {
    let start = Instant::now();
    let answered = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(request)?;
        let mut answer = [0; 64];
        let length = socket.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).contains(wanted))
    };
    let good = answered().unwrap_or(false);
    (start.elapsed(), good)
}

fn delivery() -> Vec<u8> {
    let body = body(400);
    let (id, kind, signature) = (id(), event().sample_kind(), signature(&body));
    format!(
        "POST /hook HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Pulumi-Webhook-ID: {id}\r\nPulumi-Webhook-Kind: {kind}\r\nPulumi-Webhook-Signature: {signature}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into()
}

/// Asks again and again until the end. How long each took, and how many failed.
fn keep_asking(length: Duration, mut ask: impl FnMut() -> (Duration, bool)) -> (Vec<Duration>, usize) {
    let start = Instant::now();
    let (mut times, mut failed) = (Vec::new(), 0);
    while start.elapsed() < length {
        let (time, good) = ask();
        times.push(time);
        failed += usize::from(!good);
        thread::park_timeout(PAUSE);
    }
    times.sort_unstable();
    (times, failed)
}

fn shown((times, failed): &(Vec<Duration>, usize)) -> String {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let at = |part: usize| millis(times[(times.len() - 1) * part / 100]);
    format!("{:.1} | {:.1} | {:.1} | {failed} of {}", at(50), at(99), at(100), times.len())
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    let after = |name: &str| {
        arguments.iter().position(|argument| argument == name).map(|at| arguments[at + 1].as_str())
    };
    let attackers: usize = after("--attackers").map_or(5000, |text| text.parse().unwrap());
    let length = Duration::from_secs(after("--secs").map_or(8, |text| text.parse().unwrap()));
    let hookgate: PathBuf = after("--hookgate").unwrap_or(env!("CARGO_BIN_EXE_hookgate")).into();
    // Children inherit it.
    let own = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &own, "--nofile=20000:"]).status();
    assert!(raised.is_ok_and(|status| status.success()), "20,000 descriptors are needed");

    let folder = std::env::temp_dir().join(format!("hookgate-flood-{own}"));
    fs::create_dir_all(&folder).unwrap();
    let upstream = upstream(|_| {});
    println!(
        "{attackers} attackers that come back at once, {length:?} each; milliseconds of a good request\n"
    );
    println!(
        "| attackers | program | median | 99 % | longest | failed | came back, a second | peak memory, MiB |"
    );
    println!("|{}", " --- |".repeat(8));
    for kind in Attack::ALL {
        for program in [Program::Hookgate, Program::Nginx, Program::HaProxy] {
            let Some(running) = program.start(&hookgate, &folder, upstream) else {
                println!("| {} | {program:?} | it cannot be started |", kind.name());
                continue;
            };
            let (over, came_back) = (Arc::default(), Arc::default());
            let mut attacks = Vec::new();
            if kind != Attack::Nothing {
                attacks.push(attack(running.address, attackers, kind.bytes(), &over, &came_back));
                if let Some(ops) = running.ops {
                    attacks.push(attack(ops, OPS_ATTACKERS, kind.bytes(), &over, &Arc::default()));
                }
                // Until the attack has its full strength.
                thread::sleep(Duration::from_secs(2));
            }
            let before = came_back.load(Relaxed);
            let probes = running.ops.map(|ops| {
                thread::spawn(move || {
                    keep_asking(length, || ask(ops, b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n", " 200 "))
                })
            });
            let good = keep_asking(length, || ask(running.address, &delivery(), " 200 "));
            let rate = (came_back.load(Relaxed) - before) / length.as_secs().max(1);
            over.store(true, Relaxed);
            println!("| {} | {program:?} | {} | {rate} | {} |", kind.name(), shown(&good), running.peak());
            if let Some(probes) = probes {
                let probed = probes.join().unwrap();
                println!(
                    "| {}, {OPS_ATTACKERS} on ops | {program:?} /livez | {} | | |",
                    kind.name(),
                    shown(&probed)
                );
            }
            attacks.into_iter().for_each(|attack| attack.join().unwrap());
        }
    }
    fs::remove_dir_all(folder).unwrap();
}
