//! The line of one recipient: its jobs leased, tried, and their verdicts recorded.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Settings, Worker};
use crate::{
    delivery::{
        attempt::{Outcome, Prospect, attempt},
        circuit::{Circuit, Flow, Sign},
        destination::Destination,
        format::Format,
        queue::{Attempt, Death, Job, Lease, MAX_ANSWER, Policy, QueueError, Recipient, Verdict},
    },
    ops::{log::milliseconds, metrics::AttemptResult},
};

/// Attempts of a line that are over and whose verdict is not committed yet: more of them make the line wait for the store.
const UNSETTLED: usize = 64;

/// How long a line leaves the store alone after it has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A verdict that takes longer to be committed is told.
const SETTLE: Duration = Duration::from_secs(30);

/// The deliveries to one recipient.
pub(super) struct Line {
    worker: Arc<Worker>,
    recipient: Recipient,
    /// For attempts in flight.
    slots: Arc<Semaphore>,
    /// For leased jobs as long as their verdict is not committed.
    room: Arc<Semaphore>,
    circuit: Mutex<Circuit>,
    /// Rung when the circuit may have changed.
    circuit_told: Notify,
    /// The store has failed: it is left alone for a moment.
    stumbled: AtomicBool,
}

/// Leased jobs, and room for them.
struct Leased {
    leases: Vec<Lease>,
    slot: OwnedSemaphorePermit,
    room: OwnedSemaphorePermit,
    probe: bool,
}

impl Line {
    pub(super) fn new(worker: Arc<Worker>, recipient: Recipient) -> Self {
        let Settings { concurrency, backoff, .. } = worker.settings;
        Self {
            recipient,
            slots: Arc::new(Semaphore::new(concurrency)),
            room: Arc::new(Semaphore::new(concurrency.saturating_add(UNSETTLED))),
            circuit: Mutex::new(Circuit::new(backoff)),
            circuit_told: Notify::new(),
            stumbled: AtomicBool::new(false),
            worker,
        }
    }

