//! `hookgate check`: validates the configuration, and says in plain words what it means.
//!
//! Nothing is bound, connected or written. Secrets and header values are told by where they come from only, and a
//! URL's query is left out, for it may hold a token.

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Formatter, Write as _},
    io::Write,
};

use super::{Ended, Failure, input::ConfigArgs, output::Out};
use crate::{
    app::doubt_descriptors,
    config::{
        Config, Destination, IdentityFiles, Origin, Queue, Webhook, show_duration, show_instant, show_size,
    },
    delivery::{destination, queue::Store},
    ops::log,
    webhook::{
        event::{EVENTS, Kind},
        filter::{Events, KindCheck},
    },
};

const EXAMPLES: &str = "\
Examples:
  hookgate check --config hookgate.toml

Exit status: 0 the configuration is good, 2 it is not: every mistake is told with
its place and what would be right.";

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Says what the configuration means, or what is wrong with it.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let mut config = Config::load(&args.config.path()).map_err(Failure::Configuration)?;
    config.warnings.extend(doubt_descriptors(&config));
    write!(out, "{}", Description(&config))?;
    Ok(Ended::Well)
}

/// What a configuration means, in plain words, line by line.
#[derive(Debug)]
struct Description<'c>(&'c Config);

impl Display for Description<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(config) = self;
        let server = &config.server;
        writeln!(f, "{} is good. What it means:\n", config.path.display())?;
        match &config.tls {
            None => line(f, 0, "deliveries", format_args!("taken at {}, without TLS", server.listen))?,
            Some(tls) => {
                line(f, 0, "deliveries", format_args!("taken at {}, with TLS 1.2 or 1.3", server.listen))?;
                line(f, 0, "certificate", Files(&tls.files))?;
            }
        }
        line(f, 0, "health", format_args!("and metrics at {}", config.ops.listen))?;
        line(
            f,
            0,
            "limits",
            format_args!(
                "body {}, head {}, {} connections, {} of bodies held at a time",
                size(server.max_body),
                size(server.max_header),
                server.max_connections,
                size(server.max_inflight_bytes),
            ),
        )?;
        line(
            f,
            0,
            "timeouts",
            format_args!(
                "head {}, body {}, idle {}, drain {}",
                show_duration(server.header_timeout),
                show_duration(server.body_timeout),
                show_duration(server.idle_timeout),
                show_duration(server.drain_timeout),
            ),
        )?;
        let window = config.dedupe.window;
        if window.is_zero() {
            line(f, 0, "duplicates", "not told: no memory of IDs at all")?;
        } else {
            let what = if config.queue.is_some() { "while one waits, and for" } else { "for" };
            line(f, 0, "duplicates", format_args!("told {what} {} after a delivery", show_duration(window)))?;
        }
        if let Some(queue) = &config.queue {
            describe_queue(f, queue)?;
        }
        let format = match config.log.format {
            log::Format::Json => "JSON",
            log::Format::Text => "text",
        };
        line(f, 0, "log", format_args!("{format}, level {} (RUST_LOG wins)", config.log.level))?;
        for webhook in &config.webhooks {
            writeln!(f)?;
            describe_webhook(f, webhook)?;
        }
        if !config.warnings.is_empty() {
            writeln!(f, "\nWarnings:")?;
            config.warnings.iter().try_for_each(|warning| writeln!(f, "  {warning}"))?;
        }
        Ok(())
    }
}

fn describe_queue(f: &mut Formatter<'_>, queue: &Queue) -> fmt::Result {
    let Queue { store, retention, worker } = queue;
    match store {
        Store::Sqlite { path } => {
            line(f, 0, "queue", format_args!("in the file {}, for this service alone", path.display()))?;
        }
        Store::Nats { url, stream, credentials, ca, replicas } => {
            line(
                f,
                0,
                "queue",
                format_args!("in NATS JetStream at {url}, stream {stream}, kept {replicas} times"),
            )?;
            if let Some(path) = credentials {
                line(f, 0, "", format_args!("credentials from the file {}", path.display()))?;
            }
            if let Some(path) = ca {
                line(f, 0, "", format_args!("trusting the certificates in {}", path.display()))?;
            }
        }
    }
    line(f, 0, "", "a delivery is answered 202 once it is there, and handed on from there")?;
    line(
        f,
        0,
        "retries",
        format_args!(
            "up to {} attempts or an age of {}, up to {} after the first and {} at most between them",
            worker.max_attempts,
            show_duration(worker.max_age),
            show_duration(worker.backoff.initial),
            show_duration(worker.backoff.max),
        ),
    )?;
    line(f, 0, "", format_args!("{} attempts at a time for each destination", worker.concurrency))?;
    line(
        f,
        0,
        "kept",
        format_args!(
            "what is done for {}, dead letters for {}, {} in all",
            show_duration(retention.retain),
            show_duration(retention.dead_retain),
            show_size(retention.max_bytes),
        ),
    )
}

