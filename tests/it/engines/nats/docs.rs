//! What `docs/nats.md` tells operators to do does what it says.

use std::{path::Path, process::Command};

use async_nats::ConnectOptions;
use nkeys::KeyPair;

use crate::support::{
    Delivery, Hookgate, NatsServer, Reply, Setup, TempDir, Upstream, Webhook, eventually, program,
};

const PAGE: &str = include_str!("../../../../docs/nats.md");

/// The blocks of code below a heading, in this language.
fn blocks(heading: &str, language: &str) -> Vec<&'static str> {
    let section = PAGE.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let mut blocks = Vec::new();
    let mut parts = section.split("```");
    parts.next();
    while let Some(block) = parts.next() {
        let (first, rest) = block.split_once('\n').unwrap();
        if first == language {
            blocks.push(rest);
        }
        parts.next();
    }
    blocks
}

fn sh(script: &str, server: &NatsServer, hookgate: &Hookgate, folder: &Path) {
    let programs = Path::new(program().get_program()).parent().unwrap().to_owned();
    let path = format!("{}:/usr/bin:/bin", programs.display());
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(folder)
        .env("PATH", path)
        .env("STORE", server.folder())
        .env("HOOKGATE_CONFIG", hookgate.config())
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn states(hookgate: &Hookgate) -> Vec<(String, String)> {
    let config = hookgate.config().to_str().unwrap();
    let output = program().args(["deliveries", "list", "--json", "--config", config]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let field = |job: &serde_json::Value, name: &str| job[name].as_str().unwrap().to_owned();
    let mut states: Vec<_> = lines.map(|job| (field(&job, "id"), field(&job, "state"))).collect();
    states.sort();
    states
}

fn is_ready(hookgate: &Hookgate) {
    eventually("it is ready", || (hookgate.ops("/readyz").status == 200).then_some(()));
}

#[test]
fn queues_are_backed_up_restored_moved_and_cleared() {
    let upstream = Upstream::scripted(|request| {
        Reply::status(request.header("pulumi-webhook-id").unwrap().parse().unwrap())
    });
    let folder = TempDir::new();
    // The user has what the page says, and no more.
    let [permissions] = blocks("What the server must be like", "")[..] else { panic!() };
    let pair = KeyPair::new_user();
    let seed = pair.seed().unwrap();
    let user = format!("nkey: {}, {permissions}", pair.public_key());
    let mut server =
        NatsServer::with(TempDir::new(), &format!("authorization {{ users: [ {{ {user} }} ] }}"));
    let url = server.url();
    let credentials = folder.write("seed.nk", &seed);
    let queue = format!(
        "[queue]\nstore = \"nats\"\nurl = {url:?}\ncredentials = {{ file = {credentials:?} }}\nbackoff = {{ initial = \"1h\", max = \"1h\" }}"
    );
    let webhook = Webhook::to(&upstream.url()).line("name = \"esc\"");
    let hookgate = Setup::bare().section(&queue).with(webhook).start();
    is_ready(&hookgate);
    for status in ["200", "400", "503"] {
        assert_eq!(hookgate.send(&Delivery::good().id(status)).status, 202);
    }
    let all = [("200", "delivered"), ("400", "dead"), ("503", "waiting")];
    let all: Vec<_> = all.map(|(id, state)| (id.to_owned(), state.to_owned())).into();
    let settled = || {
        let labels = [("webhook", "esc"), ("destination", "default"), ("result", "retry")];
        let retried = hookgate.metrics().value("hookgate_attempts_total", &labels);
        (retried == Some(1.0) && states(&hookgate) == all).then_some(())
    };
    eventually("all are tried", settled);

    let [back_up, restore] = blocks("Back up", "sh")[..] else { panic!() };
    server.kill();
    sh(back_up, &server, &hookgate, folder.path());
    server.restart();
    is_ready(&hookgate);
    let [clear] = blocks("Clear", "sh")[..] else { panic!() };
    sh(clear, &server, &hookgate, folder.path());
    assert_eq!(states(&hookgate), []);

    server.kill();
    sh(restore, &server, &hookgate, folder.path());
    server.restart();
    is_ready(&hookgate);
    assert_eq!(states(&hookgate), all);
    let seen = upstream.requests().len();

    // To another server, in whose place the first one was.
    server.kill();
    sh(&format!("rm -rf \"$STORE\"\n{restore}"), &server, &hookgate, folder.path());
    server.restart();
    is_ready(&hookgate);
    assert_eq!(states(&hookgate), all);
    assert_eq!(upstream.requests().len(), seen, "nothing was made again");

    let [requests] = blocks("Clear", "")[..] else { panic!() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = ConnectOptions::with_nkey(seed).connect(url).await.unwrap();
        for subject in requests.lines() {
            let answer = client.request(subject, "".into()).await.unwrap().payload;
            assert!(String::from_utf8_lossy(&answer).contains("\"success\":true"), "{answer:?}");
        }
    });
    eventually("the streams are made again", || {
        (hookgate.send(&Delivery::good().id("200")).said() == (202, "queued")).then_some(())
    });
    eventually("it is delivered", || (states(&hookgate) == all[..1]).then_some(()));
}
