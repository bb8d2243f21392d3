//! A running service under good, bad, slow and broken traffic with reloads, for as long as one likes.
//!
//! `cargo bench --bench soak`, one minute, or `cargo bench --bench soak -- --minutes 30`. It starts the
//! program, optimised, and an upstream, and holds them to four things at the end:
//!
//! - every request that can be answered was answered, and with the outcome that it must have;
//! - every label of `hookgate_requests_total` counts exactly what was sent, also what nobody waited for;
//! - the upstream saw exactly what was forwarded, each delivery once;
//! - memory and file descriptors are flat once the service is warm, and everything is given back at the end.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_types,
    reason = "a program that measures real time and ends with a panic when a promise is broken"
)]

#[path = "support/program.rs"]
mod program;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use hookgate::webhook::{event::Event, secret::Secret, signature::sign};
use program::{Program as Service, signal};

/// Senders at a time.
const SENDERS: usize = 6;
/// A sender's pause between two requests.
const PAUSE: Duration = Duration::from_millis(2);
/// `body_timeout` of the service.
const BODY_TIMEOUT: Duration = Duration::from_millis(700);
/// No wait is longer.
const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "the secret of the soaking";
const OTHER: &str = "another secret, for rotation";

fn main() {
    let length = length();
    let folder = std::env::temp_dir().join(format!("hookgate-soak-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let upstream = Upstream::start();
    let service = start(&folder, upstream.address);
    println!("soaking for {length:?}: service {}, upstream {}", service.webhook, upstream.address);

    let ledger = Arc::new(Ledger::default());
    let over = Arc::new(AtomicBool::new(false));
    let mut threads: Vec<_> = (0..SENDERS)
        .map(|number| {
            let sender = Sender {
                address: service.webhook,
                ledger: Arc::clone(&ledger),
                random: fastrand::Rng::with_seed(number.try_into().unwrap()),
                number,
                sent: 0,
                connection: None,
            };
            let over = Arc::clone(&over);
            thread::spawn(move || sender.run(&over))
        })
        .collect();
    threads.push({
        let (over, folder, address) = (Arc::clone(&over), folder.clone(), upstream.address);
        let pid = service.child.id();
        thread::spawn(move || reload(&folder, pid, address, &over))
    });

    let usage = service.watch(length);
    over.store(true, Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    let counted = service.settled(&ledger);
    ledger.check(&counted, &upstream);
    usage.check(length, &service);
    let status = service.end();
    assert!(status.success(), "the drain was not complete: {status}");
    fs::remove_dir_all(folder).unwrap();
    println!("all accounts agree");
}

/// The number after `--minutes`.
fn length() -> Duration {
    let arguments: Vec<_> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == "--minutes");
    Duration::from_secs_f64(60.0 * at.map_or(1.0, |at| arguments[at + 1].parse().unwrap()))
}

/// What was sent and what came of it, by webhook and label.
#[derive(Default)]
struct Ledger {
    accounts: Mutex<BTreeMap<(&'static str, &'static str), Account>>,
    /// IDs that the upstream must see, and how often at most.
    forwarded: Mutex<HashMap<String, u32>>,
}

#[derive(Default, Debug, Clone, Copy)]
struct Account {
    sent: u64,
    /// Of those, the ones whose sender stayed for the answer.
    awaited: u64,
    answered: u64,
}

impl Ledger {
    fn note(&self, webhook: &'static str, label: &'static str, awaited: bool) {
        let mut accounts = self.accounts.lock().unwrap();
        let account = accounts.entry((webhook, label)).or_default();
        account.sent += 1;
        account.awaited += u64::from(awaited);
    }

    fn answered(&self, webhook: &'static str, label: &'static str) {
        self.accounts.lock().unwrap().entry((webhook, label)).or_default().answered += 1;
    }

    /// What `/metrics` counts is what was sent.
    fn agrees(&self, counted: &HashMap<(String, String), u64>) -> bool {
        let accounts = self.accounts.lock().unwrap();
        let of = |key: &(String, String)| {
            accounts.iter().find(|((w, l), _)| *w == key.0 && *l == key.1).map_or(0, |(_, a)| a.sent)
        };
        counted.iter().all(|(key, count)| of(key) == *count)
            && accounts.keys().all(|(w, l)| counted.contains_key(&((*w).to_owned(), (*l).to_owned())))
    }

    fn check(&self, counted: &HashMap<(String, String), u64>, upstream: &Upstream) {
        println!("\n{:<10} {:<24} {:>9} {:>9} {:>9}", "webhook", "outcome", "sent", "answered", "counted");
        let (mut sent, mut answered) = (0, 0);
        for ((webhook, label), account) in &*self.accounts.lock().unwrap() {
            let counts =
                counted.get(&((*webhook).to_owned(), (*label).to_owned())).copied().unwrap_or_default();
            println!("{webhook:<10} {label:<24} {:>9} {:>9} {counts:>9}", account.sent, account.answered);
            assert_eq!(account.awaited, account.answered, "{label}: answers are missing");
            sent += account.sent;
            answered += account.answered;
        }
        println!("{:<35} {sent:>9} {answered:>9}\n", "together");
        assert!(self.agrees(counted), "the metrics count something else: {counted:#?}");

        let forwarded = self.forwarded.lock().unwrap();
        let seen = upstream.seen.lock().unwrap();
        println!("the upstream saw {} deliveries, {} were forwarded", seen.len(), forwarded.len());
        let right = |(id, most): (&String, &u32)| seen.get(id).is_some_and(|times| times <= most);
        assert!(forwarded.iter().all(right), "a delivery is missing or came twice");
        assert_eq!(forwarded.len(), seen.len(), "something else reached the upstream");
    }
}

/// One sender: picks a request, sends it in its way, and compares the outcome.
struct Sender {
    address: SocketAddr,
    ledger: Arc<Ledger>,
    random: fastrand::Rng,
    number: usize,
    sent: u64,
    connection: Option<BufReader<TcpStream>>,
}

/// A request and the outcome that it must have.
struct Letter {
    webhook: &'static str,
    label: &'static str,
    bytes: Vec<u8>,
}

impl Sender {
    fn run(mut self, over: &AtomicBool) {
        while !over.load(Relaxed) {
            self.one();
            thread::park_timeout(PAUSE);
        }
    }

    fn one(&mut self) {
        match self.random.u32(..1000) {
            0..450 => self.good("environment_created"),
            450..500 => self.good("environment_revision_created"),
            500..560 => self.copies(),
            560..900 => self.odd(),
            900..930 => self.slow(),
            930..940 => self.unfinished(),
            940..970 => self.hang_up(),
            970..990 => self.noise(),
            _ => self.silent_upstream(),
        }
    }

    fn id(&mut self) -> String {
        self.sent += 1;
        format!("soak-{}-{}", self.number, self.sent)
    }

    fn letter(&mut self, event: &str, label: &'static str) -> Letter {
        let id = self.id();
        // On a connection that was open before, silence may mean that it was closed meanwhile: it is sent once more.
        let most = match label {
            "forwarded" => 1,
            "upstream_bad_answer" => 2,
            _ => 0,
        };
        if most > 0 {
            self.ledger.forwarded.lock().unwrap().insert(id.clone(), most);
        }
        let event = Event::find(event).unwrap();
        let padding = " ".repeat(self.random.usize(..8) * self.random.usize(..500));
        let body = event.sample_body() + &padding;
        let right = sign(&Secret::try_new(SECRET.into(), false).unwrap(), body.as_bytes());
        Letter { webhook: "soak", label, bytes: request(&id, event.sample_kind(), &right, &body) }
    }

    fn good(&mut self, event: &str) {
        let letter = self.letter(event, "forwarded");
        self.exchange(&letter);
    }

    /// The same delivery again, and another body under its ID.
    fn copies(&mut self) {
        let letter = self.letter("environment_deleted", "forwarded");
        self.exchange(&letter);
        self.exchange(&Letter { label: "duplicate", ..letter });
        let id = format!("soak-{}-{}", self.number, self.sent);
        let event = Event::find("environment_tag_created").unwrap();
        let body = event.sample_body();
        let right = sign(&Secret::try_new(SECRET.into(), false).unwrap(), body.as_bytes());
        let bytes = request(&id, event.sample_kind(), &right, &body);
        self.exchange(&Letter { webhook: "soak", label: "id_conflict", bytes });
    }

    /// Whatever is not forwarded.
    fn odd(&mut self) {
        let odd: [(&str, &str, &'static str); 15] = [
            ("stack_created", "", "filtered"),
            ("ping", "", "pong"),
            ("Signature: ", "Signature: 00", "bad_signature"),
            ("Pulumi-Webhook-Signature", "X-Signature", "missing_signature"),
            ("Pulumi-Webhook-Id", "X-Id", "missing_header"),
            ("Pulumi-Webhook-Kind: ", "Pulumi-Webhook-Kind: A", "bad_header"),
            ("Kind: environment", "Kind: environment_revision", "kind_mismatch"),
            ("/hook", "/elsewhere", "not_found"),
            ("POST", "PUT", "method_not_allowed"),
            ("application/json", "text/plain", "unsupported_media_type"),
            ("Host: h", "Host: h\r\nHost: h", "bad_request"),
            ("Host: h", "Host: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", "bad_request"),
            ("Content-Length: ", "Content-Length: 99999", "too_large"),
            ("rotated", "", "bad_signature"),
            ("not json", "", "bad_payload"),
        ];
        let (what, with, label) = odd[self.random.usize(..odd.len())];
        let letter = match what {
            "stack_created" | "ping" => self.letter(what, label),
            "rotated" | "not json" => {
                let (id, body) = (self.id(), "[]");
                let secret = if what == "rotated" { "a secret of nobody here" } else { SECRET };
                let right = sign(&Secret::try_new(secret.into(), false).unwrap(), body.as_bytes());
                let bytes = request(&id, "environment", &right, body);
                Letter { webhook: "soak", label, bytes }
            }
            _ => {
                let letter = self.letter("environment_created", label);
                let text = String::from_utf8(letter.bytes).unwrap();
                assert!(text.contains(what), "{what}");
                let webhook = if label == "not_found" { "none" } else { "soak" };
                Letter { webhook, label, bytes: text.replacen(what, with, 1).into_bytes() }
            }
        };
        self.exchange(&letter);
    }

    /// In pieces, with pauses, but whole.
    fn slow(&mut self) {
        let letter = self.letter("environment_tag_updated", "forwarded");
        self.ledger.note(letter.webhook, letter.label, true);
        let mut connection = self.fresh();
        for piece in letter.bytes.chunks(letter.bytes.len() / 5 + 1) {
            connection.get_mut().write_all(piece).unwrap();
            thread::park_timeout(Duration::from_millis(20));
        }
        self.expect(&letter, &mut connection);
    }

    /// A body that does not come to its end.
    fn unfinished(&mut self) {
        let letter = self.letter("environment_created", "timeout");
        self.ledger.note(letter.webhook, letter.label, true);
        let mut connection = self.fresh();
        connection.get_mut().write_all(&letter.bytes[..letter.bytes.len() - 5]).unwrap();
        self.expect(&letter, &mut connection);
    }

    /// Goes away in the middle of the body, or of the head.
    fn hang_up(&mut self) {
        let letter = self.letter("environment_created", "bad_request");
        let mut connection = self.fresh();
        match self.random.u32(..3) {
            // The rest will not come, but the answer is waited for.
            0 => {
                self.ledger.note(letter.webhook, letter.label, true);
                connection.get_mut().write_all(&letter.bytes[..letter.bytes.len() - 5]).unwrap();
                connection.get_mut().shutdown(Shutdown::Write).unwrap();
                self.expect(&letter, &mut connection);
            }
            // Nobody stays for the answer. It is counted all the same.
            1 => {
                self.ledger.note(letter.webhook, letter.label, false);
                connection.get_mut().write_all(&letter.bytes[..letter.bytes.len() - 5]).unwrap();
            }
            // No request yet.
            _ => connection.get_mut().write_all(&letter.bytes[..40]).unwrap(),
        }
    }

    /// What is not HTTP gets a bare 400 or nothing, and counts as no request.
    fn noise(&mut self) {
        let noise: [&[u8]; 3] =
            [b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\r\n\r\n", b"GET\r\n\r\n", b"\0\0\r\n\r\n"];
        let mut connection = self.fresh();
        connection.get_mut().write_all(noise[self.random.usize(..noise.len())]).unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        assert!(
            answer.starts_with(b"HTTP/1.1 400") || answer.is_empty(),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }

    /// The upstream closes the connection instead of answering.
    fn silent_upstream(&mut self) {
        let letter = self.letter("environment_revision_tag_created", "upstream_bad_answer");
        self.exchange(&letter);
    }

    fn fresh(&self) -> BufReader<TcpStream> {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        BufReader::new(socket)
    }

    /// Sends on the connection that is open, if there is one.
    fn exchange(&mut self, letter: &Letter) {
        self.ledger.note(letter.webhook, letter.label, true);
        let mut connection = self.connection.take().unwrap_or_else(|| self.fresh());
        connection.get_mut().write_all(&letter.bytes).unwrap();
        if self.expect(letter, &mut connection) {
            self.connection = Some(connection);
        }
    }

    /// Reads the answer. Whether the connection stays open.
    fn expect(&self, letter: &Letter, connection: &mut BufReader<TcpStream>) -> bool {
        let (mut label, mut length, mut open) = (String::new(), 0, true);
        let mut head = String::new();
        loop {
            let mut line = String::new();
            connection.read_line(&mut line).unwrap();
            assert!(!line.is_empty(), "no answer, {} expected; so far {head:?}", letter.label);
            head += &line;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                if line == "\r\n" {
                    break;
                }
                continue;
            };
            match name.to_ascii_lowercase().as_str() {
                "hookgate-outcome" => label = value.to_owned(),
                "content-length" => length = value.parse().unwrap(),
                "connection" => open = value != "close",
                _ => {}
            }
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body).unwrap();
        assert_eq!(label, letter.label, "{head}{}", String::from_utf8_lossy(&body));
        self.ledger.answered(letter.webhook, letter.label);
        open
    }
}

fn request(id: &str, kind: &str, signature: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /hook HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nPulumi-Webhook-Id: {id}\r\n\
         Pulumi-Webhook-Kind: {kind}\r\nPulumi-Webhook-Signature: {signature}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Takes every request, and answers all but those of one kind.
struct Upstream {
    address: SocketAddr,
    /// How often each ID came.
    seen: Arc<Mutex<HashMap<String, u32>>>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(HashMap::new()));
        let all = Arc::clone(&seen);
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&all);
                thread::spawn(move || serve(socket, &seen));
            }
        });
        Self { address, seen }
    }
}

