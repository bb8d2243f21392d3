//! `check` and its kin on whole files: what is warned of, in which form, and that no file holds a command up.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;

use crate::support::{Instant, Reply, Setup, TempDir, Upstream, Webhook, program, run};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// A good configuration that nothing is to be warned of.
fn good() -> Setup {
    Setup::bare().with(Webhook::to("http://127.0.0.1:1/"))
}

fn check(setup: &Setup, more: &[&str]) -> Output {
    let path = setup.write();
    run(&[&["check"], more, &["--config", path.to_str().unwrap()]].concat(), b"")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

/// Whatever this machine lets the test have: memory and descriptors do not depend on the file.
fn warnings(output: &Output) -> Vec<String> {
    let told = json(output);
    let all = told["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|warning| warning["text"].as_str().unwrap().to_owned());
    all.filter(|text| !text.contains("of memory") && !text.contains("open files")).collect()
}

#[test]
fn warnings_are_told_and_count_where_that_is_wanted() {
    let setup = good();
    let output = check(&setup, &["--json", "--strict"]);
    assert_eq!(warnings(&output), Vec::<String>::new());
    let setup = good()
        .webhook("name = \"a\"")
        .secret("{ file = \"{dir}/odd\" }")
        .file("odd", "secret=0123456789abcdef\n");
    fs::set_permissions(setup.dir().join("odd"), Permissions::from_mode(0o644)).unwrap();
    let output = check(&setup, &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let told = warnings(&output);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("chmod o-r") && told[1].contains("mangled"), "{told:?}");
    assert_eq!(json(&output)["warnings"][0]["line"], 12);
    assert_eq!(check(&setup, &["--strict"]).status.code(), Some(1));
    let text = said(&check(&setup, &[]));
    assert!(
        text.contains("Warnings:") && text.contains("mangled") && !text.contains("0123456789abcdef"),
        "{text}"
    );
}

#[test]
fn a_mistake_is_json_too() {
    let setup = good().server("max_bdy = 1");
    for arguments in [&["--json"][..], &["--json", "--strict"]] {
        let output = check(&setup, arguments);
        assert_eq!(output.status.code(), Some(2));
        let told = json(&output);
        assert_eq!((&told["good"], &told["meaning"]), (&Value::Bool(false), &Value::Null));
        let mistake = &told["mistakes"][0];
        assert_eq!((&mistake["key"], &mistake["line"]), (&"server.max_bdy".into(), &3.into()));
        assert!(mistake["text"].as_str().unwrap().contains("`max_body`"), "{told}");
    }
}

#[test]
fn the_file_can_stand_by_itself() {
    let setup = good();
    let path = setup.write();
    let path = path.to_str().unwrap();
    assert_eq!(run(&["check", path], b"").status.code(), Some(0));
    assert_eq!(run(&["check", path, "--config", path], b"").status.code(), Some(2));
    assert_eq!(run(&["check", "/nowhere.toml"], b"").status.code(), Some(2));
}

#[test]
fn a_filter_from_the_environment_is_told() {
    let setup = good();
    let path = setup.write();
    let output = program().arg("check").arg(&path).env("RUST_LOG", "hookgate=debug").output().unwrap();
    assert!(said(&output).contains("RUST_LOG is set to `hookgate=debug`"), "{}", said(&output));
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).environment("RUST_LOG", "info").start();
    hookgate.wait_for_log(|line| {
        line["message"] == "configuration warning"
            && line["warning"].as_str().is_some_and(|text| text.contains("RUST_LOG"))
    });
}

/// How a secret comes out of editors, shells and stores: the log at the start says so, and it is used as it stands.
#[test]
fn the_service_warns_of_a_secret_that_looks_mangled() {
    const SECRET: &[u8] = b"pulumi-webhook-test-secret";
    let utf16: Vec<u8> = "pulumi-webhook-test-secret\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (content, words) in [
        ([SECRET, b"\n\n"].concat(), "white space"),
        ([b" ", SECRET].concat(), "white space"),
        ([SECRET, b" \n"].concat(), "white space"),
        ([b"\"", SECRET, b"\"\n"].concat(), "quotation marks"),
        ([b"\xef\xbb\xbf", SECRET, b"\n"].concat(), "byte order mark"),
        (utf16, "UTF-16"),
        ([b"WEBHOOK_SECRET=", SECRET].concat(), "begins with a name"),
        (b"cHVsdW1pLXdlYmhvb2stdGVzdC1zZWNyZXQK\n".to_vec(), "base64"),
        ([SECRET, "\u{a0}".as_bytes()].concat(), "white space"),
        ([SECRET, "\u{200b}".as_bytes(), b"x"].concat(), "invisible"),
        (vec![b' '; 32], "one character"),
    ] {
        let setup = good().file("secret", &content);
        let told = warnings(&check(&setup, &["--json"]));
        assert!(told.iter().any(|text| text.contains(words)), "{words}: {told:?}");
        assert!(!told.iter().any(|text| text.contains("test-secret")), "{told:?}");
    }
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).file("secret", [b" ", SECRET].concat()).start();
    hookgate.wait_for_log(|line| line["warning"].as_str().is_some_and(|text| text.contains("mangled")));
}

