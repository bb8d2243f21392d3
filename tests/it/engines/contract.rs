//! What every engine promises. A case gets an engine whose store is empty, and opens it as often as it likes. What is
//! promised of `order` and `coalesce` only by the engines that have them is in `policies.rs`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hookgate::{
    delivery::{
        parcel::{Facts, MediaType, Parcel, VerifiedBody},
        queue::{
            Attempt, Death, Delivery, Depth, Details, Enqueued, Filter, Health, JobId, KEPT_ATTEMPTS, Lease,
            Policy, Queue, QueueError, Recipient, Record, Retention, State,
        },
    },
    webhook::payload::User,
};
use hyper::header::HeaderValue;

/// A kind of store, and one of it.
pub(super) trait Engine {
    /// Opens the store. What it holds is there again.
    fn open(&self, retention: Retention, window: Duration) -> Arc<dyn Queue>;
}

/// Makes tests of all cases, for one engine.
macro_rules! hold {
    ($engine:expr) => {
        $crate::engines::contract::hold! { $engine, contract =>
            accepted_is_leased_and_done,
            bytes_and_headers_are_kept,
            a_fan_out_is_one_commit_with_a_job_for_each,
            a_retry_comes_back_when_it_is_due,
            a_dropped_lease_comes_back,
            nobody_else_gets_a_leased_job,
            attempts_are_recorded,
            every_reason_of_a_death_is_kept,
            answers_are_cut,
            a_wait_that_is_given_up_loses_nothing,
            a_dead_letter_is_redelivered,
            a_delivered_one_is_redelivered,
            what_waits_is_redelivered_at_once,
            what_is_purged_is_never_delivered,
            one_of_two_is_purged,
            filters_mean_what_they_say,
            copies_are_told,
            another_body_is_a_conflict,
            a_dead_delivery_is_revived_where_it_is_lacking,
            after_the_window_it_is_a_new_one,
            without_a_window_every_one_is_new,
            what_waited_and_was_purged_is_new,
            what_was_delivered_is_known_within_the_window_whatever_goes,
            the_last_attempts_are_kept,
            a_verdict_that_nobody_waits_for_leaks_no_lease,
            a_restart_forgets_nothing,
            stock_counts,
            old_ones_are_forgotten,
            finished_ones_make_room,
            a_closed_queue_says_so,
        }
    };
    ($engine:expr, $of:ident => $($case:ident,)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let engine = $engine;
                let case = $crate::engines::$of::$case(&engine);
                tokio::time::timeout($crate::support::PATIENCE * 3, case).await.expect("the case ends in time");
            }
        )*
    };
}
pub(super) use hold;

pub(super) const WINDOW: Duration = Duration::from_secs(120);
pub(super) const PLAIN: Policy = Policy { in_order: false, coalesce: None };

/// A body as it comes out of a store.
pub(super) fn stored(body: impl Into<Bytes>) -> VerifiedBody {
    VerifiedBody::stored(body.into())
}

