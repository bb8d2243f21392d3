//! Random operations on an engine, beside a plain model of what must come of them.
//!
//! An engine may lease any job that is due, so the model is told what it did and judges that. What must hold after every
//! step: each job that was accepted is listed, in the state and with the attempts that the model has; what is recorded as
//! delivered is leased only when somebody called for it; nobody has a job that another one holds; where `order` is asked
//! for, the first of an environment goes first. In the end everything that waits is leased and delivered.
//!
//! The sequences are the same in each run. `HOOKGATE_MODEL_CASES=N` tries so many of its own, and prints the shortest
//! that fails.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use hookgate::delivery::queue::{
    Death, Delivery, Enqueued, Filter, JobId, Lease, Policy, Queue, Retention, State,
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::contract::{Engine, PLAIN, all, attempt, delivery, id_of, ready, recipient, to};
use crate::support::{Instant, PATIENCE};

const IDS: u8 = 6;
const ENVIRONMENTS: [&str; 2] = ["website/prod", "website/dev"];
const DESTINATIONS: [&str; 2] = ["one", "two"];
const ORDERED: Policy = Policy { in_order: true, coalesce: None };
/// Longer than any run, so that nothing is forgotten on the way.
const WINDOW: Duration = Duration::from_secs(3600);

/// One step. Numbers that choose among what there is count round.
#[derive(Debug, Clone)]
enum Step {
    Send {
        id: u8,
        other_body: bool,
    },
    Lease {
        to: usize,
        max: usize,
    },
    Settle {
        which: usize,
        how: How,
    },
    /// A lease is dropped.
    Drop {
        which: usize,
    },
    Redeliver(Which),
    Purge(Which),
    /// Closed and opened.
    Restart,
    /// Opened again without having been closed, as after `kill -9`.
    Crash,
    /// Of the second destination: `order` comes or goes.
    Reload,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Delivered,
    RetryNow,
    RetrySoon,
    RetryLater,
    Dead,
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Id(u8),
    State(State),
    Destination(usize),
    All,
}

impl Which {
    fn filter(self) -> Filter {
        match self {
            Self::Id(id) => Filter { ids: vec![id.to_string()], ..Filter::default() },
            Self::State(state) => Filter { states: vec![state], ..Filter::default() },
            Self::Destination(to) => {
                Filter { destination: Some(DESTINATIONS[to].to_owned()), ..Filter::default() }
            }
            Self::All => Filter::default(),
        }
    }

    fn means(self, (id, to): Name, job: &Job) -> bool {
        match self {
            Self::Id(wanted) => wanted == id,
            Self::State(state) => state == job.state,
            Self::Destination(wanted) => wanted == to,
            Self::All => true,
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let which = || {
        prop_oneof![
            4 => (0..IDS).prop_map(Which::Id),
            2 => prop_oneof![Just(State::Waiting), Just(State::Dead), Just(State::Delivered)].prop_map(Which::State),
            1 => (0..DESTINATIONS.len()).prop_map(Which::Destination),
            1 => Just(Which::All),
        ]
    };
    let how = prop_oneof![
        4 => Just(How::Delivered),
        2 => Just(How::RetryNow),
        1 => Just(How::RetrySoon),
        1 => Just(How::RetryLater),
        2 => Just(How::Dead),
    ];
    prop_oneof![
        10 => (0..IDS, prop::bool::weighted(0.2)).prop_map(|(id, other_body)| Step::Send { id, other_body }),
        10 => (0..DESTINATIONS.len(), 1..4_usize).prop_map(|(to, max)| Step::Lease { to, max }),
        10 => (0..8_usize, how).prop_map(|(which, how)| Step::Settle { which, how }),
        2 => (0..8_usize).prop_map(|which| Step::Drop { which }),
        3 => which().prop_map(Step::Redeliver),
        2 => which().prop_map(Step::Purge),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
        1 => Just(Step::Reload),
    ]
}

/// A delivery's number and the place of a destination.
type Name = (u8, usize);

/// A job that is leased, and when it arrived.
type Held = (Name, u64);

#[derive(Debug, Clone, PartialEq)]
struct Job {
    state: State,
    /// Its place in the order of arrival.
    arrived: u64,
    other_body: bool,
    attempts: u32,
    ever: u32,
    due: Due,
    leased: bool,
    /// It had come to its end, and was called back.
    revived: bool,
}

/// When a job that waits may be leased.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Due {
    Now,
    /// It may be leased from then on.
    At(Instant),
    Later,
    /// Its lease was lost: the engine may take a while to notice.
    Lost,
}

/// What is known of an ID.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    /// It has this body, and whatever there is of it is in the list.
    Body(bool),
    /// A part of it was purged: of the rest only what is in the list is certain.
    Partly,
    /// All of it was delivered and then purged.
    Delivered(bool),
}