fn describe_webhook(f: &mut Formatter<'_>, webhook: &Webhook) -> fmt::Result {
    let settings = &webhook.settings;
    let filter = &settings.filter;
    writeln!(f, "webhook {}", settings.name)?;
    line(f, 1, "path", &settings.path)?;
    match webhook.scope {
        Some(scope) => line(f, 1, "attached to", format_args!("one {} in Pulumi", scope.name()))?,
        None => line(f, 1, "attached to", "anything in Pulumi")?,
    }
    for origin in &webhook.secrets {
        line(f, 1, "secret", Secret(origin))?;
    }
    describe_events(f, 1, &filter.events)?;
    match &filter.organization {
        Some(organization) => line(f, 1, "organization", format_args!("only {organization}"))?,
        None => line(f, 1, "organization", "any")?,
    }
    match &webhook.environments {
        Some(patterns) => line(f, 1, "environments", format_args!("only {}", patterns.join(", ")))?,
        None => line(f, 1, "environments", "any")?,
    }
    match &webhook.tags {
        Some(patterns) => line(f, 1, "tags", format_args!("only {}", patterns.join(", ")))?,
        None => line(f, 1, "tags", "any")?,
    }
    line(
        f,
        1,
        "kind check",
        match filter.kind_check {
            KindCheck::Enforce => "a payload that does not fit its kind is refused",
            KindCheck::Warn => "a payload that does not fit its kind is logged and goes on",
        },
    )?;
    for (settings, told) in settings.destinations.iter().zip(&webhook.destinations) {
        describe_destination(f, settings, told)?;
    }
    Ok(())
}

fn describe_destination(
    f: &mut Formatter<'_>,
    settings: &destination::Settings,
    told: &Destination,
) -> fmt::Result {
    writeln!(f, "  destination {}", settings.name)?;
    match told.url.split_once('?') {
        Some((url, _)) => line(f, 2, "url", format_args!("{url}?…"))?,
        None => line(f, 2, "url", &told.url)?,
    }
    line(f, 2, "timeout", show_duration(settings.timeout))?;
    match settings.format {
        destination::Format::Raw => line(f, 2, "format", "raw: the very bytes that were verified")?,
    }
    for (name, source) in &told.headers {
        line(f, 2, "header", format_args!("{name}, from {source}"))?;
    }
    if let Some(ca) = &told.ca {
        line(f, 2, "trust", format_args!("the certificates in {}, not the platform's", ca.display()))?;
    }
    if let Some(files) = &told.identity {
        line(f, 2, "identity", Files(files))?;
    }
    if settings.policy.in_order {
        line(f, 2, "order", "the deliveries of one environment one after another, as they came")?;
    }
    if let Some(wait) = settings.policy.coalesce {
        line(
            f,
            2,
            "coalesce",
            format_args!(
                "each waits for {}; of one environment and event only the newest is delivered",
                show_duration(wait)
            ),
        )?;
    }
    match &settings.events {
        Some(events) => describe_events(f, 2, events),
        None => line(f, 2, "events", "all of the webhook's"),
    }
}

