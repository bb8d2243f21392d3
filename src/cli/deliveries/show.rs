//! `hookgate deliveries show`: everything about a delivery.

use std::{
    fmt::{self, Display, Formatter},
    io::Write,
    time::SystemTime,
};

use serde::Serialize;

use super::{
    Log, READ, StoreArgs, list,
    record::{RecordJson, age, instant, standing},
    within,
};
use crate::{
    cli::{
        Ended, Failure,
        output::{Out, complain, printable},
    },
    config::show_instant,
    delivery::{
        parcel::Parcel,
        queue::{Attempt, Death, Details, Filter, Record},
    },
};

const EXAMPLES: &str = "\
Examples:
  hookgate deliveries show 1042-1
  hookgate deliveries show --body 1042-1 | jq .
  hookgate deliveries show --json 0b5c64a1-31cd-4d3f-8a4e-6f4c7a1d2e90

An ID is that of `deliveries list`, or a Pulumi-Webhook-ID, which means the
delivery to each of its destinations. Of each attempt the first 2 KiB of the
answer are kept. With --json each line is one JSON object. Exit status: 0 done,
1 there is no such delivery, 2 wrong usage or configuration.";

/// Jobs that one ID means at most.
const MAX: usize = 1000;

/// Arguments of `deliveries show`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    store: StoreArgs,
    /// What to show: the ID of a job, or a Pulumi-Webhook-ID
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Print the body and nothing else, byte for byte
    #[arg(long, conflicts_with = "json")]
    body: bool,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Shows.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    args.store.with(async |log| {
        if args.body {
            return body(log, &args.ids, out).await;
        }
        let mut ended = Ended::Well;
        let mut first = true;
        for id in &args.ids {
            let records = find(log, id).await?;
            if records.is_empty() {
                complain(&absent(id));
                ended = Ended::Badly;
            }
            for record in &records {
                // Purged between the two looks.
                let Some(details) = within(READ, log.queue.show(&record.id)).await? else { continue };
                let orphaned = log.names.lack(&record.recipient);
                if args.json {
                    writeln!(out, "{}", list::json(&DetailsJson::new(&details, orphaned))?)?;
                    continue;
                }
                let gap = if std::mem::take(&mut first) { "" } else { "\n" };
                write!(out, "{gap}{}", Description { details: &details, orphaned, now: SystemTime::now() })?;
            }
        }
        Ok(ended)
    })
}

/// The jobs that an ID means.
async fn find(log: &Log, id: &str) -> Result<Vec<Record>, Failure> {
    let filter = Filter { ids: vec![id.to_owned()], ..Filter::default() };
    within(READ, log.queue.list(&filter, MAX)).await
}

pub(super) fn absent(id: &str) -> String {
    format!("there is no delivery `{}`", printable(id.as_bytes(), false))
}

/// Prints a body. The jobs of one delivery have the same.
async fn body(log: &Log, ids: &[String], out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let mut found = None;
    for id in ids {
        let records = find(log, id).await?;
        if records.is_empty() {
            return Err(Failure::Failed(absent(id)));
        }
        for record in &records {
            let Some(details) = within(READ, log.queue.show(&record.id)).await? else { continue };
            let body = details.parcel.body;
            if found.as_ref().is_some_and(|known| *known != body) {
                return Err(Failure::Usage(
                    "--body prints one body, and these are several: name one job of `deliveries list`".into(),
                ));
            }
            found = Some(body);
        }
    }
    match found {
        Some(body) => out.write_bytes(body.bytes()).map(|()| Ended::Well),
        None => Err(Failure::Failed("the delivery has just been purged".into())),
    }
}

