//! The command line: exit statuses and key words; the exact wording is nobody's contract.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use crate::support::{
    Address, Delivery, ESC, Reply, SECRET, Setup, TempDir, Upstream, known_answers, program, run, sample,
    signed,
};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Everything that a command printed.
fn printed(output: &Output) -> String {
    stdout(output) + &stderr(output)
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", printed(output));
}

/// A folder with the usual secret in it, and the path of that file.
fn secret_file() -> (TempDir, String) {
    let dir = TempDir::new();
    let path = dir.write("secret", SECRET).to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn sign_prints_the_signature_of_a_file_or_of_its_input() {
    let (_dir, secret) = secret_file();
    for (file, _, signature) in known_answers() {
        let sample = sample(file.strip_suffix(".json").unwrap());
        let path = sample.path();
        let by_file = run(&["sign", "--secret-file", &secret, path.to_str().unwrap()], b"");
        assert_exit(&by_file, 0);
        assert_eq!(stdout(&by_file).trim_end_matches('\n'), signature, "{file}");
        let by_input = run(&["sign", "--secret-file", &secret], &sample.body());
        assert_exit(&by_input, 0);
        assert_eq!(stdout(&by_input).trim_end_matches('\n'), signature, "{file}");
    }
}

#[test]
fn sign_signs_every_byte_of_its_input() {
    let (_dir, secret) = secret_file();
    for body in [&b""[..], b"\n", b"a\n", b"a\r\n", b"\xff\0\xfe", &vec![b'x'; 300_000]] {
        let output = run(&["sign", "--secret-file", &secret], body);
        assert_exit(&output, 0);
        assert_eq!(stdout(&output).trim(), signed(body, SECRET.as_bytes()));
    }
}

#[test]
fn secrets_come_from_a_file_the_input_or_the_environment() {
    let (dir, _) = secret_file();
    let body = sample("ping").path();
    let body = body.to_str().unwrap();
    let expected = signed(&sample("ping").body(), SECRET.as_bytes());
    let with_newline = dir.write("newline", format!("{SECRET}\n"));
    let by_file = run(&["sign", "--secret-file", with_newline.to_str().unwrap(), body], b"");
    assert_eq!(stdout(&by_file).trim(), expected);
    let by_input = run(&["sign", "--secret-file", "-", body], format!("{SECRET}\n").as_bytes());
    assert_exit(&by_input, 0);
    assert_eq!(stdout(&by_input).trim(), expected);
    let by_environment = program()
        .args(["sign", "--secret-env", "HOOK_SECRET", body])
        .env("HOOK_SECRET", SECRET)
        .output()
        .unwrap();
    assert_exit(&by_environment, 0);
    assert_eq!(stdout(&by_environment).trim(), expected);
    // Nothing there, nothing in it, or both at once.
    assert_exit(&run(&["sign", "--secret-env", "HOOKGATE_TEST_UNSET", body], b""), 2);
    assert_exit(&run(&["sign", "--secret-file", "/nonexistent/secret", body], b""), 2);
    let empty = dir.write("empty", "\n");
    assert_exit(&run(&["sign", "--secret-file", empty.to_str().unwrap(), body], b""), 2);
    assert_exit(&run(&["sign", body], b""), 2);
}

#[test]
fn verify_says_right_or_wrong_by_its_exit_status() {
    let (_dir, secret) = secret_file();
    let body = sample("environment.created").body();
    let right = signed(&body, SECRET.as_bytes());
    let verify = |signature: &str, body: &[u8]| {
        run(&["verify", "--secret-file", &secret, "--signature", signature], body)
    };
    assert_exit(&verify(&right, &body), 0);
    assert_exit(&verify(&right.to_ascii_uppercase(), &body), 0);
    assert_exit(&verify(&right, b"{}"), 1);
    assert_exit(&verify(&signed(&body, b"another secret than that"), &body), 1);
    assert_exit(&verify("x", &body), 1);
    assert_exit(&verify("", &body), 1);
    let path = sample("environment.created").path();
    let by_file =
        run(&["verify", "--secret-file", &secret, "--signature", &right, path.to_str().unwrap()], b"");
    assert_exit(&by_file, 0);
    // Wrong usage.
    assert_exit(&run(&["verify", "--secret-file", &secret], &body), 2);
    assert_exit(&run(&["verify", "--signature", &right], &body), 2);
    assert_exit(&run(&["verify", "--secret-file", &secret, "--signature", &right, "/nonexistent"], b""), 2);
}

#[test]
fn verify_prints_neither_secret_nor_the_right_signature() {
    let (_dir, secret) = secret_file();
    let body = sample("environment.created").body();
    let zeros = "0".repeat(64);
    for explain in [&["--explain"][..], &[]] {
        let arguments = [&["verify", "--secret-file", &secret, "--signature", &zeros][..], explain].concat();
        let output = run(&arguments, &body);
        assert_exit(&output, 1);
        assert!(!printed(&output).contains(SECRET));
        assert!(!printed(&output).contains(&signed(&body, SECRET.as_bytes())));
    }
}

/// Each mistake that people make, and the words that name it.
#[test]
fn verify_explains_the_likely_mistake() {
    use sha2::Digest;
    let (dir, secret) = secret_file();
    let body = sample("environment.created").body();
    let right = signed(&body, SECRET.as_bytes());
    let base64 = base64(&hex::decode(&right).unwrap());
    let compact = serde_json::from_slice::<serde_json::Value>(&body).unwrap().to_string().into_bytes();
    let mut truncated = body.clone();
    truncated.truncate(200);
    let newline = signed(&body, format!("{SECRET}\n").as_bytes());
    let with_newline = [body.as_slice(), b"\n"].concat();
    let digest = hex::encode(sha2::Sha256::digest(&body));
    let cases: Vec<(&str, String, &[u8], &[&str])> = vec![
        ("base64 instead of hex", base64, &body, &["base64"]),
        ("a prefix", format!("sha256={right}"), &body, &["sha256=", "prefix"]),
        ("a newline in the secret", newline, &body, &["newline", "line feed", "line end"]),
        (
            "another JSON",
            right.clone(),
            &compact,
            &["re-encod", "reencod", "re-serial", "reformat", "re-format", "encoded again"],
        ),
        ("a truncated body", right.clone(), &truncated, &["truncat", "cut off", "incomplete", "breaks off"]),
        ("a newline after the body", right, &with_newline, &["newline", "line feed", "line end"]),
        ("no HMAC", digest, &body, &[""]),
    ];
    for (what, signature, body, words) in cases {
        let output = run(&["verify", "--secret-file", &secret, "--signature", &signature, "--explain"], body);
        assert_exit(&output, 1);
        let text = printed(&output).to_lowercase();
        assert!(words.iter().any(|word| text.contains(word)), "{what}: {text}");
        println!("{what}: {text}");
    }
    // Of two secrets the first is the one that hookgate would try now; the other made the signature.
    let old = dir.write("old", "the old secret of this webhook");
    let by_old = signed(&body, b"the old secret of this webhook");
    let both =
        ["verify", "--secret-file", &secret, "--secret-file", old.to_str().unwrap(), "--signature", &by_old];
    let output = run(&[&both[..], &["--explain"]].concat(), &body);
    let text = printed(&output).to_lowercase();
    assert!(
        text.contains("secret")
            && (text.contains("old") || text.contains("other") || text.contains("second")),
        "{text}"
    );
}

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(group);
        for place in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap();
            text.push(if place <= chunk.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}

#[test]
fn send_sends_a_signed_sample_of_any_event() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    let (_dir, secret) = secret_file();
    let url = hookgate.address().url("/hook");
    let events = ESC.iter().map(|sample| sample.event).chain([
        "ping",
        "stack_created",
        "update_succeeded",
        "deployment_started",
        "drift_detected",
    ]);
    for (number, event) in events.enumerate() {
        println!("{event}");
        let output = run(&["send", "--event", event, "--url", &url, "--secret-file", &secret], b"");
        assert_exit(&output, 0);
        assert!(printed(&output).contains("200"), "{}", printed(&output));
        assert!(printed(&output).contains("forwarded"), "{}", printed(&output));
        let requests = upstream.requests();
        assert_eq!(requests.len(), number + 1);
        assert_eq!(requests[number].header("hookgate-event"), Some(event));
        assert_eq!(requests[number].header("hookgate-kind-verified"), Some("true"));
    }
}

