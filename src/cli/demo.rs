//! `hookgate demo`: the whole path on this machine. An upstream and hookgate start on free loopback ports; sample
//! deliveries and forgeries are sent, and each is compared with what must become of it.
//!
//! The service in it is the one that `run` runs. The secret is made for the occasion and forgotten afterwards.

mod keep;
mod script;
mod upstream;

use std::{
    ffi::OsStr,
    future::pending,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Duration, SystemTime},
};

use hyper::{HeaderMap, header::HeaderValue};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{
        mpsc::{self, UnboundedReceiver},
        oneshot,
    },
};
use zeroize::Zeroizing;

use self::{
    keep::Files,
    script::{Expected, Step},
    upstream::Received,
};
use super::{
    Ended, Failure,
    ask::ask,
    block_on,
    output::{Out, printable},
    send,
};
use crate::{
    app::{self, App},
    config::{self, Config},
    net::{client::Answer, target::Target, tls},
    webhook::secret::Secret,
};

const EXAMPLES: &str = "\
Examples:
  hookgate demo
  hookgate demo --keep

It needs no configuration, no network and no Pulumi account.
Exit status: 0 if everything became what it should, 1 otherwise.";

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Leave it running afterwards, and print commands to try with curl
    #[arg(long)]
    keep: bool,
}

/// The path of the demo's webhook.
const PATH: &str = "/webhooks/pulumi";

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The widths of the table's columns. With two spaces in front and the verdict behind, a row has 80.
const WHAT: usize = 36;
const ANSWER: usize = 22;
const SERVICE: usize = 15;

/// Starts everything, plays the script, and stops everything.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let (secret, stranger) = (random_secret()?, random_secret()?);
    block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let (listener, upstream) = listener
            .and_then(|listener| Ok((listener.local_addr()?, listener)))
            .map(|(address, listener)| (listener, address))
            .map_err(|error| Failure::Failed(format!("no free loopback port for the upstream: {error}")))?;
        let app = App::build(config(&secret, upstream)?, None)
            .map_err(|error| Failure::Failed(error.to_string()))?;
        let webhook = format!("http://{}{PATH}", app.addresses().webhook);
        let ops = format!("http://{}", app.addresses().ops);
        writeln!(
            out,
            "hookgate {} listens on {webhook},\nthe service behind it on {upstream}.\n",
            env!("CARGO_PKG_VERSION")
        )?;

        let (report, mut received) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let play = async {
            let played = play(&secret, &stranger, &webhook, &mut received, out).await;
            let played = match played {
                Ok(ended) if args.keep => {
                    leave_running(&secret, &webhook, &ops, &mut received, out).await.map(|()| ended)
                }
                other => other,
            };
            drop(stop);
            played
        };
        let serve = app.run(async { stopped.await.unwrap_or(()) }, pending());
        tokio::select! {
            (played, _) = async { tokio::join!(play, serve) } => played,
            error = upstream::serve(listener, report) => {
                Err(Failure::Failed(format!("the demo's upstream ended: {error}")))
            }
        }
    })
}

async fn play(
    secret: &Secret,
    stranger: &Secret,
    webhook: &str,
    received: &mut UnboundedReceiver<Received>,
    out: &mut Out<impl Write>,
) -> Result<Ended, Failure> {
    let target = Target::parse(webhook).map_err(|error| Failure::Failed(error.to_string()))?;
    let (mut all, mut right) = (0_u32, 0_u32);
    for scene in script::scenes(secret, stranger) {
        writeln!(out, "{:<width$}{:<ANSWER$}service got", scene.title, "answer", width = WHAT + 2)?;
        for step in scene.steps {
            let answer = send_step(&target, &step).await?;
            let arrived: Vec<_> = std::iter::from_fn(|| received.try_recv().ok()).collect();
            let seen = Seen::new(&answer, &arrived, &step);
            let verdict = if seen.is(&step.expected) { "ok" } else { "WRONG" };
            let answered = format!("{} {}", seen.status, seen.outcome);
            writeln!(
                out,
                "  {:<WHAT$}{answered:<ANSWER$}{:<SERVICE$}{verdict}",
                step.what,
                seen.arrival.words()
            )?;
            all += 1;
            if seen.is(&step.expected) {
                right += 1;
            } else {
                let Expected { status, outcome, reaches } = step.expected;
                let arrival = if reaches.is_some() { Arrival::Whole } else { Arrival::Nothing };
                writeln!(out, "    expected: {status} {outcome}, and the service gets {}", arrival.words())?;
            }
        }
        writeln!(out)?;
    }
    if right == all {
        writeln!(
            out,
            "All {all} right: what was signed and wanted came through once, byte for byte.\n\
             Nothing else did."
        )?;
        Ok(Ended::Well)
    } else {
        writeln!(out, "{} of {all} WRONG.", all - right)?;
        Ok(Ended::Badly)
    }
}