    /// Leases and delivers until it is told to stop or its name leaves the configuration.
    pub(super) async fn run(
        self: Arc<Self>,
        mut destination: watch::Receiver<Arc<Destination>>,
        stop: CancellationToken,
    ) {
        let mut attempts = JoinSet::new();
        // Nothing can be leased, and the log says so.
        let mut idle = false;
        loop {
            while let Some(ended) = attempts.try_join_next() {
                note_panic(ended);
            }
            let current = Arc::clone(&destination.borrow_and_update());
            let leased = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = destination.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    continue;
                }
                leased = self.lease(current.policy) => leased,
            };
            step!("leased");
            let Leased { leases, slot, room, probe } = match leased {
                Ok(leased) => leased,
                Err(error) => {
                    if !std::mem::replace(&mut idle, true) {
                        warn!(recipient = %self.recipient, %error, "nothing can be leased");
                    }
                    self.stumbled.store(true, Relaxed);
                    continue;
                }
            };
            idle = false;
            let (mut slot, mut room) = (Some(slot), Some(room));
            for lease in leases {
                // As many as were asked for: there is room for each.
                let permit = |first: &mut Option<OwnedSemaphorePermit>, of: &Arc<Semaphore>| {
                    first.take().or_else(|| Arc::clone(of).try_acquire_owned().ok())
                };
                let (slot, room) = (permit(&mut slot, &self.slots), permit(&mut room, &self.room));
                let telling = Telling::new(Arc::clone(&self), Arc::clone(&current), probe);
                attempts.spawn(telling.deliver(lease, slot, room));
            }
        }
        while let Some(ended) = attempts.join_next().await {
            note_panic(ended);
        }
        self.worker.readiness.left_alone(&self.recipient.to_string(), false);
    }

    /// Waits for something to deliver, and for leave to do so.
    async fn lease(&self, policy: Policy) -> Result<Leased, QueueError> {
        if self.stumbled.swap(false, Relaxed) {
            sleep(PAUSE).await;
        }
        loop {
            let probe = self.let_through().await;
            let (Ok(room), Ok(slot)) =
                (Arc::clone(&self.room).acquire_owned().await, Arc::clone(&self.slots).acquire_owned().await)
            else {
                // Nobody closes them.
                return Err(QueueError::Unavailable("the line is closed".into()));
            };
            let free = self.slots.available_permits().min(self.room.available_permits());
            let max = if probe { 1 } else { free.saturating_add(1) };
            let leases = self.worker.queue.lease(&self.recipient, policy, max).await?;
            // It can have opened or closed while there was nothing to do.
            let mut circuit = self.circuit();
            let probe = match circuit.ask(Instant::now()) {
                Flow::Free => false,
                Flow::Probe if leases.len() == 1 => true,
                Flow::Probe | Flow::Probing | Flow::NotBefore(_) => continue,
            };
            if probe {
                circuit.probe();
            }
            drop(circuit);
            return Ok(Leased { leases, slot, room, probe });
        }
    }

    /// Waits until the circuit lets jobs through; whether it is only one.
    async fn let_through(&self) -> bool {
        loop {
            let flow = self.circuit().ask(Instant::now());
            match flow {
                Flow::Free => return false,
                Flow::Probe => return true,
                Flow::Probing => self.circuit_told.notified().await,
                Flow::NotBefore(time) => tokio::select! {
                    () = sleep_until(time) => {}
                    () = self.circuit_told.notified() => {}
                },
            }
        }
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a job that was so old after an attempt.
    fn judge(&self, format: Format, job: &Job, age: Duration, outcome: &Outcome) -> Verdict {
        let Settings { max_attempts, max_age, backoff, .. } = self.worker.settings;
        let attempts = job.attempts.saturating_add(1);
        match outcome.prospect(format, SystemTime::now()) {
            Prospect::Done => Verdict::Delivered,
            Prospect::Same if matches!(outcome, Outcome::Unrendered(_)) => Verdict::Dead(Death::Render),
            Prospect::Same => Verdict::Dead(Death::Refused),
            Prospect::Better(_) if max_attempts.is_some_and(|max| attempts >= max) => {
                Verdict::Dead(Death::Attempts)
            }
            Prospect::Better(_) if age >= max_age => Verdict::Dead(Death::Age),
            Prospect::Better(asked) => Verdict::Retry(backoff.delay(attempts, fastrand::u64(..), asked)),
        }
    }

    async fn settle(&self, lease: Lease, verdict: Verdict, attempt: Option<Attempt>) {
        let settled = async {
            match (verdict, attempt) {
                (Verdict::Delivered, Some(attempt)) => lease.ack(attempt).await,
                (Verdict::Retry(delay), Some(attempt)) => lease.retry(delay, attempt).await,
                (Verdict::Dead(death), attempt) => lease.dead_letter(death, attempt).await,
                // Without an attempt nothing is known, and the lease is dropped.
                (Verdict::Delivered | Verdict::Retry(_), None) => Ok(()),
            }
        };
        let mut settled = pin!(settled);
        let unsettled = &self.worker.unsettled;
        let settled = if let Ok(settled) = timeout(SETTLE, &mut settled).await {
            settled
        } else {
            if !unsettled.swap(true, Relaxed) {
                warn!(limit = ?SETTLE, "the outcome of an attempt is not recorded yet: it is kept");
            }
            // It is waited for without end, and its place with it: so there are never more of them than places.
            settled.await
        };
        match settled {
            Ok(()) => unsettled.store(false, Relaxed),
            Err(error) => {
                self.stumbled.store(true, Relaxed);
                if !unsettled.swap(true, Relaxed) {
                    warn!(%error, "the outcome of an attempt was not recorded: the delivery may be made again");
                }
            }
        }
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        error!(%error, "an attempt was interrupted; it will be made again");
    }
}

/// One job on its way. However it ends, the circuit is told.
struct Telling {
    line: Arc<Line>,
    destination: Arc<Destination>,
    sign: Sign,
    probe: bool,
}

impl Telling {
    const fn new(line: Arc<Line>, destination: Arc<Destination>, probe: bool) -> Self {
        Self { line, destination, sign: Sign::None, probe }
    }

