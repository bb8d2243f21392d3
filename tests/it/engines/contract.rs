//! What every engine promises. A case gets an engine whose store is empty, and opens it as often as it likes.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hookgate::delivery::{
    destination::{MediaType, Parcel},
    queue::{
        Attempt, Death, Delivery, Depth, Details, Enqueued, Filter, Health, JobId, Lease, Policy, Queue,
        QueueError, Recipient, Record, Retention, State,
    },
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
        $crate::engines::contract::hold! { $engine =>
            accepted_is_leased_and_done,
            bytes_and_headers_are_kept,
            a_fan_out_is_one_commit_with_a_job_for_each,
            a_retry_comes_back_when_it_is_due,
            a_dropped_lease_comes_back,
            nobody_else_gets_a_leased_job,
            attempts_are_recorded,
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
            a_purged_delivery_is_a_new_one,
            an_environment_goes_in_order,
            fifty_become_one,
            the_highest_revision_is_the_newest,
            the_newest_that_waits_is_the_newest_whenever_it_came,
            only_what_is_alike_is_coalesced,
            what_is_called_back_is_not_coalesced,
            a_restart_forgets_nothing,
            stock_counts,
            old_ones_are_forgotten,
            finished_ones_make_room,
            a_closed_queue_says_so,
        }
    };
    ($engine:expr => $($case:ident,)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let engine = $engine;
                let case = $crate::engines::contract::$case(&engine);
                tokio::time::timeout($crate::support::PATIENCE * 3, case).await.expect("the case ends in time");
            }
        )*
    };
}
pub(super) use hold;

pub(super) const WINDOW: Duration = Duration::from_secs(120);
const PLAIN: Policy = Policy { in_order: false, coalesce: None };
const ORDERED: Policy = Policy { in_order: true, coalesce: None };

