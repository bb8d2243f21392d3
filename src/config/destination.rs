//! What `[[webhook.destination]]` may say.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::{
    certificates::{IdentityFiles, authorities, identity},
    events::events,
    names::destination_name,
    origin::{Source, header_value},
    own::{Own, is_this_machine},
    queue::coalesce,
    reader::{Item, Table},
    report::{quoted, short},
    tables::{Around, Queued, Taken, tables},
    values::{LONGEST, label, unix_path_mistake},
};
use crate::{
    delivery::{
        destination::{Format, Settings, is_reserved_header},
        queue::Policy,
    },
    net::target::{Address, Target, TargetError},
    webhook::{event::Scope, filter::Events},
};

/// What of a destination its settings do not hold.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Its URL, as written.
    pub url: String,
    /// Where the trusted certificates come from.
    pub ca: Option<PathBuf>,
    /// Where the client certificate and its key come from.
    pub identity: Option<IdentityFiles>,
    /// The names of the configured headers, as written, and where their values come from.
    pub headers: Vec<(String, Source)>,
}

/// All destinations of a webhook whose events are `wanted`.
pub(super) fn destinations(
    webhook: &mut Table<'_>,
    scope: Option<Scope>,
    wanted: Option<&Events>,
    around: &Around,
) -> Option<(Vec<Settings>, Vec<Destination>)> {
    const EXAMPLE: &str = "write [[webhook.destination]] with url = \"http://127.0.0.1:3000/hooks/pulumi\"";

    let before = webhook.context.mistakes();
    let item = webhook.require("destination", format_args!("deliveries must go somewhere; {EXAMPLE}"))?;
    let mut names = Taken::new("name", "destination");
    let mut all = Vec::new();
    let tables = tables(&item, EXAMPLE, |table, of| destination_name(table, of).map(Ok));
    let of = tables.len();
    for (number, table) in (1..).zip(tables) {
        if number == 2 && around.queue.is_none() {
            table.mistake("is the second destination, and without a queue a webhook has one: write a section [queue], remove it, or give it a webhook of its own");
        }
        let name = destination_name(table.entries(), of);
        match &name {
            Some(name) => names.claim(&table, name),
            None if table.find("name").is_none() => table.context.mistake(
                table.at,
                &table.path("name"),
                "is missing: each of several destinations must have one, since waiting deliveries belong to it; write name = \"…\"",
            ),
            None => {}
        }
        all.extend(destination(table, name, scope, wanted, around));
    }
    (webhook.context.mistakes() == before).then(|| all.into_iter().unzip())
}

fn destination(
    mut table: Table<'_>,
    name: Option<String>,
    scope: Option<Scope>,
    wanted: Option<&Events>,
    around: &Around,
) -> Option<(Settings, Destination)> {
    table.take("name").and_then(|item| label(&item));
    let url = table
        .require("url", "write url = \"http://HOST:PORT/PATH\"")
        .and_then(|item| url(&item, &around.own));
    let format = table.read("format", Format::default(), format);
    let timeout =
        table.read("timeout", Settings::TIMEOUT, |item| item.duration(Duration::from_millis(1)..=LONGEST));
    let (headers, sources) = table.take("headers").map(headers).unwrap_or_default();
    let ca = https_only(&mut table, "ca", url.as_ref()).and_then(|item| authorities(&item));
    let identity = https_only(&mut table, "identity", url.as_ref()).and_then(identity);
    let events = table.take("events").and_then(|item| {
        let events = events(&item, scope)?;
        if wanted.is_some_and(|wanted| !wanted.overlap(&events)) {
            item.warning(
                "none of these is among the webhook's `events`, so nothing ever goes to this destination",
            );
        }
        Some(events)
    });
    let policy = policy(&mut table, around.queue.as_ref());
    table.finish();

    let (url, target) = url?;
    let (ca_file, ca) = ca.unzip();
    let (identity, identity_files) = identity.unzip();
    Some((
        Settings { name: name?, target, format, timeout, headers, ca, identity, events, policy },
        Destination { url, ca: ca_file, identity: identity_files, headers: sources },
    ))
}

/// `order` and `coalesce`: what is not forwarded at once can be put in order.
fn policy(table: &mut Table<'_>, queue: Option<&Queued>) -> Policy {
    let mut take = |name: &'static str| {
        let item = table.take(name)?;
        let why = match queue {
            None => {
                "needs the queue, since without it each delivery is forwarded at once: write a section [queue], or remove it"
            }
            Some(Queued { ordered: false, .. }) => {
                "needs the queue in a file, since several services that share one on NATS keep no order among them: write store = \"sqlite\", or remove it"
            }
            Some(Queued { ordered: true, .. }) => return Some(item),
        };
        item.context.mistake(item.key_at, &item.key, why);
        Some(item)
    };
    let (order, wait) = (take("order"), take("coalesce"));
    Policy {
        in_order: order.and_then(|item| item.word(&[("environment", true)])).unwrap_or_default(),
        coalesce: wait.and_then(|item| coalesce(&item, queue.map_or(Duration::MAX, |queue| queue.max_age))),
    }
}

