//! The thread that writes: what has come in meanwhile is committed in one transaction, and answered after it.

mod enqueue;
mod room;
mod upkeep;
mod work;

use std::sync::{
    Arc,
    atomic::Ordering::Relaxed,
    mpsc::{Receiver, RecvTimeoutError},
};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use self::{upkeep::LOOK_AFTER, work::Effects};
pub(super) use self::{
    upkeep::{tell, window},
    work::Work,
};
use super::{Leased, Shared, ended, lock_of, place::Place, unavailable};
use crate::delivery::queue::{Attempt, Health, QueueError, Verdict};

/// Where the answer to a command goes.
pub(super) type Done<T> = oneshot::Sender<Result<T, QueueError>>;

/// What the writer is told.
pub(super) enum Command {
    /// What nobody waits for any more is not done: who was told 503 need not be stored, and after a stall it is not worth the work.
    Task(Box<dyn Run>),
    /// Is kept until it can be committed.
    Verdict(Box<dyn Run>),
    Close(Done<()>),
}

impl Command {
    /// `work` is done in a transaction, which may must be tried again, and what comes of it is told after its commit.
    pub(super) fn task<T: Send + 'static>(
        work: impl FnMut(&mut Work<'_>) -> rusqlite::Result<Result<T, QueueError>> + Send + 'static,
        place: OwnedSemaphorePermit,
        done: Done<T>,
    ) -> Self {
        Self::Task(Box::new(Task { work, found: Err(ended()), kept: place, done }))
    }

    /// The lease ends with the command, whatever becomes of it.
    pub(super) fn verdict(
        mut lease: Leased,
        verdict: Verdict,
        attempt: Option<Attempt>,
        done: Done<()>,
    ) -> Self {
        // What may be leased after the verdict is rung for after its commit.
        lease.is_silent = true;
        let key = lease.key;
        let work = move |work: &mut Work<'_>| work.settle(key, verdict, attempt.as_ref()).map(Ok);
        Self::Verdict(Box::new(Task { work, found: Err(ended()), kept: lease, done }))
    }
}

