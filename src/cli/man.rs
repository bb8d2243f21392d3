//! `hookgate man`: a page for the program and one for each command, for those who make packages. Hidden in the help.

use std::path::PathBuf;

use clap::CommandFactory;

use super::{Cli, Ended, Failure};

const EXAMPLES: &str = "\
Examples:
  hookgate man /usr/local/share/man/man1";

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// An existing folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes the pages.
pub(super) fn run(args: &Args) -> Result<Ended, Failure> {
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(|error| {
        Failure::Failed(format!("cannot write the man pages to {}: {error}", args.folder.display()))
    })?;
    Ok(Ended::Well)
}
