//! `hookgate deliveries`: the log and the dead letters, on a store of each kind that was filled beforehand.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hookgate::delivery::{
    parcel::{Facts, MediaType, Parcel, VerifiedBody},
    queue::{
        Attempt, Death, Delivery, Enqueued, Health, Lease, Policy, Queue, Recipient, Retention, Verdict,
        nats::{self, Nats},
        sqlite::Sqlite,
    },
};
use hyper::header::HeaderValue;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{
    Delivery as Sent, NatsServer, Reply, Setup, TempDir, Upstream, Webhook, eventually, program, run,
};

/// Makes tests of what holds for both kinds of store.
macro_rules! hold {
    ($($case:ident,)*) => {
        mod on_sqlite {
            $(
                #[test]
                fn $case() {
                    super::$case(super::Kind::Sqlite);
                }
            )*
        }

        mod on_nats {
            $(
                #[test]
                fn $case() {
                    super::$case(super::Kind::Nats);
                }
            )*
        }
    };
}

hold! {
    the_list_is_for_people,
    every_filter_filters,
    the_end_of_a_longer_list_is_told,
    json_has_every_field,
    a_job_is_shown_whole,
    an_id_of_pulumi_means_all_of_its_jobs,
    a_body_comes_out_as_it_went_in,
    dead_deliveries_are_redelivered_unless_told_otherwise,
    a_redelivered_one_is_due_at_once,
    what_is_to_be_changed_has_to_be_said,
    purging_is_asked_for_twice,
    waiting_deliveries_are_purged_only_by_name,
    many_ids_at_once,
    a_reader_that_leaves_early_is_no_failure,
    a_running_service_redelivers_what_it_is_told,
    a_redelivery_waits_for_the_service,
}

/// The digits of every signature in the store.
const SIGNATURE: &str = "7e94aa017e94aa017e94aa017e94aa017e94aa017e94aa017e94aa017e94aa01";

/// Bytes that are not UTF-8, and has line ends at its end, comes out as it went in.
const BODY: &[u8] = b"{\"a\": \"\xff\"}\r\n\n";

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
    assert!(!stdout(output).contains(SIGNATURE), "{}", stdout(output));
}

#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    assert_exit(output, code);
    let text = stderr(output);
    assert!(text.starts_with("hookgate: ") && text.lines().count() == 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word} in {text}");
    }
}

/// A queue with:
///
/// | job | delivery | state | accepted |
/// | --- | --- | --- | --- |
/// | 1-1 | first, environment_created | delivered at the second attempt | 3 days ago |
/// | 2-1 | second, environment_revision_created | dead: refused | 2 hours ago |
/// | 2-2 | the same, for another destination | waiting, not tried yet | |
/// | 3-3 | third, environment_tag_created of another webhook | waiting for its second attempt | a minute ago |
/// | 4-1 | fourth, environment_revision_created | coalesced | a minute ago |
///
/// On NATS, whose server says when a message came, they were accepted in this order a moment ago, and jobs are called
/// `1.app` and so on: the tests use the names above for both.
#[derive(Debug)]
struct Store {
    setup: Setup,
    nats: Option<NatsServer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Nats,
}

/// What the jobs are called on NATS.
const JOBS: [(&str, &str); 5] =
    [("1-1", "1.app"), ("2-1", "2.app"), ("2-2", "2.audit"), ("3-3", "3.other"), ("4-1", "4.app")];

impl Store {
    fn new(kind: Kind) -> Self {
        let this = Self::empty(kind);
        this.fill(async |queue| {
            enqueue(queue, "first", "esc", "environment_created", &["app"]).await;
            let lease = lease(queue, "esc", "app").await;
            lease.retry(Duration::ZERO, attempt(1, Some(503), b"later\x1b[2J")).await.unwrap();
            lease_and(queue, "esc", "app", Verdict::Delivered, attempt(2, Some(200), b"ok")).await;
            enqueue(queue, "second", "esc", "environment_revision_created", &["app", "audit"]).await;
            let refused = Verdict::Dead(Death::Refused);
            lease_and(queue, "esc", "app", refused, attempt(1, Some(400), b"no such thing")).await;
            enqueue(queue, "third", "tags", "environment_tag_created", &["other"]).await;
            let later = Verdict::Retry(Duration::from_secs(3600));
            lease_and(queue, "tags", "other", later, attempt(1, None, b"")).await;
            enqueue(queue, "fourth", "esc", "environment_revision_created", &["app"]).await;
        });
        match kind {
            Kind::Sqlite => this.write_history(),
            Kind::Nats => {
                let finished = millis(SystemTime::now());
                let record = json!({ "state": "coalesced", "finished": finished, "destinations": ["app"] });
                this.on_nats(async |stream| {
                    let deliveries = stream.get_stream("HOOKGATE").await.unwrap();
                    let fourth = deliveries.get_raw_message(4).await.unwrap();
                    let meta = fourth.headers.get("Hookgate-Delivery").unwrap().as_str();
                    let meta: Value = serde_json::from_str(meta).unwrap();
                    let subject = format!("HOOKGATE.j.esc.app.4-{}", meta["nonce"].as_str().unwrap());
                    stream.publish(subject, record.to_string().into()).await.unwrap().await.unwrap();
                });
            }
        }
        this
    }

