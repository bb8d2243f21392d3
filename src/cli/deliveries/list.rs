//! `hookgate deliveries list`: the log, the newest first.

use std::{
    io::{IsTerminal as _, Write, stdout},
    time::SystemTime,
};

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

On a terminal the table has 80 columns, without time and ID; --wide shows all.
Elsewhere it is always wide. With --json each line is one JSON object, with the same fields for every delivery
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
    /// Show everything, whatever width that takes
    #[arg(long, conflicts_with = "json")]
    wide: bool,
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
            let wide = args.wide || !stdout().is_terminal();
            write!(out, "{}", table(&records, &log.names, SystemTime::now(), wide))?;
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
fn table(records: &[Record], names: &Names, now: SystemTime, wide: bool) -> String {
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
    let all = [head.map(str::to_owned)].into_iter().chain(rows).collect::<Vec<_>>();
    if wide {
        return aligned(&all, usize::MAX);
    }
    let short = |[job, _, age, state, to, event, environment, tries, _]: [String; 9]| {
        [job, age, state, to, event, environment, tries]
    };
    aligned(&all.into_iter().map(short).collect::<Vec<_>>(), NARROW)
}

/// How many columns a terminal has at least.
const NARROW: usize = 80;

/// Rows in columns, each as wide as what is in it; where that is wider than `most` together, the widest
/// lose their middle: both ends tell more of a name.
fn aligned<const N: usize>(rows: &[[String; N]], most: usize) -> String {
    const BETWEEN: usize = 2;
    /// No column is cut further.
    const LEAST: usize = 6;
    let mut widths = [0; N];
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    while widths.iter().sum::<usize>() + BETWEEN * N.saturating_sub(1) > most
        && let Some(widest) = widths.iter_mut().max().filter(|widest| **widest > LEAST)
    {
        *widest -= 1;
    }
    let cut = |text: &str, width: usize| match text.chars().count() {
        length if length <= width => text.to_owned(),
        length => {
            let (kept, begin) = (width.saturating_sub(1), width / 2);
            let end = text.chars().skip(length - (kept - begin));
            text.chars().take(begin).chain(['…']).chain(end).collect()
        }
    };
    let mut table = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(text, width)| format!("{:<width$}  ", cut(text, width)));
        let line: String = cells.collect();
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
        assert_eq!(aligned(&rows, usize::MAX), "A     LONGER\näöüß  x\n");
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
            table(&[hostile.clone(), record(State::Dead), bare.clone()], &names, now(), true),
            "\
JOB     RECEIVED              AGE  STATE              TO        EVENT                         ENVIRONMENT     TRIES  ID
1042-1  2026-05-31T23:00:00Z  59m  waiting, orphaned  esc/gone  environment_revision_created  a\\u{1b}[2Jb\\nc  3      0b5c64a1
1042-1  2026-05-31T23:00:00Z  59m  dead: refused      esc/app   environment_revision_created  website/prod@7  3      0b5c64a1
1042-1  2026-05-31T23:00:00Z  59m  delivered          esc/app   environment_revision_created  -               3      0b5c64a1
"
        );
        assert_eq!(
            table(&[hostile, record(State::Dead), bare], &names, now(), false),
            "\
JOB     AGE  STATE             TO        EVENT             ENVIRONMENT     TRIES
1042-1  59m  waiting,…rphaned  esc/gone  environm…created  a\\u{1b}[2Jb\\nc  3
1042-1  59m  dead: refused     esc/app   environm…created  website/prod@7  3
1042-1  59m  delivered         esc/app   environm…created  -               3
"
        );
        assert_eq!(table(&[], &names, now(), true), "No deliveries.\n");
    }
}
