//! What fuzzing does with hookgate: a function for each target that takes any bytes and panics if a promise is broken.
//!
//! The files in `fuzz_targets` hand libFuzzer's inputs to these functions, and `tests/corpus.rs` of hookgate hands
//! them the committed inputs, so that both check the same.

pub mod config;
pub mod framing;
pub mod globs;
pub mod headers;
mod mac;
pub mod path;
pub mod payload;
pub mod signature;
pub mod target;

/// What judges one input.
pub type Run = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Run); 8] = [
    ("config", config::run),
    ("framing", framing::run),
    ("globs", globs::run),
    ("headers", headers::run),
    ("path", path::run),
    ("payload", payload::run),
    ("signature", signature::run),
    ("target", target::run),
];
