//! What can only be seen from inside. The rest is in `tests/it/engines`.

use std::fs;

use bytes::Bytes;
use hyper::header::HeaderValue;

use super::*;
use crate::delivery::parcel::{Facts, MediaType, Parcel, VerifiedBody};

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
        Sqlite::open(&self.queue(), Retention::default(), Duration::from_secs(120)).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn delivery(id: &str) -> Delivery {
    let header = |text: &str| HeaderValue::from_str(text).unwrap();
    Delivery {
        webhook: "esc".into(),
        parcel: Parcel {
            body: VerifiedBody::stored(Bytes::from(id.to_owned())),
            content_type: MediaType::Json,
            id: header(id),
            kind: header("environment"),
            signature: header("00"),
            event: header("environment_created"),
            kind_verified: true,
            traceparent: header("00-1-1-01"),
            received: std::time::UNIX_EPOCH,
        },
        environment: None,
        revision: None,
        facts: Facts::default(),
        destinations: vec![("app".into(), Policy::default())],
    }
}

fn app() -> Recipient {
    Recipient { webhook: "esc".into(), destination: "app".into() }
}

/// A reload of the configuration gives up a lease that is being waited for.
#[tokio::test]
async fn jobs_go_back_when_nobody_waits_for_their_lease_any_more() {
    let folder = Folder::new();
    let queue = folder.open();
    assert_eq!(queue.enqueue(delivery("1")).await, Ok(Enqueued::Queued));
    queue.arrange(&app(), false).await.unwrap();
    // Nothing is read before this is let go.
    let (go, gone) = channel::<()>();
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
