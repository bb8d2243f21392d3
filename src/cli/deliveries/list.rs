//! `hookgate deliveries list`: the log, the newest first.

use std::{io::Write, time::SystemTime};

use super::{
    Names, READ, StoreArgs,
    record::{RecordJson, age, standing},
    selection::Conditions,
    within,
};
use crate::{
    cli::{
        Ended, Failure,
        output::{Out, complain, printable},
    },
    config::show_instant,
    delivery::queue::Record,
};

const EXAMPLES: &str = "\
Examples:
  hookgate deliveries list
  hookgate deliveries list --state dead --since 2h
  hookgate deliveries list --json | jq -r 'select(.attempts > 3).job'

With --json each line is one JSON object, with the same fields for every delivery
and times in RFC 3339; `jq -s` makes an array of them. A delivery that goes to
several destinations is listed once for each. `orphaned`: its webhook or
destination is not in the configuration any more. Exit status: 0 done, 1 the
queue does not work, 2 wrong usage or configuration.";

/// Arguments of `deliveries list`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    conditions: Conditions,
    /// Show this many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Lists.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let max = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let filter = args.conditions.filter(&[], &[]);
    args.store.with(async |log| {
        // One more tells whether there are more.
        let mut records = within(READ, log.queue.list(&filter, max.saturating_add(1))).await?;
        let more = records.len() > max;
        records.truncate(max);
        if args.json {
            for record in &records {
                writeln!(out, "{}", json(&RecordJson::new(record, log.names.lack(&record.recipient)))?)?;
            }
            if more {
                complain(&format_args!("there are more than {max}: --limit N shows them"));
            }
        } else {
            write!(out, "{}", table(&records, &log.names, SystemTime::now()))?;
            if more {
                writeln!(out, "There are more: --limit N shows more than {max}.")?;
            }
        }
        Ok(Ended::Well)
    })
}

/// One line of JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::Failed(format!("cannot write JSON: {error}")))
}

/// For people.
fn table(records: &[Record], names: &Names, now: SystemTime) -> String {
    if records.is_empty() {
        return "No deliveries.\n".into();
    }
    let head = ["JOB", "RECEIVED", "AGE", "STATE", "TO", "EVENT", "ENVIRONMENT", "TRIES", "ID"];
    let rows = records.iter().map(|record| {
        let environment = record.environment.as_deref().unwrap_or("-");
        let environment = match record.revision {
            Some(revision) => format!("{environment}@{revision}"),
            None => environment.to_owned(),
        };
        [
            record.id.to_string(),
            show_instant(record.received),
            age(record.received, now),
            standing(record, names.lack(&record.recipient), now),
            record.recipient.to_string(),
            record.event.clone(),
            environment,
            record.attempts.to_string(),
            record.delivery_id.clone(),
        ]
        .map(|text| printable(text.as_bytes(), false))
    });
    aligned(&[head.map(str::to_owned)].into_iter().chain(rows).collect::<Vec<_>>())
}

/// Rows in columns, each as wide as what is in it.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let mut table = String::new();
    for row in rows {
        let line: String = row.iter().zip(widths).map(|(text, width)| format!("{text:<width$}  ")).collect();
        table += line.trim_end();
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{
        super::record::tests::{now, record},
        *,
    };
    use crate::delivery::queue::{Recipient, State};

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["A", "LONGER"], ["äöüß", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "A     LONGER\näöüß  x\n");
    }

    #[test]
    fn jobs_are_rows() {
        let mut hostile = record(State::Waiting);
        hostile.environment = Some("a\u{1b}[2Jb\nc".into());
        hostile.revision = None;
        hostile.recipient.destination = "gone".into();
        let mut bare = record(State::Delivered);
        (bare.environment, bare.revision) = (None, None);
        let names = Names(Some(
            [Recipient { webhook: "esc".into(), destination: "app".into() }].into_iter().collect(),
        ));
        assert_eq!(
            table(&[hostile, record(State::Dead), bare], &names, now()),
            "\
JOB     RECEIVED              AGE  STATE              TO        EVENT                         ENVIRONMENT     TRIES  ID
1042-1  2026-05-31T23:00:00Z  59m  waiting, orphaned  esc/gone  environment_revision_created  a\\u{1b}[2Jb\\nc  3      0b5c64a1
1042-1  2026-05-31T23:00:00Z  59m  dead: refused      esc/app   environment_revision_created  website/prod@7  3      0b5c64a1
1042-1  2026-05-31T23:00:00Z  59m  delivered          esc/app   environment_revision_created  -               3      0b5c64a1
"
        );
        assert_eq!(table(&[], &names, now()), "No deliveries.\n");
    }
}
