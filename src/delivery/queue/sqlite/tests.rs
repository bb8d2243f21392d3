//! What is this engine's own: the file, its faults, retention and space. What both engines promise is held by their
//! contract test.

use bytes::Bytes;
use hyper::header::HeaderValue;

use std::{fs, time::SystemTime};

use super::*;
use crate::delivery::destination::{MediaType, Parcel};
use crate::delivery::queue::Depth;

/// A folder of its own for each test, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("hookgate-queue-{:016x}", fastrand::u64(..)));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn queue(&self) -> PathBuf {
        self.0.join("queue.db")
    }

    fn open(&self) -> Sqlite {
        self.open_with(Retention::default())
    }

    fn open_with(&self, retention: Retention) -> Sqlite {
        Sqlite::open(&self.queue(), retention, Duration::from_secs(120)).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn delivery(id: &str, size: usize) -> Delivery {
    let header = |text: &str| HeaderValue::from_str(text).unwrap();
    Delivery {
        webhook: "esc".into(),
        parcel: Parcel {
            body: Bytes::from(format!("{id:size$}")),
            content_type: MediaType::Json,
            id: header(id),
            kind: header("environment"),
            signature: header("00"),
            event: header("environment_created"),
            kind_verified: true,
            traceparent: header("00-1-1-01"),
        },
        environment: Some("website/prod".into()),
        revision: None,
        destinations: vec![("app".into(), Policy::default())],
    }
}

fn app() -> Recipient {
    Recipient { webhook: "esc".into(), destination: "app".into() }
}

fn attempt(number: u32) -> Attempt {
    Attempt {
        number,
        at: SystemTime::now(),
        duration: Duration::from_millis(3),
        status: Some(200),
        error: None,
        answer: Bytes::from_static(b"ok"),
    }
}

async fn deliver_all(queue: &Sqlite, count: usize) {
    for _ in 0..count {
        for lease in queue.lease(&app(), Policy::default(), 1).await.unwrap() {
            let number = lease.job().attempts_ever + 1;
            lease.ack(attempt(number)).await.unwrap();
        }
    }
}

async fn states(queue: &Sqlite) -> Vec<State> {
    let records = Queue::list(queue, &Filter::default(), 1000).await.unwrap();
    records.iter().map(|record| record.state).collect()
}

/// Waits for what the threads of the engine do by themselves.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(Duration::from_secs(20), looking).await.is_ok(), "waited in vain: {what}");
}

#[tokio::test]
async fn a_file_that_another_program_has_locked_is_refused_as_that() {
    let folder = Folder::new();
    let queue = folder.open();
    queue.close().await.unwrap();
    drop(queue);
    let other = Connection::open(folder.queue()).unwrap();
    other.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    let refused = Sqlite::open(&folder.queue(), Retention::default(), Duration::ZERO);
    assert!(matches!(refused, Err(OpenError::Locked { .. })), "{refused:?}");
    drop(other);
    folder.open();
}

#[tokio::test]
async fn a_file_is_for_one_service_and_lives_on() {
    let folder = Folder::new();
    let queue = folder.open();
    assert_eq!(queue.enqueue(delivery("a", 10)).await, Ok(Enqueued::Queued));
    let link = folder.0.join("link.db");
    std::os::unix::fs::symlink(folder.queue(), &link).unwrap();
    let other = folder.0.join("other.db");
    fs::hard_link(folder.queue(), &other).unwrap();
    for path in [folder.queue(), link, other] {
        let second = Sqlite::open_within(Duration::ZERO, &path, Retention::default(), Duration::ZERO);
        let process = format!("process {}", std::process::id());
        assert!(matches!(&second, Err(OpenError::InUse { by, .. }) if by.contains(&process)), "{second:?}");
    }
    queue.close().await.unwrap();
    drop(queue);
    let queue = folder.open();
    assert_eq!(queue.enqueue(delivery("a", 10)).await, Ok(Enqueued::Duplicate));
    deliver_all(&queue, 1).await;
    assert_eq!(states(&queue).await, [State::Delivered]);
}

