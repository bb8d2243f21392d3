//! Takes jobs out of the queue and delivers them: leased, tried, recorded, and done, tried again later or given up.
//!
//! Each recipient has a line of its own with its own attempts and its own circuit, so that a destination that is down or
//! slow holds up no other. A line uses the destination that is in force when it leases; what is on its way then is not
//! touched by a reload. Jobs whose recipient is not configured wait.
//!
//! What the worker is doing when it is cut off is done again: a lease that is dropped is due at once.

use std::{
    collections::{BTreeMap, HashMap},
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
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    attempt::{Outcome, Prospect, attempt},
    backoff::Backoff,
    circuit::{Circuit, Flow, Sign},
    destination::Destination,
    queue::{
        Attempt, Death, Depth, Health, Job, Lease, MAX_ANSWER, Policy, Queue, QueueError, Recipient, Stock,
        Verdict,
    },
};
use crate::ops::{
    health::Readiness,
    metrics::{AttemptResult, Metrics, NO_WEBHOOK},
};

/// What of `[queue]` is about delivering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// After so many attempts a job is given up.
    pub max_attempts: u32,
    /// A job that is older is given up.
    pub max_age: Duration,
    /// How long to wait between attempts.
    pub backoff: Backoff,
    /// Attempts in flight for each destination.
    pub concurrency: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            max_age: Duration::from_secs(24 * 60 * 60),
            backoff: Backoff::default(),
            concurrency: 16,
        }
    }
}

/// Who is configured to receive, and as what.
pub type Recipients = Arc<BTreeMap<Recipient, Arc<Destination>>>;

/// Attempts of a line that are over and whose verdict is not committed yet: more of them make the line wait for the store.
const UNSETTLED: usize = 64;

/// How long a line leaves the store alone after it has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a verdict may take to be committed.
const SETTLE: Duration = Duration::from_secs(30);

/// How often the stock is counted, and how long counting may take.
const COUNT_EVERY: Duration = Duration::from_secs(2);
const COUNT: Duration = Duration::from_secs(10);

/// What delivers.
#[derive(Debug)]
pub struct Worker {
    /// Where jobs come from.
    pub queue: Arc<dyn Queue>,
    /// How they are delivered.
    pub settings: Settings,
    /// Which thread this is: see [`crate::upstream::Upstream::new`].
    pub lane: usize,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who is told how the queue is doing.
    pub readiness: Readiness,
    /// The last verdict could not be committed, and the log says so.
    unsettled: AtomicBool,
}

impl Worker {
    /// A worker that does nothing yet. The readiness is that of the queue from now on.
    #[must_use]
    pub fn new(
        queue: Arc<dyn Queue>,
        settings: Settings,
        lane: usize,
        metrics: Arc<Metrics>,
        readiness: Readiness,
    ) -> Self {
        readiness.queue(trouble(&queue.health().borrow()));
        Self { queue, settings, lane, metrics, readiness, unsettled: AtomicBool::new(false) }
    }

    /// Delivers to whoever is among the recipients. After `stop` it leases nothing more and ends when what was leased
    /// has come to its end; `cut` gives that back and ends at once.
    pub async fn run(
        self,
        recipients: watch::Receiver<Recipients>,
        stop: CancellationToken,
        cut: CancellationToken,
    ) {
        let this = Arc::new(self);
        let mut watching = JoinSet::new();
        watching.spawn(Arc::clone(&this).watch_health());
        watching.spawn(Arc::clone(&this).watch_stock(recipients.clone()));
        tokio::select! {
            biased;
            () = cut.cancelled() => {}
            () = this.deliver(recipients, &stop) => {}
        }
    }

