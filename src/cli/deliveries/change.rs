//! `hookgate deliveries redeliver` and `purge`: what changes the queue.
//!
//! Nothing is changed by accident: what is meant must be said, by IDs, by a filter, or by `--all`.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{CHANGE, Log, READ, StoreArgs, deliveries, selection::Conditions, show, within};
use crate::{
    cli::{
        Ended, Failure,
        output::{self, Out},
    },
    delivery::queue::{Answer, Filter, Queue, State},
};

const REDELIVER: &str = "\
Examples:
  hookgate deliveries redeliver 1042-1
  hookgate deliveries redeliver --all
  hookgate deliveries redeliver --destination app --since 2h
  hookgate deliveries redeliver --state delivered --event environment_deleted

Without IDs and without --state only dead deliveries are meant. They are due at
once, with attempts and age counted afresh; waiting ones do not wait longer. A
running service notices within a second. Exit status: 0 done, also where the
filters mean none; 1 there is no such ID, or the queue does not work; 2 wrong
usage or configuration.";

const PURGE: &str = "\
Examples:
  hookgate deliveries purge 1042-1
  hookgate deliveries purge --state dead --until 30d
  hookgate deliveries purge --all --yes

Waiting deliveries are purged only if --state waiting or their IDs are given:
nobody will get them any more. What is purged cannot be brought back, so it asks
first, unless --yes is given. Exit status: 0 done, also where the filters mean
none; 1 not purged, there is no such ID, or the queue does not work; 2 wrong
usage or configuration.";

/// IDs of one call of the queue: SQLite bounds the length of a condition.
const PORTION: usize = 100;

/// Jobs that are counted before the question.
const COUNTED: usize = 100_000;

/// How long the question waits for its answer.
const QUESTION: Duration = Duration::from_secs(5 * 60);

/// What is meant.
#[derive(Debug, clap::Args)]
struct Meant {
    /// The IDs of jobs, or Pulumi-Webhook-IDs
    #[arg(value_name = "ID", conflicts_with = "all")]
    ids: Vec<String>,
    #[command(flatten)]
    conditions: Conditions,
    /// Every one that the filters let through, also without a filter
    #[arg(long)]
    all: bool,
    /// Print the number as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `deliveries redeliver`.
#[derive(Debug, clap::Args)]
#[command(after_help = REDELIVER)]
pub(super) struct RedeliverArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    meant: Meant,
}

/// Arguments of `deliveries purge`.
#[derive(Debug, clap::Args)]
#[command(after_help = PURGE)]
pub(super) struct PurgeArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    meant: Meant,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Has deliveries made again.
pub(super) fn redeliver(args: &RedeliverArgs, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let filters = args.meant.filters(&[State::Dead])?;
    args.store.with(async |log| {
        let changed = change(log, &filters, |queue, filter| queue.redeliver(filter)).await?;
        changed.tell(out, &args.meant, "redelivered")
    })
}

/// Forgets deliveries.
pub(super) fn purge(args: &PurgeArgs, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let filters = args.meant.filters(&[State::Delivered, State::Dead, State::Coalesced])?;
    if !args.yes && !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "purging cannot be undone, and there is no terminal to ask on: give --yes".into(),
        ));
    }
    args.store.with(async |log| {
        if !args.yes {
            let mut count = 0;
            for filter in &filters {
                count += within(READ, log.queue.list(filter, COUNTED)).await?.len();
            }
            if count > 0 && !confirmed(count)? {
                return Err(Failure::Failed("nothing is purged".into()));
            }
        }
        let changed = change(log, &filters, |queue, filter| queue.purge(filter)).await?;
        changed.tell(out, &args.meant, "purged")
    })
}

impl Meant {
    /// What is meant, in portions. Without IDs and states, `states` are meant.
    fn filters(&self, states: &[State]) -> Result<Vec<Filter>, Failure> {
        if self.ids.is_empty() {
            if !self.all && self.conditions.are_none() {
                return Err(Failure::Usage(
                    "which deliveries? Give IDs, a filter such as --state dead, or --all".into(),
                ));
            }
            return Ok(vec![self.conditions.filter(&[], states)]);
        }
        let mut ids = self.ids.clone();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids.chunks(PORTION).map(|ids| self.conditions.filter(ids, &[])).collect())
    }
}

/// What came of a change.
#[derive(Debug, Default)]
struct Changed {
    count: u64,
    /// IDs that mean no delivery.
    absent: Vec<String>,
}

impl Changed {
    fn tell(&self, out: &mut Out<impl Write>, meant: &Meant, done: &str) -> Result<Ended, Failure> {
        let Self { count, absent } = self;
        if meant.json {
            writeln!(out, "{}", serde_json::json!({ done: count }))?;
        } else {
            writeln!(out, "{} {done}", deliveries(*count))?;
        }
        for id in absent {
            let filtered = if meant.conditions.are_none() { "" } else { " that the filters let through" };
            output::complain(&format_args!("{}{filtered}", show::absent(id)));
        }
        Ok(if absent.is_empty() { Ended::Well } else { Ended::Badly })
    }
}

