//! Framing attacks: the raw bytes of `tests/data/attacks`, each with what must come of it beside it.
//!
//! `NAME.http` is what a sender says on one connection. `NAME.txt` explains it in its first line, and then says
//! line by line which answers come (`answer 400` is one without a label, `answer 100` an interim one), whether
//! the connection is `closed` behind them, `closed at a deadline` or stays `open`, and how many requests an `upstream`
//! sees.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::support::{
    Delivery, Hookgate, Peer, Reply, SECRET, Setup, Upstream, Webhook, eventually, sample, signed,
};

/// How many cases there are: a folder that is not found must not pass.
const CASES: usize = 281;

#[derive(Debug)]
struct Case {
    name: String,
    bytes: Vec<u8>,
    answers: Vec<String>,
    open: bool,
    waits: bool,
    upstream: usize,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/attacks");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (inputs, outcomes): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|file| file.extension().is_some_and(|ending| ending == "http"));
    assert_eq!((inputs.len(), outcomes.len()), (CASES, CASES));
    inputs.iter().map(|input| Case::read(input)).collect()
}

impl Case {
    fn read(input: &Path) -> Self {
        let name = input.file_stem().unwrap().to_str().unwrap().to_owned();
        let outcome = fs::read_to_string(input.with_extension("txt")).unwrap();
        let bytes = fs::read(input).unwrap();
        let mut case = Self { name, bytes, answers: Vec::new(), open: false, waits: false, upstream: 0 };
        let mut ends = 0;
        for line in outcome.lines().skip(1) {
            match line.split_once(' ') {
                Some(("answer", answer)) => case.answers.push(answer.to_owned()),
                Some(("upstream", count)) => case.upstream = count.parse().unwrap(),
                _ if matches!(line, "open" | "closed" | "closed at a deadline") => {
                    case.open = line == "open";
                    case.waits = line == "closed at a deadline";
                    ends += 1;
                }
                _ => panic!("{}: {line:?}", case.name),
            }
        }
        assert_eq!(ends, 1, "{}", case.name);
        case
    }

    /// Says the bytes in pieces of this size, and returns what is not as expected.
    fn try_on(&self, hookgate: &Hookgate, piece: usize) -> Option<String> {
        let mut connection = hookgate.connect();
        for bytes in self.bytes.chunks(piece) {
            connection.send(bytes);
        }
        let mut seen = Vec::new();
        let mut expected = self.answers.clone();
        while seen.len() < expected.len() {
            let Some(answer) = connection.try_answer() else { break };
            seen.extend(answer.interim.iter().map(ToString::to_string));
            seen.push(match answer.header("hookgate-outcome") {
                Some(label) => format!("{} {label}", answer.status),
                None => answer.status.to_string(),
            });
            if answer.status >= 400 && answer.header("hookgate-outcome").is_some() {
                answer.assert_says_nothing_internal();
            }
        }
        if self.open {
            // It is in step with its sender still.
            connection.send(&Delivery::good().bytes());
            expected.push("200 forwarded".to_owned());
            let last = connection.try_answer();
            seen.extend(last.map(|answer| format!("{} {}", answer.status, answer.outcome())));
        } else if connection.is_quiet_for(Duration::from_secs(10)) {
            seen.push("an open connection".to_owned());
        } else {
            let mut rest = String::new();
            connection.read_all(&mut rest);
            seen.extend((!rest.is_empty()).then_some(rest));
        }
        (seen != expected)
            .then(|| format!("{} in pieces of {piece}: {seen:?}, expected {expected:?}", self.name))
    }

    /// Requests that reach an upstream when the case is tried once.
    fn requests(&self) -> usize {
        self.upstream + usize::from(self.open)
    }
}

/// Two that differ in their deadlines. Neither has a memory of IDs, so that each case stands alone.
struct Pair {
    /// For the cases that wait for a deadline.
    hasty: Hookgate,
    /// For all others: a machine that stands still for seconds does not turn their answer into 408.
    patient: Hookgate,
}

