//! `hookgate sign`: the signature of a body, as the header carries it.

use std::{io::Write, path::PathBuf};

use super::{
    Ended, Failure,
    input::{self, NoSecret, SecretArgs},
    output::Out,
};
use crate::webhook::signature;

const EXAMPLES: &str = "\
Examples:
  hookgate sign --secret-file secret.txt body.json
  curl -sS https://example.com/body | hookgate sign --secret-env WEBHOOK_SECRET

It prints 64 hex digits: the value of the header Pulumi-Webhook-Signature.
Every byte of the body counts, a newline at its end too. One newline at the end
of the secret's file does not belong to the secret.";

/// Arguments of `sign`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    _no_secret: NoSecret,
    /// The body [default: standard input]
    file: Option<PathBuf>,
}

/// Signs.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let source = args.secret.source()?;
    let body = input::body(args.file.as_deref(), &[&source])?;
    let secret = source.secret()?;
    writeln!(out, "{}", signature::sign(&secret, &body))?;
    Ok(Ended::Well)
}
