//! The thread that writes: what has come in meanwhile is committed in one transaction, and answered after it.

mod enqueue;
mod room;
mod upkeep;
mod work;

use std::{
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

pub(super) use self::upkeep::{tell, window};
use self::{
    upkeep::LOOK_AFTER,
    work::{Effects, Recipients, Work},
};
use super::{Leased, Shared, lock_of, place::Place, rows::Key, unavailable};
use crate::delivery::queue::{Attempt, Delivery, Enqueued, Health, QueueError, Recipient, State, Verdict};

/// Commands of each lane in one transaction.
const BATCH: usize = 512;

/// Where the answer to a command goes.
pub(super) type Done<T> = oneshot::Sender<Result<T, QueueError>>;

/// What the writer is told.
pub(super) enum Command {
    Enqueue {
        delivery: Box<Delivery>,
        done: Done<Enqueued>,
    },
    /// The lease ends with the command, whatever becomes of it.
    Settle {
        lease: Leased,
        verdict: Verdict,
        attempt: Option<Attempt>,
        done: Done<()>,
    },
    /// A job cannot be read.
    Bury {
        key: Key,
    },
    /// Tells the policy that is in force, and asks for the number.
    Arrange {
        recipient: Recipient,
        in_order: bool,
        done: Done<i64>,
    },
    Redeliver {
        keys: Vec<Key>,
        states: Vec<State>,
        done: Done<u64>,
    },
    Purge {
        keys: Vec<Key>,
        states: Vec<State>,
        done: Done<u64>,
    },
    Close {
        done: Done<()>,
    },
}

/// What came of a command.
enum Executed {
    Enqueued(Enqueued),
    /// `max_bytes`.
    Full,
    Done,
    Number(i64),
    Count(u64),
}

impl Command {
    fn answer(self, result: Result<Executed, QueueError>) {
        // Who has gone away needs no answer.
        match (self, result) {
            (Self::Enqueue { done, .. }, Ok(Executed::Enqueued(enqueued))) => drop(done.send(Ok(enqueued))),
            (Self::Enqueue { done, .. }, Ok(_)) => drop(done.send(Err(QueueError::Full))),
            (Self::Enqueue { done, .. }, Err(error)) => drop(done.send(Err(error))),
            (Self::Arrange { done, .. }, Ok(Executed::Number(number))) => drop(done.send(Ok(number))),
            (Self::Arrange { done, .. }, Err(error)) => drop(done.send(Err(error))),
            (Self::Redeliver { done, .. } | Self::Purge { done, .. }, result) => {
                let count = |executed| if let Executed::Count(count) = executed { count } else { 0 };
                drop(done.send(result.map(count)));
            }
            (Self::Settle { lease, done, .. }, result) => {
                // Whoever hears of it may lease the job again.
                drop(lease);
                drop(done.send(result.map(|_executed| ())));
            }
            (Self::Close { done }, result) => drop(done.send(result.map(|_executed| ()))),
            (Self::Bury { .. } | Self::Arrange { .. }, _) => {}
        }
    }

    /// Its sender was told that it is not stored, and need not be: after a stall, what nobody waits for is no work.
    fn is_given_up(&self) -> bool {
        matches!(self, Self::Enqueue { done, .. } if done.is_closed())
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
            let close = commands.iter().position(|command| matches!(command, Command::Close { .. }));
            let close = close.map(|at| commands.remove(at));
            let is_last = close.is_some() || !open;
            if is_last {
                inbox.drain(&mut commands);
            }
            commands.retain(|command| !command.is_given_up());
            if !commands.is_empty() {
                self.commit(commands);
            }
            if is_last {
                let ended = self.end();
                if let Some(close) = close {
                    close.answer(ended.map(|()| Executed::Done));
                }
                return;
            }
            if self.place.is_some() && self.looked.elapsed() >= LOOK_AFTER {
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
            command.answer(Ok(executed));
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
            let mut work = Work::new(&transaction, &self.shared, &mut self.recipients, &mut effects);
            let executed = work.run(commands)?;
            step!("commit");
            transaction.commit()?;
            step!("answer");
            Ok(executed)
        })();
        self.come_into_force(&effects, result.is_ok());
        result
    }

    fn come_into_force(&mut self, effects: &Effects, committed: bool) {
        if !effects.withdrawn.is_empty() {
            let mut held = lock_of(&self.shared.held);
            for key in &effects.withdrawn {
                held.withdrawn.remove(key);
            }
        }
        if committed {
            self.shared.dead_dropped.fetch_add(effects.dead_dropped, std::sync::atomic::Ordering::Relaxed);
            for recipient in &effects.ring {
                self.shared.ring(*recipient);
            }
        } else {
            // Numbers that were given in a transaction that came to nothing.
            self.recipients.clear();
        }
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