/// A delivery under this ID, for the destination `app`.
pub(super) fn delivery(id: &str) -> Delivery {
    let value = HeaderValue::from_static;
    Delivery {
        webhook: "esc".to_owned(),
        parcel: Parcel {
            body: stored(format!("{{\"of\":\"{id}\"}}")),
            content_type: MediaType::Json,
            id: HeaderValue::from_str(id).unwrap(),
            kind: value("environment_revision"),
            signature: value("00ff"),
            event: value("environment_revision_created"),
            kind_verified: true,
            traceparent: value("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            received: SystemTime::now(),
        },
        environment: Some("website/prod".to_owned()),
        revision: None,
        facts: Facts::default(),
        destinations: vec![("app".to_owned(), PLAIN)],
    }
}

pub(super) fn to(mut delivery: Delivery, destinations: &[(&str, Policy)]) -> Delivery {
    delivery.destinations = destinations.iter().map(|(name, policy)| ((*name).to_owned(), *policy)).collect();
    delivery
}

pub(super) fn recipient(destination: &str) -> Recipient {
    Recipient { webhook: "esc".to_owned(), destination: destination.to_owned() }
}

/// Opens an engine and waits until it is ready.
pub(super) async fn ready(engine: &dyn Engine, retention: Retention, window: Duration) -> Arc<dyn Queue> {
    let queue = engine.open(retention, window);
    until(&*queue, |health| *health == Health::Ready).await;
    queue
}

pub(super) async fn until(queue: &dyn Queue, wanted: impl FnMut(&Health) -> bool) {
    queue.health().wait_for(wanted).await.unwrap();
}

pub(super) async fn opened(engine: &dyn Engine) -> Arc<dyn Queue> {
    ready(engine, Retention::default(), WINDOW).await
}

pub(super) async fn enqueue(queue: &dyn Queue, delivery: Delivery) {
    assert_eq!(queue.enqueue(delivery).await, Ok(Enqueued::Queued));
}

/// Leases one job.
pub(super) async fn lease(queue: &dyn Queue, destination: &str) -> Lease {
    lease_by(queue, destination, PLAIN).await
}

pub(super) async fn lease_by(queue: &dyn Queue, destination: &str, policy: Policy) -> Lease {
    let recipient = recipient(destination);
    let leases = tokio::time::timeout(crate::support::PATIENCE * 3, queue.lease(&recipient, policy, 1));
    let mut leases = leases.await.expect("something can be leased").unwrap();
    assert_eq!(leases.len(), 1);
    leases.pop().unwrap()
}

/// Nothing can be leased for a moment.
pub(super) async fn nothing_is_due(queue: &dyn Queue, destination: &str, policy: Policy) {
    let recipient = recipient(destination);
    let lease = queue.lease(&recipient, policy, 8);
    if let Ok(leases) = tokio::time::timeout(Duration::from_millis(300), lease).await {
        panic!("leased: {leases:?}");
    }
}

pub(super) fn id_of(lease: &Lease) -> String {
    lease.job().parcel.id.to_str().unwrap().to_owned()
}

/// The record of an attempt after the leased job's last one.
pub(super) fn attempt(lease: &Lease, status: u16) -> Attempt {
    Attempt {
        number: lease.job().attempts_ever + 1,
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        duration: Duration::from_millis(12),
        status: Some(status),
        error: None,
        answer: Bytes::from_static(b"an answer"),
    }
}

pub(super) async fn ack(lease: Lease) {
    let attempt = attempt(&lease, 200);
    lease.ack(attempt).await.unwrap();
}

pub(super) async fn kill(lease: Lease) {
    let attempt = attempt(&lease, 400);
    lease.dead_letter(Death::Refused, Some(attempt)).await.unwrap();
}

pub(super) async fn all(queue: &dyn Queue) -> Vec<Record> {
    queue.list(&Filter::default(), 1000).await.unwrap()
}

async fn states(queue: &dyn Queue) -> Vec<(String, State)> {
    let records = all(queue).await;
    records.into_iter().map(|record| (record.recipient.destination, record.state)).collect()
}

async fn details(queue: &dyn Queue, id: &JobId) -> Details {
    queue.show(id).await.unwrap().expect("the job is there")
}

pub(super) async fn depth(queue: &dyn Queue, destination: &str) -> Depth {
    let recipient = recipient(destination);
    let stock = queue.stock().await.unwrap();
    stock.depths.into_iter().find(|(of, _)| *of == recipient).map(|(_, depth)| depth).unwrap_or_default()
}

/// Asks again until it is so. For what an engine does by itself in the background.
pub(super) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

pub(super) async fn accepted_is_leased_and_done(engine: &dyn Engine) {
    let queue = opened(engine).await;
    let before = SystemTime::now();
    enqueue(&*queue, delivery("a")).await;
    let [waiting] = <[Record; 1]>::try_from(all(&*queue).await).unwrap();
    assert_eq!((waiting.state, waiting.attempts, waiting.finished), (State::Waiting, 0, None));
    assert_eq!((waiting.delivery_id.as_str(), waiting.kind.as_str()), ("a", "environment_revision"));
    assert_eq!(waiting.event, "environment_revision_created");
    assert_eq!(waiting.recipient, recipient("app"));
    assert_eq!(waiting.environment.as_deref(), Some("website/prod"));
    assert_eq!(waiting.size, 10);
    let second = Duration::from_secs(1);
    assert!(waiting.received + second > before && waiting.received < SystemTime::now() + second);

    let lease = lease(&*queue, "app").await;
    assert_eq!(lease.job().id, waiting.id);
    assert_eq!(lease.job().recipient, recipient("app"));
    assert_eq!((lease.job().attempts, lease.job().attempts_ever), (0, 0));
    assert!(lease.job().since + second > before);
    ack(lease).await;

    let [done] = <[Record; 1]>::try_from(all(&*queue).await).unwrap();
    assert_eq!((done.id, done.state, done.attempts), (waiting.id, State::Delivered, 1));
    assert!(done.finished.unwrap() + second > before);
    assert_eq!(done.due, None);
    nothing_is_due(&*queue, "app", PLAIN).await;
}

/// With letters that have to be escaped somewhere.
fn odd_facts() -> Facts {
    let text = |text: &str| Some(text.to_owned());
    Facts {
        project: text("w\u{e9}b site/*.>"),
        tag: text("\"\\\r\n\0"),
        revision: Some(u64::MAX),
        drift: Some(false),
        changes: vec![("same".to_owned(), 28), ("create".to_owned(), 3)],
        user: Some(User { name: text("\u{1f680} '); --"), login: None }),
        ..Facts::default()
    }
}

pub(super) async fn bytes_and_headers_are_kept(engine: &dyn Engine) {
    let queue = opened(engine).await;
    let mut sent = delivery("a.b_c-d:e");
    sent.webhook = "a.b".to_owned();
    sent.environment = Some("w\u{e9}b site/*.>\u{1f680}".to_owned());
    sent.revision = Some(u64::from(u32::MAX) + 7);
    sent.facts = odd_facts();
    sent.parcel.body = stored((0..=255).cycle().take(70_000).collect::<Vec<u8>>());
    sent.parcel.content_type = MediaType::JsonUtf8;
    sent.parcel.traceparent = HeaderValue::from_static("");
    sent.parcel.kind_verified = false;
    sent.destinations = vec![("x.y".to_owned(), PLAIN)];
    enqueue(&*queue, sent.clone()).await;
    let recipient = Recipient { webhook: "a.b".to_owned(), destination: "x.y".to_owned() };
    let lease = queue.lease(&recipient, PLAIN, 4).await.unwrap().pop().unwrap();
    let shown = details(&*queue, &lease.job().id).await;
    for parcel in [&lease.job().parcel, &shown.parcel] {
        assert_eq!(parcel.body, sent.parcel.body);
        assert_eq!(parcel.content_type, sent.parcel.content_type);
        assert_eq!(parcel.id, sent.parcel.id);
        assert_eq!(parcel.kind, sent.parcel.kind);
        assert_eq!(parcel.signature, sent.parcel.signature);
        assert_eq!(parcel.event, sent.parcel.event);
        assert_eq!(parcel.kind_verified, sent.parcel.kind_verified);
        assert_eq!(parcel.traceparent, sent.parcel.traceparent);
        // A store has its own clock, and says one time of it.
        assert_eq!(parcel.received, shown.record.received);
    }
    assert_eq!(shown.record.recipient, recipient);
    assert_eq!(shown.record.facts, sent.facts);
    assert_eq!(shown.record.environment, sent.environment);
    assert_eq!(shown.record.revision, sent.revision);
    assert_eq!(shown.record.size, 70_000);
}

pub(super) async fn a_fan_out_is_one_commit_with_a_job_for_each(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, to(delivery("a"), &[("one", PLAIN), ("two", PLAIN)])).await;
    enqueue(&*queue, to(delivery("b"), &[("two", PLAIN)])).await;
    let one = lease(&*queue, "one").await;
    assert_eq!(id_of(&one), "a");
    ack(one).await;
    nothing_is_due(&*queue, "one", PLAIN).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let two = lease(&*queue, "two").await;
        seen.push(id_of(&two));
        kill(two).await;
    }
    assert_eq!(seen, ["a", "b"]);
    let mut states = states(&*queue).await;
    states.sort();
    let expected = [("one", State::Delivered), ("two", State::Dead), ("two", State::Dead)]
        .map(|(n, s)| (n.to_owned(), s));
    assert_eq!(states, expected);
}

