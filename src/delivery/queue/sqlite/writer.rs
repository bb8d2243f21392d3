//! The thread that writes: what has come in meanwhile is committed in one transaction, and answered after it.

mod enqueue;
mod upkeep;
mod work;

use std::{
    fs::File,
    io,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use self::{
    upkeep::{LOOK_AFTER, data_version, recount},
    work::{Effects, Known, Recipients, Work},
};
use super::{Shared, identity, ids::Ids, lock_of, now, rows::Key, unavailable};
use crate::delivery::queue::{Attempt, Delivery, Enqueued, Health, QueueError, Recipient, State, Verdict};

/// Commands of one transaction.
const BATCH: usize = 512;

/// Where the answer to a command goes.
pub(super) type Done<T> = oneshot::Sender<Result<T, QueueError>>;

/// What the writer is told.
pub(super) enum Command {
    Enqueue { delivery: Box<Delivery>, done: Done<Enqueued> },
    Settle { key: Key, in_order: bool, verdict: Verdict, attempt: Option<Attempt>, done: Done<()> },
    Arrange { recipient: Recipient, in_order: bool, done: Done<()> },
    Redeliver { keys: Vec<Key>, states: Vec<State>, done: Done<u64> },
    Purge { keys: Vec<Key>, states: Vec<State>, done: Done<u64> },
    Close { done: Done<()> },
}

/// What came of a command.
enum Executed {
    Enqueued(Enqueued),
    /// `max_bytes`.
    Full,
    Done,
    Count(u64),
}

impl Command {
    fn answer(self, result: Result<Executed, QueueError>) {
        // Who has gone away needs no answer.
        match (self, result) {
            (Self::Enqueue { done, .. }, Ok(Executed::Enqueued(enqueued))) => drop(done.send(Ok(enqueued))),
            (Self::Enqueue { done, .. }, Ok(_)) => drop(done.send(Err(QueueError::Full))),
            (Self::Enqueue { done, .. }, Err(error)) => drop(done.send(Err(error))),
            (Self::Redeliver { done, .. } | Self::Purge { done, .. }, result) => {
                let count = |executed| if let Executed::Count(count) = executed { count } else { 0 };
                drop(done.send(result.map(count)));
            }
            (Self::Settle { done, .. } | Self::Arrange { done, .. } | Self::Close { done }, result) => {
                drop(done.send(result.map(|_executed| ())));
            }
        }
    }
}

pub(super) struct Writer {
    /// Absent while the file is put back, and after that failed.
    connection: Option<Connection>,
    shared: Arc<Shared>,
    /// Held as long as the service runs. `None`: a command beside it, which does not look after the file.
    lock: Option<File>,
    /// Device and inode of the file that is open.
    file: (u64, u64),
    known: Known,
    /// Verdicts that could not be committed.
    kept: Vec<Command>,
    /// SQLite's count of commits by others.
    version: i64,
    looked: Instant,
}

impl Writer {
    pub(super) fn try_new(
        connection: Connection,
        shared: Arc<Shared>,
        lock: Option<File>,
    ) -> io::Result<Self> {
        let failed = |error: rusqlite::Error| io::Error::other(error);
        let file = identity(&shared.path)?;
        if lock.is_some() {
            recount(&connection, &shared).map_err(failed)?;
        }
        let version = data_version(&connection).map_err(failed)?;
        let known = Known::read(&connection, lock.is_some()).map_err(failed)?;
        let connection = Some(connection);
        let looked = Instant::now();
        Ok(Self { connection, shared, lock, file, known, kept: Vec::new(), version, looked })
    }

    /// Works until nobody can send commands any more, or one says that it is the last.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(BATCH);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            if receive(&mut inbox, &mut batch, &waker) == Some(0) {
                return;
            }
            let close = batch.iter().position(|command| matches!(command, Command::Close { .. }));
            let last = close.map(|at| batch.swap_remove(at));
            let mut commands = std::mem::take(&mut self.kept);
            commands.append(&mut batch);
            if !commands.is_empty() {
                self.commit(commands);
            }
            if let Some(close) = last {
                inbox.close();
                let kept = self.kept.len();
                // The file is free before anybody hears of it.
                drop(self);
                close.answer(match kept {
                    0 => Ok(Executed::Done),
                    _ => Err(QueueError::Unavailable(format!(
                        "{kept} finished attempts could not be recorded and are made again"
                    ))),
                });
                return;
            }
            if self.lock.is_some() && self.looked.elapsed() >= LOOK_AFTER {
                self.look_after();
            }
        }
    }

    /// Commits all commands in one transaction. If that fails because of one of them, each in its own.
    fn commit(&mut self, commands: Vec<Command>) {
        if let Err(reason) = self.check_file() {
            return self.fail(commands, &reason);
        }
        *lock_of(&self.shared.committing) = Some(Instant::now());
        match self.transact(&commands) {
            Ok(executed) => self.answer(commands, executed),
            Err(error) if commands.len() > 1 && is_of_one(&error) => {
                for command in commands {
                    let one = [command];
                    match self.transact(&one) {
                        Ok(executed) => self.answer(one.into(), executed),
                        Err(error) => self.fail(one.into(), &unavailable(&error)),
                    }
                }
            }
            Err(error) => self.fail(commands, &unavailable(&error)),
        }
        *lock_of(&self.shared.committing) = None;
    }

    fn answer(&self, commands: Vec<Command>, executed: Vec<Executed>) {
        let full = executed.iter().any(|executed| matches!(executed, Executed::Full));
        let stored = executed.iter().any(|executed| matches!(executed, Executed::Enqueued(_)));
        if full {
            self.shared.set_health(Health::NotReady(QueueError::Full.to_string()));
        } else if stored || !self.is_full() {
            self.shared.set_health(Health::Ready);
        }
        for (command, executed) in commands.into_iter().zip(executed) {
            command.answer(match executed {
                Executed::Full => Err(QueueError::Full),
                executed => Ok(executed),
            });
        }
    }

    fn is_full(&self) -> bool {
        *self.shared.health.borrow() == Health::NotReady(QueueError::Full.to_string())
    }

    fn fail(&mut self, commands: Vec<Command>, reason: &QueueError) {
        self.shared.set_health(Health::NotReady(reason.to_string()));
        for command in commands {
            if matches!(command, Command::Settle { .. }) {
                self.kept.push(command);
            } else {
                command.answer(Err(reason.clone()));
            }
        }
    }

    /// Runs commands in one transaction; nothing of them is seen by anybody before it is committed.
    fn transact(&mut self, commands: &[Command]) -> rusqlite::Result<Vec<Executed>> {
        let Some(connection) = &mut self.connection else { return Err(rusqlite::Error::InvalidQuery) };
        let mut effects = Effects::default();
        let result = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut work = Work::new(&transaction, &self.shared, &mut self.known, &mut effects, now());
            let executed = work.run(commands)?;
            drop(work);
            step!("commit");
            transaction.commit()?;
            step!("answer");
            Ok(executed)
        })();
        self.come_into_force(effects, result.is_ok());
        result
    }

    fn come_into_force(&mut self, effects: Effects, committed: bool) {
        if !(effects.withdrawn.is_empty() && effects.ended.is_empty()) {
            let mut held = lock_of(&self.shared.held);
            for key in &effects.withdrawn {
                held.withdrawn.remove(key);
            }
            for key in effects.ended.iter().filter(|_| committed) {
                held.leased.remove(key);
            }
        }
        if !committed {
            // Numbers that were given in a transaction that came to nothing.
            self.known.recipients.clear();
            self.known.ids.roll_back();
            return;
        }
        self.known.ids.commit();
        let recipients = &self.known.recipients;
        let mut counts = lock_of(&self.shared.counts);
        for (number, (waiting, dead)) in effects.changes {
            let Some(recipient) = recipients.name(number) else { continue };
            let depth = counts.depths.entry(recipient.clone()).or_default();
            depth.waiting = depth.waiting.saturating_add_signed(waiting);
            depth.dead = depth.dead.saturating_add_signed(dead);
        }
        counts.dead_dropped += effects.dead_dropped;
        drop(counts);
        for recipient in effects.ring.iter().filter_map(|number| recipients.name(*number)) {
            self.shared.ring(recipient);
        }
    }
}

impl Known {
    /// `whole`: with what only a service needs.
    fn read(connection: &Connection, whole: bool) -> rusqlite::Result<Self> {
        let given: i64 = connection.query_row(
            "SELECT max(coalesce((SELECT max(number) FROM delivery), 0),
                 coalesce((SELECT value FROM counter WHERE name = 'given'), 0))",
            [],
            |row| row.get(0),
        )?;
        let ids = if whole { Ids::read(connection)? } else { Ids::new() };
        Ok(Self { recipients: Recipients::default(), ids, next: given + 1, room: 0 })
    }
}

/// Waits for commands, for as long as the file needs no look. How many came: none when nobody can send any more.
fn receive(inbox: &mut mpsc::Receiver<Command>, batch: &mut Vec<Command>, waker: &Waker) -> Option<usize> {
    let end = Instant::now() + LOOK_AFTER;
    loop {
        if let Poll::Ready(count) = inbox.poll_recv_many(&mut Context::from_waker(waker), batch, BATCH) {
            return Some(count);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}

/// Wakes the thread by the means that cost least.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Whether an error may be that of one command only, so that the others may do without it.
fn is_of_one(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
        )
    )
}
