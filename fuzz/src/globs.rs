//! Globs of `environments` and `tags`: the first line is the pattern, the rest is the name.
//!
//! Promise: `*` is any run of characters, `?` is one, everything else is itself, and the whole name must fit.

use hookgate::webhook::filter::Globs;

/// Judges one input.
pub fn run(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Some((pattern, name)) = text.split_once('\n') else { return };
    // The table of the plain matcher has so many rows and columns.
    if pattern.len() > 256 || name.len() > 256 {
        return;
    }
    assert_eq!(Globs::new([pattern]).match_name(name), fits(pattern, name), "{pattern:?} over {name:?}");
    assert_eq!(Globs::new(["no-such-name", pattern]).match_name(name), fits(pattern, name));
    assert!(!Globs::new([]).match_name(name));
}

/// Row by row: which beginnings of the name fit the pattern so far.
fn fits(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let mut fitting = vec![false; name.len() + 1];
    fitting[0] = true;
    for sign in pattern.chars() {
        let before = fitting.clone();
        for end in 0..fitting.len() {
            fitting[end] = match sign {
                '*' => before[..=end].contains(&true),
                '?' => end > 0 && before[end - 1],
                letter => end > 0 && before[end - 1] && name[end - 1] == letter,
            };
        }
    }
    fitting[name.len()]
}