    fn empty(kind: Kind) -> Self {
        let nats = (kind == Kind::Nats).then(NatsServer::start);
        let queue = match &nats {
            Some(server) => on_nats(server),
            None => "[queue]\npath = \"{dir}/queue.db\"".to_owned(),
        };
        let webhook = |name: &str| {
            Webhook::to("http://127.0.0.1:1").at(&format!("/{name}")).line(&format!("name = {name:?}"))
        };
        let esc = webhook("esc")
            .destination("name = \"app\"")
            .destination("[[webhook.destination]]\nname = \"audit\"\nurl = \"http://127.0.0.1:1\"");
        let tags = webhook("tags").destination("name = \"other\"");
        Self { setup: Setup::bare().section(&queue).with(esc).with(tags), nats }
    }

    /// Lets the times and the last state be those of the table.
    fn write_history(&self) {
        let seconds = |ago: u64| {
            let at = SystemTime::now() - Duration::from_secs(ago);
            i64::try_from(millis(at)).unwrap()
        };
        let connection = self.connection();
        for (number, ago) in [(1, 3 * 86_400), (2, 7200), (3, 61), (4, 60)] {
            let changed = connection
                .execute("UPDATE delivery SET received = ?1 WHERE number = ?2", [seconds(ago), number])
                .unwrap();
            assert_eq!(changed, 1);
        }
        let coalesced = "UPDATE job SET state = 'coalesced', finished = since WHERE delivery = 4";
        assert_eq!(connection.execute(coalesced, []).unwrap(), 1);
    }

    fn kind(&self) -> Kind {
        if self.nats.is_some() { Kind::Nats } else { Kind::Sqlite }
    }

    /// Its section of a configuration.
    fn section(&self) -> String {
        self.nats.as_ref().map_or_else(|| format!("[queue]\npath = {:?}", self.path()), on_nats)
    }

    fn path(&self) -> PathBuf {
        self.setup.dir().join("queue.db")
    }

    fn connection(&self) -> Connection {
        assert_eq!(self.kind(), Kind::Sqlite);
        Connection::open(self.path()).unwrap()
    }

    fn on_nats<T>(&self, work: impl AsyncFnOnce(async_nats::jetstream::Context) -> T) -> T {
        let url = self.nats.as_ref().unwrap().url();
        block_on(async {
            let client = async_nats::connect(url).await.unwrap();
            work(async_nats::jetstream::new(client)).await
        })
    }

    /// How many bodies there are.
    fn bodies(&self) -> u64 {
        match self.kind() {
            Kind::Sqlite => {
                let count = "SELECT count(*) FROM delivery";
                let count: i64 = self.connection().query_row(count, [], |row| row.get(0)).unwrap();
                count.try_into().unwrap()
            }
            Kind::Nats => self.on_nats(async |stream| {
                stream.get_stream("HOOKGATE").await.unwrap().cached_info().state.messages
            }),
        }
    }

    /// Works with the queue as a service does.
    fn fill(&self, work: impl AsyncFnOnce(&dyn Queue)) {
        block_on(async {
            let queue: Box<dyn Queue> = match &self.nats {
                None => Box::new(Sqlite::open(&self.path(), Retention::default(), Duration::ZERO).unwrap()),
                Some(server) => {
                    let settings = nats::Settings {
                        url: server.url(),
                        stream: "HOOKGATE".to_owned(),
                        credentials: None,
                        ca: None,
                        replicas: 1,
                    };
                    let queue =
                        Nats::start(&settings, Retention::default(), Duration::ZERO, 1 << 10).unwrap();
                    queue.health().wait_for(|health| *health == Health::Ready).await.unwrap();
                    Box::new(queue)
                }
            };
            work(&*queue).await;
            queue.close().await.unwrap();
        });
    }

    /// What names the store in arguments.
    fn target(&self) -> [String; 2] {
        let (option, path) = match self.kind() {
            Kind::Sqlite => ("--store", self.path()),
            Kind::Nats => ("--config", self.setup.write()),
        };
        [option.to_owned(), path.to_str().unwrap().to_owned()]
    }

    /// The arguments of a command on the store. `{second}` in them is the time at which that was accepted.
    fn words(&self, words: &[&str]) -> Vec<String> {
        let mut arguments = vec!["deliveries".to_owned(), words[0].to_owned()];
        arguments.extend(self.target());
        arguments.extend(words[1..].iter().map(|word| {
            match word.strip_prefix('{').and_then(|word| word.strip_suffix('}')) {
                Some(id) => {
                    let all = self.json(&["list", "--json"]);
                    let known = all.iter().find(|job| job["id"] == id).unwrap();
                    known["received"].as_str().unwrap().to_owned()
                }
                None => self.job(word).to_owned(),
            }
        }));
        arguments
    }

