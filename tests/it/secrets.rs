//! Secrets stay inside: no command prints one on any path, and the kernel gives none away.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use rustls::ALL_VERSIONS;

use crate::support::{
    Delivery, Hookgate, Reply, Setup, TempDir, Upstream, Webhook, eventually, program, sample, signed,
    tls::{Authority, Pair},
};

/// Texts that must never be seen. Each is told by a part that nothing else contains.
#[derive(Debug)]
struct Canaries(Vec<String>);

const SECRET: &str = "canary-secret-5f1c09e2b7a84d36";
const OLD_SECRET: &str = "canary-old-secret-77d0c3e1a9";
const ENV_SECRET: &str = "canary-env-secret-09b2e6f4d1";
const FILE_HEADER: &str = "Bearer canary-file-header-4477";
const ENV_HEADER: &str = "canary-env-header-8841d2";
const PLAIN_HEADER: &str = "canary-plain-header-1023";

impl Canaries {
    fn new(keys: &[&Pair]) -> Self {
        let mut all: Vec<_> = [SECRET, OLD_SECRET, ENV_SECRET, "canary"].map(str::to_owned).to_vec();
        for secret in [SECRET, OLD_SECRET, ENV_SECRET] {
            all.push(hex::encode(secret));
            // What any good delivery is signed with is a secret too, until it is sent.
            all.push(secret.to_uppercase());
        }
        for key in keys {
            let lines = key.key.lines().filter(|line| !line.starts_with("-----"));
            all.extend(lines.map(|line| line.get(..16).unwrap_or(line).to_owned()));
        }
        Self(all)
    }

    #[track_caller]
    fn assert_absent(&self, from: &str, said: &str) {
        for canary in &self.0 {
            assert!(!said.contains(canary), "{canary} is in what {from} says:\n{said}");
        }
    }
}