fn pipe(path: &Path) {
    drop(fs::remove_file(path));
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A named pipe that nobody writes to, and a device without an end.
#[test]
fn no_file_holds_a_command_up() {
    let dir = TempDir::new();
    let fifo = dir.path().join("fifo");
    pipe(&fifo);
    let fifo = fifo.to_str().unwrap();
    let secret = dir.write("secret", "0123456789abcdef");
    let secret = secret.to_str().unwrap();
    let signature = "0".repeat(64);
    for (arguments, words) in [
        (&["check", "--config", fifo][..], "named pipe"),
        (&["run", "--config", fifo], "named pipe"),
        (&["healthcheck", "--config", fifo], "named pipe"),
        (&["deliveries", "list", "--config", fifo], "named pipe"),
        (&["sign", "--secret-file", fifo, secret], "named pipe"),
        (&["check", "--config", "/dev/zero"], "more than"),
        (&["healthcheck", "--config", "/dev/zero"], "more than"),
        (&["sign", "--secret-file", "/dev/zero", secret], "more than"),
        (&["sign", "--secret-file", secret, "/dev/zero"], "more than"),
        (&["verify", "--secret-file", secret, "--signature", &signature, "/dev/zero"], "more than"),
        (
            &[
                "send",
                "--event",
                "ping",
                "--url",
                "https://localhost/",
                "--secret-file",
                secret,
                "--ca",
                fifo,
            ],
            "named pipe",
        ),
    ] {
        let start = Instant::now();
        let output = run(arguments, b"");
        let took = start.elapsed();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(words), "{arguments:?}: {}", said(&output));
        let most = if arguments[0] == "healthcheck" { 5 } else { 15 };
        assert!(took < Duration::from_secs(most), "{arguments:?} took {took:?}");
    }
}

/// Several files that hang: the time is that of one, not of all.
#[test]
fn files_that_hang_are_mistakes() {
    let setup = good()
        .secret("[{ file = \"{dir}/a\" }, { file = \"{dir}/b\" }, { file = \"{dir}/c\" }]")
        .destination("headers = { X-A = { file = \"{dir}/d\" } }");
    for name in ["a", "b", "c", "d"] {
        pipe(&setup.dir().join(name));
    }
    let start = Instant::now();
    let output = check(&setup, &[]);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        said(&output).matches("it is a named pipe that nobody writes to").count(),
        4,
        "{}",
        said(&output)
    );
}

#[test]
fn a_folder_in_the_place_of_a_file_is_called_one() {
    let dir = TempDir::new();
    let folder = dir.path().to_str().unwrap();
    for arguments in
        [&["check", folder][..], &["run", "--config", folder], &["healthcheck", "--config", folder]]
    {
        let output = run(arguments, b"");
        assert_eq!(output.status.code(), Some(2));
        assert!(
            said(&output).contains("is a folder: was the file missing when the container was made?"),
            "{}",
            said(&output)
        );
    }
    let setup = good().secret("{ file = \"{dir}\" }");
    assert!(said(&check(&setup, &[])).contains("is a folder"));
}

/// A mistake of a second webhook that is written above the first must not give it the first one's deliveries.
#[test]
fn a_webhook_above_another_takes_over_nothing_that_waits() {
    let [prod, audit] = [Upstream::always(Reply::status(503)), Upstream::always(Reply::ok())];
    let hookgate = Setup::bare()
        .section("[queue]\npath = \"{dir}/queue.db\"\nbackoff = { initial = \"50ms\", max = \"100ms\" }")
        .with(Webhook::to(&prod.url()).at("/prod"))
        .start();
    let delivery = crate::support::Delivery::good().to("/prod");
    assert_eq!(hookgate.send(&delivery).said(), (202, "queued"));
    prod.wait_for(1);
    let text = fs::read_to_string(hookgate.dir().join("hookgate.toml")).unwrap();
    let (head, own) = text.split_once("[[webhook]]").unwrap();
    let other = own.replace("/prod", "/audit").replace(&prod.url(), &audit.url());
    fs::write(hookgate.dir().join("hookgate.toml"), format!("{head}[[webhook]]{other}[[webhook]]{own}"))
        .unwrap();
    hookgate.signal("HUP");
    hookgate.wait_for_log(|line| line["message"] == "the configuration was reloaded");
    let before = prod.requests().len();
    prod.wait_for(before + 2);
    assert_eq!(audit.requests().len(), 0);
}