pub(super) async fn a_retry_comes_back_when_it_is_due(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    let first = lease(&*queue, "app").await;
    let (id, since) = (first.job().id.clone(), first.job().since);
    let failed = attempt(&first, 503);
    let delay = Duration::from_millis(700);
    let asked = SystemTime::now();
    first.retry(delay, failed).await.unwrap();
    let record = details(&*queue, &id).await.record;
    assert_eq!((record.state, record.attempts), (State::Waiting, 1));
    assert!(record.due.unwrap() + Duration::from_millis(2) >= asked + delay);
    let second = lease(&*queue, "app").await;
    assert!(SystemTime::now() + Duration::from_millis(2) >= asked + delay, "it came too early");
    assert_eq!(second.job().id, id);
    assert_eq!((second.job().attempts, second.job().attempts_ever), (1, 1));
    assert_eq!(second.job().since, since);
    ack(second).await;
}

pub(super) async fn a_dropped_lease_comes_back(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    let id = lease(&*queue, "app").await.job().id.clone();
    let again = lease(&*queue, "app").await;
    assert_eq!(again.job().id, id);
    // What was not tried is not an attempt.
    assert_eq!((again.job().attempts, again.job().attempts_ever), (0, 0));
}

pub(super) async fn nobody_else_gets_a_leased_job(engine: &dyn Engine) {
    let queue = opened(engine).await;
    for n in 0..20 {
        enqueue(&*queue, delivery(&n.to_string())).await;
    }
    let mut leases = Vec::new();
    while leases.len() < 20 {
        leases.extend(queue.lease(&recipient("app"), PLAIN, 7).await.unwrap());
    }
    let mut ids: Vec<_> = leases.iter().map(id_of).collect();
    ids.sort_by_key(|id| id.parse::<u32>().unwrap());
    assert_eq!(ids, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    nothing_is_due(&*queue, "app", PLAIN).await;
}

pub(super) async fn attempts_are_recorded(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    let mut expected = Vec::new();
    for n in 0..3_u32 {
        let lease = lease(&*queue, "app").await;
        assert_eq!(lease.job().attempts, n);
        let mut attempt = attempt(&lease, 500);
        match n {
            0 => {}
            1 => {
                attempt.status = None;
                attempt.error = Some("the upstream hung up".to_owned());
                attempt.answer = Bytes::new();
            }
            _ => attempt.answer = Bytes::from_static(b"\xff\x00\xfe"),
        }
        expected.push(attempt.clone());
        let id = lease.job().id.clone();
        lease.retry(Duration::from_millis(1), attempt).await.unwrap();
        assert_eq!(details(&*queue, &id).await.attempts, expected);
    }
    let last = lease(&*queue, "app").await;
    let id = last.job().id.clone();
    last.dead_letter(Death::Age, None).await.unwrap();
    let shown = details(&*queue, &id).await;
    assert_eq!(shown.attempts, expected);
    assert_eq!((shown.record.state, shown.record.death), (State::Dead, Some(Death::Age)));
    assert_eq!(shown.record.attempts, 3);
    assert!(queue.show(&JobId("nothing".to_owned())).await.unwrap().is_none());
    assert!(queue.show(&JobId("999999.app".to_owned())).await.unwrap().is_none());
}

pub(super) async fn every_reason_of_a_death_is_kept(engine: &dyn Engine) {
    let queue = opened(engine).await;
    for death in Death::ALL {
        enqueue(&*queue, delivery(death.name())).await;
        let lease = lease(&*queue, "app").await;
        let id = lease.job().id.clone();
        lease.dead_letter(death, None).await.unwrap();
        assert_eq!(details(&*queue, &id).await.record.death, Some(death));
    }
}

pub(super) async fn answers_are_cut(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    let lease = lease(&*queue, "app").await;
    let id = lease.job().id.clone();
    let mut attempt = attempt(&lease, 200);
    attempt.answer = vec![b'x'; 5000].into();
    lease.ack(attempt).await.unwrap();
    assert_eq!(details(&*queue, &id).await.attempts[0].answer, vec![b'x'; 2048]);
}

pub(super) async fn a_wait_that_is_given_up_loses_nothing(engine: &dyn Engine) {
    let queue = opened(engine).await;
    nothing_is_due(&*queue, "app", PLAIN).await;
    enqueue(&*queue, delivery("a")).await;
    ack(lease(&*queue, "app").await).await;
}

pub(super) async fn a_dead_letter_is_redelivered(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    let before = SystemTime::now();
    kill(lease(&*queue, "app").await).await;
    assert_eq!(depth(&*queue, "app").await.dead, 1);
    let id = all(&*queue).await[0].id.clone();
    let filter = Filter { states: vec![State::Dead], ..Filter::default() };
    assert_eq!(queue.redeliver(&filter).await, Ok(1));
    assert_eq!(queue.redeliver(&filter).await, Ok(0));
    let again = lease(&*queue, "app").await;
    assert_eq!(again.job().id, id);
    assert_eq!((again.job().attempts, again.job().attempts_ever), (0, 1));
    assert!(again.job().since + Duration::from_millis(2) >= before);
    assert_eq!(again.job().parcel.body, delivery("a").parcel.body);
    let record = details(&*queue, &id).await.record;
    assert_eq!((record.state, record.death, record.finished), (State::Waiting, None, None));
    assert_eq!(depth(&*queue, "app").await, Depth { waiting: 1, oldest: Some(record.received), dead: 0 });
    ack(again).await;
    let shown = details(&*queue, &id).await;
    assert_eq!((shown.record.state, shown.record.attempts), (State::Delivered, 2));
    assert_eq!(shown.attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [1, 2]);
    nothing_is_due(&*queue, "app", PLAIN).await;
}

pub(super) async fn a_delivered_one_is_redelivered(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    for round in 0..3 {
        let lease = lease(&*queue, "app").await;
        assert_eq!((lease.job().attempts, lease.job().attempts_ever), (0, round));
        let id = lease.job().id.clone();
        ack(lease).await;
        let filter = Filter { ids: vec![id.0], ..Filter::default() };
        assert_eq!(queue.redeliver(&filter).await, Ok(1));
    }
    ack(lease(&*queue, "app").await).await;
    nothing_is_due(&*queue, "app", PLAIN).await;
}

pub(super) async fn what_waits_is_redelivered_at_once(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    let first = lease(&*queue, "app").await;
    let failed = attempt(&first, 503);
    first.retry(Duration::from_secs(3600), failed).await.unwrap();
    nothing_is_due(&*queue, "app", PLAIN).await;
    let filter = Filter { ids: vec!["a".to_owned()], ..Filter::default() };
    let recipient = recipient("app");
    // Somebody waits already.
    let (leases, redelivered) = tokio::join!(queue.lease(&recipient, PLAIN, 1), queue.redeliver(&filter));
    assert_eq!(redelivered, Ok(1));
    let lease = leases.unwrap().pop().unwrap();
    // It waits as before: its attempts count.
    assert_eq!((lease.job().attempts, lease.job().attempts_ever), (1, 1));
    ack(lease).await;
    nothing_is_due(&*queue, "app", PLAIN).await;
}

pub(super) async fn what_is_purged_is_never_delivered(engine: &dyn Engine) {
    let queue = opened(engine).await;
    for id in ["fresh", "tried", "dead", "done"] {
        enqueue(&*queue, delivery(id)).await;
    }
    let mut leases = Vec::new();
    while leases.len() < 4 {
        leases.extend(queue.lease(&recipient("app"), PLAIN, 4).await.unwrap());
    }
    for lease in leases {
        match id_of(&lease).as_str() {
            "tried" => {
                let failed = attempt(&lease, 503);
                lease.retry(Duration::from_millis(200), failed).await.unwrap();
            }
            "dead" => kill(lease).await,
            "done" => ack(lease).await,
            _ => drop(lease),
        }
    }
    assert_eq!(queue.purge(&Filter::default()).await, Ok(4));
    assert_eq!(queue.purge(&Filter::default()).await, Ok(0));
    assert_eq!(all(&*queue).await, []);
    nothing_is_due(&*queue, "app", PLAIN).await;
    eventually("the counts are zero", async || depth(&*queue, "app").await == Depth::default()).await;
    assert_eq!(queue.redeliver(&Filter::default()).await, Ok(0));
}

pub(super) async fn one_of_two_is_purged(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, to(delivery("a"), &[("one", PLAIN), ("two", PLAIN)])).await;
    let filter = Filter { destination: Some("one".to_owned()), ..Filter::default() };
    assert_eq!(queue.purge(&filter).await, Ok(1));
    nothing_is_due(&*queue, "one", PLAIN).await;
    assert_eq!(states(&*queue).await, [("two".to_owned(), State::Waiting)]);
    ack(lease(&*queue, "two").await).await;
}