    /// What a job is called here.
    fn job<'a>(&self, name: &'a str) -> &'a str {
        let known = JOBS.iter().find(|(known, _)| self.nats.is_some() && *known == name);
        known.map_or(name, |(_, here)| here)
    }

    /// Runs a command on the store.
    fn run(&self, words: &[&str]) -> Output {
        run(&self.words(words), b"")
    }

    fn json(&self, words: &[&str]) -> Vec<Value> {
        let output = self.run(words);
        assert_exit(&output, 0);
        json_lines(&output)
    }

    /// The jobs that `list` finds.
    fn jobs(&self, filters: &[&str]) -> Vec<String> {
        jobs(&self.json(&[&["list", "--json"], filters].concat()))
    }

    /// Every job with its state.
    fn states(&self) -> BTreeSet<(String, String)> {
        let all = self.json(&["list", "--json"]);
        let states = all.iter().map(|job| job["state"].as_str().unwrap().to_owned());
        jobs(&all).into_iter().zip(states).collect()
    }

    fn state(&self, job: &str) -> Option<String> {
        self.states().into_iter().find(|(found, _)| found == job).map(|(_, state)| state)
    }
}

/// The section of a queue on this server.
fn on_nats(server: &NatsServer) -> String {
    format!("[queue]\nstore = \"nats\"\nurl = {:?}", server.url())
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

fn json_lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The names of jobs, as in the table.
fn jobs(lines: &[Value]) -> Vec<String> {
    let known = |name: &str| JOBS.iter().find(|(_, here)| *here == name).map(|(known, _)| *known);
    let names = lines.iter().map(|job| job["job"].as_str().unwrap());
    names.map(|name| known(name).unwrap_or(name).to_owned()).collect()
}

fn attempt(number: u32, status: Option<u16>, answer: &'static [u8]) -> Attempt {
    Attempt {
        number,
        at: SystemTime::now(),
        duration: Duration::from_millis(12),
        status,
        error: status.is_none().then(|| "no connection".to_owned()),
        answer: Bytes::from_static(answer),
    }
}

async fn enqueue(queue: &dyn Queue, id: &str, webhook: &str, event: &str, destinations: &[&str]) {
    let header = |text: &str| HeaderValue::from_str(text).unwrap();
    let kind = event.strip_suffix("_created").unwrap();
    let delivery = Delivery {
        webhook: webhook.to_owned(),
        parcel: Parcel {
            body: VerifiedBody::stored(Bytes::from([id.as_bytes(), BODY].concat())),
            content_type: MediaType::Json,
            id: header(id),
            kind: header(kind),
            signature: header(SIGNATURE),
            event: header(event),
            kind_verified: true,
            traceparent: header("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            received: SystemTime::now(),
        },
        environment: Some("website/prod".to_owned()),
        revision: (kind == "environment_revision").then_some(7),
        facts: Facts::default(),
        destinations: destinations.iter().map(|name| ((*name).to_owned(), Policy::default())).collect(),
    };
    assert_eq!(queue.enqueue(delivery).await, Ok(Enqueued::Queued));
    // The next one comes in another millisecond: times are shown and given back as such.
    let now = millis(SystemTime::now());
    while millis(SystemTime::now()) == now {
        tokio::task::yield_now().await;
    }
}

async fn lease(queue: &dyn Queue, webhook: &str, destination: &str) -> Lease {
    let recipient = Recipient { webhook: webhook.to_owned(), destination: destination.to_owned() };
    queue.lease(&recipient, Policy::default(), 1).await.unwrap().remove(0)
}

async fn lease_and(queue: &dyn Queue, webhook: &str, destination: &str, verdict: Verdict, attempt: Attempt) {
    let lease = lease(queue, webhook, destination).await;
    match verdict {
        Verdict::Delivered => lease.ack(attempt).await,
        Verdict::Retry(delay) => lease.retry(delay, attempt).await,
        Verdict::Dead(death) => lease.dead_letter(death, Some(attempt)).await,
    }
    .unwrap();
}

fn the_list_is_for_people(kind: Kind) {
    let store = Store::new(kind);
    let output = store.run(&["list"]);
    assert_exit(&output, 0);
    let text = stdout(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    let begins =
        |line: usize, with: &str| assert!(lines[line].starts_with(with), "{with} in line {line} of\n{text}");
    for (line, job) in ["JOB", "4-1", "3-3", "2-1", "2-2", "1-1"].into_iter().enumerate() {
        begins(line, &format!("{} ", store.job(job)));
    }
    let ages = if kind == Kind::Sqlite { ["2h", "3d"] } else { ["s  ", "s  "] };
    for (line, words) in [
        (1, ["coalesced", "esc/app", "environment_revision_created", "website/prod@7", "fourth"]),
        (2, ["waiting, due in 59m", "tags/other", "environment_tag_created", "website/prod", "third"]),
        (3, ["dead: refused", "esc/app", "environment_revision_created", ages[0], "second"]),
        (4, ["waiting, due now", "esc/audit", "environment_revision_created", ages[0], "second"]),
        (5, ["delivered", "esc/app", "environment_created", ages[1], "first"]),
    ] {
        for word in words {
            assert!(lines[line].contains(word), "{word} in {}", lines[line]);
        }
    }
    // Columns begin where their heads do.
    let column = lines[0].find("STATE").unwrap();
    assert!(
        lines[1..].iter().all(|line| line.as_bytes()[column - 1] == b' ' && line.as_bytes()[column] != b' ')
    );
    assert!(lines.iter().all(|line| *line == line.trim_end()), "{text}");
    assert!(!text.contains("orphaned"), "{text}");
    assert_eq!(stdout(&store.run(&["list", "--webhook", "none"])), "No deliveries.\n");
}

fn every_filter_filters(kind: Kind) {
    let store = Store::new(kind);
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["4-1", "3-3", "2-1", "2-2", "1-1"]),
        (&["--state", "waiting"], &["3-3", "2-2"]),
        (&["--state", "dead"], &["2-1"]),
        (&["--state", "delivered"], &["1-1"]),
        (&["--state", "coalesced"], &["4-1"]),
        (&["--state", "dead", "--state", "delivered"], &["2-1", "1-1"]),
        (&["--state", "dead,delivered"], &["2-1", "1-1"]),
        (&["--webhook", "tags"], &["3-3"]),
        (&["--webhook", "esc"], &["4-1", "2-1", "2-2", "1-1"]),
        (&["--webhook", ""], &[]),
        (&["--destination", "audit"], &["2-2"]),
        (&["--event", "environment_created"], &["1-1"]),
        (&["--event", "environment_revision"], &["4-1", "2-1", "2-2"]),
        (&["--since", "{third}"], &["4-1", "3-3"]),
        (&["--since", "{second}"], &["4-1", "3-3", "2-1", "2-2"]),
        (&["--until", "{third}"], &["2-1", "2-2", "1-1"]),
        (&["--since", "{second}", "--until", "{third}"], &["2-1", "2-2"]),
        (&["--since", "4d"], &["4-1", "3-3", "2-1", "2-2", "1-1"]),
        (&["--until", "4d"], &[]),
        (&["--since", "2000-01-01T00:00:00Z"], &["4-1", "3-3", "2-1", "2-2", "1-1"]),
        (&["--until", "2000-01-01T00:00:00+01:00"], &[]),
        (&["--state", "waiting", "--webhook", "esc", "--since", "3h"], &["2-2"]),
        (&["--limit", "5"], &["4-1", "3-3", "2-1", "2-2", "1-1"]),
    ];
    let days: &[(&[&str], &[&str])] = &[
        (&["--since", "1h"], &["4-1", "3-3"]),
        (&["--since", "2d"], &["4-1", "3-3", "2-1", "2-2"]),
        (&["--until", "1h"], &["2-1", "2-2", "1-1"]),
        (&["--since", "1d", "--until", "90m"], &["2-1", "2-2"]),
    ];
    let days = if kind == Kind::Sqlite { days } else { &[] };
    for (filters, expected) in cases.iter().chain(days) {
        assert_eq!(store.jobs(filters), *expected, "{filters:?}");
    }
}

fn the_end_of_a_longer_list_is_told(kind: Kind) {
    let store = Store::new(kind);
    let table = store.run(&["list", "--limit", "2"]);
    assert_exit(&table, 0);
    let text = stdout(&table);
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.lines().last().unwrap().contains("--limit"), "{text}");
    // What is parsed has nothing else in it.
    let json = store.run(&["list", "--limit", "2", "--json"]);
    assert_exit(&json, 0);
    assert_eq!(jobs(&json_lines(&json)), ["4-1", "3-3"]);
    assert!(stderr(&json).contains("--limit"), "{}", stderr(&json));
    assert_eq!(stderr(&store.run(&["list", "--limit", "5", "--json"])), "");
}

