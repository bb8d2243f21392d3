//! The thread that writes: what has come in meanwhile is committed in one transaction, and answered after it.
//!
//! It also looks after the file: retention, space, whether the file is still there, and whether it can be written to again.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tracing::{error, warn};

use super::{
    Shared, identity, lock_of, now,
    rows::{self, Key, millis, to_integer, to_millis},
    schema, unavailable,
};
use crate::delivery::queue::{
    Attempt, Delivery, Depth, Enqueued, Health, MAX_ANSWER, Policy, QueueError, Recipient, State, Verdict,
};

/// Commands of one transaction.
const BATCH: usize = 512;

/// How often the writer looks after the file.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Jobs that one look after the file forgets at most, so that it does not hold up those who wait.
const SWEEP: usize = 2_000;

/// What a delivery takes beside its body, in bytes; estimated high.
const OVERHEAD: u64 = 2 << 10;

/// Where the answer to a command goes.
pub(super) type Done<T> = oneshot::Sender<Result<T, QueueError>>;

/// What the writer is told.
pub(super) enum Command {
    Enqueue { delivery: Box<Delivery>, digest: [u8; 32], done: Done<Enqueued> },
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

/// What a transaction changes beside the file, once it is committed.
#[derive(Default)]
struct Effects {
    /// Changes of the numbers of waiting and dead jobs.
    changes: HashMap<Recipient, (i64, i64)>,
    /// Recipients that may have a due job now.
    ring: HashSet<Recipient>,
    /// Leases that have ended.
    ended: Vec<Key>,
    /// Jobs that were withdrawn from being leased until the commit.
    withdrawn: Vec<Key>,
    dead_dropped: u64,
}

impl Effects {
    fn change(&mut self, recipient: &Recipient, waiting: i64, dead: i64) {
        let change = self.changes.entry(recipient.clone()).or_default();
        change.0 += waiting;
        change.1 += dead;
    }
}

pub(super) struct Writer {
    /// Absent while the file is put back, and after that failed.
    connection: Option<Connection>,
    shared: Arc<Shared>,
    /// Held as long as the service runs. `None`: a command beside it, which does not look after the file.
    lock: Option<File>,
    runtime: Runtime,
    /// Device and inode of the file that is open.
    file: (u64, u64),
    numbers: HashMap<Recipient, i64>,
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
        recount(&connection, &shared).map_err(failed)?;
        let version = data_version(&connection).map_err(failed)?;
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let connection = Some(connection);
        let (numbers, kept) = (HashMap::new(), Vec::new());
        let looked = Instant::now();
        Ok(Self { connection, shared, lock, runtime, file, numbers, kept, version, looked })
    }

    /// Works until nobody can send commands any more, or one says that it is the last.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let come = self
                .runtime
                .block_on(async { timeout(LOOK_AFTER, inbox.recv_many(&mut batch, BATCH)).await });
            if come == Ok(0) {
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
            let mut work = Work {
                transaction: &transaction,
                shared: &self.shared,
                numbers: &mut self.numbers,
                effects: &mut effects,
                now: now(),
            };
            let executed = work.run(commands)?;
            step!("commit");
            transaction.commit()?;
            step!("answer");
            Ok(executed)
        })();
        if result.is_err() {
            // Numbers that were given in a transaction that came to nothing.
            self.numbers.clear();
        }
        self.come_into_force(effects, result.is_ok());
        result
    }

    fn come_into_force(&self, effects: Effects, committed: bool) {
        let mut held = lock_of(&self.shared.held);
        for key in &effects.withdrawn {
            held.withdrawn.remove(key);
        }
        if !committed {
            return;
        }
        for key in &effects.ended {
            held.leased.remove(key);
        }
        drop(held);
        let mut counts = lock_of(&self.shared.counts);
        for (recipient, (waiting, dead)) in effects.changes {
            let depth = counts.depths.entry(recipient).or_default();
            depth.waiting = depth.waiting.saturating_add_signed(waiting);
            depth.dead = depth.dead.saturating_add_signed(dead);
        }
        counts.dead_dropped += effects.dead_dropped;
        drop(counts);
        for recipient in &effects.ring {
            self.shared.ring(recipient);
        }
    }

    fn recount(&self) {
        let Some(connection) = &self.connection else { return };
        if let Err(error) = recount(connection, &self.shared) {
            error!(%error, "the jobs of the queue cannot be counted");
        }
        self.shared.ring_all();
    }

    /// Makes sure that what is written goes into the file that the next start will open.
    fn check_file(&mut self) -> Result<(), QueueError> {
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
    fn look_after(&mut self) {
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
        for (state, key) in old {
            if state == State::Dead {
                let (recipient, id) = name_of(&transaction, key)?;
                warn!(webhook = recipient.webhook, destination = recipient.destination, delivery.id = id, job = %format_args!("{}-{}", key.delivery, key.recipient),
                    "a dead letter older than `queue.dead_retain` is dropped");
                effects.change(&recipient, 0, -1);
                effects.dead_dropped += 1;
            }
            forget(&transaction, key)?;
        }
        transaction.commit()?;
        self.come_into_force(effects, true);
        Ok(())
    }
}