pub(super) async fn filters_mean_what_they_say(engine: &dyn Engine) {
    let queue = opened(engine).await;
    let mut other = to(delivery("b"), &[("two", PLAIN)]);
    other.webhook = "other".to_owned();
    other.parcel.kind = HeaderValue::from_static("stack");
    other.parcel.event = HeaderValue::from_static("stack_created");
    enqueue(&*queue, to(delivery("a"), &[("one", PLAIN), ("two", PLAIN)])).await;
    let between = all(&*queue).await[0].received + Duration::from_millis(1);
    // The next one is of a later millisecond than both.
    while SystemTime::now() < between + Duration::from_millis(1) {
        tokio::task::yield_now().await;
    }
    enqueue(&*queue, other).await;
    kill(lease(&*queue, "one").await).await;
    let ids = |filter: Filter| {
        let queue = &queue;
        async move {
            let records = queue.list(&filter, 10).await.unwrap();
            records.into_iter().map(|r| format!("{} {}", r.delivery_id, r.recipient)).collect::<Vec<_>>()
        }
    };
    let any = Filter::default;
    assert_eq!(ids(any()).await.len(), 3);
    assert_eq!(ids(any()).await[0], "b other/two", "the newest is the first");
    assert_eq!(queue.list(&any(), 2).await.unwrap().len(), 2);
    assert_eq!(ids(Filter { states: vec![State::Dead], ..any() }).await, ["a esc/one"]);
    assert_eq!(ids(Filter { states: vec![State::Dead, State::Waiting], ..any() }).await.len(), 3);
    assert_eq!(ids(Filter { states: vec![State::Delivered], ..any() }).await, [""; 0]);
    assert_eq!(ids(Filter { webhook: Some("other".to_owned()), ..any() }).await, ["b other/two"]);
    assert_eq!(ids(Filter { destination: Some("two".to_owned()), ..any() }).await.len(), 2);
    assert_eq!(ids(Filter { event: Some("stack".to_owned()), ..any() }).await, ["b other/two"]);
    assert_eq!(ids(Filter { event: Some("stack_created".to_owned()), ..any() }).await, ["b other/two"]);
    assert_eq!(ids(Filter { event: Some("stac".to_owned()), ..any() }).await, [""; 0]);
    assert_eq!(ids(Filter { ids: vec!["b".to_owned(), "x".to_owned()], ..any() }).await, ["b other/two"]);
    assert_eq!(ids(Filter { since: Some(between), ..any() }).await, ["b other/two"]);
    assert_eq!(ids(Filter { until: Some(between), ..any() }).await.len(), 2);
    let job = queue.list(&any(), 1).await.unwrap().remove(0).id;
    assert_eq!(ids(Filter { ids: vec![job.0.clone()], ..any() }).await, ["b other/two"]);
    let none = Filter { ids: vec![job.0], webhook: Some("esc".to_owned()), ..any() };
    assert_eq!(ids(none).await, [""; 0]);
    assert_eq!(queue.purge(&Filter { webhook: Some("esc".to_owned()), ..any() }).await, Ok(2));
    assert_eq!(ids(any()).await, ["b other/two"]);
}