#[tokio::test]
async fn what_is_not_a_good_queue_is_refused_and_left_alone() {
    let folder = Folder::new();
    let refused = |expected: &str| {
        let before = fs::read(folder.queue()).unwrap();
        let error = Sqlite::open(&folder.queue(), Retention::default(), Duration::ZERO).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        assert!(text.contains(folder.queue().to_str().unwrap()), "{text}");
        assert!(fs::read(folder.queue()).unwrap() == before, "the file was touched");
    };
    fs::write(folder.queue(), b"this is no database, and has never been one").unwrap();
    refused("is damaged");
    fs::remove_file(folder.queue()).unwrap();

    Connection::open(folder.queue()).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    refused("not hookgate's queue");
    fs::remove_file(folder.queue()).unwrap();

    drop(folder.open());
    until("the threads have ended", async || {
        let connection = Connection::open(folder.queue()).unwrap();
        connection.execute_batch("PRAGMA user_version = 99; PRAGMA journal_mode = DELETE").is_ok()
    })
    .await;
    refused("newer");
    for unreleased in [1, 2] {
        let connection = Connection::open(folder.queue()).unwrap();
        connection.execute_batch(&format!("PRAGMA user_version = {unreleased}")).unwrap();
        drop(connection);
        refused("before the first release");
    }
    fs::remove_file(folder.queue()).unwrap();

    let queue = folder.open();
    for number in 0..200 {
        queue.enqueue(delivery(&format!("{number}"), 900)).await.unwrap();
    }
    queue.close().await.unwrap();
    drop(queue);
    until("the threads have ended", async || {
        Connection::open(folder.queue())
            .unwrap()
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = DELETE")
            .is_ok()
    })
    .await;
    let mut bytes = fs::read(folder.queue()).unwrap();
    // The middle of the file, where pages of tables and indexes are.
    let middle = bytes.len() / 2;
    bytes[middle..middle + 20_000].fill(0xa5);
    fs::write(folder.queue(), bytes).unwrap();
    refused("is damaged");

    let absent = Sqlite::open(Path::new("/nowhere/queue.db"), Retention::default(), Duration::ZERO);
    assert!(matches!(absent, Err(OpenError::Unusable { .. })), "{absent:?}");
}

#[tokio::test]
async fn finished_jobs_go_after_their_time_and_the_space_comes_back() {
    let folder = Folder::new();
    let retention = Retention {
        retain: Duration::from_millis(1),
        dead_retain: Duration::from_secs(3600),
        max_bytes: 1 << 30,
    };
    let queue = folder.open_with(retention);
    for number in 0..300 {
        queue.enqueue(delivery(&format!("{number}"), 20_000)).await.unwrap();
    }
    let full = fs::metadata(folder.queue()).unwrap().len() + place::log_length(&folder.queue());
    assert!(full > 6_000_000, "{full}");
    let before = queue.stock().await.unwrap();
    assert_eq!(before.depths.iter().map(|(_, depth)| depth.waiting).sum::<u64>(), 300);
    deliver_all(&queue, 300).await;
    until("they are forgotten", async || states(&queue).await.is_empty()).await;
    until("the file has shrunk", async || fs::metadata(folder.queue()).unwrap().len() < 1_000_000).await;
    assert_eq!(queue.stock().await.unwrap().dead_dropped, 0);
}

#[tokio::test]
async fn old_dead_letters_are_dropped_and_counted() {
    let folder = Folder::new();
    let queue = folder.open_with(Retention { dead_retain: Duration::from_millis(1), ..Retention::default() });
    queue.enqueue(delivery("a", 10)).await.unwrap();
    let lease = queue.lease(&app(), Policy::default(), 1).await.unwrap().remove(0);
    lease.dead_letter(crate::delivery::queue::Death::Refused, Some(attempt(1))).await.unwrap();
    until("it is dropped", async || queue.stock().await.unwrap().dead_dropped == 1).await;
    assert_eq!(states(&queue).await, []);
    assert_eq!(queue.stock().await.unwrap().depths, [(app(), Depth::default())]);
}