fn json_has_every_field(kind: Kind) {
    let store = Store::new(kind);
    let dead = &store.json(&["list", "--state", "dead", "--json"])[0];
    for (field, expected) in [
        ("job", store.job("2-1").into()),
        ("webhook", "esc".into()),
        ("destination", "app".into()),
        // Known where there is a configuration.
        ("orphaned", if kind == Kind::Sqlite { Value::Null } else { false.into() }),
        ("state", "dead".into()),
        ("death", "refused".into()),
        ("id", "second".into()),
        ("kind", "environment_revision".into()),
        ("event", "environment_revision_created".into()),
        ("environment", "website/prod".into()),
        ("revision", 7.into()),
        ("attempts", 1.into()),
        ("size", ("second".len() + BODY.len()).into()),
        ("due", Value::Null),
    ] {
        assert_eq!(dead[field], expected, "{field}");
    }
    let waiting = &store.json(&["list", "--webhook", "tags", "--json"])[0];
    assert_eq!((&waiting["finished"], &waiting["revision"]), (&Value::Null, &Value::Null));
    for time in [&dead["received"], &dead["finished"], &waiting["due"]] {
        let time = time.as_str().unwrap();
        assert!(time.len() == 24 && time.starts_with("20") && time.ends_with('Z'), "{time}");
    }
    // A time that was shown can be given back.
    assert_eq!(store.jobs(&["--since", dead["received"].as_str().unwrap()]), ["4-1", "3-3", "2-1", "2-2"]);
}