pub(super) async fn copies_are_told(engine: &dyn Engine) {
    let queue = opened(engine).await;
    let (one, two) = tokio::join!(queue.enqueue(delivery("a")), queue.enqueue(delivery("a")));
    let mut told = [one.unwrap(), two.unwrap()];
    told.sort_by_key(|enqueued| *enqueued != Enqueued::Queued);
    assert_eq!(told, [Enqueued::Queued, Enqueued::Duplicate]);
    let lease = lease(&*queue, "app").await;
    assert_eq!(queue.enqueue(delivery("a")).await, Ok(Enqueued::Duplicate), "leased");
    let failed = attempt(&lease, 503);
    lease.retry(Duration::from_millis(1), failed).await.unwrap();
    assert_eq!(queue.enqueue(delivery("a")).await, Ok(Enqueued::Duplicate), "to be tried again");
    ack(self::lease(&*queue, "app").await).await;
    assert_eq!(queue.enqueue(delivery("a")).await, Ok(Enqueued::Duplicate), "delivered");
    let mut other = delivery("a");
    other.webhook = "other".to_owned();
    enqueue(&*queue, other).await;
    nothing_is_due(&*queue, "app", PLAIN).await;
    assert_eq!(all(&*queue).await.len(), 2);
}

pub(super) async fn another_body_is_a_conflict(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    let mut other = delivery("a");
    other.parcel.body = stored("{}");
    assert_eq!(queue.enqueue(other.clone()).await, Ok(Enqueued::Conflict), "it waits");
    let mut elsewhere = to(other.clone(), &[("app", Policy { in_order: true, coalesce: Some(WINDOW) })]);
    elsewhere.environment = Some("another/one".to_owned());
    assert_eq!(queue.enqueue(elsewhere).await, Ok(Enqueued::Conflict), "of another environment");
    ack(lease(&*queue, "app").await).await;
    assert_eq!(queue.enqueue(other).await, Ok(Enqueued::Conflict), "it was delivered");
    assert_eq!(all(&*queue).await.len(), 1);
}

