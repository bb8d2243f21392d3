//! What `[[webhook]]` may say.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use toml::de::{DeTable, DeValue};

use super::{
    destination::{Destination, destinations},
    file::{is_label, label},
    origin::{Origin, secrets},
    reader::{Item, Table},
};
use crate::{
    delivery::queue::Recipient,
    ingress::route,
    webhook::{
        event::{EVENTS, Event, Group, Scope},
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

/// All webhooks of the file. `queued`: deliveries go through a queue with this `max_age`, so a webhook may have several
/// destinations.
pub(super) fn webhooks(root: &mut Table<'_>, queued: Option<Duration>) -> Vec<Webhook> {
    const EXAMPLE: &str = "write [[webhook]] with path, secret, events and a [[webhook.destination]]";

    let Some(item) = root.require("webhook", format_args!("without a webhook nothing is let in; {EXAMPLE}"))
    else {
        return Vec::new();
    };
    let mut names = Taken::new("name", "webhook");
    let mut paths = Taken::new("path", "webhook");
    let mut webhooks = Vec::new();
    for (number, table) in (1..).zip(tables(&item, "webhook", EXAMPLE)) {
        let name = name_of(&table, "webhook", number);
        names.claim(&table, &name, &name);
        if let Some(path) = table.find("path").and_then(|path| path.value.as_str()) {
            paths.claim(&table, path, &name);
        }
        webhooks.extend(webhook(table, name, queued));
    }
    webhooks
}

/// Every destination by its names, whatever else is in its tables.
pub(super) fn recipients(root: &Table<'_>) -> HashSet<Recipient> {
    let webhooks = root.find("webhook").map(|item| named(item.value, "webhook")).unwrap_or_default();
    let recipients = webhooks.into_iter().flat_map(|(webhook, table)| {
        let destinations = table.get("destination").map(|list| named(list.get_ref(), "destination"));
        destinations
            .unwrap_or_default()
            .into_iter()
            .map(move |(destination, _)| Recipient { webhook: webhook.clone(), destination })
    });
    recipients.collect()
}

/// The tables of a list with their names. What is none is left out.
pub(super) fn named<'c>(list: &'c DeValue<'c>, kind: &str) -> Vec<(String, &'c DeTable<'c>)> {
    let tables = (1..).zip(list.as_array().into_iter().flatten());
    let named = tables.filter_map(|(number, table)| {
        let table = table.get_ref().as_table()?;
        let written = table.get("name").and_then(|name| name.get_ref().as_str());
        Some((name_or_default(written, kind, number), table))
    });
    named.collect()
}

/// The tables of a list of tables, each with its key's path ending in its name.
pub(super) fn tables<'c>(item: &Item<'c>, kind: &str, example: &str) -> Vec<Table<'c>> {
    if item.value.is_table() {
        item.context.mistake(item.key_at, &item.key, format_args!("has to be a list of tables: {example}"));
        return Vec::new();
    }
    let Some(items) = item.list(&format!("a list of tables: {example}")) else { return Vec::new() };
    let named = (1..).zip(items).filter_map(|(number, item)| {
        let mut table = item.table(&format!("a table: {example}"))?;
        table.key = format!("{}.{}", table.key, name_of(&table, kind, number));
        Some(table)
    });
    named.collect()
}

/// The name that a table has, or gets where it has none or a wrong one.
pub(super) fn name_of(table: &Table<'_>, kind: &str, number: usize) -> String {
    name_or_default(table.find("name").and_then(|name| name.value.as_str()), kind, number)
}

fn name_or_default(written: Option<&str>, kind: &str, number: usize) -> String {
    written.filter(|name| is_label(name)).map_or_else(|| format!("{kind}-{number}"), str::to_owned)
}

/// Values of which each may stand in one table only.
pub(super) struct Taken {
    key: &'static str,
    kind: &'static str,
    by: HashMap<String, (String, usize)>,
}

impl Taken {
    pub(super) fn new(key: &'static str, kind: &'static str) -> Self {
        Self { key, kind, by: HashMap::new() }
    }

    /// Notes a mistake where another table has the value already.
    pub(super) fn claim(&mut self, table: &Table<'_>, value: &str, owner: &str) {
        let at = table.find(self.key).map_or(table.at, |item| item.at);
        if let Some((other, line)) = self.by.get(value) {
            table.context.mistake(
                at,
                &table.path(self.key),
                format_args!(
                    "`{value}` is the {} of the {} `{other}` in line {line} too: each needs its own",
                    self.key, self.kind
                ),
            );
        } else {
            self.by.insert(value.to_owned(), (owner.to_owned(), table.context.line(at)));
        }
    }
}

