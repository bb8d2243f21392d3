//! The names of webhooks, destinations and secrets: their grammar, and those of things that were given none.
//!
//! What waits in the queue, and what an operator has learned to look at, belongs to names. So a default comes from what
//! a thing is, its path or its file, and never from its place in the file: something written above it would take over
//! its name.

use toml::de::DeTable;

use super::report::short;

/// The longest name.
pub(super) const LONGEST: usize = 64;

/// A default name, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Follows the grammar of names.
    Well(String),
    /// In words that follow what the name was made from.
    Badly(&'static str),
}

/// The name that a text makes: what no name can have becomes `-`, and none stands at the ends.
pub(super) fn default_name(text: &str) -> Named {
    let mut name = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() {
        Named::Badly("has no letter or digit in it")
    } else if name.len() > LONGEST {
        Named::Badly("is longer than the 64 bytes of a name")
    } else {
        Named::Well(name.to_owned())
    }
}

/// The name of a webhook at a path. The path `/` has one of its own.
pub(super) fn of_path(path: &str) -> Named {
    if path == "/" { Named::Well("root".to_owned()) } else { default_name(path) }
}

/// Whether a text follows the grammar of names.
pub(super) fn is_label(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(allowed)
}

/// The name of a webhook: the given one, or the one that its path makes. `None` where either is wrong, `Err` where the
/// path makes none.
pub(super) fn name_of(table: &DeTable<'_>) -> Option<Result<String, &'static str>> {
    if let Some(written) = table.get("name") {
        let written = written.get_ref().as_str().filter(|name| is_label(name) && *name != NO_WEBHOOK)?;
        return Some(Ok(written.to_owned()));
    }
    let path = table.get("path")?.get_ref().as_str()?;
    if wrong_path(path).is_some() {
        return None;
    }
    Some(match of_path(path) {
        Named::Well(name) if name == NO_WEBHOOK => Err("labels requests that belong to no webhook"),
        Named::Well(name) => Ok(name),
        Named::Badly(why) => Err(why),
    })
}

/// The name of a destination, if it has one: the given one, or that of an only one.
pub(super) fn destination_name(table: &DeTable<'_>, of: usize) -> Option<String> {
    match table.get("name") {
        Some(written) => written.get_ref().as_str().filter(|name| is_label(name)).map(str::to_owned),
        None => (of == 1).then(|| "default".to_owned()),
    }
}

/// Labels requests that belong to no webhook.
pub(super) const NO_WEBHOOK: &str = "none";

pub(super) fn wrong_path(text: &str) -> Option<String> {
    if !text.starts_with('/') {
        let rest = text.rsplit("://").next().and_then(short).unwrap_or("…");
        Some(format!("must begin with a slash: write \"/{rest}\""))
    } else if text.contains(['?', '#']) {
        Some("must be a path only: remove what follows ? or #; queries of requests are ignored".into())
    } else if !is_uri_path(text) {
        Some("is not the path of a URL: characters other than A-Z a-z 0-9 and -._~!$&'()*+,;=:@/ are written as %XX".into())
    } else {
        None
    }
}

/// Whether a text can stand as the path of a request, as RFC 3986 writes it.
fn is_uri_path(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let fits = match byte {
            b'%' => {
                [bytes.next(), bytes.next()].iter().all(|digit| digit.is_some_and(|d| d.is_ascii_hexdigit()))
            }
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte),
        };
        if !fits {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_from_the_path() {
        for (path, name) in [
            ("/webhooks/pulumi", "webhooks-pulumi"),
            ("/", "root"),
            ("/a", "a"),
            ("/a/", "a"),
            ("//a//b", "a-b"),
            ("/A.b_c-d", "A.b_c-d"),
            ("/hooks/%C3%BC", "hooks-C3-BC"),
            ("/a(b)", "a-b"),
        ] {
            assert_eq!(of_path(path), Named::Well(name.to_owned()), "{path}");
        }
        assert!(matches!(of_path("//"), Named::Badly(_)));
        let long = format!("/{}", "x".repeat(64));
        assert_eq!(of_path(&long), Named::Well("x".repeat(64)));
        assert!(matches!(of_path(&format!("{long}x")), Named::Badly(_)));
    }
}
