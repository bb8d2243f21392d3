//! The file: its tables, how it is opened, and what is refused.
//!
//! `docs/queue.md` shows operators how to look into it with plain `sqlite3`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

/// Marks the file as ours: `hkgt`.
const APPLICATION_ID: i64 = 0x686b_6774;

/// Forms that were used before the first release. They are refused.
const UNRELEASED: usize = 2;

/// The form that is known here.
const VERSION: usize = UNRELEASED + MIGRATIONS.len();

/// What brings the file from each version of the schema to the next; the first from nothing to the first that was
/// released. A released entry is never changed.
const MIGRATIONS: [&str; 1] = ["
    -- What the file keeps beside its rows, by name: `clock`, how far the system's clock is ahead of the file's, and `window`,
    -- how long a delivered ID is known; both in milliseconds. `probe` is written to find out whether the store can be.
    CREATE TABLE setting (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

    -- Destinations of webhooks, by their names in the configuration, and what their jobs are counted as.
    CREATE TABLE recipient (
        number      INTEGER PRIMARY KEY,
        webhook     TEXT NOT NULL,
        destination TEXT NOT NULL,
        in_order    INTEGER NOT NULL,           -- 1: each environment's jobs one after the other
        waiting     INTEGER NOT NULL DEFAULT 0, -- counted by triggers
        dead        INTEGER NOT NULL DEFAULT 0,
        UNIQUE (webhook, destination)
    ) STRICT;

    -- What senders sent. Times are milliseconds since 1970, UTC, by the file's clock.
    CREATE TABLE delivery (
        number        INTEGER PRIMARY KEY AUTOINCREMENT, -- in order of arrival; none is given twice
        webhook       TEXT NOT NULL,
        id            TEXT NOT NULL,       -- Pulumi-Webhook-ID
        kind          TEXT NOT NULL,       -- Pulumi-Webhook-Kind
        event         TEXT NOT NULL,       -- the filter's name where there is one, else the kind
        environment   TEXT,                -- projectName/environmentName
        revision      INTEGER,
        content_type  BLOB NOT NULL,
        signature     BLOB NOT NULL,       -- Pulumi-Webhook-Signature
        traceparent   BLOB NOT NULL,
        kind_verified INTEGER NOT NULL,
        received      INTEGER NOT NULL,
        body          BLOB NOT NULL
    ) STRICT;
    CREATE INDEX delivery_id ON delivery (id, webhook);

    -- IDs that are known within the window although their delivery is gone.
    CREATE TABLE known (
        id       TEXT NOT NULL,
        webhook  TEXT NOT NULL,
        digest   BLOB NOT NULL, -- SHA-256 of the body
        finished INTEGER NOT NULL,
        PRIMARY KEY (id, webhook)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX known_finished ON known (finished);

    -- A delivery's way to one recipient. Users see it as DELIVERY-RECIPIENT, e.g. 1042-1.
    CREATE TABLE job (
        delivery      INTEGER NOT NULL,
        recipient     INTEGER NOT NULL,
        state         TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead', 'coalesced')),
        blocked       INTEGER NOT NULL DEFAULT 0, -- 1: behind another of its line; 2: under way, and not tried again
        line          TEXT,                       -- the environment, where the destination has order or coalesce
        due           INTEGER NOT NULL,           -- not before this time
        since         INTEGER NOT NULL,           -- accepted, or last redelivered: its age counts from here
        attempts      INTEGER NOT NULL DEFAULT 0, -- since then
        attempts_ever INTEGER NOT NULL DEFAULT 0,
        finished      INTEGER,
        death         TEXT,                       -- why it is dead
        PRIMARY KEY (delivery, recipient)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX job_due ON job (recipient, due, delivery) WHERE state = 'waiting' AND blocked = 0;
    CREATE INDEX job_waiting ON job (recipient, delivery) WHERE state = 'waiting';
    CREATE INDEX job_line ON job (recipient, line, blocked, delivery) WHERE state = 'waiting' AND line IS NOT NULL;
    CREATE INDEX job_superseded ON job (recipient, delivery) WHERE state = 'waiting' AND blocked = 2;
    CREATE INDEX job_finished ON job (state, finished) WHERE state <> 'waiting';

    CREATE TRIGGER job_comes AFTER INSERT ON job BEGIN
        UPDATE recipient SET waiting = waiting + (new.state = 'waiting'), dead = dead + (new.state = 'dead')
        WHERE number = new.recipient;
    END;
    CREATE TRIGGER job_changes AFTER UPDATE OF state ON job WHEN old.state <> new.state BEGIN
        UPDATE recipient SET waiting = waiting + (new.state = 'waiting') - (old.state = 'waiting'),
            dead = dead + (new.state = 'dead') - (old.state = 'dead')
        WHERE number = new.recipient;
    END;
    CREATE TRIGGER job_goes AFTER DELETE ON job BEGIN
        UPDATE recipient SET waiting = waiting - (old.state = 'waiting'), dead = dead - (old.state = 'dead')
        WHERE number = old.recipient;
    END;

    CREATE TABLE attempt (
        delivery    INTEGER NOT NULL,
        recipient   INTEGER NOT NULL,
        number      INTEGER NOT NULL, -- from 1; the last 20 are kept
        at          INTEGER NOT NULL,
        duration_us INTEGER NOT NULL,
        status      INTEGER,          -- the upstream's status
        error       TEXT,             -- why there was no usable answer
        answer      BLOB NOT NULL,    -- its first 2 KiB
        PRIMARY KEY (delivery, recipient, number)
    ) STRICT, WITHOUT ROWID;

    -- For people, by the system's clock.
    CREATE VIEW log AS
        SELECT job.delivery || '-' || job.recipient AS job, recipient.webhook, recipient.destination, job.state,
            delivery.id, delivery.event, delivery.environment, delivery.revision, job.attempts_ever AS attempts,
            datetime((delivery.received + ahead) / 1000, 'unixepoch') AS received,
            datetime((job.due + ahead) / 1000, 'unixepoch') AS due,
            datetime((job.finished + ahead) / 1000, 'unixepoch') AS finished, job.death
        FROM job
        LEFT JOIN delivery ON delivery.number = job.delivery
        JOIN recipient ON recipient.number = job.recipient
        JOIN (SELECT coalesce((SELECT value FROM setting WHERE name = 'clock'), 0) AS ahead);
"];

/// How long a connection waits while another one writes. Those that do are ours: they are short.
const BUSY: Duration = Duration::from_secs(5);

/// Why the file is refused at the start. It is never reset.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is damaged.
    #[error(
        "the queue {path} is damaged ({what}): keep it, put a backup in its place or recover it with `sqlite3 {path} .recover`; hookgate does not touch it"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        what: String,
    },
    /// It is a database of another program.
    #[error("{path} is a database, but not hookgate's queue: name another file in `queue.path`")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer hookgate wrote it.
    #[error(
        "the queue {path} has the form {version} of a newer hookgate, this one knows {known}: run the newer one"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of its schema.
        version: i64,
        /// The newest that is known here.
        known: usize,
    },
    /// A build before the first release wrote it.
    #[error(
        "the queue {path} has a form from before the first release: let that build deliver what waits, then name another file in `queue.path` or remove this one"
    )]
    Unreleased {
        /// The file.
        path: PathBuf,
    },
    /// It has to be brought to this version by the service first.
    #[error(
        "the queue {path} was written by another version: start the service once, which brings it to this one"
    )]
    NotUpgraded {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing in it, although it was written to.
    #[error(
        "the queue {path} is a database without content: what belongs to it is in {path}-wal, which has to be beside it; without one, remove {path} to begin with an empty queue"
    )]
    Hollow {
        /// The file.
        path: PathBuf,
    },
    /// Another service runs on it.
    #[error(
        "the queue {path} is in use by another running hookgate{by}, which did not end within {waited:?}: stop that one, give each its own `queue.path`, or use store = \"nats\" for several replicas"
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// The process, where that can be found out.
        by: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Another program holds its lock.
    #[error(
        "the queue {path} is locked by another program ({what}): close what has it open, such as a `sqlite3`, and start again"
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        what: String,
    },
    /// The system does not let it be used.
    #[error(
        "the queue {path} cannot be used: {what}; its folder has to be there, and to be writable for hookgate's user"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        what: String,
    },
}

