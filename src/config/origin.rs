//! Values that stand outside the configuration file: secrets and header values, in files and in the environment.
//!
//! What is read is cleared from memory, and no text repeats it, rejected or not.

use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStringExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use toml::{de::DeValue, value::Datetime};
use zeroize::Zeroizing;

use super::{
    file::label,
    reader::{Item, Table},
    units::instant,
};
use crate::webhook::{
    secret::{MIN_LEN, Secret, SecretError},
    signature::Key,
};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It stands in the configuration itself. Never a secret of a webhook.
    Text,
    /// The content of a file, without its single trailing newline.
    File(PathBuf),
    /// An environment variable, as it is.
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
    #[error("the environment variable {name} is not set")]
    Unset {
        /// Its name.
        name: String,
    },
    /// The file cannot be read.
    #[error("{} cannot be read: {reason}", .path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        reason: io::Error,
    },
    /// The file is too long to be what it should be.
    #[error("{} has more than {limit} bytes: is it the right file?", .path.display())]
    TooLong {
        /// Its path.
        path: PathBuf,
        /// How many bytes it may have.
        limit: usize,
    },
    /// What was read is no secret.
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
    secret_of(&read_bounded(path, MAX_VALUE)?, allow_short)
}

fn secret_of(content: &[u8], allow_short: bool) -> Result<Secret, SecretSourceError> {
    // The copy has no room to spare, so it is not moved about and what is cleared is all there was.
    Ok(Secret::from_file_content(content.to_vec(), allow_short)?)
}

/// Takes a secret from the environment, as it is.
///
/// # Errors
///
/// [`SecretSourceError`].
pub fn secret_from_env(name: &str, allow_short: bool) -> Result<Secret, SecretSourceError> {
    secret_from_variable(name, super::variable(name), allow_short)
}

fn secret_from_variable(
    name: &str,
    value: Option<OsString>,
    allow_short: bool,
) -> Result<Secret, SecretSourceError> {
    let value = value.ok_or_else(|| SecretSourceError::Unset { name: name.to_owned() })?;
    Ok(Secret::try_new(value.into_vec(), allow_short)?)
}

/// What is set aside at least for the content of a file, in bytes.
const LEAST_ROOM: usize = 4 << 10;

/// The content of a file that has at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, SecretSourceError> {
    let unreadable = |reason| SecretSourceError::Unreadable { path: path.to_owned(), reason };
    let file = File::open(path).map_err(unreadable)?;
    // A vector that grows leaves what it held behind. Special files do not say how long they are.
    let length = file.metadata().map_or(0, |known| known.len());
    let room = usize::try_from(length).unwrap_or(limit).clamp(LEAST_ROOM.min(limit), limit) + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    let most = u64::try_from(limit + 1).unwrap_or(u64::MAX);
    file.take(most).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() > limit {
        return Err(SecretSourceError::TooLong { path: path.to_owned(), limit });
    }
    Ok(content)
}

