//! What is in the file of the embedded engine: history that makes room, IDs that stay, rows that cannot be read.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hookgate::delivery::queue::{
    Death, Enqueued, Filter, Health, Policy, Queue, QueueError, Retention, State, sqlite::Sqlite,
};
use rusqlite::Connection;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use super::{
    contract::{ack, all, attempt, eventually, lease, ready, recipient, stored, to},
    sqlite::delivery,
};
use crate::support::{PATIENCE, TempDir};

const WINDOW: Duration = Duration::from_secs(120);

/// Several senders and a worker at the steady state: the file is full of what is done.
#[tokio::test]
async fn a_store_full_of_history_refuses_nothing() {
    let folder = TempDir::new();
    let retention = Retention { max_bytes: 2 << 20, ..Retention::default() };
    let queue = ready(&folder, retention, Duration::from_millis(500)).await;
    let mut health = queue.health();
    health.mark_unchanged();
    // So much waits at most: there is always history that can go.
    let waiting = Arc::new(Semaphore::new(40));
    let work = async {
        let mut done = 0;
        while done < 1500 {
            let mut settling = JoinSet::new();
            for lease in queue.lease(&recipient("app"), Policy::default(), 16).await.unwrap() {
                let attempt = attempt(&lease, 200);
                settling.spawn(lease.ack(attempt));
                done += 1;
            }
            while let Some(settled) = settling.join_next().await {
                settled.unwrap().unwrap();
                waiting.add_permits(1);
            }
        }
    };
    let mut senders = JoinSet::new();
    for sender in 0..6 {
        let (queue, waiting) = (Arc::clone(&queue), Arc::clone(&waiting));
        senders.spawn(async move {
            for n in 0..250 {
                waiting.acquire().await.unwrap().forget();
                let size = [1_000, 8_000, 20_000][n % 3];
                assert_eq!(
                    queue.enqueue(delivery(&format!("{sender}-{n}"), size)).await,
                    Ok(Enqueued::Queued)
                );
            }
        });
    }
    tokio::join!(work, senders.join_all());
    assert!(!health.has_changed().unwrap(), "{:?}", *health.borrow());
    assert!(queue.stock().await.unwrap().bytes <= retention.max_bytes);
}

/// In a store that is full, what was delivered is known all the same.
#[tokio::test]
async fn a_full_store_knows_what_was_delivered() {
    let folder = TempDir::new();
    let retention = Retention { max_bytes: 2 << 20, ..Retention::default() };
    let queue = ready(&folder, retention, WINDOW).await;
    let began = SystemTime::now();
    for n in 0..200 {
        assert_eq!(queue.enqueue(delivery(&n.to_string(), 20_000)).await, Ok(Enqueued::Queued));
        ack(lease(&*queue, "app").await).await;
    }
    assert!(all(&*queue).await.len() < 120);
    for n in 0..200 {
        let (same, other) = (delivery(&n.to_string(), 20_000), delivery(&n.to_string(), 20_001));
        let answers = (queue.enqueue(same).await, queue.enqueue(other).await);
        assert!(began.elapsed().unwrap() < WINDOW, "the machine is too slow for this");
        assert_eq!(answers, (Ok(Enqueued::Duplicate), Ok(Enqueued::Conflict)), "{n}");
    }
}

