//! The writer looks after the file: whether it is still there, whether it can be written to again, retention and space.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, TransactionBehavior};
use tokio::time::Instant;
use tracing::{error, warn};

use super::{
    super::{Shared, identity, lock_of, now, reader, rows::millis, schema, unavailable},
    Writer,
    enqueue::OVERHEAD,
    work::{Effects, finished, forget, name_of},
};
use crate::delivery::queue::{Depth, Health, JobId, QueueError, Recipient, State};

/// How often the writer looks after the file.
pub(super) const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Jobs that one look after the file forgets at most, so that it does not hold up those who wait.
const SWEEP: usize = 2_000;

impl Writer {
    fn recount(&self) {
        let Some(connection) = &self.connection else { return };
        if let Err(error) = recount(connection, &self.shared) {
            error!(%error, "the jobs of the queue cannot be counted");
        }
        self.shared.ring_all();
    }

    /// Makes sure that what is written goes into the file that the next start will open.
    pub(super) fn check_file(&mut self) -> Result<(), QueueError> {
        if self.lock.is_none() || (self.connection.is_some() && self.shared.is_in_place(self.file)) {
            return Ok(());
        }
        let path = self.shared.path.clone();
        let failed = |what: String| QueueError::Unavailable(format!("{} {what}", path.display()));
        if self.connection.is_some() && path.exists() {
            return Err(failed("was replaced while the service runs: restart it to use the new file".into()));
        }
        self.put_back().map_err(|error| failed(format!("was removed and cannot be put back: {error}")))?;
        warn!(path = %path.display(), "the queue's file was removed while the service runs, and put back whole");
        Ok(())
    }

    /// Writes what is in the file that is open, which has no name any more, to its path.
    fn put_back(&mut self) -> io::Result<()> {
        let path = self.shared.path.clone();
        let copy = beside(&path, ".restored");
        if let Some(connection) = &self.connection {
            remove(&copy)?;
            let name = copy.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
            connection.execute("VACUUM INTO ?1", [name]).map_err(io::Error::other)?;
            File::open(&copy)?.sync_all()?;
        }
        // The last connection to close removes the write-ahead log by its name: that has to be before there is a new one.
        *lock_of(&self.shared.reader) = None;
        self.connection = None;
        remove(&beside(&path, "-wal"))?;
        remove(&beside(&path, "-shm"))?;
        fs::rename(&copy, &path)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            File::open(folder)?.sync_all()?;
        }
        let open = || schema::open_again(&path).map_err(io::Error::other);
        let (writer, reader) = (open()?, open()?);
        self.file = identity(&path)?;
        self.version = data_version(&writer).map_err(io::Error::other)?;
        self.connection = Some(writer);
        *lock_of(&self.shared.reader) = Some(reader);
        Ok(())
    }

    /// What has to be done from time to time.
    pub(super) fn look_after(&mut self) {
        self.looked = Instant::now();
        if let Err(reason) = self.check_file() {
            return self.shared.set_health(Health::NotReady(reason.to_string()));
        }
        let ready = *self.shared.health.borrow() == Health::Ready;
        if let Err(error) = self.sweep().and_then(|()| if ready { Ok(()) } else { self.probe() }) {
            return self.shared.set_health(Health::NotReady(unavailable(&error).to_string()));
        }
        let Some(connection) = &self.connection else { return };
        let noticed = || {
            let (pages, free, size) = pages(connection)?;
            let version = data_version(connection)?;
            // Finished jobs would make room. Whoever waits for the store to be ready enqueues nothing before it is.
            let yields = !finished(connection, State::Delivered, i64::MAX, 1)?.is_empty()
                || !finished(connection, State::Coalesced, i64::MAX, 1)?.is_empty();
            // Space that will be used again soon is not worth moving pages about. The file gets shorter with the checkpoint.
            if free > 256 && free > pages / 4 {
                shrink(connection)?;
            }
            rusqlite::Result::Ok(((pages - free) * size, version, yields))
        };
        match noticed() {
            Ok((bytes, version, yields)) => {
                lock_of(&self.shared.counts).bytes = bytes;
                self.known.room = self.shared.retention.max_bytes.saturating_sub(bytes);
                if version != self.version {
                    self.version = version;
                    self.recount();
                }
                if !self.is_full() || yields || bytes + OVERHEAD < self.shared.retention.max_bytes {
                    self.shared.set_health(Health::Ready);
                }
            }
            Err(error) => self.shared.set_health(Health::NotReady(unavailable(&error).to_string())),
        }
    }

    /// Finds out whether the store can be written to.
    fn probe(&mut self) -> rusqlite::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        connection.execute("INSERT OR REPLACE INTO probe (number, at) VALUES (1, ?1)", [now()]).map(drop)
    }

    /// Forgets finished jobs that are older than they have to be kept.
    fn sweep(&mut self) -> rusqlite::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let now = now();
        let retention = self.shared.retention;
        let limits = [
            (State::Delivered, retention.retain),
            (State::Coalesced, retention.retain),
            (State::Dead, retention.dead_retain),
        ];
        let mut old = Vec::new();
        for (state, retain) in limits {
            let before = now.saturating_sub(millis(retain));
            old.extend(finished(connection, state, before, SWEEP)?.into_iter().map(|key| (state, key)));
        }
        if old.is_empty() {
            return Ok(());
        }
        let mut effects = Effects::default();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let forget_all = || {
            for (state, key) in old {
                if state == State::Dead {
                    let recipient = name_of(&transaction, key.recipient)?;
                    let id: String = transaction
                        .prepare_cached("SELECT id FROM delivery WHERE number = ?1")?
                        .query_row([key.delivery], |row| row.get(0))?;
                    warn!(webhook = recipient.webhook, destination = recipient.destination, delivery.id = id, job = %JobId::from(key),
                        "a dead letter older than `queue.dead_retain` is dropped");
                    self.known.recipients.learn(key.recipient, recipient);
                    effects.change(key.recipient, 0, -1);
                    effects.dead_dropped += 1;
                }
                forget(&transaction, key, &mut self.known.ids)?;
            }
            transaction.commit()
        };
        let result = forget_all();
        self.come_into_force(effects, result.is_ok());
        result
    }
}