#[tokio::test]
async fn a_full_store_takes_no_more_until_something_is_finished() {
    let folder = Folder::new();
    let queue = folder.open_with(Retention { max_bytes: 1 << 20, ..Retention::default() });
    let mut accepted = 0;
    let refused = loop {
        match queue.enqueue(delivery(&format!("{accepted}"), 20_000)).await {
            Ok(Enqueued::Queued) => accepted += 1,
            other => break other,
        }
        assert!(accepted < 100);
    };
    assert_eq!(refused, Err(QueueError::Full));
    assert!(accepted > 30, "{accepted}");
    assert!(matches!(&*queue.health().borrow(), Health::NotReady(why) if why.contains("max_bytes")));
    assert_eq!(states(&queue).await.len(), accepted, "nothing that was accepted may go");
    // A finished one makes room, although `retain` has not passed.
    deliver_all(&queue, 3).await;
    assert_eq!(queue.enqueue(delivery("late", 20_000)).await, Ok(Enqueued::Queued));
    assert_eq!(*queue.health().borrow(), Health::Ready);
    assert!(!states(&queue).await.contains(&State::Delivered));
}

#[tokio::test]
async fn a_file_that_was_removed_is_put_back_whole() {
    let folder = Folder::new();
    let queue = folder.open();
    queue.enqueue(delivery("a", 10)).await.unwrap();
    for entry in fs::read_dir(&folder.0).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(queue.enqueue(delivery("b", 10)).await, Ok(Enqueued::Queued));
    let seen: i64 = Connection::open(folder.queue())
        .unwrap()
        .query_row("SELECT count(*) FROM job", [], |row| row.get(0))
        .unwrap();
    assert_eq!(seen, 2);
    deliver_all(&queue, 2).await;
    assert_eq!(states(&queue).await, [State::Delivered, State::Delivered]);
}

#[tokio::test]
async fn a_file_that_was_replaced_is_neither_used_nor_overwritten() {
    let folder = Folder::new();
    let queue = folder.open();
    queue.enqueue(delivery("a", 10)).await.unwrap();
    let aside = folder.0.join("aside.db");
    fs::rename(folder.queue(), &aside).unwrap();
    fs::write(folder.queue(), b"another").unwrap();
    let refused = queue.enqueue(delivery("b", 10)).await;
    assert!(matches!(&refused, Err(QueueError::Unavailable(why)) if why.contains("replaced")), "{refused:?}");
    assert_eq!(fs::read(folder.queue()).unwrap(), b"another");
    fs::rename(&aside, folder.queue()).unwrap();
    assert_eq!(queue.enqueue(delivery("b", 10)).await, Ok(Enqueued::Queued));
    assert_eq!(*queue.health().borrow(), Health::Ready);
}

#[tokio::test]
async fn a_command_beside_the_service_is_noticed() {
    let folder = Folder::new();
    assert!(Sqlite::open_beside(&folder.queue()).is_err(), "there is no file yet");
    let queue = folder.open();
    queue.enqueue(delivery("a", 10)).await.unwrap();
    deliver_all(&queue, 1).await;
    let beside = Sqlite::open_beside(&folder.queue()).unwrap();
    let job = Queue::list(&beside, &Filter::default(), 10).await.unwrap().remove(0);
    let details = Queue::show(&beside, &job.id).await.unwrap().unwrap();
    assert_eq!((details.attempts.len(), details.parcel.body.len()), (1, 10));
    let waiting = async {
        let lease = queue.lease(&app(), Policy::default(), 1).await.unwrap().remove(0);
        assert_eq!((lease.job().attempts, lease.job().attempts_ever), (0, 1));
        lease.ack(attempt(2)).await.unwrap();
    };
    let told = async {
        let filter = Filter { ids: vec![job.id.0.clone()], ..Filter::default() };
        assert_eq!(Queue::redeliver(&beside, &filter).await, Ok(1));
    };
    assert!(timeout(Duration::from_secs(5), async { tokio::join!(waiting, told) }).await.is_ok());
    assert_eq!(Queue::purge(&beside, &Filter::default()).await, Ok(1));
    assert_eq!(states(&queue).await, []);
    until("the count is right", async || {
        queue.stock().await.unwrap().depths.iter().all(|(_, depth)| *depth == Depth::default())
    })
    .await;
}