fn a_job_is_shown_whole(kind: Kind) {
    let store = Store::new(kind);
    let output = store.run(&["show", "1-1"]);
    assert_exit(&output, 0);
    let text = stdout(&output);
    for word in [
        format!("{} to esc/app", store.job("1-1")).as_str(),
        "delivered",
        if kind == Kind::Sqlite { "3d ago" } else { "s ago" },
        "website/prod",
        "Content-Type: application/json",
        "Pulumi-Webhook-ID: first",
        "Pulumi-Webhook-Kind: environment",
        "Pulumi-Webhook-Signature: 7e94aa01…",
        "Hookgate-Event: environment_created",
        "traceparent: 00-4bf9",
        "attempt 1",
        "status 503",
        "later\\u{1b}[2J",
        "attempt 2",
        "status 200",
        "12 ms",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let dead = stdout(&store.run(&["show", "2-1"]));
    for word in ["dead: refused", "trying again will not help", "revision      7", "no such thing"] {
        assert!(dead.contains(word), "{word} in {dead}");
    }
    let waiting = stdout(&store.run(&["show", "3-3"]));
    assert!(waiting.contains("no connection") && waiting.contains("due  "), "{waiting}");
    assert!(stdout(&store.run(&["show", "2-2"])).contains("none yet"));

    let shown = store.json(&["show", "--json", "1-1"]);
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0]["state"], "delivered");
    assert_eq!(shown[0]["headers"]["Pulumi-Webhook-ID"], "first");
    assert_eq!(shown[0]["headers"]["Pulumi-Webhook-Signature"], "7e94aa01…");
    assert_eq!(shown[0]["body"], Value::Null);
    let attempts = shown[0]["attempt_log"].as_array().unwrap();
    assert_eq!(attempts.len(), 2);
    assert_eq!((&attempts[0]["number"], &attempts[0]["status"]), (&1.into(), &503.into()));
    assert_eq!((&attempts[0]["duration_ms"], &attempts[0]["answer"]), (&12.into(), &"later\u{1b}[2J".into()));
    let failed = &store.json(&["show", "--json", "third"])[0]["attempt_log"][0];
    assert_eq!((&failed["status"], &failed["error"]), (&Value::Null, &"no connection".into()));
}

fn an_id_of_pulumi_means_all_of_its_jobs(kind: Kind) {
    let store = Store::new(kind);
    assert_eq!(jobs(&store.json(&["show", "--json", "second"])), ["2-1", "2-2"]);
    assert_eq!(
        jobs(&store.json(&["show", "--json", "3-3", "second", "first"])),
        ["3-3", "2-1", "2-2", "1-1"]
    );
    let text = stdout(&store.run(&["show", "second"]));
    let heads =
        [("2-1", "esc/app"), ("2-2", "esc/audit")].map(|(job, to)| format!("{} to {to}\n", store.job(job)));
    assert!(text.starts_with(&heads[0]) && text.contains(&format!("\n\n{}", heads[1])), "{text}");
    // Those that are there are shown, and it does not count as success.
    let output = store.run(&["show", "--json", "1-1", "nobody", "9-9"]);
    assert_exit(&output, 1);
    assert_eq!(jobs(&json_lines(&output)), ["1-1"]);
    assert!(stderr(&output).contains("`nobody`") && stderr(&output).contains("`9-9`"), "{}", stderr(&output));
    assert_refused(&store.run(&["show", "a\x1b[2Jb"]), 1, &["a\\u{1b}[2Jb"]);
    assert_exit(&store.run(&["show"]), 2);
}

fn a_body_comes_out_as_it_went_in(kind: Kind) {
    let store = Store::new(kind);
    for id in ["1-1", "first"] {
        let output = store.run(&["show", "--body", id]);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(output.stdout, [b"first", BODY].concat());
    }
    // Both jobs have the same one.
    assert_eq!(store.run(&["show", "--body", "second"]).stdout, [b"second", BODY].concat());
    assert_refused(&store.run(&["show", "--body", "nobody"]), 1, &["nobody"]);
    assert_refused(&store.run(&["show", "--body", "first", "second"]), 2, &["one"]);
    assert_exit(&store.run(&["show", "--body", "--json", "first"]), 2);
}

fn dead_deliveries_are_redelivered_unless_told_otherwise(kind: Kind) {
    let before = Store::new(kind).states();
    let cases: &[(&[&str], &str, &[&str])] = &[
        (&["--all"], "1 delivery", &["2-1"]),
        (&["--destination", "app"], "1 delivery", &["2-1"]),
        (&["--destination", "audit"], "0 deliveries", &[]),
        (&["--event", "environment_revision_created", "--since", "{second}"], "1 delivery", &["2-1"]),
        (&["--state", "dead,delivered,coalesced"], "3 deliveries", &["1-1", "2-1", "4-1"]),
        (&["--state", "delivered", "--until", "{second}"], "1 delivery", &["1-1"]),
        (&["1-1"], "1 delivery", &["1-1"]),
        (&["second"], "2 deliveries", &["2-1"]),
        (&["second", "2-1", "2-2"], "2 deliveries", &["2-1"]),
        (&["second", "first", "--state", "dead"], "1 delivery", &["2-1"]),
    ];
    for (words, count, revived) in cases {
        let store = Store::new(kind);
        let output = store.run(&[&["redeliver"], *words].concat());
        // An ID that the filters leave out does not count as success.
        assert_exit(&output, i32::from(words.contains(&"first") && words.contains(&"dead")));
        assert!(stdout(&output).starts_with(&format!("{count} ")), "{words:?}: {}", stdout(&output));
        let expected: BTreeSet<_> = before
            .iter()
            .map(|(job, state)| {
                let state = if revived.contains(&job.as_str()) { "waiting" } else { state };
                (job.clone(), state.to_owned())
            })
            .collect();
        assert_eq!(store.states(), expected, "{words:?}");
    }
}