#[derive(Debug, Default)]
struct Model {
    jobs: BTreeMap<Name, Job>,
    known: BTreeMap<u8, Known>,
    arrivals: u64,
    in_order: bool,
}

/// The destinations of a delivery: the first, the second, or both.
fn destinations(id: u8) -> &'static [usize] {
    match id % 3 {
        0 => &[0],
        1 => &[1],
        _ => &[0, 1],
    }
}

fn environment(id: u8) -> &'static str {
    ENVIRONMENTS[usize::from(id / 3) % 2]
}

impl Model {
    fn policy(&self, to: usize) -> Policy {
        if self.in_order && to == 1 { ORDERED } else { PLAIN }
    }

    fn sample(&self, id: u8, other_body: bool) -> Delivery {
        let to_all: Vec<_> = destinations(id).iter().map(|&to| (DESTINATIONS[to], self.policy(to))).collect();
        let mut sent = to(delivery(&id.to_string()), &to_all);
        sent.environment = Some(environment(id).to_owned());
        if other_body {
            sent.parcel.body = super::contract::stored("another one");
        }
        sent
    }

    fn of(&self, id: u8) -> Vec<(Name, Job)> {
        self.jobs.range((id, 0)..=(id, usize::MAX)).map(|(name, job)| (*name, job.clone())).collect()
    }

    /// The answers that are right, and what the delivery then is.
    fn sent(&mut self, id: u8, other_body: bool, answer: Enqueued) {
        let jobs = self.of(id);
        let dead = jobs.iter().any(|(_, job)| job.state == State::Dead);
        let right: &[Enqueued] = match self.known.get(&id) {
            None => &[Enqueued::Queued],
            Some(Known::Body(body) | Known::Delivered(body)) if *body != other_body => &[Enqueued::Conflict],
            Some(Known::Body(_)) if dead => &[Enqueued::Queued],
            Some(Known::Body(_) | Known::Delivered(_)) => &[Enqueued::Duplicate],
            Some(Known::Partly) if jobs.iter().any(|(_, job)| job.other_body != other_body) => {
                &[Enqueued::Conflict]
            }
            Some(Known::Partly) if jobs.is_empty() => {
                &[Enqueued::Queued, Enqueued::Duplicate, Enqueued::Conflict]
            }
            Some(Known::Partly) if dead => &[Enqueued::Queued],
            Some(Known::Partly) => &[Enqueued::Duplicate],
        };
        assert!(right.contains(&answer), "{id}: {answer:?}, not one of {right:?}");
        if answer != Enqueued::Queued {
            return;
        }
        self.arrivals += 1;
        for &to in destinations(id) {
            let fresh = Job {
                state: State::Waiting,
                arrived: self.arrivals,
                other_body,
                attempts: 0,
                ever: 0,
                due: Due::Now,
                leased: false,
                revived: false,
            };
            match self.jobs.get_mut(&(id, to)) {
                Some(job) if job.state == State::Dead => job.revive(),
                Some(_) => {}
                None if jobs.is_empty() => drop(self.jobs.insert((id, to), fresh)),
                // A part of it was purged: that does not come back with the rest.
                None => {}
            }
        }
        self.known.entry(id).or_insert(Known::Body(other_body));
    }