async fn send_step(target: &Target, step: &Step) -> Result<Answer, Failure> {
    let id = step.id.map_or_else(send::random_id, HeaderValue::from_static);
    let kind = HeaderValue::from_static(step.kind);
    let request = send::delivery(step.body.clone(), id, kind, step.signature.as_deref());
    ask(target, request, LIMIT, None).await.map_err(|error| Failure::Failed(error.to_string()))
}

/// What became of a step.
#[derive(Debug)]
struct Seen {
    status: u16,
    outcome: String,
    arrival: Arrival,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Nothing,
    /// Once, byte for byte, as the event that it is.
    Whole,
    Altered,
    Misnamed,
    Repeated,
}

impl Arrival {
    const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Whole => "every byte",
            Self::Altered => "other bytes",
            Self::Misnamed => "another event",
            Self::Repeated => "it repeatedly",
        }
    }
}

impl Seen {
    fn new(answer: &Answer, arrived: &[Received], step: &Step) -> Self {
        let arrival = match arrived {
            [] => Arrival::Nothing,
            [one] if one.body != step.body => Arrival::Altered,
            [one] if step.expected.reaches.is_some_and(|event| event != one.event) => Arrival::Misnamed,
            [_] => Arrival::Whole,
            _ => Arrival::Repeated,
        };
        Self { status: answer.status.as_u16(), outcome: outcome(&answer.headers), arrival }
    }

    fn is(&self, expected: &Expected) -> bool {
        let arrival = if expected.reaches.is_some() { Arrival::Whole } else { Arrival::Nothing };
        self.status == expected.status && self.outcome == expected.outcome && self.arrival == arrival
    }
}

fn outcome(headers: &HeaderMap) -> String {
    headers
        .get("hookgate-outcome")
        .map_or_else(|| "(no outcome)".into(), |value| printable(value.as_bytes(), false))
}

/// Prints what to try, and what the upstream receives, until it is told to end.
async fn leave_running(
    secret: &Secret,
    webhook: &str,
    ops: &str,
    received: &mut UnboundedReceiver<Received>,
    out: &mut Out<impl Write>,
) -> Result<(), Failure> {
    let unwatched = |error: io::Error| Failure::Failed(format!("signals cannot be watched: {error}"));
    let (end, _) = app::signals().map_err(unwatched)?;
    let files = Files::write(secret)
        .map_err(|error| Failure::Failed(format!("cannot write the files to try with: {error}")))?;
    writeln!(
        out,
        "\nIt keeps running until Ctrl-C. In another terminal:\n\n{}\n",
        files.commands(webhook, ops)
    )?;
    let mut end = std::pin::pin!(end);
    // The service takes a hangup for the wish to reload. Here it is the terminal's end.
    let mut hangup = signal(SignalKind::hangup()).map_err(unwatched)?;
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            Some(one) = received.recv() => {
                let event = printable(one.event.as_bytes(), false);
                let id = printable(one.id.as_bytes(), false);
                writeln!(out, "upstream received {event}, {} bytes, ID {id}", one.body.len())?;
            }
        }
    }
}

/// The variable that holds the demo's secret, in an environment of its own.
const SECRET: &str = "DEMO_SECRET";