fn a_redelivered_one_is_due_at_once(kind: Kind) {
    let store = Store::new(kind);
    assert_exit(&store.run(&["redeliver", "2-1", "3-3"]), 0);
    for job in ["2-1", "3-3"] {
        assert!(stdout(&store.run(&["show", job])).contains("waiting, due now"));
    }
    store.fill(async |queue| {
        let lease = lease(queue, "esc", "app").await;
        assert_eq!((lease.job().attempts, lease.job().attempts_ever), (0, 1));
    });
}

fn what_is_to_be_changed_has_to_be_said(kind: Kind) {
    let store = Store::new(kind);
    let before = store.states();
    for command in ["redeliver", "purge"] {
        assert_refused(&store.run(&[command]), 2, &["--all"]);
        assert_exit(&store.run(&[command, "--all", "1-1"]), 2);
        assert_exit(&store.run(&[command, "--state", "ded"]), 2);
        assert_exit(&store.run(&[command, "--since", "yesterday"]), 2);
        let unknown = store
            .run(&[&[command, "nobody"][..], if command == "purge" { &["--yes"] } else { &[] }].concat());
        assert_exit(&unknown, 1);
        assert!(stdout(&unknown).starts_with("0 deliveries"), "{}", stdout(&unknown));
        assert!(stderr(&unknown).contains("`nobody`"), "{}", stderr(&unknown));
    }
    // What is there is done.
    let output = store.run(&["redeliver", "nobody", "2-1", "--json"]);
    assert_exit(&output, 1);
    assert_eq!(json_lines(&output), [json!({ "redelivered": 1 })]);
    assert_ne!(store.states(), before);
}

fn purging_is_asked_for_twice(kind: Kind) {
    let store = Store::new(kind);
    let before = store.states();
    assert_refused(&store.run(&["purge", "--all"]), 2, &["--yes"]);
    assert_refused(&store.run(&["purge", "1-1"]), 2, &["--yes"]);
    for (answer, done) in [("n\n", false), ("\n", false), ("\u{4}", false), ("y\n", true)] {
        let output = on_a_terminal(&store, &["purge", "--state", "dead"], answer);
        assert!(stderr(&output).contains("Purge 1 delivery?"), "{}", stderr(&output));
        assert_exit(&output, i32::from(!done));
        assert_eq!(store.states() == before, !done, "{answer:?}");
    }
    // Nothing to ask about.
    let output = on_a_terminal(&store, &["purge", "--state", "dead"], "");
    assert_exit(&output, 0);
    assert!(stdout(&output).starts_with("0 deliveries"), "{}", stdout(&output));
}