/// Commands at work in one transaction.
struct Work<'w> {
    transaction: &'w Transaction<'w>,
    shared: &'w Shared,
    numbers: &'w mut HashMap<Recipient, i64>,
    effects: &'w mut Effects,
    now: i64,
}

impl Work<'_> {
    fn run(&mut self, commands: &[Command]) -> rusqlite::Result<Vec<Executed>> {
        let mut room = self.room(commands)?;
        commands.iter().map(|command| self.execute(command, &mut room)).collect()
    }

    fn execute(&mut self, command: &Command, room: &mut u64) -> rusqlite::Result<Executed> {
        match command {
            Command::Enqueue { delivery, digest, .. } => self.enqueue(delivery, digest, room),
            Command::Settle { key, in_order, verdict, attempt, .. } => {
                self.settle(*key, *in_order, *verdict, attempt.as_ref())?;
                Ok(Executed::Done)
            }
            Command::Arrange { recipient, in_order, .. } => {
                self.arrange(recipient, *in_order)?;
                Ok(Executed::Done)
            }
            Command::Redeliver { keys, states, .. } => self.redeliver(keys, states).map(Executed::Count),
            Command::Purge { keys, states, .. } => self.purge(keys, states).map(Executed::Count),
            Command::Close { .. } => Ok(Executed::Done),
        }
    }

    /// How many bytes more may be stored. Finished jobs make room, the oldest first.
    fn room(&mut self, commands: &[Command]) -> rusqlite::Result<u64> {
        const CHUNK: usize = 100;

        let needed: u64 = commands
            .iter()
            .map(|command| if let Command::Enqueue { delivery, .. } = command { cost(delivery) } else { 0 })
            .sum();
        let max = self.shared.retention.max_bytes;
        if needed == 0 || max == u64::MAX {
            return Ok(max);
        }
        loop {
            let (pages, free, size) = pages(self.transaction)?;
            let room = max.saturating_sub((pages - free) * size);
            if room >= needed {
                return Ok(room);
            }
            let mut finished_ones = finished(self.transaction, State::Delivered, i64::MAX, CHUNK)?;
            finished_ones.extend(finished(self.transaction, State::Coalesced, i64::MAX, CHUNK)?);
            if finished_ones.is_empty() {
                return Ok(room);
            }
            for key in finished_ones {
                forget(self.transaction, key)?;
            }
        }
    }

    fn enqueue(
        &mut self,
        delivery: &Delivery,
        digest: &[u8; 32],
        room: &mut u64,
    ) -> rusqlite::Result<Executed> {
        let id = text_of(delivery.parcel.id.as_bytes());
        if !self.shared.window.is_zero()
            && let Some(known) = self.find_known(&delivery.webhook, &id, digest)?
        {
            return Ok(Executed::Enqueued(known));
        }
        let cost = cost(delivery);
        if *room < cost {
            return Ok(Executed::Full);
        }
        *room -= cost;
        let Delivery { webhook, parcel, environment, revision, destinations } = delivery;
        self.transaction
            .prepare_cached(
                "INSERT INTO delivery (webhook, id, id_hash, kind, event, environment, revision, content_type,
                     signature, traceparent, kind_verified, received, digest, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )?
            .execute(params![
                webhook,
                id,
                rows::hash_of(&id),
                text_of(parcel.kind.as_bytes()),
                text_of(parcel.event.as_bytes()),
                environment,
                revision.map(to_integer),
                parcel.content_type.as_bytes(),
                parcel.signature.as_bytes(),
                parcel.traceparent.as_bytes(),
                parcel.kind_verified,
                self.now,
                digest,
                &parcel.body[..],
            ])?;
        let number = self.transaction.last_insert_rowid();
        for (destination, policy) in destinations {
            let recipient = Recipient { webhook: webhook.clone(), destination: destination.clone() };
            self.add_job(number, &recipient, *policy, delivery)?;
        }
        Ok(Executed::Enqueued(Enqueued::Queued))
    }

    /// What the queue knows of a delivery's ID. `None`: it is a new one.
    fn find_known(
        &mut self,
        webhook: &str,
        id: &str,
        digest: &[u8; 32],
    ) -> rusqlite::Result<Option<Enqueued>> {
        let known = self
            .transaction
            .prepare_cached(
                "SELECT number, digest, received FROM delivery
                 WHERE id_hash = ?1 AND id = ?2 AND webhook = ?3 ORDER BY number DESC LIMIT 1",
            )?
            .query_row(params![rows::hash_of(id), id, webhook], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
            })
            .optional()?;
        let Some((number, known, received)) = known else { return Ok(None) };
        let mut jobs = self.transaction.prepare_cached(
            "SELECT job.state, job.finished, recipient.webhook, recipient.destination FROM job
             JOIN recipient ON recipient.number = job.recipient WHERE job.delivery = ?1",
        )?;
        let jobs = jobs
            .query_map([number], |row| {
                let recipient = Recipient { webhook: row.get(2)?, destination: row.get(3)? };
                Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?, recipient))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let within = |time: i64| self.now.saturating_sub(time) < millis(self.shared.window);
        let waits = jobs.iter().any(|(state, ..)| state == State::Waiting.name());
        let recent = jobs
            .iter()
            .any(|(state, finished, _)| state != State::Dead.name() && finished.is_some_and(within));
        if known != digest {
            return Ok((waits || recent || within(received)).then_some(Enqueued::Conflict));
        }
        let dead: Vec<_> = jobs.iter().filter(|(state, ..)| state == State::Dead.name()).collect();
        if !dead.is_empty() {
            self.transaction
                .prepare_cached(&format!("{REVIVE} AND delivery = ?2 AND state = 'dead'"))?
                .execute([self.now, number])?;
            for (_, _, recipient) in dead {
                self.effects.change(recipient, 1, -1);
                self.effects.ring.insert(recipient.clone());
            }
            return Ok(Some(Enqueued::Queued));
        }
        Ok((waits || recent).then_some(Enqueued::Duplicate))
    }

    fn add_job(
        &mut self,
        delivery: i64,
        recipient: &Recipient,
        policy: Policy,
        whole: &Delivery,
    ) -> rusqlite::Result<()> {
        let number = self.number_of(recipient)?;
        let line = match (policy, &whole.environment) {
            (Policy { in_order: true, .. }, environment) => Some(environment.as_deref().unwrap_or_default()),
            (Policy { coalesce: Some(_), .. }, Some(environment)) => Some(environment.as_str()),
            _ => None,
        };
        let (mut due, mut superseded) = (self.now, false);
        if let (Some(wait), Some(line), Some(_)) = (policy.coalesce, line, &whole.environment) {
            due = self.now.saturating_add(millis(wait));
            for (key, known_due, revision) in
                self.rivals(number, line, &text_of(whole.parcel.event.as_bytes()))?
            {
                if revision > whole.revision.map(to_integer) {
                    superseded = true;
                } else if self.withdraw(key) {
                    self.finish(key, State::Coalesced, None)?;
                    self.effects.change(recipient, -1, 0);
                    due = due.min(known_due);
                }
            }
        }
        let blocked = match line {
            Some(line) if policy.in_order && !superseded => self
                .transaction
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM job WHERE recipient = ?1 AND line = ?2 AND state = 'waiting')",
                )?
                .query_row(params![number, line], |row| row.get(0))?,
            _ => false,
        };
        let state = if superseded { State::Coalesced } else { State::Waiting };
        self.transaction
            .prepare_cached(
                "INSERT INTO job (delivery, recipient, state, blocked, line, due, since, finished)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                delivery,
                number,
                state.name(),
                blocked,
                line,
                due,
                self.now,
                superseded.then_some(self.now)
            ])?;
        if !superseded {
            self.effects.change(recipient, 1, 0);
        }
        if let Some(line) = line.filter(|_| policy.in_order) {
            self.release_next(number, line)?;
        }
        self.effects.ring.insert(recipient.clone());
        Ok(())
    }

    /// The waiting jobs of one line and event, with due time and revision.
    fn rivals(
        &self,
        recipient: i64,
        line: &str,
        event: &str,
    ) -> rusqlite::Result<Vec<(Key, i64, Option<i64>)>> {
        self.transaction
            .prepare_cached(
                "SELECT job.delivery, job.due, delivery.revision FROM job
                 JOIN delivery ON delivery.number = job.delivery
                 WHERE job.recipient = ?1 AND job.line = ?2 AND job.state = 'waiting' AND delivery.event = ?3",
            )?
            .query_map(params![recipient, line, event], |row| {
                Ok((Key { delivery: row.get(0)?, recipient }, row.get(1)?, row.get(2)?))
            })?
            .collect()
    }

    /// Keeps a job from being leased until the commit. False: it is leased, and goes its way.
    fn withdraw(&mut self, key: Key) -> bool {
        let mut held = lock_of(&self.shared.held);
        if held.leased.contains(&key) {
            return false;
        }
        held.withdrawn.insert(key);
        self.effects.withdrawn.push(key);
        true
    }

    fn settle(
        &mut self,
        key: Key,
        in_order: bool,
        verdict: Verdict,
        attempt: Option<&Attempt>,
    ) -> rusqlite::Result<()> {
        self.effects.ended.push(key);
        let tried = i64::from(attempt.is_some());
        let counted = self
            .transaction
            .prepare_cached(
                "UPDATE job SET attempts = attempts + ?3, attempts_ever = attempts_ever + ?3
                 WHERE delivery = ?1 AND recipient = ?2 AND state = 'waiting'",
            )?
            .execute([key.delivery, key.recipient, tried])?;
        if counted == 0 {
            // It was purged while it was under way.
            return Ok(());
        }
        if let Some(attempt) = attempt {
            self.record(key, attempt)?;
        }
        let recipient = self.name_of(key)?;
        match verdict {
            Verdict::Delivered => {
                self.finish(key, State::Delivered, None)?;
                self.effects.change(&recipient, -1, 0);
            }
            Verdict::Dead(death) => {
                self.finish(key, State::Dead, Some(death.name()))?;
                self.effects.change(&recipient, -1, 1);
            }
            Verdict::Retry(delay) => {
                self.transaction
                    .prepare_cached("UPDATE job SET due = ?3 WHERE delivery = ?1 AND recipient = ?2")?
                    .execute([key.delivery, key.recipient, self.now.saturating_add(millis(delay))])?;
                // Whoever waits for a due job has to look how long to wait for this one.
                self.effects.ring.insert(recipient);
                return Ok(());
            }
        }
        if in_order {
            let line: Option<String> = self
                .transaction
                .prepare_cached("SELECT line FROM job WHERE delivery = ?1 AND recipient = ?2")?
                .query_row([key.delivery, key.recipient], |row| row.get(0))?;
            if let Some(line) = line {
                self.release_next(key.recipient, &line)?;
            }
            self.effects.ring.insert(recipient);
        }
        Ok(())
    }

    fn record(&self, key: Key, attempt: &Attempt) -> rusqlite::Result<()> {
        let Attempt { number, at, duration, status, error, answer } = attempt;
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO attempt
                     (delivery, recipient, number, at, duration_us, status, error, answer)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                key.delivery,
                key.recipient,
                number,
                to_millis(*at),
                i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
                status,
                error,
                answer.get(..MAX_ANSWER).unwrap_or(answer),
            ])
            .map(drop)
    }

    fn finish(&self, key: Key, state: State, death: Option<&str>) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "UPDATE job SET state = ?3, finished = ?4, death = ?5, blocked = 0
                 WHERE delivery = ?1 AND recipient = ?2",
            )?
            .execute(params![key.delivery, key.recipient, state.name(), self.now, death])
            .map(drop)
    }

    /// Lets the first waiting job of a line go.
    fn release_next(&self, recipient: i64, line: &str) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "UPDATE job SET blocked = 0 WHERE blocked = 1 AND recipient = ?1 AND delivery =
                     (SELECT min(delivery) FROM job WHERE recipient = ?1 AND line = ?2 AND state = 'waiting')",
            )?
            .execute(params![recipient, line])
            .map(drop)
    }

    /// Brings the waiting jobs of a recipient into lines, or lets all of them go.
    fn arrange(&mut self, recipient: &Recipient, in_order: bool) -> rusqlite::Result<()> {
        let number = self.number_of(recipient)?;
        if in_order {
            self.transaction.execute(
                "UPDATE job SET line =
                     (SELECT coalesce(environment, '') FROM delivery WHERE number = job.delivery)
                 WHERE recipient = ?1 AND state = 'waiting' AND line IS NULL",
                [number],
            )?;
            self.transaction.execute(
                "UPDATE job SET blocked = EXISTS (SELECT 1 FROM job AS earlier
                     WHERE earlier.recipient = job.recipient AND earlier.line = job.line
                         AND earlier.state = 'waiting' AND earlier.delivery < job.delivery)
                 WHERE recipient = ?1 AND state = 'waiting'",
                [number],
            )?;
        } else {
            self.transaction.execute(
                "UPDATE job SET blocked = 0 WHERE recipient = ?1 AND state = 'waiting' AND blocked = 1",
                [number],
            )?;
        }
        Ok(())
    }

    /// Lets those go that are still in one of these states; none: in any.
    fn redeliver(&mut self, keys: &[Key], states: &[State]) -> rusqlite::Result<u64> {
        let mut count = 0;
        for key in keys {
            let Some((state, _)) = self.state_of(*key, states)? else { continue };
            let recipient = self.name_of(*key)?;
            let parameters = [self.now, key.delivery, key.recipient];
            if state == State::Waiting {
                self.transaction
                    .prepare_cached(
                        "UPDATE job SET due = ?1, blocked = 0 WHERE delivery = ?2 AND recipient = ?3",
                    )?
                    .execute(parameters)?;
            } else {
                self.transaction
                    .prepare_cached(&format!("{REVIVE} AND delivery = ?2 AND recipient = ?3"))?
                    .execute(parameters)?;
                self.effects.change(&recipient, 1, -i64::from(state == State::Dead));
            }
            self.effects.ring.insert(recipient);
            count += 1;
        }
        Ok(count)
    }

    /// Forgets those that are still in one of these states; none: in any.
    fn purge(&mut self, keys: &[Key], states: &[State]) -> rusqlite::Result<u64> {
        let mut count = 0;
        for key in keys {
            let Some((state, line)) = self.state_of(*key, states)? else { continue };
            let recipient = self.name_of(*key)?;
            forget(self.transaction, *key)?;
            let was = |other| -i64::from(state == other);
            self.effects.change(&recipient, was(State::Waiting), was(State::Dead));
            if let Some(line) = line.filter(|_| state == State::Waiting) {
                self.release_next(key.recipient, &line)?;
                self.effects.ring.insert(recipient);
            }
            count += 1;
        }
        Ok(count)
    }

    /// State and line of a job that is in one of these states; none: in any.
    fn state_of(&self, key: Key, states: &[State]) -> rusqlite::Result<Option<(State, Option<String>)>> {
        let found = self
            .transaction
            .prepare_cached("SELECT state, line FROM job WHERE delivery = ?1 AND recipient = ?2")?
            .query_row([key.delivery, key.recipient], |row| {
                Ok((rows::state(&row.get::<_, String>(0)?)?, row.get(1)?))
            })
            .optional()?;
        Ok(found.filter(|(state, _)| states.is_empty() || states.contains(state)))
    }

    fn number_of(&mut self, recipient: &Recipient) -> rusqlite::Result<i64> {
        if let Some(number) = self.numbers.get(recipient) {
            return Ok(*number);
        }
        let Recipient { webhook, destination } = recipient;
        self.transaction.execute(
            "INSERT OR IGNORE INTO recipient (webhook, destination) VALUES (?1, ?2)",
            [webhook, destination],
        )?;
        let number = self.transaction.query_row(
            "SELECT number FROM recipient WHERE webhook = ?1 AND destination = ?2",
            [webhook, destination],
            |row| row.get(0),
        )?;
        self.numbers.insert(recipient.clone(), number);
        Ok(number)
    }

    fn name_of(&self, key: Key) -> rusqlite::Result<Recipient> {
        let known = self.numbers.iter().find(|(_, number)| **number == key.recipient);
        match known {
            Some((recipient, _)) => Ok(recipient.clone()),
            None => name_of(self.transaction, key).map(|(recipient, _)| recipient),
        }
    }
}

