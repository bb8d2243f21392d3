//! The engine on NATS JetStream, with a real server: what the contract of all engines does not say.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hookgate::delivery::queue::{
    Enqueued, Filter, Health, Policy, Queue, QueueError, Retention, State,
    nats::{Nats, Settings, StartError},
};

use nkeys::KeyPair;
use serde_json::{Value, json};

use super::contract::{
    Engine, WINDOW, ack, all, delivery, enqueue, id_of, lease, ready, recipient, stored, until,
};
use crate::support::{
    Cut, Delivery as Sent, Hookgate, Instant, NatsServer, PATIENCE, Proxy, Reply, Setup, TempDir, Upstream,
    eventually, tls::Authority,
};

mod docs;
mod service;
mod streams;

mod contract {
    crate::engines::contract::hold!(crate::support::NatsServer::start());
}

#[test]
fn random_operations_end_as_the_model_says() {
    super::model::hold(5, false, NatsServer::start);
}

impl Engine for NatsServer {
    fn open(&self, retention: Retention, window: Duration) -> Arc<dyn Queue> {
        open(&settings(&self.url()), retention, window)
    }
}

fn settings(url: &str) -> Settings {
    Settings { url: url.to_owned(), stream: "HOOKGATE".to_owned(), credentials: None, ca: None, replicas: 1 }
}

fn open(settings: &Settings, retention: Retention, window: Duration) -> Arc<dyn Queue> {
    Arc::new(Nats::start(settings, retention, window, 1 << 20).unwrap())
}

fn opened(settings: &Settings) -> Arc<dyn Queue> {
    open(settings, Retention::default(), WINDOW)
}

async fn is_ready(queue: &dyn Queue) {
    let waited = tokio::time::timeout(PATIENCE, until(queue, |health| *health == Health::Ready)).await;
    waited.unwrap_or_else(|_| panic!("{:?}", queue.health().borrow().clone()));
}

async fn is_not_ready(queue: &dyn Queue) {
    let waited = tokio::time::timeout(PATIENCE, until(queue, |health| *health != Health::Ready));
    waited.await.expect("it is not ready");
}