    /// The other jobs of its environment that wait at its destination, if they are in order.
    fn rivals(&self, (id, to): Name) -> impl Iterator<Item = &Job> {
        let alike = move |name: &Name| name.1 == to && environment(name.0) == environment(id);
        let others = self.jobs.iter().filter(move |(name, _)| **name != (id, to) && alike(name));
        let in_order = self.policy(to).in_order;
        others.map(|(_, job)| job).filter(move |job| in_order && job.state == State::Waiting)
    }

    /// Whether a job that is leased is the first. What is called back goes behind who is at the head already.
    fn is_first(&self, name: Name) -> bool {
        let arrived = self.jobs[&name].arrived;
        !self.rivals(name).any(|job| job.leased || (job.arrived < arrived && !job.revived))
    }

    /// Whether one who asks must get a job: this one, or another one of its environment.
    fn is_certain(&self, name: Name) -> bool {
        let comes = |job: &Job| !job.leased && matches!(job.due, Due::Now | Due::At(_));
        let job = &self.jobs[&name];
        job.state == State::Waiting && comes(job) && self.rivals(name).all(comes)
    }

    fn leased(&mut self, lease: &Lease) -> Held {
        let name = name_of(lease);
        assert!(self.jobs.contains_key(&name), "{name:?} is leased after it was purged");
        let first = self.is_first(name);
        let job = self.jobs.get_mut(&name).unwrap();
        assert_eq!(job.state, State::Waiting, "{name:?} is leased");
        assert!(!job.leased, "{name:?} is leased twice");
        assert!(first, "{name:?} is leased before its turn");
        match job.due {
            Due::Now | Due::Lost => {}
            Due::At(at) => assert!(at <= Instant::now() + Duration::from_millis(2), "{name:?} comes early"),
            Due::Later => panic!("{name:?} comes much too early"),
        }
        let seen = lease.job();
        assert_eq!((seen.attempts, seen.attempts_ever), (job.attempts, job.ever), "{name:?}");
        assert_eq!(seen.parcel.body.bytes() == "another one", job.other_body, "{name:?}");
        job.leased = true;
        (name, job.arrived)
    }

    /// The job, unless it was purged while it was leased.
    fn held(&mut self, (name, arrived): Held) -> Option<&mut Job> {
        self.jobs.get_mut(&name).filter(|job| job.leased && job.arrived == arrived)
    }

    /// `asked` is when the engine was told.
    fn settled(&mut self, held: Held, how: How, asked: Instant) {
        let Some(job) = self.held(held) else { return };
        job.leased = false;
        job.attempts += 1;
        job.ever += 1;
        match how {
            How::Delivered => job.state = State::Delivered,
            How::RetryNow => job.due = Due::Now,
            How::RetrySoon => job.due = Due::At(asked + SOON),
            How::RetryLater => job.due = Due::Later,
            How::Dead => job.state = State::Dead,
        }
    }

    fn redelivered(&mut self, which: Which) -> u64 {
        let mut count = 0;
        for (name, job) in &mut self.jobs {
            if which.means(*name, job) {
                count += 1;
                if job.state == State::Waiting { job.due = Due::Now } else { job.revive() }
            }
        }
        count
    }

    fn purged(&mut self, which: Which) -> u64 {
        let gone: Vec<Name> =
            self.jobs.iter().filter(|(name, job)| which.means(**name, job)).map(|(name, _)| *name).collect();
        for &(id, _) in &gone {
            let before = self.of(id);
            let all_go = before.iter().all(|(name, _)| gone.contains(name));
            let never = before.iter().all(|(_, job)| job.state != State::Delivered && job.ever == 0);
            let whole =
                self.known.get(&id) == before.first().map(|(_, job)| Known::Body(job.other_body)).as_ref();
            if whole && all_go && never {
                self.known.remove(&id);
            } else if whole && all_go && before.iter().all(|(_, job)| job.state == State::Delivered) {
                self.known.insert(id, Known::Delivered(before[0].1.other_body));
            } else {
                self.known.insert(id, Known::Partly);
            }
            if all_go {
                self.jobs.retain(|(other, _), _| *other != id);
            }
        }
        for name in &gone {
            self.jobs.remove(name);
        }
        u64::try_from(gone.len()).unwrap()
    }

