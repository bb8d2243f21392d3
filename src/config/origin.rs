//! Values that stand outside the configuration file: secrets and header values, in files and in the environment.
//!
//! What is read is cleared from memory, and no text repeats it, rejected or not. Nor is the name of a file or of a
//! variable repeated that could be the value itself, put there by mistake.

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use toml::{de::DeValue, value::Datetime};
use zeroize::Zeroizing;

use super::{
    names::{Named, default_name},
    reader::{Item, Table},
    units::instant,
    values::label,
};
use crate::{
    files::{self, Content, ReadError, Why},
    webhook::{
        mangled::{self, Use},
        secret::{MIN_LEN, Secret, SecretError},
        signature::Key,
    },
};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It stands in the configuration itself. Never a secret of a webhook.
    Text,
    /// The content of a file, without its single trailing newline.
    File(PathBuf),
    /// An environment variable, without its single trailing newline.
    Env(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("the configuration"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Env(name) => write!(f, "the environment variable {name}"),
        }
    }
}

/// A secret of a webhook as `check` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The name that labels logs and metrics.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
    /// From when on it is left out.
    pub expires: Option<SystemTime>,
}

/// Why a secret cannot be had. Never repeats it.
#[derive(Debug, thiserror::Error)]
pub enum SecretSourceError {
    /// The environment has no such variable.
    #[error("{} is not set", shown_variable(.name))]
    Unset {
        /// Its name.
        name: String,
    },
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] ReadError),
    /// What was read is not a secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// The longest secret or header value, in bytes.
const MAX_VALUE: usize = 64 << 10;

/// Reads a secret from a file; its single trailing newline is not part of it.
///
/// # Errors
///
/// [`SecretSourceError`].
pub fn secret_from_file(path: &Path, allow_short: bool) -> Result<Secret, SecretSourceError> {
    let Content { bytes, .. } = files::read(path, MAX_VALUE, files::PATIENCE)?;
    Ok(Secret::from_content(bytes.to_vec(), allow_short)?)
}

/// The bytes of an environment variable, as they stand there.
///
/// # Errors
///
/// [`SecretSourceError::Unset`].
pub fn bytes_from_env(name: &str) -> Result<Zeroizing<Vec<u8>>, SecretSourceError> {
    bytes_of_variable(name, super::variable(name))
}

fn bytes_of_variable(name: &str, value: Option<OsString>) -> Result<Zeroizing<Vec<u8>>, SecretSourceError> {
    let value = value.ok_or_else(|| SecretSourceError::Unset { name: name.to_owned() })?;
    Ok(Zeroizing::new(value.into_vec()))
}

/// A variable that is not set, by its name if it surely is one: words of capital letters, such as `WEBHOOK_SECRET_2`.
fn shown_variable(name: &str) -> String {
    let is_word = |word: &str| {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
        letters.len() <= 16
            && word.len() - letters.len() <= 2
            && letters.bytes().all(|b| b.is_ascii_uppercase())
    };
    let is_name = name.len() <= 64
        && name.starts_with(|c: char| c == '_' || c.is_ascii_uppercase())
        && name.split('_').all(is_word);
    if is_name {
        format!("the environment variable {name}")
    } else {
        "the environment variable that is named here".to_owned()
    }
}

impl Source {
    /// Takes `file` or `env` out of a table that must have exactly one of them, and says where in it.
    fn read<'c>(table: &mut Table<'c>) -> Option<(Self, Item<'c>)> {
        let file = table.take("file");
        let env = table.take("env");
        match (file, env) {
            (Some(file), None) => {
                let path = PathBuf::from(file.text("a path in quotes")?);
                file.context.name_file(&path);
                Some((Self::File(path), file))
            }
            (None, Some(env)) => {
                let name = env.text("the name of an environment variable")?.to_owned();
                Some((Self::Env(name), env))
            }
            (Some(_), Some(env)) => {
                env.mistake(
                    "is given together with `file`: a value comes from one of the two, remove the other",
                );
                None
            }
            (None, None) => {
                table.mistake(
                    "does not say where the value comes from: write { file = \"…\" } or { env = \"NAME\" }",
                );
                None
            }
        }
    }

    /// What stands there, without its single trailing newline. Warns of what is odd about it.
    fn fetch(&self, item: &Item<'_>, allow_short: bool, of: Use) -> Result<Secret, SecretSourceError> {
        let bytes = match self {
            Self::Env(name) => bytes_of_variable(name, (item.context.variable)(name))?,
            Self::File(path) => {
                let Content { bytes, mode } = item.context.read(path, MAX_VALUE)?;
                warn_of_mode(item, path, mode, true);
                bytes
            }
            Self::Text => Zeroizing::default(),
        };
        // The copy has no room to spare, so it is not moved about and what is cleared is all there was.
        let value = Secret::from_content(bytes.to_vec(), allow_short)?;
        if let Some(oddities) = mangled::describe(value.as_key(), of) {
            item.warning(format_args!(
                "the {of} looks mangled: {oddities}. It is used as it is; if that is not intended, write it again"
            ));
        }
        Ok(value)
    }
}

