//! Which lines are written: by `log.level`, or by `RUST_LOG`, which wins over it.

use tracing::{Level, warn};
use tracing_subscriber::{
    EnvFilter,
    filter::{ParseError, Targets},
};

use super::shown;

/// The target of the line that says who decides. It is written whatever the filter says.
const DECIDES: &str = "hookgate::rust_log";

/// What a level lets through. The client of NATS speaks of each try to connect; what there is to say of it, the queue says.
pub(super) fn of_level(level: &str) -> EnvFilter {
    const NATS: &str = "async_nats";
    let filter = EnvFilter::builder().parse_lossy(level);
    let filter = if level.contains(NATS) { filter } else { with(filter, "async_nats=off") };
    // `off` means it. A filter that only forgets hookgate does not.
    let meant = level.trim().eq_ignore_ascii_case("off");
    if meant || !leaves_nothing(level) { filter } else { with(filter, "hookgate=warn") }
}

/// What `RUST_LOG` lets through.
///
/// # Errors
///
/// It is not a filter.
pub(super) fn of_rust_log(directives: &str) -> Result<EnvFilter, ParseError> {
    let filter = EnvFilter::builder().parse(directives)?;
    let filter = if leaves_nothing(directives) { with(filter, "hookgate=warn") } else { filter };
    Ok(with(filter, &format!("{DECIDES}=warn")))
}

fn with(filter: EnvFilter, directive: &str) -> EnvFilter {
    match directive.parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    }
}

/// Whether these directives let not even an error of hookgate through: a filter for another program, which is to be
/// quiet or to speak, found its way here.
#[must_use]
pub fn leaves_nothing(directives: &str) -> bool {
    // What is written about spans opens nothing: there are none.
    let parsed = directives.split(',').filter_map(|directive| directive.trim().parse::<Targets>().ok());
    let targets: Targets = parsed.flatten().collect();
    let default = directives.split(',').filter_map(|directive| directive.trim().parse().ok()).next_back();
    let default: tracing_subscriber::filter::LevelFilter =
        default.unwrap_or(tracing_subscriber::filter::LevelFilter::OFF);
    !targets.with_default(default).would_enable("hookgate", &Level::ERROR)
}

/// Says in the log that `RUST_LOG` is in force, or why it is not.
pub fn tell_rust_log(rust_log: &str) {
    let filter = shown(rust_log);
    match of_rust_log(rust_log) {
        Err(error) => {
            warn!(filter, %error, "RUST_LOG is not a filter and is ignored: write a level such as \"info\", or TARGET=LEVEL pairs");
        }
        Ok(_) if leaves_nothing(rust_log) => {
            warn!(target: DECIDES, filter, "RUST_LOG is in force instead of `log.level`. It names nothing of hookgate, whose warnings and errors are still written");
        }
        Ok(_) => warn!(target: DECIDES, filter, "RUST_LOG is in force instead of `log.level`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_leaves_nothing_of_hookgate_is_known() {
        for nothing in [
            "off",
            "OFF",
            "hyper=debug",
            "hookgate=off",
            "info,hookgate=off",
            "hookgate::app=info",
            "[span]=trace",
        ] {
            assert!(leaves_nothing(nothing), "{nothing}");
        }
        for something in [
            "error",
            "warn,hyper=off",
            "info",
            "TRACE",
            "hookgate",
            "hookgate=error",
            "off,hookgate=error",
            "hyper=off,debug",
        ] {
            assert!(!leaves_nothing(something), "{something}");
        }
    }
}