/// Deliveries are refused, and not in more time than a sender waits.
async fn refuses_in_time(queue: &dyn Queue) {
    let began = Instant::now();
    let refused = queue.enqueue(delivery("refused")).await;
    assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_server_that_comes_later_is_found() {
    let mut server = NatsServer::stopped(TempDir::new(), "");
    let queue = opened(&settings(&server.url()));
    assert!(matches!(&*queue.health().borrow(), Health::NotReady(_)));
    refuses_in_time(&*queue).await;
    let recipient = recipient("app");
    let leases = queue.lease(&recipient, Policy::default(), 1);
    let later = async {
        server.restart();
        is_ready(&*queue).await;
        enqueue(&*queue, delivery("a")).await;
    };
    let (leases, ()) = tokio::join!(leases, later);
    ack(leases.unwrap().pop().unwrap()).await;
}

#[tokio::test]
async fn a_killed_server_takes_nothing_with_it() {
    let mut server = NatsServer::start();
    let queue = ready(&server, Retention::default(), WINDOW).await;
    for id in ["waiting", "leased"] {
        enqueue(&*queue, delivery(id)).await;
    }
    let first = lease(&*queue, "app").await;
    server.kill();
    is_not_ready(&*queue).await;
    refuses_in_time(&*queue).await;
    // Its verdict is kept until the server is back, and is not made again.
    let (leased, ()) =
        tokio::join!(async { (id_of(&first), ack(first).await).0 }, async { server.restart() });
    is_ready(&*queue).await;
    let last = lease(&*queue, "app").await;
    assert_ne!(id_of(&last), leased);
    ack(last).await;
    let states: Vec<_> = all(&*queue).await.into_iter().map(|record| record.state).collect();
    assert_eq!(states, [State::Delivered, State::Delivered]);
}

#[tokio::test]
async fn a_server_out_of_reach_is_not_waited_for() {
    let server = NatsServer::start();
    let proxy = Proxy::start(server.address());
    let queue = opened(&settings(&proxy.url()));
    is_ready(&*queue).await;
    enqueue(&*queue, delivery("before")).await;
    proxy.cut(Cut::Swallowed);
    refuses_in_time(&*queue).await;
    is_not_ready(&*queue).await;
    proxy.mend();
    is_ready(&*queue).await;
    enqueue(&*queue, delivery("after")).await;
    // What was refused may be stored all the same, and is then no second one.
    let again = queue.enqueue(delivery("refused")).await.unwrap();
    assert!([Enqueued::Queued, Enqueued::Duplicate].contains(&again));
    let mut ids = Vec::new();
    for _ in 0..3 {
        let lease = lease(&*queue, "app").await;
        ids.push(id_of(&lease));
        ack(lease).await;
    }
    ids.sort();
    assert_eq!(ids, ["after", "before", "refused"]);
}

#[tokio::test]
async fn two_replicas_share_one_queue() {
    let server = NatsServer::start();
    let replicas = [
        ready(&server, Retention::default(), WINDOW).await,
        ready(&server, Retention::default(), WINDOW).await,
    ];
    for n in 0..100_usize {
        enqueue(&*replicas[n % 2], delivery(&n.to_string())).await;
        assert_eq!(replicas[(n + 1) % 2].enqueue(delivery(&n.to_string())).await, Ok(Enqueued::Duplicate));
    }
    let work = async |queue: &dyn Queue| {
        let mut ids = Vec::new();
        let recipient = recipient("app");
        let moment = Duration::from_secs(1);
        while let Ok(leases) =
            tokio::time::timeout(moment, queue.lease(&recipient, Policy::default(), 4)).await
        {
            for lease in leases.unwrap() {
                ids.push(id_of(&lease));
                ack(lease).await;
            }
        }
        ids
    };
    let (one, two) = tokio::join!(work(&*replicas[0]), work(&*replicas[1]));
    assert!(!one.is_empty() && !two.is_empty());
    let mut ids = [one, two].concat();
    ids.sort_by_key(|id| id.parse::<u32>().unwrap());
    assert_eq!(ids, (0..100).map(|n| n.to_string()).collect::<Vec<_>>(), "each of them once");
    assert_eq!(all(&*replicas[0]).await, all(&*replicas[1]).await);
}

/// A command works beside a service, which notices.
#[tokio::test]
async fn another_process_redelivers_and_purges() {
    let server = NatsServer::start();
    let service = ready(&server, Retention::default(), WINDOW).await;
    let command = ready(&server, Retention::default(), WINDOW).await;
    for id in ["a", "b"] {
        enqueue(&*service, delivery(id)).await;
        let lease = lease(&*service, "app").await;
        let attempt = super::contract::attempt(&lease, 503);
        lease.retry(Duration::from_secs(3600), attempt).await.unwrap();
    }
    let only = |id: &str| Filter { ids: vec![id.to_owned()], ..Filter::default() };
    let recipient = recipient("app");
    let began = Instant::now();
    let (leases, changed) = tokio::join!(service.lease(&recipient, Policy::default(), 1), async {
        (command.purge(&only("a")).await, command.redeliver(&only("b")).await)
    });
    assert_eq!(changed, (Ok(1), Ok(1)));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let lease = leases.unwrap().pop().unwrap();
    assert_eq!(id_of(&lease), "b");
    ack(lease).await;
    command.close().await.unwrap();
}

/// A delivery for some of a webhook's destinations does not concern the others, even if nobody leases these.
#[tokio::test]
async fn deliveries_for_others_are_not_counted() {
    let server = NatsServer::start();
    let queue = ready(&server, Retention::default(), WINDOW).await;
    let mut both = delivery("both");
    both.destinations = ["app", "gone"].map(|name| (name.to_owned(), Policy::default())).to_vec();
    enqueue(&*queue, both).await;
    for n in 0..20 {
        enqueue(&*queue, delivery(&n.to_string())).await;
    }
    let depths = queue.stock().await.unwrap().depths;
    let depths: Vec<_> = depths.into_iter().map(|(of, depth)| (of.destination, depth.waiting)).collect();
    assert_eq!(depths, [("app".to_owned(), 21), ("gone".to_owned(), 1)]);
}

#[tokio::test]
async fn what_does_not_fit_into_a_message_is_refused() {
    let server = NatsServer::with(TempDir::new(), "max_payload: 32KB");
    let queue = ready(&server, Retention::default(), WINDOW).await;
    let mut large = delivery("large");
    large.parcel.body = stored(vec![b'x'; 40 << 10]);
    let Err(QueueError::Unavailable(why)) = queue.enqueue(large).await else { panic!() };
    for word in ["too large", "32768", "max_payload", "server.max_body"] {
        assert!(why.contains(word), "{why}");
    }
    // That says nothing about others.
    assert_eq!(*queue.health().borrow(), Health::Ready);
    enqueue(&*queue, delivery("small")).await;
    // The headers count, too.
    let mut large = delivery("no larger than the limit");
    large.parcel.body = stored(vec![b'x'; 32 << 10]);
    assert!(matches!(queue.enqueue(large).await, Err(QueueError::Unavailable(_))));
    assert_eq!(*queue.health().borrow(), Health::Ready);
}

/// A store that has room for small deliveries only is full, and is not ready and full by turns.
#[tokio::test]
async fn what_still_fits_does_not_make_a_full_store_ready() {
    let server = NatsServer::start();
    let retention = Retention { max_bytes: 1 << 20, ..Retention::default() };
    let queue = ready(&server, retention, WINDOW).await;
    let large = |n: usize| {
        let mut large = delivery(&format!("large-{n}"));
        large.parcel.body = stored(vec![b'x'; 100 << 10]);
        large
    };
    let mut waiting = 0;
    while queue.enqueue(large(waiting)).await != Err(QueueError::Full) {
        waiting += 1;
    }
    is_not_ready(&*queue).await;
    enqueue(&*queue, delivery("small")).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        assert_eq!(queue.enqueue(delivery("small")).await, Ok(Enqueued::Duplicate));
        assert_ne!(*queue.health().borrow(), Health::Ready);
    }
    for _ in 0..=waiting {
        ack(lease(&*queue, "app").await).await;
    }
    is_ready(&*queue).await;
    enqueue(&*queue, large(waiting)).await;
}