/// A delivery under this ID, for the destination `app`.
pub(super) fn delivery(id: &str) -> Delivery {
    let value = HeaderValue::from_static;
    Delivery {
        webhook: "esc".to_owned(),
        parcel: Parcel {
            body: Bytes::from(format!("{{\"of\":\"{id}\"}}")),
            content_type: MediaType::Json,
            id: HeaderValue::from_str(id).unwrap(),
            kind: value("environment_revision"),
            signature: value("00ff"),
            event: value("environment_revision_created"),
            kind_verified: true,
            traceparent: value("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        },
        environment: Some("website/prod".to_owned()),
        revision: None,
        destinations: vec![("app".to_owned(), PLAIN)],
    }
}

fn to(mut delivery: Delivery, destinations: &[(&str, Policy)]) -> Delivery {
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

async fn opened(engine: &dyn Engine) -> Arc<dyn Queue> {
    ready(engine, Retention::default(), WINDOW).await
}

pub(super) async fn enqueue(queue: &dyn Queue, delivery: Delivery) {
    assert_eq!(queue.enqueue(delivery).await, Ok(Enqueued::Queued));
}

/// Leases one job.
pub(super) async fn lease(queue: &dyn Queue, destination: &str) -> Lease {
    lease_by(queue, destination, PLAIN).await
}

async fn lease_by(queue: &dyn Queue, destination: &str, policy: Policy) -> Lease {
    let mut leases = queue.lease(&recipient(destination), policy, 1).await.unwrap();
    assert_eq!(leases.len(), 1);
    leases.pop().unwrap()
}

/// Nothing can be leased for a moment.
async fn nothing_is_due(queue: &dyn Queue, destination: &str, policy: Policy) {
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

async fn kill(lease: Lease) {
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

async fn depth(queue: &dyn Queue, destination: &str) -> Depth {
    let recipient = recipient(destination);
    let stock = queue.stock().await.unwrap();
    stock.depths.into_iter().find(|(of, _)| *of == recipient).map(|(_, depth)| depth).unwrap_or_default()
}

/// Asks again until it is so. For what an engine does by itself in the background.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
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

pub(super) async fn bytes_and_headers_are_kept(engine: &dyn Engine) {
    let queue = opened(engine).await;
    let mut sent = delivery("a.b_c-d:e");
    sent.webhook = "a.b".to_owned();
    sent.environment = Some("w\u{e9}b site/*.>\u{1f680}".to_owned());
    sent.revision = Some(u64::from(u32::MAX) + 7);
    sent.parcel.body = (0..=255).cycle().take(70_000).collect::<Vec<u8>>().into();
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
    }
    assert_eq!(shown.record.recipient, recipient);
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
    // What was not tried is no attempt.
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
    other.parcel.body = Bytes::from_static(b"{}");
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
    other.parcel.body = Bytes::from_static(b"{}");
    enqueue(&*queue, other.clone()).await;
    let lease = lease(&*queue, "app").await;
    assert_eq!(lease.job().parcel.body, other.parcel.body);
    ack(lease).await;
    assert_eq!(all(&*queue).await.len(), 3);
}

pub(super) async fn without_a_window_every_one_is_new(engine: &dyn Engine) {
    let queue = ready(engine, Retention::default(), Duration::ZERO).await;
    let mut other = delivery("a");
    other.parcel.body = Bytes::from_static(b"{}");
    for delivery in [delivery("a"), delivery("a"), other] {
        enqueue(&*queue, delivery).await;
    }
    for _ in 0..3 {
        ack(lease(&*queue, "app").await).await;
    }
    enqueue(&*queue, delivery("a")).await;
}

pub(super) async fn a_purged_delivery_is_a_new_one(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, delivery("a")).await;
    assert_eq!(queue.purge(&Filter::default()).await, Ok(1));
    enqueue(&*queue, delivery("a")).await;
    ack(lease(&*queue, "app").await).await;
    assert_eq!(queue.purge(&Filter::default()).await, Ok(1));
    enqueue(&*queue, delivery("a")).await;
    ack(lease(&*queue, "app").await).await;
}

pub(super) async fn an_environment_goes_in_order(engine: &dyn Engine) {
    let queue = opened(engine).await;
    for n in 0..6 {
        let mut ordered = to(delivery(&n.to_string()), &[("app", ORDERED)]);
        ordered.environment = match n % 3 {
            0 => Some("website/prod".to_owned()),
            1 => Some("website/dev".to_owned()),
            _ => None,
        };
        enqueue(&*queue, ordered).await;
    }
    let mut leases = Vec::new();
    while leases.len() < 3 {
        leases.extend(queue.lease(&recipient("app"), ORDERED, 6).await.unwrap());
    }
    let mut ids: Vec<_> = leases.iter().map(id_of).collect();
    ids.sort();
    assert_eq!(ids, ["0", "1", "2"], "the first of each environment");
    nothing_is_due(&*queue, "app", ORDERED).await;
    // One that fails holds up those after it, and only those.
    let at = leases.iter().position(|lease| id_of(lease) == "0").unwrap();
    let failing = leases.swap_remove(at);
    let failed = attempt(&failing, 503);
    failing.retry(Duration::from_millis(400), failed).await.unwrap();
    for lease in leases {
        ack(lease).await;
    }
    let mut order = Vec::new();
    while order.len() < 4 {
        for lease in queue.lease(&recipient("app"), ORDERED, 6).await.unwrap() {
            order.push(id_of(&lease));
            ack(lease).await;
        }
    }
    let place = |id: &str| order.iter().position(|seen| seen == id).unwrap();
    assert!(place("0") < place("3"), "{order:?}");
    assert!(place("4") < place("0") && place("5") < place("0"), "{order:?}");
}

fn coalescing(milliseconds: u64) -> Policy {
    Policy { in_order: false, coalesce: Some(Duration::from_millis(milliseconds)) }
}

/// The IDs and standings of everything, in order of arrival.
async fn outcome(queue: &dyn Queue) -> Vec<(String, State)> {
    let records = all(queue).await;
    records.into_iter().rev().map(|record| (record.delivery_id, record.state)).collect()
}

pub(super) async fn fifty_become_one(engine: &dyn Engine) {
    let policy = coalescing(1000);
    let queue = opened(engine).await;
    let recipient = recipient("app");
    let storm = async {
        for n in 0..50 {
            enqueue(&*queue, to(delivery(&n.to_string()), &[("app", policy)])).await;
        }
    };
    let (leases, ()) = tokio::join!(queue.lease(&recipient, policy, 100), storm);
    let [lease] = <[Lease; 1]>::try_from(leases.unwrap()).unwrap();
    assert_eq!(id_of(&lease), "49");
    ack(lease).await;
    nothing_is_due(&*queue, "app", policy).await;
    let outcome = outcome(&*queue).await;
    assert_eq!(outcome.len(), 50);
    assert_eq!(outcome.last(), Some(&("49".to_owned(), State::Delivered)));
    assert!(outcome[..49].iter().all(|(_, state)| *state == State::Coalesced), "{outcome:?}");
}

pub(super) async fn the_highest_revision_is_the_newest(engine: &dyn Engine) {
    let policy = coalescing(500);
    let queue = opened(engine).await;
    for revision in [3, 9, 7] {
        let mut sent = to(delivery(&revision.to_string()), &[("app", policy)]);
        sent.revision = Some(revision);
        enqueue(&*queue, sent).await;
    }
    let lease = lease_by(&*queue, "app", policy).await;
    assert_eq!(id_of(&lease), "9");
    ack(lease).await;
    nothing_is_due(&*queue, "app", policy).await;
    let expected = [("3", State::Coalesced), ("9", State::Delivered), ("7", State::Coalesced)];
    assert_eq!(outcome(&*queue).await, expected.map(|(id, state)| (id.to_owned(), state)));
    // What came before is over: nothing is newer than this one among those that wait.
    let mut late = to(delivery("8"), &[("app", policy)]);
    late.revision = Some(8);
    enqueue(&*queue, late).await;
    let late = lease_by(&*queue, "app", policy).await;
    assert_eq!(id_of(&late), "8");
}

/// A lower revision comes while the highest one waits to be tried again, and then a higher one.
pub(super) async fn the_newest_that_waits_is_the_newest_whenever_it_came(engine: &dyn Engine) {
    let queue = opened(engine).await;
    let policy = Policy { in_order: false, coalesce: Some(Duration::from_millis(100)) };
    let recipient = recipient("app");
    let send = async |revision: u64| {
        let mut sent = to(delivery(&revision.to_string()), &[("app", policy)]);
        sent.revision = Some(revision);
        enqueue(&*queue, sent).await;
    };
    let take = async || queue.lease(&recipient, policy, 1).await.unwrap().pop().unwrap();
    let state_of = async |id: &str| {
        let record = all(&*queue).await.into_iter().find(|record| record.delivery_id == id).unwrap();
        (record.state, record.due)
    };
    send(9).await;
    let failing = take().await;
    let failed = attempt(&failing, 503);
    failing.retry(Duration::from_secs(3600), failed).await.unwrap();
    let (_, due) = state_of("9").await;
    send(7).await;
    tokio::select! {
        lease = take() => panic!("{} is leased", id_of(&lease)),
        () = eventually("7 is not delivered", async || state_of("7").await.0 == State::Coalesced) => {}
    }
    assert_eq!(state_of("9").await, (State::Waiting, due), "it is tried again when it is due");
    send(10).await;
    let lease = take().await;
    assert_eq!(id_of(&lease), "10");
    ack(lease).await;
    assert_eq!(state_of("9").await.0, State::Coalesced);
}

pub(super) async fn only_what_is_alike_is_coalesced(engine: &dyn Engine) {
    let policy = coalescing(300);
    let queue = opened(engine).await;
    let mut elsewhere = to(delivery("environment"), &[("app", policy)]);
    elsewhere.environment = Some("website/dev".to_owned());
    let mut otherwise = to(delivery("event"), &[("app", policy)]);
    otherwise.parcel.event = HeaderValue::from_static("environment_revision_retracted");
    for sent in [to(delivery("first"), &[("app", policy)]), elsewhere, otherwise] {
        enqueue(&*queue, sent).await;
    }
    let mut ids = Vec::new();
    while ids.len() < 3 {
        let lease = lease_by(&*queue, "app", policy).await;
        ids.push(id_of(&lease));
        ack(lease).await;
    }
    ids.sort();
    assert_eq!(ids, ["environment", "event", "first"]);
}

pub(super) async fn what_is_called_back_is_not_coalesced(engine: &dyn Engine) {
    let policy = coalescing(300);
    let queue = opened(engine).await;
    for id in ["older", "newer"] {
        enqueue(&*queue, to(delivery(id), &[("app", policy)])).await;
    }
    ack(lease_by(&*queue, "app", policy).await).await;
    let filter =
        Filter { ids: vec!["older".to_owned()], states: vec![State::Coalesced], ..Filter::default() };
    assert_eq!(queue.redeliver(&filter).await, Ok(1));
    let lease = lease_by(&*queue, "app", policy).await;
    assert_eq!(id_of(&lease), "older");
    ack(lease).await;
    assert!(outcome(&*queue).await.iter().all(|(_, state)| *state == State::Delivered));
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
        large.parcel.body = start.into_iter().chain(std::iter::repeat(b'x')).take(BODY).collect();
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
