//! Patterns over names: whether there can be a name that one fits.
//!
//! A pattern that fits nothing keeps every delivery out without a word, so it is a mistake.

/// The names that patterns are over.
pub(super) struct Names {
    /// Whether a name has two parts with a `/` between them.
    parts: bool,
    /// What else they have, beside letters, digits, `-`, `_` and `.`.
    more: &'static [char],
    /// What a pattern is to be like.
    wanted: &'static str,
}

/// `PROJECT/ENVIRONMENT`.
pub(super) const ENVIRONMENT: Names =
    Names { parts: true, more: &[], wanted: "patterns match PROJECT/ENVIRONMENT" };

/// Tags of revisions, and those of environments, which may have namespaces.
pub(super) const TAG: Names =
    Names { parts: false, more: &[':', '/'], wanted: "patterns match the names of tags" };

// How far into a name one is, as bits of a set.
const START: u8 = 1;
/// In the project.
const PROJECT: u8 = 2;
/// Behind the slash.
const SLASH: u8 = 4;
/// In the environment, or in a name without parts.
const END: u8 = 8;

impl Names {
    /// Why a pattern fits no name that there can be, and what to write. `None`: it fits one.
    pub(super) fn why_never(&self, pattern: &str) -> Option<String> {
        if self.fits_some(pattern) {
            return None;
        }
        let why = if pattern.is_empty() {
            "write e.g. \"*\", or remove it".to_owned()
        } else if pattern.trim() != pattern {
            "it has white space at an end: remove that".to_owned()
        } else if pattern.contains(['{', '}', '[', ']', '(', '|', ',']) {
            "only * and ? are special: write several patterns instead".to_owned()
        } else if pattern.contains('@') {
            "names have no `@`: what follows it is a tag or a revision; choose tags with `tags`".to_owned()
        } else if pattern.contains('\\') {
            "names have no backslash".to_owned()
        } else if let Some(c) = pattern.chars().find(|c| !self.has(*c) && !matches!(c, '*' | '?' | '/')) {
            format!(
                "names have no `{}`: they consist of letters, digits, '-', '_' and '.'",
                c.escape_default()
            )
        } else if self.parts && !pattern.contains('/') {
            match super::report::short(pattern) {
                Some(pattern) => format!("{}; write \"{pattern}/*\" or \"*/{pattern}\"", self.wanted),
                None => format!("{}; write e.g. \"website/prod\"", self.wanted),
            }
        } else if pattern.matches('/').count() > 1 {
            "a name has two parts, PROJECT/ENVIRONMENT: write these without the organization, which has a key of its own"
                .to_owned()
        } else {
            format!("{}; write e.g. \"website/prod\"", self.wanted)
        };
        Some(why)
    }

    fn has(&self, c: char) -> bool {
        c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') || self.more.contains(&c)
    }

    /// Walks through the pattern with every place in a name that one can be at.
    fn fits_some(&self, pattern: &str) -> bool {
        let walk = |at: u8, c: char| match c {
            // Any number of steps: every place is at most three from the first.
            '*' => (0..3).fold(at, |at, _| at | self.step(at, None)),
            '?' => self.step(at, None),
            c => self.step(at, Some(c)),
        };
        pattern.chars().fold(START, walk) & END != 0
    }

    /// Where one is after this character more, or after any.
    fn step(&self, at: u8, c: Option<char>) -> u8 {
        let letter = c.is_none_or(|c| self.has(c));
        let slash = c.is_none_or(|c| c == '/');
        let to = |fits: bool, from: u8, to: u8| if fits && at & from != 0 { to } else { 0 };
        if self.parts {
            to(letter, START | PROJECT, PROJECT) | to(slash, PROJECT, SLASH) | to(letter, SLASH | END, END)
        } else {
            to(letter, START | END, END)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn environments_that_there_can_be() {
        for pattern in
            ["website/prod", "website/*", "*/prod", "*", "a*", "a?b", "?*", "prod*", "**", "a.b_c-d/1", "???"]
        {
            assert_eq!(ENVIRONMENT.why_never(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn environments_that_there_cannot_be() {
        for (pattern, words) in [
            ("prod", "\"prod/*\""),
            ("?", "PROJECT/ENVIRONMENT"),
            ("??", "PROJECT/ENVIRONMENT"),
            ("", "\"*\""),
            ("acme/website/prod", "without the organization"),
            ("website/{a,b}", "several patterns"),
            ("website/[ab]", "several patterns"),
            ("a/b,c/d", "several patterns"),
            ("website/prod@stable", "`tags`"),
            ("website/prod ", "white space"),
            (" website/prod", "white space"),
            ("website /prod", "names have no ` `"),
            ("website/", "PROJECT/ENVIRONMENT"),
            ("/prod", "PROJECT/ENVIRONMENT"),
            ("/", "PROJECT/ENVIRONMENT"),
            ("website//prod", "two parts"),
            ("website/pr\u{f6}d", "names have no `\\u{f6}`"),
            ("website\\prod", "backslash"),
        ] {
            let why = ENVIRONMENT.why_never(pattern).unwrap_or_default();
            assert!(why.contains(words), "{pattern}: {why}");
        }
    }

    #[test]
    fn tags_that_there_can_be_and_cannot_be() {
        for pattern in ["stable", "release-*", "*", "v1.2_3", "pulumi:owner", "team/x"] {
            assert_eq!(TAG.why_never(pattern), None, "{pattern}");
        }
        for pattern in ["", " ", "stable ", "@stable", "{a,b}", "a b", "\u{e4}"] {
            assert!(TAG.why_never(pattern).is_some(), "{pattern}");
        }
    }

    proptest! {
        /// A pattern made from a name fits it, and so is never refused.
        #[test]
        fn what_fits_a_name_is_not_refused(
            project in "[A-Za-z0-9._-]{1,6}",
            name in "[A-Za-z0-9._-]{1,6}",
            cut in any::<[prop::sample::Index; 2]>(),
            question in any::<prop::sample::Index>(),
        ) {
            let whole = format!("{project}/{name}");
            let mut ends = cut.map(|at| at.index(whole.len() + 1));
            ends.sort_unstable();
            let starred = format!("{}*{}", whole.get(..ends[0]).unwrap(), whole.get(ends[1]..).unwrap());
            prop_assert_eq!(ENVIRONMENT.why_never(&starred), None);
            let mut asked = whole.clone();
            let at = question.index(whole.len());
            asked.replace_range(at..=at, "?");
            prop_assert_eq!(ENVIRONMENT.why_never(&asked), None);
        }
    }
}