/// Runs a command with everything that could make it talkative.
fn run(arguments: &[&str], input: &[u8]) -> (Output, String) {
    let dir = TempDir::new();
    let input = dir.write("input", input);
    let mut command = program();
    let output = command
        .args(arguments)
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
        .env("ENV_SECRET", ENV_SECRET)
        .env("ENV_HEADER", ENV_HEADER)
        .stdin(fs::File::open(input).unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    (output, said)
}

fn said_by(hookgate: &Hookgate) -> String {
    [hookgate.log_lines(), hookgate.error_lines()].concat().join("\n")
}

/// A configuration with a canary wherever a secret can stand.
fn setup(upstream: &Upstream, server: &Pair, client: &Pair, ca: &Authority) -> Setup {
    let webhook = Webhook::to(&upstream.https("localhost"))
        .secret(
            "[{ name = \"new\", file = \"{dir}/secret\" }, { name = \"env\", env = \"ENV_SECRET\" }, \
             { name = \"old\", file = \"{dir}/old\", expires = \"2026-01-01T00:00:00Z\" }]",
        )
        .destination("ca = \"{dir}/ca.pem\"")
        .destination("identity = { cert = \"{dir}/client.crt\", key = \"{dir}/client.key\" }")
        .destination(&format!(
            "headers = {{ Authorization = {{ file = \"{{dir}}/header\" }}, X-Env = {{ env = \"ENV_HEADER\" }}, X-Plain = \"{PLAIN_HEADER}\" }}"
        ));
    Setup::bare()
        .with(webhook)
        .server("tls = { cert = \"{dir}/tls.crt\", key = \"{dir}/tls.key\" }")
        .section("[log]\nlevel = \"trace\"")
        .environment("RUST_LOG", "trace")
        .environment("RUST_BACKTRACE", "full")
        .environment("ENV_SECRET", ENV_SECRET)
        .environment("ENV_HEADER", ENV_HEADER)
        .file("secret", SECRET)
        .file("old", OLD_SECRET)
        .file("header", FILE_HEADER)
        .file("tls.crt", &server.cert)
        .file("tls.key", &server.key)
        .file("client.crt", &client.cert)
        .file("client.key", &client.key)
        .file("ca.pem", ca.pem())
}

#[test]
fn the_service_never_says_a_secret() {
    let authority = Authority::new("a");
    let [server, client, other] = [&["localhost"][..]; 3].map(|names| authority.issue(names));
    let canaries = Canaries::new(&[&server, &client, &other]);
    let config = authority.issue(&["localhost"]).server(ALL_VERSIONS, Some(&authority));
    let upstream = Upstream::over_tls(config, Reply::answer(500, &[], "no"));
    let mut hookgate = setup(&upstream, &server, &client, &authority).start();

    let mut answers = String::new();
    for delivery in [
        Delivery::good().signed_with(SECRET.as_bytes()),
        Delivery::good().signed_with(ENV_SECRET.as_bytes()),
        Delivery::good().signed_with(OLD_SECRET.as_bytes()),
        Delivery::good().forged(),
        Delivery::good().unsigned(),
        // Somebody who takes the header for a password.
        Delivery::good().signature("not-the-signature"),
        Delivery::good().kind("environment").signed_with(SECRET.as_bytes()),
    ] {
        let (mut connection, _) = authority.open(hookgate.address()).unwrap();
        connection.send(&delivery.bytes());
        let answer = connection.answer();
        answers.push_str(&format!("{:?} {}\n", answer.head, String::from_utf8_lossy(&answer.body.bytes)));
    }
    let requests = upstream.wait_for(2);
    let headers = |request: &crate::support::Request| {
        ["authorization", "x-env", "x-plain"].map(|name| request.header(name).map(str::to_owned))
    };
    let expected = [FILE_HEADER, ENV_HEADER, PLAIN_HEADER].map(|value| Some(value.to_owned()));
    assert_eq!(headers(&requests[0]), expected, "the canaries were really in use");
    answers.push_str(&format!("{:?}", hookgate.ops("/metrics").text()));
    answers.push_str(&hookgate.ops("/readyz").text());
    canaries.assert_absent("an answer", &answers);

    // New contents that are wrong, each a secret in the wrong form.
    let write = |name: &str, content: &str| fs::write(hookgate.dir().join(name), content).unwrap();
    let failures = |count: f64| {
        eventually("the bad file is noticed", || {
            let metrics = hookgate.metrics();
            let seen = metrics.value("hookgate_config_reloads_total", &[("result", "failure")]);
            (seen >= Some(count)).then_some(())
        });
    };
    let wrong: [(&str, &str, String); 6] = [
        ("secret", SECRET, "canary".into()),
        ("header", FILE_HEADER, "Bearer canary\r\nX-Injected: canary\r\n".into()),
        ("tls.key", &server.key, other.key.clone()),
        ("tls.key", &server.key, server.key.replace("-----END", "canary-----END")),
        ("client.key", &client.key, client.key.split_at(client.key.len() / 2).0.to_owned()),
        ("tls.crt", &server.cert, server.key.clone()),
    ];
    for (count, (name, good, bad)) in (1_u32..).zip(wrong) {
        write(name, &bad);
        hookgate.signal("HUP");
        failures(count.into());
        write(name, good);
    }
    hookgate.signal("HUP");
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 1.0);
    hookgate.signal("TERM");
    hookgate.wait_exit();
    let said = said_by(&hookgate);
    assert!(said.contains("core dumps are off"), "the log is at its most talkative: {said}");
    canaries.assert_absent("the log", &said);
}