/// Opens the file for the service: brings one that is new or old to this version, and checks it.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Nothing is written before it is known that the file is ours and whole.
    let version = check_identity(path, &connection, true)?;
    check_integrity(path, &connection)?;
    // In the file itself, not in a log beside it: from its first moment it says what it is.
    let new = if version == 0 { "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA synchronous = FULL" } else { "" };
    connection
        .execute_batch(new)
        .and_then(|()| migrate(&mut connection, version))
        .and_then(|()| set_up(&connection))
        .map_err(|error| refusal(path, &error))?;
    Ok(connection)
}

/// Opens the file for a command that works beside the service, or without one. It has to be there.
pub(super) fn open_beside(path: &Path) -> Result<Connection, OpenError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let version = check_identity(path, &connection, false)?;
    if version != VERSION {
        return Err(OpenError::NotUpgraded { path: path.to_owned() });
    }
    set_up(&connection).map_err(|error| refusal(path, &error))?;
    Ok(connection)
}

/// One more connection to a file that is open.
pub(super) fn open_again(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    set_up(&connection)?;
    Ok(connection)
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|error| refusal(path, &error))?;
    connection.busy_timeout(BUSY).map_err(|error| refusal(path, &error))?;
    Ok(connection)
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    // FULL: a commit has reached the disk when it returns. A page that many commits change is written back once for each
    // 32 MiB of write-ahead log, and the limit gives back what a longer one took.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 8192;
         PRAGMA journal_size_limit = 33554432;
         PRAGMA cache_size = -4096;
         PRAGMA temp_store = MEMORY;",
    )?;
    connection.set_prepared_statement_cache_capacity(64);
    // Plans do not depend on parameters; without this, statements are planned anew for each of them.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Makes sure that the file is ours, and says which version of the schema it has: 0 for a new one.