/// Nothing of them stays, whoever purges: with the window, their IDs go too.
#[tokio::test]
async fn what_a_command_purges_leaves_nothing() {
    let folder = TempDir::new();
    let window = Duration::from_secs(3);
    let queue = ready(&folder, Retention::default(), window).await;
    for n in 0..50 {
        queue.enqueue(delivery(&n.to_string(), 100)).await.unwrap();
        let lease = lease(&*queue, "app").await;
        let attempt = attempt(&lease, 200);
        lease.ack(attempt).await.unwrap();
    }
    let path = folder.path().join("queue.db");
    let beside = Sqlite::open_beside(&path).unwrap();
    assert_eq!(beside.purge(&Filter::default()).await, Ok(50));
    // The command knows the window of the service.
    assert_eq!(queue.enqueue(delivery("49", 100)).await, Ok(Enqueued::Duplicate));
    let reader = Connection::open(&path).unwrap();
    let rows = |table: &str| -> i64 {
        reader.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!(["delivery", "job", "attempt"].map(rows), [0; 3]);
    eventually("the IDs go", async || rows("known") == 0).await;
}

/// Damages the file, which nobody has open.
fn damage(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn rows_that_cannot_be_read_hold_up_nobody() {
    let folder = TempDir::new();
    let path = folder.path().join("queue.db");
    let queue = ready(&folder, Retention::default(), WINDOW).await;
    let ordered = [("app", Policy { in_order: true, coalesce: None })];
    for n in 0..6 {
        queue.enqueue(to(delivery(&n.to_string(), 100), &ordered)).await.unwrap();
    }
    queue.close().await.unwrap();
    damage(
        &path,
        "DELETE FROM delivery WHERE number = 1; UPDATE delivery SET signature = x'00' WHERE number = 3",
    );
    let queue = ready(&folder, Retention::default(), WINDOW).await;
    let (mut delivered, to_app) = (Vec::new(), recipient("app"));
    while delivered.len() < 4 {
        let waiting = queue.lease(&to_app, ordered[0].1, 10);
        for lease in timeout(PATIENCE, waiting).await.unwrap().unwrap() {
            delivered.push(lease.job().parcel.id.to_str().unwrap().to_owned());
            ack(lease).await;
        }
    }
    assert_eq!(delivered, ["1", "3", "4", "5"]);
    let dead = Filter { states: vec![State::Dead], ..Filter::default() };
    let dead = queue.list(&dead, 10).await.unwrap();
    let reasons: Vec<_> = dead.iter().map(|record| (record.id.0.as_str(), record.death)).collect();
    assert_eq!(reasons, [("3-1", Some(Death::Damaged)), ("1-1", Some(Death::Damaged))]);
    let counts = queue.stock().await.unwrap().depths[0].1;
    assert_eq!((counts.waiting, counts.dead), (0, 2));
}

/// What was checked at the start may be damaged later, and large files are checked in part only.
#[tokio::test]
async fn a_body_that_is_damaged_while_the_file_is_open_holds_up_nobody() {
    let folder = TempDir::new();
    let path = folder.path().join("queue.db");
    let queue = ready(&folder, Retention::default(), WINDOW).await;
    for id in ["aaaa", "bbbb", "cccc"] {
        let mut delivery = delivery(id, 0);
        delivery.parcel.body = stored(id.repeat(10_000));
        queue.enqueue(delivery).await.unwrap();
    }
    Connection::open(&path).unwrap().query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    // The pages in the middle of its body, with the numbers of those that follow them.
    let (bytes, body) = (fs::read(&path).unwrap(), b"bbbb".repeat(1000));
    let at = bytes.windows(body.len()).position(|part| part == body).unwrap() / 4096 * 4096;
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0xa5; 4 * 4096], u64::try_from(at + 4096).unwrap()).unwrap();
    let (mut delivered, to_app) = (Vec::new(), recipient("app"));
    while delivered.len() < 2 {
        let waiting = queue.lease(&to_app, Policy::default(), 10);
        for lease in timeout(PATIENCE, waiting).await.unwrap().unwrap() {
            delivered.push(lease.job().parcel.id.to_str().unwrap().to_owned());
            ack(lease).await;
        }
    }
    assert_eq!(delivered, ["aaaa", "cccc"]);
    let dead = Filter { states: vec![State::Dead], ..Filter::default() };
    eventually("it is among the dead letters", async || {
        let dead = queue.list(&dead, 10).await.unwrap();
        dead.iter().map(|record| record.death).eq([Some(Death::Damaged)])
    })
    .await;
}

/// Neither a start nor a policy that is as before rewrites what waits.
#[tokio::test]
async fn a_start_rewrites_nothing() {
    let folder = TempDir::new();
    let ordered = Policy { in_order: true, coalesce: None };
    let queue = ready(&folder, Retention::default(), WINDOW).await;
    let mut senders = JoinSet::new();
    for n in 0..3000 {
        let queue = Arc::clone(&queue);
        let delivery = to(delivery(&n.to_string(), 10), &[("app", ordered)]);
        senders.spawn(async move { queue.enqueue(delivery).await });
    }
    assert!(senders.join_all().await.iter().all(Result::is_ok));
    queue.close().await.unwrap();
    let queue = ready(&folder, Retention::default(), WINDOW).await;
    assert_eq!(queue.lease(&recipient("app"), ordered, 10).await.unwrap().len(), 1);
    let log = fs::metadata(folder.path().join("queue.db-wal")).unwrap().len();
    assert!(log < 50_000, "{log} bytes were written");
}

/// A reader that does not end keeps the log from being written back, which is counted.
#[tokio::test]
async fn the_log_is_counted() {
    let folder = TempDir::new();
    let queue = ready(&folder, Retention { max_bytes: 4 << 20, ..Retention::default() }, WINDOW).await;
    queue.enqueue(delivery("first", 100)).await.unwrap();
    let reader = Connection::open(folder.path().join("queue.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM job").unwrap();
    for n in 0..150 {
        queue.enqueue(delivery(&n.to_string(), 400_000)).await.unwrap();
        ack(lease(&*queue, "app").await).await;
    }
    let stock = queue.stock().await.unwrap();
    assert!(stock.bytes <= 4 << 20, "{stock:?}");
    assert!(stock.log_bytes > 50 << 20, "{stock:?}");
    drop(reader);
}

/// Only what waits cannot go: then it is full, and has room again as soon as something is done.
#[tokio::test]
async fn what_waits_fills_the_store_and_attempts_are_recorded_all_the_same() {
    let folder = TempDir::new();
    let queue = ready(&folder, Retention { max_bytes: 1 << 20, ..Retention::default() }, WINDOW).await;
    let mut count = 0;
    while queue.enqueue(delivery(&count.to_string(), 20_000)).await == Ok(Enqueued::Queued) {
        count += 1;
    }
    assert_eq!(queue.enqueue(delivery("more", 20_000)).await, Err(QueueError::Full));
    assert!(matches!(&*queue.health().borrow(), Health::NotReady(_)));
    for _ in 0..count {
        let lease = lease(&*queue, "app").await;
        let failed = attempt(&lease, 503);
        lease.retry(Duration::from_secs(60), failed).await.unwrap();
    }
    assert!(all(&*queue).await.iter().all(|record| record.attempts == 1));
}