/// Something to be done in a transaction, and who is told of it.
pub(super) trait Run: Send {
    fn run(&mut self, work: &mut Work<'_>) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, failed: Option<&QueueError>);
    fn is_given_up(&self) -> bool;
}

struct Task<F, T, K> {
    work: F,
    found: Result<T, QueueError>,
    /// Until the answer: a place among those that wait, or a lease.
    kept: K,
    done: Done<T>,
}

impl<F, T: Send, K: Send> Run for Task<F, T, K>
where
    F: FnMut(&mut Work<'_>) -> rusqlite::Result<Result<T, QueueError>> + Send,
{
    fn run(&mut self, work: &mut Work<'_>) -> rusqlite::Result<()> {
        self.found = (self.work)(work)?;
        Ok(())
    }

    fn answer(self: Box<Self>, failed: Option<&QueueError>) {
        let Self { found, kept, done, .. } = *self;
        // Whoever hears of the commit may lease the job again.
        drop(kept);
        // Who has gone away needs no answer.
        drop(done.send(failed.map_or(found, |error| Err(error.clone()))));
    }

    fn is_given_up(&self) -> bool {
        self.done.is_closed()
    }
}

pub(super) struct Writer {
    /// Absent while the file is put back, and after that failed.
    connection: Option<Connection>,
    shared: Arc<Shared>,
    /// `None`: a command beside the service, which does not look after the file.
    place: Option<Place>,
    /// Verdicts that could not be committed. Each holds its lease, so that there are no more than leases.
    kept: Vec<Command>,
    looked: Instant,
    /// How far the file says that the system's clock is ahead of its own.
    ahead: i64,
    /// The log is longer than it should be, and that was said.
    long_log: bool,
}

impl Writer {
    pub(super) fn new(connection: Connection, shared: Arc<Shared>, place: Option<Place>) -> Self {
        Self {
            connection: Some(connection),
            ahead: shared.clock.ahead(),
            shared,
            place,
            kept: Vec::new(),
            looked: Instant::now(),
            long_log: false,
        }
    }

    /// Works until a command says that it is the last.
    pub(super) fn run(mut self, inbox: Receiver<Command>) {
        loop {
            let mut commands = std::mem::take(&mut self.kept);
            match inbox.recv_timeout(LOOK_AFTER) {
                Ok(command) => commands.push(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // All of it: deliveries have few places, and there are not more verdicts than leases.
            commands.extend(inbox.try_iter());
            let mut close = None;
            commands.retain_mut(|command| match command {
                Command::Task(task) => !task.is_given_up(),
                Command::Verdict(_) => true,
                Command::Close(done) => {
                    close = Some(std::mem::replace(done, oneshot::channel().0));
                    false
                }
            });
            if !commands.is_empty() {
                self.commit(commands);
            }
            if let Some(close) = close {
                // Whoever comes now is told that the queue has ended.
                drop(inbox);
                drop(close.send(self.end()));
                return;
            }
            if self.place.is_some() && self.looked.elapsed() >= LOOK_AFTER {
                self.look_after();
            }
        }
    }

    /// Commits all commands in one transaction. If that fails because of one of them, each in its own.
    fn commit(&mut self, mut commands: Vec<Command>) {
        if let Err(reason) = self.check_file() {
            return self.fail(commands, &reason);
        }
        match self.transact(&mut commands) {
            Err(error) if commands.len() > 1 && is_of_one(&error) => {
                for command in commands {
                    let mut one = vec![command];
                    let done = self.transact(&mut one);
                    self.answer(one, done);
                }
            }
            done => self.answer(commands, done),
        }
    }

    fn answer(&mut self, commands: Vec<Command>, done: rusqlite::Result<Effects>) {
        let effects = match done {
            Ok(effects) => effects,
            Err(error) => return self.fail(commands, &unavailable(&error)),
        };
        for command in commands {
            match command {
                Command::Task(task) | Command::Verdict(task) => task.answer(None),
                Command::Close(done) => drop(done.send(Ok(()))),
            }
        }
        self.ring(&effects);
    }

    fn fail(&mut self, commands: Vec<Command>, reason: &QueueError) {
        self.shared.set_health(Health::NotReady(reason.to_string()));
        for command in commands {
            match command {
                Command::Verdict(_) => self.kept.push(command),
                Command::Task(task) => task.answer(Some(reason)),
                Command::Close(done) => drop(done.send(Err(reason.clone()))),
            }
        }
    }

    fn is_full(&self) -> bool {
        *self.shared.health.borrow() == Health::NotReady(QueueError::Full.to_string())
    }

    /// Runs commands in one transaction; nothing of them is seen by anybody before it is committed.
    fn transact(&mut self, commands: &mut [Command]) -> rusqlite::Result<Effects> {
        let effects = self.transaction(|work| {
            commands.iter_mut().try_for_each(|command| match command {
                Command::Task(task) | Command::Verdict(task) => task.run(work),
                Command::Close(_) => Ok(()),
            })
        })?;
        if effects.full {
            self.shared.set_health(Health::NotReady(QueueError::Full.to_string()));
        } else if effects.stored || !self.is_full() {
            self.shared.set_health(Health::Ready);
        }
        Ok(effects)
    }

    fn transaction(
        &mut self,
        run: impl FnOnce(&mut Work<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<Effects> {
        let Some(connection) = &mut self.connection else { return Err(rusqlite::Error::InvalidQuery) };
        *lock_of(&self.shared.committing) = Some(Instant::now());
        let committed = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut work = Work::new(&transaction, &self.shared);
            run(&mut work)?;
            let effects = work.end()?;
            step!("commit");
            transaction.commit()?;
            step!("answer");
            Ok(effects)
        };
        let committed = committed();
        *lock_of(&self.shared.committing) = None;
        committed
    }

    /// Tells those who wait for jobs what may be due since a commit.
    fn ring(&self, effects: &Effects) {
        self.shared.dead_dropped.fetch_add(effects.dead_dropped, Relaxed);
        effects.ring.iter().for_each(|recipient| self.shared.ring(*recipient));
    }
}

/// Whether an error may be that of one command only, so that the others may do without it.
fn is_of_one(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
        )
    )
}
