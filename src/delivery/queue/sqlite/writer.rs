//! The thread that writes: what has come in meanwhile is committed in one transaction, and answered after it.

mod enqueue;
mod room;
mod upkeep;
mod work;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use self::{
    upkeep::LOOK_AFTER,
    work::{Effects, Recipients},
};
pub(super) use self::{
    upkeep::{tell, window},
    work::Work,
};
use super::{Leased, Shared, ended, lock_of, place::Place, unavailable};
use crate::delivery::queue::{Attempt, Health, QueueError, Verdict};

/// Commands of each lane in one transaction.
const BATCH: usize = 512;

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
        done: Done<T>,
    ) -> Self {
        Self::Task(Box::new(Task { work, found: Err(ended()), done }))
    }

    /// The lease ends with the command, whatever becomes of it.
    pub(super) fn verdict(lease: Leased, verdict: Verdict, attempt: Option<Attempt>, done: Done<()>) -> Self {
        let work = move |work: &mut Work<'_>| {
            // All of it goes into the closure, and not its key alone.
            let Leased { key, .. } = &lease;
            work.settle(*key, verdict, attempt.as_ref()).map(Ok)
        };
        Self::Verdict(Box::new(Task { work, found: Err(ended()), done }))
    }
}

/// Something to be done in a transaction, and who is told of it.
pub(super) trait Run: Send {
    fn run(&mut self, work: &mut Work<'_>) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, failed: Option<&QueueError>);
    fn is_given_up(&self) -> bool;
}

struct Task<F, T> {
    work: F,
    found: Result<T, QueueError>,
    done: Done<T>,
}

impl<F, T: Send> Run for Task<F, T>
where
    F: FnMut(&mut Work<'_>) -> rusqlite::Result<Result<T, QueueError>> + Send,
{
    fn run(&mut self, work: &mut Work<'_>) -> rusqlite::Result<()> {
        self.found = (self.work)(work)?;
        Ok(())
    }

    fn answer(self: Box<Self>, failed: Option<&QueueError>) {
        let Self { work, found, done } = *self;
        // With it goes its lease: whoever hears of the commit may lease the job again.
        drop(work);
        // Who has gone away needs no answer.
        drop(done.send(failed.map_or(found, |error| Err(error.clone()))));
    }

    fn is_given_up(&self) -> bool {
        self.done.is_closed()
    }
}

/// Where commands come from. What is on one of the two never waits for what is on the other.
pub(super) struct Inbox {
    /// From senders and people; whoever comes when it is full waits.
    pub(super) commands: mpsc::Receiver<Command>,
    /// Verdicts and what lines ask for. As many as there are leases, and not more.
    pub(super) verdicts: mpsc::UnboundedReceiver<Command>,
}

pub(super) struct Writer {
    /// Absent while the file is put back, and after that failed.
    connection: Option<Connection>,
    shared: Arc<Shared>,
    /// `None`: a command beside the service, which does not look after the file.
    place: Option<Place>,
    recipients: Recipients,
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
            recipients: Recipients::default(),
            kept: Vec::new(),
            looked: Instant::now(),
            long_log: false,
        }
    }

    /// Works until nobody can send commands any more, or one says that it is the last.
    pub(super) fn run(mut self, mut inbox: Inbox) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            let mut commands = std::mem::take(&mut self.kept);
            let open = inbox.receive(&mut commands, &waker);
            let mut close = None;
            commands.retain_mut(|command| match command {
                Command::Task(task) => !task.is_given_up(),
                Command::Verdict(_) => true,
                Command::Close(done) => {
                    close = Some(std::mem::replace(done, oneshot::channel().0));
                    false
                }
            });
            let is_last = close.is_some() || !open;
            if is_last {
                inbox.drain(&mut commands);
            }
            if !commands.is_empty() {
                self.commit(commands);
            }
            if is_last {
                let ended = self.end();
                if let Some(close) = close {
                    drop(close.send(ended));
                }
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

    fn answer(&mut self, commands: Vec<Command>, done: rusqlite::Result<()>) {
        if let Err(error) = done {
            return self.fail(commands, &unavailable(&error));
        }
        for command in commands {
            match command {
                Command::Task(task) | Command::Verdict(task) => task.answer(None),
                Command::Close(done) => drop(done.send(Ok(()))),
            }
        }
    }

    fn is_full(&self) -> bool {
        *self.shared.health.borrow() == Health::NotReady(QueueError::Full.to_string())
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

    /// Runs commands in one transaction; nothing of them is seen by anybody before it is committed.
    fn transact(&mut self, commands: &mut [Command]) -> rusqlite::Result<()> {
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
        Ok(())
    }

    fn transaction(
        &mut self,
        run: impl FnOnce(&mut Work<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<Effects> {
        let Some(connection) = &mut self.connection else { return Err(rusqlite::Error::InvalidQuery) };
        let mut effects = Effects::default();
        *lock_of(&self.shared.committing) = Some(Instant::now());
        let committed = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            run(&mut Work::new(&transaction, &self.shared, &mut self.recipients, &mut effects))?;
            step!("commit");
            transaction.commit()?;
            step!("answer");
            Ok(())
        };
        let committed = committed();
        *lock_of(&self.shared.committing) = None;
        for key in &effects.withdrawn {
            lock_of(&self.shared.held).withdrawn.remove(key);
        }
        if committed.is_err() {
            // Numbers that were given in a transaction that came to nothing.
            self.recipients.clear();
        } else {
            self.shared.dead_dropped.fetch_add(effects.dead_dropped, Relaxed);
            effects.ring.iter().for_each(|recipient| self.shared.ring(*recipient));
        }
        committed.map(|()| effects)
    }
}

impl Inbox {
    /// Waits for commands, for as long as the file needs no look. False: nobody can send any more.
    fn receive(&mut self, batch: &mut Vec<Command>, waker: &Waker) -> bool {
        let end = Instant::now() + LOOK_AFTER;
        let mut context = Context::from_waker(waker);
        loop {
            let verdicts = self.verdicts.poll_recv_many(&mut context, batch, BATCH);
            let commands = self.commands.poll_recv_many(&mut context, batch, BATCH);
            match (verdicts, commands) {
                (Poll::Ready(0), _) | (_, Poll::Ready(0)) => return false,
                (Poll::Pending, Poll::Pending) => {}
                _ => return true,
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::park_timeout(left);
        }
    }

    /// Takes what is left, and nothing more after it.
    fn drain(&mut self, batch: &mut Vec<Command>) {
        self.verdicts.close();
        self.commands.close();
        batch.extend(std::iter::from_fn(|| self.verdicts.try_recv().ok()));
        batch.extend(std::iter::from_fn(|| self.commands.try_recv().ok()));
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
                | ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
        )
    )
}
