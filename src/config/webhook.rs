//! What `[[webhook]]` may say.

use std::collections::HashSet;

use toml::de::{DeTable, DeValue};

use super::{
    destination::{Destination, destinations},
    events::events,
    names::{NO_WEBHOOK, destination_name, name_of, wrong_path},
    origin::{Origin, secrets},
    patterns::{ENVIRONMENT, Names, TAG},
    reader::{Item, Table},
    report::quoted,
    tables::{Around, Taken, tables},
    values::label,
};
use crate::{
    delivery::queue::Recipient,
    ingress::route,
    webhook::{
        event::Scope,
        filter::{Filter, Globs, KindCheck},
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