/// Attempts are written down and told line by line; the requests' headers are not.
#[test]
fn the_queue_never_says_or_keeps_a_secret() {
    let authority = Authority::new("a");
    let [server, client] = [&["localhost"][..]; 2].map(|names| authority.issue(names));
    let canaries = Canaries::new(&[&server, &client]);
    let config = authority.issue(&["localhost"]).server(ALL_VERSIONS, Some(&authority));
    let upstream = Upstream::over_tls(config, Reply::answer(503, &[], "no"));
    let mut hookgate = setup(&upstream, &server, &client, &authority)
        .section(
            "[queue]\npath = \"{dir}/queue.db\"\nmax_attempts = 7\nbackoff = { initial = \"1ms\", max = \"10ms\" }",
        )
        .start();
    let (mut connection, _) = authority.open(hookgate.address()).unwrap();
    connection.send(&Delivery::good().signed_with(SECRET.as_bytes()).bytes());
    let answer = connection.answer();
    assert_eq!(answer.said(), (202, "queued"));
    let mut said = format!("{:?} {}", answer.head, String::from_utf8_lossy(&answer.body.bytes));
    let requests = upstream.wait_for(7);
    assert_eq!(requests[0].header("authorization"), Some(FILE_HEADER), "the canaries were really in use");
    hookgate.wait_for_log(|line| line["outcome"] == "dead");
    said.push_str(&hookgate.ops("/metrics").text());
    said.push_str(&hookgate.ops("/readyz").text());
    hookgate.signal("TERM");
    hookgate.wait_exit();
    canaries.assert_absent("the service", &said);
    canaries.assert_absent("the log", &said_by(&hookgate));
    // Beside the file itself, what was not yet put into it.
    let of_queue = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("queue.db");
    let files = fs::read_dir(hookgate.dir()).unwrap().map(Result::unwrap).filter(of_queue);
    let kept: Vec<_> = files.flat_map(|file| fs::read(file.path()).unwrap()).collect();
    let kept = String::from_utf8_lossy(&kept);
    assert!(kept.contains("environment_revision"), "the delivery is in there");
    canaries.assert_absent("the file", &kept);
}

#[test]
fn no_mistake_in_a_configuration_makes_it_say_a_secret() {
    let authority = Authority::new("a");
    let [server, client] = [&["localhost"][..]; 2].map(|names| authority.issue(names));
    let upstream =
        Upstream::over_tls(authority.issue(&["localhost"]).server(ALL_VERSIONS, None), Reply::ok());
    let setup = setup(&upstream, &server, &client, &authority)
        .file("short", "canary")
        .file("lines", "canary\ncanary\n")
        .file("broken.key", server.key.replace("-----END", "canary-----END"))
        .file("half.key", server.key.split_at(server.key.len() / 2).0);
    let canaries = Canaries::new(&[&server, &client]);
    let path = setup.write();
    let good = fs::read_to_string(&path).unwrap();
    let config = path.to_str().unwrap();
    let (output, said) = run(&["check", "--config", config], b"");
    assert_eq!(output.status.code(), Some(0), "{said}");
    canaries.assert_absent("check", &said);

    let dir = setup.dir().to_str().unwrap();
    let new = format!("{{ name = \"new\", file = \"{dir}/secret\" }}");
    let key = format!("key = \"{dir}/tls.key\"");
    let plain = format!("X-Plain = \"{PLAIN_HEADER}\"");
    let inline_key = server.key.replace('\n', "\\n");
    let mut seen = 0;
    for (from, to) in [
        // The secret itself where only its place may stand.
        (new.as_str(), format!("\"{SECRET}\"")),
        (&new, format!("[\"{SECRET}\"]")),
        (&new, format!("{{ value = \"{SECRET}\" }}")),
        (&new, format!("{{ file = \"{dir}/secret\", secret = \"{SECRET}\" }}")),
        (&new, format!("{{ file = [\"{SECRET}\"] }}")),
        (&new, format!("{{ file = \"{dir}/secret\", allow_short = \"{SECRET}\" }}")),
        (&new, format!("{{ file = \"{dir}/secret\", expires = \"{SECRET}\" }}")),
        (&new, format!("{{ file = \"{dir}/short\" }}")),
        // In the place of its file or variable, and of keys.
        (&new, format!("{{ file = \"{SECRET}\" }}")),
        (&new, format!("{{ env = \"{SECRET}\" }}")),
        (&new, format!("{{ {SECRET} = true }}")),
        (&new, format!("{{ file = \"{dir}/secret\", name = \"{SECRET} {OLD_SECRET}\" }}")),
        (&plain, format!("X-Plain = {{ file = \"{PLAIN_HEADER}\" }}")),
        (&plain, format!("X-Plain = {{ env = \"{PLAIN_HEADER}\" }}")),
        (&plain, format!("{PLAIN_HEADER} = {{ }}")),
        (&plain, format!("\"{FILE_HEADER}\" = \"Authorization\"")),
        (&key, format!("key = \"{SECRET}\"")),
        (&format!("ca = \"{dir}/ca.pem\""), format!("ca = \"{SECRET}\"")),
        // Headers.
        (&plain, format!("X-Plain = \"{PLAIN_HEADER}\\n\"")),
        (&plain, format!("X-Plain = [\"{PLAIN_HEADER}\"]")),
        (&plain, format!("X-Plain = {{ value = \"{PLAIN_HEADER}\" }}")),
        (&plain, format!("X-Plain = {{ file = \"{dir}/lines\" }}")),
        (&plain, format!("Host = \"{PLAIN_HEADER}\"")),
        (&plain, format!("X-Env = \"{PLAIN_HEADER}\"")),
        // Keys, and what is in them in the place of their path.
        (&key, format!("key = \"{inline_key}\"")),
        (&key, format!("key = [\"{inline_key}\"]")),
        (&key, format!("key = \"{dir}/broken.key\"")),
        (&key, format!("key = \"{dir}/half.key\"")),
        (&key, format!("key = \"{dir}/client.key\"")),
        (&key, format!("key = \"{dir}/secret\"")),
        // A URL with a password, and TOML that ends in the middle of a secret.
        ("https://localhost", "https://user:canary@localhost".into()),
        (&plain, format!("X-Plain = \"{PLAIN_HEADER}")),
        (&plain, format!("X-Plain = {PLAIN_HEADER}")),
        (&plain, format!("X-Plain = '''{PLAIN_HEADER}")),
        (&new, SECRET.into()),
    ] {
        assert!(good.contains(from), "{from} in {good}");
        fs::write(&path, good.replacen(from, &to, 1)).unwrap();
        for arguments in [&["check", "--config", config][..], &["run", "--config", config]] {
            let (output, said) = run(arguments, b"");
            assert_eq!(output.status.code(), Some(2), "{to}: {said}");
            canaries.assert_absent(&format!("{arguments:?} for {to}"), &said);
            seen += 1;
        }
        canaries.assert_absent("healthcheck", &run(&["healthcheck", "--config", config], b"").1);
    }
    assert_eq!(seen, 70);
}