/// Makes finished jobs wait again, with attempts and age counted afresh from ?1.
const REVIVE: &str = "UPDATE job SET state = 'waiting', blocked = 0, due = ?1, since = ?1, attempts = 0,
    finished = NULL, death = NULL WHERE 1";

/// What a delivery takes, in bytes.
fn cost(delivery: &Delivery) -> u64 {
    u64::try_from(delivery.parcel.body.len()).unwrap_or(u64::MAX).saturating_add(OVERHEAD)
}

/// Headers whose grammar was checked are ASCII.
fn text_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// The recipient of a job, and the ID of its delivery.
fn name_of(connection: &Connection, key: Key) -> rusqlite::Result<(Recipient, String)> {
    connection
        .prepare_cached(
            "SELECT recipient.webhook, recipient.destination, delivery.id FROM recipient, delivery
             WHERE recipient.number = ?1 AND delivery.number = ?2",
        )?
        .query_row([key.recipient, key.delivery], |row| {
            Ok((Recipient { webhook: row.get(0)?, destination: row.get(1)? }, row.get(2)?))
        })
}

/// Jobs in a state that were finished before a time, the oldest first.
fn finished(connection: &Connection, state: State, before: i64, max: usize) -> rusqlite::Result<Vec<Key>> {
    connection
        .prepare_cached(
            "SELECT delivery, recipient FROM job WHERE state = ?1 AND state <> 'waiting' AND finished < ?2
             ORDER BY finished LIMIT ?3",
        )?
        .query_map(params![state.name(), before, i64::try_from(max).unwrap_or(i64::MAX)], |row| {
            Ok(Key { delivery: row.get(0)?, recipient: row.get(1)? })
        })?
        .collect()
}

