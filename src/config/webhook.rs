//! What `[[webhook]]` may say.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use toml::de::{DeTable, DeValue};

use super::{
    destination::{Destination, destinations},
    file::{is_label, label},
    names::{Named, of_path},
    origin::{Origin, secrets},
    own::Own,
    patterns::{ENVIRONMENT, Names, TAG},
    reader::{Item, MISSPELT, Table},
    report::{quoted, short},
};
use crate::{
    delivery::queue::Recipient,
    ingress::route,
    webhook::{
        event::{EVENTS, Event, Group, KINDS, Kind, Scope},
        filter::{EventError, Events, Filter, Globs, KindCheck},
        signature::Verifier,
    },
};

/// A configured webhook: its settings, and what of the file they do not hold.
#[derive(Debug)]
pub struct Webhook {
    /// What the service works with.
    pub settings: route::Settings,
    /// What the webhook is attached to in Pulumi. `None`: any.
    pub scope: Option<Scope>,
    /// Where its secrets come from, in the order of the file.
    pub secrets: Vec<Origin>,
    /// `environments`, as written.
    pub environments: Option<Vec<String>>,
    /// `tags`, as written.
    pub tags: Option<Vec<String>>,
    /// What of its destinations the settings do not hold, in the same order.
    pub destinations: Vec<Destination>,
}

/// What the rest of the file means for webhooks and their destinations.
pub(super) struct Around {
    /// Deliveries go through a queue, so that a webhook may have several destinations.
    pub(super) queue: Option<Queued>,
    /// Where hookgate itself listens.
    pub(super) own: Own,
}

/// What a queue means for webhooks.
pub(super) struct Queued {
    /// `max_age`.
    pub(super) max_age: Duration,
    /// Whether it can keep an order.
    pub(super) ordered: bool,
}

/// All webhooks of the file.
pub(super) fn webhooks(root: &mut Table<'_>, around: &Around) -> Vec<Webhook> {
    const EXAMPLE: &str = "write [[webhook]] with path, secret, events and a [[webhook.destination]]";

    let Some(item) =
        root.require("webhook", format_args!("without a webhook nothing is accepted; {EXAMPLE}"))
    else {
        return Vec::new();
    };
    let mut names = Taken::new("name", "webhook");
    let mut paths = Taken::new("path", "webhook");
    let mut webhooks = Vec::new();
    for table in tables(&item, EXAMPLE, |table, _| name_of(table)) {
        let name = match name_of(table.entries()) {
            Some(Ok(name)) => {
                names.claim(&table, &name);
                Some(name)
            }
            Some(Err(why)) => {
                table.context.mistake(
                    table.find("path").map_or(table.at, |path| path.at),
                    &table.path("name"),
                    format_args!(
                        "is missing, and the default name, made from the path, {why}: write name = \"…\""
                    ),
                );
                None
            }
            // What is wrong is noted where name and path are read.
            None => None,
        };
        if let Some(path) = table.find("path").and_then(|path| path.value.as_str()) {
            paths.claim(&table, path);
        }
        webhooks.extend(webhook(table, name, around));
    }
    webhooks
}

/// Every destination by its names, whatever else is in its tables.
pub(super) fn recipients(root: &Table<'_>) -> HashSet<Recipient> {
    fn tables<'v>(list: &'v DeValue<'v>) -> impl Iterator<Item = &'v DeTable<'v>> {
        list.as_array().into_iter().flatten().filter_map(|item| item.get_ref().as_table())
    }

    let mut found = HashSet::new();
    for table in root.find("webhook").iter().flat_map(|item| tables(item.value)) {
        let Some(Ok(webhook)) = name_of(table) else { continue };
        let Some(list) = table.get("destination") else { continue };
        let number = tables(list.get_ref()).count();
        for destination in tables(list.get_ref()) {
            let Some(destination) = destination_name(destination, number) else { continue };
            found.insert(Recipient { webhook: webhook.clone(), destination });
        }
    }
    found
}

/// The tables of a list of tables, each with its key's path ending in its name, or in its number where it has none.
pub(super) fn tables<'c>(
    item: &Item<'c>,
    example: &str,
    name: impl Fn(&DeTable<'_>, usize) -> Option<Result<String, &'static str>>,
) -> Vec<Table<'c>> {
    if item.value.is_table() {
        item.context.mistake(item.key_at, &item.key, format_args!("must be a list of tables: {example}"));
        return Vec::new();
    }
    let Some(items) = item.list(&format!("a list of tables: {example}")) else { return Vec::new() };
    let all = items.len();
    let named = (1..).zip(items).filter_map(|(number, item)| {
        let mut table = item.table(&format!("a table: {example}"))?;
        let name = name(table.entries(), all).and_then(Result::ok).unwrap_or_else(|| format!("{number}"));
        table.key = format!("{}.{name}", table.key);
        Some(table)
    });
    named.collect()
}