/// A reload of the configuration gives up a lease that is being waited for.
#[tokio::test]
async fn jobs_go_back_when_nobody_waits_for_their_lease_any_more() {
    let folder = Folder::new();
    let queue = folder.open();
    assert_eq!(queue.enqueue(delivery("1", 10)).await, Ok(Enqueued::Queued));
    queue.arrange(&app(), false).await.unwrap();
    // Nothing is read before this is let go.
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let hold: Read = Box::new(move |_| assert!(gone.recv().is_err()));
    queue.reads.send(hold).await.unwrap();
    let (to, policy) = (app(), Policy::default());
    let mut given_up = Box::pin(queue.lease(&to, policy, 1));
    assert!(timeout(Duration::from_millis(20), &mut given_up).await.is_err());
    drop(given_up);
    drop(go);
    let leases = timeout(Duration::from_secs(20), queue.lease(&to, policy, 1)).await.unwrap().unwrap();
    assert_eq!(leases.len(), 1);
}

/// Whoever asks for a delivery by its ID does not wait for a million others to be read.
#[tokio::test]
async fn an_id_is_looked_up() {
    let folder = Folder::new();
    drop(folder.open());
    let connection = Connection::open(folder.queue()).unwrap();
    let filter = Filter { ids: vec!["0b5c64a1".into(), "1042-1".into()], ..Filter::default() };
    let (condition, values) = rows::condition(&filter, &Clock::read(&connection).unwrap());
    let sql = format!(
        "EXPLAIN QUERY PLAN SELECT {} FROM {} WHERE {condition} ORDER BY job.delivery DESC",
        rows::RECORD,
        rows::TABLES
    );
    let mut statement = connection.prepare(&sql).unwrap();
    let plan =
        statement.query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
    let plan = plan.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
    assert!(plan.contains("INDEX delivery_id (id=?)"), "{plan}");
    assert!(!plan.contains("SCAN job") && !plan.contains("SCAN delivery"), "{plan}");
}

#[tokio::test]
async fn the_number_of_one_that_is_gone_is_not_given_again() {
    let folder = Folder::new();
    let mut seen = Vec::new();
    for round in 0..3 {
        let queue = folder.open();
        for id in ["a", "b"] {
            let id = format!("{id}-{round}");
            assert_eq!(queue.enqueue(delivery(&id, 10)).await, Ok(Enqueued::Queued));
        }
        let records = Queue::list(&queue, &Filter::default(), 10).await.unwrap();
        seen.extend(records.into_iter().map(|record| record.id.0));
        assert_eq!(Queue::purge(&queue, &Filter::default()).await, Ok(2));
        queue.close().await.unwrap();
    }
    assert_eq!(seen, ["2-1", "1-1", "4-1", "3-1", "6-1", "5-1"]);
}

/// Those that were given back are older than those that were never leased, and redelivered ones are in line with both.
#[tokio::test]
async fn what_waits_for_longest_is_leased_first() {
    let folder = Folder::new();
    let queue = folder.open();
    let lease = async |max| queue.lease(&app(), Policy::default(), max).await.unwrap();
    let ids = |leases: &[Lease]| {
        leases.iter().map(|lease| lease.job().parcel.id.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for id in ["a", "b", "c", "d"] {
        assert_eq!(queue.enqueue(delivery(id, 10)).await, Ok(Enqueued::Queued));
    }
    let mut first = lease(3).await;
    assert_eq!(ids(&first), ["a", "b", "c"]);
    let oldest = async || queue.stock().await.unwrap().depths[0].1.oldest;
    assert!(oldest().await.is_some());
    first.remove(0).retry(Duration::ZERO, attempt(1)).await.unwrap();
    drop(first.pop());
    let second = lease(2).await;
    assert!(ids(&second).contains(&"c".to_owned()), "{:?}", ids(&second));
    drop((first, second));
    let mut all = ids(&lease(8).await);
    all.sort();
    assert_eq!(all, ["a", "b", "c", "d"]);
}