    /// Tries to deliver a leased job, and says what becomes of it. A slot is held during the attempt, room to the end.
    async fn deliver(
        mut self,
        lease: Lease,
        slot: Option<OwnedSemaphorePermit>,
        _room: Option<OwnedSemaphorePermit>,
    ) {
        let (line, destination) = (Arc::clone(&self.line), Arc::clone(&self.destination));
        let job = lease.job();
        // A downtime, or a name that was out of the configuration, kills nothing that was never tried.
        let age = SystemTime::now().duration_since(job.since).unwrap_or_default();
        if job.attempts > 0 && age >= line.worker.settings.max_age {
            log(&line.recipient, job, None, Verdict::Dead(Death::Age));
            drop((self, slot));
            line.settle(lease, Verdict::Dead(Death::Age), None).await;
            return;
        }
        let number = job.attempts_ever.saturating_add(1);
        let at = SystemTime::now();
        let began = Instant::now();
        let (outcome, ended) = attempt(&destination, &job.parcel, number, line.worker.lane, began).await;
        let duration = ended.duration_since(began);
        step!("attempted");
        let verdict = line.judge(destination.format, job, age + duration, &outcome);
        let (result, sign) = match verdict {
            Verdict::Delivered => (AttemptResult::Delivered, Sign::Alive),
            Verdict::Retry(_) => (AttemptResult::Retry, Sign::Failing),
            Verdict::Dead(Death::Refused) => (AttemptResult::Dead, Sign::Alive),
            // Nobody was asked.
            Verdict::Dead(Death::Render) => (AttemptResult::Dead, Sign::None),
            Verdict::Dead(Death::Attempts | Death::Age | Death::Damaged) => {
                (AttemptResult::Dead, Sign::Failing)
            }
        };
        destination.metrics.attempt(result, duration);
        self.sign = sign;
        let attempt = record(number, at, duration, outcome);
        log(&line.recipient, job, Some(&attempt), verdict);
        drop((self, slot));
        line.settle(lease, verdict, Some(attempt)).await;
        step!("settled");
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        let line = &self.line;
        let mut circuit = line.circuit();
        let was_open = circuit.is_open();
        circuit.tell(self.sign, self.probe, Instant::now());
        let is_open = circuit.is_open();
        drop(circuit);
        if was_open != is_open {
            let Recipient { webhook, destination } = &line.recipient;
            if is_open {
                warn!(webhook, destination, "circuit open: the destination keeps failing and is only probed");
            } else {
                info!(webhook, destination, "circuit closed: the destination is back");
            }
            self.destination.metrics.circuit_open(is_open);
            line.worker.readiness.left_alone(&line.recipient.to_string(), is_open);
        }
        line.circuit_told.notify_one();
    }
}

fn record(number: u32, at: SystemTime, duration: Duration, outcome: Outcome) -> Attempt {
    let status = outcome.status();
    let (error, answer) = match outcome {
        Outcome::Delivered(reply) | Outcome::Declined(reply) => (None, reply.body),
        Outcome::Failed(error) => (Some(error.to_string()), Bytes::new()),
        Outcome::Unrendered(error) => (Some(error.to_string()), Bytes::new()),
    };
    // A slice would keep the whole answer.
    let answer = Bytes::copy_from_slice(answer.get(..MAX_ANSWER).unwrap_or(&answer));
    Attempt { number, at, duration, status, error, answer }
}

/// One line for each attempt, and for each job that is given up without one.
fn log(recipient: &Recipient, job: &Job, attempt: Option<&Attempt>, verdict: Verdict) {
    let Recipient { webhook, destination } = recipient;
    let text = |value: &hyper::header::HeaderValue| value.to_str().map(str::to_owned).ok();
    let (outcome, retry_in, death) = match verdict {
        Verdict::Delivered => ("delivered", None, None),
        Verdict::Retry(delay) => ("retry", Some(delay), None),
        Verdict::Dead(death) => ("dead", None, Some(death.name())),
    };
    macro_rules! line {
        ($level:ident) => {
            $level!(
                webhook,
                destination,
                delivery.id = text(&job.parcel.id),
                trace_id =
                    text(&job.parcel.traceparent).and_then(|trace| trace.get(3..35).map(str::to_owned)),
                event = text(&job.parcel.event),
                attempt = attempt.map(|attempt| attempt.number),
                outcome,
                status = attempt.and_then(|attempt| attempt.status),
                duration_ms = attempt.map(|attempt| milliseconds(attempt.duration)),
                retry_in_ms = retry_in.map(milliseconds),
                death,
                error = attempt.and_then(|attempt| attempt.error.as_deref()),
                "attempt"
            )
        };
    }
    if verdict == Verdict::Delivered {
        line!(info);
    } else {
        line!(warn);
    }
}