#[test]
fn send_sends_what_it_is_told() {
    let upstream = Upstream::always(Reply::ok());
    let (_dir, secret) = secret_file();
    let url = upstream.address().url("/direct?x=1");
    let path = sample("environment_tag.deleted").path();
    let output = run(
        &[
            "send",
            "--body",
            path.to_str().unwrap(),
            "--kind",
            "environment_tag",
            "--url",
            &url,
            "--secret-file",
            &secret,
            "--id",
            "my-id",
            "--header",
            "X-One: 1",
            "--header",
            "X-Two: a:b",
        ],
        b"",
    );
    assert_exit(&output, 0);
    let request = upstream.only_request();
    assert_eq!(request.head.first_line, "POST /direct?x=1 HTTP/1.1");
    assert_eq!(request.body, sample("environment_tag.deleted").body());
    let expected = Delivery::of(sample("environment_tag.deleted"));
    for (name, value) in [
        ("pulumi-webhook-id", "my-id"),
        ("pulumi-webhook-kind", "environment_tag"),
        ("pulumi-webhook-signature", expected.header_value("pulumi-webhook-signature")),
        ("content-type", "application/json"),
        ("x-one", "1"),
        ("x-two", "a:b"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
}

#[test]
fn send_says_that_it_was_refused() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let (_dir, secret) = secret_file();
    let url = hookgate.address().url("/hook");
    let unsigned = run(&["send", "--event", "environment_created", "--url", &url, "--unsigned"], b"");
    assert_exit(&unsigned, 1);
    assert!(printed(&unsigned).contains("401"), "{}", printed(&unsigned));
    assert!(printed(&unsigned).contains("missing_signature"), "{}", printed(&unsigned));
    let other = run(
        &[
            "send",
            "--event",
            "environment_created",
            "--url",
            &hookgate.address().url("/x"),
            "--secret-file",
            &secret,
        ],
        b"",
    );
    assert_exit(&other, 1);
    // Nobody there.
    let nobody = Address::Tcp(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()).url("/");
    assert_exit(&run(&["send", "--event", "ping", "--url", &nobody, "--secret-file", &secret], b""), 1);
    // Wrong usage: a misspelt event with a suggestion, no secret, a body without a kind.
    let misspelt =
        run(&["send", "--event", "enviroment_created", "--url", &url, "--secret-file", &secret], b"");
    assert_exit(&misspelt, 2);
    assert!(stderr(&misspelt).contains("environment_created"), "{}", stderr(&misspelt));
    assert_exit(&run(&["send", "--event", "ping", "--url", &url], b""), 2);
    assert_exit(&run(&["send", "--body", "x", "--url", &url, "--secret-file", &secret], b""), 2);
    assert_exit(&run(&["send", "--event", "ping", "--secret-file", &secret], b""), 2);
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn check_says_what_the_config_means() {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream)
        .webhook("name = \"the-esc-webhook\"")
        .webhook("organization = \"acme\"")
        .destination("name = \"the-app\"");
    let config = setup.write();
    let output = run(&["check", "--config", config.to_str().unwrap()], b"");
    assert_exit(&output, 0);
    let text = stdout(&output);
    let secret_path = setup.dir().join("secret");
    for word in
        ["the-esc-webhook", "/hook", "acme", "the-app", &upstream.url(), secret_path.to_str().unwrap()]
    {
        assert!(text.contains(word), "{word} in {text}");
    }
    // The group is expanded.
    for sample in ESC {
        assert!(text.contains(sample.event), "{} in {text}", sample.event);
    }
    assert!(!text.contains(SECRET), "{text}");
}

#[test]
fn the_config_is_found_by_flag_then_environment() {
    let upstream = Upstream::always(Reply::ok());
    let good = Setup::new(&upstream);
    let good_path = good.write();
    let bad = TempDir::new();
    let bad_path = bad.write("hookgate.toml", "nonsense");
    let check = |flag: Option<&std::path::Path>, variable: Option<&std::path::Path>| {
        let mut command = program();
        command.arg("check");
        if let Some(flag) = flag {
            command.arg("--config").arg(flag);
        }
        if let Some(variable) = variable {
            command.env("HOOKGATE_CONFIG", variable);
        }
        command.output().unwrap()
    };
    assert_exit(&check(None, Some(&good_path)), 0);
    assert_exit(&check(None, Some(&bad_path)), 2);
    assert_exit(&check(Some(&good_path), Some(&bad_path)), 0);
    assert_exit(&check(Some(&bad_path), Some(&good_path)), 2);
    let missing = check(Some(&bad.path().join("missing.toml")), None);
    assert_exit(&missing, 2);
    assert!(stderr(&missing).contains("missing.toml"), "{}", stderr(&missing));
}

#[test]
fn config_errors_are_told_together_on_the_error_stream() {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream)
        .server("max_bodi = \"1MiB\"")
        .events(&["enviroments"])
        .webhook("scope = \"galaxy\"")
        .destination("format = \"slack\"");
    let config = setup.write();
    for command in ["check", "run"] {
        let output = run(&[command, "--config", config.to_str().unwrap()], b"");
        assert_exit(&output, 2);
        let text = stderr(&output);
        for word in
            ["max_bodi", "max_body", "enviroments", "environments", "galaxy", "slack", "hookgate.toml"]
        {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
}

#[test]
fn events_outside_the_scope_are_config_errors() {
    let upstream = Upstream::always(Reply::ok());
    let cases = [
        ("environment", "environment_created", false),
        ("environment", "environment_deleted", false),
        ("environment", "stack_created", false),
        ("environment", "stacks", false),
        ("environment", "deployments", false),
        ("environment", "environment_revision_created", true),
        ("environment", "environments", true),
        ("environment", "imported_environment_changed", true),
        ("stack", "environments", false),
        ("stack", "environment_tag_created", false),
        ("stack", "stack_created", false),
        ("stack", "update_succeeded", true),
        ("stack", "stacks", true),
        ("stack", "deployments", true),
        ("organization", "environment_created", true),
        ("organization", "stack_created", true),
    ];
    for (scope, event, fine) in cases {
        println!("{scope} {event}");
        let setup = Setup::new(&upstream).events(&[event]).webhook(&format!("scope = {scope:?}"));
        let output = run(&["check", "--config", setup.write().to_str().unwrap()], b"");
        assert_exit(&output, if fine { 0 } else { 2 });
        if !fine {
            assert!(
                stderr(&output).contains(event) && stderr(&output).contains("scope"),
                "{}",
                stderr(&output)
            );
        }
    }
}

#[test]
fn later_sections_are_refused_and_not_ignored() {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream).section("[console]\nlisten = \"127.0.0.1:0\"");
    let output = run(&["check", "--config", setup.write().to_str().unwrap()], b"");
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("not built yet"), "{}", stderr(&output));
}

