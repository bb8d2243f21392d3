//! The configuration: a file becomes settings, or a report of everything that is wrong with it.
//!
//! Only valid settings exist: what leaves here needs no second look. The file, and every file and environment
//! variable that it names, are read here and nowhere else; nothing is bound, connected or written. Relative paths
//! are those of the working directory.
//!
//! `file.rs`, `webhook.rs` and `destination.rs` say what the file may say, from its top to its bottom; `reader.rs`
//! takes it apart and collects the mistakes.

mod certificates;
mod destination;
mod events;
mod file;
mod fingerprint;
mod look;
mod names;
mod origin;
mod own;
mod patterns;
mod queue;
mod reader;
mod report;
mod tables;
mod units;
mod values;
mod webhook;

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use toml::{Spanned, de::DeTable};
use zeroize::Zeroizing;

pub use self::{
    certificates::IdentityFiles,
    destination::Destination,
    file::ServerTls,
    fingerprint::Fingerprints,
    look::Look,
    origin::{Origin, SecretSourceError, Source, bytes_from_env, secret_from_file},
    queue::Queue,
    report::{Mistake, Place, Report, is_hidden},
    units::{parse_duration, parse_instant, show_duration, show_instant, show_size},
    webhook::Webhook,
};
use self::{
    file::Settings,
    reader::{Context, Findings, Table},
};
use crate::{
    delivery::{dedupe, queue::Recipient},
    files::{Patience, Why},
    ingress::settings as server,
    ops::{self, log},
    webhook::mangled,
};

/// Where the configuration is looked for last.
pub const DEFAULT_PATH: &str = "/etc/hookgate/hookgate.toml";
/// The environment variable that names the configuration file.
pub const PATH_VARIABLE: &str = "HOOKGATE_CONFIG";

/// The longest configuration file, in bytes.
const MAX_FILE: usize = 4 << 20;

/// A valid configuration.
#[derive(Debug)]
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// `[server]`.
    pub server: server::Settings,
    /// `server.tls`. `None`: plain HTTP.
    pub tls: Option<ServerTls>,
    /// `[ops]`.
    pub ops: ops::Settings,
    /// `[log]`.
    pub log: log::Settings,
    /// `[dedupe]`.
    pub dedupe: dedupe::Settings,
    /// `[queue]`. `None`: each delivery is forwarded at once.
    pub queue: Option<Queue>,
    /// `[[webhook]]`, at least one.
    pub webhooks: Vec<Webhook>,
    /// What is to be warned of and not wrong, in the order of the file.
    pub warnings: Vec<Mistake>,
    /// The file itself and every file that it names: what must be watched for changes.
    pub files: Vec<PathBuf>,
    /// When the first certificate ends in each file that has some, by the path that the file names.
    pub certificates: BTreeMap<PathBuf, SystemTime>,
    /// The beginning of the file's SHA-256, in hex.
    pub digest: String,
    /// What its keys say, to tell later what has changed.
    pub fingerprints: Fingerprints,
    /// How each of these looked before it was read. What looks otherwise has changed since.
    pub looks: Vec<Look>,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    ///
    /// A [`Report`] of every mistake.
    pub fn load(path: &Path) -> Result<Self, Report> {
        let patience = Patience::default();
        let look = Look::within(&patience, path);
        let text = read(path, &patience)?;
        let mut config = Self::parse_with(path, &text, SystemTime::now(), &variable, &patience)?;
        // It was looked at before its text was read.
        if let Some(first) = config.looks.first_mut() {
            *first = look;
        }
        Ok(config)
    }

    /// Checks the text of a configuration file. `path` is the file's name in reports.
    ///
    /// # Errors
    ///
    /// A [`Report`] of every mistake.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Report> {
        Self::parse_in(path, text, SystemTime::now(), &variable)
    }

    /// As [`Config::parse`], with another clock and another environment.
    pub(crate) fn parse_in(
        path: &Path,
        text: &str,
        now: SystemTime,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Report> {
        Self::parse_with(path, text, now, variable, &Patience::default())
    }

    fn parse_with(
        path: &Path,
        text: &str,
        now: SystemTime,
        variable: &dyn Fn(&str) -> Option<OsString>,
        patience: &Patience,
    ) -> Result<Self, Report> {
        let context = Context::new(path, text, now, variable, patience);
        context.name_file(path);
        let Some(tree) = tree(&context, text) else { return Err(report(context.finish())) };
        let Settings { server, tls, ops, log, dedupe, queue, webhooks } =
            Settings::read(Table::root(&context, tree.get_ref()));
        let Findings { mistakes, mut warnings, files, looks, contents, certificates } = context.finish();
        if !mistakes.is_empty() {
            return Err(Report::new(mistakes, files));
        }
        report::sort(&mut warnings);
        Ok(Self {
            path: path.to_owned(),
            server,
            tls,
            ops,
            log,
            dedupe,
            queue,
            webhooks,
            warnings,
            files,
            certificates,
            digest: fingerprint::digest(text.as_bytes()),
            fingerprints: Fingerprints::of(tree.get_ref(), &contents),
            looks,
        })
    }
}

/// What a command that works on the queue itself needs of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueView {
    /// `[queue]`.
    pub queue: Option<Queue>,
    /// Every destination that the file names.
    pub recipients: HashSet<Recipient>,
}

impl QueueView {
    /// Reads them. What else is in the file does not matter: it needs neither secrets nor a file without mistakes to
    /// look into the queue of a service that is in trouble.
    ///
    /// # Errors
    ///
    /// A [`Report`] of every mistake in `[queue]`.
    pub fn load(path: &Path) -> Result<Self, Report> {
        let patience = Patience::default();
        Self::parse(path, &read(path, &patience)?, &patience)
    }