fn webhook(mut table: Table<'_>, name: String, queued: Option<Duration>) -> Option<Webhook> {
    table.take("name").and_then(|item| webhook_name(&item));
    let path = table.require("path", "write path = \"/webhooks/pulumi\"").and_then(|item| path(&item));
    let secrets = table
        .require(
            "secret",
            "write secret = { file = \"…\" } or { env = \"NAME\" }; nothing is let in unverified",
        )
        .and_then(secrets);
    let scope = table.take("scope").map(|item| item.word(&Scope::ALL));
    let events = table
        .require("events", "write events = [\"environments\"], or [\"*\"] for every event")
        // With a wrong scope nothing can be said about what it sends.
        .and_then(|item| events(&item, scope.flatten()));
    let organization = table.take("organization").map(|item| organization(&item));
    let environments = table.take("environments").map(|item| environments(&item));
    let tags = table.take("tags").map(|item| globs(&item, "[\"stable\", \"release-*\"]"));
    let kind_check = table.read("kind_check", KindCheck::default(), |item| {
        item.word(&[("enforce", KindCheck::Enforce), ("warn", KindCheck::Warn)])
    });
    let destinations = destinations(&mut table, scope.flatten(), events.as_ref(), queued);
    table.finish();

    let (keys, secrets) = secrets?;
    let (environments, tags) = (all_or_none(environments)?, all_or_none(tags)?);
    let patterns =
        |list: &Option<Vec<String>>| list.as_ref().map(|list| Globs::new(list.iter().map(String::as_str)));
    let (settings, destinations) = destinations?;
    Some(Webhook {
        settings: route::Settings {
            name,
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
    if name == "none" {
        item.mistake("`none` labels requests that belong to no webhook: choose another name");
        return None;
    }
    Some(name)
}

/// The exact path of a webhook's requests.
fn path(item: &Item<'_>) -> Option<String> {
    const WANTED: &str = "a path such as \"/webhooks/pulumi\"";
    let text = item.text(WANTED)?;
    let wrong = if !text.starts_with('/') {
        Some(format!(
            "has to begin with a slash: write \"/{}\"",
            text.rsplit("://").next().unwrap_or_default()
        ))
    } else if text.contains(['?', '#']) {
        Some("is a path alone: remove what follows ? or #; queries of requests are ignored".into())
    } else if !is_uri_path(text) {
        Some("is no path of a URL: characters other than A-Z a-z 0-9 and -._~!$&'()*+,;=:@/ are written as %XX".into())
    } else {
        None
    };
    if let Some(wrong) = wrong {
        item.mistake(wrong);
        return None;
    }
    Some(text.to_owned())
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
        match events.add(name, scope) {
            Ok(()) => warn_of_unpublished(&item, name),
            Err(error) => {
                good = false;
                match error {
                    EventError::OutOfScope { .. } => {
                        item.mistake(format_args!("{error}; remove it, or correct `scope`"));
                    }
                    EventError::Unknown { .. }
                    | EventError::MalformedKind { .. }
                    | EventError::FilterAsKind { .. } => item.mistake(error),
                }
            }
        }
    }
    good.then_some(events)
}

/// Some names are guesses, and the operator has to know which.
fn warn_of_unpublished(item: &Item<'_>, name: &str) {
    const SURE: &str = "once a delivery's kind is known (the log shows it), `kind:NAME` is the sure way";
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
    if text.trim().is_empty() || text.trim() != text {
        item.mistake("has to be the organization's name in Pulumi's URLs, without spaces around it: write it, or remove the key");
        return None;
    }
    Some(text.to_owned())
}

fn environments(item: &Item<'_>) -> Option<Vec<String>> {
    let patterns = globs(item, "[\"website/prod\", \"website/*\"]")?;
    let never: Vec<_> = patterns.iter().filter(|pattern| !pattern.contains(['/', '*', '?'])).collect();
    for pattern in &never {
        item.mistake(format_args!(
            "`{pattern}` never fits: patterns are over PROJECT/ENVIRONMENT; write \"{pattern}/*\" or \"*/{pattern}\""
        ));
    }
    never.is_empty().then_some(patterns)
}

fn globs(item: &Item<'_>, example: &str) -> Option<Vec<String>> {
    let texts = item.texts(example)?;
    let mut good = true;
    for (item, text) in &texts {
        if text.is_empty() {
            item.mistake(format_args!("an empty pattern never fits: write e.g. {example}, or remove it"));
            good = false;
        }
    }
    good.then(|| texts.into_iter().map(|(_, text)| text.to_owned()).collect())
}