/// The demo's hookgate, configured as users do it: one webhook that wants every ESC event, on loopback ports that the
/// kernel chooses.
fn config(secret: &Secret, upstream: SocketAddr) -> Result<Config, Failure> {
    let text = format!(
        r#"
        server.listen = "127.0.0.1:0"
        ops.listen = "127.0.0.1:0"

        [[webhook]]
        name = "demo"
        path = "{PATH}"
        events = ["{events}"]
        secret = {{ env = "{SECRET}" }}

        [[webhook.destination]]
        name = "demo"
        url = "http://{upstream}/"
        timeout = "{limit}"
        "#,
        events = script::WANTED.name(),
        limit = config::show_duration(LIMIT),
    );
    let variable = |name: &str| (name == SECRET).then(|| OsStr::from_bytes(secret.as_key()).to_owned());
    let parsed = Config::parse_in(Path::new("the demo's configuration"), &text, SystemTime::now(), &variable);
    let mut config = parsed.map_err(Failure::Configuration)?;
    // There is no file to watch.
    config.files.clear();
    config.looks.clear();
    Ok(config)
}

/// A secret of 32 random bytes, as text.
fn random_secret() -> Result<Secret, Failure> {
    let mut bytes = Zeroizing::new([0; 32]);
    let failed = || Failure::Failed("the system gives no random bytes".into());
    tls::provider().secure_random.fill(&mut *bytes).map_err(|_nothing_more| failed())?;
    Secret::try_new(hex::encode(*bytes).into_bytes(), false).map_err(|_impossible| failed())
}

#[cfg(test)]
mod tests {
    use hyper::{StatusCode, Version};

    use super::*;
    use crate::{net::client::BodyEnd, webhook::event::PING};

    fn answer(status: u16, outcome: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert("hookgate-outcome", HeaderValue::from_static(outcome));
        let status = StatusCode::from_u16(status).unwrap();
        Answer { version: Version::HTTP_11, status, headers, body: Vec::new(), end: BodyEnd::Complete }
    }

    fn received(event: &str, body: &[u8]) -> Received {
        Received { id: "x".into(), event: event.into(), body: body.to_vec() }
    }

    /// The demo must be able to fail.
    #[test]
    fn only_what_was_expected_is_right() {
        let expected = Expected { status: 200, outcome: "forwarded", reaches: Some(PING) };
        let step = Step {
            what: String::new(),
            body: "{}".into(),
            id: None,
            kind: PING,
            signature: None,
            expected: Expected { reaches: Some(PING), ..expected },
        };
        let is = |answer: Answer, arrived: &[Received]| Seen::new(&answer, arrived, &step).is(&step.expected);
        assert!(is(answer(200, "forwarded"), &[received(PING, b"{}")]));
        assert!(!is(answer(201, "forwarded"), &[received(PING, b"{}")]));
        assert!(!is(answer(200, "queued"), &[received(PING, b"{}")]));
        assert!(!is(answer(200, "forwarded"), &[]));
        assert!(!is(answer(200, "forwarded"), &[received(PING, b"{ }")]));
        assert!(!is(answer(200, "forwarded"), &[received("stack_created", b"{}")]));
        assert!(!is(answer(200, "forwarded"), &[received(PING, b"{}"), received(PING, b"{}")]));

        let step =
            Step { expected: Expected { status: 401, outcome: "bad_signature", reaches: None }, ..step };
        let is = |answer: Answer, arrived: &[Received]| Seen::new(&answer, arrived, &step).is(&step.expected);
        assert!(is(answer(401, "bad_signature"), &[]));
        assert!(!is(answer(401, "bad_signature"), &[received(PING, b"{}")]));
    }

    #[test]
    fn the_whole_demo_goes_well() {
        let mut printed = Vec::new();
        let ended = run(&Args { keep: false }, &mut Out::new(&mut printed)).unwrap();
        let printed = String::from_utf8(printed).unwrap();
        assert_eq!(ended, Ended::Well, "{printed}");
        assert!(printed.lines().all(|line| line.chars().count() <= 80), "{printed}");
        assert_eq!(printed.lines().filter(|line| line.ends_with(" ok")).count(), 21, "{printed}");
        // The README shows it, with the ports of some other time.
        let without_ports = |text: &str| {
            text.trim()
                .lines()
                .map(|line| line.split("127.0.0.1:").next().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let readme = include_str!("../../README.md");
        let (_, shown) = readme.split_once("<!-- demo:begin -->\n```text\n").unwrap();
        let (shown, _) = shown.split_once("```\n<!-- demo:end -->").unwrap();
        assert_eq!(without_ports(shown), without_ports(&printed));
    }
}