#[test]
fn no_command_says_the_secret_that_it_was_given() {
    let dir = TempDir::new();
    let canaries = Canaries::new(&[]);
    let secret = dir.write("secret", format!("{SECRET}\n")).to_str().unwrap().to_owned();
    let body = sample("ping").path().to_str().unwrap().to_owned();
    let bytes = fs::read(&body).unwrap();
    let check = |arguments: &[&str], input: &[u8], codes: &[i32]| {
        let (output, said) = run(arguments, input);
        let code = output.status.code();
        assert!(code.is_some_and(|code| codes.contains(&code)), "{arguments:?} {code:?}: {said}");
        canaries.assert_absent(&format!("{arguments:?}"), &said);
    };
    check(&["sign", "--secret-file", &secret, &body], b"", &[0]);
    check(&["sign", "--secret-env", "ENV_SECRET", &body], b"", &[0]);
    check(&["sign", "--secret-file", &secret, "/nowhere"], b"", &[2]);
    check(&["sign", "--secret-file", "-"], SECRET.as_bytes(), &[2]);

    // Every way in which a secret or a signature is commonly mistaken.
    let right = signed(&bytes, SECRET.as_bytes());
    let variants = [
        SECRET.to_owned(),
        format!("{SECRET}\n\n"),
        format!(" {SECRET} "),
        format!("\"{SECRET}\""),
        hex::encode(SECRET),
        format!("SECRET={SECRET}"),
        OLD_SECRET.to_owned(),
        "canary".to_owned(),
        String::new(),
    ];
    let signatures = [
        right.clone(),
        signed(&bytes, format!("{SECRET}\n").as_bytes()),
        signed(&bytes, hex::encode(SECRET).as_bytes()),
        signed(b"another body", SECRET.as_bytes()),
        format!("sha256={right}"),
        right.to_uppercase(),
        right.get(..40).unwrap().to_owned(),
        "AAAA".to_owned(),
    ];
    for variant in &variants {
        let file = dir.write("variant", variant).to_str().unwrap().to_owned();
        for signature in &signatures {
            let arguments =
                ["verify", "--explain", "--secret-file", &file, "--secret-env", "ENV_SECRET", "--signature"];
            let arguments = [&arguments[..], &[signature, &body]].concat();
            check(&arguments, b"", &[0, 1, 2]);
        }
    }

    let upstream = Upstream::always(Reply::status(503));
    for url in [upstream.url(), "http://127.0.0.1:1/".into(), "https://127.0.0.1:1/".into()] {
        check(&["send", "--event", "ping", "--secret-file", &secret, "--url", &url], b"", &[1]);
        check(&["send", "--event", "ping", "--secret-env", "ENV_SECRET", "--url", &url], b"", &[1]);
    }
    check(&["send", "--event", "pong", "--secret-file", &secret, "--url", "http://a/"], b"", &[2]);
    check(&["send", "--event", "ping", "--secret-env", "UNSET", "--url", "http://a/"], b"", &[2]);
    check(&["healthcheck", "--url", "http://127.0.0.1:1/readyz"], b"", &[1]);
}