/// Warns where others may change what hookgate believes, or know what only it should: of a `private` file, everybody who
/// may read it. A group is left alone then: Kubernetes lets a Pod's group read.
pub(super) fn warn_of_mode(item: &Item<'_>, path: &Path, mode: Option<u32>, private: bool) {
    let Some(mode) = mode else { return };
    if mode & 0o022 != 0 {
        item.warning(format_args!(
            "users other than the owner may write {} (mode {mode:04o}): chmod go-w it",
            path.display()
        ));
    }
    if private && mode & 0o004 != 0 {
        item.warning(format_args!(
            "everybody on this machine may read {} (mode {mode:04o}): chmod o-r it",
            path.display()
        ));
    }
}

/// `secret`: one entry, or a list of them.
pub(super) fn secrets(item: Item<'_>) -> Option<(Vec<Key>, Vec<Origin>)> {
    const WANTED: &str = "{ file = \"…\" } or { env = \"NAME\" }, or a list of these; never write the secret itself into this file";

    let context = item.context;
    let (at, key) = (item.at, item.key.clone());
    let entries = match item.value {
        DeValue::Table(_) => vec![item],
        DeValue::Array(_) => item.list(WANTED)?,
        _ => {
            item.wrong_type(WANTED);
            return None;
        }
    };
    let before = context.mistakes();
    let mut keys = Vec::new();
    let mut origins: Vec<Origin> = Vec::new();
    for entry in entries {
        let Some(table) = entry.table(WANTED) else { continue };
        let (named, at) = table.find("name").map_or((false, table.at), |name| (true, name.at));
        let Some((secret, origin)) = entry_of(table) else { continue };
        if origins.iter().any(|other| other.name == origin.name) {
            let why = if named { "" } else { ", which is that of its file or variable" };
            context.mistake(
                at,
                &key,
                format_args!("two secrets have the name `{}`{why}: give each its own `name`", origin.name),
            );
        }
        keys.push(Key::new(origin.name.clone(), &secret, origin.expires));
        origins.push(origin);
    }
    if context.mistakes() > before {
        return None;
    }
    if origins.iter().all(|origin| origin.expires.is_some_and(|end| end <= context.now)) {
        context.mistake(at, &key, "every secret has expired: add the current one");
        return None;
    }
    Some((keys, origins))
}

fn entry_of(mut table: Table<'_>) -> Option<(Secret, Origin)> {
    let written = table.take("name").map(|item| label(&item));
    let allow_short = table.read("allow_short", false, Item::flag);
    let expires = table.take("expires").map(|item| (expiry(&item), item));
    let found = Source::read(&mut table).and_then(|(source, item)| {
        match source.fetch(&item, allow_short, Use::Secret) {
            Ok(secret) => Some((secret, source)),
            Err(error) => {
                table.mistake(format_args!("{error}; {}", fix(&error, &source, "secret")));
                None
            }
        }
    });
    let name = match (written, &found) {
        (Some(written), _) => written,
        (None, None) => None,
        (None, Some((_, source))) => match default_name(&source_name(source)) {
            Named::Well(name) => Some(name),
            Named::Badly(why) => {
                table.mistake(format_args!(
                    "the name of its file or variable, which is its default name, {why}: give it a `name`"
                ));
                None
            }
        },
    };
    table.finish();
    let expires = match expires {
        None => None,
        Some((None, _)) => return None,
        Some((Some(end), item)) => {
            if end <= item.context.now
                && let Some(name) = &name
            {
                item.warning(format_args!("the secret `{name}` has expired and is not used: remove it"));
            }
            Some(end)
        }
    };
    let (secret, source) = found?;
    Some((secret, Origin { name: name?, source, expires }))
}