    fn lost(&mut self) {
        for job in self.jobs.values_mut().filter(|job| job.leased) {
            job.leased = false;
            job.due = Due::Lost;
        }
    }
}

/// How long an engine that fetches jobs from a server may have one that nobody has asked for yet.
const FETCHED: Duration = Duration::from_secs(10);

const SOON: Duration = Duration::from_millis(30);

impl Job {
    /// Waits again, with attempts counted afresh.
    fn revive(&mut self) {
        self.state = State::Waiting;
        self.attempts = 0;
        self.due = Due::Now;
        self.revived = true;
    }
}

fn name_of(lease: &Lease) -> Name {
    let to = DESTINATIONS.iter().position(|name| *name == lease.job().recipient.destination).unwrap();
    (id_of(lease).parse().unwrap(), to)
}

struct Run<'a> {
    engine: &'a dyn Engine,
    fetches: bool,
    /// What was purged, and when, if the engine may have fetched it before.
    purged: BTreeMap<JobId, Instant>,
    /// None while it is opened again: one that is still there keeps the file.
    queue: Option<Arc<dyn Queue>>,
    /// Each with when its job arrived: one that was purged and came again is another one.
    held: Vec<(Held, Lease)>,
    model: Model,
}

impl fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.model.fmt(f)
    }
}

impl<'a> Run<'a> {
    async fn new(engine: &'a dyn Engine, fetches: bool) -> Self {
        let queue = Some(ready(engine, Retention::default(), WINDOW).await);
        Self { engine, fetches, purged: BTreeMap::new(), queue, held: Vec::new(), model: Model::default() }
    }

    fn queue(&self) -> &dyn Queue {
        self.queue.as_deref().unwrap()
    }

    async fn lease(&mut self, to: usize, max: usize) {
        let recipient = recipient(DESTINATIONS[to]);
        let certain = self.model.jobs.keys().any(|name| name.1 == to && self.model.is_certain(*name));
        let wait = if certain { PATIENCE } else { Duration::from_millis(20) };
        let leases = self.queue().lease(&recipient, self.model.policy(to), max);
        let Ok(leases) = tokio::time::timeout(wait, leases).await else {
            assert!(!certain, "nothing is leased for {to}: {self:?}");
            return;
        };
        let leases = leases.unwrap();
        assert!((1..=max).contains(&leases.len()));
        for lease in leases {
            if let Some(at) = self.purged.get(&lease.job().id) {
                assert!(at.elapsed() < FETCHED, "it was purged, and is leased: {lease:?}");
                drop(lease);
                continue;
            }
            self.held.push((self.model.leased(&lease), lease));
        }
    }

    async fn settle(&mut self, which: usize, how: How) {
        if self.held.is_empty() {
            return;
        }
        let (held, lease) = self.held.swap_remove(which % self.held.len());
        let purged = self.model.held(held).is_none();
        let tried = attempt(&lease, 200);
        let asked = Instant::now();
        let settled = match how {
            How::Delivered => lease.ack(tried).await,
            How::RetryNow => lease.retry(Duration::ZERO, tried).await,
            How::RetrySoon => lease.retry(SOON, tried).await,
            How::RetryLater => lease.retry(WINDOW, tried).await,
            How::Dead => lease.dead_letter(Death::Refused, Some(tried)).await,
        };
        assert!(purged || settled == Ok(()), "{settled:?}");
        self.model.settled(held, how, asked);
    }

    async fn open(&mut self) {
        self.model.lost();
        self.queue = None;
        self.queue = Some(ready(self.engine, Retention::default(), WINDOW).await);
    }

