//! What the commands take in: bodies from a file or standard input, secrets from a file, standard input or the
//! environment. Never from an argument, which every process of the machine can read.

use std::{
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, builder::UnknownArgumentValueParser};
use zeroize::Zeroizing;

use super::Failure;
use crate::{
    config, files,
    webhook::secret::{Secret, SecretError},
};

/// The longest secret that is read, so that a mistaken file name does not fill the memory.
const MAX_SECRET: usize = 64 << 10;

/// The longest body that is read.
const MAX_BODY: usize = 64 << 20;

/// How long the file of a body may take: it may be the pipe of another command.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// The path that stands for standard input.
const STDIN: &str = "-";

/// Where the configuration is.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// The configuration file [default: $HOOKGATE_CONFIG, else /etc/hookgate/hookgate.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The file that is meant.
    pub(super) fn path(&self) -> PathBuf {
        config::find(self.config.clone())
    }
}

/// `--secret`, which many try first. It is refused without repeating what was given, and without a hint to
/// `--secret-env`, which would lead people to write the secret where the name of a variable belongs.
#[derive(Debug, Args)]
pub(super) struct NoSecret {
    /// Not accepted: secrets are never arguments, which every process on a machine can read
    #[arg(
        long = "secret",
        hide = true,
        action = ArgAction::SetTrue,
        value_parser = UnknownArgumentValueParser::suggest_arg("--secret-file").and_suggest(
            "a secret is never an argument, which every process on this machine can read: put it into a file"
        ),
    )]
    // Its default is a text.
    _secret: Option<String>,
}

/// The one secret of a command.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct SecretArgs {
    /// The file that holds the webhook's secret; `-` is standard input
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The environment variable that holds the webhook's secret
    #[arg(long, value_name = "NAME")]
    secret_env: Option<String>,
}

impl SecretArgs {
    /// Where the secret comes from.
    pub(super) fn source(&self) -> Result<Source, Failure> {
        Source::one(self.secret_file.as_deref(), self.secret_env.as_deref())
            .ok_or_else(|| Failure::Usage("no secret: give --secret-file FILE or --secret-env NAME".into()))
    }
}

/// Several secrets, in the order in which they were given.
#[derive(Debug)]
pub(super) struct SecretSet(pub(super) Vec<Source>);

impl Args for SecretSet {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
            .arg(
                Arg::new("secret_file")
                    .long("secret-file")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .action(ArgAction::Append)
                    .required_unless_present("secret_env")
                    .help(concat!(
                        "The file that holds the webhook's secret; `-` is standard input. ",
                        "Repeat it to let --explain try other secrets",
                    )),
            )
            .arg(Arg::new("secret_env").long("secret-env").value_name("NAME").action(ArgAction::Append).help(
                concat!(
                    "The environment variable that holds the webhook's secret. ",
                    "Repeat it to let --explain try other secrets",
                ),
            ))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SecretSet {
    /// clap keeps the values of each option apart; the positions on the command line tell their common order.
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut placed = Vec::new();
        if let (Some(files), Some(places)) =
            (matches.get_many::<PathBuf>("secret_file"), matches.indices_of("secret_file"))
        {
            placed.extend(places.zip(files.map(|file| Source::file(file))));
        }
        if let (Some(names), Some(places)) =
            (matches.get_many::<String>("secret_env"), matches.indices_of("secret_env"))
        {
            placed.extend(places.zip(names.map(|name| Source::Env(name.clone()))));
        }
        placed.sort_by_key(|(place, _)| *place);
        Ok(Self(placed.into_iter().map(|(_, source)| source).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Where a secret comes from. Prints as the option that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// A variable of the environment.
    Env(String),
}

impl Source {
    pub(super) fn one(file: Option<&Path>, env: Option<&str>) -> Option<Self> {
        match (file, env) {
            (Some(file), _) => Some(Self::file(file)),
            (None, Some(name)) => Some(Self::Env(name.to_owned())),
            (None, None) => None,
        }
    }

    fn file(path: &Path) -> Self {
        if path == Path::new(STDIN) { Self::Stdin } else { Self::File(path.to_owned()) }
    }

    /// The bytes as they stand there.
    pub(super) fn read(&self) -> Result<RawSecret, Failure> {
        let bytes = match self {
            Self::File(path) => {
                let content = files::read(path, MAX_SECRET, files::PATIENCE);
                content.map_err(|error| Failure::Usage(format!("--secret-file: {error}")))?.bytes
            }
            Self::Stdin => {
                read_secret(io::stdin()).map_err(|error| cannot_read(&"standard input", &error))?
            }
            Self::Env(name) => config::bytes_from_env(name)
                .map_err(|error| Failure::Usage(format!("--secret-env: {error}")))?,
        };
        if bytes.len() > MAX_SECRET {
            return Err(Failure::Usage(format!(
                "{self} holds more than 64 KiB: that is not the secret of a webhook"
            )));
        }
        Ok(RawSecret(bytes))
    }

    /// The secret. A short one is not refused: here it is the operator who tries something out.
    pub(super) fn secret(&self) -> Result<Secret, Failure> {
        self.read()?.secret().map_err(|error| Failure::Usage(format!("{self}: {error}")))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "--secret-file {}", path.display()),
            Self::Stdin => write!(f, "--secret-file {STDIN}"),
            Self::Env(name) => write!(f, "--secret-env {name}"),
        }
    }
}

/// The bytes of a secret as they stand in its source. Never printed.
pub(super) struct RawSecret(pub(super) Zeroizing<Vec<u8>>);

impl RawSecret {
    /// The secret that hookgate makes of it.
    pub(super) fn secret(&self) -> Result<Secret, SecretError> {
        Secret::from_content(self.0.to_vec(), true)
    }
}

impl fmt::Debug for RawSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawSecret(..)")
    }
}

