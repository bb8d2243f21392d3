//! Streams that are lost, cleared, restored, limited or refused, one without the other: what is accepted afterwards is
//! delivered, and what is wrong is said.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{
    self,
    stream::{Config, DiscardPolicy, RetentionPolicy, Source, StorageType},
};
use futures_util::StreamExt;
use hookgate::delivery::queue::{Death, Enqueued, Filter, Health, Policy, Queue, Retention, State};
use tokio::task::JoinSet;

use super::{is_not_ready, is_ready, opened, settings};
use crate::{
    engines::contract::{
        WINDOW, ack, all, attempt, delivery, depth, enqueue, eventually, id_of, kill, lease, ready,
        recipient, until,
    },
    support::{Instant, NatsServer, PATIENCE},
};

async fn jetstream(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

/// Leases everything that comes within this time, and delivers it. What it was.
async fn deliver_all(queue: &dyn Queue, moment: Duration) -> Vec<String> {
    let mut ids = Vec::new();
    let recipient = recipient("app");
    while let Ok(leases) = tokio::time::timeout(moment, queue.lease(&recipient, Policy::default(), 16)).await
    {
        for lease in leases.unwrap() {
            ids.push(id_of(&lease));
            ack(lease).await;
        }
    }
    ids
}

/// Accepts deliveries of these names, and delivers them.
async fn some(queue: &dyn Queue, name: &str, count: usize) {
    for n in 0..count {
        enqueue(queue, delivery(&format!("{name}{n}"))).await;
    }
    for _ in 0..count {
        ack(lease(queue, "app").await).await;
    }
}

/// What is accepted from now on is delivered, and everything comes to an end: what was there before may be delivered again.
async fn goes_on(queue: &dyn Queue, what: &str) {
    let fresh: Vec<_> = (0..15).map(|n| format!("after{n}")).collect();
    for id in &fresh {
        enqueue(queue, delivery(id)).await;
    }
    let mut delivered = BTreeSet::new();
    let began = Instant::now();
    loop {
        delivered.extend(deliver_all(queue, Duration::from_millis(300)).await);
        let waiting = Filter { states: vec![State::Waiting], ..Filter::default() };
        let left = all(queue).await.into_iter().filter(|record| record.state == State::Waiting).count();
        let missing: Vec<_> = fresh.iter().filter(|id| !delivered.contains(*id)).collect();
        if missing.is_empty() && left == 0 && queue.list(&waiting, 10).await.unwrap().is_empty() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: {missing:?} are lost, and {left} wait for ever");
    }
    for id in &fresh {
        assert_eq!(queue.enqueue(delivery(id)).await, Ok(Enqueued::Duplicate), "{what}");
    }
}

/// An operator removes or clears one stream, or both, under the running service.
#[tokio::test]
async fn a_stream_that_is_removed_or_cleared_takes_nothing_of_what_comes_later() {
    for streams in [&["HOOKGATE"][..], &["HOOKGATE_JOBS"], &["HOOKGATE", "HOOKGATE_JOBS"]] {
        for removed in [true, false] {
            let what = format!("{streams:?}, removed: {removed}");
            let server = NatsServer::start();
            let queue = ready(&server, Retention::default(), WINDOW).await;
            some(&*queue, "before", 10).await;
            let jetstream = jetstream(&server).await;
            for stream in streams {
                if removed {
                    jetstream.delete_stream(stream).await.unwrap();
                } else {
                    jetstream.get_stream(stream).await.unwrap().purge().await.unwrap();
                }
            }
            // It is noticed within a second.
            eventually("the streams are there", async || {
                jetstream.get_stream("HOOKGATE").await.is_ok()
                    && jetstream.get_stream("HOOKGATE_JOBS").await.is_ok()
            })
            .await;
            is_ready(&*queue).await;
            goes_on(&*queue, &what).await;
        }
    }
}

fn copy(from: &Path, to: &Path) {
    drop(fs::remove_dir_all(to));
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// A single server after a power failure, or one that was restored: a stream, or a part of one, is older than the other.
#[tokio::test]
async fn a_stream_that_is_older_than_the_other_takes_nothing_of_what_comes_later() {
    for older in ["HOOKGATE", "HOOKGATE_JOBS", "HOOKGATE/msgs"] {
        for running in [true, false] {
            let what = format!("{older}, running: {running}");
            let mut server = NatsServer::start();
            let mut queue = ready(&server, Retention::default(), WINDOW).await;
            some(&*queue, "long before", 10).await;
            server.kill();
            is_not_ready(&*queue).await;
            let folder = server.folder_of(older);
            let kept = server.folder().join("kept");
            copy(&folder, &kept);
            server.restart();
            is_ready(&*queue).await;
            some(&*queue, "before", 10).await;
            server.kill();
            is_not_ready(&*queue).await;
            if !running {
                drop(queue.close().await);
            }
            copy(&kept, &folder);
            fs::remove_dir_all(&kept).unwrap();
            server.restart();
            if !running {
                queue = opened(&settings(&server.url()));
            }
            is_ready(&*queue).await;
            goes_on(&*queue, &what).await;
        }
    }
}

/// What waits is delivered whatever becomes of the records, and what was dead may be: it is never only gone.
#[tokio::test]
async fn without_their_records_all_are_delivered_again() {
    let server = NatsServer::start();
    let queue = ready(&server, Retention::default(), WINDOW).await;
    for id in ["delivered", "dead", "tried", "waiting"] {
        enqueue(&*queue, delivery(id)).await;
    }
    ack(lease(&*queue, "app").await).await;
    kill(lease(&*queue, "app").await).await;
    let tried = lease(&*queue, "app").await;
    let failed = attempt(&tried, 503);
    tried.retry(Duration::from_millis(100), failed).await.unwrap();
    is_ready(&*queue).await;
    jetstream(&server).await.delete_stream("HOOKGATE_JOBS").await.unwrap();
    let mut ids = BTreeSet::new();
    eventually("all are delivered", async || {
        ids.extend(deliver_all(&*queue, Duration::from_millis(200)).await);
        ids.len() == 4
    })
    .await;
    assert_eq!(depth(&*queue, "app").await.dead, 0);
}

/// Records are refused for a while: attempts that were made are not made again, and nothing more is leased.
#[tokio::test]
async fn a_verdict_that_cannot_be_recorded_is_kept() {
    let server = NatsServer::start();
    let queue = ready(&server, Retention::default(), WINDOW).await;
    for n in 0..20 {
        enqueue(&*queue, delivery(&n.to_string())).await;
    }
    let mut leases = Vec::new();
    while leases.len() < 10 {
        let left = 10 - leases.len();
        leases.extend(queue.lease(&recipient("app"), Policy::default(), left).await.unwrap());
    }
    let jetstream = jetstream(&server).await;
    let config = jetstream.get_stream("HOOKGATE_JOBS").await.unwrap().cached_info().config.clone();
    let refusing = Config { subjects: vec!["nobody".to_owned()], ..config.clone() };
    jetstream.update_stream(&refusing).await.unwrap();
    let tried: BTreeSet<_> = leases.iter().map(id_of).collect();
    let mut settling = JoinSet::new();
    for lease in leases {
        settling.spawn(async move {
            let attempt = attempt(&lease, 200);
            // Those who wait may give up: it is kept all the same.
            drop(tokio::time::timeout(Duration::from_secs(12), lease.ack(attempt)).await);
        });
    }
    is_not_ready(&*queue).await;
    // Longer than a lease lasts that nobody renews.
    settling.join_all().await;
    let recipient = recipient("app");
    let more = queue.lease(&recipient, Policy::default(), 4);
    assert!(tokio::time::timeout(Duration::from_millis(300), more).await.is_err(), "nothing is leased");
    jetstream.update_stream(&config).await.unwrap();
    is_ready(&*queue).await;
    let others: BTreeSet<_> = deliver_all(&*queue, Duration::from_secs(1)).await.into_iter().collect();
    assert_eq!(others.len(), 10);
    assert!(others.is_disjoint(&tried), "{tried:?} were made again: {others:?}");
    let records = all(&*queue).await;
    assert!(records.iter().all(|it| it.state == State::Delivered && it.attempts == 1), "{records:?}");
}

/// A limit of bytes on the records would stop everything: it is taken away, and what was refused meanwhile is recorded.
#[tokio::test]
async fn records_have_no_limit_of_their_own() {
    let server = NatsServer::start();
    let queue = ready(&server, Retention::default(), WINDOW).await;
    enqueue(&*queue, delivery("a")).await;
    let lease = lease(&*queue, "app").await;
    let jetstream = jetstream(&server).await;
    let config = jetstream.get_stream("HOOKGATE_JOBS").await.unwrap().cached_info().config.clone();
    let limited = Config { max_bytes: 1, discard: DiscardPolicy::New, ..config };
    jetstream.update_stream(&limited).await.unwrap();
    ack(lease).await;
    assert_eq!(deliver_all(&*queue, Duration::from_millis(300)).await, [""; 0]);
    assert_eq!(all(&*queue).await[0].state, State::Delivered);
}

/// A record that nobody can read: its job is made once more, or is a dead letter, which can be called back. Neither goes on for
/// ever.
#[tokio::test]
async fn a_record_that_cannot_be_read_is_set_aside() {
    let server = NatsServer::start();
    let queue = ready(&server, Retention::default(), WINDOW).await;
    let jetstream = jetstream(&server).await;
    let garbage = async |sequence: u64| {
        let jobs = jetstream.get_stream("HOOKGATE_JOBS").await.unwrap();
        let subject = jobs.get_raw_message(sequence).await.unwrap().subject;
        jetstream.publish(subject, "garbage".into()).await.unwrap().await.unwrap();
    };
    for id in ["waiting", "delivered"] {
        enqueue(&*queue, delivery(id)).await;
    }
    let (first, second) = (lease(&*queue, "app").await, lease(&*queue, "app").await);
    assert_eq!((&*id_of(&first), &*id_of(&second)), ("waiting", "delivered"));
    let failed = attempt(&first, 503);
    first.retry(Duration::from_secs(1), failed).await.unwrap();
    garbage(1).await;
    ack(second).await;
    garbage(3).await;
    // The look at all records after a connection may come before the job is brought again.
    let made = deliver_all(&*queue, Duration::from_secs(5)).await;
    assert!(made.is_empty() || made == ["waiting"], "{made:?}");
    let states = async |queue: &dyn Queue| {
        all(queue).await.into_iter().map(|it| (it.delivery_id, it.state, it.death)).collect::<Vec<_>>()
    };
    let dead = |id: &str| (id.to_owned(), State::Dead, Some(Death::Damaged));
    let first =
        if made.is_empty() { dead("waiting") } else { ("waiting".to_owned(), State::Delivered, None) };
    let set_aside = [dead("delivered"), first];
    let count = if made.is_empty() { 2 } else { 1 };
    assert_eq!(states(&*queue).await, set_aside);
    queue.close().await.unwrap();
    let queue = opened(&settings(&server.url()));
    is_ready(&*queue).await;
    eventually("it is counted", async || depth(&*queue, "app").await.dead == count).await;
    assert_eq!(states(&*queue).await, set_aside);
    assert_eq!(deliver_all(&*queue, Duration::from_millis(300)).await, [""; 0]);
    assert_eq!(queue.redeliver(&Filter { states: vec![State::Dead], ..Filter::default() }).await, Ok(count));
    let mut again = deliver_all(&*queue, Duration::from_secs(3)).await;
    again.sort();
    assert_eq!(again, if made.is_empty() { vec!["delivered", "waiting"] } else { vec!["delivered"] });
}

/// Some records only are purged, of what ended long ago: nothing says any more how that ended, so it is made again.
#[tokio::test]
async fn records_that_are_purged_one_by_one_are_missed() {
    let mut server = NatsServer::start();
    let queue = ready(&server, Retention::default(), WINDOW).await;
    enqueue(&*queue, delivery("dead")).await;
    kill(lease(&*queue, "app").await).await;
    some(&*queue, "after", 5).await;
    let jobs = jetstream(&server).await.get_stream("HOOKGATE_JOBS").await.unwrap();
    // The first one is its mark.
    let record = jobs.get_raw_message(2).await.unwrap();
    jobs.purge().filter(record.subject.to_string()).await.unwrap();
    server.restart();
    is_ready(&*queue).await;
    assert_eq!(id_of(&lease(&*queue, "app").await), "dead");
}

async fn refusal(queue: &dyn Queue) -> String {
    is_not_ready(queue).await;
    let health = queue.health();
    eventually(
        "the reason is that of the stream",
        async || matches!(&*health.borrow(), Health::NotReady(why) if why.contains("the stream HOOKGATE")),
    )
    .await;
    let Health::NotReady(why) = health.borrow().clone() else { panic!() };
    why
}

/// A stream that would drop what waits is refused, with what must be changed; and taken when it is changed.
#[tokio::test]
async fn streams_that_would_drop_something_are_refused() {
    let deliveries = Config {
        name: "HOOKGATE".to_owned(),
        subjects: vec!["HOOKGATE.d.>".to_owned()],
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    type Change = fn(&mut Config);
    let changed: &[(Change, &str)] = &[
        (|it| (it.discard, it.max_messages) = (DiscardPolicy::Old, 5), "--discard=new --max-msgs=-1"),
        (|it| it.max_messages_per_subject = 1, "--max-msgs-per-subject=-1"),
        (|it| it.max_age = Duration::from_secs(3600), "--max-age=0"),
        (|it| it.max_message_size = 100, "--max-msg-size=-1"),
    ];
    for (change, option) in changed {
        let server = NatsServer::start();
        let jetstream = jetstream(&server).await;
        let mut config = deliveries.clone();
        change(&mut config);
        jetstream.create_stream(&config).await.unwrap();
        let queue = opened(&settings(&server.url()));
        let why = refusal(&*queue).await;
        assert!(why.contains(&format!("nats stream edit HOOKGATE {option}")), "{why}");
        assert!(queue.enqueue(delivery("a")).await.is_err());
        jetstream.update_stream(&deliveries).await.unwrap();
        is_ready(&*queue).await;
        enqueue(&*queue, delivery("a")).await;
        // While it runs, too.
        jetstream.update_stream(&config).await.unwrap();
        assert_eq!(refusal(&*queue).await, why);
        assert!(queue.enqueue(delivery("b")).await.is_err());
        jetstream.update_stream(&deliveries).await.unwrap();
        is_ready(&*queue).await;
        some(&*queue, "c", 1).await;
    }
    let fixed: &[(Change, &str)] = &[
        (|it| it.retention = RetentionPolicy::Interest, "interest"),
        (|it| it.retention = RetentionPolicy::WorkQueue, "work queue"),
        (|it| it.storage = StorageType::Memory, "memory"),
        (|it| it.deny_delete = true, "denies"),
        (
            |it| {
                it.subjects = Vec::new();
                it.mirror = Some(Source { name: "ELSEWHERE".to_owned(), ..Source::default() });
            },
            "not hookgate's",
        ),
    ];
    for (change, word) in fixed {
        let server = NatsServer::start();
        let jetstream = jetstream(&server).await;
        let elsewhere = Config { name: "ELSEWHERE".to_owned(), ..Config::default() };
        jetstream.create_stream(elsewhere).await.unwrap();
        let mut config = deliveries.clone();
        change(&mut config);
        jetstream.create_stream(&config).await.unwrap();
        let queue = opened(&settings(&server.url()));
        let why = refusal(&*queue).await;
        assert!(why.contains(word) && why.contains("nats stream rm HOOKGATE"), "{why}");
        jetstream.delete_stream("HOOKGATE").await.unwrap();
        is_ready(&*queue).await;
        some(&*queue, "a", 1).await;
    }
}

/// How many requests of this subject the server gets from now on that have this text in them.
async fn requests(
    server: &NatsServer,
    subject: &str,
    text: &'static str,
    tasks: &mut JoinSet<()>,
) -> Arc<AtomicUsize> {
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut heard = client.subscribe(subject.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tasks.spawn(async move {
        while let Some(message) = heard.next().await {
            if String::from_utf8_lossy(&message.payload).contains(text) {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
        drop(client);
    });
    count
}

/// What has not changed is not counted again, and what waits is not looked for among all that is over.
#[tokio::test]
async fn dead_letters_cost_nothing_when_nothing_happens() {
    const DEAD: usize = 200;

    let server = NatsServer::start();
    let queue = ready(&server, Retention::default(), WINDOW).await;
    for n in 0..DEAD {
        enqueue(&*queue, delivery(&n.to_string())).await;
    }
    for _ in 0..DEAD {
        kill(lease(&*queue, "app").await).await;
    }
    enqueue(&*queue, delivery("waiting")).await;
    eventually("they are counted", async || depth(&*queue, "app").await.dead == 200).await;
    // What the server has not heard yet is still to be counted.
    let stream = jetstream(&server).await.get_stream("HOOKGATE").await.unwrap();
    eventually("the dead are done with", async || {
        let consumer = stream.consumer_info("esc~app").await.unwrap();
        consumer.ack_floor.stream_sequence == 200
    })
    .await;
    depth(&*queue, "app").await;
    let mut tasks = JoinSet::new();
    let counts = requests(&server, "$JS.API.STREAM.INFO.HOOKGATE_JOBS", "subjects_filter", &mut tasks).await;
    let scans = requests(&server, "$JS.API.CONSUMER.CREATE.>", "", &mut tasks).await;
    for _ in 0..5 {
        assert_eq!(depth(&*queue, "app").await.dead, 200);
    }
    let gets = requests(&server, "$JS.API.DIRECT.GET.HOOKGATE_JOBS.>", "", &mut tasks).await;
    let waiting = Filter { states: vec![State::Waiting], ..Filter::default() };
    assert_eq!(queue.list(&waiting, 1000).await.unwrap().len(), 1);
    let [counts, scans, gets] = [counts, scans, gets].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(counts, 0, "marks were listed");
    assert!(scans <= 2, "{scans} scans");
    assert!(gets < 20, "{gets} records were read");
    assert_eq!(queue.purge(&Filter { states: vec![State::Dead], ..Filter::default() }).await, Ok(200));
    assert_eq!(depth(&*queue, "app").await.dead, 0);
    until(&*queue, |health| *health == Health::Ready).await;
}
