//! `hookgate check`: validates the configuration, and says in plain words what it means.
//!
//! Nothing is bound, connected or written. Secrets and header values are told by where they come from only, and a
//! URL's query, and what in its path looks like a token, is left out.

mod json;

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Formatter, Write as _},
    io::Write,
    path::PathBuf,
};

use super::{Ended, Failure, input::ConfigArgs, output::Out};
use crate::{
    app::doubts,
    config::{
        Config, Destination, IdentityFiles, Origin, Queue, Webhook, is_hidden, show_duration, show_instant,
        show_size,
    },
    delivery::{
        destination,
        queue::{Store, nats},
    },
    ops::log,
    server::listener::Address,
    webhook::{
        event::{EVENTS, Kind},
        filter::{Events, KindCheck},
    },
};

const EXAMPLES: &str = "\
Examples:
  hookgate check hookgate.toml
  hookgate check --strict --json --config hookgate.toml

Exit status: 0 the configuration is good, 1 there are warnings and --strict is
given, 2 it is not good: every mistake is told with its place and what would be
right.";

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// The configuration file, as with --config
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// End with exit status 1 if there are warnings
    #[arg(long)]
    strict: bool,
    /// Print mistakes, warnings and meaning as JSON
    #[arg(long)]
    json: bool,
}

/// Says what the configuration means, or what is wrong with it.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let path = args.file.clone().unwrap_or_else(|| args.config.path());
    let mut config = match Config::load(&path) {
        Ok(config) => config,
        Err(report) => {
            if args.json {
                let text = json::text(&path.display().to_string(), report.mistakes(), None);
                writeln!(out, "{text}")?;
            }
            return Err(Failure::Configuration(report));
        }
    };
    config.warnings.extend(doubts(&config));
    if args.json {
        writeln!(out, "{}", json::text(&path.display().to_string(), &[], Some(&config)))?;
    } else {
        write!(out, "{}", Description(&config))?;
    }
    let bad = args.strict && !config.warnings.is_empty();
    Ok(if bad { Ended::Badly } else { Ended::Well })
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
        if let Address::Unix(_) = &server.listen {
            line(f, 0, "", format_args!("the mode of the socket is {:04o}", server.listen_mode))?;
        }
        let proxies = server.trusted_proxies.networks();
        if !proxies.is_empty() {
            let proxies: Vec<_> = proxies.iter().map(ToString::to_string).collect();
            line(f, 0, "", format_args!("X-Forwarded-For is read from {}, for the log", proxies.join(", ")))?;
        }
        line(f, 0, "health", format_args!("and metrics at {}", config.ops.listen))?;
        line(
            f,
            0,
            "limits",
            format_args!(
                "body {}, head {}, {} connections, {} of bodies held at a time",
                size(server.max_body),
                size(server.connections.max_header),
                server.connections.max_connections,
                size(server.max_inflight_bytes),
            ),
        )?;
        line(
            f,
            0,
            "timeouts",
            format_args!(
                "head {}, body {}, idle {}, drain {}",
                show_duration(server.connections.header_timeout),
                show_duration(server.body_timeout),
                show_duration(server.connections.idle_timeout),
                show_duration(server.drain_timeout),
            ),
        )?;
        let window = config.dedupe.window;
        if window.is_zero() {
            line(f, 0, "duplicates", "not detected: IDs are not remembered")?;
        } else {
            let what = if config.queue.is_some() { "while one waits, and for" } else { "for" };
            line(
                f,
                0,
                "duplicates",
                format_args!("detected {what} {} after a delivery", show_duration(window)),
            )?;
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
        Store::Nats(nats::Settings { url, stream, credentials, ca, replicas }) => {
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
    line(f, 0, "", "a delivery is answered 202 once it is committed, and delivered from there")?;
    line(
        f,
        0,
        "retries",
        format_args!(
            "a delivery is tried until it is {} old{}, and at least once",
            show_duration(worker.max_age),
            worker.max_attempts.map(|most| format!(", {most} times at most")).unwrap_or_default(),
        ),
    )?;
    line(
        f,
        0,
        "",
        format_args!(
            "up to {} after the first attempt, then twice as long each time, up to {}",
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
            "finished deliveries for {}, dead letters for {}, {} in all",
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
            KindCheck::Warn => "a payload that does not fit its kind is logged and forwarded",
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
    line(f, 2, "url", shown_url(&told.url))?;
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
        line(f, 2, "order", "the deliveries of one environment one after another, in order of arrival")?;
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
            Some(_) => tell(&format_args!("kind {kind}, all its events: {}", filters.join(", ")))?,
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
            tell(&format_args!("{}, as far as hookgate can recognise it", event.name))?;
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

/// A URL without what in it may be a secret: its query, and those parts of its path that look like a token.
fn shown_url(url: &str) -> String {
    let (path, query) = url.split_once('?').map_or((url, ""), |(path, _)| (path, "?…"));
    let (scheme, rest) = path.split_once(':').unwrap_or(("", path));
    let shown = |part: &str| {
        let digits = part.bytes().filter(u8::is_ascii_digit).count();
        let is_token = part.len() >= 16 && digits > 0 && !part.contains(['.', ':']);
        if is_token || part.len() >= 40 { "…".to_owned() } else { part.to_owned() }
    };
    // The host is the first part behind two slashes, or there is none.
    let host = if rest.starts_with("//") { 3 } else { 0 };
    let parts = rest.split('/').enumerate();
    let parts: Vec<_> =
        parts.map(|(at, part)| if at < host { part.to_owned() } else { shown(part) }).collect();
    format!("{scheme}:{}{query}", parts.join("/"))
}

/// One line: a label of fixed width, and what it is about.
fn line(f: &mut Formatter<'_>, depth: usize, label: &str, text: impl Display) -> fmt::Result {
    let indent = depth * 2;
    let width = 14;
    write!(f, "{:indent$}{label:<width$}", "")?;
    // TOML's strings can hold anything, and this goes to a terminal.
    for c in text.to_string().chars() {
        if is_hidden(c) { write!(f, "{}", c.escape_default()) } else { f.write_char(c) }?;
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
mod tests;
