//! The embedded engine keeps the contract. What is its own: the file, its faults, retention and space.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hookgate::delivery::queue::{
    Death, Delivery, Depth, Enqueued, Filter, Health, Lease, Policy, Queue, QueueError, Retention, State,
    sqlite::{OpenError, Sqlite, Why},
};
use rusqlite::Connection;
use tokio::time::timeout;

use super::contract::{self, Engine, attempt, eventually as until, recipient, stored};
use crate::support::{Instant, PATIENCE, TempDir, eventually};

mod contract_of_all {
    crate::engines::contract::hold!(crate::support::TempDir::new());
}

mod policies {
    crate::engines::policies::hold!(crate::support::TempDir::new());
}

impl Engine for TempDir {
    fn open(&self, retention: Retention, window: Duration) -> Arc<dyn Queue> {
        let path = self.path().join("queue.db");
        // The threads of one that was dropped let go of the file somewhat later.
        Arc::new(eventually("the file is free", || Sqlite::open(&path, retention, window).ok()))
    }
}

#[test]
fn random_operations_end_as_the_model_says() {
    super::model::hold(60, true, TempDir::new);
}

/// A folder of its own for each test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn queue(&self) -> PathBuf {
        self.file("queue.db")
    }

    fn open(&self) -> Sqlite {
        self.open_with(Retention::default())
    }

    fn open_with(&self, retention: Retention) -> Sqlite {
        Sqlite::open(&self.queue(), retention, Duration::from_secs(120)).unwrap()
    }
}

/// A delivery of a certain size.
pub(super) fn delivery(id: &str, size: usize) -> Delivery {
    let mut delivery = contract::delivery(id);
    delivery.parcel.body = stored(id.bytes().chain(std::iter::repeat(b' ')).take(size).collect::<Vec<u8>>());
    delivery
}

async fn take(queue: &Sqlite, max: usize) -> Vec<Lease> {
    timeout(PATIENCE, queue.lease(&recipient("app"), Policy::default(), max)).await.unwrap().unwrap()
}

async fn deliver_all(queue: &Sqlite, count: usize) {
    for _ in 0..count {
        for lease in take(queue, 1).await {
            let attempt = attempt(&lease, 200);
            lease.ack(attempt).await.unwrap();
        }
    }
}

async fn states(queue: &Sqlite) -> Vec<State> {
    let records = queue.list(&Filter::default(), 1000).await.unwrap();
    records.iter().map(|record| record.state).collect()
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
    assert!(matches!(&refused, Err(error) if matches!(error.why, Why::Locked(_))), "{refused:?}");
    drop(other);
    folder.open();
}

#[tokio::test]
async fn a_file_is_for_one_service_and_lives_on() {
    let folder = Folder::new();
    let queue = folder.open();
    assert_eq!(queue.enqueue(delivery("a", 10)).await, Ok(Enqueued::Queued));
    let link = folder.file("link.db");
    std::os::unix::fs::symlink(folder.queue(), &link).unwrap();
    let other = folder.file("other.db");
    fs::hard_link(folder.queue(), &other).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for path in [folder.queue(), link, other] {
            scope.spawn(move || {
                let second = Sqlite::open(&path, Retention::default(), Duration::ZERO);
                let process = format!("process {}", std::process::id());
                assert!(
                    matches!(&second, Err(OpenError { why: Why::InUse(by), .. }) if by.contains(&process)),
                    "{second:?}"
                );
            });
        }
    });
    assert!(began.elapsed() >= Duration::from_secs(10), "the end of the first is waited for");
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
    fs::write(folder.queue(), b"this is not a database, and has never been one").unwrap();
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
    for unreleased in [1, 2, 3] {
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
    assert!(matches!(&absent, Err(error) if matches!(error.why, Why::Unusable(_))), "{absent:?}");
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
    let full = fs::metadata(folder.queue()).unwrap().len()
        + fs::metadata(folder.file("queue.db-wal")).unwrap().len();
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
    let lease = queue.lease(&recipient("app"), Policy::default(), 1).await.unwrap().remove(0);
    let failed = attempt(&lease, 400);
    lease.dead_letter(Death::Refused, Some(failed)).await.unwrap();
    until("it is dropped", async || queue.stock().await.unwrap().dead_dropped == 1).await;
    assert_eq!(states(&queue).await, []);
    assert_eq!(queue.stock().await.unwrap().depths, [(recipient("app"), Depth::default())]);
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
    for entry in fs::read_dir(folder.0.path()).unwrap() {
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
    let aside = folder.file("aside.db");
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
    let job = beside.list(&Filter::default(), 10).await.unwrap().remove(0);
    let details = beside.show(&job.id).await.unwrap().unwrap();
    assert_eq!((details.attempts.len(), details.parcel.body.bytes().len()), (1, 10));
    let waiting = async {
        let lease = queue.lease(&recipient("app"), Policy::default(), 1).await.unwrap().remove(0);
        assert_eq!((lease.job().attempts, lease.job().attempts_ever), (0, 1));
        let attempt = attempt(&lease, 200);
        lease.ack(attempt).await.unwrap();
    };
    let told = async {
        let filter = Filter { ids: vec![job.id.0.clone()], ..Filter::default() };
        assert_eq!(beside.redeliver(&filter).await, Ok(1));
    };
    assert!(timeout(Duration::from_secs(5), async { tokio::join!(waiting, told) }).await.is_ok());
    assert_eq!(beside.purge(&Filter::default()).await, Ok(1));
    assert_eq!(states(&queue).await, []);
    until("the count is right", async || {
        queue.stock().await.unwrap().depths.iter().all(|(_, depth)| *depth == Depth::default())
    })
    .await;
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
        let records = queue.list(&Filter::default(), 10).await.unwrap();
        seen.extend(records.into_iter().map(|record| record.id.0));
        assert_eq!(queue.purge(&Filter::default()).await, Ok(2));
        queue.close().await.unwrap();
    }
    assert_eq!(seen, ["2-1", "1-1", "4-1", "3-1", "6-1", "5-1"]);
}

