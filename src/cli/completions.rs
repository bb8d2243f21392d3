//! `hookgate completions`: a script for a shell, made from the definitions of the commands.

use std::io::Write;

use clap::{CommandFactory, ValueEnum};
use clap_complete::{Generator, shells};

use super::{Cli, Ended, Failure, output::Out};

const EXAMPLES: &str = "\
Examples:
  hookgate completions bash > /etc/bash_completion.d/hookgate
  hookgate completions zsh > \"${fpath[1]}/_hookgate\"
  hookgate completions fish > ~/.config/fish/completions/hookgate.fish";

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let script = match args.shell {
        Shell::Bash => script(shells::Bash),
        Shell::Zsh => script(shells::Zsh),
        Shell::Fish => script(shells::Fish),
    };
    out.write_bytes(&script)?;
    Ok(Ended::Well)
}

fn script(shell: impl Generator) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hookgate", &mut script);
    script
}