#[test]
fn an_address_in_use_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream).listen(&address);
    let output = run(&["run", "--config", setup.write().to_str().unwrap()], b"");
    assert_ne!(output.status.code(), Some(0));
    assert!(printed(&output).contains(&address), "{}", printed(&output));
}

#[test]
fn healthcheck_is_for_containers() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let url = hookgate.ops_address().url("/readyz");
    assert_exit(&run(&["healthcheck", "--url", &url], b""), 0);
    assert_exit(&run(&["healthcheck", "--url", &hookgate.ops_address().url("/other")], b""), 1);
    let nobody = Address::Tcp(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    assert_exit(&run(&["healthcheck", "--url", &nobody.url("/readyz")], b""), 1);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = Address::Tcp(silent.local_addr().unwrap());
    assert_exit(&run(&["healthcheck", "--url", &silent.url("/readyz")], b""), 1);
}

/// By the config: the address of the ops listener is in it, `0.0.0.0` means this machine.
#[test]
fn healthcheck_reads_the_config() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = TempDir::new();
    dir.write("secret", SECRET);
    let config = dir.write(
        "hookgate.toml",
        format!(
            "[ops]\nlisten = \"0.0.0.0:{port}\"\n[[webhook]]\npath = \"/hook\"\nsecret = {{ file = {:?} }}\nevents = [\"*\"]\n[[webhook.destination]]\nurl = \"http://127.0.0.1:1/\"\n",
            dir.path().join("secret"),
        ),
    );
    let answers = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = taken.accept().unwrap();
        let mut request = [0; 11];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).ok();
        request
    });
    assert_exit(&run(&["healthcheck", "--config", config.to_str().unwrap()], b""), 0);
    assert_eq!(&answers.join().unwrap(), b"GET /readyz");
    assert_exit(&run(&["healthcheck", "--config", config.to_str().unwrap()], b""), 1);
}

