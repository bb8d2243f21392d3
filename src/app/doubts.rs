//! What of a configuration is to be warned of where the service runs: its descriptors, its memory, its environment.

use tracing_subscriber::EnvFilter;

use super::{descriptors::doubt_descriptors, memory::doubt_memory};
use crate::config::{self, Config, Mistake};

/// The warnings about a configuration that depend on where the service runs. Those of `check` are about where it is
/// asked.
#[must_use]
pub fn doubts(config: &Config) -> Vec<Mistake> {
    let filter = config::rust_log();
    let filter = filter.map(|filter| Mistake {
        file: config.path.clone(),
        place: None,
        key: "log.level".to_owned(),
        text: doubt_filter(&filter),
    });
    doubt_descriptors(config).into_iter().chain(doubt_memory(config)).chain(filter).collect()
}

/// A filter from the environment wins without a word in the file.
fn doubt_filter(filter: &str) -> String {
    const FIX: &str = "unset RUST_LOG to use the file's level";
    if EnvFilter::builder().parse(filter).is_err() {
        return format!("the variable RUST_LOG is not a filter and is ignored: {FIX}");
    }
    // A word that is not a level, and no target with one, is the name of a target, or not meant for RUST_LOG at all.
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(word))
    };
    let is_plain = |word: &str| {
        let (target, level) = word.rsplit_once('=').unwrap_or(("", word));
        is_level(level.trim()) && target.len() <= 64 && !target.contains(|c: char| c.is_control() || c == ' ')
    };
    if filter.split(',').all(|word| is_plain(word.trim())) {
        format!("the variable RUST_LOG is set to `{filter}`, which wins over the file: {FIX}")
    } else {
        format!(
            "the variable RUST_LOG wins over the file, but names targets without a level, so that little may be left of the log: {FIX}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_in_force_is_told_and_nothing_else() {
        for filter in ["info", "WARN", "info,hookgate=debug", "hookgate::ops = trace"] {
            let told = doubt_filter(filter);
            assert!(told.contains(filter) || filter.contains(' '), "{told}");
        }
        for secret in ["5f1c09e2b7a84d3600112233445566ff", "=[", "info,5f1c09e2b7a84d36"] {
            assert!(!doubt_filter(secret).contains(secret), "{secret}");
        }
    }
}