pub(super) async fn a_dead_delivery_is_revived_where_it_is_lacking(engine: &dyn Engine) {
    let queue = opened(engine).await;
    let both = to(delivery("a"), &[("one", PLAIN), ("two", PLAIN)]);
    enqueue(&*queue, both.clone()).await;
    ack(lease(&*queue, "one").await).await;
    kill(lease(&*queue, "two").await).await;
    assert_eq!(queue.enqueue(both.clone()).await, Ok(Enqueued::Queued));
    assert_eq!(queue.enqueue(both.clone()).await, Ok(Enqueued::Duplicate));
    nothing_is_due(&*queue, "one", PLAIN).await;
    let revived = lease(&*queue, "two").await;
    assert_eq!((revived.job().attempts, revived.job().attempts_ever), (0, 1));
    ack(revived).await;
    assert_eq!(queue.enqueue(both).await, Ok(Enqueued::Duplicate));
    assert_eq!(all(&*queue).await.len(), 2);
}

pub(super) async fn after_the_window_it_is_a_new_one(engine: &dyn Engine) {
    let window = Duration::from_millis(300);
    let queue = ready(engine, Retention::default(), window).await;
    enqueue(&*queue, delivery("a")).await;
    tokio::time::sleep(window).await;
    assert_eq!(queue.enqueue(delivery("a")).await, Ok(Enqueued::Duplicate), "it waits, at any age");
    ack(lease(&*queue, "app").await).await;
    tokio::time::sleep(window).await;
    enqueue(&*queue, delivery("a")).await;
    ack(lease(&*queue, "app").await).await;
    tokio::time::sleep(window).await;
    let mut other = delivery("a");
    other.parcel.body = stored("{}");
    enqueue(&*queue, other.clone()).await;
    let lease = lease(&*queue, "app").await;
    assert_eq!(lease.job().parcel.body, other.parcel.body);
    ack(lease).await;
    assert_eq!(all(&*queue).await.len(), 3);
}

pub(super) async fn without_a_window_every_one_is_new(engine: &dyn Engine) {
    let queue = ready(engine, Retention::default(), Duration::ZERO).await;
    let mut other = delivery("a");
    other.parcel.body = stored("{}");
    for delivery in [delivery("a"), delivery("a"), other] {
        enqueue(&*queue, delivery).await;
    }
    for _ in 0..3 {
        ack(lease(&*queue, "app").await).await;
    }
    enqueue(&*queue, delivery("a")).await;
}

pub(super) async fn what_waited_and_was_purged_is_new(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    assert_eq!(queue.purge(&Filter::default()).await, Ok(1));
    enqueue(&*queue, delivery("a")).await;
    kill(lease(&*queue, "app").await).await;
    assert_eq!(queue.purge(&Filter::default()).await, Ok(1));
    enqueue(&*queue, delivery("a")).await;
    ack(lease(&*queue, "app").await).await;
}

