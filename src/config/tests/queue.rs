//! `[queue]`: its keys, what of NATS they name, and how commands look into it.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::Path,
    time::Duration,
};

use super::{FOLDER, Folder, mistakes, parse, test_now, test_variable, with};
use crate::{
    config::{Config, Queue, QueueView},
    delivery::{
        backoff::Backoff,
        queue::{Policy, Recipient, Retention, Store, nats},
        worker,
    },
    files::Patience,
};

#[test]
fn every_key_of_the_queue_is_read() {
    let read = |name: &str| {
        let path = Path::new(FOLDER).join("valid").join(name);
        let config = parse(&fs::read_to_string(path).unwrap()).unwrap_or_else(|report| panic!("{report}"));
        assert!(!format!("{config:?}").contains("hidden"));
        config
    };
    let config = read("queue.toml");
    let queue = Queue {
        store: Store::Sqlite { path: "queue.db".into() },
        retention: Retention {
            retain: Duration::from_secs(300),
            dead_retain: Duration::from_secs(7 * 24 * 60 * 60),
            max_bytes: 2 << 20,
        },
        worker: worker::Settings {
            max_attempts: Some(3),
            max_age: Duration::from_secs(3600),
            backoff: Backoff { initial: Duration::from_millis(10), max: Duration::from_secs(1) },
            concurrency: 2,
        },
    };
    assert_eq!(config.queue, Some(queue));
    let policies: Vec<_> =
        config.webhooks[0].settings.destinations.iter().map(|destination| destination.policy).collect();
    let coalesce = Some(Duration::from_secs(10));
    let expected = [Policy { in_order: true, coalesce: None }, Policy { in_order: false, coalesce }];
    assert_eq!(policies, expected);

    let config = read("nats.toml");
    let files = Path::new(FOLDER).join("files");
    let store = Store::Nats(nats::Settings {
        url: "tls://nats.example:4222".into(),
        stream: "ESC".into(),
        credentials: Some(files.join("nats.creds")),
        ca: Some(files.join("ca.pem")),
        replicas: 3,
    });
    assert_eq!(config.queue, Some(Queue { store, ..Queue::default() }));
    assert!(config.files.contains(&files.join("nats.creds")));
    assert_eq!(parse(&with("[queue]")).unwrap().queue, Some(Queue::default()));
    assert_eq!(parse(&with("")).unwrap().queue, None);
}

#[test]
fn credentials_of_nats_are_those_of_a_user_or_a_seed() {
    let folder = Folder::new("nats");
    for (content, mistakes_in_it) in [
        ("-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n", 0),
        ("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n", 0),
        ("", 1),
        ("hidden", 1),
    ] {
        let path = folder.write("creds", content.as_bytes(), 0o600);
        for written in [format!("{path:?}"), format!("{{ file = {path:?} }}")] {
            let queue = format!("[queue]\nstore = \"nats\"\nurl = \"nats://a\"\ncredentials = {written}");
            let found = mistakes(&with(&queue));
            assert_eq!(found.len(), mistakes_in_it, "{content}: {found:?}");
            assert!(!found.iter().any(|text| text.contains("hidden")), "{found:?}");
        }
    }
    let nowhere = "[queue]\nstore = \"nats\"\nurl = \"nats://a\"\ncredentials = \"/nowhere/creds\"";
    assert!(mistakes(&with(nowhere))[0].contains("cannot be read"));
}

#[test]
fn urls_of_nats() {
    let good = [
        "nats://nats",
        "nats://nats:4222",
        "tls://nats.example:4222/",
        "nats://[::1]:4222",
        "nats://a,tls://b:1",
    ];
    let bad = [
        "nats",
        "http://nats",
        "nats://",
        "nats://a b",
        "nats://a:x",
        "nats://a:",
        "nats://a/b",
        "nats://u@a",
    ];
    for (text, mistakes_in_it) in good.iter().map(|text| (text, 0)).chain(bad.iter().map(|text| (text, 1))) {
        let found = mistakes(&with(&format!("[queue]\nstore = \"nats\"\nurl = \"{text}\"")));
        assert_eq!(found.len(), mistakes_in_it, "{text}: {found:?}");
    }
}

#[test]
fn a_queue_can_be_looked_into_whatever_else_is_wrong() {
    let path = Path::new("h.toml");
    let text = r#"
        unknown = 1
        [server]
        max_body = 7
        [queue]
        path = "/tmp/q.db"
        [[webhook]]
        path = "/webhooks/pulumi"
        secret = { file = "/nowhere" }
        [[webhook.destination]]
        name = "app"
        [[webhook.destination]]
        url = 1
        [[webhook]]
        name = "esc"
        [[webhook.destination]]
        [[webhook]]
        name = "other"
        [[webhook.destination]]
        name = "no name"
        [[webhook]]
        [[webhook.destination]]
        [[webhook]]
        destination = "nonsense"
    "#;
    let view = QueueView::parse(path, text, &Patience::default()).unwrap();
    assert_eq!(view.queue.unwrap().store, Store::Sqlite { path: "/tmp/q.db".into() });
    let recipients: BTreeSet<_> = view.recipients.iter().map(ToString::to_string).collect();
    assert_eq!(recipients.iter().collect::<Vec<_>>(), ["esc/default", "webhooks-pulumi/app"]);

    let none = QueueView::parse(path, "webhook = 3", &Patience::default()).unwrap();
    assert_eq!(none, QueueView { queue: None, recipients: HashSet::new() });
    let wrong = |text| QueueView::parse(path, text, &Patience::default()).unwrap_err().to_string();
    assert!(wrong("[queue]\nstor = 1").contains("h.toml:2:1: queue.stor"), "{}", wrong("[queue]\nstor = 1"));
    assert!(wrong("queue = 1").contains("queue"));
    assert!(wrong("[queue").contains("not TOML"));
}

/// The names are those under which the service enqueues.
#[test]
fn recipients_are_those_of_the_whole_configuration() {
    let mut seen = 0;
    for entry in fs::read_dir(format!("{FOLDER}/valid")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let whole = Config::parse_in(&path, &text, test_now(), &test_variable).unwrap();
        let expected: HashSet<_> = whole
            .webhooks
            .iter()
            .flat_map(|webhook| {
                webhook.settings.destinations.iter().map(|destination| Recipient {
                    webhook: webhook.settings.name.clone(),
                    destination: destination.name.clone(),
                })
            })
            .collect();
        let view = QueueView::parse(&path, &text, &Patience::default()).unwrap();
        assert_eq!(view.recipients, expected, "{}", path.display());
        assert_eq!(view.queue, whole.queue, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 8, "{seen}");
}
