//! `hookgate run`: the service, until it is told to end.
//!
//! The log is the only thing it prints. What keeps it from starting goes to standard error.

use std::io::{self, Write};

use tracing::{debug, subscriber, warn};

use super::{Ended, Failure, input::ConfigArgs, output::Out};
use crate::{
    app::{self, App, BuildError, Drained},
    config::{self, Config},
    ops::log::{self, Sink},
};

const EXAMPLES: &str = "\
Examples:
  hookgate run --config hookgate.toml
  RUST_LOG=debug hookgate run

The log goes to standard output. SIGTERM or Ctrl-C ends it: what was accepted
is finished first, for as long as `drain_timeout` says; a second one ends it at
once. Exit status: 0 everything was finished; 1 something was cut off, or an
address cannot be listened on; 2 the configuration is wrong (see `hookgate
check`), or what it names cannot be used, such as the queue's file.";

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Serves.
pub(super) fn run(args: &Args, _: &mut Out<impl Write>) -> Result<Ended, Failure> {
    // Before the first secret is read.
    let private = app::forbid_dumps();
    let mut config = Config::load(&args.config.path()).map_err(Failure::Configuration)?;
    config.warnings.extend(app::doubts(&config));
    let raised = app::raise_descriptor_limit();
    let failed = |what: &str, error: io::Error| Failure::Failed(format!("{what}: {error}"));
    let runtime = app::runtime().map_err(|error| failed("the runtime does not start", error))?;
    // Watched before anything is bound: an end that comes early is not lost.
    let (shutdown, now) = {
        let _entered = runtime.enter();
        app::signals().map_err(|error| failed("signals cannot be watched", error))?
    };

    let (sink, flush) = Sink::try_new(io::stdout(), config.log.format)
        .map_err(|error| failed("the log does not start", error))?;
    let rust_log = config::rust_log();
    let (subscriber, control) = log::subscriber(&config.log, rust_log.as_deref(), sink);
    subscriber::set_global_default(subscriber).map_err(|error| Failure::Failed(error.to_string()))?;
    app::tell_start(&config);
    if let Some(rust_log) = &rust_log {
        log::tell_rust_log(rust_log);
    }
    match private {
        Ok(()) => debug!("core dumps are off, and only root can trace this process or read its environment"),
        Err(error) => warn!(%error, "core dumps cannot be turned off: one would hold the secrets"),
    }
    if let Err(error) = raised {
        warn!(%error, "the limit on open files cannot be raised");
    }
    for warning in &config.warnings {
        warn!(%warning, "configuration warning");
    }
    let app = {
        let _entered = runtime.enter();
        App::build(config, Some(control))
    };
    let app = app.map_err(|error| match error {
        BuildError::Bind { .. } | BuildError::Tls(_) => Failure::Failed(error.to_string()),
        BuildError::NoRoots { .. } | BuildError::Queue(_) => Failure::Usage(error.to_string()),
    });
    let drained = app.map(|app| runtime.block_on(app.run(shutdown, now)));
    // A name that is still being resolved is nobody's any more: the end does not wait for the resolver.
    runtime.shutdown_background();
    flush.finish();
    Ok(match drained? {
        Drained::Completely => Ended::Well,
        Drained::CutOff => Ended::Badly,
    })
}
