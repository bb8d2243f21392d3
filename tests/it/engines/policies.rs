//! What is promised of `order` and `coalesce`, by the engine that has them.

use std::time::Duration;

use hookgate::delivery::queue::{Death, Filter, Lease, Policy, Queue, State};
use hyper::header::HeaderValue;

use super::contract::{
    Engine, PLAIN, ack, all, attempt, delivery, enqueue, eventually, id_of, lease_by, nothing_is_due, opened,
    outcome, recipient, to,
};

/// Makes tests of all cases, for one engine.
macro_rules! hold {
    ($engine:expr) => {
        $crate::engines::contract::hold! { $engine, policies =>
            an_environment_goes_in_order,
            fifty_become_one,
            the_highest_revision_is_the_newest,
            the_newest_that_waits_is_the_newest_whenever_it_came,
            only_what_is_alike_is_coalesced,
            what_is_called_back_is_not_coalesced,
            an_older_one_is_not_delivered_after_a_newer_one,
            order_that_comes_while_one_is_under_way_blocks_nobody_for_good,
            order_that_goes_while_one_comes_blocks_nobody_for_good,
            what_is_called_back_comes_in_its_turn,
            order_that_comes_and_goes_keeps_one_at_a_time,
        }
    };
}
pub(super) use hold;

const ORDERED: Policy = Policy { in_order: true, coalesce: None };

fn coalescing(milliseconds: u64) -> Policy {
    Policy { in_order: false, coalesce: Some(Duration::from_millis(milliseconds)) }
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

async fn retry(lease: Lease, delay: Duration) {
    let failed = attempt(&lease, 503);
    lease.retry(delay, failed).await.unwrap();
}

async fn take(queue: &dyn Queue, policy: Policy) -> Vec<String> {
    let mut ids = Vec::new();
    for lease in queue.lease(&recipient("app"), policy, 20).await.unwrap() {
        ids.push(id_of(&lease));
        ack(lease).await;
    }
    ids
}

/// The older one is under way when the newer one comes, and fails; whether the newer one is delivered before that or not.
pub(super) async fn an_older_one_is_not_delivered_after_a_newer_one(engine: &dyn Engine) {
    for newer_first in [true, false] {
        let policy = coalescing(1);
        let queue = opened(engine).await;
        let name = |revision| format!("{newer_first}-{revision}");
        let send = async |revision: u64| {
            let mut sent = to(delivery(&name(revision)), &[("app", policy)]);
            sent.revision = Some(revision);
            enqueue(&*queue, sent).await;
        };
        send(5).await;
        let older = lease_by(&*queue, "app", policy).await;
        send(6).await;
        let newer = lease_by(&*queue, "app", policy).await;
        assert_eq!(id_of(&newer), name(6));
        if newer_first {
            ack(newer).await;
            retry(older, Duration::ZERO).await;
        } else {
            retry(older, Duration::ZERO).await;
            ack(newer).await;
        }
        nothing_is_due(&*queue, "app", policy).await;
        let outcome = outcome(&*queue).await;
        assert!(
            outcome.ends_with(&[(name(5), State::Coalesced), (name(6), State::Delivered)]),
            "{outcome:?}"
        );
        assert_eq!(all(&*queue).await[1].attempts, 1, "it was tried all the same");
        queue.close().await.unwrap();
    }
}

pub(super) async fn order_that_comes_while_one_is_under_way_blocks_nobody_for_good(engine: &dyn Engine) {
    let queue = opened(engine).await;
    for id in ["1", "2"] {
        enqueue(&*queue, delivery(id)).await;
    }
    let under_way = lease_by(&*queue, "app", PLAIN).await;
    retry(lease_by(&*queue, "app", PLAIN).await, Duration::ZERO).await;
    // A reload brings `order`.
    nothing_is_due(&*queue, "app", ORDERED).await;
    ack(under_way).await;
    assert_eq!(take(&*queue, ORDERED).await, ["2"]);
}

/// What came under the settings of before is enqueued after the reload.
pub(super) async fn order_that_goes_while_one_comes_blocks_nobody_for_good(engine: &dyn Engine) {
    let queue = opened(engine).await;
    enqueue(&*queue, to(delivery("1"), &[("app", ORDERED)])).await;
    retry(lease_by(&*queue, "app", ORDERED).await, Duration::ZERO).await;
    let under_way = lease_by(&*queue, "app", PLAIN).await;
    enqueue(&*queue, to(delivery("2"), &[("app", ORDERED)])).await;
    ack(under_way).await;
    assert_eq!(take(&*queue, PLAIN).await, ["2"]);
}

/// A dead letter that is revived and waiting ones that are told not to wait do not pass those of their line.
pub(super) async fn what_is_called_back_comes_in_its_turn(engine: &dyn Engine) {
    let queue = opened(engine).await;
    let ordered = |id: &str| to(delivery(id), &[("app", ORDERED)]);
    for id in ["dead", "2", "3", "4"] {
        enqueue(&*queue, ordered(id)).await;
    }
    let dead = lease_by(&*queue, "app", ORDERED).await;
    let refused = attempt(&dead, 400);
    dead.dead_letter(Death::Refused, Some(refused)).await.unwrap();
    let under_way = lease_by(&*queue, "app", ORDERED).await;
    assert_eq!(id_of(&under_way), "2");
    // The sender repeats the dead one, and somebody calls for all that wait.
    enqueue(&*queue, ordered("dead")).await;
    let waiting = Filter { states: vec![State::Waiting], ..Filter::default() };
    assert_eq!(queue.redeliver(&waiting).await, Ok(4));
    nothing_is_due(&*queue, "app", ORDERED).await;
    ack(under_way).await;
    for id in ["dead", "3", "4"] {
        assert_eq!(take(&*queue, ORDERED).await, [id]);
    }
}

pub(super) async fn order_that_comes_and_goes_keeps_one_at_a_time(engine: &dyn Engine) {
    let queue = opened(engine).await;
    for n in 0..12 {
        enqueue(&*queue, to(delivery(&n.to_string()), &[("app", if n % 2 == 0 { PLAIN } else { ORDERED })]))
            .await;
    }
    let mut under_way = Vec::new();
    for policy in [PLAIN, ORDERED, PLAIN, ORDERED] {
        if policy == PLAIN {
            under_way.push(lease_by(&*queue, "app", policy).await);
        } else {
            nothing_is_due(&*queue, "app", policy).await;
        }
    }
    // Those that were under way together end in any order, and then it is one after the other.
    under_way.reverse();
    for lease in under_way {
        nothing_is_due(&*queue, "app", ORDERED).await;
        ack(lease).await;
    }
    for n in 2..12 {
        assert_eq!(take(&*queue, ORDERED).await, [n.to_string()]);
    }
}
