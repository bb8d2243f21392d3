//! `hookgate deliveries`: the log of the queue and its dead letters.
//!
//! It works on the store itself, beside a running service or without one. What it prints of others is made safe for a
//! terminal, and signatures are shortened: the log is read over shoulders and pasted into tickets.

mod change;
mod list;
mod record;
mod selection;
mod show;

use std::{
    collections::HashSet,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use tokio::time::timeout;

use super::{Ended, Failure, block_on, input::ConfigArgs, output::Out};
use crate::{
    config::{QueueView, show_duration},
    delivery::queue::{
        Answer, Health, Queue, Recipient, Store,
        nats::{self, Nats},
        sqlite::{OpenError, Sqlite, Why},
    },
};

const EXAMPLES: &str = "\
Examples:
  hookgate deliveries list --state dead --since 2h
  hookgate deliveries show 1042-1
  hookgate deliveries redeliver --state dead --destination app
  hookgate deliveries purge --state dead --until 30d

They work on the store itself, beside a running service or without one. Exit
status: 0 done, 1 failed, 2 wrong usage or configuration.";

/// How long the store may take to say something.
const READ: Duration = Duration::from_secs(60);

/// How long it may take to change something.
const CHANGE: Duration = Duration::from_secs(10 * 60);

/// Arguments of `deliveries`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List deliveries and their outcomes, the newest first
    List(list::Args),
    /// Show everything about a delivery: headers, attempts, answers
    Show(show::Args),
    /// Have deliveries made again, the dead ones unless told otherwise
    Redeliver(change::RedeliverArgs),
    /// Forget deliveries, with their bodies and attempts
    Purge(change::PurgeArgs),
}

/// Does what the arguments ask for.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    match &args.command {
        Command::List(args) => list::run(args, out),
        Command::Show(args) => show::run(args, out),
        Command::Redeliver(args) => change::redeliver(args, out),
        Command::Purge(args) => change::purge(args, out),
    }
}

/// Which store is meant.
#[derive(Debug, clap::Args)]
struct StoreArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The SQLite file of a queue, instead of the one in the configuration, which is not read then
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    store: Option<PathBuf>,
}

/// A queue that is open.
#[derive(Debug)]
struct Log {
    queue: Box<dyn Queue>,
    names: Names,
}

/// Whom the configuration delivers to. `None`: no configuration was read.
#[derive(Debug, Default)]
struct Names(Option<HashSet<Recipient>>);

impl Names {
    /// Whether the configuration has no such destination any more.
    fn lack(&self, recipient: &Recipient) -> Option<bool> {
        self.0.as_ref().map(|known| !known.contains(recipient))
    }
}

impl StoreArgs {
    /// Opens the store, works with it, and closes it.
    fn with<T>(&self, work: impl AsyncFnOnce(&Log) -> Result<T, Failure>) -> Result<T, Failure> {
        block_on(async {
            let log = self.open()?;
            ready(&*log.queue).await?;
            let done = work(&log).await;
            // What was done is committed: a failure at the end takes nothing back.
            drop(timeout(Duration::from_secs(1), log.queue.close()).await);
            done
        })
    }

    fn open(&self) -> Result<Log, Failure> {
        if let Some(path) = &self.store {
            return Ok(Log { queue: sqlite(path)?, names: Names::default() });
        }
        let path = self.config.path();
        let QueueView { queue, recipients } = QueueView::load(&path).map_err(Failure::Configuration)?;
        let Some(settings) = queue else {
            return Err(Failure::Usage(format!(
                "{} has no section [queue], so nothing is kept: name a configuration with one by --config FILE, or a queue's file by --store PATH",
                path.display()
            )));
        };
        Ok(Log { queue: open(&settings.store)?, names: Names(Some(recipients)) })
    }
}

/// Opens a store beside the service, or without one.
fn open(store: &Store) -> Result<Box<dyn Queue>, Failure> {
    match store {
        Store::Sqlite { path } => sqlite(path),
        Store::Nats(settings) => nats(settings),
    }
}

fn sqlite(path: &Path) -> Result<Box<dyn Queue>, Failure> {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::Usage(format!(
                "there is no queue {shown}: `hookgate run` makes it when it starts with [queue]"
            )));
        }
        Ok(file) if !file.is_file() => return Err(Failure::Usage(format!("{shown} is not a file"))),
        _ => {}
    }
    match Sqlite::open_beside(path) {
        Ok(queue) => Ok(Box::new(queue)),
        Err(error @ OpenError { why: Why::Foreign, .. }) => Err(Failure::Usage(error.to_string())),
        Err(error) => Err(Failure::Failed(error.to_string())),
    }
}

/// A file is ready at once; a server must be reached first.
async fn ready(queue: &dyn Queue) -> Result<(), Failure> {
    let mut health = queue.health();
    let reached = timeout(REACH, health.wait_for(|health| *health == Health::Ready)).await.is_ok();
    match &*queue.health().borrow() {
        Health::NotReady(why) if !reached => Err(Failure::Failed(format!(
            "the queue is still not available after {}: {why}",
            show_duration(REACH)
        ))),
        _ => Ok(()),
    }
}

/// How long a server may take to be reached.
const REACH: Duration = Duration::from_secs(10);

fn nats(settings: &nats::Settings) -> Result<Box<dyn Queue>, Failure> {
    match Nats::start_beside(settings) {
        Ok(queue) => Ok(Box::new(queue)),
        Err(error) => Err(Failure::Usage(format!("the queue on NATS: {error}"))),
    }
}

/// Waits for the queue, but not for ever.
async fn within<T>(limit: Duration, answer: Answer<'_, T>) -> Result<T, Failure> {
    match timeout(limit, answer).await {
        Ok(result) => result.map_err(|error| Failure::Failed(error.to_string())),
        Err(_elapsed) => {
            Err(Failure::Failed(format!("the queue did not answer within {}", show_duration(limit))))
        }
    }
}

/// `1 delivery`, `2 deliveries`.
fn deliveries(count: u64) -> String {
    if count == 1 { "1 delivery".into() } else { format!("{count} deliveries") }
}
