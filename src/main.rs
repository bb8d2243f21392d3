//! The `hookgate` program.

use std::process::ExitCode;

use clap::Parser;
use hookgate::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