impl Pair {
    fn start(url: &str) -> Self {
        let with = |deadline: &str| {
            Setup::bare()
                .server(&format!("header_timeout = \"{deadline}\""))
                .server(&format!("body_timeout = \"{deadline}\""))
                .section("[dedupe]\nwindow = \"0s\"")
                .with(Webhook::to(url))
                .start()
        };
        Self { hasty: with("1s"), patient: with("60s") }
    }

    fn of(&self, case: &Case) -> &Hookgate {
        if case.waits { &self.hasty } else { &self.patient }
    }
}

/// Tries every case, whole and in pieces, and returns how many requests must have come out of it.
fn try_all(pair: &Pair, pieces: impl Fn(&Case) -> Vec<usize> + Sync) -> usize {
    let cases = cases();
    let expected = cases.iter().map(|case| case.requests() * pieces(case).len()).sum();
    // Several at a time, since some of them wait for a deadline.
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let share = cases.len().div_ceil(8);
        let threads: Vec<_> = cases
            .chunks(share)
            .map(|cases| {
                let pieces = &pieces;
                scope.spawn(move || {
                    let tried = |case: &Case| {
                        let wrong =
                            pieces(case).into_iter().filter_map(|piece| case.try_on(pair.of(case), piece));
                        wrong.collect::<Vec<_>>()
                    };
                    cases.iter().flat_map(tried).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    expected
}

/// In one write, in pieces, and, where that does not take for ever, byte by byte.
fn whole_and_in_pieces(case: &Case) -> Vec<usize> {
    // What has no end of a head is judged when that comes, or its time is over; a whole one may be judged before.
    let ends = ["\r\n\r\n", "\n\n"].map(|end| memchr::memmem::find(&case.bytes, end.as_bytes()));
    if ends == [None, None] {
        return vec![usize::MAX];
    }
    let mut pieces = vec![usize::MAX, (case.bytes.len() / 40).max(7)];
    if case.bytes.len() < 1000 {
        pieces.push(1);
    }
    pieces
}

fn whole(_: &Case) -> Vec<usize> {
    vec![usize::MAX]
}

#[test]
fn each_attack_ends_as_the_rfcs_say_and_nothing_of_it_reaches_the_upstream() {
    let upstream = Upstream::always(Reply::ok());
    let pair = Pair::start(&upstream.url());
    let expected = try_all(&pair, whole_and_in_pieces);
    let requests = upstream.requests();
    assert_eq!(requests.len(), expected);
    let body = sample("environment_revision.created").body();
    for request in requests {
        assert_eq!(request.head.first_line, "POST /upstream HTTP/1.1");
        assert_eq!(request.body, body, "{request:?}");
        assert_eq!(request.header("content-length"), Some("382"), "{request:?}");
        assert_eq!(request.header("pulumi-webhook-signature"), Some(&*signed(&body, SECRET.as_bytes())));
        assert_eq!(request.header("transfer-encoding"), None, "{request:?}");
        assert!(request.trailers.is_empty(), "{request:?}");
        for name in request.head.names() {
            let ours = name.starts_with("pulumi-webhook-") || name.starts_with("hookgate-");
            let known = ["content-length", "content-type", "host", "traceparent", "user-agent"];
            assert!(ours || known.contains(&name.as_str()), "{name}: {request:?}");
        }
    }
    // And it serves as before.
    for hookgate in [pair.hasty, pair.patient] {
        hookgate.wait_for_metric("hookgate_inflight_requests", &[], 0.0);
        hookgate.wait_for_metric("hookgate_inflight_bytes", &[], 0.0);
        hookgate.send(&Delivery::good()).assert_forwarded(200);
    }
}

/// The sample's length, which is what a real server must see each time.
const LENGTH: &str = "382";

/// nginx in front of a sink: it sees what was verified, passes it on, and its log has nothing else.
#[test]
fn nginx_sees_the_verified_requests_and_nothing_else() {
    let sink = Upstream::always(Reply::ok());
    let files = Setup::bare();
    let dir = files.dir().to_str().unwrap().to_owned();
    let config = format!(
        r#"
daemon off; master_process off; worker_processes 1;
pid {dir}/nginx.pid; error_log {dir}/nginx-errors;
events {{ worker_connections 256; }}
http {{
    log_format seen escape=json '{{"request":"$request","status":$status,"length":"$content_length","body":"$request_body"}}';
    access_log {dir}/nginx-seen seen;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    server {{
        listen unix:{dir}/nginx.sock;
        keepalive_requests 100000;
        location / {{ proxy_pass {}; }}
    }}
}}
"#,
        sink.url().trim_end_matches("/upstream"),
    );
    let files = files.file("nginx.conf", config);
    let nginx = Peer::start(
        "nginx",
        &["-p", &dir, "-e", &format!("{dir}/nginx-errors"), "-c", &format!("{dir}/nginx.conf")],
    );
    let socket = files.dir().join("nginx.sock");
    eventually("nginx listens", || std::os::unix::net::UnixStream::connect(&socket).ok());

    let pair = Pair::start(&format!("unix:{dir}/nginx.sock:/upstream"));
    let expected = try_all(&pair, whole);
    drop(pair);
    let seen = eventually("nginx has logged every request", || {
        let seen = fs::read_to_string(files.dir().join("nginx-seen")).unwrap_or_default();
        (seen.lines().count() >= expected).then_some(seen)
    });
    drop(nginx);
    let body = sample("environment_revision.created").body();
    for line in seen.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["request"], "POST /upstream HTTP/1.1", "{line}");
        assert_eq!((&line["status"], &line["length"]), (&200.into(), &LENGTH.into()), "{line}");
        assert_eq!(line["body"].as_str().unwrap().as_bytes(), body, "{line}");
    }
    assert_eq!(fs::read_to_string(files.dir().join("nginx-seen")).unwrap().lines().count(), expected);
    assert_eq!(sink.requests().len(), expected);
    assert!(sink.requests().iter().all(|request| request.body == body));
}

const NODE: &str = r#"
const http = require("node:http");
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");
const server = http.createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    say({
      request: `${request.method} ${request.url} HTTP/${request.httpVersion}`,
      length: request.headers["content-length"],
      coding: request.headers["transfer-encoding"] ?? null,
      body: Buffer.concat(parts).toString("hex"),
    });
    response.end("done");
  });
});
server.on("clientError", (error, socket) => { say({ error: String(error) }); socket.destroy(); });
server.on("upgrade", (request, socket) => { say({ error: "upgrade" }); socket.destroy(); });
server.on("connect", (request, socket) => { say({ error: "connect" }); socket.destroy(); });
server.listen(0, "127.0.0.1", () => say({ port: server.address().port }));
"#;

#[test]
fn node_sees_the_verified_requests_and_nothing_else() {
    let node = Peer::start("node", &["--eval", NODE]);
    let port = node.wait_for(1)[0]["port"].as_u64().unwrap();
    let pair = Pair::start(&format!("http://127.0.0.1:{port}/upstream"));
    let expected = try_all(&pair, whole);
    drop(pair);
    node.wait_for(1 + expected);
    let seen = node.end();
    let body = hex::encode(sample("environment_revision.created").body());
    for line in &seen[1..] {
        assert_eq!(line["request"], "POST /upstream HTTP/1.1", "{line}");
        assert_eq!((&line["length"], &line["coding"]), (&LENGTH.into(), &serde_json::Value::Null), "{line}");
        assert_eq!(line["body"], body, "{line}");
    }
    assert_eq!(seen.len(), 1 + expected);
}

/// No two cases say the same, and each says why it is there.
#[test]
fn every_case_is_its_own() {
    let mut seen = BTreeMap::new();
    for case in cases() {
        if let Some(other) = seen.insert(case.bytes, case.name.clone()) {
            panic!("{other} and {} are the same", case.name);
        }
    }
}
