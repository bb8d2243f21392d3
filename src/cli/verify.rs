//! `hookgate verify`: whether a signature fits a body, and with `--explain` what the likely mistake is.
//!
//! It prints neither the secret nor the signature that would be right: its output goes into logs and tickets.

mod base64;
mod encoding;
mod explain;
mod guess;
mod reading;

use std::{io::Write, path::PathBuf, time::UNIX_EPOCH};

use bytes::Bytes;

use self::guess::Candidate;
use super::{
    Ended, Failure,
    input::{self, NoSecret, SecretSet},
    output::Out,
};
use crate::webhook::signature::{Key, Signature, Verifier};

const EXAMPLES: &str = "\
Examples:
  hookgate verify --secret-file secret.txt --signature 7e94... body.json
  hookgate verify --explain --secret-file new.txt --secret-file old.txt \\
      --signature 7e94... body.json

The signature is the value of the header Pulumi-Webhook-Signature; the body has
to be the very bytes that were received. The first secret decides, --explain
tries the others too. Exit status: 0 valid, 1 not valid, 2 wrong usage.";

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    secrets: SecretSet,
    #[command(flatten)]
    _no_secret: NoSecret,
    /// The signature that came with the body
    #[arg(long, value_name = "HEX", allow_hyphen_values = true)]
    signature: String,
    /// Where it is not valid, look for the likely mistake
    #[arg(long)]
    explain: bool,
    /// The body [default: standard input]
    file: Option<PathBuf>,
}

/// Verifies against the first secret.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let sources = &args.secrets.0;
    input::one_stdin(sources)?;
    let body = input::body(args.file.as_deref(), &sources.iter().collect::<Vec<_>>())?;
    let mut candidates = Vec::with_capacity(sources.len());
    for source in sources {
        let raw = source.read()?;
        let secret = raw.secret().map_err(|error| Failure::Usage(format!("{source}: {error}")))?;
        candidates.push(Candidate { label: source.to_string(), secret, raw: raw.0 });
    }
    let Some(meant) = candidates.first() else {
        return Err(Failure::Usage("no secret: give --secret-file FILE or --secret-env NAME".into()));
    };

    let reason = match Signature::parse(args.signature.as_bytes()) {
        Err(_) => "the signature is not 64 hex digits",
        Ok(signature) => {
            let verifier = Verifier::new(vec![Key::new(String::new(), &meant.secret, None)]);
            if verifier.verify(Bytes::copy_from_slice(&body), &signature, UNIX_EPOCH).is_ok() {
                writeln!(
                    out,
                    "valid: made over these {} bytes with the secret of {}",
                    body.len(),
                    meant.label
                )?;
                return Ok(Ended::Well);
            }
            "the signature does not fit the body and the secret"
        }
    };
    writeln!(out, "not valid: {reason}")?;
    if args.explain {
        let explanation = explain::explain(&candidates, &body, &args.signature);
        for line in explanation.lines() {
            writeln!(out, "{line}")?;
        }
    } else {
        writeln!(out, "  --explain looks for the likely mistake")?;
    }
    Ok(Ended::Badly)
}
