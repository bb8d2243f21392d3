//! The `hookgate` program.

use std::process::ExitCode;

use clap::Parser;
use hookgate::cli::{self, Cli};

fn main() -> ExitCode {
    // Steps at which tests kill the process; there are none in what is shipped.
    let _steps = fail::FailScenario::setup();
    cli::run(Cli::parse())
}