/// What a secret without a name is called by: where it comes from, and not its place in a list, which another one takes
/// when the secret is changed.
fn source_name(source: &Source) -> String {
    match source {
        Source::Env(name) => name.clone(),
        Source::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Source::Text => String::new(),
    }
}

/// What to do about a value that cannot be had; `what` it is.
fn fix(error: &SecretSourceError, source: &Source, what: &str) -> String {
    match error {
        SecretSourceError::Unset { .. } => {
            "set it where hookgate is started; never write the value itself into this file".into()
        }
        SecretSourceError::File(ReadError { why: Why::TooLong(_), .. }) => {
            format!("it must hold the {what} alone")
        }
        SecretSourceError::File(_) => {
            format!("write the path of a file that holds the {what} and is readable for hookgate's user")
        }
        SecretSourceError::Secret(SecretError::Empty) => {
            format!("put the {what} into {source}")
        }
        SecretSourceError::Secret(SecretError::Short { .. }) => format!(
            "choose one of {MIN_LEN} bytes or more, or, if it cannot be changed, write `allow_short = true` into this entry"
        ),
    }
}

/// `expires`: a date-time with an offset, as TOML's own type or in quotes.
fn expiry(item: &Item<'_>) -> Option<SystemTime> {
    let written: Option<Datetime> = match item.value {
        DeValue::Datetime(written) => Some(*written),
        DeValue::String(text) => text.parse().ok(),
        _ => {
            item.wrong_type("a date-time such as \"2027-01-31T00:00:00Z\"");
            return None;
        }
    };
    let end = written.and_then(instant);
    if end.is_none() {
        let what = match written {
            Some(Datetime { date: Some(_), time: Some(_), offset: None }) => "has no offset from UTC",
            Some(Datetime { date: Some(_), time: None, .. }) => "has no time of day",
            _ => "is not a date-time",
        };
        item.mistake(format_args!(
            "{what}: write it as in \"2027-01-31T00:00:00Z\" or \"2027-01-31T02:00:00+02:00\""
        ));
    }
    end
}

/// The value of a header: a plain string, `{ file }` or `{ env }`. The bytes are as they came, and may be anything.
pub(super) fn header_value(item: Item<'_>) -> Option<(Zeroizing<Vec<u8>>, Source)> {
    if let Some(text) = item.value.as_str() {
        return Some((Zeroizing::new(text.as_bytes().to_vec()), Source::Text));
    }
    let mut table = item.table("a string, { file = \"…\" } or { env = \"NAME\" }")?;
    // The rules for files and variables are those of secrets, and the value may well be one.
    let value =
        Source::read(&mut table).and_then(|(source, item)| match source.fetch(&item, true, Use::Header) {
            Ok(value) => Some((Zeroizing::new(value.as_key().to_vec()), source)),
            Err(SecretSourceError::Secret(_)) => {
                table.mistake(format_args!("{source} is empty; put the header's value there"));
                None
            }
            Err(error) => {
                table.mistake(format_args!("{error}; {}", fix(&error, &source, "header's value")));
                None
            }
        });
    table.finish();
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_surely_the_name_of_a_variable_is_repeated() {
        for name in ["WEBHOOK_SECRET", "PULUMI_WEBHOOK_SECRET_2", "TOKEN", "_X", "NOT_SET"] {
            assert_eq!(shown_variable(name), format!("the environment variable {name}"));
        }
        for secret in [
            "sec2-known-secret-0123456789abcdef",
            "abcdef0123456789abcdef0123456789",
            "ABCDEF0123456789ABCDEF0123456789",
            "JBSWY3DPEHPK3PXP",
            "correct_horse_battery",
            "a b",
            "",
            "9A",
        ] {
            assert!(secret.is_empty() || !shown_variable(secret).contains(secret), "{secret}");
        }
    }
}