/// Those that were given back are older than those that were never leased, and redelivered ones are in line with both.
#[tokio::test]
async fn what_waits_for_longest_is_leased_first() {
    let folder = Folder::new();
    let queue = folder.open();
    let lease = async |max| take(&queue, max).await;
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
    let failing = first.remove(0);
    let failed = attempt(&failing, 503);
    failing.retry(Duration::ZERO, failed).await.unwrap();
    drop(first.pop());
    let second = lease(2).await;
    assert!(ids(&second).contains(&"c".to_owned()), "{:?}", ids(&second));
    drop((first, second));
    let mut all = ids(&lease(8).await);
    all.sort();
    assert_eq!(all, ["a", "b", "c", "d"]);
}

/// The wait for a disk and more cannot be told from a service that goes on. So the other one waits, and then has it.
#[tokio::test]
async fn a_second_service_waits_for_the_first_to_end() {
    let folder = Folder::new();
    let queue = folder.open();
    queue.enqueue(delivery("a", 10)).await.unwrap();
    let path = folder.queue();
    let second =
        std::thread::spawn(move || Sqlite::open(&path, Retention::default(), Duration::from_secs(120)));
    std::thread::park_timeout(Duration::from_millis(300));
    assert!(!second.is_finished());
    queue.close().await.unwrap();
    let queue = second.join().unwrap().unwrap();
    deliver_all(&queue, 1).await;
}

#[tokio::test]
async fn a_clean_stop_leaves_one_file_that_is_whole_and_private() {
    let folder = Folder::new();
    let queue = folder.open();
    for n in 0..200 {
        queue.enqueue(delivery(&n.to_string(), 1000)).await.unwrap();
    }
    let mode = |name| fs::metadata(folder.file(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(["queue.db", "queue.db-wal", "queue.db-shm"].map(mode), [0o600; 3]);
    queue.close().await.unwrap();
    let left: Vec<_> = fs::read_dir(folder.0.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["queue.db"]);
    // Elsewhere, and in its own place in the stead of one that went on.
    let backup = folder.file("backup.db");
    fs::copy(folder.queue(), &backup).unwrap();
    let queue = folder.open();
    deliver_all(&queue, 150).await;
    queue.close().await.unwrap();
    fs::copy(&backup, folder.queue()).unwrap();
    let queue = folder.open();
    assert_eq!(states(&queue).await, [State::Waiting; 200]);
    deliver_all(&queue, 200).await;
    queue.close().await.unwrap();
}

/// A copy without its log is not a new queue.
#[tokio::test]
async fn a_database_without_content_is_refused() {
    let folder = Folder::new();
    let connection = Connection::open(folder.queue()).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE x (y)").unwrap();
    fs::copy(folder.queue(), folder.file("copy.db")).unwrap();
    let refused = Sqlite::open(&folder.file("copy.db"), Retention::default(), Duration::ZERO);
    assert!(matches!(&refused, Err(error) if matches!(error.why, Why::Hollow)), "{refused:?}");
    // Ours is never like this, not even before its first clean stop.
    let path = folder.file("new.db");
    let queue = Sqlite::open(&path, Retention::default(), Duration::ZERO).unwrap();
    queue.enqueue(delivery("a", 10)).await.unwrap();
    fs::copy(&path, folder.file("copy-of-new.db")).unwrap();
    Sqlite::open(&folder.file("copy-of-new.db"), Retention::default(), Duration::ZERO).unwrap();
}

#[tokio::test]
async fn a_log_that_was_removed_is_put_back_with_its_file() {
    for name in ["queue.db-wal", "queue.db-shm", "queue.db"] {
        let folder = Folder::new();
        let queue = folder.open();
        queue.enqueue(delivery("a", 10)).await.unwrap();
        fs::remove_file(folder.file(name)).unwrap();
        queue.enqueue(delivery("b", 10)).await.unwrap();
        // As after a kill: nobody has it open, and nothing is closed.
        for suffix in ["", "-wal", "-shm"] {
            let from = folder.file(&format!("queue.db{suffix}"));
            fs::copy(from, folder.file(&format!("copy.db{suffix}"))).unwrap();
        }
        let copy = Sqlite::open(&folder.file("copy.db"), Retention::default(), Duration::ZERO).unwrap();
        assert_eq!(states(&copy).await, [State::Waiting, State::Waiting], "{name}");
        assert_eq!(*queue.health().borrow(), Health::Ready);
        deliver_all(&queue, 2).await;
    }
}
