//! The writer looks after the file: whether it is still there, whether it can be written to again, retention and space.

use std::{
    fs::{self, File},
    io,
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, params};
use tokio::time::Instant;
use tracing::warn;

use super::{
    super::{
        clock::millis,
        lock_of,
        place::{Found, Place, beside, log_length, remove},
        reader::Pages,
        schema, unavailable,
    },
    Writer,
    room::OVERHEAD,
};
use crate::delivery::queue::{Health, QueueError};

/// How often the writer looks after the file.
pub(super) const LOOK_AFTER: Duration = Duration::from_secs(1);

/// A write-ahead log that is longer is told. It is written back to the file after 32 MiB, unless somebody else reads.
const LONG_LOG: u64 = 256 << 20;

impl Writer {
    /// Makes sure that what is written goes into the file that the next start will open.
    pub(super) fn check_file(&mut self) -> Result<(), QueueError> {
        let Some(place) = &self.place else { return Ok(()) };
        let path = place.path.clone();
        let failed = |what: String| QueueError::Unavailable(format!("{} {what}", path.display()));
        match place.look() {
            Found::Whole if self.connection.is_some() => return Ok(()),
            Found::Replaced if self.connection.is_some() => {
                let what = "was replaced while the service runs: restart it to use the new file";
                return Err(failed(what.into()));
            }
            Found::Whole | Found::Replaced | Found::Missing => {}
        }
        self.put_back()
            .map_err(|error| failed(format!("or its log was removed, and cannot be put back: {error}")))?;
        warn!(path = %path.display(),
            "the queue's file or its log was removed while the service runs, and was put back whole");
        Ok(())
    }

    /// Writes what is in the file that is open, which has no name any more, to its path.
    fn put_back(&mut self) -> io::Result<()> {
        let Some(place) = &mut self.place else { return Ok(()) };
        let path = place.path.clone();
        let copy = beside(&path, ".restored");
        if let Some(connection) = &self.connection {
            remove(&copy)?;
            let new = Place::prepare(place, copy.clone())?;
            let name = copy.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
            connection.execute("VACUUM INTO ?1", [name]).map_err(io::Error::other)?;
            new.sync()?;
        }
        // The last connection to close removes the write-ahead log by its name: that must be before there is a new one.
        *lock_of(&self.shared.reader) = None;
        self.connection = None;
        // Else it is in its place already, and could not be opened.
        let mut new = Place::prepare(place, if copy.exists() { copy.clone() } else { path.clone() })?;
        if copy.exists() {
            remove(&beside(&path, "-wal"))?;
            remove(&beside(&path, "-shm"))?;
            fs::rename(&copy, &path)?;
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            File::open(folder)?.sync_all()?;
        }
        new.path.clone_from(&path);
        let open = || schema::open_again(&path).map_err(io::Error::other);
        let (writer, reader) = (open()?, open()?);
        new.note()?;
        *place = new;
        self.connection = Some(writer);
        *lock_of(&self.shared.reader) = Some(reader);
        Ok(())
    }

    /// What must be done from time to time.
    pub(super) fn look_after(&mut self) {
        self.looked = Instant::now();
        let health = match self.check_file() {
            Err(reason) => Some(Health::NotReady(reason.to_string())),
            Ok(()) => match self.sweep() {
                Err(error) => Some(Health::NotReady(unavailable(&error).to_string())),
                Ok(has_room) => (has_room || !self.is_full()).then_some(Health::Ready),
            },
        };
        if let Some(health) = health {
            self.shared.set_health(health);
        }
        let log = log_length(&self.shared.path);
        if log > LONG_LOG && !self.long_log {
            warn!(
                bytes = log,
                "the queue's write-ahead log is long, since it cannot be written back to the file: end the program that reads the file, such as a `sqlite3` with an open transaction"
            );
        }
        self.long_log = log > LONG_LOG;
    }

    /// Retention, space, and the clock. Whether there is room, or could be made.
    fn sweep(&mut self) -> rusqlite::Result<bool> {
        self.shared.clock.compare(SystemTime::now());
        let ahead = self.shared.clock.ahead();
        let ready = *self.shared.health.borrow() == Health::Ready;
        let told = self.ahead;
        let mut yields = false;
        let effects = self.transaction(|work| {
            work.sweep()?;
            yields = work.has_finished()?;
            if ahead != told {
                set(work.transaction, "clock", ahead)?;
            }
            if !ready {
                // Nothing else says that the store can be written to again.
                set(work.transaction, "probe", work.now)?;
            }
            Ok(())
        })?;
        self.ring(&effects);
        self.ahead = ahead;
        let Some(connection) = &self.connection else { return Ok(false) };
        let pages = Pages::read(connection)?;
        // Space that will be used again soon is not worth moving pages about. The file gets shorter with the checkpoint.
        if pages.free > 256 && pages.free > pages.all / 4 {
            run(connection, "PRAGMA incremental_vacuum(4096)")?;
            run(connection, "PRAGMA wal_checkpoint(PASSIVE)")?;
        }
        Ok(yields || pages.used() + OVERHEAD < self.shared.retention.max_bytes)
    }

    /// Ends, and leaves one file with everything in it.
    pub(super) fn end(mut self) -> Result<(), QueueError> {
        let whole = self.check_file();
        *lock_of(&self.shared.reader) = None;
        // Who waits for jobs finds that there is nothing to read any more.
        lock_of(&self.shared.bells).values().for_each(|bell| bell.send_replace(()));
        if let Some(connection) = self.connection.take().filter(|_| whole.is_ok()) {
            if self.place.is_some()
                && let Err(error) = run(&connection, "PRAGMA wal_checkpoint(TRUNCATE)")
            {
                warn!(%error, "the queue's write-ahead log was not written back to the file");
            }
            drop(connection);
            if let Some(place) = &self.place
                && place.beside("-wal").exists()
            {
                warn!(
                    path = %place.path.display(),
                    "another program has the queue's file open: what is newest may be in `-wal`, which belongs to the file"
                );
            }
        }
        match self.kept.len() {
            0 => whole,
            kept => Err(QueueError::Unavailable(format!(
                "{kept} finished attempts could not be recorded and are made again"
            ))),
        }
    }
}

/// Sets what the file keeps beside its rows.
fn set(connection: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO setting (name, value) VALUES (?1, ?2)")?
        .execute(params![name, value])
        .map(drop)
}

/// What the service writes about itself into the file.
pub(in super::super) fn tell(connection: &Connection, window: Duration, ahead: i64) -> rusqlite::Result<()> {
    set(connection, "window", millis(window))?;
    set(connection, "clock", ahead)
}

/// The window that the last service had.
pub(in super::super) fn window(connection: &Connection) -> rusqlite::Result<Duration> {
    let millis: i64 = connection.query_row(
        "SELECT coalesce((SELECT value FROM setting WHERE name = 'window'), 0)",
        [],
        |row| row.get(0),
    )?;
    Ok(Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
}

/// Runs a pragma to its end: each of its steps is a row.
fn run(connection: &Connection, pragma: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(pragma)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
