//! What `[queue]` may say.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::http::uri::Authority;

use super::{
    certificates::authorities,
    file::{LONGEST, SHORTEST},
    origin::{SecretSourceError, read_bounded, warn_of_writers},
    reader::{Item, Table},
};
use crate::delivery::{
    backoff::Backoff,
    queue::{Retention, Store},
    worker,
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

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// No log entry and no job is kept longer.
const YEARS: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// The largest queue.
const MAX_BYTES: usize = if usize::BITS > 50 { 1 << 50 } else { usize::MAX };

/// The longest file with credentials, in bytes.
const MAX_CREDENTIALS: usize = 64 << 10;

pub(super) fn queue(mut table: Table<'_>) -> Queue {
    let Queue { retention, worker, .. } = Queue::default();
    let store = table.read("store", Engine::Sqlite, |item| {
        item.word(&[("sqlite", Engine::Sqlite), ("nats", Engine::Nats)])
    });
    let store = match store {
        Engine::Sqlite => sqlite(&mut table),
        Engine::Nats => nats(&mut table),
    };
    let settings = Queue {
        store,
        worker: worker::Settings {
            max_attempts: table.read("max_attempts", worker.max_attempts, |item| number(item, 1_000_000)),
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
            item.mistake("has to be the path of a file: write \"/var/lib/hookgate/queue.db\"");
            return None;
        }
        Some(PathBuf::from(path))
    };
    match table.take("path").and_then(|item| read(&item)) {
        Some(path) => Store::Sqlite { path },
        None => Store::default(),
    }
}

fn nats(table: &mut Table<'_>) -> Store {
    table.refuse("path", "is for store = \"sqlite\" only: remove it, or write store = \"sqlite\"");
    let url = table
        .require("url", "write url = \"nats://HOST:4222\", or \"tls://HOST:4222\" for TLS")
        .and_then(|item| url(&item));
    let stream = table.read("stream", "HOOKGATE".to_owned(), stream);
    let credentials = table.take("credentials").and_then(credentials);
    let ca = table.take("ca").and_then(|item| authorities(&item)).map(|(path, _)| path);
    let replicas = table.read("replicas", 1, |item| item.count(1..=5));
    Store::Nats {
        url: url.unwrap_or_default(),
        stream,
        credentials,
        ca,
        replicas: u8::try_from(replicas).unwrap_or(1),
    }
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

fn url_mistake(text: &str) -> Option<&'static str> {
    let Some(rest) = ["nats://", "tls://"].iter().find_map(|scheme| text.strip_prefix(scheme)) else {
        return Some("has to begin with nats:// or tls://: write e.g. \"nats://nats:4222\"");
    };
    if rest.contains('@') {
        return Some("has credentials in it: remove them, and write credentials = { file = \"…\" }");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let good = rest.parse::<Authority>().is_ok_and(|authority| {
        let host = authority.host();
        !host.is_empty() && (rest == host || authority.port_u16().is_some())
    });
    (!good).then_some("has to be a host with or without a port: write e.g. \"nats://nats:4222\"")
}

/// A name that NATS takes for a stream, and that the names of others can be made of.
fn stream(item: &Item<'_>) -> Option<String> {
    let text = item.text("a name such as \"HOOKGATE\"")?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !(1..=100).contains(&text.len()) || !text.bytes().all(allowed) {
        item.mistake("has to be a name of 1 to 100 of A-Z, a-z, 0-9, '_' and '-': write e.g. \"HOOKGATE\"");
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
        item.mistake(format_args!("has to be the path of a file with credentials: write {WANTED}"));
        return None;
    }
    let path = Path::new(text);
    item.context.name_file(path);
    warn_of_writers(&item, path);
    match read_bounded(path, MAX_CREDENTIALS) {
        Ok(content) if str::from_utf8(&content).is_ok_and(holds_credentials) => return Some(path.to_owned()),
        Ok(_) => item.mistake(format_args!(
            "{} holds no credentials of NATS: put there what `nsc generate creds` writes",
            path.display()
        )),
        Err(error @ (SecretSourceError::Unreadable { .. } | SecretSourceError::TooLong { .. })) => {
            item.mistake(format_args!(
                "{error}; put there what `nsc generate creds` writes, readable for hookgate's user"
            ));
        }
        Err(error) => item.mistake(error),
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
    let Some(mut table) = item.table("{ initial = \"1s\", max = \"1h\" }") else { return default };
    let before = table.context.mistakes();
    let mut read =
        |name, default| table.read(name, default, |item: &Item<'_>| item.duration(SHORTEST..=LONGEST));
    let backoff = Backoff { initial: read("initial", default.initial), max: read("max", default.max) };
    if table.context.mistakes() == before && backoff.initial > backoff.max {
        let text = "is longer than `max`, which no delay may be: lower it, or raise `max`";
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
            "has to be shorter than `queue.max_age`, or each delivery is given up before it is tried: lower it, or raise `max_age`",
        );
        return None;
    }
    Some(wait)
}