impl Source {
    /// Takes `file` or `env` out of a table that has to have exactly one of them.
    fn read(table: &mut Table<'_>) -> Option<Self> {
        let file = table.take("file");
        let env = table.take("env");
        match (file, env) {
            (Some(file), None) => {
                let path = PathBuf::from(file.text("a path in quotes")?);
                file.context.name_file(&path);
                warn_of_writers(&file, &path);
                Some(Self::File(path))
            }
            (None, Some(env)) => Some(Self::Env(env.text("the name of an environment variable")?.to_owned())),
            (Some(_), Some(env)) => {
                env.mistake("stands beside `file`: a value comes from one of the two, remove the other");
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

    fn secret(&self, item: &Table<'_>, allow_short: bool) -> Result<Secret, SecretSourceError> {
        match self {
            Self::Env(name) => secret_from_variable(name, (item.context.variable)(name), allow_short),
            Self::File(path) => secret_of(&item.context.read(path, MAX_VALUE)?, allow_short),
            Self::Text => Err(SecretError::Empty.into()),
        }
    }
}

/// Whoever may write a file of secrets, keys or authorities chooses what hookgate believes.
pub(super) fn warn_of_writers(item: &Item<'_>, path: &Path) {
    let Ok(metadata) = path.metadata() else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_file() && mode & 0o022 != 0 {
        item.warning(format_args!(
            "others than the owner may write {} (mode {mode:04o}): chmod go-w it",
            path.display()
        ));
    }
}

/// `secret`: one entry, or a list of them.
pub(super) fn secrets(item: Item<'_>) -> Option<(Vec<Key>, Vec<Origin>)> {
    const WANTED: &str = "{ file = \"…\" } or { env = \"NAME\" }, or a list of these; the secret itself never stands in this file";

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
    for (number, entry) in (1..).zip(entries) {
        let Some(table) = entry.table(WANTED) else { continue };
        let name_at = table.find("name").map_or(table.at, |name| name.at);
        let Some((secret, origin)) = entry_of(table, number) else { continue };
        if origins.iter().any(|other| other.name == origin.name) {
            context.mistake(
                name_at,
                &key,
                format_args!("two secrets are named `{}`: each needs its own `name`", origin.name),
            );
        }
        keys.push(Key::new(origin.name.clone(), &secret, origin.expires));
        origins.push(origin);
    }
    if context.mistakes() > before {
        return None;
    }
    if origins.iter().all(|origin| origin.expires.is_some_and(|end| end <= context.now)) {
        context.mistake(at, &key, "every secret is expired: add the one that is in force now");
        return None;
    }
    Some((keys, origins))
}

fn entry_of(mut table: Table<'_>, number: usize) -> Option<(Secret, Origin)> {
    let name = table.read("name", format!("secret-{number}"), |item| label(item));
    let allow_short = table.read("allow_short", false, Item::flag);
    let expires = table.take("expires").map(|item| (expiry(&item), item));
    let source = Source::read(&mut table);
    let secret = source.as_ref().and_then(|source| match source.secret(&table, allow_short) {
        Ok(secret) => Some(secret),
        Err(error) => {
            table.mistake(format_args!("{error}; {}", fix(&error, source, "secret")));
            None
        }
    });
    table.finish();
    let expires = match expires {
        None => None,
        Some((None, _)) => return None,
        Some((Some(end), item)) => {
            if end <= item.context.now {
                item.warning(format_args!("the secret `{name}` is expired and left out: remove it"));
            }
            Some(end)
        }
    };
    Some((secret?, Origin { name, source: source?, expires }))
}

/// What to do about a value that cannot be had; `what` it is.
fn fix(error: &SecretSourceError, source: &Source, what: &str) -> String {
    match error {
        SecretSourceError::Unset { .. } => "set it where hookgate is started".into(),
        SecretSourceError::Unreadable { .. } => format!("put the {what} there, readable for hookgate's user"),
        SecretSourceError::TooLong { .. } => format!("it has to hold the {what} alone"),
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
            _ => "is no date-time",
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
    let source = Source::read(&mut table);
    // The rules for files and variables are those of secrets, and the value may well be one.
    let value = source.and_then(|source| match source.secret(&table, true) {
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

    /// What is set aside is overwritten when it is given back, so that room for the longest file would be paid for.
    #[test]
    fn a_file_takes_the_room_of_its_length() {
        let path = std::env::temp_dir().join(format!("hookgate-{}-room", std::process::id()));
        for length in [0, 1, LEAST_ROOM, LEAST_ROOM + 1, 100_000] {
            std::fs::write(&path, vec![b'x'; length]).unwrap();
            let content = read_bounded(&path, 1 << 20).unwrap();
            assert_eq!(content.len(), length);
            assert_eq!(content.capacity(), length.max(LEAST_ROOM) + 1);
        }
        assert!(matches!(read_bounded(&path, 99_999), Err(SecretSourceError::TooLong { .. })));
        assert_eq!(read_bounded(&path, 100_000).unwrap().len(), 100_000);
        std::fs::remove_file(path).unwrap();
    }
}
