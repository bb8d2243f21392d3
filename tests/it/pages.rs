//! The commands of `docs/queue.md`, in the order of the page and as they stand there.

use std::{fs, process::Command};

use rusqlite::Connection;

use crate::support::{Delivery, Reply, Setup, Upstream, Webhook};

const PAGE: &str = include_str!("../../docs/queue.md");
const FOLDER: &str = "/var/lib/hookgate";
const CONFIG: &str = "/etc/hookgate/hookgate.toml";

/// The commands below each heading.
fn commands() -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    let (mut heading, mut shell) = ("", false);
    for line in PAGE.lines() {
        match line {
            "```sh" => shell = true,
            "```" => shell = false,
            _ if shell => found.push((heading, line)),
            _ => heading = line.strip_prefix("## ").unwrap_or(heading),
        }
    }
    found
}

fn states(path: &str) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare("SELECT state FROM job ORDER BY delivery").unwrap();
    let states = statement.query_map([], |row| row.get(0)).unwrap();
    states.collect::<Result<_, _>>().unwrap()
}

#[test]
fn every_command_of_the_queue_s_page_does_what_it_says() {
    let upstream = Upstream::always(Reply::status(503));
    let queue = "[queue]\npath = \"{dir}/queue.db\"\nbackoff = { initial = \"1s\", max = \"1s\" }";
    let mut hookgate = Setup::bare().section(queue).with(Webhook::to(&upstream.url())).start();
    let folder = hookgate.dir().to_str().unwrap().to_owned();
    let config = hookgate.config().to_str().unwrap().to_owned();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_hookgate")).parent().unwrap();
    let path = format!("{}:/usr/bin:/bin", binary.display());
    for _ in 0..3 {
        assert_eq!(hookgate.send(&Delivery::good()).said(), (202, "queued"));
    }
    let commands = commands();
    let mut before = "";
    for (heading, line) in &commands {
        // What each heading promises, looked at when the next one begins.
        if *heading != before {
            match before {
                "Backup" => {
                    for name in ["backup.db", "stopped.db"] {
                        assert_eq!(states(&format!("{folder}/{name}")), ["waiting"; 3], "{name}");
                    }
                    assert_eq!(hookgate.send(&Delivery::good()).said(), (202, "queued"));
                }
                "Restore" => assert_eq!(states(&format!("{folder}/queue.db")), ["waiting"; 3]),
                "Move" => {
                    assert_eq!(states(&format!("{folder}/elsewhere/queue.db")), ["waiting"; 3]);
                    assert!(!fs::exists(format!("{folder}/queue.db")).unwrap());
                }
                _ => {}
            }
            before = heading;
        }
        match *line {
            "systemctl stop hookgate" => {
                hookgate.signal("TERM");
                assert_eq!(hookgate.wait_exit().code(), Some(0));
            }
            "systemctl start hookgate" => hookgate.start_again(),
            line => {
                let command = line.replace(CONFIG, &config).replace(FOLDER, &folder);
                let output = Command::new("sh")
                    .args(["-ec", &command])
                    .env("PATH", &path)
                    .env("HOOKGATE_CONFIG", &config)
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{command}: {output:?}");
                if line.contains("SELECT") || line.contains(" list ") {
                    assert!(!output.stdout.is_empty(), "{command} says nothing");
                }
                if line.contains("--state waiting") {
                    assert_eq!(states(&format!("{folder}/elsewhere/queue.db")), [""; 0]);
                }
            }
        }
    }
    assert_eq!(commands.len(), 23, "{commands:?}");
    assert_eq!(states(&format!("{folder}/elsewhere/queue.db")), [""; 0]);
}