fn url(item: &Item<'_>, own: &Own) -> Option<(String, Target)> {
    let text = item.text("a URL such as \"http://127.0.0.1:3000/hooks/pulumi\"")?;
    // The text is not repeated: it can have a password in it.
    let target = match Target::parse(text) {
        Ok(target) => target,
        Err(error) => {
            match error {
                TargetError::Fragment => item.mistake(format_args!("{error}: remove it")),
                _ => item.mistake(error),
            }
            return None;
        }
    };
    if let Address::Unix(path) = &target.address
        && let Some(wrong) = path.to_str().and_then(unix_path_mistake)
    {
        item.mistake(wrong);
        return None;
    }
    let patience = item.context.patience;
    if let Some(listener) = own.listener_at(&target.address, patience) {
        item.mistake(format_args!(
            "is hookgate's own listener (`{listener}`): deliveries would come back to it and never reach a service; write the address of the service, or give one of the two another port"
        ));
        return None;
    }
    if let Address::Tcp { host, tls: false, .. } = &target.address
        && !is_this_machine(host, patience)
    {
        item.warning(
            "goes to another machine without TLS: anyone on the network path can read and change deliveries and headers; write https://, or let hookgate run beside the service",
        );
    }
    Some((text.to_owned(), target))
}

fn format(item: &Item<'_>) -> Option<Format> {
    const LATER: [&str; 4] = ["cloudevents", "slack", "ms_teams", "pulumi_deployments"];
    let text = item.text("\"raw\"")?;
    if text == "raw" {
        return Some(Format::Raw);
    }
    if LATER.contains(&text) {
        item.mistake(format_args!(
            "`{text}` is not built yet: write \"raw\", the delivery as it came, or remove the key"
        ));
    } else {
        let text = quoted(text);
        item.mistake(format_args!(
            "{text} is not a format: write \"raw\", the delivery as it came, or remove the key"
        ));
    }
    None
}

/// Headers that go out beside hookgate's own. Their values are marked sensitive, wherever they come from.
fn headers(item: Item<'_>) -> (HeaderMap, Vec<(String, Source)>) {
    let mut headers = HeaderMap::new();
    let mut sources = Vec::new();
    let Some(table) = item.table("a table such as { Authorization = { file = \"…\" } }") else {
        return (headers, sources);
    };
    let at = table.key.clone();
    for (written, item) in table.items() {
        let name = HeaderName::from_bytes(written.as_bytes()).ok();
        // Name and value may have been put the wrong way round.
        let shown = if is_shown(written, name.as_ref()) { written } else { "…" };
        let item = Item { key: format!("{at}.{shown}"), ..item };
        let (context, at, key_at, key) = (item.context, item.at, item.key_at, item.key.clone());
        match &name {
            None => context.mistake(key_at, &key, "is not the name of a header: use letters, digits and '-'"),
            Some(name) if is_reserved_header(name) => context.mistake(
                key_at,
                &key,
                "is a header that hookgate sets itself or that belongs to a single connection: remove it",
            ),
            Some(name) if headers.contains_key(name) => context.mistake(
                key_at,
                &key,
                "is given twice, since names of headers ignore case: remove one",
            ),
            Some(_) => {}
        }
        let Some((bytes, source)) = header_value(item) else { continue };
        // The header keeps these bytes themselves, which are cleared when its last copy is dropped.
        let Ok(mut value) = HeaderValue::from_maybe_shared(Bytes::from_owner(bytes)) else {
            context.mistake(
                at,
                &key,
                "a header cannot have this value: it has a line break or another control character in it, or is UTF-16",
            );
            continue;
        };
        value.set_sensitive(true);
        if let Some(name) = name {
            headers.insert(name, value);
            sources.push((written.to_owned(), source));
        }
    }
    (headers, sources)
}

/// Whether the name of a header may be repeated: one of three words of letters at most, or one that is too short to be a
/// secret.
fn is_shown(written: &str, name: Option<&HeaderName>) -> bool {
    let is_word = |word: &str| word.len() <= 12 && word.bytes().all(|byte| byte.is_ascii_alphabetic());
    short(written).is_some()
        || name.is_some_and(|name| {
            let words = || name.as_str().split('-');
            is_reserved_header(name) || words().count() <= 3 && words().all(is_word)
        })
}

/// Takes a key that is for https only.
fn https_only<'c>(
    table: &mut Table<'c>,
    name: &'static str,
    url: Option<&(String, Target)>,
) -> Option<Item<'c>> {
    let item = table.take(name)?;
    if let Some((_, Target { address: Address::Tcp { tls: false, .. } | Address::Unix(_), .. })) = url {
        item.mistake("only applies to https URLs, and this one is not: remove it, or write https://");
        return None;
    }
    Some(item)
}