    /// A line for each recipient.
    async fn deliver(
        self: &Arc<Self>,
        mut recipients: watch::Receiver<Recipients>,
        stop: &CancellationToken,
    ) {
        let mut lines = JoinSet::new();
        let mut known = HashMap::<Recipient, watch::Sender<Arc<Destination>>>::new();
        loop {
            let current = Arc::clone(&recipients.borrow_and_update());
            known.retain(|recipient, _| {
                let stays = current.contains_key(recipient);
                if !stays {
                    self.metrics.forget_destination(&recipient.webhook, &recipient.destination);
                }
                stays
            });
            for (recipient, destination) in current.iter() {
                if let Some(line) = known.get(recipient) {
                    line.send_replace(Arc::clone(destination));
                } else {
                    let (sender, destination) = watch::channel(Arc::clone(destination));
                    let line = Arc::new(Line::new(Arc::clone(self), recipient.clone()));
                    lines.spawn(line.run(destination, stop.clone()));
                    known.insert(recipient.clone(), sender);
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = recipients.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                Some(ended) = lines.join_next() => {
                    if let Err(error) = ended {
                        error!(%error, "a destination's deliveries have come to a halt, and are started again");
                        known.retain(|_, line| !line.is_closed());
                    }
                }
            }
        }
        drop(known);
        while lines.join_next().await.is_some() {}
    }

    /// Passes on whether the queue takes deliveries.
    async fn watch_health(self: Arc<Self>) {
        let mut health = self.queue.health();
        let mut was_ready = true;
        loop {
            let trouble = trouble(&health.borrow_and_update());
            match &trouble {
                Some(reason) if was_ready => {
                    error!(%reason, "the queue takes no deliveries: senders are told to come again");
                }
                None if !was_ready => info!("the queue takes deliveries again"),
                Some(_) | None => {}
            }
            was_ready = trouble.is_none();
            self.readiness.queue(trouble);
            if health.changed().await.is_err() {
                return;
            }
        }
    }

    /// Counts what waits, and says who it waits for in vain.
    async fn watch_stock(self: Arc<Self>, mut recipients: watch::Receiver<Recipients>) {
        let mut ticks = interval(COUNT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut orphans_told = false;
        let mut was_nearly_full = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = recipients.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    orphans_told = false;
                }
            }
            let stock = match timeout(COUNT, self.queue.stock()).await {
                Ok(Ok(stock)) => stock,
                Ok(Err(error)) => {
                    debug!(%error, "the queue cannot be counted");
                    continue;
                }
                Err(_elapsed) => {
                    debug!("counting the queue takes too long");
                    continue;
                }
            };
            let current = Arc::clone(&recipients.borrow_and_update());
            self.count(&stock, &current, !orphans_told);
            orphans_told = true;
            let nearly_full = is_nearly_full(&stock);
            if nearly_full && !was_nearly_full {
                let Stock { bytes, max_bytes, .. } = stock;
                warn!(bytes, max_bytes, "the queue is nearly full: what it cannot take is answered 503");
            }
            was_nearly_full = nearly_full;
        }
    }

    /// Sets the metrics. Jobs without a recipient are counted together, since labels come from the configuration.
    fn count(&self, stock: &Stock, recipients: &BTreeMap<Recipient, Arc<Destination>>, tell_orphans: bool) {
        let now = SystemTime::now();
        let age = |depth: &Depth| {
            depth.oldest.and_then(|oldest| now.duration_since(oldest).ok()).unwrap_or_default()
        };
        let mut depths: HashMap<_, _> =
            stock.depths.iter().map(|(recipient, depth)| (recipient, depth)).collect();
        for recipient in recipients.keys() {
            let depth = depths.remove(recipient).copied().unwrap_or_default();
            let Recipient { webhook, destination } = recipient;
            self.metrics.depth(webhook, destination, depth.waiting, age(&depth), depth.dead);
        }
        let (mut waiting, mut dead, mut oldest) = (0, 0, Duration::ZERO);
        for (recipient, depth) in depths {
            waiting += depth.waiting;
            dead += depth.dead;
            oldest = oldest.max(age(depth));
            if tell_orphans && depth.waiting > 0 {
                let Recipient { webhook, destination } = recipient;
                warn!(
                    webhook,
                    destination,
                    waiting = depth.waiting,
                    "orphaned: these deliveries wait for a destination that is not configured"
                );
            }
        }
        self.metrics.depth(NO_WEBHOOK, NO_WEBHOOK, waiting, oldest, dead);
        self.metrics.stock(stock.bytes, stock.max_bytes, stock.dead_dropped);
    }
}

/// More than four fifths of what it may be.
const fn is_nearly_full(stock: &Stock) -> bool {
    stock.max_bytes > 0 && stock.bytes / 4 > stock.max_bytes / 5
}

fn trouble(health: &Health) -> Option<String> {
    match health {
        Health::Ready => None,
        Health::NotReady(reason) => Some(reason.clone()),
    }
}

/// The deliveries to one recipient.
struct Line {
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
    fn new(worker: Arc<Worker>, recipient: Recipient) -> Self {
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
    async fn run(
        self: Arc<Self>,
        mut destination: watch::Receiver<Arc<Destination>>,
        stop: CancellationToken,
    ) {
        let mut attempts = JoinSet::new();
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
                    debug!(recipient = %self.recipient, %error, "nothing can be leased");
                    self.stumbled.store(true, Relaxed);
                    continue;
                }
            };
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

    /// Whether the job is too old to be tried.
    fn is_too_old(&self, job: &Job) -> bool {
        let age = SystemTime::now().duration_since(job.since).unwrap_or_default();
        age >= self.worker.settings.max_age
    }

    /// What becomes of a job after an attempt.
    fn judge(&self, job: &Job, outcome: &Outcome) -> Verdict {
        let Settings { max_attempts, backoff, .. } = self.worker.settings;
        let attempts = job.attempts.saturating_add(1);
        match outcome.prospect(SystemTime::now()) {
            Prospect::Done => Verdict::Delivered,
            Prospect::Same => Verdict::Dead(Death::Refused),
            Prospect::Better(_) if attempts >= max_attempts => Verdict::Dead(Death::Attempts),
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
        let settled = timeout(SETTLE, settled).await.unwrap_or_else(|_elapsed| {
            Err(QueueError::Unavailable(format!("a verdict was not committed within {SETTLE:?}")))
        });
        let unsettled = &self.worker.unsettled;
        match settled {
            Ok(()) => unsettled.store(false, Relaxed),
            Err(error) => {
                self.stumbled.store(true, Relaxed);
                if !unsettled.swap(true, Relaxed) {
                    warn!(%error, "what became of a delivery was not recorded: it may be made again");
                }
            }
        }
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        error!(%error, "an attempt broke off; it will be made again");
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
        if line.is_too_old(job) {
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
        let verdict = line.judge(job, &outcome);
        let (result, sign) = match verdict {
            Verdict::Delivered => (AttemptResult::Delivered, Sign::Alive),
            Verdict::Retry(_) => (AttemptResult::Retry, Sign::Failing),
            Verdict::Dead(Death::Refused) => (AttemptResult::Dead, Sign::Alive),
            Verdict::Dead(Death::Attempts | Death::Age) => (AttemptResult::Dead, Sign::Failing),
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

/// With three digits behind the point.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