/// A body from a file, or from standard input where none is named.
pub(super) fn body(file: Option<&Path>, secrets: &[&Source]) -> Result<Vec<u8>, Failure> {
    match file.filter(|path| *path != Path::new(STDIN)) {
        Some(path) => {
            let content = files::read(path, MAX_BODY, BODY_PATIENCE);
            let mut content = content.map_err(|error| Failure::Usage(format!("the body: {error}")))?;
            // It is sent as it is, so that nothing is gained by clearing it.
            Ok(std::mem::take(&mut *content.bytes))
        }
        None if secrets.contains(&&Source::Stdin) => Err(Failure::Usage(
            "standard input cannot be both the secret and the body: name a file for one of them".into(),
        )),
        None => {
            let mut body = Vec::new();
            let most = u64::try_from(MAX_BODY + 1).unwrap_or(u64::MAX);
            let read = io::stdin().take(most).read_to_end(&mut body);
            read.map_err(|error| cannot_read(&"standard input", &error))?;
            if body.len() > MAX_BODY {
                return Err(Failure::Usage(format!(
                    "standard input has more than {MAX_BODY} bytes: is it a body?"
                )));
            }
            Ok(body)
        }
    }
}

/// Several sources cannot all be standard input.
pub(super) fn one_stdin(secrets: &[Source]) -> Result<(), Failure> {
    if secrets.iter().filter(|source| **source == Source::Stdin).count() > 1 {
        return Err(Failure::Usage("standard input holds one secret: name files for the others".into()));
    }
    Ok(())
}

/// Reads a duration as the configuration writes them: `500ms`, `10s`, `2m`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and a unit: 500ms, 10s, 2m or 1h".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    // A day is longer than any answer is waited for, and short enough for every clock.
    number
        .checked_mul(millis)
        .filter(|millis| *millis <= 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(|| "no longer than 24h".into())
}

fn read_secret(source: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 64));
    source.take(u64::try_from(MAX_SECRET + 1).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn cannot_read(what: &dyn fmt::Display, error: &io::Error) -> Failure {
    Failure::Usage(format!("cannot read {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Several {
        #[command(flatten)]
        secrets: SecretSet,
    }

    fn several(args: &[&str]) -> Vec<String> {
        let parsed = Several::try_parse_from(["test"].iter().chain(args)).unwrap();
        parsed.secrets.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn secrets_keep_the_order_of_the_command_line() {
        assert_eq!(
            several(&[
                "--secret-env",
                "NEW",
                "--secret-file",
                "old",
                "--secret-env=OLDER",
                "--secret-file",
                "-"
            ]),
            ["--secret-env NEW", "--secret-file old", "--secret-env OLDER", "--secret-file -"]
        );
        assert!(Several::try_parse_from(["test"]).is_err());
    }

    #[test]
    fn standard_input_is_one_thing() {
        assert!(matches!(body(None, &[&Source::Stdin]), Err(Failure::Usage(_))));
        assert!(matches!(body(Some(Path::new("-")), &[&Source::Stdin]), Err(Failure::Usage(_))));
        assert!(one_stdin(&[Source::Stdin, Source::Stdin]).is_err());
        assert!(one_stdin(&[Source::Stdin, Source::Env("X".into())]).is_ok());
    }

    #[test]
    fn what_is_missing_is_named() {
        let failure = Source::file(Path::new("/nowhere/secret")).secret().unwrap_err();
        assert!(failure.to_string().contains("/nowhere/secret cannot be read"), "{failure}");
        let failure = Source::Env("HOOKGATE_TEST_NO_SUCH_VARIABLE".into()).secret().unwrap_err();
        assert!(failure.to_string().contains("is not set"), "{failure}");
        assert!(matches!(failure, Failure::Usage(_)));
    }

    #[test]
    fn what_is_not_surely_a_name_or_a_path_is_not_repeated() {
        let secret = "sec2-known-secret-0123456789abcdef";
        for source in [Source::file(Path::new(secret)), Source::Env(secret.into())] {
            let failure = source.secret().unwrap_err();
            assert!(!failure.to_string().contains(secret), "{failure}");
        }
    }

    #[test]
    fn one_newline_is_not_part_of_a_secret() {
        assert_eq!(RawSecret(Zeroizing::new(b"abc\n\n".to_vec())).secret().unwrap().as_key(), b"abc\n");
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        for wrong in ["", "10", "s", "0s", "-1s", "1.5s", "10 s", "25h", "99999999999999999999s", "1d", "é"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
