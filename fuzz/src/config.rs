//! The configuration: the whole input as the file's text.
//!
//! Promise: nothing panics; every mistake has a place in the text and is one line; what is accepted is within its
//! bounds. Files that the text names are read where they exist.

use std::path::Path;

use hookgate::config::{Config, Mistake};

/// Judges one input.
pub fn run(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    // A name such as /dev/tty would wait for somebody to type.
    if text.contains("/dev/") || text.contains("/proc/") {
        return;
    }
    match Config::parse(Path::new("fuzz.toml"), text) {
        Ok(config) => {
            assert!(!config.webhooks.is_empty());
            assert!(config.server.max_inflight_bytes >= config.server.max_body);
            for webhook in &config.webhooks {
                assert!(webhook.settings.path.starts_with('/'));
                assert!(!webhook.settings.name.is_empty());
                assert!(!webhook.settings.verifier.keys().is_empty());
                assert_eq!(webhook.settings.destinations.len(), 1);
            }
            config.warnings.iter().for_each(|warning| check(text, warning));
        }
        Err(report) => {
            assert!(!report.mistakes().is_empty());
            report.mistakes().iter().for_each(|mistake| check(text, mistake));
        }
    }
}

fn check(text: &str, mistake: &Mistake) {
    let line = mistake.to_string();
    assert!(!mistake.text.is_empty() && !line.contains('\n'), "{line}");
    let place = mistake.place.unwrap_or_else(|| panic!("no place: {line}"));
    // Behind the last newline there is a line, too.
    let lines: Vec<_> = text.split('\n').collect();
    let there = lines.get(place.line - 1).unwrap_or_else(|| panic!("no such line: {line}"));
    assert!((1..=there.chars().count() + 1).contains(&place.column), "no such column: {line}");
}
