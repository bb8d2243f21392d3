//! `hookgate init`: a commented configuration to start from.

use std::io::Write;

use super::{Ended, Failure, output::Out};

const EXAMPLES: &str = "\
Examples:
  hookgate init > hookgate.toml
  hookgate check hookgate.toml";

/// What a first configuration needs, and what is added to it most often.
const START: &str = include_str!("init/start.toml");

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {}

/// Prints it.
pub(super) fn run(out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    write!(out, "{START}")?;
    Ok(Ended::Well)
}