fn check_identity(path: &Path, connection: &Connection, may_be_new: bool) -> Result<usize, OpenError> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let read = || {
        let objects: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((pragma("application_id")?, pragma("user_version")?, objects))
    };
    let (application, version, objects) = read().map_err(|error| refusal(path, &error))?;
    let path = path.to_owned();
    if application == 0 && objects == 0 && may_be_new {
        let is_new = fs::metadata(&path).is_ok_and(|file| file.len() == 0);
        return if is_new { Ok(0) } else { Err(OpenError::Hollow { path }) };
    }
    if application != APPLICATION_ID {
        return Err(OpenError::Foreign { path });
    }
    match usize::try_from(version) {
        Ok(version) if version <= UNRELEASED => Err(OpenError::Unreleased { path }),
        Ok(version) if version <= VERSION => Ok(version),
        _ => Err(OpenError::Newer { path, version, known: VERSION }),
    }
}

/// Each step in a transaction of its own, with the version that it leads to.
fn migrate(connection: &mut Connection, version: usize) -> rusqlite::Result<()> {
    for (number, step) in (UNRELEASED + 1..).zip(MIGRATIONS).skip(version.saturating_sub(UNRELEASED)) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        ))?;
        transaction.commit()?;
    }
    Ok(())
}

fn check_integrity(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| refusal(path, &error))?;
    if found == "ok" { Ok(()) } else { Err(OpenError::Corrupt { path: path.to_owned(), what: found }) }
}

/// What an operator is told of an error at the start.
fn refusal(path: &Path, error: &rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            OpenError::Corrupt { path, what: error.to_string() }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            OpenError::Locked { path, what: error.to_string() }
        }
        _ => OpenError::Unusable { path, what: error.to_string() },
    }
}