/// The name of a webhook: the given one, or the one that its path makes. `None` where either is wrong, `Err` where the
/// path makes none.
pub(super) fn name_of(table: &DeTable<'_>) -> Option<Result<String, &'static str>> {
    if let Some(written) = table.get("name") {
        let written = written.get_ref().as_str().filter(|name| is_label(name) && *name != NO_WEBHOOK)?;
        return Some(Ok(written.to_owned()));
    }
    let path = table.get("path")?.get_ref().as_str()?;
    if wrong_path(path).is_some() {
        return None;
    }
    Some(match of_path(path) {
        Named::Well(name) if name == NO_WEBHOOK => Err("labels requests that belong to no webhook"),
        Named::Well(name) => Ok(name),
        Named::Badly(why) => Err(why),
    })
}

/// The name of a destination, if it has one: the given one, or that of an only one.
pub(super) fn destination_name(table: &DeTable<'_>, of: usize) -> Option<String> {
    match table.get("name") {
        Some(written) => written.get_ref().as_str().filter(|name| is_label(name)).map(str::to_owned),
        None => (of == 1).then(|| "default".to_owned()),
    }
}

/// Labels requests that belong to no webhook.
const NO_WEBHOOK: &str = "none";

/// Values of which each may stand in one table only.
pub(super) struct Taken {
    key: &'static str,
    kind: &'static str,
    by: HashMap<String, usize>,
}

impl Taken {
    pub(super) fn new(key: &'static str, kind: &'static str) -> Self {
        Self { key, kind, by: HashMap::new() }
    }

    /// Notes a mistake where another table has the value already.
    pub(super) fn claim(&mut self, table: &Table<'_>, value: &str) {
        let Self { key, kind, by } = self;
        let written = table.find(key);
        let at = written.as_ref().map_or(table.at, |item| item.at);
        let Some(line) = by.get(value) else {
            by.insert(value.to_owned(), table.context.line(at));
            return;
        };
        if written.is_some() {
            let value = quoted(value);
            let text =
                format_args!("{value} is also the {key} of the {kind} in line {line}: each needs its own");
            table.context.mistake(at, &table.path(key), text);
        } else {
            let text = format_args!(
                "is missing, and the default one, made from the path, is also that of the {kind} in line {line}: write {key} = \"…\" in one of them"
            );
            table.context.mistake(at, &table.path(key), text);
        }
    }
}

fn webhook(mut table: Table<'_>, name: Option<String>, around: &Around) -> Option<Webhook> {
    table.take("name").and_then(|item| webhook_name(&item));
    let path = table.require("path", "write path = \"/webhooks/pulumi\"").and_then(|item| path(&item));
    let secrets = table
        .require(
            "secret",
            "write secret = { file = \"…\" } or { env = \"NAME\" }; unverified deliveries are never accepted",
        )
        .and_then(secrets);
    let scope = table.take("scope").map(|item| item.word(&Scope::ALL.map(|scope| (scope.name(), scope))));
    let events = table
        .require("events", "write events = [\"environments\"], or [\"*\"] for every event")
        // With a wrong scope nothing can be said about what it sends.
        .and_then(|item| events(&item, scope.flatten()));
    let organization = table.take("organization").map(|item| organization(&item));
    let environments = table.take("environments").map(|item| environments(&item));
    let tags = table.take("tags").map(|item| tags(&item));
    let kind_check = table.read("kind_check", KindCheck::default(), |item| {
        item.word(&[("enforce", KindCheck::Enforce), ("warn", KindCheck::Warn)])
    });
    let destinations = destinations(&mut table, scope.flatten(), events.as_ref(), around);
    table.finish();

    let (keys, secrets) = secrets?;
    let (environments, tags) = (all_or_none(environments)?, all_or_none(tags)?);
    let patterns =
        |list: &Option<Vec<String>>| list.as_ref().map(|list| Globs::new(list.iter().map(String::as_str)));
    let (settings, destinations) = destinations?;
    Some(Webhook {
        settings: route::Settings {
            name: name?,
            path: path?,
            verifier: Verifier::new(keys),
            filter: Filter {
                events: events?,
                organization: all_or_none(organization)?,
                environments: patterns(&environments),
                tags: patterns(&tags),
                kind_check,
            },
            destinations: settings,
        },
        scope: all_or_none(scope)?,
        secrets,
        environments,
        tags,
        destinations,
    })
}

/// An absent key is fine; a wrong one is not.
fn all_or_none<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        None => Some(None),
        Some(read) => read.map(Some),
    }
}

fn webhook_name(item: &Item<'_>) -> Option<String> {
    let name = label(item)?;
    if name == NO_WEBHOOK {
        item.mistake("`none` labels requests that belong to no webhook: choose another name");
        return None;
    }
    Some(name)
}

/// The exact path of a webhook's requests.
fn path(item: &Item<'_>) -> Option<String> {
    let text = item.text("a path such as \"/webhooks/pulumi\"")?;
    if let Some(wrong) = wrong_path(text) {
        item.mistake(wrong);
        return None;
    }
    if text.contains('*') {
        item.warning("contains `*`, which is not a wildcard here: a path is compared exactly");
    }
    Some(text.to_owned())
}