    async fn make(&mut self, step: Step) {
        match step {
            Step::Send { id, other_body } => {
                let answer = self.queue().enqueue(self.model.sample(id, other_body)).await.unwrap();
                self.model.sent(id, other_body, answer);
            }
            Step::Lease { to, max } => self.lease(to, max).await,
            Step::Settle { which, how } => self.settle(which, how).await,
            Step::Drop { which } => {
                if !self.held.is_empty() {
                    let (held, lease) = self.held.swap_remove(which % self.held.len());
                    drop(lease);
                    if let Some(job) = self.model.held(held) {
                        job.leased = false;
                        job.due = Due::Now;
                    }
                }
            }
            Step::Redeliver(which) => {
                let count = self.queue().redeliver(&which.filter()).await.unwrap();
                assert_eq!(count, self.model.redelivered(which));
            }
            Step::Purge(which) => {
                if self.fetches {
                    let now = Instant::now();
                    let gone = self.queue().list(&which.filter(), 1000).await.unwrap();
                    self.purged.extend(gone.into_iter().map(|record| (record.id, now)));
                }
                let count = self.queue().purge(&which.filter()).await.unwrap();
                assert_eq!(count, self.model.purged(which));
            }
            Step::Restart => {
                self.held.clear();
                self.queue().close().await.unwrap();
                self.open().await;
            }
            Step::Crash => {
                for (_, lease) in self.held.drain(..) {
                    std::mem::forget(lease);
                }
                self.open().await;
            }
            Step::Reload => self.model.in_order = !self.model.in_order,
        }
    }

    /// What is listed is what the model has.
    async fn check(&self) {
        let listed: BTreeMap<Name, (State, u32)> = all(self.queue())
            .await
            .into_iter()
            .map(|record| {
                let to = DESTINATIONS.iter().position(|name| *name == record.recipient.destination).unwrap();
                ((record.delivery_id.parse().unwrap(), to), (record.state, record.attempts))
            })
            .collect();
        let expected: BTreeMap<Name, (State, u32)> =
            self.model.jobs.iter().map(|(name, job)| (*name, (job.state, job.ever))).collect();
        assert_eq!(listed, expected);
    }

    /// Everything that waits is delivered.
    async fn drain(&mut self) {
        self.make(Step::Restart).await;
        self.make(Step::Redeliver(Which::State(State::Waiting))).await;
        let deadline = Instant::now() + PATIENCE * 2;
        while self.model.jobs.values().any(|job| job.state == State::Waiting) {
            assert!(Instant::now() < deadline, "it still waits: {self:?}");
            for to in 0..DESTINATIONS.len() {
                self.lease(to, 3).await;
            }
            while !self.held.is_empty() {
                self.settle(0, How::Delivered).await;
            }
        }
        self.check().await;
        self.queue().close().await.unwrap();
    }
}

async fn run(engine: &dyn Engine, orders: bool, steps: Vec<Step>) {
    let mut run = Run::new(engine, !orders).await;
    for step in steps {
        if !orders && matches!(step, Step::Reload) {
            continue;
        }
        run.make(step).await;
        run.check().await;
    }
    run.drain().await;
}

/// Tries random steps on engines that this opens. `orders` says whether they know `order`: those that do not fetch their jobs
/// from a server, and may hold one that is purged there.
pub(super) fn hold<E: Engine>(cases: u32, orders: bool, engine: impl Fn() -> E) {
    #[expect(clippy::disallowed_methods, reason = "the length of a test is nobody's configuration")]
    let wanted = std::env::var("HOOKGATE_MODEL_CASES").ok().map(|cases| cases.parse().unwrap());
    let config = Config {
        cases: wanted.unwrap_or(cases),
        max_shrink_iters: 500,
        max_shrink_time: 60_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = if wanted.is_some() {
        TestRunner::new(config)
    } else {
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    };
    let tried = runner.run(&vec(step(), 1..80), |steps| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(&engine(), orders, steps));
        Ok(())
    });
    if let Err(failed) = tried {
        panic!("{failed}");
    }
}

/// The model itself is seen to find what it is for.
#[test]
fn a_job_that_comes_again_after_its_end_is_found() {
    let mut model = Model::default();
    model.sent(0, false, Enqueued::Queued);
    model.jobs.get_mut(&(0, 0)).unwrap().leased = true;
    model.settled(((0, 0), 1), How::Delivered, Instant::now());
    assert!(!model.is_certain((0, 0)));
    let again = std::panic::catch_unwind(move || model.sent(0, false, Enqueued::Queued));
    assert!(again.is_err());
}