/// Changes what is meant, portion by portion.
async fn change(
    log: &Log,
    filters: &[Filter],
    act: impl for<'a> Fn(&'a dyn Queue, &'a Filter) -> Answer<'a, u64>,
) -> Result<Changed, Failure> {
    let mut changed = Changed::default();
    for filter in filters {
        changed.absent.extend(absent(log, filter).await?);
        changed.count += within(CHANGE, act(&*log.queue, filter)).await?;
    }
    Ok(changed)
}

/// Those of the filter's IDs that mean no job.
async fn absent(log: &Log, filter: &Filter) -> Result<Vec<String>, Failure> {
    if filter.ids.is_empty() {
        return Ok(Vec::new());
    }
    let records = within(READ, log.queue.list(filter, COUNTED)).await?;
    let is_there =
        |id: &&String| records.iter().any(|record| record.id.0 == **id || record.delivery_id == **id);
    Ok(filter.ids.iter().filter(|id| !is_there(id)).cloned().collect())
}

/// Asks on the terminal.
fn confirmed(count: usize) -> Result<bool, Failure> {
    let number = if count < COUNTED {
        deliveries(u64::try_from(count).unwrap_or(u64::MAX))
    } else {
        format!("{COUNTED} deliveries or more")
    };
    let mut errors = io::stderr();
    write!(errors, "Purge {number}? They cannot be brought back. [y/N] ").and_then(|()| errors.flush()).ok();
    // Nobody can be made to answer: the thread that reads ends with the process.
    let (answered, answer) = mpsc::channel();
    thread::Builder::new()
        .name("question".into())
        .spawn(move || answered.send(agrees(io::stdin().lock())))
        .map_err(|error| Failure::Failed(format!("cannot ask: {error}")))?;
    answer.recv_timeout(QUESTION).map_err(|_late| Failure::Failed("no answer: nothing is purged".into()))
}

/// Whether the answer is yes. None, and one that cannot be read, is no.
fn agrees(mut input: impl BufRead) -> bool {
    let mut line = String::new();
    let read = io::Read::take(&mut input, 100).read_line(&mut line);
    read.is_ok() && matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        meant: Meant,
    }

    fn meant(args: &[&str]) -> Meant {
        Command::try_parse_from(["test"].iter().chain(args)).unwrap().meant
    }

    #[test]
    fn what_is_meant_has_to_be_said() {
        assert!(matches!(meant(&[]).filters(&[State::Dead]), Err(Failure::Usage(_))));
        assert!(matches!(meant(&["--json"]).filters(&[State::Dead]), Err(Failure::Usage(_))));
        let states = |args: &[&str]| {
            let filters = meant(args).filters(&[State::Dead]).unwrap();
            filters.into_iter().map(|filter| filter.states).collect::<Vec<_>>()
        };
        assert_eq!(states(&["--all"]), [[State::Dead]]);
        assert_eq!(states(&["--webhook", "esc"]), [[State::Dead]]);
        assert_eq!(states(&["--state", "waiting"]), [[State::Waiting]]);
        assert_eq!(states(&["--all", "--state", "waiting"]), [[State::Waiting]]);
        // IDs mean what they mean, whatever its state.
        assert_eq!(states(&["1-1"]), [Vec::<State>::new()]);
        assert_eq!(states(&["1-1", "--state", "dead"]), [[State::Dead]]);
        assert!(Command::try_parse_from(["test", "1-1", "--all"]).is_err());
    }

    #[test]
    fn many_ids_are_portioned() {
        let ids: Vec<String> = (0..250).map(|number| format!("{:03}-1", number % 220)).collect();
        let args: Vec<&str> = ids.iter().map(String::as_str).collect();
        let filters = meant(&args).filters(&[]).unwrap();
        let sizes: Vec<_> = filters.iter().map(|filter| filter.ids.len()).collect();
        assert_eq!(sizes, [100, 100, 20]);
        let all: Vec<_> = filters.into_iter().flat_map(|filter| filter.ids).collect();
        assert_eq!(all, ids[..220]);
    }

    #[test]
    fn only_yes_is_yes() {
        for yes in ["y\n", "Y\n", "yes\n", " Yes \r\n", "y"] {
            assert!(agrees(yes.as_bytes()), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yep\n", "no\ny\n", "\u{ff}\n"] {
            assert!(!agrees(no.as_bytes()), "{no:?}");
        }
        assert!(!agrees(&[b'y'; 1000][..]));
        assert!(!agrees(&b"\xff\n"[..]));
    }
}