fn wrong_path(text: &str) -> Option<String> {
    if !text.starts_with('/') {
        let rest = text.rsplit("://").next().and_then(short).unwrap_or("…");
        Some(format!("must begin with a slash: write \"/{rest}\""))
    } else if text.contains(['?', '#']) {
        Some("must be a path only: remove what follows ? or #; queries of requests are ignored".into())
    } else if !is_uri_path(text) {
        Some("is not the path of a URL: characters other than A-Z a-z 0-9 and -._~!$&'()*+,;=:@/ are written as %XX".into())
    } else {
        None
    }
}

/// Whether a text can stand as the path of a request, as RFC 3986 writes it.
fn is_uri_path(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let fits = match byte {
            b'%' => {
                [bytes.next(), bytes.next()].iter().all(|digit| digit.is_some_and(|d| d.is_ascii_hexdigit()))
            }
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte),
        };
        if !fits {
            return false;
        }
    }
    true
}

/// A list of events; each wrong one is a mistake of its own.
pub(super) fn events(item: &Item<'_>, scope: Option<Scope>) -> Option<Events> {
    let names = item.texts("[\"environments\"]")?;
    let mut events = Events::default();
    let mut good = true;
    for (item, name) in names {
        if let Err(error) = events.add(name, scope) {
            good = false;
            match error {
                EventError::OutOfScope { .. } => {
                    item.mistake(format_args!("{error}; remove it, or correct `scope`"));
                }
                EventError::Unknown { similar: Some(similar), .. } if name.len() <= similar.len() + MISSPELT => {
                    item.mistake(error);
                }
                // It names a filter that is known.
                EventError::FilterAsKind { .. } => item.mistake(error),
                _ if short(name).is_some() => item.mistake(error),
                EventError::Unknown { similar: Some(similar), .. } => item.mistake(format_args!(
                    "this value is not an event, kind or group; did you mean `{similar}`?"
                )),
                EventError::Unknown { .. } => item.mistake(
                    "this value is not an event, kind or group; for a kind that hookgate does not know write `kind:NAME`",
                ),
                EventError::MalformedKind { .. } => {
                    item.mistake("this value is not a kind: after `kind:` come 1 to 64 of a-z, 0-9 and _");
                }
            }
        } else if let Some(group) = name.strip_prefix("kind:").filter(|name| is_group_alone(name)) {
            good = false;
            item.mistake(format_args!(
                "`kind:{group}` matches nothing: `{group}` is the name of a group, not of a kind; write `{group}`"
            ));
        } else {
            warn_of_unpublished(&item, name);
        }
    }
    good.then_some(events)
}

/// Whether a name is that of a group whose kinds are known, and of none of them.
fn is_group_alone(name: &str) -> bool {
    let group = Group::ALL.into_iter().find(|group| group.name() == name && group.kind_prefix().is_none());
    group
        .is_some_and(|group| Kind::find(name).is_none() && KINDS.iter().any(|kind| kind.group == Some(group)))
}

/// Some names are guesses, and the operator must know which.
fn warn_of_unpublished(item: &Item<'_>, name: &str) {
    const SURE: &str = "once a delivery's kind is known (the log shows it), `kind:NAME` is the safest choice";
    let of_group = Group::ALL.into_iter().find(|group| group.name() == name).and_then(Group::kind_prefix);
    if let Some(prefix) = of_group {
        item.warning(format_args!(
            "Pulumi publishes no kind for `{name}`: every kind that begins with `{prefix}` is taken for it; {SURE}"
        ));
    } else if EVENTS.iter().any(|event| event.name == name && !Event::is_published(event)) {
        item.warning(format_args!(
            "Pulumi does not publish what `{name}` looks like: taken for it is a kind of that name, or one that is \
             its beginning while `action`, `result` or `status` is its end; {SURE}"
        ));
    }
}

fn organization(item: &Item<'_>) -> Option<String> {
    let text = item.text("the organization's name in Pulumi's URLs, such as \"acme\"")?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || !text.chars().all(fits) {
        let why = if text.contains(['*', '?']) { ", it is compared exactly, not as a pattern" } else { "" };
        item.mistake(format_args!(
            "cannot be the name of an organization{why}: write it as in Pulumi's URLs, of letters, digits, '-', '_' and '.', or remove the key"
        ));
        return None;
    }
    Some(text.to_owned())
}

fn environments(item: &Item<'_>) -> Option<Vec<String>> {
    globs(item, "[\"website/prod\", \"website/*\"]", &ENVIRONMENT)
}

fn tags(item: &Item<'_>) -> Option<Vec<String>> {
    globs(item, "[\"stable\", \"release-*\"]", &TAG)
}

/// A list of patterns, each of which must fit some name that there can be.
fn globs(item: &Item<'_>, example: &str, names: &Names) -> Option<Vec<String>> {
    let texts = item.texts(example)?;
    let mut good = true;
    for (item, text) in &texts {
        if let Some(why) = names.why_never(text) {
            let what = if text.is_empty() { "an empty pattern".to_owned() } else { quoted(text) };
            item.mistake(format_args!("{what} never matches: {why}"));
            good = false;
        }
    }
    good.then(|| texts.into_iter().map(|(_, text)| text.to_owned()).collect())
}