/// Counts all jobs.
pub(super) fn recount(connection: &Connection, shared: &Shared) -> rusqlite::Result<()> {
    let mut depths: HashMap<Recipient, Depth> = HashMap::new();
    let mut fresh = reader::count_fresh(connection, shared)?;
    let mut statement = connection.prepare_cached(
        "SELECT number, webhook, destination,
             (SELECT count(*) FROM job INDEXED BY job_waiting
                 WHERE job.recipient = recipient.number AND job.state = 'waiting' AND job.due IS NOT NULL),
             (SELECT count(*) FROM job WHERE job.recipient = recipient.number AND job.state = 'dead'
                 AND job.state <> 'waiting')
         FROM recipient",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let recipient = Recipient { webhook: row.get(1)?, destination: row.get(2)? };
        let count = |column| row.get::<_, i64>(column).map(|count| u64::try_from(count).unwrap_or(0));
        let waiting = count(3)? + fresh.remove(&row.get(0)?).unwrap_or(0);
        depths.insert(recipient, Depth { waiting, oldest: None, dead: count(4)? });
    }
    let (pages, free, size) = pages(connection)?;
    let mut counts = lock_of(&shared.counts);
    counts.depths = depths;
    counts.bytes = (pages - free) * size;
    Ok(())
}

/// Pages of the file, those of them that are free, and the size of one in bytes.
pub(super) fn pages(connection: &Connection) -> rusqlite::Result<(u64, u64, u64)> {
    let pragma = |name: &str| -> rusqlite::Result<u64> {
        let mut statement = connection.prepare_cached(name)?;
        statement.query_row([], |row| row.get::<_, i64>(0)).map(|value| u64::try_from(value).unwrap_or(0))
    };
    Ok((pragma("PRAGMA page_count")?, pragma("PRAGMA freelist_count")?, pragma("PRAGMA page_size")?))
}

/// Gives free pages back to the file system, as many as do not take long.
fn shrink(connection: &Connection) -> rusqlite::Result<()> {
    for pragma in ["PRAGMA incremental_vacuum(4096)", "PRAGMA wal_checkpoint(PASSIVE)"] {
        let mut statement = connection.prepare_cached(pragma)?;
        // Each step of a vacuum is a row.
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}

pub(super) fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA data_version", [], |row| row.get(0))
}

/// A file beside another one.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Removes a file that may be absent.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