/// Runs a command whose standard input is a terminal on which this is typed.
fn on_a_terminal(store: &Store, words: &[&str], typed: &str) -> Output {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let name = ptsname(&keyboard, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let child = program()
        .args(store.words(words))
        .stdin(terminal)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = File::from(keyboard);
    keyboard.write_all(typed.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn waiting_deliveries_are_purged_only_by_name(kind: Kind) {
    let cases: &[(&[&str], &str, &[&str])] = &[
        (&["--all"], "3 deliveries", &["2-2", "3-3"]),
        (&["--webhook", "tags"], "0 deliveries", &["1-1", "2-1", "2-2", "3-3", "4-1"]),
        (&["--webhook", "esc"], "3 deliveries", &["2-2", "3-3"]),
        (&["--until", "{second}"], "1 delivery", &["2-1", "2-2", "3-3", "4-1"]),
        (&["--state", "waiting"], "2 deliveries", &["1-1", "2-1", "4-1"]),
        (&["--state", "waiting", "--webhook", "tags"], "1 delivery", &["1-1", "2-1", "2-2", "4-1"]),
        (&["3-3"], "1 delivery", &["1-1", "2-1", "2-2", "4-1"]),
        (&["second"], "2 deliveries", &["1-1", "3-3", "4-1"]),
    ];
    for (words, count, left) in cases {
        let store = Store::new(kind);
        let output = store.run(&[&["purge", "--yes"], *words].concat());
        assert_exit(&output, 0);
        assert!(stdout(&output).starts_with(&format!("{count} ")), "{words:?}: {}", stdout(&output));
        let expected: BTreeSet<_> = left.iter().map(|job| (*job).to_owned()).collect();
        assert_eq!(
            store.states().into_iter().map(|(job, _)| job).collect::<BTreeSet<_>>(),
            expected,
            "{words:?}"
        );
    }
    let store = Store::new(kind);
    assert_eq!(store.json(&["purge", "--yes", "--all", "--json"]), [json!({ "purged": 3 })]);
    // With the last job of a delivery its body is gone.
    assert_eq!(store.bodies(), 2);
}

/// More than fit into one condition.
fn many_ids_at_once(kind: Kind) {
    let store = Store::empty(kind);
    store.fill(async |queue| {
        let recipient = Recipient { webhook: "esc".to_owned(), destination: "app".to_owned() };
        for number in 0..700 {
            enqueue(queue, &format!("id-{number}"), "esc", "environment_created", &["app"]).await;
        }
        let mut dead = 0;
        while dead < 700 {
            for lease in queue.lease(&recipient, Policy::default(), 100).await.unwrap() {
                lease.dead_letter(Death::Age, None).await.unwrap();
                dead += 1;
            }
        }
    });
    let ids = store.jobs(&["--state", "dead", "--limit", "2000"]);
    assert_eq!(ids.len(), 700);
    let words: Vec<_> = ["redeliver"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    let output = store.run(&words);
    assert_exit(&output, 0);
    assert!(stdout(&output).starts_with("700 deliveries "), "{}", stdout(&output));
    assert_eq!(store.jobs(&["--state", "waiting", "--limit", "2000"]).len(), 700);
}

#[test]
fn a_store_that_is_none_is_told() {
    let store = Store::new(Kind::Sqlite);
    let dir = TempDir::new();
    let on = |path: &Path, words: &[&str]| {
        let arguments = [&["deliveries"], words, &["--store", path.to_str().unwrap()]].concat();
        run(&arguments, b"")
    };
    let absent = dir.path().join("absent.db");
    for words in [&["list"][..], &["show", "1-1"], &["redeliver", "--all"], &["purge", "--all", "--yes"]] {
        assert_refused(&on(&absent, words), 2, &["absent.db", "there is no queue"]);
        assert!(!absent.exists());
        assert_refused(&on(dir.path(), words), 2, &["is not a file"]);
        let text = dir.write("text", "[queue]\npath = \"queue.db\"\n");
        assert_refused(&on(&text, words), 1, &["text", "not a database"]);
        assert_eq!(fs::read(&text).unwrap(), b"[queue]\npath = \"queue.db\"\n");
        let empty = dir.write("empty", "");
        assert_refused(&on(&empty, words), 2, &["not hookgate's queue"]);
    }
    let foreign = dir.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert_refused(&on(&foreign, &["list"]), 2, &["foreign.db", "not hookgate's queue"]);
    store.connection().execute_batch("PRAGMA user_version = 99").unwrap();
    assert_refused(&store.run(&["list"]), 1, &["newer"]);
}

/// A server that nobody answers for, and one on which no service was ever started.
#[test]
fn a_server_without_a_queue_is_told() {
    let on = |server: &NatsServer, why: &str| {
        let webhook = Webhook::to("http://127.0.0.1:1");
        let setup = Setup::bare().section(&on_nats(server)).with(webhook);
        let config = setup.write();
        let output = run(&["deliveries", "list", "--config", config.to_str().unwrap()], b"");
        assert_refused(&output, 1, &["the queue is still not available", why]);
    };
    let stopped = NatsServer::stopped(TempDir::new(), "");
    let empty = NatsServer::start();
    std::thread::scope(|both| {
        both.spawn(|| on(&stopped, "no connection to NATS"));
        both.spawn(|| on(&empty, "stream not found"));
    });
}

#[test]
fn a_damaged_store_is_told_and_not_touched() {
    let store = Store::new(Kind::Sqlite);
    let connection = store.connection();
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = DELETE").unwrap();
    drop(connection);
    let mut bytes = fs::read(store.path()).unwrap();
    bytes[4096..].fill(0xa5);
    fs::write(store.path(), &bytes).unwrap();
    let output = store.run(&["list"]);
    assert_exit(&output, 1);
    assert!(
        stderr(&output).contains("malformed") || stderr(&output).contains("damaged"),
        "{}",
        stderr(&output)
    );
}

/// Whoever holds the store for longer than a moment does not hold up the command for ever.
#[test]
fn a_locked_store_is_told() {
    let store = Store::new(Kind::Sqlite);
    let connection = store.connection();
    connection.execute_batch("BEGIN IMMEDIATE; UPDATE job SET due = 0").unwrap();
    // Those who read do not mind.
    assert_eq!(store.jobs(&["--state", "dead"]), ["2-1"]);
    assert_refused(&store.run(&["redeliver", "--all"]), 1, &["locked"]);
    connection.execute_batch("ROLLBACK").unwrap();
    assert_exit(&store.run(&["redeliver", "--all"]), 0);
    assert_eq!(store.state("2-1").as_deref(), Some("waiting"));
}

fn a_reader_that_leaves_early_is_no_failure(kind: Kind) {
    let store = Store::new(kind);
    for words in [&["list"][..], &["list", "--json"], &["show", "second"], &["show", "--body", "second"]] {
        let mut child =
            program().args(store.words(words)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_exit(&output, 0);
        assert_eq!(stderr(&output), "");
    }
}

/// A configuration whose queue is this store.
fn setup(store: &Store, section: &str) -> Setup {
    let upstream = Upstream::always(Reply::ok());
    let section = section.replace("{store}", store.path().to_str().unwrap());
    Setup::new(&upstream).section(&section).webhook("name = \"esc\"").destination("name = \"app\"")
}

#[test]
fn the_store_is_found_by_the_configuration() {
    let store = Store::new(Kind::Sqlite);
    let setup = setup(&store, "[queue]\npath = \"{store}\"");
    let config = setup.write();
    let config = config.to_str().unwrap();
    let output = run(&["deliveries", "list", "--json", "--config", config], b"");
    assert_exit(&output, 0);
    let orphaned: Vec<_> = json_lines(&output).iter().map(|job| job["orphaned"].as_bool().unwrap()).collect();
    assert_eq!(jobs(&json_lines(&output)), ["4-1", "3-3", "2-1", "2-2", "1-1"]);
    assert_eq!(orphaned, [false, true, false, true, false]);
    let text = stdout(&run(&["deliveries", "list", "--config", config], b""));
    assert_eq!(text.matches("orphaned").count(), 2, "{text}");
    let shown = stdout(&run(&["deliveries", "show", "2-2", "--config", config], b""));
    assert!(shown.contains("no such destination"), "{shown}");
    // The variable names it too, and a store that is named needs none.
    let by_variable = |words: &[&str]| {
        program().arg("deliveries").args(words).env("HOOKGATE_CONFIG", config).output().unwrap()
    };
    assert_eq!(jobs(&json_lines(&by_variable(&["list", "--json"]))).len(), 5);
    fs::remove_file(config).unwrap();
    assert_exit(&by_variable(&["list", "--json"]), 2);
    assert_exit(&by_variable(&["list", "--store", store.path().to_str().unwrap()]), 0);
    // Orphans are like others.
    let output = by_variable(&["redeliver", "3-3", "--store", store.path().to_str().unwrap()]);
    assert_exit(&output, 0);
}

#[test]
fn a_configuration_has_to_have_a_queue() {
    let store = Store::new(Kind::Sqlite);
    let without = setup(&store, "");
    let config = without.write();
    let on = |config: &Path, words: &[&str]| {
        run(&[&["deliveries"], words, &["--config", config.to_str().unwrap()]].concat(), b"")
    };
    for words in [&["list"][..], &["show", "1-1"], &["redeliver", "--all"], &["purge", "--all", "--yes"]] {
        assert_refused(&on(&config, words), 2, &["hookgate.toml", "[queue]"]);
    }
    let both = ["deliveries", "list", "--config", "x", "--store", "y"];
    assert_exit(&run(&both, b""), 2);
    let wrong = setup(&store, "[queue]\nstor = \"sqlite\"");
    let output = on(&wrong.write(), &["list"]);
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("queue.stor"), "{}", stderr(&output));
    // A service in trouble, whose secret is gone: its queue can be looked into.
    let setup = setup(&store, "[queue]\npath = \"{store}\"").secret("{ env = \"HOOKGATE_TEST_UNSET\" }");
    assert_exit(&on(&setup.write(), &["list"]), 0);
}

/// Beside a running service, which notices by itself.
fn a_running_service_redelivers_what_it_is_told(kind: Kind) {
    let upstream = Upstream::always(Reply::answer(400, &[], "not\x07now"));
    let store = Store::empty(kind);
    let hookgate = Setup::new(&upstream)
        .section(&store.section())
        .webhook("name = \"esc\"")
        .destination("name = \"app\"")
        .start();
    let config = hookgate.config().to_str().unwrap().to_owned();
    let on = |words: &[&str]| {
        let output = run(&[&["deliveries"], words, &["--config", &config]].concat(), b"");
        assert_exit(&output, 0);
        output
    };
    let ended_as = |state: &str| {
        eventually(state, || {
            let found = json_lines(&on(&["list", "--json", "--state", state]));
            (!found.is_empty()).then(|| found[0].clone())
        })
    };
    // A server is reached somewhat later than a file.
    eventually("it is ready", || (hookgate.ops("/readyz").status == 200).then_some(()));
    let delivery = Sent::good();
    assert_eq!(hookgate.send(&delivery).status, 202);
    let job = ended_as("dead");
    assert_eq!((&job["death"], &job["orphaned"]), (&"refused".into(), &false.into()));
    let id = job["id"].as_str().unwrap();
    assert_eq!(id, delivery.header_value("pulumi-webhook-id"));
    let shown = stdout(&on(&["show", id]));
    assert!(shown.contains("status 400") && shown.contains("not\\u{7}now"), "{shown}");
    assert!(!shown.contains(delivery.header_value("pulumi-webhook-signature")), "{shown}");
    assert_eq!(on(&["show", "--body", id]).stdout, delivery.the_body());

    // The service is mended.
    upstream.now(|_| Reply::ok());
    assert!(stdout(&on(&["redeliver", "--webhook", "esc"])).starts_with("1 delivery "));
    let requests = upstream.wait_for(2);
    assert_eq!(requests[1].header("hookgate-attempt"), Some("2"));
    assert_eq!(requests[1].body, delivery.the_body());
    assert_eq!(ended_as("delivered")["attempts"], 2);

    assert!(stdout(&on(&["purge", "--yes", "--all"])).starts_with("1 delivery "));
    assert_eq!(stdout(&on(&["list"])), "No deliveries.\n");
    // The service counts what is left, and goes on.
    hookgate.wait_for_metric("hookgate_queue_depth", &[("webhook", "esc"), ("destination", "app")], 0.0);
    assert_eq!(hookgate.send(&Sent::good().with("Pulumi-Webhook-ID", "another")).status, 202);
    upstream.wait_for(3);
}

/// What is told while the service is down is done when it is up again.
fn a_redelivery_waits_for_the_service(kind: Kind) {
    let store = Store::new(kind);
    let upstream = Upstream::always(Reply::ok());
    assert_exit(&store.run(&["redeliver", "--state", "dead"]), 0);
    let _hookgate = Setup::new(&upstream)
        .section(&store.section())
        .webhook("name = \"esc\"")
        .destination("name = \"app\"")
        .start();
    let request = &upstream.wait_for(1)[0];
    assert_eq!(request.header("pulumi-webhook-id"), Some("second"));
    eventually("it is delivered", || (store.state("2-1")? == "delivered").then_some(()));
    assert_eq!(store.state("2-2").as_deref(), Some("waiting"), "nobody to deliver it to");
}