fn serve(socket: TcpStream, seen: &Mutex<HashMap<String, u32>>) {
    let mut reader = BufReader::new(socket);
    loop {
        let (mut id, mut kind, mut length) = (String::new(), String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or_default() == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.trim_end().split_once(": ") {
                match name.to_ascii_lowercase().as_str() {
                    "pulumi-webhook-id" => id = value.to_owned(),
                    "pulumi-webhook-kind" => kind = value.to_owned(),
                    "content-length" => length = value.parse().unwrap(),
                    _ => {}
                }
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        *seen.lock().unwrap().entry(id).or_default() += 1;
        if kind == "environment_revision_tag" {
            return;
        }
        if reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
            return;
        }
    }
}

/// The program as it is soaked.
fn start(folder: &Path, upstream: SocketAddr) -> Service {
    write(&folder.join("secret"), SECRET);
    write(&folder.join("other"), OTHER);
    let config = configure(folder, upstream, 0);
    Service::start(Path::new(env!("CARGO_BIN_EXE_hookgate")), &config, &[])
}

impl Service {
    fn metrics(&self) -> String {
        self.ops("/metrics")
    }

    /// A metric without labels.
    fn gauge(&self, name: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse().unwrap()
    }

    /// The requests by webhook and label, without those that never came.
    fn counted(&self) -> HashMap<(String, String), u64> {
        let text = self.metrics();
        let rows = text.lines().filter_map(|line| {
            let (labels, count) = line.strip_prefix("hookgate_requests_total{")?.split_once("} ")?;
            let mut values = labels.split('"').skip(1).step_by(2);
            let key = (values.next()?.to_owned(), values.next()?.to_owned());
            Some((key, count.parse().unwrap()))
        });
        rows.filter(|(_, count)| *count > 0).collect()
    }

    /// What is counted once all is quiet: requests that nobody waits for end a moment later.
    fn settled(&self, ledger: &Ledger) -> HashMap<(String, String), u64> {
        let start = Instant::now();
        loop {
            let counted = self.counted();
            let quiet = self.gauge("hookgate_inflight_requests") == 0.0
                && self.gauge("hookgate_inflight_bytes") == 0.0
                && self.gauge("hookgate_connections") == 0.0;
            if quiet && ledger.agrees(&counted) {
                return counted;
            }
            if start.elapsed() > PATIENCE {
                println!("not quiet after {PATIENCE:?}:\n{}", self.metrics());
                return counted;
            }
            thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn usage(&self) -> (u64, usize) {
        let pid = self.child.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes = line.trim().trim_end_matches(" kB").parse().unwrap();
        (kilobytes, fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
    }

    /// Looks at memory and descriptors until the time is over.
    fn watch(&self, length: Duration) -> Usage {
        let before = self.usage().1;
        let start = Instant::now();
        let mut seen = Vec::new();
        while start.elapsed() < length {
            thread::park_timeout(Duration::from_millis(250));
            seen.push(self.usage());
        }
        Usage { before, seen }
    }
}

struct Usage {
    /// Descriptors at the start.
    before: usize,
    /// Kilobytes and descriptors over time.
    seen: Vec<(u64, usize)>,
}

impl Usage {
    /// The last third beside the second one; the first one warms up.
    fn check(&self, length: Duration, service: &Service) {
        let third = self.seen.len() / 3;
        let most = |part: &[(u64, usize)]| {
            (part.iter().map(|(kb, _)| *kb).max().unwrap(), part.iter().map(|(_, fds)| *fds).max().unwrap())
        };
        let (early, late) = (most(&self.seen[third..2 * third]), most(&self.seen[2 * third..]));
        let (resident, descriptors) = service.usage();
        println!(
            "resident at most: {} kB in the second third, {} kB in the last, {resident} kB now",
            early.0, late.0
        );
        println!(
            "descriptors at most: {} in the second third, {} in the last; {} at the start, {descriptors} now",
            early.1, late.1, self.before
        );
        println!("reloads: {} failed on purpose", service.reloads("failure"));
        assert!(late.0 <= early.0 + early.0 / 20 + 1024, "memory grows");
        // As many senders as ever may have come together by chance.
        assert!(late.1 <= early.1 + 2 * SENDERS, "descriptors grow");
        // What is left are idle connections to the upstream, at most one for each sender and thread.
        assert!(descriptors <= self.before + 4 * SENDERS, "descriptors are not given back");
        if length >= Duration::from_secs(20) {
            assert!(
                service.reloads("success") > 5 && service.reloads("failure") > 0,
                "there were no reloads"
            );
        }
    }
}

impl Service {
    fn reloads(&self, result: &str) -> u64 {
        let name = format!("hookgate_config_reloads_total{{result=\"{result}\"}} ");
        self.metrics().lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
    }
}

/// Changes the configuration, its files, or nothing, and tells the service or lets it notice; now and then the file is
/// wrong, and what is in force stays.
fn reload(folder: &Path, pid: u32, upstream: SocketAddr, over: &AtomicBool) {
    let mut number = 0;
    while !over.load(Relaxed) {
        number += 1;
        match number % 5 {
            0 => write(&folder.join("hookgate.toml"), "nonsense"),
            1 => drop(configure(folder, upstream, number)),
            2 => write(&folder.join("other"), &format!("{OTHER} {number}")),
            _ => {}
        }
        if number % 3 != 1 {
            signal(pid, "HUP");
        }
        thread::park_timeout(Duration::from_millis(400));
    }
    configure(folder, upstream, 0);
}

/// Replaces a file in one step, as an editor does.
fn write(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, path).unwrap();
}

/// Writes the configuration. Secrets and filter differ from number to number, in what does not matter to the traffic.
fn configure(folder: &Path, upstream: SocketAddr, number: u32) -> PathBuf {
    let [secret, other] = ["secret", "other"].map(|name| folder.join(name).display().to_string());
    let secrets = if number.is_multiple_of(2) {
        format!("[{{ name = \"one\", file = \"{secret}\" }}, {{ name = \"two\", file = \"{other}\" }}]")
    } else {
        format!("{{ name = \"one\", file = \"{secret}\" }}")
    };
    let text = format!(
        "# Number {number}.\n[server]\nlisten = \"127.0.0.1:0\"\nmax_body = \"64KiB\"\nbody_timeout = \"{}ms\"\n\
         header_timeout = \"2s\"\n[ops]\nlisten = \"127.0.0.1:0\"\n[dedupe]\nwindow = \"5s\"\n[[webhook]]\nname = \"soak\"\n\
         path = \"/hook\"\nsecret = {secrets}\nevents = [\"environments\"]\n[[webhook.destination]]\n\
         url = \"http://{upstream}/in\"\n",
        BODY_TIMEOUT.as_millis(),
    );
    let path = folder.join("hookgate.toml");
    write(&path, &text);
    path
}
