//! What is wrong with a configuration: every mistake with its place, its key and what would be right.
//!
//! No text in here repeats a secret, nor what stands where a secret's place is.

use std::{
    error::Error,
    fmt::{self, Write},
    path::PathBuf,
};

use crate::webhook::secret::MIN_LEN;

/// Something wrong, or something to be warned of, in a configuration file.
///
/// Prints as one line: `FILE:LINE:COLUMN: KEY: what is wrong; what would be right`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The configuration file.
    pub file: PathBuf,
    /// Where in it. `None`: the file as a whole.
    pub place: Option<Place>,
    /// The path of the key: `server.max_body`, `webhook.NAME.destination.NAME.url`. Empty where there is none.
    pub key: String,
    /// What is wrong, and what would be right.
    pub text: String,
}

/// A place in a text. Both numbers count from 1; columns are characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

impl Place {
    /// The place of a byte offset.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let (before, _) = text.split_at(offset);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write_plain(f, &self.key)?;
            f.write_str(": ")?;
        }
        write_plain(f, &self.text)
    }
}

/// Keys and names come from the file, and TOML lets them hold line breaks; a mistake is one line.
fn write_plain(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars()
        .try_for_each(|c| if is_hidden(c) { write!(f, "{}", c.escape_default()) } else { f.write_char(c) })
}

/// Whether a character cannot be seen as what it is: control characters, line and paragraph separators, what changes
/// the direction of text, what has no width, spaces that look like another. Whoever prints the text of others writes
/// its code instead.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{a0}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}'
            | '\u{2800}' | '\u{3000}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// A value as a mistake may repeat it: one that is as long as a secret may be one, in whatever place it stands.
pub(super) fn quoted(value: &str) -> String {
    short(value).map_or_else(|| "this value".to_owned(), |value| format!("`{value}`"))
}

/// A value, if it is too short to be a secret.
pub(super) fn short(value: &str) -> Option<&str> {
    Some(value).filter(|value| value.len() < MIN_LEN)
}

/// Everything that is wrong with a configuration, in the order of the file. Prints one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    mistakes: Vec<Mistake>,
    files: Vec<PathBuf>,
}

impl Report {
    /// Takes mistakes in any order, and the files that the configuration names.
    pub(super) fn new(mut mistakes: Vec<Mistake>, files: Vec<PathBuf>) -> Self {
        sort(&mut mistakes);
        Self { mistakes, files }
    }

    /// Every file that the configuration names as far as it could be read: one of them may be what is wrong.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The mistakes, in the order of the file. Never empty.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

/// Puts mistakes into the order of the file.
pub(super) fn sort(mistakes: &mut [Mistake]) {
    mistakes.sort_by_key(|mistake| mistake.place);
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a = 1\n\"ü\" = 2\n";
        let of = |offset| Place::of(text, offset);
        assert_eq!(of(0), Place { line: 1, column: 1 });
        assert_eq!(of(4), Place { line: 1, column: 5 });
        assert_eq!(of(6), Place { line: 2, column: 1 });
        // The middle of a character is its beginning.
        assert_eq!(of(8), Place { line: 2, column: 2 });
        assert_eq!(of(9), Place { line: 2, column: 3 });
        assert_eq!(of(999), Place { line: 3, column: 1 });
    }

    #[test]
    fn a_mistake_is_one_line() {
        let mistake = Mistake {
            file: "h.toml".into(),
            place: Some(Place { line: 3, column: 7 }),
            key: "a\nb".into(),
            text: "unknown\r".into(),
        };
        assert_eq!(mistake.to_string(), "h.toml:3:7: a\\nb: unknown\\r");
        let whole = Mistake { place: None, key: String::new(), text: "cannot be read".into(), ..mistake };
        assert_eq!(whole.to_string(), "h.toml: cannot be read");
    }
}
