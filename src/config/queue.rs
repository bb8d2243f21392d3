//! What `[queue]` may say.

use std::{
    fmt::Display,
    fs::{self, Metadata},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::http::uri::Authority;
use rustix::fs::{Access, access};

use super::{
    certificates::{authorities, odd_text},
    origin::warn_of_mode,
    own::is_this_machine,
    reader::{Item, Table},
    units::show_duration,
    values::{LONGEST, SHORTEST},
};
use crate::{
    delivery::{
        backoff::Backoff,
        queue::{Retention, Store, nats},
        worker,
    },
    files::is_repeatable,
};

/// `[queue]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Queue {
    /// Where it is kept.
    pub store: Store,
    /// How much of it, and how long.
    pub retention: Retention,
    /// How it is delivered.
    pub worker: worker::Settings,
}

impl Queue {
    /// Whether `order` and `coalesce` can be had: several services that share a queue keep no order among them.
    pub(super) const fn is_ordered(&self) -> bool {
        matches!(self.store, Store::Sqlite { .. })
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// No log entry and no job is kept longer.
const YEARS: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// The largest queue.
const MAX_BYTES: usize = if usize::BITS > 50 { 1 << 50 } else { usize::MAX };

/// The longest file with credentials, in bytes.
const MAX_CREDENTIALS: usize = 64 << 10;

pub(super) fn queue(mut table: Table<'_>, window: Option<Duration>) -> Queue {
    let before = table.context.mistakes();
    let Queue { retention, worker, .. } = Queue::default();
    let store = table.read("store", Engine::Sqlite, |item| {
        item.word(&[("sqlite", Engine::Sqlite), ("nats", Engine::Nats)])
    });
    let store = match store {
        Engine::Sqlite => sqlite(&mut table),
        Engine::Nats => nats_store(&mut table),
    };
    let settings = Queue {
        store,
        worker: worker::Settings {
            max_attempts: table.take("max_attempts").and_then(|item| number(&item, 1_000_000)),
            max_age: table.read("max_age", worker.max_age, |item| item.duration(SHORTEST..=YEARS)),
            backoff: table.take("backoff").map(backoff).unwrap_or_default(),
            concurrency: table.read("concurrency", worker.concurrency, |item| item.count(1..=1024)),
        },
        retention: Retention {
            retain: table.read("retain", retention.retain, |item| item.duration(Duration::ZERO..=YEARS)),
            dead_retain: table
                .read("dead_retain", retention.dead_retain, |item| item.duration(SHORTEST..=YEARS)),
            max_bytes: table.read("max_bytes", retention.max_bytes, |item| {
                item.size(1 << 20..=MAX_BYTES).and_then(|size| u64::try_from(size).ok())
            }),
        },
    };
    if table.context.mistakes() == before
        && let Some(window) = window.filter(|window| settings.retention.retain < *window)
    {
        let text = format!(
            "is shorter than `dedupe.window`, which is {}: raise it, or lower `window`",
            show_duration(window)
        );
        match table.find("retain") {
            Some(item) => table.context.mistake(item.at, &table.path("retain"), text),
            None => table.mistake(text),
        }
    }
    table.finish();
    settings
}

#[derive(Debug, Clone, Copy)]
enum Engine {
    Sqlite,
    Nats,
}

fn sqlite(table: &mut Table<'_>) -> Store {
    for key in ["url", "stream", "credentials", "ca", "replicas"] {
        table.refuse(key, "is for store = \"nats\" only: remove it, or write store = \"nats\"");
    }
    let read = |item: &Item<'_>| {
        let path = item.text("the path of a file such as \"/var/lib/hookgate/queue.db\"")?;
        if path.is_empty() || path.ends_with('/') || path.contains('\0') {
            item.mistake("must be the path of a file: write \"/var/lib/hookgate/queue.db\"");
            return None;
        }
        Some(PathBuf::from(path))
    };
    let item = table.take("path");
    let store = match item.as_ref().and_then(read) {
        Some(path) => Store::Sqlite { path },
        None => Store::default(),
    };
    if let Store::Sqlite { path } = &store {
        let at = item.as_ref().map_or(table.at, |item| item.at);
        warn_of_queue(table, at, path);
    }
    store
}

/// Where the service would not start, or others could read deliveries with their signatures. That the service makes the
/// files itself is its own matter.
fn warn_of_queue(table: &Table<'_>, at: usize, path: &Path) {
    let warning = |text: &dyn Display| table.context.warning(at, &table.path("path"), text);
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let looked = {
        let files = [path.to_owned(), PathBuf::from(log)];
        let folder = folder.clone();
        move || {
            let modes = files.map(|file| {
                let meta = file.metadata().ok().filter(Metadata::is_file)?;
                Some((file, meta.permissions().mode() & 0o777))
            });
            let room = match fs::metadata(&folder) {
                Err(error) => Err(error.to_string()),
                Ok(meta) if !meta.is_dir() => Err("it is not a folder".into()),
                Ok(_) => {
                    access(&folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| error.to_string())
                }
            };
            (modes, room, is_repeatable(&folder))
        }
    };
    let Some((modes, room, repeatable)) = table.context.patience.within(looked) else {
        warning(&"could not be looked at in time: does its file system hang?");
        return;
    };
    if let Err(reason) = room {
        let folder = if repeatable { folder.display().to_string() } else { "the folder".to_owned() };
        warning(&format_args!(
            "{folder} is not a folder that this user may write to ({reason}): make it, and give it to hookgate's user, before the service starts"
        ));
    }
    for (file, mode) in modes.into_iter().flatten() {
        if mode & 0o077 != 0 {
            warning(&format_args!(
                "users other than the owner may read or write {} (mode {mode:04o}), and it contains deliveries with their signatures: chmod 600 it",
                file.display()
            ));
        }
    }
}

fn nats_store(table: &mut Table<'_>) -> Store {
    table.refuse("path", "is for store = \"sqlite\" only: remove it, or write store = \"sqlite\"");
    let item = table.require("url", "write url = \"nats://HOST:4222\", or \"tls://HOST:4222\" for TLS");
    let url = item.as_ref().and_then(url);
    // With authorities of its own, only TLS is spoken.
    if let (Some(item), Some(url), None) = (&item, &url, table.find("ca")) {
        warn_of_plain(item, url);
    }
    let stream = table.read("stream", "HOOKGATE".to_owned(), stream);
    let credentials = table.take("credentials").and_then(credentials);
    let ca = table.take("ca").and_then(|item| authorities(&item)).map(|(path, _)| path);
    let replicas = table.read("replicas", 1, |item| item.count(1..=5));
    Store::Nats(nats::Settings { url: url.unwrap_or_default(), stream, credentials, ca, replicas })
}

/// `nats://HOST:PORT` or `tls://HOST:PORT`, several with commas between them. The text is not repeated: it can have a
/// password in it.
fn url(item: &Item<'_>) -> Option<String> {
    let text = item.text("a URL such as \"nats://nats:4222\"")?;
    match text.split(',').find_map(url_mistake) {
        Some(wrong) => {
            item.mistake(wrong);
            None
        }
        None => Some(text.to_owned()),
    }
}

fn warn_of_plain(item: &Item<'_>, url: &str) {
    let hosts = url.split(',').filter_map(|server| server.strip_prefix("nats://")?.parse::<Authority>().ok());
    let mut hosts = hosts.map(|authority| authority.host().trim_matches(['[', ']']).to_owned());
    if hosts.any(|host| !is_this_machine(&host, item.context.patience)) {
        item.warning(
            "goes to another machine without TLS: anyone on the network path can read and change deliveries; write tls://",
        );
    }
}

fn url_mistake(text: &str) -> Option<&'static str> {
    let Some(rest) = ["nats://", "tls://"].iter().find_map(|scheme| text.strip_prefix(scheme)) else {
        return Some("must begin with nats:// or tls://: write e.g. \"nats://nats:4222\"");
    };
    if rest.contains('@') {
        return Some("has credentials in it: remove them, and write credentials = { file = \"…\" }");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let good = rest.parse::<Authority>().is_ok_and(|authority| {
        let host = authority.host();
        !host.is_empty() && (rest == host || authority.port_u16().is_some())
    });
    (!good).then_some("must be a host with or without a port: write e.g. \"nats://nats:4222\"")
}

/// A name that NATS takes for a stream, and that the names of others can be made of.
fn stream(item: &Item<'_>) -> Option<String> {
    let text = item.text("a name such as \"HOOKGATE\"")?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !(1..=100).contains(&text.len()) || !text.bytes().all(allowed) {
        item.mistake("must be a name of 1 to 100 of A-Z, a-z, 0-9, '_' and '-': write e.g. \"HOOKGATE\"");
        return None;
    }
    Some(text.to_owned())
}

/// `{ file = "…" }`, or the path alone. The file is read when NATS is connected to; here only whether it is one.
fn credentials(item: Item<'_>) -> Option<PathBuf> {
    const WANTED: &str = "{ file = \"/run/secrets/nats.creds\" }";
    let item = if item.value.is_str() {
        item
    } else {
        let mut table = item.table(WANTED)?;
        let file = table.require("file", "write file = \"/run/secrets/nats.creds\"");
        table.finish();
        file?
    };
    let text = item.text("a path in quotes")?;
    if text.contains("-----") || text.contains(char::is_control) || text.is_empty() {
        item.mistake(format_args!("must be the path of a file with credentials: write {WANTED}"));
        return None;
    }
    let path = Path::new(text);
    item.context.name_file(path);
    match item.context.patience.read(path, MAX_CREDENTIALS) {
        Ok(content) => {
            warn_of_mode(&item, path, content.mode, true);
            let shown = path.display();
            if let Some(odd) = odd_text(&content.bytes) {
                item.mistake(format_args!("{shown} {odd}"));
            } else if str::from_utf8(&content.bytes).is_ok_and(holds_credentials) {
                return Some(path.to_owned());
            } else {
                item.mistake(format_args!(
                    "{shown} holds no credentials of NATS: put there what `nsc generate creds` writes"
                ));
            }
        }
        Err(error) => item.mistake(format_args!(
            "{error}; put what `nsc generate creds` writes into a file that hookgate's user can read, and its path here"
        )),
    }
    None
}

/// What `nsc` writes for a user, or the seed of an nkey alone.
fn holds_credentials(text: &str) -> bool {
    text.contains("-----BEGIN NATS USER JWT") || text.trim().starts_with("SU")
}

/// `{ initial = "…", max = "…" }`.
fn backoff(item: Item<'_>) -> Backoff {
    let default = Backoff::default();
    let Some(mut table) = item.table("{ initial = \"1s\", max = \"15m\" }") else { return default };
    let before = table.context.mistakes();
    let mut read =
        |name, default| table.read(name, default, |item: &Item<'_>| item.duration(SHORTEST..=LONGEST));
    let backoff = Backoff { initial: read("initial", default.initial), max: read("max", default.max) };
    if table.context.mistakes() == before && backoff.initial > backoff.max {
        let text = "is longer than `max`, the longest delay: lower it, or raise `max`";
        match table.find("initial").or_else(|| table.find("max")) {
            Some(item) => table.context.mistake(item.at, &table.path("initial"), text),
            None => table.mistake(text),
        }
    }
    table.finish();
    backoff
}

fn number(item: &Item<'_>, most: usize) -> Option<u32> {
    item.count(1..=most).and_then(|count| u32::try_from(count).ok())
}

/// `coalesce`: how long a job waits for a newer one. `max_age` is that of the queue.
pub(super) fn coalesce(item: &Item<'_>, max_age: Duration) -> Option<Duration> {
    let wait = item.duration(SHORTEST..=DAY)?;
    if wait >= max_age {
        item.mistake(
            "must be shorter than `queue.max_age`, or no delivery is tried a second time: lower it, or raise `max_age`",
        );
        return None;
    }
    Some(wait)
}