#[test]
fn the_demo_does_not_say_its_secret() {
    let mut command = program();
    command.args(["demo", "--keep"]).env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Killed(command.spawn().unwrap());
    let mut said = String::new();
    let mut lines = BufReader::new(child.0.stdout.take().unwrap());
    let secret = loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "no secret file is named: {said}");
        said.push_str(&line);
        let path = line.split([' ', '"', '\'', ')']).find(|word| word.ends_with("/secret"));
        if let Some(path) = path.filter(|path| Path::new(path).exists()) {
            break fs::read_to_string(path).unwrap();
        }
    };
    assert!(secret.len() >= 16, "{said}");
    kill(&child.0, "TERM");
    std::io::Read::read_to_string(&mut lines, &mut said).unwrap();
    std::io::Read::read_to_string(&mut child.0.stderr.take().unwrap(), &mut said).unwrap();
    assert!(!said.contains(secret.trim()), "{said}");
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn kill(child: &Child, signal: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
}

/// Starts the service by this command, and waits until it listens.
fn listening(mut command: Command, setup: &Setup) -> Killed {
    command.arg("run").arg("--config").arg(setup.write());
    let mut child = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"ops\"") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "it does not listen");
    }
    // The log's other end stays open, so that the service is not bothered.
    std::mem::forget(log);
    child
}

#[test]
fn the_kernel_writes_no_core_dump() {
    const SCRIPT: &str = "ulimit -c unlimited; exec \"$0\" \"$@\"";
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream);
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, env!("CARGO_BIN_EXE_hookgate")]).current_dir(setup.dir());
    let mut service = listening(command, &setup);
    kill(&service.0, "ABRT");
    let status = service.0.wait().unwrap();
    assert_eq!(status.signal(), Some(6), "{status}");
    assert!(!status.core_dumped(), "{status}");
}

/// What the kernel shows of a process belongs to root once that must not be dumped.
#[test]
fn others_of_the_same_user_cannot_look_into_the_process() {
    const NOBODY: u32 = 65534;
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream);
    let owner = |child: &Child| fs::metadata(format!("/proc/{}/environ", child.id())).unwrap().uid();
    let am_root = fs::metadata("/proc/self/environ").unwrap().uid() == 0;

    // As root everything is root's anyway: the service runs as another user then, from where that one may read.
    let copy = setup.dir().join("hookgate");
    fs::copy(env!("CARGO_BIN_EXE_hookgate"), &copy).unwrap();
    fs::set_permissions(setup.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(setup.dir().join("secret"), fs::Permissions::from_mode(0o644)).unwrap();
    let start = |program: &Path| {
        let mut command = Command::new(program);
        if am_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    let mut other = start(Path::new("sleep"));
    let other = Killed(other.arg("60").spawn().unwrap());
    assert_ne!(owner(&other.0), 0, "another process shows its user");
    let service = listening(start(&copy), &setup);
    assert_eq!(owner(&service.0), 0);
}