/// Removes a job, and its delivery if it was the last one.
fn forget(connection: &Connection, key: Key) -> rusqlite::Result<()> {
    let Key { delivery, recipient } = key;
    connection
        .prepare_cached("DELETE FROM attempt WHERE delivery = ?1 AND recipient = ?2")?
        .execute([delivery, recipient])?;
    connection
        .prepare_cached("DELETE FROM job WHERE delivery = ?1 AND recipient = ?2")?
        .execute([delivery, recipient])?;
    connection
        .prepare_cached(
            "DELETE FROM delivery WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM job WHERE delivery = ?1)",
        )?
        .execute([delivery])?;
    Ok(())
}

/// Counts all jobs.
fn recount(connection: &Connection, shared: &Shared) -> rusqlite::Result<()> {
    let mut depths: HashMap<Recipient, Depth> = HashMap::new();
    let mut statement = connection.prepare_cached(
        "SELECT recipient.webhook, recipient.destination,
             (SELECT count(*) FROM job WHERE job.recipient = recipient.number AND job.state = 'waiting'),
             (SELECT count(*) FROM job WHERE job.recipient = recipient.number AND job.state = 'dead'
                 AND job.state <> 'waiting')
         FROM recipient",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let recipient = Recipient { webhook: row.get(0)?, destination: row.get(1)? };
        let count = |column| row.get::<_, i64>(column).map(|count| u64::try_from(count).unwrap_or(0));
        depths.insert(recipient, Depth { waiting: count(2)?, oldest: None, dead: count(3)? });
    }
    let (pages, free, size) = pages(connection)?;
    let mut counts = lock_of(&shared.counts);
    counts.depths = depths;
    counts.bytes = (pages - free) * size;
    Ok(())
}

/// Pages of the file, those of them that are free, and the size of one in bytes.
fn pages(connection: &Connection) -> rusqlite::Result<(u64, u64, u64)> {
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

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA data_version", [], |row| row.get(0))
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