#[test]
fn demo_shows_the_whole_path_and_succeeds() {
    let output = run(&["demo"], b"");
    assert_exit(&output, 0);
    let text = stdout(&output);
    for sample in ESC {
        assert!(text.contains(sample.event), "{} in {text}", sample.event);
    }
    for word in [
        "ping",
        "forwarded",
        "pong",
        "missing_signature",
        "bad_signature",
        "kind_mismatch",
        "filtered",
        "duplicate",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    assert!(text.lines().count() >= ESC.len() + 7, "{text}");
}

#[test]
fn wrong_usage_exits_2() {
    let cases: [&[&str]; 9] = [
        &[],
        &["unknown"],
        &["--unknown"],
        &["run", "extra"],
        &["run", "--unknown"],
        &["sign", "--secret", "abc"],
        &["healthcheck", "--url", "nonsense"],
        &["send"],
        &["verify"],
    ];
    for arguments in cases {
        let output = run(arguments, b"");
        assert_exit(&output, 2);
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_and_version_exit_0() {
    let help = run(&["--help"], b"");
    assert_exit(&help, 0);
    for command in ["run", "check", "demo", "send", "sign", "verify", "healthcheck", "deliveries"] {
        assert!(stdout(&help).contains(command), "{command}");
        assert_exit(&run(&[command, "--help"], b""), 0);
    }
    let version = run(&["--version"], b"");
    assert_exit(&version, 0);
    assert!(stdout(&version).contains(env!("CARGO_PKG_VERSION")));
}

/// People put it before the command as often as behind it.
#[test]
fn the_configuration_may_be_named_anywhere() {
    let missing = "/nonexistent/hookgate.toml";
    for arguments in [
        &["check", "--config", missing][..],
        &["check", "-c", missing],
        &["-c", missing, "check"],
        &["--config", missing, "run"],
        &["-c", missing, "deliveries", "list"],
        &["deliveries", "-c", missing, "list"],
    ] {
        let output = run(arguments, b"");
        assert_exit(&output, 2);
        assert!(stderr(&output).contains(&format!("{missing}: ")), "{arguments:?}: {}", stderr(&output));
    }
    let output = run(&["-c", missing, "demo"], b"");
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("remove --config"), "{}", stderr(&output));
}

#[test]
fn what_is_not_there_is_answered_with_a_tip_that_helps() {
    assert!(stdout(&run(&["version"], b"")).contains(env!("CARGO_PKG_VERSION")));
    for arguments in [
        &["sign", "--secret", "hunter2hunter2hunter2"][..],
        &["sign", "--secret"],
        &["verify", "--secret", "hunter2hunter2hunter2", "--signature", "00"],
        &["send", "--event", "ping", "--url", "http://127.0.0.1:1/", "--secret", "hunter2hunter2hunter2"],
    ] {
        let output = run(arguments, b"");
        assert_exit(&output, 2);
        let said = stderr(&output);
        assert!(
            said.contains("--secret-file") && said.contains("never an argument"),
            "{arguments:?}: {said}"
        );
        assert!(!said.contains("tip: a similar argument exists: '--secret-env'"), "{arguments:?}: {said}");
        assert!(!said.contains("hunter2"), "{arguments:?}: {said}");
    }
}

/// What `init` prints, with the optional lines too, is a good configuration.
#[test]
fn a_configuration_to_start_from_is_good() {
    let (dir, secret) = secret_file();
    let start = stdout(&run(&["init"], b""));
    let start = start.replace("/run/secrets/pulumi-webhook", &secret);
    let with_options: String = start
        .split('\n')
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .fold(String::new(), |text, line| text + line + "\n");
    assert_ne!(start.trim(), with_options.trim());
    for text in [start, with_options] {
        let path = dir.path().join("hookgate.toml");
        fs::write(&path, text).unwrap();
        assert_exit(&run(&["check", path.to_str().unwrap()], b""), 0);
    }
}

#[test]
fn shells_complete_and_man_has_a_page_for_each_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&run(&["completions", shell], b""));
        assert!(script.contains("deliveries") && script.contains("secret-file"), "{shell}: {script}");
    }
    let (dir, _) = secret_file();
    let script = dir.write("completions", stdout(&run(&["completions", "bash"], b"")));
    let checked = Command::new("bash").arg("-n").arg(script).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert_exit(&run(&["man", dir.path().to_str().unwrap()], b""), 0);
    for page in ["hookgate.1", "hookgate-run.1", "hookgate-deliveries-list.1"] {
        assert!(fs::read_to_string(dir.path().join(page)).unwrap().contains(".TH"), "{page}");
    }
}

/// A reader that leaves early, as `head` does, does not cause a panic.
#[test]
fn a_closed_output_is_no_panic() {
    let (_dir, secret) = secret_file();
    let mut child = program()
        .args(["sign", "--secret-file", &secret, sample("ping").path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}