/// Neither `retain` nor a purge makes a copy of what was just delivered a new delivery.
pub(super) async fn what_was_delivered_is_known_within_the_window_whatever_goes(engine: &dyn Engine) {
    let window = Duration::from_secs(5);
    let retention = Retention { retain: Duration::from_millis(1), ..Retention::default() };
    let queue = ready(engine, retention, window).await;
    for id in ["swept", "purged"] {
        enqueue(&*queue, delivery(id)).await;
    }
    let began = SystemTime::now();
    ack(lease(&*queue, "app").await).await;
    eventually("the log forgets it", async || all(&*queue).await.len() == 1).await;
    ack(lease(&*queue, "app").await).await;
    queue.purge(&Filter::default()).await.unwrap();
    assert_eq!(all(&*queue).await, []);
    for id in ["swept", "purged"] {
        let mut other = delivery(id);
        other.parcel.body = stored("{}");
        let answers = (queue.enqueue(delivery(id)).await, queue.enqueue(other).await);
        // A machine that was too slow for this proves nothing.
        if began.elapsed().unwrap() < window {
            assert_eq!(answers, (Ok(Enqueued::Duplicate), Ok(Enqueued::Conflict)), "{id}");
        }
    }
    eventually("the window passes", async || queue.enqueue(delivery("swept")).await == Ok(Enqueued::Queued))
        .await;
}

pub(super) async fn the_last_attempts_are_kept(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    let count = u32::try_from(KEPT_ATTEMPTS).unwrap() + 5;
    for _ in 0..count {
        let lease = lease(&*queue, "app").await;
        let failed = attempt(&lease, 503);
        lease.retry(Duration::ZERO, failed).await.unwrap();
    }
    let id = all(&*queue).await[0].id.clone();
    let shown = details(&*queue, &id).await;
    assert_eq!(shown.record.attempts, count);
    let numbers: Vec<_> = shown.attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, (6..=count).collect::<Vec<_>>());
}

/// It is recorded, or the job is given back: nothing is between the two.
pub(super) async fn a_verdict_that_nobody_waits_for_leaks_no_lease(engine: &dyn Engine) {
    let queue = opened(engine).await;
    for n in 0..20 {
        enqueue(&*queue, delivery(&n.to_string())).await;
    }
    let mut leases = Vec::new();
    while leases.len() < 20 {
        leases.extend(queue.lease(&recipient("app"), PLAIN, 20).await.unwrap());
    }
    for (n, lease) in leases.into_iter().enumerate() {
        let attempt = attempt(&lease, 200);
        let settling = lease.ack(attempt);
        // Some are not even begun.
        if n % 2 == 0 {
            drop(tokio::time::timeout(Duration::ZERO, settling).await);
        }
    }
    let recipient = recipient("app");
    eventually("all come to their end", async || {
        let wait = queue.lease(&recipient, PLAIN, 20);
        if let Ok(leases) = tokio::time::timeout(Duration::from_millis(100), wait).await {
            for lease in leases.unwrap() {
                ack(lease).await;
            }
        }
        all(&*queue).await.iter().all(|record| record.state == State::Delivered)
    })
    .await;
}

/// The IDs and standings of everything, in order of arrival.
pub(super) async fn outcome(queue: &dyn Queue) -> Vec<(String, State)> {
    let records = all(queue).await;
    records.into_iter().rev().map(|record| (record.delivery_id, record.state)).collect()
}

pub(super) async fn a_restart_forgets_nothing(engine: &dyn Engine) {
    let queue = opened(engine).await;
    for id in ["waiting", "tried", "leased", "dead", "done"] {
        enqueue(&*queue, delivery(id)).await;
    }
    let mut leases = Vec::new();
    while leases.len() < 5 {
        leases.extend(queue.lease(&recipient("app"), PLAIN, 5).await.unwrap());
    }
    let mut lost = Vec::new();
    for lease in leases {
        match id_of(&lease).as_str() {
            "tried" => {
                let failed = attempt(&lease, 503);
                lease.retry(Duration::from_millis(100), failed).await.unwrap();
            }
            "leased" => lost.push(lease),
            "dead" => kill(lease).await,
            "done" => ack(lease).await,
            _ => drop(lease),
        }
    }
    let before = {
        let mut records = all(&*queue).await;
        records.retain(|record| record.delivery_id != "tried");
        records
    };
    // As a process that is killed: nobody says what became of the lease.
    std::mem::forget(lost);
    drop(queue);
    let queue = opened(engine).await;
    let mut after = all(&*queue).await;
    after.retain(|record| record.delivery_id != "tried");
    assert_eq!(after, before);
    let mut ids = Vec::new();
    while ids.len() < 3 {
        for lease in queue.lease(&recipient("app"), PLAIN, 5).await.unwrap() {
            assert_eq!(lease.job().attempts, u32::from(id_of(&lease) == "tried"));
            ids.push(id_of(&lease));
            ack(lease).await;
        }
    }
    ids.sort();
    assert_eq!(ids, ["leased", "tried", "waiting"]);
    assert_eq!(queue.enqueue(delivery("done")).await, Ok(Enqueued::Duplicate));
    assert_eq!(depth(&*queue, "app").await.dead, 1);
    queue.close().await.unwrap();
}