/// Whoever runs the service is told at the start, and not by the first large delivery.
#[test]
fn a_server_that_takes_less_than_the_largest_delivery_is_warned_of() {
    let warning = "the NATS server takes no messages as large";
    let warned =
        |service: &Hookgate| service.log_lines().iter().filter(|line| line.contains(warning)).count();
    let upstream = Upstream::always(Reply::ok());
    let mut server = NatsServer::with(TempDir::new(), "max_payload: 32KB");
    let on = |server: &NatsServer, max_body: &str| {
        let queue = format!("[queue]\nstore = \"nats\"\nurl = {:?}", server.url());
        Setup::new(&upstream).server(&format!("max_body = {max_body:?}")).section(&queue).start()
    };
    let is_ready = |service: &Hookgate| {
        eventually("it is ready", || (service.ops("/readyz").status == 200).then_some(()));
    };
    let service = on(&server, "64KiB");
    let line = service.wait_for_log(|line| line["message"].as_str().unwrap_or_default().contains(warning));
    assert_eq!(line["level"], "WARN");
    assert_eq!((&line["max_payload"], &line["needed"]), (&(32 << 10).into(), &(72 << 10).into()));
    is_ready(&service);
    service.send(&Sent::good_with(&"x".repeat(40 << 10))).assert_refused(503, "queue_unavailable");
    let refused = service.wait_for_log(|line| line["outcome"] == "queue_unavailable");
    assert!(refused["reason"].as_str().unwrap().contains("max_payload"), "{refused}");
    assert_eq!(service.ops("/readyz").status, 200);
    assert_eq!(service.send(&Sent::good()).said(), (202, "queued"));
    // The same server again is nothing new.
    server.restart();
    eventually("it is known that it was away", || (service.send(&Sent::good()).status == 202).then_some(()));
    is_ready(&service);
    assert_eq!(warned(&service), 1);
    let small = on(&server, "24KiB");
    is_ready(&small);
    assert_eq!(warned(&small), 0);
}

#[tokio::test]
async fn a_server_may_ask_who_comes_and_prove_who_it_is() {
    let authority = Authority::new("test");
    let dir = TempDir::new();
    let pair = authority.issue(&["127.0.0.1", "localhost"]);
    dir.write("cert.pem", &pair.cert);
    dir.write("key.pem", &pair.key);
    let ca = dir.write("ca.pem", authority.pem());
    let other = dir.write("other.pem", Authority::new("other").pem());
    let server = NatsServer::with(
        dir,
        "tls { cert_file: \"{dir}/cert.pem\", key_file: \"{dir}/key.pem\" }\n\
         authorization { user: gate, password: \"s3cret@in/url\" }",
    );
    let url = |password: &str| format!("tls://gate:{password}@{}", server.address());
    let with = |password: &str, ca: &PathBuf| Settings { ca: Some(ca.clone()), ..settings(&url(password)) };
    let queue = opened(&with("s3cret%40in%2Furl", &ca));
    is_ready(&*queue).await;
    enqueue(&*queue, delivery("a")).await;
    for wrong in [with("s3cret-wrong", &ca), with("s3cret%40in%2Furl", &other)] {
        let queue = opened(&wrong);
        refuses_in_time(&*queue).await;
        let health = queue.health().borrow().clone();
        assert!(matches!(health, Health::NotReady(_)));
        assert!(!format!("{queue:?} {wrong:?} {health:?}").contains("s3cret"));
        if wrong.ca.as_ref() == Some(&other) {
            let untrusted = "its certificate is from an unknown issuer";
            let said = |health: &Health| matches!(health, Health::NotReady(why) if why.contains(untrusted));
            let waited = tokio::time::timeout(PATIENCE, until(&*queue, said)).await;
            waited.unwrap_or_else(|_| panic!("{:?}", queue.health().borrow().clone()));
        }
    }
}