    fn parse(path: &Path, text: &str, patience: &Patience) -> Result<Self, Report> {
        part(path, text, patience, |root| Self {
            queue: file::queue_in(root, None),
            recipients: webhook::recipients(root),
        })
    }
}

/// `ops.listen` of a configuration file, in which everything else may be wrong. `patience` is for reading it.
///
/// # Errors
///
/// A [`Report`] of what is wrong with it.
pub fn ops_listen(path: &Path, patience: &Patience) -> Result<SocketAddr, Report> {
    part(path, &read(path, patience)?, patience, file::ops_listen_in)
}

/// Reads a part of a configuration, whatever is in the rest.
fn part<T>(
    path: &Path,
    text: &str,
    patience: &Patience,
    read: impl FnOnce(&mut Table<'_>) -> T,
) -> Result<T, Report> {
    let context = Context::new(path, text, SystemTime::now(), &variable, patience);
    context.name_file(path);
    let Some(tree) = tree(&context, text) else { return Err(report(context.finish())) };
    let part = read(&mut Table::root(&context, tree.get_ref()));
    let findings = context.finish();
    if findings.mistakes.is_empty() { Ok(part) } else { Err(report(findings)) }
}

/// The text of a configuration file.
fn read(path: &Path, patience: &Patience) -> Result<Zeroizing<String>, Report> {
    let wrong = |place: Option<Place>, text: String| {
        let mistake = Mistake { file: path.to_owned(), place, key: String::new(), text };
        Report::new(vec![mistake], vec![path.to_owned()])
    };
    let content = patience.read(path, MAX_FILE).map_err(|error| {
        // The file's name begins the line.
        let (told, fix) = match &error.why {
            Why::Unreadable(reason) => {
                let fix = match reason.kind() {
                    io::ErrorKind::NotFound => {
                        format!("write one there, or name another with --config FILE or {PATH_VARIABLE}")
                    }
                    _ => "make it readable for hookgate's user".into(),
                };
                (format!("the configuration cannot be read: {reason}"), fix)
            }
            why => (
                format!("the configuration {why}"),
                format!("put the file there, or name another with --config FILE or {PATH_VARIABLE}"),
            ),
        };
        wrong(None, format!("{told}; {fix}"))
    })?;
    match str::from_utf8(&content.bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) if mangled::is_utf16(&content.bytes) => {
            Err(wrong(Some(Place::of("", 0)), "the configuration is UTF-16; save it as UTF-8".into()))
        }
        Err(error) => {
            let good = content.bytes.get(..error.valid_up_to()).unwrap_or_default();
            let place = Place::of(&String::from_utf8_lossy(good), usize::MAX);
            Err(wrong(Some(place), "the configuration is not UTF-8; save it as UTF-8".into()))
        }
    }
}

/// Reads TOML. What is left of a broken file says little, so nothing else is reported about it.
fn tree<'t>(context: &Context<'_>, text: &'t str) -> Option<Spanned<DeTable<'t>>> {
    // It would be one mistake for each line.
    if let Some(at) = lone_return(text) {
        context.mistake(at, "", "the lines end with CR only: save the file with LF or CRLF as line ends");
        return None;
    }
    let (tree, errors) = DeTable::parse_recoverable(text);
    let mut said: Vec<(usize, &str)> =
        errors.iter().map(|error| (error.span().map_or(0, |span| span.start), error.message())).collect();
    if let Some(behind) = behind_unclosed_list(text, &said) {
        said.retain(|(at, _)| *at < behind);
        let end = text.get(..behind).map_or(0, |before| before.trim_end().len());
        said.push((end.saturating_sub(1), "a list ends here without its `]`"));
    }
    for (at, what) in &said {
        context.mistake(*at, "", format_args!("not TOML: {what}"));
    }
    errors.is_empty().then_some(tree)
}

/// Where the lines begin behind a list that has no end. The parser takes all of them for its elements, so what it says of them
/// is of no use.
fn behind_unclosed_list(text: &str, errors: &[(usize, &str)]) -> Option<usize> {
    let begins_line = |at: usize| {
        text.get(..at).is_some_and(|before| before.trim_end_matches([' ', '\t']).ends_with(['\n', '\r']))
    };
    let (end, _) = errors.iter().find(|(_, what)| what.starts_with("unclosed array,"))?;
    let in_list = errors.iter().filter(|(at, what)| at < end && what.contains("array") && begins_line(*at));
    Some(in_list.map(|(at, _)| *at).min().unwrap_or(*end))
}

/// Where a carriage return stands that no line feed follows.
fn lone_return(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let alone = |at: &usize| bytes.get(*at) == Some(&b'\r') && bytes.get(at + 1) != Some(&b'\n');
    (0..bytes.len()).find(alone)
}

fn report(findings: Findings) -> Report {
    Report::new(findings.mistakes, findings.files)
}

/// Which configuration file is meant: the one of `--config`, else that of `HOOKGATE_CONFIG`, else
/// [`DEFAULT_PATH`].
#[must_use]
pub fn find(flag: Option<PathBuf>) -> PathBuf {
    flag.or_else(|| variable(PATH_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| DEFAULT_PATH.into())
}

/// What `RUST_LOG` says, if it says something.
#[must_use]
pub fn rust_log() -> Option<String> {
    variable("RUST_LOG").and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty())
}

/// The value of an environment variable.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

#[cfg(test)]
mod tests;