pub(super) async fn stock_counts(engine: &dyn Engine) {
    let queue = opened(engine).await;
    let empty = queue.stock().await.unwrap();
    assert_eq!(empty.max_bytes, Retention::default().max_bytes);
    assert!(empty.depths.iter().all(|(_, depth)| *depth == Depth::default()));
    for n in 0..5 {
        let destinations: &[_] = if n < 2 { &[("one", PLAIN), ("two", PLAIN)] } else { &[("two", PLAIN)] };
        enqueue(&*queue, to(delivery(&n.to_string()), destinations)).await;
    }
    let records = all(&*queue).await;
    let received = |id| records.iter().find(|record| record.delivery_id == id).unwrap().received;
    let (first, third) = (received("0"), received("2"));
    assert_eq!(depth(&*queue, "one").await, Depth { waiting: 2, oldest: Some(first), dead: 0 });
    assert_eq!(depth(&*queue, "two").await, Depth { waiting: 5, oldest: Some(first), dead: 0 });
    let lease_one = lease(&*queue, "one").await;
    assert_eq!(depth(&*queue, "one").await.waiting, 2, "a leased one waits");
    let failed = attempt(&lease_one, 503);
    lease_one.retry(Duration::from_secs(60), failed).await.unwrap();
    kill(lease(&*queue, "two").await).await;
    ack(lease(&*queue, "two").await).await;
    eventually("the counts come right", async || {
        let (one, two) = (depth(&*queue, "one").await, depth(&*queue, "two").await);
        (one.waiting, one.dead, two.waiting, two.dead) == (2, 0, 3, 1) && two.oldest == Some(third)
    })
    .await;
    assert!(queue.stock().await.unwrap().bytes > 0);
}

pub(super) async fn old_ones_are_forgotten(engine: &dyn Engine) {
    let retention = Retention {
        retain: Duration::from_millis(500),
        dead_retain: Duration::from_millis(1500),
        ..Retention::default()
    };
    let queue = ready(engine, retention, Duration::from_millis(100)).await;
    for id in ["dead", "done", "waiting"] {
        enqueue(&*queue, delivery(id)).await;
    }
    let dead = lease(&*queue, "app").await;
    assert_eq!(id_of(&dead), "dead");
    kill(dead).await;
    ack(lease(&*queue, "app").await).await;
    eventually("the delivered one goes", async || all(&*queue).await.len() == 2).await;
    let ids: Vec<_> = all(&*queue).await.into_iter().map(|record| record.delivery_id).collect();
    assert_eq!(ids, ["waiting", "dead"], "the dead one stays longer");
    eventually("the dead one goes", async || all(&*queue).await.len() == 1).await;
    let stock = queue.stock().await.unwrap();
    assert_eq!(stock.dead_dropped, 1);
    assert_eq!(depth(&*queue, "app").await.dead, 0);
    assert_eq!(id_of(&lease(&*queue, "app").await), "waiting");
}

pub(super) async fn finished_ones_make_room(engine: &dyn Engine) {
    const BODY: usize = 64 << 10;
    let retention = Retention { max_bytes: 2 << 20, ..Retention::default() };
    let queue = ready(engine, retention, WINDOW).await;
    let large = |n: usize| {
        let mut large = delivery(&n.to_string());
        let start = n.to_string().into_bytes();
        large.parcel.body =
            stored(start.into_iter().chain(std::iter::repeat(b'x')).take(BODY).collect::<Vec<u8>>());
        large
    };
    // Three times as many as there is room for, each done before the next one comes.
    for n in 0..100 {
        enqueue(&*queue, large(n)).await;
        ack(lease(&*queue, "app").await).await;
    }
    assert!(queue.stock().await.unwrap().bytes <= retention.max_bytes);
    // What waits makes no room.
    let mut accepted = Vec::new();
    let refused = loop {
        let n = 1000 + accepted.len();
        match queue.enqueue(large(n)).await {
            Ok(Enqueued::Queued) => accepted.push(n.to_string()),
            other => break other,
        }
        assert!(accepted.len() < 100, "it is never full");
    };
    assert_eq!(refused, Err(QueueError::Full));
    assert!(accepted.len() > 10, "only {} had room", accepted.len());
    until(&*queue, |health| *health != Health::Ready).await;
    for _ in 0..accepted.len() {
        ack(lease(&*queue, "app").await).await;
    }
    until(&*queue, |health| *health == Health::Ready).await;
    enqueue(&*queue, large(5000)).await;
}

pub(super) async fn a_closed_queue_says_so(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    let recipient = recipient("app");
    let waiting = lease(&*queue, "app").await;
    let (none, closed) = tokio::join!(queue.lease(&recipient, PLAIN, 1), async {
        // The attempt under way ends first.
        ack(waiting).await;
        queue.close().await
    });
    assert_eq!(closed, Ok(()));
    assert!(matches!(none, Err(QueueError::Unavailable(_))), "{none:?}");
    assert!(matches!(queue.enqueue(delivery("b")).await, Err(QueueError::Unavailable(_))));
    let again = opened(engine).await;
    assert_eq!(outcome(&*again).await, [("a".to_owned(), State::Delivered)]);
}
