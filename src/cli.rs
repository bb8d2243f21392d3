//! The command line: one file a command. The only place that prints.
//!
//! It promises the exit statuses that scripts rely on: 0 done, 1 failed, 2 wrong usage or configuration. What goes
//! wrong is one plain sentence on standard error that begins with `hookgate: `. It decides nothing about
//! deliveries: what is right is said by [`crate::webhook`], and everything that serves by [`crate::app`].

mod ask;
mod check;
mod completions;
mod deliveries;
mod demo;
mod healthcheck;
mod init;
mod input;
mod man;
mod output;
mod run;
mod send;
mod sign;
mod verify;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};

use self::output::Out;
use crate::{app, config::Report};

const ABOUT: &str = "\
The verifying sidecar for Pulumi webhooks.

It stands in front of an internal service, lets in only deliveries that Pulumi
signed, only of the events you want, and hands them on byte for byte.";

const EXAMPLES: &str = "\
Start here:
  hookgate demo                           see the whole path on this machine
  hookgate init > hookgate.toml           a configuration to start from
  hookgate check --config hookgate.toml   what a configuration means
  hookgate run --config hookgate.toml     the service

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.";

/// The version, and where it is known the commit with its day.
const VERSION: &str = match option_env!("HOOKGATE_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// The verifying sidecar for Pulumi webhooks.
#[derive(Debug, Parser)]
#[command(name = "hookgate", version = VERSION, long_about = ABOUT, after_help = EXAMPLES)]
pub struct Cli {
    // Commands that read it have an argument of the same name, which explains it; so it may stand before them, too.
    #[arg(short, long, value_name = "FILE", global = true, hide = true)]
    config: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Run(run::Args),
    /// Print a commented configuration to start from
    Init(init::Args),
    /// Say what a configuration means, or what is wrong with it
    Check(check::Args),
    /// Show the whole path on this machine, with sample deliveries and forgeries
    Demo(demo::Args),
    /// Send a sample delivery, signed, to any URL
    Send(Box<send::Args>),
    /// Print the signature of a body, as the header carries it
    Sign(sign::Args),
    /// Check a signature, and say what is probably wrong with it
    Verify(verify::Args),
    /// Ask a running hookgate whether it is ready
    Healthcheck(healthcheck::Args),
    /// Look into the queue: list, show, redeliver and purge deliveries
    Deliveries(deliveries::Args),
    /// Print a script that completes hookgate's commands and arguments in a shell
    Completions(completions::Args),
    /// Print the version
    #[command(hide = true)]
    Version(NoArgs),
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man(man::Args),
}

/// Those of `version`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hookgate version")]
struct NoArgs {}

impl Command {
    /// Whether it reads a configuration. `--config` before it is a mistake otherwise.
    const fn reads_configuration(&self) -> bool {
        match self {
            Self::Run(_) | Self::Check(_) | Self::Healthcheck(_) | Self::Deliveries(_) => true,
            Self::Init(_)
            | Self::Demo(_)
            | Self::Send(_)
            | Self::Sign(_)
            | Self::Verify(_)
            | Self::Completions(_)
            | Self::Version(_)
            | Self::Man(_) => false,
        }
    }
}

/// How a command that could do its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// All is well: exit status 0.
    Well,
    /// The answer is no, and has been printed: exit status 1.
    Badly,
}

/// Why a command could not do its work. The text follows `hookgate: ` on standard error.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Exit status 1.
    #[error("{0}")]
    Failed(String),
    /// Exit status 2.
    #[error("{0}")]
    Usage(String),
    /// Exit status 2. Its mistakes are printed as they are, a line each, as a compiler does.
    #[error("{} in the configuration", mistakes(.0))]
    Configuration(Report),
}

/// Does what the arguments ask for, and says how the process ends.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let mut out = Out::new(io::stdout());
    let ended = match cli.command {
        command if cli.config.is_some() && !command.reads_configuration() => {
            Err(Failure::Usage("this command reads no configuration: remove --config".into()))
        }
        Command::Init(_) => init::run(&mut out),
        Command::Completions(args) => completions::run(&args, &mut out),
        Command::Man(args) => man::run(&args),
        Command::Version(_) => writeln!(out, "hookgate {VERSION}").map(|()| Ended::Well),
        Command::Run(args) => run::run(&args, &mut out),
        Command::Check(args) => check::run(&args, &mut out),
        Command::Demo(args) => demo::run(&args, &mut out),
        Command::Send(args) => send::run(&args, &mut out),
        Command::Sign(args) => sign::run(&args, &mut out),
        Command::Verify(args) => verify::run(&args, &mut out),
        Command::Healthcheck(args) => healthcheck::run(&args, &mut out),
        Command::Deliveries(args) => deliveries::run(&args, &mut out),
    };
    match ended {
        Ok(Ended::Well) => ExitCode::SUCCESS,
        Ok(Ended::Badly) => ExitCode::from(1),
        Err(failure) => {
            if let Failure::Configuration(report) = &failure {
                output::report(report);
            }
            output::complain(&failure);
            match failure {
                Failure::Failed(_) => ExitCode::from(1),
                Failure::Usage(_) | Failure::Configuration(_) => ExitCode::from(2),
            }
        }
    }
}

fn mistakes(report: &Report) -> String {
    match report.mistakes().len() {
        1 => "one mistake".into(),
        number => format!("{number} mistakes"),
    }
}

/// Runs a command's future to its end, on this thread.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    app::runtime()
        .map_err(|error| Failure::Failed(format!("the runtime does not start: {error}")))?
        .block_on(future)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself_with_an_example() {
        assert_eq!(explained("hookgate", &Cli::command()), 12 + 4);
    }

    /// How many commands there are below this one. Each must explain itself.
    fn explained(path: &str, above: &clap::Command) -> usize {
        let mut seen = 0;
        for command in above.get_subcommands() {
            let name = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{name}");
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains(&name), "{name}: {example}");
            assert!(command.get_arguments().all(|arg| arg.get_help().is_some()), "{name}");
            seen += 1 + explained(&name, command);
        }
        seen
    }
}
