//! `config.example.toml` holds every key at its default.

use super::{parse, with};
use crate::{
    config::Queue,
    delivery::dedupe,
    ingress::settings as server,
    ops::{self, log},
};

/// `config.example.toml` holds every optional key as `#key = default`.
#[test]
fn the_example_holds_every_key_at_its_default() {
    let secret = "tests/data/config/files/secret";
    let example = include_str!("../../../config.example.toml")
        .replace("/run/secrets/pulumi-webhook\"", &format!("{secret}\""));
    let is_key = |line: &str| {
        let word = line.split(' ').next().unwrap_or_default();
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let mut uncommented = 0;
    let whole: Vec<_> = example
        .lines()
        .map(|line| match line.strip_prefix('#').filter(|rest| is_key(rest) && rest.contains(" = ")) {
            Some(key) => {
                uncommented += 1;
                key
            }
            None => line,
        })
        .collect();
    assert_eq!(uncommented, 20);
    let [short, whole] = [example.as_str(), &whole.join("\n")].map(|text| {
        let config = parse(text).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(config.server, server::Settings::default());
        assert_eq!(config.ops, ops::Settings::default());
        assert_eq!(config.log, log::Settings::default());
        assert_eq!(config.dedupe, dedupe::Settings::default());
        assert_eq!(config.queue, None);
        format!("{:?}", config.webhooks)
    });
    assert_eq!(short, whole);
}

/// The queue is off by default, so its section stands in the text, with every key that has a default.
#[test]
fn the_example_shows_the_queue_at_its_defaults() {
    let example = include_str!("../../../config.example.toml");
    let shown: Vec<_> = example
        .lines()
        .map(|line| line.trim_start_matches("#   "))
        .skip_while(|line| *line != "[queue]")
        .take_while(|line| !line.is_empty())
        .collect();
    let sqlite: Vec<_> = shown.iter().filter(|line| !line.starts_with('#')).copied().collect();
    let config = parse(&with(&sqlite.join("\n"))).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!((config.queue, sqlite.len()), (Some(Queue::default()), 9));
}
