//! Words of a sender in a line of the log: as they came, as far as a reader cannot be fooled by them.

use std::fmt::Write as _;

/// The most characters of a text that comes from outside.
const MOST: usize = 128;

/// A text from outside, cut after 128 characters. What ends a line, moves a cursor, turns the direction of writing or
/// shows nothing at all is written as `\u{…}`.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(4 * MOST));
    let mut left = MOST;
    for character in text.chars() {
        let before = shown.len();
        if misleads(character) {
            write!(shown, "{}", character.escape_unicode()).expect("writing to a String does not fail");
        } else {
            shown.push(character);
        }
        let width = if shown.len() == before + character.len_utf8() { 1 } else { shown.len() - before };
        let Some(rest) = left.checked_sub(width) else {
            shown.truncate(before);
            break;
        };
        left = rest;
    }
    shown
}

/// Whether a character is not what a reader sees: control characters, those that turn the direction of writing or end a
/// line, and those without a width.
pub(super) const fn misleads(character: char) -> bool {
    matches!(character,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_misleads_is_written_out_and_the_rest_is_as_it_came() {
        for (text, expected) in [
            ("/webhooks/pulumi", "/webhooks/pulumi"),
            ("/a\u{1b}[31m\n", "/a\\u{1b}[31m\\u{a}"),
            ("/\u{9b}\u{7f}\u{202e}gpj\u{2066}\u{200f}", "/\\u{9b}\\u{7f}\\u{202e}gpj\\u{2066}\\u{200f}"),
            ("/é/🍹/日本", "/é/🍹/日本"),
            ("", ""),
        ] {
            assert_eq!(shown(text), expected);
        }
        assert_eq!(shown(&"a".repeat(1000)), "a".repeat(128));
        assert_eq!(shown(&"é".repeat(1000)), "é".repeat(128));
        // Nothing is cut in the middle of what is written out.
        assert_eq!(shown(&"\u{202e}".repeat(1000)), "\\u{202e}".repeat(16));
        assert_eq!(shown(&format!("{}\n", "a".repeat(126))), "a".repeat(126));
    }

    proptest! {
        #[test]
        fn nothing_that_misleads_is_left_and_nothing_is_longer(text in any::<String>()) {
            let shown = shown(&text);
            prop_assert!(!shown.chars().any(|character| character.is_control() || misleads(character)));
            prop_assert!(shown.chars().count() <= MOST);
        }
    }
}