/// Kinds that are wanted whole first, then single filters, one a line.
fn describe_events(f: &mut Formatter<'_>, depth: usize, events: &Events) -> fmt::Result {
    let mut label = "events";
    let mut tell = |text: &dyn Display| line(f, depth, std::mem::take(&mut label), text);
    if events.are_all() {
        return tell(&"every event, known or not");
    }
    let mut told = BTreeSet::new();
    for kind in events.kinds() {
        if !told.insert(kind.as_str()) {
            continue;
        }
        let filters = filters_of(kind, events);
        match Kind::find(kind) {
            None => tell(&format_args!("kind {kind}, unknown to hookgate: its payload is not checked"))?,
            Some(_) if filters == [kind] => tell(&format_args!("kind {kind}"))?,
            Some(_) => tell(&format_args!("kind {kind}, all of it: {}", filters.join(", ")))?,
        }
        told.extend(filters);
    }
    for prefix in events.kind_prefixes() {
        let filters: Vec<_> =
            events.filters().map(|event| event.name).filter(|name| name.starts_with(prefix)).collect();
        tell(&format_args!("every kind that begins with {prefix}: {}", filters.join(", ")))?;
        told.extend(filters);
    }
    for event in events.filters().filter(|event| !told.contains(event.name)) {
        if event.is_published() {
            tell(&event.name)?;
        } else {
            tell(&format_args!("{}, as far as it can be told", event.name))?;
        }
    }
    Ok(())
}

/// The filters of a kind that a set holds; all of them where only `kind:NAME` is in it.
fn filters_of(kind: &str, events: &Events) -> Vec<&'static str> {
    let of_kind = || EVENTS.iter().filter(|event| event.kind == Some(kind)).map(|event| event.name);
    let held: Vec<_> = events.filters().filter(|event| event.kind == Some(kind)).map(|e| e.name).collect();
    if held.is_empty() { of_kind().collect() } else { held }
}

/// One line: a label of fixed width, and what it is about.
fn line(f: &mut Formatter<'_>, depth: usize, label: &str, text: impl Display) -> fmt::Result {
    let indent = depth * 2;
    let width = 14;
    write!(f, "{:indent$}{label:<width$}", "")?;
    // TOML's strings can hold anything, and this goes to a terminal.
    for c in text.to_string().chars() {
        if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) }?;
    }
    f.write_char('\n')
}

fn size(bytes: usize) -> String {
    u64::try_from(bytes).map_or_else(|_| bytes.to_string(), show_size)
}

/// A certificate by its files.
struct Files<'i>(&'i IdentityFiles);

impl Display for Files<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(IdentityFiles { cert, key }) = self;
        write!(f, "{}, with the key {}", cert.display(), key.display())
    }
}

/// A secret by its name.
struct Secret<'o>(&'o Origin);

impl Display for Secret<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(Origin { name, source, expires }) = self;
        write!(f, "{name}, from {source}")?;
        match expires {
            Some(end) => write!(f, ", until {}", show_instant(*end)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        time::{Duration, SystemTime},
    };

    use super::*;

    /// Everything that `check` says about a file of `tests/data/config/valid`.
    fn told(path: &Path) -> String {
        let variable = |name: &str| {
            let value = match name {
                "GOOD_SECRET" => "pulumi-webhook-test-secret",
                "SHORT_SECRET" => "fifteen-bytes-!",
                "TOKEN" => "upstream-token",
                _ => return None,
            };
            Some(value.into())
        };
        // 2026-06-01T00:00:00Z.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_272_000);
        let mut config = Config::parse_in(path, &fs::read_to_string(path).unwrap(), now, &variable)
            .unwrap_or_else(|report| panic!("{report}"));
        // Who may write the files of a checkout is the checkout's matter.
        config.warnings.retain(|warning| !warning.text.contains("chmod"));
        Description(&config).to_string()
    }

    fn valid_files() -> Vec<std::path::PathBuf> {
        let paths = fs::read_dir("tests/data/config/valid").unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
    }

    #[test]
    fn every_valid_file_means_what_stands_beside_it() {
        let files = valid_files();
        for path in &files {
            let told = told(path);
            let expected = fs::read_to_string(path.with_extension("txt")).unwrap();
            assert_eq!(told, expected, "{}", path.display());
            for secret in ["webhook-test-secret", "fifteen-bytes-!", "upstream-token", "hidden"] {
                assert!(!told.contains(secret), "{told}");
            }
        }
        assert_eq!(files.len(), 10);
    }

    #[test]
    #[ignore = "writes the expected texts anew: for a change of wording, with a look at the difference"]
    fn write_expected_texts() {
        for path in valid_files() {
            fs::write(path.with_extension("txt"), told(&path)).unwrap();
        }
    }
}
