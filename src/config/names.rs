//! The names of things that were given none.
//!
//! What waits in the queue, and what an operator has learned to look at, belongs to names. So a default comes from what
//! a thing is, its path or its file, and never from its place in the file: something written above it would take over
//! its name.

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
