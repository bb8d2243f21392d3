//! The watcher of raw bytes: the whole input as what comes on one connection.
//!
//! Promise: how the bytes are cut does not change the verdict, and a verdict of ambiguity is for good.

use hookgate::server::framing::Framing;

/// Judges one input.
pub fn run(bytes: &[u8]) {
    let whole = verdict(bytes.len().max(1), bytes);
    for size in [1, 2, 7, 61, 95, 96, 97, 1000] {
        assert_eq!(verdict(size, bytes), whole, "in pieces of {size}");
    }
    // Pieces of all sizes, by the input's own bytes.
    let mut framing = Framing::default();
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let (now, later) = rest.split_at(usize::from(*first).clamp(1, rest.len()));
        framing.feed(now);
        rest = later;
    }
    assert_eq!(framing.ambiguous_from().is_some(), whole);
}

fn verdict(size: usize, bytes: &[u8]) -> bool {
    let mut framing = Framing::default();
    for piece in bytes.chunks(size) {
        let before = framing.ambiguous_from().is_some();
        framing.feed(piece);
        assert!(framing.ambiguous_from().is_some() || !before, "forgotten");
    }
    framing.ambiguous_from().is_some()
}