/// Names and values of what is forwarded with the body.
fn headers(parcel: &Parcel, webhook: &str) -> [(&'static str, String); 8] {
    let text = |value: &[u8]| printable(value, false);
    [
        ("Content-Type", text(parcel.content_type.as_str().as_bytes())),
        ("Pulumi-Webhook-ID", text(parcel.id.as_bytes())),
        ("Pulumi-Webhook-Kind", text(parcel.kind.as_bytes())),
        ("Pulumi-Webhook-Signature", shortened(&text(parcel.signature.as_bytes()))),
        ("Hookgate-Webhook", text(webhook.as_bytes())),
        ("Hookgate-Event", text(parcel.event.as_bytes())),
        ("Hookgate-Kind-Verified", parcel.kind_verified.to_string()),
        ("traceparent", text(parcel.traceparent.as_bytes())),
    ]
}

/// Enough to compare it with another one, too little to send it again.
fn shortened(signature: &str) -> String {
    signature.chars().take(8).chain(['…']).collect()
}

/// Everything about a job as JSON.
#[derive(Debug, Serialize)]
struct DetailsJson<'d> {
    #[serde(flatten)]
    record: RecordJson<'d>,
    headers: serde_json::Map<String, serde_json::Value>,
    /// Null where it is not text.
    body: Option<&'d str>,
    attempt_log: Vec<AttemptJson<'d>>,
}

#[derive(Debug, Serialize)]
struct AttemptJson<'d> {
    number: u32,
    at: String,
    duration_ms: u64,
    status: Option<u16>,
    error: Option<&'d str>,
    answer: String,
}

impl<'d> DetailsJson<'d> {
    fn new(details: &'d Details, orphaned: Option<bool>) -> Self {
        let Details { record, parcel, attempts } = details;
        let attempt = |attempt: &'d Attempt| AttemptJson {
            number: attempt.number,
            at: instant(attempt.at),
            duration_ms: u64::try_from(attempt.duration.as_millis()).unwrap_or(u64::MAX),
            status: attempt.status,
            error: attempt.error.as_deref(),
            answer: String::from_utf8_lossy(&attempt.answer).into_owned(),
        };
        Self {
            record: RecordJson::new(record, orphaned),
            headers: headers(parcel, &record.recipient.webhook)
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect(),
            body: str::from_utf8(parcel.body.bytes()).ok(),
            attempt_log: attempts.iter().map(attempt).collect(),
        }
    }
}

/// Everything about a job for people.
#[derive(Debug)]
struct Description<'d> {
    details: &'d Details,
    orphaned: Option<bool>,
    now: SystemTime,
}

impl Display for Description<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { details: Details { record, parcel, attempts }, orphaned, now } = self;
        let moment = |at| format!("{}, {} ago", show_instant(at), age(at, *now));
        writeln!(f, "{} to {}", record.id, safe(&record.recipient.to_string()))?;
        line(f, "state", &standing(record, *orphaned, *now))?;
        if let Some(death) = record.death {
            line(f, "why", meaning(death))?;
        }
        if *orphaned == Some(true) {
            line(
                f,
                "orphaned",
                "the configuration has no such destination: the job waits until the name returns",
            )?;
        }
        line(f, "received", &moment(record.received))?;
        if let Some(due) = record.due {
            line(f, "due", &show_instant(due))?;
        }
        if let Some(finished) = record.finished {
            line(f, "finished", &moment(finished))?;
        }
        line(f, "event", &safe(&record.event))?;
        if let Some(environment) = &record.environment {
            line(f, "environment", &safe(environment))?;
        }
        if let Some(revision) = record.revision {
            line(f, "revision", &revision.to_string())?;
        }
        line(f, "body", &format!("{} bytes; --body prints them", record.size))?;
        let mut label = "headers";
        for (name, value) in headers(parcel, &record.recipient.webhook) {
            line(f, std::mem::take(&mut label), &format!("{name}: {value}"))?;
        }
        if attempts.is_empty() {
            line(f, "attempts", "none yet")?;
        }
        attempts.iter().try_for_each(|attempt| describe(f, attempt))
    }
}

fn describe(f: &mut Formatter<'_>, attempt: &Attempt) -> fmt::Result {
    let Attempt { number, at, duration, status, error, answer } = attempt;
    let mut told = show_instant(*at);
    if let Some(status) = status {
        told += &format!(", status {status}");
    }
    told += &format!(", {} ms", duration.as_millis());
    if let Some(error) = error {
        told += &format!(": {}", safe(error));
    }
    line(f, &format!("attempt {number}"), &told)?;
    if !answer.is_empty() {
        let answer = printable(answer, true);
        let mut label = "answer";
        for text in answer.trim_end().split('\n') {
            line(f, std::mem::take(&mut label), text)?;
        }
    }
    Ok(())
}

