//! The file: its tables, how it is opened, and what is refused.
//!
//! `docs/queue.md` shows operators how to look into it with plain `sqlite3`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

/// Marks the file as ours: `hkgt`.
const APPLICATION_ID: i64 = 0x686b_6774;

/// Forms that were used before the first release. They are refused.
const UNRELEASED: usize = 3;

/// The form that is known here.
const VERSION: usize = UNRELEASED + MIGRATIONS.len();

/// What brings the file from each version of the schema to the next; the first from nothing to the first that was
/// released. A released entry is never changed.
const MIGRATIONS: [&str; 1] = [include_str!("schema.sql")];

/// How long a connection waits while another one writes. Those that do are ours: they are short.
const BUSY: Duration = Duration::from_secs(5);

/// How long the file is checked at the start.
const CHECK: Duration = Duration::from_secs(1);

/// How long a service waits for the one before it to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The file is refused at the start. It is never reset.
#[derive(Debug, thiserror::Error)]
#[error("the queue {} {why}", path.display())]
pub struct OpenError {
    /// The file.
    pub path: PathBuf,
    /// What is in the way.
    pub why: Why,
}

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// It is damaged.
    #[error(
        "is damaged ({0}): keep it, and put a backup in its place or what `.recover` of `sqlite3` makes of it; hookgate does not touch it"
    )]
    Corrupt(String),
    /// It is a database of another program.
    #[error("is a database, but not hookgate's queue: name another file in `queue.path`")]
    Foreign,
    /// A newer hookgate wrote it.
    #[error("has the form {0} of a newer hookgate, this one knows {known}: run the newer one", known = VERSION)]
    Newer(i64),
    /// A build before the first release wrote it.
    #[error(
        "has a form from before the first release: let that build deliver what waits, then name another file in `queue.path` or remove this one"
    )]
    Unreleased,
    /// It must be brought to this version by the service first.
    #[error("was written by another version: start the service once, which brings it to this one")]
    NotUpgraded,
    /// There is nothing in it, although it was written to.
    #[error(
        "is a database without content: what belongs to it is in the file beside it whose name ends in `-wal`; put that there too, or remove this one to begin with an empty queue"
    )]
    Hollow,
    /// Another service runs on it; which, where that can be found out.
    #[error(
        "is in use by another running hookgate{0}, which did not end within {limit:?}: stop that one, give each its own `queue.path`, or use store = \"nats\" for several replicas",
        limit = PATIENCE
    )]
    InUse(String),
    /// Another program holds its lock.
    #[error(
        "is locked by another program ({0}): close what has it open, such as a `sqlite3`, and start again"
    )]
    Locked(String),
    /// The system does not let it be used.
    #[error("cannot be used: {0}; its folder must exist and be writable for hookgate's user")]
    Unusable(String),
}

impl Why {
    pub(super) fn of(self, path: &Path) -> OpenError {
        OpenError { path: path.to_owned(), why: self }
    }

    /// Something the system says.
    pub(super) fn unusable(path: &Path, error: &dyn ToString) -> OpenError {
        Self::Unusable(error.to_string()).of(path)
    }
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

/// Opens the file for a command that works beside the service, or without one. It must be there.
pub(super) fn open_beside(path: &Path) -> Result<Connection, OpenError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let version = check_identity(path, &connection, false)?;
    if version != VERSION {
        return Err(Why::NotUpgraded.of(path));
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
    // Plans do not depend on parameters; without this, statements are planned again for each of them.
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
    if application == 0 && objects == 0 && may_be_new {
        let is_new = fs::metadata(path).is_ok_and(|file| file.len() == 0);
        return if is_new { Ok(0) } else { Err(Why::Hollow.of(path)) };
    }
    if application != APPLICATION_ID {
        return Err(Why::Foreign.of(path));
    }
    match usize::try_from(version) {
        Ok(version) if version <= UNRELEASED => Err(Why::Unreleased.of(path)),
        Ok(version) if version <= VERSION => Ok(version),
        _ => Err(Why::Newer(version).of(path)),
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

/// Looks at every page and row, for as long as a start may take: what a large file has damaged beyond that is said when it is
/// read, row by row.
fn check_integrity(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let (checked, still_checking) = mpsc::channel::<()>();
    let interrupt = connection.get_interrupt_handle();
    let found = thread::scope(|scope| {
        scope.spawn(move || {
            if still_checking.recv_timeout(CHECK) == Err(RecvTimeoutError::Timeout) {
                interrupt.interrupt();
            }
        });
        let found = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        drop(checked);
        found
    });
    match found {
        Ok(found) if found == "ok" => Ok(()),
        Ok(found) => Err(Why::Corrupt(found).of(path)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(()),
        Err(error) => Err(refusal(path, &error)),
    }
}

/// What an operator is told of an error at the start.
fn refusal(path: &Path, error: &rusqlite::Error) -> OpenError {
    let what = error.to_string();
    let why = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Why::Corrupt(what),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Why::Locked(what),
        _ => Why::Unusable(what),
    };
    why.of(path)
}