#[tokio::test]
async fn an_nkey_opens() {
    // The pair of the NATS documentation.
    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let dir = TempDir::new();
    let seed = dir.write("seed.nk", format!("{SEED}\n"));
    let server = NatsServer::with(dir, &format!("authorization {{ users: [ {{ nkey: {PUBLIC} }} ] }}"));
    let queue = opened(&Settings { credentials: Some(seed), ..settings(&server.url()) });
    is_ready(&*queue).await;
    let nobody = opened(&settings(&server.url()));
    refuses_in_time(&*nobody).await;
}

/// A credentials file, as `nsc` writes it.
#[tokio::test]
async fn a_credentials_file_opens() {
    let [operator, system, account, user] =
        [KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_user()];
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
        "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let mut nothing = limits.clone();
    for storage in ["mem_storage", "disk_storage", "streams", "consumer"] {
        nothing[storage] = json!(0);
    }
    let kind = |kind: &str, more: &Value| {
        let mut claims = json!({ "type": kind, "version": 2 });
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let operator_jwt = jwt(&operator, &operator, &kind("operator", &json!({})));
    let system_jwt = jwt(&operator, &system, &kind("account", &json!({ "limits": nothing })));
    let account_jwt = jwt(&operator, &account, &kind("account", &json!({ "limits": limits })));
    let user_jwt = jwt(&account, &user, &kind("user", &json!({ "subs": -1, "data": -1, "payload": -1 })));
    let dir = TempDir::new();
    let credentials = dir.write(
        "user.creds",
        format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap(),
        ),
    );
    let server = NatsServer::with(
        dir,
        &format!(
            "operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n\
             resolver_preload {{ {system}: {system_jwt}, {account}: {account_jwt} }}",
            system = system.public_key(),
            account = account.public_key(),
        ),
    );
    let queue = opened(&Settings { credentials: Some(credentials), ..settings(&server.url()) });
    is_ready(&*queue).await;
    enqueue(&*queue, delivery("a")).await;
    let nobody = opened(&settings(&server.url()));
    refuses_in_time(&*nobody).await;
}

/// Claims about `whose` key, signed by another one.
fn jwt(issuer: &KeyPair, whose: &KeyPair, claims: &Value) -> String {
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({
        "jti": "1", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": whose.public_key(),
        "name": "test", "nats": claims,
    });
    let signed = [header, claims].map(|part| base64(part.to_string().as_bytes())).join(".");
    let signature = base64(&issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// For URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().chain([&0, &0]).take(3).fold(0, |word, &byte| word << 8 | usize::from(byte));
        for place in 0..=chunk.len() {
            text.push(char::from(DIGITS[word >> (18 - 6 * place) & 63]));
        }
    }
    text
}

#[tokio::test]
async fn what_never_works_is_said_at_the_start() {
    let dir = TempDir::new();
    let empty = dir.write("empty", "nothing\n");
    let start =
        |settings: &Settings| Nats::start(settings, Retention::default(), WINDOW, 1).map(drop).unwrap_err();
    let good = settings("nats://127.0.0.1:1");
    for name in ["", "a.b", "a b", "*"] {
        let wrong = Settings { stream: name.to_owned(), ..good.clone() };
        assert!(matches!(start(&wrong), StartError::Stream), "{name}");
    }
    assert!(matches!(start(&settings("http://127.0.0.1:1")), StartError::Url));
    let missing = Settings { credentials: Some(dir.path().join("none")), ..good.clone() };
    assert!(matches!(start(&missing), StartError::Unreadable(_)));
    let wrong = Settings { credentials: Some(empty.clone()), ..good.clone() };
    assert!(matches!(start(&wrong), StartError::Credentials));
    let wrong = Settings { ca: Some(empty), ..good };
    assert!(matches!(start(&wrong), StartError::Authorities(_)));
}