/// What is meant by a reason.
const fn meaning(death: Death) -> &'static str {
    match death {
        Death::Refused => "the service's answer says that trying again will not help",
        Death::Attempts => "`queue.max_attempts` attempts were made",
        Death::Age => "it became older than `queue.max_age`",
        Death::Render => "the destination's format cannot show it",
        Death::Damaged => "its stored data cannot be read",
    }
}

fn safe(text: &str) -> String {
    printable(text.as_bytes(), false)
}

/// One line: a label of fixed width, and what it is about.
fn line(f: &mut Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    writeln!(f, "{}", format!("  {label:<13} {text}").trim_end())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use hyper::header::HeaderValue;

    use super::{
        super::record::tests::{now, record},
        *,
    };
    use crate::delivery::{
        parcel::{MediaType, VerifiedBody},
        queue::State,
    };

    fn details() -> Details {
        let header = |text: &str| HeaderValue::from_str(text).unwrap();
        let at = now() - Duration::from_secs(120);
        Details {
            record: record(State::Dead),
            parcel: Parcel {
                body: VerifiedBody::stored(Bytes::from_static(b"{}")),
                content_type: MediaType::Json,
                id: header("0b5c64a1"),
                kind: header("environment_revision"),
                signature: header(&"7e94aa01".repeat(8)),
                event: header("environment_revision_created"),
                kind_verified: true,
                traceparent: header("00-1-1-01"),
                received: at,
            },
            attempts: vec![
                Attempt {
                    number: 1,
                    at,
                    duration: Duration::from_micros(12_345),
                    status: Some(503),
                    error: None,
                    answer: Bytes::from_static(b"try \x1b[2Jlater\nor never\n"),
                },
                Attempt {
                    number: 2,
                    at,
                    duration: Duration::from_secs(10),
                    status: None,
                    error: Some("no answer\nwithin 10s".into()),
                    answer: Bytes::new(),
                },
            ],
        }
    }

    #[test]
    fn everything_is_told_and_nothing_moves_the_cursor() {
        let details = details();
        let told = Description { details: &details, orphaned: Some(true), now: now() }.to_string();
        let expected = "\
1042-1 to esc/app
  state         dead: refused, orphaned
  why           the service's answer says that trying again will not help
  orphaned      the configuration has no such destination: the job waits until the name returns
  received      2026-05-31T23:00:00Z, 59m ago
  finished      2026-05-31T23:59:00Z, 1m ago
  event         environment_revision_created
  environment   website/prod
  revision      7
  body          1234 bytes; --body prints them
  headers       Content-Type: application/json
                Pulumi-Webhook-ID: 0b5c64a1
                Pulumi-Webhook-Kind: environment_revision
                Pulumi-Webhook-Signature: 7e94aa01…
                Hookgate-Webhook: esc
                Hookgate-Event: environment_revision_created
                Hookgate-Kind-Verified: true
                traceparent: 00-1-1-01
  attempt 1     2026-05-31T23:58:00Z, status 503, 12 ms
  answer        try \\u{1b}[2Jlater
                or never
  attempt 2     2026-05-31T23:58:00Z, 10000 ms: no answer\\nwithin 10s
";
        assert_eq!(told, expected);
    }

    #[test]
    fn json_says_the_same() {
        let details = details();
        let json = serde_json::to_value(DetailsJson::new(&details, Some(false))).unwrap();
        assert_eq!(json["job"], "1042-1");
        assert_eq!(json["orphaned"], false);
        assert_eq!(json["body"], "{}");
        assert_eq!(json["headers"]["Pulumi-Webhook-Signature"], "7e94aa01…");
        assert_eq!(
            json["attempt_log"],
            serde_json::json!([
                { "number": 1, "at": "2026-05-31T23:58:00.000Z", "duration_ms": 12, "status": 503, "error": null,
                  "answer": "try \u{1b}[2Jlater\nor never\n" },
                { "number": 2, "at": "2026-05-31T23:58:00.000Z", "duration_ms": 10_000, "status": null,
                  "error": "no answer\nwithin 10s", "answer": "" },
            ])
        );
    }
}
